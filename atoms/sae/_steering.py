"""Steps of training, and what steers them: learning rate, sparsity on its target, dead latents."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from .. import _core
from ._model import Batch, Model
from ._rate import Rate
from ._revival import JUDGES, Revival
from ._settings import Settings

# what the core changes of `Control`, in its order
STEERED = ("price", "shift", "l1", "press", "cut", "row", "revive")
ROW_LIMIT = 4.0  # of the usual |error| |row|, beyond which a row's gradients are scaled down


@dataclasses.dataclass
class Control:
    """What a run steers by, and the seconds it has taken. A file keeps it, and training goes on from it."""

    price: float = 0.0  # of an active latent ("jumprelu"): lambda of the objective
    shift: float = 0.0  # of all thresholds in the next step ("jumprelu")
    l1: float = 0.0  # coefficient ("relu"), on the whole,
    press: float = 0.0  # and the logarithm of what it is multiplied with in the next step
    cut: float = 0.0  # threshold for inference ("batchtopk")
    row: float = 0.0  # a row's usual |error| |row|: those far above it are held to a multiple
    revive: float = 0.0  # step before which no latent is revived,
    pause: float = 1.0  # and how many times longer than usual the wait for it was
    spent: float = 0.0  # seconds in steps

    def publish_cut(self, model: Model) -> None:
        """BatchTopK's inference threshold: the running mean of the lowest active z of a batch."""
        if model.activation == "batchtopk":
            model.set("threshold", np.full(model.d_sae, self.cut, np.float32))


class Steering:
    """Takes a model through its steps; the core changes its control by each step's figures."""

    def __init__(
        self, settings: Settings, model: Model, control: Control, rate: Rate, revival: Revival | None
    ) -> None:
        self.settings, self.model, self.control, self.rate = settings, model, control, rate
        self.revival = revival

    def take(self, ctx: Any, first: int, steps: int, batch: Batch) -> dict[str, Any]:
        """Steps from number `first` on, each with as many rows of the batch; the last one's figures."""
        size, end, step = len(batch) // steps, first + steps, first
        while True:
            rest = batch if step == first else batch.part((step - first) * size)
            done, stats = self._take(ctx, step, end - step, rest)
            if not np.isfinite(stats["squared_error"]):
                return stats
            step += done
            self._revive(ctx, step - 1)
            if step == end:
                return stats

    def _take(self, ctx: Any, first: int, steps: int, batch: Batch) -> tuple[int, dict[str, Any]]:
        """As many of these steps as there are until latents are to be revived: how many, and the last one's figures."""
        s, c = self.settings, self.control
        wait = c.pause * self._wait() if self.revival is not None and self.rate.revives(first) else 0.0
        c.revive = max(c.revive, self._wait())
        control = np.array([getattr(c, name) for name in STEERED])
        try:
            taken: tuple[int, dict[str, Any]] = _core.sae_train(
                ctx,
                self.model.handle,
                batch.X,
                np.array([self.rate(step) for step in range(first, first + steps)], np.float32),
                control,
                float(s.target_l0),
                s.k,
                fixed_l1=s.l1_coefficient is not None,
                row_multiple=ROW_LIMIT,
                wait=wait,
                aux_k=s.aux_k,
                dead_after=self._dead_window(),
                aux_coefficient=float(s.aux_coefficient),
                index=batch.rows,
                shift=batch.shift,
                scale=batch.scale,
                **_target(batch),
            )
        finally:  # before a step that failed or was interrupted there may have been others
            for name, value in zip(STEERED, control.tolist(), strict=True):
                setattr(c, name, value)
        return taken

    # ------------------------------------------------------------ dead latents

    def _dead_window(self) -> int:
        """Samples without firing after which a latent counts as dead; 0: none ever does."""
        samples = self.settings.dead_after * self.settings.d_sae / self.settings.target_l0
        return int(min(samples, np.iinfo(np.int64).max // 2))

    def dead(self) -> np.ndarray:
        """Numbers of the latents that are dead, or with ``dead_after=0`` would be by default."""
        window = self._dead_window() or int(100 * self.settings.d_sae / self.settings.target_l0)
        return np.flatnonzero(self.model.get("last_fired") <= self.model.samples - window)

    def _wait(self) -> float:
        """Steps from one revival to the next."""
        return max(self._dead_window(), 2 * JUDGES) / self.settings.batch_size

    def _revive(self, ctx: Any, step: int) -> None:
        """Once in a while; where few of those that were tried paid, half as often the next time."""
        c = self.control
        if self.revival is None or step < c.revive or not self.rate.revives(step):
            return
        dead = self.dead()
        if len(dead):
            c.publish_cut(self.model)
            share = self.revival(ctx, step, dead, c.l1)
            c.pause = 1.0 if share > 0.05 else 2 * c.pause
        c.revive = step + c.pause * self._wait()


def _target(batch: Batch) -> dict[str, Any]:
    """What a transcoder's step rebuilds, as the core asks for it."""
    y = batch.target
    if y is None:
        return {}
    return {"target": y.X, "target_index": y.rows, "target_shift": y.shift, "target_scale": y.scale}
