"""Statistics of a dictionary and its codes: explained variance, coherence, certificates, stability, agreement.

The files, each of which imports only from those above it::

    _variance       explained variance, in named conventions
    _coherence      coherence: cosines of all pairs of atoms, and their quantiles
    _certificates   certificates of uniqueness and recovery; Babel's function
    _stability      the paper's q*, its curve and its ceilings
    _intervals      bootstrap intervals
    _matching       agreement of two dictionaries
"""

from ._certificates import DictionaryCertificate, SampleCertificates, babel, certificate, certify
from ._coherence import Coherence, coherence, welch_bound
from ._intervals import Interval, explained_variance_interval, stability_interval
from ._matching import Matching, match_dictionaries, pairwise_mcc, subspace_overlap
from ._stability import Stability, stability
from ._variance import CONVENTIONS as CONVENTIONS  # not in __all__: `explained_variance` names them
from ._variance import ExplainedVariance, ExplainedVarianceResult, explained_variance

__all__ = [
    "Coherence",
    "DictionaryCertificate",
    "ExplainedVariance",
    "ExplainedVarianceResult",
    "Interval",
    "Matching",
    "SampleCertificates",
    "Stability",
    "babel",
    "certificate",
    "certify",
    "coherence",
    "explained_variance",
    "explained_variance_interval",
    "match_dictionaries",
    "pairwise_mcc",
    "stability",
    "stability_interval",
    "subspace_overlap",
    "welch_bound",
]


def __dir__() -> list[str]:
    return __all__
