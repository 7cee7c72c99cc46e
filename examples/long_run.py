"""A long run that may be killed at any moment: it goes on from its checkpoint and ends with the same bits.

Run: python examples/long_run.py, interrupt it with Ctrl-C (or kill -9), and run the same line again. Without an
interruption from you it interrupts itself once, and compares.
"""

import tempfile
from pathlib import Path

import numpy as np

import atoms


class Killed(Exception):
    pass


def autoencoder():
    return atoms.SparseAutoencoder(
        128, target_l0=8, max_steps=300, batch_size=256, random_state=0, verbose=False
    )


def kill_at(last):
    def callback(sae, figures):
        if figures["step"] >= last:
            raise Killed(f"killed after step {figures['step']}")

    return callback


with tempfile.TemporaryDirectory() as folder:
    # shards on disk, mapped: a list of them is read as one array, and only the rows of a batch are ever in memory
    rng = np.random.default_rng(0)
    for i in range(3):
        np.save(Path(folder) / f"shard-{i}.npy", rng.standard_normal((2000, 32)).astype(np.float16))
    held_out = rng.standard_normal((1000, 32))
    shards = [np.load(path, mmap_mode="r") for path in sorted(Path(folder).glob("shard-*.npy"))]

    checkpoint = Path(folder) / "run.safetensors"
    kept = {"X_val": held_out, "checkpoint": checkpoint, "checkpoint_steps": 50}
    try:
        autoencoder().fit(shards, **kept, callback=kill_at(170))
    except Killed as death:
        print(death, "with a checkpoint of", checkpoint.stat().st_size, "bytes")

    steps = []
    resumed = autoencoder().fit(shards, **kept, callback=lambda sae, figures: steps.append(figures["step"]))
    print("went on at step", steps[0], "and ended at", steps[-1])

    straight = autoencoder().fit(shards, X_val=held_out)
    print("the same bits as without a kill:", bool((resumed.W_dec == straight.W_dec).all()))
    del shards  # closes the maps before their files go
