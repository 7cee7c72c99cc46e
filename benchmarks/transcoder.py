"""Transcoders of SmolLM2-135M's MLP at layer 15 against sparsify's: held-out variance at equal L0, and speed.

Input: the MLP's, after the norm. Target: its output. Everybody trains on the same rows in the same seeded order, and is
judged on the last twentieth of the text: explained variance of the target, centred,
1 - sum|y - y_hat|^2 / sum|y - mean|^2. The twentieth before it chooses each one's learning rate.

    python benchmarks/transcoder.py capture --data FOLDER
    python benchmarks/transcoder.py run --data FOLDER --name atoms --lr 3e-3 [--skip]
    python benchmarks/transcoder.py table

sparsify's is its `SparseCoder` in the loop of its `Trainer`, whose steps stand in `train_sparsify`: the decoder's bias
begins as the mean of the targets, pre-activations begin centred, the loss is the fraction of variance unexplained, the
optimiser is its default, schedule-free signum, or its Adam. It runs in build/peers (make test-peers).
A run's result is one line of JSON in benchmarks/results/transcoder.jsonl.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import data
import numpy as np
from quality import value

RESULTS = Path(__file__).parent / "results" / "transcoder.jsonl"
LAYER = 15


def capture(folder: Path, tokens: int) -> None:
    """Rows of both sides, float32, without the first token of each window and those of massive norm."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    gguf = data.model_file()
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    ids = np.array(tokenizer(data.default_text(), add_special_tokens=False)["input_ids"][:tokens])
    model = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32
    ).model
    model.layers = model.layers[: LAYER + 1]
    windows = torch.from_numpy(ids[: len(ids) // data.WINDOW * data.WINDOW].reshape(-1, data.WINDOW))
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    model.layers[LAYER].mlp.register_forward_hook(
        lambda module, given, out: seen.append(tuple(t[:, 1:].flatten(0, 1).numpy() for t in (given[0], out)))
    )
    with torch.inference_mode():
        for part in windows.split(8):
            model(input_ids=part, use_cache=False)
    X, Y = (np.concatenate(side) for side in zip(*seen))
    keep = np.ones(len(X), bool)
    for side in (X, Y):
        norms = np.linalg.norm(side, axis=1)
        keep &= norms <= data.MASSIVE * np.median(norms)
    np.save(folder / "mlp_in.npy", X[keep])
    np.save(folder / "mlp_out.npy", Y[keep])
    print(f"{keep.sum()} rows of {len(keep)}")


def explained(Y: np.ndarray, Y_hat: np.ndarray) -> float:
    error = np.square(Y.astype(np.float64) - Y_hat).sum()
    return float(1 - error / np.square(Y.astype(np.float64) - Y.mean(axis=0, dtype=np.float64)).sum())


def train_atoms(task: dict, X: np.ndarray, Y: np.ndarray):
    import atoms

    coder = atoms.SparseAutoencoder(
        task["d_sae"], task["activation"], target_l0=task["l0"], batch_size=task["batch_size"],
        max_steps=task["samples"] // task["batch_size"], learning_rate=task["lr"], random_state=task["seed"],
        skip_connection=task["skip"], num_threads=task["threads"], verbose=False, **task["options"],
    )  # fmt: skip
    return lambda: coder.fit(X, target=Y), coder.reconstruct, lambda x: coder.transform(x).nnz / len(x)


def train_sparsify(task: dict, X: np.ndarray, Y: np.ndarray):
    import torch
    from sparsify import SparseCoder, SparseCoderConfig

    torch.set_num_threads(task["threads"])
    torch.manual_seed(task["seed"])
    config = SparseCoderConfig(
        num_latents=task["d_sae"],
        k=task["l0"],
        transcode=True,
        skip_connection=task["skip"],
        **task["options"],
    )
    coder = SparseCoder(X.shape[1], config)
    batch, steps = task["batch_size"], task["samples"] // task["batch_size"]
    rate, name = task["lr"], task["optimizer"]

    def fit() -> None:
        optimizer, schedule = _optimizer(name, coder, rate, steps)
        for step, rows in enumerate(data.batches(len(X), batch, steps, task["seed"])):
            x, y = torch.from_numpy(X[rows]), torch.from_numpy(Y[rows])
            if step == 0:
                coder.encoder.bias.data = -x.mean(0) @ coder.encoder.weight.data.T
                coder.b_dec.data = y.mean(0)
            coder(x, y).fvu.backward()
            optimizer.step()
            optimizer.zero_grad()
            if schedule is not None:
                schedule.step()
        if schedule is None:
            optimizer.eval()  # schedule-free: the mean of its iterates

    @torch.no_grad()
    def rebuild(x: np.ndarray) -> np.ndarray:
        return torch.cat([coder(part, part).sae_out for part in torch.from_numpy(x).split(4096)]).numpy()

    return fit, rebuild, lambda x: float(task["l0"])


def _optimizer(name: str, coder, rate: float, steps: int):
    """As the trainer makes them; its 1,000 steps of warm-up are a twentieth of the steps here."""
    import torch

    if name == "adam":
        from transformers import get_linear_schedule_with_warmup

        optimizer = torch.optim.Adam(coder.parameters(), lr=rate)
        return optimizer, get_linear_schedule_with_warmup(optimizer, steps // 20, steps)
    from schedulefree import ScheduleFreeWrapper
    from sparsify.sign_sgd import SignSGD

    optimizer = ScheduleFreeWrapper(SignSGD(coder.parameters(), lr=rate), momentum=0.95)
    optimizer.train()
    return optimizer, None


def run(options) -> None:
    X, Y = (np.load(options.data / f"mlp_{side}.npy") for side in ("in", "out"))
    cut, tune = len(X) - len(X) // 10, len(X) - len(X) // 20
    make = {"atoms": train_atoms, "sparsify": train_sparsify}[options.name]
    for lr in options.lr:
        task = {
            "name": options.name, "activation": options.activation, "optimizer": options.optimizer,
            "d_sae": options.d_sae, "l0": options.l0, "lr": lr, "seed": options.seed, "skip": options.skip,
            "batch_size": options.batch_size, "samples": options.samples, "threads": options.threads,
            "options": dict(options.option),
        }  # fmt: skip
        fit, rebuild, l0 = make(task, X[:cut], Y[:cut])
        wall, cpu = time.perf_counter(), time.process_time()
        fit()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        record = {
            **task,
            "explained_variance_tune": explained(Y[cut:tune], rebuild(X[cut:tune])),
            "explained_variance": explained(Y[tune:], rebuild(X[tune:])),
            "l0_held_out": l0(X[tune:]), "wall_seconds": wall, "cpu_seconds": cpu,
        }  # fmt: skip
        with open(options.results, "a") as file:
            file.write(json.dumps(record) + "\n")
        print(json.dumps(record), flush=True)


def table(options) -> None:
    """The learning rate that is best on the rows for tuning, for each competitor."""
    groups: dict[tuple, list[dict]] = {}
    for line in options.results.read_text().splitlines():
        r = json.loads(line)
        groups.setdefault((r["skip"], r["name"], r["activation"], r["optimizer"], r["samples"]), []).append(r)
    print(f"{'':48} {'rate':>8} {'held-out EV':>12} {'L0':>6} {'wall s':>8} {'CPU s':>8}")
    for (skip, name, activation, optimizer, samples), records in sorted(groups.items()):
        best = max(records, key=lambda r: r["explained_variance_tune"])
        what = f"{name} ({activation if name == 'atoms' else optimizer}{', skip' if skip else ''}), {samples:,} samples"
        figures = f"{best['lr']:8g} {best['explained_variance']:12.4f} {best['l0_held_out']:6.1f}"
        print(f"{what:48} {figures} {best['wall_seconds']:8.1f} {best['cpu_seconds']:8.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["capture", "run", "table"])
    parser.add_argument("--data", type=Path, default=data.default_folder())
    parser.add_argument("--tokens", type=int, default=40_000)
    parser.add_argument("--name", choices=["atoms", "sparsify"], default="atoms")
    parser.add_argument("--activation", default="topk", help="of ours; sparsify has TopK")
    parser.add_argument("--optimizer", choices=["signum", "adam"], default="signum", help="sparsify's")
    parser.add_argument("--d-sae", type=int, default=2304)
    parser.add_argument("--l0", type=int, default=32)
    parser.add_argument("--lr", type=float, nargs="+", default=[3e-3])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip", action="store_true")
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--samples", type=int, default=300_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--option", type=value, nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.command == "capture":
        capture(options.data, options.tokens)
    else:
        {"run": run, "table": table}[options.command](options)


if __name__ == "__main__":
    main()
