"""The paper's tables and figures for a model, each figure beside the controls that it needs.

``atoms.report(config, output)`` runs it, as does ``python -m atoms report``. All else is private.

The files, each of which imports only from those above it::

    kinds             the kinds of dictionary that are compared: one row of a table for each
    config            Config and the ready ones
    scoring           how a dictionary is scored, in the demo too
    data              activations: captured once, then read by the names of their parts
    cells             what the jobs compute
    jobs              jobs with results on disk, run side by side, resumed
    plan              which jobs a configuration needs
    cost              estimate
    monosemanticity   top contexts of latents as pages, and their scores
    tables            rows from the jobs' results, and what is printed of them
    figures           pictures
    sentences         every sentence about the outcome, computed
    writing           all of it as files
    run               report: capture, plan, jobs, writing
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
