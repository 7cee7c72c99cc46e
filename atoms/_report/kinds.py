"""The kinds of dictionary that a report compares, in the order of its tables.

All that other modules need to know of a kind stands in its row here: a new kind is a new row, and a way
to build it in `cells`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from .. import _plot as plot

__all__ = ["CONTROLS", "DICTIONARIES", "FEATURES", "KINDS", "VARIANTS", "Kind", "Variant"]


class Kind(NamedTuple):
    """What sets one kind of dictionary apart.

    Attributes
    ----------
    label, colour : str
        In tables and figures.
    activation : str, optional
        Of the sparse autoencoder that it is; None: no autoencoder.
    coder : str, optional
        Of the dictionary learning without an encoder that it is; where both are None, it is fitted whole.
    in_metric : bool
        Whether it is trained under the atomic inner product.
    rows : {"own", "shuffled", "random model"}
        What it is fitted and judged on: the model's activations, the same with coordinates shuffled, or
        those of the randomly initialised model.
    feature : bool
        What the paper sets against atoms and calls features.
    codes : {"l0", "one", "all"}
        Latents in a code: as many as the target L0 says, one, or all there are.
    seeded : bool
        Done once for each seed, and these compared; others are done for the first seed alone.
    judged : bool
        Its latents are shown and judged for monosemanticity.
    swept : tuple of str
        What the frontier varies of it beside L0: "width", "data".
    """

    label: str
    colour: str = plot.SOFT
    activation: str | None = None
    coder: str | None = None
    in_metric: bool = False
    rows: Literal["own", "shuffled", "random model"] = "own"
    feature: bool = False
    codes: Literal["l0", "one", "all"] = "l0"
    seeded: bool = False
    judged: bool = False
    swept: tuple[str, ...] = ()

    @property
    def iterative(self) -> bool:
        """Trained step by step."""
        return self.activation is not None or self.coder is not None

    @property
    def trained(self) -> bool:
        """Of the model's own activations: no control."""
        return self.iterative and self.rows == "own"

    @property
    def has_thresholds(self) -> bool:
        """Its L0 on new rows can be held at the target by a shift of its thresholds."""
        return self.activation in ("jumprelu", "batchtopk")


def _trained(label: str, colour: str, activation: str | None, **more: Any) -> Kind:
    return Kind(label, colour, activation, seeded=True, judged=True, swept=("width", "data"), **more)


_PURPLE, _PINK, _GREEN, _BLUE = "#7d6bb0", "#b05a7a", "#4a9c8c", "#4878b0"

KINDS: dict[str, Kind] = {
    "atoms": _trained("atoms (TSAE, AIP)", plot.AFTER, "jumprelu", in_metric=True),
    "learned": _trained("dictionary learning, AIP", _BLUE, None, coder="omp", in_metric=True),
    "euclidean": _trained("TSAE, Euclidean", plot.BEFORE, "jumprelu"),
    "relu": _trained("features, ReLU + L1", _GREEN, "relu", feature=True),
    "topk": _trained("features, TopK", _PURPLE, "topk", feature=True),
    "batchtopk": _trained("features, BatchTopK", _PURPLE, "batchtopk", feature=True),
    "neurons": Kind("neurons, largest", judged=True),
    "neurons-all": Kind("neurons, all", codes="all"),
    "pca": Kind("PCA, largest", _PINK, judged=True),
    "pca-all": Kind("PCA, all", _PINK, codes="all"),
    "random": Kind("random directions", plot.RANDOM, seeded=True, judged=True, swept=("width",)),
    "memorizing": Kind("memorizing", plot.TOKENS, codes="one"),
    "kmeans": Kind("k-means", codes="one", judged=True),
    "shuffled": Kind("atoms of shuffled coordinates", activation="jumprelu", in_metric=True, rows="shuffled"),
    "random-model": Kind(
        "atoms of a random model", activation="jumprelu", in_metric=True, rows="random model"
    ),
}

DICTIONARIES = tuple(KINDS)
CONTROLS = tuple(name for name, kind in KINDS.items() if not kind.trained)
FEATURES = tuple(name for name, kind in KINDS.items() if kind.feature)


class Variant(NamedTuple):
    """A change of how atoms are trained that the frontier tries: in words, and as parameters of the job."""

    words: str
    changes: Mapping[str, Any]


VARIANTS: dict[str, Variant] = {
    "tied": Variant("a tied encoder", {"tied": True}),
    "centered": Variant("a centred metric", {"centered": True}),
    "ledoit_wolf": Variant("a metric with Ledoit-Wolf's shrinkage", {"shrinkage": "ledoit_wolf"}),
    "shrunk": Variant("a metric with shrinkage 0.1", {"shrinkage": 0.1}),
}
