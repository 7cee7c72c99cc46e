"""Sparse autoencoders, trained by the C core on whitened activations."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from tqdm.auto import tqdm

from . import _core
from ._config import context
from ._estimator import Estimator
from ._files import check_tensor, load_tensors, reading, save_tensors
from ._rows import BlockRows, BlockSampler, Rows, RowSampler, is_shards, rows_of

__all__ = ["SparseAutoencoder", "TrainingDiverged", "fit_many"]

_ACTIVATIONS = ("jumprelu", "relu", "topk", "batchtopk")
_SCREENS = ("auto", "float32", "int8", "int16")
_W_ENC, _W_DEC, _B_ENC, _B_DEC, _THRESHOLD = range(5)
_LAST_FIRED, _COUNTERS = 15, 16
_FIELDS = (
    "W_enc W_dec b_enc b_dec threshold W_enc_m W_dec_m b_enc_m b_dec_m threshold_m "
    "W_enc_v W_dec_v b_enc_v b_dec_v threshold_v last_fired counters"
).split()
_CONTROL = ("price", "shift", "l1", "cut", "spent")  # what a run steers by, and the seconds it has taken
_BLOCK = 8192  # rows encoded at a time


class _Batch(NamedTuple):
    """Rows in the training space, said without moving them: ``scale (X[rows] - shift)``."""

    X: np.ndarray
    rows: np.ndarray | None
    shift: np.ndarray | None
    scale: float

    def __len__(self) -> int:
        return len(self.X if self.rows is None else self.rows)

    def dense(self) -> np.ndarray:
        x = (self.X if self.rows is None else self.X[self.rows]).astype(np.float32, copy=False)
        return x if self.shift is None else (x - self.shift) * np.float32(self.scale)


def _spread(rows: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the rows, from all over."""
    return rows[:: -(-len(rows) // most)]


def _slices(n: int, size: int = 1024) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, n, size))


class TrainingDiverged(ArithmeticError):
    """The loss or the model became non-finite."""


class SparseAutoencoder(Estimator):
    """Sparse autoencoder; with ``activation="jumprelu"`` and a metric, the paper's TSAE.

    Activations are mapped to the training space, ``t(x) = (x - mean) S^(1/2)`` under `metric`
    (the mean only where the metric is centred), else ``t(x) = c (x - mean)`` with the one number c
    that makes the mean square of a coordinate 1. There

    * ``z = (t - b_dec) W_enc + b_enc``, ``a = z 1[z > threshold]``, ``t_hat = a W_dec + b_dec``, and
    * the objective is ``mean_i |t_hat_i - t_i|^2 + penalty``, decoder rows of unit norm,

    where the penalty is ``lambda mean_i |a_i|_0`` for ``"jumprelu"``, ``l1_coefficient mean_i |a_i|_1``
    for ``"relu"``, and nothing for ``"topk"`` (k largest positive of each sample) and ``"batchtopk"``
    (n k largest of a batch of n; for inference, the running mean of the lowest active z as threshold,
    Bussmann et al. 2024, arXiv 2412.06410).

    A threshold's gradient is the objective's difference quotient over `bandwidth`,
    ``(L(threshold_j + bandwidth) - L(threshold_j)) / bandwidth``, which is that of switching off the
    activations in between. The straight-through estimate of Rajamanoharan et al. 2024 (arXiv 2407.14435,
    eqs. 11-12) tends to the same number for a narrow band on both sides of the threshold; this one needs
    no latent that is not active. There is no coefficient to tune: lambda is at each step the price at
    which the thresholds' gradients balance, the mean rise of ``|e|^2`` when a latent in its band is
    switched off, and one shift common to all thresholds, a damped Newton step on L0(threshold), holds L0
    at `target_l0` from the first step on. Where L0 falls below 0.6 of it, bands are too empty to say
    anything, and all thresholds come down by the factor ``(L0 / target_l0)^0.1`` a step.

    With `matryoshka_widths` the squared errors of the reconstructions from the first w latents are
    added, for each width w (Bussmann et al. 2025, arXiv 2503.17547; weights 1, as in SAELens). With
    `aux_k`, AuxK (Gao et al. 2024, arXiv 2406.04093, section 2.4, scaled as in SAELens): the `aux_k`
    largest positive z of dead latents reconstruct what is left over, and
    ``aux_coefficient min(1, n_dead / aux_k) mean_i |sum_j z_ij W_dec_j - (t_i - t_hat_i)|^2`` is added.

    Parameters
    ----------
    d_sae : int
        Number of latents.
    activation : {"jumprelu", "relu", "topk", "batchtopk"}
    metric : AtomicInnerProduct, optional
        Fitted. None trains in Euclidean geometry.
    target_l0 : float
        Mean number of active latents for each sample; k for the TopK family (rounded).
    tied : bool
        W_enc = W_dec' in the training space, that is W_enc = S W_dec' for raw activations (the
        theory's form; one parameter block, half the optimiser's work).
    batch_size, max_steps : int
        Samples for each step; steps.
    learning_rate : float
        Adam's, after a warm-up over `warmup` of the steps and before a linear decay to zero over the
        last `decay` of them.
    bandwidth : float
        Width of the band above each threshold, in units of z (whitened activations have unit variance).
    l1_coefficient : float, optional
        For ``"relu"``; None adjusts it so that L0 comes to `target_l0`.
    clip : float
        Largest root-mean-square of a latent's Adam direction; larger ones are scaled down. It takes the
        place of clipping by the global gradient norm, which would need a pass of its own.
    dead_after : float
        A latent that has not fired within so many times d_sae / target_l0 samples is dead: it takes a
        direction of what is left unexplained, except in the last `decay` of the steps. After a quarter
        of that, its threshold comes down until it fires, and, once 3% of all samples and ten batches have gone by
        too, its bias rises (both ``"jumprelu"``). 0: none of it. Runs too short for several such times find more
        with 50 to 300.
    matryoshka_widths : sequence of int, optional
        Ascending numbers of latents; `d_sae` ends them, given or not.
    aux_k : int
        0, or AuxK takes the place of the new directions for dead latents; d_in / 2 is usual.
    aux_coefficient : float
    screen : {"auto", "float32", "int8", "int16"}
        How the core finds the latents that may be active: products of 8 bits where the CPU has them
        (AVX-512 VNNI), of 16 bits on AVX2, else float32's. The result is the same.
    random_state : int
        Seeds everything; equal seeds give equal bits, for any number of threads.
    num_threads : int, optional
    verbose : bool
        Progress bar.

    Attributes
    ----------
    W_enc : ndarray (d_in, d_sae) float32
        With ``b_enc (d_sae,)``, ``W_dec (d_sae, d_in)``, ``b_dec (d_in,)``, ``threshold (d_sae,)``: the
        autoencoder folded to raw activations, ``z = x W_enc + b_enc``, ``x_hat = a W_dec + b_dec``.
    history_ : dict of lists
        step, samples, seconds, loss (training space), explained_variance (centred, last batch),
        explained_variance_val (centred, `X_val`), l0, dead, learning_rate.
    n_features_in_ : int
        d_in.

    Notes
    -----
    A step costs 2 d_in d_sae operations for each sample to find the active latents, at the speed of 8-bit
    products where the CPU has them, and about 8 d_in L0 for the rest. Memory: 17 d_in d_sae bytes
    (9 tied) + 9 batch_size d_in + 24 batch_size L0; batch_size x d_sae is never held.

    Training begins with directions of samples as decoder rows and the encoder their transpose, scaled by the
    one factor that reconstructs best; thresholds (of the others, minus their encoder biases) are where each
    latent fires as often as the next, at `target_l0` in all.

    Examples
    --------
    >>> import numpy as np, atoms
    >>> X = np.random.default_rng(0).standard_normal((2000, 16)).astype("float32")
    >>> sae = atoms.SparseAutoencoder(32, target_l0=4, max_steps=50, verbose=False).fit(X)
    >>> codes = sae.transform(X)
    >>> codes.shape, sae.inverse_transform(codes).shape
    ((2000, 32), (2000, 16))
    """

    def __init__(
        self,
        d_sae: int = 256,
        activation: str = "jumprelu",
        metric: Any = None,
        target_l0: float = 32.0,
        *,
        tied: bool = False,
        batch_size: int = 512,
        max_steps: int = 2000,
        learning_rate: float = 3e-3,
        warmup: float = 0.05,
        decay: float = 0.3,
        bandwidth: float = 0.1,
        l1_coefficient: float | None = None,
        clip: float = 1.0,
        dead_after: float = 1000.0,
        beta1: float = 0.9,
        beta2: float = 0.999,
        matryoshka_widths: Sequence[int] | None = None,
        aux_k: int = 0,
        aux_coefficient: float = 1.0,
        screen: str = "auto",
        random_state: int = 0,
        num_threads: int | None = None,
        verbose: bool = True,
    ) -> None:
        self.d_sae = d_sae
        self.activation = activation
        self.metric = metric
        self.target_l0 = target_l0
        self.tied = tied
        self.batch_size = batch_size
        self.max_steps = max_steps
        self.learning_rate = learning_rate
        self.warmup = warmup
        self.decay = decay
        self.bandwidth = bandwidth
        self.l1_coefficient = l1_coefficient
        self.clip = clip
        self.dead_after = dead_after
        self.beta1 = beta1
        self.beta2 = beta2
        self.matryoshka_widths = matryoshka_widths
        self.aux_k = aux_k
        self.aux_coefficient = aux_coefficient
        self.screen = screen
        self.random_state = random_state
        self.num_threads = num_threads
        self.verbose = verbose

    # ------------------------------------------------------------------ checks

    def _check_parameters(self) -> None:
        def positive_int(name: str) -> None:
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}: expected a positive integer, got {value!r}")

        for name in ("d_sae", "batch_size", "max_steps"):
            positive_int(name)
        for name, choices in (("activation", _ACTIVATIONS), ("screen", _SCREENS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {getattr(self, name)!r}")
        ranges = {
            "target_l0": (0, self.d_sae, "d_sae"),
            "learning_rate": (0, np.inf, "infinity"),
            "bandwidth": (0, np.inf, "infinity"),
        }
        for name, (low, high, high_name) in ranges.items():
            value = getattr(self, name)
            if not low < value <= high:
                raise ValueError(
                    f"{name}: expected more than {low} and at most {high_name} ({high}), got {value!r}"
                )
        bounds = {"warmup": 1, "decay": 1, "clip": np.inf, "dead_after": np.inf, "aux_coefficient": np.inf}
        for name, high in {**bounds, "aux_k": self.d_sae}.items():
            if not 0 <= getattr(self, name) <= high:
                raise ValueError(f"{name}: expected 0 to {high}, got {getattr(self, name)!r}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 0 and less than 1, got {getattr(self, name)!r}")
        if not isinstance(self.aux_k, (int, np.integer)):
            raise ValueError(f"aux_k: expected an integer, got {self.aux_k!r}")
        if self.aux_k and not self.dead_after:
            raise ValueError("aux_k: dead_after=0 counts no latent as dead; leave dead_after at its default")
        self._prefixes()
        if self.l1_coefficient is not None and self.activation != "relu":
            raise ValueError("l1_coefficient: only activation='relu' has an L1 penalty; leave it None")

    def _prefixes(self) -> np.ndarray | None:
        """The Matryoshka widths, d_sae the last."""
        if self.matryoshka_widths is None:
            return None
        widths = [int(w) for w in self.matryoshka_widths]
        if widths and widths[-1] != self.d_sae:
            widths.append(int(self.d_sae))
        if not widths or widths[0] < 1 or sorted(set(widths)) != widths or len(widths) > 16:
            raise ValueError(
                f"matryoshka_widths: expected at most 15 ascending integers from 1 to d_sae = {self.d_sae}, "
                f"got {self.matryoshka_widths!r}"
            )
        return np.array(widths, np.int64)

    @property
    def _k(self) -> int:
        return max(1, round(self.target_l0))

    @property
    def _seed(self) -> list[int]:
        if not isinstance(self.random_state, (int, np.integer)) or self.random_state < 0:
            raise ValueError(f"random_state: expected a non-negative integer, got {self.random_state!r}")
        return [int(self.random_state)]

    # ---------------------------------------------------------- training space

    def _fit_space(self, rows: Rows) -> None:
        if self.metric is not None:
            if not hasattr(self.metric, "whitener_"):
                raise ValueError("metric: expected a fitted AtomicInnerProduct; call metric.fit(X) first")
            if self.metric.n_features_in_ != rows.d:
                raise ValueError(
                    f"metric: fitted on {self.metric.n_features_in_} features, but X has {rows.d}; "
                    "fit it on activations of the same layer"
                )
            return
        mean, square = np.zeros(rows.d), 0.0
        for start in range(0, rows.n, _BLOCK):
            block = rows.slice(start, start + _BLOCK).astype(np.float64)
            if not np.isfinite(block).all():
                row = start + int(np.flatnonzero(~np.isfinite(block).all(axis=1))[0])
                raise ValueError(f"X: row {row} holds NaN or infinity; drop it first")
            mean += block.sum(axis=0)
            square += float((block * block).sum())
        mean /= rows.n
        variance = max(square / rows.n - float(mean @ mean), 0.0) / rows.d
        # held in float32's numbers, so that a batch can be mapped in float32
        self._mean = mean.astype(np.float32).astype(np.float64)
        scale = 1.0 / np.sqrt(variance) if variance > 1e-24 * max(1.0, float(mean @ mean)) else 1.0
        self._scale = float(np.float32(scale))

    def _batch(self, x: np.ndarray, index: np.ndarray | None = None) -> _Batch:
        """Rows of raw activations as the core takes them: only a metric needs a pass over them."""
        if self.metric is not None:
            return _Batch(self.metric.whiten(x if index is None else x[index]), None, None, 1.0)
        return _Batch(x, index, self._mean.astype(np.float32), self._scale)

    def _to_space(self, x: np.ndarray) -> np.ndarray:
        """Raw activations to the training space, float32."""
        return self._batch(x).dense()

    def _maps(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """t = (x - shift) @ forward and x = t @ back + shift, float64."""
        if self.metric is not None:
            m = self.metric
            shift = m.mean_ if m.centered else np.zeros(self.n_features_in_)
            return shift, m.whitener_, m.unwhitener_
        eye = np.eye(self.n_features_in_)
        return self._mean, eye * self._scale, eye / self._scale

    # ------------------------------------------------------------ core's model

    def _new_core(self, d_in: int) -> None:
        self._core = _core.sae_new(
            context(self.num_threads),
            d_in,
            int(self.d_sae),
            activation=_ACTIVATIONS.index(self.activation),
            k=self._k if self.activation in ("topk", "batchtopk") else 0,
            tied=bool(self.tied),
            bandwidth=float(self.bandwidth),
            beta1=float(self.beta1),
            beta2=float(self.beta2),
            epsilon=1e-8,
            clip=float(self.clip),
            screen=_SCREENS.index(self.screen),
            prefixes=self._prefixes(),
        )

    def _layout(self, field: int) -> tuple[tuple[int, ...], Any]:
        """Shape and type of one of the core's arrays."""
        d, s = self.n_features_in_, int(self.d_sae)
        if field >= _LAST_FIRED:
            return (2,) if field == _COUNTERS else (s,), np.int64
        return {_W_ENC: (s, d), _W_DEC: (s, d), _B_DEC: (d,)}.get(field % 5, (s,)), np.float32

    def _get(self, field: int) -> np.ndarray:
        out: np.ndarray = np.empty(*self._layout(field))
        _core.sae_get(self._core, field, out)
        return out

    def _set(self, field: int, value: np.ndarray) -> None:
        dtype = np.int64 if field >= _LAST_FIRED else np.float32
        _core.sae_set(self._core, field, np.ascontiguousarray(value, dtype))

    def _initialise(self, sample: np.ndarray) -> None:
        """Decoder rows are directions of samples; thresholds start where L0 is on target."""
        rng = np.random.default_rng([*self._seed, 0])
        d, s = sample.shape[1], int(self.d_sae)
        mean = sample.mean(axis=0, dtype=np.float64)
        centred = sample - mean.astype(np.float32)
        chosen = rng.choice(len(centred), s, replace=len(centred) < s)
        # samples repeat when there are fewer than latents, and some may be zero: noise breaks ties
        noise = 0.3 * np.sqrt(np.einsum("ij,ij->", centred, centred, dtype=np.float64) / centred.size) + 1e-12
        D = np.empty((s, d), np.float32)
        for block in _slices(s):
            rows = centred[chosen[block]] + rng.standard_normal((len(chosen[block]), d)) * noise
            D[block] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        self._set(_W_ENC, D)
        self._set(_W_DEC, D)
        self._set(_B_DEC, mean)
        start = self._starting_thresholds(centred, D)
        if self.activation == "jumprelu":
            self._set(_THRESHOLD, np.maximum(start, 0))
        else:  # without it the k largest are those along the few strongest directions, in every sample
            self._set(_B_ENC, -start)
        if not self.tied:
            self._scale_encoder(sample, centred)

    def _scale_encoder(self, sample: np.ndarray, centred: np.ndarray) -> None:
        """Pre-activations by the factor that reconstructs best.

        Where samples share a few strong directions, so do the latents that fire together, and
        unscaled they would reconstruct a sample many times over.
        """
        sample, centred = _spread(sample, 2048), _spread(centred, 2048)
        part = self._decode_space(self._encode_space(sample)).astype(np.float64) - self._get(_B_DEC)
        power = float((part * part).sum())
        alpha = float(np.clip((part * centred).sum() / power, 1e-3, 1.0)) if power > 0 else 1.0
        for field in (_W_ENC, _B_ENC, _THRESHOLD):
            self._set(field, alpha * self._get(field))

    def _starting_thresholds(self, centred: np.ndarray, D: np.ndarray) -> np.ndarray:
        """mean_j + c deviation_j of z_j, with the c at which L0 is `target_l0` on some of these samples."""
        s, centred = len(D), _spread(centred, 2048)
        want = self.target_l0 / s
        some = max(1, s * len(centred) >> 21)  # two million z say where the tail begins
        mean, deviation = np.empty(s, np.float32), np.empty(s, np.float32)
        bins = np.linspace(-4, 12, 1601)
        counts = np.zeros(len(bins) - 1)
        for j in range(0, s, 1024):
            z = centred @ D[j : j + 1024].T
            mean[j : j + 1024], deviation[j : j + 1024] = z.mean(axis=0), z.std(axis=0) + 1e-12
            z = (z - mean[j : j + 1024]) / deviation[j : j + 1024]
            counts += np.histogram(z[:, ::some], bins)[0]
        above = 1 - np.cumsum(counts) / max(counts.sum(), 1)
        c = bins[1 + int(np.argmax(above <= want))]
        return np.asarray(mean + c * deviation)

    # -------------------------------------------------------------------- fit

    def fit(
        self,
        X: Any,
        X_val: Any = None,
        *,
        callback: Callable[[SparseAutoencoder, dict[str, Any]], None] | None = None,
        init: Any = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_minutes: float = 5.0,
        checkpoint_steps: int | None = None,
    ) -> SparseAutoencoder:
        """Train on activations.

        Parameters
        ----------
        X : array (n, d_in), memory map, list of them, ``store[layer]`` or ActivationStream
            float32, float64, float16 or bfloat16. Only the rows of a batch are ever converted. Where a
            store or a stream has more rows than its buffer, the order is the one that
            `atoms.activations.StoredRows` states, and mean, scale and first atoms are those of the first
            buffer; otherwise all is as for the array in memory, to the bit.
        X_val : array (m, d_in), optional
            Held out; its explained variance is shown and recorded twenty times. One number for each
            row of X, as scikit-learn's pipelines pass for ``y``, is ignored.
        callback : callable, optional
            Called after each step with the estimator and the step's figures; `atoms.loggers` has some.
        init : object with W_enc, W_dec, b_enc, b_dec and threshold, optional
            Start from these weights (of raw activations, as this class gives them) instead of afresh.
        checkpoint : path, optional
            Written every `checkpoint_minutes` or `checkpoint_steps`, and at the end, beside itself and
            then renamed. Where the file is there already, training goes on from it, and ends with
            the same bits as if it had never stopped.

        Raises
        ------
        ValueError
            For parameters out of range, NaN or infinity in X (naming the row), shapes that differ, or a
            checkpoint of other parameters.
        TrainingDiverged
            When the loss or the model is no longer finite; it names the step, the learning rate and the last
            good checkpoint.
        """
        if X_val is not None and not is_shards(X_val) and np.asarray(X_val).ndim == 1:
            X_val = None
        fit_many(
            [self], X, X_val, callback=callback, init=init, checkpoints=[checkpoint],
            checkpoint_minutes=checkpoint_minutes, checkpoint_steps=checkpoint_steps,
        )  # fmt: skip
        return self

    def calibrate(self, X: Any, target_l0: float | None = None) -> SparseAutoencoder:
        """Multiply all thresholds by the one factor at which the mean L0 on X is `target_l0`.

        Training holds L0 on the rows it sees. On other text it may differ by some percent, and in small
        or long-trained data by more, for the encoder fits the rows it has seen; held-out rows as X put
        that right without touching anything else.

        Parameters
        ----------
        X : array (n, d_in), memory map, or list of them
        target_l0 : float, optional
            Default: the estimator's own.

        Raises
        ------
        ValueError
            For ``"relu"`` and ``"topk"``, which have no threshold, and where fewer z are above zero than
            `target_l0` asks for.

        Notes
        -----
        Costs a few passes of `transform`, and holds 8 n target_l0 bytes or somewhat more.
        """
        self._check_fitted()
        if self.activation not in ("jumprelu", "batchtopk"):
            raise ValueError(f"activation: {self.activation!r} has no threshold to calibrate")
        target = float(self.target_l0 if target_l0 is None else target_l0)
        if not 0 < target <= self.d_sae:
            raise ValueError(
                f"target_l0: expected more than 0 and at most d_sae ({self.d_sae}), got {target!r}"
            )
        rows = Rows(X)
        self._check_X(X if len(rows.shards) == 1 else rows.shards[0], reset=False)
        thresholds = self._get(_THRESHOLD)
        want = max(1, round(target * rows.n))
        low = 1.0  # the factor down to which all entries are known
        try:
            while len(ratios := self._threshold_ratios(rows, thresholds, low)) <= want:
                if low == 0:
                    raise ValueError(
                        f"target_l0: no threshold reaches {target:g} on X, where only {len(ratios) / rows.n:g} "
                        "latents have a z above zero; ask for less"
                    )
                low = 0.8 * low if low > 1e-3 else 0.0
        finally:
            self._set(_THRESHOLD, thresholds)
        # of the want largest ratios the smallest is just above the factor, the next one is not
        factor = np.partition(ratios, len(ratios) - want - 1)[len(ratios) - want - 1]
        if not np.isfinite(factor):
            raise ValueError(
                f"target_l0: latents whose threshold is zero are alone more than {target:g}; ask for more"
            )
        self._control["cut"] *= float(factor)
        self._set(_THRESHOLD, (thresholds * factor).astype(np.float32))
        self._finish()
        return self

    def _threshold_ratios(self, rows: Rows, thresholds: np.ndarray, low: float) -> np.ndarray:
        """z / threshold of all entries where it is above `low`; infinity for thresholds of zero."""
        self._set(_THRESHOLD, thresholds * np.float32(low))
        parts = []
        for start in range(0, rows.n, _BLOCK):
            codes = self._encode(self._batch(rows.slice(start, start + _BLOCK)))
            with np.errstate(divide="ignore"):
                parts.append(codes.data / thresholds[codes.indices])
        return np.concatenate(parts)

    def _begin(
        self, rows: Rows | BlockRows, sampler: RowSampler | BlockSampler, init: Any, checkpoint: Any
    ) -> None:
        self._check_parameters()
        self._check_X(rows.shards[0], reset=True)
        self._folded: dict[str, np.ndarray] | None = None
        if checkpoint is not None and os.path.exists(checkpoint):
            self._resume(checkpoint, rows)
            return
        first = sampler.first()
        self._fit_space(first)
        self._new_core(rows.d)
        if init is not None:
            self._set_folded(init)
        else:
            rng = np.random.default_rng([*self._seed, 2])
            n = min(first.n, max(4096, min(2 * int(self.d_sae), 16384)))
            self._initialise(self._to_space(first.take(np.sort(rng.choice(first.n, n, replace=False)))))
        self.history_: dict[str, list[Any]] = {k: [] for k in (
            "step", "samples", "seconds", "loss", "explained_variance", "explained_variance_val",
            "l0", "dead", "learning_rate")}  # fmt: skip
        self._control = {**dict.fromkeys(_CONTROL, 0.0), "l1": self.l1_coefficient or 0.0}

    def _rate(self, step: int) -> float:
        """Learning rate of step 1, 2, ..., max_steps."""
        warm, cool = self.warmup * self.max_steps, self.decay * self.max_steps
        factor = min(1.0, step / max(warm, 1.0))
        if cool > 0:
            factor = min(factor, (self.max_steps - step + 1) / cool)
        return float(self.learning_rate * factor)

    def _advance(
        self, ctx: Any, step: int, batch: _Batch, val: np.ndarray | None, last_saved: Any
    ) -> dict[str, Any]:
        """One step and its record; the step's figures."""
        steps, started = int(self.max_steps), time.perf_counter()
        try:
            stats = self._step(ctx, step, batch)
        except ValueError as error:
            if not np.isfinite(batch.dense()).all():
                raise
            stats = {"squared_error": np.inf}  # x is finite, so x - b_dec was not
            cause: ValueError | None = error
        else:
            cause = None
        if not np.isfinite(stats["squared_error"]):
            raise self._diverged(step, f"the loss became {stats['squared_error']}", last_saved) from cause
        self._control["spent"] += time.perf_counter() - started
        if step % max(1, steps // 200) == 0 or step == steps:
            ev_val = np.nan
            self._publish_cut()
            if val is not None and (step % max(1, steps // 20) == 0 or step == steps):
                ev_val = self._explained_variance(val)
            self._record(step, stats, ev_val, len(self._dead()))
        return {"step": step, "learning_rate": self._rate(step), **stats}

    def _diverged(self, step: int, what: str, path: Any) -> TrainingDiverged:
        saved = f"; the last good checkpoint is {os.fspath(path)}" if path and os.path.exists(path) else ""
        return TrainingDiverged(
            f"{what} at step {step} with learning rate {self._rate(step):.3g}{saved}; lower learning_rate"
        )

    def _check_model(self, step: int, path: Any) -> None:
        """A step of finite loss can leave weights that are not: no checkpoint takes their place, and no result."""
        field = _core.sae_nonfinite(self._core)
        if field >= 0:
            raise self._diverged(step, f"{_FIELDS[field]} became non-finite", path)

    def _publish_cut(self) -> None:
        """BatchTopK's inference threshold: the running mean of the lowest active z of a batch."""
        if self.activation == "batchtopk":
            self._set(_THRESHOLD, np.full(int(self.d_sae), self._control["cut"], np.float32))

    def _finish(self) -> None:
        self._publish_cut()
        self._folded = None

    def _progress(self) -> dict[str, str]:
        h = self.history_
        shown = {"loss": f"{h['loss'][-1]:.4g}"} if h["loss"] else {}
        held_out = [v for v in h["explained_variance_val"] if not np.isnan(v)]
        if held_out:
            shown["EV held-out"] = f"{held_out[-1]:.4f}"
        if h["l0"]:
            shown |= {"L0": f"{h['l0'][-1]:.1f}", "dead": str(h["dead"][-1])}
        return shown

    def _step(self, ctx: Any, step: int, batch: _Batch) -> dict[str, Any]:
        c, rate = self._control, self._rate(step)
        window = self._dead_window()
        due = (
            window and step % max(1, window // len(batch)) == 0 and step <= self.max_steps * (1 - self.decay)
        )
        resample = due and not self.aux_k and len(self._dead()) > 0
        err = np.empty((len(batch), self.n_features_in_), np.float32) if resample else None
        # silent latents' thresholds come down by a factor e within a quarter of the window
        factor = float(np.exp(-min(1.0, 4 * len(batch) / window))) if window else 1.0
        rise_after = self._rise_after() if window else 0
        stats: dict[str, Any] = _core.sae_step(
            ctx, self._core, batch.X, rate, rate, c["price"], c["l1"], c["shift"], self._k, err, window // 4, factor,
            int(self.aux_k), window, float(self.aux_coefficient), rise_after,
            len(batch) / max(rise_after, 1), batch.rows, batch.shift, batch.scale,
        )  # fmt: skip
        self._steer(stats, rate)
        if err is not None:
            self._resample(ctx, step, batch.dense(), err)
        return stats

    def _steer(self, stats: dict[str, Any], rate: float) -> None:
        """L0 towards its target: the thresholds' common shift and price, or the L1 coefficient."""
        c, excess = self._control, stats["l0"] / self.target_l0 - 1
        if self.activation == "jumprelu":
            if stats["band"] > 0:
                gain = max(stats["band_gain"], 0.0)
                c["price"] = gain if c["price"] == 0 else 0.95 * c["price"] + 0.05 * gain
                density = stats["band"] / self.bandwidth
                c["shift"] = float(np.clip(0.3 * (stats["l0"] - self.target_l0) / density, -0.05, 0.05))
            else:
                c["shift"] = 0.01 * float(np.sign(excess))
            if excess < -0.4:  # so few that most bands are empty: all thresholds come down by a share
                self._set(_THRESHOLD, self._get(_THRESHOLD) * max(1 + excess, 0.1) ** 0.1)
        elif self.activation == "relu" and self.l1_coefficient is None:
            if c["l1"] == 0:
                c["l1"] = 0.01 * max(stats["squared_error"], 1e-12) / self.target_l0
            c["l1"] *= float(np.exp(np.clip(0.1 * excess, -0.05, 0.05)))
        elif self.activation == "batchtopk":
            c["cut"] = stats["lowest"] if c["cut"] == 0 else 0.95 * c["cut"] + 0.05 * stats["lowest"]

    # ----------------------------------------------------------- dead latents

    def _dead_window(self) -> int:
        """Samples without firing after which a latent counts as dead."""
        return int(self.dead_after * self.d_sae / self.target_l0)

    def _rise_after(self) -> int:
        """Samples without firing after which a latent's bias rises, by one within as many.

        Its z may be below zero in every sample, where a lower threshold is of no use.
        """
        batch = int(self.batch_size)
        return max(self._dead_window() // 4, int(0.03 * self.max_steps * batch), 10 * batch)

    def _dead(self) -> np.ndarray:
        window = self._dead_window() or int(1000 * self.d_sae / self.target_l0)
        return np.flatnonzero(self._get(_LAST_FIRED) <= self._get(_COUNTERS)[1] - window)

    def _resample(self, ctx: Any, step: int, batch: np.ndarray, err: np.ndarray) -> None:
        """Dead latents take directions of what is left unexplained.

        Each gets the mean residual of a random sample's nearest neighbours among the residuals, rather than
        one sample's, so that several samples will use it, and the threshold at which it fires as often as
        the average latent.
        """
        dead = self._dead()
        norm = np.linalg.norm(err, axis=1)
        if not len(dead) or not norm.sum() > 0:
            return
        rng = np.random.default_rng([*self._seed, 3, step])
        dead = rng.permutation(dead)[: np.count_nonzero(norm)]
        chosen = rng.choice(len(batch), len(dead), replace=False, p=norm / norm.sum())
        unit = -err / np.maximum(norm, 1e-30)[:, None]
        near = unit[chosen] @ unit.T
        m = min(8, len(batch))
        D = unit[np.argpartition(-near, m - 1, axis=1)[:, :m]].mean(axis=1)
        D /= np.maximum(np.linalg.norm(D, axis=1, keepdims=True), 1e-30)
        z = (batch - self._get(_B_DEC)) @ D.T
        start = np.quantile(z, 1 - self.target_l0 / self.d_sae, axis=0).clip(min=0)
        # the scale at which a latent's activations fit the residual where it fires
        fired = np.where(z > start, z, 0.0)
        power = (fired * fired).sum(axis=0)
        scale = np.clip(-(fired * (err @ D.T)).sum(axis=0) / np.maximum(power, 1e-30), 0.01, 1.0)
        if not self.tied:
            start = scale * start
        rows, scales, thresholds = (np.ascontiguousarray(a, np.float32) for a in (D, scale, start))
        _core.sae_reset(ctx, self._core, dead, rows, scales, thresholds)

    def _record(self, step: int, stats: dict[str, Any], ev_val: float, dead: int) -> None:
        total = stats["total_variance"]
        values = {
            "step": step,
            "samples": int(self._get(_COUNTERS)[1]),
            "seconds": self._control["spent"],
            "loss": stats["squared_error"] + stats["penalty"],
            "explained_variance": 1 - stats["squared_error"] / total if total > 0 else np.nan,
            "explained_variance_val": ev_val,
            "l0": stats["l0"],
            "dead": dead,
            "learning_rate": self._rate(step),
        }
        for key, value in values.items():
            self.history_[key].append(value)

    def _explained_variance(self, t: np.ndarray) -> float:
        """Centred, in the training space."""
        residual = 0.0
        for start in range(0, len(t), _BLOCK):
            block = t[start : start + _BLOCK]
            e = block.astype(np.float64) - self._decode_space(self._encode_space(block))
            residual += float((e * e).sum())
        total = float(((t - t.mean(axis=0, dtype=np.float64)) ** 2).sum())
        return 1 - residual / total if total > 0 else np.nan

    def fit_transform(self, X: Any, y: Any = None) -> sp.csr_array:
        """`fit(X)`, then `transform(X)`."""
        return self.fit(X, y).transform(X)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(vars(self))
        if state.pop("_core", None) is not None:
            state["_arrays"] = [self._get(f) for f in range(len(_FIELDS))]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        arrays = state.pop("_arrays", None)
        vars(self).update(state)
        if arrays is not None:
            self._new_core(self.n_features_in_)
            for field, value in enumerate(arrays):
                self._set(field, value)

    # ------------------------------------------------------------------- files

    def _parameters(self) -> dict[str, Any]:
        plain = {
            k: v
            for k, v in self.get_params(deep=False).items()
            if k not in ("metric", "num_threads", "verbose")
        }
        if plain["matryoshka_widths"] is not None:
            plain["matryoshka_widths"] = [int(w) for w in plain["matryoshka_widths"]]
        return {k: v.item() if isinstance(v, np.generic) else v for k, v in plain.items()}

    def save(self, path: str | os.PathLike[str], *, training_state: bool = False) -> None:
        """Write to a safetensors file, first beside `path`, then renamed: never half a file.

        The metric goes with it. `training_state` adds what `fit(checkpoint=...)` needs to go on.
        """
        self._check_fitted()
        self._publish_cut()
        fields = range(len(_FIELDS)) if training_state else (*range(5), _COUNTERS)
        tensors = {
            _FIELDS[f]: self._get(f)
            for f in fields
            if not (self.tied and f % 5 == _W_ENC and f < _LAST_FIRED)
        }
        meta: dict[str, Any] = {
            "parameters": self._parameters(),
            "n_features_in": self.n_features_in_,
            "history": self.history_,
            "control": self._control,
        }
        if self.metric is not None:
            arrays, meta["metric"] = self.metric._state()
            tensors |= {f"metric.{k}": v for k, v in arrays.items()}
        else:
            tensors["mean"] = self._mean
            meta["scale"] = float(self._scale)
        save_tensors(path, type(self).__name__, tensors, meta)

    @classmethod
    def load(cls, path: str | os.PathLike[str], num_threads: int | None = None) -> SparseAutoencoder:
        """Read what `save` wrote: the same codes, to the bit.

        Raises
        ------
        ValueError
            Another file, or a damaged one; no more memory is used than the weights in it justify.
        """
        tensors, meta = load_tensors(path, cls.__name__)
        with reading(path, cls.__name__):
            self = cls(**meta["parameters"], num_threads=num_threads)
            self._check_parameters()
            if "metric" in meta:
                from .metric import AtomicInnerProduct

                arrays = {k[len("metric.") :]: v for k, v in tensors.items() if k.startswith("metric.")}
                self.metric = AtomicInnerProduct._from_state(arrays, meta["metric"], num_threads)
            self._restore(tensors, meta)
        return self

    def _restore(self, tensors: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        self.n_features_in_ = len(tensors["b_dec"])
        if meta["n_features_in"] != self.n_features_in_:
            raise ValueError(f"n_features_in is {meta['n_features_in']!r}, b_dec has {self.n_features_in_}")
        optional = {f for f in range(5, _COUNTERS)} | ({_W_ENC} if self.tied else set())
        for field, name in enumerate(_FIELDS):  # before anything of the size that the settings say is made
            if name in tensors or field not in optional:
                check_tensor(tensors, name, *self._layout(field))
        self.history_ = {str(name): list(values) for name, values in meta["history"].items()}
        self._control = {name: float(meta["control"][name]) for name in _CONTROL}
        if self.metric is None:
            self._mean = check_tensor(tensors, "mean", (self.n_features_in_,), np.float64)
            self._scale = float(meta["scale"])
            if not 0 < self._scale < np.inf:
                raise ValueError(f"scale is {self._scale}")
        elif self.metric.n_features_in_ != self.n_features_in_:
            raise ValueError(
                f"its metric has {self.metric.n_features_in_} features, b_dec {self.n_features_in_}"
            )
        self._folded = None
        self._new_core(self.n_features_in_)
        for field, name in enumerate(_FIELDS):
            if name in tensors:
                self._set(field, tensors[name])

    def _resume(self, path: str | os.PathLike[str], rows: Rows | BlockRows) -> None:
        tensors, meta = load_tensors(path, type(self).__name__)
        ours = self._parameters()
        differing = [k for k, v in meta["parameters"].items() if ours.get(k) != v]
        if differing or meta["n_features_in"] != rows.d or ("metric" in meta) != (self.metric is not None):
            what = ", ".join(differing) or ("d_in" if meta["n_features_in"] != rows.d else "metric")
            raise ValueError(
                f"checkpoint: {os.fspath(path)} was written with other settings ({what}); "
                "use those, or another path"
            )
        if "last_fired" not in tensors:
            raise ValueError(
                f"checkpoint: {os.fspath(path)} has no training state; pass it as init=load(path)"
            )
        if self.metric is not None:
            arrays, _ = self.metric._state()
            if any(not np.array_equal(v, tensors.get(f"metric.{k}", ())) for k, v in arrays.items()):
                raise ValueError(f"checkpoint: {os.fspath(path)} was trained under another metric")
        with reading(path, type(self).__name__):
            self._restore(tensors, meta)

    # -------------------------------------------------------------- inference

    def _encode_space(self, t: np.ndarray) -> sp.csr_array:
        return self._encode(_Batch(t, None, None, 1.0))

    def _encode(self, batch: _Batch) -> sp.csr_array:
        indptr, indices, values, _ = _core.sae_encode(context(self.num_threads), self._core, *batch)
        return sp.csr_array((values, indices, indptr), shape=(len(batch), int(self.d_sae)))

    def _decode_space(self, codes: sp.csr_array) -> np.ndarray:
        return self._decode(codes, self._get(_W_DEC), self._get(_B_DEC))

    def _decode(self, codes: sp.csr_array, W: np.ndarray, b: np.ndarray) -> np.ndarray:
        out = np.empty((codes.shape[0], W.shape[1]), np.float32)
        _core.decode(
            context(self.num_threads),
            codes.indptr.astype(np.int64, copy=False),
            codes.indices.astype(np.int32, copy=False),
            np.ascontiguousarray(codes.data, np.float32),
            W,
            b,
            out,
        )
        return out

    def _blocks(self, X: Any) -> Iterator[_Batch]:
        self._check_fitted()
        rows = Rows(X)
        self._check_X(X if len(rows.shards) == 1 else rows.shards[0], reset=False)
        for start in range(0, rows.n, _BLOCK):
            yield self._batch(rows.slice(start, start + _BLOCK))

    def transform(self, X: Any) -> sp.csr_array:
        """Codes of activations: CSR array (n, d_sae) float32, in the units of the training space.

        Strict inequality: ``a = z 1[z > threshold]``. Cost: 2 d_in d_sae operations for each sample.
        """
        parts = [self._encode(batch) for batch in self._blocks(X)]
        return sp.csr_array(sp.vstack(parts, format="csr")) if len(parts) > 1 else parts[0]

    def inverse_transform(self, codes: Any) -> np.ndarray:
        """Raw activations (n, d_in) float32 from codes (n, d_sae), sparse or dense."""
        self._check_fitted()
        codes = sp.csr_array(codes)
        if codes.shape[1] != self.d_sae:
            raise ValueError(f"codes: expected {self.d_sae} columns (d_sae), got {codes.shape[1]}")
        return self._decode(codes, self.W_dec, self.b_dec)

    # ---------------------------------------------------------- folded weights

    def _fold(self) -> dict[str, np.ndarray]:
        self._check_fitted()
        folded: dict[str, np.ndarray] | None = getattr(self, "_folded", None)
        if folded is None:
            shift, forward, back = self._maps()
            W, D, b_enc = self._get(_W_ENC), self._get(_W_DEC), self._get(_B_ENC)
            b_dec = self._get(_B_DEC).astype(np.float64)
            W_enc = np.empty(W.shape[::-1], np.float32)
            for block in _slices(len(W)):  # float64 would be twice as large as all of them
                E = W[block].astype(np.float64)
                W_enc[:, block] = forward @ E.T
                b_enc[block] -= E @ (shift @ forward + b_dec)
                D[block] = D[block].astype(np.float64) @ back
            folded = {
                "W_enc": W_enc,
                "b_enc": b_enc,
                "W_dec": D,
                "b_dec": (b_dec @ back + shift).astype(np.float32),
                "threshold": self._get(_THRESHOLD),
            }
            self._folded = folded
        return folded

    def _set_folded(self, other: Any) -> None:
        """Take raw-activation weights into the training space; decoder rows get unit norm."""
        d, n = self.n_features_in_, int(self.d_sae)
        if getattr(other, "input_norm", "none") != "none":
            raise ValueError(f"init: normalises each sample ({other.input_norm}), which this class does not")
        shapes = {"W_enc": (d, n), "W_dec": (n, d), "b_enc": (n,), "b_dec": (d,), "threshold": (n,)}
        w = {k: np.asarray(getattr(other, k), np.float64) for k in shapes}
        for name, shape in shapes.items():
            if w[name].shape != shape:
                raise ValueError(f"init: expected {name} of shape {shape}, got {w[name].shape}")
            if not np.isfinite(w[name]).all():
                raise ValueError(f"init: {name} holds NaN or infinity")
        shift, forward, back = self._maps()
        D = w["W_dec"] @ forward
        norm = np.linalg.norm(D, axis=1)
        norm[norm == 0] = 1
        E = (back @ w["W_enc"]).T * norm[:, None]
        b_dec = (w["b_dec"] - shift) @ forward
        self._set(_W_ENC, E)
        self._set(_W_DEC, D / norm[:, None])
        self._set(_B_ENC, w["b_enc"] * norm + E @ (shift @ forward + b_dec))
        self._set(_B_DEC, b_dec)
        self._set(_THRESHOLD, w["threshold"] * norm)

    @property
    def W_enc(self) -> np.ndarray:
        """Encoder for raw activations (d_in, d_sae): S^(1/2) times the training space's."""
        return self._fold()["W_enc"]

    @property
    def b_enc(self) -> np.ndarray:
        """Encoder bias for raw activations (d_sae,); the decoder bias is folded in."""
        return self._fold()["b_enc"]

    @property
    def W_dec(self) -> np.ndarray:
        """Decoder to raw activations (d_sae, d_in): the atoms, of unit norm under the metric."""
        return self._fold()["W_dec"]

    @property
    def b_dec(self) -> np.ndarray:
        """Decoder bias in raw activations (d_in,)."""
        return self._fold()["b_dec"]

    @property
    def threshold(self) -> np.ndarray:
        """A latent is active above it (d_sae,); zero for ReLU and TopK."""
        return self._fold()["threshold"]


def fit_many(
    saes: list[SparseAutoencoder],
    X: Any,
    X_val: Any = None,
    *,
    callback: Callable[[SparseAutoencoder, dict[str, Any]], None] | None = None,
    init: Any = None,
    checkpoints: Sequence[Any] | None = None,
    checkpoint_minutes: float = 5.0,
    checkpoint_steps: int | None = None,
) -> list[SparseAutoencoder]:
    """Train several autoencoders (seeds, widths, targets) in one pass over the same activations.

    Each batch is read, and whitened for each different metric, once. The batches are drawn by the first
    one's `random_state`, so all see the same samples; `batch_size` and `max_steps` must agree.
    See `SparseAutoencoder.fit` for the arguments; `checkpoints` has a path or None for each.

    Returns
    -------
    list of SparseAutoencoder
        `saes`, fitted.

    Raises
    ------
    ValueError
        Where `batch_size` or `max_steps` differ, or as `SparseAutoencoder.fit` does.
    """
    paths = list(checkpoints) if checkpoints is not None else [None] * len(saes)
    if not saes or len(paths) != len(saes):
        raise ValueError(
            f"saes: expected at least one, with a checkpoint each, got {len(saes)} and {len(paths)}"
        )
    for name in ("batch_size", "max_steps"):
        if len({getattr(s, name) for s in saes}) > 1:
            raise ValueError(f"{name}: expected the same for all autoencoders trained in one pass")
    rows = rows_of(X)
    if rows.n < 2:
        raise ValueError(f"X: expected at least 2 samples, got n_samples = {rows.n}")
    val = None if X_val is None else Rows(X_val, "X_val")
    if val is not None and val.d != rows.d:
        raise ValueError(f"X_val: expected {rows.d} features as in X, got {val.d}")
    val_rows = None if val is None else val.slice(0, val.n)
    saved = time.perf_counter()
    current = False

    def write() -> None:
        for sae, path in zip(saes, paths, strict=True):
            if path is not None:
                sae.save(path, training_state=True)

    saes[0]._check_parameters()
    sampler = rows.sampler(int(saes[0].batch_size), saes[0]._seed, int(saes[0].max_steps))
    begun: list[SparseAutoencoder] = []
    try:
        for sae, path in zip(saes, paths, strict=True):
            sae._begin(rows, sampler, init, path)
            begun.append(sae)
        done = {int(s._get(_COUNTERS)[0]) for s in saes}
        if len(done) > 1:
            raise ValueError(
                f"checkpoints: they stopped at different steps {sorted(done)}; remove them and start again"
            )
        first, steps = done.pop(), int(saes[0].max_steps)
        sampler.skip(first)
        spaces = {id(s.metric): s for s in saes}
        vals = {key: None if val_rows is None else s._to_space(val_rows) for key, s in spaces.items()}
        with tqdm(total=steps, initial=first, disable=not saes[0].verbose, unit="step", desc="SAE") as bar:
            for step in range(first + 1, steps + 1):
                raw, index = sampler.draw()
                batches = {key: s._batch(raw, index) for key, s in spaces.items()}
                for sae, path in zip(saes, paths, strict=True):
                    figures = sae._advance(
                        context(sae.num_threads), step, batches[id(sae.metric)], vals[id(sae.metric)], path
                    )
                    if callback is not None:
                        callback(sae, figures)
                bar.update()
                bar.set_postfix(saes[0]._progress(), refresh=False)
                current = step == steps
                due = checkpoint_steps is not None and step % checkpoint_steps == 0
                if due or current or time.perf_counter() - saved > 60 * checkpoint_minutes:
                    for sae, path in zip(saes, paths, strict=True):
                        sae._check_model(step, path)
                    write()
                    saved = time.perf_counter()
    finally:
        sampler.close()
        for sae in begun:
            sae._finish()
    return saes
