"""A dictionary as unit rows in float32, whitened where there is a metric."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _core
from ._checks import atoms_of, check_rows, native, whitener_of
from ._config import context


def unit_rows(D: Any, metric: Any, num_threads: int | None, name: str = "D") -> tuple[np.ndarray, np.ndarray]:
    """Whitened rows of unit norm in float32, and the norms that they had, in float64; of a model, its ``W_dec``."""
    D = check_rows(atoms_of(D, name), name)
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
