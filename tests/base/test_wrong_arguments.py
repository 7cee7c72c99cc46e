"""Anything at all as any argument: it is used, or the error says which argument it was."""

import functools
import itertools
import json
import math
import warnings

import numpy as np
import pytest
import scipy.sparse as sp

import atoms
from atoms import recovery, theory
from atoms.activations import Activations, ActivationStore
from atoms.io import PretrainedSAE

rng = np.random.default_rng(0)
X = rng.standard_normal((90, 6)).astype(np.float32)
D = rng.standard_normal((9, 6)).astype(np.float32)
CODES = sp.csr_array(np.eye(9)[:5])
SAE = {"d_sae": 9, "target_l0": 2, "max_steps": 3, "batch_size": 32, "verbose": False, "num_threads": 1}
LEARNING = {"n_atoms": 9, "n_nonzero": 2, "max_steps": 2, "batch_size": 32, "verbose": False}

WRONG = {
    "an object": object(),
    "text": "x",
    "NaN": math.nan,
    "infinity": math.inf,
    "-1": -1,
    "1.5": 1.5,
    "a large number": 2**70,
    "ragged lists": [[1], [2, 3]],
    "three dimensions": np.ones((2, 2, 2)),
    "texts": np.array(["a", "b"]),
    "complex numbers": np.ones((90, 6)) * 1j,
    "dates": np.array(["2020-01-01"], "M8[D]"),
    "a set": {1},
}


def sae():
    return atoms.SparseAutoencoder(**SAE)


@functools.cache
def fitted(kind):
    return {
        "sae": sae,
        "learning": lambda: atoms.DictionaryLearning(**LEARNING),
        "metric": atoms.AtomicInnerProduct,
        "coder": lambda: atoms.SparseCoder(D, n_nonzero=2),
    }[kind]().fit(X)


def of(kind, name, **arguments):
    return lambda **changed: getattr(fitted(kind), name)(**changed), arguments


def made(cls, **arguments):
    return lambda **changed: cls(**changed).fit(X), arguments


def pretrained():
    return PretrainedSAE(np.eye(6), np.zeros(6), np.eye(6), np.zeros(6), activation="relu")


CALLS = {
    "SparseAutoencoder": made(
        atoms.SparseAutoencoder,
        **{**SAE, "activation": "jumprelu", "metric": None, "tied": False, "learning_rate": 1e-3},
        warmup=0.05, decay=0.3, bandwidth=0.1, clip=1.0, dead_after=100.0, beta1=0.9, beta2=0.999, matryoshka_widths=None,
        aux_k=0, aux_coefficient=1.0, skip_connection=False, screen="auto", random_state=0,
    ),
    "SparseAutoencoder of an L1 penalty": made(
        functools.partial(atoms.SparseAutoencoder, **SAE, activation="relu"), l1_coefficient=0.1
    ),
    "SparseAutoencoder.fit": (
        lambda **changed: sae().fit(**changed),
        {"X": X, "X_val": X, "calibrate": True, "massive": "keep", "target": None, "target_val": None, "callback": None,
         "init": None, "checkpoint_minutes": 5.0, "checkpoint_steps": None},
    ),
    "SparseAutoencoder.partial_fit": (
        lambda **changed: sae().partial_fit(**changed), {"X": X, "target": None, "schedule": "constant"}
    ),
    "SparseAutoencoder.calibrate": (
        lambda **changed: sae().fit(X).calibrate(**changed), {"X": X, "target_l0": 2}
    ),
    "fit_many": (
        lambda **changed: atoms.fit_many(**{"saes": [sae()], **changed}),
        {"saes": [sae()], "X": X, "checkpoints": None, "checkpoint_steps": None, "callback": None},
    ),
    "DictionaryLearning": made(
        atoms.DictionaryLearning, **LEARNING, alpha=None, metric=None, coder="omp", forget=2.0, sweeps=1, dead_after=100.0,
        incoherence=0.0, random_state=0, num_threads=1,
    ),
    "DictionaryLearning.fit": (
        lambda **changed: atoms.DictionaryLearning(**LEARNING).fit(**changed),
        {"X": X, "X_val": X, "massive": "keep", "callback": None, "init": None, "checkpoint_minutes": 5.0,
         "checkpoint_steps": None},
    ),
    "SparseCoder": (
        lambda **changed: atoms.SparseCoder(**changed).fit(X).transform(X),
        {"dictionary": D, "method": "omp", "n_nonzero": 2, "tol": None, "metric": None, "num_threads": 1},
    ),
    "AtomicInnerProduct": made(atoms.AtomicInnerProduct, centered=False, shrinkage=None, num_threads=1),
    "AtomicInnerProduct.angles": of("metric", "angles", X=X, geometry="metric", pairs=9, bins=10, random_state=0),
    **{
        f"{kind}.{name}": of(kind, name, **{argument: X if argument == "X" else CODES})
        for (kind, codes), name in itertools.product(
            {"sae": "codes", "learning": "codes", "coder": "codes"}.items(),
            ("transform", "inverse_transform", "reconstruct", "score"),
        )
        for argument in [codes if name == "inverse_transform" else "X"]
    },
    "metric.inverse_transform": of("metric", "inverse_transform", Z=X, out=None),
    "metric.unwhiten": of("metric", "unwhiten", Z=X, out=None),
    "PretrainedSAE": (
        PretrainedSAE,
        {"W_enc": D.T, "b_enc": np.zeros(9), "W_dec": D, "b_dec": np.zeros(6), "threshold": None, "activation": "topk", "k": 2,
         "center": None, "input_norm": "none", "W_skip": None, "config": None},
    ),
    "pretrained.inverse_transform": (
        lambda **changed: pretrained().inverse_transform(**changed), {"codes": sp.csr_array(np.eye(6))}
    ),
    "RandomDictionary": made(
        atoms.controls.RandomDictionary, d_sae=9, l0=2, metric=None, center=True, encoder="omp", random_state=0
    ),
    "MemorizingDictionary": made(
        atoms.controls.MemorizingDictionary, d_sae=9, metric=None, center=True, random_state=0
    ),
    "KMeansDictionary": made(
        atoms.controls.KMeansDictionary, d_sae=9, metric=None, center=True, max_iter=2, random_state=0
    ),
    "PCADictionary": made(atoms.controls.PCADictionary, l0=2, metric=None, center=True, d_sae=4),
    "NeuronBasis": made(atoms.controls.NeuronBasis, l0=2, metric=None, center=True),
    "shuffle_coordinates": (atoms.controls.shuffle_coordinates, {"X": X, "random_state": 0, "out": None}),
    "Dictionary": (recovery.Dictionary, {"atoms": D, "metric": None, "dtype": None, "gram_bytes": 0, "num_threads": 1}),
    "omp": (
        recovery.omp,
        {"X": X, "dictionary": D, "n_nonzero": 2, "tol": None, "selection": "omp", "nonnegative": False, "support": None,
         "metric": None, "num_threads": 1},
    ),
    "lasso": (
        recovery.lasso,
        {"X": X, "dictionary": D, "alpha": 1.0, "positive": False, "tol": 1e-3, "max_iter": 20, "metric": None},
    ),
    "lasso_path": (
        recovery.lasso_path,
        {"X": X, "dictionary": D, "alphas": None, "n_alphas": 3, "eps": 0.1, "positive": False, "tol": 1e-3},
    ),
    "threshold": (functools.partial(recovery.code, method="threshold"), {"X": X, "dictionary": D, "tau": 1.0}),
    "code": (recovery.code, {"X": X, "dictionary": D, "method": "cosamp", "n_nonzero": 2}),
    "threshold_interval": (recovery.threshold_interval, {"codes": CODES, "coherence": 0.1}),
    "explained_variance": (
        theory.explained_variance,
        {"X": X, "X_hat": X, "convention": "centered", "metric": None, "massive_multiple": 10.0, "block_size": None},
    ),
    "ExplainedVariance": (
        lambda **changed: theory.ExplainedVariance(**changed).update(X, X).result(),
        {"convention": None, "metric": None, "mean": None, "massive_norm": 9.0},
    ),
    "explained_variance_interval": (
        theory.explained_variance_interval,
        {"result": theory.explained_variance(X, 0.5 * X), "level": 0.9, "n_boot": 9, "block_size": 1, "random_state": 0},
    ),
    "coherence": (theory.coherence, {"D": D, "metric": None, "quantiles": (0.5,), "method": "linear", "num_threads": 1}),
    "babel": (theory.babel, {"D": D, "metric": None, "kmax": 3}),
    "certify": (theory.certify, {"D": D, "codes": CODES, "metric": None}),
    "consensus": (theory.consensus, {"dictionaries": [D, D + 0.1], "metric": None, "cosine": 0.5}),
    "pairwise_mcc": (theory.pairwise_mcc, {"dictionaries": [D, D + 0.1], "metric": None, "candidates": 4}),
    "match_dictionaries": (theory.match_dictionaries, {"A": D, "B": D, "metric": None, "candidates": 4}),
    "stability": (theory.stability, {"D": D, "l0": np.full(9, 2), "metric": None, "curve": [0.5]}),
    "stability_interval": (
        theory.stability_interval,
        {"D": D, "l0": np.full(9, 2), "level": 0.9, "n_boot": 9, "block_size": 1, "random_state": 0},
    ),
    "subspace_overlap": (theory.subspace_overlap, {"A": D[:3], "B": D[:4], "metric": None, "k": 2}),
    "welch_bound": (theory.welch_bound, {"n": 9, "d": 6}),
}  # fmt: skip
LONG = {"max_steps", "n_boot", "max_iter"}  # any number may be meant


@pytest.mark.parametrize("name", CALLS)
def test_arguments_are_taken_by_their_names(name):
    call, arguments = CALLS[name]
    call(**arguments)


@pytest.mark.parametrize("name", CALLS)
def test_what_is_wrong_is_named(name):
    call, arguments = CALLS[name]
    for argument, (kind, wrong) in itertools.product(arguments, WRONG.items()):
        if argument == "verbose" or (argument in LONG and kind == "a large number"):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                call(**{**arguments, argument: wrong})
            except (TypeError, ValueError) as error:
                known = {"atoms": "dictionary"}.get(argument, argument)
                assert known in str(error), (argument, kind, error)
            except atoms.TrainingDiverged:
                assert argument == "learning_rate"


@pytest.mark.parametrize(
    ("argument", "wrong"),
    [
        ("tied", "no"), ("l1_coefficient", -1), ("l1_coefficient", math.nan), ("bandwidth", math.inf),
        ("learning_rate", math.inf), ("aux_coefficient", math.inf),
    ],
)  # fmt: skip
def test_autoencoders_refuse(argument, wrong):
    with pytest.raises(ValueError, match=f"{argument}: expected"):
        atoms.SparseAutoencoder(**{**SAE, "activation": "relu", argument: wrong}).fit(X)


@pytest.mark.parametrize("model", [sae, lambda: atoms.DictionaryLearning(**LEARNING)])
@pytest.mark.parametrize("steps", [0, -1, 1.5, math.nan, math.inf])
def test_checkpoints_that_would_never_be_written(model, steps, tmp_path):
    with pytest.raises(ValueError, match="checkpoint_steps: expected a positive integer"):
        model().fit(X, checkpoint=tmp_path / "x.safetensors", checkpoint_steps=steps)
    for minutes in (math.nan, -1):
        with pytest.raises(ValueError, match="checkpoint_minutes: expected"):
            model().fit(X, checkpoint=tmp_path / "x.safetensors", checkpoint_minutes=minutes)


@pytest.mark.parametrize("argument", ["learning_rate", "beta1", "clip", "dead_after", "target_l0"])
def test_a_number_in_a_text_is_none(argument):
    with pytest.raises(TypeError, match=f"{argument}: expected a number, got '0.5'"):
        atoms.SparseAutoencoder(**{**SAE, argument: "0.5"}).fit(X)


def test_numbers_in_arrays_are_saved(tmp_path):
    numbers = {"learning_rate": np.array(1e-3), "beta1": np.float32(0.5), "max_steps": np.int64(2)}
    atoms.SparseAutoencoder(**{**SAE, **numbers}).fit(X).save(tmp_path / "x.safetensors")
    again = atoms.load(tmp_path / "x.safetensors").get_params()
    assert {name: again[name] for name in numbers} == {name: value.item() for name, value in numbers.items()}


def test_dead_after_infinity_counts_no_latent_as_dead():
    forever = atoms.SparseAutoencoder(**{**SAE, "dead_after": math.inf}).fit(X)
    np.testing.assert_array_equal(
        forever.W_dec, atoms.SparseAutoencoder(**{**SAE, "dead_after": 1e9}).fit(X).W_dec
    )


def test_a_metric_is_used_where_no_convention_is_named():
    metric = atoms.AtomicInnerProduct().fit(X)
    found = theory.explained_variance(X, 0.5 * X + 0.1, metric=metric)
    assert found.convention == "metric_centered"
    assert found.total == theory.explained_variance(X, 0.5 * X + 0.1, "metric_centered", metric=metric).total
    assert theory.ExplainedVariance(metric=metric).convention == "metric_centered"
    assert theory.explained_variance(X, X).convention == "centered"


def test_rows_beyond_float32():
    for model in (sae(), atoms.DictionaryLearning(**LEARNING)):
        with pytest.raises(ValueError, match="X: holds values up to .* beyond float32.* multiply X by"):
            model.fit(X.astype(np.float64) * 1e200)


def test_a_checkpoint_that_nobody_named():
    for model in (sae(), atoms.DictionaryLearning(**LEARNING)):
        with pytest.raises(ValueError, match="checkpoint_steps: nothing is written where no path is given"):
            model.fit(X, checkpoint_steps=2)


def test_cosines_of_another_geometry():
    metric = atoms.AtomicInnerProduct().fit(X)
    plain, under = theory.coherence(D), theory.coherence(D, metric)
    assert (
        theory.stability(under, [2], metric)
        == theory.stability(under, [2])
        == theory.stability(D, [2], metric)
    )
    for call in (
        lambda c: theory.stability(c, [2], metric),
        lambda c: theory.stability_interval(c, [2, 3], metric),
        lambda c: theory.certificate(c, metric),
        lambda c: theory.babel(c, metric),
    ):
        with pytest.raises(ValueError, match="metric: D is a Coherence, taken in another geometry"):
            call(plain)


def learning():
    return atoms.DictionaryLearning(**LEARNING)


PATHS = {
    **{
        f"{kind}.save": ("path", lambda p, kind=kind: fitted(kind).save(p))
        for kind in ("sae", "learning", "metric")
    },
    "SparseAutoencoder.load": ("path", atoms.SparseAutoencoder.load),
    "DictionaryLearning.load": ("path", atoms.DictionaryLearning.load),
    "AtomicInnerProduct.load": ("path", atoms.AtomicInnerProduct.load),
    "load": ("path", atoms.load),
    "io.save": ("path", lambda p: atoms.io.save(fitted("sae"), p)),
    "from_pretrained": ("name", atoms.io.from_pretrained),
    "convert from": ("source", lambda p: atoms.io.convert(p, "y")),
    "convert to": ("target", lambda p: atoms.io.convert("y", p)),
    "fit": ("checkpoint", lambda p: sae().fit(X, checkpoint=p)),
    "fit_many": ("checkpoints", lambda p: atoms.fit_many([sae()], X, checkpoints=[p])),
    "DictionaryLearning.fit": ("checkpoint", lambda p: learning().fit(X, checkpoint=p)),
    "ActivationStore": ("folder", ActivationStore),
    "ActivationStore.discard": ("folder", lambda p: ActivationStore.discard(p, 0)),
    "Activations.load": ("folder", Activations.load),
    "report": ("output", lambda p: atoms.report("smollm2", p)),
}


@pytest.mark.parametrize("call", PATHS)
def test_what_is_no_path_is_named(call):
    name, call = PATHS[call]
    for wrong in (3, object(), b"x", ["x"], math.nan, X, "", "a\0b"):
        with pytest.raises((TypeError, ValueError), match=f"^{name}: expected a path"):
            call(wrong)


def test_what_shows_itself():
    for wrong in ("no", None, [True], X):
        with pytest.raises(TypeError, match="^verbose: expected True or False"):
            atoms.SparseAutoencoder(**{**SAE, "verbose": wrong}).fit(X)
    for wrong in (np.empty(2, object), "x", 3):  # as pyplot.subplots(1, 2) gives them
        with pytest.raises(TypeError, match="^axes: expected one matplotlib Axes, got the "):
            theory.coherence(D).plot(wrong)


def test_files_are_opened_by_what_can(tmp_path):
    fitted("sae").save(tmp_path / "own.safetensors")
    atoms.io.save(fitted("sae"), tmp_path / "folder", layer=np.int64(3))
    assert json.loads((tmp_path / "folder" / "cfg.json").read_text())["metadata"]["layer"] == 3
    with pytest.raises(ValueError, match="expected a file saved by atoms.SparseAutoencoder, found a folder"):
        atoms.SparseAutoencoder.load(tmp_path / "folder")
    with pytest.raises(ValueError, match=r"own.safetensors is a file.*atoms.load\(path\) opens it"):
        atoms.load(tmp_path / "own.safetensors", sae_id="x")
    with pytest.raises(ValueError, match="^num_threads: expected a positive integer, got 'x'"):
        atoms.load(tmp_path / "own.safetensors", num_threads="x")
    with pytest.raises(TypeError, match="metadata: expected numbers, texts"):
        atoms.io.save(fitted("sae"), tmp_path / "more", note=object())
