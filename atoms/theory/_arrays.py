"""Input of the theory room: rows, whiteners and unit rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _core
from .._config import context
from .._estimator import atoms_of


def rows(a: Any, name: str) -> np.ndarray:
    """``a`` as a two-dimensional array, nothing copied that is an array already."""
    array = a if isinstance(a, np.ndarray) else np.asarray(a)
    if array.ndim != 2:
        raise ValueError(
            f"{name}: expected two dimensions (rows, d_in), got shape {array.shape}; "
            f"reshape it to one row for each sample or atom"
        )
    if array.shape[1] < 1:
        raise ValueError(f"{name}: expected at least one column, got shape {array.shape}")
    return array


def native(block: np.ndarray, name: str) -> np.ndarray:
    """A block in a type and layout that the core reads; others (integers, swapped bytes) as float64."""
    kind = block.dtype
    supported = kind in (np.float16, np.float32, np.float64) or kind.name == "bfloat16"
    whole = all(s % kind.itemsize == 0 for s in block.strides)
    if supported and kind.isnative and block.flags.aligned and whole:
        return block
    if kind.kind not in "biuf" and kind.name != "bfloat16":
        raise TypeError(f"{name}: expected real numbers, got dtype {kind}; convert it to float32")
    return np.ascontiguousarray(block, dtype=np.float64)


def whitener_of(metric: Any, d: int) -> np.ndarray | None:
    """The symmetric square root of the metric, checked against the dimension; None stays None."""
    if metric is None:
        return None
    whitener = getattr(metric, "whitener_", None)
    if whitener is None:
        raise ValueError(
            "metric: expected a fitted AtomicInnerProduct or None, got "
            f"{type(metric).__name__} without whitener_; call fit first"
        )
    whitener = np.ascontiguousarray(whitener, dtype=np.float64)
    if whitener.shape != (d, d):
        raise ValueError(
            f"metric: expected one of dimension {d} as the data has, got {whitener.shape[0]}; "
            "fit it on activations of the same layer"
        )
    return whitener


def unit_rows(D: Any, metric: Any, num_threads: int | None, name: str = "D") -> tuple[np.ndarray, np.ndarray]:
    """Whitened rows of unit norm in float32, and the norms they had in float64; of a model, its decoder's."""
    D = rows(atoms_of(D), name)
    root = whitener_of(metric, D.shape[1])
    unit = np.empty(D.shape, np.float32)
    norms = np.empty(D.shape[0])
    step = max(1, (64 << 20) // (8 * D.shape[1]))
    for first in range(0, D.shape[0], step):
        part = slice(first, first + step)
        bad = _core.unit_rows(context(num_threads), native(D[part], name), root, unit[part], norms[part])
        if bad >= 0:
            row = np.asarray(D[first + bad], dtype=np.float64)
            what = "all zeros" if np.isfinite(row).all() else "not finite"
            raise ValueError(
                f"{name}: row {first + bad} is {what}; an atom needs a direction: drop or repair it"
            )
    return unit, norms
