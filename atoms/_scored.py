"""What estimators share whose codes are written over atoms: reconstructions, and how much they explain."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from ._estimator import Estimator
from ._frames import without_frames
from ._rows import Blocks, as_now, finite_blocks, is_dask
from .theory import ExplainedVariance
from .theory._variance import seen_beside

__all__ = ["Scored"]


class Scored(Estimator):
    """A subclass has `metric_`, `_codes` and `inverse_transform`."""

    metric_: Any
    num_threads: int | None
    _gives_codes = True

    def _codes(self, X: np.ndarray) -> sp.csr_array:
        """Codes of rows that have been checked."""
        raise NotImplementedError

    def inverse_transform(self, codes: Any) -> np.ndarray:
        raise NotImplementedError

    def reconstruct(self, X: Any) -> np.ndarray:
        """What its atoms make of activations: (n, d_in), ``inverse_transform(transform(X))``."""
        return self.inverse_transform(without_frames(self)(X))

    def score(self, X: Any, y: Any = None) -> float:
        """Share of the variance of X that is explained: pass rows that `fit` has not seen.

        ``1 - sum |x_hat - x|^2 / sum |x - mean|^2``, the mean that of X, norms in `metric_` where there is one. It is
        what `atoms.theory.explained_variance` calls ``"metric_centered"``, without a metric ``"centered"``, and for a
        `SparseAutoencoder` what ``history_["explained_variance_val"]`` records. 1 is perfect, 0 no better than the mean.

        Parameters
        ----------
        X : (n, d_in) array, tensor or memory map, or whatever else `transform` takes
            Activations. They are read once, block by block.
        y : ignored
            For scikit-learn's pipelines.

        Notes
        -----
        More active latents explain more: a search that maximises this takes the largest `target_l0` or `l0` it is
        offered. Compare at one L0, or search by what the codes are for. Figures under different metrics are in
        different units.
        """
        self._check_fitted()
        found = ExplainedVariance(metric=self.metric_, num_threads=self.num_threads)
        if is_dask(X):
            for part in Blocks(X).gathered(_explained, as_now(self), found):
                found.merge(part)
            return float(found.result().total)
        for block in finite_blocks(self._check_rows(X, reset=False)):
            found.update(block, self.inverse_transform(self._codes(block)))
        return float(found.result().total)


def _explained(block: Any, estimator: Scored, empty: ExplainedVariance) -> ExplainedVariance:
    """Of a block in a task: what the estimator's codes explain of its rows."""
    return seen_beside(block, estimator.inverse_transform(without_frames(estimator)(block)), empty)
