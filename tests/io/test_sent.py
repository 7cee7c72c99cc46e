"""What another process sends, whose arrays lie wherever a message had room and cannot be written to (Dask, Ray)."""

import pickle

import numpy as np
import pytest
import scipy.sparse as sp

import atoms
from atoms import controls, recovery
from atoms.activations import Sites

X = np.random.default_rng(0).standard_normal((400, 24)).astype(np.float32) @ np.diag(
    np.arange(1, 25.0, dtype="f4")
)
Y = X[:, :20].copy()
STEPS = {"max_steps": 10, "verbose": False, "num_threads": 1}
SAE = {"d_sae": 48, "target_l0": 4, "batch_size": 64, **STEPS}


def sent(value, offset):
    """A copy whose arrays begin so many bytes behind an aligned address."""
    found = []
    pickled = pickle.dumps(value, protocol=5, buffer_callback=found.append)
    places = []
    for buffer in found:
        raw = buffer.raw()
        place = np.zeros(len(raw) + offset, np.uint8)
        place[offset:] = np.frombuffer(raw, np.uint8)
        places.append(memoryview(place)[offset:].toreadonly())
    assert places
    return pickle.loads(pickled, buffers=places)


def metric():
    return atoms.AtomicInnerProduct(num_threads=1).fit(X)


def pretrained(tmp_path):
    atoms.io.save(atoms.SparseAutoencoder(**SAE).fit(X), tmp_path / "sae", "saelens")
    return atoms.io.load(tmp_path / "sae")


MAKE = {
    "metric": lambda _: metric(),
    "autoencoder": lambda _: atoms.SparseAutoencoder(**SAE).fit(X),
    "tied": lambda _: atoms.SparseAutoencoder(**SAE, tied=True, activation="topk").fit(X),
    "under a metric": lambda _: atoms.SparseAutoencoder(**SAE, metric=metric()).fit(X),
    "transcoder": lambda _: atoms.SparseAutoencoder(**SAE, skip_connection=True).fit(X, target=Y),
    "crosscoder": lambda _: atoms.SparseAutoencoder(**SAE).fit(Sites(X, Y)),
    "pretrained": pretrained,
    **{
        coder: lambda _, coder=coder: atoms.DictionaryLearning(30, coder=coder, metric=metric(), **STEPS).fit(
            X
        )
        for coder in ("omp", "lasso", "spikes")
    },
    "coder": lambda _: recovery.SparseCoder(X[:40], n_nonzero=3, metric=metric()).fit(X),
    "random": lambda _: controls.RandomDictionary(30, metric=metric()).fit(X),
    "memorizing": lambda _: controls.MemorizingDictionary(30, metric=metric()).fit(X),
    "k-means": lambda _: controls.KMeansDictionary(30, metric=metric()).fit(X),
    "pca": lambda _: controls.PCADictionary(20, metric=metric()).fit(X),
}
OF_ROWS = ("transform", "whiten", "unwhiten", "reconstruct", "score")


def dense(found):
    return found.toarray() if sp.issparse(found) else found


@pytest.mark.parametrize("offset", [0, 1, 4])
@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_what_was_sent_works_as_before(make, offset, tmp_path):
    here = make(tmp_path)
    there = sent(here, offset)
    rows, more = (Sites(X, Y), {}) if here.n_features_in_ == 44 else (X, {})
    if getattr(here, "skip_connection", False):
        more = {"target": Y}
    methods = [name for name in OF_ROWS if hasattr(here, name) and not (name == "score" and more)]
    assert methods
    for name in methods:
        np.testing.assert_array_equal(
            dense(getattr(there, name)(rows)), dense(getattr(here, name)(rows)), err_msg=name
        )
    if hasattr(here, "partial_fit"):
        for one in (here, there):
            one.partial_fit(rows, **more)
        method = "whiten" if isinstance(here, atoms.AtomicInnerProduct) else "transform"
        np.testing.assert_array_equal(
            dense(getattr(there, method)(rows)), dense(getattr(here, method)(rows)), err_msg="partial_fit"
        )


@pytest.mark.parametrize("offset", [0, 1, 4])
def test_rows_atoms_and_codes(offset):
    sae = atoms.SparseAutoencoder(**SAE).fit(X)
    codes = sae.transform(X)
    np.testing.assert_array_equal(sae.inverse_transform(sent(codes, offset)), sae.inverse_transform(codes))
    np.testing.assert_array_equal(dense(sae.transform(sent(X, offset))), dense(codes))
    want = recovery.omp(X, X[:40], 3)
    for rows, dictionary in ((sent(X, offset), X[:40]), (X, sent(X[:40], offset))):
        np.testing.assert_array_equal(dense(recovery.omp(rows, dictionary, 3)), dense(want))


@pytest.mark.parametrize("options", [{}, {"tied": True}], ids=["free", "tied"])
def test_tasks_get_an_autoencoder_without_what_training_needs(options):
    sae = atoms.SparseAutoencoder(**SAE | {"d_sae": 480} | options).fit(X)
    task = sae._as_now()
    assert len(pickle.dumps(task)) < 0.4 * len(pickle.dumps(sae))
    np.testing.assert_array_equal(dense(task.transform(X)), dense(sae.transform(X)))
    np.testing.assert_array_equal(task.reconstruct(X), sae.reconstruct(X))
    assert task.score(X) == sae.score(X)
