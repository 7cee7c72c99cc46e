"""Activations of a language model: text to tokens, tokens to rows, rows in memory, on disk or on the run.

`capture` runs a model over tokens with PyTorch hooks: one row per token for each layer asked for, as
`Activations` (arrays in memory or mapped) or as an `ActivationStore` (checked shards on disk, read back
shuffled). `ActivationStream` trains from the running model and keeps nothing; `BlockSource` is what both are, and
the base of a buffer of your own. PyTorch is needed to run the model, not to train: tensors from hooks of your own
go straight into ``sae.fit(tensor)`` or, one batch after the other, ``sae.partial_fit(tensor)``.

The files, each of which imports only from those above it::

    _models     text, tokens, and models that Transformers loads
    _table      Activations: rows in memory, or mapped from a folder
    _contexts   what users give as tokens, without padding
    _hooks      Model, Pass: where a model's activations are, and how it is run over batches
    _far        FarModel: a model that the workers of a cluster have each for themselves
    _store      ActivationStore, StoredRows: shards on disk
    _stream     ActivationStream: rows from the running model
    _capture    capture
"""

from .._rows import BlockSource, Sites
from ._capture import capture

# `as` the same name: for other modules of the package, not for users, so not in __all__
from ._far import FarModel as FarModel
from ._hooks import Forward as Forward
from ._hooks import Model as Model
from ._hooks import Pass as Pass
from ._hooks import check_shape as check_shape
from ._models import decoder_blocks as decoder_blocks
from ._models import import_torch as import_torch
from ._models import language_reference, load_model, smollm2, tokenize
from ._models import read_text as read_text
from ._store import ActivationStore
from ._store import StoredRows as StoredRows  # what a store gives
from ._stream import ActivationStream
from ._table import MANIFEST as MANIFEST
from ._table import Activations
from ._table import Key as Key

__all__ = [
    "ActivationStore",
    "ActivationStream",
    "Activations",
    "BlockSource",
    "Sites",
    "capture",
    "language_reference",
    "load_model",
    "smollm2",
    "tokenize",
]


def __dir__() -> list[str]:
    return __all__
