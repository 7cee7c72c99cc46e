"""What several dictionaries agree on: against the definition, planted atoms, and what is chance."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import atoms
from atoms.theory import consensus


def by_definition(units, least):
    """Groups of (dictionary, row): pairs of mutual nearest, the most alike first, join what they are in."""
    pairs = []
    for a in range(len(units)):
        for b in range(a):
            size = np.abs(units[a].astype(float) @ units[b].T.astype(float))
            for i in range(len(units[a])):
                j = int(size[i].argmax())
                if int(size[:, j].argmax()) == i and size[i, j] >= least:
                    pairs.append((-size[i, j], (a, i), (b, j)))
    groups = [{(k, i)} for k, unit in enumerate(units) for i in range(len(unit))]
    for _, one, other in sorted(pairs):
        first = next(g for g in groups if one in g)
        second = next(g for g in groups if other in g)
        if first is not second and not {k for k, _ in first} & {k for k, _ in second}:
            groups.remove(second)
            first |= second
    return {frozenset(g) for g in groups}


def groups_of(found):
    return {frozenset((k, int(i)) for k, i in enumerate(row) if i >= 0) for row in found.members}


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6), st.lists(st.sampled_from([1, 2, 15, 17, 33]), min_size=2, max_size=5),
    st.sampled_from([2, 7, 64]), st.sampled_from([0.2, 0.5, 0.9]), st.booleans(),
)  # fmt: skip
def test_groups_are_those_of_the_definition(seed, sizes, d, least, whitened):
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((40, d))
    dictionaries = [
        (base[rng.permutation(40)[:n]] + 0.4 * rng.standard_normal((n, d))) * rng.uniform(-3, 3, (n, 1))
        for n in sizes
    ]
    metric = (
        atoms.AtomicInnerProduct().fit(rng.standard_normal((300, d)) * np.arange(1, d + 1))
        if whitened
        else None
    )
    found = consensus(dictionaries, metric, cosine=least)
    white = [D if metric is None else metric.whiten_directions(D) for D in dictionaries]
    units = [W / np.linalg.norm(W, axis=1, keepdims=True) for W in white]
    assert groups_of(found) == by_definition(units, least)
    assert sorted(found.found_in, reverse=True) == list(found.found_in) and found.found_in.sum() == sum(sizes)
    for atom, cosine, row in zip(found.atoms, found.cosine, found.members):
        own = np.array([units[k][i] for k, i in enumerate(row) if i >= 0])
        mean = (own * np.where(own @ own[0] < 0, -1, 1)[:, None]).sum(0)
        mean /= np.linalg.norm(mean)
        seen = atom if metric is None else metric.whiten_directions(atom[None])[0]
        np.testing.assert_allclose(seen, mean, atol=2e-4)
        assert abs(cosine - np.abs(own @ mean).mean()) < 1e-5


def test_planted_atoms_are_found_and_noise_is_not():
    rng = np.random.default_rng(0)
    true = rng.standard_normal((300, 96))
    dictionaries = [
        np.concatenate([true[rng.permutation(300)[:250]], rng.standard_normal((50, 96))])[
            rng.permutation(300)
        ]
        + 0.05 * rng.standard_normal((300, 96))
        for _ in range(6)
    ]
    found = consensus(dictionaries)
    shared = found.atoms[found.found_in >= 3]
    assert len(shared) >= 290
    assert atoms.theory.match_dictionaries(shared, true).nearest_a.min() > 0.98
    alone = consensus([rng.standard_normal((300, 96)) for _ in range(6)])
    assert (
        alone.found_in == 1
    ).mean() > 0.95  # unrelated dictionaries have nothing in common at |cosine| 0.5


def test_it_does_not_depend_on_sign_scale_or_type():
    rng = np.random.default_rng(1)
    D = [rng.standard_normal((20, 8)) for _ in range(3)]
    one = consensus(D)
    other = consensus([-3 * D[0], D[1].astype(np.float32).copy(order="F"), D[2][::-1] * 1e-20])
    assert groups_of(one) == {frozenset((k, 19 - i if k == 2 else i) for k, i in g) for g in groups_of(other)}
    shared = one.found_in > 1
    np.testing.assert_allclose(np.abs(np.einsum("ij,ij->i", one.atoms, other.atoms))[shared], 1, atol=1e-5)
    for threads in (1, 3):
        again = consensus(D, num_threads=threads)
        assert again.atoms.tobytes() == one.atoms.tobytes()


def test_models_go_in_and_copies_in_one_dictionary_stay_apart():
    X = np.random.default_rng(2).standard_normal((500, 12)).astype(np.float32)
    seeds = [
        atoms.SparseAutoencoder(24, target_l0=3, max_steps=20, random_state=s, verbose=False).fit(X)
        for s in (0, 1)
    ]
    # its atoms are components_, as scikit-learn's
    coder = atoms.SparseCoder(seeds[0].W_dec, n_nonzero=2).fit(X)
    assert consensus([coder, seeds[1]]).atoms.tobytes() == consensus(seeds).atoms.tobytes()
    found = consensus(seeds)
    assert found.members.shape[1] == 2 and found.atoms.shape[1] == 12
    assert "found in" in found._table().text() and "2 dictionaries" in repr(found)
    twice = np.repeat(np.eye(3), 2, axis=0)
    found = consensus([twice, twice])
    assert found.found_in.sum() == 12 and found.found_in.max() == 2


@pytest.mark.parametrize(
    "dictionaries, more, said",
    [
        ([np.eye(3)], {}, "two or more, got 1"),
        ([np.eye(3), np.eye(4)], {}, r"dictionaries\[1\]: expected 3 columns"),
        ([np.eye(3), np.zeros((0, 3))], {}, r"dictionaries\[1\]: expected at least one atom"),
        ([np.eye(3), np.zeros((2, 3))], {}, r"dictionaries\[1\]: row 0 is all zeros"),
        ([np.eye(3), np.full((2, 3), np.nan)], {}, r"dictionaries\[1\]: row 0 is not finite"),
        ([np.eye(3), np.eye(3)], {"cosine": 0}, "cosine: expected a number above 0"),
        ([np.eye(3), np.eye(3)[0]], {}, r"dictionaries\[1\]"),
        ([np.eye(3), atoms.SparseAutoencoder(3)], {}, "not fitted"),
    ],
)
def test_what_cannot_be_is_said(dictionaries, more, said):
    with pytest.raises(ValueError, match=said):
        consensus(dictionaries, **more)


def test_a_model_without_atoms_is_named():
    with pytest.raises(
        TypeError, match=r"dictionaries\[1\]: expected atoms .* a SparseCoder .* is it fitted"
    ):
        consensus([np.eye(3), atoms.SparseCoder(np.eye(3), n_nonzero=1)])
