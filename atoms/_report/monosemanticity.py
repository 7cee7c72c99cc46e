"""Top contexts of latents as pages, and a score of how well they tell where the latent fires.

A judge is any callable ``judge(examples, candidates) -> scores``: it sees a latent's top contexts and
says of each candidate how likely the latent is to fire at its marked token. No service is needed:
the default one compares the model's own input embeddings.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from .._config import one_blas_thread
from .._contexts import HEAD, Context, TokenStream, context_html, strongest_contexts, top_contexts
from . import jobs
from .config import Config
from .data import Data
from .kinds import KINDS
from .plan import Plan

__all__ = ["Context", "EmbeddingJudge", "Judged", "auroc", "judge_all", "score", "top_contexts"]

Judge = Callable[[Sequence["Context"], Sequence["Context"]], Any]


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


def score(
    examples: Sequence[Context],
    stream: TokenStream,
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
            streams.append((TokenStream(words, codes, settings.window), words))
        (examples, words), (candidates, other) = streams
        # one table of embeddings for both texts: the second's ids move behind the first's
        candidates.strings = np.concatenate([words["strings"], other["strings"]])
        candidates.tokens = candidates.tokens + len(words["strings"])
        decide = judge or EmbeddingJudge(np.concatenate([words["embeddings"], other["embeddings"]]))
        rng = np.random.default_rng([config.seeds[0], 5])
        tops, scores = [], []
        for j in range(len(arrays["probe/latents"])):
            top = strongest_contexts(examples, examples.latent(j), settings.examples)
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


def _page(judged: Judged, config: Config, shown: int) -> str:
    settings = config.monosemanticity
    label = KINDS[judged.dictionary].label
    title = html.escape(f"{config.name}, layer {settings.layer}: {label}")
    note = (
        f"The {settings.examples} strongest contexts of {min(shown, len(judged.latents))} latents drawn at random among the "
        f"{judged.able[0]:,} of {judged.able[1]:,} that fire often enough. Shading: activation, the marked token underlined. "
        "Detection and fuzzing: how often these contexts tell where the latent fires in other text; 0.50 is chance."
    )
    parts = [HEAD.format(title=title, note=html.escape(note))]
    for j in range(min(shown, len(judged.latents))):
        strongest = max((max(c.activations) for c in judged.examples[j]), default=0.0) or 1.0
        parts.append(
            f"<h2>latent {judged.latents[j]} <span>detection {judged.detection[j]:.2f}, fuzzing "
            f"{judged.fuzzing[j]:.2f}, strongest {strongest:.2f}</span></h2>\n<ol>"
        )
        for context in judged.examples[j]:
            parts.append(f"<li>{context_html(context, strongest)}</li>")
        parts.append("</ol>")
    parts.append("</body></html>\n")
    return "\n".join(parts)
