"""Runs notebooks from their first cell to their last and keeps what they print and draw: `make notebooks`.

What went to standard error (progress bars) is left out, and so is what says when and where it ran.
"""

import sys
import time
from pathlib import Path

import nbclient
import nbformat

for path in map(Path, sys.argv[1:]):
    started = time.perf_counter()
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        notebook,
        timeout=1800,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,  # what a cell prints bit by bit stands together
        resources={"metadata": {"path": path.parent}},
    ).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    notebook.metadata.pop("widgets", None)
    nbformat.write(notebook, path)
    print(f"{path}: {time.perf_counter() - started:.0f} s, {path.stat().st_size / 1e3:.0f} kB")
