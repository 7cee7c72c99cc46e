"""Memory by the weight: 131,072 latents of 2,304 dimensions are to train within 12 GB (docs/limits.md)."""

import sys

import numpy as np
import pytest
from safetensors.numpy import load_file
from support import run

from atoms._files import Later, load_tensors, opened_tensors, save_tensors

SCRIPT = """
import sys
import numpy as np, atoms

def status(what):
    return 1000 * int(open("/proc/self/status").read().split(what + ":")[1].split()[0])

def peak(what, function):
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew
    function()
    print(what, (status("VmHWM") - start) / weights)

tied, path = sys.argv[1] == "tied", sys.argv[2]
latents, d = 16384, 1024
weights = latents * d
X = np.random.default_rng(0).standard_normal((4096, d), dtype=np.float32)
new = lambda: atoms.SparseAutoencoder(
    latents, target_l0=32, max_steps=3, batch_size=256, verbose=False, tied=tied, num_threads=1, random_state=0
)
sae = new()
start = status("VmRSS")
peak("fit", lambda: sae.fit(X))
peak("transform", lambda: sae.transform(X))
peak("save", lambda: sae.save(path))
peak("checkpoint", lambda: sae.save(path, training_state=True))
del sae
peak("load", lambda: atoms.SparseAutoencoder.load(path))
peak("resume", lambda: new().fit(X, checkpoint=path))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks come from /proc")
@pytest.mark.parametrize(
    ("kind", "bounds"),
    [
        # the model: 8 bytes of a weight and its moments for each matrix, and 1 of the screen's image; rows and the
        # workspace are 2 here. fit: the first directions, and the encoder scaled; save and load: an array at a time
        ("free", {"fit": 34, "transform": 24, "save": 26, "checkpoint": 26, "load": 30, "resume": 32}),
        ("tied", {"fit": 20, "transform": 16, "save": 18, "checkpoint": 18, "load": 22, "resume": 24}),
    ],
)
def test_bytes_by_the_weight(kind, bounds, tmp_path):
    out = run(SCRIPT, kind, tmp_path / "sae.safetensors", OMP_NUM_THREADS="1")
    found = {what: float(value) for what, value in map(str.split, out.splitlines())}
    assert set(found) == set(bounds)
    assert all(found[what] < bounds[what] for what in bounds), found


def test_a_file_is_read_to_its_end_though_another_takes_its_name(tmp_path):
    path, old = tmp_path / "some.safetensors", {"a": np.arange(5.0), "b": np.ones((2, 3), np.float32)}
    save_tensors(path, "Some", old, {"of": "old"})
    with opened_tensors(path, "Some") as (tensors, meta):
        save_tensors(path, "Some", {"a": np.zeros(2)}, {})
        assert meta == {"of": "old"} and set(tensors) == set(old) and len(tensors) == 2
        for name, array in old.items():
            np.testing.assert_array_equal(tensors[name], array)
        tensors.check("b", (2, 3), np.float32)
        for name, shape, dtype in (
            ("b", (3, 2), np.float32),
            ("b", (2, 3), np.float64),
            ("a", (2,), np.float64),
        ):
            with pytest.raises(ValueError, match=f"{name}: expected .* of shape"):
                tensors.check(name, shape, dtype)
        with pytest.raises(KeyError):
            tensors["c"]
    assert set(load_tensors(path, "Some")[0]) == {"a"}


def test_files_are_the_same_whenever_their_arrays_are_made(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.standard_normal((3, 5)).astype(np.float32),
        "z": rng.standard_normal(7),
        "none": np.zeros((0, 4), np.float32),
        "one": np.float64(3.5).reshape(()),
        "n": np.arange(6, dtype=np.int64).reshape(2, 3)[:, ::-1],
    }
    later = {name: Later(a.shape, a.dtype, a.copy) for name, a in arrays.items()}
    meta = {"text": "snow ☃", "n": 3}
    save_tensors(tmp_path / "now", "Kind", arrays, meta)
    save_tensors(tmp_path / "later", "Kind", later, meta)
    assert (tmp_path / "now").read_bytes() == (tmp_path / "later").read_bytes()
    found, said = load_tensors(tmp_path / "later", "Kind")
    assert said == meta and set(found) == set(arrays)
    for name, a in load_file(tmp_path / "later").items():
        assert (
            a.dtype == arrays[name].dtype
            and np.array_equal(a, arrays[name])
            and a.shape == arrays[name].shape
        )
