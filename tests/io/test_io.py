"""Files of other tools: recognised, read without trust, written, fetched; what a model from a file can do."""

import hashlib
import http.server
import json
import os
import pickle
import random
import re
import shutil
import struct
import sys
import threading
import tracemalloc
import zipfile
from pathlib import Path

import fuzz_io
import numpy as np
import peers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import run

import atoms
from atoms.__main__ import main
from atoms._report import scoring
from atoms.io import PretrainedSAE, convert, from_pretrained, load, save

DATA = Path(__file__).with_name("data") / "peers"
X = peers.activations(300, 2)


def model(activation="jumprelu", d=16, s=48, seed=0, **options):
    rng = np.random.default_rng(seed)
    if activation == "jumprelu":
        options.setdefault("threshold", rng.random(s))
    weights = (
        rng.standard_normal((d, s)),
        rng.standard_normal(s),
        rng.standard_normal((s, d)),
        rng.standard_normal(d),
    )
    return PretrainedSAE(*weights, activation=activation, k=5 if activation == "topk" else None, **options)


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """Folders with files of ours."""
    return fuzz_io.ours(str(tmp_path_factory.mktemp("ours")))


@pytest.fixture
def saelens(tmp_path):
    """A copy of a SAELens model, to be damaged."""
    return Path(shutil.copytree(DATA / "saelens-jumprelu", tmp_path / "sae"))


# ------------------------------------------------------------------ the model


@pytest.mark.parametrize("shape", [(1, 1), (15, 17), (17, 15), (33, 97), (97, 33)])
@pytest.mark.parametrize("activation", ["jumprelu", "relu", "topk"])
@pytest.mark.parametrize("center", [False, True])
def test_codes_are_those_of_the_formula(shape, activation, center):
    d, s = shape
    if activation == "topk" and s < 5:
        pytest.skip("k is 5")
    c = np.random.default_rng(1).standard_normal(d) if center else None
    sae = model(activation, d, s, center=c)
    x = np.random.default_rng(2).standard_normal((33, d))
    z = x @ sae.W_enc.astype(float) + sae.b_enc
    if activation == "topk":
        cut = np.sort(z, axis=1)[:, -5, None]
        want = np.where((z >= cut) & (z > 0), z, 0)
    else:
        want = np.where(z > sae.threshold, z, 0)
    got = sae.transform(x)
    np.testing.assert_allclose(got.toarray(), want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(sae.reconstruct(x), want @ sae.W_dec + sae.b_dec, rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(sae.inverse_transform(got), sae.reconstruct(x))
    again = pickle.loads(pickle.dumps(sae))
    np.testing.assert_array_equal(again.transform(x).toarray(), got.toarray())


def test_blocks_are_joined(monkeypatch):
    sae = model()
    whole, out = sae.transform(X).toarray(), sae.reconstruct(X)
    monkeypatch.setattr("atoms.io._model.BLOCK", 7)
    np.testing.assert_array_equal(sae.transform(X).toarray(), whole)
    np.testing.assert_array_equal(sae.reconstruct(X), out)
    assert sae.transform(X[:1].astype(np.float16)).shape == (1, 48)


@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm_rescale"])
def test_input_norms_need_the_input(norm):
    sae = model(input_norm=norm)
    with pytest.raises(ValueError, match=r"do not determine the output; use reconstruct\(X\)"):
        sae.inverse_transform(sae.transform(X))
    assert np.isfinite(sae.reconstruct(np.zeros((2, 16)))).all()
    with pytest.raises(ValueError, match="init: normalises each sample"):
        atoms.SparseAutoencoder(48, max_steps=1, verbose=False).fit(X, init=sae)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"W_dec": np.ones((48, 15)), "b_dec": np.ones(15)}, "W_dec: expected 16 columns"),
        ({"b_enc": np.ones(47)}, r"b_enc: expected shape \(48,\), got \(47,\)"),
        ({"W_enc": np.full((16, 48), np.nan)}, "W_enc: contains NaN or infinity"),
        ({"b_dec": np.full(16, 1e300)}, "b_dec: contains NaN or infinity"),
        ({"threshold": np.full(48, -1.0)}, "threshold: expected no negative numbers"),
        ({"threshold": np.ones(48), "activation": "relu"}, "threshold: expected zeros"),
        ({"activation": "gelu"}, "activation: expected one of"),
        ({"activation": "topk"}, "k: activation 'topk' needs k"),
        ({"k": 3}, "k: activation 'jumprelu' has no k"),
        ({"activation": "topk", "k": 49}, "k: expected 1 to d_sae = 48"),
        ({"input_norm": "batch"}, "input_norm: expected one of"),
        ({"W_enc": np.ones(3)}, "expected matrices"),
    ],
)
def test_bad_weights_are_refused(change, message):
    arguments = {
        "W_enc": np.ones((16, 48)),
        "b_enc": np.ones(48),
        "W_dec": np.ones((48, 16)),
        "b_dec": np.ones(16),
    }
    with pytest.raises(ValueError, match=message):
        PretrainedSAE(**{**arguments, **change})


def test_bad_input_is_refused():
    sae = model()
    with pytest.raises(ValueError, match="X has 15 features, but this model expects 16"):
        sae.transform(X[:, :15])
    bad = X.copy()
    bad[7, 3] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity|7"):
        sae.transform(bad)
    with pytest.raises(ValueError, match=r"codes: expected 48 columns \(d_sae\), got 47"):
        sae.inverse_transform(np.ones((2, 47)))


def test_loaded_models_go_where_ours_go():
    sae = load(DATA / "saelens-jumprelu")
    codes = sae.transform(X)
    aip = atoms.AtomicInnerProduct().fit(X)
    assert 0 <= atoms.theory.coherence(sae.W_dec, metric=aip).max <= 1
    assert atoms.theory.certificate(sae.W_dec) is not None
    assert 0 <= atoms.theory.stability(sae.W_dec, codes, metric=aip).q_star <= 1
    # the rooms take the model itself for its atoms, whoever trained it
    for room in (
        lambda D: atoms.theory.coherence(D, metric=aip).max,
        lambda D: atoms.theory.babel(D),
        lambda D: repr(atoms.theory.certificate(D)),
        lambda D: atoms.theory.stability(D, codes, metric=aip).q_star,
        lambda D: atoms.theory.match_dictionaries(D, sae).mcc,
        lambda D: atoms.theory.subspace_overlap(D, sae),
        lambda D: atoms.recovery.omp(X[:20], D, n_nonzero=3, metric=aip).toarray(),
        lambda D: atoms.recovery.omp(X[:20], atoms.recovery.Dictionary(D, metric=aip), n_nonzero=3).toarray(),
        lambda D: atoms.SparseCoder(D, n_nonzero=2).fit(X).transform(X[:20]).toarray(),
    ):
        np.testing.assert_equal(room(sae), room(sae.W_dec))
    # and scores it beside a control of its size and L0
    l0 = min(16, int(np.median(np.diff(codes.indptr))))  # a pursuit takes no more atoms than coordinates
    control = atoms.controls.RandomDictionary(sae.d_sae, l0=l0, metric=aip).fit(X)
    scored = {}
    for name, model in (("loaded", sae), ("control", control)):
        z = model.transform(X)
        out = model.reconstruct(X) if name == "loaded" else model.inverse_transform(z)
        scored[name], stability, results = scoring.score(name, model, aip, {"held_out": (X, z, out)})
        assert scored[name].d_sae == sae.d_sae and scored[name].q_star == stability.q_star
        want = atoms.theory.explained_variance(X, out, "centered")
        assert scored[name].held_out["centered"][0] == pytest.approx(want.total)
    assert 0 <= scored["loaded"].coherence <= 1
    before = atoms.theory.explained_variance(X, sae.reconstruct(X), "centered")
    for metric in (None, aip):
        warm = atoms.SparseAutoencoder(
            48, metric=metric, target_l0=8, max_steps=2, learning_rate=1e-8, verbose=False
        )
        warm.fit(X, init=sae)
        mine = atoms.theory.explained_variance(X, warm.inverse_transform(warm.transform(X)), "centered")
        assert abs(float(mine) - float(before)) < 0.05
    with pytest.raises(ValueError, match="init: expected W_dec of shape"):
        atoms.SparseAutoencoder(48, max_steps=1, verbose=False).fit(X, init=load(DATA / "saelens-transcoder"))


# ------------------------------------------------------------------ in and out


@pytest.mark.parametrize("activation", ["jumprelu", "relu", "topk", "batchtopk"])
@pytest.mark.parametrize("whitened", [False, True])
def test_our_models_go_out_and_come_back(activation, whitened, tmp_path):
    metric = atoms.AtomicInnerProduct().fit(X) if whitened else None
    ours = atoms.SparseAutoencoder(
        24, activation=activation, metric=metric, target_l0=4, max_steps=30, batch_size=64, verbose=False
    ).fit(X)
    save(ours, tmp_path / "sae", hook_name="blocks.3.hook_resid_post")
    config = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    assert config["metadata"]["hook_name"] == "blocks.3.hook_resid_post"
    back = [load(tmp_path / "sae"), load(tmp_path / "sae" / "sae_weights.safetensors")]
    if activation != "topk":
        save(ours, tmp_path / "sae.npz", "npz")
        back.append(load(tmp_path / "sae.npz"))
    codes, out = ours.transform(X).toarray(), ours.inverse_transform(ours.transform(X))
    for theirs in back:
        np.testing.assert_allclose(theirs.transform(X).toarray(), codes, rtol=2e-5, atol=2e-5 * codes.max())
        np.testing.assert_allclose(theirs.reconstruct(X), out, rtol=2e-5, atol=2e-5 * np.abs(out).max())
    ours.save(tmp_path / "ours.safetensors")
    np.testing.assert_array_equal(load(tmp_path / "ours.safetensors").transform(X).toarray(), codes)
    if metric is not None:
        metric.save(tmp_path / "aip.safetensors")
        assert isinstance(load(tmp_path / "aip.safetensors"), atoms.AtomicInnerProduct)


def test_models_without_an_encoder(tmp_path):
    """They come back as what they are, and go nowhere else."""
    metric = atoms.AtomicInnerProduct().fit(X)
    learned = atoms.DictionaryLearning(24, 3, metric=metric, max_steps=2, verbose=False).fit(X)
    learned.save(tmp_path / "learned.safetensors")
    back = load(tmp_path / "learned.safetensors", num_threads=1)
    assert isinstance(back, atoms.DictionaryLearning) and back.num_threads == 1
    np.testing.assert_array_equal(back.transform(X).toarray(), learned.transform(X).toarray())
    with pytest.raises(ValueError, match="in_memory: .* cannot be read in parts.*files can$"):
        load(tmp_path / "learned.safetensors", in_memory=False)
    with pytest.raises(ValueError, match="is_transcoder: .* says False, got True"):
        load(tmp_path / "learned.safetensors", is_transcoder=True)
    with pytest.raises(ValueError, match="holds no autoencoder but a DictionaryLearning"):
        convert(tmp_path / "learned.safetensors", tmp_path / "x")
    means = atoms.controls.KMeansDictionary(5).fit(X)
    for thing in (learned, back, metric, means, 3):
        with pytest.raises(
            TypeError, match=f"sae: expected a SparseAutoencoder .* got a {type(thing).__name__}"
        ):
            save(thing, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_what_a_format_cannot_say(tmp_path):
    with pytest.raises(ValueError, match="'npz' has no place for TopK"):
        save(model("topk"), tmp_path / "a.npz", "npz")
    with pytest.raises(ValueError, match="'npz' has no place for layer_norm"):
        save(model(input_norm="layer_norm"), tmp_path / "a.npz", "npz")
    with pytest.raises(ValueError, match="no place for a skip connection"):
        save(load(DATA / "saelens-skip-transcoder"), tmp_path / "a.npz", "npz")
    with pytest.raises(ValueError, match="SAELens has no TopK transcoders"):
        save(load(DATA / "sparsify-skip-transcoder"), tmp_path / "a")
    with pytest.raises(ValueError, match="format: expected 'saelens' or 'npz'"):
        save(model(), tmp_path / "a", "gguf")
    assert list(tmp_path.iterdir()) == []
    save(model(), tmp_path / "a")
    with pytest.raises(FileExistsError, match="is there already"):
        save(model(), tmp_path / "a")


@pytest.mark.filterwarnings("ignore:.*neither the file nor its place says")
def test_convert_on_the_command_line(tmp_path, capsys):
    source = next((DATA / "gemma-scope").rglob("params.npz"))
    assert main(["convert", str(source), str(tmp_path / "out")]) == 0
    assert (
        "PretrainedSAE(d_in=16, d_sae=48, jumprelu, from gemma_scope), written to" in capsys.readouterr().out
    )
    assert main(["convert", str(tmp_path / "out"), str(tmp_path / "again.npz")]) == 0
    with np.load(source) as before, np.load(tmp_path / "again.npz") as after:
        for name in before:
            np.testing.assert_array_equal(before[name], after[name])
    assert main(["convert", str(tmp_path / "nothing"), str(tmp_path / "x")]) == 1
    assert "no such file or folder" in capsys.readouterr().err
    atoms.AtomicInnerProduct().fit(X).save(tmp_path / "aip.safetensors")
    with pytest.raises(ValueError, match="holds no autoencoder but a AtomicInnerProduct"):
        convert(tmp_path / "aip.safetensors", tmp_path / "y")


# ------------------------------------------------------------------ the hub


def hub_cache(root, name="org/saes", commit="a" * 40):
    """huggingface_hub's own layout: a reference, and a snapshot of links into blobs."""
    repository = root / ("models--" + name.replace("/", "--"))
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "blobs").mkdir()
    snapshot = repository / "snapshots" / commit / "layer_3" / "width_16k"
    snapshot.mkdir(parents=True)
    for file in (DATA / "saelens-topk").iterdir():
        if file.name != "expected.npz":
            shutil.copy(file, repository / "blobs" / file.name)
            (snapshot / file.name).symlink_to(os.path.relpath(repository / "blobs" / file.name, snapshot))


def test_from_pretrained(tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub")
    hub_cache(tmp_path)
    sae = from_pretrained("org/saes", "layer_3/width_16k", cache_dir=tmp_path, local_files_only=True)
    assert (sae.activation, sae.k) == ("topk", 5)
    with pytest.raises(FileNotFoundError, match="no model of a known format"):
        from_pretrained("org/saes", cache_dir=tmp_path, local_files_only=True)
    with pytest.raises(FileNotFoundError, match="not to be had from the hub nor its cache"):
        from_pretrained("org/others", "layer_3", cache_dir=tmp_path, local_files_only=True)
    with pytest.raises(ValueError, match="neither a folder here nor a name on the hub"):
        from_pretrained("a/b/c/d", cache_dir=tmp_path, local_files_only=True)
    for bad in ("../x", "/etc"):
        with pytest.raises(ValueError, match="subfolder: expected a path inside the repository"):
            from_pretrained("org/saes", bad)
    assert from_pretrained(DATA, "saelens-jumprelu").activation == "jumprelu"  # a folder is read as it is
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        from_pretrained("org/saes")


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as its client asks for: a repository's list of files, and the files."""

    folder, commit, fetched = DATA / "saelens-topk", "b" * 40, ()
    names = ("cfg.json", "sae_weights.safetensors", "expected.npz")

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        name = self.path.split("/")[-1]
        if "/tree/" in self.path:
            body = json.dumps(
                [
                    {
                        "type": "file",
                        "path": f"layer_3/{n}",
                        "size": (self.folder / n).stat().st_size,
                        "oid": "c" * 40,
                    }
                    for n in self.names
                ]
            ).encode()
        elif "/api/models/" in self.path:
            siblings = [{"rfilename": f"layer_3/{n}"} for n in self.names]
            body = json.dumps({"id": "org/saes", "sha": self.commit, "siblings": siblings}).encode()
        else:
            body = (self.folder / name).read_bytes()
            if self.command == "GET":
                type(self).fetched += (name,)
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.commit)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_the_hub_itself_and_its_cache_offline(tmp_path):
    """The client's own download writes its own layout; what is there is read without a network."""
    pytest.importorskip("huggingface_hub")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    code = """
        import json, atoms
        sae = atoms.io.from_pretrained("org/saes", "layer_3")
        print(json.dumps([sae.activation, sae.k, float(sae.W_enc.sum())]))
        """
    env = {
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "no_proxy": "127.0.0.1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN"):
        env[name] = ""
    env["HF_HUB_CACHE"] = str(tmp_path / "home" / "hub")
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        online = run(code, strict=False, timeout=120, HF_ENDPOINT=address, HF_HUB_OFFLINE="0", **env)
        assert sorted(Hub.fetched) == ["cfg.json", "sae_weights.safetensors"]  # only what the format has
    finally:
        server.shutdown()
        server.server_close()
    want = load(DATA / "saelens-topk")
    assert json.loads(online) == ["topk", 5, float(want.W_enc.sum())]
    repository = tmp_path / "home" / "hub" / "models--org--saes"
    assert (repository / "refs" / "main").read_text() == Hub.commit
    assert (repository / "snapshots" / Hub.commit / "layer_3" / "cfg.json").is_symlink()
    # the server is gone: the cache serves, by the environment's word or the argument's
    assert run(code, strict=False, timeout=120, HF_ENDPOINT=address, HF_HUB_OFFLINE="1", **env) == online
    local = code.replace('"layer_3"', '"layer_3", local_files_only=True')
    assert run(local, strict=False, timeout=120, HF_ENDPOINT=address, HF_HUB_OFFLINE="0", **env) == online


# ------------------------------------------------------------------ hostile files


def edit(file, change):
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def header(file, change):
    """Rewrite the header of a safetensors file."""
    data = file.read_bytes()
    n = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + n])
    change(entries)
    text = json.dumps(entries).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + n :])


def tensors(file, change):
    from safetensors.numpy import load_file, save_file

    found = load_file(file)
    change(found)
    save_file(found, file)


W, C = "sae_weights.safetensors", "cfg.json"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / W).write_bytes((f / W).read_bytes()[:-1]), "not a safetensors file or cut short"),
        (lambda f: (f / W).write_bytes((f / W).read_bytes()[:100]), "not a safetensors file or cut short"),
        (lambda f: (f / W).write_bytes(b""), "not a safetensors file or cut short"),
        (
            lambda f: (f / W).write_bytes(struct.pack("<Q", 2**63) + b"{}"),
            "not a safetensors file or cut short",
        ),
        (
            lambda f: (f / W).write_bytes(struct.pack("<Q", 100 << 20) + b"{" * 99),
            "a header of 104857600 bytes",
        ),
        (
            lambda f: edit(f / C, lambda c: c.update(metadata={}, activation_fn_str="tanh-relu")),
            "cfg.json: activation function 'tanh-relu' is not supported",
        ),
        (
            lambda f: header(f / W, lambda h: h["b_enc"].update(data_offsets=[0, 192])),
            "not a safetensors file",
        ),
        (
            lambda f: header(f / W, lambda h: h["b_enc"].update(data_offsets=[-192, 0])),
            "not a safetensors file",
        ),
        (
            lambda f: header(f / W, lambda h: h["b_enc"].update(shape=[2**40, 2**40])),
            "not a safetensors file",
        ),
        (lambda f: header(f / W, lambda h: h["b_enc"].update(dtype="I32")), "b_enc has dtype int32"),
        (
            lambda f: tensors(f / W, lambda t: t.update(W_enc=t["W_enc"].astype(np.int64))),
            "W_enc has dtype int64",
        ),
        (
            lambda f: tensors(f / W, lambda t: t.update(W_enc=t["W_enc"] * np.nan)),
            "W_enc: contains NaN or infinity",
        ),
        (lambda f: tensors(f / W, lambda t: t.update(log_threshold=t["threshold"])), "unknown log_threshold"),
        (lambda f: tensors(f / W, lambda t: t.pop("b_dec")), "no b_dec; expected the weights W_enc"),
        (lambda f: tensors(f / W, lambda t: t.update(W_dec=t["W_dec"].T.copy())), "do not fit each other"),
        (
            lambda f: tensors(f / W, lambda t: t.update(scaling_factor=np.full(48, 2.0))),
            "finetuning scaling factor",
        ),
        (lambda f: (f / C).write_text("{"), "not JSON or cut short"),
        (lambda f: (f / C).write_text("[" * 100_000), "not JSON or cut short"),
        (lambda f: (f / C).write_text("[1]"), "expected a JSON object"),
        (lambda f: (f / C).write_bytes(b" " * (11 << 20)), "too much for a configuration"),
        (
            lambda f: edit(f / C, lambda c: c.update(d_sae=49)),
            "the configuration says d_sae = 49, the weights 48",
        ),
        (
            lambda f: edit(f / C, lambda c: c.update(architecture="temporal")),
            "architecture 'temporal' is not supported",
        ),
        (lambda f: edit(f / C, lambda c: c.update(architecture=["topk"])), "is not supported"),
        (
            lambda f: edit(f / C, lambda c: c.update(normalize_activations="batch")),
            "input_norm: expected one of",
        ),
        (
            lambda f: edit(f / C, lambda c: c.update(normalize_activations="covariance_whitening")),
            "is not there",
        ),
        (lambda f: (f / C).unlink(), "cfg.json is not beside it"),
        (lambda f: shutil.copy(f / W, f / "sae.safetensors"), r"several formats \(saelens, sparsify\)"),
        (lambda f: (f / W).unlink(), "no model of a known format"),
    ],
)
def test_damaged_saelens(saelens, damage, message):
    damage(saelens)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load(saelens)


def test_a_transcoder_on_scaled_activations_is_refused(tmp_path):
    folder = shutil.copytree(DATA / "saelens-transcoder", tmp_path / "sae")
    edit(folder / C, lambda c: c.update(normalize_activations="expected_average_only_in"))
    with pytest.raises(
        ValueError, match="a transcoder with normalize_activations 'expected_average_only_in'"
    ):
        load(folder)


def test_overflow_while_folding_is_an_error_not_a_warning(tmp_path):
    folder = shutil.copytree(DATA / "saelens-gated", tmp_path / "sae")
    tensors(folder / W, lambda t: t.update(r_mag=np.full_like(t["r_mag"], 1e4)))
    with pytest.raises(ValueError, match="contains NaN or infinity"):
        load(folder)


def test_folders_tell_what_gemma_scope_does_not(tmp_path, monkeypatch):
    source = next((DATA / "gemma-scope-embedding").rglob("params.npz"))
    embedding = load(source)
    for parts in (
        ("embedding", "x"),
        ("embedding", "width_4k", "average_l0_111"),
        ("a", "width_4k", "average_l0_111"),
    ):
        folder = tmp_path.joinpath(*parts)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder)
        factor = 1 if parts[:2] == ("embedding", "width_4k") else 4  # sqrt(16)
        monkeypatch.chdir(folder)
        for path in (folder, Path("params.npz"), Path(".")):  # in whatever words
            np.testing.assert_allclose(
                load(path, is_transcoder=False).W_enc, factor * embedding.W_enc, rtol=1e-6
            )


def test_folders_of_models_are_pointed_out():
    with pytest.raises(
        FileNotFoundError, match="there are some in its folders dl-AutoEncoder, dl-AutoEncoderNew"
    ):
        load(DATA)


def test_metadata_goes_along(tmp_path):
    save(load(DATA / "saelens-legacy"), tmp_path / "a", context_size=128)
    metadata = json.loads((tmp_path / "a" / C).read_text())["metadata"]
    assert (metadata["hook_name"], metadata["context_size"]) == ("blocks.0.hook_resid_post", 128)
    edit(
        tmp_path / "a" / C,
        lambda c: c.update(reshape_activations="hook_z", metadata={**c["metadata"], "model_name": "m"}),
    )
    convert(tmp_path / "a", tmp_path / "b")
    config = json.loads((tmp_path / "b" / C).read_text())
    assert config["reshape_activations"] == "hook_z" and config["metadata"]["model_name"] == "m"
    assert (
        config["metadata"]["hook_name"] == "blocks.0.hook_resid_post"
        and config["metadata"]["context_size"] == 128
    )


def test_unknown_scale_is_said(saelens):
    edit(saelens / C, lambda c: c.update(normalize_activations="expected_average_only_in"))
    with pytest.warns(UserWarning, match="trained on scaled activations, and the scale is not there"):
        load(saelens)
    for value in (-1, "x", None, [1, 2]):
        (saelens / "activation_scaler.json").write_text(json.dumps({"scaling_factor": value}))
        if value is None:
            load(saelens)
        else:
            with pytest.raises(ValueError, match="scaling_factor should be"):
                load(saelens)


# ------------------------------------------------------------------ what a file says decides


def gemma_weights(d_out=16):
    rng = np.random.default_rng(3)
    return {"W_enc": rng.standard_normal((16, 48)), "b_enc": rng.standard_normal(48),
            "W_dec": rng.standard_normal((48, d_out)), "b_dec": rng.standard_normal(d_out),
            "threshold": rng.random(48)}  # fmt: skip


def gemma_file(folder, config=None, **more):
    """Weights of Gemma Scope, or of Gemma Scope 2 where there is a configuration."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    w = {**gemma_weights(), **more}
    if config is None:
        np.savez(folder / "params.npz", **w)
    else:
        w = {name.replace("W_", "w_"): a.astype(np.float32) for name, a in w.items()}
        save_file(w, folder / "params.safetensors")
        (folder / "config.json").write_text(json.dumps(config))
    return folder


HUB = Path("snapshots", "0" * 40, "layer_0", "width_16k", "average_l0_76")
IN_OUT = {"hf_hook_point_in": "layers.5.pre.output", "hf_hook_point_out": "layers.5.post.output"}


@pytest.mark.parametrize(
    ("place", "transcoder"),
    [
        ("models--google--gemma-scope-2b-pt-transcoders", True),
        ("gemma-scope-2b-pt-transcoders", True),
        ("models--google--gemma-scope-2b-pt-res", False),
        ("models--google--gemma-scope-9b-it-att", False),
        ("models--google--gemma-scope-2b-pt-mlp", False),
    ],
)
def test_gemma_scope_by_its_repository(place, transcoder, tmp_path):
    """Its file says nothing; the repository's name does, which the hub's cache has in the path."""
    folder = gemma_file(tmp_path / place / HUB)
    sae = load(folder)
    assert sae.is_transcoder == transcoder
    assert load(folder, is_transcoder=not transcoder).is_transcoder != transcoder
    save(sae, tmp_path / "out.npz", "npz")  # ours says it itself, wherever it goes
    (tmp_path / "transcoders" / "a").mkdir(parents=True)
    for name in ("moved.npz", "transcoders/a/params.npz"):
        assert load(shutil.copy(tmp_path / "out.npz", tmp_path / name)).is_transcoder == transcoder
    with pytest.raises(ValueError, match=f"is_transcoder: .* says {transcoder}, got {not transcoder}"):
        load(tmp_path / "moved.npz", is_transcoder=not transcoder)
    with np.load(tmp_path / "out.npz") as arrays:
        assert sorted(arrays) == ["W_dec", "W_enc", "b_dec", "b_enc", "threshold"]


def test_gemma_scope_from_nowhere_is_asked_about(tmp_path):
    with pytest.warns(UserWarning, match="neither the file nor its place says whether") as said:
        assert not load(gemma_file(tmp_path / "a")).is_transcoder
    assert said[0].filename == __file__
    assert load(tmp_path / "a", is_transcoder=True).is_transcoder
    wide = {"W_dec": np.ones((48, 20)), "b_dec": np.ones(20)}
    assert load(gemma_file(tmp_path / "b", **wide)).is_transcoder  # the shapes say it
    with pytest.raises(ValueError, match="is_transcoder: .* says False, got True"):
        load(DATA / "saelens-jumprelu", is_transcoder=True)


@pytest.mark.parametrize(
    "place", ["transcoder_all/layer_5", "renamed/x", "resid_post/layer_5", "embedding/width_4k/x"]
)
@pytest.mark.parametrize(
    ("config", "transcoder"),
    [
        ({"type": "transcoder", **IN_OUT}, True),
        ({"type": "transcoder"}, True),
        (IN_OUT, True),
        ({"type": "sae"}, False),
        ({"hf_hook_point_in": "layers.5.output", "hf_hook_point_out": "layers.5.output"}, False),
    ],
)
def test_gemma_scope_2_by_its_configuration(place, config, transcoder, tmp_path):
    full = {"architecture": "jump_relu", "affine_connection": False, "model_name": "m", "l0": 10, **config}
    sae = load(gemma_file(tmp_path / place, full))
    assert sae.is_transcoder == transcoder
    # not the embedding's
    np.testing.assert_array_equal(sae.W_enc, gemma_weights()["W_enc"].astype(np.float32))


@pytest.mark.parametrize(
    ("config", "more", "message"),
    [
        ({"affine_connection": True}, {}, "affine_connection is true, and params.safetensors has no affine"),
        (
            {"affine_connection": False},
            {"affine_skip_connection": np.eye(16)},
            "affine_connection is false",
        ),
        ({"affine_connection": "yes"}, {}, "affine_connection should be true or false, is 'yes'"),
        ({"type": "crosscoder"}, {}, "type 'crosscoder' is not supported"),
        ({"type": ["sae"]}, {}, "type .* is not supported"),
        ({"type": "sae"}, {"affine_skip_connection": np.eye(16)}, "which an autoencoder does not have"),
        ({"input_scale": 2.0}, {}, "config.json: input_scale = 2.0 is not understood"),
    ],
)
def test_gemma_scope_2_says_what_is_not_so(config, more, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load(gemma_file(tmp_path / "a", config, **more))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"signed": True}, "signed codes are not supported"),
        ({"signed": False}, None),
        ({"power": 2}, "power = 2 is not understood"),
        ({"skip_connection": True}, "skip_connection is true, and sae.safetensors has no W_skip"),
        ({"transcode": "no"}, "transcode should be true or false"),
        ({"k": None}, "k should be a positive integer"),
        ({"num_latents": 0, "expansion_factor": 3}, None),
        ({"num_latents": 0, "expansion_factor": 4}, "num_latents = 64, the weights 48"),
    ],
)
def test_sparsify_settings(change, message, tmp_path):
    folder = Path(shutil.copytree(DATA / "sparsify", tmp_path / "sae"))
    edit(folder / C, lambda c: c.update(change))
    if message is None:
        assert load(folder).k == 6
    else:
        with pytest.raises(ValueError, match=message):
            load(folder)


@pytest.mark.parametrize(
    ("change", "k"),
    [
        ({"architecture": "topk", "activation_fn_kwargs": {"k": 7}}, 7),
        ({"architecture": "topk", "activation_fn_kwargs": {"k": 7}, "activation_fn": "relu"}, 7),
        ({"architecture": "topk", "activation_fn_kwargs": {"k": 7}, "activation_fn_str": None}, 7),
        ({"architecture": "standard", "activation_fn_kwargs": {"k": 7}, "activation_fn": "topk"}, 7),
        ({"architecture": "topk", "activation_fn_kwargs": {"k": 7}, "k": 7}, 7),
        ({"architecture": "topk", "k": 9}, 9),
        ({"architecture": "topk", "k": 9, "activation_fn_kwargs": {}}, 9),
        (
            {"architecture": "topk", "k": 9, "activation_fn_kwargs": {"k": 7}},
            "k is 9, and 7 in activation_fn",
        ),
        ({"architecture": "topk", "activation_fn_kwargs": {"k": True}}, "k should be a positive integer"),
        ({"activation_fn": "topk"}, "activation_fn_kwargs should hold the k"),
        ({"activation_fn": "topk", "activation_fn_str": "relu"}, "activation_fn_str disagree"),
        ({"activation_fn": ["topk"]}, "activation function .* is not supported"),
    ],
)
def test_where_saelens_has_had_its_k(change, k, tmp_path):
    folder = Path(shutil.copytree(DATA / "saelens-topk", tmp_path / "sae"))
    (folder / C).write_text(json.dumps({"d_in": 16, "d_sae": 48, "dtype": "float32", **change}))
    if isinstance(k, str):
        with pytest.raises(ValueError, match=k):
            load(folder)
        return
    from safetensors.numpy import load_file

    sae, w = load(folder), load_file(folder / W)
    z = (X - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    z = np.where(z >= np.sort(z, axis=1)[:, -k, None], np.maximum(z, 0), 0)
    np.testing.assert_allclose(sae.transform(X).toarray(), z, rtol=1e-4, atol=1e-4 * z.max())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"finetuning_scaling_factor": True}, None),  # without the weight it means nothing
        ({"output_scale": 2.0}, "output_scale = 2.0 is not understood and may change the codes"),
        ({"output_scale": None, "trick": False}, None),
        ({"apply_b_dec_to_input": "false"}, "apply_b_dec_to_input should be true or false"),
        ({"rescale_acts_by_decoder_norm": 1}, "rescale_acts_by_decoder_norm should be true or false"),
        ({"dtype": "int8"}, "dtype should be one of float32"),
        ({"dtype": ["float32"]}, "dtype should be one of float32"),
        ({"reshape_activations": "heads"}, "reshape_activations should be one of none, hook_z"),
        ({"reshape_activations": "hook_z"}, None),
    ],
)
def test_saelens_settings(saelens, change, message):
    before = load(saelens).transform(X).toarray()
    edit(saelens / C, lambda c: c.update(change))
    if message is None:
        np.testing.assert_array_equal(load(saelens).transform(X).toarray(), before)
    else:
        with pytest.raises(ValueError, match=message):
            load(saelens)


def test_two_ks_of_dictionary_learning(tmp_path):
    pytest.importorskip("torch")
    folder = Path(shutil.copytree(DATA / "dl-AutoEncoderTopK", tmp_path / "sae"))
    k = load(folder).k
    edit(folder / "config.json", lambda c: c["trainer"].update(k=k + 1))
    with pytest.raises(ValueError, match=f"k is {k}, and {k + 1} in config.json"):
        load(folder)


class Trap:
    """Its pickle makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickles_run_nothing(tmp_path):
    torch = pytest.importorskip("torch")
    sprung = tmp_path / "sprung"
    torch.save({"encoder.weight": Trap(sprung)}, tmp_path / "ae.pt")
    with pytest.raises(ValueError, match="weights_only loader refuses it"):
        load(tmp_path / "ae.pt")
    (tmp_path / "ae.pt").write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(ValueError, match="not a zip archive as torch.save writes"):
        load(tmp_path)
    np.savez(tmp_path / "params.npz", W_enc=np.array([Trap(sprung)], object))
    with pytest.raises(ValueError, match="W_enc: it holds Python objects"):
        load(tmp_path / "params.npz")
    assert not sprung.exists()
    torch.save({"encoder.weight": torch.zeros(1).expand(1 << 20, 1 << 10)}, tmp_path / "ae.pt")
    with pytest.raises(ValueError, match="is not stored in full"):
        load(tmp_path / "ae.pt")
    torch.save([1], tmp_path / "ae.pt")
    with pytest.raises(ValueError, match="expected a dictionary of tensors, found list"):
        load(tmp_path / "ae.pt")
    torch.save({"x": torch.zeros(2)}, tmp_path / "ae.pt")
    with pytest.raises(ValueError, match="cannot be told from its weights"):
        load(tmp_path / "ae.pt")


def test_torch_files_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="install torch, or convert the file where torch is"):
        load(DATA / "dl-AutoEncoder")


def test_old_torch_is_not_used(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(ImportError, match="CVE-2025-32434"):
        load(DATA / "dl-AutoEncoder")


def npz(path, members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def npy(shape="(4, 4)", descr="'<f4'", body=b"\0" * 64, version=b"\x01\x00"):
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * ((-len(text) - 11) % 64) + b"\n"
    size = struct.pack("<H", len(text)) if version == b"\x01\x00" else struct.pack("<I", len(text))
    return b"\x93NUMPY" + version + size + text + body


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"W_enc.npy": npy("(1000000, 1000000)")}, "does not fit its 64 bytes"),
        ({"W_enc.npy": npy("(-4, -4)")}, "impossible shape|not an array"),
        ({"W_enc.npy": npy(descr="'|O'")}, "holds Python objects"),
        ({"W_enc.npy": npy(descr="'<f4', 'x': __import__('os').system('true')")}, "not an array"),
        ({"W_enc.npy": npy(version=b"\x09\x00")}, "not an array"),
        ({"W_enc.npy": npy(body=b"")}, "does not fit its 0 bytes"),
        ({"W_enc.npy": b"nothing"}, "not an array"),
        ({"W_enc.npy": npy(version=b"\x02\x00")}, "no b_enc"),
        ({"W_enc.pkl": b"cos\nsystem\n(S'true'\ntR."}, "unexpected member"),
        ({}, "no W_enc, b_enc"),
    ],
)
def test_damaged_npz(tmp_path, members, message):
    npz(tmp_path / "params.npz", members)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_zip_bombs(tmp_path):
    npz(tmp_path / "params.npz", {"W_enc.npy": b"\0" * (64 << 20)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="it would unpack to 67108864 bytes, far more than its own size"):
        load(tmp_path)
    shutil.move(tmp_path / "params.npz", tmp_path / "ae.pt")
    with pytest.raises(ValueError, match="it would unpack to"):
        load(tmp_path)
    npz(tmp_path / "params.npz", {"W_enc.npy": npy()}, zipfile.ZIP_BZIP2)
    with pytest.raises(ValueError, match="in a way that NumPy does not write"):
        load(tmp_path / "params.npz")


def test_false_sizes_take_no_memory(tmp_path):
    """A member that states 256 KB and holds 1 GB: what it states is all that is unpacked."""
    path, stated = tmp_path / "params.npz", 256 << 10
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("W_enc.npy", "w") as member,
    ):
        for _ in range(1 << 10):
            member.write(b"\0" * (1 << 20))
    data = path.read_bytes()
    assert struct.pack("<I", 1 << 30) in data
    path.write_bytes(data.replace(struct.pack("<I", 1 << 30), struct.pack("<I", stated)))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=re.escape(str(path))):
            load(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "text", ["{'descr': '<f4', 'shape': (", "(" * 8000, "'" * 3, "{'a\\", "lambda: 1", "\0", "{'shape': 1L"]
)
@pytest.mark.parametrize("version", [b"\x01\x00", b"\x02\x00"])
def test_headers_of_any_kind_are_one_error(text, version, tmp_path):
    text = text.encode() + b"\n"
    size = struct.pack("<H", len(text)) if version == b"\x01\x00" else struct.pack("<I", len(text))
    npz(tmp_path / "params.npz", {"W_enc.npy": b"\x93NUMPY" + version + size + text})
    with pytest.raises(ValueError, match="params.npz: not an .npz file of arrays: W_enc: not an array"):
        load(tmp_path)


def atoms_file(path, change):
    """Change tensors and settings of a file of ours."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(path, framework="numpy") as file:
        found, metadata = {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())
    settings = json.loads(metadata["parameters"])
    changed = change(found, settings)
    settings = changed if isinstance(changed, list) else settings
    save_file(found, path, metadata | {"parameters": json.dumps(settings)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t, s: s["parameters"].update(d_sae=10**12),
            "b_enc: expected float32 of shape|W_enc: expected",
        ),
        (lambda t, s: s["parameters"].update(d_sae=0), "d_sae: expected a positive integer"),
        (lambda t, s: s["parameters"].update(activation="gelu"), "activation: expected one of"),
        (lambda t, s: s["parameters"].update(magic=1), "unexpected keyword argument 'magic'"),
        (lambda t, s: s.pop("parameters"), "no 'parameters'"),
        (lambda t, s: s.update(parameters=3), "must be a mapping"),
        (lambda t, s: [1], "its parameters are of type list"),
        (lambda t, s: s.update(n_features_in=7), "n_features_in is 7, b_dec has 6"),
        (lambda t, s: s.update(scale=-1.0), "scale is -1"),
        (lambda t, s: s.update(control={}), "no 'price'"),
        (lambda t, s: s.update(history=[1]), "not what atoms.SparseAutoencoder writes"),
        (lambda t, s: t.pop("W_dec"), "no 'W_dec'"),
        (lambda t, s: t.update(W_dec=t["W_dec"][:-1].copy()), r"W_dec: expected float32 of shape \(12, 6\)"),
        (lambda t, s: t.update(threshold=t["threshold"].astype(float)), "threshold: expected float32"),
        (lambda t, s: t.update(b_enc=t["b_enc"] * np.nan), "b_enc contains NaN or infinity"),
        (lambda t, s: s.update(metric={}), "no 'centered'"),
    ],
)
def test_damaged_files_of_ours(change, message, tmp_path, ours):
    file = shutil.copy(ours[0] / fuzz_io.OURS, tmp_path)
    atoms_file(file, change)
    with pytest.raises(ValueError, match=message):
        load(file)
    with pytest.raises(ValueError, match=re.escape(str(file))):
        atoms.SparseAutoencoder.load(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t, s: t.update(second=t["second"][:, :-1].copy()),
            r"second: expected float64 of shape \(6, 6\)",
        ),
        (lambda t, s: t.update(second=t["second"] * np.inf), "second contains NaN or infinity"),
        (lambda t, s: t.pop("eigenvectors"), "no 'eigenvectors'"),
        (lambda t, s: s.update(n_samples_seen=-1), "n_samples_seen: expected a positive integer"),
        (lambda t, s: s.update(shrinkage="most"), "shrinkage: expected"),
        (lambda t, s: s.update(feature_names=["a"]), "feature_names: expected 6 strings"),
    ],
)
def test_damaged_metrics_of_ours(change, message, tmp_path, ours):
    file = shutil.copy(ours[2] / fuzz_io.OURS, tmp_path)
    atoms_file(file, change)
    with pytest.raises(ValueError, match=message):
        load(file)


# ------------------------------------------------------------------ memory


def large(folder):
    """One model of 4 MB of weights in each kind of file, in float16, the smallest that expands."""
    import torch
    from safetensors.numpy import save_file

    d, s = 256, 4096
    rng = np.random.default_rng(0)
    w = {"W_enc": (d, s), "W_dec": (s, d), "b_enc": (s,), "b_dec": (d,), "threshold": (s,)}
    w = {name: rng.random(shape).astype(np.float16) for name, shape in w.items()}
    for name in ("saelens", "npz", "dl"):
        (folder / name).mkdir()
    config = {"architecture": "jumprelu", "d_in": d, "d_sae": s, "metadata": {"sae_lens_version": "6.0.0"}}
    (folder / "saelens" / "cfg.json").write_text(json.dumps(config))
    save_file(w, folder / "saelens" / "sae_weights.safetensors")
    np.savez(folder / "npz" / "params.npz", **w)
    torch.save({name: torch.from_numpy(a) for name, a in w.items()}, folder / "dl" / "ae.pt")
    return ["saelens", "npz", "dl"]


def test_memory_follows_the_file(tmp_path):
    """At most so many times the file: float32 weights are twice float16's, folding works in float64."""
    pytest.importorskip("torch")
    for name in large(tmp_path):
        size = sum(f.stat().st_size for f in (tmp_path / name).iterdir())
        load(tmp_path / name, is_transcoder=False)  # what is imported once is not the file's
        tracemalloc.start()
        model = load(tmp_path / name, is_transcoder=False)
        held, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert held < 2.5 * size, (name, held / size)
        assert peak < 9 * size, (name, peak / size)
        assert model.d_sae == 4096


def test_a_model_outlives_its_file(saelens):
    sae = load(saelens)
    codes = sae.transform(X).toarray()
    (saelens / W).write_bytes(b"")  # in place: what is still mapped would end the process
    sae.W_enc *= 1
    assert pickle.loads(pickle.dumps(sae)).W_dec.sum() == sae.W_dec.sum()
    np.testing.assert_array_equal(sae.transform(X).toarray(), codes)


def test_empty_sides_promise_nothing(tmp_path):
    """A tensor without elements may have a side of 2^40: nothing of that length is made."""
    from safetensors.numpy import save_file

    n = 2**40
    w = {"W_enc": np.empty((0, n), np.float32), "W_dec": np.empty((n, 0), np.float32),
         "b_enc": np.zeros(1, np.float32), "b_dec": np.empty(0, np.float32), "topk_threshold": np.zeros(())}  # fmt: skip
    save_file(w, tmp_path / "sae_weights.safetensors")
    config = {"architecture": "batchtopk", "metadata": {"sae_lens_version": "6.0.0"}}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="is empty, of shape"):
        load(tmp_path)


def test_other_files(tmp_path):
    (tmp_path / "x.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match="expected a folder, or a .safetensors, .npz or .pt file"):
        load(tmp_path / "x.bin")
    from safetensors.numpy import save_file

    save_file({"a": np.ones(1)}, tmp_path / "x.safetensors", {"format": "atoms", "kind": "Future"})
    with pytest.raises(ValueError, match="written by atoms as Future"):
        load(tmp_path / "x.safetensors")
    (tmp_path / "f8").mkdir()
    text = json.dumps({"w_enc": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "f8" / "params.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"ab")
    with pytest.raises(ValueError, match="w_enc has dtype F8_E4M3; expected F64, F32, F16 or BF16"):
        load(tmp_path / "f8")


@pytest.mark.parametrize("case", sorted(fuzz_io.FUZZ.iterdir()), ids=lambda p: p.name)
def test_what_fuzzing_found(case):
    pytest.importorskip("torch")
    tracemalloc.start()
    try:
        assert not fuzz_io.attempt(case)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


@settings(max_examples=150, deadline=None, database=None)
@given(seed=st.integers(0, 2**32))
def test_fuzz(seed, ours, tmp_path_factory):
    rng = random.Random(seed)
    case = tmp_path_factory.mktemp("fuzz") / "case"
    sources = [m for m in fuzz_io.models() if not m.name.startswith("dl") or "torch" in sys.modules] + ours
    fuzz_io.damage(rng, rng.choice(sources), case)
    fuzz_io.attempt(case)


def test_reading_needs_no_torch():
    code = "import sys, atoms; atoms.load(sys.argv[1]); assert 'torch' not in sys.modules; print('ok')"
    assert run(code, DATA / "saelens-jumprelu") == "ok\n"
