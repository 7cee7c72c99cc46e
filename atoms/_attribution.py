"""Which words a latent speaks for, and which latents spoke for a word."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import scipy.sparse as sp

from ._checks import atoms_of, check_rows
from ._shown import Shown, Table
from ._steering import as_module
from .activations import Model, Pass

__all__ = ["LogitAttribution", "latent_attribution", "logit_attribution"]

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
    dictionary : object with W_dec (d_sae, d_model) or components_, or the atoms themselves
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
    W = check_rows(atoms_of(dictionary, "dictionary"), "dictionary")
    if W.shape[1] != U.shape[0]:
        raise ValueError(
            f"dictionary: its atoms have {W.shape[1]} columns, the unembedding {U.shape[0]} rows; take one of the residual stream"
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


def latent_attribution(
    model: Any,
    sae: Any,
    tokens: Any,
    layer: int | str,
    token: int,
    *,
    against: int | None = None,
    position: int = -1,
    site: str = "residual",
    drop_first: bool = True,
) -> sp.csr_array:
    """Which latents spoke for a word: activation times gradient of its logit, at each token of a context.

    The model runs on x = x_hat + e, the autoencoder's reconstruction and what it leaves, e held fixed. Then
    ``a_ij d logit / d a_ij`` is to first order what the logit would lose without latent j at token i: through all
    later blocks, unlike :func:`logit_attribution`, which is of the latent alone.

    Parameters
    ----------
    model : torch.nn.Module
        With its language-model head, as for :func:`atoms.evaluate`.
    sae : SparseAutoencoder, PretrainedSAE, DictionaryLearning or module
        Of activations at `layer`, as for :func:`atoms.steer`.
    tokens : 1-D array of int, or what else `capture` takes
        One context.
    layer : int or str
        A block, or the name of a module, as in :func:`atoms.activations.capture`.
    site : str
        "residual", "mlp" or "attention", of a layer by number.
    token : int
        Whose logit.
    against : int, optional
        The logit of another word, to be subtracted first: what speaks for the one and not for the other.
    position : int
        Of the token whose prediction of the next is meant; by default the last.
    drop_first : bool
        Give the first token no attribution: `capture` leaves it out by default.

    Returns
    -------
    csr_array (n_tokens, d_sae) float32
        An entry for each active latent. Its sum over the tokens ranks the latents.

    Raises
    ------
    ValueError
        Several contexts, a word or a position that is not there, a transcoder, activations of another width, and as
        `evaluate` does.

    Notes
    -----
    One forward pass, and one back to `layer`. Dense codes of 256 tokens are held at a time.

    Examples
    --------
    >>> import numpy as np, torch, atoms
    >>> from atoms.evaluation import latent_attribution
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Embedding(20, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 20))
    >>> sae = atoms.io.PretrainedSAE(np.eye(8), np.zeros(8), np.eye(8), np.zeros(8), activation="relu")
    >>> found = latent_attribution(model, sae, [1, 2, 3], "1", token=7)
    >>> found.shape, np.unique(found.nonzero()[0]).tolist()  # nothing looks back here: the last token's alone
    ((3, 8), [2])
    """
    module = as_module(sae)
    plan = Pass(model, tokens, layer, site, 1, drop_first, None)
    if len(plan.contexts) != 1 or len(plan.keys) != 1:
        raise ValueError(
            f"tokens: expected one context and one layer, got {len(plan.contexts)} and {len(plan.keys)}"
        )
    x, gradient = _gradient(plan, int(module.W_dec.shape[1]), position, token, against)
    torch, n, parts = plan.model.torch, len(x), []
    for start in range(0, n, 256):  # dense codes of so many tokens at a time
        part = slice(start, start + 256)
        codes = module.to(x.device).encode(x[part]).detach().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(module.decode(codes), codes, gradient[part].to(codes))
        effect = codes.detach() * slope
        effect[: max(0, plan.skip - start)] = 0
        parts.append(sp.csr_array(effect.to(torch.float32).cpu().numpy()))
    return sp.csr_array(sp.vstack(parts, format="csr"))


def _gradient(plan: Pass, width: int, position: int, token: int, against: int | None) -> tuple[Any, Any]:
    """The place's activations (n, d) of the plan's only context, and a logit's gradient there."""
    torch, key = plan.model.torch, plan.keys[0]
    ids, mask, _ = plan.padded(0)
    leaves: list[Any] = []

    def leaf(hidden: Any) -> Any:
        if tuple(hidden.shape[:2]) != ids.shape or int(np.prod(hidden.shape[2:])) != width:
            raise ValueError(
                f"sae: rebuilds activations of width {width}, but {key[0]} {key[1]} gave shape "
                f"{tuple(hidden.shape)}; name the layer and site that it was trained on"
            )
        leaves.append(hidden.detach().requires_grad_())
        return leaves[-1]

    with plan.model.evaluating(), torch.enable_grad(), plan.model.replacing(key, leaf):
        logits = plan.model.logits(ids, mask)[0]
        n, words = logits.shape
        if not -n <= position < n:
            raise ValueError(f"position: the context has {n} tokens, got {position}")
        for name, word in (("token", token), ("against", against)):
            if word is not None and not 0 <= word < words:
                raise ValueError(f"{name}: expected a word from 0 to {words - 1}, got {word}")
        target = logits[position, token] - (0 if against is None else logits[position, against])
        if len(leaves) != 1:
            raise ValueError(
                f"layer: {key[0]} {key[1]} ran {len(leaves)} times before the logits; name one that runs once"
            )
        (gradient,) = torch.autograd.grad(target, leaves)
    x, gradient = (a[0].detach().reshape(n, -1).to(torch.float32) for a in (leaves[0], gradient))
    return x, gradient
