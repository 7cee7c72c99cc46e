"""A model run with some latents of an autoencoder at other values."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ._checks import check_flag
from .activations import Key, Model

__all__ = ["steer"]


@contextlib.contextmanager
def steer(
    model: Any,
    sae: Any,
    layer: int | str,
    latents: Mapping[int, float] | None = None,
    *,
    scale: Mapping[int, float] | None = None,
    error_term: bool = True,
    site: str = "residual",
    drop_first: bool = True,
) -> Iterator[Any]:
    """Inside the ``with``, the model runs with some latents set, scaled or off: ``generate`` and all else.

    Where `layer` gives an activation x with codes a, the model goes on with ``x + decode(a') - decode(a)``: only the
    latents named are changed, and what the autoencoder does not explain stays. Without `error_term`, it goes on
    with ``decode(a')``.

    Parameters
    ----------
    model : torch.nn.Module
        As `capture` takes it, on any device and of any type.
    sae : SparseAutoencoder, PretrainedSAE or DictionaryLearning
        Of activations at `layer`; no transcoder. Also a module with ``encode``, ``decode`` and ``W_dec``, as
        `SparseAutoencoder.to_torch` and SAELens have them. A dictionary's codes are those of `transform`.
    layer : int or str
        A block, or the name of a module, as in :func:`atoms.activations.capture`.
    site : str
        "residual", "mlp" or "attention", of a layer by number.
    latents : mapping of int to float, optional
        Latents and the activations they get at every token, in the units of `transform`; 0 switches one off.
    scale : mapping of int to float, optional
        Latents and the factors that their own activations are multiplied with.
    error_term : bool
        Keep what the autoencoder leaves unexplained.
    drop_first : bool
        Leave the first token of each context as it is, in the prompt of ``generate`` too: `capture` leaves it out
        by default, and an autoencoder trained without it makes nothing sensible of it.

    Yields
    ------
    model

    Raises
    ------
    ImportError
        PyTorch is not installed.
    TypeError
        No mapping, or no autoencoder.
    ValueError
        A layer or site that the model does not have, a latent that the autoencoder does not have, one both set and
        scaled, a value that is not finite, a transcoder; while the model runs, activations of another width.

    Notes
    -----
    Nested ``with`` statements steer at several layers. The hooks are gone when the ``with`` is left, by an error too.
    The autoencoder's dense codes are held for the tokens of a pass.

    Examples
    --------
    >>> import numpy as np, torch, atoms
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Embedding(20, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 20))
    >>> sae = atoms.io.PretrainedSAE(np.eye(8), np.zeros(8), np.eye(8), np.zeros(8), activation="relu")
    >>> ids = torch.tensor([[1, 2, 3]])
    >>> with atoms.steer(model, sae, "1", {5: 4.0}):
    ...     steered = model(ids)
    >>> [bool(torch.equal(a, b)) for a, b in zip(steered[0], model(ids)[0])]  # the first token is left alone
    [True, False, False]
    """
    check_flag(error_term, "error_term")
    check_flag(drop_first, "drop_first")
    wrapped = Model(model)
    keys = wrapped.keys(layer, site)
    if len(keys) != 1:
        raise ValueError(
            f"layer: expected one layer at one site, got {len(keys)}; nest several `with` statements"
        )
    changes = _Changes(wrapped, as_module(sae), keys[0], latents, scale, error_term)
    with (
        wrapped.positions() as later,
        wrapped.replacing(keys[0], lambda hidden: changes.of(hidden, later if drop_first else None)),
    ):
        yield model


def as_module(sae: Any) -> Any:
    """An autoencoder or a dictionary as a module whose weights want no gradients; what is one already, as it is."""
    check_one_place(sae, "sae:")
    if hasattr(sae, "to_torch"):
        return sae.to_torch().requires_grad_(False)
    if hasattr(sae, "transform") and hasattr(type(sae), "W_dec"):
        from .sae._module import TorchDictionary

        return TorchDictionary(sae)
    missing = [name for name in ("encode", "decode", "W_dec") if not hasattr(sae, name)]
    if missing:
        raise TypeError(
            f"sae: expected a SparseAutoencoder, a PretrainedSAE, a DictionaryLearning or a PyTorch module like the "
            f"first two's, got {type(sae).__name__} without {missing[0]}"
        )
    return sae


def check_one_place(sae: Any, name: str) -> None:
    """ValueError for what rebuilds other activations than those of the place that it reads."""
    if getattr(sae, "is_transcoder", False):
        raise ValueError(
            f"{name} is a transcoder: its output belongs at another place than its input; give an autoencoder"
        )
    if getattr(sae, "sites_", None) is not None:
        raise ValueError(
            f"{name} is a crosscoder: it reads and rebuilds several places at once; give an autoencoder of one of them"
        )


class _Changes:
    """What to do with codes, checked, and with the activations they come from."""

    def __init__(
        self, model: Model, module: Any, key: Key, latents: Any, scale: Any, error_term: bool
    ) -> None:
        self.torch, self.module, self.key, self.error_term = model.torch, module, key, error_term
        n = len(module.W_dec)
        # both as places and numbers
        self.set, self.factors = _checked("latents", latents, n), _checked("scale", scale, n)
        twice = np.intersect1d(self.set[0], self.factors[0])
        if len(twice):
            raise ValueError(f"scale: latent {twice[0]} is also set, in latents; give it once")
        # encoding a normalised row leaves behind what decoding puts back, once
        self.normed = getattr(module, "input_norm", None) != "none"

    def of(self, hidden: Any, later: Any) -> Any:
        """The layer's output (contexts, tokens, ...) with what changes."""
        shape = tuple(getattr(hidden, "shape", ()))
        width = self.module.W_dec.shape[1]
        if len(shape) < 3 or int(np.prod(shape[2:])) != width:
            raise ValueError(
                f"sae: rebuilds activations of width {width}, but {self.key[0]} {self.key[1]} gave "
                f"{type(hidden).__name__} of shape {shape}; name the layer and site that it was trained on"
            )
        kept = self.torch.ones(shape[:2], dtype=self.torch.bool) if later is None else later(shape[:2])
        if not kept.any():
            return None
        kept = kept.to(hidden.device)
        rows = hidden[kept]
        changed = self._rows(rows.reshape(len(rows), -1).to(self.torch.float32))
        hidden = hidden.clone()
        hidden[kept] = changed.to(hidden.dtype).reshape(rows.shape)
        return hidden

    def _rows(self, x: Any) -> Any:
        module = self.module
        if module.W_dec.device != x.device:
            module.to(x.device)
        codes = module.encode(x)
        new = codes.clone()
        for (places, values), scales in ((self.set, False), (self.factors, True)):
            at, value = (self.torch.from_numpy(a).to(x.device) for a in (places, values))
            new[:, at] = codes[:, at] * value.to(codes) if scales else value.to(codes)
        y = module.decode(new)
        if not self.error_term:
            return y
        if self.normed:
            codes = module.encode(x)
        return x + (y - module.decode(codes)).to(x.dtype)


def _checked(name: str, given: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
    """A mapping's latents and numbers."""
    if given is None:
        given = {}
    if not isinstance(given, Mapping):
        raise TypeError(
            f"{name}: expected a mapping of latents to numbers, as {{17: 4.0}}, got {type(given).__name__}"
        )
    for latent, value in given.items():
        integer = isinstance(latent, (int, np.integer)) and not isinstance(latent, bool)
        if not (integer and 0 <= latent < n):
            raise ValueError(f"{name}: expected latents from 0 to {n - 1}, got {latent!r}")
        real = isinstance(value, (int, float, np.floating, np.integer)) and not isinstance(value, bool)
        if not (real and np.isfinite(value)):
            raise ValueError(f"{name}: expected a finite number for latent {latent}, got {value!r}")
    return np.array(list(given), np.int64), np.array(list(given.values()), np.float32)
