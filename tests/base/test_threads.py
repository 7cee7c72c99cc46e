"""Threads that train, code, measure and load at once: what each of them finds is what one alone finds, to the bit.

Without the GIL (CPython 3.13t, 3.14t) they truly run at once in the binding and in Python too, and `import atoms` leaves
the GIL off.
"""

import subprocess
import sys
import sysconfig
import threading
import warnings

import numpy as np
import pytest

import atoms
from atoms import recovery, theory

FREE = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
X = np.random.default_rng(0).standard_normal((600, 24)).astype(np.float32)
D = np.random.default_rng(1).standard_normal((48, 24)).astype(np.float32)


def at_once(works, times=2):
    """What `works` return, each run `times` times in a thread of its own, all begun together."""
    barrier, found, failed = threading.Barrier(len(works) * times), {}, []

    def body(i, work):
        try:
            barrier.wait(60)
            found[i] = work()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=body, args=(i, w)) for i, w in enumerate(works * times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert not any(thread.is_alive() for thread in threads)
    if failed:
        raise failed[0]
    return [found[i] for i in range(len(threads))]


def same(a, b):
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(same, a, b))
    if hasattr(a, "tocsr"):
        return same((a.data, a.indices, a.indptr), (b.data, b.indices, b.indptr))
    return np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True)


def train(seed):
    sae = atoms.SparseAutoencoder(
        32,
        target_l0=4,
        max_steps=30,
        batch_size=128,
        random_state=seed,
        metric=atoms.AtomicInnerProduct(),
        verbose=False,
    )
    sae.fit(X)
    return sae.W_enc, sae.W_dec, sae.threshold, sae.transform(X), sae.history_["l0"]


def learn():
    model = atoms.DictionaryLearning(
        32, n_nonzero=3, max_steps=10, batch_size=128, random_state=0, verbose=False
    )
    model.fit(X)
    return model.W_dec, model.transform(X)


def measured():
    ev = theory.explained_variance(X, 0.5 * X, "centered")
    return ev.total, theory.coherence(D).max, theory.stability(D, np.arange(1, 9)).q_star, theory.babel(D)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "sae.safetensors"
    sae = atoms.SparseAutoencoder(
        32, target_l0=4, max_steps=20, batch_size=128, random_state=5, verbose=False
    ).fit(X)
    sae.save(path)
    return path, sae


def test_threads_find_what_one_alone_finds(saved):
    path, sae = saved
    shared = recovery.Dictionary(D)  # one of the threads makes its Gram matrix

    def stored():
        own = path.with_name(f"{threading.get_ident()}.safetensors")
        sae.save(own)
        return atoms.load(own).transform(X), atoms.load(path).W_dec

    works = [
        lambda: train(0),
        lambda: train(1),
        learn,
        lambda: recovery.omp(X, shared, 5),
        lambda: recovery.lasso(X, shared, 2.0),
        lambda: recovery.code(X, D, "iht", n_nonzero=3),
        lambda: atoms.AtomicInnerProduct().fit(X).metric_,
        measured,
        stored,
    ]
    before = [work() for work in works]
    found = at_once(works)
    for i, value in enumerate(found):
        assert same(before[i % len(works)], value), i


def test_one_model_used_by_several_threads(saved):
    _, sae = saved
    works = [lambda: sae.transform(X), lambda: sae.reconstruct(X), lambda: sae.score(X)]
    before = [work() for work in works]
    for i, value in enumerate(at_once(works, 4)):
        assert same(before[i % len(works)], value), i


def test_threads_leave_the_warnings_filters_as_they_were(saved):
    path, sae = saved
    other = path.with_name("other.npz")
    atoms.io.save(sae, other, "npz")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        at_once([learn, lambda: [atoms.load(other) for _ in range(20)]], 4)
        assert warnings.filters == before


GIL = """
import sys, threading
assert not sys._is_gil_enabled()
import atoms, numpy as np
from atoms import activations, controls, evaluation, io, loggers, metric, recovery, sae, theory
X = np.random.default_rng(0).standard_normal((300, 8)).astype("float32")
def work():
    sae = atoms.SparseAutoencoder(16, target_l0=2, max_steps=5, verbose=False).fit(X)
    recovery.omp(X, sae, 2)
threads = [threading.Thread(target=work) for _ in range(3)]
[t.start() for t in threads]; [t.join() for t in threads]
print(sys._is_gil_enabled())
"""


@pytest.mark.skipif(not FREE, reason="this Python has a GIL")
def test_the_gil_stays_off():
    """Python says so in a RuntimeWarning where a module that it imports cannot do without."""
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", GIL]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr
