"""From a language model to its atoms: what ``python -m atoms demo`` runs, as functions.

`prepare` captures activations and splits them; `study` does one layer: the metric, a sparse
autoencoder, and the controls beside it; `table`, `sentences` and `picture` say what was found.
`run` is all of it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import _plot as plot
from . import activations, recovery, theory
from ._files import replacing
from ._frames import without_frames
from ._report.scoring import CONVENTION, Score, peak_memory, percent, plain, pursued, sample, score, span
from .activations import Activations
from .controls import MemorizingDictionary, RandomDictionary
from .metric import AngleHistogram, AtomicInnerProduct
from .sae import SparseAutoencoder

__all__ = [
    "LayerReport",
    "Score",
    "Settings",
    "curves",
    "picture",
    "points",
    "prepare",
    "run",
    "sentences",
    "study",
    "table",
]

_CURVE_L0 = (1, 2, 4, 8, 16, 32, 64)
_CURVE_ROWS = 2000  # held-out tokens that each point of the curves is computed from
_CONTROL_ROWS = 4000  # tokens of each part that a control is scored on


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the demo does; the command line's options, with the same defaults.

    ``d_sae`` None means four times the width of the model. ``samples`` counts a token as often as it is seen.
    """

    model: str = "smollm2"
    text: str | None = None
    layers: Sequence[int] = (8, 15, 22)
    tokens: int = 50_000
    context_length: int = 512
    held_out: float = 0.2
    keep_massive: bool = False
    d_sae: int | None = None
    l0: int = 16
    samples: int = 600_000
    batch_size: int = 1024
    seed: int = 0
    out: str = "demo-out"


@dataclasses.dataclass
class LayerReport:
    """One layer: angles before and after, the dictionaries, the training curve, the cost.

    ``curves`` maps "atoms", "random" and "training tokens" to explained variance of held-out
    tokens by matching pursuit, in the order of ``curve_l0``.
    """

    layer: int
    n_train: int
    n_held_out: int
    n_massive: int
    euclidean: AngleHistogram
    atomic: AngleHistogram
    scores: list[Score]
    history: dict[str, list[float]]
    curve_l0: list[int]
    curves: dict[str, list[float]]
    condition_number: float
    seconds: float
    seconds_training: float
    peak_memory: float


# ------------------------------------------------------------------ the parts


def prepare(settings: Settings, *, verbose: bool = True) -> tuple[Activations, np.ndarray]:
    """Load the model, capture its activations, and choose the held-out rows.

    Returns
    -------
    activations : Activations
        The first token of each context dropped, massive ones left out unless kept.
    held_out : ndarray of bool
        Whole contiguous chunks of text.
    """
    if settings.text is None:
        text = activations.language_reference()
    else:
        text = activations.read_text(settings.text)
    model, tokenizer = activations.load_model(settings.model)
    contexts = activations.tokenize(
        text, tokenizer, context_length=settings.context_length, max_tokens=settings.tokens
    )
    rows = activations.capture(
        model,
        contexts,
        settings.layers,
        massive="keep" if settings.keep_massive else "drop",
        verbose=verbose,
    )
    return rows, rows.held_out(settings.held_out)


def study(
    layer: int,
    train: np.ndarray,
    held_out: np.ndarray,
    *,
    d_sae: int | None = None,
    l0: int = 16,
    samples: int = 600_000,
    batch_size: int = 1024,
    seed: int = 0,
    n_massive: int = 0,
    verbose: bool = True,
    model_file: str | os.PathLike[str] | None = None,
) -> LayerReport:
    """Metric, atoms and controls of one layer.

    Parameters
    ----------
    layer : int
        How the report calls it.
    train, held_out : array (n, d_in)
        Activations. Everything is fitted on `train` only.
    d_sae, l0, samples, batch_size, seed
        As in `Settings`.
    n_massive : int
        Massive tokens met at this layer, for the report.
    verbose : bool
        Show training progress.
    model_file : path, optional
        Where to save the autoencoder.

    Returns
    -------
    LayerReport

    Notes
    -----
    The controls: random directions, as many as atoms, coded by orthogonal matching pursuit at the
    atoms' mean L0; and a dictionary of all training activations, each token coded by the one that
    reproduces it best (L0 = 1). They are scored on a sample of 4,000 tokens of each part, and the
    coherence of the memorizing dictionary is that of as many of its atoms as there are latents.
    """
    started = time.perf_counter()
    d_in = train.shape[1]
    if len(train) < 2 * d_in:
        raise ValueError(
            f"{len(train)} training tokens are too few for {d_in} dimensions (at least {2 * d_in}): "
            "capture more tokens (--tokens, or a longer --text)"
        )
    n_atoms = d_sae or 4 * d_in
    aip = AtomicInnerProduct().fit(train)
    euclidean = aip.angles(held_out, geometry="euclidean")
    atomic = aip.angles(held_out)

    sae = SparseAutoencoder(
        n_atoms,
        metric=aip,
        target_l0=l0,
        batch_size=batch_size,
        max_steps=max(1, samples // batch_size),
        random_state=seed,
        verbose=verbose,
    )
    training = time.perf_counter()
    sae.fit(train, X_val=held_out)
    training = time.perf_counter() - training
    if model_file is not None:
        sae.save(model_file)

    parts = {"train": train, "held_out": held_out}
    atoms = _scored("atoms", sae.W_dec, aip, parts, _through(sae, parts))
    controls, curve_l0, curves = _controls(sae, atoms, aip, parts, seed)
    return LayerReport(
        layer=layer,
        n_train=len(train),
        n_held_out=len(held_out),
        n_massive=n_massive,
        euclidean=euclidean,
        atomic=atomic,
        scores=[atoms, *controls],
        history={name: list(values) for name, values in sae.history_.items()},
        curve_l0=curve_l0,
        curves=curves,
        condition_number=aip.condition_number_,
        seconds=time.perf_counter() - started,
        seconds_training=training,
        peak_memory=peak_memory(),
    )


_Coded = dict[str, tuple[Any, Any]]  # part -> codes, and what they rebuild


def _through(dictionary: Any, parts: dict[str, np.ndarray]) -> _Coded:
    """The parts coded by a dictionary's own encoder."""
    codes = {part: without_frames(dictionary)(X) for part, X in parts.items()}
    return {part: (c, dictionary.inverse_transform(c)) for part, c in codes.items()}


def _scored(
    name: str, D: np.ndarray, aip: AtomicInnerProduct, parts: dict[str, np.ndarray], coded: _Coded
) -> Score:
    return score(name, D, aip, {part: (parts[part], *found) for part, found in coded.items()})[0]


def _controls(
    sae: SparseAutoencoder, atoms: Score, aip: AtomicInnerProduct, parts: dict[str, np.ndarray], seed: int
) -> tuple[list[Score], list[int], dict[str, list[float]]]:
    """Scores of random directions and of the training tokens themselves; the curves of both and of the atoms."""
    train = parts["train"]
    rng = np.random.default_rng(seed)
    parts = {part: X[sample(len(X), _CONTROL_ROWS, rng)] for part, X in parts.items()}
    random = RandomDictionary(atoms.d_sae, metric=aip, random_state=seed).fit(train)
    k = max(1, round(atoms.l0_mean))
    directions = recovery.Dictionary(random.W_dec, metric=aip)
    coded = {part: pursued(X, directions, random.W_dec, k, random.b_dec) for part, X in parts.items()}
    memory = MemorizingDictionary(metric=aip).fit(train)
    some = memory.W_dec[sample(len(memory.W_dec), atoms.d_sae, rng)]
    scores = [
        _scored("random", random.W_dec, aip, parts, coded),
        _scored("memorizing", some, aip, parts, _through(memory, parts)),
    ]

    rows = parts["held_out"][:_CURVE_ROWS]
    curve_l0 = [k for k in _CURVE_L0 if k <= min(train.shape[1], atoms.d_sae)]
    curves = {}
    for name, D, b in (
        ("atoms", sae.W_dec, sae.b_dec),
        ("random", random.W_dec, random.b_dec),
        ("training tokens", some, memory.b_dec),
    ):
        ready = recovery.Dictionary(D, metric=aip)
        rebuilt = (pursued(rows, ready, D, k, b)[1] for k in curve_l0)
        curves[name] = [theory.explained_variance(rows, x, CONVENTION, metric=aip).total for x in rebuilt]
    return scores, curve_l0, curves


# ------------------------------------------------------------------ what was found


def table(reports: Sequence[LayerReport]) -> str:
    """The one table: a row for each dictionary at each layer."""
    head = (
        "layer  Euclidean angle  atomic angle   dictionary    d_sae  EV train  EV held-out  median  "
        "raw train  raw held-out  L0 5/50/95%       q*  random  ceiling  seconds    MB"
    )
    lines = [head, "-" * len(head)]
    for report in reports:
        for i, found in enumerate(report.scores):
            left = " " * 38
            if i == 0:
                left = f"{report.layer:>5}  {_angle(report.euclidean):<15}  {_angle(report.atomic):<14}"
            train, held = found.train, found.held_out
            line = (
                f"{left} {found.name:<11} {found.d_sae:>7}  {percent(train[CONVENTION][0]):>8}"
                f"  {percent(held[CONVENTION][0]):>11}  {percent(held[CONVENTION][1]):>6}"
                f"  {percent(train['centered'][0]):>9}  {percent(held['centered'][0]):>12}"
                f"  {'/'.join(map(str, found.l0)):>11}  {percent(found.q_star):>7}"
                f"  {percent(found.q_star_random):>6}  {percent(found.q_star_ceiling):>7}"
            )
            if i == 0:
                line += f"  {report.seconds:>7.0f}  {report.peak_memory:>4.0f}"
            lines.append(line)
    lines += [
        "",
        "EV: explained variance, centred, in the metric (every direction weighs alike); median: over held-out",
        "tokens; raw: centred, of the activations as they are. Held-out text decides one factor for all thresholds,",
        "at which its L0 is the target, and nothing else; angles are",
        "between held-out tokens. random: directions at random, coded by matching pursuit at the atoms' L0;",
        "memorizing: every training token is an atom, L0 = 1. q*: the paper's stability; beside it q* of random",
        "directions at the same L0, and the most that any dictionary of this shape, L0 and coherence can reach.",
    ]
    return "\n".join(lines)


def _angle(found: AngleHistogram) -> str:
    return f"{found.mean:.1f}° ± {found.std:.1f}°"


def _wins(ours: Sequence[float], theirs: Sequence[float]) -> str:
    n = sum(a > b for a, b in zip(ours, theirs))
    if n == len(ours):
        return "every layer" if n > 1 else "this layer"
    return f"{n} of {len(ours)} layers" if n else "no layer"


def _train(scores: Sequence[Score]) -> list[float]:
    return [s.train[CONVENTION][0] for s in scores]


def _held(scores: Sequence[Score]) -> list[float]:
    return [s.held_out[CONVENTION][0] for s in scores]


def sentences(reports: Sequence[LayerReport]) -> list[str]:
    """Three sentences that say what was found, computed from the figures."""
    atoms, random, memory = ([r.scores[i] for r in reports] for i in range(3))
    return [_on_angles(reports), _on_variance(atoms, random, memory), _on_stability(atoms, random, memory)]


def _on_angles(reports: Sequence[LayerReport]) -> str:
    where = "layer" + ("s " if len(reports) > 1 else " ") + ", ".join(str(r.layer) for r in reports)
    before, after = [r.euclidean.mean for r in reports], [r.atomic.mean for r in reports]
    shift = max(abs(90 - angle) for angle in before), max(abs(90 - angle) for angle in after)
    said = (
        f"At {where} the mean angle between two activations is {span(before, '°', 1)} "
        f"in Euclidean geometry and {span(after, '°', 1)} under the atomic inner product: "
    )
    return said + (
        f"a shift of up to {shift[0]:.0f}° from the right angle, of which {shift[1]:.1f}° is left."
        if shift[1] < shift[0]
        else "here it corrects nothing."
    )


def _on_variance(atoms: Sequence[Score], random: Sequence[Score], memory: Sequence[Score]) -> str:
    gap = max(a - b for a, b in zip(_train(atoms), _held(atoms)))
    return (
        f"With {span([a.l0_mean for a in atoms], '', 1)} of {atoms[0].d_sae:,} atoms per token, the autoencoder "
        f"explains {span(_held(atoms))} of held-out text, {100 * gap:.1f} points or less below its training text; as "
        f"many random directions explain {span(_held(random))}, and a dictionary of all training tokens, coding with one, "
        f"{span(_held(memory))} ({span(_train(memory))} of the training text): the atoms beat random directions at "
        f"{_wins(_held(atoms), _held(random))} and the memorized text at {_wins(_held(atoms), _held(memory))}."
    )


def _on_stability(atoms: Sequence[Score], random: Sequence[Score], memory: Sequence[Score]) -> str:
    over = max(a.q_star - a.q_star_random for a in atoms)
    said = (
        f"The stability q* of the atoms is {span([a.q_star for a in atoms])}, that of random directions at the "
        f"same L0 {span([a.q_star_random for a in atoms])}, that of the memorizing dictionary "
        f"{span([m.q_star for m in memory])}: "
    )
    return said + (
        f"q* tells how sparse the codes are, and no more than {max(0.0, 100 * over):.1f} points of it about what was learnt."
        if over < 0.02
        else f"the atoms are up to {100 * over:.1f} points more stable than their sparsity alone makes them."
    )


def picture(reports: Sequence[LayerReport], path: str | os.PathLike[str], title: str = "") -> None:
    """Three panels for a slide: angles, training, explained variance against L0.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    """
    figure, (left, middle, right) = plot.new_figure(1, 3, size=(16, 5.4))
    figure.suptitle(title, x=0.008, ha="left", fontsize=18, fontweight="bold")
    plot.angles(
        left,
        reports[0].atomic.bin_edges,
        [(f"layer {r.layer}", r.euclidean.counts, r.atomic.counts) for r in reports],
    )
    plot.titles(left, "Their geometry", "angles between held-out activations, before and after")
    plot.training(middle, {f"layer {r.layer}": r.history for r in reports})
    # fit ends with thresholds calibrated on held-out text, which take its curve down where L0 was above target
    ends = {f"{r.history['l0_val'][-1]:.0f}" for r in reports}
    about = f"thick: held-out text, at L0 {' and '.join(sorted(ends, key=float))} at the end; thin: batches"
    plot.titles(middle, "Learning atoms", about)
    shown = reports[len(reports) // 2]
    plot.sparsity(right, curves(shown), points=points(shown))
    plot.titles(
        right,
        f"What they explain, layer {shown.layer}",
        f"held-out text, {shown.scores[0].d_sae:,} atoms each",
    )
    plot.save(figure, path)


def curves(report: LayerReport) -> list[dict[str, Any]]:
    """The curves of a report for `plot.sparsity`."""
    shown = {
        "atoms": ("atoms", plot.AFTER),
        "training tokens": ("training\ntokens", plot.TOKENS),
        "random": ("random\ndirections", plot.RANDOM),
    }
    return [
        {"l0": report.curve_l0, "explained_variance": report.curves[name], "label": label, "color": colour}
        for name, (label, colour) in shown.items()
    ]


def points(report: LayerReport) -> list[dict[str, Any]]:
    """The encoder's own mark for `plot.sparsity`."""
    atoms = report.scores[0]
    return [
        {
            "l0": atoms.l0_mean,
            "explained_variance": atoms.held_out[CONVENTION][0],
            "label": "atoms, found by the\nencoder in one pass",
            "color": plot.BEFORE,
        }
    ]


def _check(settings: Settings) -> Path:
    """Everything that can be known to be wrong before the model is loaded."""
    plot.require()
    out = Path(settings.out)
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"out: {out} is a file; name a folder")
    out.mkdir(parents=True, exist_ok=True)
    if not os.access(out, os.W_OK):
        raise PermissionError(f"out: {out} cannot be written; name another folder")
    if settings.text is not None:
        activations.read_text(settings.text)
    return out


def run(settings: Settings, *, verbose: bool = True) -> list[LayerReport]:
    """The whole demo: prints the table and three sentences, writes everything into ``out``.

    The folder gets ``atoms.png``, ``table.txt``, ``figures.json`` (all numbers) and one
    ``layerNNN.safetensors`` for each autoencoder; files of an earlier run are replaced.

    Raises
    ------
    ValueError, OSError, ImportError
        As its parts; the message says what to do.
    """
    started = time.perf_counter()
    out = _check(settings)
    rows, held_out = prepare(settings, verbose=verbose)
    captured = time.perf_counter() - started
    print(rows.summary())
    print(
        f"{np.count_nonzero(~held_out):,} tokens to train on, {np.count_nonzero(held_out):,} held out "
        f"in whole chunks of contiguous text; {captured:.0f} s so far"
    )
    reports = []
    for layer in rows.layers:
        if verbose:
            print(f"layer {layer}", file=sys.stderr)
        reports.append(
            study(
                layer,
                rows[layer][~held_out],
                rows[layer][held_out],
                d_sae=settings.d_sae,
                l0=settings.l0,
                samples=settings.samples,
                batch_size=settings.batch_size,
                seed=settings.seed,
                n_massive=rows.massive_counts[layer, "residual"],
                verbose=verbose,
                model_file=out / f"layer{layer:03d}.safetensors",
            )
        )
    text = table(reports)
    picture(reports, out / "atoms.png", title=f"The atoms of {_model_name(settings.model)}")
    seconds = time.perf_counter() - started
    found = sentences(reports)
    _write(out / "table.txt", "\n".join([text, "", *found, ""]))
    _write(out / "figures.json", _as_json(settings, reports, found, rows.summary(), seconds))
    print(f"\n{text}\n")
    print(
        f"{seconds:.0f} s in all, {captured:.0f} of them to load the model and capture; peak memory {peak_memory():.0f} MB"
    )
    print(f"picture: {out / 'atoms.png'}\n")
    print("\n".join(found))
    return reports


def _model_name(model: str) -> str:
    return "SmolLM2-135M" if model == "smollm2" else Path(model).name


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _as_json(
    settings: Settings, reports: Sequence[LayerReport], found: list[str], captured: str, seconds: float
) -> str:
    everything = {
        "settings": settings,
        "captured": captured,
        "seconds": seconds,
        "peak_memory_mb": peak_memory(),
        "layers": reports,
        "found": found,
    }
    return json.dumps(plain(everything), indent=1) + "\n"
