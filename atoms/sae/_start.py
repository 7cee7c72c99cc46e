"""First weights and thresholds of an autoencoder that is trained afresh."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._config import one_blas_thread, serial_blas
from .._rows import Rows
from ._model import Batch, Model, blocks
from ._revival import worth
from ._settings import Settings


def starting_rows(settings: Settings, rows: Rows) -> np.ndarray:
    """Raw rows to begin from, at random."""
    return some_rows(rows, settings.d_sae, settings.seed)


def some_rows(rows: Rows, latents: int, seed: list[int]) -> np.ndarray:
    """Raw rows at random, as many as so many latents begin from."""
    rng = np.random.default_rng([*seed, 2])
    n = min(rows.n, max(4096, min(2 * latents, 16384)))
    return rows.take(np.sort(rng.choice(rows.n, n, replace=False)))


def initialise(ctx: Any, model: Model, settings: Settings, sample: np.ndarray) -> None:
    """Decoder rows are directions of samples; thresholds start where L0 is on target.

    `sample` has rows in the training space.
    """
    with serial_blas():  # the same bits for any number of threads
        _initialise(ctx, model, settings, sample)


def _initialise(ctx: Any, model: Model, settings: Settings, sample: np.ndarray) -> None:
    mean = sample.mean(axis=0, dtype=np.float64)
    centred = sample - mean.astype(np.float32)
    D = _directions(centred, settings)
    model.set("W_enc", D)
    model.set("W_dec", D)
    model.set("b_dec", mean)
    start = _starting_thresholds(centred, D, settings.target_l0)
    if settings.tied:
        _set_tied(model, settings, centred, D, np.maximum(start, 0))
        return
    if settings.activation == "jumprelu":
        model.set("threshold", np.maximum(start, 0))
    else:  # without these biases the k largest z are, in every sample, those along the few strongest directions
        model.set("b_enc", -start)
    _scale_encoder(ctx, model, sample, centred)


def _directions(centred: np.ndarray, settings: Settings) -> np.ndarray:
    """Unit rows, each along a sample."""
    rng = np.random.default_rng([*settings.seed, 0])
    chosen = rng.choice(len(centred), settings.d_sae, replace=len(centred) < settings.d_sae)
    return directions(centred, chosen, rng, 0.3)


def directions(centred: np.ndarray, chosen: np.ndarray, rng: np.random.Generator, share: float) -> np.ndarray:
    """Unit rows along those chosen, and noise of this share of a coordinate's root mean square."""
    d, s = centred.shape[1], len(chosen)
    # samples repeat when there are fewer than latents, and some may be zero: noise breaks ties
    noise = share * np.sqrt(np.einsum("ij,ij->", centred, centred, dtype=np.float64) / centred.size) + 1e-12
    D = np.empty((s, d), np.float32)
    for block in blocks(s, 1024):
        rows = centred[chosen[block]] + rng.standard_normal((len(chosen[block]), d)) * noise
        D[block] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return D


@one_blas_thread
def _starting_thresholds(centred: np.ndarray, D: np.ndarray, target_l0: float) -> np.ndarray:
    """mean_j + c deviation_j of z_j, with the c at which L0 is `target_l0` on some of these samples."""
    s, centred = len(D), _spread(centred, 2048)
    want = target_l0 / s
    some = max(1, s * len(centred) >> 21)  # a stride with which two million z enter the histogram
    mean, deviation = np.empty(s, np.float32), np.empty(s, np.float32)
    bins = np.linspace(-4, 12, 1601)
    counts = np.zeros(len(bins) - 1)
    for block in blocks(s, 1024):
        z = centred @ D[block].T
        mean[block], deviation[block] = z.mean(axis=0), z.std(axis=0) + 1e-12
        z = (z - mean[block]) / deviation[block]
        counts += np.histogram(z[:, ::some], bins)[0]
    above = 1 - np.cumsum(counts) / max(counts.sum(), 1)
    c = bins[1 + int(np.argmax(above <= want))]
    return np.asarray(mean + c * deviation)


def _scale_encoder(ctx: Any, model: Model, sample: np.ndarray, centred: np.ndarray) -> None:
    """Scale pre-activations by the one factor that reconstructs best.

    Where samples share a few strong directions, so do the latents that fire together, and
    unscaled they would reconstruct a sample many times over.
    """
    sample, centred = _spread(sample, 2048), _spread(centred, 2048)
    rebuilt = model.decode(ctx, model.encode(ctx, Batch(sample)))
    part = rebuilt.astype(np.float64) - model.get("b_dec")
    power = float((part * part).sum())
    alpha = float(np.clip((part * centred).sum() / power, 1e-3, 1.0)) if power > 0 else 1.0
    for name in ("W_enc", "b_enc", "threshold"):
        model.set(name, alpha * model.get(name))


def _set_tied(
    model: Model, settings: Settings, centred: np.ndarray, D: np.ndarray, start: np.ndarray
) -> None:
    """Biases and thresholds of a tied encoder, which has no scale: half of `start` becomes a bias.

    Where samples share a few strong directions, so do latents, and together they would still reconstruct a sample
    many times over. Those that only repeat what the ones before have explained are silent at first.
    """
    x = _spread(centred, 2048)
    jump, share = settings.activation == "jumprelu", 0.5
    silent, _ = _repeating(x, D, start, share, settings)
    if (
        settings.activation == "relu"
    ):  # it has no other threshold: three quarters, where L0 is not too low then
        other, fewer = _repeating(x, D, start, 0.75, settings)
        if fewer >= settings.target_l0:
            share, silent = 0.75, other
    bias, far = -share * start, 100 * np.sqrt(np.einsum("ij,ij->i", x, x).max())
    model.set("b_enc", np.where(silent & (not jump), -far, bias))
    if jump:
        model.set("threshold", np.where(silent, far, start + bias))


def _repeating(
    x: np.ndarray, D: np.ndarray, start: np.ndarray, share: float, settings: Settings
) -> tuple[np.ndarray, float]:
    """Which latents explain nothing more, with a bias of `share` of -start; how many of the others have z > 0."""
    rest, bias, silent, active = x.copy(), -share * start, np.zeros(len(D), bool), 0
    for block in blocks(len(D), 1024):
        z = x @ D[block].T
        if not settings.aux_k:  # AuxK has to reach them
            silent[block] = ~worth(np.where(z > start[block], z + bias[block], 0), D[block], rest)
        active += int(np.count_nonzero((z + bias[block] > 0) & ~silent[block]))
    return silent, active / len(x)


def _spread(rows: np.ndarray, most: int) -> np.ndarray:
    """At most `most` rows, evenly spaced."""
    return rows[:: -(-len(rows) // most)]
