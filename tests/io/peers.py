"""Small models that other tools' own trainers train and write, with their own codes and reconstructions.

``python tests/io/peers.py FOLDER`` writes them all (tests/io/data/peers keeps such a set, for machines without
the tools); test_io_peers.py writes fresh ones and compares.
"""

import contextlib
import importlib
import json
import sys
import types
import warnings
from pathlib import Path

import numpy as np

D, S = 16, 48
_REAL = None


@contextlib.contextmanager
def real(X, d_sae):
    """Inside, the models are trained and tried on these activations (n, d), the last quarter held out."""
    global D, S, _REAL
    before = D, S, _REAL
    D, S, _REAL = X.shape[1], d_sae, X
    try:
        yield
    finally:
        D, S, _REAL = before


def activations(n=2048, seed=0):
    """Sparse mixtures off the origin, so that biases and thresholds matter; seed 0 is for training."""
    rng = np.random.default_rng(seed)
    if _REAL is not None:
        held = len(_REAL) // 4
        rows = _REAL[:-held] if seed == 0 else _REAL[-held:]
        return rows[rng.permutation(len(rows))[:n]].astype(np.float32)
    d = D
    atoms = np.random.default_rng(7).standard_normal((32, d))
    codes = rng.exponential(2.0, (n, 32)) * (rng.random((n, 32)) < 0.1)
    return (codes @ atoms + 0.1 * rng.standard_normal((n, d)) + 1.5 * atoms[0]).astype(np.float32)


def _batches(seed=0):
    import torch

    x = torch.from_numpy(activations(seed=seed))
    while True:
        for i in range(0, len(x), 256):
            yield x[i : i + 256].clone()


def _write(folder, x, codes, out):
    np.savez(
        folder / "expected.npz", x=x, codes=np.asarray(codes, np.float32), out=np.asarray(out, np.float32)
    )


# ------------------------------------------------------------------ SAELens


def _saelens(architecture, folder, checkpoint=False, steps=40, **options):
    import torch
    from sae_lens import SAE, TrainingSAE
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(0)
    config = {
        "architecture": architecture,
        "d_in": D,
        "d_sae": S,
        "dtype": "float32",
        "device": "cpu",
        **options,
    }
    sae = TrainingSAE.from_dict(config)
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=256 * steps,
            train_batch_size_samples=256,
            lr=3e-3,
            lr_end=3e-4,
            n_batches_for_norm_estimate=8,
        ),
        sae,
        _batches(),
    )
    x = activations(64, 1)
    if checkpoint:
        # stop before the scale is folded in, as a killed run leaves it
        fit_norm = trainer.activation_scaler
        if config.get("normalize_activations") == "covariance_whitening":
            fit_norm.estimate_whitening(d_in=D, data_provider=_batches(), n_batches_for_norm_estimate=8)
        else:
            fit_norm.estimate_scaling_factor(d_in=D, data_provider=_batches(), n_batches_for_norm_estimate=8)
        for _ in range(steps):
            trainer.step(next(trainer.data_provider))
            trainer.n_training_steps += 1
        trainer.save_checkpoint(".", base_path=folder)
        (folder / "trainer_state.pt").unlink()
        if fit_norm.whitening is not None:
            w = fit_norm.whitening
            sae.fold_activation_whitening(w.mean, w.matrix, w.inverse_matrix)
        else:
            sae.fold_activation_norm_scaling_factor(fit_norm.scaling_factor)
        where = folder.with_name(folder.name + ".folded")
        sae.save_inference_model(where)
    else:
        trainer.fit()
        sae.save_inference_model(folder)
        where = folder
    owner = SAE.load_from_disk(where)
    with torch.no_grad():
        codes = owner.encode(torch.from_numpy(x))
        out = owner(torch.from_numpy(x))
    if where != folder:
        import shutil

        shutil.rmtree(where)
    _write(folder, x, codes.to_dense() if codes.is_sparse else codes, out)


def _saelens_legacy(folder):
    """The layout of before version 6, from weights of today."""
    _saelens("topk", folder, k=5)
    config = json.loads((folder / "cfg.json").read_text())
    flat = {
        k: v
        for k, v in config.items()
        if k not in ("metadata", "k", "architecture", "rescale_acts_by_decoder_norm")
    }
    flat |= {
        "architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": config["k"]},
        "normalize_activations": False, "hook_point": "blocks.0.hook_resid_post", "dtype": "torch.float32",
    }  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(flat))
    import torch
    from sae_lens import SAE

    owner, x = SAE.load_from_disk(folder), torch.from_numpy(activations(64, 1))
    with torch.no_grad():
        _write(folder, x.numpy(), owner.encode(x), owner(x))


def _saelens_inference(architecture, folder, d_out=None, **options):
    """An architecture that SAELens loads and does not train here: its own class, weights and save_model."""
    import torch
    from sae_lens import SAE
    from sae_lens.registry import get_sae_class

    torch.manual_seed(0)
    cls, config_cls = get_sae_class(architecture)
    if d_out:
        options |= {"d_out": d_out, "apply_b_dec_to_input": False}
    sae = cls(config_cls.from_dict({"architecture": architecture, "d_in": D, "d_sae": S, **options}))
    with torch.no_grad():
        for name, p in sae.named_parameters():
            p.copy_(torch.randn_like(p) * 0.3)
            if name == "threshold":
                p.copy_(p.abs() + 0.1)
    sae.save_model(folder)
    owner, x = SAE.load_from_disk(folder), torch.from_numpy(activations(64, 1))
    with torch.no_grad():
        _write(folder, x.numpy(), owner.encode(x), owner(x))


# ------------------------------------------------------------------ Gemma Scope


def _gemma_weights():
    rng = np.random.default_rng(3)
    w = {
        "W_enc": rng.standard_normal((D, S)) * 0.3,
        "b_enc": rng.standard_normal(S) * 0.1,
        "W_dec": rng.standard_normal((S, D)) * 0.3,
        "b_dec": rng.standard_normal(D),
        "threshold": rng.random(S) + 0.1,
    }
    return {k: v.astype(np.float32) for k, v in w.items()}


def _gemma(folder, version, repo_folder, extra=None):
    """Random weights in the layout of the release; SAELens's loaders of it are the judge."""
    import torch
    from sae_lens import SAE
    from sae_lens.loading import pretrained_sae_loaders as loaders

    where = folder / repo_folder
    where.mkdir(parents=True)
    weights = {**_gemma_weights(), **(extra or {})}
    if version == 1:
        np.savez(where / "params.npz", **weights)
        loader = loaders.gemma_2_sae_huggingface_loader
    else:
        from safetensors.torch import save_file

        renamed = {k.replace("W_", "w_"): torch.from_numpy(v).to(torch.bfloat16) for k, v in weights.items()}
        save_file(renamed, where / "params.safetensors")
        config = {
            "architecture": "jump_relu", "model_name": "gemma-v3-270m-pt", "affine_connection": bool(extra),
            "hf_hook_point_in": "x", "hf_hook_point_out": "y" if extra else "x",
        }  # fmt: skip
        (where / "config.json").write_text(json.dumps(config))
        loader = loaders.gemma_3_sae_huggingface_loader
    shapes = {k.replace("W_", "w_"): list(v.shape) for k, v in weights.items()}
    kept = loaders.hf_hub_download, loaders.get_safetensors_tensor_shapes
    loaders.hf_hub_download = lambda repo_id, filename, subfolder="", **_: str(folder / subfolder / filename)
    loaders.get_safetensors_tensor_shapes = lambda *_: shapes
    try:
        config, state, _ = loader(
            repo_id="google/gemma-scope-2b-pt-res", folder_name=repo_folder, device="cpu",
            cfg_overrides={"d_in": D, "d_sae": S},
        )  # fmt: skip
    finally:
        loaders.hf_hub_download, loaders.get_safetensors_tensor_shapes = kept
    owner = SAE.load_from_disk(".", converter=lambda *_a, **_k: (config, state))
    scale = np.sqrt(D) if "embedding" in repo_folder else 1
    x = torch.from_numpy((activations(64, 1) * scale).astype(np.float32))
    with torch.no_grad():
        _write(where, x.numpy(), owner.encode(x), owner(x))
    return where


# ------------------------------------------------------------------ dictionary_learning


def _dictionary_learning_modules():
    """Its buffer wants nnsight, and its trainers' log wandb; neither is used here."""
    for name, members in {"nnsight": ["LanguageModel"], "wandb": []}.items():
        try:
            importlib.import_module(name)
        except ImportError:
            module = types.ModuleType(name)
            for member in members:
                setattr(module, member, object)
            sys.modules[name] = module
    from dictionary_learning import dictionary, training
    from dictionary_learning.trainers import (
        batch_top_k,
        gated_anneal,
        jumprelu,
        matryoshka_batch_top_k,
        standard,
        top_k,
    )

    return types.SimpleNamespace(**{
        name: getattr(module, name)
        for module, names in {
            standard: ["StandardTrainer"], top_k: ["TopKTrainer", "AutoEncoderTopK"],
            batch_top_k: ["BatchTopKTrainer", "BatchTopKSAE"], jumprelu: ["JumpReluTrainer"],
            matryoshka_batch_top_k: ["MatryoshkaBatchTopKTrainer", "MatryoshkaBatchTopKSAE"],
            gated_anneal: ["GatedAnnealTrainer"], training: ["trainSAE"],
            dictionary: ["AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder"],
        }.items()
        for name in names
    })  # fmt: skip


def _dictionary_learning(trainer, reader, folder, interrupted=False, steps=60, **options):
    import torch

    dl = _dictionary_learning_modules()
    torch.manual_seed(0)
    options = {k: getattr(dl, v) if k == "dict_class" else v for k, v in options.items()}
    config = {
        "trainer": getattr(dl, trainer), "activation_dim": D, "dict_size": S, "layer": 0, "lm_name": "none",
        "steps": steps, "lr": 3e-3, "warmup_steps": 5, "device": "cpu", **options,
    }  # fmt: skip
    if trainer in ("StandardTrainer", "JumpReluTrainer"):
        config["sparsity_warmup_steps"] = 10
    x = torch.from_numpy(activations(64, 1))
    dl.trainSAE(
        _batches(),
        [config],
        steps=steps,
        save_dir=str(folder),
        device="cpu",
        normalize_activations=interrupted,
    )
    inner = folder / "trainer_0"
    for file in ("ae.pt", "config.json"):
        (inner / file).rename(folder / file)
    inner.rmdir()
    cls = getattr(dl, reader)
    extra = {"normalize_decoder": False} if reader == "AutoEncoder" else {}
    owner = cls.from_pretrained(str(folder / "ae.pt"), **extra)
    if owner is None:  # AutoEncoderTopK's and others' from_pretrained forget the return in this release
        raise RuntimeError(f"{reader}.from_pretrained gave nothing")
    with torch.no_grad():
        _write(folder, x.numpy(), owner.encode(x), owner.decode(owner.encode(x)))
    if interrupted:
        # as later versions leave a run that was stopped: biases not scaled back, beside their factor
        factor = json.loads((folder / "config.json").read_text())["trainer"].get("norm_factor", 2.5)
        owner.scale_biases(1 / factor)
        state = {
            "step": 3,
            "ae": owner.state_dict(),
            "optimizer": {"state": {}},
            "config": {},
            "norm_factor": factor,
        }
        torch.save(state, folder / "ae.pt")


def _auto_encoder_new(folder, steps=60):
    """No trainer of this release trains it (StandardTrainer normalises its bias to NaN): its class, trained by hand."""
    import torch

    dl = _dictionary_learning_modules()
    torch.manual_seed(0)
    ae = dl.AutoEncoderNew(D, S)
    adam = torch.optim.Adam(ae.parameters(), 3e-3)
    for _, x in zip(range(steps), _batches()):
        out, codes = ae(x, output_features=True)
        adam.zero_grad()
        ((out - x).square().sum(1).mean() + 0.1 * codes.abs().sum(1).mean()).backward()
        adam.step()
    torch.save(ae.state_dict(), folder / "ae.pt")
    trainer = {"dict_class": "AutoEncoderNew", "activation_dim": D, "dict_size": S}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer}))
    owner, x = dl.AutoEncoderNew.from_pretrained(str(folder / "ae.pt")), torch.from_numpy(activations(64, 1))
    with torch.no_grad():
        _write(folder, x.numpy(), owner.encode(x), owner(x))


# ------------------------------------------------------------------ sparsify


def _sparsify(folder, **options):
    import torch
    from datasets import Dataset
    from sparsify import SparseCoder, SparseCoderConfig, TrainConfig, Trainer
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    model = LlamaModel(
        LlamaConfig(
            vocab_size=64, hidden_size=D, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2,
        )
    )  # fmt: skip
    data = Dataset.from_dict({"input_ids": torch.randint(0, 64, (64, 32)).tolist()}).with_format("torch")
    config = TrainConfig(
        SparseCoderConfig(num_latents=S, k=6, **options), batch_size=4, hookpoints=["layers.1"], log_to_wandb=False,
        save_dir=str(folder / "run"), run_name="x", save_every=10**6,
    )  # fmt: skip
    Trainer(config, data, model).fit()
    (found,) = list((folder / "run").rglob("sae.safetensors"))
    for file in ("cfg.json", "sae.safetensors"):
        (found.parent / file).rename(folder / file)
    import shutil

    shutil.rmtree(folder / "run")
    owner = SparseCoder.load_from_disk(folder)
    x = activations(64, 1)
    with torch.no_grad():
        got = owner.encode(torch.from_numpy(x))
        codes = torch.zeros(len(x), S).scatter_(1, got.top_indices, got.top_acts)
        out = owner(torch.from_numpy(x)).sae_out
    _write(folder, x, codes, out)


MODELS = {
    "saelens-standard": lambda f: _saelens("standard", f, l1_coefficient=0.1),
    "saelens-standard-scaled": lambda f: _saelens(
        "standard", f, l1_coefficient=0.1, normalize_activations="expected_average_only_in"
    ),
    "saelens-standard-checkpoint": lambda f: _saelens(
        "standard", f, checkpoint=True, normalize_activations="expected_average_only_in"
    ),
    "saelens-whitening-checkpoint": lambda f: _saelens(
        "jumprelu", f, checkpoint=True, normalize_activations="covariance_whitening"
    ),
    "saelens-whitening-centred-checkpoint": lambda f: _saelens(
        "standard", f, checkpoint=True, normalize_activations="covariance_whitening", apply_b_dec_to_input=True
    ),
    "saelens-topk": lambda f: _saelens("topk", f, k=5),
    "saelens-topk-norms": lambda f: _saelens_inference("topk", f, k=5, rescale_acts_by_decoder_norm=True),
    "saelens-jumprelu": lambda f: _saelens("jumprelu", f),
    "saelens-batchtopk": lambda f: _saelens("batchtopk", f, k=5),
    "saelens-batchtopk-checkpoint": lambda f: _saelens(
        "batchtopk", f, k=5, checkpoint=True, normalize_activations="expected_average_only_in"
    ),
    "saelens-gated": lambda f: _saelens("gated", f, l1_coefficient=0.1),
    "saelens-layer-norm": lambda f: _saelens("standard", f, normalize_activations="layer_norm"),
    "saelens-constant-norm": lambda f: _saelens_inference("jumprelu", f, normalize_activations="constant_norm_rescale"),
    "saelens-matryoshka": lambda f: _saelens("matryoshka_batchtopk", f, k=5, matryoshka_widths=[16, S]),
    "saelens-legacy": _saelens_legacy,
    "saelens-transcoder": lambda f: _saelens_inference("transcoder", f, d_out=12),
    "saelens-skip-transcoder": lambda f: _saelens_inference("skip_transcoder", f, d_out=12),
    "saelens-jumprelu-transcoder": lambda f: _saelens_inference("jumprelu_transcoder", f, d_out=D),
    "saelens-jumprelu-skip-transcoder": lambda f: _saelens_inference("jumprelu_skip_transcoder", f, d_out=D),
    "gemma-scope": lambda f: _gemma(f, 1, "layer_3/width_16k/average_l0_71"),
    "gemma-scope-embedding": lambda f: _gemma(f, 1, "embedding/width_4k/average_l0_111"),
    "gemma-scope-2": lambda f: _gemma(f, 2, "resid_post/layer_3_width_16k_l0_small"),
    "gemma-scope-2-transcoder": lambda f: _gemma(
        f, 2, "transcoder/layer_3_width_16k_l0_small_affine",
        {"affine_skip_connection": np.random.default_rng(5).standard_normal((D, D)).astype(np.float32)},
    ),
    "dl-AutoEncoder": lambda f: _dictionary_learning("StandardTrainer", "AutoEncoder", f),
    "dl-AutoEncoderNew": lambda f: _auto_encoder_new(f),
    "dl-AutoEncoderTopK": lambda f: _dictionary_learning(
        "TopKTrainer", "AutoEncoderTopK", f, k=5, threshold_start_step=10
    ),
    "dl-BatchTopKSAE": lambda f: _dictionary_learning(
        "BatchTopKTrainer", "BatchTopKSAE", f, k=5, threshold_start_step=10
    ),
    "dl-BatchTopKSAE-interrupted": lambda f: _dictionary_learning(
        "BatchTopKTrainer", "BatchTopKSAE", f, interrupted=True, k=5, threshold_start_step=10
    ),
    "dl-MatryoshkaBatchTopKSAE": lambda f: _dictionary_learning(
        "MatryoshkaBatchTopKTrainer", "MatryoshkaBatchTopKSAE", f, k=5, threshold_start_step=10,
        group_fractions=[0.25, 0.75],
    ),
    "dl-JumpReluAutoEncoder": lambda f: _dictionary_learning("JumpReluTrainer", "JumpReluAutoEncoder", f),
    "dl-GatedAutoEncoder": lambda f: _dictionary_learning(
        "GatedAnnealTrainer", "GatedAutoEncoder", f, anneal_start=20, n_sparsity_updates=2, sparsity_warmup_steps=10
    ),
    "sparsify": lambda f: _sparsify(f),
    "sparsify-skip-transcoder": lambda f: _sparsify(f, transcode=True, skip_connection=True),
}  # fmt: skip


def make(name, folder):
    """Train and write one model; the folder of its files and expected.npz."""
    folder = Path(folder) / name
    folder.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        where = MODELS[name](folder)
    return where or folder


if __name__ == "__main__":
    for name in sys.argv[2:] or MODELS:
        print(make(name, sys.argv[1]), flush=True)
