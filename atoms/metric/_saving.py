"""A metric as named arrays and settings, for files of its own and of models that carry it along."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._checks import check_count
from .._files import check_tensor
from ._moments import Array, Moments
from ._spectrum import Spectrum

_SPECTRUM = ("eigenvalues", "shrunk_eigenvalues", "eigenvectors")


def to_tensors(moments: Moments, spectrum: Spectrum | None) -> dict[str, Array]:
    """Named arrays, from which `from_tensors` makes the same, to the bit. No spectrum: too few rows for one."""
    tensors = {"shift": moments.shift, "sum": moments.total, "second": moments.second}
    if spectrum is not None:
        tensors |= dict(zip(_SPECTRUM, (spectrum.values, spectrum.shrunk, spectrum.vectors)))
    return tensors if moments.norms is None else {**tensors, "norms": moments.norms}


def from_tensors(tensors: dict[str, Array], n: Any, centered: bool) -> tuple[Moments, Spectrum | None]:
    """Sums over n rows and their spectrum, once shapes and types have been checked."""
    d = len(tensors["shift"])
    shapes: dict[str, tuple[int, ...]] = {"shift": (d,), "sum": (d,), "second": (d, d)}
    whole = any(name in tensors for name in _SPECTRUM)
    if whole:
        shapes |= dict(zip(_SPECTRUM, ((d,), (d,), (d, d))))
    for name, shape in (shapes | ({"norms": (d + 1,)} if "norms" in tensors else {})).items():
        check_tensor(tensors, name, shape, np.float64)
    check_count(n, "n_samples_seen")
    moments = Moments(
        int(n), centered, tensors["shift"], tensors["sum"], tensors["second"], tensors.get("norms")
    )
    return moments, Spectrum(*(tensors[name] for name in _SPECTRUM)) if whole else None


def names_of_features(names: Any, d: int) -> Array | None:
    """Names of columns as an array, checked; None stays None."""
    if names is None:
        return None
    if len(names) != d or not all(isinstance(name, str) for name in names):
        raise ValueError(f"feature_names: expected {d} strings")
    return np.asarray(names, dtype=object)
