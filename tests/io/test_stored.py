"""Models whose weights stay in their file: the codes are those of the same weights in memory, to the bit."""

import concurrent.futures
import json
import os
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support import RNG, run

import atoms
from atoms.io import _model, _stored
from atoms.io._files import read_safetensors

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
RULES = {"relu": {}, "jumprelu": {"threshold": 0.8}, "topk": {"k": 7}}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """A hundred latents of 64 dimensions at a time, and fifty rows."""
    monkeypatch.setattr(_model, "HELD", 9 * 64 * 100)
    monkeypatch.setattr(_stored, "PART", 4 * 64 * 50)


def written(path, activation, dtype="float32", d_in=64, d_sae=777, format="saelens", centered=True, twins=0):
    """A random model's folder, its matrices in `dtype`; the first `twins` latents again at the end."""
    rng = RNG(d_sae)
    W = rng.standard_normal((d_in, d_sae)) / d_in**0.5
    bias = rng.standard_normal(d_sae) * 0.1
    if twins:
        W[:, -twins:], bias[-twins:] = W[:, :twins], bias[:twins]
    rule = dict(RULES[activation])
    if "threshold" in rule:
        rule["threshold"] = np.full(d_sae, rule["threshold"])
    center = rng.standard_normal(d_in)
    sae = atoms.io.PretrainedSAE(
        W, bias, W.T * 2, center, activation=activation, center=center if centered else None, **rule
    )
    if format == "gemma_scope_2":
        path.mkdir()
        names = {name.lower(): torch.from_numpy(getattr(sae, name)) for name in ("W_enc", "W_dec")}
        rest = {name: torch.from_numpy(getattr(sae, name)) for name in ("b_enc", "b_dec", "threshold")}
        save_file({**names, **rest}, path / "params.safetensors")
        (path / "config.json").write_text(json.dumps({"architecture": "jump_relu", "type": "sae"}))
    else:
        atoms.io.save(sae, path, format)
    (file,) = path.glob("*.safetensors")
    tensors = load_file(file)
    large = {name: a.to(DTYPES[dtype]) for name, a in tensors.items() if a.ndim == 2}
    save_file({**tensors, **large}, file)
    return path


def rows(n, d_in=64):
    """Rows of heavy tails."""
    return (RNG(n).standard_t(3, (n, d_in)) * 2).astype(np.float32)


def check_same(path, X):
    here, there = atoms.load(path), atoms.load(path, in_memory=False)
    want, got = here.transform(X), there.transform(X)
    assert want.nnz > 0
    for name in ("indptr", "indices", "data"):
        np.testing.assert_array_equal(getattr(want, name), getattr(got, name))
    assert got.indices.dtype == want.indices.dtype and got.data.dtype == np.float32
    rebuilt = here.reconstruct(X)
    np.testing.assert_allclose(there.reconstruct(X), rebuilt, atol=1e-6 * np.abs(rebuilt).max())
    np.testing.assert_allclose(there.inverse_transform(got), rebuilt, atol=1e-6 * np.abs(rebuilt).max())
    np.testing.assert_array_equal(there.b_enc, here.b_enc)
    assert repr(there) == repr(here)
    return there


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", RULES)
def test_same_bits_as_in_memory(activation, dtype, tmp_path):
    check_same(written(tmp_path / "sae", activation, dtype), rows(300))


@pytest.mark.parametrize(
    ("format", "activation", "centered"),
    [("sparsify", "topk", True), ("gemma_scope_2", "jumprelu", False), ("saelens", "jumprelu", False)],
)
def test_formats(format, activation, centered, tmp_path):
    check_same(written(tmp_path / "sae", activation, "bfloat16", format=format, centered=centered), rows(300))


@pytest.mark.parametrize(("d_in", "d_sae"), [(1, 1), (15, 17), (33, 97), (576, 1500)])
@pytest.mark.parametrize("activation", RULES)
def test_shapes(d_in, d_sae, activation, tmp_path, monkeypatch):
    monkeypatch.setitem(RULES, "topk", {"k": min(7, d_sae)})
    monkeypatch.setattr(_model, "HELD", 9 * d_in * max(1, d_sae // 3))  # parts of one latent, too
    path = written(tmp_path / "sae", activation, "bfloat16", d_in, d_sae)
    check_same(path, rows(70, d_in))
    if 7 < d_sae < 100:  # parts smaller than k
        monkeypatch.setattr(_model, "HELD", 9 * d_in * 5)
        check_same(path, rows(70, d_in))


@pytest.mark.parametrize("activation", RULES)
def test_of_equal_latents_the_first(activation, tmp_path):
    """Copies lie in other parts: a tie is told as in memory."""
    check_same(written(tmp_path / "sae", activation, twins=400), rows(300))


def test_no_rows_and_rows_without_codes(tmp_path, monkeypatch):
    monkeypatch.setitem(RULES, "jumprelu", {"threshold": 1e6})
    sae = atoms.load(written(tmp_path / "sae", "jumprelu"), in_memory=False)
    assert sae.transform(rows(5)).nnz == 0
    np.testing.assert_array_equal(sae.reconstruct(rows(5)), np.tile(sae.b_dec, (5, 1)))
    with pytest.raises(ValueError, match="0 sample"):
        sae.transform(np.empty((0, 64), np.float32))
    with pytest.raises(ValueError, match="row 1"):
        sae.transform(np.array([[0.0] * 64, [np.nan] * 64]))


def test_it_goes_where_models_go(tmp_path):
    """Pickled, into PyTorch, saved again, into statistics, from several threads at once."""
    X, path = rows(200), written(tmp_path / "sae", "jumprelu")
    here, sae = atoms.load(path), atoms.load(path, in_memory=False)
    want = here.transform(X).toarray()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(sae)).transform(X).toarray(), want)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        for codes in pool.map(lambda _: sae.transform(X), range(6)):
            np.testing.assert_array_equal(codes.toarray(), want)
    x = torch.from_numpy(X)
    assert torch.equal(sae.to_torch()(x), here.to_torch()(x))
    atoms.io.save(sae, tmp_path / "again")
    assert (tmp_path / "again/sae_weights.safetensors").read_bytes() == (
        path / "sae_weights.safetensors"
    ).read_bytes()
    assert atoms.theory.coherence(sae.W_dec).max == atoms.theory.coherence(here.W_dec).max
    np.testing.assert_array_equal(sae.W_dec[3:8], here.W_dec[3:8])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_matrices_are_what_arrays_are(data, tmp_path_factory):
    n, d = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 20))
    dtype = data.draw(st.sampled_from(list(DTYPES)))
    path = tmp_path_factory.mktemp("matrix") / "a.safetensors"
    a = torch.from_numpy(RNG(n).standard_normal((n, d))).to(DTYPES[dtype])
    save_file({"W_enc": a, "before": torch.zeros(data.draw(st.integers(1, 9)))}, path)
    matrix, want = read_safetensors(path, ("W_enc",))["W_enc"], a.float().numpy()
    if data.draw(st.booleans()):
        matrix, want = matrix.T, want.T
    assert (
        matrix.shape == want.shape
        and len(matrix) == len(want)
        and matrix.size == want.size
        and matrix.finite()
    )
    np.testing.assert_array_equal(np.asarray(matrix), want)
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(want))] * 2)))
    got = matrix.rows(start, stop)
    np.testing.assert_array_equal(got, want[start:stop])
    assert got.flags.c_contiguous and got.dtype == np.float32
    some = np.array(sorted(data.draw(st.sets(st.integers(0, len(want) - 1)))), int)
    np.testing.assert_array_equal(matrix.take(some), want[some])
    vector = RNG(0).standard_normal(want.shape[1])
    np.testing.assert_allclose(matrix.times(vector), want @ vector, atol=1e-12)
    for key in (
        0,
        -1,
        np.int64(len(want) - 1),
        slice(1, 5),
        slice(None),
        slice(5, 1),
        slice(None, None, 2),
        some,
    ):
        np.testing.assert_array_equal(matrix[key], want[key])
    with pytest.raises(IndexError):
        matrix[len(want)]


def test_a_file_that_changes_is_noticed(tmp_path):
    X, path = rows(50), written(tmp_path / "sae", "relu")
    sae, file = atoms.load(path, in_memory=False), path / "sae_weights.safetensors"
    sae.transform(X)
    whole = file.read_bytes()
    os.truncate(file, len(whole) // 2)
    with pytest.raises(ValueError, match=r"sae_weights\.safetensors: has been changed"):
        sae.transform(X)
    with pytest.raises(ValueError, match="cut short"):
        atoms.load(path, in_memory=False)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="sae_weights"):
        sae.reconstruct(X)
    file.write_bytes(whole)
    assert atoms.load(path, in_memory=False).transform(X).nnz


def test_the_process_may_go_elsewhere(tmp_path, monkeypatch):
    written(tmp_path / "sae", "relu")
    monkeypatch.chdir(tmp_path)
    sae = atoms.load("sae", in_memory=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert sae.transform(rows(5)).nnz


def test_a_file_cut_while_it_is_read(tmp_path, monkeypatch):
    path = written(tmp_path / "sae", "relu")
    sae, file = atoms.load(path, in_memory=False), path / "sae_weights.safetensors"
    os.truncate(file, 4000)
    monkeypatch.setattr(_stored, "_stamp", lambda file: sae.W_enc._stamp)
    with pytest.raises(ValueError, match="cut short"):
        sae.transform(rows(50))


@pytest.mark.parametrize("name", ["W_enc", "W_dec"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(name, value, tmp_path):
    path = written(tmp_path / "sae", "relu", "bfloat16")
    tensors = load_file(path / "sae_weights.safetensors")
    tensors[name][-1, -1] = value
    save_file(tensors, path / "sae_weights.safetensors")
    with pytest.raises(ValueError, match=f"{name}: contains NaN or infinity"):
        atoms.load(path, in_memory=False)


def test_weights_that_reading_would_change_are_refused(tmp_path):
    path = written(tmp_path / "sae", "topk")
    config = json.loads((path / "cfg.json").read_text())
    (path / "cfg.json").write_text(json.dumps({**config, "rescale_acts_by_decoder_norm": True}))
    with pytest.raises(ValueError, match=r"in_memory: .*decoder norms.*atoms\.io\.save"):
        atoms.load(path, in_memory=False)
    atoms.io.save(atoms.load(path), tmp_path / "again")  # what the message says to do
    check_same(tmp_path / "again", rows(100))
    for norm in ("expected_average_only_in", "covariance_whitening"):
        (path / "cfg.json").write_text(json.dumps({**config, "normalize_activations": norm}))
        with pytest.raises(ValueError, match=f"in_memory: .*{norm}"):
            atoms.load(path, in_memory=False)


def test_files_that_cannot_be_read_in_parts(tmp_path):
    X = rows(300)
    sae = atoms.SparseAutoencoder(32, target_l0=4, max_steps=20, verbose=False).fit(X)
    sae.save(tmp_path / "ours.safetensors")
    atoms.io.save(sae, tmp_path / "sae.npz", "npz")
    for name in ("ours.safetensors", "sae.npz"):
        with pytest.raises(ValueError, match=r"in_memory: .*only saelens, sparsify, gemma_scope_2"):
            atoms.load(tmp_path / name, in_memory=False)


def test_input_norms_and_skip_connections(tmp_path):
    rng, X = RNG(3), rows(200)
    W = rng.standard_normal((64, 300)) / 8
    for norm in ("layer_norm", "constant_norm_rescale"):
        sae = atoms.io.PretrainedSAE(W, np.zeros(300), W.T, np.ones(64), activation="relu", input_norm=norm)
        atoms.io.save(sae, tmp_path / norm)
        here, there = atoms.load(tmp_path / norm), atoms.load(tmp_path / norm, in_memory=False)
        np.testing.assert_array_equal(there.transform(X).toarray(), here.transform(X).toarray())
        np.testing.assert_allclose(there.reconstruct(X), here.reconstruct(X), rtol=1e-4, atol=1e-4)
    skip = rng.standard_normal((64, 64))
    transcoder = atoms.io.PretrainedSAE(
        W, np.zeros(300), rng.standard_normal((300, 64)), np.ones(64), activation="topk", k=5, W_skip=skip
    )
    atoms.io.save(transcoder, tmp_path / "skip", "sparsify")
    here, there = atoms.load(tmp_path / "skip"), atoms.load(tmp_path / "skip", in_memory=False)
    np.testing.assert_allclose(there.reconstruct(X), here.reconstruct(X), rtol=1e-4, atol=1e-4)


PEAK = """
import resource, sys
import numpy as np, atoms
X = np.random.default_rng(0).standard_normal((256, 1024), np.float32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
sae = atoms.load(sys.argv[1], in_memory=False)
codes = sae.transform(X)
sae.inverse_transform(codes)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
def test_memory_does_not_follow_the_file(tmp_path):
    """Weights of 1 GB in bfloat16, which in memory would take 9 GB."""
    d_in, d_sae = 1024, 262_144
    folder = tmp_path / "sae"
    folder.mkdir()
    large = torch.randn(d_in, d_sae, dtype=torch.bfloat16)
    small = {"b_enc": torch.full((d_sae,), -100.0), "b_dec": torch.zeros(d_in)}
    save_file(
        {"W_enc": large, "W_dec": large.reshape(d_sae, d_in).clone(), **small},
        folder / "sae_weights.safetensors",
    )
    config = {"architecture": "standard", "d_in": d_in, "d_sae": d_sae, "sae_lens_version": "6.54.0"}
    (folder / "cfg.json").write_text(json.dumps(config))
    assert float(run(PEAK, folder)) < 1.5 * 2**30
