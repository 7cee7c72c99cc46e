"""Attacks on whole processes: kills, disks, memory, signals, forks, exits. Each gets a generator and does one round.

A round starts a process of its own from SCRIPT, does to it what the attack is about, and asserts what must be left.
"""

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import warnings
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]

HEAD = """
import os, sys, resource, signal, threading, time, warnings
warnings.simplefilter("ignore")
import numpy as np
import atoms
folder, seed = sys.argv[1], int(sys.argv[2])
X = np.random.default_rng(0).standard_normal((3000, 32)).astype("f4")
def sae(l0=4, steps=120):
    return atoms.SparseAutoencoder(64, target_l0=l0, batch_size=128, max_steps=steps, verbose=False, num_threads=1)
print("ready", flush=True)
"""
CAPTURE = """
import torch
from atoms.activations import capture
torch.set_num_threads(1); torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Embedding(50, 16), torch.nn.Linear(16, 48)).eval()
contexts = [np.random.default_rng(i).integers(0, 50, 40).tolist() for i in range(200)]
more = {"layers": ["1"], "batch_tokens": 160, "progress": False}
"""
# name -> (what is done, what is done again by the next process and must end well)
JOBS = {
    "fit": "sae().fit(X, checkpoint=folder + '/run', checkpoint_steps=3).save(folder + '/done')",
    "fit_many": """
        saes = [sae(3), sae(4), sae(5)]
        atoms.fit_many(saes, X, checkpoints=[f'{folder}/run{i}' for i in range(3)], checkpoint_steps=3)
        for i, one in enumerate(saes): one.save(f'{folder}/done{i}')
        """,
    "saves": """
        one = sae(steps=1).fit(X)
        for i in range(60): one.save(folder + '/model'); one.metric_ is None
        """,
    "store": CAPTURE + "capture(model, contexts, store=folder + '/store', shard_mb=0.1, **more)",
    "capture": CAPTURE + "capture(model, contexts, out=folder + '/out', **more)",
}


def start(job, folder, seed=0, before="", **options):
    code = (
        HEAD
        + textwrap.dedent(before)
        + textwrap.dedent(JOBS.get(job, job))
        + "\nprint('finished', flush=True)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder), str(seed)],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def end(process, meant=(0,), timeout=240):
    """Its output; it must end by itself, in a way that is meant."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"hangs: {process.communicate()}") from None
    assert process.returncode in meant, (process.returncode, out, err[-2000:])
    return out, err


def check(folder):
    """All that stands under its own name loads, whatever happened."""
    import atoms

    for path in Path(folder).iterdir():
        if path.name.startswith((".", "out", "store")):
            continue
        atoms.SparseAutoencoder.load(path)


def kill(rng):
    """SIGKILL at a random moment, several times; the next process goes on, and the end is as if nothing had been."""
    import atoms

    job = str(rng.choice(list(JOBS)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in range(3):
            process = start(job, folder)
            process.stdout.readline()
            time.sleep(float(rng.random()) * (3 if job in ("store", "capture") else 0.8))
            process.kill()
            process.communicate()
            check(folder)
        end(start(job, folder))
        check(folder)
        left = [p.name for p in folder.rglob("*") if p.name.endswith((".part", ".next", ".lock"))]
        assert not left, left
        if job == "store":
            atoms.activations.ActivationStore(folder / "store", verify=True)
        if job == "fit":
            fresh = folder / "again"
            fresh.mkdir()
            end(start(job, fresh))
            assert (fresh / "done").read_bytes() == (folder / "done").read_bytes()
    return job


def disk(rng):
    """A file system, or a limit on files, that ends in the middle of a write: an OSError that names a file, no SIGBUS,
    and what was there still loads.
    """
    job = str(rng.choice(list(JOBS)))
    with tempfile.TemporaryDirectory() as name:
        folder, limit = Path(name), int(rng.integers(1, 400)) << 10
        mounted = os.geteuid() == 0 and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={limit}", "none", name], capture_output=True
        ).returncode  # fmt: skip
        try:
            before = "" if mounted else f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit},) * 2)"
            out, err = end(start(job, folder, before=before), meant=(0, 1))
            last = err.strip().rsplit("\n", 1)[-1]
            assert "finished" in out or ("Error: [Errno" in last and name in last), (last, err[-1500:])
            check(folder)
        finally:
            if mounted:
                subprocess.run(["umount", "-l", name], check=True)
    return f"{job}, {'tmpfs' if mounted else 'files'} of {limit >> 10} KB"


def memory(rng):
    """ulimit -v at any height above what is in use: MemoryError, or it works."""
    megabytes = int(rng.integers(1, 300))
    before = f"""
    X @ X.T
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ({megabytes} << 20),) * 2)
    """
    job = """
    try:
        atoms.AtomicInnerProduct(num_threads=3).fit(X).whiten(X)
        atoms.SparseAutoencoder(900, target_l0=4, batch_size=2048, max_steps=4, verbose=False, num_threads=3).fit(X)
        atoms.recovery.omp(X, X[:700], n_nonzero=4, num_threads=3)
    except (MemoryError, RuntimeError):
        pass
    """
    out, err = end(start(job, "/", before=before))
    assert "finished" in out, err[-1000:]
    return f"{megabytes} MB"


def interrupt(rng):
    """SIGINT at a random moment of a fit with a checkpoint: KeyboardInterrupt within a second, and it goes on."""
    with tempfile.TemporaryDirectory() as name:
        process = start("fit", name)
        process.stdout.readline()
        time.sleep(float(rng.random()) * 0.5)
        process.send_signal(signal.SIGINT)
        out, err = end(process, meant=(0, 1, -signal.SIGINT), timeout=60)
        assert "finished" in out or "KeyboardInterrupt" in err, err[-1000:]
        check(name)
        end(start("fit", name))
    return "fit"


def fork(rng):
    """Children made while other threads compute work, with one thread, and give the same."""
    job = f"""
    d = atoms.recovery.Dictionary(X[:1500])
    def busy():
        for _ in range(3):
            atoms.recovery.lasso(X[:40], atoms.recovery.Dictionary(X[:1500]), 1.0, num_threads=2)
            atoms.recovery.lasso(X[:40], d, 1.0)
            atoms.AtomicInnerProduct(num_threads=2).fit(X).whitener_
    threads = [threading.Thread(target=busy) for _ in range(2)]
    for t in threads: t.start()
    want = None
    for wait in {rng.random(4).tolist()}:
        time.sleep(wait * 0.1)
        child = os.fork()
        if child == 0:
            import faulthandler; faulthandler.dump_traceback_later(20, exit=True)  # it hung: where
            atoms.recovery.lasso(X[:5], d, 1.0)
            atoms.AtomicInnerProduct(num_threads=2).fit(X).whitener_
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert status == 0, status
    for t in threads: t.join()
    """
    out, err = end(start(job, "/"))
    assert "finished" in out, err[-1000:]
    return ""


def leave(rng):
    """The interpreter ends while daemon threads compute, or in the middle of sys.exit."""
    job = f"""
    def busy(kind):
        while True:
            if kind == 0: atoms.AtomicInnerProduct(num_threads=2).fit(X).whitener_
            elif kind == 1: sae().fit(X)
            else: atoms.recovery.omp(X, X[:500], n_nonzero=5, num_threads=2)
    for kind in {rng.integers(0, 3, 4).tolist()}:
        threading.Thread(target=busy, args=(kind,), daemon=True).start()
    time.sleep({float(rng.random())})
    """
    end(start(job, "/"))
    return ""


def hostile(rng):
    """Files that are cut, have bits flipped or bytes put in: a ValueError or OSError that names the file, or it loads."""
    import atoms
    from atoms.activations import Activations, ActivationStore

    made = MADE or make_files()
    kind = str(rng.choice(sorted(made)))
    source = made[kind]
    with tempfile.TemporaryDirectory() as name:
        target = Path(name) / "copy"
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
        files = sorted(p for p in target.rglob("*") if p.is_file()) if target.is_dir() else [target]
        victim = files[rng.integers(len(files))]
        victim.write_bytes(damaged(rng, victim.read_bytes()))
        limit = resource.getrlimit(resource.RLIMIT_AS)
        try:
            if kind == "store":
                store = ActivationStore(target)
                for key in store.keys:
                    np.asarray(store[key])
            elif kind == "out":
                Activations.load(target)
            elif kind == "metric":
                atoms.AtomicInnerProduct.load(target).whitener_  # noqa: B018
            elif kind == "run":
                atoms.SparseAutoencoder.load(target)
            else:
                atoms.load(target)
        except (ValueError, OSError) as error:
            assert name in str(error), (kind, victim.name, error)
        except ImportError:
            pass
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limit)
    return f"{kind}: {victim.name}"


def damaged(rng, data):
    """Cut, flipped, or with bytes put in, most often near the front, where headers are."""
    data = bytearray(data)
    where = lambda: int(rng.integers(0, max(1, len(data) if rng.random() < 0.4 else min(len(data), 400))))
    kind = rng.integers(4)
    if kind == 0:
        return bytes(data[: where()])
    for _ in range(int(rng.integers(1, 6))):
        if kind == 1 and data:
            data[where()] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            at = where()
            data[at:at] = rng.bytes(int(rng.integers(1, 9)))
        elif data:
            at = where()
            data[at : at + 8] = [b"\xff" * 8, b"\0" * 8, b"99999999", b"-1,-1,-1"][rng.integers(4)]
    return bytes(data)


MADE = {}


def make_files():
    """One of each kind of file that is read, made once."""
    import torch

    import atoms
    from atoms.activations import capture

    root = Path(tempfile.mkdtemp(prefix="atoms-torture-"))
    X = np.random.default_rng(0).standard_normal((500, 8)).astype("f4")
    metric = atoms.AtomicInnerProduct().fit(X)
    sae = atoms.SparseAutoencoder(16, target_l0=2, metric=metric, max_steps=9, batch_size=64, verbose=False)
    sae.fit(X, checkpoint=root / "run")
    metric.save(root / "metric")
    sae.save(root / "model")
    atoms.io.save(sae, root / "lens", format="saelens", hook_name="x", model_name="y")
    atoms.io.save(sae, root / "params.npz", format="npz")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(50, 8), torch.nn.Linear(8, 16)).eval()
    contexts = [np.random.default_rng(i).integers(0, 50, 40).tolist() for i in range(20)]
    more = {"layers": ["1"], "batch_tokens": 160, "progress": False}
    capture(model, contexts, store=root / "store", shard_mb=0.02, **more)
    capture(model, contexts, out=root / "out", **more)
    MADE.update((p.name, p) for p in root.iterdir() if not p.name.startswith("."))
    return MADE


ATTACKS = [kill, disk, memory, interrupt, fork, leave, hostile]
warnings.simplefilter("ignore")
