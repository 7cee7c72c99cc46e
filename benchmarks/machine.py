"""What this machine can do at most: operations a second of multiply-adds that never leave the registers.

    python benchmarks/machine.py [--threads 2]

Shares of a limit are shares of these, not of whichever BLAS is installed: libraries reach half to nine tenths of them,
and an environment variable can halve that. A multiply-add is two operations.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import importlib.util
import os
import subprocess
import sys
import tempfile
from typing import Any

SOURCE = r"""
#include <immintrin.h>
#include <omp.h>
#ifdef __AVX512F__
enum { BYTES = 64 };
#elif defined(__AVX__)
enum { BYTES = 32 };
#else
enum { BYTES = 16 };
#endif
typedef double f64 __attribute__((vector_size(BYTES)));
typedef float f32 __attribute__((vector_size(BYTES)));

/* Ten sums that do not wait for each other: STEP adds to each in turn. OPS: operations of one STEP. */
#define LOOP(NAME, VECTOR, ZERO, PREPARE, STEP, OPS)                                                      \
    double NAME(int threads)                                                                             \
    {                                                                                                    \
        const long rounds = 5000000;                                                                     \
        double start = omp_get_wtime();                                                                  \
        _Pragma("omp parallel num_threads(threads)")                                                     \
        {                                                                                                \
            PREPARE;                                                                                     \
            VECTOR a0 = ZERO, a1 = a0, a2 = a0, a3 = a0, a4 = a0, a5 = a0, a6 = a0, a7 = a0, a8 = a0,    \
                   a9 = a0;                                                                              \
            for (long i = 0; i < rounds; i++) {                                                          \
                STEP(a0); STEP(a1); STEP(a2); STEP(a3); STEP(a4);                                        \
                STEP(a5); STEP(a6); STEP(a7); STEP(a8); STEP(a9);                                        \
                __asm__ volatile("" : "+x"(a0), "+x"(a1), "+x"(a2), "+x"(a3), "+x"(a4), "+x"(a5),        \
                                      "+x"(a6), "+x"(a7), "+x"(a8), "+x"(a9));                           \
            }                                                                                            \
        }                                                                                                \
        return 10.0 * (OPS) * rounds * threads / (omp_get_wtime() - start);                              \
    }
#define FMA(a) a = a * b + c
LOOP(float64, f64, (f64){0} + 1, f64 b = (f64){0} + 0.999999; f64 c = (f64){0} + 1e-9, FMA, 2 * BYTES / 8)
LOOP(float32, f32, (f32){0} + 1, f32 b = (f32){0} + 0.999999f; f32 c = (f32){0} + 1e-9f, FMA, 2 * BYTES / 4)
#ifdef __AVX512BF16__
#define DOT(a) a = _mm512_dpbf16_ps(a, b, b)
LOOP(bfloat16, __m512, _mm512_set1_ps(0), __m512bh b = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0), _mm512_set1_ps(0)), DOT, 64)
#endif
#ifdef __AVX512VNNI__
#define BYTES_DOT(a) a = _mm512_dpbusd_epi32(a, b, b)
LOOP(int8, __m512i, _mm512_setzero_si512(), __m512i b = _mm512_set1_epi8(1), BYTES_DOT, 128)
#elif defined(__AVXVNNI__)
#define BYTES_DOT(a) a = _mm256_dpbusd_avx_epi32(a, b, b)
LOOP(int8, __m256i, _mm256_setzero_si256(), __m256i b = _mm256_set1_epi8(1), BYTES_DOT, 64)
#endif
"""
KINDS = ("float64", "float32", "bfloat16", "int8")


@functools.cache
def peaks(threads: int) -> dict[str, float]:
    """Operations a second of each kind that this CPU has instructions for; nothing without a compiler."""
    with tempfile.TemporaryDirectory() as folder:
        source, library = os.path.join(folder, "peaks.c"), os.path.join(folder, "peaks.so")
        with open(source, "w") as file:
            file.write(SOURCE)
        command = [
            os.environ.get("CC", "cc"),
            "-O2",
            "-march=native",
            "-ffp-contract=fast",
            "-fopenmp",
            "-shared",
        ]
        try:
            subprocess.run([*command, "-fPIC", source, "-o", library], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return {}
        loops = ctypes.CDLL(library)
    found = {}
    for kind in KINDS:
        if hasattr(loops, kind):
            loop = getattr(loops, kind)
            loop.restype = ctypes.c_double
            found[kind] = max(loop(threads) for _ in range(5))
    return found


def said(threads: int) -> str:
    found = peaks(threads)
    if not found:
        return "this machine's peaks: not measured, there is no compiler"
    return "this machine's peaks, in registers: " + ", ".join(
        f"{kind} {rate / 1e9:.0f} G/s" for kind, rate in found.items()
    )


SPAMS_BLAS = """
import spams, threadpoolctl
print(*(lib["architecture"] for lib in threadpoolctl.threadpool_info() if "spams" in lib["filepath"] and lib["user_api"] == "blas"))
"""


@functools.cache
def spams() -> Any:
    """The package SPAMS, with a BLAS that knows this CPU, and a line that says so.

    Its wheel brings an OpenBLAS of 2021, which takes a CPU that it does not know for one of 2004 and is then a third
    as fast. Call it before anything else imports spams: the library asks the environment when it is loaded.
    """
    if importlib.util.find_spec("spams") is None:
        raise ImportError("pip install spams-bin")
    name = "OPENBLAS_CORETYPE"
    ask = subprocess.run([sys.executable, "-c", SPAMS_BLAS], capture_output=True, text=True, check=True)
    found = ask.stdout.strip()
    with open("/proc/cpuinfo") as file:
        avx2 = " avx2 " in file.read()
    if name not in os.environ and avx2 and found in ("Prescott", "Core2", "Nehalem", "Barcelona"):
        os.environ[name] = "Haswell"
        found = f"Haswell, as {name} says, for it takes this CPU for a {found}"
    print(f"SPAMS's OpenBLAS: kernels of {found or 'an unknown CPU'}", flush=True)
    import spams as library

    return library


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    threads = parser.parse_args().threads
    print(f"{threads} threads; {said(threads)}")
