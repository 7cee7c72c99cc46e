"""Dictionaries judged inside the model: what it still predicts when their reconstruction takes the place
of its own activations.

`logit_attribution`, which words a latent speaks for, and `latent_attribution`, which latents spoke for a word, have a
file of their own, ``_attribution.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from . import _plot as plot

# `as` the same name: classes of results, public but in no `__all__`
from ._attribution import LogitAttribution as LogitAttribution
from ._attribution import latent_attribution, logit_attribution
from ._checks import as_number, check_between_0_and_1, check_choice, check_count, listed, seed_of
from ._config import one_blas_thread
from ._contexts import Context as Context
from ._contexts import top_contexts
from ._describe import Description as Description
from ._describe import LatentDescription as LatentDescription
from ._frames import without_frames
from ._old import old_keyword
from ._progress import progress_bar
from ._rows import Blocks, is_dask
from ._shown import Shown, Table
from ._steering import check_one_place
from ._steering import steer as steer
from .activations import FarModel, Forward, Key, Model, Pass, check_shape
from .sae._autoencoder import as_fitted
from .theory import CONVENTIONS, ExplainedVariance, Interval

__all__ = ["latent_attribution", "logit_attribution", "top_contexts"]


def __dir__() -> list[str]:
    return [*__all__, "evaluate", "steer"]


@dataclasses.dataclass(frozen=True, repr=False)
class DictionaryEvaluation(Shown):
    """What one dictionary does to the model, and what it makes of the activations.

    Attributes
    ----------
    cross_entropy : Interval
        In nats per predicted token, with the reconstruction spliced in.
    recovered_zero, recovered_mean : Interval
        Loss recovered: ``(CE_ablated - CE) / (CE_ablated - CE_model)``, 1 for a perfect reconstruction, 0
        for one no better than zero, or than the mean activation. SAELens's ``ce_loss_score`` is the first.
    kl : Interval
        Mean over tokens of KL(model's next-token distribution || with the reconstruction), in nats.
    kl_recovered_zero : Interval
        ``(KL_zero - KL) / KL_zero``, SAELens's ``kl_div_score``.
    explained_variance : dict
        convention -> Interval: see :func:`atoms.theory.explained_variance`.
    l0 : Interval
        Mean number of latents that are not zero.
    density : ndarray (d_sae,)
        Share of the tokens on which each latent is not zero.
    dead, dense : int
        Latents of density 0, and above `dense_above`.
    """

    cross_entropy: Interval
    recovered_zero: Interval
    recovered_mean: Interval
    kl: Interval
    kl_recovered_zero: Interval
    explained_variance: dict[str, Interval]
    l0: Interval
    density: np.ndarray = dataclasses.field(repr=False, compare=False)
    dead: int
    dense: int

    def __repr__(self) -> str:
        return self._table().text()

    def _rows(self) -> dict[str, Any]:
        """Its column of a table."""
        return {
            "cross-entropy (nats)": self.cross_entropy,
            "recovered, against zeros": self.recovered_zero,
            "recovered, against mean": self.recovered_mean,
            "KL of logits (nats)": self.kl,
            **{f"explained variance, {c}": v for c, v in self.explained_variance.items()},
            "L0": self.l0,
            "dead latents": f"{self.dead:,} of {len(self.density):,}",
            "dense latents": self.dense,
        }

    def _table(self) -> Table:
        return Table("One dictionary inside the model", list(self._rows().items()))


@dataclasses.dataclass(frozen=True, repr=False)
class Evaluation(Shown):
    """The result of :func:`evaluate`; printing it gives one table, ``evaluation[name]`` one dictionary.

    Attributes
    ----------
    dictionaries : dict
        name -> DictionaryEvaluation.
    cross_entropy, cross_entropy_zero, cross_entropy_mean : Interval
        Of the model itself, and with zero or the mean activation spliced in.
    kl_zero, kl_mean : Interval
    place : tuple
        (layer, site).
    n_contexts, n_tokens, n_predictions : int
        Contexts; activations replaced; next tokens whose loss is counted.
    dense_above : float
    """

    dictionaries: dict[str, DictionaryEvaluation]
    cross_entropy: Interval
    cross_entropy_zero: Interval
    cross_entropy_mean: Interval
    kl_zero: Interval
    kl_mean: Interval
    place: tuple[Any, str]
    n_contexts: int
    n_tokens: int
    n_predictions: int
    dense_above: float

    def __getitem__(self, name: str) -> DictionaryEvaluation:
        return self.dictionaries[name]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, for JSON; intervals become [estimate, low, high]."""

        def plain(value: Any) -> Any:
            if isinstance(value, Interval):
                return [value.estimate, value.low, value.high]
            if isinstance(value, dict):
                return {k: plain(v) for k, v in value.items()}
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
            if isinstance(value, np.ndarray):
                return value.tolist()
            return list(value) if isinstance(value, tuple) else value

        return plain(self)  # type: ignore[no-any-return]

    @plot.drawing
    def plot(self, axes: Any = None) -> Any:
        """Draw what each dictionary recovers of the model's predictions, and explains, with the intervals."""
        axes = plot.axes_of(axes, (6.5, 2 + 0.5 * len(self.dictionaries)))
        ones = list(self.dictionaries.values())
        figures = {
            "recovered, against zeros": [d.recovered_zero for d in ones],
            "against mean": [d.recovered_mean for d in ones],
        }
        if all("centered" in d.explained_variance for d in ones):
            figures["explained variance"] = [d.explained_variance["centered"] for d in ones]
        names = [f"{name}, L0 {d.l0.estimate:.3g}" for name, d in self.dictionaries.items()]
        plot.recovered(
            axes, names, {k: [(v.estimate, v.low, v.high) for v in values] for k, values in figures.items()}
        )
        plot.titles(axes, "Inside the model", f"{self.n_tokens:,} tokens in {self.n_contexts:,} contexts")
        return axes

    def __str__(self) -> str:
        return self._table().text()

    __repr__ = __str__

    def _table(self) -> Table:
        """The model with and without ablation, then the dictionaries."""
        model = {
            "cross-entropy (nats)": (self.cross_entropy, self.cross_entropy_zero, self.cross_entropy_mean),
            "KL of logits (nats)": ("0", self.kl_zero, self.kl_mean),
        }
        columns = [d._rows() for d in self.dictionaries.values()]
        rows = [
            (name, *model.get(name, ("", "", "")), *(column[name] for column in columns))
            for name in (columns[0] if columns else model)
        ]
        if columns:
            rows[-1] = (f"{rows[-1][0]} (> {self.dense_above:g})", *rows[-1][1:])
        layer, site = self.place
        where = f"{'layer ' if isinstance(layer, int) else ''}{layer} {site}"
        level = f"{100 * self.cross_entropy.level:g}%"
        return Table(
            f"{where}: {self.n_tokens:,} tokens in {self.n_contexts:,} contexts; "
            f"brackets: {level} bootstrap intervals over contexts",
            rows,
            ("", "model", "zeros", "mean", *self.dictionaries),
        )


# ------------------------------------------------------------------ the model with something spliced in


class _Spliced:
    """Forward passes of a model whose activations at one place are read, or replaced, where `keep` says."""

    def __init__(self, model: Model, key: Key):
        self.model, self.key, self.torch = model, key, model.torch

    def logits(
        self, batch: tuple[np.ndarray, np.ndarray, np.ndarray], change: Callable[[Any], Any] | None = None
    ) -> tuple[Any, Any]:
        """Logits, and the activations (n, d) at the kept positions, which `change` may replace."""
        ids, mask, keep = batch
        kept = self.torch.from_numpy(keep).to(self.model.device)
        seen: list[Any] = []

        def replaced(hidden: Any) -> Any:
            check_shape(hidden, self.key, tuple(kept.shape))
            rows = hidden[kept]
            seen.append(rows.reshape(len(rows), -1))
            if change is None:
                return None
            hidden = hidden.clone()
            hidden[kept] = change(seen[-1]).to(hidden).reshape(rows.shape)
            return hidden

        with self.model.replacing(self.key, replaced):
            logits = self.model.logits(ids, mask)
        if len(seen) != 1:
            raise ValueError(
                f"layer: {self.key[0]} {self.key[1]} ran {len(seen)} times before the logits; name a module that runs once"
            )
        return logits, seen[0]


def _losses(
    torch: Any, clean: Any, changed: Any, targets: Any, chunk: int = 256
) -> tuple[np.ndarray, np.ndarray]:
    """Of logits (n, vocabulary): cross-entropy of each target (NaN for -1), and KL(clean || changed), float64."""
    entropy, divergence = [], []
    for start in range(0, len(changed), chunk):
        part = slice(start, start + chunk)
        q = torch.log_softmax(changed[part].to(torch.float32), dim=-1)
        wanted = targets[part]
        loss = -q.gather(1, wanted.clamp(min=0)[:, None])[:, 0]
        entropy.append(torch.where(wanted >= 0, loss, torch.nan).to(torch.float64).cpu().numpy())
        if clean is changed:
            divergence.append(np.zeros(len(wanted)))
            continue
        p = torch.log_softmax(clean[part].to(torch.float32), dim=-1)
        terms = torch.where(p > -torch.inf, p.exp() * (p - q), 0)
        divergence.append(terms.sum(dim=-1).to(torch.float64).cpu().numpy())
    return np.concatenate(entropy), np.concatenate(divergence)


def _metric_of(sae: Any) -> Any:
    """The metric that it was fitted under, or None."""
    metric = getattr(sae, "metric_", getattr(sae, "metric", None))
    return metric if hasattr(metric, "whitener_") else None  # a metric's own `metric_` is its matrix


def _reconstruction(sae: Any, X: np.ndarray) -> tuple[Any, np.ndarray]:
    codes = without_frames(sae)(X)
    # a normalised input cannot be rebuilt from the codes alone
    normed = getattr(sae, "input_norm", "none") != "none"
    X_hat = sae.reconstruct(X) if normed else sae.inverse_transform(codes)
    return sp.csr_array(codes), np.asarray(X_hat)  # scikit-learn's codes are dense


@old_keyword("progress", "verbose")
def evaluate(
    model: Any,
    tokens: Any,
    dictionaries: Any,
    layer: int | str,
    *,
    site: str = "residual",
    conventions: Sequence[str] | None = None,
    drop_first: bool = True,
    batch_tokens: int = 512,
    dense_above: float = 0.1,
    level: float = 0.95,
    n_boot: int = 1000,
    random_state: int = 0,
    forward: Forward | None = None,
    attention_mask: Any = None,
    verbose: bool = True,
) -> Evaluation:
    """Judge dictionaries inside the model, on held-out text.

    Where `layer` gives an activation x, the model goes on with the dictionary's x_hat instead, and its
    predictions of the next token are compared with its own: cross-entropy, the share of it that is
    recovered with respect to zeros or the mean in the place of x, and KL divergence. The same pass gives
    explained variance, L0, dead and dense latents.

    Parameters
    ----------
    model : torch.nn.Module
        With its language-model head: ``smollm2(head=True)``, ``load_model(name, head=True)``, an
        ``AutoModelForCausalLM``, or one with TransformerLens's interface that gives logits. With tokens in an
        array of Dask it is sent to each worker, or is a function without arguments that loads it there.
    tokens : list of 1-D integer arrays, 2-D array or tensor, BatchEncoding, dict, or list of dicts
        As `capture` takes them. Contexts of text that the dictionaries have not seen. An array of Dask (contexts,
        positions) is evaluated block by block where its blocks are: to the bit as in memory where blocks hold whole
        batches and workers have as many PyTorch threads.
    dictionaries : object, or mapping of name to object
        Each with ``transform`` and ``inverse_transform``: `SparseAutoencoder`, `PretrainedSAE` (no
        transcoders: their output belongs elsewhere), `DictionaryLearning`, `SparseCoder`, anything of `atoms.controls`,
        and scikit-learn's, such as its PCA. A single one is called "autoencoder".
    layer : int or str
        One block, or the name of a module, as in :func:`atoms.activations.capture`.
    site : str
        "residual", "mlp" or "attention", of a layer by number.
    conventions : sequence of str, optional
        Of explained variance; by default "centered" and "uncentered", and "metric" where every
        dictionary has a metric.
    dense_above : float
        A latent that is not zero on a larger share of the tokens is dense.
    drop_first : bool
        Position 0 keeps its own activation in every pass, ablations too, and its prediction is not counted.
    batch_tokens : int
        Tokens per forward pass, padding included.
    level : float
        Of the intervals: percentile bootstrap over contexts, all figures from the same draws; the mean
        activation and the dictionaries are held fixed.
    n_boot : int
        Draws of the bootstrap.
    random_state : int
        Seed of the draws.
    forward : callable, optional
        ``forward(model, ids, mask)``, as in :func:`atoms.activations.capture`.
    attention_mask : 2-D array or tensor, or list of 1-D arrays, optional
        1 at tokens of the text, 0 at padding.
    verbose : bool
        Show a progress bar on standard error.

    Returns
    -------
    Evaluation

    Raises
    ------
    ImportError
        PyTorch is not installed.
    ValueError
        A model without head, a dictionary of another width, a transcoder or a crosscoder, and as `capture` does.

    Notes
    -----
    The mean of the ablation is that of these tokens, from a pass that stops at `layer`. Then 3 forward
    passes and one for each dictionary. Memory: logits of two batches (8 batch_tokens vocabulary bytes), and
    64 bytes for each token, convention and dictionary.

    SAELens's ``evals`` give the same figures with ``drop_first=False``; where it is told to ignore
    beginning-of-text tokens, its zero ablation still replaces these.

    Examples
    --------
    >>> import numpy as np, torch
    >>> import atoms
    >>> from atoms.controls import PCADictionary
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Embedding(20, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 20))
    >>> tokens = np.random.default_rng(0).integers(0, 20, (30, 16))
    >>> rows = atoms.activations.capture(model, tokens, "1", verbose=False)["1"]
    >>> result = atoms.evaluate(model, tokens, {"all of PCA": PCADictionary().fit(rows)}, "1", verbose=False)
    >>> round(result["all of PCA"].recovered_zero.estimate, 4), result["all of PCA"].l0.estimate
    (1.0, 8.0)
    """
    named: dict[str, Any] = (
        dict(dictionaries) if isinstance(dictionaries, Mapping) else {"autoencoder": dictionaries}
    )
    _check_settings(dense_above, level, n_boot)
    random_state = seed_of(random_state)
    conventions = _conventions(named, conventions)
    settings = layer, site, batch_tokens, drop_first, forward
    if is_dask(tokens):
        key, tally = _tallied_far(model, tokens, attention_mask, settings, named, conventions)
    else:
        plan = Pass(model, tokens, *settings, attention_mask)
        key = _key(plan)
        _check_head(plan)
        with progress_bar("evaluate", 2 * plan.n, " tokens", verbose=verbose, keep=False) as bar:
            total: Any = sum(_sums(plan, key, bar.update))
            tally = _Tally(named, conventions, total / plan.n)
            _run_all(plan, key, tally, bar.update)
    bootstrap = _Bootstrap(tally, level, n_boot, random_state)
    return Evaluation(
        dictionaries={name: bootstrap.judged(name, dense_above) for name in named},
        cross_entropy=bootstrap.cross_entropy("clean"),
        cross_entropy_zero=bootstrap.cross_entropy("zero"),
        cross_entropy_mean=bootstrap.cross_entropy("mean"),
        kl_zero=bootstrap.kl("zero"),
        kl_mean=bootstrap.kl("mean"),
        place=key,
        n_contexts=bootstrap.n_contexts,
        n_tokens=bootstrap.n_tokens,
        n_predictions=bootstrap.n_predictions,
        dense_above=float(dense_above),
    )


def _check_settings(dense_above: float, level: float, n_boot: int) -> None:
    if not 0 <= as_number(dense_above, "dense_above") < 1:
        raise ValueError(f"dense_above: expected at least 0 and less than 1, got {dense_above}")
    check_between_0_and_1(level, "level")
    check_count(n_boot, "n_boot")


def _conventions(named: Mapping[str, Any], conventions: Sequence[str] | None) -> list[str]:
    if not named:
        raise ValueError("dictionaries: expected at least one")
    for name, sae in named.items():
        for method in ("transform", "inverse_transform"):
            if not hasattr(sae, method):
                raise TypeError(f"dictionaries: {name} ({type(sae).__name__}) has no {method}")
        check_one_place(sae, f"dictionaries: {name}")
    if conventions is not None:
        return [check_choice(one, "conventions", CONVENTIONS) for one in listed(conventions, "conventions")]
    geometric = all(_metric_of(as_fitted(sae)) is not None for sae in named.values())
    return ["centered", "uncentered", *(["metric"] if geometric else [])]


def _check_widths(named: Mapping[str, Any], d: int) -> None:
    for name, sae in named.items():
        width = _width(sae, f"dictionaries: {name}")
        if width != d:
            raise ValueError(
                f"dictionaries: {name} takes activations of width {width}, this place of the model has {d}; "
                "name the layer and site it was trained on"
            )


def _width(sae: Any, name: str) -> int:
    """Of the activations that a model takes."""
    if hasattr(sae, "n_features_in_"):
        return int(sae.n_features_in_)
    if hasattr(type(sae), "W_dec") or hasattr(sae, "W_dec"):
        return int(np.shape(sae.W_dec)[1])
    raise TypeError(
        f"{name} ({type(sae).__name__}) does not say how wide its activations are, by n_features_in_ or W_dec; is it fitted?"
    )


def _check_head(plan: Pass) -> None:
    """ValueError from a pass over one context where the model gives no logits."""
    ids, mask, _ = plan.padded(int(np.argmin(plan.sizes)))
    with plan.model.evaluating():
        plan.model.logits(ids[:1], mask[:1])


def _key(plan: Pass) -> Key:
    if len(plan.keys) != 1:
        raise ValueError(f"layer: expected one layer at one site, got {len(plan.keys)}")
    return plan.keys[0]


def _sums(plan: Pass, key: Key, advance: Callable[[int], Any]) -> Iterator[np.ndarray]:
    """The sum of each batch's activations."""
    with plan.hooked() as run:
        for batch, n in enumerate(plan.sizes.tolist()):
            yield run(batch)[key].sum(axis=0, dtype=np.float64)
            advance(n)


def _run_all(plan: Pass, key: Key, tally: _Tally, advance: Callable[[int], Any]) -> None:
    """All batches, with what takes the activations' place, into the tally."""
    spliced = _Spliced(plan.model, key)
    with plan.model.evaluating():
        for number, batch in enumerate(plan.batches):
            tally.add("context", np.repeat(batch, plan.lengths[batch]))
            _run(spliced, plan.padded(number), tally)
            advance(int(plan.sizes[number]))


# ------------------------------------------------------------------ by the workers of a cluster


def _tallied_far(
    model: Any,
    tokens: Any,
    attention_mask: Any,
    settings: tuple[Any, ...],
    named: Mapping[str, Any],
    conventions: Sequence[str],
) -> tuple[Key, _Tally]:
    """The same of contexts in an array of Dask: each block is a worker's, and so is the model."""
    rows, far = Blocks(tokens, "tokens"), FarModel(model)
    beside = [] if attention_mask is None else [("attention_mask", attention_mask)]
    found = rows.gathered(_sums_of_block, far, settings, beside=beside)
    if not found:
        raise ValueError("tokens: expected at least one context, got none")
    key, n = found[0][0], sum(count for _, _, count in found)
    mean = np.asarray(sum(one for _, sums, _ in found for one in sums)) / n
    tally, first = _Tally(named, conventions, mean), 0
    for part, contexts in rows.gathered(
        _tally_of_block, far, settings, dict(named), conventions, mean, beside=beside
    ):
        tally.merge(part, first)
        first += contexts
    return key, tally


def _sums_of_block(block: np.ndarray, *rest: Any) -> tuple[Key, list[np.ndarray], int]:
    *mask, far, settings = rest
    with far.lock:
        plan = far.plan(block, *settings, *mask)
        _check_head(plan)
        return _key(plan), list(_sums(plan, _key(plan), lambda n: None)), plan.n


def _tally_of_block(block: np.ndarray, *rest: Any) -> tuple[_Tally, int]:
    *mask, far, settings, named, conventions, mean = rest
    tally = _Tally(named, conventions, mean)
    with far.lock:
        plan = far.plan(block, *settings, *mask)
        _run_all(plan, _key(plan), tally, lambda n: None)
    tally.named = {}  # who asked has them
    return tally, len(plan.contexts)


def _targets(ids: np.ndarray, mask: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """The token after each kept position, -1 after the last of a context."""
    following = np.full(ids.shape, -1, np.int64)
    following[:, :-1] = np.where(mask[:, 1:], ids[:, 1:], -1)
    return np.asarray(following[keep])


class _Tally:
    """What is kept of the passes: figures of each token, and for each dictionary its firings and variances.

    ``columns`` has arrays, one for each batch, under "context", "target", (name, "l0"), (what, "ce") and
    (what, "kl"). There, what is "clean", "zero", "mean" or, for a dictionary, the tuple (name,), so that one
    called "zero" is not taken for the ablation.
    """

    def __init__(self, named: Mapping[str, Any], conventions: Sequence[str], mean: np.ndarray):
        self.named, self.mean = named, np.asarray(mean, np.float64)
        _check_widths(named, len(self.mean))
        self.variances = {
            name: {c: ExplainedVariance(c, _metric_of(as_fitted(sae)), mean=mean) for c in conventions}
            for name, sae in named.items()
        }
        self.fired: dict[str, Any] = dict.fromkeys(named, 0)
        self.columns: dict[Any, list[np.ndarray]] = {}

    def add(self, column: Any, values: np.ndarray) -> None:
        self.columns.setdefault(column, []).append(values)

    def merge(self, other: _Tally, first: int) -> None:
        """Add what was kept of later contexts, the first of which has that number."""
        for column, values in other.columns.items():
            self.columns.setdefault(column, []).extend(
                v + first if column == "context" else v for v in values
            )
        for name, fired in other.fired.items():
            self.fired[name] = self.fired[name] + fired
            for convention, variance in other.variances[name].items():
                self.variances[name][convention].merge(variance)

    def replacements(self, X: np.ndarray) -> dict[Any, np.ndarray]:
        """What takes X's place in turn: the ablations, and what each dictionary makes of X, which is counted."""
        out: dict[Any, np.ndarray] = {
            name: np.broadcast_to(value.astype(np.float32), X.shape)
            for name, value in (("zero", np.zeros_like(self.mean)), ("mean", self.mean))
        }
        for name, sae in self.named.items():
            codes, X_hat = _reconstruction(sae, X)
            codes.eliminate_zeros()
            self.add((name, "l0"), np.diff(codes.indptr))
            self.fired[name] = self.fired[name] + np.bincount(codes.indices, minlength=codes.shape[1])
            for variance in self.variances[name].values():
                variance.update(X, X_hat)
            out[name,] = X_hat
        return out


def _run(spliced: _Spliced, padded: tuple[np.ndarray, np.ndarray, np.ndarray], tally: _Tally) -> None:
    """One batch: the model as it is, then with each replacement, and the losses of all."""
    torch = spliced.torch
    clean, rows = spliced.logits(padded)
    replacements = tally.replacements(rows.to(torch.float32).cpu().numpy())
    kept = torch.from_numpy(padded[2]).to(clean.device)
    targets = torch.from_numpy(_targets(*padded)).to(clean.device)
    own = clean[kept]
    del clean  # logits are what fills memory
    tally.add("target", targets.cpu().numpy())
    tally.add(("clean", "ce"), _losses(torch, own, own, targets)[0])
    for name, values in replacements.items():
        change = torch.from_numpy(np.array(values, np.float32)).to(spliced.model.device)
        logits, _ = spliced.logits(padded, lambda rows: change)
        entropy, divergence = _losses(torch, own, logits[kept], targets)
        del logits
        tally.add((name, "ce"), entropy)
        tally.add((name, "kl"), divergence)


class _Bootstrap:
    """Estimates and their intervals, from each context's sums of its tokens' figures.

    All intervals use the same draws of contexts. ``what`` is named as in `_Tally`.
    """

    def __init__(self, tally: _Tally, level: float, n_boot: int, random_state: int):
        self.tally, self.level = tally, level
        whole = {name: np.concatenate(parts) for name, parts in tally.columns.items()}
        used, self.context = np.unique(whole.pop("context"), return_inverse=True)
        n = self.n_contexts = len(used)
        predicted = whole.pop("target") >= 0
        if not predicted.any():
            raise ValueError("tokens: no context has a next token to predict; give longer contexts")
        self.n_tokens, self.n_predictions = len(self.context), int(predicted.sum())
        self.sums = {
            name: self.of_contexts(np.where(predicted, v, 0) if name[1] == "ce" else v)
            for name, v in whole.items()
        }
        self.tokens = self.of_contexts(np.ones(self.n_tokens))
        self.predictions = self.of_contexts(predicted.astype(float))
        self.draws = np.random.default_rng(random_state).multinomial(n, np.full(n, 1 / n), size=n_boot)

    def of_contexts(self, values: np.ndarray) -> np.ndarray:
        """Sum of the values of each context's tokens."""
        return np.bincount(self.context, values, minlength=self.n_contexts)

    def ratio(self, above: np.ndarray, below: np.ndarray) -> Interval:
        """One sum over contexts by another."""
        return self._figure(lambda total: total(above) / total(below))

    @one_blas_thread
    def _figure(
        self, of: Callable[[Callable[[np.ndarray], Any]], Any], estimate: float | None = None
    ) -> Interval:
        """A figure and its interval. `of` computes it, given a function that sums a column over contexts: over all
        of them, or over each draw of them.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.asarray(of(lambda column: self.draws @ column), float)
            value = float(of(lambda column: column.sum())) if estimate is None else estimate
            # NaN draws give NaN bounds
            low, high = np.quantile(found, [(1 - self.level) / 2, (1 + self.level) / 2])
        return Interval(float(low), float(high), value, self.level, found)

    def cross_entropy(self, what: Any) -> Interval:
        return self.ratio(self.sums[what, "ce"], self.predictions)

    def kl(self, what: Any) -> Interval:
        return self.ratio(self.sums[what, "kl"], self.tokens)

    def recovered(self, what: Any, ablation: str) -> Interval:
        worst, own, clean = (self.sums[name, "ce"] for name in (ablation, what, "clean"))
        return self.ratio(worst - own, worst - clean)

    def explained(self, variance: ExplainedVariance) -> Interval:
        result = variance.result()
        if result.squared_deviation is None:  # no sum over tokens: nothing to draw
            return Interval(np.nan, np.nan, result.total, self.level, np.empty(0))
        error, deviation = self.of_contexts(result.squared_error), self.of_contexts(result.squared_deviation)
        return self._figure(lambda total: 1 - total(error) / total(deviation), result.total)

    def judged(self, name: str, dense_above: float) -> DictionaryEvaluation:
        what, zero = (name,), self.sums["zero", "kl"]
        density = self.tally.fired[name] / self.n_tokens
        return DictionaryEvaluation(
            cross_entropy=self.cross_entropy(what),
            recovered_zero=self.recovered(what, "zero"),
            recovered_mean=self.recovered(what, "mean"),
            kl=self.kl(what),
            kl_recovered_zero=self.ratio(zero - self.sums[what, "kl"], zero),
            explained_variance={c: self.explained(v) for c, v in self.tally.variances[name].items()},
            l0=self.ratio(self.sums[name, "l0"], self.tokens),
            density=density,
            dead=int((density == 0).sum()),
            dense=int((density > dense_above).sum()),
        )
