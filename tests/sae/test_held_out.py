"""L0 of rows that training has not seen: recorded, shown, brought to its target, or warned of."""

import json
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from safetensors import safe_open
from safetensors.numpy import save_file

import atoms
from atoms.sae._model import WEIGHTS

TARGET = 4


def quick(**kwargs):
    defaults = {"d_sae": 96, "target_l0": TARGET, "batch_size": 128, "max_steps": 150, "verbose": False}
    return atoms.SparseAutoencoder(**(defaults | kwargs))


@pytest.fixture(scope="module")
def data():
    """Few rows, seen often, so that L0 on others is far off."""
    rng = np.random.default_rng(0)
    codes = sp.random_array((2400, 60), density=0.08, rng=rng).toarray()
    rows = codes @ rng.standard_normal((60, 24)) + 0.3 * rng.standard_normal((2400, 24)) + 1
    return np.split(rows.astype(np.float32), [400])


def l0(sae, rows):
    return sae.transform(rows).nnz / len(rows)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("in_metric", [False, True])
@pytest.mark.parametrize("activation", ["jumprelu", "batchtopk", "topk", "relu"])
def test_the_result_meets_its_target_on_held_out_rows(activation, in_metric, tied, data):
    X, Y = data
    metric = atoms.AtomicInnerProduct().fit(X) if in_metric else None
    sae = quick(activation=activation, metric=metric, tied=tied).fit(X, X_val=Y)
    history = sae.history_
    recorded = np.array(history["l0_val"])
    assert np.array_equal(np.isnan(recorded), np.isnan(history["explained_variance_val"]))
    assert 15 <= np.isfinite(recorded).sum() <= 25
    assert recorded[-1] == pytest.approx(l0(sae, Y), abs=0.01)
    if activation in ("jumprelu", "batchtopk"):  # the others have no threshold
        assert recorded[-1] == pytest.approx(TARGET, abs=0.02)
    t = sae._fitted.space.to_space(Y).astype(np.float64)
    t_hat = sae._fitted.space.to_space(sae.inverse_transform(sae.transform(Y)))
    explained = 1 - ((t - t_hat) ** 2).sum() / ((t - t.mean(axis=0)) ** 2).sum()
    assert history["explained_variance_val"][-1] == pytest.approx(explained, abs=1e-3)


@pytest.mark.parametrize("activation", ["jumprelu", "batchtopk"])
def test_that_is_calibrate_after_training(activation, data):
    X, Y = data
    plain = quick(activation=activation).fit(X, X_val=Y, calibrate=False)
    assert abs(plain.history_["l0_val"][-1] - TARGET) > 0.03  # there was something to put right
    ended = quick(activation=activation).fit(X, X_val=Y)
    for name in WEIGHTS:
        if name != "threshold":
            assert np.array_equal(getattr(plain, name), getattr(ended, name)), name
    assert not np.array_equal(plain.threshold, ended.threshold)
    assert np.array_equal(plain.calibrate(Y).threshold, ended.threshold)


def test_several_are_calibrated_each_in_its_own_space(data):
    X, Y = data
    metric = atoms.AtomicInnerProduct().fit(X)
    saes = [quick(), quick(metric=metric, target_l0=6), quick(activation="batchtopk")]
    atoms.fit_many(saes, X, Y)
    assert [l0(s, Y) for s in saes] == pytest.approx([4, 6, 4], abs=0.02)


def test_progress_shows_it(data, capsys):
    X, Y = data
    quick(verbose=True).fit(X, X_val=Y)
    assert "L0 held-out=4.0" in capsys.readouterr().err.replace("'", "")


def test_a_checkpoint_holds_the_result(data, tmp_path):
    """The last one is written after the thresholds have moved, and moves them no further when taken up."""
    X, Y = data
    path = tmp_path / "run.safetensors"
    sae = quick().fit(X, X_val=Y, checkpoint=path)
    for other in (quick().fit(X, X_val=Y, checkpoint=path), atoms.SparseAutoencoder.load(path)):
        assert np.array_equal(other.threshold, sae.threshold)
        np.testing.assert_equal(other.history_, sae.history_)


def test_files_of_before_do_not_have_it(data, tmp_path):
    X, Y = data
    path = tmp_path / "old.safetensors"
    sae = quick().fit(X, X_val=Y)
    sae.save(path)
    with safe_open(path, "numpy") as file:
        meta, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    (key,) = (k for k, v in meta.items() if "l0_val" in v)
    about = json.loads(meta[key])
    del about["history"]["l0_val"]
    save_file(tensors, path, {**meta, key: json.dumps(about)})
    again = atoms.SparseAutoencoder.load(path)
    assert np.isnan(again.history_["l0_val"]).all()
    assert again.history_["l0"] == sae.history_["l0"]


@pytest.mark.filterwarnings("always:target_l0 is held")
def test_without_held_out_rows_there_is_a_warning(data):
    X, Y = data
    message = "target_l0 is held on the rows of X.*seen about 48 times.*X_val="
    for activation in ("jumprelu", "batchtopk", "relu"):
        with pytest.warns(UserWarning, match=message) as found:
            quick(activation=activation).fit(X)
        assert found[0].filename == __file__
    with pytest.warns(UserWarning, match=message) as found:
        atoms.fit_many([quick(), quick(random_state=1)], X)
    assert found[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quick().fit(X, X_val=Y)
        quick(activation="topk").fit(X)  # never more than k, on any row
        quick(max_steps=12).fit(np.concatenate([X, Y]))  # no row was seen twice


def test_rows_on_which_no_threshold_does(data):
    X, Y = data
    with pytest.warns(
        UserWarning, match="X_val: thresholds are not calibrated on it.*no threshold reaches 64"
    ):
        sae = quick(target_l0=64, max_steps=20).fit(np.concatenate([X, Y]), X_val=np.zeros_like(Y))
    assert np.isfinite(sae.threshold).all()
