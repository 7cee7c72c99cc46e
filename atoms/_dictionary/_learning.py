"""DictionaryLearning, the estimator."""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp

from .. import _plot as plot
from .. import metric as metrics
from .._arrays import as_codes
from .._checks import first_nonfinite_row, nonfinite_error, part_by_part
from .._config import context
from .._estimator import Routed, restored
from .._files import load_tensors, reading
from .._frames import framed
from .._rows import Rows, by_blocks, finite_blocks, rows_of, warn_of_massive
from .._scored import Scored
from ..recovery import Dictionary
from ..recovery._coding import complain
from ..sae._checkpoints import held
from ..sae._in_model import Described
from ..sae._model import BLOCK, decode, stacked
from ..sae._saving import read_metric, seed_in
from ..sae._settings import check_same_parameters
from ..sae._space import check_metric, through
from ..sae._training import PART, check_between, check_labels, latest, shuffled_batches, train, training_rows
from ._learned import KIND, Learned, checked, resume
from ._start import start
from ._steps import Steps, code


class DictionaryLearning(Described, Scored, Routed):
    """Online dictionary learning over sparse codes that no encoder gives: OMP's, the lasso's, or those of spikes by mean field.

    Activations are mapped to the training space of `SparseAutoencoder`: ``t(x) = (x - mean) S^(1/2)`` under
    `metric` (the mean only where the metric is centred), else ``t(x) = c (x - mean)`` with mean square 1 a
    coordinate; what mean is left there is taken off too. Over unit atoms ``d_j`` the objective is

    * ``mean_i |t_i - z_i D|^2`` with at most `n_nonzero` nonzeros in ``z_i`` (``"omp"``, and ``"nn-omp"`` with
      ``z >= 0``), or
    * ``mean_i 1/2 |t_i - z_i D|^2 + alpha |z_i|_1`` (``"lasso"``, and ``"nn-lasso"`` with ``z >= 0``), or
    * ``mean_i |t_i - z_i D|^2`` where ``z_i`` is the posterior mean of independent spikes (``"spikes"``): atom j fires with
      a rate and a normal height of its own, both learned, in white noise. It counts as firing from a probability of 1/2
      on. Mean field: of `n_nonzero` candidates a row each takes its mean given the others'.

    Each step codes a batch, and then brings each atom in turn to the least squares fit of the residuals, held by the
    energy ``e_j``, the discounted sum of its squared coefficients so far:

        ``e_j = keep e_j + sum_i z_ij^2``, ``d_j += sum_i z_ij r_i / e_j``, ``r_i -= z_ij (change of d_j)``.

    This is the block coordinate descent of Mairal et al. 2010 (section 3.4) on the batch alone, in which earlier
    batches come in through the diagonal of their second moment of codes, their own gradient taken as zero. So no
    matrix of atoms by atoms or of atoms by features is kept. ``keep = (1 - 1 / step) ** forget``.

    With spikes that is expectation maximisation. Atoms that fire with another one in nearly all of their samples could be
    any mixture with it, and are taken to be the least coherent one (`incoherence`). What codes leave over moves `b_dec`.
    It begins from directions along which the third moment of some rows is largest; best from a trained autoencoder
    (`init`): see Notes.

    Parameters
    ----------
    n_atoms : int
        Number of atoms.
    n_nonzero : int, optional
        For the OMP coders: most atoms in a code; default 10% of the features. For spikes: atoms that are looked at in a
        row, some times L0; default a twelfth of the features, at least 16.
    alpha : float, optional
        For the lasso coders: the penalty, in units of the training space; default 1.
    metric : AtomicInnerProduct, optional
        Unfitted, it is fitted to X, in a copy; None learns in Euclidean geometry.
    coder : {"omp", "nn-omp", "lasso", "nn-lasso", "spikes"}
        What codes are, see above.
    batch_size : int
        Samples for each step.
    max_steps : int
        Steps of `fit`.
    forget : float
        How fast earlier batches lose weight: batch s weighs ``(s / step) ** forget`` at a step. 0: never.
    sweeps : int
        Times that a step goes through all atoms.
    dead_after : float
        An atom that was in no code within so many times n_atoms / L0 samples is replaced by the residual of a row
        drawn by its squared norm, but not in the last tenth of the steps of `fit`. 0: never. With spikes, which know more
        of their atoms, any other number only says that atoms are replaced at all: in the first three quarters of the
        steps, those whose firing stays doubtful, that hardly fire, or that are copies, by directions that residuals share.
    incoherence : float
        For spikes, 0 to 1: how far atoms are drawn apart that do not fire together. 0 keeps near copies as they are. 1
        takes it that true atoms are nearly orthogonal, and finds more of them where that is so.
    random_state : int, None, RandomState or Generator
        Seeds everything; equal seeds give equal bits, for any number of threads. None: another seed in each `fit`, see
        `random_state_`. One of NumPy's generators gives its next number.
    num_threads : int, optional
        None for the package's setting.
    verbose : bool
        Show a progress bar.

    Attributes
    ----------
    W_dec : ndarray (n_atoms, d_in) float32
        The atoms for raw activations, ``x_hat = codes W_dec + b_dec``; of unit norm under the metric.
    b_dec : ndarray (d_in,) float32
    metric_ : AtomicInnerProduct or None
        That it was fitted under, in a copy of its own.
    history_ : dict of lists
        Of up to 200 steps of `fit`, evenly spaced: step, samples, seconds, loss (the objective, of the batch, before
        the step), explained_variance (centred, of the batch before the step), explained_variance_val (of `X_val`),
        l0, dead (replaced since the last record), unsolved (signals of the batch that the coder gave up).
    n_dropped_massive_ : int
        Rows of X that ``massive="drop"`` left out.
    n_features_in_ : int
    random_state_ : int
        The seed it was trained with: as `random_state`, it gives the same bits again.

    Notes
    -----
    On SynthSAEBench-16k (benchmarks/synthsae.py) spikes from a tied autoencoder find what it was built of better than any
    autoencoder: docs/benchmarks.md. Their model is a strong one: what fires has to be rare, of heights well above the
    noise, and positive. `history_` and a warning tell where hardly anything fires.

    The cost is that of the coder (`atoms.recovery.omp`, `atoms.recovery.lasso`; spikes: two products with all atoms a row,
    and the candidates' Gram matrix twice), and ``4 d_in sweeps`` operations for
    each nonzero; with spikes ``4 n_atoms^2 d_in`` a step beside. Memory beside theirs: three times the atoms, a batch in float32, and
    ``256 (batch_size + n_atoms)`` bytes a thread; `fit` keeps whitened rows as `SparseAutoencoder` does.

    References
    ----------
    Mairal, Bach, Ponce, Sapiro, "Online learning for matrix factorization and sparse coding" (2010);
    Rubinstein, Zibulevsky, Elad (2008), whose approximate K-SVD this is where ``keep = 0``.

    Examples
    --------
    >>> import numpy as np, atoms
    >>> X = np.random.default_rng(0).standard_normal((2000, 16)).astype("float32")
    >>> model = atoms.DictionaryLearning(32, n_nonzero=4, max_steps=20, verbose=False).fit(X)
    >>> codes = model.transform(X)
    >>> codes.shape, model.inverse_transform(codes).shape
    ((2000, 32), (2000, 16))
    """

    def __init__(
        self,
        n_atoms: int = 256,
        n_nonzero: int | None = None,
        alpha: float | None = None,
        metric: Any = None,
        *,
        coder: str = "omp",
        batch_size: int = 2048,
        max_steps: int = 200,
        forget: float = 2.0,
        sweeps: int = 1,
        dead_after: float = 100.0,
        incoherence: float = 0.0,
        random_state: Any = 0,
        num_threads: int | None = None,
        verbose: bool = True,
    ) -> None:
        self.n_atoms = n_atoms
        self.n_nonzero = n_nonzero
        self.alpha = alpha
        self.metric = metric
        self.coder = coder
        self.batch_size = batch_size
        self.max_steps = max_steps
        self.forget = forget
        self.sweeps = sweeps
        self.dead_after = dead_after
        self.incoherence = incoherence
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
        massive: str | float = "keep",
        callback: Callable[[DictionaryLearning, dict[str, Any]], None] | None = None,
        init: Any = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_minutes: float = 5.0,
        checkpoint_steps: int | None = None,
    ) -> DictionaryLearning:
        """Learn atoms from activations.

        Parameters
        ----------
        X : array (n, d_in), tensor, memory map, list of them, ``store[layer]``, ActivationStream, ...
            All that `SparseAutoencoder.fit` takes, read as it does and in its order.
        y : ignored
            For scikit-learn's pipelines.
        X_val : array (m, d_in), optional
            Held out; its explained variance is recorded twenty times.
        massive : {"keep", "drop"} or float
            "drop" leaves out rows whose norm is more than ten times the median of X's, a number those of more than so
            many times it, here and of `X_val`.
        callback : callable, optional
            Called after each step with the estimator and the step's figures; `atoms.loggers` has some.
        init : array (n_atoms, d_in), model with W_dec, or "k-means++", optional
            Atoms for raw activations to start from. "k-means++": rows far from each other, by 1 - cosine^2. None:
            rows at random.
        checkpoint : path, optional
            File to write every now and then and at the end, as `SparseAutoencoder.fit` does: where it is there,
            learning goes on from it, to the same bits.
        checkpoint_minutes : float
            Minutes from one checkpoint to the next.
        checkpoint_steps : int, optional
            Write one after each multiple of so many steps, too.

        Raises
        ------
        ValueError
            For parameters out of range, NaN or infinity in X (naming the row), or a checkpoint of other parameters,
            another metric or other data. The estimator is then what it was before.

        Warns
        -----
        UserWarning
            Rows whose norm is more than ten times the median, or from five to ten times it, make a twentieth of the sum
            of squares or more; rows ended before `max_steps`; with spikes, hardly an atom fires.
        """
        check_labels(y, X)
        check_between(callback, checkpoint_minutes, checkpoint_steps, [checkpoint], "checkpoint")
        parameters = checked(self, None if checkpoint is None else seed_in(checkpoint))
        rows, val, dropped = training_rows(X, X_val, massive)
        metric = metrics.fitted(self.metric, rows.blocks)
        check_metric(metric, rows.d)
        metric, data = metrics.frozen(metric), rows.identity()
        with contextlib.ExitStack() as open_:
            open_.enter_context(held([checkpoint]))
            sampler = rows.sampler(
                parameters["batch_size"], [parameters["random_state"]], parameters["max_steps"]
            )
            open_.callback(sampler.close)
            if checkpoint is not None and os.path.exists(checkpoint):
                learned = resume(checkpoint, parameters, metric, data)
            else:
                learned = start(sampler.first(), parameters, metric, init, data)
                warn_of_massive(sampler.first(), stacklevel=3)
            report = None if callback is None else functools.partial(callback, self)
            run = Steps(learned, self.num_threads, parameters["max_steps"], checkpoint, report)
            with self._taking(learned, rows):
                self.n_dropped_massive_ = dropped
                last = train(
                    [run], sampler, val, calibrated=False, verbose=self.verbose, what="dictionary",
                    checkpoint_minutes=checkpoint_minutes, checkpoint_steps=checkpoint_steps,
                )  # fmt: skip
        varies = np.isfinite(self.history_["explained_variance"][-1])
        if parameters["coder"] == "spikes" and varies and self.history_["l0"][-1] < 0.1:
            warnings.warn(
                f"coder: hardly an atom fires (L0 {self.history_['l0'][-1]:.2g}), so nothing has been learned; begin from atoms that "
                "fire, as init=SparseAutoencoder(...).fit(X), or take another coder",
                stacklevel=2,
            )
        if last < parameters["max_steps"]:
            warnings.warn(
                f"X: a {type(X).__name__} whose rows ended after {last:,} of {parameters['max_steps']:,} steps; for all "
                "steps pass what can be gone through again, or ask for fewer max_steps",
                stacklevel=2,
            )
        return self

    def partial_fit(self, X: Any, y: Any = None) -> DictionaryLearning:
        """Go on with these rows, batch after batch; the first call starts from them.

        Parameters
        ----------
        X : (n, d_in) array or tensor, or whatever else `fit` takes
            One step where it has up to `batch_size` rows, else several of about equal size, in random order.
        y : ignored
            For scikit-learn's pipelines.

        Raises
        ------
        ValueError
            As `fit`, and where parameters have changed since the first call; steps taken before a bad row stand.

        Notes
        -----
        A metric must be fitted before the first call, which takes a copy of it. ``save(path, training_state=True)``
        between two calls is a checkpoint, from which `load` goes on to the same bits.
        """
        begun = self.__sklearn_is_fitted__()
        parameters, rows = checked(self, self.random_state_ if begun else None), rows_of(X)
        if begun:
            check_same_parameters(parameters, self._learned.parameters)
            self._check_X(rows.shards[0], reset=False, names=rows.feature_names)
        for part in finite_blocks(rows, PART):
            if not self.__sklearn_is_fitted__():
                if len(part) < 2:
                    raise ValueError(f"X: expected at least 2 samples in the first call, got {len(part)}")
                check_metric(self.metric, rows.d)
                learned = start(Rows(part), parameters, metrics.frozen(self.metric), None, None)
                self._check_X(rows.shards[0], reset=True, names=rows.feature_names)
                self._take(learned)
                warn_of_massive(Rows(part), stacklevel=3)
            run = Steps(self._learned, self.num_threads)
            step = run.steps
            seed = [parameters["random_state"], 6, step]
            for index in shuffled_batches(len(part), parameters["batch_size"], seed):
                step += 1
                run.advance(step, 1, self._learned.space.batch(part, index), None)
        return self

    @property
    def n_samples_seen_(self) -> int:
        """Rows seen in training, repeated ones too."""
        self._check_fitted()
        return int(self._learned.counters[1])

    @property
    def random_state_(self) -> int:
        self._check_fitted()
        return int(self._learned.parameters["random_state"])

    @contextlib.contextmanager
    def _taking(self, learned: Learned, rows: Any) -> Iterator[None]:
        """Inside, the estimator is what is being learned; an error brings back what it was before."""
        names = ("_learned", "n_features_in_", "feature_names_in_", "n_dropped_massive_")
        with restored([self], names):
            self._check_X(rows.shards[0], reset=True, names=rows.feature_names)
            self._take(learned)
            yield

    # --------------------------------------------------------------- inference

    @framed
    @by_blocks
    def transform(self, X: Any) -> sp.csr_array:
        """Codes of activations, all that `fit` takes: CSR array (n, n_atoms) float32, in the units of the training space.

        NaN or infinity in X is an error, which names the row. One `RecoveryWarning` counts the signals that the coder
        gave up before its tolerance; their codes are the best it had.
        """
        self._check_fitted()
        blocks = self._check_rows(X, reset=False).blocks(BLOCK)
        parts, states = zip(*part_by_part(blocks, lambda block, _: self._coded(block)))
        complain(f"{type(self).__name__}.transform", np.concatenate(states))
        return stacked(list(parts))

    def _coded(self, block: np.ndarray) -> tuple[sp.csr_array, np.ndarray]:
        """Codes and statuses of rows."""
        learned = self._learned
        t = learned.space.to_space(block) - learned.center
        if (row := first_nonfinite_row(t)) >= 0:
            raise nonfinite_error(t, "X", row)
        codes, _, status = code(t, self._dictionary(), learned, self.num_threads)
        return codes, status

    def _codes(self, X: np.ndarray) -> sp.csr_array:
        codes, status = self._coded(X)
        complain(type(self).__name__, status)
        return codes

    @property
    def _n_features_out(self) -> int:
        return len(self._learned.atoms)

    @by_blocks
    def inverse_transform(self, codes: Any) -> np.ndarray:
        """Raw activations (n, d_in) float32 from codes (n, n_atoms), sparse or dense."""
        self._check_fitted()
        codes = sp.csr_array(as_codes(codes))
        if codes.shape[1] != len(self.W_dec):
            raise ValueError(f"codes: expected {len(self.W_dec)} columns (n_atoms), got {codes.shape[1]}")
        return decode(context(self.num_threads), codes, self.W_dec, self.b_dec)

    @property
    def W_dec(self) -> np.ndarray:
        """Atoms for raw activations (n_atoms, d_in), of unit norm under the metric."""
        return self._fold()[1]

    @property
    def b_dec(self) -> np.ndarray:
        """What codes of zeros give, in raw activations (d_in,)."""
        return self._fold()[2]

    @property
    def history_(self) -> dict[str, list[Any]]:
        """Figures of the steps."""
        self._check_fitted()
        return self._learned.history

    @property
    def metric_(self) -> Any:
        """The metric it was fitted under, in a copy of its own, or None."""
        self._check_fitted()
        return self._learned.space.metric

    n_dropped_massive_ = 0
    _learned: Learned

    def _fold(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, Dictionary]:
        """Atoms in the training space, which each step replaces; for raw activations, with what zeros give; prepared."""
        self._check_fitted()
        learned, folded = self._learned, self._learned.folded
        if folded is None or folded[0] is not learned.atoms:
            own = learned.atoms
            shift, _, back = learned.space.maps()
            W = through(own.astype(np.float64), back).astype(np.float32)
            b = (through(learned.center.astype(np.float64), back) + shift).astype(np.float32)
            W.flags.writeable = b.flags.writeable = False
            learned.folded = folded = own, W, b, Dictionary(own, num_threads=self.num_threads)
        return folded

    def _dictionary(self) -> Dictionary:
        return self._fold()[3]

    def _take(self, learned: Learned) -> None:
        self._learned = learned
        self.n_features_in_ = learned.space.d

    # ---------------------------------------------------------- in a notebook

    @plot.drawing
    def plot(self, axes: Any = None) -> Any:
        """Draw the explained variance in training: that of batches thin, of held-out rows thick."""
        if not self.history_["step"]:
            raise ValueError("history_: holds no steps yet; call fit or partial_fit with more rows")
        axes, history = plot.axes_of(axes), self.history_
        plot.training(axes, {"": history})
        replaced = sum(history["dead"])
        plot.titles(axes, "Explained variance", f"L0 {history['l0'][-1]:.1f}; {replaced:,} atoms replaced")
        return axes

    def _figures(self) -> list[tuple[str, Any]]:
        learned, metric = self._learned, self.metric_
        last = {name: values[-1] for name, values in learned.history.items() if values}
        geometry = "none: Euclidean" if metric is None else f"{metric!r} of {metric.n_samples_seen_:,} rows"
        rows: list[tuple[str, Any]] = [
            (
                "atoms",
                f"{len(learned.atoms):,} by {learned.parameters['coder']}, of {learned.space.d:,} features",
            ),
            ("metric", geometry),
        ]
        if last:
            held_out = latest(learned.history["explained_variance_val"])
            rows += [
                ("trained", f"{last['step']:,} steps, {last['samples']:,} samples, {last['seconds']:.1f} s"),
                ("explained variance, last batch", f"{last['explained_variance']:.4f}"),
                ("explained variance, held out", None if held_out is None else f"{held_out:.4f}"),
                ("L0", f"{last['l0']:.1f}"),
                ("atoms replaced", f"{sum(learned.history['dead']):,}"),
            ]
        return rows

    # ------------------------------------------------------------------- files

    def save(self, path: str | os.PathLike[str], *, training_state: bool = False) -> None:
        """Write to a safetensors file, first beside `path`, then renamed; the metric goes with it.

        `training_state` adds what `partial_fit` and ``fit(checkpoint=...)`` need to go on.
        """
        self._check_fitted()
        self._learned.write(path, training_state)

    @classmethod
    def load(cls, path: str | os.PathLike[str], num_threads: int | None = None) -> DictionaryLearning:
        """Read what `save` wrote: the same codes, to the bit. ValueError for another file or a damaged one."""
        tensors, meta = load_tensors(path, KIND)
        with reading(path, KIND):
            self = cls(**meta["parameters"], num_threads=num_threads)
            checked(self)
            self.metric = read_metric(tensors, meta, num_threads)
            self._take(Learned.read(tensors, meta, metrics.frozen(self.metric)))
        return self
