"""One importer for each tool: its weights and configuration to a PretrainedSAE.

Each was checked against the forward pass of the tool it names (tests/io/test_io_peers.py).
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .._config import one_blas_thread
from .._rows import columns
from ._files import plain, read_json, read_npz, read_safetensors, read_torch
from ._model import PretrainedSAE, is_legacy
from ._stored import StoredMatrix

__all__ = ["crosscoder", "dictionary_learning", "gemma_scope", "gemma_scope_2", "saelens", "sparsify"]

Tensors = dict[str, Any]  # arrays, and matrices that stay in their file
STORED = ("W_enc", "W_dec", "w_enc", "w_dec", "encoder.weight")  # which may, with ``in_memory=False``


def _take(tensors: Tensors, path: Path, needed: Iterable[str], optional: Iterable[str] = ()) -> None:
    """Exactly these weights: a missing one is damage, an unknown one may change the result."""
    needed, optional = list(needed), list(optional)
    missing = [name for name in needed if name not in tensors]
    unknown = sorted(set(tensors) - set(needed) - set(optional))
    if missing or unknown:
        faults = [
            f"{what} {', '.join(names[:8])}"
            for what, names in (("no", missing), ("unknown", unknown))
            if names
        ]
        raise ValueError(f"{path}: {' and '.join(faults)}; expected the weights {', '.join(needed)}")


def _integer(config: dict[str, Any], key: str, path: Path, default: Any = None) -> int:
    value = config.get(key, default)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{path}: {key} should be a positive integer, is {value!r}")
    return value


def _switch(config: dict[str, Any], key: str, path: Path, default: bool) -> bool:
    """What the configuration says of something that is either on or off."""
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{path}: {key} should be true or false, is {value!r}")
    return default if value is None else value


def _check_known(config: dict[str, Any], known: frozenset[str], path: Path) -> None:
    """A setting that this reader does not know may change the codes: none is passed over, unless it is off."""
    unknown = [
        key
        for key, value in config.items()
        if key not in known and value not in (None, False, "", "none", [], {})
    ]
    if unknown:
        said = ", ".join(f"{key} = {config[key]!r}" for key in unknown[:8])
        raise ValueError(
            f"{path}: {said} is not understood and may change the codes; "
            "where it does not, take it out of the file"
        )


def _scalar(a: Any, name: str, path: Path) -> float:
    a = np.asarray(a)
    if a.size != 1 or a.dtype.kind not in "iuf" or not np.isfinite(a).all():
        raise ValueError(f"{path}: {name} should be one finite number, has shape {a.shape}")
    return float(a.reshape(()))


def _model(path: Path, *args: Any, **kwargs: Any) -> PretrainedSAE:
    try:
        return PretrainedSAE(*args, **kwargs)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _check_size(model: PretrainedSAE, config: dict[str, Any], names: tuple[str, ...], path: Path) -> None:
    for name, have in zip(names, (model.n_features_in_, model.d_sae, model.d_out)):
        if name in config and config[name] != have:
            raise ValueError(f"{path}: the configuration says {name} = {config[name]!r}, the weights {have}")


def _check_kept(a: Any, path: Path, why: str) -> None:
    """What stays in its file cannot be changed on the way."""
    if isinstance(a, StoredMatrix):
        raise ValueError(
            f"in_memory: the weights of {path} are not used as they are stored ({why}); load it into memory once "
            "and write it with atoms.io.save"
        )


@dataclasses.dataclass
class _Weights:
    """An autoencoder while what its tool applies beside the weights is folded into them."""

    W_enc: Any
    b_enc: Any
    W_dec: Any
    b_dec: Any
    threshold: Any = None
    center: Any = None  #: subtracted from the input before W_enc
    activation: str = "jumprelu"
    k: int | None = None


def _check_gates(w: Tensors, names: Iterable[str], path: Path, shape: tuple[int, ...]) -> None:
    for name in names:
        if w[name].shape != shape:
            raise ValueError(f"{path}: {name} has shape {w[name].shape}, expected {shape}")


def _gated(w: Tensors, W_gate: np.ndarray, b_gate: np.ndarray, b_mag: np.ndarray) -> tuple[Any, Any, Any]:
    """W_enc, b_enc and threshold of the JumpReLU encoder that a gated encoder is."""
    scale = np.exp(w["r_mag"].astype(np.float64))
    threshold = np.maximum(b_mag - scale * b_gate.astype(np.float64), 0)
    return W_gate * scale, b_mag, threshold


# ------------------------------------------------------------------ SAELens

_SAELENS = ("W_enc", "b_enc", "W_dec", "b_dec")
_SAELENS_KEYS = {
    "standard": _SAELENS,
    "topk": _SAELENS,
    "jumprelu": (*_SAELENS, "threshold"),
    "batchtopk": (*_SAELENS, "topk_threshold"),
    "matryoshka_batchtopk": (*_SAELENS, "topk_threshold"),
    "gated": ("W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag"),
    "transcoder": _SAELENS,
    "skip_transcoder": (*_SAELENS, "W_skip"),
    "jumprelu_transcoder": (*_SAELENS, "threshold"),
    "jumprelu_skip_transcoder": (*_SAELENS, "threshold", "W_skip"),
}


# settings of SAELens 6 that a reader of its weights knows, or that only training asks for
_SAELENS_SETTINGS = frozenset(
    """
    architecture d_in d_sae d_out dtype device apply_b_dec_to_input normalize_activations reshape_activations
    metadata k rescale_acts_by_decoder_norm finetuning_scaling_factor activation_fn activation_fn_str
    activation_fn_kwargs
    decoder_init_norm jumprelu_init_threshold jumprelu_bandwidth jumprelu_sparsity_loss_mode jumprelu_tanh_scale
    jumprelu_ste_to_input target_l0 l0_coefficient l0_warm_up_steps pre_act_loss_coefficient l1_coefficient
    l1_warm_up_steps lp_norm use_sparse_activations aux_loss_coefficient topk_threshold_lr matryoshka_widths
    sae_lens_version sae_lens_training_version model_name model_class_name hook_name hook_point hook_layer hook_eval
    hook_head_index hook_point_head_index hook_name_out hook_layer_out hook_head_index_out model_kwargs
    model_from_pretrained_kwargs prepend_bos exclude_special_tokens neuronpedia_id context_size seqpos_slice
    dataset_path dataset_trust_remote_code streaming is_dataset_tokenized use_cached_activations
    cached_activations_path from_pretrained_path n_batches_in_buffer training_tokens total_training_samples
    store_batch_size_prompts disable_concat_sequences sequence_separator_token act_store_device seed autocast
    autocast_lm compile_llm llm_compilation_mode compile_sae sae_compilation_mode train_batch_size_tokens
    train_batch_size_samples adam_beta1 adam_beta2 lr lr_scheduler_name lr_warm_up_steps lr_end lr_decay_steps
    n_restart_cycles dead_feature_window feature_sampling_window dead_feature_threshold n_eval_batches
    eval_batch_size_prompts logger n_checkpoints checkpoint_path save_final_checkpoint output_path
    resume_from_checkpoint verbose
    """.split()
)
_SAELENS_DTYPES = tuple(
    prefix + name for prefix in ("", "torch.") for name in ("float32", "float64", "float16", "bfloat16")
)


def _legacy(config: dict[str, Any]) -> dict[str, Any]:
    """A flat configuration from before SAELens 6, in today's words."""
    new = dict(config)
    if new.get("architecture") is None:
        new["architecture"] = "standard"
    first, second = new.get("activation_fn"), new.get("activation_fn_str")
    if first and second and first != second:
        raise ValueError(f"activation_fn and activation_fn_str disagree: {first!r} and {second!r}")
    function = second or first or "relu"
    if function == "topk":
        new["architecture"] = "topk"
        if not isinstance(new.get("activation_fn_kwargs"), dict):
            raise ValueError("activation_fn_kwargs should hold the k of 'topk'")
    elif function != "relu":
        raise ValueError(f"activation function {function!r} is not supported, only 'relu' and 'topk'")
    norm = new.get("normalize_activations")
    if isinstance(norm, bool):
        new["normalize_activations"] = "expected_average_only_in" if norm else "none"
    return new


def saelens(folder: Path, in_memory: bool = True) -> PretrainedSAE:
    """SAELens 6 and earlier: ``cfg.json``, ``sae_weights.safetensors``.

    Inference exports and the weights of training checkpoints (their scaling or whitening beside them is
    folded in).
    """
    path, file = folder / "sae_weights.safetensors", folder / "cfg.json"
    raw = read_json(file)
    try:
        config = _legacy(raw) if is_legacy(raw) else raw
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    _saelens_check(config, raw, file)
    w = plain(read_safetensors(path, () if in_memory else STORED), path)
    # finetuning_scaling_factor without the weight means nothing: SAELens turns it off
    if not np.allclose(w.pop("scaling_factor", np.ones(1)), 1):
        raise ValueError(f"{path}: a finetuning scaling factor is not supported; fold it into W_dec first")
    architecture = config.get("architecture")
    if not isinstance(architecture, str) or architecture not in _SAELENS_KEYS:
        raise ValueError(
            f"{folder}: SAELens's architecture {architecture!r} is not supported; those are {', '.join(_SAELENS_KEYS)}"
        )
    _take(w, path, _SAELENS_KEYS[architecture])
    transcoder = "transcoder" in architecture
    m = _saelens_weights(w, architecture, config, path)
    if not transcoder and _switch(config, "apply_b_dec_to_input", file, True):
        m.center = m.b_dec
    norm = _saelens_folded(m, config, transcoder, folder)
    model = _model(
        path, m.W_enc, m.b_enc, m.W_dec, m.b_dec, threshold=m.threshold, activation=m.activation, k=m.k,
        center=m.center, input_norm=norm, W_skip=w["W_skip"].T if "W_skip" in w else None,
        is_transcoder=transcoder, config=raw, source="saelens",
    )  # fmt: skip
    _check_size(model, config, ("d_in", "d_sae", "d_out") if transcoder else ("d_in", "d_sae"), file)
    return model


def _saelens_check(config: dict[str, Any], raw: dict[str, Any], file: Path) -> None:
    """That all it says is understood. Files from before version 6 hold the whole training run's settings, of which
    SAELens itself picks what it knows; later ones hold what their classes declare.
    """
    if not is_legacy(raw):
        _check_known(config, _SAELENS_SETTINGS, file)
    for key, allowed in (("dtype", _SAELENS_DTYPES), ("reshape_activations", ("none", "hook_z"))):
        value = config.get(key)
        if value is not None and value not in allowed:
            raise ValueError(f"{file}: {key} should be one of {', '.join(allowed)}, is {value!r}")


def _saelens_k(config: dict[str, Any], file: Path) -> int:
    """k by its own name, or among the arguments of an activation function, where files before version 6 have it."""
    kwargs = config.get("activation_fn_kwargs")
    if not isinstance(kwargs, dict) or not kwargs:
        return _integer(config, "k", file, 100)  # SAELens's default
    k = _integer(kwargs, "k", file)
    if config.get("k") not in (None, k):
        raise ValueError(
            f"{file}: k is {config['k']!r}, and {k} in activation_fn_kwargs; which of them is it?"
        )
    return k


def _saelens_weights(w: Tensors, architecture: str, config: dict[str, Any], path: Path) -> _Weights:
    """The weights of an architecture, with its rule for what is active."""
    W_enc, W_dec = w["W_enc"], w["W_dec"]
    if W_enc.ndim != 2 or W_dec.shape[:1] != W_enc.shape[1:] or W_dec.ndim != 2:
        raise ValueError(f"{path}: W_enc {W_enc.shape} and W_dec {W_dec.shape} do not fit each other")
    m = _Weights(W_enc, w.get("b_enc"), W_dec, w["b_dec"])
    if architecture == "gated":
        _check_kept(W_enc, path, "gates")
        _check_gates(w, ("b_gate", "b_mag", "r_mag"), path, W_enc.shape[1:])
        m.W_enc, m.b_enc, m.threshold = _gated(w, W_enc, w["b_gate"], w["b_mag"])
    elif "threshold" in w:
        m.threshold = np.maximum(w["threshold"], 0)  # SAELens applies ReLU first
    elif "topk_threshold" in w:
        cut = max(_scalar(w["topk_threshold"], "topk_threshold", path), 0.0)
        m.threshold = np.full(W_enc.shape[1], cut)
    elif architecture == "topk":
        m.activation, m.k = "topk", _saelens_k(config, path.parent / "cfg.json")
    else:
        m.activation = "relu"
    if np.shape(m.b_enc) != W_enc.shape[1:]:
        raise ValueError(f"{path}: b_enc has shape {np.shape(m.b_enc)}, expected {W_enc.shape[1:]}")
    return m


def _saelens_folded(m: _Weights, config: dict[str, Any], transcoder: bool, folder: Path) -> Any:
    """Fold scales, decoder norms and whitening into the weights; what is left to do to each sample."""
    rescale = _switch(config, "rescale_acts_by_decoder_norm", folder / "cfg.json", False)
    norm_kind = config.get("normalize_activations") or "none"
    if transcoder and norm_kind in ("expected_average_only_in", "covariance_whitening"):
        # its input and output are at two places of the model, and the file has the scale of one
        raise ValueError(f"{folder}: a transcoder with normalize_activations {norm_kind!r} is not supported")
    if rescale or norm_kind in ("expected_average_only_in", "covariance_whitening"):
        _check_kept(m.W_enc, folder, "decoder norms" if rescale else norm_kind)
    if norm_kind == "expected_average_only_in":
        c, norm_kind = _saelens_scale(folder), "none"
        m.W_enc, m.W_dec, m.b_dec = m.W_enc * c, m.W_dec / c, m.b_dec / c
        m.center = None if m.center is None else m.center / c
        if rescale and m.threshold is not None:
            # SAELens compares the threshold with z times the decoder row's norm, which has just been divided by c
            m.threshold = m.threshold / c
    if rescale:
        # latents are compared by z times the norm of their decoder row: folded in here, by rows of unit norm
        norm = np.linalg.norm(m.W_dec.astype(np.float64), axis=1)
        norm[norm == 0] = 1
        m.W_enc, m.b_enc, m.W_dec = m.W_enc * norm, m.b_enc * norm, m.W_dec / norm[:, None]
    if norm_kind == "covariance_whitening":
        _saelens_unwhiten(m, folder)
        return "none"
    return norm_kind


def _saelens_scale(folder: Path) -> float:
    """The factor that brings activations to a mean norm of sqrt(d_in)."""
    file = folder / "activation_scaler.json"
    if not file.exists():
        warnings.warn(
            f"{folder}: trained on scaled activations, and the scale is not there (activation_scaler.json): "
            "as in SAELens, none is applied; scale the activations yourself if they are raw",
            stacklevel=5,  # the caller of atoms.load
        )
        return 1.0
    value = read_json(file).get("scaling_factor")
    c = _scalar(1.0 if value is None else value, "scaling_factor", file)
    if c <= 0:
        raise ValueError(f"{file}: scaling_factor should be positive, is {c}")
    return c


@one_blas_thread
def _saelens_unwhiten(m: _Weights, folder: Path) -> None:
    """From whitened activations to raw ones."""
    file = folder / "activation_whitening.safetensors"
    if not file.exists():
        raise ValueError(
            f"{folder}: trained on whitened activations, and {file.name} is not there; fold it in SAELens"
        )
    t = plain(read_safetensors(file), file)
    _take(t, file, ("mean", "matrix", "inverse_matrix"))
    d = len(m.W_enc)
    if t["mean"].shape != (d,) or t["matrix"].shape != (d, d) or t["inverse_matrix"].shape != (d, d):
        raise ValueError(f"{file}: expected a mean of shape ({d},) and matrices of shape ({d}, {d})")
    mean, M, inverse = (t[name].astype(np.float64) for name in ("mean", "matrix", "inverse_matrix"))
    m.W_enc, m.W_dec, m.b_dec = M @ m.W_enc, m.W_dec @ inverse, m.b_dec @ inverse + mean
    if m.center is None:
        m.b_enc = m.b_enc - mean @ m.W_enc
    else:
        m.center = m.b_dec


# ------------------------------------------------------------------ Gemma Scope


_GEMMA_SETTINGS = frozenset(
    """
    architecture type affine_connection model_name model hf_hook_point_in hf_hook_point_out hook_point layer width
    l0 d_in d_out d_model d_sae dtype dataset seed
    """.split()
)
_GEMMA_TYPES = {"sae": False, "autoencoder": False, "transcoder": True, "skip_transcoder": True}


def _gemma(
    w: Tensors, path: Path, config: dict[str, Any], source: str, said: bool | None, embedding: bool = False
) -> PretrainedSAE:
    w = {"W" + name[1:] if name.startswith("w_") else name: a for name, a in plain(w, path).items()}
    skip = w.pop("affine_skip_connection", None)
    _take(w, path, (*_SAELENS, "threshold"))
    W_enc, W_dec = w["W_enc"], w["W_dec"]
    if W_enc.ndim != 2 or W_dec.ndim != 2:
        raise ValueError(
            f"{path}: W_enc and W_dec have shapes {W_enc.shape} and {W_dec.shape}, expected matrices"
        )
    if skip is not None and said is False:
        raise ValueError(f"{path}: affine_skip_connection is there, which an autoencoder does not have")
    transcoder = said
    if transcoder is None:
        transcoder = True if skip is not None or len(W_enc) != W_dec.shape[1] else _gemma_by_path(path)
    if transcoder is None:
        transcoder = False
        warnings.warn(
            f"{path}: neither the file nor its place says whether it is an autoencoder or a transcoder; read as an "
            "autoencoder. Say is_transcoder=True or False to atoms.load",
            stacklevel=4,  # the caller of atoms.load
        )
    if embedding:
        # trained on embeddings times sqrt(d), which Gemma multiplies in itself
        root = np.sqrt(len(W_enc))
        W_enc, W_dec = W_enc / root, W_dec * root
    return _model(
        path, W_enc, w["b_enc"], W_dec, w["b_dec"], threshold=np.maximum(w["threshold"], 0), W_skip=skip,
        is_transcoder=transcoder, config=config, source=source,
    )  # fmt: skip


def _places(path: Path) -> list[str]:
    """The folders that a file is in, innermost first. Not resolved: the hub's cache holds links to files whose names
    say nothing.
    """
    return list(reversed(path.absolute().parent.parts))


def _gemma_by_path(path: Path) -> bool | None:
    """Whether the release's names (its repository's, its folders') make it a transcoder; None: they do not say."""
    for depth, part in enumerate(_places(path)):
        if "transcoder" in part and (depth < 4 or "gemma-scope" in part):
            return True
        if re.search(r"gemma-scope.*-(res|mlp|att)\b", part):
            return False
        if depth < 4 and re.match(r"(resid_(pre|mid|post)|attn_out|mlp_out)(_all)?$|embedding$", part):
            return False
    return None


def gemma_scope(path: Path, is_transcoder: bool | None = None) -> PretrainedSAE:
    """Gemma Scope: ``params.npz`` (arrays only, no configuration). JumpReLU, input not centred.

    The file does not say what it is, so the names of the release do: a repository ``...-transcoders`` (in the path,
    as the hub's cache has it, or a folder of such a name) holds transcoders, ``...-res``, ``...-mlp`` and ``...-att``
    autoencoders. An autoencoder in ``embedding/width_4k/average_l0_111`` is the embedding's, trained on activations
    ``sqrt(d_in)`` times larger. Attention autoencoders take the heads' outputs side by side. What `atoms.io.save`
    wrote says it itself, in the archive's comment.
    """
    w, comment = read_npz(path)
    ours = _OURS.get(comment)
    said = _agreed(path, ours, is_transcoder)
    places = _places(path)
    embedding = ours is None and not said and places[2:3] == ["embedding"] and places[1].startswith("width_")
    return _gemma(w, path, {}, "gemma_scope", said, embedding)


_OURS = {b"atoms autoencoder": False, b"atoms transcoder": True}
NPZ_COMMENT = {said: comment for comment, said in _OURS.items()}


def _agreed(path: Path, said: bool | None, asked: bool | None) -> bool | None:
    """What the file says, or what the caller says of one that does not."""
    if said is not None and asked is not None and said != asked:
        raise ValueError(f"is_transcoder: {path} says {said}, got {asked}")
    return asked if said is None else said


def gemma_scope_2(path: Path, is_transcoder: bool | None = None, in_memory: bool = True) -> PretrainedSAE:
    """Gemma Scope 2: ``params.safetensors`` with lower-case names, and ``config.json`` where it is there.

    The configuration's ``type`` decides whether it is a transcoder, else its two hook points; the folder's name only
    where there is neither.
    """
    file = path.parent / "config.json"
    config = read_json(file) if file.exists() else {}
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise ValueError(
            f"{file}: architecture {config['architecture']!r} is not supported, only 'jump_relu'"
        )
    _check_known(config, _GEMMA_SETTINGS, file)
    w = read_safetensors(path, () if in_memory else STORED)
    affine, skip = _switch(config, "affine_connection", file, False), "affine_skip_connection" in w
    if affine != skip and config.get("affine_connection") is not None:
        raise ValueError(
            f"{file}: affine_connection is {'true' if affine else 'false'}, and {path.name} has "
            f"{'an' if skip else 'no'} affine_skip_connection"
        )
    kind = config.get("type")
    if kind is not None and (not isinstance(kind, str) or kind not in _GEMMA_TYPES):
        raise ValueError(f"{file}: type {kind!r} is not supported, only {', '.join(_GEMMA_TYPES)}")
    hooks = [config.get(key) for key in ("hf_hook_point_in", "hf_hook_point_out")]
    said = None if kind is None else _GEMMA_TYPES[kind]
    if said is None and None not in hooks:
        said = hooks[0] != hooks[1]
    model = _gemma(w, path, config, "gemma_scope_2", _agreed(path, said, is_transcoder))
    _check_size(model, config, ("d_in", "d_sae", "d_out"), file)
    return model


# ------------------------------------------------------------------ crosscoders

# of dictionary_learning's fork that has them
_CROSS = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias", "code_normalization_id")
_CROSS_SCALING = ("activation_mean", "activation_std", "activation_global_scale", "target_rms")
_CROSS_SETTINGS = frozenset(
    ("activation_dim", "dict_size", "num_layers", "num_decoder_layers", "k", "code_normalization", "target_rms",
     "code_normalization_alpha_sae", "code_normalization_alpha_cc", "activation_mean", "activation_std",
     # of a beginning
     "same_init_for_all_layers", "norm_init_scale", "init_with_transpose")
)  # fmt: skip


def crosscoder(folder: Path) -> PretrainedSAE:
    """dictionary_learning's CrossCoder and BatchTopKCrossCoder: ``model.safetensors`` and ``config.json``.

    Rows are those of all sites side by side. A latent's code there is compared with the threshold after it has been
    multiplied by a norm of its decoder; here its threshold is divided by that instead.
    """
    path, file = folder / "model.safetensors", folder / "config.json"
    config, w = read_json(file), read_safetensors(path)
    _take(w, path, _CROSS, ("k", "threshold", *_CROSS_SCALING))
    _check_known(config, _CROSS_SETTINGS, file)
    E, D = np.asarray(w["encoder.weight"]), np.asarray(w["decoder.weight"])
    if E.ndim != 3 or 0 in E.shape or D.shape != (E.shape[0], E.shape[2], E.shape[1]):
        raise ValueError(
            f"{path}: encoder.weight has shape {E.shape}, decoder.weight {D.shape}; expected (sites, d, latents) and "
            "(sites, latents, d)"
        )
    n, d, m = E.shape
    E, D = E.astype(np.float64), D.astype(np.float64)
    norms, b_dec = np.linalg.norm(D, axis=2), np.asarray(w["decoder.bias"], np.float64).reshape(-1)
    threshold = np.zeros(m)
    if "threshold" in w:
        by = _cross_norms(w, norms, config, path)
        bound = max(0.0, _scalar(w["threshold"], "threshold", path))  # -1: no step has been taken
        most = float(np.finfo(np.float32).max)  # of a latent without a decoder, which never passes
        threshold = np.minimum(bound / np.maximum(by, bound / most), most) if bound > 0 else threshold
    center, scale, back = _cross_scaling(w, (n, d), path)
    E, D = E * scale[:, None, None], D * back[:, None, None]
    if b_dec.shape == center.shape:
        b_dec = b_dec * np.repeat(back, d) + center
    model = _model(
        path, E.reshape(n * d, m), w["encoder.bias"], D.transpose(1, 0, 2).reshape(m, n * d), b_dec,
        threshold=threshold if threshold.any() else None, activation="jumprelu" if threshold.any() else "relu",
        center=center, config=config, source="crosscoder",
    )  # fmt: skip
    for name, have in (("activation_dim", d), ("dict_size", m), ("num_layers", n), ("num_decoder_layers", n)):
        if config.get(name) is not None and config[name] != have:
            raise ValueError(f"{file}: says {name} = {config[name]!r}, the weights {have}")
    model.sites_ = columns((d,) * n)
    whole = np.sqrt((norms**2).sum(axis=0))
    model.site_norms_ = (norms / np.where(whole > 0, whole, 1)).T
    return model


def _cross_norms(w: Tensors, norms: np.ndarray, config: dict[str, Any], path: Path) -> np.ndarray:
    """What a latent's code is multiplied with before it is compared; norms (sites, latents) of its decoder."""
    kind = _scalar(w["code_normalization_id"], "code_normalization_id", path)
    each, whole = norms.sum(axis=0), np.sqrt((norms**2).sum(axis=0))
    alpha = {
        of: _scalar(
            config.get(f"code_normalization_alpha_{of}", default), f"code_normalization_alpha_{of}", path
        )
        for of, default in (("sae", 1.0), ("cc", 0.1))
    }
    known = {1: each, 2: whole, 3: alpha["sae"] * whole + alpha["cc"] * each, 4: np.ones_like(whole)}
    if kind not in known:
        raise ValueError(
            f"{path}: code_normalization_id {kind:g} is not supported"
            + (": each site has codes of its own (DECOUPLED)" if kind == 5 else "")
        )
    by: np.ndarray = known[int(kind)]
    return by


def _cross_scaling(
    w: Tensors, shape: tuple[int, int], path: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of activations: what is subtracted (sites * d), each site's factor, and the factor back."""
    mean, std = (np.asarray(w.get(name, np.full(shape, np.nan)), np.float64) for name in _CROSS_SCALING[:2])
    scale = np.asarray(w.get("activation_global_scale", np.ones(shape[0])), np.float64)
    if mean.shape != shape or std.shape != shape or scale.shape != shape[:1]:
        raise ValueError(
            f"{path}: activation_mean, activation_std and activation_global_scale have shapes {mean.shape}, {std.shape} and "
            f"{scale.shape}; expected {shape}, {shape} and {shape[:1]}"
        )
    if np.isnan(mean).any() or np.isnan(std).any():  # as their class says that there is none
        return np.zeros(shape[0] * shape[1]), np.ones(shape[0]), np.ones(shape[0])
    return mean.reshape(-1), scale, 1 / (scale + 1e-8)


# ------------------------------------------------------------------ dictionary_learning

_LINEAR = ("encoder.weight", "encoder.bias", "decoder.weight")
_DL_KEYS = {
    "AutoEncoder": (*_LINEAR, "bias"),
    "AutoEncoderNew": (*_LINEAR, "decoder.bias"),
    "AutoEncoderTopK": (*_LINEAR, "b_dec", "k", "threshold"),
    "BatchTopKSAE": (*_LINEAR, "b_dec", "k", "threshold"),
    "MatryoshkaBatchTopKSAE": (*_SAELENS, "k", "threshold", "group_sizes"),
    "JumpReluAutoEncoder": (*_SAELENS, "threshold"),
    "GatedAutoEncoder": (
        "encoder.weight",
        "r_mag",
        "gate_bias",
        "mag_bias",
        "decoder.weight",
        "decoder_bias",
    ),
}


_DL_B_DEC = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias", "GatedAutoEncoder": "decoder_bias"}


def dictionary_learning(path: Path) -> PretrainedSAE:
    """dictionary_learning: ``ae.pt`` and ``config.json``, or a checkpoint in the folder ``checkpoints``.

    An interrupted run's ``ae.pt`` (a dictionary with ``ae`` and ``norm_factor``) is brought to raw
    activations, as the end of the run would have.
    """
    file = path.parent / "config.json"
    if not file.exists() and path.parent.name == "checkpoints":
        file = path.parent.parent / "config.json"
    config = read_json(file) if file.exists() else {}
    state = read_torch(path)
    factor = 1.0
    if "ae" in state:
        if not isinstance(state["ae"], dict):
            raise ValueError(f"{path}: ae is {type(state['ae']).__name__}, expected a dictionary of weights")
        if state.get("norm_factor") is not None:
            factor = _scalar(state["norm_factor"], "norm_factor", path)
        state = state["ae"]
    w = plain(state, path)
    trainer = config.get("trainer")
    trainer = trainer if isinstance(trainer, dict) else {}
    kind = _dl_class(w, trainer, path, file)
    m = _dl_weights(w, kind, trainer, factor, path)
    center = None if kind in ("AutoEncoderNew", "JumpReluAutoEncoder") else m.b_dec
    model = _model(
        path, m.W_enc, m.b_enc, m.W_dec, m.b_dec, threshold=m.threshold, activation=m.activation, k=m.k,
        center=center, config=config, source="dictionary_learning",
    )  # fmt: skip
    _check_size(model, trainer, ("activation_dim", "dict_size"), file)
    return model


def _dl_class(w: Tensors, trainer: dict[str, Any], path: Path, file: Path) -> str:
    """Which class of dictionary_learning it is; its weights are all there, and nothing else."""
    # the weights' names decide before the configuration does: some trainers write another class than they train
    fits = [name for name, keys in _DL_KEYS.items() if set(keys) == set(w)]
    kind = fits[0] if len(fits) == 1 else trainer.get("dict_class")
    if not isinstance(kind, str):
        raise ValueError(
            f"{path}: which class of dictionary_learning it is cannot be told from its weights "
            f"({' or '.join(fits) or ', '.join(sorted(w)[:8])}); put its config.json beside it"
        )
    if kind not in _DL_KEYS:
        raise ValueError(f"{file}: dict_class {kind!r} is not supported; those are {', '.join(_DL_KEYS)}")
    # older versions have no threshold; newer ones write -1 for none
    optional = {"AutoEncoderTopK": ("k", "threshold"), "BatchTopKSAE": ("k", "threshold")}.get(kind, ())
    _take(w, path, [key for key in _DL_KEYS[kind] if key not in optional], optional)
    for name in ("encoder.weight", "decoder.weight", "W_enc", "W_dec"):
        if name in w and w[name].ndim != 2:
            raise ValueError(f"{path}: {name} has shape {w[name].shape}, expected a matrix")
    return kind


def _dl_weights(w: Tensors, kind: str, trainer: dict[str, Any], factor: float, path: Path) -> _Weights:
    """The weights of a class for raw activations, with its rule for what is active."""
    W_enc = w["W_enc"] if "W_enc" in w else w["encoder.weight"].T
    W_dec = w["W_dec"] if "W_dec" in w else w["decoder.weight"].T
    b_enc = w.get("b_enc", w.get("encoder.bias", w.get("mag_bias")))
    b_dec = w[_DL_B_DEC.get(kind, "b_dec")]
    assert b_enc is not None
    m = _Weights(W_enc, b_enc * factor, W_dec, b_dec * factor)
    if kind == "GatedAutoEncoder":
        _check_gates(w, ("r_mag", "gate_bias", "mag_bias"), path, W_enc.shape[1:])
        m.W_enc, m.b_enc, m.threshold = _gated(w, W_enc, w["gate_bias"] * factor, m.b_enc)
    elif kind == "AutoEncoderTopK":
        said = _scalar(w["k"], "k", path) if "k" in w else trainer.get("k")
        m.activation, m.k = "topk", _integer({"k": said}, "k", path)
        if trainer.get("k") not in (None, m.k) and not trainer.get("k_anneal_steps"):
            raise ValueError(f"{path}: k is {m.k}, and {trainer['k']!r} in config.json; which of them is it?")
    elif kind in ("AutoEncoder", "AutoEncoderNew"):
        m.activation = "relu"
    elif kind == "JumpReluAutoEncoder":
        m.threshold = np.maximum(w["threshold"] * factor, 0)
    else:
        cut = _scalar(w.get("threshold", np.array(-1.0)), "threshold", path)
        if cut < 0:
            raise ValueError(
                f"{path}: its threshold was never set (trained less than threshold_start_step): "
                "the batch decides which latents are active, which no file can say"
            )
        m.threshold = np.full(W_enc.shape[1], cut * factor)
    return m


# ------------------------------------------------------------------ sparsify


_SPARSIFY_SETTINGS = frozenset(
    "activation expansion_factor normalize_decoder num_latents k multi_topk skip_connection transcode d_in".split()
)


def sparsify(folder: Path, in_memory: bool = True) -> PretrainedSAE:
    """sparsify: ``cfg.json``, ``sae.safetensors``. TopK autoencoders and transcoders, skip or not."""
    path, file = folder / "sae.safetensors", folder / "cfg.json"
    config = read_json(file)
    w = plain(read_safetensors(path, () if in_memory else STORED), path)
    if config.get("activation", "topk") != "topk":
        raise ValueError(f"{file}: activation {config['activation']!r} is not supported, only 'topk'")
    if config.get("signed"):
        raise ValueError(f"{file}: signed codes are not supported: the k largest of either sign were active")
    _check_known(config, _SPARSIFY_SETTINGS, file)
    _take(w, path, ("encoder.weight", "encoder.bias", "W_dec", "b_dec"), ("W_skip",))
    transcoder, skip = _switch(config, "transcode", file, False), "W_skip" in w
    if _switch(config, "skip_connection", file, skip) != skip:
        raise ValueError(
            f"{file}: skip_connection is {'false' if skip else 'true'}, and {path.name} has "
            f"{'a' if skip else 'no'} W_skip"
        )
    if w["encoder.weight"].ndim != 2:
        raise ValueError(f"{path}: encoder.weight has shape {w['encoder.weight'].shape}, expected a matrix")
    model = _model(
        path, w["encoder.weight"].T, w["encoder.bias"], w["W_dec"], w["b_dec"], activation="topk",
        k=_integer(config, "k", file, 32), center=None if transcoder else w["b_dec"],
        W_skip=w["W_skip"].T if skip else None, is_transcoder=transcoder, config=config, source="sparsify",
    )  # fmt: skip
    said = dict(config)
    if not said.get("num_latents"):
        said.pop("num_latents", None)
        if "expansion_factor" in config:
            said["num_latents"] = model.n_features_in_ * _integer(config, "expansion_factor", file)
    _check_size(model, said, ("d_in", "num_latents"), file)
    return model
