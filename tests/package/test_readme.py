"""The README's code runs as it stands, and its files are there."""

import re

import numpy as np
import pytest
from support import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def run(block, folder, monkeypatch):
    monkeypatch.chdir(folder)
    names = {}
    exec(compile(block, "README.md", "exec"), names)
    return names


def test_the_api_in_twenty_lines(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((12, 12))
    for name in ("train", "held_out"):
        np.save(tmp_path / name, (rng.standard_normal((2000, 12)) @ mixing + 1).astype(np.float32))
    names = run(BLOCKS[0], tmp_path, monkeypatch)
    assert names["codes"].shape == (2000, 48) and names["Y_hat"].shape == (2000, 12)
    assert len([line for line in BLOCKS[0].split("\n") if line.strip()]) <= 20
    assert "q_star" in capsys.readouterr().out


@pytest.mark.slow
def test_from_a_model(tmp_path, monkeypatch, loaded_smollm2):
    assert run(BLOCKS[1], tmp_path, monkeypatch)["X"].shape[1] == 576


def test_every_file_it_points_to_is_there():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_make_target_it_names_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
