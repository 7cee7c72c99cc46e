"""Activations on disk: shards that are written as a stream, checked, and read back shuffled."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .._checks import check_between_0_and_1, check_count
from .._config import ForkedLock
from .._files import as_path, only_user, plain_name, read_json, read_npz, reading, replacing
from .._rows import BlockSource
from .._shown import Shown, Table
from ._far import FarPass
from ._hooks import Pass
from ._table import INDEX, Key, check_column, checked_norms, point_name, row_dtype, stored_dtype

__all__ = ["ActivationStore", "StoredRows"]

MANIFEST = "store.json"
VERSION = 1
BUFFER_ROWS = 65536
_LARGEST_MANIFEST = 1 << 30


# ------------------------------------------------------------------ writing


def write_store(
    folder: Path, plan: Pass, dtype: np.dtype, tokenizer: Any, shard_mb: float, advance: Callable[[int], Any]
) -> ActivationStore:
    """Write what is missing of a store, shard by shard; a finished one is only opened."""
    with _begun(folder, shard_mb, lambda: settings_of(plan, dtype, tokenizer)) as manifest:
        done = _batches(manifest)
        advance(int(plan.sizes[:done].sum()))
        if not manifest["complete"]:
            with plan.hooked() as run:
                while done < len(plan.sizes):
                    number = len(manifest["shards"])
                    shard = _write_shard(folder, plan, run, number, done, dtype, shard_mb, advance)
                    _add(folder, manifest, shard)
                    done = _batches(manifest)
            _finish(folder, manifest)
    return ActivationStore(folder)


def write_store_far(
    folder: Path, far: FarPass, dtype: np.dtype, tokenizer: Any, shard_mb: float, client: Any, bar: Any
) -> ActivationStore:
    """The same by the workers of a Dask client, a shard each at a time; the manifest is written here, in order."""
    # a worker that has it not asks another, or has it made again
    held = client.submit(_same, far, pure=False)
    about = client.submit(_about, held, dtype, tokenizer, pure=False).result()
    settings, sizes, widest, bar.total = about[0], about[1], about[2], int(about[1].sum())
    with _begun(folder, shard_mb, lambda: settings) as manifest:
        done = _batches(manifest)
        bar.update(int(sizes[:done].sum()))
        futures: list[Any] = []
        while done < len(sizes):
            number = len(manifest["shards"]) + len(futures)
            task = held, str(folder.resolve()), number, done, dtype, shard_mb
            futures.append(client.submit(_write_far, *task, pure=False))
            done += _fitting(sizes[done:], widest, dtype, shard_mb)
        try:
            for future in futures:
                _add(folder, manifest, future.result())
                bar.update(manifest["shards"][-1]["rows"])
        finally:
            client.cancel(futures)
        if not manifest["complete"]:
            _finish(folder, manifest)
    return ActivationStore(folder)


def _same(far: FarPass) -> FarPass:
    return far


def _about(far: FarPass, dtype: np.dtype, tokenizer: Any) -> tuple[dict[str, Any], np.ndarray, int]:
    """What a manifest says of a pass, the rows of each batch, and the most columns of a place."""
    with far.lock:
        plan = far.whole()
        with plan.hooked() as run:
            widest = max(rows.shape[1] for rows in run(0).values())
        return settings_of(plan, dtype, tokenizer), plan.sizes, widest


def _write_far(far: FarPass, folder: str, number: int, first: int, dtype: np.dtype, shard_mb: float) -> Any:
    with far.lock:
        plan = far.whole()
        with plan.hooked() as run:
            return _write_shard(Path(folder), plan, run, number, first, dtype, shard_mb, lambda n: None)


@contextlib.contextmanager
def _begun(folder: Path, shard_mb: float, settings: Callable[[], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The manifest of a store that is to have these settings, as far as it has been written; this run's alone."""
    if not shard_mb > 0:
        raise ValueError(f"shard_mb: expected a positive number, got {shard_mb}")
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"store: {folder} is a file; name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    wanted = settings()
    with only_user(folder / MANIFEST, "store"):
        if (folder / MANIFEST).exists():
            manifest = _read_manifest(folder)
            _check_same(folder, manifest, wanted)
            for shard in manifest["shards"]:
                _check_files(folder, manifest, shard)
        else:
            manifest = {**wanted, "complete": False, "seconds": 0.0, "widths": {}, "shards": []}
        for leftover in folder.glob(".*.part"):
            leftover.unlink()
        yield manifest


def _batches(manifest: dict[str, Any]) -> int:
    """Batches in its shards."""
    return sum(len(shard["blocks"]) for shard in manifest["shards"])


def _add(
    folder: Path, manifest: dict[str, Any], written: tuple[dict[str, Any], dict[str, int], float]
) -> None:
    shard, manifest["widths"], seconds = written
    manifest["shards"].append(shard)
    manifest["seconds"] += seconds
    _write_manifest(folder, manifest)


def _finish(folder: Path, manifest: dict[str, Any]) -> None:
    manifest["complete"] = True
    _write_manifest(folder, manifest)


def _fitting(sizes: np.ndarray, widest: int, dtype: np.dtype, shard_mb: float) -> int:
    """How many of these batches a shard holds, by its place of the most columns; one at least."""
    limit = max(1, int(shard_mb * 1e6 / (widest * dtype.itemsize)))
    return max(1, int(np.searchsorted(np.cumsum(sizes), limit, side="right")))


def settings_of(plan: Pass, dtype: np.dtype, tokenizer: Any) -> dict[str, Any]:
    """What decides the rows: equal settings give equal bytes."""
    return {
        "format": "atoms activation store",
        "version": VERSION,
        "model": plan.model.describe(),
        "forward": _describe_forward(plan.model.forward),
        "tokenizer": _describe_tokenizer(tokenizer),
        "tokens": {
            "contexts": len(plan.contexts),
            "rows": plan.n,
            "batches": len(plan.sizes),
            "sha256": plan.digest(),
        },
        "batch_tokens": plan.batch_tokens,
        "drop_first": bool(plan.skip),
        "dtype": dtype.name,
        "compute_dtype": plan.compute_dtype,
        "points": [
            {"layer": key[0], "site": key[1], "hook": plan.model.module_name(key), "name": point_name(key)}
            for key in plan.keys
        ],
    }


def _describe_forward(forward: Any) -> str | None:
    """A name: two functions of one name are not told apart."""
    if forward is None:
        return None
    return f"{forward.__module__}.{getattr(forward, '__qualname__', type(forward).__qualname__)}"


def _describe_tokenizer(tokenizer: Any) -> dict[str, Any] | None:
    if tokenizer is None:
        return None
    about: dict[str, Any] = {
        "class": type(tokenizer).__name__,
        "name": str(getattr(tokenizer, "name_or_path", "") or "") or None,
    }
    if hasattr(tokenizer, "get_vocab"):
        words = sorted(tokenizer.get_vocab().items())
        about["vocabulary"] = len(words)
        about["vocabulary_sha256"] = hashlib.sha256(json.dumps(words).encode()).hexdigest()
    return about


# what may differ between two runs that give the same bytes
_NAMES = {("model", "name"), ("model", "revision"), ("tokenizer", "name")}


def digest_of(settings: dict[str, Any], layer: Any, site: str, blocks: np.ndarray) -> str:
    """SHA-256 of what decides the rows of one place: equal ones for a store and a stream of the same."""
    model = {k: v for k, v in settings["model"].items() if ("model", k) not in _NAMES}
    what = [model, settings["tokens"], settings["batch_tokens"], settings["drop_first"], layer, site]
    if settings.get("compute_dtype"):  # stores of before have none
        what.append(settings["compute_dtype"])
    return hashlib.sha256(json.dumps([*what, blocks.tolist()], sort_keys=True).encode()).hexdigest()


def _check_same(folder: Path, manifest: dict[str, Any], settings: dict[str, Any]) -> None:
    """ValueError where the store was written with settings that give other rows."""
    if "weights_sha256" not in manifest["model"]:
        raise ValueError(
            f"store: {folder} was written by an earlier version, which noted only a sample of the model's weights, so "
            "whether its rows are this model's cannot be told; ActivationStore(folder) opens it if you know, else "
            "name another folder"
        )
    for name, ours in settings.items():
        theirs = manifest.get(name)
        pairs = [(f"{name}", ours, theirs)]
        if isinstance(ours, dict) and isinstance(theirs, dict):
            pairs = [(f"{name} {k}", ours[k], theirs.get(k)) for k in ours if (name, k) not in _NAMES]
        elif name == "tokenizer" and (ours is None or theirs is None):
            continue  # a tokenizer is named for information only: equal token ids are what counts
        for label, mine, other in pairs:
            if mine != other:
                raise ValueError(
                    f"store: {folder} was written with other settings: {label} is {other}, now {mine}; "
                    "use those, or name another folder"
                )


def _write_shard(
    folder: Path,
    plan: Pass,
    run: Callable[[int], dict[Key, np.ndarray]],
    number: int,
    first: int,
    dtype: np.dtype,
    shard_mb: float,
    advance: Callable[[int], Any],
) -> tuple[dict[str, Any], dict[str, int], float]:
    """Write the shard of that number of every place, whole batches from `first` on: what the manifest is to say of it,
    the places' columns, and the seconds it took.
    """
    started = time.perf_counter()
    start = int(plan.sizes[:first].sum())
    found = run(first)  # its width says how many batches a shard takes
    count = _fitting(plan.sizes[first:], max(rows.shape[1] for rows in found.values()), dtype, shard_mb)
    n = int(plan.sizes[first : first + count].sum())
    names = {key: point_name(key) for key in plan.keys}
    norms: dict[Key, list[np.ndarray]] = {key: [] for key in plan.keys}
    crc32: dict[str, list[int]] = {name: [] for name in names.values()}
    with contextlib.ExitStack() as stack:
        files = {
            key: _open_rows(stack, folder / f"{name}-{number:05d}.npy", dtype, (n, found[key].shape[1]))
            for key, name in names.items()
        }
        for batch in range(first, first + count):
            if batch > first:
                found = run(batch)
            for key, name in names.items():
                norms[key].append(checked_norms(key, found[key], dtype, start))
                data = np.ascontiguousarray(found[key].astype(dtype, copy=False)).view(np.uint8).data
                crc32[name].append(zlib.crc32(data))
                files[key].write(data)
            start += int(plan.sizes[batch])
            advance(int(plan.sizes[batch]))
        index = plan.index(range(first, first + count))
        index |= {f"norms-{names[key]}": np.concatenate(parts) for key, parts in norms.items()}
        beside = _write_index(stack, folder / f"index-{number:05d}.npz", index)
        written = {
            names[key]: _on_disk(file, f"{names[key]}-{number:05d}.npy") for key, file in files.items()
        }
        written["index"] = _on_disk(beside, f"index-{number:05d}.npz")
    blocks = plan.sizes[first : first + count].tolist()
    widths = {name: int(found[key].shape[1]) for key, name in names.items()}
    shard = {"rows": n, "blocks": blocks, "files": written, "crc32": crc32}
    return shard, widths, time.perf_counter() - started


def _open_rows(stack: contextlib.ExitStack, path: Path, dtype: np.dtype, shape: tuple[int, int]) -> _Hashed:
    """A NumPy file whose rows are to be written, renamed to `path` when the stack is left."""
    file = stack.enter_context(_Hashed(stack.enter_context(replacing(path))))
    descr = np.lib.format.dtype_to_descr(stored_dtype(dtype))
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file


def _write_index(stack: contextlib.ExitStack, path: Path, index: dict[str, Any]) -> _Hashed:
    """Write which tokens the rows of a shard are; renamed to `path` when the stack is left."""
    packed = io.BytesIO()
    np.savez(packed, **index)
    file = stack.enter_context(_Hashed(stack.enter_context(replacing(path))))
    file.write(packed.getbuffer())
    return file


def _on_disk(file: _Hashed, name: str) -> dict[str, Any]:
    """What the manifest says of a file that has been written."""
    return {"name": name, "bytes": file.tell(), "sha256": file.digest.hexdigest()}


class _Hashed(io.FileIO):
    """A file that knows the SHA-256 of what was written to it."""

    def __init__(self, path: Path):
        super().__init__(path, "w")
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self.digest.update(view)
        left = view
        while len(left):
            left = left[super().write(left) :]
        return len(view)


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    with replacing(folder / MANIFEST) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(json.dumps(manifest, indent=1) + "\n")


# ------------------------------------------------------------------ reading


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.exists():
        raise FileNotFoundError(
            f"{folder}: no {MANIFEST}: not an activation store; capture(..., store=...) writes one"
        )
    try:
        manifest = read_json(path, _LARGEST_MANIFEST)
        if manifest["format"] != "atoms activation store":
            raise ValueError(f"format {manifest['format']!r}")
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{path}: not the manifest of an activation store ({type(error).__name__}: {error}); "
            "remove the folder and capture again"
        ) from error
    version = manifest.get("version")
    if version != VERSION or isinstance(version, bool):
        raise ValueError(f"{path}: version {version}, this release reads version {VERSION}; update atoms")
    with reading(path, "ActivationStore"):
        _check_manifest(manifest)
    return manifest


def _check_manifest(manifest: dict[str, Any]) -> None:
    """ValueError, or whatever `reading` turns into one, where a manifest says what none of ours can say.

    Anybody may have written it: above all it must name no file but those that `capture` writes.
    """
    row_dtype(manifest["dtype"])
    _expect(isinstance(manifest["model"], dict), "model", manifest["model"])
    _expect(isinstance(manifest["complete"], bool), "complete", manifest["complete"])
    _expect(_is_count(manifest["tokens"]["batches"]), "tokens: batches", manifest["tokens"]["batches"])
    _expect(isinstance(manifest["seconds"], (int, float)), "seconds", manifest["seconds"])
    points = [(point["layer"], point["site"]) for point in manifest["points"]]
    names = [point_name(key) for key in points]
    _expect([point["name"] for point in manifest["points"]] == names, "points", manifest["points"])
    _expect(len(set(names)) == len(names) and "index" not in names, "points", names)
    widths = manifest["widths"]
    if manifest["shards"] or manifest["complete"]:
        _expect(sorted(widths) == sorted(names), "widths", widths)
    _expect(all(map(_is_count, widths.values())), "widths", widths)
    for number, shard in enumerate(manifest["shards"]):
        _check_shard(number, shard, widths, row_dtype(manifest["dtype"]).itemsize)


def _check_shard(number: int, shard: dict[str, Any], widths: dict[str, int], itemsize: int) -> None:
    what, blocks = f"shard {number}", shard["blocks"]
    _expect(all(map(_is_count, [shard["rows"], *blocks])), f"{what}: rows", shard["rows"])
    _expect(sum(blocks) == shard["rows"], f"{what}: the rows of its blocks", shard["rows"])
    files = shard["files"]
    _expect(sorted(files) == sorted([*widths, "index"]), f"{what}: files", sorted(files))
    for name, file in files.items():
        ours = f"{name}-{number:05d}.{'npz' if name == 'index' else 'npy'}"
        if plain_name(file["name"]) != ours:
            raise ValueError(f"{what}: its file of {name} is named {file['name']!r}, not {ours!r}")
        _expect(_is_count(file["bytes"]), f"{ours}: bytes", file["bytes"])
        _expect(isinstance(file["sha256"], str), f"{ours}: sha256", file["sha256"])
    for name, width in widths.items():
        crc32, size = shard["crc32"][name], files[name]["bytes"]
        _expect(len(crc32) == len(blocks) and all(map(_is_count, crc32)), f"{what}: crc32", name)
        _expect(size >= shard["rows"] * width * itemsize, f"{what}: bytes of {name}", size)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _expect(well: bool, what: str, found: Any) -> None:
    if not well:
        raise ValueError(f"{what} cannot be {str(found)[:80]}")


def _check_files(folder: Path, manifest: dict[str, Any], shard: dict[str, Any]) -> None:
    """ValueError where a shard's file is missing, or of another size than the manifest says."""
    for file in shard["files"].values():
        path = folder / file["name"]
        size = path.stat().st_size if path.exists() else None
        if size != file["bytes"]:
            state = "is missing" if size is None else f"has {size} bytes, expected {file['bytes']}"
            raise ValueError(f"{path}: {state}; {_remedy(manifest, shard)}")


def _remedy(manifest: dict[str, Any], shard: dict[str, Any]) -> str:
    """What to do about a damaged shard, for messages."""
    number = manifest["shards"].index(shard)
    return (
        "restore it from a copy, or call ActivationStore.discard(folder, "
        f"{number}) and the same capture(..., store=...) again, which writes what follows shard {number} anew"
    )


class ActivationStore(Shown):
    """A folder of activations that `capture` wrote; ``store[15]`` are the rows of layer 15.

    Opening reads the manifest and compares the files' sizes with it; a manifest that names any files but those
    that `capture` writes is refused. Each block of rows is compared with its CRC-32 whenever `StoredRows`
    reads it, and an index with its SHA-256, so what reaches training is what was captured; `verify` reads
    everything and compares the files' SHA-256.

    Parameters
    ----------
    folder : path
        What ``capture(..., store=folder)`` wrote.
    verify : bool
        Call `verify` at once.

    Attributes
    ----------
    folder : Path
    manifest : dict
        ``model`` (class, name, revision, SHA-256 of its weights), ``tokenizer``, ``tokens``
        (counts and SHA-256 of the ids), ``points`` (layer, site, name of the hooked module), ``widths``,
        ``dtype``, ``compute_dtype``, ``drop_first``, ``batch_tokens``, and for each of the ``shards`` its rows, the rows of
        each block (a forward pass), CRC-32 of each block, size and SHA-256 of each file.

    Raises
    ------
    FileNotFoundError
        There is no store, or it is not finished.
    ValueError
        A file is missing or of another size, or the manifest is damaged; the message names the file and says
        what to do.

    Notes
    -----
    A file of rows is an ordinary ``.npy`` file (bfloat16 as the bits in uint16), and an index an ordinary
    ``.npz`` file with token_ids, contexts, positions and the rows' norms.

    Examples
    --------
    >>> import tempfile, torch
    >>> from atoms.activations import capture
    >>> model = torch.nn.Sequential(torch.nn.Embedding(10, 4), torch.nn.Linear(4, 8))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = capture(model, [[1, 2, 3], [4, 5, 6]], "1", store=folder, verbose=False)
    ...     store, sum(len(batch) for batch in store["1"].batches(3, seed=0))
    (ActivationStore(4 rows, float32, 1 output: 8 columns), 4)
    """

    def __init__(self, folder: str | os.PathLike[str], *, verify: bool = False) -> None:
        self.folder = as_path(folder, "folder")
        self.manifest = _read_manifest(self.folder)
        if not self.manifest["complete"]:
            tokens = self.manifest["tokens"]
            done = sum(len(shard["blocks"]) for shard in self.manifest["shards"])
            raise FileNotFoundError(
                f"{self.folder}: {done} of {tokens['batches']} batches captured; "
                "call the same capture(..., store=...) again to go on from there"
            )
        for shard in self.manifest["shards"]:
            _check_files(self.folder, self.manifest, shard)
        self.dtype = row_dtype(self.manifest["dtype"])
        self._index: dict[str, np.ndarray] | None = None
        if verify:
            self.verify()

    def __repr__(self) -> str:
        widths = self.manifest["widths"]
        points = ", ".join(
            f"{p['layer']} {p['site']}: {widths[p['name']]} columns" for p in self.manifest["points"]
        )
        return f"ActivationStore({len(self):,} rows, {self.manifest['dtype']}, {points})"

    def __len__(self) -> int:
        return sum(shard["rows"] for shard in self.manifest["shards"])

    def _table(self) -> Table:
        widths = self.manifest["widths"]
        rows = [
            (f"{p['layer']} {p['site']}", len(self), widths[p["name"]], self.manifest["dtype"])
            for p in self.manifest["points"]
        ]
        model, shards = self.manifest["model"], self.manifest["shards"]
        size = sum(file["bytes"] for shard in shards for file in shard["files"].values())
        about = f"{self.folder}: {len(shards):,} shards, {size / 1e6:,.1f} MB, from {model.get('name') or model.get('class')}"
        return Table("ActivationStore", rows, ("layer", "rows", "columns", "type"), about)

    @property
    def keys(self) -> list[Key]:
        """(layer, site) of what was captured."""
        return [(point["layer"], point["site"]) for point in self.manifest["points"]]

    def __getitem__(self, key: int | str | Key) -> StoredRows:
        layer, site = key if isinstance(key, tuple) else (key, None)
        return self.rows(layer, site)

    def rows(
        self, layer: int | str, site: str | None = None, *, buffer_rows: int = BUFFER_ROWS
    ) -> StoredRows:
        """The rows of a layer, at its first site unless one is named.

        Parameters
        ----------
        layer : int or str
            Number of a block, or name of a module.
        site : str, optional
            "residual", "mlp", "attention" or "output".
        buffer_rows : int
            Rows that are shuffled together: see `StoredRows`.
        """
        for point in self.manifest["points"]:
            if point["layer"] == layer and site in (None, point["site"]):
                return StoredRows(self, point, buffer_rows)
        known = ", ".join(f"{layer} {site}" for layer, site in self.keys)
        raise KeyError(f"no activations of layer {layer} {site or ''}; captured were: {known}")

    def _column(self, name: str) -> np.ndarray:
        if self._index is None:
            parts: dict[str, list[np.ndarray]] = {}
            for shard in self.manifest["shards"]:
                path = self.folder / shard["files"]["index"]["name"]
                try:
                    found, _ = read_npz(path)
                    for column in INDEX:
                        parts.setdefault(column, []).append(
                            check_column(found, column, shard["rows"], np.int64)
                        )
                    for point in self.manifest["points"]:
                        column = f"norms-{point['name']}"
                        parts.setdefault(column, []).append(
                            check_column(found, column, shard["rows"], np.float64)
                        )
                except (ValueError, KeyError) as error:
                    raise ValueError(
                        f"{path}: is damaged ({error}); {_remedy(self.manifest, shard)}"
                    ) from error
                self._check_sha256(shard, shard["files"]["index"])
            self._index = {column: np.concatenate(arrays) for column, arrays in parts.items()}
        return self._index[name]

    @property
    def token_ids(self) -> np.ndarray:
        """Token of each row, int64 (n,)."""
        return self._column(INDEX[0])

    @property
    def contexts(self) -> np.ndarray:
        """Number of each row's context, int64 (n,)."""
        return self._column(INDEX[1])

    @property
    def positions(self) -> np.ndarray:
        """Position of each row in its context, int64 (n,)."""
        return self._column(INDEX[2])

    def norms(self, layer: int | str, site: str | None = None) -> np.ndarray:
        """Euclidean norm of each row before rounding to the store's dtype, float64 (n,)."""
        return self._column(f"norms-{self.rows(layer, site).point['name']}")

    def verify(self) -> None:
        """Read every file and compare its SHA-256.

        Raises
        ------
        ValueError
            The first file that is damaged, and what to do.
        """
        for shard in self.manifest["shards"]:
            _check_files(self.folder, self.manifest, shard)
            for file in shard["files"].values():
                self._check_sha256(shard, file)

    def _check_sha256(self, shard: dict[str, Any], file: dict[str, Any]) -> None:
        digest = hashlib.sha256()
        with open(self.folder / file["name"], "rb") as opened:
            while part := opened.read(1 << 22):
                digest.update(part)
        if digest.hexdigest() != file["sha256"]:
            raise ValueError(
                f"{self.folder / file['name']}: is damaged (SHA-256 {digest.hexdigest()[:12]}..., "
                f"expected {file['sha256'][:12]}...); {_remedy(self.manifest, shard)}"
            )

    @staticmethod
    def discard(folder: str | os.PathLike[str], shard: int) -> None:
        """Forget a shard and those after it, of a finished or unfinished store, so that `capture` writes
        them anew.

        Raises
        ------
        ValueError
            There is no shard of that number, or the manifest is none of ours.
        """
        folder = as_path(folder, "folder")
        with only_user(folder / MANIFEST, "store"):
            manifest = _read_manifest(folder)
            if not 0 <= shard < len(manifest["shards"]):
                raise ValueError(
                    f"shard: {folder} has shards 0 to {len(manifest['shards']) - 1}, got {shard}"
                )
            gone = manifest["shards"][shard:]
            manifest["shards"], manifest["complete"] = manifest["shards"][:shard], False
            _write_manifest(folder, manifest)
            for old in gone:
                for file in old["files"].values():
                    (folder / file["name"]).unlink(missing_ok=True)


class StoredRows(BlockSource):
    """Rows of one place in a store: ``sae.fit(store[15])`` reads them shuffled, with bounded memory.

    {source}

    Blocks are the rows of one forward pass of the model, so an `ActivationStream` of the same model, tokens
    and settings has the same order. Reads are sequential within a block: a few megabytes each.

    ``shards`` are memory maps in the rows' own order, for whatever takes arrays: ``sae.transform(rows)``
    (which reads all rows once before, to check them), and ``sae.fit(rows.shards)``, which is trained in the order of an array in memory whatever the size, to
    the bit, at the price of random reads of single rows.

    Attributes
    ----------
    n, d, shape, ndim, dtype
        Of the rows.
    sizes : ndarray of int64
        Rows of each block.
    buffer_rows : int
        Rows of a group, about. Memory holds two groups: one is used while the next is read.
    shards : list of ndarray
        Memory maps.
    """

    _ORDER = (BlockSource.__doc__ or "").partition("The order of")[2].partition("Attributes\n")[0].strip()
    __doc__ = (__doc__ or "").replace("{source}", "The order of " + _ORDER)

    def __init__(
        self,
        store: ActivationStore,
        point: dict[str, Any],
        buffer_rows: int,
        blocks: np.ndarray | None = None,
    ) -> None:
        if not isinstance(buffer_rows, (int, np.integer)) or buffer_rows < 1:
            raise ValueError(f"buffer_rows: expected a positive integer, got {buffer_rows!r}")
        self.store, self.point, self.buffer_rows = store, point, int(buffer_rows)
        self.d, self.dtype = store.manifest["widths"][point["name"]], store.dtype
        width = self.d * self.dtype.itemsize
        places = []  # shard, byte, rows, CRC-32 and first row in the store, of each block
        row = 0
        for s, shard in enumerate(store.manifest["shards"]):
            byte = shard["files"][point["name"]]["bytes"] - shard["rows"] * width
            for size, crc in zip(shard["blocks"], shard["crc32"][point["name"]], strict=True):
                places.append((s, byte, size, crc, row))
                byte += size * width
                row += size
        self._all = np.array(places, dtype=np.int64).reshape(-1, 5)
        self._chosen = np.arange(len(self._all)) if blocks is None else blocks
        self._places = self._all[self._chosen]
        self.sizes = self._places[:, 2]
        self.n = int(self.sizes.sum())
        self._files: dict[int, int] = {}
        self._lock = ForkedLock()
        self._checked = False

    def digest(self) -> str:
        """What tells these rows from others: model, tokens, place and blocks, as the manifest has them."""
        return digest_of(self.store.manifest, self.point["layer"], self.point["site"], self._chosen)

    def norms(self) -> np.ndarray:
        """Euclidean norm of each row before rounding to the store's dtype, float64 (n,)."""
        norms = self.store.norms(self.point["layer"], self.point["site"])
        return np.asarray(norms[self.row_numbers])

    def __repr__(self) -> str:
        return (
            f"StoredRows({self.n:,} x {self.d} {self.dtype.name}, {self.point['layer']} {self.point['site']})"
        )

    def __del__(self) -> None:
        for file in getattr(self, "_files", {}).values():
            os.close(file)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_files": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=ForkedLock())

    def _path(self, shard: int) -> Path:
        name: str = self.store.manifest["shards"][shard]["files"][self.point["name"]]["name"]
        return self.store.folder / name

    def _file(self, shard: int) -> int:
        with self._lock:
            if shard not in self._files:
                self._files[shard] = os.open(self._path(shard), os.O_RDONLY)
            return self._files[shard]

    def expect(self, blocks: np.ndarray) -> None:
        """Have the kernel read on while earlier blocks are checked and used."""
        if hasattr(os, "posix_fadvise"):  # not on macOS
            width = self.d * self.dtype.itemsize
            for s, byte, size, *_ in self._places[blocks].tolist():
                os.posix_fadvise(self._file(s), byte, size * width, os.POSIX_FADV_WILLNEED)

    def read(self, block: int, out: np.ndarray) -> None:
        """Rows of a block into `out`, compared with their checksum.

        Raises
        ------
        ValueError
            The file is damaged; the message names it and says what to do.
        """
        s, byte, size, crc, _ = self._places[block].tolist()
        if not size:
            return
        file = self._file(s)
        into = out.view(np.uint8).data.cast("B")
        got = 0
        while got < len(into):
            n = os.preadv(file, [into[got:]], byte + got)
            if n == 0:
                break
            got += n
        if got < len(into) or zlib.crc32(into) != crc:
            what = f"ends after {byte + got} bytes" if got < len(into) else f"is damaged in block {block}"
            manifest = self.store.manifest
            raise ValueError(f"{self._path(s)}: {what}; {_remedy(manifest, manifest['shards'][s])}")

    @property
    def shards(self) -> list[np.ndarray]:
        """Memory maps, in the rows' own order; all rows are read and checked when they are first asked for.

        Raises
        ------
        ValueError
            A file is damaged; the message names it and says what to do.
        """
        if not self._checked:
            buffer = np.empty((int(self.sizes.max(initial=0)), self.d), self.dtype)
            for block, size in enumerate(self.sizes.tolist()):
                self.expect(np.arange(block + 1, min(block + 5, len(self.sizes))))
                self.read(block, buffer[:size])
            self._checked = True
        found = []
        # runs of blocks that lie side by side in one shard are one map
        breaks = np.flatnonzero((np.diff(self._chosen) != 1) | (np.diff(self._places[:, 0]) != 0)) + 1
        for run in np.split(np.arange(len(self._chosen)), breaks):
            s, byte = self._places[run[0], :2].tolist()
            shape = (int(self.sizes[run].sum()), self.d)
            if not shape[0]:
                continue  # contexts of one token, left out
            found.append(
                np.memmap(self._path(s), stored_dtype(self.dtype), "r", byte, shape).view(self.dtype)
            )
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("a store's rows are not one array in memory; numpy.asarray(rows) copies them")
        rows = np.concatenate(list(self.blocks()))
        return rows if dtype is None else rows.astype(dtype, copy=False)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Rows by number, slice, index array or mask, copied into memory.

        The blocks that hold them are read whole and compared with their checksums. A second index is of columns.
        """
        if isinstance(index, tuple):
            rows, columns = index
            return self[rows][..., columns]
        wanted = np.arange(self.n)[index]
        flat = np.atleast_1d(wanted)
        ends = np.cumsum(self.sizes)
        block = np.searchsorted(ends, flat, side="right")
        found = np.empty((*flat.shape, self.d), self.dtype)
        order = np.argsort(block, kind="stable")
        for at in np.split(order, np.flatnonzero(np.diff(block[order])) + 1):
            if len(at):
                b = int(block[at[0]])
                rows = np.empty((int(self.sizes[b]), self.d), self.dtype)
                self.read(b, rows)
                found[at] = rows[flat[at] - (ends[b] - self.sizes[b])]
        return found if np.ndim(wanted) else found[0]

    @property
    def row_numbers(self) -> np.ndarray:
        """Where these rows are in the store's ``token_ids``, ``contexts`` and ``positions``, int64 (n,)."""
        return np.concatenate([first + np.arange(size) for first, size in self._places[:, [4, 2]].tolist()])

    def held_out(self, fraction: float = 0.2, n_chunks: int = 20) -> tuple[StoredRows, StoredRows]:
        """Two parts, to train on and held out: whole contiguous chunks of text, never single tokens.

        The blocks (forward passes over consecutive contexts) are cut in order into `n_chunks` contiguous
        chunks, and evenly spaced chunks are held out, as `Activations.held_out` does with contexts.

        Raises
        ------
        ValueError
            There is one block only.
        """
        check_between_0_and_1(fraction, "fraction")
        count = len(self._chosen)
        if count < 2:
            raise ValueError(
                "held_out: a split needs at least 2 forward passes, there is 1; capture with smaller batch_tokens"
            )
        if check_count(n_chunks, "n_chunks") < 2:
            raise ValueError(f"n_chunks: expected at least 2, got {n_chunks}")
        n_chunks = min(n_chunks, count)
        n_held = min(max(1, round(fraction * n_chunks)), n_chunks - 1)
        chosen = np.floor((np.arange(n_held) + 0.5) * n_chunks / n_held).astype(int)
        held = np.isin(np.arange(count) * n_chunks // count, chosen)
        parts = [StoredRows(self.store, self.point, self.buffer_rows, self._chosen[m]) for m in (~held, held)]
        return parts[0], parts[1]
