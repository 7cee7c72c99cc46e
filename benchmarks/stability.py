"""Do seeds find the same atoms, and do consensus dictionaries of different seeds?

    python benchmarks/stability.py [--data ROWS.npy] [--seeds 8] [--d-sae 1152] [--samples 500000] [--metric]

Two groups of so many seeds each train on the same rows (SmolLM2's layer 15, as the other benchmarks; the last tenth held
out). PW-MCC is the mean matched |cosine| (in the metric with --metric) of two dictionaries: of single seeds of the two groups,
and of the groups' consensus dictionaries (`atoms.theory.consensus`), cut to d_sae atoms, those that most seeds have. What a
dictionary explains is judged by matching pursuit, which needs no encoder. Controls: consensus of random dictionaries, and of
autoencoders of shuffled coordinates.
"""

from __future__ import annotations

import argparse
import time

import data
import numpy as np

import atoms
from atoms import recovery, theory


def train(X, options, seed, metric):
    sae = atoms.SparseAutoencoder(
        options.d_sae, metric=metric, target_l0=options.l0, tied=options.tied, batch_size=512, learning_rate=4e-3,
        max_steps=options.samples // 512, random_state=seed, num_threads=1, verbose=False,
    )  # fmt: skip
    return sae.fit(X)


def explained(D, held, mean, options, metric):
    """Held-out variance, centred (in the metric), by matching pursuit with L0 atoms."""
    codes = recovery.omp(held - mean, D, options.l0, metric=metric, num_threads=1)
    return theory.explained_variance(
        held,
        np.asarray(codes @ D + mean, np.float32),
        "metric_centered" if metric else "centered",
        metric=metric,
    ).total


def report(name, groups, held, mean, options, metric):
    single = [theory.match_dictionaries(a, b, metric) for a, b in zip(groups[0], groups[1])]
    print(
        f"{name}: single seeds, PW-MCC {np.mean([m.mcc for m in single]):.3f} (sd {np.std([m.mcc for m in single], ddof=1):.3f}), "
        f"{100 * np.mean([m.share_above(0.9) for m in single]):.1f}% at 0.9 or above, explained {np.mean([explained(D, held, mean, options, metric) for group in groups for D in group[:2]]):.4f}"
    )
    for k in sorted({2, min(4, options.seeds), options.seeds}):
        found = [theory.consensus(group[:k], metric) for group in groups]
        cut = [c.atoms[: options.d_sae] for c in found]
        m = theory.match_dictionaries(*cut, metric)
        in_all = [c.found_in == k for c in found]
        nearest = m.nearest_a[in_all[0][: options.d_sae]]
        print(
            f"{name}: consensus of {k}, PW-MCC {m.mcc:.3f}, {100 * m.share_above(0.9):.1f}% at 0.9 or above, explained "
            f"{np.mean([explained(D, held, mean, options, metric) for D in cut]):.4f}; found in all {k}: "
            f"{np.mean([here.sum() for here in in_all]):.0f} atoms, nearest of the other consensus "
            f"{nearest.mean() if len(nearest) else np.nan:.3f}",
            flush=True,
        )
    print(found[0]._table().text(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--d-sae", type=int, default=1152)
    parser.add_argument("--l0", type=int, default=32)
    parser.add_argument("--samples", type=int, default=500_000)
    parser.add_argument("--metric", action="store_true")
    parser.add_argument("--tied", action="store_true")
    parser.add_argument("--controls", action="store_true", help="shuffled coordinates too: as long again")
    options = parser.parse_args()
    X, held = data.split(np.load(options.data, mmap_mode="r") if options.data else data.load())
    X, held = np.asarray(X, np.float32), np.asarray(held, np.float32)[::3]
    metric = atoms.AtomicInnerProduct(num_threads=1).fit(X) if options.metric else None
    mean, spent = X.mean(0), time.process_time()
    seeds = lambda rows: [
        [train(rows, options, 100 * group + k, metric).W_dec for k in range(options.seeds)]
        for group in (0, 1)
    ]
    report("atoms", seeds(X), held, mean, options, metric)
    random = [
        [
            np.random.default_rng([g, k]).standard_normal((options.d_sae, X.shape[1])).astype(np.float32)
            for k in range(options.seeds)
        ]
        for g in (0, 1)
    ]
    report("random", random, held, mean, options, metric)
    if options.controls:
        rng = np.random.default_rng(0)
        shuffled = np.stack([rng.permutation(column) for column in X.T], axis=1)
        report("shuffled coordinates", seeds(shuffled), held, mean, options, metric)
    print(f"{time.process_time() - spent:.0f} s of CPU")


if __name__ == "__main__":
    main()
