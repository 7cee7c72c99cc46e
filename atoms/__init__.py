"""atoms: which units does a language model compute with?

Data flows through the rooms `activations`, `metric`, `sae` or `recovery`, `theory`, `report`. `controls` has the
dictionaries that a trained one must be compared with, `evaluation` judges dictionaries inside the model, `io` reads
and writes other tools' models.
"""

from typing import TYPE_CHECKING

try:
    from . import _core  # noqa: F401  first: without it nothing below can be, and in a sub-interpreter it says so
except ImportError as error:
    if "cannot import name" not in str(error):
        raise  # it is there and does not load: the loader says why
    raise ImportError(
        f"the C core of the atoms in {__path__[0]} is not built for this Python. Run `pip install -e .` in the folder "
        "above; or, to use an atoms that is installed, start Python in another folder"
    ) from None

from . import activations, controls, evaluation, io, loggers, metric, recovery, sae, theory
from ._config import get_num_threads, set_num_threads, show_config
from ._dictionary import DictionaryLearning
from ._old import old_modules
from ._report import report
from ._steering import steer
from ._version import __version__ as __version__
from .evaluation import evaluate
from .io import load
from .metric import AtomicInnerProduct
from .recovery import SparseCoder
from .sae import SparseAutoencoder, TrainingDiverged, fit_many

__all__ = [
    "AtomicInnerProduct",
    "DictionaryLearning",
    "SparseAutoencoder",
    "SparseCoder",
    "TrainingDiverged",
    "evaluate",
    "fit_many",
    "get_num_threads",
    "load",
    "report",
    "set_num_threads",
    "show_config",
    "steer",
]
_ROOMS = (activations, controls, evaluation, io, loggers, metric, recovery, sae, theory)

if not TYPE_CHECKING:
    _REPORT = (
        "cells config cost data figures jobs kinds monosemanticity plan run scoring sentences tables writing"
    )
    __getattr__ = old_modules(
        __name__,
        {
            **{name: f"_{name}" for name in ("demo", "plot", "reference", "report")},
            **{f"report.{name}": f"_report.{name}" for name in _REPORT.split()},
        },
    )


def __dir__() -> list[str]:
    return [*__all__, *(room.__name__.removeprefix("atoms.") for room in _ROOMS)]
