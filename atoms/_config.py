"""Threads, instruction sets and BLAS: the package's settings and the core's contexts."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Literal, ParamSpec, TypeVar

import scipy.linalg.cython_blas  # noqa: F401  (its BLAS must be loaded to be found)
import threadpoolctl

from . import _core
from ._version import __version__

_P = ParamSpec("_P")
_T = TypeVar("_T")

_CPU_QUOTA = "/sys/fs/cgroup/cpu.max"
_num_threads: int | None = None


def _positive(value: object, name: str) -> int:
    """``value`` as a number of threads, from Python or from the environment."""
    try:
        n = int(value) if isinstance(value, str) else value.__index__()  # type: ignore[attr-defined]
    except (ValueError, TypeError, AttributeError):  # an array of many has `__index__` too
        n = 0
    if n < 1 or isinstance(value, bool):
        raise ValueError(f"{name}: expected a positive integer, got {value!r}")
    if n > _core.MAX_THREADS:
        raise ValueError(f"{name}: expected at most {_core.MAX_THREADS} threads, got {n}")
    return n


def check_num_threads(n: int | None) -> None:
    """ValueError for what is no number of threads, nor None."""
    if n is not None:
        _positive(n, "num_threads")


def available_cpus() -> int:
    """CPUs that this process may use: its affinity, and its container's quota rounded up."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open(_CPU_QUOTA) as file:
            quota, period = file.read().split()
        return min(cpus, -(-int(quota) // int(period)))
    except (OSError, ValueError):  # no container, or "max"
        return cpus


def set_num_threads(n: int | None) -> None:
    """Set the threads used where no ``num_threads`` is given.

    Parameters
    ----------
    n : int or None
        None goes back to the default: ATOMS_NUM_THREADS or OMP_NUM_THREADS from the environment,
        else every CPU that this process may use.

    Raises
    ------
    ValueError
        If ``n`` is not a positive integer.

    Examples
    --------
    >>> import atoms
    >>> atoms.set_num_threads(2)
    >>> atoms.get_num_threads()
    2
    >>> atoms.set_num_threads(None)
    """
    global _num_threads
    _num_threads = None if n is None else _positive(n, "num_threads")


def get_num_threads() -> int:
    """Threads used where no ``num_threads`` is given.

    Returns
    -------
    int
        What :func:`set_num_threads` said, else ATOMS_NUM_THREADS, else OMP_NUM_THREADS (which
        joblib sets in its workers), else the CPUs this process may use. A child made by
        ``os.fork`` works with one thread whatever this says: it does not have its parent's.
    """
    if _num_threads:
        return _num_threads
    for name in ("ATOMS_NUM_THREADS", "OMP_NUM_THREADS"):
        if value := os.environ.get(name):
            return _positive(value.split(",")[0], name)
    return available_cpus()


@functools.lru_cache(maxsize=64)
def _context(num_threads: int, isa: str, blas: str | None) -> _core.Context:
    return _core.Context(num_threads, _core.ISAS.index(isa), blas)


def context(num_threads: int | None = None) -> _core.Context:
    """The core's context for so many threads, with ATOMS_ISA and ATOMS_BLAS from the environment."""
    isa = os.environ.get("ATOMS_ISA", _core.ISAS[-1])
    if isa not in _core.ISAS:
        raise ValueError(f"ATOMS_ISA: expected one of {', '.join(_core.ISAS)}, got {isa!r}")
    n = get_num_threads() if num_threads is None else _positive(num_threads, "num_threads")
    return _context(n, isa, os.environ.get("ATOMS_BLAS") or None)


class ForkedLock:
    """A lock that is free in a child made by fork: whoever held it is not there."""

    def __init__(self) -> None:
        self._lock, self._process = threading.Lock(), os.getpid()

    def __enter__(self) -> None:
        if self._process != os.getpid():
            self._lock, self._process = threading.Lock(), os.getpid()
        self._lock.acquire()

    def __exit__(self, *raised: object) -> None:
        self._lock.release()


_filters = ForkedLock()


@contextlib.contextmanager
def warnings_as(action: Literal["error", "ignore"]) -> Iterator[None]:
    """Warnings ignored or raised inside. Their filters are the process's: threads that change them take turns, or one
    would put back for ever what another had set for a moment."""
    with _filters, warnings.catch_warnings():
        warnings.simplefilter(action)
        yield


class _SerialBlas:
    """Holds the BLAS of NumPy and SciPy to one thread while any call is inside.

    Their products have other bits with other numbers of threads. And the core calls SciPy's from its own threads,
    in whose way threads that BLAS starts itself would only get. The limit is the process's: the first call in sets
    it, the last one out puts back what was there before, in whatever order calls from several threads end.
    """

    def __init__(self) -> None:
        self._libraries: list[threadpoolctl.LibController] | None = None
        self._reset_in_child()
        if hasattr(os, "register_at_fork"):
            # OpenBLAS holds a lock of its own while it sets its threads, which a child would find held: a fork waits
            os.register_at_fork(
                before=lambda: self._lock.acquire(),
                after_in_parent=lambda: self._lock.release(),
                after_in_child=self._reset_in_child,
            )

    def _reset_in_child(self) -> None:
        self._lock = threading.RLock()
        self._inside = 0

    def _find(self) -> list[threadpoolctl.LibController]:
        # threadpoolctl also knows BLIS, which uses one thread unless told otherwise: no need to limit it
        found = threadpoolctl.ThreadpoolController().select(internal_api=["openblas", "mkl", "flexiblas"])
        libraries: list[threadpoolctl.LibController] = found.lib_controllers
        return libraries

    @staticmethod
    def _set(library: threadpoolctl.LibController, n: int) -> None:
        # From 3.8 on, threadpoolctl lets only the first thread that ever set a limit set another one. Here
        # the last thread out, whichever it is, must put the limit back: so its check is passed by.
        getattr(library, "_real_set_num_threads", library.set_num_threads)(n)

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if self._libraries is None:
                self._libraries = self._find()
            self._inside += 1
            if self._inside == 1:
                found = [(library, int(library.get_num_threads() or 1)) for library in self._libraries]
                self._before = [(library, n) for library, n in found if n > 1]
                for library, _ in self._before:
                    self._set(library, 1)
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    for library, n in self._before:
                        self._set(library, n)


serial_blas = _SerialBlas()


def one_blas_thread(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """A function whose own products, by NumPy or SciPy, have the same bits for any number of threads."""

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        with serial_blas():
            return function(*args, **kwargs)

    return call


def blas_names() -> list[str]:
    """What ATOMS_BLAS may name in this build, the default first."""
    info = _core.build_info()
    return [*(name for name in ("accelerate", "blis") if info[f"has_{name}"]), "scipy"]


def uses_scipy_blas() -> bool:
    """Whether contexts take SciPy's BLAS: this build has no other, or ATOMS_BLAS=scipy asks for it."""
    return os.environ.get("ATOMS_BLAS") == "scipy" or blas_names() == ["scipy"]


# One place for every room: with SciPy's BLAS, each function of the core runs inside serial_blas.
# That costs some 10 microseconds a call; with BLIS nothing is wrapped and nothing is paid.
if uses_scipy_blas():
    for _name, _function in list(vars(_core).items()):
        if callable(_function) and not isinstance(_function, type) and _name != "build_info":
            setattr(_core, _name, one_blas_thread(_function))


def _scipy_blas() -> str:
    import scipy

    found = threadpoolctl.ThreadpoolController().select(user_api="blas").info()
    names = sorted({f"{lib['internal_api']} {lib['version']}, {lib.get('architecture')}" for lib in found})
    return f"SciPy {scipy.__version__}'s ({'; '.join(names) or 'unknown'}), one thread inside calls"


def show_config() -> None:
    """Print BLAS, its version and kernel family, instruction sets, OpenMP and threads.

    The core uses the best instruction set that the CPU has: ``portable``, ``avx2``, ``avx2_vnni`` (laptops: AVX2 with
    products of 8 and 16 bits), ``avx512``, ``avx512_vnni``, ``avx512_bf16``; on ARM ``neon_dot``, ``neon_i8mm``. The
    environment's ATOMS_ISA names the best that it may use, ATOMS_BLAS the BLAS (``blis``, on macOS ``accelerate``, or
    ``scipy``); both are read at each call.

    Examples
    --------
    >>> import atoms
    >>> atoms.show_config()  # doctest: +ELLIPSIS
    atoms ...
    instruction set: ... used, ... found
    threads: ...
    BLAS: ...
    compiler: ...
    """
    info, ctx = _core.build_info(), context()
    print(f"atoms {__version__}")
    print(f"instruction set: {ctx.isa} used, {info['cpu_isa']} found")
    print(f"threads: {ctx.num_threads}, OpenMP {info['openmp']}, {available_cpus()} CPUs")
    if ctx.blas == "blis":
        print(f"BLAS: BLIS {info['blis_version']}, {info['blis_kernels']} kernels, one thread inside calls")
    elif ctx.blas == "accelerate":
        print("BLAS: Accelerate, one thread inside calls")
    else:
        print(f"BLAS: {_scipy_blas()}")
    print(f"compiler: {info['compiler']}")
