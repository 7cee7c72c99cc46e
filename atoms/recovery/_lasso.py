"""The lasso, its path, and basis pursuit: codes whose magnitudes sum to least."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _core
from .._checks import as_numbers, check_count, check_flag, check_number, rows_in_all
from .._config import context
from .._rows import Blocks, is_dask, table
from ._coding import BLOCK_BYTES, Codes, RecoveryInfo, by_blocks, code, complain, csr, packed
from ._dictionary import (
    Array,
    Dictionary,
    dictionary_of,
    gram_fits,
    handle_of,
    hold_gram,
    hold_screen,
    whitened,
)

_SMALL = 1024  # atoms up to which a Gram matrix has paid after a few hundred signals,
_GRAM_ATOMS = 4096  # and up to which it has after
_REPAID = 0.5  # signals to an atom
_SET = 128  # atoms of a working set that go by 16-bit rows; a Gram matrix of at most _GRAM_ATOMS costs less than more do

# ---------------------------------------------------------------------------- lasso


@by_blocks()
def lasso(
    X: Any,
    dictionary: Any,
    alpha: float,
    *,
    positive: bool = False,
    tol: float = 1e-4,
    max_iter: int = 1000,
    metric: Any = None,
    num_threads: int | None = None,
    verbose: bool = False,
    return_info: bool = False,
) -> Any:
    """The lasso: ``argmin_z 1/2 ||x - z D||**2 + alpha ||z||_1`` for each signal.

    The objective has no factor 1/d_in: scikit-learn's ``Lasso`` minimises ours divided by d_in,
    so that its ``alpha`` is ours over d_in; SPAMS's ``lambda1`` (mode 2) is ours.

    Parameters
    ----------
    X : array-like (n_signals, d_in)
        float32, float64, float16 or bfloat16; any strides; memory maps.
    dictionary : array-like (n_atoms, d_in), model or Dictionary
        Atoms of any norm; the penalty falls on the coefficients of the atoms as given.
    alpha : float
        Penalty, above 0. At ``alpha >= max |D x|`` the code is zero.
    positive : bool
        Coefficients >= 0.
    tol : float
        A signal has converged when its duality gap is at most ``tol * ||x||**2``. In float32
        rounding leaves about 1e-6.
    max_iter : int
        Working sets tried before a signal is given up with status LIMIT.
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

    Notes
    -----
    Coordinate descent on a working set with its Gram matrix in cache; where it creeps, and at the end, from minimiser to
    minimiser for the signs there are, by a Cholesky factor that atoms leave. The atoms that violate optimality most join the
    set, at most as many as the code has, or 48. What rounding may have made of correlations is kept account of: a gap that
    it may have made small is proved from the residual. After 30 rounds, or three whose gap does not fall, or in the last, the
    set is solved exactly, in float64.
    The dictionary's Gram matrix is held, and correlations are brought up to date from it, at ``n_atoms`` multiplications for
    each coefficient that changed: on CPUs without VNNI and in float64 always, where it fits ``gram_bytes``; in float32 with
    VNNI over at most 1,024 atoms, and 4,096 where there is one signal to two atoms or more.
    Else correlations of all atoms with the residuals are taken for up to 32 signals at once, two or three times in all:
    ``n_atoms * d_in`` multiplications a signal each time. In between, the distance that the residual has moved
    bounds the change of every correlation; only atoms that may have reached the penalty are evaluated, and no others
    enter the duality gap. With VNNI these correlations are 16-bit products, with an error bound
    that is added to that distance; what enters code and gap is evaluated in float32. This takes the atoms once more
    in 16 bits. Signals whose set outgrows 128 of at most 4,096 atoms, as small penalties make them, are
    solved by the Gram matrix after all. So the last bits of a code may depend on how many signals come with it, but not on
    which they are, nor on threads. Each thread holds up to 32 signals, their ``32 * n_atoms`` correlations, the Gram matrix of the
    working set that it is at, and those of up to 64 atoms for the signals that wait.

    Examples
    --------
    >>> import numpy as np
    >>> from atoms.recovery import lasso
    >>> lasso(np.array([[0.5, 3.0, -1.0]]), np.eye(3), 0.75).toarray()
    array([[ 0.  ,  2.25, -0.25]])
    """
    X = table(X, min_rows=0)
    d = dictionary_of(dictionary, X, metric, num_threads)
    alphas = np.array([check_number(alpha, "alpha", 0, strict=True)])
    check_flag(positive, "positive")
    stop, rounds = check_number(tol, "tol", 0, strict=True), check_count(max_iter, "max_iter")
    most = _prepare(d, X.shape[0])
    ctx = context(num_threads)

    def solve(handle: Any, x: Array, rows: slice, out: Codes) -> None:
        _solve_lasso(ctx, d, x, out, most, alphas=alphas, positive=positive, tol=stop, max_rounds=rounds)

    return code("lasso", X, d, d.n_atoms, solve, verbose=verbose, return_info=return_info, has_gap=True)


def lasso_path(
    X: Any,
    dictionary: Any,
    alphas: Any = None,
    *,
    n_alphas: int = 30,
    eps: float = 1e-2,
    positive: bool = False,
    tol: float = 1e-4,
    max_iter: int = 1000,
    metric: Any = None,
    num_threads: int | None = None,
    return_info: bool = False,
) -> Any:
    """The lasso for a decreasing sequence of penalties, each started from the one before.

    Parameters
    ----------
    X : array-like (n_signals, d_in)
        Signals as rows.
    dictionary : array-like (n_atoms, d_in), model or Dictionary
        Atoms as rows.
    alphas : array-like, optional
        Penalties, used in decreasing order. Default: from ``max |D x|`` over all signals down,
        evenly in the logarithm.
    n_alphas : int
        How many, by default.
    eps : float
        The smallest over the largest, by default.
    positive : bool
        Coefficients >= 0.
    tol : float
        Largest duality gap over ``||x||**2``, as in :func:`lasso`.
    max_iter : int
        Working sets tried for each penalty.
    metric : AtomicInnerProduct, optional
        Signals and atoms are whitened by it.
    num_threads : int, optional
        None for the package's setting.
    return_info : bool
        Also return a :class:`RecoveryInfo` for each penalty.

    Returns
    -------
    alphas : ndarray (n_alphas,)
    codes : list of csr_array (n_signals, n_atoms)
    infos : list of RecoveryInfo
        Only with ``return_info=True``.
    """
    rows = Blocks(X) if is_dask(X) else table(X, min_rows=0)
    some = table(rows.sample) if isinstance(rows, Blocks) else rows
    d = dictionary_of(dictionary, some, metric, num_threads)
    if some.shape[1] != d.d_in:
        raise ValueError(f"X: expected {d.d_in} columns, as the dictionary has, got {some.shape[1]}")
    grid = _penalties(alphas, n_alphas, eps, rows, d)
    check_flag(positive, "positive")
    stop, rounds = check_number(tol, "tol", 0, strict=True), check_count(max_iter, "max_iter")
    settings = d, grid, positive, stop, rounds, num_threads
    codes, infos = rows.mapped(_path, *settings) if isinstance(rows, Blocks) else _path(rows, *settings)
    return (grid, codes, infos) if return_info else (grid, codes)


def _path(
    X: Array, d: Dictionary, grid: Array, positive: bool, stop: float, rounds: int, num_threads: int | None
) -> tuple[list[Any], list[RecoveryInfo]]:
    """Codes for each penalty, and what became of the signals."""
    most = _prepare(d, X.shape[0])
    ctx, k, n = context(num_threads), grid.size, X.shape[0]
    how = {"alphas": grid, "positive": positive, "tol": stop, "max_rounds": rounds}
    status, steps = np.zeros((k, n), np.int8), np.zeros((k, n), np.int32)
    residual, gap, counts = np.zeros((k, n)), np.zeros((k, n)), np.zeros((k, n), np.int32)
    wholes: Any = (counts, status, steps, residual, gap)
    parts: list[list[tuple[Array, Array]]] = [[] for _ in range(k)]
    size = max(1, min(1024, BLOCK_BYTES // (k * d.n_atoms * (4 + d.dtype.itemsize))))
    for start in range(0, n, size):
        rows = slice(start, min(start + size, n))
        m = rows.stop - start
        indices, values = np.empty((k * m, d.n_atoms), np.int32), np.empty((k * m, d.n_atoms), d.dtype)
        out = [np.zeros(k * m, t) for t in (np.int32, np.int8, np.int32, np.float64, np.float64)]
        x = whitened(d, X[rows])
        _solve_lasso(ctx, d, x, Codes(indices, values, *out), most, **how)
        for whole, part in zip(wholes, out, strict=True):
            whole[:, rows] = part.reshape(k, m)
        for a in range(k):  # the core gives all signals' codes for one penalty, then those for the next
            one = slice(a * m, (a + 1) * m)
            parts[a].append(packed(indices[one], values[one], out[0][one]))
    codes = [csr(counts[a], parts[a], (n, d.n_atoms), d.dtype) for a in range(k)]
    complain("lasso_path", status.max(axis=0) if n else status[0])
    return codes, [RecoveryInfo(status[a], residual[a], steps[a], gap[a]) for a in range(k)]


def _prepare(d: Dictionary, n: int) -> int:
    """Makes ready what n signals multiply by; atoms of the largest working set that goes by 16-bit rows.

    Of signals that come in blocks all count, so that bits do not depend on how they are cut.
    """
    repaid = rows_in_all(n) >= _REPAID * d.n_atoms
    if gram_fits(d) and d.n_atoms <= (_GRAM_ATOMS if repaid else _SMALL):
        hold_gram(d)
        return 0
    hold_screen(d)
    return _SET if gram_fits(d) and d.n_atoms <= _GRAM_ATOMS else d.n_atoms


def _solve_lasso(ctx: Any, d: Dictionary, x: Array, out: Codes, most: int, **how: Any) -> None:
    """Codes of the signals x for each penalty, all signals of one penalty after those of the one before.

    Signals whose working set outgrows `most` atoms are solved again by the Gram matrix, whatever the others do.
    """
    _core.lasso(ctx, handle_of(d), x, most_atoms=most, **how, **out._asdict())
    left = np.flatnonzero(out.status[: len(x)] == _core.SIGNAL_OPEN)
    if not len(left):
        return
    hold_gram(d)
    rows = (np.arange(len(how["alphas"]))[:, None] * len(x) + left).ravel()
    again = Codes._make(None if whole is None else whole[rows] for whole in out)
    _core.lasso(ctx, handle_of(d), x[left], most_atoms=0, **how, **again._asdict())
    for whole, part in zip(out, again, strict=True):
        if whole is not None:
            whole[rows] = part


def _penalties(alphas: Any, n_alphas: int, eps: float, X: Array | Blocks, d: Dictionary) -> Array:
    """The penalties of a path, in decreasing order."""
    if alphas is None:
        if isinstance(X, Blocks):
            top = max([0.0, *X.gathered(_largest_correlation, d)]) or 1.0
        else:
            top = _largest_correlation(X, d) or 1.0
        low, count = check_number(eps, "eps", 0, strict=True), check_count(n_alphas, "n_alphas")
        return np.ascontiguousarray(np.geomspace(1, low, count) * top)
    grid = np.sort(np.atleast_1d(as_numbers(alphas, "alphas")))[::-1]
    if grid.ndim != 1 or not grid.size or not (np.isfinite(grid) & (grid > 0)).all():
        raise ValueError("alphas: expected finite numbers above 0")
    return np.ascontiguousarray(grid)


def _largest_correlation(X: Array, d: Dictionary) -> float:
    """max |<d, x>| over all atoms and finite signals: the least penalty that leaves every code zero."""
    ctx, top = context(d.num_threads), 0.0
    size = max(1, BLOCK_BYTES // (d.n_atoms * (4 + d.dtype.itemsize)))
    for start in range(0, X.shape[0], size):
        x = np.ascontiguousarray(whitened(d, X[start : start + size]), np.float64)
        x = x[np.isfinite(x).all(axis=1)]
        if len(x):
            one = np.empty(len(x))
            _core.correlation_max(ctx, handle_of(d), x, one)
            top = max(top, float(one.max()))
    return top


# -------------------------------------------------------------------- basis pursuit


@by_blocks(np.float64)
def basis_pursuit(
    X: Any,
    dictionary: Any,
    *,
    tol: float = 1e-8,
    max_iter: int = 100,
    metric: Any = None,
    num_threads: int | None = None,
    verbose: bool = False,
    return_info: bool = False,
) -> Any:
    """Basis pursuit: ``argmin ||z||_1`` subject to ``z D = x``, for each signal.

    Every K-sparse code with ``K < (1 + 1 / coherence) / 2`` is the one and only solution.

    Work and codes are float64. Matching pursuit is tried first; its code is taken where a dual
    certificate proves it optimal. Otherwise a primal-dual interior-point method solves the linear
    programme, at about ``n_atoms * d_in**2`` operations a step and 10 to 20 steps a signal; where it comes to no end, an
    active-set method does.

    Parameters
    ----------
    tol : float
        Relative duality gap.
    max_iter : int
        Most interior-point steps.
    X, dictionary, metric, num_threads, verbose, return_info
        As in :func:`omp`.

    Returns
    -------
    csr_array (n_signals, n_atoms) of float64
        CONVERGED is a code whose residual is at most ``1e-9 * ||x||`` and whose gap is at most `tol`. Signals that
        are proved to lie outside the span of the atoms have status INFEASIBLE; LIMIT is what rounding leaves
        undecided, as over atoms that are dependent but for a billionth.

    References
    ----------
    Chen, Donoho, Saunders, "Atomic decomposition by basis pursuit" (1998); Fuchs, "On sparse
    representations in arbitrary redundant bases" (2004), for the certificate.
    """
    return _basis(
        "basis_pursuit", X, dictionary, 0.0, tol, max_iter, metric, num_threads, verbose, return_info
    )


@by_blocks(np.float64)
def basis_pursuit_denoise(
    X: Any,
    dictionary: Any,
    sigma: float,
    *,
    tol: float = 1e-6,
    max_iter: int = 200,
    metric: Any = None,
    num_threads: int | None = None,
    verbose: bool = False,
    return_info: bool = False,
) -> Any:
    """Basis pursuit denoising: ``argmin ||z||_1`` subject to ``||x - z D|| <= sigma``.

    Solved through the lasso whose residual has norm `sigma`: the penalty is found by Newton steps
    on the support inside a bracket. Work and codes are float64. With `sigma` under about 0.5% of
    ``||x||`` on signals without a sparse code the support grows towards d_in atoms and each penalty
    costs its cube: expect it to be many times slower than at 10%.

    Parameters
    ----------
    sigma : float
        Largest norm (not squared) of the residual; 0 is :func:`basis_pursuit`. Signals whose norm
        is at most sigma have the code zero.
    tol : float
        Relative duality gap.
    max_iter : int
        Most penalties tried for a signal.
    X, dictionary, metric, num_threads, verbose, return_info
        As in :func:`omp`.

    Returns
    -------
    csr_array (n_signals, n_atoms) of float64
        Signals that are proved to lie farther than sigma from the span of the atoms have status INFEASIBLE.
    """
    s = check_number(sigma, "sigma", 0)
    name = "basis_pursuit_denoise"
    return _basis(name, X, dictionary, s, tol, max_iter, metric, num_threads, verbose, return_info)


def _basis(
    name: str,
    X: Any,
    dictionary: Any,
    sigma: float,
    tol: float,
    max_iter: int,
    metric: Any,
    num_threads: int | None,
    verbose: bool,
    return_info: bool,
) -> Any:
    X = table(X, min_rows=0)
    d = dictionary_of(dictionary, X, metric, num_threads, np.float64)
    stop, most = check_number(tol, "tol", 0, strict=True), check_count(max_iter, "max_iter")
    ctx = context(num_threads)
    hold_gram(d)

    def solve(handle: Any, x: Array, rows: slice, out: Codes) -> None:
        _core.basis(ctx, handle, x, sigma=sigma, tol=stop, max_steps=most, **out._asdict())

    return code(name, X, d, d.n_atoms, solve, verbose=verbose, return_info=return_info, has_gap=True)
