"""Judge a Gemma Scope autoencoder with certificates and solvers that its own tools do not have.

Run: python examples/gemma_scope.py FOLDER_OR_params.npz [activations.npy]

Without a path, a file in Gemma Scope's layout is made up (random directions, small), and activations that are
sparse sums of its atoms. From the hub, instead of `atoms.load`:
    atoms.io.from_pretrained("google/gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71")
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

import atoms


def made_up(folder, d_in=256, d_sae=1024):
    """W_enc (d_in, d_sae), b_enc, W_dec (d_sae, d_in), b_dec, threshold, as Gemma Scope writes them."""
    W = np.random.default_rng(0).standard_normal((d_sae, d_in)).astype(np.float32)
    W /= np.linalg.norm(W, axis=1, keepdims=True)
    path = Path(folder) / "layer_20" / "width_1k" / "average_l0_4" / "params.npz"
    path.parent.mkdir(parents=True)
    zeros = np.zeros(d_sae, np.float32)
    np.savez(path, W_enc=W.T, b_enc=zeros, W_dec=W, b_dec=np.zeros(d_in, np.float32), threshold=zeros + 0.7)
    return path.parent


def activations(sae, n=1000, k=4):
    rng = np.random.default_rng(1)
    codes = np.zeros((n, sae.d_sae), np.float32)
    chosen = np.argsort(rng.random(codes.shape), axis=1)[:, :k]
    np.put_along_axis(codes, chosen, rng.uniform(1, 2, (n, k)), axis=1)
    return codes @ sae.W_dec + sae.b_dec


with tempfile.TemporaryDirectory() as folder:
    path = sys.argv[1] if len(sys.argv) > 1 else made_up(folder)
    sae = atoms.load(path, is_transcoder=False)  # the file does not say
X = np.load(sys.argv[2]) if len(sys.argv) > 2 else activations(sae)

codes = sae.transform(X)
print(sae)
explained = atoms.theory.explained_variance(X, sae.reconstruct(X), "centered")
print(f"L0 {codes.nnz / len(X):.1f}; explained", explained.total)

coherence = atoms.theory.coherence(sae.W_dec)
found = atoms.theory.certificate(coherence)
print(f"coherence {coherence.max:.3f}, of any dictionary so shaped at least {found.welch_bound:.3f}")
print(f"unique whatever the atoms: codes of up to {found.unique_k} atoms")
print("shares of these codes:", atoms.theory.certify(coherence, codes).shares)
stability = atoms.theory.stability(coherence, codes)
print(f"q* {stability.q_star:.3f} at this L0, of random directions {stability.q_star_random:.3f}")

# as many atoms as the encoder takes on average, but searched for: what the dictionary could explain
best = atoms.recovery.omp(X - sae.b_dec, sae.W_dec, n_nonzero=max(1, round(codes.nnz / len(X))))
print("pursuit explains", atoms.theory.explained_variance(X, best @ sae.W_dec + sae.b_dec, "centered").total)
