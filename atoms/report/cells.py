"""What the jobs compute. Each function takes parameters, the folders and a progress callback, and
returns figures for JSON and arrays."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from .. import controls, recovery, theory
from ..metric import AtomicInnerProduct
from ..sae import SparseAutoencoder
from .data import Data
from .scoring import CONVENTION, hold_l0, plain, pursued, score

Progress = Callable[..., None]
Found = tuple[dict[str, Any], dict[str, np.ndarray]]

CONVENTIONS = ("metric_centered", "metric_uncentered", "centered", "uncentered")
_ANGLE_ROWS = 4000  # all their pairs are looked at
_PURSUIT_ROWS = 500
_CERTIFIED_ROWS = 1000
_TUNED_ROWS = 500
_COHERENCE_ATOMS = 8192  # of a larger (memorizing) dictionary, so many atoms stand for all


@functools.lru_cache(maxsize=4)
def _metric(
    folder: str, key: str, layer: int, prefix: str, shuffled: bool, centered: bool, shrinkage: Any
) -> AtomicInnerProduct:
    X = Data(folder, key).rows(f"{prefix}metric", layer)
    if shuffled:
        X = controls.shuffle_coordinates(X, random_state=0)
    return AtomicInnerProduct(centered=centered, shrinkage=shrinkage).fit(X)


# ------------------------------------------------------------------ representation shift


def shift(params: dict[str, Any], folder: Path, data_folder: Path, progress: Progress) -> Found:
    """Angles between activations at one layer, before and after the metric, and the metric's spectrum."""
    data, layer = Data(data_folder, params["data"]), params["layer"]
    X = data.rows("metric", layer)
    metric = AtomicInnerProduct().fit(X)
    record: dict[str, Any] = {
        "n_metric": len(X),
        "condition_number": metric.condition_number_,
        "effective_rank": metric.effective_rank_,
        "top_share": float(metric.eigenvalues_[0] / metric.eigenvalues_.sum()),
    }
    massive = data.rows("massive", layer) if data.has("massive") else X[:0]
    if len(massive):
        total = float((X.astype(np.float64) ** 2).sum())
        extra = float((massive.astype(np.float64) ** 2).sum())
        values = np.linalg.eigvalsh(
            metric.second_moment_ * len(X) + massive.T.astype(np.float64) @ massive.astype(np.float64)
        )
        record |= {
            "massive": len(massive),
            "massive_share": extra / (total + extra),
            "top_share_with_massive": float(values[-1] / values.sum()),
        }
    arrays = {"eigenvalues": metric.eigenvalues_}
    for part in ("angles", "train"):
        if part == "train" and not params["train"]:
            continue
        Y = data.rows(part, layer, _ANGLE_ROWS)
        for name in ("euclidean", "metric"):
            found = metric.angles(Y, geometry=name)
            record[f"{part}/{name}"] = {
                "mean": found.mean,
                "std": found.std,
                "quantiles": dict(zip(("5%", "50%", "95%"), found.quantile([0.05, 0.5, 0.95]))),
            }
            arrays[f"{part}/{name}"] = found.counts
            arrays["edges"] = found.bin_edges
    return record, arrays


# ------------------------------------------------------------------ one dictionary


def _some(X: np.ndarray, n: int) -> np.ndarray:
    """At most n rows, spread evenly."""
    return X if len(X) <= n else X[np.linspace(0, len(X) - 1, n).astype(int)]


def _build(
    params: dict[str, Any], d_in: int, reference: AtomicInnerProduct, metric: AtomicInnerProduct
) -> Any:
    kind, seed, k = params["dictionary"], params["seed"], max(1, round(params["l0"]))
    d_sae = max(1, round(params["width"] * d_in))
    if kind == "random":
        return controls.RandomDictionary(d_sae, min(k, d_in), reference, random_state=seed)
    if kind == "memorizing":
        return controls.MemorizingDictionary(params.get("memories"), reference, random_state=seed)
    if kind == "kmeans":
        return controls.KMeansDictionary(d_sae, reference, max_iter=5, random_state=seed)
    if kind in ("pca", "pca-all"):
        return controls.PCADictionary(min(k, d_in) if kind == "pca" else None, reference)
    if kind in ("neurons", "neurons-all"):
        return controls.NeuronBasis(min(k, d_in) if kind == "neurons" else None, reference)
    activation = {"relu": "relu", "topk": "topk", "batchtopk": "batchtopk"}.get(kind, "jumprelu")
    return SparseAutoencoder(
        d_sae,
        activation,
        metric if kind in ("atoms", "shuffled", "random-model") else None,
        params["l0"],
        tied=params["tied"],
        batch_size=params["batch_size"],
        max_steps=max(1, round(params["samples"] / params["batch_size"])),
        random_state=seed,
        verbose=False,
    )


def dictionary(params: dict[str, Any], folder: Path, data_folder: Path, progress: Progress) -> Found:
    """Train or fit one dictionary, and score it on what it saw and on what it did not.

    The metric that judges is the uncentred one without shrinkage, whatever it was trained under. With
    "hold_l0", the first quarter of the held-out rows (chunks of their own) sets the thresholds' common
    shift; nothing is judged on that quarter, of any dictionary.
    """
    data, layer, kind = Data(data_folder, params["data"]), params["layer"], params["dictionary"]
    shuffled, prefix = kind == "shuffled", "random/" if kind == "random-model" else ""
    place = str(data_folder), params["data"], layer, prefix, shuffled
    reference = _metric(*place, False, None)
    metric = _metric(*place, params["centered"], params["shrinkage"])
    train = data.rows(f"{prefix}train", layer)
    if params["n_train"] is not None and params["n_train"] < len(train):
        rng = np.random.default_rng([params["seed"], 17])
        train = train[np.sort(rng.choice(len(train), params["n_train"], replace=False))]
    held = data.rows(f"{prefix}held_out", layer)
    tuned, judged = np.split(held, [len(held) // 4])
    parts = {"held_out": _some(judged, params["eval_rows"])}
    if data.has("text") and not prefix and not shuffled:
        parts["text"] = data.rows("text", layer, params["eval_rows"])
    if shuffled:
        train = controls.shuffle_coordinates(train, random_state=1)
        parts["held_out"] = controls.shuffle_coordinates(parts["held_out"], random_state=2)
    d_in = train.shape[1]
    if len(train) < 2:
        raise ValueError(f"layer {layer}: {len(train)} training rows are too few; capture more tokens")

    model, shift = _build(params, d_in, reference, metric), None
    started = time.perf_counter()
    if isinstance(model, SparseAutoencoder):

        def advance(sae: SparseAutoencoder, figures: dict[str, Any]) -> None:
            progress(figures["step"] / sae.max_steps, f"L0 {figures['l0']:.1f}")

        model.fit(train, callback=advance)
        if params["hold_l0"] and kind not in ("relu", "topk"):
            if shuffled:
                tuned = controls.shuffle_coordinates(tuned, random_state=3)
            shift = hold_l0(model, _some(tuned, _TUNED_ROWS), params["l0"])
    else:
        model.fit(train)
    seconds = time.perf_counter() - started
    progress(1.0, "scoring")

    n = len(train)
    seen = _some(train, params["eval_rows"])
    coded = {}
    for name, X in {"train": seen, **parts}.items():
        codes = model.transform(X)
        coded[name] = (X, codes, model.inverse_transform(codes))
    D = model.W_dec
    some = _some(D, _COHERENCE_ATOMS)
    spectrum = theory.coherence(some, reference, ())
    found, stability, results = score(kind, spectrum, reference, coded, CONVENTIONS)
    counts = {name: np.diff(codes.indptr) for name, (_, codes, _) in coded.items()}
    record: dict[str, Any] = {
        **plain(found),
        "n_train": n,
        "n_atoms_measured": len(some),
        "threshold_shift": shift,
        "l0_train": np.quantile(counts["train"], [0.05, 0.5, 0.95], method="inverted_cdf").tolist(),
        "l0_means": {name: float(c.mean()) for name, c in counts.items()},
        "massive": {name: r[CONVENTION].n_massive for name, r in results.items()},
        "q_star_train": theory.stability(spectrum, counts["train"]).q_star,
        "q_star_ceiling_any": stability.ceiling,
        "q_star_euclidean": theory.stability(some, counts["held_out"]).q_star,
        "cost": {"seconds_training": seconds},
    }
    used = np.zeros(len(D), bool)
    used[coded["train"][1].indices] = True
    record["unused"] = float(1 - used.mean())
    if params["full"]:
        block = 64  # neighbouring tokens are not independent
        for name, (X, _, X_hat) in coded.items():  # without massive tokens, as the tables' R²
            usual = np.linalg.norm(X, axis=1) <= results[name][CONVENTION].massive_norm
            found_here = theory.explained_variance(X[usual], X_hat[usual], CONVENTION, metric=reference)
            interval = theory.explained_variance_interval(found_here, block_size=block, n_boot=400)
            record[f"interval_{name}"] = [interval.low, interval.high]
        interval = theory.stability_interval(spectrum, counts["held_out"], block_size=block, n_boot=400)
        record["interval_q_star"] = [interval.low, interval.high]
        if len(some) == len(D) and found.l0_mean < d_in:
            codes = coded["held_out"][1][:_CERTIFIED_ROWS]
            record["certified"] = theory.certify(spectrum, codes).shares
    k = max(1, round(params["l0"]))
    if kind not in ("memorizing", "kmeans", "pca-all", "neurons-all") and k <= min(D.shape):
        rows = parts["held_out"][:: max(1, len(parts["held_out"]) // _PURSUIT_ROWS)]
        ready = recovery.Dictionary(D, metric=reference)
        rebuilt = pursued(rows, ready, D, k, model.b_dec)[1]
        record["pursuit"] = theory.explained_variance(
            rows, rebuilt, CONVENTION, metric=reference
        ).without_massive
    arrays: dict[str, np.ndarray] = {
        "curve": np.stack(stability.curve),
        "counts_held_out": counts["held_out"].astype(np.int32),
    }
    if isinstance(model, SparseAutoencoder):
        arrays |= {
            f"history/{name}": np.asarray(model.history_[name], float)
            for name in ("samples", "explained_variance", "l0", "dead")
        }
    if params["keep"]:
        arrays["W_dec"] = D
    if params["probe"]:
        arrays |= _probe(model, data, layer, params["probe"])
    return record, arrays


def _probe(model: Any, data: Data, layer: int, probe: dict[str, int]) -> dict[str, np.ndarray]:
    """Activations of some latents on two texts: contexts to look at, and others to be judged by.

    Latents are drawn among those that fire often enough on both to be judged. Texts are the
    metric's, unseen by dictionaries where prompts were trained on, and the held-out one.
    """
    arrays: dict[str, np.ndarray] = {}
    codes = []
    for part in ("metric", "text" if data.has("text") else "held_out"):
        found = scipy.sparse.csc_array(model.transform(data.rows(part, layer)))
        found.data = np.maximum(found.data, 0)
        found.eliminate_zeros()
        codes.append(found)
    often = [np.diff(c.indptr) for c in codes]
    able = (often[0] >= probe["examples"]) & (often[1] >= probe["candidates"])
    able &= (often[0] < codes[0].shape[0] / 2) & (often[1] < codes[1].shape[0] / 2)
    rng = np.random.default_rng(probe["seed"])
    among = np.flatnonzero(able)
    chosen = np.sort(rng.choice(among, min(probe["latents"], len(among)), replace=False))
    for name, found in zip(("examples", "candidates"), codes):
        kept = found[:, chosen]
        arrays |= {f"probe/{name}/{field}": getattr(kept, field) for field in ("data", "indices", "indptr")}
        arrays[f"probe/{name}/shape"] = np.array(kept.shape)
    arrays["probe/latents"] = chosen
    arrays["probe/able"] = np.array([len(among), len(able)])
    return arrays


# ------------------------------------------------------------------ across seeds


def agreement(params: dict[str, Any], folder: Path, data_folder: Path, progress: Progress) -> Found:
    """Do dictionaries of different seeds hold the same atoms, and span the same space?"""
    place = str(data_folder), params["data"], params["layer"], params["prefix"], params["shuffled"]
    metric = _metric(*place, False, None)
    found = []
    for key in params["inputs"]:
        with np.load(folder / "cells" / f"{key}.npz") as file:
            found.append(file["W_dec"])
    mcc: list[float] = []
    mmcs: list[float] = []
    above: list[float] = []
    overlap: list[float] = []
    half = found[0].shape[1] // 2
    for i in range(len(found)):
        for j in range(i):
            progress(len(mcc) / (len(found) * (len(found) - 1) / 2))
            m = theory.match_dictionaries(found[j], found[i], metric)
            mcc.append(m.mcc)
            mmcs.append(m.mmcs)
            above.append(m.share_above(0.9))
            if min(map(len, found)) >= half:
                overlap.append(theory.subspace_overlap(found[j], found[i], metric, k=half))

    def mean(values: list[float]) -> float | None:
        return float(np.mean(values)) if values else None

    return {"mcc": mean(mcc), "mmcs": mean(mmcs), "above_0.9": mean(above), "overlap": mean(overlap)}, {}


CELLS: dict[str, Callable[[dict[str, Any], Path, Path, Progress], Found]] = {
    "shift": shift,
    "dictionary": dictionary,
    "agreement": agreement,
}
