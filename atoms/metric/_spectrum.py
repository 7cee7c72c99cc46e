"""From a second moment to its inverse: shrinkage, eigenvalues and powers."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .._config import one_blas_thread
from ._moments import Array, Moments

_SINGULAR = (
    "the {kind} of n={n} samples in d={d} dimensions is singular and has no inverse. Fit at least "
    "{need} samples, better 10 d = {ten}, or pass shrinkage='oas', 'ledoit_wolf' or a number in (0, 1]."
)


class Spectrum(NamedTuple):
    """Eigenvalues, descending, and eigenvectors of a second moment."""

    values: Array  #: (d,) before shrinkage
    shrunk: Array  #: (d,) after it
    vectors: Array  #: (d, d), columns

    @one_blas_thread
    def power(self, half: float) -> Array:
        """The second moment after shrinkage, to the power ``2 half``: a product with its own transpose, symmetric."""
        root = self.vectors * self.shrunk**half
        return root @ root.T

    def effective_rank(self) -> float:
        """Exponential of the entropy of the eigenvalues as shares of their sum."""
        share = np.clip(self.values, 0, None)
        share = share[share > 0] / share.sum()
        return float(np.exp(-(share * np.log(share)).sum()))


def check_shrinkage(a: Any) -> None:
    """None, a number in [0, 1], or the name of an estimate."""
    if isinstance(a, str):
        good = a in ("ledoit_wolf", "oas")
    else:
        good = a is None or (isinstance(a, (int, float, np.number)) and bool(0 <= a <= 1))
    if not good:
        raise ValueError(f"shrinkage: expected None, a number in [0, 1], 'ledoit_wolf' or 'oas', got {a!r}")


def shrinkage_of(a: Any, moments: Moments, C: Array) -> float:
    """The share of the identity in the second moment C: a number as given, or estimated by name."""
    if a is None:
        return 0.0
    if not isinstance(a, str):
        return float(a)
    n, d = moments.n, len(C)
    size, m = float((C * C).sum()), float(np.trace(C)) / d
    if a == "oas":
        p = size / d**2
        denominator = (n + 1) * (p - m * m / d)
        return 1.0 if denominator <= 0 else min(1.0, (p + m * m) / denominator)
    norms = (moments.about(moments.mean) if moments.centered else moments).norms
    if norms is None:
        raise ValueError(
            "shrinkage='ledoit_wolf' needs sums of fourth powers that were not gathered: set it "
            "before fit, and in every part that is merged"
        )
    excess = max(0.0, size - d * m * m)
    noise = (norms[-1] / n - size) / n
    return 0.0 if excess == 0 else float(min(max(noise, 0.0), excess) / excess)


@one_blas_thread
def spectrum_of(a: float, moments: Moments, C: Array) -> Spectrum:
    """Eigenvalues and eigenvectors of C; ValueError where it has no inverse after shrinkage by `a`."""
    n, d, centered = moments.n, len(C), moments.centered
    kind = "covariance" if centered else "second moment"
    if a == 0 and n - centered < d:
        raise ValueError(_SINGULAR.format(kind=kind, n=n, d=d, need=d + centered, ten=10 * d))
    values, vectors = np.linalg.eigh(C)
    values, vectors = values[::-1].copy(), np.ascontiguousarray(vectors[:, ::-1])
    shrunk = (1 - a) * values + a * values.sum() / d
    if not shrunk[-1] > d * np.finfo(float).eps * shrunk[0]:
        rank = int((values > d * np.finfo(float).eps * values[0]).sum())
        raise ValueError(
            _SINGULAR.format(kind=kind, n=n, d=d, need=d + centered, ten=10 * d)
            + f" Its numerical rank is {rank}: constant, repeated or linearly dependent features"
            " stay singular however many samples there are."
        )
    return Spectrum(values, shrunk, vectors)
