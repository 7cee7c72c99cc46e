"""What some latents are: where they fire, what they speak for, which others are like them; as one page."""

from __future__ import annotations

import dataclasses
import html
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from ._attribution import logit_attribution
from ._checks import check_count
from ._contexts import HEAD, Context, context_html, top_contexts
from ._files import replacing
from ._frames import without_frames
from ._rows import MASSIVE, PASS_ROWS, squared_norms
from .activations import Model, capture

__all__ = ["Description", "LatentDescription", "describe"]

BINS = 24


@dataclasses.dataclass(frozen=True)
class LatentDescription:
    """One latent of a `Description`; what could not be told is None or empty.

    Attributes
    ----------
    latent : int
    density : float
        Share of the tokens at which it is active.
    strongest : float
        Its largest activation, in the units of `transform`; 0 where none is positive.
    histogram : tuple of ndarray
        Counts (24,) and edges (25,) of its activations that are not zero.
    contexts : list of Context
        Where it is strongest: see :func:`atoms.evaluation.top_contexts`.
    raises, lowers : list of (str, float)
        Words, and what a unit of the latent adds to their logits: see :func:`atoms.evaluation.logit_attribution`.
    nearest : list of (int, float)
        Latents with the most similar decoder rows, and their cosines (under the metric where there is one).
    """

    latent: int
    nearest: list[tuple[int, float]]
    density: float | None = None
    strongest: float | None = None
    histogram: tuple[np.ndarray, np.ndarray] | None = None
    contexts: list[Context] = dataclasses.field(default_factory=list)
    raises: list[tuple[str, float]] = dataclasses.field(default_factory=list)
    lowers: list[tuple[str, float]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, repr=False)
class Description:
    """The result of `describe`: a page in a notebook, `save` makes it a file, ``print`` gives text.

    Attributes
    ----------
    latents : list of LatentDescription
        In the order asked for.
    title, note : str
        What was described, by which tokens, and what could not be told.
    """

    latents: list[LatentDescription]
    title: str
    note: str

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one HTML file that needs no other, beside itself first, then renamed."""
        with replacing(Path(path)) as temporary:
            temporary.write_text(self._page() + "</body></html>\n", encoding="utf-8")

    def _page(self) -> str:
        head = HEAD.format(title=html.escape(self.title), note=html.escape(self.note))
        legend = f'<p class="note">{_LEGEND}</p>\n' if any(one.contexts for one in self.latents) else ""
        return head + legend + "\n".join(map(_latent_html, self.latents))

    def _repr_html_(self) -> str:
        # in a frame of its own, its style does not become the notebook's
        page = html.escape(self._page() + "</body></html>", quote=True)
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 36rem; border: 0"></iframe>'

    def __repr__(self) -> str:  # and what print gives
        return "\n\n".join(
            [f"{self.title}\n{self.note}".rstrip(), *("\n".join(_lines(one)) for one in self.latents)]
        )


def _figures(one: LatentDescription) -> str:
    if one.density is None:
        return ""
    return f"active at {100 * one.density:.3g}% of the tokens, strongest {one.strongest:.3g}"


def _word(text: str) -> str:
    return text.replace("\n", "↵")


def _lines(one: LatentDescription) -> list[str]:
    figures = _figures(one)
    lines = [f"latent {one.latent}" + (f": {figures}" if figures else "")]
    for what, pairs in _pairs(one):
        names = (name if what == "nearest" else repr(name) for name, _ in pairs)
        lines.append(f"  {what}: " + ", ".join(f"{name} {value}" for name, (_, value) in zip(names, pairs)))
    return lines + [f"  | {_word(str(context))}" for context in one.contexts]


_LEGEND = (
    "Bars: tokens by activation, from the least or zero to the strongest (heights are square roots of the counts). Beside words: what a "
    "unit of the latent adds to their logits, straight from its decoder row. Beside latents: cosines of decoder rows. "
    "Contexts: the darker, the more active; underlined where one was picked for its peak."
)


def _pairs(one: LatentDescription) -> list[tuple[str, list[tuple[str, str]]]]:
    """What a page says in rows of small labels: what each is of, and its number."""
    lists = [
        ("raises", [(_word(w), f"{v:+.2f}") for w, v in one.raises]),
        ("lowers", [(_word(w), f"{v:+.2f}") for w, v in one.lowers]),
        ("nearest", [(str(j), f"{cosine:.2f}") for j, cosine in one.nearest]),
    ]
    return [(what, pairs) for what, pairs in lists if pairs]


def _latent_html(one: LatentDescription) -> str:
    parts = [f"<h2>latent {one.latent} <span>{_figures(one)}</span></h2>"]
    if one.histogram is not None and one.histogram[0].any():
        parts.append(_bars(*one.histogram))
    for what, pairs in _pairs(one):
        said = " ".join(
            f'<span class="pair"><code>{html.escape(name)}</code> {value}</span>' for name, value in pairs
        )
        parts.append(f"<p><b>{what}</b> {said}</p>")
    shown = "".join(f"<li>{context_html(context, one.strongest or 1.0)}</li>" for context in one.contexts)
    return "\n".join([*parts, f"<ol>{shown}</ol>" if shown else ""])


def _bars(counts: np.ndarray, edges: np.ndarray) -> str:
    """A histogram, drawn; its height is the square root of the count, so that few strong ones are seen."""
    heights = 40 * np.sqrt(counts / counts.max())
    bars = "".join(
        f'<rect x="{12 * i}" y="{42 - h:.1f}" width="11" height="{h:.1f}" fill="#1f6fb2">'
        f"<title>{edges[i]:.3g} to {edges[i + 1]:.3g}: {n} tokens</title></rect>"
        for i, (n, h) in enumerate(zip(counts.tolist(), heights.tolist()))
    )
    width = 12 * len(counts)
    return (
        f'<svg width="{width}" height="58" role="img" aria-label="histogram of activations">{bars}'
        f'<g font-size="11" fill="#5d6b7a"><text x="0" y="55">{edges[0]:.3g}</text>'
        f'<text x="{width}" y="55" text-anchor="end">{edges[-1]:.3g}</text></g></svg>'
    )


# ------------------------------------------------------------------ what it is made of


def describe(sae: Any, latents: Any, place: dict[str, Any], asked: dict[str, Any]) -> Description:
    """See `SparseAutoencoder.describe`, whose other arguments are in `asked`; `place` is what a file says of it."""
    W = np.asarray(sae.W_dec)
    chosen = _chosen(latents, len(W))
    count, window = check_count(asked["count"], "count"), check_count(asked["window"], "window")
    tokens, model = asked["tokens"], asked["model"]
    decode = _decoder(asked["tokenizer"], model)
    notes: list[str] = []
    parts: list[dict[str, Any]] = [
        {"latent": int(j), "nearest": near} for j, near in zip(chosen, _nearest(sae, W, chosen, count))
    ]
    if tokens is not None:
        if getattr(sae, "sites_", None) is not None:
            raise ValueError(
                "tokens: a crosscoder reads several places at once, and a page has one; leave tokens out, and give "
                "top_contexts what transform makes of the rows of all sites"
            )
        where, *rows = _rows(place, model, tokens, asked)
        codes, massive = _columns(sae, rows[0], chosen)
        left = f", {massive:,} of massive norm left out" if massive else ""
        notes.append(f"{where}: {codes.shape[0] - massive:,} tokens{left}")
        if len(codes.data) and codes.data.min() < 0:
            share = 100 * (codes.data < 0).mean()
            notes.append(
                f"{share:.2g}% of the activations are negative; contexts and strongest are of the positive ones"
            )
        _add_firing(parts, codes, rows, decode, count, window, codes.shape[0] - massive)
    if model is not None:
        try:
            effect = logit_attribution(model, sae, chosen, k=count)
        except ValueError as error:  # another place than the residual stream, or a model without its head
            notes.append(f"no words: {error}")
        else:
            for i, part in enumerate(parts):
                for name, ids, values in (
                    ("raises", effect.top_ids, effect.top_values),
                    ("lowers", effect.bottom_ids, effect.bottom_values),
                ):
                    part[name] = [(decode(int(w)), float(v)) for w, v in zip(ids[i], values[i])]
    title = f"{len(chosen)} of {len(W):,} latents of {type(sae).__name__}"
    return Description([LatentDescription(**part) for part in parts], title, "; ".join(notes))


def _chosen(latents: Any, n: int) -> np.ndarray:
    chosen = np.atleast_1d(np.asarray(latents))
    if (
        chosen.ndim != 1
        or chosen.dtype.kind not in "iu"
        or (len(chosen) and not 0 <= chosen.min() <= chosen.max() < n)
    ):
        raise ValueError(f"latents: expected numbers from 0 to {n - 1}, got {latents!r}")
    return chosen


def _decoder(tokenizer: Any, model: Any) -> Callable[[int], str]:
    """From a token's id to its text, or to its number where there is no tokenizer."""
    tokenizer = tokenizer if tokenizer is not None else getattr(model, "tokenizer", None)
    if tokenizer is None:
        return lambda i: f" {i}"
    if not hasattr(tokenizer, "decode"):
        raise TypeError(f"tokenizer: expected one with `decode`, got {type(tokenizer).__name__}")
    return lambda i: str(tokenizer.decode([i]))


def _rows(
    place: dict[str, Any], model: Any, tokens: Any, asked: dict[str, Any]
) -> tuple[str, Any, np.ndarray, np.ndarray]:
    """What their place is called; activations, and the token and the context of each."""
    layer, site = asked["layer"], asked["site"]
    if layer is None:
        layer = _layer_of(place)
    if not hasattr(tokens, "token_ids"):
        if model is None:
            raise ValueError(
                "model: None, but tokens need one to run through; give it, or Activations as tokens"
            )
        tokens = capture(model, tokens, _here(model, layer), site=site, verbose=False)
        key = next(iter(tokens.arrays))
    else:
        key = (layer, site if isinstance(layer, int) else "output")
    where = f"layer {key[0]}, {key[1]}" if isinstance(key[0], int) else str(key[0])
    return where, tokens[key], np.asarray(tokens.token_ids), np.asarray(tokens.contexts)


def _layer_of(place: dict[str, Any]) -> Any:
    """Where a file of SAELens says that the autoencoder belongs."""
    hook = place.get("hook_name")
    if not hook:
        raise ValueError(
            "layer: the autoencoder does not say where it belongs; give the layer it was trained on"
        )
    return hook


def _here(model: Any, layer: Any) -> Any:
    """A hook point's name as the number of a block, where the model has no hook points."""
    found = re.fullmatch(r"blocks\.(\d+)\.hook_resid_post", str(layer))
    return int(found[1]) if found and Model(model).kind == "transformers" else layer


def _columns(sae: Any, X: Any, chosen: np.ndarray) -> tuple[sp.csc_array, int]:
    """Codes (n, chosen) of rows, block by block: those of all latents are never held. And how many are massive.

    Massive rows are coded with nothing: an attention sink moves half of all latents, further than any word does.
    """
    parts, squares = [], []
    transform = without_frames(sae)
    for start in range(0, len(X), PASS_ROWS):
        block = X[start : start + PASS_ROWS]
        parts.append(sp.csr_array(transform(block))[:, chosen])
        squares.append(squared_norms(block))
    norms = np.sqrt(np.concatenate(squares))
    usual = norms <= MASSIVE * np.median(norms)
    codes = sp.csc_array(sp.diags_array(usual.astype(np.float32)) @ sp.vstack(parts, format="csr"))
    codes.eliminate_zeros()
    return codes, int((~usual).sum())


def _add_firing(
    parts: list[dict[str, Any]],
    codes: sp.csc_array,
    rows: Sequence[Any],
    decode: Callable[[int], str],
    count: int,
    window: int,
    n: int,
) -> None:
    found = top_contexts(codes, rows[1], rows[2], decode, range(len(parts)), count=count, window=window)
    for i, part in enumerate(parts):
        values = codes.data[codes.indptr[i] : codes.indptr[i + 1]]
        strongest = float(values.max(initial=0.0))
        part["density"], part["strongest"], part["contexts"] = (
            len(values) / n,
            strongest,
            found[i],
        )
        least = float(values.min(initial=0.0))
        part["histogram"] = np.histogram(values, BINS, (least, strongest if strongest > least else 1.0))


def _nearest(sae: Any, W: np.ndarray, chosen: np.ndarray, count: int) -> list[list[tuple[int, float]]]:
    """The latents with the largest cosines, in the geometry that the autoencoder was trained in."""
    metric = getattr(sae, "metric_", None)
    D = np.asarray(W if metric is None else metric.whiten_directions(W), np.float32)
    D = D / np.maximum(np.linalg.norm(D, axis=1, keepdims=True), 1e-30)
    out: list[list[tuple[int, float]]] = []
    for start in range(0, len(chosen), 256):
        mine = chosen[start : start + 256]
        cosines = D[mine] @ D.T
        cosines[np.arange(len(mine)), mine] = -np.inf
        for row in cosines:
            best: Sequence[int] = np.argsort(-row, kind="stable")[: min(count, len(D) - 1)].tolist()
            out.append([(j, float(row[j])) for j in best])
    return out
