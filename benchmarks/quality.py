"""Who explains more of the held-out variance, at equal L0 and equal samples seen?

Everybody trains on the same rows of SmolLM2-135M's layer 15 in the same seeded order, for
500,000 samples (several passes), and is judged on the last twentieth of the text: explained
variance, centred, 1 - sum|x - x_hat|^2 / sum|x - mean|^2. The twentieth before it, held out
too, chooses the learning rate of each competitor, on the first seed (by the variance in the metric for those that
train whitened). After training the thresholds of
every competitor that has any (ours included) are multiplied by one common factor, chosen
on held-out rows, at which L0 is what was asked for; TopK keeps exactly k. The table says
what L0 was before and after.

    python benchmarks/quality.py run --data FOLDER [--names ...] [--d-sae 2304] [--l0 48 16]
                                     [--lr 1e-3 ...] [--seeds 0 1 2]
    python benchmarks/quality.py table

A run's result is one line of JSON, appended when it ends; runs already in the file are
skipped, so the command can be stopped and given again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import data
import numpy as np

RESULTS = Path(__file__).parent / "results" / "quality.jsonl"
SAMPLES = 500_000
DEAD_ROWS = 100_000  # a latent is dead when none of so many training rows activates it
IDENTITY = ("name", "d_sae", "l0", "lr", "seed", "batch_size", "samples", "options")


def read(path: Path) -> list[dict]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def identity(record: dict, names: tuple[str, ...] = IDENTITY) -> str:
    return json.dumps({key: record.get(key) for key in names}, sort_keys=True)


def calibrate(l0_at, target: float) -> float:
    """The factor on all thresholds at which l0_at(factor) meets the target, by bisection."""
    low, high = 1e-3, 1e3
    for _ in range(40):
        middle = (low * high) ** 0.5
        if l0_at(middle) > target:
            low = middle
        else:
            high = middle
    return (low * high) ** 0.5


def judge(active, decode, threshold_for, train: np.ndarray, held: np.ndarray, block: int = 4096) -> dict:
    """Explained variance, raw and under the atomic inner product, and L0 on both halves of `held`; the share of dead latents.

    `active` gives dense codes from rows and thresholds. The first half is for tuning, the second for the figures."""
    import atoms

    metric = atoms.AtomicInnerProduct().fit(train)
    parts = []
    for rows, name in zip(np.array_split(held, 2), ("_tune", "")):
        threshold = threshold_for(rows)
        mean = rows.mean(axis=0, dtype=np.float64)
        error = total = nonzero = error_metric = total_metric = 0.0
        for i in range(0, len(rows), block):
            x = np.asarray(rows[i : i + block])
            codes = active(x, threshold)
            wrong = x - decode(codes)
            error += float(np.square(wrong, dtype=np.float64).sum())
            total += float(np.square(x - mean).sum())
            error_metric += float(np.square(metric.whiten_directions(wrong), dtype=np.float64).sum())
            total_metric += float(np.square(metric.whiten_directions((x - mean).astype(np.float32))).sum())
            nonzero += np.count_nonzero(codes)
        parts.append(
            {
                f"explained_variance{name}": 1 - error / total,
                f"explained_variance_metric{name}": 1 - error_metric / total_metric,
                f"l0_held_out{name}": nonzero / len(rows),
            }
        )
    fired = False
    rows = train[:: max(1, len(train) // DEAD_ROWS)]
    for i in range(0, len(rows), block):
        fired = fired | (active(np.asarray(rows[i : i + block]), threshold) != 0).any(axis=0)
    return {"dead": float(1 - fired.mean()), **{key: value for part in parts for key, value in part.items()}}


def run_peer(task: dict, train: np.ndarray, held: np.ndarray, threads: int) -> dict:
    import peers
    import torch

    torch.set_num_threads(threads)
    batch, steps = task["batch_size"], task["samples"] // task["batch_size"]
    peer = peers.make(
        task["name"], train.shape[1], task["d_sae"], task["l0"],
        batch_size=batch, steps=steps, lr=task["lr"], seed=task["seed"], **task["options"],
    )  # fmt: skip
    some = train if peer.whitened else train[np.random.default_rng(1).choice(len(train), 8192, replace=False)]
    peer.prepare(torch.from_numpy(some))
    wall, cpu = time.perf_counter(), time.process_time()
    for rows in data.batches(len(train), batch, steps, task["seed"]):
        peer.step(torch.from_numpy(train[rows]))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    with torch.no_grad():
        l0_trained = float(torch.count_nonzero(peer.active(torch.from_numpy(held)))) / len(held)

    @torch.no_grad()
    def threshold_for(rows):
        if peer.exact_k:
            return None
        pre = peer.preactivations(torch.from_numpy(rows))
        base = peer.threshold.clamp_min(1e-6)
        return base * calibrate(lambda f: float((pre > base * f).sum()) / len(pre), task["l0"])

    active = lambda x, threshold: peer.active(torch.from_numpy(x), threshold).numpy()
    decode = lambda codes: peer.decode(torch.from_numpy(codes)).numpy()
    return {
        "l0_trained": l0_trained,
        **judge(active, decode, threshold_for, train, held),
        "wall_seconds": wall,
        "cpu_seconds": cpu,
    }


def run_ours(task: dict, train: np.ndarray, held: np.ndarray, threads: int) -> dict:
    """Ours, through the public API; task["options"] are SparseAutoencoder's own arguments."""
    import atoms

    batch, steps = task["batch_size"], task["samples"] // task["batch_size"]
    options = dict(task["options"])
    metric = None
    if task["name"] == "atoms-metric":
        metric = atoms.AtomicInnerProduct(num_threads=threads).fit(train)
    sae = atoms.SparseAutoencoder(
        task["d_sae"], metric=metric, target_l0=task["l0"], batch_size=batch, max_steps=steps,
        learning_rate=task["lr"], random_state=task["seed"], num_threads=threads, verbose=False, **options,
    )  # fmt: skip
    wall, cpu = time.perf_counter(), time.process_time()
    sae.fit(train)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    preactivations = lambda x: x @ sae.W_enc + sae.b_enc

    def threshold_for(rows):
        pre = preactivations(rows)
        base = np.maximum(sae.threshold, 1e-6 * np.abs(sae.threshold).max())
        return base * np.float32(calibrate(lambda f: np.count_nonzero(pre > base * f) / len(pre), task["l0"]))

    def active(x, threshold):
        pre = preactivations(x)
        return pre * (pre > threshold)

    return {
        "l0_trained": np.count_nonzero(preactivations(held) > sae.threshold) / len(held),
        **judge(active, lambda codes: codes @ sae.W_dec + sae.b_dec, threshold_for, train, held),
        "wall_seconds": wall,
        "cpu_seconds": cpu,
    }


def run(options) -> None:
    X = data.load(options.data, text=options.text.read_text() if options.text else None)
    train, held = data.split(X)
    train, held = np.array(train), np.array(held)
    done = {identity(record) for record in read(options.results)}
    for seed in options.seeds:
        for name in options.names:
            for l0 in options.l0:
                for lr in options.lr:
                    task = {
                        "name": name, "d_sae": options.d_sae, "l0": l0, "lr": lr, "seed": seed,
                        "batch_size": options.batch_size, "samples": options.samples,
                        "options": options.option,
                    }  # fmt: skip
                    if identity(task) in done:
                        continue
                    function = run_ours if name in ("atoms", "atoms-metric") else run_peer
                    result = function(task, train, held, options.threads)
                    record = {**task, **result, "threads": options.threads}
                    options.results.parent.mkdir(parents=True, exist_ok=True)
                    with open(options.results, "a") as file:
                        file.write(json.dumps(record) + "\n")
                        file.flush()
                        os.fsync(file.fileno())
                    print(json.dumps(record), flush=True)


def table(options) -> None:
    """For every competitor, width and L0: the learning rate that is best on the first seed, over all seeds."""
    groups: dict[tuple, list[dict]] = {}
    for record in read(options.results):
        if record["samples"] == options.samples:
            groups.setdefault((record["d_sae"], record["l0"], record["name"]), []).append(record)
    print(
        "| d_sae | L0 | name | settings | seeds | held-out EV | sd | in the metric | L0 | L0 as trained | dead | CPU s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    rows = []
    for (d_sae, l0, name), records in groups.items():
        first = [r for r in records if r["seed"] == 0] or records
        measure = "explained_variance" + ("_metric" if name.endswith(("-metric", "-whitened")) else "")
        best = max(first, key=lambda r: r[measure + "_tune"])
        plain = lambda r: {k: v for k, v in r["options"].items() if k != "autocast"}
        same = lambda r: (r["lr"], r["batch_size"], plain(r)) == (best["lr"], best["batch_size"], plain(best))
        runs = [r for r in records if same(r)]
        runs = [r for r in runs if not r["options"].get("autocast")] or runs
        best = runs[0]
        mean = lambda key: statistics.fmean(r[key] for r in runs)
        ev = [r["explained_variance"] for r in runs]
        known = all("explained_variance_metric" in r for r in runs)
        in_metric = f"{mean('explained_variance_metric'):.4f}" if known else ""
        settings = f"lr {best['lr']:g}, batch {best['batch_size']}"
        settings += "".join(f", {k} {v}" for k, v in best["options"].items())
        rows.append((d_sae, l0, -mean("explained_variance"), f"| {d_sae} | {l0} | {name} | {settings} | {len(runs)} "
            f"| {mean('explained_variance'):.4f} | {statistics.stdev(ev) if len(ev) > 1 else 0:.4f} "
            f"| {in_metric} | {mean('l0_held_out'):.2f} | {mean('l0_trained'):.1f} | {100 * mean('dead'):.1f}% "
            f"| {mean('cpu_seconds'):.0f} |"))  # fmt: skip
    for *_, row in sorted(rows):
        print(row)


def value(text: str):
    name, _, literal = text.partition("=")
    try:
        return name, json.loads(literal)
    except json.JSONDecodeError:
        return name, literal


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument(
        "--data", type=Path, default=data.default_folder(), help="folder of captured activations"
    )
    parser.add_argument("--text", type=Path, help="text to capture when the folder has none")
    parser.add_argument("--names", nargs="+", default=["saelens-jumprelu", "saelens-topk", "saelens-batchtopk",
                        "dl-jumprelu", "dl-batchtopk", "atoms"])  # fmt: skip
    parser.add_argument("--d-sae", type=int, default=2304)
    parser.add_argument("--l0", type=int, nargs="+", default=[48, 16])
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--option", type=value, nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.option = dict(options.option)
    {"run": run, "table": table}[options.command](options)


if __name__ == "__main__":
    main()
