"""A sweep over widths and sparsities on a Dask cluster; by default one of two processes on this machine.

Run: python examples/cluster_sweep.py [tcp://scheduler:8786 [activations.npy]]

Workers must see the file of activations under the same path; they map it, so nothing large goes over the network.
"""

import itertools
import sys
import tempfile
from pathlib import Path

import numpy as np
from distributed import Client, LocalCluster


def train(path, d_sae, target_l0, seed):
    """One cell, in a worker: a row of figures, judged on held-out activations."""
    import atoms

    X = np.load(path, mmap_mode="r")
    cut = len(X) * 4 // 5
    metric = atoms.AtomicInnerProduct(num_threads=1).fit(X[:cut])
    sae = atoms.SparseAutoencoder(
        d_sae, metric=metric, target_l0=target_l0, max_steps=300, batch_size=256, random_state=seed, num_threads=1,
        verbose=False,
    ).fit(X[:cut], X_val=X[cut:])  # fmt: skip
    codes = sae.transform(X[cut:])
    score = atoms.theory.explained_variance(X[cut:], sae.inverse_transform(codes), "centered")
    stability = atoms.theory.stability(sae.W_dec, codes, metric=metric)
    l0 = codes.nnz / codes.shape[0]
    return d_sae, target_l0, seed, score.total, l0, stability.q_star, stability.q_star_random


def main(scheduler=None, path=None):
    with tempfile.TemporaryDirectory() as folder:
        if path is None:
            rng = np.random.default_rng(0)
            codes = rng.exponential(size=(6000, 96)) * (rng.random((6000, 96)) < 0.04)
            path = Path(folder) / "activations.npy"
            np.save(path, (codes @ rng.standard_normal((96, 24))).astype(np.float32))
        cluster = scheduler or LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0")
        with Client(cluster) as client:
            cells = list(itertools.product([48, 96], [2, 4], [0]))
            rows = client.gather([client.submit(train, str(path), *cell, pure=False) for cell in cells])
        if scheduler is None:
            cluster.close()
    print("d_sae  target  seed  explained    L0     q*  random q*")
    for d_sae, target, seed, explained, l0, q, q_random in rows:
        print(f"{d_sae:5}  {target:6}  {seed:4}  {explained:9.3f}  {l0:4.1f}  {q:5.3f}  {q_random:9.3f}")


if __name__ == "__main__":  # workers import this file
    main(*sys.argv[1:])
