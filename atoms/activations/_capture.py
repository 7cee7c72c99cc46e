"""Capture: a pass of a model over contexts, its rows kept in memory, in files, or in a store."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any, overload

import numpy as np

from .._checks import as_number
from .._files import as_path, replacing
from .._old import old_keyword
from .._progress import progress_bar
from ._far import FarPass
from ._hooks import Forward, Pass
from ._store import ActivationStore, write_store, write_store_far
from ._table import (
    INDEX,
    Activations,
    Key,
    checked_norms,
    file_name,
    new_folder,
    row_dtype,
    storable,
    stored_dtype,
    write_index,
)

__all__ = ["capture"]


def _write_header(file: IO[bytes], dtype: np.dtype, shape: tuple[int, int]) -> None:
    descr = np.lib.format.dtype_to_descr(dtype)
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _allocate(file: int, start: int, size: int, folder: Path | None) -> None:
    """Take a file's space on the disk before it is mapped: a write to a map on a full disk ends the process."""
    try:
        if not size:
            return
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, start, size)
        else:  # macOS
            zeros = bytes(min(size, 1 << 20))
            for at in range(0, size, len(zeros)):
                os.pwrite(file, zeros[: size - at], start + at)
    except OSError as error:
        raise OSError(
            error.errno,
            f"out: no room for {size:,} bytes of rows ({os.strerror(error.errno or 0)}); make room, capture "
            "fewer tokens or layers, or use dtype='float16'",
            str(folder),
        ) from error


class _Rows:
    """Where captured rows go: arrays in memory, or files mapped under `out`."""

    def __init__(self, keys: Sequence[Key], n: int, dtype: np.dtype, out: Path | None):
        self.keys, self.n, self.dtype, self.out = keys, n, dtype, out
        self.arrays: dict[Key, np.ndarray] = {}
        self.norms = {key: np.empty(n) for key in keys}
        self._files = contextlib.ExitStack()
        self._temporary: dict[Key, Path] = {}

    def _array(self, key: Key, d: int) -> np.ndarray:
        if self.out is None:
            return np.empty((self.n, d), self.dtype)
        stored, shape = stored_dtype(self.dtype), (self.n, d)
        self._temporary[key] = self._files.enter_context(replacing(self.out / file_name(key)))
        with open(self._temporary[key], "wb") as file:
            _write_header(file, stored, shape)
            start, size = file.tell(), self.n * d * stored.itemsize
            file.flush()
            _allocate(file.fileno(), start, size, self.out)
        return np.memmap(self._temporary[key], stored, "r+", start, shape).view(self.dtype)

    def put(self, key: Key, start: int, rows: np.ndarray) -> None:
        if key not in self.arrays:
            self.arrays[key] = self._array(key, rows.shape[1])
        norms = checked_norms(key, rows, self.dtype, start)
        self.norms[key][start : start + len(rows)] = norms
        self.arrays[key][start : start + len(rows)] = rows.astype(self.dtype)

    def compact(self, keep: np.ndarray) -> None:
        """Leave only the rows of a mask; files are rewritten block by block, then cut."""
        rows = np.flatnonzero(keep)
        for key, old in self.arrays.items():
            self.norms[key] = self.norms[key][rows]
            for start in range(0, len(rows), 4096):
                # a row never moves to a later place, so writing in place loses nothing
                block = rows[start : start + 4096]
                old[start : start + len(block)] = old[block]
            if self.out is None:
                self.arrays[key] = old[: len(rows)].copy()
            else:
                self._cut(key, old, len(rows))
        self.n = len(rows)

    def _cut(self, key: Key, old: np.ndarray, n: int) -> None:
        path = self._temporary[key]
        stored, d = storable(old), old.shape[1]
        stored.flush()  # type: ignore[attr-defined]
        with open(path, "r+b") as file:
            _write_header(file, stored.dtype, (n, d))
            file.truncate(file.tell() + n * d * stored.dtype.itemsize)
        self.arrays[key] = np.load(path, mmap_mode="r").view(self.dtype)

    def finish(self) -> dict[Key, np.ndarray]:
        """Rename the files to their names; the arrays stay mapped."""
        for array in self.arrays.values() if self.out is not None else ():
            if array.flags.writeable:
                storable(array).flush()  # type: ignore[attr-defined]
        self._files.close()
        if self.out is not None:
            for key in list(self.arrays):
                self.arrays[key] = np.load(self.out / file_name(key), mmap_mode="r").view(self.dtype)
        return {key: self.arrays[key] for key in self.keys}

    def discard(self) -> None:
        """Remove what was written, for the exception that is being handled."""
        self.arrays = {}
        self._files.__exit__(*sys.exc_info())


@overload
def capture(
    model: Any,
    tokens: Any,
    layers: int | str | Iterable[int | str],
    *,
    site: str | Sequence[str] = ...,
    batch_tokens: int = ...,
    drop_first: bool = ...,
    massive: str = ...,
    massive_multiple: float = ...,
    dtype: str = ...,
    compute_dtype: str | None = ...,
    out: str | os.PathLike[str] | None = ...,
    store: None = ...,
    forward: Forward | None = ...,
    attention_mask: Any = ...,
    tokenizer: Any = ...,
    verbose: bool = ...,
) -> Activations: ...


@overload
def capture(
    model: Any,
    tokens: Any,
    layers: int | str | Iterable[int | str],
    *,
    store: str | os.PathLike[str],
    site: str | Sequence[str] = ...,
    batch_tokens: int = ...,
    drop_first: bool = ...,
    dtype: str = ...,
    compute_dtype: str | None = ...,
    forward: Forward | None = ...,
    attention_mask: Any = ...,
    tokenizer: Any = ...,
    shard_mb: float = ...,
    client: Any = ...,
    verbose: bool = ...,
) -> ActivationStore: ...


@old_keyword("progress", "verbose")
def capture(
    model: Any,
    tokens: Any,
    layers: int | str | Iterable[int | str],
    *,
    site: str | Sequence[str] = "residual",
    batch_tokens: int = 1024,
    drop_first: bool = True,
    massive: str = "keep",
    massive_multiple: float = 10.0,
    dtype: str = "float32",
    compute_dtype: str | None = None,
    out: str | os.PathLike[str] | None = None,
    store: str | os.PathLike[str] | None = None,
    forward: Forward | None = None,
    attention_mask: Any = None,
    tokenizer: Any = None,
    shard_mb: float = 256.0,
    client: Any = None,
    verbose: bool = True,
) -> Activations | ActivationStore:
    """Activations of a PyTorch model at some layers, one row per token.

    A Transformers decoder runs without its language-model head and only as far as the last layer asked
    for; all layers are taken in one pass.

    Parameters
    ----------
    model : torch.nn.Module
        On any device; its training mode is restored afterwards. A Transformers decoder; a model with
        named hook points in ``hook_dict``, as TransformerLens's are; or any module that takes a batch
        of token ids.
    tokens : list of 1-D integer arrays, 2-D array or tensor, BatchEncoding, dict, list of dicts, or text
        Contexts of token ids; `tokenize` makes them, and so does a `tokenizer` that is given here. Of what a tokenizer returns, ``input_ids`` and
        ``attention_mask`` are used. Padding is left out where the mask says what it is; rows of a table
        that begin or end with the model's padding id, and no mask, are refused. Contexts of different lengths are padded on
        the right and masked where the model takes a mask, else they go into different batches. Each
        row sees the tokens before it in its own context only.
    layers : int, str, or iterable of these
        Blocks, counted from 0. Layer i is the stream *after* block i: ``hidden_states[i + 1]`` of
        Transformers, but before the final norm at the last layer. A string names a submodule or a
        hook point: ``"model.layers.3.mlp.down_proj"``, ``"blocks.3.hook_resid_post"``. Its output
        (the first, where there are several) has the shape (context, position, ...); what follows the
        first two axes becomes one row. Its site is called ``"output"``.
    site : str or sequence of str
        For layers by number: "residual" (output of the block), "mlp" or "attention" (output of that
        submodule, before any norm that follows it).
    batch_tokens : int
        Tokens per forward pass, padding included.
    drop_first : bool
        Leave out position 0 of each context (the beginning-of-text token, or an attention sink in
        its place). The progress line and `Activations.summary` say how many.
    massive : {"keep", "drop"}
        What to do with tokens whose norm exceeds `massive_multiple` times the median norm of a
        captured layer. They are counted either way. "drop" leaves out a token that is massive at
        any captured layer, at all of them, so rows stay aligned.
    massive_multiple : float
        See `massive`.
    dtype : {"float32", "float16", "bfloat16"}
        Of the rows. Norms are taken in float64 of the float32 values before rounding.
    compute_dtype : {None, "bfloat16"}
        "bfloat16": the model's products are of numbers rounded to 8 bits, summed in float32 (PyTorch's autocast; weights
        and the residual stream stay as they are, what a linear layer gives is rounded). SmolLM2's pass takes 1.7 times less
        processor time, its rows turn by a third of a degree, and what is trained on them explains as much. Refused on a
        CPU without AVX512_BF16, where it would take longer. None: in the dtype of the model's weights.
    out : path, optional
        Folder for the rows: one ``.npy`` file for each layer and site, mapped, never held in
        memory. `Activations.load` opens it again. A run that dies leaves no finished folder.
    store : path, optional
        Folder for an `ActivationStore` instead: shards, written as the model goes. Called again after
        the process was killed, with the same model, tokens and settings, it goes on after the last
        finished shard and ends with the same bytes; called on a finished store, it opens it. All the
        model's weights are compared (SHA-256: 0.3 s for SmolLM2's 540 MB); one with forward hooks of
        others is refused, since a store could not tell what they do. Massive tokens are kept.
    forward : callable, optional
        ``forward(model, ids, mask)`` runs a model that is not called with the ids alone; ids and mask
        are tensors (contexts, positions), the mask False at padding.
    attention_mask : 2-D array or tensor, or list of 1-D arrays, optional
        As a tokenizer gives it beside its ids: 1 at tokens of the text, 0 at padding, on either side.
    tokenizer : optional
        Makes tokens of text, where `tokens` is a string or an iterable of strings or of dicts with "text" (a data
        set of Hugging Face, also streaming): `tokenize` with contexts of 512 tokens. Named in the store's manifest.
    shard_mb : float
        Megabytes of each layer's rows in a shard of the store: a killed run loses one shard at most.
    client : dask.distributed.Client, optional
        Its workers write the shards of `store`, a folder that all of them see, each with the model and its part of the
        text. `model` may be a function without arguments, which each worker calls once to load its own; a model
        itself is sent to them. A worker that dies loses the shard it was at, which another writes; a client that
        dies goes on when it is called again. The bytes are those of a capture here by as many PyTorch threads as
        a worker has.
    verbose : bool
        Show a progress bar, and a line of what was captured, on standard error.

    Returns
    -------
    Activations, or ActivationStore where `store` is given

    Raises
    ------
    ImportError
        PyTorch is not installed.
    ValueError
        No tokens, ids outside the vocabulary, contexts too long for the model, a layer, site or module
        that the model does not have, NaN or infinity from the model, values beyond `dtype`, a `compute_dtype` that
        this CPU has no instructions for, a store of other settings. The message says what to do.
    FileExistsError
        `out` already holds activations.

    Notes
    -----
    Time is the model's. Memory is the model's, plus n * d * itemsize for each layer and site
    without `out` or `store`, plus 8 bytes for each row and layer for the norms.

    Examples
    --------
    >>> import torch
    >>> from atoms.activations import capture
    >>> model = torch.nn.Sequential(torch.nn.Embedding(10, 4), torch.nn.Linear(4, 8), torch.nn.ReLU())
    >>> capture(model, [[1, 2, 3], [4, 5]], "1", drop_first=False, verbose=False)["1"].shape
    (5, 8)
    """
    _check(massive, massive_multiple, out, store, client)
    row_type = row_dtype(dtype)
    settings = layers, site, batch_tokens, drop_first, forward, attention_mask, tokenizer, compute_dtype
    if store is not None and client is not None:
        far = FarPass(model, tokens, settings)
        with _bar(0, verbose, drop_first) as bar:
            return write_store_far(as_path(store, "store"), far, row_type, tokenizer, shard_mb, client, bar)
    plan = Pass(model, tokens, *settings)
    if store is not None:
        with _bar(plan.n, verbose, drop_first) as bar:
            return write_store(as_path(store, "store"), plan, row_type, tokenizer, shard_mb, bar.update)

    rows = _Rows(plan.keys, plan.n, row_type, None if out is None else new_folder(out))
    started = time.perf_counter()
    try:
        with _bar(rows.n, verbose, drop_first) as bar, plan.hooked() as run:
            start = 0
            for batch, n in enumerate(plan.sizes.tolist()):
                for key, found in run(batch).items():
                    rows.put(key, start, found)
                start += n
                bar.update(n)
        result = _finished(plan, rows, float(massive_multiple), massive == "drop")
        result.seconds = time.perf_counter() - started
        if rows.out is not None:
            write_index(result, rows.out)
    except BaseException:
        rows.discard()
        raise
    if verbose:
        print(f"captured {result.summary()}", file=sys.stderr)
    return result


def _check(massive: Any, massive_multiple: float, out: Any, store: Any, client: Any) -> None:
    """ValueError for settings that do not go together."""
    if not isinstance(massive, str) or massive not in ("keep", "drop"):
        raise ValueError(f"massive: expected 'keep' or 'drop', got {massive!r}")
    if not as_number(massive_multiple, "massive_multiple") > 1:
        raise ValueError(f"massive_multiple: expected a number above 1, got {massive_multiple}")
    if client is not None and store is None:
        raise ValueError("client: workers write into a store; pass store=, a folder that all of them see")
    if store is None:
        return
    if out is not None:
        raise ValueError("out, store: give one of the two")
    if massive == "drop":
        raise ValueError(
            "massive: 'drop' needs the norms of all rows before the first is written; a store keeps them, and "
            "fit(store[layer], massive='drop') leaves massive rows out"
        )


def _finished(plan: Pass, rows: _Rows, massive_multiple: float, drop: bool) -> Activations:
    """The captured rows and which tokens they are; massive ones are counted, and left out with `drop`."""
    index: dict[str, Any] = plan.index()
    skipped = plan.skip * len(plan.contexts)
    result = Activations({}, rows.norms, **index, massive_multiple=massive_multiple, n_dropped_first=skipped)
    result.compute_dtype = plan.compute_dtype
    masks = result.massive()
    result.massive_counts = {key: int(mask.sum()) for key, mask in masks.items()}
    mask = np.any(list(masks.values()), axis=0)
    if drop and mask.any():
        rows.compact(~mask)
        for name in INDEX:
            setattr(result, name, getattr(result, name)[~mask])
        result.n_dropped_massive = int(mask.sum())
    result.arrays = rows.finish()
    return result


def _bar(n: int, verbose: bool, drop_first: bool) -> Any:
    what = "capture, first token of each context dropped" if drop_first else "capture"
    return progress_bar(what, n, " tokens", verbose=verbose, keep=False)
