"""What can be said of a dictionary and its codes: explained variance, coherence, stability."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse
import scipy.special

from . import _core
from ._config import context

__all__ = [
    "Coherence",
    "ExplainedVariance",
    "ExplainedVarianceResult",
    "Stability",
    "coherence",
    "explained_variance",
    "stability",
    "welch_bound",
]

_LOW_BITS = 13  # as in csrc/include/atoms.h
_BINS = (0x3F800000 >> _LOW_BITS) + 1
_SLOTS = 128  # bins refined in one pass: 8 MB for each thread
_PARALLEL = 1.0 - 2.0**-20  # cosines from here on are 1 up to the rounding of float32 products

CONVENTIONS = (
    "centered",
    "uncentered",
    "metric",
    "metric_centered",
    "metric_uncentered",
    "scalar_mean",
    "variance_of_error",
)


# ---------------------------------------------------------------------- arrays


def _rows(a: Any, name: str) -> np.ndarray:
    """``a`` as a two-dimensional array, nothing copied that is an array already."""
    array = a if isinstance(a, np.ndarray) else np.asarray(a)
    if array.ndim != 2:
        raise ValueError(
            f"{name}: expected two dimensions (rows, d_in), got shape {array.shape}; "
            f"reshape it to one row for each sample or atom"
        )
    if array.shape[1] < 1:
        raise ValueError(f"{name}: expected at least one column, got shape {array.shape}")
    return array


def _native(block: np.ndarray, name: str) -> np.ndarray:
    """A block in a type and layout that the core reads; others (integers, swapped bytes) as float64."""
    kind = block.dtype
    supported = kind in (np.float16, np.float32, np.float64) or kind.name == "bfloat16"
    whole = all(s % kind.itemsize == 0 for s in block.strides)
    if supported and kind.isnative and block.flags.aligned and whole:
        return block
    if kind.kind not in "biuf" and kind.name != "bfloat16":
        raise TypeError(f"{name}: expected real numbers, got dtype {kind}; convert it to float32")
    return np.ascontiguousarray(block, dtype=np.float64)


def _whitener(metric: Any, d: int) -> np.ndarray | None:
    """The symmetric square root of the metric, checked against the dimension; None stays None."""
    if metric is None:
        return None
    whitener = getattr(metric, "whitener_", None)
    if whitener is None:
        raise ValueError(
            "metric: expected a fitted AtomicInnerProduct or None, got "
            f"{type(metric).__name__} without whitener_; call fit first"
        )
    whitener = np.ascontiguousarray(whitener, dtype=np.float64)
    if whitener.shape != (d, d):
        raise ValueError(
            f"metric: expected one of dimension {d} as the data has, got {whitener.shape[0]}; "
            "fit it on activations of the same layer"
        )
    return whitener


def _unit_rows(
    D: Any, metric: Any, num_threads: int | None, name: str = "D"
) -> tuple[np.ndarray, np.ndarray]:
    """Whitened rows of unit norm in float32, and the norms they had in float64."""
    D = _rows(D, name)
    whitener = _whitener(metric, D.shape[1])
    unit = np.empty(D.shape, np.float32)
    norms = np.empty(D.shape[0])
    step = max(1, (64 << 20) // (8 * D.shape[1]))
    for first in range(0, D.shape[0], step):
        part = slice(first, first + step)
        bad = _core.unit_rows(
            context(num_threads), _native(D[part], name), whitener, unit[part], norms[part]
        )
        if bad >= 0:
            row = np.asarray(D[first + bad], dtype=np.float64)
            what = "all zeros" if np.isfinite(row).all() else "not finite"
            raise ValueError(
                f"{name}: row {first + bad} is {what}; an atom needs a direction: drop or repair it"
            )
    return unit, norms


# ---------------------------------------------------------- explained variance


@dataclass(frozen=True)
class ExplainedVarianceResult:
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


def _convention(convention: str, metric: Any) -> str:
    if convention not in CONVENTIONS:
        raise ValueError(
            f"convention: expected one of {', '.join(CONVENTIONS)}, got {convention!r}"
        )
    if convention.startswith("metric") and metric is None:
        raise ValueError(
            f"convention: {convention!r} needs metric=, a fitted AtomicInnerProduct, got None"
        )
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


def _score(convention: str, n: int, groups: Sequence[tuple]) -> float:
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
    return 1.0 - residual / total  # a quotient of whole numbers is correctly rounded


class ExplainedVariance:
    """Explained variance of a stream of blocks.

    Sums are kept for each coordinate in double-double numbers (about 106 bits) and combined
    exactly, so neither the order of magnitude of the mean nor that of a massive activation costs
    digits, and the total does not depend on how the stream is cut into blocks beyond the last bit.

    Parameters
    ----------
    convention : str
        See :func:`explained_variance`.
    metric : AtomicInnerProduct, optional
        Needed by the metric conventions.
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
        convention: str = "centered",
        metric: Any = None,
        *,
        mean: Any = None,
        massive_norm: float = math.inf,
        num_threads: int | None = None,
    ) -> None:
        if not massive_norm >= 0:
            raise ValueError(f"massive_norm: expected a number >= 0, got {massive_norm!r}")
        self.convention = _convention(convention, metric)
        self.metric = metric
        self.mean = None if mean is None else np.ascontiguousarray(mean, dtype=np.float64)
        self.massive_norm = float(massive_norm)
        self.num_threads = num_threads
        self.n_samples = 0
        self._sums: np.ndarray | None = None
        self._tokens: list[np.ndarray] = []
        self._whitener: np.ndarray | None = None
        self._offset: np.ndarray | None = None

    def _prepare(self, d: int) -> np.ndarray:
        if self._sums is not None:
            if self._sums.shape[2] != d:
                raise ValueError(
                    f"X: expected {self._sums.shape[2]} columns as in earlier blocks, got {d}"
                )
            return self._sums
        if self.mean is not None and self.mean.shape != (d,):
            raise ValueError(f"mean: expected shape ({d},), got {self.mean.shape}")
        if self.convention.startswith("metric"):
            self._whitener = _whitener(self.metric, d)
        if self.mean is not None:
            if self.convention == "scalar_mean":
                self._offset = np.full(d, math.fsum(self.mean) / d)
            elif self.convention in ("centered", "metric_centered"):
                self._offset = (
                    self.mean if self._whitener is None else (self.mean[None] @ self._whitener)[0]
                )
                self._offset = np.ascontiguousarray(self._offset)
        self._sums = np.zeros((2, 8, d))
        return self._sums

    def update(self, X: Any, X_hat: Any) -> ExplainedVariance:
        """Add samples X (n, d) and their reconstructions X_hat (n, d)."""
        X = _rows(X, "X")
        if X_hat is not None:
            X_hat = _rows(X_hat, "X_hat")
            if X_hat.shape != X.shape:
                raise ValueError(f"X_hat: expected shape {X.shape} as X has, got {X_hat.shape}")
        sums = self._prepare(X.shape[1])
        before = sums.copy()  # a block with a bad row leaves no trace
        step = max(1, (64 << 20) // (8 * X.shape[1]))
        tokens = np.empty((X.shape[0], 4))
        try:
            for first in range(0, X.shape[0], step):
                part = slice(first, first + step)
                bad = _core.ev_update(
                    context(self.num_threads),
                    _native(X[part], "X"),
                    None if X_hat is None else _native(X_hat[part], "X_hat"),
                    self._whitener,
                    self._offset,
                    self.massive_norm,
                    sums,
                    tokens[part],
                )
                if bad >= 0:
                    row = np.asarray(X[first + bad], dtype=np.float64)
                    name = "X_hat" if X_hat is not None and np.isfinite(row @ row) else "X"
                    raise ValueError(
                        f"{name}: row {self.n_samples + first + bad} holds NaN, infinity or a "
                        "square beyond float64; drop or repair it"
                    )
        except BaseException:
            sums[:] = before
            raise
        self._tokens.append(tokens)
        self.n_samples += X.shape[0]
        return self

    def merge(self, other: ExplainedVariance) -> ExplainedVariance:
        """Add what another accumulator of the same settings has seen, after one's own samples."""
        same = (
            self.convention == other.convention
            and self.massive_norm == other.massive_norm
            and (self.mean is None) == (other.mean is None)
            and (self.mean is None or np.array_equal(self.mean, other.mean))
        )
        if not same:
            raise ValueError(
                "other: expected the same convention, mean and massive_norm, got "
                f"{other.convention}, {other.massive_norm}"
            )
        if other._sums is None:
            return self
        mine = self._prepare(other._sums.shape[2])
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
        array = _rows(X_hat, "X_hat")
        if array.shape != X.shape:
            raise ValueError(f"X_hat: expected shape {X.shape} as X has, got {array.shape}")
        for first in range(0, n, step):
            yield X[first : first + step], array[first : first + step]
    elif isinstance(X_hat, Iterable):
        first = 0
        for block in X_hat:
            block = _rows(block, "X_hat")
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
    convention: str = "centered",
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
        float32, float64, float16, bfloat16 or integers; memory maps and any strides.
    X_hat : array (n, d), callable, or iterable of blocks
        A callable gets blocks of X and returns their reconstructions; an iterable yields
        reconstructions of consecutive rows of X, n in all.
    convention : str
        One of the above; the result carries it.
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
    deviations; a mean rounded to float32 scores what it deserves, about
    -4e-15 (mean / deviation)^2.

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
    X = _rows(X, "X")
    convention = _convention(convention, metric)
    if X.shape[0] == 0:
        raise ValueError(f"X: expected at least one sample, got shape {X.shape}")
    if not massive_multiple > 0:
        raise ValueError(f"massive_multiple: expected a number > 0, got {massive_multiple!r}")
    step = block_size or max(1, (32 << 20) // (4 * X.shape[1]))
    if not isinstance(step, int) or step < 1:
        raise ValueError(f"block_size: expected a positive integer or None, got {block_size!r}")
    first = ExplainedVariance("uncentered", num_threads=num_threads)
    for start in range(0, X.shape[0], step):
        first.update(X[start : start + step], None)
    assert first._sums is not None
    mean = (first._sums[0, 0] + first._sums[0, 1]) / X.shape[0]
    norms = np.sqrt(np.concatenate(first._tokens)[:, 0])
    second = ExplainedVariance(
        convention,
        metric,
        mean=mean,
        massive_norm=massive_multiple * float(np.median(norms)),
        num_threads=num_threads,
    )
    for block, block_hat in _reconstructions(X, X_hat, step):
        second.update(block, block_hat)
    return second.result()


# ------------------------------------------------------------------- coherence


class _Cosines:
    """|cosines| of all pairs i < j of unit rows, by their ranks, without holding them.

    A float32 magnitude is ordered as its bits are. One pass counts the upper bits (coarse bins);
    a further pass counts the lower bits within the bins that are asked for, so ranks and counts
    are exact whatever the ties.
    """

    def __init__(self, unit: np.ndarray, num_threads: int | None) -> None:
        self.unit = unit
        self.num_threads = num_threads
        self.n_pairs = unit.shape[0] * (unit.shape[0] - 1) // 2
        counts = np.zeros(_BINS, np.int64)
        _core.cosine_histogram(context(num_threads), unit, counts)
        self.below = np.concatenate([[0], np.cumsum(counts)])  # below[b]: values in bins < b
        self.fine: dict[int, np.ndarray] = {}

    def refine(self, bins: Iterable[int]) -> None:
        wanted = sorted({int(b) for b in bins} - self.fine.keys())
        for start in range(0, len(wanted), _SLOTS):
            some = wanted[start : start + _SLOTS]
            slot = np.full(_BINS, -1, np.int32)
            slot[some] = np.arange(len(some), dtype=np.int32)
            counts = np.zeros((len(some), 1 << _LOW_BITS), np.int64)
            _core.cosine_refine(context(self.num_threads), self.unit, slot, counts)
            self.fine.update(zip(some, np.cumsum(counts, axis=1)))

    def at_ranks(self, ranks: np.ndarray) -> np.ndarray:
        """Values of the given ranks, 0 the smallest."""
        bins = np.searchsorted(self.below, ranks, side="right") - 1
        self.refine(bins)
        bits = [
            (int(b) << _LOW_BITS)
            + int(np.searchsorted(self.fine[int(b)], rank - self.below[b], side="right"))
            for b, rank in zip(bins, ranks)
        ]
        return np.array(bits, np.uint32).view(np.float32)

    @staticmethod
    def _bits(limit: float) -> int:
        """Bits of the smallest float32 that is not below ``limit``, or one past those of 1."""
        if limit > 1.0:
            return 0x3F800001
        value = np.float32(limit)
        if float(value) < limit:
            value = np.nextafter(value, np.float32(2))
        return int(value.view(np.uint32))

    def bounds_below(self, limit: float) -> tuple[int, int]:
        """Least and largest possible number of values < limit, from the coarse bins alone."""
        bits = self._bits(limit)
        if bits > 0x3F800000:
            return self.n_pairs, self.n_pairs
        b, low = bits >> _LOW_BITS, bits & ((1 << _LOW_BITS) - 1)
        return int(self.below[b]), int(self.below[b + 1] if low else self.below[b])

    def count_below(self, limit: float) -> int:
        """Number of values < limit."""
        least, most = self.bounds_below(limit)
        if least == most:
            return least
        bits = self._bits(limit)
        b, low = bits >> _LOW_BITS, bits & ((1 << _LOW_BITS) - 1)
        self.refine([b])
        return least + int(self.fine[b][low - 1])


def _check_q(q: Any, name: str) -> np.ndarray:
    q = np.atleast_1d(np.asarray(q, dtype=np.float64))
    if q.ndim != 1 or not ((q >= 0) & (q <= 1)).all():
        raise ValueError(f"{name}: expected numbers between 0 and 1, got {q!r}")
    return q


def welch_bound(n: int, d: int) -> float:
    """Least root mean square |cosine| over the pairs of n unit vectors in d dimensions.

    sqrt((n - d) / (d (n - 1))) for n > d, else 0 (Welch 1974). The mutual coherence, being the
    largest, is no smaller. Reached by unit-norm tight frames; by the largest |cosine| only
    where an equiangular tight frame exists.

    >>> from atoms.theory import welch_bound
    >>> round(welch_bound(4 * 576, 576), 5)
    0.03609
    """
    if n < 1 or d < 1:
        raise ValueError(f"n, d: expected positive integers, got {n}, {d}")
    return math.sqrt((n - d) / (d * (n - 1))) if n > d else 0.0


class Coherence:
    """|cosine| over all pairs of atoms; what :func:`coherence` returns.

    Attributes
    ----------
    max : float
        The mutual coherence. 0 for a single atom.
    quantiles : dict
        {q: value} for the q asked for.
    n_pairs : int
    shape : tuple
        (d_sae, d_in)
    norms : ndarray (d_sae,) float64
        Norms the atoms had, in the metric where one was given.
    """

    def __init__(
        self, D: Any, metric: Any, quantiles: Any, method: str, num_threads: int | None
    ) -> None:
        if method not in ("linear", "inverted_cdf"):
            raise ValueError(f"method: expected 'linear' or 'inverted_cdf', got {method!r}")
        wanted = _check_q(quantiles, "quantiles")
        unit, self.norms = _unit_rows(D, metric, num_threads)
        if unit.shape[0] == 0:
            raise ValueError(f"D: expected at least one atom, got shape {unit.shape}")
        self.shape = unit.shape
        self.method = method
        self._cosines = _Cosines(unit, num_threads)
        self.n_pairs = self._cosines.n_pairs
        values = self.quantile(np.append(wanted, 1.0))
        self.max = float(values[-1])
        self.quantiles = {float(q): float(v) for q, v in zip(wanted, values)}

    def quantile(self, q: Any, method: str | None = None) -> np.ndarray:
        """|cosine| at any quantiles over pairs, exact; (len(q),) float64. Costs a pass over all pairs."""
        q = _check_q(q, "q")
        n = self.n_pairs
        if n == 0:
            return np.zeros(len(q))
        if (method or self.method) == "inverted_cdf":
            ranks = np.clip(np.ceil(q * n).astype(np.int64) - 1, 0, n - 1)
            return self._cosines.at_ranks(ranks).astype(np.float64)
        position = q * (n - 1)
        low = np.floor(position).astype(np.int64)
        part = position - low
        both = self._cosines.at_ranks(np.concatenate([low, np.minimum(low + 1, n - 1)]))
        a, b = both.astype(np.float64).reshape(2, -1)
        return np.where(part < 0.5, a + (b - a) * part, b - (b - a) * (1 - part))

    def share_below(self, limit: float) -> float:
        """Share of the pairs with |cosine| < limit, exact; 1 for a single atom."""
        return self._cosines.count_below(limit) / self.n_pairs if self.n_pairs else 1.0

    @property
    def rms(self) -> float:
        """Root mean square |cosine| over pairs: sqrt((||U'U||_F^2 - n) / (n (n - 1))), in float64."""
        if self.n_pairs == 0:
            return 0.0
        n, d = self.shape
        gram = np.zeros((d, d))
        for first in range(0, n, 4096):
            block = self._cosines.unit[first : first + 4096].astype(np.float64)
            gram += block.T @ block
        own = np.einsum("ij,ij->i", self._cosines.unit, self._cosines.unit, dtype=np.float64)
        return math.sqrt(max(0.0, (float((gram**2).sum()) - float((own**2).sum())) / (n * (n - 1))))

    @property
    def welch_bound(self) -> float:
        """The least `rms` (hence the least `max`) that this shape allows."""
        return welch_bound(*self.shape)

    def histogram(self, bins: int = 200) -> tuple[np.ndarray, np.ndarray]:
        """Counts over `bins` equal intervals of [0, 1] and their edges, to the width of the
        coarse bins (a thousandth of the value)."""
        edges = np.linspace(0.0, 1.0, bins + 1)
        below = [self._cosines.bounds_below(e)[0] for e in edges[:-1]] + [self.n_pairs]
        return np.diff(below), edges

    def __repr__(self) -> str:
        return f"Coherence(max={self.max:.6g}, quantiles={self.quantiles}, shape={self.shape})"


def coherence(
    D: Any,
    metric: Any = None,
    quantiles: Any = (0.5, 0.9, 0.99, 0.999),
    *,
    method: str = "linear",
    num_threads: int | None = None,
) -> Coherence:
    """Mutual coherence of a dictionary and any quantiles of |cosine| over all pairs of atoms.

    Parameters
    ----------
    D : array (d_sae, d_in)
        Atoms as rows (`W_dec`), of any norms but zero, any float type.
    metric : AtomicInnerProduct, optional
        Cosines are then u'Sv / sqrt(u'Su v'Sv); Euclidean without.
    quantiles : sequence of float
        Quantiles over the d_sae (d_sae - 1) / 2 pairs i < j.
    method : {"linear", "inverted_cdf"}
        As in :func:`numpy.quantile`.
    num_threads : int, optional

    Returns
    -------
    Coherence
        `.max`, `.quantiles`, and `.quantile(q)` for more of them later.

    Raises
    ------
    ValueError
        An atom that is zero or not finite (with its row).

    Notes
    -----
    Atoms are whitened and normalised in float64 and rounded to float32; a cosine is the float32
    product of two such rows as the BLAS gives it in tiles of fixed size, at most 1. Of these
    numbers max and quantiles are exact order statistics, ties included, and the same to the bit
    for any number of threads; they lie within about sqrt(d_in) 6e-8 of the true cosines.

    Time: two passes of d_sae^2 d_in operations. Memory: 4 d_sae d_in bytes for the rows and some
    10 MB for each thread; the d_sae x d_sae matrix is never held. A :class:`Coherence` keeps the
    rows so that more quantiles can be asked for.

    Examples
    --------
    >>> import numpy as np
    >>> from atoms.theory import coherence
    >>> c = coherence([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]], quantiles=[0.0, 0.5])
    >>> round(c.max, 6), c.quantiles[0.0]
    (0.707107, 0.0)
    """
    return Coherence(D, metric, quantiles, method, num_threads)


# ------------------------------------------------------------------- stability


def _l0(l0: Any) -> np.ndarray:
    """Active latents of each sample from codes or from their numbers, sorted int64."""
    if scipy.sparse.issparse(l0):
        codes = l0.tocsr()
        counts = np.diff(codes.indptr)
        if not codes.data.all():
            zeros = np.concatenate([[0], np.cumsum(codes.data == 0)])
            counts = counts - np.diff(zeros[codes.indptr])
    else:
        counts = np.atleast_1d(np.asarray(l0))
        if counts.ndim != 1:
            raise ValueError(
                f"l0: expected one number for each sample or sparse codes, got shape {counts.shape}"
            )
        if counts.size and not (np.isfinite(counts).all() and (counts == np.floor(counts)).all()):
            raise ValueError(
                "l0: expected whole numbers of active latents for each sample, got others; "
                "pass the codes or their counts, not a mean"
            )
    if counts.size == 0:
        raise ValueError("l0: expected at least one sample, got none")
    if counts.min() < 0:
        raise ValueError(f"l0: expected numbers >= 0, got {counts.min()}")
    return np.sort(counts.astype(np.int64))


def _uniqueness_limit(k: int) -> float:
    """mu must be below this for K-sparse codes to be unique: 1/(2K-1), no limit for K = 0."""
    return 1.0 / (2 * k - 1) if k else math.inf


def _crossing(levels: np.ndarray, reach: np.ndarray, share: Callable[[int], float]) -> float:
    """sup {q : q <= share(K_q)}: K_q = levels[i] for q in (reach[i-1], reach[i]], share falling."""
    best, before = 0.0, 0.0
    for k, to in zip(levels.tolist(), reach.tolist()):
        s = share(k)
        if s <= before:
            break
        best = min(to, s)
        if s < to:
            break
        before = to
    return best


@dataclass(frozen=True)
class Stability:
    """Stability of a dictionary at the L0 of its codes; what :func:`stability` returns.

    Attributes
    ----------
    q_star : float
        sup{q : mu_q < 1/(2 K_q - 1)}.
    l0_quantiles : dict
        K_q at q = 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.
    q, mu, l0, bound : ndarray
        The curve: mu_q (|cosine| over pairs), K_q (L0 over samples) and 1/(2 K_q - 1).
    ceiling : float
        Least upper bound of q_star over *all* dictionaries of this shape at this L0.
    ceiling_at_max : float
        The bound over dictionaries whose mutual coherence is no larger than this one's.
    ceiling_equiangular : float
        q_star of a frame all of whose |cosines| equal the Welch bound (it need not exist).
    q_star_random : float
        q_star of uniformly random directions of this shape at this L0.
    max : float
        Mutual coherence.
    welch_bound : float
    shape : tuple
        (d_sae, d_in)
    n_samples : int
    """

    q_star: float
    l0_quantiles: dict[float, int]
    ceiling: float
    ceiling_at_max: float
    ceiling_equiangular: float
    q_star_random: float
    max: float
    welch_bound: float
    shape: tuple[int, int]
    n_samples: int
    q: np.ndarray = field(repr=False, compare=False)
    mu: np.ndarray = field(repr=False, compare=False)
    l0: np.ndarray = field(repr=False, compare=False)
    bound: np.ndarray = field(repr=False, compare=False)

    @property
    def curve(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(q, mu_q, 1/(2 K_q - 1))"""
        return self.q, self.mu, self.bound

    def __float__(self) -> float:
        return self.q_star


_CURVE = np.concatenate([np.arange(1, 100) / 100, [0.995, 0.999, 0.9995, 0.9999, 1.0]])


def stability(
    D: Any,
    l0: Any,
    metric: Any = None,
    *,
    curve: Any = _CURVE,
    num_threads: int | None = None,
) -> Stability:
    r"""The paper's q* of a dictionary at the sparsity of its codes, with what bounds it.

    q* = sup{q : mu_q < 1/(2 K_q - 1)}, where mu_q is the q-quantile of |cosine| over **pairs**
    of atoms and K_q the q-quantile of L0 over **samples** (both as inverse distribution
    functions: the smallest value that a share q does not exceed). mu_q rises with q and
    1/(2 K_q - 1) falls, so q* is where they cross.

    Parameters
    ----------
    D : array (d_sae, d_in) or Coherence
        Atoms as rows, or what :func:`coherence` gave for them (then `metric` is not needed).
    l0 : array of int (n,) or sparse codes (n, d_sae)
        Active latents of each sample.
    metric : AtomicInnerProduct, optional
    curve : sequence of float
        The q of the curve that is returned.
    num_threads : int, optional

    Returns
    -------
    Stability

    Raises
    ------
    ValueError
        As :func:`coherence`; `l0` empty, negative or not whole.

    Notes
    -----
    *Edge cases.* A sample with L0 = 0 has a unique code under any dictionary (no limit on mu);
    L0 = 1 asks mu_q < 1, and cosines above 1 - 2^-20 count as 1, for parallel atoms rarely
    multiply to exactly 1 in float32. An orthonormal dictionary has mu = 0 and q* = 1 at any L0,
    dense codes included: q* says nothing without `l0_quantiles`.

    *Random dictionaries.* For independent uniform directions in R^d, cos^2 follows
    Beta(1/2, (d-1)/2). `q_star_random` is the crossing of that distribution with the same L0:
    q* is close to a function of L0 and d alone, and a dictionary that beats it by little has
    shown little.

    *Ceilings.* The Welch bound fixes the mean of cos^2 over pairs from below:
    w^2 = (n-d)/(d(n-1)) for n = d_sae > d = d_in. If a share G of the pairs has |cos| < t and no
    pair exceeds M, then G t^2 + (1-G) M^2 >= w^2, so G <= min(1, (M^2 - w^2)/(M^2 - t^2)).
    Crossing this G at t = 1/(2K-1) with the distribution of L0 bounds q*.

    - `ceiling` takes M = 1. No dictionary scores above it, and it is sharp: where n is a multiple
      of d, n/d copies of one orthonormal basis have G = 1 - w^2 for every t. It therefore is
      close to 1 at any L0: q*, being a quantile, forgives exact duplicates.
    - `ceiling_at_max` takes M = the mutual coherence of D: the bound for dictionaries that are
      no more coherent than this one at their worst pair.
    - `ceiling_equiangular` is the share of samples with 1/(2K-1) > w: what a dictionary gets
      whose *worst* pair is as good as the shape allows. It bounds the q at which uniqueness
      is guaranteed for the whole dictionary, max_{i != j}|cos| < 1/(2K_q - 1), for every
      dictionary of the shape. It does not bound q* itself: at large L0 a spread of cosines, random
      ones included, puts more pairs below t < w than equal ones do.

    Time and memory: as :func:`coherence`.

    Examples
    --------
    >>> import numpy as np
    >>> from atoms.theory import stability
    >>> s = stability(np.eye(8), l0=[8, 8, 8])
    >>> s.q_star, s.l0_quantiles[0.5]
    (1.0, 8)
    """
    c = D if isinstance(D, Coherence) else coherence(D, metric, (), num_threads=num_threads)
    counts = _l0(l0)
    n, d = c.shape
    levels, last = np.unique(counts, return_index=True)
    reach = np.append(last[1:], len(counts)) / len(counts)
    w2 = welch_bound(n, d) ** 2

    def limit(k: int) -> float:
        return _uniqueness_limit(k) if k != 1 else _PARALLEL

    def at_most(largest: float) -> Callable[[int], float]:
        def share(k: int) -> float:
            t = _uniqueness_limit(k)
            if t >= largest or t * t >= w2:
                return 1.0
            return max(0.0, (largest**2 - w2) / (largest**2 - t * t))

        return share

    def random(k: int) -> float:
        t = min(1.0, _uniqueness_limit(k))
        if n == 1:
            return 1.0
        if d == 1:
            return float(k == 0)
        return float(scipy.special.betainc(0.5, (d - 1) / 2, t * t))

    q = np.unique(_check_q(curve, "curve"))
    mu = c.quantile(q, "inverted_cdf")
    k = counts[np.clip(np.ceil(q * len(counts)).astype(np.int64) - 1, 0, None)]
    return Stability(
        q_star=_crossing(levels, reach, lambda k: c.share_below(limit(k))),
        l0_quantiles={
            p: int(counts[max(0, math.ceil(p * len(counts)) - 1)])
            for p in (0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
        },
        ceiling=_crossing(levels, reach, at_most(1.0)),
        ceiling_at_max=_crossing(levels, reach, at_most(c.max)),
        ceiling_equiangular=_crossing(
            levels, reach, lambda k: float(_uniqueness_limit(k) ** 2 > w2)
        ),
        q_star_random=_crossing(levels, reach, random),
        max=c.max,
        welch_bound=math.sqrt(w2),
        shape=(n, d),
        n_samples=len(counts),
        q=q,
        mu=mu,
        l0=k,
        bound=np.array([_uniqueness_limit(int(v)) for v in k]),
    )
