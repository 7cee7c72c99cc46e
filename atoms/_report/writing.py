"""The report as files: tables, figures, the page that shows them, and all figures as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._files import replacing
from . import figures, sentences, tables
from .config import Config
from .kinds import KINDS
from .monosemanticity import Judged
from .plan import Plan
from .scoring import plain
from .tables import Row, Table

__all__ = ["write", "write_json"]

_NOTES = """R²: explained variance, centred, in the metric, where every direction weighs alike; raw: centred, of activations as
they are. Train and held-out rows are of one text in separate chunks (prompts: separate records); rows whose text up to
their token had come before are left out. Massive tokens (norm above 10 times the median) are left out where R² is
taken: a handful decide every sum of squares; "with massive" is held-out R² with them, and `main.csv` has every convention both
ways. Median: over held-out tokens, massive ones among them. Pursuit: held-out R² of the same dictionary coded by matching pursuit with the target number of atoms, which compares
dictionaries without their encoders. q*, random and ceiling: in the metric at the held-out L0, of random directions, and the most that the shape
allows at the largest cosine. Certified: held-out tokens whose code coherence proves unique. Seeds: mean |cosine| of matched
atoms of two seeds. s, MB: of one job, scoring included; memory is the job's process with the package loaded."""


@dataclasses.dataclass(frozen=True)
class _Found:
    """All figures of a report: rows of its tables, a capacity grid for each layer that has one, and the latents that were judged.

    What the configuration did not ask for is empty, or None.
    """

    config: Config
    about: Mapping[str, Any]
    shift: list[dict[str, Any]]
    main: list[dict[str, Any]]
    average: list[dict[str, Any]]
    capacity: dict[int, dict[str, np.ndarray]]
    frontier: list[dict[str, Any]]
    judged: Sequence[Judged]
    monosemanticity: list[dict[str, Any]]
    claims: list[list[str]]


def write(
    config: Config, about: Mapping[str, Any], planned: Plan, judged: Sequence[Judged], out: Path
) -> Path:
    """Tables, figures and ``report.md``; the path of the last."""
    found = _gather(config, about, planned, judged, out)
    _draw(found, planned, out)
    printed = _tables(found)
    for name, table in printed.items():
        table.save(out / "tables", name)
    run = json.loads((out / "run.json").read_text(encoding="utf-8"))
    path = out / "report.md"
    with replacing(path) as temporary:
        page = "\n\n".join(part.rstrip("\n") for part in _page(found, printed, run))
        temporary.write_text(page.rstrip() + "\n", encoding="utf-8")
    names = ("main", "average", "shift", "frontier", "monosemanticity")
    write_json(out / "figures.json", {name: getattr(found, name) for name in names})
    return path


def write_json(path: Path, value: Any) -> None:
    """Write what `plain` makes of the value, at once or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(plain(value), indent=1) + "\n", encoding="utf-8")


def _gather(
    config: Config, about: Mapping[str, Any], planned: Plan, judged: Sequence[Judged], out: Path
) -> _Found:
    shifts, rows = tables.shift_rows(planned, out), tables.main_rows(planned, out)
    average = tables.averaged(rows)
    capacity = {layer: tables.capacity_grid(grid, out) for layer, grid in planned.grid.items() if grid}
    return _Found(
        config=config,
        about=about,
        shift=shifts,
        main=rows,
        average=average,
        capacity=capacity,
        frontier=tables.frontier_rows(planned, out),
        judged=judged,
        monosemanticity=tables.monosemanticity_rows(judged),
        claims=sentences.claims(average, shifts, list(capacity.values())),
    )


def _draw(found: _Found, planned: Plan, out: Path) -> None:
    figures.shift(planned, out, found.shift)
    figures.main(found.average, out)
    for layer, arrays in found.capacity.items():
        figures.capacity(arrays, out, layer)
    if found.frontier:
        figures.frontier(found.frontier, out, found.config)
    if found.judged:
        figures.monosemanticity(found.judged, out)


def _tables(found: _Found) -> dict[str, Table]:
    """Every table by the name of its files."""
    printed = {
        "main": tables.main_table(found.main),
        "average": tables.main_table(found.average, layer=False),
        "shift": tables.shift_table(found.shift),
        "claims": tables.claims_table(found.claims),
    }
    if found.frontier:
        printed["frontier"] = tables.frontier_table(found.frontier)
    if found.judged:
        printed["monosemanticity"] = tables.monosemanticity_table(found.monosemanticity)
    return printed


def _page(found: _Found, printed: Mapping[str, Table], run: Row) -> list[str]:
    """The parts of ``report.md``, an empty line between any two."""
    config = found.config
    parts = [
        f"# Towards atoms of {config.name}",
        sentences.about(config, found.about),
        printed["claims"].show(),
        "## Representation shift",
        *sentences.shift(found.shift),
        "![Angles before and after, by layer](figures/shift.png)",
        printed["shift"].show(),
        "## Atoms, features, neurons and controls",
        *sentences.main(found.main, found.average),
        "![Explained variance and q*](figures/main.png)",
        "Mean over layers:",
        printed["average"].show(),
        _NOTES,
        "By layer:",
        printed["main"].show(),
    ]
    for layer, arrays in found.capacity.items():
        parts += [
            f"## Capacity, layer {layer}",
            *sentences.capacity(arrays, config, layer, found.about),
            f"![Heat maps over the number of activations and of atoms](figures/capacity_{layer}.png)",
        ]
    if found.frontier:
        parts += [
            f"## The frontier, layer {config.frontier.layer}",
            *sentences.frontier(found.frontier, config),
            "![Held-out explained variance against q*](figures/frontier.png)",
        ]
    if found.judged:
        pages = ", ".join(f"[{KINDS[j.dictionary].label}](pages/{j.dictionary}.html)" for j in found.judged)
        parts += [
            f"## Monosemanticity, layer {config.monosemanticity.layer}",
            *sentences.monosemanticity(found.judged),
            printed["monosemanticity"].show(),
            "![Scores of every latent](figures/monosemanticity.png)",
            f"Top contexts: {pages}.",
        ]
    return [*parts, "## What it cost", sentences.cost(run)]
