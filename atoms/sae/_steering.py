"""A step of training, and what steers it: learning rate, sparsity on its target, dead latents."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from .. import _core
from .._config import one_blas_thread
from ._model import Batch, Model
from ._rate import Rate
from ._settings import Settings


@dataclasses.dataclass
class Control:
    """What a run steers by, and the seconds it has taken. A file keeps it, and training goes on from it."""

    price: float = 0.0  # of an active latent ("jumprelu"): lambda of the objective
    shift: float = 0.0  # of all thresholds in the next step ("jumprelu")
    l1: float = 0.0  # coefficient ("relu")
    cut: float = 0.0  # threshold for inference ("batchtopk")
    spent: float = 0.0  # seconds in steps

    def publish_cut(self, model: Model) -> None:
        """BatchTopK's inference threshold: the running mean of the lowest active z of a batch."""
        if model.activation == "batchtopk":
            model.set("threshold", np.full(model.d_sae, self.cut, np.float32))


class Steering:
    """Takes a model through its steps, and changes its control by each step's figures."""

    def __init__(self, settings: Settings, model: Model, control: Control, rate: Rate) -> None:
        self.settings, self.model, self.control, self.rate = settings, model, control, rate

    def step(self, ctx: Any, step: int, batch: Batch) -> dict[str, Any]:
        """Step number `step`; its figures."""
        s, c, rate, n = self.settings, self.control, self.rate(step), len(batch)
        window = self._dead_window()
        due = window and step % max(1, window // n) == 0 and self.rate.revives(step)
        resample = due and not s.aux_k and len(self.dead()) > 0
        err = np.empty((n, self.model.d_in), np.float32) if resample else None
        # thresholds of silent latents shrink by a factor e in the time of a quarter window
        factor = float(np.exp(-min(1.0, 4 * n / window))) if window else 1.0
        rise_after = self._rise_after() if window else 0
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
            l1_coefficient=c.l1,
            threshold_shift=c.shift,
            k=s.k,
            err=err,
            silent_after=window // 4,
            silent_factor=factor,
            rise_after=rise_after,
            rise=n / max(rise_after, 1),
            aux_k=s.aux_k,
            dead_after=window,
            aux_coefficient=float(s.aux_coefficient),
        )
        self._steer(stats)
        if err is not None:
            self._resample(ctx, step, batch.dense(), err)
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
            c.l1 *= float(np.exp(np.clip(0.1 * excess, -0.05, 0.05)))
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
            c.shift = float(np.clip(0.3 * (stats["l0"] - s.target_l0) / density, -0.05, 0.05))
        else:
            c.shift = 0.01 * float(np.sign(excess))
        if excess < -0.4:  # L0 is so low that most bands are empty and say nothing: all thresholds shrink
            self.model.set("threshold", self.model.get("threshold") * max(1 + excess, 0.1) ** 0.1)

    # ------------------------------------------------------------ dead latents

    def _dead_window(self) -> int:
        """Samples without firing after which a latent counts as dead; 0: none ever does."""
        return int(self.settings.dead_after * self.settings.d_sae / self.settings.target_l0)

    def _rise_after(self) -> int:
        """Samples without firing after which a latent's bias begins to rise, by one in as many samples again.

        Its z may be below zero in every sample, where a lower threshold is of no use.
        """
        batch = self.settings.batch_size
        return max(self._dead_window() // 4, int(0.03 * self.settings.max_steps * batch), 10 * batch)

    def dead(self) -> np.ndarray:
        """Numbers of the latents that are dead, or with ``dead_after=0`` would be by default."""
        window = self._dead_window() or int(1000 * self.settings.d_sae / self.settings.target_l0)
        return np.flatnonzero(self.model.get("last_fired") <= self.model.samples - window)

    @one_blas_thread
    def _resample(self, ctx: Any, step: int, batch: np.ndarray, err: np.ndarray) -> None:
        """Give dead latents directions of what is left unexplained.

        Each gets the mean residual of a random sample's nearest neighbours among the residuals, rather than
        one sample's, so that several samples will use it, and the threshold at which it fires as often as
        the average latent.
        """
        dead = self.dead()
        norm = np.linalg.norm(err, axis=1)
        if not len(dead) or not norm.sum() > 0:
            return
        s = self.settings
        rng = np.random.default_rng([*s.seed, 3, step])
        dead = rng.permutation(dead)[: np.count_nonzero(norm)]
        chosen = rng.choice(len(batch), len(dead), replace=False, p=norm / norm.sum())
        unit = -err / np.maximum(norm, 1e-30)[:, None]
        near = unit[chosen] @ unit.T
        m = min(8, len(batch))
        D = unit[np.argpartition(-near, m - 1, axis=1)[:, :m]].mean(axis=1)
        D /= np.maximum(np.linalg.norm(D, axis=1, keepdims=True), 1e-30)
        z = (batch - self.model.get("b_dec")) @ D.T
        start = np.quantile(z, 1 - s.target_l0 / s.d_sae, axis=0).clip(min=0)
        # where any step may be the last, new latents fire no more often than others from the first one on
        bias = self.rate.lasting and s.activation != "jumprelu"
        # encoder scale: least squares of the residual on the new latent's activations, over the samples where it fires
        fired = np.where(z > start, z - start if bias else z, 0.0)
        power = (fired * fired).sum(axis=0)
        scale = np.clip(-(fired * (err @ D.T)).sum(axis=0) / np.maximum(power, 1e-30), 0.01, 1.0)
        if not s.tied:
            start = scale * start
        rows, scales, thresholds = (np.ascontiguousarray(a, np.float32) for a in (D, scale, start))
        _core.sae_reset(ctx, self.model.handle, idx=dead, rows=rows, scales=scales, thresholds=thresholds)
        if bias:
            b_enc = self.model.get("b_enc")
            b_enc[dead] = -thresholds
            self.model.set("b_enc", b_enc)
