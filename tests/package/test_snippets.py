"""Code in README and the pages runs as printed and prints what they show; README's files and targets are there."""

import re

import numpy as np
import pytest
from support import ROOT

README = ROOT / "README.md"
PAGES = ("getting-started.md", "recipes.md", "coming-from.md")


def blocks(page):
    """Each block of Python of a page, with the output that it shows after it, or None."""
    pattern = r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?"
    return re.findall(pattern, page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def run(page, capsys, names=None):
    names = {} if names is None else names
    for code, shown in blocks(page):
        capsys.readouterr()
        exec(compile(code, str(page), "exec"), names)
        said = capsys.readouterr().out
        if shown:
            assert said == shown
    return names


@pytest.mark.slow
def test_readme(tmp_path, monkeypatch, capsys, loaded_smollm2):
    monkeypatch.chdir(tmp_path)
    assert blocks(README)[0][1]  # the first one shows what it prints
    assert run(README, capsys)["X"].shape[1] == 576


def test_readme_is_short():
    assert len(README.read_text(encoding="utf-8")) < 6000


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_pages(name, tmp_path, monkeypatch, capsys, loaded_smollm2):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    scope = tmp_path / "layer_20" / "width_16k" / "average_l0_71"
    scope.mkdir(parents=True)
    W = rng.standard_normal((64, 32)).astype(np.float32)
    zeros = np.zeros(64, np.float32)
    np.savez(scope / "params.npz", W_enc=W.T, b_enc=zeros, W_dec=W, b_dec=zeros[:32], threshold=zeros + 1)
    np.save(tmp_path / "activations.npy", rng.standard_normal((4000, 32), np.float32))
    run(ROOT / "docs" / name, capsys)


@pytest.mark.parametrize("page", [README, *(ROOT / "docs" / name for name in PAGES)])
def test_every_file_it_points_to_is_there(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith("_generated"):
            assert (page.parent / target).exists(), target


def test_every_make_target_it_names_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README.read_text(encoding="utf-8"), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
