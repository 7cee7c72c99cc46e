"""Sparse autoencoders, trained by the C core on whitened activations.

The files, each of which imports only from those above it::

    _settings      Settings: the parameters, checked, and what follows from them
    _model         Model: the core's weights and optimiser, by name; batches to codes and back
    _space         TrainingSpace: rows and weights to the model's coordinates and back
    _start         first weights and thresholds
    _steering      Control, Steering: one step, and what follows from its figures for the next
    _calibration   the factor by which thresholds meet an L0 on given rows
    _saving        Trained (space, model, control, history, ...): to a file and back
    _hub           the same file on the Hugging Face hub, with a card
    _checkpoints   the files of one run: locked, and of one step
    _training      Run, train: steps, history, checkpoints, of one autoencoder or of several in one pass
    _module        TorchSAE, the same as a PyTorch module, and TorchDictionary; the one file that imports torch
    _in_model      InModel: the methods for the model that the activations came from, PretrainedSAE's too; Described, the one
                   that DictionaryLearning has as well
    _autoencoder   SparseAutoencoder, which holds a Trained, and fit_many
"""

from ._autoencoder import SparseAutoencoder as SparseAutoencoder
from ._autoencoder import fit_many as fit_many
from ._training import TrainingDiverged as TrainingDiverged

__all__: list[str] = []  # they stand in that of `atoms`


def __dir__() -> list[str]:
    return ["SparseAutoencoder", "TrainingDiverged", "fit_many"]
