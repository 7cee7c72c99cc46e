"""No function of the core is handed two arrays that share memory where it writes one of them."""

import itertools

import numpy as np
import scipy.sparse

import atoms
from atoms import _core, recovery, theory

RNG = np.random.default_rng(0)
ALONE = {  # write no array beside another
    *("Context", "build_info", "sae_work", "dict_gram", "dict_has_gram", "dict_new", "dict_units"),
    *("babel", "sae_get", "sae_new", "sae_nonfinite", "sae_set", "sae_encode", "sae_reset", "sae_step"),
}


def record(monkeypatch):
    """The first call of each function, with copies of its arrays; more of one with other arrays in place of None."""
    calls = {}

    def recorded(name, function):
        def call(*args, **kwargs):
            given = [*args, *kwargs.values()]
            key = name, tuple(isinstance(a, np.ndarray) and a.ndim for a in given)
            arrays = [a.copy() if isinstance(a, np.ndarray) else a for a in given]
            calls.setdefault(key, (arrays[: len(args)], dict(zip(kwargs, arrays[len(args) :], strict=True))))
            return function(*args, **kwargs)

        return call

    for name in dir(_core):
        if callable(getattr(_core, name)) and name not in ("Context", "build_info"):
            monkeypatch.setattr(_core, name, recorded(name, getattr(_core, name)))
    return calls


def use_everything():
    X, D = RNG.standard_normal((300, 8)), RNG.standard_normal((20, 8))
    metric = atoms.AtomicInnerProduct(centered=True).fit(X)
    metric.transform(X)
    metric.angles(X, pairs=9)
    support = scipy.sparse.csr_array(RNG.standard_normal((300, 20)) * (RNG.random((300, 20)) < 0.1))
    recovery.omp(X, D, 8, support=support, return_info=True)
    recovery.lasso(X[:5], D, 0.5, return_info=True)
    recovery.lasso_path(X[:5], D, n_alphas=3)
    recovery.code(X[:5], D, "basis_pursuit", return_info=True)
    recovery.code(X[:5], D, "cosamp", n_nonzero=2, return_info=True)
    recovery.code(X[:5], D, "threshold", tau=0.5, return_info=True)
    sae = atoms.SparseAutoencoder(16, target_l0=2, metric=metric, max_steps=20, verbose=False)
    sae.fit(X.astype(np.float32), X_val=X[:64].astype(np.float32)).inverse_transform(sae.transform(X))
    atoms.DictionaryLearning(16, n_nonzero=2, max_steps=1, verbose=False).fit(X)
    atoms.DictionaryLearning(20, coder="spikes", max_steps=1, verbose=False).fit(abs(support) @ D, init=D)
    theory.coherence(D)
    theory.match_dictionaries(D, D[:5])
    theory.consensus([D, D[:5]])
    theory.ExplainedVariance(metric=metric).update(X, X)


def shared(values):
    """Arrays like these that begin at the same byte, the first with its contents; that memory."""
    memory = np.zeros(max(v.nbytes for v in values), np.uint8)
    views = [memory[: v.nbytes].view(v.dtype).reshape(v.shape) for v in values]
    for view, value in zip(views[::-1], values[::-1], strict=True):
        view[...] = value
    return views, memory


def test_every_function_refuses_shared_memory(monkeypatch):
    with monkeypatch.context() as patch:
        calls = record(patch)
        use_everything()
    refused = set()
    for (name, _), (args, kwargs) in calls.items():
        names, values = [*range(len(args)), *kwargs], [*args, *kwargs.values()]
        arrays = [i for i, v in enumerate(values) if isinstance(v, np.ndarray)]
        for a, b in itertools.combinations(arrays, 2):
            given = list(values)
            (given[a], given[b]), memory = shared([values[a], values[b]])
            before = memory.tobytes()
            try:
                getattr(_core, name)(
                    *given[: len(args)], **dict(zip(kwargs, given[len(args) :], strict=True))
                )
            # of inputs alone: what the contents of one mean for the other
            except (ValueError, IndexError) as error:
                if "share memory" in str(error):
                    refused.add(name)
            assert memory.tobytes() == before, (name, names[a], names[b])
    assert refused == {n for n in dir(_core) if callable(getattr(_core, n))} - ALONE
