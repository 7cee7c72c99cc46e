"""What the package's estimators share: scikit-learn's habits without scikit-learn.

scikit-learn is not needed at run time. Its ``clone``, ``Pipeline``, ``GridSearchCV`` and
``check_estimator`` work with these estimators all the same, because it asks for methods, not for
a base class. It is imported only where it is itself the caller.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from ._checks import Sent, feature_names
from ._frames import check_output
from ._rows import Blocks, is_dask, rows_of, table
from ._shown import Shown, Table

__all__ = ["Estimator", "NotFittedError", "Routed", "restored"]

_E = TypeVar("_E", bound="Estimator")


@contextlib.contextmanager
def restored(estimators: Sequence[Estimator], names: Sequence[str]) -> Iterator[None]:
    """An error inside brings back what these attributes were.

    Ctrl-C, and a file that cannot be written, leave what has been made so far.
    """
    before = [{name: vars(one)[name] for name in names if name in vars(one)} for one in estimators]
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError):
            for one, was in zip(estimators, before):
                for name in names:
                    vars(one).pop(name, None)
                vars(one).update(was)
        raise


class NotFittedError(ValueError, AttributeError):
    """An estimator was used before it was fitted."""


def _not_fitted_error() -> type[Exception]:
    """scikit-learn's class where scikit-learn is loaded, so that its own code catches it."""
    module = sys.modules.get("sklearn.exceptions")
    return NotFittedError if module is None else module.NotFittedError


class Estimator(Shown, Sent):
    """Parameters, representation and checks, as scikit-learn's estimators have them.

    A subclass stores each constructor argument under its own name, unchanged, and checks it in
    ``fit``. ``_check_X`` validates input and sets or checks ``n_features_in_`` and
    ``feature_names_in_``; ``_check_fitted`` raises where ``fit`` has not run; ``_figures`` are what a notebook
    shows of it once it has. `transform` is `framed`, and ``_n_features_out`` says how many columns it gives.
    """

    _gives_codes = False  # whether what `transform` gives is sparse
    n_features_in_: int
    _metadata_request: Any  # scikit-learn's name, too; not there until `set_fit_request` is called

    @classmethod
    def _parameter_names(cls) -> list[str]:
        signature = inspect.signature(cls.__init__)
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        return sorted(p.name for p in signature.parameters.values() if p.name != "self" and p.kind in kinds)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Constructor arguments by name; with `deep`, those of nested estimators too."""
        params: dict[str, Any] = {}
        for name in self._parameter_names():
            value = vars(self)[name] if name in vars(self) else getattr(self, name)
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

    def fit_transform(self, X: Any, y: Any = None, **options: Any) -> Any:
        """`fit` with these options of it, then `transform` of the same X."""
        own: Any = self
        return own.fit(X, y, **options).transform(X)

    def set_output(self: _E, *, transform: str | None = None) -> _E:
        """Choose what `transform` and `fit_transform` give, as scikit-learn's estimators do.

        Parameters
        ----------
        transform : {"default", "pandas", "polars"}, optional
            Arrays, or frames with `get_feature_names_out` as columns. None changes nothing.

        Raises
        ------
        ImportError
            That library is not installed.

        Notes
        -----
        Sparse codes stay sparse arrays, for a frame of them would be hundreds of times as large: where a frame is asked
        for, `transform` raises a ValueError that says how to name the latents one looks at. ``reconstruct``,
        ``score`` and all of `atoms` that takes an estimator work with arrays whatever is chosen here.
        """
        if transform is not None:
            check_output(transform)
            # scikit-learn's name for it: its `clone` copies that
            self._sklearn_output_config = {"transform": transform}
        return self

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the columns that `transform` gives: the class's name in lower case, and the column's number.

        Parameters
        ----------
        input_features : array-like of str, optional
            Nothing depends on them; they must be those of `fit`.

        Returns
        -------
        ndarray of str objects
        """
        self._check_fitted()
        if input_features is not None:
            given, fitted = np.asarray(input_features, dtype=object), getattr(self, "feature_names_in_", None)
            if fitted is not None and not np.array_equal(given, fitted):
                raise ValueError(
                    "input_features is not equal to feature_names_in_, the names that fit saw; leave it out"
                )
            if len(given) != self.n_features_in_:
                raise ValueError(
                    "input_features should have length equal to the number of features in fit "
                    f"({self.n_features_in_}), got {len(given)} names"
                )
        name = type(self).__name__.lower()
        return np.asarray([f"{name}{i}" for i in range(self._n_features_out)], dtype=object)

    @property
    def _n_features_out(self) -> int:
        return self.n_features_in_

    def get_metadata_routing(self) -> Any:
        """What scikit-learn's metadata routing may pass on to `fit`: its keywords, as `set_fit_request` asks for them."""
        # only scikit-learn calls this, so it can be imported
        from sklearn.utils.metadata_routing import MetadataRequest, get_routing_for_object

        if hasattr(self, "_metadata_request"):
            return get_routing_for_object(self._metadata_request)
        requests = MetadataRequest(owner=self)
        for name in self._fit_keywords():
            requests.fit.add_request(param=name, alias=None)
        return requests

    @classmethod
    def _fit_keywords(cls) -> list[str]:
        parameters = inspect.signature(getattr(cls, "fit")).parameters.values()  # noqa: B009  mypy knows of no fit
        return [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]

    def _changed(self) -> dict[str, str]:
        """Constructor arguments that are not at their defaults, as text."""
        defaults = inspect.signature(type(self).__init__).parameters
        values = self.get_params(deep=False)
        texts = {name: repr(value) for name, value in values.items() if value is not defaults[name].default}
        return {name: text for name, text in texts.items() if text != repr(defaults[name].default)}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in self._changed().items())})"

    def _figures(self) -> list[tuple[str, Any]]:
        """Of a fitted estimator, what there is to say in a few words: nothing that takes long to compute."""
        return [("features", self.n_features_in_)]

    def _table(self) -> Table:
        short = [f"{k}={v if len(v) <= 60 else v[:57] + '...'}" for k, v in self._changed().items()]
        note = f"set: {', '.join(short)}" if short else "all parameters at their defaults"
        fitted = self.__sklearn_is_fitted__()
        title = type(self).__name__ + ("" if fitted else ", not fitted")
        return Table(title, self._figures() if fitted else [], note=note)

    def __sklearn_is_fitted__(self) -> bool:
        return "n_features_in_" in vars(self)

    def __sklearn_tags__(self) -> Any:
        # only scikit-learn calls this, so it can be imported
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

    def _check_X(
        self, X: Any, *, reset: bool, name: str = "X", min_rows: int = 1, names: np.ndarray | None = None
    ) -> Any:
        """`X` as a checked `table`; its features are remembered (`reset`) or compared.

        `names` has those of a frame that is an array by now.
        """
        names = feature_names(X) if names is None else names
        a = table(X, name, min_rows)
        names = getattr(a, "feature_names", names) if names is None else names
        if reset:
            _check_metric_names(getattr(self, "metric", None), names)
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

    def _check_rows(self, X: Any, *, reset: bool, far: bool = False) -> Any:
        """All that holds activations, as `rows_of` reads it, streams too; features as in `_check_X`.

        With `far`, what Dask has stays where it is: `Blocks`.
        """
        rows = Blocks(X) if far and is_dask(X) else rows_of(X)
        # an array of so many columns: what is checked of a table and can be known before its rows are read
        self._check_X(rows.shards[0], reset=reset, names=rows.feature_names)
        return rows

    def _check_feature_names(self, names: np.ndarray | None, who: str = "X") -> None:
        """A data frame's columns must be those seen in fit, in that order."""
        fitted = getattr(self, "feature_names_in_", None)
        if fitted is None and names is None:
            return
        if fitted is None or names is None:
            fault = (
                "{} has feature names, but {} was fitted without feature names"
                if fitted is None
                else "{} does not have valid feature names, but {} was fitted with feature names"
            )
            warnings.warn(fault.format(who, type(self).__name__), UserWarning, stacklevel=4)
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


class Routed(Estimator):
    """An estimator whose `fit` has keywords, which pipelines can pass on to it."""

    def set_fit_request(self: _E, **requests: bool | str | None) -> _E:
        """Ask scikit-learn's metadata routing for keywords of `fit`.

        Parameters
        ----------
        **requests
            For a keyword of `fit` True (pass it on), False (do not), a string (pass it on from the metadata of this
            name) or None (an error where it is given).

        Examples
        --------
        Held-out rows go through a pipeline's earlier steps, then to the autoencoder::

            sklearn.set_config(enable_metadata_routing=True)
            pipe = Pipeline([("scale", StandardScaler()), ("sae", sae.set_fit_request(X_val=True))],
                            transform_input=["X_val"])
            pipe.fit(X, X_val=X_val)
        """
        from sklearn import get_config

        if not get_config().get("enable_metadata_routing"):
            raise RuntimeError(
                "set_fit_request: metadata routing is not enabled; call "
                "sklearn.set_config(enable_metadata_routing=True) first"
            )
        known = self._fit_keywords()
        if unknown := sorted(set(requests) - set(known)):
            raise TypeError(f"{', '.join(unknown)}: no keyword of fit, which has {', '.join(known)}")
        routing = self.get_metadata_routing()
        for name, alias in requests.items():
            routing.fit.add_request(param=name, alias=alias)
        self._metadata_request = routing
        return self


def _check_metric_names(metric: Any, names: np.ndarray | None) -> None:
    """A metric that knows its features by name must have been fitted on these, in this order."""
    fitted = getattr(metric, "feature_names_in_", None)
    if names is None or fitted is None or list(names) == list(fitted):
        return
    first = next((i for i, (a, b) in enumerate(zip(names, fitted)) if a != b), min(len(names), len(fitted)))
    raise ValueError(
        f"metric: fitted on other features than X has, or in another order (they differ from number {first} on); "
        "pass X[metric.feature_names_in_], or fit the metric on X"
    )
