"""Safe files: each is written beside its target, then renamed; what is read is checked, and errors name the file."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import math
import os
import re
import secrets
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from ._config import warnings_as

__all__ = [
    "Later",
    "Tensors",
    "check_tensor",
    "load_tensors",
    "map_npy",
    "only_user",
    "opened_tensors",
    "plain_name",
    "read_json",
    "read_npz",
    "reading",
    "replacing",
    "save_tensors",
    "sync_folder",
]

LARGEST_JSON = 10 << 20
# Uncompressed bytes allowed for each byte of the file, and a margin for small files: weights hardly
# compress, so what grows more is an attack or damage.
_GROWTH, _MARGIN = 8, 1 << 20


def plain_name(name: Any) -> str:
    """The name, if it can only be that of a file in the folder that it is read for.

    Raises
    ------
    ValueError
        It is no text, is empty, or leads elsewhere: it has a separator, or is "..".
    """
    if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\\0"):
        raise ValueError(f"expected the plain name of a file, found {name!r}")
    return name


def as_path(value: Any, name: str) -> Path:
    """A path, of the argument `name`."""
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(text, str):
        raise TypeError(
            f"{name}: expected a path (str or os.PathLike), got the {type(value).__name__} {value!r:.60}"
        )
    if not text or "\0" in text:
        raise ValueError(f"{name}: expected a path, got {text!r}")
    return Path(text)


@contextlib.contextmanager
def replacing(target: Any) -> Iterator[Path]:
    """The path of an empty file beside the target, to be written; where the block ends well, it is renamed there.

    The target is never half written, and both are on disk afterwards. Where the block raises, nothing is left, and
    an error of the disk names the target. What killed processes left for the same target is removed first.
    """
    target = as_path(target, "path")
    folder, name = target.parent, target.name
    temporary = folder / f".{name}.{secrets.token_hex(4)}.part"
    with _naming(target):
        _remove_leftovers(folder, name)
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    with os.fdopen(handle, "rb"):
        _lock(handle)  # until it is renamed: it is no leftover
        try:
            with _naming(target):
                yield temporary
                os.fsync(handle)
                os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    sync_folder(folder)


# of errors that come without a file's name, those that are the disk's; NumPy's short writes have no number at all
_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, None)


@contextlib.contextmanager
def _naming(target: Path) -> Iterator[None]:
    """An error of the disk says that it was this file which could not be written."""
    try:
        yield
    except OSError as error:
        named = error.filename is not None and Path(os.fsdecode(error.filename))
        beside = named and target.parent in (named, named.parent)
        if beside or (error.filename is None and type(error) is OSError and error.errno in _OF_DISKS):
            fault = f"cannot be written ({error.strerror or error}); nothing that was there is lost"
            raise OSError(error.errno or errno.ENOSPC, fault, str(target)) from error
        raise


class Later(NamedTuple):
    """An array that is made when it is written, so that a file's arrays are not in memory all at once."""

    shape: tuple[int, ...]
    dtype: Any
    make: Callable[[], np.ndarray]


_DTYPES = {np.dtype(t): name for t, name in ((np.float64, "F64"), (np.int64, "I64"), (np.float32, "F32"),
                                             (np.int32, "I32"), (np.float16, "F16"), (np.uint8, "U8"),
                                             (np.bool_, "BOOL"))}  # fmt: skip


def save_tensors(
    path: Any, kind: str, tensors: Mapping[str, np.ndarray | Later], metadata: dict[str, Any]
) -> None:
    """Write a safetensors file: `path` is never half written. One `Later` at a time is in memory."""
    text = {"format": "atoms", "kind": kind, "parameters": json.dumps(metadata)}
    header: dict[str, Any] = {"__metadata__": text}
    names = sorted(tensors, key=lambda name: (-np.dtype(tensors[name].dtype).itemsize, name))  # aligned
    at = 0
    for name in names:
        shape, dtype = tensors[name].shape, np.dtype(tensors[name].dtype)
        end = at + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    first = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    first += b" " * (-len(first) % 8)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(len(first).to_bytes(8, "little") + first)
        for name in names:
            file.write(_bytes(tensors[name]))


def _bytes(array: np.ndarray | Later) -> memoryview:
    whole = np.ascontiguousarray(array.make() if isinstance(array, Later) else array)
    return whole.reshape(-1).view(np.uint8).data


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


def _remove_leftovers(folder: Path, name: str) -> None:
    """Remove what killed processes left of `name`: nobody has the lock of these any more."""
    mark = re.compile(rf"\.{re.escape(name)}\.[a-z0-9_]{{8}}\.part")
    for found in filter(mark.fullmatch, os.listdir(folder)):
        with contextlib.suppress(FileNotFoundError), open(folder / found, "rb") as file:
            # an empty one may have been made just now, and has no lock yet
            if os.fstat(file.fileno()).st_size and _lock(file.fileno()):
                (folder / found).unlink()


@contextlib.contextmanager
def only_user(path: Any, what: str) -> Iterator[None]:
    """The one run that uses the file `path`, by a lock beside it that the system takes back when the process ends;
    `what` names it in errors.

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
            file = open(beside, "a")  # nothing is cut, whatever the name leads to
        except OSError as error:
            fault = f"{what}: cannot write beside it ({error.strerror}); make its folder writeable, or name another path"
            raise OSError(error.errno, fault, os.fspath(path)) from None
        with file:
            if not _lock(file.fileno()):
                raise ValueError(
                    f"{what}: another run is using {os.fspath(path)} (another process is writing to it, or a thread "
                    "of this one); wait for it, or name another path"
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


class Tensors(Mapping[str, np.ndarray]):
    """The arrays of a safetensors file, finite numbers only. Each is read when it is asked for, and the file is mapped no longer
    than that: what goes through all of them has one at a time in memory."""

    def __init__(self, place: str) -> None:
        self._place = place
        with safe_open(place, framework="numpy") as file:
            self.text: dict[str, str] = file.metadata() or {}
            parts = {name: file.get_slice(name) for name in file.keys()}
            self._about = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in parts.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._about:
            raise KeyError(name)
        with safe_open(self._place, framework="numpy") as file:
            array: np.ndarray = file.get_tensor(name)
        if not np.isfinite(array).all():
            raise ValueError(f"{name} contains NaN or infinity")
        return array

    def __contains__(self, name: object) -> bool:
        return name in self._about

    def __iter__(self) -> Iterator[str]:
        return iter(self._about)

    def __len__(self) -> int:
        return len(self._about)

    def check(self, name: str, shape: tuple[int, ...], dtype: Any) -> None:
        """As `check_tensor`, of what the file says of an array that is not read yet."""
        found, kind = self._about[name]
        if (found, kind) != (shape, _DTYPES.get(np.dtype(dtype))):
            raise ValueError(f"{name}: expected {np.dtype(dtype)} of shape {shape}, got {kind} of {found}")


@contextlib.contextmanager
def opened_tensors(path: Any, kind: str) -> Iterator[tuple[Tensors, dict[str, Any]]]:
    """Arrays and metadata of a file written by `save_tensors` for the same `kind`: of this file, though another takes its name."""
    path = os.fspath(as_path(path, "path"))
    if os.path.isdir(path):
        raise ValueError(
            f"{path}: expected a file saved by atoms.{kind}, found a folder; atoms.load opens other tools'"
        )
    with contextlib.ExitStack() as stack:
        place = path
        if os.path.isfile(path):  # what is none, safetensors refuses
            place = f"/dev/fd/{stack.enter_context(open(path, 'rb')).fileno()}"
        try:
            tensors = Tensors(place if os.path.exists(place) else path)
            if tensors.text.get("format") != "atoms" or tensors.text.get("kind") != kind:
                raise ValueError(
                    f"{path}: expected a file saved by atoms.{kind}, found "
                    f"{tensors.text.get('kind') or 'a safetensors file without its mark'}"
                )
            with reading(path, kind):
                metadata = json.loads(tensors.text["parameters"])
                if not isinstance(metadata, dict):
                    raise ValueError(f"its parameters are of type {type(metadata).__name__}")
            yield tensors, metadata
        except SafetensorError as error:
            raise ValueError(f"{path}: not a safetensors file or cut short: {error}") from None


def load_tensors(path: Any, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The same, all of them at once."""
    with opened_tensors(path, kind) as (tensors, metadata):
        with reading(path, kind):
            return dict(tensors), metadata


@contextlib.contextmanager
def reading(path: Any, kind: str) -> Iterator[None]:
    """Whatever a file's contents lead to inside becomes a ValueError that names the file.

    Anybody may have written the file: settings may be missing or of any type. Whatever error they lead to
    stays as the cause.
    """
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        fault = f"no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path}: not what atoms.{kind} writes, or damaged: {fault}") from error


def read_json(path: Path, largest: int = LARGEST_JSON) -> dict[str, Any]:
    """A JSON object of at most `largest` bytes."""
    size = path.stat().st_size
    if size > largest:
        raise ValueError(f"{path}: {size} bytes is too much for a configuration; is it another file?")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON or cut short: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(found).__name__}")
    return found


def check_tensor(
    tensors: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...], dtype: Any
) -> np.ndarray:
    """The tensor of that name, of exactly that shape and type."""
    a = tensors[name]
    if a.shape != shape or a.dtype != dtype:
        raise ValueError(f"{name}: expected {np.dtype(dtype)} of shape {shape}, got {a.dtype} of {a.shape}")
    return a


# ------------------------------------------------------------------ npz


def _npy_header(file: IO[bytes], size: int) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and dtype of an array in NumPy's format, whose rest has the size that they say."""
    try:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            raise ValueError(f"npy version {version}")
        # NumPy only warns of headers by Python 2 and of odd dtypes: refused here
        with warnings_as("error"):
            shape, fortran, dtype = read(file)
    except (
        Exception
    ) as error:  # NumPy parses the header as Python: a damaged one raises whatever that leads to
        raise ValueError(f"not an array: {error}") from None
    if dtype.hasobject:
        raise ValueError("it holds Python objects (pickle), which are never loaded")
    left = size - file.tell()
    count = 1
    for n in shape:  # Python's integers do not overflow
        if not isinstance(n, int) or n < 0:
            raise ValueError(f"impossible shape {shape}")
        count *= n
    if count * dtype.itemsize != left or dtype.itemsize == 0:
        raise ValueError(f"shape {shape} of {dtype} does not fit its {left} bytes; cut short?")
    return shape, fortran, dtype


def _npy(data: bytes, what: str) -> np.ndarray:
    """An array from a .npy member, refused where its header promises other than what is there."""
    file = io.BytesIO(data)
    try:
        shape, fortran, dtype = _npy_header(file, len(data))
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None
    return np.frombuffer(data[file.tell() :], dtype).reshape(shape, order="F" if fortran else "C")


def map_npy(path: Path, dtype: np.dtype, n: int) -> np.ndarray:
    """Map the n rows of a .npy file, once its header and its size have been found to agree.

    Raises
    ------
    ValueError
        The file is none, is cut short, or holds other than n rows of that dtype.
    """
    with open(path, "rb") as file:
        head = io.BytesIO(file.read(1 << 16))
    try:
        shape, fortran, found = _npy_header(head, path.stat().st_size)
        if len(shape) != 2 or fortran or found != dtype or shape[0] != n:
            raise ValueError(f"expected {n} rows of {dtype}, found {found} of shape {shape}")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return np.memmap(path, dtype, "r", head.tell(), shape) if 0 not in shape else np.empty(shape, dtype)


ZIP_FAULTS = (
    zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, KeyError,
    OverflowError, UnicodeError, OSError,
)  # fmt: skip


def allowed_size(path: Path) -> int:
    """Bytes that a file of this size may unpack to."""
    return _GROWTH * path.stat().st_size + _MARGIN


def zip_error(path: Path, what: str, error: Exception) -> Exception:
    """ValueError for a damaged archive. Errors of the system stay as they are, except EINVAL: a damaged archive makes
    zipfile seek before the file's start.
    """
    if isinstance(error, OSError) and error.errno != errno.EINVAL:
        return error
    return ValueError(f"{path}: not {what}: {error}")


def zip_members(path: Path, archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """An archive's members, once the sizes that it states are within bounds: reading allocates what it states."""
    members = archive.infolist()
    packed, total = sum(m.compress_size for m in members), sum(m.file_size for m in members)
    if packed > path.stat().st_size:
        raise ValueError(f"its members would take {packed} bytes, more than there are")
    if total > allowed_size(path):
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
            for member in zip_members(path, archive):
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError(f"{member.filename} is compressed in a way that NumPy does not write")
                if not member.filename.endswith(".npy"):
                    raise ValueError(f"unexpected member {member.filename!r}")
                name = member.filename[: -len(".npy")]
                if name in tensors:
                    raise ValueError(f"{name} is there twice")
                tensors[name] = _npy(_unpacked(archive, member), f"{name}")
    except ZIP_FAULTS as error:
        raise zip_error(path, "an .npz file of arrays", error) from None
    return tensors, comment
