"""`push_to_hub`: what goes up, what the card says, and that it comes back; the hub is a server of this process."""

import base64
import hashlib
import http.server
import json
import re
import shutil
import sys
import threading

import numpy as np
import pytest
from support import RNG, run

import atoms
from atoms.sae._hub import card

hub = pytest.importorskip("huggingface_hub")
yaml = pytest.importorskip("yaml")


def planted(n, seed):
    rng = RNG(seed)
    codes = rng.exponential(1, (n, 24)) * (rng.random((n, 24)) < 0.1)
    return (codes @ RNG(9).standard_normal((24, 12)) + 2).astype(np.float32)


X, HELD = planted(3000, 0), planted(500, 1)


def trained(metric=True, **options):
    aip = atoms.AtomicInnerProduct().fit(X) if metric else None
    options = {"target_l0": 3, "max_steps": 60, "batch_size": 256, "verbose": False, **options}
    return atoms.SparseAutoencoder(32, metric=aip, **options)


@pytest.fixture
def stored(monkeypatch, tmp_path):
    """The client with a folder for the hub; what it was asked."""
    asked = []

    class Api:
        def __init__(self, token=None):
            asked.append({"token": token})

        def create_repo(self, repo_id, **more):
            asked.append({"repo_id": repo_id, **more})
            return type("Url", (), {"repo_id": repo_id if "/" in repo_id else f"me/{repo_id}"})

        def upload_folder(self, *, repo_id, folder_path, path_in_repo, commit_message):
            asked.append({"repo_id": repo_id, "path_in_repo": path_in_repo, "message": commit_message})
            target = tmp_path / "hub" / repo_id / (path_in_repo or "")
            shutil.copytree(folder_path, target, dirs_exist_ok=True)

    def download(name, **more):
        asked.append({"download": name, **more})
        return str(tmp_path / "hub" / name)

    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setattr(hub, "snapshot_download", download)
    return asked, tmp_path / "hub"


def said(text):
    """The card's header and its table."""
    _, header, body = text.split("---\n", 2)
    return yaml.safe_load(header), dict(re.findall(r"^\| ([^|]+) \| (.*) \|$", body, re.MULTILINE))


@pytest.mark.parametrize("metric", [True, False])
@pytest.mark.parametrize("activation", ["jumprelu", "batchtopk", "topk", "relu"])
def test_the_same_comes_back_and_the_figures_are_right(metric, activation, stored):
    asked, folder = stored
    sae = trained(metric, activation=activation).fit(X, X_val=HELD)
    address = sae.push_to_hub(
        "me/toy", model_name="org/model", hook_name="blocks.3.hook_resid_post", license="mit"
    )
    assert address == "hf://me/toy" and sorted(f.name for f in (folder / "me/toy").iterdir()) == [
        "README.md", "atoms.safetensors",
    ]  # fmt: skip
    assert asked[1] == {"repo_id": "me/toy", "private": None, "exist_ok": True}
    back = atoms.load(address)
    assert type(back) is atoms.SparseAutoencoder and (back.transform(HELD) != sae.transform(HELD)).nnz == 0
    header, table = said((folder / "me/toy/README.md").read_text())
    assert header["library_name"] == "atoms" and activation in header["tags"]
    assert header["base_model"] == "org/model" and header["license"] == "mit"
    # the figures are those that the card's own words give
    convention = re.search(
        r'explained_variance\(X, sae.reconstruct\(X\), "(\w+)"', (folder / "me/toy/README.md").read_text()
    )
    want = atoms.theory.explained_variance(
        HELD, sae.reconstruct(HELD), convention[1], metric=sae.metric_
    ).total
    assert float(table["explained variance, held out, at the end of training"]) == pytest.approx(
        want, abs=2e-4
    )
    l0 = sae.transform(HELD).nnz / len(HELD)
    assert float(table["L0, held out, at the end of training"]) == pytest.approx(l0, abs=0.006)
    assert table["training data: rows"] == "3,000" and len(table["training data: sha256"]) == 64
    assert table["metric"].startswith("AtomicInnerProduct" if metric else "none: Euclidean")


def test_several_in_one_repository(stored):
    asked, _ = stored
    one, two = (trained(random_state=seed).fit(X) for seed in (0, 1))
    addresses = [
        sae.push_to_hub("toy", f"layer_{i}/small", private=True, token="t")
        for i, sae in enumerate((one, two))
    ]
    assert addresses == ["hf://me/toy/layer_0/small", "hf://me/toy/layer_1/small"]
    assert asked[0] == {"token": "t"} and asked[1]["private"] is True
    for address, sae in zip(addresses, (one, two), strict=True):
        np.testing.assert_array_equal(atoms.load(address).W_dec, sae.W_dec)
        np.testing.assert_array_equal(atoms.load(address.replace("toy", "toy@v1")).W_dec, sae.W_dec)
    assert asked[-1]["revision"] == "v1" and "layer_1/small/atoms.safetensors" in asked[-1]["allow_patterns"]
    np.testing.assert_array_equal(atoms.load("me/toy", "layer_1/small").W_dec, two.W_dec)
    np.testing.assert_array_equal(atoms.io.from_pretrained("me/toy", "layer_1/small").W_dec, two.W_dec)


def test_what_is_not_known_is_not_made_up(stored):
    _, folder = stored
    sae = trained().partial_fit(X)
    sae.push_to_hub("me/toy")
    header, table = said((folder / "me/toy/README.md").read_text())
    assert table["explained variance, held out, at the end of training"].startswith("not measured")
    assert "base_model" not in header and "training data: rows" not in table
    # what was measured before more training is no figure of the result
    sae = trained(max_steps=40).fit(X, X_val=HELD).partial_fit(X)
    assert said(card("SparseAutoencoder", sae._fitted, "hf://me/toy", {}))[1][
        "L0, held out, at the end of training"
    ].startswith("not measured")


def test_texts_do_not_leave_their_places(stored):
    _, folder = stored
    trained().fit(X).push_to_hub("me/toy", license='a"\n---\nb: 1', note="x|y")
    header, _ = said((folder / "me/toy/README.md").read_text())
    assert header["license"] == 'a"\n---\nb: 1' and "b" not in header
    assert "x\\|y" in (folder / "me/toy/README.md").read_text()


def test_errors_say_what_to_do(stored, monkeypatch):
    sae = trained()
    with pytest.raises(Exception, match="not fitted"):
        sae.push_to_hub("me/toy")
    sae.fit(X)
    with pytest.raises(ValueError, match="subfolder: expected a path inside the repository"):
        sae.push_to_hub("me/toy", "../x")
    for wrong in ("hf://", "hf://me", "hf://me/"):
        with pytest.raises(ValueError, match="path: expected hf://user/name"):
            atoms.load(wrong)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        sae.push_to_hub("me/toy")
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        atoms.load("hf://me/toy")


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as its client asks for to make a repository, to put files into it, and to get them again."""

    files, commit = {}, "d" * 40

    def answer(self, body, kind="application/json"):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.commit)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        given = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if "/create" in self.path:
            self.answer({"url": f"http://127.0.0.1:{self.server.server_port}/me/toy"})
        elif "/preupload/" in self.path:
            paths = [f["path"] for f in json.loads(given)["files"]]
            self.answer(
                {"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]}
            )
        elif "/commit/" in self.path:
            for line in map(json.loads, given.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(
                {"success": True, "commitOid": self.commit, "commitUrl": "http://127.0.0.1/me/toy/commit/d"}
            )
        else:
            self.answer({})  # the client has the card's header looked at

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        name = self.path.partition("/resolve/")[2].partition("/")[2]
        if name in self.files:
            self.answer(self.files[name], "application/octet-stream")
        elif "/tree/" in self.path:
            self.answer(
                [{"type": "file", "path": n, "size": len(b), "oid": "c" * 40} for n, b in self.files.items()]
            )
        else:
            siblings = [{"rfilename": n} for n in self.files]
            self.answer({"id": "me/toy", "sha": self.commit, "siblings": siblings})

    def log_message(self, *_):
        pass


def test_through_the_client_itself(tmp_path):
    """huggingface_hub's own code, from push_to_hub to load, with this process for a hub."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = """
        import numpy as np, atoms
        X = np.random.default_rng(0).standard_normal((600, 8)).astype("f4")
        sae = atoms.SparseAutoencoder(16, target_l0=2, max_steps=20, batch_size=64, verbose=False).fit(X[:500], X_val=X[500:])
        address = sae.push_to_hub("me/toy", token="hf_none")
        back = atoms.load(address)
        print(address, (back.transform(X) != sae.transform(X)).nnz)
        """
    env = {
        "HF_HOME": str(tmp_path),
        "HF_HUB_DISABLE_XET": "1",
        "no_proxy": "127.0.0.1",
        "HF_HUB_CACHE": str(tmp_path / "hub"),
    }
    env |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "0"}
    try:
        said = run(
            code, strict=False, timeout=120, HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}", **env
        )
    finally:
        server.shutdown()
        server.server_close()
    assert said.split() == ["hf://me/toy", "0"] and set(Hub.files) == {"README.md", "atoms.safetensors"}
