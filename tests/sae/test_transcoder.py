"""Transcoders: SparseAutoencoder.fit(X, target=Y), from rows of every kind, and what becomes of them."""

import pickle

import numpy as np
import pytest
import torch
from support import Blocks, Stop, explained, stop_after

import atoms

ACTIVATIONS = ("jumprelu", "relu", "topk", "batchtopk")
D, OUT, S = 20, 12, 48
RNG = np.random.default_rng(11)
FEATURES = RNG.standard_normal((24, D)), RNG.standard_normal((24, OUT))


def data(n, seed, dtype=np.float32):
    """Few features of X that become others of Y, both far from the origin and in other units."""
    rng = np.random.default_rng(seed)
    a = np.where(rng.random((n, 24)) < 0.08, rng.uniform(1, 2, (n, 24)), 0)
    x, y = a @ FEATURES[0] + 30, 0.01 * (a @ FEATURES[1] - 5 + 0.1 * rng.standard_normal((n, OUT)))
    return x.astype(dtype), y.astype(dtype)


X, Y = data(3000, 0)
X_VAL, Y_VAL = data(800, 1)


def coder(**options):
    known = {"target_l0": 3, "max_steps": 200, "batch_size": 256, "verbose": False, "num_threads": 1}
    return atoms.SparseAutoencoder(S, **{**known, **options})


@pytest.mark.parametrize("skip", [False, True], ids=["", "skip"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_rebuilds_the_target(activation, skip):
    sae = coder(activation=activation, skip_connection=skip, max_steps=400)
    sae.fit(X, target=Y, X_val=X_VAL, target_val=Y_VAL)
    assert sae.is_transcoder and sae.n_features_in_ == D
    assert sae.W_enc.shape == (D, S) and sae.W_dec.shape == (S, OUT) and sae.b_dec.shape == (OUT,)
    out = sae.reconstruct(X_VAL)
    assert out.shape == (len(X_VAL), OUT) and out.dtype == np.float32
    assert sae.score(X_VAL, Y_VAL) == pytest.approx(explained(Y_VAL, out), abs=1e-5)
    assert sae.history_["explained_variance_val"][-1] == pytest.approx(sae.score(X_VAL, Y_VAL), abs=1e-4)
    assert sae.score(X_VAL, Y_VAL) > (0.5 if activation == "relu" else 0.75)
    # the folded weights are the same model, to rounding by the mean
    z = X_VAL.astype(np.float64) @ sae.W_enc + sae.b_enc
    if activation == "topk":
        a = np.where(z >= -np.sort(-z, axis=1)[:, [2]], np.maximum(z, 0), 0)
    else:
        a = np.where(z > sae.threshold, z, 0)
    by_hand = a @ sae.W_dec + sae.b_dec + (X_VAL @ sae.W_skip if skip else 0)
    assert np.median(np.abs(by_hand - out)) < 1e-4 * Y_VAL.std()
    module = sae.to_torch()
    np.testing.assert_allclose(module(torch.from_numpy(X_VAL)).detach().numpy(), out, atol=1e-3 * Y_VAL.std())
    if skip:
        assert sae.W_skip.shape == (D, OUT)
        with pytest.raises(ValueError, match="use reconstruct"):
            sae.inverse_transform(sae.transform(X_VAL))
    else:
        assert sae.W_skip is None
        np.testing.assert_array_equal(sae.inverse_transform(sae.transform(X_VAL)), out)


@pytest.mark.parametrize(
    "options", [{}, {"aux_k": 6, "dead_after": 2.0}, {"matryoshka_widths": [12, 30]}, {"dead_after": 1.0}]
)
def test_the_engines_other_parts_take_a_target(options):
    sae = coder(skip_connection=True, **options).fit(X, target=Y)
    assert sae.score(X_VAL, Y_VAL) > 0.6


def test_a_target_equal_to_x_is_no_autoencoder_but_explains_as_one_does():
    sae = coder(max_steps=400).fit(X, target=X)
    assert sae.is_transcoder and sae.score(X_VAL, X_VAL) > 0.7


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_types(dtype):
    x, y = X.astype(dtype), Y.astype(dtype)
    sae, rounded = coder(max_steps=30), coder(max_steps=30)
    sae.fit(x, target=y)
    rounded.fit(x.astype(np.float32), target=y.astype(np.float32))
    np.testing.assert_allclose(sae.W_dec, rounded.W_dec, atol=2e-2 * np.abs(rounded.W_dec).max())
    assert sae.reconstruct(x).shape == (len(x), OUT)


def batches(rows, size):
    return lambda: (rows[i : i + size] for i in range(0, len(rows), size))


@pytest.mark.parametrize(
    "given",
    [
        lambda: ([X[:1000], X[1000:]], Y),
        lambda: (X, [Y[:10], Y[10:]]),
        lambda: (torch.from_numpy(X), torch.from_numpy(Y)),
        lambda: (np.asfortranarray(X), Y[::-1][::-1]),
        lambda: (Blocks(X), Blocks(Y)),
        lambda: (Blocks(X), Y),
        lambda: (X, Blocks(Y)),
        lambda: (batches(X, 300)(), batches(Y, 170)()),
        lambda: (batches(X, 300), Y),
        lambda: (Blocks(X), batches(Y, 700)()),
    ],
    ids=["shards", "target's shards", "tensors", "strides", "blocks", "blocks of X", "blocks of Y", "generators", "function", "mixed"],
)  # fmt: skip
def test_wherever_the_rows_are_the_bits_are_the_same(given):
    x, target = given()
    options = {"max_steps": 20, "skip_connection": True}
    np.testing.assert_array_equal(
        coder(**options).fit(x, target=target).W_dec, coder(**options).fit(X, target=Y).W_dec
    )


def test_rows_through_a_buffer_stay_beside_each_other():
    x, y = Blocks(X), Blocks(Y)
    x.buffer_rows = y.buffer_rows = 700  # several groups
    assert coder(max_steps=300).fit(x, target=y).score(X_VAL, Y_VAL) > 0.7


def test_partial_fit_takes_a_target():
    sae = coder(skip_connection=True)
    for _ in range(3):
        for i in range(0, 3000, 1000):
            sae.partial_fit(X[i : i + 1000], target=Y[i : i + 1000])
    assert sae.is_transcoder and sae.score(X_VAL, Y_VAL) > 0.3
    with pytest.raises(ValueError, match="target: the calls before had one"):
        sae.partial_fit(X)
    with pytest.raises(ValueError, match="target: expected 12 features as in the calls before, got 20"):
        sae.partial_fit(X, target=X)
    with pytest.raises(ValueError, match="target: this is an autoencoder already"):
        coder().partial_fit(X).partial_fit(X, target=Y)


def test_fit_many_shares_the_rows():
    one, two = coder(max_steps=40), coder(max_steps=40, skip_connection=True, target_l0=5)
    atoms.fit_many([one, two], X, X_VAL, target=Y, target_val=Y_VAL)
    np.testing.assert_array_equal(
        one.W_dec, coder(max_steps=40).fit(X, target=Y, X_val=X_VAL, target_val=Y_VAL).W_dec
    )
    assert two.score(X_VAL, Y_VAL) > 0.5


def test_massive_rows_of_x_are_left_out_on_both_sides():
    x, y = np.concatenate([X - 30, 1000 * X[:5]]), np.concatenate([Y, np.full((5, OUT), 9, np.float32)])
    sae = coder(max_steps=20).fit(x, target=y, massive="drop")
    assert sae.n_dropped_massive_ == 5
    np.testing.assert_array_equal(sae.W_dec, coder(max_steps=20).fit(X - 30, target=Y).W_dec)
    again = coder(max_steps=20).fit(Blocks(x), target=y, massive="drop")
    assert again.n_dropped_massive_ == 5 and again.score(X_VAL - 30, Y_VAL) > 0


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_and_checkpoints_give_the_same_bits(tmp_path, threads):
    options = {"skip_connection": True, "max_steps": 60, "aux_k": 4, "num_threads": threads}
    whole, path = coder(**options).fit(X, target=Y), tmp_path / "checkpoint.safetensors"

    with pytest.raises(Stop):
        coder(**options).fit(X, target=Y, checkpoint=path, checkpoint_steps=10, callback=stop_after(35))
    resumed = coder(**options).fit(X, target=Y, checkpoint=path)
    for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold", "W_skip"):
        np.testing.assert_array_equal(getattr(resumed, name), getattr(whole, name))
    np.testing.assert_array_equal(
        whole.W_skip, coder(**{**options, "num_threads": 2}).fit(X, target=Y).W_skip
    )
    other = Y.copy()
    other[7] += 1
    for wrong in ({"target": Y[:, :5]}, {"target": other + 1}, {}):
        with pytest.raises(ValueError, match="checkpoint: .* (settings|data)|skip_connection"):
            coder(**options).fit(X, checkpoint=path, **wrong)
    with pytest.raises(ValueError, match=r"other settings \(skip_connection\)"):
        coder(**{**options, "skip_connection": False}).fit(X, target=Y, checkpoint=path)


@pytest.mark.parametrize("skip", [False, True], ids=["", "skip"])
def test_files_and_copies_give_the_same_bits(tmp_path, skip):
    sae = coder(skip_connection=skip, max_steps=40).fit(X, target=Y)
    sae.save(tmp_path / "a.safetensors")
    for copy in (
        atoms.load(tmp_path / "a.safetensors"),
        atoms.SparseAutoencoder.load(tmp_path / "a.safetensors"),
        pickle.loads(pickle.dumps(sae)),
    ):
        assert copy.is_transcoder and copy.skip_connection == skip
        np.testing.assert_array_equal(copy.reconstruct(X_VAL), sae.reconstruct(X_VAL))
    assert "to 12 of a target" in sae._repr_html_()


def test_training_goes_on_from_a_file(tmp_path):
    sae, path = coder(skip_connection=True), tmp_path / "a.safetensors"
    sae.partial_fit(X[:1500], target=Y[:1500]).save(path, training_state=True)
    again = atoms.SparseAutoencoder.load(path)
    for one in (sae, again):
        one.partial_fit(X[1500:], target=Y[1500:])
    np.testing.assert_array_equal(sae.W_skip, again.W_skip)


def test_init_starts_from_a_transcoder():
    sae = coder(skip_connection=True).fit(X, target=Y)
    start = sae.score(X_VAL, Y_VAL)
    again = coder(skip_connection=True, max_steps=1, learning_rate=1e-9).fit(X, target=Y, init=sae)
    assert again.score(X_VAL, Y_VAL) == pytest.approx(start, abs=2e-3)
    for wrong, message in (
        ({"init": coder(max_steps=2).fit(X), "target": X}, "init: is an autoencoder"),
        ({"init": sae}, "init: "),
    ):
        with pytest.raises(ValueError, match=message):
            coder(max_steps=1).fit(X, **wrong)
    with pytest.raises(ValueError, match="init: has a skip connection"):
        coder(max_steps=1).fit(X, target=Y, init=sae)
    with pytest.raises(ValueError, match="without W_skip"):
        coder(max_steps=1, skip_connection=True).fit(X, target=Y, init=coder(max_steps=2).fit(X, target=Y))


def test_calibrate_moves_l0_on_x_alone():
    sae = coder().fit(X, target=Y)
    sae.calibrate(X_VAL, 5)
    assert sae.transform(X_VAL).nnz / len(X_VAL) == pytest.approx(5, abs=0.1)


@pytest.mark.parametrize(
    "options,fit,message",
    [
        ({"tied": True}, {"target": Y}, "tied: a transcoder's decoder"),
        ({"metric": atoms.AtomicInnerProduct()}, {"target": Y}, "metric: a transcoder is trained in Euclidean"),
        ({"skip_connection": True}, {}, "skip_connection: an autoencoder would pass X through"),
        ({"skip_connection": 3}, {"target": Y}, "skip_connection: expected True or False"),
        ({}, {"target": Y[:-1]}, "target: expected a row for each of the 3000 rows of X, got 2999"),
        ({}, {"target": batches(Y[:-1], 100)()}, "target: gives fewer rows than X"),
        ({}, {"target": Y, "X_val": X_VAL}, "X_val: with a target, pass what is to be rebuilt of it as target_val"),
        ({}, {"target": Y, "target_val": Y_VAL}, "target_val: needs X_val"),
        ({}, {"X_val": X_VAL, "target_val": Y_VAL}, "target_val: needs target"),
        ({}, {"target": Y, "X_val": X_VAL, "target_val": X_VAL}, "target_val: expected 12 features as in target, got 20"),
        ({}, {"target": Y, "X_val": X_VAL, "target_val": Y_VAL[:9]}, "target_val: expected a row for each of the 800"),
        ({}, {"target": np.where(np.arange(3000)[:, None] == 1234, np.nan, Y)}, "target: row 1234 holds NaN"),
        ({}, {"target": Y[:, 0]}, "target"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(options, fit, message):
    with pytest.raises(ValueError, match=message):
        coder(max_steps=20, **options).fit(X, **fit)


def test_blocks_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match="target: its blocks have other sizes"):
        coder(max_steps=2).fit(Blocks(X), target=Blocks(Y, 499))


@pytest.mark.parametrize(
    "y", [np.zeros_like(Y), np.full_like(Y, 7), np.eye(OUT, dtype=np.float32)[np.arange(3000) % OUT]]
)
@pytest.mark.parametrize("skip", [False, True])
def test_degenerate_targets_train(y, skip):
    sae = coder(max_steps=15, skip_connection=skip).fit(X, target=y)
    assert np.isfinite(sae.reconstruct(X)).all()
    if not y.std():
        np.testing.assert_allclose(sae.reconstruct(X), y, atol=0.2)


def test_scoring_needs_the_target_and_others_refuse_a_transcoder():
    sae = coder(max_steps=2).fit(X, target=Y)
    with pytest.raises(ValueError, match="y: a transcoder is scored by what it rebuilds"):
        sae.score(X_VAL)
    with pytest.raises(ValueError, match="y: expected 12 features as of the target, got 20"):
        sae.score(X_VAL, X_VAL)
    with pytest.raises(AttributeError):
        _ = coder().is_transcoder


@pytest.mark.parametrize("skip", [False, True], ids=["", "skip"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_exports_come_back(tmp_path, activation, skip):
    x, y = X, Y
    format = "saelens"
    if activation == "topk":
        y, format = np.hstack([Y, Y[:, :8]]), "sparsify"  # which rebuilds as many features as it reads
    sae = coder(activation=activation, skip_connection=skip, max_steps=60).fit(x, target=y)
    atoms.io.save(sae, tmp_path / "a", format)
    back = atoms.load(tmp_path / "a")
    assert back.is_transcoder and (back.W_skip is not None) == skip
    out = sae.reconstruct(X_VAL)
    assert np.median(np.abs(back.reconstruct(X_VAL) - out)) < 1e-4 * out.std()
    assert abs(back.transform(X_VAL).nnz - sae.transform(X_VAL).nnz) <= 5
    assert "written to" in atoms.io.convert(tmp_path / "a", tmp_path / "b")
    np.testing.assert_array_equal(atoms.load(tmp_path / "b").W_dec, back.W_dec)


def test_sparsifys_format_holds_topk_alone(tmp_path):
    with pytest.raises(ValueError, match="'sparsify' has TopK alone.*20 features to 12"):
        atoms.io.save(coder(activation="topk", max_steps=2).fit(X, target=Y), tmp_path / "a", "sparsify")
    with pytest.raises(ValueError, match="'sparsify' has TopK alone.*jumprelu"):
        atoms.io.save(coder(max_steps=2).fit(X), tmp_path / "a", "sparsify")
    sae = coder(activation="topk", max_steps=30).fit(X)
    atoms.io.save(sae, tmp_path / "a", "sparsify")
    back = atoms.load(tmp_path / "a")
    assert not back.is_transcoder
    assert np.median(np.abs(back.reconstruct(X_VAL) - sae.reconstruct(X_VAL))) < 1e-4 * X.std()
