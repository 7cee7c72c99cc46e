"""The scripts in examples/ run as they stand, warnings being errors, and say what they promise."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import support
from support import BLAS, FAST_BFLOAT16, ROOT

import atoms

EXAMPLES = ROOT / "examples"
pytestmark = pytest.mark.slow


def run(name, *args, **options):
    return support.run(EXAMPLES / name, *args, **{"timeout": 300, **options})


def number(text, after):
    return float(text.split(after)[1].split()[0].strip(",;"))


def test_every_example_is_tested_and_short():
    tested = Path(__file__).read_text()
    scripts = sorted(EXAMPLES.glob("*.py"))
    assert len(scripts) >= 4
    for script in scripts:
        assert f'run("{script.name}"' in tested, script.name
        assert len(script.read_text().splitlines()) < 60, script.name


def test_pytorch_hooks():
    pytest.importorskip("torch")
    said = run("pytorch_hooks.py")
    with_atoms, with_zeros = number(said, "with atoms:"), number(said, "with zeros:")
    without = number(said, "without a hook:")
    assert without <= with_atoms < without + 0.5 * (with_zeros - without)


def test_ten_minutes(tmp_path):
    pytest.importorskip("torch")
    dtype = "bfloat16" if FAST_BFLOAT16 else "float32"  # or it takes six minutes
    said = run("ten_minutes.py", 6000, dtype, timeout=600, TMPDIR=str(tmp_path))
    assert f"torch.{dtype} rows held out" in said
    assert number(said, "L0 there ") == pytest.approx(16, rel=0.05)
    in_metric, raw = number(said, "metric_centered: "), number(said, "there, centered: ")
    assert 0.1 < in_metric < raw < 1
    assert number(said, "differ at ") <= 3  # within rounding of a threshold, of tens of thousands
    texts = [line.partition(": ")[2] for line in said.splitlines() if line.startswith("    at ")]
    assert len(texts) == 9 and len(set(texts)) > 2
    folder = Path(said.splitlines()[-1].partition("in ")[2].partition(":")[0])
    assert {f.name for f in folder.iterdir()} == {
        "latents.html",
        "saelens",
        "sae.safetensors",
        "training.png",
    }
    ours, theirs = atoms.load(folder / "sae.safetensors"), atoms.load(folder / "saelens")
    np.testing.assert_allclose(ours.W_dec, theirs.W_dec)
    assert theirs.config["metadata"]["hook_name"] == "blocks.15.hook_resid_post"
    page = (folder / "latents.html").read_text(encoding="utf-8")
    assert page.count("<h2>") == 3 and "raises" in page and "<li>" in page


def test_gemma_scope(tmp_path):
    said = run("gemma_scope.py")
    assert "from gemma_scope" in said
    assert number(said, "pursuit explains") > number(said, "; explained") > 0.8

    # a file and activations of one's own
    rng = np.random.default_rng(0)
    W = rng.standard_normal((12, 8)).astype(np.float32)
    zeros = np.zeros(12, np.float32)
    np.savez(tmp_path / "params.npz", W_enc=W.T, b_enc=zeros, W_dec=W, b_dec=zeros[:8], threshold=zeros + 1)
    np.save(tmp_path / "X.npy", rng.standard_normal((50, 8)))
    said = run("gemma_scope.py", tmp_path / "params.npz", tmp_path / "X.npy")
    assert "d_in=8, d_sae=12" in said


def test_long_run():
    said = run("long_run.py")
    assert "killed after step 170" in said
    assert "went on at step 151 and ended at 300" in said
    assert "the same bits as without a kill: True" in said


def test_cluster_sweep():
    pytest.importorskip("distributed")
    rows = [line.split() for line in run("cluster_sweep.py").splitlines()[1:]]
    assert [row[:3] for row in rows] == [[d, k, "0"] for d in ("48", "96") for k in ("2", "4")]
    assert all(0 < float(row[3]) < 1 for row in rows)
    assert all(0.5 * float(row[1]) < float(row[4]) < 2 * float(row[1]) for row in rows)


@pytest.mark.skipif("blis" not in BLAS, reason="the program takes BLIS")
def test_the_core_alone():
    """The program in C, compiled as the C tests are, under the sanitizers."""
    assert len((EXAMPLES / "core.c").read_text().splitlines()) < 80
    subprocess.run(["make", "-s", "build/asan/core"], cwd=ROOT, check=True, timeout=300)
    said = subprocess.run(
        [ROOT / "build/asan/core"], capture_output=True, text=True, check=True, timeout=300
    ).stdout
    assert number(said, "explained variance") > 0.9
    assert said.count("x atom") == 3
    assert 0 < number(said, "a norm of") < 5
