"""The ground: contexts, threads, BLAS, converters at the binding, forks, signals."""

import importlib.metadata
import io
import os
import subprocess
import sys
import textwrap
from contextlib import redirect_stdout

import numpy as np
import pytest

import atoms
from atoms import _config, _core


def run(code, timeout=120, **env):
    """Runs Python code in a process of its own; its standard output."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **env},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---------------------------------------------------------------- settings


def test_threads_setting(monkeypatch):
    monkeypatch.delenv("ATOMS_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert atoms.get_num_threads() == _config._available_cpus()
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert atoms.get_num_threads() == 3
    monkeypatch.setenv("ATOMS_NUM_THREADS", "5")
    assert atoms.get_num_threads() == 5
    assert _config.context().num_threads == 5
    try:
        atoms.set_num_threads(np.int64(2))
        assert atoms.get_num_threads() == 2
        assert _config.context(7).num_threads == 7
    finally:
        atoms.set_num_threads(None)


@pytest.mark.parametrize("n", [0, -1, 1.5, "two", True])
def test_threads_setting_rejects(n):
    with pytest.raises(ValueError, match="num_threads: expected a positive integer"):
        atoms.set_num_threads(n)
    with pytest.raises(ValueError, match="num_threads: expected a positive integer"):
        _config.context(n)


def test_environment_is_checked(monkeypatch):
    monkeypatch.setenv("ATOMS_NUM_THREADS", "many")
    with pytest.raises(ValueError, match="ATOMS_NUM_THREADS: expected a positive integer, got 'many'"):
        atoms.get_num_threads()
    monkeypatch.setenv("ATOMS_NUM_THREADS", "1")
    monkeypatch.setenv("ATOMS_ISA", "sse9")
    with pytest.raises(ValueError, match="ATOMS_ISA: expected one of portable"):
        _config.context()
    monkeypatch.delenv("ATOMS_ISA")
    monkeypatch.setenv("ATOMS_BLAS", "mkl")
    with pytest.raises(ValueError, match="blas: expected 'blis' or 'scipy', got 'mkl'"):
        _config.context()


def test_context(isa, blas):
    ctx = _config.context(2)
    assert (ctx.isa, ctx.blas, ctx.num_threads) == (isa, blas, 2)


@pytest.mark.parametrize("args", [(0,), (1, -1), (1, 5)])
def test_context_rejects(args):
    with pytest.raises(ValueError, match="expected"):
        _core.Context(*args)


def test_context_cannot_be_subclassed():
    # the binding knows a context by its type's destructor, which a subclass would inherit
    with pytest.raises(TypeError):
        type("Mine", (_core.Context,), {})


def test_show_config(blas):
    out = io.StringIO()
    with redirect_stdout(out):
        atoms.show_config()
    text = out.getvalue()
    info = _core.build_info()
    assert f"atoms {atoms.__version__}" in text
    assert f"{info['cpu_isa']} found" in text
    assert "OpenMP 20" in text
    if blas == "blis":
        assert f"BLIS {info['blis_version']}, {info['blis_kernels']} kernels" in text
    else:
        assert "SciPy" in text


def test_metadata():
    try:
        meta = importlib.metadata.metadata("llm-atoms")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("built in place, not installed")
    assert meta["Version"] == atoms.__version__
    assert meta["Requires-Python"] == ">=3.10"
    for minor in range(10, 15):
        assert f"Programming Language :: Python :: 3.{minor}" in meta.get_all("Classifier")


# -------------------------------------------------------------------- BLIS

needs_blis = pytest.mark.skipif(not _core.build_info()["has_blis"], reason="a build without BLIS")
KERNELS = "from atoms import _core; import os; print(_core.build_info()['blis_kernels'], os.environ.get('BLIS_ARCH_TYPE'))"


@needs_blis
def test_blis_kernels_suit_the_cpu(monkeypatch):
    monkeypatch.delenv("BLIS_ARCH_TYPE", raising=False)
    kernels, left = run(KERNELS).split()
    assert left == "None"
    if _core.build_info()["cpu_isa"] != "portable":
        assert kernels not in ("generic", "penryn", "sandybridge")


@needs_blis
@pytest.mark.slow
def test_blis_kernels_of_the_user():
    # every number that this BLIS has gives some family; the environment stays as it was
    families = set()
    for number in range(40):
        kernels, left = run(KERNELS, BLIS_ARCH_TYPE=str(number)).split()
        assert left == str(number)
        families.add(kernels)
        if "generic" in families and len(families) > 1:
            break
    assert "generic" in families


@needs_blis
@pytest.mark.parametrize("value", ["99", "-7", "zen3", ""])
def test_blis_survives_bad_kernels(value):
    default, _ = run(KERNELS).split()
    assert run(KERNELS, BLIS_ARCH_TYPE=value).split()[0] == default
