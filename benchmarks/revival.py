"""What it costs or gives to revive dead latents: held-out explained variance for each `dead_after`, beside 0.

Rows are planted (256 directions in 64 dimensions, of strengths that differ by ten), or those of a file. A value
that is more than 0.01 below that of `dead_after=0` is marked. Held-out rows of more than five times the median norm judge
nothing: a single one at seven times moved the whole figure by 0.06.

    python benchmarks/revival.py [--d-sae 2000] [--seeds 0 1 2 3 4] [--dead-after 50 100 300]
    python benchmarks/revival.py --rows layer15.npy --d-sae 4608 --target-l0 16 --max-steps 600
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np

import atoms

ACTIVATIONS = ("jumprelu", "relu", "topk", "batchtopk")


def planted(seed: int, n: int = 10_000, d: int = 64) -> np.ndarray:
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((256, d))
    A /= np.linalg.norm(A, axis=1, keepdims=True)
    codes = rng.exponential(1, (n, 256)) * (rng.random((n, 256)) < 0.03)
    return ((codes @ A + 0.05 * rng.standard_normal((n, d))) * np.logspace(0, -1, d)).astype(np.float32)


def explained(X: np.ndarray, held_out: np.ndarray, **settings: object) -> float:
    sae = atoms.SparseAutoencoder(verbose=False, **settings).fit(X)  # type: ignore[arg-type]
    norms = np.linalg.norm(held_out, axis=1)
    held_out = held_out[norms <= 5 * np.median(norms)]
    e = held_out - sae.inverse_transform(sae.transform(held_out))
    return float(1 - (e**2).sum() / ((held_out - held_out.mean(axis=0)) ** 2).sum())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", help="npy file of rows (n, d_in); the last fifth is held out")
    parser.add_argument("--metric", action="store_true", help="train under the atomic inner product")
    parser.add_argument("--d-sae", type=int, default=2000)
    parser.add_argument("--target-l0", type=float, default=8)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--max-steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--activations", nargs="+", default=ACTIVATIONS, choices=ACTIVATIONS)
    parser.add_argument("--dead-after", type=float, nargs="+", default=[50, 100, 300])
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{'':24}{0:>10}" + "".join(f"{value:>10g}" for value in args.dead_after))
    for activation in args.activations:
        for tied in (False, True):
            for seed in args.seeds:
                rows = np.load(args.rows) if args.rows else planted(seed)
                X, held_out = rows[: len(rows) * 4 // 5], rows[len(rows) * 4 // 5 :]
                metric = atoms.AtomicInnerProduct().fit(X) if args.metric else None
                found = [
                    explained(
                        X, held_out, d_sae=args.d_sae, activation=activation, metric=metric, tied=tied,
                        target_l0=args.target_l0, batch_size=args.batch_size, max_steps=args.max_steps,
                        random_state=seed, dead_after=value,
                    )
                    for value in (0, *args.dead_after)
                ]  # fmt: skip
                marks = ("!" if value < found[0] - 0.01 else " " for value in found)
                name = f"{activation} {'tied' if tied else 'free'} seed {seed}"
                print(f"{name:24}" + "".join(f"{v:9.4f}{m}" for v, m in zip(found, marks)), flush=True)


if __name__ == "__main__":
    main()
