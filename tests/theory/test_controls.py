"""Controls: the interface of a trained dictionary, and what each is known to score."""

import numpy as np
import pytest
import scipy.sparse
from support import decoder

from atoms import AtomicInnerProduct
from atoms import _reference as reference
from atoms.controls import (
    KMeansDictionary,
    MemorizingDictionary,
    NeuronBasis,
    PCADictionary,
    RandomDictionary,
    random_model,
    shuffle_coordinates,
)
from atoms.theory import coherence, explained_variance, stability

D = 24


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((D, D)) * rng.lognormal(0, 1, D)
    X, X_held = ((rng.laplace(size=(n, D)) @ mixing + 5).astype(np.float32) for n in (400, 150))
    return X, X_held, AtomicInnerProduct().fit(X)


def controls(metric):
    return [
        RandomDictionary(96, 5, metric),
        RandomDictionary(96, 5, metric, encoder="top_k"),
        MemorizingDictionary(metric=metric),
        MemorizingDictionary(100, metric, center=False),
        KMeansDictionary(40, metric, max_iter=5),
        PCADictionary(metric=metric),
        PCADictionary(6, metric, d_sae=12),
        NeuronBasis(metric=metric),
        NeuronBasis(7, metric, center=False),
    ]


@pytest.mark.parametrize("which", range(9))
@pytest.mark.parametrize("whitened", [True, False])
def test_interface(data, which, whitened):
    X, X_held, aip = data
    metric = aip if whitened else None
    control = controls(metric)[which].fit(X)
    codes = control.transform(X_held)
    assert isinstance(codes, scipy.sparse.csr_array) and codes.dtype == np.float32
    assert codes.shape == (150, control.d_sae) and codes.has_canonical_format
    assert (np.diff(codes.indptr) == control.l0).all()
    assert control.W_dec.shape == (control.d_sae, D) and control.W_dec.dtype == np.float32
    assert control.W_enc.shape == (D, control.d_sae) and control.b_enc.shape == (control.d_sae,)
    assert control.b_dec.shape == (D,) and control.threshold is None
    S = aip.metric_ if whitened else np.eye(D)
    W = control.W_dec.astype(float)
    np.testing.assert_allclose(np.einsum("ij,jk,ik->i", W, S, W), 1, rtol=2e-3)
    X_hat = control.inverse_transform(codes)
    assert X_hat.dtype == np.float32
    np.testing.assert_allclose(X_hat, codes.toarray() @ control.W_dec + control.b_dec, rtol=1e-4, atol=1e-3)
    again = controls(metric)[which].fit(X).transform(X_held)
    assert np.array_equal(codes.data, again.data) and np.array_equal(codes.indices, again.indices)
    with pytest.raises(ValueError, match="fitted"):
        controls(metric)[which].transform(X)
    with pytest.raises(ValueError, match="codes: expected"):
        control.inverse_transform(codes[:, :1])
    with pytest.raises(ValueError, match="NaN or infinity, first in row 3"):
        bad = X.copy()
        bad[3] = np.nan
        controls(metric)[which].fit(bad)


def test_codes_are_least_squares_in_the_metric(data):
    X, X_held, aip = data
    control = RandomDictionary(96, 5, aip, encoder="top_k").fit(X)
    codes = control.transform(X_held)
    pursuit = RandomDictionary(96, 5, aip).fit(X)
    assert np.array_equal(pursuit.W_dec, control.W_dec)
    harder, single = (
        explained_variance(X_held, c.reconstruct, "metric_centered", aip).total for c in (pursuit, control)
    )
    assert harder > single > 0
    with pytest.raises(ValueError, match="encoder"):
        RandomDictionary(96, 5, aip, encoder="lasso").fit(X)
    W = control.W_dec.astype(float) @ aip.whitener_
    Z = (X_held - control.b_dec) @ aip.whitener_
    for i in range(0, 150, 29):
        chosen = codes.indices[codes.indptr[i] : codes.indptr[i + 1]]
        assert set(chosen) == set(np.argsort(np.abs(W @ Z[i]))[-5:])
        want = np.linalg.lstsq(W[chosen].T, Z[i], rcond=None)[0]
        got = codes.data[codes.indptr[i] : codes.indptr[i + 1]]
        np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(
        X_held[:3] @ control.W_enc + control.b_enc, (Z @ W.T)[:3], rtol=5e-3, atol=5e-3
    )


def test_memorizing_stores_training_and_fails_held_out(data):
    X, X_held, aip = data
    control = MemorizingDictionary(metric=aip).fit(X)
    trained = explained_variance(X, control.reconstruct, "metric_centered", aip)
    held = explained_variance(X_held, control.reconstruct, "metric_centered", aip)
    assert trained.total > 0.99999 and held.total < 0.5
    codes = control.transform(X_held)
    unit = reference.unit_rows((X - control.b_dec) @ aip.whitener_)[0]
    want, _ = reference.nearest((X_held - control.b_dec) @ aip.whitener_, unit)
    assert np.array_equal(codes.indices, want)
    s = stability(control.W_dec, codes, aip)
    assert s.q_star == 1.0 and s.l0_quantiles[1.0] == 1
    half = MemorizingDictionary(200, aip).fit(X)
    assert half.d_sae == 200
    with_mean = np.concatenate([X, X.mean(0, keepdims=True)])
    assert MemorizingDictionary(center=False).fit(np.vstack([X, 0 * X[:1]])).d_sae == len(X)
    assert MemorizingDictionary().fit(with_mean.astype(float)).d_sae >= len(X)
    with pytest.raises(ValueError, match="differs from the mean"):
        MemorizingDictionary().fit(np.ones((3, 2)))


def test_pca_and_neurons_pass_the_papers_criteria_at_full_l0(data):
    X, X_held, aip = data
    pca = PCADictionary(metric=aip).fit(X)
    assert coherence(pca.W_dec, aip).max < 1e-3  # W_dec is rounded to float32 before whitening
    assert explained_variance(X_held, pca.reconstruct).total > 1 - 1e-6
    assert stability(pca.W_dec, pca.transform(X), aip).q_star == 1.0
    plain = PCADictionary(4, d_sae=4).fit(X)
    centred = X.astype(float) - X.mean(0, dtype=float)
    s = np.linalg.svd(centred, compute_uv=False) ** 2
    assert explained_variance(X, plain.reconstruct).total == pytest.approx(s[:4].sum() / s.sum(), rel=1e-5)
    neurons = NeuronBasis(metric=aip).fit(X)
    assert explained_variance(X_held, neurons.reconstruct).total > 1 - 1e-10
    assert stability(neurons.W_dec, neurons.transform(X), aip).q_star < 0.2


def test_k_means_serves_clusters():
    rng = np.random.default_rng(1)
    directions = np.linalg.qr(rng.standard_normal((12, 12)))[0][:8]
    label = rng.integers(0, 8, 500)
    X = directions[label] * rng.uniform(1, 4, (500, 1)) * rng.choice([-1, 1], (500, 1))
    X += 0.02 * rng.standard_normal(X.shape)
    best = max(
        (KMeansDictionary(8, center=False, max_iter=50, random_state=s).fit(X) for s in range(4)),
        key=lambda c: explained_variance(X, c.reconstruct, "uncentered").total,
    )
    assert np.abs(directions @ best.W_dec.T).max(axis=1).min() > 0.999
    with pytest.raises(ValueError, match="d_sae: expected 1 to 500"):
        KMeansDictionary(501, center=False).fit(X)
    copies = np.repeat(np.eye(3), 5, axis=0)  # more atoms than directions: empty clusters
    assert KMeansDictionary(6, center=False).fit(copies).transform(copies).nnz == 15


def test_random_dictionary_is_what_theory_expects(data):
    X, _, aip = data
    control = RandomDictionary(400, 6, aip, random_state=3).fit(X)
    s = stability(control.W_dec, control.transform(X), aip)
    assert s.q_star == pytest.approx(s.q_star_random, abs=0.01)
    for l0, message in ((0, "1 to 24"), (25, "1 to 24"), (2.5, "whole number")):
        with pytest.raises(ValueError, match=message):
            RandomDictionary(96, l0, aip).fit(X)


def test_shuffled_coordinates(tmp_path):
    X = np.random.default_rng(2).standard_normal((300, 6)).astype(np.float32)
    X[:, 1] = X[:, 0]
    Y = shuffle_coordinates(X)
    assert Y.dtype == X.dtype and np.array_equal(np.sort(Y, axis=0), np.sort(X, axis=0))
    assert abs(np.corrcoef(Y[:, 0], Y[:, 1])[0, 1]) < 0.2
    out = np.lib.format.open_memmap(tmp_path / "y.npy", mode="w+", dtype=np.float32, shape=X.shape)
    assert shuffle_coordinates(X, out=out) is out and np.array_equal(out, Y)
    with pytest.raises(ValueError, match="shares memory"):
        shuffle_coordinates(X, out=X)


def test_random_model():
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 3)).double().eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    a, b, c = random_model(model), random_model(model), random_model(model, 1)
    assert torch.equal(state, torch.get_rng_state())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
        assert torch.equal(a.state_dict()[key], b.state_dict()[key])
        assert not torch.equal(a.state_dict()[key], c.state_dict()[key])
        assert a.state_dict()[key].dtype == torch.float64
    assert not a.training
    pytest.importorskip("transformers")
    llama = decoder(layers=2)
    with torch.no_grad():
        llama.model.layers[0].mlp.up_proj.weight.add_(5.0)
    fresh = random_model(llama)
    assert type(fresh) is type(llama) and not fresh.training
    assert fresh.model.layers[0].mlp.up_proj.weight.abs().max() < 1
    assert torch.equal(fresh.lm_head.weight, random_model(llama).lm_head.weight)
    odd = torch.nn.Module()
    odd.weight = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(TypeError, match="reset_parameters"):
        random_model(odd)
