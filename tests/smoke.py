"""What an installed wheel must do with nothing beside it but what it depends on: `python tests/smoke.py`.

Run on every wheel: by tests/package/test_package.py, by `make wheel-test` in an empty environment, and by cibuildwheel.
Prints where the package came from and what it was built with.
"""

import tempfile
from pathlib import Path

import numpy as np

import atoms

rng = np.random.default_rng(0)
x = rng.standard_normal((3000, 65)).astype(np.float32)

aip = atoms.AtomicInnerProduct(num_threads=2).fit(x)
error = np.abs(aip.second_moment_ - x.T.astype(float) @ x / len(x)).max()
assert error < 1e-12, error

sae = atoms.SparseAutoencoder(96, metric=aip, target_l0=5, max_steps=30, num_threads=2, verbose=False)
sae.fit(x[1000:], X_val=x[:1000])
codes = sae.transform(x)
with tempfile.TemporaryDirectory() as folder:
    sae.save(Path(folder) / "sae.safetensors")
    again = atoms.load(Path(folder) / "sae.safetensors").transform(x)
assert codes.nnz and (again != codes).nnz == 0
assert atoms.theory.explained_variance(x, sae.inverse_transform(codes), "metric", metric=aip).total > 0

# a code of two atoms of the identity and the Hadamard basis is found exactly: coherence 1/8
D = np.eye(64)
H = np.array([[1.0]])
while len(H) < 64:
    H = np.block([[H, H], [H, -H]])
D = np.concatenate([D, H / 8])
found = atoms.recovery.omp(2 * D[3:4] - D[100:101], D, n_nonzero=2).toarray()[0]
assert np.flatnonzero(found).tolist() == [3, 100] and np.allclose(found[[3, 100]], [2, -1]), found

print(atoms.__file__)
atoms.show_config()
