"""SAELens's own synthetic benchmark, at a size that fits a small machine: ours and its trainers.

The model is SynthSAEBench-16k's recipe scaled down by eight: 2,048 features in 256 dimensions,
Zipfian firing, a hierarchy of mutually exclusive children, low-rank correlations. Everybody trains 512
latents on the same rows in the same order, L0 being the true one of the 512 most frequent features, and
SAELens's own evaluation judges: MCC (Hungarian matching of decoder rows with features), F1 of each
latent as a detector of its best feature, uniqueness, explained variance.

    python benchmarks/synthetic.py [--names ...] [--samples 2000000] [--lr 3e-4 1e-3 3e-3] [--seeds 0]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import data
import numpy as np
import synthsae
import torch

RESULTS = Path(__file__).parent / "results" / "synthetic.jsonl"
(FEATURES, D_IN, _, D_SAE), BATCH = synthsae.SIZES["2k"], 1024
PEERS = ["saelens-batchtopk", "saelens-topk", "saelens-matryoshka", "saelens-jumprelu"]


def model():
    from sae_lens.synthetic import SyntheticModel

    return SyntheticModel(synthsae.config("2k"))


def rows(synthetic, folder: Path, samples: int) -> tuple[np.ndarray, float]:
    """Training rows, generated once and kept; and the true L0 of the D_SAE most frequent features."""
    path = folder / f"synthetic-{FEATURES}-{D_IN}-{samples}.npy"
    torch.manual_seed(1)
    features = synthetic.activation_generator.sample(20_000)
    often = (features > 0).float().mean(0).sort(descending=True).values
    l0 = float(often[:D_SAE].sum())
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        X = np.empty((samples, D_IN), np.float32)
        for i in range(0, samples, 8192):
            X[i : i + 8192] = synthetic.sample(min(8192, samples - i)).numpy()
        np.save(path, X)
    return np.load(path, mmap_mode="r"), l0


def train_peer(name: str, X: np.ndarray, l0: float, lr: float, seed: int, options: dict):
    import peers

    steps = len(X) // BATCH
    peer = peers.make(name, D_IN, D_SAE, l0, batch_size=BATCH, steps=steps, lr=lr, seed=seed, **options)
    peer.prepare(torch.from_numpy(np.array(X[:8192])))
    for index in data.batches(len(X), BATCH, steps, seed):
        peer.step(torch.from_numpy(X[index]))
    return peer.for_inference()


def train_ours(X: np.ndarray, l0: float, lr: float, seed: int, threads: int, metric: bool, options: dict):
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig

    import atoms

    aip = atoms.AtomicInnerProduct(num_threads=threads).fit(X) if metric else None
    sae = atoms.SparseAutoencoder(
        D_SAE, metric=aip, target_l0=l0, batch_size=BATCH, max_steps=len(X) // BATCH, learning_rate=lr,
        random_state=seed, num_threads=threads, verbose=False, **options,
    ).fit(X)  # fmt: skip
    theirs = JumpReLUSAE(JumpReLUSAEConfig(d_in=D_IN, d_sae=D_SAE, apply_b_dec_to_input=False))
    theirs.load_state_dict(
        {
            key: torch.from_numpy(np.array(getattr(sae, key)))
            for key in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
        }
    )
    return theirs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ["atoms", "atoms-metric", *PEERS]
    parser.add_argument("--names", nargs="+", default=names, choices=names)
    parser.add_argument("--samples", type=int, default=2_000_000)
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--ours", type=json.loads, default={}, help="JSON: further arguments of SparseAutoencoder"
    )
    parser.add_argument(
        "--theirs",
        type=json.loads,
        default={},
        help='JSON: of the rivals, e.g. {"mode": "tanh", "coefficient": 1}',
    )
    parser.add_argument("--data", type=Path, default=data.default_folder())
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()

    from sae_lens.synthetic import eval_sae_on_synthetic_data

    torch.set_num_threads(options.threads)
    synthetic = model()
    X, l0 = rows(synthetic, options.data, options.samples)
    print(f"{len(X)} rows; L0 of the {D_SAE} most frequent features: {l0:.1f}\n")
    print(
        "| name | lr | seed | MCC | F1 | uniqueness | EV | L0 | dead | seconds |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    options.results.parent.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for name in options.names:
            for lr in options.lr:
                start = time.perf_counter()
                if name.startswith("atoms"):
                    sae = train_ours(X, l0, lr, seed, options.threads, name.endswith("metric"), options.ours)
                else:
                    sae = train_peer(name, X, l0, lr, seed, options.theirs)
                spent = time.perf_counter() - start
                torch.manual_seed(2)
                e = eval_sae_on_synthetic_data(
                    sae,
                    synthetic.feature_dict,
                    synthetic.activation_generator,
                    num_samples=50_000,
                    batch_size=2048,
                )
                print(
                    f"| {name} | {lr:g} | {seed} | {e.mcc:.4f} | {e.classification.f1_score:.4f} | {e.uniqueness:.3f} "
                    f"| {e.explained_variance:.4f} | {e.sae_l0:.1f} | {e.dead_latents} | {spent:.0f} |",
                    flush=True,
                )
                record = {"name": name, "lr": lr, "seed": seed, "samples": options.samples, "seconds": spent,
                          "target_l0": l0,
                          "options": options.ours if name.startswith("atoms") else options.theirs, **e.to_dict()}  # fmt: skip
                with open(options.results, "a") as file:
                    file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
