"""How held-out quality grows with tokens and with width, and how many tokens 0.9 would take.

    python benchmarks/frontier.py capture --texts ../shared/data     # layers 8, 15, 22, once
    python benchmarks/frontier.py run [--layers 8 15 22] [--kinds atoms features learned random memorizing]
    python benchmarks/frontier.py table

Text: WikiText-2's valid and test parts and CounterFact's prompts, in contexts of 256 tokens, their first tokens and
massive ones left out. The last tenth of the test part is held out, its first half to set the L0 of each autoencoder (one
factor on its thresholds), its second to judge. Training rows are the first N of the other contexts in a random order, so
a smaller set is a part of each larger one.

Kinds: atoms (threshold autoencoder under the AIP), features (BatchTopK, Euclidean), learned (`DictionaryLearning` with OMP
codes under the AIP; its L0 is exact). Controls, under the AIP: random (directions, coded by OMP) and memorizing (every training
row an atom, one to a code; its width is N). Everybody sees as many samples, in batches of 512, whatever N is; the metric is fitted to
the training rows alone. Held-out variance is centred, in the metric fitted to *all* training rows, so that one convention judges
every N. q* is the paper's, beside that of random directions at the same codes' L0.

A run is a line of results/frontier.jsonl; what stands there is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import data
import numpy as np
from quality import identity, read

RESULTS = Path(__file__).parent / "results" / "frontier.jsonl"
LAYERS = (8, 15, 22)
TOKENS = (15_000, 30_000, 60_000, 120_000, 240_000, 480_000)
IDENTITY = ("kind", "layer", "tokens", "width", "l0", "samples", "seed")


def folder() -> Path:
    return data.default_folder() / "frontier"


def capture(texts: Path, most: int | None) -> None:
    from atoms import activations
    from atoms._report.data import prompts

    model, tokenizer = activations.smollm2()
    cut = lambda text: activations.tokenize(text, tokenizer, context_length=257)
    test = cut((texts / "wikitext2-test.txt").read_text(encoding="utf-8"))
    held = test[-(len(test) // 10) :]
    train = cut((texts / "wikitext2-valid.txt").read_text(encoding="utf-8")) + test[: -len(held)]
    train += cut("\n".join(prompts(texts / "counterfact-known.json")))
    order = np.random.default_rng(0).permutation(len(train))[:most]
    found = activations.capture(
        model,
        [train[i] for i in order] + held,
        LAYERS,
        massive="drop",
        dtype="float16",
        out=folder() / "rows",
    )
    n_train = int((found.contexts < len(order)).sum())
    about = {"train": n_train, "held_out": len(found.contexts) - n_train, "massive": found.n_dropped_massive}
    (folder() / "about.json").write_text(json.dumps(about) + "\n")
    print(about)


def rows(layer: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training rows, those that set L0, and those that judge."""
    from atoms.activations import Activations

    X = Activations.load(folder() / "rows")[layer]
    train, held = np.split(X, [json.loads((folder() / "about.json").read_text())["train"]])
    return (train, *np.array_split(held, 2))


def run(task: dict, X: np.ndarray, tune: np.ndarray, held: np.ndarray, judge) -> dict:
    import atoms
    from atoms import theory

    X = X[: task["tokens"]]
    metric = None if task["kind"] == "features" else atoms.AtomicInnerProduct(num_threads=1).fit(X)
    own = {"metric": metric, "random_state": task["seed"], "num_threads": 1}
    common = {**own, "verbose": False}
    wall, cpu = time.perf_counter(), time.process_time()
    if task["kind"] == "random":
        model = atoms.controls.RandomDictionary(task["width"], task["l0"], **own).fit(X)
    elif task["kind"] == "memorizing":
        model = atoms.controls.MemorizingDictionary(**own).fit(X)
    elif task["kind"] == "learned":
        model = atoms.DictionaryLearning(
            task["width"], n_nonzero=task["l0"], max_steps=task["samples"] // 2048, **common
        ).fit(X)
    else:
        activation = "jumprelu" if task["kind"] == "atoms" else "batchtopk"
        model = atoms.SparseAutoencoder(
            task["width"], activation=activation, target_l0=task["l0"], batch_size=512,
            max_steps=task["samples"] // 512, learning_rate=4e-3, **common,
        ).fit(X)  # fmt: skip
        model.calibrate(tune)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    codes = model.transform(held)
    rebuilt = model.inverse_transform(codes)
    held = np.asarray(held, np.float32)
    some = np.asarray(X[:: max(1, len(X) // 20_000)], np.float32)
    # of one atom to a code q* is 1, whatever the others
    D = model.W_dec[:2] if task["kind"] == "memorizing" else model.W_dec
    stability = theory.stability(D, np.diff(codes.indptr), metric=judge, num_threads=1)
    explained = lambda x, x_hat, how: float(theory.explained_variance(x, x_hat, how, metric=judge).total)
    return {
        "metric": explained(held, rebuilt, "metric_centered"),
        "raw": explained(held, rebuilt, "centered"),
        "metric_train": explained(some, model.inverse_transform(model.transform(some)), "metric_centered"),
        "l0_held_out": codes.nnz / codes.shape[0],
        "q_star": float(stability.q_star),
        "q_star_random": float(stability.q_star_random),
        "wall_seconds": wall,
        "cpu_seconds": cpu,
    }


def run_all(options: argparse.Namespace) -> None:
    import atoms

    done = {identity(record, IDENTITY) for record in read(RESULTS)}
    for layer in options.layers:
        X, tune, held = rows(layer)
        judge = atoms.AtomicInnerProduct(num_threads=1).fit(X)
        tasks = [
            {"kind": kind, "layer": layer, "tokens": n, "width": n if kind == "memorizing" else width,
             "l0": 1 if kind == "memorizing" else l0, "samples": options.samples, "seed": seed}
            for seed in options.seeds for width in options.widths for l0 in options.l0 for kind in options.kinds
            for n in (min(tokens, len(X)) for tokens in options.tokens)
        ]  # fmt: skip
        for task in tasks:
            if identity(task, IDENTITY) in done:
                continue
            record = task | run(task, X, tune, held, judge)
            with open(RESULTS, "a") as file:
                file.write(json.dumps(record) + "\n")
            print(json.dumps(record), flush=True)


# ------------------------------------------------------------------ what it says


def power_law(tokens: np.ndarray, missing: np.ndarray) -> tuple[float, float, float]:
    """(a, b, c) of missing = a + b (tokens / 100,000)^-c by least squares: c on a grid, the others exact, none negative."""
    from scipy.optimize import nnls

    best = (np.inf, (0.0, 0.0, 0.0))
    for c in np.geomspace(0.02, 2, 200):
        basis = np.stack([np.ones(len(tokens)), (tokens / 1e5) ** -c], axis=1)
        (a, b), error = nnls(basis, missing)
        best = min(best, (error, (float(a), float(b), float(c))))
    return best[1]


def tokens_for(law: tuple[float, float, float], explained: float) -> float:
    a, b, c = law
    left = 1 - explained - a
    return 1e5 * (b / left) ** (1 / c) if left > 0 else np.inf


def fitted(group: list[dict], key: str, draws: int = 400):
    """The law of the seeds' means; 90% intervals of its exponent, its limit and the tokens that 0.9 takes, over residuals drawn anew."""
    tokens = np.array([r["tokens"] for r in group], float)
    missing = 1 - np.array([r[key] for r in group])
    law = power_law(tokens, missing)
    at = law[0] + law[1] * (tokens / 1e5) ** -law[2]
    rng = np.random.default_rng(0)
    again = [power_law(tokens, at + rng.choice(missing - at, len(at))) for _ in range(draws)]
    low_high = lambda values: tuple(np.quantile(values, [0.05, 0.95], method="nearest"))
    return law, {
        "exponent": low_high([c for *_, c in again]),
        "limit": low_high([1 - a for a, *_ in again]),
        "tokens for 0.9": low_high([tokens_for(found, 0.9) for found in again]),
    }


def table() -> None:
    import collections

    groups = collections.defaultdict(list)
    for record in read(RESULTS):
        groups[tuple(record[k] for k in ("layer", "width", "l0", "samples", "kind"))].append(record)
    print(
        "| layer | atoms | L0 | samples | kind | tokens | seeds | held-out (metric) | raw | training | L0 there | q* | random | CPU s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    for name, group in sorted(groups.items()):
        layer, width, l0, samples, kind = name
        for n in sorted({r["tokens"] for r in group}):
            found = [r for r in group if r["tokens"] == n]
            mean = lambda key: np.mean([r[key] for r in found])
            spread = f" ({np.std([r['metric'] for r in found], ddof=1):.4f})" if len(found) > 1 else ""
            print(
                f"| {layer} | {width:,} | {l0} | {samples:,} | {kind} | {n:,} | {len(found)} | {mean('metric'):.4f}{spread} "
                f"| {mean('raw'):.4f} | {mean('metric_train'):.4f} | {mean('l0_held_out'):.1f} | {mean('q_star'):.3f} "
                f"| {mean('q_star_random'):.3f} | {mean('cpu_seconds'):.1f} |"
            )
    print(
        "\nunexplained = a + b (tokens / 100,000)^-c, in the metric; 90% intervals over residuals drawn anew\n"
    )
    print(
        "| layer | atoms | L0 | samples | kind | limit 1 - a | exponent c | tokens for 0.9 |\n|---|---|---|---|---|---|---|---|"
    )
    said = lambda n: f"{n:.2g}" if np.isfinite(n) else "never"
    for name, group in sorted(groups.items()):
        if len({r["tokens"] for r in group}) >= 5:
            law, interval = fitted(group, "metric")
            layer, width, l0, samples, kind = name
            low, high = interval["tokens for 0.9"]
            print(
                f"| {layer} | {width:,} | {l0} | {samples:,} | {kind} | {1 - law[0]:.3f} ({interval['limit'][0]:.3f} to "
                f"{interval['limit'][1]:.3f}) | {law[2]:.2f} ({interval['exponent'][0]:.2f} to {interval['exponent'][1]:.2f}) "
                f"| {said(tokens_for(law, 0.9))} ({said(low)} to {said(high)}) |"
            )
    draw(groups)


def draw(groups: dict) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = {"atoms": "#1f4e79", "features": "#b35806", "learned": "#2d7d46"}
    whole = lambda name, group: name[4] in colours and len({r["tokens"] for r in group}) >= 5
    groups = {name: group for name, group in groups.items() if whole(name, group)}
    layers = sorted({name[0] for name in groups})
    figure, axes = plt.subplots(
        2, len(layers), figsize=(4 * len(layers), 6.4), squeeze=False, sharex=True, sharey="row"
    )
    for name, group in sorted(groups.items()):
        layer, width, l0, _, kind = name
        tokens = sorted({r["tokens"] for r in group})
        for axis, key in zip(axes[:, layers.index(layer)], ("metric", "q_star")):
            values = [np.mean([r[key] for r in group if r["tokens"] == n]) for n in tokens]
            axis.plot(
                tokens,
                values,
                "o-" if l0 == 16 else "s--",
                color=colours[kind],
                label=f"{kind}, L0 {l0}, {width:,}",
                ms=4,
            )
            axis.set_xscale("log")
            axis.grid(True, alpha=0.3)
        axes[0, layers.index(layer)].set_title(f"layer {layer}")
        axes[1, layers.index(layer)].set_xlabel("training tokens")
        axes[1, layers.index(layer)].set_xticks(TOKENS, [f"{n // 1000}k" for n in TOKENS])
        axes[1, layers.index(layer)].minorticks_off()
    axes[0, 0].set_ylabel("held-out explained variance, in the metric")
    axes[1, 0].set_ylabel("q*")
    axes[1, -1].legend(frameon=False, fontsize=8, loc="center right")
    figure.tight_layout()
    figure.savefig(Path(__file__).parents[1] / "docs" / "frontier.png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("capture")
    command.add_argument("--texts", type=Path, required=True)
    command.add_argument("--max-contexts", type=int, help="of training text; default all")
    command = commands.add_parser("run")
    command.add_argument("--layers", type=int, nargs="+", default=LAYERS)
    command.add_argument("--kinds", nargs="+", default=["atoms", "features", "learned"])
    command.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    command.add_argument("--widths", type=int, nargs="+", default=[2304])
    command.add_argument("--l0", type=int, nargs="+", default=[16, 48])
    command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    command.add_argument("--samples", type=int, default=491_520)
    commands.add_parser("table")
    options = parser.parse_args()
    if options.command == "capture":
        capture(options.texts, options.max_contexts)
    elif options.command == "run":
        run_all(options)
    else:
        table()


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    main()
