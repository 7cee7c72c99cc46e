"""First atoms of a dictionary that is learned afresh."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._checks import atoms_of, check_array, first_nonfinite_row, nonfinite_error
from .._config import one_blas_thread
from .._rows import Rows
from ..sae._space import TrainingSpace, through
from ..sae._start import directions, some_rows
from . import _spikes as spikes
from ._learned import Learned


@one_blas_thread
def start(rows: Rows, p: dict[str, Any], metric: Any, init: Any, data: dict[str, Any] | None) -> Learned:
    """A dictionary that has not been learned: `init`'s atoms, or directions of these rows."""
    space, m, seed = TrainingSpace.fit(rows, metric), p["n_atoms"], [p["random_state"]]
    raw = some_rows(rows, m, seed)
    if (row := first_nonfinite_row(raw)) >= 0:
        raise nonfinite_error(
            raw, "X", row if len(raw) == rows.n else first_nonfinite_row(rows.slice(0, rows.n))
        )
    t = space.to_space(raw)
    center = t.mean(axis=0, dtype=np.float64).astype(np.float32)
    if init is None or isinstance(init, str):
        if init not in (None, "k-means++"):
            raise ValueError(f"init: expected atoms, a model or 'k-means++', got {init!r}")
        rng, t = np.random.default_rng([*seed, 0]), t - center
        far = init is not None
        chosen = _spread(_unit(t), m, rng) if far else rng.choice(len(t), m, replace=len(t) < m)
        D = directions(t, chosen, rng, 0.1)
        if p["coder"] == "spikes" and not far:
            shared = spikes.directions(t, m, rng)
            D[: len(shared)] = shared
        return _ready(Learned.new(space, center, D, p, data), t + center, p["batch_size"])
    given = check_array(atoms_of(init, "init"), "init")
    if given.shape != (m, rows.d):
        raise ValueError(f"init: expected atoms of shape {(m, rows.d)}, got {given.shape}")
    if (row := first_nonfinite_row(given)) >= 0:
        raise nonfinite_error(given, "init", row)
    if p["coder"] == "spikes" and hasattr(
        init, "b_dec"
    ):  # codes >= 0 are about what a model gives without any
        center = space.to_space(np.asarray(init.b_dec, np.float32)[None])[0]
    return _ready(
        Learned.new(space, center, _unit(through(given.astype(np.float64), space.maps()[1])), p, data),
        t,
        spikes.GIVEN_WEIGHT,
    )


def _ready(learned: Learned, t: np.ndarray, weight: float) -> Learned:
    """With what the coder has to know before the first step, worth `weight` samples; `t` are some rows."""
    p = learned.parameters
    if p["coder"] == "spikes":
        n = spikes.n_candidates(p, t.shape[1])
        learned.spikes, shift = spikes.start(t - learned.center, learned.atoms, n, weight, None)
        learned.center = learned.center + shift
        learned.energy = learned.spikes.sums[:, spikes.SECOND].copy()
    return learned


def _unit(D: np.ndarray) -> np.ndarray:
    """Rows of unit norm, float32; zeros stay."""
    norm = np.linalg.norm(D, axis=1, keepdims=True)
    return np.asarray(D / np.where(norm > 0, norm, 1), np.float32)


def _spread(unit: np.ndarray, m: int, rng: np.random.Generator) -> np.ndarray:
    """Rows drawn by their squared distance from the lines of those drawn before; what none is left of, at random."""
    left = np.einsum("ij,ij->i", unit, unit, dtype=np.float64)
    chosen = np.empty(m, np.int64)
    for j in range(m):
        total = left.sum()
        chosen[j] = (
            rng.choice(len(unit), p=left / total) if total > 1e-6 * len(unit) else rng.integers(len(unit))
        )
        left = np.minimum(left, np.maximum(1 - (unit @ unit[chosen[j]]).astype(np.float64) ** 2, 0))
    return chosen
