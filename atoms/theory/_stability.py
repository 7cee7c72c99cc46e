"""q* of the paper, its curve and its ceilings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy  # its special, when it is used
import scipy.sparse

from .. import _plot as plot
from .._arrays import array_of
from .._rows import Blocks, is_dask
from .._shown import Shown, Table
from ._coherence import Coherence, check_q, coherence_of, inverse_cdf_ranks, welch_bound

_PARALLEL = 1.0 - 2.0**-20  # cosines from here on are 1 up to the rounding of float32 products


def _active(codes: Any) -> np.ndarray:
    if not scipy.sparse.issparse(codes):
        return np.asarray(np.count_nonzero(codes, axis=1))
    given: Any = codes
    codes = given.tocsr()
    counts: np.ndarray = np.diff(codes.indptr)
    if not codes.data.all():
        zeros = np.concatenate([[0], np.cumsum(codes.data == 0)])
        counts = counts - np.diff(zeros[codes.indptr])
    return counts


def active(l0: Any) -> np.ndarray:
    """Active latents of each sample from codes or from their numbers, int64."""
    if is_dask(l0) and l0.ndim == 2:
        counts = np.concatenate([np.empty(0, np.int64), *Blocks(l0, "l0").gathered(_active)])
    elif scipy.sparse.issparse(l0):
        counts = _active(l0)
    else:
        counts = np.atleast_1d(array_of(l0, "l0"))
        if counts.size and counts.dtype.kind not in "biuf":
            raise ValueError(f"l0: expected numbers or sparse codes, got dtype {counts.dtype}")
        if counts.ndim != 1:
            raise ValueError(
                f"l0: expected one number for each sample or sparse codes, got shape {counts.shape}"
            )
        if counts.size and not (np.isfinite(counts).all() and (counts == np.floor(counts)).all()):
            raise ValueError(
                "l0: expected whole numbers of active latents for each sample, got others; "
                "pass the codes or their counts, not a mean"
            )
    if counts.size == 0:
        raise ValueError("l0: expected at least one sample, got none")
    if counts.min() < 0:
        raise ValueError(f"l0: expected numbers >= 0, got {counts.min()}")
    return np.asarray(counts, np.int64)


def uniqueness_limit(k: int) -> float:
    """mu must be below this for K-sparse codes to be unique: 1/(2K-1), no limit for K = 0."""
    return 1.0 / (2 * k - 1) if k else math.inf


def crossing(levels: np.ndarray, reach: np.ndarray, share: Callable[[int], float]) -> float:
    """sup {q : q <= share(K_q)}: K_q = levels[i] for q in (reach[i-1], reach[i]], where share(K) falls with K."""
    best, before = 0.0, 0.0
    for k, to in zip(levels.tolist(), reach.tolist()):
        s = share(k)
        if s <= before:
            break
        best = min(to, s)
        if s < to:
            break
        before = to
    return best


def q_star_of_levels(c: Coherence, levels: np.ndarray, times: np.ndarray, shares: dict[int, float]) -> float:
    """q* where `times` samples have each of the ascending `levels` of L0. `shares` remembers, from call
    to call, the share of pairs below each level's limit."""

    def share(k: int) -> float:
        if k not in shares:
            shares[k] = c.share_below(_PARALLEL if k == 1 else uniqueness_limit(k))
        return shares[k]

    seen = times > 0
    reach = np.cumsum(times[seen]) / times.sum()
    return crossing(levels[seen], reach, share)


@dataclass(frozen=True)
class Stability(Shown):
    """Stability of a dictionary at the L0 of its codes; what :func:`stability` returns.

    Attributes
    ----------
    q_star : float
        sup{q : mu_q < 1/(2 K_q - 1)}.
    l0_quantiles : dict
        K_q at q = 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.
    q, mu, l0, bound : ndarray
        The curve: mu_q (|cosine| over pairs), K_q (L0 over samples) and 1/(2 K_q - 1).
    ceiling : float
        Least upper bound of q_star over *all* dictionaries of this shape at this L0.
    ceiling_at_max : float
        The bound over dictionaries whose mutual coherence is no larger than this one's.
    ceiling_equiangular : float
        q_star of a frame all of whose |cosines| equal the Welch bound (it need not exist).
    q_star_random : float
        q_star of uniformly random directions of this shape at this L0.
    max : float
        Mutual coherence.
    welch_bound : float
    shape : tuple
        (d_sae, d_in)
    n_samples : int
    """

    q_star: float
    l0_quantiles: dict[float, int]
    ceiling: float
    ceiling_at_max: float
    ceiling_equiangular: float
    q_star_random: float
    max: float
    welch_bound: float
    shape: tuple[int, int]
    n_samples: int
    q: np.ndarray = field(repr=False, compare=False)
    mu: np.ndarray = field(repr=False, compare=False)
    l0: np.ndarray = field(repr=False, compare=False)
    bound: np.ndarray = field(repr=False, compare=False)

    @property
    def curve(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(q, mu_q, 1/(2 K_q - 1))"""
        return self.q, self.mu, self.bound

    def __float__(self) -> float:
        return self.q_star

    @plot.drawing
    def plot(self, axes: Any = None) -> Any:
        """Draw the curve whose crossing is q*."""
        axes = plot.axes_of(axes)
        plot.crossing(axes, self.q, self.mu, self.bound, self.q_star)
        n, d = self.shape
        about = f"{n:,} atoms of {d:,} features; random directions {self.q_star_random:.3f}"
        plot.titles(axes, f"q* = {self.q_star:.3f}", about)
        return axes

    def _table(self) -> Table:
        quantiles = ", ".join(f"{k:,} at {q:g}" for q, k in self.l0_quantiles.items())
        rows = [
            ("q*", self.q_star),
            ("q* of random directions", self.q_star_random),
            ("ceiling of this shape", self.ceiling),
            ("ceiling at this largest cosine", self.ceiling_at_max),
            ("an equiangular frame's", self.ceiling_equiangular),
            ("largest |cosine|", self.max),
            ("Welch bound", self.welch_bound),
        ]
        n, d = self.shape
        title = f"Stability of {n:,} atoms of {d:,} features over {self.n_samples:,} samples"
        return Table(title, rows, note=f"quantiles of L0: {quantiles}")


_L0_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
_CURVE = np.concatenate([np.arange(1, 100) / 100, [0.995, 0.999, 0.9995, 0.9999, 1.0]])


def stability(
    D: Any,
    l0: Any,
    metric: Any = None,
    *,
    curve: Any = _CURVE,
    num_threads: int | None = None,
) -> Stability:
    r"""The paper's q* of a dictionary at the sparsity of its codes, with what bounds it.

    q* = sup{q : mu_q < 1/(2 K_q - 1)}, where mu_q is the q-quantile of |cosine| over **pairs**
    of atoms and K_q the q-quantile of L0 over **samples** (both as inverse distribution
    functions: the smallest value that at least a share q of them does not exceed). mu_q rises with q and
    1/(2 K_q - 1) falls, so q* is where they cross.

    Parameters
    ----------
    D : array (d_sae, d_in) or Coherence
        Atoms as rows, or what :func:`coherence` gave for them (then `metric` is not needed).
    l0 : array of int (n,) or sparse codes (n, d_sae)
        Active latents of each sample.
    metric : AtomicInnerProduct, optional
    curve : sequence of float
        The q of the curve that is returned.
    num_threads : int, optional

    Returns
    -------
    Stability

    Raises
    ------
    ValueError
        As :func:`coherence`; `l0` empty, negative or not whole.

    Notes
    -----
    *Edge cases.* A sample with L0 = 0 has a unique code under any dictionary (no limit on mu);
    L0 = 1 asks mu_q < 1, and cosines above 1 - 2^-20 count as 1, for parallel atoms rarely
    multiply to exactly 1 in float32. An orthonormal dictionary has mu = 0 and q* = 1 at any L0,
    dense codes included: q* says nothing without `l0_quantiles`.

    *Random dictionaries.* For independent uniform directions in R^d, cos^2 follows
    Beta(1/2, (d-1)/2). `q_star_random` is the crossing of that distribution with the same L0:
    q* is close to a function of L0 and d alone, and a dictionary that beats it by little has
    shown little.

    *Ceilings.* The Welch bound fixes the mean of cos^2 over pairs from below:
    w^2 = (n-d)/(d(n-1)) for n = d_sae > d = d_in. If a share G of the pairs has |cos| < t and no
    pair exceeds M, then G t^2 + (1-G) M^2 >= w^2, so G <= min(1, (M^2 - w^2)/(M^2 - t^2)).
    Crossing this G at t = 1/(2K-1) with the distribution of L0 bounds q*.

    - `ceiling` takes M = 1. No dictionary scores above it, and it is sharp: where n is a multiple
      of d, n/d copies of one orthonormal basis have G = 1 - w^2 for every t. It therefore is
      close to 1 at any L0: q*, being a quantile, forgives exact duplicates.
    - `ceiling_at_max` takes M = the mutual coherence of D: the bound for dictionaries that are
      no more coherent than this one at their worst pair.
    - `ceiling_equiangular` is the share of samples with 1/(2K-1) > w: what a dictionary gets
      whose *worst* pair is as good as the shape allows. It bounds the q at which uniqueness
      is guaranteed for the whole dictionary, max_{i != j}|cos| < 1/(2K_q - 1), for every
      dictionary of the shape. It does not bound q* itself: at large L0 a spread of cosines, random
      ones included, puts more pairs below t < w than equal ones do.

    Time and memory: as :func:`coherence`.

    Examples
    --------
    >>> import numpy as np
    >>> from atoms.theory import stability
    >>> s = stability(np.eye(8), l0=[8, 8, 8])
    >>> s.q_star, s.l0_quantiles[0.5]
    (1.0, 8)
    """
    c = coherence_of(D, metric, (), num_threads)
    counts = np.sort(active(l0))
    n, d = c.shape
    levels, times = np.unique(counts, return_counts=True)
    reach = np.cumsum(times) / len(counts)
    w2 = welch_bound(n, d) ** 2

    def at_most(largest: float) -> Callable[[int], float]:
        def share(k: int) -> float:
            t = uniqueness_limit(k)
            if t >= largest or t * t >= w2:
                return 1.0
            return max(0.0, (largest**2 - w2) / (largest**2 - t * t))

        return share

    def random(k: int) -> float:
        t = min(1.0, uniqueness_limit(k))
        if n == 1:
            return 1.0
        if d == 1:
            return float(k == 0)
        return float(scipy.special.betainc(0.5, (d - 1) / 2, t * t))

    q = np.unique(check_q(curve, "curve"))
    mu = c.quantile(q, "inverted_cdf")
    k = counts[inverse_cdf_ranks(q, len(counts))]
    return Stability(
        q_star=q_star_of_levels(c, levels, times, {}),
        l0_quantiles=dict(
            zip(_L0_QUANTILES, counts[inverse_cdf_ranks(np.array(_L0_QUANTILES), len(counts))].tolist())
        ),
        ceiling=crossing(levels, reach, at_most(1.0)),
        ceiling_at_max=crossing(levels, reach, at_most(c.max)),
        ceiling_equiangular=crossing(levels, reach, lambda k: float(uniqueness_limit(k) ** 2 > w2)),
        q_star_random=crossing(levels, reach, random),
        max=c.max,
        welch_bound=math.sqrt(w2),
        shape=(n, d),
        n_samples=len(counts),
        q=q,
        mu=mu,
        l0=k,
        bound=np.array([uniqueness_limit(int(v)) for v in k]),
    )
