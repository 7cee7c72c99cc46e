"""What the system does not give: threads, memory, room on the disk; forks and exits at bad moments."""

import errno
import os
import resource
import sys

import numpy as np
import pytest
from support import run

import atoms
from atoms import _config, _files

MOST = atoms._core.MAX_THREADS


@pytest.mark.parametrize("n", [MOST + 1, 10**6, 2**31 - 1, 2**31, 2**40])
def test_more_threads_than_there_can_be(n):
    X = np.zeros((20, 3), np.float32)
    with pytest.raises(ValueError, match=f"num_threads: expected at most {MOST} threads, got {n}"):
        atoms.AtomicInnerProduct(num_threads=n).fit(X)
    with pytest.raises(ValueError, match="num_threads: expected at most"):
        atoms.set_num_threads(n)
    with pytest.raises((ValueError, OverflowError)):
        atoms._core.Context(n)


@pytest.mark.skipif(sys.platform != "linux", reason="limits on address space are Linux's")
def test_more_threads_than_the_system_gives():
    out = run("""
        import resource
        import numpy as np
        import atoms

        X = np.random.default_rng(0).standard_normal((2000, 8)).astype("f4")
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20),) * 2)  # no room for the stacks of so many
        try:
            atoms.AtomicInnerProduct(num_threads=1000).fit(X)
        except RuntimeError as error:
            print(str(error)[:66])
        atoms.AtomicInnerProduct(num_threads=2).fit(X)
        print("goes on")
    """)
    assert out == "num_threads: the system does not give this process 1000 threads (u\ngoes on\n"


SHORT_OF_MEMORY = """
import resource, sys
import numpy as np
import atoms

X = np.random.default_rng(0).standard_normal((3000, 64)).astype("f4")
X @ X.T  # NumPy's BLAS takes its own buffers, and ends the process where it gets none
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (int(sys.argv[1]) << 20),) * 2)
try:
    sae = atoms.SparseAutoencoder(512, target_l0=8, max_steps=3, batch_size=2048, verbose=False, num_threads=3)
    sae.fit(X).transform(X)
    atoms.recovery.omp(X, X[:900], n_nonzero=3, num_threads=3)
except (MemoryError, RuntimeError):
    pass
print("alive")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits on address space are Linux's")
@pytest.mark.parametrize("megabytes", [1, 20, 34, 45, 60, 80, 110, 200])
def test_short_memory_is_an_exception(megabytes, tmp_path):
    (tmp_path / "script.py").write_text(SHORT_OF_MEMORY)
    assert run(tmp_path / "script.py", megabytes, strict=False) == "alive\n"


def test_fork_while_a_dictionary_is_prepared():
    out = run(
        """
        import os, signal, threading, time
        import numpy as np
        from atoms import recovery

        D = np.random.default_rng(0).standard_normal((3000, 64))
        for wait in (0.01, 0.03, 0.06):
            d = recovery.Dictionary(D, num_threads=1)
            at_work = threading.Thread(target=lambda: recovery.lasso(D[:50], d, 0.1))
            at_work.start()
            time.sleep(wait)
            child = os.fork()
            if child == 0:
                signal.alarm(60)  # it hung
                recovery.lasso(D[:3], d, 0.1)
                os._exit(0)
            at_work.join()
            assert os.waitpid(child, 0)[1] == 0
        print("ok")
        """,
        strict=False,
    )
    assert out == "ok\n"


@pytest.mark.parametrize(
    "work", ["atoms.AtomicInnerProduct().fit(X)", "atoms.recovery.omp(X, X[:400], n_nonzero=8)"]
)
def test_exit_while_daemon_threads_compute(work):
    out = run(
        f"""
        import threading, time
        import numpy as np
        import atoms

        X = np.random.default_rng(0).standard_normal((5000, 128)).astype("f4")
        def for_ever():
            while True:
                {work}
        for _ in range(3):
            threading.Thread(target=for_ever, daemon=True).start()
        time.sleep(0.5)
        print("ok", flush=True)
        """,
        strict=False,
    )
    assert out == "ok\n"


def test_sub_interpreters_are_refused():
    pytest.importorskip("_xxsubinterpreters" if sys.version_info < (3, 13) else "_interpreters")
    out = run(
        """
        import signal, sys
        signal.alarm(60)  # the import hung
        code = "try:\\n import atoms\\nexcept ImportError as error: print(error)"
        if sys.version_info < (3, 13):
            import _xxsubinterpreters as interpreters
            interpreters.run_string(interpreters.create(), code)
        else:
            import _interpreters as interpreters
            interpreters.exec(interpreters.create(), code)
        """,
        strict=False,
    )
    assert "sub-interpreter" in out or "subinterpreter" in out


# ------------------------------------------------------------------- disks


@pytest.fixture
def small_files():
    """No file may be larger than 100 KB: as on a full disk, a write ends in the middle."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_model(path, sae):
    sae.save(path)


def write_export(path, sae):
    atoms.io.save(sae, path, format="npz", hook_name="x", model_name="y")


def write_by_numpy(path, sae):
    with _files.replacing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, sae.W_dec)


@pytest.mark.parametrize("write", [write_model, write_export, write_by_numpy])
def test_a_full_disk_names_the_file_and_loses_nothing(write, tmp_path, small_files):
    X = np.random.default_rng(0).standard_normal((500, 64)).astype("f4")
    sae = atoms.SparseAutoencoder(600, target_l0=3, max_steps=1, batch_size=64, verbose=False).fit(X)
    path = tmp_path / "model"
    if write is not write_export:  # which never replaces a file
        path.write_text("what was there")
    with pytest.raises(OSError, match="cannot be written .*; nothing that was there is lost") as caught:
        write(path, sae)
    assert caught.value.filename == str(path) and caught.value.errno in (errno.EFBIG, errno.ENOSPC)
    assert os.listdir(tmp_path) == (["model"] if write is not write_export else [])
    assert write is write_export or path.read_text() == "what was there"


def test_a_missing_folder_names_the_file(tmp_path):
    for path, kind in (
        (tmp_path / "none" / "a", FileNotFoundError),
        (tmp_path / "file" / "a", NotADirectoryError),
    ):
        (tmp_path / "file").touch()
        with pytest.raises(kind) as caught, _files.replacing(path):
            pass
        assert caught.value.filename == str(path)


def test_files_have_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "usual").touch()
    with _files.replacing(tmp_path / "ours") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_locks_are_free_in_a_forked_child():
    lock = _config.ForkedLock()
    with lock:
        child = os.fork()
        if child == 0:
            with lock:
                os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
