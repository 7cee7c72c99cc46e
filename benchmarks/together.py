"""In one process with PyTorch and scikit-learn: threads, and what company costs.

For each order of loading, in a process of its own: the threads there are, and the wall and CPU seconds of
atoms' calls alone, of PyTorch's alone, and of the same calls in turn. `slower` is the wall time in turn over
the sum of the two alone; `CPUs` is CPU time over wall time, which more threads than CPUs cannot raise but
waiting in a busy loop can. Then four threads that all call atoms at once, against one that makes all calls.
"""

import argparse
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "base"))
import together


def measure(calls, rounds):
    """Wall and CPU seconds of the calls, in turn, and the most threads seen."""
    most, wall, cpu = 0, time.perf_counter(), time.process_time()
    for _ in range(rounds):
        for call in calls:
            call()
        most = max(most, together.threads())
    return time.perf_counter() - wall, time.process_time() - cpu, most


def one(order, rounds, blas):
    """Figures of one order of loading, in this process."""
    from concurrent.futures import ThreadPoolExecutor

    if blas:
        os.environ["ATOMS_BLAS"] = blas
    together.load(order)
    ours = together.Atoms(n=4000, d=256, s=1024)
    other = {"torch": lambda: together.torch_work(1024), "sklearn": lambda: together.sklearn_work(20_000)}
    calls = [other[name] for name in order if name in other]
    found = {"order": ", ".join(order)}
    for name, set_of_calls in (("atoms", [ours.work]), ("others", calls), ("turns", [ours.work, *calls])):
        measure(set_of_calls, 2)
        found[name] = measure(set_of_calls, rounds)
    begin = time.perf_counter()
    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(lambda _: ours.work(), range(4 * rounds)):
            pass
    found["four"] = time.perf_counter() - begin, found["atoms"][0] * 4
    print(json.dumps(found))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--blas", choices=["blis", "scipy"], help="default: what the build has")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return one(options.one, options.rounds, options.blas)
    names = [n for n in together.RUNTIMES if n == "atoms" or importlib.util.find_spec(n)]
    print(f"{len(os.sched_getaffinity(0))} CPUs, {options.rounds} rounds")
    print(
        "| loaded in this order | threads | atoms alone s (CPUs) | others alone s (CPUs) | in turn s (CPUs) | slower | 4 threads / 1 |"
    )
    print("|---|---|---|---|---|---|---|")
    for order in itertools.permutations(names):
        command = [sys.executable, __file__, "--rounds", str(options.rounds), "--one", *order]
        done = subprocess.run(command + (["--blas", options.blas] if options.blas else []), capture_output=True,
                              text=True, timeout=300, check=True)  # fmt: skip
        r = json.loads(done.stdout)
        cells = [f"{r[k][0]:.2f} ({r[k][1] / r[k][0]:.2f})" for k in ("atoms", "others", "turns")]
        slower = r["turns"][0] / (r["atoms"][0] + r["others"][0])
        print(
            f"| {r['order']} | {r['turns'][2]} | {' | '.join(cells)} | {slower:.2f} | {r['four'][0] / r['four'][1]:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
