"""Certificates, intervals and matching against brute force, closed forms, and what they promise."""

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import scipy.sparse
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import basis_pair

from atoms import AtomicInnerProduct
from atoms import _reference as reference
from atoms.theory import (
    ExplainedVariance,
    babel,
    certificate,
    certify,
    coherence,
    explained_variance,
    explained_variance_interval,
    match_dictionaries,
    pairwise_mcc,
    stability,
    stability_interval,
    subspace_overlap,
)
from atoms.theory import _matching as matching

HADAMARD = np.concatenate([np.eye(64), scipy.linalg.hadamard(64)])


def aip(d, seed=0):
    rng = np.random.default_rng(seed)
    return AtomicInnerProduct().fit(rng.standard_normal((5 * d + 50, d)) @ rng.standard_normal((d, d)))


def sparse_codes(rng, n, atoms, k):
    codes = np.zeros((n, atoms))
    for row in codes:
        row[rng.choice(atoms, rng.integers(0, k + 1), replace=False)] = 1.0
    return codes * rng.uniform(1, 2, codes.shape)


# ------------------------------------------------------------------- dictionaries


def test_certificate_of_an_orthonormal_basis():
    c = certificate(np.eye(12) * np.arange(1, 13)[:, None])
    assert c.coherence.max == 0 and not c.babel.any() and c.welch_bound == 0
    assert c.unique_k == c.recovery_k == c.unique_k_coherence == 12
    assert c.effective_rank == pytest.approx(12)
    assert (c.norm_min, c.norm_median, c.norm_max) == (1, 6.5, 12)
    assert c.norm_spread == pytest.approx(np.std(np.arange(1, 13)) / 6.5)
    assert c.rip(12) == (0, 0) and c.rip(1) == (0, 0)
    with pytest.raises(ValueError, match="k: expected a whole number from 1 to 12"):
        c.rip(13)


def test_certificate_of_a_hadamard_pair():
    c = certificate(HADAMARD)
    want = np.minimum(np.arange(1, 128), 64) / 8  # 64 cosines of 1/8, the others 0
    np.testing.assert_allclose(c.babel, want)
    assert c.unique_k_coherence == 4  # 1/8 < 1/7
    assert c.unique_k == 4  # mu_1(7) = 7/8 < 1, mu_1(9) > 1
    assert c.recovery_k == 4  # 4/8 + 3/8 < 1, 5/8 + 4/8 > 1
    assert c.rip(9) == (1.0, 1.0)
    assert c.effective_rank == pytest.approx(64)


def test_certificate_of_a_simplex_and_of_twins():
    n = 11
    U, s, _ = np.linalg.svd(np.eye(n) - 1 / n)
    c = certificate((U * s)[:, : n - 1])
    np.testing.assert_allclose(c.babel, 0.1 * np.arange(1, 11), rtol=1e-5)
    assert c.unique_k_coherence == c.recovery_k == 5
    twins = certificate(np.concatenate([np.eye(4), -np.eye(4)]))
    assert twins.unique_k == twins.recovery_k == twins.unique_k_coherence == 0
    single = certificate([[3.0, 4.0]])
    assert single.unique_k == single.recovery_k == 1 and single.norm_max == 5
    with pytest.raises(ValueError, match="kmax"):
        babel(np.eye(3), kmax=3)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31))
@example(7487)
def test_babel_and_rip_bound_what_they_should(seed):
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(2, 9)), int(rng.integers(2, 9))
    D, m = rng.standard_normal((n, d)), aip(d)
    c = certificate(D, m)
    np.testing.assert_allclose(c.babel, reference.babel(D, m.whitener_), atol=1e-6)
    unit = reference.unit_rows(D, m.whitener_)[0]
    G = unit @ unit.T
    for k in range(1, n + 1):
        delta = max(
            np.abs(np.linalg.eigvalsh(G[np.ix_(s, s)]) - 1).max() for s in itertools.combinations(range(n), k)
        )
        by_coherence, by_babel = c.rip(k)
        assert delta <= by_babel + 1e-5 and by_babel <= by_coherence + 1e-5
    dependent = [
        len(s)
        for k in range(1, n + 1)
        for s in itertools.combinations(range(n), k)
        if np.linalg.matrix_rank(unit[list(s)]) < k
    ]
    spark = min(dependent, default=n + 1)
    assert min(2 * c.unique_k, n) < spark
    assert c.unique_k_coherence <= c.unique_k and c.unique_k_coherence <= c.recovery_k
    values = reference.cosines(D, m.whitener_)
    parallel = values.max() > 1 - 2.0**-20  # counts as 1
    brute = max((k for k in range(1, n + 1) if not parallel and values.max() < 1 / (2 * k - 1)), default=0)
    assert c.unique_k_coherence == brute


# ------------------------------------------------------------------------ samples


def brute_certify(D, codes):
    unit, norms = reference.unit_rows(D)
    G = unit @ unit.T
    off = np.abs(G - np.diag(np.diag(G)))
    out = []
    for row in codes:
        S = np.flatnonzero(row)
        k = len(S)
        if k == 0:
            out.append((0, True, True, True, True, True))
            continue
        rest = np.setdiff1d(np.arange(len(D)), S)
        mu_j = off[S].max(axis=1)
        mu = mu_j.max()
        delta = np.abs(row[S]) * norms[S]
        outside = off[np.ix_(S, rest)].sum(0).max() if len(rest) else 0
        p = G[:, S] @ (row[S] * norms[S])
        out.append(
            (
                mu,
                mu < 1 / (2 * k - 1),
                (mu_j / (1 + mu_j)).sum() < 0.5,
                outside + off[np.ix_(S, S)].sum(0).max() < 1,
                mu * k * delta.max() < delta.min() - mu * (k - 1) * delta.max(),
                p[S].min() > max(0, p[rest].max() if len(rest) else 0),
            )
        )
    return [np.array(column) for column in zip(*out)]


@pytest.mark.parametrize("shape", [(12, 30), (40, 20), (600, 50), (90, 300)])
def test_sample_certificates_against_brute_force(shape, monkeypatch):
    from atoms.theory import _certificates

    monkeypatch.setattr(_certificates, "_TILE_BYTES", 1 << 16)  # several tiles both ways
    rng = np.random.default_rng(shape[0])
    D = rng.standard_normal(shape) * rng.uniform(0.5, 2, (shape[0], 1))
    codes = sparse_codes(rng, 80, shape[0], 4)
    got = certify(D, scipy.sparse.csr_array(codes))
    mu, unique, l1_unique, recoverable, feasible, exact = brute_certify(D, codes)
    assert np.array_equal(got.l0, (codes != 0).sum(1))
    np.testing.assert_allclose(got.mu, mu, atol=1e-6)
    for name, want in [
        ("unique", unique),
        ("l1_unique", l1_unique),
        ("recoverable", recoverable),
        ("threshold_feasible", feasible),
        ("threshold_exact", exact),
    ]:
        assert np.array_equal(getattr(got, name), want), name
        assert got.shares[name] == want.mean()
    assert (got.l1_unique | ~got.unique).all() and (got.threshold_exact | ~got.threshold_feasible).all()
    assert np.array_equal(got.threshold_feasible, (got.threshold_low < got.threshold_high) | (got.l0 == 0))
    assert "n=80" in repr(got)


def test_certified_codes_are_what_l1_finds():
    """The promise itself: no other code of the reconstruction has as small an l1 norm."""
    rng = np.random.default_rng(3)
    D = basis_pair(16)
    codes = sparse_codes(rng, 60, 32, 4) * rng.choice([-1, 1], (60, 32))
    got = certify(D, scipy.sparse.csr_array(codes))
    assert 0 < got.shares["l1_unique"] < 1 and got.shares["recoverable"] > 0
    for row, certified in zip(codes, got.l1_unique | got.recoverable):
        if certified:
            x = row @ D
            found = scipy.optimize.linprog(np.ones(64), A_eq=np.hstack([D.T, -D.T]), b_eq=x).x
            np.testing.assert_allclose(found[:32] - found[32:], row, atol=1e-7)


def test_feasible_thresholds_return_the_support():
    rng = np.random.default_rng(4)
    m = aip(64)
    W = HADAMARD @ m.unwhitener_
    codes = sparse_codes(rng, 200, 128, 3)
    got = certify(W, scipy.sparse.csr_array(codes), m)
    assert 0.1 < got.shares["threshold_feasible"] < 1
    norms = np.linalg.norm(W @ m.whitener_, axis=1)
    pre = (codes @ W) @ m.metric_ @ (W / norms[:, None]).T
    for i in np.flatnonzero(got.threshold_feasible & (got.l0 > 0)):
        tau = (got.threshold_low[i] + got.threshold_high[i]) / 2
        assert np.array_equal(pre[i] > tau, codes[i] > 0)


@pytest.mark.parametrize("scale", [1.0, -3.0, 0.1])
@pytest.mark.parametrize("d", [10, 200])
def test_a_twin_off_the_support_is_not_told_apart(scale, d):
    """No threshold separates an atom from its copy, whatever the last bits of float32 products say."""
    rng = np.random.default_rng(d)
    for _ in range(20):
        B = rng.standard_normal((10, d))
        D = np.vstack([B, scale * B])
        codes = np.zeros((40, 20))
        for row in codes:
            on = rng.choice(10, rng.integers(1, 4), replace=False)
            row[on] = rng.random(len(on)) + 0.1
        got = certify(D, scipy.sparse.csr_array(codes))
        if scale > 0:
            assert not got.threshold_exact.any()
        assert not (got.threshold_feasible | got.unique | got.l1_unique | got.recoverable).any()
    spread = certify(np.eye(20, d) if d > 20 else np.eye(20), scipy.sparse.csr_array(np.abs(codes)))
    assert spread.threshold_exact.all() and spread.threshold_feasible.all()


def test_certify_orthonormal_and_refusals():
    codes = scipy.sparse.csr_array(np.tri(5))
    assert set(certify(np.eye(5), codes).shares.values()) == {1.0}
    assert certify(np.eye(5), scipy.sparse.csr_array((0, 5))).l0.shape == (0,)
    zeros = scipy.sparse.csr_array(([1.0, 0.0], [0, 1], [0, 2]), shape=(1, 2))
    twins = np.ones((2, 3))
    assert certify(twins, zeros).l0 == [1]
    assert not certify(twins, zeros).unique  # a twin explains it just as well
    assert zeros.nnz == 2  # input untouched
    with pytest.raises(TypeError, match="sparse"):
        certify(np.eye(5), np.eye(5))
    with pytest.raises(ValueError, match="expected 4 columns"):
        certify(np.eye(4), codes)
    with pytest.raises(ValueError, match="finite"):
        certify(np.eye(5), codes * np.nan)


# ---------------------------------------------------------------------- intervals


def test_intervals_cover_and_shrink():
    rng = np.random.default_rng(5)
    covered, widths = 0, []
    for _ in range(60):
        X = rng.standard_normal((300, 3))
        result = explained_variance(X, X - 0.5 * rng.standard_normal(X.shape))
        interval = explained_variance_interval(result, level=0.9, n_boot=200)
        covered += interval.low <= 0.75 <= interval.high
        widths.append(interval.high - interval.low)
        assert interval.estimate == result.total and len(interval.draws) == 200
    assert 45 <= covered <= 60
    X = rng.standard_normal((4800, 3))
    more = explained_variance_interval(explained_variance(X, X - 0.5 * rng.standard_normal(X.shape)))
    assert more.high - more.low < 0.5 * np.mean(widths)


def test_blocks_widen_the_interval_of_dependent_samples():
    rng = np.random.default_rng(6)
    scale = np.repeat(rng.lognormal(0, 1, 40), 50)[:, None]  # forty texts of fifty tokens
    X = rng.standard_normal((2000, 4))
    result = explained_variance(X, X + 0.3 * scale * rng.standard_normal(X.shape))
    single, block = (explained_variance_interval(result, block_size=b, n_boot=300) for b in (1, 50))
    assert block.high - block.low > 2 * (single.high - single.low)
    for arguments in ({"n_boot": 0}, {"level": 1.0}, {"block_size": 2001}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            explained_variance_interval(result, **arguments)
    stream = ExplainedVariance().update(X, X).result()
    with pytest.raises(ValueError, match="no mean"):
        explained_variance_interval(stream)


def test_stability_interval():
    rng = np.random.default_rng(7)
    D, l0 = rng.standard_normal((200, 30)), rng.integers(0, 12, 150)
    interval = stability_interval(D, l0, n_boot=100, block_size=7)
    s = stability(D, l0)
    assert interval.estimate == s.q_star and interval.low <= s.q_star <= interval.high
    rng = np.random.default_rng(0)
    first = rng.multinomial(22, np.full(22, 1 / 22))
    drawn = np.concatenate([np.tile(l0[7 * b : 7 * b + 7], t) for b, t in enumerate(first)])
    assert interval.draws[0] == pytest.approx(stability(coherence(D), drawn).q_star, abs=1e-12)
    assert stability_interval(np.eye(4), [0, 4, 2]).low == 1.0


# ----------------------------------------------------------------------- matching


@pytest.mark.parametrize("sizes", [(40, 40), (30, 45), (45, 30), (1, 1)])
@pytest.mark.parametrize("dense", [True, False])
def test_matching_finds_the_permutation(sizes, dense, monkeypatch):
    if not dense:
        monkeypatch.setattr(matching, "_DENSE", 0)
    rng = np.random.default_rng(8)
    d = 20
    m = aip(d)
    A = rng.standard_normal((max(sizes), d))
    order = rng.permutation(max(sizes))[: sizes[1]]
    B = A[order] * rng.uniform(-2, 2, (len(order), 1))
    A = A[: sizes[0]]
    got = match_dictionaries(A, B, m)
    common = [i for i in range(sizes[0]) if i in order]
    place = {i: j for i, j in zip(got.index_a, got.index_b)}
    assert len(place) == len(set(place.values())) == min(sizes)
    assert all(order[place[i]] == i for i in common if i in place)
    if sizes[0] == sizes[1]:
        assert got.mcc == pytest.approx(1, abs=1e-6) and got.share_above(0.999) == 1
    assert got.exact == dense


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.booleans())
def test_matching_against_brute_force(seed, dense):
    rng = np.random.default_rng(seed)
    n, m = (int(v) for v in rng.integers(1, 7, 2))
    A, B = rng.standard_normal((n, 3)), rng.standard_normal((m, 3))
    before, matching._DENSE = matching._DENSE, 4096 if dense else 0
    try:
        got = match_dictionaries(A, B, candidates=6)
    finally:
        matching._DENSE = before
    size = np.abs(reference.unit_rows(A)[0] @ reference.unit_rows(B)[0].T)
    size_ = size if n <= m else size.T
    best = max(
        np.mean([size_[i, j] for i, j in enumerate(p)])
        for p in itertools.permutations(range(max(n, m)), min(n, m))
    )
    assert got.mcc == pytest.approx(best, abs=1e-6)  # all pairs are candidates here
    np.testing.assert_allclose(got.nearest_a, size.max(1), atol=1e-6)
    np.testing.assert_allclose(got.nearest_b, size.max(0), atol=1e-6)
    assert got.mmcs == pytest.approx((size.max(1).mean() + size.max(0).mean()) / 2, abs=1e-6)
    assert (np.diff(got.index_a) > 0).all()


def test_few_candidates_lose_little():
    rng = np.random.default_rng(9)
    A = rng.standard_normal((500, 40))
    B = A[rng.permutation(500)] + rng.standard_normal((500, 40))
    full = match_dictionaries(A, B)
    try:
        matching._DENSE = 0
        few = match_dictionaries(A, B, candidates=8)
    finally:
        matching._DENSE = 4096
    assert full.exact and not few.exact
    assert full.mcc - 0.01 < few.mcc <= full.mcc + 1e-9 <= few.nearest_a.mean() + 1e-6
    table = pairwise_mcc([A, B, A[::-1]])
    assert table[0, 2] == pytest.approx(1, abs=1e-6)
    assert table[0, 1] == table[1, 0] == pytest.approx(full.mcc)
    assert table[1, 2] == pytest.approx(full.mcc, abs=1e-6)


def test_subspaces():
    rng = np.random.default_rng(10)
    basis = rng.standard_normal((5, 30))
    A, B = rng.standard_normal((20, 5)) @ basis, rng.standard_normal((50, 5)) @ basis
    assert subspace_overlap(A, B) == pytest.approx(1)
    m = aip(30)
    assert subspace_overlap(A, B, m) == pytest.approx(1)
    random = [subspace_overlap(rng.standard_normal((5, 30)), A) for _ in range(50)]
    assert np.mean(random) == pytest.approx(5 / 30, abs=0.04)
    wide = rng.standard_normal((90, 30))
    assert subspace_overlap(wide, rng.standard_normal((90, 30))) == pytest.approx(1)
    assert subspace_overlap(wide, wide[::-1], k=7) == pytest.approx(1)
    for arguments, message in [
        ((A, B, None, 6), "smaller rank"),
        ((A, B[:, :9]), "expected 30 columns"),
        ((A * 0, B), "not zero"),
    ]:
        with pytest.raises(ValueError, match=message):
            subspace_overlap(*arguments)
    for a, b in ((A, B[:, :9]), (A[:0], B)):
        with pytest.raises(ValueError, match=r"A|B"):
            match_dictionaries(a, b)
    with pytest.raises(ValueError, match="candidates"):
        match_dictionaries(A, B, candidates=0)
    assert math.isclose(match_dictionaries(A, A).mmcs, 1, abs_tol=1e-6)
