"""What an autoencoder was fitted with is its own, and its checkpoints are of its data and of one step."""

import contextlib
import copy
import fcntl
import os
import pickle
import threading

import numpy as np
import pytest
from support import Stop, started, stop_after

import atoms
from atoms._files import load_tensors, save_tensors
from atoms._rows import BlockSource
from atoms.sae._autoencoder import as_fitted
from atoms.sae._model import FIELDS


def quick(**kwargs):
    defaults = {"d_sae": 48, "target_l0": 4, "batch_size": 128, "max_steps": 60, "verbose": False}
    return atoms.SparseAutoencoder(**(defaults | kwargs))


def state(sae):
    return [sae._model.get(name).tobytes() for name in FIELDS]


@pytest.fixture(scope="module")
def X():
    rng = np.random.default_rng(0)
    codes = rng.exponential(1, (3000, 40)) * (rng.random((3000, 40)) < 0.1)
    return (codes @ rng.standard_normal((40, 20)) + 0.02 * rng.standard_normal((3000, 20)) + 3).astype(
        np.float32
    )


# ------------------------------------------------------------------------ state is its own


def codes_of(sae, X):
    codes = sae.transform(X)
    return codes.data.tobytes(), codes.indices.tobytes(), sae.inverse_transform(codes).tobytes()


def through_pickle(sae, folder):
    return pickle.loads(pickle.dumps(sae))


def through_file(sae, folder):
    sae.save(folder / "sae.safetensors")
    return atoms.SparseAutoencoder.load(folder / "sae.safetensors")


WAYS = [lambda sae, folder: sae, lambda sae, folder: copy.deepcopy(sae), through_pickle, through_file]


@pytest.mark.parametrize("way", WAYS, ids=["itself", "copy", "pickle", "file"])
def test_one_metric_fitted_layer_by_layer(way, X, tmp_path):
    other = 5 + 3 * X[::-1, ::-1]
    aip = atoms.AtomicInnerProduct().fit(X)
    sae = quick(metric=aip).fit(X)
    before = codes_of(sae, X)
    aip.fit(other)
    assert codes_of(way(sae, tmp_path), X) == before
    aip.partial_fit(other)
    aip.set_params(centered=True, shrinkage=0.5)
    again = way(sae, tmp_path)
    assert codes_of(again, X) == before and again.metric_ is not aip
    np.testing.assert_array_equal(again.W_dec, sae.W_dec)
    with pytest.raises(ValueError, match="read-only|not writeable"):
        aip.whitener_[:] = 0


def test_a_loaded_one_does_not_share_its_metric(X, tmp_path):
    sae = through_file(quick(metric=atoms.AtomicInnerProduct().fit(X)).fit(X), tmp_path)
    before = codes_of(sae, X)
    sae.metric.fit(5 - X)
    assert codes_of(sae, X) == before


@pytest.mark.parametrize("way", WAYS, ids=["itself", "copy", "pickle", "file"])
@pytest.mark.parametrize(
    "change",
    [{"activation": "topk"}, {"activation": "relu"}, {"tied": True}, {"target_l0": 9}, {"d_sae": 12}, {"d_sae": 4096},
     {"matryoshka_widths": [3]}, {"metric": "new"}, {"bandwidth": 1.0}],
)  # fmt: skip
def test_set_params_after_fit_waits_for_the_next_fit(change, way, X, tmp_path):
    sae = quick(activation="batchtopk").fit(X)
    before = codes_of(sae, X)
    if change.get("metric"):
        change = {"metric": atoms.AtomicInnerProduct().fit(X)}
    sae.set_params(**change)
    again = way(sae, tmp_path)
    assert codes_of(again, X) == before
    assert again.transform(X).toarray().shape == (3000, 48)
    assert again.calibrate(X).transform(X).nnz / len(X) == pytest.approx(4, abs=0.01)  # fit's target
    if way is not through_file:
        assert again.get_params(deep=False).keys() >= change.keys()
        assert state(again.fit(X)) == state(quick(**({"activation": "batchtopk"} | change)).fit(X))


def test_folded_weights_follow_the_model_and_cannot_be_written_to(X):
    seen = []
    sae = quick(max_steps=3).fit(X, callback=lambda sae, figures: seen.append(sae.W_dec))
    assert not np.array_equal(seen[0], seen[1])
    np.testing.assert_array_equal(seen[2], sae.W_dec)
    with pytest.raises(ValueError, match="read-only"):
        sae.W_dec[0] = 0


@pytest.mark.parametrize(
    "fault", ["init", "rows", "callback", "diverged", "checkpoint", "parameter", "metric"]
)
def test_a_failed_fit_leaves_what_was_there(fault, X, tmp_path):
    sae = quick(metric=atoms.AtomicInnerProduct().fit(X)).fit(X)
    before, history = codes_of(sae, X), copy.deepcopy(sae.history_)
    rows, kwargs = X, {}
    if fault == "init":
        kwargs = {"init": object()}
    elif fault == "rows":
        rows = X.copy()
        rows[1234, 5] = np.nan
        sae.set_params(metric=None)
    elif fault == "callback":
        kwargs = {"callback": lambda sae, figures: {}["no such"]}
    elif fault == "diverged":
        sae.set_params(learning_rate=3e38, warmup=0, clip=0, max_steps=200)
    elif fault == "checkpoint":
        kwargs = {"checkpoint": tmp_path / "none" / "run"}
    elif fault == "parameter":
        sae.set_params(d_sae=0)
    else:
        rows = X[:, :7]
    with (
        np.errstate(all="ignore"),
        pytest.raises((ValueError, LookupError, AttributeError, OSError, ArithmeticError)),
    ):
        sae.fit(rows, **kwargs)
    assert codes_of(sae, X) == before and sae.n_features_in_ == 20
    assert str(sae.history_) == str(history)
    new = quick(d_sae=0)
    with pytest.raises(ValueError):
        new.fit(X)
    assert not new.__sklearn_is_fitted__()


def test_other_threads_may_use_it_while_it_is_trained(X):
    whole = quick(max_steps=150).fit(X)
    sae, stop, faults, used = quick(max_steps=150).fit(X[::-1]), threading.Event(), [], []

    def use():
        try:
            while not stop.is_set():
                used.append(sae.transform(X[:500]).nnz)
                assert sae.W_enc.shape == (20, 48)
                pickle.dumps(sae)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()
    sae.fit(X)
    stop.set()
    for thread in threads:
        thread.join()
    assert not faults and used
    assert state(sae) == state(whole)


# ------------------------------------------------------------------------ checkpoints


def begun(X, path):
    with pytest.raises(Stop):
        quick().fit(X, checkpoint=path, checkpoint_steps=10, callback=stop_after(37))


@pytest.mark.parametrize(
    "other",
    [lambda X: X[:-1], lambda X: X.astype(np.float64), lambda X: X[::-1], lambda X: X + 1, lambda X: [X, X]],
    ids=["fewer", "float64", "reversed", "other numbers", "more"],
)
def test_a_checkpoint_of_other_data_is_refused(other, X, tmp_path):
    path = tmp_path / "run.safetensors"
    begun(X, path)
    bytes_ = path.read_bytes()
    with pytest.raises(ValueError, match="checkpoint: .* was trained on other data"):
        quick().fit(other(X), checkpoint=path)
    assert path.read_bytes() == bytes_
    assert state(quick().fit([X[:7], X[7:]], checkpoint=path)) == state(
        quick().fit(X)
    )  # the same rows, in shards


def test_a_checkpoint_whose_metric_is_damaged_is_named(X, tmp_path):
    path, metric = tmp_path / "run.safetensors", atoms.AtomicInnerProduct()
    quick(metric=metric, max_steps=5).fit(X, checkpoint=path)
    tensors, meta = load_tensors(path, "SparseAutoencoder")
    name = next(name for name in tensors if name.startswith("metric.") and tensors[name].ndim)
    tensors[name].flat[0] = np.nan
    save_tensors(path, "SparseAutoencoder", tensors, meta)
    with pytest.raises(ValueError, match=rf"run.safetensors: .*{name} contains NaN or infinity"):
        quick(metric=metric, max_steps=5).fit(X, checkpoint=path)


def test_a_checkpoint_that_does_not_know_its_data_is_taken_up(X, tmp_path):
    """Those written before checkpoints knew it."""
    path = tmp_path / "run.safetensors"
    begun(X, path)
    tensors, meta = load_tensors(path, "SparseAutoencoder")
    del meta["data"]
    save_tensors(path, "SparseAutoencoder", tensors, meta)
    assert state(quick().fit(X, checkpoint=path)) == state(quick().fit(X))


def test_a_checkpoint_that_cannot_be_written_is_found_out_before_the_first_step(X, tmp_path):
    (tmp_path / "file").touch()
    for path, kind in [
        (tmp_path / "none" / "run", FileNotFoundError),
        (tmp_path / "file" / "run", NotADirectoryError),
        (tmp_path, IsADirectoryError),
        ("/proc/run", OSError),
    ]:
        steps = []
        with pytest.raises(kind, match="checkpoint: ") as caught:
            quick().fit(X, checkpoint=path, callback=lambda sae, figures: steps.append(0))
        assert not steps and caught.value.filename == str(path)


def test_two_runs_on_one_checkpoint(X, tmp_path):
    path = tmp_path / "run.safetensors"
    faults = []

    def second(sae, figures):
        if figures["step"] == 5:
            with pytest.raises(ValueError, match="checkpoint: another run is using") as caught:
                quick().fit(X, checkpoint=path)
            faults.append(caught.value)

    quick().fit(X, checkpoint=path, callback=second)
    assert faults and os.listdir(tmp_path) == ["run.safetensors"]
    with pytest.raises(ValueError, match="checkpoints: expected another path for each"):
        atoms.fit_many([quick(), quick()], X, checkpoints=[path, tmp_path / "." / "run.safetensors"])


def test_leftovers_of_killed_saves_are_removed(X, tmp_path):
    sae, path = quick(max_steps=1).fit(X), tmp_path / "a.safetensors"
    killed = ".a.safetensors.abcd_123.part"
    others = [
        ".b.safetensors.abcd_123.part",
        "a.safetensors.abcd_123",
        ".a.safetensors.part",
        ".a.safetensors.abcd_124.part",
    ]
    for name in [killed, *others]:
        (tmp_path / name).write_text("x")
    with open(tmp_path / others[-1], "rb") as writing:  # another process is at it
        fcntl.flock(writing, fcntl.LOCK_EX)
        sae.save(path)
    assert sorted(os.listdir(tmp_path)) == sorted([path.name, *others])


@pytest.mark.parametrize("after", range(6))
def test_killed_while_the_checkpoints_of_several_are_written(after, X, tmp_path):
    """After each of the writes and renames of step 20 in turn."""
    script = """
        import os, sys, numpy as np, atoms
        from atoms.sae import _checkpoints
        X, folder, after = np.load(sys.argv[1]), sys.argv[2], int(sys.argv[3])
        count, replace = 0, os.replace

        def counting(a, b):
            global count
            if step == 20 and count == after:
                os._exit(9)
            replace(a, b)
            count += step == 20

        os.replace, step = counting, 0

        def note(sae, figures):
            global step
            step = figures["step"]

        kw = dict(d_sae=48, batch_size=128, max_steps=60, verbose=False)
        saes = [atoms.SparseAutoencoder(target_l0=l0, **kw) for l0 in (3, 4, 5)]
        paths = [os.path.join(folder, f"run{i}") for i in range(3)]
        atoms.fit_many(saes, X, checkpoints=paths, checkpoint_steps=10, callback=note)
    """
    np.save(tmp_path / "x.npy", X)
    folder = tmp_path / "runs"
    folder.mkdir()
    child = started(script, tmp_path / "x.npy", folder, after)
    assert child.wait() == 9
    steps = []
    saes = [quick(target_l0=l0) for l0 in (3, 4, 5)]
    paths = [folder / f"run{i}" for i in range(3)]
    atoms.fit_many(saes, X, checkpoints=paths, callback=lambda sae, figures: steps.append(figures["step"]))
    assert steps[0] == (11 if after < 3 else 21)
    assert sorted(os.listdir(folder)) == ["run0", "run1", "run2"]
    for sae in saes:
        assert state(sae) == state(quick(target_l0=sae.target_l0).fit(X))
    short = atoms.SparseAutoencoder(48, target_l0=4, batch_size=128, max_steps=60, verbose=False)
    os.remove(paths[2])
    with pytest.raises(ValueError, match="different steps \\[0, 60\\]"):
        atoms.fit_many([*saes[:2], short], X, checkpoints=paths)


def test_exports_and_evaluation_go_by_what_was_fitted(X, tmp_path):
    sae = quick(activation="topk").fit(X)
    atoms.io.save(sae, tmp_path / "a", format="saelens")
    sae.set_params(activation="relu", target_l0=9, d_sae=7, metric=atoms.AtomicInnerProduct().fit(X))
    atoms.io.save(sae, tmp_path / "b", format="saelens")
    for name in ("cfg.json", "sae_weights.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    fitted = as_fitted(sae)
    assert fitted.get_params(deep=False) == quick(activation="topk").get_params(deep=False) | {
        "verbose": True
    }
    assert codes_of(fitted, X) == codes_of(sae, X)


# ------------------------------------------------------------------------ where training begins


def test_init_takes_no_more_than_it_can_hold(X):
    with pytest.raises(ValueError, match="init: expected an autoencoder, got object without W_enc"):
        quick().fit(X, init=object())
    rng = np.random.default_rng(0)
    W, D = rng.standard_normal((20, 48)), rng.standard_normal((48, 20))
    weights = (W, np.zeros(48), D, np.zeros(20))
    for more, message in [
        ({"is_transcoder": True}, "init: is a transcoder, which"),
        ({"W_skip": np.eye(20)}, "init: is a transcoder with a skip connection"),
        ({"input_norm": "layer_norm"}, "init: normalises each sample"),
    ]:
        with pytest.raises(ValueError, match=message):
            quick().fit(X, init=atoms.io.PretrainedSAE(*weights, activation="relu", **more))


@pytest.mark.parametrize("metric", [None, False, True], ids=["euclidean", "uncentred", "centred"])
def test_a_tied_one_begins_from_a_tied_one(metric, X):
    aip = None if metric is None else atoms.AtomicInnerProduct(centered=metric).fit(X)
    tied, untied = (quick(metric=aip, tied=t).fit(X) for t in (True, False))
    begin = {"metric": aip, "tied": True, "max_steps": 1, "learning_rate": 1e-12}
    again = quick(**begin).fit(X, init=tied)
    a, b = tied.transform(X), again.transform(X)
    assert abs(a - b).max() < 1e-2 * a.max()
    with pytest.raises(ValueError, match="init: its encoder is not its decoder's transpose .* tied=False"):
        quick(**begin).fit(X, init=untied)
    if aip is not None:
        with pytest.raises(ValueError, match="init: its encoder is not"):
            quick(**begin | {"metric": None}).fit(X, init=tied)


@pytest.mark.parametrize("power", [-100, -44, 44, 100])
def test_the_scale_of_the_data_changes_nothing(power, X):
    """Powers of two: without a metric the model is the same, to the bit, as long as float32 holds its squares' scale."""
    rows = X - X.mean(axis=0)
    base, scaled = quick().fit(rows), quick().fit(rows * np.float32(2.0**power))
    assert base.history_["explained_variance"][-1] > 0.5
    assert scaled.history_["explained_variance"] == base.history_["explained_variance"]
    codes = scaled.transform(rows * np.float32(2.0**power))
    assert (codes != base.transform(rows)).nnz == 0
    back = scaled.inverse_transform(codes).astype(np.float64) / 2.0**power
    np.testing.assert_allclose(back, base.inverse_transform(codes), rtol=1e-4, atol=1e-5)


def test_data_beyond_float32_is_refused(X):
    with pytest.raises(ValueError, match="X: a coordinate's root mean square .* multiply X"):
        quick().fit(X.astype(np.float64) * 1e-40)


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_k_is_at_least_one(activation, X):
    with pytest.raises(ValueError, match="target_l0: .* k is at least 1, got 0.5"):
        quick(activation=activation, target_l0=0.5).fit(X)
    quick(activation=activation, target_l0=1).fit(X)


# ------------------------------------------------------------------------ massive rows


@pytest.mark.parametrize("fit", ["metric", "autoencoder", "shards"])
def test_massive_rows_are_said(fit, X):
    rows = np.tile(X, (8, 1))
    rows[::240] *= 100  # at regular distances, as first tokens are
    few, count = rows[:7200], len(rows[::240])
    norm2 = (few.astype(np.float64) ** 2).sum(axis=1)
    share = norm2[::240].sum() / norm2.sum()

    def fitted(rows):
        if fit == "metric":
            return atoms.AtomicInnerProduct().fit(rows)
        return quick(max_steps=2).fit(rows if fit == "autoencoder" else [rows[:500], rows[500:]])

    with pytest.warns(UserWarning, match=f"X: 30 of 7,200 rows .* make {share:.1%} of the sum of squares"):
        fitted(few)
    with pytest.warns(
        UserWarning, match="X: about [0-9]+ of 24,000 rows have a norm above 10 times"
    ) as caught:
        fitted(rows)
    assert int(str(caught[0].message).split()[2]) == pytest.approx(count, rel=0.4)
    fitted(
        few[np.sqrt(norm2) <= 10 * np.sqrt(np.median(norm2))]
    )  # without a warning: the tests make them errors
    one = X.copy()
    one[7] *= 11  # it makes no difference
    fitted(one)


@pytest.mark.parametrize("fit", ["metric", "autoencoder", "dictionary"])
def test_rows_of_large_norm_are_said_and_left_out(fit, X):
    """As in SmolLM2's layers 2 to 8, where tokens of five to ten times the median make up to half of the sum of squares."""
    rows = X.copy()
    norms = np.linalg.norm(rows, axis=1)
    rows[::60] *= (7 * np.median(norms) / norms[::60])[:, None]
    models = {
        "metric": atoms.AtomicInnerProduct(),
        "autoencoder": quick(max_steps=2),
        "dictionary": atoms.DictionaryLearning(8, 2, max_steps=2, verbose=False),
    }
    for massive in ("keep", "drop"):  # none of them is above ten
        with pytest.warns(
            UserWarning, match=r"50 of 3,000 rows have a norm above 5 times .* fit\(\.\.\., massive=5\)"
        ):
            models[fit].fit(rows, massive=massive)
    assert models[fit].fit(rows, massive=5).n_dropped_massive_ == 50
    with pytest.raises(ValueError, match="massive: expected 'keep', 'drop' or a number above 1, got 1"):
        models[fit].fit(rows, massive=1)


def with_massive(X):
    rows = X.copy()
    rows[5::97] *= np.linspace(30, 300, len(rows[5::97]), dtype=np.float32)[:, None]
    norms = np.sqrt((rows.astype(np.float64) ** 2).sum(axis=1))
    return rows, norms <= 10 * np.median(norms)


class Blocks(BlockSource):
    """Rows of an array, 200 to a block: a store that knows its norms, or a stream that does not."""

    def __init__(self, X, known, buffer_rows=10**6):
        self.X, self.known, self.buffer_rows, self.dtype = X, known, buffer_rows, X.dtype
        (self.n, self.d), self.reads = X.shape, 0
        self.sizes = np.array([200] * (self.n // 200) + [self.n % 200])

    def read(self, block, out):
        self.reads += 1
        out[...] = self.X[200 * block : 200 * block + len(out)]

    def norms(self):
        return np.linalg.norm(self.X.astype(np.float64), axis=1) if self.known else None


KINDS = {
    "array": lambda X: X,
    "shards": lambda X: [X[:700], X[700:701], X[701:]],
    "store": lambda X: Blocks(X, True),
    "stream": lambda X: Blocks(X, False),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ["jumprelu", "topk"])
def test_massive_rows_are_left_out_wherever_rows_are_read(kind, activation, X, tmp_path):
    rows, ordinary = with_massive(X)
    count = int((~ordinary).sum())
    assert count == len(rows[5::97])
    want = quick(activation=activation).fit(X[ordinary], X_val=X[:400][ordinary[:400]])
    sae = quick(activation=activation).fit(KINDS[kind](rows), X_val=rows[:400], massive="drop")
    assert state(sae) == state(want) and sae.n_dropped_massive_ == count and want.n_dropped_massive_ == 0
    assert sae.history_["explained_variance_val"][-1] == want.history_["explained_variance_val"][-1]

    metric = atoms.AtomicInnerProduct(centered=True).fit(KINDS[kind](rows), massive="drop")
    ready = atoms.AtomicInnerProduct(centered=True).fit(X[ordinary])
    np.testing.assert_allclose(metric.metric_, ready.metric_, rtol=1e-9)
    assert metric.n_dropped_massive_ == count and metric.n_samples_seen_ == len(X) - count
    under = quick(activation=activation, metric=atoms.AtomicInnerProduct(centered=True))
    under.fit(KINDS[kind](rows), massive="drop")
    assert np.array_equal(under.metric_.metric_, metric.metric_)

    path = tmp_path / "run.safetensors"
    with contextlib.suppress(Stop):
        quick(activation=activation).fit(
            KINDS[kind](rows), massive="drop", checkpoint=path, checkpoint_steps=10, callback=stop_after(37)
        )
    with pytest.raises(ValueError, match="trained on other data"):
        quick(activation=activation).fit(KINDS[kind](rows), checkpoint=path)
    resumed = quick(activation=activation).fit(KINDS[kind](rows), massive="drop", checkpoint=path)
    assert state(resumed) == state(quick(activation=activation).fit(X[ordinary]))


def test_massive_rows_of_streams_larger_than_their_buffer(X):
    rows, ordinary = with_massive(X)
    source = Blocks(rows, True, buffer_rows=900)
    sae = quick(max_steps=100).fit(source, massive="drop")  # no warning, which would be an error here
    assert sae.n_dropped_massive_ == (~ordinary).sum() and sae.history_["samples"][-1] == 12800
    assert state(sae) == state(quick(max_steps=100).fit(Blocks(rows, False, 900), massive="drop"))
    x_hat = sae.inverse_transform(sae.transform(X))
    assert 1 - ((X - x_hat) ** 2).sum() / ((X - X.mean(axis=0)) ** 2).sum() > 0.8


def test_massive_rows_cannot_be_dropped_from_what_has_none_others(X):
    with pytest.raises(ValueError, match="massive: expected 'keep', 'drop' or a number above 1, got True"):
        quick().fit(X, massive=True)
    with pytest.raises(ValueError, match="massive: expected 'keep', 'drop' or a number above 1, got 'no'"):
        atoms.AtomicInnerProduct().fit(X, massive="no")
    with pytest.raises(
        ValueError, match="X_val: all rows have a norm above .*, the limit of `massive` for X"
    ):
        quick().fit(X, X_val=1000 * X[:9], massive="drop")
    bad = X.copy()
    bad[77, 3] = np.nan
    with pytest.raises(ValueError, match="row 77"):
        quick().fit(bad, massive="drop")
    with pytest.raises(ValueError, match="row 77"):
        atoms.AtomicInnerProduct().fit([bad[:50], bad[50:]], massive="drop")
