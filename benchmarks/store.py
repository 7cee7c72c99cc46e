"""Reading activations back: shuffled out of a store against a plain sequential read of its files.

    python benchmarks/store.py [--gb 2] [--folder DIR] [--dtype float32]

Writes a store (of an embedding's rows: a model that costs nothing), then reads it several times, each time
with the files dropped from the page cache first (cold) and once more from it (warm):

    plain       the files one after another with os.preadv, 4 MB at a time, nothing looked at
    shuffled    StoredRows.batches: every block checked, rows gathered in the epoch's order
    memory map  rows gathered from numpy.memmap in the order of a full permutation

and says how well the shuffle mixes: pairs of rows of one block in a batch, beside a full permutation's.

    python benchmarks/store.py --stream [--tokens 12000] [--d-sae 9216]

trains one epoch on SmolLM2's layer 15 from the running model, and compares the time with capture into a
store followed by training from it. Both end with the same bits.
"""

import argparse
import os
import tempfile
import time

import numpy as np
import torch

import atoms
from atoms._rows import Rows
from atoms.activations import (
    ActivationStore,
    ActivationStream,
    capture,
    language_reference,
    smollm2,
    tokenize,
)

BATCH = 4096


def files_of(store):
    return [
        store.folder / s["files"][store.manifest["points"][0]["name"]]["name"]
        for s in store.manifest["shards"]
    ]


def drop(store):
    """Out of the page cache; the kernel is asked, not forced."""
    for path in files_of(store):
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def plain(store):
    buffer = bytearray(4 << 20)
    for path in files_of(store):
        file = os.open(path, os.O_RDONLY)
        at = 0
        while n := os.preadv(file, [buffer], at):
            at += n
        os.close(file)


def shuffled(store):
    for _ in store["0"].batches(BATCH, seed=0):
        pass


def mapped(store, rows):
    source = Rows(store["0"].shards)
    order = np.random.default_rng(0).permutation(len(store))[:rows]
    for start in range(0, rows, BATCH):
        source.take(order[start : start + BATCH])
    return rows


def seconds(function, *arguments):
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def stream(tokens, d_sae):
    model, tokenizer = smollm2()
    contexts = tokenize(language_reference(), tokenizer, max_tokens=tokens, context_length=256)
    options = {
        "d_sae": d_sae,
        "target_l0": 32,
        "batch_size": 512,
        "max_steps": tokens // 512,
        "verbose": False,
    }
    done = []

    def train(rows):
        done.append(atoms.SparseAutoencoder(**options).fit(rows))

    with tempfile.TemporaryDirectory() as folder:
        captured = seconds(lambda: capture(model, contexts, 15, store=folder, verbose=False))
        store = ActivationStore(folder)
        trained = seconds(train, store.rows(15, buffer_rows=2048))
    together = seconds(train, ActivationStream(model, contexts, 15, buffer_rows=2048))
    same = np.array_equal(done[0].W_dec, done[1].W_dec) and np.array_equal(done[0].W_enc, done[1].W_enc)
    print(
        f"{tokens:,} tokens, d_sae {d_sae}: capture {captured:.1f} s, then training {trained:.1f} s; overlapped {together:.1f} s; same bits: {same}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gb", type=float, default=2.0)
    parser.add_argument(
        "--folder", help="where to write the store (a temporary folder beside the system's others)"
    )
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--tokens", type=int, default=12_000)
    parser.add_argument("--d-sae", type=int, default=9216)
    arguments = parser.parse_args()
    if arguments.stream:
        return stream(arguments.tokens, arguments.d_sae)
    d, length = 576, 512
    width = d * (4 if arguments.dtype == "float32" else 2)
    n = int(arguments.gb * 1e9 / width)
    tokens = np.random.default_rng(0).integers(0, 5000, (max(1, n // length), length))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(5000, d))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        took = seconds(
            lambda: capture(model, tokens, "0", store=folder, dtype=arguments.dtype, drop_first=False, batch_tokens=1024, verbose=False)
        )  # fmt: skip
        store = ActivationStore(folder)
        megabytes = len(store) * width / 1e6
        rows = store["0"]
        print(
            f"{len(store):,} rows of {d} {arguments.dtype}: {megabytes:,.0f} MB in {len(store.manifest['shards'])} shards"
        )
        print(f"written, with checksums and fsync: {megabytes / took:,.0f} MB/s")
        print(f"{'MB/s, median of ' + str(arguments.repeats):28}{'cold':>10}{'warm':>10}")
        for name, function in (("plain sequential read", plain), ("shuffled", shuffled)):
            cold, warm = [], []
            for _ in range(arguments.repeats):
                drop(store)
                cold.append(megabytes / seconds(function, store))
                warm.append(megabytes / seconds(function, store))
            print(f"{name:28}{np.median(cold):10,.0f}{np.median(warm):10,.0f}")
        few = min(len(store), 50_000)
        drop(store)
        cold = few * width / 1e6 / seconds(mapped, store, few)
        shuffled(store)
        warm = few * width / 1e6 / seconds(mapped, store, few)
        print(f"{'memory map, single rows':28}{cold:10,.0f}{warm:10,.0f}")
        buffers = 2 * max(rows.sizes[g].sum() for g in rows.groups(0, 0)) * width / 1e6
        print(f"memory: two buffers, {buffers:,.0f} MB")
        block = np.repeat(np.arange(len(rows.sizes)), rows.sizes)
        order = block[rows.order(0)]
        m = 512
        batches = order[: len(order) // m * m].reshape(-1, m)
        counts = [np.unique(b, return_counts=True)[1] for b in batches]
        pairs = np.mean([(c * (c - 1) / 2).sum() for c in counts])
        b, s = rows.sizes[0], min(rows.buffer_rows, rows.n)
        full = m * (m - 1) / 2 * (b - 1) / (rows.n - 1)
        print(
            f"batches of {m}: {pairs:.0f} of {m * (m - 1) // 2:,} pairs share a forward pass of {b} tokens "
            f"(stated: {m * (m - 1) / 2 * (b - 1) / (s - 1):.0f}; a full permutation: {full:.0f})"
        )


if __name__ == "__main__":
    main()
