"""scikit-learn's own checks of every estimator, and what its users expect beside them."""

import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest

import atoms
from atoms import AtomicInnerProduct, DictionaryLearning, SparseAutoencoder, SparseCoder, controls
from atoms._checks import seed_of

sklearn = pytest.importorskip("sklearn")
from sklearn.base import clone  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.metrics import r2_score  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_score  # noqa: E402
from sklearn.pipeline import Pipeline, make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils import estimator_checks as checks  # noqa: E402

X = np.random.default_rng(0).standard_normal((200, 6)) @ np.diag([1.0, 2, 3, 4, 5, 6]) + 1
NAMES = ["a", "b", "c", "d", "e", "f"]
SAE = {"d_sae": 12, "target_l0": 2, "max_steps": 20, "batch_size": 16, "verbose": False}


def sae(**settings):
    return SparseAutoencoder(**{**SAE, **settings})


def dictionaries(metric=None):
    return [
        sae(metric=metric),
        DictionaryLearning(9, n_nonzero=2, metric=metric, max_steps=20, batch_size=16, verbose=False),
        SparseCoder(X[:9], n_nonzero=2, metric=metric),
        controls.RandomDictionary(9, l0=2, metric=metric),
        controls.MemorizingDictionary(metric=metric),
        controls.KMeansDictionary(5, metric=metric),
        controls.PCADictionary(2, metric=metric),
        controls.NeuronBasis(2, metric=metric),
    ]


# as few settings as the checks' data, of 2 to 10 features and 1 to 30 rows, asks for
CHECKED = [
    *(sae(activation=kind) for kind in ("jumprelu", "relu", "topk", "batchtopk")),
    sae(tied=True, aux_k=2, random_state=None),
    sae(matryoshka_widths=(4,), metric=AtomicInnerProduct(shrinkage=0.1)),
    DictionaryLearning(8, n_nonzero=1, max_steps=9, batch_size=16, verbose=False),
    DictionaryLearning(
        8, alpha=0.2, coder="nn-lasso", max_steps=9, batch_size=16, random_state=None, verbose=False
    ),
    AtomicInnerProduct(),
    AtomicInnerProduct(centered=True, shrinkage="ledoit_wolf"),
    *(SparseCoder(method=m, alpha=0.2) for m in ("omp", "lasso", "threshold")),
    controls.RandomDictionary(4, l0=1),
    controls.RandomDictionary(4, l0=1, encoder="top_k", random_state=None),
    controls.MemorizingDictionary(),
    controls.KMeansDictionary(4),
    controls.PCADictionary(),
    controls.PCADictionary(1, d_sae=1, center=False),
    controls.NeuronBasis(),
]


def contradicted(estimator):
    if isinstance(estimator, SparseAutoencoder) and estimator.metric is not None:
        why = "partial_fit's docstring: a metric must be fitted before the first call; the check's is cloned"
        return {"check_n_features_in_after_fitting": why}
    if isinstance(estimator, AtomicInnerProduct) and estimator.shrinkage is None:
        why = "fit's docstring: a singular second moment has no inverse, and two of the check's features repeat others"
        return {"check_array_api_input": why}  # which runs with SCIPY_ARRAY_API=1 alone
    return {}


with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message=".* does not inherit from `sklearn.base.BaseEstimator`")
    with_checks = checks.parametrize_with_checks(CHECKED, expected_failed_checks=contradicted)


@pytest.mark.filterwarnings("ignore")  # of its few rows
@with_checks
def test_scikit_learns_checks(estimator, check):
    check(estimator)


# those that scikit-learn runs over its own estimators alone
OWN = (
    "check_set_output_transform", "check_set_output_transform_pandas", "check_global_output_transform_pandas",
    "check_set_output_transform_polars", "check_global_set_output_transform_polars",
    "check_transformer_get_feature_names_out", "check_transformer_get_feature_names_out_pandas",
    "check_get_feature_names_out_error", "check_inplace_ensure_writeable",
)  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("check", OWN)
@pytest.mark.parametrize("estimator", CHECKED, ids=repr)
def test_scikit_learns_checks_of_its_own(estimator, check):
    if not hasattr(checks, check):
        pytest.skip(f"this scikit-learn has no {check}")
    getattr(checks, check)(type(estimator).__name__, estimator)


# ------------------------------------------------------------------------- frames


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames_of_whitened_rows(library):
    frames = pytest.importorskip(library)
    X_frame = frames.DataFrame({name: X[:, j] for j, name in enumerate(NAMES)})
    if library == "pandas":
        X_frame.index = [f"row {i}" for i in range(len(X))]
    aip = AtomicInnerProduct().fit(X_frame)
    want = aip.transform(X_frame)
    assert isinstance(want, np.ndarray)
    for got in (
        aip.set_output(transform=library).transform(X_frame),
        aip.whiten(X_frame),
        clone(aip).fit_transform(X_frame),
    ):
        assert isinstance(got, frames.DataFrame)
        assert list(got.columns) == [f"atomicinnerproduct{i}" for i in range(6)]
        np.testing.assert_array_equal(got.to_numpy(), want)
    if library == "pandas":
        assert list(got.index) == list(X_frame.index)
    assert aip.set_output() is aip and isinstance(aip.transform(X_frame), frames.DataFrame)
    assert isinstance(aip.set_output(transform="default").transform(X_frame), np.ndarray)
    with pytest.raises(ValueError, match="transform: expected one of default, pandas, polars, got 'arrow'"):
        aip.set_output(transform="arrow")


def test_a_library_that_is_not_there(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="'polars' needs polars, .* pip install polars"):
        AtomicInnerProduct().set_output(transform="polars")


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_codes_say_how_to_put_them_into_a_frame(library):
    frames = pytest.importorskip(library)
    for model in dictionaries():
        codes = model.fit(X).transform(X)
        names = model.get_feature_names_out()
        assert list(names[:2]) == [f"{type(model).__name__.lower()}{i}" for i in range(2)]
        assert len(names) == codes.shape[1]
        with pytest.raises(
            ValueError, match=r"The codes of \w+ are a sparse array: call set_output\(transform='default'\)"
        ):
            model.set_output(transform=library).transform(X)
        chosen = [0, 1]
        if library == "pandas":
            some = frames.DataFrame(codes[:, chosen].toarray(), columns=names[chosen])
            every = frames.DataFrame.sparse.from_spmatrix(codes, columns=names)
            want = model.inverse_transform(codes)
            np.testing.assert_allclose(model.inverse_transform(every), want, rtol=1e-5, atol=1e-5)
        else:
            some = frames.DataFrame(codes[:, chosen].toarray(), schema=list(names[chosen]), orient="row")
        assert some.shape == (len(X), 2)


def test_frames_never_reach_calculations():
    """With frames asked for everywhere, whatever calculates with an estimator has arrays and codes."""
    pytest.importorskip("pandas")
    metric = AtomicInnerProduct().fit(X)
    plain = [(m.fit(X).reconstruct(X), m.score(X)) for m in dictionaries(metric)]
    with sklearn.config_context(transform_output="pandas"):
        again = dictionaries(metric.set_output(transform="pandas"))
        for model, (rebuilt, score) in zip(again, plain, strict=True):
            np.testing.assert_array_equal(model.fit(X).reconstruct(X), rebuilt)
            assert model.score(X) == score
        got = sae(metric=metric).partial_fit(X[:100]).calibrate(X, 3)
    np.testing.assert_array_equal(got.W_dec, sae(metric=metric).partial_fit(X[:100]).W_dec)


def test_the_second_of_two_results_stays_as_it_is():
    coder = SparseCoder(X[:9], n_nonzero=2).fit(X)
    codes, info = coder.transform(X, return_info=True)
    assert codes.shape == (200, 9) and len(info.status) == 200


def test_frames_without_scikit_learn():
    pytest.importorskip("pandas")
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "import numpy as np, atoms\n"
        "X = np.random.default_rng(0).standard_normal((50, 3))\n"
        "aip = atoms.AtomicInnerProduct().set_output(transform='pandas')\n"
        "print(*aip.fit_transform(X).columns, type(atoms.controls.PCADictionary().fit_transform(X)).__name__)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (
        run.stdout.split() == "atomicinnerproduct0 atomicinnerproduct1 atomicinnerproduct2 csr_array".split()
    )


# -------------------------------------------------------------------------- score


@pytest.mark.parametrize("centered", [None, False, True])
def test_score_is_the_explained_variance_of_other_rows(centered):
    metric = None if centered is None else AtomicInnerProduct(centered=centered).fit(X)
    train, test = X[:150], X[150:]
    for model in dictionaries(metric):
        model.fit(train)
        S = np.eye(6) if metric is None else metric.whitener_
        want = r2_score(test @ S, model.reconstruct(test) @ S, multioutput="variance_weighted")
        assert model.score(test) == pytest.approx(want, abs=1e-9)
        assert model.score(test, np.arange(50)) == model.score([test[:20], test[20:]]) == model.score(test)
        assert model.score(iter([test[:20], test[20:]])) == model.score(test)


@pytest.mark.parametrize("metric", [None, AtomicInnerProduct()])
def test_score_is_what_training_records(metric):
    model = sae(metric=metric).fit(X[:150], X_val=X[150:])
    assert model.score(X[150:]) == pytest.approx(model.history_["explained_variance_val"][-1], abs=1e-5)
    if metric is not None:
        assert model.score(X[150:]) == pytest.approx(
            atoms.theory.explained_variance(
                X[150:], model.reconstruct, "metric_centered", model.metric_
            ).total
        )


def test_score_with_names_says_nothing_and_compares_them():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=NAMES)
    for model in dictionaries():
        model.fit(frame).score(frame)
        with pytest.raises(ValueError, match="same order"):
            model.score(frame[NAMES[::-1]])
        with pytest.raises(ValueError, match="X: contains NaN or infinity, first in row 7"):
            bad = frame.copy()
            bad.iloc[7, 2] = np.nan
            model.score(bad)
        with pytest.raises(ValueError, match="not fitted"):
            clone(model).score(frame)


def test_searches_by_score():
    search = GridSearchCV(sae(metric=AtomicInnerProduct()), {"target_l0": [1, 3]}, cv=2, error_score="raise")
    assert search.fit(X).best_params_ == {"target_l0": 3}  # as `score` says it will
    assert search.score(X) == search.best_estimator_.score(X)
    assert len(cross_val_score(controls.KMeansDictionary(5), X, cv=3, error_score="raise")) == 3


# ------------------------------------------------------- keywords of fit, and routing


def test_fit_transform_takes_the_keywords_of_fit():
    massive = np.concatenate([X, 500 * X[:1]])
    aip = AtomicInnerProduct()
    aip.fit_transform(massive, massive="drop")
    assert aip.n_dropped_massive_ == 1
    pipe = make_pipeline(aip, sae(), LogisticRegression())
    y = massive[:, 0] > 1
    pipe.fit(
        massive,
        y,
        atomicinnerproduct__massive="drop",
        sparseautoencoder__massive="drop",
        sparseautoencoder__X_val=X,
    )
    assert (
        aip.n_dropped_massive_ == pipe[1].n_dropped_massive_ == 1
        and not np.isnan(pipe[1].history_["l0_val"]).all()
    )
    with pytest.raises(TypeError, match="massive"):
        controls.PCADictionary().fit_transform(X, massive="drop")


def test_metadata_is_routed():
    with pytest.raises(RuntimeError, match="enable_metadata_routing=True"):
        sae().set_fit_request(X_val=True)
    with sklearn.config_context(enable_metadata_routing=True):
        step = sae().set_fit_request(X_val=True, massive="heavy")
        with pytest.raises(TypeError, match="y_val: no keyword of fit, which has X_val, calibrate, massive"):
            sae().set_fit_request(y_val=True)
        assert clone(step).get_metadata_routing().fit.requests["massive"] == "heavy"
        assert step.get_metadata_routing().fit.requests["init"] is None
        assert controls.PCADictionary().get_metadata_routing().fit.requests == {}
        scale = StandardScaler()
        pipe = Pipeline([("scale", scale), ("sae", step)], transform_input=["X_val"])
        pipe.fit(X[:150], X_val=X[150:], heavy="drop")
        want = sae().fit(scale.transform(X[:150]), X_val=scale.transform(X[150:]), massive="drop")
        assert pipe["sae"].history_["l0_val"][-1] == want.history_["l0_val"][-1]
        np.testing.assert_array_equal(pipe["sae"].threshold, want.threshold)
        with pytest.raises(Exception, match="init"):
            pipe.fit(X, init=want)
        assert pickle.loads(pickle.dumps(step)).get_metadata_routing().fit.requests["X_val"] is True


# --------------------------------------------------------------------------- seeds


SEEDED = [
    sae(random_state=None),
    controls.RandomDictionary(9, l0=2, random_state=None),
    controls.MemorizingDictionary(20, random_state=None),
    controls.KMeansDictionary(5, random_state=None),
]


@pytest.mark.parametrize("model", SEEDED, ids=lambda m: type(m).__name__)
def test_no_random_state_is_another_seed_each_time(model):
    first, second = clone(model).fit(X), clone(model).fit(X)
    assert first.random_state_ != second.random_state_ and (first.W_dec != second.W_dec).any()
    assert first.random_state is None and first.get_params()["random_state"] is None
    again = clone(model).set_params(random_state=first.random_state_).fit(X)
    np.testing.assert_array_equal(again.W_dec, first.W_dec)
    seed = first.random_state_
    assert first.fit(X).random_state_ != seed
    for make in (np.random.RandomState, np.random.default_rng):
        drawn = [clone(model).set_params(random_state=make(5)).fit(X) for _ in range(2)]
        np.testing.assert_array_equal(drawn[0].W_dec, drawn[1].W_dec)
    with pytest.raises(ValueError, match="random_state: expected a non-negative integer, None, or one of"):
        clone(model).set_params(random_state=-1).fit(X)


def test_a_seed_is_itself():
    assert seed_of(np.int64(7)) == 7 == sae(random_state=7).fit(X).random_state_
    assert type(seed_of(np.int64(7))) is int


def test_a_fresh_seed_is_kept(tmp_path):
    model = sae(random_state=None).fit(X)
    for copy in (pickle.loads(pickle.dumps(model)), clone(model).fit(X)):
        assert copy.random_state is None and copy.random_state_ >= 0
    assert pickle.loads(pickle.dumps(model)).random_state_ == model.random_state_
    model.save(tmp_path / "sae")
    loaded = SparseAutoencoder.load(tmp_path / "sae")
    assert loaded.random_state == loaded.random_state_ == model.random_state_
    two = atoms.fit_many([sae(random_state=None), sae(random_state=None)], X)
    assert two[0].random_state_ != two[1].random_state_


def test_a_fresh_seed_goes_on(tmp_path):
    """In later calls of partial_fit, and from a checkpoint."""
    model = sae(random_state=None, batch_size=50)
    for part in np.array_split(X, 2):
        model.partial_fit(part)
    again = sae(random_state=model.random_state_, batch_size=50)
    for part in np.array_split(X, 2):
        again.partial_fit(part)
    np.testing.assert_array_equal(model.W_dec, again.W_dec)

    def stop(estimator, figures):
        if figures["step"] == 11:
            raise KeyboardInterrupt

    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        sae(random_state=None).fit(X, checkpoint=path, checkpoint_steps=5, callback=stop)
    resumed = sae(random_state=None).fit(X, checkpoint=path)
    whole = sae(random_state=resumed.random_state_).fit(X)
    np.testing.assert_array_equal(resumed.W_dec, whole.W_dec)
    with pytest.raises(ValueError, match=r"other settings \(random_state\)"):
        sae(random_state=resumed.random_state_ + 1).fit(X, checkpoint=path)
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="not a safetensors file"):
        sae(random_state=None).fit(X, checkpoint=path)


# ------------------------------------------------------------------ codes, further on


def test_forests_take_all_codes(tmp_path):
    """They refuse indices of int64."""
    from sklearn.ensemble import RandomForestClassifier

    models = [model.fit(X) for model in dictionaries()]
    atoms.io.save(models[0], tmp_path / "theirs")
    found = [model.transform(X) for model in [*models, atoms.load(tmp_path / "theirs")]]
    given = {"threshold": {"tau": 0.5}, "lasso": {"alpha": 0.5}, "basis_pursuit_denoise": {"sigma": 0.5}}
    for method in ("omp", "ols", "nn_omp", "cosamp", "iht", *given):
        found.append(atoms.recovery.code(X, X[:9], method, **given.get(method, {"n_nonzero": 2})))
    for codes in found:
        assert codes.indices.dtype == codes.indptr.dtype == np.int32
        RandomForestClassifier(2).fit(codes, X[:, 0] > 0)


# ------------------------------------------------------------------------- controls


def test_a_control_keeps_what_it_was_given():
    pca, memory, neurons = (
        controls.PCADictionary(),
        controls.MemorizingDictionary(1000),
        controls.NeuronBasis(),
    )
    assert pca.d_sae is None and pca.l0 is None
    for model in (pca, memory, neurons):
        before = model.get_params()
        model.fit(X)
        assert model.get_params() == before and repr(model) == repr(clone(model))
    assert (pca.d_sae_, pca.l0_, pca.d_sae, pca.l0) == (6, 6, 6, 6)
    assert (memory.d_sae_, memory.l0_, memory.d_sae) == (200, 1, 1000)
    assert (neurons.d_sae_, neurons.l0_, neurons.d_sae) == (6, 6, 6)
    pca.fit(X[:, :4])
    assert (pca.d_sae_, pca.l0_) == (4, 4) and pca.transform(X[:, :4]).shape == (200, 4)
    with pytest.raises(ValueError, match="l0: expected a whole number from 1 to 3"):
        pca.set_params(l0=4).fit(X[:, :3])
    with pytest.raises(ValueError, match="not fitted"):
        pca.transform(X[:, :3])
    with pytest.raises(ValueError, match="not fitted"):
        _ = controls.RandomDictionary(3, l0=1).W_dec


def test_a_control_survives_pickling():
    control = controls.RandomDictionary(9, l0=2).fit(X)
    same = pickle.loads(pickle.dumps(control))
    np.testing.assert_array_equal(same.transform(X).toarray(), control.transform(X).toarray())


def test_a_pipeline_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_pipeline(AtomicInnerProduct(), sae(), LogisticRegression()).fit(
            X, X[:, 0] > 1, sparseautoencoder__X_val=X
        )
