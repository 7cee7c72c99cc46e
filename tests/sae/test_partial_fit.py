"""`partial_fit`: one batch after the other, nobody knows how many."""

import copy
import pickle

import numpy as np
import pytest
import torch
from support import RNG, finished

import atoms
from atoms.sae._model import FIELDS

ACTIVATIONS = ("jumprelu", "relu", "topk", "batchtopk")
D, ATOMS = 20, 40


def rows(n, seed):
    rng = RNG(seed)
    codes = rng.exponential(1, (n, ATOMS)) * (rng.random((n, ATOMS)) < 0.1)
    return (codes @ RNG(99).standard_normal((ATOMS, D)) + 0.02 * rng.standard_normal((n, D)) + 3).astype(
        np.float32
    )


@pytest.fixture(scope="module")
def X():
    return rows(20_000, 0)


@pytest.fixture(scope="module")
def metric(X):
    return atoms.AtomicInnerProduct().fit(X)


def make(**kwargs):
    return atoms.SparseAutoencoder(
        **{"d_sae": 64, "target_l0": 4, "batch_size": 128, "max_steps": 300, "verbose": False, **kwargs}
    )


def batches(X, count, size=128, seed=0):
    rng = RNG(seed)
    return [X[rng.integers(0, len(X), size)] for _ in range(count)]


def trained(sae, parts, **kwargs):
    for part in parts:
        sae.partial_fit(part, **kwargs)
    return sae


def state(sae):
    return [sae._model.get(name).tobytes() for name in FIELDS]


def ev(sae, X):
    return atoms.theory.explained_variance(X, sae.inverse_transform(sae.transform(X))).total


@pytest.mark.parametrize("schedule", ["inverse_sqrt", "constant"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("geometry", ["metric", "euclidean"])
def test_it_is_nearly_as_good_as_fit_and_l0_is_held(geometry, activation, tied, schedule, X, metric):
    kwargs = {"activation": activation, "tied": tied, "metric": metric if geometry == "metric" else None}
    held_out = rows(3000, 1)
    whole = make(**kwargs, max_steps=600).fit(X)
    ours = trained(make(**kwargs, max_steps=600), batches(X, 600), schedule=schedule)
    assert ev(ours, held_out) > ev(whole, held_out) - 0.08
    # on the training rows; TopK's k largest are not all above zero
    l0 = [sae.transform(X).nnz / len(X) for sae in (ours, whole)]
    assert l0[0] == pytest.approx(
        l0[1] if activation == "topk" else 4, rel=0.2 if activation == "relu" else 0.1
    )
    assert ours.history_["step"][-1] == 600 and ours.n_samples_seen_ == 600 * 128
    assert np.isfinite(ours.history_["loss"]).all()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_interruption_changes_no_bit(activation, tied, X, metric, tmp_path):
    kwargs = {"activation": activation, "tied": tied, "metric": metric, "dead_after": 20}
    parts = batches(X, 40)
    want = state(trained(make(**kwargs), parts))

    def through_file(sae):
        sae.save(tmp_path / "s.safetensors", training_state=True)
        return atoms.SparseAutoencoder.load(tmp_path / "s.safetensors")

    for way in (through_file, copy.deepcopy, lambda sae: pickle.loads(pickle.dumps(sae))):
        sae = way(trained(make(**kwargs), parts[:17]))
        assert sae.n_samples_seen_ == 17 * 128
        assert state(trained(sae, parts[17:])) == want


def test_the_same_batches_give_the_same_bits(X, metric):
    parts = batches(X, 15, 100)
    want = state(trained(make(metric=metric), parts))
    assert state(trained(make(metric=metric, num_threads=2), parts)) == want
    ways = (torch.from_numpy, lambda x: torch.from_numpy(x).requires_grad_(), lambda x: [x[:30], x[30:]], list,
            lambda x: (x[i : i + 7] for i in range(0, 100, 7)))  # fmt: skip
    for way in ways:
        assert state(trained(make(metric=metric), [way(part) for part in parts])) == want
    half = [torch.from_numpy(part).bfloat16() for part in parts]
    whole = state(trained(make(metric=metric), [part.float().numpy() for part in half]))
    assert state(trained(make(metric=metric), half)) == whole
    # other callers' use of it in between, and thresholds read in between, change nothing
    sae = make(metric=metric)
    for part in parts:
        sae.partial_fit(part).transform(part)
        assert sae.W_dec.shape == (64, D)
    assert state(sae) == want


def test_large_and_small_batches(X):
    sae = make().partial_fit(X[:1000])
    assert sae._model.steps == 8 and sae.n_samples_seen_ == 1000  # of 125 rows each, in random order
    again = make().partial_fit(X[:1000])
    assert state(sae) == state(again)
    sae.partial_fit(X[:1])
    assert sae._model.steps == 9
    assert ev(make().partial_fit(X), X) > ev(make().partial_fit(X[:2000]), X) > 0.5
    with pytest.raises(ValueError, match="at least 2 samples in the first call, got 1"):
        make().partial_fit(X[:1])


def test_the_learning_rate_never_ends(X):
    for schedule, want in (("constant", 1.0), ("inverse_sqrt", (5 / 60) ** 0.5)):
        sae = trained(make(max_steps=20, learning_rate=1e-3), batches(X, 60, 32), schedule=schedule)
        rates = dict(zip(sae.history_["step"], sae.history_["learning_rate"]))
        assert rates[60] == pytest.approx(1e-3 * want) and rates[1] == 1e-3
        sae.set_params(learning_rate=2e-3).partial_fit(X[:9], schedule=schedule)
        assert sae.history_["learning_rate"][-1] == pytest.approx(
            2e-3 * (1 if want == 1 else (5 / 61) ** 0.5)
        )
        assert sae._fitted.parameters["learning_rate"] == 2e-3
    with pytest.raises(ValueError, match="schedule: expected one of inverse_sqrt, constant, got 'linear'"):
        make().partial_fit(X, schedule="linear")


def test_it_goes_on_from_fit_and_fit_begins_anew(X):
    fitted = make().fit(X)
    before = state(fitted)
    went_on = copy.deepcopy(fitted).partial_fit(X[:128])
    assert went_on._model.steps == 301 and state(went_on) != before
    assert state(went_on.fit(X)) == before


def test_silent_latents_are_revived(X):
    """Where that pays, and in calls of rows enough to judge by."""
    found = []
    for dead_after in (0, 10):
        sae = trained(make(dead_after=dead_after), batches(X, 10, 2048))
        sae._model.set(
            "threshold", np.where(np.arange(64) < 32, 1e3, sae._model.get("threshold")).astype(np.float32)
        )
        trained(sae, batches(X, 60, 2048, seed=1))
        dead = sae._model.get("last_fired") < sae.n_samples_seen_ - 20_000
        found.append((int(dead.sum()), ev(sae, X)))
    (left, without), (revived, explained) = found
    assert left >= 32 and revived < 26
    assert explained > without + 0.02


def test_parameters_and_metric_are_those_of_the_first_call(X, metric):
    own = copy.deepcopy(metric)
    parts = batches(X, 10)
    sae = trained(make(metric=own), parts[:5])
    own.fit(X[::-1] * 3)
    assert state(trained(sae, parts[5:])) == state(trained(make(metric=metric), parts))
    for name, value in (("target_l0", 9), ("d_sae", 12), ("tied", True), ("activation", "topk")):
        before = getattr(sae, name)
        with pytest.raises(ValueError, match=f"{name}: was .* in the calls before, now {value!r}"):
            sae.set_params(**{name: value}).partial_fit(X)
        sae.set_params(**{name: before})
    with pytest.raises(ValueError, match="metric: expected a fitted AtomicInnerProduct; call metric.fit"):
        make(metric=atoms.AtomicInnerProduct()).partial_fit(X)
    sae.partial_fit(X[:10])


def test_what_is_refused_changes_nothing(X):
    sae = trained(make(), batches(X, 5))
    before = state(sae)
    bad = X[:100].copy()
    bad[71, 2] = np.inf
    for wrong, message in (
        (bad, "first in row 71"),
        (X[:, :4], "has 4 features"),
        ({"a": X}, r"pass X\['a'\]"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            sae.partial_fit(wrong)
        fresh = make()
        if wrong is not None and not isinstance(wrong, np.ndarray):
            with pytest.raises(TypeError, match=message):
                fresh.partial_fit(wrong)
            assert not hasattr(fresh, "n_features_in_")
    assert state(sae) == before and sae.n_features_in_ == D
    fresh = make()
    with pytest.raises(ValueError, match="row 71"):
        fresh.partial_fit(bad)
    assert not hasattr(fresh, "n_features_in_")
    with np.errstate(all="ignore"), pytest.raises(atoms.TrainingDiverged, match="lower learning_rate"):
        trained(make(learning_rate=3e38, warmup=0, clip=0), batches(X, 50))


def test_massive_rows_are_said_once(X):
    massive = X[:512].copy()
    massive[:5] *= 100
    sae = make()
    with pytest.warns(UserWarning, match="5 of 512 rows have a norm above 10 times the median"):
        sae.partial_fit(massive)
    sae.partial_fit(massive)


def test_pytorch_is_not_needed():
    script = """
    import sys, numpy as np, atoms
    X = np.random.default_rng(0).standard_normal((300, 8)).astype("float32")
    sae = atoms.SparseAutoencoder(16, target_l0=2, batch_size=64)
    for i in range(3):
        sae.partial_fit(X[100 * i : 100 * i + 100])
    atoms.AtomicInnerProduct().fit(X[i : i + 50] for i in range(0, 300, 50))
    atoms.SparseAutoencoder(16, target_l0=2, max_steps=3, verbose=False).fit(X[i : i + 50] for i in range(0, 300, 50))
    assert not {"torch", "ml_dtypes", "zarr", "h5py", "dask", "pandas", "datasets"} & set(sys.modules)
    """
    finished(script)
