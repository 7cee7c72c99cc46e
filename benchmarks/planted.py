"""Planted dictionaries: how many of the true atoms does each competitor find?

256 atoms in 64 dimensions, random or correlated directions, 3 to 6 active in a sample with
amplitudes in [1, 2], then a non-orthogonal mixing (condition number 30) that makes Euclidean geometry
misleading, and 1% noise. Everybody has twice as many latents as there are atoms and sees
the same samples. An atom counts as found when some decoder direction has a cosine of at least 0.95
with it under the atomic inner product, the inverse second moment of the training rows.

Competitors train on the raw rows and, where the name ends in "+white", on rows whitened by
that same inner product; ours with the metric and, as "atoms-euclidean", without.

    python benchmarks/planted.py [--names ...] [--seeds 0 1 2 3 4] [--samples 4000000] [--correlated]

With few samples small batches, a high rate and an early search for dead latents find the most:

    python benchmarks/planted.py --names atoms --samples 100000 --ours '{"batch_size": 64, "learning_rate": 0.01,
        "beta2": 0.99, "dead_after": 50, "decay": 0.5, "tied": true}'
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import data
import numpy as np

RESULTS = Path(__file__).parent / "results" / "planted.jsonl"
D_IN, ATOMS, D_SAE, L0 = 64, 256, 512, 4.5
ROWS, BATCH = 100_000, 1024


def generate(seed: int, correlated: bool = False, rows: int = ROWS) -> tuple[np.ndarray, np.ndarray]:
    """Rows (rows, 64) float32 and the true atoms (256, 64), after mixing."""
    rng = np.random.default_rng(seed)
    D = rng.standard_normal((ATOMS, D_IN))
    if correlated:  # clusters of eight that share a direction: cosines about 0.4 within a cluster
        D += 0.8 * np.repeat(rng.standard_normal((ATOMS // 8, D_IN)), 8, axis=0)
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    left, right = (np.linalg.qr(rng.standard_normal((D_IN, D_IN)))[0] for _ in range(2))
    D = D @ (left * np.geomspace(1, 30, D_IN) @ right)
    X = np.empty((rows, D_IN), np.float32)
    for i in range(0, rows, 4096):
        n = min(4096, rows - i)
        rank = np.argsort(rng.random((n, ATOMS)), axis=1)[:, :6]  # six distinct atoms for each row
        size = rng.uniform(1, 2, (n, 6)) * (np.arange(6) < rng.integers(3, 7, (n, 1)))
        X[i : i + n] = np.einsum("nk,nkd->nd", size, D[rank])
    X += (0.01 * X.std(axis=0) * rng.standard_normal(X.shape)).astype(np.float32)
    return X, D


def whitener(X: np.ndarray) -> np.ndarray:
    """S^(1/2), the inverse root of the uncentred second moment; plain NumPy, the judge's own."""
    values, vectors = np.linalg.eigh(X.T.astype(np.float64) @ X / len(X))
    return vectors / np.sqrt(values) @ vectors.T


def found(directions: np.ndarray, D: np.ndarray, W: np.ndarray) -> tuple[float, float]:
    """Share of atoms at cosine >= 0.95 under the metric, and their mean best cosine."""
    a, b = directions.astype(np.float64) @ W, D @ W
    a /= np.linalg.norm(a, axis=1, keepdims=True) + 1e-30
    b /= np.linalg.norm(b, axis=1, keepdims=True)
    best = (b @ a.T).max(axis=1)
    return float((best >= 0.95).mean()), float(best.mean())


def run_peer(name: str, X: np.ndarray, W: np.ndarray, seed: int, samples: int, lr: float, threads: int):
    import peers
    import torch

    torch.set_num_threads(threads)
    white = name.endswith("+white")
    rows = (X @ W).astype(np.float32) if white else X
    steps = samples // BATCH
    l0 = 5  # TopK needs a whole number; 4.5 atoms are active on average, six at most
    peer = peers.make(
        name.removesuffix("+white"), D_IN, D_SAE, l0, batch_size=BATCH, steps=steps, lr=lr, seed=seed
    )
    peer.prepare(torch.from_numpy(rows[:8192]))
    for index in data.batches(len(rows), BATCH, steps, seed):
        peer.step(torch.from_numpy(rows[index]))
    directions = peer.directions().astype(np.float64)
    return directions @ np.linalg.inv(W) if white else directions


def run_ours(name: str, X: np.ndarray, seed: int, samples: int, threads: int, further: dict):
    import atoms

    metric = atoms.AtomicInnerProduct(num_threads=threads).fit(X) if name == "atoms" else None
    settings = {"target_l0": L0, "batch_size": BATCH, "num_threads": threads, **further}
    sae = atoms.SparseAutoencoder(
        D_SAE,
        metric=metric,
        max_steps=samples // settings["batch_size"],
        random_state=seed,
        verbose=False,
        **settings,
    )
    return sae.fit(X).W_dec


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--names", nargs="+", default=["atoms", "atoms-euclidean", "saelens-batchtopk",
                        "saelens-batchtopk+white", "dl-batchtopk+white", "saelens-jumprelu+white"])  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--samples", type=int, default=4_000_000)
    parser.add_argument("--lr", type=float, default=1e-3, help="of the competitors")
    parser.add_argument(
        "--ours", type=json.loads, default={}, help="JSON: further arguments of SparseAutoencoder"
    )
    parser.add_argument("--correlated", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.results.parent.mkdir(parents=True, exist_ok=True)
    print("| name | seed | atoms found | mean best cosine | seconds |\n|---|---|---|---|---|")
    for seed in options.seeds:
        X, D = generate(seed, options.correlated)
        W = whitener(X)
        for name in options.names:
            start = time.perf_counter()
            if name.startswith("atoms"):
                directions = run_ours(name, X, seed, options.samples, options.threads, options.ours)
            else:
                directions = run_peer(name, X, W, seed, options.samples, options.lr, options.threads)
            spent = time.perf_counter() - start
            share, cosine = found(directions, D, W)
            print(f"| {name} | {seed} | {share:.1%} | {cosine:.4f} | {spent:.1f} |", flush=True)
            record = {"name": name, "seed": seed, "correlated": options.correlated, "samples": options.samples,
                      "lr": options.lr, "ours": options.ours, "found": share, "mean_cosine": cosine, "seconds": spent}  # fmt: skip
            with open(options.results, "a") as file:
                file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
