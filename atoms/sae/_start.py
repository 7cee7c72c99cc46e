"""First weights and thresholds of an autoencoder that is trained afresh."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._config import one_blas_thread, serial_blas
from .._rows import Pair, PairedRows, Rows, squared_norms
from ._model import Batch, Model, blocks
from ._revival import worth
from ._settings import Settings


def starting_rows(settings: Settings, rows: Rows | PairedRows) -> Any:
    """Raw rows to begin from, at random."""
    return some_rows(rows, settings.d_sae, settings.seed)


def some_rows(rows: Rows | PairedRows, latents: int, seed: list[int]) -> Any:
    """Raw rows at random, as many as so many latents begin from."""
    rng = np.random.default_rng([*seed, 2])
    assert rows.n is not None
    n = min(rows.n, max(4096, min(2 * latents, 16384)))
    return rows.take(np.sort(rng.choice(rows.n, n, replace=False)))


def initialise(ctx: Any, model: Model, settings: Settings, sample: np.ndarray | Pair) -> None:
    """Decoder rows are directions of samples; thresholds start where L0 is on target.

    `sample` has rows in the training space; a transcoder's has both sides.
    """
    with serial_blas():  # the same bits for any number of threads
        if isinstance(sample, Pair):
            _initialise_transcoder(ctx, model, settings, sample)
        else:
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
        topk = settings.activation == "topk"
        model.set("b_enc", _topk_biases(centred, D, -start, settings.k) if topk else -start)
    _scale_encoder(ctx, model, sample, centred)


def _initialise_transcoder(ctx: Any, model: Model, settings: Settings, sample: Pair) -> None:
    """Encoder rows are directions of samples, decoder rows what is to be rebuilt where they fire.

    A skip connection begins as the regression on the samples, and latents with what it leaves.
    """
    x, b_dec = sample.x, sample.y.mean(axis=0, dtype=np.float64)
    rest = sample.y - b_dec.astype(np.float32)
    if model.skip:
        W = _regression(x, rest)
        rest -= x @ W
        shift = rest.mean(axis=0, dtype=np.float64)
        b_dec, rest = b_dec + shift, rest - shift.astype(np.float32)
        model.set("W_skip", W)
    E = _directions(x - x.mean(axis=0, dtype=np.float64).astype(np.float32), settings)
    start = np.maximum(_starting_thresholds(x, E, settings.target_l0), 0)
    D, scale = _decoders(x, rest, E, start, settings)
    model.set("W_enc", scale[:, None] * E)
    model.set("W_dec", D)
    model.set("b_dec", b_dec)
    if settings.activation == "jumprelu":
        model.set("threshold", scale * start)
    else:
        model.set("b_enc", -scale * start)
    _scale_encoder(ctx, model, x, rest)


@one_blas_thread
def _regression(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The ridge regression of y on x, of a penalty that a hundredth as many rows more would be."""
    x64 = x.astype(np.float64)
    gram = x64.T @ x64
    gram[np.diag_indices_from(gram)] += 0.01 * len(x)
    return np.linalg.solve(gram, x64.T @ y).astype(np.float32)


def _decoders(
    x: np.ndarray, rest: np.ndarray, E: np.ndarray, start: np.ndarray, settings: Settings
) -> tuple[np.ndarray, np.ndarray]:
    """For each encoder row the direction of what is to be rebuilt where it fires, and the scale at which it does best."""
    jump = settings.activation == "jumprelu"
    D, scale = np.empty((len(E), rest.shape[1]), np.float32), np.ones(len(E), np.float32)
    rng = np.random.default_rng([*settings.seed, 7])
    for block in blocks(len(E), 1024):
        p = x @ E[block].T
        a = np.where(p > start[block], p if jump else p - start[block], 0)
        sums, power = a.T @ rest, np.einsum("ij,ij->j", a, a)
        norm = np.linalg.norm(sums, axis=1)
        silent = norm <= 1e-6 * power + 1e-30  # explains nothing yet: any direction
        sums[silent] = rng.standard_normal((int(silent.sum()), rest.shape[1]))
        D[block] = sums / np.linalg.norm(sums, axis=1, keepdims=True)
        best = norm / np.maximum(power, 1e-30)
        scale[block] = np.where(silent, 0.01, best.clip(0.01, 100))
    return D, scale


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


@one_blas_thread
def _topk_biases(x: np.ndarray, D: np.ndarray, bias: np.ndarray, k: int) -> np.ndarray:
    """Biases raised by one number, so that 99 of 100 rows have k latents with z > 0.

    L0 was on target over all rows, but rows far out had most of it, and no row keeps more than k: the others would begin
    with few latents or none, and learn slowly. Which are the k largest of a row does not change.
    """
    x = _spread(x, 512)
    least = np.empty(len(x))
    for rows in blocks(len(x), max(1, (1 << 22) // len(D))):
        z = x[rows] @ D.T + bias
        least[rows] = np.partition(z, -k, axis=1)[:, -k]
    return bias + np.float32(max(0.0, -float(np.quantile(least, 0.01))))


def _scale_encoder(ctx: Any, model: Model, sample: np.ndarray, centred: np.ndarray) -> None:
    """Scale pre-activations by the one factor that reconstructs best.

    Where samples share a few strong directions, so do the latents that fire together, and
    unscaled they would reconstruct a sample many times over. A rare row far out activates thousands, and alone could
    bring the factor to nothing: at least a quarter of what is best for the others stays.
    """
    sample, centred = _spread(sample, 2048), _spread(centred, 2048)
    rebuilt = model.decode(ctx, model.encode(ctx, Batch(sample)))
    part = rebuilt.astype(np.float64) - model.get("b_dec")
    alpha, usual = _best_factor(part, centred), _usual(centred)
    if not usual.all():
        alpha = max(alpha, _best_factor(part[usual], centred[usual]) / 4)
    for name in ("W_enc", "b_enc", "threshold"):
        scaled = model.get(name)
        scaled *= alpha  # in place: a third copy would be the peak of all training
        model.set(name, scaled)


def _best_factor(part: np.ndarray, rows: np.ndarray) -> float:
    """Of part, from 0.001 to 1, at which it comes nearest to the rows."""
    power = float((part * part).sum())
    return float(np.clip((part * rows).sum() / power, 1e-3, 1.0)) if power > 0 else 1.0


def _usual(rows: np.ndarray) -> np.ndarray:
    """Which rows are at most four times as far out as the median; all where others are more than one in 500: no accident."""
    norm = np.sqrt(squared_norms(rows))
    far = norm > 4 * np.median(norm[norm > 0]) if norm.any() else norm > 0
    return ~far if 500 * far.sum() <= len(rows) else np.ones_like(far)


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
