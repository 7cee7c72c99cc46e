"""Capture whose model multiplies in bfloat16."""

import contextlib
import json

import numpy as np
import pytest
import torch
from support import FAST_BFLOAT16, contexts_of, decoder

import atoms
from atoms.activations import Activations, ActivationStore, ActivationStream, capture

bfloat16 = pytest.mark.skipif(not FAST_BFLOAT16, reason="this CPU has no AVX512_BF16")
CONTEXTS = contexts_of([20, 31, 20, 9])


def state(model):
    """All that a capture must leave as it was: weights to the bit and their types, modes, hooks, autocast."""
    weights = [(n, w.dtype, w.detach().clone()) for n, w in model.state_dict().items()]
    modules = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    return weights, modules, torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")


def same_state(model, before):
    weights, *rest = state(model)
    assert rest == list(before[1:])
    for (name, dtype, w), (name2, dtype2, w2) in zip(weights, before[0], strict=True):
        assert (name, dtype) == (name2, dtype2) and torch.equal(w, w2)


def angles(x, y):
    """Degrees between rows."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    cosines = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    return np.degrees(np.arccos(np.clip(cosines, -1, 1)))


@bfloat16
def test_rows_are_those_of_autocast_and_the_model_stays():
    model = decoder(width=32)
    before = state(model)
    plain = capture(model, CONTEXTS, [0, 2], verbose=False)
    found = capture(model, CONTEXTS, [0, 2], compute_dtype="bfloat16", verbose=False)
    same_state(model, before)
    assert plain.compute_dtype is None and found.compute_dtype == "bfloat16" and found[2].dtype == np.float32
    at = 0
    for ids in CONTEXTS:  # each context alone: padding may change the last bits
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            hidden = model.base_model(torch.from_numpy(ids)[None], output_hidden_states=True).hidden_states
        want, got = hidden[1][0, 1:].float().numpy(), found[0][at : at + len(ids) - 1]
        assert angles(want, got).max() < 0.5
        at += len(ids) - 1
    assert 0 < np.median(angles(plain[2], found[2])) < 1
    again = capture(model, CONTEXTS, [0, 2], verbose=False)
    assert np.array_equal(again[2], plain[2])


@bfloat16
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_model_stays_after_an_exception_and_a_cancelled_capture(error):
    model, calls = decoder(), []
    before = state(model)

    def fails(model, ids, mask):
        calls.append(torch.is_autocast_enabled("cpu"))
        if len(calls) == 2:
            raise error("stop")
        return model(input_ids=ids, attention_mask=mask.long())

    with pytest.raises(error, match="stop"):
        capture(model, CONTEXTS, 1, compute_dtype="bfloat16", forward=fails, batch_tokens=31, verbose=False)
    assert calls == [True, True]
    same_state(model, before)


def test_other_types_and_cpus_are_refused(monkeypatch):
    model = decoder()
    for wrong in ("float16", "float32", torch.bfloat16, 16):
        with pytest.raises(ValueError, match=r"compute_dtype: expected None .* or 'bfloat16'"):
            capture(model, CONTEXTS, 1, compute_dtype=wrong, verbose=False)
    monkeypatch.setenv("ATOMS_ISA", "portable")
    for call in (capture, ActivationStream):
        with pytest.raises(
            ValueError, match="CPUs with AVX512_BF16, and this one may use portable.*leave it out"
        ):
            call(model, CONTEXTS, 1, compute_dtype="bfloat16")
    assert capture(model, CONTEXTS, 1, verbose=False).compute_dtype is None


@bfloat16
def test_a_store_says_in_what_it_was_computed(tmp_path):
    model = decoder()
    options = {"batch_tokens": 31, "verbose": False}
    store = capture(model, CONTEXTS, 1, store=tmp_path / "b", compute_dtype="bfloat16", **options)
    assert store.manifest["compute_dtype"] == "bfloat16"
    with pytest.raises(ValueError, match="compute_dtype is bfloat16, now None; use those, or name another"):
        capture(model, CONTEXTS, 1, store=tmp_path / "b", **options)
    plain = capture(model, CONTEXTS, 1, store=tmp_path / "f", **options)
    with pytest.raises(ValueError, match="compute_dtype is None, now bfloat16"):
        capture(model, CONTEXTS, 1, store=tmp_path / "f", compute_dtype="bfloat16", **options)
    assert plain[1].digest() != store[1].digest()
    stream = ActivationStream(model, CONTEXTS, 1, compute_dtype="bfloat16", batch_tokens=31)
    assert stream.digest() == store[1].digest()
    rows = np.concatenate([block.copy() for block in stream.blocks()])
    assert np.array_equal(rows, np.asarray(store[1]))
    assert not np.array_equal(rows, np.asarray(plain[1]))


def test_a_store_of_before_goes_on(tmp_path):
    model = decoder()
    first = capture(model, CONTEXTS, 1, store=tmp_path, verbose=False)
    manifest = json.loads((tmp_path / "store.json").read_text())
    del manifest["compute_dtype"]
    (tmp_path / "store.json").write_text(json.dumps(manifest))
    assert capture(model, CONTEXTS, 1, store=tmp_path, verbose=False)[1].digest() == first[1].digest()


@bfloat16
def test_a_folder_of_rows_says_it_too(tmp_path):
    model = decoder()
    capture(model, CONTEXTS, 1, compute_dtype="bfloat16", out=tmp_path, verbose=False)
    assert Activations.load(tmp_path).compute_dtype == "bfloat16"
    assert Activations.load(tmp_path).without_massive().compute_dtype == "bfloat16"
    manifest = json.loads((tmp_path / "activations.json").read_text())
    for said, read in ((None, None), ("no such type", ValueError)):
        (tmp_path / "activations.json").write_text(json.dumps({**manifest, "compute_dtype": said}))
        with pytest.raises(ValueError) if read else contextlib.nullcontext():
            assert Activations.load(tmp_path).compute_dtype is None


@bfloat16
@pytest.mark.slow
def test_smollm2_in_bfloat16(smollm2, tmp_path):
    model, tokenizer = smollm2
    text = atoms.activations.language_reference()
    contexts = atoms.activations.tokenize(text, tokenizer, context_length=64, max_tokens=1500)
    before = state(model)
    plain = capture(model, contexts, 15, verbose=False)
    store = capture(
        model, contexts, 15, compute_dtype="bfloat16", store=tmp_path, shard_mb=0.5, verbose=False
    )
    same_state(model, before)
    found = angles(plain[15], np.asarray(store[15]))
    assert 0.05 < np.median(found) < 0.6 and np.percentile(found, 99) < 2
    last = store.manifest["shards"][-1]
    assert last is not store.manifest["shards"][0]
    rows = np.asarray(store[15])
    ActivationStore.discard(tmp_path, 1)  # goes on with the same bits
    again = capture(
        model, contexts, 15, compute_dtype="bfloat16", store=tmp_path, shard_mb=0.5, verbose=False
    )
    assert np.array_equal(np.asarray(again[15]), rows)
