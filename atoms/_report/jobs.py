"""Jobs: named computations with results on disk, run by joblib, resumed by the files that are there.

A job is a function of `cells` and its parameters. Its result is one ``.npz`` file, named by a hash of
both and written beside itself before it is renamed: a run that was killed finds what was finished,
and a job that two workers do ends with one file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import _config
from .._files import replacing
from .._progress import progress_bar
from . import cells
from .scoring import peak_memory, plain

__all__ = ["Job", "Result", "read", "run"]

_FORMAT = 1  # raise it where a cell's meaning changes: old results are then not taken up
_RECORD = "record.json"


@dataclasses.dataclass(frozen=True)
class Job:
    """One computation: ``cell`` names a function of `cells`, and ``params`` (JSON) alone decide its result."""

    cell: str
    params: dict[str, Any]
    label: str = ""

    @property
    def key(self) -> str:
        """Name of its result: equal for jobs of equal cell and parameters."""
        text = json.dumps([_FORMAT, self.cell, self.params], sort_keys=True)
        return f"{self.cell}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def __hash__(self) -> int:
        return hash(self.key)


@dataclasses.dataclass(frozen=True)
class Result:
    """What a job found: figures, arrays, and ``cost`` (seconds, CPU seconds, peak memory in MB), which alone may
    differ from run to run."""

    record: dict[str, Any]
    arrays: dict[str, np.ndarray]
    cost: dict[str, float]


def _path(folder: Path, job: Job) -> Path:
    return folder / "cells" / f"{job.key}.npz"


def read(folder: str | os.PathLike[str], job: Job) -> Result:
    """The result of a finished job."""
    with np.load(_path(Path(folder), job)) as file:
        about = json.loads(str(file[_RECORD]))
        arrays = {name: file[name] for name in file.files if name != _RECORD}
    return Result(about["record"], arrays, about["cost"])


def finished(folder: str | os.PathLike[str], job: Job) -> bool:
    """Whether a job's result is there; a file that a full disk or a crash left broken does not count."""
    path = _path(Path(folder), job)
    return path.exists() and zipfile.is_zipfile(path)


class _Progress:
    """How far a job is, in a file that the parent shows: works for processes and other machines."""

    def __init__(self, path: Path, label: str):
        self.path, self.label, self.last = path, label, 0.0

    def __call__(self, share: float, figures: str = "") -> None:
        now = time.monotonic()
        if now - self.last > 1:
            self.last = now
            with contextlib.suppress(OSError):  # the file only shows progress: nothing depends on it
                self.path.write_text(f"{self.label} {100 * share:.0f}% {figures}".rstrip(), encoding="utf-8")


@contextlib.contextmanager
def _peak() -> Iterator[Callable[[], float]]:
    """Peak memory of a block in MB; of the whole process where Linux does not let us reset its peak."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        yield peak_memory
        return

    def peak() -> float:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
        return peak_memory()

    yield peak


def execute(job: Job, folder: str, data_folder: str, threads: int) -> str:
    """Do one job, unless its result is there; its key."""
    from threadpoolctl import threadpool_limits

    path = _path(Path(folder), job)
    if finished(folder, job):
        return job.key
    path.parent.mkdir(parents=True, exist_ok=True)
    progress = _Progress(path.with_suffix(f".{os.getpid()}.progress"), job.label or job.key)
    before = _config.get_num_threads()
    _config.set_num_threads(threads)
    try:
        with threadpool_limits(threads), _peak() as peak:
            started, used = time.perf_counter(), time.process_time()
            record, arrays = cells.CELLS[job.cell](job.params, Path(folder), Path(data_folder), progress)
            cost = {
                "seconds": time.perf_counter() - started,
                "cpu_seconds": time.process_time() - used,
                "peak_memory_mb": peak(),
            }
        cost |= record.pop("cost", {})
        text = json.dumps({"params": job.params, "record": plain(record), "cost": plain(cost)})
        with replacing(path) as temporary, open(temporary, "wb") as file:
            content: dict[str, Any] = {_RECORD: np.array(text)} | arrays
            np.savez_compressed(file, **content)
    finally:
        _config.set_num_threads(before)
        progress.path.unlink(missing_ok=True)
    return job.key


def run(
    jobs: Sequence[Job],
    folder: str | os.PathLike[str],
    data_folder: str | os.PathLike[str],
    *,
    n_jobs: int = 1,
    threads: int = 1,
    client: Any = None,
    verbose: bool = True,
    title: str = "jobs",
) -> None:
    """Do what is not done yet, in any order.

    Parameters
    ----------
    jobs : sequence of Job
        Equal ones are done once.
    folder, data_folder : path
        Of results, and of the activations; with `client`, on a disk that all workers see.
    n_jobs : int
        Processes (joblib's loky); 1 works here, without joblib.
    threads : int
        Of each job. Results do not depend on either.
    client : dask.distributed.Client, optional
        Its workers do the jobs, by joblib's Dask backend. A job whose worker dies is done by another.
    verbose : bool
        A bar over jobs, with how far the running ones are.
    title : str
        What the bar is called.

    Raises
    ------
    ImportError
        joblib is missing and `n_jobs` or `client` asks for it.
    """
    folder, data_folder = str(Path(folder).resolve()), str(Path(data_folder).resolve())
    left = [job for job in dict.fromkeys(jobs) if not finished(folder, job)]
    for stale in Path(folder).glob("cells/*.progress"):
        stale.unlink(missing_ok=True)
    with _bar(len(set(jobs)), len(set(jobs)) - len(left), Path(folder), verbose, title) as bar:
        if n_jobs == 1 and client is None:
            for job in left:
                execute(job, folder, data_folder, threads)
                bar.update()
            return
        if not left:
            return
        try:
            import joblib
        except ImportError as error:
            raise ImportError(
                "several workers need joblib: run `pip install joblib` or set jobs to 1"
            ) from error
        backend = {"backend": "loky"} if client is None else {"backend": "dask", "client": client}
        # one job at a time to each worker: if it dies, only the job it was at is lost
        with joblib.parallel_config(**backend):
            one_by_one: dict[str, Any] = {"batch_size": 1, "return_as": "generator_unordered"}
            parallel = joblib.Parallel(n_jobs=n_jobs if client is None else -1, **one_by_one)
            for _ in parallel(joblib.delayed(execute)(job, folder, data_folder, threads) for job in left):
                bar.update()


@contextlib.contextmanager
def _bar(total: int, done: int, folder: Path, verbose: bool, title: str) -> Iterator[Any]:
    with progress_bar(title, total, "job", verbose=verbose, first=done) as bar:
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(1.0):
                said = []
                for path in sorted(folder.glob("cells/*.progress")):
                    with contextlib.suppress(OSError):  # finished meanwhile
                        said.append(path.read_text(encoding="utf-8"))
                bar.set_postfix_str("; ".join(filter(None, said)), refresh=True)

        watcher = threading.Thread(target=watch, daemon=True)
        if verbose:
            watcher.start()
        try:
            yield bar
        finally:
            stop.set()
            if verbose:
                watcher.join()
