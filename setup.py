"""Builds atoms._core: the C core and its binding in one extension.

ATOMS_BLIS=none builds without BLIS, on the BLAS that SciPy exports. On macOS Apple's Accelerate is linked;
ATOMS_ACCELERATE has the linker's flags for it, or none. ATOMS_COVERAGE=1 counts lines,
ATOMS_DEBUG=1 keeps symbols for a debugger or profiler.
`python setup.py blis-flags` prints the compiler's flags for BLIS, for the Makefile.
"""

import itertools
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from glob import glob


def blis():
    """Compile and link flags for BLIS, or None: pkg-config first, then the header."""
    if os.environ.get("ATOMS_BLIS", "system") == "none":
        return None
    try:
        flags = subprocess.run(
            ["pkg-config", "--cflags", "--libs", "blis"], capture_output=True, text=True, check=True
        ).stdout.split()
        libraries = [f for f in flags if f.startswith(("-l", "-L"))]
        return [f for f in flags if f not in libraries], libraries
    except (OSError, subprocess.CalledProcessError):
        pass
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine())
    prefixes = [sys.prefix, os.environ.get("CONDA_PREFIX", sys.prefix), "/usr/local", "/usr"]
    for root in [p + "/include" for p in prefixes] + [f"/usr/include/{machine}-linux-gnu"]:
        # Debian keeps the header in a folder named after the threading variant
        for folder in [*sorted(glob(f"{root}/blis*/")), root]:
            if os.path.exists(os.path.join(folder, "blis.h")):
                lib = os.path.join(os.path.dirname(root), "lib")
                search = [f"-L{lib}", f"-Wl,-rpath,{lib}"] if glob(f"{lib}/libblis.*") else []
                return ["-I" + folder], [*search, "-lblis"]
    return None


def blis_flags():
    """Compiler flags and linker flags; blis.h as a system header, for its warnings are not ours."""
    found = blis()
    if found is None:
        return [], []
    return ["-DATOMS_WITH_BLIS", *("-isystem" + f[2:] if f.startswith("-I") else f for f in found[0])], found[
        1
    ]


if sys.argv[1:] == ["blis-flags"]:
    print(*itertools.chain(*blis_flags()))
    sys.exit()

import numpy  # noqa: E402
from setuptools import Extension, setup  # noqa: E402
from setuptools.command.build_ext import build_ext  # noqa: E402
from setuptools.errors import PlatformError  # noqa: E402

# clang knows no `#pragma GCC target`: it is told for each file instead.
AVX2 = ["-mavx2", "-mfma"]
AVX512 = "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma".split()
X86 = {
    "avx2.c": AVX2,
    "avx2_vnni.c": AVX2,
    "avx2_vnni_evex.c": AVX2,
    "avx512.c": AVX512,
    "vnni.c": [*AVX512, "-mavx512vnni"],
    "rows_f16c.c": ["-mavx", "-mf16c"],
}
ARM = {
    "neon_dot.c": ["-march=armv8.2-a+dotprod"],
    "neon_i8mm.c": ["-march=armv8.2-a+dotprod+i8mm"],
}
CLANG = {"x86_64": X86, "amd64": X86, "aarch64": ARM, "arm64": ARM}


class Build(build_ext):
    """Compiles every time: no file's date tells whether the last build had BLIS or coverage.

    And all CPUs compile: setuptools' own `parallel` is over extensions, of which there is one.
    """

    def finalize_options(self):
        super().finalize_options()
        self.force = True

    def build_extensions(self):
        compiler = self.compiler.compiler[0]
        if shutil.which(compiler) is None:
            raise PlatformError(
                f"atoms is numerical C, and there is no C compiler {compiler!r} here: run `apt install gcc` (or what "
                "your system calls it), set CC to one that is there, or install a wheel"
            )
        one_by_one = self.compiler.compile
        version = subprocess.run(
            [*self.compiler.compiler_so[:1], "--version"], capture_output=True, text=True
        )
        flags = CLANG.get(platform.machine().lower(), {}) if "clang" in version.stdout else None

        def compiled(file, extra_postargs, **options):
            name = os.path.basename(file)
            own = [] if flags is None else ["-Wno-unknown-pragmas", *flags.get(name, [])]
            # no other file knows BLAS, and a compiler's cache has the others whichever it is
            blas = blas_cflags if name == "blas.c" else []
            return one_by_one([file], extra_postargs=[*extra_postargs, *blas, *own], **options)

        def at_once(sources, **options):
            with ThreadPoolExecutor(self.parallel or os.cpu_count()) as pool:
                return list(itertools.chain(*pool.map(lambda file: compiled(file, **options), sources)))

        self.compiler.compile = at_once
        super().build_extensions()


# Python's own flags may ask for -g; debugging information would be three quarters of the wheel
debug = "-g" if os.environ.get("ATOMS_DEBUG") or os.environ.get("ATOMS_COVERAGE") else "-g0"
cflags = f"-std=c11 -O3 {debug} -fopenmp -fvisibility=hidden -Wall -Wextra -Wno-psabi -ffp-contract=fast -fno-math-errno".split()
ldflags = ["-fopenmp"]
blas_cflags, blas_ldflags = blis_flags()
accelerate = os.environ.get(
    "ATOMS_ACCELERATE", "-framework Accelerate" if sys.platform == "darwin" else "none"
)
if accelerate != "none":
    blas_cflags.append("-DATOMS_WITH_ACCELERATE")
    blas_ldflags += accelerate.split()
elif not blas_cflags:
    print("atoms: building without BLIS, on the BLAS that SciPy exports", file=sys.stderr)
if os.environ.get("ATOMS_COVERAGE"):
    cflags.append("--coverage")
    ldflags.append("--coverage")

setup(
    cmdclass={"build_ext": Build},
    ext_modules=[
        Extension(
            "atoms._core",
            sources=sorted(glob("csrc/core/*/*.c")) + sorted(glob("csrc/python/*.c")),
            depends=glob("csrc/**/*.h", recursive=True) + glob("csrc/**/*.inc", recursive=True),
            include_dirs=["csrc/include", "csrc/core", numpy.get_include()],
            extra_compile_args=cflags,
            extra_link_args=ldflags + blas_ldflags,
            libraries=["m"],
        )
    ],
)
