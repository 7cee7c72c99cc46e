"""Sparse recovery: the sparse codes themselves, not an encoder's guess.

Every function takes signals as rows ``X (n_signals, d_in)`` and a dictionary as rows
``dictionary (n_atoms, d_in)``, and returns codes as a ``scipy.sparse.csr_array``
``(n_signals, n_atoms)`` with ``X`` close to ``codes @ dictionary``. With ``metric`` (a fitted
:class:`atoms.AtomicInnerProduct`) signals and atoms are whitened first, so that every inner product
and norm below is that of the metric; a centred metric also takes its mean from the signals.

Nothing is dropped silently. Signals that cannot be coded give empty rows; ``return_info=True``
returns a :class:`RecoveryInfo` with a status for each signal beside the codes, and a
:class:`RecoveryWarning` counts the signals concerned.

Signals are read in blocks, so memory maps of any length will do. Peak memory is the dictionary
(where OMP screens by 16-bit products as much again, later half of that) and its Gram matrix
(``n_atoms ** 2`` numbers, half as much again where OMP screens, never more than `gram_bytes`), one block
of signals with its codes at full width (64 MB, or 256 signals if those need more), the codes returned,
twice while the blocks are joined, and 24 bytes a signal for what became of it.
"""

from __future__ import annotations

import enum
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
from tqdm.auto import tqdm

from . import _core
from ._checks import (
    atoms_of,
    check_array,
    check_count,
    check_number,
    first_nonfinite_row,
    nonfinite_error,
)
from ._config import context
from ._estimator import Estimator

__all__ = [
    "Dictionary",
    "RecoveryInfo",
    "RecoveryWarning",
    "SparseCoder",
    "Status",
    "basis_pursuit",
    "basis_pursuit_denoise",
    "cosamp",
    "gradient_pursuit",
    "iht",
    "lasso",
    "lasso_path",
    "matching_pursuit",
    "omp",
    "threshold_code",
    "threshold_interval",
]

Array = np.ndarray
_BLOCK_BYTES = 1 << 26
# For so many signals OMP screens by 16-bit products; for so few nonzeros, over so many atoms, it makes do with a Gram
# matrix of them and goes back to the atoms for what it chooses.
_UNITS_SIGNALS, _COARSE_NONZERO, _COARSE_ATOMS = 64, 16, 1024


class RecoveryWarning(UserWarning):
    """Some signals were not coded as asked; the message counts them."""


class Status(enum.IntEnum):
    """What became of a signal."""

    CONVERGED = 0  #: the stopping rule was met, or the residual is all rounding
    DEPENDENT = 1  #: the same, after leaving out atoms in the span of those chosen
    LIMIT = 2  #: stopped by the limit on atoms or steps; the code is the best so far
    NONFINITE = 3  #: NaN or infinity in the signal: empty row
    RANGE = 4  #: a coefficient is too large for the dtype: empty row
    INFEASIBLE = 5  #: no code meets the constraint; the code is the nearest found


_COMPLAINT = {
    Status.DEPENDENT: "met linearly dependent atoms, which were left out",
    Status.LIMIT: "stopped at the limit on atoms or steps before the tolerance",
    Status.NONFINITE: "contain NaN or infinity (empty rows)",
    Status.RANGE: "have coefficients too large for the dtype (empty rows; use float64)",
    Status.INFEASIBLE: "cannot be represented within the constraint",
}


@dataclass(frozen=True)
class RecoveryInfo:
    """What became of each signal.

    Attributes
    ----------
    status : ndarray of int8 (n_signals,)
        Values of :class:`Status`.
    residual : ndarray of float64 (n_signals,)
        Norm of ``x - code @ dictionary`` (in the metric, where there is one); NaN where the
        signal holds NaN or infinity.
    steps : ndarray of int32 (n_signals,)
        Iterations taken.
    gap : ndarray of float64 (n_signals,) or None
        Duality gap, for the methods that have one.
    """

    status: Array
    residual: Array
    steps: Array
    gap: Array | None = None

    def counts(self) -> dict[str, int]:
        """Number of signals by status, those that occur."""
        values, numbers = np.unique(self.status, return_counts=True)
        return {Status(v).name: int(n) for v, n in zip(values, numbers, strict=True)}


# ---------------------------------------------------------------------- dictionary


class Dictionary:
    """A dictionary made ready once, for any number of calls.

    Parameters
    ----------
    atoms : array-like (n_atoms, d_in) or model
        Atoms as rows, of any norm; a zero row is never used. Of a model (an autoencoder, one that
        `atoms.load` read) its ``W_dec``.
    metric : AtomicInnerProduct, optional
        A fitted metric; atoms and signals are whitened by it.
    dtype : float32 or float64, optional
        Precision of the work. By default float64 for float64 atoms, else float32.
    gram_bytes : int, default 2 ** 31
        Largest Gram matrix to hold. Beyond it methods work from the atoms alone.
    num_threads : int, optional

    Raises
    ------
    ValueError
        For NaN or infinity, with its row; for another number of dimensions than two.
    """

    def __init__(
        self,
        atoms: Any,
        *,
        metric: Any = None,
        dtype: Any = None,
        gram_bytes: int = 1 << 31,
        num_threads: int | None = None,
    ) -> None:
        a = check_array(atoms_of(atoms), "dictionary")
        self.dtype = np.dtype(a.dtype if dtype is None and a.dtype == np.float64 else dtype or np.float32)
        if self.dtype not in (np.float32, np.float64):
            raise ValueError(f"dtype: expected float32 or float64, got {self.dtype}")
        self.metric = metric
        self.n_atoms, self.d_in = a.shape
        self.gram_bytes = gram_bytes
        self.num_threads = num_threads
        if metric is not None:
            if metric.n_features_in_ != self.d_in:
                raise ValueError(
                    f"metric: fitted on {metric.n_features_in_} features, the dictionary has {self.d_in} columns"
                )
            a = np.asarray(a, np.float64) @ metric.whitener_
        self._lock = threading.Lock()
        self._given = atoms_of(atoms), metric, self.dtype, gram_bytes, num_threads
        try:
            self._handle = _core.dict_new(context(num_threads), a, self.dtype == np.float64)
        except ValueError as error:
            if "NaN" not in str(error):
                raise
            raise nonfinite_error(a, "dictionary") from None

    def __reduce__(self) -> Any:
        return _remake, self._given

    def _gram_fits(self, itemsize: int) -> bool:
        return bool((-(-self.n_atoms // 64) * 64) ** 2 * itemsize <= self.gram_bytes)

    def _prepare(self, gram: bool, units: bool = False, coarse: bool = False) -> None:
        """Hold the Gram matrix from now on, if `gram` and if it fits. `units`: and atoms and Gram matrix in 16 bits,
        to screen by; `coarse`: a Gram matrix of such atoms will do."""
        size = self.dtype.itemsize
        if gram and self._gram_fits(size):
            with self._lock:
                units = units and self._gram_fits(size + 2)
                _core.dict_gram(context(self.num_threads), self._handle, units, units and coarse)

    def _prepare_lasso(self) -> None:
        """Hold what correlations can be screened by, or else the Gram matrix if it fits."""
        with self._lock:
            screened = _core.dict_units(context(self.num_threads), self._handle)
        if not screened:
            self._prepare(True)

    @property
    def has_gram(self) -> bool:
        """Whether the Gram matrix has been computed."""
        return _core.dict_has_gram(self._handle)

    def _signals(self, block: Array) -> Array:
        """A block of signals as the solvers take it."""
        if self.metric is None:
            return block
        x = np.asarray(block, np.float64)
        return np.asarray((x - self.metric.mean_ if self.metric.centered else x) @ self.metric.whitener_)


def _remake(atoms: Any, metric: Any, dtype: Any, gram_bytes: int, num_threads: int | None) -> Dictionary:
    return Dictionary(atoms, metric=metric, dtype=dtype, gram_bytes=gram_bytes, num_threads=num_threads)


def _dictionary(
    dictionary: Any, X: Array, metric: Any, num_threads: int | None, dtype: Any = None
) -> Dictionary:
    if isinstance(dictionary, Dictionary):
        if dtype is not None and dictionary.dtype != dtype:
            raise ValueError(
                f"dictionary: expected a Dictionary of dtype {np.dtype(dtype)}, got {dictionary.dtype}"
            )
        if metric is not None and metric is not dictionary.metric:
            raise ValueError(
                "metric: the Dictionary was made with another metric; pass the metric to Dictionary"
            )
        return dictionary
    a = check_array(atoms_of(dictionary), "dictionary")
    double = dtype == np.float64 or (X.dtype == np.float64 and a.dtype == np.float64)
    return Dictionary(a, metric=metric, dtype=np.float64 if double else np.float32, num_threads=num_threads)


# ------------------------------------------------------------------------- streaming

# A solver codes one block: (handle, x, indices, values, counts, status, steps, residual, gap).
_Solver = Callable[..., None]


def _blocks(n: int, row_bytes: int, verbose: bool, name: str) -> Iterator[slice]:
    size = max(256, min(1 << 16, _BLOCK_BYTES // max(row_bytes, 1) // 256 * 256))
    with tqdm(total=n, unit="signal", unit_scale=True, desc=name, disable=not verbose) as bar:
        for start in range(0, n, size):
            stop = min(start + size, n)
            yield slice(start, stop)
            bar.update(stop - start)


def _code(
    name: str,
    X: Array,
    d: Dictionary,
    width: int,
    solve: _Solver,
    *,
    verbose: bool,
    return_info: bool,
    has_gap: bool = False,
    depth: int = 0,
) -> Any:
    """Run `solve` over blocks of `X`; codes of at most `width` atoms each as one CSR array."""
    n = X.shape[0]
    if X.shape[1] != d.d_in:
        raise ValueError(f"X: expected {d.d_in} columns, as the dictionary has, got {X.shape[1]}")
    status, steps = np.zeros(n, np.int8), np.zeros(n, np.int32)
    residual, gap = np.zeros(n) if return_info else None, np.zeros(n) if has_gap else None
    counts, parts = np.zeros(n, np.int32), []
    row_bytes = width * (4 + d.dtype.itemsize) + d.d_in * 8
    for rows in _blocks(n, row_bytes, verbose, name):
        x = d._signals(X[rows])
        m = rows.stop - rows.start
        indices, values = np.empty((m, width), np.int32), np.empty((m, width), d.dtype)
        solve(
            d._handle,
            x,
            indices,
            values,
            counts[rows],
            status[rows],
            steps[rows],
            None if residual is None else residual[rows],
            None if gap is None else gap[rows],
            rows,
        )
        total = int(counts[rows].sum())
        packed = np.empty(total, np.int32), np.empty(total, d.dtype)
        _core.pack_codes(indices, values, counts[rows], *packed)
        parts.append(packed)
    codes = _csr(counts, parts, (n, d.n_atoms), d.dtype)
    _complain(name, status, stacklevel=4 + depth)
    if residual is None:
        return codes
    return codes, RecoveryInfo(status, residual, steps, gap)


def _csr(counts: Array, parts: list[tuple[Array, Array]], shape: tuple[int, int], dtype: Any) -> Any:
    indptr = np.zeros(shape[0] + 1, np.int64)
    np.cumsum(counts, out=indptr[1:])
    index = np.int32 if indptr[-1] <= np.iinfo(np.int32).max else np.int64
    indices = np.concatenate([p[0] for p in parts]) if parts else np.empty(0, np.int32)
    values = np.concatenate([p[1] for p in parts]) if parts else np.empty(0, dtype)
    return scipy.sparse.csr_array(
        (values, indices.astype(index, copy=False), indptr.astype(index)), shape=shape
    )


def _complain(name: str, status: Array, stacklevel: int) -> None:
    said = []
    for s, text in _COMPLAINT.items():
        at = np.flatnonzero(status == s)
        if at.size:
            said.append(f"{at.size} {text}, first in row {at[0]}")
    if said:
        warnings.warn(
            f"{name}: of {status.size} signals " + "; ".join(said), RecoveryWarning, stacklevel=stacklevel
        )


# ------------------------------------------------------------------------------- OMP


def _support(support: Any, n: int, n_atoms: int) -> tuple[Array, Array] | None:
    """A CSR pattern; within a row the atoms come largest coefficient first."""
    if support is None:
        return None
    s = scipy.sparse.csr_array(support)
    if s.shape != (n, n_atoms):
        raise ValueError(f"support: expected shape ({n}, {n_atoms}), got {s.shape}")
    row = np.repeat(np.arange(n), np.diff(s.indptr))
    order = np.lexsort((-np.abs(np.asarray(s.data, np.float64)), row))
    return s.indptr.astype(np.int64), s.indices[order].astype(np.int32)


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
    nonnegative : bool
        Codes with coefficients >= 0 only: the largest positive ``<d, r>`` joins, refits are
        non-negative least squares, and atoms may leave. Only with ``selection="omp"``.
    support : sparse array (n_signals, n_atoms), optional
        Warm support, for example an SAE's codes: these atoms join first, largest first.
    metric : AtomicInnerProduct, optional
    num_threads : int, optional
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
    precision, so selections are those of float32. With AVX-512 VNNI and 64 signals or more the
    correlations are 16-bit products too, and the search reads the Gram matrix rounded to 16 bits (6 bytes an
    element in all); for at most 16 nonzeros over 1,024 atoms or more, few of them with near neighbours, a
    Gram matrix of 16-bit products alone (2 bytes) takes its place. An atom counts as dependent when
    the squared norm of its part outside the span is below 3e-5 (float32) or 1e-12 (float64); it is left out
    and the status says so. A signal that is explained down to rounding stops early.

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
    X = check_array(X, "X", min_rows=0)
    d = _dictionary(dictionary, X, metric, num_threads)
    if selection not in ("omp", "ols"):
        raise ValueError(f"selection: expected 'omp' or 'ols', got {selection!r}")
    if nonnegative and selection == "ols":
        raise ValueError("nonnegative: only with selection='omp'")
    limit = min(d.n_atoms, d.d_in)
    if n_nonzero is None:
        most = limit if tol is not None else min(limit, max(1, d.d_in // 10))
    else:
        most = min(limit, check_count(n_nonzero, "n_nonzero"))
    stop = -1.0 if tol is None else check_number(tol, "tol", 0)
    warm = _support(support, X.shape[0], d.n_atoms)
    many = not nonnegative and X.shape[0] >= _UNITS_SIGNALS
    coarse = many and most <= _COARSE_NONZERO and d.n_atoms >= _COARSE_ATOMS
    d._prepare(d.n_atoms < 2 * max(1, X.shape[0]) * most, many, coarse)
    ctx = context(num_threads)

    def solve(handle: Any, x: Array, indices: Array, values: Array, *rest: Any) -> None:
        counts, status, steps, residual, _, rows = rest
        indptr = atoms = None
        if warm is not None:
            begin, end = warm[0][rows.start], warm[0][rows.stop]
            indptr, atoms = warm[0][rows.start : rows.stop + 1] - begin, warm[1][begin:end]
        _core.omp(
            ctx, handle, x, most, stop, selection == "ols", nonnegative, indptr, atoms,
            indices, values, counts, status, steps, residual,
        )  # fmt: skip

    return _code("omp", X, d, most, solve, verbose=verbose, return_info=return_info)


# ---------------------------------------------------------------------------- lasso


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
    X, dictionary, metric, num_threads, verbose, return_info
        As in :func:`omp`. Atoms of any norm; the penalty falls on the coefficients of the atoms
        as given.
    alpha : float
        Penalty, above 0. At ``alpha >= max |D x|`` the code is zero.
    positive : bool
        Coefficients >= 0.
    tol : float
        A signal has converged when its duality gap is at most ``tol * ||x||**2``. In float32
        rounding leaves about 1e-6.
    max_iter : int
        Working sets tried before a signal is given up with status LIMIT.

    Returns
    -------
    csr_array (n_signals, n_atoms)

    Notes
    -----
    Coordinate descent on a working set with its Gram matrix in cache, ended by a step to the minimiser on the support.
    Correlations of all atoms with the residuals are taken for up to 32 signals at once, two or three times in all:
    ``n_atoms * d_in`` multiplications a signal each time. In between only the atoms are evaluated that could reach
    the penalty by as far as the residual has moved, which is enough for the duality gap. In float32 with AVX-512
    VNNI these correlations are 16-bit products, with an error bound that counts as movement; what enters code and gap
    is evaluated in float32. This takes the atoms once more in 16 bits and no Gram matrix. Other CPUs and float64
    hold the Gram matrix where it fits and bring correlations up to date from it, at ``n_atoms`` multiplications for
    each coefficient that changed. Each thread works on 32 signals: their rows, ``32 * n_atoms`` correlations, and the
    Gram matrix of one working set, of up to 64 atoms for those that wait.

    Examples
    --------
    >>> import numpy as np
    >>> from atoms.recovery import lasso
    >>> lasso(np.array([[0.5, 3.0, -1.0]]), np.eye(3), 0.75).toarray()
    array([[ 0.  ,  2.25, -0.25]])
    """
    X = check_array(X, "X", min_rows=0)
    d = _dictionary(dictionary, X, metric, num_threads)
    alphas = np.array([check_number(alpha, "alpha", 0, strict=True)])
    stop, rounds = check_number(tol, "tol", 0, strict=True), check_count(max_iter, "max_iter")
    d._prepare_lasso()
    ctx = context(num_threads)

    def solve(handle: Any, x: Array, indices: Array, values: Array, *rest: Any) -> None:
        _core.lasso(ctx, handle, x, alphas, positive, stop, rounds, indices, values, *rest[:5])

    return _code("lasso", X, d, d.n_atoms, solve, verbose=verbose, return_info=return_info, has_gap=True)


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
    alphas : array-like, optional
        Penalties, used in decreasing order. Default: `n_alphas` from ``max |D x|`` over all
        signals down to `eps` times that, evenly in the logarithm.
    X, dictionary, positive, tol, max_iter, metric, num_threads, return_info
        As in :func:`lasso`.

    Returns
    -------
    alphas : ndarray (n_alphas,)
    codes : list of csr_array (n_signals, n_atoms)
    infos : list of RecoveryInfo
        Only with ``return_info=True``.
    """
    X = check_array(X, "X", min_rows=0)
    d = _dictionary(dictionary, X, metric, num_threads)
    d._prepare_lasso()
    if X.shape[1] != d.d_in:
        raise ValueError(f"X: expected {d.d_in} columns, as the dictionary has, got {X.shape[1]}")
    if alphas is None:
        top = _largest_correlation(X, d, dictionary)
        grid = np.geomspace(
            1, check_number(eps, "eps", 0, strict=True), check_count(n_alphas, "n_alphas")
        ) * (top or 1.0)
    else:
        grid = np.sort(np.atleast_1d(np.asarray(alphas, np.float64)))[::-1]
        if grid.ndim != 1 or not grid.size or not (np.isfinite(grid) & (grid > 0)).all():
            raise ValueError("alphas: expected finite numbers above 0")
    grid = np.ascontiguousarray(grid)
    stop, rounds, ctx = (
        check_number(tol, "tol", 0, strict=True),
        check_count(max_iter, "max_iter"),
        context(num_threads),
    )
    k, n = grid.size, X.shape[0]
    status, steps = np.zeros((k, n), np.int8), np.zeros((k, n), np.int32)
    residual, gap, counts = np.zeros((k, n)), np.zeros((k, n)), np.zeros((k, n), np.int32)
    parts: list[list[tuple[Array, Array]]] = [[] for _ in range(k)]
    size = max(1, min(1024, _BLOCK_BYTES // (k * d.n_atoms * (4 + d.dtype.itemsize))))
    for start in range(0, n, size):
        rows = slice(start, min(start + size, n))
        m = rows.stop - start
        indices, values = np.empty((k * m, d.n_atoms), np.int32), np.empty((k * m, d.n_atoms), d.dtype)
        out = [np.zeros(k * m, t) for t in (np.int32, np.int8, np.int32, np.float64, np.float64)]
        _core.lasso(ctx, d._handle, d._signals(X[rows]), grid, positive, stop, rounds, indices, values, *out)
        for whole, part in zip((counts, status, steps, residual, gap), out, strict=True):
            whole[:, rows] = part.reshape(k, m)
        for a in range(k):
            one = slice(a * m, (a + 1) * m)
            total = int(out[0][one].sum())
            packed = np.empty(total, np.int32), np.empty(total, d.dtype)
            _core.pack_codes(indices[one], values[one], out[0][one], *packed)
            parts[a].append(packed)
    codes = [_csr(counts[a], parts[a], (n, d.n_atoms), d.dtype) for a in range(k)]
    _complain("lasso_path", status.max(axis=0) if n else status[0], stacklevel=3)
    if not return_info:
        return grid, codes
    return grid, codes, [RecoveryInfo(status[a], residual[a], steps[a], gap[a]) for a in range(k)]


def _largest_correlation(X: Array, d: Dictionary, dictionary: Any) -> float:
    """max |<d, x>| over all atoms and finite signals: one step of a lasso that cannot move."""
    ctx, top = context(d.num_threads), 0.0
    size = max(1, _BLOCK_BYTES // (d.n_atoms * (4 + d.dtype.itemsize)))
    for start in range(0, X.shape[0], size):
        x = np.ascontiguousarray(d._signals(X[start : start + size]), np.float64)
        x = x[np.isfinite(x).all(axis=1)]
        if len(x):
            one = np.empty(len(x))
            _core.correlation_max(ctx, d._handle, x, one)
            top = max(top, float(one.max()))
    return top


# -------------------------------------------------------------------- basis pursuit


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
    programme, at about ``n_atoms * d_in**2`` operations a step and 10 to 20 steps a signal.

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
        Signals outside the span of the atoms have status INFEASIBLE.

    References
    ----------
    Chen, Donoho, Saunders, "Atomic decomposition by basis pursuit" (1998); Fuchs, "On sparse
    representations in arbitrary redundant bases" (2004), for the certificate.
    """
    return _basis(
        "basis_pursuit", X, dictionary, 0.0, tol, max_iter, metric, num_threads, verbose, return_info
    )


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
        Signals farther than sigma from the span of the atoms have status INFEASIBLE.
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
    X = check_array(X, "X", min_rows=0)
    d = _dictionary(dictionary, X, metric, num_threads, np.float64)
    stop, most, ctx = (
        check_number(tol, "tol", 0, strict=True),
        check_count(max_iter, "max_iter"),
        context(num_threads),
    )
    d._prepare(True)

    def solve(handle: Any, x: Array, indices: Array, values: Array, *rest: Any) -> None:
        _core.basis(ctx, handle, x, sigma, stop, most, indices, values, *rest[:5])

    return _code(
        name, X, d, d.n_atoms, solve, verbose=verbose, return_info=return_info, has_gap=True, depth=1
    )


# ------------------------------------------------------------------- other pursuits


def _pursuit(
    method: int,
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
    X = check_array(X, "X", min_rows=0)
    d = _dictionary(dictionary, X, metric, num_threads)
    limit = min(d.n_atoms, d.d_in)
    most = min(limit, max(1, d.d_in // 10) if n_nonzero is None else check_count(n_nonzero, "n_nonzero"))
    stop, steps = -1.0 if tol is None else check_number(tol, "tol", 0), check_count(max_iter, "max_iter")
    d._prepare(True)
    ctx = context(num_threads)

    def solve(handle: Any, x: Array, indices: Array, values: Array, *rest: Any) -> None:
        _core.pursuit(ctx, handle, x, method, most, steps, stop, indices, values, *rest[:4])

    name = ("matching_pursuit", "gradient_pursuit", "cosamp", "iht")[method]
    return _code(name, X, d, most, solve, verbose=verbose, return_info=return_info, depth=1)


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

    Once `n_nonzero` atoms (default 10% of d_in) are in the code only those go on. Stops at `tol`
    (norm of the residual, not squared), at `max_iter` steps, or when what is left is rounding.
    A step costs n_atoms multiplications. Other arguments as in :func:`omp`.

    References
    ----------
    Mallat, Zhang, "Matching pursuits with time-frequency dictionaries" (1993).
    """
    return _pursuit(0, X, dictionary, n_nonzero, tol, max_iter, metric, num_threads, verbose, return_info)


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
        X = check_array(X, "X", min_rows=0)
        max_iter = 1000 if tol is not None else n_nonzero or max(1, X.shape[1] // 10)
    return _pursuit(1, X, dictionary, n_nonzero, tol, max_iter, metric, num_threads, verbose, return_info)


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

    Stops when the residual no longer falls, at `tol` or at `max_iter` (status LIMIT). Arguments as
    in :func:`omp`; `n_nonzero` is K.

    References
    ----------
    Needell, Tropp, "CoSaMP" (2009).
    """
    return _pursuit(2, X, dictionary, n_nonzero, tol, max_iter, metric, num_threads, verbose, return_info)


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
    or at `max_iter` (status LIMIT). Arguments as in :func:`omp`; `n_nonzero` is K.

    References
    ----------
    Blumensath, Davies, "Normalized iterative hard thresholding" (2010).
    """
    return _pursuit(3, X, dictionary, n_nonzero, tol, max_iter, metric, num_threads, verbose, return_info)


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
    z = scipy.sparse.csr_array(codes, copy=True)
    z.eliminate_zeros()
    size = abs(z.data.astype(np.float64))
    k = np.diff(z.indptr)
    row = np.repeat(np.arange(z.shape[0]), k)
    top, least = np.zeros(z.shape[0]), np.full(z.shape[0], np.inf)
    np.maximum.at(top, row, size)
    np.minimum.at(least, row, size)
    return mu * k * top, least - mu * np.maximum(k - 1, 0) * top


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
        ``mu (K - 1) high``.
    """
    X = check_array(X, "X", min_rows=0)
    d = _dictionary(dictionary, X, metric, num_threads)
    taus = np.ascontiguousarray(np.broadcast_to(np.asarray(tau, np.float64), X.shape[:1]))
    if not (taus >= 0).all():
        raise ValueError("tau: expected numbers of at least 0")
    ctx = context(num_threads)

    def solve(handle: Any, x: Array, indices: Array, values: Array, *rest: Any) -> None:
        _core.threshold(ctx, handle, x, taus[rest[-1]], signed, indices, values, *rest[:4])

    return _code("threshold_code", X, d, d.n_atoms, solve, verbose=verbose, return_info=return_info)


# -------------------------------------------------------------------------- estimator

_METHODS: dict[str, Callable[..., Any]] = {
    "omp": omp,
    "ols": lambda *a, **k: omp(*a, selection="ols", **k),
    "nn_omp": lambda *a, **k: omp(*a, nonnegative=True, **k),
    "lasso": lasso,
    "basis_pursuit": basis_pursuit,
    "basis_pursuit_denoise": basis_pursuit_denoise,
    "matching_pursuit": matching_pursuit,
    "gradient_pursuit": gradient_pursuit,
    "cosamp": cosamp,
    "iht": iht,
    "threshold": threshold_code,
}
_COUNTED = ("omp", "ols", "nn_omp", "matching_pursuit", "gradient_pursuit", "cosamp", "iht")


class SparseCoder(Estimator):
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
        For the pursuits; default 10% of d_in.
    tol : float, optional
        For the pursuits the norm of the residual at which to stop, for the others the gap.
    alpha : float
        Penalty of "lasso", largest residual of "basis_pursuit_denoise", threshold of "threshold".
    metric : AtomicInnerProduct, optional
    num_threads : int, optional
    verbose : bool

    Attributes
    ----------
    dictionary_ : Dictionary
    components_ : ndarray (n_atoms, d_in)
        The atoms as given.
    n_features_in_ : int

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
        """Check the arguments and prepare the dictionary; X only has to have its width."""
        if self.method not in _METHODS:
            raise ValueError(f"method: expected one of {', '.join(_METHODS)}, got {self.method!r}")
        X = self._check_X(X, reset=True)
        if (row := first_nonfinite_row(X)) >= 0:
            raise nonfinite_error(X, "X", row)
        given = X[: 2 * X.shape[1]] if self.dictionary is None else self.dictionary
        if not isinstance(given, Dictionary):
            given = check_array(atoms_of(given), "dictionary")
            self.components_ = np.asarray(given)
            double = self.method.startswith("basis") or given.dtype == X.dtype == np.float64
            given = Dictionary(
                given,
                metric=self.metric,
                dtype=np.float64 if double else np.float32,
                num_threads=self.num_threads,
            )
        if given.d_in != X.shape[1]:
            raise ValueError(f"dictionary: expected {X.shape[1]} columns, as X has, got {given.d_in}")
        self.dictionary_ = given
        return self

    def transform(self, X: Any, return_info: bool = False) -> Any:
        """Codes of X as a csr_array (n_signals, n_atoms), and with `return_info` a RecoveryInfo.

        NaN or infinity in X is an error here, which names the row.
        """
        self._check_fitted()
        X = self._check_X(X, reset=False)
        if (row := first_nonfinite_row(X)) >= 0:
            raise nonfinite_error(X, "X", row)
        extra: dict[str, Any] = {"num_threads": self.num_threads, "verbose": self.verbose}
        if self.method in _COUNTED:
            extra["n_nonzero"] = self.n_nonzero
        if self.tol is not None and self.method != "threshold":
            extra["tol"] = self.tol
        named = {"lasso": "alpha", "basis_pursuit_denoise": "sigma", "threshold": "tau"}
        if self.method in named:
            extra[named[self.method]] = self.alpha
        return _METHODS[self.method](X, self.dictionary_, return_info=return_info, **extra)

    def fit_transform(self, X: Any, y: Any = None) -> Any:
        """``fit(X).transform(X)``."""
        return self.fit(X).transform(X)

    def inverse_transform(self, codes: Any) -> Array:
        """``codes @ dictionary``, plus the mean where the metric is centred."""
        self._check_fitted()
        X = np.asarray(codes @ self.components_)
        return X + self.metric.mean_ if self.metric is not None and self.metric.centered else X
