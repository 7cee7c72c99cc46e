"""The coordinates in which an autoencoder is trained, and the way there and back for rows and for weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from .._arrays import as_array
from .._checks import Sent
from .._config import one_blas_thread
from .._frames import without_frames
from .._rows import Pair, PairedRows, Rows, columns
from ._model import WEIGHTS, Batch, Model, blocks


def check_metric(metric: Any, d: int) -> None:
    """ValueError unless the metric is None, or fitted to d features."""
    if metric is None:
        return
    if not hasattr(metric, "whitener_"):
        raise ValueError("metric: expected a fitted AtomicInnerProduct; call metric.fit(X) first")
    if metric.n_features_in_ != d:
        raise ValueError(
            f"metric: fitted on {metric.n_features_in_} features, but X has {d}; "
            "fit it on activations of the same layer"
        )


class TrainingSpace(Sent):
    """``t(x) = (x - mean) S^(1/2)`` under a metric, else ``t(x) = scale (x - mean)``.

    Parameters
    ----------
    d : int
        Features of a row.
    metric : AtomicInnerProduct or None
        Fitted. It subtracts its own mean, where it is centred.
    mean : ndarray (d,), optional
        Subtracted where there is no metric. float64, but rounded to float32, so that mapping a batch in
        float32 subtracts exactly this mean.
    scale : float, or ndarray (sites,)
        Multiplied with where there is no metric; rounded to float32 too. A crosscoder's has a number for each site.
    widths : sequence of int, optional
        Of a crosscoder's sites.

    Attributes
    ----------
    target : TrainingSpace or None
        A transcoder's, for the rows that it rebuilds.
    """

    def __init__(
        self,
        d: int,
        metric: Any,
        mean: np.ndarray | None = None,
        scale: Any = 1.0,
        widths: Sequence[int] | None = None,
    ) -> None:
        self.d, self.metric, self.scale = d, metric, scale
        self.widths = None if widths is None else tuple(widths)
        self.target: TrainingSpace | None = None
        self.mean: np.ndarray = np.zeros(d) if mean is None else mean

    @classmethod
    @one_blas_thread
    def fit(
        cls, rows: Rows | PairedRows, metric: Any, name: str = "X", widths: Sequence[int] | None = None
    ) -> TrainingSpace:
        """The metric's, or the one in which the mean square of a coordinate of these rows is 1, at each site."""
        if isinstance(rows, PairedRows):
            assert isinstance(rows.x, Rows) and isinstance(rows.y, Rows)
            space = cls.fit(rows.x, metric)
            space.target = cls.fit(rows.y, None, "target")
            return space
        if metric is not None:
            return cls(rows.d, metric)
        parts = columns(widths or [rows.d])
        mean, square = np.zeros(rows.d), np.zeros(len(parts))
        for part in blocks(rows.n):
            block = rows.slice(part.start, part.stop).astype(np.float64)
            if not np.isfinite(block).all():
                row = part.start + int(np.flatnonzero(~np.isfinite(block).all(axis=1))[0])
                raise ValueError(f"{name}: row {row} holds NaN or infinity; drop it first")
            if (largest := np.abs(block).max(initial=0)) > np.finfo(np.float32).max:
                raise ValueError(
                    f"{name}: holds values up to {largest:.3g}, beyond float32, in which atoms are trained; multiply "
                    f"{name} by a number that brings it nearer to 1"
                )
            mean += block.sum(axis=0)
            square += [float((block[:, of] * block[:, of]).sum()) for of in parts]
        mean /= rows.n
        names = [name] if widths is None else [f"{name}, site {i}" for i in range(len(parts))]
        scales = [
            _scale(one, float(s / rows.n), mean[of]) for one, s, of in zip(names, square, parts, strict=True)
        ]
        about = mean.astype(np.float32).astype(np.float64)
        return cls(rows.d, None, about, scales[0] if widths is None else np.array(scales), widths)

    @property
    def by_number(self) -> bool:
        """Whether batches are numbers of raw rows, which the core maps as it reads them, and not copies."""
        return self.metric is None and self.widths is None

    @property
    def scales(self) -> np.ndarray:
        """The scale of each coordinate of a crosscoder (d,), float64."""
        assert self.widths is not None
        return np.repeat(self.scale, self.widths)

    def batch(self, x: np.ndarray | Pair, index: np.ndarray | None = None) -> Batch:
        """Raw activations as the core takes them: whitened here under a metric, else mapped by the core as it reads."""
        if isinstance(x, Pair):
            assert self.target is not None
            read = self.batch(x.x, index)
            return Batch(read.X, read.rows, read.shift, read.scale, self.target.batch(x.y, index))
        if self.by_number:
            return Batch(x, index, self.mean.astype(np.float32), self.scale)
        if self.metric is not None:
            return Batch(without_frames(self.metric, "whiten")(x if index is None else x[index]))
        # the core scales all coordinates alike, and sites have scales of their own
        return Batch(Batch(x, index, self.mean.astype(np.float32)).dense() * self.scales.astype(np.float32))

    def to_space(self, x: Any) -> Any:
        """Raw activations, of one side or a `Pair`, to the training space, float32."""
        if isinstance(x, Pair):
            assert self.target is not None
            return Pair(self.to_space(x.x), self.target.to_space(x.y))
        return self.batch(x).dense()

    def maps(self) -> tuple[np.ndarray, Any, Any]:
        """(shift, forward, back) of t = (x - shift) forward and x = t back + shift, float64: matrices under a metric,
        sparse ones of several sites, else numbers; see `through`."""
        if self.metric is not None:
            m = self.metric
            return (m.mean_ if m.centered else np.zeros(self.d)), m.whitener_, m.unwhitener_
        if self.widths is not None:
            return self.mean, sp.diags_array(self.scales), sp.diags_array(1 / self.scales)
        return self.mean, np.array(self.scale), np.array(1 / self.scale)

    @one_blas_thread
    def fold(self, model: Model) -> dict[str, np.ndarray]:
        """The model's weights, made to apply to raw activations: ``x W_enc + b_enc``.

        That is also ``(x - center) W_enc + bias``, which loses nothing where the mean is large; center is that of the
        rows, whether the metric subtracts it or not.
        """
        shift, forward, _ = self.maps()
        to, _, back = (self.target or self).maps()
        center = (self.mean if self.metric is None else self.metric.mean_).astype(np.float32)
        W, D, b_enc = model.get("W_enc"), model.get("W_dec"), model.get("b_enc")
        b_dec, bias = model.get("b_dec").astype(np.float64), b_enc.copy()
        less = b_dec if self.target is None else 0.0  # a transcoder reads rows as they are
        W_enc = np.empty(W.shape[::-1], np.float32)
        # block by block: in float64 at once they would take twice the model's memory
        for block in blocks(len(W), 1024):
            E = W[block].astype(np.float64)
            W_enc[:, block] = through(forward, E.T)
            b_enc[block] -= E @ (through(shift, forward) + less)
            bias[block] -= E @ (through(shift - center, forward) + less)
            D[block] = through(D[block].astype(np.float64), back)
        folded = {
            "W_enc": W_enc,
            "b_enc": b_enc,
            "W_dec": D,
            "threshold": model.get("threshold"),
            "center": center,
            "bias": bias,
        }
        raw = through(b_dec, back) + to
        if model.skip:
            W_skip = through(through(forward, model.get("W_skip").astype(np.float64)), back)
            folded["W_skip"] = W_skip.astype(np.float32)
            raw = raw - shift @ W_skip
        return {**folded, "b_dec": raw.astype(np.float32)}

    @one_blas_thread
    def unfold(self, other: Any, d_sae: int, tied: bool, skip: bool = False) -> dict[str, np.ndarray]:
        """Weights in this space, from an autoencoder's for raw activations; decoder rows get unit norm.

        A transcoder's from a transcoder's, with a skip connection or without.
        """
        d, n = self.d, d_sae
        out = d if self.target is None else self.target.d
        shapes = {"W_enc": (d, n), "W_dec": (n, out), "b_enc": (n,), "b_dec": (out,), "threshold": (n,)}
        if skip:
            shapes["W_skip"] = (d, out)
        w = _weights_of(other, shapes, self.target is not None)
        _check_kind(other, self.target is not None, skip)
        shift, own, back = self.maps()
        to, forward, _ = (self.target or self).maps()
        D = through(w["W_dec"], forward)
        norm = np.linalg.norm(D, axis=1)
        norm[norm == 0] = 1
        E = through(back, w["W_enc"]).T * norm[:, None]
        apart = np.linalg.norm(E - D / norm[:, None]) / np.sqrt(len(D)) if tied else 0.0
        if apart > 0.01:
            raise ValueError(
                f"init: its encoder is not its decoder's transpose in the training space (they are {apart:.2g} "
                "apart, for rows of norm 1), as tied=True has it; set tied=False, or start from a tied autoencoder "
                "of the same metric"
            )
        raw = w["b_dec"] + shift @ w["W_skip"] if skip else w["b_dec"]
        b_dec = through(raw - to, forward)
        less = b_dec if self.target is None else 0.0
        b_enc = w["b_enc"] * norm + E @ (through(shift, own) + less)
        found = (E, D / norm[:, None], b_enc, b_dec, w["threshold"] * norm)
        unfolded: dict[str, np.ndarray] = {**dict(zip(WEIGHTS, found, strict=True))}
        if skip:
            unfolded["W_skip"] = through(through(back, w["W_skip"]), forward)
        return unfolded


def _scale(name: str, square: float, mean: np.ndarray) -> float:
    """What brings coordinates of this mean, of rows of this mean squared norm, to mean square 1 about it, as float32 has it."""
    variance = max(square - float(mean @ mean), 0.0) / len(mean)
    # what is below that share of the mean's square is rounding, and there is nothing to scale
    scale = 1.0 / np.sqrt(variance) if variance > 1e-24 * float(mean @ mean) else 1.0
    if not 1e-36 < scale < 1e36:
        raise ValueError(
            f"{name}: a coordinate's root mean square about the mean is {1 / scale:.3g}, beyond what float32 can "
            f"scale to 1; multiply {name} by a number that brings it nearer to 1"
        )
    return float(np.float32(scale))


def through(a: Any, b: Any) -> np.ndarray:
    """a b, where either may be a number that stands for so many times the unit matrix."""
    return np.asarray(a * b if 0 in (a.ndim, b.ndim) else a @ b)


def _weights_of(other: Any, shapes: dict[str, tuple[int, ...]], transcodes: bool) -> dict[str, np.ndarray]:
    """What a start gives, float64, as it must be."""
    missing = [name for name in shapes if getattr(other, name, None) is None]
    if missing:
        raise ValueError(
            f"init: expected {'a transcoder' if transcodes else 'an autoencoder'}, got "
            f"{type(other).__name__} without {missing[0]}"
        )
    w = {k: np.asarray(as_array(getattr(other, k), f"init: {k}"), np.float64) for k in shapes}
    for name, shape in shapes.items():
        if w[name].shape != shape:
            raise ValueError(f"init: expected {name} of shape {shape}, got {w[name].shape}")
        if not np.isfinite(w[name]).all():
            raise ValueError(f"init: {name} holds NaN or infinity")
    return w


def _check_kind(other: Any, transcodes: bool, skip: bool) -> None:
    """ValueError for a model that has more than an autoencoder's weights, or a transcoder's: it would be another without."""
    if getattr(other, "input_norm", "none") != "none":
        raise ValueError(f"init: normalises each sample ({other.input_norm}), which this class does not")
    skips = getattr(other, "W_skip", None) is not None
    if transcodes:
        if not getattr(other, "is_transcoder", False):
            raise ValueError(
                "init: is an autoencoder; with a target start from a transcoder, or leave init out"
            )
        if skips and not skip:
            raise ValueError("init: has a skip connection; set skip_connection=True, or leave init out")
        return
    if getattr(other, "is_transcoder", False) or skips:
        what = "a transcoder with a skip connection" if skips else "a transcoder"
        raise ValueError(
            f"init: is {what}, which rebuilds other activations than it reads; start from an autoencoder, "
            "or leave init out"
        )


class Kept:
    """Batches mapped to a training space, which keep what a metric has whitened from epoch to epoch.

    Whitening a row costs about what a step takes for it. It does not depend on other rows, so the bits are the same.

    Parameters
    ----------
    space : TrainingSpace
    most : int
        Bytes that may be kept.
    """

    def __init__(self, space: TrainingSpace, most: int) -> None:
        self.space, self.most = space, most
        self._rows = np.empty((0, 0), np.float32)
        self._known = np.empty(0, bool)

    def batch(self, raw: np.ndarray, index: np.ndarray | None, again: bool) -> Batch:
        """As `TrainingSpace.batch`; `again`: rows of `raw`, always the same, are drawn more than once."""
        if not again or index is None or self.space.metric is None or 4 * raw.size > self.most:
            return self.space.batch(raw, index)
        if len(self._known) != len(raw):
            self._rows, self._known = np.empty(raw.shape, np.float32), np.zeros(len(raw), bool)
        new = index[~self._known[index]]
        if len(new):
            self._rows[new] = self.space.batch(raw, new).X
            self._known[new] = True
        return Batch(self._rows, index)
