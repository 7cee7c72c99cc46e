"""Rows straight from a running model: nothing is stored."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._rows import BlockSource
from ._hooks import Forward, Pass
from ._store import BUFFER_ROWS, digest_of, settings_of
from ._table import checked_norms, row_dtype

__all__ = ["ActivationStream"]


class ActivationStream(BlockSource):
    """Rows of one layer, made by the model when they are needed: ``sae.fit(stream)``.

    A thread runs the model ahead of training and fills one buffer while the other is used (PyTorch and the
    core both let other Python threads run); memory is two buffers. The order is that of `StoredRows`, so
    training ends with the same bits as from a store of the same model, tokens and settings. Where
    all rows fit the buffer the model runs over them once; otherwise once for each epoch.

    Parameters
    ----------
    model : torch.nn.Module
        As in :func:`capture`, and so all but the last of what follows.
    tokens : list of 1-D integer arrays, 2-D array or tensor, BatchEncoding, dict, or list of dicts
        Contexts of token ids.
    layer : int or str
        One layer, or the name of a module.
    site : str
        "residual", "mlp" or "attention", of a layer by number.
    batch_tokens : int
        Tokens per forward pass, padding included.
    drop_first : bool
        Leave out position 0 of each context.
    dtype : {"float32", "float16", "bfloat16"}
        Of the rows.
    compute_dtype : {None, "bfloat16"}
        In which the model multiplies.
    forward : callable, optional
        ``forward(model, ids, mask)`` runs a model that is not called with the ids alone.
    attention_mask : 2-D array or tensor, or list of 1-D arrays, optional
        1 at tokens of the text, 0 at padding.
    tokenizer : optional
        Where `tokens` is text.
    buffer_rows : int
        Rows that are shuffled together: see `StoredRows`.

    Raises
    ------
    ValueError
        As :func:`capture` does, and for more than one layer.

    Notes
    -----
    The model must not be used for anything else while it is trained from: during a forward pass it has
    hooks that stop it after `layer`. The model and the core compete for the same cores;
    ``torch.set_num_threads`` and `atoms.set_num_threads` divide them.

    Examples
    --------
    >>> import torch, atoms
    >>> from atoms.activations import ActivationStream
    >>> model = torch.nn.Sequential(torch.nn.Embedding(10, 4), torch.nn.Linear(4, 8))
    >>> stream = ActivationStream(model, torch.arange(2000).reshape(-1, 20) % 10, "1")
    >>> stream.shape
    (1900, 8)
    >>> sae = atoms.SparseAutoencoder(16, target_l0=2, max_steps=5, verbose=False).fit(stream)
    """

    def __init__(
        self,
        model: Any,
        tokens: Any,
        layer: int | str,
        *,
        site: str = "residual",
        batch_tokens: int = 1024,
        drop_first: bool = True,
        dtype: str = "float32",
        compute_dtype: str | None = None,
        forward: Forward | None = None,
        attention_mask: Any = None,
        tokenizer: Any = None,
        buffer_rows: int = BUFFER_ROWS,
    ) -> None:
        if not isinstance(buffer_rows, (int, np.integer)) or buffer_rows < 1:
            raise ValueError(f"buffer_rows: expected a positive integer, got {buffer_rows!r}")
        import torch

        self.dtype, self._threads = row_dtype(dtype), torch.get_num_threads()
        self._plan = Pass(
            model,
            tokens,
            layer,
            site,
            batch_tokens,
            drop_first,
            forward,
            attention_mask,
            tokenizer,
            compute_dtype,
        )
        if len(self._plan.keys) != 1:
            raise ValueError(f"layer: expected one layer at one site, got {len(self._plan.keys)}")
        self.key = self._plan.keys[0]
        self.sizes, self.n, self.buffer_rows = self._plan.sizes, self._plan.n, int(buffer_rows)
        with self._plan.hooked() as run:
            self.d = run(int(np.argmin(self.sizes)))[self.key].shape[1]

    def __repr__(self) -> str:
        return f"ActivationStream({self.n:,} x {self.d} {self.dtype.name}, {self.key[0]} {self.key[1]})"

    def digest(self) -> str:
        """What tells these rows from others: model, tokens and place, as a store's manifest has them."""
        settings = settings_of(self._plan, self.dtype, None)
        return digest_of(settings, *self.key, np.arange(len(self.sizes)))

    def read(self, block: int, out: np.ndarray) -> None:
        """Run the model over the contexts of a block.

        Raises
        ------
        ValueError
            NaN or infinity from the model, values beyond `dtype`.
        """
        import torch

        # PyTorch keeps this setting for each Python thread, and the order of its sums depends on it
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        with self._plan.hooked() as run:
            rows = run(block)[self.key]
        checked_norms(self.key, rows, self.dtype, int(self.sizes[:block].sum()))
        out[...] = rows.astype(self.dtype, copy=False)
