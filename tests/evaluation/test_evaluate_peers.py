"""Evaluation inside the model against SAELens's own ``evals``, on the same tokens, to three digits.

SAELens judges TransformerLens's HookedTransformer. One is built without a network from a Transformers
model, by TransformerLens's own conversion of its weights: a small random one, and SmolLM2. Our figures are
taken from both, the Transformers model and the hooked one. ``make test-peers`` demands the tools.
"""

import importlib.util
import os

import numpy as np
import pytest
import torch
from support import decoder

import atoms
from atoms.activations import ActivationStream, capture, language_reference, smollm2, tokenize
from atoms.evaluation import evaluate, logit_attribution
from atoms.io import PretrainedSAE, save

if importlib.util.find_spec("sae_lens") is None:
    if os.environ.get("ATOMS_PEERS"):
        pytest.fail("sae_lens is not installed", pytrace=False)
    pytest.skip("needs sae_lens: make test-peers", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("default")  # theirs


def hooked(model):
    """TransformerLens's model with the weights of a Transformers one."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_llama_weights

    c = model.config
    head = c.hidden_size // c.num_attention_heads
    config = HookedTransformerConfig(
        n_layers=c.num_hidden_layers,
        d_model=c.hidden_size,
        n_ctx=128,
        d_head=head,
        n_heads=c.num_attention_heads,
        n_key_value_heads=c.num_key_value_heads,
        d_mlp=c.intermediate_size,
        d_vocab=c.vocab_size,
        act_fn=c.hidden_act,
        eps=c.rms_norm_eps,
        normalization_type="RMS",
        positional_embedding_type="rotary",
        rotary_dim=head,
        rotary_base=c.rope_parameters["rope_theta"],
        final_rms=True,
        gated_mlp=True,
        init_weights=False,
        device="cpu",
    )
    theirs = HookedTransformer(config)
    weights = convert_llama_weights(model, config)
    theirs.load_and_process_state_dict(
        weights, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    return theirs.eval()


def random_model():
    model = decoder(width=32, heads=4, positions=128, vocab_size=90)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.mul_(4)
    return model, np.random.default_rng(0).integers(1, 90, (40, 24)), 1


def real_model():
    model, tokenizer = smollm2(head=True)
    contexts = tokenize(language_reference(), tokenizer, context_length=48, max_tokens=47 * 12)
    return model, np.stack(contexts), 8


@pytest.fixture(scope="module", params=["random", pytest.param("smollm2", marks=pytest.mark.slow)])
def setting(request):
    model, tokens, layer = random_model() if request.param == "random" else real_model()
    theirs = hooked(model)
    with torch.no_grad():
        ids = torch.from_numpy(tokens[:2])
        np.testing.assert_allclose(theirs(ids).numpy(), model(ids).logits.numpy(), atol=2e-2, rtol=1e-3)
    return model, theirs, tokens, layer


class Tokens:
    """What SAELens's evaluation asks of its ActivationsStore: the next prompts."""

    def __init__(self, tokens):
        self.tokens, self.at = torch.from_numpy(tokens), 0

    def get_batch_tokens(self, n):
        self.at += n
        return self.tokens[self.at - n : self.at]


def theirs_say(sae, model, tokens, ignore=None):
    from sae_lens.evals import get_downstream_reconstruction_metrics, get_sparsity_and_variance_metrics
    from sae_lens.training.activation_scaler import ActivationScaler

    shared = {"eval_batch_size_prompts": 4, "n_batches": len(tokens) // 4, "ignore_tokens": ignore}
    with torch.no_grad():
        downstream = get_downstream_reconstruction_metrics(
            sae, model, Tokens(tokens), ActivationScaler(), compute_kl=True, compute_ce_loss=True, **shared
        )
        sparsity, features = get_sparsity_and_variance_metrics(
            sae,
            model,
            Tokens(tokens),
            ActivationScaler(),
            compute_l2_norms=False,
            compute_sparsity_metrics=True,
            compute_variance_metrics=True,
            compute_featurewise_density_statistics=True,
            model_kwargs={},
            **shared,
        )
    return {**downstream, **sparsity}, np.array(features["feature_density"])


def dictionaries(rows, d):
    rng = np.random.default_rng(0)
    trained = atoms.SparseAutoencoder(4 * d, target_l0=8, max_steps=100, batch_size=256, verbose=False).fit(
        rows
    )
    yield "jumprelu", trained
    D = rng.standard_normal((3 * d, d))
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    yield (
        "topk",
        PretrainedSAE(D.T, np.zeros(3 * d), D, rows.mean(0), center=rows.mean(0), activation="topk", k=6),
    )
    yield "relu", PretrainedSAE(0.3 * D.T, -rng.random(3 * d), D, rows.mean(0), activation="relu")


def agree(pairs):
    for name, (ours, theirs) in pairs.items():
        assert abs(ours - theirs) <= 5e-4 * max(1.0, abs(theirs)), (name, ours, theirs)
        print(f"{name:24}{ours:12.5f}{theirs:12.5f}")


def test_agrees_with_saelens(setting, tmp_path):
    from sae_lens import SAE

    model, theirs, tokens, layer = setting
    hook = f"blocks.{layer}.hook_resid_post"
    rows = capture(model, tokens, layer, drop_first=False, verbose=False)[layer]
    for kind, sae in dictionaries(np.array(rows), rows.shape[1]):
        save(sae, tmp_path / kind, hook_name=hook, model_name="toy")
        owner = SAE.load_from_disk(tmp_path / kind)
        want, density = theirs_say(owner, theirs, tokens)
        as_module, firing = theirs_say(sae.to_torch(hook_name=hook), theirs, tokens)
        assert as_module == pytest.approx(want, rel=1e-4, abs=1e-6)
        np.testing.assert_allclose(firing, density, atol=1.5 / tokens.size)
        for ours in (
            evaluate(model, tokens, sae, layer, drop_first=False, verbose=False),
            evaluate(theirs, tokens, sae, hook, drop_first=False, verbose=False),
        ):
            a = ours["autoencoder"]
            print(kind)
            agree(
                {
                    "ce_loss_without_sae": (ours.cross_entropy.estimate, want["ce_loss_without_sae"]),
                    "ce_loss_with_sae": (a.cross_entropy.estimate, want["ce_loss_with_sae"]),
                    "ce_loss_with_ablation": (
                        ours.cross_entropy_zero.estimate,
                        want["ce_loss_with_ablation"],
                    ),
                    "ce_loss_score": (a.recovered_zero.estimate, want["ce_loss_score"]),
                    "kl_div_with_sae": (a.kl.estimate, want["kl_div_with_sae"]),
                    "kl_div_with_ablation": (ours.kl_zero.estimate, want["kl_div_with_ablation"]),
                    "kl_div_score": (a.kl_recovered_zero.estimate, want["kl_div_score"]),
                    "explained_variance": (
                        a.explained_variance["centered"].estimate,
                        want["explained_variance"],
                    ),
                    "l0": (a.l0.estimate, want["l0"]),
                }
            )
            np.testing.assert_allclose(a.density, density, atol=2.5 / tokens.size)


def test_agrees_where_first_tokens_are_ignored(setting, tmp_path):
    """SAELens ignores tokens by id; what it ablates is everything all the same, so ablations differ."""
    from sae_lens import SAE

    model, theirs, tokens, layer = setting
    tokens = tokens.copy()
    tokens[:, 0] = 0
    tokens[:, 1:][tokens[:, 1:] == 0] = 1
    rows = capture(model, tokens, layer, verbose=False)[layer]
    kind, sae = next(dictionaries(np.array(rows), rows.shape[1]))
    save(sae, tmp_path / kind, hook_name=f"blocks.{layer}.hook_resid_post", model_name="toy")
    want, density = theirs_say(SAE.load_from_disk(tmp_path / kind), theirs, tokens, ignore=[0])
    ours = evaluate(model, tokens, sae, layer, verbose=False)
    a = ours["autoencoder"]
    agree(
        {
            "ce_loss_without_sae": (ours.cross_entropy.estimate, want["ce_loss_without_sae"]),
            "ce_loss_with_sae": (a.cross_entropy.estimate, want["ce_loss_with_sae"]),
            "kl_div_with_sae": (a.kl.estimate, want["kl_div_with_sae"]),
            "explained_variance": (a.explained_variance["centered"].estimate, want["explained_variance"]),
            "l0": (a.l0.estimate, want["l0"]),
        }
    )
    np.testing.assert_allclose(a.density, density, atol=2.5 / tokens.size)


class Store(Tokens):
    """What their runs of all metrics ask for besides."""

    store_batch_size_prompts = 4

    @property
    def context_size(self):
        return self.tokens.shape[1]

    def reset_input_dataset(self):
        self.at = 0


ALL = {
    "batch_size_prompts": 4, "n_eval_reconstruction_batches": 2, "n_eval_sparsity_variance_batches": 2,
    "compute_kl": True, "compute_ce_loss": True, "compute_l2_norms": True, "compute_sparsity_metrics": True,
    "compute_variance_metrics": True, "compute_featurewise_density_statistics": True,
    "compute_featurewise_weight_based_metrics": True,
}  # fmt: skip


@pytest.mark.parametrize("tool", ["sae_lens", "sae_bench"])
def test_runs_of_all_their_metrics_take_a_module(setting, tool):
    """SAELens's `run_evals` and SAEBench's core metrics, on an autoencoder trained under a metric."""
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"needs {tool}: make test-peers")
    model, theirs, tokens, layer = setting
    rows = np.array(capture(model, tokens, layer, verbose=False)[layer])
    aip = atoms.AtomicInnerProduct(shrinkage="oas").fit(rows)
    sae = atoms.SparseAutoencoder(
        4 * rows.shape[1], metric=aip, target_l0=8, max_steps=100, batch_size=256, verbose=False
    ).fit(rows)
    module = sae.to_torch(hook_name=f"blocks.{layer}.hook_resid_post", model_name="toy")
    if tool == "sae_lens":
        from sae_lens.evals import EvalConfig, run_evals
        from sae_lens.training.activation_scaler import ActivationScaler

        found, features = run_evals(
            module, Store(tokens), theirs, ActivationScaler(), EvalConfig(**ALL), exclude_special_tokens=False
        )
        np.testing.assert_allclose(features["encoder_bias"], sae.b_enc, rtol=1e-4, atol=1e-4)
    else:
        from sae_bench.evals.core.main import CoreEvalConfig, run_evals

        module.fold_W_dec_norm()
        with torch.no_grad():
            found, features = run_evals(
                module, Store(tokens), theirs, CoreEvalConfig(model_name="toy", llm_dtype="float32", **ALL)
            )
    ours = evaluate(model, tokens[:8], sae, layer, drop_first=False, verbose=False)
    a, behaviour = ours["autoencoder"], found["model_behavior_preservation"]
    agree(
        {
            "ce_loss_score": (
                a.recovered_zero.estimate,
                found["model_performance_preservation"]["ce_loss_score"],
            ),
            "kl_div_score": (a.kl_recovered_zero.estimate, behaviour["kl_div_score"]),
            "l0": (a.l0.estimate, found["sparsity"]["l0"]),
        }
    )
    assert len(features["encoder_decoder_cosine_sim"]) == sae.d_sae


def test_capture_from_a_hooked_transformer(setting):
    """By number, by site and by hook name, against run_with_cache."""
    model, theirs, tokens, layer = setting
    names = [
        f"blocks.{layer}.{h}" for h in ("hook_resid_post", "hook_mlp_out", "hook_attn_out", "attn.hook_z")
    ]
    got = capture(theirs, tokens[:6], layer, site=["residual", "mlp", "attention"], verbose=False)
    named = capture(theirs, tokens[:6], names, verbose=False)
    with torch.no_grad():
        _, cache = theirs.run_with_cache(torch.from_numpy(tokens[:6]), names_filter=names)
    for site, name in zip(("residual", "mlp", "attention", None), names, strict=True):
        want = cache[name][:, 1:].reshape(len(named), -1).numpy()
        for rows in (named[name], *([got[layer, site]] if site else [])):
            np.testing.assert_allclose(rows, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())
    assert not any(p.fwd_hooks for p in theirs.hook_dict.values())
    stream = ActivationStream(theirs, tokens[:6], names[0])
    np.testing.assert_array_equal(np.concatenate(list(stream.blocks())), named[names[0]])
    same = capture(model, tokens[:6], layer, verbose=False)[layer]
    np.testing.assert_allclose(got[layer], same, rtol=1e-3, atol=1e-3 * np.abs(same).max())


def test_logit_attribution_of_a_hooked_transformer(setting):
    model, theirs, _, _ = setting
    d = model.config.hidden_size
    sae = atoms.controls.RandomDictionary(9, l0=1).fit(np.random.default_rng(0).standard_normal((9, d)))
    a, b = logit_attribution(model, sae), logit_attribution(theirs, sae)
    np.testing.assert_array_equal(a.top_ids[:, 0], b.top_ids[:, 0])
    np.testing.assert_allclose(a.top_values, b.top_values, rtol=1e-4)
