"""Which jobs a report needs, from its configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from .config import Config
from .jobs import Job
from .kinds import KINDS, VARIANTS

__all__ = ["Plan", "plan"]

Table = dict[tuple[int, str, int], Job]
Cells = dict[tuple[str, int, int], Job]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The jobs of a report, by what they are for.

    ``shift``: layer -> job. ``table``: (layer, dictionary, seed) -> job. ``agreement``: (layer, dictionary)
    -> job. ``grid``: layer -> (dictionary, |M|, |D|) -> job. ``frontier``: rows of (dictionary, what varies, value, job).
    """

    shift: dict[int, Job]
    table: Table
    agreement: dict[tuple[int, str], Job]
    grid: dict[int, Cells]
    frontier: list[tuple[str, str, Any, Job]]

    @property
    def first(self) -> list[Job]:
        """Jobs that need no other's result; further seeds last."""
        seeds = {seed: n for n, seed in enumerate(dict.fromkeys(seed for *_, seed in self.table))}
        table = sorted(self.table.items(), key=lambda item: seeds[item[0][2]])
        ours = [job for (_, _, seed), job in table if not seeds[seed]]
        others = [job for (_, _, seed), job in table if seeds[seed]]
        cells = [job for grid in self.grid.values() for job in grid.values()]
        return [*self.shift.values(), *ours, *cells, *(row[3] for row in self.frontier), *others]

    @property
    def every(self) -> list[Job]:
        """All jobs, equal ones once."""
        return list({job.key: job for job in [*self.first, *self.agreement.values()]}.values())


def plan(config: Config, about: Mapping[str, Any]) -> Plan:
    """What is to be done, from the configuration and what `data.prepare` found."""
    table = _table(config, about)
    return Plan(
        shift=_shift(config, about),
        table=table,
        agreement=_agreement(table, about["key"]),
        grid={layer: _grid(config, about, layer) for layer in config.grid.layers},
        frontier=_frontier(config, about, table),
    )


def _fit(config: Config, about: Mapping[str, Any], label: str, layer: int, name: str, **changes: Any) -> Job:
    """One dictionary: the table's settings but for `changes`.

    The parameters decide under which file name a result is found again: a new one, or a value of another
    type, makes all results of earlier versions void.
    """
    params: dict[str, Any] = {
        "data": about["key"],
        "layer": layer,
        "dictionary": name,
        "width": float(config.width),
        "l0": float(config.l0),
        "samples": config.samples,
        "batch_size": config.batch_size,
        "seed": config.seeds[0],
        "n_train": config.train_rows,
        "tied": False,
        "centered": False,
        "shrinkage": None,
        "eval_rows": config.eval_rows,
        "hold_l0": config.hold_l0,
        "full": False,
        "keep": False,
        "probe": None,
    } | changes
    if not KINDS[name].iterative:  # fitted, not trained: training settings must not enter its key
        params |= {"samples": 0, "batch_size": 0, "hold_l0": False}
    return Job("dictionary", params, f"{label} {name}, layer {layer}")


def _shift(config: Config, about: Mapping[str, Any]) -> dict[int, Job]:
    jobs = {}
    for layer in about["layers"]:
        if config.shift_layers == "all" or layer in config.shift_layers:
            params = {"data": about["key"], "layer": layer, "train": layer in config.layers}
            jobs[layer] = Job("shift", params, f"angles, layer {layer}")
    return jobs


def _table(config: Config, about: Mapping[str, Any]) -> Table:
    there = "random/train" in about["parts"]  # activations on disk come without a random model's
    names = [n for n in config.dictionaries if KINDS[n].rows != "random model" or there]
    mono, first = config.monosemanticity, config.seeds[0]
    probe = {
        "latents": mono.latents,
        "examples": mono.examples,
        "candidates": mono.candidates,
        "seed": first,
    }
    table = {}
    for layer in config.layers:
        for name in names:
            kind = KINDS[name]
            for seed in config.seeds if kind.seeded else (first,):
                probed = mono.layer == layer and seed == first and kind.judged and about["words"]
                table[layer, name, seed] = _fit(
                    config,
                    about,
                    "table",
                    layer,
                    name,
                    seed=seed,
                    full=True,
                    keep=len(config.seeds) > 1 and kind.seeded,
                    probe=dict(probe) if probed else None,
                )
    return table


def _agreement(table: Table, key: str) -> dict[tuple[int, str], Job]:
    jobs = {}
    for layer, name in dict.fromkeys((layer, name) for layer, name, _ in table):
        inputs = [
            job.key
            for (at, kind, _), job in table.items()
            if (at, kind) == (layer, name) and job.params["keep"]
        ]
        if len(inputs) > 1:
            params = {"data": key, "layer": layer, "prefix": "", "shuffled": False, "inputs": inputs}
            jobs[layer, name] = Job("agreement", params, f"seeds {name}, layer {layer}")
    return jobs


def _grid(config: Config, about: Mapping[str, Any], layer: int) -> Cells:
    grid: Cells = {}
    g, d_in = config.grid, about["d_in"]
    n_rows = about["rows"]["train"][str(layer)]
    for m in (m * g.unit * d_in for m in g.data):
        if m > n_rows:
            continue
        for width in (n * g.unit for n in g.widths):
            n = width * d_in
            grid["atoms", m, n] = _fit(
                config,
                about,
                "grid",
                layer,
                "atoms",
                n_train=m,
                width=float(width),
                l0=float(g.l0),
                samples=int(max(g.epochs * m, g.min_samples)),
                batch_size=256,
                hold_l0=False,
            )
            grid["memorizing", m, n] = _fit(config, about, "grid", layer, "memorizing", n_train=m, memories=n)
    return grid


def _frontier(config: Config, about: Mapping[str, Any], table: Table) -> list[tuple[str, str, Any, Job]]:
    layer, first = config.frontier.layer, config.seeds[0]
    if layer is None:
        return []
    found = []
    for name, what, value, changes in _variations(config, about["d_in"], about["rows"]["train"][str(layer)]):
        job = None if changes else table.get((layer, name, first))
        if job is None:
            job = _fit(config, about, "frontier", layer, name, **changes)
        found.append((name, what, value, job))
    for name, kind in KINDS.items():
        if kind.codes == "one" and (layer, name, first) in table:
            found.append((name, "L0", 1, table[layer, name, first]))
    return found


def _variations(config: Config, d_in: int, n_rows: int) -> Iterator[tuple[str, str, Any, Mapping[str, Any]]]:
    """The frontier's points: dictionary, what varies, its value, and the job's parameters that this changes."""
    f = config.frontier
    for name in f.dictionaries:
        for l0 in f.l0:
            if l0 <= d_in:
                yield name, "L0", l0, {} if l0 == config.l0 else {"l0": float(l0)}
    for name in f.dictionaries:
        for width in f.widths if "width" in KINDS[name].swept else ():
            yield name, "width", width, {"width": float(width)}
        for share in f.data if "data" in KINDS[name].swept else ():
            yield name, "data", share, {"n_train": int(share * n_rows)}
    for name in f.variants:
        yield "atoms", "variant", name, VARIANTS[name].changes
