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
    """The tied autoencoder, then expectation maximisation from it; both judged, the clock stopped meanwhile.

    With --start truth expectation maximisation begins at the true features instead: does it stay there?
    """
    import atoms

    print(
        "| what | seed | CPU s | MCC | F1 | precision | recall | uniqueness | EV | L0 | dead |\n|"
        + "---|" * 11
    )
    X, latents = rows(o.size, o.samples, o.cache), SIZES[o.size][3]
    for seed in o.seeds:
        spent, last = 0.0, time.process_time()

        def judge(what: str, model, em_samples: int) -> None:
            nonlocal spent, last
            spent += time.process_time() - last
            more = {"seed": seed, "samples": o.steps * 1024, "em_samples": em_samples, "cpu": spent}
            as_judged = Judged(model.W_dec, model.b_dec, lambda x: model.transform(x).toarray())
            judged(what, as_judged, o.size, o.cache, o.judge, more)
            last = time.process_time()

        if o.start == "truth":
            generator, _, top = frequent(o)
            begin = generator.features[top]
        else:
            begin = atoms.SparseAutoencoder(
                latents, target_l0=o.l0, tied=True, batch_size=1024, max_steps=o.steps, learning_rate=3e-3, random_state=seed,
                num_threads=o.threads, verbose=False,
            ).fit(X)  # fmt: skip
            judge("tied autoencoder", begin, 0)
        units = atoms.DictionaryLearning(
            latents, coder="spikes", incoherence=o.incoherence, batch_size=8192, max_steps=o.em_steps, sweeps=2,
            random_state=seed, num_threads=o.threads, verbose=False,
        )  # fmt: skip

        def look(model, figures) -> None:
            step = figures["step"]
            if step == o.em_steps or step % o.every == 0:
                judge(f"spikes, {step} steps" + ", from the truth" * (o.start == "truth"), model, 8192 * step)

        units.fit(X, init=begin, callback=look)


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
    from atoms._dictionary import _spikes
    from atoms.recovery import Dictionary

    g, rate, top = frequent(o)
    n = 1e9 * np.clip(rate[top], 2e-4, 0.7)  # so many firings that nothing else is believed
    square = g.mean[top] ** 2 + g.std[top] ** 2 + 0.49 * (g.depth[top] > 0)
    sums = np.stack([n, n, n * g.mean[top], n * square, 0 * n, 0 * n, 0 * n], axis=1)
    known, d = _spikes.Spikes(sums, 1e9, 0.6), Dictionary(g.features[top])
    for rounds in (1, 2, 3):
        _spikes.ROUNDS = rounds
        encode = lambda x: _spikes.code(x - g.bias, d, known, 64, _spikes.GIVEN, None)[0].toarray()
        judged(
            f"true features, mean field of {rounds} rounds",
            Judged(g.features[top], g.bias, encode),
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
    parser.add_argument("--incoherence", type=float, default=1.0, help="see atoms.DictionaryLearning")
    parser.add_argument("--start", default="autoencoder", choices=["autoencoder", "truth"], help="of `learn`")
    parser.add_argument("--threads", type=int, default=1)
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
