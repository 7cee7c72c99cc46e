"""Everything that holds activations goes in, into every estimator and function alike, and nothing is copied whole."""

import itertools
import tracemalloc

import ml_dtypes
import numpy as np
import pandas as pd
import pytest
import torch

import atoms
from atoms import _rows
from atoms._arrays import as_array, opened
from atoms._rows import rows_of, table

dask_array = pytest.importorskip("dask.array")
h5py = pytest.importorskip("h5py")
zarr = pytest.importorskip("zarr")

NUMBER = itertools.count()
N, D = 2100, 16
SAE = {"d_sae": 32, "target_l0": 4, "max_steps": 12, "batch_size": 128, "verbose": False, "num_threads": 1}


@pytest.fixture(scope="module")
def X():
    rng = np.random.default_rng(0)
    return (rng.standard_normal((N, D)) @ rng.standard_normal((D, D)) + 1).astype(np.float32)


@pytest.fixture(scope="module")
def fitted(X):
    metric = atoms.AtomicInnerProduct().fit(X)
    return metric, atoms.SparseAutoencoder(**SAE).fit(X)


def in_zarr(X):
    z = zarr.create_array(zarr.storage.MemoryStore(), shape=X.shape, dtype=X.dtype, chunks=(300, 7))
    z[:] = X
    return z


def in_h5py(X, chunks=None):
    return h5py.File(f"x{next(NUMBER)}", "w", driver="core", backing_store=False).create_dataset(
        "x", data=X, chunks=chunks
    )


def batches(X, rows=100):
    return (X[i : i + rows] for i in range(0, len(X), rows))


class Column:
    """A data set's column, as Hugging Face's datasets has them: rows by slice, as lists."""

    def __init__(self, rows):
        self.rows = rows.tolist()

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


class Blocks(atoms.activations.BlockSource):
    """A buffer of one's own."""

    def __init__(self, array, sizes):
        self.array, self.sizes, self.d = array, sizes, array.shape[1]

    def read(self, block, out):
        start = sum(self.sizes[:block])
        out[...] = self.array[start : start + len(out)]


TABLES = {
    "tensor": torch.from_numpy,
    "with gradients": lambda X: torch.from_numpy(X.copy()).requires_grad_(),
    "parameter": lambda X: torch.nn.Parameter(torch.from_numpy(X.copy())),
    "transposed": lambda X: torch.from_numpy(np.ascontiguousarray(X.T)).T,
    "shards": lambda X: [X[:70], torch.from_numpy(X[70:71]), X[71:]],
    "rows": list,
    "tensors of a row": lambda X: list(torch.from_numpy(X)),
    "pandas": lambda X: pd.DataFrame(X),
    "zarr": in_zarr,
    "zarr shards": lambda X: [in_zarr(X[:100]), X[100:110], in_h5py(X[110:])],
    "h5py": in_h5py,
    "h5py chunks": lambda X: in_h5py(X, chunks=(64, 16)),
    "dask": lambda X: dask_array.from_array(X, chunks=(500, 8)),
    "data set": lambda X: torch.utils.data.TensorDataset(torch.from_numpy(X)),
    "blocks": lambda X: Blocks(X, [100] * (len(X) // 100 - 1) + [0, 100]),
}
STREAMS = {
    "generator": lambda X: batches(X),
    "function": lambda X: lambda: batches(torch.from_numpy(X), 77),
    "rows": lambda X: iter(X),
    "loader": lambda X: torch.utils.data.DataLoader(torch.from_numpy(X), batch_size=64),
    "loader of one": lambda X: torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.from_numpy(X)), batch_size=64
    ),
}


def same_codes(a, b):
    a = a.compute() if isinstance(a, dask_array.Array) else a  # lazy, as what it was made from
    np.testing.assert_array_equal(a.indices, b.indices)
    np.testing.assert_array_equal(a.data, b.data)


@pytest.mark.parametrize(
    "make", [*TABLES.values(), *STREAMS.values()], ids=[*TABLES, *(f"{s} stream" for s in STREAMS)]
)
def test_what_one_takes_all_take(make, X, fitted):
    metric, sae = fitted
    ours = atoms.AtomicInnerProduct().fit(make(X))
    assert ours.n_samples_seen_ == N
    np.testing.assert_allclose(ours.second_moment_, metric.second_moment_, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(ours.partial_fit(make(X)).second_moment_, metric.second_moment_, atol=1e-12)
    np.testing.assert_array_equal(metric.whiten(make(X)), metric.whiten(X))
    out = np.empty((N, D), np.float32)
    np.testing.assert_array_equal(metric.whiten(make(X), out=out), metric.whiten(X))
    assert metric.whiten(make(X), out=out) is out
    again = atoms.SparseAutoencoder(**SAE).fit(make(X), X_val=make(X))
    np.testing.assert_array_equal(again.W_dec, sae.W_dec)  # as the array in memory, to the bit
    same_codes(sae.transform(make(X)), sae.transform(X))


@pytest.mark.parametrize("make", [*TABLES.values(), lambda X: Column(X)], ids=[*TABLES, "column"])
def test_rows_by_number_go_into_everything_else(make, X, fitted):
    metric, sae = fitted
    rng = np.random.default_rng(1)
    atoms_, few = rng.standard_normal((20, D)).astype(np.float32), X[:300]
    for solve, kwargs in ((atoms.recovery.omp, {"n_nonzero": 2}), (atoms.recovery.lasso, {"alpha": 1.0})):
        same_codes(solve(make(few), atoms_, **kwargs), solve(few, atoms_, **kwargs))
    coder = atoms.SparseCoder(atoms_, n_nonzero=2).fit(make(few))
    same_codes(coder.transform(make(few)), coder.transform(few))
    control = atoms.controls.RandomDictionary(9, l0=2).fit(make(few))
    same_codes(control.transform(make(few)), atoms.controls.RandomDictionary(9, l0=2).fit(few).transform(few))
    ev = atoms.theory.explained_variance
    assert ev(make(few), lambda x: 0.5 * np.asarray(x)).total == ev(few, lambda x: 0.5 * x).total
    for geometry in ("metric", "euclidean"):
        got, want = (
            metric.angles(rows, geometry=geometry, pairs=99, random_state=0) for rows in (make(few), few)
        )
        assert got.mean == want.mean
    np.testing.assert_array_equal(metric.angles(make(few)).counts, metric.angles(few).counts)
    got, want = (metric.eigenvalue_standard_errors(rows).metric for rows in (make(few), few))
    np.testing.assert_array_equal(got, want)
    a, b = (atoms.SparseAutoencoder(**SAE).fit(X).calibrate(rows, 3.0) for rows in (make(few), few))
    np.testing.assert_array_equal(a.threshold, b.threshold)
    heavy = few.copy()
    heavy[[3, 77, 290]] *= 100
    a, b = (atoms.SparseAutoencoder(**SAE).fit(rows, massive="drop") for rows in (make(heavy), heavy))
    assert a.n_dropped_massive_ == b.n_dropped_massive_ == 3
    np.testing.assert_array_equal(a.W_dec, b.W_dec)
    a, b = (atoms.AtomicInnerProduct().fit(rows, massive="drop") for rows in (make(heavy), heavy))
    np.testing.assert_allclose(a.second_moment_, b.second_moment_, rtol=1e-12)


@pytest.mark.parametrize(
    "dtype", ["bfloat16", "float16", "float32", "float64", "float8_e4m3fn", "float8_e5m2", "int8", "int64"]
)
def test_tensors_of_every_type(dtype, X):
    tensor = torch.from_numpy(X).to(getattr(torch, dtype))
    as_float = tensor.double().numpy()
    want = atoms.AtomicInnerProduct().fit(as_float)
    for rows in (tensor, [tensor[:300], tensor[300:]], batches(tensor)):
        np.testing.assert_allclose(
            atoms.AtomicInnerProduct().fit(rows).second_moment_, want.second_moment_, rtol=1e-12
        )
    sae = atoms.SparseAutoencoder(**SAE).fit(tensor)
    np.testing.assert_array_equal(sae.W_dec, atoms.SparseAutoencoder(**SAE).fit(batches(tensor)).W_dec)
    if dtype in ("float32", "float16", "bfloat16", "float64"):
        shared = as_array(tensor)
        assert shared.dtype.name == dtype and shared.__array_interface__["data"][0] == tensor.data_ptr()
        assert as_array(tensor[::3, 2:5].T).strides == tuple(
            s * tensor.element_size() for s in tensor[::3, 2:5].T.stride()
        )
        own = atoms.SparseAutoencoder(**SAE).fit(shared.copy())
        np.testing.assert_array_equal(sae.W_dec, own.W_dec)


def test_bfloat16_without_ml_dtypes_goes_by_blocks(X, monkeypatch):
    tensor = torch.from_numpy(X).bfloat16()
    want = atoms.SparseAutoencoder(**SAE).fit(tensor.float().numpy()).W_dec
    monkeypatch.setattr("atoms._arrays._bfloat16", lambda: None)
    assert opened(tensor, "X").dtype == np.float32
    np.testing.assert_array_equal(atoms.SparseAutoencoder(**SAE).fit(tensor).W_dec, want)


class Elsewhere(torch.Tensor):
    """A tensor that says it lies on another device, whose memory NumPy cannot reach."""

    @property
    def device(self):
        return torch.device("cuda:0")

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def cpu(self):
        plain = self.as_subclass(torch.Tensor)
        Elsewhere.largest = max(Elsewhere.largest, len(plain))
        return plain

    def __array__(self, dtype=None):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


def test_another_device_is_copied_block_by_block(X, fitted):
    metric, sae = fitted
    Elsewhere.largest = 0
    tensor = torch.from_numpy(X).as_subclass(Elsewhere)
    np.testing.assert_array_equal(atoms.SparseAutoencoder(**SAE).fit(tensor).W_dec, sae.W_dec)
    assert 0 < Elsewhere.largest <= 512
    np.testing.assert_array_equal(metric.whiten(tensor), metric.whiten(X))


def test_weights_of_torch_models(X, fitted):
    _, sae = fitted
    other = torch.nn.Module()
    for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"):
        other.register_parameter(name, torch.nn.Parameter(torch.from_numpy(np.array(getattr(sae, name)))))
    warm = atoms.SparseAutoencoder(**SAE).fit(X, init=other)
    np.testing.assert_array_equal(warm.W_dec, atoms.SparseAutoencoder(**SAE).fit(X, init=sae).W_dec)
    assert atoms.theory.coherence(other).max == atoms.theory.coherence(sae).max
    same_codes(atoms.recovery.omp(X, other, n_nonzero=2), atoms.recovery.omp(X, sae, n_nonzero=2))
    half = other.W_dec.detach().bfloat16()
    same_codes(
        atoms.recovery.omp(X, half, n_nonzero=2), atoms.recovery.omp(X, half.float().numpy(), n_nonzero=2)
    )


def test_frames_of_polars(X, fitted):
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame(X)
    sae = atoms.SparseAutoencoder(**SAE).fit(frame)
    np.testing.assert_array_equal(sae.W_dec, fitted[1].W_dec)
    assert list(sae.feature_names_in_) == frame.columns
    with pytest.raises(ValueError, match="same order"):
        sae.transform(frame.select(frame.columns[::-1]))
    nulls = frame.with_columns(
        polars.when(polars.col("column_0") > 1).then(None).otherwise(0.5).alias("column_0")
    )
    with pytest.raises(ValueError, match="contains NaN or infinity, first in row"):
        atoms.AtomicInnerProduct().fit(nulls)


def test_columns_of_hugging_face(X, fitted):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"x": X.tolist(), "text": ["a"] * N})
    for column in (data["x"], data.with_format("torch")["x"], data.with_format("numpy")["x"]):
        np.testing.assert_array_equal(atoms.SparseAutoencoder(**SAE).fit(column).W_dec, fitted[1].W_dec)
    with pytest.raises(TypeError, match=r"items are dictionaries \('x', 'text'\); name a column: X\['x'\]"):
        atoms.AtomicInnerProduct().fit(data)
    with pytest.raises(TypeError, match=r"pass the activations alone: \(batch\['x'\] for batch in X\)"):
        atoms.SparseAutoencoder(**SAE).fit(data.to_iterable_dataset())
    with pytest.raises(TypeError, match="text, not activations"):
        atoms.AtomicInnerProduct().fit(data["text"])


# ------------------------------------------------------------------ memory


def peak(work):
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


ROWS, COLUMNS = 300_000, 64  # 77 MB


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(0)
    z = zarr.create_array(folder / "z", shape=(ROWS, COLUMNS), dtype="f4", chunks=(4096, COLUMNS))
    h = h5py.File(folder / "h", "w")
    contiguous = h.create_dataset("a", (ROWS, COLUMNS), "f4")
    chunked = h.create_dataset("b", (ROWS, COLUMNS), "f4", chunks=(1000, 16))
    for start in range(0, ROWS, 32768):
        rows = rng.standard_normal((min(32768, ROWS - start), COLUMNS), dtype=np.float32)
        for out in (z, contiguous, chunked):
            out[start : start + len(rows)] = rows
    tensor = torch.from_numpy(contiguous[:])
    return {
        "zarr": z, "h5py": contiguous, "h5py chunks": chunked, "dask": dask_array.from_zarr(z),
        "bfloat16": tensor.bfloat16(), "float32": tensor, "float8": tensor.to(torch.float8_e4m3fn),
        "shards": [z, contiguous], "stream": lambda: (z[i : i + 4096] for i in range(0, ROWS, 4096)),
    }  # fmt: skip


KINDS = ["zarr", "h5py", "h5py chunks", "dask", "bfloat16", "float32", "float8", "shards", "stream"]


@pytest.mark.parametrize("kind", KINDS)
def test_peak_memory_is_far_below_the_size(kind, large):
    X, size = large[kind], ROWS * COLUMNS * 4 * (2 if kind == "shards" else 1)
    assert peak(lambda: atoms.AtomicInnerProduct().fit(X)) < size / 4
    sae = atoms.SparseAutoencoder(**{**SAE, "max_steps": 40, "batch_size": 512})
    assert peak(lambda: sae.fit(X)) < size / (2 if kind == "stream" else 3)
    if kind != "stream":
        ev = atoms.theory.explained_variance
        assert peak(lambda: ev(X, lambda x: x, block_size=4096)) < size / 2  # 64 bytes a row


# ------------------------------------------------------------------ streams of unknown length


def recorded(X, batch=64, capacity=512, again=True, seed=0):
    """Rows in the order in which a stream's sampler draws them, by their first column, until it ends."""
    source = (lambda: batches(X)) if again else batches(X)
    sampler = rows_of(source).sampler(batch, [seed])
    sampler._capacity = capacity
    drawn = []
    while len(drawn) < 3 * len(X):
        ending = sampler.ending()
        if ending is not None and len(drawn) // batch >= ending[1]:
            break
        rows, index = sampler.draw()
        drawn += (rows if index is None else rows[index])[:, 0].tolist()
    return drawn


def test_a_stream_gives_each_row_once():
    numbers = np.arange(6400, dtype=np.float32)[:, None] + np.zeros(3, np.float32)
    once = recorded(numbers, again=False)
    assert sorted(once) == numbers[:, 0].tolist() and once != numbers[:, 0].tolist()
    twice = recorded(numbers, again=True)
    assert twice[:5000] == once[:5000] and max(twice.count(x) for x in numbers[::99, 0]) >= 3
    counts = np.bincount(np.array(twice, int), minlength=6400)
    assert counts.min() >= 2 and counts.max() <= 4  # three passes, less and more what is in the buffer
    assert recorded(numbers, again=False, seed=1) != once


@pytest.fixture
def small_buffer(monkeypatch):
    monkeypatch.setattr(_rows.StreamSampler, "BUFFER_ROWS", 512)


def test_a_generator_that_ends_early_ends_training(X, small_buffer, tmp_path):
    settings = {**SAE, "max_steps": 50, "dead_after": 5}
    with pytest.warns(
        UserWarning, match="rows ended after 16 of 50 steps; the learning rate was brought down"
    ):
        sae = atoms.SparseAutoencoder(**settings).fit(batches(X))
    rates = sae.history_["learning_rate"]
    assert sae.history_["step"][-1] == 16 and sae.n_samples_seen_ == 16 * 128
    assert rates[-1] <= 0.5 * max(rates) and rates[-1] == min(rates[4:])
    # a checkpoint on the way, and the same rows again: the same bits
    path = tmp_path / "c.safetensors"

    def stop(sae, figures):
        if figures["step"] == at:
            raise KeyboardInterrupt

    for at in (5, 15):  # noqa: B007
        path.unlink(missing_ok=True)
        with pytest.raises(KeyboardInterrupt):
            atoms.SparseAutoencoder(**settings).fit(
                batches(X), callback=stop, checkpoint=path, checkpoint_steps=1
            )
        with pytest.warns(UserWarning, match="ended after 16 of 50"):
            again = atoms.SparseAutoencoder(**settings).fit(batches(X), checkpoint=path)
        np.testing.assert_array_equal(again.W_dec, sae.W_dec)
    with pytest.raises(ValueError, match="was trained on other data"):
        atoms.SparseAutoencoder(**settings).fit(batches(X + 1), checkpoint=path)


def test_a_stream_that_can_be_gone_through_again_trains_to_the_end(X, small_buffer):
    sae = atoms.SparseAutoencoder(**{**SAE, "max_steps": 50}).fit(lambda: batches(X))
    assert sae.history_["step"][-1] == 50
    with pytest.raises(ValueError, match="gives no rows; a generator gives them once"):
        used = batches(X)
        list(used)
        atoms.AtomicInnerProduct().fit(used)


@pytest.mark.parametrize("activation", ["jumprelu", "relu", "topk", "batchtopk"])
@pytest.mark.parametrize("tied", [False, True])
def test_streams_train_every_kind(activation, tied, X, small_buffer, fitted):
    for metric in (None, fitted[0]):
        kwargs = {**SAE, "max_steps": 100, "activation": activation, "tied": tied, "metric": metric}
        a, b = (atoms.SparseAutoencoder(**kwargs).fit(lambda: batches(X)) for _ in range(2))
        np.testing.assert_array_equal(a.W_dec, b.W_dec)
        whole = atoms.SparseAutoencoder(**kwargs).fit(X)
        codes = [s.transform(X) for s in (a, whole)]
        ev = [
            atoms.theory.explained_variance(X, s.inverse_transform(c)).total
            for s, c in zip((a, whole), codes)
        ]
        assert ev[0] > ev[1] - 0.1 and codes[0].nnz == pytest.approx(codes[1].nnz, rel=0.2)


def reused(X, rows=100):
    """A generator that hands out one buffer again and again."""
    buffer = np.empty((rows, X.shape[1]), X.dtype)
    for start in range(0, len(X), rows):
        part = X[start : start + rows]
        buffer[: len(part)] = part
        yield buffer[: len(part)]


def test_a_buffer_that_is_used_again_is_copied_in_time(X, fitted, small_buffer):
    metric, _ = fitted
    np.testing.assert_array_equal(metric.whiten(reused(X)), metric.whiten(X))
    np.testing.assert_allclose(
        atoms.AtomicInnerProduct().fit(reused(X)).metric_, metric.metric_, rtol=1e-9, atol=1e-12
    )
    ours, want = (atoms.SparseAutoencoder(**SAE).fit(lambda: make(X)) for make in (reused, batches))
    np.testing.assert_array_equal(ours.W_dec, want.W_dec)


def test_a_stream_is_read_no_further_than_needed(X, small_buffer):
    given = 0

    def counting():
        nonlocal given
        while True:
            given += 1
            yield X[:64]

    atoms.SparseAutoencoder(**{**SAE, "max_steps": 30}).fit(counting())
    assert 64 * given <= 30 * 128 + 2 * 64  # one batch more is looked at


def test_codes_may_be_tensors(X, fitted):
    codes = fitted[1].transform(X[:9])
    np.testing.assert_array_equal(
        fitted[1].inverse_transform(torch.from_numpy(codes.toarray())), fitted[1].inverse_transform(codes)
    )


# ------------------------------------------------------------------ wrong things


class Unset(atoms.activations.BlockSource):
    def read(self, block, out):
        pass


def store(X):
    found = atoms.activations.Activations(
        {(3, "residual"): X, (7, "residual"): X}, {}, *np.zeros((3, N), np.int64)
    )
    return found


WRONG = {
    "None": (lambda X: None, ValueError, "expected activations .* got None"),
    "dict": (lambda X: {"layer.3": X}, TypeError, r"the activations of one layer, got dict with 'layer.3'; pass X\['layer.3'\]"),
    "all layers": (store, TypeError, r"the activations of one layer, got Activations with 3, 7; pass X\[3\]"),
    "string": (lambda X: "acts.npy", TypeError, r"got the str 'acts.npy'; for a file pass numpy.load\(path, mmap_mode='r'\)"),
    "loader of tuples": (
        lambda X: torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.from_numpy(X), torch.zeros(N))),
        TypeError, r"its batches are lists of 2; pass the activations alone: \(batch\[0\] for batch in X\)",
    ),
    "data set of tuples": (
        lambda X: torch.utils.data.TensorDataset(torch.from_numpy(X), torch.zeros(N)),
        TypeError, r"tuples of 2; pass the activations alone, for example X.tensors\[0\]",
    ),
    "loader of dicts": (lambda X: iter([{"acts": X}]), TypeError, r"dictionaries \('acts'\); pass .*\(batch\['acts'\] for"),
    "text": (lambda X: iter(["some text"]), TypeError, "text, not activations; .*capture"),
    "ragged": (lambda X: [[1.0, 2.0], [3.0]], ValueError, "expected rows of equal length, got a ragged list"),
    "ragged rows": (lambda X: [X[0], X[1, :4]], ValueError, r"expected rows of equal length, got shapes \[\(16,\), \(4,\)\]"),
    "positions": (lambda X: torch.zeros(2, 3, D), ValueError, r"got a tensor of shape \(2, 3, 16\). Pass X.flatten\(0, 1\)"),
    "stream of positions": (lambda X: iter([torch.zeros(2, 3, D)]), ValueError, r"Pass batch.flatten\(0, 1\)"),
    "shards of positions": (lambda X: [X, torch.zeros(2, 3, D)], ValueError, r"X\[1\].*Pass X\[1\].flatten\(0, 1\)"),
    "array of positions": (lambda X: np.zeros((2, 3, D)), ValueError, r"X.reshape\(-1, X.shape\[-1\]\)"),
    "no rows": (lambda X: iter([]), ValueError, "gives no rows"),
    "changing": (lambda X: iter([X, X[:, :3]]), ValueError, "the batch from row 2100 on has 3 columns of float32, those before 16"),
    "sparse": (lambda X: torch.from_numpy(X).to_sparse(), TypeError, r"a sparse one .*X.to_dense\(\)"),
    "meta": (lambda X: torch.zeros(4, 4, device="meta"), ValueError, "meta device has no numbers"),
    "masked": (lambda X: np.ma.masked_greater(X, 2), ValueError, r"masked values have no number; .*getmaskarray\(X\).any\(axis=1\)"),
    "stream of masked": (lambda X: iter([X[:9], np.ma.masked_greater(X, 2)]), ValueError, "masked values have no number"),
    "NA": (lambda X: pd.DataFrame(X).astype(object).where(X < 2, pd.NA), TypeError, r"X.dropna\(\)"),
    "complex": (lambda X: in_zarr(X.astype(np.complex64)), ValueError, "expected numbers, got dtype complex64"),
    "bits": (
        lambda X: in_zarr(X.astype(ml_dtypes.bfloat16).view(np.uint16)), ValueError,
        r"bits of bfloat16 numbers. Pass a function that gives them: lambda: ",
    ),
    "set": (lambda X: {1.0, 2.0}, TypeError, "a set has no order"),
    "no sizes": (lambda X: Unset(), ValueError, "Unset has no sizes; a BlockSource sets sizes and d"),
    "bad sizes": (lambda X: Blocks(X, [5, -1]), ValueError, "expected the number of rows of each block"),
}  # fmt: skip


OF_ARRAYS = {
    "explained_variance": lambda X, M: atoms.theory.explained_variance(M, X),
    "of what rebuilt them": lambda X, M: atoms.theory.explained_variance(X, M),
    "coherence": lambda X, M: atoms.theory.coherence(M),
    "certificate": lambda X, M: atoms.theory.certificate(M),
    "match_dictionaries": lambda X, M: atoms.theory.match_dictionaries(X, M),
    "consensus": lambda X, M: atoms.theory.consensus([X, M]),
    "stability": lambda X, M: atoms.theory.stability(M, 2),
    "omp": lambda X, M: atoms.recovery.omp(X, M, 2),
    "inverse_transform": lambda X, M: (
        atoms.SparseAutoencoder(**SAE).fit(X).inverse_transform(np.ma.hstack([M, M]))
    ),
    "shuffle_coordinates": lambda X, M: atoms.controls.shuffle_coordinates(M),
}


@pytest.mark.parametrize("function", OF_ARRAYS.values(), ids=OF_ARRAYS)
def test_masked_values_are_no_numbers_anywhere(function, X):
    with pytest.raises(ValueError, match="masked values have no number"):
        function(X[:40], np.ma.masked_greater(X[:40], 2))
    function(X[:40], np.ma.masked_array(X[:40, :D]))  # none is masked


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_wrong_things_are_told_what_to_pass(case, X):
    make, kind, message = case
    for estimator in (atoms.SparseAutoencoder(**SAE), atoms.AtomicInnerProduct()):
        with pytest.raises(kind, match=message):
            estimator.fit(make(X))
        assert not hasattr(estimator, "n_features_in_")
        with pytest.raises(kind, match=message):
            estimator.partial_fit(make(X))


def test_what_needs_a_length_says_so(X):
    for f in (
        lambda rows: atoms.recovery.omp(rows, X[:9], n_nonzero=1),
        atoms.controls.RandomDictionary(9, l0=2).fit,
    ):
        with pytest.raises(
            TypeError, match=r"rows that can be asked for by number, got a generator.*list\(X\)"
        ):
            f(batches(X))
    np.testing.assert_array_equal(np.asarray(table(list(batches(X)))), X)


def test_nan_is_named_by_its_row_wherever_it_comes_from(X):
    bad = X.copy()
    bad[1717, 3] = np.nan
    for make in (in_zarr, lambda X: batches(X), lambda X: [X[:900], X[900:]], torch.from_numpy):
        for estimator in (atoms.AtomicInnerProduct(), atoms.AtomicInnerProduct(centered=True)):
            with pytest.raises(ValueError, match="row 1717"):
                estimator.fit(make(bad))
        with pytest.raises(ValueError, match="NaN"):
            atoms.SparseAutoencoder(**SAE).fit(make(bad))


def test_massive_rows_are_said_of_streams_too(X):
    massive = X.copy()
    massive[::100] *= 100
    for make in (lambda X: batches(X), in_zarr, lambda X: [X[:900], X[900:]]):
        with pytest.warns(UserWarning, match="21 of 2,100 rows have a norm above 10 times the median"):
            atoms.AtomicInnerProduct().fit(make(massive))
        with pytest.warns(UserWarning, match="21 of 2,100 rows have a norm"):
            atoms.SparseAutoencoder(**SAE).fit(make(massive))
