"""Which atoms do several dictionaries agree on? Their consensus, each atom with the number of those that have it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .._checks import as_number
from .._shown import Shown, Table
from .._unit_rows import unit_rows
from ._matching import nearest, several_atoms


@dataclass(frozen=True)
class Consensus(Shown):
    """Atoms of several dictionaries, brought together; see :func:`consensus`.

    Attributes
    ----------
    atoms : ndarray (n, d_in) float32
        Means of the atoms that were found to be one, of unit norm (under the metric, where there is one); those that
        most dictionaries have come first, and of those the most alike.
    found_in : ndarray (n,) of int
        In how many of the dictionaries.
    cosine : ndarray (n,)
        Mean |cosine| of an atom with those that it stands for: 1 where one dictionary alone has it.
    members : ndarray (n, dictionaries) of int
        Their rows in each dictionary, -1 where it has none.
    """

    atoms: np.ndarray = field(repr=False)
    found_in: np.ndarray = field(repr=False)
    cosine: np.ndarray = field(repr=False)
    members: np.ndarray = field(repr=False)

    def __repr__(self) -> str:
        k = self.members.shape[1]
        return (
            f"Consensus({k} dictionaries, {len(self.atoms)} atoms, {int((self.found_in == k).sum())} in all)"
        )

    def _table(self) -> Table:
        k, sizes = self.members.shape[1], (self.members >= 0).sum(0)
        rows = [
            (count, int(here.sum()), f"{100 * count * here.sum() / sizes.sum():.1f}%", self._likeness(here))
            for count in range(k, 0, -1)
            for here in [self.found_in == count]
        ]
        head = ("found in", "atoms", "of all atoms", "mean |cosine|")
        return Table(f"Consensus of {k} dictionaries of {sizes.mean():,.0f} atoms", rows, head)

    def _likeness(self, here: np.ndarray) -> float:
        return float(self.cosine[here].mean()) if here.any() else float("nan")


def _edges(units: list[np.ndarray], cosine: float, num_threads: int | None) -> np.ndarray:
    """Pairs of atoms, each the other's nearest, by falling |cosine|: dictionary and row of either."""
    found = []
    for a, A in enumerate(units):
        for b, B in enumerate(units[:a]):
            (index, value), (back, _) = nearest(A, B, num_threads)
            rows = np.flatnonzero((back[index] == np.arange(len(index))) & (value >= cosine))
            found.append(
                np.stack([-value[rows].astype(np.float64), *np.broadcast_arrays(a, rows, b, index[rows])], 1)
            )
    edges = np.concatenate(found)
    return edges[np.lexsort(edges.T[::-1])][:, 1:].astype(np.int64)


def _groups(sizes: list[int], edges: np.ndarray) -> np.ndarray:
    """Rows (groups, dictionaries): edges join groups, the most alike first, unless both have an atom of one dictionary."""
    first = np.concatenate([[0], np.cumsum(sizes)])
    members = np.full((first[-1], len(sizes)), -1)
    for k, n in enumerate(sizes):
        members[first[k] : first[k + 1], k] = np.arange(n)
    group = np.arange(first[-1])
    for a, i, b, j in edges.tolist():
        one, other = group[first[a] + i], group[first[b] + j]
        if one == other or ((members[one] >= 0) & (members[other] >= 0)).any():
            continue
        members[one] = np.maximum(members[one], members[other])
        there = np.flatnonzero(members[other] >= 0)
        group[first[there] + members[other, there]] = one
        members[other] = -1
    return members[(members >= 0).any(axis=1)]


def consensus(
    dictionaries: Sequence[Any], metric: Any = None, *, cosine: float = 0.5, num_threads: int | None = None
) -> Consensus:
    """The atoms of several dictionaries, of seeds for example, each with the number of dictionaries that have it.

    Two atoms of different dictionaries are one where each is the other's nearest by |cosine|, and that is at least
    `cosine`. Groups grow from such pairs, the most alike first, with one atom of a dictionary at most; a
    group's atom is the mean of its unit atoms, their signs made equal.

    What one seed finds and no other is of that seed, not of the data; but seeds agree on what the method prefers, also
    where it is wrong, so `found_in` bounds what is real from above. Controls: `atoms.controls.RandomDictionary` in
    place of the dictionaries, or dictionaries of shuffled activations.

    Parameters
    ----------
    dictionaries : sequence of array (d_sae, d_in) or model
        Two or more, of one d_in; of a model its `W_dec`. d_sae may differ.
    metric : AtomicInnerProduct, optional
        Euclidean geometry without.
    cosine : float
        Least |cosine| of what counts as one atom, above 0 and at most 1.
    num_threads : int, optional
        None for the package's setting.

    Returns
    -------
    Consensus
        Each atom of each dictionary stands in exactly one of its groups.

    Raises
    ------
    ValueError
        Fewer than two dictionaries, widths that differ, an atom that is zero or not finite.

    Notes
    -----
    Costs k (k - 1) / 2 products of two dictionaries, of which tiles are held. The consensus of few dictionaries is in part
    chance: of two unrelated ones mutual nearest neighbours pass a low `cosine` too.

    Examples
    --------
    >>> import numpy as np
    >>> from atoms.theory import consensus
    >>> found = consensus([np.eye(4)[:3], -np.eye(4)[1:], np.eye(4)[1:2]])
    >>> found.found_in, found.members[0]
    (array([3, 2, 1, 1]), array([1, 0, 0]))
    """
    dictionaries = [np.asarray(D) for D in several_atoms(dictionaries)]
    if len(dictionaries) < 2:
        raise ValueError(f"dictionaries: expected two or more, got {len(dictionaries)}")
    if not 0 < as_number(cosine, "cosine") <= 1:
        raise ValueError(f"cosine: expected a number above 0 and at most 1, got {cosine}")
    pairs = [unit_rows(D, metric, num_threads, f"dictionaries[{k}]") for k, D in enumerate(dictionaries)]
    units, d = [unit for unit, _ in pairs], dictionaries[0].shape[1]
    for k, D in enumerate(dictionaries):
        if D.shape[1] != d:
            raise ValueError(
                f"dictionaries[{k}]: expected {d} columns as dictionaries[0] has, got {D.shape[1]}"
            )
        if not len(D):
            raise ValueError(f"dictionaries[{k}]: expected at least one atom, got none")
    members = _groups([len(D) for D in dictionaries], _edges(units, cosine, num_threads))
    atoms, cosines = _means(dictionaries, units, [norms for _, norms in pairs], members)
    count = (members >= 0).sum(axis=1)
    order = np.lexsort([np.arange(len(members)), -cosines, -count])
    return Consensus(atoms[order].astype(np.float32), count[order], cosines[order], members[order])


def _means(
    dictionaries: list[np.ndarray], units: list[np.ndarray], norms: list[np.ndarray], members: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Each group's mean atom, of unit norm, in raw coordinates, and its mean |cosine| with its members."""
    shape = len(members), units[0].shape[1]
    lead, total, raw, cosines = (
        np.zeros(shape, np.float32),
        np.zeros(shape),
        np.zeros(shape),
        np.zeros(shape[0]),
    )
    rows = [np.flatnonzero(members[:, k] >= 0) for k in range(len(units))]
    for k, (D, unit, norm, at) in enumerate(zip(dictionaries, units, norms, rows)):
        own, new = unit[members[at, k]], at[(members[at, :k] < 0).all(axis=1)]
        lead[new] = unit[members[new, k]]
        sign = np.where(np.einsum("ij,ij->i", own, lead[at], dtype=np.float64) < 0, -1.0, 1.0)[:, None]
        total[at] += sign * own
        raw[at] += sign / norm[members[at, k], None] * np.asarray(D[members[at, k]], np.float64)
    size = np.linalg.norm(total, axis=1, keepdims=True)
    total /= size
    for k, (unit, at) in enumerate(zip(units, rows)):
        cosines[at] += np.abs(np.einsum("ij,ij->i", unit[members[at, k]], total[at]))
    count = (members >= 0).sum(axis=1)
    return raw / size, np.where(count == 1, 1.0, np.minimum(cosines / count, 1.0))
