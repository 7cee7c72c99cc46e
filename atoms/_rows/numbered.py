"""Rows that have numbers, in memory or block by block, and the batches that training draws of them."""

from __future__ import annotations

import abc
import functools
import hashlib
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .._arrays import Lazy, common_type, flatter, is_tensor, opened, refuse, regrouped
from .._checks import check_array, feature_names, native
from .._shown import Shown, Table

PASS_ROWS = 8192  # that are looked at together by what goes over all rows once


class BlockSource(Shown, abc.ABC):
    """Rows that come block by block, and are shuffled through a buffer: the base of sources of your own.

    A class that says how many rows there are in each block, and reads a block, goes into every estimator:
    ``sae.fit(source)`` trains with bounded memory while the next blocks are read in another thread.

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
    d : int
        Columns. To be set by the class, as `sizes` is; the others have defaults.
    sizes : ndarray of int64
        Rows of each block; block 0 begins with row 0.
    n : int
        Rows: the sum of `sizes`.
    dtype : numpy.dtype
        float32 by default; also float16, float64 and bfloat16.
    buffer_rows : int
        Rows of a group, about: 65,536 by default. Memory holds two groups: one is used while the next is read.

    Examples
    --------
    A buffer of one's own over arrays in files:

    >>> import numpy as np, os, tempfile
    >>> import atoms
    >>> class Files(atoms.activations.BlockSource):
    ...     def __init__(self, paths):
    ...         self.arrays = [np.load(path, mmap_mode="r") for path in paths]
    ...         self.sizes = [len(array) for array in self.arrays]
    ...         self.d = self.arrays[0].shape[1]
    ...     def read(self, block, out):
    ...         out[...] = self.arrays[block]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     paths = [os.path.join(folder, f"{i}.npy") for i in range(3)]
    ...     for i, path in enumerate(paths):
    ...         np.save(path, np.random.default_rng(i).standard_normal((500, 8), dtype=np.float32))
    ...     source = Files(paths)
    ...     sae = atoms.SparseAutoencoder(16, target_l0=2, max_steps=5, verbose=False).fit(source)
    ...     source.shape, atoms.AtomicInnerProduct().fit(source).n_samples_seen_
    ((1500, 8), 1500)
    """

    d: int
    sizes: Any
    dtype: np.dtype = np.dtype(np.float32)
    ndim = 2
    buffer_rows: int = 65536

    @functools.cached_property
    def n(self) -> int:
        """Rows: the sum of `sizes`."""
        return int(np.sum(self.sizes))

    @abc.abstractmethod
    def read(self, block: int, out: np.ndarray) -> None:
        """Rows of a block into `out` (sizes[block], d). Called from another thread."""

    def expect(self, blocks: np.ndarray) -> None:
        """These blocks will be read next: a source that can begin to fetch them does."""

    def digest(self) -> str | None:
        """What tells these rows from others without reading them all; None where nothing does."""
        return None

    def norms(self) -> np.ndarray | None:
        """Euclidean norm of each row, float64 (n,), where that is known without reading them."""
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
        order = np.random.default_rng([*as_seed(seed), 4, epoch]).permutation(len(self.sizes))
        sizes = np.asarray(self.sizes)[order]
        count = max(1, -(-self.n // self.buffer_rows))
        group = (np.cumsum(sizes) - sizes) * count // self.n
        return [np.sort(order[group == g]) for g in np.unique(group)]

    def within(self, seed: int | Sequence[int], epoch: int, group: int, rows: int) -> np.ndarray:
        """The permutation of the rows of a group."""
        where = [] if rows == self.n else [group]  # all rows in one group: the permutation of an array
        return np.random.default_rng([*as_seed(seed), 1, epoch, *where]).permutation(rows)

    def order(self, seed: int | Sequence[int] = 0, epoch: int = 0) -> np.ndarray:
        """Row numbers (n,) in the order in which an epoch visits them."""
        starts = np.cumsum(self.sizes) - np.asarray(self.sizes)
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
        sampler = BlockSampler(self, batch_size, as_seed(seed), epoch=epoch, last=last)
        try:
            for start in range(0, self.n, batch_size):
                sampler.batch_size = min(batch_size, self.n - start)
                rows, index = sampler.draw()
                yield rows if index is None else rows[index]
        finally:
            sampler.close()

    def blocks(self) -> Iterator[np.ndarray]:
        """All rows once, in their own order, block by block."""
        for block, size in enumerate(np.asarray(self.sizes).tolist()):
            out = np.empty((size, self.d), self.dtype)
            self.read(block, out)
            yield out


def as_seed(seed: int | Sequence[int]) -> list[int]:
    return [int(seed)] if isinstance(seed, (int, np.integer)) else list(seed)


def check_source(source: BlockSource, name: str) -> None:
    """ValueError where a class of somebody's own lacks what training asks for."""
    kind = type(source).__name__
    for attribute in ("sizes", "d"):
        if not hasattr(source, attribute):
            raise ValueError(f"{name}: {kind} has no {attribute}; a BlockSource sets sizes and d")
    sizes = source.sizes = np.asarray(source.sizes)
    if (
        sizes.ndim != 1
        or sizes.dtype.kind not in "iu"
        or not len(sizes)
        or sizes.min() < 0
        or not sizes.sum()
    ):
        raise ValueError(
            f"{name}: {kind}.sizes: expected the number of rows of each block, got {sizes!r:.80}"
        )
    if source.n != sizes.sum():
        raise ValueError(f"{name}: {kind}.n is {source.n}, the rows of its blocks are {sizes.sum()}")
    native(np.empty((1, source.d), source.dtype), name)


def is_shards(X: Any) -> bool:
    """A list of tables, rather than one array, a list of rows or a list of numbers."""
    return isinstance(X, (list, tuple)) and len(X) > 0 and len(getattr(X[0], "shape", ())) > 1


def _shard(X: Any, name: str, min_rows: int = 1) -> np.ndarray | Lazy:
    """One table, checked; not read where it is read block by block."""
    refuse(X, name)
    if is_tensor(X) and X.ndim == 3:
        raise ValueError(
            f"{name}: expected rows (n, d), got a tensor of shape {tuple(X.shape)}.{flatter(X, name)}"
        )
    X = opened(X, name)
    if not isinstance(X, Lazy):
        return check_array(X, name, min_rows=min_rows)
    if X.shape[0] < min_rows or X.shape[1] < 1:
        check_array(np.empty(X.shape, X.dtype), name, min_rows=min_rows)  # says so
    return X


def _tables_of(X: Any) -> list[Any]:
    """The tables that something which is no list of them has: shards, or itself."""
    if isinstance(X, Rows):
        return list(X.shards)
    if not isinstance(X, BlockSource):
        return [X]
    shards = getattr(X, "shards", None)
    if shards is not None:
        return list(shards)
    check_source(X, "X")
    ends = np.cumsum(X.sizes)
    blocks = {int(end - size): block for block, (end, size) in enumerate(zip(ends, X.sizes)) if size}

    def read(start: int, stop: int) -> np.ndarray:
        out = np.empty((stop - start, X.d), X.dtype)
        X.read(blocks[start], out)
        return out

    return [Lazy(read, X.shape, np.dtype(X.dtype), X.sizes[X.sizes > 0], False)]


def _names_of(shards: Sequence[Any], name: str) -> np.ndarray | None:
    """Names of the columns, where the rows are frames; the same in all of them."""
    found = [names for shard in shards if (names := feature_names(shard)) is not None]
    if any(list(names) != list(found[0]) for names in found[1:]):
        raise ValueError(f"{name}: the shards' columns have different names, or another order")
    return found[0] if found else None


def identity(n: int | None, d: int, dtype: Any, sha256: str | None) -> dict[str, Any]:
    known = {"rows": n, "columns": d, "dtype": np.dtype(dtype).name}
    return known if sha256 is None else {**known, "sha256": sha256}


class Rows:
    """Read-only access by row number to one table or to several taken one after another, sliced like an array.

    Nothing is copied but the rows asked for, so shards may be larger than memory.
    """

    ndim = 2
    widths: tuple[int, ...] | None = None  # of a crosscoder's sites, whose columns lie side by side

    def __init__(self, X: Any, name: str = "X", min_rows: int = 1) -> None:
        shards = list(X) if is_shards(X) else _tables_of(X)
        self.shards: list[Any] = [
            _shard(s, f"{name}[{i}]" if len(shards) > 1 else name, min_rows) for i, s in enumerate(shards)
        ]
        self.feature_names = _names_of(shards, name)
        widths = {s.shape[1] for s in self.shards}
        if len(widths) > 1:
            raise ValueError(f"{name}: the shards have different numbers of columns: {sorted(widths)}")
        self.starts = np.cumsum([0] + [len(s) for s in self.shards])
        self.n = int(self.starts[-1])
        self.d = self.shards[0].shape[1]
        self.dtype = common_type(s.dtype for s in self.shards)
        self.read = any(isinstance(s, Lazy) for s in self.shards)  # block by block

    @property
    def array(self) -> np.ndarray | None:
        """All rows where they are one array in memory."""
        return self.shards[0] if len(self.shards) == 1 and not self.read else None

    @property
    def shape(self) -> tuple[int, int]:
        return self.n, self.d

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: Any) -> np.ndarray:
        if isinstance(index, slice) and index.step in (None, 1):
            start, stop, _ = index.indices(self.n)
            return self.slice(start, max(start, stop))
        return self.take(np.arange(self.n)[index])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        rows = self.slice(0, self.n)
        return np.array(rows, dtype, copy=copy) if copy is not None else np.asarray(rows, dtype)

    def identity(self) -> dict[str, Any]:
        """What tells these rows from others: their number, columns and type, and a digest of 256 of them, spread evenly."""
        index = np.unique(np.linspace(0, self.n - 1, min(self.n, 256)).astype(np.int64))
        if self.read and self.n > 256:  # few places, for each may be a block
            index = np.concatenate(
                [np.arange(i, i + 32) for i in np.linspace(0, self.n - 32, 8).astype(np.int64)]
            )
        some = self.take(index)
        return identity(self.n, self.d, some.dtype, hashlib.sha256(some.tobytes()).hexdigest())

    def blocks(self, rows: int = PASS_ROWS) -> Iterator[np.ndarray]:
        """All rows once, in their order, so many at a time."""
        return (self.slice(start, start + rows) for start in range(0, self.n, rows))

    def sampler(
        self, batch_size: int, seed: Sequence[int], batches: int | None = None
    ) -> RowSampler | BlockSampler:
        """Batches of these rows. `batches`, the most that will be drawn (skipped ones included), is of use only to
        a source that reads ahead.
        """
        if self.read:
            return BlockRows(ReadBlocks(self)).sampler(batch_size, seed, batches)
        return RowSampler(self, batch_size, seed)

    def take(self, index: np.ndarray) -> np.ndarray:
        """Rows by number, in the order asked for, in the shards' dtype."""
        if len(self.shards) == 1:
            return np.asarray(self.shards[0][index])
        out = np.empty((len(index), self.d), self.dtype)
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
            return np.asarray(self.shards[s][start - self.starts[s] : stop - self.starts[s]])
        if not self.read:
            return self.take(np.arange(start, stop))
        out, at = np.empty((max(0, stop - start), self.d), self.dtype), 0
        while at < len(out):
            first = start + at - self.starts[s]
            part = self.shards[s][first : first + len(out) - at]
            out[at : at + len(part)] = part
            s, at = s + 1, at + len(part)
        return out

    def refer(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """An array and the numbers of its rows that are meant (None: all). One shard is not copied."""
        if len(self.shards) == 1:
            return self.shards[0], index
        return self.take(index), None


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

    def next(self, batches: int = 1) -> np.ndarray:
        """Row numbers of the next batches, one after the other."""
        parts, need = [], batches * self.batch_size
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

    def draw(self, most: int = 1) -> tuple[np.ndarray, np.ndarray | None]:
        """The next batch, or whole ones, at most so many, one after the other; as `Rows.refer` gives them."""
        return self.rows.refer(self.next(most))

    @property
    def fixed(self) -> bool:
        """Whether all row numbers that are drawn are those of one array, which stays as it is."""
        return len(self.rows.shards) == 1

    def ending(self) -> None:
        """Rows by number never end."""

    def close(self) -> None:
        """Nothing to let go of."""


class BlockRows:
    """What training asks of `Rows`, for a source that is read block by block."""

    array = None

    def __init__(self, source: BlockSource, name: str = "X") -> None:
        check_source(source, name)
        self.source, self.n, self.d = source, source.n, source.d
        self.feature_names: np.ndarray | None = None
        self.widths: tuple[int, ...] | None = getattr(source, "widths", None)
        # one row of zeros: checks look at nothing but shape and dtype
        self.shards = [np.zeros((1, source.d), source.dtype)]

    def identity(self) -> dict[str, Any]:
        """As that of `Rows`, with the source's own digest."""
        return identity(self.n, self.d, self.source.dtype, self.source.digest())

    def blocks(self, rows: int = PASS_ROWS) -> Iterator[np.ndarray]:
        """All rows once, in their order, so many at a time."""
        return regrouped(self.source.blocks(), rows)

    def sampler(self, batch_size: int, seed: Sequence[int], batches: int | None = None) -> BlockSampler:
        """Batches of these rows; no more than `batches` will be drawn, skipped ones included."""
        last = None if batches is None else batches * batch_size
        return BlockSampler(self.source, batch_size, seed, last=last)


class ReadBlocks(BlockSource):
    """What `Rows` reads block by block, in blocks to train from.

    Everything is one group where it takes no more than 16 MiB, else a group is a sixteenth of it (4 MiB or more): two
    groups stay small beside what is on disk, and blocks from all over it are mixed in each.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows, self.d, self.dtype = rows, rows.d, rows.dtype
        places = []  # shard, and first row in it, of each block
        sizes: list[int] = []
        for s, shard in enumerate(rows.shards):
            cuts = (
                shard.sizes if isinstance(shard, Lazy) else np.diff([*range(0, len(shard), 512), len(shard)])
            )
            places += [(s, int(end - size)) for end, size in zip(np.cumsum(cuts), cuts)]
            sizes += [int(size) for size in cuts]
        self.sizes, self._places = np.array(sizes, np.int64), places
        width = self.d * self.dtype.itemsize
        size = rows.n * width
        group = size if size <= 16 << 20 else max(4 << 20, size // 16)
        self.buffer_rows = max(512, min(65536, group // width))

    def read(self, block: int, out: np.ndarray) -> None:
        shard, start = self._places[block]
        out[...] = self.rows.shards[shard][start : start + len(out)]


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
        if not isinstance(source.sizes, np.ndarray):
            source.sizes = np.asarray(source.sizes)
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

    def draw(self, most: int = 1) -> tuple[np.ndarray, np.ndarray | None]:
        """An array and the numbers of its rows that are meant (None: all), valid until the next draw: the next batch,
        or whole ones, at most so many, that come of the same group."""
        parts: list[np.ndarray] = []
        need = self.batch_size * max(1, min(most, (len(self._order) - self._at) // self.batch_size))
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

    @property
    def fixed(self) -> bool:
        """As that of `RowSampler`."""
        return self._whole

    def ending(self) -> None:
        """Epoch follows epoch."""

    def close(self) -> None:
        """Stop reading ahead and let the buffers go; drawing again opens them again."""
        if self._thread is not None:
            self._stop.set()
            self._free.put(None)
            self._thread.join()
        self._thread = self._rows = None
        self._order, self._at = np.empty(0, np.int64), 0
