"""How long until we explain as much as the best rival does at the end of its run?

The best rival of `quality.py`'s table, at its tuned settings: its held-out explained variance at equal L0 is
taken from results/quality.jsonl; its seconds are its steps times the median of its own training steps,
measured here on this machine, in float32 and, where that is the faster, under bfloat16 autocast. Ours trains
afresh with ever more samples, each run with its own warm-up and decay; the first that explains as much on the
same held-out rows at the same L0 counts, with the seconds of the whole of `fit`, which includes the passes for
the mean and the start. Both are then timed in turn, round after round; medians count.

    python benchmarks/time_to_value.py [--l0 48 16] [--d-sae 2304] [--lr 4e-3] [--batch-size 512] [--rounds 5]

Wants an idle machine; on a busy one, --processor-time compares the processor seconds of one thread, the
rival's as its run in results/quality.jsonl has them, in one round. Appends to benchmarks/results/time_to_value.jsonl.
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


class Rival:
    """Seconds of the rival's whole run, by the median of its steps' times."""

    def __init__(self, record: dict, train: np.ndarray, autocast: bool):
        import peers
        import torch

        batch = record["batch_size"]
        self.train, self.steps = train, record["samples"] // batch
        self.peer = peers.make(record["name"], train.shape[1], record["d_sae"], record["l0"], batch_size=batch,
                               steps=self.steps, lr=record["lr"], seed=0,
                               **{**record["options"], "autocast": autocast})  # fmt: skip
        self.peer.prepare(torch.from_numpy(train[:8192]))
        self.rows = data.batches(len(train), batch, 10**6, 0)

    def seconds(self, spend: float) -> float:
        import torch

        times, begun = [], time.perf_counter()
        while time.perf_counter() - begun < spend or len(times) < 5:
            batch = torch.from_numpy(self.train[next(self.rows)])
            start = time.perf_counter()
            self.peer.step(batch)
            times.append(time.perf_counter() - start)
        return self.steps * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=data.default_folder())
    parser.add_argument("--d-sae", type=int, default=2304)
    parser.add_argument("--l0", type=int, nargs="+", default=[48, 16])
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="of each kind of the rival's steps, each round"
    )
    parser.add_argument(
        "--processor-time", action="store_true", help="compare processor seconds of one thread"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    train, held = (np.array(part) for part in data.split(data.load(options.data)))
    if not options.processor_time:
        import torch

        torch.set_num_threads(options.threads)
    for l0 in options.l0:
        rival = best_rival(quality.read(quality.RESULTS), options.d_sae, l0)
        goal = rival["explained_variance"]
        print(f"L0 {l0}, d_sae {options.d_sae}: {rival['name']} (lr {rival['lr']:g}) ends at {goal:.4f}\n")

        def ours(samples: int) -> tuple[float, float]:
            task = {"name": "atoms", "d_sae": options.d_sae, "l0": l0, "lr": options.lr, "seed": 0,
                    "batch_size": options.batch_size, "samples": samples, "options": {}}  # fmt: skip
            result = quality.run_ours(task, train, held, 1 if options.processor_time else options.threads)
            seconds = result["cpu_seconds" if options.processor_time else "wall_seconds"]
            return seconds, result["explained_variance"]

        print("| ours: samples | held-out EV |\n|---|---|")
        curve = []
        for samples in BUDGETS:
            curve.append((samples, *ours(samples)))
            print(f"| {samples:,} | {curve[-1][2]:.4f} |", flush=True)
            if curve[-1][2] >= goal:
                break
        else:
            raise SystemExit("not reached")
        if options.processor_time:
            spent, mine = {"processor": [rival["cpu_seconds"]]}, [curve[-1][1]]
        else:
            kinds = {kind: Rival(rival, train, kind == "autocast") for kind in ("float32", "autocast")}
            spent, mine = {kind: [] for kind in kinds}, []
            for _ in range(options.rounds):
                mine.append(ours(samples)[0])
                for kind, timed in kinds.items():
                    spent[kind].append(timed.seconds(options.seconds))
        median = statistics.median(mine)
        print(f"\nours, {samples:,} samples: {median:.2f} s")
        for kind, values in spent.items():
            theirs = statistics.median(values)
            print(f"{rival['name']}, {kind}: {theirs:.0f} s, {theirs / median:.1f} times ours")
        print(flush=True)
        record = {"d_sae": options.d_sae, "l0": l0, "lr": options.lr, "batch_size": options.batch_size,
                  "ours": [{"samples": n, "ev": ev} for n, _, ev in curve], "seconds": mine,
                  "threads": options.threads, "goal": goal, "rival_seconds": spent,
                  "rival": {key: rival[key] for key in quality.IDENTITY}}  # fmt: skip
        options.results.parent.mkdir(parents=True, exist_ok=True)
        with open(options.results, "a") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
