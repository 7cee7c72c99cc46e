"""The code on the page that people try first runs, and finds what the page says."""

import re

import pytest
from support import ROOT

PAGE = ROOT / "docs" / "getting-started.md"


@pytest.mark.slow
@pytest.mark.skipif(not PAGE.exists(), reason="needs the source tree")
def test_getting_started_runs(capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    # those that need a language model or another tool's files are run by the notebooks' and io's tests
    mine = [b for b in blocks if "smollm2" not in b and "for-saelens" not in b]
    assert len(mine) == len(blocks) - 2 >= 3
    names = {}
    for block in mine:
        exec(compile(block, str(PAGE), "exec"), names)
    explained, mcc = map(float, re.findall(r"^[01]\.\d+$", capsys.readouterr().out, re.M))
    assert explained > 0.9
    assert mcc > 0.9
