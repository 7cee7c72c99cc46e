"""The gate of a restructuring: one SHA-256 for each entry point, instruction set and BLAS, over fixed inputs.

    python tests/bits.py > before.txt       with the tree as it was
    python tests/bits.py > after.txt        with the tree as it is; then diff the two

It goes by the public API and by the bytes of files, so that one listing can be made with either tree. What a clock
says is left out. Equal listings mean that not a bit of any result has changed: on this kind of machine only, for
other instruction sets give other bits. `python tests/bits.py omp sae` prints the lines whose name begins so.
"""

import hashlib
import json
import os
import pathlib
import re
import struct
import sys
import tempfile
import warnings

import numpy as np

import atoms
from atoms import _config, _core, recovery, theory
from atoms._report import load as load_config

ISAS = ("portable", "neon_dot", "neon_i8mm", "avx2", "avx2_vnni", "avx512", "avx512_vnni", "avx512_bf16")
TIMED = re.compile(r"second|cpu|cost|memory|wall|version|bytes", re.IGNORECASE)


def digest(*parts):
    h = hashlib.sha256()
    for a in parts:
        if not isinstance(a, (bytes, str)):
            a = np.ascontiguousarray(a)
            h.update(str(a.shape).encode() + str(a.dtype).encode())
            a = a.tobytes()
        h.update(a.encode() if isinstance(a, str) else a)
    return h.hexdigest()[:16]


def untimed(value):
    """JSON without what a clock or a version says."""
    if isinstance(value, dict):
        return {k: untimed(v) for k, v in value.items() if not TIMED.search(k) and k != "spent"}
    return [untimed(v) for v in value] if isinstance(value, list) else value


def file(path):
    """The contents of a safetensors file, whatever the order of its header's keys."""
    raw = pathlib.Path(path).read_bytes()
    (n,) = struct.unpack("<Q", raw[:8])
    header, body = json.loads(raw[8 : 8 + n]), raw[8 + n :]
    meta = {
        k: untimed(json.loads(v)) if v[:1] == "{" else v for k, v in header.pop("__metadata__", {}).items()
    }
    parts = [json.dumps(meta, sort_keys=True)]
    for name in sorted(header):
        start, end = header[name]["data_offsets"]
        parts += [name, str(header[name]["shape"]), body[start:end]]
    return digest(*parts)


def data():
    g = np.random.default_rng(0)
    mix = g.standard_normal((67, 67))
    X = (g.standard_normal((900, 67)) @ mix + 1).astype(np.float32)
    return (
        X,
        g.standard_normal((1100, 67)).astype(np.float32),
        g.standard_normal((130, 67)).astype(np.float32),
    )


def metric(X):
    half = X.astype(np.float16)
    aip = atoms.AtomicInnerProduct().fit(X)
    yield "moments", digest(aip.second_moment_, aip.mean_)
    yield (
        "moments/float64",
        digest(atoms.AtomicInnerProduct(centered=True).fit(X.astype(float)[:, ::2]).second_moment_),
    )
    yield "product", digest(aip.whiten(X), aip.whiten(half), aip.unwhiten(X[:50]))
    a = aip.angles(X)
    yield "angles", digest(a.counts, np.array([a.mean, a.std]))
    a = aip.angles(X, pairs=500, random_state=0)
    yield "angles/pairs", digest(a.counts, np.array([a.mean, a.std]))


def autoencoders(X, aip, folder):
    settings = {"target_l0": 8, "batch_size": 200, "max_steps": 25, "verbose": False}
    kinds = {
        "": {},
        "tied": {"tied": True},
        "matryoshka_widths": {"matryoshka_widths": [20, 60]},
        "aux_k+dead_after": {"aux_k": 8, "dead_after": 5.0},
        "dead_after": {"dead_after": 1.0},
        "target_l0": {"target_l0": 90.0},
        "euclidean": {"metric": None},
    }
    path = os.path.join(folder, "sae.safetensors")
    for activation in ("jumprelu", "relu", "topk", "batchtopk"):
        for name, more in kinds.items():
            sae = atoms.SparseAutoencoder(
                activation=activation, **{"d_sae": 150, "metric": aip, **settings, **more}
            )
            sae.fit(X, X_val=X[:100])
            sae.save(path, training_state=True)
            c = sae.transform(X)
            yield (
                f"sae/{activation}/{name}",
                digest(file(path), c.data, c.indices.astype(np.int64), sae.inverse_transform(c)),
            )
            if activation in ("jumprelu", "batchtopk") and name in ("", "tied", "euclidean"):
                sae.calibrate(X, 6)
                yield f"calibrate/{activation}/{name}", digest(sae.threshold, sae.W_enc, sae.b_enc, sae.b_dec)
    for screen in ("float32", "int8", "int16"):
        sae = atoms.SparseAutoencoder(150, metric=aip, screen=screen, **settings).fit(X.astype(np.float16))
        yield f"screen/{screen}", digest(sae.W_enc, sae.W_dec, sae.threshold)
    seeds = [atoms.SparseAutoencoder(150, metric=aip, random_state=s, **settings) for s in (0, 1)]
    yield "fit_many", digest(*[s.W_dec for s in atoms.fit_many(seeds, [X[:400], X[400:]])])
    warm = atoms.SparseAutoencoder(150, metric=aip, **settings).fit(X, init=seeds[0])
    yield "fit/init", digest(warm.W_enc, warm.W_dec)
    for activation in ("jumprelu", "relu", "topk", "batchtopk"):
        sae = atoms.SparseAutoencoder(150, activation, skip_connection=activation != "relu", **settings)
        sae.fit(X, target=np.abs(X[:, ::2]))
        yield (
            f"transcoder/{activation}",
            digest(sae.W_enc, sae.W_dec, sae.b_dec, sae.threshold, sae.reconstruct(X)),
        )
        sites = atoms.activations.Sites(X, 100 * np.abs(X[:, ::2]))
        sae = atoms.SparseAutoencoder(150, activation, **settings).fit(sites)
        yield (
            f"crosscoder/{activation}",
            digest(sae.W_enc, sae.W_dec, sae.b_dec, sae.threshold, sae.reconstruct(sites)),
        )
    yield from checkpoints(X, aip, folder, settings)
    yield from exports(seeds[0], X, folder)


class Stop(Exception):
    """Raised in a callback, as Ctrl-C would be."""


def checkpoints(X, aip, folder, settings):
    path = os.path.join(folder, "checkpoint.safetensors")

    def stop(sae, figures):
        if figures["step"] == 15:
            raise Stop

    sae = atoms.SparseAutoencoder(150, metric=aip, **settings)
    try:
        sae.fit(X, checkpoint=path, checkpoint_steps=10, callback=stop)
    except Stop:
        pass
    yield "checkpoint/stopped", file(path)
    sae = atoms.SparseAutoencoder(150, metric=aip, **settings).fit(X, checkpoint=path)
    yield "checkpoint/resumed", file(path)
    path = os.path.join(folder, "saved.safetensors")
    aip.save(path)
    yield "metric/file", digest(file(path), atoms.AtomicInnerProduct.load(path).whiten(X))
    sae.save(path)
    back = atoms.SparseAutoencoder.load(path)
    yield "sae/loaded", digest(file(path), back.transform(X).data, back.W_dec)


def exports(sae, X, folder):
    atoms.io.save(sae, os.path.join(folder, "lens"), format="saelens")
    atoms.io.save(sae, os.path.join(folder, "scope.npz"), format="npz")
    for name in sorted(os.listdir(os.path.join(folder, "lens"))):
        path = os.path.join(folder, "lens", name)
        yield (
            f"saelens/{name}",
            file(path)
            if name.endswith("safetensors")
            else digest(json.dumps(untimed(json.loads(pathlib.Path(path).read_text())), sort_keys=True)),
        )
    with np.load(os.path.join(folder, "scope.npz")) as arrays:
        yield "npz", digest(*[part for name in sorted(arrays) for part in (name, arrays[name])])
    for name in ("lens", "scope.npz"):
        other = atoms.load(os.path.join(folder, name))
        c = other.transform(X)
        yield f"load/{name}", digest(c.data, c.indices.astype(np.int64), other.inverse_transform(c))


def codes(X, D):
    for dt in (np.float32, np.float64):
        d, x = D.astype(dt), X.astype(dt)
        free = recovery.Dictionary(d, dtype=dt, gram_bytes=0)
        coder = recovery.SparseCoder(d, n_nonzero=7)
        solvers = {
            "omp": lambda: recovery.omp(x, d, 9),
            "omp/few": lambda: recovery.omp(x[:20], d, 9),
            "omp/tol": lambda: recovery.omp(x, d, 30, tol=4.0),
            "ols": lambda: recovery.omp(x, d, 9, selection="ols"),
            "nn": lambda: recovery.omp(x, d, 9, nonnegative=True),
            "omp/free": lambda: recovery.omp(x, free, 9),
            "omp/many": lambda: recovery.omp(x, d, 20),
            "omp/support": lambda: recovery.omp(x[:40], d, 9, support=recovery.omp(x[:40], d, 3)),
            "lasso": lambda: recovery.lasso(x, d, 1.5),
            "lasso/free": lambda: recovery.lasso(x, free, 1.5),
            "lasso/+": lambda: recovery.lasso(x, d, 1.5, positive=True),
            "mp": lambda: recovery.code(x, d, "matching_pursuit", n_nonzero=9),
            "gp": lambda: recovery.code(x, d, "gradient_pursuit", n_nonzero=9),
            "cosamp": lambda: recovery.code(x, d, "cosamp", n_nonzero=6),
            "iht": lambda: recovery.code(x, d, "iht", n_nonzero=6),
            "threshold": lambda: recovery.code(x, d, "threshold", tau=9.0),
            "bp": lambda: recovery.code(x[:6], d[:150], "basis_pursuit"),
            "bpdn": lambda: recovery.code(x[:6], d[:150], "basis_pursuit_denoise", sigma=2.0),
            "coder": lambda: coder.fit(x).transform(x),
        }
        for name, solve in solvers.items():
            c = solve()
            yield f"{name}/{np.dtype(dt)}", digest(c.data, c.indices, c.indptr)
        for name in ("omp", "cosamp"):
            c, info = recovery.code(x, d, name, n_nonzero=6, return_info=True)
            yield f"{name}/info/{np.dtype(dt)}", digest(c.data, info.status, info.residual)
        alphas, path = recovery.lasso_path(x[:40], d, n_alphas=5)
        yield f"path/{np.dtype(dt)}", digest(alphas, *[c.data for c in path])


def statistics(X, D, aip):
    half = X.astype(np.float16)
    ev = theory.explained_variance(X, half, "metric", metric=aip)
    yield "ev", digest(np.array([ev.total, ev.median]), ev.squared_error)
    ev = theory.explained_variance(X, half, massive_multiple=1.5)
    yield "ev/massive", digest(np.array([ev.total, ev.median]), ev.squared_error)
    co = theory.coherence(D, aip)
    yield "cosines", digest(np.array([co.max, *co.quantiles.values()]), co.norms)
    yield "babel", digest(theory.babel(D[:300]))
    m = theory.match_dictionaries(D[:200], D[100:300])
    yield "match", digest(np.array([m.mcc, m.mmcs]))
    c = theory.consensus([D[:200], D[100:300], D[50:250] + np.float32(0.3) * D[:200]], aip)
    yield "consensus", digest(c.atoms, c.cosine, c.members)


def stores(folder):
    """Rows of a small random decoder, by PyTorch on one thread: in memory, on disk and on the run."""
    import torch
    import transformers

    torch.manual_seed(0)
    torch.set_num_threads(1)
    small = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=61,
        max_position_embeddings=64,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(small).eval()
    g = np.random.default_rng(0)
    contexts = [g.integers(0, 61, g.integers(20, 40)) for _ in range(60)]
    common = {"batch_tokens": 128, "verbose": False}
    rows = atoms.activations.capture(model, contexts, [1, 0], **common)
    store = atoms.activations.capture(
        model, contexts, [1, 0], store=os.path.join(folder, "store"), shard_mb=0.03, **common
    )
    yield "capture", digest(rows[1], rows[0], rows.token_ids)
    for path in sorted(pathlib.Path(folder, "store").iterdir()):
        raw = path.read_bytes()
        if path.suffix == ".json":
            raw = json.dumps(untimed(json.loads(raw)), sort_keys=True)
        yield f"store/{path.name}", digest(raw)
    settings = {"d_sae": 24, "target_l0": 3, "max_steps": 20, "batch_size": 64, "verbose": False}
    sae = atoms.SparseAutoencoder(**settings).fit(store[1])
    stream = atoms.activations.ActivationStream(model, contexts, 1, buffer_rows=500, batch_tokens=128)
    yield "store/fit", digest(sae.W_dec)
    yield "stream/fit", digest(atoms.SparseAutoencoder(**settings).fit(stream).W_dec)
    yield "evaluate", digest(str(atoms.evaluate(model, contexts[:20], {"sae": sae}, 1, verbose=False)))


CELLS = {".md": "|", ".tex": "&", ".csv": ","}  # what parts a table's cells


def without_cost(text, mark):
    """Tables without the columns that say what something cost, and no sentence that says it."""
    lines, keep = [], None
    for line in text.splitlines():
        cells = line.split(mark)
        if len(cells) < 3:
            keep = keep if "hline" in line else None
            lines += [] if TIMED.search(line) else [line]
            continue
        if keep is None:
            keep = [
                i
                for i, head in enumerate(cells)
                if not TIMED.search(head) and head.strip(" \\") not in ("s", "MB")
            ]
        lines.append(mark.join(cells[i] for i in keep if i < len(cells)))
    return "\n".join(lines)


def reports(folder):
    """Each table, figure and sentence of a small report on planted rows, less its cost."""
    files = {}
    g = np.random.default_rng(0)
    for layer in ("0", "1"):
        D = g.standard_normal((40, 16))
        X = (
            (g.random((2000, 40)) < 0.08) * g.gamma(2, 1, (2000, 40)) @ D
            + 0.1 * g.standard_normal((2000, 16))
            + 1
        )
        X[700] *= 100
        files[layer] = os.path.join(folder, f"layer{layer}.npy")
        np.save(files[layer], X.astype(np.float32))
    kinds = ["atoms", "batchtopk", "neurons-all", "pca-all", "random", "memorizing", "shuffled"]
    config = {
        "name": "planted", "d_in": 16, "activations": files, "layers": [0, 1], "dictionaries": kinds, "width": 2,
        "l0": 3, "samples": 6000, "batch_size": 128, "eval_rows": 400,
        "grid": {"layer": 0, "unit": 2, "data": [1, 2], "widths": [1, 2], "epochs": 20, "min_samples": 2000},
        "frontier": {"layer": 1, "l0": [2, 3], "dictionaries": ["atoms", "random"], "widths": [1], "data": [0.5],
                     "variants": ["tied"]},
        "monosemanticity": {"layer": None},
    }  # fmt: skip
    out = pathlib.Path(folder, "out")
    atoms.report(load_config(config), out, jobs=1, verbose=False)
    for path in sorted(out.rglob("*")):
        name = re.sub("-[0-9a-f]{16}", "", f"report/{path.relative_to(out)}")
        if path.suffix in CELLS:
            yield name, digest(without_cost(path.read_text(), CELLS[path.suffix]))
        elif path.suffix == ".npz" and path.parent.name != "cells":
            with np.load(path) as arrays:
                yield name, digest(*[part for key in sorted(arrays) for part in (key, arrays[key])])


def main(wanted):
    warnings.simplefilter("ignore")
    X, D, S = data()
    isas = [isa for isa in ISAS if _core.Context(1, _core.ISAS.index(isa)).isa == isa]
    kinds = _config.blas_names()

    def show(label, results):
        for name, value in results:
            if not wanted or name.startswith(tuple(wanted)):
                print(label, name, value, flush=True)

    def of_this(room):
        return not wanted or any(w.startswith(room) or n.startswith(w) for w in wanted for n in room)

    with tempfile.TemporaryDirectory() as folder:
        for blas in kinds:
            for isa in isas:
                os.environ["ATOMS_ISA"], os.environ["ATOMS_BLAS"] = isa, blas
                label, here = f"{blas} {isa}", tempfile.mkdtemp(dir=folder)
                with atoms._config.serial_blas():
                    aip = atoms.AtomicInnerProduct().fit(X)
                    if of_this(("moments", "product", "angles")):
                        show(label, metric(X))
                    if of_this(
                        (
                            "sae",
                            "transcoder",
                            "crosscoder",
                            "calibrate",
                            "screen",
                            "fit",
                            "checkpoint",
                            "metric",
                            "saelens",
                            "npz",
                            "load",
                        )
                    ):
                        show(label, autoencoders(X, aip, here))
                    if of_this(
                        (
                            "omp",
                            "ols",
                            "nn",
                            "lasso",
                            "mp",
                            "gp",
                            "cosamp",
                            "iht",
                            "threshold",
                            "bp",
                            "coder",
                            "path",
                        )
                    ):
                        show(label, codes(S, D))
                    if of_this(("ev", "cosines", "babel", "match")):
                        show(label, statistics(X, D, aip))
        del os.environ["ATOMS_ISA"], os.environ["ATOMS_BLAS"]
        if of_this(("capture", "store", "stream", "evaluate")):
            show("files", stores(folder))
        if of_this(("report",)):
            show("files", reports(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
