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
and its Gram matrix (``n_atoms ** 2`` numbers, never more than `gram_bytes`), one block of signals
(64 MB) and the codes returned.
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
from ._config import context
from ._estimator import check_array, nonfinite_error

__all__ = ["Dictionary", "RecoveryInfo", "RecoveryWarning", "Status", "omp"]

Array = np.ndarray
_BLOCK_BYTES = 1 << 26


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
    atoms : array-like (n_atoms, d_in)
        Atoms as rows, of any norm; a zero row is never used.
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
        a = check_array(atoms, "dictionary")
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
        try:
            self._handle = _core.dict_new(context(num_threads), a, self.dtype == np.float64)
        except ValueError as error:
            if "NaN" not in str(error):
                raise
            raise nonfinite_error(a, "dictionary") from None

    def _gram_fits(self) -> bool:
        return (-(-self.n_atoms // 64) * 64) ** 2 * self.dtype.itemsize <= self.gram_bytes

    def _prepare(self, gram: bool) -> None:
        """Hold the Gram matrix from now on, if `gram` and if it fits."""
        if gram and self._gram_fits():
            with self._lock:
                _core.dict_gram(context(self.num_threads), self._handle)

    @property
    def has_gram(self) -> bool:
        """Whether the Gram matrix has been computed."""
        return _core.dict_has_gram(self._handle)

    def _signals(self, block: Array) -> Array:
        """A block of signals as the solvers take it."""
        if self.metric is None:
            return block
        x = np.asarray(block, np.float64)
        return (x - self.metric.mean_ if self.metric.centered else x) @ self.metric.whitener_


def _dictionary(dictionary: Any, X: Array, metric: Any, num_threads: int | None) -> Dictionary:
    if isinstance(dictionary, Dictionary):
        if metric is not None and metric is not dictionary.metric:
            raise ValueError("metric: the Dictionary was made with another metric; pass the metric to Dictionary")
        return dictionary
    a = check_array(dictionary, "dictionary")
    double = X.dtype == np.float64 and a.dtype == np.float64
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
    _complain(name, status)
    if not return_info:
        return codes
    return codes, RecoveryInfo(status, residual, steps, gap)


def _csr(counts: Array, parts: list[tuple[Array, Array]], shape: tuple[int, int], dtype: Any) -> Any:
    indptr = np.zeros(shape[0] + 1, np.int64)
    np.cumsum(counts, out=indptr[1:])
    index = np.int32 if indptr[-1] <= np.iinfo(np.int32).max else np.int64
    indices = np.concatenate([p[0] for p in parts]) if parts else np.empty(0, np.int32)
    values = np.concatenate([p[1] for p in parts]) if parts else np.empty(0, dtype)
    return scipy.sparse.csr_array((values, indices.astype(index, copy=False), indptr.astype(index)), shape=shape)


def _complain(name: str, status: Array) -> None:
    said = []
    for s, text in _COMPLAINT.items():
        at = np.flatnonzero(status == s)
        if at.size:
            said.append(f"{at.size} {text}, first in row {at[0]}")
    if said:
        warnings.warn(f"{name}: of {status.size} signals " + "; ".join(said), RecoveryWarning, stacklevel=4)


def _number(name: str, value: Any, low: float, *, strict: bool = False) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number, got {value!r}") from None
    if not (number > low if strict else number >= low) or number == np.inf:
        raise ValueError(f"{name}: expected a finite number {'above' if strict else 'of at least'} {low:g}, got {value!r}")
    return number


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value!r}")
    return int(value)


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
    precision, so selections are those of float32. An atom counts as dependent when the squared
    norm of its part outside the span is below 3e-5 (float32) or 1e-12 (float64); it is left out
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
        most = min(limit, _count("n_nonzero", n_nonzero))
    stop = -1.0 if tol is None else _number("tol", tol, 0)
    warm = _support(support, X.shape[0], d.n_atoms)
    d._prepare(d.n_atoms < 2 * max(1, X.shape[0]) * most)
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
