"""`to_torch`: the same latents as `transform`, whatever the autoencoder, and what a module of PyTorch must do."""

import io
import sys

import numpy as np
import pytest
from support import run

import atoms
from atoms.io import PretrainedSAE

torch = pytest.importorskip("torch")

D, S = 64, 256


@pytest.fixture(scope="module")
def rows():
    """Skewed, off centre, and with a few rows of a hundred times the norm, as first tokens have."""
    rng = np.random.default_rng(0)
    X = (rng.standard_normal((2000, D)) * rng.uniform(0.3, 2, D)) @ np.linalg.qr(rng.standard_normal((D, D)))[
        0
    ]
    return (X + 30 * rng.standard_normal(D)).astype(np.float32)


@pytest.fixture(scope="module")
def metrics(rows):
    fit = {"centred": {"centered": True}, "uncentred": {}}
    return {"none": None} | {name: atoms.AtomicInnerProduct(**more).fit(rows) for name, more in fit.items()}


def same(module, sae, X):
    """Latents to 1e-5 of the largest, the same ones active but where z lies on its threshold."""
    want = sae.transform(X).toarray()
    with torch.no_grad():
        got = module.encode(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
    assert 0 < (want != 0).sum() < want.size
    return want


@pytest.mark.parametrize("activation", ["jumprelu", "relu", "topk", "batchtopk"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("metric", ["none", "centred", "uncentred"])
def test_latents_of_every_kind(rows, metrics, activation, tied, metric):
    sae = atoms.SparseAutoencoder(
        S, activation, metrics[metric], 8, tied=tied, max_steps=40, batch_size=256, verbose=False
    ).fit(rows)
    X = np.concatenate([rows[:200], 100 * rows[:3]])
    sae.set_params(activation="relu", target_l0=3)  # says nothing of what was fitted
    module = sae.to_torch()
    codes = same(module, sae, X)
    with torch.no_grad():
        got = module(torch.from_numpy(X)).numpy()
    want = sae.inverse_transform(codes)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
    for name in ("W_enc", "W_dec", "b_dec", "threshold"):
        np.testing.assert_array_equal(getattr(module, name).detach().numpy(), getattr(sae, name))
    np.testing.assert_allclose(module.b_enc.detach().numpy(), sae.b_enc, rtol=1e-5, atol=1e-4)
    module.W_enc.data.zero_()  # its weights are its own
    assert sae.W_enc.any()


def pretrained(**more):
    rng = np.random.default_rng(1)
    W, V = (
        rng.standard_normal((D, S)).astype("f4"),
        rng.standard_normal((S, more.pop("d_out", D))).astype("f4"),
    )
    return PretrainedSAE(W, rng.standard_normal(S) - 8, V, rng.standard_normal(V.shape[1]), **more)


@pytest.mark.parametrize(
    "more",
    [
        {"threshold": np.full(S, 2.0), "center": np.linspace(-50, 50, D)},
        {"activation": "topk", "k": 5},
        {"activation": "relu", "input_norm": "layer_norm"},
        {"activation": "relu", "input_norm": "constant_norm_rescale"},
        {"is_transcoder": True, "d_out": 32},
        {"W_skip": np.random.default_rng(2).standard_normal((D, 32)), "d_out": 32},
        {"activation": "topk", "k": 5, "W_skip": np.eye(D), "input_norm": "layer_norm"},
    ],
    ids=["jumprelu", "topk", "layer_norm", "constant_norm", "transcoder", "skip", "normed skip"],
)
def test_of_other_tools(rows, more):
    sae, X = pretrained(**more), rows[:100].copy()
    X[7] = 0
    module = sae.to_torch()
    same(module, sae, X)
    want = sae.reconstruct(X)
    x = torch.from_numpy(X).reshape(4, 25, D)
    with torch.no_grad():
        got = module(x)
    assert got.shape == (4, 25, want.shape[1])
    np.testing.assert_allclose(got.reshape(100, -1), want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


def test_decoding_codes_without_their_scale(rows):
    module = pretrained(activation="relu", input_norm="layer_norm").to_torch()
    x = torch.from_numpy(rows[:10])
    codes = module.encode(x)
    assert torch.equal(module.decode(codes), module(x))
    with pytest.raises(ValueError, match="decode must follow"):
        module.decode(codes)  # the scale is gone
    with pytest.raises(ValueError, match="decode must follow"):
        module.decode(module.encode(x)[:5])  # that of other rows


def test_types_shapes_and_gradients(rows):
    sae = atoms.SparseAutoencoder(S, target_l0=8, max_steps=30, batch_size=256, verbose=False).fit(rows)
    module = sae.to_torch(hook_name="blocks.7.hook_resid_post", model_name="toy")
    x = torch.from_numpy(rows[:24])
    for shape in ((24, D), (2, 3, 4, D)):
        assert module(x.reshape(shape)).shape == shape
    assert module(x[0]).shape == (D,) and module(x[:0]).shape == (0, D)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert module(x.to(dtype)).dtype == dtype
        assert module.encode(x.to(dtype)).dtype == torch.float32
        assert sae.to_torch(dtype=str(dtype).removeprefix("torch."))(x).dtype == torch.float32
    half = x.to(torch.bfloat16)
    same(module, sae, half.to(torch.float32).numpy())
    assert torch.equal(module.encode(half), module.encode(half.to(torch.float32)))

    double = sae.to_torch(dtype=torch.float64)
    some = x[:3].to(torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(double, some, eps=1e-7)
    double(some).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in double.parameters())

    moved = module.to(torch.float64)
    assert moved.cfg.dtype == "float64" and moved.dtype == torch.float64 and moved.device.type == "cpu"
    assert (moved.cfg.hook_name, moved.cfg.hook_layer, moved.cfg.metadata.model_name) == (
        "blocks.7.hook_resid_post", 7, "toy",
    )  # fmt: skip
    assert (
        moved.cfg.metadata.hook_head_index is None and moved.cfg.to_dict()["metadata"]["model_name"] == "toy"
    )

    file = io.BytesIO()
    torch.save(moved, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(again(x), moved(x)) and again.cfg.architecture() == "jumprelu"
    with pytest.raises(ValueError, match=r"x: expected \(\.\.\., 64\), got shape \(3, 5\)"):
        module(torch.zeros(3, 5))
    for dtype in (torch.int8, "float23", 3):
        with pytest.raises(ValueError, match="dtype: expected"):
            sae.to_torch(dtype=dtype)


def test_decoder_rows_of_norm_one(rows, metrics):
    sae = atoms.SparseAutoencoder(
        S, "jumprelu", metrics["centred"], 8, max_steps=30, batch_size=256, verbose=False
    ).fit(rows)
    module, x = sae.to_torch(), torch.from_numpy(rows[:50])
    before, codes = module(x), module.encode(x)
    module.fold_W_dec_norm()
    torch.testing.assert_close(module.W_dec.norm(dim=1), torch.ones(S))
    torch.testing.assert_close(module(x), before, rtol=1e-5, atol=1e-3)
    assert ((module.encode(x) != 0) == (codes != 0)).float().mean() > 0.9999
    with pytest.raises(ValueError, match="TopK"):
        pretrained(activation="topk", k=5).to_torch().fold_W_dec_norm()


def test_heads():
    sae = pretrained(source="saelens", config={
        "reshape_activations": "hook_z", "sae_lens_version": "6.0.0", "metadata": {"hook_name": "blocks.2.attn.hook_z"},
    })  # fmt: skip
    module = sae.to_torch()
    x = torch.randn(3, 5, 4, D // 4, generator=torch.Generator().manual_seed(0))
    assert module.hook_z_reshaping_mode and module.cfg.hook_layer == 2 and module(x).shape == x.shape
    module.turn_off_forward_pass_hook_z_reshaping()
    assert torch.equal(module(x.flatten(-2)).reshape(x.shape), sae.to_torch()(x))


def test_atoms_does_not_import_torch():
    assert "torch" in sys.modules
    assert run("import sys, atoms; print('torch' in sys.modules)").strip() == "False"
