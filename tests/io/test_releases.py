"""Releases by name: through the registry of the SAELens that is installed, the hub's answer from a folder."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import atoms

hub = pytest.importorskip("huggingface_hub")
DATA = Path(__file__).with_name("data") / "peers"

REGISTRY = """
toy-res-canonical:
  repo_id: google/toy
  conversion_func: gemma_2
  config_overrides: {dataset_path: text}
  saes:
  - {id: layer_3/width_1k/canonical, path: layer_3/width_1k/average_l0_5}
  - {id: layer_4/width_1k/canonical, path: layer_4/width_1k/average_l0_5, norm_scaling_factor: 0.5}
strange:
  repo_id: org/strange
  conversion_func: goodfire
  saes:
  - {id: one, path: one.pt}
other-scale:
  repo_id: org/other
  config_overrides: {normalize_activations: layer_norm}
  saes:
  - {id: 1, path: 1}
"""


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """SAELens as a package that cannot be imported, with a registry; the hub as a folder. What the hub is asked."""
    package = tmp_path / "packages" / "sae_lens"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    (package / "pretrained_saes.yaml").write_text(REGISTRY)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.delitem(sys.modules, "sae_lens", raising=False)
    rng = np.random.default_rng(0)
    folder = tmp_path / "hub" / "layer_3/width_1k/average_l0_5"
    folder.mkdir(parents=True)
    arrays = {"W_enc": rng.standard_normal((4, 9)), "W_dec": rng.standard_normal((9, 4))}
    arrays |= {"b_enc": np.zeros(9), "b_dec": np.zeros(4), "threshold": np.ones(9)}
    np.savez(folder / "params.npz", **{k: v.astype("f4") for k, v in arrays.items()})
    calls = []

    def download(name, **more):
        calls.append((name, more["allow_patterns"]))
        return str(tmp_path / "hub")

    monkeypatch.setattr(hub, "snapshot_download", download)
    return calls, arrays


def test_by_name(asked):
    calls, arrays = asked
    sae = atoms.load("toy-res-canonical", "layer_3/width_1k/canonical", is_transcoder=False, num_threads=1)
    np.testing.assert_array_equal(sae.W_enc, arrays["W_enc"].astype("f4"))
    assert calls[0][0] == "google/toy" and "layer_3/width_1k/average_l0_5/params.npz" in calls[0][1]
    # a repository by its own name needs no registry
    again = atoms.load("google/toy", "layer_3/width_1k/average_l0_5", is_transcoder=False)
    np.testing.assert_array_equal(again.W_dec, sae.W_dec)


def test_what_cannot_be_had_is_said(asked):
    for match, arguments in (
        ("SAELens knows no release 'toy-res'; near: toy-res-canonical", ("toy-res", "x")),
        ("sae_id: toy-res-canonical has no 'layer_3/width_1k'; it has layer_3/width_1k/canonical",
         ("toy-res-canonical", "layer_3/width_1k")),
        ("converts with 'goodfire'", ("strange", "one")),
        ("registry corrects what its files say", ("toy-res-canonical", "layer_4/width_1k/canonical")),
        ("registry corrects what its files say", ("other-scale", "1")),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            atoms.load(*arguments)
    assert not asked[0]


def test_without_saelens(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install sae-lens"):
        atoms.load("gemma-scope-2b-pt-res-canonical", "layer_12/width_16k/canonical")


def test_a_local_folder(tmp_path):
    name = next(p for p in sorted(DATA.iterdir()) if p.name.startswith("saelens"))
    folder = next(iter(name.rglob("cfg.json"))).parent
    shutil.copytree(folder, tmp_path / "release" / "one")
    assert atoms.load(os.fspath(tmp_path / "release"), "one").source == "saelens"


@pytest.mark.skipif(importlib.util.find_spec("sae_lens") is None, reason="needs sae_lens: make test-peers")
def test_the_registry_itself(monkeypatch, tmp_path):
    calls = []

    def download(name, **more):
        calls.append((name, more["allow_patterns"]))
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    with pytest.raises(FileNotFoundError):
        atoms.load("gemma-scope-2b-pt-res-canonical", "layer_12/width_16k/canonical")
    assert calls[0][0] == "google/gemma-scope-2b-pt-res"
    assert "layer_12/width_16k/average_l0_82/params.npz" in calls[0][1]
