"""Arrays and bags of Dask: what is asked of their rows is computed where their blocks are.

Dask is imported only once something of its own has come.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import inspect
import operator
import pickle
import re
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import scipy.sparse

from .._checks import Place, aligned, numbered
from .massive import squared_norms
from .numbered import Rows

_F = TypeVar("_F", bound=Callable[..., Any])


def is_dask(X: Any) -> bool:
    """An array or a bag of Dask."""
    module = type(X).__module__.split(".")
    return module[0] == "dask" and module[1:2] in (["array"], ["bag"])


def _dask(module: str) -> Any:
    """A module of Dask, which has no types."""
    return importlib.import_module(f"dask.{module}")


class Blocks:
    """The rows of an array of Dask, or of a bag of tables, block by block; columns in several chunks become one.

    What a function gives for a block must be what it gives for its rows alone. Of the others it knows how many there are
    (`rows_in_all`), and errors that it raises know where among them the block lies (`row_name`).
    """

    array = None  # as `Rows` has it: they are not in memory
    feature_names = None

    def __init__(self, X: Any, name: str = "X") -> None:
        far = X if hasattr(X, "chunks") else _of_bag(X, name)
        if far.ndim != 2:
            raise ValueError(
                f"{name}: expected a 2-dimensional array, got {far.ndim} dimension(s). Reshape your data: "
                f"{name}.reshape(-1, {name}.shape[-1]) makes every leading index a sample."
            )
        if far.dtype.kind not in "biuf" and far.dtype.name != "bfloat16":
            raise ValueError(f"{name}: expected numbers, got dtype {far.dtype}")
        if not far.shape[1] >= 1:
            raise ValueError(f"{name}: expected a known number of columns, at least 1, got shape {far.shape}")
        self.name, self.d = name, int(far.shape[1])
        self.far = far.rechunk({1: -1}) if len(far.chunks[1]) > 1 else far
        # one row of zeros: checks look at nothing but shape and dtype
        self.sample = _zeros(self.far)
        self.shards = [self.sample]

    @property
    def sizes(self) -> tuple[Any, ...]:
        """Rows of each block, NaN where nobody knows."""
        return tuple(self.far.chunks[0])

    @property
    def known(self) -> bool:
        """Whether it is known how many rows each block has."""
        return not any(np.isnan(rows) for rows in self.sizes)

    @property
    def n(self) -> int | None:
        """How many rows there are, None where nobody knows."""
        return int(sum(self.sizes)) if self.known else None

    # ------------------------------------------------------------------ what a function gives for each

    def mapped(self, function: Callable[..., Any], *held: Any, beside: Sequence[tuple[str, Any]] = ()) -> Any:
        """What ``function(block, *beside, *held)`` gives, with an array of Dask for each array in it, the first axis of
        which must be that of the rows. Nothing is computed yet.

        `beside` has arrays, with what to call them, which have a row for each of these.
        """
        graphs, da = _dask("highlevelgraph"), _dask("array")
        cut = [self._cut(*one) for one in beside]
        with numbered(Place(0, 0, 1)):
            sample = function(self.sample, *map(_zeros, cut), *held)
        leaves = list(_leaves(sample))
        name, graph = self._tasks(function, (*held, [leaf[:0] for leaf in leaves]), cut)
        whole = graphs.HighLevelGraph.from_collections(name, graph, dependencies=[self.far, *cut])
        arrays = []
        for k, leaf in enumerate(leaves):
            own, ends = f"{name}-{k}", (0,) * (leaf.ndim - 1)
            one = {(own, i, *ends): (operator.getitem, (name, i), k) for i in range(len(self.sizes))}
            layers = graphs.HighLevelGraph({**whole.layers, own: one}, {**whole.dependencies, own: {name}})
            chunks = (self.sizes, *((width,) for width in leaf.shape[1:]))
            arrays.append(da.Array(layers, own, chunks, meta=leaf[:0]))
        return _rebuilt(sample, iter(arrays))

    def gathered(
        self, function: Callable[..., Any], *held: Any, beside: Sequence[tuple[str, Any]] = ()
    ) -> list[Any]:
        """What ``function(block, *beside, *held)`` gives for each block that has rows, in their order."""
        cut = [self._cut(*one) for one in beside]
        name, graph = self._tasks(function, (*held, None), cut)
        keys = [(name, i) for i in range(len(self.sizes))]
        return [one.value for one in self._computed((list, keys), graph, cut) if one.value is not None]

    def folded(
        self, function: Callable[..., Any], join: Callable[[Any, Any], Any], start: Any, *held: Any
    ) -> Any:
        """The same joined to `start`, block after block in their order, by whoever has them."""
        name, graph = self._tasks(function, (*held, None), [])
        last: Any = f"{name}-start"
        graph[last] = (_same, _Held(start))
        for i in range(len(self.sizes)):
            graph[f"{name}-to", i] = (_joined, join, last, (name, i))
            last = (f"{name}-to", i)
        return self._computed((_same, last), graph, []).value

    def _tasks(
        self, function: Callable[..., Any], held: tuple[Any, ...], cut: list[Any]
    ) -> tuple[str, dict[Any, Any]]:
        """A graph in which (name, i) is a list of the arrays that `function` gives for block i. The last of `held` is
        what stands for them where the block has no rows."""
        name = f"atoms-{uuid.uuid4().hex}"
        # one task gives what all have in common: a worker reads it once
        graph: dict[Any, Any] = {f"{name}-held": (_same, _Held(held))}
        task = _gathered if held[-1] is None else _mapped
        first = 0
        for i, rows in enumerate(self.sizes):
            place = Place(first if self.known else None, i, self.n)
            keys = [(one.name, i, *((0,) * (one.ndim - 1))) for one in (self.far, *cut)]
            graph[name, i] = (task, function, place, (self.d, rows), keys, f"{name}-held")
            first += int(rows) if self.known else 0
        return name, graph

    def _cut(self, what: str, other: Any) -> Any:
        """An array that has a row for each of these, in blocks of the same rows."""
        if not is_dask(other):
            if not self.known:
                raise ValueError(
                    f"{what}: the blocks of {self.name} are of unknown size, so nobody can say which rows are theirs; "
                    f"call {self.name}.compute_chunk_sizes() first, or pass a dask array of as many blocks"
                )
            other = _dask("array").from_array(other, chunks=-1, asarray=False)
        unknown = any(np.isnan(rows) for rows in other.chunks[0])
        if self.known and not unknown and other.shape[0] != self.n:
            raise ValueError(f"{what}: expected {self.n} rows, as {self.name} has, got {other.shape[0]}")
        if unknown or not self.known:
            if len(other.chunks[0]) != len(self.sizes):
                raise ValueError(
                    f"{what}: expected {len(self.sizes)} blocks, as {self.name} has, got {len(other.chunks[0])}, and "
                    "their sizes are unknown; call compute_chunk_sizes() of both"
                )
            return other.rechunk(dict.fromkeys(range(1, other.ndim), -1)) if other.ndim > 1 else other
        return other.rechunk({0: self.sizes} | dict.fromkeys(range(1, other.ndim), -1))

    def _computed(self, task: Any, graph: dict[Any, Any], cut: list[Any]) -> Any:
        """The result of a task, of these and others; errors name rows by their numbers among all."""
        name = f"atoms-all-{uuid.uuid4().hex}"
        graph = {**graph, name: task}
        layers = _dask("highlevelgraph").HighLevelGraph.from_collections(
            name, graph, dependencies=[self.far, *cut]
        )
        try:
            return _dask("delayed").Delayed(name, layers).compute()
        except ValueError as error:
            found = _PLACE.search(str(error))
            if found is None:
                raise
            row, number = int(found[1]), int(found[2])
            before = sum(self._of(i, len_of) for i in range(number))
            raise ValueError(_PLACE.sub(f"row {before + row}", str(error))) from None

    # ------------------------------------------------------------------ some of the rows

    def _of(self, block: int, function: Callable[..., Any], *args: Any) -> Any:
        return _dask("delayed").delayed(function)(self.far.blocks[block].to_delayed()[0, 0], *args).compute()

    def first(self, most: int) -> np.ndarray:
        """The first block that has rows, up to so many of them, in memory."""
        for i, rows in enumerate(self.sizes):
            if rows and len(found := self._of(i, _first, most)):
                return np.asarray(found)
        raise ValueError(f"{self.name}: found array with 0 sample(s) while a minimum of 1 is required.")

    def within(self, limit: float) -> Blocks:
        """The rows whose norm is at most this, in blocks of sizes that nobody knows yet."""
        sizes = ((np.nan,) * len(self.sizes), (self.d,))
        return Blocks(self.far.map_blocks(_within, limit, dtype=self.far.dtype, chunks=sizes), self.name)


def as_now(estimator: Any) -> Any:
    """A copy for tasks that run later: what it makes of rows now, whatever becomes of it."""
    own = getattr(estimator, "_as_now", None)
    return copy.copy(estimator) if own is None else own()


def by_blocks(method: _F) -> _F:
    """A method of rows X, each of which has its own part in what comes back, and, of arrays of Dask, arrays of Dask."""

    first = list(inspect.signature(method).parameters)[1]  # the name of the rows

    @functools.wraps(method)
    def wrapped(self: Any, *args: Any, **options: Any) -> Any:
        rows = args[0] if args else options.get(first)
        # into an array in memory they are read one after the other
        if not is_dask(rows) or any(isinstance(a, np.ndarray) for a in (*args, *options.values())):
            return method(self, *args, **options)
        more = {name: value for name, value in options.items() if args or name != first}
        return Blocks(rows).mapped(_method, as_now(self), method.__name__, args[1:], more)

    return wrapped  # type: ignore[return-value]


# ------------------------------------------------------------------ in the tasks


class _Held:
    """What Dask is to hand on, not to look into. Arrays in it come out aligned, as the core takes them; those that Dask
    hands on itself lie where they were in a message."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        cloudpickle: Any = importlib.import_module("cloudpickle")  # which Dask needs, too
        return _held, (cloudpickle.dumps(self.value, protocol=4),)


def _held(pickled: bytes) -> _Held:
    return _Held(pickle.loads(pickled))


def _same(value: Any) -> Any:
    return value


def _given(
    function: Callable[..., Any], place: Place, shape: tuple[int, Any], blocks: list[Any], held: _Held
) -> Any:
    """What the function gives; None where the block has no rows."""
    rows, *beside = map(aligned, blocks)
    d, n = shape
    if rows.ndim != 2 or rows.shape[1] != d or not (np.isnan(n) or len_of(rows) == n):
        raise ValueError(
            f"X: block {place.block} has the shape {rows.shape}, not {'any' if np.isnan(n) else n} rows of {d} columns as "
            "its array says; the function that makes it gives others than it was announced to"
        )
    if any(len_of(one) != len_of(rows) for one in beside):
        raise ValueError(
            f"X: block {place.block} has {len_of(rows)} rows, what lies beside it {[len_of(one) for one in beside]}"
        )
    if not len_of(rows):
        return None
    with numbered(place):
        return function(rows, *beside, *held.value[:-1])


def _gathered(*task: Any) -> _Held:
    return _Held(_given(*task))


def _mapped(*task: Any) -> list[Any]:
    found = _given(*task)
    return task[-1].value[-1] if found is None else list(_leaves(found))


def _joined(join: Callable[[Any, Any], Any], so_far: _Held, found: _Held) -> _Held:
    return so_far if found.value is None else _Held(join(so_far.value, found.value))


def _method(block: Any, own: Any, name: str, args: Any, options: Any) -> Any:
    method = getattr(type(own), name)
    return getattr(method, "unframed", method)(own, block, *args, **options)


def _first(block: Any, most: int) -> np.ndarray:
    return np.asarray(block[:most])


def _within(block: np.ndarray, limit: float) -> np.ndarray:
    return np.asarray(block[np.sqrt(squared_norms(block)) <= limit])


def told(message: str, category: type[Warning]) -> bool:
    """Whether this runs in a worker, whose warnings nobody sees: then whoever waits for it has been warned."""
    worker: Any = sys.modules.get("distributed.worker")
    try:
        if worker is None or worker.get_worker() is None:
            return False
    except ValueError:  # no worker here
        return False
    worker.warn(message, category)
    return True


_PLACE = re.compile(r"row (\d+) of block (\d+)")  # as `row_name` says it


def len_of(rows: Any) -> int:
    """Rows of an array, sparse ones too."""
    return int(rows.shape[0])


# ------------------------------------------------------------------ what functions give


def _zeros(far: Any) -> Any:
    """A row of zeros such as an array of Dask has them."""
    shape = (1, *(int(length) for length in far.shape[1:]))
    if scipy.sparse.issparse(far._meta):
        return scipy.sparse.csr_array(shape, dtype=far.dtype)
    return np.zeros(shape, far.dtype)


def _leaves(found: Any) -> Iterator[Any]:
    """The arrays in what a function gave: in tuples, lists and data classes."""
    if isinstance(found, np.ndarray) or scipy.sparse.issparse(found):
        yield found
    elif isinstance(found, (tuple, list)):
        for part in found:
            yield from _leaves(part)
    elif dataclasses.is_dataclass(found):
        for field in dataclasses.fields(found):
            yield from _leaves(getattr(found, field.name))


def _rebuilt(found: Any, arrays: Iterator[Any]) -> Any:
    """The same with other arrays in their places."""
    if isinstance(found, np.ndarray) or scipy.sparse.issparse(found):
        return next(arrays)
    if isinstance(found, (tuple, list)):
        return type(found)(_rebuilt(part, arrays) for part in found)
    if dataclasses.is_dataclass(found) and not isinstance(found, type):
        names = [field.name for field in dataclasses.fields(found)]
        return dataclasses.replace(found, **{name: _rebuilt(getattr(found, name), arrays) for name in names})
    return found


# ------------------------------------------------------------------ bags


def _of_bag(bag: Any, name: str) -> Any:
    """A bag of tables as an array of Dask: each partition is a block, of a size that nobody knows."""
    delayed, da = _dask("delayed").delayed, _dask("array")
    parts = bag.to_delayed()
    about = next(filter(None, (delayed(_about)(part).compute() for part in parts)), None)
    if about is None:
        raise ValueError(f"{name}: a bag in which there is no table that has rows")
    d, dtype = about
    block = delayed(_together)
    return da.concatenate(
        [da.from_delayed(block(part, d, dtype), (np.nan, d), dtype=dtype) for part in parts],
        allow_unknown_chunksizes=True,
    )


def _tables(part: Any) -> list[Any]:
    return [one for one in part if len(one)]


def _about(part: Any) -> tuple[int, np.dtype] | None:
    tables = _tables(part)
    rows = Rows(tables[:1]) if tables else None
    return None if rows is None else (rows.d, rows.dtype)


def _together(part: Any, d: int, dtype: np.dtype) -> np.ndarray:
    tables = _tables(part)
    if not tables:
        return np.empty((0, d), dtype)
    rows = Rows(tables)
    return rows.slice(0, rows.n).astype(dtype, copy=False)
