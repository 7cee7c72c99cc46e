"""Rows of two sides, numbered alike: what a transcoder reads, and what it rebuilds."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .beside import SideBySide, in_memory
from .numbered import BlockRows, BlockSampler, Rows, RowSampler
from .streams import StreamRows, StreamSampler

_CHUNK = 1024  # rows of two streams that are laid side by side at a time


@dataclasses.dataclass(frozen=True)
class Pair:
    """Some rows of both sides."""

    x: np.ndarray
    y: np.ndarray

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Any) -> Pair:
        return Pair(self.x[index], self.y[index])


class PairedRows:
    """What training asks of `Rows`, for rows x and as many rows y.

    Where both are in memory nothing is copied. Else the two lie side by side in one buffer, so that the order is that of
    one source or of one stream.
    """

    array = widths = None

    def __init__(self, x: Rows | BlockRows | StreamRows, y: Rows | BlockRows | StreamRows) -> None:
        if x.n is not None and y.n is not None and x.n != y.n:
            raise ValueError(f"target: expected a row for each of the {x.n} rows of X, got {y.n}")
        if x.widths is not None or y.widths is not None:
            raise ValueError(
                "target: a crosscoder rebuilds the sites that it reads; leave target out, or pass arrays in the place of Sites"
            )
        self.x, self.y = x, y
        self.n: int | None = x.n if x.n is not None and y.n is not None else None
        self.d, self.feature_names, self.shards = x.d, x.feature_names, x.shards

    @classmethod
    def of(cls, part: Pair) -> PairedRows:
        """Of rows in memory."""
        return cls(Rows(part.x), Rows(part.y, "target"))

    def identity(self) -> dict[str, Any]:
        """As that of `Rows`, and y's."""
        return {**self.x.identity(), "target": self.y.identity()}

    def blocks(self, rows: int) -> Iterator[Pair]:
        """All rows once, in their order, so many at a time."""
        for x, y in itertools.zip_longest(self.x.blocks(rows), self.y.blocks(rows)):
            if x is None or y is None or len(x) != len(y):
                fewer = "fewer" if y is None or (x is not None and len(y) < len(x)) else "more"
                raise ValueError(f"target: gives {fewer} rows than X; each row of X needs one")
            yield Pair(x, y)

    def take(self, index: np.ndarray) -> Pair:
        """Rows by number, where both sides have them in memory."""
        assert isinstance(self.x, Rows) and isinstance(self.y, Rows)
        return Pair(self.x.take(index), self.y.take(index))

    def sampler(self, batch_size: int, seed: Sequence[int], batches: int | None = None) -> Any:
        """Batches of these rows, as those of `Rows`."""
        if in_memory(self.x) and in_memory(self.y):
            return _InMemory(self, batch_size, seed)
        if self.n is None:
            joint: Any = StreamRows(self._chunks if self._again() else self._chunks())
        else:
            assert not isinstance(self.x, StreamRows) and not isinstance(self.y, StreamRows)
            joint = BlockRows(SideBySide([self.x, self.y], ["X", "target"]))
        return _Joint(joint.sampler(batch_size, seed, batches), self.d)

    def _again(self) -> bool:
        """Whether there is a second pass over both."""
        return all(getattr(side, "again", True) for side in (self.x, self.y))

    def _chunks(self) -> Iterator[np.ndarray]:
        return (np.hstack([part.x, part.y]) for part in self.blocks(_CHUNK))


def read_side(rows: Any) -> Any:
    """The rows that are read, of two sides or of one."""
    return rows.x if isinstance(rows, PairedRows) else rows


class _InMemory(RowSampler):
    """Batches of rows that are in memory on both sides."""

    def __init__(self, rows: PairedRows, batch_size: int, seed: Sequence[int]) -> None:
        assert isinstance(rows.x, Rows) and isinstance(rows.y, Rows)
        super().__init__(rows.x, batch_size, seed)
        self.both, self.targets = rows, rows.y

    def first(self) -> Any:
        return self.both

    def draw(self, most: int = 1) -> tuple[Any, np.ndarray | None]:
        index = self.next(most)
        (x, i), (y, j) = self.rows.refer(index), self.targets.refer(index)
        if i is not None and j is not None and np.array_equal(i, j):
            return Pair(x, y), i
        return Pair(x if i is None else x[i], y if j is None else y[j]), None

    @property
    def fixed(self) -> bool:
        return super().fixed and len(self.targets.shards) == 1


class _Joint:
    """Batches of rows that lie side by side, d columns of x first."""

    def __init__(self, inner: BlockSampler | StreamSampler, d: int) -> None:
        self._inner, self._d, self.batch_size = inner, d, inner.batch_size
        self.skip, self.ending, self.close = inner.skip, inner.ending, inner.close

    def _split(self, rows: np.ndarray) -> Pair:
        return Pair(rows[:, : self._d], rows[:, self._d :])

    def first(self) -> PairedRows:
        rows = self._inner.first()
        return PairedRows.of(self._split(rows.slice(0, rows.n)))

    def draw(self, most: int = 1) -> tuple[Pair, np.ndarray | None]:
        rows, index = self._inner.draw(most)
        return self._split(rows), index

    @property
    def fixed(self) -> bool:
        return self._inner.fixed
