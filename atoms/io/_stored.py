"""Matrices that stay in a file, for models larger than memory."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..sae._model import blocks

__all__ = ["StoredMatrix", "from_bfloat16"]

PART = 1 << 26  # bytes of float32 read at a time
TURNED = 128  # rows of a transposed matrix that are read together
NEAR = 8  # rows asked for that are closer together are read with those between


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """float32 of bfloat16 numbers given as uint16."""
    return np.asarray((bits.astype(np.uint32) << 16).view(np.float32))


def _stamp(file: Any) -> tuple[int, ...]:
    """By which a file that has been changed is told."""
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns, found.st_ino


class StoredMatrix:
    """A matrix in a file, whose rows become float32 when they are asked for.

    They are read, not mapped: where a file is cut meanwhile reading raises, and a map would end the process.

    Parameters
    ----------
    path : path
        The file.
    dtype : dtype
        Of its numbers; bfloat16 as uint16.
    bfloat16 : bool
        They are.
    offset : int
        Of the matrix in the file, in bytes.
    shape : tuple of int
        As it lies there, in C order.
    """

    ndim = 2
    dtype = np.dtype(np.float32)

    def __init__(self, path: Path, dtype: Any, bfloat16: bool, offset: int, shape: tuple[int, ...]) -> None:
        self._path = path.absolute()  # wherever the process goes
        self._stored, self._bfloat16 = np.dtype(dtype), bfloat16
        self._offset, self._shape, self._transposed = offset, shape, False
        with open(path, "rb") as file:
            self._stamp = _stamp(file)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape[::-1] if self._transposed else self._shape

    @property
    def size(self) -> int:
        return self._shape[0] * self._shape[1]

    @property
    def T(self) -> StoredMatrix:
        other = copy.copy(self)
        other._transposed = not self._transposed
        return other

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"StoredMatrix({self.shape[0]} x {self.shape[1]}, in {self._path})"

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start to stop, float32 in C order.

        OSError where the file is gone, ValueError where it is no longer the one that was opened.
        """
        height, width = self._shape
        n = stop - start
        with open(self._path, "rb") as file:
            if _stamp(file) != self._stamp:
                raise ValueError(f"{self._path}: has been changed since it was opened; load the model again")
            if not self._transposed:
                raw = self._read(file, start * width, n * width).reshape(n, width)
                return self._widened(raw)
            out = np.empty((n, height), np.float32)
            for i in range(0, height, TURNED):  # what is turned at a time stays in a cache
                raw = np.empty((min(TURNED, height - i), n), self._stored)
                for j in range(len(raw)):
                    raw[j] = self._read(file, (i + j) * width + start, n)
                out[:, i : i + len(raw)] = self._widened(raw).T
        return out

    def _widened(self, raw: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # the finished weights are checked
            return np.ascontiguousarray(from_bfloat16(raw) if self._bfloat16 else raw, np.float32)

    def _read(self, file: Any, start: int, n: int) -> np.ndarray:
        file.seek(self._offset + start * self._stored.itemsize)
        found = np.fromfile(file, self._stored, n)
        if len(found) != n:  # since the stamp was looked at
            raise ValueError(f"{self._path}: is cut short; load the model again")
        return found

    def take(self, index: np.ndarray) -> np.ndarray:
        """Rows of these numbers, which ascend."""
        if not len(index):
            return np.empty((0, self.shape[1]), np.float32)
        runs = np.split(index, np.flatnonzero(np.diff(index) > NEAR) + 1)
        return np.concatenate([self.rows(run[0], run[-1] + 1)[run - run[0]] for run in runs])

    def parts(self) -> Iterator[slice]:
        """Slices that cut the rows into parts to be read one after the other."""
        return blocks(len(self), max(1, PART // (4 * self.shape[1])))

    def finite(self) -> bool:
        return all(bool(np.isfinite(self[part]).all()) for part in self.parts())

    def times(self, vector: np.ndarray) -> np.ndarray:
        """Its product with a vector, in float64."""
        return np.concatenate([self[part] @ vector.astype(np.float64) for part in self.parts()])

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, (int, np.integer)) and -len(self) <= key < len(self):
            row = int(key) % len(self)
            return self.rows(row, row + 1)[0]
        if isinstance(key, slice) and key.step in (None, 1):
            start, stop, _ = key.indices(len(self))
            return self.rows(start, max(start, stop))
        return np.asarray(self)[key]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("a matrix that is stored in a file becomes an array only by a copy")
        return self.rows(0, len(self)).astype(np.float32 if dtype is None else dtype, copy=False)
