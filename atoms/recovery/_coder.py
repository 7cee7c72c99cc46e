"""Sparse codes as an estimator."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from .._arrays import as_codes
from .._checks import atoms_of, check_array, check_choice, first_nonfinite_row, nonfinite_error
from .._config import one_blas_thread
from .._frames import framed
from .._rows import by_blocks
from .._scored import Scored
from ._dictionary import Array, Dictionary, atoms_given, same_metric
from ._lasso import basis_pursuit, basis_pursuit_denoise, lasso
from ._pursuits import cosamp, gradient_pursuit, iht, matching_pursuit, omp, threshold_code

_METHODS: dict[str, Callable[..., Any]] = {
    "omp": omp,
    "ols": functools.partial(omp, selection="ols"),
    "nn_omp": functools.partial(omp, nonnegative=True),
    "lasso": lasso,
    "basis_pursuit": basis_pursuit,
    "basis_pursuit_denoise": basis_pursuit_denoise,
    "matching_pursuit": matching_pursuit,
    "gradient_pursuit": gradient_pursuit,
    "cosamp": cosamp,
    "iht": iht,
    "threshold": threshold_code,
}
_COMMON = ("X", "dictionary", "metric", "num_threads", "verbose", "return_info")
_COUNTED = ("omp", "ols", "nn_omp", "matching_pursuit", "gradient_pursuit", "cosamp", "iht")


def code(
    X: Any,
    dictionary: Any,
    method: str = "omp",
    *,
    metric: Any = None,
    num_threads: int | None = None,
    verbose: bool = False,
    return_info: bool = False,
    **settings: Any,
) -> Any:
    """Sparse codes of signals over a dictionary, by any of the solvers.

    ========================= ==========================================================================
    method                    What it does, and its settings
    ========================= ==========================================================================
    "omp"                     :func:`omp`: n_nonzero, tol, selection, nonnegative, support
    "ols"                     :func:`omp` with ``selection="ols"``: the atom that lowers the residual most
    "nn_omp"                  :func:`omp` with ``nonnegative=True``
    "matching_pursuit"        The strongest atom's coefficient takes the whole correlation, no refit (Mallat and
                              Zhang 1993): n_nonzero, tol, max_iter = 1000
    "gradient_pursuit"        The strongest atom joins, then one gradient step (Blumensath and Davies 2008): n_nonzero,
                              tol, max_iter, by default n_nonzero or, with tol, 1000
    "cosamp"                  Merge 2 K atoms, fit, keep the K largest, repeat (Needell and Tropp 2009): n_nonzero = K,
                              tol, max_iter = 100
    "iht"                     The K largest of a gradient step of the best length, repeated (Blumensath and Davies
                              2010): n_nonzero = K, tol, max_iter = 1000
    "lasso"                   :func:`lasso`: alpha, positive, tol, max_iter
    "basis_pursuit"           argmin ||z||_1 subject to z D = x (Chen, Donoho and Saunders 1998), in float64:
                              tol = 1e-8, the relative duality gap; max_iter = 100. Every K-sparse code with
                              K < (1 + 1 / coherence) / 2 is the one and only solution
    "basis_pursuit_denoise"   argmin ||z||_1 subject to ||x - z D|| <= sigma, in float64: sigma, tol = 1e-6,
                              max_iter = 200. Many times slower for a sigma under 0.5% of ||x||
    "threshold"               The theory's one pass: correlations X S D' of at least tau (one number, or one for each
                              signal: `threshold_interval`), the rest zero, not refitted: tau, signed = False
    ========================= ==========================================================================

    Parameters
    ----------
    X : array-like (n_signals, d_in)
        Signals as rows.
    dictionary : array-like (n_atoms, d_in), model or Dictionary
        Atoms as rows; a :class:`Dictionary` is prepared once for many calls.
    method : str
        One of the above.
    metric : AtomicInnerProduct, optional
        Signals and atoms are whitened by it.
    num_threads : int, optional
        None for the package's setting.
    verbose : bool
        Show a progress bar.
    return_info : bool
        Also return a :class:`RecoveryInfo`.
    **settings
        The method's own. `n_nonzero` is the most atoms in a code, by default 10% of d_in where no `tol` is given; `tol`
        of the pursuits is the norm of the residual at which to stop.

    Returns
    -------
    csr_array (n_signals, n_atoms)
        And with `return_info` a :class:`RecoveryInfo`.

    Raises
    ------
    ValueError
        A method that there is not, and as the method does.
    TypeError
        A setting that the method does not have, or one that it needs and was not given.

    Examples
    --------
    >>> import numpy as np
    >>> from atoms.recovery import code
    >>> code(np.array([[0.0, 3.0, -1.0]]), np.eye(3), "cosamp", n_nonzero=1).toarray()
    array([[0., 3., 0.]])
    """
    check_choice(method, "method", _METHODS)
    known = inspect.signature(_METHODS[method]).parameters
    own = [name for name in known if name not in (*_COMMON, *getattr(_METHODS[method], "keywords", {}))]
    unknown = [name for name in settings if name not in own]
    if unknown:
        raise TypeError(f"{', '.join(unknown)}: no setting of method {method!r}, which has {', '.join(own)}")
    missing = [
        name for name in own if known[name].default is inspect.Parameter.empty and name not in settings
    ]
    if missing:
        raise TypeError(f"{', '.join(missing)}: method {method!r} needs it; pass code(..., {missing[0]}=...)")
    common = {"metric": metric, "num_threads": num_threads, "verbose": verbose, "return_info": return_info}
    return _METHODS[method](X, dictionary, **common, **settings)


class SparseCoder(Scored):
    """Sparse codes over a fixed dictionary, as an estimator beside :class:`atoms.SparseAutoencoder`.

    Parameters
    ----------
    dictionary : array-like (n_atoms, d_in) or model, optional
        Atoms as rows; of an SAE its ``W_dec``. None: the rows of the X given to ``fit``
        (at most 2 * d_in of them), a memorising dictionary.
    method : str
        "omp", "ols", "nn_omp", "lasso", "basis_pursuit", "basis_pursuit_denoise",
        "matching_pursuit", "gradient_pursuit", "cosamp", "iht" or "threshold".
    n_nonzero : int, optional
        For the pursuits; default 10% of d_in where no `tol` is given, with `tol` no limit.
    tol : float, optional
        For the pursuits the norm of the residual at which to stop, for the others the gap.
    alpha : float
        Penalty of "lasso", largest residual of "basis_pursuit_denoise", threshold of "threshold".
    metric : AtomicInnerProduct, optional
        Signals and atoms are whitened by it.
    num_threads : int, optional
        None for the package's setting.
    verbose : bool
        Show a progress bar.

    Attributes
    ----------
    dictionary_ : Dictionary
        The atoms, made ready.
    components_ : ndarray (n_atoms, d_in)
        The atoms as given.
    metric_ : AtomicInnerProduct or None
        That of `dictionary_`.
    n_features_in_ : int
        d_in.

    Examples
    --------
    >>> import numpy as np
    >>> from atoms import SparseCoder
    >>> coder = SparseCoder(np.eye(3), n_nonzero=1).fit(np.ones((2, 3)))
    >>> coder.transform(np.array([[0.0, 3.0, -1.0]])).toarray()
    array([[0., 3., 0.]])
    """

    def __init__(
        self,
        dictionary: Any = None,
        method: str = "omp",
        *,
        n_nonzero: int | None = None,
        tol: float | None = None,
        alpha: float = 1.0,
        metric: Any = None,
        num_threads: int | None = None,
        verbose: bool = False,
    ) -> None:
        self.dictionary = dictionary
        self.method = method
        self.n_nonzero = n_nonzero
        self.tol = tol
        self.alpha = alpha
        self.metric = metric
        self.num_threads = num_threads
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> SparseCoder:
        """Check the arguments and prepare the dictionary; of X only the width counts, where a dictionary was given."""
        check_choice(self.method, "method", _METHODS)
        X = self._check_X(X, reset=True)
        if (row := first_nonfinite_row(X)) >= 0:
            raise nonfinite_error(X, "X", row)
        given = X[: 2 * X.shape[1]] if self.dictionary is None else self.dictionary
        if not isinstance(given, Dictionary):
            given = check_array(atoms_of(given, "dictionary"), "dictionary")
            double = self.method.startswith("basis") or given.dtype == X.dtype == np.float64
            given = Dictionary(
                given,
                metric=self.metric,
                dtype=np.float64 if double else np.float32,
                num_threads=self.num_threads,
            )
        if given.d_in != X.shape[1]:
            raise ValueError(f"dictionary: expected {X.shape[1]} columns, as X has, got {given.d_in}")
        if self.metric is not None and not same_metric(self.metric, given.metric):
            raise ValueError("metric: the Dictionary was made with another; pass the metric to Dictionary")
        self.dictionary_, self.components_ = given, atoms_given(given)
        return self

    @framed
    @by_blocks
    def transform(self, X: Any, return_info: bool = False) -> Any:
        """Codes of X as a csr_array (n_signals, n_atoms), and with `return_info` a RecoveryInfo.

        NaN or infinity in X is an error here, which names the row.
        """
        self._check_fitted()
        X = self._check_X(X, reset=False)
        if (row := first_nonfinite_row(X)) >= 0:
            raise nonfinite_error(X, "X", row)
        return self._codes(X, return_info)

    def _codes(self, X: np.ndarray, return_info: bool = False) -> Any:
        extra: dict[str, Any] = {"num_threads": self.num_threads, "verbose": self.verbose}
        if self.method in _COUNTED:
            extra["n_nonzero"] = self.n_nonzero
        if self.tol is not None and self.method != "threshold":
            extra["tol"] = self.tol
        named = {"lasso": "alpha", "basis_pursuit_denoise": "sigma", "threshold": "tau"}
        if self.method in named:
            extra[named[self.method]] = self.alpha
        return code(X, self.dictionary_, self.method, return_info=return_info, **extra)

    def _figures(self) -> list[tuple[str, Any]]:
        d = self.dictionary_
        atoms = f"{d.n_atoms:,} of {d.d_in:,} features, {d.dtype}"
        return [
            ("method", self.method),
            ("atoms", atoms),
            ("metric", "none" if d.metric is None else repr(d.metric)),
        ]

    @property
    def metric_(self) -> Any:
        self._check_fitted()
        return self.dictionary_.metric

    @property
    def _n_features_out(self) -> int:
        return int(self.dictionary_.n_atoms)

    @by_blocks
    @one_blas_thread
    def inverse_transform(self, codes: Any) -> Array:
        """``codes @ dictionary``, plus the mean where the metric is centred."""
        self._check_fitted()
        X = np.asarray(as_codes(codes) @ self.components_)
        metric = self.dictionary_.metric
        return X + metric.mean_ if metric is not None and metric.centered else X
