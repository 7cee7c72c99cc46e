"""Steps in a row in one call of the core: as single steps steered by the twin, and however many steps a call has."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import atoms
from atoms import _core
from atoms import _reference as reference
from atoms._rows import numbered, streams
from atoms.sae import _training
from atoms.sae._revival import Revival

ACTIVATIONS = ("jumprelu", "relu", "topk", "batchtopk")
CONTROLS = ("price", "shift", "l1", "press", "cut", "row", "look")
FIELDS = ("W_ENC", "W_DEC", "B_ENC", "B_DEC", "THRESHOLD", "LAST_FIRED")
D, S, N = 17, 33, 40


def new(activation, seed=0, tied=False, d_out=0):
    rng = np.random.default_rng(seed)
    sae = _core.sae_new(
        _core.Context(1), D, S, activation=ACTIVATIONS.index(activation), k=3, tied=tied, bandwidth=0.3, d_out=d_out
    )  # fmt: skip
    W = rng.standard_normal((S, d_out or D)).astype(np.float32)
    _core.sae_set(sae, _core.W_DEC, W / np.linalg.norm(W, axis=1, keepdims=True))
    if not tied:
        _core.sae_set(sae, _core.W_ENC, rng.standard_normal((S, D)).astype(np.float32) / 4)
    _core.sae_set(sae, _core.THRESHOLD, rng.uniform(0.1, 1, S).astype(np.float32))
    return sae


def field(sae, name, d_out=D):
    shapes = {"W_ENC": (S, D), "W_DEC": (S, d_out), "B_DEC": (d_out,)}
    out = np.empty(shapes.get(name, (S,)), np.int64 if name == "LAST_FIRED" else np.float32)
    _core.sae_get(sae, getattr(_core, name), out)
    return out


def same(one, other, d_out=D):
    return all(np.array_equal(field(one, name, d_out), field(other, name, d_out)) for name in FIELDS)


@pytest.mark.parametrize("target_l0", [0.5, 4.0, 20.0])
@pytest.mark.parametrize("activation,tied", [*((a, False) for a in ACTIVATIONS), ("jumprelu", True)])
def test_as_single_steps_steered_by_the_twin(activation, tied, target_l0):
    rng, ctx, steps = np.random.default_rng(1), _core.Context(2), 12
    X = rng.standard_normal((N * steps, D)).astype(np.float32)
    X[::50] *= 30  # rows that are held to a multiple of what is usual
    rates = np.linspace(1e-3, 1e-2, steps).astype(np.float32)
    sae, alone = new(activation, tied=tied), new(activation, tied=tied)
    control = np.zeros(7)
    done, figures = _core.sae_train(
        ctx,
        sae,
        X,
        rates,
        control,
        target_l0,
        3,
        row_multiple=4.0,
        aux_k=2,
        dead_after=90,
        aux_coefficient=0.1,
    )
    assert done == steps
    c = dict.fromkeys(CONTROLS, 0.0)
    for i, rate in enumerate(rates.tolist()):
        stats = _core.sae_step(
            ctx, alone, X[i * N : (i + 1) * N], rate, rate, c["price"], c["l1"] * np.exp(c["press"]), c["shift"], 3,
            aux_k=2, dead_after=90, aux_coefficient=0.1, row_limit=4 * c["row"],
        )  # fmt: skip
        before = field(alone, "THRESHOLD")
        c, after = reference.steered(
            c, before, stats, activation=activation, target_l0=target_l0, bandwidth=np.float32(0.3)
        )
        if after is not before:
            _core.sae_set(alone, _core.THRESHOLD, after.astype(np.float32))
    np.testing.assert_allclose(control, [c[name] for name in CONTROLS], rtol=1e-6, atol=1e-12)
    for name in FIELDS:
        np.testing.assert_allclose(field(sae, name), field(alone, name), rtol=1e-4, atol=1e-5)
    assert figures["total_variance"] == stats["total_variance"]
    assert figures["squared_error"] == pytest.approx(stats["squared_error"], rel=1e-5)
    assert control[CONTROLS.index("row")] > 0


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(ACTIVATIONS),
    st.lists(st.integers(1, 7), min_size=1, max_size=5),
    st.booleans(),
    st.booleans(),
)
def test_however_many_steps_a_call_has(activation, parts, numbered_rows, transcodes):
    rng, ctx, steps = np.random.default_rng(2), _core.Context(1), sum(parts)
    X = rng.standard_normal((N * steps, D)).astype(np.float32)
    Y = rng.standard_normal((N * steps, 9)).astype(np.float32)
    order = rng.permutation(len(X))
    d_out = 9 if transcodes else D

    def take(sae, control, first, count):
        rows = slice(first * N, (first + count) * N)
        index = order[rows] if numbered_rows else None
        of = lambda A: A if numbered_rows else A[rows]
        given = {"target": of(Y), "target_index": index} if transcodes else {}
        rates = np.full(count, 1e-2, np.float32)
        return _core.sae_train(
            ctx, sae, of(X), rates, control, 4.0, 3, row_multiple=4.0, index=index, **given
        )

    once, apart = (new(activation, d_out=9 if transcodes else 0) for _ in range(2))
    control, other = np.zeros(7), np.zeros(7)
    done, stats = take(once, control, 0, steps)
    assert done == steps
    for first, count in zip(itertools.accumulate([0, *parts]), parts, strict=False):
        done, last = take(apart, other, first, count)
        assert done == count
    stats.pop("seconds"), last.pop("seconds")
    assert stats == last and np.array_equal(control, other) and same(once, apart, d_out)


def test_it_stops_where_latents_are_dead():
    rng, ctx = np.random.default_rng(3), _core.Context(1)
    X = rng.standard_normal((20 * N, D)).astype(np.float32)
    rates = np.full(20, 1e-3, np.float32)
    sae, control = new("jumprelu"), np.zeros(7)
    threshold = field(sae, "THRESHOLD")
    threshold[5] = 1e6
    _core.sae_set(sae, _core.THRESHOLD, threshold)
    control[6] = 2.5  # looks after step 3, before anything is dead, then after 3 + 4 = 7
    arguments = {"wait": 4.0, "dead_after": 4 * N}
    done, _ = _core.sae_train(ctx, sae, X, rates, control, 4.0, 3, **arguments)
    assert done == 7 and control[6] == 7.0
    assert field(sae, "LAST_FIRED")[5] <= 7 * N - 4 * N
    control[6] = 12.0  # the caller waits
    done, _ = _core.sae_train(ctx, sae, X[7 * N :], rates[7:], control, 4.0, 3, **arguments)
    assert done == 5
    done, _ = _core.sae_train(ctx, sae, X[12 * N :], rates[12:], control, 4.0, 3, wait=0.0, dead_after=4 * N)
    assert done == 8


def test_a_bad_row_leaves_the_steps_before_it():
    rng, ctx = np.random.default_rng(4), _core.Context(1)
    X = rng.standard_normal((5 * N, D)).astype(np.float32)
    X[3 * N + 2, 1] = np.nan
    rates, control, other = np.full(5, 1e-2, np.float32), np.zeros(7), np.zeros(7)
    sae, alone = new("jumprelu"), new("jumprelu")
    with pytest.raises(ValueError, match=f"X: row {3 * N + 2} "):
        _core.sae_train(ctx, sae, X, rates, control, 4.0, 3)
    _core.sae_train(ctx, alone, X[: 3 * N], rates[:3], other, 4.0, 3)
    assert np.array_equal(control, other) and same(sae, alone)
    with pytest.raises(ValueError, match=f"X: row {3 * N + 2} "):
        _core.sae_train(ctx, sae, X, rates, control, 4.0, 3, index=np.arange(len(X)))
    both, y = new("relu", d_out=9), rng.standard_normal((5 * N, 9)).astype(np.float32)
    y[4 * N] = np.inf
    with pytest.raises(ValueError, match=f"target: row {4 * N} "):
        _core.sae_train(ctx, both, np.nan_to_num(X), rates, np.zeros(7), 4.0, 3, target=y)


def test_what_it_refuses():
    ctx, X = _core.Context(1), np.ones((10, D), np.float32)
    rates = np.full(5, 1e-2, np.float32)
    for given_rates, target_l0, rows in ((rates[:0], 4.0, X), (rates[:3], 4.0, X), (rates, 0.0, X), (rates, np.nan, X),
                                         (rates, 4.0, X[:0])):  # fmt: skip
        with pytest.raises(ValueError):
            _core.sae_train(ctx, new("jumprelu"), rows, given_rates, np.zeros(7), target_l0, 3)
    assert _core.sae_train(ctx, new("topk"), X, rates, np.zeros(7), 0.0, 3)[0] == 5  # which has no target
    with pytest.raises(ValueError, match="control"):
        _core.sae_train(ctx, new("topk"), X, rates, np.zeros(6), 4.0, 3)


# ---------------------------------------------------------------- batches


def rows_drawn(sampler, most, batches):
    """The rows of so many batches, drawn at most so many at a time; and how many came at most."""
    parts, count, widest = [], 0, 0
    while count < batches:
        ending = sampler.ending()
        if ending is not None and count >= ending[1]:
            break
        raw, index = sampler.draw(min(most, batches - count))
        rows = np.array(raw if index is None else raw[index])
        assert len(rows) % sampler.batch_size == 0
        here = len(rows) // sampler.batch_size
        assert 1 <= here <= most
        parts.append(rows)
        count, widest = count + here, max(widest, here)
    return np.concatenate(parts), widest


class Blocks(atoms.activations.BlockSource):
    def __init__(self, X, size, buffer_rows):
        self.X, self.d, self.buffer_rows, self.size = X, X.shape[1], buffer_rows, size
        self.dtype = X.dtype
        self.sizes = np.diff([*range(0, len(X), size), len(X)])

    def read(self, block, out):
        out[...] = self.X[block * self.size : block * self.size + len(out)]


@pytest.mark.parametrize(
    "kind", ["array", "shards", "blocks", "one group", "stream", "short stream", "pair", "joint"]
)
@pytest.mark.parametrize("most", [2, 5, 1000])
def test_batches_together_are_the_batches_one_by_one(kind, most, monkeypatch):
    X = np.arange(2 * 997, dtype=np.float32).reshape(997, 2)
    monkeypatch.setattr(streams.StreamSampler, "BUFFER_ROWS", 400)

    def sampler():
        chunks = lambda: iter(np.array_split(X, 11))
        rows = {
            "array": lambda: numbered.Rows(X),
            "shards": lambda: numbered.Rows([X[:300], X[300:]]),
            "blocks": lambda: numbered.BlockRows(Blocks(X, 50, 300)),
            "one group": lambda: numbered.BlockRows(Blocks(X, 50, 5000)),
            "stream": lambda: streams.StreamRows(chunks()),
            "short stream": lambda: streams.StreamRows(iter([X[:150], X[150:300]])),
            "pair": lambda: _training.paired(X, -X),
            "joint": lambda: _training.paired(Blocks(X, 50, 300), Blocks(-X, 50, 300)),
        }[kind]()
        return rows.sampler(32, [7])

    def drawn(most):
        one = sampler()
        draw = one.draw
        if kind in ("pair", "joint"):  # one of the two sides, having looked at both

            def draw_x(most):
                both, index = draw(most)
                assert np.array_equal(both.x, -both.y)
                return both.x, index

            one.draw = draw_x
        try:
            return rows_drawn(one, most, 100)
        finally:
            one.close()

    (alone, _), (together, widest) = drawn(1), drawn(most)
    assert np.array_equal(alone, together)
    assert widest > 1


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("metric", [False, True])
def test_how_long_a_call_is_changes_no_bit(activation, metric, monkeypatch):
    """With latents that die and are revived, held-out rows, two at once, and rows that come as a stream."""
    rng = np.random.default_rng(0)
    X = (rng.standard_normal((3000, 24)) * 0.8 ** np.arange(24)).astype(np.float32)
    X[::400] *= 4  # rows whose gradients are held
    calls, dead = [], []
    take, revive = _core.sae_train, Revival.__call__
    monkeypatch.setattr(_core, "sae_train", lambda *a, **k: calls.append(len(a[3])) or take(*a, **k))
    monkeypatch.setattr(Revival, "__call__", lambda self, *a: dead.append(len(a[2])) or revive(self, *a))

    def trained(seconds):
        monkeypatch.setattr(_training, "CALL", seconds)
        options = {"metric": atoms.AtomicInnerProduct().fit(X) if metric else None, "activation": activation}
        make = lambda l0: atoms.SparseAutoencoder(
            64, target_l0=l0, max_steps=1200, batch_size=64, dead_after=1.0, verbose=False, **options
        )
        one = make(3).fit(X, X_val=X[:500])
        many = atoms.fit_many([make(2), make(5)], X, X_val=X[:200])
        stream = make(3).fit(iter(np.array_split(X, 9)), X_val=X[:200])
        found = [one, *many, stream]
        return [
            (m.W_enc, m.W_dec, m.b_enc, m.threshold, {k: v for k, v in m.history_.items() if k != "seconds"})
            for m in found
        ]

    slow = trained(0.0)
    assert set(calls) == {1}
    before = dead[:]
    dead.clear()
    fast = trained(1e9)
    assert max(calls) == 6  # from one record to the next
    assert dead == before and sum(dead) > 0
    for a, b in zip(slow, fast, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a[:-1], b[:-1], strict=True))
        np.testing.assert_equal(a[-1], b[-1])


def test_a_call_copies_few_rows(monkeypatch):
    """Rows that a metric whitens for a call are held until it ends."""
    X = np.random.default_rng(0).standard_normal((3000, 24)).astype(np.float32)
    calls = []
    take = _core.sae_train
    monkeypatch.setattr(_core, "sae_train", lambda *a, **k: calls.append(len(a[3])) or take(*a, **k))
    monkeypatch.setattr(_training, "CALL", 1e9)
    monkeypatch.setattr(_training, "COPIED", 3 * 64 * 24 * 4)
    metric = atoms.AtomicInnerProduct().fit(X)
    shards = [X[:900], X[900:]]
    for rows, target, options, most in (
        (X, None, {}, 6), (X, None, {"metric": metric}, 3), (shards, None, {}, 3), (X, X, {}, 6), (X, shards, {}, 3)
    ):  # fmt: skip
        calls.clear()
        atoms.SparseAutoencoder(32, target_l0=3, max_steps=1200, batch_size=64, verbose=False, **options).fit(
            rows, target=target, X_val=X[:100], target_val=None if target is None else X[:100]
        )
        assert max(calls) == most


@pytest.mark.parametrize(
    "every,stops", [(7, True), (np.int64(7), True), (1, False), (2.5, False), (0, False), (True, False)]
)
def test_a_callback_that_asks_for_some_steps(every, stops, monkeypatch):
    """Others share a call of the core. What is no number of steps is not taken for one."""
    X = np.random.default_rng(0).standard_normal((3000, 24)).astype(np.float32)
    monkeypatch.setattr(_training, "CALL", 1e9)
    calls, take = [], _core.sae_train
    monkeypatch.setattr(_core, "sae_train", lambda *a, **k: calls.append(len(a[3])) or take(*a, **k))

    class Asked:
        def __init__(self):
            self.every, self.steps, self.weights = every, [], []

        def __call__(self, sae, figures):
            self.steps.append(figures["step"])
            self.weights.append(sae.W_dec)

    make = lambda seed=0: atoms.SparseAutoencoder(
        32, target_l0=3, max_steps=1205, batch_size=64, verbose=False, random_state=seed
    )
    some, each = Asked(), {}
    found = make().fit(X, X_val=X[:100], callback=some)
    longest = max(calls)
    always = make().fit(
        X, X_val=X[:100], callback=lambda sae, figures: each.update({figures["step"]: sae.W_dec})
    )
    assert np.array_equal(found.W_dec, always.W_dec)
    assert list(each) == list(range(1, 1206))
    if stops:
        assert some.steps == sorted({*range(7, 1206, 7), *found.history_["step"]}) and some.steps[-1] == 1205
        assert longest == 6
    else:
        assert some.steps == list(each) and longest == 1
    assert all(np.array_equal(each[step], W) for step, W in zip(some.steps, some.weights, strict=True))
    together = Asked()
    atoms.fit_many([make(1), make(2)], X, callback=together)
    assert together.steps == [step for step in some.steps for _ in range(2)]
