"""Training steps and encoding, samples per second: ours and the competitors', side by side.

Each competitor runs in a process of its own, all of them with the same threads, data and L0,
and only one works at a time: round after round, A B C A B C, a few seconds each; the figures
are medians over the rounds. Peak memory is what the process grew by, at most, since its
libraries and the data were loaded. JumpReLU thresholds are set so that L0 is what the
table says, and set again (outside the timed part) should it drift by more than 2%.

    python benchmarks/train_step.py                      all shapes, L0 16 and 48
    python benchmarks/train_step.py --shapes 576x2304 --l0 48 --names atoms torch-f32 --seconds 1
    python benchmarks/train_step.py --isa avx2 avx2_vnni --names atoms torch-f32     as on CPUs without more

With --isa everybody is held to an instruction set: ours by ATOMS_ISA, PyTorch by its own setting and those of oneDNN and MKL.
Rates are by the clock, or with --cpu by the CPU's seconds, on a machine with other work.
The limit is the encoder's product, 2 d_in d_sae operations a sample, at this machine's peak of float32, bfloat16 and
8-bit integers (benchmarks/machine.py). Ours finds the active latents by 8-bit products and computes only those, so it
can pass the first two; what the libraries' own products reach is printed beside them.
Results also go to benchmarks/results/train_step.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import machine
import numpy as np

RESULTS = Path(__file__).parent / "results" / "train_step.json"
SHAPES = {"576x2304": 4096, "576x9216": 4096, "2304x9216": 2048, "2304x36864": 1024}
OURS = {  # name: environment
    "atoms": {},
    "atoms-blis": {"ATOMS_ISA": "avx512"},  # no low-precision products: BLIS finds the active latents
    "atoms-portable": {"ATOMS_ISA": "portable"},  # nor vector code of our own
}
# what holds PyTorch to each level: ATen's own loops, oneDNN's and MKL's products
TORCH = {
    "avx2": ("avx2", "AVX2", "AVX2"),
    "avx2_vnni": ("avx2", "AVX2_VNNI", "AVX2"),
    "avx512": ("avx512", "AVX512_CORE", "AVX512"),
    "avx512_vnni": ("avx512", "AVX512_CORE_VNNI", "AVX512"),
}
NAMES = [
    "atoms", "atoms-blis", "atoms-portable", "saelens-jumprelu", "saelens-jumprelu-bf16", "saelens-topk", "saelens-batchtopk",
    "dl-jumprelu", "dl-batchtopk", "torch-f32", "torch-bf16", "torch-compile", "torch-compile-bf16",
]  # fmt: skip


def planted(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Rows that are sparse sums of 4 d random directions, with Zipfian use, a mean and 10% noise."""
    rng = np.random.default_rng(seed)
    atoms = 4 * d
    D = rng.standard_normal((atoms, d), dtype=np.float32) / np.float32(d**0.5)
    use = 1 / np.arange(1, atoms + 1) ** 0.6
    index = rng.choice(atoms, size=(n, 32), p=use / use.sum())
    size = rng.exponential(1.0, size=(n, 32)).astype(np.float32)
    X = np.empty((n, d), np.float32)
    for i in range(0, n, 256):
        X[i : i + 256] = np.einsum("nk,nkd->nd", size[i : i + 256], D[index[i : i + 256]])
    X += rng.standard_normal(d, dtype=np.float32) * 0.1
    return X + rng.standard_normal((n, d), dtype=np.float32) * np.float32(0.1 * X.std())


# ------------------------------------------------------------ in the workers


def status(field: str) -> float:
    """Megabytes, from /proc: VmRSS now, VmHWM at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise KeyError(field)


def reset_peak() -> float:
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def repeat(work, seconds: float, samples: int, clock) -> dict:
    """Call work() for so long; samples for each second."""
    done, start = 0, clock()
    while (spent := clock() - start) < seconds or done == 0:
        work()
        done += samples
    return {"rate": done / spent}


def clock_of(task: dict):
    """Seconds: by the clock, or of CPU over the threads that work."""
    return (lambda: time.process_time() / task["threads"]) if task["cpu"] else time.perf_counter


def hold(isa: str | None) -> None:
    """Before PyTorch is imported: nobody goes beyond this instruction set."""
    if isa:
        aten, onednn, mkl = TORCH[isa]
        os.environ.update(
            ATOMS_ISA=isa, ATEN_CPU_CAPABILITY=aten, ONEDNN_MAX_CPU_ISA=onednn, MKL_ENABLE_INSTRUCTIONS=mkl
        )


def work_peer(pipe, task: dict) -> None:
    import peers
    import torch

    torch.set_num_threads(task["threads"])
    torch._dynamo.config.cache_size_limit = 64 if "compile" in task["name"] else 8
    X = torch.from_numpy(np.load(task["data"]))
    batch = task["batch"]
    # an untimed touch of the kind of work to come, so that thread pools and workspaces are not counted
    peers.make(task["name"], 8, 16, 2, batch_size=32, steps=10, lr=1e-5)
    base = reset_peak()
    peer = peers.make(
        task["name"], task["d_in"], task["d_sae"], task["l0"], batch_size=batch, steps=10**6, lr=1e-6
    )
    peer.prepare(X[:batch])
    rows = itertools.cycle(X.split(batch))
    clock = clock_of(task)
    for _ in range(2):
        peer.step(next(rows))
    pipe.send({"ready": True})
    while (command := pipe.recv()) is not None:
        what, seconds = command
        l0 = peer.l0_now(X[:batch])
        if abs(l0 / task["l0"] - 1) > 0.02 and hasattr(peer, "hold_l0"):
            peer.hold_l0(X[:batch])
            l0 = peer.l0_now(X[:batch])
        if what == "train":
            reset_peak()
            result = repeat(lambda: peer.step(next(rows)), seconds, batch, clock)
            result["peak_mb"] = status("VmHWM") - base
        else:
            result = repeat(lambda: peer.encode(next(rows)), seconds, batch, clock)
        pipe.send({**result, "l0": l0})


class Stop(Exception):
    pass


def work_ours(pipe, task: dict) -> None:
    """fit() runs all the time; its callback, called after each step, keeps the clock and takes the orders."""
    os.environ.update(OURS[task["name"]])
    import atoms

    X = np.load(task["data"])
    atoms.SparseAutoencoder(16, target_l0=2, max_steps=2, batch_size=32, verbose=False).fit(X[:64])
    base = reset_peak()
    clock = clock_of(task)
    state = {"start": None, "samples": 0, "l0": [], "split": {}}

    def wait(sae):
        while (command := pipe.recv()) is not None:
            what, seconds = command
            if what == "train":
                reset_peak()
                state.update(start=clock(), seconds=seconds, samples=0, l0=[], split={})
                return
            block = X[: task["batch"]]
            pipe.send({**repeat(lambda: sae.transform(block), seconds, len(block), clock), "l0": task["l0"]})
        raise Stop

    def callback(sae, stats):
        if state["start"] is None:
            state["samples"] += 1
            if state["samples"] == 3:
                pipe.send({"ready": True})
                wait(sae)
            return
        spent = clock() - state["start"]
        state["samples"] += task["batch"]
        state["l0"].append(stats["l0"])
        for name, value in () if task["cpu"] else stats["seconds"].items():  # which are by the clock
            state["split"][name] = state["split"].get(name, 0.0) + value
        if spent >= state["seconds"]:
            pipe.send({
                "rate": state["samples"] / spent, "l0": statistics.fmean(state["l0"]), "split": state["split"],
                "seconds": spent, "peak_mb": status("VmHWM") - base,
            })  # fmt: skip
            wait(sae)

    sae = atoms.SparseAutoencoder(
        task["d_sae"], target_l0=task["l0"], batch_size=task["batch"], max_steps=10**6,
        num_threads=task["threads"], verbose=False, **task["ours"],
    )  # fmt: skip
    try:
        sae.fit(X, callback=callback)
    except Stop:
        pass


def worker(pipe, task: dict) -> None:
    hold(task["isa"])
    try:
        (work_ours if task["name"] in OURS else work_peer)(pipe, task)
    except Exception as error:  # the parent reports it and goes on with the others
        pipe.send({"error": f"{type(error).__name__}: {error}"})


def products(pipe, threads: int) -> None:
    """Operations a second of the libraries' matrix products, by kind."""
    import torch

    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((1536, 1536), np.float32), rng.standard_normal((1536, 1536), np.float32)
    a, b = torch.from_numpy(A), torch.from_numpy(B)
    kinds = {
        "float32 (NumPy)": lambda: A @ B,
        "float32 (PyTorch)": lambda: a @ b,
        "bfloat16 (PyTorch)": lambda a=a.bfloat16(), b=b.bfloat16(): a @ b,
    }
    result = {}
    for name, product in kinds.items():
        product()
        best = min(_timed(product) for _ in range(12))
        result[name] = 2 * 1536**3 / best
    pipe.send(result)


def _timed(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


# ------------------------------------------------------------- in the parent


def launch(context, target, *args):
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *args), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def receive(pipe) -> dict:
    try:
        return pipe.recv()
    except EOFError:
        return {"error": "the process died (out of memory?)"}


def available_memory() -> float:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024.0
    return float("inf")


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def measure(context, tasks: list[dict], rounds: int, seconds: float) -> dict[str, dict]:
    """Interleaved rounds over all tasks; workers stay alive between rounds where memory allows."""
    footprint = sum(40.0 * t["d_in"] * t["d_sae"] + 32.0 * t["batch"] * t["d_sae"] for t in tasks)
    stay = footprint < 0.6 * available_memory()
    runs: dict[str, list[dict]] = {task["name"]: [] for task in tasks}
    errors: dict[str, str] = {}
    alive: dict[str, tuple] = {}

    def start(task):
        print(f"{task['name']}: starting", file=sys.stderr, flush=True)
        process, pipe = launch(context, worker, task)
        first = receive(pipe)
        if "error" in first:
            errors[task["name"]] = first["error"]
            return None
        return process, pipe

    def end(handle):
        process, pipe = handle
        try:
            pipe.send(None)
        except (BrokenPipeError, OSError):
            pass
        process.join(10)
        if process.is_alive():
            process.terminate()

    if stay:
        for task in tasks:
            if handle := start(task):
                alive[task["name"]] = handle
    for _ in range(rounds):
        for task in tasks:
            name = task["name"]
            if name in errors:
                continue
            handle = alive.get(name) or start(task)
            if handle is None:
                continue
            run = {}
            for what in ("train", "encode"):
                handle[1].send((what, seconds if what == "train" else seconds / 2))
                run[what] = receive(handle[1])
                if "error" in run[what]:
                    errors[name] = run[what]["error"]
                    break
            else:
                runs[name].append(run)
                print(f"{name}: {run['train']['rate']:,.0f} samples/s", file=sys.stderr, flush=True)
            if not stay:
                end(handle)
    for handle in alive.values():
        end(handle)

    results = {}
    for name, rows in runs.items():
        if name in errors or not rows:
            results[name] = {"error": errors.get(name, "no result")}
            continue
        median = lambda what, key: statistics.median(row[what][key] for row in rows)
        results[name] = {
            "train": median("train", "rate"),
            "train_all": [row["train"]["rate"] for row in rows],
            "encode": median("encode", "rate"),
            "l0": median("train", "l0"),
            "peak_mb": max(row["train"]["peak_mb"] for row in rows),
        }
        if split := rows[-1]["train"].get("split"):
            spent = rows[-1]["train"]["seconds"]
            results[name]["split"] = {key: value / spent for key, value in split.items()}
    return results


def markdown(shape: str, batch: int, l0: int, isa: str | None, results: dict, peak: dict) -> str:
    d_in, d_sae = map(int, shape.split("x"))
    share = lambda work, kind: f"{work / peak[kind]:.0%}" if kind in peak else ""
    ours = results.get("atoms", {}).get("train")
    ours_encode = results.get("atoms", {}).get("encode")
    ratio = lambda mine, theirs: f"{mine / theirs:.1f}x" if mine else ""
    lines = [
        f"### {d_in} to {d_sae}, batch {batch}, L0 {l0}" + (f", {isa}" if isa else ""),
        "",
        "| | steps: samples/s | ours is | of the f32 limit | of the bf16 limit | of the int8 limit | peak MB | L0 | encode: samples/s | ours is |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, r in results.items():
        if "error" in r:
            lines.append(f"| {name} | {r['error'].splitlines()[0][:100]} | | | | | | | | |")
            continue
        work = 2 * d_in * d_sae * r["train"]
        lines.append(
            f"| {name} | {r['train']:,.0f} | {ratio(ours, r['train'])} | {share(work, 'float32')} | {share(work, 'bfloat16')} | {share(work, 'int8')} "
            f"| {r['peak_mb']:,.0f} | {r['l0']:.1f} | {r['encode']:,.0f} "
            f"| {ratio(ours_encode, r['encode'])} |"
        )
    for name, r in results.items():
        if "split" in r:
            parts = ", ".join(f"{key} {value:.0%}" for key, value in r["split"].items())
            lines += ["", f"{name}, the core's timers as shares of the time: {parts}"]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), help="d_in x d_sae, e.g. 576x2304")
    parser.add_argument("--l0", type=int, nargs="+", default=[16, 48])
    parser.add_argument("--names", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--isa", nargs="+", default=[None], choices=list(TORCH), help="levels to hold all to")
    parser.add_argument("--cpu", action="store_true", help="rates by CPU seconds, not by the clock")
    parser.add_argument("--batch", type=int, help="override the shape's batch size")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of training in each round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--data", type=Path, help="activations for shapes of that width (.npy); planted data else"
    )
    parser.add_argument(
        "--ours", type=json.loads, default={}, help="JSON: further arguments of SparseAutoencoder"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()

    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ATOMS_NUM_THREADS"):
        os.environ[variable] = str(options.threads)  # inherited by the workers
    context = multiprocessing.get_context("spawn")
    process, pipe = launch(context, products, options.threads)
    blas = receive(pipe)
    process.join()
    peak = {} if options.cpu else machine.peaks(options.threads)  # by the clock, too
    said = "rates by CPU seconds" if options.cpu else machine.said(options.threads)
    print(f"{options.threads} threads; {said}")
    print(
        "products of 1536 x 1536:",
        ", ".join(f"{key} {value / 1e9:.0f} G/s" for key, value in blas.items()),
        "\n",
    )
    runs = {}  # an earlier run of other shapes or names in the same file is kept
    if options.results.exists():
        runs = {
            (r["shape"], r["batch"], r["l0"], r.get("isa")): r
            for r in json.loads(options.results.read_text())["runs"]
        }
    with tempfile.TemporaryDirectory() as folder:
        for shape in options.shapes:
            d_in, d_sae = map(int, shape.split("x"))
            batch = options.batch or SHAPES.get(shape, 2048)
            X = None
            if options.data:
                captured = np.load(options.data, mmap_mode="r")
                X = np.array(captured[: 8 * batch]) if captured.shape[1] == d_in else None
            path = Path(folder) / "X.npy"
            np.save(path, planted(8 * batch, d_in) if X is None else X)
            for l0, isa in itertools.product(options.l0, options.isa):
                tasks = [
                    {"name": name, "d_in": d_in, "d_sae": d_sae, "l0": l0, "batch": batch, "threads": options.threads,
                     "data": str(path), "ours": options.ours, "isa": isa, "cpu": options.cpu}
                    for name in options.names
                ]  # fmt: skip
                results = measure(context, tasks, options.rounds, options.seconds)
                key = shape, batch, l0, isa
                merged = {**runs.get(key, {}).get("results", {}), **results}
                kind = "planted" if X is None else "captured"
                runs[key] = {"shape": shape, "batch": batch, "l0": l0, "data": kind, "results": merged}
                if isa:
                    runs[key]["isa"] = isa
                print(markdown(shape, batch, l0, isa, results, peak), flush=True)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "machine": cpu_model(),
        "threads": options.threads,
        "seconds": "of CPU" if options.cpu else "by the clock",
        "peaks": peak,
        "products": blas,
        "runs": list(runs.values()),
    }
    options.results.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
