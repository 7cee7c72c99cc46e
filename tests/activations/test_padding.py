"""Padded batches, as tokenizers give them: the rows of the same text without padding, or an error."""

import numpy as np
import pytest
import torch
from support import VOCABULARY, contexts_of, decoder
from transformers import BatchEncoding

import atoms
from atoms.activations import ActivationStream, capture

PAD = 0
LENGTHS = [17, 5, 23, 9]


@pytest.fixture(scope="module")
def model():
    return decoder(pad_token_id=PAD)


@pytest.fixture(scope="module")
def clean():
    return [3 + c % (VOCABULARY - 3) for c in contexts_of(LENGTHS)]


def padded(clean, side, width=max(LENGTHS)):
    """Ids and mask (contexts, width)."""
    ids, mask = np.full((len(clean), width), PAD), np.zeros((len(clean), width), int)
    for i, c in enumerate(clean):
        at = slice(width - len(c), width) if side == "left" else slice(len(c))
        ids[i, at], mask[i, at] = c, 1
    return ids, mask


def ways(clean, side):
    """What users hold of a padded batch: positional and keyword arguments."""
    ids, mask = padded(clean, side, 30 if side == "left" else max(LENGTHS))
    both = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    yield (BatchEncoding(both),), {}
    yield ({**both, "token_type_ids": torch.zeros(ids.shape)},), {}
    yield ({"input_ids": ids.tolist(), "attention_mask": mask.tolist()},), {}
    yield (ids,), {"attention_mask": mask}
    yield (torch.from_numpy(ids),), {"attention_mask": torch.from_numpy(mask) > 0}
    yield (ids.tolist(),), {"attention_mask": mask.tolist()}
    yield (list(ids),), {"attention_mask": list(mask)}
    yield ({"input_ids": ids},), {"attention_mask": mask}
    yield ([BatchEncoding({k: v[:3] for k, v in both.items()}), {k: v[3:] for k, v in both.items()}],), {}
    yield ([{"input_ids": i.tolist(), "attention_mask": m} for i, m in zip(ids, mask, strict=True)],), {}
    yield ([{"input_ids": c.tolist()} for c in clean],), {}


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_left_out(model, clean, side):
    want = capture(model, clean, [1, 2], verbose=False)
    for tokens, more in ways(clean, side):
        got = capture(model, *tokens, [1, 2], verbose=False, **more)
        for layer in (1, 2):
            np.testing.assert_array_equal(got[layer], want[layer])
        for name in ("token_ids", "contexts", "positions"):
            np.testing.assert_array_equal(getattr(got, name), getattr(want, name))


@pytest.mark.parametrize("side", ["left", "right"])
def test_streams_stores_and_evaluation_leave_it_out(model, clean, side, tmp_path):
    ids, mask = padded(clean, side)
    store = capture(model, clean, 1, store=tmp_path, verbose=False)
    again = capture(model, ids, 1, attention_mask=mask, store=tmp_path, verbose=False)
    assert again.manifest == store.manifest  # the same text
    stream = ActivationStream(model, BatchEncoding({"input_ids": ids, "attention_mask": mask}), 1)
    np.testing.assert_array_equal(np.concatenate(list(stream.blocks())), np.asarray(store[1]))
    pca = atoms.controls.PCADictionary(4).fit(np.asarray(store[1]))
    want = atoms.evaluate(model, clean, pca, 1, n_boot=5, verbose=False)
    got = atoms.evaluate(model, ids, pca, 1, attention_mask=mask, n_boot=5, verbose=False)
    assert str(got) == str(want) and got.n_predictions == sum(LENGTHS) - 2 * len(LENGTHS)
    for act in (
        lambda: ActivationStream(model, ids, 1),
        lambda: atoms.evaluate(model, ids, pca, 1, verbose=False),
    ):
        with pytest.raises(ValueError, match="would be taken for text"):
            act()


def test_padding_without_a_mask_is_refused(model, clean):
    for side, what in (("left", "begins"), ("right", "ends")):
        ids, _ = padded(clean, side)
        for tokens in (ids, torch.from_numpy(ids), ids.tolist(), {"input_ids": ids}, [{"input_ids": ids}]):
            message = f"tokens: row 1 {what} with 18 times the padding id 0.*attention_mask=numpy.ones_like"
            with pytest.raises(ValueError, match=message):
                capture(model, tokens, 1, verbose=False)
        told = capture(model, ids, 1, attention_mask=np.ones_like(ids), verbose=False)
        assert len(told) == 4 * 22  # text, since the caller says so
    whole = np.stack([clean[2], clean[2][::-1]])
    assert len(capture(model, whole, 1, verbose=False)) == 44
    one = np.concatenate([whole, [[PAD], [5]]], axis=1)
    with pytest.raises(ValueError, match="row 0 ends with 1 times the padding id 0"):
        capture(model, one, 1, verbose=False)


@pytest.mark.parametrize("pad", [None, 2])
def test_the_end_of_a_text_is_not_padding(clean, pad):
    """Where padding is the id that begins or ends texts: one on every row is text, more or fewer are not."""
    model = decoder(pad_token_id=pad, bos_token_id=2, eos_token_id=2)
    text = np.stack([clean[2], clean[2][::-1]])
    ended = np.pad(text, ((0, 0), (1, 1)), constant_values=2)
    assert len(capture(model, ended, 1, drop_first=False, verbose=False)) == 50
    twice = np.pad(text, ((0, 0), (0, 2)), constant_values=2)
    twice[0, -2:] = 7
    with pytest.raises(ValueError, match="row 1 ends with 2 times the padding id 2"):
        capture(model, twice, 1, verbose=False)
    if pad is not None:  # named as padding: on one row only
        with pytest.raises(ValueError, match="row 1 ends with 1 times the padding id 2"):
            capture(model, twice[:, :-1], 1, verbose=False)
    assert len(capture(model, list(twice), 1, verbose=False)) == 2 * 24  # contexts, not a table


@pytest.mark.parametrize(
    ("tokens", "mask", "message"),
    [
        ([[5, 6, 7]], [[1, 0, 1]], "one stretch of them, got .1, 0, 1. at context 0"),
        ([[5, 6, 7], [5, 6, 7]], [[1, 1, 1], [0, 0, 0]], "got .0, 0, 0. at context 1"),
        ([[5, 6, 7]], [[1, 2, 1]], "0 at padding and 1 at the tokens"),
        ([[5, 6, 7]], [[1, 1]], r"the shape of the tokens, \(3,\), got \(2,\) at context 0"),
        ([[5, 6, 7]], [[1, 1, 1]] * 2, "expected 1 rows as in tokens, got 2"),
        ({"input_ids": [[5, 6]], "attention_mask": [[1, 1]]}, [[1, 1]], "given twice"),
        ([{"input_ids": [5, 6]}], [[1, 1]], "give each its own attention_mask"),
        ({"ids": [[5, 6]]}, None, "expected input_ids in the dictionary, found ids"),
        ("text", None, "integer ids"),
        (["text"], None, "integer ids"),
    ],
)
def test_masks_that_cannot_be(model, tokens, mask, message):
    with pytest.raises(ValueError, match=message):
        capture(model, tokens, 1, attention_mask=mask, verbose=False)


def test_ragged_and_empty_lists(model):
    assert len(capture(model, [[5, 6, 7], [5, 6]], 1, verbose=False)) == 3
    for none in ([], [[]], np.empty((2, 0), int), np.empty((0, 3), int), {"input_ids": []}):
        with pytest.raises(ValueError, match="tokens: there are none"):
            capture(model, none, 1, verbose=False)
