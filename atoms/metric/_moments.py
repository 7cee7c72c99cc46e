"""Sums over rows of activations: all that a metric is made from, and all that is added when more rows come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _core
from .._checks import why_not_finite
from .._config import context, one_blas_thread

Array = npt.NDArray[Any]

SHIFT_ROWS = 1024  # rows whose mean is subtracted before centred moments are summed


@dataclass(frozen=True)
class Moments:
    """Sums over n rows y = x - shift. Immutable: adding rows makes another one."""

    n: int
    centered: bool  #: whether the mean is to be removed; else the shift is zero
    shift: Array  #: (d,)
    total: Array  #: (d,) sum y
    second: Array  #: (d, d) sum y y'
    norms: Array | None  #: (d + 1,) [sum |y|^2 y, sum |y|^4], for Ledoit and Wolf's shrinkage alone

    @classmethod
    def none(cls, shift: Array, centered: bool, norms: bool) -> Moments:
        """Those of no rows, about that shift."""
        d = len(shift)
        return cls(0, centered, shift, np.zeros(d), np.zeros((d, d)), np.zeros(d + 1) if norms else None)

    @property
    def mean(self) -> Array:
        """Of the rows x."""
        mean: Array = self.shift + self.total / self.n
        return mean

    def second_moment(self) -> Array:
        """Second moment, or covariance where centred, divided by n."""
        delta = self.total / self.n
        second: Array = self.second / self.n
        return second - np.outer(delta, delta) if self.centered else second

    def plus(self, other: Moments) -> Moments:
        """The sums over the rows of both."""
        other = other.about(self.shift)
        norms = None if other.norms is None or self.norms is None else self.norms + other.norms
        total, second = self.total + other.total, self.second + other.second
        return Moments(self.n + other.n, self.centered, self.shift, total, second, norms)

    @one_blas_thread
    def about(self, shift: Array) -> Moments:
        """The same rows about another shift."""
        n, c = self.n, self.shift - shift
        if not c.any():
            return self
        total = self.total + n * c
        cross = np.outer(self.total, c)
        second = self.second + cross + cross.T + n * np.outer(c, c)
        norms = None
        if self.norms is not None:
            # |y + c|^2 = q + 2 t + e with q = |y|^2, t = y.c, e = |c|^2, summed over the rows
            qy, qq = self.norms[:-1], self.norms[-1]
            q, t, e = np.trace(self.second), self.total @ c, c @ c
            ty = self.second @ c
            norms = np.append(
                qy + 2 * ty + e * self.total + (q + 2 * t + n * e) * c,
                qq + 4 * (ty @ c) + n * e * e + 4 * (qy @ c) + 2 * q * e + 4 * t * e,
            )
        return Moments(n, self.centered, shift, total, second, norms)


def shift_of(first: Array) -> Array:
    """What is subtracted from all rows before centred moments are summed, from the first `SHIFT_ROWS`."""
    shift: Array = np.asarray(first, dtype=np.float64).mean(axis=0)
    return shift


def moments_of(
    X: Array,
    *,
    centered: bool,
    norms: bool,
    seen: Moments | None = None,
    first: int = 0,
    num_threads: int | None = None,
) -> Moments:
    """The sums over the rows of X, and over those of `seen` (about its shift, centred if it is).

    Errors count rows from `first` on.
    """
    n, d = X.shape
    if seen is not None:
        centered, shift = seen.centered, seen.shift
    else:
        shift = shift_of(X[:SHIFT_ROWS]) if centered else np.zeros(d)
    total, second = np.empty(d), np.empty((d, d))
    try:
        _core.moments(context(num_threads), X, shift if centered else None, total, second)
    except ValueError as error:
        raise why_not_finite(X, "X", error, first) from None
    if not np.isfinite(second.diagonal()).all():
        raise why_not_finite(X, "X", None, first)
    fourth = _norm_sums(X, shift) if norms else None
    if seen is None:
        return Moments(n, centered, shift, total, second, fourth)
    second += seen.second  # in place: a d x d matrix may be large
    fourth = None if fourth is None or seen.norms is None else seen.norms + fourth
    return Moments(seen.n + n, centered, shift, seen.total + total, second, fourth)


@one_blas_thread
def _norm_sums(X: Array, shift: Array) -> Array:
    """[sum |y|^2 y, sum |y|^4] over rows y = x - shift, in float64, block by block."""
    total = np.zeros(X.shape[1] + 1)
    for start in range(0, X.shape[0], 1024):
        y = np.asarray(X[start : start + 1024], dtype=np.float64) - shift
        q = np.einsum("ij,ij->i", y, y)
        total[:-1] += q @ y
        total[-1] += q @ q
    return total
