"""Crosscoders: SparseAutoencoder.fit(Sites(X, Y, ...)), one code of the same tokens at several places."""

import json
import pickle
import warnings

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from support import Blocks, Stop, decoder, explained, random_contexts, stop_after

import atoms
from atoms._files import load_tensors, save_tensors
from atoms._rows import rows_of
from atoms.activations import ActivationStream, Sites, capture
from atoms.sae._hub import card

ACTIVATIONS = ("jumprelu", "relu", "topk", "batchtopk")
A_D, B_D, S = 32, 24, 96
SHARED, OWN = 20, 10  # directions that both models have, and that each alone has


def planted(n, seed):
    """Two models' activations: shared concepts in directions of each one's own, and concepts of one alone."""
    rng = np.random.default_rng(5)
    m = SHARED + 2 * OWN
    A, B = (
        x / np.linalg.norm(x, axis=1, keepdims=True)
        for x in (rng.standard_normal((m, d)) for d in (A_D, B_D))
    )
    A[SHARED + OWN :], B[SHARED : SHARED + OWN] = 0, 0
    rng = np.random.default_rng(seed)
    a = np.where(rng.random((n, m)) < 0.08, rng.uniform(1, 2, (n, m)), 0)
    x, y = (a @ F + 0.02 * rng.standard_normal((n, F.shape[1])) for F in (A, B))
    # in other units, and far from the origin
    return (x + 5).astype(np.float32), (300 * y - 200).astype(np.float32), (A, B)


X, Y, FEATURES = planted(12000, 0)
X_VAL, Y_VAL, _ = planted(2000, 1)
SOME, VAL = Sites(X[:3000], Y[:3000]), Sites(X_VAL, Y_VAL)


def coder(activation="jumprelu", **options):
    known = {"target_l0": 3, "max_steps": 60, "batch_size": 256, "verbose": False, "num_threads": 1}
    return atoms.SparseAutoencoder(S, activation, **{**known, **options})


def same(one, two):
    for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_shared_and_exclusive_latents_are_told_apart(activation, tied):
    sae = coder(activation, max_steps=1500, tied=tied, target_l0=4).fit(Sites(X, Y), X_val=VAL)
    # every planted concept's latent, by its directions at both places, in units in which both are equally strong
    rms = [np.sqrt(side.var(axis=0).mean()) for side in (X, Y)]
    planted = np.hstack([FEATURES[0] / rms[0], FEATURES[1] * 300 / rms[1]])
    D = np.hstack([sae.W_dec[:, of] / r for of, r in zip(sae.sites_, rms)])
    cos = (D / np.linalg.norm(D, axis=1, keepdims=True)) @ (
        planted / np.linalg.norm(planted, axis=1, keepdims=True)
    ).T
    found, strongest = cos.argmax(axis=0), cos.max(axis=0)
    assert np.median(strongest) > 0.95
    relative = (sae.site_norms_[:, 1] / sae.site_norms_.sum(axis=1))[found]
    known = strongest > 0.9
    both, only_x, only_y = np.split(np.arange(len(found)), [SHARED, SHARED + OWN])
    assert known.mean() >= 0.9
    assert ((0.3 < relative) & (relative < 0.7))[both][known[both]].all()
    assert (relative < 0.25)[only_x][known[only_x]].all() and (relative > 0.7)[only_y][known[only_y]].all()
    # and each place is explained
    out, scores = sae.reconstruct(VAL), sae.site_scores(VAL)
    assert out.shape == VAL.shape
    for of, side, score in zip(sae.sites_, (X_VAL, Y_VAL), scores):
        assert score == pytest.approx(explained(side, out[:, of]), abs=1e-5) and score > 0.75
    assert sae.history_["explained_variance_val"][-1] == pytest.approx(sae.score(VAL), abs=1e-5)
    assert scores.min() < sae.score(VAL) < scores.max()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_is_the_autoencoder_of_rows_scaled_site_by_site(activation):
    """To the bit, where means are zero and scales are powers of two."""
    half = np.where(np.random.default_rng(0).random((1500, 12)) < 0.5, -1, 1).astype(np.float32)
    rows = np.concatenate([half, -half])
    scaled = Sites(4 * rows[:, :5], rows[:, 5:] / 8)
    options = {"dead_after": 2.0, "max_steps": 80}
    sae, plain = (coder(activation, **options).fit(given) for given in (scaled, rows))
    c = np.repeat([0.25, 8], [5, 7]).astype(np.float32)
    for name, scale in (
        ("W_dec", 1 / c),
        ("b_dec", 1 / c),
        ("W_enc", c[:, None]),
        ("b_enc", 1),
        ("threshold", 1),
    ):
        np.testing.assert_array_equal(getattr(sae, name), getattr(plain, name) * scale)
    assert sae.history_["loss"] == plain.history_["loss"]
    codes = sae.transform(scaled)
    np.testing.assert_array_equal(codes.toarray(), plain.transform(rows).toarray())
    np.testing.assert_array_equal(sae.inverse_transform(codes), plain.reconstruct(rows) / c)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_gradients_are_those_of_pytorch(activation):
    """Of the sum of all sites' squared errors, with an encoder and a decoder for each; read from Adam's first moment."""
    n, penalty = 400, 0.05 if activation == "relu" else None
    sites = Sites(X[:n], Y[:n])
    sae = coder(
        activation, l1_coefficient=penalty, batch_size=n, max_steps=1, learning_rate=1e-12, dead_after=0
    )
    sae.fit(sites)
    weights = {
        name: torch.from_numpy(sae._model.get(name)).double() for name in ("W_enc", "W_dec", "b_enc", "b_dec")
    }
    t, parameters = [], []
    for of, side in zip(sae.sites_, (X[:n], Y[:n])):
        side = side.astype(np.float64)
        t.append(torch.from_numpy((side - side.mean(axis=0)) / np.sqrt(side.var(axis=0).mean())))
        parameters.append(
            [weights[name][..., of].clone().requires_grad_() for name in ("W_enc", "W_dec", "b_dec")]
        )
    b_enc = weights["b_enc"].clone().requires_grad_()
    z = sum((x - b) @ E.T for x, (E, _, b) in zip(t, parameters)) + b_enc
    threshold = (
        torch.from_numpy(sae.threshold.copy()).double()
        if activation == "jumprelu"
        else torch.zeros(S).double()
    )
    if activation == "topk":
        active = z >= z.topk(3).values[:, -1:]
    elif activation == "batchtopk":
        active = z >= z.flatten().topk(3 * n).values[-1]
    else:
        active = z > threshold
    a = torch.where(active & (z > 0), z, 0)
    loss = sum(((a @ D + b - x) ** 2).sum() for x, (_, D, b) in zip(t, parameters)) / n
    loss = loss + (penalty or 0) * a.sum() / n
    loss.backward()
    assert sae.history_["loss"][-1] == pytest.approx(loss.item(), rel=1e-4)
    unit = weights["W_dec"].numpy()
    for i, name in enumerate(("W_enc", "W_dec", "b_dec")):
        expected = np.concatenate([p[i].grad.numpy() for p in parameters], axis=-1)
        found = sae._model.get(f"{name}_m").astype(np.float64) / 0.1  # 1 - beta1
        if name == "W_dec":  # along the row its norm is held
            expected, found = (g - (g * unit).sum(axis=1, keepdims=True) * unit for g in (expected, found))
        assert np.abs(found - expected).max() < 0.01 * np.abs(expected).max()


@pytest.mark.parametrize(
    "given",
    [
        lambda x, y: (np.asfortranarray(x), y[::-1][::-1]),
        lambda x, y: ([x[:10], x[10:]], y),
        lambda x, y: (torch.from_numpy(x), torch.from_numpy(y)),
        lambda x, y: (Blocks(x), Blocks(y)),
        lambda x, y: (Blocks(x), y),
        lambda x, y: ([x[:10], x[10:]], Blocks(y, 400)),
    ],
    ids=["strides", "shards", "tensors", "blocks", "blocks of X", "blocks of Y"],
)  # fmt: skip
def test_wherever_the_rows_are_the_bits_are_the_same(given):
    x, y = X[:3000], Y[:3000]
    sites = Sites(*given(x, y))
    sae, other = coder().fit(SOME), coder().fit(sites)
    same(sae, other)
    for again in (SOME, sites, np.hstack([x, y]), (x, y)):
        np.testing.assert_array_equal(other.transform(again).toarray(), sae.transform(SOME).toarray())
        assert other.score(again) == pytest.approx(sae.score(SOME), abs=1e-12)


def test_from_stores_streams_and_dask(tmp_path):
    model, contexts = decoder(), random_contexts(60)
    store = capture(model, contexts, [2, 0], batch_tokens=128, verbose=False, store=tmp_path, shard_mb=0.03)
    rows = {layer: np.concatenate(list(rows_of(store[layer]).blocks(1000))) for layer in (0, 2)}
    known = coder(max_steps=30).fit(Sites(rows[0], rows[2]), massive=6)
    streams = [ActivationStream(model, contexts, layer, batch_tokens=128) for layer in (0, 2)]
    for sites in (Sites(store[0], store[2]), Sites(rows[0], store[2])):
        same(coder(max_steps=30).fit(sites, massive=6), known)
    # PyTorch's products may differ in their last bits from one pass to the next, as its threads find the cores
    again = coder(max_steps=30).fit(Sites(*streams), massive=6)
    np.testing.assert_allclose(again.W_dec, known.W_dec, atol=1e-2)
    sites = Sites(store[0], store[2])
    assert sites.digest() == Sites(store[0], store[2]).digest() != Sites(store[2], store[0]).digest()
    np.testing.assert_allclose(sites.norms()[:, 1], np.linalg.norm(rows[2], axis=1), rtol=1e-5)
    da = pytest.importorskip("dask.array")
    far = [da.from_array(rows[layer], chunks=(64, -1)) for layer in (0, 2)]
    same(coder(max_steps=30).fit(Sites(*far), massive=6), known)
    whole = da.hstack(far)
    assert known.score(whole) == pytest.approx(known.score(sites), abs=1e-12)
    np.testing.assert_array_equal(
        known.transform(whole).compute().toarray(), known.transform(Sites(rows[0], rows[2])).toarray()
    )


def test_in_groups_of_blocks_and_from_mapped_files(tmp_path):
    x, y = Blocks(X[:3000]), Blocks(Y[:3000])
    x.buffer_rows = y.buffer_rows = 700  # several groups
    assert coder(max_steps=500).fit(Sites(x, y)).score(VAL) > 0.8
    np.save(tmp_path / "x.npy", X[:3000])
    np.save(tmp_path / "y.npy", Y[:3000])
    mapped = Sites(*(np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in "xy"))
    same(coder().fit(mapped), coder().fit(SOME))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_types(dtype):
    x, y = X[:3000].astype(dtype), (Y[:3000] / 100).astype(dtype)
    sae, rounded = coder(max_steps=20), coder(max_steps=20)
    sae.fit(Sites(x, y))
    rounded.fit(Sites(x.astype(np.float32), y.astype(np.float32)))
    np.testing.assert_allclose(sae.W_dec, rounded.W_dec, atol=2e-2 * np.abs(rounded.W_dec).max())


def test_three_sites_and_norms_that_sum_to_one():
    third = X_VAL[:, :7] * 1e-3
    sites = Sites(X_VAL, Y_VAL, third)
    sae = coder(max_steps=300).fit(sites)
    assert sae.site_norms_.shape == (S, 3) and sae.site_scores(sites).min() > 0.3
    np.testing.assert_allclose((sae.site_norms_**2).sum(axis=1), 1, rtol=1e-5)
    rms = [np.sqrt(side.astype(np.float64).var(axis=0).mean()) for side in (X_VAL, Y_VAL, third)]
    by_hand = [np.linalg.norm(sae.W_dec[:, of], axis=1) / r for of, r in zip(sae.sites_, rms)]
    np.testing.assert_allclose(sae.site_norms_, np.column_stack(by_hand), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_folded_weights_are_the_same_model(activation):
    sae = coder(activation, max_steps=200).fit(SOME)
    rows = np.hstack([X_VAL, Y_VAL])
    z = rows.astype(np.float64) @ sae.W_enc + sae.b_enc
    if activation == "topk":
        a = np.where(z >= -np.sort(-z, axis=1)[:, [2]], np.maximum(z, 0), 0)
    else:
        a = np.where(z > sae.threshold, z, 0)
    out = sae.reconstruct(VAL)
    by_hand = a @ sae.W_dec + sae.b_dec
    for of in sae.sites_:
        assert np.median(np.abs(by_hand - out)[:, of]) < 1e-4 * out[:, of].std()
    with torch.no_grad():
        module = sae.to_torch()(torch.from_numpy(rows)).numpy()
    assert np.median(np.abs(module - out)) < 1e-4 * Y_VAL.std()


def test_partial_fit_fit_many_and_init():
    sae = coder()
    for _ in range(3):
        for i in range(0, 12000, 3000):
            sae.partial_fit(Sites(X[i : i + 3000], Y[i : i + 3000]))
    assert sae.site_norms_.shape == (S, 2) and sae.score(VAL) > 0.5
    with pytest.raises(
        ValueError, match=r"X: sites of \(24, 32\) columns, but it was fitted to sites of \(32, 24\)"
    ):
        sae.partial_fit(Sites(Y, X))
    one, two = coder(), coder(target_l0=5)
    atoms.fit_many([one, two], SOME, VAL)
    same(one, coder().fit(SOME, X_val=VAL))
    assert two.score(VAL) > 0
    again = coder(max_steps=1, learning_rate=1e-9).fit(SOME, init=sae)
    assert again.score(VAL) == pytest.approx(sae.score(VAL), abs=1e-3)


@pytest.mark.parametrize("kind", ["arrays", "blocks", "mixed"])
def test_massive_rows_are_those_of_either_site(kind):
    """One that is massive among small numbers is seen beside a site of large ones."""
    rng = np.random.default_rng(3)
    x, y = np.concatenate([X[:3000] - 5, X[:8] - 5]), np.concatenate([Y[:3000] + 200, Y[:8] + 200])
    x[3000:3005], y[3005:] = 50 * rng.standard_normal((5, A_D)), 2e4 * rng.standard_normal((3, B_D))
    order = rng.permutation(len(x))
    x, y = x[order], y[order]
    keep = order < 3000
    wrap = {"arrays": (np.asarray, np.asarray), "blocks": (Blocks, Blocks), "mixed": (np.asarray, Blocks)}[
        kind
    ]
    sites = Sites(wrap[0](x), wrap[1](y))
    sae = coder().fit(sites, massive="drop", X_val=sites)
    assert sae.n_dropped_massive_ == 8
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clean = Sites(x[keep], y[keep])
        other = coder().fit(clean, X_val=clean)
    if kind == "arrays":
        same(sae, other)
    assert sae.score(clean) == pytest.approx(other.score(clean), abs=0.05)
    with (
        pytest.warns(UserWarning, match="X, site 0: 5 of 3,008 rows"),
        pytest.warns(UserWarning, match="X, site 1: 3 of"),
    ):
        kept = coder().fit(sites)
    assert np.isfinite(kept.reconstruct(sites)).all()


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_and_checkpoints_give_the_same_bits(tmp_path, threads):
    whole, path = coder(num_threads=threads).fit(SOME), tmp_path / "checkpoint.safetensors"
    with pytest.raises(Stop):
        coder(num_threads=threads).fit(SOME, checkpoint=path, checkpoint_steps=10, callback=stop_after(35))
    same(coder(num_threads=threads).fit(SOME, checkpoint=path), whole)
    same(coder(num_threads=2).fit(SOME), whole)
    for other in (
        np.hstack([X[:3000], Y[:3000]]),
        Sites(X[:3000, :30], np.hstack([X[:3000, 30:], Y[:3000]])),
    ):
        with pytest.raises(ValueError, match=r"other settings \(sites\)"):
            coder(num_threads=threads).fit(other, checkpoint=path)
    with pytest.raises(ValueError, match="other data"):
        coder(num_threads=threads).fit(Sites(X[:3000], -Y[:3000]), checkpoint=path)


def test_files_and_copies_give_the_same_bits(tmp_path):
    sae = coder().fit(SOME)
    sae.save(tmp_path / "a.safetensors")
    for copy in (
        atoms.load(tmp_path / "a.safetensors"),
        atoms.SparseAutoencoder.load(tmp_path / "a.safetensors"),
        pickle.loads(pickle.dumps(sae)),
    ):
        assert copy.sites_ == sae.sites_
        np.testing.assert_array_equal(copy.site_norms_, sae.site_norms_)
        np.testing.assert_array_equal(copy.reconstruct(VAL), sae.reconstruct(VAL))
        np.testing.assert_array_equal(copy.site_scores(VAL), sae.site_scores(VAL))
    assert "56 features (32 + 24 of 2 sites)" in sae._repr_html_()
    assert repr(VAL) == "Sites of 32 + 24 columns, 2000 rows"
    said = card("SparseAutoencoder", sae._fitted, "hf://a/b", {})
    assert "# A sparse crosscoder" in said and "56 features (32 + 24 of 2 sites side by side)" in said
    assert "2 sites side by side" in VAL._repr_html_()


@pytest.mark.parametrize(
    ("sites", "scale"),
    [
        ([32, 25], None), ([56, 0], None), ([32], None), ("two", None), ([32.0, 24.0], None), ([True, 55], None),
        (None, [1.0, np.inf]), (None, [1.0, -1.0]), (None, [1.0]), (None, [1.0, np.nan]),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused(tmp_path, sites, scale):
    path = tmp_path / "a.safetensors"
    coder(max_steps=2).fit(SOME).save(path)
    tensors, meta = load_tensors(path, "SparseAutoencoder")
    if scale is not None:
        tensors["scale"] = np.array(scale)
    save_tensors(path, "SparseAutoencoder", tensors, meta if sites is None else {**meta, "sites": sites})
    with pytest.raises(ValueError, match="a.safetensors"):
        atoms.load(path)


@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
@pytest.mark.parametrize("activation", ["jumprelu", "relu", "batchtopk"])
def test_an_export_for_dictionary_learning(activation, tied, tmp_path):
    """Its forward pass restated: post-ReLU codes above the one threshold, each site by its own weights."""
    both = Sites(X[:3000, :B_D], Y[:3000])
    sae = coder(activation, tied=tied, max_steps=200).fit(both)
    atoms.io.save(sae, tmp_path / "a", "crosscoder")
    w = load_file(tmp_path / "a" / "model.safetensors")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert {k: config[k] for k in ("activation_dim", "dict_size", "num_layers")} == {
        "activation_dim": B_D, "dict_size": S, "num_layers": 2,
    }  # fmt: skip
    assert (
        config["code_normalization"] == "NONE"
        and w["code_normalization_id"] == 4
        and w["k"] == config["k"] == 3
    )
    x = np.stack([X[:3000, :B_D], Y[:3000]], axis=1).astype(np.float64)
    f = np.maximum(np.einsum("bld,ldm->bm", x, w["encoder.weight"]) + w["encoder.bias"], 0)
    f *= f > w["threshold"]
    rebuilt = np.einsum("bm,lmd->bld", f, w["decoder.weight"]) + w["decoder.bias"]
    rows = x.reshape(len(x), -1).astype(np.float32)
    codes = sae.transform(rows).toarray()
    assert ((f > 0) != (codes > 0)).mean() < 1e-4 and (codes > 0).any()
    near = np.abs(rebuilt.reshape(len(x), -1) - sae.reconstruct(rows)) < 1e-3 * np.abs(rows).max()
    assert near.mean() > 0.999
    assert activation == "jumprelu" or np.ptp(sae.threshold) == 0  # each of ours has its own


def written(folder, norm=1, scaled=False, **changed):
    """A crosscoder as dictionary_learning's fork writes it, rows for it, and its forward pass restated."""
    rng, n, d, m = np.random.default_rng(norm), 3, 11, 40
    x = rng.standard_normal((400, n, d)) * np.array([1.0, 5.0, 0.3])[:, None] + 2
    w = {"encoder.weight": rng.standard_normal((n, d, m)) / 5, "encoder.bias": 0.1 * rng.standard_normal(m),
         "decoder.weight": rng.standard_normal((n, m, d)) * rng.uniform(0, 2, m)[:, None] / 5, "decoder.bias": rng.standard_normal((n, d)),
         "threshold": np.array(0.6), "k": np.array(7), "code_normalization_id": np.array(norm), "target_rms": np.array(2.0),
         "activation_mean": np.full((n, d), np.nan), "activation_std": np.full((n, d), np.nan),
         "activation_global_scale": np.ones(n)}  # fmt: skip
    if scaled:
        w |= {"activation_mean": x.mean(axis=0), "activation_std": x.std(axis=0)}
        w["activation_global_scale"] = 2 / np.sqrt((w["activation_std"] ** 2).sum(axis=1) + 1e-8)
    w["decoder.weight"][:, 0] = 0  # never above any threshold but that of NONE
    w |= changed
    folder.mkdir()
    typed = {
        k: np.ascontiguousarray(v, np.int64 if k in ("k", "code_normalization_id") else np.float32)
        for k, v in w.items()
    }
    save_file(typed, folder / "model.safetensors")
    config = {
        "activation_dim": d,
        "dict_size": m,
        "num_layers": n,
        "k": 7,
        "code_normalization": "?",
        "activation_mean": None,
    }
    (folder / "config.json").write_text(json.dumps(config))
    each = np.linalg.norm(w["decoder.weight"], axis=2)
    by = {
        1: each.sum(0),
        2: np.sqrt((each**2).sum(0)),
        3: np.sqrt((each**2).sum(0)) + 0.1 * each.sum(0),
        4: 1.0,
    }[norm]
    mean = np.nan_to_num(w["activation_mean"])
    t = (x - mean) * w["activation_global_scale"][:, None]
    f = np.maximum(np.einsum("bld,ldm->bm", t, w["encoder.weight"]) + w["encoder.bias"], 0)
    f *= f * by > w["threshold"]
    y = np.einsum("bm,lmd->bld", f, w["decoder.weight"]) + w["decoder.bias"]
    y = y / (w["activation_global_scale"][:, None] + 1e-8) + mean if scaled else y
    return x.astype(np.float32), f, y, each


@pytest.mark.parametrize("scaled", [False, True], ids=["", "scaled"])
@pytest.mark.parametrize("norm", [1, 2, 3, 4], ids=["crosscoder", "sae", "mixed", "none"])
def test_dictionary_learnings_are_read(norm, scaled, tmp_path):
    x, f, y, each = written(tmp_path / "a", norm, scaled)
    sae, rows = atoms.load(tmp_path / "a"), x.reshape(len(x), -1)
    codes = sae.transform(rows)
    assert ((codes.toarray() > 0) == (f > 0)).mean() > 1 - 1e-4 and 0 < (f > 0).mean() < 0.7
    near = (codes.toarray() > 0) == (f > 0)
    np.testing.assert_allclose(codes.toarray()[near], f[near], atol=1e-5 * f.max())
    whole = near.all(axis=1)
    np.testing.assert_allclose(
        sae.reconstruct(rows)[whole], y.reshape(rows.shape)[whole], atol=2e-5 * abs(y).max()
    )
    assert (sae.transform(Sites(*np.ascontiguousarray(x.transpose(1, 0, 2)))) != codes).nnz == 0
    assert sae.sites_ == (slice(0, 11), slice(11, 22), slice(22, 33)) and "3 sites" in repr(sae)
    want = each / np.maximum(np.linalg.norm(each, axis=0), 1e-30)
    np.testing.assert_allclose(sae.site_norms_, want.T, atol=1e-6)
    again = pickle.loads(pickle.dumps(sae))
    assert (again.transform(rows) != codes).nnz == 0 and again.sites_ == sae.sites_
    if norm == 4:  # all of its thresholds are above zero and within float32: it can be written
        atoms.io.save(sae, tmp_path / "b", "crosscoder")
        back = atoms.load(tmp_path / "b" / "model.safetensors")
        np.testing.assert_allclose(back.reconstruct(rows), sae.reconstruct(rows), atol=1e-4 * abs(y).max())
    with pytest.raises(ValueError, match="is a crosscoder"):
        atoms.evaluate(None, [[1, 2, 3]], {"mine": sae}, 1)


def test_without_a_threshold_all_that_is_positive_is_active(tmp_path):
    x, *_ = written(tmp_path / "a", 1, threshold=np.array(-1.0))
    sae = atoms.load(tmp_path / "a")
    assert sae.activation == "relu" and not sae.threshold.any() and sae.transform(x.reshape(len(x), -1)).nnz


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"code_normalization_id": np.array(6)}, "code_normalization_id 6 is not supported"),
        ({"code_normalization_id": np.array(5)}, "each site has codes of its own"),
        ({"decoder.weight": np.zeros((3, 40, 12))}, r"decoder.weight \(3, 40, 12\); expected"),
        ({"encoder.weight": np.zeros((33, 40)), }, "encoder.weight has shape"),
        ({"activation_mean": np.zeros((2, 11))}, r"have shapes \(2, 11\)"),
        ({"encoder.bias": np.full(40, np.nan)}, "b_enc: contains NaN"),
        ({"threshold": np.zeros(3)}, "threshold should be one finite number"),
        ({"more": np.zeros(3)}, "unknown more"),
    ],
)  # fmt: skip
def test_a_damaged_crosscoder_is_refused(changed, message, tmp_path):
    x, *_ = written(tmp_path / "a")
    file = tmp_path / "a" / "model.safetensors"
    w = dict(load_file(file)) | {k: np.asarray(v, np.float32) for k, v in changed.items()}
    save_file(w, file)
    with pytest.raises(ValueError, match=message):
        atoms.load(tmp_path / "a")


@pytest.mark.parametrize("said", [{"num_layers": 2}, {"dict_size": 41}, {"encoder_layers": [0, 2]}])
def test_what_a_crosscoders_configuration_says_must_hold(said, tmp_path):
    written(tmp_path / "a")
    file = tmp_path / "a" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | said))
    with pytest.raises(ValueError, match=rf"config.json: .*{next(iter(said))}"):
        atoms.load(tmp_path / "a")


def test_what_an_export_cannot_express(tmp_path):
    narrow = Sites(X[:3000, :B_D], Y[:3000])
    below = coder(max_steps=2).fit(narrow)
    below._model.set("threshold", np.where(np.arange(S) < 3, 0, below.threshold))
    for sae, message in (
        (coder(max_steps=2).fit(SOME), r"sites of one width, not \[32, 24\]"),
        (coder("topk", max_steps=2).fit(narrow), "a threshold, not TopK"),
        (below, "latents of threshold zero or below beside others"),
        (coder(max_steps=2).fit(X[:3000]), "'crosscoder' is of several places, and sae is of one"),
    ):
        with pytest.raises(ValueError, match=message):
            atoms.io.save(sae, tmp_path / "a", "crosscoder")
    assert not list(tmp_path.iterdir())


def test_others_say_that_they_take_one_place(tmp_path):
    sae = coder(max_steps=2).fit(SOME)
    for format in ("saelens", "npz", "sparsify"):
        with pytest.raises(ValueError, match="sae: is a crosscoder, which reads several places at once"):
            atoms.io.save(sae, tmp_path / "a", format)
    with pytest.raises(ValueError, match="dictionaries: mine is a crosscoder"):
        atoms.evaluate(None, [[1, 2, 3]], {"mine": sae}, 1)


def test_an_autoencoder_has_no_sites_and_the_metric_takes_rows():
    plain = coder(max_steps=2).fit(X[:3000])
    assert plain.sites_ is None and plain.site_norms_ is None
    with pytest.raises(ValueError, match="X: this autoencoder has no sites"):
        plain.site_scores(X)
    with pytest.raises(ValueError, match="fitted without sites"):
        plain.transform(Sites(X[:10, :16], X[:10, 16:]))
    with pytest.raises(AttributeError):
        _ = coder().sites_
    rows = np.hstack([X[:3000], Y[:3000]])
    found, known = (atoms.AtomicInnerProduct().fit(given) for given in (SOME, rows))
    np.testing.assert_allclose(found.whitener_, known.whitener_, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: Sites(X), ValueError, r"sites: expected two or more places, got 1.*Sites\(X, Y\)"),
        (lambda: Sites([X, Y]), ValueError, "sites: expected two or more places, got 1"),
        (lambda: Sites(X, Y[:-1]), ValueError, r"sites\[1\]: expected a row for each of the 12000 rows of sites\[0\], got 11999"),
        (lambda: Sites(X, (part for part in [Y])), TypeError, r"sites\[1\]: expected rows that can be asked for by number"),
        (lambda: Sites(X, Sites(X, Y)), TypeError, r"sites\[1\]: is Sites itself"),
        (lambda: Sites(Blocks(X), Blocks(Y, 499)), ValueError, r"sites\[1\]: its blocks have other sizes than those of sites\[0\]"),
        (lambda: Sites(X, Y[:, 0]), ValueError, r"sites\[1\]"),
        (lambda: coder(metric=atoms.AtomicInnerProduct()).fit(SOME), ValueError, "metric: a crosscoder's sites"),
        (lambda: coder().fit(SOME, target=X[:3000]), ValueError, "target: a crosscoder rebuilds"),
        (lambda: coder().fit(X[:3000], target=SOME), ValueError, "target: a crosscoder rebuilds"),
        (lambda: coder(skip_connection=True).fit(SOME), ValueError, "skip_connection: an autoencoder would pass X"),
        (lambda: coder().fit(SOME, X_val=Sites(Y_VAL, X_VAL)), ValueError, r"X_val: .*\(24, 32\).*\(32, 24\)"),
        (lambda: coder().fit(SOME, X_val=X_VAL), ValueError, "X_val: expected 56 features"),
        (lambda: coder().fit(Sites(X, np.where(np.arange(12000)[:, None] == 1234, np.nan, Y))), ValueError, "X: row 1234 holds NaN"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


@pytest.mark.parametrize("y", [np.zeros_like(Y[:3000]), np.full_like(Y[:3000], 7)])
def test_a_site_that_does_not_vary_trains(y):
    sites = Sites(X[:3000], y)
    sae = coder(max_steps=30).fit(sites)
    out = sae.reconstruct(sites)
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out[:, sae.sites_[1]], y, atol=1)
