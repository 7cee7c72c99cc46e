"""Rows multiplied by a matrix, and angles between rows, of any geometry."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from .. import _core
from .. import _plot as plot
from .._checks import check_count, first_nonfinite_row, generator_of, nonfinite_error, why_not_finite
from .._config import context
from .._shown import Shown, Table
from ._moments import Array


def product(
    X: Array,
    W: Array,
    *,
    center: Array | None = None,
    offset: Array | None = None,
    out: Array | None = None,
    name: str = "X",
    num_threads: int | None = None,
) -> Array:
    """``(X - center) @ W + offset`` in float32, multiplied and summed in float64."""
    shape = (X.shape[0], W.shape[1])
    if out is None:
        out = np.empty(shape, dtype=np.float32)
    elif not isinstance(out, np.ndarray):
        raise TypeError(f"out: expected a NumPy array, got {type(out).__name__}")
    elif out.dtype != np.float32:  # the core would take float64, too
        raise TypeError(f"out: expected dtype float32, got {out.dtype}")
    try:
        _core.product(context(num_threads), X, center, W, offset, out)
    except ValueError as error:
        raise why_not_finite(X, name, error) from None
    return out


def product_of_rows(
    X: Array, rows: Array, W: Array, *, center: Array | None, num_threads: int | None
) -> Array:
    """`product` of those rows of X (ascending), gathered block by block."""
    out = np.empty((len(rows), X.shape[1]), dtype=np.float32)
    for start in range(0, len(rows), 4096):
        part, to = rows[start : start + 4096], out[start : start + 4096]
        try:
            product(X[part], W, center=center, out=to, num_threads=num_threads)
        except ValueError:
            bad = first_nonfinite_row(X[part])
            if bad < 0:
                raise
            raise nonfinite_error(X, "X", int(part[bad])) from None
    return out


def unit(u: Array) -> Array:
    """Rows of norm 1; zero rows stay zero."""
    norms = np.linalg.norm(u, axis=1, keepdims=True)
    return u / np.where(norms > 0, norms, 1.0)


def squeeze(a: Array, first: bool, second: bool) -> Any:
    """A table of all pairs, without the axis of an argument that was one vector and not a matrix."""
    if first and second:
        return float(a[0, 0])
    return a[0] if first else a[:, 0] if second else a


# ---------------------------------------------------------------------------- angles


@dataclass(frozen=True)
class AngleHistogram(Shown):
    """Angles between pairs of vectors, in degrees: what `AtomicInnerProduct.angles` found."""

    mean: float
    """Mean angle; NaN where there is no pair."""
    std: float
    """Standard deviation of the angles (divided by the number of pairs)."""
    counts: Array = field(repr=False)
    """(bins,) int64: pairs in each bin."""
    bin_edges: Array = field(repr=False)
    """(bins + 1,) float64: equal bins of [0, 180] degrees, as `numpy.histogram` gives them."""
    n_pairs: int
    """Pairs with an angle."""
    n_skipped: int
    """Pairs left out because one of the two vectors is zero."""
    geometry: str
    """"metric" or "euclidean"."""

    def quantile(self, q: Any) -> Any:
        """Angles below which a share q of the pairs lies, interpolated within bins."""
        share = np.concatenate([[0.0], np.cumsum(self.counts)]) / max(1, self.n_pairs)
        return np.interp(q, share, self.bin_edges)

    @plot.drawing
    def plot(self, axes: Any = None) -> Any:
        """Draw the histogram; draw that of the other geometry into the same axes to compare them."""
        axes = plot.axes_of(axes)
        plot.angle_histogram(axes, self.bin_edges, self.counts, self.mean, self.geometry)
        plot.titles(axes, "Angles between activations", f"{self.n_pairs:,} pairs")
        return axes

    def _table(self) -> Table:
        low, median, high = self.quantile([0.05, 0.5, 0.95])
        rows = [
            ("mean", f"{self.mean:.2f}°"),
            ("standard deviation", f"{self.std:.2f}°"),
            ("median, 5% and 95%", f"{median:.1f}°, {low:.1f}° to {high:.1f}°"),
            ("pairs", self.n_pairs),
            ("left out, one of them zero", self.n_skipped),
        ]
        return Table(f"Angles between pairs, {self.geometry}", rows)


class Pairs(NamedTuple):
    """Pairs of different rows whose angles are wanted."""

    total: int
    first: Array | None = None  #: (total,) row numbers; None: all pairs of all rows
    second: Array | None = None


def draw_pairs(n: int, pairs: int | None, random_state: Any) -> Pairs:
    """All pairs of n rows; where there are more than `pairs`, that many drawn with replacement."""
    total = n * (n - 1) // 2
    if pairs is None:
        return Pairs(total)
    check_count(pairs, "pairs")
    if pairs >= total:
        return Pairs(total)
    rng = generator_of(random_state)
    first = rng.integers(0, n, int(pairs))
    second = rng.integers(0, n - 1, int(pairs))
    second += second >= first
    return Pairs(int(pairs), first, second)


def rows_in(pairs: Pairs) -> tuple[Array, Pairs] | None:
    """Numbers of the rows in the pairs, ascending, and the pairs as places among them; None for all pairs."""
    if pairs.first is None or pairs.second is None:
        return None
    seen, at = np.unique(np.concatenate([pairs.first, pairs.second]), return_inverse=True)
    first, second = at[: pairs.total].astype(np.int64), at[pairs.total :].astype(np.int64)
    return seen, Pairs(pairs.total, first, second)


def angles_of(X: Array, pairs: Pairs, bins: int, geometry: str, num_threads: int | None) -> AngleHistogram:
    """The angles between those pairs of rows of X, which are in the coordinates of that geometry."""
    counts, sums = np.zeros(bins, dtype=np.int64), np.zeros(3)
    try:
        _core.angles(context(num_threads), X, pairs.first, pairs.second, counts, sums)
    except ValueError as error:
        raise why_not_finite(X, "X", error) from None
    n_pairs = int(sums[0])
    off = sums[1] / n_pairs if n_pairs else math.nan  # from 90 degrees
    variance = max(0.0, sums[2] / n_pairs - off * off) if n_pairs else math.nan
    return AngleHistogram(
        mean=90.0 + off,
        std=math.sqrt(variance),
        counts=counts,
        bin_edges=np.linspace(0.0, 180.0, bins + 1),
        n_pairs=n_pairs,
        n_skipped=pairs.total - n_pairs,
        geometry=geometry,
    )
