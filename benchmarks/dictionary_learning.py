"""Dictionary learning: time to one held-out objective beside SPAMS's trainDL and scikit-learn, same rows, same threads.

    python benchmarks/dictionary_learning.py [--data ROWS.npy] [--atoms 1152] [--alpha 4] [--seconds 20] [--threads 2]

Rows are whitened here, once for all. The objective is the lasso's, ``mean 1/2 |x - z D|^2 + alpha |z|_1``, on the last
tenth of the rows, each competitor's unit atoms coded by `atoms.recovery.lasso`; judging is not on the clock. Each
is timed to the worst final objective of the three, at the resolution of the snapshots.
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np
from data import capture, default_folder, default_text
from threadpoolctl import threadpool_limits

import atoms


def objective(D: np.ndarray, held: np.ndarray, alpha: float) -> float:
    D = D / np.maximum(np.linalg.norm(D, axis=1, keepdims=True), 1e-12)
    codes, info = atoms.recovery.lasso(held, D.astype(np.float32), alpha, return_info=True)
    return float((0.5 * info.residual**2).mean() + alpha * np.abs(codes.data).sum() / len(held))


def ours(X, held, args):
    """Snapshots (seconds, atoms)."""
    seen, model = (
        [],
        atoms.DictionaryLearning(
            args.atoms,
            coder="lasso",
            alpha=args.alpha,
            batch_size=1024,
            verbose=False,
            num_threads=args.threads,
        ),
    )
    started = time.perf_counter()
    while not seen or seen[-1][0] < args.seconds:
        rows = np.random.default_rng(len(seen)).choice(len(X), 4096)
        model.partial_fit(X[rows])
        seen.append((time.perf_counter() - started, model.W_dec.copy()))
    return seen


def sklearn(X, held, args):
    from sklearn.decomposition import MiniBatchDictionaryLearning

    model = MiniBatchDictionaryLearning(
        args.atoms, alpha=args.alpha, batch_size=1024, fit_algorithm="cd", random_state=0, n_jobs=args.threads,
        dict_init=X[: args.atoms] / np.linalg.norm(X[: args.atoms], axis=1, keepdims=True),
    )  # fmt: skip
    warnings.simplefilter("ignore")  # its coder's convergence warnings, by the thousand
    seen, started = [], time.perf_counter()
    while not seen or seen[-1][0] < args.seconds:
        model.partial_fit(X[np.random.default_rng(len(seen)).choice(len(X), 1024)])
        seen.append((time.perf_counter() - started, model.components_.copy()))
    return seen


def spams(X, held, args):
    import spams as library

    Xt, seen, spent, share = np.asfortranarray(X.T), [], 0.0, max(1, round(args.seconds / 8))
    D = np.asfortranarray((X[: args.atoms] / np.linalg.norm(X[: args.atoms], axis=1, keepdims=True)).T)
    model = None
    while spent < args.seconds:
        started = time.perf_counter()
        more = {"D": D} if model is None else {"D": D, "model": model}
        D, model = library.trainDL(
            Xt, return_model=True, K=args.atoms, mode=2, lambda1=args.alpha, iter=-share, batchsize=512,
            numThreads=args.threads, verbose=False, **more,
        )  # fmt: skip
        spent += time.perf_counter() - started
        seen.append((spent, np.ascontiguousarray(D.T)))
    return seen


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data")
    parser.add_argument("--atoms", type=int, default=1152)
    parser.add_argument("--alpha", type=float, default=4.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    atoms.set_num_threads(args.threads)
    raw = np.load(args.data or capture(default_text(), default_folder()))
    cut = len(raw) * 9 // 10
    norms = np.linalg.norm(raw, axis=1)
    keep = norms <= 10 * np.median(norms)
    metric = atoms.AtomicInnerProduct(centered=True).fit(raw[:cut][keep[:cut]])
    X = np.random.default_rng(0).permutation(metric.whiten(raw[:cut][keep[:cut]]).astype(np.float32))
    held = metric.whiten(raw[cut:][keep[cut:]]).astype(np.float32)[:1000]
    curves = {}
    with threadpool_limits(args.threads):
        for run in (ours, spams, sklearn):
            try:
                seen = run(X, held, args)
            except ImportError as error:
                print(f"{run.__name__}: {error}")
                continue
            some = (
                seen
                if len(seen) < 12
                else [seen[i] for i in np.unique(np.geomspace(1, len(seen), 12).astype(int) - 1)]
            )
            curves[run.__name__] = [(s, objective(D, held, args.alpha)) for s, D in some]
            print(run.__name__, " ".join(f"{s:.1f}s {f:.3f}" for s, f in curves[run.__name__]), flush=True)
    goal = max(min(f for _, f in curve) for curve in curves.values())
    reached = {name: next(s for s, f in curve if f <= goal) for name, curve in curves.items()}
    print(
        f"objective {goal:.3f}:",
        ", ".join(f"{n} {s:.2f} s ({s / reached['ours']:.1f})" for n, s in reached.items()),
    )


if __name__ == "__main__":
    main()
