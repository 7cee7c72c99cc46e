"""Statistics of a dictionary and its codes: explained variance, coherence, certificates, stability, agreement.

The files, each of which imports only from those above it::

    _variance       explained variance, in named conventions
    _coherence      coherence: cosines of all pairs of atoms, and their quantiles
    _certificates   certificates of uniqueness and recovery; Babel's function
    _stability      the paper's q*, its curve and its ceilings
    _intervals      bootstrap intervals
    _matching       agreement of two dictionaries
    _consensus      what several agree on
"""

# `as` the same name: public, but in no `__all__`. They are classes of results, and conventions that
# `explained_variance` names
from ._certificates import DictionaryCertificate as DictionaryCertificate
from ._certificates import SampleCertificates as SampleCertificates
from ._certificates import babel, certificate, certify
from ._coherence import Coherence as Coherence
from ._coherence import coherence, welch_bound
from ._consensus import Consensus as Consensus
from ._consensus import consensus
from ._intervals import Interval as Interval
from ._intervals import explained_variance_interval, stability_interval
from ._matching import Matching as Matching
from ._matching import match_dictionaries, pairwise_mcc, subspace_overlap
from ._stability import Stability as Stability
from ._stability import stability
from ._variance import CONVENTIONS as CONVENTIONS
from ._variance import ExplainedVariance, explained_variance
from ._variance import ExplainedVarianceResult as ExplainedVarianceResult

__all__ = [
    "ExplainedVariance",
    "babel",
    "certificate",
    "certify",
    "coherence",
    "consensus",
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
