"""The one progress bar, for whatever takes longer than a glance."""

from __future__ import annotations

import functools
import warnings
from typing import Any

__all__ = ["progress_bar"]


@functools.cache
def _tqdm() -> Any:
    with warnings.catch_warnings():
        # in a notebook without ipywidgets tqdm says so and draws with text, which is all that is wanted
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm
    return tqdm


def progress_bar(
    what: str, total: int, unit: str, *, verbose: bool, first: int = 0, keep: bool = True
) -> Any:
    """A bar on standard error, or a widget in a notebook that has them; with `verbose` False it shows nothing.

    `first` steps are done already; without `keep` it goes when it is through.
    """
    return _tqdm()(
        desc=what,
        total=total,
        initial=first,
        unit=unit,
        unit_scale=total >= 100_000,
        disable=not verbose,
        leave=keep,
    )
