"""What users give as tokens, as contexts without padding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .._checks import listed

__all__: list[str] = []


def as_contexts(
    tokens: Any,
    attention_mask: Any = None,
    *,
    limits: tuple[int | None, int | None],
    padding: tuple[int, int | None] | None,
) -> list[np.ndarray]:
    """Contexts of int64 ids from all that `capture` takes as tokens.

    Parameters
    ----------
    tokens, attention_mask : see `capture`
    limits : tuple
        Size of the vocabulary and longest context, or None.
    padding : tuple, optional
        The id of padding, and how many of it may stand at an end of a row; None for as many as all rows have
        there, one at most.
    """
    contexts = _unpadded(tokens, attention_mask, padding)
    contexts = [c for c in contexts if c.size]
    if not contexts:
        raise ValueError("tokens: there are none; give at least one context of token ids")
    for i, context in enumerate(contexts):
        _check_context(i, context, *limits)
    return [c.astype(np.int64) for c in contexts]


def _array(values: Any) -> Any:
    return values.detach().cpu().numpy() if hasattr(values, "detach") else values


def _rows(values: Any, name: str) -> list[Any]:
    """The rows of a 2-D array, one context as a list of one, or a list of contexts."""
    values = _array(values)
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype != object:
        return [values]
    values = [_array(row) for row in listed(values, name)]
    return [values] if values and np.ndim(values[0]) == 0 and not isinstance(values[0], Mapping) else values


def _unpadded(tokens: Any, mask: Any, padding: tuple[int, int | None] | None) -> list[np.ndarray]:
    """Contexts that are left where a mask says what is text; without one there must be no padding."""
    if isinstance(tokens, Mapping):
        return _unpadded(*_taken_apart(tokens, mask), padding)
    rows = _rows(tokens, "tokens")
    if any(isinstance(row, Mapping) for row in rows):
        if mask is not None:
            raise ValueError("attention_mask: tokens are dictionaries; give each its own attention_mask")
        return [context for row in rows for context in _unpadded(row, None, padding)]
    contexts = [np.asarray(row) for row in rows]
    if mask is not None:
        return _all_masked(contexts, [np.asarray(row) for row in _rows(mask, "attention_mask")])
    if padding is not None and _is_table(tokens, rows):
        _refuse_padding(np.stack(contexts), *padding)
    return contexts


def _is_table(tokens: Any, rows: list[Any]) -> bool:
    """A 2-D array, or the lists of equal length that tokenizers give; they do not pad arrays of their own."""
    lists = all(isinstance(row, (list, tuple)) for row in rows)
    return len({np.shape(row) for row in rows}) == 1 and (lists or getattr(tokens, "ndim", 0) == 2)


def _taken_apart(tokens: Mapping[str, Any], mask: Any) -> tuple[Any, Any]:
    """Ids and mask of what a tokenizer returns."""
    if "input_ids" not in tokens:
        raise ValueError(f"tokens: expected input_ids in the dictionary, found {', '.join(map(str, tokens))}")
    inner = tokens.get("attention_mask")
    if mask is not None and inner is not None:
        raise ValueError("attention_mask: given twice, by itself and among tokens; give one of them")
    return tokens["input_ids"], mask if inner is None else inner


def _all_masked(contexts: list[np.ndarray], masks: list[np.ndarray]) -> list[np.ndarray]:
    if len(masks) != len(contexts):
        raise ValueError(f"attention_mask: expected {len(contexts)} rows as in tokens, got {len(masks)}")
    return [_masked(i, *pair) for i, pair in enumerate(zip(contexts, masks, strict=True))]


def _masked(i: int, context: np.ndarray, mask: np.ndarray) -> np.ndarray:
    if mask.shape != context.shape or mask.ndim != 1:
        raise ValueError(
            f"attention_mask: expected the shape of the tokens, {context.shape}, got {mask.shape} at context {i}"
        )
    kept = np.flatnonzero(mask)
    if not np.isin(mask, (0, 1)).all() or not len(kept) or kept[-1] - kept[0] != len(kept) - 1:
        raise ValueError(
            f"attention_mask: expected 0 at padding and 1 at the tokens of the text, one stretch of them, got "
            f"{str(mask.tolist())[:60]} at context {i}"
        )
    return context[kept[0] : kept[-1] + 1]


def _refuse_padding(table: np.ndarray, pad: int, allowed: int | None) -> None:
    """ValueError where rows (contexts, positions) begin or end with the padding id."""
    if table.ndim != 2 or not table.shape[1]:
        return
    for what, same in (("begins", table == pad), ("ends", table[:, ::-1] == pad)):
        counts = np.where(same.all(axis=1), table.shape[1], same.argmin(axis=1))
        if counts.max() > (min(1, counts.min()) if allowed is None else allowed):
            i = int(counts.argmax())
            raise ValueError(
                f"tokens: row {i} {what} with {counts[i]} times the padding id {pad}, which would be taken for text; "
                "give all that the tokenizer returns (input_ids and attention_mask), or attention_mask=...; where "
                "it is text, attention_mask=numpy.ones_like(tokens) says so"
            )


def _check_context(i: int, context: np.ndarray, n_vocab: int | None, longest: int | None) -> None:
    if context.ndim != 1 or context.dtype.kind not in "iu":
        raise ValueError(
            f"tokens: expected contexts of integer ids, got shape {context.shape} of {context.dtype} "
            f"at context {i}; tokenize(text, tokenizer) makes them from text"
        )
    low, high = int(context.min()), int(context.max())
    if low < 0 or (n_vocab and high >= n_vocab):
        raise ValueError(
            f"tokens: id {low if low < 0 else high} in context {i} is outside the model's vocabulary "
            f"of {n_vocab}; use the model's own tokenizer"
        )
    if longest and len(context) > longest:
        raise ValueError(
            f"tokens: context {i} has {len(context)} tokens, the model takes {longest}; "
            "cut the text with tokenize(text, tokenizer, context_length=...)"
        )
