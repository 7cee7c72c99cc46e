"""Work for atoms, PyTorch and scikit-learn in one process, for test_together.py and benchmarks/together.py."""

import os

import numpy as np

RUNTIMES = ("torch", "sklearn", "atoms")


def load(order):
    """Import them, and run a parallel loop of each, in this order: each brings its own OpenMP threads."""
    for name in order:
        {"torch": torch_work, "sklearn": sklearn_work, "atoms": lambda: Atoms().work()}[name]()


def threads():
    """Threads of this process."""
    return len(os.listdir("/proc/self/task"))


def torch_work(size=384):
    import torch

    a = torch.ones(size, size)
    return float((a @ a).relu().sum())


def sklearn_work(n=2000):
    from sklearn.cluster import KMeans

    X = np.random.default_rng(0).standard_normal((n, 8))
    return float(KMeans(4, n_init=1, max_iter=5, random_state=0).fit(X).inertia_)


class Atoms:
    """A trained autoencoder and a dictionary, and a call of each room that uses threads."""

    def __init__(self, n=400, d=24, s=64, num_threads=None):
        import atoms

        self.X = np.random.default_rng(1).standard_normal((n, d)).astype(np.float32)
        self.num_threads = num_threads
        self.sae = atoms.SparseAutoencoder(
            s, target_l0=4, max_steps=5, batch_size=64, num_threads=num_threads, verbose=False
        ).fit(self.X)

    def work(self):
        """The result's bits: the same for any number of threads, in whatever company."""
        import atoms

        metric = atoms.AtomicInnerProduct(num_threads=self.num_threads).fit(self.X)
        codes = self.sae.transform(metric.whiten(self.X))
        pursued = atoms.recovery.omp(self.X[:50], self.sae.W_dec, n_nonzero=3, num_threads=self.num_threads)
        return float(codes.sum(dtype=float)).hex(), float(pursued.sum(dtype=float)).hex()
