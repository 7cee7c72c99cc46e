"""Dictionary learning: atoms fitted to sparse codes that no encoder gives.

The files, each of which imports only from those above it; spaces, samplers, checkpoints and the loop are `atoms.sae`'s::

    _spikes     Spikes: how atoms fire; their codes, and expectation maximisation
    _learned    Learned: the parameters, checked, and all that a next step depends on; to a file and back
    _start      first atoms
    _steps      codes of a batch, a step, and its record
    _learning   DictionaryLearning, which holds a Learned
"""

from ._learning import DictionaryLearning

__all__ = ["DictionaryLearning"]
