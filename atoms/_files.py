"""Safe files: each is written beside its target, then renamed; what is read is checked, and errors name the file."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "check_tensor",
    "load_tensors",
    "only_user",
    "reading",
    "replacing",
    "save_tensors",
    "sync_folder",
]


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

    folder, name = os.path.split(os.fspath(path))
    folder = folder or "."
    text = {"format": "atoms", "kind": kind, "parameters": json.dumps(metadata)}
    data = save({k: np.ascontiguousarray(v) for k, v in tensors.items()}, metadata=text)
    _remove_leftovers(folder, name)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            _lock(handle)  # until it is renamed: it is no leftover
            file.write(data)
            file.flush()
            os.fsync(handle)
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(temporary, 0o666 & ~mask)
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    sync_folder(folder)


def sync_folder(folder: Any) -> None:
    """Have the system write down what a folder's files are called."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems do not take it
            os.fsync(handle)
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    """The lock on an open file, which the system takes back when the process ends; False where another has it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _remove_leftovers(folder: str, name: str) -> None:
    """Remove what killed processes left of `save_tensors` to that name: nobody has the lock of these any more."""
    mark = re.compile(rf"\.{re.escape(name)}\.[a-z0-9_]{{8}}\.part")
    for found in filter(mark.fullmatch, os.listdir(folder)):
        path = os.path.join(folder, found)
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
            # an empty one may have been made just now, and has no lock yet
            if os.fstat(file.fileno()).st_size and _lock(file.fileno()):
                os.unlink(path)


@contextlib.contextmanager
def only_user(path: Any, what: str) -> Iterator[None]:
    """The one run that uses the file `path`, by a lock beside it; `what` names it in errors.

    Raises
    ------
    OSError
        Nothing can be written beside `path`, or it is a folder.
    ValueError
        Another run uses it.
    """
    folder, name = os.path.split(os.fspath(path))
    beside = os.path.join(folder or ".", f".{name}.lock")
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, f"{what}: it is a folder; name a file", os.fspath(path))
    while True:
        try:
            file = open(beside, "w")
        except OSError as error:
            fault = f"{what}: cannot write beside it ({error.strerror}); make its folder writeable, or name another path"
            raise OSError(error.errno, fault, os.fspath(path)) from None
        with file:
            if not _lock(file.fileno()):
                raise ValueError(
                    f"{what}: another run is using {os.fspath(path)}; wait for it, or name another path"
                )
            try:  # whoever had the lock before may have removed this file since it was opened
                if os.stat(beside).st_ino != os.fstat(file.fileno()).st_ino:
                    continue
            except FileNotFoundError:
                continue
            try:
                yield
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(beside)
            return


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
