"""Everyday mistakes: what the rows are is said, or asked about, before any work."""

import ml_dtypes
import numpy as np
import pytest

import atoms
from atoms._checks import check_array
from atoms._rows import Rows

X = np.random.default_rng(0).standard_normal((200, 6)) @ np.diag([1.0, 2, 3, 4, 5, 6])
SAE = {"d_sae": 12, "target_l0": 2, "max_steps": 3, "batch_size": 32, "verbose": False}
NAMES = ["a", "b", "c", "d", "e", "f"]


class Frame:
    """As much of a data frame as estimators ask for."""

    def __init__(self, values, columns=NAMES):
        self.values, self.columns = np.asarray(values), columns
        self.shape = self.values.shape

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)


def estimators(metric=None):
    yield atoms.SparseAutoencoder(**SAE, metric=metric)
    yield atoms.SparseCoder(X[:9], n_nonzero=2, metric=metric)
    yield atoms.controls.RandomDictionary(9, l0=2, metric=metric)
    if metric is None:
        yield atoms.AtomicInnerProduct()


@pytest.mark.parametrize("bits", [np.uint16, np.int16, ">u2"])
@pytest.mark.parametrize("positive", [False, True])
def test_bits_of_bfloat16_are_asked_about(bits, positive, tmp_path):
    values = (np.abs(X) if positive else X).astype(ml_dtypes.bfloat16)
    given = values.view(np.uint16).astype(bits) if bits == ">u2" else values.view(bits)
    message = r"int16 whose values look like the bits of bfloat16 numbers. Pass .*.view\(ml_dtypes.bfloat16\)"
    for estimator in estimators():
        with pytest.raises(ValueError, match=message):
            estimator.fit(given)
    with pytest.raises(ValueError, match=message):
        atoms.theory.explained_variance(given, values)
    np.save(tmp_path / "x.npy", given)
    with pytest.raises(ValueError, match=message):
        check_array(np.load(tmp_path / "x.npy", mmap_mode="r"))
    zeros = np.concatenate([given, np.zeros((1000, 6), given.dtype)])
    with pytest.raises(ValueError, match=message):
        check_array(zeros)
    assert check_array(values).dtype.name == "bfloat16"


@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_counts_are_numbers(dtype):
    rng, top = np.random.default_rng(1), np.iinfo(dtype).max
    for counts in (
        rng.integers(0, top, (300, 4)),
        rng.poisson(30, (300, 4)),
        np.zeros((5, 2)),
        np.arange(12),
    ):
        got = check_array(counts.astype(dtype), ndim=counts.ndim)
        np.testing.assert_array_equal(got, counts.astype(dtype))
        assert got.dtype == np.float64


def test_feature_names_are_set_and_checked_by_all():
    swapped = Frame(X[:, [1, 0, 2, 3, 4, 5]], ["b", "a", *NAMES[2:]])
    for estimator in estimators():
        estimator.fit(Frame(X))
        assert list(estimator.feature_names_in_) == NAMES
        estimator.transform(Frame(X))
        with pytest.raises(ValueError, match="must be in the same order"):
            estimator.transform(swapped)
        estimator.fit(X)
        assert not hasattr(estimator, "feature_names_in_")
    metric = atoms.AtomicInnerProduct().fit(swapped)
    for estimator in estimators(metric):
        with pytest.raises(ValueError, match="metric: fitted on other features .* differ from number 0 on"):
            estimator.fit(Frame(X))


def test_held_out_rows_are_checked_before_training():
    sae = atoms.SparseAutoencoder(**{**SAE, "max_steps": 10**9})
    bad = X[:20].copy()
    bad[7, 1] = np.nan
    with pytest.raises(ValueError, match="X_val: contains NaN or infinity, first in row 7"):
        sae.fit(X, X_val=bad)
    with pytest.raises(ValueError, match="X_val: expected 6 features as in X, got 5"):
        sae.fit(X, X_val=X[:, :5])
    with pytest.raises(ValueError, match="X_val: its columns have other names"):
        sae.fit(Frame(X), X_val=Frame(X, NAMES[::-1]))
    with pytest.raises(ValueError, match="the shards' columns have different names"):
        Rows([Frame(X[:, :2], ["a", "b"]), Frame(X[:, :2], ["b", "a"])])


def test_codes_are_numbered_as_scikit_learn_takes_them(monkeypatch):
    monkeypatch.setattr(
        "atoms.sae._autoencoder.blocks", lambda n: (slice(i, i + 64) for i in range(0, n, 64))
    )
    for estimator in estimators():
        codes = estimator.fit(X).transform(X)
        if not isinstance(codes, np.ndarray):
            assert codes.indices.dtype == codes.indptr.dtype == np.int32
    forest = pytest.importorskip("sklearn.ensemble").RandomForestClassifier(2)
    forest.fit(atoms.SparseAutoencoder(**SAE).fit(X).transform(X), X[:, 0] > 0)
