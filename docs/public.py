"""What is public: the names in the `__all__` of `atoms` and its rooms, and the classes of what comes back from them."""

import contextlib
import importlib
import inspect
import pkgutil
import re
import typing

import atoms

# in the order in which one meets them; others follow by name
ORDER = ["activations", "metric", "sae", "recovery", "theory", "controls", "io", "evaluation"]


def _place(name):
    return (ORDER.index(name) if name in ORDER else len(ORDER), name)


ROOMS = [
    importlib.import_module(f"atoms.{name}")
    for name in sorted((m.name for m in pkgutil.iter_modules(atoms.__path__) if m.name[0] != "_"), key=_place)
]


def room_of(thing):
    """The first room that has a class or function under its own name."""
    return next((m for m in ROOMS if getattr(m, thing.__name__, None) is thing), atoms)


def members(cls):
    """A class's public methods and properties."""
    return [(name, inspect.getattr_static(cls, name)) for name in dir(cls) if not name.startswith("_")]


def named():
    """Classes and functions that some `__all__` has, each once."""
    found = [getattr(m, name) for m in (atoms, *ROOMS) for name in m.__all__]
    return list({id(x): x for x in found if inspect.isclass(x) or inspect.isroutine(x)}.values())


def at_hand(room):
    """Names of a room that `atoms` itself has, and that stand in its `__all__` alone."""
    found = {name: getattr(atoms, name) for name in atoms.__all__}
    return [
        n
        for n, x in found.items()
        if hasattr(x, "__module__") and room_of(x) is room and n not in room.__all__
    ]


def _hints(thing):
    with contextlib.suppress(NameError, TypeError):  # types that only a type checker imports; no annotations
        return typing.get_type_hints(thing)
    return {}


def _answer(function):
    """What a function returns by its annotation, and classes that its docstring says it returns."""
    said = re.search(r"^Returns\n-+\n(.*?)(?=^\w[^\n]*\n---|\Z)", inspect.getdoc(function) or "", re.S | re.M)
    names = re.findall(r"\b[A-Z]\w+", said[1]) if said else []
    return [_hints(function).get("return"), *(getattr(m, name, None) for name in names for m in ROOMS)]


def _answers(thing):
    """What a function returns, or a class's methods, properties and fields do: annotations and classes."""
    if not inspect.isclass(thing):
        return _answer(thing)
    found = [kind for name, kind in _hints(thing).items() if not name.startswith("_")]
    functions = [m.fget if isinstance(m, property) else getattr(m, "__func__", m) for _, m in members(thing)]
    return found + [kind for f in functions if callable(f) for kind in _answer(f)]


def _classes(annotation):
    if inspect.isclass(annotation) and annotation.__module__.startswith("atoms."):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _classes(part)


def returned():
    """Classes that stand in no `__all__`, of what public functions, methods and fields give back."""
    known = named()
    found, todo = {}, list(known)
    while todo:
        for cls in (c for annotation in _answers(todo.pop()) for c in _classes(annotation)):
            base = any(
                inspect.isclass(x) and issubclass(x, cls) for x in known
            )  # of `fit`, which returns itself
            if not base and cls not in found:
                found[cls] = None
                todo.append(cls)
    return sorted(found, key=lambda c: c.__name__)
