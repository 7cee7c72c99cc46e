"""Slow, readable NumPy twins of the core: what the tests compare with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

Array = np.ndarray

# ---- theory


def explained_variance(
    X: ArrayLike, X_hat: ArrayLike, convention: str = "centered", whitener: Array | None = None
) -> float:
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


def unit_rows(D: ArrayLike, whitener: Array | None = None) -> tuple[Array, Array]:
    """Whitened rows divided by their norms, and the norms."""
    V = np.asarray(D, dtype=np.float64)
    V = V if whitener is None else V @ whitener
    norms = np.linalg.norm(V, axis=1)
    return V / norms[:, None], norms


def cosines(D: ArrayLike, whitener: Array | None = None) -> Array:
    """|cosine| of all pairs i < j, in the order of np.triu_indices."""
    unit, _ = unit_rows(D, whitener)
    return np.asarray(np.minimum(np.abs(unit @ unit.T), 1.0)[np.triu_indices(len(unit), 1)])


def q_star(cosines: Array, l0: Array, grid: Iterable[float]) -> float:
    """The largest q of a grid in (0, 1] with mu_q < 1/(2 K_q - 1), by the definition."""

    # np.quantile's "inverted_cdf", but a product q n that rounding has lifted above a whole number counts as that
    def quantile(values: Array, q: float) -> Any:
        share = np.arange(1, len(values) + 1) / len(values)
        return np.sort(values)[np.searchsorted(share, q - 1e-12)]

    best = 0.0
    for q in grid:
        mu = quantile(cosines, q) if len(cosines) else 0.0
        k = quantile(l0, q)
        # cosines above 1 - 2^-20 are those of parallel atoms
        if k == 0 or (mu < 1 / (2 * k - 1) and mu < 1 - 2.0**-20):
            best = q
    return best


def nearest(A: ArrayLike, B: ArrayLike, absolute: bool = True) -> tuple[Array, Array]:
    """Row of B with the largest (absolute) product with each row of A, and the product."""
    products = np.asarray(A, dtype=np.float64) @ np.asarray(B, dtype=np.float64).T
    products = np.abs(products) if absolute else products
    return products.argmax(axis=1), products.max(axis=1)


def babel(D: ArrayLike, whitener: Array | None = None) -> Array:
    """mu_1(K) for K = 1 .. d_sae - 1: largest sum of K |cosines| of one atom with others."""
    unit, _ = unit_rows(D, whitener)
    G = np.minimum(np.abs(unit @ unit.T), 1.0)
    np.fill_diagonal(G, -1.0)
    return np.asarray(np.cumsum(np.sort(G, axis=1)[:, :0:-1], axis=1).max(axis=0))


# ------------------------------------------------------------------ recovery


def omp(
    x: Array,
    dictionary: Array,
    n_nonzero: int,
    tol: float | None = None,
    selection: str = "omp",
    nonnegative: bool = False,
) -> Array:
    """One signal's matching pursuit with every refit from scratch: the code, a dense vector."""
    from scipy.optimize import nnls

    norms = np.linalg.norm(dictionary, axis=1)
    unit = dictionary / np.where(norms > 0, norms, 1)[:, None]
    chosen: list[int] = []
    code, residual = np.zeros(len(unit)), np.array(x, np.float64)
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


def lasso_gap(x: ArrayLike, dictionary: Array, code: Array, alpha: float) -> float:
    """Duality gap of 1/2 |x - z D|^2 + alpha |z|_1 at a code, from the definitions."""
    x = np.asarray(x, np.float64)
    r = x - code @ dictionary
    top = np.abs(dictionary @ r).max()
    y = r * min(1.0, alpha / top) if top > 0 else r
    return float(r @ r / 2 + alpha * np.abs(code).sum() - (x @ y - y @ y / 2))


def lasso(x: Array, dictionary: ArrayLike, alpha: float, positive: bool = False, steps: int = 20000) -> Array:
    """One signal's lasso by accelerated proximal gradient steps (FISTA)."""
    D = np.asarray(dictionary, np.float64)
    rate = 1 / np.linalg.norm(D, 2) ** 2
    z = y = np.zeros(len(D))
    t = 1.0
    for _ in range(steps):
        new = y + rate * (D @ (x - y @ D))
        new = (
            np.maximum(new - rate * alpha, 0)
            if positive
            else np.sign(new) * np.maximum(abs(new) - rate * alpha, 0)
        )
        t_new = (1 + np.sqrt(1 + 4 * t * t)) / 2
        y, z, t = new + (t - 1) / t_new * (new - z), new, t_new
    return z


def lasso_active_set(x: Array, dictionary: ArrayLike, alpha: float, positive: bool = False) -> Array:
    """One signal's lasso to the end: to the minimiser on the code, sign changes leave, the worst violator joins.

    Once as many atoms as coordinates are in the code, one joins in exchange for the first that comes to zero.
    """
    D = np.asarray(dictionary, np.float64)
    z, code, signs = np.zeros(len(D)), list[int](), list[float]()

    def leave(k: int) -> None:
        z[code[k]] = 0
        del code[k], signs[k]

    for _ in range(20 * len(D)):
        while code:
            A, s = D[code].T, np.array(signs)
            to = np.linalg.lstsq(A, x, rcond=None)[0] - alpha * np.linalg.solve(A.T @ A, s)
            turned, now = np.flatnonzero(to * s <= 0), z[code]
            shares = abs(now[turned]) / (abs(now[turned]) + abs(to[turned]) + 1e-300)
            z[code] = now + shares.min(initial=1.0) * (to - now)
            if not len(turned):
                break
            leave(int(turned[shares.argmin()]))
        c = D @ (x - z @ D)
        c[code] = 0
        best = int(np.argmax(c if positive else abs(c)))
        sign = float(np.sign(c[best]))
        if sign * c[best] <= alpha * (1 + 1e-7) or (positive and sign < 0):
            break
        if len(code) == len(x):
            falls = sign * np.linalg.solve(D[code].T, D[best])
            shares = np.where(falls * signs > 0, abs(z[code]) / np.maximum(falls * signs, 1e-300), np.inf)
            z[code] -= shares.min() * falls
            z[best] = sign * shares.min()
            leave(int(shares.argmin()))
        code.append(best)
        signs.append(sign)
    return z


# ---- sae


def spikes(
    X: ArrayLike, atoms: ArrayLike, rate: Array, height: Array, spread: Array, noise: float,
    n_candidates: int, rounds: int, sweeps: int,
) -> tuple[Array, Array]:  # fmt: skip
    """Posterior means and probabilities of firing of unit atoms, dense, by mean field: zeros but for the candidates."""
    X, D = np.asarray(X, np.float64), np.asarray(atoms, np.float64)
    Z, P = np.zeros((len(X), len(D))), np.zeros((len(X), len(D)))
    v, s, gram = noise**2, spread**2, D @ D.T

    def odds(j: int, h: float) -> float:
        prior = np.log(rate[j] / (1 - rate[j])) - np.log((v + s[j]) / v) / 2
        return float(prior + h**2 / (2 * v) - (h - height[j]) ** 2 / (2 * (v + s[j])))

    def left_to(j: int, x: Array, z: Array) -> float:
        return float(D[j] @ x - gram[j] @ z + gram[j, j] * z[j])

    def sweep(chosen: Array, x: Array, z: Array, p: Array) -> None:
        for j in chosen:
            h = left_to(j, x, z)
            near = [k for k in chosen if k != j and gram[j, k] > 0.5]
            if near:
                k = max(near, key=lambda k: gram[j, k])
                own = float(h + gram[j, k] * z[k])
                other = float(left_to(k, x, z) + gram[j, k] * z[j])
                if p[k] > 0.5 >= p[j] and own > 0 and odds(j, own) > odds(k, max(other, 0)):
                    h, z[k], p[k] = own, 0, 0  # one of the two, and j is the likelier
            p[j] = 1 / (1 + np.exp(-np.clip(odds(j, h), -30, 30))) if h > 0 else 0
            z[j] = p[j] * max(0, (s[j] * h + v * height[j]) / (v + s[j]))

    def guessed(score: Array) -> Array:
        order, guess = np.argsort(-score, kind="stable")[:n_candidates], np.zeros(len(D))
        for place, j in enumerate(order):  # of atoms near each other the best alone
            if score[j] > height[j] / 2 and not (gram[j, order[:place]] > 0.5).any():
                guess[j] = 0.7 * score[j]
        return guess

    for x, z, p in zip(X, Z, P, strict=True):
        score = D @ x
        guess = guessed(score)
        for _ in range(rounds if x.any() else 0):
            chosen = np.sort(np.argsort(-score, kind="stable")[:n_candidates])
            z[:] = 0
            z[chosen] = guess[chosen]
            p[:] = z > 0
            for _ in range(sweeps):
                sweep(chosen, x, z, p)
            score, guess = D @ (x - z @ D) + z, z.copy()
    return Z, P


def part_atoms(codes: Any, atoms: ArrayLike, energy: ArrayLike, least: float, incoherence: float) -> Array:
    """Unit atoms less half of their share of those whose cosine is at least `least`, the more the weaker they are and the
    more often these fire with them."""
    D, e = np.asarray(atoms, np.float64), np.asarray(energy, np.float64)
    on = np.asarray(codes.toarray() != 0, np.float64)
    together = np.maximum(incoherence, 2 * (on.T @ on) / np.maximum(on.sum(0), 1)[:, None] - 1)
    near = D @ D.T
    near[np.abs(near) < least] = 0
    np.fill_diagonal(near, 0)
    left = D - 0.5 * (together * near * e / (e + e[:, None])) @ D
    norm = np.linalg.norm(left, axis=1, keepdims=True)
    return np.asarray(np.where(norm > 0.3, left / norm, D))


def fit_atoms(
    X: ArrayLike, codes: Any, keep: float, sweeps: int, atoms: ArrayLike, energy: ArrayLike
) -> tuple[Array, Array]:
    """Atoms after a pass of block coordinate descent on signals of known codes, and their energies."""
    X, D = np.asarray(X, np.float64), np.array(atoms, np.float64)
    Z = np.asarray(codes.toarray(), np.float64)
    energies: Array = keep * np.asarray(energy, np.float64) + (Z**2).sum(0)
    used = (Z != 0).any(0) & (energies > 0)
    R = X - Z @ D
    for _ in range(sweeps):
        for j in np.flatnonzero(used):
            step = Z[:, j] @ R / energies[j]
            D[j] += step
            R -= np.outer(Z[:, j], step)
    D[used] /= np.linalg.norm(D[used], axis=1, keepdims=True)
    return D, energies


def rounded_moments(
    m: Array, v: Array, step: int, decoder: bool, first: int | None = None
) -> tuple[Array, Array]:
    """A matrix' Adam moments as the core keeps them after its update number `step`: bfloat16, rounded at random.

    The lower 16 bits of a number are the chance in 65,536 of rounding up. The random bits are a hash
    of step, row and column, so that they are the same for any number of threads. A skip connection's rows are numbered
    from `first` on, behind those of decoder and encoder.
    """
    row = np.arange(len(m), dtype=np.uint64)
    row = 2 * row + np.uint64(not decoder) if first is None else row + np.uint64(first)
    h = np.uint64(step - 1) << np.uint64(32) ^ row
    h = (h ^ h >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ h >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    column = np.arange(m.shape[1], dtype=np.uint32) * np.uint32(0x9E3779B9)
    r = (h >> np.uint64(32)).astype(np.uint32)[:, None] + column
    r = (r ^ r >> np.uint32(16)) * np.uint32(0x7FEB352D)
    r = r ^ r >> np.uint32(15)

    def kept(x: Array, random: Array) -> Array:
        bits = np.ascontiguousarray(x, np.float32).view(np.uint32) + random
        return np.asarray((bits & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64))

    return kept(m, r & np.uint32(0xFFFF)), kept(v, r >> np.uint32(16))


class SparseAutoencoderTwin:
    """One training step of the core's autoencoder in float64, every latent computed.

    Parameters are arrays in the training space: W_enc, W_dec (d_sae, d_in), b_enc, threshold
    (d_sae,), b_dec (d_in,). With `tied`, W_enc is W_dec. With `transcoder`, W_dec is (d_sae, d_out), b_dec (d_out,),
    W_skip (d_in, d_out) or None, and steps have a target.
    """

    def __init__(
        self, W_enc: Array, W_dec: Array, b_enc: Array, b_dec: Array, threshold: Array, *,
        activation: str = "jumprelu", tied: bool = False, bandwidth: float = 0.1, prefixes: Sequence[int] = (),
        beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8, clip: float = 1.0,
        transcoder: bool = False, W_skip: Array | None = None,
    ) -> None:  # fmt: skip
        names = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
        arrays = (W_enc, W_dec, b_enc, b_dec, threshold)
        self.p = {n: np.array(a, np.float64) for n, a in zip(names, arrays, strict=True)}
        if tied:
            self.p["W_enc"] = self.p["W_dec"]
        if W_skip is not None:
            self.p["W_skip"] = np.array(W_skip, np.float64)
        self.transcoder = transcoder
        self.m = {n: np.zeros_like(a) for n, a in self.p.items()}
        self.v = {n: np.zeros_like(a) for n, a in self.p.items()}
        self.activation, self.tied, self.bandwidth = activation, tied, bandwidth
        self.prefixes = list(prefixes) or [len(self.p["b_enc"])]
        self.beta1, self.beta2, self.epsilon, self.clip = beta1, beta2, epsilon, clip
        self.step_count = self.samples = 0
        self.last_fired = np.zeros(len(self.p["b_enc"]), np.int64)

    def pre_activations(self, x: Array) -> Array:
        """z of every latent, for each row of x."""
        p = self.p
        return np.asarray(self.centred(x) @ p["W_enc"].T + p["b_enc"])

    def centred(self, x: Array) -> Array:
        """What the encoder reads of rows."""
        return x if self.transcoder else np.asarray(x - self.p["b_dec"])

    def active(self, z: Array, k: int = 0) -> Array:
        """Boolean mask of active latents; ties to the lower sample, then the lower latent."""
        if self.activation == "jumprelu":
            return z > self.p["threshold"]
        if self.activation == "relu":
            return z > 0
        positive = np.where(z > 0, z, -np.inf)
        mask = np.zeros(z.shape, bool)
        if self.activation == "topk":
            order = np.argsort(-positive, axis=1, kind="stable")[:, :k]
            np.put_along_axis(mask, order, True, axis=1)
        else:
            mask.ravel()[np.argsort(-positive.ravel(), kind="stable")[: k * len(z)]] = True
        return mask & (z > 0)

    def gradients(
        self, x: Array, *, l0_coefficient: float = 0.0, l1_coefficient: float = 0.0, k: int = 0,
        aux_k: int = 0, dead_after: int = 0, aux_coefficient: float = 0.0, row_limit: float = 0.0,
        target: Array | None = None,
    ) -> tuple[Any, Any, Any, dict[str, Array]]:  # fmt: skip
        """(squared error, penalty, l0, gradients of their sum, in which no row's errors count beyond `row_limit`)."""
        p, n = self.p, len(x)
        z = self.pre_activations(x)
        on = self.active(z, k)
        a = np.where(on, z, 0.0)
        err, start = p["b_dec"] - (x if target is None else target), 0
        if "W_skip" in p:
            err = err + x @ p["W_skip"]
        penalty: Any = 0.0
        errors, weights = [], np.zeros((len(p["b_enc"]), len(self.prefixes)))
        for group, width in enumerate(self.prefixes):  # each wider prefix begins with the narrower one's sum
            err = err + a[:, start:width] @ p["W_dec"][start:width]
            errors.append(err)
            weights[:width, group] = 1
            start = width
        penalty += sum((e**2).sum() for e in errors[:-1]) / n
        size = np.linalg.norm(err, axis=1) * np.linalg.norm(self.centred(x), axis=1)
        row = np.minimum(1, row_limit / np.maximum(size, 1e-300)) if row_limit else np.ones(n)
        errors = [e * row[:, None] for e in errors]
        summed = np.einsum("jg,gnd->jnd", weights, np.array(errors))  # latent j's share of the errors
        ga = 2 / n * np.einsum("jnd,jd->nj", summed, p["W_dec"])
        gz = np.where(on, ga + (l1_coefficient / n if self.activation == "relu" else 0.0), 0.0)
        aux_g: Any = 0.0
        dead = self.samples - self.last_fired >= dead_after
        if aux_k and dead.any():
            zd = np.where(dead & (z > 0), z, 0.0)
            order = np.argsort(-zd, axis=1, kind="stable")[:, aux_k:]
            np.put_along_axis(zd, order, 0.0, axis=1)
            weight = aux_coefficient * min(1, dead.sum() / aux_k)
            rest = zd @ p["W_dec"] + err
            penalty += weight * (rest**2).sum() / n
            rest = rest * row[:, None]
            aux_g = weight * 2 / n * zd.T @ rest
            gz = gz + np.where(zd > 0, weight * 2 / n * rest @ p["W_dec"].T, 0.0)
        g = {
            "W_dec": 2 / n * np.einsum("nj,jnd->jd", a, summed) + aux_g,
            "W_enc": gz.T @ self.centred(x),
            "b_enc": gz.sum(0),
            "threshold": np.zeros_like(p["threshold"]),
            **self._sides(x, np.sum(errors, axis=0), gz),
        }
        if self.activation == "jumprelu":
            # what the objective would change by if the threshold rose by the bandwidth: activations in between
            # would be switched off
            band = on & (z <= p["threshold"] + self.bandwidth)
            held = weights.sum(1)  # in how many prefixes each latent is
            gain = z * (held * z * row[:, None] / n - ga)
            g["threshold"] = ((gain - l0_coefficient / n) * band).sum(0) / self.bandwidth
            penalty += l0_coefficient * on.sum() / n
        elif self.activation == "relu":
            penalty += l1_coefficient * a.sum() / n
        if self.tied:
            g["W_dec"] = g["W_enc"] = g["W_dec"] + g["W_enc"]
        return (err**2).sum() / n, penalty, on.sum() / n, g

    def _sides(self, x: Array, errors: Array, gz: Array) -> dict[str, Array]:
        """Gradients of what autoencoders and transcoders differ in; `errors` are the sum over the prefixes."""
        p, share = self.p, 2 / len(x)
        g = {"b_dec": share * errors.sum(0)}
        if not self.transcoder:
            g["b_dec"] = g["b_dec"] - gz.sum(0) @ p["W_enc"]
        if "W_skip" in p:
            g["W_skip"] = share * x.T @ errors
        return g

    def _direction(self, name: str, g: Array) -> Array:
        self.m[name] = self.beta1 * self.m[name] + (1 - self.beta1) * g
        self.v[name] = self.beta2 * self.v[name] + (1 - self.beta2) * g * g
        m = self.m[name] / (1 - self.beta1**self.step_count)
        v = self.v[name] / (1 - self.beta2**self.step_count)
        u = m / (np.sqrt(v) + self.epsilon)
        if g.ndim == 2:
            first = 2 * len(self.p["b_enc"]) if name == "W_skip" else None
            kept = rounded_moments(self.m[name], self.v[name], self.step_count, name == "W_dec", first)
            self.m[name], self.v[name] = kept
        if self.clip:
            rms = np.sqrt((u * u).mean(axis=1, keepdims=True)) if u.ndim == 2 else np.abs(u)
            u = u * np.minimum(1, self.clip / np.maximum(rms, 1e-300))
        return u

    def step(
        self, x: Array, learning_rate: float, threshold_rate: float, *, threshold_shift: float = 0.0,
        **kwargs: Any,
    ) -> tuple[Any, Any, Any]:  # fmt: skip
        """One step on the batch x: its (squared error, penalty, l0) before the update."""
        x = np.asarray(x, np.float64)
        error, penalty, l0, g = self.gradients(x, **kwargs)
        self.samples += len(x)
        self.last_fired[self.active(self.pre_activations(x), kwargs.get("k", 0)).any(0)] = self.samples
        z, theta = self.pre_activations(x), self.p["threshold"]
        near = ((z > theta) & (z <= theta + self.bandwidth)).any(0)
        p = self.p
        self.step_count += 1
        along = (g["W_dec"] * p["W_dec"]).sum(1, keepdims=True)
        u = {"W_dec": self._direction("W_dec", g["W_dec"] - along * p["W_dec"])}
        names = ("b_enc", "b_dec") + (() if self.tied else ("W_enc",))
        for name in names + (("W_skip",) if "W_skip" in p else ()):
            u[name] = self._direction(name, g[name])
        if self.activation == "jumprelu":
            u["threshold"] = self._direction("threshold", g["threshold"])
        for name, direction in u.items():
            p[name] -= (threshold_rate if name == "threshold" else learning_rate) * direction
        p["W_dec"] /= np.linalg.norm(p["W_dec"], axis=1, keepdims=True)
        if self.activation == "jumprelu":
            np.maximum(0, p["threshold"] + threshold_shift * near, out=p["threshold"])
        return error, penalty, l0


def steered(
    control: dict[str, float], threshold: Array, stats: dict[str, float], *,
    activation: str, target_l0: float, bandwidth: float = 0.1, fixed_l1: bool = False,
) -> tuple[dict[str, float], Array]:  # fmt: skip
    """What the next step is steered by, and its thresholds, after a step with these figures."""
    c, excess = dict(control), stats["l0"] / target_l0 - 1

    def mean(name: str, value: float) -> float:
        return value if c[name] == 0 else 0.95 * c[name] + 0.05 * value

    c["row"] = mean("row", stats["row_scale"])
    if activation == "jumprelu":
        if stats["band"] > 0:
            c["price"] = mean("price", max(stats["band_gain"], 0.0))
            step = 0.3 * (stats["l0"] - target_l0) / (stats["band"] / bandwidth)
            c["shift"] = float(np.clip(step, -0.05, 0.05))
        else:
            c["shift"] = 0.01 * float(np.sign(excess))
        if excess < -0.4:
            threshold = threshold * max(1 + excess, 0.1) ** 0.1
    elif activation == "relu" and not fixed_l1:
        l1 = c["l1"] or 0.01 * max(stats["squared_error"], 1e-12) / target_l0
        c["press"] = float(np.clip(3 * excess, -2.0, 2.0))
        l1 *= float(np.exp(np.clip(0.1 * excess, -0.05, 0.05)))
        c["l1"] = min(l1, 2 * float(np.sqrt(stats["squared_error"])))
    elif activation == "batchtopk":
        c["cut"] = mean("cut", stats["lowest"])
    return c, threshold


# ---- metric


def moments(X: ArrayLike, shift: ArrayLike | None = None) -> tuple[Array, Array]:
    """Sum and second moment of rows about a shift, in long double."""
    X = np.asarray(X).astype(np.longdouble)
    if shift is not None:
        X = X - np.asarray(shift, dtype=np.longdouble)
    return X.sum(axis=0), np.einsum("ij,ik->jk", X, X)


def whitener(X: Array, centered: bool = False, shrinkage: float = 0.0) -> Array:
    """Symmetric inverse square root of the second moment, in float64."""
    X = np.asarray(X, dtype=np.float64)
    X = X - X.mean(axis=0) if centered else X
    n, d = X.shape
    C = X.T @ X / n
    C = (1 - shrinkage) * C + shrinkage * np.trace(C) / d * np.eye(d)
    values, vectors = np.linalg.eigh(C)
    return np.asarray(vectors @ np.diag(1 / np.sqrt(values)) @ vectors.T)


def product(
    X: ArrayLike,
    center: ArrayLike | None,
    W: ArrayLike,
    offset: ArrayLike | None,
    dtype: DTypeLike = np.float32,
) -> Array:
    """(X - center) W + offset in long double, rounded to `dtype`."""
    X = np.asarray(X).astype(np.longdouble)
    X = X if center is None else X - np.asarray(center, dtype=np.longdouble)
    Z = np.einsum("ij,jk->ik", X, np.asarray(W, dtype=np.longdouble))
    return np.asarray(Z if offset is None else Z + offset, dtype)


def angles(X: ArrayLike, pairs: tuple[Array, Array] | None = None) -> Array:
    """Angles in degrees of all pairs i < j, or of listed pairs, left out where a row is zero."""
    X = np.asarray(X).astype(np.float64)
    first, second = np.triu_indices(len(X), 1) if pairs is None else pairs
    some = np.asarray(X.any(axis=1))
    keep = some[first] & some[second]
    U = X / np.where(some, np.abs(X).max(axis=1, initial=0.0), 1.0)[:, None]
    U = U / np.where(some, np.linalg.norm(U, axis=1), 1.0)[:, None]
    u, v = U[first[keep]], U[second[keep]]
    half = np.arctan2(np.linalg.norm(u - v, axis=1), np.linalg.norm(u + v, axis=1))
    return np.asarray(np.degrees(2 * half))


def ledoit_wolf(X: ArrayLike, centered: bool = False) -> float:
    """Shrinkage of Ledoit and Wolf (2004), from its definition by outer products."""
    Y = np.asarray(X, dtype=np.float64)
    Y = Y - Y.mean(axis=0) if centered else Y
    n, d = Y.shape
    C = Y.T @ Y / n
    excess = ((C - np.trace(C) / d * np.eye(d)) ** 2).sum()
    noise = sum(((np.outer(y, y) - C) ** 2).sum() for y in Y) / n**2
    return float(min(noise, excess) / excess)


def eigenvalue_errors(
    X: ArrayLike, vectors: Array, shrinkage: float = 0.0, centered: bool = False, block_size: int = 1
) -> Array:
    """Standard errors of the second moment's eigenvalues by the delta method, block by block."""
    Y = np.asarray(X, dtype=np.float64)
    Y = Y - Y.mean(axis=0) if centered else Y
    n, d = Y.shape
    g = (1 - shrinkage) * (Y @ vectors) ** 2 + shrinkage / d * (Y**2).sum(axis=1, keepdims=True)
    g = g - g.mean(axis=0)
    blocks = [g[i : i + block_size].sum(axis=0) for i in range(0, n, block_size)]
    return np.asarray(np.sqrt((np.array(blocks) ** 2).sum(axis=0)) / n)
