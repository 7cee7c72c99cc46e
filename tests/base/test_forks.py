"""Children made by fork while other threads compute: no lock that another thread held may be waited for in them.

Threads do one kind of work without pause, the main thread forks, and each child does the same work: it must end, and
give what the parent gets. Where a child hangs, its traceback is in the failure.
"""

import os

import pytest
from support import run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")

HEAD = """
import faulthandler, os, sys, threading, time, warnings
import numpy as np
import atoms
from atoms import _config, _core, recovery, theory
warnings.simplefilter("ignore")
X = np.random.default_rng(0).standard_normal((300, 40)).astype("f4")
D = X[:120]
metric = atoms.AtomicInnerProduct(num_threads=2).fit(X)
dictionary = recovery.Dictionary(D, num_threads=2)
def sae(**more):
    return atoms.SparseAutoencoder(64, target_l0=4, batch_size=64, max_steps=3, num_threads=2, **more)
fitted = sae(verbose=False).fit(X)
def product():
    out = np.empty((300, 40), "f4")
    for _ in range(20):
        _core.product(_config.context(2), X, None, np.eye(40), None, out)
    return out
"""

FORKS = """
def busy():
    while not stop.is_set():
        work()
want, stop = work(), threading.Event()
threads = [threading.Thread(target=busy, daemon=True) for _ in range(2)]
for thread in threads:
    thread.start()
for i in range(forks):
    time.sleep(0.0004 * (i % 8))
    child = os.fork()
    if child == 0:
        faulthandler.dump_traceback_later(30, exit=True)  # it hung: where
        same = np.array_equal(work(), want)
        os._exit(0 if same else 3)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, status
stop.set()
for thread in threads:
    thread.join()
print("ok")
"""

WORK = {
    "product": "product()",
    "angles": "metric.angles(X[:20], bins=4000).counts",  # hung in its critical section: much time in it
    "metric": "atoms.AtomicInnerProduct(num_threads=2).fit(X).whitener_",
    "whiten": "metric.whiten(X)",
    "omp": "recovery.omp(X[:40], D, n_nonzero=3, num_threads=2).toarray()",
    "lasso": "recovery.lasso(X[:40], D, 1.0, num_threads=2).toarray()",
    "one dictionary": "recovery.lasso(X[:40], dictionary, 1.0, num_threads=2).toarray()",
    "fit": "sae(verbose=False).fit(X).W_dec",
    "fit with a bar": "sae(verbose=True).fit(X).W_dec",
    "transform": "fitted.transform(X).toarray()",
    "theory": "theory.babel(D)",
    "context": "_core.Context(2).num_threads * 0",
}


@pytest.mark.parametrize("blas", ["blis", "scipy"])
@pytest.mark.parametrize("kind", WORK)
def test_children_do_what_the_threads_do(kind, blas):
    import atoms

    if blas == "blis" and not atoms._core.build_info()["has_blis"]:
        pytest.skip("a build without BLIS")
    forks = 15 if kind.startswith("fit") else 40
    code = f"{HEAD}\nforks = {forks}\nwork = lambda: {WORK[kind]}\n{FORKS}"
    assert run(code, strict=False, timeout=200, ATOMS_BLAS=blas) == "ok\n"


def test_first_calls_import_nothing(tmp_path):
    """A module that another thread imports at the fork stays locked in the child."""
    work = ", ".join(WORK[kind] for kind in WORK if "bar" not in kind)
    head = HEAD.replace("import atoms\n", "import atoms\nbefore = set(sys.modules)\n")
    code = f"""{head}
[{work}]
fitted.save({str(tmp_path / "sae")!r})
atoms.SparseAutoencoder.load({str(tmp_path / "sae")!r})
print(sorted(set(sys.modules) - before))
"""
    assert run(code, strict=False) == "[]\n"


def test_a_fork_waits_for_an_import(tmp_path):
    slow = tmp_path / "tqdm"
    slow.mkdir()
    (slow / "__init__.py").touch()
    (slow / "auto.py").write_text("import time\ntime.sleep(0.5)\nclass tqdm: set_lock = print\n")
    code = """
    import faulthandler, os, threading, time
    from atoms import _progress

    thread = threading.Thread(target=_progress._tqdm)
    thread.start()
    time.sleep(0.2)
    child = os.fork()
    if child == 0:
        faulthandler.dump_traceback_later(30, exit=True)
        _progress._tqdm()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    thread.join()
    """
    run(code, strict=False, PYTHONPATH=str(tmp_path))


def test_a_bar_can_be_made_while_another_thread_holds_its_lock():
    code = """
    import faulthandler, os, threading
    from atoms._progress import _tqdm, progress_bar

    held, free = threading.Event(), threading.Event()
    def hold():
        with _tqdm().get_lock():
            held.set()
            free.wait()
    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        faulthandler.dump_traceback_later(30, exit=True)
        progress_bar("x", 3, "y", verbose=True).update()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    free.set()
    thread.join()
    assert status == 0
    """
    run(code, strict=False)
