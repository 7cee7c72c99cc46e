"""Lasso, basis pursuit, the other pursuits, threshold coding and the estimator."""

import itertools
import pickle
import sys

import numpy as np
import pytest
import scipy.sparse
from support import RNG, basis_pair, planted, run

from atoms import AtomicInnerProduct, SparseCoder, recovery
from atoms import _reference as reference
from atoms.recovery import (
    Dictionary,
    RecoveryWarning,
    Status,
    lasso,
    lasso_path,
    omp,
    threshold_interval,
)
from atoms.recovery._lasso import basis_pursuit, basis_pursuit_denoise
from atoms.recovery._pursuits import cosamp, gradient_pursuit, iht, matching_pursuit, threshold_code

# ---------------------------------------------------------------------------- lasso


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("gram_bytes", [0, 1 << 30])
def test_lasso_gap_is_the_definition(isa, dtype, gram_bytes):
    tol = 1e-9 if dtype == np.float64 else 1e-5
    for n_atoms, d in ((1, 1), (15, 17), (33, 15), (97, 33)):
        X, D, _ = planted(9, n_atoms, d, min(3, n_atoms), seed=n_atoms, noise=0.3, dtype=dtype)
        for positive in (False, True):
            alpha = 0.2
            d_ = Dictionary(D, gram_bytes=gram_bytes)
            codes, info = lasso(X, d_, alpha, tol=tol, positive=positive, return_info=True)
            assert (info.status == Status.CONVERGED).all() and codes.dtype == dtype
            assert not positive or codes.nnz == 0 or codes.data.min() > 0
            for x, z, gap in zip(X.astype(float), codes.toarray().astype(float), info.gap, strict=True):
                assert gap <= tol * (x @ x)
                if not positive:
                    want = reference.lasso_gap(x, D.astype(float), z, alpha)
                    assert abs(want - gap) < 2 * tol * (x @ x)
                twin = reference.lasso(x, D.astype(float), alpha, positive, steps=500)
                value = [0.5 * np.sum((x - c @ D) ** 2) + alpha * abs(c).sum() for c in (z, twin)]
                assert value[0] <= value[1] + tol * (x @ x)


def test_lasso_is_scikit_learns():
    from sklearn.linear_model import Lasso

    X, D, _ = planted(60, 200, 64, 6, noise=0.2)
    D *= RNG(1).uniform(0.2, 3, (200, 1))  # the penalty falls on the atoms as given
    for alpha, positive in itertools.product((1.0, 0.3, 0.05), (False, True)):
        codes, info = lasso(X, D, alpha, tol=1e-11, positive=positive, return_info=True)
        assert (info.status == 0).all()
        model = Lasso(alpha / 64, fit_intercept=False, tol=1e-13, max_iter=100_000, positive=positive)
        want = model.fit(D.T, X.T).coef_
        np.testing.assert_allclose(codes.toarray(), want, atol=2e-5)


@pytest.mark.parametrize("positive", [False, True])
def test_lasso_at_tight_tolerances_is_lars(isa, positive):
    from sklearn.linear_model import lars_path

    X, D = RNG(5).standard_normal((6, 50)), RNG(6).standard_normal((200, 50))
    for share, tol in ((1e-2, 1e-10), (1e-4, 1e-8), (1e-5, 1e-8)):
        for x in X:
            alpha = share * np.abs(D @ x).max()
            codes, info = lasso(x[None], D, alpha, tol=tol, positive=positive, return_info=True)
            assert info.status[0] == Status.CONVERGED and info.steps[0] < 50
            lars = lars_path(D.T, x, method="lasso", alpha_min=alpha / 50, positive=positive)[2][:, -1]
            z = codes.toarray()[0]
            value = [0.5 * np.sum((x - c @ D) ** 2) + alpha * abs(c).sum() for c in (z, lars)]
            assert value[0] <= value[1] + tol * (x @ x)
            twin = reference.lasso_active_set(x, D, alpha, positive)
            assert np.abs(z - twin).max() < 1e-6 * np.abs(z).max()


@pytest.mark.parametrize(
    "kind", ["copies", "near copies", "opposites", "integers", "low rank", "bumps", "lengths"]
)
def test_lasso_over_dependent_atoms_ends_with_a_certificate(isa, kind):
    g = RNG(7).standard_normal
    base = g((30, 24))
    D = {
        "copies": np.repeat(base, 3, 0),
        "near copies": np.repeat(base, 3, 0) + 1e-6 * g((90, 24)),
        "opposites": np.vstack([base, -base, 2 * base]),
        "integers": RNG(8).integers(-1, 2, (60, 24)).astype(float),
        "low rank": g((60, 8)) @ g((8, 24)),
        "bumps": np.exp(-0.5 * ((np.arange(24.0) - np.linspace(0, 23, 70)[:, None]) / 2) ** 2),
        "lengths": base * 10.0 ** RNG(9).uniform(-4, 4, (30, 1)),
    }[kind]
    X = np.vstack([g((6, 24)), RNG(10).integers(-2, 3, (6, 24))])
    for share, positive in itertools.product((0.1, 1e-2, 1e-4), (False, True)):
        alpha = share * np.abs(X @ D.T).max()
        codes, info = lasso(X, D, alpha, tol=1e-8, positive=positive, return_info=True)
        assert (info.status == Status.CONVERGED).all()
        if not positive:
            gaps = [reference.lasso_gap(x, D, z, alpha) for x, z in zip(X, codes.toarray(), strict=True)]
            assert (np.array(gaps) <= 1.1e-8 * np.sum(X**2, axis=1)).all()
    small = lasso(X.astype(np.float32), D.astype(np.float32), 1e-2 * np.abs(X @ D.T).max(), return_info=True)[
        1
    ]
    assert (small.status == Status.CONVERGED).all()


@pytest.mark.parametrize("gram_bytes", [0, 1 << 30])
@pytest.mark.parametrize("kind", ["common", "clusters", "copies", "random"])
def test_long_lasso_codes_over_atoms_much_alike(isa, kind, gram_bytes):
    n_atoms, d, rng = 600, 200, RNG(3)
    D = rng.standard_normal((n_atoms, d)) / np.sqrt(d)
    if kind == "common":
        D += 2 * RNG(4).standard_normal(d) / np.sqrt(d)
    if kind == "clusters":
        D = RNG(4).standard_normal((25, d))[np.arange(n_atoms) % 25] / np.sqrt(d) + 0.1 * D
    if kind == "copies":
        D = RNG(4).standard_normal((150, d))[np.arange(n_atoms) % 150] / np.sqrt(d) + 1e-3 * D
    D = (D / np.linalg.norm(D, axis=1, keepdims=True)).astype(np.float32)
    X = rng.standard_normal((6, d)).astype(np.float32)
    top = np.abs(X @ D.T).max(axis=1)
    atoms = Dictionary(D, gram_bytes=gram_bytes)
    for share, tol in ((0.3, 1e-4), (0.05, 1e-4), (0.05, 5e-6)):
        alpha = share * float(top.min())
        codes, info = lasso(X, atoms, alpha, tol=tol, return_info=True)
        assert (info.status == Status.CONVERGED).all() and info.steps.max() < 30
        assert codes.nnz > (15 if share == 0.3 else 60) * len(X)
        for x, z in zip(X.astype(float), codes.toarray().astype(float), strict=True):
            assert reference.lasso_gap(x, D.astype(float), z, alpha) <= (1.1 * tol + 3e-6) * (x @ x)


@pytest.mark.filterwarnings("ignore::atoms.recovery.RecoveryWarning")
def test_gaps_that_rounding_hides_are_not_taken_for_proofs(isa):
    """Penalties of a ten-millionth to a hundredth of signals that the atoms do not span."""
    rng, seen = RNG(5), []
    for _ in range(30):
        D = abs(rng.standard_normal((15, 64))).astype(np.float32)
        X = (1e7 * rng.standard_normal((8, 64)) / 8).astype(np.float32)
        alpha = 10 ** rng.uniform(0, 5)
        codes, info = lasso(X, D, alpha, return_info=True)
        for x, z, status in zip(X.astype(float), codes.toarray().astype(float), info.status, strict=True):
            gap = reference.lasso_gap(x, D.astype(float), z, alpha)
            assert status == Status.LIMIT or gap <= 2.2e-4 * (x @ x)
            seen.append(int(status))
    assert {0, 2} <= set(seen)


def test_a_path_at_tight_tolerances_is_its_single_penalties():
    X, D = RNG(5).standard_normal((5, 40)), RNG(6).standard_normal((160, 40))
    alphas, codes, infos = lasso_path(X, D, n_alphas=6, eps=1e-4, tol=1e-10, return_info=True)
    for alpha, code, info in zip(alphas, codes, infos, strict=True):
        assert (info.status == Status.CONVERGED).all()
        one = lasso(X, D, alpha, tol=1e-10)
        assert np.abs((code - one).toarray()).max() < 1e-6


def test_lasso_is_celers_to_the_gap():
    celer = pytest.importorskip("celer")
    X, D, _ = planted(25, 200, 64, 6, noise=0.2)
    for alpha in (1.0, 0.2):
        codes, info = lasso(X, D, alpha, tol=1e-10, return_info=True)
        assert (info.status == 0).all()
        model = celer.Lasso(alpha / 64, fit_intercept=False, tol=1e-12)
        for x, z in zip(X, codes.toarray(), strict=True):
            want = model.fit(np.asfortranarray(D.T), x).coef_
            value = [0.5 * np.sum((x - c @ D) ** 2) + alpha * abs(c).sum() for c in (z, want)]
            assert abs(value[0] - value[1]) < 2e-10 * (x @ x)
            np.testing.assert_allclose(z, want, atol=1e-4)


def test_lasso_is_spams_to_the_gap():
    spams = pytest.importorskip("spams")
    X, D, _ = planted(200, 200, 64, 6, noise=0.2)
    A, B = np.asfortranarray(D.T), np.asfortranarray(X.T)
    for alpha, positive in itertools.product((1.0, 0.2), (False, True)):
        codes = lasso(X, D, alpha, tol=1e-10, positive=positive).toarray()
        want = spams.lasso(B, A, lambda1=alpha, mode=2, pos=positive, numThreads=1).T.toarray()
        for x, z, w in zip(X, codes, want, strict=True):
            value = [0.5 * np.sum((x - c @ D) ** 2) + alpha * abs(c).sum() for c in (z, w)]
            assert abs(value[0] - value[1]) < 2e-10 * (x @ x)


def test_lasso_with_twin_atoms_and_on_the_path():
    X, D, _ = planted(40, 60, 24, 4, noise=0.3)
    D = np.vstack([D, D[:20], np.zeros((1, 24))])
    alphas, codes, infos = lasso_path(X, D, n_alphas=8, tol=1e-10, return_info=True)
    assert codes[0].nnz <= 1 and (np.diff(alphas) < 0).all()  # at the largest correlation: zero
    for alpha, z, info in zip(alphas, codes, infos, strict=True):
        assert (info.status == 0).all()
        single, one = lasso(X, D, alpha, tol=1e-10, return_info=True)
        for a, b, x in zip(z.toarray(), single.toarray(), X, strict=True):
            value = [0.5 * np.sum((x - c @ D) ** 2) + alpha * abs(c).sum() for c in (a, b)]
            assert abs(value[0] - value[1]) < 2e-10 * (x @ x)
    np.testing.assert_allclose(lasso_path(X, D, [0.5, 2.0])[0], [2.0, 0.5])
    with pytest.warns(RecoveryWarning, match="stopped at the limit"):
        _, info = lasso(X, D, 0.05, tol=1e-12, max_iter=1, return_info=True)
    assert (info.status == Status.LIMIT).any() and (info.gap[info.status == 2] > 0).all()


def test_lasso_by_the_gram_matrix_of_many_signals_is_that_by_screens():
    X, D, _ = planted(2400, 1100, 33, 4, noise=0.2, dtype=np.float32)
    d = Dictionary(D)
    few, many = lasso(X[:500], d, 0.3, tol=1e-6), lasso(X, d, 0.3, tol=1e-6)
    assert d.has_gram
    np.testing.assert_allclose(few.toarray(), many[:500].toarray(), atol=2e-3)


@pytest.mark.parametrize("n_atoms", [96, 1500], ids=["gram", "screens"])
def test_lasso_bits_do_not_depend_on_threads_or_other_signals(n_atoms):
    X, D, _ = planted(700, n_atoms, 33, 5, noise=0.2, dtype=np.float32)
    whole = lasso(X, D, 0.1)
    some = scipy.sparse.vstack([lasso(X[:13], D, 0.1), lasso(X[13:300], D, 0.1), lasso(X[300:], D, 0.1)])
    for other in (lasso(X, D, 0.1, num_threads=1), lasso(X, D, 0.1, num_threads=3), some.tocsr()):
        assert (whole.indices == other.indices).all() and (whole.data == other.data).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["random", "alike", "massive"])
def test_lasso_waits_for_correlations_and_goes_on(isa, dtype, kind):
    """Working sets beyond what a waiting signal keeps, penalties one after the other, atoms that screens can hardly tell."""
    X, D, _ = planted(8, 300, 210, 30, noise=0.5, dtype=dtype)
    if kind == "alike":
        D[150:] = D[:150] + 1e-3 * RNG(2).standard_normal((150, 210))
    elif kind == "massive":
        D[:, 3] = 1.0
        X[:, 3] *= 3
    D *= RNG(1).uniform(0.5, 2, (300, 1))
    D[7] = 0
    grid = np.array([0.3, 0.1, 0.03]) * np.linalg.norm(X, axis=1).min()
    tol = 1e-9 if dtype == np.float64 else 1e-4
    d = Dictionary(D.astype(dtype), gram_bytes=0)
    for positive in (False, True):
        _, codes, infos = lasso_path(X, d, grid, tol=tol, positive=positive, return_info=True)
        single, info = lasso(X, d, grid[-1], tol=tol, positive=positive, return_info=True)
        assert codes[-1].nnz > 64 * 8 or kind != "random" or positive
        for alpha, z, i in [*zip(grid, codes, infos, strict=True), (grid[-1], single, info)]:
            assert (i.status == Status.CONVERGED).all()
            assert z.nnz == 0 or not positive or z.data.min() > 0
            for x, row, gap in zip(X.astype(float), z.toarray().astype(float), i.gap, strict=True):
                r = x - row @ D.astype(float)
                c = D.astype(float) @ r
                s = min(1.0, alpha / max((c if positive else abs(c)).max(), 1e-300))
                want = 0.5 * r @ r + alpha * abs(row).sum() - s * x @ r + 0.5 * s * s * r @ r
                assert gap <= tol * (x @ x) and want <= gap + 0.2 * tol * (x @ x)


@pytest.mark.parametrize("n_atoms", [900, 1100], ids=["gram", "screens"])
def test_lasso_on_sets_too_large_for_screens(isa, n_atoms):
    """Small penalties over many atoms, some of the signals: with a Gram matrix and with none, alone and together."""
    X, D, _ = planted(9, n_atoms, 48, 5, seed=2, noise=0.5, dtype=np.float32)
    X[::2] = RNG(3).standard_normal(X[::2].shape)  # as dense as codes get
    for alpha in (0.3, 2e-3):
        held, bare = Dictionary(D), Dictionary(D, gram_bytes=0)
        codes, info = lasso(X, held, alpha, return_info=True)
        assert (info.status == Status.CONVERGED).all()
        assert held.has_gram or (n_atoms, alpha) == (1100, 0.3)  # the other penalty outgrows screens
        other = lasso(X, bare, alpha)
        for i, (x, z, far) in enumerate(zip(X, codes.toarray(), other.toarray(), strict=True)):
            gap = reference.lasso_gap(x.astype(float), D.astype(float), z.astype(float), alpha)
            assert gap <= 3e-4 * (x @ x) and info.gap[i] <= 1e-4 * (x @ x)
            values = [0.5 * np.sum((x - c @ D) ** 2) + alpha * abs(c).sum() for c in (z, far)]
            assert abs(values[0] - values[1]) <= 1e-4 * (x @ x)
            np.testing.assert_array_equal(lasso(X[i : i + 1], D, alpha).toarray()[0], z)
    _, path = lasso_path(X, D, [0.3, 2e-3])
    for x, z in zip(X, path[1].toarray(), strict=True):
        assert reference.lasso_gap(x.astype(float), D.astype(float), z.astype(float), 2e-3) <= 3e-4 * (x @ x)


@pytest.mark.parametrize("scale", [1e-20, 1e-9, 1e9, 1e20])
def test_lasso_in_float32_is_indifferent_to_scale(isa, scale):
    X, D, _ = planted(12, 97, 33, 3, noise=0.1)
    want = lasso(X.astype(np.float32), D.astype(np.float32), 0.3, tol=1e-6).toarray()
    for x, a in ((scale, 1.0), (1.0, scale)):  # of the signals, of the atoms
        got = lasso((X * x).astype(np.float32), (D * a).astype(np.float32), 0.3 * x * a, tol=1e-6).toarray()
        np.testing.assert_allclose(got * (a / x), want, atol=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lasso_at_penalties_that_underflow_is_least_squares(isa, dtype):
    X, D = RNG(0).standard_normal((12, 3)), RNG(1).standard_normal((65, 3))
    for scale, alpha in ((1, 1e-46), (1e10, 5e-324), (1e30, 1e-300), (1e-30, 1e-320), (1.5e38, 1e-8)):
        x = (X / abs(X).max() * scale).astype(dtype)
        codes, info = lasso(x, D.astype(dtype), alpha, return_info=True)
        assert (info.residual <= 0.02 * np.linalg.norm(x.astype(float), axis=1)).all()
        assert codes.indices.max() < 65 and (info.status == Status.CONVERGED).all()


def test_lasso_bits_do_not_depend_on_threads_while_signals_wait(isa):
    X, D, _ = planted(200, 700, 97, 20, noise=0.4, dtype=np.float32)
    codes = [lasso(X, Dictionary(D, gram_bytes=0), 0.15, num_threads=t) for t in (1, 2, 3)]
    assert codes[0].nnz > 0
    for other in codes[1:]:
        assert (codes[0].indices == other.indices).all() and (codes[0].data == other.data).all()


# -------------------------------------------------------------------- basis pursuit


def test_basis_pursuit_is_highs():
    from scipy.optimize import linprog

    X, D, _ = planted(24, 60, 20, 4)
    X[8:] = RNG(9).standard_normal((16, 20))  # no sparse code: the interior point has to work
    D *= RNG(1).uniform(0.3, 2, (60, 1))
    codes, info = basis_pursuit(X, D, return_info=True)
    assert (info.status == 0).all() and info.residual.max() < 1e-9
    for x, z, gap in zip(X, codes.toarray(), info.gap, strict=True):
        best = linprog(np.ones(120), A_eq=np.hstack([D.T, -D.T]), b_eq=x, method="highs").fun
        assert abs(abs(z).sum() - best) < 1e-7 * best and 0 <= gap < 1e-7 * best


@pytest.mark.parametrize("n, k", [(16, 2), (64, 4)])
def test_basis_pursuit_recovers_below_the_bound(n, k):
    """K < (1 + sqrt(n)) / 2 over identity with Hadamard, in all of 10,000 trials."""
    D = basis_pair(n)
    g = RNG(0)
    Z = np.zeros((10_000, 2 * n))
    for i, z in enumerate(Z):
        amplitude = 10.0 ** g.uniform(-3, 3, k) if i % 2 else np.ones(k)
        z[g.choice(2 * n, k, replace=False)] = amplitude * g.choice([-1, 1], k)
    codes, info = basis_pursuit(Z @ D, D, return_info=True)
    assert (info.status == 0).all()
    np.testing.assert_allclose(codes.toarray(), Z, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["random", "equiangular"])
def test_recovery_bound_on_other_dictionaries(kind):
    if kind == "random":
        g = RNG(4)
        D = g.standard_normal((40, 400))
    else:  # the simplex: every pair at -1/d
        D = np.eye(33) - 1 / 33
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    G = abs(D @ D.T)
    mu = (G - np.diag(np.diag(G))).max()
    k = int(np.ceil((1 + 1 / mu) / 2)) - 1
    assert k >= 2
    g = RNG(1)
    Z = np.zeros((10_000, len(D)))
    for z in Z:
        z[g.choice(len(D), k, replace=False)] = 10.0 ** g.uniform(-2, 2, k) * g.choice([-1, 1], k)
    for codes in (omp(Z @ D, D, k), basis_pursuit(Z @ D, D)):
        np.testing.assert_allclose(codes.toarray(), Z, rtol=1e-6, atol=1e-8)


def test_restricted_isometry_is_bounded_by_coherence():
    for D in (planted(1, 14, 10, 2)[1], basis_pair(8)):
        G = D @ D.T
        mu = abs(G - np.eye(len(D))).max()
        for k in (2, 3):
            delta = max(
                abs(np.linalg.eigvalsh(G[np.ix_(s, s)]) - 1).max()
                for s in map(list, itertools.combinations(range(len(D)), k))
            )
            assert delta <= (k - 1) * mu + 1e-12


def test_denoising_meets_sigma_and_its_dual():
    X, D, _ = planted(40, 120, 40, 5, noise=0.2)
    for sigma in (0.3, 1.0, 2.0):
        codes, info = basis_pursuit_denoise(X, D, sigma, return_info=True)
        assert (info.status == 0).all()
        np.testing.assert_allclose(info.residual, sigma, rtol=1e-6)
        for x, z, gap in zip(X[:10], codes.toarray(), info.gap, strict=False):
            r = x - z @ D
            y = r / abs(D @ r).max()  # dual feasible
            assert abs(z).sum() - (x @ y - sigma * np.linalg.norm(y)) < 2e-6 * abs(z).sum()
            assert gap < 1e-6 * abs(z).sum() + 1e-12
    zero = basis_pursuit_denoise(X, D, 100.0)
    assert zero.nnz == 0
    exact = basis_pursuit(X, D)
    np.testing.assert_allclose(basis_pursuit_denoise(X, D, 0).toarray(), exact.toarray())


@pytest.mark.parametrize("length", [1.0, 1e-11, 1e11])
def test_small_sigmas_are_met_at_any_scale(length):
    rng = RNG(0)
    D = np.linalg.qr(rng.standard_normal((60, 30)))[0]
    Z = np.zeros((12, 60))
    for z in Z:
        z[rng.choice(60, 3, replace=False)] = rng.standard_normal(3)
    X = Z @ D
    D[0] *= 1e6  # one atom of another length: no threshold may be that of the longest
    for share in (1e-3, 1e-6, 1e-8, 1e-9):
        for x in X:
            sigma = share * np.linalg.norm(x)
            code, info = basis_pursuit_denoise(x[None], length * D, sigma, return_info=True)
            assert info.status[0] == Status.CONVERGED
            assert np.linalg.norm(x - code.toarray()[0] @ (length * D)) <= sigma * (1 + 2e-6)


def test_basis_pursuit_over_smooth_atoms_is_feasible_and_optimal():
    from scipy.optimize import linprog

    D = np.exp(-0.5 * ((np.arange(20.0) - np.linspace(0, 19, 60)[:, None]) / 1.5) ** 2)
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    rng = RNG(3)
    Z = np.where(rng.random((20, 60)) < 0.1, rng.standard_normal((20, 60)), 0)
    X = Z @ D
    codes, info = basis_pursuit(X, D, return_info=True)
    assert (info.status != Status.INFEASIBLE).all() and (info.status == Status.CONVERGED).mean() > 0.9
    exact = dict(primal_feasibility_tolerance=1e-10, dual_feasibility_tolerance=1e-10)
    for x, z, status, planted_code in zip(X, codes.toarray(), info.status, Z, strict=True):
        if status != Status.CONVERGED:
            continue
        assert np.linalg.norm(x - z @ D) <= 1.01e-9 * np.linalg.norm(x)
        assert abs(z).sum() <= abs(planted_code).sum() * (1 + 1e-7)
        best = linprog(np.ones(120), A_eq=np.hstack([D.T, -D.T]), b_eq=x, method="highs", options=exact)
        assert best.fun * (1 - 1e-3) <= abs(z).sum() <= best.fun * (1 + 1e-6)  # HiGHS's own x is off by 1e-10


def test_constraints_that_cannot_be_met_are_said():
    X, D, _ = planted(6, 5, 12, 2, noise=0.5)
    for solve in (basis_pursuit, lambda *a, **k: basis_pursuit_denoise(*a, 1e-3, **k)):
        with pytest.warns(RecoveryWarning, match="6 cannot be represented"):
            codes, info = solve(X, D, return_info=True)
        assert (info.status == Status.INFEASIBLE).all()
        best = np.linalg.norm(X - X @ np.linalg.pinv(D) @ D, axis=1)
        np.testing.assert_allclose(info.residual, best, rtol=1e-4)


# ------------------------------------------------------------------- other pursuits


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("gram_bytes", [0, 1 << 30])
def test_pursuits_recover_easy_codes(isa, dtype, gram_bytes):
    X, D, Z = planted(50, 97, 64, 3, dtype=dtype)
    d = Dictionary(D, gram_bytes=gram_bytes)
    for solve, close in ((matching_pursuit, 1e-4), (cosamp, 1e-4), (iht, 2e-3)):
        codes, info = solve(X, d, 3, return_info=True)
        np.testing.assert_allclose(codes.toarray(), Z, atol=close)
        assert (info.status == 0).all() and codes.dtype == dtype
        np.testing.assert_allclose(info.residual, np.linalg.norm(X - codes @ D, axis=1), atol=1e-4)
    codes = gradient_pursuit(X, d, 3, tol=1e-3)
    np.testing.assert_allclose(codes.toarray(), Z, atol=2e-3)


def test_matching_pursuit_is_its_definition():
    X, D, _ = planted(20, 50, 20, 4, noise=0.3)
    codes, info = matching_pursuit(X, D, 20, max_iter=9, return_info=True)
    for x, code in zip(X, codes.toarray(), strict=True):
        z, r = np.zeros(50), x.copy()
        for _ in range(9):
            a = D @ r
            j = np.argmax(abs(a))
            z[j] += a[j]
            r = x - z @ D
        np.testing.assert_allclose(code, z, atol=1e-12)
    assert (info.steps == 9).all()


def test_gradient_pursuit_is_its_definition():
    X, D, _ = planted(20, 50, 20, 4, noise=0.3)
    codes = gradient_pursuit(X, D, 6)
    for x, code in zip(X, codes.toarray(), strict=True):
        z, chosen = np.zeros(50), []
        for _ in range(6):
            a = D @ (x - z @ D)
            chosen = sorted(set(chosen) | {int(np.argmax(abs(a)))})
            g = np.zeros(50)
            g[chosen] = a[chosen]
            z = z + (g @ g) / np.sum((g @ D) ** 2) * g
        np.testing.assert_allclose(code, z, atol=1e-12)


def test_pursuits_lower_the_residual_and_keep_to_their_length():
    X, D, _ = planted(100, 128, 32, 6, noise=0.5)
    for solve in (matching_pursuit, gradient_pursuit, cosamp, iht):
        codes, info = solve(X, D, 5, return_info=True)
        assert (np.diff(codes.indptr) <= 5).all()
        assert (info.residual <= np.linalg.norm(X, axis=1) * (1 + 1e-12)).all()
        _, easy = solve(X, D, 5, tol=1e6, return_info=True)
        assert (easy.steps <= 1).all() and (easy.status == 0).all()


def bumps(n_atoms, d, width):
    """Gaussian bumps side by side, so wide that many are nearly the same."""
    return np.exp(-0.5 * ((np.arange(d) - np.linspace(0, d - 1, n_atoms)[:, None]) / width) ** 2)


@pytest.mark.filterwarnings("ignore::atoms.recovery.RecoveryWarning")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("width", [1.0, 2.0, 4.0])
def test_no_solver_is_worse_than_no_code_on_coherent_atoms(isa, dtype, width):
    D = bumps(80, 40, width)
    Z = scipy.sparse.random(40, 80, 0.06, random_state=0, data_rvs=RNG(0).standard_normal)
    X = (Z @ D + 0.05 * RNG(1).standard_normal((40, 40))).astype(dtype)
    D = D.astype(dtype)
    ols = {"selection": "ols"}
    for solve, options in [(cosamp, {}), (iht, {}), (gradient_pursuit, {}), (omp, {}), (omp, ols)]:
        for rule in ({"n_nonzero": 5}, {"tol": 1e-3}, {"n_nonzero": 40}):
            codes, info = solve(X, D, return_info=True, **rule, **options)
            true = np.linalg.norm(X.astype(float) - codes.astype(float) @ D.astype(float), axis=1)
            np.testing.assert_allclose(
                true, info.residual, rtol=1e-3, atol=2e-3 if dtype == np.float32 else 1e-8
            )
            assert (true <= np.linalg.norm(X, axis=1) * (1 + 1e-5)).all()
            met = true <= rule.get("tol", np.inf) * (1 + 1e-3) + 2e-3 * (dtype == np.float32)
            assert met[np.isin(info.status, (Status.CONVERGED, Status.DEPENDENT))].all()


@pytest.mark.filterwarnings("ignore::atoms.recovery.RecoveryWarning")
@pytest.mark.parametrize("solve", [omp, matching_pursuit, gradient_pursuit, cosamp, iht])
def test_number_and_tolerance_mean_the_same_everywhere(solve):
    D, X = RNG(0).standard_normal((256, 64)), RNG(1).standard_normal((30, 64))
    X[0] *= 1e-3  # below the tolerance as it is
    name = solve.__name__
    for rule in ({"tol": 1.0}, {"tol": 1.0, "n_nonzero": 4}, {"n_nonzero": 4}, {}):
        codes, info = solve(X, D, return_info=True, **rule)
        _, same = SparseCoder(D, name, **rule).fit(X).transform(X, return_info=True)
        np.testing.assert_array_equal(same.status, info.status)
        most = np.diff(codes.indptr).max()
        assert most <= rule.get("n_nonzero", 64 if "tol" in rule else 6)
        met = info.residual <= rule.get("tol", np.inf) * (1 + 1e-9)
        if "tol" in rule:
            np.testing.assert_array_equal(info.status == Status.CONVERGED, met)
            assert solve in (cosamp, iht) or met.all() == ("n_nonzero" not in rule)
        else:
            assert set(info.status) <= {Status.CONVERGED, Status.LIMIT}


def test_every_solver_meets_degenerate_signals():
    X, D, _ = planted(5, 24, 12, 2)
    X[1], X[3, 4] = 0, np.nan
    solvers = [
        lambda X, D, **k: omp(X, D, 3, **k),
        lambda X, D, **k: omp(X, D, 3, nonnegative=True, **k),
        lambda X, D, **k: lasso(X, D, 0.1, **k),
        lambda X, D, **k: basis_pursuit(X, D, **k),
        lambda X, D, **k: basis_pursuit_denoise(X, D, 0.1, **k),
        lambda X, D, **k: threshold_code(X, D, 0.1, **k),
    ] + [lambda X, D, f=f, **k: f(X, D, 3, **k) for f in (matching_pursuit, gradient_pursuit, cosamp, iht)]
    one, twice = D[:1], np.vstack([D, D, np.zeros((2, 12))])
    for solve in solvers:
        with pytest.warns(RecoveryWarning, match="1 contain NaN or infinity"):
            codes, info = solve(X, D, return_info=True)
        assert info.status[3] == Status.NONFINITE and np.isnan(info.residual[3])
        assert np.diff(codes.indptr)[[1, 3]].sum() == 0 and info.residual[1] == 0
        assert np.isfinite(codes.data).all()
        good = X[[0, 2, 4]]
        assert solve(good[:0], D).shape == (0, 24)
        ours = solve(good, twice)
        assert np.isfinite(ours.data).all() and (ours.indices < 48).all()
        solve(good[:, None, 0] * one, one)  # one atom, signals in its span


@pytest.mark.parametrize("scale", [1e-20, 1e-9, 1e9, 1e20])
def test_every_solver_is_indifferent_to_scale(scale):
    """Signals, penalties and tolerances times 1e-20 to 1e20: the same supports, codes times that."""
    X, D, _ = planted(12, 40, 20, 3, noise=0.1)
    for solve in (
        lambda X, s: omp(X, D, 3),
        lambda X, s: omp(X, D, 3, nonnegative=True),
        lambda X, s: omp(X, D, tol=0.5 * s),
        lambda X, s: lasso(X, D, 0.3 * s, tol=1e-10),
        lambda X, s: basis_pursuit(X, D),
        lambda X, s: basis_pursuit_denoise(X, D, 0.4 * s),
        lambda X, s: matching_pursuit(X, D, 3),
        lambda X, s: gradient_pursuit(X, D, 3),
        lambda X, s: cosamp(X, D, 3),
        lambda X, s: iht(X, D, 3),
        lambda X, s: threshold_code(X, D, 0.5 * s),
    ):
        want, got = solve(X, 1.0).toarray(), solve(X * scale, scale).toarray() / scale
        np.testing.assert_allclose(got, want, atol=2e-5 * abs(want).max())


# --------------------------------------------------------------- threshold coding


def test_one_pass_recovers_inside_the_interval_and_fails_just_outside():
    n, k = 64, 3
    D = basis_pair(n)
    mu, g = 1 / np.sqrt(n), RNG(0)
    Z = np.zeros((10_000, 2 * n))
    for z in Z:
        z[g.choice(2 * n, k, replace=False)] = g.uniform(1, 1.5, k)
    low, high = threshold_interval(Z, mu)
    assert (low < high).all()
    for share in (0.001, 0.5, 0.999):
        codes = threshold_code(Z @ D, D, low + share * (high - low))
        np.testing.assert_array_equal(codes.toarray() != 0, Z != 0)
    # the worst case of the proof: K equal amplitudes that add up on an atom outside the support
    z = np.zeros(2 * n)
    z[:k] = 1.0
    outside = int(np.argmax((z @ D) @ D[n:].T)) + n
    low, high = threshold_interval(z[None], mu)
    assert threshold_code(z[None] @ D, D, low - 1e-9)[0, outside] > 0
    assert threshold_code(z[None] @ D, D, low + 1e-9)[0, outside] == 0
    z = np.zeros(2 * n)  # and K - 1 large ones that take away from a small one
    z[n : n + k - 1], z[0] = 1.5, -1.0
    low, high = threshold_interval(z[None], mu)
    inner = (z @ D) @ D[0]
    assert abs(abs(inner) - high[0]) < 1e-12
    assert threshold_code(z[None] @ D, D, high - 1e-9, signed=True)[0, 0] != 0
    assert threshold_code(z[None] @ D, D, high + 1e-9, signed=True)[0, 0] == 0


def test_interval_of_a_zero_code_and_of_codes_too_dense():
    low, high = threshold_interval(scipy.sparse.csr_array(np.array([[0.0, 0, 0], [1, 1, 1]])), 0.5)
    assert (low[0], high[0]) == (0, np.inf) and low[1] >= high[1]


def test_threshold_code_is_the_theorys_product():
    g = RNG(0)
    X, D = g.standard_normal((400, 16)) @ g.standard_normal((16, 16)), g.standard_normal((40, 16))
    aip = AtomicInnerProduct().fit(X)
    pre = X @ aip.metric_ @ D.T
    codes, info = threshold_code(X, D, 0.5, metric=aip, return_info=True)
    np.testing.assert_allclose(codes.toarray(), np.where(pre >= 0.5, pre, 0), atol=1e-9)
    r = (X - codes @ D) @ aip.whitener_
    np.testing.assert_allclose(info.residual, np.linalg.norm(r, axis=1), rtol=1e-9)


# -------------------------------------------------------------------------- estimator


def test_a_dictionary_is_as_it_was_made():
    X, D = RNG(0).standard_normal((300, 8)) + 2, RNG(1).standard_normal((20, 8))
    metric, atoms = AtomicInnerProduct(centered=True).fit(X), D.copy()
    ready = Dictionary(atoms, metric=metric)
    want = omp(X, ready, 3).toarray()
    coder = SparseCoder(ready, n_nonzero=8).fit(X)
    np.testing.assert_allclose(coder.inverse_transform(coder.transform(X)), X, atol=1e-8)
    np.testing.assert_array_equal(coder.components_, D)
    assert np.array_equal(omp(X, ready, 3, metric=metric).toarray(), want)
    metric.partial_fit(X * np.arange(1, 9))
    atoms[:] = 0
    for d in (ready, pickle.loads(pickle.dumps(ready))):
        np.testing.assert_array_equal(omp(X, d, 3).toarray(), want)
    with pytest.raises(ValueError, match="metric: the Dictionary was made with another"):
        omp(X, ready, 3, metric=metric)
    with pytest.raises(ValueError, match="metric: the Dictionary was made with another"):
        SparseCoder(ready, metric=metric).fit(X)


@pytest.mark.filterwarnings("ignore:Estimator SparseCoder does not inherit", "ignore:Skipping check")
def test_check_estimator():
    pytest.importorskip("sklearn")
    from sklearn.utils.estimator_checks import check_estimator

    results = check_estimator(SparseCoder(), on_fail=None)
    failed = [(r["check_name"], r["exception"]) for r in results if r["status"] == "failed"]
    assert not failed


@pytest.mark.parametrize(
    "method",
    "omp ols nn_omp lasso basis_pursuit basis_pursuit_denoise matching_pursuit gradient_pursuit "
    "cosamp iht threshold".split(),
)
def test_sparse_coder_in_a_pipeline(method):
    from sklearn.base import clone
    from sklearn.pipeline import make_pipeline

    X, D, _ = planted(30, 48, 24, 3)
    coder = SparseCoder(D, method, alpha=0.2)
    codes = make_pipeline(clone(coder)).fit_transform(X)
    assert codes.shape == (30, 48) and isinstance(codes, scipy.sparse.csr_array)
    codes, info = coder.fit(X).transform(X, return_info=True)
    back = pickle.loads(pickle.dumps(coder)).inverse_transform(codes)
    assert back.shape == X.shape and info.status.shape == (30,)
    if method not in ("threshold",):
        assert np.sum((X - back) ** 2) < 0.5 * np.sum(X**2)


def test_peak_memory_is_what_the_docstring_says(tmp_path):
    """Dictionary, Gram matrix, one block of signals and the codes: not the signals themselves."""
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc/self/status")
    n, d, n_atoms, k = 400_000, 128, 512, 2
    path = tmp_path / "x.npy"
    signals = np.lib.format.open_memmap(path, "w+", np.float32, (n, d))
    g = RNG(0)
    for i in range(0, n, 50_000):
        signals[i : i + 50_000] = g.standard_normal((50_000, d), np.float32)
    signals.flush()
    script = f"""
import numpy as np
from atoms.recovery import Dictionary, omp
def grown():  # anonymous memory only: pages of the file are the system's to take back
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("RssAnon")) / 1024
import threading
D = np.random.default_rng(1).standard_normal(({n_atoms}, {d})).astype(np.float32)
X = np.load({str(path)!r}, mmap_mode="r")
omp(X[:500], D, {k}, num_threads=2)  # libraries, threads
before, peak, done = grown(), [0.0], threading.Event()
def watch():
    while not done.wait(0.005):
        peak[0] = max(peak[0], grown())
watcher = threading.Thread(target=watch)
watcher.start()
codes = omp(X, D, {k}, num_threads=2)
done.set()
watcher.join()
print(peak[0] - before)
"""
    codes = n * (k * 8 + 3 * 8)
    documented = (codes * 2 + n_atoms * d * 4 + n_atoms**2 * 4 + (1 << 26)) / 1e6
    assert 1 < float(run(script)) < documented + 16 < n * d * 4 / 1e6


def test_streams_memory_maps(tmp_path, capsys):
    X, D, _ = planted(5000, 64, 32, 3, dtype=np.float32)
    path = tmp_path / "x.npy"
    np.save(path, X)
    mapped = np.load(path, mmap_mode="r")
    assert (omp(mapped, D, 3, verbose=True) != omp(X, D, 3)).nnz == 0
    assert "omp" in capsys.readouterr().err


# ------------------------------------------------------------------------ any of them

SETTINGS = {
    "omp": (omp, {"n_nonzero": 3}),
    "ols": (lambda *a, **k: omp(*a, selection="ols", **k), {"n_nonzero": 3}),
    "nn_omp": (lambda *a, **k: omp(*a, nonnegative=True, **k), {"n_nonzero": 3}),
    "matching_pursuit": (matching_pursuit, {"n_nonzero": 3}),
    "gradient_pursuit": (gradient_pursuit, {"n_nonzero": 3}),
    "cosamp": (cosamp, {"n_nonzero": 3}),
    "iht": (iht, {"n_nonzero": 3}),
    "lasso": (lasso, {"alpha": 0.7, "positive": True}),
    "basis_pursuit": (basis_pursuit, {}),
    "basis_pursuit_denoise": (basis_pursuit_denoise, {"sigma": 0.5}),
    "threshold": (threshold_code, {"tau": 0.5, "signed": True}),
}


@pytest.mark.parametrize("method", SETTINGS)
@pytest.mark.filterwarnings("ignore::atoms.recovery.RecoveryWarning")
def test_code_calls_any_solver(method):
    X, D = np.split(np.random.default_rng(5).standard_normal((50, 8)), [30])
    metric = AtomicInnerProduct(centered=True).fit(X)
    solve, settings = SETTINGS[method]
    expected, info = solve(X, D, **settings, metric=metric, return_info=True)
    codes, also = recovery.code(X, D, method, **settings, metric=metric, return_info=True)
    assert (codes != expected).nnz == 0 and np.array_equal(info.residual, also.residual, equal_nan=True)


def test_code_names_what_is_wrong():
    X, D = np.split(np.random.default_rng(5).standard_normal((23, 8)), [3])
    with pytest.raises(ValueError, match="method: expected one of omp, .*threshold, got 'lars'"):
        recovery.code(X, D, "lars")
    with pytest.raises(
        TypeError, match="sigma: no setting of method 'cosamp', which has n_nonzero, tol, max_iter"
    ):
        recovery.code(X, D, "cosamp", sigma=3)
    with pytest.raises(TypeError, match="selection: no setting of method 'ols'"):
        recovery.code(X, D, "ols", selection="omp")
    with pytest.raises(TypeError, match="alpha: method 'lasso' needs it"):
        recovery.code(X, D, "lasso")


@pytest.mark.parametrize("call", [
    lambda X, D: omp(X, D, 1, tol=1e-9), lambda X, D: recovery.code(X, D, "cosamp", n_nonzero=1, tol=1e-9),
    lambda X, D: SparseCoder(D, n_nonzero=1, tol=1e-9).fit(X).transform(X), lambda X, D: lasso_path(X, D, max_iter=1),
    lambda X, D: basis_pursuit(X, D[:3]), lambda X, D: omp(X, D, 1, support=np.ones((30, 20))),
], ids=["omp", "code", "coder", "path", "basis", "support"])  # fmt: skip
def test_warnings_name_the_line_that_calls(call):
    X, D = np.split(np.random.default_rng(5).standard_normal((50, 8)), [30])
    with pytest.warns(RecoveryWarning) as said:
        call(X, D)
    assert all(w.filename == __file__ for w in said)


def test_reconstruct_is_what_the_codes_say():
    X, D = np.split(np.random.default_rng(5).standard_normal((50, 8)), [30])
    coder = SparseCoder(D, n_nonzero=3, metric=AtomicInnerProduct(centered=True).fit(X)).fit(X)
    assert np.array_equal(coder.reconstruct(X), coder.inverse_transform(coder.transform(X)))
