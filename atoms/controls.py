"""Dictionaries that learnt nothing, or too much: what a trained one must be compared with.

Each is fitted on activations and then has what a trained
:class:`~atoms.SparseAutoencoder` has: ``transform`` to CSR codes, ``inverse_transform``, ``score``,
``W_enc (d_in, d_sae)``, ``W_dec (d_sae, d_in)``, ``b_enc (d_sae,)``, ``b_dec (d_in,)``,
``threshold``, ``metric_``, and ``d_sae_`` and ``l0_``, the numbers that `d_sae` and `l0` came to. Codes may be negative: a direction and its opposite are one
atom here, which makes the controls a little stronger than an autoencoder of the same width.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.sparse

from . import _core, recovery
from . import metric as metrics
from ._arrays import array_of, as_codes
from ._checks import (
    check_count,
    check_flag,
    check_number,
    generator_of,
    narrow,
    nonfinite_error,
    seed_of,
    whitener_of,
)
from ._config import context, one_blas_thread
from ._frames import framed
from ._rows import by_blocks
from ._scored import Scored
from ._unit_rows import unit_rows

__all__ = [
    "KMeansDictionary",
    "MemorizingDictionary",
    "NeuronBasis",
    "PCADictionary",
    "RandomDictionary",
    "random_model",
    "shuffle_coordinates",
]


def __dir__() -> list[str]:
    return __all__


# from whitened rows: how many entries each has; their atoms, ascending within a row; their values
_Encode = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]

_WORK = 32 << 20  # bytes of float32 for a block of correlations


def _nearest(Z: np.ndarray, unit: np.ndarray, num_threads: int | None) -> np.ndarray:
    """Row of `unit` with the largest |product| with each row of Z, the first of equals."""
    index, value = np.empty(len(Z), np.int64), np.empty(len(Z), np.float32)
    _core.nearest(context(num_threads), Z, unit, True, index, value)
    return index


class _Filled:
    """A number that may be left None; once fitted, it then reads as what `fit` took, which has its name and a `_`.

    It is kept as it was given: `get_params`, and so scikit-learn's ``clone``, see that.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, control: Any, owner: type) -> Any:
        if control is None:
            return self
        given = vars(control).get(self.name)
        return vars(control).get(f"{self.name}_") if given is None else given

    def __set__(self, control: Any, value: Any) -> None:
        vars(control)[self.name] = value


class _Dictionary(Scored):
    """A control: unit atoms in whitened space; a code is least squares on the l0 atoms that correlate most."""

    d_sae: Any = _Filled()
    l0: Any = _Filled()
    metric: Any
    center: bool
    num_threads: int | None

    def __init__(
        self,
        l0: int | None = None,
        metric: Any = None,
        *,
        center: bool = True,
        num_threads: int | None = None,
    ) -> None:
        self.l0 = l0
        self.metric = metric
        self.center = center
        self.num_threads = num_threads

    def _start(self, X: Any) -> np.ndarray:
        """X checked; metric, whitener and b_dec are set, and the numbers of atoms of another fit forgotten."""
        check_flag(self.center, "center")
        if (wanted := vars(self).get("d_sae")) is not None:
            check_count(wanted, "d_sae")
        for name in ("d_sae_", "l0_"):
            vars(self).pop(name, None)
        rows: np.ndarray = self._check_X(X, reset=True)
        d = rows.shape[1]
        self._whitener = whitener_of(self.metric, d)
        self.metric_ = metrics.frozen(self.metric)
        total = np.zeros(d)
        for part in self._blocks(rows):
            block = part.astype(np.float64)
            if not np.isfinite(block).all():
                raise nonfinite_error(rows, "X")
            total += block.sum(axis=0)
        self._b_dec = (total / len(rows) if self.center else np.zeros(d)).astype(np.float32)
        return rows

    @staticmethod
    def _blocks(X: np.ndarray, width: int | None = None) -> Iterator[np.ndarray]:
        step = max(1, _WORK // (4 * (width or X.shape[1])))
        for first in range(0, len(X), step):
            yield X[first : first + step]

    @one_blas_thread
    def _whiten(self, X: np.ndarray) -> np.ndarray:
        """(X - b_dec) S^{1/2}, float32: where atoms are unit vectors and the metric is the dot product."""
        Z = X.astype(np.float64) - self._b_dec
        if self._whitener is not None:
            Z = Z @ self._whitener
        return np.ascontiguousarray(Z, np.float32)

    @one_blas_thread
    def _set_atoms(self, unit: np.ndarray) -> None:
        """Unit rows (d_sae, d) in whitened space become W_dec, of unit norm in the metric."""
        self._unit = np.ascontiguousarray(unit, np.float32)
        W = self._unit.astype(np.float64)
        if self._whitener is not None:
            W = np.linalg.solve(self._whitener.T, W.T).T
        self._W_dec = np.ascontiguousarray(W, np.float32)
        l0, most = len(unit) if self.l0 is None else self.l0, min(unit.shape)
        if not isinstance(l0, (int, np.integer)) or not 1 <= l0 <= most:
            raise ValueError(f"l0: expected a whole number from 1 to {most}, got {l0!r}")
        self.d_sae_, self.l0_ = len(unit), int(l0)

    def __sklearn_is_fitted__(self) -> bool:
        return "d_sae_" in vars(self)

    def _figures(self) -> list[tuple[str, Any]]:
        atoms = f"{self.d_sae_:,} of {self.n_features_in_:,} features"
        metric = "none: Euclidean" if self.metric_ is None else repr(self.metric_)
        return [("atoms", atoms), ("active for each sample", self.l0_), ("metric", metric)]

    @property
    def _n_features_out(self) -> int:
        return self.d_sae_

    @property
    def W_dec(self) -> np.ndarray:
        """The atoms, (d_sae, d_in) float32, of unit norm in the metric."""
        self._check_fitted()
        return self._W_dec

    @property
    def b_dec(self) -> np.ndarray:
        """The mean of X, or zero: (d_in,) float32."""
        self._check_fitted()
        return self._b_dec

    @property
    @one_blas_thread
    def W_enc(self) -> np.ndarray:
        """S W_dec', (d_in, d_sae) float32: correlations in the metric, before selection."""
        self._check_fitted()
        W = self._unit.astype(np.float64)
        if self._whitener is not None:
            W = W @ self._whitener.T
        return np.ascontiguousarray(W.T, np.float32)

    @property
    @one_blas_thread
    def b_enc(self) -> np.ndarray:
        """-b_dec W_enc, (d_sae,) float32."""
        return np.asarray(-(self.b_dec @ self.W_enc))

    @property
    def threshold(self) -> None:
        """None: latents are chosen by rank, not by a threshold."""
        return None

    @one_blas_thread
    def _select(self, Z: np.ndarray) -> np.ndarray:
        """(n, l0) indices of the atoms that correlate most with each row, ascending."""
        if self.l0_ == 1:
            return _nearest(Z, self._unit, self.num_threads)[:, None]
        strength = np.abs(Z @ self._unit.T)
        if self.l0_ == len(self._unit):
            return np.broadcast_to(np.arange(self.l0_), (len(Z), self.l0_))
        return np.sort(np.argpartition(strength, -self.l0_, axis=1)[:, -self.l0_ :], axis=1)

    @one_blas_thread
    def _coefficients(self, Z: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Least squares on the chosen atoms; a ridge of 1e-9 shares it among atoms that depend on each other."""
        atoms = self._unit[index].astype(np.float64)
        right: np.ndarray = np.einsum("nkd,nd->nk", atoms, Z.astype(np.float64))
        if index.shape[1] == 1:
            return right
        gram = atoms @ atoms.transpose(0, 2, 1) + 1e-9 * np.eye(index.shape[1])
        return np.linalg.solve(gram, right[..., None])[..., 0]

    def _encode(self, Z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        chosen = self._select(Z)
        value = self._coefficients(Z, chosen)
        return np.full(len(Z), self.l0_), chosen.ravel(), value.ravel()

    def _encoder(self) -> tuple[_Encode, int]:
        """A function from whitened rows to codes, and how many numbers it holds for each row meanwhile."""
        return self._encode, max(self._unit.shape[1] * (1 if self.l0_ == 1 else self.l0_), self.d_sae_)

    @framed
    @by_blocks
    def transform(self, X: Any) -> scipy.sparse.csr_array:
        """Codes of X (n, d_in): (n, d_sae) CSR float32 with l0 entries in each row, or fewer where
        fewer are not zero."""
        self._check_fitted()
        return self._codes(self._check_X(X, reset=False))

    def _codes(self, X: np.ndarray) -> scipy.sparse.csr_array:
        counts = [np.zeros(1, np.int64)]
        index: list[np.ndarray] = []
        value: list[np.ndarray] = []
        encode, width = self._encoder()
        for part in self._blocks(X, width):
            Z = self._whiten(part)
            if not np.isfinite(Z).all():
                raise nonfinite_error(X, "X")
            for column, found in zip((counts, index, value), encode(Z)):
                column.append(found)
        starts = np.cumsum(np.concatenate(counts))
        entries = (
            np.concatenate(value, dtype=np.float32, casting="same_kind") if value else np.zeros(0, np.float32)
        )
        atoms = np.concatenate(index).astype(np.int32) if index else np.zeros(0, np.int32)
        codes = narrow(entries, atoms, starts, (len(X), len(self._unit)))
        codes.eliminate_zeros()
        return codes

    @by_blocks
    @one_blas_thread
    def inverse_transform(self, codes: Any) -> np.ndarray:
        """codes @ W_dec + b_dec, (n, d_in) float32."""
        self._check_fitted()
        codes = as_codes(codes)
        if codes.shape[1] != len(self.W_dec):
            raise ValueError(f"codes: expected {len(self.W_dec)} columns (d_sae), got {codes.shape[1]}")
        found: np.ndarray = np.asarray(codes @ self.W_dec, dtype=np.float32) + self.b_dec
        return found


_COMMON = """metric : AtomicInnerProduct, optional
    Correlations, unit norms and least squares are in this metric; Euclidean without.
center : bool
    b_dec is the mean of X (in float32), else zero.
num_threads : int, optional"""


def _document(cls: type) -> type:
    """Put the parameters that all controls share into a docstring, which Python indents only before 3.13."""
    cls.__doc__ = inspect.cleandoc(cls.__doc__ or "").replace("{common}", _COMMON)
    return cls


@_document
class RandomDictionary(_Dictionary):
    """Atoms of independent, uniformly random directions (in whitened space).

    What it explains at the L0 of a trained dictionary is owed to width, sparsity and the encoder,
    not to learning.

    Parameters
    ----------
    d_sae : int
    l0 : int
        Active latents of each sample.
    {common}
    encoder : {"omp", "top_k"}
        "omp": orthogonal matching pursuit (:func:`atoms.recovery.omp`), which searches harder than
        any single pass. "top_k": the `l0` atoms of largest |correlation| with the sample, all at
        once, then least squares on these: a single pass, like an autoencoder's.
    random_state : int or None
        None: another seed in each `fit`; `random_state_` is the one that was used.

    Notes
    -----
    Time: 2 n d_sae d operations and those of pursuit or least squares, about n l0 d_sae or
    2 n l0^2 d. Memory: blocks of 32 MB, and the d_sae^2 Gram matrix where `omp` holds one.

    Examples
    --------
    >>> import numpy as np
    >>> from atoms.controls import RandomDictionary
    >>> X = np.random.default_rng(0).standard_normal((100, 8))
    >>> RandomDictionary(32, l0=3).fit(X).transform(X).nnz
    300
    """

    def __init__(
        self,
        d_sae: int,
        l0: int = 8,
        metric: Any = None,
        *,
        center: bool = True,
        encoder: str = "omp",
        random_state: Any = 0,
        num_threads: int | None = None,
    ) -> None:
        super().__init__(l0, metric, center=center, num_threads=num_threads)
        self.d_sae = d_sae
        self.encoder = encoder
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> RandomDictionary:
        """X gives the dimension and the mean alone."""
        if not isinstance(self.encoder, str) or self.encoder not in ("omp", "top_k"):
            raise ValueError(f"encoder: expected 'omp' or 'top_k', got {self.encoder!r}")
        X = self._start(X)
        self.random_state_ = seed_of(self.random_state)
        rng = np.random.default_rng(self.random_state_)
        directions = rng.standard_normal((self.d_sae, X.shape[1]), dtype=np.float32)
        self._set_atoms(unit_rows(directions, None, self.num_threads, "W_dec")[0])
        return self

    def _encoder(self) -> tuple[_Encode, int]:
        if self.encoder == "top_k":
            return super()._encoder()
        atoms = recovery.Dictionary(self._unit, num_threads=self.num_threads)

        def pursue(Z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            codes = recovery.omp(Z, atoms, self.l0_, num_threads=self.num_threads)
            return np.diff(codes.indptr), codes.indices, codes.data

        return pursue, self._unit.shape[1]


@_document
class MemorizingDictionary(_Dictionary):
    """Samples as atoms: each activation is stored, a new one is given the nearest one stored.

    Encoding: K = 1, the atom of largest |cosine| in the metric, scaled by the projection, which
    is the best approximation by one atom. With d_sae >= the number of samples the training set
    is explained fully and nothing is learnt: see what it scores on held-out activations.

    Parameters
    ----------
    d_sae : int, optional
        Samples kept, drawn without replacement; by default, and at most, all: `d_sae_` of them.
    {common}
    random_state : int or None
        None: another seed in each `fit`; `random_state_` is the one that was used.

    Notes
    -----
    Samples equal to the mean (to zero, without `center`) have no direction and are left out.
    Time: 2 n d_sae d operations. Memory: 4 d_sae d bytes twice.

    Examples
    --------
    >>> import numpy as np
    >>> from atoms.controls import MemorizingDictionary
    >>> from atoms.theory import explained_variance
    >>> rng = np.random.default_rng(0)
    >>> X, X_held = rng.standard_normal((2, 200, 16))
    >>> control = MemorizingDictionary().fit(X)
    >>> round(explained_variance(X, control.reconstruct).total, 6)
    1.0
    >>> explained_variance(X_held, control.reconstruct).total < 0.6
    True
    """

    l0 = 1

    def __init__(
        self,
        d_sae: int | None = None,
        metric: Any = None,
        *,
        center: bool = True,
        random_state: Any = 0,
        num_threads: int | None = None,
    ) -> None:
        self.d_sae = d_sae
        self.metric = metric
        self.center = center
        self.random_state = random_state
        self.num_threads = num_threads

    def fit(self, X: Any, y: Any = None) -> MemorizingDictionary:
        """Store the samples' directions."""
        X = self._start(X)
        keep = np.arange(len(X))
        self.random_state_ = seed_of(self.random_state)
        if self.d_sae is not None and self.d_sae < len(X):
            rng = np.random.default_rng(self.random_state_)
            keep = np.sort(rng.permutation(len(X))[: self.d_sae])
        parts = []
        for chosen in self._blocks(keep[:, None], X.shape[1]):
            Z = self._whiten(X[chosen[:, 0]])
            parts.append(Z[np.any(Z != 0, axis=1)])
        atoms = np.concatenate(parts)
        if len(atoms) == 0:
            raise ValueError("X: expected a sample that differs from the mean, got none")
        self._set_atoms(unit_rows(atoms, None, self.num_threads, "X")[0])
        return self


@_document
class KMeansDictionary(_Dictionary):
    """Spherical k-means: atoms are the mean directions of clusters, K = 1.

    Lloyd's iterations on lines: each sample goes to the atom of largest |cosine| in the metric,
    each atom becomes the normalised, sign-corrected sum of its samples' directions. Atoms start
    at random samples; one that loses all its samples starts again at the sample worst served.

    Parameters
    ----------
    d_sae : int
        At most the number of samples that differ from the mean.
    {common}
    max_iter : int
        Iterations at most; fewer when no sample changes its atom.
    random_state : int or None
        None: another seed in each `fit`; `random_state_` is the one that was used.

    Attributes
    ----------
    n_iter_ : int
    """

    l0 = 1

    def __init__(
        self,
        d_sae: int,
        metric: Any = None,
        *,
        center: bool = True,
        max_iter: int = 10,
        random_state: Any = 0,
        num_threads: int | None = None,
    ) -> None:
        self.d_sae = d_sae
        self.metric = metric
        self.center = center
        self.max_iter = max_iter
        self.random_state = random_state
        self.num_threads = num_threads

    def fit(self, X: Any, y: Any = None) -> KMeansDictionary:
        """Whitened directions are held once in float32: 4 n d bytes."""
        X = self._start(X)
        check_number(self.max_iter, "max_iter", 0)
        Z = np.concatenate([self._whiten(part) for part in self._blocks(X)])
        Z = Z[np.any(Z != 0, axis=1)]
        if not 1 <= self.d_sae <= len(Z):
            raise ValueError(
                f"d_sae: expected 1 to {len(Z)} (samples off the mean; n_samples = {len(X)}), got {self.d_sae}"
            )
        Z = unit_rows(Z, None, self.num_threads, "X")[0]
        self.random_state_ = seed_of(self.random_state)
        rng = np.random.default_rng(self.random_state_)
        unit = Z[np.sort(rng.permutation(len(Z))[: self.d_sae])]
        before = None
        self.n_iter_ = 0
        while self.n_iter_ < self.max_iter:
            self.n_iter_ += 1
            index = _nearest(Z, unit, self.num_threads)
            if before is not None and np.array_equal(index, before):
                break
            before = index
            dots = np.einsum("nd,nd->n", Z, unit[index])
            assign = scipy.sparse.csr_array(
                (np.where(dots < 0, -1.0, 1.0), (index, np.arange(len(Z)))), shape=(self.d_sae, len(Z))
            )
            sums = assign @ Z.astype(np.float64)
            norms = np.linalg.norm(sums, axis=1)
            empty = np.flatnonzero(norms < 1e-12)
            if len(empty):
                sums[empty] = Z[np.argsort(np.abs(dots), kind="stable")[: len(empty)]]
                norms[empty] = 1.0
            unit = (sums / norms[:, None]).astype(np.float32)
        self._set_atoms(unit_rows(unit, None, self.num_threads, "X")[0])
        return self


@_document
class PCADictionary(_Dictionary):
    """Principal directions: an orthonormal dictionary in the metric, d_sae = d_in at most.

    Coherence 0, q* = 1 at any L0 and, with `l0` = d_in, an R2 of 1: it passes the paper's two
    criteria without being sparse. With fewer latents it keeps the `l0` largest coordinates of
    each sample, its best approximation by so many.

    Parameters
    ----------
    l0 : int, optional
        By default all.
    {common}
    d_sae : int, optional
        Leading directions kept; by default all.

    Notes
    -----
    Directions are those of the *raw* second moment about b_dec, written in whitened space: under a
    metric that whitens the data fully all directions weigh alike and any rotation would do.
    Without a metric this is ordinary PCA.
    """

    def __init__(
        self,
        l0: int | None = None,
        metric: Any = None,
        *,
        center: bool = True,
        d_sae: int | None = None,
        num_threads: int | None = None,
    ) -> None:
        super().__init__(l0, metric, center=center, num_threads=num_threads)
        self.d_sae = d_sae

    def fit(self, X: Any, y: Any = None) -> PCADictionary:
        """The leading directions of X's second moment about b_dec."""
        X = self._start(X)
        d = X.shape[1]
        second = np.zeros((d, d))
        for part in self._blocks(X):
            block = part.astype(np.float64) - self._b_dec
            second += block.T @ block
        directions = np.linalg.eigh(second)[1][:, ::-1].T  # rows, the largest first
        if self._whitener is not None:
            # whitened, they are no longer orthonormal: take the orthonormal rows nearest to them
            U, _, Vt = np.linalg.svd(directions @ self._whitener, full_matrices=False)
            directions = U @ Vt
        kept = d if self.d_sae is None else self.d_sae
        if not 1 <= kept <= d:
            raise ValueError(f"d_sae: expected 1 to {d} (d_in), got {self.d_sae}")
        self._set_atoms(directions[:kept])
        return self

    @one_blas_thread
    def _coefficients(self, Z: np.ndarray, index: np.ndarray) -> np.ndarray:
        return np.take_along_axis(Z @ self._unit.T, index, axis=1)


@_document
class NeuronBasis(_Dictionary):
    """The coordinates themselves ("neurons"): the standard basis, of unit norm in the metric.

    Codes are coordinates of x - b_dec, copied, not refitted: the `l0` that are largest in the
    metric's units. All of them reproduce x, and the metric makes them coherent, so R2 = 1 and q*
    is near 0.

    Parameters
    ----------
    l0 : int, optional
        By default all.
    {common}
    """

    def fit(self, X: Any, y: Any = None) -> NeuronBasis:
        """X gives the dimension and the mean alone."""
        X = self._start(X)
        d = X.shape[1]
        rows = np.eye(d) if self._whitener is None else self._whitener
        unit, self._norms = unit_rows(rows, None, self.num_threads, "metric")
        self._set_atoms(unit)
        # not as `_set_atoms` computed it: off the diagonal it must be zero exactly
        self._W_dec = np.diag((1 / self._norms).astype(np.float32))
        return self

    @one_blas_thread
    def _whiten(self, X: np.ndarray) -> np.ndarray:
        """Coordinates times the norms of their unit vectors in the metric, not whitened: the codes before selection."""
        return np.asarray((X.astype(np.float64) - self._b_dec) * self._norms, np.float32)

    @one_blas_thread
    def _select(self, Z: np.ndarray) -> np.ndarray:
        return np.sort(np.argpartition(np.abs(Z), -self.l0_, axis=1)[:, -self.l0_ :], axis=1)

    @one_blas_thread
    def _coefficients(self, Z: np.ndarray, index: np.ndarray) -> np.ndarray:
        return np.take_along_axis(Z, index, axis=1)

    @property
    @one_blas_thread
    def W_enc(self) -> np.ndarray:
        """Diagonal (d_in, d_sae): coordinates in units of the atoms."""
        self._check_fitted()
        return np.diag(self._norms.astype(np.float32))


# ------------------------------------------------------------------ data and models


def shuffle_coordinates(X: Any, random_state: int = 0, out: Any = None) -> np.ndarray:
    """X with each coordinate permuted over the samples, independently of the others.

    Every coordinate keeps its distribution; whatever ties coordinates to each other is gone. What a
    dictionary still finds, it owes to each coordinate's own distribution.

    Parameters
    ----------
    X : array (n, d)
    random_state : int
        Seed of the permutations.
    out : array (n, d), optional
        Where to write, a memory map for instance; not X itself.

    Returns
    -------
    array (n, d) of X's dtype

    Examples
    --------
    >>> import numpy as np
    >>> from atoms.controls import shuffle_coordinates
    >>> X = np.arange(12.0).reshape(6, 2)
    >>> bool((np.sort(shuffle_coordinates(X), axis=0) == X).all())
    True
    """
    X = array_of(X, "X")
    if X.ndim != 2:
        raise ValueError(f"X: expected two dimensions (n, d), got shape {X.shape}")
    if out is None:
        out = np.empty_like(X, subok=False)
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out: expected an array, got {type(out).__name__}")
    if out.shape != X.shape:
        raise ValueError(f"out: expected shape {X.shape} as X has, got {out.shape}")
    if np.may_share_memory(out, X):
        raise ValueError("out: shares memory with X; pass a separate array")
    rng = generator_of(random_state)
    for j in range(X.shape[1]):
        out[:, j] = X[rng.permutation(len(X)), j]
    shuffled: np.ndarray = out
    return shuffled


def random_model(model: Any, random_state: int = 0) -> Any:
    """A copy of a PyTorch model with the random parameters its architecture starts from.

    Transformers models are built anew from their configuration; other modules are copied and each
    of their layers asked to `reset_parameters`. Activations captured from it show what
    architecture and text alone do. The global random state is left as it was; the model given is
    not touched.

    Raises
    ------
    TypeError
        A layer that holds parameters and has no `reset_parameters`, outside Transformers.
    """
    import torch

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed_of(random_state))
        if hasattr(model, "config") and hasattr(model, "_init_weights"):
            fresh = type(model)(copy.deepcopy(model.config))
        else:
            fresh = copy.deepcopy(model)
            for name, layer in fresh.named_modules():
                if hasattr(layer, "reset_parameters"):
                    layer.reset_parameters()
                elif next(layer.parameters(recurse=False), None) is not None:
                    raise TypeError(
                        f"model: layer {name or type(layer).__name__!r} has parameters and no "
                        "reset_parameters; give it one that draws them anew"
                    )
    first = next(model.parameters(), None)
    if first is not None:
        fresh = fresh.to(device=first.device, dtype=first.dtype)
    return fresh.train(model.training)
