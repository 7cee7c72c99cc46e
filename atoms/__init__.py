"""atoms: which units does a language model compute with?"""

from . import activations, controls, recovery, theory
from ._config import get_num_threads, set_num_threads, show_config
from ._version import __version__
from .metric import AtomicInnerProduct
from .recovery import SparseCoder
from .sae import SparseAutoencoder, TrainingDiverged, fit_many

__all__ = [
    "AtomicInnerProduct",
    "SparseAutoencoder",
    "SparseCoder",
    "TrainingDiverged",
    "__version__",
    "activations",
    "controls",
    "fit_many",
    "get_num_threads",
    "recovery",
    "set_num_threads",
    "show_config",
    "theory",
]
