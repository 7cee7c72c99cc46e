"""What the package's estimators share: scikit-learn's habits without scikit-learn.

scikit-learn is not needed at run time. Its ``clone``, ``Pipeline``, ``GridSearchCV`` and
``check_estimator`` work with these estimators all the same, because it asks for methods, not for
a base class; it is only imported when it is already there and asks a question.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

__all__ = ["Estimator", "NotFittedError", "check_array", "first_nonfinite_row", "nonfinite_error"]


class NotFittedError(ValueError, AttributeError):
    """An estimator was used before it was fitted."""


def _not_fitted_error() -> type[Exception]:
    """scikit-learn's class where scikit-learn is loaded, so that its own code catches it."""
    module = sys.modules.get("sklearn.exceptions")
    return NotFittedError if module is None else module.NotFittedError


# ------------------------------------------------------------------ checking of arrays


def _is_float(dtype: np.dtype) -> bool:
    return dtype in (np.float32, np.float64, np.float16) or dtype.name == "bfloat16"


def check_array(X: Any, name: str = "X", *, ndim: int = 2, min_rows: int = 1) -> np.ndarray:
    """An array of activations as the core takes it, without a copy where it already is one.

    float32, float64, float16 and bfloat16 arrays, memory maps and any strides pass untouched;
    integers, booleans, lists, data frames and objects that hold numbers become float64.
    Finiteness is not looked at here: the core meets it while it reads.

    Parameters
    ----------
    X : array-like
    name : str
        How errors call it.
    ndim : int
        Dimensions it must have.
    min_rows : int
        Rows it must have.

    Raises
    ------
    TypeError
        For sparse matrices and objects that are not numbers.
    ValueError
        For complex numbers and text, another number of dimensions, no rows or no features.
    """
    if hasattr(X, "toarray") and hasattr(X, "nnz"):
        raise TypeError(
            f"{name}: expected a dense array, got a sparse {type(X).__name__}. Sparse data is not "
            f"supported; pass {name}.toarray()"
        )
    a = np.asarray(X)
    if a.dtype.kind == "c":
        raise ValueError(f"{name}: Complex data not supported, got dtype {a.dtype}; pass its real part")
    if not _is_float(a.dtype):
        if a.dtype.kind not in "biufO":
            raise ValueError(f"{name}: expected numbers, got dtype {a.dtype}")
        try:
            a = a.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: argument must be numbers, got dtype {a.dtype}: {error}") from None
    if a.ndim != ndim:
        hint = ""
        if ndim == 2:
            hint = (
                f" Reshape your data: {name}.reshape(1, -1) for one sample,"
                f" {name}.reshape(-1, {name}.shape[-1]) to make every leading index a sample."
            )
        raise ValueError(f"{name}: expected a {ndim}-dimensional array, got {a.ndim} dimension(s).{hint}")
    if ndim == 2 and a.shape[0] < min_rows:
        raise ValueError(
            f"{name}: found array with {a.shape[0]} sample(s) (shape={a.shape}) while a minimum of "
            f"{min_rows} is required."
        )
    if ndim == 2 and a.shape[1] < 1:
        raise ValueError(
            f"{name}: found array with 0 feature(s) (shape={a.shape}) while a minimum of 1 is required."
        )
    item = a.dtype.itemsize
    if not a.flags.aligned or not a.dtype.isnative or any(s % item for s in a.strides):
        a = a.astype(a.dtype.newbyteorder("="), order="C", copy=True)
    return a


def atoms_of(D: Any) -> Any:
    """A dictionary's rows: of a model (ours, a control, one that `atoms.load` read) its decoder's."""
    return getattr(D, "W_dec", D)


def first_nonfinite_row(X: np.ndarray, block: int = 4096) -> int:
    """Index of the first row that holds NaN or infinity, -1 if there is none. Block by block."""
    for start in range(0, X.shape[0], block):
        part = X[start : start + block]
        if part.dtype.name == "bfloat16":
            part = part.astype(np.float32)
        bad = ~np.isfinite(part).all(axis=tuple(range(1, part.ndim)))
        if bad.any():
            return start + int(np.argmax(bad))
    return -1


def nonfinite_error(X: np.ndarray, name: str, row: int | None = None) -> ValueError:
    """The error for NaN or infinity in `X`, which names the first row that has one."""
    row = first_nonfinite_row(X) if row is None else row
    return ValueError(
        f"{name}: contains NaN or infinity, first in row {row}; drop such rows, for example "
        f"{name}[numpy.isfinite({name}).all(axis=1)]"
    )


# ----------------------------------------------------------------------------- mixin


class Estimator:
    """Parameters, representation and checks, as scikit-learn's estimators have them.

    A subclass stores each constructor argument under its own name, unchanged, and checks it in
    ``fit``. ``_check_X`` validates input and sets or checks ``n_features_in_`` and
    ``feature_names_in_``; ``_check_fitted`` raises where ``fit`` has not run.
    """

    @classmethod
    def _parameter_names(cls) -> list[str]:
        signature = inspect.signature(cls.__init__)
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        return sorted(p.name for p in signature.parameters.values() if p.name != "self" and p.kind in kinds)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Constructor arguments by name; with `deep`, those of nested estimators too."""
        params: dict[str, Any] = {}
        for name in self._parameter_names():
            value = getattr(self, name)
            if deep and hasattr(value, "get_params") and not isinstance(value, type):
                params.update({f"{name}__{key}": v for key, v in value.get_params().items()})
            params[name] = value
        return params

    def set_params(self, **params: Any) -> Estimator:
        """Set constructor arguments, ``nested__argument`` for those of nested estimators."""
        names = self._parameter_names()
        nested: dict[str, dict[str, Any]] = {}
        for key, value in params.items():
            name, _, rest = key.partition("__")
            if name not in names:
                raise ValueError(
                    f"Invalid parameter {name!r} for estimator {self}. Valid parameters are: {names!r}."
                )
            if rest:
                nested.setdefault(name, {})[rest] = value
            else:
                setattr(self, name, value)
        for name, rest_params in nested.items():
            getattr(self, name).set_params(**rest_params)
        return self

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self).__init__).parameters
        shown = []
        for name in self._parameter_names():
            value, default = getattr(self, name), defaults[name].default
            if value is not default and repr(value) != repr(default):
                shown.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def __sklearn_is_fitted__(self) -> bool:
        return "n_features_in_" in vars(self)

    def __sklearn_tags__(self) -> Any:
        # asked only by scikit-learn, which is therefore there
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type="transformer",
            target_tags=TargetTags(required=False),
            transformer_tags=TransformerTags(preserves_dtype=["float32"]),
            input_tags=InputTags(two_d_array=True, sparse=False, allow_nan=False),
        )

    def _check_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            raise _not_fitted_error()(
                f"This {type(self).__name__} instance is not fitted yet. Call 'fit' with activations "
                f"before using it."
            )

    def _check_X(self, X: Any, *, reset: bool, name: str = "X", min_rows: int = 1) -> np.ndarray:
        """`X` as a checked array; its features are remembered (`reset`) or compared."""
        names = _feature_names(X)
        a = check_array(X, name, min_rows=min_rows)
        if reset:
            self.n_features_in_ = a.shape[1]
            if names is not None:
                self.feature_names_in_ = names
            else:
                vars(self).pop("feature_names_in_", None)
            return a
        self._check_feature_names(names)
        if a.shape[1] != self.n_features_in_:
            raise ValueError(
                f"{name} has {a.shape[1]} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input."
            )
        return a

    def _check_feature_names(self, names: np.ndarray | None) -> None:
        """A data frame's columns must be those seen in fit, in that order."""
        fitted = getattr(self, "feature_names_in_", None)
        if fitted is None and names is None:
            return
        if fitted is None or names is None:
            fault = (
                "X has feature names, but {} was fitted without feature names"
                if fitted is None
                else "X does not have valid feature names, but {} was fitted with feature names"
            )
            warnings.warn(fault.format(type(self).__name__), UserWarning, stacklevel=4)
            return
        if len(names) == len(fitted) and (names == fitted).all():
            return
        message = "The feature names should match those that were passed during fit.\n"
        unseen, missing = sorted(set(names) - set(fitted)), sorted(set(fitted) - set(names))
        for title, group in (
            ("Feature names unseen at fit time:", unseen),
            ("Feature names seen at fit time, yet now missing:", missing),
        ):
            if group:
                message += (
                    title + "\n" + "".join(f"- {g}\n" for g in group[:5]) + ("- ...\n" if group[5:] else "")
                )
        if not unseen and not missing:
            message += "Feature names must be in the same order as they were in fit.\n"
        raise ValueError(message)


def _feature_names(X: Any) -> np.ndarray | None:
    """Column names of a data frame whose columns are all strings, else None."""
    columns = getattr(X, "columns", None)
    if columns is None or (not hasattr(X, "__array__") and not hasattr(X, "__dataframe__")):
        return None
    names = np.asarray(columns, dtype=object)
    return names if len(names) and all(isinstance(c, str) for c in names) else None


# ----------------------------------------------------------------------------- files


def save_tensors(path: Any, kind: str, tensors: dict[str, np.ndarray], metadata: dict[str, Any]) -> None:
    """Write a safetensors file beside `path` and rename it there: `path` is never half written."""
    import json
    import os
    import tempfile

    from safetensors.numpy import save

    path = os.fspath(path)
    text = {"format": "atoms", "kind": kind, "parameters": json.dumps(metadata)}
    data = save({k: np.ascontiguousarray(v) for k, v in tensors.items()}, metadata=text)
    handle, temporary = tempfile.mkstemp(
        dir=os.path.dirname(path) or ".", prefix=os.path.basename(path) + "."
    )
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def load_tensors(path: Any, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and metadata of a file written by `save_tensors` for the same `kind`: finite numbers only."""
    import json
    import os

    from safetensors import SafetensorError, safe_open

    path = os.fspath(path)
    try:
        with safe_open(path, framework="numpy") as file:
            text = file.metadata() or {}
            if text.get("format") != "atoms" or text.get("kind") != kind:
                raise ValueError(
                    f"{path}: expected a file saved by atoms.{kind}, found "
                    f"{text.get('kind') or 'a safetensors file without its mark'}"
                )
            with reading(path, kind):
                tensors = {name: file.get_tensor(name) for name in file.keys()}
                for name, a in tensors.items():
                    if not np.isfinite(a).all():
                        raise ValueError(f"{name} contains NaN or infinity")
                metadata = json.loads(text["parameters"])
                if not isinstance(metadata, dict):
                    raise ValueError(f"its parameters are of type {type(metadata).__name__}")
                return tensors, metadata
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file or cut short: {error}") from None


@contextlib.contextmanager
def reading(path: Any, kind: str) -> Iterator[None]:
    """Whatever a file's contents lead to inside becomes a ValueError that names the file.

    A file is anybody's: settings may be missing or of any type, and what is made of them raises in its own
    words, which stay as the cause.
    """
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError) as error:
        fault = f"no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path}: not what atoms.{kind} writes, or damaged: {fault}") from error


def check_tensor(tensors: dict[str, np.ndarray], name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """The tensor of that name, of exactly that shape and type."""
    a = tensors[name]
    if a.shape != shape or a.dtype != dtype:
        raise ValueError(f"{name}: expected {np.dtype(dtype)} of shape {shape}, got {a.dtype} of {a.shape}")
    return a
