"""The estimator of the metric."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from .. import _plot as plot
from .._checks import (
    aligned,
    block_number,
    check_array,
    check_choice,
    check_count,
    check_flag,
    first_nonfinite_row,
    nonfinite_error,
    part_by_part,
)
from .._config import one_blas_thread
from .._estimator import Routed
from .._files import load_tensors, reading, save_tensors
from .._frames import framed
from .._rows import Blocks, Rows, SomeNorms, by_blocks, rows_of, table, warn_of_massive
from .._without import check_massive, without_massive
from ._errors import EigenvalueErrors, errors_of
from ._geometry import AngleHistogram, angles_of, draw_pairs, product, product_of_rows, rows_in, squeeze, unit
from ._moments import SHIFT_ROWS, Array, Moments, moments_of, shift_of
from ._saving import from_tensors, names_of_features, to_tensors
from ._spectrum import Spectrum, check_shrinkage, shrinkage_of, spectrum_of

_T = TypeVar("_T")

_DIFFERENT = "other: expected {} = {}, as here, got {}"


class AtomicInnerProduct(Routed):
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
    n_samples_seen_ : int
        Rows that it has seen.
    n_features_in_ : int
        d.
    n_dropped_massive_ : int
        Rows that ``fit(massive="drop")`` left out; files do not keep it.
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
    n_dropped_massive_ = 0

    _moments: Moments
    _derived: dict[str, Any]  # what was computed from the moments, by name

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

    def fit(self, X: Any, y: Any = None, *, massive: str | float = "keep") -> AtomicInnerProduct:
        """Estimate the metric from activations, forgetting any seen before.

        Where X is rejected, what was fitted before stays as it was.

        Parameters
        ----------
        X : (n, d) array, tensor or memory map, or whatever else `SparseAutoencoder.fit` takes
            float32, float64, float16 or bfloat16, of any strides; other numbers are converted to float64. Shards,
            stores, files and streams are read block by block, once. Of an array of Dask, or a bag of tables, the workers
            sum each block where it is, and join the sums in the blocks' order: to the bit what `fit` makes of the
            list of blocks.
        y : ignored
            For scikit-learn's pipelines.
        massive : {"keep", "drop"} or float
            "drop" leaves out rows whose norm is more than ten times the median, a number those of more than so many
            times it, for which all are gone through once before: `n_dropped_massive_` says how many.

        Raises
        ------
        ValueError
            Too few samples for the dimension, or a singular second moment, without shrinkage;
            NaN or infinity in X (the message names the row); a bad parameter.

        Warns
        -----
        UserWarning
            Rows whose norm is more than ten times the median, or from five to ten times it, make a twentieth of the sum
            of squares or more. Up to 8,192 rows are looked at, of a store or a stream those of the first buffer.
        """
        self._check_parameters()
        with self._unchanged_on_error():
            multiple, norms = check_massive(massive), SomeNorms()
            rows, dropped, _ = without_massive(self._check_rows(X, reset=True, far=True), multiple)
            self._see(self._sums(rows, norms=norms))
            self._spectrum()
            self.n_dropped_massive_ = dropped
            if norms.n:
                norms.complain(stacklevel=3)
            else:
                warn_of_massive(rows, stacklevel=3)
        return self

    def partial_fit(self, X: Any, y: Any = None) -> AtomicInnerProduct:
        """Add activations (n, d), all that `fit` takes, to those already seen.

        The metric is computed when it is first asked for. Where X is rejected, what was seen before stays as it was.
        """
        self._check_parameters()
        first = not self.__sklearn_is_fitted__()
        with self._unchanged_on_error():
            rows = self._check_rows(X, reset=first, far=True)
            self._see(self._sums(rows, None if first else self._moments))
        return self

    def merge(self, other: AtomicInnerProduct) -> AtomicInnerProduct:
        """Add what `other` has seen, for example another part of the data on another machine.

        Returns self; `other` stays as it is. The result is that of one fit on both parts, up to
        rounding.

        Raises
        ------
        ValueError
            Another number, names or order of features, or `other` is centred and this one is not (or the reverse).
        """
        if not isinstance(other, AtomicInnerProduct):
            raise TypeError(f"other: expected an AtomicInnerProduct, got {type(other).__name__}")
        other._check_fitted()
        theirs, names = other._moments, getattr(other, "feature_names_in_", None)
        if not self.__sklearn_is_fitted__():
            self._check_parameters()
            if bool(self.centered) != theirs.centered:
                raise ValueError(_DIFFERENT.format("centered", self.centered, theirs.centered))
            self.n_features_in_ = other.n_features_in_
            if names is not None:
                self.feature_names_in_ = names
            self._see(theirs)
            return self
        ours = self._moments
        if other.n_features_in_ != self.n_features_in_:
            raise ValueError(_DIFFERENT.format("n_features_in_", self.n_features_in_, other.n_features_in_))
        if theirs.centered != ours.centered:
            raise ValueError(_DIFFERENT.format("centered", ours.centered, theirs.centered))
        self._check_feature_names(names, "other")
        self._see(ours.plus(theirs))
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
        check_flag(self.centered, "centered")
        check_shrinkage(self.shrinkage)

    def _sums(self, rows: Any, seen: Moments | None = None, norms: SomeNorms | None = None) -> Moments:
        """Sums over all rows, and those seen; `norms` sees rows that are read once and then gone."""
        fourth = self.shrinkage == "ledoit_wolf"
        if isinstance(rows, Blocks):
            return self._sums_of_blocks(rows, fourth, seen, norms)
        in_memory = isinstance(rows, Rows) and not rows.read
        at = 0
        for part in rows.shards if in_memory else rows.blocks():
            seen = moments_of(
                part, centered=bool(self.centered), norms=fourth, seen=seen, first=at, num_threads=self.num_threads
            )  # fmt: skip
            at += len(part)
            if norms is not None and not in_memory:
                norms.see(part)
        assert seen is not None
        return seen

    def _sums_of_blocks(
        self, rows: Blocks, fourth: bool, seen: Moments | None, norms: SomeNorms | None
    ) -> Moments:
        """The same of rows that stay where they are: each block's sums, joined in the blocks' order."""
        centered = bool(self.centered) if seen is None else seen.centered
        if seen is not None:
            shift = seen.shift
        else:
            shift = shift_of(rows.first(SHIFT_ROWS)) if centered else np.zeros(rows.d)
        none = Moments.none(shift, centered, fourth)
        start = seen or none, SomeNorms()
        found, some = rows.folded(_sums_and_norms, _with_next, start, none, self.num_threads)
        if not found.n:
            rows.first(1)  # says that there are none
        if norms is not None:
            vars(norms).update(vars(some))
        return found  # type: ignore[no-any-return]

    def _see(self, moments: Moments) -> None:
        """These are the rows seen; what was computed from others is forgotten."""
        self.n_samples_seen_, self._moments, self._derived = moments.n, moments, {}

    # --------------------------------------------------------------- attributes

    def _get(self, name: str, compute: Callable[[], _T]) -> _T:
        self._check_fitted()
        if name not in self._derived:
            made = compute()
            for a in made if isinstance(made, tuple) else (made,):
                if isinstance(a, np.ndarray):
                    a.flags.writeable = False  # copies share it
            self._derived[name] = made
        value: _T = self._derived[name]
        return value

    @property
    def mean_(self) -> Array:
        return self._get("mean_", lambda: self._moments.mean)

    @property
    def second_moment_(self) -> Array:
        return self._get("second_moment_", lambda: self._moments.second_moment())

    @property
    def shrinkage_(self) -> float:
        return self._get(
            "shrinkage_", lambda: shrinkage_of(self.shrinkage, self._moments, self.second_moment_)
        )

    @property
    def eigenvalues_(self) -> Array:
        return self._spectrum().shrunk

    @property
    def eigenvectors_(self) -> Array:
        return self._spectrum().vectors

    @property
    def metric_(self) -> Array:
        return self._get("metric_", lambda: self._spectrum().power(-0.5))

    @property
    def whitener_(self) -> Array:
        return self._get("whitener_", lambda: self._spectrum().power(-0.25))

    @property
    def unwhitener_(self) -> Array:
        return self._get("unwhitener_", lambda: self._spectrum().power(0.25))

    @property
    def condition_number_(self) -> float:
        values = self.eigenvalues_
        return float(values[0] / values[-1])

    @property
    def effective_rank_(self) -> float:
        return self._spectrum().effective_rank()

    def _figures(self) -> list[tuple[str, Any]]:
        shown: list[tuple[str, Any]] = [
            ("rows seen", self.n_samples_seen_),
            ("features", self.n_features_in_),
        ]
        shown.append(("mean", "removed" if self._moments.centered else "kept"))
        if "spectrum" not in self._derived:
            return [*shown, ("metric", "computed when it is first asked for")]
        return [
            *shown,
            ("shrinkage", self.shrinkage_),
            ("condition number", self.condition_number_),
            ("effective rank", self.effective_rank_),
        ]

    def _spectrum(self) -> Spectrum:
        return self._get("spectrum", lambda: spectrum_of(self.shrinkage_, self._moments, self.second_moment_))

    def _center(self) -> Array | None:
        """What whitening subtracts."""
        return self.mean_ if self._moments.centered else None

    # ---------------------------------------------------------------- whitening

    @framed
    @by_blocks
    def transform(self, X: Any, out: Array | None = None) -> Array:
        """Activations in coordinates where the atomic inner product is the dot product.

        Parameters
        ----------
        X : (n, d) array, or whatever else `fit` takes
            Activations.
        out : (n, d) float32 array, optional
            Where to write; C-contiguous, apart from X.

        Returns
        -------
        (n, d) float32
            ``(X - mean_ if centered else X) @ whitener_``, multiplied and summed in float64 and
            rounded once: right to float32 whatever the condition number. A row's result does not
            depend on the other rows. 2 n d^2 operations. Of an array of Dask another one, of which nothing is
            computed yet.
        """
        self._check_fitted()
        return self._whitened(self._check_rows(X, reset=False), out)

    def _whitened(self, rows: Any, out: Array | None = None) -> Array:
        """`whiten`, of rows that are checked."""
        if rows.array is not None:
            return self._product(rows.array, out)
        if rows.n is None:
            found = np.concatenate([self._product(part) for part in rows.blocks()])
            if out is None:
                return found
            out[...] = found
            return out
        out = np.empty((rows.n, rows.d), np.float32) if out is None else out
        part_by_part(rows.blocks(), lambda part, at: self._product(part, out[at : at + len(part)]))
        return out

    def _product(self, X: Array, out: Array | None = None) -> Array:
        return product(X, self.whitener_, center=self._center(), out=out, num_threads=self.num_threads)

    @by_blocks
    def inverse_transform(self, Z: Any, out: Array | None = None) -> Array:
        """Activations (n, d) float32 whose whitened coordinates are Z: the inverse of `transform`."""
        self._check_fitted()
        Z = self._check_width(Z, "Z")
        offset = self._center()
        return product(Z, self.unwhitener_, offset=offset, out=out, name="Z", num_threads=self.num_threads)

    #: `transform` by the name that the theory has for it
    whiten = transform
    #: `inverse_transform` by the name that the theory has for it
    unwhiten = inverse_transform

    def whiten_directions(self, D: Any) -> Array:
        """Directions, differences or dictionary atoms (m, d) as ``D @ whitener_`` in float32.

        The mean is never subtracted: directions have none.
        """
        self._check_fitted()
        D = self._check_width(D, "D")
        return product(D, self.whitener_, name="D", num_threads=self.num_threads)

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

    @one_blas_thread
    def inner(self, U: Any, V: Any) -> Any:
        """Atomic inner products of all vectors of U with all of V, in float64, like `numpy.inner`.

        (p, d) and (q, d) give (p, q); a vector (d,) drops its axis. Vectors are taken as they
        are: no mean is removed.
        """
        (u, one_u), (v, one_v) = self._roots(U, "U"), self._roots(V, "V")
        return squeeze(u @ v.T, one_u, one_v)

    @one_blas_thread
    def norm(self, U: Any) -> Any:
        """Norms in the metric, sqrt(u' S u): (p, d) gives (p,), (d,) a number; float64."""
        u, one = self._roots(U, "U")
        norms = np.linalg.norm(u, axis=1)
        return float(norms[0]) if one else norms

    @one_blas_thread
    def cosine(self, U: Any, V: Any) -> Any:
        """Cosines in the metric of all vectors of U with all of V; shapes as in `inner`.

        Cosines with a zero vector are 0, as in scikit-learn.
        """
        (u, one_u), (v, one_v) = self._roots(U, "U"), self._roots(V, "V")
        return squeeze(np.clip(unit(u) @ unit(v).T, -1.0, 1.0), one_u, one_v)

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
            Where angles are taken.
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
        the metric, the whitened rows of the sample, 4 d bytes each. Sums run in float64, and
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
        check_choice(geometry, "geometry", ("metric", "euclidean"))
        check_count(bins, "bins")
        if geometry == "metric":
            self._check_fitted()
            X = self._check_X(X, reset=False)
        else:
            X = table(X)
        chosen = draw_pairs(X.shape[0], pairs, random_state)
        if geometry == "metric":
            some = rows_in(chosen)
            if some is None:
                X = self._whitened(rows_of(X))
            else:
                rows, chosen = some
                center, W = self._center(), self.whitener_
                X = product_of_rows(X, rows, W, center=center, num_threads=self.num_threads)
        elif isinstance(X, Rows):
            some = rows_in(chosen)
            X, chosen = (np.asarray(X), chosen) if some is None else (X[some[0]], some[1])
        return angles_of(X, chosen, bins, geometry, self.num_threads)

    @plot.drawing
    def plot(self, axes: Any = None) -> Any:
        """Draw the eigenvalues of the second moment after shrinkage, and their effective rank."""
        values, rank = self.eigenvalues_, self.effective_rank_
        axes = plot.axes_of(axes)
        plot.spectrum(axes, values, rank)
        about = f"{self.n_samples_seen_:,} rows, condition number {self.condition_number_:.3g}"
        plot.titles(axes, f"Second moment of {len(values):,} features", about)
        return axes

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
            Consecutive samples that count as one observation.

        Returns
        -------
        EigenvalueErrors
            ``.second_moment`` and ``.metric``, (d,) each, in the order of ``eigenvalues_``.
        """
        self._check_fitted()
        X = self._check_X(X, reset=False)
        n = X.shape[0]
        if not isinstance(block_size, (int, np.integer)) or not 1 <= block_size <= max(1, n // 2):
            raise ValueError(
                f"block_size: expected an integer from 1 to n // 2 = {n // 2}, got {block_size!r}"
            )
        spectrum = self._spectrum()
        return errors_of(X, self._moments, spectrum, self.shrinkage_, block_size, self.num_threads)

    # -------------------------------------------------------------------- files

    def save(self, path: Any) -> None:
        """Write to a safetensors file, first beside `path`, then renamed: never half a file.

        What has seen too few rows for a metric yet is written too, to be added to once it is loaded.
        """
        tensors, meta = state_of(self)
        save_tensors(path, type(self).__name__, tensors, meta)

    @classmethod
    def load(cls, path: Any, num_threads: int | None = None) -> AtomicInnerProduct:
        """Read what `save` wrote; whitening gives the same bits as before. More can be added to it."""
        tensors, meta = load_tensors(path, cls.__name__)
        with reading(path, cls.__name__):
            return from_state(tensors, meta, num_threads, cls)

    def __getstate__(self) -> dict[str, Any]:
        """Plain attributes under the names that pickles have always had: older and newer versions read each other's."""
        state = dict(vars(self))
        moments = state.pop("_moments", None)
        if moments is not None:
            state |= {name: getattr(moments, field) for name, field in _PICKLED.items()}
            state["_derived"] = {k: tuple(v) if k == "spectrum" else v for k, v in self._derived.items()}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = aligned(state)
        if "_second" in state:
            sums = {field: state.pop(name) for name, field in _PICKLED.items()}
            state["_moments"] = Moments(n=state["n_samples_seen_"], **sums)
            derived = state["_derived"].items()
            state["_derived"] = {k: Spectrum(*v) if k == "spectrum" else v for k, v in derived}
        vars(self).update(state)


def _sums_and_norms(block: Array, none: Moments, num_threads: int | None) -> tuple[Moments, SomeNorms]:
    """Of a block's rows their sums, about the shift of `none`, and the norms of some."""
    centered, fourth = none.centered, none.norms is not None
    rows = check_array(block)
    found = moments_of(rows, centered=centered, norms=fourth, seen=none, num_threads=num_threads)
    norms = SomeNorms(block_number())
    norms.see(rows)
    return found, norms


def _with_next(
    so_far: tuple[Moments, SomeNorms], found: tuple[Moments, SomeNorms]
) -> tuple[Moments, SomeNorms]:
    return so_far[0].plus(found[0]), so_far[1].plus(found[1])


_PICKLED = {
    "_centered": "centered",
    "_shift": "shift",
    "_sum": "total",
    "_second": "second",
    "_norms": "norms",
}


def fitted(metric: Any, blocks: Callable[[], Iterable[Array]]) -> Any:
    """`metric` where it is fitted or None, else another of its parameters, fitted to the rows in these blocks."""
    if not isinstance(metric, AtomicInnerProduct) or metric.__sklearn_is_fitted__():
        return metric
    own = type(metric)(**metric.get_params(deep=False))
    for block in blocks():
        if len(block):
            own.partial_fit(block)
    return own


def frozen(metric: Any) -> Any:
    """A copy that is not changed by fitting `metric` to more or other rows, or by setting its parameters.

    Its arrays are the same ones, for they cannot be written to. None stays None.
    """
    if metric is None:
        return None
    _ = metric.whitener_, metric.unwhitener_  # computed once, for all copies
    own = copy.copy(metric)
    # whoever is fitted under it checks the names, then passes plain rows
    vars(own).pop("feature_names_in_", None)
    if isinstance(own, AtomicInnerProduct):
        own.centered = own._moments.centered
    return own


def state_of(metric: AtomicInnerProduct) -> tuple[dict[str, Array], dict[str, Any]]:
    """A fitted metric as arrays and JSON: what `save` writes, and what an autoencoder's file holds of its metric."""
    metric._check_fitted()
    spectrum: Spectrum | None = None
    used: float | None = None
    with contextlib.suppress(ValueError):  # no inverse yet: the sums alone are kept
        spectrum, used = metric._spectrum(), metric.shrinkage_
    a = metric.shrinkage
    names = list(metric.feature_names_in_) if hasattr(metric, "feature_names_in_") else None
    return to_tensors(metric._moments, spectrum), {
        "centered": metric._moments.centered,
        "shrinkage": a if a is None or isinstance(a, str) else float(a),
        "shrinkage_": used,
        "n_samples_seen": metric.n_samples_seen_,
        "feature_names": names,
    }


def from_state(
    tensors: dict[str, Array],
    meta: dict[str, Any],
    num_threads: int | None = None,
    cls: type[AtomicInnerProduct] = AtomicInnerProduct,
) -> AtomicInnerProduct:
    """The metric that `state_of` was given."""
    metric = cls(centered=meta["centered"], shrinkage=meta["shrinkage"], num_threads=num_threads)
    metric._check_parameters()
    moments, spectrum = from_tensors(tensors, meta["n_samples_seen"], meta["centered"])
    metric.n_features_in_ = len(moments.shift)
    names = names_of_features(meta["feature_names"], metric.n_features_in_)
    if names is not None:
        metric.feature_names_in_ = names
    metric._see(moments)
    if spectrum is not None:
        metric._derived |= {"shrinkage_": float(meta["shrinkage_"]), "spectrum": spectrum}
    elif meta["shrinkage_"] is not None:
        raise ValueError("no eigenvalues")
    return metric
