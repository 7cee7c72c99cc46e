"""Seeded random calls of every function of `atoms._core` and of much of the public API.

Run under AddressSanitizer and UndefinedBehaviorSanitizer: `python -m tests.torture.calls core|api SEED SECONDS`. Shapes,
types, strides, values and aliases are mostly what is asked for, and sometimes anything. Only errors that are meant may
come back; each call has a generator of its own, so a number printed at a crash names the call.
"""

import ast
import faulthandler
import functools
import math
import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np

import atoms
from atoms import _config, _core, controls, recovery, theory

SIZES = [0, 1, 1, 2, 3, 15, 17, 33, 97]
FLOATS = ["f4", "f8", "f2"]
MEANT = (ValueError, TypeError, IndexError, MemoryError, OverflowError)
HUGE = [-1, 0, 1, 2, 3, 7, 31, 2**31 - 1, 2**31, 2**62, -(2**63)]
# numbers that only say how long to work: a large one would be obeyed
LONG = {"max_rounds", "max_steps", "rounds", "sweeps"}
# Shapes by name: of sizes (n rows, d columns, k atoms or latents, r places of a row's code, m, c) and numbers.
SHAPES = {
    "moments": {"X": "nd", "shift": "d", "sum": "d", "second": "dd"},
    "product": {"X": "nd", "center": "d", "w": "dm", "offset": "m", "out": "nm"},
    "angles": {"X": "nd", "first": "m", "second": "m", "counts": "c", "sums": "3"},
    "sae_get": {"out": "*"},
    "sae_set": {"values": "*"},
    "sae_reset": {"idx": "m", "rows": "md", "readers": "md", "scales": "m", "thresholds": "m"},
    "sae_step": {"X": "nd", "index": "n", "shift": "d"}
    | {"target": "nd", "target_index": "n", "target_shift": "d"},
    "sae_train": {"X": "nd", "rates": "m", "control": "7", "index": "n", "shift": "d"}
    | {"target": "nd", "target_index": "n", "target_shift": "d"},
    "sae_encode": {"X": "nd", "index": "n", "shift": "d"},
    "decode": {"indptr": "N", "indices": "c", "values": "c", "W_dec": "kd", "bias": "d", "out": "nd"},
    "lasso": {"alphas": "c", "indices": "Cr", "values": "Cr", "counts": "C", "status": "C", "steps": "C"}
    | {"residual": "C", "gap": "C", "X": "nd"},
    "correlation_max": {"X": "nd", "top": "n"},
    "spikes": {"indices": "nr", "values": "nr", "counts": "n", "status": "n", "steps": "n", "residual": "n"}
    | {"rate": "k", "height": "k", "spread": "k", "probability": "nr", "X": "nd"},
    "part_atoms": {"indptr": "N", "indices": "c", "values": "c", "atoms": "kd", "energy": "k", "out": "kd"},
    "fit_atoms": {"X": "nd", "indptr": "N", "indices": "c", "values": "c", "atoms": "kd", "energy": "k"},
    "pack_codes": {"indices": "nr", "values": "nr", "counts": "n", "out_indices": "c", "out_values": "c"},
    "ev_update": {"X": "nd", "X_hat": "nd", "whitener": "dd", "mean": "d", "sums": "2Ed", "tokens": "nT"},
    "unit_rows": {"D": "kd", "whitener": "dd", "unit": "kd", "norms": "k"},
    "cosine_histogram": {"unit": "kd", "counts": "B"},
    "cosine_refine": {"unit": "kd", "slot": "B", "counts": "cL"},
    "nearest": {"A": "nd", "B": "kd", "index": "n", "value": "n", "back_index": "k", "back_value": "k"},
    "babel": {"unit": "kd", "babel": "K"},
    "dict_new": {"atoms": "kd"},
    "sae_new": {"prefixes": "m"},
}
CODES = {
    "X": "nd",
    "indptr": "N",
    "support": "c",
    "indices": "nr",
    "values": "nr",
    "counts": "n",
    "status": "n",
}
CODES |= {"steps": "n", "residual": "n", "gap": "n", "tau": "n"}
TYPES = {
    "indices": "i4",
    "counts": "i4",
    "status": "i1",
    "steps": "i4",
    "indptr": "i8",
    "support": "i4",
    "slot": "i4",
}
TYPES |= {
    "index": "i8",
    "target_index": "i8",
    "idx": "i8",
    "first": "i8",
    "second": "i8",
    "prefixes": "i8",
    "out_indices": "i4",
}
OTHER_TYPES = {
    ("moments", "second"): "f8", ("product", "out"): "f4", ("angles", "counts"): "i8", ("cosine_histogram", "counts"): "i8",
    ("cosine_refine", "counts"): "i8", ("decode", "values"): "f4", ("sae_get", "out"): "f4", ("sae_set", "values"): "f4",
    ("pack_codes", "out_values"): "f4", ("decode", "out"): "f4", ("pack_codes", "values"): "f4",
    ("fit_atoms", "values"): "f4", ("fit_atoms", "atoms"): "f4", ("part_atoms", "atoms"): "f4", ("part_atoms", "out"): "f4",
    ("part_atoms", "values"): "f4", ("spikes", "values"): "f4", ("spikes", "probability"): "f4",
}  # fmt: skip
ANY_FLOAT = {"X", "X_hat", "D", "atoms", "target"}
FLOAT32 = {
    "unit",
    "A",
    "B",
    "value",
    "W_dec",
    "bias",
    "rows",
    "readers",
    "scales",
    "thresholds",
    "rates",
    "shift",
    "target_shift",
}


# Drawn once: a call takes a piece of them, for drawing and converting was three quarters of its time.
NORMAL = np.random.default_rng(0).standard_normal(1 << 16)
NORMALS = {kind: NORMAL.astype(kind) for kind in ("f8", "f4", "f2")}
INTEGERS = np.random.default_rng(1).integers(0, 1 << 30, 1 << 16)


def pick(rng, of):
    """One of a list: Generator.choice makes an array of it first."""
    return of[rng.integers(len(of))]


def piece(rng, numbers, shape):
    """An array of `shape` from a random place of `numbers` on, and round again if it is larger; a copy."""
    size = math.prod(shape)
    start = int(rng.integers(len(numbers)))
    if start + size <= len(numbers):
        return numbers[start : start + size].reshape(shape).copy()
    return np.resize(numbers[start:], shape)


def signatures():
    """Parameters of each function of the core, with their types, from its stub."""
    tree = ast.parse(Path(atoms.__file__).with_name("_core.pyi").read_text())
    found = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name != "build_info":
            parameters = [*node.args.posonlyargs, *node.args.args]
            found[node.name] = tuple((a.arg, ast.unparse(a.annotation)) for a in parameters)
    return found


@functools.cache
def in_order(parameters):
    """Handles and numbers first, for they decide the sizes of arrays."""
    return sorted(parameters, key=lambda p: (p[0] not in ("handle", "sae"), p[1].startswith("NDArray")))


class Draw:
    """What one call is given."""

    def __init__(self, rng, handles):
        self.rng, self.handles = rng, handles
        self.sizes = {c: pick(rng, SIZES) for c in "ndkmcr"}
        self.sizes |= {"3": 3, "2": 2, "E": _core.EV_ROWS, "T": _core.EV_TOKENS, "B": _core.COSINE_BINS}
        self.sizes |= {"7": 7, "L": 1 << _core.COSINE_LOW_BITS}
        self.odd = rng.random() < 0.3  # then anything may come, else what fits

    def chance(self, p):
        return self.rng.random() < p

    def seldom(self, p=0.1):
        return self.odd and self.chance(p)

    def handle(self, kind):
        of_kind = self.handles["dict" if self.seldom(0.05) else kind]
        handle, k, d, self.precision = of_kind[self.rng.integers(len(of_kind))]
        self.sizes |= {"k": k, "d": d}
        return handle

    def size(self, letter):
        if letter == "*":
            return (self.sizes["k"], self.sizes["d"])[self.rng.integers(2)]
        s = self.sizes
        value = {"N": s["n"] + 1, "K": max(0, s["k"] - 1), "C": s["c"] * s["n"]}.get(letter, s.get(letter))
        return pick(self.rng, SIZES) if self.seldom() else value

    def array(self, function, name):
        letters = SHAPES.get(function, {}).get(name) or CODES[name]
        if letters == "*" and self.chance(0.5):
            letters = "kd"
        shape = tuple(self.size(letter) for letter in letters)
        kind = OTHER_TYPES.get((function, name)) or TYPES.get(name)
        if name == "values" and kind is None:
            kind = self.precision
        if kind is None:
            kind = pick(self.rng, FLOATS) if name in ANY_FLOAT else "f4" if name in FLOAT32 else "f8"
        if self.seldom(0.05):
            kind = pick(self.rng, ["f4", "f8", "f2", "i4", "i8", "u1", "O", ">f4"])
        return self.laid_out(self.filled(shape, np.dtype(kind), name), name)

    def filled(self, shape, dtype, name):
        rng = self.rng
        if dtype.kind in "iu":
            top = self.sizes[{"index": "n", "first": "n", "second": "n"}.get(name, "k")]
            a = piece(rng, INTEGERS, shape) % max(1, top)
            if name == "indptr" and len(shape) == 1 and shape[0]:
                a = np.arange(shape[0]) * rng.integers(0, 3)
                self.sizes["c"] = int(a[-1])
            if name == "counts":
                a = piece(rng, INTEGERS, shape) % (self.sizes["r"] + 1)
                self.sizes["c"] = int(a.sum())
            if self.seldom() and a.size:
                info = np.iinfo(dtype)
                a.flat[rng.integers(a.size)] = pick(rng, [-1, info.max, info.min, top])
            return a.astype(dtype)
        scale = 10.0 ** pick(rng, [-310, -45, -30, -8, 8, 20, 38, 300]) if self.chance(0.05) else None
        a = piece(rng, NORMAL if scale else NORMALS.get(dtype.str[1:], NORMAL), shape)
        if self.chance(0.1) and len(shape) == 2 and shape[0] > 1:
            a[rng.integers(shape[0])] = a[0]  # copies of atoms and rows
        if scale:
            a *= scale
        if self.seldom() and a.size:
            a.flat[rng.integers(a.size)] = pick(rng, [np.nan, np.inf, -np.inf, 0, 1e38, -0.0])
        if self.chance(0.03):
            a = np.zeros(shape)
        return a.astype(dtype, copy=False)

    def laid_out(self, a, name):
        if name in ANY_FLOAT and a.ndim == 2 and self.chance(0.3):
            wide = np.zeros((2 * a.shape[0], 2 * a.shape[1] + 1), a.dtype)
            view = [wide[::2, : a.shape[1]], wide[: a.shape[0], ::2][:, : a.shape[1]]][self.rng.integers(2)]
            view[...] = a
            return view[::-1] if self.chance(0.3) else view
        if name in ANY_FLOAT and self.chance(0.1):
            return np.asfortranarray(a)
        if self.seldom(0.05):
            a.flags.writeable = False
        if self.seldom(0.05):
            return np.ascontiguousarray(a.T)
        if self.seldom(0.03) and a.ndim == 2:
            return np.broadcast_to(a[:1], a.shape)
        return a

    def number(self, name, kind):
        if kind == "bool":
            return bool(self.chance(0.5))
        if kind == "int":
            most = 40 if name in LONG else max(2, self.sizes["k"])
            if self.seldom(0.2) and name not in LONG:
                return pick(self.rng, HUGE)
            return int(self.rng.integers(-1 if self.odd else 0, most))
        odd = [0, 1e-3, 0.1, 1, 10, 1e-30, 1e30, -1, np.nan, np.inf]
        return float(pick(self.rng, odd if self.odd else [1e-3, 0.1, 1]))

    def argument(self, function, name, kind):
        if kind == "Context":
            return self.handles["ctx"][self.rng.integers(len(self.handles["ctx"]))]
        if name == "work":  # several calls share few of them
            return self.rng.choice([None, *self.handles["work"]])
        if name in ("handle", "sae"):
            return self.handle("dict" if name == "handle" else "sae")
        if kind.startswith("NDArray"):
            if ("None" in kind and self.chance(0.4)) or self.seldom(0.01):
                return None
            return self.array(function, name)
        return self.number(name, kind)

    def call(self, function, parameters):
        """Arguments in order."""
        given = {}
        for name, kind in in_order(parameters):
            given[name] = self.argument(function, name, kind)
            if name == "handle":
                self.sizes["r"] = self.sizes["k"]
            if name == "n_nonzero" and not self.seldom():
                self.sizes["r"] = given[name] = max(1, min(200, given[name]))
            if name in ("method", "activation") and not self.seldom():
                given[name] %= 4
            if name == "field":
                given[name] = int(self.rng.integers(-1, 20))
        arrays = [name for name, a in given.items() if isinstance(a, np.ndarray)]
        if len(arrays) > 1 and self.seldom():
            a, b = self.rng.choice(arrays, 2, replace=False)
            given[a] = given[b]  # two arguments in one memory
        if function == "sae_new":
            given |= {"d_in": self.sizes["d"] or 1, "d_sae": self.sizes["k"] or 1}
        whole = [given[name] for name, _ in parameters]
        return whole[:6] if function == "sae_new" and not self.odd else whole


def handles_of(rng):
    """Contexts, dictionaries and autoencoders to call with, and their sizes."""
    isas = range(_core.ISAS.index(_core.build_info()["cpu_isa"]) + 1)
    blas = _config.blas_names()
    ctx = [
        _core.Context(int(rng.choice([1, 1, 1, 1, 2, 3])), int(rng.choice(isas)), str(rng.choice(blas)))
        for _ in range(6)
    ]
    found = {"ctx": ctx, "dict": [], "sae": [], "work": [_core.sae_work() for _ in range(2)]}
    while len(found["dict"]) < 8:
        k, d = (int(s) for s in rng.choice(SIZES[1:], 2))
        D = rng.standard_normal((k, d))
        if len(found["dict"]) % 3 == 2:
            D[rng.integers(k)] = D[0]
        precision = str(rng.choice(["f4", "f8"]))
        handle = _core.dict_new(ctx[0], D, precision == "f8")
        found["dict"].append((handle, k, d, precision))
    while len(found["sae"]) < 8:
        k, d = (int(s) for s in rng.choice(SIZES[1:], 2))
        kind = int(rng.integers(4))
        out = d if len(found["sae"]) % 3 == 2 else 0  # a transcoder, with a skip connection
        tied = bool(rng.integers(2)) and not out
        sae = _core.sae_new(
            ctx[0], d, k, kind, k=int(rng.integers(1, k + 1)), tied=tied, d_out=out, skip=bool(out)
        )
        for field, shape in ((_core.W_ENC, (k, d)), (_core.W_DEC, (k, d)), (_core.B_ENC, (k,))):
            try:
                _core.sae_set(sae, field, rng.standard_normal(shape).astype("f4"))
            except ValueError:  # a tied one has no W_ENC of its own
                pass
        found["sae"].append((sae, k, d, "f4"))
    return found


def keywords(function, parameters, given):
    """sae_new, sae_step and the like take what has a default by keyword; all may be given so, but positional-only."""
    try:
        getattr(_core, function)(*given)
    except TypeError as error:
        if "positional" not in str(error) and "keyword" not in str(error):
            raise
        getattr(_core, function)(**dict(zip((name for name, _ in parameters), given)))


def core(seed, seconds):
    functions = signatures()
    names = sorted(functions)
    handles = handles_of(np.random.default_rng([seed, 0]))
    end, count, done = time.monotonic() + seconds, 0, dict.fromkeys(names, 0)
    while time.monotonic() < end:
        count += 1
        rng = np.random.default_rng([seed, count])
        name = names[rng.integers(len(names))]
        NOW[:] = [count, name]
        try:
            keywords(name, functions[name], Draw(rng, handles).call(name, functions[name]))
            done[name] += 1
        except MEANT:
            pass
    never = [name for name in names if not done[name]]
    print(
        f"core: seed {seed}, {count} calls, {sum(done.values())} of them without an error; never so: {never}"
    )


# -------------------------------------------------------------------------------------------- public API


def rows(rng, n=None, d=None):
    draw = Draw(rng, {})
    draw.sizes |= {
        "n": int(rng.choice(SIZES)) if n is None else n,
        "d": int(rng.choice(SIZES[1:])) if d is None else d,
    }
    return draw.array("api", "X")


def recover(rng):
    d = int(rng.choice(SIZES[1:]))
    X, D = rows(rng, d=d), rows(rng, d=d)
    name = str(
        rng.choice(["omp", "matching_pursuit", "gradient_pursuit", "cosamp", "iht", "lasso", "basis_pursuit"])
    )
    given = {"return_info": True}
    if name in ("lasso",):
        given["alpha"] = float(rng.choice([0, 1e-30, 1e-3, 1, 1e30]))
    elif name != "basis_pursuit":
        given |= {"n_nonzero": int(rng.integers(0, 9)), "tol": [None, 0.0, 1e-3][rng.integers(3)]}
    codes, info = getattr(recovery, name)(X, D, **given)
    codes.toarray()
    assert codes.shape == (len(X), len(D)) and np.isfinite(codes.data).all()


def measure(rng):
    X = rows(rng)
    metric = atoms.AtomicInnerProduct(
        centered=bool(rng.integers(2)), shrinkage=[None, 0.1, "oas", "ledoit_wolf"][rng.integers(4)]
    ).fit(X)
    metric.whiten(X)
    metric.angles(X, pairs=int(rng.integers(1, 99)))


def train(rng):
    X = rows(rng)
    sae = atoms.SparseAutoencoder(
        int(rng.choice(SIZES[1:])),
        activation=str(rng.choice(["jumprelu", "relu", "topk", "batchtopk"])),
        target_l0=float(rng.choice([0.5, 1, 3, 20])),
        tied=bool(rng.integers(2)),
        max_steps=int(rng.integers(1, 8)),
        batch_size=int(rng.choice(SIZES[1:])),
        verbose=False,
    ).fit(X)
    sae.inverse_transform(sae.transform(X))


def judge(rng):
    D = rows(rng)
    theory.coherence(D).histogram()
    theory.certificate(D)
    theory.match_dictionaries(D, rows(rng, d=D.shape[1]))
    theory.consensus([D, rows(rng, d=D.shape[1]), D[::-1]])


def control(rng):
    X = rows(rng)
    kind = [controls.PCADictionary(2), controls.KMeansDictionary(3), controls.RandomDictionary(5, 2)][
        rng.integers(3)
    ]
    kind.fit(X).transform(X).toarray()


def api(seed, seconds):
    end, count, fine = time.monotonic() + seconds, 0, 0
    kinds = [recover, recover, measure, train, judge, control]
    while time.monotonic() < end:
        count += 1
        rng = np.random.default_rng([seed, count])
        kind = kinds[rng.integers(len(kinds))]
        NOW[:] = [count, kind.__name__]
        try:
            kind(rng)
            fine += 1
        except (*MEANT, atoms.TrainingDiverged):
            pass
    print(f"api: seed {seed}, {count} calls, {fine} of them without an error")


NOW = [0, ""]  # the call at work, for whoever reads of a crash


def main():
    which, seed, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    built = os.environ.get("TORTURE_LIBRARY", "")
    assert _core.__file__.startswith(built), (
        f"{_core.__file__} is not the one under the sanitizers, in {built}"
    )
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    faulthandler.enable()
    faulthandler.dump_traceback_later(seconds + 120, exit=True)
    try:
        {"core": core, "api": api}[which](seed, seconds)
    except BaseException:
        print(f"{which}: seed {seed}, call {NOW[0]} of {NOW[1]}", file=sys.stderr, flush=True)
        raise


if __name__ == "__main__":
    main()
