"""How long until we explain as much as the best rival does at the end of its run?

The best rival of `quality.py`'s table, at its tuned settings: its held-out explained variance at equal L0 is
taken from results/quality.jsonl; its seconds are its samples over the samples a second of its own training
step, measured here on this machine, in float32 and, where that is the faster, under bfloat16 autocast.
Ours trains afresh with ever more samples, each run with its own warm-up and decay; the first that explains as
much on the same held-out rows at the same L0 counts, with the seconds of the whole of `fit`, which includes
the passes for the mean and the start.

    python benchmarks/time_to_value.py [--l0 48 16] [--d-sae 2304] [--lr 6e-3] [--batch-size 512]

Wants an idle machine; on a busy one, --processor-time compares the processor seconds of one thread, the
rival's as its run in results/quality.jsonl has them. Appends to benchmarks/results/time_to_value.jsonl.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import data
import numpy as np
import quality

RESULTS = Path(__file__).parent / "results" / "time_to_value.jsonl"
BUDGETS = [1000 * n for n in (25, 50, 75, 100, 150, 200, 225, 250, 275, 300, 400, 500)]


def best_rival(records: list[dict], d_sae: int, l0: float) -> dict:
    """Settings by the tuning half of the held-out rows, as in quality.py's table; EV from the other half."""
    rivals = [
        r for r in records if r["name"] != "atoms" and (r["d_sae"], r["l0"], r["seed"]) == (d_sae, l0, 0)
    ]
    if not rivals:
        raise SystemExit(f"no rival at d_sae {d_sae}, L0 {l0} in the results: run quality.py first")
    return max(rivals, key=lambda r: r["explained_variance_tune"])


def rival_seconds(record: dict, train: np.ndarray, threads: int, seconds: float) -> dict[str, float]:
    """Seconds of the rival's run by the median of its steps' times, for float32 and autocast."""
    import peers
    import torch

    torch.set_num_threads(threads)
    batch, out = record["batch_size"], {}
    steps = record["samples"] // batch
    for autocast in (False, True):
        options = {**record["options"], "autocast": autocast}
        peer = peers.make(record["name"], train.shape[1], record["d_sae"], record["l0"],
                          batch_size=batch, steps=steps, lr=record["lr"], seed=0, **options)  # fmt: skip
        peer.prepare(torch.from_numpy(train[:8192]))
        times, begun = [], time.perf_counter()
        for rows in data.batches(len(train), batch, steps, 0):
            start = time.perf_counter()
            peer.step(torch.from_numpy(train[rows]))
            times.append(time.perf_counter() - start)
            if len(times) > 5 and time.perf_counter() - begun > seconds:
                break
        out["autocast" if autocast else "float32"] = steps * statistics.median(times[3:])
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=data.default_folder())
    parser.add_argument("--d-sae", type=int, default=2304)
    parser.add_argument("--l0", type=int, nargs="+", default=[48, 16])
    parser.add_argument("--lr", type=float, default=6e-3)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="for timing each kind of the rival's steps"
    )
    parser.add_argument(
        "--processor-time", action="store_true", help="compare processor seconds of one thread"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    train, held = (np.array(part) for part in data.split(data.load(options.data)))
    for l0 in options.l0:
        rival = best_rival(quality.read(quality.RESULTS), options.d_sae, l0)
        goal = rival["explained_variance"]
        if options.processor_time:
            spent, clock = {"processor": rival["cpu_seconds"]}, "cpu_seconds"
        else:
            spent, clock = rival_seconds(rival, train, options.threads, options.seconds), "wall_seconds"
        print(
            f"L0 {l0}, d_sae {options.d_sae}: {rival['name']} (lr {rival['lr']:g}) ends at {goal:.4f} after "
            + ", ".join(f"{value:.0f} s ({kind})" for kind, value in spent.items())
            + "\n\n| ours: samples | seconds | held-out EV |\n|---|---|---|"
        )
        runs = []
        for samples in BUDGETS:
            task = {"name": "atoms", "d_sae": options.d_sae, "l0": l0, "lr": options.lr, "seed": 0,
                    "batch_size": options.batch_size, "samples": samples, "options": {}}  # fmt: skip
            result = quality.run_ours(task, train, held, 1 if options.processor_time else options.threads)
            runs.append({"samples": samples, "seconds": result[clock], "ev": result["explained_variance"]})
            print(f"| {samples:,} | {runs[-1]['seconds']:.2f} | {runs[-1]['ev']:.4f} |", flush=True)
        reached = [r["seconds"] for r in runs if r["ev"] >= goal]
        print(f"\n{min(spent.values()) / reached[0]:.0f} times faster\n" if reached else "\nnot reached\n")
        record = {"d_sae": options.d_sae, "l0": l0, "lr": options.lr, "batch_size": options.batch_size, "ours": runs,
                  "threads": options.threads, "goal": goal, "rival_seconds": spent,
                  "rival": {key: rival[key] for key in quality.IDENTITY}}  # fmt: skip
        options.results.parent.mkdir(parents=True, exist_ok=True)
        with open(options.results, "a") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
