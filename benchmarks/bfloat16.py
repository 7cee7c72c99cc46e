"""What `capture(..., compute_dtype="bfloat16")` saves, and what it changes: SmolLM2-135M, rows of both kinds side by side.

Processor seconds of both captures (in turns, so that both meet the same neighbours), angles between the rows of one token,
and held-out explained variance (centred) of autoencoders trained on each kind, on held-out rows of each. Massive tokens
are left out of both alike.

    python benchmarks/bfloat16.py [--tokens 40000] [--layer 15] [--threads 1]
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np
import torch

import atoms
from atoms.activations import capture, language_reference, smollm2, tokenize

KINDS = (None, "bfloat16")


def both(model: object, contexts: list[np.ndarray], layer: int) -> tuple[dict, dict]:
    """Rows and processor seconds of each kind, captured by turns of 32 contexts."""
    rows: dict = {kind: [] for kind in KINDS}
    seconds: dict = dict.fromkeys(KINDS, 0.0)
    for kind in KINDS:  # what is done once only is not counted
        capture(model, contexts[:1], layer, compute_dtype=kind, verbose=False)
    for turn, start in enumerate(range(0, len(contexts), 32)):
        for kind in KINDS[:: 1 if turn % 2 else -1]:
            before = time.process_time()
            found = capture(model, contexts[start : start + 32], layer, compute_dtype=kind, verbose=False)
            seconds[kind] += time.process_time() - before
            rows[kind].append(found[layer])
    return {kind: np.concatenate(parts) for kind, parts in rows.items()}, seconds


def angles(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Degrees between rows."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    cosines = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    return np.degrees(np.arccos(np.clip(cosines, -1, 1)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=40_000)
    parser.add_argument("--layer", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--d-sae", type=int, default=2304)
    parser.add_argument("--target-l0", type=float, default=32)
    parser.add_argument("--max-steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    atoms.set_num_threads(args.threads)
    model, tokenizer = smollm2()
    contexts = tokenize(language_reference(), tokenizer, context_length=256, max_tokens=args.tokens)
    rows, seconds = both(model, contexts, args.layer)
    norms = np.linalg.norm(rows[None], axis=1)
    keep = norms <= 10 * np.median(norms)
    print(f"{len(norms)} rows of layer {args.layer}, {len(norms) - keep.sum()} massive ones left out")
    for kind in KINDS:
        print(f"{kind or 'float32':10} {seconds[kind]:8.1f} s of processor time")
    print(f"{'':10} {seconds[None] / seconds['bfloat16']:8.2f} times fewer")
    found = angles(rows[None][keep], rows["bfloat16"][keep])
    low, half, high = np.percentile(found, [1, 50, 99])
    print(f"angles: 1st percentile {low:.2f}, median {half:.2f}, 99th percentile {high:.2f} degrees")
    rows = {kind: X[keep] for kind, X in rows.items()}
    cut = len(rows[None]) * 9 // 10
    for kind in KINDS:
        for seed in args.seeds:
            sae = atoms.SparseAutoencoder(
                args.d_sae, target_l0=args.target_l0, batch_size=2048, max_steps=args.max_steps, random_state=seed,
                verbose=False,
            ).fit(rows[kind][:cut])  # fmt: skip
            figures = ", ".join(f"{k or 'float32'} {sae.score(rows[k][cut:]):.4f}" for k in KINDS)
            print(f"trained on {kind or 'float32':10} seed {seed}: held-out R2 of {figures}", flush=True)


if __name__ == "__main__":
    main()
