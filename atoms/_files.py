"""Safe files: each is written beside its target, then renamed; what is read is checked, and errors name the file."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["check_tensor", "load_tensors", "reading", "replacing", "save_tensors"]


class replacing:
    """A path beside the target, renamed onto it when the block ends well and removed when not."""

    def __init__(self, target: Path):
        self.target = target
        self.temporary = target.with_name(f".{target.name}.{os.getpid()}.part")

    def __enter__(self) -> Path:
        return self.temporary

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None:
        if kind is None:
            os.replace(self.temporary, self.target)
        else:
            self.temporary.unlink(missing_ok=True)


def save_tensors(path: Any, kind: str, tensors: dict[str, np.ndarray], metadata: dict[str, Any]) -> None:
    """Write a safetensors file beside `path` and rename it there: `path` is never half written."""
    from safetensors.numpy import save

    path = os.fspath(path)
    text = {"format": "atoms", "kind": kind, "parameters": json.dumps(metadata)}
    data = save({k: np.ascontiguousarray(v) for k, v in tensors.items()}, metadata=text)
    handle, temporary = tempfile.mkstemp(
        dir=os.path.dirname(path) or ".", prefix=os.path.basename(path) + "."
    )
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def load_tensors(path: Any, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and metadata of a file written by `save_tensors` for the same `kind`: finite numbers only."""
    from safetensors import SafetensorError, safe_open

    path = os.fspath(path)
    try:
        with safe_open(path, framework="numpy") as file:
            text = file.metadata() or {}
            if text.get("format") != "atoms" or text.get("kind") != kind:
                raise ValueError(
                    f"{path}: expected a file saved by atoms.{kind}, found "
                    f"{text.get('kind') or 'a safetensors file without its mark'}"
                )
            with reading(path, kind):
                tensors = {name: file.get_tensor(name) for name in file.keys()}
                for name, a in tensors.items():
                    if not np.isfinite(a).all():
                        raise ValueError(f"{name} contains NaN or infinity")
                metadata = json.loads(text["parameters"])
                if not isinstance(metadata, dict):
                    raise ValueError(f"its parameters are of type {type(metadata).__name__}")
                return tensors, metadata
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file or cut short: {error}") from None


@contextlib.contextmanager
def reading(path: Any, kind: str) -> Iterator[None]:
    """Whatever a file's contents lead to inside becomes a ValueError that names the file.

    Anybody may have written the file: settings may be missing or of any type. Whatever error they lead to
    stays as the cause.
    """
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError) as error:
        fault = f"no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path}: not what atoms.{kind} writes, or damaged: {fault}") from error


def check_tensor(tensors: dict[str, np.ndarray], name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """The tensor of that name, of exactly that shape and type."""
    a = tensors[name]
    if a.shape != shape or a.dtype != dtype:
        raise ValueError(f"{name}: expected {np.dtype(dtype)} of shape {shape}, got {a.dtype} of {a.shape}")
    return a
