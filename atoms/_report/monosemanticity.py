"""Top contexts of latents as pages, and a score of how well they tell where the latent fires.

A judge is any callable ``judge(examples, candidates) -> scores``: it sees a latent's top contexts and
says of each candidate how likely the latent is to fire at its marked token. No service is needed:
the default one compares the model's own input embeddings.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from .._config import one_blas_thread
from . import jobs
from .config import Config
from .data import Data
from .kinds import KINDS
from .plan import Plan

__all__ = ["Context", "EmbeddingJudge", "Judged", "auroc", "judge_all", "score", "top_contexts"]

Judge = Callable[[Sequence["Context"], Sequence["Context"]], Any]


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


@dataclasses.dataclass(frozen=True)
class Judged:
    """One dictionary's latents: scores of each (NaN where there was nothing to compare) and contexts.

    ``detection``: AUROC of telling contexts where the latent fires from random ones. ``fuzzing``: of telling
    the token where it fires from another token of the same context. 0.5 is chance. ``able``: latents
    that fire often enough to be judged, and all.
    """

    dictionary: str
    latents: np.ndarray
    detection: np.ndarray
    fuzzing: np.ndarray
    able: tuple[int, int]
    examples: list[list[Context]]


def auroc(positive: Any, negative: Any) -> float:
    """Probability that a positive scores above a negative, ties counting half.

    Examples
    --------
    >>> from atoms._report.monosemanticity import auroc
    >>> auroc([3, 2], [2, 1])
    0.875
    """
    from scipy.stats import rankdata

    positive, negative = np.asarray(positive, float), np.asarray(negative, float)
    if not len(positive) or not len(negative):
        return float("nan")
    ranks = rankdata(np.concatenate([positive, negative]))
    n = len(positive)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * len(negative)))


class EmbeddingJudge:
    """Cosine of a candidate with the three examples most like it.

    A context is its marked token's embedding beside the mean of those before it, weighted by 1/distance;
    embeddings have the mean over the vocabulary removed.

    Parameters
    ----------
    embeddings : array (n_words, d)
    context_weight : float
        Of what comes before, against 1 for the marked token.
    """

    def __init__(self, embeddings: np.ndarray, context_weight: float = 0.5):
        table = np.asarray(embeddings, np.float64)
        table = table - table.mean(axis=0)
        norms = np.linalg.norm(table, axis=1, keepdims=True)
        self.table = table / np.where(norms > 0, norms, 1)
        self.context_weight = context_weight

    def _embed(self, context: Context) -> np.ndarray:
        focus = self.table[context.ids[context.focus]]
        before = np.zeros_like(focus)
        for back, i in enumerate(context.ids[: context.focus][::-1], start=1):
            before += self.table[i] / back
        norm = np.linalg.norm(before)
        both = np.concatenate([focus, self.context_weight * before / norm if norm else before])
        size = np.linalg.norm(both)
        return both / size if size else both

    @one_blas_thread
    def __call__(self, examples: Sequence[Context], candidates: Sequence[Context]) -> np.ndarray:
        known = np.stack([self._embed(c) for c in examples])
        cosines = np.stack([self._embed(c) for c in candidates]) @ known.T
        return np.asarray(np.sort(cosines, axis=1)[:, -3:].mean(axis=1))


class _Stream:
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


def _top(stream: _Stream, act: np.ndarray, count: int) -> list[Context]:
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
    token_ids, contexts : ndarray (n,)
        Token and context of each row, as `Activations` and `ActivationStore` have them.
    decode : callable
        From a token id to its text, as ``lambda i: tokenizer.decode([i])``.
    latents : sequence of int
    count, window : int
        Contexts for each latent, and tokens for each context, at most.

    Examples
    --------
    >>> import numpy as np, scipy.sparse
    >>> from atoms._report.monosemanticity import top_contexts
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
    stream = _Stream(words, scipy.sparse.csc_array(codes), window)
    return [_top(stream, stream.latent(int(j)), count) for j in latents]


def score(
    examples: Sequence[Context],
    stream: _Stream,
    act: np.ndarray,
    judge: Judge,
    count: int,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """Detection and fuzzing of one latent: see `Judged`."""
    fires = np.flatnonzero(act > 0)
    silent = np.flatnonzero(stream.known & (act == 0))
    positive = rng.choice(fires, min(count, len(fires)), replace=False)
    negative = rng.choice(silent, min(count, len(silent)), replace=False)
    yes = [stream.context(int(p)) for p in positive]
    no = [stream.context(int(p)) for p in negative]
    scores = _judged(judge, examples, [*yes, *no])
    detection = auroc(scores[: len(yes)], scores[len(yes) :])
    pairs = []
    for place in positive.tolist():
        first = place + 1 - len(stream.context(place).ids)
        others = first + np.flatnonzero(stream.known[first:place] & (act[first:place] == 0))
        if len(others):
            pairs.append((stream.context(place), stream.context(place, focus=int(rng.choice(others)))))
    if not pairs:
        return detection, float("nan")
    scores = _judged(judge, examples, [c for pair in pairs for c in pair])
    return detection, auroc(scores[::2], scores[1::2])


def _judged(judge: Judge, examples: Sequence[Context], candidates: Sequence[Context]) -> np.ndarray:
    found = np.asarray(judge(examples, candidates), float)
    if found.shape != (len(candidates),) or not np.isfinite(found).all():
        raise ValueError(
            f"judge: expected one finite score for each of {len(candidates)} candidates, got shape {found.shape}"
        )
    return found


def judge_all(config: Config, planned: Plan, out: Path, *, judge: Judge | None = None) -> list[Judged]:
    """Score every dictionary whose latents were kept, and write their pages into ``pages``."""
    settings = config.monosemanticity
    judged = []
    for (layer, name, _), job in planned.table.items():
        if not job.params["probe"]:
            continue
        data = Data(out / "data", job.params["data"])
        arrays = jobs.read(out, job).arrays
        streams = []
        for part, which in (
            ("metric", "examples"),
            ("text" if data.has("text") else "held_out", "candidates"),
        ):
            values, rows, starts = (arrays[f"probe/{which}/{f}"] for f in ("data", "indices", "indptr"))
            codes = scipy.sparse.csc_array(
                (values, rows, starts), shape=tuple(arrays[f"probe/{which}/shape"])
            )
            words = data.words(part, layer)
            assert words is not None
            streams.append((_Stream(words, codes, settings.window), words))
        (examples, words), (candidates, other) = streams
        # one table of embeddings for both texts: the second's ids move behind the first's
        candidates.strings = np.concatenate([words["strings"], other["strings"]])
        candidates.tokens = candidates.tokens + len(words["strings"])
        decide = judge or EmbeddingJudge(np.concatenate([words["embeddings"], other["embeddings"]]))
        rng = np.random.default_rng([config.seeds[0], 5])
        tops, scores = [], []
        for j in range(len(arrays["probe/latents"])):
            top = _top(examples, examples.latent(j), settings.examples)
            tops.append(top)
            blind = [dataclasses.replace(c, activations=(0.0,) * len(c.ids)) for c in top]
            scores.append(score(blind, candidates, candidates.latent(j), decide, settings.candidates, rng))
        able = arrays["probe/able"].tolist()
        found = np.array(scores).reshape(-1, 2)
        judged.append(
            Judged(name, arrays["probe/latents"], found[:, 0], found[:, 1], (able[0], able[1]), tops)
        )
    if judged:
        (out / "pages").mkdir(exist_ok=True)
        for one in judged:
            page = _page(one, config, settings.shown)
            (out / "pages" / f"{one.dictionary}.html").write_text(page, encoding="utf-8")
    return judged


# ------------------------------------------------------------------ pages

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1d2733; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
h1 {{ font-size: 1.5rem }} h2 {{ font-size: 1.05rem; margin: 2rem 0 .3rem; border-top: 1px solid #e8ebef; padding-top: 1rem }}
p.note, h2 span {{ color: #5d6b7a; font-weight: normal }}
ol {{ margin: .3rem 0; padding-left: 1.6rem }} li {{ font: .88rem/1.7 ui-monospace, monospace; white-space: pre-wrap }}
mark {{ color: inherit; border-radius: 2px; padding: 0 1px }} b.focus {{ text-decoration: underline; font-weight: inherit }}
</style></head><body>
<h1>{title}</h1>
<p class="note">{note}</p>
"""


def _page(judged: Judged, config: Config, shown: int) -> str:
    settings = config.monosemanticity
    label = KINDS[judged.dictionary].label
    title = html.escape(f"{config.name}, layer {settings.layer}: {label}")
    note = (
        f"The {settings.examples} strongest contexts of {min(shown, len(judged.latents))} latents drawn at random among the "
        f"{judged.able[0]:,} of {judged.able[1]:,} that fire often enough. Shading: activation, the marked token underlined. "
        "Detection and fuzzing: how often these contexts tell where the latent fires in other text; 0.50 is chance."
    )
    parts = [_HEAD.format(title=title, note=html.escape(note))]
    for j in range(min(shown, len(judged.latents))):
        strongest = max((max(c.activations) for c in judged.examples[j]), default=0.0) or 1.0
        parts.append(
            f"<h2>latent {judged.latents[j]} <span>detection {judged.detection[j]:.2f}, fuzzing "
            f"{judged.fuzzing[j]:.2f}, strongest {strongest:.2f}</span></h2>\n<ol>"
        )
        for context in judged.examples[j]:
            words = []
            for i, (token, a) in enumerate(zip(context.tokens, context.activations)):
                text = html.escape(token.replace("\n", "↵"))
                if i == context.focus:
                    text = f'<b class="focus">{text}</b>'
                if a > 0:
                    text = f'<mark style="background:rgba(31,111,178,{0.08 + 0.5 * a / strongest:.2f})">{text}</mark>'
                words.append(text)
            parts.append(f"<li>{''.join(words)}</li>")
        parts.append("</ol>")
    parts.append("</body></html>\n")
    return "\n".join(parts)
