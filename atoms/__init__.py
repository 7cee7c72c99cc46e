"""atoms: which units does a language model compute with?

Data flows through the rooms `activations`, `metric`, `sae` or `recovery`, `theory`, `report`. `controls` has the
dictionaries that a trained one must be compared with, `evaluation` judges dictionaries inside the model, `io` reads
and writes other tools' models. `reference` has slow NumPy twins of the C core, for the tests.
"""

from . import activations, controls, io, loggers, recovery, theory
from ._config import get_num_threads, set_num_threads, show_config
from ._dictionary_learning import DictionaryLearning
from ._version import __version__
from .evaluation import evaluate
from .io import load
from .metric import AtomicInnerProduct
from .recovery import SparseCoder
from .report import report  # hides the module of that name; `from atoms.report import load` still finds it
from .sae import SparseAutoencoder, TrainingDiverged, fit_many

__all__ = [
    "AtomicInnerProduct",
    "DictionaryLearning",
    "SparseAutoencoder",
    "SparseCoder",
    "TrainingDiverged",
    "__version__",
    "activations",
    "controls",
    "evaluate",
    "fit_many",
    "get_num_threads",
    "io",
    "load",
    "loggers",
    "recovery",
    "report",
    "set_num_threads",
    "show_config",
    "theory",
]
