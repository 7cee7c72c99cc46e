"""The notebooks run from their first cell to their last, in a small setting."""

import nbclient
import nbformat
import pytest
from support import FAST_BFLOAT16, ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


# smollm2() takes 4 to 10 s: the kernels load what the tests have loaded already. In float32 where the CPU would take four times as long
# in bfloat16 (Zen 3).
FIRST = """
from atoms import activations
def smollm2(dtype="float32", **options):
    fast = {fast!r} or dtype != "bfloat16"
    return activations.load_model({folder!r}, dtype=dtype if fast else "float32", **options)
activations.smollm2 = smollm2
"""


def test_there_are_notebooks():
    assert [n.name for n in NOTEBOOKS][:1] == ["01_from_model_to_atoms.ipynb"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Jupyter's own machinery, in this process
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, monkeypatch, tmp_path, smollm2_folder):
    monkeypatch.setenv("ATOMS_NOTEBOOK_SMALL", "1")
    notebook = nbformat.read(path, as_version=4)
    first = FIRST.format(folder=str(smollm2_folder), fast=FAST_BFLOAT16)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(first))
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    nbformat.validate(notebook)
    said = [o.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    assert any(said)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_fit_to_be_kept(path):
    """Small, run in order, without errors and without the names of the machine it ran on."""
    assert path.stat().st_size < 1_000_000
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    counts = [c.execution_count for c in notebook.cells if c.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))  # `make notebooks` ran it
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    for place in ("tmp", "home", "root"):
        assert f"/{place}/" not in path.read_text()
