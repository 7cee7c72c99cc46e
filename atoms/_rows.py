"""Rows of activations, wherever they are: an array, a memory map, a list of either (shards), or a source
that is read block by block (a store on disk, a running model)."""

from __future__ import annotations

import abc
import hashlib
import queue
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ._checks import check_array, feature_names, first_nonfinite_row, nonfinite_error
from ._shown import Shown, Table


def is_shards(X: Any) -> bool:
    """A list of arrays, rather than one array or a list of numbers."""
    return isinstance(X, (list, tuple)) and len(X) > 0 and hasattr(X[0], "shape")


class Rows:
    """Read-only access by row number to one array or to several taken one after another.

    Nothing is copied but the rows asked for, so shards may be larger than memory.
    """

    def __init__(self, X: Any, name: str = "X") -> None:
        shards = list(X) if is_shards(X) else getattr(X, "shards", [X])
        self.shards: list[np.ndarray] = [
            check_array(s, f"{name}[{i}]" if len(shards) > 1 else name) for i, s in enumerate(shards)
        ]
        self.feature_names = _names_of(shards, name)
        widths = {s.shape[1] for s in self.shards}
        if len(widths) > 1:
            raise ValueError(f"{name}: the shards have different numbers of columns: {sorted(widths)}")
        self.starts = np.cumsum([0] + [len(s) for s in self.shards])
        self.n = int(self.starts[-1])
        self.d = self.shards[0].shape[1]

    def identity(self) -> dict[str, Any]:
        """What tells these rows from others: their number, columns and type, and a digest of 256 of them, spread evenly."""
        some = self.take(np.unique(np.linspace(0, self.n - 1, min(self.n, 256)).astype(np.int64)))
        return _identity(self.n, self.d, some.dtype, hashlib.sha256(some.tobytes()).hexdigest())

    def sampler(self, batch_size: int, seed: Sequence[int], batches: int | None = None) -> RowSampler:
        """Batches of these rows. `batches`, the most that will be drawn (skipped ones included), is of use only to
        a source that reads ahead.
        """
        return RowSampler(self, batch_size, seed)

    def take(self, index: np.ndarray) -> np.ndarray:
        """Rows by number, in the order asked for, in the shards' dtype."""
        if len(self.shards) == 1:
            return np.asarray(self.shards[0][index])
        out = np.empty((len(index), self.d), np.result_type(*self.shards))
        shard = np.searchsorted(self.starts, index, side="right") - 1
        for s in np.unique(shard):
            at = np.flatnonzero(shard == s)
            out[at] = self.shards[s][index[at] - self.starts[s]]
        return out

    def slice(self, start: int, stop: int) -> np.ndarray:
        """Rows start .. stop: a view where they lie in one shard."""
        stop = min(stop, self.n)
        s = int(np.searchsorted(self.starts, start, side="right")) - 1
        if s < len(self.shards) and stop <= self.starts[s + 1]:
            return self.shards[s][start - self.starts[s] : stop - self.starts[s]]
        return self.take(np.arange(start, stop))

    def refer(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """An array and the numbers of its rows that are meant (None: all). One shard is not copied."""
        if len(self.shards) == 1:
            return self.shards[0], index
        return self.take(index), None


MASSIVE = 10.0  # times the median norm
_MATTER = 0.05  # share of the sum of squares from which massive rows decide what is fitted


def warn_of_massive(rows: Rows, stacklevel: int) -> None:
    """Warn where rows of massive norm decide sums of squares; of more than 8,192 rows, so many are looked at."""
    index = np.arange(rows.n)
    if rows.n > 8192:  # at random: what is massive may come at regular distances
        index = np.sort(np.random.default_rng(0).choice(rows.n, 8192, replace=False))
    found = rows.take(index).astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity are for others to name
        squares = np.einsum("ij,ij->i", found, found)
    middle = np.median(squares)
    massive = squares > MASSIVE**2 * middle
    if not 0 < middle < np.inf or not np.isfinite(squares).all() or not massive.any():
        return
    share = squares[massive].sum() / squares.sum()
    if share < _MATTER:
        return
    count = round(massive.mean() * rows.n)
    warnings.warn(
        f"X: {'about ' if rows.n > 8192 else ''}{count:,} of {rows.n:,} rows have a norm above {MASSIVE:g} times the "
        f"median ({np.sqrt(middle):.3g}) and make {share:.1%} of the sum of squares: they decide what is fitted, and "
        "explained variance says little about the others. Often they are the first token of each context: leave "
        "them out, by capture(..., drop_first=True, massive='drop') or by their norms",
        UserWarning,
        stacklevel=stacklevel,
    )


def _identity(n: int, d: int, dtype: Any, sha256: str | None) -> dict[str, Any]:
    known = {"rows": n, "columns": d, "dtype": np.dtype(dtype).name}
    return known if sha256 is None else {**known, "sha256": sha256}


class Sampler:
    """Batches of row numbers by a seeded permutation, a new one each epoch.

    The state is two integers, so a resumed run draws what the uninterrupted one would have drawn.
    A batch that meets the end of an epoch goes on with the next permutation.
    """

    def __init__(
        self, n: int, batch_size: int, seed: Sequence[int], epoch: int = 0, position: int = 0
    ) -> None:
        self.n, self.batch_size, self.seed = n, batch_size, list(seed)
        self.epoch, self.position = epoch, position
        self._order = self._permutation()

    def _permutation(self) -> np.ndarray:
        return np.random.default_rng([*self.seed, 1, self.epoch]).permutation(self.n)

    def skip(self, batches: int) -> None:
        """As if so many batches had been drawn."""
        self.epoch, self.position = divmod(
            self.epoch * self.n + self.position + batches * self.batch_size, self.n
        )
        self._order = self._permutation()

    def next(self) -> np.ndarray:
        """Row numbers of the next batch."""
        parts, need = [], self.batch_size
        while need:
            part = self._order[self.position : self.position + need]
            parts.append(part)
            self.position += len(part)
            need -= len(part)
            if self.position == self.n:
                self.epoch, self.position = self.epoch + 1, 0
                self._order = self._permutation()
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


class RowSampler(Sampler):
    """Batches of `Rows`, each an array and the numbers of its rows that are meant."""

    def __init__(self, rows: Rows, batch_size: int, seed: Sequence[int]) -> None:
        super().__init__(rows.n, batch_size, seed)
        self.rows = rows

    def first(self) -> Rows:
        """Rows to begin from (mean, scale, initial atoms): all of them."""
        return self.rows

    def draw(self) -> tuple[np.ndarray, np.ndarray | None]:
        """The next batch, as `Rows.refer` gives it."""
        return self.rows.refer(self.next())

    def close(self) -> None:
        """Nothing to let go of."""


# ------------------------------------------------------------------ block by block


class BlockSource(Shown, abc.ABC):
    """Rows that come block by block, and are shuffled through a buffer.

    The order of an epoch is an exact permutation of all rows, decided by the seed, the epoch, the
    blocks' sizes and `buffer_rows` alone:

    1. the blocks are permuted;
    2. that sequence is cut into g = ceil(n / buffer_rows) groups of about n / g rows, whole blocks each
       (so a group has at most buffer_rows rows and one block more);
    3. the rows of a group are permuted.

    Each epoch visits each row once. Rows of one block stay within one group, at random places there;
    rows of different blocks are as far apart as chance has it. Where all rows fit the buffer there is one
    group, and the order is the one of an array in memory. A batch of m rows out of a group of s, whose blocks
    have b rows each, holds m (m - 1) / 2 * (b - 1) / (s - 1) pairs of one block on average; a
    permutation of all n rows would give the same with n in the place of s.

    Attributes
    ----------
    n, d : int
        Rows and columns.
    dtype : numpy.dtype
    sizes : ndarray of int64
        Rows of each block; block 0 begins with row 0.
    buffer_rows : int
        Rows of a group, about. Memory holds two groups: one is used while the next is read.
    """

    n: int
    d: int
    dtype: np.dtype
    sizes: np.ndarray
    buffer_rows: int

    @abc.abstractmethod
    def read(self, block: int, out: np.ndarray) -> None:
        """Rows of a block into `out` (sizes[block], d). Called from another thread."""

    def expect(self, blocks: np.ndarray) -> None:
        """These blocks will be read next: a source that can begin to fetch them does."""

    def digest(self) -> str | None:
        """What tells these rows from others without reading them all; None where nothing does."""
        return None

    def __len__(self) -> int:
        return self.n

    @property
    def shape(self) -> tuple[int, int]:
        return self.n, self.d

    def _table(self) -> Table:
        sizes = ("rows", self.n), ("columns", self.d), ("type", self.dtype)
        groups = max(1, -(-self.n // self.buffer_rows))
        return Table(
            repr(self), [*sizes, ("blocks", len(self.sizes)), ("groups, each shuffled in memory", groups)]
        )

    def groups(self, seed: int | Sequence[int], epoch: int) -> list[np.ndarray]:
        """The blocks of each group of an epoch, ascending within it."""
        order = np.random.default_rng([*_as_seed(seed), 4, epoch]).permutation(len(self.sizes))
        sizes = self.sizes[order]
        count = max(1, -(-self.n // self.buffer_rows))
        group = (np.cumsum(sizes) - sizes) * count // self.n
        return [np.sort(order[group == g]) for g in np.unique(group)]

    def within(self, seed: int | Sequence[int], epoch: int, group: int, rows: int) -> np.ndarray:
        """The permutation of the rows of a group."""
        where = [] if rows == self.n else [group]  # all rows in one group: the permutation of an array
        return np.random.default_rng([*_as_seed(seed), 1, epoch, *where]).permutation(rows)

    def order(self, seed: int | Sequence[int] = 0, epoch: int = 0) -> np.ndarray:
        """Row numbers (n,) in the order in which an epoch visits them."""
        starts = np.cumsum(self.sizes) - self.sizes
        parts = []
        for g, blocks in enumerate(self.groups(seed, epoch)):
            rows = np.concatenate([starts[b] + np.arange(int(self.sizes[b])) for b in blocks])
            parts.append(rows[self.within(seed, epoch, g, len(rows))])
        return np.concatenate(parts)

    def batches(
        self, batch_size: int = 4096, seed: int | Sequence[int] = 0, epoch: int = 0
    ) -> Iterator[np.ndarray]:
        """All rows once, in the order of `order`, in arrays of `batch_size` (the last one shorter)."""
        if batch_size < 1:
            raise ValueError(f"batch_size: expected a positive integer, got {batch_size}")
        last = (epoch + 1) * self.n
        sampler = BlockSampler(self, batch_size, _as_seed(seed), epoch=epoch, last=last)
        try:
            for start in range(0, self.n, batch_size):
                sampler.batch_size = min(batch_size, self.n - start)
                rows, index = sampler.draw()
                yield rows if index is None else rows[index]
        finally:
            sampler.close()

    def blocks(self) -> Iterator[np.ndarray]:
        """All rows once, in their own order, block by block."""
        for block, size in enumerate(self.sizes.tolist()):
            out = np.empty((size, self.d), self.dtype)
            self.read(block, out)
            yield out


def _as_seed(seed: int | Sequence[int]) -> list[int]:
    return [int(seed)] if isinstance(seed, (int, np.integer)) else list(seed)


class BlockRows:
    """What training asks of `Rows`, for a source that is read block by block."""

    def __init__(self, source: BlockSource) -> None:
        self.source, self.n, self.d = source, source.n, source.d
        self.feature_names = None
        # one row of zeros: checks look at nothing but shape and dtype
        self.shards = [np.zeros((1, source.d), source.dtype)]

    def identity(self) -> dict[str, Any]:
        """As that of `Rows`, with the source's own digest."""
        return _identity(self.n, self.d, self.source.dtype, self.source.digest())

    def sampler(self, batch_size: int, seed: Sequence[int], batches: int | None = None) -> BlockSampler:
        """Batches of these rows; no more than `batches` will be drawn, skipped ones included."""
        last = None if batches is None else batches * batch_size
        return BlockSampler(self.source, batch_size, seed, last=last)


def _names_of(shards: Sequence[Any], name: str) -> np.ndarray | None:
    """Names of the columns, where the rows are frames; the same in all of them."""
    found = [names for shard in shards if (names := feature_names(shard)) is not None]
    if any(list(names) != list(found[0]) for names in found[1:]):
        raise ValueError(f"{name}: the shards' columns have different names, or another order")
    return found[0] if found else None


def held_out(X_val: Any, rows: Rows | BlockRows) -> np.ndarray:
    """Rows beside those to train on: as many columns, of the same names, and finite numbers."""
    val = Rows(X_val, "X_val")
    if val.d != rows.d:
        raise ValueError(f"X_val: expected {rows.d} features as in X, got {val.d}")
    names, ours = val.feature_names, rows.feature_names
    if names is not None and ours is not None and list(names) != list(ours):
        raise ValueError("X_val: its columns have other names than those of X, or another order")
    whole = val.slice(0, val.n)
    if (row := first_nonfinite_row(whole)) >= 0:
        raise nonfinite_error(whole, "X_val", row)
    return whole


def rows_of(X: Any, name: str = "X") -> Rows | BlockRows:
    """`Rows`, or `BlockRows` for a source that is read block by block."""
    return BlockRows(X) if isinstance(X, BlockSource) else Rows(X, name)


class BlockSampler:
    """Batches of a `BlockSource` in its order, epoch after epoch; a thread reads one group ahead.

    The state is the number of rows drawn: `skip` goes to any place without reading what lies before it.
    Groups that begin at row number `last` or later, counted over all epochs, are not read.
    """

    def __init__(
        self,
        source: BlockSource,
        batch_size: int,
        seed: Sequence[int],
        *,
        epoch: int = 0,
        last: int | None = None,
    ) -> None:
        self.last = last
        self.source, self.batch_size, self.seed = source, batch_size, list(seed)
        self.drawn = epoch * source.n
        count = max(1, -(-source.n // source.buffer_rows))
        # by buffer size, not by an epoch's groups: some order of the blocks may make one group of several
        self._whole = count == 1
        self._capacity = min(source.n, -(-source.n // count) + int(source.sizes.max()))
        self._thread: threading.Thread | None = None
        self._rows: np.ndarray | None = None
        self._buffer = np.empty((0, 0), source.dtype)
        self._order = np.empty(0, np.int64)
        self._at = self._epoch = 0

    # ------------------------------------------------------------- reading ahead

    def _open(self) -> None:
        """Start reading at the row number that is drawn next."""
        epoch, position = divmod(self.drawn, self.source.n)
        sizes = [int(self.source.sizes[blocks].sum()) for blocks in self.source.groups(self.seed, epoch)]
        ends = np.cumsum(sizes)
        group = int(np.searchsorted(ends, position, side="right"))
        self._offset = position - int(ends[group] - sizes[group])
        self._stop = threading.Event()
        self._ready: queue.Queue[Any] = queue.Queue()
        self._free: queue.Queue[np.ndarray | None] = queue.Queue()
        for _ in range(1 if self._whole else 2):
            self._free.put(np.empty((self._capacity, self.source.d), self.source.dtype))
        self._thread = threading.Thread(
            target=self._read, args=(epoch, group), name="atoms-read", daemon=True
        )
        self._thread.start()

    def _read(self, epoch: int, group: int) -> None:
        """What the thread does: read group after group, from this one on, into buffers that are free."""
        try:
            while True:
                groups = self.source.groups(self.seed, epoch)
                begin = epoch * self.source.n + sum(int(self.source.sizes[b].sum()) for b in groups[:group])
                for g in range(group, len(groups)):
                    if self.last is not None and begin >= self.last:
                        raise IndexError(f"no row beyond number {self.last} was to be drawn")
                    begin += int(self.source.sizes[groups[g]].sum())
                    buffer = self._free.get()
                    if buffer is None:
                        return
                    end = 0
                    for i, block in enumerate(groups[g].tolist()):
                        if self._stop.is_set():
                            return
                        self.source.expect(groups[g][i + 1 : i + 5])
                        start, end = end, end + int(self.source.sizes[block])
                        self.source.read(block, buffer[start:end])
                    self._ready.put((epoch, g, buffer, end))
                if self._whole:
                    return  # the one group stays in its buffer for all epochs
                epoch, group = epoch + 1, 0
        except BaseException as error:  # raised again in the thread that draws
            self._ready.put(error)

    def _advance(self) -> None:
        """The next group's rows, or the next permutation of the only one's."""
        if self._thread is None:
            self._open()
        elif self._rows is not None and self._whole:
            self._epoch += 1
            self._order, self._at = self.source.within(self.seed, self._epoch, 0, self.source.n), 0
            return
        elif self._rows is not None:
            self._rows = None
            self._free.put(self._buffer)
        found = self._ready.get()
        if isinstance(found, BaseException):
            self.close()
            raise found
        self._epoch, group, self._buffer, n = found
        self._rows = self._buffer[:n]
        self._order, self._at = self.source.within(self.seed, self._epoch, group, n), self._offset
        self._offset = 0

    # ------------------------------------------------------------------ drawing

    def first(self) -> Rows:
        """Rows to begin from: those of the first group, in their own order."""
        if self._rows is None:
            self._advance()
        assert self._rows is not None
        return Rows(self._rows)

    def skip(self, batches: int) -> None:
        """As if so many batches had been drawn."""
        if batches:
            self.close()
            self.drawn += batches * self.batch_size

    def draw(self) -> tuple[np.ndarray, np.ndarray | None]:
        """An array and the numbers of its rows that are meant (None: all), valid until the next draw."""
        parts: list[np.ndarray] = []
        need = self.batch_size
        while True:
            if self._at == len(self._order):
                self._advance()
            assert self._rows is not None
            index = self._order[self._at : self._at + need]
            self._at += len(index)
            self.drawn += len(index)
            need -= len(index)
            if not need and not parts:
                return self._rows, index
            parts.append(self._rows[index])
            if not need:
                return np.concatenate(parts), None

    def close(self) -> None:
        """Stop reading ahead and let the buffers go; drawing again opens them again."""
        if self._thread is not None:
            self._stop.set()
            self._free.put(None)
            self._thread.join()
        self._thread = self._rows = None
        self._order, self._at = np.empty(0, np.int64), 0
