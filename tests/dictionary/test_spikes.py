"""Codes of spikes with heights: the core against its twin and against theory; the estimator on planted ones."""

import warnings

import ml_dtypes
import numpy as np
import pytest
import scipy.sparse as sp

import atoms
from atoms import _core
from atoms import _reference as reference
from atoms.recovery import Dictionary
from atoms.recovery._dictionary import handle_of


def unit(D):
    return (D / np.linalg.norm(D, axis=1, keepdims=True)).astype(np.float32)


def coded(ctx, X, D, known, noise, k, *, rounds=2, sweeps=2, least=0.0):
    """Means and probabilities, dense, and the raw outputs."""
    n, m = len(X), len(D)
    out = {
        "indices": np.zeros((n, k), np.int32), "values": np.zeros((n, k), np.float32), "counts": np.zeros(n, np.int32),
        "status": np.zeros(n, np.int8), "steps": np.zeros(n, np.int32), "residual": np.zeros(n),
        "probability": np.zeros((n, k), np.float32),
    }  # fmt: skip
    rate, height, spread = known
    _core.spikes(
        ctx, handle_of(Dictionary(D, num_threads=1)), X, rate=rate, height=height, spread=spread, noise=noise,
        least=least, n_candidates=k, rounds=rounds, sweeps=sweeps, **out,
    )  # fmt: skip
    Z, P = np.zeros((n, m)), np.zeros((n, m))
    for i, c in enumerate(out["counts"]):
        assert (np.diff(out["indices"][i, :c]) > 0).all()
        Z[i, out["indices"][i, :c]] = out["values"][i, :c]
        P[i, out["indices"][i, :c]] = out["probability"][i, :c]
    return Z, P, out


def spiky(n, d, m, firing, seed=0, noise=0.2, near=0.0):
    """Signals of atoms that fire independently with heights about 4, and the atoms; `near`: as cosine of neighbours."""
    rng = np.random.default_rng(seed)
    D = unit(rng.standard_normal((m, d)))
    if near:
        D[1::2] = unit(near * D[0 : m // 2 * 2 : 2] + np.sqrt(1 - near**2) * D[1::2])
    Z = (rng.random((n, m)) < firing / m) * rng.normal(4, 0.7, (n, m))
    X = Z @ D + noise * rng.standard_normal((n, d))
    return X.astype(np.float32), D, Z


@pytest.mark.parametrize(
    ("n", "d", "m", "k"),
    [(1, 1, 1, 1), (15, 17, 33, 7), (40, 33, 97, 17), (150, 64, 97, 33), (5, 130, 17, 17)],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("near", [0.0, 0.9])
def test_the_core_codes_as_its_twin_does(contexts, n, d, m, k, dtype, near):
    X, D, _ = spiky(2 * n, d, m, 3, near=near)
    X = X.astype(dtype)[::2]
    X[n // 2] = 0
    rng = np.random.default_rng(n)
    known = rng.uniform(0.001, 0.1, m), rng.uniform(3, 5, m), rng.uniform(0.3, 1, m)
    Z, P = reference.spikes(X, D, *known, 0.5, k, 2, 2)
    by_kind = {}
    for ctx in contexts:
        z, p, out = coded(ctx, X, D, known, 0.5, k)
        np.testing.assert_allclose(z, Z, atol=2e-4)
        np.testing.assert_allclose(p, P, atol=2e-4)
        np.testing.assert_allclose(out["residual"], np.linalg.norm(X - z @ D, axis=1), atol=1e-4)
        found = out["values"].tobytes(), out["probability"].tobytes()
        assert by_kind.setdefault((ctx.isa, ctx.blas), found) == found


def test_a_lone_atom_has_its_exact_posterior():
    """By quadrature over heights, the negative ones out: nothing is approximated where there is one atom."""
    d, rate, height, spread, noise = 9, 0.07, 2.0, 0.4, 0.8
    rng = np.random.default_rng(1)
    D = unit(rng.standard_normal((1, d)))
    X = (np.linspace(0.2, 4, 30)[:, None] * D + 0.3 * rng.standard_normal((30, d))).astype(np.float32)
    z, p, _ = coded(_core.Context(1), X, D, [np.array([v]) for v in (rate, height, spread)], noise, 1)
    h, step = np.linspace(0, 5, 20_001, retstep=True)
    slab = rate * np.exp(-((h - height) ** 2) / 2 / spread**2) / np.sqrt(2 * np.pi) / spread
    fit = np.exp(-(((X @ D.T) - h) ** 2 - (X @ D.T) ** 2) / 2 / noise**2)  # beside no firing
    on = (slab * fit).sum(1) * step
    probability = on / (on + 1 - rate)
    mean = probability * (slab * fit * h).sum(1) / (slab * fit).sum(1)
    seen = (X @ D.T)[:, 0] > 0
    np.testing.assert_allclose(p[seen, 0], probability[seen], atol=1e-3)
    np.testing.assert_allclose(z[seen, 0], mean[seen], atol=5e-3)
    assert (p[~seen] == 0).all()


def test_probabilities_are_frequencies():
    """Of atoms that are said to fire with probability p, p do: on data of the model, incoherent atoms."""
    X, D, Z = spiky(4000, 64, 40, 2, noise=0.9)
    rate, height, spread = np.full(40, 2 / 40), np.full(40, 4.0), np.full(40, 0.7)
    _, P, _ = coded(_core.Context(1), X, D, (rate, height, spread), 0.9, 20)
    for low, high in ((0.1, 0.4), (0.4, 0.7), (0.7, 0.95)):
        inside = (P > low) & (P < high)
        assert inside.sum() > 100
        assert abs((Z > 0)[inside].mean() - P[inside].mean()) < 0.12


@pytest.mark.parametrize("bad", ["rate", "height", "spread", "noise", "n_candidates", "least", "rounds"])
def test_what_is_out_of_range_is_refused(bad):
    X, D, _ = spiky(4, 9, 5, 2)
    known = {"rate": np.full(5, 0.1), "height": np.full(5, 4.0), "spread": np.full(5, 0.7)}
    more = {"noise": 0.5, "n_candidates": 3, "least": 0.0, "rounds": 2}
    if bad in known:
        known[bad][2] = np.nan
    else:
        more[bad] = {"noise": 0.0, "n_candidates": 6, "least": np.nan, "rounds": 0}[bad]
    k = more.pop("n_candidates")
    with pytest.raises(ValueError, match="spikes"):
        coded(_core.Context(1), X, D, known.values(), more.pop("noise"), k, **more)


def test_signals_that_have_no_code():
    X, D, _ = spiky(6, 9, 5, 2)
    X[1], X[2, 3], X[3] = 0, np.nan, 1e30
    known = np.full(5, 0.1), np.full(5, 4.0), np.full(5, 0.7)
    _, _, out = coded(_core.Context(1), X, D, known, 0.5, 3)
    status = recovery_status(out)
    assert status[1:4] == ["CONVERGED", "NONFINITE", "RANGE"] and (out["counts"][1:4] == 0).all()


def recovery_status(out):
    return [atoms.recovery.Status(s).name for s in out["status"]]


# ------------------------------------------------------------------------------------ atoms drawn apart


@pytest.mark.parametrize(("m", "d"), [(1, 1), (15, 17), (33, 5), (97, 64), (130, 33)])
@pytest.mark.parametrize("incoherence", [0.0, 0.3, 1.0])
def test_atoms_are_drawn_apart_as_the_twin_does(contexts, m, d, incoherence):
    rng = np.random.default_rng(m)
    D, energy = unit(rng.standard_normal((m, d)) + 0.7), rng.uniform(0.1, 9, m)
    Z = sp.random_array((200, m), density=0.1, format="csr", rng=rng, dtype=np.float32)
    Z = sp.csr_array(Z + Z @ sp.eye_array(m, k=1, dtype=np.float32, format="csr"))  # each with the one before
    expected = reference.part_atoms(Z, D, energy, 0.3, incoherence)
    assert m == 1 or np.abs(expected - D).max() > 0.01
    assert (np.abs(np.abs(D @ D.T) - 0.3) > 1e-6).all()  # else rounding decides
    for ctx in contexts:
        out = np.empty_like(D)
        apart(ctx, Z, D, energy, 0.3, incoherence, out)
        np.testing.assert_allclose(out, expected, atol=1e-5)


def apart(ctx, Z, D, energy, least, incoherence, out):
    _core.part_atoms(
        ctx, indptr=Z.indptr.astype(np.int64), indices=Z.indices.astype(np.int32), values=Z.data, atoms=D,
        energy=energy, least=least, incoherence=incoherence, out=out,
    )  # fmt: skip


def test_a_mixture_comes_apart_where_its_parts_fire_together_and_the_busier_atom_stays():
    D = np.eye(8, dtype=np.float32)[:2].copy()
    D[1] = unit((D[0] + D[1])[None])[0]
    together = sp.csr_array(np.array([[1, 1], [1, 1], [1, 0]], np.float32))
    alone = sp.csr_array(np.array([[1, 0], [0, 1], [1, 0]], np.float32))
    for codes, stays in ((together, False), (alone, True)):
        E = D.copy()
        for _ in range(12):
            out = np.empty_like(E)
            apart(_core.Context(1), codes, E, np.array([1000.0, 1.0]), 0.01, 0.0, out)
            E = out
        assert (E == D).all() if stays else (E[0, 0] > 0.99 and E[1, 1] > 0.99)


# ------------------------------------------------------------------------------------------- estimator


def learned(X, m, init=None, **more):
    settings = {"n_nonzero": 16, "coder": "spikes", "batch_size": 1000, "max_steps": 60, "verbose": False}
    return atoms.DictionaryLearning(m, **{**settings, **more}).fit(X, init=init)


@pytest.mark.parametrize(
    ("d", "m", "geometry", "share"),
    [
        (64, 96, "none", 0.75),
        (64, 96, "metric", 0.85),
        pytest.param(576, 120, "none", 0.9, marks=pytest.mark.slow),
        pytest.param(576, 120, "metric", 0.75, marks=pytest.mark.slow),
    ],
)
def test_planted_units_are_found_from_nothing(d, m, geometry, share):
    X, D, Z = spiky(20_000, d, m, 3)
    X += 5  # a mean that no atom is to explain
    metric = atoms.AtomicInnerProduct(centered=True).fit(X) if geometry == "metric" else None
    model = learned(X, m, metric=metric)
    cosines = unit(model.W_dec) @ D.T
    found = cosines.max(0) > 0.95
    assert found.mean() > share
    said, truth = model.transform(X[:2000]).toarray()[:, cosines.argmax(0)[found]] > 0, Z[:2000, found] > 0
    assert 2 * (said & truth).sum() / (said.sum() + truth.sum()) > 0.9
    assert model.history_["l0"][-1] == pytest.approx(3, abs=0.6)


@pytest.mark.parametrize(
    ("d", "m", "near"),
    [(64, 96, 0.3), (64, 96, 0.9), pytest.param(576, 120, 0.9, marks=pytest.mark.slow), (64, 200, 0.8)],
)
def test_near_copies_stay_what_they_are(d, m, near):
    """From atoms 17 degrees off, further than copies at 0.9 are from each other."""
    X, D, Z = spiky(20_000, d, m, 3, near=near)
    start = D + 0.3 / np.sqrt(d) * np.random.default_rng(3).standard_normal(D.shape)
    model = learned(X, m, max_steps=30, init=start)
    W = unit(model.W_dec)
    assert ((W * D).sum(1) > 0.95).mean() > 0.95
    pairs = (W[0 : m // 2 * 2 : 2] * W[1::2]).sum(1)
    assert np.median(pairs) == pytest.approx(near, abs=0.05)
    codes = model.transform(X[:4000])
    sure = codes.toarray() > 0
    assert 2 * (sure & (Z[:4000] > 0)).sum() / (sure.sum() + (Z[:4000] > 0).sum()) > 0.93


def test_an_autoencoder_is_a_start():
    X, D, _ = spiky(8000, 64, 96, 3)
    sae = atoms.SparseAutoencoder(
        96, target_l0=3, tied=True, max_steps=600, learning_rate=3e-3, verbose=False
    )
    better = learned(X, 96, init=sae.fit(X), max_steps=30)
    score = lambda model: (unit(model.W_dec) @ D.T).max(0).mean()
    assert score(better) > max(score(sae), score(learned(X, 96, max_steps=1)))


def test_useless_atoms_begin_anew():
    X, D, _ = spiky(8000, 64, 40, 3)
    copies = np.tile(D[:1], (10, 1)) + 0.01 * np.random.default_rng(0).random((10, 64))
    start = np.concatenate([D[:30], copies])
    model = learned(X, 40, init=start)
    assert sum(model.history_["dead"]) >= 9
    assert ((unit(model.W_dec) @ D.T).max(0) > 0.95).mean() > 0.9
    assert sum(learned(X, 40, init=start, dead_after=0).history_["dead"]) == 0


def test_it_says_where_nothing_fires():
    X = np.random.default_rng(0).standard_normal((2000, 400)).astype(np.float32)  # noise alone
    with pytest.warns(UserWarning, match="hardly an atom fires"):
        learned(X, 20, max_steps=30)


@pytest.mark.parametrize("layer_rows", ["heavy tails", "first tokens"])
def test_heavy_tails_and_massive_rows_do_not_break_it(layer_rows):
    rng = np.random.default_rng(5)
    X, _, _ = spiky(4000, 64, 96, 3)
    if layer_rows == "heavy tails":
        X *= rng.standard_t(2.5, (4000, 1)).astype(np.float32)
    else:
        X[::50] += 3000 * unit(rng.standard_normal((1, 64)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = learned(X, 96, max_steps=20)
    assert np.isfinite(model.W_dec).all() and np.isfinite(model.transform(X).data).all()


def test_incoherence_is_a_share():
    with pytest.raises(ValueError, match="incoherence.*0 to 1"):
        learned(np.ones((9, 4)), 20, incoherence=1.5)
