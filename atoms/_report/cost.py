"""What a report will cost, from rates measured on this machine before anything starts."""

from __future__ import annotations

import dataclasses
import itertools
import time

import numpy as np

from .. import _config
from ..sae import SparseAutoencoder
from .config import Config
from .kinds import KINDS

__all__ = ["Estimate", "estimate"]

_FORWARD = 0.6  # share of the matrix product's speed that a Transformers forward pass reaches


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Time, memory and disk of a report; ``str()`` says it in a few lines.

    Attributes
    ----------
    capture_seconds, training_seconds, seconds : float
        Time by the clock, with all workers running side by side; `seconds` is capture, training and scoring
        together.
    memory_mb : float
        The larger of the model with its batch and of all workers' jobs.
    disk_mb : float
        Activations, mostly.
    flops, samples_per_second : float
        What was measured: float32 products, and training at the table's shape with one job's threads.
    """

    name: str
    capture_seconds: float
    training_seconds: float
    seconds: float
    memory_mb: float
    disk_mb: float
    flops: float
    samples_per_second: float
    jobs: int

    def __str__(self) -> str:
        return (
            f"{self.name}, estimated from rates measured here ({self.flops / 1e9:.0f} Gflop/s in products, "
            f"{self.samples_per_second:,.0f} training samples/s a job): {_time(self.seconds)} in all, "
            f"{_time(self.capture_seconds)} of them capture, {_time(self.training_seconds)} training in {self.jobs} jobs; "
            f"memory {_size(self.memory_mb)}, disk {_size(self.disk_mb)}"
        )


def _time(seconds: float) -> str:
    if seconds < 5400:
        return f"{max(1, round(seconds / 60))} min"
    return f"{seconds / 3600:.1f} h" if seconds < 100 * 3600 else f"{seconds / 86400:.0f} days"


def _size(mb: float) -> str:
    return f"{mb:.0f} MB" if mb < 2000 else f"{mb / 1000:.0f} GB"


def _flops() -> float:
    """Float32 operations a second of a square product by NumPy's BLAS, all its threads."""
    a = np.ones((1024, 1024), np.float32)
    _ = a @ a
    best = np.inf
    for _ in range(3):
        started = time.perf_counter()
        _ = a @ a
        best = min(best, time.perf_counter() - started)
    return 2 * 1024**3 / best


def _training_rate(d_in: int, d_sae: int, l0: float, threads: int) -> float:
    """Samples a second of a few steps on random rows, at a shape cut where it would take seconds."""
    cut = max(1.0, np.sqrt(d_in * d_sae / (1024 * 4096)))
    d, n, batch = int(d_in / cut), int(d_sae / cut), 512
    X = np.random.default_rng(0).standard_normal((3 * batch, d), dtype=np.float32)
    sae = SparseAutoencoder(
        n,
        target_l0=min(l0, n),
        batch_size=batch,
        max_steps=6,
        num_threads=threads,
        verbose=False,
        random_state=0,
    )
    marks: list[float] = []
    sae.fit(X, callback=lambda *_: marks.append(time.perf_counter()))
    return float(batch / np.median(np.diff(marks)) / cut**2)


def estimate(config: Config, *, workers: int | None = None, threads: int = 1) -> Estimate:
    """Time, memory and disk that a report needs, without starting it.

    Takes a second or two: a matrix product and a few training steps at the report's shape (a smaller one
    where it is large, scaled by the number of weights).

    Parameters
    ----------
    config : Config
        With `d_in`, `n_layers` and `parameters` for the model.
    workers, threads : int
        Jobs at once, and threads of each.

    Returns
    -------
    Estimate
        Good to a factor of two or so: the forward pass is taken to reach 0.6 of the product's speed, and
        scoring and controls to add half of the training's time.

    Raises
    ------
    ValueError
        `d_in` or `parameters` is not known (0).
    """
    if config.d_in < 1 or (config.parameters < 1 and not config.activations):
        raise ValueError(
            "d_in, parameters: expected the model's, to estimate its cost; set them in the configuration"
        )
    workers = workers or max(1, _config.available_cpus() // threads)
    flops = _flops()
    rate = _training_rate(config.d_in, round(config.width * config.d_in), config.l0, threads)
    tokens, stored = _captured(config)
    capture = 0.0 if config.activations else tokens * 2 * config.parameters / (_FORWARD * flops)
    itemsize = 4 if config.dtype == "float32" else 2
    disk = 0.0 if config.activations else stored * config.d_in * itemsize / 1e6
    jobs, samples = _trained(config)
    training = samples / rate / workers
    return Estimate(
        config.name,
        capture,
        training,
        capture + 1.5 * training,
        _memory(config, workers),
        disk,
        flops,
        rate,
        jobs,
    )


def _shift_layers(config: Config) -> int:
    return config.n_layers if config.shift_layers == "all" else len(config.shift_layers)


def _captured(config: Config) -> tuple[float, float]:
    """Tokens that the model reads, and rows that are stored, a row for each layer."""
    tokens: float = config.metric_tokens + config.train_tokens + config.held_out_tokens
    stored: float = config.metric_tokens * max(_shift_layers(config), len(config.layers))
    stored += (config.train_tokens + config.held_out_tokens) * len(config.layers)
    if any(KINDS[name].rows == "random model" for name in config.dictionaries):
        share = config.random_share * (config.metric_tokens + config.train_tokens)
        tokens, stored = tokens + share, stored + share * len(config.layers)
    return tokens, stored


def _trained(config: Config) -> tuple[int, float]:
    """Jobs that train, and their samples, counted at the table's width: a job of twice the width counts twice."""
    jobs, samples = 0, 0.0
    for name in config.dictionaries:
        if KINDS[name].iterative:
            seeds = len(config.seeds) if KINDS[name].seeded else 1
            jobs += seeds * len(config.layers)
            samples += seeds * len(config.layers) * config.samples
    g, f = config.grid, config.frontier
    for m, n in itertools.product(g.data, g.widths):
        jobs += len(g.layers)
        seen = max(g.epochs * m * g.unit * config.d_in, g.min_samples)
        samples += len(g.layers) * seen * n * g.unit / config.width
    if f.layer is not None:
        kinds = sum(KINDS[name].trained for name in f.dictionaries)
        jobs += kinds * (len(f.l0) + len(f.widths) + len(f.data)) + len(f.variants)
        samples += config.samples * (
            kinds * (len(f.l0) + sum(f.widths) / config.width + len(f.data)) + len(f.variants)
        )
    return jobs, samples


def _memory(config: Config, workers: int) -> float:
    """MB: the larger of the model with its batch and of all workers' jobs."""
    d, g = config.d_in, config.grid
    widest = max([config.width, *(w * g.unit for w in g.widths if g.layers)])
    job_mb = (
        17 * d * widest * d + 4 * d * (config.train_tokens + 3 * config.eval_rows) + 24 * d * d
    ) / 1e6 + 150
    model_mb = (4 * config.parameters + 4 * 1024 * d * _shift_layers(config)) / 1e6 + 500
    return max(0.0 if config.activations else model_mb, workers * job_mb)
