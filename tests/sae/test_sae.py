"""SparseAutoencoder as its users meet it."""

import os
import re
import signal
import subprocess
import textwrap
import threading
import time
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Stop, started, stop_after

import atoms
from atoms._rows import Rows, Sampler
from atoms.sae._model import FIELDS, WEIGHTS

ACTIVATIONS = ("jumprelu", "relu", "topk", "batchtopk")


def quick(**kwargs):
    defaults = {"d_sae": 48, "target_l0": 4, "batch_size": 128, "max_steps": 60, "verbose": False}
    return atoms.SparseAutoencoder(**(defaults | kwargs))


@pytest.fixture(scope="module")
def X():
    rng = np.random.default_rng(0)
    codes = sp.random_array((3000, 40), density=0.1, rng=rng).toarray()
    mixing = rng.standard_normal((40, 20)) * np.logspace(0, 1, 20)
    return (codes @ mixing + 0.02 * rng.standard_normal((3000, 20)) + 3).astype(np.float32)


@pytest.fixture(scope="module", params=[None, False, True], ids=["euclidean", "uncentred", "centred"])
def metric(request, X):
    return None if request.param is None else atoms.AtomicInnerProduct(centered=request.param).fit(X)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_folded_weights_give_the_same_latents(activation, metric, X):
    sae = quick(activation=activation, metric=metric).fit(X)
    codes = sae.transform(X).toarray()
    assert sae.W_enc.shape == (20, 48) and sae.W_dec.shape == (48, 20)
    z = X.astype(np.float64) @ sae.W_enc + sae.b_enc
    if activation == "topk":
        kth = np.sort(z, axis=1)[:, -4][:, None]
        a = np.where((z >= np.maximum(kth, 0)) & (z > 0), z, 0)
    else:
        a = np.where(z > sae.threshold, z, 0)
    same = (a > 0) == (codes > 0)
    assert same.mean() > 0.9999  # ties at the threshold may fall either way in float32
    np.testing.assert_allclose(a[same], codes[same], atol=2e-4 * np.abs(codes).max())
    x_hat = sae.inverse_transform(sae.transform(X))
    np.testing.assert_allclose(x_hat, codes @ sae.W_dec + sae.b_dec, atol=1e-3 * np.abs(X).max())


def test_decoder_rows_have_unit_norm_in_the_metric(metric, X):
    sae = quick(metric=metric).fit(X)
    W = sae.W_dec if metric is None else metric.whiten_directions(sae.W_dec)
    norms = np.linalg.norm(W, axis=1)
    np.testing.assert_allclose(norms / norms.mean(), 1, atol=1e-4)
    if metric is not None:
        np.testing.assert_allclose(norms, 1, atol=1e-4)


@pytest.mark.parametrize("rows", [1000, 3000], ids=["epochs", "one epoch"])
@pytest.mark.parametrize("kind", ["array", "shards", "stream"])
def test_what_is_whitened_is_kept_and_changes_no_bit(kind, rows, X, monkeypatch):
    """20 steps of 128 rows, as whitened batch by batch."""
    aip, part = atoms.AtomicInnerProduct().fit(X), X[:rows]
    given = {"array": part, "shards": [part[: rows // 2], part[rows // 2 :]], "stream": iter([part])}[kind]
    whitened, whiten = [], atoms.AtomicInnerProduct.whiten

    def counted(self, X, out=None):
        whitened.append(len(X))
        return whiten(self, X, out)

    monkeypatch.setattr(atoms.AtomicInnerProduct, "whiten", counted)
    sae = quick(metric=aip, max_steps=20).fit(given)
    seen = sum(n for n in whitened if n <= 128)
    monkeypatch.setattr("atoms.sae._training.KEPT", 0)
    again = quick(metric=aip, max_steps=20).fit(part)
    for name in WEIGHTS:
        assert np.array_equal(sae._model.get(name), again._model.get(name))
    # a batch that begins a new epoch may hold a row twice
    assert 1000 <= seen < 1128 if rows == 1000 and kind != "shards" else seen == 20 * 128


def test_tied_encoder_is_the_metric_times_the_decoder(X):
    aip = atoms.AtomicInnerProduct().fit(X)
    sae = quick(metric=aip, tied=True).fit(X)
    expected = aip.metric_ @ sae.W_dec.T.astype(np.float64)
    np.testing.assert_allclose(sae.W_enc, expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("activation", ["jumprelu", "batchtopk"])
def test_l0_starts_and_ends_near_its_target(activation, X):
    sae = quick(activation=activation, max_steps=300).fit(X)
    assert sae.history_["l0"][0] == pytest.approx(4, rel=0.5)
    assert np.mean(sae.history_["l0"][-20:]) == pytest.approx(4, rel=0.05)
    assert sae.transform(X).nnz / len(X) == pytest.approx(4, rel=0.1)


def test_l1_finds_its_coefficient(X):
    sae = quick(activation="relu", max_steps=600).fit(X)
    assert np.mean(sae.history_["l0"][-20:]) == pytest.approx(4, rel=0.15)
    fixed = quick(activation="relu", l1_coefficient=1e-6).fit(X)
    assert np.mean(fixed.history_["l0"][-5:]) > 6


def test_history_and_held_out(X):
    sae = quick(max_steps=200).fit(X[:2000], X_val=X[2000:])
    h = sae.history_
    lengths = {len(v) for v in h.values()}
    assert lengths == {200} and h["step"][-1] == 200 and h["samples"][-1] == 200 * 128
    held_out = [v for v in h["explained_variance_val"] if not np.isnan(v)]
    assert len(held_out) == 20 and held_out[-1] > held_out[0]
    x_hat = sae.inverse_transform(sae.transform(X[2000:]))
    ev = 1 - ((X[2000:] - x_hat) ** 2).sum() / ((X[2000:] - X[2000:].mean(0)) ** 2).sum()
    assert held_out[-1] == pytest.approx(ev, abs=1e-4)  # Euclidean: the training space is a scaled one


def state(sae):
    return [sae._model.get(name).tobytes() for name in FIELDS]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_same_seed_same_bits_for_any_thread_count(activation, X):
    runs = [state(quick(activation=activation, num_threads=t, dead_after=2).fit(X)) for t in (1, 2, 3)]
    assert runs[0] == runs[1] == runs[2]
    assert state(quick(activation=activation, random_state=1, dead_after=2).fit(X)) != runs[0]


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "memmap", "shards", "strided"])
def test_every_kind_of_input(dtype, X, tmp_path):
    import ml_dtypes

    base = quick().fit(X)
    if dtype == "memmap":
        np.save(tmp_path / "x.npy", X)
        same = np.load(tmp_path / "x.npy", mmap_mode="r")
    elif dtype == "shards":
        same = [X[:1000], X[1000:1001], X[1001:]]
    elif dtype == "strided":
        same = np.repeat(X, 2, axis=1)[:, ::2]
    else:
        same = X.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    sae = quick().fit(same)
    if dtype in ("memmap", "shards", "strided", "float64"):
        assert state(sae) == state(base)
    codes = sae.transform(same)
    assert codes.shape == (3000, 48) and codes.dtype == np.float32
    assert codes.nnz / 3000 == pytest.approx(4, rel=0.3)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_save_and_load(activation, metric, X, tmp_path):
    sae = quick(activation=activation, metric=metric, tied=activation == "jumprelu").fit(X)
    sae.save(tmp_path / "sae.safetensors")
    assert os.listdir(tmp_path) == ["sae.safetensors"]
    back = atoms.SparseAutoencoder.load(tmp_path / "sae.safetensors")
    a, b = sae.transform(X), back.transform(X)
    assert (a != b).nnz == 0 and a.nnz > 0
    np.testing.assert_array_equal(sae.inverse_transform(a), back.inverse_transform(b))
    assert back.history_ == sae.history_ or np.isnan(sae.history_["explained_variance_val"][0])


def test_pickle_and_copy(metric, X):
    import copy
    import pickle

    sae = quick(metric=metric).fit(X)
    for again in (pickle.loads(pickle.dumps(sae)), copy.deepcopy(sae)):
        assert state(again) == state(sae)
        assert (again.transform(X) != sae.transform(X)).nnz == 0


def test_checkpoint_resumes_to_the_same_bits(X, tmp_path):
    path = tmp_path / "run.safetensors"
    aip = atoms.AtomicInnerProduct().fit(X)
    whole = quick(metric=aip, dead_after=3).fit(X)

    with pytest.raises(Stop):
        quick(metric=aip, dead_after=3).fit(X, checkpoint=path, checkpoint_steps=10, callback=stop_after(37))
    resumed = quick(metric=aip, dead_after=3).fit(X, checkpoint=path)
    assert resumed.history_["step"] == whole.history_["step"]
    assert state(resumed) == state(whole)
    with pytest.raises(ValueError, match="checkpoint: .*other settings \\(target_l0\\)"):
        quick(metric=aip, dead_after=3, target_l0=5).fit(X, checkpoint=path)


@pytest.mark.slow
def test_killed_at_random_times_and_resumed(X, tmp_path):
    """SIGKILL, twenty times at random: the end is that of the uninterrupted run."""
    np.save(tmp_path / "x.npy", X)
    script = tmp_path / "train.py"
    # 20 lives of at most 0.3 s at 4 ms a step or more cannot finish 1500 steps
    script.write_text(
        textwrap.dedent(f"""
        import sys, time, numpy as np, atoms
        X = np.load({str(tmp_path / "x.npy")!r})
        sae = atoms.SparseAutoencoder(48, target_l0=4, batch_size=128, max_steps=1500, verbose=False, dead_after=3)
        slow = None if sys.argv[2] == "fast" else lambda sae, figures: time.sleep(0.004)
        print("ready", flush=True)
        sae.fit(X, checkpoint=sys.argv[1], checkpoint_steps=3, callback=slow)
        """)
    )
    rng = np.random.default_rng(1)
    path, steps = tmp_path / "run.safetensors", []
    for life in range(21):
        pace = "slow" if life < 20 else "fast"
        child = started(script, path, pace, stdout=subprocess.PIPE)
        assert child.stdout.readline() == "ready\n"
        if pace == "slow":
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(timeout=rng.uniform(0.02, 0.3))
            child.send_signal(signal.SIGKILL)
        child.stdout.close()
        assert child.wait() == (-signal.SIGKILL if pace == "slow" else 0)
        if path.exists():
            steps.append(atoms.SparseAutoencoder.load(path)._model.steps)
    assert (
        steps == sorted(steps) and len(set(steps)) > 5 and steps[-1] == 1500
    )  # killed on the way, and gone on
    sae = atoms.SparseAutoencoder(
        48, target_l0=4, batch_size=128, max_steps=1500, verbose=False, dead_after=3
    )
    assert state(sae.fit(X)) == state(atoms.SparseAutoencoder.load(path))


def test_interrupt_leaves_a_usable_model(X):
    """Ctrl-C ends training within half a second, in the middle of a step too."""
    rows = np.tile(X, (10, 20))  # 400 columns: a step of some tenths of a second
    late = []
    for _ in range(3):  # a busy machine may be late once
        sent = []

        def interrupt():
            sent.append(time.monotonic())
            signal.raise_signal(signal.SIGINT)

        def arm(sae, figures, interrupt=interrupt):
            if figures["step"] == 2:
                threading.Timer(0.1, interrupt).start()

        sae = quick(d_sae=4096, batch_size=8192, max_steps=10**6)
        with pytest.raises(KeyboardInterrupt):
            sae.fit(rows, callback=arm)
        late.append(time.monotonic() - sent[0])
        if late[-1] < 0.5:
            break
    assert min(late) < 0.5, late
    assert 2 <= sae._model.steps < 10**6
    assert sae.transform(rows[:50]).nnz > 0 and np.isfinite(sae.W_enc).all()


def test_progress_shows_rate_time_left_and_figures(X, capfd):
    quick(verbose=True, max_steps=300).fit(X[:2500], X_val=X[2500:])
    last = capfd.readouterr().err.split("\r")[-1]
    assert re.search(r"300/300 \[\d\d:\d\d<\d\d:\d\d, +[\d.]+step/s", last), last
    assert all(name in last for name in ("loss=", "EV held-out=", "L0=", "dead=")), last


@pytest.mark.parametrize("factor", [0.1, 10.0])
@pytest.mark.parametrize("target", [2, 6])
def test_l0_reaches_its_target_from_thresholds_far_off(target, factor, X):
    """Ten times too low or too high: within 5% after far fewer than two million samples, and it stays there."""
    first = quick(max_steps=1).fit(X)
    first._model.set("threshold", factor * first._model.get("threshold"))
    first._finish()
    l0 = []
    quick(target_l0=target, max_steps=1200, decay=0.2).fit(
        X, init=first, callback=lambda sae, f: l0.append(f["l0"])
    )
    assert abs(l0[1] / target - 1) > 0.5  # it was far off
    assert np.mean(l0[-100:]) == pytest.approx(target, rel=0.05)


def test_tied_latents_that_share_strong_directions_come_to_their_target():
    """They reconstruct many times over at first and go silent: few have any sample in their band."""
    rng = np.random.default_rng(1)
    rows = (rng.standard_normal((4000, 64)) * np.geomspace(300, 1, 64)).astype(np.float32)
    l0 = []
    quick(d_sae=512, target_l0=12, tied=True, max_steps=250).fit(
        rows, callback=lambda sae, f: l0.append(f["l0"])
    )
    assert min(l0) < 7
    assert np.mean(l0[50:150]) == pytest.approx(12, rel=0.25)
    assert np.mean(l0[-50:]) == pytest.approx(12, rel=0.05)


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_the_k_largest_learn_among_strong_directions(activation):
    """They would be those along the strong directions, whatever the sample: 0.26 and 0.84."""
    rng = np.random.default_rng(1)
    A = rng.standard_normal((256, 64))
    A /= np.linalg.norm(A, axis=1, keepdims=True)
    Z = (rng.random((6000, 256)) < 6 / 256) * rng.uniform(1, 2, (6000, 256))
    strong = 6 * np.linalg.qr(rng.standard_normal((64, 3)))[0].T
    rows = Z @ A + rng.standard_normal((6000, 3)) @ strong + 0.05 * rng.standard_normal((6000, 64))
    sae = quick(d_sae=512, activation=activation, target_l0=8, max_steps=400).fit(rows[:5000])
    e = rows[5000:] - sae.inverse_transform(sae.transform(rows[5000:]))
    assert 1 - (e**2).sum() / ((rows[5000:] - rows[5000:].mean(axis=0)) ** 2).sum() > 0.87


@pytest.mark.parametrize("activation,most", [("jumprelu", 9), ("batchtopk", 7)])
def test_calibrated_thresholds_meet_the_target(activation, most, X, tmp_path):
    sae = quick(activation=activation).fit(X[:2000])
    other = X[2000:] * np.float32(1.3)  # other rows than it was trained on, and at another scale
    before = sae.threshold.copy()
    for target in (4, 2.5, most):
        assert sae.calibrate(other, target).transform(other).nnz / len(other) == pytest.approx(
            target, abs=0.01
        )
    ratio = sae.threshold[before > 0] / before[before > 0]
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-5)
    sae.calibrate([other[:300], other[300:]])
    sae.save(tmp_path / "sae.safetensors")
    again = atoms.SparseAutoencoder.load(tmp_path / "sae.safetensors")
    assert again.transform(other).nnz / len(other) == pytest.approx(4, abs=0.01)
    with pytest.raises(ValueError, match="target_l0: no threshold reaches 48"):
        sae.calibrate(other, 48)
    with pytest.raises(ValueError, match="target_l0: expected more than 0"):
        sae.calibrate(other, 0)
    with pytest.raises(ValueError, match="activation: 'topk' has no threshold"):
        quick(activation="topk").fit(X).calibrate(X)
    sae._model.set("threshold", np.zeros(48))
    if activation == "jumprelu":
        with pytest.raises(ValueError, match="threshold is zero"):
            sae.calibrate(other, 0.5)
        assert not sae._model.get("threshold").any()


def test_several_in_one_pass_equal_each_alone(X):
    aip = atoms.AtomicInnerProduct().fit(X)
    together = [quick(metric=aip), quick(metric=aip, target_l0=6), quick(activation="batchtopk")]
    atoms.fit_many(together, X)
    for sae in together:
        assert state(atoms.SparseAutoencoder(**sae.get_params(deep=False)).fit(X)) == state(sae)
    with pytest.raises(ValueError, match="batch_size"):
        atoms.fit_many([quick(), quick(batch_size=64)], X)
    for saes, said in (
        (quick(), "saes: expected a list of SparseAutoencoder, got a SparseAutoencoder"),
        ([quick(), atoms.DictionaryLearning(8, n_nonzero=2)], r"saes\[1\]: .* got a DictionaryLearning"),
        ([atoms.SparseAutoencoder], r"saes\[0\]: .* got SparseAutoencoder itself"),
    ):
        with pytest.raises(TypeError, match=said):
            atoms.fit_many(saes, X)


@pytest.mark.filterwarnings("ignore:X. .* rows have a norm above")
@pytest.mark.parametrize("activation", ["batchtopk", "relu"])
def test_one_row_far_out_leaves_the_first_scale(activation):
    """It would be rebuilt by hundreds of latents at once, and their scale went down to a fifteenth for it alone."""
    rng = np.random.default_rng(0)
    D = rng.standard_normal((128, 32))
    codes = rng.exponential(size=(2000, 128)) * (rng.random((2000, 128)) < 0.05)
    X = (codes @ (D / np.linalg.norm(D, axis=1, keepdims=True))).astype(np.float32)
    far = X.copy()
    far[7] *= 100
    settings = {"activation": activation, "target_l0": 8, "max_steps": 1, "learning_rate": 1e-12}
    size = [np.linalg.norm(quick(d_sae=4000, **settings).fit(rows).W_enc) for rows in (X, far)]
    assert size[1] > 0.15 * size[0]


@pytest.mark.filterwarnings("ignore:X. .* rows? ha(s|ve) a norm above")
def test_topk_begins_with_k_latents_in_nearly_every_row():
    """Rows far out had most of the latents with z > 0, and the others hardly any: 0.63 of 4, and 0.18 held out in the end."""
    rng = np.random.default_rng(0)
    D = rng.standard_normal((512, 64))
    codes = (rng.random((6000, 512)) < 4 / 512) * rng.exponential(1, (6000, 512))
    X = (codes @ D) * np.exp(1.5 * rng.standard_normal((6000, 1)))
    rows, others = np.split(X.astype(np.float32), [5000])
    settings = {"d_sae": 512, "activation": "topk", "target_l0": 4, "batch_size": 512}
    assert quick(**settings, max_steps=1, learning_rate=1e-12).fit(rows).transform(rows).nnz > 3.9 * len(rows)
    assert quick(**settings, max_steps=400).fit(rows).score(others) > 0.35


def test_warm_start(metric, X):
    first = quick(metric=metric).fit(X)
    again = quick(metric=metric, learning_rate=1e-12, max_steps=1).fit(X, init=first)
    a, b = first.transform(X), again.transform(X)
    assert abs(a - b).max() < 1e-2 * a.max()
    bad = quick(metric=metric).fit(X)
    bad.d_sae = 48
    with pytest.raises(ValueError, match="init: expected W_enc"):
        atoms.SparseAutoencoder(50, verbose=False).fit(X, init=first)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"d_sae": 0}, "d_sae: expected a positive integer"),
        ({"activation": "gelu"}, "activation: expected one of"),
        ({"target_l0": 0}, "target_l0: expected more than 0"),
        ({"target_l0": 1000}, "target_l0: .* d_sae"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"bandwidth": -1}, "bandwidth"),
        ({"batch_size": 1.5}, "batch_size: expected a positive integer"),
        ({"beta1": 1.0}, "beta1"),
        ({"random_state": -1}, "random_state"),
        ({"screen": "int4"}, "screen"),
        ({"num_threads": 0}, "num_threads"),
        ({"l1_coefficient": 0.1}, "l1_coefficient: only"),
        ({"metric": "aip"}, "metric: expected a fitted"),
        ({"matryoshka_widths": [8, 8]}, "matryoshka_widths: .* ascending"),
        ({"matryoshka_widths": [99]}, "matryoshka_widths: .* d_sae"),
        ({"aux_k": -1}, "aux_k"),
        ({"aux_k": 1.5}, "aux_k: expected an integer"),
        ({"aux_k": 4, "dead_after": 0}, "aux_k: dead_after=0"),
    ],
)
def test_bad_parameters_are_named(change, message, X):
    with pytest.raises(ValueError, match=message):
        quick().set_params(**change).fit(X)


def test_matryoshka_prefixes_reconstruct_by_themselves(X, tmp_path):
    plain = quick(activation="batchtopk", max_steps=300).fit(X)
    nested = quick(activation="batchtopk", max_steps=300, matryoshka_widths=(6, 16)).fit(X)

    def explained(sae, width):
        codes = sae.transform(X).tocsc()
        residual = X - (codes[:, :width] @ sae.W_dec[:width] + sae.b_dec)
        return 1 - (residual**2).sum() / ((X - X.mean(0)) ** 2).sum()

    for width in (6, 16):
        assert explained(nested, width) > explained(plain, width) + 0.02
    path = tmp_path / "nested.safetensors"
    nested.save(path, training_state=True)
    again = atoms.SparseAutoencoder.load(path)
    assert again.matryoshka_widths == [6, 16]
    quick(activation="batchtopk", max_steps=300, matryoshka_widths=(6, 16)).fit(X, checkpoint=path)


def test_aux_k_brings_dead_latents_back(X):
    """Latents that are never among the k largest; only AuxK's gradient reaches them."""

    def dead(seed, **change):
        sae = quick(
            activation="topk",
            max_steps=1500,
            dead_after=20,
            decay=0.0,
            random_state=seed,
            aux_k=8,
            num_threads=1,
            **change,
        )
        first = quick(activation="topk", max_steps=1, random_state=seed).fit(X)
        low = 4 * np.linalg.norm(first._model.get("W_enc")[0])  # all its rows have one norm
        first._model.set("b_enc", np.where(np.arange(sae.d_sae) < 10, -low, 0.0))
        first._finish()
        sae.fit(X, init=first)
        return int((np.bincount(sae.transform(X).indices, minlength=sae.d_sae)[:10] == 0).sum())

    without = sum(dead(seed, aux_coefficient=0.0) for seed in (1, 2))
    assert sum(dead(seed) for seed in (1, 2)) < without - 3


def test_bad_data_is_named(X):
    y = X.copy()
    y[1234, 5] = np.nan
    for metric in (None, atoms.AtomicInnerProduct().fit(X)):
        with pytest.raises(ValueError, match="(row|NaN)"):
            quick(metric=metric, max_steps=100).fit(y)
    with pytest.raises(ValueError, match="at least 2 samples"):
        quick().fit(X[:1])
    with pytest.raises(ValueError, match="X_val: expected 20 features"):
        quick().fit(X, X_val=X[:, :5])
    with pytest.raises(ValueError, match="metric: fitted on 5 features"):
        quick(metric=atoms.AtomicInnerProduct().fit(X[:, :5])).fit(X)
    sae = quick().fit(X)
    with pytest.raises(ValueError, match="5 features"):
        sae.transform(X[:, :5])
    with pytest.raises(ValueError, match="codes: expected 48 columns"):
        sae.inverse_transform(np.zeros((2, 5)))
    with pytest.raises((ValueError, AttributeError), match="not fitted"):
        quick().transform(X)


def test_divergence_is_said(X, tmp_path):
    def diverge(**kwargs):
        sae = quick(learning_rate=3e38, warmup=0, clip=0, max_steps=200)
        with np.errstate(all="ignore"), pytest.raises(atoms.TrainingDiverged) as caught:
            sae.fit(X, **kwargs)
        return str(caught.value)

    assert re.search(r"step \d+ with learning rate 3e\+38; lower", diverge())
    assert "checkpoint" not in diverge(
        checkpoint=tmp_path / "none.safetensors"
    )  # it had no time to write one
    good = tmp_path / "good.safetensors"
    message = diverge(checkpoint=good, checkpoint_steps=1)  # finite losses, but then weights that are not
    assert f"the last good checkpoint is {good}" in message
    back = atoms.SparseAutoencoder.load(good)
    assert all(np.isfinite(back._model.get(name)).all() for name in WEIGHTS)


@pytest.mark.parametrize("n", [2, 3, 17])
def test_few_samples_and_constant_data(n):
    rng = np.random.default_rng(0)
    for X in (rng.standard_normal((n, 5)), np.ones((n, 5)), np.zeros((n, 5))):
        sae = atoms.SparseAutoencoder(7, target_l0=2, batch_size=4, max_steps=5, verbose=False).fit(
            X.astype(np.float32)
        )
        assert sae.transform(X.astype(np.float32)).shape == (n, 7)
        assert np.isfinite(sae.W_dec).all()


def test_empty_transform(X):
    sae = quick().fit(X)
    codes = sae.transform(X[:1])[:0]
    assert sae.inverse_transform(codes).shape == (0, 20)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 30), st.integers(0, 9))
def test_sampler_visits_every_row_each_epoch_and_skips(shards, batch, skip):
    n = sum(shards)
    rows = Rows(
        [np.arange(a, a + k, dtype=np.float64)[:, None] for a, k in zip(np.cumsum([0, *shards]), shards)]
    )
    assert rows.n == n
    sampler = Sampler(n, batch, [3])
    drawn = np.concatenate([sampler.next() for _ in range(3 * n + 12)])
    for epoch in range(3):
        assert sorted(drawn[epoch * n : (epoch + 1) * n]) == list(range(n))
    np.testing.assert_array_equal(rows.take(drawn)[:, 0], drawn)
    ahead = Sampler(n, batch, [3])
    ahead.skip(skip)
    np.testing.assert_array_equal(
        np.concatenate([ahead.next() for _ in range(2)]), drawn[skip * batch : (skip + 2) * batch]
    )


# ------------------------------------------------------------------------ it learns


def coherent(seed, n=6000, d=64, decades=1.0):
    """Rows of which every latent along a sample shares much with many others: few directions are strong."""
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((4 * d, d))
    A /= np.linalg.norm(A, axis=1, keepdims=True)
    codes = rng.exponential(1, (n, 4 * d)) * (rng.random((n, 4 * d)) < 2 / d)
    return ((codes @ A + 0.05 * rng.standard_normal((n, d))) * np.logspace(0, -decades, d)).astype(np.float32)


def held_out(sae, X):
    """Explained variance of rows that it has not seen."""
    X = X.astype(np.float64)
    return 1 - ((X - sae.inverse_transform(sae.transform(X))) ** 2).sum() / ((X - X.mean(0)) ** 2).sum()


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_revival_never_costs(activation, tied):
    """Most of 2,000 latents find nothing to explain: those of BatchTopK that were revived cost it 7 points."""
    X = coherent(0, 10_000)

    def explained(dead_after):
        sae = quick(d_sae=2000, activation=activation, target_l0=8, batch_size=256, max_steps=300, tied=tied,
                    dead_after=dead_after, num_threads=2)  # fmt: skip
        return held_out(sae.fit(X[2000:]), X[:2000])

    assert min(explained(50), explained(100)) > explained(0) - 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    "activation,least", [("jumprelu", 0.5), ("relu", 0.25), ("topk", 0.5), ("batchtopk", 0.4)]
)
def test_tied_latents_with_much_in_common_explain_more_than_the_mean(activation, least):
    """2,400 in 96 dimensions reconstructed each sample a hundred times over, and ended at -1.4 (JumpReLU)."""
    X = coherent(0, 8000, d=96)
    sae = quick(d_sae=2400, activation=activation, target_l0=8, batch_size=256, max_steps=400, tied=True)
    assert held_out(sae.fit(X[2000:]), X[:2000]) > least


def test_rows_far_out_cause_no_spikes():
    """Each moved all latents that it activated as far as one alone would have to go: batches fell below -1."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((6000, 128)) @ np.linalg.qr(rng.standard_normal((128, 128)))[0]
    X[::1000] *= 6
    explained = []
    quick(d_sae=512, target_l0=16, batch_size=512, max_steps=300).fit(
        X, callback=lambda sae, f: explained.append(1 - f["squared_error"] / f["total_variance"])
    )
    assert min(explained[20:]) > explained[20] - 0.1


def test_relu_comes_to_its_l0_and_stays_there():
    """By the sum of what L0 was off alone it swung between 5 and 11, or stayed at 0 while the coefficient ran away."""
    X = coherent(1)
    for dead_after in (0, 50):
        l0, sae = [], quick(d_sae=512, activation="relu", target_l0=8, max_steps=500, dead_after=dead_after)
        sae.fit(X, callback=lambda sae, f, l0=l0: l0.append(f["l0"]))
        assert np.mean(l0[-100:]) == pytest.approx(8, rel=0.1)
        assert np.std(l0[-200:]) < 1.5


def test_what_explains_less_than_the_mean_is_said(X):
    sae = quick(learning_rate=1.0, decay=0.0)
    with pytest.warns(UserWarning, match="less than its mean would"):
        sae.fit(X)


def planted(seed, *, correlated, n=60_000, d=64, n_atoms=256):
    """3 to 6 of 256 atoms with amplitudes in [1, 2], mixed by an ill-conditioned matrix, 1% noise."""
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((n_atoms, d))
    if correlated:
        A += 0.7 * rng.standard_normal((16, d))[rng.integers(16, size=n_atoms)]
    A /= np.linalg.norm(A, axis=1, keepdims=True)
    order = rng.random((n, n_atoms)).argpartition(6, axis=1)[:, :6]
    amplitudes = rng.uniform(1, 2, (n, 6)) * (np.arange(6) < rng.integers(3, 7, (n, 1)))
    codes = sp.csr_array((amplitudes.ravel(), order.ravel(), np.arange(0, 6 * n + 1, 6)), shape=(n, n_atoms))
    U, V = (np.linalg.qr(rng.standard_normal((d, d)))[0] for _ in range(2))
    A = A @ (U * np.logspace(0, 1.5, d)) @ V
    X = codes @ A
    return (X + 0.01 * X.std() * rng.standard_normal(X.shape)).astype(np.float32), A


def recovered(sae, A, aip):
    """Share of planted atoms with a decoder row at cosine 0.95 or more under the metric."""
    W, B = (aip.whiten_directions(np.asarray(M, np.float32)) for M in (sae.W_dec, A))
    W /= np.linalg.norm(W, axis=1, keepdims=True)
    B /= np.linalg.norm(B, axis=1, keepdims=True)
    return ((B @ W.T).max(axis=1) >= 0.95).mean()


@pytest.mark.slow
@pytest.mark.parametrize("correlated", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_planted_atoms_are_recovered(seed, correlated):
    """From 102,400 samples: 1,600 small batches, a high rate, silent latents moved early on."""
    X, A = planted(seed, correlated=correlated)
    aip = atoms.AtomicInnerProduct().fit(X)
    settings = {"target_l0": 4.5, "tied": True, "batch_size": 64, "max_steps": 1600, "learning_rate": 1e-2, "beta2": 0.99,
                "dead_after": 50, "decay": 0.5, "random_state": seed, "num_threads": 1, "verbose": False}  # fmt: skip
    sae = atoms.SparseAutoencoder(512, metric=aip, **settings).fit(X)
    assert recovered(sae, A, aip) >= 0.99
    if seed == 0:
        plain = atoms.SparseAutoencoder(512, **settings).fit(X)
        assert recovered(plain, A, aip) < recovered(sae, A, aip) - 0.05


@pytest.mark.slow
def test_scikit_learn_accepts_it():
    from sklearn.base import clone
    from sklearn.pipeline import make_pipeline
    from sklearn.utils.estimator_checks import check_estimator

    X = np.random.default_rng(0).standard_normal((200, 6))
    sae = atoms.SparseAutoencoder(8, target_l0=2, batch_size=32, max_steps=20, verbose=False)
    pipeline = make_pipeline(atoms.AtomicInnerProduct(), clone(sae)).fit(X)
    assert pipeline.transform(X).shape == (200, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(sae, on_fail=None)
    failed = {r["check_name"]: r["exception"] for r in results if r["status"] == "failed"}
    assert not failed, failed
