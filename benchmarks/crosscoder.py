"""A crosscoder of SmolLM2-135M's layers 8 and 15 beside an autoencoder of each: held-out variance of each layer.

    python benchmarks/frontier.py capture --texts ../shared/data     # the rows, once
    python benchmarks/crosscoder.py run
    python benchmarks/crosscoder.py table
    python benchmarks/crosscoder.py norms      # what a latent's cost by one norm or by the sum of norms gives; PyTorch

Rows are those of benchmarks/frontier.py, the first --tokens of its training rows and the two halves of what it holds out: one
to set L0, one to judge. A crosscoder of n latents has as many parameters as two autoencoders of n each. Its L0 counts for both
layers, so it stands beside two of the same L0 each (twice as many active latents in all) and of half of it. Explained
variance is centred, of raw activations: 1 - sum|x - x_hat|^2 / sum|x - mean|^2. A run is a line of results/crosscoder.jsonl.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import frontier
import numpy as np

RESULTS = Path(__file__).parent / "results" / "crosscoder.jsonl"
LAYERS = (8, 15)
BOUNDS = (0.3, 0.7)  # of the relative norm: latents of one layer, of both, of the other


def run(options) -> None:
    import atoms
    from atoms.activations import Sites

    sides = [frontier.rows(layer) for layer in LAYERS]
    train, tune, held = zip(*((np.array(t[: options.tokens]), np.array(v), np.array(h)) for t, v, h in sides))
    known = {
        "max_steps": options.samples // 1024,
        "batch_size": 1024,
        "num_threads": options.threads,
        "verbose": False,
    }
    for activation in options.activation:
        for seed in options.seeds:
            for kind, l0 in (("two", options.l0), ("two", options.l0 // 2), ("crosscoder", options.l0)):
                make = lambda l0=l0: atoms.SparseAutoencoder(
                    options.d_sae, activation, target_l0=l0, random_state=seed, **known
                )
                wall = time.perf_counter()
                if kind == "two":
                    saes = [make().fit(x, X_val=v) for x, v in zip(train, tune)]
                    seconds = time.perf_counter() - wall
                    scores = [sae.score(h) for sae, h in zip(saes, held)]
                    active, shares = [sae.transform(h).nnz / len(h) for sae, h in zip(saes, held)], None
                else:
                    sae, both = make().fit(Sites(*train), X_val=Sites(*tune)), Sites(*held)
                    seconds = time.perf_counter() - wall
                    scores = sae.site_scores(both).tolist()
                    codes = sae.transform(both)
                    active, used = (
                        [codes.nnz / codes.shape[0]],
                        np.bincount(codes.indices, minlength=options.d_sae) > 0,
                    )
                    relative = (sae.site_norms_[:, 1] / sae.site_norms_.sum(axis=1))[used]
                    shares = np.histogram(relative, [0, *BOUNDS, 1])[0] / len(relative)
                record = {
                    "kind": kind, "activation": activation, "l0": l0, "seed": seed, "d_sae": options.d_sae,
                    "tokens": options.tokens, "samples": options.samples, "threads": options.threads,
                    "explained_variance": scores, "l0_held_out": active, "seconds": seconds,
                    "relative_norms": None if shares is None else shares.tolist(),
                }  # fmt: skip
                with open(options.results, "a") as file:
                    file.write(json.dumps(record) + "\n")
                print(json.dumps(record), flush=True)


SHARED, WEAK, OWN, D = (
    16,
    8,
    8,
    32,
)  # planted concepts: alike in both models, a quarter as strong in the second, in one


def planted(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of two models side by side, and the directions of their concepts."""
    m = SHARED + WEAK + 2 * OWN
    rng = np.random.default_rng(5)
    A, B = (f / np.linalg.norm(f, axis=1, keepdims=True) for f in rng.standard_normal((2, m, D)))
    B[SHARED : SHARED + WEAK] *= 0.25
    B[SHARED + WEAK : m - OWN] = 0
    A[m - OWN :] = 0
    rng = np.random.default_rng(seed)
    a = np.where(rng.random((n, m)) < 0.08, rng.uniform(1, 2, (n, m)), 0)
    F = np.hstack([A, B])
    return a @ F + 0.02 * rng.standard_normal((n, 2 * D)), F


def crosscoder_of(
    X, penalised: bool, summed: bool, seed: int, l0: int = 4, latents: int = 96, steps: int = 3000
):
    """PyTorch: BatchTopK or L1, by the norm over both sites or by the sum of the two. What gives codes, and the decoder."""
    import torch

    random = torch.Generator().manual_seed(seed)
    W = X[torch.randperm(len(X), generator=random)[:latents]]
    D_ = (W / W.norm(dim=1, keepdim=True)).requires_grad_()
    E, b = D_.detach().clone().requires_grad_(), torch.full((latents,), -float(penalised)).requires_grad_()
    c, price = torch.zeros(X.shape[1]).requires_grad_(), 1.0
    optimizer = torch.optim.Adam([E, D_, b, c], lr=3e-3)

    def codes(x):
        a = torch.relu(x @ E.T + b)
        cost = a * (D_[:, :D].norm(dim=1) + D_[:, D:].norm(dim=1) if summed else D_.norm(dim=1))
        if not penalised:
            a = torch.where(cost >= cost.flatten().topk(len(x) * l0).values[-1], a, 0)
        return a, cost

    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, (steps - step) / (0.3 * steps))
        x = X[torch.randint(len(X), (512,), generator=random)]
        a, cost = codes(x)
        loss = (a @ D_ + c - x).square().sum(dim=1).mean()
        if penalised:
            loss = loss + price * cost.sum(dim=1).mean()
            if step < 0.9 * steps:
                price *= float(np.exp(0.02 * np.sign(np.count_nonzero(a.detach()) / len(x) - l0)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return codes, D_.detach(), c.detach()


def norms(options) -> None:
    """Median relative norms of the latents nearest to each kind of concept, beside the true ones; means of three seeds."""
    import torch

    torch.set_num_threads(options.threads)
    X, F = planted(12_000, 0)
    mean, scale = (
        X.mean(axis=0),
        np.repeat([1 / X[:, :D].std(axis=0).mean(), 1 / X[:, D:].std(axis=0).mean()], D),
    )
    F = F * scale
    unit = F / np.linalg.norm(F, axis=1, keepdims=True)
    train, held = (torch.tensor((rows - mean) * scale).float() for rows in (X, planted(2000, 1)[0]))
    ends = np.cumsum([SHARED, WEAK, OWN])

    def relative(W):
        first, second = (np.linalg.norm(W[:, of], axis=1) for of in (slice(D), slice(D, None)))
        return second / (first + second)

    def medians(values):
        return [float(np.median(part)) for part in np.split(values, ends)]

    print(f"{'':28}{'EV':>7}{'L0':>6}{'shared':>9}{'weak':>7}{'first':>7}{'second':>8}")
    print(f"{'planted':41}{'{:9.3f}{:7.3f}{:7.3f}{:8.3f}'.format(*medians(relative(F)))}")
    for penalised in (False, True):
        for summed in (False, True):
            found = []
            for seed in range(3):
                codes, W, c = crosscoder_of(train, penalised, summed, seed)
                with torch.no_grad():
                    a = codes(held)[0]
                    e = (a @ W + c - held).square().sum() / (held - held.mean(dim=0)).square().sum()
                W = W.numpy()
                nearest = (W / np.linalg.norm(W, axis=1, keepdims=True) @ unit.T).argmax(axis=0)
                found.append([1 - e.item(), np.count_nonzero(a) / len(a), *medians(relative(W)[nearest])])
            what = f"{'L1' if penalised else 'BatchTopK'}, {'sum of norms' if summed else 'one norm'}"
            print(
                f"{what:28}{'{:7.3f}{:6.1f}{:9.3f}{:7.3f}{:7.3f}{:8.3f}'.format(*np.mean(found, axis=0))}",
                flush=True,
            )


def table(options) -> None:
    """Means over seeds."""
    groups: dict[tuple, list[dict]] = {}
    for line in options.results.read_text().splitlines():
        r = json.loads(line)
        groups.setdefault((r["activation"], r["kind"], r["l0"]), []).append(r)
    print(f"{'':44}" + "".join(f"{f'layer {layer}':>10}" for layer in LAYERS) + f"{'L0':>14}  relative norms")
    for (activation, kind, l0), found in groups.items():
        mean = lambda key, found=found: np.mean([r[key] for r in found], axis=0)
        what = f"{activation}, {'two autoencoders' if kind == 'two' else 'a crosscoder'}, L0 {l0} ({len(found)} seeds)"
        scores = "".join(f"{score:10.4f}" for score in mean("explained_variance"))
        active = " + ".join(f"{v:.1f}" for v in mean("l0_held_out"))
        shares = "" if kind == "two" else " / ".join(f"{v:.1%}" for v in mean("relative_norms"))
        print(f"{what:44}{scores}{active:>14}  {shares}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["run", "table", "norms"])
    parser.add_argument("--activation", nargs="+", default=["jumprelu", "batchtopk"])
    parser.add_argument("--tokens", type=int, default=120_000)
    parser.add_argument("--samples", type=int, default=400_000)
    parser.add_argument("--d-sae", type=int, default=2304)
    parser.add_argument("--l0", type=int, default=32)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    {"run": run, "table": table, "norms": norms}[options.command](options)


if __name__ == "__main__":
    main()
