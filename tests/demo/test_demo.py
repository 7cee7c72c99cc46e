"""The demo from the command line, on a tiny model saved to disk and on the real one."""

import json
import sys

import numpy as np
import pytest
from support import finished

from atoms import _demo as demo
from atoms import _plot as plot
from atoms.__main__ import main


def options(tiny, words, folder, **more):
    given = {
        "model": tiny,
        "text": words,
        "layers": "0,2",
        "tokens": 1500,
        "context-length": 32,
        "d-sae": 48,
        "l0": 4,
        "samples": 20000,
        "batch-size": 256,
        "out": folder,
        "threads": 1,
    }
    given |= {name.replace("_", "-"): value for name, value in more.items()}
    return ["demo"] + [part for name, value in given.items() for part in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def done(tiny, text, tmp_path_factory):
    """One run of the command in a process of its own."""
    out = tmp_path_factory.mktemp("demo") / "out"
    return finished(["-m", "atoms"], *options(tiny, text, out), strict=False), out


def test_says_what_it_found(done):
    run, out = done
    figures = json.loads((out / "figures.json").read_text())
    found = figures["found"]
    assert len(found) == 3 and run.stdout.rstrip().endswith("\n".join(found))
    assert all(sentence.endswith(".") for sentence in found)
    assert "the first token of each context dropped (49)" in run.stdout  # 1500 tokens, 31 to a context
    assert "held out" in run.stdout and "s in all" in run.stdout and "peak memory" in run.stdout
    assert (out / "table.txt").read_text().split("\n")[:2] == run.stdout[
        run.stdout.index("layer  Eucl") :
    ].split("\n")[:2]


def test_writes_everything(done):
    _, out = done
    names = sorted(p.name for p in out.iterdir())
    assert names == ["atoms.png", "figures.json", "layer000.safetensors", "layer002.safetensors", "table.txt"]
    png = (out / "atoms.png").read_bytes()
    assert png.startswith(b"\x89PNG") and len(png) > 20_000


def test_figures_again_by_numpy(done, tiny, text):
    """The table's numbers, from the autoencoder on disk and plain formulas."""
    from atoms import SparseAutoencoder, activations

    _, out = done
    report = json.loads((out / "figures.json").read_text())["layers"][1]
    assert report["layer"] == 2
    model, tokenizer = activations.load_model(tiny)
    contexts = activations.tokenize(
        activations.read_text(text), tokenizer, context_length=32, max_tokens=1500
    )
    rows = activations.capture(model, contexts, [0, 2], massive="drop", verbose=False)
    held = rows.held_out(0.2)
    X = {"train": rows[2][~held].astype(float), "held_out": rows[2][held].astype(float)}
    assert (report["n_train"], report["n_held_out"]) == (len(X["train"]), len(X["held_out"]))
    S = np.linalg.inv(X["train"].T @ X["train"] / len(X["train"]))
    sae = SparseAutoencoder.load(out / "layer002.safetensors")
    for name, root in (("euclidean", np.eye(16)), ("atomic", np.linalg.cholesky(S))):
        unit = X["held_out"] @ root
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        found = np.degrees(np.arccos(np.clip(unit @ unit.T, -1, 1)))[np.triu_indices(len(unit), 1)]
        assert (report[name]["mean"], report[name]["std"]) == pytest.approx(
            (found.mean(), found.std()), abs=0.05
        )
    atoms = report["scores"][0]
    for part, x in X.items():
        pre = x @ sae.W_enc + sae.b_enc
        codes = pre * (pre > sae.threshold)
        e, c = x - (codes @ sae.W_dec + sae.b_dec), x - x.mean(axis=0)
        for convention, M in (("centered", np.eye(16)), (demo.CONVENTION, S)):
            each, all_ = np.einsum("ij,jk,ik->i", e, M, e), np.einsum("ij,jk,ik->i", c, M, c)
            want = 1 - each.sum() / all_.sum(), np.median(1 - each / all_)
            np.testing.assert_allclose(atoms["explained"][part][convention][:2], want, atol=2e-4)
    assert atoms["l0_mean"] == pytest.approx((codes != 0).sum(axis=1).mean(), abs=0.02)
    unit = sae.W_dec @ np.linalg.cholesky(S)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosines = np.abs(unit @ unit.T - np.eye(len(unit)))
    assert atoms["coherence"] == pytest.approx(cosines.max(), abs=1e-4)


def test_controls(done):
    _, out = done
    for report in json.loads((out / "figures.json").read_text())["layers"]:
        atoms, random, memory = report["scores"]
        assert [s["name"] for s in report["scores"]] == ["atoms", "random", "memorizing"]
        # every token is its own atom: nothing is left to explain on the training part
        assert memory["explained"]["train"][demo.CONVENTION][0] == pytest.approx(1, abs=1e-5)
        assert memory["l0"] == [1, 1, 1] and memory["d_sae"] == report["n_train"]
        assert random["d_sae"] == atoms["d_sae"] == 48
        assert random["l0_mean"] == pytest.approx(atoms["l0_mean"], abs=0.51)
        assert (
            atoms["explained"]["held_out"][demo.CONVENTION][0]
            > random["explained"]["held_out"][demo.CONVENTION][0]
        )
        for curve in report["curves"].values():
            assert len(curve) == len(report["curve_l0"]) and np.all(np.diff(curve) > -1e-6)


def test_python_and_command_line_have_the_same_defaults():
    from atoms.__main__ import _parser

    args = vars(_parser().parse_args(["demo"]))
    args["layers"] = tuple(args["layers"])
    for field, value in vars(demo.Settings()).items():
        assert args[field] == value, field


def test_reports_again_over_an_old_run(tiny, text, tmp_path, capsys):
    """Same seed, same bits, other thread counts too; files are replaced."""
    runs = []
    for threads in (1, 2):
        assert main(options(tiny, text, tmp_path, samples=5000, layers="1", threads=threads)) == 0
        report = json.loads((tmp_path / "figures.json").read_text())["layers"][0]
        runs.append([report["scores"], report["curves"], report["history"]["explained_variance_val"]])
    assert runs[0] == runs[1]
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


# ------------------------------------------------------------------ wrong usage


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "command"),
        (["atom"], "invalid choice"),
        (["demo", "--layers", "a"], "block numbers"),
        (["demo", "--layers", "1,1"], "different block numbers"),
        (["demo", "--tokens", "0"], "positive integer"),
        (["demo", "--tokens", "many"], "invalid"),
        (["demo", "--held-out", "1.5"], "between 0 and 1"),
        (["demo", "--nonsense"], "unrecognized"),
    ],
)
def test_wrong_options(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert message in err and "usage: atoms" in err


def test_errors_before_the_model_is_loaded(tiny, text, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo.activations, "load_model", lambda *_: pytest.fail("the model was loaded"))
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "file").write_text("x")
    for change, message in [
        ({"text": tmp_path / "missing.txt"}, "no file"),
        ({"text": tmp_path / "empty.txt"}, "is empty; name a file with text in it"),
        ({"text": tmp_path}, "is a folder"),
        ({"out": tmp_path / "file"}, "is a file; name a folder"),
    ]:
        assert main(options(tiny, text, tmp_path / "out", **change)) == 1
        captured = capsys.readouterr()
        assert (
            message in captured.err
            and captured.err.startswith("atoms demo: ")
            and "Traceback" not in captured.err
        )


def test_errors_later(tiny, text, tmp_path, capsys):
    for change, message in [
        ({"layers": "3"}, "blocks 0 to 2, got 3"),
        ({"tokens": 30}, "at least 2 contexts"),
        ({"tokens": 35}, "capture more tokens (--tokens"),
        ({"context_length": 500}, "context_length"),
        ({"model": tmp_path / "none.gguf"}, "no file"),
        ({"model": tmp_path}, "cannot load"),
    ]:
        assert main(options(tiny, text, tmp_path / "out", **change)) == 1
        assert message in capsys.readouterr().err


def test_missing_matplotlib_is_said_first(monkeypatch, tmp_path, tiny, text, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(options(tiny, text, tmp_path)) == 1
    assert "pip install matplotlib" in capsys.readouterr().err


def test_interrupt(monkeypatch, tmp_path, tiny, text, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "prepare", interrupt)
    assert main(options(tiny, text, tmp_path)) == 130
    assert "interrupted" in capsys.readouterr().err


def test_show_config_and_help(capsys):
    assert main(["show-config"]) == 0
    assert "threads" in capsys.readouterr().out
    for arguments in (["--help"], ["demo", "--help"], ["--version"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0 and capsys.readouterr().out


# ------------------------------------------------------------------ pictures


def test_pictures_replace_and_leave_no_half_file(tmp_path, monkeypatch):
    figure, axes = plot.new_figure(1, 1, size=(2, 2))
    plot.angles(axes, np.linspace(0, 180, 181), [("layer 1", np.ones(180), np.eye(180)[90])])
    plot.save(figure, tmp_path / "a.png", dpi=40)
    old = (tmp_path / "a.png").read_bytes()

    def fails(path, **_):
        with open(path, "wb") as file:
            file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", fails)
    with pytest.raises(OSError, match="disk full"):
        plot.save(figure, tmp_path / "a.png")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"] and (tmp_path / "a.png").read_bytes() == old


# ------------------------------------------------------------------ the real model


@pytest.mark.filterwarnings("ignore:.* rows have a norm above 5 times")  # as tokens of layers 2 to 8 have
@pytest.mark.slow
def test_the_real_model(tmp_path, capsys, loaded_smollm2):
    """A small run on SmolLM2: the shift and its correction, and what a dictionary must show."""
    arguments = "--layers 8,15 --tokens 3000 --samples 100000 --d-sae 1152 --l0 16 --context-length 128"
    assert main(["demo", *arguments.split(), "--out", str(tmp_path)]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    for report in figures["layers"]:
        assert report["euclidean"]["mean"] < 75
        assert abs(report["atomic"]["mean"] - 90) < 3
        atoms, random, _ = report["scores"]
        assert (
            atoms["explained"]["train"][demo.CONVENTION][0] > random["explained"]["train"][demo.CONVENTION][0]
        )
