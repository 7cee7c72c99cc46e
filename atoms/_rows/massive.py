"""Rows of massive norm, which decide every sum of squares: how they are found and warned of."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from .beside import columns
from .numbered import Rows

MASSIVE = 10.0  # times the median norm
_LARGE = 5.0  # so many times it: what is said where such rows, too, decide,
_APART = 3.0  # and so many times the norm that a tenth of the rows exceeds
_MATTER = 0.05  # share of the sum of squares from which massive rows decide what is fitted


def warn_of_massive(rows: Rows, stacklevel: int, widths: Sequence[int] | None = None) -> None:
    """Warn where rows of massive norm decide sums of squares; of more than 8,192 rows, so many are looked at.

    `widths`: of sites side by side, each of which is looked at for itself.
    """
    index = np.arange(rows.n)
    if rows.n > 8192:  # at random: what is massive may come at regular distances
        index = np.sort(np.random.default_rng(0).choice(rows.n, 8192, replace=False))
    some = rows.take(index)
    for site, part in enumerate(columns(widths or [rows.d])):
        name = "X" if widths is None else f"X, site {site}"
        complain_of_massive(squared_norms(some[:, part]), rows.n, stacklevel + 1, name)


def site_norms(rows: np.ndarray, widths: Sequence[int] | None) -> np.ndarray:
    """Norms (n, sites) of rows at each site; (n, 1) where there is one."""
    parts = columns(widths or [rows.shape[1]])
    return np.asarray(np.sqrt(np.column_stack([squared_norms(rows[:, part]) for part in parts])))


def squared_norms(rows: np.ndarray) -> np.ndarray:
    """Squared norms; NaN and infinity are for others to name."""
    found = rows.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(np.einsum("ij,ij->i", found, found))


class SomeNorms:
    """Squared norms of up to 8,192 rows at random of all that go by."""

    def __init__(self) -> None:
        self.n = 0
        self._rng = np.random.default_rng(0)
        self._kept = np.empty((2, 0))  # a random number for each row, and its squared norm

    def see(self, rows: np.ndarray) -> None:
        self.see_squares(squared_norms(rows))

    def see_squares(self, squares: np.ndarray) -> None:
        """Rows of these squared norms."""
        self.n += len(squares)
        kept = np.concatenate([self._kept, [self._rng.random(len(squares)), squares]], axis=1)
        if kept.shape[1] > 8192:  # the smallest numbers of all: each row is as likely
            kept = kept[:, np.argpartition(kept[0], 8191)[:8192]]
        self._kept = kept

    def complain(self, stacklevel: int) -> None:
        """As `warn_of_massive`."""
        complain_of_massive(self._kept[1], self.n, stacklevel + 1)


def complain_of_massive(squares: np.ndarray, n: int, stacklevel: int, name: str = "X") -> None:
    """The warning, from squared norms of all n rows or of some of them."""
    middle, total = np.median(squares), squares.sum()
    if not 0 < middle < np.inf or not np.isfinite(squares).all():
        return
    massive = squares > MASSIVE**2 * middle
    # norms of rows of few features are that far apart by nature
    large = squares > max(_LARGE**2 * middle, _APART**2 * np.quantile(squares, 0.9))
    multiple, remedy = MASSIVE, "'drop'"
    if squares[large & ~massive].sum() >= _MATTER * total:
        massive, multiple, remedy = large, _LARGE, f"{_LARGE:g}"
    share = squares[massive].sum() / total
    if share < _MATTER:
        return
    count = round(massive.mean() * n)
    warnings.warn(
        f"{name}: {'about ' if n > len(squares) else ''}{count:,} of {n:,} rows have a norm above {multiple:g} times the "
        f"median ({np.sqrt(middle):.3g}) and make {share:.1%} of the sum of squares: they decide what is fitted, and "
        "explained variance says little about the others. Often they are the first token of each context. "
        f"fit(..., massive={remedy}) leaves them out, wherever the rows are",
        UserWarning,
        stacklevel=stacklevel,
    )
