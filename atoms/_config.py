"""Threads, instruction sets and BLAS: the package's settings and the core's contexts."""

from __future__ import annotations

import functools
import os

from . import _core

_ISAS = ("portable", "avx2", "avx512", "avx512_vnni", "avx512_bf16")
_num_threads: int | None = None


def _available_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_num_threads(n: int | None) -> None:
    """Set the threads used where no ``num_threads`` is given; None means all this process may use."""
    global _num_threads
    if n is not None and (not isinstance(n, int) or n < 1):
        raise ValueError(f"num_threads: expected a positive integer or None, got {n!r}")
    _num_threads = n


def get_num_threads() -> int:
    """Threads used where no ``num_threads`` is given."""
    return _num_threads or int(os.environ.get("ATOMS_NUM_THREADS", 0)) or _available_cpus()


@functools.lru_cache(maxsize=64)
def _context(num_threads: int, isa: str, blas: str | None) -> _core.Context:
    return _core.Context(num_threads, _ISAS.index(isa), blas)


def context(num_threads: int | None = None) -> _core.Context:
    """The core's context for so many threads, with ATOMS_ISA and ATOMS_BLAS from the environment."""
    isa = os.environ.get("ATOMS_ISA", _ISAS[-1])
    if isa not in _ISAS:
        raise ValueError(f"ATOMS_ISA: expected one of {', '.join(_ISAS)}, got {isa!r}")
    n = get_num_threads() if num_threads is None else num_threads
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"num_threads: expected a positive integer or None, got {n!r}")
    return _context(n, isa, os.environ.get("ATOMS_BLAS") or None)


def show_config() -> None:
    """Print BLAS, version, kernel family, instruction sets found and used, OpenMP and threads."""
    info = _core.build_info()
    ctx = context()
    print(f"instruction set: {ctx.isa} used, {info['cpu_isa']} found")
    print(f"threads: {ctx.num_threads}; OpenMP {info['openmp']}")
    if info["has_blis"]:
        print(f"BLAS: BLIS {info['blis_version']}, kernels {info['blis_kernels']}")
    else:
        print("BLAS: SciPy's")
    print(f"compiler: {info['compiler']}")
