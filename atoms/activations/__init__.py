"""Activations of a language model: text to tokens, tokens to rows, rows in memory, on disk or on the run.

`capture` runs a model over tokens with PyTorch hooks: one row per token for each layer asked for, as
`Activations` (arrays in memory or mapped) or as an `ActivationStore` (checked shards on disk, read back
shuffled). `ActivationStream` trains from the running model and keeps nothing. Nothing else in the package
needs PyTorch: rows from hooks of your own go straight into ``sae.fit(tensor.numpy())``.
"""

from ._capture import capture

# Under an alias of the same name: for other rooms, not for users
from ._hooks import Forward as Forward
from ._hooks import Model as Model
from ._hooks import Pass as Pass
from ._hooks import check_shape as check_shape
from ._models import decoder_blocks, language_reference, load_model, read_text, smollm2, tokenize
from ._store import ActivationStore, StoredRows
from ._stream import ActivationStream
from ._table import MANIFEST as MANIFEST
from ._table import Activations
from ._table import Key as Key

__all__ = [
    "ActivationStore",
    "ActivationStream",
    "Activations",
    "StoredRows",
    "capture",
    "decoder_blocks",
    "language_reference",
    "load_model",
    "read_text",
    "smollm2",
    "tokenize",
]
