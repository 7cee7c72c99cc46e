"""Types of the extension. Arrays are checked by the core: shapes and dtypes are in atoms.h."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

class Context:
    def __new__(cls, num_threads: int, isa: int = 4, blas: str | None = None) -> Context: ...
    @property
    def num_threads(self) -> int: ...
    @property
    def isa(self) -> str: ...

def build_info() -> dict[str, Any]: ...

# ---- theory

def ev_update(
    ctx: Context,
    X: NDArray[Any],
    X_hat: NDArray[Any] | None,
    whitener: NDArray[np.float64] | None,
    mean: NDArray[np.float64] | None,
    massive_norm: float,
    sums: NDArray[np.float64],
    tokens: NDArray[np.float64],
    /,
) -> int: ...
def unit_rows(
    ctx: Context,
    D: NDArray[Any],
    whitener: NDArray[np.float64] | None,
    unit: NDArray[np.float32],
    norms: NDArray[np.float64],
    /,
) -> int: ...
def cosine_histogram(ctx: Context, unit: NDArray[np.float32], counts: NDArray[np.int64], /) -> None: ...
def cosine_refine(
    ctx: Context,
    unit: NDArray[np.float32],
    slot: NDArray[np.int32],
    counts: NDArray[np.int64],
    /,
) -> None: ...
def nearest(
    ctx: Context,
    A: NDArray[np.float32],
    B: NDArray[np.float32],
    absolute: bool,
    index: NDArray[np.int64],
    value: NDArray[np.float32],
    /,
) -> None: ...
def babel(ctx: Context, unit: NDArray[np.float32], babel: NDArray[np.float64], /) -> None: ...
