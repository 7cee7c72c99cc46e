"""Steps of training, one autoencoder's or several's over the same batches; their history and checkpoints."""

from __future__ import annotations

import dataclasses
import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from .._checks import as_number, check_count
from .._config import context
from .._files import as_path
from .._progress import progress_bar
from .._rows import (
    BlockRows,
    BlockSampler,
    Pair,
    PairedRows,
    Rows,
    RowSampler,
    StreamRows,
    StreamSampler,
    held_out,
    rows_of,
)
from .._without import check_massive, within, without_massive
from ._calibration import calibrate
from ._checkpoints import write
from ._model import Batch, blocks
from ._rate import Rate
from ._revival import Revival
from ._saving import Trained
from ._settings import Settings
from ._space import Kept, TrainingSpace
from ._steering import Steering

PART = 65536  # rows that `partial_fit` shuffles at a time
KEPT = 1 << 30  # bytes of whitened rows, of all metrics
CALL = 0.05  # seconds that the core takes steps before Python looks: others wait so long for their turn
COPIED = 1 << 26  # bytes of rows of several batches that are copied for one call


class Training(Protocol):
    """What `train` needs of a run: an autoencoder's is `Run`."""

    @property
    def space(self) -> TrainingSpace: ...
    @property
    def settings(self) -> Any: ...  # with `max_steps`
    @property
    def path(self) -> Any: ...  # of the checkpoint, or None
    @property
    def save(self) -> Callable[[Any], None]: ...  # writes it
    @property
    def steps(self) -> int: ...  # done
    def until(self, step: int) -> int: ...
    def advance(self, first: int, steps: int, batch: Batch, val: Any, calibrated: bool = False) -> None: ...
    def end(self, seen: int, last: int) -> None: ...
    def check_model(self, step: int) -> None: ...
    def progress(self) -> dict[str, str]: ...


class TrainingDiverged(ArithmeticError):
    """The loss or the model became non-finite."""


def latest(values: Sequence[float]) -> float | None:
    """The last one that is not NaN. Asked at each step, so it must not look at all of them."""
    return next((v for v in reversed(values) if not math.isnan(v)), None)


@dataclasses.dataclass
class Run:
    """One autoencoder's part in `train`: `trained` changes from step to step, and can be used after each."""

    settings: Settings
    trained: Trained
    num_threads: int | None
    callback: Callable[[dict[str, Any]], None] | None  # with a step's figures
    path: str | os.PathLike[str] | None  # of the checkpoint
    save: Callable[[Any], None]  # writes it
    rate: Rate | None = None  # None: fit's
    judges: np.ndarray | Pair | None = (
        None  # rows of the training space for `Revival`; None: no latent is revived
    )
    asks: int = 1  # the callback, for each multiple of so many steps, and for each record

    def __post_init__(self) -> None:
        self.ctx = context(self.num_threads)
        self.space, self.model, self.control, self.history = self.trained[:4]
        self.rate = Rate(self.settings) if self.rate is None else self.rate
        revival = None if self.judges is None else Revival(self.settings, self.model, self.judges)
        self.steering = Steering(self.settings, self.model, self.control, self.rate, revival)

    def until(self, step: int) -> int:
        """The first step, of those from this one on, after which there is more to do than to take the next."""
        stops = [self._every] if self.callback is None else [self._every, self.asks]
        return max(step, min(self.steering.rate.last, *(-(-step // every) * every for every in stops)))

    @property
    def _every(self) -> int:
        """Steps from one record to the next."""
        return max(1, self.settings.max_steps // 200)

    def advance(self, first: int, steps: int, batch: Batch, val: Any, calibrated: bool = False) -> None:
        """Steps from number `first` on, none beyond `until`, and the last one's record.

        `val` has held-out rows in the training space; the last step of all may calibrate on it.
        """
        started = time.perf_counter()
        try:
            with self.model.turns.writing():
                stats = self.steering.take(self.ctx, first, steps, batch)
        except ValueError as error:
            if not batch.finite():
                raise
            # x is finite, so b_dec is what diverged
            raise self._diverged(self.model.steps + 1, "the loss became inf") from error
        step = first + steps - 1
        if not math.isfinite(stats["squared_error"]):
            raise self._diverged(self.model.steps, f"the loss became {stats['squared_error']}")
        self.control.spent += time.perf_counter() - started
        last = step == self.steering.rate.last
        recorded = step % self._every == 0 or last
        if recorded:
            self._look(step, stats, val, last)
        if last and calibrated and val is not None:
            self._calibrate(val)
        if last and step >= 20 and self.history["explained_variance"][-1] < 0:
            self._warn()
        if self.callback is not None and (recorded or step % self.asks == 0):
            self.callback({"step": step, "learning_rate": self.steering.rate(step), **stats})

    def _look(self, step: int, stats: dict[str, Any], val: Any, last: bool) -> None:
        """The record of a step; of held-out rows, every tenth time."""
        held_out = np.nan, np.nan
        self.control.publish_cut(self.model)
        if val is not None and (step % max(1, self.settings.max_steps // 20) == 0 or last):
            held_out = self._held_out(val)
        self._record(step, stats, held_out)

    def check_model(self, step: int) -> None:
        """A step of finite loss can leave weights that are not: they must not become a checkpoint or a result."""
        name = self.model.nonfinite()
        if name is not None:
            raise self._diverged(step, f"{name} became non-finite")

    def _calibrate(self, val: np.ndarray | Pair) -> None:
        """Thresholds for L0 on held-out rows of the training space; their figures are then those of the result."""
        if self.model.activation not in ("jumprelu", "batchtopk"):
            return
        x = val.x if isinstance(val, Pair) else val
        batches = lambda: (Batch(x[rows]) for rows in blocks(len(x)))
        try:
            calibrate(self.ctx, self.model, self.control, batches, len(val), float(self.settings.target_l0))
        except ValueError as error:
            warnings.warn(f"X_val: thresholds are not calibrated on it: {error}", stacklevel=6)
            return
        self.history["explained_variance_val"][-1], self.history["l0_val"][-1] = self._held_out(val)

    @property
    def steps(self) -> int:
        """Steps done."""
        return self.model.steps

    def end(self, seen: int, last: int) -> None:
        """It was seen after a step that there are rows for so many steps in all."""
        self.steering.rate.end(seen, last)

    def progress(self) -> dict[str, str]:
        """What the progress bar shows."""
        h = self.history
        shown = {"loss": f"{h['loss'][-1]:.4g}"} if h["loss"] else {}
        held_out = latest(h["explained_variance_val"])
        if held_out is not None:
            shown["EV held-out"] = f"{held_out:.4f}"
            shown["L0 held-out"] = f"{latest(h['l0_val']):.1f}"
        if h["l0"]:
            shown |= {"L0": f"{h['l0'][-1]:.1f}", "dead": str(h["dead"][-1])}
        return shown

    def _warn(self) -> None:
        warnings.warn(
            f"the autoencoder explains {self.history['explained_variance'][-1]:.3g} of the last batch's variance, less "
            "than its mean would: train longer, lower learning_rate, or look for rows of massive norm in X",
            stacklevel=6,
        )

    def _diverged(self, step: int, what: str) -> TrainingDiverged:
        path, rate = self.path, self.steering.rate(step)
        saved = f"; the last good checkpoint is {os.fspath(path)}" if path and os.path.exists(path) else ""
        return TrainingDiverged(
            f"{what} at step {step} with learning rate {rate:.3g}{saved}; lower learning_rate"
        )

    def _record(self, step: int, stats: dict[str, Any], held_out: tuple[float, float]) -> None:
        total = stats["total_variance"]
        values = {
            "step": step,
            "samples": self.model.samples,
            "seconds": self.control.spent,
            "loss": stats["squared_error"] + stats["penalty"],
            "explained_variance": 1 - stats["squared_error"] / total if total > 0 else np.nan,
            "explained_variance_val": held_out[0],
            "l0": stats["l0"],
            "l0_val": held_out[1],
            "dead": len(self.steering.dead()),
            "learning_rate": self.steering.rate(step),
        }
        for key, value in values.items():
            self.history[key].append(value)

    def _held_out(self, val: np.ndarray | Pair) -> tuple[float, float]:
        """Explained variance, centred, and L0 of rows of the training space."""
        residual, active = 0.0, 0
        x, t = (val.x, val.y) if isinstance(val, Pair) else (val, val)
        for rows in blocks(len(t)):
            codes = self.model.encode(self.ctx, Batch(x[rows]))
            e = t[rows].astype(np.float64) - self.model.rebuild(self.ctx, x[rows], codes)
            residual += float((e * e).sum())
            active += codes.nnz
        total = float(((t - t.mean(axis=0, dtype=np.float64)) ** 2).sum())
        return 1 - residual / total if total > 0 else np.nan, active / len(t)


def paired(X: Any, target: Any = None) -> Rows | BlockRows | StreamRows | PairedRows:
    """Rows to train on, with those of the target beside them where there is one."""
    rows = rows_of(X)
    return rows if target is None else PairedRows(rows, rows_of(target, "target"))


def training_rows(
    X: Any, X_val: Any, massive: str | float, target: Any = None, target_val: Any = None
) -> tuple[Any, Any, int]:
    """The rows to train on, those held out, and how many massive ones of X were dropped.

    ValueError where there are too few, or they differ.
    """
    multiple, rows = check_massive(massive), paired(X, target)
    if rows.n is not None and rows.n < 2:
        raise ValueError(f"X: expected at least 2 samples, got n_samples = {rows.n}")
    val = _held_out_rows(rows, X_val, target_val)
    rows, dropped, limit = without_massive(rows, multiple)
    return rows, None if val is None else within(val, limit, "X_val", rows.widths), dropped


def _held_out_rows(rows: Any, X_val: Any, target_val: Any) -> np.ndarray | Pair | None:
    both = isinstance(rows, PairedRows)
    if target_val is not None and (X_val is None or not both):
        raise ValueError(f"target_val: needs {'X_val' if both else 'target'} beside it")
    if X_val is None:
        return None
    if not isinstance(rows, PairedRows):
        return held_out(X_val, rows)
    if target_val is None:
        raise ValueError("X_val: with a target, pass what is to be rebuilt of it as target_val")
    val = Pair(held_out(X_val, rows.x), held_out(target_val, rows.y, "target_val", "target"))
    if len(val.x) != len(val.y):
        raise ValueError(
            f"target_val: expected a row for each of the {len(val.x)} of X_val, got {len(val.y)}"
        )
    return val


def shuffled_batches(n: int, batch_size: int, seed: Sequence[int]) -> list[np.ndarray | None]:
    """Numbers of the rows of batches of about equal size, in random order; None, all of them, where they fit one."""
    count = -(-n // batch_size)
    if count <= 1:
        return [None]
    return [*np.array_split(np.random.default_rng(seed).permutation(n), count)]


def check_labels(y: Any, X: Any) -> None:
    """ValueError for held-out rows in the place of y, where they stood once: y has as many rows as X."""
    tables = [
        part for part in (y if isinstance(y, (list, tuple)) else [y]) if len(getattr(part, "shape", ())) == 2
    ]
    if not tables:
        return
    n, given = rows_of(X).n, sum(part.shape[0] for part in tables)
    if given != n:
        raise ValueError(
            f"y: expected a label for each of the {n} rows, got {given} rows; pass held-out rows as X_val="
        )


def check_between(callback: Any, minutes: Any, steps: Any, paths: Any, name: str) -> None:
    """What is done between the steps of `train`: the function that is called, and when checkpoints are written to `paths`, the
    argument `name`."""
    if callback is not None and not callable(callback):
        raise TypeError(f"callback: expected a function of (model, record) or None, got {callback!r}")
    if not as_number(minutes, "checkpoint_minutes") >= 0:
        raise ValueError(f"checkpoint_minutes: expected a number of at least 0, got {minutes!r}")
    for path in paths:
        if path is not None:
            as_path(path, name)
    if steps is not None:
        check_count(steps, "checkpoint_steps")
        if all(path is None for path in paths):
            raise ValueError(
                "checkpoint_steps: nothing is written where no path is given; pass checkpoint=, too"
            )


def train(
    runs: Sequence[Training],
    sampler: Any,  # of rows, of one side or of two
    val: np.ndarray | Pair | None,
    *,
    calibrated: bool,
    verbose: bool,
    checkpoint_minutes: float,
    checkpoint_steps: int | None,
    what: str = "SAE",
) -> int:
    """All steps of all runs, which see the same batches; each is mapped to each training space once.

    The number of the last step is returned: rows that come one after the other may end before the steps do.
    """
    first, steps = runs[0].steps, int(runs[0].settings.max_steps)
    sampler.skip(first)
    batches = _Batches(runs, sampler, val)
    saved = time.perf_counter()
    with progress_bar(what, steps, "step", verbose=verbose, first=first) as bar:
        step, pace = first, 0.0  # seconds that a step takes
        while step < steps:
            ending = sampler.ending()
            if ending is not None and ending[1] < steps:
                steps = ending[1]
                for run in runs:
                    run.end(*ending)
                continue
            most = _most(runs, step, steps, checkpoint_steps)
            count = batches.draw(steps - first, min(most, int(CALL / pace) if pace else 1))
            began = time.perf_counter()
            for run in runs:
                batch, held = batches.of(run)
                run.advance(step + 1, count, batch, held, calibrated)
            pace = (time.perf_counter() - began) / count
            step += count
            bar.update(count)
            bar.set_postfix(runs[0].progress(), refresh=False)
            due = checkpoint_steps is not None and step % checkpoint_steps == 0
            if due or step == steps or time.perf_counter() - saved > 60 * checkpoint_minutes:
                _checkpoint(runs, step)
                saved = time.perf_counter()
    return steps


def _most(runs: Sequence[Training], step: int, steps: int, checkpoint_steps: int | None) -> int:
    """Steps after this one until there is more to do than to take the next."""
    end = min(steps, *(run.until(step + 1) for run in runs))
    if checkpoint_steps is not None:
        end = min(end, step - step % checkpoint_steps + checkpoint_steps)
    return end - step


class _Batches:
    """The batches that all runs see, and the rows held out, in the training space of each."""

    def __init__(
        self, runs: Sequence[Training], sampler: RowSampler | BlockSampler | StreamSampler, val: Any
    ) -> None:
        # one for each metric; without a metric, all runs have the same mean and scale
        spaces = {id(run.space.metric): run.space for run in runs}
        self._sampler, self._batches = sampler, dict[int, Batch]()
        self._vals = {key: None if val is None else space.to_space(val) for key, space in spaces.items()}
        self._kept = {key: Kept(space, KEPT // len(spaces)) for key, space in spaces.items()}
        by_number = sampler.fixed and all(space.by_number for space in spaces.values())
        size = 4 * runs[0].space.d * sampler.batch_size
        self._most = np.inf if by_number else COPIED // size

    def draw(self, steps: int, most: int) -> int:
        """The next ones, at most so many, and how many they are; `steps` are drawn in all."""
        sampler = self._sampler
        raw, index = sampler.draw(int(max(1, min(most, self._most))))
        again = sampler.fixed and steps * sampler.batch_size > len(raw)
        self._batches = {key: kept.batch(raw, index, again) for key, kept in self._kept.items()}
        return len(raw if index is None else index) // sampler.batch_size

    def of(self, run: Training) -> tuple[Batch, Any]:
        """Those that were drawn last, one after the other, and the rows held out."""
        key = id(run.space.metric)
        return self._batches[key], self._vals[key]


def _checkpoint(runs: Sequence[Training], step: int) -> None:
    for run in runs:  # all of them first: if one has diverged, no file is written
        run.check_model(step)
    saves = [(run.path, run.save) for run in runs if run.path is not None]
    if saves:
        write(saves)
