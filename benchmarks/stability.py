"""Do seeds find the same atoms, and do consensus dictionaries of different seeds?

    python benchmarks/stability.py [--data ROWS.npy | --planted] [--kinds sae omp ...] [--sizes 576 1152 2304] [--seeds 8]
        [--samples 500000] [--metric] [--keep FOLDER]

Two groups of so many seeds each train on the same rows (SmolLM2's layer 15, as the other benchmarks; the last tenth held
out). PW-MCC is the mean matched |cosine| (in the metric with --metric) of two dictionaries: of single seeds of the two groups,
and of the groups' consensus dictionaries (`atoms.theory.consensus`), cut to d_sae atoms by two rules (records without
`cut_by`, and what was learned again from them, are by the first). What a dictionary explains is judged by matching pursuit,
which needs no encoder. With --planted, rows of 256 true atoms (planted.py, under their metric), it is also said how many of
these each finds. Kinds:

    sae        the autoencoder
    average    its decoder's mean over the last tenth of the steps, while the rate falls to nothing
    longer     four times the samples
    kmeans     begun from the centres of a spherical k-means of the seed's own
    omp        `DictionaryLearning` with OMP codes, begun from the autoencoder
    omp-alone  the same begun from nothing
    relearned  `omp` begun from the consensus of a group's `omp`: one dictionary for a group
    random     random directions, a control
    shuffled   the autoencoder of rows whose coordinates were shuffled, a control

Writes results/stability.jsonl, a line for each figure. With --keep each seed's dictionary is kept in that folder, of one setting
alone, and a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from types import SimpleNamespace

import data
import numpy as np
import planted

import atoms
from atoms import controls, recovery, theory

RESULTS = Path(__file__).parent / "results" / "stability.jsonl"


def autoencoder(X, options, seed, metric, samples=None, **fit):
    sae = atoms.SparseAutoencoder(
        options.d_sae, metric=metric, target_l0=options.l0, tied=options.tied, batch_size=512, learning_rate=4e-3,
        max_steps=(samples or options.samples) // 512, random_state=seed, num_threads=1, verbose=False,
    )  # fmt: skip
    return sae.fit(X, **fit)


def learned(X, options, seed, metric, init=None):
    model = atoms.DictionaryLearning(
        options.d_sae, n_nonzero=options.l0, metric=metric, batch_size=2048, max_steps=options.samples // 2048,
        random_state=seed, num_threads=1, verbose=False,
    )  # fmt: skip
    return model.fit(X, init=init).W_dec


def average(X, options, seed, metric):
    """The decoder's mean over the last tenth of the steps."""
    first, total = 0.9 * (options.samples // 512), 0.0

    def add(sae, stats):
        nonlocal total
        if stats["step"] >= first:
            total = total + sae.W_dec

    autoencoder(X, options, seed, metric, callback=add)
    return np.asarray(total / np.linalg.norm(total, axis=1, keepdims=True), np.float32)


def kmeans(X, options, seed, metric):
    """The autoencoder, begun from centres of clusters in Euclidean geometry; thresholds where its target fires."""
    rows = X[np.random.default_rng(seed).choice(len(X), 20 * options.d_sae)]
    D = controls.KMeansDictionary(options.d_sae, random_state=seed, num_threads=1).fit(rows).W_dec
    mean = X.mean(0)
    threshold = np.quantile((rows - mean) @ D.T, 1 - options.l0 / options.d_sae, axis=0)
    start = SimpleNamespace(
        W_enc=D.T.copy(), W_dec=D, b_enc=-D @ mean, b_dec=mean, threshold=np.maximum(threshold, 1e-3)
    )
    return autoencoder(X, options, seed, metric, init=start).W_dec


def shuffled(X, options, seed, metric):
    return autoencoder(controls.shuffle_coordinates(X, 0), options, seed, metric).W_dec


def random(X, options, seed, metric):
    return np.random.default_rng(seed).standard_normal((options.d_sae, X.shape[1])).astype(np.float32)


TRAIN = {
    "sae": lambda *args: autoencoder(*args).W_dec,
    "average": average,
    "longer": lambda X, options, *args: autoencoder(X, options, *args, samples=4 * options.samples).W_dec,
    "kmeans": kmeans,
    "omp": lambda X, options, seed, metric: learned(
        X, options, seed, metric, autoencoder(X, options, seed, metric)
    ),
    "omp-alone": learned,
    "random": random,
    "shuffled": shuffled,
}
KINDS = [*TRAIN, "relearned"]


def explained(D, held, mean, options, metric):
    """Held-out variance, centred (in the metric), by matching pursuit with L0 atoms."""
    codes = recovery.omp(held - mean, D, options.l0, metric=metric, num_threads=1)
    return theory.explained_variance(
        held,
        np.asarray(codes @ D + mean, np.float32),
        "metric_centered" if metric else "centered",
        metric=metric,
    ).total


class Judge:
    """Compares dictionaries of the two groups, and writes down what it finds."""

    def __init__(self, options, held, mean, metric, truth):
        self.options, self.held, self.mean, self.metric, self.truth = options, held, mean, metric, truth

    def __call__(self, kind, of, pairs, spent, **more):
        """pairs: dictionaries of the first and of the second group; of: how many seeds each stands for."""
        matched = [theory.match_dictionaries(a, b, self.metric) for a, b in pairs]
        judged = [D for pair in pairs[:2] for D in pair]
        record = {
            "kind": kind, "seeds": of, "d_sae": self.options.d_sae, "l0": self.options.l0, "samples": self.options.samples,
            "metric": self.metric is not None, "tied": self.options.tied, "data": "planted" if self.options.planted else "layer 15",
            "pw_mcc": float(np.mean([m.mcc for m in matched])),
            "sd": float(np.std([m.mcc for m in matched], ddof=1)) if len(matched) > 1 else None,
            "above_0.9": float(np.mean([m.share_above(0.9) for m in matched])),
            "explained": float(np.mean([explained(D, self.held, self.mean, self.options, self.metric) for D in judged])),
            "cpu_s": spent and round(spent, 1), **more,
        }  # fmt: skip
        if self.truth is not None:
            W = planted.whitener(self.held)
            record["found"] = float(np.mean([planted.found(D, self.truth, W)[0] for D in judged]))
        with RESULTS.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(
            ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in record.items()),
            flush=True,
        )


def trained(kind, X, options, seed, metric):
    """One seed's dictionary, which may be there already."""
    file = options.keep and options.keep / f"{kind}-{options.d_sae}-{seed}.npy"
    if file and file.exists():
        return np.load(file)
    D = TRAIN[kind](X, options, seed, metric)
    if file:
        options.keep.mkdir(parents=True, exist_ok=True)
        np.save(file, D)
    return D


def consensus(judge, kind, groups, options, metric):
    """Of the first 2, 4, ... seeds of each group, and of all, of which the last cut is given back.

    Cut to the atoms that most seeds have, then to those whose |cosines| with the seeds' atoms have the largest sum.
    """
    for k in [k for k in (2, 4, 8, 16, 32, 64) if k < options.seeds] + [options.seeds]:
        started = time.process_time()
        found = [theory.consensus(group[:k], metric) for group in groups]
        spent = time.process_time() - started
        for by, worth in (("seeds", lambda c: c.found_in), ("cosines", lambda c: c.found_in * c.cosine)):
            best = [np.argsort(-worth(c), kind="stable")[: options.d_sae] for c in found]
            cut = [c.atoms[rows] for c, rows in zip(found, best)]
            nearest = theory.match_dictionaries(*cut, metric).nearest_a[found[0].found_in[best[0]] == k]
            judge(
                kind, k, [cut], spent, cut_by=by,
                in_all=float(np.mean([(c.found_in == k).sum() for c in found])),
                nearest_of_these=float(nearest.mean()) if len(nearest) else None,
            )  # fmt: skip
    return cut


def relearned(judge, X, cut, options, metric):
    """Dictionary learning from each group's consensus."""
    started, mean = time.process_time(), X.mean(0)
    pair = [
        learned(X, options, 1000 + group, metric, SimpleNamespace(W_dec=D, b_dec=mean))
        for group, D in enumerate(cut)
    ]
    judge("relearned", options.seeds, [pair], time.process_time() - started)


def measure(options, X, held, metric, truth):
    judge = Judge(options, held, X.mean(0), metric, truth)
    for kind in options.kinds:
        if kind == "relearned":
            continue
        started = time.process_time()
        groups = [
            [
                trained(kind, X, options, max(100, options.seeds) * group + k, metric)
                for k in range(options.seeds)
            ]
            for group in (0, 1)
        ]
        each = None if options.keep else (time.process_time() - started) / 2 / options.seeds
        judge(kind, 1, list(zip(*groups)), each)
        cut = consensus(judge, kind, groups, options, metric)
        if kind == "omp" and "relearned" in options.kinds:
            relearned(judge, X, cut, options, metric)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data")
    parser.add_argument("--planted", action="store_true")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1152])
    parser.add_argument("--seeds", type=int, default=8, help="of each group")
    parser.add_argument("--l0", type=int, default=32)
    parser.add_argument("--samples", type=int, default=500_000)
    parser.add_argument("--metric", action="store_true")
    parser.add_argument("--tied", action="store_true")
    parser.add_argument("--keep", type=Path, help="folder of the seeds' dictionaries")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("--seeds: 2 or more in each group, whose consensus is taken")
    if "relearned" in options.kinds and "omp" not in options.kinds:
        parser.error("--kinds: relearned begins from the consensus of omp, so name both")
    if options.metric and "kmeans" in options.kinds:
        parser.error("--kinds: kmeans begins in Euclidean geometry; leave it out with --metric")
    truth = None
    if options.planted:
        X, truth = planted.generate(0)
        X, held = data.split(X)
    else:
        X, held = data.split(np.load(options.data, mmap_mode="r") if options.data else data.load())
        X, held = np.asarray(X, np.float32), np.asarray(held, np.float32)[::3]
    metric = atoms.AtomicInnerProduct(num_threads=1).fit(X) if options.metric else None
    for size in options.sizes:
        options.d_sae = size
        measure(options, X, held, metric, truth)


if __name__ == "__main__":
    main()
