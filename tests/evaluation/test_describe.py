"""`describe`: what is said of a latent, against what it was planted with; and the page."""

import html.parser

import numpy as np
import pytest
from support import decoder

import atoms
from atoms.activations import capture
from atoms.evaluation import logit_attribution
from atoms.io import PretrainedSAE

torch = pytest.importorskip("torch")

WORDS, D, S = 61, 16, 40
TOKENS = np.random.default_rng(3).integers(1, WORDS, (6, 12))


class Letters:
    def decode(self, ids):
        return f"<{ids[0]}&>"


class Balanced(html.parser.HTMLParser):
    """Every element that is opened is closed, in order."""

    VOID = ("meta",)

    def __init__(self, page):
        super().__init__()
        self.open, self.seen = [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def model():
    return decoder(vocab_size=WORDS, bos_token_id=0, eos_token_id=None)


@pytest.fixture(scope="module")
def sae(model):
    rng = np.random.default_rng(1)
    W = rng.standard_normal((S, D))
    W /= np.linalg.norm(W, axis=1, keepdims=True)
    W[7] = W[2] + 0.1 * W[3]
    return PretrainedSAE(W.T, np.zeros(S), W, np.zeros(D), activation="relu")


def test_figures_are_those_of_the_parts(model, sae):
    rows = capture(model, TOKENS, 1, verbose=False)
    codes = sae.transform(rows[1]).toarray()
    found = sae.describe([2, 30], model=model, tokens=TOKENS, layer=1, tokenizer=Letters(), count=3, window=4)
    for one, j in zip(found.latents, (2, 30), strict=True):
        a = codes[:, j]
        assert one.latent == j and one.density == (a != 0).mean() and one.strongest == a.max()
        counts, edges = one.histogram
        assert counts.sum() == (a != 0).sum() and edges[-1] == pytest.approx(a.max())
        np.testing.assert_array_equal(counts, np.histogram(a[a > 0], edges)[0])
        best = int(a.argmax())
        assert one.contexts[0].tokens[-1] == f"<{rows.token_ids[best]}&>" and len(one.contexts) == 3
        assert one.contexts[0].activations[-1] == pytest.approx(a.max())
        effect = logit_attribution(model, sae, [j], k=3)
        assert one.raises == [
            (f"<{i}&>", pytest.approx(v)) for i, v in zip(effect.top_ids[0], effect.top_values[0])
        ]
        assert [v for _, v in one.lowers] == pytest.approx(effect.bottom_values[0])
    unit = sae.W_dec / np.linalg.norm(sae.W_dec, axis=1, keepdims=True)
    assert found.latents[0].nearest[0] == (7, pytest.approx(unit[2] @ unit[7], rel=1e-5))
    again = sae.describe([2, 30], model=model, tokens=rows, layer=1, tokenizer=Letters(), count=3, window=4)
    assert str(again) == str(found) == repr(found) and "66 tokens" in found.note


@pytest.mark.parametrize("coder", ["omp", "nn-omp"])
def test_atoms_of_a_dictionary(model, coder):
    """Signed codes: contexts of the positive ones, and the page says that there are others."""
    rows = capture(model, TOKENS, 1, verbose=False)
    learned = atoms.DictionaryLearning(S, coder=coder, n_nonzero=6, batch_size=64, max_steps=3, verbose=False)
    codes = learned.fit(rows[1]).transform(rows[1]).toarray()
    chosen = np.argsort((codes < 0).sum(0))[[-1, 0]].tolist()
    found = learned.describe(chosen, model=model, tokens=rows, layer=1, tokenizer=Letters())
    assert found.title == f"2 of {S} latents of DictionaryLearning"
    share = 100 * (codes[:, chosen] < 0).sum() / (codes[:, chosen] != 0).sum()
    assert (coder == "omp") == (f"{share:.2g}% of the activations are negative" in found.note)
    for one, j in zip(found.latents, chosen, strict=True):
        a = codes[:, j]
        assert one.density == (a != 0).mean() and one.strongest == max(a.max(), 0) and one.raises
        counts, edges = one.histogram
        assert counts.sum() == (a != 0).sum() and edges[0] == min(a.min(), 0)
        assert all(c.activations[-1] > 0 for c in one.contexts)
    assert Balanced(found._page() + "</body></html>").seen.count("h2") == 2


def test_massive_tokens_are_no_contexts(model, sae):
    rows = capture(model, TOKENS, 1, verbose=False)
    codes = sae.transform(rows[1]).toarray()
    rows[1][20] *= 1000
    found = sae.describe([2, 30], model=model, tokens=rows, layer=1, tokenizer=Letters(), count=40)
    assert "65 tokens, 1 of massive norm left out" in found.note
    for one, j in zip(found.latents, (2, 30), strict=True):
        usual = np.delete(codes[:, j], 20)
        assert one.strongest == usual.max() and one.density == pytest.approx((usual != 0).mean())
        assert not any(c.activations[-1] > usual.max() for c in one.contexts)
        assert any(f"<{rows.token_ids[20]}&>" in c.tokens[:-1] for c in one.contexts)  # it is read on the way


def test_the_page_is_one_file_without_others_text_in_its_tags(model, sae, tmp_path):
    found = sae.describe([2, 30], model=model, tokens=TOKENS, layer=1, tokenizer=Letters())
    found.save(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    tags = Balanced(page).seen
    assert tags.count("h2") == 2 and tags.count("svg") == 2 and tags.count("li") > 4
    assert "<5&>" not in page and "&amp;&gt;" in page and "http" not in page and "<script" not in page
    assert Balanced(found._repr_html_()).seen == ["iframe"]


def test_neighbours_under_the_metric():
    rng = np.random.default_rng(0)
    X = (rng.standard_normal((1500, D)) * np.linspace(0.1, 3, D)).astype(np.float32)
    aip = atoms.AtomicInnerProduct().fit(X)
    sae = atoms.SparseAutoencoder(S, metric=aip, target_l0=4, max_steps=40, verbose=False).fit(X)
    cosines = aip.cosine(sae.W_dec[[3]], sae.W_dec)[0]
    cosines[3] = -2
    j, value = sae.describe(3).latents[0].nearest[0]
    assert j == cosines.argmax() and value == pytest.approx(cosines.max(), abs=1e-5)


def test_what_is_missing_is_left_out_or_said(model, sae):
    bare = sae.describe(5).latents[0]
    assert bare.density is None and bare.contexts == [] and bare.raises == [] and len(bare.nearest) == 8
    headless = sae.describe([5], model=model.model, tokens=TOKENS, layer=1)
    assert headless.latents[0].raises == [] and "no words: model: LlamaModel has no" in headless.note
    known = PretrainedSAE(
        sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, activation="relu", source="saelens",
        config={"sae_lens_version": "6.0.0", "metadata": {"hook_name": "blocks.1.hook_resid_post"}},
    )  # fmt: skip
    assert known.describe([5], model=model, tokens=TOKENS).latents[0].density is not None
    for match, more in (
        ("layer: the autoencoder does not say", {"model": model, "tokens": TOKENS}),
        ("model: None, but tokens need one", {"tokens": TOKENS, "layer": 1}),
    ):
        with pytest.raises(ValueError, match=match):
            sae.describe([5], **more)
    for wrong in ([40], [-1], [0.5], ["a"]):
        with pytest.raises(ValueError, match="latents: expected numbers from 0 to 39"):
            sae.describe(wrong)
    X = np.random.default_rng(0).standard_normal((300, D)).astype(np.float32)
    both = atoms.SparseAutoencoder(24, target_l0=3, max_steps=5, verbose=False).fit(
        atoms.activations.Sites(X, X)
    )
    assert both.describe([5]).latents[0].density is None
    with pytest.raises(ValueError, match="tokens: a crosscoder reads several places"):
        both.describe([5], model=model, tokens=TOKENS, layer=1)
    with pytest.raises(TypeError, match="tokenizer: expected one with `decode`"):
        sae.describe([5], tokenizer=3)
