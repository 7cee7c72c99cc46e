"""`set_output`: what `transform` gives, as a frame of the library that was asked for."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from ._checks import check_choice

__all__ = ["OUTPUTS", "check_output", "framed", "without_frames"]

OUTPUTS = ("default", "pandas", "polars")

_F = TypeVar("_F", bound=Callable[..., Any])

_SPARSE = (
    "{Kind} output does not support sparse data. The codes of {name} are a sparse array: call "
    "set_output(transform='default') on it. For a frame take the latents that you look at, "
    "codes[:, chosen].toarray(), with get_feature_names_out()[chosen] as columns{all_of_them}"
)


def check_output(kind: Any) -> None:
    """One of OUTPUTS, whose library is installed."""
    check_choice(kind, "transform", OUTPUTS)
    if kind != "default" and importlib.util.find_spec(kind) is None:
        raise ImportError(f"transform: {kind!r} needs {kind}, which is not installed: pip install {kind}")


def _output_of(estimator: Any) -> str:
    """What `set_output` said, else scikit-learn's setting for all estimators, where that is loaded."""
    chosen = getattr(estimator, "_sklearn_output_config", {}).get("transform")
    sklearn: Any = sys.modules.get("sklearn")
    if chosen is None and hasattr(sklearn, "get_config"):
        chosen = sklearn.get_config()["transform_output"]
    return "default" if chosen is None else str(chosen)


def framed(transform: _F) -> _F:
    """A method `transform` whose array becomes a frame where `set_output` asks for one; the first of several."""

    @functools.wraps(transform)
    def wrapped(self: Any, X: Any, *args: Any, **options: Any) -> Any:
        kind = _output_of(self)
        if kind == "default":
            return transform(self, X, *args, **options)
        if self._gives_codes:  # before any work
            pandas = ", or all with pandas.DataFrame.sparse.from_spmatrix" if kind == "pandas" else ""
            raise ValueError(
                _SPARSE.format(Kind=kind.capitalize(), name=type(self).__name__, all_of_them=pandas)
            )
        made = transform(self, X, *args, **options)
        if isinstance(made, tuple):
            return (_frame(kind, made[0], X, self.get_feature_names_out()), *made[1:])
        return _frame(kind, made, X, self.get_feature_names_out())

    wrapped.unframed = transform  # type: ignore[attr-defined]
    return wrapped  # type: ignore[return-value]


def _frame(kind: str, values: np.ndarray, X: Any, names: np.ndarray) -> Any:
    if kind == "pandas":
        import pandas

        index = X.index if isinstance(X, pandas.DataFrame) else None
        return pandas.DataFrame(values, index=index, columns=names, copy=False)
    import polars

    return polars.DataFrame(values, schema=names.tolist(), orient="row")


def without_frames(model: Any, name: str = "transform") -> Callable[..., Any]:
    """That method of a model, in arrays whatever `set_output` says: for whoever goes on calculating."""
    unframed = getattr(getattr(type(model), name, None), "unframed", None)
    return getattr(model, name) if unframed is None else functools.partial(unframed, model)
