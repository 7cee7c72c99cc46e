"""The paper's tables and figures for a model, each figure beside the controls that it needs.

``atoms.report(config, output)`` runs it, as does ``python -m atoms report``. Here are its parts:
`load` and `READY` configurations, `estimate` of the cost, `Context` and `EmbeddingJudge` for judges.
"""

from .config import READY, Config, Frontier, Grid, Monosemanticity, load
from .cost import Estimate, estimate
from .monosemanticity import Context, EmbeddingJudge
from .run import report

__all__ = [
    "READY",
    "Config",
    "Context",
    "EmbeddingJudge",
    "Estimate",
    "Frontier",
    "Grid",
    "Monosemanticity",
    "estimate",
    "load",
    "report",
]
