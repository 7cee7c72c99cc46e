"""What a report says: every sentence about the outcome is computed from the figures.

A function for each section gives its paragraphs, one for each thing that there is to say; `claims` sets
the paper's claims beside what was found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .config import Config
from .kinds import FEATURES, KINDS, VARIANTS
from .monosemanticity import Judged
from .scoring import percent, span
from .tables import Row

__all__ = ["about", "capacity", "claims", "cost", "frontier", "main", "monosemanticity", "shift"]

Rows = Mapping[str, Row]  # by dictionary


def _points(difference: float) -> str:
    return f"{100 * abs(difference):.1f} points {'above' if difference > 0 else 'below'}"


def _joined(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _wins(rows: Sequence[Row], name: str, other: str, field: str) -> tuple[int, int]:
    """At how many layers `name` is above `other`."""
    layers = {r["layer"] for r in rows}
    at = {(r["layer"], r["dictionary"]): r[field] for r in rows}
    return sum(at[layer, name] > at[layer, other] for layer in layers), len(layers)


def _range(values: np.ndarray) -> str:
    return span([values.min(), values.max()])


def _label(name: str) -> str:
    return KINDS[name].label


def _listed(names: Sequence[str], mean: Rows, field: str) -> str:
    """ "memorizing 12.3%, random directions 4.5%"."""
    return ", ".join(f"{_label(n)} {percent(mean[n][field])}" for n in names)


def _by_name(rows: Sequence[Row]) -> dict[str, Row]:
    return {r["dictionary"]: r for r in rows}


def _features(mean: Rows) -> list[str]:
    return [n for n in FEATURES if n in mean]


# ------------------------------------------------------------------ the whole


def about(config: Config, captured: Mapping[str, Any]) -> str:
    """What was looked at: layers, texts, rows, settings."""
    rows = captured["rows"]
    layer = str(config.layers[0])
    if config.activations:
        source = "activations on disk"
    elif config.texts is None:
        source = "Python's language reference"
    else:
        source = (
            f"metric from {config.metric_text}, dictionaries from {config.train_text or config.metric_text}"
        )
        source += f", other text {config.held_out_text}" if config.held_out_text else ""
    counts = ", ".join(
        f"{name} {rows[name][layer]:,}" for name in ("metric", "train", "held_out", "text") if name in rows
    )
    repeated = {
        n: c["repeated"]
        for n, c in captured["counts"].items()
        if c.get("repeated") and not n.startswith("random/")
    }
    dropped = ", ".join(
        f"{n:,} of {captured['counts'][part]['tokens']:,} tokens ({part})" for part, n in repeated.items()
    )
    said = (
        f"Layers {', '.join(map(str, config.layers))} of {config.name}, counted from 0; {source}. Rows at layer {layer}: {counts}. "
        f"Dictionaries of {config.width:g} d_in atoms, target L0 {config.l0:g}, {config.samples:,} training samples, seeds "
        f"{', '.join(map(str, config.seeds))}."
    )
    if config.positions == "last":
        said += " A row is the last token of a prompt."
    if config.train_rows is not None:
        said += f" Dictionaries are trained on {config.train_rows:,} rows, drawn at random."
    said += " Autoencoders fire more on new text than on what they were trained on"
    said += (
        "; one shift of all thresholds holds the L0 of those that have thresholds at the target, set on the first quarter of the "
        "held-out rows, where nothing is judged."
        if config.hold_l0
        else "; their thresholds are left as training ended."
    )
    if dropped:
        said += f" Left out because the text up to them had come before: {dropped}."
    return said


def cost(run: Mapping[str, Any]) -> str:
    """What the run cost, from ``run.json``."""
    hardware, versions = run["hardware"], run["versions"]
    return (
        f"{run['jobs']} jobs took {run['cpu_seconds_jobs'] / 60:.1f} minutes of CPU time ({run['seconds_jobs'] / 60:.1f} by the clock, one "
        f"after the other, with what else the machine did), capture {run['seconds_capture'] / 60:.1f} minutes by the clock; {run['workers']} workers of {run['threads_per_job']} thread on {hardware['cpu']} "
        f"({hardware['cpus']} CPUs). Largest job: {run['peak_memory_mb']:,.0f} MB. "
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}."
    )


# ------------------------------------------------------------------ representation shift


def shift(rows: Sequence[Row]) -> list[str]:
    """Angles before and after, of text that the metric saw and of others, and massive tokens."""
    said = [_angles(rows)]
    known = [r for r in rows if r["train_metric_mean"] is not None]
    if known:
        said.append(
            f"Training activations under the same metric stand at {span([r['train_metric_mean'] for r in known], '°', 1)} "
            f"(Euclidean: {span([r['train_euclidean_mean'] for r in known], '°', 1)}): where they are of another text than the "
            "metric's, this says how far the metric carries over."
        )
    return [*said, _massive_tokens(rows)]


def _angles(rows: Sequence[Row]) -> str:
    before, after = [r["angles_euclidean_mean"] for r in rows], [r["angles_metric_mean"] for r in rows]
    return (
        f"Over {len(rows)} layers, the mean angle between two held-out activations is {span(before, '°', 1)} in Euclidean "
        f"geometry and {span(after, '°', 1)} under the atomic inner product. The paper's claim, angles centred at the right "
        f"angle after the change and far from it before, "
        + ("holds" if max(abs(90 - a) for a in after) < 2 and max(before) < 80 else "holds only in part")
        + f": the largest distance from 90° falls from {max(abs(90 - b) for b in before):.1f}° to "
        f"{max(abs(90 - a) for a in after):.1f}°."
    )


def _massive_tokens(rows: Sequence[Row]) -> str:
    massive = [r for r in rows if r["massive"]]
    if not massive:
        return "No massive tokens (norm above 10 times the median) were met in the metric's text."
    worst = max(massive, key=lambda r: r["massive_share"])
    return (
        f"Massive tokens (norm above 10 times the median) are met at {len(massive)} of {len(rows)} layers; at layer "
        f"{worst['layer']}, {worst['massive']} of {worst['massive'] + worst['n_metric']:,} tokens hold "
        f"{percent(worst['massive_share'])} of the sum of squares, and with them one direction would hold "
        f"{percent(worst['top_share_with_massive'])} of the second moment instead of {percent(worst['top_share'])}. They "
        "are left out where anything is fitted, and where R² is taken unless it says otherwise."
    )


# ------------------------------------------------------------------ atoms, features, neurons and controls


def main(rows: Sequence[Row], average: Sequence[Row]) -> list[str]:
    """What main rows say of the atoms, and their mean over layers beside the others'."""
    mean = _by_name(average)
    if "atoms" not in mean:
        return []
    paragraphs = (
        _explained(mean),
        _with_massive(rows, mean),
        _intervals(rows),
        _against_features(rows, mean),
        _against_euclidean(mean),
        _without_encoder(rows, mean),
        _against_controls(mean),
        _on_other_text(mean),
        _stable(mean),
        _certified(mean),
        _across_seeds(mean),
        _without_l0(mean),
        _memorized(mean),
    )
    return [said for said in paragraphs if said]


def _explained(mean: Rows) -> str:
    atoms = mean["atoms"]
    return (
        f"Atoms explain {percent(atoms['R2_train'])} of training activations and {percent(atoms['R2_held_out'])} of held-out "
        f"ones on average over layers (centred, in the metric; {percent(atoms['raw_held_out'])} raw), with "
        f"{atoms['l0_mean_held_out']:.1f} of {atoms['d_sae']:,.0f} atoms a token. The paper reports 99.9%, for the activations "
        "it trained on."
    )


def _with_massive(rows: Sequence[Row], mean: Rows) -> str:
    massive = {r["layer"]: r["massive_held_out"] for r in rows if r["massive_held_out"]}
    if not massive:
        return ""
    names = [n for n in ("atoms", *FEATURES, "memorizing", "random") if n in mean]
    return (
        f"{max(massive.values()):.0f} judged held-out tokens at most are massive, at layers {_joined([str(k) for k in massive])}. "
        f"With them the same figure reads: {_listed(names, mean, 'R2_held_out_with_massive')}. It then says what a dictionary "
        "does to these few."
    )


def _intervals(rows: Sequence[Row]) -> str:
    atoms = [r for r in rows if r["dictionary"] == "atoms"]
    widths = [(r["interval_held_out_high"] - r["interval_held_out_low"]) / 2 for r in atoms]
    q_widths = [(r["interval_q_star_high"] - r["interval_q_star_low"]) / 2 for r in atoms]
    return (
        f"At a single layer, 95% intervals of the atoms' held-out R² are ± {span(widths, ' points')}, of their q* ± "
        f"{span(q_widths, ' points')} (bootstrap over blocks of 64 tokens, the dictionary held fixed)."
    )


def _against_features(rows: Sequence[Row], mean: Rows) -> str:
    features = _features(mean)
    if not features:
        return ""
    best = max(features, key=lambda n: mean[n]["R2_held_out"])
    raw = max(features, key=lambda n: mean[n]["raw_held_out"])
    wins, n = _wins(rows, "atoms", best, "R2_held_out")
    raw_wins, _ = _wins(rows, "atoms", raw, "raw_held_out")
    return (
        f"Features, trained on the same activations for the same number of steps to the same L0, explain "
        f"{percent(mean[best]['R2_held_out'])} ({_label(best)}, the best in the metric) and, of raw held-out variance, "
        f"{percent(mean[raw]['raw_held_out'])} ({_label(raw)}) against the atoms' {percent(mean['atoms']['raw_held_out'])}: atoms "
        f"explain more at {wins} of {n} layers in the metric that they were trained in, and at {raw_wins} of {n} in the "
        "Euclidean one that the features were trained in."
    )


def _against_euclidean(mean: Rows) -> str:
    if "euclidean" not in mean:
        return ""
    e = mean["euclidean"]
    return (
        f"The same autoencoder in Euclidean geometry explains {percent(e['R2_held_out'])} in the metric and "
        f"{percent(e['raw_held_out'])} raw, with q* {percent(e['q_star'])} at L0 {e['l0_mean_held_out']:.1f}."
    )


def _without_encoder(rows: Sequence[Row], mean: Rows) -> str:
    if "learned" not in mean:
        return ""
    atoms, learned = mean["atoms"], mean["learned"]
    wins, n = _wins(rows, "learned", "atoms", "R2_held_out")
    by_pursuit = atoms["pursuit"]
    coded = "" if by_pursuit is None else f" ({percent(by_pursuit)} where matching pursuit codes them)"
    return (
        f"Atoms learned without an encoder, over exact codes of at most {learned['l0_mean_held_out']:.1f} atoms, explain "
        f"{percent(learned['R2_held_out'])} of held-out activations, the autoencoder's {percent(atoms['R2_held_out'])}{coded}; "
        f"more at {wins} of {n} layers. Their q* is {percent(learned['q_star'])} beside {percent(atoms['q_star'])}, random "
        f"directions' {percent(learned['q_star_random'])} at that L0."
    )


def _against_controls(mean: Rows) -> str:
    beaten: list[str] = []
    lost: list[str] = []
    for name in ("random", "memorizing", "kmeans", "pca", "neurons", "shuffled", "random-model"):
        if name in mean:
            won = mean["atoms"]["R2_held_out"] > mean[name]["R2_held_out"]
            (beaten if won else lost).append(f"{_label(name)} ({percent(mean[name]['R2_held_out'])})")
    if not beaten:
        return ""
    return f"Of the controls, held-out atoms explain more than {_joined(beaten)}" + (
        f", and less than {_joined(lost)}." if lost else "."
    )


def _on_other_text(mean: Rows) -> str:
    atoms = mean["atoms"]
    if atoms["R2_text"] is None:
        return ""
    others = [n for n in ("random", "pca", "memorizing", "kmeans", *FEATURES) if n in mean]
    above = "random" in mean and atoms["R2_text"] > mean["random"]["R2_text"] + 0.01
    return (
        f"On the other text the atoms fall to {percent(atoms['R2_text'])}, at {atoms['l0_mean_text']:.1f} a token"
        + (f" ({_listed(others, mean, 'R2_text')})" if others else "")
        + ". "
        + (
            "What was learnt carries over in part."
            if above or "random" not in mean
            else "That is no more than random directions explain (by matching pursuit): what was learnt belongs to the text it was learnt on."
        )
    )


def _stable(mean: Rows) -> str:
    atoms = mean["atoms"]
    over = atoms["q_star"] - atoms["q_star_random"]
    return (
        f"q* of the atoms is {percent(atoms['q_star'])} (the paper: 99.7 to 99.9%), {_points(over)} that of random directions "
        f"of the same shape at the same L0 ({percent(atoms['q_star_random'])}); no dictionary with their largest cosine and L0 "
        f"could have more than {percent(atoms['q_star_ceiling'])}. "
        + (
            "q* says how sparse the codes are and next to nothing about what was learnt."
            if abs(over) < 0.05
            else "What was learnt moves q* by that much; the rest is sparsity."
        )
    )


def _certified(mean: Rows) -> str:
    atoms = mean["atoms"]
    if atoms["certified"] is None:
        return ""
    return (
        f"{percent(atoms['certified'])} of held-out tokens have a code that coherence certifies as unique "
        f"(mu(S) < 1/(2|S| - 1)), {percent(atoms['recoverable'])} one that exact recovery is guaranteed for, and for "
        f"{percent(atoms['threshold_exact'])} a single tied pass finds the support in fact."
    )


def _across_seeds(mean: Rows) -> str:
    atoms = mean["atoms"]
    if atoms["mcc"] is None:
        return ""
    known = {n: r for n, r in mean.items() if r["mcc"] is not None and n != "atoms"}
    compared = ", ".join(f"{_label(n)} {r['mcc']:.2f}" for n, r in known.items())
    return (
        f"Across seeds, matched atoms have a mean |cosine| of {atoms['mcc']:.2f} in the metric; {percent(atoms['above_0.9'])} "
        f"of them agree to 0.9 or better" + (f" ({compared})." if compared else ".")
    )


def _without_l0(mean: Rows) -> str:
    if "neurons-all" not in mean or "pca-all" not in mean:
        return ""
    a, b = mean["neurons-all"], mean["pca-all"]
    return (
        f"All neurons reproduce everything (R² {percent(a['R2_held_out'])}) at q* {percent(a['q_star'])}, as the paper says "
        f"(100%, 0.5%); but all principal directions do so at q* {percent(b['q_star'])}: R² and q* together do not tell "
        "atoms from any orthonormal basis without the L0."
    )


def _memorized(mean: Rows) -> str:
    if "memorizing" not in mean:
        return ""
    m = mean["memorizing"]
    return (
        f"The dictionary of all {m['d_sae']:,.0f} training activations scores {percent(m['R2_train'])} on these with q* "
        f"{percent(m['q_star'])}, more than the paper asks of atoms on both counts, and {percent(m['R2_held_out'])} on "
        "held-out ones."
    )


# ------------------------------------------------------------------ capacity


def capacity(
    arrays: Mapping[str, np.ndarray], config: Config, layer: int, captured: Mapping[str, Any]
) -> list[str]:
    """Training and held-out R² where there are fewer atoms than activations, and where not."""
    return [*_jump(arrays), *_left_out(arrays, config, layer, captured)]


def _jump(arrays: Mapping[str, np.ndarray]) -> list[str]:
    m, n = np.meshgrid(arrays["data"], arrays["widths"], indexing="ij")
    train, held = arrays["atoms_train"], arrays["atoms_held_out"]
    full, short = n >= m, n < m
    if not full.any() or not short.any():
        return []
    jump = train[full].min() > train[short].max()
    said = [
        f"With fewer atoms than activations, training R² is {_range(train[short])}; from |D| = |M| on it is "
        f"{_range(train[full])}. "
        + ("The paper's jump is there." if jump else "There is no clean jump as in the paper.")
    ]
    said.append(
        f"Held-out R² in the same cells is {_range(held[short])} below the jump and "
        f"{_range(held[full])} from it on"
        + (
            ": what jumps is storage, not learning. "
            if held[full].mean() < held[short].mean() + 0.1
            else ": some of the jump carries over. "
        )
        + f"The memorizing dictionary, which learns nothing, makes the same jump (training "
        f"{_range(arrays['memorizing_train'][short])} below, "
        f"{_range(arrays['memorizing_train'][full])} from it on; held-out "
        f"{_range(arrays['memorizing_held_out'])})."
    )
    return said


def _left_out(
    arrays: Mapping[str, np.ndarray], config: Config, layer: int, captured: Mapping[str, Any]
) -> list[str]:
    wanted = [m * config.grid.unit * captured["d_in"] for m in config.grid.data]
    missing = [f"{m:,}" for m in wanted if m not in arrays["data"]]
    rows = captured["rows"]["train"][str(layer)]
    return (
        [f"Left out for want of training rows (there are {rows:,}): |M| = {_joined(missing)}."]
        if missing
        else []
    )


# ------------------------------------------------------------------ the frontier


def frontier(points: Sequence[Row], config: Config) -> list[str]:
    """How far the atoms reach, what moves them, and how others compare at equal L0."""
    atoms = [p for p in points if p["dictionary"] == "atoms"]
    if not atoms:
        return []
    line = [p for p in atoms if p["varies"] == "L0"]
    said = [_reach(atoms, config)]
    if len(line) > 1:
        said += _moved([p for p in atoms if p["varies"] != "L0"], line, config)
        for name in dict.fromkeys(p["dictionary"] for p in points):
            if name != "atoms":
                mine = [p for p in points if p["dictionary"] == name and p["varies"] == "L0"]
                said += _at_equal_l0(name, mine, line)
    return said


def _reach(atoms: Sequence[Row], config: Config) -> str:
    best = max(atoms, key=lambda p: p["R2_held_out"])
    corner = max(atoms, key=lambda p: min(p["R2_held_out"], p["q_star"]))
    if best["R2_held_out"] >= 0.99 and best["q_star"] >= 0.99:
        return f"The atoms reach {percent(best['R2_held_out'])} of held-out activations at q* {percent(best['q_star'])}."
    return (
        f"Along target L0 {min(config.frontier.l0):g} to {max(config.frontier.l0):g}, the atoms that explain most of held-out "
        f"activations reach {percent(best['R2_held_out'])} at q* {percent(best['q_star'])} (L0 {best['l0']:.1f}); nearest to the "
        f"upper right corner are {percent(corner['R2_held_out'])} at q* {percent(corner['q_star'])} (L0 {corner['l0']:.1f}). No "
        f"setting tried comes near 99.9% on both for activations it has not seen."
    )


def _moved(changed: Sequence[Row], line: Sequence[Row], config: Config) -> list[str]:
    """Points with another setting changed, against the line of atoms along L0 at equal q*."""
    line = sorted(line, key=lambda p: p["q_star"])
    moved = []
    for p in changed:
        at_equal_q = np.interp(p["q_star"], [o["q_star"] for o in line], [o["R2_held_out"] for o in line])
        label = _change(p, config)
        # L0 was more than a factor 2 off in training, and thresholds were moved to compare: say so
        if not 0.5 < p["l0_fitted"] / config.l0 < 2:
            label += f", whose training ended at L0 {p['l0_fitted']:.1f},"
        moved.append((p["R2_held_out"] - at_equal_q, p["l0"], label))
    if not moved:
        return []
    moved.sort(key=lambda item: -item[0])
    return [
        f"What moves the frontier: held-out R² above (+) or below (-) that line at equal q*, one setting changed at target L0 "
        f"{config.l0:g}: "
        + "; ".join(f"{label} {100 * r:+.1f} points (L0 {l0:.1f})" for r, l0, label in moved)
        + "."
    ]


def _change(point: Row, config: Config) -> str:
    if point["varies"] == "width":
        return (
            f"{point['d_sae']:,} atoms instead of {round(point['d_sae'] * config.width / point['value']):,}"
        )
    if point["varies"] == "data":
        return f"{point['n_train']:,} training rows, {point['value']:g} of them all"
    return VARIANTS[point["value"]].words


def _at_equal_l0(name: str, theirs: Sequence[Row], ours: Sequence[Row]) -> list[str]:
    """Atoms above another dictionary, where their L0 overlap; `ours` is interpolated along log L0."""
    ours = sorted(ours, key=lambda p: p["l0"])
    theirs = sorted(theirs, key=lambda p: p["l0"])
    theirs = [p for p in theirs if ours[0]["l0"] * 0.8 <= p["l0"] <= ours[-1]["l0"] * 1.25]
    if len(theirs) < 2:
        return []

    def gap(field: str) -> str:
        places, known = (np.log([p["l0"] for p in points]) for points in (theirs, ours))
        found = np.interp(places, known, [p[field] for p in ours]) - np.array([p[field] for p in theirs])
        return f"{100 * found.min():.1f} to {100 * found.max():.1f}"

    return [
        f"At equal L0 ({theirs[0]['l0']:.0f} to {theirs[-1]['l0']:.0f}), atoms explain {gap('R2_held_out')} points more "
        f"than {_label(name)} in the metric, {gap('raw_held_out')} of raw variance, at a q* higher by {gap('q_star')} points."
    ]


# ------------------------------------------------------------------ monosemanticity


def monosemanticity(judged: Sequence[Judged]) -> list[str]:
    """Mean scores, and the paper's order of atoms, features and neurons."""
    scores = {}
    for one in judged:
        detection, fuzzing = one.detection[np.isfinite(one.detection)], one.fuzzing[np.isfinite(one.fuzzing)]
        if len(detection) > 1 and len(fuzzing) > 1:
            scores[one.dictionary] = detection.mean(), detection.std() / np.sqrt(len(detection))
    if not scores:
        return []
    best_first = sorted(scores, key=lambda n: -scores[n][0])
    listed = ", ".join(f"{_label(n)} {scores[n][0]:.2f} ± {scores[n][1]:.2f}" for n in best_first)
    said = [f"Mean detection score with standard error, best first: {listed}; 0.50 is chance."]
    features = [n for n in FEATURES if n in scores]
    if "atoms" in scores and features and "neurons" in scores:
        best = max(features, key=lambda n: scores[n][0])
        level = "level with (within two standard errors)"
        first = _compared(scores["atoms"], scores[best], level)
        second = _compared(scores[best], scores["neurons"], "level with")
        said.append(
            f"The paper finds atoms above features above neurons. Here atoms are {first} the best features, and these {second} "
            "neurons, by this judge."
        )
    return said


def _compared(a: tuple[float, float], b: tuple[float, float], level: str) -> str:
    """Of means with their standard errors: "above" or "below" by more than two errors, or else `level`."""
    gap, error = a[0] - b[0], np.hypot(a[1], b[1])
    return "above" if gap > 2 * error else "below" if gap < -2 * error else level


# ------------------------------------------------------------------ claims


def claims(
    average: Sequence[Row], shifts: Sequence[Row], grids: Sequence[Mapping[str, np.ndarray]]
) -> list[list[str]]:
    """The paper's claims, what it reports, what is found here, and what the controls say."""
    mean = _by_name(average)
    return [
        *_centred_angles(shifts),
        *_faithful_and_stable(mean),
        *_neither(mean),
        *_neurons(mean),
        *_jumps(grids),
    ]


def _centred_angles(shifts: Sequence[Row]) -> list[list[str]]:
    if not shifts:
        return []
    after, before = (
        span([r[f"angles_{geometry}_mean"] for r in shifts], "°", 1) for geometry in ("metric", "euclidean")
    )
    return [
        [
            "angles under the AIP are centred at 90°",
            "figure",
            f"{after}, Euclidean {before}",
            "held-out text: the metric was not fitted on it",
        ]
    ]


def _faithful_and_stable(mean: Rows) -> list[list[str]]:
    atoms = mean.get("atoms")
    if atoms is None:
        return []
    with_text = atoms["R2_text"] is not None
    controls = []
    if "memorizing" in mean:
        m = mean["memorizing"]
        controls.append(f"memorizing {percent(m['R2_train'])} / {percent(m['R2_held_out'])}")
    if "random" in mean:
        r = mean["random"]
        on_text = f", {percent(r['R2_text'])} on it" if with_text else ""
        controls.append(f"random {percent(r['R2_held_out'])}{on_text}")
    return [
        [
            "atoms are faithful",
            "R² 99.9%",
            f"{percent(atoms['R2_train'])} training, {percent(atoms['R2_held_out'])} held-out"
            + (f", {percent(atoms['R2_text'])} on other text" if with_text else ""),
            ", ".join(controls),
        ],
        [
            "atoms are stable",
            "q* 99.7 to 99.9%",
            percent(atoms["q_star"]),
            f"random directions at this L0 {percent(atoms['q_star_random'])}",
        ],
    ]


def _neither(mean: Rows) -> list[list[str]]:
    features = [mean[n] for n in _features(mean)]
    if not features:
        return []
    held_out, raw, q_star = (
        span([f[field] for f in features]) for field in ("R2_held_out", "raw_held_out", "q_star")
    )
    return [
        [
            "features are neither",
            "R² 48.8%, q* 68.2%",
            f"R² {held_out} held-out (raw {raw}), q* {q_star}",
            "same activations, steps and L0 as the atoms",
        ]
    ]


def _neurons(mean: Rows) -> list[list[str]]:
    if "neurons-all" not in mean:
        return []
    n, pca = mean["neurons-all"], mean.get("pca-all")
    return [
        [
            "neurons are faithful, not stable",
            "R² 100%, q* 0.5%",
            f"R² {percent(n['R2_held_out'])}, q* {percent(n['q_star'])}",
            "" if pca is None else f"PCA {percent(pca['R2_held_out'])}, {percent(pca['q_star'])}",
        ]
    ]


def _jumps(grids: Sequence[Mapping[str, np.ndarray]]) -> list[list[str]]:
    """Of all layers' grids together."""
    if not grids:
        return []
    full = np.concatenate([np.subtract.outer(g["data"], g["widths"]).ravel() <= 0 for g in grids])
    if full.all() or not full.any():
        return []
    train, held = (
        np.concatenate([g[f"atoms_{part}"].ravel() for g in grids]) for part in ("train", "held_out")
    )
    return [
        [
            "R² jumps to 1 at |D| = |M|",
            "0.6 to 0.8, then 1",
            f"{_range(train[~full])}, then {_range(train[full])}",
            f"held-out at the jump {_range(held[full])}",
        ]
    ]
