"""Rows of the report's tables, and the same rows as CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._files import replacing as _replacing
from . import jobs
from .scoring import percent

if TYPE_CHECKING:
    from .run import Plan

__all__ = ["LABELS", "averaged", "layers_table", "main_rows", "save", "shift_rows", "show"]

LABELS = {
    "atoms": "atoms (TSAE, AIP)",
    "euclidean": "TSAE, Euclidean",
    "relu": "features, ReLU + L1",
    "topk": "features, TopK",
    "batchtopk": "features, BatchTopK",
    "neurons": "neurons, largest",
    "neurons-all": "neurons, all",
    "pca": "PCA, largest",
    "pca-all": "PCA, all",
    "random": "random directions",
    "memorizing": "memorizing",
    "kmeans": "k-means",
    "shuffled": "atoms of shuffled coordinates",
    "random-model": "atoms of a random model",
}
_SHORT = {"metric_centered": "R2", "metric_uncentered": "R2u", "centered": "raw", "uncentered": "raw_u"}
_FORMS = ("_with_massive", "_median", "")  # as they stand in `Score.explained`

# what the printed table shows: column, heading, whether it is a share
SHOWN = (
    ("dictionary", "dictionary"),
    ("d_sae", "atoms"),
    ("R2_train", "R² train"),
    ("R2_held_out", "R² held-out"),
    ("R2_text", "R² other text"),
    ("R2_held_out_with_massive", "with massive"),
    ("R2_held_out_median", "median"),
    ("raw_held_out", "raw"),
    ("pursuit", "pursuit"),
    ("l0", "L0 5/50/95%"),
    ("q_star", "q*"),
    ("q_star_random", "random"),
    ("q_star_ceiling", "ceiling"),
    ("certified", "certified"),
    ("mcc", "seeds"),
    ("seconds", "s"),
    ("peak_memory_mb", "MB"),
)


def _mean(values: Sequence[Any]) -> float | None:
    known = [v for v in values if v is not None and np.isfinite(v)]
    return float(np.mean(known)) if known else None


def main_rows(planned: Plan, out: Path) -> list[dict[str, Any]]:
    """One row for each layer and dictionary, figures averaged over seeds; all conventions."""
    rows = []
    for layer, name in dict.fromkeys((layer, name) for layer, name, _ in planned.table):
        found = [
            jobs.read(out, job) for (at, kind, _), job in planned.table.items() if (at, kind) == (layer, name)
        ]
        records = [r.record for r in found]
        row: dict[str, Any] = {"layer": layer, "dictionary": name, "seeds": len(found)}

        def mean(*path: Any) -> float | None:
            return _mean([_at(r, path) for r in records])

        for field in ("d_sae", "n_train", "l0_mean", "coherence", "q_star", "q_star_random", "q_star_ceiling",
                      "q_star_ceiling_any", "q_star_train", "q_star_euclidean", "pursuit", "unused"):  # fmt: skip
            row[field] = mean(field)
        for part in ("train", "held_out", "text"):
            for convention, short in _SHORT.items():
                for i, form in enumerate(_FORMS):
                    row[f"{short}_{part}{form}"] = mean("explained", part, convention, i)
            row[f"l0_mean_{part}"] = mean("l0_means", part)
            row[f"massive_{part}"] = mean("massive", part)
        row["l0"] = [round(_mean([r["l0"][i] for r in records])) for i in range(3)]  # type: ignore[arg-type]
        row["l0_train"] = [round(_mean([r["l0_train"][i] for r in records])) for i in range(3)]  # type: ignore[arg-type]
        for short in ("held_out", "text", "q_star"):
            for i, end in enumerate(("low", "high")):
                row[f"interval_{short}_{end}"] = _at(records[0], (f"interval_{short}", i))
        for short, certificate in (
            ("certified", "unique"),
            ("recoverable", "recoverable"),
            ("threshold_feasible",) * 2,
            ("threshold_exact",) * 2,
        ):
            row[short] = mean("certified", certificate)
        job = planned.agreement.get((layer, name))
        agreed = jobs.read(out, job).record if job else {}
        for field in ("mcc", "mmcs", "above_0.9", "overlap"):
            row[field] = agreed.get(field)
        for field in ("seconds_training", "seconds", "peak_memory_mb"):
            row[field] = _mean([r.cost.get(field) for r in found])
        rows.append(row)
    return rows


def _at(record: Any, path: Sequence[Any]) -> Any:
    for step in path:
        if record is None or (isinstance(record, Mapping) and step not in record):
            return None
        record = record[step]
    return record


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


def show(rows: Sequence[Mapping[str, Any]], form: str = "markdown", layer: bool = True) -> str:
    """The printed table of main rows, as "markdown" or "latex"."""
    columns = [c for c in SHOWN if any(r.get(c[0]) is not None for r in rows)]
    head = (["layer"] if layer else []) + [heading for _, heading in columns]
    body = []
    for r in rows:
        cells = [str(r["layer"])] if layer else []
        body.append(cells + [_cell(field, r.get(field)) for field, _ in columns])
    return layers_table(head, body, form)


def layers_table(head: Sequence[str], body: Sequence[Sequence[str]], form: str = "markdown") -> str:
    if form == "markdown":
        table = [head, ["---"] * len(head), *body]
        return "".join("| " + " | ".join(c.replace("|", r"\|") for c in line) + " |\n" for line in table)
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


def _cell(field: str, value: Any) -> str:
    if value is None:
        return ""
    if field == "dictionary":
        return LABELS[value]
    if isinstance(value, list):
        return "/".join(map(str, value))
    if field in ("seconds", "peak_memory_mb", "d_sae"):
        return f"{value:,.0f}"
    return f"{value:.2f}" if field == "mcc" else percent(value)


def save(folder: Path, name: str, rows: Sequence[Mapping[str, Any]], printed: Callable[[str], str]) -> None:
    """The rows whole as CSV, and as `printed` shows them in "markdown" and "latex"."""
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    fields = list(dict.fromkeys(field for row in rows for field in row))
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: "/".join(map(str, v)) if isinstance(v, list) else v for k, v in row.items()})
    for suffix, content in (("csv", text.getvalue()), ("md", printed("markdown")), ("tex", printed("latex"))):
        with _replacing(folder / f"{name}.{suffix}") as temporary:
            temporary.write_text(content, encoding="utf-8")
