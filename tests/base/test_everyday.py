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


def test_frames_all_the_way_say_nothing_about_names():
    """The tests make warnings errors."""
    for metric in (None, atoms.AtomicInnerProduct().fit(Frame(X))):
        for X_train in (Frame(X), [Frame(X[:90]), Frame(X[90:])]):
            sae = atoms.SparseAutoencoder(**SAE, metric=metric).fit(X_train, X_val=Frame(X))
            sae.calibrate(Frame(X)).inverse_transform(sae.transform(X_train))
            sae.transform([Frame(X)])
            with pytest.warns(UserWarning, match="X does not have valid feature names"):
                sae.transform([X])
        for estimator in estimators(metric):
            estimator.inverse_transform(estimator.fit(Frame(X)).transform(Frame(X)))
    metric.angles(Frame(X))
    metric.angles(Frame(X), pairs=100)


@pytest.mark.parametrize("labels", [X[:, 0], X, Frame(X), (X > 0).astype(int), list(range(200)), ["a"] * 200])
def test_labels_are_ignored(labels):
    alone, beside = (atoms.SparseAutoencoder(**SAE) for _ in range(2))
    alone.fit(X)
    beside.fit(X, labels)
    np.testing.assert_array_equal(alone.W_enc, beside.W_enc)
    assert np.isnan(beside.history_["explained_variance_val"]).all()
    codes = beside.fit_transform(X, labels, X_val=X[:100])
    assert (codes != beside.transform(X)).nnz == 0
    assert not np.isnan(beside.history_["explained_variance_val"]).all()


@pytest.mark.parametrize("held_out", [X[:50], Frame(X[:50]), [X[:50], X[50:70]], X[:50, :3]])
def test_held_out_rows_where_labels_belong_are_an_error(held_out):
    with pytest.raises(ValueError, match="y: expected a label for each of the 200 rows, .* as X_val="):
        atoms.SparseAutoencoder(**SAE).fit(X, held_out)


def test_a_metric_that_is_not_fitted_is_fitted_to_the_rows():
    for given in (X, [X[:90], X[90:]], Frame(X)):
        metric = atoms.AtomicInnerProduct(shrinkage=0.1)
        sae = atoms.SparseAutoencoder(**SAE, metric=metric).fit(given)
        assert not hasattr(metric, "whitener_") and sae.metric is metric
        ready = atoms.AtomicInnerProduct(shrinkage=0.1).fit(X)
        np.testing.assert_allclose(sae.metric_.metric_, ready.metric_, rtol=1e-10)
        if not isinstance(given, list):
            want = atoms.SparseAutoencoder(**SAE, metric=ready).fit(given)
            np.testing.assert_array_equal(sae.W_dec, want.W_dec)
    two = [atoms.SparseAutoencoder(**SAE, metric=metric) for _ in range(2)]
    atoms.fit_many(two, X)
    assert two[0].metric_.metric_ is two[1].metric_.metric_
    with pytest.raises(ValueError, match="samples"):
        atoms.SparseAutoencoder(**SAE, metric=atoms.AtomicInnerProduct()).fit(X[:4])


def test_scikit_learn_searches_under_a_metric():
    base = pytest.importorskip("sklearn.base")
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.pipeline import make_pipeline

    y = X[:, 0] > 0
    for metric in (atoms.AtomicInnerProduct(), atoms.AtomicInnerProduct().fit(Frame(X))):
        pipe = make_pipeline(atoms.SparseAutoencoder(**SAE, metric=metric), LogisticRegression())
        for rows in (X, Frame(X).values):
            assert cross_val_score(pipe, rows, y, cv=3, error_score="raise").mean() > 0.6
        grid = {"sparseautoencoder__d_sae": [9, 12], "sparseautoencoder__metric__shrinkage": [None, 0.1]}
        search = GridSearchCV(pipe, grid, cv=2, error_score="raise").fit(X, y)
        assert search.best_estimator_[0].metric_.n_features_in_ == 6
        copy = base.clone(pipe[0]).fit(X)
        np.testing.assert_array_equal(copy.W_dec, pipe[0].fit(X).W_dec)


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
    monkeypatch.setattr("atoms.sae._autoencoder.BLOCK", 64)
    for estimator in estimators():
        codes = estimator.fit(X).transform(X)
        if not isinstance(codes, np.ndarray):
            assert codes.indices.dtype == codes.indptr.dtype == np.int32
    forest = pytest.importorskip("sklearn.ensemble").RandomForestClassifier(2)
    forest.fit(atoms.SparseAutoencoder(**SAE).fit(X).transform(X), X[:, 0] > 0)


@pytest.mark.parametrize(
    "kinds", [("bfloat16", "float16"), ("float16", "bfloat16"), ("bfloat16", "int64"), ("float16", "float64")]
)
def test_parts_of_two_types(kinds):
    """Also of bfloat16 and float16, for which NumPy knows no common one."""
    parts = [(3 * X).astype(ml_dtypes.bfloat16 if kind == "bfloat16" else kind) for kind in kinds]
    both = np.concatenate([part.astype(np.float64) for part in parts])
    for got, want in zip(estimators(), estimators(), strict=True):
        if not isinstance(got, atoms.SparseCoder):
            got, want = got.fit(parts), want.fit(both)
            name = "second_moment_" if hasattr(got, "second_moment_") else "W_dec"
            np.testing.assert_allclose(getattr(got, name), getattr(want, name), rtol=1e-12)
    for other in (atoms.activations.Sites(*parts), parts[0]):
        target = parts[1] if other is parts[0] else None
        assert np.isfinite(atoms.SparseAutoencoder(**SAE).fit(other, target=target).W_dec).all()
