"""Dictionary learning: atoms fitted to exact sparse codes, without an encoder."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp
from tqdm.auto import tqdm

from . import _core
from . import metric as metrics
from ._checks import atoms_of, check_array, check_count, check_number, first_nonfinite_row, nonfinite_error
from ._config import context
from ._estimator import Estimator
from ._files import check_tensor, load_tensors, only_user, reading, save_tensors
from ._rows import BlockRows, BlockSampler, Rows, RowSampler, held_out, is_shards, rows_of
from .recovery import Dictionary, RecoveryWarning, lasso, omp
from .sae._model import blocks, decode, stacked
from .sae._saving import read_metric
from .sae._space import TrainingSpace, check_metric

CODERS = ("omp", "nn-omp", "lasso", "nn-lasso")
HISTORY = ("step", "samples", "seconds", "loss", "explained_variance", "explained_variance_val", "l0", "dead")


@dataclasses.dataclass
class Learned:
    """A dictionary as far as it has been learned: all that its results and its next step depend on."""

    space: TrainingSpace
    center: np.ndarray  # (d,) float32, subtracted from rows in the training space
    atoms: np.ndarray  # (n_atoms, d) float32, unit rows of that space; replaced by each step, never changed
    energy: np.ndarray  # (n_atoms,) float64, discounted sums of squared coefficients
    last_fired: np.ndarray  # (n_atoms,) int64, the number of the sample
    counters: np.ndarray  # (2,) int64: steps, samples
    history: dict[str, list[Any]]
    parameters: dict[str, Any]
    data: dict[str, Any] | None  # what is known of the rows

    def rows(self, x: np.ndarray, index: np.ndarray | None = None) -> np.ndarray:
        """Raw activations as they are coded."""
        return np.ascontiguousarray(self.space.batch(x, index).dense() - self.center)

    def write(self, path: Any, training_state: bool) -> None:
        """A safetensors file; `training_state` adds what going on needs."""
        names = ["atoms", "center", *(("energy", "last_fired", "counters") if training_state else ())]
        tensors = {name: getattr(self, name) for name in names}
        meta: dict[str, Any] = {"parameters": self.parameters, "history": self.history}
        if training_state and self.data is not None:
            meta["data"] = self.data
        if self.space.metric is not None:
            arrays, meta["metric"] = metrics.state_of(self.space.metric)
            tensors |= {f"metric.{k}": v for k, v in arrays.items()}
        else:
            tensors["mean"], meta["scale"] = self.space.mean, float(self.space.scale)
        save_tensors(path, "DictionaryLearning", tensors, meta)

    @classmethod
    def read(cls, tensors: dict[str, np.ndarray], meta: dict[str, Any], metric: Any) -> Learned:
        """What `write` wrote."""
        d, m = len(tensors["center"]), int(meta["parameters"]["n_atoms"])
        if metric is None:
            mean = check_tensor(tensors, "mean", (d,), np.float64)
            space = TrainingSpace(d, None, mean, float(meta["scale"]))
        elif metric.n_features_in_ != d:
            raise ValueError(f"its metric has {metric.n_features_in_} features, its atoms {d}")
        else:
            space = TrainingSpace(d, metric)
        layout: dict[str, tuple[tuple[int, ...], Any]] = {
            "center": ((d,), np.float32),
            "atoms": ((m, d), np.float32),
            "energy": ((m,), np.float64),
            "last_fired": ((m,), np.int64),
            "counters": ((2,), np.int64),
        }
        state = {
            k: check_tensor(tensors, k, *v)
            if k in tensors or k in ("center", "atoms")
            else np.zeros(v[0], v[1])
            for k, v in layout.items()
        }
        history = {str(k): list(v) for k, v in meta["history"].items()}
        return cls(space, **state, history=history, parameters=meta["parameters"], data=meta.get("data"))


class DictionaryLearning(Estimator):
    """Online dictionary learning over exact sparse codes: OMP's or the lasso's, no encoder.

    Activations are mapped to the training space of `SparseAutoencoder`: ``t(x) = (x - mean) S^(1/2)`` under
    `metric` (the mean only where the metric is centred), else ``t(x) = c (x - mean)`` with mean square 1 a
    coordinate; what mean is left there is taken off too. Over unit atoms ``d_j`` the objective is

    * ``mean_i |t_i - z_i D|^2`` with at most `n_nonzero` nonzeros in ``z_i`` (``"omp"``, and ``"nn-omp"`` with
      ``z >= 0``), or
    * ``mean_i 1/2 |t_i - z_i D|^2 + alpha |z_i|_1`` (``"lasso"``, and ``"nn-lasso"`` with ``z >= 0``).

    Each step codes a batch, and then brings each atom in turn to the least squares fit of the residuals, held by the
    energy ``e_j``, the discounted sum of its squared coefficients so far:

        ``e_j = keep e_j + sum_i z_ij^2``, ``d_j += sum_i z_ij r_i / e_j``, ``r_i -= z_ij (change of d_j)``.

    This is the block coordinate descent of Mairal et al. 2010 (section 3.4) on the batch alone, in which earlier
    batches come in through the diagonal of their second moment of codes, their own gradient taken as zero. So no
    matrix of atoms by atoms or of atoms by features is kept. ``keep = (1 - 1 / step) ** forget``.

    Parameters
    ----------
    n_atoms : int
        Number of atoms.
    n_nonzero : int, optional
        For the OMP coders: most atoms in a code; default 10% of the features.
    alpha : float, optional
        For the lasso coders: the penalty, in units of the training space; default 1.
    metric : AtomicInnerProduct, optional
        Fitted. None learns in Euclidean geometry.
    coder : {"omp", "nn-omp", "lasso", "nn-lasso"}
        What codes are, see above.
    batch_size, max_steps : int
        Samples for each step; steps of `fit`.
    forget : float
        How fast earlier batches lose weight: batch s weighs ``(s / step) ** forget`` at a step. 0: never.
    sweeps : int
        Times that a step goes through all atoms.
    dead_after : float
        An atom that was in no code within so many times n_atoms / L0 samples is replaced by the residual of a row
        drawn by its squared norm, but not in the last tenth of the steps of `fit`. 0: never.
    random_state : int
        Seeds everything; equal seeds give equal bits, for any number of threads.
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
        step, samples, seconds, loss (the objective, of the batch, before the step), explained_variance (centred, of
        the batch before the step), explained_variance_val (of `X_val`), l0, dead (replaced at this step).
    n_features_in_ : int

    Notes
    -----
    The cost is that of the coder (`atoms.recovery.omp`, `atoms.recovery.lasso`), and ``4 d_in sweeps`` operations for
    each nonzero. Memory beside theirs: three times the atoms, a batch in float32, and
    ``256 (batch_size + n_atoms)`` bytes a thread.

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
        random_state: int = 0,
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
        self.random_state = random_state
        self.num_threads = num_threads
        self.verbose = verbose

    # ---------------------------------------------------------------- training

    def fit(
        self,
        X: Any,
        X_val: Any = None,
        *,
        init: Any = None,
        callback: Callable[[DictionaryLearning, dict[str, Any]], None] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_minutes: float = 5.0,
        checkpoint_steps: int | None = None,
    ) -> DictionaryLearning:
        """Learn atoms from activations.

        Parameters
        ----------
        X : array (n, d_in), memory map, list of them, ``store[layer]`` or ActivationStream
            float32, float64, float16 or bfloat16, read as `SparseAutoencoder.fit` does and in its order.
        X_val : array (m, d_in), optional
            Held out; its explained variance is recorded twenty times. A one-dimensional array is ignored.
        init : array (n_atoms, d_in), model with W_dec, or "k-means++", optional
            Atoms for raw activations to start from. "k-means++": rows far from each other, by 1 - cosine^2. None:
            rows at random.
        callback : callable, optional
            Called after each step with the estimator and the step's figures.
        checkpoint, checkpoint_minutes, checkpoint_steps
            As in `SparseAutoencoder.fit`: where the file is there, learning goes on from it, to the same bits.

        Raises
        ------
        ValueError
            For parameters out of range, NaN or infinity in X (naming the row), or a checkpoint of other parameters,
            another metric or other data. The estimator is then what it was before.
        """
        parameters = _checked(self)
        if X_val is not None and not is_shards(X_val) and np.asarray(X_val).ndim == 1:
            X_val = None
        rows = rows_of(X)
        if rows.n < 2:
            raise ValueError(f"X: expected at least 2 samples, got n_samples = {rows.n}")
        val = None if X_val is None else held_out(X_val, rows)
        check_metric(self.metric, rows.d)
        metric, data = metrics.frozen(self.metric), rows.identity()
        with contextlib.ExitStack() as held:
            if checkpoint is not None:
                held.enter_context(only_user(checkpoint, "checkpoint"))
            sampler = rows.sampler(self.batch_size, [int(self.random_state)], self.max_steps)
            held.callback(sampler.close)
            if checkpoint is not None and os.path.exists(checkpoint):
                learned = _resume(checkpoint, parameters, metric, data)
            else:
                learned = _start(sampler.first(), parameters, metric, init, data)
            with self._taking(learned, rows):
                self._train(sampler, val, callback, (checkpoint, checkpoint_minutes, checkpoint_steps))
        return self

    def partial_fit(self, X: Any, y: Any = None) -> DictionaryLearning:
        """Go on with these rows, batch after batch in their order; the first call starts from them.

        Raises
        ------
        ValueError
            As `fit`; steps taken before a bad row stand.
        """
        rows = Rows(X)
        if not self.__sklearn_is_fitted__():
            parameters = _checked(self)
            check_metric(self.metric, rows.d)
            learned = _start(rows, parameters, metrics.frozen(self.metric), None, None)
            self._check_X(rows.shards[0], reset=True, names=rows.feature_names)
            self._take(learned)
        else:
            self._check_X(rows.shards[0], reset=False, names=rows.feature_names)
        for part in blocks(rows.n, self._learned.parameters["batch_size"]):
            self._step(rows.slice(part.start, part.stop), None, None)
        return self

    def fit_transform(self, X: Any, y: Any = None) -> sp.csr_array:
        """``fit(X).transform(X)``."""
        return self.fit(X).transform(X)

    def _train(
        self,
        sampler: RowSampler | BlockSampler,
        val: np.ndarray | None,
        callback: Callable[[DictionaryLearning, dict[str, Any]], None] | None,
        checkpoint: tuple[Any, float, int | None],
    ) -> None:
        (path, minutes, every), learned = checkpoint, self._learned
        first, steps = int(learned.counters[0]), int(learned.parameters["max_steps"])
        sampler.skip(first)
        saved = time.perf_counter()
        with tqdm(
            total=steps, initial=first, disable=not self.verbose, unit="step", desc="dictionary"
        ) as bar:
            for step in range(first + 1, steps + 1):
                figures = self._step(*sampler.draw(), val)
                if callback is not None:
                    callback(self, figures)
                bar.update()
                bar.set_postfix(EV=f"{figures['explained_variance']:.4f}", refresh=False)
                due = every is not None and step % every == 0
                if path is not None and (due or step == steps or time.perf_counter() - saved > 60 * minutes):
                    learned.write(path, training_state=True)
                    saved = time.perf_counter()

    def _step(self, raw: np.ndarray, index: np.ndarray | None, val: np.ndarray | None) -> dict[str, Any]:
        """One step on these rows, and its record."""
        learned, started = self._learned, time.perf_counter()
        p = learned.parameters
        t = learned.rows(raw, index)
        if (bad := first_nonfinite_row(t)) >= 0:
            row = bad if index is None else int(index[bad])
            raise nonfinite_error(raw, "X", row)
        codes, residual = _code(
            t, Dictionary(learned.atoms, num_threads=self.num_threads), p, self.num_threads
        )
        step, samples = int(learned.counters[0]) + 1, int(learned.counters[1]) + len(t)
        atoms, energy = learned.atoms.copy(), learned.energy.copy()
        keep = (1 - 1 / step) ** p["forget"] if p["forget"] else 1.0
        _core.fit_atoms(
            context(self.num_threads), X=t, indptr=codes.indptr.astype(np.int64),
            indices=codes.indices.astype(np.int32, copy=False), values=codes.data, keep=keep, sweeps=p["sweeps"],
            atoms=atoms, energy=energy,
        )  # fmt: skip
        fired = learned.last_fired.copy()
        fired[codes.indices] = samples
        gone = _dead(p, codes, fired, samples, step)
        dead = _replace(
            gone, t, codes, residual, (atoms, energy, fired), [p["random_state"], 5, step], samples
        )
        learned.atoms, learned.energy, learned.last_fired = atoms, energy, fired
        learned.counters = np.array([step, samples])
        self._folded = None
        figures = _figures(p, t, codes, residual) | {"step": step, "samples": samples, "dead": dead}
        last = learned.history["seconds"][-1] if learned.history["seconds"] else 0.0
        figures["seconds"] = last + time.perf_counter() - started
        every = max(1, p["max_steps"] // 20)
        due = val is not None and (step % every == 0 or step == p["max_steps"])
        figures["explained_variance_val"] = self._explained_variance(val) if due else np.nan
        for name in HISTORY:
            learned.history[name].append(figures[name])
        return figures

    def _explained_variance(self, X: Any) -> float:
        """Centred, in the training space."""
        learned, error, total = self._learned, 0.0, 0.0
        t = learned.rows(X)
        for part in blocks(len(t)):
            _, residual = _code(t[part], self._dictionary(), learned.parameters, self.num_threads)
            error += float(residual @ residual)
        total = float(((t - t.mean(axis=0, dtype=np.float64)) ** 2).sum())
        return 1 - error / total if total > 0 else np.nan

    @contextlib.contextmanager
    def _taking(self, learned: Learned, rows: Rows | BlockRows) -> Iterator[None]:
        """Inside, the estimator is what is being learned; an error, but not Ctrl-C or a full disk, undoes that."""
        names = ("_learned", "_folded", "n_features_in_", "feature_names_in_")
        before = {name: vars(self)[name] for name in names if name in vars(self)}
        try:
            self._check_X(rows.shards[0], reset=True, names=rows.feature_names)
            self._take(learned)
            yield
        except Exception as error:
            if not isinstance(error, OSError):
                for name in names:
                    vars(self).pop(name, None)
                vars(self).update(before)
            raise

    # --------------------------------------------------------------- inference

    def transform(self, X: Any) -> sp.csr_array:
        """Codes of activations: CSR array (n, n_atoms) float32, in the units of the training space.

        NaN or infinity in X is an error, which names the row.
        """
        self._check_fitted()
        rows, learned = Rows(X), self._learned
        self._check_X(X if len(rows.shards) == 1 else rows.shards[0], reset=False)
        parts = []
        for part in blocks(rows.n):
            t = learned.rows(rows.slice(part.start, part.stop))
            if (row := first_nonfinite_row(t)) >= 0:
                raise nonfinite_error(t, "X", part.start + row)
            parts.append(_code(t, self._dictionary(), learned.parameters, self.num_threads)[0])
        return stacked(parts)

    def inverse_transform(self, codes: Any) -> np.ndarray:
        """Raw activations (n, d_in) float32 from codes (n, n_atoms), sparse or dense."""
        self._check_fitted()
        codes = sp.csr_array(codes)
        if codes.shape[1] != len(self.W_dec):
            raise ValueError(f"codes: expected {len(self.W_dec)} columns (n_atoms), got {codes.shape[1]}")
        return decode(context(self.num_threads), codes, self.W_dec, self.b_dec)

    @property
    def W_dec(self) -> np.ndarray:
        """Atoms for raw activations (n_atoms, d_in), of unit norm under the metric."""
        return self._fold()[0]

    @property
    def b_dec(self) -> np.ndarray:
        """What codes of zeros give, in raw activations (d_in,)."""
        return self._fold()[1]

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

    _learned: Learned
    _folded: tuple[np.ndarray, np.ndarray, Dictionary] | None = None

    def _fold(self) -> tuple[np.ndarray, np.ndarray, Dictionary]:
        self._check_fitted()
        if self._folded is None:
            learned = self._learned
            shift, _, back = learned.space.maps()
            W = (learned.atoms.astype(np.float64) @ back).astype(np.float32)
            b = (learned.center.astype(np.float64) @ back + shift).astype(np.float32)
            W.flags.writeable = b.flags.writeable = False
            self._folded = W, b, Dictionary(learned.atoms, num_threads=self.num_threads)
        return self._folded

    def _dictionary(self) -> Dictionary:
        return self._fold()[2]

    def _take(self, learned: Learned) -> None:
        self._learned, self._folded = learned, None
        self.n_features_in_ = learned.space.d

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
        tensors, meta = load_tensors(path, cls.__name__)
        with reading(path, cls.__name__):
            self = cls(**meta["parameters"], num_threads=num_threads)
            _checked(self)
            self.metric = read_metric(tensors, meta, num_threads)
            self._take(Learned.read(tensors, meta, metrics.frozen(self.metric)))
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "_folded"}


# ------------------------------------------------------------------------------ parts of a step


def _code(
    t: np.ndarray, d: Dictionary, p: dict[str, Any], num_threads: int | None
) -> tuple[sp.csr_array, np.ndarray]:
    """Codes of rows of the training space, and the norms of their residuals."""
    with warnings.catch_warnings():  # an atom that depends on others while it is learned is no news
        warnings.simplefilter("ignore", RecoveryWarning)
        if p["coder"].endswith("omp"):
            positive = p["coder"] == "nn-omp"
            codes, info = omp(
                t, d, p["n_nonzero"], nonnegative=positive, num_threads=num_threads, return_info=True
            )
        else:
            alpha, positive = 1.0 if p["alpha"] is None else p["alpha"], p["coder"] == "nn-lasso"
            codes, info = lasso(t, d, alpha, positive=positive, num_threads=num_threads, return_info=True)
    return codes, info.residual


def _figures(p: dict[str, Any], t: np.ndarray, codes: sp.csr_array, residual: np.ndarray) -> dict[str, float]:
    error = float(residual @ residual) / len(t)
    loss = error
    if p["coder"].endswith("lasso"):
        alpha = 1.0 if p["alpha"] is None else p["alpha"]
        loss = error / 2 + alpha * float(np.abs(codes.data).sum(dtype=np.float64)) / len(t)
    total = float(t.var(axis=0, dtype=np.float64).sum())
    ev = 1 - error / total if total > 0 else np.nan
    return {"loss": loss, "explained_variance": ev, "l0": codes.nnz / len(t)}


def _dead(p: dict[str, Any], codes: sp.csr_array, fired: np.ndarray, samples: int, step: int) -> np.ndarray:
    """Numbers of the atoms to be replaced after this step."""
    if not p["dead_after"] or not codes.nnz or 0.9 * p["max_steps"] < step <= p["max_steps"]:
        return np.empty(0, np.int64)
    wait = p["dead_after"] * p["n_atoms"] * codes.shape[0] / codes.nnz
    return np.flatnonzero(samples - fired > wait)


def _replace(
    dead: np.ndarray, t: np.ndarray, codes: sp.csr_array, residual: np.ndarray,
    state: tuple[np.ndarray, np.ndarray, np.ndarray], seed: list[int], samples: int,
) -> int:  # fmt: skip
    """Give dead atoms the directions of residuals, as many as there are; `residual` has their norms at coding."""
    atoms, energy, fired = state
    weight = residual**2
    # what is rounding's has no direction
    weight[weight <= 1e-10 * float(np.einsum("ij,ij->", t, t, dtype=np.float64)) / len(t)] = 0
    k = min(len(dead), int(np.count_nonzero(weight)))
    if not k:
        return 0
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(len(t), k, replace=False, p=weight / weight.sum()))
    left = t[chosen] - codes[chosen] @ atoms
    norm = np.linalg.norm(left, axis=1, keepdims=True)
    good = norm[:, 0] > 0
    atoms[dead[:k][good]] = (left / np.where(norm > 0, norm, 1))[good]
    energy[dead[:k]], fired[dead[:k]] = 0, samples
    return k


# --------------------------------------------------------------------------------------- starting


def _checked(model: DictionaryLearning) -> dict[str, Any]:
    """The parameters that a file keeps, checked."""
    p = {
        k: v.item() if isinstance(v, np.generic) else v
        for k, v in model.get_params(deep=False).items()
        if k not in ("metric", "num_threads", "verbose")
    }
    for name in ("n_atoms", "batch_size", "max_steps", "sweeps"):
        p[name] = check_count(p[name], name)
    if p["coder"] not in CODERS:
        raise ValueError(f"coder: expected one of {', '.join(CODERS)}, got {p['coder']!r}")
    pursuit = p["coder"].endswith("omp")
    used, other = ("n_nonzero", "alpha") if pursuit else ("alpha", "n_nonzero")
    if p[other] is not None:
        raise ValueError(f"{other}: coder={p['coder']!r} takes {used} in its place; leave {other} None")
    if pursuit and p[used] is not None:
        p[used] = check_count(p[used], used)
        if p[used] > p["n_atoms"]:
            raise ValueError(f"n_nonzero: expected at most n_atoms ({p['n_atoms']}), got {p[used]}")
    elif p[used] is not None:
        p[used] = check_number(p[used], used, 0, strict=True)
    for name in ("forget", "dead_after"):
        p[name] = check_number(p[name], name, 0)
    seed = p["random_state"]
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"random_state: expected a non-negative integer, got {seed!r}")
    return p


def _start(rows: Rows, p: dict[str, Any], metric: Any, init: Any, data: dict[str, Any] | None) -> Learned:
    """A dictionary that has not been trained: `init`'s atoms, or directions of these rows."""
    space, m = TrainingSpace.fit(rows, metric), p["n_atoms"]
    rng = np.random.default_rng([p["random_state"], 2])
    n = min(rows.n, max(4096, min(2 * m, 16384)))
    raw = rows.take(np.sort(rng.choice(rows.n, n, replace=False)))
    if (row := first_nonfinite_row(raw)) >= 0:
        raise nonfinite_error(raw, "X", row if n == rows.n else first_nonfinite_row(rows.slice(0, rows.n)))
    t = space.to_space(raw)
    center = t.mean(axis=0, dtype=np.float64).astype(np.float32)
    if init is None or isinstance(init, str):
        if init not in (None, "k-means++"):
            raise ValueError(f"init: expected atoms, a model or 'k-means++', got {init!r}")
        atoms = _directions(t - center, m, [p["random_state"], 0], spread=init is not None)
    else:
        given = check_array(atoms_of(init), "init")
        if given.shape != (m, rows.d):
            raise ValueError(f"init: expected atoms of shape {(m, rows.d)}, got {given.shape}")
        if (row := first_nonfinite_row(given)) >= 0:
            raise nonfinite_error(given, "init", row)
        atoms = _unit(given.astype(np.float64) @ space.maps()[1])
    zeros = np.zeros(m, np.int64)
    history: dict[str, list[Any]] = {name: [] for name in HISTORY}
    return Learned(space, center, atoms, np.zeros(m), zeros, np.zeros(2, np.int64), history, p, data)


def _unit(D: np.ndarray) -> np.ndarray:
    """Rows of unit norm, float32; zeros stay."""
    norm = np.linalg.norm(D, axis=1, keepdims=True)
    return np.asarray(D / np.where(norm > 0, norm, 1), np.float32)


def _directions(t: np.ndarray, m: int, seed: list[int], spread: bool) -> np.ndarray:
    """Unit rows along samples: at random, or spread out as k-means++ does, by 1 - cosine^2."""
    rng = np.random.default_rng(seed)
    chosen = _spread(_unit(t), m, rng) if spread else rng.choice(len(t), m, replace=len(t) < m)
    # samples repeat when there are fewer than atoms, and some may be zero: noise breaks ties
    noise = 0.1 * np.sqrt(np.einsum("ij,ij->", t, t, dtype=np.float64) / t.size) + 1e-12
    return _unit(t[chosen] + noise * rng.standard_normal((m, t.shape[1])))


def _spread(unit: np.ndarray, m: int, rng: np.random.Generator) -> np.ndarray:
    """Rows drawn by their squared distance from the lines of those drawn before; what none is left of, at random."""
    left = np.einsum("ij,ij->i", unit, unit, dtype=np.float64)
    chosen = np.empty(m, np.int64)
    for j in range(m):
        total = left.sum()
        chosen[j] = (
            rng.choice(len(unit), p=left / total) if total > 1e-6 * len(unit) else rng.integers(len(unit))
        )
        left = np.minimum(left, np.maximum(1 - (unit @ unit[chosen[j]]).astype(np.float64) ** 2, 0))
    return chosen


def _resume(path: Any, parameters: dict[str, Any], metric: Any, data: dict[str, Any]) -> Learned:
    """The state in a checkpoint, to go on with the same parameters on the same data."""
    tensors, meta = load_tensors(path, "DictionaryLearning")
    where = f"checkpoint: {os.fspath(path)}"
    differing = [k for k, v in parameters.items() if meta["parameters"].get(k) != v]
    differing += ["metric"] if ("metric" in meta) != (metric is not None) else []
    if differing:
        raise ValueError(
            f"{where} was written with other settings ({', '.join(differing)}); use those, or another path"
        )
    if "counters" not in tensors:
        raise ValueError(f"{where} has no training state; pass init=DictionaryLearning.load(path)")
    if meta.get("data") != data:
        raise ValueError(f"{where} was trained on other data; give it that data, or name another path")
    if metric is not None:
        arrays, _ = metrics.state_of(metric)
        if any(not np.array_equal(v, tensors.get(f"metric.{k}", ())) for k, v in arrays.items()):
            raise ValueError(f"{where} was trained under another metric; use that one, or another path")
    with reading(path, "DictionaryLearning"):
        return Learned.read(tensors, meta, metric)
