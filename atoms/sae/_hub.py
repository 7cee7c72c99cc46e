"""An autoencoder on the Hugging Face hub: its file, and a card that says what its figures are figures of."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from .._shown import Table, cell
from .._version import __version__
from ._saving import Trained

FILE = "atoms.safetensors"

# what the hub itself reads of a card's header, of what a caller may say
_HEADER = ("license", "language", "datasets", "base_model")

_CARD = """\
---
{header}
---

# A {what}{of}

{about}

{figures}

{conventions}

## Load it

```python
import atoms  # pip install llm-atoms[hub]

sae = atoms.load("{address}")
codes = sae.transform(X)  # activations (n, {d_in}) to a SciPy CSR array (n, {d_sae})
{rebuilt}module = sae.to_torch()  # encode, decode and forward for PyTorch
```

The weights (`W_enc`, `b_enc`, `W_dec`, `b_dec`, `threshold`) are for raw activations. {more} `{file}` is plain safetensors and holds no code.
"""


def push(
    kind: str, trained: Trained, write: Any, repo_id: str, subfolder: str, options: dict[str, Any]
) -> str:
    """See `SparseAutoencoder.push_to_hub`; `write` makes the file, `options` are its other arguments."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError("push_to_hub needs huggingface_hub: run `pip install huggingface_hub`") from error
    if Path(subfolder).is_absolute() or ".." in Path(subfolder).parts:
        raise ValueError(f"subfolder: expected a path inside the repository, got {subfolder!r}")
    subfolder = "" if not Path(subfolder).parts else Path(subfolder).as_posix()
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / FILE)  # before anything is made there
        api = huggingface_hub.HfApi(token=options["token"])
        repo_id = str(api.create_repo(repo_id, private=options["private"], exist_ok=True).repo_id)
        address = "/".join(["hf:/", repo_id, *([subfolder] if subfolder else [])])
        text = card(kind, trained, address, options["metadata"])
        (Path(folder) / "README.md").write_text(text, encoding="utf-8")
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            path_in_repo=subfolder or None,
            commit_message=f"{kind} of {trained.model.d_sae} latents, by atoms {__version__}",
        )
    return address


def card(kind: str, trained: Trained, address: str, metadata: dict[str, Any]) -> str:
    """The model card, Markdown under a header of YAML; `metadata` is what the caller knows of the place."""
    model = trained.model
    header = {"library_name": "atoms", "tags": ["sparse-autoencoder", "interpretability", model.activation]}
    header |= {name: metadata[name] for name in _HEADER if name in metadata}
    name = metadata.get("model_name")
    if name is not None and "base_model" not in header and str(name).count("/") == 1:
        header["base_model"] = str(name)
    hook = metadata.get("hook_name")
    of = (
        ""
        if name is None and hook is None
        else " of " + ", ".join(f"`{x}`" for x in (name, hook) if x is not None)
    )
    others = {k: v for k, v in metadata.items() if k not in (*_HEADER, "model_name", "hook_name")}
    what, rebuilds, rebuilt, more = _kind(trained)
    return _CARD.format(
        what=what,
        rebuilt=rebuilt,
        more=more,
        header="\n".join(f"{key}: {json.dumps(value)}" for key, value in header.items()),  # JSON is YAML
        of=of,
        about=f"`{kind}` of {model.d_sae:,} {model.activation} latents for {model.d_in:,} features{rebuilds}, "
        f"trained with atoms {__version__} (`pip install llm-atoms`).",
        figures=_markdown(_figures(trained, others)),
        conventions=_conventions(trained),
        address=address,
        d_in=model.d_in,
        d_sae=model.d_sae,
        file=FILE,
    )


def _kind(trained: Trained) -> tuple[str, str, str, str]:
    """What the card calls it, what it says of its features, a line of the example, and what else there is for it."""
    model, widths = trained.model, trained.space.widths
    export = '`atoms.io.save(sae, "folder")` writes\nthem for SAELens.'
    if widths is not None:
        which = f" ({' + '.join(f'{d:,}' for d in widths)} of {len(widths)} sites side by side)"
        return "sparse crosscoder", which, "", "`sae.sites_` has\nthe columns of each site."
    if not model.transcodes:
        return "sparse autoencoder", "", "", export
    which = f", which rebuild {model.d_out:,} of another place"
    return "transcoder", which, f"outputs = sae.reconstruct(X)  # (n, {model.d_out}), of that place\n", export


def _measured(values: list[Any]) -> float | None:
    """At the end of training; steps of `partial_fit` after a fit leave nothing that is known of held-out rows."""
    return float(values[-1]) if values and not np.isnan(values[-1]) else None


def _figures(trained: Trained, others: dict[str, Any]) -> Table:
    space, model, _, history, parameters, data = trained
    unknown = "not measured: no held-out rows were given"
    held, l0 = (_measured(history[f"{name}_val"]) for name in ("explained_variance", "l0"))
    metric = space.metric
    rows: list[tuple[str, Any]] = [
        ("explained variance, held out, at the end of training", unknown if held is None else f"{held:.4f}"),
        ("L0, held out, at the end of training", unknown if l0 is None else f"{l0:.2f}"),
        ("L0 asked for", f"{parameters['target_l0']:g}"),
    ]
    if history["step"]:
        rows += [
            ("explained variance, last training batch", f"{history['explained_variance'][-1]:.4f}"),
            ("L0, last training batch", f"{history['l0'][-1]:.2f}"),
            ("dead latents at the end of training", f"{history['dead'][-1]:,}"),
            ("samples seen in training", f"{model.samples:,} in {model.steps:,} steps"),
        ]
    rows.append(
        ("metric", "none: Euclidean" if metric is None else f"{metric!r} of {metric.n_samples_seen_:,} rows")
    )
    if data is not None:
        rows += [(f"training data: {name}", value) for name, value in data.items() if value is not None]
    return Table("", [*rows, *others.items()])


def _conventions(trained: Trained) -> str:
    space = trained.space
    where = "the coordinates of its own: raw activations less their mean, times one number"
    if space.metric is not None:
        where = "the metric's coordinates, in which every direction of the training data weighs alike"
    x = "X" if space.target is None else "Y"
    convention = "metric_centered" if space.metric is not None else "centered"
    return (
        f"Explained variance is `1 - sum |x - x_hat|^2 / sum |x - mean|^2` in {where} "
        f'(`atoms.theory.explained_variance({x}, sae.reconstruct(X), "{convention}"'
        + (", metric=sae.metric_" if space.metric is not None else "")
        + ")`). It is of raw activations only where it says so: another convention gives another number. Held-out rows "
        "took no part in training but for the one factor that brings all thresholds to the L0 asked for. L0 is the "
        "mean number of active latents of a row. A digest is of the rows' bytes, at 256 places where they are arrays."
    )


def _markdown(table: Table) -> str:
    lines = ["| | |", "|---|---|"]
    lines += [
        f"| {str(name).replace('|', chr(92) + '|')} | {cell(value).replace('|', chr(92) + '|')} |"
        for name, value in table.rows
    ]
    return "\n".join(lines)
