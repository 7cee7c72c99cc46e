"""The report's tables: their rows, read from the results of jobs, and what is printed of them.

Rows are mappings of all that is known; a `Table` shows some columns of them, as Markdown and LaTeX, and
is saved with the rows whole, as CSV.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .._files import replacing
from . import jobs
from .kinds import KINDS
from .monosemanticity import Judged
from .plan import Cells, Plan
from .scoring import CONVENTION, WITHOUT_MASSIVE, percent

__all__ = [
    "Row",
    "Table",
    "averaged",
    "capacity_grid",
    "claims_table",
    "frontier_rows",
    "frontier_table",
    "main_rows",
    "main_table",
    "monosemanticity_rows",
    "monosemanticity_table",
    "shift_rows",
    "shift_table",
]

Row = Mapping[str, Any]

_SHORT = {"metric_centered": "R2", "metric_uncentered": "R2u", "centered": "raw", "uncentered": "raw_u"}
_FORMS = ("_with_massive", "_median", "")  # endings of columns, in the order of `Score.explained`


# ------------------------------------------------------------------ rows


def _mean(values: Iterable[Any]) -> float | None:
    known = [v for v in values if v is not None and np.isfinite(v)]
    return float(np.mean(known)) if known else None


def _at(record: Any, path: Sequence[Any]) -> Any:
    for step in path:
        if record is None or (isinstance(record, Mapping) and step not in record):
            return None
        record = record[step]
    return record


def main_rows(planned: Plan, out: Path) -> list[dict[str, Any]]:
    """One row for each layer and dictionary, figures averaged over seeds; all conventions."""
    rows = []
    for layer, name in dict.fromkeys((layer, name) for layer, name, _ in planned.table):
        found = [
            jobs.read(out, job) for (at, kind, _), job in planned.table.items() if (at, kind) == (layer, name)
        ]
        row: dict[str, Any] = {"layer": layer, "dictionary": name, "seeds": len(found)}
        row |= _scores([r.record for r in found])
        job = planned.agreement.get((layer, name))
        agreed = jobs.read(out, job).record if job else {}
        for field in ("mcc", "mmcs", "above_0.9", "overlap"):
            row[field] = agreed.get(field)
        for field in ("seconds_training", "seconds", "peak_memory_mb"):
            row[field] = _mean(r.cost.get(field) for r in found)
        rows.append(row)
    return rows


def _scores(records: Sequence[Row]) -> dict[str, Any]:
    """The part of a main row that is averaged over seeds."""
    row: dict[str, Any] = {}

    def mean(*path: Any) -> float | None:
        return _mean(_at(r, path) for r in records)

    for field in ("d_sae", "n_train", "l0_mean", "coherence", "q_star", "q_star_random", "q_star_ceiling",
                  "q_star_ceiling_any", "q_star_train", "q_star_euclidean", "pursuit", "unused"):  # fmt: skip
        row[field] = mean(field)
    for part in ("train", "held_out", "text"):
        for convention, short in _SHORT.items():
            for i, form in enumerate(_FORMS):
                row[f"{short}_{part}{form}"] = mean("explained", part, convention, i)
        row[f"l0_mean_{part}"] = mean("l0_means", part)
        row[f"massive_{part}"] = mean("massive", part)
    for field in ("l0", "l0_train"):  # quantiles, to whole latents
        row[field] = [round(float(np.mean([r[field][i] for r in records]))) for i in range(3)]
    for short in ("held_out", "text", "q_star"):
        for i, end in enumerate(("low", "high")):
            row[f"interval_{short}_{end}"] = _at(records[0], (f"interval_{short}", i))
    row["certified"] = mean("certified", "unique")
    for field in ("recoverable", "threshold_feasible", "threshold_exact"):
        row[field] = mean("certified", field)
    return row


def averaged(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each dictionary: the mean over layers of every figure."""
    out = []
    for name in dict.fromkeys(r["dictionary"] for r in rows):
        mine = [r for r in rows if r["dictionary"] == name]
        row: dict[str, Any] = {"layer": "all", "dictionary": name}
        for field in mine[0]:
            values = [r[field] for r in mine]
            if field in row:
                continue
            if isinstance(values[0], list):
                row[field] = [round(float(np.mean([v[i] for v in values]))) for i in range(3)]
            else:
                row[field] = _mean(values)
        out.append(row)
    return out


def shift_rows(planned: Plan, out: Path) -> list[dict[str, Any]]:
    """Angles, and the spectrum behind them, by layer."""
    rows = []
    for layer, job in planned.shift.items():
        r = jobs.read(out, job).record
        row: dict[str, Any] = {"layer": layer}
        for part in ("angles", "train"):
            for geometry in ("euclidean", "metric"):
                for figure in ("mean", "std"):
                    row[f"{part}_{geometry}_{figure}"] = _at(r, (f"{part}/{geometry}", figure))
        for field in (
            "condition_number",
            "effective_rank",
            "top_share",
            "top_share_with_massive",
            "massive",
            "massive_share",
            "n_metric",
        ):
            row[field] = r.get(field)
        rows.append(row)
    return rows


def capacity_grid(grid: Cells, out: Path) -> dict[str, np.ndarray]:
    """Figures over |M| (``data``) and |D| (``widths``), of atoms and of the memorizing dictionary."""
    data = sorted({m for _, m, _ in grid})
    widths = sorted({n for _, _, n in grid})
    arrays: dict[str, np.ndarray] = {"data": np.array(data), "widths": np.array(widths)}
    for name in ("atoms", "memorizing"):
        cells = [[jobs.read(out, grid[name, m, n]).record for n in widths] for m in data]
        for part in ("train", "held_out"):
            values = [[r["explained"][part][CONVENTION][WITHOUT_MASSIVE] for r in line] for line in cells]
            arrays[f"{name}_{part}"] = np.array(values, float)
        arrays[f"{name}_q_star"] = np.array([[r["q_star"] for r in line] for line in cells], float)
    return arrays


def frontier_rows(planned: Plan, out: Path) -> list[dict[str, Any]]:
    """One row for each point of the frontier."""
    rows = []
    for name, what, value, job in planned.frontier:
        result = jobs.read(out, job)
        r, l0 = result.record, result.arrays.get("history/l0")
        rows.append(
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
    return rows


def monosemanticity_rows(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """One row for each dictionary whose latents were judged."""

    def mean(scores: np.ndarray) -> float | None:
        return float(np.nanmean(scores)) if np.isfinite(scores).any() else None

    return [
        {
            "dictionary": j.dictionary,
            "latents": len(j.latents),
            "able": j.able[0],
            "detection": mean(j.detection),
            "fuzzing": mean(j.fuzzing),
        }
        for j in judged
    ]


# ------------------------------------------------------------------ what is printed


class Table(NamedTuple):
    """Rows, and what is printed of them: a line of words for each, under a heading."""

    rows: Sequence[Row]
    head: Sequence[str]
    body: Sequence[Sequence[str]]

    def show(self, form: str = "markdown") -> str:
        """As "markdown" or "latex"."""
        return _markdown(self.head, self.body) if form == "markdown" else _latex(self.head, self.body)

    def save(self, folder: Path, name: str) -> None:
        """The rows whole as CSV, and what is printed as Markdown and LaTeX."""
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, content in (
            ("csv", _csv(self.rows)),
            ("md", self.show("markdown")),
            ("tex", self.show("latex")),
        ):
            with replacing(folder / f"{name}.{suffix}") as temporary:
                temporary.write_text(content, encoding="utf-8")


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    fields = list(dict.fromkeys(field for row in rows for field in row))
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: "/".join(map(str, v)) if isinstance(v, list) else v for k, v in row.items()})
    return text.getvalue()


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    table = [head, ["---"] * len(head), *body]
    return "".join("| " + " | ".join(c.replace("|", r"\|") for c in line) + " |\n" for line in table)


def _latex(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    safe = lambda text: (
        text.replace("%", r"\%").replace("&", r"\&").replace("_", r"\_").replace("²", "$^2$").replace("q*", "$q^*$")
        .replace("°", r"$^\circ$").replace("±", r"$\pm$").replace("|", r"$|$")
    )  # fmt: skip
    lines = [" & ".join(map(safe, line)) + r" \\" for line in [head, *body]]
    return "\n".join(
        [
            r"\begin{tabular}{" + "l" * len(head) + "}",
            r"\hline",
            lines[0],
            r"\hline",
            *lines[1:],
            r"\hline",
            r"\end{tabular}",
            "",
        ]
    )


# the main table's columns: field of a row, heading
_MAIN = (
    ("dictionary", "dictionary"),
    ("d_sae", "atoms"),
    ("R2_train", "R² train"),
    ("R2_held_out", "R² held-out"),
    ("R2_text", "R² other text"),
    ("R2_held_out_with_massive", "with massive"),
    ("R2_held_out_median", "median"),
    ("raw_held_out", "raw"),
    ("pursuit", "pursuit"),
    ("l0_train", "L0 train"),
    ("l0", "L0 5/50/95%"),
    ("q_star_train", "q* train"),
    ("q_star", "q*"),
    ("q_star_random", "random"),
    ("q_star_ceiling", "ceiling"),
    ("certified", "certified"),
    ("mcc", "seeds"),
    ("seconds", "s"),
    ("peak_memory_mb", "MB"),
)


def main_table(rows: Sequence[Row], layer: bool = True) -> Table:
    """Main rows, with the columns that any of them fills; `layer`: with a column of layers."""
    columns = [c for c in _MAIN if any(r.get(c[0]) is not None for r in rows)]
    head = (["layer"] if layer else []) + [heading for _, heading in columns]
    body = []
    for r in rows:
        cells = [str(r["layer"])] if layer else []
        body.append(cells + [_cell(field, r.get(field)) for field, _ in columns])
    return Table(rows, head, body)


def _cell(field: str, value: Any) -> str:
    if value is None:
        return ""
    if field == "dictionary":
        return KINDS[value].label
    if isinstance(value, list):
        return "/".join(map(str, value))
    if field in ("seconds", "peak_memory_mb", "d_sae"):
        return f"{value:,.0f}"
    return f"{value:.2f}" if field == "mcc" else percent(value)


def shift_table(rows: Sequence[Row]) -> Table:
    """Angles by layer, with the spectrum behind them."""

    def angle(row: Row, geometry: str) -> str:
        return f"{row[f'angles_{geometry}_mean']:.1f}° ± {row[f'angles_{geometry}_std']:.1f}°"

    body = [
        [
            str(r["layer"]),
            angle(r, "euclidean"),
            angle(r, "metric"),
            f"{r['condition_number']:.2g}",
            f"{r['effective_rank']:.0f}",
            percent(r["top_share"]),
            percent(r["top_share_with_massive"]) if r["massive"] else "none met",
        ]
        for r in rows
    ]
    head = ["layer", "Euclidean", "atomic", "condition number", "effective rank", "top direction"]
    return Table(rows, [*head, "with massive tokens"], body)


def frontier_table(rows: Sequence[Row]) -> Table:
    """The frontier's points."""
    head = ["dictionary", "varies", "value", "atoms", "rows", "L0", "R² train", "R² held-out", "q*", "random"]
    body = [
        [KINDS[r["dictionary"]].label, r["varies"], str(r["value"]), f"{r['d_sae']:,}", f"{r['n_train']:,}",
         f"{r['l0']:.1f}", *(percent(r[f]) for f in ("R2_train", "R2_held_out", "q_star", "q_star_random"))]
        for r in rows
    ]  # fmt: skip
    return Table(rows, head, body)


def monosemanticity_table(rows: Sequence[Row]) -> Table:
    """Mean scores of each dictionary."""

    def number(v: float | None) -> str:
        return "" if v is None else f"{v:.3f}"

    body = [
        [
            KINDS[r["dictionary"]].label,
            str(r["latents"]),
            f"{r['able']:,}",
            number(r["detection"]),
            number(r["fuzzing"]),
        ]
        for r in rows
    ]
    return Table(rows, ["dictionary", "latents judged", "of so many able", "detection", "fuzzing"], body)


def claims_table(claims: Sequence[Sequence[str]]) -> Table:
    """The paper's claims, beside what is found here."""
    head = ["the paper's claim", "the paper", "here", "what stands beside it"]
    return Table([dict(zip(head, claim)) for claim in claims], head, claims)
