"""Dictionary learning: the core's step against its twin, and the estimator on planted dictionaries."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest
import scipy.sparse as sp

import atoms
from atoms import _core
from atoms import _reference as reference

CODERS = {
    "omp": {"n_nonzero": 4},
    "nn-omp": {"n_nonzero": 4},
    "lasso": {"alpha": 1.0},
    "nn-lasso": {"alpha": 1.0},
    "spikes": {"n_nonzero": 12},
}


def planted(d, m, k, n, seed=0, coherence=0.0, positive=False):
    """Signals of k of m atoms each, which share one direction as far as `coherence` says; and the atoms."""
    rng = np.random.default_rng(seed)
    D = rng.standard_normal((m, d)) + coherence * np.sqrt(d) * np.eye(d)[0]
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    Z = np.zeros((n, m))
    for row in Z:
        row[rng.choice(m, k, replace=False)] = 1 + rng.random(k)
    if not positive:
        Z *= rng.choice([-1, 1], Z.shape)
    return (Z @ D + 0.01 * rng.standard_normal((n, d))).astype(np.float32), D


def learner(m=32, **more):
    return atoms.DictionaryLearning(
        m, **{"verbose": False, "batch_size": 256, "max_steps": 30, "n_nonzero": 3, **more}
    )


def matched(model, D):
    W = model.W_dec / np.linalg.norm(model.W_dec, axis=1, keepdims=True)
    return np.abs(W @ D.T).max(axis=0)


# --------------------------------------------------------------------------------------- the core's step


@pytest.mark.parametrize(("n", "d", "m"), [(1, 1, 1), (15, 17, 33), (97, 130, 40), (33, 64, 97)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_the_core_fits_atoms_as_its_twin_does(contexts, n, d, m, dtype):
    rng = np.random.default_rng(n)
    X = rng.standard_normal((2 * n, d)).astype(dtype)[::2]
    D = rng.standard_normal((m, d))
    D = (D / np.linalg.norm(D, axis=1, keepdims=True)).astype(np.float32)
    Z = sp.random_array((n, m), density=0.2, format="csr", rng=rng, dtype=np.float32)
    energy = rng.random(m)
    expected, energies = reference.fit_atoms(X, Z, 0.7, 2, D, energy)
    by_kind = {}
    for ctx in contexts:
        a, e = D.copy(), energy.copy()
        _core.fit_atoms(
            ctx, X=X, indptr=Z.indptr.astype(np.int64), indices=Z.indices.astype(np.int32), values=Z.data,
            keep=0.7, sweeps=2, atoms=a, energy=e,
        )  # fmt: skip
        np.testing.assert_allclose(a, expected, atol=1e-5)
        np.testing.assert_allclose(e, energies, rtol=1e-12)
        assert by_kind.setdefault((ctx.isa, ctx.blas), a.tobytes()) == a.tobytes()


def test_a_step_lowers_the_error_of_its_own_codes():
    X, _ = planted(64, 96, 4, 500)
    D = atoms.DictionaryLearning(96, n_nonzero=4, max_steps=1, verbose=False).fit(X).W_dec
    Z = atoms.recovery.omp(X, D / np.linalg.norm(D, axis=1, keepdims=True), 4)
    a = (D / np.linalg.norm(D, axis=1, keepdims=True)).astype(np.float32)
    before = np.square(X - Z @ a).sum()
    _core.fit_atoms(
        _core.Context(1), X=X, indptr=Z.indptr.astype(np.int64), indices=Z.indices, values=Z.data, keep=0.0,
        sweeps=1, atoms=a, energy=np.zeros(96),
    )  # fmt: skip
    after = atoms.recovery.omp(X, a, 4, return_info=True)[1].residual
    assert (after**2).sum() < before


# -------------------------------------------------------------------------------------- planted truths


@pytest.mark.parametrize(("coder", "coherence"), [("omp", 0.0), ("omp", 0.5), ("nn-omp", 0.0)])
def test_planted_atoms_are_found(coder, coherence):
    X, D = planted(64, 96, 4, 20_000, coherence=coherence, positive=coder == "nn-omp")
    model = learner(96, n_nonzero=4, coder=coder, batch_size=1000, max_steps=100).fit(X)
    assert np.mean(matched(model, D) > 0.98) >= 0.8
    assert model.history_["explained_variance"][-1] > 0.9


def test_planted_atoms_are_found_in_576_dimensions():
    X, D = planted(576, 300, 5, 12_000)
    model = learner(300, n_nonzero=5, batch_size=2000, max_steps=30).fit(X)
    assert np.mean(matched(model, D) > 0.98) >= 0.8


def test_planted_atoms_are_found_by_the_lasso():
    X, D = planted(64, 64, 3, 8_000)
    model = learner(64, n_nonzero=None, coder="lasso", alpha=2.0, batch_size=1000, max_steps=40).fit(X)
    assert np.mean(matched(model, D) > 0.95) >= 0.8
    assert model.history_["loss"][-1] < 0.8 * model.history_["loss"][0]


def test_planted_atoms_are_found_under_a_metric():
    rng = np.random.default_rng(3)
    X, D = planted(32, 40, 3, 10_000)
    M = rng.standard_normal((32, 32)) + 3 * np.eye(32)
    X, D = (X @ M).astype(np.float32), D @ M
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    metric = atoms.AtomicInnerProduct().fit(X)
    model = learner(40, metric=metric, batch_size=1000, max_steps=80).fit(X)
    assert np.mean(matched(model, D) > 0.98) >= 0.8
    np.testing.assert_allclose(np.linalg.norm(model.W_dec @ metric.whitener_, axis=1), 1, atol=1e-4)


# ------------------------------------------------------------------------------------------ estimator


@pytest.mark.parametrize("coder", CODERS)
def test_equal_bits_for_any_threads(coder):
    X, _ = planted(40, 50, 3, 1000)
    one, two = (
        learner(50, **{"n_nonzero": None, **CODERS[coder]}, coder=coder, max_steps=6, num_threads=t).fit(X)
        for t in (1, 3)
    )
    np.testing.assert_array_equal(one.W_dec, two.W_dec)
    assert (one.transform(X) != two.transform(X)).nnz == 0


def test_codes_are_those_of_omp_over_the_atoms_and_rebuild():
    X, _ = planted(40, 50, 3, 1000)
    model = learner(50).fit(X)
    codes = model.transform(X)
    assert codes.shape == (1000, 50)
    assert np.diff(codes.indptr).max() <= 3
    back = model.inverse_transform(codes)
    np.testing.assert_allclose(back, codes @ model.W_dec + model.b_dec, atol=1e-4)
    ev = 1 - np.square(X - back).sum() / np.square(X - X.mean(0)).sum()
    assert ev > 0.8
    scores = atoms.theory.explained_variance(X, back)
    np.testing.assert_allclose(float(scores), ev, atol=1e-4)


def test_partial_fit_is_fit_batch_by_batch():
    X, _ = planted(40, 50, 3, 512)
    model = learner(50, batch_size=256).partial_fit(X)
    again = learner(50, batch_size=256).partial_fit(X)
    assert model.history_["samples"] == [256, 512]
    np.testing.assert_array_equal(model.W_dec, again.W_dec)
    whole = learner(50, batch_size=512, max_steps=1).fit(X)
    by_parts = learner(50, batch_size=512, max_steps=1).partial_fit(X)
    np.testing.assert_allclose(whole.W_dec, by_parts.W_dec, atol=1e-4)  # rows in another order
    model.partial_fit(X[:10])
    assert model.history_["samples"][-1] == 522


@pytest.mark.parametrize("metric", [False, True])
@pytest.mark.parametrize("coder", ["omp", "spikes"])
def test_a_checkpoint_goes_on_to_the_same_bits(tmp_path, metric, coder):
    X, _ = planted(40, 50, 3, 1000)
    metric = atoms.AtomicInnerProduct().fit(X) if metric else None
    more = {"metric": metric, "dead_after": 1, "coder": coder, **CODERS[coder]}
    whole = learner(50, max_steps=8, **more).fit(X)

    class Killed(Exception):
        pass

    def kill(_, figures):
        if figures["step"] == 5:
            raise Killed

    path = tmp_path / "d.safetensors"
    half = learner(50, max_steps=8, **more)
    with pytest.raises(Killed):
        half.fit(X, checkpoint=path, checkpoint_steps=3, callback=kill)
    assert not hasattr(half, "n_features_in_")
    with pytest.raises(ValueError, match="other settings"):
        learner(50, max_steps=9, **more).fit(X, checkpoint=path)
    with pytest.raises(ValueError, match="other data"):
        half.fit(X + 1, checkpoint=path)
    half.fit(X, checkpoint=path)
    assert half.history_["step"] == list(range(1, 9))
    np.testing.assert_array_equal(half.W_dec, whole.W_dec)
    np.testing.assert_array_equal(half._learned.energy, whole._learned.energy)
    assert (half.transform(X) != whole.transform(X)).nnz == 0


@pytest.mark.parametrize("coder", ["omp", "spikes"])
def test_files_pickles_and_copies(tmp_path, coder):
    X, _ = planted(40, 50, 3, 600)
    model = learner(50, metric=atoms.AtomicInnerProduct().fit(X), coder=coder, max_steps=4).fit(X)
    model.save(tmp_path / "d.safetensors")
    for other in (
        atoms.DictionaryLearning.load(tmp_path / "d.safetensors"), pickle.loads(pickle.dumps(model)), copy.deepcopy(model)
    ):  # fmt: skip
        assert (other.transform(X) != model.transform(X)).nnz == 0
        np.testing.assert_array_equal(other.b_dec, model.b_dec)
        assert other.get_params()["n_nonzero"] == 3
    with pytest.raises(ValueError, match="SparseAutoencoder"):
        atoms.SparseAutoencoder.load(tmp_path / "d.safetensors")


def test_dead_atoms_are_replaced_and_starts_taken():
    X, D = planted(40, 50, 3, 4000)
    start = np.tile(D[:1], (50, 1))  # of equals only one is ever chosen
    model = learner(50, max_steps=60, dead_after=1).fit(X, init=start)
    assert sum(model.history_["dead"]) >= 49
    assert len(np.unique(model.transform(X).indices)) == 50
    near = learner(50, max_steps=1).fit(X, init=D)
    assert np.median(matched(near, D)) > 0.99
    sae = atoms.SparseAutoencoder(50, max_steps=5, verbose=False).fit(X)
    learner(50, max_steps=1).fit(X, init=sae)
    spread = learner(50, max_steps=20).fit(X, init="k-means++")
    assert spread.history_["explained_variance"][-1] > spread.history_["explained_variance"][0]
    for bad, text in (("k", "k-means"), (D[:3], "shape"), (np.full_like(D, np.nan), "row 0")):
        with pytest.raises(ValueError, match=f"init.*{text}"):
            learner(50).fit(X, init=bad)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_rows_of_any_type(dtype):
    X = planted(40, 50, 3, 600)[0].astype(dtype)
    a, b = learner(50, max_steps=4).fit(X), learner(50, max_steps=4).fit(X.astype(np.float32))
    if dtype != np.float64:
        np.testing.assert_array_equal(a.W_dec, b.W_dec)
    assert a.transform(X).shape == (600, 50)


@pytest.mark.parametrize(
    "X",
    [
        np.zeros((20, 5)),
        np.ones((20, 5)),
        np.tile(np.arange(5.0), (20, 1)),
        np.eye(5)[[0, 0, 0, 1, 1]],
        np.eye(3)[:2],
    ],
)
@pytest.mark.parametrize("coder", CODERS)
def test_degenerate_rows(X, coder):
    model = learner(12, **{"n_nonzero": None, **CODERS[coder]}, coder=coder, max_steps=5, dead_after=0.5).fit(
        X
    )
    assert np.isfinite(model.W_dec).all()
    np.testing.assert_allclose(
        model.inverse_transform(model.transform(X)), X, atol=1e-3 if coder == "omp" else 10
    )


def test_bad_rows_and_parameters_are_named():
    X, _ = planted(40, 50, 3, 600)
    bad = X.copy()
    bad[77, 3] = np.nan
    model = learner(50, max_steps=2).fit(X)
    for call in (learner(50).fit, learner(50).partial_fit, model.transform, model.partial_fit):
        with pytest.raises(ValueError, match="77"):
            call(bad)
    for parameters, text in (
        ({"coder": "x"}, "coder"), ({"alpha": 1.0}, "alpha"), ({"coder": "lasso"}, "n_nonzero"), ({"n_atoms": 0}, "n_atoms"),
        ({"n_nonzero": 99}, "n_nonzero"), ({"forget": -1}, "forget"), ({"random_state": -1}, "random_state"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            learner(50).set_params(**parameters).fit(X)
    with pytest.raises(ValueError, match="features"):
        model.transform(X[:, :9])


def test_files_do_not_grow_with_the_steps(tmp_path):
    X, _ = planted(8, 10, 2, 400)
    for steps in (400, 1200):
        model = learner(10, batch_size=32, max_steps=steps).fit(X, checkpoint=tmp_path / f"{steps}")
        assert len(model.history_["step"]) <= 400 and model.history_["step"][-1] == steps
    assert len(model.history_["step"]) == 200
    again = learner(10, batch_size=32, max_steps=20)
    for _ in range(600):
        again.partial_fit(X[:32])
    assert again.n_samples_seen_ == 600 * 32 and len(again.history_["step"]) <= 500
    again.save(tmp_path / "again", training_state=True)
    other = atoms.DictionaryLearning.load(tmp_path / "again").partial_fit(X[:32])
    np.testing.assert_array_equal(other.W_dec, again.partial_fit(X[:32]).W_dec)


def test_all_inputs_of_the_autoencoder_are_read(tmp_path):
    torch = pytest.importorskip("torch")
    X, _ = planted(40, 50, 3, 1000)
    expected = learner(50, max_steps=6).fit(X, X_val=X[:100])
    assert np.isfinite(expected.history_["explained_variance_val"]).sum() == 6
    np.save(tmp_path / "x.npy", X)
    for same in (
        torch.tensor(X, requires_grad=True), [X[:300], X[300:]], np.load(tmp_path / "x.npy", mmap_mode="r"),
        lambda: iter(np.array_split(X, 7)),
    ):  # fmt: skip
        model = learner(50, max_steps=6).fit(same)
        np.testing.assert_array_equal(model.W_dec, expected.W_dec)
    assert (expected.transform(iter([X[:300], X[300:]])) != expected.transform(X)).nnz == 0
    with pytest.warns(UserWarning, match="ended after"):
        learner(8, batch_size=4096, max_steps=30).fit(iter([X[:, :4]] * 70))  # more than the buffer holds


def test_massive_rows_are_dropped_and_a_metric_is_fitted_in_a_copy():
    X, _ = planted(40, 50, 3, 1000)
    loud = X.copy()
    loud[[3, 500]] *= 1000
    metric = atoms.AtomicInnerProduct()
    model = learner(50, metric=metric, max_steps=6).fit(loud, X_val=loud, massive="drop")
    assert model.n_dropped_massive_ == 2
    assert not metric.__sklearn_is_fitted__() and model.metric_.n_samples_seen_ == 998
    own = atoms.AtomicInnerProduct().fit(np.delete(loud, [3, 500], axis=0))
    before = learner(50, metric=own, max_steps=6).fit(np.delete(loud, [3, 500], axis=0))
    np.testing.assert_allclose(model.W_dec, before.W_dec, atol=1e-3)
    bits = before.transform(X).data.tobytes()
    own.fit(X[:200] * 7)
    assert before.transform(X).data.tobytes() == bits
    with pytest.warns(UserWarning, match="norm"):
        learner(50, max_steps=2).fit(loud)


def test_habits_of_estimators():
    pd, base = pytest.importorskip("pandas"), pytest.importorskip("sklearn.base")
    X, _ = planted(8, 10, 2, 400)
    frame = pd.DataFrame(X, columns=list("abcdefgh"))
    model = base.clone(learner(10, max_steps=4)).fit(frame, np.zeros(400))
    assert list(model.feature_names_in_) == list("abcdefgh")
    with pytest.raises(ValueError, match="order"):
        model.transform(frame[list("hgfedcba")])
    assert "atoms replaced" in model._repr_html_() and "not fitted" in learner()._repr_html_()
    with pytest.raises(ValueError, match="held-out rows as X_val"):
        learner(10).fit(X, X[:50])
    with pytest.raises(ValueError, match="batch_size"):
        model.set_params(batch_size=7).partial_fit(X)
    axes = pytest.importorskip("matplotlib.pyplot").figure().subplots()
    assert model.plot(axes) is axes and "L0" in axes.figure.axes[0].get_title(loc="left") + str(
        [t.get_text() for t in axes.texts]
    )


def test_signals_that_are_given_up_are_said_once(monkeypatch):
    from atoms._dictionary import _learning
    from atoms.recovery import Status

    X, _ = planted(8, 10, 2, 400)
    model = learner(10, max_steps=4).fit(X)
    assert model.history_["unsolved"] == [0] * 4
    real = _learning.code

    def limited(*args):
        codes, residual, status = real(*args)
        status[5] = Status.LIMIT
        return codes, residual, status

    monkeypatch.setattr(_learning, "code", limited)
    with pytest.warns(
        atoms.recovery.RecoveryWarning, match="of 400 signals 1 stopped at the limit.* row 5"
    ) as said:
        model.transform(X)
    assert len(said) == 1
