"""Dictionary learning by expectation maximisation: codes of spikes with heights, by mean field."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import scipy.sparse as sp

from .. import _core
from .._checks import Sent
from .._config import context, one_blas_thread
from ..recovery import Dictionary
from ..recovery._coding import Codes, packed
from ..recovery._coding import code as run_coder
from ..recovery._dictionary import Array
from ..sae._model import as_lists, blocks, decode

ROUNDS, SWEEPS = 2, 2  # of mean field
GIVEN = 0.5  # probability from which on an atom is part of a code that is given out
FITTED = 0.02  # and of one that atoms are fitted to
GIVEN_WEIGHT = 60_000  # samples that atoms given as a start weigh as much as
LEAST_RATE, MOST_RATE = 2e-4, 0.7
TESTED = 5  # steps for which an atom is left with what it began with
EVERY = 3  # steps from one replacement to the next
AT_ONCE = 400  # atoms replaced at most

COUNT, HITS, FIRST, SECOND, DOUBT, CERTAIN, AGE = range(7)


@dataclasses.dataclass
class Spikes(Sent):
    """What is known of how atoms fire. Its array is replaced by each step, never changed."""

    sums: Array  # (n_atoms, 7) float64, see the names above: discounted sums over samples, AGE in steps
    weight: float  # discounted number of samples
    noise: float  # root mean square of a coordinate of what no atom explains

    @property
    def usual(self) -> float:
        """Mean height of an atom that fires: the unit of all that is not otherwise known."""
        hits = float(self.sums[:, HITS].sum())
        return float(self.sums[:, FIRST].sum()) / hits if hits > 0 else 1.0

    def priors(self) -> dict[str, Array]:
        """How often each atom fires, and the mean and standard deviation of its height, as after 20 usual firings more."""
        count, hits, first, second = self.sums[:, : SECOND + 1].T
        usual = self.usual
        height = (first + 20 * usual) / (hits + 20)
        square = (second + 20 * 1.05 * usual**2) / (hits + 20)
        return {
            "rate": np.clip((count + 0.5) / (self.weight + 1000), LEAST_RATE, MOST_RATE),
            "height": height,
            "spread": np.sqrt(np.maximum(square - height**2, (usual / 9) ** 2)),
        }


def n_candidates(p: dict[str, Any], d: int) -> int:
    """Atoms that are looked at in a row."""
    return int(p["n_nonzero"] or min(p["n_atoms"], max(16, d // 12)))


def code(
    t: Array, d: Dictionary, spikes: Spikes, n: int, least: float, num_threads: int | None
) -> tuple[sp.csr_array, Array, Any]:
    """Posterior means of the atoms of at least that probability, these probabilities, and the coder's info."""
    ctx, priors, likely = context(num_threads), spikes.priors(), []

    def solve(handle: Any, x: Array, rows: slice, out: Codes) -> None:
        p = np.empty(out.indices.shape, np.float32)
        _core.spikes(
            ctx, handle, x, **priors, noise=spikes.noise, least=least, n_candidates=n, rounds=ROUNDS, sweeps=SWEEPS,
            probability=p, **out.without_gap(),
        )  # fmt: skip
        likely.append(packed(out.indices, p, out.counts)[1])

    codes, info = run_coder("spikes", t, d, n, solve, verbose=False, return_info=True)
    return codes, np.concatenate([np.empty(0, np.float32), *likely]), info


def _sums(codes: sp.csr_array, on: Array, m: int) -> Array:
    """Of one batch: firings expected, seen, their heights and squares; probabilities and their squares."""
    seen, z = on > GIVEN, codes.data.astype(np.float64)
    weights = (on, seen, seen * z, seen * z * z, on, on.astype(np.float64) ** 2, np.zeros(len(on)))
    return np.stack([np.bincount(codes.indices, w, m) for w in weights], axis=1).astype(np.float64)


def _noise(residual: Array, d: int, usual: float) -> float:
    """Somewhat more than is seen, and never so little that nothing is doubtful."""
    return max(0.1 * usual, 1.1 * float(np.sqrt(residual @ residual / max(1, len(residual)) / d)), 1e-12)


@one_blas_thread
def start(t: Array, atoms: Array, n: int, weight: float, num_threads: int | None) -> tuple[Spikes, Array]:
    """From some rows, `t`, and atoms: all alike at first, then as the rows' codes say, worth `weight` samples. And the rows'
    mean beside their codes."""
    (m, d), t = atoms.shape, t[:4096]
    best = np.concatenate([(t[part] @ atoms.T).max(axis=1) for part in blocks(len(t), 512)])
    usual = max(float(np.median(best)), 1e-12)
    shift: Array = np.zeros(d, np.float32)
    dictionary, rate = Dictionary(atoms, num_threads=num_threads), min(0.5, n / 8 / m)
    sums = np.tile(rate * weight * np.array([1, 1, usual, 1.05 * usual**2, 0, 0, 0]), (m, 1))
    spikes = Spikes(sums, weight, max(0.5 * float(np.sqrt(np.mean(t * t))), 0.1 * usual))
    for _ in range(6):
        codes, on, info = code(t - shift, dictionary, spikes, n, FITTED, num_threads)
        sums = _sums(codes, on, m) * (weight / len(t))
        shift = shift + 0.5 * _left_over(t - shift, codes, atoms)
        sums[:, DOUBT:] = 0
        spikes = Spikes(sums, weight, _noise(info.residual, d, Spikes(sums, weight, 0).usual))
    return spikes, shift


def _left_over(t: Array, codes: sp.csr_array, atoms: Array) -> Array:
    """Mean residual."""
    used = np.asarray(codes.sum(axis=0), np.float64).ravel() / len(t)
    return np.asarray(t.mean(axis=0, dtype=np.float64) - used @ atoms, np.float32)


@dataclasses.dataclass
class Step:
    """What a step has made of a batch."""

    spikes: Spikes
    atoms: Array
    energy: Array
    shift: Array  # of the center
    codes: sp.csr_array
    residual: Array  # norms
    status: Array
    replaced: int


@one_blas_thread
def step(
    t: Array, atoms: Array, energy: Array, spikes: Spikes, n: int, keep: float, sweeps: int, incoherence: float,
    replace: Any, num_threads: int | None,
) -> Step:  # fmt: skip
    """Expectation and maximisation on one batch. `replace` seeds the replacement of doubtful atoms; None: not now."""
    ctx, (m, d) = context(num_threads), atoms.shape
    codes, on, info = code(t, Dictionary(atoms, num_threads=num_threads), spikes, n, FITTED, num_threads)
    sums = _sums(codes, on, m)
    sums[:, : SECOND + 1] += keep * spikes.sums[:, : SECOND + 1]
    sums[:, DOUBT:AGE] += 0.9 * spikes.sums[:, DOUBT:AGE]
    sums[:, AGE] = spikes.sums[:, AGE] + 1
    new = Spikes(sums, keep * spikes.weight + len(t), spikes.noise)
    new.noise = _noise(info.residual, d, new.usual)
    fitted, energy = atoms.copy(), energy.copy()
    _core.fit_atoms(ctx, X=t, **as_lists(codes), keep=keep, sweeps=sweeps, atoms=fitted, energy=energy)
    sure = codes.copy()
    sure.data[on <= GIVEN] = 0  # atoms that stand in for others
    sure.eliminate_zeros()
    how: dict[str, Any] = {"energy": energy + 1, "least": 3 / np.sqrt(d), "incoherence": incoherence}
    how |= as_lists(sure)
    for _ in range(2):
        given, fitted = fitted, np.empty_like(fitted)
        _core.part_atoms(ctx, atoms=given, out=fitted, **how)
    shift = 0.5 * _left_over(t, codes, atoms)
    replaced = 0
    if replace is not None:
        left = t - decode(ctx, codes, atoms, np.zeros(d, np.float32))
        replaced = _replace(left, fitted, energy, new, np.random.default_rng(replace))
    return Step(new, fitted, energy, shift, codes, info.residual, info.status, replaced)


def _replace(left: Array, atoms: Array, energy: Array, spikes: Spikes, rng: Any) -> int:
    """Atoms whose firing stays doubtful, that hardly ever fire, or that are copies of busier ones take directions that
    residuals share, where that is something new. Changes atoms, energy and spikes; how many."""
    sums = spikes.sums
    copies = np.zeros(len(atoms), bool)
    for part in blocks(len(atoms), 512):  # all products at once would be a matrix of atoms by atoms
        busier = energy > energy[part, None]
        copies[part] = (busier & (np.abs(atoms[part] @ atoms.T) > 0.7)).any(axis=1)
    useless = (
        (sums[:, CERTAIN] < 0.75 * sums[:, DOUBT]) | (spikes.priors()["rate"] < 1.5 * LEAST_RATE) | copies
    )
    gone = np.flatnonzero(useless & (sums[:, AGE] > TESTED))
    gone = gone[np.argsort(sums[gone, CERTAIN] / np.maximum(sums[gone, DOUBT], 1e-3), kind="stable")][
        :AT_ONCE
    ]
    norms = np.linalg.norm(left, axis=1)
    left = left[norms > 1e-6 * spikes.usual]
    if not len(gone) or len(left) < 2:
        return 0
    rare = _shared(left, min(len(left), 2 * len(gone)), spikes.usual, rng, 6, 20)
    frequent = _shared(left, min(len(left), len(gone)), spikes.usual, rng, 6)
    found, rate, height = (np.concatenate(both) for both in zip(rare, frequent, strict=True))
    chosen = _distinct(found, rate * len(left), np.abs(found @ atoms.T).max(axis=1) < 0.7, len(gone))
    k = len(chosen)
    gone = gone[:k]
    rates, h, usual = np.clip(rate[chosen], 5e-4, 0.05), height[chosen], spikes.usual
    count = rates * spikes.weight
    square = h**2 + 0.07 * usual**2
    zero = np.zeros(k)
    # little weight: what is seen of it soon says more of its height than how it was found
    sums[gone] = np.stack(
        [count, 0.1 * count, 0.1 * count * h, 0.1 * count * square, zero, zero, zero], axis=1
    )
    atoms[gone], energy[gone] = found[chosen], 0.1 * count * square
    return k


def _distinct(found: Array, rows: Array, new: Array, most: int) -> list[int]:
    """Of new directions that at least four rows share, those shared most first, the ones unlike each other."""
    chosen: list[int] = []
    for i in np.argsort(-rows, kind="stable"):
        if rows[i] < 4 or len(chosen) == most:
            break
        if new[i] and (not chosen or np.abs(found[chosen] @ found[i]).max() < 0.5):
            chosen.append(int(i))
    return chosen


@one_blas_thread
def directions(t: Array, m: int, rng: Any) -> Array:
    """Directions that rows share, no more than m."""
    t = t[np.linalg.norm(t, axis=1) > 1e-6]  # a coordinate has mean square 1
    if len(t) < 2:
        return t[:0]
    usual = 5 * float(np.sqrt(np.mean(t**2)))  # more than noise alone would do
    found, rate, _ = _shared(t, min(len(t), 2 * m, 4096), usual, rng, 10)
    chosen = _distinct(found, rate * len(t), np.ones(len(found), bool), m)
    return np.asarray(found[chosen])


def _shared(
    left: Array, n: int, usual: float, rng: Any, rounds: int, few: int | None = None
) -> tuple[Array, Array, Array]:
    """Directions that some rows share, how often and how high: each begins as one of n rows, and becomes, `rounds` times, the
    mean of the rows that lie far along it, weighed by the square of how far beyond twice the noise (a power iteration on the
    third moment, which the heights of rare spikes rule). With `few`, for directions so rare that noise would outweigh them,
    only so many rows are far, and weigh by how far."""
    v = left[rng.choice(len(left), n, replace=False)]
    noise = float(np.sqrt(np.mean(left**2)))
    parts = [_directed(left, v[part], 0.7 * usual, noise, rounds, few) for part in blocks(n, 512)]
    found, rate, height = (np.concatenate(of) for of in zip(*parts, strict=True))
    return found, rate, height


def _directed(
    left: Array, v: Array, least: float, noise: float, rounds: int, few: int | None
) -> tuple[Array, Array, Array]:
    """`_shared` from the rows v."""
    v = v / np.linalg.norm(v, axis=1, keepdims=True)
    for _ in range(rounds):
        s = left @ v.T
        if few is None:
            s = np.square(np.maximum(s - 2 * noise, 0))
        else:
            k = min(few, len(left))
            s = np.maximum(s - np.maximum(2.5 * noise, np.partition(s, -k, axis=0)[-k]), 0)
        v = s.T @ left + 1e-6 * v
        v /= np.linalg.norm(v, axis=1, keepdims=True)
    s = left @ v.T
    far = s > least
    return v, far.mean(axis=0), (s * far).sum(axis=0) / np.maximum(1, far.sum(axis=0))
