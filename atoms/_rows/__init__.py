"""Rows of activations, wherever they are: an array, a tensor or a memory map, a list of these (shards), a table that
another library reads (zarr, h5py, dask, a column of a data set), a source that gives blocks (a store on disk, a
running model), or a stream of batches (a generator, a DataLoader).

`rows_of` takes all of them, `table` those that have a length and are sliced like an array. Every estimator and
function that takes activations goes through one of the two.

The files, each of which imports only from those above it::

    numbered   Rows, BlockSource: tables, what gives blocks, and the samplers that draw batches of them
    beside     Sites: several places side by side, what a crosscoder reads
    streams    StreamRows: batches that come one by one
    paired     PairedRows: two sides, what a transcoder reads and what it rebuilds
    massive    rows whose norm decides every sum of squares
    clusters   arrays and bags of Dask, where what is asked of rows goes to them, not they to whoever asks
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .._arrays import is_stream
from .._checks import check_array, first_nonfinite_row, nonfinite_error
from .beside import Sites, columns, in_memory, site_rows
from .clusters import Blocks, as_now, by_blocks, is_dask, told
from .massive import MASSIVE, SomeNorms, site_norms, squared_norms, warn_of_massive
from .numbered import (
    PASS_ROWS,
    BlockRows,
    BlockSampler,
    BlockSource,
    ReadBlocks,
    Rows,
    RowSampler,
    Sampler,
)
from .paired import Pair, PairedRows, read_side
from .streams import StreamRows, StreamSampler

__all__ = [
    "MASSIVE",
    "PASS_ROWS",
    "BlockRows",
    "BlockSampler",
    "BlockSource",
    "Blocks",
    "Pair",
    "PairedRows",
    "ReadBlocks",
    "RowSampler",
    "Rows",
    "Sampler",
    "Sites",
    "SomeNorms",
    "StreamRows",
    "StreamSampler",
    "as_now",
    "by_blocks",
    "columns",
    "finite_blocks",
    "held_out",
    "in_memory",
    "is_dask",
    "read_side",
    "rows_of",
    "site_norms",
    "squared_norms",
    "table",
    "told",
    "warn_of_massive",
]


def rows_of(X: Any, name: str = "X") -> Rows | BlockRows | StreamRows:
    """All that holds activations: `Rows`, `BlockRows` for a source of blocks, `StreamRows` for batches one by one."""
    if isinstance(X, Sites):
        return site_rows(X, name)
    if isinstance(X, BlockSource):
        return BlockRows(X, name)
    return StreamRows(X, name) if is_stream(X) else Rows(X, name)


def table(X: Any, name: str = "X", min_rows: int = 1) -> Any:
    """Rows that have a number: an array where X is one in memory, else `Rows`, which are sliced like one.

    Raises
    ------
    TypeError
        For a stream, of which nobody knows how many there will be.
    """
    if isinstance(X, np.ndarray):
        return check_array(X, name, min_rows=min_rows)
    if is_stream(X):
        raise TypeError(
            f"{name}: expected rows that can be asked for by number, got a {type(X).__name__}, which gives them "
            f"once and in its order; pass list({name}), or its batches one at a time"
        )
    rows = Rows(X, name, min_rows)
    return rows if rows.array is None else rows.array


def finite_blocks(rows: Rows | BlockRows | StreamRows | PairedRows, size: int = PASS_ROWS) -> Iterator[Any]:
    """All rows once, so many at a time; a ValueError where the next ones hold NaN or infinity, which names the row."""
    at = 0
    for block in rows.blocks(size):
        sides = (("X", block.x), ("target", block.y)) if isinstance(block, Pair) else (("X", block),)
        for name, side in sides:
            if (bad := first_nonfinite_row(side)) >= 0:
                raise nonfinite_error(side, name, at + bad)
        yield block
        at += len(block)


def held_out(
    X_val: Any, rows: Rows | BlockRows | StreamRows, name: str = "X_val", of: str = "X"
) -> np.ndarray:
    """Rows beside those to train on: as many columns, of the same names, and finite numbers."""
    val = rows_of(X_val, name)
    if val.d != rows.d:
        raise ValueError(f"{name}: expected {rows.d} features as in {of}, got {val.d}")
    if val.widths is not None and val.widths != rows.widths:
        raise ValueError(f"{name}: {val.widths} columns of its sites, {of} has {rows.widths}")
    names, ours = val.feature_names, rows.feature_names
    if names is not None and ours is not None and list(names) != list(ours):
        raise ValueError(f"{name}: its columns have other names than those of {of}, or another order")
    whole = val.slice(0, val.n) if isinstance(val, Rows) else np.concatenate(list(val.blocks()))
    if (row := first_nonfinite_row(whole)) >= 0:
        raise nonfinite_error(whole, name, row)
    return whole
