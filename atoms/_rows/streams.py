"""Rows that come batch by batch, and how training draws from them."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .._arrays import chunk_of, regrouped
from .._checks import native
from .numbered import PASS_ROWS, Rows, RowSampler, identity


class StreamRows:
    """Rows that come in batches, nobody knows how many: of a generator, a DataLoader, a function that makes one.

    A generator gives its rows once. What can be iterated again is, for another pass.
    """

    n = array = feature_names = widths = None

    def __init__(self, X: Any, name: str = "X") -> None:
        self._source, self._name = X, name
        self._begun = self._iterator()
        first = next(self._begun, None)
        if first is None:
            raise ValueError(
                f"{name}: a {type(X).__name__} that gives no rows; a generator gives them once: make a new one, or "
                "pass the function that makes it"
            )
        self._first: np.ndarray | None = first
        self.d, self.dtype = first.shape[1], first.dtype
        self.shards = [np.zeros((1, self.d), self.dtype)]  # checks look at nothing but shape and dtype
        self._digest = hashlib.sha256(np.ascontiguousarray(first[:256]).tobytes()).hexdigest()
        again = callable(X) or iter(X) is not X
        self.again = again  #: whether there is a second pass

    def _iterator(self) -> Iterator[np.ndarray]:
        X: Any = self._source() if callable(self._source) else self._source
        at = 0
        for part in X:
            rows = native(chunk_of(part, self._name), self._name)
            if not len(rows):
                continue
            if at and (rows.shape[1] != self.d or rows.dtype != self.dtype):
                raise ValueError(
                    f"{self._name}: the batch from row {at} on has {rows.shape[1]} columns of {rows.dtype}, those "
                    f"before {self.d} of {self.dtype}"
                )
            at += len(rows)
            yield rows

    def chunks(self) -> Iterator[np.ndarray]:
        """The batches; a second time only where there is a second pass."""
        first, self._first = self._first, None
        if first is not None:
            return itertools.chain([first], self._begun)
        if self.again:
            return self._iterator()
        raise ValueError(
            f"{self._name}: a {type(self._source).__name__} gives its rows once; pass the function that makes it"
        )

    def blocks(self, rows: int = PASS_ROWS) -> Iterator[np.ndarray]:
        """All rows once, in their order, so many at a time."""
        return regrouped(self.chunks(), rows)

    def identity(self) -> dict[str, Any]:
        """As that of `Rows`, by the first batch alone."""
        return identity(None, self.d, self.dtype, self._digest)

    def sampler(self, batch_size: int, seed: Sequence[int], batches: int | None = None) -> StreamSampler:
        """Batches of these rows, shuffled through a buffer."""
        return StreamSampler(self, batch_size, seed, batches)


class StreamSampler:
    """Batches of a stream, shuffled through a buffer that is filled again whenever half of it has been used.

    Each pass over the stream visits each row once. Where all rows fit the buffer, they are an array in memory, and
    trained from like one, to the bit. Else, where there is no second pass, `ending` says so as soon as it is known.
    The stream is read in the thread that draws, and no further than `batches` of them need.
    """

    BUFFER_ROWS, BUFFER_BYTES = 65536, 1 << 28

    def __init__(
        self, rows: StreamRows, batch_size: int, seed: Sequence[int], batches: int | None = None
    ) -> None:
        self.rows, self.batch_size, self.seed = rows, batch_size, list(seed)
        self._most = np.inf if batches is None else batches * batch_size  # rows that will be drawn
        width = rows.d * rows.dtype.itemsize
        self._capacity = max(4 * batch_size, min(self.BUFFER_ROWS, self.BUFFER_BYTES // width))
        self._chunks: Iterator[np.ndarray] = iter(())
        self._rest = self._buffer = np.empty((0, rows.d), rows.dtype)
        self._order = np.empty(0, np.int64)  # slots that hold rows, in the order in which they are drawn
        self._at = self._drawn = self._fills = self._passed = 0
        self._open = False
        self._in_memory: RowSampler | None = None
        self._end: tuple[int, int] | None = None

    # -------------------------------------------------------------- filling

    def _fill(self, slots: np.ndarray) -> int:
        """New rows into these slots; how many there were."""
        at = 0
        while at < len(slots) and self._open:
            if not len(self._rest):
                self._rest = next(self._chunks, self._rest)
                if not len(self._rest) and not self._begin_again():
                    break
            part = self._rest[: len(slots) - at]
            self._buffer[slots[at : at + len(part)]] = part
            self._rest, at = self._rest[len(part) :], at + len(part)
            self._passed += len(part)
        return at

    def _begin_again(self) -> bool:
        """Another pass, where there is one and the first did not fit the buffer."""
        self._open = self.rows.again and self._fills > 0 and self._passed > 0
        if self._open:
            self._chunks, self._passed = self.rows.chunks(), 0
        return self._open

    def _start(self) -> None:
        if len(self._buffer):
            return
        self._chunks, self._open = self.rows.chunks(), True
        self._buffer = np.empty((self._capacity, self.rows.d), self.rows.dtype)
        n = self._fill(np.arange(self._capacity))
        if n == self._capacity and not len(self._rest):  # whether there are more
            self._rest = next(self._chunks, self._rest)
            self._open = len(self._rest) > 0
        if n < 2:
            raise ValueError(f"X: expected at least 2 samples, got n_samples = {n}")
        if self._open:
            self._permute(np.arange(n))
        else:
            self._in_memory = RowSampler(Rows(self._buffer[:n]), self.batch_size, self.seed)

    def _permute(self, slots: np.ndarray) -> None:
        self._order = np.random.default_rng([*self.seed, 5, self._fills]).permutation(slots)
        self._at, self._fills = 0, self._fills + 1

    def _refill(self) -> None:
        used, left = self._order[: self._at], self._order[self._at :]
        n = self._fill(used)
        self._permute(np.concatenate([left, used[:n]]))
        if not self._open:
            self._end = self._drawn, self._drawn + len(self._order) // self.batch_size

    # -------------------------------------------------------------- drawing

    def first(self) -> Rows:
        """Rows to begin from: those that fill the buffer first."""
        self._start()
        return Rows(self._buffer if self._in_memory is None else self._in_memory.rows.shards[0])

    def skip(self, batches: int) -> None:
        """As if so many batches had been drawn: the stream is read so far."""
        for _ in range(batches):
            if self.ending() is not None and self._drawn >= self.ending()[1]:  # type: ignore[index]
                return
            self.draw()

    @property
    def fixed(self) -> bool:
        """As that of `RowSampler`."""
        return self._in_memory is not None and self._in_memory.fixed

    def ending(self) -> tuple[int, int] | None:
        """Where the stream has ended for good: batches that had been drawn when that was seen, and those that there
        are in all."""
        if not len(self._buffer):
            self._start()
        if self._in_memory is None and self._open and self._at > self._capacity // 2:
            if self._most - self._drawn * self.batch_size > len(self._order) - self._at:
                self._refill()
        return self._end

    def draw(self, most: int = 1) -> tuple[np.ndarray, np.ndarray | None]:
        """An array and the numbers of its rows that are meant, valid until the next draw: the next batch, or whole ones,
        at most so many, between which the buffer is not filled again."""
        self.ending()
        if self._in_memory is not None:
            return self._in_memory.draw(most)
        last = self._capacity // 2 if self._open else len(self._order) - self.batch_size
        count = max(1, min(most, (last - self._at) // self.batch_size + 1))
        index = self._order[self._at : self._at + count * self.batch_size]
        self._drawn += count
        self._at += len(index)
        return self._buffer, index

    def close(self) -> None:
        """Let the buffer go."""
        self._buffer = self._buffer[:0]
