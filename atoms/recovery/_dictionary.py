"""Dictionaries: atoms made ready once for any number of calls."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from .. import _core
from .._checks import as_number, atoms_of, check_array, check_metric, nonfinite_error
from .._config import ForkedLock, context, one_blas_thread
from .._shown import Shown, Table

Array = np.ndarray


class Dictionary(Shown):
    """A dictionary made ready once, for any number of calls.

    Parameters
    ----------
    atoms : array-like (n_atoms, d_in) or model
        Atoms as rows, of any norm; a zero row is never used. Of a model (an autoencoder, one that
        `atoms.load` read) its ``W_dec``.
    metric : AtomicInnerProduct, optional
        A fitted metric; atoms and signals are whitened by it as it is now: it is copied, and the atoms are.
    dtype : float32 or float64, optional
        Precision of the work. By default float64 for float64 atoms, else float32.
    gram_bytes : int, default 2 ** 31
        Largest Gram matrix to hold. Beyond it methods work from the atoms alone.
    num_threads : int, optional
        To prepare it with; None for the package's setting.

    Raises
    ------
    ValueError
        For NaN or infinity, with its row; for another number of dimensions than two.
    """

    @one_blas_thread
    def __init__(
        self,
        atoms: Any,
        *,
        metric: Any = None,
        dtype: Any = None,
        gram_bytes: int = 1 << 31,
        num_threads: int | None = None,
    ) -> None:
        given = a = np.array(check_array(atoms_of(atoms, "dictionary"), "dictionary"))
        self.dtype = _dtype(dtype, a.dtype)
        metric = copy.deepcopy(
            metric
        )  # both as they are now: fitted further or changed, the caller's are others
        self.metric = metric
        self.n_atoms, self.d_in = a.shape
        self.gram_bytes = as_number(gram_bytes, "gram_bytes")
        self.num_threads = num_threads
        if metric is not None:
            check_metric(metric)
            if metric.n_features_in_ != self.d_in:
                raise ValueError(
                    f"metric: fitted on {metric.n_features_in_} features, the dictionary has {self.d_in} columns"
                )
            a = np.asarray(a, np.float64) @ metric.whitener_
        self._lock = ForkedLock()
        self._given = given, metric, self.dtype, gram_bytes, num_threads
        try:
            self._handle = _core.dict_new(context(num_threads), a, self.dtype == np.float64)
        except ValueError as error:
            if "NaN" not in str(error):
                raise
            raise nonfinite_error(a, "dictionary") from None

    def __reduce__(self) -> Any:
        return remake, self._given

    def __repr__(self) -> str:
        metric = "" if self.metric is None else f", {self.metric!r}"
        return f"Dictionary({self.n_atoms:,} atoms of {self.d_in:,} features, {self.dtype}{metric})"

    def _table(self) -> Table:
        rows = [("atoms", self.n_atoms), ("features", self.d_in), ("works in", self.dtype)]
        metric = "none" if self.metric is None else repr(self.metric)
        return Table("Dictionary", [*rows, ("metric", metric), ("Gram matrix held", self.has_gram)])

    @property
    def has_gram(self) -> bool:
        """Whether the Gram matrix has been computed."""
        return _core.dict_has_gram(self._handle)


def handle_of(d: Dictionary) -> Any:
    """The core's dictionary."""
    return d._handle


def whitened(d: Dictionary, block: Array) -> Array:
    """A block of signals as the solvers take it: in the metric, where there is one, in float64; each row depends on its
    own signal alone, to the bit, which NumPy's products do not promise. Where it is not finite it becomes NaN."""
    if d.metric is None:
        return block
    W, center = d.metric.whitener_, d.metric.mean_ if d.metric.centered else None
    x, out = np.asarray(block, np.float64), np.empty((len(block), d.d_in))
    ctx = context(d.num_threads)
    try:
        _core.product(ctx, x, center, W, None, out)
    except ValueError:
        bad: Array = np.logical_not(np.isfinite(_numpy_product(x, center, W)).all(axis=1))
        _core.product(ctx, np.where(bad[:, None], 0, x), center, W, None, out)
        out[bad] = np.nan
    return out


@one_blas_thread
def _numpy_product(x: Array, center: Array | None, W: Array) -> Array:
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray((x if center is None else x - center) @ W)


def gram_fits(d: Dictionary, more: int = 0) -> bool:
    """Whether the Gram matrix may be made, with so many more bytes for each product."""
    return bool((-(-d.n_atoms // 64) * 64) ** 2 * (d.dtype.itemsize + more) <= d.gram_bytes)


def hold_gram(d: Dictionary, units: bool = False, coarse: bool = False) -> None:
    """Make the Gram matrix, once, if it fits in `gram_bytes`.

    With `units` also atoms and Gram matrix in 16 bits, to screen by; with `coarse` too, a Gram matrix made of the
    16-bit atoms may take the place of both.
    """
    if gram_fits(d):
        with d._lock:
            units = units and gram_fits(d, 2)
            _core.dict_gram(context(d.num_threads), d._handle, units, units and coarse)


def hold_screen(d: Dictionary) -> None:
    """Make the atoms in 16 bits, to screen by, where the CPU can use them; else the Gram matrix, if it fits."""
    with d._lock:
        screened = _core.dict_units(context(d.num_threads), d._handle)
    if not screened:
        hold_gram(d)


def atoms_given(d: Dictionary) -> Array:
    """The atoms as they were given, not whitened."""
    return d._given[0]


def same_metric(a: Any, b: Any) -> bool:
    """Whether two metrics whiten alike."""
    if b is None or a.centered != b.centered or not np.array_equal(a.whitener_, b.whitener_):
        return False
    return not a.centered or np.array_equal(a.mean_, b.mean_)


def _dtype(wanted: Any, own: np.dtype) -> np.dtype:
    """That which a dictionary works in; by default its atoms' own."""
    if wanted is None:
        return np.dtype(np.float64 if own == np.float64 else np.float32)
    try:
        dtype: np.dtype = np.dtype(wanted)
    except TypeError:
        dtype = np.dtype(object)
    if dtype not in (np.float32, np.float64):
        raise ValueError(f"dtype: expected float32 or float64, got {wanted!r}")
    return dtype


def remake(atoms: Any, metric: Any, dtype: Any, gram_bytes: int, num_threads: int | None) -> Dictionary:
    """A dictionary out of a pickle."""
    return Dictionary(atoms, metric=metric, dtype=dtype, gram_bytes=gram_bytes, num_threads=num_threads)


def dictionary_of(
    dictionary: Any, X: Array, metric: Any, num_threads: int | None, dtype: Any = None
) -> Dictionary:
    """A solver's argument as a `Dictionary`; `dtype` is given where the solver works in no other."""
    if isinstance(dictionary, Dictionary):
        if dtype is not None and dictionary.dtype != dtype:
            raise ValueError(
                f"dictionary: expected a Dictionary of dtype {np.dtype(dtype)}, got {dictionary.dtype}"
            )
        if metric is not None and not same_metric(metric, dictionary.metric):
            raise ValueError(
                "metric: the Dictionary was made with another metric; pass the metric to Dictionary"
            )
        return dictionary
    a = check_array(atoms_of(dictionary, "dictionary"), "dictionary")
    double = dtype == np.float64 or (X.dtype == np.float64 and a.dtype == np.float64)
    return Dictionary(a, metric=metric, dtype=np.float64 if double else np.float32, num_threads=num_threads)
