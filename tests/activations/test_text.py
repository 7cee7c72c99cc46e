"""Text goes into `capture` and `ActivationStream`: strings, and data sets that are read as a stream."""

import itertools

import numpy as np
import pytest
from support import decoder

import atoms
from atoms.activations import ActivationStream, capture, tokenize


class Letters:
    """A tokenizer of single letters."""

    bos_token_id = 0
    name_or_path = "letters"

    def __call__(self, text, add_special_tokens, verbose):
        return {"input_ids": [1 + ord(c) % 60 for c in text]}


TEXTS = ["the angle of an atom", "", "a model", "  ", "sparse codes and their tokens" * 40]
ROWS = [{"text": text, "id": i} for i, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def model():
    return decoder()


def same(a, b):
    assert len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b))


def test_each_text_begins_a_context_of_its_own():
    want = [c for text in TEXTS if text.strip() for c in tokenize(text, Letters(), context_length=8)]
    for texts in (TEXTS, iter(TEXTS), ROWS, iter(ROWS), (row["text"] for row in ROWS)):
        same(tokenize(texts, Letters(), context_length=8), want)
    endless = ({"text": "abcdef"} for _ in itertools.count())
    found = tokenize(endless, Letters(), context_length=5, max_tokens=20)
    assert [len(c) - 1 for c in found] == [4, 2, 4, 2, 4, 2, 2]
    assert next(endless) == {"text": "abcdef"}  # not a text more was read than asked for
    with pytest.raises(ValueError, match="it is empty"):
        tokenize(["", " "], Letters())


def test_text_into_capture_stores_and_streams(model, tmp_path):
    same_as = {"verbose": False, "batch_tokens": 200}
    contexts = tokenize(TEXTS, Letters(), context_length=64)  # the model's longest
    want = capture(model, contexts, 1, **same_as)
    for texts in (TEXTS, iter(ROWS), (row["text"] for row in ROWS), itertools.chain(ROWS)):
        got = capture(model, texts, 1, tokenizer=Letters(), **same_as)
        np.testing.assert_array_equal(got[1], want[1])
    one = capture(model, TEXTS[0], 1, tokenizer=Letters(), **same_as)
    np.testing.assert_array_equal(one.token_ids, want.token_ids[: len(TEXTS[0])])
    store = capture(model, iter(ROWS), 1, tokenizer=Letters(), store=tmp_path / "s", **same_as)
    np.testing.assert_array_equal(np.asarray(store[1]), want[1])
    stream = ActivationStream(model, iter(ROWS), 1, tokenizer=Letters(), batch_tokens=200)
    sae = {"d_sae": 24, "target_l0": 3, "max_steps": 5, "batch_size": 64, "verbose": False}
    a, b = (atoms.SparseAutoencoder(**sae).fit(rows) for rows in (stream, want[1]))
    np.testing.assert_array_equal(a.W_dec, b.W_dec)
    # what the SAE takes the metric takes, and a stream's rows are encoded as they come
    np.testing.assert_allclose(
        atoms.AtomicInnerProduct(shrinkage=0.1).fit(stream).metric_,
        atoms.AtomicInnerProduct(shrinkage=0.1).fit(want[1]).metric_, rtol=1e-6,
    )  # fmt: skip
    np.testing.assert_array_equal(a.transform(stream).toarray(), b.transform(want[1]).toarray())


def test_data_sets_of_hugging_face(model):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(ROWS)
    contexts = tokenize(TEXTS, Letters(), context_length=64)
    want = capture(model, contexts, 1, verbose=False)[1]
    streaming = table.to_iterable_dataset()
    for texts in (
        table,
        streaming,
        streaming.shuffle(seed=0, buffer_size=1),
        table["text"],
        streaming["text"],
    ):
        np.testing.assert_array_equal(capture(model, texts, 1, tokenizer=Letters(), verbose=False)[1], want)
    other = table.rename_column("text", "content").to_iterable_dataset()
    with pytest.raises(
        ValueError, match=r"with 'text', got one with content, id; .*\(row\['content'\] for row in"
    ):
        capture(model, other, 1, tokenizer=Letters(), verbose=False)


def test_text_without_a_tokenizer_is_told_what_to_pass(model):
    for texts in (TEXTS, iter(ROWS), "text"):
        with pytest.raises(
            ValueError,
            match=r"integer ids, got text and no tokenizer; pass tokenizer=..., or as tokens tokenize\(",
        ):
            capture(model, texts, 1, verbose=False)
        with pytest.raises(ValueError, match="got text and no tokenizer"):
            atoms.evaluate(model, texts, atoms.controls.PCADictionary(), 1, verbose=False)
    with pytest.raises(TypeError, match="expected strings, or dictionaries with 'text', got int"):
        tokenize([3], Letters())
    # ids stay what they were, from an iterator too
    ids = [np.arange(5), np.arange(7)]
    want = capture(model, ids, 1, verbose=False)[1]
    np.testing.assert_array_equal(capture(model, iter(ids), 1, tokenizer=Letters(), verbose=False)[1], want)
