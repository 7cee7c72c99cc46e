"""Activations of a report: captured once into its folder, then parts that jobs read by name.

Parts are rows of one layer: "metric" (the metric is fitted on them), "angles" (held out from it), "train",
"held_out" (same text, other chunks or prompts), "text" (text of another kind); "random/..." are
those of the randomly initialised model.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import activations, controls
from .._files import plain_name, replacing
from .._rows import MASSIVE
from ..activations import MANIFEST, Activations
from .config import Config
from .kinds import KINDS

__all__ = ["Data", "prepare", "prompts"]


def prompts(path: Path) -> list[str]:
    """Different prompts of a JSON file, in its order: a list of strings, or CounterFact's records."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"texts: {path.name} is not JSON ({error.msg}, line {error.lineno})") from error
    out: list[str] = []
    for record in found if isinstance(found, list) else [None]:
        if isinstance(record, str):
            out.append(record)
        elif isinstance(record, dict) and "requested_rewrite" in record:
            rewrite = record["requested_rewrite"]
            out.append(rewrite["prompt"].format(rewrite["subject"]))
            out += [p for name in record if name.endswith("prompts") for p in record[name]]
        else:
            raise ValueError(f"texts: {path.name} is neither a list of strings nor CounterFact's records")
    return list(dict.fromkeys(out))


def _read(config: Config, name: str | None) -> list[str]:
    """Prompts of a JSON file, or one text."""
    if config.texts is None or name is None:
        return [activations.language_reference()]
    path = Path(config.texts) / name
    if path.suffix == ".json":
        if not path.exists():
            raise FileNotFoundError(f"texts: no file {name} in {config.texts}")
        return prompts(path)
    return [activations.read_text(path)]


def _contexts(texts: list[str], tokenizer: Any, config: Config, max_tokens: int) -> list[np.ndarray]:
    if len(texts) == 1:
        return activations.tokenize(
            texts[0], tokenizer, context_length=config.context_length, max_tokens=max_tokens
        )
    out, n = [], 0
    for text in texts:
        found = activations.tokenize(text, tokenizer, context_length=config.context_length)
        out += found
        n += sum(map(len, found))
        if n >= max_tokens:
            break
    return out


def first_of_prefix(rows: Activations) -> np.ndarray:
    """Mask of the rows whose context up to their token has not come before.

    Equal beginnings have equal activations in a causal model: prompts from templates repeat
    them, and what is repeated would be held out and trained on at once.
    """
    seen: set[int] = set()
    keep = np.zeros(len(rows), bool)
    context, state = -1, 0
    for i, (c, token) in enumerate(zip(rows.contexts.tolist(), rows.token_ids.tolist())):
        state = hash((state if c == context else 0, token))
        context = c
        keep[i] = state not in seen
        seen.add(state)
    return keep


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _split(name: str) -> tuple[str, str]:
    """A name's prefix, "random/" or none, and the text or part that it names."""
    text = name.removeprefix("random/")
    return name.removesuffix(text), text


class _Sources:
    """The texts and settings of the captures, and the model, loaded when first needed."""

    def __init__(self, config: Config, folder: Path, verbose: bool):
        self.config, self.folder, self.verbose = config, folder, verbose
        self.texts = {"metric": _read(config, config.metric_text)}
        self.tokens = {"metric": config.metric_tokens}
        if config.texts is not None and config.train_text not in (None, config.metric_text):
            self.texts["train"], self.tokens["train"] = _read(config, config.train_text), config.train_tokens
        else:
            self.tokens["metric"] = max(config.metric_tokens, config.train_tokens)
        if config.texts is not None and config.held_out_text is not None:
            self.texts["text"], self.tokens["text"] = (
                _read(config, config.held_out_text),
                config.held_out_tokens,
            )
        digests = {name: hashlib.sha256("\0".join(t).encode()).hexdigest() for name, t in self.texts.items()}
        settings = [
            getattr(config, n) for n in ("model", "context_length", "dtype", "layers", "shift_layers")
        ]
        self.keys = {name: _key(digests[name], self.tokens[name], settings) for name in self.texts}
        self.keys |= {
            f"random/{n}": _key(k, config.random_share) for n, k in self.keys.items() if n != "text"
        }

    @functools.cached_property
    def _loaded(self) -> tuple[Any, Any]:
        return activations.load_model(self.config.model)

    @functools.cached_property
    def _random(self) -> Any:
        return controls.random_model(self._loaded[0], random_state=0)

    def place(self, name: str) -> Path:
        """The folder of one capture."""
        prefix, text = _split(name)
        return self.folder / f"{'random' if prefix else 'model'}-{text}-{self.keys[name]}"

    def capture(self, name: str) -> Activations:
        random, text = _split(name)
        out = self.place(name)
        if not (out / MANIFEST).exists():
            model, tokenizer = self._loaded
            share = self.config.random_share if random else 1.0
            contexts = _contexts(
                self.texts[text], tokenizer, self.config, max(1, int(share * self.tokens[text]))
            )
            layers: Sequence[int] = self.config.layers
            if text == "metric" and not random:
                n = len(activations.decoder_blocks(model))
                shifted = self.config.shift_layers
                wanted = range(n) if isinstance(shifted, str) else shifted
                layers = sorted({*layers, *wanted})
            activations.capture(
                self._random if random else model,
                contexts,
                layers,
                dtype=self.config.dtype,
                out=out,
                verbose=self.verbose,
            )
        self._words(text, out)
        return Activations.load(out)

    def _words(self, text: str, out: Path) -> None:
        """Token strings and input embeddings of the ids that occur, for the pages and the judge."""
        path = out / "words.npz"
        if path.exists():
            return
        model, tokenizer = self._loaded
        ids = np.unique(Activations.load(out).token_ids)
        strings = [tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in ids.tolist()]
        embeddings = model.get_input_embeddings().weight.detach()[ids].float().cpu().numpy()
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, ids=ids, strings=np.array(strings), embeddings=embeddings)


def prepare(config: Config, folder: Path, *, verbose: bool = True) -> dict[str, Any]:
    """Capture what is not captured yet, cut it into parts, and say what they are.

    Returns
    -------
    dict
        ``key`` (a hash of all that decides the rows), ``parts`` (name -> source folder or files),
        ``layers`` (whose angles are measured), ``counts``, ``seconds`` of capture. `Data` finds it by its key.
    """
    folder.mkdir(parents=True, exist_ok=True)
    about, index = _from_disk(config) if config.activations else _from_model(config, folder, verbose)
    arrays: dict[str, Any] = dict(index)
    with replacing(folder / f"rows-{about['key']}.npz") as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)
    about["rows"] = {
        part: {str(layer): len(index[f"{part}-{layer}"]) for layer in where["layers"]}
        for part, where in about["parts"].items()
    }
    with replacing(folder / f"parts-{about['key']}.json") as temporary:
        temporary.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return about


def _from_model(config: Config, folder: Path, verbose: bool) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    sources = _Sources(config, folder, verbose)
    random = any(KINDS[name].rows == "random model" for name in config.dictionaries)
    names = [n for n in sources.keys if random or not n.startswith("random/")]
    index: dict[str, np.ndarray] = {}
    parts: dict[str, dict[str, Any]] = {}
    counts: dict[str, Any] = {}
    seconds = 0.0
    layers: list[int] = []
    d_in = 0
    for name in names:
        found = sources.capture(name)
        seconds += found.seconds
        d_in = found[found.layers[0]].shape[1]
        layers = layers or found.layers
        new, massive = first_of_prefix(found), found.massive()
        taken = new.copy()
        if config.positions == "last":
            taken &= np.append(found.contexts[1:] != found.contexts[:-1], True)
        counts[name] = {
            "tokens": len(found),
            "repeated": int((~new).sum()),
            "massive": {str(layer): int(massive[layer, "residual"].sum()) for layer in found.layers},
        }
        for part, mask in _cut(name, found, config, sources).items():
            parts[part] = {"folder": sources.place(name).name, "layers": found.layers}
            for layer in found.layers:
                heavy = massive[layer, "residual"]
                fitted = _split(part)[1] in ("metric", "train")  # where massive tokens are left out
                index[f"{part}-{layer}"] = np.flatnonzero(mask & taken & ~heavy if fitted else mask & taken)
                if part == "metric":
                    index[f"massive-{layer}"] = np.flatnonzero(mask & taken & heavy)
        if name == "metric":
            parts["massive"] = parts["metric"]
    about = {
        "key": _key({n: sources.keys[n] for n in names}, config.held_out, config.positions),
        "parts": parts,
        "layers": layers,
        "d_in": d_in,
        "words": True,
        "counts": counts,
        "seconds": seconds,
    }
    return about, index


def _cut(name: str, found: Activations, config: Config, sources: _Sources) -> dict[str, np.ndarray]:
    """The parts that one source's rows are cut into, as masks."""
    prefix, text = _split(name)
    if text == "text":
        return {name: np.ones(len(found), bool)}
    held = found.held_out(config.held_out)
    cut: dict[str, np.ndarray] = {}
    if text == "metric":
        cut |= {"metric": ~held, "angles": held}
    if text == "train" or f"{prefix}train" not in sources.keys:
        cut |= {"train": ~held, "held_out": held}
    return {prefix + part: mask for part, mask in cut.items()}


def _from_disk(config: Config) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    files = {int(layer): Path(path).resolve() for layer, path in config.activations.items()}
    index: dict[str, np.ndarray] = {}
    stamps, counts = [], {}
    d_in = 0
    for layer, path in files.items():
        if not path.exists():
            raise FileNotFoundError(f"activations: no file {path} (layer {layer})")
        X = np.load(path, mmap_mode="r")
        if X.ndim != 2:
            raise ValueError(f"activations: expected rows (n, d_in) in {path}, got shape {X.shape}")
        d_in = X.shape[1]
        stamps.append([layer, X.shape, str(X.dtype), path.stat().st_size, path.stat().st_mtime_ns])
        chunks = np.arange(len(X)) * 20 // len(X)
        n_held = min(max(1, round(config.held_out * 20)), 19)
        held = np.isin(chunks, np.floor((np.arange(n_held) + 0.5) * 20 / n_held).astype(int))
        step = max(1, (32 << 20) // (4 * X.shape[1]))
        norms = np.concatenate(
            [np.linalg.norm(X[i : i + step].astype(np.float64), axis=1) for i in range(0, len(X), step)]
        )
        massive = norms > MASSIVE * np.median(norms)
        for part in ("metric", "train"):
            index[f"{part}-{layer}"] = np.flatnonzero(~held & ~massive)
        index[f"massive-{layer}"] = np.flatnonzero(~held & massive)
        for part in ("angles", "held_out"):
            index[f"{part}-{layer}"] = np.flatnonzero(held)
        counts[f"layer {layer}"] = {"tokens": len(X), "massive": {str(layer): int(massive.sum())}}
    key = _key(stamps, config.held_out)
    where = {"files": {str(layer): str(path) for layer, path in files.items()}, "layers": sorted(files)}
    about = {
        "key": key,
        "d_in": d_in,
        "words": False,
        "parts": dict.fromkeys(("metric", "massive", "angles", "train", "held_out"), where),
        "layers": sorted(files),
        "counts": counts,
        "seconds": 0.0,
    }
    return about, index


@functools.lru_cache(maxsize=4)
def _index(folder: str, key: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    about = json.loads((Path(folder) / f"parts-{key}.json").read_text(encoding="utf-8"))
    with np.load(Path(folder) / f"rows-{key}.npz") as index:
        return about, {name: index[name] for name in index.files}


class Data:
    """The parts that `prepare` left in a folder under a key."""

    def __init__(self, folder: str | Path, key: str):
        self.folder = Path(folder)
        self.key = key
        self.about, self.index = _index(str(folder), key)

    def has(self, part: str) -> bool:
        return part in self.about["parts"]

    def rows(self, part: str, layer: int, n: int | None = None) -> np.ndarray:
        """Rows of a part at a layer, in memory; `n` of them spread evenly, so that all texts are met."""
        wanted = self.index[f"{part}-{layer}"]
        if n is not None and n < len(wanted):
            wanted = wanted[np.linspace(0, len(wanted) - 1, n).astype(int)]
        where = self.about["parts"][part]
        if "files" in where:
            return np.asarray(np.load(where["files"][str(layer)], mmap_mode="r")[wanted])
        return np.asarray(Activations.load(self.folder / plain_name(where["folder"]))[layer][wanted])

    def words(self, part: str, layer: int) -> dict[str, np.ndarray] | None:
        """The stream of tokens behind a part and the places of its rows there; None where unknown."""
        where = self.about["parts"].get(part, {})
        if "folder" not in where:
            return None
        source = self.folder / plain_name(where["folder"])
        found = Activations.load(source)
        with np.load(source / "words.npz") as known:
            ids, strings, embeddings = known["ids"], known["strings"], known["embeddings"]
        return {
            "rows": self.index[f"{part}-{layer}"],
            "tokens": np.searchsorted(ids, found.token_ids),
            "contexts": found.contexts,
            "strings": strings,
            "embeddings": embeddings,
        }
