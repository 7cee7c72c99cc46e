"""atoms: which units does a language model compute with?"""

from . import activations, controls, io, loggers, recovery, theory
from ._config import get_num_threads, set_num_threads, show_config
from ._version import __version__
from .evaluation import evaluate
from .io import load
from .metric import AtomicInnerProduct
from .recovery import SparseCoder
from .report import report  # the function: its module is imported from, as in `from atoms.report import load`
from .sae import SparseAutoencoder, TrainingDiverged, fit_many

__all__ = [
    "AtomicInnerProduct",
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
