"""Readers of files that anyone may have written: no code is run, and memory follows the file's size.

Each returns arrays by name or raises ValueError with the path and the fault. Headers are checked
before anything they promise is allocated.
"""

from __future__ import annotations

import errno
import io
import json
import os
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["read_json", "read_npz", "read_safetensors", "read_torch", "safetensors_metadata"]

_LARGEST_JSON = 10 << 20
# Uncompressed bytes allowed for each byte of the file, and a margin for small files: weights hardly
# compress, so what grows more is an attack or damage.
_GROWTH, _MARGIN = 8, 1 << 20

_SAFETENSORS_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "<u1", "BOOL": "?",
}  # fmt: skip


def _allowed(path: Path) -> int:
    """Bytes that a file of this size may unpack to."""
    return _GROWTH * path.stat().st_size + _MARGIN


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """float32 of bfloat16 numbers given as uint16."""
    return np.asarray((bits.astype(np.uint32) << 16).view(np.float32))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of at most 10 MB."""
    size = path.stat().st_size
    if size > _LARGEST_JSON:
        raise ValueError(f"{path}: {size} bytes is too much for a configuration; is it another file?")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON or cut short: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(found).__name__}")
    return found


# ------------------------------------------------------------------ safetensors


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header, after the safetensors library has checked sizes, ranges and overlap."""
    from safetensors import SafetensorError, safe_open

    try:
        with open(path, "rb") as file:
            n = int.from_bytes(file.read(8), "little")
            if n > _LARGEST_JSON:
                raise ValueError(f"a header of {n} bytes is too much for a model's few tensors")
            with safe_open(os.fspath(path), framework="numpy"):
                pass
            header = json.loads(file.read(n))
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a safetensors file or cut short: {error}") from None
    return header, 8 + n


def safetensors_metadata(path: Path) -> dict[str, str]:
    """The strings that the file keeps beside its tensors."""
    found = _header(path)[0].get("__metadata__")
    return found if isinstance(found, dict) else {}


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Tensors by name; bfloat16 becomes float32, all else stays mapped from the file."""
    header, start = _header(path)
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _SAFETENSORS_DTYPES:
            raise ValueError(f"{path}: {name} has dtype {entry['dtype']}; expected F64, F32, F16 or BF16")
        dtype, shape = np.dtype(_SAFETENSORS_DTYPES[entry["dtype"]]), tuple(entry["shape"])
        if 0 in shape:
            a = np.empty(shape, dtype)
        else:
            a = np.memmap(path, dtype, "r", start + entry["data_offsets"][0], shape)
        tensors[name] = from_bfloat16(a) if entry["dtype"] == "BF16" else a
    return tensors


# ------------------------------------------------------------------ npz


def _npy(data: bytes, what: str) -> np.ndarray:
    """An array from a .npy member, refused where its header promises other than what is there."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            raise ValueError(f"npy version {version}")
        # NumPy only warns of headers by Python 2 and of odd dtypes: refused here
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            shape, fortran, dtype = read(file)
    except (
        Exception
    ) as error:  # NumPy parses the header as Python: a damaged one raises whatever that leads to
        raise ValueError(f"{what}: not an array: {error}") from None
    if dtype.hasobject:
        raise ValueError(f"{what}: it holds Python objects (pickle), which are never loaded")
    body = data[file.tell() :]
    count = 1
    for n in shape:  # Python's integers do not overflow
        if not isinstance(n, int) or n < 0:
            raise ValueError(f"{what}: impossible shape {shape}")
        count *= n
    if count * dtype.itemsize != len(body) or dtype.itemsize == 0:
        raise ValueError(f"{what}: shape {shape} of {dtype} does not fit its {len(body)} bytes; cut short?")
    return np.frombuffer(body, dtype).reshape(shape, order="F" if fortran else "C")


_ZIP_FAULTS = (
    zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, KeyError,
    OverflowError, UnicodeError, OSError,
)  # fmt: skip


def _zip_error(path: Path, what: str, error: Exception) -> Exception:
    """ValueError for a damaged archive. Errors of the system stay as they are, except EINVAL: a damaged archive makes
    zipfile seek before the file's start.
    """
    if isinstance(error, OSError) and error.errno != errno.EINVAL:
        return error
    return ValueError(f"{path}: not {what}: {error}")


def _members(path: Path, archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """An archive's members, once the sizes that it states are within bounds: reading allocates what it states."""
    members = archive.infolist()
    packed, total = sum(m.compress_size for m in members), sum(m.file_size for m in members)
    if packed > path.stat().st_size:
        raise ValueError(f"its members would take {packed} bytes, more than there are")
    if total > _allowed(path):
        raise ValueError(f"it would unpack to {total} bytes, far more than its own size")
    return members


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """A member's bytes, no more than the archive states: read() alone unpacks all that is there and cuts it then."""
    with archive.open(member) as file:
        data = file.read(member.file_size)
    if len(data) != member.file_size:
        raise ValueError(f"{member.filename} has {len(data)} bytes, {member.file_size} are stated")
    return data


def read_npz(path: Path) -> tuple[dict[str, np.ndarray], bytes]:
    """Arrays of an .npz file, and the archive's comment; pickled arrays are refused."""
    tensors = {}
    try:
        with zipfile.ZipFile(path) as archive:
            comment = archive.comment
            for member in _members(path, archive):
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError(f"{member.filename} is compressed in a way that NumPy does not write")
                if not member.filename.endswith(".npy"):
                    raise ValueError(f"unexpected member {member.filename!r}")
                name = member.filename[: -len(".npy")]
                if name in tensors:
                    raise ValueError(f"{name} is there twice")
                tensors[name] = _npy(_unpacked(archive, member), f"{name}")
    except _ZIP_FAULTS as error:
        raise _zip_error(path, "an .npz file of arrays", error) from None
    return tensors, comment


# ------------------------------------------------------------------ torch


def read_torch(path: Path) -> dict[str, Any]:
    """What ``torch.load(weights_only=True)`` gives: a dictionary, its tensors as NumPy arrays.

    A .pt file is a pickle. weights_only refuses everything but tensors and plain containers; versions
    of PyTorch before 2.6, where it could be tricked (CVE-2025-32434), are not used.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _members(path, archive)
    except _ZIP_FAULTS as error:
        what = "a zip archive as torch.save writes since PyTorch 1.6 (load an older file where it comes from, and save it again)"
        raise _zip_error(path, what, error) from None
    allowed = _allowed(path)
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"{path}: .pt files are pickles, read with PyTorch's weights_only loader: install torch, or convert the "
            "file where torch is: python -m atoms convert IN OUT"
        ) from error
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 6):
        raise ImportError(
            f"{path}: torch {torch.__version__} loads pickles unsafely (CVE-2025-32434); needs 2.6"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises whatever its opcodes lead to
        raise ValueError(f"{path}: PyTorch's weights_only loader refuses it: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a dictionary of tensors, found {type(found).__name__}")

    def convert(value: Any) -> Any:
        nonlocal allowed
        if isinstance(value, torch.Tensor):
            allowed -= value.numel() * value.element_size()
            if allowed < 0 or value.is_sparse or value.layout != torch.strided or value.is_quantized:
                raise ValueError(f"{path}: a tensor of shape {tuple(value.shape)} is not stored in full")
            value = value.detach()
            return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        if isinstance(value, dict):
            return {k: convert(v) for k, v in value.items()}
        return value

    # the optimiser's state of an interrupted run is nested deeper and of no use here
    wanted = {k: v for k, v in found.items() if isinstance(k, str) and k not in ("optimizer", "config")}
    try:
        return {k: convert(v) for k, v in wanted.items()}
    except (TypeError, RuntimeError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from None


def plain(tensors: Mapping[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """The tensors, if all are arrays that hold something, and of float types (counts may be integers)."""
    out = {}
    for name, a in tensors.items():
        if not isinstance(a, np.ndarray):
            raise ValueError(f"{path}: {name} is {type(a).__name__}, expected an array")
        if a.dtype.kind != "f" and not (a.dtype.kind in "iu" and name in ("k", "group_sizes")):
            raise ValueError(
                f"{path}: {name} has dtype {a.dtype}; expected float32, float16, bfloat16 or float64"
            )
        if a.size == 0:  # such as (0, 10**12): it holds nothing but promises a huge model
            raise ValueError(f"{path}: {name} is empty, of shape {a.shape}")
        if a.dtype.itemsize > 8:
            raise ValueError(f"{path}: {name} has dtype {a.dtype}; expected at most float64")
        out[name] = a
    return out
