"""Sparse autoencoders of other tools, in and out.

========================  ============================================  =========================================
tool                      files                                         written too
========================  ============================================  =========================================
SAELens (6 and before)    ``cfg.json``, ``sae_weights.safetensors``     yes, ``"saelens"``
Gemma Scope               ``params.npz``                                yes, ``"npz"``
Gemma Scope 2             ``params.safetensors``, ``config.json``
dictionary_learning       ``ae.pt``, ``config.json``
its crosscoders           ``model.safetensors``, ``config.json``        yes, ``"crosscoder"``
sparsify                  ``cfg.json``, ``sae.safetensors``             yes, TopK: ``"sparsify"``
atoms                     one ``.safetensors`` file                     ``save`` of each model, ``push_to_hub``
========================  ============================================  =========================================

Here are `load`, `save`, `convert` and `from_pretrained`. The other files, each of which imports only from those above it::

    _stored    matrices that stay in their file
    _files     files that anyone may have written, to arrays
    _model     PretrainedSAE
    _formats   one importer for each tool
"""

from __future__ import annotations

import difflib
import glob
import importlib.util
import json
import os
import secrets
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from .. import _dictionary
from .._config import check_num_threads
from .._files import as_path, replacing, sync_folder
from .._version import __version__
from ..metric import AtomicInnerProduct
from ..sae import SparseAutoencoder
from ..sae._autoencoder import as_fitted
from ..sae._hub import FILE
from ..sae._settings import k_of
from . import _formats
from ._files import safetensors_metadata
from ._model import PretrainedSAE, saelens_metadata

__all__ = ["PretrainedSAE", "convert", "from_pretrained", "save"]


def __dir__() -> list[str]:
    return [*__all__, "load"]


# format, which is the name of its reader in `_formats` -> the file that tells it, and one that must be beside it
_FOLDERS = {
    "saelens": ("sae_weights.safetensors", "cfg.json"),
    "sparsify": ("sae.safetensors", "cfg.json"),
    "dictionary_learning": ("ae.pt", None),
    "gemma_scope": ("params.npz", None),
    "gemma_scope_2": ("params.safetensors", None),
    "crosscoder": ("model.safetensors", "config.json"),
}
_BY_PARTS = ("saelens", "sparsify", "gemma_scope_2")  # where weights may stay in the file
# our own classes, by the kind that their files state
_OURS: dict[str, Any] = {
    c.__name__: c for c in (SparseAutoencoder, _dictionary.DictionaryLearning, AtomicInnerProduct)
}
_WITHOUT_ENCODER = ("DictionaryLearning", "AtomicInnerProduct")
_HUB = "hf://"
# all that is fetched from there
_FILES = (
    "cfg.json", "config.json", "sae_weights.safetensors", "sae.safetensors", "ae.pt", "params.npz",
    "params.safetensors", "model.safetensors", "activation_scaler.json", "activation_whitening.safetensors", FILE,
)  # fmt: skip


def load(
    path: str | os.PathLike[str],
    sae_id: str | None = None,
    *,
    is_transcoder: bool | None = None,
    in_memory: bool = True,
    num_threads: int | None = None,
) -> Any:
    """Read a model of any known format, which is recognised from the files.

    ``load("gemma-scope-2b-pt-res-canonical", "layer_12/width_16k/canonical")`` reads a known release by its name,
    ``load("hf://user/name/folder")`` what lies on the Hugging Face hub, ``"hf://user/name@revision/folder"`` that of one
    branch, tag or commit.

    Parameters
    ----------
    path : path, or str
        With `sae_id`, the name of a release in SAELens's registry, or a repository of the hub; else an address as
        above, a folder as its tool wrote it, or one file of it: ``.safetensors`` (also those of
        `SparseAutoencoder.save`, `DictionaryLearning.save` and `AtomicInnerProduct.save`), ``.npz`` (Gemma Scope), ``.pt``
        (dictionary_learning; needs PyTorch, whose weights_only loader runs no code). Of its crosscoders, whose rows are those of
        all sites side by side, ``model.safetensors``.
    sae_id : str, optional
        Which autoencoder of the release. The registry is that of the SAELens that is installed, which is not
        imported; the files come through `from_pretrained`.
    is_transcoder : bool, optional
        For files that do not say it themselves (``params.npz`` of Gemma Scope): None takes it from the names that
        the release gives its repositories and folders, and warns where there are none. What a file or its
        configuration says is not overruled.
    in_memory : bool
        False: for models larger than memory. `W_enc` and `W_dec` stay in their file, in the type they have there (float32,
        bfloat16, float16), and are read again for each 8,192 rows that are encoded, a quarter of a gigabyte at a time: codes
        are the same to the bit, reconstructions to rounding. For ``.safetensors`` of SAELens, sparsify and Gemma Scope 2 whose
        weights are used as they are stored. A file that is changed meanwhile is noticed.
    num_threads : int, optional
        Of the model.

    Returns
    -------
    PretrainedSAE, SparseAutoencoder, DictionaryLearning or AtomicInnerProduct

    Raises
    ------
    FileNotFoundError
        There is nothing there, or nothing known in the folder.
    ValueError
        Damaged or hostile files, unknown weights, shapes and types that do not fit, NaN, an architecture
        or a setting that is not known, another `is_transcoder` than the file says. The message names the file and the fault. No code in a file is ever run, and
        no more memory is used than its size justifies.
    ImportError
        A .pt file without PyTorch.

    Examples
    --------
    >>> import tempfile, numpy as np, atoms
    >>> sae = atoms.io.PretrainedSAE(np.eye(3), np.zeros(3), np.eye(3), np.ones(3), activation="relu")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     atoms.io.save(sae, folder + "/sae", format="saelens")
    ...     print(atoms.load(folder + "/sae"))
    PretrainedSAE(d_in=3, d_sae=3, relu, from saelens)
    """
    check_num_threads(num_threads)
    if sae_id is not None:
        path = _fetched(*_registered(os.fspath(as_path(path, "path")), sae_id))
    elif isinstance(path, str) and path.startswith(_HUB):
        repository, revision, folder = _address(path)
        path = _fetched(repository, folder, revision=revision)
    file, kind = _found(as_path(path, "path"))
    if not in_memory and kind not in _BY_PARTS:
        once = '; load it into memory once, and write it with atoms.io.save(model, folder, "saelens")'
        raise ValueError(
            f"in_memory: {file} cannot be read in parts, only {', '.join(_BY_PARTS)} files can"
            + ("" if kind in _WITHOUT_ENCODER else once)
        )
    if kind in _OURS:
        ours = _OURS[kind].load(file, num_threads=num_threads)
        _check_transcoder(file, ours, is_transcoder)
        return ours
    beside = _FOLDERS[kind][1]
    if beside is not None and not (file.parent / beside).is_file():
        raise FileNotFoundError(f"{file}: {beside} is not beside it; a {kind} model is both")
    reader = getattr(_formats, kind)
    options = {"is_transcoder": is_transcoder} if kind.startswith("gemma_scope") else {}
    if kind in _BY_PARTS:
        options["in_memory"] = in_memory
    with np.errstate(all="ignore"):  # folding may overflow; the finished weights are checked
        model: PretrainedSAE = reader(file.parent if beside is not None else file, **options)
    _check_transcoder(file, model, is_transcoder)
    model.num_threads = num_threads
    return model


def _check_transcoder(file: Path, model: Any, expected: bool | None) -> None:
    """ValueError where a file is of the other kind."""
    said = getattr(model, "is_transcoder", False)
    if expected is not None and said != expected:
        raise ValueError(f"is_transcoder: {file} says {said}, got {expected}")


def _address(path: str) -> tuple[str, str | None, str]:
    """Repository, revision and folder of hf://user/name@revision/folder."""
    user, _, rest = path.removeprefix(_HUB).partition("/")
    name, _, folder = rest.partition("/")
    name, _, revision = name.partition("@")
    if not user or not name:
        raise ValueError(f"path: expected hf://user/name or hf://user/name/folder, got {path!r}")
    return f"{user}/{name}", revision or None, folder


def _found(path: Path) -> tuple[Path, str]:
    """The file to read, and its format."""
    if path.is_dir() and (path / FILE).is_file():  # as `push_to_hub` lays it down
        path = path / FILE
    if path.is_file():
        return path, _kind_of_file(path)
    if not path.is_dir():
        raise FileNotFoundError(
            f'{path}: no such file or folder; what lies on the hub is "hf://user/name/folder"'
        )
    kinds = [kind for kind, (name, _) in _FOLDERS.items() if (path / name).is_file()]
    if not kinds:
        known = ", ".join(name for name, _ in _FOLDERS.values())
        inside = sorted(f.parent.name for name, _ in _FOLDERS.values() for f in path.glob(f"*/{name}"))
        hint = f"; there are some in its folders {', '.join(inside[:8])}" if inside else ""
        raise FileNotFoundError(
            f"{path}: no model of a known format in this folder (looked for {known}){hint}"
        )
    if len(kinds) > 1:
        raise ValueError(f"{path}: models of several formats ({', '.join(kinds)}); name one of their files")
    return path / _FOLDERS[kinds[0]][0], kinds[0]


def _kind_of_file(path: Path) -> str:
    if path.suffix == ".npz":
        return "gemma_scope"
    if path.suffix == ".pt":
        return "dictionary_learning"
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: expected a folder, or a .safetensors, .npz or .pt file")
    metadata = safetensors_metadata(path)
    if metadata.get("format") == "atoms":
        kind = metadata.get("kind", "")
        if not isinstance(kind, str) or kind not in _OURS:  # a file may state anything
            raise ValueError(
                f"{path}: written by atoms as {kind or 'nothing'}, which this version does not know"
            )
        return kind
    for kind in ("saelens", "sparsify", "crosscoder"):
        if path.name == _FOLDERS[kind][0]:
            return kind
    return "gemma_scope_2"


# releases whose files SAELens converts with one of its own functions, that are none of ours
_CONVERTED = (
    None,
    "sae_lens",
    "gemma_2",
    "gemma_2_transcoder",
    "gemma_3",
    "dictionary_learning_1",
    "sparsify",
)


def _registry(release: str) -> dict[str, Any]:
    """SAELens's releases by name, from its file: importing it takes PyTorch and ten seconds."""
    spec = importlib.util.find_spec("sae_lens")
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [file for file in (Path(f) / "pretrained_saes.yaml" for f in folders) if file.is_file()]
    if not files:
        raise ImportError(
            f"{release}: known releases are those of SAELens's registry, which is not installed: "
            "`pip install sae-lens`; or give the repository's own name, org/name, and the folder in it"
        )
    import yaml  # huggingface_hub needs it, and so does SAELens

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return dict(yaml.load(files[0].read_text(encoding="utf-8"), Loader=loader))


def _registered(release: str, sae_id: str) -> tuple[str, str]:
    """Repository and folder of an autoencoder that SAELens knows by name."""
    if "/" in release or Path(release).is_dir():
        return release, sae_id
    known = _registry(release)
    if release not in known:
        near = difflib.get_close_matches(release, known, 4, 0.5)
        raise ValueError(
            f"path: SAELens knows no release {release!r}" + (f"; near: {', '.join(near)}" if near else "")
        )
    entry = known[release]
    paths = {str(one["id"]): one for one in entry["saes"]}
    if sae_id not in paths:
        near = difflib.get_close_matches(sae_id, paths, 4, 0.3) or list(paths)[:4]
        raise ValueError(
            f"sae_id: {release} has no {sae_id!r}; it has {', '.join(near)}, ... ({len(paths)} in all)"
        )
    if entry.get("conversion_func") not in _CONVERTED:
        raise ValueError(
            f"{release}: is in the format that SAELens converts with {entry['conversion_func']!r}, which is not read "
            "here; load it with SAELens, save_model, and load that folder"
        )
    corrected = set(entry.get("config_overrides") or ()) - {"dataset_path", "model_from_pretrained_kwargs"}
    if "norm_scaling_factor" in paths[sae_id] or corrected:
        raise ValueError(
            f"{release}: SAELens's registry corrects what its files say (scale or configuration), which is not done "
            "here; load it with SAELens, save_model, and load that folder"
        )
    return str(entry["repo_id"]), str(paths[sae_id]["path"])


# ------------------------------------------------------------------ writing


def save(sae: Any, path: str | os.PathLike[str], format: str = "saelens", **metadata: Any) -> None:
    """Write a model for other tools: encoder, decoder and thresholds for raw activations.

    Parameters
    ----------
    sae : SparseAutoencoder, PretrainedSAE
        Fitted. Its metric or input scaling is folded into the weights, BatchTopK becomes JumpReLU with one
        threshold, as SAELens does itself.
    path : path
        A new folder (``"saelens"``: ``cfg.json`` and ``sae_weights.safetensors``, ``"sparsify"``: ``cfg.json`` and
        ``sae.safetensors``, ``"crosscoder"``: ``config.json`` and ``model.safetensors``) or file (``"npz"``: Gemma Scope's five
        arrays). Written beside itself and renamed.
    format : {"saelens", "npz", "sparsify", "crosscoder"}
        See `path`. ``"crosscoder"`` is what ``BatchTopKCrossCoder.from_pretrained(path, from_hub=True)`` opens in
        dictionary_learning as the authors of Minder et al. (arXiv 2504.02922) keep it: one threshold for all latents, so that
        where ours have their own, each latent's code there is ours over its threshold, and its decoder row that many times ours.
    **metadata
        Into SAELens's ``metadata``: ``model_name``, ``hook_name``, ``context_size`` and what else its tools use.
        That of a model read from SAELens goes with it, but for what is given here.

    Raises
    ------
    FileExistsError
        `path` is there already.
    TypeError
        `sae` is no autoencoder.
    ValueError
        The format cannot express the model: ``"npz"`` has no TopK, no input norm and no skip connection, ``"saelens"`` no
        TopK transcoder, ``"sparsify"`` nothing but TopK, without input norm and to as many features as from. Crosscoders have
        ``"crosscoder"`` alone, of sites of one width and without TopK.
    """
    if format not in ("saelens", "npz", "sparsify", "crosscoder"):
        raise ValueError(f"format: expected 'saelens' or 'npz', 'sparsify' or 'crosscoder', got {format!r}")
    path = as_path(path, "path")
    if path.exists():
        raise FileExistsError(f"{path}: is there already; name another or remove it")
    sae, names = as_fitted(sae), ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
    if not all(hasattr(sae, name) for name in (*names, "activation")):
        raise TypeError(
            f"sae: expected a SparseAutoencoder or a PretrainedSAE, got a {type(sae).__name__}: other tools' files hold "
            "an encoder, a decoder and thresholds"
        )
    sites = getattr(sae, "sites_", None)
    if (sites is not None) != (format == "crosscoder"):
        raise ValueError(
            "sae: is a crosscoder, which reads several places at once: that format has one place. format='crosscoder' has "
            "several, sae.save(path) keeps it as it is, and sae.to_torch() is a module for rows side by side"
            if sites is not None
            else "format: 'crosscoder' is of several places, and sae is of one; use 'saelens'"
        )
    arrays: dict[str, Any] = {name: np.ascontiguousarray(getattr(sae, name), np.float32) for name in names}
    if format == "sparsify":
        tensors, said = _as_sparsify(sae, arrays)
        _write_folder(path, "sae.safetensors", said, tensors)
        return
    if sites is not None:
        tensors, said = _as_crosscoder(sae, arrays, [of.stop - of.start for of in sites])
        _write_folder(path, "model.safetensors", said, tensors, "config.json")
        return
    norm, skip = getattr(sae, "input_norm", "none"), getattr(sae, "W_skip", None)
    transcoder = getattr(sae, "is_transcoder", False)
    activation = "jumprelu" if sae.activation == "batchtopk" else sae.activation
    _check_expressible(format, arrays["threshold"], activation, norm, skip)
    path.parent.mkdir(parents=True, exist_ok=True)
    if format == "npz":
        with replacing(path) as file:
            with open(file, "wb") as written:
                np.savez(written, **arrays)
            with zipfile.ZipFile(file, "a") as archive:
                archive.comment = _formats.NPZ_COMMENT[transcoder]  # the arrays do not say it
        return
    config = _saelens_config(sae, activation, transcoder, skip is not None, norm, arrays, metadata)
    if skip is not None:
        arrays["W_skip"] = np.ascontiguousarray(skip.T)
    if activation != "jumprelu":
        del arrays["threshold"]
    _write_folder(path, "sae_weights.safetensors", config, arrays)


def _check_expressible(format: str, threshold: np.ndarray, activation: str, norm: str, skip: Any) -> None:
    """Whether other tools, and the format, have a place for all that the model does."""
    if threshold.min() < 0:
        raise ValueError("sae: has negative thresholds, which other tools take for zero")
    if format == "npz" and (activation == "topk" or norm != "none" or skip is not None):
        what = "TopK" if activation == "topk" else "a skip connection" if skip is not None else norm
        raise ValueError(f"format: 'npz' has no place for {what}; use 'saelens'")


def _plain(value: Any) -> Any:
    """What JSON has no word for."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(
        f"metadata: expected numbers, texts, lists and dictionaries, got a {type(value).__name__}"
    )


def _write_folder(
    path: Path, weights: str, config: dict[str, Any], arrays: dict[str, Any], named: str = "cfg.json"
) -> None:
    """A new folder of two files, written beside itself and renamed."""
    from safetensors.numpy import save as packed

    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    folder.mkdir()
    try:
        with replacing(folder / weights) as file:
            file.write_bytes(packed(arrays))
        with replacing(folder / named) as file:
            file.write_text(json.dumps(config, indent=1, default=_plain) + "\n", encoding="utf-8")
        os.rename(folder, path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _as_sparsify(sae: Any, arrays: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """sparsify's tensors and configuration."""
    (d_in, d_sae), d_out = arrays["W_enc"].shape, arrays["W_dec"].shape[1]
    norm, transcoder = getattr(sae, "input_norm", "none"), getattr(sae, "is_transcoder", False)
    if sae.activation != "topk" or norm != "none" or d_in != d_out:
        what = norm if norm != "none" else f"{d_in} features to {d_out}" if d_in != d_out else sae.activation
        raise ValueError(
            f"format: 'sparsify' has TopK alone, to as many features as from, not {what}; use 'saelens'"
        )
    skip, bias = getattr(sae, "W_skip", None), arrays["b_enc"].astype(np.float64)
    if not transcoder:  # it subtracts the decoder's bias first
        bias = bias + arrays["b_dec"].astype(np.float64) @ arrays["W_enc"]
    tensors = {
        "encoder.weight": np.ascontiguousarray(arrays["W_enc"].T), "encoder.bias": bias.astype(np.float32),
        "W_dec": arrays["W_dec"], "b_dec": arrays["b_dec"],
    }  # fmt: skip
    if skip is not None:
        tensors["W_skip"] = np.ascontiguousarray(skip.T, np.float32)
    k = getattr(sae, "k", None)
    return tensors, {
        "activation": "topk", "num_latents": d_sae, "k": int(k_of(sae.target_l0) if k is None else k), "d_in": d_in,
        "normalize_decoder": True, "multi_topk": False, "skip_connection": skip is not None, "transcode": transcoder,
    }  # fmt: skip


def _as_crosscoder(
    sae: Any, arrays: dict[str, np.ndarray], widths: list[int]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and configuration of dictionary_learning's BatchTopKCrossCoder, in the fork that has it."""
    if len(set(widths)) > 1:
        raise ValueError(
            f"format: 'crosscoder' has sites of one width, not {widths}; sae.save(path) keeps it"
        )
    if sae.activation == "topk":
        raise ValueError("format: 'crosscoder' has a threshold, not TopK; sae.save(path) keeps it")
    threshold, (n, d, m) = arrays["threshold"], (len(widths), widths[0], arrays["W_enc"].shape[1])
    if threshold.min() < 0 or (threshold.min() == 0 < threshold.max()):
        raise ValueError(
            "sae: has latents of threshold zero or below beside others, for which one threshold cannot stand; "
            "sae.save(path) keeps it"
        )
    # one threshold for all: where each latent has its own, they are rescaled until all are 1
    shared, by = (threshold[0], np.ones_like(threshold)) if np.ptp(threshold) == 0 else (1, threshold)
    W_enc, W_dec = arrays["W_enc"] / by, arrays["W_dec"] * by[:, None]
    k = sae.config.get("k", 100) if isinstance(sae, PretrainedSAE) else k_of(sae.target_l0)  # 100: theirs
    tensors = {
        "encoder.weight": np.ascontiguousarray(W_enc.reshape(n, d, m)), "encoder.bias": arrays["b_enc"] / by,
        "decoder.weight": np.ascontiguousarray(W_dec.reshape(m, n, d).transpose(1, 0, 2)),
        "decoder.bias": arrays["b_dec"].reshape(n, d),
        "threshold": np.array(shared, np.float32), "k": np.array(k, np.int32),
        "code_normalization_id": np.array(4, np.int64),  # NONE, as its enumeration counts
        "target_rms": np.array(1, np.float32),
    }  # fmt: skip
    return tensors, {
        "activation_dim": d, "dict_size": m, "num_layers": n, "k": k, "code_normalization": "NONE",
    }  # fmt: skip


def _saelens_config(
    sae: Any, activation: str, transcoder: bool, skip: bool, norm: str, arrays: dict[str, np.ndarray],
    metadata: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    architecture = {"relu": "standard"}.get(activation, activation)
    if transcoder:
        if activation == "topk":
            raise ValueError("format: SAELens has no TopK transcoders; use 'sparsify'")
        architecture = (
            ("jumprelu_" if activation == "jumprelu" else "") + ("skip_" if skip else "") + "transcoder"
        )
    (d_in, d_sae), d_out = arrays["W_enc"].shape, arrays["W_dec"].shape[1]
    config: dict[str, Any] = {
        "architecture": architecture, "d_in": d_in, "d_sae": d_sae, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": False, "normalize_activations": norm, "reshape_activations": "none",
    }  # fmt: skip
    known = saelens_metadata(sae.config) if getattr(sae, "source", None) == "saelens" else {}
    if known.pop("reshape_activations", None) == "hook_z":
        config["reshape_activations"] = "hook_z"  # makes SAELens flatten the heads of a hook's activations
    if transcoder:
        config["d_out"] = d_out
    if activation == "topk":
        k = getattr(sae, "k", None)
        config |= {"k": int(k_of(sae.target_l0) if k is None else k), "rescale_acts_by_decoder_norm": False}
    # without a version of 6 or later, SAELens reads the file as a legacy one and drops the metadata
    config["metadata"] = {**known, "atoms_version": __version__, **metadata, "sae_lens_version": "6.0.0"}
    return config


def convert(
    source: str | os.PathLike[str], target: str | os.PathLike[str], *, is_transcoder: bool | None = None
) -> str:
    """Read any known format and write another: ``.npz`` by that ending, else a SAELens folder; TopK transcoders, which SAELens
    has not, one of sparsify.

    ``python -m atoms convert IN OUT`` does this.

    Parameters
    ----------
    source : path
        What `load` reads.
    target : path
        A file that ends in ``.npz``, or a folder.
    is_transcoder : bool, optional
        As `load`.

    Returns
    -------
    str
        One line that says what was read and written.
    """
    to = as_path(target, "target")
    as_path(source, "source")
    sae = load(source, is_transcoder=is_transcoder)
    if not hasattr(sae, "W_enc"):
        raise ValueError(f"{source}: holds no autoencoder but a {type(sae).__name__}")
    topk = getattr(sae, "is_transcoder", False) and sae.activation == "topk"
    format = "npz" if to.suffix == ".npz" else "sparsify" if topk else "saelens"
    save(sae, target, format)
    return f"{source}: {sae!r}, written to {target} ({format})"


# ------------------------------------------------------------------ the hub


def from_pretrained(
    name: str | os.PathLike[str],
    subfolder: str = "",
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    is_transcoder: bool | None = None,
    num_threads: int | None = None,
) -> Any:
    """A model of the Hugging Face hub, or of a local folder laid out like one.

    Only the files that a known format has are fetched, through huggingface_hub and its cache: what is there
    is not fetched again, and ``HF_HUB_OFFLINE=1`` or `local_files_only` forbids the network.

    Parameters
    ----------
    name : str or path
        ``"org/name"`` on the hub, or a folder that exists.
    subfolder : str
        Where in it the model is, e.g. ``"layer_20/width_16k/average_l0_71"``.
    revision : str, optional
        Branch, tag or commit.
    cache_dir : path, optional
        The hub's own by default.
    local_files_only : bool
        Nothing is fetched.
    is_transcoder : bool, optional
        As `load`.
    num_threads : int, optional
        Of the model.

    Raises
    ------
    FileNotFoundError
        No model there, or not in the cache when nothing may be fetched.
    ImportError
        huggingface_hub is not installed.
    ValueError
        As `load`.
    """
    folder = _fetched(
        name, subfolder, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only
    )
    return load(folder, is_transcoder=is_transcoder, num_threads=num_threads)


def _fetched(
    name: str | os.PathLike[str],
    subfolder: str,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder on this machine that is, or now holds, what `from_pretrained` was asked for."""
    parts = Path(subfolder).parts
    if Path(subfolder).is_absolute() or ".." in parts:
        raise ValueError(f"subfolder: expected a path inside the repository, got {subfolder!r}")
    if as_path(name, "name").is_file():
        raise ValueError(
            f"name: {name} is a file, with no folders of models in it; atoms.load(path) opens it"
        )
    if Path(name).is_dir():
        return Path(name) / subfolder
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise ImportError(
            f"{name}: no such folder here, and the hub needs `pip install huggingface_hub`"
        ) from error
    prefix = "".join(glob.escape(part) + "/" for part in parts)
    try:
        root = huggingface_hub.snapshot_download(
            str(name),
            revision=revision,
            cache_dir=None if cache_dir is None else os.fspath(cache_dir),
            allow_patterns=[prefix + file for file in _FILES],
            local_files_only=local_files_only,
        )
    except errors.HFValidationError as error:
        raise ValueError(f"name: neither a folder here nor a name on the hub: {error}") from None
    except (OSError, errors.HfHubHTTPError) as error:
        raise FileNotFoundError(f"{name}: not to be had from the hub nor its cache: {error}") from error
    return Path(root) / subfolder
