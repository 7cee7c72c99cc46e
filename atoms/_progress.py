"""The one progress bar, for whatever takes longer than a glance."""

from __future__ import annotations

import functools
import os
import threading
from typing import Any

import numpy as np

from ._config import warnings_as

__all__ = ["progress_bar"]

# A module that another thread is importing at a fork stays locked in the child, for ever: forks wait until it is there.
_importing = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_importing.acquire,
        after_in_parent=_importing.release,
        after_in_child=_importing.release,
    )


@functools.cache
def _tqdm() -> Any:
    # in a notebook without ipywidgets tqdm says so and draws with text, which is all that is wanted
    with _importing, warnings_as("ignore"):
        from tqdm.auto import tqdm
    if hasattr(os, "register_at_fork"):  # another thread may be drawing its bar at the fork
        os.register_at_fork(after_in_child=lambda: tqdm.set_lock(threading.RLock()))
    return tqdm


class _Silent:
    """A bar that shows nothing, and needs neither tqdm nor its locks."""

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *raised: object) -> None:
        pass

    def update(self, n: int = 1) -> None:
        pass

    def set_postfix(self, *said: object, **options: object) -> None:
        pass

    set_postfix_str = set_postfix


def progress_bar(
    what: str, total: int, unit: str, *, verbose: bool, first: int = 0, keep: bool = True
) -> Any:
    """A bar on standard error, or a widget in a notebook that has them; with `verbose` False it shows nothing.

    `first` steps are done already; without `keep` it goes when it is through.
    """
    if not isinstance(verbose, (int, np.integer, np.bool_)):
        raise TypeError(f"verbose: expected True or False, got {verbose!r}")
    if not verbose:
        return _Silent()
    return _tqdm()(desc=what, total=total, initial=first, unit=unit, unit_scale=total >= 100_000, leave=keep)
