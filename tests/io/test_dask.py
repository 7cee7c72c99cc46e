"""What Dask holds: rows that come back are lazy, what is summed is summed where the blocks are, and both are to the bit
what the blocks give locally; on a cluster of processes, some of which are killed."""

import contextlib
import copy
import dataclasses
import functools
import os
import pickle
import signal
import threading
import time
import warnings

import numpy as np
import pytest
import scipy.sparse as sp

import atoms
from atoms import recovery, theory
from atoms._config import uses_scipy_blas
from atoms._rows import SomeNorms
from atoms.activations._far import FarPass

da = pytest.importorskip("dask.array")
db = pytest.importorskip("dask.bag")
distributed = pytest.importorskip("distributed")

N, D = 2100, 16
CUTS = (500, 7, 0, 993, 600)
RNG = np.random.default_rng
SAE = {"d_sae": 32, "target_l0": 4, "max_steps": 20, "batch_size": 128, "verbose": False, "num_threads": 1}


@pytest.fixture(scope="module")
def X():
    rng = RNG(0)
    return (rng.standard_normal((N, D)) @ rng.standard_normal((D, D)) + 1).astype(np.float32)


@pytest.fixture(scope="module")
def metric(X):
    return atoms.AtomicInnerProduct(centered=True, num_threads=1).fit(X)


ATOMS = RNG(1).standard_normal((40, D)).astype(np.float32)


def blocks_of(X):
    """The array's rows as they are cut, empty blocks left out."""
    return [part for part in np.split(X, np.cumsum(CUTS)[:-1]) if len(part)]


def lazy(X):
    """With an empty block, and its columns in two chunks."""
    return da.from_array(X, chunks=(CUTS, (X.shape[1] // 2, X.shape[1] - X.shape[1] // 2)))


def unknown(X):
    """The same rows, of which Dask does not know how many are in each block."""
    rows = da.from_array(X, chunks=(CUTS if len(X) == N else 60, -1))
    return rows[da.from_array(np.ones(len(X), bool), chunks=(rows.chunks[0],))]


LAZY = pytest.mark.parametrize("make", [lazy, unknown])
WITH_BLIS = pytest.mark.skipif(
    uses_scipy_blas(), reason="SciPy's BLAS rounds a row's product by its place among others"
)


def same(lazy_one, want):
    """Of arrays of Dask, sparse ones too: type, dtype and every bit."""
    assert isinstance(lazy_one, da.Array) and lazy_one.dtype == want.dtype
    got = lazy_one.compute()
    assert type(got) is type(want) and got.shape == want.shape and got.dtype == want.dtype
    if sp.issparse(want):
        assert isinstance(lazy_one._meta, sp.csr_array)
        for name in ("indptr", "indices", "data"):
            np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
    else:
        np.testing.assert_array_equal(got, want)


# ------------------------------------------------------------------ moments, and rows to rows


@LAZY
@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("shrinkage", [None, "ledoit_wolf"])
def test_moments_are_those_of_the_list_of_blocks(X, make, centered, shrinkage):
    ours, theirs = (atoms.AtomicInnerProduct(centered, shrinkage, num_threads=1) for _ in range(2))
    ours.fit(make(X)), theirs.fit(blocks_of(X))
    for again in (False, True):
        if again:
            ours.partial_fit(make(X[::-1])), theirs.partial_fit(blocks_of(X[::-1]))
        for name in ("n_samples_seen_", "mean_", "second_moment_", "shrinkage_", "whitener_"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    whole = atoms.AtomicInnerProduct(centered, shrinkage).fit(np.concatenate([X, X[::-1]]))
    np.testing.assert_allclose(ours.second_moment_, whole.second_moment_, rtol=1e-11, atol=1e-12)


@LAZY
def test_massive_rows_are_warned_of_and_left_out(X, make):
    heavy = X.copy()
    heavy[[3, 77, 290, 1999]] *= 100
    with pytest.warns(UserWarning, match="X: 4 of 2,100 rows have a norm above 10 times the median") as said:
        atoms.AtomicInnerProduct().fit(make(heavy))
    assert said[0].filename == __file__
    ours = atoms.AtomicInnerProduct().fit(make(heavy), massive="drop")
    light = [part[np.linalg.norm(part, axis=1) < 1000] for part in blocks_of(heavy)]
    np.testing.assert_array_equal(ours.second_moment_, atoms.AtomicInnerProduct().fit(light).second_moment_)
    assert (ours.n_dropped_massive_, ours.n_samples_seen_) == (4, N - 4)


def test_the_norms_of_some_rows_are_drawn_alike_from_all_blocks():
    rows = np.array([np.arange(1, 60_002), np.zeros(60_001)]).T  # whose squares are exact
    parts = np.split(rows, np.cumsum([20_000, 1, 10_000, 0]))
    each = []
    for k, part in enumerate(parts):
        norms = SomeNorms(k)
        norms.see(part)
        each.append(norms)
    forth, back = (functools.reduce(SomeNorms.plus, some) for some in (each, each[::-1]))
    assert forth.n == back.n == 60_001
    kept = np.sort(forth._kept[1])
    np.testing.assert_array_equal(kept, np.sort(back._kept[1]))
    squares = [part[:, 0] ** 2 for part in parts]
    shares = [np.isin(kept, own).sum() / 8192 for own in squares]
    assert len(kept) == 8192 == np.isin(kept, rows[:, 0] ** 2).sum()
    np.testing.assert_allclose(shares, [1 / 3, 0, 1 / 6, 0, 1 / 2], atol=0.02)
    together = SomeNorms()
    for part in parts:
        together.see(part)
    assert together.n == 60_001 and np.isin(together._kept[1], rows[:, 0] ** 2).all()
    shares = [np.isin(together._kept[1], own).sum() / 8192 for own in squares]
    np.testing.assert_allclose(shares, [1 / 3, 0, 1 / 6, 0, 1 / 2], atol=0.02)


@LAZY
def test_whitening(X, metric, make):
    Z = metric.whiten(make(X))
    assert Z.chunks[1] == (D,) and (make is unknown or Z.chunks[0] == CUTS)
    same(Z, metric.whiten(X))
    same(metric.unwhiten(Z), metric.unwhiten(metric.whiten(X)))
    if make is lazy:
        out = np.empty((N, D), np.float32)
        assert metric.whiten(make(X), out=out) is out
        np.testing.assert_array_equal(out, metric.whiten(X))


@pytest.mark.parametrize("dtype", ["float16", "float64", "int16", "bfloat16"])
def test_rows_of_other_types(X, metric, dtype):
    pytest.importorskip("ml_dtypes")
    other = (X * 4).astype(dtype)
    same(metric.whiten(lazy(other)), metric.whiten(other))
    ours, theirs = (atoms.AtomicInnerProduct().fit(rows) for rows in (lazy(other), blocks_of(other)))
    np.testing.assert_array_equal(ours.second_moment_, theirs.second_moment_)


ESTIMATORS = {
    "jumprelu in a metric": lambda X, metric: atoms.SparseAutoencoder(**SAE, metric=metric).fit(X),
    "batchtopk": lambda X, metric: atoms.SparseAutoencoder(**SAE, activation="batchtopk").fit(X),
    "coder": lambda X, metric: atoms.SparseCoder(ATOMS, n_nonzero=2, num_threads=1).fit(X),
    "learned": lambda X, metric: atoms.DictionaryLearning(
        32, n_nonzero=3, max_steps=5, verbose=False, num_threads=1
    ).fit(X),
    "loaded": lambda X, metric: atoms.io.PretrainedSAE(
        *(getattr(atoms.SparseAutoencoder(**SAE).fit(X), n) for n in ("W_enc", "b_enc", "W_dec", "b_dec")),
    ),
}


@pytest.mark.filterwarnings("ignore::atoms.recovery.RecoveryWarning")
@pytest.mark.parametrize("name", ESTIMATORS)
def test_codes_and_reconstructions(X, metric, name):
    one = ESTIMATORS[name](X, metric)
    want = one.transform(X)
    for make in (lazy, unknown):
        codes = one.transform(make(X))
        same(codes, want)
        same(one.inverse_transform(codes), one.inverse_transform(codes=want))
        same(one.inverse_transform(codes=codes), one.inverse_transform(want))
        same(one.reconstruct(X=make(X)), one.reconstruct(X))
        if hasattr(one, "score"):
            assert one.score(make(X)) == one.score(X)
    with pytest.raises(ValueError, match="5 features"):
        one.transform(lazy(X[:, :5]))


def test_later_fits_change_nothing_that_was_asked_before(X):
    sae = atoms.SparseAutoencoder(**SAE).fit(X)
    want, codes = sae.transform(X), sae.transform(lazy(X))
    sae.fit(-X)
    same(codes, want)


# ------------------------------------------------------------------ errors


def test_nan_is_named_by_its_row_among_all(X, metric):
    bad = X.copy()
    bad[1717, 3] = np.nan
    sae = atoms.SparseAutoencoder(**SAE).fit(X)
    for make in (lazy, unknown):
        for work in (
            lambda: atoms.AtomicInnerProduct().fit(make(bad)),
            lambda: atoms.AtomicInnerProduct(centered=True).fit(make(bad)),
            lambda: theory.explained_variance(make(bad), make(X)),
            lambda: theory.explained_variance(make(X), make(bad)),
            lambda: sae.score(make(bad)),
        ):
            with pytest.raises(ValueError, match="row 1717[; ]"):
                work()
        # of lazy ones nobody can count the rows before
        where = "row 1717" if make is lazy else "row 217 of block 4"
        for rows in (metric.whiten(make(bad)), sae.transform(make(bad))):
            with pytest.raises(ValueError, match=where):
                rows.compute()
    assert not hasattr(atoms.AtomicInnerProduct(), "n_features_in_")


def test_rows_by_number_name_the_block_too(X):
    """Locally as well: rows are read 8,192 at a time, and were numbered from there."""
    many = np.zeros((9000, D), np.float32)
    many[8500] = np.nan
    sae = atoms.SparseAutoencoder(**SAE, activation="topk").fit(X)
    with pytest.raises(ValueError, match="row 8500"):
        sae.transform(many)
    with pytest.raises(ValueError, match="row 8500"):
        atoms.AtomicInnerProduct().fit(X).whiten([many[:4000], many[4000:]])


def lies(block):
    return block[:3]


WRONG = {
    "three": (lambda X: da.zeros((3, 4, 5)), r"3 dimension\(s\).*X.reshape\(-1, X.shape\[-1\]\)"),
    "complex": (lambda X: lazy(X.astype(complex)), "expected numbers, got dtype complex128"),
    "no columns": (lambda X: da.zeros((5, 0)), "at least 1"),
    "no rows": (lambda X: lazy(X)[:0], r"0 sample\(s\)"),
    "no rows, as it turns out": (lambda X: unknown(X)[unknown(X)[:, 0] > np.inf], r"0 sample\(s\)"),
    "empty bag": (lambda X: db.from_sequence([X[:0]], npartitions=1), "no table that has rows"),
    "others than announced": (
        lambda X: da.from_array(X, chunks=(700, -1)).map_blocks(lies, dtype=X.dtype),
        r"block 0 has the shape \(3, 16\), not 700 rows of 16 columns",
    ),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_wrong_arrays(case, X):
    make, message = case
    one = atoms.AtomicInnerProduct()
    with pytest.raises(ValueError, match=message):
        one.fit(make(X))
    assert not hasattr(one, "n_features_in_")


def test_what_needs_rows_by_number_asks_for_the_sizes(X):
    with pytest.raises(ValueError, match=r"of unknown size.*X.compute_chunk_sizes\(\) first"):
        atoms.SparseAutoencoder(**SAE).fit(unknown(X))
    atoms.SparseAutoencoder(**SAE).fit(unknown(X).compute_chunk_sizes())


# ------------------------------------------------------------------ bags and stores


def test_bags_of_tables(X, metric):
    parts = blocks_of(X)
    bag = db.from_sequence([parts[0], parts[1], X[:0], *parts[2:]], npartitions=3)
    ours = atoms.AtomicInnerProduct(num_threads=1).fit(bag)
    cut = [
        np.concatenate([p for p in part if len(p)]) for part in bag.to_delayed() for part in [part.compute()]
    ]
    np.testing.assert_array_equal(
        ours.second_moment_, atoms.AtomicInnerProduct(num_threads=1).fit(cut).second_moment_
    )
    same(metric.whiten(bag), metric.whiten(X))


# ------------------------------------------------------------------ recovery and theory

METHODS = {
    "omp": {"n_nonzero": 3}, "ols": {"n_nonzero": 3}, "nn_omp": {"n_nonzero": 3}, "lasso": {"alpha": 3.0},
    "matching_pursuit": {"n_nonzero": 3}, "gradient_pursuit": {}, "cosamp": {"n_nonzero": 3}, "iht": {"n_nonzero": 3},
    "basis_pursuit": {}, "basis_pursuit_denoise": {"sigma": 2.0}, "threshold": {"tau": 1.0, "signed": True},
}  # fmt: skip


@WITH_BLIS
@pytest.mark.filterwarnings("ignore::atoms.recovery.RecoveryWarning")
@pytest.mark.parametrize("method", METHODS)
def test_recovery(X, metric, method):
    n = 1100 if method in ("omp", "threshold") else 200
    options = {**METHODS[method], "num_threads": 1, "return_info": True, "metric": metric}
    want, about = recovery.code(X[:n], ATOMS, method, **options)
    for rows in (lazy(X)[:n], unknown(X[:n]) if n < 500 else lazy(X)[:n]):
        codes, info = recovery.code(rows, ATOMS, method, **options)
        same(codes, want)
        assert "dask" in repr(info) and info.counts() == about.counts() and info._table() == about._table()
        for field in dataclasses.fields(info):
            if getattr(about, field.name) is not None:
                same(getattr(info, field.name), getattr(about, field.name))
    same(recovery.code(lazy(X)[:n], ATOMS, method, **{**options, "return_info": False}), want)


def test_blocks_are_coded_as_a_part_of_all():
    """How OMP screens depends on how many signals there are: of all, not of a block."""
    rng = RNG(2)
    D, X = (
        rng.standard_normal((1100, 64)).astype(np.float32),
        rng.standard_normal((150, 64)).astype(np.float32),
    )
    for k in (4, 20):
        same(recovery.omp(da.from_array(X, chunks=(40, 64)), D, k), recovery.omp(X, D, k))
    ready = recovery.Dictionary(D)
    same(recovery.omp(da.from_array(X, chunks=(40, 64)), ready, 4), recovery.omp(X, D, 4))
    ours, theirs = recovery.lasso_path(da.from_array(X[:40], chunks=(30, 64)), D[:90], n_alphas=3), recovery.lasso_path(X[:40], D[:90], n_alphas=3)  # fmt: skip
    np.testing.assert_array_equal(ours[0], theirs[0])
    for a, b in zip(ours[1], theirs[1], strict=True):
        same(a, b)


@WITH_BLIS
def test_what_lies_beside_the_signals(X):
    start = recovery.omp(X, ATOMS, 2)
    want = recovery.omp(X, ATOMS, 3, support=start)
    same(recovery.omp(lazy(X), ATOMS, 3, support=start), want)
    same(recovery.omp(lazy(X), ATOMS, 3, support=recovery.omp(da.from_array(X), ATOMS, 2)), want)
    same(recovery.omp(unknown(X), ATOMS, 3, support=recovery.omp(unknown(X), ATOMS, 2)), want)
    tau = np.linspace(0, 2, N)
    same(recovery.code(lazy(X), ATOMS, "threshold", tau=tau), recovery.code(X, ATOMS, "threshold", tau=tau))
    for rows, support, message in (
        (unknown(X), start, r"support: the blocks of X are of unknown size.*X.compute_chunk_sizes\(\)"),
        (lazy(X), start[:7], "support: expected 2100 rows, as X has, got 7"),
        (unknown(X), da.from_array(X), "support: expected 5 blocks, as X has, got 1"),
        (lazy(X[:, :5]), None, "X: expected 16 columns, as the dictionary has, got 5"),
    ):
        with pytest.raises(ValueError, match=message):
            recovery.omp(rows, ATOMS, 3, support=support)


def test_signals_that_cannot_be_coded_are_counted_by_number(X):
    bad = X.copy()
    bad[1717, 3] = np.nan
    codes, info = recovery.omp(lazy(bad), ATOMS, 2, return_info=True)
    with pytest.warns(recovery.RecoveryWarning, match="of 600 signals 1 contain NaN .* first in row 1717"):
        assert info.counts() == {"CONVERGED": N - 1, "NONFINITE": 1}


@WITH_BLIS
@pytest.mark.parametrize("convention", theory.CONVENTIONS)
def test_explained_variance(X, metric, convention):
    codes = recovery.omp(X, ATOMS, 3)
    X_hat = (codes @ ATOMS).astype(np.float32)
    want = theory.explained_variance(X, X_hat, convention, metric)
    rebuilt = lazy(X_hat).rechunk((700, 16))
    for rows, other in ((lazy(X), X_hat), (lazy(X), rebuilt), (unknown(X), unknown(X_hat))):
        got = theory.explained_variance(rows, other, convention, metric)
        assert got == want
        np.testing.assert_array_equal(got.squared_error, want.squared_error)
    half = theory.explained_variance(lazy(X), lambda block: 0.5 * block, convention, metric)
    assert half == theory.explained_variance(X, 0.5 * X, convention, metric)


def test_explained_variance_says_what_it_takes(X):
    with pytest.raises(
        TypeError, match="beside a dask array expected another, an array in memory, or a function"
    ):
        theory.explained_variance(lazy(X), iter([X]))
    with pytest.raises(ValueError, match="X_hat: expected 16 columns"):
        theory.explained_variance(lazy(X), X[:, :5])
    with pytest.raises(ValueError, match="X_hat: expected 2100 rows, as X has, got 5"):
        theory.explained_variance(lazy(X), X[:5])


@LAZY
def test_certificates_and_stability_of_lazy_codes(X, make):
    codes, far = recovery.omp(X, ATOMS, 3), recovery.omp(make(X), ATOMS, 3)
    ours, theirs = theory.certify(ATOMS, far), theory.certify(ATOMS, codes)
    for field in dataclasses.fields(ours):
        np.testing.assert_array_equal(getattr(ours, field.name), getattr(theirs, field.name))
    assert theory.stability(ATOMS, far) == theory.stability(ATOMS, codes)
    ours, theirs = (theory.stability_interval(ATOMS, z, n_boot=10) for z in (far, codes))
    assert ours == theirs


# ------------------------------------------------------------------ a cluster of processes


@contextlib.contextmanager
def cluster_of(n):
    """A client of so many workers, each a process of its own.

    At any free port: Dask warns where its own, 8787, belongs to another test.
    """
    with (
        warnings.catch_warnings(),
        distributed.LocalCluster(
            n_workers=n,
            threads_per_worker=1,
            processes=True,
            dashboard_address="127.0.0.1:0",
            silence_logs=50,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        warnings.simplefilter("ignore", ResourceWarning)
        yield client


@pytest.fixture(scope="module")
def client():
    with cluster_of(2) as client:
        yield client


def test_transcoders_with_a_skip_connection(X):
    Y = np.tanh(X @ X[:7].T)
    one = atoms.SparseAutoencoder(**SAE, skip_connection=True).fit(X, target=Y)
    assert one.fit(lazy(X), target=lazy(Y)).W_dec.shape[1] == 7
    for make in (lazy, unknown):
        same(one.reconstruct(make(X)), one.reconstruct(X))
    assert one.score(lazy(X), lazy(Y)) == one.score(X, Y)


@pytest.mark.slow
def test_on_a_cluster(client, X, metric):
    """Messages between processes leave arrays where they lay in them, not where the core wants them."""
    sae = atoms.SparseAutoencoder(**SAE, metric=metric).fit(X)
    ours = atoms.AtomicInnerProduct(centered=True, num_threads=1).fit(lazy(X))
    np.testing.assert_array_equal(
        ours.whitener_, atoms.AtomicInnerProduct(centered=True).fit(blocks_of(X)).whitener_
    )
    rows, codes = unknown(X), sae.transform(unknown(X))
    same(codes, sae.transform(X))
    same(sae.reconstruct(rows), sae.reconstruct(X))
    assert sae.score(rows) == sae.score(X)
    own = client.submit(sae.transform, X).result()  # a task of the user's
    assert (own != sae.transform(X)).nnz == 0
    assert theory.stability(sae, codes, metric) == theory.stability(sae, sae.transform(X), metric)
    heavy = X.copy()
    heavy[1717, 3] = np.nan
    with pytest.warns(recovery.RecoveryWarning, match="first in row 1717"):
        got = recovery.omp(lazy(heavy), ATOMS, 2, metric=metric).compute()
        end = time.monotonic() + 10  # the warning comes by a way of its own
        while time.monotonic() < end and not client.get_events("warn"):
            time.sleep(0.05)
        time.sleep(0.3)
    with pytest.warns(recovery.RecoveryWarning):
        same_codes = recovery.omp(heavy, ATOMS, 2, metric=metric)
    assert (got != same_codes).nnz == 0


@pytest.fixture(scope="module")
def torch():
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as workers have
    yield torch
    torch.set_num_threads(before)


def language_model():
    import torch

    torch.manual_seed(0)
    layers = torch.nn.Embedding(20, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 20)
    return torch.nn.Sequential(*layers)


TOKENS = RNG(3).integers(0, 20, (60, 16))


@pytest.mark.parametrize("model", [language_model, lambda: language_model()], ids=["model", "function"])
def test_evaluate(torch, model):
    rows = atoms.activations.capture(language_model(), TOKENS, "1", verbose=False)["1"]
    metric = atoms.AtomicInnerProduct().fit(rows)
    named = {
        "pca": atoms.controls.PCADictionary().fit(rows),
        "sae": atoms.SparseAutoencoder(24, target_l0=3, max_steps=30, metric=metric, verbose=False).fit(rows),
    }
    options = {"batch_tokens": 32, "verbose": False, "conventions": ("centered", "uncentered")}
    mask = (np.arange(16) < RNG(4).integers(5, 17, 60)[:, None]).astype(int)
    model = language_model() if model is language_model else language_model
    for here in ({}, {"attention_mask": mask}):
        want = atoms.evaluate(language_model(), TOKENS, named, "1", **options, **here).to_dict()
        cut = {name: da.from_array(array, chunks=((8, 4, 0, 48), -1)) for name, array in here.items()}
        far = da.from_array(TOKENS, chunks=((8, 4, 0, 48), 7))
        got = atoms.evaluate(model, far, named, "1", **options, **cut).to_dict()
        assert repr(got) == repr(want)
    with pytest.raises(ValueError, match="expected one layer at one site, got 2"):
        atoms.evaluate(model, far, named, ["1", "0"], **options)


def same_stores(a, b):
    ours, theirs = a.manifest, b.manifest
    assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}  # with SHA-256 of each file
    a.verify()


def test_stores_are_read_by_whoever_has_a_block(torch, tmp_path):
    store = atoms.activations.capture(
        language_model(), TOKENS, "1", store=tmp_path, batch_tokens=64, shard_mb=0.005, verbose=False
    )
    rows = da.from_array(store["1"], chunks=(200, -1))
    parts = np.split(np.asarray(store["1"]), range(200, len(store), 200))
    ours, theirs = (atoms.AtomicInnerProduct().fit(x) for x in (rows, parts))
    np.testing.assert_array_equal(ours.whitener_, theirs.whitener_)
    bag = db.from_sequence([store["1"]] * 2, npartitions=2)
    both = atoms.AtomicInnerProduct().fit([np.asarray(store["1"])] * 2)
    np.testing.assert_array_equal(atoms.AtomicInnerProduct().fit(bag).whitener_, both.whitener_)


class Slow:
    """A function that makes a model which takes its time, and says when it is at work."""

    def __init__(self, folder, seconds):
        self.folder, self.seconds = folder, seconds

    def __call__(self, model, ids, mask):
        time.sleep(self.seconds)
        (self.folder / f"{os.getpid()}-{time.monotonic_ns()}").touch()
        return model(ids)


def kill_one(client, folder, count):
    """SIGKILL for a worker once so many calls of a `Slow` have been made; waits for that in a thread."""
    client.wait_for_workers(2)
    pids = list(client.run(os.getpid).values())
    assert len(set(pids)) == 2
    killed = []

    def wait():
        while len(list(folder.iterdir())) < count:
            time.sleep(0.01)
        killed.append(os.kill(pids[0], signal.SIGKILL))

    thread = threading.Thread(target=wait)
    thread.start()
    return thread, killed


def test_a_model_in_use_is_handed_on_without_its_hooks(torch):
    far = FarPass(language_model(), TOKENS, (["0", "1"], "residual", 64, False, None))
    here = pickle.loads(pickle.dumps(far))  # as it comes to a worker
    with here.whole().hooked():
        there = pickle.loads(pickle.dumps(here))
        assert any(module._forward_hooks for module in here.model().modules())
    assert not any(module._forward_hooks for module in there.model().modules())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the cluster whose worker is killed
def test_capture_by_workers_one_of_which_is_killed(torch, client, tmp_path):
    calls = tmp_path / "calls"
    calls.mkdir()
    options = {"batch_tokens": 64, "shard_mb": 0.005, "verbose": False}
    slow = Slow(calls, 0.05)
    want = atoms.activations.capture(
        language_model(),
        TOKENS,
        ["0", "1"],
        store=tmp_path / "here",
        forward=Slow(tmp_path / "calls", 0),
        **options,
    )
    assert len(want.manifest["shards"]) > 5
    count = len(list(calls.iterdir()))
    thread, killed = kill_one(client, calls, count + 8)
    got = atoms.activations.capture(
        language_model, TOKENS, ["0", "1"], store=tmp_path / "there", forward=slow, client=client, **options
    )
    thread.join()
    assert killed
    same_stores(got, want)
    # and where the client was killed: shards that the manifest does not list are written again
    atoms.activations.ActivationStore.discard(tmp_path / "there", 3)
    again = atoms.activations.capture(
        language_model(), TOKENS, ["0", "1"], store=tmp_path / "there", forward=slow, client=client, **options
    )
    same_stores(again, want)
    with pytest.raises(ValueError, match="client: workers write into a store"):
        atoms.activations.capture(language_model, TOKENS, "1", client=client)


def slowly(block, folder):
    time.sleep(0.05)
    (folder / f"{time.monotonic_ns()}").touch()
    return block


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_sums_and_rows_outlive_a_worker(client, X, metric, tmp_path):
    rows = da.from_array(np.tile(X, (10, 1)), chunks=(500, -1)).map_blocks(slowly, tmp_path, dtype=X.dtype)
    parts = np.split(np.tile(X, (10, 1)), range(500, 10 * N, 500))
    thread, killed = kill_one(client, tmp_path, 10)
    ours = atoms.AtomicInnerProduct(num_threads=1).fit(rows)
    thread.join()
    np.testing.assert_array_equal(
        ours.whitener_, atoms.AtomicInnerProduct(num_threads=1).fit(parts).whitener_
    )
    client.wait_for_workers(2)
    thread, again = kill_one(client, tmp_path, len(list(tmp_path.iterdir())) + 10)
    same(metric.whiten(rows), metric.whiten(np.tile(X, (10, 1))))
    thread.join()
    assert killed and again


def progress(sae, record, folder):
    time.sleep(0.02)
    (folder / f"{time.monotonic_ns()}").touch()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_autoencoders_as_tasks(client, X, tmp_path):
    """Seeds and widths by `fit_many` in tasks, which go on from their checkpoints where another worker has begun."""
    calls = tmp_path / "calls"
    calls.mkdir()
    sets = [
        [atoms.SparseAutoencoder(**{**SAE, "d_sae": d, "max_steps": 60}, random_state=s) for s in (0, 1)]
        for d in (16, 24)
    ]
    want = [[one.W_dec for one in atoms.fit_many([*map(copy.copy, some)], X)] for some in sets]
    thread, killed = kill_one(client, calls, 30)
    futures = [
        client.submit(
            atoms.fit_many, some, X, callback=functools.partial(progress, folder=calls),
            checkpoints=[tmp_path / f"{i}-{j}" for j in range(2)], checkpoint_steps=5,
        )
        for i, some in enumerate(sets)
    ]  # fmt: skip
    for some, theirs in zip(client.gather(futures), want, strict=True):
        for one, W in zip(some, theirs, strict=True):
            np.testing.assert_array_equal(one.W_dec, W)
    thread.join()
    assert killed
