"""The atomic inner product: the metric in which activations look isotropic."""

from ._errors import EigenvalueErrors
from ._geometry import AngleHistogram
from ._inner_product import AtomicInnerProduct
from ._inner_product import from_state as from_state  # for models that carry their metric in their own files
from ._inner_product import state_of as state_of

__all__ = ["AngleHistogram", "AtomicInnerProduct", "EigenvalueErrors"]
