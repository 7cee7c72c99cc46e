"""The report in words: every sentence about the outcome is computed from the figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._files import replacing as _replacing
from . import figures, tables
from .scoring import percent, plain, span
from .tables import LABELS

if TYPE_CHECKING:
    from .config import Config
    from .monosemanticity import Judged
    from .run import Plan

__all__ = ["claims", "write"]

_FEATURES = ("relu", "topk", "batchtopk")
Row = Mapping[str, Any]


def _points(difference: float) -> str:
    return f"{100 * abs(difference):.1f} points {'above' if difference > 0 else 'below'}"


def _by(rows: Sequence[Row], field: str = "dictionary") -> dict[Any, Row]:
    return {r[field]: r for r in rows}


def _joined(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _wins(rows: Sequence[Row], name: str, other: str, field: str) -> tuple[int, int]:
    """At how many layers `name` is above `other`."""
    layers = {r["layer"] for r in rows}
    at = {(r["layer"], r["dictionary"]): r[field] for r in rows}
    return sum(at[layer, name] > at[layer, other] for layer in layers), len(layers)


# ------------------------------------------------------------------ one paragraph a section


def _shift(rows: Sequence[Row]) -> list[str]:
    before, after = [r["angles_euclidean_mean"] for r in rows], [r["angles_metric_mean"] for r in rows]
    said = [
        f"Over {len(rows)} layers, the mean angle between two held-out activations is {span(before, '°', 1)} in Euclidean "
        f"geometry and {span(after, '°', 1)} under the atomic inner product. The paper's claim, angles centred at the right "
        f"angle after the change and far from it before, "
        + ("holds" if max(abs(90 - a) for a in after) < 2 and max(before) < 80 else "holds only in part")
        + f": the largest distance from 90° falls from {max(abs(90 - b) for b in before):.1f}° to "
        f"{max(abs(90 - a) for a in after):.1f}°."
    ]
    known = [r for r in rows if r["train_metric_mean"] is not None]
    if known:
        said.append(
            f"Training activations under the same metric stand at {span([r['train_metric_mean'] for r in known], '°', 1)} "
            f"(Euclidean: {span([r['train_euclidean_mean'] for r in known], '°', 1)}): where they are of another text than the "
            "metric's, this says how far the metric carries over."
        )
    massive = [r for r in rows if r["massive"]]
    if massive:
        worst = max(massive, key=lambda r: r["massive_share"])
        said.append(
            f"Massive tokens (norm above 10 times the median) are met at {len(massive)} of {len(rows)} layers; at layer "
            f"{worst['layer']}, {worst['massive']} of {worst['massive'] + worst['n_metric']:,} tokens hold "
            f"{percent(worst['massive_share'])} of the sum of squares, and with them one direction would hold "
            f"{percent(worst['top_share_with_massive'])} of the second moment instead of {percent(worst['top_share'])}. They "
            "are left out where anything is fitted, and where R² is taken unless it says otherwise."
        )
    else:
        said.append("No massive tokens (norm above 10 times the median) were met in the metric's text.")
    return said


def _main(rows: Sequence[Row], config: Config) -> list[str]:
    mean = _by(tables.averaged(rows))
    said: list[str] = []
    atoms = mean.get("atoms")
    if atoms is None:
        return said
    said.append(
        f"Atoms explain {percent(atoms['R2_train'])} of training activations and {percent(atoms['R2_held_out'])} of held-out "
        f"ones on average over layers (centred, in the metric; {percent(atoms['raw_held_out'])} raw), with "
        f"{atoms['l0_mean_held_out']:.1f} of {atoms['d_sae']:,.0f} atoms a token. The paper reports 99.9%, for the activations "
        "it trained on."
    )
    massive = {r["layer"]: r["massive_held_out"] for r in rows if r["massive_held_out"]}
    if massive:
        names = [n for n in ("atoms", *_FEATURES, "memorizing", "random") if n in mean]
        listed = ", ".join(f"{LABELS[n]} {percent(mean[n]['R2_held_out_with_massive'])}" for n in names)
        said.append(
            f"{max(massive.values()):.0f} judged held-out tokens at most are massive, at layers {_joined([str(k) for k in massive])}. "
            f"With them the same figure reads: {listed}. It then says what a dictionary does to these few."
        )
    widths = [
        (r["interval_held_out_high"] - r["interval_held_out_low"]) / 2
        for r in rows
        if r["dictionary"] == "atoms"
    ]
    q_widths = [
        (r["interval_q_star_high"] - r["interval_q_star_low"]) / 2 for r in rows if r["dictionary"] == "atoms"
    ]
    said.append(
        f"At a single layer, 95% intervals of the atoms' held-out R² are ± {span(widths, ' points')}, of their q* ± "
        f"{span(q_widths, ' points')} (bootstrap over blocks of 64 tokens, the dictionary held fixed)."
    )
    features = [n for n in _FEATURES if n in mean]
    if features:
        best = max(features, key=lambda n: mean[n]["R2_held_out"])
        raw = max(features, key=lambda n: mean[n]["raw_held_out"])
        wins, n = _wins(rows, "atoms", best, "R2_held_out")
        raw_wins, _ = _wins(rows, "atoms", raw, "raw_held_out")
        said.append(
            f"Features, trained on the same activations for the same number of steps to the same L0, explain "
            f"{percent(mean[best]['R2_held_out'])} ({LABELS[best]}, the best in the metric) and, of raw held-out variance, "
            f"{percent(mean[raw]['raw_held_out'])} ({LABELS[raw]}) against the atoms' {percent(atoms['raw_held_out'])}: atoms "
            f"explain more at {wins} of {n} layers in the metric that they were trained in, and at {raw_wins} of {n} in the "
            "Euclidean one that the features were trained in."
        )
    if "euclidean" in mean:
        e = mean["euclidean"]
        said.append(
            f"The same autoencoder in Euclidean geometry explains {percent(e['R2_held_out'])} in the metric and "
            f"{percent(e['raw_held_out'])} raw, with q* {percent(e['q_star'])} at L0 {e['l0_mean_held_out']:.1f}."
        )
    beaten: list[str] = []
    lost: list[str] = []
    for name in ("random", "memorizing", "kmeans", "pca", "neurons", "shuffled", "random-model"):
        if name in mean:
            won = atoms["R2_held_out"] > mean[name]["R2_held_out"]
            (beaten if won else lost).append(f"{LABELS[name]} ({percent(mean[name]['R2_held_out'])})")
    if beaten:
        said.append(
            f"Of the controls, held-out atoms explain more than {_joined(beaten)}"
            + (f", and less than {_joined(lost)}." if lost else ".")
        )
    if atoms["R2_text"] is not None:
        others = [n for n in ("random", "pca", "memorizing", "kmeans", *_FEATURES) if n in mean]
        listed = ", ".join(f"{LABELS[n]} {percent(mean[n]['R2_text'])}" for n in others)
        above = "random" in mean and atoms["R2_text"] > mean["random"]["R2_text"] + 0.01
        said.append(
            f"On the other text the atoms fall to {percent(atoms['R2_text'])}, at {atoms['l0_mean_text']:.1f} a token"
            + (f" ({listed})" if listed else "")
            + ". "
            + (
                "What was learnt carries over in part."
                if above or "random" not in mean
                else "That is no more than random directions explain (by matching pursuit): what was learnt belongs to the text it was learnt on."
            )
        )
    over = atoms["q_star"] - atoms["q_star_random"]
    said.append(
        f"q* of the atoms is {percent(atoms['q_star'])} (the paper: 99.7 to 99.9%), {_points(over)} that of random directions "
        f"of the same shape at the same L0 ({percent(atoms['q_star_random'])}); no dictionary with their largest cosine and L0 "
        f"could have more than {percent(atoms['q_star_ceiling'])}. "
        + (
            "q* says how sparse the codes are and next to nothing about what was learnt."
            if abs(over) < 0.05
            else "What was learnt moves q* by that much; the rest is sparsity."
        )
    )
    if atoms["certified"] is not None:
        said.append(
            f"{percent(atoms['certified'])} of held-out tokens have a code that coherence certifies as unique "
            f"(mu(S) < 1/(2|S| - 1)), {percent(atoms['recoverable'])} one that exact recovery is guaranteed for, and for "
            f"{percent(atoms['threshold_exact'])} a single tied pass finds the support in fact."
        )
    if atoms["mcc"] is not None:
        known = {n: r for n, r in mean.items() if r["mcc"] is not None and n != "atoms"}
        compared = ", ".join(f"{LABELS[n]} {r['mcc']:.2f}" for n, r in known.items())
        said.append(
            f"Across seeds, matched atoms have a mean |cosine| of {atoms['mcc']:.2f} in the metric; {percent(atoms['above_0.9'])} "
            f"of them agree to 0.9 or better" + (f" ({compared})." if compared else ".")
        )
    if "neurons-all" in mean and "pca-all" in mean:
        a, b = mean["neurons-all"], mean["pca-all"]
        said.append(
            f"All neurons reproduce everything (R² {percent(a['R2_held_out'])}) at q* {percent(a['q_star'])}, as the paper says "
            f"(100%, 0.5%); but all principal directions do so at q* {percent(b['q_star'])}: R² and q* together do not tell "
            "atoms from any orthonormal basis without the L0."
        )
    if "memorizing" in mean:
        m = mean["memorizing"]
        said.append(
            f"The dictionary of all {m['d_sae']:,.0f} training activations scores {percent(m['R2_train'])} on these with q* "
            f"{percent(m['q_star'])}, more than the paper asks of atoms on both counts, and {percent(m['R2_held_out'])} on "
            "held-out ones."
        )
    return said


def _capacity(arrays: Mapping[str, np.ndarray]) -> list[str]:
    m, n = np.meshgrid(arrays["data"], arrays["widths"], indexing="ij")
    train, held = arrays["atoms_train"], arrays["atoms_held_out"]
    full, short = n >= m, n < m
    if not full.any() or not short.any():
        return []
    jump = train[full].min() > train[short].max()
    said = [
        f"With fewer atoms than activations, training R² is {span([train[short].min(), train[short].max()])}; from |D| = |M| on it is "
        f"{span([train[full].min(), train[full].max()])}. "
        + ("The paper's jump is there." if jump else "There is no clean jump as in the paper.")
    ]
    said.append(
        f"Held-out R² in the same cells is {span([held[short].min(), held[short].max()])} below the jump and "
        f"{span([held[full].min(), held[full].max()])} from it on"
        + (
            ": what jumps is storage, not learning. "
            if held[full].mean() < held[short].mean() + 0.1
            else ": some of the jump carries over. "
        )
        + f"The memorizing dictionary, which learns nothing, makes the same jump (training "
        f"{span([arrays['memorizing_train'][short].min(), arrays['memorizing_train'][short].max()])} below, "
        f"{span([arrays['memorizing_train'][full].min(), arrays['memorizing_train'][full].max()])} from it on; held-out "
        f"{span([arrays['memorizing_held_out'].min(), arrays['memorizing_held_out'].max()])})."
    )
    return said


def _left_out(arrays: Mapping[str, np.ndarray], config: Config, about: Mapping[str, Any]) -> list[str]:
    wanted = [m * config.grid.unit * about["d_in"] for m in config.grid.data]
    missing = [f"{m:,}" for m in wanted if m not in arrays["data"]]
    rows = about["rows"]["train"][str(config.grid.layer)]
    return (
        [f"Left out for want of training rows (there are {rows:,}): |M| = {_joined(missing)}."]
        if missing
        else []
    )


def _frontier(points: Sequence[Row], config: Config) -> list[str]:
    atoms = [p for p in points if p["dictionary"] == "atoms"]
    if not atoms:
        return []
    best = max(atoms, key=lambda p: p["R2_held_out"])
    corner = max(atoms, key=lambda p: min(p["R2_held_out"], p["q_star"]))
    said = [
        f"Along target L0 {min(config.frontier.l0):g} to {max(config.frontier.l0):g}, the atoms that explain most of held-out "
        f"activations reach {percent(best['R2_held_out'])} at q* {percent(best['q_star'])} (L0 {best['l0']:.1f}); nearest to the "
        f"upper right corner are {percent(corner['R2_held_out'])} at q* {percent(corner['q_star'])} (L0 {corner['l0']:.1f}). No "
        f"setting tried comes near 99.9% on both for activations it has not seen."
        if best["R2_held_out"] < 0.99 or best["q_star"] < 0.99
        else f"The atoms reach {percent(best['R2_held_out'])} of held-out activations at q* {percent(best['q_star'])}."
    ]
    line = sorted((p for p in atoms if p["varies"] == "L0"), key=lambda p: p["q_star"])
    moved = []
    for p in atoms:
        if p["varies"] != "L0" and len(line) > 1:
            at_equal_q = np.interp(p["q_star"], [o["q_star"] for o in line], [o["R2_held_out"] for o in line])
            label = _change(p, config)
            if (
                not 0.5 < p["l0_fitted"] / config.l0 < 2
            ):  # its thresholds were moved far: not what was trained
                label += f", whose training ended at L0 {p['l0_fitted']:.1f},"
            moved.append((p["R2_held_out"] - at_equal_q, p["l0"], label))
    if moved:
        moved.sort(key=lambda item: -item[0])
        said.append(
            f"What moves the frontier: held-out R² above (+) or below (-) that line at equal q*, one setting changed at target L0 "
            f"{config.l0:g}: "
            + "; ".join(f"{label} {100 * r:+.1f} points (L0 {l0:.1f})" for r, l0, label in moved)
            + "."
        )
    for other in dict.fromkeys(p["dictionary"] for p in points):
        theirs = sorted(
            (p for p in points if p["dictionary"] == other and p["varies"] == "L0"), key=lambda p: p["l0"]
        )
        ours = sorted(line, key=lambda p: p["l0"])
        theirs = [p for p in theirs if ours and ours[0]["l0"] * 0.8 <= p["l0"] <= ours[-1]["l0"] * 1.25]
        if other == "atoms" or len(theirs) < 2 or len(ours) < 2:
            continue
        gaps = {}
        for field in ("R2_held_out", "raw_held_out"):
            mine = np.interp(
                np.log([p["l0"] for p in theirs]), np.log([p["l0"] for p in ours]), [p[field] for p in ours]
            )
            gaps[field] = mine - np.array([p[field] for p in theirs])
        q = np.interp(
            np.log([p["l0"] for p in theirs]), np.log([p["l0"] for p in ours]), [p["q_star"] for p in ours]
        )
        q = q - np.array([p["q_star"] for p in theirs])
        said.append(
            f"At equal L0 ({theirs[0]['l0']:.0f} to {theirs[-1]['l0']:.0f}), atoms explain {_between(gaps['R2_held_out'])} points more "
            f"than {LABELS[other]} in the metric, {_between(gaps['raw_held_out'])} of raw variance, at a q* higher by {_between(q)} points."
        )
    return said


def _between(values: np.ndarray) -> str:
    return f"{100 * values.min():.1f} to {100 * values.max():.1f}"


def _change(point: Row, config: Config) -> str:
    if point["varies"] == "width":
        return (
            f"{point['d_sae']:,} atoms instead of {round(point['d_sae'] * config.width / point['value']):,}"
        )
    if point["varies"] == "data":
        return f"{point['n_train']:,} training rows, {point['value']:g} of them all"
    return {
        "tied": "a tied encoder",
        "centered": "a centred metric",
        "shrunk": "a metric with shrinkage 0.1",
        "ledoit_wolf": "a metric with Ledoit-Wolf's shrinkage",
    }[point["value"]]


def _mono(judged: Sequence[Judged]) -> list[str]:
    rows = []
    for one in judged:
        detection, fuzzing = one.detection[np.isfinite(one.detection)], one.fuzzing[np.isfinite(one.fuzzing)]
        if len(detection) > 1 and len(fuzzing) > 1:
            rows.append((one.dictionary, detection, fuzzing))
    if not rows:
        return []
    rows.sort(key=lambda r: -r[1].mean())
    listed = ", ".join(f"{LABELS[n]} {d.mean():.2f} ± {d.std() / np.sqrt(len(d)):.2f}" for n, d, _ in rows)
    said = [f"Mean detection score with standard error, best first: {listed}; 0.50 is chance."]
    means = {n: (d.mean(), d.std() / np.sqrt(len(d))) for n, d, _ in rows}
    features = [n for n in _FEATURES if n in means]
    if "atoms" in means and features and "neurons" in means:
        best = max(features, key=lambda n: means[n][0])
        gap = means["atoms"][0] - means[best][0]
        error = np.hypot(means["atoms"][1], means[best][1])
        first = (
            "above"
            if gap > 2 * error
            else "below"
            if gap < -2 * error
            else "level with (within two standard errors)"
        )
        gap2 = means[best][0] - means["neurons"][0]
        error2 = np.hypot(means[best][1], means["neurons"][1])
        second = "above" if gap2 > 2 * error2 else "below" if gap2 < -2 * error2 else "level with"
        said.append(
            f"The paper finds atoms above features above neurons. Here atoms are {first} the best features, and these {second} "
            "neurons, by this judge."
        )
    return said


# ------------------------------------------------------------------ claims


def claims(
    rows: Sequence[Row], shifts: Sequence[Row], arrays: Mapping[str, np.ndarray] | None
) -> list[list[str]]:
    """The paper's claims, what it reports, what is found here, and what the controls say."""
    mean = _by(tables.averaged(rows))
    out = []
    if shifts:
        out.append(
            [
                "angles under the AIP are centred at 90°",
                "figure",
                f"{span([r['angles_metric_mean'] for r in shifts], '°', 1)}, Euclidean {span([r['angles_euclidean_mean'] for r in shifts], '°', 1)}",
                "held-out text: the metric was not fitted on it",
            ]
        )
    atoms = mean.get("atoms")
    if atoms:
        controls = []
        if "memorizing" in mean:
            controls.append(
                f"memorizing {percent(mean['memorizing']['R2_train'])} / {percent(mean['memorizing']['R2_held_out'])}"
            )
        if "random" in mean:
            on_text = f", {percent(mean['random']['R2_text'])} on it" if atoms["R2_text"] is not None else ""
            controls.append(f"random {percent(mean['random']['R2_held_out'])}{on_text}")
        out.append(
            [
                "atoms are faithful",
                "R² 99.9%",
                f"{percent(atoms['R2_train'])} training, {percent(atoms['R2_held_out'])} held-out"
                + (f", {percent(atoms['R2_text'])} on other text" if atoms["R2_text"] is not None else ""),
                ", ".join(controls),
            ]
        )
        out.append(
            [
                "atoms are stable",
                "q* 99.7 to 99.9%",
                percent(atoms["q_star"]),
                f"random directions at this L0 {percent(atoms['q_star_random'])}",
            ]
        )
    features = [mean[n] for n in _FEATURES if n in mean]
    if features:
        out.append(
            [
                "features are neither",
                "R² 48.8%, q* 68.2%",
                f"R² {span([f['R2_held_out'] for f in features])} held-out (raw {span([f['raw_held_out'] for f in features])}), "
                f"q* {span([f['q_star'] for f in features])}",
                "same activations, steps and L0 as the atoms",
            ]
        )
    if "neurons-all" in mean:
        n = mean["neurons-all"]
        other = (
            f"PCA {percent(mean['pca-all']['R2_held_out'])}, {percent(mean['pca-all']['q_star'])}"
            if "pca-all" in mean
            else ""
        )
        out.append(
            [
                "neurons are faithful, not stable",
                "R² 100%, q* 0.5%",
                f"R² {percent(n['R2_held_out'])}, q* {percent(n['q_star'])}",
                other,
            ]
        )
    if arrays is not None:
        m, n = np.meshgrid(arrays["data"], arrays["widths"], indexing="ij")
        full = n >= m
        if full.any() and (~full).any():
            out.append(
                [
                    "R² jumps to 1 at |D| = |M|",
                    "0.6 to 0.8, then 1",
                    f"{span([arrays['atoms_train'][~full].min(), arrays['atoms_train'][~full].max()])}, then "
                    f"{span([arrays['atoms_train'][full].min(), arrays['atoms_train'][full].max()])}",
                    f"held-out at the jump {span([arrays['atoms_held_out'][full].min(), arrays['atoms_held_out'][full].max()])}",
                ]
            )
    return out


# ------------------------------------------------------------------ all of it

_NOTES = """R²: explained variance, centred, in the metric, where every direction weighs alike; raw: centred, of activations as
they are. Train and held-out rows are of one text in separate chunks (prompts: separate records); rows whose text up to
their token had come before are left out. Massive tokens (norm above 10 times the median) are left out where R² is
taken: a handful decide every sum of squares; "with massive" is held-out R² with them, and `main.csv` has every convention both
ways. Median: over held-out tokens, massive ones among them. Pursuit: held-out R² of the same dictionary coded by matching pursuit with the target number of atoms, which compares
dictionaries without their encoders. q*, random and ceiling: in the metric at the held-out L0, of random directions, and the most that the shape
allows at the largest cosine. Certified: held-out tokens whose code coherence proves unique. Seeds: mean |cosine| of matched
atoms of two seeds. s, MB: of one job, scoring included; memory is the job's process with the package loaded."""


def write(
    config: Config, about: Mapping[str, Any], planned: Plan, judged: Sequence[Judged], out: Path
) -> Path:
    """Tables, figures and ``report.md``; the path of the last."""
    shifts = tables.shift_rows(planned, out)
    rows = tables.main_rows(planned, out)
    mean = tables.averaged(rows)
    figures.shift(planned, out, shifts)
    figures.main(mean, out)
    arrays = figures.capacity(planned, out, config) if planned.grid else None
    points = figures.frontier(planned, out, config) if planned.frontier else []
    if judged:
        figures.monosemanticity(judged, out)

    folder = out / "tables"
    tables.save(folder, "main", rows, lambda form: tables.show(rows, form))
    tables.save(folder, "average", mean, lambda form: tables.show(mean, form, layer=False))
    head = [
        "layer",
        "Euclidean",
        "atomic",
        "condition number",
        "effective rank",
        "top direction",
        "with massive tokens",
    ]
    body = [
        [
            str(r["layer"]),
            f"{r['angles_euclidean_mean']:.1f}° ± {r['angles_euclidean_std']:.1f}°",
            f"{r['angles_metric_mean']:.1f}° ± {r['angles_metric_std']:.1f}°",
            f"{r['condition_number']:.2g}",
            f"{r['effective_rank']:.0f}",
            percent(r["top_share"]),
            percent(r["top_share_with_massive"]) if r["massive"] else "none met",
        ]
        for r in shifts
    ]
    tables.save(folder, "shift", shifts, lambda form: tables.layers_table(head, body, form))
    if points:
        point_head = [
            "dictionary",
            "varies",
            "value",
            "atoms",
            "rows",
            "L0",
            "R² train",
            "R² held-out",
            "q*",
            "random",
        ]
        point_body = [
            [LABELS[p["dictionary"]], p["varies"], str(p["value"]), f"{p['d_sae']:,}", f"{p['n_train']:,}", f"{p['l0']:.1f}",
             percent(p["R2_train"]), percent(p["R2_held_out"]), percent(p["q_star"]), percent(p["q_star_random"])]
            for p in points
        ]  # fmt: skip
        tables.save(
            folder, "frontier", points, lambda form: tables.layers_table(point_head, point_body, form)
        )
    mono_rows: list[dict[str, Any]] = [
        {
            "dictionary": j.dictionary,
            "latents": len(j.latents),
            "able": j.able[0],
            "detection": float(np.nanmean(j.detection)) if np.isfinite(j.detection).any() else None,
            "fuzzing": float(np.nanmean(j.fuzzing)) if np.isfinite(j.fuzzing).any() else None,
        }
        for j in judged
    ]
    mono_head = ["dictionary", "latents judged", "of so many able", "detection", "fuzzing"]

    def number(v: float | None) -> str:
        return "" if v is None else f"{v:.3f}"

    mono_body = [
        [
            LABELS[r["dictionary"]],
            str(r["latents"]),
            f"{r['able']:,}",
            number(r["detection"]),
            number(r["fuzzing"]),
        ]
        for r in mono_rows
    ]
    if mono_rows:
        tables.save(
            folder, "monosemanticity", mono_rows, lambda form: tables.layers_table(mono_head, mono_body, form)
        )

    run = json.loads((out / "run.json").read_text(encoding="utf-8"))
    claim = claims(rows, shifts, arrays)
    claim_head = ["the paper's claim", "the paper", "here", "what stands beside it"]
    tables.save(
        folder,
        "claims",
        [dict(zip(claim_head, c)) for c in claim],
        lambda form: tables.layers_table(claim_head, claim, form),
    )
    parts = [
        f"# Towards atoms of {config.name}",
        _about(config, about),
        tables.layers_table(claim_head, claim),
        "## Representation shift",
        *_shift(shifts),
        "![Angles before and after, by layer](figures/shift.png)",
        tables.layers_table(head, body),
        "## Atoms, features, neurons and controls",
        *_main(rows, config),
        "![Explained variance and q*](figures/main.png)",
        "Mean over layers:",
        tables.show(mean, layer=False),
        _NOTES,
        "By layer:",
        tables.show(rows),
    ]
    if arrays is not None:
        parts += [
            f"## Capacity, layer {config.grid.layer}",
            *_capacity(arrays),
            *_left_out(arrays, config, about),
            "![Heat maps over the number of activations and of atoms](figures/capacity.png)",
        ]
    if points:
        parts += [
            f"## The frontier, layer {config.frontier.layer}",
            *_frontier(points, config),
            "![Held-out explained variance against q*](figures/frontier.png)",
        ]
    if judged:
        pages = ", ".join(f"[{LABELS[j.dictionary]}](pages/{j.dictionary}.html)" for j in judged)
        parts += [
            f"## Monosemanticity, layer {config.monosemanticity.layer}",
            *_mono(judged),
            tables.layers_table(mono_head, mono_body),
            "![Scores of every latent](figures/monosemanticity.png)",
            f"Top contexts: {pages}.",
        ]
    parts += ["## What it cost", _cost(run), ""]
    path = out / "report.md"
    with _replacing(path) as temporary:
        temporary.write_text(
            "\n\n".join(part.rstrip("\n") for part in parts).rstrip() + "\n", encoding="utf-8"
        )
    with _replacing(out / "figures.json") as temporary:
        everything = {
            "main": rows,
            "average": mean,
            "shift": shifts,
            "frontier": points,
            "monosemanticity": mono_rows,
        }
        temporary.write_text(json.dumps(plain(everything), indent=1) + "\n", encoding="utf-8")
    return path


def _about(config: Config, about: Mapping[str, Any]) -> str:
    rows = about["rows"]
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
        for n, c in about["counts"].items()
        if c.get("repeated") and not n.startswith("random/")
    }
    dropped = ", ".join(
        f"{n:,} of {about['counts'][part]['tokens']:,} tokens ({part})" for part, n in repeated.items()
    )
    said = (
        f"Layers {', '.join(map(str, config.layers))} of {config.name}, counted from 0; {source}. Rows at layer {layer}: {counts}. "
        f"Dictionaries of {config.width:g} d_in atoms, target L0 {config.l0:g}, {config.samples:,} training samples, seeds "
        f"{', '.join(map(str, config.seeds))}."
    )
    said += (
        " Autoencoders fire more on new text than on what they were trained on; one shift of all thresholds holds the L0 of those that "
        "have thresholds at the target, set on the first quarter of the held-out rows, where nothing is judged."
    )
    if dropped:
        said += f" Left out because the text up to them had come before: {dropped}."
    return said


def _cost(run: Mapping[str, Any]) -> str:
    hardware, versions = run["hardware"], run["versions"]
    return (
        f"{run['jobs']} jobs took {run['cpu_seconds_jobs'] / 60:.1f} minutes of CPU time ({run['seconds_jobs'] / 60:.1f} by the clock, one "
        f"after the other, with what else the machine did), capture {run['seconds_capture'] / 60:.1f} minutes by the clock; {run['workers']} workers of {run['threads_per_job']} thread on {hardware['cpu']} "
        f"({hardware['cpus']} CPUs). Largest job: {run['peak_memory_mb']:,.0f} MB. "
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}."
    )
