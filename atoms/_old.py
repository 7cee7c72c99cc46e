"""Names of 0.1 that have moved or gone: they work until 0.3, and say what to use instead."""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import sys
import types
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ._checks import outside

__all__ = ["old_keyword", "old_modules", "old_names", "warn_of_old"]

_F = TypeVar("_F", bound=Callable[..., Any])


def warn_of_old(what: str, instead: str) -> None:
    """A DeprecationWarning at the line, outside the package, that uses what is old."""
    said = f"{what} is of 0.1 and goes with 0.3: use {instead}"
    warnings.warn(said, DeprecationWarning, stacklevel=outside())


def old_keyword(old: str, new: str) -> Callable[[_F], _F]:
    """For a function whose argument `new` was called `old`."""

    def decorate(function: _F) -> _F:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if old in kwargs:
                warn_of_old(f"{function.__name__}({old}=...)", f"{new}=")
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return wrapper  # type: ignore[return-value]

    return decorate


def old_names(module: str, moved: Mapping[str, tuple[str, str]]) -> Callable[[str], Any]:
    """A module's ``__getattr__``: old name -> (the module that has it, what to use instead)."""

    def __getattr__(name: str) -> Any:
        if name not in moved:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        place, instead = moved[name]
        warn_of_old(f"{module}.{name}", instead)
        return getattr(importlib.import_module(place), name)

    return __getattr__


class _OldModule(types.ModuleType):
    """What is imported by a module's old name: it has that module's names, and says so when one is used."""

    def __init__(self, name: str, place: str) -> None:
        super().__init__(name, f"The old name of {place}, which is private.")
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.__all__: list[str] = []
        self.place = place

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # the import system and debuggers ask for such
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(self.place), name)
        warn_of_old(f"{self.__name__}.{name}", f"{self.place}.{name}, which may change at any time")
        return value


def old_modules(package: str, moved: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's ``__getattr__`` for modules that are private now: old name -> name.

    They are no files of the package and no attributes of it until they are asked for, so that its listing and
    completion have the new names alone; a function may have the name of an old module.
    """
    for old, new in moved.items():
        sys.modules.setdefault(f"{package}.{old}", _OldModule(f"{package}.{old}", f"{package}.{new}"))

    def __getattr__(name: str) -> Any:
        if name not in moved:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return sys.modules[f"{package}.{name}"]

    return __getattr__
