"""Python in processes of its own, on this same atoms: what must not touch the process of the tests."""

import os
import subprocess
import sys
import textwrap

import atoms

HERE = os.path.dirname(os.path.dirname(atoms.__file__))


def run(code, timeout=600, strict=True, **env):
    """Output of a script, or of Python code. Warnings are errors if `strict`: other packages have their own."""
    script = [code] if isinstance(code, os.PathLike) else ["-c", textwrap.dedent(code)]
    path = os.pathsep.join(filter(None, [HERE, env.pop("PYTHONPATH", ""), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-W", "error" if strict else "ignore", *script],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **env, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
