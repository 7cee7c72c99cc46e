"""Cosines of all pairs of atoms, exact, without holding them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from .. import _core
from .. import _plot as plot
from .._checks import as_numbers, check_count, check_metric
from .._config import context, one_blas_thread
from .._shown import Shown, Table
from .._unit_rows import unit_rows

_LOW_BITS = _core.COSINE_LOW_BITS
_SLOTS = 128  # bins refined in one pass: 8 MB for each thread


class _Cosines:
    """|cosines| of all pairs i < j of unit rows, by their ranks, without holding them.

    A float32 magnitude is ordered as its bits are. One pass counts the upper bits (coarse bins);
    a further pass counts the lower bits within the bins that are asked for, so ranks and counts
    are exact whatever the ties.
    """

    def __init__(self, unit: np.ndarray, num_threads: int | None) -> None:
        self.unit = unit
        self.num_threads = num_threads
        self.n_pairs = unit.shape[0] * (unit.shape[0] - 1) // 2
        counts = np.zeros(_core.COSINE_BINS, np.int64)
        _core.cosine_histogram(context(num_threads), unit, counts)
        self.below = np.concatenate([[0], np.cumsum(counts)])  # below[b]: values in bins < b
        self.fine: dict[int, np.ndarray] = {}

    def refine(self, bins: Iterable[int]) -> None:
        """Count by the lower bits within these bins, where that has not been done yet."""
        wanted = sorted({int(b) for b in bins} - self.fine.keys())
        for start in range(0, len(wanted), _SLOTS):
            some = wanted[start : start + _SLOTS]
            slot = np.full(_core.COSINE_BINS, -1, np.int32)
            slot[some] = np.arange(len(some), dtype=np.int32)
            counts = np.zeros((len(some), 1 << _LOW_BITS), np.int64)
            _core.cosine_refine(context(self.num_threads), self.unit, slot, counts)
            self.fine.update(zip(some, np.cumsum(counts, axis=1)))

    def at_ranks(self, ranks: np.ndarray) -> np.ndarray:
        """Values of the given ranks, 0 the smallest."""
        bins = np.searchsorted(self.below, ranks, side="right") - 1
        self.refine(bins)
        bits = [
            (int(b) << _LOW_BITS)
            + int(np.searchsorted(self.fine[int(b)], rank - self.below[b], side="right"))
            for b, rank in zip(bins, ranks)
        ]
        return np.array(bits, np.uint32).view(np.float32)

    @staticmethod
    def _bits(limit: float) -> int:
        """Bits of the smallest float32 that is not below ``limit``, or one past those of 1."""
        if limit > 1.0:
            return 0x3F800001
        value = np.float32(limit)
        if float(value) < limit:
            value = np.nextafter(value, np.float32(2))
        return int(value.view(np.uint32))

    def bounds_below(self, limit: float) -> tuple[int, int]:
        """Least and largest possible number of values < limit, from the coarse bins alone."""
        bits = self._bits(limit)
        if bits > 0x3F800000:
            return self.n_pairs, self.n_pairs
        b, low = bits >> _LOW_BITS, bits & ((1 << _LOW_BITS) - 1)
        return int(self.below[b]), int(self.below[b + 1] if low else self.below[b])

    def count_below(self, limit: float) -> int:
        """Number of values < limit."""
        least, most = self.bounds_below(limit)
        if least == most:
            return least
        bits = self._bits(limit)
        b, low = bits >> _LOW_BITS, bits & ((1 << _LOW_BITS) - 1)
        self.refine([b])
        return least + int(self.fine[b][low - 1])


def check_q(q: Any, name: str) -> np.ndarray:
    """Quantiles' q as an array (n,), all of them from 0 to 1."""
    found = np.atleast_1d(as_numbers(q, name))
    if found.ndim != 1 or not ((found >= 0) & (found <= 1)).all():
        raise ValueError(f"{name}: expected numbers between 0 and 1, got {found!r}")
    return found


def welch_bound(n: int, d: int) -> float:
    """Least root mean square |cosine| over the pairs of n unit vectors in d dimensions.

    sqrt((n - d) / (d (n - 1))) for n > d, else 0 (Welch 1974). The mutual coherence, being the
    largest, is no smaller. Reached by unit-norm tight frames; by the largest |cosine| only
    where an equiangular tight frame exists.

    >>> from atoms.theory import welch_bound
    >>> round(welch_bound(4 * 576, 576), 5)
    0.03609
    """
    n, d = check_count(n, "n"), check_count(d, "d")
    return math.sqrt((n - d) / (d * (n - 1))) if n > d else 0.0


def inverse_cdf_ranks(q: np.ndarray, n: int) -> np.ndarray:
    """Ranks, from 0, of the quantiles q of n sorted values: the first at which a share q of them is reached. A
    product q n that rounding has lifted above a whole number is taken as that number."""
    return np.clip(np.ceil(q * n * (1 - 4e-16)).astype(np.int64) - 1, 0, n - 1)


class Coherence(Shown):
    """|cosine| over all pairs of atoms; what :func:`coherence` returns.

    Attributes
    ----------
    max : float
        The mutual coherence. 0 for a single atom.
    quantiles : dict
        {q: value} for the q asked for.
    n_pairs : int
    shape : tuple
        (d_sae, d_in)
    norms : ndarray (d_sae,) float64
        Norms the atoms had, in the metric where one was given.
    """

    def __init__(self, D: Any, metric: Any, quantiles: Any, method: str, num_threads: int | None) -> None:
        if not isinstance(method, str) or method not in ("linear", "inverted_cdf"):
            raise ValueError(f"method: expected 'linear' or 'inverted_cdf', got {method!r}")
        wanted = check_q(quantiles, "quantiles")
        unit, self.norms = unit_rows(D, metric, num_threads)
        self._whitener: Any = None if metric is None else metric.whitener_
        if unit.shape[0] == 0:
            raise ValueError(f"D: expected at least one atom, got shape {unit.shape}")
        self.shape = unit.shape
        self.method = method
        self._cosines = _Cosines(unit, num_threads)
        self.n_pairs = self._cosines.n_pairs
        values = self.quantile(np.append(wanted, 1.0))
        self.max = float(values[-1])
        self.quantiles = {float(q): float(v) for q, v in zip(wanted, values)}

    def quantile(self, q: Any, method: str | None = None) -> np.ndarray:
        """|cosine| at any quantiles over pairs, exact; (len(q),) float64. Costs a pass over all pairs."""
        q = check_q(q, "q")
        n = self.n_pairs
        if n == 0:
            return np.zeros(len(q))
        if (method or self.method) == "inverted_cdf":
            return self._cosines.at_ranks(inverse_cdf_ranks(q, n)).astype(np.float64)
        position = q * (n - 1)
        low = np.floor(position).astype(np.int64)
        part = position - low
        both = self._cosines.at_ranks(np.concatenate([low, np.minimum(low + 1, n - 1)]))
        a, b = both.astype(np.float64).reshape(2, -1)
        return np.asarray(np.where(part < 0.5, a + (b - a) * part, b - (b - a) * (1 - part)))

    def share_below(self, limit: float) -> float:
        """Share of the pairs with |cosine| < limit, exact; 1 for a single atom."""
        return self._cosines.count_below(limit) / self.n_pairs if self.n_pairs else 1.0

    @property
    @one_blas_thread
    def rms(self) -> float:
        """Root mean square |cosine| over pairs: sqrt((||U'U||_F^2 - n) / (n (n - 1))), in float64."""
        if self.n_pairs == 0:
            return 0.0
        n, d = self.shape
        gram = np.zeros((d, d))
        for first in range(0, n, 4096):
            block = self._cosines.unit[first : first + 4096].astype(np.float64)
            gram += block.T @ block
        own = np.einsum("ij,ij->i", self._cosines.unit, self._cosines.unit, dtype=np.float64)
        return math.sqrt(max(0.0, (float((gram**2).sum()) - float((own**2).sum())) / (n * (n - 1))))

    @property
    def welch_bound(self) -> float:
        """The least `rms` (hence the least `max`) that this shape allows."""
        return welch_bound(*self.shape)

    def histogram(self, bins: int = 200) -> tuple[np.ndarray, np.ndarray]:
        """Counts over `bins` equal intervals of [0, 1] and their edges, to the width of the
        coarse bins (a thousandth of the value)."""
        edges = np.linspace(0.0, 1.0, bins + 1)
        below = [self._cosines.bounds_below(e)[0] for e in edges[:-1]] + [self.n_pairs]
        return np.diff(below), edges

    @plot.drawing
    def plot(self, axes: Any = None) -> Any:
        """Draw the histogram of |cosine| over pairs, with the largest and the Welch bound."""
        axes = plot.axes_of(axes)
        counts, edges = self.histogram()
        plot.cosines(axes, edges, counts, self.max, self.welch_bound)
        n, d = self.shape
        plot.titles(axes, "Coherence", f"{n:,} atoms of {d:,} features, {self.n_pairs:,} pairs")
        return axes

    def __repr__(self) -> str:
        return f"Coherence(max={self.max:.6g}, quantiles={self.quantiles}, shape={self.shape})"

    def _table(self) -> Table:
        rows = [(f"{100 * q:g}% of the pairs below", v) for q, v in self.quantiles.items()]
        rows += [("largest", self.max), ("Welch bound, the least largest", self.welch_bound)]
        n, d = self.shape
        return Table(f"|cosine| of {n:,} atoms of {d:,} features", [*rows, ("pairs", self.n_pairs)])


def coherence_of(D: Any, metric: Any, quantiles: Any, num_threads: int | None) -> Coherence:
    """What `coherence` gave for the atoms, or gives now."""
    if not isinstance(D, Coherence):
        return coherence(D, metric, quantiles, num_threads=num_threads)
    check_metric(metric)
    if metric is not None and not np.array_equal(metric.whitener_, D._whitener):
        raise ValueError(
            "metric: D is a Coherence, taken in another geometry; pass its atoms, or leave metric None"
        )
    return D


def unit_of(c: Coherence) -> np.ndarray:
    """The atoms whose cosines they are, of unit norm, (d_sae, d_in) float32."""
    return c._cosines.unit


def coherence(
    D: Any,
    metric: Any = None,
    quantiles: Any = (0.5, 0.9, 0.99, 0.999),
    *,
    method: str = "linear",
    num_threads: int | None = None,
) -> Coherence:
    """Mutual coherence of a dictionary and any quantiles of |cosine| over all pairs of atoms.

    Parameters
    ----------
    D : array (d_sae, d_in) or model
        Atoms as rows, of any norms but zero, any float type. Of a model (an autoencoder, one that
        `atoms.load` read, a control) its `W_dec`; so everywhere in this module.
    metric : AtomicInnerProduct, optional
        Cosines are then u'Sv / sqrt(u'Su v'Sv); Euclidean without.
    quantiles : sequence of float
        Quantiles over the d_sae (d_sae - 1) / 2 pairs i < j.
    method : {"linear", "inverted_cdf"}
        As in :func:`numpy.quantile`.
    num_threads : int, optional

    Returns
    -------
    Coherence
        `.max`, `.quantiles`, and `.quantile(q)` for more of them later.

    Raises
    ------
    ValueError
        An atom that is zero or not finite (with its row).

    Notes
    -----
    Atoms are whitened and normalised in float64 and rounded to float32; a cosine is the float32
    product of two such rows as the BLAS gives it in tiles of fixed size, at most 1. Of these
    numbers max and quantiles are exact order statistics, ties included, and the same to the bit
    for any number of threads; they lie within about sqrt(d_in) 6e-8 of the true cosines.

    Time: two passes of d_sae^2 d_in operations. Memory: 4 d_sae d_in bytes for the rows and some
    10 MB for each thread; the d_sae x d_sae matrix is never held. A :class:`Coherence` keeps the
    rows so that more quantiles can be asked for.

    Examples
    --------
    >>> import numpy as np
    >>> from atoms.theory import coherence
    >>> c = coherence([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]], quantiles=[0.0, 0.5])
    >>> round(c.max, 6), c.quantiles[0.0]
    (0.707107, 0.0)
    """
    return Coherence(D, metric, quantiles, method, num_threads)
