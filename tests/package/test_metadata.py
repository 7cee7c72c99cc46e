"""What stands in more than one place says the same: versions, stubs, the citation, the documentation's names."""

import ast
import importlib
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

import atoms
from atoms import _core

needs_tree = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the source tree")


def test_stubs_name_what_the_extension_has():
    stubs = ast.parse((Path(atoms.__file__).parent / "_core.pyi").read_text(encoding="utf-8"))
    classes = {n.name: n for n in stubs.body if isinstance(n, ast.ClassDef)}
    constants = {n.target.id for n in stubs.body if isinstance(n, ast.AnnAssign)}
    said = {n.name for n in stubs.body if isinstance(n, ast.FunctionDef)} | set(classes) | constants
    there = {name for name in vars(_core) if not name.startswith("_")}
    assert said == there

    def public(names):
        return {name for name in names if not name.startswith("_")}

    for name, node in classes.items():
        methods = {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
        assert public(methods) == public(vars(getattr(_core, name)))


@needs_tree
def test_citation():
    yaml = pytest.importorskip("yaml")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    # what version 1.2.0 of the format requires
    assert cited["cff-version"] == "1.2.0"
    assert cited["message"] and cited["title"] and all(author["name"] for author in cited["authors"])
    assert cited["version"] == atoms.__version__
    assert cited["license"] == "BSD-3-Clause"
    paper = cited["preferred-citation"]
    assert paper["type"] == "article" and paper["title"] and paper["authors"]


@needs_tree
def test_changelog_is_kept():
    """In the shape of keepachangelog.com, newest first, the package's version among them."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    found = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", text, re.M)
    assert len(found) == len(re.findall(r"^## ", text, re.M))
    versions = [name for name, _ in found]
    assert versions[0] == "Unreleased" or versions[0] == atoms.__version__
    numbers = [tuple(map(int, v.split("."))) for v in versions if v != "Unreleased"]
    assert numbers == sorted(numbers, reverse=True)
    assert all(date for name, date in found if name != "Unreleased")
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", text, re.M)) <= kinds


@needs_tree
def test_theory_page_names_functions_that_exist():
    names = set(
        re.findall(r"\{py:\w+\}`(?:[^`<]*<)?~?(atoms[\w.]*)>?`", (ROOT / "docs" / "theory.md").read_text())
    )
    assert len(names) > 30
    for name in names:
        found, parts = atoms, name.split(".")[1:]
        if parts:
            found = getattr(atoms, parts[0])
        for part in parts[1:]:
            found = getattr(found, part)  # AttributeError: the page names what is not there


def test_public_modules_say_what_they_are():
    for module in pkgutil.iter_modules(atoms.__path__):
        if not module.name.startswith("_"):
            assert importlib.import_module(f"atoms.{module.name}").__doc__, module.name


def test_a_source_folder_without_a_build_says_what_to_do(tmp_path):
    """From within it, where an installed package is hidden by it, too."""
    shutil.copytree(
        Path(atoms.__file__).parent, tmp_path / "atoms", ignore=shutil.ignore_patterns("*.so", "*.pyd")
    )
    # without the finder of an editable install, which would hand out its own _core
    code = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in str(f).lower()]; import atoms"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError") and "pip install" in last and str(tmp_path) in last


def test_the_command_is_the_module():
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'atoms = "atoms.__main__:main"' in pyproject
