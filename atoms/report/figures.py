"""The report's figures: each as PNG and PDF, with the arrays behind it as .npz."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import plot
from .._files import replacing as _replacing
from . import jobs
from .scoring import CONVENTION, WITHOUT_MASSIVE
from .tables import LABELS

if TYPE_CHECKING:
    from .config import Config
    from .monosemanticity import Judged
    from .run import Plan

__all__ = ["capacity", "frontier", "main", "monosemanticity", "shift"]

_RIDGES = 5  # layers whose histograms are drawn; the means are drawn for all
COLOURS = {
    "atoms": plot.AFTER,
    "euclidean": plot.BEFORE,
    "relu": "#4a9c8c",
    "topk": "#7d6bb0",
    "batchtopk": "#7d6bb0",
    "memorizing": plot.TOKENS,
    "random": plot.RANDOM,
    "pca": "#b05a7a",
    "pca-all": "#b05a7a",
}


_CHANGES = {"width": " d_in atoms", "data": " of the rows", "variant": ""}


def _colour(name: str) -> str:
    return COLOURS.get(name, plot.SOFT)


def _save(figure: Any, folder: Path, name: str, **arrays: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in ("png", "pdf"):
        plot.save(figure, folder / f"{name}.{suffix}")
    with _replacing(folder / f"{name}.npz") as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def shift(planned: Plan, out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Angle histograms of some layers, means and deviations of all."""
    figure, (left, right) = plot.new_figure(1, 2, size=(14, 6))
    layers = list(planned.shift)
    chosen = [
        layers[i] for i in np.unique(np.linspace(0, len(layers) - 1, min(_RIDGES, len(layers))).astype(int))
    ]
    found = {layer: jobs.read(out, planned.shift[layer]).arrays for layer in layers}
    edges = found[layers[0]]["edges"]
    plot.angles(
        left,
        edges,
        [
            (f"layer {layer}", found[layer]["angles/euclidean"], found[layer]["angles/metric"])
            for layer in chosen
        ],
    )
    plot.titles(left, "Representation shift", "angles between held-out activations, before and after")
    for geometry, label, colour in (
        ("euclidean", "Euclidean", plot.BEFORE),
        ("metric", "atomic inner product", plot.AFTER),
    ):
        mean = np.array([r[f"angles_{geometry}_mean"] for r in rows])
        std = np.array([r[f"angles_{geometry}_std"] for r in rows])
        plot.band(right, layers, mean, std, label, colour)
    plot.finish(right, xlabel="layer", ylabel="angle between two activations, degrees", legend=True)
    right.axhline(90, color=plot.INK, lw=1, ls=(0, (4, 3)), zorder=0)
    plot.titles(right, "Every layer", "mean, and one standard deviation either side")
    arrays = {
        f"{k}_{layer}": v
        for layer, a in found.items()
        for k, v in (("euclidean", a["angles/euclidean"]), ("metric", a["angles/metric"]))
    }
    _save(figure, out / "figures", "shift", layers=np.array(layers), edges=edges, **arrays)


def main(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Explained variance on training and held-out rows, and q* beside that of random directions."""
    figure, (left, right) = plot.new_figure(1, 2, size=(14, 0.42 * len(rows) + 2.2), sharey=True)
    names = [r["dictionary"] for r in rows]
    at = np.arange(len(names))[::-1]
    low = -0.5
    arrays: dict[str, Any] = {"names": np.array(names)}
    for field, label, marker in (
        ("R2_train", "training", "o"),
        ("R2_held_out", "held-out", "D"),
        ("R2_text", "other text", "s"),
    ):
        values = np.array([np.nan if r[field] is None else r[field] for r in rows])
        arrays[field] = values
        if np.isfinite(values).any():
            plot.marks(
                left,
                np.maximum(values, low),
                at,
                label,
                marker,
                [_colour(n) for n in names],
                cut=values < low,
            )
    left.set_yticks(at, [LABELS[n] for n in names])
    plot.finish(left, xlabel="explained variance, centred, in the metric", legend=True)
    left.set_xlim(low - 0.03, 1.03)
    plot.titles(left, "How much they explain", f"mean over layers; arrows: below {low:g}")
    for field, label, marker in (
        ("q_star", "this dictionary", "o"),
        ("q_star_random", "random directions, same L0", "|"),
        ("q_star_ceiling", "most at its largest cosine", "4"),
    ):
        arrays[field] = np.array([r[field] for r in rows])
        plot.marks(right, arrays[field], at, label, marker, [_colour(n) for n in names])
    plot.finish(right, xlabel="q*", legend=True)
    right.set_xlim(-0.03, 1.03)
    plot.titles(right, "How stable they are", "q* follows L0: compare with random directions")
    _save(figure, out / "figures", "main", **arrays)


def capacity(planned: Plan, out: Path, config: Config) -> dict[str, np.ndarray]:
    """Heat maps over |M| and |D| for atoms, and the memorizing dictionary beside them; their arrays."""
    data = sorted({m for _, m, _ in planned.grid})
    widths = sorted({n for _, _, n in planned.grid})
    arrays: dict[str, np.ndarray] = {"data": np.array(data), "widths": np.array(widths)}
    for name in ("atoms", "memorizing"):
        for field in ("train", "held_out", "q_star"):
            values = np.full((len(data), len(widths)), np.nan)
            for i, m in enumerate(data):
                for j, n in enumerate(widths):
                    r = jobs.read(out, planned.grid[name, m, n]).record
                    values[i, j] = (
                        r["q_star"]
                        if field == "q_star"
                        else r["explained"][field][CONVENTION][WITHOUT_MASSIVE]
                    )
            arrays[f"{name}_{field}"] = values
    figure, axes = plot.new_figure(2, 3, size=(14, 8))
    heads = {"train": "explained, training", "held_out": "explained, held-out", "q_star": "q*"}
    for i, name in enumerate(("atoms", "memorizing")):
        for j, (field, head) in enumerate(heads.items()):
            plot.heat(
                axes[i, j], arrays[f"{name}_{field}"], [f"{n:,}" for n in widths], [f"{m:,}" for m in data]
            )
            axes[i, j].set(xlabel="atoms |D|", ylabel="activations |M|" if j == 0 else "")
            plot.titles(
                axes[i, j], f"{LABELS[name]}: {head}" if name == "atoms" else f"memorizing dictionary: {head}"
            )
    _save(figure, out / "figures", "capacity", **arrays)
    return arrays


def frontier(planned: Plan, out: Path, config: Config) -> list[dict[str, Any]]:
    """Held-out explained variance against q* and against L0; the points."""
    points = []
    for name, what, value, job in planned.frontier:
        result = jobs.read(out, job)
        r, l0 = result.record, result.arrays.get("history/l0")
        points.append(
            {
                "dictionary": name,
                "varies": what,
                "value": value,
                "l0": r["l0_mean"],
                "l0_fitted": None if l0 is None else float(np.mean(l0[-10:])),
                "R2_train": r["explained"]["train"][CONVENTION][WITHOUT_MASSIVE],
                "R2_held_out": r["explained"]["held_out"][CONVENTION][WITHOUT_MASSIVE],
                "raw_held_out": r["explained"]["held_out"]["centered"][WITHOUT_MASSIVE],
                "pursuit": r.get("pursuit"),
                "q_star": r["q_star"],
                "q_star_random": r["q_star_random"],
                "d_sae": r["d_sae"],
                "n_train": r["n_train"],
            }
        )
    figure, axes = plot.new_figure(1, 2, size=(14, 6.4), sharey=True)
    low = -0.3
    for axis, field, label in (
        (axes[0], "q_star", "q*"),
        (axes[1], "l0", "active atoms per held-out token (L0)"),
    ):
        for name in dict.fromkeys(p["dictionary"] for p in points):
            mine = [
                p
                for p in points
                if (p["dictionary"], p["varies"]) == (name, "L0") and p["R2_held_out"] >= low
            ]
            mine.sort(key=lambda p: p["l0"])
            if mine:
                plot.line(
                    axis,
                    [p[field] for p in mine],
                    [p["R2_held_out"] for p in mine],
                    LABELS[name],
                    _colour(name),
                )
        others = [p for p in points if p["varies"] != "L0" and p["R2_held_out"] >= low]
        markers = dict(zip(dict.fromkeys((p["varies"], p["value"]) for p in others), "*PXDv^<>hps8" * 3))
        named = set()
        for p in others:
            change = p["varies"], p["value"]
            name = "" if change in named else f"{p['value']}{_CHANGES[p['varies']]}"
            named.add(change)
            plot.star(axis, p[field], p["R2_held_out"], name, markers[change], _colour(p["dictionary"]))
        plot.finish(
            axis,
            xlabel=label,
            ylabel="held-out explained variance" if field == "q_star" else "",
            legend=field == "q_star",
        )
    axes[1].set_xscale("log", base=2)
    axes[1].xaxis.set_major_formatter("{x:g}")
    f = config.frontier
    plot.titles(
        axes[0],
        "The frontier",
        f"layer {f.layer}; along a line, target L0; marks change one setting at L0 {config.l0:g}",
    )
    plot.titles(axes[1], "The same against sparsity", "")
    columns = {
        key: np.array([np.nan if p[key] is None else p[key] for p in points])
        for key in points[0]
        if key not in ("value",)
    }
    _save(figure, out / "figures", "frontier", value=np.array([str(p["value"]) for p in points]), **columns)
    return points


def monosemanticity(judged: Sequence[Judged], out: Path) -> None:
    """Scores of every latent, and their means, by dictionary."""
    figure, axes = plot.new_figure(1, 2, size=(14, 0.5 * len(judged) + 2.4), sharey=True)
    at = np.arange(len(judged))[::-1]
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {"names": np.array([j.dictionary for j in judged])}
    for axis, task in zip(axes, ("detection", "fuzzing")):
        for y, one in zip(at, judged):
            values = getattr(one, task)
            arrays[f"{task}/{one.dictionary}"] = values
            axis.scatter(
                values,
                y + rng.uniform(-0.25, 0.25, len(values)),
                s=10,
                alpha=0.35,
                color=_colour(one.dictionary),
                lw=0,
            )
            if np.isfinite(values).any():  # of some kinds no latent fires often enough
                axis.plot([np.nanmean(values)] * 2, [y - 0.35, y + 0.35], color=_colour(one.dictionary), lw=3)
        axis.axvline(0.5, color=plot.INK, lw=1, ls=(0, (4, 3)), zorder=0)
        plot.finish(axis, xlabel=f"{task} score (AUROC)")
        axis.set_xlim(0, 1.02)
    axes[0].set_yticks(at, [LABELS[j.dictionary] for j in judged])
    plot.titles(axes[0], "Detection", "does the latent fire at the end of this context? 0.5 is chance")
    plot.titles(axes[1], "Fuzzing", "at this token of the context, or at another?")
    _save(figure, out / "figures", "monosemanticity", **arrays)
