"""The report's figures: each as PNG and PDF, with the arrays behind it as .npz."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import _plot as plot
from .._files import replacing
from . import jobs
from .config import Config
from .kinds import KINDS
from .monosemanticity import Judged
from .plan import Plan
from .tables import Row

__all__ = ["capacity", "frontier", "main", "monosemanticity", "shift"]

_RIDGES = 5  # layers whose histograms are drawn; the means are drawn for all
_CHANGES = {"width": " d_in atoms", "data": " of the rows", "variant": ""}


def _save(figure: Any, folder: Path, name: str, **arrays: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in ("png", "pdf"):
        plot.save(figure, folder / f"{name}.{suffix}")
    with replacing(folder / f"{name}.npz") as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def shift(planned: Plan, out: Path, rows: Sequence[Row]) -> None:
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


def main(rows: Sequence[Row], out: Path) -> None:
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
                [KINDS[n].colour for n in names],
                cut=values < low,
            )
    left.set_yticks(at, [KINDS[n].label for n in names])
    plot.finish(left, xlabel="explained variance, centred, in the metric", legend=True)
    left.set_xlim(low - 0.03, 1.03)
    plot.titles(left, "How much they explain", f"mean over layers; arrows: below {low:g}")
    for field, label, marker in (
        ("q_star", "this dictionary", "o"),
        ("q_star_random", "random directions, same L0", "|"),
        ("q_star_ceiling", "most at its largest cosine", "4"),
    ):
        arrays[field] = np.array([r[field] for r in rows])
        plot.marks(right, arrays[field], at, label, marker, [KINDS[n].colour for n in names])
    plot.finish(right, xlabel="q*", legend=True)
    right.set_xlim(-0.03, 1.03)
    plot.titles(right, "How stable they are", "q* follows L0: compare with random directions")
    _save(figure, out / "figures", "main", **arrays)


def capacity(arrays: Mapping[str, np.ndarray], out: Path, layer: int) -> None:
    """Heat maps over |M| and |D| for atoms of a layer, and the memorizing dictionary beside them."""
    figure, axes = plot.new_figure(2, 3, size=(14, 8))
    heads = {"train": "explained, training", "held_out": "explained, held-out", "q_star": "q*"}
    widths, data = ([f"{n:,}" for n in arrays[axis]] for axis in ("widths", "data"))
    for i, (name, label) in enumerate(
        (("atoms", KINDS["atoms"].label), ("memorizing", "memorizing dictionary"))
    ):
        for j, (field, head) in enumerate(heads.items()):
            plot.heat(axes[i, j], arrays[f"{name}_{field}"], widths, data)
            axes[i, j].set(xlabel="atoms |D|", ylabel="activations |M|" if j == 0 else "")
            plot.titles(axes[i, j], f"{label}: {head}")
    _save(figure, out / "figures", f"capacity_{layer}", **arrays)


def frontier(points: Sequence[Row], out: Path, config: Config) -> None:
    """Held-out explained variance against q* and against L0."""
    figure, axes = plot.new_figure(1, 2, size=(14, 6.4), sharey=True)
    above = [p for p in points if p["R2_held_out"] >= -0.3]
    far = 2 * len(above) < len(points)  # most explain less than nothing: then these are what there is to see
    shown = points if far else above
    for axis, field, label in (
        (axes[0], "q_star", "q*"),
        (axes[1], "l0", "active atoms per held-out token (L0)"),
    ):
        _frontier_lines(axis, shown, field)
        _frontier_marks(axis, [p for p in shown if p["varies"] != "L0"], field)
        plot.finish(
            axis,
            xlabel=label,
            ylabel="held-out explained variance" if field == "q_star" else "",
            legend=field == "q_star",
        )
    if far:
        axes[0].set_yscale("symlog", linthresh=1)
        axes[0].yaxis.set_major_formatter("{x:g}")
    axes[1].set_xscale("log", base=2)
    axes[1].xaxis.set_major_formatter("{x:g}")
    plot.titles(
        axes[0],
        "The frontier",
        f"layer {config.frontier.layer}; along a line, target L0; marks change one setting at L0 {config.l0:g}",
    )
    plot.titles(axes[1], "The same against sparsity", "")
    columns = {
        key: np.array([np.nan if p[key] is None else p[key] for p in points])
        for key in points[0]
        if key not in ("value",)
    }
    _save(figure, out / "figures", "frontier", value=np.array([str(p["value"]) for p in points]), **columns)


def _frontier_lines(axis: Any, shown: Sequence[Row], field: str) -> None:
    """A line along the target L0 for each dictionary."""
    for name in dict.fromkeys(p["dictionary"] for p in shown):
        mine = [p for p in shown if (p["dictionary"], p["varies"]) == (name, "L0")]
        mine.sort(key=lambda p: p["l0"])
        if mine:
            kind = KINDS[name]
            plot.line(
                axis, [p[field] for p in mine], [p["R2_held_out"] for p in mine], kind.label, kind.colour
            )


def _frontier_marks(axis: Any, points: Sequence[Row], field: str) -> None:
    """A mark for each point that changes another setting; each change is named once."""
    markers = dict(zip(dict.fromkeys((p["varies"], p["value"]) for p in points), "*PXDv^<>hps8" * 3))
    named = set()
    for p in points:
        change = p["varies"], p["value"]
        name = "" if change in named else f"{p['value']}{_CHANGES[p['varies']]}"
        named.add(change)
        colour = KINDS[p["dictionary"]].colour
        plot.star(axis, p[field], p["R2_held_out"], name, markers[change], colour)


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
                color=KINDS[one.dictionary].colour,
                lw=0,
            )
            if np.isfinite(values).any():  # of some kinds no latent fires often enough
                axis.plot(
                    [np.nanmean(values)] * 2, [y - 0.35, y + 0.35], color=KINDS[one.dictionary].colour, lw=3
                )
        axis.axvline(0.5, color=plot.INK, lw=1, ls=(0, (4, 3)), zorder=0)
        plot.finish(axis, xlabel=f"{task} score (AUROC)")
        axis.set_xlim(0, 1.02)
    axes[0].set_yticks(at, [KINDS[j.dictionary].label for j in judged])
    plot.titles(axes[0], "Detection", "does the latent fire at the end of this context? 0.5 is chance")
    plot.titles(axes[1], "Fuzzing", "at this token of the context, or at another?")
    _save(figure, out / "figures", "monosemanticity", **arrays)
