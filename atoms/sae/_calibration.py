"""The one factor for all thresholds at which L0 comes to a target on given rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from .. import _core
from ._model import Batch, Model
from ._steering import Control


def calibrate(
    ctx: Any, model: Model, control: Control, batches: Callable[[], Iterable[Batch]], n: int, target: float
) -> None:
    """Multiply all thresholds by the one factor at which the mean L0 of the n rows in `batches` is `target`.

    Raises
    ------
    ValueError
        There is no such factor; the model is as it was.
    """
    with model.turns.writing():  # its thresholds change on the way
        factor = _factor(ctx, model, batches, n, target)
        control.cut *= factor
        model.set("threshold", model.get("threshold") * np.float32(factor))
        control.publish_cut(model)


def _factor(ctx: Any, model: Model, batches: Callable[[], Iterable[Batch]], n: int, target: float) -> float:
    """The factor; the model's thresholds are lowered to find it, and as they were at the end.

    A latent is active at every factor below its z / threshold, so the factor lies between two neighbours
    among these ratios in order.
    """
    thresholds = model.get("threshold")
    want = max(1, round(target * n))
    low = 1.0  # all z / threshold above this are known
    try:
        while len(ratios := _ratios(ctx, model, batches(), thresholds, low)) <= want:
            if low == 0:
                raise ValueError(
                    f"target_l0: no threshold reaches {target:g} on X, where only {len(ratios) / n:g} "
                    "latents have a z above zero; ask for less"
                )
            low = 0.8 * low if low > 1e-3 else 0.0
    finally:
        model.set("threshold", thresholds)
    # halfway from the last of the `want` largest ratios to the next: on a ratio itself, rounding would decide
    at = len(ratios) - want - 1
    below, above = np.partition(ratios, [at, at + 1])[at : at + 2]
    factor = 0.5 * (below + above) if np.isfinite(above) else 2 * below
    if not np.isfinite(factor):
        raise ValueError(
            f"target_l0: latents whose threshold is zero are alone more than {target:g}; ask for more"
        )
    return float(factor)


def _ratios(
    ctx: Any, model: Model, batches: Iterable[Batch], thresholds: np.ndarray, low: float
) -> np.ndarray:
    """All ratios z / threshold above `low`; infinity where the threshold is zero."""
    model.set("threshold", thresholds * np.float32(low))
    parts, work = [], _core.sae_work()
    for batch in batches:
        codes = model.encode(ctx, batch, work)
        with np.errstate(divide="ignore"):
            parts.append(codes.data / thresholds[codes.indices])
    return np.concatenate(parts)
