"""The report from its configuration: capture, plan, jobs, and what is written from their results."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import _config, _core, plot
from .._files import replacing as _replacing
from .._version import __version__
from . import cost, data, monosemanticity, writing
from . import jobs as _jobs
from .config import ATOMS_OF, TRAINED, Config, load
from .jobs import Job
from .scoring import plain

__all__ = ["Plan", "plan", "report"]

_SEEDLESS = ("neurons", "neurons-all", "pca", "pca-all", "memorizing", "kmeans", "shuffled", "random-model")
_LATENTS = ("atoms", "euclidean", "relu", "topk", "batchtopk", "neurons", "pca", "random", "kmeans")


@dataclasses.dataclass(frozen=True)
class Plan:
    """The jobs of a report, by what they are for.

    ``shift``: layer -> job. ``table``: (layer, dictionary, seed) -> job. ``agreement``: (layer, dictionary)
    -> job. ``grid``: (dictionary, |M|, |D|) -> job. ``frontier``: rows of (dictionary, what varies, value, job).
    """

    shift: dict[int, Job]
    table: dict[tuple[int, str, int], Job]
    agreement: dict[tuple[int, str], Job]
    grid: dict[tuple[str, int, int], Job]
    frontier: list[tuple[str, str, Any, Job]]

    @property
    def first(self) -> list[Job]:
        """Jobs that need no other's result; further seeds last."""
        seeds = {seed: n for n, seed in enumerate(dict.fromkeys(seed for *_, seed in self.table))}
        table = sorted(self.table.items(), key=lambda item: seeds[item[0][2]])
        ours = [job for (_, _, seed), job in table if not seeds[seed]]
        others = [job for (_, _, seed), job in table if seeds[seed]]
        return [*self.shift.values(), *ours, *self.grid.values(), *(row[3] for row in self.frontier), *others]


def plan(config: Config, about: Mapping[str, Any]) -> Plan:
    """What is to be done, from the configuration and what `data.prepare` found."""
    d_in, key = about["d_in"], about["key"]
    base: dict[str, Any] = {
        "data": key,
        "width": float(config.width),
        "l0": float(config.l0),
        "samples": config.samples,
        "batch_size": config.batch_size,
        "seed": config.seeds[0],
        "n_train": None,
        "tied": False,
        "centered": False,
        "shrinkage": None,
        "eval_rows": config.eval_rows,
        "hold_l0": True,
        "full": False,
        "keep": False,
        "probe": None,
    }

    def one(label: str, layer: int, name: str, **changes: Any) -> Job:
        params = base | {"layer": layer, "dictionary": name} | changes
        if name not in (*TRAINED, *ATOMS_OF):  # fitted whole: what concerns training does not decide it
            params |= {"samples": 0, "batch_size": 0, "hold_l0": False}
        return Job("dictionary", params, f"{label} {name}, layer {layer}")

    names = [n for n in config.dictionaries if n != "random-model" or "random/train" in about["parts"]]
    mono, first = config.monosemanticity, config.seeds[0]
    table = {}
    for layer in config.layers:
        for name in names:
            for seed in (first,) if name in _SEEDLESS else config.seeds:
                probe = None
                if mono.layer == layer and seed == first and name in _LATENTS and about["words"]:
                    probe = {
                        "latents": mono.latents,
                        "examples": mono.examples,
                        "candidates": mono.candidates,
                        "seed": first,
                    }
                keep = len(config.seeds) > 1 and name not in _SEEDLESS
                table[layer, name, seed] = one(
                    "table", layer, name, seed=seed, full=True, keep=keep, probe=probe
                )
    agreement = {}
    for layer, name in dict.fromkeys((layer, name) for layer, name, _ in table):
        inputs = [
            job.key
            for (at, kind, _), job in table.items()
            if (at, kind) == (layer, name) and job.params["keep"]
        ]
        if len(inputs) > 1:
            params = {"data": key, "layer": layer, "prefix": "", "shuffled": False, "inputs": inputs}
            agreement[layer, name] = Job("agreement", params, f"seeds {name}, layer {layer}")

    grid, g = {}, config.grid
    if g.layer is not None:
        n_rows = about["rows"]["train"][str(g.layer)]
        for m in (m * g.unit * d_in for m in g.data):
            if m > n_rows:
                continue
            for n in (n * g.unit for n in g.widths):
                samples = int(max(g.epochs * m, g.min_samples))
                changes = {
                    "n_train": m,
                    "width": float(n),
                    "l0": float(g.l0),
                    "samples": samples,
                    "batch_size": 256,
                    "hold_l0": False,
                }
                grid["atoms", m, n * d_in] = one("grid", g.layer, "atoms", **changes)
                grid["memorizing", m, n * d_in] = one(
                    "grid", g.layer, "memorizing", n_train=m, memories=n * d_in
                )

    frontier: list[tuple[str, str, Any, Job]] = []
    f = config.frontier
    if f.layer is not None:
        at: int = f.layer

        def point(name: str, what: str, value: Any, **changes: Any) -> None:
            if (at, name, first) in table and not changes:
                job = table[at, name, first]
            else:
                job = one("frontier", at, name, **changes)
            frontier.append((name, what, value, job))

        n_rows = about["rows"]["train"][str(f.layer)]
        for name in f.dictionaries:
            for l0 in f.l0:
                if l0 <= d_in:
                    point(name, "L0", l0, **({} if l0 == config.l0 else {"l0": float(l0)}))
        for name in f.dictionaries:
            for width in f.widths if name in (*TRAINED, "random") else ():
                point(name, "width", width, width=float(width))
            for share in f.data if name in TRAINED else ():
                point(name, "data", share, n_train=int(share * n_rows))
        changes_of: dict[str, dict[str, Any]] = {
            "tied": {"tied": True},
            "centered": {"centered": True},
            "ledoit_wolf": {"shrinkage": "ledoit_wolf"},
            "shrunk": {"shrinkage": 0.1},
        }
        for name in f.variants:
            point("atoms", "variant", name, **changes_of[name])
        for name in ("memorizing", "kmeans"):
            if (f.layer, name, first) in table:
                point(name, "L0", 1)
    shift_layers = [
        layer for layer in about["layers"] if config.shift_layers == "all" or layer in config.shift_layers
    ]
    shift = {
        layer: Job(
            "shift", {"data": key, "layer": layer, "train": layer in config.layers}, f"angles, layer {layer}"
        )
        for layer in shift_layers
    }
    return Plan(shift, table, agreement, grid, frontier)


def report(
    config: Config | Mapping[str, Any] | str | Path = "smollm2",
    output: str | os.PathLike[str] = "report",
    *,
    jobs: int | None = None,
    threads: int = 1,
    client: Any = None,
    judge: Callable[..., Any] | None = None,
    progress: bool = True,
    **changes: Any,
) -> Path:
    """The paper's tables and figures for a model, with controls, in a folder.

    Parameters
    ----------
    config : Config, mapping, name or path
        As `atoms.report.load` takes it: "smollm2" (the default), "smollm2-small", "gemma2-2b",
        "gemma2-9b", "llama3.1-8b", a TOML or JSON file, or a mapping.
    output : path
        Folder. One that holds a killed run of the same configuration is taken up where it stopped.
    jobs : int, optional
        Processes; by default, the CPUs this process may use over `threads`.
    threads : int
        Of each job.
    client : dask.distributed.Client, optional
        Let its workers do the jobs; they must see `output` under the same path.
    judge : callable, optional
        Of monosemanticity, see `atoms.report.monosemanticity.score`; by default one built on the
        model's own embeddings.
    progress : bool
    **changes
        Settings that replace those of `config`, for instance ``texts="folder"``.

    Returns
    -------
    Path
        ``report.md`` in the folder. Beside it ``tables`` (CSV, Markdown, LaTeX), ``figures`` (PNG, PDF
        and the arrays behind each), ``pages`` (HTML), ``config.json`` and ``run.json`` (versions, seeds,
        hardware, cost), ``cells`` (results of the jobs), ``data`` (activations).

    Raises
    ------
    ValueError, OSError, ImportError
        Settings that do not exist, files that are missing; the message says what to do. Nothing
        that was finished is lost.

    Notes
    -----
    The cost (`atoms.report.estimate`) is printed before anything starts. Figures do not depend on
    `jobs`, `threads` or `client`; seconds and memory do.
    """
    config = load(config, **changes)
    plot.require()
    out = Path(output)
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"output: {out} is a file; name a folder")
    out.mkdir(parents=True, exist_ok=True)
    workers = jobs if jobs is not None else max(1, _config._available_cpus() // threads)
    if progress:
        print(cost.estimate(config, workers=workers, threads=threads), file=sys.stderr)
    started = time.perf_counter()
    about = data.prepare(config, out / "data", progress=progress)
    planned = plan(config, about)
    run_jobs(planned, out, n_jobs=workers, threads=threads, client=client, progress=progress)
    judged = monosemanticity.judge_all(config, planned, out, judge=judge)
    _write_json(out / "config.json", config.as_dict())
    seconds = time.perf_counter() - started
    _write_json(out / "run.json", _environment(config, about, planned, out, seconds, workers, threads))
    return writing.write(config, about, planned, judged, out)


def run_jobs(planned: Plan, out: Path, **options: Any) -> None:
    _jobs.run(planned.first, out, out / "data", title="jobs", **options)
    _jobs.run(list(planned.agreement.values()), out, out / "data", title="seeds", **options)


def _environment(
    config: Config,
    about: Mapping[str, Any],
    planned: Plan,
    out: Path,
    seconds: float,
    workers: int,
    threads: int,
) -> dict[str, Any]:
    import scipy

    every = {job.key: job for job in [*planned.first, *planned.agreement.values()]}.values()
    costs = [_jobs.read(out, job).cost for job in every]
    versions = {
        "atoms": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }
    for name in ("torch", "transformers", "joblib", "matplotlib"):
        if name in sys.modules:
            versions[name] = sys.modules[name].__version__
    return {
        "versions": versions,
        "seeds": list(config.seeds),
        "hardware": {
            "machine": platform.machine(),
            "cpu": _cpu(),
            "cpus": os.cpu_count(),
            "system": platform.system(),
        },
        "core": _core.build_info(),
        "workers": workers,
        "threads_per_job": threads,
        "seconds_this_run": seconds,
        "jobs": len(costs),
        "seconds_jobs": sum(c["seconds"] for c in costs),
        "cpu_seconds_jobs": sum(c["cpu_seconds"] for c in costs),
        "seconds_capture": about["seconds"],
        "peak_memory_mb": max(c["peak_memory_mb"] for c in costs),
        "data": about["counts"],
    }


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _write_json(path: Path, value: Any) -> None:
    with _replacing(path) as temporary:
        temporary.write_text(json.dumps(plain(value), indent=1) + "\n", encoding="utf-8")
