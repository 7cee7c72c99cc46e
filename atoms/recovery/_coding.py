"""One call of a solver over signals block by block: codes as one CSR array, and what became of each signal."""

from __future__ import annotations

import contextlib
import contextvars
import enum
import functools
import inspect
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

from .. import _core
from .._checks import narrow, outside, row_name
from .._progress import progress_bar
from .._rows import Blocks, is_dask, table, told
from .._shown import Shown, Table
from ._dictionary import Array, Dictionary, dictionary_of, handle_of, whitened

BLOCK_BYTES = 1 << 26  # of codes at full width that are held at a time


class RecoveryWarning(UserWarning):
    """Some signals were not coded as asked; the message counts them."""


class Status(enum.IntEnum):
    """What became of a signal."""

    #: the stopping rule was met, or the residual is all rounding
    CONVERGED = _core.SIGNAL_CONVERGED
    #: the stopping rule was met, but atoms in the span of those chosen were left out
    DEPENDENT = _core.SIGNAL_DEPENDENT
    #: stopped by the limit on atoms or steps; the code is the best so far
    LIMIT = _core.SIGNAL_LIMIT
    #: NaN or infinity in the signal: empty row
    NONFINITE = _core.SIGNAL_NONFINITE
    #: a coefficient is too large for the dtype: empty row
    RANGE = _core.SIGNAL_RANGE
    #: no code meets the constraint; the code is the nearest found
    INFEASIBLE = _core.SIGNAL_INFEASIBLE


_COMPLAINT = {  # of signals that were not coded as asked
    Status.DEPENDENT: "met linearly dependent atoms, which were left out",
    Status.LIMIT: "stopped at the limit on atoms or steps before the tolerance",
    Status.NONFINITE: "contain NaN or infinity (empty rows)",
    Status.RANGE: "have coefficients too large for the dtype (empty rows; use float64)",
    Status.INFEASIBLE: "cannot be represented within the constraint",
}


_SAYS = {Status.CONVERGED: "as asked", **_COMPLAINT}


@dataclass(frozen=True, repr=False)
class RecoveryInfo(Shown):
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
        values, numbers = np.unique(np.asarray(self.status), return_counts=True)
        return {Status(v).name: int(n) for v, n in zip(values, numbers, strict=True)}

    def __repr__(self) -> str:
        if is_dask(self.status):  # nobody has asked for them yet
            return f"RecoveryInfo(of {self.status!r})"
        counts = ", ".join(f"{n:,} {name}" for name, n in self.counts().items())
        return f"RecoveryInfo({len(self.status):,} signals: {counts or 'none'})"

    def _table(self) -> Table:
        counts = self.counts()
        total = sum(counts.values())
        rows = [(f"{name}: {_SAYS[Status[name]]}", n, n / total) for name, n in counts.items()]
        spread = [("norm of the residual", self.residual), ("steps", self.steps), ("duality gap", self.gap)]
        found = [(what, np.asarray(a)) for what, a in spread if a is not None]
        known = [(what, a[np.isfinite(a)]) for what, a in found]
        said = [f"{what}: median {np.median(a):.4g}, at most {a.max():.4g}" for what, a in known if len(a)]
        return Table("RecoveryInfo", rows, head=("", "signals", "share"), note="; ".join(said))


class Codes(NamedTuple):
    """What a solver fills for m signals: codes of at most `width` atoms each, and what became of each signal.

    The members are named as the core's keyword arguments.
    """

    indices: Array  #: (m, width) int32; row i holds counts[i] atoms, what follows them is not read
    values: Array  #: (m, width) of the dictionary's dtype: their coefficients
    counts: Array  #: (m,) int32
    status: Array  #: (m,) int8, values of Status
    steps: Array  #: (m,) int32
    residual: Array | None  #: (m,) float64; None: not asked for
    gap: Any  #: (m,) float64; None: the method has none

    def without_gap(self) -> dict[str, Any]:
        """What a method without a duality gap takes."""
        return {name: array for name, array in self._asdict().items() if name != "gap"}


#: solve(handle, x, rows, out): codes of the signals x, which are `rows` of all, into out
Solver = Callable[[Any, Array, slice, Codes], None]


def _blocks(n: int, row_bytes: int, verbose: bool, name: str) -> Iterator[slice]:
    size = max(256, min(1 << 16, BLOCK_BYTES // max(row_bytes, 1) // 256 * 256))
    with progress_bar(name, n, "signal", verbose=verbose) as bar:
        for start in range(0, n, size):
            stop = min(start + size, n)
            yield slice(start, stop)
            bar.update(stop - start)


def code(
    name: str,
    X: Array,
    d: Dictionary,
    width: int,
    solve: Solver,
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
        x = whitened(d, X[rows])
        m = rows.stop - rows.start
        out = Codes(
            np.empty((m, width), np.int32),
            np.empty((m, width), d.dtype),
            counts[rows],
            status[rows],
            steps[rows],
            None if residual is None else residual[rows],
            None if gap is None else gap[rows],
        )
        solve(handle_of(d), x, rows, out)
        parts.append(packed(out.indices, out.values, out.counts))
    codes = csr(counts, parts, (n, d.n_atoms), d.dtype)
    complain(name, status)
    if residual is None:
        return codes
    return codes, RecoveryInfo(status, residual, steps, gap)


def packed(indices: Array, values: Array, counts: Array) -> tuple[Array, Array]:
    """The codes' atoms and coefficients, row after row, without the unused room at the end of each row."""
    total = int(counts.sum())
    out = np.empty(total, np.int32), np.empty(total, values.dtype)
    _core.pack_codes(indices, values, counts, *out)
    return out


def csr(counts: Array, parts: list[tuple[Array, Array]], shape: tuple[int, int], dtype: Any) -> Any:
    """One CSR array of the codes of all blocks, as `packed` gives them."""
    indptr = np.zeros(shape[0] + 1, np.int64)
    np.cumsum(counts, out=indptr[1:])
    indices = np.concatenate([p[0] for p in parts]) if parts else np.empty(0, np.int32)
    values = np.concatenate([p[1] for p in parts]) if parts else np.empty(0, dtype)
    return narrow(values, indices, indptr, shape)


_silent = contextvars.ContextVar("_silent", default=False)  # of one thread; the warnings' filters are of all


@contextlib.contextmanager
def without_complaints() -> Iterator[None]:
    """For whoever codes many blocks and complains of all of them together."""
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)


def complain(name: str, status: Array) -> None:
    """Warn of the signals that were not coded as asked, if there are any."""
    if _silent.get():
        return
    said = []
    for s, text in _COMPLAINT.items():
        at = np.flatnonzero(status == s)
        if at.size:
            said.append(f"{at.size} {text}, first in {row_name(int(at[0]))}")
    if said:
        message = f"{name}: of {status.size} signals " + "; ".join(said)
        if not told(message, RecoveryWarning):
            warnings.warn(message, RecoveryWarning, stacklevel=outside())


_F = TypeVar("_F", bound=Callable[..., Any])


def by_blocks(dtype: Any = None) -> Callable[[_F], _F]:
    """A solver that codes an array of Dask where its blocks are, as arrays of Dask; `dtype` is the one it works in."""

    def decorated(solver: _F) -> _F:
        signature = inspect.signature(solver)

        @functools.wraps(solver)
        def wrapped(*args: Any, **options: Any) -> Any:
            X = args[0] if args else options.get("X")
            if not is_dask(X):
                return solver(*args, **options)
            given = signature.bind(*args, **options).arguments
            rows, threads = Blocks(given.pop("X")), given.get("num_threads")
            sample = table(rows.sample)
            d = dictionary_of(given.pop("dictionary"), sample, given.pop("metric", None), threads, dtype)
            given.pop("verbose", None)
            if isinstance(given.get("tau"), (list, tuple)):
                given["tau"] = np.asarray(given["tau"])
            each = [name for name in ("support", "tau") if getattr(given.get(name), "ndim", 0)]
            beside = [(name, given.pop(name)) for name in each]
            return rows.mapped(_solved, wrapped, d, each, given, beside=beside)

        return wrapped  # type: ignore[return-value]

    return decorated


def _solved(block: Array, *rest: Any) -> Any:
    """Codes of a block in a task."""
    *beside, solver, d, names, options = rest
    return solver(block, d, **dict(zip(names, beside)), **options)
