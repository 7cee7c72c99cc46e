"""How a training step's time grows with d_sae, d_in, L0, batch size and threads: our engine alone.

One variable moves at a time, around 576 to 9216, batch 4096, L0 32, two threads. The expected
slope in a plot with both axes logarithmic: 1 for d_in, d_sae and batch, -1 for threads, and for L0
from 0 (the encoder decides) to at most 1 (decoding and gradients do, 8 d_in L0 operations a sample).

    python benchmarks/scaling.py [--vary d_sae d_in l0 batch threads] [--seconds 1.5]
    python benchmarks/scaling.py --simulate [--workloads omp lasso ...] [--bandwidth GB/s]
    python benchmarks/scaling.py --check [--workloads ...]       the model against one and two threads, in turns

On a machine that is not idle, --processor-time measures processor seconds of one thread instead.
Writes benchmarks/results/scaling.json, in which what is varied now takes the place of what was measured
before, and, where matplotlib is installed, scaling.png beside it.

--simulate measures the tasks of each parallel region on one thread and works out what 1 to 128 threads would take
(simulate.py), into many_threads.json and .png.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import simulate
from train_step import planted

FOLDER = Path(__file__).parent / "results"
CENTRE = {"d_in": 576, "d_sae": 9216, "l0": 32, "batch": 4096, "threads": 2}
VALUES = {
    "d_sae": [2048, 4096, 8192, 16384, 32768, 65536, 131072],
    "d_in": [144, 288, 576, 1152, 2304, 4608],
    "l0": [4, 8, 16, 32, 64, 128, 256],
    "batch": [256, 512, 1024, 2048, 4096, 8192],
    "threads": [1, 2, 4, 8],
}
EXPECTED = {"d_sae": "1", "d_in": "1", "l0": "0 to 1", "batch": "1", "threads": "-1"}


class Enough(Exception):
    pass


def step_seconds(point: dict, X: np.ndarray, seconds: float, clock: Callable[[], float]) -> dict:
    """Fastest step within so many seconds (of three at least), after two that do not count.

    What else the machine does only ever adds to a step's time.
    """
    import atoms

    times, l0, last = [], [], [clock()]

    def callback(sae, stats):
        now = clock()
        times.append(now - last[0])
        l0.append(stats["l0"])
        if len(times) >= 5 and sum(times[2:]) > seconds:
            raise Enough
        last[0] = clock()

    sae = atoms.SparseAutoencoder(
        point["d_sae"], target_l0=point["l0"], batch_size=point["batch"], max_steps=10**6,
        num_threads=point["threads"], verbose=False,
    )  # fmt: skip
    try:
        sae.fit(X, callback=callback)
    except Enough:
        pass
    return {"seconds": min(times[2:]), "l0_measured": statistics.fmean(l0[2:])}


def plot(record: dict, path: Path) -> None:
    import matplotlib
    import matplotlib.ticker

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(record), figsize=(4 * len(record), 3.6), squeeze=False)
    for axis, (name, points) in zip(axes[0], record.items()):
        x = np.array([p[name] for p in points], float)
        y = np.array([1e3 * p["seconds"] for p in points])
        axis.loglog(x, y, "o-", color="#1f4e79", label="measured")
        slope = 1.0 if name == "l0" else float(EXPECTED[name])  # L0: anything from 0 to 1, so 1 is drawn
        label = f"slope {EXPECTED[name]}" if name != "l0" else "slope 1: the most expected"
        axis.loglog(x, y[-1] * (x / x[-1]) ** slope, "--", color="#999999", label=label)
        axis.set_xlabel(name)
        one = all(p["clock"] == "processor" for p in points)
        axis.set_ylabel("milliseconds a step" + (", one thread" if one else ""))
        axis.legend(frameon=False)
        axis.set_xticks(x, [f"{value:g}" for value in x], rotation=45)
        axis.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        for side in (axis.xaxis, axis.yaxis):
            side.set_minor_formatter(matplotlib.ticker.NullFormatter())
        axis.grid(True, which="major", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


# --------------------------------------------------------- more threads than there are here

THREADS = [1, 2, 4, 8, 16, 32, 64, 128]


def simulated(name: str, runs: int, meeting: float, bandwidth: float) -> dict:
    """Seconds of a run with so many threads; what remains serial; each region's share of the threads' time at 64."""
    bytes_of = simulate.traffic(simulate.SHAPES[name]) if name in simulate.SHAPES else {}
    record: dict = {
        "workload": name,
        "threads": THREADS,
        "seconds": [],
        "from_memory": [],
        "as_recorded": [],
        "busy": [],
        "regions": {},
    }
    for threads in THREADS:
        worker = simulate.Worker(name, threads, True)
        every = worker.runs(runs)
        recorded = simulate.typical(every)
        worker.close()
        cost = meeting * threads / 2 if threads > 1 else 0.0
        least = {region: size / bandwidth for region, size in bytes_of.items()}
        record["seconds"].append(simulate.makespan(recorded, threads, cost))
        record["busy"].append(simulate.busy(recorded, threads, record["seconds"][-1]))
        record["from_memory"].append(simulate.makespan(recorded, threads, cost, least))
        record["as_recorded"].append(
            statistics.median(simulate.makespan(run, threads, cost) for run in every)
        )
        record["regions"][threads] = {"serial": recorded.serial, **simulate.region_spans(recorded, threads)}
    return record


def efficiency(record: dict, of: str) -> list[float]:
    return [record[of][0] / t / n for n, t in zip(record["threads"], record[of])]


def draw_simulated(record: dict[str, dict[str, dict]], path: Path) -> None:
    """A panel for each workload; lines: what was recorded under each label, dotted where memory's rate is the limit, too."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(5, len(record))
    rows = -(-len(record) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.3 * columns, 3 * rows), squeeze=False, sharey=True)
    for axis in axes.flat[len(record) :]:
        axis.set_visible(False)
    for axis, (name, lines) in zip(axes.flat, record.items()):
        for label, colour in zip(lines, ("#bbbbbb", "#1f4e79", "#a33b20")[len(lines) == 1 :]):
            part = lines[label]
            axis.semilogx(part["threads"], [100 * e for e in efficiency(part, "seconds")], "o-", color=colour, label=label, base=2)  # fmt: skip
            if part["from_memory"] != part["seconds"]:
                axis.semilogx(part["threads"], [100 * e for e in efficiency(part, "from_memory")], ":", color=colour, base=2, label="with memory's rate")  # fmt: skip
        axis.set_title(name, fontsize=9)
        axis.set_xticks(THREADS, [str(n) for n in THREADS])
        axis.set_ylim(0, 105)
        axis.grid(True, alpha=0.3)
    axes[0, 0].legend(frameon=False, fontsize=8, loc="lower left")
    for axis in axes[:, 0]:
        axis.set_ylabel("% of threads used well")
    for axis in axes[-1]:
        axis.set_xlabel("threads")
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def check_all(options: argparse.Namespace) -> None:
    print(
        "| workload | ms, one thread | the model | off by | two threads | the model | off by |\n|---|---|---|---|---|---|---|"
    )
    for name in options.workloads:
        cells = [
            f"{1e3 * r['measured']:.2f} | {1e3 * r['model']:.2f} | {100 * (r['model'] / r['measured'] - 1):+.1f}%"
            for r in simulate.compare(name, 5, options.runs)
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def simulate_all(options: argparse.Namespace) -> None:
    meeting = simulate.meeting_of_two()
    print(f"two threads start and end in {1e6 * meeting:.2f} us; n are taken to need n / 2 times that")
    results = options.results.with_name("many_threads.json")
    record = json.loads(results.read_text()) if results.exists() else {}
    print(
        "| workload | ms, one thread | "
        + " | ".join(map(str, THREADS[1:]))
        + " |\n|---"
        + "|---" * len(THREADS)
        + "|"
    )
    for name in options.workloads:
        part = simulated(name, options.runs, meeting, 1e9 * options.bandwidth)
        record.setdefault(name, {})[options.label] = part
        shares = " | ".join(f"{100 * e:.0f}%" for e in efficiency(part, "seconds")[1:])
        print(f"| {name} | {1e3 * part['seconds'][0]:.1f} | {shares} |", flush=True)
        shares = " | ".join(f"{100 * b:.0f}%" for b in part["busy"][1:])
        print(f"| the same by each run's own work | | {shares} |", flush=True)
        record = {key: record[key] for key in simulate.WORKLOADS if key in record}
        results.write_text(json.dumps(record, indent=1) + "\n")
    try:
        draw_simulated(record, results.with_suffix(".png"))
    except ImportError:
        print("matplotlib is not installed: no plot")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vary", nargs="+", default=list(VALUES), choices=list(VALUES))
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--processor-time", action="store_true", help="processor seconds of one thread")
    parser.add_argument("--results", type=Path, default=FOLDER / "scaling.json")
    parser.add_argument("--simulate", action="store_true", help="1 to 128 threads, from tasks timed on one")
    parser.add_argument("--check", action="store_true", help="the model against what two threads take here")
    parser.add_argument(
        "--workloads", nargs="+", default=list(simulate.WORKLOADS), choices=list(simulate.WORKLOADS)
    )
    parser.add_argument(
        "--runs", type=int, default=11, help="steps or calls recorded for each number of threads"
    )
    parser.add_argument("--bandwidth", type=float, default=300.0, help="GB/s at most from memory")
    parser.add_argument("--label", default="now", help="what these lines are called in the picture")
    options = parser.parse_args()
    if options.check:
        return check_all(options)
    if options.simulate:
        return simulate_all(options)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    clock = time.process_time if options.processor_time else time.perf_counter
    centre = {**CENTRE, "threads": 1} if options.processor_time else CENTRE
    record: dict[str, list[dict]] = (
        json.loads(options.results.read_text()) if options.results.exists() else {}
    )
    print("| vary | value | ms a step | samples/s | L0 | local slope (expected) |\n|---|---|---|---|---|---|")
    for name in options.vary:
        record[name], before = [], None
        for value in VALUES[name]:
            point = {**centre, name: value}
            if point["threads"] > (1 if options.processor_time else cpus):
                continue
            point |= step_seconds(point, planted(2 * point["batch"], point["d_in"]), options.seconds, clock)
            point["clock"] = "processor" if options.processor_time else "wall"
            record[name].append(point)
            slope = ""
            if before:
                slope = f"{np.log(point['seconds'] / before['seconds']) / np.log(value / before[name]):.2f} ({EXPECTED[name]})"
            before = point
            print(
                f"| {name} | {value} | {1e3 * point['seconds']:.1f} | {point['batch'] / point['seconds']:,.0f} "
                f"| {point['l0_measured']:.1f} | {slope} |",
                flush=True,
            )
        record = {key: record[key] for key in VALUES if key in record}
        options.results.parent.mkdir(parents=True, exist_ok=True)
        options.results.write_text(json.dumps(record, indent=1) + "\n")
    try:
        plot(record, options.results.with_suffix(".png"))
    except ImportError:
        print("matplotlib is not installed: no plot")


if __name__ == "__main__":
    main()
