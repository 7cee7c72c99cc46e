"""Dictionaries judged inside the model: what it still predicts when their reconstruction takes the place
of its own activations, and which words a latent speaks for."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .activations import Forward, Key, Model, Pass
from .activations import check_shape as _check_shape
from .theory import ExplainedVariance, Interval

__all__ = ["DictionaryEvaluation", "Evaluation", "LogitAttribution", "evaluate", "logit_attribution"]

_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "final_norm", "ln_final")


@dataclasses.dataclass(frozen=True)
class DictionaryEvaluation:
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


@dataclasses.dataclass(frozen=True)
class Evaluation:
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

    def __str__(self) -> str:
        blank = [""] * 3
        ones = list(self.dictionaries.values())
        conventions = list(ones[0].explained_variance)
        lines = [
            ["", "model", "zeros", "mean", *self.dictionaries],
            ["cross-entropy (nats)"]
            + [_cell(i) for i in (self.cross_entropy, self.cross_entropy_zero, self.cross_entropy_mean)]
            + [_cell(d.cross_entropy) for d in ones],
            ["recovered, against zeros", *blank, *(_cell(d.recovered_zero) for d in ones)],
            ["recovered, against mean", *blank, *(_cell(d.recovered_mean) for d in ones)],
            [
                "KL of logits (nats)",
                "0",
                _cell(self.kl_zero),
                _cell(self.kl_mean),
                *(_cell(d.kl) for d in ones),
            ],
            *(
                [f"explained variance, {c}", *blank, *(_cell(d.explained_variance[c]) for d in ones)]
                for c in conventions
            ),
            ["L0", *blank, *(_cell(d.l0) for d in ones)],
            ["dead latents", *blank, *(f"{d.dead:,} of {len(d.density):,}" for d in ones)],
            [f"dense latents (> {self.dense_above:g})", *blank, *(f"{d.dense:,}" for d in ones)],
        ]
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        table = "\n".join(
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths))
            )
            for line in lines
        )
        level = self.cross_entropy.level
        return (
            f"{'layer ' if isinstance(self.place[0], int) else ''}{self.place[0]} {self.place[1]}: {self.n_tokens:,} tokens "
            f"in {self.n_contexts:,} contexts; brackets: {100 * level:g}% bootstrap intervals over contexts\n{table}"
        )


def _cell(interval: Interval) -> str:
    digits = 3 if abs(interval.estimate) < 10 else 1
    text = f"{interval.estimate:.{digits}f}"
    if np.isnan(interval.low):
        return text
    return f"{text} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


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

        def hook(module: Any, inputs: Any, output: Any) -> Any:
            several = isinstance(output, (tuple, list))
            hidden = output[0] if several else output
            _check_shape(hidden, self.key, tuple(kept.shape))
            rows = hidden[kept]
            seen.append(rows.reshape(len(rows), -1))
            if change is None:
                return None
            hidden = hidden.clone()
            hidden[kept] = change(seen[-1]).to(hidden).reshape(rows.shape)
            return type(output)((hidden, *output[1:])) if several else hidden

        handle = self.model.place(self.key).register_forward_hook(hook)
        try:
            logits = self.model.logits(ids, mask)
        finally:
            handle.remove()
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


def _reconstruction(sae: Any, X: np.ndarray) -> tuple[Any, np.ndarray]:
    codes = sae.transform(X)
    normed = getattr(sae, "input_norm", "none") != "none"  # then the codes alone do not say what x was
    return codes, np.asarray(sae.reconstruct(X) if normed else sae.inverse_transform(codes))


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
    progress: bool = True,
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
        ``AutoModelForCausalLM``, or one with TransformerLens's interface that gives logits.
    tokens : list of 1-D integer arrays, 2-D array or tensor
        Contexts of text that the dictionaries have not seen.
    dictionaries : object, or mapping of name to object
        Each with ``transform`` and ``inverse_transform``: `SparseAutoencoder`, `PretrainedSAE` (no
        transcoders: their output belongs elsewhere), anything of `atoms.controls`. A single one is
        called "autoencoder".
    layer, site, drop_first, batch_tokens, forward
        As in :func:`atoms.activations.capture`. With `drop_first`, position 0 keeps its own activation in
        every pass, ablations too, and its prediction is not counted.
    conventions : sequence of str, optional
        Of explained variance; by default "centered" and "uncentered", and "metric" where every
        dictionary has a metric.
    dense_above : float
        A latent that is not zero on a larger share of the tokens is dense.
    level, n_boot, random_state
        Percentile bootstrap over contexts, all figures from the same draws; the mean activation and
        the dictionaries are held fixed.
    progress : bool
        Show a progress bar on standard error.

    Returns
    -------
    Evaluation

    Raises
    ------
    ImportError
        PyTorch is not installed.
    ValueError
        A model without head, a dictionary of another width or a transcoder, and as `capture` does.

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
    >>> rows = atoms.activations.capture(model, tokens, "1", progress=False)["1"]
    >>> result = atoms.evaluate(model, tokens, {"all of PCA": PCADictionary().fit(rows)}, "1", progress=False)
    >>> round(result["all of PCA"].recovered_zero.estimate, 4), result["all of PCA"].l0.estimate
    (1.0, 8.0)
    """
    named: dict[str, Any] = (
        dict(dictionaries) if isinstance(dictionaries, Mapping) else {"autoencoder": dictionaries}
    )
    plan = Pass(model, tokens, layer, site, batch_tokens, drop_first, forward)
    if len(plan.keys) != 1:
        raise ValueError(f"layer: expected one layer at one site, got {len(plan.keys)}")
    if not 0 <= dense_above < 1:
        raise ValueError(f"dense_above: expected at least 0 and less than 1, got {dense_above}")
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number between 0 and 1, got {level}")
    if n_boot < 1:
        raise ValueError(f"n_boot: expected at least 1, got {n_boot}")
    key, torch = plan.keys[0], plan.model.torch
    conventions = _conventions(named, conventions)

    from tqdm import tqdm

    with tqdm(
        total=2 * plan.n, desc="evaluate", unit=" tokens", disable=not progress, file=sys.stderr, leave=False
    ) as bar:
        mean = _mean(plan, key, bar)
        _check_widths(named, len(mean))
        variances = {
            name: {c: ExplainedVariance(c, getattr(sae, "metric", None), mean=mean) for c in conventions}
            for name, sae in named.items()
        }
        fired = {name: np.zeros(int(sae.d_sae), np.int64) for name, sae in named.items()}
        columns: dict[Any, list[np.ndarray]] = {}  # per token: contexts, losses, L0
        spliced = _Spliced(plan.model, key)
        ablations: dict[Any, np.ndarray] = {"zero": np.zeros_like(mean), "mean": mean}
        with plan.model.evaluating():
            for number, batch in enumerate(plan.batches):
                padded = plan.padded(number)
                clean, rows = spliced.logits(padded)
                X = rows.to(torch.float32).cpu().numpy()
                replacements: dict[Any, np.ndarray] = {
                    name: np.broadcast_to(value.astype(np.float32), X.shape)
                    for name, value in ablations.items()
                }
                for name, sae in named.items():
                    codes, X_hat = _reconstruction(sae, X)
                    codes.eliminate_zeros()
                    columns.setdefault((name, "l0"), []).append(np.diff(codes.indptr))
                    fired[name] += np.bincount(codes.indices, minlength=len(fired[name]))
                    for variance in variances[name].values():
                        variance.update(X, X_hat)
                    replacements[name,] = X_hat
                kept = torch.from_numpy(padded[2]).to(clean.device)
                targets = torch.from_numpy(_targets(*padded)).to(clean.device)
                own = clean[kept]
                del clean
                columns.setdefault("target", []).append(targets.cpu().numpy())
                columns.setdefault("context", []).append(np.repeat(batch, plan.lengths[batch]))
                columns.setdefault(("clean", "ce"), []).append(_losses(torch, own, own, targets)[0])
                for name, values in replacements.items():
                    change = torch.from_numpy(np.array(values, np.float32)).to(plan.model.device)
                    logits, _ = spliced.logits(padded, lambda rows: change)
                    entropy, divergence = _losses(torch, own, logits[kept], targets)
                    del logits
                    columns.setdefault((name, "ce"), []).append(entropy)
                    columns.setdefault((name, "kl"), []).append(divergence)
                bar.update(int(plan.sizes[number]))
    return _summary(plan, key, named, columns, variances, fired, dense_above, level, n_boot, random_state)


def _conventions(named: Mapping[str, Any], conventions: Sequence[str] | None) -> list[str]:
    if not named:
        raise ValueError("dictionaries: expected at least one")
    for name, sae in named.items():
        for method in ("transform", "inverse_transform"):
            if not hasattr(sae, method):
                raise TypeError(f"dictionaries: {name} ({type(sae).__name__}) has no {method}")
        if getattr(sae, "is_transcoder", False):
            raise ValueError(
                f"dictionaries: {name} is a transcoder: its output belongs at another place than its input; "
                "evaluate takes autoencoders"
            )
    if conventions is not None:
        return list(conventions)
    geometric = all(getattr(sae, "metric", None) is not None for sae in named.values())
    return ["centered", "uncentered", *(["metric"] if geometric else [])]


def _check_widths(named: Mapping[str, Any], d: int) -> None:
    for name, sae in named.items():
        width = np.shape(sae.W_dec)[1]
        if width != d:
            raise ValueError(
                f"dictionaries: {name} takes activations of width {width}, this place of the model has {d}; "
                "name the layer and site it was trained on"
            )


def _mean(plan: Pass, key: Key, bar: Any) -> np.ndarray:
    total: Any = 0.0
    with plan.hooked() as run:
        for batch, n in enumerate(plan.sizes.tolist()):
            total = total + run(batch)[key].sum(axis=0, dtype=np.float64)
            bar.update(n)
    return np.asarray(total / plan.n, np.float64)


def _targets(ids: np.ndarray, mask: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """The token after each kept position, -1 after the last of a context."""
    following = np.full(ids.shape, -1, np.int64)
    following[:, :-1] = np.where(mask[:, 1:], ids[:, 1:], -1)
    return np.asarray(following[keep])


def _summary(
    plan: Pass,
    key: Key,
    named: Mapping[str, Any],
    columns: dict[Any, list[np.ndarray]],
    variances: Mapping[str, Mapping[str, ExplainedVariance]],
    fired: Mapping[str, np.ndarray],
    dense_above: float,
    level: float,
    n_boot: int,
    random_state: int,
) -> Evaluation:
    """From figures of tokens to sums of contexts, and from these to estimates and their intervals."""
    whole = {name: np.concatenate(parts) for name, parts in columns.items()}
    used, context = np.unique(whole.pop("context"), return_inverse=True)
    n = len(used)
    predicted = whole.pop("target") >= 0
    if not predicted.any():
        raise ValueError("tokens: no context has a next token to predict; give longer contexts")

    def of_contexts(values: np.ndarray) -> np.ndarray:
        return np.bincount(context, values, minlength=n)

    sums = {
        name: of_contexts(np.where(predicted, v, 0) if name[1] == "ce" else v) for name, v in whole.items()
    }
    tokens, predictions = of_contexts(np.ones(len(context))), of_contexts(predicted.astype(float))
    draws = np.random.default_rng(random_state).multinomial(n, np.full(n, 1 / n), size=n_boot)

    def figure(of: Callable[[Callable[[np.ndarray], Any]], Any], estimate: float | None = None) -> Interval:
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.asarray(of(lambda column: draws @ column), float)
            value = float(of(lambda column: column.sum())) if estimate is None else estimate
            low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])  # NaN stays NaN
        return Interval(float(low), float(high), value, level, found)

    def mean_ce(name: Any) -> Interval:
        return figure(lambda total: total(sums[name, "ce"]) / total(predictions))

    def mean_kl(name: Any) -> Interval:
        return figure(lambda total: total(sums[name, "kl"]) / total(tokens))

    def recovered(name: Any, ablation: str) -> Interval:
        worst, own, clean = sums[ablation, "ce"], sums[name, "ce"], sums["clean", "ce"]
        return figure(lambda total: total(worst - own) / total(worst - clean))

    def explained(variance: ExplainedVariance) -> Interval:
        result = variance.result()
        if result.squared_deviation is None:  # it has no form for single tokens
            return Interval(np.nan, np.nan, result.total, level, np.empty(0))
        error, deviation = of_contexts(result.squared_error), of_contexts(result.squared_deviation)
        return figure(lambda total: 1 - total(error) / total(deviation), result.total)

    found = {}
    for name in named:
        density = fired[name] / len(context)
        found[name] = DictionaryEvaluation(
            cross_entropy=mean_ce((name,)),
            recovered_zero=recovered((name,), "zero"),
            recovered_mean=recovered((name,), "mean"),
            kl=mean_kl((name,)),
            kl_recovered_zero=figure(
                lambda total: total(sums["zero", "kl"] - sums[(name,), "kl"]) / total(sums["zero", "kl"])
            ),
            explained_variance={c: explained(v) for c, v in variances[name].items()},
            l0=figure(lambda total: total(sums[name, "l0"]) / total(tokens)),
            density=density,
            dead=int((density == 0).sum()),
            dense=int((density > dense_above).sum()),
        )
    return Evaluation(
        dictionaries=found,
        cross_entropy=mean_ce("clean"),
        cross_entropy_zero=mean_ce("zero"),
        cross_entropy_mean=mean_ce("mean"),
        kl_zero=mean_kl("zero"),
        kl_mean=mean_kl("mean"),
        place=key,
        n_contexts=n,
        n_tokens=len(context),
        n_predictions=int(predicted.sum()),
        dense_above=float(dense_above),
    )


# ------------------------------------------------------------------ what latents say


@dataclasses.dataclass(frozen=True)
class LogitAttribution:
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
        With its head, as for :func:`evaluate`.
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
    """The norm's gain, and whether it subtracts the mean, from what it makes of probes: each
    architecture has a class of its own, some of which keep gain - 1."""
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
    probe = 1e3 * probe / probe.square().mean().sqrt()  # eps is nothing beside it
    shift = 1e3 * torch.ones_like(probe)
    dtype = next((p.dtype for p in norm.parameters()), torch.float32)

    def through(x: Any) -> Any:
        return norm(x.to(dtype)[None, None])[0, 0].to(torch.float32)

    gain = 1e3 * (through(probe) - through(-probe)) / (2 * probe)
    centred = bool(torch.allclose(through(probe + shift), through(probe), rtol=1e-3, atol=1e-5))
    return gain, centred
