"""A model that workers have each for themselves."""

from __future__ import annotations

import importlib
import pickle
import threading
from typing import Any

from ._hooks import Pass
from ._models import import_torch


class FarModel:
    """A model, or a function that makes one, for whoever it is sent to; made once in each process.

    A worker's threads share it, and its hooks are of one pass alone: `lock` is to be held meanwhile. A worker hands it on to
    another as it came: with the hooks of a pass that is under way, it would bring them along.
    """

    def __init__(self, model: Any) -> None:
        self.given = model
        self._made: Any = None
        self._pickled: bytes | None = None
        self.lock = threading.RLock()

    def __getstate__(self) -> Any:
        if self._pickled is None:
            cloudpickle: Any = importlib.import_module("cloudpickle")  # which Dask needs, too
            self._pickled = cloudpickle.dumps(self.given, protocol=4)
        return self._pickled

    def __setstate__(self, pickled: Any) -> None:
        vars(self).update(vars(FarModel(pickle.loads(pickled))))
        self._pickled = pickled

    def model(self) -> Any:
        """The model itself."""
        with self.lock:
            if self._made is None:
                module = isinstance(self.given, import_torch().nn.Module)
                self._made = self.given if module or not callable(self.given) else self.given()
            return self._made

    def plan(self, tokens: Any, *settings: Any) -> Pass:
        """A pass of it over these contexts; `settings` are the other arguments of `Pass`."""
        return Pass(self.model(), tokens, *settings)


class FarPass(FarModel):
    """A pass of it over contexts that are known beforehand; `settings` are the other arguments of `Pass`."""

    def __init__(self, model: Any, tokens: Any, settings: tuple[Any, ...]) -> None:
        super().__init__(model)
        self.tokens, self.settings = tokens, settings
        self._pass: Pass | None = None

    def __getstate__(self) -> Any:
        return super().__getstate__(), self.tokens, self.settings

    def __setstate__(self, state: Any) -> None:
        pickled, tokens, settings = state
        vars(self).update(vars(FarPass(pickle.loads(pickled), tokens, settings)))
        self._pickled = pickled

    def whole(self) -> Pass:
        """That pass."""
        with self.lock:
            if self._pass is None:
                self._pass = self.plan(self.tokens, *self.settings)
            return self._pass
