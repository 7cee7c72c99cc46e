"""The atomic inner product: the metric in which activations look isotropic.

The files, each of which imports only from those above it::

    _moments         Moments: sums over rows, which streams and machines add to
    _spectrum        from a second moment to its inverse: shrinkage, eigenvalues, powers
    _geometry        rows multiplied by a matrix; angles between rows
    _errors          standard errors of the eigenvalues
    _saving          a metric as named arrays
    _inner_product   AtomicInnerProduct, the estimator
"""

from ._errors import EigenvalueErrors as EigenvalueErrors  # results of methods
from ._geometry import AngleHistogram as AngleHistogram
from ._inner_product import AtomicInnerProduct as AtomicInnerProduct
from ._inner_product import fitted as fitted  # for whatever is fitted under a metric
from ._inner_product import from_state as from_state  # for models that carry their metric in their own files
from ._inner_product import frozen as frozen
from ._inner_product import state_of as state_of

__all__: list[str] = []  # the estimator stands in that of `atoms`


def __dir__() -> list[str]:
    return ["AtomicInnerProduct"]
