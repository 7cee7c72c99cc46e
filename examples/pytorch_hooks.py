"""Activations of any PyTorch module by a forward hook, and the autoencoder put back into the running model.

Tensors go in as they are, and `to_torch` gives the autoencoder back as a module.
Run: python examples/pytorch_hooks.py
"""

import numpy as np
import torch
from torch import nn

import atoms

torch.manual_seed(0)
block = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
model = nn.Sequential(nn.Embedding(50, 32), block, nn.Linear(32, 50))
tokens = torch.randint(50, (200, 16))
targets = (3 * tokens + 1) % 50  # something to predict


def loss():
    return nn.functional.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())


optimizer = torch.optim.Adam(model.parameters(), 0.01)
for _ in range(60):
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()

# ---- out: a hook collects what a module returns. 50 different tokens give 50 different rows: noise makes more of them
rows = []
hook = block.register_forward_hook(lambda module, inputs, x: rows.append(x.detach().flatten(0, 1)))
with torch.no_grad():
    loss()
hook.remove()
X = torch.cat(rows).numpy()
X += 0.1 * X.std() * np.random.default_rng(0).standard_normal(X.shape, dtype=np.float32)

metric = atoms.AtomicInnerProduct().fit(X)
sae = atoms.SparseAutoencoder(128, metric=metric, target_l0=6, max_steps=400, batch_size=256, verbose=False)
X, X_held = X[:-640], X[-640:]
sae.fit(X, X_val=X_held)

# ---- in: another hook returns the reconstruction in place of the activations
atoms_module = sae.to_torch()
replacements = {"atoms": lambda module, inputs, x: atoms_module(x), "zeros": lambda module, inputs, x: 0 * x}
with torch.no_grad():
    print(f"loss without a hook: {loss().item():.3f}")
    for name, replace in replacements.items():
        hook = block.register_forward_hook(replace)
        print(f"loss with {name}: {loss().item():.3f}")
        hook.remove()
