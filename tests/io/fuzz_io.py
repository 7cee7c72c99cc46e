"""Damaged and hostile model files: ``python tests/io/fuzz_io.py SECONDS [SEED]`` mutates those of tests/io/data/peers
and three of our own. ``--guided`` lets atheris (``pip install atheris``) choose what is mutated further.

Reading one either works or raises a clear error: nothing else, no code run, no memory beyond the file's
worth. What breaks that is kept in tests/io/data/fuzz, which test_io.py reads for ever.
"""

import functools
import json
import os
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

import atoms

DATA = Path(__file__).with_name("data") / "peers"
FUZZ = DATA.with_name("fuzz")
ALLOWED = (ValueError, FileNotFoundError, ImportError)
NUMBERS = [0, 1, -1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1, -(2**63), 1e308, float("nan")]


OURS = "model.safetensors"


def models():
    """Folders with another tool's model each."""
    return sorted(f.parent for f in DATA.rglob("expected.npz"))


@functools.cache
def ours(scratch):
    """Folders with a file of ours each: an autoencoder, one with its metric and training state, a metric."""
    X = np.random.default_rng(0).standard_normal((200, 6))
    aip = atoms.AtomicInnerProduct().fit(X)
    options = {"target_l0": 2, "max_steps": 3, "batch_size": 16, "verbose": False}
    plain = atoms.SparseAutoencoder(12, activation="batchtopk", matryoshka_widths=[4], **options).fit(X)
    metric = atoms.SparseAutoencoder(12, metric=aip, tied=True, **options).fit(X)
    folders = [Path(scratch) / name for name in ("plain", "metric", "aip")]
    for folder in folders:
        folder.mkdir()
    plain.save(folders[0] / OURS)
    metric.save(folders[1] / OURS, training_state=True)
    aip.save(folders[2] / OURS)
    return folders


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
    (out / "expected.npz").unlink(missing_ok=True)
    files = sorted(f for f in out.iterdir() if f.is_file())
    for file in rng.sample(files, rng.choice([1, 1, len(files)])):
        file.write_bytes(mutate(rng, file.read_bytes()))


def attempt(folder):
    """Whether the model loads and encodes; errors other than the allowed ones come through."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = atoms.load(folder / OURS if (folder / OURS).exists() else folder)
            x = np.ones((2, model.n_features_in_), np.float32)
            if isinstance(model, atoms.AtomicInnerProduct):
                model.whiten(x)
            elif isinstance(model, atoms.SparseAutoencoder):
                model.inverse_transform(model.transform(x))
            else:
                model.reconstruct(x)
    except ALLOWED as error:
        assert str(error)
        return False
    return True


def _watch(event, args):
    if event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "os.fork"):
        raise AssertionError(f"a file ran {event}{args}")


def _restrain():
    """Code that a file makes run is an error from here on, and so is memory beyond 256 MB more than now."""
    import torch  # before memory is limited

    assert torch.__version__
    attempt(models()[0])
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), used + (256 << 20)))
    sys.addaudithook(_watch)


def _judge(case, name):
    """Whether the damaged model keeps the rule, and whether it still loads; what does not is kept."""
    started = time.time()
    try:
        loaded = attempt(case)
        assert time.time() - started < 20, "took too long"
    except Exception as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        FUZZ.mkdir(exist_ok=True)
        shutil.copytree(case, FUZZ / f"{type(error).__name__}-{name}", dirs_exist_ok=True)
        return False, False
    return True, loaded


def _summary(tried, loaded, kept):
    return f"{tried} damaged models, {loaded} of them still loaded, {tried - kept} broke the rule"


def main(seconds, seed):
    rng, end, tried, loaded, kept = random.Random(seed), time.time() + seconds, 0, 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        sources = [*models(), *ours(scratch)]
        _restrain()
        while time.time() < end:
            case = Path(scratch) / "case"
            damage(rng, rng.choice(sources), case)
            good, still = _judge(case, f"{seed}-{tried}")
            tried, loaded, kept = tried + 1, loaded + still, kept + good
            shutil.rmtree(case)
    print(_summary(tried, loaded, kept))
    return kept < tried


def guided(seconds, seed):
    """The same by atheris, where new branches of the readers decide which damage is built upon."""
    import inspect
    import zipfile

    import atheris

    from atoms import _checks
    from atoms import _files as ours_files
    from atoms.io import _files, _formats

    for module in (_files, _formats, ours_files, _checks):
        for name, function in list(vars(module).items()):
            if inspect.isfunction(function) and function.__module__.startswith("atoms"):
                setattr(module, name, atheris.instrument_func(function))
    zipfile.ZipFile._RealGetContents = atheris.instrument_func(zipfile.ZipFile._RealGetContents)
    with tempfile.TemporaryDirectory() as scratch:
        sources = [*models(), *ours(scratch)]
        files = [
            [f for f in sorted(m.iterdir()) if f.is_file() and f.name != "expected.npz"] for m in sources
        ]
        corpus, case = Path(scratch) / "corpus", Path(scratch) / "case"
        corpus.mkdir()
        for i, of_model in enumerate(files):
            for j, file in enumerate(of_model):
                (corpus / f"{i}-{j}").write_bytes(bytes([i, j]) + file.read_bytes())
        _restrain()
        count, end = {"tried": 0, "loaded": 0, "kept": 0}, time.time() + seconds

        def one(data):
            if time.time() > end:  # libFuzzer's own end of the process would run nothing of ours
                print(_summary(**count), flush=True)
                shutil.rmtree(scratch)
                os._exit(count["kept"] < count["tried"])
            if len(data) < 2 or data[0] >= len(files) or data[1] >= len(files[data[0]]):
                return
            case.mkdir()
            for file in files[data[0]]:
                shutil.copy(file, case)
            (case / files[data[0]][data[1]].name).write_bytes(data[2:])
            good, still = _judge(case, f"guided-{seed}-{count['tried']}")
            for name, more in (("tried", 1), ("loaded", still), ("kept", good)):
                count[name] += more
            shutil.rmtree(case)

        def change(data, limit, seed):
            return data[:2] + mutate(random.Random(seed), data[2:])[: limit - 2]

        options = [
            f"-seed={seed}",
            f"-artifact_prefix={scratch}/",
            "-max_len=65536",
            "-rss_limit_mb=0",
            "-verbosity=0",
        ]
        atheris.Setup(
            [sys.argv[0], *options, str(corpus)], one, custom_mutator=change, internal_libfuzzer=True
        )
        atheris.Fuzz()


if __name__ == "__main__":
    run = guided if "--guided" in sys.argv else main
    numbers = [float(a) for a in sys.argv[1:] if a != "--guided"]
    sys.exit(run(numbers[0], int(numbers[1]) if len(numbers) > 1 else 0))
