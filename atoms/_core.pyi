"""Types of the extension. Arrays are checked by the core: shapes and dtypes are in atoms.h."""

from typing import Any, final

import numpy as np
from numpy.typing import NDArray

@final
class Context:
    def __new__(cls, num_threads: int, isa: int = 7, blas: str | None = None) -> Context: ...
    @property
    def num_threads(self) -> int: ...
    @property
    def isa(self) -> str: ...
    @property
    def blas(self) -> str: ...

MAX_THREADS: int
ISAS: tuple[str, ...]  # by name, weakest first: a name's place is its number

def build_info() -> dict[str, Any]: ...

# ---- metric

def moments(
    ctx: Context,
    X: NDArray[Any],
    shift: NDArray[Any] | None,
    sum: NDArray[Any],
    second: NDArray[Any],
) -> None: ...
def product(
    ctx: Context,
    X: NDArray[Any],
    center: NDArray[Any] | None,
    w: NDArray[Any],
    offset: NDArray[Any] | None,
    out: NDArray[Any],
) -> None: ...
def angles(
    ctx: Context,
    X: NDArray[Any],
    first: NDArray[Any] | None,
    second: NDArray[Any] | None,
    counts: NDArray[Any],
    sums: NDArray[Any],
) -> None: ...

# ---- sae: a handle is an autoencoder with its optimiser

JUMPRELU: int
RELU: int
TOPK: int
BATCHTOPK: int
SCREEN_AUTO: int
SCREEN_F32: int
SCREEN_INT8: int
SCREEN_INT16: int
W_ENC: int
W_DEC: int
B_ENC: int
B_DEC: int
THRESHOLD: int
W_ENC_M: int
W_DEC_M: int
B_ENC_M: int
B_DEC_M: int
THRESHOLD_M: int
W_ENC_V: int
W_DEC_V: int
B_ENC_V: int
B_DEC_V: int
THRESHOLD_V: int
LAST_FIRED: int
COUNTERS: int
W_SKIP: int
W_SKIP_M: int
W_SKIP_V: int

def sae_new(
    ctx: Context,
    d_in: int,
    d_sae: int,
    activation: int = ...,
    k: int = ...,
    tied: bool = ...,
    bandwidth: float = ...,
    beta1: float = ...,
    beta2: float = ...,
    epsilon: float = ...,
    clip: float = ...,
    screen: int = ...,
    prefixes: NDArray[np.int64] | None = ...,
    d_out: int = ...,
    skip: bool = ...,
    frozen: bool = ...,
) -> Any: ...
def sae_get(sae: Any, field: int, out: NDArray[Any], /) -> None: ...
def sae_set(sae: Any, field: int, values: NDArray[Any], /) -> None: ...
def sae_nonfinite(sae: Any, /) -> int: ...
def sae_reset(
    ctx: Context,
    sae: Any,
    idx: NDArray[np.int64],
    rows: NDArray[np.float32],
    scales: NDArray[np.float32],
    thresholds: NDArray[np.float32],
    readers: NDArray[np.float32] | None = ...,
) -> None: ...
def sae_step(
    ctx: Context,
    sae: Any,
    X: NDArray[Any],
    learning_rate: float,
    threshold_rate: float,
    l0_coefficient: float,
    l1_coefficient: float,
    threshold_shift: float,
    k: int,
    aux_k: int = ...,
    dead_after: int = ...,
    aux_coefficient: float = ...,
    row_limit: float = ...,
    index: NDArray[np.int64] | None = ...,
    shift: NDArray[np.float32] | None = ...,
    scale: float = ...,
    target: NDArray[Any] | None = ...,
    target_index: NDArray[np.int64] | None = ...,
    target_shift: NDArray[np.float32] | None = ...,
    target_scale: float = ...,
) -> dict[str, Any]: ...
def sae_train(
    ctx: Context,
    sae: Any,
    X: NDArray[Any],
    rates: NDArray[np.float32],
    control: NDArray[np.float64],
    target_l0: float,
    k: int,
    fixed_l1: bool = ...,
    row_multiple: float = ...,
    wait: float = ...,
    aux_k: int = ...,
    dead_after: int = ...,
    aux_coefficient: float = ...,
    index: NDArray[np.int64] | None = ...,
    shift: NDArray[np.float32] | None = ...,
    scale: float = ...,
    target: NDArray[Any] | None = ...,
    target_index: NDArray[np.int64] | None = ...,
    target_shift: NDArray[np.float32] | None = ...,
    target_scale: float = ...,
) -> tuple[int, dict[str, Any]]: ...
def sae_encode(
    ctx: Context,
    sae: Any,
    X: NDArray[Any],
    index: NDArray[np.int64] | None = ...,
    shift: NDArray[np.float32] | None = ...,
    scale: float = ...,
    work: Any = ...,
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32], Any]: ...
def sae_work() -> Any: ...
def decode(
    ctx: Context,
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    values: NDArray[np.float32],
    W_dec: NDArray[np.float32],
    bias: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None: ...

# ---- recovery: a handle is a dictionary made ready

SIGNAL_CONVERGED: int
SIGNAL_DEPENDENT: int
SIGNAL_LIMIT: int
SIGNAL_NONFINITE: int
SIGNAL_RANGE: int
SIGNAL_INFEASIBLE: int
SIGNAL_OPEN: int
PURSUIT_MP: int
PURSUIT_GRADIENT: int
PURSUIT_COSAMP: int
PURSUIT_IHT: int

def dict_new(ctx: Context, atoms: NDArray[Any], double_precision: bool, /) -> Any: ...
def dict_gram(ctx: Context, handle: Any, units: bool, coarse: bool, /) -> None: ...
def dict_units(ctx: Context, handle: Any, /) -> bool: ...
def dict_has_gram(handle: Any, /) -> bool: ...
def omp(
    ctx: Context,
    handle: Any,
    X: NDArray[Any],
    n_nonzero: int,
    tol: float,
    ols: bool,
    nonnegative: bool,
    indptr: NDArray[Any] | None,
    support: NDArray[Any] | None,
    indices: NDArray[Any],
    values: NDArray[Any],
    counts: NDArray[Any],
    status: NDArray[Any],
    steps: NDArray[Any],
    residual: NDArray[Any] | None,
) -> None: ...
def lasso(
    ctx: Context,
    handle: Any,
    X: NDArray[Any],
    alphas: NDArray[Any],
    positive: bool,
    tol: float,
    max_rounds: int,
    most_atoms: int,
    indices: NDArray[Any],
    values: NDArray[Any],
    counts: NDArray[Any],
    status: NDArray[Any],
    steps: NDArray[Any],
    residual: NDArray[Any] | None,
    gap: NDArray[Any],
) -> None: ...
def basis(
    ctx: Context,
    handle: Any,
    X: NDArray[Any],
    sigma: float,
    tol: float,
    max_steps: int,
    indices: NDArray[Any],
    values: NDArray[Any],
    counts: NDArray[Any],
    status: NDArray[Any],
    steps: NDArray[Any],
    residual: NDArray[Any] | None,
    gap: NDArray[Any],
) -> None: ...
def pursuit(
    ctx: Context,
    handle: Any,
    X: NDArray[Any],
    method: int,
    n_nonzero: int,
    max_steps: int,
    tol: float,
    indices: NDArray[Any],
    values: NDArray[Any],
    counts: NDArray[Any],
    status: NDArray[Any],
    steps: NDArray[Any],
    residual: NDArray[Any] | None,
) -> None: ...
def threshold(
    ctx: Context,
    handle: Any,
    X: NDArray[Any],
    tau: NDArray[Any],
    signed: bool,
    indices: NDArray[Any],
    values: NDArray[Any],
    counts: NDArray[Any],
    status: NDArray[Any],
    steps: NDArray[Any],
    residual: NDArray[Any] | None,
) -> None: ...
def correlation_max(ctx: Context, handle: Any, X: NDArray[Any], top: NDArray[Any], /) -> None: ...
def pack_codes(
    indices: NDArray[Any],
    values: NDArray[Any],
    counts: NDArray[Any],
    out_indices: NDArray[Any],
    out_values: NDArray[Any],
) -> None: ...
def spikes(
    ctx: Context,
    handle: Any,
    X: NDArray[Any],
    rate: NDArray[np.float64],
    height: NDArray[np.float64],
    spread: NDArray[np.float64],
    noise: float,
    least: float,
    n_candidates: int,
    rounds: int,
    sweeps: int,
    indices: NDArray[Any],
    values: NDArray[Any],
    counts: NDArray[Any],
    status: NDArray[Any],
    steps: NDArray[Any],
    residual: NDArray[Any] | None,
    probability: NDArray[np.float32] | None,
) -> None: ...
def part_atoms(
    ctx: Context,
    indptr: NDArray[Any],
    indices: NDArray[Any],
    values: NDArray[Any],
    atoms: NDArray[Any],
    energy: NDArray[Any],
    least: float,
    incoherence: float,
    out: NDArray[Any],
) -> None: ...
def fit_atoms(
    ctx: Context,
    X: NDArray[Any],
    indptr: NDArray[Any],
    indices: NDArray[Any],
    values: NDArray[Any],
    keep: float,
    sweeps: int,
    atoms: NDArray[Any],
    energy: NDArray[Any],
) -> None: ...

# ---- theory

EV_ROWS: int
EV_TOKENS: int
COSINE_LOW_BITS: int
COSINE_BINS: int

def ev_update(
    ctx: Context,
    X: NDArray[Any],
    X_hat: NDArray[Any] | None,
    whitener: NDArray[np.float64] | None,
    mean: NDArray[np.float64] | None,
    massive_norm: float,
    sums: NDArray[np.float64],
    tokens: NDArray[np.float64],
) -> int: ...
def unit_rows(
    ctx: Context,
    D: NDArray[Any],
    whitener: NDArray[np.float64] | None,
    unit: NDArray[np.float32],
    norms: NDArray[np.float64],
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
    back_index: NDArray[np.int64] | None = None,
    back_value: NDArray[np.float32] | None = None,
) -> None: ...
def babel(ctx: Context, unit: NDArray[np.float32], babel: NDArray[np.float64], /) -> None: ...
