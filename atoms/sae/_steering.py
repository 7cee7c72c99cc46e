"""A step of training, and what steers it: learning rate, sparsity on its target, dead latents."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from .. import _core
from ._model import Batch, Model
from ._rate import Rate
from ._revival import JUDGES, Revival
from ._settings import Settings

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


def _within(value: float, most: float) -> float:
    """np.clip, which for one number takes as long as a region of sixteen threads."""
    return min(max(value, -most), most)


class Steering:
    """Takes a model through its steps, and changes its control by each step's figures."""

    def __init__(
        self, settings: Settings, model: Model, control: Control, rate: Rate, revival: Revival | None
    ) -> None:
        self.settings, self.model, self.control, self.rate = settings, model, control, rate
        self.revival = revival

    def step(self, ctx: Any, step: int, batch: Batch) -> dict[str, Any]:
        """Step number `step`; its figures."""
        s, c, rate = self.settings, self.control, self.rate(step)
        stats: dict[str, Any] = _core.sae_step(
            ctx,
            self.model.handle,
            batch.X,
            index=batch.rows,
            shift=batch.shift,
            scale=batch.scale,
            learning_rate=rate,
            threshold_rate=rate,
            l0_coefficient=c.price,
            l1_coefficient=c.l1 * float(np.exp(c.press)) if c.l1 else 0.0,
            threshold_shift=c.shift,
            k=s.k,
            aux_k=s.aux_k,
            dead_after=self._dead_window(),
            aux_coefficient=float(s.aux_coefficient),
            row_limit=ROW_LIMIT * c.row,
            **_target(batch),
        )
        c.row = stats["row_scale"] if c.row == 0 else 0.95 * c.row + 0.05 * stats["row_scale"]
        self._steer(stats)
        self._revive(ctx, step)
        return stats

    # ---------------------------------------------------------------- sparsity

    def _steer(self, stats: dict[str, Any]) -> None:
        """Bring L0 towards its target, by what the activation has for that."""
        c, s = self.control, self.settings
        if s.activation == "jumprelu":
            self._steer_thresholds(stats)
        elif s.activation == "relu" and s.l1_coefficient is None:
            if c.l1 == 0:
                c.l1 = 0.01 * max(stats["squared_error"], 1e-12) / s.target_l0
            excess = stats["l0"] / s.target_l0 - 1
            # L0 drifts for as long as the coefficient is off: by the sum over all steps alone, it would swing for ever
            c.press = _within(3 * excess, 2.0)
            c.l1 *= float(np.exp(_within(0.1 * excess, 0.05)))
            # beyond 2 |error| it shrinks every activation, and only has further to come back
            c.l1 = min(c.l1, 2 * float(np.sqrt(stats["squared_error"])))
        elif s.activation == "batchtopk":
            c.cut = stats["lowest"] if c.cut == 0 else 0.95 * c.cut + 0.05 * stats["lowest"]

    def _steer_thresholds(self, stats: dict[str, Any]) -> None:
        """The price at which the thresholds' gradients balance, and the Newton step common to them."""
        c, s = self.control, self.settings
        excess = stats["l0"] / s.target_l0 - 1
        if stats["band"] > 0:
            gain = max(stats["band_gain"], 0.0)
            c.price = gain if c.price == 0 else 0.95 * c.price + 0.05 * gain
            density = stats["band"] / s.bandwidth
            c.shift = _within(0.3 * (stats["l0"] - s.target_l0) / density, 0.05)
        else:
            c.shift = 0.01 * float(np.sign(excess))
        if excess < -0.4:  # L0 is so low that most bands are empty and say nothing: all thresholds shrink
            self.model.set("threshold", self.model.get("threshold") * max(1 + excess, 0.1) ** 0.1)

    # ------------------------------------------------------------ dead latents

    def _dead_window(self) -> int:
        """Samples without firing after which a latent counts as dead; 0: none ever does."""
        return int(self.settings.dead_after * self.settings.d_sae / self.settings.target_l0)

    def dead(self) -> np.ndarray:
        """Numbers of the latents that are dead, or with ``dead_after=0`` would be by default."""
        window = self._dead_window() or int(100 * self.settings.d_sae / self.settings.target_l0)
        return np.flatnonzero(self.model.get("last_fired") <= self.model.samples - window)

    def _revive(self, ctx: Any, step: int) -> None:
        """Once in a while; where few of those that were tried paid, half as often the next time."""
        s, c, window = self.settings, self.control, self._dead_window()
        wait = max(window, 2 * JUDGES) / s.batch_size
        if self.revival is None or step < max(wait, c.revive) or not self.rate.revives(step):
            return
        dead = self.dead()
        if len(dead):
            c.publish_cut(self.model)
            share = self.revival(ctx, step, dead, c.l1)
            c.pause = 1.0 if share > 0.05 else 2 * c.pause
        c.revive = step + c.pause * wait


def _target(batch: Batch) -> dict[str, Any]:
    """What a transcoder's step rebuilds, as the core asks for it."""
    y = batch.target
    if y is None:
        return {}
    return {"target": y.X, "target_index": y.rows, "target_shift": y.shift, "target_scale": y.scale}
