"""What can be said of a dictionary and its codes.

Explained variance; coherence and stability; certificates of uniqueness and recovery; intervals;
agreement of dictionaries.
"""

from ._certificates import DictionaryCertificate, SampleCertificates, babel, certificate, certify
from ._coherence import Coherence, coherence, welch_bound
from ._intervals import Interval, explained_variance_interval, stability_interval
from ._matching import Matching, match_dictionaries, pairwise_mcc, subspace_overlap
from ._stability import Stability, stability
from ._variance import CONVENTIONS, ExplainedVariance, ExplainedVarianceResult, explained_variance

__all__ = [
    "CONVENTIONS",
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
