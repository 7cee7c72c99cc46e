"""A metric as named arrays and settings, for files of its own and of models that carry it along."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._checks import check_count
from .._files import check_tensor
from ._moments import Array, Moments
from ._spectrum import Spectrum


def to_tensors(moments: Moments, spectrum: Spectrum) -> dict[str, Array]:
    """Named arrays, from which `from_tensors` makes the same, to the bit."""
    tensors = {
        "shift": moments.shift,
        "sum": moments.total,
        "second": moments.second,
        "eigenvalues": spectrum.values,
        "shrunk_eigenvalues": spectrum.shrunk,
        "eigenvectors": spectrum.vectors,
    }
    return tensors if moments.norms is None else {**tensors, "norms": moments.norms}


def from_tensors(tensors: dict[str, Array], n: Any, centered: bool) -> tuple[Moments, Spectrum]:
    """Sums over n rows and their spectrum, once shapes and types have been checked."""
    d = len(tensors["shift"])
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(
        ("shift", "sum", "eigenvalues", "shrunk_eigenvalues"), (d,)
    )
    shapes |= dict.fromkeys(("second", "eigenvectors"), (d, d))
    for name, shape in (shapes | ({"norms": (d + 1,)} if "norms" in tensors else {})).items():
        check_tensor(tensors, name, shape, np.float64)
    check_count(n, "n_samples_seen")
    moments = Moments(
        int(n), centered, tensors["shift"], tensors["sum"], tensors["second"], tensors.get("norms")
    )
    return moments, Spectrum(tensors["eigenvalues"], tensors["shrunk_eigenvalues"], tensors["eigenvectors"])


def names_of_features(names: Any, d: int) -> Array | None:
    """Names of columns as an array, checked; None stays None."""
    if names is None:
        return None
    if len(names) != d or not all(isinstance(name, str) for name in names):
        raise ValueError(f"feature_names: expected {d} strings")
    return np.asarray(names, dtype=object)
