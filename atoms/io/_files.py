"""Readers of files that anyone may have written: no code is run, and memory follows the file's size.

Each returns arrays by name or raises ValueError with the path and the fault. Headers are checked
before anything they promise is allocated.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from .._config import warnings_as
from .._files import (
    LARGEST_JSON,
    ZIP_FAULTS,
    allowed_size,
    read_json,
    read_npz,
    zip_error,
    zip_members,
)
from ._stored import StoredMatrix, from_bfloat16

__all__ = ["read_json", "read_npz", "read_safetensors", "read_torch", "safetensors_metadata"]


_SAFETENSORS_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "<u1", "BOOL": "?",
}  # fmt: skip


# ------------------------------------------------------------------ safetensors


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header, after the safetensors library has checked sizes, ranges and overlap."""
    try:
        with open(path, "rb") as file:
            n = int.from_bytes(file.read(8), "little")
            if n > LARGEST_JSON:
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


def read_safetensors(path: Path, stored: Iterable[str] = ()) -> dict[str, Any]:
    """Tensors by name; bfloat16 becomes float32, all else stays mapped from the file. Matrices named in `stored` are not
    read at all: each is a StoredMatrix.
    """
    header, start = _header(path)
    tensors: dict[str, Any] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _SAFETENSORS_DTYPES:
            raise ValueError(f"{path}: {name} has dtype {entry['dtype']}; expected F64, F32, F16 or BF16")
        dtype, shape = np.dtype(_SAFETENSORS_DTYPES[entry["dtype"]]), tuple(entry["shape"])
        offset, bfloat16 = start + entry["data_offsets"][0], entry["dtype"] == "BF16"
        if 0 in shape:
            tensors[name] = np.empty(shape, dtype)
        elif name in stored and len(shape) == 2 and (bfloat16 or dtype.kind == "f"):
            tensors[name] = StoredMatrix(path, dtype, bfloat16, offset, shape)
        else:
            a = np.memmap(path, dtype, "r", offset, shape)
            tensors[name] = from_bfloat16(a) if bfloat16 else a
    return tensors


# ------------------------------------------------------------------ torch


def read_torch(path: Path) -> dict[str, Any]:
    """What ``torch.load(weights_only=True)`` gives: a dictionary, its tensors as NumPy arrays.

    A .pt file is a pickle. weights_only refuses everything but tensors and plain containers; versions
    of PyTorch before 2.6, where it could be tricked (CVE-2025-32434), are not used.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            zip_members(path, archive)
    except ZIP_FAULTS as error:
        what = "a zip archive as torch.save writes since PyTorch 1.6 (load an older file where it comes from, and save it again)"
        raise zip_error(path, what, error) from None
    allowed = allowed_size(path)
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
        with warnings_as("ignore"):
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


def plain(tensors: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The tensors, if all are arrays that hold something, and of float types (counts may be integers)."""
    out = {}
    for name, a in tensors.items():
        if not isinstance(a, (np.ndarray, StoredMatrix)):
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
