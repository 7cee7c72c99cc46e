"""Orthogonal matching pursuit: against its twin, scikit-learn and the theorem; degenerate input."""

import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.sparse
from support import ISAS, RNG, basis_pair, planted

from atoms import AtomicInnerProduct, _core
from atoms import _reference as reference
from atoms.recovery import Dictionary, RecoveryWarning, Status, omp


@pytest.mark.parametrize("selection", ["omp", "ols"])
@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("gram", [True, False])
def test_agrees_with_the_twin(isa, selection, noise, dtype, gram):
    for n_atoms, d, k in ((1, 1, 1), (15, 17, 3), (33, 15, 5), (97, 33, 15), (200, 64, 9)):
        X, D, _ = planted(17, n_atoms, d, min(k, n_atoms), seed=n_atoms, noise=noise, dtype=dtype)
        handle = Dictionary(D, gram_bytes=1 << 30 if gram else 0, dtype=dtype)
        codes = omp(X, handle, k, selection=selection)
        assert codes.dtype == dtype and codes.has_canonical_format
        assert handle.has_gram == gram or not gram
        for x, code in zip(X.astype(float), codes.toarray(), strict=True):
            want = reference.omp(x, D.astype(float), k, selection=selection)
            np.testing.assert_array_equal(abs(code) > 1e-4, abs(want) > 1e-4)
            scale = 1e-9 if dtype == np.float64 else 1e-4
            assert np.linalg.norm((code - want) @ D) < scale * np.linalg.norm(x)


def test_supports_are_scikit_learns():
    from sklearn.linear_model import orthogonal_mp_gram

    X, D, _ = planted(2000, 256, 64, 8, noise=0.3)
    want = orthogonal_mp_gram(D @ D.T, D @ X.T, n_nonzero_coefs=8).T
    codes = omp(X, D, 8).toarray()
    same = ((codes != 0) == (want != 0)).all(axis=1)
    assert same.mean() >= 0.999
    np.testing.assert_allclose(codes[same], want[same], atol=1e-12)
    for i in np.flatnonzero(~same):  # any difference is a tie in the residual
        a, b = (np.linalg.norm(X[i] - c[i] @ D) for c in (codes, want))
        assert abs(a - b) < 1e-9 * np.linalg.norm(X[i])


def test_ols_supports_are_spams():
    spams = pytest.importorskip("spams")
    X, D, _ = planted(2000, 256, 64, 8, noise=0.3)
    want = spams.omp(np.asfortranarray(X.T), np.asfortranarray(D.T), L=8, eps=0.0, numThreads=1).T.toarray()
    codes = omp(X, D, 8, selection="ols").toarray()
    same = ((codes != 0) == (want != 0)).all(axis=1)
    assert same.mean() >= 0.999
    np.testing.assert_allclose(codes[same], want[same], atol=1e-9)


def test_bits_do_not_depend_on_threads():
    X, D, _ = planted(700, 300, 33, 7, noise=0.2, dtype=np.float32)
    for options in ({}, {"selection": "ols"}, {"nonnegative": True}):
        for gram_bytes in (0, 1 << 30):
            first = None
            for threads in (1, 2, 3):
                d = Dictionary(D, gram_bytes=gram_bytes, num_threads=threads)
                codes = omp(X, d, 7, num_threads=threads, **options)
                first = codes if first is None else first
                assert (codes.indices == first.indices).all() and (codes.data == first.data).all()


def test_float32_chooses_as_float64_does_on_coherent_atoms():
    g = RNG(3)
    centres = g.standard_normal((40, 48))
    D = np.repeat(centres, 8, axis=0) + 0.35 * g.standard_normal((320, 48))  # cosines near 0.9
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    X = g.standard_normal((500, 48)) + 3 * D[g.integers(0, 320, 500)]
    for selection in ("omp", "ols"):
        a = omp(X.astype(np.float32), D.astype(np.float32), 16, selection=selection).toarray()
        b = omp(
            X.astype(np.float32).astype(float), D.astype(np.float32).astype(float), 16, selection=selection
        )
        same = ((a != 0) == (b.toarray() != 0)).all(axis=1)
        assert same.mean() > 0.995


@pytest.mark.parametrize("gram_bytes", [0, 1 << 30])
@pytest.mark.parametrize("selection", ["omp", "ols"])
def test_float32_chooses_as_float64_does_with_a_large_coordinate_in_common(isa, selection, gram_bytes):
    g = RNG(3)
    D = np.c_[np.full(1200, 1000.0), g.standard_normal((1200, 127))].astype(np.float32)
    Z = np.zeros((64, 1200))
    for z in Z:
        z[g.choice(1200, 6, replace=False)] = g.standard_normal(6) + 0.2
    X = (Z @ (D / np.linalg.norm(D, axis=1, keepdims=True)) + 0.02 * g.standard_normal((64, 128))).astype(
        np.float32
    )
    codes, info = omp(X, Dictionary(D, gram_bytes=gram_bytes), 24, selection=selection, return_info=True)
    exact, fit = omp(X.astype(float), D.astype(float), 24, selection=selection, return_info=True)
    assert (info.status == Status.CONVERGED).all()
    others = sum(set(a.indices) != set(b.indices) for a, b in zip(codes, exact, strict=True))
    if selection == "omp":
        assert others == 0 and (info.residual < 1.001 * fit.residual).all()
    else:  # what is left of an atom outside the span has float32's rounding: 2 to 9, by BLAS and instruction set
        assert others <= 10 and (info.residual < 1.1 * fit.residual).all()


def test_tolerance_is_a_norm():
    X, D, _ = planted(200, 128, 64, 6, noise=0.2)
    for tol in (0.5, 1.0, 3.0):
        codes, info = omp(X, D, tol=tol, return_info=True)
        residual = np.linalg.norm(X - codes @ D, axis=1)
        np.testing.assert_allclose(info.residual, residual, atol=1e-12)
        assert (residual <= tol).all() and (info.status == Status.CONVERGED).all()
        want = [np.count_nonzero(reference.omp(x, D, 64, tol=tol)) for x in X[:20]]
        np.testing.assert_array_equal(np.diff(codes.indptr)[:20], want)
    with pytest.warns(RecoveryWarning, match="200 signals 200 stopped at the limit"):
        _, info = omp(X, D, 2, tol=1e-3, return_info=True)
    assert (info.status == Status.LIMIT).all() and (info.steps == 2).all()


def test_nonnegative_codes_refit_by_nnls():
    from scipy.optimize import nnls

    X, D, _ = planted(300, 96, 24, 6, noise=0.5, positive=True)
    for gram_bytes in (0, 1 << 30):
        codes = omp(X, Dictionary(D, gram_bytes=gram_bytes), 6, nonnegative=True)
        assert codes.data.min() > 0
        for x, code in zip(X, codes.toarray(), strict=True):
            support = np.flatnonzero(code)
            np.testing.assert_allclose(code[support], nnls(D[support].T, x)[0], atol=1e-10)
            np.testing.assert_allclose(code, reference.omp(x, D, 6, nonnegative=True), atol=1e-9)


@pytest.mark.parametrize("gram_bytes", [0, 1 << 30])
@pytest.mark.parametrize("selection", ["omp", "ols"])
@pytest.mark.parametrize("kind", ["independent", "near copies", "nearer copies", "in common"])
def test_long_float32_codes_choose_as_float64_does(isa, kind, selection, gram_bytes):
    """Where less is left of a signal than screened correlations are off by."""
    rng = np.random.default_rng(1)
    D = rng.standard_normal((500, 200)).astype(np.float32)
    if kind.endswith("copies"):
        apart = 0.2 if kind == "near copies" else 0.15
        D = (rng.standard_normal((80, 200))[rng.integers(80, size=500)] + apart * D).astype(np.float32)
    if kind == "in common":
        D[:, 0] += 10
    X = rng.standard_normal((3, 200)).astype(np.float32)
    codes, info = omp(X, Dictionary(D, gram_bytes=gram_bytes), 170, selection=selection, return_info=True)
    want, true = omp(X.astype(float), D.astype(float), 170, selection=selection, return_info=True)
    np.testing.assert_array_equal(codes.indices, want.indices)
    np.testing.assert_allclose(info.residual, true.residual, rtol=1e-4)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("kind", ["independent", "near copies", "copies"])
def test_long_nonnegative_codes(isa, kind, dtype):
    """Where atoms leave and come back, hundreds of times."""
    from scipy.optimize import nnls

    rng = np.random.default_rng(4)
    D = rng.standard_normal((400, 120))
    if kind == "near copies":
        D = D[rng.integers(100, size=400)] + 0.03 * D
    if kind == "copies":
        D[200:] = D[rng.integers(200, size=200)] * rng.uniform(0.1, 10, (200, 1))
    X = rng.standard_normal((3, 120))
    D, X = D.astype(dtype), X.astype(dtype)
    codes, info = omp(X, D, 90, nonnegative=True, return_info=True)
    assert codes.data.min() > 0 and info.steps.max() > info.steps.min() >= np.diff(codes.indptr).min() > 40
    for x, code, residual in zip(X.astype(float), codes.toarray().astype(float), info.residual, strict=True):
        support = np.flatnonzero(code)
        best, rest = nnls(D[support].astype(float).T, x)
        assert residual <= rest * (1 + (1e-6 if dtype == np.float64 else 1e-4))
        want = reference.omp(x, D.astype(float), 90, nonnegative=True)
        if dtype == np.float64 and kind != "copies":  # of copies either may be chosen
            np.testing.assert_allclose(code, want, atol=1e-7)
        assert residual == pytest.approx(
            np.linalg.norm(x - want @ D), rel=1e-6 if dtype == np.float64 else 0.05
        )


@pytest.mark.parametrize("gram_bytes", [0, 1 << 30])
def test_nonnegative_codes_take_all_of_a_support(isa, gram_bytes):
    from scipy.optimize import nnls

    rng = np.random.default_rng(0)
    for _ in range(60):
        D = abs(rng.standard_normal((30, 12)))
        chosen = np.sort(rng.choice(30, 4, replace=False))
        x = (rng.random(4) + 0.05) @ D[chosen]
        support = scipy.sparse.csr_array((rng.random(4), ([0] * 4, chosen)), shape=(1, 30))
        d = Dictionary(D, gram_bytes=gram_bytes)
        codes, info = omp(x[None], d, 4, nonnegative=True, support=support, return_info=True)
        want = nnls(D[chosen].T, x)[0]
        assert info.residual[0] < 1e-8
        np.testing.assert_allclose(codes.toarray()[0, chosen], want, atol=1e-7)
        with pytest.warns(RecoveryWarning, match="support: 1 rows hold more than n_nonzero=3 atoms"):
            omp(x[None], d, 3, support=support)


def test_warm_support_joins_first():
    X, D, Z = planted(50, 64, 32, 4)
    warm = scipy.sparse.csr_array(Z * (RNG(1).random(Z.shape) < 0.7))
    codes, info = omp(X, D, 8, support=warm, return_info=True)
    np.testing.assert_allclose(codes.toarray(), Z, atol=1e-10)
    wrong = scipy.sparse.csr_array((np.ones(50), (np.arange(50), np.arange(50))), shape=(50, 64))
    codes = omp(X, D, 1, support=wrong)
    np.testing.assert_array_equal(codes.indices, np.arange(50))
    with pytest.raises(ValueError, match="support: expected shape"):
        omp(X, D, 4, support=warm[:3])


@pytest.mark.parametrize("selection", ["omp", "ols"])
def test_exact_recovery_below_the_coherence_bound(selection):
    """K < (1 + 1 / mu) / 2 recovers every code: identity with Hadamard, mu = 1 / sqrt(n)."""
    n = 64
    D = basis_pair(n)
    k = int(np.ceil((1 + np.sqrt(n)) / 2)) - 1  # 4 < 4.5
    g = RNG(0)
    Z = np.zeros((10_000, 2 * n))
    for i, z in enumerate(Z):
        amplitude = 10.0 ** g.uniform(-3, 3, k) if i % 2 else np.ones(k)  # spread, and all ties
        z[g.choice(2 * n, k, replace=False)] = amplitude * g.choice([-1, 1], k)
    codes, info = omp(Z @ D, D, k, selection=selection, return_info=True)
    assert (info.status == Status.CONVERGED).all()
    np.testing.assert_array_equal(codes.toarray() != 0, Z != 0)
    np.testing.assert_allclose(codes.toarray(), Z, rtol=1e-6, atol=1e-9)


def test_metric_is_the_same_as_whitening_first():
    g = RNG(5)
    A = g.standard_normal((24, 24))
    X, D = g.standard_normal((3000, 24)) @ A, g.standard_normal((60, 24))
    for centered in (False, True):
        aip = AtomicInnerProduct(centered=centered).fit(X)
        codes, info = omp(X[:50], D, 5, metric=aip, return_info=True)
        W = aip.whitener_
        want = omp((X[:50] - aip.mean_ * centered) @ W, D @ W, 5)
        np.testing.assert_allclose(codes.toarray(), want.toarray(), atol=1e-10)
        r = (X[:50] - aip.mean_ * centered - codes @ D) @ W
        np.testing.assert_allclose(info.residual, np.linalg.norm(r, axis=1), rtol=1e-9)


# ------------------------------------------------------------- degenerate input


@pytest.mark.parametrize("gram_bytes", [0, 1 << 30])
def test_atoms_in_the_span_are_never_chosen_twice(gram_bytes):
    g = RNG(2)
    D = g.standard_normal((6, 8))
    D[3] = D[0]
    D[4] = D[0] + D[1]
    D[5] = 0
    X = g.standard_normal((20, 8))
    for dtype in (np.float32, np.float64):
        for selection in ("omp", "ols"):
            d = Dictionary(D.astype(dtype), gram_bytes=gram_bytes)
            codes, info = omp(X.astype(dtype), d, 6, selection=selection, return_info=True)
            best = X - X @ np.linalg.pinv(D) @ D
            tol = 1e-10 if dtype == np.float64 else 1e-5
            np.testing.assert_allclose(info.residual, np.linalg.norm(best, axis=1), rtol=tol)
            assert (np.diff(codes.indptr) <= 3).all()


@pytest.mark.parametrize("gram_bytes", [0, 1 << 30])
def test_atoms_nearly_in_the_span_are_left_out_and_said(gram_bytes):
    D = np.eye(4, 8)
    D[3] = D[0] + 1e-3 * np.eye(8)[7]  # 1e-6 of its square lies outside the span of D[0]
    X = np.array([[1.0, 0.5, 0, 0, 0, 0, 0, 0.3]])
    d = Dictionary(D, dtype=np.float32, gram_bytes=gram_bytes)
    with pytest.warns(RecoveryWarning, match="1 met linearly dependent atoms"):
        codes, info = omp(X.astype(np.float32), d, 4, return_info=True)
    assert info.status[0] == Status.DEPENDENT and codes.nnz == 2
    codes, info = omp(X, D, 4, return_info=True)
    assert info.status[0] == Status.CONVERGED and info.residual[0] < 1e-9


@pytest.mark.parametrize("d", [64, 576])
@pytest.mark.parametrize("apart", [5e-3, 2e-3, 1e-3])
def test_ols_says_the_same_of_near_copies_on_every_instruction_set(monkeypatch, d, apart):
    """Signals with the difference of two near copies, together and alone."""
    g = RNG(3)
    D = np.repeat(g.standard_normal((60, d)), 3, 0) + apart * g.standard_normal((180, d))
    D, Z = D.astype(np.float32), np.zeros((48, 180))
    for row, pair in zip(Z, 3 * g.integers(0, 60, 48), strict=True):
        row[pair : pair + 2] = 0.1 / apart, -0.1 / apart
        row[g.choice(180, 2, replace=False)] += 1
    X = (Z @ D).astype(np.float32)
    said = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RecoveryWarning)
        for isa in ISAS:
            monkeypatch.setenv("ATOMS_ISA", isa)
            status = omp(X, D, 8, selection="ols", return_info=True)[1].status
            alone = [omp(x[None], D, 8, selection="ols", return_info=True)[1].status[0] for x in X[:8]]
            np.testing.assert_array_equal(alone, status[:8])
            said.append(status)
    assert max((status != said[0]).sum() for status in said) <= 1  # one on the limit, for rounding


def test_nonfinite_zero_and_empty_signals():
    X, D, _ = planted(6, 32, 16, 2)
    X[1, 3], X[4, 0], X[2] = np.nan, np.inf, 0
    with pytest.warns(RecoveryWarning, match="2 contain NaN or infinity .*first in row 1"):
        codes, info = omp(X, D, 2, return_info=True)
    assert list(info.status) == [0, 3, 0, 0, 3, 0]
    np.testing.assert_array_equal(np.diff(codes.indptr), [2, 0, 0, 2, 0, 2])
    assert np.isnan(info.residual[[1, 4]]).all() and info.residual[2] == 0
    assert omp(X[:0], D, 2).shape == (0, 32)
    D[7, 1] = np.inf
    with pytest.raises(ValueError, match="dictionary: contains NaN or infinity, first in row 7"):
        omp(X, D, 2)


@pytest.mark.parametrize("scale", [1e-20, 1e-5, 1e5, 1e20])
def test_scale_changes_nothing(scale):
    X, D, Z = planted(40, 64, 32, 4, noise=0.1, dtype=np.float32)
    want = omp(X, D, 4).toarray()
    got = omp(X * np.float32(scale), D, 4).toarray()
    np.testing.assert_allclose(got, want * scale, rtol=2e-6)
    got = omp(X, D * np.float32(scale), 4).toarray()
    np.testing.assert_allclose(got, want / scale, rtol=2e-6)
    wide = omp(X.astype(float) * scale**10, D.astype(float) / scale**3, 4).toarray()
    np.testing.assert_allclose(wide / scale**13, want, rtol=1e-4) if 1e-7 < scale < 1e7 else None


def test_codes_beyond_the_dtype_are_empty_and_said():
    X, D, _ = planted(3, 16, 8, 2, dtype=np.float32)
    X[1] *= np.float32(1e30)
    with pytest.warns(RecoveryWarning, match="1 have coefficients too large"):
        codes, info = omp(X, D * np.float32(1e-20), 2, return_info=True)
    assert list(info.status) == [0, 4, 0] and np.diff(codes.indptr)[1] == 0


def test_more_nonzeros_than_there_can_be_and_one_atom():
    X, D, Z = planted(20, 40, 12, 3)
    codes, info = omp(X, D, 1000, return_info=True)
    assert (np.diff(codes.indptr) <= 12).all() and info.residual.max() < 1e-10
    one = omp(X, D[:1], 5)
    np.testing.assert_allclose(one.toarray()[:, 0], X @ D[0])
    spanned, info = omp(X, np.eye(12), 12, return_info=True)
    np.testing.assert_allclose(spanned.toarray(), X)


def test_inputs_of_every_kind():
    X, D, _ = planted(64, 40, 16, 3, dtype=np.float32)
    want = omp(X, D, 3).toarray()
    for other in (np.asfortranarray(X), np.repeat(X, 2, axis=0)[::2], X[:, ::-1][:, ::-1]):
        np.testing.assert_array_equal(omp(other, D, 3).toarray(), want)
    np.testing.assert_array_equal(omp(X, np.asfortranarray(D), 3).toarray(), want)
    half = X.astype(np.float16)
    np.testing.assert_array_equal(omp(half, D, 3).toarray(), omp(half.astype(np.float32), D, 3).toarray())
    for bad, match in (
        (dict(n_nonzero=0), "n_nonzero: expected a positive integer"),
        (dict(tol=-1), "tol: expected a finite number"),
        (dict(selection="mp"), "selection: expected"),
        (dict(selection="ols", nonnegative=True), "nonnegative: only with"),
    ):
        with pytest.raises(ValueError, match=match):
            omp(X, D, **bad)
    with pytest.raises(ValueError, match="X: expected 16 columns"):
        omp(X[:, :5], D, 3)
    with pytest.raises(ValueError, match="n_nonzero|outside its documented range"):
        _core.omp(_core.Context(1), _core.dict_new(_core.Context(1), D, False), X, 99, -1.0, False, False,
                  None, None, np.empty((64, 99), np.int32), np.empty((64, 99), np.float32),
                  np.empty(64, np.int32), np.empty(64, np.int8), np.empty(64, np.int32), None)  # fmt: skip


def test_a_progress_bar_and_no_warning_for_good_signals(capsys):
    X, D, _ = planted(300, 40, 16, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        omp(X, D, 3, verbose=True)
    assert "omp" in capsys.readouterr().err


VNNI = [isa for isa in ISAS if isa.endswith("_vnni")] or ISAS[-1:]  # or what does without
SCREENS = {"none": (1 << 40, 1 << 40), "correlations": (1, 1 << 40), "coarse Gram": (1, 1)}


def screened(monkeypatch, kind, X, D, k, **options):
    """Codes with 16-bit screens of a kind (of none at all where the CPU has no VNNI)."""
    signals, atoms = SCREENS[kind]
    monkeypatch.setattr("atoms.recovery._pursuits._UNITS_SIGNALS", signals)
    monkeypatch.setattr("atoms.recovery._pursuits._COARSE_ATOMS", atoms)
    monkeypatch.setattr("atoms.recovery._pursuits._COARSE_NONZERO", 1 << 40)
    return omp(X, D, k, return_info=True, **options)


@pytest.mark.parametrize("selection", ["omp", "ols"])
@pytest.mark.parametrize(
    "n_atoms,d,k,noise",
    [
        (1, 1, 1, 0.0),
        (65, 33, 4, 0.3),
        (700, 97, 16, 0.0),
        (700, 97, 12, 0.5),
        (700, 97, 40, 0.0),
        (700, 97, 40, 0.5),
    ],
)
@pytest.mark.parametrize("isa", VNNI)
def test_screens_of_16_bits_choose_what_float32_chooses(monkeypatch, isa, selection, n_atoms, d, k, noise):
    monkeypatch.setenv("ATOMS_ISA", isa)
    X, D, _ = planted(130, n_atoms, d, k, seed=d, noise=noise, dtype=np.float32)
    X[3], X[4, 0], X[5], X[6] = 0, np.nan, X[5] * np.float32(1e-20), X[6] * np.float32(1e18)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RecoveryWarning)
        want, info = screened(monkeypatch, "none", X, D, k, selection=selection)
        for kind in ("correlations", "coarse Gram"):
            codes, said = screened(monkeypatch, kind, X, D, k, selection=selection)
            same = ((codes.toarray() != 0) == (want.toarray() != 0)).all(axis=1)
            assert same.mean() > 0.99
            np.testing.assert_array_equal(said.status, info.status)
            np.testing.assert_allclose(
                said.residual, info.residual, rtol=1e-4, atol=1e-6 * np.nanmax(np.abs(X[:3]))
            )
            scale = np.abs(want.toarray()[same]).max(axis=1, keepdims=True)
            assert (np.abs(codes.toarray()[same] - want.toarray()[same]) <= 1e-4 * scale).all()


@pytest.mark.parametrize("selection", ["omp", "ols"])
@pytest.mark.parametrize("apart", [0.0, 1e-6, 1e-4, 1e-3, 1e-2, 0.3])
@pytest.mark.parametrize("isa", VNNI)
def test_screens_of_16_bits_over_nearly_dependent_atoms(monkeypatch, isa, selection, apart):
    """Copies at any distance, sums of atoms, zero atoms, signals explained before k: no worse than without."""
    monkeypatch.setenv("ATOMS_ISA", isa)
    g = RNG(7)
    D = g.standard_normal((600, 100))
    D = np.vstack(
        [D, D[:200] + apart * g.standard_normal((200, 100)), D[:50] + D[50:100], np.zeros((3, 100))]
    )
    Z = np.zeros((120, len(D)))
    for row in Z:
        row[g.choice(850, 4, replace=False)] = g.uniform(1, 2, 4) * g.choice([-1, 1], 4)
    X = Z @ D
    X[::2] += 0.1 * g.standard_normal(X[::2].shape)
    X, D = X.astype(np.float32), D.astype(np.float32)
    norms = np.linalg.norm(X, axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RecoveryWarning)
        for k in (2, 9, 16, 40):
            want, info = screened(monkeypatch, "none", X, D, k, selection=selection)
            for kind in ("correlations", "coarse Gram"):
                codes, said = screened(monkeypatch, kind, X, D, k, selection=selection)
                ok = (Status.CONVERGED, Status.DEPENDENT)
                assert np.isin(said.status, ok).all() and (np.diff(codes.indptr) <= k).all()
                true = np.linalg.norm(X.astype(float) - codes.toarray().astype(float) @ D, axis=1)
                np.testing.assert_allclose(said.residual, true, atol=1e-4 * norms.max())
                assert (said.residual <= info.residual + 1e-3 * norms).all()
                assert (said.status == Status.DEPENDENT).sum() <= (info.status == Status.DEPENDENT).sum()


def test_signals_explained_early_stop():
    """Among copies that differ by little more than rounding; it took minutes when each atom was tried in turn."""
    g = RNG(7)
    D = g.standard_normal((600, 50))
    D = np.vstack([D, D + 1e-4 * g.standard_normal(D.shape)]).astype(np.float32)
    X = (D[:60] + 2 * D[100:160]).astype(np.float32)
    codes, info = omp(X, D, 16, selection="ols", return_info=True)
    assert (info.residual < 1e-4 * np.linalg.norm(X, axis=1)).all() and set(info.status) <= {0, 1}
    explained = info.residual < 1e-6 * np.linalg.norm(X, axis=1)
    assert explained.sum() > 10 and (np.diff(codes.indptr)[explained] < 16).all()


@pytest.mark.parametrize("isa", VNNI)
def test_coarse_gram_is_left_alone_where_atoms_crowd(monkeypatch, isa):
    if "avx2_vnni" not in ISAS:
        pytest.skip("needs VNNI")
    monkeypatch.setenv("ATOMS_ISA", isa)
    g = RNG(1)
    few = g.standard_normal((600, 100)).astype(np.float32)
    X = few[:200]
    for D, coarse in ((few, True), (few[:10].repeat(60, 0) + 0.1 * few, False)):
        handle = Dictionary(D)
        screened(monkeypatch, "coarse Gram", X, handle, 3)
        assert handle.has_gram != coarse


def test_a_dictionary_is_shared_while_its_gram_matrices_are_made():
    """Calls that began without one end without one."""
    X, D, _ = planted(400, 1500, 64, 5, noise=0.2, dtype=np.float32)
    want = omp(X, D, 5)
    for _ in range(5):
        handle = Dictionary(D)
        with ThreadPoolExecutor(4) as pool:
            few = [pool.submit(omp, X[i : i + 1], handle, 5) for i in range(12)]
            many = pool.submit(omp, X, handle, 5)
            positive = pool.submit(omp, X, handle, 5, nonnegative=True)
            few += [pool.submit(omp, X[i : i + 1], handle, 5) for i in range(12, 24)]
        for i, one in enumerate(few):
            np.testing.assert_array_equal(one.result().indices, want[i : i + 1].indices)
        np.testing.assert_array_equal(many.result().indices, want.indices)
        assert positive.result().min() >= 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_in_a_metric_each_code_depends_on_its_own_signal_alone(dtype):
    g = RNG(5)
    X = (g.standard_normal((130, 24)) @ g.standard_normal((24, 24)) + 1).astype(dtype)
    D = g.standard_normal((50, 24)).astype(dtype)
    metric = AtomicInnerProduct(centered=True).fit(X)
    want, about = omp(X, Dictionary(D, metric=metric), 4, return_info=True)
    bad = X.copy()
    bad[[3, 71]], bad[90] = np.nan, 1e300 if dtype == np.float64 else np.inf
    with pytest.warns(RecoveryWarning, match="contain NaN or infinity"):
        codes, info = omp(bad, Dictionary(D, metric=metric), 4, return_info=True)
    lost = [3, 71] if dtype == np.float64 else [3, 71, 90]
    assert np.flatnonzero(info.status == Status.NONFINITE).tolist() == lost
    good = np.setdiff1d(np.arange(len(X)), [3, 71, 90])
    assert (codes[good] != want[good]).nnz == 0 and codes[lost].nnz == 0
    np.testing.assert_array_equal(info.residual[good], about.residual[good])
    for rows in (slice(0, 65), slice(64, 129), slice(129, 130)):
        # how many signals there are decides how they are coded, and so the last bits
        _, those = omp(X[rows], Dictionary(D, metric=metric), 4, return_info=True)
        np.testing.assert_allclose(those.residual, about.residual[rows], rtol=1e-5)
