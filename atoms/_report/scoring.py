"""How a dictionary is scored, in the demo and in the report alike."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import recovery, theory
from .._frames import without_frames
from ..sae import SparseAutoencoder
from ..sae._autoencoder import set_thresholds

__all__ = [
    "CONVENTION",
    "MEDIAN",
    "TOTAL",
    "WITHOUT_MASSIVE",
    "Score",
    "hold_l0",
    "peak_memory",
    "percent",
    "plain",
    "pursued",
    "sample",
    "score",
    "span",
]

CONVENTION = "metric_centered"
TOTAL, MEDIAN, WITHOUT_MASSIVE = range(3)  # of the forms that `Score.explained` holds


@dataclasses.dataclass
class Score:
    """One dictionary at one layer: explained variance on each part, L0, coherence and q*.

    ``explained`` maps a part ("train", "held_out") to a convention to (total, median over tokens, total
    without massive tokens). ``l0`` are the 5%, 50% and 95% quantiles over held-out tokens.
    """

    name: str
    d_sae: int
    explained: dict[str, dict[str, tuple[float, float, float]]]
    l0: tuple[int, int, int]
    l0_mean: float
    coherence: float
    q_star: float
    q_star_random: float
    q_star_ceiling: float

    @property
    def train(self) -> dict[str, tuple[float, float, float]]:
        return self.explained["train"]

    @property
    def held_out(self) -> dict[str, tuple[float, float, float]]:
        return self.explained["held_out"]


def score(
    name: str,
    D: Any,
    metric: Any,
    coded: Mapping[str, tuple[np.ndarray, Any, Any]],
    conventions: Sequence[str] = (CONVENTION, "centered"),
    num_threads: int | None = None,
) -> tuple[Score, theory.Stability, dict[str, dict[str, theory.ExplainedVarianceResult]]]:
    """Score a dictionary by what it made of each part.

    Parameters
    ----------
    name : str
        The dictionary's.
    D : array (d_sae, d_in) or Coherence
        Its atoms, or as many of them as coherence is measured on.
    metric : AtomicInnerProduct
        The one that judges.
    coded : mapping of part to (X, codes, X_hat)
        "held_out", whose L0 decides q*, must be among them.
    conventions : sequence of str
        Of explained variance.
    num_threads : int, optional

    Returns
    -------
    score : Score
    stability : Stability
    results : dict
        part -> convention -> the full result, for intervals.
    """
    results = {
        part: {
            c: theory.explained_variance(X, X_hat, c, metric=metric, num_threads=num_threads)
            for c in conventions
        }
        for part, (X, _, X_hat) in coded.items()
    }
    explained = {
        part: {r.convention: (r.total, r.median, r.without_massive) for r in found.values()}
        for part, found in results.items()
    }
    codes = coded["held_out"][1]
    counts = np.diff(codes.indptr)
    stability = theory.stability(D, counts, metric=metric, num_threads=num_threads)
    found = Score(
        name=name,
        d_sae=codes.shape[1],
        explained=explained,
        l0=(stability.l0_quantiles[0.05], stability.l0_quantiles[0.5], stability.l0_quantiles[0.95]),
        l0_mean=float(counts.mean()),
        coherence=stability.max,
        q_star=stability.q_star,
        q_star_random=stability.q_star_random,
        q_star_ceiling=stability.ceiling_at_max,
    )
    return found, stability, results


def pursued(
    X: np.ndarray,
    dictionary: recovery.Dictionary,
    W_dec: np.ndarray,
    k: int,
    b_dec: np.ndarray,
    num_threads: int | None = None,
) -> tuple[Any, Any]:
    """Codes of X - b_dec by orthogonal matching pursuit with k atoms, and what they rebuild."""
    codes = recovery.omp(X - b_dec, dictionary, n_nonzero=k, num_threads=num_threads)
    return codes, (codes @ W_dec + b_dec).astype(np.float32)


def hold_l0(model: SparseAutoencoder, X: np.ndarray, l0: float) -> float:
    """Shift all thresholds of a JumpReLU or BatchTopK autoencoder by one number, so that `l0` latents are active
    on average on X (rows that it is neither trained nor judged on). Returns that number.

    A small autoencoder fires more often on new text than on what it was trained on, each kind by another
    factor, and what fires more explains more: without this, kinds are not compared at equal L0. No threshold
    falls below 0. Memory: codes of X with every latent active, 8 len(X) d_sae bytes.
    """
    before = model.threshold.copy()
    set_thresholds(model, np.full_like(before, -1e30))
    codes = without_frames(model)(X)  # every latent's z, by the core's own products
    margins = np.sort(codes.data - before[codes.indices])[::-1]
    k = min(max(1, round(l0 * len(X))), len(margins) - 1)
    shift = np.float32((margins[k - 1] + margins[k]) / 2)
    set_thresholds(model, np.maximum(before + shift, 0))
    return float(shift)


def sample(n: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Row numbers, ascending: all n, or `size` of them at random."""
    return np.arange(n) if n <= size else np.sort(rng.choice(n, size, replace=False))


def peak_memory() -> float:
    """Largest resident size of this process so far, in MB; NaN where the system does not say."""
    try:
        import resource
    except ImportError:
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def percent(value: float | None) -> str:
    """ "12.3%", or nothing where there is no finite number."""
    return "" if value is None or not np.isfinite(value) else f"{100 * value:.1f}%"


def span(values: Sequence[float], unit: str = "%", scale: float = 100) -> str:
    """ "3.0 to 4.2%", or one number where they are the same."""
    low, high = f"{scale * min(values):.1f}", f"{scale * max(values):.1f}"
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


def plain(value: Any) -> Any:
    """What JSON can hold: arrays as lists, dataclasses as mappings, what is not finite as null."""
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
