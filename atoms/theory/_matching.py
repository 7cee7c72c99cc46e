"""Do two dictionaries hold the same atoms? Matching across seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy  # its optimize, when it is used: a quarter of the time that importing atoms took
import scipy.sparse
import scipy.sparse.csgraph

from .. import _core
from .._checks import atoms_of, check_count, check_rows, listed, whitener_of
from .._config import context, one_blas_thread
from .._shown import Shown, Table
from .._unit_rows import unit_rows

_DENSE = 4096  # atoms up to which the whole similarity matrix is held, 128 MB in float64
_TILE_BYTES = 64 << 20


@dataclass(frozen=True)
class Matching(Shown):
    """How the atoms of two dictionaries correspond; see :func:`match_dictionaries`.

    Attributes
    ----------
    mcc : float
        Mean |cosine| over the pairs of the one-to-one matching.
    index_a, index_b : ndarray of int
        Matched pairs, ascending in `index_a`; min(d_sae of a, of b) of them.
    cosine : ndarray
        Signed cosine of each pair.
    nearest_a, nearest_b : ndarray
        Largest |cosine| of each atom of a with any of b, and of b with any of a: not one-to-one.
    mmcs : float
        Mean of `nearest_a` and of `nearest_b`, averaged: the mean maximal cosine similarity.
    exact : bool
        Whether `mcc` is proven to be the maximum over all matchings.
    """

    mcc: float
    mmcs: float
    exact: bool
    index_a: np.ndarray = field(repr=False)
    index_b: np.ndarray = field(repr=False)
    cosine: np.ndarray = field(repr=False)
    nearest_a: np.ndarray = field(repr=False)
    nearest_b: np.ndarray = field(repr=False)

    def share_above(self, cosine: float) -> float:
        """Share of the matched pairs with |cosine| at least this."""
        return float((np.abs(self.cosine) >= cosine).mean())

    def _table(self) -> Table:
        rows = [
            ("pairs", len(self.cosine)),
            ("mean |cosine| of pairs (MCC)", self.mcc),
            ("mean largest |cosine| (MMCS)", self.mmcs),
            *(
                (f"pairs with |cosine| of {c:g} or more", f"{100 * self.share_above(c):.1f}%")
                for c in (0.9, 0.7, 0.5)
            ),
            ("proven to be the best matching", self.exact),
        ]
        return Table(f"Matching of {len(self.nearest_a):,} with {len(self.nearest_b):,} atoms", rows)


def nearest(
    a: np.ndarray, b: np.ndarray, num_threads: int | None
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """For each unit row of a, that of b with the largest |cosine|, and the other way: its number, and that cosine."""
    of_a, of_b = ((np.empty(n, np.int64), np.empty(n, np.float32)) for n in (len(a), len(b)))
    _core.nearest(context(num_threads), a, b, True, *of_a, *of_b)
    return of_a, of_b


@one_blas_thread
def _candidates(a: np.ndarray, b: np.ndarray, count: int) -> scipy.sparse.csr_array:
    """|cosines| (len(a), len(b)) of each atom's `count` nearest, of a and of b, by tiles."""
    found = []
    for x, y, swap in ((a, b, False), (b, a, True)):
        step = max(1, _TILE_BYTES // (4 * len(y)))
        for first in range(0, len(x), step):
            size = np.abs(x[first : first + step] @ y.T)
            near = np.argpartition(size, -count, axis=1)[:, -count:]
            value = np.take_along_axis(size, near, axis=1).ravel()
            own = np.repeat(np.arange(first, first + len(size)), count)
            found.append((near.ravel(), own, value) if swap else (own, near.ravel(), value))
    i, j, value = (np.concatenate(part) for part in zip(*found))
    _, once = np.unique(i * len(b) + j, return_index=True)
    i, j, value = i[once], j[once], value[once].astype(np.float64)
    return scipy.sparse.csr_array((value, (i, j)), shape=(len(a), len(b)))


def _sparse_matching(a: np.ndarray, b: np.ndarray, count: int) -> np.ndarray:
    """Row of b for each row of a (len(a) <= len(b)): the best matching among candidates.

    A full matching of candidates need not exist, so each atom of a may also stay alone, at
    |cosine| 0, in a column of its own; those that do are then matched among what is left of b.
    """
    n, m = len(a), len(b)
    cost = _candidates(a, b, count)
    cost.data = 2.0 - np.minimum(cost.data, 1.0)  # weights must not be 0, which means no edge
    cost = scipy.sparse.hstack([cost, 2.0 * scipy.sparse.eye_array(n)], format="csr")
    _, column = scipy.sparse.csgraph.min_weight_full_bipartite_matching(cost)
    alone = np.flatnonzero(column >= m)
    free = np.setdiff1d(np.arange(m), column)
    left, right = scipy.optimize.linear_sum_assignment(np.abs(a[alone] @ b[free].T), maximize=True)
    column[alone[left]] = free[right]
    return column


@one_blas_thread
def match_dictionaries(
    A: Any,
    B: Any,
    metric: Any = None,
    *,
    candidates: int = 32,
    num_threads: int | None = None,
) -> Matching:
    """One-to-one matching of the atoms of two dictionaries by |cosine|.

    Maximises the sum of |cosine| over pairs (the Hungarian method), of which `mcc`, the mean
    correlation coefficient, is the mean: 1 for dictionaries equal up to order, sign and norm.

    Parameters
    ----------
    A : array (d_sae, d_in) or model
        Atoms as rows, of a model its `W_dec`.
    B : array (d_sae, d_in) or model
        The other dictionary; it may have another number of atoms.
    metric : AtomicInnerProduct, optional
    candidates : int
        Beyond 4,096 x 4,096 pairs, partners are sought only among so many nearest of each atom of A
        and of B; atoms left without one are then matched with what is left. `exact` is False: `mcc`
        is a lower bound of the maximum, and the mean of `nearest_a` or `nearest_b`, whichever
        dictionary is smaller, an upper one.
    num_threads : int, optional

    Returns
    -------
    Matching

    Notes
    -----
    Memory: up to 128 MB for similarities where one of the dictionaries has at most 4,096 atoms and
    the other not many more, else tiles of 64 MB and the candidates.

    Examples
    --------
    >>> import numpy as np
    >>> from atoms.theory import match_dictionaries
    >>> A = np.random.default_rng(0).standard_normal((50, 10))
    >>> m = match_dictionaries(A, -2 * A[::-1])
    >>> round(m.mcc, 6), m.index_b[:3]
    (1.0, array([49, 48, 47]))
    """
    a, _ = unit_rows(A, metric, num_threads, "A")
    b, _ = unit_rows(B, metric, num_threads, "B")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"B: expected {a.shape[1]} columns as A has, got {b.shape[1]}")
    if min(len(a), len(b)) == 0:
        raise ValueError("A, B: expected at least one atom in each, got none")
    check_count(candidates, "candidates")
    nearest_a, nearest_b = (
        np.minimum(value.astype(np.float64), 1.0) for _, value in nearest(a, b, num_threads)
    )
    small, large, swapped = (a, b, False) if len(a) <= len(b) else (b, a, True)
    exact = len(small) * len(large) <= _DENSE**2
    if exact:
        i, j = scipy.optimize.linear_sum_assignment(np.abs(small @ large.T), maximize=True)
    else:
        i = np.arange(len(small))
        j = _sparse_matching(small, large, min(candidates, len(small)))
    if swapped:
        order = np.argsort(j)
        i, j = j[order], i[order]
    cosine = np.clip(np.einsum("nd,nd->n", a[i], b[j], dtype=np.float64), -1.0, 1.0)
    return Matching(
        mcc=float(np.abs(cosine).mean()),
        mmcs=float((nearest_a.mean() + nearest_b.mean()) / 2),
        exact=exact,
        index_a=i,
        index_b=j,
        cosine=cosine,
        nearest_a=nearest_a,
        nearest_b=nearest_b,
    )


def several_atoms(dictionaries: Any) -> list[np.ndarray]:
    """The atoms of each dictionary, as rows; those that lie in a file stay there."""
    named = [(D, f"dictionaries[{k}]") for k, D in enumerate(listed(dictionaries, "dictionaries"))]
    return [check_rows(atoms_of(D, name), name) for D, name in named]


def pairwise_mcc(
    dictionaries: Sequence[Any], metric: Any = None, *, candidates: int = 32, num_threads: int | None = None
) -> np.ndarray:
    """Symmetric matrix of `mcc` between several dictionaries, ones on the diagonal.

    Parameters
    ----------
    dictionaries : sequence of array (d_sae, d_in) or model
        Of one d_in.
    metric : AtomicInnerProduct, optional
        Euclidean geometry without.
    candidates : int
        As in :func:`match_dictionaries`.
    num_threads : int, optional
        None for the package's setting.

    Examples
    --------
    >>> import numpy as np
    >>> from atoms.theory import pairwise_mcc
    >>> pairwise_mcc([np.eye(3), np.eye(3)[::-1], np.eye(3)]).min()
    np.float64(1.0)
    """
    atoms = several_atoms(dictionaries)
    count = len(atoms)
    out = np.eye(count)
    for i in range(count):
        for j in range(i):
            m = match_dictionaries(atoms[i], atoms[j], metric, candidates=candidates, num_threads=num_threads)
            out[i, j] = out[j, i] = m.mcc
    return out


@one_blas_thread
def subspace_overlap(A: Any, B: Any, metric: Any = None, k: int | None = None) -> float:
    """Overlap of the spaces that two dictionaries span, or of their k leading directions.

    ||P'Q||_F^2 / k, the mean squared cosine of the principal angles, where P and Q are orthonormal
    bases of the k leading right singular directions of the whitened unit atoms: 1 for equal
    spaces, 0 for orthogonal ones, k / d_in expected for random ones. Overcomplete dictionaries span
    everything: choose k below d_in for them, or pass a subset of atoms.

    Parameters
    ----------
    A : array (d_sae, d_in) or model
        Atoms as rows, of a model its `W_dec`.
    B : array (d_sae, d_in) or model
        The other dictionary.
    metric : AtomicInnerProduct, optional
        Euclidean geometry without.
    k : int, optional
        By default the smaller of the two ranks.

    Examples
    --------
    >>> import numpy as np
    >>> from atoms.theory import subspace_overlap
    >>> round(subspace_overlap(np.eye(4)[:2], np.eye(4)[1:3]), 6)
    0.5
    """
    bases, ranks = [], []
    for D, name in ((A, "A"), (B, "B")):
        D = check_rows(atoms_of(D, name), name)
        root = whitener_of(metric, D.shape[1])
        gram = np.zeros((D.shape[1], D.shape[1]))
        for first in range(0, len(D), 4096):
            part = np.asarray(D[first : first + 4096], dtype=np.float64)
            part = part if root is None else part @ root
            norms = np.linalg.norm(part, axis=1, keepdims=True)
            if not np.isfinite(norms).all() or not norms.all():
                raise ValueError(f"{name}: expected atoms that are finite and not zero")
            part = part / norms
            gram += part.T @ part
        values, vectors = np.linalg.eigh(gram)
        ranks.append(int((values > values[-1] * len(values) * 1e-12).sum()))
        bases.append(vectors[:, ::-1])
    if bases[0].shape != bases[1].shape:
        raise ValueError(f"B: expected {len(bases[0])} columns as A has, got {len(bases[1])}")
    k = min(ranks) if k is None else check_count(k, "k")
    if k > min(ranks):
        raise ValueError(f"k: expected 1 to {min(ranks)}, the smaller rank, got {k}")
    return float(((bases[0][:, :k].T @ bases[1][:, :k]) ** 2).sum() / k)
