"""What is shipped: sdist, wheels with and without BLIS, the core on another machine."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest
from support import ROOT

from atoms import _core

HAS_BLIS = bool(_core.build_info()["has_blis"])
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the source tree"),
]

SMOKE = ROOT / "tests" / "smoke.py"


def run(*args, ok=True, **kwargs):
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True, timeout=600, **kwargs)
    assert not ok or done.returncode == 0, done.stdout + done.stderr
    return done


def pip(*args, **kwargs):
    return run(sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", *args, **kwargs)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The sdist of what git knows of this tree, unpacked; the working tree stays as it is."""
    pytest.importorskip("setuptools", minversion="77")
    tree, dist = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in [
        *("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "LICENSES", "README.md", "CHANGELOG.md"),
        *(
            "CONTRIBUTING.md",
            "Makefile",
            ".clang-format",
            "csrc",
            "atoms",
            "tests",
            "benchmarks",
            "notebooks",
        ),
        *("CITATION.cff", "docs", "examples"),
    ]:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        elif source.exists():
            shutil.copy(source, tree)
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(dist)!r})"
    run(sys.executable, "-c", code, cwd=tree)
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(dist, filter="data") if hasattr(tarfile, "data_filter") else tar.extractall(dist)
    (unpacked,) = (path for path in dist.iterdir() if path.is_dir())
    return unpacked


def test_sdist_is_complete(sdist):
    for pattern in (
        "csrc/**/*.[ch]",
        "csrc/**/*.inc",
        "atoms/**/*.py",
        "tests/**/*.py",
        "tests/io/data/**/*.*",
        "LICENSES/*",
        "Makefile",
        "docs/*.md",
        "examples/*.py",
        "CITATION.cff",
    ):
        for path in ROOT.glob(pattern):
            assert (sdist / path.relative_to(ROOT)).exists(), path
    assert not list(sdist.rglob("*.so"))


def build_wheel(sdist, folder, **env):
    pip(
        *("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, sdist),
        env={**os.environ, **env},
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel, folder):
    pip("install", "--no-deps", "--no-index", "--target", folder, wheel)
    return {**os.environ, "PYTHONPATH": str(folder), "ATOMS_BLAS": ""}


def smoke(env, folder, *prefix):
    """Runs the package of that folder, and of no other."""
    done = run(*prefix, sys.executable, "-B", "-W", "error", SMOKE, env=env, cwd=folder)
    assert done.stdout.startswith(str(folder)), done.stdout
    return done.stdout


def test_wheel_without_blis(sdist, tmp_path):
    wheel = build_wheel(sdist, tmp_path, ATOMS_BLIS="none")
    env = install(wheel, tmp_path / "site")
    (extension,) = (tmp_path / "site" / "atoms").glob("_core*.so")
    assert "blis" not in run("ldd", extension).stdout
    assert "SciPy" in smoke(env, tmp_path / "site")
    if sys.platform == "linux":  # no debugging information
        assert extension.stat().st_size < 1_500_000


@pytest.mark.skipif(
    sys.platform != "linux", reason="on macOS it is Accelerate itself that every test runs on"
)
def test_wheel_with_accelerate(sdist, tmp_path):
    """A stand-in for Apple's library, which says so where a product of ours could be by several threads."""
    stand_in = tmp_path / "libAccelerate.so"
    compiled = ("gcc", "-O2", "-shared", "-fPIC", ROOT / "tests" / "package" / "accelerate.c", "-o", stand_in)
    run(*compiled)
    link = f"-L{tmp_path} -lAccelerate -Wl,-rpath,{tmp_path}"
    wheel = build_wheel(sdist, tmp_path, ATOMS_BLIS="none", ATOMS_ACCELERATE=link)
    env = install(wheel, tmp_path / "site")
    assert "BLAS: Accelerate" in smoke(env, tmp_path / "site")
    assert "BLAS: SciPy" in smoke({**env, "ATOMS_BLAS": "scipy"}, tmp_path / "site")
    assert run(sys.executable, "-c", ACCELERATED, stand_in, env=env, cwd=tmp_path).stdout == "done\n"
    run(*compiled, "-DBEFORE_MACOS_15")
    assert run(sys.executable, "-c", ACCELERATED, stand_in, env=env, cwd=tmp_path).stdout == "done\n"


ACCELERATED = """
import ctypes, os, sys
import numpy as np
stand_in = ctypes.CDLL(sys.argv[1])
os.environ["VECLIB_MAXIMUM_THREADS"] = "7"
import atoms
from atoms import _core
rng = np.random.default_rng(0)
ctx = _core.Context(3, 0, "accelerate")
assert ctx.blas == "accelerate"
for n, d, k in (1, 15, 17), (33, 64, 97), (300, 65, 130):
    X, D = rng.standard_normal((n, d)), rng.standard_normal((k, d))
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    codes = {}
    for blas in "accelerate", "scipy":
        os.environ["ATOMS_BLAS"] = blas
        for dtype in np.float32, np.float64:
            code = atoms.recovery.lasso(X.astype(dtype), D.astype(dtype), alpha=0.5, num_threads=3)
            codes[blas, dtype] = code.toarray()
    for dtype, bound in (np.float32, 1e-3), (np.float64, 1e-6):
        assert np.abs(codes["accelerate", dtype] - codes["scipy", dtype]).max() < bound
assert stand_in.products() > 8, stand_in.products()
assert stand_in.threaded() == 0, stand_in.threaded()
assert stand_in.threading_now() == 0  # as it was before
assert os.environ["VECLIB_MAXIMUM_THREADS"] == "7"
print("done")
"""


def test_without_a_compiler_there_is_a_sentence(sdist, tmp_path):
    done = run(
        *(sys.executable, "setup.py", "-q", "build", "-b", tmp_path),
        env={**os.environ, "CC": "no-such-compiler"},
        cwd=sdist,
        ok=False,
    )
    assert done.returncode
    assert "no C compiler 'no-such-compiler'" in done.stderr.splitlines()[-1]


# Hides every libblis of the system from one process: an empty file on top of each, in a mount
# namespace of its own.
HIDE = """
for library in $(ldconfig -p | awk '/libblis|libblas/ { print $NF }' | xargs -r readlink -f | sort -u); do
    mount --bind /dev/null "$library" || exit 77
done
exec "$@"
"""


@pytest.mark.skipif(not HAS_BLIS, reason="a build without BLIS")
def test_wheel_carries_blis(sdist, tmp_path):
    pytest.importorskip("auditwheel")
    plain = build_wheel(sdist, tmp_path / "plain")
    scripts = os.path.dirname(sys.executable)
    path = os.pathsep.join([scripts, os.environ["PATH"]])
    run(
        *(sys.executable, "-m", "auditwheel", "repair", "-w", tmp_path / "repaired", plain),
        env={**os.environ, "PATH": path},
    )
    (wheel,) = (tmp_path / "repaired").glob("*.whl")
    assert "manylinux" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert any("libs/libblis" in name for name in names)
    for licence in ("LICENSE", "LICENSES/BLIS.txt", "LICENSES/GCC-runtime-exception-3.1.txt"):
        assert any(name.endswith("licenses/" + licence) for name in names), licence
    env = install(wheel, tmp_path / "site")
    assert "BLAS: BLIS" in smoke(env, tmp_path / "site")

    hide = ("unshare", "--mount", "--map-root-user", "sh", "-c", HIDE, "sh")
    if not shutil.which("unshare") or run(*hide, "true", ok=False).returncode:
        pytest.skip("this machine allows no mount namespaces: ran, but with the system's BLIS in sight")
    # the plain wheel shows that nothing is left to be found
    plain_env = install(plain, tmp_path / "plain-site")
    hidden = run(*hide, sys.executable, "-c", "import atoms", env=plain_env, cwd=tmp_path, ok=False)
    assert hidden.returncode and "libblis" in hidden.stderr
    assert "BLAS: BLIS" in smoke(env, tmp_path / "site", *hide)


@pytest.mark.skipif(not shutil.which("aarch64-linux-gnu-gcc"), reason="needs gcc-aarch64-linux-gnu")
def test_core_on_aarch64(tmp_path):
    sources = [*sorted(ROOT.glob("csrc/core/*/*.c")), *sorted(ROOT.glob("csrc/tests/*.c"))]
    flags = "-std=c11 -O2 -fopenmp -Wall -Wextra -Werror -Wl,--wrap=aligned_alloc -static".split()
    program = tmp_path / "tests"
    run(
        *("aarch64-linux-gnu-gcc", *flags, "-I", ROOT / "csrc/include", "-I", ROOT / "csrc/core"),
        *(*sources, "-lm", "-o", program),
    )
    if not shutil.which("qemu-aarch64"):
        pytest.skip("cross-compiled, but not run: needs qemu-user")
    assert "0 failed checks" in run("qemu-aarch64", program).stdout
