"""Training and encoding with more threads than there are panels, tiles or parts: the same bits as with one."""

import numpy as np
import pytest

import atoms

CASES = {
    "jumprelu": {},
    "one panel": {"n": 60},
    "many panels": {"n": 1300, "latents": 200},
    "tied": {"tied": True},
    "relu": {"activation": "relu"},
    "topk": {"activation": "topk"},
    "batchtopk": {"activation": "batchtopk"},
    "prefixes": {"matryoshka_widths": [40, 150]},
    "aux": {"aux_k": 16, "dead_after": 1, "activation": "topk"},
    "dense": {"target_l0": 200, "n": 200},
    "strips": {"n": 2700, "d": 576, "latents": 192, "target_l0": 70},
    "tied strips": {"n": 2700, "d": 576, "latents": 192, "target_l0": 70, "tied": True},
}


def trained(threads, n=500, d=40, latents=400, **options):
    """The model's arrays and its codes after three steps on rows of unequal size, a few of them far out."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, d)).astype(np.float32) * np.exp(rng.standard_normal((n, 1))).astype(
        np.float32
    )
    sae = atoms.SparseAutoencoder(
        latents, batch_size=n, max_steps=3, num_threads=threads, verbose=False, random_state=1,
        **{"target_l0": 8, **options},
    )  # fmt: skip
    codes = sae.fit(X).transform(X)
    return [
        sae.W_enc,
        sae.W_dec,
        sae.b_enc,
        sae.b_dec,
        sae.threshold,
        codes.indptr,
        codes.indices,
        codes.data,
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_bits_of_many_threads(case):
    expected = trained(1, **CASES[case])
    for threads in (3, 16) if "d" not in CASES[case] else (16,):
        for ours, others in zip(trained(threads, **CASES[case]), expected):
            np.testing.assert_array_equal(ours, others)
