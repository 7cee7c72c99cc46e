"""Dictionary learning: speed beside SPAMS's trainDL and scikit-learn, quality and seeds beside the autoencoder.

    python benchmarks/learning.py [--data ROWS.npy] [--parts speed quality seeds] [--threads 1 2]

Rows are whitened here, once for all; the last tenth is held out.

speed: the objective is the lasso's, ``mean 1/2 |x - z D|^2 + alpha |z|_1``, on held-out rows, each competitor's unit
atoms coded by `atoms.recovery.lasso`; judging is not on the clock. Each rival's lowest objective is one that ours is timed
to as well, at the resolution of the snapshots.

quality: held-out explained variance in the metric, mean L0, and the paper's q* at that L0, of the autoencoder's own codes,
of OMP over its atoms, and of a dictionary learned with OMP.

seeds: PW-MCC (mean matched |cosine| of two seeds' atoms) of either kind.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
import warnings

import machine
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
            random_state=args.seed,
        ),
    )
    started = time.perf_counter()
    while not seen or seen[-1][0] < args.seconds:
        rows = np.random.default_rng([args.seed, len(seen)]).choice(len(X), 4096)
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
    """A run of its own for each budget: one that is stopped and taken up again learns worse."""
    library = machine.spams()
    Xt, seen = np.asfortranarray(X.T), []
    start = np.asfortranarray((X[: args.atoms] / np.linalg.norm(X[: args.atoms], axis=1, keepdims=True)).T)
    for budget in sorted({max(1, round(args.seconds * share)) for share in (1 / 8, 1 / 4, 1 / 2, 1)}):
        started = time.perf_counter()
        D = library.trainDL(
            Xt, D=start, K=args.atoms, mode=2, lambda1=args.alpha, iter=-budget, batchsize=512,
            numThreads=args.threads, verbose=False,
        )  # fmt: skip
        seen.append((time.perf_counter() - started, np.ascontiguousarray(D.T)))
    return seen


def variance(T, codes, W):
    """Explained, centred, of rows in the metric's coordinates."""
    return 1 - np.square(T - codes @ W).sum(dtype=np.float64) / np.square(T - T.mean(0)).sum(dtype=np.float64)


def of_model(model, held, T):
    """Explained variance in the metric, and codes."""
    codes = model.transform(held)
    rebuilt = model.metric_.whiten(model.inverse_transform(codes))
    return 1 - np.square(T - rebuilt).sum(dtype=np.float64) / np.square(T - T.mean(0)).sum(
        dtype=np.float64
    ), codes


def pair(args, metric, width, seed):
    """The autoencoder and the dictionary of one seed; the same samples for both."""
    own = {"metric": metric, "verbose": False, "random_state": seed}
    sae = atoms.SparseAutoencoder(
        width, target_l0=args.nonzero, batch_size=1024, max_steps=args.samples // 1024, **own
    )
    learner = atoms.DictionaryLearning(
        width, args.nonzero, batch_size=2048, max_steps=args.samples // 2048, **own
    )
    return sae, learner


def quality(train, held, metric, args):
    T = metric.whiten(held)
    for seed in args.seeds[:1]:
        sae, learner = pair(args, metric, args.width, seed)
        times = []
        for model in (sae, learner):
            started = time.perf_counter()
            model.fit(train, X_val=held)
            times.append(time.perf_counter() - started)
        found = {"autoencoder": (*of_model(sae, held, T), sae, times[0])}
        W = metric.whiten_directions(sae.W_dec)
        W = (W / np.linalg.norm(W, axis=1, keepdims=True)).astype(np.float32)
        center = T.mean(0)
        codes = atoms.recovery.omp(T - center, W, args.nonzero)
        found["OMP over its atoms"] = variance(T - center, codes, W), codes, sae, times[0]
        found["dictionary learning"] = (*of_model(learner, held, T), learner, times[1])
        print(
            f"{args.width} atoms, AIP, {args.samples:,} samples, seed {seed}: held-out R2, L0, q* (of random directions), seconds"
        )
        for name, (r2, codes, model, spent) in found.items():
            q = atoms.theory.stability(model.W_dec, codes, metric)
            stable = f"{q.q_star:.3f} ({q.q_star_random:.3f})"
            print(f"  {name}: {r2:.4f}, {codes.nnz / len(T):.1f}, {stable}, {spent:.0f} s", flush=True)


def seeds(train, held, metric, args):
    several = [pair(args, metric, 1152, seed) for seed in args.seeds]
    for kind, models in zip(("autoencoder", "dictionary learning"), zip(*several)):
        for model in models:
            model.fit(train, X_val=held)
        mcc = [
            atoms.theory.match_dictionaries(a.W_dec, b.W_dec, metric).mcc
            for i, a in enumerate(models)
            for b in models[i + 1 :]
        ]
        print(
            f"1,152 atoms, {args.samples:,} samples, seeds {args.seeds}: PW-MCC of the {kind} {np.mean(mcc):.3f}",
            flush=True,
        )


def speed(X, held, args):
    print(
        f"lasso, alpha {args.alpha:g}, {args.atoms} atoms, {args.seconds:g} s each, {args.threads} threads, seed {args.seed}"
    )
    X = np.random.default_rng(args.seed).permutation(X)
    atoms.set_num_threads(args.threads)
    curves = {}
    with threadpool_limits(args.threads):
        for run in (ours, spams, sklearn):
            try:
                seen = run(X, held, args)
            except ImportError as error:
                print(f"{run.__name__}: {error}")
                continue
            some = np.unique(np.geomspace(1, len(seen), 12).astype(int) - 1)
            curves[run.__name__] = [(seen[i][0], objective(seen[i][1], held, args.alpha)) for i in some]
            print(run.__name__, " ".join(f"{s:.1f}s {f:.3f}" for s, f in curves[run.__name__]), flush=True)
    for name in sorted(curves.keys() - {"ours"}):  # the lowest it came to, and who was there when
        goal, late = min((f, at) for at, f in curves[name])
        soon = next((at for at, f in curves["ours"] if f <= goal), np.inf)
        own = f"{soon:.2f} s ({late / soon:.1f} times)" if soon < np.inf else "not within the time"
        print(f"{name}'s objective {goal:.3f}: {late:.2f} s, ours {own}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data")
    parser.add_argument("--parts", nargs="+", default=["speed", "quality", "seeds"])
    parser.add_argument("--atoms", type=int, default=1152, help="of the speed part")
    parser.add_argument("--alpha", type=float, default=4.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--width", type=int, default=2304, help="atoms of the quality part")
    parser.add_argument("--nonzero", type=int, default=16)
    parser.add_argument("--samples", type=int, default=409_600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    args = parser.parse_args()
    load = ", ".join(f"{v:.1f}" for v in os.getloadavg())
    with open("/proc/cpuinfo") as file:
        cpu = next((line.partition(": ")[2].strip() for line in file if line.startswith("model name")), "?")
    print(f"{cpu}, {os.cpu_count()} cores, load averages at the start {load}", flush=True)
    raw = np.load(args.data or capture(default_text(), default_folder()))
    cut, norms = len(raw) * 9 // 10, np.linalg.norm(raw, axis=1)
    keep = norms <= 10 * np.median(norms)
    train, held = raw[:cut][keep[:cut]], raw[cut:][keep[cut:]]
    metric = atoms.AtomicInnerProduct(centered=True).fit(train)
    X = metric.whiten(train).astype(np.float32)
    if "speed" in args.parts:
        for threads, seed in itertools.product(args.threads, args.seeds):
            speed(
                X,
                metric.whiten(held).astype(np.float32)[:1000],
                argparse.Namespace(**{**vars(args), "threads": threads, "seed": seed}),
            )
    atoms.set_num_threads(max(args.threads))
    for part in (quality, seeds):
        if part.__name__ in args.parts:
            part(train, held, metric, args)
    print(f"load averages at the end {', '.join(f'{v:.1f}' for v in os.getloadavg())}")


if __name__ == "__main__":
    main()
