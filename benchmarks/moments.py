"""Second moments and whitening against NumPy, on the same threads, interleaved.

    python benchmarks/moments.py [--threads 2] [--repeats 5] [--shapes 100000x576 20000x2304]

Ours is `AtomicInnerProduct().partial_fit(X)`: float64 sums, NaN checked, mean included. NumPy's
is the float64 product `X.T @ X`, which is OpenBLAS's symmetric update and does half the work too;
float32 input is converted first (its time counts), since float32 sums are not the same thing:
the error column shows what each does to coordinates, relative to their own size, on data like
activations (one direction with 80% of the trace, three coordinates a thousand times the rest).
GF/s count n d^2, half of a full product. The peak is what float64 multiply-adds reach in registers.
"""

from __future__ import annotations

import argparse
import time

import machine
import numpy as np
import threadpoolctl

import atoms


def activations(n: int, d: int, dtype: type) -> np.ndarray:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, d), dtype=np.float32).astype(dtype)
    X += 2 * rng.standard_normal(d).astype(dtype)
    X[:, :3] *= 1000
    return X


def best(repeats: int, *runs) -> list[float]:
    """Shortest seconds of each, taken in turn."""
    seconds = [float("inf")] * len(runs)
    for _ in range(repeats):
        for i, run in enumerate(runs):
            start = time.perf_counter()
            run()
            seconds[i] = min(seconds[i], time.perf_counter() - start)
    return seconds


def error(second: np.ndarray, X: np.ndarray) -> float:
    """Largest error of the first 24 columns, relative to the coordinates' own sizes."""
    Y = X[:, :24].astype(np.longdouble)
    exact = np.array([[(a * b).sum() for a in Y.T] for b in Y.T])
    scale = np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
    return float((np.abs(second[:24, :24] - exact) / scale).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shapes", nargs="+", default=["100000x576", "20000x2304"])
    options = parser.parse_args()
    threads = options.threads
    limit = machine.peaks(threads).get("float64")
    said = "not measured: no compiler" if limit is None else f"{limit / 1e9:.1f} GF/s"
    print(f"{threads} threads, NumPy {np.__version__}; float64 multiply-add peak {said}\n")
    print("| second moment | ours s | NumPy s | NumPy/ours | GF/s | of peak | error, ours | NumPy |")
    print("|---|---|---|---|---|---|---|---|")
    with threadpoolctl.threadpool_limits(threads, user_api="blas"):
        for shape in options.shapes:
            n, d = map(int, shape.split("x"))
            for dtype in (np.float64, np.float32):
                X = activations(n, d, dtype)
                found = {}

                def ours(X=X, found=found):
                    found["ours"] = atoms.AtomicInnerProduct(num_threads=threads).partial_fit(X)

                def numpy(X=X, found=found):
                    Y = X.astype(np.float64, copy=False)
                    found["numpy"] = Y.T @ Y

                a, b = best(options.repeats, ours, numpy)
                rate = n * d * d / a
                share = "" if limit is None else f"{rate / limit:.0%}"
                e = error(found["ours"].second_moment_ * n, X), error(found["numpy"], X)
                print(
                    f"| {n:,} x {d} {np.dtype(dtype)} | {a:.3f} | {b:.3f} | {b / a:.2f} "
                    f"| {rate / 1e9:.1f} | {share} | {e[0]:.0e} | {e[1]:.0e} |",
                    flush=True,
                )
                del X, found

        print("\n| whitening, float32 in and out | ours s | NumPy f32 s | GF/s | error, ours | NumPy f32 |")
        print("|---|---|---|---|---|---|")
        for shape in options.shapes:
            d = int(shape.split("x")[1])
            X = activations(max(4 * d, 8192), d, np.float32)
            aip = atoms.AtomicInnerProduct(num_threads=threads).fit(X)
            n, W, out, out32 = len(X), aip.whitener_, np.empty_like(X), np.empty_like(X)
            W32 = W.astype(np.float32)
            runs = (lambda: aip.whiten(X, out=out)), (lambda: np.matmul(X, W32, out=out32))
            a, b = best(options.repeats, *runs)
            exact = X.astype(np.float64) @ W
            size = np.linalg.norm(exact, axis=1)
            e = [np.max(np.linalg.norm(z - exact, axis=1) / size) for z in (out, out32)]
            print(
                f"| {n:,} x {d} | {a:.3f} | {b:.3f} | {2 * n * d * d / a / 1e9:.1f} "
                f"| {e[0]:.0e} | {e[1]:.0e} |"
            )


if __name__ == "__main__":
    main()
