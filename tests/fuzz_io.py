"""Damaged and hostile model files: ``python tests/fuzz_io.py SECONDS [SEED]`` mutates those of tests/data/peers.

Reading one either works or raises a clear error: nothing else, no code run, no memory beyond the file's
worth. What breaks that is kept in tests/data/fuzz, which tests/test_io.py reads for ever.
"""

import json
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
import warnings
from pathlib import Path

from atoms.io import load

DATA = Path(__file__).with_name("data") / "peers"
FUZZ = DATA.with_name("fuzz")
ALLOWED = (ValueError, FileNotFoundError, ImportError)
NUMBERS = [0, 1, -1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1, -(2**63), 1e308, float("nan")]


def models():
    """Folders with a model each."""
    return sorted(f.parent for f in DATA.rglob("expected.npz"))


def _json_value(rng, value):
    """Another value somewhere inside a JSON value."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        new = dict(value)
        if rng.random() < 0.15:
            del new[key]
        elif rng.random() < 0.15:
            new[rng.choice(["W_enc", "threshold", "k", "x" * 50, ""])] = new[key]
        else:
            new[key] = _json_value(rng, new[key])
        return new
    if isinstance(value, list) and value and rng.random() < 0.8:
        i = rng.randrange(len(value))
        return [*value[:i], _json_value(rng, value[i]), *value[i + 1 :]]
    return rng.choice(
        [*NUMBERS, None, True, "", "F64", "BF16", "BOOL", "float16", "topk", "gated", [], {}, [[]] * 3]
    )


def mutate(rng, data):
    """Bytes damaged in one of many ways; headers of safetensors and JSON by their structure too."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5, 20])):
        kind = rng.randrange(8)
        at = rng.randrange(len(data) + 1) if rng.random() < 0.5 else rng.randrange(min(len(data), 400) + 1)
        if kind == 0:
            del data[at:]
        elif kind == 1 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            data[at : at + rng.choice([1, 2, 4, 8])] = rng.randbytes(rng.choice([1, 2, 4, 8]))
        elif kind == 3:
            data[at:at] = rng.randbytes(rng.randrange(64))
        elif kind == 4:
            data[at : at + 8] = struct.pack("<Q", int(rng.choice(NUMBERS[:7])) % 2**64)
        elif kind == 5:
            end = min(len(data), at + rng.randrange(64))
            data[at:end] = data[:at][-(end - at) :]
        elif kind == 6 and data[:1] == b"{":
            try:
                data = bytearray(json.dumps(_json_value(rng, json.loads(data))).encode())
            except ValueError:
                pass
        elif kind == 7 and len(data) > 8 and data[8:9] == b"{":
            n = int.from_bytes(data[:8], "little")
            try:
                header = json.dumps(_json_value(rng, json.loads(data[8 : 8 + n]))).encode()
            except ValueError:
                continue
            data[: 8 + n] = len(header).to_bytes(8, "little") + header
        if not data:
            break
    return bytes(data)


def damage(rng, folder, out):
    """A copy of a model with one or more of its files damaged."""
    shutil.copytree(folder, out)
    (out / "expected.npz").unlink()
    files = sorted(f for f in out.iterdir() if f.is_file())
    for file in rng.sample(files, rng.choice([1, 1, len(files)])):
        file.write_bytes(mutate(rng, file.read_bytes()))


def attempt(folder):
    """Whether the model loads and encodes; errors other than the allowed ones come through."""
    import numpy as np

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = load(folder)
            model.reconstruct(np.ones((2, model.n_features_in_), np.float32))
    except ALLOWED as error:
        assert str(error)
        return False
    return True


def _watch(event, args):
    if event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "os.fork"):
        raise AssertionError(f"a file ran {event}{args}")


def main(seconds, seed):
    import torch  # before memory is limited

    attempt(models()[0])
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), used + (256 << 20)))
    sys.addaudithook(_watch)
    assert torch.__version__
    rng, end, tried, loaded, found = random.Random(seed), time.time() + seconds, 0, 0, 0
    sources = models()
    with tempfile.TemporaryDirectory() as scratch:
        while time.time() < end:
            case = Path(scratch) / "case"
            damage(rng, rng.choice(sources), case)
            started = time.time()
            try:
                loaded += attempt(case)
                assert time.time() - started < 20, "took too long"
            except Exception as error:
                found += 1
                print(f"{type(error).__name__}: {error}", flush=True)
                FUZZ.mkdir(exist_ok=True)
                shutil.copytree(case, FUZZ / f"{type(error).__name__}-{seed}-{tried}")
            tried += 1
            shutil.rmtree(case)
    print(f"{tried} damaged models, {loaded} of them still loaded, {found} broke the rule")
    return found > 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
