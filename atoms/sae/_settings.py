"""An autoencoder's parameters, checked, and what follows from them."""

from __future__ import annotations

import dataclasses
import types
from typing import Any

import numpy as np

from .. import _core
from .._checks import as_number, check_choice, check_count, check_flag, check_number, seed_of

# by name, the core's numbers
ACTIVATIONS = {
    "jumprelu": _core.JUMPRELU,
    "relu": _core.RELU,
    "topk": _core.TOPK,
    "batchtopk": _core.BATCHTOPK,
}
SCREENS = {
    "auto": _core.SCREEN_AUTO,
    "float32": _core.SCREEN_F32,
    "int8": _core.SCREEN_INT8,
    "int16": _core.SCREEN_INT16,
}
_MOST = float(np.finfo(np.float32).max)  # the core works in float32
MOST_WIDTHS = 16  # that the core takes, d_sae among them


@dataclasses.dataclass(frozen=True)
class Settings:
    """`SparseAutoencoder`'s arguments of the same names, checked: made by `of`."""

    d_sae: int
    activation: str
    target_l0: float
    tied: bool
    batch_size: int
    max_steps: int
    learning_rate: float
    warmup: float
    decay: float
    bandwidth: float
    l1_coefficient: float | None
    clip: float
    dead_after: float
    beta1: float
    beta2: float
    matryoshka_widths: tuple[int, ...] | None  # d_sae the last
    aux_k: int
    aux_coefficient: float
    screen: str
    skip_connection: bool
    random_state: int

    @classmethod
    def of(cls, parameters: Any, seed: int | None = None) -> Settings:
        """Checked settings, from an object's attributes of the same names; `seed` in `random_state`'s place.

        Raises
        ------
        ValueError
            For one that is out of range; it is named.
        """
        _check_counts_and_choices(parameters)
        _check_ranges(parameters)
        _check_aux(parameters)
        widths = _widths(parameters)
        if parameters.l1_coefficient is not None:
            if parameters.activation != "relu":
                raise ValueError("l1_coefficient: only activation='relu' has an L1 penalty; leave it None")
            check_number(parameters.l1_coefficient, "l1_coefficient", 0)
        seed = seed_of(parameters.random_state if seed is None else seed)
        # a file has no word of a skip connection where there is none
        own = {"skip_connection": False, **vars(parameters)}
        values: dict[str, Any] = {f.name: own[f.name] for f in dataclasses.fields(cls)}
        for name in ("d_sae", "batch_size", "max_steps", "aux_k"):
            values[name] = int(values[name])
        values |= {"matryoshka_widths": widths, "random_state": seed}
        return cls(**values)

    @classmethod
    def of_json(cls, parameters: dict[str, Any]) -> Settings:
        """The same, from what `as_json` gave."""
        return cls.of(types.SimpleNamespace(**parameters))

    def new(self) -> Settings:
        """These, where a training may begin with them; older files have others, and are still read."""
        if self.activation in ("topk", "batchtopk") and self.target_l0 < 1:
            raise ValueError(
                f"target_l0: {self.activation!r} keeps k latents, and k is at least 1, got {self.target_l0!r}; "
                "ask for 1 or more, or take 'jumprelu'"
            )
        return self

    @property
    def k(self) -> int:
        """Active latents of each sample in the TopK family."""
        return k_of(self.target_l0)

    @property
    def seed(self) -> list[int]:
        """What every random generator's seed begins with."""
        return [int(self.random_state)]


def k_of(target_l0: float) -> int:
    """Active latents of each sample in the TopK family."""
    return max(1, round(target_l0))


def as_json(parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters that a file keeps, as JSON has them."""
    plain = {k: v for k, v in parameters.items() if k not in ("metric", "num_threads", "verbose")}
    if not plain.get("skip_connection"):  # files of autoencoders are as they always were
        plain.pop("skip_connection", None)
    if plain["matryoshka_widths"] is not None:
        plain["matryoshka_widths"] = [int(w) for w in plain["matryoshka_widths"]]
    return {k: v.item() if hasattr(v, "item") else v for k, v in plain.items()}


def differing(now: dict[str, Any], before: dict[str, Any], free: str = "") -> list[str]:
    """Names of the parameters, as `as_json` gives them, that are others than before."""
    return [k for k in {**before, "skip_connection": None} if k != free and now.get(k) != before.get(k)]


def check_target(settings: Settings, metric: Any) -> None:
    """ValueError where a transcoder cannot be trained with these settings."""
    if settings.tied:
        raise ValueError(
            "tied: a transcoder's decoder has rows of another place than its encoder's; set tied=False with a target"
        )
    if metric is not None:
        raise ValueError(
            "metric: a transcoder is trained in Euclidean geometry on both sides, each scaled by one number; set "
            "metric=None with a target"
        )


def check_no_target(settings: Settings) -> None:
    """ValueError where an autoencoder cannot be trained with these settings."""
    if settings.skip_connection:
        raise ValueError(
            "skip_connection: an autoencoder would pass X through; pass target=, or set skip_connection=False"
        )


def check_same_parameters(now: dict[str, Any], before: dict[str, Any], free: str = "") -> None:
    """ValueError where more than `free` has changed between calls of partial_fit."""
    changed = differing(now, before, free)
    if changed:
        only = f"only {free} may change" if free else "nothing may change"
        raise ValueError(
            f"{changed[0]}: was {before.get(changed[0])!r} in the calls before, now {now.get(changed[0])!r}; {only} "
            "between calls of partial_fit. Set it back, or call fit"
        )


def _check_counts_and_choices(p: Any) -> None:
    for name in ("d_sae", "batch_size", "max_steps"):
        check_count(getattr(p, name), name)
    for name, choices in (("activation", ACTIVATIONS), ("screen", SCREENS)):
        check_choice(getattr(p, name), name, choices)
    check_flag(p.tied, "tied")


def _check_ranges(p: Any) -> None:
    ranges = {
        "target_l0": (0, p.d_sae, "d_sae"),
        "learning_rate": (0, _MOST, "the largest float32"),
        "bandwidth": (0, _MOST, "the largest float32"),
    }
    for name, (low, high, high_name) in ranges.items():
        value = getattr(p, name)
        if not low < as_number(value, name) <= high:
            raise ValueError(
                f"{name}: expected more than {low} and at most {high_name} ({high}), got {value!r}"
            )
    bounds = {"warmup": 1, "decay": 1, "clip": np.inf, "dead_after": np.inf, "aux_coefficient": _MOST}
    for name, high in {**bounds, "aux_k": p.d_sae}.items():
        if not 0 <= as_number(getattr(p, name), name) <= high:
            raise ValueError(f"{name}: expected 0 to {high}, got {getattr(p, name)!r}")
    for name in ("beta1", "beta2"):
        if not 0 <= as_number(getattr(p, name), name) < 1:
            raise ValueError(f"{name}: expected at least 0 and less than 1, got {getattr(p, name)!r}")


def _check_aux(p: Any) -> None:
    if not isinstance(p.aux_k, (int, np.integer)):
        raise ValueError(f"aux_k: expected an integer, got {p.aux_k!r}")
    check_flag(getattr(p, "skip_connection", False), "skip_connection")
    if p.aux_k and not p.dead_after:
        raise ValueError("aux_k: dead_after=0 counts no latent as dead; leave dead_after at its default")


def _widths(p: Any) -> tuple[int, ...] | None:
    """The Matryoshka widths, d_sae the last."""
    if p.matryoshka_widths is None:
        return None
    try:
        widths = [int(w) for w in p.matryoshka_widths]
    except (TypeError, ValueError, OverflowError):
        widths = []
    if widths and widths[-1] != p.d_sae:
        widths.append(int(p.d_sae))
    if not widths or widths[0] < 1 or sorted(set(widths)) != widths or len(widths) > MOST_WIDTHS:
        raise ValueError(
            f"matryoshka_widths: expected at most {MOST_WIDTHS - 1} ascending integers from 1 to d_sae = "
            f"{p.d_sae}, got {p.matryoshka_widths!r}"
        )
    return tuple(widths)
