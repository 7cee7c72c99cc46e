"""Greedy pursuits and thresholds: codes of few atoms, chosen one after another or at once."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import scipy.sparse

from .. import _core
from .._arrays import as_codes
from .._checks import as_numbers, check_choice, check_count, check_flag, check_number, outside, rows_in_all
from .._config import context
from .._rows import table
from ._coding import Codes, RecoveryWarning, by_blocks, code
from ._dictionary import Array, Dictionary, dictionary_of, hold_gram

# From _UNITS_SIGNALS signals on OMP screens by 16-bit products. With at most _COARSE_NONZERO nonzeros over at least
# _COARSE_ATOMS atoms the Gram matrix is one of such products too, and what is chosen is computed from the atoms.
_UNITS_SIGNALS, _COARSE_NONZERO, _COARSE_ATOMS = 64, 16, 1024


# ------------------------------------------------------------------------------- OMP


@by_blocks()
def omp(
    X: Any,
    dictionary: Any,
    n_nonzero: int | None = None,
    tol: float | None = None,
    *,
    selection: str = "omp",
    nonnegative: bool = False,
    support: Any = None,
    metric: Any = None,
    num_threads: int | None = None,
    verbose: bool = False,
    return_info: bool = False,
) -> Any:
    """Orthogonal matching pursuit: one atom at a time, coefficients refitted by least squares.

    At each step the atom with the largest ``<d, r>**2`` (unit atoms, residual r) joins the code,
    or with ``selection="ols"`` the one that lowers the residual most, ``<d, r>**2`` over the
    squared norm of d's part outside the span of the atoms chosen (orthogonal least squares,
    also ORMP; SPAMS calls this rule OMP). Atoms may have any norm: selection does not depend on it.

    Every K-sparse code with ``K < (1 + 1 / coherence) / 2`` is recovered exactly.

    Parameters
    ----------
    X : array-like (n_signals, d_in)
        float32, float64, float16 or bfloat16; any strides; memory maps.
    dictionary : array-like (n_atoms, d_in) or Dictionary
        Pass a :class:`Dictionary` to prepare it once for many calls.
    n_nonzero : int, optional
        Most atoms in a code; never more than ``min(n_atoms, d_in)`` are used. Default: 10% of
        d_in, at least 1, where no `tol` is given; with `tol` no limit.
    tol : float, optional
        Stop once the norm (not squared) of the residual is at most this.
    selection : {"omp", "ols"}
        The rule by which an atom joins, see above.
    nonnegative : bool
        Codes with coefficients >= 0 only: the largest positive ``<d, r>`` joins, refits are
        non-negative least squares, and atoms may leave. Only with ``selection="omp"``.
    support : sparse array (n_signals, n_atoms), optional
        Warm support, for example an SAE's codes: these atoms join first, largest first.
    metric : AtomicInnerProduct, optional
        Signals and atoms are whitened by it.
    num_threads : int, optional
        None for the package's setting.
    verbose : bool
        Show a progress bar.
    return_info : bool
        Also return a :class:`RecoveryInfo`.

    Returns
    -------
    csr_array (n_signals, n_atoms)
        float64 where both X and dictionary are float64, else float32.

    Notes
    -----
    With t atoms chosen a step costs ``n_atoms * t`` multiplications a signal where the Gram matrix
    fits, ``n_atoms * d_in`` where it does not. In float32 the search runs on 16-bit integers
    with an error bound; every atom that could win within the bound is evaluated again at full
    precision, so selections are those of float32. With VNNI (AVX-512 or AVX) and 64 signals or more the
    correlations are 16-bit products too, and the search reads the Gram matrix rounded to 16 bits (4 + 2 bytes
    an element); for at most 16 nonzeros over 1,024 atoms or more, few of them with near neighbours, a
    Gram matrix of 16-bit products alone (2 bytes) takes its place. An atom counts as dependent when
    the squared norm of its part outside the span is below 3e-5 (float32) or 1e-12 (float64); it is left out
    and the status says so. A signal that is explained down to rounding stops early.

    The Gram matrix is made where a call has signals enough to be worth it: the last digits of a code may then be others than
    in a call of few signals; of threads, blocks and workers they never depend.

    References
    ----------
    Rubinstein, Zibulevsky, Elad, "Efficient implementation of the K-SVD algorithm using batch
    orthogonal matching pursuit" (2008); Tropp, "Greed is good" (2004).

    Examples
    --------
    >>> import numpy as np
    >>> from atoms.recovery import omp
    >>> D = np.eye(3)
    >>> omp(np.array([[0.0, 3.0, -1.0]]), D, n_nonzero=1).toarray()
    array([[0., 3., 0.]])
    """
    X = table(X, min_rows=0)
    d = dictionary_of(dictionary, X, metric, num_threads)
    check_choice(selection, "selection", ("omp", "ols"))
    if check_flag(nonnegative, "nonnegative") and selection == "ols":
        raise ValueError("nonnegative: only with selection='omp'")
    most, stop = _length(d, n_nonzero, tol)
    warm = _support(support, X.shape[0], d.n_atoms)
    if warm is not None and (long := int((np.diff(warm[0]) > most).sum())):
        warnings.warn(
            f"omp: support: {long} rows hold more than n_nonzero={most} atoms; their largest join",
            RecoveryWarning,
            stacklevel=outside(),
        )
    n = rows_in_all(X.shape[0])
    many = not nonnegative and n >= _UNITS_SIGNALS
    coarse = many and most <= _COARSE_NONZERO and d.n_atoms >= _COARSE_ATOMS
    if d.n_atoms < 2 * max(1, n) * most:  # else the Gram matrix costs more than it saves
        hold_gram(d, many, coarse)
    ctx = context(num_threads)

    def solve(handle: Any, x: Array, rows: slice, out: Codes) -> None:
        indptr = atoms = None
        if warm is not None:
            begin, end = warm[0][rows.start], warm[0][rows.stop]
            indptr, atoms = warm[0][rows.start : rows.stop + 1] - begin, warm[1][begin:end]
        ols = selection == "ols"
        _core.omp(
            ctx,
            handle,
            x,
            n_nonzero=most,
            tol=stop,
            ols=ols,
            nonnegative=nonnegative,
            indptr=indptr,
            support=atoms,
            **out.without_gap(),
        )

    return code("omp", X, d, most, solve, verbose=verbose, return_info=return_info)


def _length(d: Dictionary, n_nonzero: int | None, tol: float | None) -> tuple[int, float]:
    """What (n_nonzero, tol) mean for every solver that counts atoms: most atoms, and the residual to stop at or -1."""
    most = min(d.n_atoms, d.d_in)
    if n_nonzero is not None:
        most = min(most, check_count(n_nonzero, "n_nonzero"))
    elif tol is None:
        most = min(most, max(1, d.d_in // 10))
    return most, -1.0 if tol is None else check_number(tol, "tol", 0)


def _support(support: Any, n: int, n_atoms: int) -> tuple[Array, Array] | None:
    """A CSR pattern; within a row the atoms come largest coefficient first."""
    if support is None:
        return None
    s = scipy.sparse.csr_array(as_codes(support, "support"))
    if s.shape != (n, n_atoms):
        raise ValueError(f"support: expected shape ({n}, {n_atoms}), got {s.shape}")
    row = np.repeat(np.arange(n), np.diff(s.indptr))
    order = np.lexsort((-np.abs(np.asarray(s.data, np.float64)), row))
    return s.indptr.astype(np.int64), s.indices[order].astype(np.int32)


# ------------------------------------------------------------------- other pursuits


_METHODS = {
    "matching_pursuit": _core.PURSUIT_MP,
    "gradient_pursuit": _core.PURSUIT_GRADIENT,
    "cosamp": _core.PURSUIT_COSAMP,
    "iht": _core.PURSUIT_IHT,
}


def _pursuit(
    name: str,
    X: Any,
    dictionary: Any,
    n_nonzero: int | None,
    tol: float | None,
    max_iter: int,
    metric: Any,
    num_threads: int | None,
    verbose: bool,
    return_info: bool,
) -> Any:
    X = table(X, min_rows=0)
    d = dictionary_of(dictionary, X, metric, num_threads)
    most, stop = _length(d, n_nonzero, tol)
    steps = check_count(max_iter, "max_iter")
    hold_gram(d)
    ctx = context(num_threads)

    def solve(handle: Any, x: Array, rows: slice, out: Codes) -> None:
        _core.pursuit(
            ctx,
            handle,
            x,
            method=_METHODS[name],
            n_nonzero=most,
            max_steps=steps,
            tol=stop,
            **out.without_gap(),
        )

    return code(name, X, d, most, solve, verbose=verbose, return_info=return_info)


@by_blocks()
def matching_pursuit(
    X: Any,
    dictionary: Any,
    n_nonzero: int | None = None,
    tol: float | None = None,
    *,
    max_iter: int = 1000,
    metric: Any = None,
    num_threads: int | None = None,
    verbose: bool = False,
    return_info: bool = False,
) -> Any:
    """Matching pursuit: the strongest atom's coefficient takes the whole correlation, no refit.

    Once `n_nonzero` atoms are in the code, only their coefficients still change. Stops at `tol`
    (norm of the residual, not squared), at `max_iter` steps, or when what is left is rounding; status LIMIT where
    there is a `tol` that was not met. A step costs n_atoms multiplications. Other arguments as in :func:`omp`.

    References
    ----------
    Mallat, Zhang, "Matching pursuits with time-frequency dictionaries" (1993).
    """
    return _pursuit(
        "matching_pursuit", X, dictionary, n_nonzero, tol, max_iter, metric, num_threads, verbose, return_info
    )


@by_blocks()
def gradient_pursuit(
    X: Any,
    dictionary: Any,
    n_nonzero: int | None = None,
    tol: float | None = None,
    *,
    max_iter: int | None = None,
    metric: Any = None,
    num_threads: int | None = None,
    verbose: bool = False,
    return_info: bool = False,
) -> Any:
    """Gradient pursuit: the strongest atom joins, then one gradient step on the atoms chosen.

    Near OMP's codes at a smaller cost for long ones. `max_iter` defaults to `n_nonzero` steps, or
    1000 with `tol`; other arguments as in :func:`omp`.

    References
    ----------
    Blumensath, Davies, "Gradient pursuits" (2008).
    """
    if max_iter is None:
        X = table(X, min_rows=0)
        max_iter = 1000 if tol is not None else n_nonzero or max(1, X.shape[1] // 10)
    return _pursuit(
        "gradient_pursuit", X, dictionary, n_nonzero, tol, max_iter, metric, num_threads, verbose, return_info
    )


@by_blocks()
def cosamp(
    X: Any,
    dictionary: Any,
    n_nonzero: int | None = None,
    tol: float | None = None,
    *,
    max_iter: int = 100,
    metric: Any = None,
    num_threads: int | None = None,
    verbose: bool = False,
    return_info: bool = False,
) -> Any:
    """Compressive sampling matching pursuit: merge 2 K atoms, fit, keep the K largest, repeat.

    Stops when the residual no longer falls, at `tol` or at `max_iter`; status LIMIT at `max_iter`, or where a `tol`
    was not met. Arguments as in :func:`omp`; `n_nonzero` is K. Give it: with `tol` alone K is min(n_atoms, d_in), and
    a step fits as many atoms.

    References
    ----------
    Needell, Tropp, "CoSaMP" (2009).
    """
    return _pursuit(
        "cosamp", X, dictionary, n_nonzero, tol, max_iter, metric, num_threads, verbose, return_info
    )


@by_blocks()
def iht(
    X: Any,
    dictionary: Any,
    n_nonzero: int | None = None,
    tol: float | None = None,
    *,
    max_iter: int = 1000,
    metric: Any = None,
    num_threads: int | None = None,
    verbose: bool = False,
    return_info: bool = False,
) -> Any:
    """Normalised iterative hard thresholding: the K largest of a gradient step, repeated.

    The step is as long as the residual allows. Stops when the residual no longer falls, at `tol`
    or at `max_iter`; status LIMIT at `max_iter`, or where a `tol` was not met. Arguments as in :func:`omp`;
    `n_nonzero` is K, with `tol` alone min(n_atoms, d_in).

    References
    ----------
    Blumensath, Davies, "Normalized iterative hard thresholding" (2010).
    """
    return _pursuit("iht", X, dictionary, n_nonzero, tol, max_iter, metric, num_threads, verbose, return_info)


# --------------------------------------------------------------- threshold coding


def threshold_interval(codes: Any, coherence: float) -> tuple[Array, Array]:
    """The thresholds with which one pass recovers a signal's support exactly, for each signal.

    For amplitudes between ``low`` and ``high`` in magnitude, K of them, over unit atoms of mutual
    coherence mu, every threshold tau with ``mu K high < tau < low - mu (K - 1) high`` separates
    the support from the rest, whatever the atoms; the interval is empty where ``low <= mu (2 K -
    1) high`` (Proposition on threshold activation of "Towards Atoms of Large Language Models").

    Parameters
    ----------
    codes : array or sparse array (n_signals, n_atoms)
        The true codes; only magnitudes of nonzero entries matter.
    coherence : float
        Mutual coherence, 0 to 1.

    Returns
    -------
    low, high : ndarray (n_signals,)
        Open interval; empty where ``low >= high``. A zero code gives (0, inf).

    Examples
    --------
    >>> import numpy as np
    >>> from atoms.recovery import threshold_interval
    >>> threshold_interval(np.array([[0.0, 2.0, 1.0]]), 0.125)
    (array([0.5]), array([0.75]))
    """
    mu = check_number(coherence, "coherence", 0)
    if mu > 1:
        raise ValueError(f"coherence: expected a number from 0 to 1, got {coherence!r}")
    z = scipy.sparse.csr_array(as_codes(codes), copy=True)
    if not np.isfinite(z.data).all():
        raise ValueError("codes: contain NaN or infinity; drop such rows")
    z.eliminate_zeros()
    size = abs(z.data.astype(np.float64))
    k = np.diff(z.indptr)
    row = np.repeat(np.arange(z.shape[0]), k)
    top, least = np.zeros(z.shape[0]), np.full(z.shape[0], np.inf)
    np.maximum.at(top, row, size)
    np.minimum.at(least, row, size)
    return mu * k * top, least - mu * np.maximum(k - 1, 0) * top


@by_blocks()
def threshold_code(
    X: Any,
    dictionary: Any,
    tau: Any,
    *,
    signed: bool = False,
    metric: Any = None,
    num_threads: int | None = None,
    verbose: bool = False,
    return_info: bool = False,
) -> Any:
    """The theory's one-pass code: correlations ``X S D.T`` of at least `tau`, the rest zero.

    Parameters
    ----------
    tau : float or array-like (n_signals,)
        Threshold, or one for each signal; see :func:`threshold_interval`.
    signed : bool
        Threshold magnitudes, so that negative amplitudes are coded too.
    X, dictionary, metric, num_threads, verbose, return_info
        As in :func:`omp`. The theory takes unit atoms (in the metric); correlations are with
        the atoms as given.

    Returns
    -------
    csr_array (n_signals, n_atoms)
        Correlations, not refitted: exact supports inside the interval, amplitudes off by up to
        ``mu (K - 1) high``. This rule looks at no residual: over atoms that are much alike its codes may leave more
        than the signal has, as ``info.residual`` says, and their status is CONVERGED all the same.
    """
    X = table(X, min_rows=0)
    d = dictionary_of(dictionary, X, metric, num_threads)
    taus = as_numbers(tau, "tau")
    if taus.shape not in ((), (1,), X.shape[:1]):
        raise ValueError(
            f"tau: expected a number, or one for each of {X.shape[0]} signals, got shape {taus.shape}"
        )
    taus = np.ascontiguousarray(np.broadcast_to(taus, X.shape[:1]))
    if not (taus >= 0).all():
        raise ValueError("tau: expected numbers of at least 0")
    ctx = context(num_threads)

    def solve(handle: Any, x: Array, rows: slice, out: Codes) -> None:
        _core.threshold(ctx, handle, x, tau=taus[rows], signed=signed, **out.without_gap())

    return code("threshold_code", X, d, d.n_atoms, solve, verbose=verbose, return_info=return_info)
