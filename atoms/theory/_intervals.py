"""Bootstrap intervals over samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .._checks import check_between_0_and_1, check_count, generator_of
from .._config import one_blas_thread
from .._shown import Shown, Table
from ._coherence import coherence_of
from ._stability import active, q_star_of_levels
from ._variance import ExplainedVarianceResult


@dataclass(frozen=True)
class Interval(Shown):
    """A bootstrap percentile interval; `estimate` is the figure of the sample itself."""

    low: float
    high: float
    estimate: float
    level: float
    draws: np.ndarray = field(repr=False, compare=False)

    def __str__(self) -> str:
        digits = 3 if abs(self.estimate) < 10 else 1
        text = f"{self.estimate:.{digits}f}"
        return text if np.isnan(self.low) else f"{text} [{self.low:.{digits}f}, {self.high:.{digits}f}]"

    def _table(self) -> Table:
        rows = [("estimate", self.estimate), ("from", self.low), ("to", self.high)]
        return Table(f"{100 * self.level:g}% bootstrap interval", rows)


def _check(n_boot: int, level: float, block_size: int, n: int) -> None:
    check_count(n_boot, "n_boot")
    check_between_0_and_1(level, "level")
    if check_count(block_size, "block_size") > n:
        raise ValueError(f"block_size: expected 1 to {n} (samples), got {block_size}")


def _draw(rng: np.random.Generator, n: int, block_size: int) -> np.ndarray:
    """How often each of the consecutive blocks is drawn; as many blocks as there are."""
    blocks = -(-n // block_size)
    return rng.multinomial(blocks, np.full(blocks, 1 / blocks))


def _interval(draws: np.ndarray, estimate: float, level: float) -> Interval:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), estimate, level, draws)


@one_blas_thread
def explained_variance_interval(
    result: ExplainedVarianceResult,
    *,
    level: float = 0.95,
    n_boot: int = 1000,
    block_size: int = 1,
    random_state: int = 0,
) -> Interval:
    """Bootstrap interval of an explained variance.

    Samples are drawn with replacement, in blocks of `block_size` consecutive ones (tokens of one
    text are not independent: give about the length of a text). Each draw gives
    1 - sum_i ||e_i||^2 / sum_i ||x_i - c||^2 with c, the mean of the convention, kept at its
    estimate.

    Parameters
    ----------
    result : ExplainedVarianceResult
        Of :func:`explained_variance`, in any convention but "variance_of_error".
    level : float
        Share of the draws that the interval holds.
    n_boot : int
        Draws.
    block_size : int
        Consecutive samples that are drawn together.
    random_state : int
        Seed of the draws.

    Returns
    -------
    Interval

    Examples
    --------
    >>> import numpy as np
    >>> from atoms.theory import explained_variance, explained_variance_interval
    >>> X = np.random.default_rng(0).standard_normal((500, 4))
    >>> interval = explained_variance_interval(explained_variance(X, 0.5 * X, "uncentered"))
    >>> round(interval.low, 6), round(interval.high, 6)
    (0.75, 0.75)
    """
    if not isinstance(result, ExplainedVarianceResult):
        raise TypeError(
            f"result: expected what explained_variance(X, X_hat) gives, got {type(result).__name__}"
        )
    if result.squared_deviation is None:
        raise ValueError(
            f"result: the convention {result.convention!r} has no form for single samples (or the "
            "accumulator had no mean); use another"
        )
    n = result.n_samples
    _check(n_boot, level, block_size, n)
    starts = np.arange(0, n, block_size)
    error = np.add.reduceat(result.squared_error, starts)
    deviation = np.add.reduceat(result.squared_deviation, starts)
    rng = generator_of(random_state)
    draws = np.empty(n_boot)
    for b in range(n_boot):
        times = _draw(rng, n, block_size)
        total, residual = times @ deviation, times @ error
        draws[b] = 1 - residual / total if total else (1.0 if residual == 0 else -np.inf)
    return _interval(draws, result.total, level)


@one_blas_thread
def stability_interval(
    D: Any,
    l0: Any,
    metric: Any = None,
    *,
    level: float = 0.95,
    n_boot: int = 1000,
    block_size: int = 1,
    random_state: int = 0,
    num_threads: int | None = None,
) -> Interval:
    """Bootstrap interval of q* over the samples behind its L0; the dictionary is held fixed.

    Parameters
    ----------
    D : array (d_sae, d_in), model or Coherence
        Atoms as rows, or what :func:`coherence` gave for them.
    l0 : array of int (n,) or sparse codes (n, d_sae)
        Active latents of each sample, in the order of the samples.
    metric : AtomicInnerProduct, optional
        Euclidean geometry without.
    level : float
        Share of the draws that the interval holds.
    n_boot : int
        Draws.
    block_size : int
        Consecutive samples that are drawn together.
    random_state : int
        Seed of the draws.
    num_threads : int, optional
        None for the package's setting.

    Returns
    -------
    Interval

    Examples
    --------
    >>> import numpy as np
    >>> from atoms.theory import stability_interval
    >>> stability_interval(np.eye(5), [1, 2, 3]).low
    1.0
    """
    c = coherence_of(D, metric, (), num_threads)
    counts = active(l0)
    n = len(counts)
    _check(n_boot, level, block_size, n)
    levels, which = np.unique(counts, return_inverse=True)
    block = np.arange(n) // block_size
    table = np.zeros((int(block[-1]) + 1, len(levels)))  # samples of each level in each block
    np.add.at(table, (block, which), 1)
    shares: dict[int, float] = {}
    rng = generator_of(random_state)
    draws = np.array(
        [q_star_of_levels(c, levels, _draw(rng, n, block_size) @ table, shares) for _ in range(n_boot)]
    )
    return _interval(draws, q_star_of_levels(c, levels, table.sum(0), shares), level)
