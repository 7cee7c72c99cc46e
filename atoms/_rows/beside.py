"""Rows of several places side by side: one row has the columns of all of them."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from .._arrays import common_type, is_stream
from .._shown import Table
from .numbered import BlockRows, BlockSource, ReadBlocks, Rows, RowSampler

_BLOCK = 512  # rows, where all sides are in memory


def in_memory(rows: Any) -> bool:
    """Whether rows are had by number."""
    return isinstance(rows, Rows) and isinstance(rows.sampler(1, [0]), RowSampler)


class SideBySide(BlockSource):
    """Several sides block by block: the blocks are those of a side that has such, or is read so."""

    def __init__(self, sides: Sequence[Rows | BlockRows], names: Sequence[str]) -> None:
        self.sides = sides
        sources = [_source(side) for side in sides]
        given = [(n, rows.source) for n, rows in zip(names, sides) if isinstance(rows, BlockRows)]
        read = [s for _, s in given] + [s for s in sources if s is not None]
        n = sides[0].n
        self.sizes = np.asarray(read[0].sizes) if read else np.diff([*range(0, n, _BLOCK), n])
        self.buffer_rows = min([s.buffer_rows for s in read], default=self.buffer_rows)
        for name, source in given[1:]:
            if not np.array_equal(source.sizes, self.sizes):
                raise ValueError(
                    f"{name}: its blocks have other sizes than those of {given[0][0]}; capture both into one store, or "
                    "pass arrays"
                )
        self._sources = [rows.source if isinstance(rows, BlockRows) else None for rows in sides]
        self._starts = np.cumsum(self.sizes) - self.sizes
        self._columns = columns([rows.d for rows in sides])
        self.d = self._columns[-1].stop
        self.dtype = common_type(rows.shards[0].dtype for rows in sides)

    def read(self, block: int, out: np.ndarray) -> None:
        start, size = int(self._starts[block]), int(self.sizes[block])
        for rows, source, of in zip(self.sides, self._sources, self._columns):
            if isinstance(rows, Rows):
                out[:, of] = rows.slice(start, start + size)
            elif source is not None:
                whole = np.empty((size, source.d), source.dtype)
                source.read(block, whole)
                out[:, of] = whole

    def expect(self, blocks: np.ndarray) -> None:
        for source in self._sources:
            if source is not None:
                source.expect(blocks)


def _source(rows: Any) -> BlockSource | None:
    """What these rows are read block by block from; None: they are in memory."""
    if isinstance(rows, BlockRows):
        return rows.source
    return None if in_memory(rows) else ReadBlocks(rows)


def columns(widths: Sequence[int]) -> tuple[slice, ...]:
    """The columns of each of the sides."""
    return tuple(slice(a, b) for a, b in itertools.pairwise([0, *np.cumsum(widths).tolist()]))


class Sites(SideBySide):
    """Activations of the same tokens at several places, side by side: ``sae.fit(Sites(store[8], store[15]))``.

    What makes a `SparseAutoencoder` a crosscoder, and what goes into its other methods. Row i has the columns of all
    places, one after the other; nothing is copied but the rows asked for. It is a `BlockSource` like any other for all
    that takes rows. Where all places are arrays in memory, training sees them in the order of one array of all
    columns; else in the order of a store, the blocks being those of the first place that has such.

    Parameters
    ----------
    *sites : (n, d_i) array, tensor, memory map, list of them, ``store[layer]``, another `BlockSource`, ...
        Layers of one model, or one layer of several models, two or more, each with a row for the same n tokens.

    Attributes
    ----------
    widths : tuple of int
        Columns of each place.

    Raises
    ------
    ValueError
        Fewer than two places, other numbers of rows, or blocks of other sizes.
    TypeError
        A generator or another stream, which gives its rows once: capture into a store, or call `partial_fit` with the
        places of each batch.

    Examples
    --------
    >>> import numpy as np
    >>> from atoms.activations import Sites
    >>> A, B = np.ones((100, 4), np.float32), np.ones((100, 6), np.float32)
    >>> Sites(A, B).shape, Sites(A, B).widths
    ((100, 10), (4, 6))
    """

    def __init__(self, *sites: Any) -> None:
        if len(sites) < 2:
            raise ValueError(
                f"sites: expected two or more places, got {len(sites)}; pass each as an argument of its own, "
                "Sites(X, Y), and rows of one place without Sites"
            )
        sides = [_opened(site, f"sites[{i}]") for i, site in enumerate(sites)]
        for i, side in enumerate(sides):
            if side.n != sides[0].n:
                raise ValueError(
                    f"sites[{i}]: expected a row for each of the {sides[0].n} rows of sites[0], got {side.n}"
                )
        super().__init__(sides, [f"sites[{i}]" for i in range(len(sides))])
        self.widths = tuple(side.d for side in sides)

    def _table(self) -> Table:
        shown = super()._table()
        title = f"{len(self.widths)} sites side by side"
        return Table(title, [*shown.rows, *((f"columns of site {i}", d) for i, d in enumerate(self.widths))])

    def __repr__(self) -> str:
        return f"Sites of {' + '.join(map(str, self.widths))} columns, {self.n} rows"

    def digest(self) -> str:
        said = json.dumps([side.identity() for side in self.sides], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()

    def norms(self) -> np.ndarray | None:
        """Norms at each place (n, places), where all places know theirs."""
        known = [None if source is None else source.norms() for source in self._sources]
        return None if any(k is None for k in known) else np.column_stack([k for k in known if k is not None])


def site_rows(sites: Sites, name: str) -> Rows | BlockRows:
    """As `rows_of` reads them: by number where all places are in memory."""
    sides = sites.sides
    return _Beside(sides, sites.widths) if all(map(in_memory, sides)) else BlockRows(sites, name)


def _opened(site: Any, name: str) -> Rows | BlockRows:
    if isinstance(site, Sites):
        raise TypeError(f"{name}: is Sites itself; pass its places as arguments of their own")
    if is_stream(site):
        raise TypeError(
            f"{name}: expected rows that can be asked for by number, got a {type(site).__name__}, which gives them once; "
            "capture all places into one store, or call partial_fit with the places of each batch"
        )
    return BlockRows(site, name) if isinstance(site, BlockSource) else Rows(site, name)


class _Beside(Rows):
    """Sites in memory by row number."""

    read = True  # what is in `shards` is no row of these

    def __init__(self, sides: Sequence[Any], widths: tuple[int, ...]) -> None:
        self._sides, self.widths, self.feature_names = sides, widths, None
        self.n, self.d = sides[0].n, sum(widths)
        self.dtype = common_type(side.dtype for side in sides)
        self.shards = [np.zeros((1, self.d), self.dtype)]  # checks look at nothing but shape and dtype
        self.starts = np.array([0, self.n])

    def sampler(self, batch_size: int, seed: Any, batches: int | None = None) -> RowSampler:
        return RowSampler(self, batch_size, seed)

    def take(self, index: np.ndarray) -> np.ndarray:
        return np.hstack([side.take(index) for side in self._sides], dtype=self.dtype)

    def slice(self, start: int, stop: int) -> np.ndarray:
        return np.hstack([side.slice(start, stop) for side in self._sides], dtype=self.dtype)

    def refer(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        return self.take(index), None
