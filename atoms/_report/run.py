"""The report from its configuration: capture, plan, jobs, and what is written from their results."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import _config, _core
from .. import _plot as plot
from .._files import as_path
from .._old import old_keyword
from .._version import __version__
from . import cost, data, monosemanticity, writing
from . import jobs as _jobs
from .config import Config, load
from .plan import Plan, plan

__all__ = ["report"]


@old_keyword("progress", "verbose")
def report(
    config: Config | Mapping[str, Any] | str | Path = "smollm2",
    output: str | os.PathLike[str] = "report",
    *,
    jobs: int | None = None,
    threads: int = 1,
    client: Any = None,
    judge: Callable[..., Any] | None = None,
    verbose: bool = True,
    **changes: Any,
) -> Path:
    """The paper's tables and figures for a model, with controls, in a folder.

    Parameters
    ----------
    config : mapping, name or path
        "smollm2" (the default), "smollm2-small", "smollm2-paper", "gemma2-2b", "gemma2-9b", "llama3.1-8b", a TOML or
        JSON file, or a mapping of settings.
    output : path
        Folder. One that holds a killed run of the same configuration is taken up where it stopped.
    jobs : int, optional
        Processes; by default, the CPUs this process may use over `threads`.
    threads : int
        Of each job.
    client : dask.distributed.Client, optional
        Let its workers do the jobs; they must see `output` under the same path.
    judge : callable, optional
        Of monosemanticity, ``judge(examples, candidates) -> scores``: it sees a latent's strongest contexts (with
        ``tokens``, ``activations`` and ``focus``) and says of other contexts, the latent's activations hidden, how likely
        it fires there. By default one built on the model's own embeddings.
    verbose : bool
        Print the cost, and show progress bars.
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
    The cost is printed before anything starts; ``python -m atoms report --estimate`` stops there. Figures do not depend
    on `jobs`, `threads` or `client`; seconds and memory do.
    """
    config = load(config, **changes)
    plot.require()
    out = as_path(output, "output")
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"output: {out} is a file; name a folder")
    out.mkdir(parents=True, exist_ok=True)
    workers = jobs if jobs is not None else max(1, _config.available_cpus() // threads)
    if verbose:
        print(cost.estimate(config, workers=workers, threads=threads), file=sys.stderr)
    started = time.perf_counter()
    about = data.prepare(config, out / "data", verbose=verbose)
    planned = plan(config, about)
    run_jobs(planned, out, n_jobs=workers, threads=threads, client=client, verbose=verbose)
    judged = monosemanticity.judge_all(config, planned, out, judge=judge)
    writing.write_json(out / "config.json", config.as_dict())
    seconds = time.perf_counter() - started
    writing.write_json(out / "run.json", _environment(config, about, planned, out, seconds, workers, threads))
    return writing.write(config, about, planned, judged, out)


def run_jobs(planned: Plan, out: Path, **options: Any) -> None:
    """All jobs: first those that need no other's result, then the comparisons of seeds."""
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

    costs = [_jobs.read(out, job).cost for job in planned.every]
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
