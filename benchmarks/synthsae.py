"""SynthSAEBench-16k (arXiv 2602.14687) on a CPU: what is recovered of 16,384 features by 4,096 latents at L0 25.

    python benchmarks/synthsae.py model|check|rows|learn|rivals|truth|probe ... [--size 16k|2k] [--cache FOLDER]

The published model cannot be had here; this one is built by SAELens from the published configuration (768 dimensions, Zipfian firing
from 0.4 with exponent 0.5 and at least 5e-4, 128 trees of depth 3 and branching 4 with mutually exclusive children, correlations of
rank 25, magnitudes 5 to 4, seed 42). SAELens's orthogonalisation is 100 Adam steps on the sum over pairs of squared products, whose
gradient 4 (E E'E - diag E) takes two products with the 768 x 768 matrix E'E in place of the 16,384 x 16,384 Gram matrix: the same
steps at a thirtieth of the operations. `check` compares both, and our generator (NumPy, only children of active parents are drawn)
with SAELens's own. `--size 2k` is the same recipe scaled down by eight, as benchmarks/synthetic.py has it.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from pathlib import Path

import numpy as np

SIZES = {"16k": (16384, 768, 128, 4096), "2k": (2048, 256, 16, 512)}
RESULTS = Path(__file__).parent / "results" / "synthsae.jsonl"
CACHE = Path.home() / ".cache" / "atoms-bench"


def config(size: str):
    from sae_lens.synthetic import (
        FoldedNormalMagnitudeConfig,
        HierarchyConfig,
        LinearMagnitudeConfig,
        LowRankCorrelationConfig,
        OrthogonalizationConfig,
        SyntheticModelConfig,
        ZipfianFiringProbabilityConfig,
    )

    features, d, roots, _ = SIZES[size]
    return SyntheticModelConfig(
        num_features=features,
        hidden_dim=d,
        firing_probability=ZipfianFiringProbabilityConfig(exponent=0.5, max_prob=0.4, min_prob=5e-4),
        hierarchy=HierarchyConfig(
            total_root_nodes=roots,
            branching_factor=4,
            max_depth=3,
            mutually_exclusive_portion=1.0,
            mutually_exclusive_min_depth=0,
            compensate_probabilities=True,
            scale_children_by_parent=True,
        ),
        orthogonalization=OrthogonalizationConfig(num_steps=100, lr=3e-4),
        correlation=LowRankCorrelationConfig(rank=25, correlation_scale=0.1),
        mean_firing_magnitudes=LinearMagnitudeConfig(start=5.0, end=4.0),
        std_firing_magnitudes=FoldedNormalMagnitudeConfig(mean=0.5, std=0.5),
        bias=0.5,
        seed=42,
    )


def orthogonalised(E, steps: int = 100, lr: float = 3e-4):
    """SAELens's `orthogonalize_embeddings`, its gradient through E'E."""
    import torch

    E = (E / E.norm(dim=1, keepdim=True).clamp(min=1e-8)).detach().clone().requires_grad_(True)
    adam, n = torch.optim.Adam([E], lr=lr), len(E)
    for _ in range(steps):
        with torch.no_grad():
            square = (E * E).sum(1, keepdim=True)
            E.grad = 4 * (E @ (E.T @ E) - square * E) + 4 * n * (square - 1) * E
        adam.step()
    return (E / E.norm(dim=1, keepdim=True).clamp(min=1e-8)).detach()


def saelens_model(size: str, cache: Path):
    """SAELens's SyntheticModel, with its features made once."""
    import torch
    from sae_lens.synthetic import FeatureDictionary, SyntheticModel

    cfg, path = config(size), cache / f"synthsae-{size}-features.npy"
    dictionary = FeatureDictionary(
        cfg.num_features, cfg.hidden_dim, bias=cfg.bias, initializer=None, seed=cfg.seed
    )
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        np.save(path, orthogonalised(dictionary.feature_vectors.data).numpy())
    dictionary.feature_vectors.data = torch.from_numpy(np.load(path))
    return SyntheticModel(cfg, feature_dict=dictionary)


def export(size: str, cache: Path) -> None:
    """All that `Generator` needs, so that it needs no SAELens."""
    model = saelens_model(size, cache)
    g, parent = model.activation_generator, np.full(model.cfg.num_features, -1, np.int32)

    def walk(node) -> None:
        for child in node.children:
            parent[child.feature_index] = node.feature_index
            walk(child)

    for root in model.hierarchy.roots:
        walk(root)
    factor, spread = g.low_rank_correlation
    arrays = {"threshold": g.correlation_thresholds, "factor": factor, "spread": spread,
              "mean": g.mean_firing_magnitudes, "std": g.std_firing_magnitudes, "bias": model.feature_dict.bias,
              "features": model.feature_dict.feature_vectors}  # fmt: skip
    np.savez(
        cache / f"synthsae-{size}.npz", parent=parent, **{k: v.detach().numpy() for k, v in arrays.items()}
    )


class Generator:
    """SAELens's distribution, drawing only what can fire: children are looked at where their parent is active."""

    def __init__(self, size: str, cache: Path = CACHE) -> None:
        with np.load(cache / f"synthsae-{size}.npz") as file:
            for name in file.files:
                setattr(self, name, file[name])
        self.n_features, self.d = self.features.shape
        self.depth = np.zeros(self.n_features, int)
        for j in np.flatnonzero(self.parent >= 0):  # breadth first: parents come before their children
            self.depth[j] = self.depth[self.parent[j]] + 1
        self.top = np.flatnonzero(self.parent < 0)  # roots, and features of no tree
        self.level = (self.threshold / self.spread)[self.top].astype(np.float32)
        self.pull = (self.factor / self.spread[:, None])[self.top].astype(np.float32).T.copy()
        self.children = np.full((self.n_features, 4), -1, np.int32)
        for p in np.unique(self.parent[self.parent >= 0]):
            self.children[p] = np.flatnonzero(self.parent == p)

    def codes(self, n: int, rng: np.random.Generator):
        """Activations of n samples: rows, features, values, by row."""
        eps = rng.standard_normal((n, self.factor.shape[1]), np.float32)
        score = eps @ self.pull
        score += rng.standard_normal(score.shape, np.float32)
        hit = np.flatnonzero(score > self.level)
        row, feature = hit // len(self.top), self.top[hit % len(self.top)]
        value = self._magnitude(feature, rng)
        out = [(row, feature, value)]
        for _ in range(3):
            has = self.children[feature, 0] >= 0
            row, feature, value = row[has], feature[has], value[has]
            kids = self.children[feature]  # (pairs, 4)
            drawn = np.einsum("pr,pkr->pk", eps[row], self.factor[kids])
            drawn += rng.standard_normal(kids.shape, np.float32) * self.spread[kids]
            own = self._magnitude(kids, rng)
            fires = (drawn > self.threshold[kids]) & (own > 0)
            one = np.where(
                fires, rng.random(kids.shape, np.float32) + 1, 0
            )  # of siblings that fire, one at random
            pick = one.argmax(1)
            pairs = np.arange(len(pick))
            on = (one[pairs, pick] > 0) & (value > 0)
            scale = (value / self.mean[feature])[on]
            row, feature, value = row[on], kids[pairs, pick][on], own[pairs, pick][on] * scale
            out.append((row, feature, value))
        row, feature, value = (np.concatenate(a) for a in zip(*out, strict=True))
        keep = value > 0
        order = np.argsort(row[keep], kind="stable")
        return row[keep][order], feature[keep][order], value[keep][order].astype(np.float32)

    def _magnitude(self, feature, rng):
        return np.maximum(
            self.mean[feature] + self.std[feature] * rng.standard_normal(feature.shape, np.float32), 0
        )

    def sample(self, n: int, rng: np.random.Generator):
        """Rows and their codes (CSR)."""
        import scipy.sparse as sp

        row, feature, value = self.codes(n, rng)
        indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=n))])
        codes = sp.csr_array((value, feature, indptr), shape=(n, self.n_features))
        return codes @ self.features + self.bias, codes


def rows(size: str, n: int, cache: Path = CACHE, seed: int = 1):
    """Training rows, float16, made once."""
    path = cache / f"synthsae-{size}-{n}-{seed}.npy"
    if not path.exists():
        generator, rng, part = (
            Generator(size, cache),
            np.random.default_rng(np.random.SFC64(seed)),
            path.with_suffix(".part"),
        )
        X = np.lib.format.open_memmap(part, "w+", np.float16, (n, generator.d))
        for i in range(0, n, 4096):
            X[i : i + 4096] = generator.sample(min(4096, n - i), rng)[0]
        X.flush()
        part.rename(path)
    return np.load(path, mmap_mode="r")


class Units:
    """Unit atoms whose codes are independent spikes with normal heights, in white noise; nothing of it needs a label.

    `code` is mean field: a sample's candidates are the `K` atoms that correlate most, with it and then with what is left of it,
    and each in turn takes its posterior mean given the others'. `step` is one of expectation maximisation, the atoms as in
    `atoms.DictionaryLearning` (`_core.fit_atoms`). Atoms that fire together in nearly every sample can be mixed with each other
    at hardly any loss; of all those mixtures the least coherent one is taken (`part`). Atoms that never come to fire for sure
    (the posterior's mean square is under three quarters of its mean) have found no feature, and begin anew.
    """

    def __init__(self, sae, X: np.ndarray, weight: float) -> None:
        """From a trained autoencoder: its atoms, and how often and how high they fire on X; worth `weight` samples."""
        size = np.linalg.norm(sae.W_dec, axis=1)
        self.D, self.b = np.asarray(sae.W_dec / size[:, None], np.float32), sae.b_dec.astype(np.float32)
        z = sae.transform(X).tocsc()
        fired = np.diff(z.indptr)
        total = (
            np.add.reduceat(np.append(z.data, 0), np.minimum(z.indptr[:-1], len(z.data))) * (fired > 0) * size
        )
        self.n, self.usual = float(weight), float((total.sum()) / fired.sum())
        self.rate = np.clip((fired + 0.5) / (len(X) + 500), 2e-4, 0.7)
        self.height = (total + 10 * self.usual) / (fired + 10)
        self.spread, self.noise = np.full(len(self.D), 1.2), 0.75
        self.count = self.rate * weight
        self.hits, self.first = self.count.copy(), self.count * self.height
        self.second = self.count * (self.height**2 + 1.4)
        self.energy = self.second.copy()
        self.sure, self.doubt, self.age = np.zeros(len(self.D)), np.zeros(len(self.D)), np.zeros(len(self.D))

    def code(self, X: np.ndarray, K: int = 40, rounds: int = 2, sweeps: int = 2):
        """Candidates, posterior means, and probabilities of firing, (n, K) each."""
        parts = [self._code(X[i : i + 512] - self.b, K, rounds, sweeps) for i in range(0, len(X), 512)]
        return tuple(np.concatenate(p) for p in zip(*parts, strict=True))

    def _code(self, X, K, rounds, sweeps):
        D, v = self.D, np.float32(self.noise**2)
        mean, var = self.height.astype(np.float32), (self.spread**2).astype(np.float32)
        odds = (np.log(self.rate / (1 - self.rate)) - 0.5 * np.log((var + v) / v)).astype(np.float32)
        first = score = X @ D.T
        Z = np.where(score > 2, 0.7 * score, 0)
        for r in range(rounds):
            which = np.argpartition(-score, K, axis=1)[:, :K]
            b, z = np.take_along_axis(first, which, 1), np.take_along_axis(Z, which, 1)
            d = D[which]
            G, on = d @ d.transpose(0, 2, 1), np.zeros_like(z)
            m, s, o = mean[which], var[which], odds[which]
            for k in [*range(K)] * sweeps:
                h = b[:, k] - np.einsum("nl,nl->n", G[:, k], z) + z[:, k]
                log = o[:, k] - 0.5 * (h - m[:, k]) ** 2 / (v + s[:, k]) + 0.5 * h * h / v
                on[:, k] = np.where(h > 0, 1 / (1 + np.exp(-np.clip(log, -30, 30))), 0)
                z[:, k] = on[:, k] * np.maximum((h * s[:, k] + m[:, k] * v) / (v + s[:, k]), 0)
            if r < rounds - 1:
                Z = np.zeros_like(first)
                np.put_along_axis(Z, which, z, 1)
                score = (X - Z @ D) @ D.T + Z
        return which, z, on

    def sparse(self, which, values, mask):
        import scipy.sparse as sp

        indptr = np.concatenate([[0], np.cumsum(mask.sum(1))])
        return sp.csr_matrix((values[mask], which[mask], indptr), shape=(len(which), len(self.D)))

    def step(self, X: np.ndarray, keep: float, replace: bool, rng) -> None:
        from atoms import _core
        from atoms._config import context

        which, z, on = self.code(X)
        soft, hard = self.sparse(which, z, on > 0.02), self.sparse(which, z, on > 0.5)
        T = X - self.b
        left = T - soft @ self.D
        self.noise = max(0.45, 1.1 * float(np.sqrt((left**2).mean())))
        square, ones = hard.copy(), hard.copy()
        square.data, ones.data = hard.data**2, np.ones_like(hard.data)
        new = {
            "count": self.sparse(which, on, on > 0.02).sum(0),
            "hits": ones.sum(0),
            "first": hard.sum(0),
            "second": square.sum(0),
        }
        for name, value in new.items():
            setattr(self, name, keep * getattr(self, name) + np.asarray(value).ravel())
        self.n = keep * self.n + len(X)
        self.rate = np.clip((self.count + 0.5) / (self.n + 1000), 2e-4, 0.7)
        self.height = (self.first + 20 * self.usual) / (self.hits + 20)
        self.spread = np.sqrt(
            np.maximum((self.second + 20 * (self.usual**2 + 1)) / (self.hits + 20) - self.height**2, 0.25)
        )
        _core.fit_atoms(
            context(None), X=np.ascontiguousarray(T), indptr=soft.indptr.astype(np.int64), indices=soft.indices.astype(np.int32),
            values=soft.data.astype(np.float32), keep=keep, sweeps=2, atoms=self.D, energy=self.energy,
        )  # fmt: skip
        self.b = self.b + 0.5 * left.mean(0)
        self.part()
        self.age += 1
        self.sure = 0.9 * self.sure + np.bincount(which.ravel(), (on * on).ravel(), len(self.D))
        self.doubt = 0.9 * self.doubt + np.bincount(which.ravel(), on.ravel(), len(self.D))
        if replace:
            self._replace(left, rng)

    def part(self, times: int = 2) -> None:
        """Of two atoms nearer than random ones come, each loses half its share of the other, the less used one the more."""
        for _ in range(times):
            H = self.D @ self.D.T
            H[np.abs(H) < 3 / np.sqrt(self.D.shape[1])] = 0
            np.fill_diagonal(H, 0)
            used = self.energy.astype(np.float32) + 1
            H *= used[None, :] / (used[None, :] + used[:, None])
            D = self.D - 0.5 * H @ self.D
            norm = np.linalg.norm(D, axis=1, keepdims=True)
            self.D = np.where(norm > 0.3, D / norm, self.D).astype(np.float32)

    def _replace(self, left, rng) -> None:
        """Atoms whose firing stays doubtful, that hardly ever fire, or that are copies of busier ones, take what residuals
        share, where that is something new."""
        near = np.abs(self.D @ self.D.T) > 0.7
        copies = (near & (self.energy > self.energy[:, None])).any(1)
        doubtful = (self.sure < 0.75 * self.doubt) | (self.rate < 3e-4) | copies
        gone = np.flatnonzero(doubtful & (self.age > 5))
        gone = gone[np.argsort(self.sure[gone] / np.maximum(self.doubt[gone], 1e-3))][:400]
        if not len(gone):
            return
        found, rate, height = self._shared(left, min(len(left), 2 * len(gone)), rng)
        known, chosen = np.abs(found @ self.D.T).max(1), []
        for i in np.argsort(-rate):
            if rate[i] * len(left) >= 4 and known[i] < 0.7:
                if not chosen or np.abs(found[chosen] @ found[i]).max() < 0.5:
                    chosen.append(i)
        k = min(len(chosen), len(gone))
        gone, chosen = gone[:k], chosen[:k]
        r, h = np.clip(rate[chosen], 5e-4, 0.05), height[chosen]
        self.D[gone], self.rate[gone], self.height[gone], self.spread[gone] = found[chosen], r, h, 1.2
        self.count[gone], self.hits[gone] = r * self.n, 0.1 * r * self.n
        self.first[gone], self.second[gone] = self.hits[gone] * h, self.hits[gone] * (h**2 + 1.4)
        self.energy[gone] = self.second[gone]
        self.sure[gone] = self.doubt[gone] = self.age[gone] = 0

    def _shared(self, left, n: int, rng, rounds: int = 6):
        """Directions that some residuals share, and how often and how high: from n of them, each round's direction is the
        mean of those that lie far along the last one's, weighed by how far."""
        v = left[rng.choice(len(left), n, replace=False)]
        v, noise = v / np.linalg.norm(v, axis=1, keepdims=True), np.sqrt((left**2).mean())
        for _ in range(rounds):
            s = left @ v.T
            v = (
                np.maximum(s - np.maximum(2.5 * noise, np.partition(s, -20, axis=0)[-20]), 0).T @ left
                + 1e-6 * v
            )
            v /= np.linalg.norm(v, axis=1, keepdims=True)
        s = left @ v.T
        far = s > 3
        return v, far.mean(0), (s * far).sum(0) / np.maximum(1, far.sum(0))


class Judged:
    """What SAELens's scorer asks of an autoencoder: `W_dec`, `eval`, `encode`, `decode`."""

    def __init__(self, W_dec, b_dec, encode) -> None:
        import torch

        self.W_dec, self.b_dec, self._encode = torch.tensor(W_dec), torch.tensor(b_dec), encode

    def eval(self) -> None:
        """Nothing here differs between training and inference."""

    def encode(self, x):
        import torch

        return torch.from_numpy(np.asarray(self._encode(x.detach().numpy()), np.float32))

    def decode(self, z):
        return z @ self.W_dec + self.b_dec


def judged(what: str, sae, size: str, cache: Path, n: int, more: dict) -> None:
    """SAELens's scorer, its own samples."""
    import torch
    from sae_lens.synthetic import eval_sae_on_synthetic_data

    model = saelens_model(size, cache)
    torch.manual_seed(2)
    with torch.no_grad():
        e = eval_sae_on_synthetic_data(
            sae, model.feature_dict, model.activation_generator, num_samples=n, batch_size=2048
        )
    c = e.classification
    print(
        f"| {what} | {more['seed']} | {more['cpu']:.0f} | {e.mcc:.4f} | {c.f1_score:.4f} | {c.precision:.4f} | {c.recall:.4f} "
        f"| {e.uniqueness:.3f} | {e.explained_variance:.4f} | {e.sae_l0:.1f} | {e.dead_latents} |",
        flush=True,
    )
    RESULTS.parent.mkdir(exist_ok=True)
    with open(RESULTS, "a") as file:
        file.write(json.dumps({"what": what, "size": size, "judged_on": n, **more, **e.to_dict()}) + "\n")


def learn(o) -> None:
    """The tied autoencoder, then expectation maximisation from it; both judged."""
    import atoms

    print(
        "| what | seed | CPU s | MCC | F1 | precision | recall | uniqueness | EV | L0 | dead |\n|"
        + "---|" * 11
    )
    X, latents = rows(o.size, o.samples, o.cache), SIZES[o.size][3]
    for seed in o.seeds:
        start, more = time.process_time(), {"seed": seed, "samples": o.steps * 1024, "em_samples": 0}
        sae = atoms.SparseAutoencoder(
            latents, target_l0=o.l0, tied=True, batch_size=1024, max_steps=o.steps, learning_rate=3e-3, random_state=seed,
            num_threads=1, verbose=False,
        ).fit(X)  # fmt: skip
        more["cpu"] = time.process_time() - start
        judge = functools.partial(judged, size=o.size, cache=o.cache, n=o.judge)
        judge(
            "tied autoencoder",
            Judged(sae.W_dec, sae.b_dec, lambda x, s=sae: s.transform(x).toarray()),
            more=more,
        )
        start, rng = time.process_time(), np.random.default_rng(seed)
        units, spent = Units(sae, np.asarray(X[:8192], np.float32), o.weight), more["cpu"]
        encode = functools.partial(fires, units)
        judge("its atoms, mean field", Judged(units.D, units.b, encode), more=more)
        for step in range(o.em_steps):
            start = time.process_time()
            at = step * 8192 % (len(X) - 8192)
            replace = step % 3 == 2 and step < 0.75 * o.em_steps
            units.step(X[at : at + 8192].astype(np.float32), 0.97, replace, rng)
            spent += time.process_time() - start
            if step == o.em_steps - 1 or (step + 1) % o.every == 0:
                more |= {"cpu": spent, "em_samples": 8192 * (step + 1)}
                judge(f"EM, {step + 1} steps", Judged(units.D, units.b, encode), more=more)


def rivals(o) -> None:
    """SAELens's trainers, as many steps on the same rows: JumpReLU as benchmarks/README.md has it, the others at one rate of its grid."""
    import peers
    import torch

    X, latents = rows(o.size, o.samples, o.cache), SIZES[o.size][3]
    fixed = {
        "saelens-jumprelu": (1e-2, {"mode": "tanh", "coefficient": 1.5}),
        "saelens-batchtopk": (3e-3, {}),
        "saelens-matryoshka": (3e-3, {}),
    }
    for seed in o.seeds:
        for name, (lr, options) in fixed.items():
            start, rng = time.process_time(), np.random.default_rng(seed)
            peer = peers.make(
                name, X.shape[1], latents, o.l0, batch_size=1024, steps=o.steps, lr=lr, seed=seed, **options
            )
            peer.prepare(torch.from_numpy(X[:8192].astype(np.float32)))
            for _ in range(o.steps):
                at = rng.integers(len(X) - 1024)
                peer.step(torch.from_numpy(X[at : at + 1024].astype(np.float32)))
            more = {
                "seed": seed,
                "cpu": time.process_time() - start,
                "samples": o.steps * 1024,
                "em_samples": 0,
            }
            judged(name, peer.for_inference(), o.size, o.cache, o.judge, more)


def frequent(o):
    """The features that a perfect dictionary has, by how often our generator fires them in 40,960 samples; and how often."""
    generator, rng = Generator(o.size, o.cache), np.random.default_rng(7)
    rate = (
        sum(np.bincount(generator.codes(4096, rng)[1], minlength=generator.n_features) for _ in range(10))
        / 40_960
    )
    return generator, rate, np.argsort(-rate)[: SIZES[o.size][3]]


def truth(o) -> None:
    """Mean field over the true features, their true rates and heights: what the code alone leaves to be wished."""
    g, rate, top = frequent(o)
    units = Units.__new__(Units)
    units.D, units.b, units.rate, units.height = g.features[top], g.bias, rate[top], g.mean[top]
    units.spread, units.noise = np.sqrt(g.std[top] ** 2 + 0.49 * (g.depth[top] > 0)), 0.6
    for rounds in (1, 2, 3):
        encode = functools.partial(fires, units, rounds=rounds)
        judged(
            f"true features, mean field of {rounds} rounds",
            Judged(units.D, units.b, encode),
            o.size,
            o.cache,
            o.judge,
            {"seed": 0, "cpu": 0},
        )


def probe(o, n: int = 40_000, most: int = 32) -> None:
    """F1 of logistic regressions on rows, for features evenly spaced among the frequent: half to fit, half to judge."""
    from sklearn.linear_model import LogisticRegression

    g, rate, top = frequent(o)
    X, codes = g.sample(n, np.random.default_rng(8))
    codes, half, scores = codes.tocsc(), n // 2, []
    for j in top[:: len(top) // most]:
        y = np.zeros(n, bool)
        y[codes.indices[codes.indptr[j] : codes.indptr[j + 1]]] = True
        said = LogisticRegression(C=0.1, max_iter=200).fit(X[:half], y[:half]).predict(X[half:])
        scores.append(2 * (said & y[half:]).sum() / max(1, said.sum() + y[half:].sum()))
    print(
        f"{o.size}: F1 of probes on {len(scores)} features, {half:,} rows each to fit and to judge: {np.mean(scores):.4f}"
    )


def fires(units, x, rounds: int = 2):
    which, z, on = units.code(x, K=min(64, len(units.D) - 1), rounds=rounds)
    return units.sparse(which, z, on > 0.5).toarray()


def check(size: str, cache: Path, n: int = 20_000) -> None:
    """Our features and our generator beside SAELens's own, in standard errors of the difference."""
    import torch
    from sae_lens.synthetic import FeatureDictionary
    from sae_lens.synthetic.feature_dictionary import orthogonalize_embeddings

    raw = FeatureDictionary(512, 64, bias=False, initializer=None, seed=42).feature_vectors.data
    off = (orthogonalised(raw) - orthogonalize_embeddings(raw, num_steps=100, lr=3e-4)).abs().max()
    print(f"orthogonalisation, 512 features of 64: largest difference from SAELens's {off:.1e}")
    model, ours, rng = saelens_model(size, cache), Generator(size, cache), np.random.default_rng(3)
    some = ours.features[:: max(1, ours.n_features // 1024)]
    overlap = np.abs(some @ ours.features.T)
    overlap[overlap > 0.999] = 0
    print(
        f"{size}: mean largest |cos| of a feature with another {overlap.max(1).mean():.3f} (the paper: 0.15 at 16k)"
    )
    torch.manual_seed(3)
    seconds, counts, facts = [0.0, 0.0], np.zeros((2, ours.n_features)), [[], []]
    inner, pairs = np.flatnonzero(ours.parent >= 0), np.zeros((2, ours.n_features))
    for _ in range(0, n, 2000):
        for k in range(2):
            begun = time.process_time()
            if k:
                X, codes = ours.sample(2000, rng)
                A = codes.toarray()
            else:
                A = model.activation_generator.sample(2000)
                X, A = model.feature_dict(A).detach().numpy(), A.numpy()
            seconds[k] += time.process_time() - begun
            on = A > 0
            counts[k] += on.sum(0)
            pairs[k, inner] += (
                on[:, inner] & (A[:, ours.parent[inner]] > 0.9 * ours.mean[ours.parent[inner]])
            ).sum(0)
            facts[k].append(
                np.stack([on.sum(1), A.sum(1), (A * A).sum(1), np.linalg.norm(X, axis=1), X[:, 0]], 1)
            )
    a, b = (np.concatenate(f) for f in facts)
    names = ["L0", "sum of activations", "sum of squares", "norm", "first coordinate"]
    for i, name in enumerate(names):
        for what, f in (("mean", lambda v: v), ("square", lambda v: (v - a[:, i].mean()) ** 2)):
            x, y = f(a[:, i]), f(b[:, i])
            error = np.sqrt(x.var() / n + y.var() / n)
            print(
                f"{name}, {what}: SAELens {x.mean():.3f}, ours {y.mean():.3f}, {(y.mean() - x.mean()) / error:+.1f} errors"
            )
    for what, c in (("firing rates", counts), ("children while the parent is large", pairs)):
        c = c[:, c.sum(0) >= 40]
        z = (c[1] - c[0]) / np.sqrt(c.sum(0))
        print(
            f"{what}, of {c.shape[1]:,}: differences have root mean square {np.sqrt((z * z).mean()):.3f} standard errors (1: none)"
        )
    print(
        f"CPU us a sample: SAELens {seconds[0] / n * 1e6:.0f}, ours {seconds[1] / n * 1e6:.0f} (with toarray)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["model", "check", "rows", "learn", "rivals", "truth", "probe"])
    parser.add_argument("--size", default="16k", choices=SIZES)
    parser.add_argument("--samples", type=int, default=2_000_000)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--steps", type=int, default=4000, help="of the autoencoder, 1,024 samples each")
    parser.add_argument(
        "--em-steps", type=int, default=24, help="of expectation maximisation, 8,192 samples each"
    )
    parser.add_argument("--weight", type=float, default=60_000, help="of the start, in samples")
    parser.add_argument("--every", type=int, default=8, help="judge after so many of these")
    parser.add_argument("--judge", type=int, default=50_000, help="samples to judge on")
    parser.add_argument("--l0", type=float, default=25.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    start = time.perf_counter()
    if options.part == "model":
        export(options.size, options.cache)
    elif options.part in ("learn", "rivals", "truth", "probe"):
        {"learn": learn, "rivals": rivals, "truth": truth, "probe": probe}[options.part](options)
    elif options.part == "check":
        check(options.size, options.cache)
    else:
        print(rows(options.size, options.samples, options.cache).shape)
    print(f"{time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
