"""What training makes, in a file and back."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from .. import metric as metrics
from .._files import Later, Tensors, check_tensor, opened_tensors, reading, save_tensors
from ._model import FIELDS, SKIP, WEIGHTS, Model, layout
from ._settings import Settings, differing
from ._space import TrainingSpace
from ._steering import Control

HISTORY = (
    "step", "samples", "seconds", "loss", "explained_variance", "explained_variance_val", "l0", "l0_val",
    "dead", "learning_rate",
)  # fmt: skip


_LATER = ("press", "row", "revive", "pause")  # of `Control`, which older files lack


class Trained(NamedTuple):
    """An autoencoder as far as it has been trained: all that its results depend on, and nobody else's to change."""

    space: TrainingSpace
    model: Model
    control: Control
    history: dict[str, list[Any]]
    parameters: dict[str, Any]  # that it was fitted with, as JSON has them
    data: dict[str, Any] | None  # what is known of the rows it was fitted to (`Rows.identity`)


def write(
    path: str | os.PathLike[str],
    kind: str,
    trained: Trained,
    training_state: bool,
) -> None:
    """A safetensors file; `training_state` adds what `resume` needs."""
    space, model, control, history, parameters, data = trained
    names = _kept(trained, training_state)
    shapes = {name: layout(name, model.d_in, model.d_sae, model.d_out) for name in names}
    tensors: dict[str, Any] = {k: Later(*v, functools.partial(model.get, k)) for k, v in shapes.items()}
    meta: dict[str, Any] = {
        "parameters": parameters,
        "n_features_in": model.d_in,
        "history": history,
    }
    if training_state and data is not None:
        meta["data"] = data
    write_space(space, tensors, meta)
    if space.target is not None:
        tensors["target_mean"], meta["target_scale"] = space.target.mean, float(space.target.scale)
    with (
        model.turns.writing()
    ):  # all arrays of one step; copies of all at once would be larger than the model
        control.publish_cut(model)
        save_tensors(path, kind, tensors, {**meta, "control": vars(control)})


def _kept(trained: Trained, training_state: bool) -> list[str]:
    """Names of the arrays that determine all others, or all others that results depend on."""
    model = trained.model
    twins = (
        ("W_enc", "W_enc_m", "W_enc_v") if trained.parameters["tied"] else ()
    )  # the same arrays as W_dec's
    names = model.fields if training_state else (*model.weights, "counters")
    return [name for name in names if name not in twins]


def write_space(space: TrainingSpace, tensors: dict[str, Any], meta: dict[str, Any]) -> None:
    """Add a training space to what a file is to hold."""
    if space.metric is not None:
        arrays, meta["metric"] = metrics.state_of(space.metric)
        tensors |= {f"metric.{k}": v for k, v in arrays.items()}
    else:
        tensors["mean"] = space.mean
        if space.widths is None:
            meta["scale"] = float(space.scale)
        else:
            meta["sites"], tensors["scale"] = list(space.widths), space.scale


def read_space(tensors: Mapping[str, np.ndarray], meta: dict[str, Any], metric: Any, d: int) -> TrainingSpace:
    """What `write_space` added; `metric` as `read_metric` gives it."""
    if metric is not None:
        if metric.n_features_in_ != d:
            raise ValueError(f"its metric has {metric.n_features_in_} features, b_dec {d}")
        return TrainingSpace(d, metric)
    return _of_sites(tensors, meta["sites"], d) if "sites" in meta else _scaled(tensors, meta, d)


def _of_sites(tensors: Mapping[str, np.ndarray], widths: Any, d: int) -> TrainingSpace:
    """The space of a crosscoder."""
    known = isinstance(widths, list) and all(type(w) is int and w > 0 for w in widths)
    if not known or sum(widths) != d:
        raise ValueError(f"sites have {widths!r} columns, mean has {d}")
    scale = check_tensor(tensors, "scale", (len(widths),), np.float64)
    if not ((scale > 0) & (scale < np.inf)).all():
        raise ValueError(f"scale is {scale}")
    return TrainingSpace(d, None, check_tensor(tensors, "mean", (d,), np.float64), scale, widths)


def _scaled(tensors: Mapping[str, np.ndarray], meta: dict[str, Any], d: int, side: str = "") -> TrainingSpace:
    """The space of a mean and a number."""
    mean = check_tensor(tensors, f"{side}mean", (d,), np.float64)
    space = TrainingSpace(d, None, mean, float(meta[f"{side}scale"]))
    if not 0 < space.scale < np.inf:
        raise ValueError(f"{side}scale is {space.scale}")
    return space


def read_metric(tensors: Mapping[str, np.ndarray], meta: dict[str, Any], num_threads: int | None) -> Any:
    """The metric that a file holds, or None."""
    if "metric" not in meta:
        return None
    arrays = {k[len("metric.") :]: tensors[k] for k in tensors if k.startswith("metric.")}
    return metrics.from_state(arrays, meta["metric"], num_threads)


def restore(tensors: Tensors, meta: dict[str, Any], metric: Any, ctx: Any) -> Trained:
    """What `write` was given, from what it wrote: the model is filled array by array."""
    parameters, data = dict(meta["parameters"]), meta.get("data")
    settings = Settings.of_json(parameters)
    d, s, out = len(tensors["b_dec"]), settings.d_sae, None
    if "target_scale" in meta:  # a transcoder
        d, out = len(tensors["mean"]), d
    if meta["n_features_in"] != d:
        raise ValueError(
            f"n_features_in is {meta['n_features_in']!r}, {'b_dec' if out is None else 'mean'} has {d}"
        )
    required = {*WEIGHTS, "counters"} - ({"W_enc"} if settings.tied else set())
    fields = (*FIELDS, *SKIP) if settings.skip_connection else FIELDS
    required |= {SKIP[0]} if settings.skip_connection else set()
    # first: the settings may promise more than the file holds, and nothing of that size is to be allocated
    for name in fields:
        if name in tensors or name in required:
            tensors.check(name, *layout(name, d, s, out))
    history = _complete({str(name): list(values) for name, values in meta["history"].items()})
    control = _control(meta["control"])
    space = read_space(tensors, meta, metric, d)
    if out is not None:
        if space.widths is not None:
            raise ValueError("has both sites and a target")
        space.target = _scaled(tensors, meta, out, "target_")
    model = Model.of(ctx, d, settings, out)
    for name in fields:
        if name in tensors:
            model.set(name, tensors[name])
    return Trained(space, model, control, history, parameters, data)


def _control(known: dict[str, Any]) -> Control:
    """Older files lack some of it."""
    return Control(**{k: float(known[k]) for k in vars(Control()) if k not in _LATER or k in known})


def _complete(history: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Older files lack what was not recorded then."""
    recorded = len(history["step"])
    return {name: history.get(name, [np.nan] * recorded) for name in HISTORY}


def resume(
    path: str | os.PathLike[str], kind: str, parameters: dict[str, Any], metric: Any, data: dict[str, Any], ctx: Any
) -> Trained:  # fmt: skip
    """What `write` was given with `training_state`, to go on with the same parameters on the same data.

    Raises
    ------
    ValueError
        Where they, the metric or the data differ, or the file has no training state. Files of before 0.1 do not
        know their data.
    """
    with opened_tensors(path, kind) as (tensors, meta):
        check_resumed(path, tensors, meta, parameters, metric, data)
        with reading(path, kind):
            return restore(tensors, {**meta, "parameters": parameters}, metric, ctx)._replace(data=data)


def check_resumed(
    path: Any,
    tensors: Mapping[str, np.ndarray],
    meta: dict[str, Any],
    parameters: dict[str, Any],
    metric: Any,
    data: dict[str, Any],
) -> None:
    """ValueError where a checkpoint is of other parameters, another metric or other data, or cannot go on."""
    d_in = data["columns"]
    others = differing(parameters, meta["parameters"])
    others += ["target"] * (("target_scale" in meta) != ("target" in data))
    others += ["sites"] * (meta.get("sites") != data.get("sites"))
    if others or meta["n_features_in"] != d_in or ("metric" in meta) != (metric is not None):
        what = ", ".join(others) or ("d_in" if meta["n_features_in"] != d_in else "metric")
        raise ValueError(
            f"checkpoint: {os.fspath(path)} was written with other settings ({what}); "
            "use those, or another path"
        )
    if "last_fired" not in tensors:
        raise ValueError(f"checkpoint: {os.fspath(path)} has no training state; pass it as init=load(path)")
    _check_data(path, meta.get("data"), data)
    if metric is not None:
        arrays, _ = metrics.state_of(metric)
        with reading(path, "SparseAutoencoder"):
            alike = all(np.array_equal(v, tensors.get(f"metric.{k}", ())) for k, v in arrays.items())
        if not alike:
            raise ValueError(f"checkpoint: {os.fspath(path)} was trained under another metric")


def _check_data(path: Any, known: Any, data: dict[str, Any]) -> None:
    """ValueError where a file's data is `known` and another; files of an older version do not know it."""
    if known is None:
        return
    with reading(path, "SparseAutoencoder"):
        others = {k: f"{known.get(k)}, now {v}" for k, v in data.items() if known.get(k) != v}
    rows = others.pop("sha256", None)
    if others or rows:
        what = ", ".join(f"{k} {v}" for k, v in others.items()) or "of the same shape, but its rows differ"
        raise ValueError(
            f"checkpoint: {os.fspath(path)} was trained on other data ({what}); give it that data, or name "
            "another path"
        )


def steps_in(path: str | os.PathLike[str]) -> int:
    """Steps of training that a file has seen."""
    try:
        with safe_open(path, framework="numpy") as file:
            return int(file.get_tensor("counters")[0])
    except (SafetensorError, IndexError) as error:
        raise ValueError(f"{os.fspath(path)}: not a checkpoint or damaged: {error}") from None


def seed_in(path: str | os.PathLike[str]) -> int | None:
    """The seed of the training that a file is of; None where it says none, which `resume` complains of."""
    try:
        with safe_open(path, framework="numpy") as file:
            seed = json.loads(file.metadata()["parameters"])["parameters"]["random_state"]
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, RecursionError):
        return None
    return seed if isinstance(seed, int) and seed >= 0 else None


def as_state(trained: Trained, training_state: bool = True) -> dict[str, Any]:
    """What a pickle holds of a trained autoencoder, under the names that pickles have always had.

    None stands for arrays that need not be there: those of zeros, of an autoencoder that is not to be trained further.
    """
    space, model, control, _, parameters, data = trained
    kept = _kept(trained, training_state)
    with model.turns.reading():
        found = (model.get(name) if name in kept else None for name in model.fields)
        state: dict[str, Any] = {
            "_arrays": [None if array is None or not array.any() else array for array in found],
            "_control": dict(vars(control)),
        }
    state = {**state, "_parameters": parameters, "_data": data, "_metric": space.metric}
    if space.target is not None:
        state["_target"] = (space.target.mean, space.target.scale)
    if space.widths is not None:
        state["_sites"] = space.widths
    return state if space.metric is not None else state | {"_mean": space.mean, "_scale": space.scale}


# `as_state`'s names
STATE = ("_arrays", "_control", "_parameters", "_data", "_metric", "_mean", "_scale", "_target", "_sites")


def from_state(state: dict[str, Any], parameters: dict[str, Any], ctx: Any) -> Trained:
    """What `as_state` was given; `state` has the autoencoder's other attributes too.

    Older pickles have no parameters but the attributes', given here, and no metric but the attribute.
    """
    d, parameters = state["n_features_in_"], state.get("_parameters", parameters)
    metric = state["_metric"] if "_metric" in state else metrics.frozen(state["metric"])
    where = {} if metric is not None else {"mean": state["_mean"], "scale": state["_scale"]}
    where |= {"widths": state["_sites"]} if "_sites" in state else {}
    space, control = TrainingSpace(d, metric, **where), Control(**state["_control"])
    if "_target" in state:
        mean, scale = state["_target"]
        space.target = TrainingSpace(len(mean), None, mean, scale)
    out = None if space.target is None else space.target.d
    model = Model.of(ctx, d, Settings.of_json(parameters), out)
    for name, value in zip(model.fields, state["_arrays"], strict=True):
        if value is not None:
            model.set(name, value)
    return Trained(space, model, control, _complete(state["history_"]), parameters, state.get("_data"))
