"""Sparse recovery against SPAMS, scikit-learn and celer: same threads, same precision, same rule.

    python benchmarks/sparse_recovery.py [--part omp lasso growth long] [--repeats 5] [--threads 2]

Rates are signals a second with everything counted: normalising the atoms, the Gram matrix,
correlations, steps, the CSR array. Competitors are timed in turns with ours and medians compared.
What SPAMS calls OMP is OLS selection; ours is run with ``selection="ols"`` beside it. SPAMS needs
``pip install spams-bin`` (or spams with a BLAS to build on), celer ``pip install celer``.
"""

import argparse
import itertools
import os
import time
import warnings

import machine
import numpy as np
import scipy.sparse

from atoms import _reference as reference
from atoms.recovery import lasso, omp

SHAPES = [
    (256, 1024, 32, 4000),
    (576, 2304, 16, 4000),
    (576, 2304, 32, 4000),
    (512, 2048, 64, 2000),
    (2304, 9216, 8, 2000),
]


def problem(d, n_atoms, k, n, noise, seed=0):
    g = np.random.default_rng(seed)
    D = g.standard_normal((n_atoms, d), np.float32)
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    X = np.empty((n, d), np.float32)
    for i in range(n):
        X[i] = (g.choice([-1, 1], k) * g.uniform(1, 2, k)) @ D[g.choice(n_atoms, k, replace=False)]
    X += (noise * np.linalg.norm(X, axis=1, keepdims=True) / np.sqrt(d)) * g.standard_normal(X.shape)
    return X.astype(np.float32), D


def timed(function):
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def in_turns(functions, repeats):
    """Median seconds and last result of each function, called in turns.

    The order changes each time, with pauses between: a function that runs right after SPAMS competes with its
    threads, which still spin, and finds few huge pages, for SPAMS's many small blocks have broken them up."""
    times, results = [[] for _ in functions], [None] * len(functions)
    orders = itertools.cycle(itertools.permutations(range(len(functions))))
    for order in itertools.islice(orders, repeats):
        for i in order:
            time.sleep(0.5)
            seconds, results[i] = timed(functions[i])
            times[i].append(seconds)
    return [float(np.median(t)) for t in times], results


def on_this_machine(threads):
    with open("/proc/cpuinfo") as f:
        model = next(
            (line.split(":")[1].strip() for line in f if line.startswith("model name")), "unknown CPU"
        )
    print(
        f"{model}, {os.cpu_count()} cores, {threads} threads; NumPy {np.__version__}, SciPy {scipy.__version__}"
    )
    print(machine.said(threads))
    return machine.peaks(threads).get("float32", float("nan"))


def same_supports(a, b):
    return np.mean([set(a.indices[a.indptr[i] : a.indptr[i + 1]]) == set(b.indices[b.indptr[i] : b.indptr[i + 1]])
                    for i in range(a.shape[0])])  # fmt: skip


def omp_part(args, peak):
    spams = machine.spams()
    print("\nOMP, float32, signals/s (median)")
    print(
        "d, atoms, nonzeros, signals, noise | SPAMS | ours OLS, ratio, same supports | ours OMP, ratio | share of peak"
    )
    for (d, n_atoms, k, n), noise in [
        (s, e) for s in SHAPES if args.d is None or s[0] in args.d for e in (0.0, 0.3)
    ]:
        X, D = problem(d, n_atoms, k, n, noise)
        Xf, Df = np.asfortranarray(X.T), np.asfortranarray(D.T)
        repeats = args.repeats
        (t_spams, t_ols, t_omp), (theirs, ours, _) = in_turns(
            [
                # eps must be given: left out, this build of SPAMS at times returns empty codes
                lambda: spams.omp(Xf, Df, L=k, eps=0.0, numThreads=args.threads),
                lambda: omp(X, D, k, selection="ols", num_threads=args.threads),
                lambda: omp(X, D, k, num_threads=args.threads),
            ],
            repeats,
        )
        theirs = scipy.sparse.csr_array(theirs.T)
        assert theirs.nnz > 0.9 * n * k, "SPAMS returned empty codes"
        products = 1.0 * n_atoms**2 * d + 2.0 * n * n_atoms * d + 1.0 * n * n_atoms * k * k
        print(
            f"{d}, {n_atoms}, {k}, {n}, {noise} | {n / t_spams:.0f} | {n / t_ols:.0f}, {t_spams / t_ols:.2f}, "
            f"{same_supports(theirs, ours):.4f} | {n / t_omp:.0f}, {t_spams / t_omp:.2f} | {products / t_ols / peak:.2f}",
            flush=True,
        )


def sklearn_part(args):
    from sklearn.linear_model import orthogonal_mp_gram

    print("\nscikit-learn orthogonal_mp_gram, float32, 40 signals, noise 0.3: signals/s")
    for d, n_atoms, k, _ in SHAPES[:4]:
        X, D = problem(d, n_atoms, k, 40, 0.3)
        G, C = D @ D.T, D @ X.T
        print(
            f"{d}, {n_atoms}, {k} | {40 / timed(lambda: orthogonal_mp_gram(G, C, n_nonzero_coefs=k))[0]:.0f}",
            flush=True,
        )


def growth_part(args, peak):
    """Products counted: half a Gram matrix and the correlations; bytes of a step: its 16-bit panels."""
    print("\nhow the time grows (OLS, float32, noise 0.3): microseconds a signal | share of the machine's")
    print("float32 product rate that the products alone would be | GB/s of panels (16 bits an element)")
    for name, shapes in (
        ("signals", [(576, 2304, 16, n) for n in (250, 1000, 4000, 16000)]),
        ("atoms", [(256, a, 16, 4000) for a in (512, 1024, 2048, 4096)]),
        ("nonzeros", [(512, 2048, k, 1000) for k in (4, 8, 16, 32, 64, 128)]),
    ):
        for d, n_atoms, k, n in shapes:
            X, D = problem(d, n_atoms, k, n, 0.3)
            seconds = np.median(
                [timed(lambda: omp(X, D, k, selection="ols", num_threads=args.threads))[0] for _ in range(3)]
            )
            products = n_atoms**2 * d + 2.0 * n * n_atoms * d
            panels = 2.0 * n * n_atoms * k * (k - 1) / 2
            print(
                f"{name}: d {d}, atoms {n_atoms}, nonzeros {k}, signals {n} | {1e6 * seconds / n:.1f} | "
                f"{products / seconds / peak:.2f} | {panels / seconds / 1e9:.1f}",
                flush=True,
            )


LADDER = (1e-5, 3e-6, 1e-6, 5e-7, 3e-7, 2e-7, 1e-7, 3e-8, 1e-8, 1e-10)
FEW = 20  # signals for the slow competitors


def worst_gap(X, D, codes, alpha, most=100):
    """The largest duality gap over |x|^2, of the first signals, in float64 from the definition."""
    codes = scipy.sparse.csr_array(codes)[: min(most, codes.shape[0])].toarray().astype(float)
    D = D.astype(float)
    return max(
        reference.lasso_gap(x, D, z, alpha) / float(x @ x)
        for x, z in zip(X[: len(codes)].astype(float), codes, strict=True)
    )


def at_gap(solve, X, D, alpha, target):
    """The first tolerance at which `solve(tol)` has no gap above `target`, or None, and its gap."""
    for tol in LADDER:
        gap = worst_gap(X, D, solve(tol), alpha)
        if gap <= target:
            return tol, gap
    return None, gap


def lasso_part(args):
    import celer
    from sklearn.linear_model import Lasso

    spams = machine.spams()
    print("\nlasso at equal worst duality gap over |x|^2 (SPAMS's own, which has no tolerance): signals/s")
    for (d, n_atoms, k, n), share in [
        ((256, 1024, 16, 1000), 0.1),
        ((576, 2304, 16, 1000), 0.1),
        ((576, 2304, 16, 500), 0.04),
    ]:
        X, D = problem(d, n_atoms, k, n, 0.3)
        alpha = share * float(np.median(np.linalg.norm(X, axis=1)))
        Xf, Df, A = np.asfortranarray(X.T), np.asfortranarray(D.T), np.asfortranarray(D.T, np.float64)

        def theirs(Xf=Xf, Df=Df, alpha=alpha):
            return spams.lasso(Xf, Df, lambda1=alpha, mode=2, numThreads=args.threads).T

        def ours(tol, X=X, D=D, alpha=alpha):
            return lasso(X, D, alpha, tol=tol, num_threads=args.threads)

        def sklearn(tol, X=X, D=D, alpha=alpha, d=d):
            model = Lasso(alpha / d, fit_intercept=False, tol=tol, max_iter=100_000, precompute=D @ D.T)
            return model.fit(np.asfortranarray(D.T), np.asfortranarray(X[:FEW].T)).coef_

        def celers(tol, X=X, A=A, alpha=alpha, d=d):
            one = celer.Lasso(alpha / d, fit_intercept=False, tol=tol)
            return np.array([one.fit(A, x.astype(float)).coef_.copy() for x in X[:FEW]])

        target = worst_gap(X, D, theirs(), alpha)
        tol, gap = at_gap(ours, X, D, alpha, target)
        wide = tol is None
        if wide:  # float32 does not reach SPAMS's gap: ours in float64 then
            X64, D64 = X.astype(float), D.astype(float)

            def ours(tol, X=X64, D=D64, alpha=alpha):
                return lasso(X, D, alpha, tol=tol, num_threads=args.threads)

            tol, gap = at_gap(ours, X, D, alpha, target)
        (t_spams, t_ours), (_, codes) = in_turns([theirs, lambda f=ours, t=tol: f(t)], args.repeats)
        print(
            f"d {d}, atoms {n_atoms}, penalty {share} |x|, {codes.nnz / n:.1f} nonzeros a signal, gap {target:.1e}"
        )
        print(f"  SPAMS {n / t_spams:.0f}")
        print(
            f"  ours {n / t_ours:.0f} ({'float64' if wide else 'float32'}, tol {tol:g}, gap {gap:.1e}), ratio {t_spams / t_ours:.2f}"
        )
        for name, solve in (("scikit-learn", sklearn), ("celer, float64", celers)):
            tol, gap = at_gap(solve, X, D, alpha, target)
            seconds = timed(lambda f=solve, t=tol or LADDER[-1]: f(t))[0]
            said = f"tol {tol:g}" if tol else "at its tightest tolerance"
            print(
                f"  {name} {FEW / seconds:.0f} ({said}, gap {gap:.1e}), ratio {seconds / FEW * n / t_ours:.1f}",
                flush=True,
            )


def unit(a):
    return (a / np.linalg.norm(a, axis=1, keepdims=True)).astype(np.float32)


def alike(kind, n_atoms, d, seed=0):
    """Unit atoms: random ones; with a direction in common; or in 48 clusters, of cosine 0.9 or 0.99 within."""
    g = np.random.default_rng(seed)
    own = unit(g.standard_normal((n_atoms, d)))
    if kind == "common":
        return unit(own + 2 * unit(g.standard_normal((1, d))))
    if kind != "random":
        share = {"clusters of 0.9": 1 / 3, "clusters of 0.99": 0.1}[kind]
        return unit(unit(g.standard_normal((48, d)))[np.arange(n_atoms) % 48] + share * own)
    return own


def long_part(args, d=576, n_atoms=1152, n=600):
    """Codes of tens to hundreds of nonzeros, of Gaussian signals, whose codes no dictionary here makes shorter."""
    spams = machine.spams()
    X = np.random.default_rng(1).standard_normal((n, d)).astype(np.float32)
    Xf = np.asfortranarray(X.T)
    print(f"\nlong codes: {d} dimensions, {n_atoms} atoms, {n} Gaussian signals; signals/s")
    print("atoms | OLS, nonzeros | SPAMS, its |r|^2 | ours, ratio, |r|^2")
    kinds = ("random", "common", "clusters of 0.9", "clusters of 0.99")
    for kind, k in itertools.product(kinds, (32, 64, 128, 200, 288)):
        D = alike(kind, n_atoms, d)
        Df = np.asfortranarray(D.T)
        times, codes = in_turns(
            [
                lambda Df=Df, k=k: spams.omp(Xf, Df, L=k, eps=0.0, numThreads=args.threads).T,
                lambda D=D, k=k: omp(X, D, k, selection="ols", num_threads=args.threads),
            ],
            3,
        )
        left = [float(np.mean(np.sum((X - c @ D) ** 2, axis=1))) for c in codes]
        print(
            f"{kind} | {k} | {n / times[0]:.0f}, {left[0]:.3f} | {n / times[1]:.0f}, {times[0] / times[1]:.2f}, {left[1]:.3f}",
            flush=True,
        )
    print(
        "atoms | lasso, share of the largest correlation, nonzeros | SPAMS, objective | ours, ratio, objective"
    )
    for kind, share in itertools.product(kinds, (0.5, 0.3, 0.2, 0.1, 0.05)):
        D = alike(kind, n_atoms, d)
        Df, alpha = np.asfortranarray(D.T), share * float(np.median(np.abs(X @ D.T).max(axis=1)))
        times, codes = in_turns(
            [
                lambda Df=Df, a=alpha: spams.lasso(Xf, Df, lambda1=a, mode=2, numThreads=args.threads).T,
                lambda D=D, a=alpha: lasso(X, D, a, tol=1e-5, num_threads=args.threads),
            ],
            3,
        )
        objective = [
            float(np.mean(np.sum((X - c @ D) ** 2, axis=1)) / 2 + alpha * abs(c).sum() / n) for c in codes
        ]
        print(
            f"{kind} | {share}, {codes[1].nnz / n:.0f} | {n / times[0]:.0f}, {objective[0]:.4f} | {n / times[1]:.0f}, "
            f"{times[0] / times[1]:.2f}, {objective[1]:.4f}",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--part", nargs="+", default=["omp", "sklearn", "growth", "lasso", "long"])
    parser.add_argument("--d", nargs="+", type=int, help="only OMP's shapes with these d")
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    limit = on_this_machine(arguments.threads)
    if "omp" in arguments.part:
        omp_part(arguments, limit)
    if "sklearn" in arguments.part:
        sklearn_part(arguments)
    if "growth" in arguments.part:
        growth_part(arguments, limit)
    if "lasso" in arguments.part:
        lasso_part(arguments)
    if "long" in arguments.part:
        long_part(arguments)
