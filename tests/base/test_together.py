"""In one process with PyTorch, scikit-learn and NumPy's BLAS: no deadlock, no crowd of threads, no leak.

Everything runs in processes of its own with a time limit: what hangs, fails.
"""

import itertools
import os
import time
from pathlib import Path

import pytest
import together
from support import run

HERE = str(Path(__file__).parent)
ORDERS = list(itertools.permutations(together.RUNTIMES))


def company(code, **env):
    """Output of code or of a script beside other packages, whose warnings are theirs."""
    return run(code, timeout=300, strict=False, PYTHONPATH=HERE, **env)


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    """joblib and Dask leave their workers the threads that the environment says."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


# ------------------------------------------------------------------ one process


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(
            order, marks=[] if order in (ORDERS[0], ORDERS[-1]) else pytest.mark.slow, id="-".join(order)
        )
        for order in ORDERS
    ],
)
def test_any_order_of_loading(order):
    for name in order[:2]:
        pytest.importorskip(name)
    out = company(
        f"""
        import threading, time, together
        together.load({order!r})
        ours = together.Atoms(num_threads=2)
        want = ours.work()

        def all_three(rounds):
            for _ in range(rounds):
                together.torch_work()
                assert ours.work() == want
                together.sklearn_work()

        all_three(1)
        before = together.threads()
        all_three(4)
        assert together.threads() <= before, "one thread's use of the three adds threads"

        def in_threads(count):
            failed = []
            def body():
                try:
                    all_three(1)
                except BaseException as error:
                    failed.append(error)
            workers = [threading.Thread(target=body) for _ in range(count)]
            for w in workers: w.start()
            for w in workers: w.join()
            assert not failed, failed

        in_threads(4)
        # a thread's pools end with it: at most what other runtimes keep, and no more the second time
        after = together.threads()
        in_threads(4)
        for _ in range(100):  # they end in their own time
            if together.threads() <= after + 1:
                break
            time.sleep(0.1)
        assert together.threads() <= after + 1, (after, together.threads())
        print("ok")
        """
    )
    assert out == "ok\n"


def test_threads_that_a_call_adds():
    """n - 1 for a calling thread, which end with it."""
    out = run(
        """
        import threading, time, atoms, together
        ours = together.Atoms(num_threads=1)
        ours.work()
        alone = together.threads()
        fit = lambda: atoms.AtomicInnerProduct(num_threads=3).fit(ours.X)
        fit()
        print(together.threads() - alone)
        for _ in range(8):
            thread = threading.Thread(target=fit)
            thread.start()
            thread.join()
        end = time.time() + 10  # the system takes a moment to take them away
        while together.threads() - alone > 2 and time.time() < end:
            time.sleep(0.05)
        print(together.threads() - alone)
        """,
        timeout=120,
        PYTHONPATH=HERE,
        OPENBLAS_NUM_THREADS="1",
    )
    assert out == "2\n2\n"


def test_repeated_calls_do_not_grow(tmp_path):
    """Handles, contexts, results and errors are freed: resident memory stays flat over 300 rounds."""
    out = run(
        """
        import os, numpy as np, atoms, together
        from atoms.recovery import _dictionary

        def resident():
            return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE")

        path = os.environ["ATOMS_TEST_FILE"]
        ours = together.Atoms(num_threads=2)
        bad = ours.X.copy()
        bad[3, 3] = np.nan
        ours.sae.save(path)
        atoms.io.save(ours.sae, path + ".sae")

        def once():
            ours.work()
            together.Atoms(100, num_threads=2)
            loaded = atoms.load(path)
            loaded.transform(ours.X)
            atoms.load(path + ".sae").reconstruct(ours.X)
            atoms.theory.stability(loaded.W_dec, loaded.transform(ours.X))
            _dictionary.hold_gram(atoms.recovery.Dictionary(loaded.W_dec))
            for fail in (loaded.transform, atoms.AtomicInnerProduct().fit):
                try:
                    fail(bad)
                except ValueError:
                    pass
                else:
                    raise SystemExit("NaN went through")

        for _ in range(60):
            once()
        before = resident()
        for _ in range(240):
            once()
        print((resident() - before) / 2**20)
        """,
        timeout=300,
        PYTHONPATH=HERE,
        ATOMS_TEST_FILE=str(tmp_path / "model.safetensors"),
    )
    # a leak of the smallest array here, 400 rows of 24 floats each round, would be 9 MB
    assert float(out) < 5, f"{out} MB more"


# ------------------------------------------------------------------ workers


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_data_loader_with_workers(method, tmp_path):
    pytest.importorskip("torch")
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import numpy as np, torch, together

class Codes(torch.utils.data.Dataset):
    def __init__(self, ours):
        self.ours = ours

    def __len__(self):
        return 40

    def __getitem__(self, i):
        return self.ours.sae.transform(self.ours.X[10 * i : 10 * i + 10]).toarray()

if __name__ == "__main__":
    together.torch_work()
    ours = together.Atoms(num_threads=2)
    ours.work()  # the parent's threads are running when its children are made
    want = ours.sae.transform(ours.X).toarray()
    loader = torch.utils.data.DataLoader(
        Codes(ours), batch_size=4, num_workers=2, multiprocessing_context="{method}", timeout=200)
    got = np.concatenate([batch.numpy().reshape(-1, want.shape[1]) for batch in loader])
    assert (got == want).all()
    ours.work()
    print("ok")
"""
    )
    assert company(script) == "ok\n"


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_joblib_beside_the_others(backend):
    pytest.importorskip("joblib")
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    out = company(
        f"""
        import joblib, os, together
        together.load(together.RUNTIMES)
        ours = together.Atoms()
        want = ours.work()

        def job():
            import atoms
            together.torch_work()
            found = ours.work()
            together.sklearn_work()
            return found, atoms.get_num_threads()

        done = joblib.Parallel(2, backend={backend!r})(joblib.delayed(job)() for _ in range(6))
        assert all(found == want for found, _ in done), (done, want)
        share = max(1, joblib.cpu_count() // 2)
        if {backend!r} == "loky":
            assert {{threads for _, threads in done}} == {{share}}, done
        print("ok")
        """
    )
    assert out == "ok\n"


@pytest.mark.parametrize("processes", [True, False])
def test_dask_workers(processes, tmp_path):
    pytest.importorskip("distributed")
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import together

def job(ours, i):
    import atoms
    return ours.work(), atoms.get_num_threads()

if __name__ == "__main__":
    from distributed import Client, LocalCluster
    ours = together.Atoms()
    want = ours.work()
    with LocalCluster(n_workers=2 if {processes} else 1, threads_per_worker=1 if {processes} else 4,
                      processes={processes}, dashboard_address="127.0.0.1:0") as cluster, Client(cluster) as client:
        done = client.gather([client.submit(job, ours, i, pure=False) for i in range(12)])
    assert all(found == want for found, _ in done), (done, want)
    if {processes}:  # Dask's nanny gives each worker's libraries one thread, and so do we
        assert {{threads for _, threads in done}} == {{1}}, done
    print("ok")
"""
    )
    assert company(script) == "ok\n"


# ------------------------------------------------------------------ Jupyter


@pytest.fixture(scope="module")
def kernel():
    """A real kernel, with more data than can be worked through while a test waits."""
    manager_of = pytest.importorskip("jupyter_client")
    pytest.importorskip("ipykernel")
    import atoms

    path = os.pathsep.join(
        [os.path.dirname(os.path.dirname(atoms.__file__)), os.environ.get("PYTHONPATH", "")]
    )
    manager, client = manager_of.manager.start_new_kernel(
        kernel_name="python3", startup_timeout=120, env={**os.environ, "PYTHONPATH": path}
    )
    try:
        ask(client, SETUP)
        yield manager, client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


SETUP = """
import numpy as np, atoms
X = np.random.default_rng(0).standard_normal((4000, 256)).astype("float32")
many = np.broadcast_to(X[:1], (3_000_000, 256))
D = np.random.default_rng(1).standard_normal((1024, 256)).astype("float32")
sae = atoms.SparseAutoencoder(1024, max_steps=20, batch_size=256, verbose=False).fit(X)
long = atoms.SparseAutoencoder(1024, max_steps=10**6, batch_size=256, verbose=False)
"""


def processor_time(pid):
    """Seconds of CPU that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ask(client, code, manager=None):
    """Run code in the kernel; with a manager, interrupt it after half a second: seconds until it answered.

    Of wall or of the kernel's CPU, whichever are fewer: on a busy machine the wall's are others' doing.
    """
    message = client.execute(code + "\n")
    began = answered = None
    while True:
        update = client.get_iopub_msg(timeout=120)
        if update["parent_header"].get("msg_id") != message:
            continue
        kind, content = update["msg_type"], update["content"]
        if manager is not None and kind == "status" and content["execution_state"] == "busy":
            time.sleep(0.5)
            began = time.monotonic(), processor_time(manager.provisioner.pid)
            manager.interrupt_kernel()
        elif kind == "error":
            assert manager is not None and content["ename"] == "KeyboardInterrupt", content["traceback"]
            wall, cpu = began
            answered = min(time.monotonic() - wall, processor_time(manager.provisioner.pid) - cpu)
        elif kind == "status" and content["execution_state"] == "idle":
            client.get_shell_msg(timeout=60)
            assert manager is None or answered is not None, "it ended before it was interrupted"
            return answered


@pytest.mark.filterwarnings("ignore")  # of Jupyter's own machinery, in this process
@pytest.mark.parametrize(
    "work",
    [
        "long.fit(X)",
        "atoms.AtomicInnerProduct().fit(many)",
        "sae.transform(many)",
        "atoms.recovery.omp(many, D, n_nonzero=20)",
        "atoms.recovery.lasso(X, D, alpha=1e-5, max_iter=10**6, tol=1e-12)",
        "atoms.recovery.code(X, D, 'basis_pursuit')",
        "atoms.theory.coherence(np.concatenate([D] * 100) + np.random.default_rng(2).standard_normal((102400, 1)))",
    ],
    ids=["fit", "metric", "transform", "omp", "lasso", "basis_pursuit", "coherence"],
)
def test_interrupt_in_jupyter(kernel, work):
    manager, client = kernel
    delays = []
    for _ in range(3):  # a busy machine may be late once
        delays.append(ask(client, work, manager))
        if delays[-1] < 0.5:
            break
    assert min(delays) < 0.5, delays
    # and everything is usable, what was interrupted too
    ask(client, "assert sae.inverse_transform(sae.transform(X)).shape == X.shape")
    if work == "long.fit(X)":  # wherever it was, it can be fitted again
        ask(client, "again = long.set_params(max_steps=3).fit(X); long.set_params(max_steps=10**6)")
        ask(client, "assert np.isfinite(again.inverse_transform(again.transform(X))).all()")
    ask(client, "assert np.isfinite(atoms.recovery.omp(X[:10], D, n_nonzero=3).data).all()")
