"""Steering and attribution: against hooks written out by hand, finite differences, and what changes in real text."""

import numpy as np
import pytest
from support import decoder

import atoms
from atoms.activations import capture
from atoms.evaluation import latent_attribution
from atoms.io import PretrainedSAE

torch = pytest.importorskip("torch")

WORDS, D, S = 61, 16, 40
IDS = np.random.default_rng(3).integers(1, WORDS, (2, 9))


def autoencoder(**more):
    rng = np.random.default_rng(1)
    W = rng.standard_normal((S, D))
    W /= np.linalg.norm(W, axis=1, keepdims=True)
    more = {"threshold": np.full(S, 0.1)} | more
    return PretrainedSAE(W.T, np.zeros(S), 0.8 * W, 0.1 * rng.standard_normal(D), **more)


@pytest.fixture(scope="module")
def model():
    model = decoder(vocab_size=WORDS, bos_token_id=0, eos_token_id=None)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.mul_(6)
    return model


def by_hand(model, block, change):
    """Logits with a block's output changed by a function of rows, but for the first position."""

    def hook(module, inputs, output):
        several = isinstance(output, tuple)
        hidden = (output[0] if several else output).clone()
        hidden[:, 1:] = torch.from_numpy(change(hidden[:, 1:].detach().numpy().reshape(-1, D))).reshape(
            hidden[:, 1:].shape
        )
        return (hidden, *output[1:]) if several else hidden

    handle = block.register_forward_hook(hook)
    try:
        with torch.no_grad():
            return model(torch.from_numpy(IDS)).logits.numpy()
    finally:
        handle.remove()


def hooks_left(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("error_term", [True, False])
@pytest.mark.parametrize("kind", ["jumprelu", "topk", "layer_norm", "trained", "omp", "nn-lasso"])
def test_set_scaled_and_off(model, kind, error_term):
    if kind in ("trained", "omp", "nn-lasso"):
        rows = np.array(capture(model, IDS, 1, verbose=False)[1])
        rows = np.concatenate([rows + np.random.default_rng(i).normal(0, 0.1, rows.shape) for i in range(40)])
        aip = atoms.AtomicInnerProduct(shrinkage="oas").fit(rows)
        if kind == "trained":
            sae = atoms.SparseAutoencoder(
                S, metric=aip, target_l0=4, max_steps=60, batch_size=64, verbose=False
            )
        else:  # codes that no encoder gives
            more = {"alpha": 0.3} if kind == "nn-lasso" else {"n_nonzero": 4}
            sae = atoms.DictionaryLearning(
                S, coder=kind, metric=aip, batch_size=64, max_steps=5, verbose=False, **more
            )
        sae = sae.fit(rows)
    else:
        more = {
            "jumprelu": {},
            "topk": {"activation": "topk", "k": 4, "threshold": None},
            "layer_norm": {"input_norm": "layer_norm"},
        }
        sae = autoencoder(**more[kind])
    codes = sae.transform(capture(model, IDS, 1, verbose=False)[1]).toarray()
    busy = np.argsort((codes != 0).sum(0))[::-1]
    put, off, double = (int(j) for j in busy[[0, 1, 2]])

    def change(x):
        a = sae.transform(x).toarray().astype(np.float64)
        b = a.copy()
        b[:, put], b[:, off], b[:, double] = 4.0, 0.0, 2 * a[:, double]
        W, b_dec = sae.W_dec.astype(np.float64), sae.b_dec.astype(np.float64)
        std, mean = 1.0, 0.0
        if kind == "layer_norm":
            mean, std = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)
        after = (b @ W + b_dec) * std + mean
        return (x + (b - a) @ W * std if error_term else after).astype(np.float32)

    want = by_hand(model, model.model.layers[1], change)
    before = hooks_left(model)
    with atoms.steer(model, sae, 1, {put: 4.0, off: 0}, scale={double: 2}, error_term=error_term) as same:
        assert same is model
        with torch.no_grad():
            got = model(torch.from_numpy(IDS)).logits.numpy()
    assert hooks_left(model) == before
    clean = model(torch.from_numpy(IDS)).logits.detach().numpy()
    assert np.abs(want - clean).max() > 0.1
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)


def test_nothing_changed_is_nothing_to_the_bit(model):
    sae, ids = autoencoder(), torch.from_numpy(IDS)
    clean = model(ids).logits
    with atoms.steer(model, sae, 1):
        assert torch.equal(model(ids).logits, clean)
    with atoms.steer(model, sae, 1, scale={3: 1.0}), atoms.steer(model, sae, 2, scale={4: 1.0}):
        assert torch.equal(model(ids).logits, clean)


def test_layers_nest_and_errors_leave_nothing(model):
    sae, ids = autoencoder(), torch.from_numpy(IDS)
    clean, before = model(ids).logits, hooks_left(model)
    with atoms.steer(model, sae, 0, {1: 3.0}):
        one = model(ids).logits
        with atoms.steer(model, sae, 2, {2: 3.0}):
            both = model(ids).logits
        assert torch.equal(model(ids).logits, one)
    assert not torch.equal(one, clean) and not torch.equal(both, one)
    with pytest.raises(KeyError), atoms.steer(model, sae, 0, {1: 3.0}):
        raise KeyError
    narrow = PretrainedSAE(np.eye(5), np.zeros(5), np.eye(5), np.zeros(5))
    with pytest.raises(ValueError, match="sae: rebuilds activations of width 5, but 0 residual gave"):
        with atoms.steer(model, narrow, 0, {1: 3.0}):
            model(ids)
    assert hooks_left(model) == before and torch.equal(model(ids).logits, clean)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "opt", "gemma2"])
def test_generation_is_that_without_a_cache(kind):
    """Tokens one by one through the cache: the first is left alone in the prompt, and no other is."""
    model = decoder(kind, vocab_size=WORDS, bos_token_id=0, eos_token_id=None, pad_token_id=0)
    sae, site = autoencoder(), {"site": "mlp"} if kind == "llama" else {}
    how = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8, "return_dict_in_generate": True}
    how |= {"output_scores": True}
    for prompt in (IDS[:1], np.array([[7]])):
        ids = torch.from_numpy(prompt)
        with atoms.steer(model, sae, 1, {5: 9.0, 6: -3.0}, **site):
            cached = model.generate(ids, attention_mask=torch.ones_like(ids), **how)
            whole = model(cached.sequences).logits[:, prompt.shape[1] - 1 : -1]
        got = torch.stack(cached.scores, 1)
        torch.testing.assert_close(got, whole, rtol=1e-3, atol=1e-3)
        clean = model(cached.sequences).logits[:, prompt.shape[1] - 1 : -1]
        assert (clean - whole).abs().max() > 1e-2

    # padding on the left: the first token of the text is not the first of the row
    padded = torch.tensor([[0, 0, *IDS[0]]])
    mask = torch.tensor([[0, 0, *np.ones(len(IDS[0]), int)]])
    with atoms.steer(model, sae, 1, {5: 9.0, 6: -3.0}, **site):
        alone = model.generate(torch.from_numpy(IDS[:1]), attention_mask=mask[:, 2:], **how)
        left = model.generate(padded, attention_mask=mask, **how)
    torch.testing.assert_close(
        torch.stack(left.scores, 1), torch.stack(alone.scores, 1), rtol=1e-3, atol=1e-3
    )


def test_the_first_token_where_wanted(model):
    sae, ids = autoencoder(), torch.from_numpy(IDS)
    with atoms.steer(model, sae, 2, {5: 9.0}):
        kept = model(ids).logits
    with atoms.steer(model, sae, 2, {5: 9.0}, drop_first=False):
        changed = model(ids).logits
    clean = model(ids).logits
    assert torch.equal(kept[:, 0], clean[:, 0]) and not torch.allclose(changed[:, 0], clean[:, 0])
    torch.testing.assert_close(kept[:, 1:], changed[:, 1:])


def test_half_precision_and_gradients(model):
    sae, ids = autoencoder(), torch.from_numpy(IDS)
    half = decoder(vocab_size=WORDS).to(torch.bfloat16)
    with atoms.steer(half, sae, 1, {5: 9.0}):
        assert half(ids).logits.dtype == torch.bfloat16
    with atoms.steer(model, sae.to_torch(), 1, {5: 9.0}):
        model(ids).logits.sum().backward()
    assert model.model.embed_tokens.weight.grad.any()
    model.zero_grad()


def test_a_named_module_and_hook_points():
    """What TransformerLens offers: hook points that models of Transformers have not."""
    torch.manual_seed(0)
    plain = torch.nn.Sequential(
        torch.nn.Embedding(WORDS, D), torch.nn.Linear(D, D), torch.nn.Linear(D, WORDS)
    )

    class Hooked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.point = plain, torch.nn.Identity()
            self.hook_dict = {"blocks.0.hook_resid_post": self.point}

        def forward(self, ids):
            return self.inner[2](self.point(self.inner[1](self.inner[0](ids))))

    hooked, ids = Hooked(), torch.from_numpy(IDS)
    with atoms.steer(hooked, autoencoder(), 0, {5: 9.0}):
        got = hooked(ids)
    with atoms.steer(plain, autoencoder(), "1", {5: 9.0}):
        assert torch.equal(plain(ids), got)
    assert torch.equal(hooked(ids), plain(ids)) and not torch.equal(plain(ids), got)


def test_what_is_wrong_is_said(model):
    sae = autoencoder()
    for error, match, arguments in (
        (ValueError, "layers: the model has blocks 0 to 2, got 3", (sae, 3)),
        (ValueError, "layers: LlamaForCausalLM has no module 'nowhere'", (sae, "nowhere")),
        (ValueError, "layer: expected one layer at one site, got 2", (sae, [0, 1])),
        (ValueError, "latents: expected latents from 0 to 39, got 40", (sae, 1, {40: 1.0})),
        (ValueError, "latents: expected latents from 0 to 39, got 'a'", (sae, 1, {"a": 1.0})),
        (ValueError, "latents: expected latents from 0 to 39, got True", (sae, 1, {True: 1.0})),
        (ValueError, "latents: expected a finite number for latent 1, got nan", (sae, 1, {1: np.nan})),
        (ValueError, "latents: expected a finite number for latent 1, got '4'", (sae, 1, {1: "4"})),
        (TypeError, "latents: expected a mapping", (sae, 1, [17])),
        (TypeError, "without encode", (np.eye(3), 1, {1: 1.0})),
        (ValueError, "not fitted", (atoms.DictionaryLearning(S), 1, {1: 1.0})),
        (ValueError, "sae: is a transcoder", (autoencoder(is_transcoder=True), 1, {1: 1.0})),
    ):
        with pytest.raises(error, match=match), atoms.steer(model, *arguments):
            pass
    with pytest.raises(ValueError, match="scale: latent 5 is also set"):
        with atoms.steer(model, sae, 1, {5: 1.0}, scale={5: 2.0}):
            pass
    with pytest.raises(TypeError, match="model: expected a PyTorch module"):
        with atoms.steer("gpt2", sae, 1):
            pass


# ------------------------------------------------------------------ attribution


@pytest.mark.parametrize("norm", ["none", "layer_norm", "constant_norm_rescale"])
def test_attribution_is_the_derivative_of_scaling_a_latent(model, norm):
    model64 = decoder(vocab_size=WORDS).to(torch.float64)
    model64.load_state_dict(model.state_dict())
    model64.to(torch.float64)
    sae = autoencoder(input_norm=norm)
    found = latent_attribution(model64, sae, IDS[0], 0, 11, against=12, position=-2)
    assert found.shape == (9, S) and found[[0]].nnz == 0 and found[[8]].nnz == 0
    total = np.asarray(found.sum(axis=0)).ravel()
    module = sae.to_torch(dtype=torch.float64)

    def logit(j, factor):
        with torch.no_grad(), atoms.steer(model64, module, 0, scale={j: factor}):
            logits = model64(torch.from_numpy(IDS[:1])).logits[0, -2]
        return float(logits[11] - logits[12])

    for j in np.argsort(-np.abs(total))[:6].tolist():
        slope = (logit(j, 1 + 1e-3) - logit(j, 1 - 1e-3)) / 2e-3
        assert total[j] == pytest.approx(slope, rel=2e-2, abs=2e-3 * float(np.abs(total).max()))


def test_attribution_of_a_dictionary_is_that_of_its_codes(model):
    rows = np.array(capture(model, IDS, 0, verbose=False)[0])
    rows = np.concatenate([rows + np.random.default_rng(i).normal(0, 0.1, rows.shape) for i in range(20)])
    learned = atoms.DictionaryLearning(S, n_nonzero=4, batch_size=64, max_steps=5, verbose=False).fit(rows)
    found = latent_attribution(model, learned, IDS[0], 0, 11)
    codes = learned.transform(capture(model, IDS[:1], 0, verbose=False)[0])
    assert set(zip(*found.nonzero())) == {(i + 1, j) for i, j in zip(*codes.nonzero())} and found.nnz
    total = np.asarray(found.sum(axis=0)).ravel()
    for j in np.argsort(-np.abs(total))[:3].tolist():
        up, down = (logit_of(model, learned, j, 1 + sign * 1e-2) for sign in (1, -1))
        assert total[j] == pytest.approx((up - down) / 2e-2, rel=0.1, abs=0.02 * float(np.abs(total).max()))


def logit_of(model, learned, j, factor):
    with torch.no_grad(), atoms.steer(model, learned, 0, scale={j: factor}):
        return float(model(torch.from_numpy(IDS[:1])).logits[0, -1, 11])


def test_attribution_leaves_no_gradients_and_says_what_is_wrong(model):
    sae = autoencoder()
    with torch.no_grad():
        a = latent_attribution(model, sae, IDS[0], 1, 11)
    whole = latent_attribution(model, sae, IDS[0], 1, 11, drop_first=False)
    np.testing.assert_allclose(whole.toarray()[1:], a.toarray()[1:], rtol=1e-5, atol=1e-6)
    assert whole[[0]].nnz and all(p.grad is None for p in model.parameters())
    assert not model.training
    narrow = PretrainedSAE(np.eye(5), np.zeros(5), np.eye(5), np.zeros(5))
    for match, arguments, more in (
        ("tokens: expected one context and one layer, got 2", (sae, IDS, 1, 11), {}),
        ("token: expected a word from 0 to 60, got 61", (sae, IDS[0], 1, 61), {}),
        ("against: expected a word from 0 to 60, got -1", (sae, IDS[0], 1, 1), {"against": -1}),
        ("position: the context has 9 tokens, got 9", (sae, IDS[0], 1, 1), {"position": 9}),
        ("sae: rebuilds activations of width 5", (narrow, IDS[0], 1, 1), {}),
        ("sae: is a transcoder", (autoencoder(is_transcoder=True), IDS[0], 1, 1), {}),
    ):
        with pytest.raises(ValueError, match=match):
            latent_attribution(model, *arguments, **more)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_steering_the_real_model(smollm2_folder):
    """A latent of SmolLM2's layer 15 that fires on one word, found by attribution, set, and switched off."""
    model, tokenizer = atoms.activations.load_model(str(smollm2_folder), head=True)
    text = atoms.activations.language_reference()
    contexts = atoms.activations.tokenize(text[:15_000], tokenizer, context_length=128)
    X = np.array(capture(model, contexts, 15, verbose=False)[15])
    sae = atoms.SparseAutoencoder(1152, target_l0=32, max_steps=150, verbose=False).fit(X)
    ids = atoms.activations.tokenize("The capital of France is the city of", tokenizer)[0]
    paris = tokenizer.encode(" Paris")[0]
    found = latent_attribution(model, sae, ids, 15, paris)
    total = np.asarray(found.sum(axis=0)).ravel()
    best = int(total.argmax())
    tokens = torch.from_numpy(ids)[None]

    def logit(**how):
        with torch.no_grad(), atoms.steer(model, sae, 15, **how):
            return float(model(tokens).logits[0, -1, paris])

    clean = logit()
    # without it the word's logit falls, by about what the attribution says; with more of it, it rises
    fall = clean - logit(latents={best: 0.0})
    assert 0.3 * total[best] < fall < 3 * total[best]
    assert logit(scale={best: 1.5}) > clean
    said = {}
    for strength in (0.0, 40.0):
        with atoms.steer(model, sae, 15, {best: strength}):
            out = model.generate(
                tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=12, do_sample=False
            )
        said[strength] = tokenizer.decode(out[0, len(ids) :])
    assert said[0.0] != said[40.0]
    print(best, clean, fall, total[best], said)
