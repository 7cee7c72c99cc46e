"""Rows of massive norm, which decide every sum of squares: how they are found and warned of."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence

import numpy as np

from .beside import columns
from .numbered import Rows

MASSIVE = 10.0  # times the median norm
SEEN = 8192  # of so many rows the norms are looked at
_LARGE = 5.0  # so many times it: what is said where such rows, too, decide,
_APART = 3.0  # and so many times the norm that a tenth of the rows exceeds
_MATTER = 0.05  # share of the sum of squares from which massive rows decide what is fitted


def warn_of_massive(rows: Rows, stacklevel: int, widths: Sequence[int] | None = None) -> None:
    """Warn where rows of massive norm decide sums of squares; of more than 8,192 rows, so many are looked at.

    `widths`: of sites side by side, each of which is looked at for itself.
    """
    index = np.arange(rows.n)
    if rows.n > SEEN:  # at random: what is massive may come at regular distances
        index = np.sort(np.random.default_rng(0).choice(rows.n, SEEN, replace=False))
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
    found, part = np.empty(len(rows)), np.empty((min(256, len(rows)), rows.shape[1]))
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, len(rows), 256):  # one place for all: workers of Dask give memory back at once
            these = part[: len(rows) - start]
            these[...] = rows[start : start + 256]
            np.einsum("ij,ij->i", these, these, out=found[start : start + 256])
    return found


def _smallest(numbers: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Of these places the `SEEN` at most that have the smallest numbers: each row is as likely."""
    if len(index) <= SEEN:
        return index
    return np.sort(index[np.argpartition(numbers[index], SEEN - 1)[:SEEN]])


class SomeNorms:
    """Squared norms of up to 8,192 rows at random of all that go by; `block` makes other numbers for each block."""

    def __init__(self, block: int = 0) -> None:
        self.n = 0
        self._rng = np.random.default_rng([0, block])
        self._kept = np.empty((2, 0))  # a random number for each row, and its squared norm

    def see(self, rows: np.ndarray) -> None:
        numbers = self._rng.random(len(rows))
        limit = self._kept[0].max() if self._kept.shape[1] == SEEN else 1.0
        index = _smallest(numbers, np.flatnonzero(numbers < limit))
        self._keep(len(rows), np.array([numbers[index], squared_norms(rows[index])]))

    def plus(self, other: SomeNorms) -> SomeNorms:
        """Of the rows that went by at either."""
        both = copy.deepcopy(self)
        both._keep(other.n, other._kept)
        return both

    def _keep(self, n: int, more: np.ndarray) -> None:
        self.n += n
        kept = np.concatenate([self._kept, more], axis=1)
        self._kept = kept[:, _smallest(kept[0], np.arange(kept.shape[1]))]

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
