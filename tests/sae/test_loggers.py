"""Training curves as the loggers' own libraries read them back."""

import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

import atoms


@pytest.fixture(scope="module")
def X():
    return np.random.default_rng(0).standard_normal((600, 8)).astype(np.float32)


def quick(**kwargs):
    return atoms.SparseAutoencoder(
        16, **({"target_l0": 3, "batch_size": 64, "max_steps": 45, "verbose": False} | kwargs)
    )


def curves(folder):
    """Every scalar of a folder of event files, by TensorBoard's own reader: name -> {step: value}."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()  # 0: all of them
    return {
        tag: {e.step: make_ndarray(e.tensor_proto).item() for e in events.Tensors(tag)}
        for tag in events.Tags()["tensors"]
    }


def test_tensorboard_reads_the_curves(X, tmp_path):
    pytest.importorskip("tensorboard")
    with atoms.loggers.TensorBoard(tmp_path, every=10) as log:
        sae = quick().fit(X[:500], X_val=X[500:], callback=log)
    got, history = curves(tmp_path), sae.history_
    assert set(got) == {
        "loss",
        "l0",
        "learning_rate",
        "explained_variance",
        "dead",
        "explained_variance_val",
        "l0_val",
    }
    assert list(got["loss"]) == [10, 20, 30, 40, 45]
    for name in ("loss", "l0", "explained_variance", "learning_rate"):
        for step, value in got[name].items():
            assert value == pytest.approx(history[name][step - 1], rel=1e-6), (name, step)
    held_out = {s: v for s, v in zip(history["step"], history["explained_variance_val"]) if not np.isnan(v)}
    assert got["explained_variance_val"] == pytest.approx(held_out, rel=1e-6) and len(held_out) > 10
    assert list(got["dead"]) == history["step"]


def test_tensorboard_reads_a_dictionarys_curves(X, tmp_path):
    pytest.importorskip("tensorboard")
    with atoms.loggers.TensorBoard(tmp_path, every=10) as log:
        model = atoms.DictionaryLearning(16, 3, batch_size=64, max_steps=45, verbose=False)
        model.fit(X[:500], X_val=X[500:], callback=log)
    found, history = curves(tmp_path), model.history_
    for name in ("loss", "l0", "explained_variance"):
        step = max(found[name])
        assert step == 45 and found[name][step] == pytest.approx(history[name][-1])
    assert found["explained_variance_val"][45] == pytest.approx(history["explained_variance_val"][-1])


def test_tensorboard_keeps_several_apart(X, tmp_path):
    pytest.importorskip("tensorboard")
    saes = [quick(random_state=seed) for seed in (3, 4)]
    with atoms.loggers.TensorBoard(tmp_path, every=5, label=lambda sae: f"seed{sae.random_state}") as log:
        atoms.fit_many(saes, X, callback=log)
    for sae in saes:
        got = curves(tmp_path / f"seed{sae.random_state}")
        assert got["loss"][45] == pytest.approx(sae.history_["loss"][-1], rel=1e-6)


def test_wandb_keeps_the_curves_offline(X, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    settings = wandb.Settings(
        silent=True, console="off", x_disable_stats=True, x_disable_meta=True, disable_git=True
    )
    with atoms.loggers.WandB(
        every=10, mode="offline", dir=tmp_path, project="test", settings=settings
    ) as log:
        sae = quick().fit(X, callback=log)
    wandb.teardown()  # on a busy machine its service still writes when finish() returns
    (file,) = Path(tmp_path).rglob("*.wandb")
    got = offline_curves(file)
    assert list(got["loss"]) == [10, 20, 30, 40, 45]
    for step, value in got["loss"].items():
        assert value == pytest.approx(sae.history_["loss"][step - 1])
    assert list(got["dead"]) == sae.history_["step"]


def offline_curves(file):
    """Name -> {step: value} from an offline run's file: a LevelDB log of wandb's protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, record, got = file.read_bytes(), 7, b"", {}
    while at < len(data):
        if (left := 32768 - at % 32768) < 7:  # no header fits into the rest of a block
            at += left
            continue
        length, kind = struct.unpack_from("<4xHB", data, at)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            history = Record.FromString(record).history
            record = b""
            for item in history.item:
                name = item.key or "/".join(item.nested_key)
                if not name.startswith("_"):
                    got.setdefault(name, {})[history.step.num] = json.loads(item.value_json)
    return got


def test_a_run_begun_elsewhere_stays_open(X):
    class Run:
        logged, finished = [], False

        def log(self, values, step):
            self.logged.append((step, values))

        def finish(self):
            self.finished = True

    run = Run()
    with atoms.loggers.WandB(run=run, every=20, label=lambda sae: f"l0={sae.target_l0}") as log:
        quick().fit(X, callback=log)
    assert not run.finished
    assert run.logged[-1][0] == 45 and "l0=3/loss" in run.logged[-1][1]
    with pytest.raises(ValueError, match="run: .* project"):
        atoms.loggers.WandB(run=run, project="x")


@pytest.mark.parametrize("every", [0, 1.5, True])
def test_every_is_checked(every, tmp_path):
    with pytest.raises(ValueError, match="every: expected a positive integer"):
        atoms.loggers.TensorBoard(tmp_path, every=every)


@pytest.mark.parametrize("logger,package", [("TensorBoard", "tensorboard.summary"), ("WandB", "wandb")])
def test_a_missing_package_is_named(logger, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match="pip install"):
        getattr(atoms.loggers, logger)(*(["runs"] if logger == "TensorBoard" else []))
