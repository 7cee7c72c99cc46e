"""benchmarks/simulate.py: the schedule of tasks made by hand; that what the recorder hears adds up and changes no bit."""

import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.exists(), reason="the benchmarks are not here")


@pytest.fixture(scope="module")
def simulate():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import simulate

        yield simulate
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_tasks_go_to_whoever_is_free_first(simulate):
    segment = simulate.Segment(tasks=[3.0, 1.0, 1.0, 2.0])
    assert simulate.span(segment, 1) == 7
    assert simulate.span(segment, 2) == 4  # 3 | 1 1 2
    assert simulate.span(segment, 4) == 3
    segment.before, segment.after = {1: 2.0}, {1: 0.5}
    assert simulate.span(segment, 2) == 5.5  # the second thread comes later: 3 1 | . . 1 2 .5


def test_static_shares_barriers_and_memory(simulate):
    region = simulate.Region(
        "a", [simulate.Segment(before={0: 1.0, 1: 2.0}), simulate.Segment(before={0: 4.0})]
    )
    run = simulate.Run(10.0, [region])
    assert simulate.makespan(run, 2) == 16
    assert simulate.makespan(run, 2, meeting=0.5) == 17
    assert simulate.makespan(run, 2, least={"a": 8.0}) == 18


def test_events_become_runs(simulate):
    s = simulate
    kinds = [
        (s.MARK, 0, 0), (s.REGION, 7, 1), (s.THREAD, 0, 1), (s.TASK, 0, 2), (s.TASK, 1, 4), (s.LOOP_DONE, 0, 5),
        (s.BARRIER, 0, 5), (s.THREAD_END, 0, 8), (s.THREAD, 1, 8), (s.LOOP_DONE, 0, 9), (s.BARRIER, 0, 9),
        (s.THREAD_END, 1, 10), (s.REGION_END, 0, 10), (s.MARK, 0, 12),
    ]  # fmt: skip
    (run,) = s.parse(np.array(kinds, s.EVENT), {7: "loop"})
    assert run.serial == 3 and run.regions[0].name == "loop"
    first, second = run.regions[0].segments
    assert first.tasks == [2.0, 1.0] and first.before == {0: 1.0, 1: 1.0}
    assert second.before == {0: 3.0, 1: 1.0}
    assert s.makespan(run, 2) == 3 + 3 + 3
    assert s.busy(run, 2, 9.0) == 12 / 18  # 3 between regions, 9 in tasks and beside them
    kinds[-1] = (s.MARK, 2, 12)  # two steps, but of one region: not told apart
    assert s.parse(np.array(kinds, s.EVENT), {7: "loop"}) == []
    again = [(kind, value, seconds + 9) for kind, value, seconds in kinds[1:-1]]
    both = s.parse(np.array([*kinds[:-1], *again, (s.MARK, 2, 20)], s.EVENT), {7: "loop"})
    assert [r.serial for r in both] == [1.0, 1.0] and both[0].regions == both[1].regions


CODE = """
import ctypes, hashlib, sys, time
sys.path.insert(0, {benchmarks!r})
import numpy as np, simulate, atoms, atoms._core
library = ctypes.CDLL(None)
recorded = hasattr(library, "record_start")
X = np.random.default_rng(0).standard_normal((700, 32)).astype(np.float32)
if recorded:
    library.record_events.restype = ctypes.c_void_p
    library.record_start()
    library.record_mark(ctypes.c_long(0))
start = time.thread_time()
sae = atoms.SparseAutoencoder(100, target_l0=8, batch_size=350, max_steps=4, num_threads={threads}, random_state=0, verbose=False)
sae.fit(X)
atoms.recovery.omp(X[:100], X[100:200] / np.linalg.norm(X[100:200], axis=1, keepdims=True), n_nonzero=3)
spent = time.thread_time() - start
print(hashlib.sha256(sae.W_enc.tobytes() + sae.W_dec.tobytes()).hexdigest())
if recorded:
    library.record_mark(ctypes.c_long(0))
    n = library.record_stop()
    events = np.frombuffer(ctypes.string_at(library.record_events(), n * simulate.EVENT.itemsize), simulate.EVENT)
    (run,) = simulate.parse(events, simulate.symbols(atoms._core.__file__))
    work = sum(sum(s.tasks) + sum(s.before.values()) + sum(s.after.values()) for r in run.regions for s in r.segments)
    assert abs(run.serial + work - spent) < 0.05 * spent + 0.005, (run.serial, work, spent)
    regions = [r.name for r in run.regions]
    assert len(regions) >= 4 * 7 and max(len(r.segments[0].before) for r in run.regions) == {threads}, regions
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("cc"), reason="preloads a library compiled here"
)
def test_recorder_adds_up_and_changes_nothing(simulate):
    digests = set()
    for threads, preload in ((1, ""), (2, ""), (16, simulate.recorder())):
        env = {**os.environ, "LD_PRELOAD": preload, "OMP_WAIT_POLICY": "passive"}
        code = CODE.format(benchmarks=str(BENCHMARKS), threads=threads)
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        digests.add(done.stdout)
    assert len(digests) == 1
