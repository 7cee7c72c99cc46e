"""Which words a latent speaks for: its direct effect on the model's logits."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np

from ._shown import Shown, Table
from .activations import Model

__all__ = ["LogitAttribution", "logit_attribution"]

# what the last norm before the head is called, architecture by architecture
_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "final_norm", "ln_final")


@dataclasses.dataclass(frozen=True)
class LogitAttribution(Shown):
    """Words that latents speak for and against: see :func:`logit_attribution`.

    Attributes
    ----------
    latents : ndarray (n,)
    top_ids, bottom_ids : ndarray (n, k)
        Tokens, the most strongly raised, or lowered, first.
    top_values, bottom_values : ndarray (n, k)
        Their logits' change for a unit of the latent at a final norm of scale 1.
    """

    latents: np.ndarray
    top_ids: np.ndarray
    top_values: np.ndarray
    bottom_ids: np.ndarray
    bottom_values: np.ndarray

    def _table(self) -> Table:
        def tokens(ids: np.ndarray, values: np.ndarray) -> str:
            return ", ".join(f"{i} ({v:+.3g})" for i, v in zip(ids[:5].tolist(), values[:5].tolist()))

        columns = zip(
            self.latents.tolist(), self.top_ids, self.top_values, self.bottom_ids, self.bottom_values
        )
        rows = [
            (str(j), tokens(up, u), tokens(down, v)) for j, up, u, down, v in itertools.islice(columns, 20)
        ]
        note = f"the first 20 of {len(self.latents):,} latents" if len(self.latents) > 20 else ""
        return Table("Token ids that latents raise and lower", rows, ("latent", "raised", "lowered"), note)


def logit_attribution(model: Any, dictionary: Any, latents: Any = None, *, k: int = 10) -> LogitAttribution:
    r"""Direct effect of latents on the logits: ``W_dec`` through the final norm and the unembedding.

    The final norm maps the stream x to ``gain * (x - mean(x)) / scale(x) + bias`` (RMSNorm: without
    the mean). A latent of activation a adds ``a W_dec[j]`` to x, which at the scale of that token adds
    ``a / scale(x)`` times

        ``(gain * (W_dec[j] - mean(W_dec[j]))) @ W_U``

    to the logits. That is what is reported, less its mean over the vocabulary, which softmax does not see.
    The norm's gain is thus folded in; the number scale(x) > 0, which differs from token to token
    and not from word to word, is left out; later blocks' answers to the latent are not part of it.

    Parameters
    ----------
    model : torch.nn.Module
        With its head, as for :func:`atoms.evaluate`.
    dictionary : object with W_dec (d_sae, d_model)
        Of the residual stream.
    latents : array of int, optional
        By default all.
    k : int
        Words for each.

    Returns
    -------
    LogitAttribution

    Raises
    ------
    ValueError
        No head or final norm is found, or another width.

    Notes
    -----
    2 n d_model vocabulary operations; n vocabulary float32 numbers are held for 256 latents at a time.
    """
    wrapped = Model(model)
    torch = wrapped.torch
    U = _unembedding(wrapped)  # (d_model, vocabulary)
    W = np.asarray(dictionary.W_dec)
    if W.shape[1] != U.shape[0]:
        raise ValueError(
            f"dictionary: W_dec has {W.shape[1]} columns, the unembedding {U.shape[0]} rows; take one of the residual stream"
        )
    chosen = np.arange(len(W)) if latents is None else np.asarray(latents)
    if (
        chosen.ndim != 1
        or chosen.dtype.kind not in "iu"
        or (len(chosen) and not 0 <= chosen.min() <= chosen.max() < len(W))
    ):
        raise ValueError(f"latents: expected numbers from 0 to {len(W) - 1}, got {latents!r}")
    if not 1 <= k <= U.shape[1]:
        raise ValueError(f"k: expected 1 to {U.shape[1]}, got {k}")
    with torch.no_grad():
        gain, centred = _final_norm(wrapped, U.shape[0])
        parts = []
        for start in range(0, len(chosen), 256):
            D = torch.from_numpy(W[chosen[start : start + 256]]).to(U.device, torch.float32)
            D = (D - D.mean(dim=1, keepdim=True) if centred else D) * gain
            logits = D @ U
            logits -= logits.mean(dim=1, keepdim=True)
            ends = [logits.topk(k, dim=1, largest=largest) for largest in (True, False)]
            parts.append([a.cpu().numpy() for end in ends for a in (end.indices, end.values)])
    columns = [np.concatenate(c) for c in zip(*parts)] if parts else [np.empty((0, k))] * 4
    return LogitAttribution(chosen, *columns)


def _unembedding(model: Model) -> Any:
    if model.kind == "hooked" and hasattr(model.model, "W_U"):
        return model.model.W_U.detach().to(model.torch.float32)
    head = getattr(model.model, "get_output_embeddings", lambda: None)()
    if head is None:
        raise ValueError(
            f"model: {type(model.model).__name__} has no language-model head; load_model(name, head=True) loads one"
        )
    return head.weight.detach().to(model.torch.float32).T


def _final_norm(model: Model, d: int) -> tuple[Any, bool]:
    """The norm's gain, and whether it subtracts the mean, found by probing it: each architecture has
    its own class, and some store gain - 1."""
    torch = model.torch
    base = model.model if model.kind == "hooked" else getattr(model.model, "base_model", model.model)
    known = [getattr(base, name) for name in _NORMS if isinstance(getattr(base, name, None), torch.nn.Module)]
    known += [getattr(getattr(base, "decoder", None), name, None) for name in _NORMS]
    norm = next((m for m in known if m is not None), None)
    if norm is None:
        raise ValueError(
            f"model: {type(base).__name__} has no final norm known as one of {', '.join(_NORMS)}"
        )
    probe = torch.ones(d, device=model.device)
    probe[1::2] = -1
    if d % 2:
        probe[-3:] = torch.tensor([1.0, 1.0, -2.0])
        probe[:-3][1::2] = -1
    # mean 0, no entry 0, and so large that the norm's epsilon does not matter
    probe = 1e3 * probe / probe.square().mean().sqrt()
    shift = 1e3 * torch.ones_like(probe)
    dtype = next((p.dtype for p in norm.parameters()), torch.float32)

    def through(x: Any) -> Any:
        return norm(x.to(dtype)[None, None])[0, 0].to(torch.float32)

    gain = 1e3 * (through(probe) - through(-probe)) / (2 * probe)
    centred = bool(torch.allclose(through(probe + shift), through(probe), rtol=1e-3, atol=1e-5))
    return gain, centred
