"""Results as tables: HTML where a notebook shows them, aligned text in a terminal."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Shown", "Table", "cell"]


def cell(value: Any) -> str:
    """A value as a table shows it: numbers in four digits, whole ones with thousands set apart, arrays by shape."""
    if value is None or (isinstance(value, (float, np.floating)) and np.isnan(value)):
        return "–"
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return f"{value:,}"
    if isinstance(value, (float, np.floating)):
        return f"{value:.4g}"
    if isinstance(value, np.ndarray):
        return f"{' x '.join(f'{n:,}' for n in value.shape)} {value.dtype}"
    return str(value)


class Table(NamedTuple):
    """What is shown of a result; the first cell of a row says what stands in it."""

    title: str
    rows: Sequence[Sequence[Any]]
    head: Sequence[str] = ()  #: over the columns, where there are several
    note: str = ""  #: a line below

    def text(self) -> str:
        """The first column flush left, the others right."""
        lines = [[cell(c) for c in row] for row in ([self.head] if self.head else []) + list(self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines)]
        ranged = [[c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(r, widths))] for r in lines]
        return "\n".join(
            [self.title, *("  ".join(r).rstrip() for r in ranged), *([self.note] if self.note else [])]
        )

    def html(self) -> str:
        """No colours and no script: it suits light and dark notebooks, also those that are not trusted."""
        left, parts = ' style="text-align: left"', [f"<strong>{html.escape(self.title)}</strong>", "<table>"]
        if self.head:
            parts.append(
                "<thead><tr>" + "".join(f"<th>{html.escape(h)}</th>" for h in self.head) + "</tr></thead>"
            )
        parts.append("<tbody>")
        for name, *values in self.rows:
            cells = "".join(f"<td>{html.escape(cell(v))}</td>" for v in values)
            parts.append(f"<tr><th{left}>{html.escape(cell(name))}</th>{cells}</tr>")
        parts.append("</tbody></table>")
        if self.note:
            parts.append(f"<small>{html.escape(self.note)}</small>")
        return f"<div>{''.join(parts)}</div>"


class Shown:
    """What a notebook shows as a table: a subclass says what stands in it."""

    def _table(self) -> Table:
        raise NotImplementedError

    def _repr_html_(self) -> str:
        return self._table().html()
