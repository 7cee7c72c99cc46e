"""The ground: contexts, threads, BLAS, converters at the binding, forks, signals."""

import importlib.metadata
import io
import os
import re
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from support import BLAS, ISAS, run

import atoms
from atoms import _config, _core

# ---------------------------------------------------------------- settings


def test_threads_setting(monkeypatch):
    monkeypatch.delenv("ATOMS_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert atoms.get_num_threads() == _config.available_cpus()
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert atoms.get_num_threads() == 3
    monkeypatch.setenv("ATOMS_NUM_THREADS", "5")
    assert atoms.get_num_threads() == 5
    assert _config.context().num_threads == 5
    try:
        atoms.set_num_threads(np.int64(2))
        assert atoms.get_num_threads() == 2
        assert _config.context(7).num_threads == 7
    finally:
        atoms.set_num_threads(None)


@pytest.mark.parametrize("n", [0, -1, 1.5, "two", True])
def test_threads_setting_rejects(n):
    with pytest.raises(ValueError, match="num_threads: expected a positive integer"):
        atoms.set_num_threads(n)
    with pytest.raises(ValueError, match="num_threads: expected a positive integer"):
        _config.context(n)


def test_environment_is_checked(monkeypatch):
    monkeypatch.setenv("ATOMS_NUM_THREADS", "many")
    with pytest.raises(ValueError, match="ATOMS_NUM_THREADS: expected a positive integer, got 'many'"):
        atoms.get_num_threads()
    monkeypatch.setenv("ATOMS_NUM_THREADS", "1")
    monkeypatch.setenv("ATOMS_ISA", "sse9")
    with pytest.raises(ValueError, match="ATOMS_ISA: expected one of portable"):
        _config.context()
    monkeypatch.delenv("ATOMS_ISA")
    monkeypatch.setenv("ATOMS_BLAS", "mkl")
    with pytest.raises(ValueError, match="blas: expected 'blis', 'accelerate' or 'scipy', got 'mkl'"):
        _config.context()


def test_context(isa, blas):
    ctx = _config.context(2)
    assert (ctx.isa, ctx.blas, ctx.num_threads) == (isa, blas, 2)


def test_a_context_has_what_the_cpu_has_up_to_what_is_asked():
    for number, name in enumerate(_core.ISAS):
        found = _core.ISAS.index(_core.Context(1, number).isa)
        assert found == number if name in ISAS else found < number
    assert ISAS[-1] == _core.build_info()["cpu_isa"]


@pytest.mark.parametrize("args", [(0,), (1, -1), (1, len(_core.ISAS))])
def test_context_rejects(args):
    with pytest.raises(ValueError, match="expected"):
        _core.Context(*args)


def test_context_cannot_be_subclassed():
    # the binding knows a context by its type's destructor, which a subclass would inherit
    with pytest.raises(TypeError):
        type("Mine", (_core.Context,), {})


def test_show_config(blas):
    out = io.StringIO()
    with redirect_stdout(out):
        atoms.show_config()
    text = out.getvalue()
    info = _core.build_info()
    assert f"atoms {atoms.__version__}" in text
    assert f"{info['cpu_isa']} found" in text
    assert "OpenMP 20" in text
    if blas == "blis":
        assert f"BLIS {info['blis_version']}, {info['blis_kernels']} kernels" in text
    else:
        assert "SciPy" in text


def test_types_are_of_functions_that_there_are():
    stub = Path(atoms.__file__).with_name("_core.pyi").read_text()
    names = re.findall(r"^(?:def|class) (\w+)", stub, re.MULTILINE)
    assert {"Context", "build_info", "moments"} <= set(names)
    assert all(hasattr(_core, name) for name in names)


def test_cpus_of_a_container(tmp_path, monkeypatch):
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(_config, "_CPU_QUOTA", str(quota))
    all_of_them = _config.available_cpus()  # no such file
    quota.write_text("max 100000\n")
    assert _config.available_cpus() == all_of_them
    quota.write_text("50000 100000\n")
    assert _config.available_cpus() == 1


def test_metadata():
    try:
        meta = importlib.metadata.metadata("llm-atoms")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("built in place, not installed")
    assert meta["Version"] == atoms.__version__
    assert meta["Requires-Python"] == ">=3.10"
    for minor in range(10, 15):
        assert f"Programming Language :: Python :: 3.{minor}" in meta.get_all("Classifier")


# -------------------------------------------------------------------- BLIS

needs_blis = pytest.mark.skipif(not _core.build_info()["has_blis"], reason="a build without BLIS")
KERNELS = "from atoms import _core; import os; print(_core.build_info()['blis_kernels'], os.environ.get('BLIS_ARCH_TYPE'))"


@pytest.fixture(scope="module")
def own_kernels():
    return run(KERNELS).split()


@needs_blis
def test_blis_kernels_suit_the_cpu(monkeypatch):
    monkeypatch.delenv("BLIS_ARCH_TYPE", raising=False)
    kernels, left = run(KERNELS).split()
    assert left == "None"
    if _core.build_info()["cpu_isa"] != "portable":
        assert kernels not in ("generic", "penryn", "sandybridge")


@needs_blis
@pytest.mark.slow
def test_blis_kernels_of_the_user():
    # every number that this BLIS has gives some family; the environment stays as it was
    families = set()
    for number in range(40):
        kernels, left = run(KERNELS, BLIS_ARCH_TYPE=str(number)).split()
        assert left == str(number)
        families.add(kernels)
        if "generic" in families:
            break
    assert "generic" in families


@needs_blis
@pytest.mark.parametrize("value", ["99", "-7", "zen3", ""])
def test_blis_survives_bad_kernels(value, own_kernels):
    assert run(KERNELS, BLIS_ARCH_TYPE=value).split()[0] == own_kernels[0]


# ------------------------------------------------------------------ arrays


def product(x, w, out=None, ctx=None):
    """x @ w through the binding: enough of it to try every check on arrays."""
    out = np.empty((len(x), w.shape[1]), np.float32) if out is None else out
    _core.product(ctx or _config.context(1), x, None, w, None, out)
    return out


ONE = np.ones((1, 1))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_input_is_exact(dtype):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dtype = np.dtype(getattr(ml_dtypes, dtype)) if dtype == "bfloat16" else np.dtype(dtype)
    bits = np.arange(1 << 16, dtype=np.uint16)
    with np.errstate(invalid="ignore"):
        want = bits.view(dtype).astype(np.float32)
    finite = np.isfinite(want)
    x = bits[finite].view(dtype)[:, None]
    np.testing.assert_array_equal(product(x, ONE)[:, 0], want[finite])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_strides_and_memory_maps(dtype, tmp_path):
    base = np.random.default_rng(0).standard_normal((24, 30)).astype(dtype)
    w = np.eye(15)
    for view in (base[:, ::2], base[::-1, :15], base[::3, 14::-1], np.asfortranarray(base)[:, 3:18]):
        np.testing.assert_array_equal(product(view, w), view.astype(np.float32))
    row = np.zeros(2, np.dtype([("x", dtype, 30), ("odd", "i1")], align=False))["x"][:1]
    np.testing.assert_array_equal(product(row[:, 3:18], w), 0)  # a stride that is never stepped
    base.tofile(tmp_path / "x")
    mapped = np.memmap(tmp_path / "x", dtype, "r", shape=(24, 30))
    np.testing.assert_array_equal(product(mapped[:, ::2], w), base[:, ::2].astype(np.float32))


def test_arrays_are_checked():
    x, w = np.zeros((4, 3)), np.eye(3)
    packed = np.zeros(4, [("byte", "i1"), ("x", "f4", 3)])["x"]
    misaligned = np.zeros(4, np.dtype([("x", "f8", 3), ("rest", "f4")]))["x"]
    for bad, error, message in [
        ([[1.0]], TypeError, "X: expected a NumPy array, got list"),
        (np.zeros(3), ValueError, r"X: expected 2 dimension\(s\), got 1"),
        (
            np.zeros((4, 3), int),
            TypeError,
            "X: unsupported dtype .*; pass float32, float64, float16 or bfloat16",
        ),
        (np.zeros((4, 3), object), TypeError, "X: unsupported dtype"),
        (x.astype(">f8"), ValueError, "X: expected an aligned array in native byte order"),
        (packed, ValueError, "X: expected an aligned array"),
        (misaligned, ValueError, "X: (expected an aligned array|the strides are not whole elements)"),
    ]:
        with pytest.raises(error, match=message):
            product(bad, w, np.zeros((4, 3), np.float32))
    read_only = np.zeros((4, 3), np.float32)
    read_only.flags.writeable = False
    for out, error, message in [
        (np.zeros((4, 3), int), TypeError, "out: expected dtype .*float32.*, got .*int64"),
        (np.zeros((3, 4), np.float32).T, ValueError, "out: expected a C-contiguous array"),
        (np.zeros((5, 3), np.float32), ValueError, "out: expected length 4 along axis 0, got 5"),
        (read_only, ValueError, "out: the output array is read-only"),
    ]:
        with pytest.raises(error, match=message):
            product(x, w, out)
    with pytest.raises(TypeError, match="ctx: expected a Context, got int"):
        _core.product(1, x, None, w, None, np.zeros((4, 3), np.float32))


def test_overlap_is_refused():
    memory = np.zeros((8, 3), np.float32)
    w = np.eye(3)
    for x, out in [
        (memory[:4], memory[3:7]),
        (memory[3::-1], memory[:4]),
        (memory[::2], memory[4:]),
    ]:
        with pytest.raises(ValueError, match="X and out share memory"):
            product(x, w, out)
    product(memory[:4], w, memory[4:])  # neighbours do not
    product(memory[:0], w, memory[:0])  # nothing shares nothing


# ----------------------------------------------------------------- threads


def test_same_bits_for_any_threads(contexts):
    x = np.random.default_rng(1).standard_normal((501, 97)).astype(np.float32)
    results = {}
    for ctx in contexts:
        total, second = np.zeros(97), np.zeros((97, 97))
        _core.moments(ctx, x, None, total, second)
        out = product(x, second, ctx=ctx)
        results.setdefault((ctx.isa, ctx.blas), []).append((total, second, out))
        np.testing.assert_allclose(second, x.T.astype(float) @ x, rtol=1e-11, atol=1e-9)
    for same in results.values():
        assert len(same) == 3
        for other in same[1:]:
            for a, b in zip(same[0], other):
                np.testing.assert_array_equal(a, b)


def test_calls_from_several_threads(blas):
    from concurrent.futures import ThreadPoolExecutor

    x = np.random.default_rng(2).standard_normal((400, 64)).astype(np.float32)

    def fit(_):
        total, second = np.zeros(64), np.zeros((64, 64))
        _core.moments(_config.context(2), x, None, total, second)
        return second, product(x, second, ctx=_config.context(2))

    want = fit(0)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(fit, range(32)):
            np.testing.assert_array_equal(got[0], want[0])
            np.testing.assert_array_equal(got[1], want[1])


DIGESTS = """
import hashlib
import numpy as np
import atoms
from atoms import controls, recovery, theory

rng = np.random.default_rng(0)
d = 160
X = (rng.standard_normal((3000, d)) @ rng.standard_normal((d, d))).astype("f4")
shrunk = {"shrinkage": "ledoit_wolf", "centered": True}
aip = atoms.AtomicInnerProduct(**shrunk).fit(X[:2000]).merge(atoms.AtomicInnerProduct(**shrunk).fit(X[2000:]))
few = {"target_l0": 6, "max_steps": 40, "batch_size": 256, "verbose": False}
plain = atoms.SparseAutoencoder(700, dead_after=2, **few).fit(X)  # latents die at once: some are set anew
whitened = atoms.SparseAutoencoder(700, metric=aip, **few).fit(X)
again = atoms.SparseAutoencoder(700, metric=aip, **few).fit(X, init=plain)
codes = recovery.omp(X[:300], recovery.Dictionary(plain, metric=aip), n_nonzero=4)
pca, kmeans = controls.PCADictionary(8, aip).fit(X), controls.KMeansDictionary(40, aip, max_iter=3).fit(X)
results = {
    "metric": [aip.whitener_, aip.unwhitener_, aip.whiten(X), aip.inner(X[:200], X[:200]), [aip.shrinkage_]],
    "errors": [aip.eigenvalue_standard_errors(X).metric],
    "sae": [plain.W_enc, plain.b_enc, plain.W_dec, plain.b_dec, plain.threshold, plain.transform(X).data],
    "whitened": [whitened.W_enc, whitened.W_dec, whitened.transform(X).data, again.W_dec],
    "recovery": [codes.data],
    "controls": [pca.W_dec, pca.W_enc, pca.transform(X[:300]).data, kmeans.W_dec],
    "theory": [
        [theory.coherence(plain, aip).rms, theory.match_dictionaries(plain, whitened, aip).mcc],
        [theory.certificate(plain, aip).effective_rank, theory.subspace_overlap(plain, whitened, aip, k=9)],
    ],
}
for name, arrays in results.items():
    print(name, hashlib.sha256(b"".join(np.asarray(a).tobytes() for a in arrays)).hexdigest()[:12])
"""


def test_same_bits_whatever_the_environment_says_of_threads():
    # NumPy's own products, in whitening, starting, resampling and judging, depend on these
    environments = [
        {"OMP_NUM_THREADS": "1"},
        {"OMP_NUM_THREADS": "2"},
        {"ATOMS_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "2"},
    ]
    found = [run(DIGESTS, strict=False, **each) for each in environments]
    assert len(found[0].splitlines()) == 7
    assert found[1:] == found[:1] * 2
    if hasattr(os, "sched_setaffinity"):
        one = f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})\n"
        assert run(one + DIGESTS, strict=False) == found[0]


WORK = """
import warnings
import numpy as np
from atoms import _config, _core
x = np.random.default_rng(3).standard_normal((600, 80)).astype(np.float32)

def work(threads):
    total, second = np.zeros(80), np.zeros((80, 80))
    out = np.empty((600, 80), np.float32)
    ctx = _config.context(threads)
    _core.moments(ctx, x, None, total, second)
    _core.product(ctx, x, None, second, None, out)
    return ctx.num_threads, out.sum(dtype=float).hex()

# Python 3.12 warns of any fork in a process with threads, and ours are OpenMP's
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
"""


def test_after_fork():
    # a parent whose OpenMP threads are already running: a child would wait for them for ever
    out = run(
        WORK
        + """
import os
want = work(2)
assert want[0] == 2
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        got = work(2)
        os._exit(0 if got == (1, want[1]) else 3)
    assert os.waitpid(pid, 0)[1] == 0
assert work(2) == want  # and the parent goes on with its threads
print("ok")
""",
        timeout=300,
    )
    assert out == "ok\n"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(method, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        WORK
        + f"""
if __name__ == "__main__":
    import multiprocessing
    want = work(2)
    with multiprocessing.get_context("{method}").Pool(2) as pool:
        got = pool.map(work, [2] * 4)
    threads = 1 if "{method}" == "fork" else 2
    assert got == [(threads, want[1])] * 4, (got, want)
    print("ok")
"""
    )
    assert run(script) == "ok\n"


@pytest.mark.parametrize("backend", ["loky", "multiprocessing", "threading"])
def test_joblib(backend, tmp_path):
    pytest.importorskip("joblib")
    (tmp_path / "job.py").write_text(WORK)
    code = f"""
    import joblib
    from job import work
    want = work(2)
    got = joblib.Parallel(2, backend={backend!r})(joblib.delayed(work)(2) for _ in range(4))
    assert [g[1] for g in got] == [want[1]] * 4, (got, want)
    print("ok")
    """
    assert run(code, PYTHONPATH=str(tmp_path)) == "ok\n"


def test_fork_in_the_middle_of_another_thread():
    # children are made while another thread computes: locks must not be left held in them
    out = run(
        WORK
        + """
import os, threading
stop = threading.Event()
def busy():
    while not stop.is_set():
        work(2)
thread = threading.Thread(target=busy)
thread.start()
want = work(2)[1]
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if work(2)[1] == want else 3)
    assert os.waitpid(pid, 0)[1] == 0
stop.set()
thread.join()
print("ok")
""",
        timeout=300,
    )
    assert out == "ok\n"


# ------------------------------------------------------------------- Ctrl-C


@pytest.mark.parametrize(
    "work",
    ["omp(X, D, n_nonzero=250)", "omp(X, D, n_nonzero=250, nonnegative=True)", "lasso(X, D, alpha=1e-3)"],
)
def test_interrupt_within_a_tile(work):
    """A tile of signals with hundreds of atoms each takes seconds."""
    out = run(
        f"""
        import signal, time
        import numpy as np
        from atoms.recovery import Dictionary, lasso, omp

        rng = np.random.default_rng(0)
        X = rng.standard_normal((2000, 300)).astype(np.float32)
        D = Dictionary(rng.standard_normal((4096, 300)).astype(np.float32))
        late = []
        def interrupt(*_):
            raise KeyboardInterrupt
        for _ in range(3):  # a busy machine may be late once
            begin = time.monotonic()
            signal.signal(signal.SIGALRM, interrupt)
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            try:
                {work}
            except KeyboardInterrupt:
                late.append(time.monotonic() - begin - 0.5)
                if late[-1] < 0.5:
                    break
            else:
                raise SystemExit("it ended first")
        assert min(late) < 0.5, late
        print("ok")
        """
    )
    assert out == "ok\n"


@pytest.mark.parametrize("blas", BLAS)
def test_interrupt_within_half_a_second(blas):
    out = run(
        """
        import signal, threading, time
        import numpy as np
        from atoms import _config, _core

        x = np.ones((1, 1024), np.float32)
        x = np.broadcast_to(x, (2_000_000, 1024))  # a minute of work, a row of memory
        total, second = np.zeros(1024), np.zeros((1024, 1024))
        delays = []
        for _ in range(3):  # a busy machine may be late once
            sent = []

            def interrupt():
                sent.append(time.monotonic())
                signal.raise_signal(signal.SIGINT)

            threading.Timer(0.3, interrupt).start()
            try:
                _core.moments(_config.context(2), x, None, total, second)
            except KeyboardInterrupt:
                delays.append(time.monotonic() - sent[0])
                if delays[-1] < 0.5:
                    break
            else:
                raise SystemExit("not interrupted")
        print("ok" if min(delays) < 0.5 else delays)
        """,
        ATOMS_BLAS=blas,
    )
    assert out == "ok\n"


# ------------------------------------------------------------- SciPy's BLAS


def test_serial_blas_nests_and_restores():
    import threading

    import threadpoolctl

    def threads():
        return sorted({library.get_num_threads() for library in _config.serial_blas._libraries})

    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = threads()
        inside, leave = threading.Event(), threading.Event()

        def other():
            with _config.serial_blas():
                inside.set()
                leave.wait(10)

        thread = threading.Thread(target=other)
        with _config.serial_blas():
            assert threads() == [1]
            thread.start()
            inside.wait(10)
        assert threads() == [1]  # the other thread is still inside
        leave.set()
        thread.join()
        assert threads() == before
        with pytest.raises(KeyError), _config.serial_blas():
            raise KeyError
        assert threads() == before


def test_scipy_mode_wraps_the_core():
    out = run(
        """
        import numpy as np, threadpoolctl
        from atoms import _config, _core
        assert _config.uses_scipy_blas()
        assert _config.context(2).blas == "scipy"
        assert hasattr(_core.moments, "__wrapped__")
        assert not hasattr(_core.build_info, "__wrapped__")
        print(_core.moments.__doc__ != None)
        """,
        ATOMS_BLAS="scipy",
    )
    assert out == "True\n"
