"""Explained variance, exact, in named conventions."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import _core
from .._checks import (
    as_number,
    as_numbers,
    check_choice,
    check_count,
    check_metric,
    check_rows,
    native,
    row_name,
    whitener_of,
)
from .._config import context, one_blas_thread
from .._rows import Blocks, is_dask, table
from .._shown import Shown, Table

CONVENTIONS = (
    "centered",
    "uncentered",
    "metric",
    "metric_centered",
    "metric_uncentered",
    "scalar_mean",
    "variance_of_error",
)


@dataclass(frozen=True)
class ExplainedVarianceResult(Shown):
    """Explained variance with its convention; ``float(result)`` is the total.

    Attributes
    ----------
    total : float
        1 - residual / variance over all samples, in the named convention.
    median : float
        Median over samples of 1 - ||e_i||^2 / ||x_i - c||^2 (both in the metric for metric
        conventions), c being what the convention subtracts. Samples equal to c count 1 when
        reproduced exactly, else -inf. NaN where the convention has no form for one sample
        ("variance_of_error") or the accumulator was not given the mean.
    without_massive : float
        The total over the samples that are not massive, their own mean subtracted.
    n_massive : int
        Samples with Euclidean norm above ``massive_norm``.
    n_samples : int
    massive_norm : float
    convention : str
    squared_error, squared_deviation : ndarray (n_samples,) float64
        ||e_i||^2 and ||x_i - c||^2 of each sample, what the median and bootstrap intervals use;
        ``squared_deviation`` is None where the median is NaN.
    """

    total: float
    median: float
    without_massive: float
    n_massive: int
    n_samples: int
    massive_norm: float
    convention: str
    squared_error: np.ndarray = field(repr=False, compare=False)
    squared_deviation: np.ndarray | None = field(repr=False, compare=False)

    def __float__(self) -> float:
        return self.total

    def _table(self) -> Table:
        rows = [
            ("all samples together", self.total),
            ("median over samples", self.median),
            ("without massive ones", self.without_massive),
            (f"massive: norm above {self.massive_norm:.4g}", self.n_massive),
            ("samples", self.n_samples),
        ]
        return Table(f"Explained variance, {self.convention}", rows)

    # dataclasses' own equality takes NaN for NaN before Python 3.13, and not from then on
    def _compared(self) -> tuple[str, ...]:
        return tuple(repr(getattr(self, f.name)) for f in dataclasses.fields(self) if f.compare)

    def __eq__(self, other: object) -> bool:
        return self._compared() == other._compared() if isinstance(other, type(self)) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._compared())


def _convention(convention: str | None, metric: Any) -> str:
    check_metric(metric)
    if convention is None:
        return "centered" if metric is None else "metric_centered"
    check_choice(convention, "convention", CONVENTIONS)
    if convention.startswith("metric") and metric is None:
        raise ValueError(f"convention: {convention!r} needs metric=, a fitted AtomicInnerProduct, got None")
    if convention == "metric":
        return "metric_centered" if getattr(metric, "centered", False) else "metric_uncentered"
    return convention


_UNIT = 1074  # every float64 is a whole multiple of 2**-1074


def _whole(x: float) -> int:
    numerator, denominator = x.as_integer_ratio()
    return numerator * ((1 << _UNIT) // denominator)


def _exact(pairs: np.ndarray) -> list[int]:
    """hi + lo (2, d) without rounding, in units of 2**-1074."""
    return [_whole(hi) + _whole(lo) for hi, lo in zip(*pairs.tolist())]


def _moments(sums: np.ndarray) -> tuple[list[int], list[int], list[int], list[int]]:
    return _exact(sums[0:2]), _exact(sums[2:4]), _exact(sums[4:6]), _exact(sums[6:8])


def _score(convention: str, n: int, groups: Sequence[tuple[list[int], ...]]) -> float:
    """1 - residual / variance from exact moments: one rounding in the quotient, one in 1 - it."""
    if n == 0:
        return math.nan
    x, xx, e, ee = ([sum(v) for v in zip(*(g[k] for g in groups))] for k in range(4))

    def variance(first: list[int], second: list[int]) -> int:  # n times the sum of squares
        return (n * sum(second) << _UNIT) - sum(v * v for v in first)

    residual = n * sum(ee) << _UNIT
    total = n * sum(xx) << _UNIT
    if convention in ("centered", "metric_centered", "variance_of_error"):
        total = variance(x, xx)
    if convention == "variance_of_error":
        residual = variance(e, ee)
    if convention == "scalar_mean":
        residual *= len(x)
        total = total * len(x) - sum(x) ** 2
    if total <= 0:
        return 1.0 if residual == 0 else -math.inf
    return float(1.0 - residual / total)  # a quotient of whole numbers is correctly rounded


class ExplainedVariance:
    """Explained variance of a stream of blocks.

    Sums are kept for each coordinate in double-double numbers (about 106 bits) and combined
    exactly, so neither the order of magnitude of the mean nor that of a massive activation costs
    digits, and the total does not depend on how the stream is cut into blocks beyond the last bit.

    Parameters
    ----------
    convention : str, optional
        See :func:`explained_variance`.
    metric : AtomicInnerProduct, optional
        For the metric conventions.
    mean : array (d,), optional
        The mean that the *median over samples* subtracts in a centred convention (the total uses
        the mean of what it has seen). Without it that median is NaN.
    massive_norm : float
        Samples of a larger Euclidean norm are massive.
    num_threads : int, optional

    Notes
    -----
    Holds 16 d + 4 n float64 numbers after n samples of dimension d.

    Examples
    --------
    >>> import numpy as np
    >>> from atoms.theory import ExplainedVariance
    >>> X = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    >>> ev = ExplainedVariance("uncentered")
    >>> for block in (X[:2], X[2:]):
    ...     _ = ev.update(block, 0.5 * block)
    >>> ev.result().total
    0.75
    """

    def __init__(
        self,
        convention: str | None = None,
        metric: Any = None,
        *,
        mean: Any = None,
        massive_norm: float = math.inf,
        num_threads: int | None = None,
    ) -> None:
        if not as_number(massive_norm, "massive_norm") >= 0:
            raise ValueError(f"massive_norm: expected a number >= 0, got {massive_norm!r}")
        self.convention = _convention(convention, metric)
        self.metric = metric
        self.mean = None if mean is None else np.ascontiguousarray(as_numbers(mean, "mean"))
        self.massive_norm = float(massive_norm)
        self.num_threads = num_threads
        self.n_samples = 0
        self._sums: np.ndarray | None = None
        self._tokens: list[np.ndarray] = []
        self._whitener: np.ndarray | None = None
        self._offset: np.ndarray | None = None

    @one_blas_thread
    def _prepare(self, d: int) -> np.ndarray:
        if self._sums is not None:
            if self._sums.shape[2] != d:
                raise ValueError(f"X: expected {self._sums.shape[2]} columns as in earlier blocks, got {d}")
            return self._sums
        if self.mean is not None and self.mean.shape != (d,):
            raise ValueError(f"mean: expected shape ({d},), got {self.mean.shape}")
        if self.convention.startswith("metric"):
            self._whitener = whitener_of(self.metric, d)
        if self.mean is not None:
            if self.convention == "scalar_mean":
                self._offset = np.full(d, math.fsum(self.mean) / d)
            elif self.convention in ("centered", "metric_centered"):
                self._offset = self.mean if self._whitener is None else (self.mean[None] @ self._whitener)[0]
                self._offset = np.ascontiguousarray(self._offset)
        self._sums = np.zeros((2, _core.EV_ROWS, d))
        return self._sums

    def update(self, X: Any, X_hat: Any) -> ExplainedVariance:
        """Add samples X (n, d) and their reconstructions X_hat (n, d)."""
        X = check_rows(X, "X")
        if X_hat is not None:
            X_hat = check_rows(X_hat, "X_hat")
            if X_hat.shape != X.shape:
                raise ValueError(f"X_hat: expected shape {X.shape} as X has, got {X_hat.shape}")
        sums = self._prepare(X.shape[1])
        before = sums.copy()  # to be put back if the block has a bad row
        step = max(1, (64 << 20) // (8 * X.shape[1]))
        tokens = np.empty((X.shape[0], _core.EV_TOKENS))
        try:
            for first in range(0, X.shape[0], step):
                part = slice(first, first + step)
                bad = _core.ev_update(
                    context(self.num_threads),
                    X=native(X[part], "X"),
                    X_hat=None if X_hat is None else native(X_hat[part], "X_hat"),
                    whitener=self._whitener,
                    mean=self._offset,
                    massive_norm=self.massive_norm,
                    sums=sums,
                    tokens=tokens[part],
                )
                if bad >= 0:
                    row = np.asarray(X[first + bad], dtype=np.float64)
                    name = "X_hat" if X_hat is not None and np.isfinite(row @ row) else "X"
                    raise ValueError(
                        f"{name}: {row_name(self.n_samples + first + bad)} holds NaN, infinity or a "
                        "square beyond float64; drop or repair it"
                    )
        except BaseException:
            sums[:] = before
            raise
        self._tokens.append(tokens)
        self.n_samples += X.shape[0]
        return self

    def merge(self, other: ExplainedVariance) -> ExplainedVariance:
        """Add what another accumulator of the same settings has seen, after one's own samples.

        The settings are those that decide the figures: convention, mean, massive_norm and, in the metric
        conventions, the metric.
        """
        if not isinstance(other, ExplainedVariance):
            raise TypeError(f"other: expected an ExplainedVariance, got {type(other).__name__}")
        same = (
            self.convention == other.convention
            and self.massive_norm == other.massive_norm
            and (self.mean is None) == (other.mean is None)
            and (self.mean is None or other.mean is None or np.array_equal(self.mean, other.mean))
        )
        if not same:
            raise ValueError(
                "other: expected the same convention, mean and massive_norm, got "
                f"{other.convention}, {other.massive_norm}"
            )
        if other._sums is None:
            return self
        mine = self._prepare(other._sums.shape[2])
        ours, theirs = self._whitener, other._whitener
        if ours is not None and theirs is not None and not np.allclose(ours, theirs, rtol=1e-9, atol=0):
            raise ValueError(
                f"other: expected the same metric, got one whose whitener differs by up to "
                f"{np.abs(ours - theirs).max():.3g}: its errors are in other units; measure both with one metric"
            )
        for k in range(0, 8, 2):  # double-double addition
            hi, lo, a, b = mine[:, k], mine[:, k + 1], other._sums[:, k], other._sums[:, k + 1]
            s = hi + a
            v = s - hi
            low = (hi - (s - v)) + (a - v) + (lo + b)
            mine[:, k] = s + low
            mine[:, k + 1] = low - (mine[:, k] - s)
        self._tokens += other._tokens
        self.n_samples += other.n_samples
        return self

    def result(self) -> ExplainedVarianceResult:
        """The figures for all samples seen so far."""
        if self._sums is None or self.n_samples == 0:
            raise ValueError("X: no samples seen; call update first")
        if len(self._tokens) > 1:
            self._tokens = [np.concatenate(self._tokens)]
        norms, scale, error, deviation = self._tokens[0].T
        massive = int((np.sqrt(norms) > self.massive_norm).sum())
        groups = [_moments(g) for g in self._sums]
        median, kept = math.nan, None
        needs_mean = self.convention not in ("uncentered", "metric_uncentered")
        if self.convention != "variance_of_error" and not (needs_mean and self._offset is None):
            kept = (deviation if needs_mean else scale).copy()
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = error / kept
            ratio[(error == 0) & (kept == 0)] = 0.0
            median = float(np.median(1.0 - ratio))
        return ExplainedVarianceResult(
            total=_score(self.convention, self.n_samples, groups),
            median=median,
            without_massive=_score(self.convention, self.n_samples - massive, groups[:1]),
            n_massive=massive,
            n_samples=self.n_samples,
            massive_norm=self.massive_norm,
            convention=self.convention,
            squared_error=error.copy(),
            squared_deviation=kept,
        )


def _reconstructions(X: np.ndarray, X_hat: Any, step: int) -> Iterator[tuple[np.ndarray, Any]]:
    """Blocks of X beside those of X_hat: an array, a function of a block, or an iterable of blocks."""
    n = X.shape[0]
    if callable(X_hat):
        for first in range(0, n, step):
            yield X[first : first + step], X_hat(X[first : first + step])
    elif isinstance(X_hat, (np.ndarray, list, tuple)) or hasattr(X_hat, "__array__"):
        array = check_rows(X_hat, "X_hat")
        if array.shape != X.shape:
            raise ValueError(f"X_hat: expected shape {X.shape} as X has, got {array.shape}")
        for first in range(0, n, step):
            yield X[first : first + step], array[first : first + step]
    elif isinstance(X_hat, Iterable):
        first = 0
        for block in X_hat:
            block = check_rows(block, "X_hat")
            if first + block.shape[0] > n:
                raise ValueError(f"X_hat: expected blocks of {n} rows in all, got more")
            yield X[first : first + block.shape[0]], block
            first += block.shape[0]
        if first != n:
            raise ValueError(f"X_hat: expected blocks of {n} rows in all, got {first}")
    else:
        raise TypeError(
            "X_hat: expected an array, a function that maps a block of X to its reconstruction, "
            f"or an iterable of blocks, got {type(X_hat).__name__}"
        )


def explained_variance(
    X: Any,
    X_hat: Any | Callable[[np.ndarray], Any] | Iterable[Any],
    convention: str | None = None,
    metric: Any = None,
    *,
    massive_multiple: float = 10.0,
    block_size: int | None = None,
    num_threads: int | None = None,
) -> ExplainedVarianceResult:
    r"""Share of the variance of X that X_hat explains, in a named convention.

    With e = x - x_hat and sums over all samples i and coordinates j:

    ==================== ============================================================
    "centered"           1 - sum e^2 / sum (x - mean_j)^2, the mean of each coordinate.
                         SAELens's `explained_variance`, sparsify's 1 - FVU, scikit-learn's
                         `r2_score(multioutput="variance_weighted")`.
    "uncentered"         1 - sum e^2 / sum x^2: the mean direction counts as signal.
    "metric_uncentered"  1 - sum e'Se / sum x'Sx: the same of whitened activations. With the
                         paper's S every direction weighs alike.
    "metric_centered"    1 - sum e'Se / sum (x - mean)'S(x - mean).
    "metric"             The one of these two that `metric.centered` says.
    "scalar_mean"        1 - sum e^2 / sum (x - m)^2 with one mean m of all numbers, as in
                         overcomplete.
    "variance_of_error"  1 - sum_j var_i(e_ij) / sum_j var_i(x_ij), as in dictionary_learning:
                         forgives a constant offset.
    ==================== ============================================================

    Parameters
    ----------
    X : array (n, d)
        float32, float64, float16, bfloat16 or integers; memory maps and any strides. An array of Dask is summed
        where its blocks are, beside an `X_hat` that is another one, an array in memory or a callable.
    X_hat : array (n, d), callable, or iterable of blocks
        A callable gets blocks of X and returns their reconstructions; an iterable yields
        reconstructions of consecutive rows of X, n in all.
    convention : str, optional
        One of the above, by default "centered", under a metric "metric_centered"; the result carries it.
    metric : AtomicInnerProduct, optional
        For the metric conventions.
    massive_multiple : float
        A sample is massive when its Euclidean norm exceeds this multiple of the median norm.
    block_size : int, optional
        Rows of a block; by default so many that a block in float32 takes 32 MB.
    num_threads : int, optional

    Returns
    -------
    ExplainedVarianceResult
        `total`, `median` over samples, `without_massive` and `n_massive`, and more.

    Raises
    ------
    ValueError
        Unknown convention, shapes that differ, NaN or infinity (with its row), no samples.

    Notes
    -----
    Two passes over X, one over X_hat. Sums in double-double arithmetic and quotients of whole
    numbers: the total is the true value for the numbers given, rounded. So a prediction of the
    mean, taken in float64, scores exactly 0 as long as the mean stays below about 1e6 standard
    deviations; a mean rounded to float32 scores about -4e-15 (mean / deviation)^2, which is its true
    value.

    Memory: a block, 32 bytes for each sample and 128 d bytes. Time: that of reading X twice;
    the metric conventions add 4 d^2 operations for each sample.

    A constant X (no variance) scores 1 when reproduced exactly, else -inf.

    Examples
    --------
    >>> import numpy as np
    >>> from atoms.theory import explained_variance
    >>> X = np.random.default_rng(0).standard_normal((1000, 8)) + 5
    >>> explained_variance(X, lambda block: np.broadcast_to(X.mean(0), block.shape)).total
    0.0
    >>> explained_variance(X, X).total
    1.0
    """
    far = Blocks(X) if is_dask(X) else None
    X = (
        far.sample if far is not None else X if isinstance(X, np.ndarray) else table(X)
    )  # blocks of integers are converted one by one
    X = check_rows(X, "X")
    convention = _convention(convention, metric)
    if X.shape[0] == 0:
        raise ValueError(f"X: expected at least one sample, got shape {X.shape}")
    if not as_number(massive_multiple, "massive_multiple") > 0:
        raise ValueError(f"massive_multiple: expected a number > 0, got {massive_multiple!r}")
    fitting = max(1, (32 << 20) // (4 * X.shape[1]))
    step = fitting if block_size is None else check_count(block_size, "block_size")
    first = ExplainedVariance("uncentered", num_threads=num_threads)
    rows = X if far is None else far
    _see_alone(first, rows, step)
    if first._sums is None:
        raise ValueError(f"X: expected at least one sample, got shape {(0, X.shape[1])}")
    mean = (first._sums[0, 0] + first._sums[0, 1]) / first.n_samples
    norms = np.sqrt(np.concatenate(first._tokens)[:, 0])
    second = ExplainedVariance(
        convention,
        metric,
        mean=mean,
        massive_norm=massive_multiple * float(np.median(norms)),
        num_threads=num_threads,
    )
    _see_beside(second, rows, X_hat, step)
    return second.result()


def _see_alone(found: ExplainedVariance, X: Any, step: int) -> None:
    if isinstance(X, Blocks):
        for part in X.gathered(_seen, found):
            found.merge(part)
        return
    for start in range(0, X.shape[0], step):
        found.update(X[start : start + step], None)


def _see_beside(found: ExplainedVariance, X: Any, X_hat: Any, step: int) -> None:
    if isinstance(X, Blocks):
        for part in _explained_far(X, X_hat, found):
            found.merge(part)
        return
    for block, block_hat in _reconstructions(X, X_hat, step):
        found.update(block, block_hat)


def _explained_far(rows: Blocks, X_hat: Any, empty: ExplainedVariance) -> list[ExplainedVariance]:
    """What `empty` becomes by the rows of each block, beside their reconstructions."""
    if callable(X_hat):
        return rows.gathered(_seen, empty, X_hat)
    if not (is_dask(X_hat) or isinstance(X_hat, np.ndarray)):
        raise TypeError(
            "X_hat: beside a dask array expected another, an array in memory, or a function that maps a block of X to its "
            f"reconstruction, got {type(X_hat).__name__}"
        )
    if len(X_hat.shape) != 2 or X_hat.shape[1] != rows.d:
        raise ValueError(f"X_hat: expected {rows.d} columns as X has, got shape {X_hat.shape}")
    return rows.gathered(seen_beside, empty, beside=[("X_hat", X_hat)])


def _seen(
    block: np.ndarray, empty: ExplainedVariance, function: Callable[..., Any] | None = None
) -> ExplainedVariance:
    return seen_beside(block, None if function is None else function(block), empty)


def seen_beside(block: np.ndarray, block_hat: Any, empty: ExplainedVariance) -> ExplainedVariance:
    """An accumulator of the settings of `empty`, which several tasks share, that has seen these rows."""
    found = copy.copy(empty)
    found._tokens = []
    return found.update(block, block_hat)
