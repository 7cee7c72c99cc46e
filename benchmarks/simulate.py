"""What more threads would give, from the times of tasks on one: `python benchmarks/scaling.py --simulate`.

A worker runs under recorder.c, which stands in for OpenMP's runtime: the shipped library cuts its work as for so many
threads, one thread does it all, and each task's processor time is known, as is the time between parallel regions, Python's
included. From these follows how long the threads would take together:

    sum over regions (the list schedule of its tasks + what starting and joining the threads costs) + all time between

where the tasks of a dynamic loop go, in order, to whoever is free first, and those of a static one to whom they belong. No
region is faster than its arrays can come from memory, at a rate that is a parameter. What the model leaves out: caches
that are shared, the clock that falls when many cores work, distance between sockets.

This file also runs the workers: `python benchmarks/simulate.py WORKLOAD THREADS` waits for orders on its standard input.
"""

from __future__ import annotations

import ctypes
import functools
import heapq
import itertools
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

REGION, THREAD, TASK, LOOP_DONE, BARRIER, THREAD_END, REGION_END, MARK = range(8)
EVENT = np.dtype([("kind", np.int64), ("value", np.int64), ("seconds", np.float64)])


# ------------------------------------------------------------- the model


@dataclass
class Segment:
    """Of a region, up to a barrier or its end."""

    before: dict[int, float] = field(default_factory=dict)  # each thread's own time until it asks for tasks
    after: dict[int, float] = field(default_factory=dict)
    tasks: list[float] = field(default_factory=list)


@dataclass
class Region:
    name: str
    segments: list[Segment]


@dataclass
class Run:
    """A step, or a call: regions, and the time outside them."""

    serial: float
    regions: list[Region]


def span(segment: Segment, threads: int) -> float:
    """Seconds from the start of a segment to its last thread's end."""
    free = [(segment.before.get(t, 0.0), t) for t in range(threads)]
    heapq.heapify(free)
    for task in segment.tasks:
        at, t = free[0]
        heapq.heapreplace(free, (at + task, t))
    return max(at + segment.after.get(t, 0.0) for at, t in free)


def makespan(run: Run, threads: int, meeting: float = 0.0, least: dict[str, float] | None = None) -> float:
    """Seconds that so many threads take.

    meeting: seconds for all threads to start, to meet at a barrier or to end; least: of each region, by its arrays.
    """
    total = run.serial
    for region in run.regions:
        seconds = sum(span(segment, threads) for segment in region.segments)
        total += max(seconds, (least or {}).get(region.name, 0.0)) + meeting * len(region.segments)
    return total


def busy(run: Run, threads: int, seconds: float) -> float:
    """The share of the time that so many threads have in these seconds in which they work.

    Of one run, so that a clock that changes from process to process does not count.
    """
    segments = [s for region in run.regions for s in region.segments]
    work = sum(sum(s.tasks) + sum(s.before.values()) + sum(s.after.values()) for s in segments)
    return (run.serial + work) / (threads * seconds)


# -------------------------------------------------------- what was recorded


def parse_region(name: str, events: np.ndarray) -> Region:
    """Of the events from REGION to REGION_END."""
    segments: list[Segment] = []
    at = thread = 0
    asked = False  # for tasks, in this segment
    for kind, value, seconds in zip(events["kind"], events["value"], np.diff(events["seconds"])):
        if kind == THREAD:
            at, thread, asked = 0, int(value), False
        elif kind == BARRIER:
            at, asked = at + 1, False
        if kind in (THREAD, BARRIER) and at == len(segments):
            segments.append(Segment())
        if kind == TASK:
            segments[at].tasks.append(float(seconds))
            asked = True
        elif kind in (THREAD, BARRIER, LOOP_DONE):
            own = segments[at].after if asked or kind == LOOP_DONE else segments[at].before
            own[thread] = own.get(thread, 0.0) + float(seconds)
    return Region(name, segments)


def parse(events: np.ndarray, names: dict[int, str]) -> list[Run]:
    """The runs between marks. A mark says how many there were since the one before: steps that one call took have the
    same regions one after the other, and what is between them in equal parts."""
    marks = np.flatnonzero(events["kind"] == MARK)
    runs = []
    for first, last in itertools.pairwise(marks):
        part = events[first : last + 1]
        begins = np.flatnonzero(part["kind"] == REGION)
        ends = np.flatnonzero(part["kind"] == REGION_END)
        regions = [
            parse_region(names.get(int(part["value"][b]), "?"), part[b : e + 1]) for b, e in zip(begins, ends)
        ]
        inside = float((part["seconds"][ends] - part["seconds"][begins]).sum())
        serial = float(part["seconds"][-1] - part["seconds"][0]) - inside
        count = max(1, int(events["value"][last]))
        each, rest = divmod(len(regions), count)
        if rest == 0:  # else latents were revived, too
            runs += [Run(serial / count, regions[i * each : (i + 1) * each]) for i in range(count)]
    return runs


def typical(runs: list[Run]) -> Run:
    """Each time the median over the runs of the commonest shape, in which the same tasks come in the same order.

    What one run's clock has caught of others' work would else be the region's, for the slowest thread is waited for.
    """

    def shape(run: Run) -> tuple:
        return tuple((r.name, tuple(len(s.tasks) for s in r.segments)) for r in run.regions)

    common = statistics.mode(map(shape, runs))
    alike = [run for run in runs if shape(run) == common]

    def own(segments: tuple[Segment, ...], name: str) -> dict[int, float]:
        every = [getattr(s, name) for s in segments]
        return {t: statistics.median(e.get(t, 0.0) for e in every) for t in every[0]}

    regions = []
    for same in zip(*(run.regions for run in alike)):
        segments = [
            Segment(
                own(s, "before"), own(s, "after"), [statistics.median(t) for t in zip(*(x.tasks for x in s))]
            )
            for s in zip(*(region.segments for region in same))
        ]
        regions.append(Region(same[0].name, segments))
    return Run(statistics.median(run.serial for run in alike), regions)


# --------------------------------------------------------------- workloads


def same_order() -> None:
    """Every batch in the order of the first, so that a task's work is the same in every step.

    An epoch is one batch here: rows are drawn each time, as they are of many, but not the generator that draws them.
    """
    from atoms._rows import numbered

    orders, rng = {}, np.random.default_rng(0)

    def first(sampler: numbered.Sampler) -> np.ndarray:
        drawn = rng.permutation(sampler.n)
        return orders.setdefault(sampler.n, drawn)

    numbered.Sampler._permutation = first  # type: ignore[method-assign]


def sae(shape: tuple[int, int, int, int], **options):
    """Steps of d_in, d_sae, batch, L0."""
    d_in, d_sae, batch, l0 = shape

    def work(threads: int, tick) -> None:
        from train_step import planted

        import atoms
        from atoms import _core
        from atoms.sae import _training

        same_order()
        X = planted(batch, d_in)
        take = _core.sae_train

        def counted(ctx, handle, rows, rates, *rest, **options):
            stats = take(ctx, handle, rows, rates, *rest, **options)
            tick(len(rates))
            return stats

        _core.sae_train = counted
        if hasattr(ctypes.CDLL(None), "record_start"):
            _training.CALL *= threads  # as many steps a call as they would take together
        model = atoms.SparseAutoencoder(
            d_sae, target_l0=l0, batch_size=batch, max_steps=10**6, learning_rate=1e-6, num_threads=threads,
            verbose=False, **options,
        )  # fmt: skip
        model.fit(X)

    return work


def call(prepare):
    """Calls of what `prepare` returns, with so many threads."""

    def work(threads: int, tick) -> None:
        import atoms

        atoms.set_num_threads(threads)
        function = prepare(atoms)
        while True:
            function()
            tick()

    return work


def dictionary(atoms_module, n: int, d: int, signals: int):
    rng = np.random.default_rng(0)
    D = rng.standard_normal((n, d)).astype(np.float32)
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    Z = np.where(rng.random((signals, n)) < 8 / n, rng.standard_normal((signals, n)), 0).astype(np.float32)
    return D, Z @ D + 0.01 * rng.standard_normal((signals, d)).astype(np.float32)


def omp(atoms):
    D, X = dictionary(atoms, 1024, 256, 8192)
    coder = atoms.recovery.Dictionary(D)
    return lambda: atoms.recovery.omp(X, coder, n_nonzero=16)


def lasso(atoms):
    D, X = dictionary(atoms, 1024, 256, 2048)
    coder = atoms.recovery.Dictionary(D)
    return lambda: atoms.recovery.lasso(X, coder, alpha=0.1)


def moments(atoms):
    from atoms import _config, _core

    X = np.random.default_rng(0).standard_normal((65536, 576)).astype(np.float32)
    total, second = np.zeros(576), np.zeros((576, 576))
    return lambda: _core.moments(_config.context(), X, None, total, second)


def coherence(atoms):
    D, _ = dictionary(atoms, 9216, 576, 1)
    return lambda: atoms.theory.coherence(D)


def transform(atoms):
    from train_step import planted

    X = planted(4096, 576)
    model = atoms.SparseAutoencoder(2304, target_l0=48, batch_size=4096, max_steps=20, verbose=False).fit(X)
    return lambda: model.transform(X)


SHAPES = {  # d_in, d_sae, batch, L0
    "576 to 2,304, batch 4,096": (576, 2304, 4096, 48),
    "576 to 2,304, batch 512": (576, 2304, 512, 48),
    "2,304 to 36,864, batch 1,024": (2304, 36864, 1024, 48),
    "2,304 to 36,864, batch 4,096": (2304, 36864, 4096, 48),
}
WORKLOADS = {
    **{name: sae(shape) for name, shape in SHAPES.items()},
    "BatchTopK, batch 4,096": sae((576, 2304, 4096, 48), activation="batchtopk"),
    "128 to 512, batch 256": sae((128, 512, 256, 16)),
    "omp": call(omp),
    "lasso": call(lasso),
    "moments": call(moments),
    "coherence": call(coherence),
    "transform": call(transform),
}


# ----------------------------------------------------------------- workers


@functools.cache
def recorder() -> str:
    """recorder.c as a library, compiled into a folder that stays until the process ends."""
    folder = tempfile.TemporaryDirectory()
    recorder.folder = folder  # type: ignore[attr-defined]
    library = os.path.join(folder.name, "recorder.so")
    source = Path(__file__).with_name("recorder.c")
    compiler = os.environ.get("CC", "cc").split()
    subprocess.run([*compiler, "-O2", "-shared", "-fPIC", str(source), "-o", library], check=True)
    return library


def symbols(core: str) -> dict[int, str]:
    """Which address of this process is which parallel region, as far as `nm` can tell."""
    with open("/proc/self/maps") as maps:
        base = next(int(line.split("-")[0], 16) for line in maps if line.rstrip().endswith(core))
    listing = subprocess.run(["nm", core], capture_output=True, text=True).stdout
    found = re.findall(r"^([0-9a-f]+) t (\w+)\._omp_fn\.\d+$", listing, re.MULTILINE)
    return {base + int(address, 16): name for address, name in found}


def preemptions() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def serve(name: str, threads: int) -> None:
    """Orders "N FILE": N runs, recorded into FILE, or "N": timed, those in which no thread lost its CPU apart."""
    library = ctypes.CDLL(None)
    recorded = hasattr(library, "record_start")
    if recorded:
        library.record_events.restype = ctypes.c_void_p
    state = {"left": 3, "file": "", "last": 0.0, "before": 0, "wall": [], "quiet": []}

    def tick(runs: int = 1) -> None:
        now, lost = time.perf_counter(), preemptions()
        if recorded:
            library.record_mark(ctypes.c_long(runs))
        if state["last"]:
            seconds = (now - state["last"]) / runs
            state["wall"].append(seconds)
            if lost == state["before"]:
                state["quiet"].append(seconds)
        state["left"] -= runs
        if state["left"] > 0:
            state["last"], state["before"] = time.perf_counter(), preemptions()
            return
        if state["file"]:
            import atoms._core

            n = library.record_stop()
            address = library.record_events()
            raw = ctypes.string_at(address, n * EVENT.itemsize)
            np.save(state["file"], np.frombuffer(raw, EVENT))
            Path(state["file"] + ".json").write_text(json.dumps(symbols(atoms._core.__file__)))
        print(json.dumps({"wall": state["wall"], "quiet": state["quiet"]}), flush=True)
        order = sys.stdin.readline().split()
        if not order:
            os._exit(0)
        state.update(
            left=int(order[0]) + 1, file=order[1] if len(order) > 1 else "", wall=[], quiet=[], last=0.0
        )
        if state["file"]:
            library.record_start()
        tick()  # the first mark

    WORKLOADS[name](threads, tick)


class Worker:
    def __init__(self, name: str, threads: int, recorded: bool, environment: dict[str, str] | None = None):
        env = {**os.environ, "OMP_WAIT_POLICY": "active", **(environment or {})}
        env.pop("GOMP_SPINCOUNT", None)
        if recorded:
            env["LD_PRELOAD"] = recorder()
        self.recorded = recorded
        self.process = subprocess.Popen(
            [sys.executable, __file__, name, str(threads)], env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )  # fmt: skip
        self._answer()

    def _answer(self) -> dict:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker ended with {self.process.wait()}")
        return json.loads(line)

    def _order(self, text: str) -> dict:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        return self._answer()

    def timed(self, n: int) -> dict:
        return self._order(str(n))

    def runs(self, n: int) -> list[Run]:
        with tempfile.TemporaryDirectory() as folder:
            file = os.path.join(folder, "events.npy")
            self._order(f"{n} {file}")
            names = {int(k): v for k, v in json.loads(Path(file + ".json").read_text()).items()}
            return parse(np.load(file), names)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def region_spans(run: Run, threads: int) -> dict[str, tuple[float, float]]:
    """Of each kind of region in a run: how long it takes, and how long its tasks take together."""
    found: dict[str, tuple[float, float]] = {}
    for region in run.regions:
        seconds, work = found.get(region.name, (0.0, 0.0))
        for s in region.segments:
            seconds += span(s, threads)
            work += sum(s.tasks) + sum(s.before.values()) + sum(s.after.values())
        found[region.name] = (seconds, work)
    return found


# ------------------------------------------------------------------- costs

MEETINGS = r"""
#include <omp.h>
double meetings(int threads, int n)
{
    double start = omp_get_wtime();
    for (int i = 0; i < n; i++)
        _Pragma("omp parallel num_threads(threads)") __asm__ volatile("" ::: "memory");
    return (omp_get_wtime() - start) / n;
}
"""


def meeting_of_two() -> float:
    """Seconds to start two threads and end them, here: the fastest of many tries, for other work only adds to it."""
    with tempfile.TemporaryDirectory() as folder:
        source, library = os.path.join(folder, "meetings.c"), os.path.join(folder, "meetings.so")
        Path(source).write_text(MEETINGS)
        compiler = os.environ.get("CC", "cc").split()
        subprocess.run([*compiler, "-O2", "-fopenmp", "-shared", "-fPIC", source, "-o", library], check=True)
        code = (
            f"import ctypes; f = ctypes.CDLL({library!r}).meetings; f.restype = ctypes.c_double; f(2, 1000); "
            "print(min(f(2, 200) for _ in range(200)))"
        )
        env = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
        return float(
            subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True).stdout
        )


def traffic(shape: tuple[int, int, int, int]) -> dict[str, float]:
    """Bytes that each region of a step reads and writes where no array of its own stays in a cache."""
    d_in, d_sae, batch, l0 = shape
    rows, weights, entries = 4.0 * batch * d_in, 4.0 * d_sae * d_in, 12.0 * batch * l0
    return {
        "sae_prepare": 2 * rows + rows / 4,
        "sae_list_active": 2 * rows + rows / 4 + weights + weights / 4 + entries,
        "sae_gradients": weights + 2 * rows + entries,
        "update_rows": 2 * rows
        + entries
        + 2 * 4 * weights
        + weights / 4,  # two matrices, two moments in a word
    }


def compare(name: str, turns: int, runs: int) -> list[dict]:
    """One and two threads as they are and as the model says, in turns."""
    workers = {(p, r): Worker(name, p, r) for p in (1, 2) for r in (True, False)}
    kept: dict[tuple[int, bool], list[float]] = {key: [] for key in workers}
    disturbed = done = 0
    for _ in range(turns):
        for (threads, recorded), worker in workers.items():
            if recorded:
                kept[threads, True].append(makespan(typical(worker.runs(runs)), threads))
                continue
            answer = worker.timed(runs)
            done += len(answer["wall"])
            disturbed += len(answer["wall"]) - len(answer["quiet"])
            # of long runs none is left alone: then the faster quarter, for other work only adds
            kept[threads, False].append(
                statistics.median(answer["quiet"])
                if answer["quiet"]
                else float(np.quantile(answer["wall"], 0.25))
            )
    for worker in workers.values():
        worker.close()
    return [
        {
            "threads": threads,
            "model": statistics.median(kept[threads, True]),
            "measured": statistics.median(kept[threads, False]),
            "disturbed": disturbed / done,
        }
        for threads in (1, 2)
    ]


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
