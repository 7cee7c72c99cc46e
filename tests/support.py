"""What tests of several rooms need: Python in processes of its own, tiny decoders, planted codes."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import atoms
from atoms import _config, _core
from atoms.activations import BlockSource

ROOT = Path(__file__).resolve().parents[1]
RNG = np.random.default_rng
ISAS = [name for i, name in enumerate(_core.ISAS) if _core.Context(1, i).isa == name]  # of this CPU
BLAS = _config.blas_names()  # of this build
FAST_BFLOAT16 = (
    _config.context().isa == "avx512_bf16"
)  # PyTorch multiplies in it as fast as in float32, or faster

# ------------------------------------------------------------------ processes


def _python(script, args, strict, env):
    """Arguments for subprocess: Python on this same atoms. Warnings are errors if `strict`."""
    if isinstance(script, str):
        script = ["-c", textwrap.dedent(script)]
    elif isinstance(script, os.PathLike):
        script = [script]
    here = os.path.dirname(os.path.dirname(atoms.__file__))
    path = os.pathsep.join(filter(None, [here, env.pop("PYTHONPATH", ""), os.environ.get("PYTHONPATH")]))
    # as in pyproject.toml: most of what runs looks at something else than L0 on other rows
    warnings = (
        ("-W", "error", "-W", "ignore:target_l0 is held on the rows of X") if strict else ("-W", "ignore")
    )
    return {
        "args": [str(a) for a in (sys.executable, *warnings, *script, *args)],
        "env": {**os.environ, **env, "PYTHONPATH": path},
        "text": True,
    }


def finished(script, *args, timeout=600, strict=True, **env):
    """The process that ran code (a string), a script (a path) or a module (["-m", name]), and succeeded.

    For what must not touch the process of the tests. Other packages have warnings of their own: not `strict` then.
    """
    done = subprocess.run(**_python(script, args, strict, env), capture_output=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done


def run(script, *args, **options):
    """Its output."""
    return finished(script, *args, **options).stdout


def started(script, *args, strict=True, stdout=None, stderr=None, **env):
    """The same at work, to be waited for or killed."""
    return subprocess.Popen(**_python(script, args, strict, env), stdout=stdout, stderr=stderr)


# ------------------------------------------------------------------ language models

VOCABULARY = 61


def decoder(kind="llama", width=16, layers=3, heads=2, positions=64, head=True, **more):
    """A decoder with random weights, the same each time; `more` goes to its configuration."""
    import torch
    import transformers

    gpt2 = {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": positions}
    others = {
        "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers,
        "num_attention_heads": heads, "max_position_embeddings": positions,
    }  # fmt: skip
    grouped = {**others, "num_key_value_heads": 2}
    config, sizes = {
        "llama": (transformers.LlamaConfig, grouped),
        "gemma2": (transformers.Gemma2Config, {**grouped, "head_dim": width // heads}),
        "gpt2": (transformers.GPT2Config, gpt2),
        "gpt_neox": (transformers.GPTNeoXConfig, others),
        "opt": (transformers.OPTConfig, {**others, "ffn_dim": 2 * width, "word_embed_proj_dim": width}),
    }[kind]
    torch.manual_seed(0)
    of = transformers.AutoModelForCausalLM if head else transformers.AutoModel
    return of.from_config(config(**({"vocab_size": VOCABULARY} | sizes | more))).eval()


def contexts_of(lengths, seed=0):
    """Random tokens: a context for each length."""
    rng = RNG(seed)
    return [rng.integers(0, VOCABULARY, n) for n in lengths]


def random_contexts(n, low=20, high=40, seed=0):
    """The same for n random lengths."""
    rng = RNG(seed)
    return [rng.integers(0, VOCABULARY, rng.integers(low, high)) for _ in range(n)]


# ------------------------------------------------------------------ dictionaries


def planted(n, n_atoms, d, k, seed=0, noise=0.0, dtype=np.float64, positive=False):
    """Random unit atoms, k of them in each signal, amplitudes in [1, 2]."""
    g = RNG(seed)
    D = g.standard_normal((n_atoms, d))
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    Z = np.zeros((n, n_atoms))
    for i in range(n):
        signs = 1 if positive else g.choice([-1, 1], k)
        Z[i, g.choice(n_atoms, k, replace=False)] = signs * g.uniform(1, 2, k)
    X = Z @ D
    X += noise * np.linalg.norm(X, axis=1, keepdims=True) / np.sqrt(d) * g.standard_normal(X.shape)
    return X.astype(dtype), D.astype(dtype), Z


def basis_pair(n):
    """The identity and the Hadamard basis, as unit rows: the coherence is 1 / sqrt(n)."""
    import scipy.linalg

    return np.concatenate([np.eye(n), scipy.linalg.hadamard(n) / np.sqrt(n)])


# ------------------------------------------------------------------ training


def explained(y, y_hat):
    """Share of the variance of y that y_hat explains, centred."""
    y = y.astype(np.float64)
    return 1 - ((y - y_hat) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()


class Blocks(BlockSource):
    """Rows of an array, block by block."""

    def __init__(self, rows, size=500):
        self.rows, self.d, self.dtype = rows, rows.shape[1], rows.dtype
        self.sizes = np.diff([*range(0, len(rows), size), len(rows)])

    def read(self, block, out):
        start = int(np.sum(self.sizes[:block]))
        out[...] = self.rows[start : start + len(out)]


class Stop(Exception):
    """Ends a run."""


def stop_after(step):
    """A callback that ends a run after that step, as whatever kills it would."""

    def stop(model, figures):
        if figures["step"] == step:
            raise Stop

    return stop


def step_as_the_core(twin, stats, x, rebuilt, activation, l0_coefficient, **options):
    """Take `SparseAutoencoderTwin` through a step of the core's, and compare the figures; `rebuilt`: x, or the target."""
    # where float32 decides
    z = twin.pre_activations(x)
    floor = {"jumprelu": twin.p["threshold"], "relu": 0.0}.get(activation, np.inf)
    doubt = np.sum(np.abs(z - floor) < 2e-5) / len(x)
    error, penalty, l0 = twin.step(
        x, 1e-3, 2e-3, threshold_shift=0.001, l0_coefficient=l0_coefficient, **options
    )
    assert stats["squared_error"] == pytest.approx(error, rel=1e-4), twin.step_count
    assert stats["penalty"] == pytest.approx(penalty, rel=1e-4, abs=1e-7 + l0_coefficient * doubt)
    assert stats["l0"] == pytest.approx(l0, rel=1e-6, abs=doubt)
    variance = ((rebuilt - rebuilt.mean(0)) ** 2).sum() / len(x)
    assert stats["total_variance"] == pytest.approx(variance, rel=1e-5, abs=1e-5)


def weights_of_the_twin(twin, got):
    """Whether the core's weights, by name, are those of the twin after as many steps."""
    for name, array in got.items():
        # Adam divides by sqrt(v): where a gradient is rounding noise its direction is too, and a moment may have been
        # rounded the other way
        close = np.isclose(array, twin.p[name], rtol=1e-3, atol=2e-4)
        assert close.mean() > 0.995, name
