"""Sparse recovery: the sparse codes themselves, not an encoder's guess.

`omp` and `lasso` are the solvers that one mostly wants, and `code` has all of them by name.
Every function takes signals as rows ``X (n_signals, d_in)`` and a dictionary as rows
``dictionary (n_atoms, d_in)``, and returns codes as a ``scipy.sparse.csr_array``
``(n_signals, n_atoms)`` with ``X`` close to ``codes @ dictionary``. With ``metric`` (a fitted
:class:`atoms.AtomicInnerProduct`) signals and atoms are whitened first, so that every inner product
and norm below is that of the metric; a centred metric also takes its mean from the signals.

Nothing is dropped silently. Signals that cannot be coded give empty rows; ``return_info=True``
returns a :class:`RecoveryInfo` with a status for each signal beside the codes, and a
:class:`RecoveryWarning` counts the signals concerned.

Of signals in an array of Dask codes are one, too, whose blocks are ``scipy.sparse.csr_array`` (``.compute()`` joins them,
``.map_blocks`` goes on with them), and so are the fields of a :class:`RecoveryInfo`; a `support` or `tau` for each signal may be.
Nothing is computed yet. Each worker makes the dictionary ready once, and codes are those of the signals in memory, to the bit
(with SciPy's BLAS in BLIS's place, to its rounding).

Signals are read in blocks, so memory maps of any length will do. Peak memory:

- the dictionary, and its Gram matrix of ``n_atoms ** 2`` numbers, at most `gram_bytes`;
- where OMP screens by 16-bit products, half of both again (the dictionary's share is as large as the dictionary
  itself while it is being made);
- one block of signals with its codes at full width: 64 MB, or 256 signals if those need more;
- the codes returned, twice while the blocks are joined, and some 25 bytes a signal for what became of it.

The files, each of which imports only from those above it::

    _dictionary   Dictionary: atoms made ready once for any number of calls
    _coding       a solver over blocks of signals: codes, statuses, warnings
    _pursuits     OMP, other pursuits, thresholds
    _lasso        the lasso, its path, basis pursuit
    _coder        code, which calls any solver by its name, and SparseCoder, the estimator
"""

from typing import TYPE_CHECKING

from .._old import old_names
from ._coder import SparseCoder as SparseCoder
from ._coder import code
from ._coding import RecoveryInfo as RecoveryInfo  # what ``return_info=True`` gives
from ._coding import RecoveryWarning, Status
from ._dictionary import Dictionary, remake
from ._lasso import lasso, lasso_path
from ._pursuits import omp, threshold_interval

__all__ = [
    "Dictionary",
    "RecoveryWarning",
    "Status",
    "code",
    "lasso",
    "lasso_path",
    "omp",
    "threshold_interval",
]

_remake = remake  # its name in pickles of dictionaries made when this was one module
_METHOD = 'atoms.recovery.code(X, dictionary, method="{}", ...)'
if not TYPE_CHECKING:
    __getattr__ = old_names(
        __name__,
        {
            name: (f"{__name__}.{file}", _METHOD.format(name.removesuffix("_code")))
            for file, names in {
                "_lasso": ("basis_pursuit", "basis_pursuit_denoise"),
                "_pursuits": ("cosamp", "gradient_pursuit", "iht", "matching_pursuit", "threshold_code"),
            }.items()
            for name in names
        },
    )


def __dir__() -> list[str]:
    return [*__all__, "SparseCoder"]
