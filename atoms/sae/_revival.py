"""New directions for dead latents: taken from what is left unexplained, and kept only where they pay."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from .. import _core
from .._config import serial_blas
from .._rows import Pair, PairedRows, Rows
from ._model import Batch, Model
from ._settings import Settings

JUDGES = 4096  # rows at a time: half to find directions on, half to judge them on
FEWEST_JUDGES = 1024  # of one call of `partial_fit`
MOST = 1024  # directions tried at a time
NEAR = 8  # residuals whose mean a direction begins as
# a new latent has to gain this part of what an active latent gains at least: it has learned nothing yet
MARGIN = 0.25


def judging_rows(settings: Settings, rows: Rows | PairedRows) -> Any:
    """Raw rows for `Revival`, at random."""
    rng = np.random.default_rng([*settings.seed, 4])
    assert rows.n is not None
    return rows.take(np.sort(rng.choice(rows.n, min(rows.n, 2 * JUDGES), replace=False)))


def worth(a: np.ndarray, D: np.ndarray, rest: np.ndarray, price: Any = 0.0) -> np.ndarray:
    """Which latents lower the squared error by more than their price, each after those before it.

    Parameters
    ----------
    a : ndarray (n, s)
        Activations.
    D : ndarray (s, d)
        Unit directions.
    rest : ndarray (n, d)
        What is unexplained; the latents that are worth it take their part of it away.
    price : float or ndarray (s,)

    Returns
    -------
    ndarray (s,) of bool
    """
    kept = np.zeros(len(D), bool)
    prices = np.broadcast_to(price, len(D))
    for j, column in enumerate(np.ascontiguousarray(a.T)):
        on = np.flatnonzero(column)
        z = column[on]
        kept[j] = len(on) and z @ (2 * (rest[on] @ D[j]) - z) > prices[j]
        if kept[j]:
            rest[on] -= np.outer(z, D[j])
    return kept


class _Latents(NamedTuple):
    """Where x.E exceeds `start`, an activation is ``scale x.E + bias``. D (n, d_out) is of unit norm; an autoencoder's
    E is D."""

    D: np.ndarray
    E: np.ndarray
    start: np.ndarray
    scale: np.ndarray
    bias: np.ndarray

    def activations(self, x: np.ndarray) -> np.ndarray:
        p = x @ self.E.T
        return np.where(p > self.start, np.maximum(self.scale * p + self.bias, 0), 0)


class _Cost(NamedTuple):
    """What an active latent costs: for each activation, and for each unit of it. `floor`: the least z that counts."""

    each: float
    unit: float
    floor: float


class Revival:
    """Gives dead latents new directions where these lower the error of other rows by more than they cost.

    Parameters
    ----------
    rows : ndarray (n, d_in) or Pair
        Of the training space, a transcoder's of both sides. Each time some are taken to find directions, and others to judge them.
    """

    def __init__(self, settings: Settings, model: Model, rows: np.ndarray | Pair) -> None:
        self.settings, self.model, self.rows = settings, model, rows

    def __call__(self, ctx: Any, step: int, dead: np.ndarray, l1: float) -> float:
        """Revive those of the `dead` that pay; the share of the tried ones that did. l1: ReLU's coefficient.

        BatchTopK's threshold for inference has to be up to date.
        """
        rng = np.random.default_rng([*self.settings.seed, 3, step])
        half = min(len(self.rows), JUDGES) // 2
        order = rng.permutation(len(self.rows))
        with serial_blas():
            x, rest, _ = self._unexplained(ctx, np.sort(order[:half]))
            n = min(len(dead), MOST, int(np.count_nonzero(rest.any(axis=1))))
            if not n:
                return 0.0
            others, judged, codes = self._unexplained(ctx, np.sort(order[half : 2 * half]))
            cost = self._cost(others, judged, codes, l1)
            new = self._fitted(x, rest, self._readers(x, rest, _neighbours(rng, rest, n)), cost.floor)
            a = new.activations(others)
            price = MARGIN * cost.each * np.count_nonzero(a, axis=0) + cost.unit * a.sum(axis=0)
            gain = (a * (2 * judged @ new.D.T - a)).sum(axis=0) - price
            best = np.argsort(-gain)[: np.count_nonzero(gain > 0)]
            kept = best[worth(a[:, best], new.D[best], judged, price[best])]
        self._reset(ctx, rng.permutation(dead)[: len(kept)], _Latents(*(part[kept] for part in new)))
        return len(kept) / n

    def _unexplained(self, ctx: Any, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, sp.csr_array]:
        """Rows less the decoder's bias, what is unexplained of them, and their codes; a transcoder's rows as they are."""
        if isinstance(self.rows, Pair):
            both = self.rows[index]
            codes = self.model.encode(ctx, Batch(both.x))
            return both.x, both.y - self.model.rebuild(ctx, both.x, codes), codes
        x = self.rows[index]
        codes = self.model.encode(ctx, Batch(x))
        return x - self.model.get("b_dec"), x - self.model.decode(ctx, codes), codes

    def _readers(self, x: np.ndarray, rest: np.ndarray, near: np.ndarray) -> np.ndarray:
        """Directions to begin from: the mean of some residuals, a transcoder's that of their rows."""
        return _unit((x if self.model.transcodes else _unit(rest))[near].mean(axis=1))

    def _cost(self, x: np.ndarray, rest: np.ndarray, codes: sp.csr_array, l1: float) -> _Cost:
        """By the least active latent of each sample, which a new one takes the place of; ReLU: by its penalty."""
        if self.settings.activation == "relu":
            return _Cost(0.0, 2 * l1, 0.0)
        full = np.flatnonzero(np.diff(codes.indptr))
        if not len(full):
            return _Cost(0.0, 0.0, 0.0)
        values, start = codes.data, codes.indptr
        least = np.array([start[i] + values[start[i] : start[i + 1]].argmin() for i in full])
        z, D = values[least], self.model.get("W_dec")[codes.indices[least]]
        gain = float((z * (z + 2 * np.einsum("ij,ij->i", rest[full], D))).mean())
        return _Cost(max(gain, 0.0), 0.0, 0.0 if self.settings.activation == "jumprelu" else float(z.mean()))

    def _fitted(self, x: np.ndarray, rest: np.ndarray, E: np.ndarray, floor: float) -> _Latents:
        """Thresholds at which each fires as often as the average latent; from there on what explains most."""
        s = self.settings
        share = 1 - s.target_l0 / s.d_sae
        p = x @ E.T
        D = _unit((p > np.quantile(p, share, axis=0)).T.astype(np.float32) @ rest)  # of where it would fire
        if not self.model.transcodes:
            E = D
            p = x @ E.T
        start = np.quantile(p, share, axis=0).clip(min=0).astype(np.float32)
        on = p > start
        n = np.maximum(on.sum(axis=0), 1)
        want = np.where(on, rest @ D.T, 0)
        scale, bias = np.ones_like(start), floor - start
        if s.activation == "jumprelu":
            p = np.where(on, p, 0)
            bias = np.clip((want - p).sum(axis=0) / n, -start, 0) if s.tied else np.zeros_like(start)
        else:  # the threshold is a bias
            p = np.where(on, p - start, 0)
            want -= floor * on
        if not s.tied:
            scale = np.clip((p * want).sum(axis=0) / np.maximum((p * p).sum(axis=0), 1e-30), 0.01, 1)
            bias = np.zeros_like(start) if s.activation == "jumprelu" else floor - scale * start
        return _Latents(D, E, start, scale.astype(np.float32), bias.astype(np.float32))

    def _reset(self, ctx: Any, latents: np.ndarray, new: _Latents) -> None:
        thresholds = (
            new.scale * new.start + new.bias if self.settings.activation == "jumprelu" else 0 * new.start
        )
        rows, readers, scales, thresholds = (
            np.ascontiguousarray(a, np.float32) for a in (new.D, new.E, new.scale, thresholds)
        )
        _core.sae_reset(
            ctx,
            self.model.handle,
            idx=latents,
            rows=rows,
            scales=scales,
            thresholds=thresholds,
            readers=readers if self.model.transcodes else None,
        )
        biases = self.model.get("b_enc")
        biases[latents] = new.bias
        self.model.set("b_enc", biases)


def _neighbours(rng: np.random.Generator, rest: np.ndarray, n: int) -> np.ndarray:
    """The nearest neighbours, by their residuals, of each of n samples: several will use a direction of them all."""
    norm = np.linalg.norm(rest, axis=1)
    chosen = rng.choice(len(rest), n, replace=False, p=norm / norm.sum())
    unit = _unit(rest)
    near, m = unit[chosen] @ unit.T, min(NEAR, len(unit))
    return np.argpartition(-near, m - 1, axis=1)[:, :m]


def _unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30))
