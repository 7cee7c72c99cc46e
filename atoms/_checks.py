"""Checks of arguments (arrays, numbers, metrics), and the errors for NaN and infinity."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import scipy.sparse

from ._arrays import Lazy, array_of, as_array, check_bits, flatter, opened, refuse

__all__ = [
    "Place",
    "Sent",
    "aligned",
    "as_number",
    "as_numbers",
    "atoms_of",
    "check_array",
    "check_between_0_and_1",
    "check_choice",
    "check_count",
    "check_flag",
    "check_metric",
    "check_number",
    "check_rows",
    "feature_names",
    "first_nonfinite_row",
    "generator_of",
    "listed",
    "narrow",
    "native",
    "nonfinite_error",
    "numbered",
    "part_by_part",
    "row_name",
    "rows_in_all",
    "seed_of",
    "whitener_of",
    "why_not_finite",
]

_T = TypeVar("_T")
_MOST = np.iinfo(np.int64).max  # what the core counts to

# ---------------------------------------------------------------------------- arrays


def _is_float(dtype: np.dtype) -> bool:
    """Whether the core reads values of this type."""
    return dtype in (np.float32, np.float64, np.float16) or dtype.name == "bfloat16"


def check_array(X: Any, name: str = "X", *, ndim: int = 2, min_rows: int = 1) -> np.ndarray:
    """An array of activations as the core takes it, without a copy where it already is one.

    float32, float64, float16 and bfloat16 arrays, memory maps and any strides pass untouched, and so do PyTorch's
    tensors of these types in the CPU's memory; integers, booleans, lists, data frames and objects that hold numbers
    become float64, tensors of another type or place float32 or what they are. 16-bit integers that look
    like the bits of bfloat16 numbers are refused.
    NaN and infinity are not looked for here: the core finds them while it reads.

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
    a = _numbers(X, name)
    if not _is_float(a.dtype):
        if a.dtype.kind not in "biufO":
            raise ValueError(f"{name}: expected numbers, got dtype {a.dtype}")
        check_bits(a, name)
        try:
            a = a.astype(np.float64)
        except (TypeError, ValueError) as error:
            missing = (
                f"; drop or fill missing values first, {name}.dropna()" if "NAType" in str(error) else ""
            )
            raise type(error)(
                f"{name}: argument must be numbers, got dtype {a.dtype}: {error}{missing}"
            ) from None
    _check_shape(a, name, ndim, min_rows)
    item = a.dtype.itemsize
    if not a.flags.aligned or not a.dtype.isnative or any(s % item for s in a.strides):
        a = a.astype(a.dtype.newbyteorder("="), order="C", copy=True)
    return a


def _numbers(X: Any, name: str) -> np.ndarray:
    """What NumPy makes of X, where it holds numbers that can be used."""
    if hasattr(X, "toarray") and hasattr(X, "nnz"):
        raise TypeError(
            f"{name}: expected a dense array, got a sparse {type(X).__name__}. Sparse data is not "
            f"supported; pass {name}.toarray()"
        )
    refuse(X, name)
    a = array_of(X, name)
    if a.dtype.kind == "c":
        raise ValueError(f"{name}: Complex data not supported, got dtype {a.dtype}; pass its real part")
    return a


def feature_names(X: Any) -> np.ndarray | None:
    """Column names of a data frame whose columns are all strings, else None."""
    columns = getattr(X, "columns", None)
    if columns is None or (not hasattr(X, "__array__") and not hasattr(X, "__dataframe__")):
        return None
    names = np.asarray(columns, dtype=object)
    return names if len(names) and all(isinstance(c, str) for c in names) else None


def _check_shape(a: np.ndarray, name: str, ndim: int, min_rows: int) -> None:
    if a.ndim != ndim:
        hint = flatter(a, name) if ndim == 2 else ""
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


def atoms_of(D: Any, name: str) -> Any:
    """Atoms as rows: the ``W_dec`` of a model (ours, a control, one that `atoms.load` read) or the ``components_`` of
    scikit-learn's, or the array itself."""
    if hasattr(D, "W_dec") or hasattr(type(D), "W_dec"):  # which says itself where it is not fitted
        return D.W_dec
    if hasattr(D, "components_"):
        return D.components_
    if hasattr(D, "transform"):
        raise TypeError(
            f"{name}: expected atoms as rows, got a {type(D).__name__} without any; is it fitted?"
        )
    return D


def check_rows(a: Any, name: str) -> np.ndarray:
    """``a`` as a two-dimensional array, nothing copied that is an array (or is read block by block) already."""
    refuse(a, name)
    array: Any = opened(a, name)
    array = array if isinstance(array, (np.ndarray, Lazy)) else array_of(array, name)
    if array.ndim != 2:
        raise ValueError(
            f"{name}: expected two dimensions (rows, d_in), got shape {array.shape}; "
            f"reshape it to one row for each sample or atom"
        )
    if array.shape[1] < 1:
        raise ValueError(f"{name}: expected at least one column, got shape {array.shape}")
    checked: np.ndarray = array
    return checked


def native(block: np.ndarray, name: str) -> np.ndarray:
    """A block in a type and layout that the core reads; others (integers, swapped bytes) as float64."""
    kind = block.dtype
    whole = all(s % kind.itemsize == 0 for s in block.strides)
    if _is_float(kind) and kind.isnative and block.flags.aligned and whole:
        return block
    if kind.kind not in "biuf" and kind.name != "bfloat16":
        raise TypeError(f"{name}: expected real numbers, got dtype {kind}; convert it to float32")
    check_bits(block, name)
    return np.ascontiguousarray(block, dtype=np.float64)


def check_metric(metric: Any) -> None:
    """None, or a fitted metric."""
    if metric is not None and getattr(metric, "whitener_", None) is None:
        if hasattr(metric, "fit"):
            raise ValueError("metric: expected a fitted AtomicInnerProduct; call metric.fit(X) first")
        raise ValueError(
            "metric: expected a fitted AtomicInnerProduct or None, got "
            f"{type(metric).__name__} without whitener_; call fit first"
        )


def whitener_of(metric: Any, d: int) -> np.ndarray | None:
    """The symmetric square root of the metric, checked against the dimension; None stays None."""
    if metric is None:
        return None
    check_metric(metric)
    whitener = np.ascontiguousarray(metric.whitener_, dtype=np.float64)
    if whitener.shape != (d, d):
        raise ValueError(
            f"metric: expected one of dimension {d} as the data has, got {whitener.shape[0]}; "
            "fit it on activations of the same layer"
        )
    return whitener


def aligned(value: Any) -> Any:
    """The same where it is made of other things than arrays, and arrays as the core takes them.

    What another process sends lies anywhere in its message (Dask hands arrays on without a copy).
    """
    if isinstance(value, np.ndarray):
        return value if value.flags.aligned else np.require(value, requirements="A")
    if scipy.sparse.issparse(value):
        matrix: Any = value
        given: Any = scipy.sparse.csr_array(matrix)
        parts: Any = tuple(map(aligned, (given.data, given.indices, given.indptr)))
        return scipy.sparse.csr_array(parts, shape=given.shape)
    if type(value) is dict:
        return {name: aligned(part) for name, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(aligned, value))
    return value


class Sent:
    """What may come from another process, with arrays that the core is to take."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(aligned(state))


def narrow(
    values: np.ndarray, indices: np.ndarray, indptr: np.ndarray, shape: tuple[int, int]
) -> scipy.sparse.csr_array:
    """A CSR array numbered by int32 where that holds it: scikit-learn takes no other, and SciPy would widen all indices
    to the type of `indptr`."""
    index = np.int32 if max(len(values), *shape) <= np.iinfo(np.int32).max else np.int64
    numbers: Any = (indices.astype(index, copy=False), indptr.astype(index, copy=False))
    return scipy.sparse.csr_array((values, *numbers), shape=shape)


# ------------------------------------------------------------- a part of all rows


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a block lies among the blocks of all rows."""

    first: int | None  #: number of its first row; None where the sizes of those before it are unknown
    block: int  #: its own number
    total: int | None  #: rows of all of them


_place: contextvars.ContextVar[Place | None] = contextvars.ContextVar("_place", default=None)


@contextlib.contextmanager
def numbered(place: Place) -> Iterator[None]:
    """Inside, arrays of rows are those of this block, and are spoken of as a part of all."""
    token = _place.set(place)
    try:
        yield
    finally:
        _place.reset(token)


def block_number() -> int:
    """Of the block that these rows are among all, 0 where they are all."""
    place = _place.get()
    return place.block if place else 0


_skipped: contextvars.ContextVar[int] = contextvars.ContextVar("_skipped", default=0)


def part_by_part(parts: Iterable[np.ndarray], function: Callable[[np.ndarray, int], _T]) -> list[_T]:
    """What ``function(part, first)`` gives for each part of the rows, the first row of which has that number; errors
    name rows by their numbers among all."""
    found, first = [], 0
    for part in parts:
        token = _skipped.set(_skipped.get() + first)
        try:
            found.append(function(part, first))
        finally:
            _skipped.reset(token)
        first += len(part)
    return found


def row_name(row: int) -> str:
    """A row of an array by its number among all rows."""
    row, place = row + _skipped.get(), _place.get()
    if place is None or place.first is not None:
        return f"row {row if place is None else place.first + row}"  # type: ignore[operator]
    return f"row {row} of block {place.block}"


def rows_in_all(n: int) -> int:
    """How many rows there are where these n may be a block of them; very many where nobody knows."""
    place = _place.get()
    if place is None:
        return n
    return sys.maxsize if place.total is None else place.total


# --------------------------------------------------------------- NaN and infinity


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
        f"{name}: contains NaN or infinity, first in {row_name(row)}; drop such rows, for example "
        f"{name}[numpy.isfinite({name}).all(axis=1)]"
    )


def why_not_finite(X: np.ndarray, name: str, error: Exception | None, first: int = 0) -> Exception:
    """The error for sums that are not finite: the row at fault (of X, which begins with row `first`), or values too
    large to square."""
    row = first_nonfinite_row(X)
    if row >= 0:
        return nonfinite_error(X, name, first + row)
    if error is None or "NaN" in str(error):
        return ValueError(f"{name}: values too large: sums of their squares overflow float64; rescale {name}")
    return error


# --------------------------------------------------------------------------- numbers


def as_number(value: Any, name: str) -> float:
    """A number, NaN and the infinities too."""
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{name}: expected a number, got {value!r}") from None


def as_numbers(values: Any, name: str) -> np.ndarray:
    """Numbers as a float64 array of any dimensions."""
    try:
        return np.asarray(as_array(values, name), dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{name}: expected numbers, got {type(values).__name__}: {error}") from None


def check_between_0_and_1(value: Any, name: str) -> float:
    """A number between them."""
    number = as_number(value, name)
    if not 0 < number < 1:
        raise ValueError(f"{name}: expected a number between 0 and 1, got {value!r}")
    return number


def check_number(value: Any, name: str, low: float, *, strict: bool = False) -> float:
    """A finite number of at least `low`, or above it with `strict`."""
    number = as_number(value, name)
    if not (number > low if strict else number >= low) or number == np.inf:
        raise ValueError(
            f"{name}: expected a finite number {'above' if strict else 'of at least'} {low:g}, got {value!r}"
        )
    return number


def check_count(value: Any, name: str) -> int:
    """An integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value!r}")
    if value > _MOST:
        raise ValueError(f"{name}: expected at most {_MOST:,}, got {value!r}")
    return int(value)


def check_flag(value: Any, name: str) -> bool:
    """True or False; a text such as "no" would count as True."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


def check_choice(value: Any, name: str, choices: Collection[str]) -> str:
    """One of these names."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
    return value


def listed(values: Any, name: str) -> list[Any]:
    """What can be gone through, as a list; a text is not gone through letter by letter."""
    if (
        isinstance(values, (str, bytes))
        or not isinstance(values, Iterable)
        or getattr(values, "ndim", 1) == 0
    ):
        raise TypeError(f"{name}: expected several, in a list, got {values!r}")
    return list(values)


def seed_of(random_state: Any) -> int:
    """The seed that a `random_state` stands for: a whole number itself, None a fresh one, a generator its next."""
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**31 - 1))
    if not isinstance(random_state, (int, np.integer)) or random_state < 0:
        raise ValueError(
            "random_state: expected a non-negative integer, None, or one of NumPy's RandomState and Generator, "
            f"got {random_state!r}"
        )
    return int(random_state)


def generator_of(random_state: Any) -> np.random.Generator:
    """The generator that a `random_state` stands for."""
    if isinstance(random_state, np.random.RandomState):
        return np.random.default_rng(random_state.randint(2**31))
    if isinstance(random_state, np.random.Generator):
        return random_state
    return np.random.default_rng(seed_of(random_state))


def outside() -> int:
    """The ``stacklevel`` at which the function that calls this warns the first caller outside the package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == __package__:
        level, frame = level + 1, frame.f_back
    return level
