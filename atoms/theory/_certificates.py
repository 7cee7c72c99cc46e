"""Certificates: what coherence guarantees of a dictionary, and of each sample's code."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

from .. import _core
from .._config import context, one_blas_thread
from .._rows import Blocks, is_dask
from .._shown import Shown, Table
from .._unit_rows import unit_rows
from ._coherence import Coherence, coherence_of, unit_of

_TILE_BYTES = 64 << 20


def _unit_of(D: Any, metric: Any, num_threads: int | None) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(D, Coherence):
        return unit_of(coherence_of(D, metric, (), num_threads)), D.norms
    return unit_rows(D, metric, num_threads)


def babel(
    D: Any, metric: Any = None, kmax: int | None = None, *, num_threads: int | None = None
) -> np.ndarray:
    """Babel function (cumulative coherence) mu_1(K), K = 1 .. kmax.

    mu_1(K) = max_i max_{|T| = K, i not in T} sum_{j in T} |cos(d_i, d_j)| (Tropp 2004, "Greed is
    good", section 2.4): at most K mu, and far less where few pairs are coherent.

    Parameters
    ----------
    D : array (d_sae, d_in) or Coherence
    metric : AtomicInnerProduct, optional
    kmax : int, optional
        By default all: d_sae - 1.
    num_threads : int, optional

    Returns
    -------
    ndarray (kmax,) float64
        Sums of float32 cosines; entry K - 1 is mu_1(K). Empty for a single atom.

    Notes
    -----
    Each atom's cosines are sorted: 2 d_sae^2 d_in operations and a radix sort of d_sae^2 numbers.
    Memory: 520 d_sae + 8 kmax bytes for each thread beside the rows.

    Examples
    --------
    >>> import numpy as np
    >>> from atoms.theory import babel
    >>> babel([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]).round(4)
    array([0.7071, 1.4142])
    """
    unit, _ = _unit_of(D, metric, num_threads)
    n = unit.shape[0]
    kmax = n - 1 if kmax is None else kmax
    if n == 1 and kmax == 0:
        return np.zeros(0)
    if not isinstance(kmax, (int, np.integer)) or not 1 <= kmax <= n - 1:
        raise ValueError(f"kmax: expected a whole number from 1 to {n - 1}, got {kmax!r}")
    out = np.empty(kmax)
    _core.babel(context(num_threads), unit, out)
    return out


@dataclass(frozen=True)
class DictionaryCertificate(Shown):
    """What holds for every sparse code over a dictionary; see :func:`certificate`.

    Attributes
    ----------
    coherence : Coherence
        Spectrum of |cosine|: `.max`, `.quantile(q)`, `.rms`.
    babel : ndarray (d_sae - 1,)
        mu_1(K) for K = 1, 2, ...
    welch_bound : float
        Least mutual coherence that the shape allows.
    unique_k : int
        Largest K for which every K-sparse code is the only one so sparse: mu_1(2K - 1) < 1.
    recovery_k : int
        Largest K for which l1 minimisation and OMP find every K-sparse code:
        mu_1(K) + mu_1(K - 1) < 1.
    unique_k_coherence : int
        Largest K with mu < 1/(2K - 1), the paper's condition, sufficient for both.
    effective_rank : float
        exp of the entropy of the eigenvalue shares of U'U, U the whitened unit atoms: d_in for a
        tight frame, 1 for parallel atoms.
    norm_min, norm_median, norm_max : float
        Norms of the atoms in the metric, as they were given.
    norm_spread : float
        Standard deviation of the norms over their mean.
    """

    coherence: Coherence
    babel: np.ndarray = field(repr=False)
    welch_bound: float
    unique_k: int
    recovery_k: int
    unique_k_coherence: int
    effective_rank: float
    norm_min: float
    norm_median: float
    norm_max: float
    norm_spread: float

    def rip(self, k: int) -> tuple[float, float]:
        """Bounds on the restricted isometry constant delta_K: by coherence (K-1) mu, by Babel
        mu_1(K-1). The second is never the larger; at 1 or above either says nothing."""
        n = self.coherence.shape[0]
        if not isinstance(k, (int, np.integer)) or not 1 <= k <= n:
            raise ValueError(f"k: expected a whole number from 1 to {n}, got {k!r}")
        return (k - 1) * self.coherence.max, float(self.babel[k - 2]) if k > 1 else 0.0

    def _table(self) -> Table:
        n, d = self.coherence.shape
        rows = [
            ("largest |cosine|", self.coherence.max),
            ("Welch bound", self.welch_bound),
            ("K up to which codes are unique", self.unique_k),
            ("K up to which l1 and OMP find them", self.recovery_k),
            ("K by the largest |cosine| alone", self.unique_k_coherence),
            ("effective rank", self.effective_rank),
            ("norms: least", self.norm_min),
            ("norms: median", self.norm_median),
            ("norms: largest", self.norm_max),
        ]
        return Table(f"Certificate of {n:,} atoms of {d:,} features", rows)


def certificate(
    D: Any, metric: Any = None, *, quantiles: Any = (0.5, 0.9, 0.99, 0.999), num_threads: int | None = None
) -> DictionaryCertificate:
    """Guarantees that the cosines of a dictionary give for every sufficiently sparse code.

    With unit atoms, mutual coherence mu and Babel function mu_1 (mu_1(K) <= K mu):

    - RIP: delta_K <= mu_1(K - 1) <= (K - 1) mu (Gershgorin on K x K Gram matrices).
    - Uniqueness: 2K atoms are linearly independent when mu_1(2K - 1) < 1, so two K-sparse codes
      of one vector are equal.
    - Recovery by l1 minimisation and by OMP: mu_1(K) + mu_1(K - 1) < 1 (Tropp 2004, theorem 3.5).
    - Both follow from the paper's mu < 1/(2K - 1).

    Each K is at most d_sae. Where all atoms are independent by mu_1(d_sae - 1) < 1 any code is
    unique.

    Parameters
    ----------
    D : array (d_sae, d_in) or Coherence
    metric : AtomicInnerProduct, optional
    quantiles : sequence of float
        Of the coherence spectrum.
    num_threads : int, optional

    Returns
    -------
    DictionaryCertificate

    Notes
    -----
    Cosines above 1 - 2^-20 count as 1: parallel up to float32. The guarantees inherit float32
    rounding of the cosines, some 1e-7 each.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.linalg import hadamard
    >>> from atoms.theory import certificate
    >>> c = certificate(np.concatenate([np.eye(64), hadamard(64)]))
    >>> c.coherence.max, c.unique_k, c.recovery_k, c.rip(5)
    (0.125, 4, 4, (0.5, 0.5))
    """
    spectrum = coherence_of(D, metric, quantiles, num_threads)
    unit, norms = unit_of(spectrum), spectrum.norms
    n = unit.shape[0]
    mu1 = babel(spectrum, num_threads=num_threads)
    parallel = spectrum.max > 1 - 2.0**-20
    return DictionaryCertificate(
        coherence=spectrum,
        babel=mu1,
        welch_bound=spectrum.welch_bound,
        unique_k=0 if parallel else _unique_by_babel(mu1, n),
        recovery_k=0 if parallel else _recovery_by_babel(mu1, n),
        unique_k_coherence=0 if parallel else _largest_k(spectrum.max, n),
        effective_rank=_effective_rank(unit),
        norm_min=float(norms.min()),
        norm_median=float(np.median(norms)),
        norm_max=float(norms.max()),
        norm_spread=float(norms.std() / norms.mean()),
    )


def _largest_k(mu: float, n: int) -> int:
    """Largest K <= n with mu < 1/(2K - 1)."""
    if mu <= 1.0 / (2 * n):
        return n
    k = min(n, math.floor((1 + 1 / mu) / 2) + 1)
    while k > 0 and not mu * (2 * k - 1) < 1:
        k -= 1
    return k


def _unique_by_babel(mu1: np.ndarray, n: int) -> int:
    below = int(np.searchsorted(mu1, 1.0))  # mu_1 is not decreasing: mu_1(k) < 1 for k <= below
    return n if below == n - 1 else (below + 1) // 2


def _recovery_by_babel(mu1: np.ndarray, n: int) -> int:
    sums = np.concatenate([mu1, mu1[-1:]]) + np.concatenate([[0.0], mu1]) if n > 1 else np.zeros(1)
    return int(np.searchsorted(sums, 1.0))


@one_blas_thread
def _effective_rank(unit: np.ndarray) -> float:
    d = unit.shape[1]
    gram = np.zeros((d, d))
    for first in range(0, unit.shape[0], 4096):
        block = unit[first : first + 4096].astype(np.float64)
        gram += block.T @ block
    share = np.clip(np.linalg.eigvalsh(gram), 0, None) / np.trace(gram)
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


# -------------------------------------------------------------------- of each sample


@dataclass(frozen=True)
class SampleCertificates(Shown):
    """Certificates of each sample's code; see :func:`certify`. Arrays of length n.

    Attributes
    ----------
    l0 : ndarray of int
    mu : ndarray
        mu(S) = max_{j in S} max_{l != j} |cos(d_j, d_l)|, coherence of the sample's own atoms with
        all others; 0 for empty codes.
    unique : ndarray of bool
        mu(S) < 1/(2 |S| - 1).
    l1_unique : ndarray of bool
        sum_{j in S} mu_j/(1 + mu_j) < 1/2, mu_j the coherence of atom j. Implied by `unique`.
    recoverable : ndarray of bool
        max_{l not in S} sum_{j in S} |cos(d_j, d_l)| + max_{j in S} sum_{k in S, k != j}
        |cos(d_j, d_k)| < 1.
    threshold_feasible : ndarray of bool
        delta_min > mu(S) (2 |S| - 1) delta_max, the paper's interval with epsilon = mu(S), by more than rounding.
    threshold_low, threshold_high : ndarray
        The interval: mu(S) |S| delta_max and delta_min - mu(S) (|S| - 1) delta_max.
    threshold_exact : ndarray of bool
        One tied pass on the reconstruction and one threshold return the support, by more than rounding: an atom
        off it that correlates as much, such as a copy of one on it, is not told apart.
    """

    l0: np.ndarray
    mu: np.ndarray
    unique: np.ndarray
    l1_unique: np.ndarray
    recoverable: np.ndarray
    threshold_feasible: np.ndarray
    threshold_low: np.ndarray
    threshold_high: np.ndarray
    threshold_exact: np.ndarray

    @property
    def shares(self) -> dict[str, float]:
        """Share of the samples with each certificate."""
        names = ("unique", "l1_unique", "recoverable", "threshold_feasible", "threshold_exact")
        return {name: float(getattr(self, name).mean()) for name in names}

    def __repr__(self) -> str:
        shares = ", ".join(f"{k}={v:.4f}" for k, v in self.shares.items())
        return f"SampleCertificates(n={len(self.l0)}, shares: {shares})"

    def _table(self) -> Table:
        rows = [(name, int(getattr(self, name).sum()), share) for name, share in self.shares.items()]
        return Table(f"Certificates of {len(self.l0):,} codes", rows, ("", "codes", "share"))


def certify(D: Any, codes: Any, metric: Any = None, *, num_threads: int | None = None) -> SampleCertificates:
    r"""Which samples' codes are guaranteed to be unique, recoverable, or found by a threshold.

    Let S be the support of a code, delta its amplitudes in units of unit atoms, c_jl cosines.

    - `unique`, the paper's condition with the coherence of the sample's own atoms in place of
      that of the whole dictionary: mu(S) < 1/(2|S| - 1), mu(S) = max_{j in S} mu_j,
      mu_j = max_{l != j} |c_jl|.
    - `l1_unique`: sum_{j in S} mu_j/(1 + mu_j) < 1/2. Then the code is the only minimiser of the
      l1 norm among *all* codes of its reconstruction. Proof: a null vector z of the dictionary
      has |z_j| <= mu_j (||z||_1 - |z_j|) for each j, so ||z_S||_1 <= sum_{j in S} mu_j/(1+mu_j)
      ||z||_1 < ||z||_1 / 2: the null space property for S. With all mu_j = mu it is the paper's
      condition, and `unique` implies it; so `unique` samples are certified in this sense too. (That
      no other code is as *sparse* needs the condition for the atoms of that code as well.)
    - `recoverable`: Tropp's exact recovery condition for the very support, bounded by sums of
      cosines: max_{l not in S} sum_{j in S} |c_jl| < 1 - max_{j in S} sum_{k in S, k != j} |c_jk|.
      OMP in |S| steps and l1 minimisation return the code from its reconstruction.
    - `threshold_feasible`: with epsilon = mu(S) the paper's interval epsilon |S| delta_max < tau <
      delta_min - epsilon (|S| - 1) delta_max is not empty: a tied encoder (W_enc = S W_dec')
      with threshold tau, given the reconstruction, is active on S alone.
    - `threshold_exact`: not a bound but the fact: with p_l = sum_{j in S} c_jl delta_j, the smallest
      p_j on S exceeds the largest p_l off S and zero. Implied by `threshold_feasible` where
      amplitudes are positive. Cosines are float32 products, so both ask for a margin: e ||delta||_1 here, 2 e |S|
      delta_max there, with e = 2^-23 (4 + sqrt(d_in)).

    Empty codes have every certificate.

    Parameters
    ----------
    D : array (d_sae, d_in) or Coherence
    codes : sparse (n, d_sae)
        As `transform` gives them, also those of an array of Dask, which are judged where their blocks are; stored
        zeros do not count. Amplitudes are |code| times the
        norm of the atom in the metric (signs are kept for `threshold_exact`).
    metric : AtomicInnerProduct, optional
    num_threads : int, optional

    Returns
    -------
    SampleCertificates

    Notes
    -----
    Time: d_sae^2 d_in + 2 nnz d_sae operations. Memory: tiles of 64 MB; neither
    d_sae x d_sae nor n x d_sae is held.

    Examples
    --------
    >>> import numpy as np, scipy.sparse
    >>> from atoms.theory import certify
    >>> codes = scipy.sparse.csr_array([[1.0, 2.0, 0.0], [0.0, 1.0, 1.0]])
    >>> certify([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]], codes).unique
    array([False, False])
    >>> certify(np.eye(3), codes).shares["recoverable"]
    1.0
    """
    unit, norms = _unit_of(D, metric, num_threads)
    if is_dask(codes):
        parts = Blocks(codes, "codes").gathered(_certified, unit, norms)
        columns = zip(*([getattr(one, f.name) for f in fields(SampleCertificates)] for one in parts))
        if parts:
            return SampleCertificates(*map(np.concatenate, columns))
        codes = scipy.sparse.csr_array((0, len(norms)))
    return _certified(codes, unit, norms)


def _certified(codes: Any, unit: np.ndarray, norms: np.ndarray) -> SampleCertificates:
    delta = _amplitudes(codes, norms)
    n, s = delta.shape[0], _sums(unit, delta)
    l0 = np.diff(delta.indptr).astype(np.int64)
    busy = l0 > 0
    starts = delta.indptr[:-1][busy]

    def per_sample(function: np.ufunc, values: np.ndarray) -> np.ndarray:
        out = np.zeros(n)
        if busy.any():
            out[busy] = function.reduceat(values, starts)
        return out

    mu_j = np.where(s.coherence > 1 - 2.0**-20, 1.0, s.coherence)[delta.indices]
    mu = per_sample(np.maximum, mu_j)
    amplitude = np.abs(delta.data)
    largest, smallest = per_sample(np.maximum, amplitude), per_sample(np.minimum, amplitude)
    low, high = mu * l0 * largest, smallest - mu * (l0 - 1) * largest
    rounding = 2.0**-23 * (4 + math.sqrt(unit.shape[1]))  # of a cosine
    return SampleCertificates(
        l0=l0,
        mu=mu,
        unique=~busy | (mu * (2 * l0 - 1) < 1),
        l1_unique=~busy | (per_sample(np.add, mu_j / (1 + mu_j)) < 0.5),
        recoverable=~busy | (s.outside + s.inside < 1 - 1e-6),
        threshold_feasible=~busy | (high - low > 2 * rounding * l0 * largest),
        threshold_low=low,
        threshold_high=high,
        threshold_exact=~busy | (s.least_on - s.most_off > rounding * per_sample(np.add, amplitude)),
    )


def _amplitudes(codes: Any, norms: np.ndarray) -> scipy.sparse.csr_array:
    """Codes in units of unit atoms, without stored zeros."""
    n_atoms = len(norms)
    if not scipy.sparse.issparse(codes):
        raise TypeError(
            f"codes: expected a SciPy sparse array, got {type(codes).__name__}; "
            "pass scipy.sparse.csr_array(codes)"
        )
    given: Any = codes
    delta = scipy.sparse.csr_array(given, copy=True).astype(np.float64)
    if delta.shape[1] != n_atoms:
        raise ValueError(f"codes: expected {n_atoms} columns (d_sae), got {delta.shape[1]}")
    if not np.isfinite(delta.data).all():
        raise ValueError("codes: expected finite numbers, got NaN or infinity")
    delta.sum_duplicates()
    delta.eliminate_zeros()
    delta.data *= norms[delta.indices]
    return delta


class _Sums(NamedTuple):
    """What the certificates ask of all pairs of atoms, for n samples."""

    coherence: np.ndarray  #: (n_atoms,) largest |cosine| with another atom
    inside: np.ndarray  #: (n,) largest sum of |cosines| with the support, of an atom on it
    outside: np.ndarray  #: (n,) the same of an atom off it
    least_on: np.ndarray  #: (n,) smallest correlation with the reconstruction, of an atom on the support
    most_off: np.ndarray  #: (n,) largest one of an atom off it, at least 0


@one_blas_thread
def _sums(unit: np.ndarray, delta: scipy.sparse.csr_array) -> _Sums:
    n_atoms = unit.shape[0]
    support = scipy.sparse.csr_array((np.ones(delta.nnz), delta.indices, delta.indptr), shape=delta.shape)
    n = delta.shape[0]
    largest = np.zeros(n_atoms)
    inside, outside = np.zeros(n), np.zeros(n)
    least_on, most_off = np.full(n, np.inf), np.zeros(n)
    width = max(1, min(512, _TILE_BYTES // (8 * n_atoms)))
    height = max(1, _TILE_BYTES // (8 * width * 4))
    for first in range(0, n_atoms, width):
        here = slice(first, min(n_atoms, first + width))
        cosines = (unit @ unit[here].T).astype(np.float64)  # (d_sae, tile)
        diagonal = np.arange(here.stop - first)
        cosines[first + diagonal, diagonal] = 0.0
        size = np.minimum(np.abs(cosines), 1.0)
        largest[here] = size.max(axis=0)
        for top in range(0, n, height):
            rows = slice(top, min(n, top + height))
            on = support[rows][:, here]
            sums = support[rows] @ size
            correlation = delta[rows] @ cosines + delta[rows][:, here].toarray()
            row, column = on.tocoo().coords
            np.maximum.at(inside[rows], row, sums[row, column])
            np.minimum.at(least_on[rows], row, correlation[row, column])
            sums[row, column] = 0.0
            correlation[row, column] = 0.0
            outside[rows] = np.maximum(outside[rows], sums.max(axis=1))
            most_off[rows] = np.maximum(most_off[rows], correlation.max(axis=1))
    return _Sums(largest, inside, outside, least_on, most_off)
