"""Training curves in TensorBoard and Weights & Biases, through their own libraries.

A logger is a callback of `SparseAutoencoder.fit` and `fit_many`::

    with atoms.loggers.TensorBoard("runs") as log:
        atoms.fit_many(saes, X, X_val, callback=log)

It writes a step's figures every so many steps, and the number of dead latents, the held-out
explained variance and the held-out L0 at the steps where training records them (``SparseAutoencoder.history_``).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

from ._files import as_path

__all__ = ["TensorBoard", "WandB"]


def __dir__() -> list[str]:
    return __all__


def _autoencoders(figures: dict[str, Any]) -> dict[str, float]:
    values = {"loss": figures["squared_error"] + figures["penalty"]}
    values |= {name: figures[name] for name in ("l0", "learning_rate")}
    if figures["total_variance"] > 0:
        values["explained_variance"] = 1 - figures["squared_error"] / figures["total_variance"]
    return values


def _dictionarys(figures: dict[str, Any]) -> dict[str, float]:
    return {name: figures[name] for name in ("loss", "l0", "explained_variance")}


class _Logger:
    """A callback that turns steps into named numbers, which a subclass's `_write` passes on."""

    def __init__(self, every: int, label: Callable[[Any], str] | None) -> None:
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ValueError(f"every: expected a positive integer, got {every!r}")
        self.every, self.label = every, label

    def __call__(self, sae: Any, figures: dict[str, Any]) -> None:
        step = int(figures["step"])
        values: dict[str, float] = {}
        if step % self.every == 0 or step == sae.max_steps:
            values |= _autoencoders(figures) if "squared_error" in figures else _dictionarys(figures)
        history = sae.history_
        if history["step"] and history["step"][-1] == step:
            values["dead"] = history["dead"][-1]
            if not math.isnan(history["explained_variance_val"][-1]):
                values["explained_variance_val"] = history["explained_variance_val"][-1]
                if "l0_val" in history:
                    values["l0_val"] = history["l0_val"][-1]
        if values:
            self._write("" if self.label is None else self.label(sae), step, values)

    def _write(self, label: str, step: int, values: dict[str, float]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Write what is still held back. Nothing can be logged afterwards."""
        raise NotImplementedError

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class TensorBoard(_Logger):
    """Event files for TensorBoard, written by the `tensorboard` package; PyTorch is not needed.

    Parameters
    ----------
    log_dir : path
        Folder of the event files.
    every : int
        Steps between two entries.
    label : callable, optional
        The subfolder for an autoencoder, which TensorBoard shows as a run of its own, for `fit_many`:
        ``label=lambda sae: f"seed{sae.random_state}"``.

    Raises
    ------
    ImportError
        Where `tensorboard` is not installed.

    Examples
    --------
    >>> import os, tempfile, numpy as np, atoms
    >>> X = np.random.default_rng(0).standard_normal((500, 8)).astype("float32")
    >>> sae = atoms.SparseAutoencoder(16, target_l0=3, max_steps=20, verbose=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atoms.loggers.TensorBoard(folder) as log:
    ...         _ = sae.fit(X, callback=log)
    ...     len(os.listdir(folder))
    1
    """

    def __init__(
        self, log_dir: str | os.PathLike[str], *, every: int = 10, label: Callable[[Any], str] | None = None
    ) -> None:
        super().__init__(every, label)
        try:
            from tensorboard.summary import Writer  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError(
                "TensorBoard needs the tensorboard package: run `pip install tensorboard`"
            ) from error
        self.log_dir = os.fspath(as_path(log_dir, "log_dir"))
        self._Writer = Writer
        self._writers: dict[str, Any] = {}

    def _write(self, label: str, step: int, values: dict[str, float]) -> None:
        if label not in self._writers:
            self._writers[label] = self._Writer(os.path.join(self.log_dir, label))
        for name, value in values.items():
            self._writers[label].add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is still held back. Nothing can be logged afterwards."""
        for writer in self._writers.values():
            writer.close()


class WandB(_Logger):
    """A run of Weights & Biases, through the `wandb` package.

    Parameters
    ----------
    every : int
        Steps between two entries.
    label : callable, optional
        A prefix for an autoencoder's curves, for `fit_many`: ``label=lambda sae: f"l0={sae.target_l0:g}"``.
    run : wandb.Run, optional
        A run that was begun elsewhere; it is left open.
    **init
        Else the arguments of ``wandb.init``: project, name, mode ("offline" needs no account), id and
        resume to go on with the run of a resumed checkpoint.

    Raises
    ------
    ImportError
        Where `wandb` is not installed.
    """

    def __init__(
        self, *, every: int = 10, label: Callable[[Any], str] | None = None, run: Any = None, **init: Any
    ) -> None:
        super().__init__(every, label)
        if run is not None and init:
            raise ValueError(
                f"run: it has begun already, so {', '.join(init)} cannot be given; leave one of them out"
            )
        self._owns = run is None
        if run is None:
            try:
                import wandb  # pyright: ignore[reportMissingImports]
            except ImportError as error:
                raise ImportError("WandB needs the wandb package: run `pip install wandb`") from error
            run = wandb.init(**init)
        self.run = run

    def _write(self, label: str, step: int, values: dict[str, float]) -> None:
        self.run.log(
            {f"{label}/{name}" if label else name: value for name, value in values.items()}, step=step
        )

    def close(self) -> None:
        """Finish the run, unless it was begun elsewhere."""
        if self._owns:
            self.run.finish()
