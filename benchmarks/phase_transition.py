"""Donoho and Tanner's picture: where does each solver find the sparse code?

    python benchmarks/phase_transition.py [--out phase_transition.png] [--atoms 128] [--trials 20]
        [--dictionary atoms.npy [--activations x.npy]]

For undersampling delta = d / n_atoms and sparsity rho = k / d the share of trials in which the
code is recovered (relative error below 1e-3, noiseless, random signs and amplitudes in [1, 2]),
over random dictionaries, or over random sets of a given dictionary's atoms: in the Euclidean
metric and, given activations, in the atomic one. Lines: the l1 transition of random
dictionaries (Donoho, Maleki, Montanari 2009) and the coherence bound k < (1 + 1 / mu) / 2.
"""

import argparse
import warnings

import numpy as np
from scipy.stats import norm

from atoms.recovery import Dictionary, code, omp

SOLVERS = {
    "OMP": lambda X, D, k: omp(X, D, k),
    "OLS": lambda X, D, k: omp(X, D, k, selection="ols"),
    "NN-OMP (positive codes)": lambda X, D, k: omp(X, D, k, nonnegative=True),
    "basis pursuit": lambda X, D, k: code(X, D, "basis_pursuit"),
    "CoSaMP": lambda X, D, k: code(X, D, "cosamp", n_nonzero=k),
    "IHT": lambda X, D, k: code(X, D, "iht", n_nonzero=k),
    "gradient pursuit": lambda X, D, k: code(X, D, "gradient_pursuit", n_nonzero=k, max_iter=5 * k),
}


def l1_transition():
    """(delta, rho) of the transition of l1 minimisation over random dictionaries."""
    z = np.linspace(0.02, 4, 400)
    tail, density = norm.sf(z), norm.pdf(z)
    return 2 * density / (z + 2 * (density - z * tail)), 1 - z * tail / density


def success(solve, D, k, trials, g, positive):
    Z = np.zeros((trials, len(D)))
    for z in Z:
        z[g.choice(len(D), k, replace=False)] = g.uniform(1, 2, k) * (1 if positive else g.choice([-1, 1], k))
    codes = solve(Z @ D, Dictionary(D), k).toarray()
    return np.mean(np.linalg.norm(codes - Z, axis=1) < 1e-3 * np.linalg.norm(Z, axis=1))


def mutual_coherence(D):
    D = D / np.linalg.norm(D, axis=1, keepdims=True)
    return np.max(np.abs(D @ D.T) - np.eye(len(D)))


def grid(draw, d_of, deltas, rhos, trials, seed):
    """{solver: success (rhos, deltas)} and the coherence bound on rho for each delta."""
    tables, bound = {name: np.zeros((len(rhos), len(deltas))) for name in SOLVERS}, np.zeros(len(deltas))
    for j, delta in enumerate(deltas):
        g = np.random.default_rng([seed, j])
        D = draw(delta, g)
        d = d_of(delta)
        bound[j] = (1 + 1 / mutual_coherence(D)) / 2 / d
        for name, solve in SOLVERS.items():
            for i, rho in enumerate(rhos):
                k = max(1, round(rho * d))
                tables[name][i, j] = success(solve, D, k, trials, g, "NN" in name)
                if tables[name][i, j] == 0 and i and tables[name][i - 1, j] == 0:
                    break  # no success at two sparsities in a row: none at larger ones
    return tables, bound


def picture(rows, deltas, rhos, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(len(rows), len(SOLVERS), figsize=(2.6 * len(SOLVERS), 2.8 * len(rows)), squeeze=False,
                             sharex=True, sharey=True, layout="constrained")  # fmt: skip
    delta, rho = l1_transition()
    for r, (line, (title, (tables, bound))) in enumerate(zip(axes, rows.items(), strict=True)):
        for ax, (name, table) in zip(line, tables.items(), strict=True):
            shown = ax.pcolormesh(deltas, rhos, table, vmin=0, vmax=1, shading="nearest", cmap="viridis")
            ax.plot(delta, rho, "r-", lw=1, label="l1, random")
            ax.plot(deltas, bound, "w--", lw=1, label="coherence bound")
            ax.set(title="" if r else name, xlim=(deltas[0], deltas[-1]), ylim=(0, rhos[-1]))
        line[0].set_ylabel(f"{title}\nk / d")
    for ax in axes[-1]:
        ax.set_xlabel("d / atoms")
    axes[0, 0].legend(fontsize=6, loc="upper left", labelcolor="w", facecolor="0.3")
    fig.colorbar(shown, ax=axes, label="share recovered", shrink=0.8)
    fig.savefig(path, dpi=130)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default="phase_transition.png")
    parser.add_argument("--atoms", type=int, default=128)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--dictionary")
    parser.add_argument("--activations")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    deltas = np.linspace(0.1, 0.9, args.steps)
    rhos = np.linspace(0.05, 0.8, args.steps)
    rows = {}

    def random(delta, g):
        D = g.standard_normal((args.atoms, round(delta * args.atoms)))
        return D / np.linalg.norm(D, axis=1, keepdims=True)

    rows["random"] = grid(random, lambda delta: round(delta * args.atoms), deltas, rhos, args.trials, 0)
    if args.dictionary:
        given = np.load(args.dictionary).astype(np.float64)
        metrics = {"SAE, Euclidean": np.eye(given.shape[1])}
        if args.activations:
            from atoms import AtomicInnerProduct

            metrics["SAE, atomic"] = (
                AtomicInnerProduct().fit(np.load(args.activations, mmap_mode="r")).whitener_
            )
        d = given.shape[1]
        deltas_here = deltas[deltas >= d / len(given)]
        for title, W in metrics.items():
            whitened = given @ W
            whitened /= np.linalg.norm(whitened, axis=1, keepdims=True)

            def some(delta, g, whitened=whitened):
                return whitened[g.choice(len(whitened), round(d / delta), replace=False)]

            tables, bound = grid(some, lambda delta: d, deltas_here, rhos, max(2, args.trials // 4), 1)
            missing = len(deltas) - len(deltas_here)  # where the dictionary has too few atoms: left blank
            wide = {n: np.pad(t, ((0, 0), (missing, 0)), constant_values=np.nan) for n, t in tables.items()}
            rows[title] = wide, np.pad(bound, (missing, 0), constant_values=np.nan)
    for title, (tables, bound) in rows.items():
        print(f"{title}: rho at which half of the trials succeed, for delta =", np.round(deltas, 2))
        for name, table in tables.items():
            half = [rhos[np.flatnonzero(c >= 0.5)[-1]] if (c >= 0.5).any() else 0 * c[0] for c in table.T]
            print(f"  {name}:", np.round(half, 2))
        print("  coherence bound:", np.round(bound, 3))
    picture(rows, deltas, rhos, args.out)
    print("wrote", args.out)


if __name__ == "__main__":
    main()
