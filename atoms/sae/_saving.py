"""What training makes, in a file and back."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np

from .. import metric as metrics
from .._files import check_tensor, load_tensors, reading, save_tensors
from ._model import FIELDS, WEIGHTS, Model, layout
from ._settings import Settings
from ._space import TrainingSpace
from ._steering import Control


class Trained(NamedTuple):
    """An autoencoder as far as it has been trained."""

    space: TrainingSpace
    model: Model
    control: Control
    history: dict[str, list[Any]]


def write(
    path: str | os.PathLike[str],
    kind: str,
    parameters: dict[str, Any],
    trained: Trained,
    training_state: bool,
) -> None:
    """A safetensors file; `training_state` adds what `resume` needs."""
    space, model, control, history = trained
    control.publish_cut(model)
    names = FIELDS if training_state else (*WEIGHTS, "counters")
    twins = ("W_enc", "W_enc_m", "W_enc_v") if parameters["tied"] else ()  # tied: the same arrays as W_dec's
    tensors = {name: model.get(name) for name in names if name not in twins}
    meta: dict[str, Any] = {
        "parameters": parameters,
        "n_features_in": model.d_in,
        "history": history,
        "control": vars(control),
    }
    if space.metric is not None:
        arrays, meta["metric"] = metrics.state_of(space.metric)
        tensors |= {f"metric.{k}": v for k, v in arrays.items()}
    else:
        tensors["mean"] = space.mean
        meta["scale"] = float(space.scale)
    save_tensors(path, kind, tensors, meta)


def read_metric(tensors: dict[str, np.ndarray], meta: dict[str, Any], num_threads: int | None) -> Any:
    """The metric that a file holds, or None."""
    if "metric" not in meta:
        return None
    arrays = {k[len("metric.") :]: v for k, v in tensors.items() if k.startswith("metric.")}
    return metrics.from_state(arrays, meta["metric"], num_threads)


def restore(
    tensors: dict[str, np.ndarray], meta: dict[str, Any], settings: Settings, metric: Any, ctx: Any
) -> Trained:
    """What `write` was given, from what it wrote."""
    d, s = len(tensors["b_dec"]), settings.d_sae
    if meta["n_features_in"] != d:
        raise ValueError(f"n_features_in is {meta['n_features_in']!r}, b_dec has {d}")
    required = {*WEIGHTS, "counters"} - ({"W_enc"} if settings.tied else set())
    # first: the settings may promise more than the file holds, and nothing of that size is to be allocated
    for name in FIELDS:
        if name in tensors or name in required:
            check_tensor(tensors, name, *layout(name, d, s))
    history = {str(name): list(values) for name, values in meta["history"].items()}
    control = Control(**{name: float(meta["control"][name]) for name in vars(Control())})
    if metric is None:
        space = TrainingSpace(d, None, check_tensor(tensors, "mean", (d,), np.float64), float(meta["scale"]))
        if not 0 < space.scale < np.inf:
            raise ValueError(f"scale is {space.scale}")
    elif metric.n_features_in_ != d:
        raise ValueError(f"its metric has {metric.n_features_in_} features, b_dec {d}")
    else:
        space = TrainingSpace(d, metric)
    model = Model.of(ctx, d, settings)
    for name in FIELDS:
        if name in tensors:
            model.set(name, tensors[name])
    return Trained(space, model, control, history)


def resume(
    path: str | os.PathLike[str], kind: str, parameters: dict[str, Any], settings: Settings, metric: Any,
    d_in: int, ctx: Any,
) -> Trained:  # fmt: skip
    """What `write` was given with `training_state`, to go on with the same parameters.

    Raises
    ------
    ValueError
        Where they, the rows' features or the metric differ, or the file has no training state.
    """
    tensors, meta = load_tensors(path, kind)
    differing = [k for k, v in meta["parameters"].items() if parameters.get(k) != v]
    if differing or meta["n_features_in"] != d_in or ("metric" in meta) != (metric is not None):
        what = ", ".join(differing) or ("d_in" if meta["n_features_in"] != d_in else "metric")
        raise ValueError(
            f"checkpoint: {os.fspath(path)} was written with other settings ({what}); "
            "use those, or another path"
        )
    if "last_fired" not in tensors:
        raise ValueError(f"checkpoint: {os.fspath(path)} has no training state; pass it as init=load(path)")
    if metric is not None:
        arrays, _ = metrics.state_of(metric)
        if any(not np.array_equal(v, tensors.get(f"metric.{k}", ())) for k, v in arrays.items()):
            raise ValueError(f"checkpoint: {os.fspath(path)} was trained under another metric")
    with reading(path, kind):
        return restore(tensors, meta, settings, metric, ctx)


def as_state(trained: Trained) -> dict[str, Any]:
    """What a pickle holds of a trained autoencoder, under the names that pickles have always had."""
    space, model, control, _ = trained
    state = {"_arrays": [model.get(name) for name in FIELDS], "_control": dict(vars(control))}
    return state if space.metric is not None else state | {"_mean": space.mean, "_scale": space.scale}


def from_state(state: dict[str, Any], settings: Settings, metric: Any, ctx: Any) -> Trained:
    """What `as_state` was given; `state` has the autoencoder's other attributes too."""
    d = state["n_features_in_"]
    where = {} if metric is not None else {"mean": state["_mean"], "scale": state["_scale"]}
    model = Model.of(ctx, d, settings)
    for name, value in zip(FIELDS, state["_arrays"], strict=True):
        model.set(name, value)
    space = TrainingSpace(d, metric, **where)
    return Trained(space, model, Control(**state["_control"]), state["history_"])
