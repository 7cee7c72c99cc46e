"""What the jobs compute, by name in `CELLS`: angles, one dictionary, agreement across seeds.

Each of these functions takes a job's parameters, the folders of results and of activations, and a progress callback;
it returns figures for JSON, and arrays.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

from .. import controls, recovery, theory
from .._config import one_blas_thread
from .._dictionary import DictionaryLearning
from .._frames import without_frames
from ..metric import AtomicInnerProduct
from ..sae import SparseAutoencoder
from .data import Data
from .kinds import KINDS
from .scoring import CONVENTION, Score, hold_l0, plain, pursued, score

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


@one_blas_thread
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
    """The dictionary that a job asks for, not fitted yet; `metric` is what it is trained under, step by step."""
    name, seed, l0 = params["dictionary"], params["seed"], max(1, round(params["l0"]))
    kind = KINDS[name]
    d_sae = max(1, round(params["width"] * d_in))
    kept = min(l0, d_in) if kind.codes == "l0" else None  # None: all
    steps: dict[str, Any] = {"batch_size": params["batch_size"], "random_state": seed, "verbose": False}
    if kind.iterative:
        steps["max_steps"] = max(1, round(params["samples"] / params["batch_size"]))
    if kind.activation is not None:
        return SparseAutoencoder(
            d_sae,
            kind.activation,
            metric if kind.in_metric else None,
            params["l0"],
            tied=params["tied"],
            **steps,
        )
    if kind.coder is not None:
        return DictionaryLearning(
            d_sae,
            kept,
            metric=metric if kind.in_metric else None,
            coder=kind.coder,
            **steps,
        )
    if name == "random":
        return controls.RandomDictionary(d_sae, min(l0, d_in), reference, random_state=seed)
    if name == "memorizing":
        return controls.MemorizingDictionary(params.get("memories"), reference, random_state=seed)
    if name == "kmeans":
        return controls.KMeansDictionary(d_sae, reference, max_iter=5, random_state=seed)
    if name in ("pca", "pca-all"):
        return controls.PCADictionary(kept, reference)
    return controls.NeuronBasis(kept, reference)


class _Rows(NamedTuple):
    """What one dictionary is fitted and judged on, and the metrics of these rows.

    ``reference`` judges: uncentred, without shrinkage. An autoencoder is trained under ``metric``, by the job's
    parameters. ``tuned`` rows, held out, set thresholds and judge nothing. ``judged`` has the other parts by name.
    """

    train: np.ndarray
    tuned: np.ndarray
    judged: dict[str, np.ndarray]
    reference: AtomicInnerProduct
    metric: AtomicInnerProduct


def _rows(params: dict[str, Any], data: Data) -> _Rows:
    layer, kind = params["layer"], KINDS[params["dictionary"]]
    shuffled, prefix = kind.rows == "shuffled", "random/" if kind.rows == "random model" else ""
    place = str(data.folder), data.key, layer, prefix, shuffled
    reference = _metric(*place, False, None)
    metric = _metric(*place, params["centered"], params["shrinkage"])
    train = data.rows(f"{prefix}train", layer)
    if params["n_train"] is not None and params["n_train"] < len(train):
        rng = np.random.default_rng([params["seed"], 17])
        train = train[np.sort(rng.choice(len(train), params["n_train"], replace=False))]
    held = data.rows(f"{prefix}held_out", layer)
    tuned, judged = np.split(held, [len(held) // 4])
    parts = {"held_out": _some(judged, params["eval_rows"])}
    if data.has("text") and kind.rows == "own":
        parts["text"] = data.rows("text", layer, params["eval_rows"])
    if shuffled:
        train = controls.shuffle_coordinates(train, random_state=1)
        parts["held_out"] = controls.shuffle_coordinates(parts["held_out"], random_state=2)
        if params["hold_l0"]:
            tuned = controls.shuffle_coordinates(tuned, random_state=3)
    if len(train) < 2:
        raise ValueError(f"layer {layer}: {len(train)} training rows are too few; capture more tokens")
    return _Rows(train, tuned, parts, reference, metric)


def _fit(model: Any, params: dict[str, Any], rows: _Rows, progress: Progress) -> float | None:
    """Train or fit the model; the shift of its thresholds by which L0 was held at the target, if it was."""
    if not KINDS[params["dictionary"]].iterative:
        model.fit(rows.train)
        return None

    def advance(model: Any, figures: dict[str, Any]) -> None:
        progress(figures["step"] / model.max_steps, f"L0 {figures['l0']:.1f}")

    if isinstance(model, DictionaryLearning):
        model.fit(rows.train, callback=advance)
        return None
    # L0 on other rows is recorded; thresholds follow it below, where they are to
    others = rows.tuned if len(rows.tuned) else rows.judged["held_out"]
    model.fit(rows.train, X_val=_some(others, _TUNED_ROWS), calibrate=False, callback=advance)
    if params["hold_l0"] and KINDS[params["dictionary"]].has_thresholds:
        return hold_l0(model, _some(rows.tuned, _TUNED_ROWS), params["l0"])
    return None


class _Scored(NamedTuple):
    """A fitted dictionary's score and what it was computed from: the coherence (`spectrum`) of `some` of its atoms,
    each part as (X, codes, X_hat) in `coded`, and the full results."""

    some: np.ndarray
    spectrum: theory.Coherence
    coded: dict[str, tuple[np.ndarray, Any, Any]]
    score: Score
    stability: theory.Stability
    results: dict[str, dict[str, theory.ExplainedVarianceResult]]


def _score(model: Any, params: dict[str, Any], rows: _Rows) -> _Scored:
    coded = {}
    for part, X in {"train": _some(rows.train, params["eval_rows"]), **rows.judged}.items():
        codes = without_frames(model)(X)
        coded[part] = (X, codes, model.inverse_transform(codes))
    some = _some(model.W_dec, _COHERENCE_ATOMS)
    spectrum = theory.coherence(some, rows.reference, ())
    scored = score(params["dictionary"], spectrum, rows.reference, coded, CONVENTIONS)
    return _Scored(some, spectrum, coded, *scored)


def _figures(found: _Scored) -> dict[str, Any]:
    """What the tables say of every dictionary."""
    counts = {part: np.diff(codes.indptr) for part, (_, codes, _) in found.coded.items()}
    used = np.zeros(found.score.d_sae, bool)
    used[found.coded["train"][1].indices] = True
    return {
        **plain(found.score),
        "n_atoms_measured": len(found.some),
        "l0_train": np.quantile(counts["train"], [0.05, 0.5, 0.95], method="inverted_cdf").tolist(),
        "l0_means": {part: float(c.mean()) for part, c in counts.items()},
        "massive": {part: r[CONVENTION].n_massive for part, r in found.results.items()},
        "q_star_train": theory.stability(found.spectrum, counts["train"]).q_star,
        "q_star_ceiling_any": found.stability.ceiling,
        "q_star_euclidean": theory.stability(found.some, counts["held_out"]).q_star,
        "unused": float(1 - used.mean()),
    }


def _block(n: int) -> int:
    """Rows of a block of the bootstrap: neighbouring tokens are not independent."""
    return min(64, max(1, n // 8))


def _intervals(found: _Scored, reference: AtomicInnerProduct, d_in: int) -> dict[str, Any]:
    """Bootstrap intervals of the main figures, and the share of codes that coherence certifies."""
    record: dict[str, Any] = {}
    for part, (X, _, X_hat) in found.coded.items():  # without massive tokens, as the tables' R²
        usual = np.linalg.norm(X, axis=1) <= found.results[part][CONVENTION].massive_norm
        explained = theory.explained_variance(X[usual], X_hat[usual], CONVENTION, metric=reference)
        interval = theory.explained_variance_interval(explained, block_size=_block(usual.sum()), n_boot=400)
        record[f"interval_{part}"] = [interval.low, interval.high]
    codes = found.coded["held_out"][1]
    counts = np.diff(codes.indptr)
    interval = theory.stability_interval(found.spectrum, counts, block_size=_block(len(counts)), n_boot=400)
    record["interval_q_star"] = [interval.low, interval.high]
    if len(found.some) == found.score.d_sae and found.score.l0_mean < d_in:
        record["certified"] = theory.certify(found.spectrum, codes[:_CERTIFIED_ROWS]).shares
    return record


def _pursuit(model: Any, params: dict[str, Any], rows: _Rows) -> dict[str, Any]:
    """Explained variance of the same atoms, coded by matching pursuit in place of their own encoder."""
    D, k = model.W_dec, max(1, round(params["l0"]))
    if KINDS[params["dictionary"]].codes != "l0" or k > min(D.shape):
        return {}
    X = rows.judged["held_out"][:: max(1, len(rows.judged["held_out"]) // _PURSUIT_ROWS)]
    rebuilt = pursued(X, recovery.Dictionary(D, metric=rows.reference), D, k, model.b_dec)[1]
    explained = theory.explained_variance(X, rebuilt, CONVENTION, metric=rows.reference)
    return {"pursuit": explained.without_massive}


def dictionary(params: dict[str, Any], folder: Path, data_folder: Path, progress: Progress) -> Found:
    """Train or fit one dictionary, and score it on what it saw and on what it did not.

    The metric that judges is the uncentred one without shrinkage, whatever it was trained under. With
    "hold_l0", the first quarter of the held-out rows (chunks of their own) sets the thresholds' common
    shift; nothing is judged on that quarter, of any dictionary.
    """
    data = Data(data_folder, params["data"])
    rows = _rows(params, data)
    d_in = rows.train.shape[1]
    model = _build(params, d_in, rows.reference, rows.metric)
    started = time.perf_counter()
    shift = _fit(model, params, rows, progress)
    seconds = time.perf_counter() - started
    progress(1.0, "scoring")

    found = _score(model, params, rows)
    record = _figures(found) | {
        "n_train": len(rows.train),
        "threshold_shift": shift,
        "cost": {"seconds_training": seconds},
    }
    if params["full"]:
        record |= _intervals(found, rows.reference, d_in)
    record |= _pursuit(model, params, rows)
    arrays: dict[str, np.ndarray] = {
        "curve": np.stack(found.stability.curve),
        "counts_held_out": np.diff(found.coded["held_out"][1].indptr).astype(np.int32),
    }
    if KINDS[params["dictionary"]].iterative:
        arrays |= {
            f"history/{name}": np.asarray(model.history_[name], float)
            for name in ("samples", "explained_variance", "l0", "dead")
        }
    if params["keep"]:
        arrays["W_dec"] = model.W_dec
    if params["probe"]:
        arrays |= _probe(model, data, params["layer"], params["probe"])
    return record, arrays


def _probe(model: Any, data: Data, layer: int, probe: dict[str, int]) -> dict[str, np.ndarray]:
    """Activations of some latents on two texts: contexts to look at, and others to be judged by.

    Latents are drawn among those that fire often enough on both to be judged. Texts are the
    metric's, unseen by dictionaries where prompts were trained on, and the held-out one.
    """
    arrays: dict[str, np.ndarray] = {}
    codes = []
    for part in ("metric", "text" if data.has("text") else "held_out"):
        found = scipy.sparse.csc_array(without_frames(model)(data.rows(part, layer)))
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
