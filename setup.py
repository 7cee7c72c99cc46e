"""Builds atoms._core: the C core and its binding in one extension."""

import os
import platform
import subprocess
import sys
from glob import glob

import numpy
from setuptools import Extension, setup


def blis():
    """Compile and link flags for BLIS, or None: pkg-config first, then the header."""
    if os.environ.get("ATOMS_BLIS", "system") == "none":
        return None
    try:
        flags = subprocess.run(
            ["pkg-config", "--cflags", "--libs", "blis"], capture_output=True, text=True, check=True
        ).stdout.split()
        return (
            [f for f in flags if not f.startswith(("-l", "-L"))],
            [f for f in flags if f.startswith(("-l", "-L"))],
        )
    except (OSError, subprocess.CalledProcessError):
        pass
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine())
    roots = ["/usr/local/include", "/usr/include", f"/usr/include/{machine}-linux-gnu", sys.prefix + "/include"]
    for root in roots:
        # Debian keeps the header in a folder named after the threading variant
        for folder in sorted(glob(f"{root}/blis*/")) + [root]:
            if os.path.exists(os.path.join(folder, "blis.h")):
                return ["-I" + folder], ["-lblis"]
    return None


cflags = ["-std=c11", "-O3", "-g", "-fopenmp", "-fvisibility=hidden", "-Wall", "-Wextra", "-ffp-contract=fast", "-fno-math-errno"]
ldflags = ["-fopenmp"]
macros = []
if found := blis():
    cflags += ["-isystem" + f[2:] if f.startswith("-I") else f for f in found[0]]
    ldflags += found[1]
    macros.append(("ATOMS_WITH_BLIS", "1"))

setup(
    ext_modules=[
        Extension(
            "atoms._core",
            sources=sorted(glob("csrc/core/*.c")) + sorted(glob("csrc/python/*.c")),
            depends=glob("csrc/*/*.h"),
            include_dirs=["csrc/include", "csrc/core", numpy.get_include()],
            define_macros=macros,
            extra_compile_args=cflags,
            extra_link_args=ldflags,
            libraries=["m"],
        )
    ]
)
