"""What holds rows of activations, as NumPy arrays without a copy, or as `Lazy` arrays that are read block by block.

It imports NumPy alone: tensors, frames and files of other libraries are known by what they can do.
"""

from __future__ import annotations

import inspect
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import scipy.sparse

__all__ = [
    "Lazy",
    "array_of",
    "as_array",
    "as_codes",
    "check_bits",
    "chunk_of",
    "common_type",
    "flatter",
    "is_stream",
    "is_tensor",
    "opened",
    "refuse",
    "regrouped",
]

BLOCK_ROWS = 512  # of what can be read anywhere, so that a group of blocks is well mixed


# ------------------------------------------------------------------ tensors


def is_tensor(X: Any) -> bool:
    """Whether X is a PyTorch tensor; PyTorch is not imported for it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(X, torch.Tensor)


def _bfloat16() -> np.dtype | None:
    """NumPy's name for bfloat16, where ml_dtypes is installed."""
    try:
        import ml_dtypes
    except ImportError:
        return None
    bfloat16: np.dtype = np.dtype(ml_dtypes.bfloat16)
    return bfloat16


def _shared(tensor: Any) -> np.ndarray | None:
    """The array that shares a detached tensor's memory, None where NumPy has no such type or cannot reach it."""
    torch = sys.modules["torch"]
    if tensor.device.type != "cpu":
        return None
    if tensor.dtype == torch.bfloat16:
        bfloat16 = _bfloat16()
        return None if bfloat16 is None else tensor.view(torch.int16).numpy().view(bfloat16)
    try:
        return np.asarray(tensor.numpy())
    except (TypeError, RuntimeError):  # 8-bit floats, among others
        return None


def _copied(tensor: Any) -> np.ndarray:
    """A copy of a tensor's numbers, float32 where NumPy does not have its type."""
    part = tensor.cpu().resolve_conj().resolve_neg()
    shared = _shared(part)
    return np.asarray(part.float().numpy()) if shared is None else shared


def _detached(tensor: Any, name: str) -> Any:
    torch = sys.modules["torch"]
    if tensor.is_nested:
        raise TypeError(f"{name}: a nested tensor; pass torch.cat({name}.unbind())")
    if tensor.layout != torch.strided:
        raise TypeError(
            f"{name}: expected a dense tensor, got a sparse one ({tensor.layout}); pass {name}.to_dense()"
        )
    if tensor.is_quantized:
        raise TypeError(f"{name}: a quantized tensor; pass {name}.dequantize()")
    if tensor.device.type == "meta":
        raise ValueError(f"{name}: a tensor on the meta device has no numbers; load its model first")
    return tensor.detach()


def as_array(X: Any, name: str = "X") -> Any:
    """A tensor's numbers as an array, without a copy where that can be; what is no tensor as it is."""
    if not is_tensor(X):
        return X
    tensor = _detached(X, name)
    shared = _shared(tensor)
    return _copied(tensor) if shared is None else shared


def check_bits(a: np.ndarray, name: str, how: str | None = None) -> None:
    """ValueError for 16-bit integers whose values are, nearly all, the bits of bfloat16 numbers between 2^-30 and 2^30.

    `how` says what to pass instead where that is no view of the array.
    """
    if a.dtype.kind not in "iu" or a.dtype.itemsize != 2 or a.ndim == 0:
        return
    some = np.asarray(a[:: max(1, len(a) // 256)][:256]).astype(np.int64) & 0x7FFF
    some = some[some > 0]
    if some.size and ((some >= (127 - 30) << 7) & (some < (127 + 30) << 7)).mean() > 0.98:
        here = name if a.dtype.isnative else f"{name}.astype(numpy.{a.dtype.name})"
        raise ValueError(
            f"{name}: {a.dtype.name} whose values look like the bits of bfloat16 numbers. Pass "
            f"{how or here + '.view(ml_dtypes.bfloat16)'}, or from PyTorch the tensor itself; if they are counts, "
            f"{name}.astype(numpy.float32)"
        )


# ------------------------------------------------------------------ arrays that are read


class Lazy:
    """A table that is read block by block, and sliced like an array: slices and rows by number are arrays.

    Parameters
    ----------
    read : callable
        ``read(start, stop)``: those rows, as an array (stop - start, d).
    shape : tuple
    dtype : numpy.dtype
        Of the rows; integers are read as float64.
    sizes : ndarray of int64
        Rows of each block, the smallest piece that should be read at once.
    anywhere : bool
        Any rows can be read at the price of their number, without the blocks they lie in.
    """

    ndim = 2

    def __init__(
        self, read: Callable[[int, int], Any], shape: tuple[int, int], dtype: Any, sizes: np.ndarray, anywhere: bool
    ) -> None:  # fmt: skip
        self.shape, self.sizes = shape, sizes
        self.dtype = np.dtype(np.float64) if dtype.kind in "biu" else dtype.newbyteorder("=")
        self.ends = np.cumsum(sizes)
        self._read, self._anywhere = read, anywhere
        self._last: tuple[int, np.ndarray] = (-1, np.empty(0))  # the block that was read last

    def __len__(self) -> int:
        return self.shape[0]

    def _rows(self, start: int, stop: int) -> np.ndarray:
        rows = self._read(start, stop)
        if rows.shape != (stop - start, self.shape[1]):
            raise ValueError(
                f"X: rows {start} to {stop} have the shape {rows.shape}, not {self.shape[1]} columns"
            )
        check_bits(
            rows, "X", "a function that gives them: lambda: (X[i:i+4096].view(ml_dtypes.bfloat16) for i in "
            "range(0, len(X), 4096))",
        )  # fmt: skip
        return np.asarray(rows.astype(self.dtype, copy=False))

    def block(self, number: int) -> np.ndarray:
        """One block's rows; not to be written to."""
        if self._last[0] != number:
            stop = int(self.ends[number])
            self._last = number, self._rows(stop - int(self.sizes[number]), stop)
        return self._last[1]

    def __getitem__(self, index: Any) -> np.ndarray:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return self._slice(start, max(start, stop))
        wanted = np.arange(len(self))[index]
        flat = np.atleast_1d(wanted)
        out = np.empty((len(flat), self.shape[1]), self.dtype)
        block = np.searchsorted(self.ends, flat, side="right")
        order = np.argsort(block, kind="stable")
        for at in np.split(order, np.flatnonzero(np.diff(block[order])) + 1):
            if len(at):
                b = int(block[at[0]])
                out[at] = self.block(b)[flat[at] - int(self.ends[b] - self.sizes[b])]
        return out if np.ndim(wanted) else out[0]

    def _slice(self, start: int, stop: int) -> np.ndarray:
        if self._anywhere:
            return self._rows(start, stop)
        first, last = np.searchsorted(self.ends, [start, stop - 1], side="right")
        parts = []
        for b in range(int(first), int(last) + 1 if stop > start else int(first)):
            begin = int(self.ends[b] - self.sizes[b])
            parts.append(self.block(b)[max(0, start - begin) : stop - begin])
        if not parts:
            return np.empty((0, self.shape[1]), self.dtype)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("X: rows that are read block by block are no array in memory")
        return self[:].astype(dtype or self.dtype, copy=False)


def _is_number(dtype: np.dtype) -> bool:
    return dtype.kind in "biuf" or dtype.name == "bfloat16"


def cut(n: int, rows: int) -> np.ndarray:
    """Sizes of blocks of so many rows that n are cut into."""
    ends = np.append(np.arange(rows, n, rows), n)
    return np.diff(ends, prepend=0).astype(np.int64)


def _chunks(X: Any, n: int) -> np.ndarray | None:
    """Rows of each block of what is stored (or computed) by chunks: whole chunks, none much smaller than a block."""
    found = getattr(X, "chunks", None)
    if not isinstance(found, tuple) or not found:
        return None
    if isinstance(found[0], tuple):  # dask: the rows of each chunk
        rows = [int(r) for r in found[0]]
    elif isinstance(found[0], (int, np.integer)) and found[0] > 0:
        rows = [int(r) for r in cut(n, int(found[0]))]
    else:
        return None
    sizes: list[int] = []
    for r in rows:
        if sizes and sizes[-1] < BLOCK_ROWS:
            sizes[-1] += r
        else:
            sizes.append(r)
    return np.array(sizes, np.int64)


def _lazy_array(X: Any, name: str) -> Lazy | None:
    """An array of another library that gives arrays by slices: zarr, h5py, dask, and what is like them."""
    if any(isinstance(s, float) for s in X.shape):  # of dask
        raise ValueError(
            f"{name}: a dask array whose blocks are of unknown size, got shape {X.shape}; rows by number need "
            f"{name}.compute_chunk_sizes() first"
        )
    shape = tuple(int(s) for s in X.shape)
    if len(shape) != 2:
        return None  # the checks of arrays say what is wrong
    try:
        dtype = np.dtype(X.dtype)
    except TypeError:
        dtype = np.asarray(X[:1]).dtype
    if not _is_number(dtype):
        raise ValueError(f"{name}: expected numbers, got dtype {dtype}")
    sizes = getattr(X, "sizes", None)  # of our own sources
    sizes = sizes if isinstance(sizes, np.ndarray) else _chunks(X, shape[0])
    anywhere = sizes is None
    sizes = cut(shape[0], BLOCK_ROWS) if sizes is None else sizes

    def read(start: int, stop: int) -> np.ndarray:
        rows = X[start:stop]
        if np.ma.is_masked(rows):
            raise ValueError(
                f"{name}: rows {start} to {stop} hold masked values, which have no number; leave them out"
            )
        return np.asarray(rows)

    return Lazy(read, shape, dtype, sizes, anywhere)


def _lazy_rows(X: Any, read: Callable[[int, int], Any]) -> Lazy:
    """Rows that can be asked for by slices, and have no shape before."""
    n = len(X)
    first = read(0, 1) if n else np.empty((0, 0))
    return Lazy(read, (n, first.shape[1]), first.dtype, cut(n, BLOCK_ROWS), True)


def _stacked(rows: Any, name: str) -> np.ndarray:
    """Rows that a slice of a sequence gave: a table, or a list of rows."""
    if isinstance(rows, tuple) and len(rows) == 1:
        rows = rows[0]  # a TensorDataset of one tensor
    if isinstance(rows, (Mapping, tuple)):
        _refuse_items(rows, name)
    if isinstance(rows, list):
        if rows and isinstance(rows[0], (Mapping, str, bytes, tuple)):
            _refuse_items(rows[0], name)
        lengths = {np.shape(as_array(row, name)) for row in rows}
        if len(lengths) > 1:
            raise ValueError(
                f"{name}: expected rows of equal length, got shapes {sorted(lengths, key=str)[:3]}"
            )
        rows = np.stack([np.asarray(as_array(row, name)) for row in rows])
    a = np.asarray(as_array(rows, name))
    if a.ndim != 2 or not _is_number(a.dtype):
        raise ValueError(
            f"{name}: expected a sequence of rows of numbers, got items of shape {a.shape[1:]} and dtype {a.dtype}"
        )
    return a


def _refuse_items(item: Any, name: str) -> None:
    """The error for a data set whose items are not rows."""
    if isinstance(item, Mapping):
        keys = list(item)
        raise TypeError(
            f"{name}: a data set whose items are dictionaries ({_listed(keys)}); name a column: {name}[{keys[0]!r}]"
        )
    if isinstance(item, (str, bytes)):
        raise TypeError(
            f"{name}: text, not activations; atoms.activations.capture(model, tokens, layer) makes them"
        )
    raise TypeError(
        f"{name}: a data set whose items are tuples of {len(item)}; pass the activations alone, "
        f"for example {name}.tensors[0]"
    )


def opened(X: Any, name: str) -> Any:
    """One table: an array that shares X's memory, or a `Lazy` one where there is none; else X for NumPy to judge."""
    if is_tensor(X):
        return _opened_tensor(X, name)
    if hasattr(X, "to_numpy") and hasattr(X, "slice") and hasattr(X, "columns"):  # a frame of polars
        return _lazy_rows(X, lambda start, stop: np.asarray(X.slice(start, stop - start).to_numpy()))
    if _gives_arrays(X):
        lazy = _lazy_array(X, name)
        return X if lazy is None else lazy
    if _gives_rows(X):
        return _lazy_rows(X, lambda start, stop: _stacked(X[start:stop], name))
    return X


def _opened_tensor(X: Any, name: str) -> Any:
    tensor = _detached(X, name)
    shared = _shared(tensor)
    if shared is not None:
        return shared
    if tensor.ndim != 2:
        return _copied(tensor)
    dtype, sizes = _copied(tensor[:0]).dtype, cut(len(tensor), BLOCK_ROWS)
    return Lazy(lambda start, stop: _copied(tensor[start:stop]), tuple(tensor.shape), dtype, sizes, True)


def _gives_arrays(X: Any) -> bool:
    """An array of another library, whose memory NumPy cannot share."""
    if isinstance(X, (np.ndarray, Lazy)) or hasattr(X, "nnz"):
        return False
    shared = hasattr(X, "__array_interface__") or hasattr(X, "__dlpack__")
    return not shared and all(hasattr(X, a) for a in ("shape", "dtype", "__getitem__"))


def _gives_rows(X: Any) -> bool:
    """A list of rows, or a sequence of them that is no array: a data set's column."""
    if isinstance(X, (list, tuple)):
        return bool(X) and getattr(X[0], "ndim", None) == 1
    sequence = hasattr(X, "__len__") and hasattr(X, "__getitem__")
    return sequence and not any(hasattr(X, a) for a in ("__array__", "nnz", "dtype"))


# ------------------------------------------------------------------ what comes in pieces


def is_stream(X: Any) -> bool:
    """Something that gives batches of rows one after the other, and is no table: a generator, a DataLoader, a
    function that makes a generator."""
    if inspect.isgeneratorfunction(X) or (inspect.isfunction(X) and not inspect.signature(X).parameters):
        return True
    table = any(hasattr(X, a) for a in ("shape", "__array__", "nnz"))
    table |= hasattr(X, "__getitem__") and hasattr(X, "__len__")
    return isinstance(X, Iterable) and not (table or isinstance(X, (Mapping, set, frozenset)) or _keys(X))


def chunk_of(part: Any, name: str) -> np.ndarray:
    """What a stream gave, as an array of rows; one row may be given alone."""
    if isinstance(part, (list, tuple)) and len(part) == 1 and hasattr(part[0], "shape"):
        part = part[0]  # TensorDataset's way of giving one tensor
    if isinstance(part, Mapping):
        keys = list(part)
        raise TypeError(
            f"{name}: its batches are dictionaries ({_listed(keys)}); pass the activations alone: "
            f"(batch[{keys[0]!r}] for batch in {name})"
        )
    if isinstance(part, (list, tuple)) and any(hasattr(p, "shape") for p in part):
        raise TypeError(
            f"{name}: its batches are {type(part).__name__}s of {len(part)}; pass the activations alone: "
            f"(batch[0] for batch in {name})"
        )
    if isinstance(part, (str, bytes)):
        _refuse_items(part, name)
    a = array_of(part, name)
    if a.ndim == 1 and len(a):
        a = a[None]
    if a.ndim != 2:
        raise ValueError(
            f"{name}: expected batches of rows (n, d), got one of shape {a.shape}.{flatter(part, 'batch')}"
        )
    if not _is_number(a.dtype):
        raise ValueError(f"{name}: expected batches of numbers, got dtype {a.dtype}")
    return a


def flatter(X: Any, name: str) -> str:
    """How to make rows of an array of other than two dimensions; begins with a space."""
    dims = np.ndim(X) if not is_tensor(X) else X.ndim
    if dims == 3 and is_tensor(X):
        return f" Pass {name}.flatten(0, 1) to make every position a row."
    return (
        f" Reshape your data: {name}.reshape(1, -1) for one sample,"
        f" {name}.reshape(-1, {name}.shape[-1]) to make every leading index a sample."
    )


def regrouped(parts: Iterable[np.ndarray], rows: int) -> Iterator[np.ndarray]:
    """The same rows, copied into arrays of `rows`, the last one shorter.

    Copied before the next part is asked for: whoever gives them may use one buffer for all.
    """
    out, at = np.empty((0, 0)), 0
    for part in parts:
        while len(part):
            if not at:
                out = np.empty((rows, part.shape[1]), part.dtype)
            take = part[: rows - at]
            out[at : at + len(take)] = take
            at, part = at + len(take), part[len(take) :]
            if at == rows:
                yield out
                at = 0
    if at:
        yield out[:at]


# ------------------------------------------------------------------ what is no table


def refuse(X: Any, name: str) -> None:
    """An error where X cannot hold rows, that says what to pass instead."""
    if X is None:
        raise ValueError(f"{name}: expected activations (n, d), got None")
    if isinstance(X, (str, bytes, os.PathLike)):
        what = os.fsdecode(X)
        raise TypeError(
            f"{name}: expected activations (n, d), got the {type(X).__name__} {what[:60]!r}; for a file pass "
            "numpy.load(path, mmap_mode='r'), for a store atoms.activations.ActivationStore(path)[layer], for text "
            "what atoms.activations.capture gives"
        )
    keys = _keys(X)
    if keys is not None:
        one = f"{name}[{keys[0]!r}]" if keys else f"{name}[layer]"
        raise TypeError(
            f"{name}: expected the activations of one layer, got {type(X).__name__} with {_listed(keys) or 'none'}; "
            f"pass {one}"
        )
    if isinstance(X, (set, frozenset)):
        raise TypeError(f"{name}: a set has no order; pass a list of arrays")
    check_whole(X, name)


def common_type(kinds: Iterable[np.dtype]) -> np.dtype:
    """One that holds the numbers of all of these."""
    kinds = list(kinds)
    try:
        return np.result_type(*kinds)
    except TypeError:  # bfloat16 beside float16, of which NumPy knows none
        return np.dtype(np.float32 if all(kind.itemsize <= 2 for kind in kinds) else np.float64)


def array_of(values: Any, name: str) -> np.ndarray:
    """What NumPy makes of tensors, arrays without masked values, and lists."""
    check_whole(values, name)
    try:
        return np.asarray(as_array(values, name))
    except ValueError as error:
        if "inhomogeneous" not in str(error):
            raise
        raise ValueError(
            f"{name}: expected rows of equal length, got a ragged {type(values).__name__}: {error}"
        ) from None


def as_codes(codes: Any, name: str = "codes") -> Any:
    """Codes as a matrix: a sparse one as it is, tensors and frames as arrays, frames of sparse columns sparse."""
    if hasattr(codes, "sparse"):  # pandas', where all columns are
        return scipy.sparse.csr_array(codes.sparse.to_coo())
    codes = codes if scipy.sparse.issparse(codes) else array_of(codes, name)
    if codes.ndim != 2:
        raise ValueError(f"{name}: expected a matrix, a row for each sample, got shape {codes.shape}")
    if codes.dtype.kind not in "biuf" and codes.dtype.name != "bfloat16":
        raise ValueError(f"{name}: expected real numbers, got dtype {codes.dtype}")
    return codes


def check_whole(X: Any, name: str) -> None:
    """ValueError for an array of which some values are masked."""
    if isinstance(X, np.ma.MaskedArray) and np.ma.is_masked(X):
        raise ValueError(
            f"{name}: a masked array, whose masked values have no number; pass the rows that are whole, "
            f"{name}[~numpy.ma.getmaskarray({name}).any(axis=1)].data"
        )


def _keys(X: Any) -> list[Any] | None:
    """The names under which X holds tables: of a mapping, a store or what `capture` gave."""
    if isinstance(X, Mapping):
        return list(X)
    for place in ("keys", "arrays"):
        found = getattr(X, place, None)
        if isinstance(found, (list, dict)) and not hasattr(X, "shape") and found:
            keys = list(found)
            if all(isinstance(k, tuple) and len(k) == 2 for k in keys):  # (layer, site)
                layers = [k[0] for k in keys]
                return layers if len(set(layers)) == len(layers) else keys
    return None


def _listed(keys: list[Any]) -> str:
    return ", ".join(repr(k) for k in itertools.islice(keys, 4)) + (", ..." if len(keys) > 4 else "")
