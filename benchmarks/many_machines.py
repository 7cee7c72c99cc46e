"""What Dask costs: blocks of 100 MB through a cluster of one process of one thread, and through this process, in turns.

    python benchmarks/many_machines.py            about 4 minutes; writes benchmarks/results/many_machines.txt
    python benchmarks/many_machines.py --model    only what one autoencoder's training would gain from several machines

Both read the same files, and both work with one thread. The overhead is the ratio of the medians, less one.
"""

import argparse
import os
import pathlib
import statistics
import tempfile
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

import atoms

RESULTS = pathlib.Path(__file__).parent / "results" / "many_machines.txt"
D, MEGABYTES, BLOCKS, TURNS = 576, 100, 12, 5
# samples a second of a training step on 2 cores of Zen 4 (benchmarks/results/train_step.txt), at L0 48
RATES = {(576, 2304): 101_452, (2304, 36_864): 2_594}


def model():
    """Bytes of gradients a step sends over the network, against the step's own time: lines of a table."""
    yield "d_in   d_sae  batch     step  gradients  10 Gbit/s  100 Gbit/s   2 machines gain"
    for (d, n), rate in RATES.items():
        for batch in (512, 4096, 32_768):
            step, size = batch / rate, 4 * (2 * d * n + 2 * n + d)  # W_enc, W_dec, b_enc, threshold, b_dec
            # a ring of m machines sends and receives 2 (m - 1) / m times the gradients, which is 1 for two
            times = [8 * size / speed for speed in (10e9, 100e9)]
            gains = " ".join(f"{step / (step / 2 + t):8.2f}" for t in times)
            yield f"{d:4}  {n:6}  {batch:5}  {step:6.3f}s  {size / 1e6:6.0f} MB  {times[0]:8.3f}s  {times[1]:9.3f}s  {gains}"


def measured():
    import dask.array as da
    from dask import delayed
    from distributed import Client, LocalCluster

    rows = MEGABYTES * 10**6 // (4 * D)
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((D, D)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        paths = [pathlib.Path(folder) / f"{i}.npy" for i in range(BLOCKS)]
        for path in paths:
            np.save(path, rng.standard_normal((rows, D), dtype=np.float32) @ mixing)
        far = da.concatenate([da.from_delayed(delayed(np.load)(p), (rows, D), np.float32) for p in paths])
        sae = atoms.SparseAutoencoder(2304, target_l0=32, max_steps=20, verbose=False).fit(np.load(paths[0]))
        metric = atoms.AtomicInnerProduct().fit(np.load(paths[0]))
        count = delayed(lambda block: block.shape[0])

        def here(function):
            return [function(np.load(path)) for path in paths]

        def there(lazy):
            return [n for n in delayed(list)([count(part) for part in lazy.to_delayed().ravel()]).compute()]

        work = {
            "AtomicInnerProduct.fit": (
                lambda: atoms.AtomicInnerProduct().fit([np.load(p) for p in paths]),
                lambda: atoms.AtomicInnerProduct().fit(far),
            ),
            "whiten": (lambda: here(metric.whiten), lambda: there(metric.whiten(far))),
            "SparseAutoencoder.transform": (lambda: here(sae.transform), lambda: there(sae.transform(far))),
        }
        options = {
            "n_workers": 1,
            "threads_per_worker": 1,
            "processes": True,
            "dashboard_address": "127.0.0.1:0",
        }
        with LocalCluster(**options) as cluster, Client(cluster):
            yield f"{BLOCKS} blocks of {MEGABYTES} MB, {D} columns, one thread, {TURNS} turns; medians in seconds"
            for name, both in work.items():
                for run in both:
                    run()  # files in memory, the worker's imports
                times = [[], []]
                for _ in range(TURNS):
                    for run, found in zip(both, times, strict=True):
                        started = time.perf_counter()
                        run()
                        found.append(time.perf_counter() - started)
                a, b = map(statistics.median, times)
                least = min(times[1]) / min(times[0]) - 1
                yield f"{name:28} here {a:6.2f}  by Dask {b:6.2f}  overhead {b / a - 1:+6.1%} (of the fastest {least:+.1%})"


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--model", action="store_true")
    if arguments.parse_args().model:
        print("\n".join(model()))
        return
    atoms.set_num_threads(1)
    cpu = next((x.split(":")[1].strip() for x in open("/proc/cpuinfo") if x.startswith("model name")), "?")
    lines = [cpu]
    for part in (measured(), model()):
        for line in part:
            print(line, flush=True)
            lines.append(line)
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":  # workers import this file
    main()
