"""The core's autoencoder: its arrays by name, and batches of rows to codes and back."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from .. import _core
from .._checks import narrow, row_name
from .._config import one_blas_thread
from ._settings import ACTIVATIONS, SCREENS, Settings

WEIGHTS = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
# weights, Adam's two moments of each, at which sample each latent fired last, and how many steps and samples
# there have been
FIELDS = (
    *WEIGHTS,
    *(f"{name}_m" for name in WEIGHTS),
    *(f"{name}_v" for name in WEIGHTS),
    "last_fired",
    "counters",
)
SKIP = ("W_skip", "W_skip_m", "W_skip_v")  # a transcoder's with a skip connection
_NUMBER = {name: getattr(_core, name.upper()) for name in (*FIELDS, *SKIP)}  # the core's number of each
BLOCK = 8192  # rows encoded at a time


class Batch(NamedTuple):
    """Rows in the training space as references, not copies: ``scale (X[rows] - shift)``, which the core computes.

    `target`: those that a transcoder's step rebuilds.
    """

    X: np.ndarray
    rows: np.ndarray | None = None
    shift: np.ndarray | None = None
    scale: float = 1.0
    target: Any = None  # Batch

    def __len__(self) -> int:
        return len(self.X if self.rows is None else self.rows)

    def dense(self) -> np.ndarray:
        """These rows as an array, float32."""
        x = (self.X if self.rows is None else self.X[self.rows]).astype(np.float32, copy=False)
        return x if self.shift is None else (x - self.shift) * np.float32(self.scale)

    def part(self, start: int) -> Batch:
        """The rows from number `start` on."""
        X, rows = (self.X[start:], None) if self.rows is None else (self.X, self.rows[start:])
        target = None if self.target is None else self.target.part(start)
        return Batch(X, rows, self.shift, self.scale, target)

    def finite(self) -> bool:
        """Whether all numbers are, those of the target too."""
        return bool(np.isfinite(self.dense()).all()) and (self.target is None or self.target.finite())


def blocks(n: int, size: int = BLOCK) -> Iterator[slice]:
    """Slices that cut n rows into blocks."""
    return (slice(start, start + size) for start in range(0, n, size))


def layout(name: str, d_in: int, d_sae: int, d_out: int | None = None) -> tuple[tuple[int, ...], Any]:
    """Shape and type of one of `FIELDS` or `SKIP`. The core keeps W_enc transposed: a row for each latent."""
    d_out = d_in if d_out is None else d_out
    if name in ("last_fired", "counters"):
        return (2,) if name == "counters" else (d_sae,), np.int64
    weight = name.removesuffix("_m").removesuffix("_v")
    shapes = {"W_enc": (d_sae, d_in), "W_dec": (d_sae, d_out), "b_dec": (d_out,), "W_skip": (d_in, d_out)}
    return shapes.get(weight, (d_sae,)), np.float32


class Turns:
    """Any number of threads may read, or one write; the others wait. A thread that has its turn may ask again."""

    def __init__(self) -> None:
        self._reset()
        self.version = 0  # turns of writing so far

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._process = os.getpid()
        self._readers: dict[int, int] = {}  # by thread, how often it has asked
        self._writer: int | None = None
        self._waiting = 0  # writers; new readers let them go first

    def _here(self) -> int:
        """This thread. A forked child has none of the threads that had a turn."""
        if self._process != os.getpid():
            self._reset()
        return threading.get_ident()

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        me = self._here()
        if self._writer == me:
            yield
            return
        with self._changed:
            if me not in self._readers:
                self._changed.wait_for(lambda: self._writer is None and not self._waiting)
            self._readers[me] = self._readers.get(me, 0) + 1
        try:
            yield
        finally:
            with self._changed:
                self._readers[me] -= 1
                if not self._readers[me]:
                    del self._readers[me]
                self._changed.notify_all()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        me = self._here()
        if self._writer == me:
            yield
            return
        with self._changed:
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: self._writer is None and not self._readers)
                self._writer = me
            finally:
                self._waiting -= 1
        try:
            yield
        finally:
            with self._changed:
                self._writer = None
                self.version += 1
                self._changed.notify_all()


class Model:
    """An autoencoder in the core, with its optimiser. All it takes and gives is in the training space.

    Parameters
    ----------
    ctx : context
        Threads and instruction set, as for every method that computes.
    d_in, d_sae : int
        Features of a row, and latents.
    activation : one of ACTIVATIONS
        Which latents are active.
    d_out : int, optional
        Of a transcoder: features of a row that it rebuilds.
    **options
        The core's others: k, tied, bandwidth, skip, ...

    Attributes
    ----------
    handle
        For the core's functions, inside a turn.
    turns : Turns
        Each method below takes its turn; whoever uses several at once, or `handle`, takes one for all of it.
    """

    def __init__(
        self, ctx: Any, d_in: int, d_sae: int, activation: str, d_out: int | None = None, **options: Any
    ) -> None:
        self.d_in, self.d_sae, self.activation = d_in, d_sae, activation
        self.transcodes, self.d_out = d_out is not None, d_in if d_out is None else d_out
        self.skip = bool(options.get("skip"))
        self.turns = Turns()
        number = ACTIVATIONS[activation]
        self.handle = _core.sae_new(ctx, d_in, d_sae, activation=number, d_out=d_out or 0, **options)

    @classmethod
    def of(cls, ctx: Any, d_in: int, settings: Settings, d_out: int | None = None) -> Model:
        """A model to be trained with these settings, all its arrays zero."""
        s = settings
        return cls(
            ctx,
            d_in,
            s.d_sae,
            s.activation,
            d_out,
            skip=d_out is not None and bool(s.skip_connection),
            k=s.k if s.activation in ("topk", "batchtopk") else 0,
            tied=bool(s.tied),
            bandwidth=float(s.bandwidth),
            beta1=float(s.beta1),
            beta2=float(s.beta2),
            epsilon=1e-8,
            clip=float(s.clip),
            screen=SCREENS[s.screen],
            prefixes=None if s.matryoshka_widths is None else np.array(s.matryoshka_widths, np.int64),
        )

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of all its arrays."""
        return (*FIELDS, *SKIP) if self.skip else FIELDS

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of those that its results depend on."""
        return (*WEIGHTS, SKIP[0]) if self.skip else WEIGHTS

    def get(self, name: str) -> np.ndarray:
        """A copy of one of `fields`."""
        out: np.ndarray = np.empty(*layout(name, self.d_in, self.d_sae, self.d_out))
        with self.turns.reading():
            _core.sae_get(self.handle, _NUMBER[name], out)
        return out

    def set(self, name: str, value: np.ndarray) -> None:
        """Overwrite one of `fields`."""
        _, dtype = layout(name, self.d_in, self.d_sae, self.d_out)
        with self.turns.writing():
            _core.sae_set(self.handle, _NUMBER[name], np.ascontiguousarray(value, dtype))

    @property
    def steps(self) -> int:
        """Steps of training so far."""
        return int(self.get("counters")[0])

    @property
    def samples(self) -> int:
        """Samples seen in training so far, repeated ones too."""
        return int(self.get("counters")[1])

    def nonfinite(self) -> str | None:
        """Name of the first array that holds NaN or infinity."""
        with self.turns.reading():
            field = _core.sae_nonfinite(self.handle)
        return next((name for name, number in _NUMBER.items() if number == field), None)

    def encode(self, ctx: Any, batch: Batch, work: Any = None) -> sp.csr_array:
        """Codes of a batch. `work`, of `_core.sae_work`, spares the next batch's call the pages that this one takes."""
        with self.turns.reading():
            try:
                indptr, indices, values, _ = _core.sae_encode(
                    ctx,
                    self.handle,
                    batch.X,
                    index=batch.rows,
                    shift=batch.shift,
                    scale=batch.scale,
                    work=work,
                )
            except ValueError as error:
                named = re.sub(r"\brow (\d+)", lambda found: row_name(int(found[1])), str(error))
                raise ValueError(named) from None
        return narrow(values, indices, indptr, (len(batch), self.d_sae))

    def decode(self, ctx: Any, codes: sp.csr_array) -> np.ndarray:
        """Reconstructions (n, d_out), less a skip connection's part."""
        return decode(ctx, codes, self.get("W_dec"), self.get("b_dec"))

    @one_blas_thread
    def rebuild(self, ctx: Any, x: np.ndarray, codes: sp.csr_array | None = None) -> np.ndarray:
        """Reconstructions (n, d_out) of rows of the training space, float32; `codes` are theirs."""
        out = self.decode(ctx, self.encode(ctx, Batch(x)) if codes is None else codes)
        return out + x @ self.get("W_skip") if self.skip else out


def decode(ctx: Any, codes: sp.csr_array, W: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``codes W + b``, float32."""
    out = np.empty((codes.shape[0], W.shape[1]), np.float32)
    _core.decode(ctx, **as_lists(codes), W_dec=W, bias=b, out=out)
    return out


def as_lists(codes: sp.csr_array) -> dict[str, np.ndarray]:
    """Codes as the core takes them."""
    return {
        "indptr": np.require(codes.indptr, np.int64, ["C", "A"]),
        "indices": np.require(codes.indices, np.int32, ["C", "A"]),
        "values": np.require(codes.data, np.float32, ["C", "A"]),
    }


def stacked(parts: list[sp.csr_array]) -> sp.csr_array:
    """Codes of blocks as codes of all rows."""
    return sp.csr_array(sp.vstack(parts, format="csr")) if len(parts) > 1 else parts[0]
