"""Pictures, with matplotlib. Every function draws into the axes it is given.

>>> from atoms._plot import new_figure
>>> figure, axes = new_figure(1, 2, size=(6, 3))
>>> len(axes)
2
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ._files import replacing

__all__ = [
    "angle_histogram",
    "angles",
    "axes_of",
    "band",
    "contexts",
    "cosines",
    "crossing",
    "drawing",
    "finish",
    "heat",
    "line",
    "marks",
    "new_figure",
    "recovered",
    "require",
    "save",
    "sparsity",
    "spectrum",
    "star",
    "titles",
    "training",
    "words",
]  # fmt: skip

_F = TypeVar("_F", bound=Callable[..., Any])

INK, SOFT, PAPER, GRID = "#1d2733", "#5d6b7a", "#ffffff", "#e8ebef"
BEFORE, AFTER = "#e0803a", "#1f6fb2"
LAYERS = ("#7fb8e6", "#1f6fb2", "#0b3c66", "#4a9c8c", "#7d6bb0", "#b05a7a")
RANDOM, TOKENS = "#98a2ad", "#c2453d"
_STYLE = {
    "font.size": 10,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 22,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "legend.frameon": False,
}


def require() -> Any:
    """matplotlib, or an ImportError that says how to install it."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("matplotlib is needed for pictures: run `pip install matplotlib`") from error
    return matplotlib


def _styled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run with the package's style, and leave matplotlib's settings as they were."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with require().rc_context(_STYLE):
            return function(*args, **kwargs)

    return wrapper


@_styled
def new_figure(rows: int, columns: int, *, size: tuple[float, float], **grid: Any) -> tuple[Any, Any]:
    """A figure in the package's style that no window shows, and its axes.

    Raises
    ------
    ImportError
        matplotlib is not installed; the message says how to install it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **grid)


@_styled
def axes_of(axes: Any, size: tuple[float, float] = (6.5, 4)) -> Any:
    """The axes given, or those of a new figure that a notebook shows: what results draw themselves into.

    Raises
    ------
    ImportError
        matplotlib is not installed; the message says how to install it.
    TypeError
        `axes` are none, or several.
    """
    if axes is not None:
        if not callable(getattr(axes, "plot", None)):
            raise TypeError(f"axes: expected one matplotlib Axes, got the {type(axes).__name__} {axes!r:.60}")
        return axes
    from matplotlib import pyplot

    return pyplot.subplots(figsize=size, layout="constrained")[1]


_DRAWING = """

Parameters
----------
axes : matplotlib Axes, optional
    Where to draw; by default in a new figure.

Returns
-------
matplotlib Axes
    ``.figure.savefig(path)`` writes the picture.

Raises
------
ImportError
    matplotlib is not installed.
"""


def drawing(method: _F) -> _F:
    """A `plot` method whose docstring says what is drawn; the rest is the same for all of them."""
    method.__doc__ = inspect.cleandoc(method.__doc__ or "") + _DRAWING
    return method


@_styled
def save(figure: Any, path: str | os.PathLike[str], *, dpi: int = 150) -> None:
    """Write a picture beside its target and rename it, so that no half picture is left."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format=Path(path).suffix[1:] or "png")


@_styled
def titles(axes: Any, title: str, subtitle: str = "") -> None:
    """A bold line over the axes, and a lighter one under it."""
    axes.set_title(title)
    axes.text(0, 1.02, subtitle, transform=axes.transAxes, color=SOFT, va="bottom")


@_styled
def angles(axes: Any, edges: np.ndarray, pairs: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> None:
    """Ridges of angle histograms, one per layer: before and after the atomic inner product.

    Parameters
    ----------
    axes : matplotlib Axes
    edges : array (bins + 1,)
        Edges of the bins in degrees.
    pairs : sequence of (label, counts before, counts after)
        One ridge each, the first on top; areas compare within a ridge.
    """
    centres, width = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    names, last = ("Euclidean", "atomic inner product"), len(pairs) - 1
    low, high = 90.0, 90.0
    for i, (_, *counts) in enumerate(pairs):
        floor = last - i
        shares = [np.asarray(c, float) / max(np.sum(c), 1) for c in counts]
        height = max((share / width).max() for share in shares)
        for share, colour, name, side in zip(shares, (BEFORE, AFTER), names, (-1, 1)):
            top = 0.78 * share / width / height
            axes.fill_between(centres, floor, floor + top, color=colour, alpha=0.8, lw=0, step="mid")
            mean = float(share @ centres)
            deviation = float(np.sqrt(share @ (centres - mean) ** 2))
            text = f"{mean:.1f}° ± {deviation:.1f}°"
            text = f"{name}\n{text}" if i == 0 else text
            if side < 0:  # above its curve; the other curve is narrow, at 90 degrees, and has room beside it
                axes.text(
                    mean,
                    floor + top.max() + 0.02,
                    text,
                    ha="center",
                    va="bottom",
                    color=colour,
                    fontweight="bold",
                )
            else:
                axes.text(
                    mean + 1.6 * deviation,
                    floor + top.max(),
                    f" {text}",
                    va="top",
                    color=colour,
                    fontweight="bold",
                )
            seen = centres[share > 1e-4]
            low, high = min(low, seen.min(initial=90)), max(high, seen.max(initial=90))
        axes.axhline(floor, color=INK, lw=0.8)
    axes.axvline(90, color=INK, lw=1, ls=(0, (4, 3)), zorder=0)
    low, high = max(0, low - 20), min(180, high + 35)
    for i, (label, *_) in enumerate(pairs):
        axes.text(low, last - i + 0.06, f" {label}", fontweight="bold", va="bottom")
    axes.set(xlim=(low, high), ylim=(0, last + 0.95), yticks=[], xlabel="angle between two activations")
    axes.xaxis.set_major_formatter("{x:.0f}°")
    axes.spines["left"].set_visible(False)
    axes.grid(False)


@_styled
def training(axes: Any, histories: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Explained variance against samples: training batches thin, held-out text thick.

    Parameters
    ----------
    axes : matplotlib Axes
    histories : mapping of label to ``history_``
    """
    ends = []
    for (label, history), colour in zip(histories.items(), _cycle(len(histories))):
        samples = np.asarray(history["samples"], float) / 1e6
        batches, held = (np.asarray(history[f"explained_variance{of}"], float) for of in ("", "_val"))
        known = np.isfinite(held)
        axes.plot(samples, batches, color=colour, lw=0.8, alpha=0.55)
        axes.plot(samples[known], held[known], color=colour, lw=2.4)
        ends.append((samples[-1], (held[known] if known.any() else batches)[-1], label, colour))
    axes.set(xlabel="training samples, millions", ylabel="explained variance", ylim=(0, 1))
    axes.set_xlim(0, max(x for x, *_ in ends))
    _label_ends(axes, ends)


@_styled
def sparsity(
    axes: Any, curves: Sequence[Mapping[str, Any]], *, points: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Explained variance against L0 for dictionaries.

    Parameters
    ----------
    axes : matplotlib Axes
    curves : sequence of mappings
        Each with ``l0``, ``explained_variance``, ``label``, ``color``.
    points : sequence of mappings
        Single marks with the same keys.
    """
    ends = []
    for curve in curves:
        x, y = curve["l0"], curve["explained_variance"]
        axes.plot(x, y, color=curve["color"], lw=2.4, marker="o", ms=4)
        ends.append((x[-1], y[-1], curve["label"], curve["color"]))
    for point in points:
        x, y = point["l0"], point["explained_variance"]
        axes.plot([x], [y], ls="none", marker="*", ms=15, mec=PAPER, color=point["color"], zorder=5)
        axes.annotate(
            point["label"],
            (x, y),
            xytext=(0.05, 0.9),
            textcoords="axes fraction",
            va="top",
            color=point["color"],
            fontweight="bold",
            arrowprops={"arrowstyle": "-", "color": point["color"], "shrinkB": 8},
        )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="active atoms per token (L0)", ylabel="explained variance", ylim=(0, 1))
    _label_ends(axes, ends)


@_styled
def band(axes: Any, x: Any, middle: np.ndarray, spread: np.ndarray, label: str, color: str) -> None:
    """A line with a band of `spread` either side."""
    axes.fill_between(x, middle - spread, middle + spread, color=color, alpha=0.2, lw=0)
    axes.plot(x, middle, color=color, lw=2.4, label=label)


@_styled
def line(axes: Any, x: Any, y: Any, label: str, color: str) -> None:
    """Points joined in their order."""
    axes.plot(x, y, color=color, lw=2, marker="o", ms=5, label=label)


@_styled
def star(axes: Any, x: float, y: float, label: str, marker: str, color: str = INK) -> None:
    """A single mark; where it has a name, the legend shows it in ink."""
    axes.scatter([x], [y], marker=marker, s=80, color=color, ec=INK, lw=0.8, zorder=4)
    if label:
        axes.scatter([], [], marker=marker, s=70, color=INK, ec=PAPER, lw=0.6, label=label)


@_styled
def marks(
    axes: Any, x: np.ndarray, y: np.ndarray, label: str, marker: str, colors: Sequence[str], cut: Any = None
) -> None:
    """One mark in each row, in the row's colour; arrows where `cut` says the true place is further left."""
    cut = np.zeros(len(x), bool) if cut is None else cut
    axes.scatter(x[~cut], y[~cut], marker=marker, s=60, color=np.array(colors)[~cut], alpha=0.85, zorder=3)
    axes.scatter(x[cut], y[cut], marker="<", s=45, color=np.array(colors)[cut], alpha=0.6, zorder=3)
    axes.scatter([], [], marker=marker, s=60, color=SOFT, label=label)


@_styled
def heat(axes: Any, values: np.ndarray, columns: Sequence[str], rows: Sequence[str]) -> None:
    """A heat map of shares from 0 to 1 with its numbers; what is below 0 takes the colour of 0."""
    axes.imshow(np.clip(values, 0, 1), cmap="Blues", vmin=0, vmax=1.15, origin="lower", aspect="auto")
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            if np.isfinite(values[i, j]):
                dark = values[i, j] > 0.6
                axes.text(
                    j, i, f"{100 * values[i, j]:.1f}", ha="center", va="center", color=PAPER if dark else INK
                )
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.grid(False)


@_styled
def contexts(axes: Any, found: Sequence[Any], *, columns: int = 96) -> None:
    """Lines of text whose tokens are shaded by a latent's activation, the marked token in bold.

    Parameters
    ----------
    axes : matplotlib Axes
    found : sequence of atoms._report.monosemanticity.Context
        One line each, the first on top.
    columns : int
        Characters a line has room for; what does not fit is cut on the left.
    """
    strongest = max((max(c.activations, default=0.0) for c in found), default=0.0) or 1.0
    axes.set(xlim=(0, columns), ylim=(len(found) - 0.4, -0.6))
    axes.axis("off")
    size = _font_size(axes, columns)
    for row, context in enumerate(found):
        tokens = [t.replace("\n", "↵").replace("\t", " ").replace("$", r"\$") for t in context.tokens]
        shown = [len(t) - t.count(r"\$") for t in tokens]
        first = 0
        while sum(shown[first:]) > columns and first < context.focus:
            first += 1
        at = 0
        for i in range(first, len(tokens)):
            a = context.activations[i] if context.activations else 0.0
            axes.text(
                at,
                row,
                tokens[i],
                family="monospace",
                fontsize=size,
                va="center",
                fontweight="bold" if i == context.focus else "normal",
                bbox={"fc": AFTER, "alpha": 0.08 + 0.5 * a / strongest, "lw": 0, "pad": 0.6}
                if a > 0
                else None,
            )
            at += shown[i]


def _font_size(axes: Any, columns: int) -> float:
    """The font size at which `columns` characters of DejaVu Sans Mono (0.602 em wide) fill the axes."""
    inches = axes.figure.get_size_inches()[0] * axes.get_position().width
    return float(72 * inches / (0.602 * columns))


@_styled
def words(axes: Any, up: Sequence[tuple[str, float]], down: Sequence[tuple[str, float]]) -> None:
    """Bars of what a latent adds to words' logits: raised ones to the right, lowered ones to the left.

    Parameters
    ----------
    axes : matplotlib Axes
    up, down : sequence of (word, value)
        The strongest first.
    """
    names = [repr(w)[1:-1].replace("$", r"\$") for w, _ in [*up, *down]]
    values = [v for _, v in [*up, *down]]
    place = np.arange(len(values)) + 0.6 * (np.arange(len(values)) >= len(up))
    axes.barh(place, values, color=[AFTER if v > 0 else BEFORE for v in values], height=0.75)
    axes.set_yticks(place, names)
    axes.invert_yaxis()
    axes.axvline(0, color=INK, lw=0.8)
    axes.grid(False, axis="y")


# ------------------------------------------------------------------ what results draw of themselves


@_styled
def spectrum(axes: Any, values: np.ndarray, rank: float) -> None:
    """Eigenvalues, the largest first, as shares of their sum, and the effective rank."""
    axes.plot(np.arange(1, len(values) + 1), values / values.sum(), color=AFTER, lw=2.4)
    axes.axvline(rank, color=BEFORE, lw=1.2, ls=(0, (4, 3)))
    axes.set(xscale="log", yscale="log", xlabel="rank of the eigenvalue", ylabel="share of the second moment")
    axes.text(
        rank,
        0.97,
        f" effective rank {rank:.4g}",
        transform=axes.get_xaxis_transform(),
        va="top",
        color=BEFORE,
    )


@_styled
def angle_histogram(axes: Any, edges: np.ndarray, counts: np.ndarray, mean: float, geometry: str) -> None:
    """Angles of pairs; a second one into the same axes lies over the first."""
    colour, name = (BEFORE, "Euclidean") if geometry == "euclidean" else (AFTER, "atomic inner product")
    share = counts / max(counts.sum(), 1) / np.diff(edges)
    axes.stairs(share, edges, fill=True, color=colour, alpha=0.55, label=f"{name}: mean {mean:.1f}°")
    axes.axvline(90, color=INK, lw=1, ls=(0, (4, 3)), zorder=0)
    axes.xaxis.set_major_formatter("{x:.0f}°")
    seen = edges[:-1][share > 1e-5]
    low, high = axes.get_xlim() if len(axes.patches) > 1 else (90.0, 90.0)
    axes.set_xlim(min(low, seen.min(initial=90) - 5), max(high, seen.max(initial=90) + 5))
    axes.set(xlabel="angle between two activations", ylabel="share of the pairs, per degree")
    axes.legend(loc="best")


@_styled
def cosines(axes: Any, edges: np.ndarray, counts: np.ndarray, largest: float, welch: float) -> None:
    """|cosine| over pairs of atoms, with the largest and the least that the largest can be."""
    axes.stairs(counts, edges, fill=True, color=AFTER, alpha=0.8)
    axes.set(yscale="log", xlabel="|cosine| of two atoms", ylabel="pairs", xlim=(0, 1))
    for x, name, colour in ((largest, "largest", BEFORE), (welch, "Welch bound", INK)):
        axes.axvline(x, color=colour, lw=1.2, ls=(0, (4, 3)), label=f"{name}: {x:.3f}")
    axes.legend(loc="best")


@_styled
def crossing(axes: Any, q: np.ndarray, mu: np.ndarray, bound: np.ndarray, q_star: float) -> None:
    """Quantiles of |cosine|, rising, and what quantiles of L0 allow, falling: q* is where they cross."""
    axes.plot(q, mu, color=AFTER, lw=2.4, label="|cosine|, quantile q over pairs of atoms")
    axes.plot(q, np.minimum(bound, 1), color=BEFORE, lw=2.4, label="1/(2K - 1), K the quantile q of L0")
    axes.axvline(q_star, color=INK, lw=1.2, ls=(0, (4, 3)), label=f"q* = {q_star:.3f}")
    axes.set(xlabel="quantile q", xlim=(0, 1), yscale="log")
    axes.legend(loc="best")


@_styled
def recovered(
    axes: Any, names: Sequence[str], figures: Mapping[str, Sequence[tuple[float, float, float]]]
) -> None:
    """Shares of 1 with their intervals (estimate, low, high), a row for each name and a colour for each figure."""
    place = np.arange(len(names))
    for (label, values), colour, shift in zip(figures.items(), (AFTER, BEFORE, SOFT), (-0.2, 0.0, 0.2)):
        middle, low, high = np.asarray(values, float).T
        axes.hlines(place + shift, low, high, color=colour, lw=2)
        axes.plot(middle, place + shift, ls="none", marker="o", ms=6, color=colour, label=label)
    axes.axvline(1, color=INK, lw=1, ls=(0, (4, 3)), zorder=0)
    axes.set_yticks(place, names)
    axes.set(ylim=(len(names) - 0.5, -0.5), xlabel="share of the model's own (1: as without it)")
    axes.grid(False, axis="y")
    axes.legend(loc="upper right", bbox_to_anchor=(1, -0.18), ncols=len(figures), fontsize=8.5)


@_styled
def finish(axes: Any, *, xlabel: str = "", ylabel: str = "", legend: bool = False) -> None:
    """Labels of the axes, and a legend where marks have names."""
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if legend:
        axes.legend(loc="best", fontsize=8.5)


def _label_ends(axes: Any, ends: Sequence[tuple[float, float, str, str]], line: float = 0.055) -> None:
    """Name curves at their right ends, in their colours, moved apart where they would overlap."""
    bottom = -np.inf
    for x, y, label, colour in sorted(ends, key=lambda end: end[1]):
        height = line * (1 + label.count("\n"))
        place = max(y, bottom + height / 2)
        bottom = place + height / 2
        axes.annotate(
            label,
            (x, place),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontweight="bold",
            annotation_clip=False,
        )


def _cycle(n: int) -> list[str]:
    return [LAYERS[i % len(LAYERS)] for i in range(n)] if n > 1 else [AFTER]
