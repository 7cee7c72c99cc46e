"""The core's step on a target against its NumPy twin, finite differences and PyTorch autograd."""

import numpy as np
import pytest
import torch
from support import step_as_the_core, weights_of_the_twin

from atoms import _core
from atoms import _reference as reference

ACTIVATIONS = ("jumprelu", "relu", "topk", "batchtopk")
FIELDS = {
    "W_enc": _core.W_ENC, "W_dec": _core.W_DEC, "b_enc": _core.B_ENC, "b_dec": _core.B_DEC,
    "threshold": _core.THRESHOLD, "W_skip": _core.W_SKIP,
}  # fmt: skip


def start(d, s, out, seed, skip):
    rng = np.random.default_rng(seed)
    D = rng.standard_normal((s, out))
    p = {
        "W_enc": rng.standard_normal((s, d)) / np.sqrt(d),
        "W_dec": D / np.linalg.norm(D, axis=1, keepdims=True),
        "b_enc": 0.1 * rng.standard_normal(s),
        "b_dec": 0.1 * rng.standard_normal(out),
        "threshold": rng.uniform(0.2, 1.2, s),
    }
    if skip:
        p["W_skip"] = 0.3 * rng.standard_normal((d, out)) / np.sqrt(d)
    return {name: np.ascontiguousarray(a, np.float32) for name, a in p.items()}


def core_model(params, activation, k=0, ctx=None, **kwargs):
    (s, d), out = params["W_enc"].shape, params["W_dec"].shape[1]
    sae = _core.sae_new(
        ctx or _core.Context(1), d, s, activation=ACTIVATIONS.index(activation), k=k, d_out=out,
        skip="W_skip" in params, **kwargs,
    )  # fmt: skip
    for name, value in params.items():
        _core.sae_set(sae, FIELDS[name], value)
    return sae


def read(sae, params):
    out = {name: np.empty_like(p) for name, p in params.items()}
    for name, array in out.items():
        _core.sae_get(sae, FIELDS[name], array)
    return out


# n, d_in, d_sae, d_out; the last by strips and past the caches
SHAPES = [
    (1, 1, 1, 2),
    (15, 17, 33, 9),
    (97, 33, 97, 64),
    (130, 64, 15, 64),
    (64, 15, 400, 100),
    (3300, 650, 33, 330),
]


@pytest.mark.parametrize("n,d,s,out", SHAPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("skip", [False, True], ids=["", "skip"])
@pytest.mark.parametrize("extras", ["", "aux", "aux and prefixes"])
def test_ten_steps_equal_the_twin(activation, n, d, s, out, skip, extras):
    if n > 1000 and (
        activation not in ("jumprelu", "batchtopk") or "prefixes" in extras or skip != bool(extras)
    ):
        pytest.skip("the twin is slow")
    params = start(d, s, out, 1, skip)
    k = min(3, s)
    prefixes = sorted({max(1, s // 5), max(1, s // 2), s}) if "prefixes" in extras else []
    wide = np.array(prefixes, np.int64) if prefixes else None
    sae = core_model(params, activation, k, bandwidth=0.3, prefixes=wide)
    arrays = [params[name] for name in list(FIELDS)[:2]] + [
        params[x] for x in ("b_enc", "b_dec", "threshold")
    ]
    twin = reference.SparseAutoencoderTwin(
        *arrays, activation=activation, bandwidth=0.3, prefixes=prefixes, transcoder=True,
        W_skip=params.get("W_skip"),
    )  # fmt: skip
    aux = {"aux_k": 4, "dead_after": 2 * n, "aux_coefficient": 0.7} if extras else {}
    rng = np.random.default_rng(4)
    mix = rng.standard_normal((d, out)) / np.sqrt(d)
    for _ in range(10 if n < 1000 else 2):
        x = rng.standard_normal((n, d)).astype(np.float32)
        y = (np.maximum(x @ mix, 0) + 0.3 * rng.standard_normal((n, out))).astype(np.float32)
        l0c, l1c, limit = 0.05, 0.1, d if extras else 0.0
        given = {"X": x, "target": y}
        if extras:  # the same rows, out of order, in float64, between others, shifted and scaled
            index, scale = rng.permutation(2 * n)[:n], np.float32(0.5)
            rows, targets = np.full((2 * n, 2 * d), np.nan)[:, ::2], np.full((3 * n, out), np.nan, np.float32)
            rows[index] = x / scale + np.float32(0.25)
            targets[2 * n - index] = y / np.float32(2)
            given = {
                "X": rows, "index": index, "shift": np.full(d, 0.25, np.float32), "scale": 0.5, "target": targets,
                "target_index": 2 * n - index, "target_shift": np.zeros(out, np.float32), "target_scale": 2.0,
            }  # fmt: skip
        stats = _core.sae_step(
            _core.Context(2), sae, learning_rate=1e-3, threshold_rate=2e-3, l0_coefficient=l0c, l1_coefficient=l1c,
            threshold_shift=0.001, k=k, row_limit=limit, **given, **aux,
        )  # fmt: skip
        step_as_the_core(
            twin, stats, x, y, activation, l0c, l1_coefficient=l1c, k=k, row_limit=limit,
            target=y.astype(np.float64), **aux,
        )  # fmt: skip
    weights_of_the_twin(twin, read(sae, params))


@pytest.mark.parametrize("prefixes", [(), (5, 12)], ids=["", "prefixes"])
def test_the_twins_gradients_are_the_objectives(prefixes):
    """Central differences of the twin's own loss, and autograd of the same formulas."""
    n, d, s, out = 20, 7, 12, 5
    params = start(d, s, out, 3, True)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((n, d)), rng.standard_normal((n, out))
    names = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold", "W_skip")

    def twin(p):
        return reference.SparseAutoencoderTwin(
            *(p[name] for name in names[:5]), activation="relu", transcoder=True, W_skip=p["W_skip"],
            prefixes=prefixes,
        )  # fmt: skip

    _, _, _, g = twin(params).gradients(x, l1_coefficient=0.1, target=y)
    t = {name: torch.tensor(params[name].astype(np.float64), requires_grad=True) for name in names}
    X, Y = torch.tensor(x), torch.tensor(y)
    a = torch.relu(X @ t["W_enc"].T + t["b_enc"])
    loss = 0.1 * a.sum() / n
    for w in prefixes or (s,):
        hat = a[:, :w] @ t["W_dec"][:w] + t["b_dec"] + X @ t["W_skip"]
        loss = loss + ((hat - Y) ** 2).sum() / n
    loss.backward()
    for name in set(names) - {"threshold"}:
        np.testing.assert_allclose(g[name], t[name].grad.numpy(), rtol=1e-9, atol=1e-12, err_msg=name)
        at = tuple(rng.integers(size) for size in params[name].shape)
        losses = []
        for step in (1e-5, -1e-5):
            moved = {k: v.astype(np.float64) for k, v in params.items()}
            moved[name][at] += step
            squares, penalty, _, _ = twin(moved).gradients(x, l1_coefficient=0.1, target=y)
            losses.append(squares + penalty)
        assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(g[name][at], rel=1e-5, abs=1e-8), name


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_steps_are_the_same_bits_for_any_number_of_threads(activation):
    n, d, s, out = 300, 40, 200, 72
    params = start(d, s, out, 5, True)
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((n, w)).astype(np.float32) for w in (d, out))
    results = []
    for threads in (1, 3):
        sae = core_model(params, activation, 5)
        for _ in range(4):
            _core.sae_step(
                _core.Context(threads), sae, x, 1e-3, 1e-3, 0.01, 0.01, 0.0, 5, 6, 100, 0.3, target=y
            )
        results.append(read(sae, params))
    for name in params:
        np.testing.assert_array_equal(results[0][name], results[1][name])


# d_in, d_out, n, d_sae, k: one panel, many, dense codes, and by strips, with fewer latents than threads have rows of
# W_skip
MANY_THREADS = [(97, 33, 60, 300, 6), (33, 97, 1300, 300, 6), (97, 33, 1300, 40, 30), (576, 33, 2800, 48, 15),
                (33, 576, 2800, 192, 60)]  # fmt: skip


@pytest.mark.parametrize("d,out,n,s,k", MANY_THREADS)
@pytest.mark.parametrize("activation", ("jumprelu", "topk"))
@pytest.mark.parametrize("skip", [False, True], ids=["", "skip"])
@pytest.mark.parametrize("extras", ["", "aux", "prefixes"])
def test_more_threads_than_panels_or_parts_give_the_same_bits(activation, d, out, n, s, k, skip, extras):
    if n > 2000 and activation != "jumprelu":
        pytest.skip("strips are cut alike for all activations")
    params = start(d, s, out, 5, skip)
    rng = np.random.default_rng(0)
    scale = np.exp(rng.standard_normal((n, 1)))  # some rows are past the limit, with a weight below 1
    x, y = ((scale * rng.standard_normal((n, w))).astype(np.float32) for w in (d, out))
    aux = (4, 1, 0.3) if extras == "aux" else ()
    wide = np.array([s // 5, s // 2, s]) if extras == "prefixes" else None
    results = []
    for threads in (1, 3, 16):
        sae = core_model(params, activation, k, bandwidth=0.3, prefixes=wide)
        for _ in range(2):
            stats = _core.sae_step(
                _core.Context(threads), sae, x, 1e-3, 1e-3, 0.01, 0.0, 0.0, k, *aux, row_limit=20.0, target=y
            )
        # how tiles are cut shows in what they cost: the sum of their candidates is rounded by tiles
        results.append(
            (read(sae, params), {f: v for f, v in stats.items() if f not in ("seconds", "candidates")})
        )
    for arrays, stats in results[1:]:
        for name in params:
            np.testing.assert_array_equal(arrays[name], results[0][0][name], err_msg=name)
        assert stats == results[0][1]


def test_a_step_says_what_is_wrong_with_its_target():
    params = start(4, 6, 3, 0, False)
    ctx, sae = _core.Context(1), core_model(params, "relu")
    x, y = np.ones((5, 4), np.float32), np.ones((5, 3), np.float32)
    rates = (1e-3, 1e-3, 0.0, 0.0, 0.0, 1)
    with pytest.raises(ValueError, match="target: a transcoder's step needs one"):
        _core.sae_step(ctx, sae, x, *rates)
    with pytest.raises(ValueError, match="target: expected length 3 along axis 1, got 4"):
        _core.sae_step(ctx, sae, x, *rates, target=x)
    with pytest.raises(ValueError, match="target: expected 5 rows as of X, got 4"):
        _core.sae_step(ctx, sae, x, *rates, target=y[:4])
    with pytest.raises(IndexError, match="target_index: row 9 lies outside target with 5 rows"):
        _core.sae_step(ctx, sae, x, *rates, target=y, target_index=np.array([0, 1, 2, 3, 9]))
    y[3, 1] = np.nan
    with pytest.raises(ValueError, match="target: row 3 holds NaN"):
        _core.sae_step(ctx, sae, x, *rates, target=y)
    plain = _core.sae_new(ctx, 4, 6)
    with pytest.raises(ValueError, match="target: this is an autoencoder"):
        _core.sae_step(ctx, plain, x, *rates, target=x)
    for wrong in ({"d_out": 3, "tied": True}, {"skip": True}, {"d_out": -1}):
        with pytest.raises(ValueError):
            _core.sae_new(ctx, 4, 6, **wrong)


def test_moments_and_resets_of_a_transcoder():
    params = start(4, 6, 3, 0, True)
    ctx, sae = _core.Context(1), core_model(params, "relu")
    x, y = (np.random.default_rng(0).standard_normal((50, w)).astype(np.float32) for w in (4, 3))
    _core.sae_step(ctx, sae, x, 1e-3, 1e-3, 0.0, 0.0, 0.0, 1, target=y)
    for field, shape in (
        (_core.W_SKIP_M, (4, 3)),
        (_core.W_SKIP_V, (4, 3)),
        (_core.W_DEC_M, (6, 3)),
        (_core.W_ENC_V, (6, 4)),
    ):
        first, again = np.empty(shape, np.float32), np.empty(shape, np.float32)
        _core.sae_get(sae, field, first)
        assert first.any()
        _core.sae_set(sae, field, first)
        _core.sae_get(sae, field, again)
        np.testing.assert_array_equal(first, again)
    rows, readers = np.eye(3, dtype=np.float32)[:2], np.eye(4, dtype=np.float32)[2:]
    halves = np.full(2, 0.5, np.float32)
    _core.sae_reset(ctx, sae, np.array([5, 1]), rows, halves, halves, readers)
    now = read(sae, params)
    np.testing.assert_array_equal(now["W_dec"][[5, 1]], rows)
    np.testing.assert_array_equal(now["W_enc"][[5, 1]], 0.5 * readers)
    with pytest.raises((TypeError, ValueError), match="readers"):
        _core.sae_reset(ctx, sae, np.array([5, 1]), rows, halves, halves)
    assert _core.sae_nonfinite(sae) == -1
    _core.sae_set(sae, _core.W_SKIP, np.full((4, 3), np.inf, np.float32))
    assert _core.sae_nonfinite(sae) == _core.W_SKIP
