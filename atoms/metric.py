"""The atomic inner product: the metric in which activations look isotropic."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from . import _core
from ._checks import check_array, check_count, first_nonfinite_row, nonfinite_error, why_not_finite
from ._config import context
from ._estimator import Estimator
from ._files import check_tensor, load_tensors, reading, save_tensors

__all__ = ["AngleHistogram", "AtomicInnerProduct", "EigenvalueErrors"]

Array = npt.NDArray[Any]
_T = TypeVar("_T")

_SHIFT_ROWS = 1024  # rows whose mean is subtracted before centred moments are summed


class EigenvalueErrors(NamedTuple):
    """Standard errors of eigenvalues, in the order of ``eigenvalues_`` (largest variance first)."""

    second_moment: Array
    """Of ``eigenvalues_``, the eigenvalues of the second moment after shrinkage."""
    metric: Array
    """Of ``1 / eigenvalues_``, the eigenvalues of the metric."""


@dataclass(frozen=True)
class AngleHistogram:
    """Angles between pairs of vectors, in degrees: what `AtomicInnerProduct.angles` found."""

    mean: float
    """Mean angle; NaN where there is no pair."""
    std: float
    """Standard deviation of the angles (divided by the number of pairs)."""
    counts: Array
    """(bins,) int64: pairs in each bin."""
    bin_edges: Array
    """(bins + 1,) float64: equal bins of [0, 180] degrees, as `numpy.histogram` gives them."""
    n_pairs: int
    """Pairs with an angle."""
    n_skipped: int
    """Pairs left out because one of the two vectors is zero."""
    geometry: str
    """"metric" or "euclidean"."""

    def quantile(self, q: Any) -> Any:
        """Angles below which a share q of the pairs lies, interpolated within bins."""
        share = np.concatenate([[0.0], np.cumsum(self.counts)]) / max(1, self.n_pairs)
        return np.interp(q, share, self.bin_edges)


class AtomicInnerProduct(Estimator):
    r"""The atomic inner product of activations, and the whitening that makes it a dot product.

    For activations :math:`x \in R^d` the metric is the inverse second moment,

    .. math:: S = \left(\frac{1}{n} \sum_i x_i x_i^T\right)^{-1}, \qquad
              \langle u, v \rangle_S = u^T S v = (S^{1/2} u) \cdot (S^{1/2} v),

    *uncentred* as published; with ``centered=True`` the mean is removed first, and S is the
    inverse covariance (divided by n, not n - 1).

    Parameters
    ----------
    centered : bool
        Remove the mean of the activations. Uncentred, the mean direction counts as signal.
    shrinkage : None, float, "ledoit_wolf" or "oas"
        The second moment C becomes ``(1 - a) C + a (trace(C) / d) I`` before it is inverted.
        None is a = 0, a number in [0, 1] is a itself; the two names estimate a, see Notes.
    num_threads : int or None
        Threads; None for the package's setting (`atoms.set_num_threads`). Results do not depend
        on it, to the bit.

    Attributes
    ----------
    n_samples_seen_, n_features_in_ : int
    mean_ : (d,) float64
        Mean of the activations, centred or not.
    second_moment_ : (d, d) float64
        Second moment, or covariance when ``centered``, before shrinkage.
    shrinkage_ : float
        The a in use.
    eigenvalues_ : (d,) float64
        Of the second moment after shrinkage, descending; the metric's are their reciprocals.
    eigenvectors_ : (d, d) float64
        Columns, in the order of `eigenvalues_`.
    metric_ : (d, d) float64
        S.
    whitener_ : (d, d) float64
        The symmetric square root of S.
    unwhitener_ : (d, d) float64
        Its inverse, the symmetric square root of the second moment after shrinkage.
    condition_number_ : float
        Largest over smallest of `eigenvalues_`.
    effective_rank_ : float
        Exponential of the entropy of the eigenvalues of `second_moment_`, as shares of their sum
        (Roy and Vetterli, 2007): between 1 and d.

    Notes
    -----
    *Numbers.* Sums run in float64. Products of float32 (and narrower) values are exact, and at
    most 256 rows are summed before they join the total, so the result is within 1e-12 of the
    exact one, relative to the size of the terms. With ``centered=True`` the mean of the first
    rows seen is subtracted before anything is squared, so a large common offset costs no digits.
    How a stream is cut into `partial_fit` calls changes rounding, nothing else.

    *Cost.* ``fit``: n d (d + 1) floating-point operations, half of ``X.T @ X``, and O(d^3) for
    the eigenvectors. Memory: 8 MB (1,024 rows in float64, if that is more) and four d x d
    matrices; X is converted block by block.

    *Shrinkage.* With y the samples (centred if ``centered``), C their second moment, m =
    trace(C)/d and norms of Frobenius:

    - "ledoit_wolf": a = min(b, e) / e with e = ||C - m I||^2 and b = (mean ||y||^4 - ||C||^2)/n
      (Ledoit and Wolf, 2004, A well-conditioned estimator for large-dimensional covariance
      matrices).
    - "oas": a = min(1, (p + m^2) / ((n + 1)(p - m^2/d))) with p = ||C||^2 / d^2 (Chen, Wiesel,
      Eldar and Hero, 2010, Shrinkage algorithms for MMSE covariance estimation, equation 23
      without its terms in 2/d, as scikit-learn has it). It supposes Gaussian samples.

    Source: "Towards Atoms of Large Language Models" (arXiv 2509.20784), the definition of the
    atomic inner product.

    Examples
    --------
    >>> import numpy as np
    >>> from atoms import AtomicInnerProduct
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((2000, 8)) @ rng.standard_normal((8, 8)) + 3
    >>> aip = AtomicInnerProduct().fit(X)
    >>> Z = aip.whiten(X)
    >>> np.allclose(Z.T @ Z / len(Z), np.eye(8), atol=1e-5)
    True
    """

    n_samples_seen_: int
    n_features_in_: int

    _centered: bool

    def __init__(
        self,
        centered: bool = False,
        shrinkage: float | str | None = None,
        num_threads: int | None = None,
    ) -> None:
        self.centered = centered
        self.shrinkage = shrinkage
        self.num_threads = num_threads

    # ------------------------------------------------------------------ fitting

    def fit(self, X: Any, y: Any = None) -> AtomicInnerProduct:
        """Estimate the metric from activations, forgetting any seen before.

        Parameters
        ----------
        X : (n, d) array of float32, float64, float16 or bfloat16
            Any strides, memory maps included; other numbers are converted to float64.
        y : ignored

        Where X is rejected, what was fitted before stays as it was.

        Raises
        ------
        ValueError
            Too few samples for the dimension, or a singular second moment, without shrinkage;
            NaN or infinity in X (the message names the row); a bad parameter.
        """
        self._check_parameters()
        with self._unchanged_on_error():
            X = self._check_X(X, reset=True)
            self._accumulate(X, reset=True)
            self._spectrum()
        return self

    def partial_fit(self, X: Any, y: Any = None) -> AtomicInnerProduct:
        """Add activations to those already seen. What is derived is computed when asked for.

        Where X is rejected, what was seen before stays as it was.
        """
        self._check_parameters()
        first = not self.__sklearn_is_fitted__()
        with self._unchanged_on_error():
            X = self._check_X(X, reset=first)
            self._accumulate(X, reset=first)
        return self

    def merge(self, other: AtomicInnerProduct) -> AtomicInnerProduct:
        """Add what `other` has seen, for example another part of the data on another machine.

        Returns self; `other` stays as it is. The result is that of one fit on both parts, up to
        rounding.
        """
        if not isinstance(other, AtomicInnerProduct):
            raise TypeError(f"other: expected an AtomicInnerProduct, got {type(other).__name__}")
        other._check_fitted()
        if not self.__sklearn_is_fitted__():
            self._check_parameters()
            if bool(self.centered) != other._centered:
                raise ValueError(_DIFFERENT.format("centered", self.centered, other._centered))
            self.n_features_in_, self._centered = other.n_features_in_, other._centered
            self._set_state(
                other.n_samples_seen_,
                other._shift.copy(),
                other._sum.copy(),
                other._second.copy(),
                None if other._norms is None else other._norms.copy(),
            )
            return self
        if other.n_features_in_ != self.n_features_in_:
            raise ValueError(_DIFFERENT.format("n_features_in_", self.n_features_in_, other.n_features_in_))
        if other._centered != self._centered:
            raise ValueError(_DIFFERENT.format("centered", self._centered, other._centered))
        total, second, norms = other._about(self._shift)
        self._set_state(
            self.n_samples_seen_ + other.n_samples_seen_,
            self._shift,
            self._sum + total,
            self._second + second,
            None if norms is None or self._norms is None else self._norms + norms,
        )
        return self

    @contextlib.contextmanager
    def _unchanged_on_error(self) -> Iterator[None]:
        """What was fitted before survives an error, or Ctrl-C, inside."""
        before = dict(vars(self))
        try:
            yield
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    def _check_parameters(self) -> None:
        if not isinstance(self.centered, (bool, np.bool_)):
            raise ValueError(f"centered: expected True or False, got {self.centered!r}")
        a = self.shrinkage
        if isinstance(a, str):
            good = a in ("ledoit_wolf", "oas")
        else:
            good = a is None or (isinstance(a, (int, float, np.number)) and 0 <= a <= 1)
        if not good:
            raise ValueError(
                f"shrinkage: expected None, a number in [0, 1], 'ledoit_wolf' or 'oas', got {a!r}"
            )

    def _accumulate(self, X: Array, reset: bool) -> None:
        ctx = context(self.num_threads)
        n, d = X.shape
        if reset:
            self._centered = bool(self.centered)
            shift = np.zeros(d)
            if self._centered:
                shift = np.asarray(X[:_SHIFT_ROWS], dtype=np.float64).mean(axis=0)
        else:
            shift = self._shift
        total, second = np.empty(d), np.empty((d, d))
        try:
            _core.moments(ctx, X, shift if self._centered else None, total, second)
        except ValueError as error:
            raise why_not_finite(X, "X", error) from None
        if not np.isfinite(second.diagonal()).all():
            raise why_not_finite(X, "X", None)
        norms = None
        if self.shrinkage == "ledoit_wolf":
            norms = _norm_sums(X, shift)
        if reset:
            self._set_state(n, shift, total, second, norms)
            return
        second += self._second
        self._set_state(
            self.n_samples_seen_ + n,
            shift,
            self._sum + total,
            second,
            None if norms is None or self._norms is None else self._norms + norms,
        )

    def _set_state(self, n: int, shift: Array, total: Array, second: Array, norms: Array | None) -> None:
        """What has been seen: n rows y = x - shift, sum y, sum y y', and [sum |y|^2 y, sum |y|^4]."""
        self.n_samples_seen_ = int(n)
        self._shift, self._sum, self._second, self._norms = shift, total, second, norms
        self._derived: dict[str, Any] = {}

    def _about(self, shift: Array) -> tuple[Array, Array, Array | None]:
        """The sums of `_set_state`, about another shift."""
        n, c = self.n_samples_seen_, self._shift - shift
        total = self._sum + n * c
        if not c.any():
            return self._sum, self._second, self._norms
        cross = np.outer(self._sum, c)
        second = self._second + cross + cross.T + n * np.outer(c, c)
        norms = None
        if self._norms is not None:
            # |y + c|^2 = q + 2 t + e with q = |y|^2, t = y.c, e = |c|^2, summed over the rows
            qy, qq = self._norms[:-1], self._norms[-1]
            q, t, e = np.trace(self._second), self._sum @ c, c @ c
            ty = self._second @ c
            norms = np.append(
                qy + 2 * ty + e * self._sum + (q + 2 * t + n * e) * c,
                qq + 4 * (ty @ c) + n * e * e + 4 * (qy @ c) + 2 * q * e + 4 * t * e,
            )
        return total, second, norms

    # --------------------------------------------------------------- attributes

    def _get(self, name: str, compute: Callable[[], _T]) -> _T:
        self._check_fitted()
        if name not in self._derived:
            self._derived[name] = compute()
        value: _T = self._derived[name]
        return value

    @property
    def mean_(self) -> Array:
        return self._get("mean_", lambda: self._shift + self._sum / self.n_samples_seen_)

    @property
    def second_moment_(self) -> Array:
        def compute() -> Array:
            delta = self._sum / self.n_samples_seen_
            second = self._second / self.n_samples_seen_
            return second - np.outer(delta, delta) if self._centered else second

        return self._get("second_moment_", compute)

    @property
    def shrinkage_(self) -> float:
        return self._get("shrinkage_", self._compute_shrinkage)

    @property
    def eigenvalues_(self) -> Array:
        return self._spectrum()[1]

    @property
    def eigenvectors_(self) -> Array:
        return self._spectrum()[2]

    @property
    def metric_(self) -> Array:
        return self._get("metric_", lambda: self._power(-0.5))

    @property
    def whitener_(self) -> Array:
        return self._get("whitener_", lambda: self._power(-0.25))

    @property
    def unwhitener_(self) -> Array:
        return self._get("unwhitener_", lambda: self._power(0.25))

    @property
    def condition_number_(self) -> float:
        values = self.eigenvalues_
        return float(values[0] / values[-1])

    @property
    def effective_rank_(self) -> float:
        share = np.clip(self._spectrum()[0], 0, None)
        share = share[share > 0] / share.sum()
        return float(np.exp(-(share * np.log(share)).sum()))

    def _compute_shrinkage(self) -> float:
        a = self.shrinkage
        if a is None:
            return 0.0
        if not isinstance(a, str):
            return float(a)
        n, d, C = self.n_samples_seen_, self.n_features_in_, self.second_moment_
        size, m = float((C * C).sum()), float(np.trace(C)) / d
        if a == "oas":
            p = size / d**2
            denominator = (n + 1) * (p - m * m / d)
            return 1.0 if denominator <= 0 else min(1.0, (p + m * m) / denominator)
        if self._norms is None:
            raise ValueError(
                "shrinkage='ledoit_wolf' needs sums of fourth powers that were not gathered: set it "
                "before fit, and in every part that is merged"
            )
        about_mean = self._about(self.mean_)[2] if self._centered else self._norms
        assert about_mean is not None
        excess = max(0.0, size - d * m * m)
        noise = (about_mean[-1] / n - size) / n
        return 0.0 if excess == 0 else float(min(max(noise, 0.0), excess) / excess)

    def _spectrum(self) -> tuple[Array, Array, Array]:
        """Eigenvalues of the second moment, the same after shrinkage, eigenvectors; descending."""
        return self._get("spectrum", self._compute_spectrum)

    def _compute_spectrum(self) -> tuple[Array, Array, Array]:
        n, d, a = self.n_samples_seen_, self.n_features_in_, self.shrinkage_
        kind = "covariance" if self._centered else "second moment"
        if a == 0 and n - self._centered < d:
            raise ValueError(_SINGULAR.format(kind=kind, n=n, d=d, need=d + self._centered, ten=10 * d))
        values, vectors = np.linalg.eigh(self.second_moment_)
        values, vectors = values[::-1].copy(), np.ascontiguousarray(vectors[:, ::-1])
        shrunk = (1 - a) * values + a * values.sum() / d
        if not shrunk[-1] > d * np.finfo(float).eps * shrunk[0]:
            rank = int((values > d * np.finfo(float).eps * values[0]).sum())
            raise ValueError(
                _SINGULAR.format(kind=kind, n=n, d=d, need=d + self._centered, ten=10 * d)
                + f" Its numerical rank is {rank}: constant, repeated or linearly dependent features"
                " stay singular however many samples there are."
            )
        return values, shrunk, vectors

    def _power(self, half: float) -> Array:
        """The second moment to the power 2 half; a product with its own transpose: symmetric."""
        _, values, vectors = self._spectrum()
        root = vectors * values**half
        return root @ root.T

    # ---------------------------------------------------------------- whitening

    def _product(
        self, X: Array, name: str, center: Array | None, W: Array, offset: Array | None, out: Array | None
    ) -> Array:
        shape = (X.shape[0], W.shape[1])
        if out is None:
            out = np.empty(shape, dtype=np.float32)
        elif not isinstance(out, np.ndarray):
            raise TypeError(f"out: expected a NumPy array, got {type(out).__name__}")
        try:
            _core.product(context(self.num_threads), X, center, W, offset, out)
        except ValueError as error:
            raise why_not_finite(X, name, error) from None
        return out

    def whiten(self, X: Any, out: Array | None = None) -> Array:
        """Activations in coordinates where the atomic inner product is the dot product.

        Parameters
        ----------
        X : (n, d) array
        out : (n, d) float32 array, optional
            Where to write; C-contiguous, apart from X.

        Returns
        -------
        (n, d) float32
            ``(X - mean_ if centered else X) @ whitener_``, multiplied and summed in float64 and
            rounded once: right to float32 whatever the condition number. A row's result does not
            depend on the other rows. 2 n d^2 operations.
        """
        self._check_fitted()
        X = self._check_X(X, reset=False)
        return self._product(X, "X", self.mean_ if self._centered else None, self.whitener_, None, out)

    def unwhiten(self, Z: Any, out: Array | None = None) -> Array:
        """Activations (n, d) float32 whose whitened coordinates are Z: the inverse of `whiten`."""
        self._check_fitted()
        Z = self._check_width(Z, "Z")
        return self._product(Z, "Z", None, self.unwhitener_, self.mean_ if self._centered else None, out)

    def whiten_directions(self, D: Any) -> Array:
        """Directions, differences or dictionary atoms (m, d) as ``D @ whitener_`` in float32.

        The mean is never subtracted: directions have none.
        """
        self._check_fitted()
        D = self._check_width(D, "D")
        return self._product(D, "D", None, self.whitener_, None, None)

    def transform(self, X: Any) -> Array:
        """`whiten`, as a step of a scikit-learn pipeline."""
        return self.whiten(X)

    def inverse_transform(self, X: Any) -> Array:
        """`unwhiten`, as a step of a scikit-learn pipeline."""
        return self.unwhiten(X)

    def fit_transform(self, X: Any, y: Any = None) -> Array:
        """`fit`, then `whiten`."""
        return self.fit(X).whiten(X)

    def _check_width(self, X: Any, name: str) -> Array:
        a = check_array(X, name)
        if a.shape[1] != self.n_features_in_:
            raise ValueError(f"{name}: expected {self.n_features_in_} columns, as in fit, got {a.shape[1]}")
        return a

    # ----------------------------------------------------------------- geometry

    def _roots(self, U: Any, name: str) -> tuple[Array, bool]:
        """S^{1/2} u for vectors (m, d) or one vector (d,), in float64."""
        self._check_fitted()
        one = np.ndim(U) == 1
        u = check_array(U, name, ndim=1)[None] if one else U
        u = np.asarray(self._check_width(u, name), dtype=np.float64)
        if first_nonfinite_row(u) >= 0:
            raise nonfinite_error(u, name)
        return u @ self.whitener_, one

    def inner(self, U: Any, V: Any) -> Any:
        """Atomic inner products of all vectors of U with all of V, in float64, like `numpy.inner`.

        (p, d) and (q, d) give (p, q); a vector (d,) drops its axis. Vectors are taken as they
        are: no mean is removed.
        """
        (u, one_u), (v, one_v) = self._roots(U, "U"), self._roots(V, "V")
        return _squeeze(u @ v.T, one_u, one_v)

    def norm(self, U: Any) -> Any:
        """Norms in the metric, sqrt(u' S u): (p, d) gives (p,), (d,) a number; float64."""
        u, one = self._roots(U, "U")
        norms = np.linalg.norm(u, axis=1)
        return float(norms[0]) if one else norms

    def cosine(self, U: Any, V: Any) -> Any:
        """Cosines in the metric of all vectors of U with all of V; shapes as in `inner`.

        Cosines with a zero vector are 0, as in scikit-learn.
        """
        (u, one_u), (v, one_v) = self._roots(U, "U"), self._roots(V, "V")
        return _squeeze(np.clip(_unit(u) @ _unit(v).T, -1.0, 1.0), one_u, one_v)

    def angles(
        self,
        X: Any,
        *,
        geometry: str = "metric",
        pairs: int | None = None,
        bins: int = 180,
        random_state: Any = None,
    ) -> AngleHistogram:
        """Histogram of the angles between activations, with mean and standard deviation.

        Parameters
        ----------
        X : (n, d) array
            Whitened first in the metric (with the mean removed if ``centered``), taken as it is in
            Euclidean geometry, which works before `fit` too.
        geometry : "metric" or "euclidean"
        pairs : int or None
            None looks at all n (n - 1) / 2 pairs; a number draws so many pairs of different rows,
            with replacement. All pairs are taken where there are no more than that.
        bins : int
            Equal bins of [0, 180] degrees.
        random_state : int, numpy.random.Generator, RandomState or None
            For the draw of pairs.

        Returns
        -------
        AngleHistogram

        Notes
        -----
        All pairs: n^2 d operations by float32 products of tiles (angles good to about 1e-5
        degrees near 90, 0.03 near 0 and 180); n x n is never held. A sample: float64. Memory: in
        the metric, the whitened rows that are looked at, 4 d bytes each. Sums run in float64, and
        the result is the same for any number of threads.

        Examples
        --------
        >>> import numpy as np
        >>> from atoms import AtomicInnerProduct
        >>> X = np.random.default_rng(0).standard_normal((500, 8)) + 2
        >>> aip = AtomicInnerProduct().fit(X)
        >>> round(aip.angles(X, geometry="euclidean").mean), round(aip.angles(X).mean)
        (34, 81)
        """
        if geometry not in ("metric", "euclidean"):
            raise ValueError(f"geometry: expected 'metric' or 'euclidean', got {geometry!r}")
        check_count(bins, "bins")
        if geometry == "metric":
            self._check_fitted()
            X = self._check_X(X, reset=False)
        else:
            X = check_array(X)
        n = X.shape[0]
        total = n * (n - 1) // 2
        first: Array | None = None
        second: Array | None = None
        if pairs is not None:
            check_count(pairs, "pairs")
            if pairs < total:
                total = int(pairs)
                rng = _generator(random_state)
                first = rng.integers(0, n, total)
                second = rng.integers(0, n - 1, total)
                second += second >= first
        if geometry == "metric":
            if first is not None and second is not None:
                seen, at = np.unique(np.concatenate([first, second]), return_inverse=True)
                first, second = at[:total].astype(np.int64), at[total:].astype(np.int64)
                X = self._whiten_rows(X, seen)
            else:
                X = self.whiten(X)
        counts, sums = np.zeros(bins, dtype=np.int64), np.zeros(3)
        try:
            _core.angles(context(self.num_threads), X, first, second, counts, sums)
        except ValueError as error:
            raise why_not_finite(X, "X", error) from None
        n_pairs = int(sums[0])
        off = sums[1] / n_pairs if n_pairs else math.nan
        variance = max(0.0, sums[2] / n_pairs - off * off) if n_pairs else math.nan
        return AngleHistogram(
            mean=90.0 + off,
            std=math.sqrt(variance),
            counts=counts,
            bin_edges=np.linspace(0.0, 180.0, bins + 1),
            n_pairs=n_pairs,
            n_skipped=total - n_pairs,
            geometry=geometry,
        )

    def _whiten_rows(self, X: Array, rows: Array) -> Array:
        """Those rows of X (ascending), whitened, gathered block by block."""
        out = np.empty((len(rows), X.shape[1]), dtype=np.float32)
        for start in range(0, len(rows), 4096):
            part, to = rows[start : start + 4096], out[start : start + 4096]
            center = self.mean_ if self._centered else None
            try:
                self._product(X[part], "X", center, self.whitener_, None, to)
            except ValueError:
                bad = first_nonfinite_row(X[part])
                if bad < 0:
                    raise
                raise nonfinite_error(X, "X", int(part[bad])) from None
        return out

    # ------------------------------------------------------------------- errors

    def eigenvalue_standard_errors(self, X: Any, block_size: int = 1) -> EigenvalueErrors:
        r"""Standard errors of the eigenvalues of the second moment and of the metric.

        Analytic, by the delta method with fourth moments taken from the data, so heavy tails
        count: with eigenpairs (l_k, v_k) and centred samples y if ``centered``, sample i moves
        l_k by g_ik / n, g_ik = (1 - a) ((v_k . y_i)^2 - c_k) + a (|y_i|^2 - t) / d, with a the
        shrinkage (taken as fixed) and c_k, t the means of what they stand beside; then

        .. math:: se(l_k)^2 = n^{-2} \sum_B \left(\sum_{i \in B} g_{ik}\right)^2, \qquad
                  se(1 / l_k) = se(l_k) / l_k^2.

        Blocks B of ``block_size`` consecutive samples count as one observation each: take the
        length of a document where tokens of one document are alike. It is first-order: right
        where eigenvalues are further apart than their errors.

        Parameters
        ----------
        X : (n, d) array
            The activations of `fit`, or a sample like them; errors are scaled to
            `n_samples_seen_`.
        block_size : int

        Returns
        -------
        EigenvalueErrors
            ``.second_moment`` and ``.metric``, (d,) each, in the order of ``eigenvalues_``.
        """
        self._check_fitted()
        X = self._check_X(X, reset=False)
        n, d, a = X.shape[0], X.shape[1], self.shrinkage_
        if not isinstance(block_size, (int, np.integer)) or not 1 <= block_size <= max(1, n // 2):
            raise ValueError(
                f"block_size: expected an integer from 1 to n // 2 = {n // 2}, got {block_size!r}"
            )
        _, shrunk, vectors = self._spectrum()
        center = self.mean_ if self._centered else None
        rows = max(1, 4096 // block_size) * block_size
        total, square, weighted, count = np.zeros(d), np.zeros(d), np.zeros(d), 0.0
        for start in range(0, n, rows):
            z = self._product(X[start : start + rows], "X", center, vectors, None, None).astype(np.float64)
            g = z * z
            g = (1 - a) * g + a / d * g.sum(axis=1, keepdims=True)
            at = np.arange(0, len(g), block_size)
            sums = np.add.reduceat(g, at, axis=0)
            size = np.diff(np.append(at, len(g))).astype(np.float64)
            total += sums.sum(axis=0)
            square += (sums * sums).sum(axis=0)
            weighted += size @ sums
            count += float(size @ size)
        mean = total / n
        # sum over blocks of (sum of g - size mean)^2
        variance = np.clip(square - 2 * mean * weighted + mean * mean * count, 0, None)
        error = np.sqrt(variance) / n * math.sqrt(n / self.n_samples_seen_)
        return EigenvalueErrors(error, error / shrunk**2)

    # -------------------------------------------------------------------- files

    def save(self, path: Any) -> None:
        """Write to a safetensors file, first beside `path`, then renamed: never half a file."""
        tensors, meta = self._state()
        save_tensors(path, type(self).__name__, tensors, meta)

    def _state(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """All of it, as arrays and JSON: what `save` writes and an autoencoder carries along."""
        values, shrunk, vectors = self._spectrum()
        tensors = {
            "shift": self._shift,
            "sum": self._sum,
            "second": self._second,
            "eigenvalues": values,
            "shrunk_eigenvalues": shrunk,
            "eigenvectors": vectors,
        }
        if self._norms is not None:
            tensors["norms"] = self._norms
        names = list(self.feature_names_in_) if hasattr(self, "feature_names_in_") else None
        a = self.shrinkage
        meta = {
            "centered": self._centered,
            "shrinkage": a if a is None or isinstance(a, str) else float(a),
            "shrinkage_": self.shrinkage_,
            "n_samples_seen": self.n_samples_seen_,
            "feature_names": names,
        }
        return tensors, meta

    @classmethod
    def _from_state(
        cls, tensors: dict[str, Array], meta: dict[str, Any], num_threads: int | None = None
    ) -> AtomicInnerProduct:
        self = cls(centered=meta["centered"], shrinkage=meta["shrinkage"], num_threads=num_threads)
        self._check_parameters()
        d = len(tensors["shift"])
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(
            ("shift", "sum", "eigenvalues", "shrunk_eigenvalues"), (d,)
        )
        shapes |= dict.fromkeys(("second", "eigenvectors"), (d, d))
        for name, shape in (shapes | ({"norms": (d + 1,)} if "norms" in tensors else {})).items():
            check_tensor(tensors, name, shape, np.float64)
        check_count(meta["n_samples_seen"], "n_samples_seen")
        self.n_features_in_, self._centered = d, meta["centered"]
        names = meta["feature_names"]
        if names is not None:
            if len(names) != d or not all(isinstance(name, str) for name in names):
                raise ValueError(f"feature_names: expected {d} strings")
            self.feature_names_in_ = np.asarray(names, dtype=object)
        self._set_state(
            meta["n_samples_seen"], tensors["shift"], tensors["sum"], tensors["second"], tensors.get("norms")
        )
        self._derived["shrinkage_"] = None if meta["shrinkage_"] is None else float(meta["shrinkage_"])
        self._derived["spectrum"] = (
            tensors["eigenvalues"],
            tensors["shrunk_eigenvalues"],
            tensors["eigenvectors"],
        )
        return self

    @classmethod
    def load(cls, path: Any, num_threads: int | None = None) -> AtomicInnerProduct:
        """Read what `save` wrote; whitening gives the same bits as before. More can be added to it."""
        tensors, meta = load_tensors(path, cls.__name__)
        with reading(path, cls.__name__):
            return cls._from_state(tensors, meta, num_threads)


# ----------------------------------------------------------------------- helpers

_DIFFERENT = "other: expected {} = {}, as here, got {}"

_SINGULAR = (
    "the {kind} of n={n} samples in d={d} dimensions is singular and has no inverse. Fit at least "
    "{need} samples, better 10 d = {ten}, or pass shrinkage='oas', 'ledoit_wolf' or a number in (0, 1]."
)


def _generator(random_state: Any) -> np.random.Generator:
    if isinstance(random_state, np.random.RandomState):
        return np.random.default_rng(random_state.randint(2**31))
    return np.random.default_rng(random_state)


def _squeeze(a: Array, first: bool, second: bool) -> Any:
    if first and second:
        return float(a[0, 0])
    return a[0] if first else a[:, 0] if second else a


def _unit(u: Array) -> Array:
    norms = np.linalg.norm(u, axis=1, keepdims=True)
    return u / np.where(norms > 0, norms, 1.0)


def _norm_sums(X: Array, shift: Array) -> Array:
    """[sum |y|^2 y, sum |y|^4] over rows y = x - shift, in float64, block by block."""
    total = np.zeros(X.shape[1] + 1)
    for start in range(0, X.shape[0], 1024):
        y = np.asarray(X[start : start + 1024], dtype=np.float64) - shift
        q = np.einsum("ij,ij->i", y, y)
        total[:-1] += q @ y
        total[-1] += q @ q
    return total
