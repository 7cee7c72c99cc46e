"""Explained variance, coherence and stability against brute force and closed forms."""

import math
import os
import signal
import threading
import time
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from support import run

from atoms import AtomicInnerProduct, _core
from atoms import _reference as reference
from atoms.theory import (
    CONVENTIONS,
    Coherence,
    ExplainedVariance,
    coherence,
    explained_variance,
    stability,
    welch_bound,
)

SHAPES = [(1, 1), (1, 7), (15, 17), (17, 15), (33, 97), (97, 33), (260, 9)]


def metric(d, seed=0, centered=False):
    """A stand-in with what these functions use of an AtomicInnerProduct."""
    A = np.random.default_rng(seed).standard_normal((d, d))
    return SimpleNamespace(whitener_=A @ A.T / d + 0.1 * np.eye(d), centered=centered)


def equiangular(n):
    """n unit vectors in n - 1 dimensions, all cosines -1/(n - 1): a simplex."""
    centred = np.eye(n) - 1 / n
    U, s, _ = np.linalg.svd(centred)
    return (U * s)[:, : n - 1]


# ------------------------------------------------------------ explained variance


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("convention", [c for c in CONVENTIONS if c != "metric"])
def test_explained_variance_is_the_exact_one(shape, convention):
    rng = np.random.default_rng(1)
    X = rng.standard_normal(shape) * 3 + 40
    X_hat = X + 0.3 * rng.standard_normal(shape)
    m = metric(shape[1])
    result = explained_variance(X, X_hat, convention, m)
    want = reference.explained_variance(X, X_hat, convention, m.whitener_ if "metric" in convention else None)
    # an empty variance (one sample) is -inf on both sides
    assert result.total == pytest.approx(want, rel=1e-12, abs=1e-13 if "metric" in convention else 0)
    if "metric" not in convention:
        assert result.total == want


@pytest.mark.parametrize("isa", _core.ISAS)
@pytest.mark.parametrize("threads", [1, 3])
def test_explained_variance_same_to_the_bit_everywhere(isa, threads, monkeypatch):
    rng = np.random.default_rng(2)
    X = rng.standard_normal((1500, 37)) * rng.lognormal(0, 3, (1500, 1))
    X_hat = X + rng.standard_normal(X.shape)
    base = explained_variance(X, X_hat, num_threads=2)
    monkeypatch.setenv("ATOMS_ISA", isa)
    again = explained_variance(X, X_hat, num_threads=threads)
    assert again == base and base.n_massive > 0
    assert np.array_equal(again.squared_error, base.squared_error)


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("seed", range(5))
def test_predicting_the_mean_scores_exactly_zero(offset, seed):
    rng = np.random.default_rng(seed)
    n, d = rng.integers(2, 3000), rng.integers(1, 40)
    X = rng.standard_normal((n, d)) * rng.lognormal(0, 2, d) + offset * rng.standard_normal(d)
    X[0] *= 1000  # a massive one
    for mean in (X.mean(0), X[::-1].mean(0), np.array([math.fsum(c) / n for c in X.T])):
        result = explained_variance(X, np.broadcast_to(mean, X.shape))
        assert result.total == 0.0
    X32 = X.astype(np.float32)
    assert explained_variance(X32, lambda b: np.tile(X32.mean(0, dtype=float), (len(b), 1))).total == 0


def test_conventions_of_the_peers():
    rng = np.random.default_rng(20)
    X = rng.standard_normal((200, 5)) * [1, 2, 3, 4, 5] + [9, 0, -3, 1, 1]
    H = X + rng.standard_normal(X.shape) + 0.5
    metrics = pytest.importorskip("sklearn.metrics")
    want = {
        "centered": metrics.r2_score(X, H, multioutput="variance_weighted"),
        "variance_of_error": 1 - (X - H).var(0, ddof=1).sum() / X.var(0, ddof=1).sum(),
        "scalar_mean": 1 - ((X - H) ** 2).sum() / ((X - X.mean()) ** 2).sum(),
        "uncentered": 1 - ((X - H) ** 2).sum() / (X**2).sum(),
    }
    assert want["variance_of_error"] == pytest.approx(
        metrics.explained_variance_score(X, H, multioutput="variance_weighted")
    )
    for convention, value in want.items():
        assert explained_variance(X, H, convention).total == pytest.approx(value, rel=1e-13)


def test_perfect_and_zero_predictions():
    X = np.random.default_rng(0).standard_normal((50, 4))
    for convention in CONVENTIONS:
        assert explained_variance(X, X, convention, metric(4)).total == 1.0
    assert explained_variance(X, np.zeros_like(X), "uncentered").total == 0.0
    assert explained_variance(X, X + 7, "variance_of_error").total == pytest.approx(1, abs=1e-15)
    constant = np.full((5, 3), 2.0)
    assert explained_variance(constant, constant).total == 1.0
    assert explained_variance(constant, constant + 1).total == -math.inf


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int32, ">f8"])
@pytest.mark.parametrize("layout", ["C", "F", "strided", "reversed"])
def test_types_and_strides(dtype, layout):
    rng = np.random.default_rng(3)
    X = (rng.standard_normal((61, 10)) * 8).astype(dtype)
    X_hat = (np.asarray(X, float) + rng.standard_normal((61, 10))).astype(dtype)
    want = reference.explained_variance(np.asarray(X, float), np.asarray(X_hat, float))

    def lay(a):
        if layout == "F":
            return np.asfortranarray(a)
        if layout == "strided":
            wide = np.zeros((122, 30), dtype)
            wide[::2, ::3] = a
            return wide[::2, ::3]
        return a[::-1, ::-1] if layout == "reversed" else a

    assert explained_variance(lay(X), lay(X_hat)).total == want


def test_ways_of_giving_the_reconstruction(tmp_path):
    rng = np.random.default_rng(4)
    X = rng.standard_normal((1000, 6)).astype(np.float32)
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    half = 0.5 * X
    want = explained_variance(X, half)
    assert explained_variance(mapped, lambda b: 0.5 * b, block_size=77) == want
    assert explained_variance(X, (half[i : i + 130] for i in range(0, 1000, 130))) == want
    assert explained_variance(X, half.tolist()) == want
    for wrong, message in [
        (half[:999], "expected shape"),
        (iter([half[:500]]), "1000 rows in all, got 500"),
        (iter([half, half]), "got more"),
        (lambda b: b[:, :2], "expected shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            explained_variance(X, wrong)
    with pytest.raises(TypeError, match="X_hat: expected an array, a function"):
        explained_variance(X, 3)


def test_massive_samples_and_the_median():
    rng = np.random.default_rng(5)
    X = rng.standard_normal((400, 12)) + 2
    X[[3, 77]] *= 500
    X_hat = X.copy()
    usual = np.setdiff1d(np.arange(400), [3, 77])
    X_hat[usual] = X[usual] + rng.standard_normal((398, 12))  # only the massive ones are stored
    for convention in ("centered", "uncentered", "metric_centered", "metric_uncentered"):
        m = metric(12)
        result = explained_variance(X, X_hat, convention, m)
        W = m.whitener_ if "metric" in convention else np.eye(12)
        mean = 0 if "uncentered" in convention else X.mean(0)
        ratio = (((X - X_hat) @ W) ** 2).sum(1) / (((X - mean) @ W) ** 2).sum(1)
        assert result.n_massive == 2
        assert result.median == pytest.approx(np.median(1 - ratio), rel=1e-11)
        alone = explained_variance(X[usual], X_hat[usual], convention, m, massive_multiple=1e9)
        assert result.without_massive == pytest.approx(alone.total, rel=1e-11)
        assert result.total > 0.99 > 0.9 > result.without_massive
        assert result.massive_norm == pytest.approx(10 * np.median(np.linalg.norm(X, axis=1)))
    assert explained_variance(X, X_hat, "metric", metric(12, centered=True)).convention == "metric_centered"
    assert explained_variance(X, X_hat, "metric", metric(12)).convention == "metric_uncentered"
    assert math.isnan(explained_variance(X, X_hat, "variance_of_error").median)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 200), min_size=1, max_size=6), st.integers(0, 2**31))
def test_accumulator_does_not_care_for_blocks(lengths, seed):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((sum(lengths), 5)) * 10.0 ** rng.integers(-6, 6) + rng.standard_normal()
    X_hat = X + rng.standard_normal(X.shape)
    whole = ExplainedVariance(mean=X.mean(0)).update(X, X_hat).result()
    cuts = np.cumsum(lengths)[:-1]
    parts = list(zip(np.split(X, cuts), np.split(X_hat, cuts)))
    stream, merged = ExplainedVariance(mean=X.mean(0)), ExplainedVariance(mean=X.mean(0))
    for x, h in parts:
        stream.update(x, h)
        merged.merge(ExplainedVariance(mean=X.mean(0)).update(x, h))
    assert stream.result() == whole
    assert merged.result() == whole
    assert whole.total == reference.explained_variance(X, X_hat)


def test_explained_variance_errors_leave_no_trace():
    X = np.ones((300, 3)) * np.arange(300)[:, None]
    bad = X.copy()
    bad[250, 1] = np.nan
    with pytest.raises(ValueError, match="X: row 250 holds NaN"):
        explained_variance(bad, X)
    ev = ExplainedVariance().update(X[:10], X[:10] / 2)
    with pytest.raises(ValueError, match="X_hat: row 260 holds NaN"):
        ev.update(X, bad)
    same = ExplainedVariance().update(X[:10], X[:10] / 2).result()
    assert math.isnan(same.median) and ev.result() == same and hash(ev.result()) == hash(same)
    assert ev.result() != ExplainedVariance().update(X[:10], X[:10] / 3).result()
    for arguments, message in [
        ((X, X, "centred"), "convention: expected one of centered"),
        ((X, X, "metric"), "needs metric="),
        ((X, X, "metric", SimpleNamespace()), "call fit first"),
        ((X, X, "metric", metric(4)), "dimension 3"),
        ((X[0], X[0]), "two dimensions"),
        ((X[:0], X[:0]), "at least one sample"),
    ]:
        with pytest.raises(ValueError, match=message):
            explained_variance(*arguments)
    with pytest.raises(TypeError, match="real numbers"):
        explained_variance(X * 1j, X)
    with pytest.raises(ValueError, match="same convention"):
        ev.merge(ExplainedVariance("uncentered"))


def test_accumulators_of_two_metrics_are_not_merged():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 3)) @ np.diag([1.0, 2, 5])
    H = X + 0.1 * rng.standard_normal(X.shape)
    one, two = AtomicInnerProduct().fit(X), AtomicInnerProduct().fit(X[:30])
    for convention in ("metric", "metric_centered"):
        parts = [
            ExplainedVariance(convention, m).update(x, h)
            for m, x, h in ((one, X[:20], H[:20]), (one, X[20:], H[20:]), (two, X[20:], H[20:]))
        ]
        with pytest.raises(ValueError, match="expected the same metric"):
            parts[0].merge(parts[2])
        whole = explained_variance(X, H, convention, one)
        assert parts[0].merge(parts[1]).result().total == pytest.approx(whole.total, rel=1e-12)
    # where the metric plays no part, it does not matter
    ExplainedVariance("centered", one).update(X, H).merge(ExplainedVariance("centered", two).update(X, H))
    with pytest.raises(TypeError, match="other: expected an ExplainedVariance"):
        ExplainedVariance().merge(one)


# ------------------------------------------------------------------- coherence


@pytest.mark.parametrize("shape", [*SHAPES[2:], (2, 3), (600, 20), (1030, 5)])
@pytest.mark.parametrize("whitened", [False, True])
def test_coherence_is_that_of_all_pairs(shape, whitened):
    D = np.random.default_rng(6).standard_normal(shape) * 10
    m = metric(shape[1]) if whitened else None
    values = reference.cosines(D, m.whitener_ if m else None)
    q = [0.0, 0.01, 0.3, 0.5, 0.77, 0.999, 1.0]
    for method in ("linear", "inverted_cdf"):
        c = coherence(D, m, q, method=method)
        want = np.quantile(values, q, method=method)
        np.testing.assert_allclose(list(c.quantiles.values()), want, atol=4e-7)
        assert c.max == pytest.approx(values.max(), abs=4e-7)
        assert c.max == c.quantiles[1.0]
    assert c.rms == pytest.approx(np.sqrt((values**2).mean()), rel=1e-5)
    assert c.rms >= c.welch_bound - 1e-9
    counts, edges = c.histogram(64)  # edges on the bins: exact but for rounding
    assert counts.sum() == c.n_pairs == len(values)
    assert np.abs(counts - np.histogram(values, edges)[0]).max() <= 3


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_quantiles_are_exact_order_statistics_of_the_products(isa, monkeypatch):
    """Small whole numbers: products are exact in float32, so equality is asked for, ties included."""
    monkeypatch.setenv("ATOMS_ISA", isa)
    H = scipy.linalg.hadamard(16)[:, :4]  # rows of norm 2, cosines in quarters, many ties
    D = np.concatenate([H] * 40)
    values = np.abs(D @ D.T / 4.0)[np.triu_indices(len(D), 1)]
    q = np.linspace(0, 1, 41)
    c = coherence(D, quantiles=q)
    assert np.array_equal(list(c.quantiles.values()), np.quantile(values, q))
    for limit in (0.0, 0.5, np.nextafter(0.5, 1), 1.0, np.nextafter(1.0, 2), math.inf):
        assert c.share_below(limit) == (values < limit).mean()


def test_coherence_same_to_the_bit_for_any_threads():
    D = np.random.default_rng(7).standard_normal((1700, 31))
    q = np.linspace(0, 1, 300)
    values = [coherence(D, quantiles=q, num_threads=t).quantiles for t in (1, 2, 5)]
    assert values[0] == values[1] == values[2]


def test_coherence_closed_forms():
    assert coherence(np.eye(20)).max == 0.0
    n = 64
    pair = np.concatenate([np.eye(n), scipy.linalg.hadamard(n)])  # mutually unbiased bases
    c = coherence(pair, quantiles=[0.4, 0.9])
    assert c.max == c.quantiles[0.9] == 1 / 8 and c.quantiles[0.4] == 0.0
    simplex = coherence(equiangular(11), quantiles=[0.0])
    assert simplex.max == pytest.approx(simplex.welch_bound, rel=1e-6)
    assert simplex.quantiles[0.0] == pytest.approx(0.1, rel=1e-6)
    d = 50
    gauss = coherence(np.random.default_rng(8).standard_normal((3000, d)), quantiles=[0.25, 0.5, 0.9])
    for q, value in gauss.quantiles.items():
        expected = math.sqrt(scipy.special.betaincinv(0.5, (d - 1) / 2, q))
        assert value == pytest.approx(expected, rel=5e-3)
    assert coherence([[2.0, 1.0]]).max == 0.0
    assert welch_bound(5, 5) == 0.0 and welch_bound(8, 4) == pytest.approx(math.sqrt(1 / 7))


def test_coherence_refuses_atoms_without_direction():
    D = np.random.default_rng(9).standard_normal((300, 4))
    D[201] = 0
    with pytest.raises(ValueError, match="D: row 201 is all zeros"):
        coherence(D)
    D[201, 2] = np.inf
    with pytest.raises(ValueError, match="D: row 201 is not finite"):
        coherence(D)
    with pytest.raises(ValueError, match="quantiles: expected numbers between 0 and 1"):
        coherence(np.eye(3), quantiles=[1.5])
    tiny = coherence(np.eye(3) * 1e-300 + 1e-301)  # squares below the range of float64
    assert tiny.max == pytest.approx(coherence(np.eye(3) + 0.1).max)


def test_types_of_dictionaries():
    D = np.random.default_rng(10).standard_normal((40, 6))
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float32):
        narrow = D.astype(dtype)
        assert coherence(narrow[:, ::-1]).max == pytest.approx(coherence(narrow.astype(float)).max, abs=2e-7)


MEMORY = """
import sys
import numpy as np
from atoms.theory import coherence
D = np.random.default_rng(0).standard_normal((65536, int(sys.argv[1])), dtype=np.float32)
c = coherence(D, quantiles=[0.5, 0.999], num_threads=2)
# not ru_maxrss: a process starts with its parent's
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(c.max, c.quantiles[0.5], c.quantiles[0.999], peak)
"""


@pytest.mark.slow
@pytest.mark.parametrize("d", [128])
def test_65536_atoms_in_less_than_a_gigabyte(d):
    largest, middle, high, kilobytes = map(float, run(MEMORY, d).split())
    assert kilobytes < 1e6
    for q, value in ((0.5, middle), (0.999, high)):
        assert value == pytest.approx(math.sqrt(scipy.special.betaincinv(0.5, (d - 1) / 2, q)), rel=1e-3)
    assert high < largest < 1


def test_ctrl_c_stops_the_pairs():
    unit = np.random.default_rng(0).standard_normal((30000, 512), dtype=np.float32)
    counts = np.zeros((0x3F800000 >> 13) + 1, np.int64)
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        _core.cosine_histogram(_core.Context(2), unit, counts)
    assert time.monotonic() - start < 3


# ------------------------------------------------------------------- stability


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31))
def test_q_star_by_its_definition(seed):
    rng = np.random.default_rng(seed)
    n, d = rng.integers(2, 40), rng.integers(2, 12)
    D = rng.standard_normal((n, d))
    l0 = rng.integers(0, rng.integers(1, 6) + 1, rng.integers(1, 30))
    values = reference.cosines(D)
    # all q at which either quantile function steps, and points between
    steps = np.union1d(np.arange(1, len(values) + 1) / len(values), np.arange(1, len(l0) + 1) / len(l0))
    s = stability(D, l0)
    want = reference.q_star(values, l0, steps)
    assert s.q_star == pytest.approx(want, abs=1e-12)
    assert s.q_star <= s.ceiling_at_max + 1e-6 and s.ceiling_at_max <= s.ceiling + 1e-12
    bits = stability(coherence(D), scipy.sparse.csr_array(np.tri(7, 6, -1)[l0]))
    assert bits.q_star == s.q_star


def test_stability_closed_forms():
    eye = stability(np.eye(12), [12] * 5)
    assert eye.q_star == eye.ceiling == eye.ceiling_at_max == eye.ceiling_equiangular == 1.0
    assert eye.l0_quantiles[0.5] == 12 and eye.max == 0.0
    # simplex of 11: all cosines 0.1 = Welch; K <= 5 has 1/(2K-1) >= 1/9 > 0.1, K = 6 has 1/11
    simplex = stability(equiangular(11), [2, 5, 6, 6])
    assert simplex.q_star == simplex.ceiling_equiangular == 0.5
    n = 64
    pair = np.concatenate([np.eye(n), scipy.linalg.hadamard(n)])
    below = (n * (n - 1)) / (n * (2 * n - 1))  # pairs within a basis
    for k, want in ((4, 1.0), (5, below)):  # 1/7 > 1/8 > 1/9
        assert stability(pair, [k] * 9).q_star == pytest.approx(want)
    assert stability(np.ones((1, 3)), [1, 2]).q_star == 1.0
    assert stability(pair, [0, 0]).q_star == 1.0
    twins = stability(np.concatenate([np.eye(4), np.eye(4) * 3]), [1] * 3)
    assert twins.q_star == pytest.approx(1 - 4 / 28)  # duplicates are not below 1, even rounded


def test_ceiling_is_reached_by_copies_of_a_basis():
    d, copies = 16, 4
    D = np.concatenate([np.eye(d)] * copies) * np.arange(1, d * copies + 1)[:, None]
    s = stability(D, [d] * 10)
    assert s.q_star == pytest.approx(1 - s.welch_bound**2)
    assert s.q_star <= s.ceiling == pytest.approx((1 - s.welch_bound**2) / (1 - (1 / 31) ** 2))


def test_random_dictionary_has_the_random_q_star():
    rng = np.random.default_rng(11)
    d, l0 = 100, rng.integers(2, 20, 2000)
    s = stability(rng.standard_normal((1500, d)), l0)
    assert s.q_star == pytest.approx(s.q_star_random, abs=3e-3)
    assert 0 < s.ceiling_equiangular < s.q_star < s.ceiling_at_max < s.ceiling < 1


def test_stability_curve():
    rng = np.random.default_rng(12)
    D, l0 = rng.standard_normal((90, 30)), rng.integers(0, 9, 500)
    q = [0.1, 0.5, 0.9, 1.0]
    s = stability(D, l0, curve=q)
    values = reference.cosines(D)
    np.testing.assert_allclose(s.mu, np.quantile(values, q, method="inverted_cdf"), atol=3e-7)
    assert np.array_equal(s.l0, np.quantile(l0, q, method="inverted_cdf"))
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(s.bound, np.where(s.l0 == 0, np.inf, 1 / (2 * s.l0 - 1.0)))
    assert s.curve[0] is s.q


def test_stability_refuses_what_is_not_l0():
    for l0, message in [
        ([], "at least one"),
        ([1.5], "whole numbers"),
        ([-1], ">= 0"),
        (np.ones((2, 2)), "sparse codes"),
    ]:
        with pytest.raises(ValueError, match=message):
            stability(np.eye(3), l0)
    stored_zero = scipy.sparse.csr_array(([1.0, 0.0], [0, 1], [0, 2]), shape=(1, 3))
    assert stability(np.eye(3), stored_zero).l0_quantiles[1.0] == 1


# ---------------------------------------------------------------- core twins


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("n,m,d", [(1, 1, 1), (15, 17, 33), (300, 600, 9), (97, 1030, 4), (1030, 97, 4)])
@pytest.mark.parametrize("absolute", [False, True])
def test_nearest(isa, n, m, d, absolute):
    rng = np.random.default_rng(13)
    A, B = (rng.integers(-4, 5, (k, d)).astype(np.float32) for k in (n, m))  # exact, with ties
    want_index, want = reference.nearest(A, B, absolute)
    for threads in (1, 3):
        index, value = np.empty(n, np.int64), np.empty(n, np.float32)
        back, back_value = np.empty(m, np.int64), np.empty(m, np.float32)
        ctx = _core.Context(threads, _core.ISAS.index(isa))
        _core.nearest(ctx, A, B, absolute, index, value)
        assert np.array_equal(index, want_index) and np.array_equal(value, want)
        index[:], value[:] = -1, 0
        _core.nearest(ctx, A, B, absolute, index, value, back, back_value)
        assert np.array_equal(index, want_index) and np.array_equal(value, want)
        want_back, want_size = reference.nearest(B, A, absolute)
        assert np.array_equal(back, want_back) and np.array_equal(back_value, want_size)


@pytest.mark.parametrize("n,d", [(2, 3), (15, 17), (97, 33), (700, 6)])
def test_babel_core(n, d):
    D = np.random.default_rng(14).standard_normal((n, d))
    unit = reference.unit_rows(D)[0].astype(np.float32)
    got = []
    for threads in (1, 3):
        out = np.empty(n - 1)
        _core.babel(_core.Context(threads), unit, out)
        got.append(out)
    assert np.array_equal(*got)
    np.testing.assert_allclose(got[0], reference.babel(D), rtol=2e-6)


def test_core_checks_its_buffers():
    ctx, unit = _core.Context(1), np.eye(3, dtype=np.float32)
    with pytest.raises(ValueError, match="counts: expected length 130049"):
        _core.cosine_histogram(ctx, unit, np.zeros(5, np.int64))
    with pytest.raises(ValueError, match="share memory"):
        both = np.zeros((3, 3), np.float32)
        _core.unit_rows(ctx, both, None, both, np.zeros(3))
    with pytest.raises(TypeError, match="index: expected dtype"):
        _core.nearest(ctx, unit, unit, True, np.zeros(3, np.int32), np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="argument outside"):
        _core.babel(ctx, unit, np.zeros(3))
    with pytest.raises(ValueError, match="B: expected 3 columns"):
        wide = np.eye(4, dtype=np.float32)
        _core.nearest(ctx, unit, wide, True, np.zeros(3, np.int64), np.zeros(3, np.float32))
    frozen = np.zeros(3)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        _core.unit_rows(ctx, unit, None, np.zeros((3, 3), np.float32), frozen)
    assert Coherence(unit, None, [], "linear", 1).quantiles == {}
