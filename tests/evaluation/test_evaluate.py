"""Dictionaries judged inside the model: against forward passes done by hand, and against what must be so."""

import json

import numpy as np
import pytest
import scipy.sparse
import torch
from support import VOCABULARY, decoder, random_contexts

import atoms
from atoms import controls
from atoms.activations import capture, load_model
from atoms.evaluation import evaluate, logit_attribution
from atoms.io import PretrainedSAE


def sharp_decoder(kind="llama", width=16):
    """With larger weights than at random: its losses differ."""
    more = {"gemma2": {"final_logit_softcapping": None}, "gpt2": {"heads": 1}}
    model = decoder(kind, width, **more.get(kind, {}))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name or "ln_" in name:
                p.add_(0.3 * torch.randn_like(p))
            elif p.ndim == 2:
                p.mul_(4)
    return model


def contexts_of(n, seed=0):
    return random_contexts(n, 8, 20, seed)


@pytest.fixture(scope="module")
def model():
    return sharp_decoder()


@pytest.fixture(scope="module")
def rows(model):
    return capture(model, contexts_of(150, seed=1), [1, 2], verbose=False)


@pytest.fixture(scope="module")
def sae(rows):
    return atoms.SparseAutoencoder(48, target_l0=6, max_steps=200, batch_size=128, verbose=False).fit(rows[1])


def by_hand(model, contexts, sae, layer, drop_first):
    """One context at a time, the stream replaced through Transformers' own layers."""
    kept = [np.arange(drop_first, len(c)) for c in contexts]
    block = model.base_model.layers[layer]
    with torch.no_grad():
        streams = [
            model(input_ids=torch.tensor(c)[None], output_hidden_states=True)
            .hidden_states[layer + 1][0]
            .numpy()
            for c in contexts
        ]
    X = np.concatenate([s[k] for s, k in zip(streams, kept)])
    rebuilt = {
        "clean": lambda x: x,
        "zero": np.zeros_like,
        "mean": lambda x: np.broadcast_to(X.mean(0), x.shape),
        "sae": lambda x: sae.inverse_transform(sae.transform(x)),
    }
    ce, kl = {}, {}
    for name, change in rebuilt.items():
        losses, divergences = [], []
        for c, stream, k in zip(contexts, streams, kept):
            new = stream.copy()
            new[k] = change(stream[k])
            handle = block.register_forward_hook(lambda m, i, o: torch.tensor(new)[None])
            with torch.no_grad():
                logits = model(input_ids=torch.tensor(c)[None]).logits[0].double()
            handle.remove()
            with torch.no_grad():
                p = torch.log_softmax(model(input_ids=torch.tensor(c)[None]).logits[0].double(), -1)
            q = torch.log_softmax(logits, -1)
            losses += [-q[t, c[t + 1]].item() for t in k if t + 1 < len(c)]
            divergences += [(p[t].exp() * (p[t] - q[t])).sum().item() for t in k]
        ce[name], kl[name] = np.mean(losses), np.mean(divergences)
    return X, ce, kl


@pytest.mark.parametrize("drop_first", [True, False])
def test_against_passes_by_hand(model, sae, drop_first):
    contexts = contexts_of(12)
    X, ce, kl = by_hand(model, contexts, sae, 1, int(drop_first))
    got = evaluate(model, contexts, {"a": sae}, 1, drop_first=drop_first, batch_tokens=60, verbose=False)
    assert got.n_tokens == len(X) and got.n_contexts == 12 and got.n_predictions == len(X) - 12
    a = got["a"]
    for interval, want in [
        (got.cross_entropy, ce["clean"]),
        (got.cross_entropy_zero, ce["zero"]),
        (got.cross_entropy_mean, ce["mean"]),
        (a.cross_entropy, ce["sae"]),
        (a.kl, kl["sae"]),
        (got.kl_zero, kl["zero"]),
        (got.kl_mean, kl["mean"]),
        (a.recovered_zero, (ce["zero"] - ce["sae"]) / (ce["zero"] - ce["clean"])),
        (a.recovered_mean, (ce["mean"] - ce["sae"]) / (ce["mean"] - ce["clean"])),
        (a.kl_recovered_zero, (kl["zero"] - kl["sae"]) / kl["zero"]),
    ]:
        assert interval.estimate == pytest.approx(want, rel=1e-4, abs=1e-5)
        assert interval.low <= interval.estimate <= interval.high
        if interval is not got.cross_entropy_zero:  # with zeros everywhere, all contexts may look alike
            assert interval.low < interval.high
    codes = sae.transform(X)
    density = np.bincount(codes.indices, minlength=48) / len(X)
    assert a.l0.estimate == pytest.approx(codes.nnz / len(X), rel=2e-3)
    np.testing.assert_allclose(a.density, density, atol=3 / len(X))
    assert a.dead == (a.density == 0).sum() and a.dense == (a.density > 0.1).sum()
    for convention, interval in a.explained_variance.items():
        want = atoms.theory.explained_variance(X, sae.inverse_transform(codes), convention).total
        assert interval.estimate == pytest.approx(want, abs=1e-5)


def test_all_kinds_of_dictionaries(model, sae, rows, tmp_path):
    """Trained, read from elsewhere, and controls, in one table."""
    aip = atoms.AtomicInnerProduct().fit(rows[1])
    sae.save(tmp_path / "own.safetensors")
    atoms.io.save(sae, tmp_path / "exported")
    foreign = atoms.load(tmp_path / "exported")
    assert isinstance(foreign, PretrainedSAE)
    every = {
        "trained": sae,
        "imported": foreign,
        "random": controls.RandomDictionary(48, l0=6).fit(rows[1]),
        "memorizing": controls.MemorizingDictionary().fit(rows[1]),
        "k-means": controls.KMeansDictionary(48).fit(rows[1]),
        "PCA": controls.PCADictionary().fit(rows[1]),
        "neurons": controls.NeuronBasis().fit(rows[1]),
    }
    got = evaluate(model, contexts_of(20), every, 1, verbose=False)
    for name in ("PCA", "neurons"):
        assert got[name].recovered_zero.estimate == pytest.approx(1, abs=1e-4)
        assert got[name].kl.estimate == pytest.approx(0, abs=1e-6)
        assert got[name].explained_variance["centered"].estimate == pytest.approx(1, abs=1e-6)
        assert got[name].l0.estimate == pytest.approx(16, rel=0.01)
    a, b = got["trained"], got["imported"]
    assert a.cross_entropy.estimate == pytest.approx(b.cross_entropy.estimate, rel=1e-5)
    assert a.l0.estimate == pytest.approx(b.l0.estimate, rel=1e-3)
    assert got["memorizing"].l0.estimate == got["k-means"].l0.estimate == 1
    assert (
        got["random"].l0.estimate == 6 and a.kl.estimate < got["k-means"].kl.estimate < got.kl_zero.estimate
    )
    text = str(got)
    assert "recovered, against zeros" in text and "95% bootstrap intervals over contexts" in text
    assert all(name in text.splitlines()[1] for name in every)
    assert len({len(line) for line in text.splitlines()[1:]}) == 1
    assert repr(got) == text
    assert all(f"<th>{name}</th>" in got._repr_html_() for name in every)
    assert "<td>6.000 [6.000, 6.000]</td>" in got["random"]._repr_html_()
    axes = got.plot()
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        f"{n}, L0 {got[n].l0.estimate:.3g}" for n in every
    ]
    assert list(axes.lines[0].get_xdata()) == [got[n].recovered_zero.estimate for n in every]
    json.dumps(got.to_dict())
    with_metric = {
        "a": controls.KMeansDictionary(20, metric=aip).fit(rows[1]),
        "b": atoms.SparseAutoencoder(24, target_l0=4, metric=aip, max_steps=20, verbose=False).fit(rows[1]),
    }
    got = evaluate(model, contexts_of(5), with_metric, 1, verbose=False)
    assert list(got["a"].explained_variance) == ["centered", "uncentered", "metric"]
    got = evaluate(model, contexts_of(5), sae, 1, conventions=["variance_of_error"], verbose=False)
    assert np.isnan(got["autoencoder"].explained_variance["variance_of_error"].low)


def test_models_whose_codes_are_pursued_and_those_of_scikit_learn(model, rows):
    """Whatever has `transform` and `inverse_transform`, dense codes too."""
    decomposition = pytest.importorskip("sklearn.decomposition")
    X = rows[1]
    learned = atoms.DictionaryLearning(
        24, 3, metric=atoms.AtomicInnerProduct().fit(X), max_steps=5, verbose=False
    ).fit(X)
    every = {
        "learned": learned,
        "coder": atoms.SparseCoder(learned.W_dec, n_nonzero=2).fit(X),
        "PCA": decomposition.PCA(4).fit(X),
        "all of it": decomposition.PCA().fit(X),
        "metric": atoms.AtomicInnerProduct().fit(X),
    }
    got = evaluate(model, contexts_of(20), every, 1, verbose=False)
    assert [got[name].l0.estimate for name in every] == pytest.approx([3, 2, 4, 16, 16])
    assert [len(got[name].density) for name in every] == [24, 24, 4, 16, 16]
    for name in ("all of it", "metric"):
        assert got[name].explained_variance["centered"].estimate == pytest.approx(1, abs=1e-5)
    held = capture(model, contexts_of(20), 1, verbose=False)[1]  # without first tokens, as what is counted
    for name in ("learned", "coder", "PCA"):
        D = every[name]
        by_hand = atoms.theory.explained_variance(
            held, D.inverse_transform(D.transform(held)), "centered"
        ).total
        assert got[name].explained_variance["centered"].estimate == pytest.approx(by_hand, abs=1e-4)
    alone = evaluate(model, contexts_of(20), learned, 1, verbose=False)["autoencoder"]
    assert list(alone.explained_variance) == ["centered", "uncentered", "metric"]
    alone = evaluate(model, contexts_of(20), every["metric"], 1, verbose=False)["autoencoder"]
    assert list(alone.explained_variance) == ["centered", "uncentered"]
    with pytest.raises(ValueError, match="not fitted"):
        evaluate(model, contexts_of(2), atoms.DictionaryLearning(24, 3), 1, verbose=False)
    with pytest.raises(TypeError, match=r"PCA \(PCA\) does not say how wide .* is it fitted"):
        evaluate(model, contexts_of(2), {"PCA": decomposition.PCA(4)}, 1, verbose=False)


def test_input_normalisation_is_undone(model, rows):
    """A layer-norm SAE that keeps everything is the identity inside the model."""
    eye = np.eye(16)
    normed = PretrainedSAE(
        np.concatenate([eye, -eye], 1), np.zeros(32), np.concatenate([eye, -eye]), np.zeros(16), input_norm="layer_norm"
    )  # fmt: skip
    got = evaluate(model, contexts_of(10), normed, 1, verbose=False)["autoencoder"]
    assert got.recovered_zero.estimate == pytest.approx(1, abs=1e-3) and got.kl.estimate < 1e-5


def test_intervals_cover(model, rows):
    """Of 60 samples of text, about nine in ten intervals at 90% hold the figure of all text."""
    sae = controls.KMeansDictionary(30).fit(rows[1])
    text = contexts_of(600, seed=9)
    truth = evaluate(model, text, sae, 1, verbose=False)["autoencoder"]
    inside = {"cross_entropy": 0, "recovered_zero": 0, "kl": 0}
    for i in range(0, 600, 20):
        part = evaluate(model, text[i : i + 20], sae, 1, level=0.9, n_boot=300, verbose=False)["autoencoder"]
        for name in inside:
            interval = getattr(part, name)
            inside[name] += interval.low <= getattr(truth, name).estimate <= interval.high
    assert all(20 <= count <= 30 for count in inside.values()), inside


def test_same_figures_in_any_batches_and_the_model_as_it_was(model, sae):
    model.train()
    hooks = [len(m._forward_hooks) for m in model.modules()]
    a, b = (evaluate(model, contexts_of(10), sae, 1, batch_tokens=n, verbose=False) for n in (20, 300))
    assert model.training and hooks == [len(m._forward_hooks) for m in model.modules()]
    model.eval()
    assert a["autoencoder"].cross_entropy.estimate == pytest.approx(
        b["autoencoder"].cross_entropy.estimate, rel=1e-5
    )
    again = evaluate(model, contexts_of(10), sae, 1, batch_tokens=20, verbose=False)
    assert again["autoencoder"].kl == a["autoencoder"].kl


def test_sites_and_modules_by_name(model):
    contexts = contexts_of(10)
    rows = capture(model, contexts, 1, site="mlp", verbose=False)[1]
    pca = controls.PCADictionary(l0=8).fit(rows)
    by_site = evaluate(model, contexts, pca, 1, site="mlp", verbose=False)
    by_name = evaluate(model, contexts, pca, "model.layers.1.mlp", verbose=False)
    assert by_site["autoencoder"].kl == by_name["autoencoder"].kl and by_name.place[1] == "output"
    assert by_site["autoencoder"].kl.estimate > 0


def test_errors(model, sae, tiny, rows):
    contexts = contexts_of(4)
    headless, _ = load_model(tiny)
    small = controls.NeuronBasis().fit(np.random.default_rng(0).standard_normal((50, 5)))
    coder = PretrainedSAE(np.eye(16), np.zeros(16), np.eye(16), np.zeros(16), is_transcoder=True)
    for arguments, kind, message in [
        (
            (headless, [c % 20 for c in contexts], sae, 1),
            ValueError,
            r"no logits; .*load_model\(name, head=True\)",
        ),
        ((model, contexts, small, 1), ValueError, "width 5, this place of the model has 16"),
        ((model, contexts, coder, 1), ValueError, "is a transcoder"),
        ((model, contexts, {}, 1), ValueError, "at least one"),
        ((model, contexts, {"x": 3}, 1), TypeError, r"x \(int\) has no transform"),
        ((model, contexts, sae, [0, 1]), ValueError, "one layer at one site, got 2"),
        ((model, [[1, 2]], sae, 1), ValueError, "no context has a next token"),
        ((model, contexts, sae, "lm_head"), ValueError, "width 16, this place of the model has 61"),
    ]:
        with pytest.raises(kind, match=message):
            evaluate(*arguments, verbose=False)
    for bad in (
        {"dense_above": 1},
        {"level": 0},
        {"n_boot": 0},
        {"random_state": "x"},
        {"conventions": ["r2"]},
    ):
        with pytest.raises(ValueError, match=next(iter(bad))):
            evaluate(model, contexts, sae, 1, verbose=False, **bad)


def test_a_model_without_head_fails_before_work(sae, tiny):
    headless, _ = load_model(tiny)
    ran = []
    headless.register_forward_hook(lambda module, inputs, output: ran.append(1))
    headless.layers[1].register_forward_hook(lambda module, inputs, output: ran.append(len(output)))
    with pytest.raises(ValueError, match="gives no logits"):
        evaluate(headless, [c % 20 for c in contexts_of(40)], sae, 1, verbose=False)
    assert ran == [1, 1]  # one context


def test_models_with_a_head_are_loaded(tiny):
    model, _ = load_model(tiny, head=True)
    assert model.get_output_embeddings() is not None


# ------------------------------------------------------------------ logit attribution


@pytest.mark.parametrize(
    "kind, width", [("llama", 16), ("gemma2", 16), ("gpt2", 16), ("gpt2", 17), ("gpt_neox", 16)]
)
def test_logit_attribution_is_the_derivative_of_the_head(kind, width):
    """Against automatic differentiation of norm and unembedding, the scale of the norm held fixed."""
    model = sharp_decoder(kind, width)
    dictionary = controls.RandomDictionary(7, l0=1).fit(np.random.default_rng(0).standard_normal((30, width)))
    got = logit_attribution(model, dictionary, [2, 5], k=VOCABULARY)
    norm = next(m for n, m in model.base_model.named_children() if n in ("norm", "ln_f", "final_layer_norm"))
    rng = np.random.default_rng(1)
    for i, j in enumerate([2, 5]):
        D = torch.tensor(dictionary.W_dec[j])
        x = torch.tensor(rng.standard_normal(width), dtype=torch.float32) * 5
        if "gpt" in kind:
            x -= x.mean()
        x -= (
            (x @ (D - D.mean() * ("gpt" in kind))) / ((D - D.mean() * ("gpt" in kind)) @ D) * D
        )  # the scale stays put
        if "gpt" in kind:
            x -= x.mean()
        scale = x.square().mean().sqrt()
        head = lambda x: model.get_output_embeddings()(norm(x[None])[0])
        with torch.no_grad():
            change = (head(x + 1e-2 * D) - head(x - 1e-2 * D)) / 2e-2 * scale
        change = (change - change.mean()).numpy()
        values = np.empty(VOCABULARY)
        values[got.top_ids[i]] = got.top_values[i]
        np.testing.assert_allclose(values, change, atol=2e-2 * np.abs(change).max())
        np.testing.assert_array_equal(got.top_ids[i], got.bottom_ids[i][::-1])
        assert (np.diff(got.top_values[i]) <= 0).all() and values.mean() == pytest.approx(0, abs=1e-5)


def test_logit_attribution_errors(model, tiny):
    headless, _ = load_model(tiny)
    five = controls.NeuronBasis().fit(np.random.default_rng(0).standard_normal((50, 5)))
    right = controls.NeuronBasis().fit(np.random.default_rng(0).standard_normal((50, 16)))
    with pytest.raises(ValueError, match="no language-model head"):
        logit_attribution(headless, right)
    with pytest.raises(ValueError, match="5 columns, the unembedding 16 rows"):
        logit_attribution(model, five)
    with pytest.raises(ValueError, match="latents: expected numbers from 0 to 15"):
        logit_attribution(model, right, [16])
    with pytest.raises(ValueError, match="k: expected 1 to 61"):
        logit_attribution(model, right, k=0)
    with pytest.raises(TypeError, match="dictionary: expected atoms as rows, got a AtomicInnerProduct"):
        logit_attribution(model, atoms.AtomicInnerProduct())
    coder = atoms.SparseCoder(right.W_dec, n_nonzero=2)
    coder.fit(np.eye(16))
    for same in (coder, right.W_dec):
        np.testing.assert_array_equal(
            logit_attribution(model, same, k=3).top_ids, logit_attribution(model, right, k=3).top_ids
        )
    assert logit_attribution(model, right, k=3).top_ids.shape == (16, 3)
    assert logit_attribution(model, right, np.array([], int)).top_ids.shape == (0, 10)


# ------------------------------------------------------------------ pictures of latents


def test_contexts_and_words_are_drawn(tmp_path):
    from atoms import _plot as plot
    from atoms._report.monosemanticity import top_contexts

    words = ["the", " $cost", "\n", " of", " it"]
    ids, contexts = np.tile(np.arange(5), 6), np.repeat(np.arange(3), 10)
    codes = np.zeros((30, 4))
    codes[[4, 13, 27], 2] = [1.0, 3.0, 2.0]
    codes[[4, 14], 1] = 1.0
    found = top_contexts(scipy.sparse.csr_array(codes), ids, contexts, words.__getitem__, [2, 0, 1], window=4)
    assert str(found[0][0]) == "the $cost\n<< of>>" and str(found[0][2]).endswith("<< it>>")
    assert [c.activations[c.focus] for c in found[0]] == [3.0, 2.0, 1.0] and found[1] == []
    assert len(found[2]) == 1  # the same text twice is shown once
    with pytest.raises(ValueError, match="a row for each token, got 30 rows, 29 token_ids"):
        top_contexts(scipy.sparse.csr_array(codes), ids[:-1], contexts, words.__getitem__, [2])
    figure, axes = plot.new_figure(2, 1, size=(6, 3))
    plot.contexts(axes[0], found[0])
    plot.words(axes[1], [(" $cost", 2.0), ("\n", 1.0)], [("the", -1.5)])
    plot.save(figure, tmp_path / "latent.png")
    texts = [t for t in axes[0].texts]
    assert len(texts) == sum(len(c.tokens) for c in found[0])
    assert sum(t.get_fontweight() == "bold" for t in texts) == 3
    assert sum(t.get_bbox_patch() is not None for t in texts) == 3
    assert len(axes[1].patches) == 3 and (tmp_path / "latent.png").stat().st_size > 2000
