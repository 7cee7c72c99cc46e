"""What nobody should do to the package, done by seeded chance: `make torture SECONDS=600 SEED=1`.

Calls of the core and of the public API, under AddressSanitizer and UndefinedBehaviorSanitizer (calls.py), get half of
the time; attacks on processes and files (processes.py) the other half, each attack in turn. `make torture` runs the C
tests under ThreadSanitizer before. Every line has the seed that repeats it: `python -m tests.torture ATTACK SEED`.
"""

import os
import subprocess
import sys
import time

import numpy as np

from . import processes

BY_NAME = {attack.__name__: attack for attack in processes.ATTACKS}


def once(name, seed):
    """One round of one attack; whether it held."""
    started = time.monotonic()
    try:
        said = BY_NAME[name](np.random.default_rng(seed))
    except Exception as error:
        print(f"{name} {seed}: FAILED: {type(error).__name__}: {error}", flush=True)
        return False
    print(f"{name} {seed}: held ({time.monotonic() - started:.1f} s) {said}", flush=True)
    return True


def calls(which, seed, seconds, library):
    """Calls under the sanitizers, with an extension built for them in `library`; whether none was found."""
    runtime = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    )
    env = os.environ | {
        "LD_PRELOAD": runtime.stdout.strip(),
        "PYTHONPATH": f"{library}{os.pathsep}{processes.ROOT}",
        "TORTURE_LIBRARY": library,
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=2000",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_WAIT_POLICY": "passive",
    }
    command = [sys.executable, "-m", "tests.torture.calls", which, str(seed), str(seconds)]
    # from the library's folder: -m looks where it stands first, and the plain extension is in ROOT
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=library)
    print((done.stdout + ("" if done.returncode == 0 else done.stderr[-8000:])).strip(), flush=True)
    if done.returncode:
        print(f"calls {which} {seed}: FAILED, exit status {done.returncode}", flush=True)
    return done.returncode == 0


def main():
    if sys.argv[1] in BY_NAME:
        sys.exit(not once(sys.argv[1], int(sys.argv[2])))
    seconds, seed, library = float(sys.argv[1]), int(sys.argv[2]), os.path.abspath(sys.argv[3])
    print(f"torture: {seconds:g} s, seed {seed}", flush=True)
    held = True
    end, part = time.monotonic() + seconds, min(60.0, seconds / 4)
    names = sorted(BY_NAME)
    while time.monotonic() < end:
        for which in ("core", "api"):
            held &= calls(which, seed, part / 2, library)
        until = min(end, time.monotonic() + part)
        while time.monotonic() < until:
            held &= once(names[seed % len(names)], seed)
            seed += 1
        seed += 1
    print("torture: all held" if held else "torture: FAILED, see above", flush=True)
    sys.exit(not held)


main()
