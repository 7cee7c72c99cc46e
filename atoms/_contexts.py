"""The contexts in which a latent is strongest, and how a page shows them."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import scipy.sparse

__all__ = ["Context", "top_contexts"]


@dataclasses.dataclass(frozen=True)
class Context:
    """A few tokens of text; ``focus`` is the marked one: the last, except in fuzzing.

    ``tokens`` are strings, ``ids`` the same as rows of the judge's embeddings, ``activations`` what the
    latent does at each (all zero where the judge must not know).
    """

    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    focus: int
    activations: tuple[float, ...] = ()

    def __str__(self) -> str:
        return "".join(f"<<{t}>>" if i == self.focus else t for i, t in enumerate(self.tokens))


class TokenStream:
    """A part's tokens, the rows of activations that lie on them, and one latent at a time."""

    def __init__(self, words: Mapping[str, np.ndarray], codes: scipy.sparse.csc_array, window: int):
        self.tokens, self.contexts, self.rows = words["tokens"], words["contexts"], words["rows"]
        self.strings, self.codes, self.window = words["strings"], codes, window
        self.known = np.zeros(len(self.tokens), bool)
        self.known[self.rows] = True

    def latent(self, j: int) -> np.ndarray:
        """Activations of a latent at each token of the stream."""
        out = np.zeros(len(self.tokens))
        start, stop = self.codes.indptr[j : j + 2]
        out[self.rows[self.codes.indices[start:stop]]] = self.codes.data[start:stop]
        return out

    def context(self, place: int, focus: int | None = None, act: np.ndarray | None = None) -> Context:
        """The window of tokens that ends at a place of the stream; marked there, or at the place `focus` in it."""
        first = max(0, place + 1 - self.window)
        while self.contexts[first] != self.contexts[place]:
            first += 1
        ids = self.tokens[first : place + 1].tolist()
        return Context(
            tuple(str(self.strings[i]) for i in ids),
            tuple(ids),
            (place if focus is None else focus) - first,
            tuple(act[first : place + 1].tolist()) if act is not None else (0.0,) * len(ids),
        )


def strongest_contexts(stream: TokenStream, act: np.ndarray, count: int) -> list[Context]:
    """The strongest contexts, equal texts once."""
    out: list[Context] = []
    seen = set()
    for place in np.argsort(-act, kind="stable")[: 10 * count]:
        if act[place] <= 0 or len(out) == count:
            break
        found = stream.context(int(place), act=act)
        if found.tokens not in seen:
            seen.add(found.tokens)
            out.append(found)
    return out


def top_contexts(
    codes: scipy.sparse.csr_array | scipy.sparse.csc_array,
    token_ids: np.ndarray,
    contexts: np.ndarray,
    decode: Callable[[int], str],
    latents: Sequence[int],
    *,
    count: int = 8,
    window: int = 16,
) -> list[list[Context]]:
    """The strongest contexts of some latents, each ending at the token that it marks; equal texts once.

    Parameters
    ----------
    codes : sparse array (n, d_sae)
    token_ids : ndarray (n,)
        Token of each row.
    contexts : ndarray (n,)
        Context of each row, as `Activations` and `ActivationStore` have them.
    decode : callable
        From a token id to its text, as ``lambda i: tokenizer.decode([i])``.
    latents : sequence of int
    count : int
        Contexts for each latent, at most.
    window : int
        Tokens for each context, at most.

    Examples
    --------
    >>> import numpy as np, scipy.sparse
    >>> from atoms.evaluation import top_contexts
    >>> codes = scipy.sparse.csr_array([[0.0], [2.0], [0.0], [3.0]])
    >>> found = top_contexts(codes, np.array([0, 1, 0, 2]), np.array([0, 0, 1, 1]), " abc".__getitem__, [0])
    >>> [str(c) for c in found[0]]
    [' <<b>>', ' <<a>>']
    """
    if codes.shape[0] != len(token_ids) or len(token_ids) != len(contexts):
        raise ValueError(
            f"codes: expected a row for each token, got {codes.shape[0]} rows, {len(token_ids)} token_ids "
            f"and {len(contexts)} contexts"
        )
    ids, tokens = np.unique(token_ids, return_inverse=True)
    strings = np.array([decode(int(i)) for i in ids], dtype=object)
    words = {
        "tokens": tokens,
        "contexts": np.asarray(contexts),
        "rows": np.arange(len(tokens)),
        "strings": strings,
    }
    stream = TokenStream(words, scipy.sparse.csc_array(codes), window)
    return [strongest_contexts(stream, stream.latent(int(j)), count) for j in latents]


# ------------------------------------------------------------------ pages

HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light }}
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1d2733; background: #fff; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  overflow-wrap: anywhere }}
h1 {{ font-size: 1.5rem; margin-bottom: .5rem }}
h2 {{ font-size: 1.05rem; margin: 2rem 0 .5rem; border-top: 1px solid #e8ebef; padding-top: 1rem }}
p {{ margin: .3rem 0 }} p.note, h2 span, .pair {{ color: #5d6b7a; font-weight: normal }}
ol {{ margin: .5rem 0; padding-left: 1.8rem }} li {{ font: .88rem/1.7 ui-monospace, monospace; white-space: pre-wrap }}
.pair {{ white-space: nowrap; margin-right: .6rem; font-size: .85rem; display: inline-block }}
.pair code {{ white-space: pre; color: #1d2733; background: #f0f3f6; border-radius: 3px; padding: 0 2px; font-size: .95em }}
mark {{ color: inherit; border-radius: 2px; padding: 0 1px }} b.focus {{ text-decoration: underline; font-weight: inherit }}
</style></head><body>
<h1>{title}</h1>
<p class="note">{note}</p>
"""


def context_html(context: Context, strongest: float) -> str:
    """A context's tokens, shaded by activation against the strongest there is, the marked one underlined."""
    words = []
    for i, (token, a) in enumerate(zip(context.tokens, context.activations)):
        text = html.escape(token.replace("\n", "↵"))
        if i == context.focus:
            text = f'<b class="focus">{text}</b>'
        if a > 0:
            text = f'<mark style="background:rgba(31,111,178,{0.08 + 0.5 * a / strongest:.2f})">{text}</mark>'
        words.append(text)
    return "".join(words)
