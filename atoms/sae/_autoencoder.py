"""SparseAutoencoder, the estimator, and fit_many."""

from __future__ import annotations

import contextlib
import functools
import numbers
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from .. import _core
from .. import _plot as plot
from .. import metric as metrics
from .._arrays import as_codes
from .._checks import aligned, as_number, check_choice, check_count, check_flag, listed, part_by_part
from .._config import context
from .._estimator import Routed, restored
from .._files import as_path, opened_tensors, reading
from .._frames import framed
from .._rows import (
    BlockRows,
    Pair,
    PairedRows,
    Rows,
    Sites,
    StreamRows,
    by_blocks,
    columns,
    finite_blocks,
    read_side,
    rows_of,
    warn_of_massive,
)
from .._scored import Scored
from ..theory import ExplainedVariance
from . import _calibration, _checkpoints, _hub, _saving
from ._in_model import InModel
from ._model import BLOCK, Model, decode, stacked
from ._rate import SCHEDULES, LastingRate
from ._revival import FEWEST_JUDGES, judging_rows
from ._saving import HISTORY, Trained
from ._settings import Settings, as_json, check_no_target, check_same_parameters, check_target, k_of
from ._space import TrainingSpace, check_metric
from ._start import initialise, starting_rows
from ._steering import Control
from ._training import (
    PART,
    Run,
    check_between,
    check_labels,
    latest,
    paired,
    shuffled_batches,
    train,
    training_rows,
)


class SparseAutoencoder(InModel, Scored, Routed):
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

    ``fit(X, target=Y)`` makes a **transcoder**: codes of X rebuild the rows of Y, such as the input and the output of an
    MLP. Y too is mapped to mean zero and coordinates of mean square 1, ``u(y) = c' (y - mean')``, and

    * ``z = t W_enc + b_enc``, ``u_hat = a W_dec + b_dec``, plus ``t W_skip`` with `skip_connection`;

    in all else u stands in the place of t. It has neither `metric` nor `tied`.

    ``fit(atoms.activations.Sites(X, Y))`` makes a **crosscoder** (Lindsey et al. 2024, *Sparse crosscoders*): one code of the
    same tokens' rows at several sites, layers or models, rebuilds all of them. A row has the columns of all sites, and each
    site has a number of its own that makes the mean square of its coordinates 1, ``t_s(x) = c_s (x_s - mean_s)``; in all
    else t is one row. So a latent's cost is by its decoder's norm over all sites, ``sum_s |W_dec_js|^2 = 1``: what it
    explains of all of them decides whether it is active, as those found best who compared models (Minder et al. 2025,
    arXiv 2504.02922: TopK and its kin, not L1). `site_norms_` tells shared latents from those of one site. It has no `metric`.
    Once fitted, its other methods take ``Sites(X, Y)``, the tuple ``(X, Y)`` of arrays, or rows of all columns.

    Parameters
    ----------
    d_sae : int
        Number of latents.
    activation : {"jumprelu", "relu", "topk", "batchtopk"}
        What decides which latents are active, see above.
    metric : AtomicInnerProduct, optional
        Of one that is not fitted yet, as scikit-learn's ``clone`` leaves it, `fit` fits a copy to X: `metric_`. None
        trains in Euclidean geometry.
    target_l0 : float
        Mean number of active latents for each sample; k for the TopK family (rounded, at least 1).
    tied : bool
        W_enc = W_dec' in the training space, that is W_enc = S W_dec' for raw activations (the
        theory's form; one parameter block, half the optimiser's work).
    batch_size : int
        Samples for each step.
    max_steps : int
        Steps of training.
    learning_rate : float
        Adam's, between warm-up and decay.
    warmup : float
        Share of the steps over which, at the beginning, the learning rate rises from zero, linearly.
    decay : float
        Share of the steps over which, at the end, it falls to zero, linearly.
    bandwidth : float
        Width of the band above each threshold, in units of z (whitened activations have unit variance).
    l1_coefficient : float, optional
        For ``"relu"``; None adjusts it so that L0 comes to `target_l0`.
    clip : float
        Largest root-mean-square of a latent's Adam direction; larger ones are scaled down. It takes the
        place of clipping by the global gradient norm, which would need a pass of its own. Rows are held back too, see
        Notes.
    dead_after : float
        A latent that has not fired within so many times d_sae / target_l0 samples is dead, and may be revived:
        it takes a direction of what is left unexplained where that lowers the error of other rows by more
        than an active latent costs, except in the last `decay` of the steps. 0: none is, nor does AuxK find any.
    beta1 : float
        Adam's decay rate of the first moment.
    beta2 : float
        Adam's decay rate of the second moment.
    matryoshka_widths : sequence of int, optional
        Ascending numbers of latents; `d_sae` ends them, given or not.
    aux_k : int
        0, or AuxK takes the place of the new directions for dead latents; d_in / 2 is usual.
    aux_coefficient : float
        Weight of AuxK in the objective.
    skip_connection : bool
        Of a transcoder: a linear map of X beside the latents, which rebuild what it leaves.
    screen : {"auto", "float32", "int8", "int16"}
        How the core finds the latents that may be active: products of 8 bits where the CPU has them
        (VNNI, ARM's dot products), of 16 bits on AVX2, else float32's. The result is the same.
    random_state : int or None
        Seeds everything; equal seeds give equal bits, for any number of threads. None: another seed in each `fit`, see
        `random_state_`. One of NumPy's generators gives its next number.
    num_threads : int, optional
        None for the package's setting.
    verbose : bool
        Show a progress bar.

    Attributes
    ----------
    W_enc : ndarray (d_in, d_sae) float32
        With ``b_enc (d_sae,)``, ``W_dec (d_sae, d_in)``, ``b_dec (d_in,)``, ``threshold (d_sae,)``: the
        autoencoder folded to raw activations, ``z = x W_enc + b_enc``, ``x_hat = a W_dec + b_dec``.
    W_skip : ndarray (d_in, d_out) float32 or None
        The skip connection. A transcoder's ``W_dec (d_sae, d_out)`` and ``b_dec (d_out,)`` give the target's activations,
        ``y_hat = a W_dec + b_dec + x W_skip``.
    is_transcoder : bool
        Fitted with a target.
    metric_ : AtomicInnerProduct or None
        A copy of the metric that it was fitted under.
    history_ : dict of lists
        step, samples, seconds, loss (training space), explained_variance (centred, last batch),
        explained_variance_val and l0_val (of `X_val`, NaN where they were not taken), l0 (last batch), dead,
        learning_rate.
    sites_ : tuple of slice or None
        A crosscoder's columns of each site, for rows, reconstructions, ``W_dec`` and ``b_dec``, and for the rows of ``W_enc``:
        ``W_dec[:, sae.sites_[0]]``. None where there are no sites.
    site_norms_ : ndarray (d_sae, sites) float64 or None
        Norms of a crosscoder's decoder rows at each site, in the units in which the sites are equally strong.
    n_features_in_ : int
        d_in.
    random_state_ : int
        The seed it was trained with: as `random_state`, it gives the same bits again.
    n_dropped_massive_ : int
        Rows of X that ``fit(massive="drop")`` left out; files do not keep it.

    Notes
    -----
    A step costs 2 d_in d_sae operations for each sample to find the active latents, at the speed of 8-bit
    products where the CPU has them, and about 8 d_in L0 for the rest. Memory: 17 d_in d_sae bytes
    (9 tied) + 9 batch_size d_in + 24 batch_size L0; batch_size x d_sae is never held. Under a metric, rows in memory
    that are drawn more than once are whitened once and kept, where that takes 1 GB at most.

    Training begins with directions of samples as decoder rows and the encoder their transpose, scaled by the
    one factor that reconstructs best; thresholds (where there are none, encoder biases of minus that) begin where
    every latent fires equally often, `target_l0` of them on average. A tied encoder has no scale: half of each
    threshold is a negative bias instead (ReLU: three quarters), and latents that only repeat what others explain
    are silent until they are revived.

    A row whose gradient, by ``|t_hat - t| |t - b_dec|``, is more than four times the usual one has its errors scaled
    down to that in all gradients, for it would move each latent that it activates as far as would take one latent
    alone. The figures of the history count it in full.

    Examples
    --------
    >>> import numpy as np, atoms
    >>> X = np.random.default_rng(0).standard_normal((2000, 16)).astype("float32")
    >>> sae = atoms.SparseAutoencoder(32, target_l0=4, max_steps=50, verbose=False).fit(X)
    >>> codes = sae.transform(X)
    >>> codes.shape, sae.inverse_transform(codes).shape
    ((2000, 32), (2000, 16))

    A transcoder, from those activations to others:

    >>> Y = np.maximum(X @ np.random.default_rng(1).standard_normal((16, 24)).astype("float32"), 0)
    >>> coder = atoms.SparseAutoencoder(64, target_l0=8, max_steps=50, verbose=False).fit(X, target=Y)
    >>> coder.transform(X).shape, coder.reconstruct(X).shape
    ((2000, 64), (2000, 24))

    A crosscoder of both:

    >>> both = atoms.activations.Sites(X, Y)
    >>> coder = atoms.SparseAutoencoder(64, target_l0=8, max_steps=50, verbose=False).fit(both)
    >>> coder.reconstruct(both)[:, coder.sites_[1]].shape, coder.site_norms_.shape, coder.site_scores(both).shape
    ((2000, 24), (64, 2), (2,))
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
        dead_after: float = 100.0,
        beta1: float = 0.9,
        beta2: float = 0.999,
        matryoshka_widths: Sequence[int] | None = None,
        aux_k: int = 0,
        aux_coefficient: float = 1.0,
        skip_connection: bool = False,
        screen: str = "auto",
        random_state: Any = 0,
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
        self.skip_connection = skip_connection
        self.screen = screen
        self.random_state = random_state
        self.num_threads = num_threads
        self.verbose = verbose

    # ---------------------------------------------------------------- training

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        X_val: Any = None,
        calibrate: bool = True,
        massive: str | float = "keep",
        target: Any = None,
        target_val: Any = None,
        callback: Callable[[SparseAutoencoder, dict[str, Any]], None] | None = None,
        init: Any = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_minutes: float = 5.0,
        checkpoint_steps: int | None = None,
    ) -> SparseAutoencoder:
        """Train on activations.

        Parameters
        ----------
        X : array (n, d_in), tensor, memory map, list of them, ``store[layer]``, ActivationStream, ...
            float32, float64, float16 or bfloat16; tensors on any device and with gradients. Only the rows of a batch
            are ever converted. Also frames; zarr, h5py and dask arrays and columns of data sets, which are read
            block by block; any `atoms.activations.BlockSource`. Where one that is read by blocks has more rows than
            its buffer, the order is the one that `atoms.activations.StoredRows` states, and mean, scale and
            first atoms are those of the first buffer; otherwise all is as for the array in memory, to the bit. Also
            generators, DataLoaders and other streams of batches (n, d_in), of unknown length: they are shuffled
            through a buffer of 65,536 rows, and where they fit it, all is as for the array again. A generator that
            ends before `max_steps` ends training; the function that makes it is called for another pass.
            `atoms.activations.Sites` of two or more of these, but for streams, for a crosscoder.
        y : ignored
            For scikit-learn's pipelines.
        X_val : array (m, d_in), optional
            Held out: its explained variance and L0 are shown and recorded twenty times, and after the last
            step thresholds are calibrated on it.
        calibrate : bool
            Whether ``"jumprelu"`` and ``"batchtopk"`` end with all thresholds multiplied by the one factor at
            which L0 on `X_val` is `target_l0`, see `calibrate`. The last held-out figures in ``history_`` are
            those of the result. One number from thousands of rows: their explained variance stays a held-out one.
        massive : {"keep", "drop"} or float
            "drop" leaves out rows whose norm is more than ten times the median of X's, a number those of more than so
            many times it (at any site, by its own median), here and of `X_val`: `n_dropped_massive_` says how many of X. It goes through X once before:
            a store knows its norms, but a stream's model runs over all tokens once more.
        target : array (n, d_out), tensor, memory map, ``store[layer]``, ..., optional
            What a transcoder rebuilds: a row for each row of X, in whatever `X` may be in. Where one of the two is read block
            by block or a stream, the two are shuffled through one buffer of rows side by side.
        target_val : array (m, d_out), optional
            With a target, what is to be rebuilt of `X_val`: the explained variance is its.
        callback : callable, optional
            Called after each step with the estimator and the step's figures; `atoms.loggers` has some. Steps are then
            single calls of the core, which with many threads take up to a quarter longer than several in one. A callback
            with an attribute `every`, an integer, as loggers have one, is called after each multiple of so many steps
            alone, and where something is added to `history_`, the last step among them.
        init : object with W_enc, W_dec, b_enc, b_dec and threshold, optional
            Start from these weights (of raw activations, as this class gives them) instead of afresh. A transcoder with a
            target and only then; with ``tied=True``, one whose encoder is its decoder's transpose in the training space.
        checkpoint : path, optional
            File to write every now and then and at the end, first beside itself, then renamed. Where it is
            there already, training goes on from it, and ends with the same bits as if it had never stopped. It
            knows its data by number, type and a digest of 256 rows; stores and streams by model, tokens and place.
        checkpoint_minutes : float
            Minutes from one checkpoint to the next.
        checkpoint_steps : int, optional
            Write one after each multiple of so many steps, too.

        Raises
        ------
        ValueError
            For parameters out of range, NaN or infinity in X (naming the row), shapes that differ, or a
            checkpoint of other parameters or other data, or one that another run is using.
        OSError
            The checkpoint cannot be written: found out before the first step where the folder is the reason.
        TrainingDiverged
            When the loss or the model is no longer finite; it names the step, the learning rate and the last
            good checkpoint.

        Warns
        -----
        UserWarning
            Rows whose norm is more than ten times the median, or from five to ten times it, make a twentieth of the sum
            of squares or more. Up to 8,192 rows are looked at, of a store or a stream those of the first buffer.
        The last batch is explained worse than by its mean.

        Notes
        -----
        What was fitted is its own: fitting the metric again, or `set_params`, changes nothing until the next
        `fit`. Where `fit` raises, the autoencoder is what it was before; only Ctrl-C, and a checkpoint that
        cannot be written, leave what has been trained so far. Other threads may use the autoencoder
        meanwhile: they have the model of one step or another.
        """
        check_labels(y, X)
        if checkpoint is not None:
            as_path(checkpoint, "checkpoint")
        fit_many(
            [self], X, X_val, target=target, target_val=target_val, calibrate=calibrate, massive=massive,
            callback=callback, init=init, checkpoints=[checkpoint],
            checkpoint_minutes=checkpoint_minutes, checkpoint_steps=checkpoint_steps,
        )  # fmt: skip
        return self

    def partial_fit(
        self, X: Any, y: Any = None, *, target: Any = None, schedule: str = "inverse_sqrt"
    ) -> SparseAutoencoder:
        """Train on one batch after the other, as hooks give them; nobody needs to know how many there will be.

        The engine and the control of L0 are those of `fit`; dead latents are revived in calls of 1,024 rows or more,
        for fewer cannot judge what they are worth. The first call starts
        the autoencoder from its rows; later ones go on, also from what `fit` or `load` made.

        Parameters
        ----------
        X : (n, d_in) array or tensor, or whatever else `fit` takes
            One step where it has up to `batch_size` rows, else several of about equal size, over its rows in random
            order. Rows of one context are alike, and batches from many contexts train better: `fit` over a generator
            shuffles them through a buffer.
        y : ignored
            For scikit-learn's pipelines.
        target : (n, d_out) array or tensor, or whatever else X may be, optional
            What a transcoder rebuilds of X, in each call or in none.
        schedule : {"inverse_sqrt", "constant"}
            The learning rate rises over ``warmup * max_steps`` steps; from ``max_steps / 4`` on it falls with the
            root of the steps, or it stays. `max_steps` ends nothing here.

        Raises
        ------
        ValueError
            As `fit`, and where parameters other than `learning_rate` have changed since the first call. Where X is
            refused, the autoencoder is what it was before.
        TrainingDiverged
            When the loss or the model is no longer finite. The autoencoder is of no use then.

        Notes
        -----
        A metric must be fitted before the first call, which takes a copy of it: to fit it to batches too, call its
        `partial_fit` on the first of them. Without a metric, mean and scale are those of the first call's rows.

        The same batches give the same bits, for any number of threads, and also where training was interrupted:
        ``sae.save(path, training_state=True)`` between two calls is a checkpoint, from which
        `SparseAutoencoder.load` goes on; `n_samples_seen_` says after how many rows.

        Examples
        --------
        >>> import numpy as np, atoms
        >>> rng = np.random.default_rng(0)
        >>> sae = atoms.SparseAutoencoder(32, target_l0=4, batch_size=256)
        >>> for _ in range(50):
        ...     sae = sae.partial_fit(rng.standard_normal((256, 16), dtype=np.float32))
        >>> sae.n_samples_seen_
        12800
        """
        check_choice(schedule, "schedule", SCHEDULES)
        fitted = "_fitted" in vars(self)
        settings = self._settings(self._fitted.parameters["random_state"] if fitted else None)
        parameters, rows = self._parameters(settings), paired(X, target)
        if fitted:
            if self.is_transcoder != isinstance(rows, PairedRows):
                raise ValueError(
                    "target: the calls before had one, and this is a transcoder; pass what it is to rebuild of X"
                    if self.is_transcoder
                    else "target: this is an autoencoder already; fit(X, target=...) makes a transcoder"
                )
            if isinstance(rows, PairedRows) and rows.y.d != self._model.d_out:
                raise ValueError(
                    f"target: expected {self._model.d_out} features as in the calls before, got {rows.y.d}"
                )
            self._check_sites(rows, "X")
            check_same_parameters(parameters, self._fitted.parameters, "learning_rate")
            self._check_X(rows.shards[0], reset=False, names=rows.feature_names)
            self._fitted = self._fitted._replace(parameters=parameters)
        _check_sides([self], [settings], rows)
        for part in finite_blocks(rows, PART):
            if "_fitted" not in vars(self):
                self._begin_partial(rows, part, settings, parameters)
            self._steps(part, settings, LastingRate(settings, schedule))
        self._finish()
        return self

    def _begin_partial(
        self, rows: Any, part: np.ndarray | Pair, settings: Settings, parameters: dict[str, Any]
    ) -> None:
        """An autoencoder that starts from the first rows it is given."""
        if len(part) < 2:
            raise ValueError(f"X: expected at least 2 samples in the first call, got {len(part)}")
        check_metric(self.metric, rows.d)
        metric, ctx = metrics.frozen(self.metric), context(self.num_threads)
        space, model = _start(ctx, _as_rows(part), settings, metric, None, rows.widths)
        history: dict[str, list[Any]] = {name: [] for name in HISTORY}
        self._check_X(rows.shards[0], reset=True, names=rows.feature_names)
        control = Control(l1=float(settings.l1_coefficient or 0))
        self._take(Trained(space, model, control, history, parameters, None))
        warn_of_massive(read_side(_as_rows(part)), 4, rows.widths)

    def _steps(self, part: np.ndarray | Pair, settings: Settings, rate: LastingRate) -> None:
        """Steps over these rows, each of at most `batch_size`."""
        trained = self._fitted
        judges = _judges(settings, trained.space, _as_rows(part)) if len(part) >= FEWEST_JUDGES else None
        run = Run(
            settings,
            trained,
            self.num_threads,
            callback=None,
            path=None,
            save=_unsaved,
            rate=rate,
            judges=judges,
        )
        step = trained.model.steps
        recorded = len(trained.history["step"])
        for index in shuffled_batches(len(part), settings.batch_size, [*settings.seed, 6, step]):
            step += 1
            run.advance(step, 1, trained.space.batch(part, index), None)
        if len(trained.history["step"]) > recorded:
            run.check_model(step)

    @property
    def n_samples_seen_(self) -> int:
        """Rows seen in training, repeated ones too."""
        self._check_fitted()
        return self._model.samples

    @property
    def random_state_(self) -> int:
        self._check_fitted()
        return int(self._fitted.parameters["random_state"])

    def _settings(self, seed: int | None = None) -> Settings:
        """Its parameters, checked. `seed` is that of a training that goes on, for a `random_state` that names none."""
        named = isinstance(self.random_state, (int, np.integer))
        return Settings.of(self, None if named else seed).new()

    def _parameters(self, settings: Settings) -> dict[str, Any]:
        """Its parameters as JSON has them, with the seed in use."""
        return as_json({**self.get_params(deep=False), "random_state": settings.random_state})

    def _begin(
        self,
        settings: Settings,
        rows: Rows | BlockRows | StreamRows | PairedRows,
        sampler: Any,
        init: Any,
        checkpoint: Any,
        metric: Any,
    ) -> Run:
        """A run that is ready for its first step, or for the one after a checkpoint's last; self is as before.

        `metric` is a copy of self's that nobody else changes.
        """
        ctx, kind = context(self.num_threads), type(self).__name__
        parameters, data = self._parameters(settings), rows.identity()
        if rows.widths is not None:
            data["sites"] = list(rows.widths)
        if checkpoint is not None and os.path.exists(checkpoint):
            trained = _saving.resume(checkpoint, kind, parameters, metric, data, ctx)
        else:
            space, model = _start(ctx, sampler.first(), settings, metric, init, rows.widths)
            history: dict[str, list[Any]] = {name: [] for name in HISTORY}
            control = Control(l1=float(settings.l1_coefficient or 0))
            trained = Trained(space, model, control, history, parameters, data)
        return Run(
            settings,
            trained,
            self.num_threads,
            callback=None,
            path=checkpoint,
            save=lambda path: _saving.write(path, kind, trained, training_state=True),
            judges=_judges(settings, trained.space, sampler.first()),
        )

    def _finish(self) -> None:
        """The model has changed: its threshold for inference follows."""
        self._fitted.control.publish_cut(self._model)

    def calibrate(self, X: Any, target_l0: float | None = None) -> SparseAutoencoder:
        """Multiply all thresholds by the one factor at which the mean L0 on X is `target_l0`.

        Training holds L0 on the rows it sees. On other text it may differ by some percent, and in small
        or long-trained data by a factor of two, for the encoder fits the rows it has seen. Calibrating on held-out
        rows puts that right and changes nothing else. `fit` does it with its `X_val`.

        Parameters
        ----------
        X : array (n, d_in), memory map, or list of them
            Activations.
        target_l0 : float, optional
            Default: that of `fit`.

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
        space, model, control, _, parameters, _ = self._fitted
        if model.activation not in ("jumprelu", "batchtopk"):
            raise ValueError(f"activation: {model.activation!r} has no threshold to calibrate")
        target = as_number(parameters["target_l0"] if target_l0 is None else target_l0, "target_l0")
        if not 0 < target <= model.d_sae:
            raise ValueError(
                f"target_l0: expected more than 0 and at most d_sae ({model.d_sae}), got {target!r}"
            )
        rows = self._check_rows(X, reset=False)
        if rows.n is None:
            raise ValueError(
                "X: expected rows that can be read more than once; pass an array or a list of them"
            )
        _calibration.calibrate(
            context(self.num_threads),
            model,
            control,
            lambda: (space.batch(block) for block in rows.blocks(BLOCK)),
            rows.n,
            target,
        )
        return self

    # --------------------------------------------------------------- inference

    def _check_rows(self, X: Any, *, reset: bool, far: bool = False) -> Any:
        widths = self._fitted.space.widths
        if widths is not None and isinstance(X, tuple):
            if widths == tuple(getattr(one, "shape", (0, 0))[-1] for one in X):
                X = Sites(*X)  # shards of a crosscoder's rows would be of all columns
        rows = super()._check_rows(X, reset=reset, far=far)
        self._check_sites(rows, "X")
        return rows

    def _check_sites(self, rows: Any, name: str) -> None:
        """ValueError where rows have other sites than it was fitted to; rows without any are taken by their columns."""
        widths = self._fitted.space.widths
        if rows.widths is not None and rows.widths != widths:
            of = "without sites" if widths is None else f"to sites of {widths} columns"
            raise ValueError(f"{name}: sites of {rows.widths} columns, but it was fitted {of}")

    @framed
    @by_blocks
    def transform(self, X: Any) -> sp.csr_array:
        """Codes of activations, all that `fit` takes: CSR array (n, d_sae) float32, in the units of the training space.

        Strict inequality: ``a = z 1[z > threshold]``. Cost: 2 d_in d_sae operations for each sample.
        Of an array of Dask another one of the autoencoder as it is now, whose blocks are CSR arrays; nothing is computed yet.
        """
        self._check_fitted()
        rows, ctx = self._check_rows(X, reset=False), context(self.num_threads)
        space, model = self._fitted.space, self._fitted.model  # once: another thread may fit meanwhile
        work = _core.sae_work()
        return stacked(
            part_by_part(rows.blocks(BLOCK), lambda block, _: model.encode(ctx, space.batch(block), work))
        )

    def _codes(self, X: np.ndarray) -> sp.csr_array:
        return self._model.encode(context(self.num_threads), self._fitted.space.batch(X))

    @property
    def _n_features_out(self) -> int:
        return self._model.d_sae

    @by_blocks
    def inverse_transform(self, codes: Any) -> np.ndarray:
        """Raw activations (n, d_in), a transcoder's (n, d_out), float32 from codes (n, d_sae), sparse or dense.

        Raises
        ------
        ValueError
            With a skip connection they do not determine the output: use `reconstruct`.
        """
        self._check_fitted()
        if self._model.skip:
            raise ValueError(
                "codes: with a skip connection they do not determine the output; use reconstruct(X)"
            )
        codes = sp.csr_array(as_codes(codes))
        folded = self._fold()
        W, b = folded["W_dec"], folded["b_dec"]
        if codes.shape[1] != len(W):
            raise ValueError(f"codes: expected {len(W)} columns (d_sae), got {codes.shape[1]}")
        return decode(context(self.num_threads), codes, W, b)

    def _rebuilt(self, X: np.ndarray) -> np.ndarray:
        """Of checked rows; with a skip connection in the training space, where a large mean costs no digits."""
        space, model = self._fitted.space, self._fitted.model
        if not model.skip or space.target is None:
            return self.inverse_transform(self._codes(X))
        out = model.rebuild(context(self.num_threads), space.to_space(X))
        return np.asarray(out / space.target.scale + space.target.mean, np.float32)

    @by_blocks
    def reconstruct(self, X: Any) -> np.ndarray:
        """What its atoms make of activations: (n, d_in), ``inverse_transform(transform(X))``.

        A transcoder gives the activations at its target's place, (n, d_out), not a copy of X.
        """
        self._check_fitted()
        if not self._model.skip:
            return super().reconstruct(X)
        rows = self._check_rows(X, reset=False)
        return np.concatenate([self._rebuilt(np.asarray(block)) for block in rows.blocks(BLOCK)])

    def score(self, X: Any, y: Any = None) -> float:
        """Share of the variance of X, of a transcoder that of y, that is explained: pass rows that `fit` has not seen.

        ``1 - sum |x_hat - x|^2 / sum |x - mean|^2``, the mean that of X, norms in `metric_` where there is one. It is
        what `atoms.theory.explained_variance` calls ``"metric_centered"``, without a metric ``"centered"``, and what
        ``history_["explained_variance_val"]`` records. 1 is perfect, 0 no better than the mean.

        Parameters
        ----------
        X : (n, d_in) array, tensor or memory map, or whatever else `transform` takes
            Activations. They are read once, block by block.
        y : (n, d_out) of the same kinds
            What a transcoder is to rebuild of X. An autoencoder ignores it, for scikit-learn's pipelines.

        Notes
        -----
        More active latents explain more: a search that maximises this takes the largest `target_l0` it is offered. Compare
        at one L0, or search by what the codes are for. Figures under different metrics are in different units.
        """
        self._check_fitted()
        if self._fitted.space.widths is not None:
            return self._explained(X)[0]
        if not self.is_transcoder:
            return super().score(X)
        if y is None:
            raise ValueError("y: a transcoder is scored by what it rebuilds; call score(X, Y)")
        rows = PairedRows(self._check_rows(X, reset=False), rows_of(y, "y"))
        if rows.y.d != self._model.d_out:
            raise ValueError(f"y: expected {self._model.d_out} features as of the target, got {rows.y.d}")
        found = ExplainedVariance("centered", num_threads=self.num_threads)
        for block in finite_blocks(rows):
            found.update(block.y, self._rebuilt(block.x))
        return float(found.result().total)

    def site_scores(self, X: Any) -> np.ndarray:
        """Share of the variance of each site of X that a crosscoder explains (sites,), centred, float64.

        `score` is their mean, weighted by the sites' variances in the training space.

        Parameters
        ----------
        X : Sites, or rows of all columns (n, d_in)
            Activations that `fit` has not seen. They are read once, block by block.

        Raises
        ------
        ValueError
            It was not fitted to `atoms.activations.Sites`.
        """
        self._check_fitted()
        if self._fitted.space.widths is None:
            raise ValueError(
                "X: this autoencoder has no sites; fit(atoms.activations.Sites(...)) makes a crosscoder"
            )
        return self._explained(X)[1]

    def _explained(self, X: Any) -> tuple[float, np.ndarray]:
        """What a crosscoder explains of all sites, in the training space, and of each."""
        scales, sites = self._fitted.space.scales, self.sites_ or ()
        whole, *found = (ExplainedVariance("centered", num_threads=self.num_threads) for _ in (0, *sites))
        for block in finite_blocks(self._check_rows(X, reset=False)):
            rows, rebuilt = block * scales, self.inverse_transform(self._codes(block)) * scales
            whole.update(rows, rebuilt)
            for one, of in zip(found, sites):
                one.update(rows[:, of], rebuilt[:, of])
        return float(whole.result().total), np.array([one.result().total for one in found])

    # ---------------------------------------------------------- folded weights

    def _fold(self) -> dict[str, np.ndarray]:
        """The properties' values, computed together when the first is asked for; they cannot be written to."""
        self._check_fitted()
        model, known = self._model, self._folded
        if known is None or known[0] is not model or known[1] != model.turns.version:
            with model.turns.reading():
                folded = self._fitted.space.fold(model)
                for a in folded.values():
                    a.flags.writeable = False
                known = self._folded = (model, model.turns.version, folded)
        return known[2]

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
        """Decoder to raw activations (d_sae, d_in): the atoms, of unit norm under the metric.

        A transcoder's (d_sae, d_out): of one norm, to its target's activations.
        """
        return self._fold()["W_dec"]

    @property
    def b_dec(self) -> np.ndarray:
        """Decoder bias in raw activations (d_in,), a transcoder's (d_out,)."""
        return self._fold()["b_dec"]

    @property
    def W_skip(self) -> np.ndarray | None:
        """Skip connection between raw activations (d_in, d_out); None where there is none."""
        return self._fold().get("W_skip")

    @property
    def is_transcoder(self) -> bool:
        """Whether it was fitted with a target: what it gives is not a copy of X."""
        self._check_fitted()
        return self._model.transcodes

    @property
    def sites_(self) -> tuple[slice, ...] | None:
        """A crosscoder's columns of each site; None where there are no sites."""
        self._check_fitted()
        widths = self._fitted.space.widths
        return None if widths is None else columns(widths)

    @property
    def site_norms_(self) -> np.ndarray | None:
        """Norms of a crosscoder's decoder rows at each site (d_sae, sites), whose squares sum to 1; None without sites.

        They are those of the training space, in which all sites are equally strong. With two sites
        ``site_norms_[:, 1] / site_norms_.sum(axis=1)`` is the relative norm by which models are compared: near 0 and 1 for
        latents of one site alone, about 1/2 for those of both.
        """
        sites = self.sites_
        if sites is None:
            return None
        D = self._model.get("W_dec")
        return np.column_stack(
            [np.sqrt(np.einsum("ij,ij->i", D[:, of], D[:, of], dtype=np.float64)) for of in sites]
        )

    @property
    def threshold(self) -> np.ndarray:
        """A latent is active above it (d_sae,); zero for ReLU and TopK."""
        return self._fold()["threshold"]

    def _portable(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        weights, model = self._fold(), self._model
        k = k_of(self._fitted.parameters["target_l0"]) if model.activation == "topk" else None
        rule = {
            "activation": model.activation,
            "k": k,
            "input_norm": "none",
            "is_transcoder": model.transcodes,
        }
        return weights, rule, {}

    # ---------------------------------------------------------- in a notebook

    @plot.drawing
    def plot(self, axes: Any = None) -> Any:
        """Draw the explained variance in training: that of batches thin, of held-out rows thick."""
        self._check_fitted()
        history, target = self.history_, self._fitted.parameters["target_l0"]
        if not history["step"]:
            raise ValueError("history_: holds no steps; the file it was read from has none")
        axes = plot.axes_of(axes)
        plot.training(axes, {"": history})
        held_out = [f"{v:.1f} held out" for v in history["l0_val"] if not np.isnan(v)][-1:]
        l0 = held_out[0] if held_out else f"{history['l0'][-1]:.1f}"
        about = f"L0 {l0}, target {target:g}; {history['dead'][-1]:,} dead of {self._model.d_sae:,}"
        plot.titles(axes, "Explained variance", about)
        return axes

    def _figures(self) -> list[tuple[str, Any]]:
        space, model, _, history, parameters, _ = self._fitted
        metric, last = space.metric, {name: values[-1] for name, values in history.items() if values}
        tied = ", tied" if parameters["tied"] else ""
        skip = ", with a skip connection" if model.skip else ""
        to = f", to {model.d_out:,} of a target{skip}" if model.transcodes else ""
        if space.widths is not None:
            to = f" ({' + '.join(f'{d:,}' for d in space.widths)} of {len(space.widths)} sites)"
        rows: list[tuple[str, Any]] = [
            ("latents", f"{model.d_sae:,} {parameters['activation']}{tied}, of {model.d_in:,} features{to}"),
            (
                "metric",
                "none: Euclidean" if metric is None else f"{metric!r} of {metric.n_samples_seen_:,} rows",
            ),
        ]
        if last:
            held_out = latest(history["explained_variance_val"])
            rows += [
                ("trained", f"{last['step']:,} steps, {last['samples']:,} samples, {last['seconds']:.1f} s"),
                ("explained variance, last batch", f"{last['explained_variance']:.4f}"),
                ("explained variance, held out", None if held_out is None else f"{held_out:.4f}"),
                ("L0 (its target)", f"{last['l0']:.1f} ({parameters['target_l0']:g})"),
                ("dead latents", f"{last['dead']:,}"),
            ]
        return rows

    # --------------------------------------------------------- files and copies

    # what fit leaves behind; all but the last two are public
    _FITTED = ("history_", "n_features_in_", "feature_names_in_", "n_dropped_massive_", "_fitted", "_folded")
    n_dropped_massive_ = 0
    skip_connection: bool = False  # pickles of before have none
    _fitted: Trained
    _folded: tuple[Model, int, dict[str, np.ndarray]] | None = None

    @property
    def _model(self) -> Model:
        return self._fitted.model

    @property
    def metric_(self) -> Any:
        """The metric it was fitted under, in a copy of its own, or None."""
        self._check_fitted()
        return self._fitted.space.metric

    def _take(self, trained: Trained) -> None:
        self._fitted, self.history_, self._folded = trained, trained.history, None
        self.n_features_in_ = trained.model.d_in

    def save(self, path: str | os.PathLike[str], *, training_state: bool = False) -> None:
        """Write to a safetensors file, first beside `path`, then renamed: never half a file.

        The metric goes with it, and the parameters are those of `fit`, whatever has been set since. `training_state`
        adds what `fit(checkpoint=...)` needs to go on.
        """
        self._check_fitted()
        _saving.write(path, type(self).__name__, self._fitted, training_state)

    def push_to_hub(
        self,
        repo_id: str,
        subfolder: str = "",
        *,
        private: bool | None = None,
        token: str | None = None,
        **metadata: Any,
    ) -> str:
        """Put the autoencoder on the Hugging Face hub, with a card that says its figures by their conventions.

        Two files: what `save` writes, and ``README.md``, the card, which says how to load it: held-out explained
        variance and L0 where `fit` had an `X_val`, those of training, the metric, what is known of the training data.

        Parameters
        ----------
        repo_id : str
            ``"user/name"``. Made where it is not there yet; files of before are replaced, and stay in its history.
        subfolder : str
            Where in it, for a repository of several; the hub shows the card of its top folder alone.
        private : bool, optional
            Of a repository that is made; the account's own setting by default.
        token : str, optional
            By default the one that ``hf auth login`` stored, or ``HF_TOKEN``.
        **metadata
            For the card: ``model_name``, ``hook_name``, ``license``, ``language``, ``datasets``, ``base_model`` (the last four
            for the hub's own search) and whatever else is to be said.

        Returns
        -------
        str
            ``"hf://user/name"``, which `atoms.load` reads.

        Raises
        ------
        ImportError
            huggingface_hub is not installed.
        ValueError
            A name that no repository can have.
        huggingface_hub.errors.HfHubHTTPError
            The hub refuses: nobody is logged in, or may not write there.
        """
        self._check_fitted()
        options = {"private": private, "token": token, "metadata": metadata}
        return _hub.push(type(self).__name__, self._fitted, self.save, repo_id, subfolder, options)

    @classmethod
    def load(cls, path: str | os.PathLike[str], num_threads: int | None = None) -> SparseAutoencoder:
        """Read what `save` wrote: the same codes, to the bit.

        Raises
        ------
        ValueError
            Another file, or a damaged one; no more memory is used than the weights in it justify.
        """
        with opened_tensors(path, cls.__name__) as (tensors, meta), reading(path, cls.__name__):
            self = cls(**meta["parameters"], num_threads=num_threads)
            self.metric = _saving.read_metric(tensors, meta, num_threads)
            meta["parameters"] = as_json(self.get_params(deep=False))
            self._take(_saving.restore(tensors, meta, metrics.frozen(self.metric), context(num_threads)))
        return self

    def __getstate__(self) -> dict[str, Any]:
        return self._state(training_state=True)

    def _state(self, training_state: bool) -> dict[str, Any]:
        state = {k: v for k, v in vars(self).items() if k not in ("_fitted", "_folded")}
        return state | _saving.as_state(self._fitted, training_state) if "_fitted" in vars(self) else state

    def _as_now(self) -> SparseAutoencoder:
        """Without Adam's moments, two thirds of what would go to another process."""
        own = type(self).__new__(type(self))
        own.__setstate__(self._state(training_state=False))
        return own

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = aligned(state)
        vars(self).update({k: v for k, v in state.items() if k not in (*_saving.STATE, "_folded")})
        if "_arrays" in state:
            parameters = as_json(self.get_params(deep=False))
            self._take(_saving.from_state(state, parameters, context(self.num_threads)))


def _unsaved(path: Any) -> None:
    """Nothing writes checkpoints by itself between calls of `partial_fit`."""


def _as_rows(part: np.ndarray | Pair) -> Any:
    return PairedRows.of(part) if isinstance(part, Pair) else Rows(part)


def _check_sides(saes: Sequence[SparseAutoencoder], settings: Sequence[Settings], rows: Any) -> None:
    """ValueError where these cannot be trained on rows with a target, or without one."""
    for sae, own in zip(saes, settings):
        if isinstance(rows, PairedRows):
            check_target(own, sae.metric)
        else:
            check_no_target(own)
        if rows.widths is not None and sae.metric is not None:
            raise ValueError(
                "metric: a crosscoder's sites are scaled each by its own number, and its norms are of sites; leave it None. "
                "Under a metric of all columns, fit to np.hstack of the sites instead of Sites"
            )


def _start(
    ctx: Any,
    rows: Rows | PairedRows,
    settings: Settings,
    metric: Any,
    init: Any,
    widths: Sequence[int] | None,
) -> tuple[TrainingSpace, Model]:
    """A model that has not been trained: `init`'s weights, or directions of these rows."""
    space = TrainingSpace.fit(rows, metric, widths=widths)
    model = Model.of(ctx, rows.d, settings, None if space.target is None else space.target.d)
    if init is not None:
        for name, value in space.unfold(init, settings.d_sae, bool(settings.tied), model.skip).items():
            model.set(name, value)
    else:
        initialise(ctx, model, settings, space.to_space(starting_rows(settings, rows)))
    return space, model


def _judges(settings: Settings, space: TrainingSpace, rows: Any) -> Any:
    """Rows by which dead latents are revived; None where none is to be."""
    if not settings.dead_after or settings.aux_k:
        return None
    return space.to_space(judging_rows(settings, rows))


def fit_many(
    saes: list[SparseAutoencoder],
    X: Any,
    X_val: Any = None,
    *,
    target: Any = None,
    target_val: Any = None,
    calibrate: bool = True,
    massive: str | float = "keep",
    callback: Callable[[SparseAutoencoder, dict[str, Any]], None] | None = None,
    init: Any = None,
    checkpoints: Sequence[Any] | None = None,
    checkpoint_minutes: float = 5.0,
    checkpoint_steps: int | None = None,
) -> list[SparseAutoencoder]:
    """Train several autoencoders (seeds, widths, targets) in one pass over the same activations.

    Each batch is read, and whitened for each different metric, once. The batches are drawn by the first
    one's `random_state`, so all see the same samples; `batch_size` and `max_steps` must agree.

    Parameters
    ----------
    saes : list of SparseAutoencoder
        To be fitted, each with its own parameters.
    X : array (n, d_in), memory map, list of them, ``store[layer]`` or ActivationStream
        As in `SparseAutoencoder.fit`, and so all that follows.
    X_val : array (m, d_in), optional
        Held out.
    target : array (n, d_out), optional
        What transcoders rebuild of X, all of them the same.
    target_val : array (m, d_out), optional
        And of `X_val`.
    calibrate : bool
        Whether thresholds are brought to each one's L0 on `X_val` at the end.
    massive : {"keep", "drop"} or float
        Which rows of massive norm are left out, see `SparseAutoencoder.fit`.
    callback : callable, optional
        Called after each step of each autoencoder, with it and the step's figures; or less often, as in `SparseAutoencoder.fit`.
    init : object with W_enc, W_dec, b_enc, b_dec and threshold, optional
        What all of them start from.
    checkpoints : sequence of path or None, optional
        A file for each. They are all of one step, also where the process is killed while they are written.
    checkpoint_minutes : float
        Minutes from one checkpoint to the next.
    checkpoint_steps : int, optional
        Write them after each multiple of so many steps, too.

    Returns
    -------
    list of SparseAutoencoder
        `saes`, fitted.

    Raises
    ------
    ValueError
        Where `batch_size` or `max_steps` differ, or as `SparseAutoencoder.fit` does.
    TypeError
        `saes` holds something else.
    """
    _check_kinds(saes)
    paths = [None] * len(saes) if checkpoints is None else listed(checkpoints, "checkpoints")
    check_between(callback, checkpoint_minutes, checkpoint_steps, paths, "checkpoints")
    check_flag(calibrate, "calibrate")
    _check_together(saes, paths)
    rows, val, dropped = training_rows(X, X_val, massive, target, target_val)
    settings = [
        sae._settings(None if path is None else _saving.seed_in(path)) for sae, path in zip(saes, paths)
    ]
    _check_sides(saes, settings, rows)
    metric_of = _own_metrics(saes, rows)
    with contextlib.ExitStack() as held:
        held.enter_context(_checkpoints.held(paths))
        sampler = rows.sampler(settings[0].batch_size, settings[0].seed, settings[0].max_steps)
        held.callback(sampler.close)
        runs = [
            sae._begin(own, rows, sampler, init, path, metric_of[id(sae.metric)])
            for sae, own, path in zip(saes, settings, paths)
        ]
        if any(run.steps == 0 for run in runs):
            warn_of_massive(read_side(sampler.first()), 3, rows.widths)
        for sae, run in zip(saes, runs):
            if callback is not None:
                run.callback, run.asks = functools.partial(callback, sae), _asks(callback)
        with _taking(saes, runs, rows, dropped):
            last = train(
                runs, sampler, val, calibrated=calibrate, verbose=saes[0].verbose,
                checkpoint_minutes=checkpoint_minutes, checkpoint_steps=checkpoint_steps,
            )  # fmt: skip
    _warn_of_the_end(saes, rows.n, last, type(X).__name__, val is None)
    return saes


def _asks(callback: Any) -> int:
    """After how many steps a callback is called again: its `every` where that is a number of steps."""
    every = getattr(callback, "every", 1)
    return max(1, int(every)) if isinstance(every, numbers.Integral) else 1


def _check_kinds(saes: Any) -> None:
    """TypeError unless it is a list of autoencoders."""
    if not isinstance(saes, (list, tuple)):
        raise TypeError(f"saes: expected a list of SparseAutoencoder, got a {type(saes).__name__}")
    for k, sae in enumerate(saes):
        if not isinstance(sae, SparseAutoencoder):
            what = sae.__name__ + " itself" if isinstance(sae, type) else f"a {type(sae).__name__}"
            raise TypeError(f"saes[{k}]: expected a SparseAutoencoder, got {what}")


def _check_together(saes: list[SparseAutoencoder], paths: list[Any]) -> None:
    """ValueError where these autoencoders cannot be trained in one pass."""
    if not saes or len(paths) != len(saes):
        raise ValueError(
            f"saes, checkpoints: expected at least one, with a checkpoint each, got {len(saes)} and {len(paths)}"
        )
    for name in ("batch_size", "max_steps"):
        if len({check_count(getattr(s, name), name) for s in saes}) > 1:
            raise ValueError(f"{name}: expected the same for all autoencoders trained in one pass")
    if len({id(s) for s in saes}) < len(saes):
        raise ValueError("saes: the same autoencoder is there twice; make another")


def _warn_of_the_end(
    saes: list[SparseAutoencoder], n: int | None, last: int, kind: str, unseen: bool
) -> None:
    """Rows that ended before the steps did; or an L0 that nobody knows on rows that were not seen."""
    sae, caller = saes[0], 3 if len(saes) > 1 else 4
    if last < sae.max_steps:
        warnings.warn(
            f"X: a {kind} whose rows ended after {last:,} of {sae.max_steps:,} steps; the learning "
            "rate was brought down over those left in the buffer. For all steps pass what can be gone through again: "
            "a DataLoader, a list of arrays, or the function that makes the generator; or ask for fewer max_steps",
            stacklevel=caller,
        )
    elif unseen and n is not None and sae.max_steps * sae.batch_size > 2 * n:
        if any(s.activation != "topk" for s in saes):
            warnings.warn(
                f"target_l0 is held on the rows of X, each seen about {sae.max_steps * sae.batch_size / n:.0f} times; on "
                "other rows L0 may be twice as high, and nothing here measures it. Pass X_val=: L0 is recorded on it, and "
                "thresholds are calibrated on it",
                stacklevel=caller,
            )


def _own_metrics(saes: list[SparseAutoencoder], rows: Any) -> dict[int, Any]:
    """A copy of each different metric, by the metric's id, fitted where it is not: for these autoencoders alone."""
    own = {}
    for metric in {id(sae.metric): sae.metric for sae in saes}.values():
        fitted = metrics.fitted(metric, rows.blocks)
        check_metric(fitted, rows.d)
        own[id(metric)] = metrics.frozen(fitted)
    return own


@contextlib.contextmanager
def _taking(saes: list[SparseAutoencoder], runs: list[Run], rows: Any, dropped: int) -> Iterator[None]:
    """Inside, the autoencoders are what is being trained; an error brings back what they were before."""
    with restored(saes, SparseAutoencoder._FITTED):
        for sae, run in zip(saes, runs):
            sae._check_X(rows.shards[0], reset=True, names=rows.feature_names)
            sae._take(run.trained)
            sae.n_dropped_massive_ = dropped
        try:
            yield
        finally:
            for sae in saes:
                sae._finish()


def set_thresholds(sae: SparseAutoencoder, values: np.ndarray) -> None:
    """Give a fitted autoencoder other thresholds: `atoms.report` compares kinds at one L0."""
    sae._model.set("threshold", values)


def as_fitted(sae: Any) -> Any:
    """An autoencoder whose attributes are those it was fitted with, whatever has been set since: for reading only.

    What is no `SparseAutoencoder` comes back as it is.
    """
    if not isinstance(sae, SparseAutoencoder):
        return sae
    sae._check_fitted()
    own = SparseAutoencoder(**sae._fitted.parameters, metric=sae.metric_, num_threads=sae.num_threads)
    own._take(sae._fitted)
    return own
