"""The core's training step against its NumPy twin, finite differences and PyTorch autograd."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ISAS, step_as_the_core, weights_of_the_twin

from atoms import _core
from atoms import _reference as reference

ACTIVATIONS = ("jumprelu", "relu", "topk", "batchtopk")
NAMES = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")


def start(d, s, seed, tied=False):
    rng = np.random.default_rng(seed)
    D = rng.standard_normal((s, d))
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    E = D if tied else D + 0.1 * rng.standard_normal((s, d))
    p = [E, D, 0.1 * rng.standard_normal(s), 0.1 * rng.standard_normal(d), rng.uniform(0.2, 1.2, s)]
    return [np.ascontiguousarray(a, np.float32) for a in p]


def core_model(params, activation, tied=False, k=0, ctx=None, **kwargs):
    s, d = params[0].shape
    number = ACTIVATIONS.index(activation)
    sae = _core.sae_new(ctx or _core.Context(1), d, s, activation=number, k=k, tied=tied, **kwargs)
    for field, value in enumerate(params):
        _core.sae_set(sae, field, value)
    return sae


def read(sae, params):
    out = [np.empty_like(p) for p in params]
    for field, array in enumerate(out):
        _core.sae_get(sae, field, array)
    return out


CASES = [("jumprelu", False), ("jumprelu", True), ("relu", False), ("topk", False), ("batchtopk", False)]


# The last is large enough for rows written past the caches and gradients by strips.
SHAPES = [(1, 1, 1), (15, 17, 33), (97, 33, 97), (130, 64, 15), (64, 100, 400), (3300, 650, 33)]


@pytest.mark.parametrize("n,d,s", SHAPES)
@pytest.mark.parametrize("activation,tied", CASES)
@pytest.mark.parametrize("extras", ["", "aux", "aux and prefixes"])
def test_ten_steps_equal_the_twin(activation, tied, n, d, s, extras):
    """`extras`: AuxK, rows by number, shifted and scaled; Matryoshka prefixes, without which many active
    latents mean dense products."""
    params = start(d, s, 1, tied)
    k = min(3, s)
    prefixes = sorted({max(1, s // 5), max(1, s // 2), s}) if "prefixes" in extras else []
    wide = np.array(prefixes, np.int64) if prefixes else None
    sae = core_model(params, activation, tied, k, bandwidth=0.3, prefixes=wide)
    twin = reference.SparseAutoencoderTwin(
        *params, activation=activation, tied=tied, bandwidth=0.3, prefixes=prefixes
    )
    aux = {"aux_k": 4, "dead_after": 2 * n, "aux_coefficient": 0.7} if extras else {}
    rng = np.random.default_rng(4)
    for _ in range(10 if n < 1000 else 2):
        x = rng.standard_normal((n, d)).astype(np.float32)
        l0c, l1c, limit = 0.05, 0.1, d if extras else 0.0  # half of the rows are beyond it, or none
        rows, index, shift, scale = x, None, None, 1.0
        if extras:  # the same rows, out of order, in float64, between others, shifted and scaled
            index, scale = rng.permutation(2 * n)[:n], np.float32(0.5)
            shift = np.full(d, 0.25, np.float32)
            rows = np.full((2 * n, 2 * d), np.nan)[:, ::2]
            rows[index] = x / scale + shift
        stats = _core.sae_step(
            _core.Context(2), sae, rows, 1e-3, 2e-3, l0c, l1c, 0.001, k, row_limit=limit,
            index=index, shift=shift, scale=float(scale), **aux,
        )  # fmt: skip
        step_as_the_core(twin, stats, x, x, activation, l0c, l1_coefficient=l1c, k=k, row_limit=limit, **aux)
    weights_of_the_twin(twin, dict(zip(NAMES, read(sae, params), strict=True)))


def torch_losses(
    params,
    activation,
    xs,
    lr,
    *,
    bandwidth,
    l0c,
    l1c,
    k,
    widths=(),
    aux_k=0,
    dead_after=0,
    auxc=0.0,
    limit=0.0,
):
    """Autograd's ten steps: the same objective from the formulas, with torch's own Adam, whose moments are
    rounded after each step as the core's are."""
    widths = widths or (len(params[0]),)

    class Threshold(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z, theta):
            ctx.save_for_backward(z, theta)
            return z * (z > theta), (z > theta).to(z.dtype)

        @staticmethod
        def backward(ctx, g_a, g_h):
            z, theta = ctx.saved_tensors
            band = ((z > theta) & (z <= theta + bandwidth)).to(z.dtype)
            held = torch.tensor([sum(j < w for w in widths) for j in range(z.shape[1])])
            # decoder rows have unit norm: |e - z d|^2 - |e|^2 = z (z - 2 e.d), for each width that holds d
            gain = z * (held * z * weight[:, None] / len(z) - g_a)
            return g_a * (z > theta), ((gain - g_h) * band / bandwidth).sum(0)

    E, D, b_enc, b_dec, theta = (torch.tensor(p, dtype=torch.float64, requires_grad=True) for p in params)
    main = torch.optim.Adam([E, D, b_enc, b_dec], lr=lr)
    thr = torch.optim.Adam([theta], lr=lr)
    silent = torch.zeros(len(theta), dtype=torch.long)  # samples since a latent fired
    losses, ever_dead = [], 0
    for x in xs:
        x = torch.tensor(x, dtype=torch.float64)
        z = (x - b_dec) @ E.T + b_enc
        penalty = 0.0
        if activation == "jumprelu":
            a, h = Threshold.apply(z, theta)
            penalty = l0c * h.sum(1).mean()
        elif activation == "relu":
            a = z.relu()
            penalty = l1c * a.sum(1).mean()
        elif activation == "topk":
            values, where = z.relu().topk(k, dim=1)
            a = torch.zeros_like(z).scatter(1, where, values)
        else:
            values, where = z.relu().flatten().topk(k * len(x))
            a = torch.zeros_like(z).flatten().scatter(0, where, values).reshape(z.shape)
        squares = [((a[:, :w] @ D[:w] + b_dec - x) ** 2).sum(1) for w in widths]
        weight = torch.ones(len(x), dtype=torch.float64)  # of each row's gradients
        if limit:
            weight = (limit / (squares[-1].sqrt() * (x - b_dec).norm(dim=1))).clamp(max=1).detach()
            assert 0 < (weight < 1).sum() < len(x)
        loss = sum((weight * square).mean() for square in squares) + penalty
        unseen = sum(((1 - weight) * square).mean().item() for square in squares)  # figures know no weights
        dead = silent >= dead_after
        if aux_k and dead.any():
            values, where = torch.where(dead, z.relu(), 0).topk(aux_k, dim=1)
            rest = torch.zeros_like(z).scatter(1, where, values) @ D - (x - a @ D - b_dec).detach()
            squares = (rest**2).sum(1) * auxc * min(1, int(dead.sum()) / aux_k)
            loss = loss + (weight * squares).mean()
            unseen += ((1 - weight) * squares).mean().item()
            ever_dead += 1
        silent = torch.where((a > 0).any(0), 0, silent + len(x))
        main.zero_grad()
        thr.zero_grad()
        loss.backward()
        with torch.no_grad():
            D.grad -= (D.grad * D).sum(1, keepdim=True) * D
        main.step()
        for matrix in (E, D):
            state = main.state[matrix]
            m, v = state["exp_avg"].numpy(), state["exp_avg_sq"].numpy()
            m[...], v[...] = reference.rounded_moments(m, v, int(state["step"]), matrix is D)
        if activation == "jumprelu":
            thr.step()
        with torch.no_grad():
            D /= D.norm(dim=1, keepdim=True)
        losses.append(loss.item() + unseen)
    assert not aux_k or ever_dead > 5  # AuxK had something to do
    return losses, [t.detach().numpy() for t in (E, D, b_enc, b_dec, theta)]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("limit", [0.0, 36.0])
@pytest.mark.parametrize("extra", ["plain", "matryoshka", "aux_k", "both"])
def test_ten_steps_equal_autograd(activation, extra, limit):
    n, d, s, k = 128, 24, 80, 5
    params = start(d, s, 3)
    widths = (10, 32, 80) if extra in ("matryoshka", "both") else ()
    aux = {"aux_k": 6, "dead_after": 2 * n, "auxc": 0.7} if extra in ("aux_k", "both") else {}
    if aux:
        params[2][::4] = -2.5  # latents that seldom fire, though some z of theirs is above zero
        params[4][::4] += 2
    rng = np.random.default_rng(4)
    xs = [rng.standard_normal((n, d)).astype(np.float32) for _ in range(10)]
    expected, final = torch_losses(
        params,
        activation,
        xs,
        1e-3,
        bandwidth=0.25,
        l0c=0.03,
        l1c=0.05,
        k=k,
        widths=widths,
        limit=limit,
        **aux,
    )
    prefixes = np.array(widths, np.int64) if widths else None
    sae = core_model(params, activation, k=k, bandwidth=0.25, clip=0.0, prefixes=prefixes)
    ctx = _core.Context(1)
    for x, want in zip(xs, expected, strict=True):
        stats = _core.sae_step(
            ctx, sae, x, 1e-3, 1e-3, 0.03, 0.05, 0.0, k,
            *(aux.values() if aux else (0, 0, 0.0)), row_limit=limit,
        )  # fmt: skip
        assert stats["squared_error"] + stats["penalty"] == pytest.approx(want, rel=1e-5)
    for name, got, want in zip(NAMES, read(sae, params), final, strict=True):
        assert np.isclose(got, want, rtol=1e-3, atol=1e-4).mean() > 0.999, name


@pytest.mark.parametrize("activation,tied", CASES)
def test_twin_gradients_equal_finite_differences(activation, tied):
    params = start(7, 11, 5, tied)
    twin = reference.SparseAutoencoderTwin(*params, activation=activation, tied=tied, bandwidth=1e-9)
    x = np.random.default_rng(6).standard_normal((9, 7))
    kwargs = {"l0_coefficient": 0.1, "l1_coefficient": 0.2, "k": 3}
    g = twin.gradients(x, **kwargs)[3]
    h = 1e-6
    for name in NAMES[:4]:
        flat, grad = twin.p[name].reshape(-1), g[name].reshape(-1)
        for i in range(0, len(flat), 3):
            value = flat[i]
            losses = []
            for step in (h, -h):
                flat[i] = value + step
                losses.append(sum(twin.gradients(x, **kwargs)[:2]))
            flat[i] = value
            assert grad[i] == pytest.approx((losses[0] - losses[1]) / (2 * h), abs=1e-6), name


@pytest.mark.parametrize("prefixes", [(), (2, 4, 5)])
def test_threshold_gradient_is_the_objectives_difference_quotient(prefixes):
    params = start(6, 5, 7)
    twin = reference.SparseAutoencoderTwin(*params, bandwidth=0.05, prefixes=prefixes)
    x = np.random.default_rng(8).standard_normal((2000, 6))
    before = sum(twin.gradients(x, l0_coefficient=0.5)[:2])
    g = twin.gradients(x, l0_coefficient=0.5)[3]["threshold"]
    norms = np.linalg.norm(params[1].astype(np.float64), axis=1)
    for j in range(5):
        assert norms[j] == pytest.approx(1, abs=1e-6)
        twin.p["threshold"][j] += 0.05
        after = sum(twin.gradients(x, l0_coefficient=0.5)[:2])
        twin.p["threshold"][j] -= 0.05
        assert g[j] == pytest.approx((after - before) / 0.05, abs=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_twin_gradients_of_matryoshka_and_aux_k_equal_autograd(activation):
    params = start(9, 20, 5)
    kwargs = {
        "l0_coefficient": 0.1,
        "l1_coefficient": 0.2,
        "k": 3,
        "aux_k": 2,
        "dead_after": 0,
        "aux_coefficient": 0.3,
    }
    twin = reference.SparseAutoencoderTwin(
        *params, activation=activation, bandwidth=1e-9, prefixes=[4, 11, 20]
    )
    twin.last_fired[10:] = 1  # the first ten count as dead
    x = np.random.default_rng(6).standard_normal((30, 9))
    error, penalty, _, g = twin.gradients(x, **kwargs)
    E, D, b_enc, b_dec, theta = (torch.tensor(p, dtype=torch.float64, requires_grad=True) for p in params)
    t = torch.tensor(x)
    z = (t - b_dec) @ E.T + b_enc
    on = torch.tensor(twin.active(z.detach().numpy(), 3))
    a = z * on
    losses = [((a[:, :w] @ D[:w] + b_dec - t) ** 2).sum(1).mean() for w in (4, 11, 20)]
    values, where = z[:, :10].relu().topk(2, dim=1)
    aux = torch.zeros_like(z).scatter(1, where, values) @ D - (t - a @ D - b_dec).detach()
    loss = sum(losses) + 0.3 * (aux**2).sum(1).mean()
    loss = loss + {"jumprelu": 0.1 * on.sum(1).double().mean(), "relu": 0.2 * a.sum(1).mean()}.get(
        activation, 0.0
    )
    loss.backward()
    assert error == pytest.approx(losses[-1].item()) and error + penalty == pytest.approx(loss.item())
    for name, tensor in zip(NAMES[:4], (E, D, b_enc, b_dec), strict=True):
        np.testing.assert_allclose(g[name], tensor.grad.numpy(), atol=1e-10)


def codes(sae, x, ctx):
    indptr, indices, values, stats = _core.sae_encode(ctx, sae, x)
    return indptr.tobytes(), indices.tobytes(), values.tobytes(), stats


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("n,d,s", [(1, 1, 1), (65, 33, 97), (700, 97, 500), (130, 700, 390), (3300, 650, 17)])
def test_same_bits_for_every_screen_isa_and_thread_count(activation, n, d, s, contexts):
    params = start(d, s, 9)
    x = np.random.default_rng(10).standard_normal((n, d)).astype(np.float32) * 2
    seen = {}
    for ctx in contexts:
        for screen in range(4):
            sae = core_model(params, activation, k=min(4, s), ctx=ctx, screen=screen)
            bits = codes(sae, x, ctx)[:3]
            _core.sae_step(ctx, sae, x, 1e-3, 1e-3, 0.1, 0.1, 0.0, min(4, s), 5, 0, 0.5, d / 2)
            moments = [np.empty_like(params[0]) for _ in range(4)]
            for field, array in zip((5, 6, 10, 11), moments, strict=True):
                _core.sae_get(sae, field, array)
            trained = tuple(a.tobytes() for a in [*read(sae, params), *moments])
            # machines without fused multiply-add round differently, and so does each BLAS, to which steps turn
            # where more than two fifths are active
            dense = len(bits[1]) / 4 > 0.4 * n * s
            key = "portable" if ctx.isa == "portable" else "fused", ctx.blas if dense else "any"
            assert seen.setdefault(key, (bits, trained)) == (bits, trained), (
                ctx.isa,
                ctx.num_threads,
                screen,
            )


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    d=st.sampled_from([1, 3, 16, 63, 130]),
    scale=st.sampled_from([1e-8, 1.0, 1e6]),
    spike=st.sampled_from([0.0, 1e3, 1e6]),
    ties=st.booleans(),
)
def test_integer_screens_lose_nothing(seed, d, scale, spike, ties):
    """Ties at the threshold, outlier coordinates, wide ranges: the active set is float32's."""
    s, n = 50, 70
    rng = np.random.default_rng(seed)
    params = start(d, s, seed)
    x = (rng.standard_normal((n, d)) * scale).astype(np.float32)
    x[:, rng.integers(d)] += np.float32(spike * scale)
    if ties:  # few distinct values: many z equal each other and the threshold
        params = [np.round(p * 2) / 2 for p in params]
        x = np.round(x / scale).astype(np.float32)
    params[4] = np.quantile((x - params[3]) @ params[0].T + params[2], 0.9, axis=0).astype(np.float32).clip(0)
    if ties:
        params[4] = np.round(params[4] * 2) / 2
    ctx = _core.Context(1)
    sets = [codes(core_model(params, "jumprelu", screen=screen), x, ctx)[:3] for screen in (1, 2, 3)]
    assert sets[0] == sets[1] == sets[2]
    z = ((x.astype(np.float64) - params[3]) @ params[0].T.astype(np.float64)) + params[2]
    indptr, indices, values, _ = _core.sae_encode(ctx, core_model(params, "jumprelu"), x)
    got = np.zeros((n, s), bool)
    got[np.repeat(np.arange(n), np.diff(indptr)), indices] = True
    slack = 1e-5 * (np.abs(x).max() + 1) * d
    np.testing.assert_array_equal(got[z > params[4] + slack], True)
    np.testing.assert_array_equal(got[z < params[4] - slack], False)


def test_canonical_dot_is_a_dot_product():
    rng = np.random.default_rng(11)
    for d in (1, 15, 16, 17, 33, 64, 97, 640, 700, 1300):
        params = start(d, 3, d)
        params[4][:] = 0
        x = rng.standard_normal((5, d)).astype(np.float32)
        indptr, indices, values, _ = _core.sae_encode(_core.Context(1), core_model(params, "jumprelu"), x)
        z = (x.astype(np.float64) - params[3]) @ params[0].T.astype(np.float64) + params[2]
        rows = np.repeat(np.arange(5), np.diff(indptr))
        np.testing.assert_allclose(values, z[rows, indices], atol=1e-5 * np.sqrt(d))
        assert len(values) == (z > 0).sum()


def test_decode_equals_matrix_product():
    import scipy.sparse as sp

    rng = np.random.default_rng(12)
    for n, d, s in ((0, 3, 4), (1, 1, 1), (33, 17, 97)):
        a = sp.random_array((n, s), density=0.2, format="csr", rng=rng, dtype=np.float32)
        W = rng.standard_normal((s, d), dtype=np.float32)
        b = rng.standard_normal(d, dtype=np.float32)
        out = np.empty((n, d), np.float32)
        _core.decode(
            _core.Context(2), a.indptr.astype(np.int64), a.indices.astype(np.int32), a.data, W, b, out
        )
        np.testing.assert_allclose(out, a.toarray() @ W + b, atol=1e-5)


@pytest.mark.parametrize("weights,rows", [(1e-39, 1e20), (1e-44, 1e25), (1, 1e-39), (1, 1e-44)])
def test_screens_agree_on_what_is_too_small_to_quantise(weights, rows, contexts):
    """127 / largest is infinite there: the images were whatever a conversion of NaN to integers gives."""
    params = start(33, 70, 3)
    params[0][...] *= np.float32(weights)
    params[2][...] = 0
    x = (np.random.default_rng(4).standard_normal((50, 33)) * rows).astype(np.float32)
    found = set()
    for ctx in contexts:
        for screen in range(4):
            got = codes(core_model(params, "relu", ctx=ctx, screen=screen), x, ctx)[:3]
            found.add(got[:2])
    assert len(found) == 1


def test_bad_input_is_named_and_the_model_unchanged():
    params = start(8, 16, 13)
    sae = core_model(params, "jumprelu")
    ctx = _core.Context(2)
    x = np.ones((100, 8), np.float32)
    for bad in (np.nan, np.inf, 3.4e38):
        y = x.copy()
        y[71, 3] = bad
        y[71, 4] = -bad
        if np.isfinite(bad):  # finite, but the distance to b_dec overflows nothing: allowed
            continue
        with pytest.raises(ValueError, match="row 71"):
            _core.sae_step(ctx, sae, y, 1e-3, 1e-3, 0.0, 0.0, 0.0, 1)
        with pytest.raises(ValueError, match="row 71"):
            _core.sae_encode(ctx, sae, y)
    for got, want in zip(read(sae, params), params, strict=True):
        np.testing.assert_array_equal(got, want)
    with pytest.raises(ValueError, match="X: expected length 8 along axis 1"):
        _core.sae_encode(ctx, sae, np.ones((4, 7), np.float32))
    with pytest.raises(TypeError, match="X: unsupported dtype"):
        _core.sae_encode(ctx, sae, np.ones((4, 8), np.int32))
    with pytest.raises(IndexError, match="row 4 lies outside X with 4 rows"):
        _core.sae_encode(ctx, sae, np.ones((4, 8)), np.array([0, 4]))
    with pytest.raises(ValueError, match="column index"):
        _core.decode(
            ctx, np.array([0, 1]), np.array([9], np.int32), np.ones(1, np.float32), params[1][:5],
            params[3], np.empty((1, 8), np.float32),
        )  # fmt: skip


@pytest.mark.parametrize("name", ISAS)
def test_moments_are_rounded_at_random_and_right_in_the_mean(name):
    """Of latents that never fire only beta m and beta v remain: known to the bit before they are rounded."""
    d, s, steps, beta1, beta2 = 97, 33, 200, np.float32(0.9), np.float32(0.999)
    ctx = _core.Context(2, _core.ISAS.index(name))
    params = start(d, s, 1)
    params[2][:], params[4][:] = -100, 1
    sae = core_model(params, "jumprelu")
    rng = np.random.default_rng(2)
    fields = {5: (beta1, False), 6: (beta1, True), 10: (beta2, False), 11: (beta2, True)}
    now = {field: rng.uniform(1, 100, (s, d)).astype(np.float32) for field in fields}
    for field, value in now.items():
        _core.sae_set(sae, field, value)
        now[field] = np.empty((s, d), np.float32)
        _core.sae_get(sae, field, now[field])  # to the nearest bfloat16
        np.testing.assert_allclose(now[field], value, rtol=2**-8)
    start_v = now[10].astype(np.float64)
    for step in range(1, steps + 1):
        _core.sae_step(ctx, sae, np.zeros((3, d), np.float32), 0.0, 0.0, 0.0, 0.0, 0.0, 1)
        for first, second, decoder in ((5, 10, False), (6, 11, True)):
            want = reference.rounded_moments(beta1 * now[first], beta2 * now[second], step, decoder)
            for field, value in zip((first, second), want, strict=True):
                _core.sae_get(sae, field, now[field])
                np.testing.assert_array_equal(now[field], value)
    # to the nearest, v would not move at all; each rounding's variance is at most a quarter of a unit's square
    ratio = now[10] / (start_v * float(beta2) ** steps)
    unit = 2.0**-7
    assert ratio.mean() == pytest.approx(1, abs=5 * unit / 2 * np.sqrt(steps / (s * d)))
    assert 0 < ratio.std() < unit / 2 * np.sqrt(steps)


def test_random_bits_are_uniform_and_uncorrelated():
    """Sixteen bits for m and sixteen for v: over columns, rows, steps and the two matrices."""
    grid = np.full((200, 160), 1 + 2.0**-8)  # half way between two bfloat16
    m, v = reference.rounded_moments(grid, grid, 1, True)
    up = [m > 1, v > 1, reference.rounded_moments(grid, grid, 2, True)[0] > 1,
          reference.rounded_moments(grid, grid, 1, False)[0] > 1]  # fmt: skip
    up += [np.roll(m > 1, 1, axis) for axis in (0, 1)]
    signs = np.array([2.0 * u.ravel() - 1 for u in up])
    correlations = signs @ signs.T / m.size - np.eye(len(up))
    assert np.abs(signs.mean(1)).max() < 5 / np.sqrt(m.size)
    assert np.abs(correlations).max() < 5 / np.sqrt(m.size)
    for share in (0.1, 0.25, 0.9):
        up = reference.rounded_moments(1 + share * 2.0**-7 * np.ones_like(m), m, 3, True)[0] > 1
        assert up.mean() == pytest.approx(share, abs=5 * np.sqrt(share * (1 - share) / m.size))


@pytest.mark.parametrize("field", range(17))
def test_every_field_reads_back(field):
    sae = _core.sae_new(_core.Context(1), 5, 7)
    shape = {15: (7,), 16: (2,)}.get(field, {0: (7, 5), 1: (7, 5), 3: (5,)}.get(field % 5, (7,)))
    dtype = np.int64 if field >= 15 else np.float32
    value = np.random.default_rng(field).integers(0, 100, shape).astype(dtype)
    _core.sae_set(sae, field, value)
    out = np.zeros_like(value)
    _core.sae_get(sae, field, out)
    np.testing.assert_array_equal(out, value)
