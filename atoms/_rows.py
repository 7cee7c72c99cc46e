"""Rows of activations, wherever they are: an array, a memory map, or a list of either (shards)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ._estimator import check_array


def is_shards(X: Any) -> bool:
    """A list of arrays, rather than one array or a list of numbers."""
    return isinstance(X, (list, tuple)) and len(X) > 0 and hasattr(X[0], "shape")


class Rows:
    """Read-only access by row number to one array or to several taken one after another.

    Nothing is copied but the rows asked for, so shards may be larger than memory.
    """

    def __init__(self, X: Any, name: str = "X") -> None:
        shards = list(X) if is_shards(X) else [X]
        self.shards: list[np.ndarray] = [
            check_array(s, f"{name}[{i}]" if len(shards) > 1 else name) for i, s in enumerate(shards)
        ]
        widths = {s.shape[1] for s in self.shards}
        if len(widths) > 1:
            raise ValueError(f"{name}: the shards have different numbers of columns: {sorted(widths)}")
        self.starts = np.cumsum([0] + [len(s) for s in self.shards])
        self.n = int(self.starts[-1])
        self.d = self.shards[0].shape[1]

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
        """An array and the row numbers in it that are meant; None: all of it. One shard is not copied."""
        if len(self.shards) == 1:
            return self.shards[0], index
        return self.take(index), None


class Sampler:
    """Batches of row numbers by a seeded permutation, a new one each epoch.

    The state is two integers, so a resumed run draws what the uninterrupted one would have drawn.
    A batch that meets the end of an epoch goes on with the next permutation.
    """

    def __init__(self, n: int, batch_size: int, seed: Sequence[int], epoch: int = 0, position: int = 0) -> None:
        self.n, self.batch_size, self.seed = n, batch_size, list(seed)
        self.epoch, self.position = epoch, position
        self._order = self._permutation()

    def _permutation(self) -> np.ndarray:
        return np.random.default_rng([*self.seed, 1, self.epoch]).permutation(self.n)

    def skip(self, batches: int) -> None:
        """As if so many batches had been drawn."""
        self.epoch, self.position = divmod(self.epoch * self.n + self.position + batches * self.batch_size, self.n)
        self._order = self._permutation()

    def next(self) -> np.ndarray:
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
