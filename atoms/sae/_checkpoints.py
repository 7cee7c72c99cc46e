"""Checkpoints of several autoencoders trained in one pass: all of them of one step, whenever the process is killed.

All are first written beside their own names, then renamed. A kill in between leaves some files of the new step
under the one name and some under the other, which `settle` puts right.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .._files import only_user, sync_folder
from ._saving import steps_in

Path_ = str | os.PathLike[str]


@contextlib.contextmanager
def held(paths: Sequence[Path_ | None]) -> Iterator[None]:
    """These files are this run's alone, can be written, and are of one step.

    Raises
    ------
    OSError, ValueError
        As `only_user` and `settle` do, and for a path that is there twice.
    """
    given = [path for path in paths if path is not None]
    if len({os.path.abspath(path) for path in given}) < len(given):
        raise ValueError("checkpoints: expected another path for each autoencoder")
    with contextlib.ExitStack() as locks:
        for path in given:
            locks.enter_context(only_user(path, "checkpoint"))
        if len(paths) > 1:
            settle(paths)
        yield


def settle(paths: Sequence[Path_ | None]) -> None:
    """Bring all files to the last step that all of them have, under whichever of its two names.

    Raises
    ------
    ValueError
        Where there is none.
    """
    given = [path for path in paths if path is not None]
    if any(map(os.path.exists, given)):
        files = [_by_step(path) for path in paths]
        common = set.intersection(*map(set, files))
        if not common:
            stopped = sorted({step for found in files for step in found})
            raise ValueError(
                f"checkpoints: they stopped at different steps {stopped}; remove them and start again"
            )
        for found in files:
            file, path = found[max(common)]
            if file != path:
                os.replace(file, path)
    for path in given:
        _beside(path).unlink(missing_ok=True)


def write(saves: Sequence[tuple[Path_, Callable[[Path_], None]]]) -> None:
    """Write each file by its function."""
    if len(saves) == 1:
        path, save = saves[0]
        save(path)
        return
    try:
        for path, save in saves:
            save(_beside(path))
    except BaseException:
        for path, _ in saves:
            _beside(path).unlink(missing_ok=True)
        raise
    for path, _ in saves:
        os.replace(_beside(path), path)
    for folder in {Path(path).parent for path, _ in saves}:
        sync_folder(folder)


def _beside(path: Path_) -> Path:
    return Path(path).with_name(f".{Path(path).name}.next")


def _by_step(path: Path_ | None) -> dict[int, tuple[Any, Any]]:
    """Which file holds which step, and the name that it should have; no file is step 0."""
    if path is None:
        return {0: (None, None)}
    files = [file for file in (_beside(path), Path(path)) if file.exists()]
    return {steps_in(file): (file, Path(path)) for file in files} or {0: (None, None)}
