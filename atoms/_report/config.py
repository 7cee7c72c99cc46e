"""What a report does: one frozen dataclass, read from TOML, JSON, a mapping or a name."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from .._files import as_path
from .kinds import CONTROLS, DICTIONARIES, VARIANTS

__all__ = ["CONTROLS", "DICTIONARIES", "READY", "Config", "Frontier", "Grid", "Monosemanticity", "load"]


@dataclasses.dataclass(frozen=True)
class Grid:
    """Capacity: number of activations |M| by number of atoms |D|, both in multiples of ``unit`` d_in.

    ``layer``: a block, or several; None: no grid. ``epochs`` is how often each activation is seen, though never
    fewer than ``min_samples`` samples are.
    """

    layer: int | tuple[int, ...] | None = None
    unit: int = 1
    data: tuple[int, ...] = (1, 2, 4)
    widths: tuple[int, ...] = (1, 2, 4)
    l0: float = 4
    epochs: float = 40
    min_samples: int = 40_000

    @property
    def layers(self) -> tuple[int, ...]:
        """The blocks that have a grid."""
        if self.layer is None:
            return ()
        return self.layer if isinstance(self.layer, tuple) else (self.layer,)


@dataclasses.dataclass(frozen=True)
class Frontier:
    """Held-out explained variance against q*: sweeps at one layer around the table's setting.

    ``layer`` None: no frontier. ``widths`` are multiples of d_in, ``data`` shares of the training rows,
    ``variants`` other ways to train the atoms: "tied", "centered", "ledoit_wolf", "shrunk" (shrinkage 0.1).
    """

    layer: int | None = None
    l0: tuple[float, ...] = (4, 8, 16, 32, 64)
    dictionaries: tuple[str, ...] = ("atoms", "learned", "batchtopk", "random", "pca")
    widths: tuple[float, ...] = (1, 8)
    data: tuple[float, ...] = (0.25, 0.5)
    variants: tuple[str, ...] = ("tied", "centered", "shrunk")


@dataclasses.dataclass(frozen=True)
class Monosemanticity:
    """Top contexts and scores of ``latents`` latents of each dictionary at one layer (None: none).

    The judge sees the ``examples`` strongest contexts, of ``window`` tokens, and says of ``candidates`` contexts in
    which the latent fires, and of as many others, whether it does. ``shown`` latents get a place on the pages.
    """

    layer: int | None = None
    latents: int = 64
    shown: int = 12
    examples: int = 10
    candidates: int = 20
    window: int = 16


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides a report's figures.

    Attributes
    ----------
    name : str
        Title of the report.
    model : str
        As `atoms.activations.load_model` takes it.
    parameters, d_in, n_layers : int
        Of the model; only the estimate of the cost needs them. 0 where unknown.
    texts : str, optional
        Folder of the three texts below; without it, they are Python's language reference.
    metric_text, train_text, held_out_text : str, optional
        File names in `texts`: where the metric is estimated, what dictionaries are trained on (None: the
        metric's text), and a text of another kind for held-out figures (None: no such column). A ``.json``
        file holds prompts, either a list of strings or CounterFact's records; others are plain text.
    metric_tokens, train_tokens, held_out_tokens : int
        Tokens of each at most.
    held_out : float
        Share of the training text, in contiguous chunks, that no dictionary sees.
    context_length : int
        Tokens of a context.
    positions : {"all", "last"}
        Which tokens of a context become rows: all, or its last one, as where a prompt is one activation.
    layers : tuple of int
        Blocks, from 0, of the main table.
    shift_layers : tuple of int or "all"
        Blocks whose angles are measured.
    dtype : str
        Of the captured rows on disk.
    activations : mapping of layer to path
        Activations on disk (``.npy``, rows in the order of the text) in place of model and texts.
    dictionaries : tuple of str
        Rows of the main table, of `DICTIONARIES`.
    width, l0, samples, batch_size, seeds
        Latents as a multiple of d_in, target L0, training samples (repeats counted), samples of a step,
        and the seeds whose dictionaries are compared.
    train_rows : int, optional
        So many training rows, drawn at random, are used in the table; None: all.
    hold_l0 : bool
        Whether thresholds are shifted until L0 on held-out rows (which judge nothing) is `l0`. Without it, what
        was trained is judged as it is.
    random_share : float
        Share of the text that the randomly initialised model is given.
    eval_rows : int
        Rows of each part from which explained variance is computed.
    grid, frontier, monosemanticity
        See `Grid`, `Frontier`, `Monosemanticity`; a ``layer`` of None leaves that part out.
    """

    name: str = "SmolLM2-135M"
    model: str = "smollm2"
    parameters: int = 135_000_000
    d_in: int = 576
    n_layers: int = 30
    texts: str | None = None
    metric_text: str | None = "wikitext2-valid.txt"
    train_text: str | None = "counterfact-known.json"
    held_out_text: str | None = "wikitext2-test.txt"
    metric_tokens: int = 24_000
    train_tokens: int = 30_000
    held_out_tokens: int = 5_000
    held_out: float = 0.2
    context_length: int = 512
    positions: str = "all"
    layers: tuple[int, ...] = (5, 10, 15, 20, 25)
    shift_layers: tuple[int, ...] | str = "all"
    dtype: str = "float32"
    activations: Mapping[str, str] = dataclasses.field(default_factory=dict)
    dictionaries: tuple[str, ...] = tuple(d for d in DICTIONARIES if d != "topk")
    width: float = 4
    l0: float = 16
    samples: int = 64_000
    batch_size: int = 256
    seeds: tuple[int, ...] = (0, 1)
    train_rows: int | None = None
    hold_l0: bool = True
    random_share: float = 0.2
    eval_rows: int = 3000
    grid: Grid = Grid(layer=15)
    frontier: Frontier = Frontier(layer=15)
    monosemanticity: Monosemanticity = Monosemanticity(layer=15)

    def __post_init__(self) -> None:
        def expect(good: bool, name: str, what: str) -> None:
            if not good:
                raise ValueError(f"{name}: expected {what}, got {_find(self, name)!r}")

        expect(
            len(self.layers) > 0 and len(set(self.layers)) == len(self.layers), "layers", "different blocks"
        )
        expect(
            isinstance(self.shift_layers, tuple) or self.shift_layers == "all",
            "shift_layers",
            "blocks, or 'all'",
        )
        expect(
            set(self.dictionaries) <= set(DICTIONARIES), "dictionaries", f"some of {', '.join(DICTIONARIES)}"
        )
        expect(len(self.seeds) > 0 and min(self.seeds) >= 0, "seeds", "whole numbers from 0 up")
        expect(self.positions in ("all", "last"), "positions", "'all' or 'last'")
        expect(self.train_rows is None or self.train_rows >= 2, "train_rows", "2 or more, or None")
        expect(0 < self.held_out < 1, "held_out", "a share between 0 and 1")
        expect(0 < self.random_share <= 1, "random_share", "a share above 0 and at most 1")
        for name in (
            "metric_tokens", "train_tokens", "held_out_tokens", "samples", "batch_size", "width", "l0", "eval_rows",
            "grid.unit", "grid.l0", "grid.epochs", "monosemanticity.examples", "monosemanticity.candidates",
        ):  # fmt: skip
            expect(_find(self, name) > 0, name, "a number above 0")
        expect(
            set(self.frontier.variants) <= set(VARIANTS),
            "frontier.variants",
            f"some of {', '.join(sorted(VARIANTS))}",
        )
        expect(
            set(self.frontier.dictionaries) <= set(DICTIONARIES),
            "frontier.dictionaries",
            "names as in dictionaries",
        )
        captured = set(map(int, self.activations)) if self.activations else set(self.layers)
        if self.activations and not set(self.layers) <= captured:
            raise ValueError(
                f"layers: expected some of those with activations ({sorted(captured)}), got {self.layers}"
            )
        expect(
            set(self.grid.layers) <= set(self.layers),
            "grid.layer",
            f"one or some of the layers {self.layers}",
        )
        for name in ("frontier.layer", "monosemanticity.layer"):
            expect(
                _find(self, name) is None or _find(self, name) in self.layers,
                name,
                f"one of the layers {self.layers}",
            )

    def as_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        found: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self), default=dict))
        return found


def _find(config: Config, name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


_SMALL = Config(
    name="SmolLM2-135M, small",
    metric_tokens=8000,
    train_tokens=15_000,
    held_out_tokens=4000,
    context_length=256,
    layers=(8, 15),
    shift_layers=(0, 4, 8, 12, 15),
    dictionaries=("atoms", "learned", "euclidean", "batchtopk", "neurons", "pca", "random", "memorizing"),
    width=2,
    l0=8,
    samples=60_000,
    eval_rows=2000,
    grid=Grid(layer=15, data=(1, 2), widths=(1, 2), epochs=30, min_samples=20_000),
    frontier=Frontier(
        layer=15,
        l0=(4, 8, 16),
        dictionaries=("atoms", "batchtopk", "random"),
        widths=(1,),
        data=(0.5,),
        variants=("tied",),
    ),
    monosemanticity=Monosemanticity(layer=15, latents=24, shown=6),
)


# The paper's own protocol: as many atoms as activations, the last token of each CounterFact prompt, trained until it is
# done. What is stored is found again in training figures, and in no others.
_PAPER = Config(
    name="SmolLM2-135M, the paper's protocol",
    metric_text="counterfact-known.json",
    train_text=None,
    held_out_text=None,
    metric_tokens=100_000,
    train_tokens=100_000,
    positions="last",
    layers=tuple(range(30)),
    dictionaries=("atoms", "random", "memorizing"),
    width=4096 / 576,
    l0=1,
    samples=4000 * 512,
    batch_size=512,
    seeds=(0,),
    train_rows=4096,
    hold_l0=False,
    grid=Grid(layer=(5, 15, 25), data=(1, 2, 4, 7), widths=(1, 2, 4, 7), l0=1, epochs=400),
    frontier=Frontier(
        layer=15, l0=(1, 4, 16, 48), dictionaries=("atoms",), widths=(1, 2, 4), data=(), variants=()
    ),
    monosemanticity=Monosemanticity(layer=None),
)


def _large(name: str, model: str, parameters: int, d_in: int, n_layers: int, layers: int) -> Config:
    """The paper's layers, |D| = 4 d_in, capacity grid in steps of 4 d_in up to 16 d_in at the first layer."""
    return Config(
        name=name,
        model=model,
        parameters=parameters,
        d_in=d_in,
        n_layers=n_layers,
        metric_tokens=100_000,
        train_tokens=32 * d_in,  # half of them repeat other prompts' beginnings or are held out
        layers=tuple(range(layers)),
        dtype="bfloat16",
        samples=2_000_000,
        grid=Grid(layer=0, unit=4, data=(1, 2, 3, 4), widths=(1, 2, 3, 4), l0=8),
        frontier=Frontier(layer=layers // 2),
        monosemanticity=Monosemanticity(layer=layers // 2),
    )


READY: dict[str, Config] = {
    "smollm2": Config(),
    "smollm2-small": _SMALL,
    "smollm2-paper": _PAPER,
    "gemma2-2b": _large("Gemma2-2B", "google/gemma-2-2b", 2_614_000_000, 2304, 26, 26),
    "gemma2-9b": _large("Gemma2-9B", "google/gemma-2-9b", 9_242_000_000, 3584, 42, 42),
    "llama3.1-8b": _large("Llama3.1-8B", "meta-llama/Llama-3.1-8B", 8_030_000_000, 4096, 32, 30),
}


_T = TypeVar("_T")


def _build(cls: type[_T], given: Mapping[str, Any], base: _T, where: str = "") -> _T:
    settings: Any = base
    fields = {f.name: f for f in dataclasses.fields(settings)}
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in fields:
            raise ValueError(f"{where}{name}: no such setting; there are {', '.join(fields)}")
        now = getattr(base, name)
        if dataclasses.is_dataclass(now) and isinstance(value, Mapping):
            value = _build(type(now), value, now, f"{where}{name}.")
        elif isinstance(value, (list, tuple)):
            value = tuple(value)
        elif isinstance(now, (int, float)) and not isinstance(value, (int, float, type(None))):
            raise ValueError(f"{where}{name}: expected a number, got {value!r}")
        values[name] = value
    built: _T = dataclasses.replace(settings, **values)
    return built


def load(config: Config | Mapping[str, Any] | str | Path, **changes: Any) -> Config:
    """A configuration from a name of `READY`, a TOML or JSON file, a mapping, or itself.

    A file or mapping may name one of `READY` as ``base`` (by default "smollm2") and holds what differs.

    Raises
    ------
    ValueError
        No such name, a setting that does not exist, or a value out of range.
    FileNotFoundError
        No such file.

    Examples
    --------
    >>> from atoms._report import load
    >>> load({"base": "smollm2-small", "l0": 4, "grid": {"layer": None}}).l0
    4
    """
    if isinstance(config, Config):
        return _build(Config, changes, config)
    if isinstance(config, Mapping):
        given = dict(config)
    elif str(config) in READY:
        return _build(Config, changes, READY[str(config)])
    else:
        path = as_path(config, "config")
        if not path.exists():
            raise FileNotFoundError(
                f"config: no file {path}; name a TOML or JSON file, or one of {', '.join(READY)}"
            )
        given = _read(path)
    base = given.pop("base", "smollm2")
    if base not in READY:
        raise ValueError(f"base: expected one of {', '.join(READY)}, got {base!r}")
    return _build(Config, given | changes, READY[base])


def _read(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        found = json.loads(text)
    else:
        try:
            toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
        except ImportError as error:
            raise ImportError("TOML needs Python 3.11, or run `pip install tomli`; JSON works too") from error
        found = toml.loads(text)
    if not isinstance(found, dict):
        raise ValueError(f"config: {path} holds no table of settings")
    return found
