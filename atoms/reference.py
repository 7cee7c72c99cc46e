"""Slow, readable NumPy twins of the core: what the tests compare with."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

# ---- theory


def explained_variance(X, X_hat, convention="centered", whitener=None) -> float:
    """Explained variance in exact rational arithmetic (after whitening in float64, if any)."""
    X, X_hat = np.asarray(X, dtype=np.float64), np.asarray(X_hat, dtype=np.float64)
    exact = np.vectorize(Fraction, otypes=[object])
    x, e = exact(X), exact(X) - exact(X_hat)
    if whitener is not None:
        x, e = exact(X @ whitener), exact((X - X_hat) @ whitener)
    n = len(X)
    total, residual = (x**2).sum(), (e**2).sum()
    if convention in ("centered", "metric_centered", "variance_of_error"):
        total = ((x - x.sum(0) / n) ** 2).sum()
    if convention == "variance_of_error":
        residual = ((e - e.sum(0) / n) ** 2).sum()
    if convention == "scalar_mean":
        total = ((x - x.sum() / x.size) ** 2).sum()
    if total == 0:
        return 1.0 if residual == 0 else -np.inf
    return 1.0 - float(residual / total)


def unit_rows(D, whitener=None):
    """Whitened rows divided by their norms, and the norms."""
    V = np.asarray(D, dtype=np.float64)
    V = V if whitener is None else V @ whitener
    norms = np.linalg.norm(V, axis=1)
    return V / norms[:, None], norms


def cosines(D, whitener=None) -> np.ndarray:
    """|cosine| of all pairs i < j, in the order of np.triu_indices."""
    unit, _ = unit_rows(D, whitener)
    return np.minimum(np.abs(unit @ unit.T), 1.0)[np.triu_indices(len(unit), 1)]


def q_star(cosines, l0, grid) -> float:
    """The largest q of a grid in (0, 1] with mu_q < 1/(2 K_q - 1), by the definition."""
    best = 0.0
    for q in grid:
        mu = np.quantile(cosines, q, method="inverted_cdf") if len(cosines) else 0.0
        k = np.quantile(l0, q, method="inverted_cdf")
        if k == 0 or mu < 1 / (2 * k - 1):
            best = q
    return best


def nearest(A, B, absolute=True):
    """Row of B with the largest (absolute) product with each row of A, and the product."""
    products = np.asarray(A, dtype=np.float64) @ np.asarray(B, dtype=np.float64).T
    products = np.abs(products) if absolute else products
    return products.argmax(axis=1), products.max(axis=1)


def babel(D, whitener=None) -> np.ndarray:
    """mu_1(K) for K = 1 .. d_sae - 1: largest sum of K |cosines| of one atom with others."""
    unit, _ = unit_rows(D, whitener)
    G = np.minimum(np.abs(unit @ unit.T), 1.0)
    np.fill_diagonal(G, -1.0)
    return np.cumsum(np.sort(G, axis=1)[:, :0:-1], axis=1).max(axis=0)


# ------------------------------------------------------------------ recovery


def omp(x, dictionary, n_nonzero, tol=None, selection="omp", nonnegative=False):
    """One signal's matching pursuit with every refit from scratch: the code, a dense vector."""
    from scipy.optimize import nnls

    norms = np.linalg.norm(dictionary, axis=1)
    unit = dictionary / np.where(norms > 0, norms, 1)[:, None]
    chosen, code, residual = [], np.zeros(len(unit)), np.array(x, np.float64)
    while len(chosen) < n_nonzero and (tol is None or np.linalg.norm(residual) > tol):
        basis = np.linalg.qr(unit[chosen].T)[0] if chosen else np.zeros((len(x), 0))
        outside = 1 - ((unit @ basis) ** 2).sum(axis=1)
        alpha = unit @ residual
        score = np.maximum(alpha, 0) ** 2 if nonnegative else alpha**2
        if selection == "ols":
            score = score / np.maximum(outside, 1e-12)
        score[(norms == 0) | (outside < 1e-10)] = -1
        best = int(np.argmax(score))
        if score[best] <= (1e-14 * np.linalg.norm(x)) ** 2:
            break
        chosen.append(best)
        part = unit[chosen].T
        z = nnls(part, x)[0] if nonnegative else np.linalg.lstsq(part, x, rcond=None)[0]
        if nonnegative:
            chosen, z = [c for c, v in zip(chosen, z, strict=True) if v > 0], z[z > 0]
        code[:] = 0
        code[chosen] = z / norms[chosen]
        residual = x - code @ dictionary
    return code
