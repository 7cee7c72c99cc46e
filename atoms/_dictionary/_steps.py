"""Codes of a batch, a step, and its record."""

from __future__ import annotations

import time
import types
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp

from .. import _core
from .._checks import first_nonfinite_row, nonfinite_error
from .._config import context
from ..recovery import Dictionary, Status, lasso, omp
from ..recovery._coding import without_complaints
from ..sae._model import Batch, as_lists, blocks
from ..sae._training import latest
from . import _spikes as spikes
from ._learned import Learned

#: codes of a batch, norms of residuals, which codes are not as asked, and how many atoms were replaced
Coded: TypeAlias = tuple[sp.csr_array, np.ndarray, np.ndarray, int]

RECORDS = 200  # of the steps of `fit`; beyond max_steps ever fewer, so files do not grow with each step


def code(
    t: np.ndarray, d: Dictionary, learned: Learned, num_threads: int | None
) -> tuple[sp.csr_array, np.ndarray, np.ndarray]:
    """Codes of rows of the training space, the norms of their residuals, and which are not as asked."""
    p = learned.parameters
    if learned.spikes is not None:
        n = spikes.n_candidates(p, d.d_in)
        with without_complaints():
            codes, _, info = spikes.code(t, d, learned.spikes, n, spikes.GIVEN, num_threads)
        return codes, info.residual, info.status
    how: dict[str, Any] = {"num_threads": num_threads, "return_info": True}
    with without_complaints():
        if p["coder"].endswith("omp"):
            codes, info = omp(t, d, p["n_nonzero"], nonnegative=p["coder"] == "nn-omp", **how)
        else:
            codes, info = lasso(t, d, penalty(p), positive=p["coder"] == "nn-lasso", **how)
    # an atom that depends on others is left out of a code, which is as good without it
    status = np.where(info.status == Status.DEPENDENT, Status.CONVERGED, info.status)
    return codes, info.residual, status


def penalty(p: dict[str, Any]) -> float:
    """The lasso's."""
    return 1.0 if p["alpha"] is None else float(p["alpha"])


def explained_variance(t: np.ndarray, learned: Learned, d: Dictionary, num_threads: int | None) -> float:
    """Centred, of rows of the training space."""
    error = 0.0
    for part in blocks(len(t)):
        residual = code(t[part] - learned.center, d, learned, num_threads)[1]
        error += float(residual @ residual)
    total = float(((t - t.mean(axis=0, dtype=np.float64)) ** 2).sum())
    return 1 - error / total if total > 0 else np.nan


class Steps:
    """A run of `atoms.sae._training.train`: `learned` changes from step to step, and can be used after each.

    With `last`, that of `fit`, no atom is replaced in the tenth of the steps before it.
    """

    def __init__(
        self,
        learned: Learned,
        num_threads: int | None,
        last: int | None = None,
        path: Any = None,
        callback: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.learned, self.num_threads, self.last = learned, num_threads, last
        self.path, self.callback = path, callback
        self.space = learned.space
        self.settings = types.SimpleNamespace(max_steps=learned.parameters["max_steps"])

    @property
    def steps(self) -> int:
        """Steps done."""
        return int(self.learned.counters[0])

    def save(self, path: Any) -> None:
        """A checkpoint."""
        self.learned.write(path, training_state=True)

    def end(self, seen: int, last: int) -> None:
        """There are rows for so many steps in all."""
        self.last = last

    def check_model(self, step: int) -> None:
        """Atoms have unit norm: there is nothing to diverge."""

    def progress(self) -> dict[str, str]:
        """What the progress bar shows."""
        h = self.learned.history
        held_out = latest(h["explained_variance_val"])
        shown = {"EV": f"{h['explained_variance'][-1]:.4f}"} if h["step"] else {}
        return shown | ({} if held_out is None else {"EV held-out": f"{held_out:.4f}"})

    def until(self, step: int) -> int:
        """Steps are taken one by one."""
        return step

    def advance(
        self, first: int, steps: int, batch: Batch, val: np.ndarray | None, calibrated: bool = False
    ) -> None:
        """One step and its record. `val` has held-out rows in the training space."""
        assert steps == 1
        step, learned, started = first, self.learned, time.perf_counter()
        t = batch.dense() - learned.center
        if (bad := first_nonfinite_row(t)) >= 0:
            raise nonfinite_error(t, "X", bad if batch.rows is None else int(batch.rows[bad]))
        figures = self._step(step, t)
        learned.spent += time.perf_counter() - started
        every = max(1, max(self.settings.max_steps, step) // RECORDS)
        if step % every == 0 or step == self.last:
            held_out = np.nan
            looked = step % max(1, self.settings.max_steps // 20) == 0 or step == self.last
            if val is not None and looked:
                d = Dictionary(learned.atoms, num_threads=self.num_threads)
                held_out = explained_variance(val, learned, d, self.num_threads)
            replaced = int(learned.counters[2])
            learned.counters = learned.counters * [1, 1, 0]
            more = {"seconds": learned.spent, "explained_variance_val": held_out, "dead": replaced}
            for name, value in (figures | more).items():
                learned.history[name].append(value)
        if self.callback is not None:
            self.callback(figures)

    def _step(self, step: int, t: np.ndarray) -> dict[str, Any]:
        """Code these rows, fit the atoms to them, replace the dead; the figures are of before."""
        learned, known = self.learned, self.learned.spikes
        samples = int(learned.counters[1]) + len(t)
        if known is None:
            codes, residual, status, replaced = self._descend(step, t, samples)
        else:
            codes, residual, status, replaced = self._maximise(step, t, known)
        learned.counters = np.array([step, samples, learned.counters[2] + replaced])
        unsolved = int(np.count_nonzero(status != Status.CONVERGED))
        figures = _figures(learned.parameters, t, codes, residual)
        return figures | {"step": step, "samples": samples, "unsolved": unsolved}

    def _descend(self, step: int, t: np.ndarray, samples: int) -> Coded:
        """Least squares, atom by atom."""
        learned, p = self.learned, self.learned.parameters
        codes, residual, status = code(
            t, Dictionary(learned.atoms, num_threads=self.num_threads), learned, self.num_threads
        )
        atoms, energy, fired = learned.atoms.copy(), learned.energy.copy(), learned.last_fired.copy()
        _core.fit_atoms(
            context(self.num_threads), X=t, **as_lists(codes), keep=(1 - 1 / step) ** p["forget"] if p["forget"] else 1.0,
            sweeps=p["sweeps"], atoms=atoms, energy=energy,
        )  # fmt: skip
        fired[codes.indices] = samples
        gone = self._dead(codes, fired, samples, step)
        seed = [p["random_state"], 5, step]
        replaced = _replace(gone, t, codes, residual, (atoms, energy, fired), seed, samples)
        learned.atoms, learned.energy, learned.last_fired = atoms, energy, fired
        return codes, residual, status, replaced

    def _maximise(self, step: int, t: np.ndarray, known: spikes.Spikes) -> Coded:
        """Expectation maximisation, which knows itself what is to be replaced."""
        learned, p = self.learned, self.learned.parameters
        ending = self.last is not None and step > 0.75 * self.last
        replace = p["dead_after"] and not ending and step % spikes.EVERY == 0
        # weights as in `_descend`, the start's as if it had been so many steps
        begun = 1 + (p["forget"] + 1) * known.weight / len(t)
        found = spikes.step(
            t, learned.atoms, learned.energy, known, spikes.n_candidates(p, t.shape[1]),
            (1 - 1 / begun) ** p["forget"], p["sweeps"], p["incoherence"],
            [p["random_state"], 5, step] if replace else None,
            self.num_threads,
        )  # fmt: skip
        learned.atoms, learned.energy, learned.spikes = found.atoms, found.energy, found.spikes
        learned.center = learned.center + found.shift
        return found.codes, found.residual, found.status, found.replaced

    def _dead(self, codes: sp.csr_array, fired: np.ndarray, samples: int, step: int) -> np.ndarray:
        """Numbers of the atoms to be replaced after this step."""
        p = self.learned.parameters
        ending = self.last is not None and step > 0.9 * self.last
        if not p["dead_after"] or not codes.nnz or ending:
            return np.empty(0, np.int64)
        return np.flatnonzero(samples - fired > p["dead_after"] * p["n_atoms"] * codes.shape[0] / codes.nnz)


def _figures(p: dict[str, Any], t: np.ndarray, codes: sp.csr_array, residual: np.ndarray) -> dict[str, float]:
    error = float(residual @ residual) / len(t)
    loss = error
    if p["coder"].endswith("lasso"):
        loss = error / 2 + penalty(p) * float(np.abs(codes.data).sum(dtype=np.float64)) / len(t)
    total = float(t.var(axis=0, dtype=np.float64).sum())
    return {
        "loss": loss,
        "explained_variance": 1 - error / total if total > 0 else np.nan,
        "l0": codes.nnz / len(t),
    }


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
