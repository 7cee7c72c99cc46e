"""Standard errors of eigenvalues, by the delta method."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .._config import one_blas_thread
from ._geometry import product
from ._moments import Array, Moments
from ._spectrum import Spectrum


class EigenvalueErrors(NamedTuple):
    """Standard errors of eigenvalues, in the order of ``eigenvalues_`` (largest variance first)."""

    second_moment: Array
    """Of ``eigenvalues_``, the eigenvalues of the second moment after shrinkage."""
    metric: Array
    """Of ``1 / eigenvalues_``, the eigenvalues of the metric."""


@one_blas_thread
def errors_of(
    X: Array, moments: Moments, spectrum: Spectrum, a: float, block_size: int, num_threads: int | None
) -> EigenvalueErrors:
    """Errors of the eigenvalues after shrinkage by `a`, from rows X; scaled to the number of rows in `moments`."""
    n, d = X.shape
    center = moments.mean if moments.centered else None
    rows = max(1, 4096 // block_size) * block_size
    total, square, weighted, count = np.zeros(d), np.zeros(d), np.zeros(d), 0.0
    for start in range(0, n, rows):
        z = product(X[start : start + rows], spectrum.vectors, center=center, num_threads=num_threads)
        g = z.astype(np.float64)
        g = g * g
        g = (1 - a) * g + a / d * g.sum(axis=1, keepdims=True)
        at = np.arange(0, len(g), block_size)
        sums = np.add.reduceat(g, at, axis=0)
        size = np.diff(np.append(at, len(g))).astype(np.float64)
        total += sums.sum(axis=0)
        square += (sums * sums).sum(axis=0)
        weighted += size @ sums
        count += float(size @ size)
    mean = total / n
    # sum over blocks of (sum of g - size mean)^2
    variance = np.clip(square - 2 * mean * weighted + mean * mean * count, 0, None)
    error = np.sqrt(variance) / n * math.sqrt(n / moments.n)
    return EigenvalueErrors(error, error / spectrum.shrunk**2)
