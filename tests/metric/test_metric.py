"""The metric's core against its twins, and the atomic inner product against its definition."""

import os
import pickle
import signal
import threading
import time
import warnings
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from support import run

import atoms
from atoms import AtomicInnerProduct, _core
from atoms import _reference as reference
from atoms._config import context
from atoms._estimator import NotFittedError

SIZES = [1, 15, 17, 33, 97]
DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]


def moments(ctx, X, shift=None):
    d = X.shape[1]
    total, second = np.full(d, np.nan), np.full((d, d), np.nan)
    _core.moments(ctx, X, shift, total, second)
    return total, second


def product(ctx, X, center, W, offset, dtype=np.float32):
    out = np.full((X.shape[0], W.shape[1]), np.nan, dtype)
    _core.product(ctx, X, center, W, offset, out)
    return out


def angles(ctx, X, first=None, second=None, bins=36):
    counts, sums = np.zeros(bins, np.int64), np.zeros(3)
    _core.angles(ctx, X, first, second, counts, sums)
    return counts, sums


def strided(X):
    """The same numbers: transposed memory, every other row and column, reversed rows."""
    wide = np.zeros((2 * X.shape[0], 3 * X.shape[1]), X.dtype)
    wide[::2, ::3] = X
    return [np.asfortranarray(X), wide[::2, ::3], X[::-1].copy()[::-1]]


def nasty(rng, n, d, dtype=np.float32):
    """Like activations: condition 1e6, mean direction 80% of the trace, outlier coordinates."""
    Q = np.linalg.qr(rng.standard_normal((d, d)))[0]
    X = rng.standard_normal((n, d)) * np.logspace(0, -3, d) @ Q.T
    u = Q @ rng.standard_normal(d)
    X += u / np.linalg.norm(u) * np.sqrt(4 * (X**2).sum(axis=1).mean()) * rng.uniform(0.9, 1.1, (n, 1))
    X[:, rng.choice(d, 3, replace=False)] *= 1000
    return X.astype(dtype)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


# ------------------------------------------------------------------------- moments


@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("n", SIZES)
def test_moments_agree_with_long_double(n, d, isa, rng):
    X = rng.standard_normal((n, d)) + 0.5
    shift = rng.standard_normal(d)
    for s in (None, shift):
        total, second = moments(context(2), X, s)
        exact_total, exact = reference.moments(X, s)
        size = reference.moments(np.abs(X) + (0 if s is None else np.abs(s)))
        assert (np.abs(total - exact_total) <= 1e-15 * n * size[0] + 1e-300).all()
        assert (np.abs(second - exact) <= 1e-14 * size[1]).all()
        assert (second == second.T).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_moments_of_any_type_and_strides(dtype, isa, rng):
    X = rng.standard_normal((300, 41)).astype(dtype)
    _, exact = reference.moments(X.astype(np.float64))
    plain = moments(context(1), X)
    np.testing.assert_allclose(plain[1], exact.astype(np.float64), rtol=1e-12, atol=1e-12)
    for Y in strided(X):
        for a, b in zip(moments(context(1), Y), plain):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("shape", [(2500, 50), (600, 601), (700, 7)])
def test_moments_do_not_depend_on_threads(shape, isa, rng):
    X = rng.standard_normal(shape).astype(np.float32)
    one = moments(context(1), X)
    for threads in (2, 3, 5):
        for a, b in zip(moments(context(threads), X), one):
            np.testing.assert_array_equal(a, b)


def test_moments_to_1e_12_of_long_double(rng):
    X = rng.standard_normal((40_000, 12)) + 1
    total, second = moments(context(2), X)
    exact_total, exact = reference.moments(X)
    assert np.abs(second / exact - 1).max() < 1e-13
    assert np.abs(total / exact_total - 1).max() < 1e-13


def test_moments_of_activations_to_1e_12_in_each_coordinate(rng):
    X = nasty(rng, 3000, 60)
    _, second = moments(context(2), X)
    _, exact = reference.moments(X)
    scale = np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
    assert (np.abs(second - exact) / scale).max() < 1e-14


def test_moments_reject_what_is_not_finite(isa):
    for bad in (np.nan, np.inf, -np.inf):
        X = np.ones((900, 30), np.float32)
        X[777, 29] = bad
        with pytest.raises(ValueError, match="NaN or infinity"):
            moments(context(2), X)


def test_core_checks_its_arguments():
    ctx, X = context(1), np.ones((5, 3))
    total, second = np.empty(3), np.empty((3, 3))
    for wrong in (
        (X, None, np.empty(4), second),
        (X, None, total, np.empty((3, 4))),
        (X, np.zeros(2), total, second),
        (X, total, total, second),
        (X, None, second[0], second),
        (X[0], None, total, second),
    ):
        with pytest.raises(ValueError):
            _core.moments(ctx, *wrong)
    with pytest.raises(TypeError):
        _core.moments(ctx, X, None, np.zeros(3, np.float32), second)
    with pytest.raises(TypeError):
        _core.moments(None, X, None, total, second)
    W, out = np.eye(3), np.empty((5, 3), np.float32)
    for wrong in (
        (X, np.zeros(2), W, None, out),
        (X, None, W[:2], None, out),
        (X, None, W, np.zeros(2), out),
        (X, None, W, None, out[:4]),
        (out, None, W, None, out),
    ):
        with pytest.raises(ValueError):
            _core.product(ctx, *wrong)
    counts, sums = np.zeros(4, np.int64), np.zeros(3)
    pair = np.array([5]), np.array([0])
    for wrong in (
        (X, *pair, counts, sums),
        (X, None, None, counts[:0], sums),
        (X, None, None, counts, sums[:2]),
        (X, np.array([0]), np.array([0, 1]), counts, sums),
    ):
        with pytest.raises(ValueError):
            _core.angles(ctx, *wrong)


# ------------------------------------------------------------------------ products


@pytest.mark.parametrize("m", SIZES)
@pytest.mark.parametrize("d", SIZES)
def test_product_is_rounded_once(d, m, isa, rng):
    for n in (1, 17, 97):
        X = (rng.standard_normal((n, d)) * 100).astype(np.float32)
        W, center, offset = rng.standard_normal((d, m)), rng.standard_normal(d), rng.standard_normal(m)
        for args in ((None, None), (center, offset)):
            out = product(context(2), X, args[0], W, args[1])
            wide = product(context(2), X, args[0], W, args[1], np.float64)
            np.testing.assert_array_equal(wide.astype(np.float32), out)
            exact = reference.product(X, args[0], W, args[1], np.float64)
            np.testing.assert_allclose(wide, exact, rtol=1e-13, atol=1e-12 * d)
            np.testing.assert_allclose(
                out, reference.product(X, args[0], W, args[1]), rtol=1.2e-7, atol=1e-10 * d
            )


@pytest.mark.parametrize("out", [np.float32, np.float64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_product_rows_stand_alone(dtype, out, isa, rng):
    X = rng.standard_normal((150, 37)).astype(dtype)
    W = rng.standard_normal((37, 29))
    whole = product(context(3), X, None, W, None, out)
    for Y in strided(X):
        np.testing.assert_array_equal(product(context(1), Y, None, W, None, out), whole)
    for i in (0, 63, 64, 149):
        np.testing.assert_array_equal(product(context(2), X[i : i + 1], None, W, None, out)[0], whole[i])


# -------------------------------------------------------------------------- angles


@pytest.mark.parametrize("n, d", [(1, 1), (2, 1), (15, 17), (97, 33), (300, 5), (600, 3)])
def test_angles_agree_with_their_twin(n, d, contexts, rng):
    X = rng.standard_normal((n, d)) + 0.3
    X[n // 2] = 0
    X[0] *= 1e-300
    X[n - 1] *= 1e250 if n > 1 else 1
    exact = reference.angles(X)
    pairs = np.triu_indices(n, 1)
    results = {}
    for ctx in contexts:
        counts, sums = angles(ctx, X)
        assert sums[0] == counts.sum() == len(exact)
        assert abs(sums[1] - (exact - 90).sum()) <= 2e-5 * len(exact)
        assert abs(sums[2] - ((exact - 90) ** 2).sum()) <= 2e-3 * len(exact)
        moved = np.abs(np.cumsum(counts) - np.cumsum(np.histogram(exact, 36, (0, 180))[0])).max()
        assert moved <= 1 + 1e-4 * len(exact)
        key = ctx.isa, ctx.blas
        for a, b in zip(results.setdefault(key, (counts, sums)), (counts, sums)):
            np.testing.assert_array_equal(a, b)
        counts, sums = angles(ctx, X, *pairs)
        np.testing.assert_array_equal(counts, np.histogram(exact, 36, (0, 180))[0])
        np.testing.assert_allclose(sums[1:], [(exact - 90).sum(), ((exact - 90) ** 2).sum()], rtol=1e-9)


def test_angles_of_parallel_and_opposite_vectors(isa):
    X = np.array([[1.0, 2, 3], [2, 4, 6], [-3, -6, -9]])
    counts, sums = angles(context(1), X, bins=2)
    assert counts.tolist() == [1, 2]
    assert sums[1] + 3 * 90 == pytest.approx(360, abs=0.1)
    exact = angles(context(1), X, np.array([0, 0]), np.array([1, 2]))[1]
    assert exact.tolist() == [2, pytest.approx(0, abs=1e-12), 2 * 90.0**2]


def test_angle_histogram(rng):
    X = rng.standard_normal((400, 6)) + 1
    aip = AtomicInnerProduct().fit(X)
    exact = reference.angles(X @ aip.whitener_)
    found = aip.angles(X, bins=60)
    assert found.mean == pytest.approx(exact.mean(), abs=1e-4)
    assert found.std == pytest.approx(exact.std(), abs=1e-4)
    assert found.counts.sum() == found.n_pairs == 400 * 399 // 2 and found.n_skipped == 0
    np.testing.assert_allclose(found.bin_edges, np.linspace(0, 180, 61))
    assert found.quantile(0.5) == pytest.approx(np.median(exact), abs=0.5)
    flat = aip.angles(X, geometry="euclidean")
    assert flat.mean == pytest.approx(reference.angles(X).mean(), abs=1e-4) and flat.geometry == "euclidean"
    assert flat == flat and AtomicInnerProduct().angles(X, geometry="euclidean").mean == flat.mean
    some = aip.angles(X, pairs=20_000, random_state=0)
    assert some.n_pairs == 20_000
    assert abs(some.mean - exact.mean()) < 5 * exact.std() / np.sqrt(20_000)
    assert aip.angles(X, pairs=20_000, random_state=0).mean == some.mean
    assert aip.angles(X, pairs=20_000, random_state=np.random.RandomState(1)).mean != some.mean
    assert aip.angles(X, pairs=10**9).mean == aip.angles(X).mean
    X[3] = 0
    assert aip.angles(X, geometry="euclidean").n_skipped == 399
    assert np.isnan(aip.angles(X[:1]).mean)
    for wrong in ({"geometry": "hyperbolic"}, {"bins": 0}, {"pairs": 0}, {"pairs": 1.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            aip.angles(X, **wrong)
    X[5, 2] = np.nan
    for kind in ({}, {"pairs": 5000, "random_state": 0}, {"geometry": "euclidean"}):
        with pytest.raises(ValueError, match="row 5;"):
            aip.angles(X, **kind)


# ------------------------------------------------------------------- inner product


@pytest.mark.parametrize("centered", [False, True])
def test_the_definition(centered, rng):
    X = rng.standard_normal((500, 9)) @ rng.standard_normal((9, 9)) + 2
    aip = AtomicInnerProduct(centered=centered).fit(X)
    Y = X - X.mean(axis=0) if centered else X
    C = Y.T @ Y / len(X)
    np.testing.assert_allclose(aip.mean_, X.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(aip.second_moment_, C, rtol=1e-11)
    np.testing.assert_allclose(aip.metric_ @ C, np.eye(9), atol=1e-10)
    np.testing.assert_allclose(aip.whitener_ @ aip.whitener_, aip.metric_, rtol=1e-10)
    np.testing.assert_allclose(aip.whitener_ @ aip.unwhitener_, np.eye(9), atol=1e-11)
    np.testing.assert_allclose(aip.whitener_, reference.whitener(X, centered), rtol=1e-8, atol=1e-10)
    for name in ("metric_", "whitener_", "unwhitener_", "second_moment_"):
        matrix = getattr(aip, name)
        assert (matrix == matrix.T).all() and matrix.dtype == np.float64
    values = np.linalg.eigvalsh(C)[::-1]
    np.testing.assert_allclose(aip.eigenvalues_, values, rtol=1e-10)
    assert aip.condition_number_ == pytest.approx(values[0] / values[-1])
    share = values / values.sum()
    assert aip.effective_rank_ == pytest.approx(np.exp(-(share * np.log(share)).sum()))
    assert aip.shrinkage_ == 0 and aip.n_samples_seen_ == 500 and aip.n_features_in_ == 9

    Z = aip.whiten(X)
    assert Z.dtype == np.float32
    np.testing.assert_allclose(Z, Y @ aip.whitener_, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(aip.unwhiten(Z), X, rtol=1e-5, atol=1e-5)
    out = np.empty_like(Z)
    assert aip.whiten(X, out=out) is out and (out == Z).all()
    np.testing.assert_array_equal(aip.transform(X), Z)
    np.testing.assert_array_equal(aip.inverse_transform(Z), aip.unwhiten(Z))
    np.testing.assert_array_equal(AtomicInnerProduct(centered).fit_transform(X), Z)

    U, V = rng.standard_normal((4, 9)), rng.standard_normal((3, 9))
    np.testing.assert_allclose(aip.whiten_directions(U), U @ aip.whitener_, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(aip.inner(U, V), U @ aip.metric_ @ V.T, rtol=1e-9, atol=1e-11)
    norms = np.sqrt(np.diag(U @ aip.metric_ @ U.T))
    np.testing.assert_allclose(aip.norm(U), norms)
    np.testing.assert_allclose(aip.cosine(U, U), aip.inner(U, U) / np.outer(norms, norms))
    assert aip.inner(U[0], V[1]) == pytest.approx(aip.inner(U, V)[0, 1])
    assert aip.inner(U[0], V).shape == (3,) and aip.inner(U, V[0]).shape == (4,)
    assert aip.norm(U[2]) == pytest.approx(norms[2]) and aip.cosine(U[1], U[1]) == pytest.approx(1)
    assert (aip.cosine(U, np.zeros(9)) == 0).all()


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(20, 60),
    d=st.integers(1, 6),
    cuts=st.lists(st.integers(1, 59), max_size=4),
    centered=st.booleans(),
    offset=st.sampled_from([0.0, 1.0, 1e6]),
)
def test_streams_and_parts_give_the_same(seed, n, d, cuts, centered, offset):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)) + offset
    cuts = [0, *sorted({c for c in cuts if c < n}), n]
    parts = [X[a:b] for a, b in pairwise(cuts)]
    kwargs = {"centered": centered, "shrinkage": "ledoit_wolf"}
    whole = AtomicInnerProduct(**kwargs).fit(X)
    stream = AtomicInnerProduct(**kwargs)
    merged = AtomicInnerProduct(**kwargs)
    for part in parts:
        stream.partial_fit(part)
        merged.merge(AtomicInnerProduct(**kwargs).partial_fit(part))
    size = np.abs(whole.second_moment_).max() + (1e-6 * offset**2 if centered else 0)
    for other in (stream, merged):
        assert other.n_samples_seen_ == n
        np.testing.assert_allclose(other.mean_, whole.mean_, rtol=1e-12)
        np.testing.assert_allclose(other.second_moment_, whole.second_moment_, atol=1e-10 * size)
        assert other.shrinkage_ == pytest.approx(whole.shrinkage_, rel=1e-3, abs=1e-7)


def test_a_common_offset_costs_no_digits(rng):
    X = rng.standard_normal((3000, 5)) @ rng.standard_normal((5, 5))
    far = AtomicInnerProduct(centered=True).fit(X + 2.0**30)
    exact = np.cov((X + 2.0**30 - 2.0**30).T, bias=True)
    np.testing.assert_allclose(far.second_moment_, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("centered", [False, True])
def test_whitening_is_right_for_real_activations(centered, rng):
    X = nasty(rng, 6000, 96)
    aip = AtomicInnerProduct(centered=centered).fit(X)
    if not centered:
        assert aip.eigenvalues_[0] > 0.5 * aip.eigenvalues_.sum() and aip.condition_number_ > 1e6
    Y = X.astype(np.float64)
    exact = (Y - aip.mean_ if centered else Y) @ aip.whitener_
    Z = aip.whiten(X)
    assert np.abs(Z - exact).max() / np.abs(exact).max() < 2e-7
    assert (np.linalg.norm(Z - exact, axis=1) / np.linalg.norm(exact, axis=1)).max() < 2e-7
    np.testing.assert_allclose(Z.T.astype(np.float64) @ Z / len(Z), np.eye(96), atol=1e-4)
    back = aip.unwhiten(Z)
    assert (np.linalg.norm(back - X, axis=1) / np.linalg.norm(X, axis=1)).max() < 1e-6


@pytest.mark.parametrize("dtype", DTYPES + [np.int32, np.bool_])
def test_input_of_any_type(dtype, rng, tmp_path):
    X = (rng.standard_normal((200, 7)) * 3).astype(dtype)
    aip = AtomicInnerProduct(shrinkage=0.01).fit(X)
    same = AtomicInnerProduct(shrinkage=0.01).fit(X.astype(np.float64))
    np.testing.assert_allclose(aip.metric_, same.metric_, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(aip.whiten(X), same.whiten(X.astype(np.float64)), rtol=1e-5, atol=1e-6)
    mapped = np.memmap(tmp_path / "x", X.dtype, "w+", shape=X.shape)
    mapped[:] = X
    mapped.flush()
    readonly = np.memmap(tmp_path / "x", X.dtype, "r", shape=X.shape)
    np.testing.assert_array_equal(AtomicInnerProduct(shrinkage=0.01).fit(readonly).metric_, aip.metric_)
    assert AtomicInnerProduct(shrinkage=0.01).fit(X.tolist()).n_samples_seen_ == 200


def test_threads_change_nothing(rng):
    X = rng.standard_normal((800, 40)).astype(np.float32)
    one, three = (AtomicInnerProduct(num_threads=t).fit(X) for t in (1, 3))
    np.testing.assert_array_equal(one.whitener_, three.whitener_)
    np.testing.assert_array_equal(one.whiten(X), three.whiten(X))
    assert one.angles(X).mean == three.angles(X).mean


def test_calls_from_several_threads(rng):
    X = rng.standard_normal((700, 30))
    aip = AtomicInnerProduct(num_threads=2).fit(X)
    want, found = aip.whiten(X), {}
    workers = [
        threading.Thread(
            target=lambda k=k: found.update({k: (aip.whiten(X), AtomicInnerProduct().fit(X).mean_)})
        )
        for k in range(4)
    ]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    for Z, mean in found.values():
        np.testing.assert_array_equal(Z, want)
        np.testing.assert_array_equal(mean, aip.mean_)


def test_ctrl_c_stops_within_half_a_second():
    X = np.ones((60_000, 512), np.float32)
    aip = AtomicInnerProduct(num_threads=1)
    timer = threading.Timer(0.15, os.kill, (os.getpid(), signal.SIGINT))
    start = time.perf_counter()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        while True:
            aip.partial_fit(X)
    assert time.perf_counter() - start < 3  # the machine may be shared


# -------------------------------------------------------------------------- errors


def test_too_few_samples_name_n_d_and_the_remedy(rng):
    X = rng.standard_normal((8, 8))
    for centered, n in ((False, 7), (True, 8)):
        with pytest.raises(ValueError, match=rf"n={n} .* d=8 .*at least {8 + centered}.*shrinkage='oas'"):
            AtomicInnerProduct(centered).fit(X[:n])
    assert AtomicInnerProduct().fit(X).n_samples_seen_ == 8
    small = AtomicInnerProduct().partial_fit(X[:3])
    with pytest.raises(ValueError, match="n=3"):
        small.whiten(X)
    assert small.partial_fit(X[3:]).whiten(X).shape == (8, 8)
    for shrinkage in (0.1, "oas", "ledoit_wolf"):
        assert np.isfinite(AtomicInnerProduct(shrinkage=shrinkage).fit(X[:3]).whitener_).all()


def test_singular_data_are_told_from_few_samples(rng):
    X = rng.standard_normal((100, 5))
    X[:, 4] = X[:, 0] - X[:, 1]
    with pytest.raises(ValueError, match="numerical rank is 4"):
        AtomicInnerProduct().fit(X)
    with pytest.raises(ValueError, match="singular"):
        AtomicInnerProduct().fit(np.zeros((10, 2)))


def test_bad_input_is_named(rng):
    X = rng.standard_normal((1000, 4))
    aip = AtomicInnerProduct().fit(X)
    before = aip.second_moment_.copy()
    bad = X.copy()
    bad[611, 2] = np.nan
    for call in (AtomicInnerProduct().fit, AtomicInnerProduct(True).fit, aip.partial_fit, aip.whiten):
        with pytest.raises(ValueError, match="X: contains NaN or infinity, first in row 611"):
            call(bad)
    assert aip.n_samples_seen_ == 1000 and (aip.second_moment_ == before).all()
    with pytest.raises(ValueError, match="D: contains NaN"):
        aip.whiten_directions(bad)
    with pytest.raises(ValueError, match="V: contains NaN"):
        aip.inner(X[0], bad)
    with pytest.raises(ValueError, match="overflow"):
        AtomicInnerProduct().fit(X * 1e200)
    with pytest.raises(ValueError, match=r"3 features.*expecting 4 features"):
        aip.whiten(X[:, :3])
    with pytest.raises(ValueError, match="Z: expected 4 columns"):
        aip.unwhiten(X[:, :3])
    with pytest.raises(TypeError, match="out"):
        aip.whiten(X, out=[])
    with pytest.raises(TypeError, match="out: expected dtype float32, got float64"):
        aip.whiten(X, out=np.empty(X.shape))
    for rejected in (bad[:, :3], X[:2]):
        with pytest.raises(ValueError):
            aip.fit(rejected)
        assert aip.n_features_in_ == 4 and aip.n_samples_seen_ == 1000
        assert aip.whiten(X).shape == X.shape
    fresh = AtomicInnerProduct()
    with pytest.raises(ValueError):
        fresh.partial_fit(bad)
    assert not hasattr(fresh, "n_features_in_") and fresh.partial_fit(X[:, :3]).n_features_in_ == 3
    for parameters in (
        {"centered": "yes"},
        {"shrinkage": "ridge"},
        {"shrinkage": 1.5},
        {"shrinkage": [1]},
        {"num_threads": 0},
    ):
        with pytest.raises(ValueError, match=next(iter(parameters))):
            AtomicInnerProduct(**parameters).fit(X)


def test_unfitted_and_mismatched():
    X = np.random.default_rng(0).standard_normal((50, 3))
    for use in ("whiten", "unwhiten", "norm", "transform"):
        with pytest.raises((NotFittedError, ValueError), match="not fitted"):
            getattr(AtomicInnerProduct(), use)(X)
    assert not hasattr(AtomicInnerProduct(), "metric_")
    aip = AtomicInnerProduct().fit(X)
    with pytest.raises(ValueError, match="not fitted"):
        aip.merge(AtomicInnerProduct())
    with pytest.raises(TypeError, match="other"):
        aip.merge(X)
    with pytest.raises(ValueError, match="n_features_in_ = 3"):
        aip.merge(AtomicInnerProduct().fit(X[:, :2]))
    for first in (aip, AtomicInnerProduct()):
        with pytest.raises(ValueError, match="centered"):
            first.merge(AtomicInnerProduct(True).fit(X))
    late = AtomicInnerProduct().fit(X).set_params(shrinkage="ledoit_wolf")
    with pytest.raises(ValueError, match="before fit"):
        late.partial_fit(X).metric_  # noqa: B018
    assert (
        AtomicInnerProduct(True).fit(X).set_params(centered=False).fit(X).second_moment_[0, 0]
        == (aip.second_moment_[0, 0])
    )


# ----------------------------------------------------------------------- shrinkage


@pytest.mark.parametrize("n, d", [(40, 5), (30, 60), (200, 12)])
@pytest.mark.parametrize("centered", [False, True])
def test_shrinkage_agrees_with_scikit_learn(n, d, centered, rng):
    from sklearn.covariance import OAS, LedoitWolf

    X = rng.standard_normal((n, d)) * np.logspace(0, 1, d) + 3
    for name, kind in (("ledoit_wolf", LedoitWolf), ("oas", OAS)):
        aip = AtomicInnerProduct(centered, name).fit(X)
        peer = kind(assume_centered=not centered).fit(X)
        assert aip.shrinkage_ == pytest.approx(peer.shrinkage_, rel=1e-9)
        np.testing.assert_allclose(aip.metric_, peer.precision_, rtol=1e-6, atol=1e-9)
    assert AtomicInnerProduct(centered, "ledoit_wolf").fit(X).shrinkage_ == pytest.approx(
        reference.ledoit_wolf(X, centered)
    )


def test_shrinkage_by_a_number(rng):
    X = rng.standard_normal((60, 4)) * [1, 2, 3, 4]
    aip = AtomicInnerProduct(shrinkage=0.3).fit(X)
    C = aip.second_moment_
    np.testing.assert_allclose(
        np.linalg.inv(aip.metric_), 0.7 * C + 0.3 * np.trace(C) / 4 * np.eye(4), rtol=1e-10, atol=1e-12
    )
    np.testing.assert_allclose(aip.whitener_, reference.whitener(X, shrinkage=0.3), atol=1e-12)
    whole = AtomicInnerProduct(shrinkage=1).fit(X)
    np.testing.assert_allclose(whole.metric_, np.eye(4) / (np.trace(C) / 4), atol=1e-12)
    assert AtomicInnerProduct(shrinkage="oas").fit(np.tile(np.eye(2), (5, 1))).shrinkage_ == 1


# ------------------------------------------------------------------ standard errors


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("block_size", [1, 7])
def test_standard_errors_agree_with_their_twin(centered, block_size, rng):
    X = rng.standard_t(9, (5000, 5)) * [1, 2, 3, 4, 5] + 1
    aip = AtomicInnerProduct(centered, 0.1).fit(X)
    errors = aip.eigenvalue_standard_errors(X, block_size=block_size)
    exact = reference.eigenvalue_errors(X, aip.eigenvectors_, 0.1, centered, block_size)
    np.testing.assert_allclose(errors.second_moment, exact, rtol=1e-4)
    np.testing.assert_allclose(errors.metric, exact / aip.eigenvalues_**2, rtol=1e-4)
    for wrong in (0, 2501, 1.5):
        with pytest.raises(ValueError, match="block_size"):
            aip.eigenvalue_standard_errors(X, block_size=wrong)


@pytest.mark.filterwarnings("ignore:.* rows have a norm above")  # heavy tails have such rows
@pytest.mark.parametrize("kind", ["gaussian", "heavy", "documents"])
def test_standard_errors_against_simulation(kind):
    rng = np.random.default_rng(3)
    scale, n, block = np.array([1.0, 2, 4, 8]), 1200, 6 if kind == "documents" else 1

    def draw():
        if kind == "gaussian":
            return rng.standard_normal((n, 4)) * scale
        if kind == "heavy":
            return rng.laplace(size=(n, 4)) * scale
        return np.repeat(rng.standard_normal((n // block, 4)), block, axis=0) * scale

    values, reported = [], []
    for _ in range(300):
        X = draw()
        aip = AtomicInnerProduct(num_threads=1).fit(X)
        values.append(1 / aip.eigenvalues_)
        reported.append(aip.eigenvalue_standard_errors(X, block_size=block).metric)
    truth = np.std(values, axis=0, ddof=1)
    ratio = np.mean(reported, axis=0) / truth
    assert ((ratio > 0.85) & (ratio < 1.15)).all(), ratio


# --------------------------------------------------------------------------- files


def test_save_and_load(rng, tmp_path):
    X = nasty(rng, 300, 20)
    for kwargs in ({}, {"centered": True, "shrinkage": "ledoit_wolf"}, {"shrinkage": 0.25}):
        aip = AtomicInnerProduct(**kwargs).fit(X)
        aip.save(tmp_path / "aip.safetensors")
        assert os.listdir(tmp_path) == ["aip.safetensors"]
        back = AtomicInnerProduct.load(tmp_path / "aip.safetensors", num_threads=1)
        assert back.get_params() == {**aip.get_params(), "num_threads": 1}
        np.testing.assert_array_equal(back.whiten(X), aip.whiten(X))
        np.testing.assert_array_equal(back.mean_, aip.mean_)
        assert back.shrinkage_ == aip.shrinkage_ and back.effective_rank_ == aip.effective_rank_
        np.testing.assert_array_equal(back.partial_fit(X).metric_, aip.partial_fit(X).metric_)
        assert (pickle.loads(pickle.dumps(aip)).whiten(X) == aip.whiten(X)).all()


def test_bad_files_are_named_and_good_ones_kept(rng, tmp_path, monkeypatch):
    aip = AtomicInnerProduct().fit(rng.standard_normal((30, 3)))
    path = tmp_path / "aip.safetensors"
    with pytest.raises(FileNotFoundError):
        AtomicInnerProduct.load(path)
    aip.save(path)
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(ValueError, match="cut short"):
        AtomicInnerProduct.load(path)
    save_file({"x": np.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"expected a file saved by atoms\.AtomicInnerProduct"):
        AtomicInnerProduct.load(path)
    path.write_bytes(good)
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        aip.save(path)
    assert path.read_bytes() == good and os.listdir(tmp_path) == ["aip.safetensors"]


# -------------------------------------------------------------------- scikit-learn


@pytest.mark.parametrize("kwargs", [{}, {"centered": True, "shrinkage": "ledoit_wolf"}])
def test_check_estimator(kwargs):
    from sklearn.utils.estimator_checks import check_estimator

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not inherit from `sklearn.base")
        results = check_estimator(AtomicInnerProduct(**kwargs), on_skip=None)
    assert sum(r["status"] == "passed" for r in results) > 40


def test_clone_and_pipeline(rng):
    from sklearn.base import clone
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline

    X = rng.standard_normal((100, 4))
    copy = clone(AtomicInnerProduct(True, 0.5, 2))
    assert repr(copy) == "AtomicInnerProduct(centered=True, num_threads=2, shrinkage=0.5)"
    pipe = make_pipeline(AtomicInnerProduct(), LinearRegression()).fit(X, X @ [1, 2, 3, 4])
    assert pipe.score(X, X @ [1, 2, 3, 4]) > 0.999
    pipe.set_params(atomicinnerproduct__centered=True).fit(X, X[:, 0])
    assert pipe[0].centered
    with pytest.raises(ValueError, match="Invalid parameter"):
        copy.set_params(center=True)


def test_data_frames(rng):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(rng.standard_normal((30, 2)), columns=["a", "b"])
    aip = AtomicInnerProduct().fit(frame)
    assert aip.feature_names_in_.tolist() == ["a", "b"]
    with pytest.raises(ValueError, match="feature names"):
        aip.whiten(frame[["b", "a"]])
    with pytest.warns(UserWarning, match="valid feature names"):
        aip.whiten(frame.to_numpy())


def test_sklearn_is_not_needed():
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "import numpy as np, atoms\n"
        "X = np.random.default_rng(0).standard_normal((50, 3))\n"
        "atoms.AtomicInnerProduct().fit(X).whiten(X)\n"
        "try: atoms.AtomicInnerProduct().whiten(X)\n"
        "except ValueError as e: assert 'not fitted' in str(e)\n"
    )
    run(code)


class Frame:
    """As much of a data frame as estimators ask for."""

    def __init__(self, values, columns):
        self.values, self.columns = values, columns

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)


def test_features_in_another_order_are_not_merged():
    X = np.random.default_rng(0).standard_normal((50, 3))
    ab = AtomicInnerProduct().fit(Frame(X, ["a", "b", "c"]))
    before = ab.second_moment_.copy()
    with pytest.raises(ValueError, match="must be in the same order"):
        ab.merge(AtomicInnerProduct().fit(Frame(X[:, ::-1], ["c", "b", "a"])))
    with pytest.raises(ValueError, match="unseen at fit time:\n- d"):
        ab.merge(AtomicInnerProduct().fit(Frame(X, ["a", "b", "d"])))
    np.testing.assert_array_equal(ab.second_moment_, before)
    with pytest.warns(UserWarning, match="other does not have valid feature names"):
        ab.merge(AtomicInnerProduct().fit(X))
    fresh = AtomicInnerProduct().merge(ab)
    assert list(fresh.feature_names_in_) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="same order"):
        fresh.whiten(Frame(X, ["b", "a", "c"]))


@pytest.mark.parametrize("shrinkage", [None, "ledoit_wolf"])
def test_a_part_with_too_few_rows_is_saved(shrinkage, tmp_path):
    X = np.random.default_rng(0).standard_normal((40, 6))
    whole, file = AtomicInnerProduct(shrinkage=shrinkage), tmp_path / "part.safetensors"
    whole.partial_fit(X)
    part = AtomicInnerProduct(shrinkage=shrinkage).partial_fit(X[:4])
    part.save(file)
    again = AtomicInnerProduct.load(file)
    assert again.n_samples_seen_ == 4
    if shrinkage is None:
        with pytest.raises(ValueError, match="n=4 samples in d=6 dimensions is singular"):
            again.whiten(X)
    again.partial_fit(X[4:])
    np.testing.assert_allclose(again.metric_, whole.metric_, rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="not fitted"):
        AtomicInnerProduct().save(file)


def test_an_unfitted_metric_is_one_sentence_everywhere():
    X, metric = np.random.default_rng(0).standard_normal((50, 6)), AtomicInnerProduct()
    codes = scipy.sparse.csr_array(np.eye(6))
    for use in (
        lambda: atoms.SparseCoder(X[:8], n_nonzero=2, metric=metric).fit(X),
        lambda: atoms.recovery.Dictionary(X[:8], metric=metric),
        lambda: atoms.recovery.omp(X, X[:8], n_nonzero=2, metric=metric),
        lambda: atoms.theory.coherence(X[:6], metric=metric),
        lambda: atoms.theory.babel(X[:6], metric=metric),
        lambda: atoms.theory.certificate(X[:6], metric=metric),
        lambda: atoms.theory.certify(X[:6], codes, metric=metric),
        lambda: atoms.theory.stability(X[:6], codes, metric=metric),
        lambda: atoms.theory.match_dictionaries(X[:6], X[:6], metric=metric),
        lambda: atoms.theory.explained_variance(X, X, "metric", metric),
        lambda: atoms.controls.RandomDictionary(8, l0=2, metric=metric).fit(X),
    ):
        with pytest.raises(ValueError) as said:
            use()
        assert str(said.value) == "metric: expected a fitted AtomicInnerProduct; call metric.fit(X) first"


def test_whiten_and_transform_are_one_method(tmp_path):
    assert AtomicInnerProduct.whiten is AtomicInnerProduct.transform
    assert AtomicInnerProduct.unwhiten is AtomicInnerProduct.inverse_transform
    X = np.random.default_rng(0).standard_normal((50, 4))
    out = np.empty((50, 4), np.float32)
    assert AtomicInnerProduct().fit(X).transform(X, out=out) is out
