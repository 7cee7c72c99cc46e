"""Stores of activations on disk and streams from running models: bytes, order, and what training makes of them."""

import io
import json
import os
import pickle
import signal
import subprocess
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import ROOT, VOCABULARY, Stop, decoder, random_contexts, started, stop_after

import atoms
from atoms import activations
from atoms._rows import BlockSampler, BlockSource, Sampler
from atoms.activations import ActivationStore, ActivationStream, capture, load_model
from atoms.sae._model import FIELDS


@pytest.fixture(scope="module")
def model():
    return decoder()


@pytest.fixture(scope="module")
def contexts():
    return random_contexts(60)


@pytest.fixture(scope="module")
def store(model, contexts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    return capture(model, contexts, [2, 0], store=folder, batch_tokens=128, shard_mb=0.03, verbose=False)


@pytest.fixture(scope="module")
def in_memory(model, contexts):
    return capture(model, contexts, [2, 0], batch_tokens=128, verbose=False)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


# ------------------------------------------------------------------ what is on disk


def test_rows_are_what_capture_gives(store, in_memory):
    assert len(store.manifest["shards"]) >= 4 and store.keys == [(2, "residual"), (0, "residual")]
    for layer in (0, 2):
        np.testing.assert_array_equal(np.asarray(store[layer]), in_memory[layer])
        np.testing.assert_array_equal(np.concatenate(store[layer].shards), in_memory[layer])
        np.testing.assert_array_equal(store.norms(layer), in_memory.norms[layer, "residual"])
    for name in ("token_ids", "contexts", "positions"):
        np.testing.assert_array_equal(getattr(store, name), getattr(in_memory, name))
    np.testing.assert_array_equal(store[2][[5, 1700, 3]], in_memory[2][[5, len(store) and 1700, 3]])
    np.testing.assert_array_equal(store[2][-4:], in_memory[2][-4:])
    np.testing.assert_array_equal(store[2, "residual"][7], in_memory[2][7])
    with pytest.raises(KeyError, match="no activations of layer 1 ; captured were: 2 residual, 0 residual"):
        store[1]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_dtypes(model, contexts, tmp_path, dtype):
    narrow = capture(model, contexts, 1, store=tmp_path, dtype=dtype, batch_tokens=128, verbose=False)
    want = capture(model, contexts, 1, dtype=dtype, batch_tokens=128, verbose=False)[1]
    assert narrow[1].dtype == want.dtype and narrow[1].shape == want.shape
    np.testing.assert_array_equal(np.asarray(narrow[1]), want)
    got = np.concatenate(list(narrow[1].batches(100, seed=1)))
    np.testing.assert_array_equal(got, want[narrow[1].order(1)])
    sae = {"d_sae": 24, "target_l0": 3, "max_steps": 20, "batch_size": 64, "verbose": False}
    a = atoms.SparseAutoencoder(**sae).fit(narrow[1])
    b = atoms.SparseAutoencoder(**sae).fit(want)
    np.testing.assert_array_equal(a.W_dec, b.W_dec)


def test_manifest_says_where_it_comes_from(model, contexts, tmp_path, tiny):
    loaded, tokenizer = load_model(tiny)
    ids = [c % 20 for c in contexts]
    store = capture(
        loaded, ids, [0, 1], site=["residual", "mlp"], tokenizer=tokenizer, store=tmp_path, verbose=False
    )
    manifest = json.loads((tmp_path / "store.json").read_text())
    assert manifest["model"]["class"] == "LlamaModel" and manifest["model"]["name"] == str(tiny)
    assert "revision" in manifest["model"] and len(manifest["model"]["weights_sha256"]) == 64
    assert manifest["tokenizer"]["vocabulary"] == 20
    assert manifest["tokens"]["contexts"] == 60 and len(manifest["tokens"]["sha256"]) == 64
    assert [p["hook"] for p in manifest["points"]] == ["layers.0", "layers.1", "layers.0.mlp", "layers.1.mlp"]
    assert manifest["dtype"] == "float32" and all(
        len(f["sha256"]) == 64 for f in manifest["shards"][0]["files"].values()
    )
    assert repr(store).startswith("ActivationStore(")
    for name in ("model", "other"):
        other = decoder() if name == "model" else loaded
        tokens = ids if name == "model" else random_contexts(60, seed=1)
        with pytest.raises(ValueError, match=r"written with other settings: (model class|tokens)"):
            capture(
                other,
                [c % 20 for c in tokens],
                [0, 1],
                site=["residual", "mlp"],
                store=tmp_path,
                verbose=False,
            )
    with torch.no_grad():
        loaded.layers[0].mlp.up_proj.weight[0, 0] += 1
    with pytest.raises(ValueError, match="other settings: model weights_sha256"):
        capture(loaded, ids, [0, 1], site=["residual", "mlp"], store=tmp_path, verbose=False)


def test_a_store_is_of_all_weights(contexts, tmp_path):
    """Whatever single weight differs, a store is not opened again: rows are this model's or there is an error."""
    model = decoder()
    arguments = {"store": tmp_path, "batch_tokens": 128, "verbose": False}
    before = np.asarray(capture(model, contexts, 1, **arguments)[1])
    block = model.model.layers[0]
    for weight, column in ((block.mlp.down_proj.weight, 5), (block.self_attn.o_proj.weight, slice(8, 16))):
        kept = weight.detach().clone()
        with torch.no_grad():
            weight[:, column] = 0  # a neuron, an attention head
        assert np.abs(capture(model, contexts, 1, batch_tokens=128, verbose=False)[1] - before).max() > 1e-4
        with pytest.raises(ValueError, match="other settings: model weights_sha256"):
            capture(model, contexts, 1, **arguments)
        with torch.no_grad():
            weight.copy_(kept)
    np.testing.assert_array_equal(np.asarray(capture(model, contexts, 1, **arguments)[1]), before)
    digests = set()
    for weight in model.parameters():  # first and last entries, and the smallest change
        for i in (0, -1):
            flat = weight.detach().view(-1)
            kept = flat[i].clone()
            flat[i] = torch.nextafter(kept, kept + 1)
            digests.add(activations.Model(model).describe()["weights_sha256"])
            flat[i] = kept
    assert len(digests) == 2 * len(list(model.parameters()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_any_type_are_told_apart(dtype):
    model = torch.nn.Sequential(torch.nn.Embedding(5, 3), torch.nn.Linear(3, 4).to(dtype))
    model.register_buffer("steps", torch.tensor(7), persistent=False)
    model.register_buffer("mask", torch.ones(3, 2, dtype=torch.bool).T)
    model.register_buffer("none", torch.empty(0, 3))
    seen = {activations.Model(model).describe()["weights_sha256"]}
    with torch.no_grad():
        for change in (model.steps.add_, lambda one: model.mask[0, 0].logical_not_(), model[1].bias[1:].add_):
            change(1)
            seen.add(activations.Model(model).describe()["weights_sha256"])
    assert len(seen) == 4
    with pytest.raises(ValueError, match="store: the model's 0.weight is not in memory"):
        activations.Model(model.to("meta")).describe()


def test_hooks_that_a_store_could_not_tell_are_refused(contexts, tmp_path):
    model = decoder()
    model(torch.tensor([[1, 2]]), output_hidden_states=True)  # Transformers leaves hooks of its own
    arguments = {"store": tmp_path, "batch_tokens": 128, "verbose": False}
    store = capture(model, contexts, 1, **arguments)
    mlp = model.model.layers[0].mlp

    def ablate(module, inputs, output=None):
        return inputs if output is None else output * 0

    def see(module, inputs, output):
        pass

    def replaced():
        mlp.forward = lambda x: x * 0
        return lambda: delattr(mlp, "forward")

    for put, what in (
        (lambda: mlp.register_forward_hook(ablate).remove, "a forward hook of model.layers.0.mlp .*ablate"),
        (lambda: mlp.register_forward_pre_hook(ablate).remove, "a forward pre-hook of model.layers.0.mlp"),
        (
            lambda: torch.nn.modules.module.register_module_forward_hook(see).remove,
            "a global forward hook",
        ),
        (replaced, "a forward method of model.layers.0.mlp that is not its class's"),
    ):
        remove = put()
        try:
            with pytest.raises(ValueError, match=f"store: {what}.*remove it, or capture without store"):
                capture(model, contexts, 1, **arguments)
            capture(model, contexts[:2], 1, verbose=False)  # rows with them, in memory
        finally:
            remove()
    with pytest.raises(ValueError, match=r"other settings: forward is None, now .*<lambda>"):
        capture(model, contexts, 1, forward=lambda model, ids, mask: model(input_ids=ids), **arguments)
    assert len(capture(model, contexts, 1, **arguments)) == len(store)


def test_stores_of_before_are_read_but_not_taken_for_the_model_s(copy, model, contexts, in_memory):
    manifest = json.loads((copy / "store.json").read_text())
    manifest["model"]["weights_sample_sha256"] = manifest["model"].pop("weights_sha256")
    del manifest["forward"]
    (copy / "store.json").write_text(json.dumps(manifest))
    np.testing.assert_array_equal(np.asarray(ActivationStore(copy, verify=True)[2]), in_memory[2])
    with pytest.raises(
        ValueError, match=r"written by an earlier version.*ActivationStore\(folder\) opens it"
    ):
        capture_again(model, contexts, copy)


def test_a_finished_store_is_opened(model, contexts, store):
    before = {p: (store.folder / p).stat().st_mtime_ns for p in names(store.folder)}
    again = capture(model, contexts, [2, 0], store=store.folder, batch_tokens=128, verbose=False)
    assert len(again) == len(store)
    changed = [p for p, t in before.items() if (store.folder / p).stat().st_mtime_ns != t]
    assert changed in ([], [".lock"])


def test_bad_arguments(model, contexts, tmp_path):
    for change, message in [
        ({"massive": "drop"}, "a store keeps them"),
        ({"out": tmp_path / "o"}, "one of the two"),
        ({"shard_mb": 0}, "shard_mb"),
        ({"batch_tokens": 0}, "batch_tokens"),
    ]:
        with pytest.raises(ValueError, match=message):
            capture(model, contexts, 0, store=tmp_path / "s", verbose=False, **change)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file"):
        capture(model, contexts, 0, store=tmp_path / "file", verbose=False)
    with pytest.raises(FileNotFoundError, match="not an activation store"):
        ActivationStore(tmp_path)


# ------------------------------------------------------------------ kills

WRITER = """
import sys, time
from support import decoder, random_contexts
from atoms.activations import capture
from atoms.activations import _store
hang = int(sys.argv[2])
real = _store.checked_norms
seen = [0]
def slow(*arguments):
    seen[0] += 1
    if seen[0] == hang:
        print("here", flush=True)
        time.sleep(600)  # in the middle of a shard: the kill comes now
    return real(*arguments)
_store.checked_norms = slow
store = capture(decoder(), random_contexts(60), [2, 0], store=sys.argv[1], batch_tokens=128, shard_mb=0.03, verbose=False)
print("done", flush=True)
"""


def run_writer(folder, hang):
    tests = str(ROOT / "tests")
    return started(WRITER, folder, hang, strict=False, stdout=subprocess.PIPE, PYTHONPATH=tests)


@pytest.mark.slow
def test_a_killed_capture_goes_on(store, model, contexts, tmp_path):
    for hang in (11, 16):  # killed twice, in different shards
        with run_writer(tmp_path, hang) as writer:
            try:
                assert writer.stdout.readline() == "here\n"
                with pytest.raises(ValueError, match="another process is writing"):
                    capture_again(model, contexts, tmp_path)
            finally:
                writer.send_signal(signal.SIGKILL)
            assert writer.wait() == -signal.SIGKILL
        assert [n for n in names(tmp_path) if n.endswith(".part")]
        with pytest.raises(FileNotFoundError, match=r"\d+ of \d+ batches captured; call the same capture"):
            ActivationStore(tmp_path)
    finished = len(json.loads((tmp_path / "store.json").read_text())["shards"])
    assert 0 < finished < len(store.manifest["shards"])
    kept = (tmp_path / "layer000-residual-00000.npy").stat().st_mtime_ns
    again = capture(model, contexts, [2, 0], store=tmp_path, batch_tokens=128, shard_mb=0.03, verbose=False)
    assert (tmp_path / "layer000-residual-00000.npy").stat().st_mtime_ns == kept
    assert names(tmp_path) == names(store.folder)
    assert again.manifest["shards"] == store.manifest["shards"]  # with every file's SHA-256
    again.verify()


# ------------------------------------------------------------------ damage


@pytest.fixture
def copy(store, tmp_path):
    for path in store.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def capture_again(model, contexts, folder):
    return capture(model, contexts, [2, 0], store=folder, batch_tokens=128, shard_mb=0.03, verbose=False)


@pytest.mark.parametrize("damage", ["truncated", "missing", "longer"])
def test_wrong_sizes_are_seen_when_opening(copy, damage, model, contexts, store):
    path = copy / "layer002-residual-00001.npy"
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data[:-100] if damage == "truncated" else data + b"1")
    message = r"layer002-residual-00001.npy: (is missing|has \d+ bytes, expected \d+); .*discard\(folder, 1\)"
    with pytest.raises(ValueError, match=message):
        ActivationStore(copy)
    with pytest.raises(ValueError, match=message):
        capture_again(model, contexts, copy)
    ActivationStore.discard(copy, 1)
    assert not (copy / "index-00001.npz").exists() and (copy / "index-00000.npz").exists()
    assert capture_again(model, contexts, copy).manifest["shards"] == store.manifest["shards"]
    with pytest.raises(ValueError, match="has shards 0 to"):
        ActivationStore.discard(copy, 99)


def test_a_flipped_bit_is_seen_when_reading(copy, in_memory):
    path = copy / "layer000-residual-00002.npy"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    opened = ActivationStore(copy)
    np.testing.assert_array_equal(np.asarray(opened[2]), in_memory[2])  # the other layer is well
    for read in (
        lambda: np.asarray(opened[0]),
        lambda: list(opened[0].batches(64)),
        lambda: atoms.SparseAutoencoder(16, target_l0=2, max_steps=50, verbose=False).fit(opened[0]),
    ):
        with pytest.raises(
            ValueError, match=r"layer000-residual-00002.npy: is damaged in block \d+; restore it"
        ):
            read()
    for check in (opened.verify, lambda: ActivationStore(copy, verify=True)):
        with pytest.raises(ValueError, match=r"layer000-residual-00002.npy: is damaged \(SHA-256"):
            check()
    assert not [t for t in threading.enumerate() if t.name == "atoms-read"]


def test_damaged_index_and_manifest(copy):
    path = copy / "index-00001.npz"
    data = bytearray(path.read_bytes())
    for i in range(0, len(data), 50):
        data[i] ^= 255
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"index-00001.npz: is damaged .*discard"):
        len(ActivationStore(copy).token_ids)
    manifest = (copy / "store.json").read_text()
    for text, message in [
        (manifest[:300], "not the manifest"),
        ("[1]", "not the manifest"),
        (manifest.replace('"version": 1', '"version": 7'), "version 7, this release reads version 1"),
    ]:
        (copy / "store.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            ActivationStore(copy)


@pytest.mark.parametrize(
    "name", ["/absolute", "../outside/thesis.tex", "thesis.tex", "store.json", ".", "", 7]
)
@pytest.mark.parametrize("which", ["layer002-residual", "index"])
def test_a_manifest_names_only_files_of_its_own(copy, model, contexts, name, which):
    outside = copy / "outside"
    outside.mkdir()
    victims = [outside / "thesis.tex", copy / "thesis.tex", copy / "store.json"]
    manifest = json.loads(victims[2].read_text())
    manifest["shards"][1]["files"][which]["name"] = str(victims[0]) if name == "/absolute" else name
    for victim in victims:
        victim.write_text(json.dumps(manifest))
    opened = copy / "store" if name == "../outside/thesis.tex" else copy
    if opened != copy:
        opened.mkdir()
        victims[2].rename(opened / "store.json")
        victims[2] = opened / "store.json"
    before = names(copy)
    for act in (
        lambda: ActivationStore(opened),
        lambda: ActivationStore.discard(opened, 0),
        lambda: capture_again(model, contexts, opened),
    ):
        with pytest.raises(ValueError, match=r"store.json: not what atoms.ActivationStore writes"):
            act()
    assert names(copy) == before and all(victim.exists() for victim in victims)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("shards", 0, "rows"), 10**12),
        (("shards", 0, "rows"), "7"),
        (("shards", 0, "blocks"), [2**70]),
        (("shards", 0, "crc32", "layer000-residual"), []),
        (("shards", 0, "files"), {}),
        (("shards", 0, "files", "index", "bytes"), -1),
        (("shards",), {"0": 1}),
        (("shards",), 7),
        (("widths", "layer000-residual"), 10**15),
        (("widths",), []),
        (("points", 0, "layer"), "../../x"),
        (("points", 0, "name"), "layer001-residual"),
        (("points",), None),
        (("dtype",), "float64"),
        (("complete",), "no"),
        (("tokens",), 3),
    ],
)
def test_manifests_that_cannot_be(copy, path, value):
    manifest = json.loads((copy / "store.json").read_text())
    inner = manifest
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = value
    (copy / "store.json").write_text(json.dumps(manifest))
    for act in (ActivationStore, lambda folder: ActivationStore.discard(folder, 0)):
        with pytest.raises(ValueError, match=r"store.json: not what atoms.ActivationStore writes"):
            act(copy)


def test_flipped_bytes_are_seen_wherever_rows_are_read(copy, in_memory, tmp_path):
    path = copy / "layer000-residual-00001.npy"
    data = bytearray(path.read_bytes())
    data[-5] ^= 64  # an exponent: a plausible number
    path.write_bytes(data)
    opened = ActivationStore(copy)
    sae = atoms.SparseAutoencoder(24, target_l0=3, max_steps=5, verbose=False).fit(in_memory[0])
    last = sum(shard["rows"] for shard in opened.manifest["shards"][:2]) - 1
    for read in (
        lambda rows: rows[last],
        lambda rows: rows[: last + 1],
        lambda rows: rows[[0, last]],
        lambda rows: rows.shards,
        sae.transform,
        lambda rows: sae.transform(rows.held_out()[0]),
        lambda rows: atoms.AtomicInnerProduct().fit(rows),
    ):
        with pytest.raises(ValueError, match=r"layer000-residual-00001.npy: is damaged in block"):
            read(opened[0])
    np.testing.assert_array_equal(opened[0][:5], in_memory[0][:5])  # blocks that are well
    np.testing.assert_array_equal(opened[0][np.array([], int)], in_memory[0][:0])


def test_an_index_of_well_formed_lies_is_seen(copy):
    path = copy / "index-00001.npz"
    with np.load(path) as found:
        columns = dict(found)
    columns["token_ids"][3] += 1
    packed = io.BytesIO()
    np.savez(packed, **columns)
    assert len(packed.getvalue()) == path.stat().st_size
    path.write_bytes(packed.getvalue())
    for read in (lambda s: s.token_ids, lambda s: s.norms(0)):
        with pytest.raises(ValueError, match=r"index-00001.npz: is damaged \(SHA-256 .*discard"):
            read(ActivationStore(copy))


def test_a_file_cut_while_it_is_read(copy):
    opened = ActivationStore(copy)
    rows = opened[0]
    os.truncate(copy / "layer000-residual-00001.npy", 300)
    with pytest.raises(ValueError, match=r"00001.npy: ends after \d+ bytes"):
        np.asarray(rows)


# ------------------------------------------------------------------ order


class ArrayBlocks(BlockSource):
    """An array as blocks."""

    def __init__(self, array, sizes, buffer_rows):
        self.array, self.sizes, self.buffer_rows = array, np.asarray(sizes, np.int64), buffer_rows
        self.n, self.d, self.dtype = len(array), array.shape[1], array.dtype
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.reads = []

    def read(self, block, out):
        self.reads.append(block)
        out[...] = self.array[self.starts[block] : self.starts[block] + self.sizes[block]]


sizes = st.lists(st.integers(1, 30), min_size=1, max_size=25)


@settings(deadline=None, max_examples=60)
@given(sizes, st.integers(1, 200), st.integers(1, 70), st.integers(0, 5), st.integers(0, 3))
def test_order_is_an_exact_permutation(sizes, buffer_rows, batch, seed, epoch):
    n = sum(sizes)
    rows = np.arange(n, dtype=np.float32)[:, None]
    source = ArrayBlocks(rows, sizes, buffer_rows)
    order = source.order(seed, epoch)
    np.testing.assert_array_equal(np.sort(order), np.arange(n))
    got = np.concatenate(list(source.batches(batch, seed, epoch)))
    np.testing.assert_array_equal(got, rows[order])
    block = np.repeat(np.arange(len(sizes)), sizes)
    groups = source.groups(seed, epoch)
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(sizes)))
    for g in groups:
        inside = np.isin(block[order], g)
        assert inside.sum() == source.sizes[g].sum() <= buffer_rows + max(sizes)
        assert np.ptp(np.flatnonzero(inside)) == inside.sum() - 1  # a group is one stretch of the epoch
    if n <= buffer_rows:  # as for an array in memory
        sampler = Sampler(n, n, [seed], epoch)
        np.testing.assert_array_equal(order, sampler.next())


@settings(deadline=None, max_examples=40)
@given(sizes, st.integers(1, 200), st.integers(1, 70), st.integers(0, 30), st.booleans())
@example([1, 2], 2, 1, 6, False)  # one group in one epoch, two in the next
def test_skip_goes_where_drawing_goes(sizes, buffer_rows, batch, skip, first):
    source = ArrayBlocks(np.arange(sum(sizes), dtype=np.float32)[:, None], sizes, buffer_rows)

    def draws(skipped):
        sampler = BlockSampler(source, batch, [3])
        try:
            if first:
                sampler.first()
            if skipped:
                sampler.skip(skip)
            else:
                for _ in range(skip):
                    sampler.draw()
            out = []
            for _ in range(4):
                rows, index = sampler.draw()
                out.append(rows.copy() if index is None else rows[index])
                assert len(out[-1]) == batch
            return out
        finally:
            sampler.close()

    for a, b in zip(draws(True), draws(False), strict=True):
        np.testing.assert_array_equal(a, b)


def test_mixing_is_as_stated():
    """Pairs of one block in a batch: m (m - 1) / 2 * (b - 1) / (s - 1) on average."""
    b, blocks, s, m = 50, 200, 1000, 64
    source = ArrayBlocks(np.zeros((b * blocks, 1), np.float32), [b] * blocks, s)
    pairs = []
    for epoch in range(40):
        block = source.order(0, epoch) // b
        for start in range(0, len(block) - m + 1, m):
            if start // s == (start + m - 1) // s:
                counts = np.bincount(block[start : start + m])
                pairs.append((counts * (counts - 1) / 2).sum())
    expected = m * (m - 1) / 2 * (b - 1) / (s - 1)
    assert abs(np.mean(pairs) / expected - 1) < 0.02
    first = np.array([source.order(0, epoch)[0] for epoch in range(400)])
    assert abs(first.mean() / (b * blocks) - 0.5) < 4 * 0.289 / 20  # any row may come first


def test_nothing_is_read_that_will_not_be_drawn():
    """A running model is not run for rows of an epoch that training does not reach."""
    source = ArrayBlocks(np.zeros((100, 4), np.float32), [10] * 10, 25)
    sampler = BlockSampler(source, 10, [0], last=60)
    try:
        for _ in range(6):
            sampler.draw()
        assert len(source.reads) == sum(len(blocks) for blocks in source.groups([0], 0)[:3])
        with pytest.raises(IndexError, match="beyond number 60"):
            for _ in range(3):
                sampler.draw()
    finally:
        sampler.close()
    source = ArrayBlocks(np.arange(400, dtype=np.float32).reshape(100, 4), [10] * 10, 25)
    atoms.SparseAutoencoder(4, target_l0=2, max_steps=10, batch_size=10, verbose=False).fit(source)
    assert len(source.reads) == 10


def test_memory_is_two_buffers():
    """Reading runs ahead by one group, and no further."""
    source = ArrayBlocks(np.zeros((1000, 4), np.float32), [10] * 100, 100)
    sampler = BlockSampler(source, 10, [0])
    try:
        sampler.draw()
        deadline = time.time() + 10
        while len(source.reads) < 20 and time.time() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert len(source.reads) == 20
        for _ in range(10):
            sampler.draw()
        deadline = time.time() + 10
        while len(source.reads) < 30 and time.time() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert len(source.reads) == 30
    finally:
        sampler.close()
    assert not sampler._thread


def test_bad_batches(store):
    with pytest.raises(ValueError, match="batch_size"):
        next(store[0].batches(0))
    with pytest.raises(ValueError, match="buffer_rows"):
        store.rows(0, buffer_rows=0)


def test_held_out_is_whole_contexts(store, in_memory):
    train, test = store[2].held_out(0.25)
    assert len(train) + len(test) == len(store) and 0.1 < len(test) / len(store) < 0.4
    a, b = store.contexts[train.row_numbers], store.contexts[test.row_numbers]
    assert not set(a) & set(b)
    for part in (train, test):
        want = in_memory[2][part.row_numbers]
        np.testing.assert_array_equal(np.asarray(part), want)
        np.testing.assert_array_equal(np.concatenate(part.shards), want)
        np.testing.assert_array_equal(part[::7], want[::7])
        np.testing.assert_array_equal(np.concatenate(list(part.batches(33))), want[part.order()])
    for bad, message in [({"fraction": 0}, "fraction"), ({"n_chunks": 1}, "n_chunks")]:
        with pytest.raises(ValueError, match=message):
            store[2].held_out(**bad)


def test_rows_survive_pickling(store):
    again = pickle.loads(pickle.dumps(store[2]))
    np.testing.assert_array_equal(np.asarray(again), np.asarray(store[2]))


# ------------------------------------------------------------------ training

SAE = {"d_sae": 48, "target_l0": 4, "max_steps": 120, "batch_size": 100, "verbose": False, "random_state": 3}


def same(a, b):
    for name in FIELDS[:-1]:
        np.testing.assert_array_equal(a._model.get(name), b._model.get(name))
    assert a.history_["loss"] == b.history_["loss"]


@pytest.mark.parametrize("activation", ["jumprelu", "batchtopk"])
def test_training_equals_the_array(store, in_memory, activation):
    """All rows fit the buffer: the bits of fit(array). Memory maps: whatever the size."""
    want = atoms.SparseAutoencoder(**SAE, activation=activation).fit(in_memory[2])
    same(atoms.SparseAutoencoder(**SAE, activation=activation).fit(store[2]), want)
    same(atoms.SparseAutoencoder(**SAE, activation=activation).fit(store[2].shards), want)
    np.testing.assert_array_equal(want.transform(store[2]).toarray(), want.transform(in_memory[2]).toarray())


def test_training_through_a_small_buffer(store, in_memory, model, contexts):
    """More rows than the buffer: the store, the same array in that order, and the running model agree."""
    rows = store.rows(2, buffer_rows=500)
    assert len(rows.groups(3, 0)) > 3
    want = atoms.SparseAutoencoder(**SAE).fit(ArrayBlocks(in_memory[2], rows.sizes, 500))
    same(atoms.SparseAutoencoder(**SAE).fit(rows), want)
    stream = ActivationStream(model, contexts, 2, batch_tokens=128, buffer_rows=500)
    assert stream.shape == rows.shape and (stream.sizes == rows.sizes).all()
    same(atoms.SparseAutoencoder(**SAE).fit(stream), want)
    other = atoms.SparseAutoencoder(**SAE).fit(store[2])
    assert not np.array_equal(other.W_dec, want.W_dec)
    assert not [t for t in threading.enumerate() if t.name == "atoms-read"]
    assert not any(m._forward_hooks for m in model.modules())


def test_stream_that_fits_the_buffer_runs_the_model_once(model, contexts, in_memory, monkeypatch):
    stream = ActivationStream(model, contexts, 2, batch_tokens=128)
    ran = []
    read = ActivationStream.read
    monkeypatch.setattr(ActivationStream, "read", lambda self, b, out: (ran.append(b), read(self, b, out)))
    same(atoms.SparseAutoencoder(**SAE).fit(stream), atoms.SparseAutoencoder(**SAE).fit(in_memory[2]))
    assert sorted(ran) == list(range(len(stream.sizes)))
    assert SAE["max_steps"] * SAE["batch_size"] > 3 * len(stream)  # several epochs


def test_training_with_a_metric(store, in_memory, model, contexts):
    aip = atoms.AtomicInnerProduct().fit(in_memory[2])
    from_stream = atoms.AtomicInnerProduct()
    for block in ActivationStream(model, contexts, 2, batch_tokens=128).blocks():
        from_stream.partial_fit(block)
    np.testing.assert_allclose(
        from_stream.metric_, aip.metric_, rtol=1e-9, atol=1e-12 * np.abs(aip.metric_).max()
    )
    rows = store.rows(2, buffer_rows=500)
    stream = ActivationStream(model, contexts, 2, batch_tokens=128, buffer_rows=500)
    same(*(atoms.SparseAutoencoder(**SAE, metric=aip).fit(x) for x in (rows, stream)))


@pytest.mark.parametrize("source", ["store", "stream", "shards"])
def test_massive_rows_dropped_where_they_are_read_are_those_that_capture_drops(contexts, tmp_path, source):
    model = decoder()
    with torch.no_grad():  # token 7 enters the stream with a norm far above the others
        model.base_model.embed_tokens.weight[7] *= 1000
    want = capture(model, contexts, 2, batch_tokens=128, massive="drop", verbose=False)
    kept = capture(model, contexts, 2, batch_tokens=128, store=tmp_path / "store", verbose=False)[2]
    rows = kept.shards if source == "shards" else kept
    if source == "stream":
        rows = ActivationStream(model, contexts, 2, batch_tokens=128)
    assert want.n_dropped_massive > 5
    with pytest.warns(
        UserWarning, match=r"fit\(..., massive='drop'\) leaves them out, wherever the rows are"
    ):
        atoms.AtomicInnerProduct(shrinkage=0.1).fit(rows)
    sae = atoms.SparseAutoencoder(**SAE).fit(rows, massive="drop")
    same(sae, atoms.SparseAutoencoder(**SAE).fit(want[2]))
    metric = atoms.AtomicInnerProduct(shrinkage=0.1).fit(rows, massive="drop")
    ready = atoms.AtomicInnerProduct(shrinkage=0.1).fit(want[2])
    np.testing.assert_allclose(metric.whitener_, ready.whitener_, rtol=1e-8, atol=1e-10)
    assert sae.n_dropped_massive_ == metric.n_dropped_massive_ == want.n_dropped_massive


@pytest.mark.parametrize("source", ["store", "stream"])
def test_resumed_training(store, model, contexts, tmp_path, source):
    def rows():
        if source == "store":
            return store.rows(2, buffer_rows=500)
        return ActivationStream(model, contexts, 2, batch_tokens=128, buffer_rows=500)

    whole = atoms.SparseAutoencoder(**SAE).fit(rows())

    path = tmp_path / "half.safetensors"
    with pytest.raises(Stop):
        atoms.SparseAutoencoder(**SAE).fit(
            rows(), checkpoint=path, checkpoint_steps=40, callback=stop_after(47)
        )
    same(atoms.SparseAutoencoder(**SAE).fit(rows(), checkpoint=path), whole)


@pytest.mark.parametrize("source", ["store", "stream"])
def test_a_checkpoint_knows_its_store_or_stream(store, model, contexts, tmp_path, source):
    def rows(kind, layer, contexts=contexts):
        if kind == "store":
            return store.rows(layer, buffer_rows=500)
        return ActivationStream(model, contexts, layer, batch_tokens=128, buffer_rows=500)

    path = tmp_path / "run.safetensors"
    sae = atoms.SparseAutoencoder(**SAE).fit(rows(source, 2), checkpoint=path)
    for kind in ("store", "stream"):  # they are the same rows
        same(atoms.SparseAutoencoder(**SAE).fit(rows(kind, 2), checkpoint=path), sae)
        with pytest.raises(ValueError, match="checkpoint: .* its rows differ"):
            atoms.SparseAutoencoder(**SAE).fit(rows(kind, 0), checkpoint=path)
    with pytest.raises(ValueError, match="checkpoint: .* other data"):
        atoms.SparseAutoencoder(**SAE).fit(rows("stream", 2, contexts[::-1]), checkpoint=path)


def test_errors_of_the_model_reach_the_caller(contexts):
    broken = decoder()
    stream = ActivationStream(broken, contexts, 2, batch_tokens=128)
    with torch.no_grad():
        broken.model.embed_tokens.weight[5] = float("nan")
    with pytest.raises(ValueError, match="layer 2 residual: the model gave NaN or infinity at row"):
        atoms.SparseAutoencoder(**SAE).fit(stream)
    assert not [t for t in threading.enumerate() if t.name == "atoms-read"]
    with pytest.raises(ValueError, match="one layer at one site, got 2"):
        ActivationStream(decoder(), contexts, [0, 1])


# ------------------------------------------------------------------ any model


class HookPoint(torch.nn.Module):
    def forward(self, x):
        return x


class Block(torch.nn.Module):
    def __init__(self, d):
        super().__init__()
        self.mlp = torch.nn.Linear(d, d)
        self.hook_z, self.hook_mlp_out, self.hook_resid_post = HookPoint(), HookPoint(), HookPoint()

    def forward(self, x):
        z = self.hook_z(x.reshape(*x.shape[:2], 2, -1))
        return self.hook_resid_post(x + self.hook_mlp_out(torch.tanh(self.mlp(z.flatten(2)))))


class Hooked(torch.nn.Module):
    """As much of TransformerLens's HookedRootModule as its users see; the real one is in test_evaluate_peers."""

    def __init__(self, d=8):
        super().__init__()
        self.embed, self.blocks = torch.nn.Embedding(VOCABULARY, d), torch.nn.ModuleList([Block(d), Block(d)])
        self.unembed = torch.nn.Linear(d, VOCABULARY)
        self.hook_dict = {name: m for name, m in self.named_modules() if isinstance(m, HookPoint)}

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.unembed(x)


def test_hooked_models():
    torch.manual_seed(0)
    model, contexts = Hooked(), random_contexts(9, 5, 8)
    got = capture(model, contexts, [1, 0], site=["residual", "mlp"], verbose=False)
    named = capture(model, contexts, ["blocks.1.hook_resid_post", "blocks.0.hook_z"], verbose=False)
    np.testing.assert_array_equal(named["blocks.1.hook_resid_post"], got[1])
    with torch.no_grad():
        x = torch.cat([model.embed(torch.tensor(c)[None])[0, 1:] for c in contexts])
        np.testing.assert_allclose(named["blocks.0.hook_z"], x.numpy(), atol=1e-6)
        np.testing.assert_allclose(got[0], (x + torch.tanh(model.blocks[0].mlp(x))).numpy(), atol=1e-6)
    with pytest.raises(ValueError, match="blocks 0 to 1, got 2"):
        capture(model, contexts, 2)
    with pytest.raises(
        ValueError, match="no module 'blocks.7.hook_z'; it has blocks.0.hook_z, blocks.1.hook_z"
    ):
        capture(model, contexts, "blocks.7.hook_z")


def test_submodules_by_name(model, contexts, in_memory, tmp_path):
    got = capture(
        model,
        contexts,
        ["model.layers.2", "model.layers.1.mlp.down_proj", "lm_head"],
        batch_tokens=128,
        out=tmp_path / "o",
        verbose=False,
    )
    np.testing.assert_array_equal(got["model.layers.2"], in_memory[2])
    want = capture(model, contexts, 1, site="mlp", batch_tokens=128, verbose=False)[1]
    np.testing.assert_array_equal(got["model.layers.1.mlp.down_proj"], want)
    assert got["lm_head"].shape == (len(got), VOCABULARY)
    again = atoms.activations.Activations.load(tmp_path / "o")
    np.testing.assert_array_equal(again["model.layers.2"], in_memory[2])
    with pytest.raises(ValueError, match="gave .* of shape .*expected a tensor .context, position"):
        capture(model, contexts, "model.rotary_emb", verbose=False)


class Looped(torch.nn.Module):
    """One block, three times over; then another once."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = torch.nn.Embedding(VOCABULARY, 8), torch.nn.Linear(8, VOCABULARY)
        self.block, self.last = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

    def forward(self, ids):
        x = self.embed(ids)
        for _ in range(3):
            x = x + torch.tanh(self.block(x))
        return self.head(self.last(x))


def test_a_module_that_runs_several_times_is_refused(contexts, tmp_path):
    torch.manual_seed(0)
    looped = Looped()
    pca = atoms.controls.PCADictionary().fit(capture(looped, contexts, "last", verbose=False)["last"])
    message = "layers: block output runs several times in one forward pass.*name a module that runs once"
    for act in (
        lambda: capture(looped, contexts, "block", verbose=False),
        lambda: capture(looped, contexts, ["block", "head"], verbose=False),
        lambda: capture(looped, contexts, ["last", "block"], verbose=False),
        lambda: capture(looped, contexts, "block", store=tmp_path, verbose=False),
        lambda: ActivationStream(looped, contexts, "block"),
        lambda: atoms.evaluate(looped, contexts, pca, "block", verbose=False),
    ):
        with pytest.raises(ValueError, match=message):
            act()
    assert not any(m._forward_hooks for m in looped.modules())
    shared = decoder()  # one MLP in two blocks
    shared.model.layers[2].mlp = shared.model.layers[0].mlp
    with pytest.raises(ValueError, match="layers: 0 mlp runs several times"):
        capture(shared, contexts, 0, site="mlp", verbose=False)


def test_only_the_first_pass_is_run_to_its_end(contexts):
    model, ran = decoder(), []
    model.lm_head.register_forward_hook(lambda *_: ran.append(1))
    stream = ActivationStream(model, contexts, "model.layers.1", batch_tokens=128)
    assert len(list(stream.blocks())) > 3 and len(ran) == 1


def test_forward_of_ones_own(contexts):
    """A model that wants embeddings and a mask."""
    torch.manual_seed(0)
    embed = torch.nn.Embedding(VOCABULARY, 8)
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(model, ids, mask):
        return model(embed(ids), src_key_padding_mask=~mask)

    together = capture(layer, contexts, "norm2", forward=forward, batch_tokens=500, verbose=False)
    alone = capture(layer, contexts, "norm2", forward=forward, batch_tokens=1, verbose=False)
    np.testing.assert_allclose(together["norm2"], alone["norm2"], atol=1e-5)
    with pytest.raises(TypeError, match="forward: expected a function"):
        capture(layer, contexts, "norm2", forward=3)


# ------------------------------------------------------------------ the real model


@pytest.mark.slow
def test_smollm2_stream_and_store(smollm2, tmp_path):
    model, tokenizer = smollm2
    text = atoms.activations.language_reference()
    contexts = atoms.activations.tokenize(text, tokenizer, context_length=64, max_tokens=1200)
    options = {"batch_tokens": 256}
    store = capture(model, contexts, [3, 4], store=tmp_path, tokenizer=tokenizer, verbose=False, **options)
    sae = {"d_sae": 64, "target_l0": 4, "max_steps": 12, "batch_size": 128, "verbose": False}
    stream = ActivationStream(model, contexts, 3, buffer_rows=400, **options)
    with pytest.warns(UserWarning, match="10 of .* rows have a norm above 5 times the median"):
        a = atoms.SparseAutoencoder(**sae).fit(store.rows(3, buffer_rows=400))
    with pytest.warns(UserWarning, match="10 of .* rows have a norm above 5 times the median"):
        b = atoms.SparseAutoencoder(**sae).fit(stream)
    same(a, b)
