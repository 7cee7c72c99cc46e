"""Rows without some of them: those of massive norm, and those held out."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

from ._rows import (
    MASSIVE,
    BlockRows,
    Blocks,
    BlockSource,
    Pair,
    PairedRows,
    ReadBlocks,
    Rows,
    RowSampler,
    in_memory,
    read_side,
    site_norms,
    squared_norms,
)

_PART = 8192  # rows looked at together


def check_massive(massive: Any) -> float:
    """How many times the median norm a row may have; ValueError for what is none of "keep", "drop" and such a number."""
    if isinstance(massive, str) and massive in ("keep", "drop"):
        return np.inf if massive == "keep" else MASSIVE
    if (
        isinstance(massive, (bool, np.bool_))
        or not isinstance(massive, numbers.Real)
        or not float(massive) > 1
    ):
        raise ValueError(f"massive: expected 'keep', 'drop' or a number above 1, got {massive!r}")
    return float(massive)


def without_massive(rows: Any, multiple: float) -> tuple[Any, int, Any]:
    """The rows whose norm is at most so many times the median of all, how many others there were, and that limit.

    The rows are gone through once before (a stream's model runs over all tokens); a store knows its norms. 8 bytes for
    each row are held meanwhile. An infinite multiple leaves out none, and looks at none. Of two sides, it is the rows that
    are read whose norm counts; of several sites side by side, a row is massive that is at one of them, by that site's median.
    """
    if multiple == np.inf:
        return rows, 0, np.inf
    if rows.n is None and not isinstance(rows, Blocks):
        raise ValueError(
            "massive: dropping rows needs those that can be gone through twice; pass an array, a list or a store"
        )
    norms = _norms(read_side(rows))  # a column for each site
    middle = np.median(norms, axis=0) if len(norms) else np.zeros(1)
    if not ((middle > 0) & (middle < np.inf)).all():  # NaN and infinity are for others to name
        return rows, 0, np.inf
    limit: Any = multiple * middle if len(middle) > 1 else multiple * float(middle[0])
    massive = np.flatnonzero((norms > limit).any(axis=1))
    if isinstance(rows, Blocks):
        return rows.within(limit) if len(massive) else rows, len(massive), limit
    return leave_out(rows, massive), len(massive), limit


def within(rows: Any, limit: Any, name: str, widths: Sequence[int] | None = None) -> Any:
    """Those rows in memory whose norm is at most `limit`, one for each of `widths` where there are sites."""
    if np.all(limit == np.inf):
        return rows
    kept = rows[(site_norms(rows.x if isinstance(rows, Pair) else rows, widths) <= limit).all(axis=1)]
    if not len(kept):
        said = ", ".join(f"{one:.3g}" for one in np.atleast_1d(limit))
        raise ValueError(
            f"{name}: all rows have a norm above {said}, the limit of `massive` for X, and are dropped"
        )
    return kept


def leave_out(rows: Any, out: np.ndarray) -> Any:
    """These rows without those of the numbers `out`, which ascend; nothing is copied."""
    if not len(out):
        return rows
    if isinstance(rows, PairedRows):
        return PairedRows(leave_out(rows.x, out), leave_out(rows.y, out))
    if isinstance(rows, Rows) and in_memory(rows):
        return _RowsWithout(rows, out)
    source = rows.source if isinstance(rows, BlockRows) else ReadBlocks(rows)
    rest = BlockRows(_BlocksWithout(source, out))
    rest.feature_names, rest.widths = rows.feature_names, rows.widths
    return rest


def _norms(rows: Any) -> np.ndarray:
    if isinstance(rows, Blocks):
        return np.asarray(np.sqrt(np.concatenate([np.empty(0), *rows.gathered(squared_norms)])))[:, None]
    known = rows.source.norms() if isinstance(rows, BlockRows) else None
    if known is not None:
        return np.asarray(known).reshape(rows.n, -1)
    found, at = np.empty((rows.n, len(rows.widths or [rows.d]))), 0
    for block in rows.blocks(_PART):
        found[at : at + len(block)] = site_norms(block, rows.widths)
        at += len(block)
    return found


class _RowsWithout(Rows):
    """Rows by number, some of them left out."""

    read = True  # what is in `shards` is no row of these

    def __init__(self, rows: Rows, out: np.ndarray) -> None:
        self._rows, self.d, self.feature_names = rows, rows.d, rows.feature_names
        self.widths = rows.widths
        self.dtype = rows.dtype
        self._index = np.delete(np.arange(rows.n), out)
        self.n = len(self._index)
        self.shards = [np.zeros((1, self.d), self.dtype)]  # checks look at nothing but shape and dtype
        self.starts = np.array([0, self.n])

    def sampler(self, batch_size: int, seed: Any, batches: int | None = None) -> RowSampler:
        return RowSampler(self, batch_size, seed)

    def take(self, index: np.ndarray) -> np.ndarray:
        return self._rows.take(self._index[index])

    def slice(self, start: int, stop: int) -> np.ndarray:
        return self.take(np.arange(start, min(stop, self.n)))

    def refer(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        return self._rows.refer(self._index[index])


class _BlocksWithout(BlockSource):
    """Rows block by block, some of them left out as they are read."""

    def __init__(self, source: BlockSource, out: np.ndarray) -> None:
        self._source, self.d, self.dtype = source, source.d, source.dtype
        self.buffer_rows = source.buffer_rows
        ends = np.cumsum(source.sizes)
        block_of = np.searchsorted(ends, out, side="right")
        starts = ends - source.sizes
        self._out = {b: out[block_of == b] - starts[b] for b in np.unique(block_of).tolist()}
        self.sizes = source.sizes - np.bincount(block_of, minlength=len(ends))
        self.n = int(self.sizes.sum())

    def read(self, block: int, out: np.ndarray) -> None:
        if block not in self._out:
            self._source.read(block, out)
            return
        whole = np.empty((int(self._source.sizes[block]), self.d), self.dtype)
        self._source.read(block, whole)
        out[...] = np.delete(whole, self._out[block], axis=0)

    def expect(self, blocks: np.ndarray) -> None:
        self._source.expect(blocks)

    def digest(self) -> str | None:
        return self._source.digest()

    def norms(self) -> np.ndarray | None:
        known = self._source.norms()
        if known is None:
            return None
        starts = np.cumsum(self._source.sizes) - self._source.sizes
        return np.delete(known, np.concatenate([starts[b] + rows for b, rows in self._out.items()]), axis=0)
