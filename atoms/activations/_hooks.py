"""Where a model's activations are, and how it is run to get them or to change them."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .._checks import check_count, check_flag, listed
from .._config import context
from ._contexts import as_contexts
from ._models import decoder_blocks, if_text, import_torch, tokenize
from ._table import Key

__all__: list[str] = []

SITES = ("residual", "mlp", "attention")
_SUBMODULES = {
    "mlp": ("mlp", "feed_forward", "ffn", "ff", "block_sparse_moe", "moe"),
    "attention": ("self_attn", "attn", "attention", "self_attention"),
}
_HOOKED = {"residual": "hook_resid_post", "mlp": "hook_mlp_out", "attention": "hook_attn_out"}

Forward = Callable[[Any, Any, Any], Any]


def _submodule(block: Any, site: str) -> Any:
    if site == "residual":
        return block
    names = [name for name, _ in block.named_children()]
    for name in _SUBMODULES[site]:
        if name in names:
            return getattr(block, name)
    raise ValueError(
        f"site: {type(block).__name__} has no submodule known as {site} output "
        f"(looked for {', '.join(_SUBMODULES[site])}; it has {', '.join(names)}); name the module instead"
    )


class _Enough(Exception):
    """Raised by the last hook of a forward pass: later blocks need not run."""


class Model:
    """A PyTorch model of one of three kinds, run on batches of contexts of token ids.

    "transformers" takes ``input_ids`` and ``attention_mask`` by name; "hooked" has a ``hook_dict`` of
    named hook points, as TransformerLens's models do; "module" is anything else. The last two are called
    with the ids alone, in batches of contexts of equal length, so that no padding is needed.
    """

    def __init__(self, model: Any, forward: Forward | None = None):
        self.torch = import_torch()
        if not isinstance(model, self.torch.nn.Module):
            raise TypeError(
                f"model: expected a PyTorch module, got {type(model).__name__}; load_model(name) loads one"
            )
        if forward is not None and not callable(forward):
            raise TypeError(
                f"forward: expected a function of (model, ids, mask), got {type(forward).__name__}"
            )
        self.model, self.forward = model, forward
        self.config: Any = None
        self.kind = "module"
        if isinstance(getattr(model, "hook_dict", None), Mapping):
            self.kind, self.config = "hooked", getattr(model, "cfg", None)
        elif hasattr(getattr(model, "config", None), "get_text_config"):
            self.kind, self.config = "transformers", model.config.get_text_config(decoder=True)
        first = next(model.parameters(), None)
        self.device = first.device if first is not None else self.torch.device("cpu")

    @property
    def pads(self) -> bool:
        """Contexts of unequal length may share a batch, padded on the right and masked."""
        return self.kind == "transformers" or self.forward is not None

    def limits(self) -> tuple[int | None, int | None]:
        """Size of the vocabulary and longest context, where the configuration says."""
        names = ("d_vocab", "n_ctx") if self.kind == "hooked" else ("vocab_size", "max_position_embeddings")
        vocabulary, longest = (getattr(self.config, name, None) for name in names)
        return vocabulary, longest

    def padding(self) -> tuple[int, int | None] | None:
        """The id of padding, and how many may stand at an end of a row: see `as_contexts`.

        Where nothing names one, tokenizers are told to pad with the id that ends a text, which may also stand at
        the end of a row once.
        """
        sources = [self.config, getattr(self.model, "config", None), getattr(self.model, "tokenizer", None)]

        def named(what: str) -> int | None:
            ids = (getattr(source, f"{what}_token_id", None) for source in sources)
            return next((n for n in ids if isinstance(n, int) and not isinstance(n, bool)), None)

        pad, first, last = named("pad"), named("bos"), named("eos")
        if pad is None:
            return None if last is None else (last, 1)
        return pad, None if pad in (first, last) else 0

    # -------------------------------------------------------------- places

    def keys(self, layers: Any, site: str | Sequence[str]) -> list[Key]:
        """(layer, site) of each place asked for, checked; (name, "output") where a module is named."""
        wanted = [layers] if isinstance(layers, (int, np.integer, str)) else listed(layers, "layers")
        sites = [site] if isinstance(site, str) else listed(site, "site")
        if not wanted:
            raise ValueError("layers: expected at least one layer")
        for name in sites:
            if not isinstance(name, str) or name not in SITES:
                raise ValueError(f"site: expected one or more of {', '.join(SITES)}, got {name!r}")
        if not sites:
            raise ValueError(f"site: expected one or more of {', '.join(SITES)}, got none")
        self._check_numbers([layer for layer in wanted if not isinstance(layer, str)])
        keys = [
            (layer, "output") if isinstance(layer, str) else (int(layer), name)
            for name in sites
            for layer in wanted
        ]
        for key in keys:
            self.place(key)
        return list(dict.fromkeys(keys))

    def _check_numbers(self, layers: list[Any]) -> None:
        """Layers that are not named must be the numbers of blocks that the model has."""
        if not layers:
            return
        if self.kind == "module":
            decoder_blocks(self.model)  # raises, and says what the model lacks
        count = self._blocks()
        for layer in layers:
            number = isinstance(layer, (int, np.integer)) and not isinstance(layer, bool)
            if not (number and 0 <= layer < count):
                raise ValueError(f"layers: the model has blocks 0 to {count - 1}, got {layer!r}")

    def _blocks(self) -> int:
        if self.kind != "hooked":
            return len(decoder_blocks(getattr(self.model, "base_model", self.model)))
        numbers = [n.split(".")[1] for n in self.model.hook_dict if n.startswith("blocks.")]
        return 1 + max((int(n) for n in numbers if n.isdigit()), default=-1)

    def place(self, key: Key) -> Any:
        """The module whose output is taken for a key."""
        layer, site = key
        if isinstance(layer, str):
            known = {name: m for name, m in self.model.named_modules() if name}
            if self.kind == "hooked":
                known |= self.model.hook_dict
            if layer not in known:
                last = layer.rsplit(".", 1)[-1]
                near = [n for n in known if n.rsplit(".", 1)[-1] == last] or list(known)
                raise ValueError(
                    f"layers: {type(self.model).__name__} has no module {layer!r}; it has {', '.join(near[:6])}"
                    + (", ..." if len(near) > 6 else "")
                )
            return known[layer]
        if self.kind == "hooked":
            return self.place((f"blocks.{layer}.{_HOOKED[site]}", "output"))
        return _submodule(decoder_blocks(getattr(self.model, "base_model", self.model))[layer], site)

    def module_name(self, key: Key) -> str:
        """Dotted name of that module, for manifests."""
        place = self.place(key)
        return next((name for name, m in self.model.named_modules() if m is place), str(key[0]))

    def once(self, keys: Sequence[Key]) -> bool:
        """Whether these modules are known to run once in a pass: numbered blocks of a Transformers decoder, and
        what only one of them holds."""
        if self.kind != "transformers" or self.forward is not None:
            return False
        places = [self.place(key) for key in keys]
        names = [m for _, m in self.model.named_modules(remove_duplicate=False)]
        return all(
            isinstance(key[0], int) and sum(m is place for m in names) == 1
            for key, place in zip(keys, places)
        )

    # ------------------------------------------------------------- running

    def check_compute(self, dtype: Any) -> None:
        """ValueError for what `computing` does not take, or not here."""
        if dtype is None:
            return
        if dtype != "bfloat16":
            raise ValueError(
                f"compute_dtype: expected None (the model's own) or 'bfloat16', got {dtype!r}; load_model(name, "
                "dtype=...) loads a model whose weights are of another"
            )
        if self.device.type == "cpu" and context().isa != "avx512_bf16":
            raise ValueError(
                f"compute_dtype: 'bfloat16' is for CPUs with AVX512_BF16, and this one may use {context().isa}, which would "
                "take longer than in float32; leave it out"
            )

    def computing(self, dtype: str | None) -> Any:
        """Inside, this thread's products are of that dtype, of weights rounded once; the model itself stays as it is."""
        if dtype is None:
            return contextlib.nullcontext()
        return self.torch.autocast(self.device.type, getattr(self.torch, dtype))

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Dropout off, no gradients; each module's own training mode is put back."""
        training = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            with self.torch.no_grad():
                yield
        finally:
            for module, mode in training:
                module.training = mode

    def run(self, ids: np.ndarray, mask: np.ndarray, *, head: bool = True) -> Any:
        """The forward pass; without its language-model head where that can be left out."""
        tensor = self.torch.from_numpy(ids).to(self.device)
        if self.forward is not None:
            return self.forward(self.model, tensor, self.torch.from_numpy(mask).to(self.device))
        if self.kind != "transformers":
            return self.model(tensor)
        inputs = {"input_ids": tensor, "use_cache": False}
        if not mask.all():
            inputs["attention_mask"] = self.torch.from_numpy(mask.astype(np.int64)).to(self.device)
        return (self.model if head else getattr(self.model, "base_model", self.model))(**inputs)

    def logits(self, ids: np.ndarray, mask: np.ndarray) -> Any:
        """(contexts, positions, vocabulary), or a ValueError that says what the model lacks."""
        out = self.run(ids, mask)
        out = getattr(out, "logits", out[0] if isinstance(out, (tuple, list)) else out)
        if not isinstance(out, self.torch.Tensor) or out.ndim != 3 or out.shape[:2] != ids.shape:
            raise ValueError(
                f"model: {type(self.model).__name__} gives no logits; it needs its language-model head: "
                "load_model(name, head=True), or AutoModelForCausalLM of Transformers"
            )
        return out

    @contextlib.contextmanager
    def replacing(self, key: Key, change: Callable[[Any], Any]) -> Iterator[None]:
        """Inside, `change` of what the key's module gives takes its place; None leaves it."""

        def hook(module: Any, inputs: Any, output: Any) -> Any:
            several = isinstance(output, (tuple, list))
            hidden = change(output[0] if several else output)
            if hidden is None or not several:
                return hidden
            return type(output)((hidden, *output[1:]))

        handle = self.place(key).register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    @contextlib.contextmanager
    def positions(self) -> Iterator[Callable[[tuple[int, int]], Any]]:
        """A function from a pass's (contexts, tokens) to the mask of tokens that are not the first of their context.

        The pass may be a step of `generate`: what came before is known from the cache it is called with, and padding
        on the left from the attention mask.
        """
        seen: dict[str, Any] = {"start": 0, "mask": None}

        def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            seen["start"] = max(map(_cached, (*args, *kwargs.values())), default=0)
            seen["mask"] = kwargs.get("attention_mask")

        def later(shape: tuple[int, int]) -> Any:
            place = seen["start"] + self.torch.arange(shape[1])
            mask, first = seen["mask"], self.torch.zeros(shape[0], dtype=place.dtype)
            if getattr(mask, "ndim", 0) == 2 and len(mask) == shape[0]:
                first = (mask != 0).to(self.torch.int8).argmax(dim=1).to(first)
            return place > first[:, None]

        decoder = self.model
        if (
            self.kind == "transformers"
        ):  # what holds the blocks is called with the cache, by whatever is around it
            blocks = decoder_blocks(decoder)
            decoder = next(m for m in decoder.modules() if any(child is blocks for child in m.children()))
        handle = decoder.register_forward_pre_hook(look, with_kwargs=True)
        try:
            yield later
        finally:
            handle.remove()

    def describe(self) -> dict[str, Any]:
        """What the model is, for manifests: names, and a digest of all its weights and buffers.

        Raises
        ------
        ValueError
            A weight is not in memory, or something else than the weights decides what the model gives: hooks.
        """
        digest = hashlib.sha256()
        for name, weight in [*self.model.named_parameters(), *self.model.named_buffers()]:
            if weight.is_meta:
                raise ValueError(
                    f"store: the model's {name} is not in memory (offloaded), so a store cannot tell its weights "
                    "from others; load the model without offloading, or capture without store"
                )
            digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
            flat = weight.detach().contiguous().reshape(-1)
            if flat.numel():
                digest.update(flat.view(self.torch.uint8).cpu().numpy().data)
        foreign = _foreign(self.torch, self.model)
        if foreign:
            raise ValueError(
                f"store: {foreign} changes what the model gives, and a store opened again could not tell: remove "
                "it, or capture without store"
            )
        config = getattr(self.model, "config", None) or self.config
        name = getattr(config, "_name_or_path", None) or getattr(config, "model_name", None)
        return {
            "class": type(self.model).__name__,
            "name": str(name) if name else None,
            "revision": getattr(config, "_commit_hash", None),
            "weights_sha256": digest.hexdigest(),
        }


def _cached(value: Any) -> int:
    """Tokens in a cache of keys and values, of Transformers or TransformerLens; of anything else none.

    It goes by other names in other models and versions.
    """
    if hasattr(value, "get_seq_length"):
        return int(value.get_seq_length())
    if hasattr(value, "entries") and hasattr(value, "previous_attention_mask"):
        return int(value.entries[0].past_keys.shape[1])
    return 0


# Transformers leaves hooks that record, torch.nn.utils some that compute weights, accelerate wraps forward
_KNOWN = ("torch", "transformers", "accelerate", "kernels")


def _foreign(torch: Any, model: Any) -> str | None:
    """The first hook, or replaced forward method, that a user or another package has put on the model."""
    everywhere = torch.nn.modules.module
    found = [
        (f"a global {what} hook of PyTorch", hook)
        for what in ("forward", "forward_pre")
        for hook in getattr(everywhere, f"_global_{what}_hooks").values()
    ]
    for name, module in model.named_modules():
        where = f"of {name or 'the model'}"
        found += [(f"a forward hook {where}", hook) for hook in module._forward_hooks.values()]
        found += [(f"a forward pre-hook {where}", hook) for hook in module._forward_pre_hooks.values()]
        if "forward" in vars(module):
            found.append((f"a forward method {where} that is not its class's", vars(module)["forward"]))
    for what, function in found:
        while inner := getattr(function, "func", None) or getattr(function, "__func__", None):
            function = inner
        maker = getattr(function, "__module__", None) or type(function).__module__
        if str(maker).split(".")[0] not in _KNOWN:
            return f"{what} ({getattr(function, '__qualname__', type(function).__name__)})"
    return None


class Hooks:
    """Forward hooks on the wanted modules; `run` returns their outputs as float32 arrays.

    A pass stops once they have run, unless it is to show, as `whole`, that none of them runs twice.
    """

    def __init__(self, model: Model, keys: Sequence[Key], whole: bool):
        self.model, self.torch, self.whole = model, model.torch, whole
        self.keys = list(keys)
        self.found: dict[Key, Any] = {}
        self.keep: Any = None
        self.handles: list[Any] = []
        # layers by number come before the language-model head, which need not run for them; a named module may
        # be anywhere
        self.head = any(isinstance(key[0], str) for key in self.keys)
        try:
            for key in self.keys:
                self.handles.append(model.place(key).register_forward_hook(self._hook(key)))
        except BaseException:
            self.remove()
            raise

    def _hook(self, key: Key) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            if key in self.found:
                raise ValueError(
                    f"layers: {key[0]} {key[1]} runs several times in one forward pass, and its rows would be those "
                    "of one run among them; name a module that runs once"
                )
            hidden = output[0] if isinstance(output, (tuple, list)) else output
            check_shape(hidden, key, tuple(self.keep.shape))
            rows = hidden[self.keep].to(self.torch.float32)
            self.found[key] = rows.reshape(len(rows), -1).cpu().numpy()
            if len(self.found) == len(self.keys) and not self.whole:
                raise _Enough

        return hook

    def run(self, ids: np.ndarray, mask: np.ndarray, keep: np.ndarray) -> dict[Key, np.ndarray]:
        """Rows of each place at the positions that `keep` says."""
        self.found = {}
        self.keep = self.torch.from_numpy(keep).to(self.model.device)
        with contextlib.suppress(_Enough):
            self.model.run(ids, mask, head=self.head)
        missing = [key for key in self.keys if key not in self.found]
        if missing:
            raise RuntimeError(f"the model's forward pass never ran layer {missing[0][0]} {missing[0][1]}")
        return self.found

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self.handles:
            handle.remove()
        self.handles = []


def check_shape(hidden: Any, key: Key, shape: tuple[int, ...]) -> None:
    """ValueError where a module's output is no tensor (context, position, ...) that begins with `shape`."""
    found = tuple(getattr(hidden, "shape", ()))
    if len(found) < 3 or found[:2] != shape:
        raise ValueError(
            f"layers: {key[0]} {key[1]} gave {type(hidden).__name__} of shape {found}; expected a tensor "
            f"(context, position, ...) that begins with {shape}; name another module"
        )


class Pass:
    """Contexts cut into batches, and what each batch gives: the order in which all rows are numbered.

    `capture`, the store and the stream go through the same batches, so their rows are the same bits.
    """

    def __init__(
        self,
        model: Any,
        tokens: Any,
        layers: Any,
        site: str | Sequence[str],
        batch_tokens: int,
        drop_first: bool,
        forward: Forward | None,
        attention_mask: Any = None,
        tokenizer: Any = None,
        compute_dtype: str | None = None,
    ):
        check_count(batch_tokens, "batch_tokens")
        self.model = Model(model, forward)
        self.model.check_compute(compute_dtype)
        self.compute_dtype = compute_dtype
        self.keys = self.model.keys(layers, site)
        tokens = _tokens_of(tokens, tokenizer, self.model.limits()[1])
        self.contexts = as_contexts(
            tokens, attention_mask, limits=self.model.limits(), padding=self.model.padding()
        )
        self.skip = int(check_flag(drop_first, "drop_first"))
        self.lengths = np.array([len(c) - self.skip for c in self.contexts])
        if self.lengths.sum() < 1:
            raise ValueError(
                "tokens: nothing is left after the first token of each context is dropped; give longer contexts"
            )
        self.batch_tokens = int(batch_tokens)
        self.batches = list(_batches(self.contexts, batch_tokens, self.model.pads))
        self.sizes = np.array([int(self.lengths[batch].sum()) for batch in self.batches])
        self.n = int(self.sizes.sum())
        self._whole = not self.model.once(self.keys)

    def padded(self, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A batch's ids, its attention mask, and the mask of positions whose rows are kept."""
        return _pad([self.contexts[i] for i in self.batches[batch]], self.skip)

    @contextlib.contextmanager
    def hooked(self) -> Iterator[Callable[[int], dict[Key, np.ndarray]]]:
        """A function from a batch's number to its rows, while the hooks are on the model."""
        with self.model.evaluating(), self.model.computing(self.compute_dtype):
            hooks = Hooks(self.model, self.keys, self._whole)

            def run(batch: int) -> dict[Key, np.ndarray]:
                found = hooks.run(*self.padded(batch))
                hooks.whole = self._whole = False
                return found

            try:
                yield run
            finally:
                hooks.remove()

    def index(self, batches: Iterable[int] | None = None) -> dict[str, np.ndarray]:
        """token_ids, contexts and positions of the rows, of some batches or of all."""
        chosen = [
            i for b in (range(len(self.batches)) if batches is None else batches) for i in self.batches[b]
        ]
        return {
            "token_ids": np.concatenate([self.contexts[i][self.skip :] for i in chosen]),
            "contexts": np.repeat(np.array(chosen), self.lengths[chosen]),
            "positions": np.concatenate([np.arange(self.skip, len(self.contexts[i])) for i in chosen]),
        }

    def digest(self) -> str:
        """SHA-256 of the token ids and of where the contexts end."""
        digest = hashlib.sha256()
        for one in self.contexts:
            digest.update(len(one).to_bytes(8, "little"))
            digest.update(one.astype("<i8").tobytes())
        return digest.hexdigest()


def _tokens_of(tokens: Any, tokenizer: Any, longest: int | None) -> Any:
    """Token ids, of text too where there is a tokenizer for it."""
    text, tokens = if_text(tokens)
    if text is None:
        return tokens
    if tokenizer is None:
        raise ValueError(
            "tokens: expected contexts of integer ids, got text and no tokenizer; pass tokenizer=..., or as tokens "
            "tokenize(text, tokenizer, max_tokens=...)"
        )
    return tokenize(text, tokenizer, context_length=min(512, longest or 512))


def _batches(contexts: list[np.ndarray], batch_tokens: int, pads: bool) -> Iterable[list[int]]:
    """Consecutive contexts, padded to their longest, of at most batch_tokens (or one context).

    Without padding, a batch also ends where the length changes.
    """
    batch: list[int] = []
    longest = 0
    for i, one in enumerate(contexts):
        uneven = not pads and len(one) != longest
        longest = max(longest, len(one))
        if batch and (uneven or longest * (len(batch) + 1) > batch_tokens):
            yield batch
            batch, longest = [], len(one)
        batch.append(i)
    yield batch


def _pad(contexts: list[np.ndarray], skip: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, attention mask and the mask of positions whose rows are kept, padded on the right."""
    lengths = np.array([len(c) for c in contexts])
    position = np.arange(lengths.max())
    mask = position < lengths[:, None]
    ids = np.zeros(mask.shape, np.int64)
    ids[mask] = np.concatenate(contexts)
    return ids, mask, mask & (position >= skip)
