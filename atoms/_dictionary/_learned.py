"""What dictionary learning knows: its parameters, checked, and its state, in a file and back."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from .._checks import Sent, check_choice, check_count, check_number, seed_of
from .._files import check_tensor, load_tensors, reading, save_tensors
from ..sae._saving import check_resumed, read_space, write_space
from ..sae._space import TrainingSpace
from ._spikes import AGE, Spikes

KIND = "DictionaryLearning"
CODERS = ("omp", "nn-omp", "lasso", "nn-lasso", "spikes")
HISTORY = (
    "step", "samples", "seconds", "loss", "explained_variance", "explained_variance_val", "l0", "dead", "unsolved",
)  # fmt: skip


@dataclasses.dataclass
class Learned(Sent):
    """A dictionary as far as it has been learned. Its arrays are replaced by each step, never changed."""

    space: TrainingSpace
    center: np.ndarray  # (d,) float32, subtracted from rows in the training space
    atoms: np.ndarray  # (n_atoms, d) float32, unit rows of that space
    energy: np.ndarray  # (n_atoms,) float64, discounted sums of squared coefficients
    last_fired: np.ndarray  # (n_atoms,) int64, the number of the sample
    counters: np.ndarray  # (3,) int64: steps, samples, atoms replaced since the last record
    spent: float  # seconds
    history: dict[str, list[Any]]
    parameters: dict[str, Any]
    data: dict[str, Any] | None  # what is known of the rows (`Rows.identity`)
    spikes: Spikes | None = None  # of the coder of that name
    folded: tuple[np.ndarray, np.ndarray, np.ndarray, Any] | None = dataclasses.field(
        default=None, init=False, repr=False, compare=False
    )  # what was made of `atoms`, see `_fold`

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "folded": None}

    @classmethod
    def new(cls, space: TrainingSpace, center: Any, atoms: Any, parameters: Any, data: Any) -> Learned:
        """Before the first step."""
        m = len(atoms)
        state = np.zeros(m), np.zeros(m, np.int64), np.zeros(3, np.int64)
        return cls(space, center, atoms, *state, 0.0, {name: [] for name in HISTORY}, parameters, data)

    def write(self, path: Any, training_state: bool) -> None:
        """A safetensors file; `training_state` adds what going on needs."""
        names = ["atoms", "center", "counters", *(("energy", "last_fired") if training_state else ())]
        tensors = {name: getattr(self, name) for name in names}
        if self.spikes is not None:
            tensors |= {
                "spikes": self.spikes.sums,
                "scales": np.array([self.spikes.weight, self.spikes.noise]),
            }
        meta: dict[str, Any] = {
            "parameters": self.parameters,
            "n_features_in": self.space.d,
            "history": self.history,
            "spent": self.spent,
        }
        if training_state and self.data is not None:
            meta["data"] = self.data
        write_space(self.space, tensors, meta)
        save_tensors(path, KIND, tensors, meta)

    @classmethod
    def read(cls, tensors: dict[str, np.ndarray], meta: dict[str, Any], metric: Any) -> Learned:
        """What `write` wrote."""
        d, m = len(tensors["center"]), int(meta["parameters"]["n_atoms"])
        layout: dict[str, tuple[tuple[int, ...], Any]] = {
            "center": ((d,), np.float32),
            "atoms": ((m, d), np.float32),
            "counters": ((3,), np.int64),
            "energy": ((m,), np.float64),
            "last_fired": ((m,), np.int64),
        }
        later = () if "last_fired" in tensors else ("energy", "last_fired")  # a file of results alone
        state: dict[str, Any] = {
            k: np.zeros(*v) if k in later else check_tensor(tensors, k, *v) for k, v in layout.items()
        }
        if later:  # going on from here, no atom is dead yet
            state["last_fired"] += state["counters"][1]
        if "spikes" in tensors:
            weight, noise = check_tensor(tensors, "scales", (2,), np.float64)
            sums = check_tensor(tensors, "spikes", (m, AGE + 1), np.float64)
            state["spikes"] = Spikes(sums, float(weight), float(noise))
        history = {name: list(meta["history"][name]) for name in HISTORY}
        return cls(
            read_space(tensors, meta, metric, d), **state, spent=float(meta["spent"]), history=history,
            parameters=since(meta["parameters"]), data=meta.get("data"),
        )  # fmt: skip


def since(parameters: dict[str, Any]) -> dict[str, Any]:
    """With the values that earlier versions, which did not write them, had."""
    return {"incoherence": 0.0, **parameters}


def resume(path: Any, parameters: dict[str, Any], metric: Any, data: dict[str, Any]) -> Learned:
    """The state in a checkpoint, to go on with the same parameters on the same data.

    Raises
    ------
    ValueError
        Where they or the metric differ, or the file has no training state.
    """
    tensors, meta = load_tensors(path, KIND)
    with reading(path, KIND):
        _ = meta["n_features_in"]
        meta["parameters"] = since(meta["parameters"])
    check_resumed(path, tensors, meta, parameters, metric, data)
    with reading(path, KIND):
        return Learned.read(tensors, meta, metric)


def checked(model: Any, seed: int | None = None) -> dict[str, Any]:
    """The parameters that a file keeps, checked.

    `seed` is that of a training that goes on, for a `random_state` that names none.
    """
    p = {
        k: v.item() if isinstance(v, np.generic) else v
        for k, v in model.get_params(deep=False).items()
        if k not in ("metric", "num_threads", "verbose")
    }
    for name in ("n_atoms", "batch_size", "max_steps", "sweeps"):
        p[name] = check_count(p[name], name)
    _check_coder(p)
    for name in ("forget", "dead_after", "incoherence"):
        p[name] = check_number(p[name], name, 0)
    if p["incoherence"] > 1:
        raise ValueError(f"incoherence: expected 0 to 1, got {p['incoherence']}")
    named = isinstance(p["random_state"], int) or seed is None
    p["random_state"] = seed_of(p["random_state"] if named else seed)
    return p


def _check_coder(p: dict[str, Any]) -> None:
    """It, and the parameter that is its own."""
    check_choice(p["coder"], "coder", CODERS)
    counted = not p["coder"].endswith("lasso")
    used, other = ("n_nonzero", "alpha") if counted else ("alpha", "n_nonzero")
    if p[other] is not None:
        raise ValueError(f"{other}: coder={p['coder']!r} takes {used} in its place; leave {other} None")
    if counted and p[used] is not None:
        p[used] = check_count(p[used], used)
        if p[used] > p["n_atoms"]:
            raise ValueError(f"n_nonzero: expected at most n_atoms ({p['n_atoms']}), got {p[used]}")
    elif p[used] is not None:
        p[used] = check_number(p[used], used, 0, strict=True)
