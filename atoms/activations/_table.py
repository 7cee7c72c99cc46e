"""Rows of activations, in memory or mapped from a folder."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from .._checks import check_between_0_and_1, check_count
from .._files import as_path, check_tensor, map_npy, plain_name, read_json, read_npz, reading, replacing
from .._shown import Shown, Table
from ._models import require

__all__ = ["Activations"]

Key = tuple[Any, str]  # (layer, site), or (name of a module, "output")

MANIFEST = "activations.json"
VERSION = 1
INDEX = ("token_ids", "contexts", "positions")


@dataclasses.dataclass(eq=False, repr=False)
class Activations(Shown):
    """Rows of activations, one per token, aligned over layers.

    ``activations[15]`` is layer 15 at the first site, ``activations[15, "mlp"]`` names the site,
    ``activations["blocks.3.hook_resid_post"]`` a module that was asked for by name.

    Attributes
    ----------
    arrays : dict
        (layer, site) -> array (n, d), in memory or mapped from disk.
    norms : dict
        (layer, site) -> Euclidean norm of every row, float64 (n,).
    token_ids, contexts, positions : ndarray of int64, shape (n,)
        What each row is: its token, the number of its context, and its position there.
    massive_multiple : float
        A row is massive when its norm exceeds so many times the layer's median norm.
    massive_counts : dict
        (layer, site) -> massive tokens among those captured, whether they were left out or not.
    n_dropped_first, n_dropped_massive : int
        Tokens left out: first ones of their contexts, and massive ones.
    seconds : float
        Time the capture took.
    compute_dtype : str or None
        In which the model multiplied, where that was not the dtype of its weights.
    """

    arrays: dict[Key, np.ndarray]
    norms: dict[Key, np.ndarray]
    token_ids: np.ndarray
    contexts: np.ndarray
    positions: np.ndarray
    massive_multiple: float = 10.0
    massive_counts: dict[Key, int] = dataclasses.field(default_factory=dict)
    n_dropped_first: int = 0
    n_dropped_massive: int = 0
    seconds: float = 0.0
    compute_dtype: str | None = dataclasses.field(default=None, init=False)  # capture's to say

    def __len__(self) -> int:
        return len(self.token_ids)

    def __repr__(self) -> str:
        places = ", ".join(
            f"{layer} {site}: {a.shape[1]} columns" for (layer, site), a in self.arrays.items()
        )
        return f"Activations({len(self):,} rows, {places})"

    def _table(self) -> Table:
        massive = {key: int(mask.sum()) for key, mask in self.massive().items()}
        rows = [
            (f"{layer} {site}", len(a), a.shape[1], a.dtype, _median(self.norms.get((layer, site))),
             massive.get((layer, site)))
            for (layer, site), a in self.arrays.items()
        ]  # fmt: skip
        head = "layer", "rows", "columns", "type", "median norm", "massive"
        return Table("Activations", rows, head, self.summary())

    def __getitem__(self, key: int | str | Key) -> np.ndarray:
        if not isinstance(key, tuple):
            key = (key, self.sites[0])
        if key not in self.arrays:
            known = ", ".join(f"{layer} {site}" for layer, site in self.arrays)
            raise KeyError(f"no activations of layer {key[0]} {key[1]}; captured were: {known}")
        return self.arrays[key]

    @property
    def layers(self) -> list[Any]:
        """Layers (or names of modules) captured, in the order asked for."""
        return list(dict.fromkeys(layer for layer, _ in self.arrays))

    @property
    def sites(self) -> list[str]:
        """Sites captured, in the order asked for."""
        return list(dict.fromkeys(site for _, site in self.arrays))

    def massive(self) -> dict[Key, np.ndarray]:
        """(layer, site) -> mask of massive rows, bool (n,)."""
        return {
            key: norms > self.massive_multiple * np.median(norms) if len(norms) else np.zeros(0, bool)
            for key, norms in self.norms.items()
        }

    def take(self, rows: np.ndarray) -> Activations:
        """The rows that a mask or an index selects, copied into memory."""
        taken = dataclasses.replace(
            self,
            arrays={key: np.asarray(a[rows]) for key, a in self.arrays.items()},
            norms={key: a[rows] for key, a in self.norms.items()},
            **{name: getattr(self, name)[rows] for name in INDEX},
        )
        taken.compute_dtype = self.compute_dtype
        return taken

    def without_massive(self) -> Activations:
        """Leave out every token that is massive at any captured layer: rows stay aligned."""
        massive = np.any(list(self.massive().values()), axis=0)
        left = self.take(~massive)
        left.n_dropped_massive = self.n_dropped_massive + int(massive.sum())
        return left

    def held_out(self, fraction: float = 0.2, n_chunks: int = 20) -> np.ndarray:
        """Mask of held-out rows: whole contiguous chunks of text, never single tokens.

        The contexts are cut in order into `n_chunks` contiguous chunks of about the same number of
        contexts, and evenly spaced chunks are held out. Tokens of one context see each other, so
        a split by random tokens would put near-copies of training rows into the held-out part.

        Parameters
        ----------
        fraction : float
            Share of the chunks to hold out, in (0, 1).
        n_chunks : int
            Chunks, at least 2; fewer where there are fewer contexts.

        Raises
        ------
        ValueError
            There is one context only: it cannot be split without leaking.
        """
        check_between_0_and_1(fraction, "fraction")
        if check_count(n_chunks, "n_chunks") < 2:
            raise ValueError(f"n_chunks: expected at least 2, got {n_chunks}")
        _, context = np.unique(self.contexts, return_inverse=True)
        n_contexts = int(context.max()) + 1 if len(context) else 0
        if n_contexts < 2:
            raise ValueError(
                f"held_out: a split needs at least 2 contexts, there are {n_contexts}; "
                "capture more text or use a shorter context_length"
            )
        n_chunks = min(n_chunks, n_contexts)
        n_held = min(max(1, round(fraction * n_chunks)), n_chunks - 1)
        chosen = np.floor((np.arange(n_held) + 0.5) * n_chunks / n_held).astype(int)
        return np.isin(context * n_chunks // n_contexts, chosen)

    def summary(self) -> str:
        """One line: what was captured, what was dropped, what is massive."""
        counts = ", ".join(f"layer {layer} {site}: {n}" for (layer, site), n in self.massive_counts.items())
        dropped = f"the first token of each context dropped ({self.n_dropped_first})"
        if not self.n_dropped_first:
            dropped = "first tokens kept"
        if self.n_dropped_massive:
            dropped += f"; {self.n_dropped_massive} massive tokens left out"
        rate = f" at {len(self) / self.seconds:.0f} tokens/s" if self.seconds else ""
        return (
            f"{len(self):,} tokens{rate}; {dropped}; norm above {self.massive_multiple:g} times "
            f"the median at {counts}"
        )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the rows and what they are into a folder; `load` maps them back.

        Raises
        ------
        FileExistsError
            The folder already holds activations.
        """
        folder = new_folder(as_path(folder, "folder"))
        for key, array in self.arrays.items():
            with replacing(folder / file_name(key)) as temporary, open(temporary, "wb") as file:
                np.save(file, storable(array))
        write_index(self, folder)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Activations:
        """Map the activations that `save` or `capture` wrote; rows are read when used.

        Raises
        ------
        FileNotFoundError
            The folder holds no finished capture.
        ValueError
            A file is damaged, or not what this release writes; the message names it.
        """
        folder = as_path(folder, "folder")
        if not (folder / MANIFEST).exists():
            raise FileNotFoundError(
                f"{folder}: no {MANIFEST}: not a finished capture; run capture(..., out=...) again"
            )
        manifest = read_json(folder / MANIFEST)
        if manifest.get("format") != VERSION:
            raise ValueError(
                f"{folder / MANIFEST}: format {manifest.get('format')!r}, this release reads format {VERSION}; "
                "update atoms, or capture again"
            )
        with reading(folder / MANIFEST, cls.__name__):
            massive = {(layer, site): int(n) for layer, site, n in manifest["arrays"]}
            files = {key: folder / file_name(key) for key in massive}
            dtype = row_dtype(manifest["dtype"])
            counts: dict[str, Any] = {name: _TYPES[name](manifest[name]) for name in _TYPES}
            computed = manifest.get("compute_dtype")  # those of before have none
            computed = None if computed is None else row_dtype(computed).name
        columns, _ = read_npz(folder / "index.npz")
        with reading(folder / "index.npz", cls.__name__):
            n = len(columns[INDEX[0]])
            index: dict[str, Any] = {name: check_column(columns, name, n, np.int64) for name in INDEX}
            norms = {key: check_column(columns, f"norms-{key[0]}-{key[1]}", n, np.float64) for key in massive}
        arrays = {key: map_npy(path, stored_dtype(dtype), n).view(dtype) for key, path in files.items()}
        found = cls(arrays=arrays, norms=norms, **index, massive_counts=massive, **counts)
        found.compute_dtype = computed
        return found


def _median(norms: np.ndarray | None) -> float | None:
    return None if norms is None or not len(norms) else float(np.median(norms))


_TYPES: dict[str, type[Any]] = {
    "massive_multiple": float, "n_dropped_first": int, "n_dropped_massive": int, "seconds": float,
}  # fmt: skip


def check_column(columns: dict[str, np.ndarray], name: str, n: int, dtype: Any) -> np.ndarray:
    """A copy of an index's column, which must have n entries of that type."""
    return np.array(check_tensor(columns, name, (n,), np.dtype(dtype)))


def write_index(activations: Activations, folder: Path) -> None:
    """Write which tokens the rows are. The manifest goes last: a folder without one is an unfinished capture."""
    columns = {name: getattr(activations, name) for name in INDEX}
    columns |= {f"norms-{layer}-{site}": norms for (layer, site), norms in activations.norms.items()}
    with replacing(folder / "index.npz") as temporary, open(temporary, "wb") as file:
        np.savez(file, **columns)
    manifest = {
        "format": VERSION,
        "dtype": str(next(iter(activations.arrays.values())).dtype),
        "arrays": [
            [layer, site, activations.massive_counts[layer, site]] for layer, site in activations.arrays
        ],
        **{name: getattr(activations, name) for name in _TYPES},
        "compute_dtype": activations.compute_dtype,
    }
    with replacing(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def file_name(key: Key) -> str:
    """Name of the file that holds one place's rows."""
    return f"{point_name(key)}.npy"


def point_name(key: Key) -> str:
    """A place's name in files: "layer015-residual", or a module's own dotted name and "output".

    Raises
    ------
    ValueError
        The layer or the site has a part that leads out of the folder.
    """
    return plain_name(f"layer{key[0]:03d}-{key[1]}" if isinstance(key[0], int) else f"{key[0]}-{key[1]}")


def new_folder(folder: str | os.PathLike[str]) -> Path:
    """Make a folder that must not hold activations yet."""
    folder = as_path(folder, "out")
    if (folder / MANIFEST).exists():
        raise FileExistsError(f"out: {folder} already holds activations; name another folder or remove it")
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"out: {folder} is a file; name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def row_dtype(name: Any) -> np.dtype:
    """float32, float16 or bfloat16 as a NumPy dtype."""
    if str(name) == "bfloat16":
        bfloat16: np.dtype = np.dtype(require("ml_dtypes", "pip install ml_dtypes").bfloat16)
        return bfloat16
    try:
        dtype: np.dtype | None = np.dtype(name)
    except TypeError:
        dtype = None
    if dtype is None or dtype not in (np.float32, np.float16):
        raise ValueError(f"dtype: expected float32, float16 or bfloat16, got {name!r}")
    return dtype


def stored_dtype(dtype: np.dtype) -> np.dtype:
    """The type in a ``.npy`` file: NumPy's format has no bfloat16, so its bits go in as uint16."""
    return np.dtype(np.uint16) if dtype.name == "bfloat16" else dtype


def storable(array: np.ndarray) -> np.ndarray:
    """The array as `stored_dtype` says."""
    return array.view(stored_dtype(array.dtype))


def checked_norms(key: Key, rows: np.ndarray, dtype: np.dtype, start: int) -> np.ndarray:
    """Euclidean norms (n,) float64 of float32 rows that are finite and fit the dtype, or a ValueError."""
    norms: np.ndarray = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    if not np.isfinite(norms).all():
        row = start + int(np.argmin(np.isfinite(norms)))
        raise ValueError(
            f"layer {key[0]} {key[1]}: the model gave NaN or infinity at row {row}; load it with dtype='float32'"
        )
    if dtype == np.float16 and np.abs(rows).max(initial=0) > np.finfo(np.float16).max:
        raise ValueError(
            f"dtype: layer {key[0]} {key[1]} has values of {np.abs(rows).max():.3g}, beyond float16's 65504; "
            "use dtype='bfloat16' or 'float32'"
        )
    return norms
