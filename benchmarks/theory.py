"""Seconds and peak memory of dictionary statistics and explained variance.

python benchmarks/theory.py coherence 16384 2304
python benchmarks/theory.py babel 16384 2304
python benchmarks/theory.py certificate 16384 2304
python benchmarks/theory.py certificate 65536 128
python benchmarks/theory.py match 16384 2304
python benchmarks/theory.py explained_variance 30000 576
"""

import resource
import sys
import time

import numpy as np

import atoms
from atoms import theory


def main(what: str, n: int, d: int) -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, d), dtype=np.float32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    if what == "coherence":
        print(theory.coherence(X))
    elif what == "babel":
        print(f"mu_1(1), mu_1(8) = {theory.babel(X)[[0, 7]]}")
    elif what == "certificate":
        c = theory.certificate(X)
        print(
            f"{c.coherence}, unique_k {c.unique_k}, recovery_k {c.recovery_k}, q* at L0 8: {theory.stability(c.coherence, [8]).q_star:.4f}"
        )
    elif what == "match":
        print(theory.match_dictionaries(X, X[::-1] + rng.standard_normal((n, d), dtype=np.float32)))
    elif what == "explained_variance":
        print(theory.explained_variance(X, lambda block: 0.5 * block))
    else:
        raise SystemExit(__doc__)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{what} ({n}, {d}) on {atoms.get_num_threads()} threads: {seconds:.2f} s, "
        f"peak {peak / 1024:.0f} MB, of it {before / 1024:.0f} MB before"
    )


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
