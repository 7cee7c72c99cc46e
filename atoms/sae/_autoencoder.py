"""SparseAutoencoder, the estimator, and fit_many."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from .. import metric as metrics
from .._config import context
from .._estimator import Estimator
from .._files import load_tensors, reading
from .._rows import BlockRows, BlockSampler, Rows, RowSampler, is_shards, warn_of_massive
from . import _checkpoints, _saving
from ._calibration import threshold_factor
from ._model import Model, blocks, decode, stacked
from ._revival import judging_rows
from ._saving import Trained
from ._settings import Settings, as_json
from ._space import TrainingSpace, check_metric
from ._start import initialise, starting_rows
from ._steering import Control
from ._training import HISTORY, Run, train, training_rows


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
        What decides which latents are active, see above.
    metric : AtomicInnerProduct, optional
        Fitted. None trains in Euclidean geometry.
    target_l0 : float
        Mean number of active latents for each sample; k for the TopK family (rounded, at least 1).
    tied : bool
        W_enc = W_dec' in the training space, that is W_enc = S W_dec' for raw activations (the
        theory's form; one parameter block, half the optimiser's work).
    batch_size, max_steps : int
        Samples for each step; steps.
    learning_rate : float
        Adam's, between warm-up and decay.
    warmup, decay : float
        Shares of the steps: over the first `warmup` of them the learning rate rises from zero, over the
        last `decay` it falls to zero, both linearly.
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
    beta1, beta2 : float
        Adam's decay rates of the first and the second moment.
    matryoshka_widths : sequence of int, optional
        Ascending numbers of latents; `d_sae` ends them, given or not.
    aux_k : int
        0, or AuxK takes the place of the new directions for dead latents; d_in / 2 is usual.
    aux_coefficient : float
        Weight of AuxK in the objective.
    screen : {"auto", "float32", "int8", "int16"}
        How the core finds the latents that may be active: products of 8 bits where the CPU has them
        (AVX-512 VNNI), of 16 bits on AVX2, else float32's. The result is the same.
    random_state : int
        Seeds everything; equal seeds give equal bits, for any number of threads.
    num_threads : int, optional
        None for the package's setting.
    verbose : bool
        Show a progress bar.

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

    # ---------------------------------------------------------------- training

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
            Held out; its explained variance is shown and recorded twenty times. A one-dimensional array,
            which scikit-learn's pipelines pass as ``y``, is ignored.
        callback : callable, optional
            Called after each step with the estimator and the step's figures; `atoms.loggers` has some.
        init : object with W_enc, W_dec, b_enc, b_dec and threshold, optional
            Start from these weights (of raw activations, as this class gives them) instead of afresh. Not a
            transcoder; with ``tied=True``, one whose encoder is its decoder's transpose in the training space.
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
            Rows whose norm is more than ten times the median make a twentieth of the sum of squares or more.
            Up to 8,192 rows are looked at, of a store or a stream those of the first buffer.
        The last batch is explained worse than by its mean.

        Notes
        -----
        What was fitted is its own: fitting the metric again, or `set_params`, changes nothing until the next
        `fit`. Where `fit` raises, the autoencoder is what it was before; only Ctrl-C, and a checkpoint that
        cannot be written, leave what has been trained so far. Other threads may use the autoencoder
        meanwhile: they have the model of one step or another.
        """
        if X_val is not None and not is_shards(X_val) and np.asarray(X_val).ndim == 1:
            X_val = None
        fit_many(
            [self], X, X_val, callback=callback, init=init, checkpoints=[checkpoint],
            checkpoint_minutes=checkpoint_minutes, checkpoint_steps=checkpoint_steps,
        )  # fmt: skip
        return self

    def fit_transform(self, X: Any, y: Any = None) -> sp.csr_array:
        """`fit(X)`, then `transform(X)`."""
        return self.fit(X, y).transform(X)

    def _begin(
        self,
        rows: Rows | BlockRows,
        sampler: RowSampler | BlockSampler,
        init: Any,
        checkpoint: Any,
        metric: Any,
    ) -> Run:
        """A run that is ready for its first step, or for the one after a checkpoint's last; self is as before.

        `metric` is a copy of self's that nobody else changes.
        """
        settings, ctx, kind = Settings.of(self).new(), context(self.num_threads), type(self).__name__
        parameters, data = as_json(self.get_params(deep=False)), rows.identity()
        if checkpoint is not None and os.path.exists(checkpoint):
            trained = _saving.resume(checkpoint, kind, parameters, metric, data, ctx)
        else:
            space, model = _start(ctx, sampler.first(), settings, metric, init)
            history: dict[str, list[Any]] = {name: [] for name in HISTORY}
            control = Control(l1=settings.l1_coefficient or 0.0)
            trained = Trained(space, model, control, history, parameters, data)
        return Run(
            settings,
            trained,
            self.num_threads,
            callback=None,
            path=checkpoint,
            save=lambda path: _saving.write(path, kind, trained, training_state=True),
            judges=trained.space.to_space(judging_rows(settings, sampler.first()))
            if settings.dead_after and not settings.aux_k
            else None,
        )

    def _finish(self) -> None:
        """The model has changed: its threshold for inference follows."""
        self._fitted.control.publish_cut(self._model)

    def calibrate(self, X: Any, target_l0: float | None = None) -> SparseAutoencoder:
        """Multiply all thresholds by the one factor at which the mean L0 on X is `target_l0`.

        Training holds L0 on the rows it sees. On other text it may differ by some percent, and in small
        or long-trained data by more, for the encoder fits the rows it has seen. Calibrating on held-out rows
        puts that right and changes nothing else.

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
        target = float(parameters["target_l0"] if target_l0 is None else target_l0)
        if not 0 < target <= model.d_sae:
            raise ValueError(
                f"target_l0: expected more than 0 and at most d_sae ({model.d_sae}), got {target!r}"
            )
        rows = self._rows(X)
        with model.turns.writing():  # its thresholds change on the way
            factor = threshold_factor(context(self.num_threads), model, space, rows, target)
            control.cut *= factor
            model.set("threshold", model.get("threshold") * np.float32(factor))
            control.publish_cut(model)
        return self

    # --------------------------------------------------------------- inference

    def _rows(self, X: Any) -> Rows:
        """X as `Rows`, checked against the rows that the autoencoder was fitted to."""
        self._check_fitted()
        rows = Rows(X)
        self._check_X(X if len(rows.shards) == 1 else rows.shards[0], reset=False)
        return rows

    def transform(self, X: Any) -> sp.csr_array:
        """Codes of activations: CSR array (n, d_sae) float32, in the units of the training space.

        Strict inequality: ``a = z 1[z > threshold]``. Cost: 2 d_in d_sae operations for each sample.
        """
        rows, ctx = self._rows(X), context(self.num_threads)
        space, model = self._fitted.space, self._fitted.model
        batches = (space.batch(rows.slice(block.start, block.stop)) for block in blocks(rows.n))
        return stacked([model.encode(ctx, batch) for batch in batches])

    def inverse_transform(self, codes: Any) -> np.ndarray:
        """Raw activations (n, d_in) float32 from codes (n, d_sae), sparse or dense."""
        self._check_fitted()
        codes = sp.csr_array(codes)
        folded = self._fold()
        W, b = folded["W_dec"], folded["b_dec"]
        if codes.shape[1] != len(W):
            raise ValueError(f"codes: expected {len(W)} columns (d_sae), got {codes.shape[1]}")
        return decode(context(self.num_threads), codes, W, b)

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

    # --------------------------------------------------------- files and copies

    # what fit leaves behind; all but the last two are public
    _FITTED = ("history_", "n_features_in_", "feature_names_in_", "_fitted", "_folded")
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
            self.metric = _saving.read_metric(tensors, meta, num_threads)
            meta["parameters"] = as_json(self.get_params(deep=False))
            self._take(_saving.restore(tensors, meta, metrics.frozen(self.metric), context(num_threads)))
        return self

    def __getstate__(self) -> dict[str, Any]:
        state = {k: v for k, v in vars(self).items() if k not in ("_fitted", "_folded")}
        return state | _saving.as_state(self._fitted) if "_fitted" in vars(self) else state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({k: v for k, v in state.items() if k not in (*_saving.STATE, "_folded")})
        if "_arrays" in state:
            parameters = as_json(self.get_params(deep=False))
            self._take(_saving.from_state(state, parameters, context(self.num_threads)))


def _start(ctx: Any, rows: Rows, settings: Settings, metric: Any, init: Any) -> tuple[TrainingSpace, Model]:
    """A model that has not been trained: `init`'s weights, or directions of these rows."""
    space = TrainingSpace.fit(rows, metric)
    model = Model.of(ctx, rows.d, settings)
    if init is not None:
        for name, value in space.unfold(init, settings.d_sae, bool(settings.tied)).items():
            model.set(name, value)
    else:
        initialise(ctx, model, settings, space.to_space(starting_rows(settings, rows)))
    return space, model


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
    See `SparseAutoencoder.fit` for the arguments; `checkpoints` has a path or None for each. They are all of
    one step, also where the process is killed while they are written.

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
    if len({id(s) for s in saes}) < len(saes):
        raise ValueError("saes: the same autoencoder is there twice; make another")
    rows, val = training_rows(X, X_val)
    settings = Settings.of(saes[0])
    metric_of = _own_metrics(saes, rows.d)
    with contextlib.ExitStack() as held:
        held.enter_context(_checkpoints.held(paths))
        sampler = rows.sampler(settings.batch_size, settings.seed, settings.max_steps)
        held.callback(sampler.close)
        runs = [
            sae._begin(rows, sampler, init, path, metric_of[id(sae.metric)]) for sae, path in zip(saes, paths)
        ]
        if any(run.model.steps == 0 for run in runs):
            warn_of_massive(sampler.first(), stacklevel=3)
        for sae, run in zip(saes, runs):
            run.callback = None if callback is None else functools.partial(callback, sae)
        with _taking(saes, runs, rows):
            train(
                runs, sampler, val, verbose=saes[0].verbose,
                checkpoint_minutes=checkpoint_minutes, checkpoint_steps=checkpoint_steps,
            )  # fmt: skip
    return saes


def _own_metrics(saes: list[SparseAutoencoder], d: int) -> dict[int, Any]:
    """A copy of each different metric, by the metric's id: for these autoencoders alone."""
    for sae in saes:
        check_metric(sae.metric, d)
    return {id(metric): metrics.frozen(metric) for metric in (sae.metric for sae in saes)}


@contextlib.contextmanager
def _taking(saes: list[SparseAutoencoder], runs: list[Run], rows: Rows | BlockRows) -> Iterator[None]:
    """Inside, the autoencoders are what is being trained; an error brings back what they were before.

    Ctrl-C, and a checkpoint that cannot be written, leave what has been trained so far.
    """
    before = [{name: vars(sae)[name] for name in sae._FITTED if name in vars(sae)} for sae in saes]
    try:
        for sae, run in zip(saes, runs):
            sae._check_X(rows.shards[0], reset=True, names=rows.feature_names)
            sae._take(run.trained)
        yield
    except BaseException as error:
        if isinstance(error, Exception) and not isinstance(error, OSError):
            for sae, was in zip(saes, before):
                for name in sae._FITTED:
                    vars(sae).pop(name, None)
                vars(sae).update(was)
            raise
        for sae in saes:
            sae._finish()
        raise
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
