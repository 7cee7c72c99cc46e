"""Names of 0.1 that have moved or gone: they work until 0.3, and say what to use instead."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from ._checks import outside

__all__ = ["old_names", "warn_of_old"]


def warn_of_old(what: str, instead: str) -> None:
    """A DeprecationWarning at the line, outside the package, that uses what is old."""
    said = f"{what} is of 0.1 and goes with 0.3: use {instead}"
    warnings.warn(said, DeprecationWarning, stacklevel=outside())


def old_names(module: str, moved: Mapping[str, tuple[str, str]]) -> Callable[[str], Any]:
    """A module's ``__getattr__``: old name -> (the module that has it, what to use instead)."""

    def __getattr__(name: str) -> Any:
        if name not in moved:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        place, instead = moved[name]
        warn_of_old(f"{module}.{name}", instead)
        return getattr(importlib.import_module(place), name)

    return __getattr__
