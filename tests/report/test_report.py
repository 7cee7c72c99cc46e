"""The report: configurations, jobs that survive, figures that can be checked, pages and judges."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import scipy.sparse as sp
from support import finished, started

import atoms
from atoms.__main__ import main
from atoms._report import READY, Config, Context, EmbeddingJudge, cells, estimate, jobs, load
from atoms._report import data as report_data
from atoms._report.monosemanticity import auroc
from atoms._report.plan import plan
from atoms._report.scoring import hold_l0

DICTIONARIES = ("atoms", "batchtopk", "neurons-all", "pca-all", "random", "memorizing", "shuffled")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Activations of two layers on disk: sparse combinations of 40 directions, and a massive row."""
    folder, rng = tmp_path_factory.mktemp("rows"), np.random.default_rng(0)
    files = {}
    for layer in (0, 1):
        D = rng.standard_normal((40, 16))
        X = (
            (rng.random((2000, 40)) < 0.08) * rng.gamma(2, 1, (2000, 40)) @ D
            + 0.1 * rng.standard_normal((2000, 16))
            + 1
        )
        X[700] *= 100
        files[str(layer)] = str(folder / f"layer{layer}.npy")
        np.save(files[str(layer)], X.astype(np.float32))
    return files


def settings(rows, **more):
    given = {
        "name": "planted",
        "d_in": 16,
        "activations": rows,
        "layers": [0, 1],
        "dictionaries": DICTIONARIES,
        "width": 2,
        "l0": 3,
        "samples": 6000,
        "batch_size": 128,
        "eval_rows": 400,
        "grid": {
            "layer": [0, 1],
            "unit": 2,
            "data": [1, 2],
            "widths": [1, 2],
            "epochs": 20,
            "min_samples": 2000,
        },
        "frontier": {
            "layer": 1,
            "l0": [2, 3],
            "dictionaries": ["atoms", "random"],
            "widths": [1],
            "data": [0.5],
            "variants": ["tied"],
        },
        "monosemanticity": {"layer": None},
    }
    return load(given | more)


def results(out, planned):
    """All that jobs found, without what they cost."""
    every = {job.key: job for job in [*planned.first, *planned.agreement.values()]}
    found = {key: jobs.read(out, job) for key, job in every.items()}
    return {key: (r.record, {name: a.tobytes() for name, a in r.arrays.items()}) for key, r in found.items()}


@pytest.fixture(scope="module")
def done(rows, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "out"
    config = settings(rows)
    atoms.report(config, out, jobs=1, verbose=False)
    return config, out


# ------------------------------------------------------------------ configurations


def test_configurations(tmp_path):
    toml = tmp_path / "mine.toml"
    toml.write_text(
        'base = "smollm2-small"\nlayers = [3, 4]\nl0 = 5\n[grid]\nlayer = 4\n[frontier]\nlayer = 3\n[monosemanticity]\nlayer = 3\n'
    )
    if sys.version_info >= (3, 11):
        found = load(toml)
        assert (found.layers, found.l0, found.grid.layer, found.grid.widths) == (
            (3, 4),
            5,
            4,
            READY["smollm2-small"].grid.widths,
        )
    js = tmp_path / "mine.json"
    js.write_text(json.dumps(READY["gemma2-2b"].as_dict()))
    assert load(js) == load("gemma2-2b") and load("gemma2-2b", l0=4).l0 == 4
    assert READY["gemma2-9b"].layers == tuple(range(42)) and READY["llama3.1-8b"].layers == tuple(range(30))


@pytest.mark.parametrize(
    "given, message",
    [
        ({"nonsense": 1}, "no such setting"),
        ({"grid": {"nonsense": 1}}, "grid.nonsense: no such setting"),
        ({"base": "gpt"}, "expected one of smollm2"),
        ({"layers": []}, "layers: expected different blocks"),
        ({"l0": 0}, "l0: expected a number above 0"),
        ({"l0": "many"}, "l0: expected a number, got 'many'"),
        ({"dictionaries": ["words"]}, "dictionaries: expected some of"),
        ({"seeds": [-1]}, "seeds: expected"),
        ({"held_out": 1.0}, "held_out: expected a share"),
        ({"grid": {"layer": 3}}, "grid.layer: expected one or some of the layers"),
        ({"grid": {"layer": [5, 3]}}, "grid.layer: expected one or some of the layers"),
        ({"frontier": {"variants": ["wide"]}}, "frontier.variants: expected some of"),
        ({"activations": {"1": "x.npy"}}, "layers: expected some of those with activations"),
    ],
)
def test_wrong_configurations(given, message):
    with pytest.raises(ValueError, match=message):
        load(given)


def test_estimate_grows_with_the_work():
    small, large = estimate(READY["smollm2-small"]), estimate(READY["smollm2"])
    assert 0 < small.seconds < large.seconds and small.disk_mb < large.disk_mb and small.jobs < large.jobs
    assert "estimated from rates measured here" in str(large) and "memory" in str(large)
    gemma = estimate(READY["gemma2-2b"])
    assert gemma.capture_seconds > large.capture_seconds and gemma.memory_mb > 4 * 2614
    with pytest.raises(ValueError, match="d_in, parameters"):
        estimate(Config(d_in=0))


# ------------------------------------------------------------------ texts and rows


def test_prompts(tmp_path):
    record = {
        "requested_rewrite": {"prompt": "{} is in", "subject": "Paris"},
        "paraphrase_prompts": ["Where is Paris?"],
        "attribute_prompts": ["Where is Paris?", "Rome is in"],
    }
    (tmp_path / "a.json").write_text(json.dumps([record]))
    assert report_data.prompts(tmp_path / "a.json") == ["Paris is in", "Where is Paris?", "Rome is in"]
    (tmp_path / "b.json").write_text('["x", "y", "x"]')
    assert report_data.prompts(tmp_path / "b.json") == ["x", "y"]
    for text, message in (("{", "is not JSON"), ("[1]", "neither a list"), ("{}", "neither a list")):
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            report_data.prompts(tmp_path / "c.json")


def test_rows_whose_text_came_before_are_known():
    contexts = [[1, 2, 3], [1, 2, 4], [2, 2], [1, 2, 3, 5]]
    found = atoms.activations.Activations(
        {},
        {},
        token_ids=np.concatenate(contexts),
        contexts=np.repeat(np.arange(4), [len(c) for c in contexts]),
        positions=np.concatenate([np.arange(len(c)) for c in contexts]),
    )
    want, seen = [], set()
    for c in contexts:
        for i in range(len(c)):
            want.append(tuple(c[: i + 1]) not in seen)
            seen.add(tuple(c[: i + 1]))
    assert report_data.first_of_prefix(found).tolist() == want


def test_activations_on_disk_are_split(rows, tmp_path):
    about = report_data.prepare(settings(rows), tmp_path)
    data = report_data.Data(tmp_path, about["key"])
    X = np.load(rows["1"])
    held = data.index["held_out-1"]
    assert len(held) == 400 and set(np.diff(held)) <= {1, 401, 401 + 100, 500, 401 - 0}
    assert not set(data.index["train-1"]) & set(held) and 700 not in data.index["train-1"]
    np.testing.assert_array_equal(data.rows("train", 1), X[data.index["train-1"]])
    assert about["counts"]["layer 1"]["massive"] == {"1": 1}
    with pytest.raises(FileNotFoundError, match="no file"):
        report_data.prepare(settings({"0": "none.npy", "1": rows["1"]}), tmp_path)


# ------------------------------------------------------------------ what is found


def test_everything_is_written(done):
    config, out = done
    for name in ("main", "average", "shift", "frontier", "claims"):
        for suffix in ("csv", "md", "tex"):
            assert (out / "tables" / f"{name}.{suffix}").stat().st_size > 50
    for name in ("shift", "main", "capacity_0", "capacity_1", "frontier"):
        assert (out / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (out / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        with np.load(out / "figures" / f"{name}.npz") as arrays:
            assert arrays.files
    run = json.loads((out / "run.json").read_text())
    assert (
        run["versions"]["atoms"] == atoms.__version__ and run["seeds"] == [0, 1] and run["hardware"]["cpus"]
    )
    assert load(out / "config.json") == config
    text = (out / "report.md").read_text()
    for heading in ("Representation shift", "Capacity, layer 0", "The frontier, layer 1", "What it cost"):
        assert f"## {heading}" in text
    assert "None" not in text and "nan" not in text.replace("dominan", "")
    assert not list(out.glob("cells/*.progress")) and not list(out.rglob(".*"))


def test_figures_again_by_numpy(done):
    """R2, L0 and q* of the controls that can be written down in a line."""
    config, out = done
    with open(out / "tables" / "main.csv") as file:
        table = {(int(r["layer"]), r["dictionary"]): r for r in csv.DictReader(file)}
    about = report_data.prepare(config, out / "data")
    data = report_data.Data(out / "data", about["key"])
    for layer in (0, 1):
        metric = data.rows("metric", layer).astype(float)
        S = np.linalg.inv(metric.T @ metric / len(metric))
        for name in ("pca-all", "neurons-all"):
            row = table[layer, name]
            assert float(row["R2_held_out"]) == pytest.approx(1, abs=1e-5) and row["l0"] == "16/16/16"
        assert float(table[layer, "pca-all"]["q_star"]) == 1
        memory = table[layer, "memorizing"]
        assert float(memory["R2_train"]) == pytest.approx(1, abs=1e-5) and float(memory["R2_held_out"]) < 0.97
        # the neurons' coherence by hand: cosines of the standard basis in the metric
        scale = np.sqrt(np.diag(S))
        cosines = np.abs(S / np.outer(scale, scale))[np.triu_indices(16, 1)]
        assert float(table[layer, "neurons-all"]["coherence"]) == pytest.approx(cosines.max(), abs=1e-4)
        # every sample has L0 = 16: q* is the share of pairs below 1/31
        assert float(table[layer, "neurons-all"]["q_star"]) == pytest.approx(
            (cosines < 1 / 31).mean(), abs=1e-6
        )
        # the nearest stored direction, by brute force
        root = np.linalg.cholesky(S)
        mean = data.rows("train", layer).astype(float).mean(axis=0).astype(np.float32)
        known, seen = ((data.rows(p, layer).astype(float) - mean) @ root for p in ("train", "held_out"))
        seen = seen[len(seen) // 4 :]  # the first quarter is for thresholds
        unit = known / np.linalg.norm(known, axis=1, keepdims=True)
        best = np.abs(seen @ unit.T).max(axis=1)
        total = ((seen - seen.mean(axis=0)) ** 2).sum()
        want = 1 - ((seen**2).sum() - (best**2).sum()) / total
        assert float(memory["R2_held_out_with_massive"]) == pytest.approx(want, abs=1e-4)
        norms = np.linalg.norm(data.rows("held_out", layer), axis=1)[100:]
        usual = norms <= 10 * np.median(norms)
        total = ((seen[usual] - seen[usual].mean(axis=0)) ** 2).sum()
        want = 1 - ((seen[usual] ** 2).sum() - (best[usual] ** 2).sum()) / total
        assert float(memory["R2_held_out"]) == pytest.approx(want, abs=1e-4)
        assert float(memory["interval_held_out_low"]) < want < float(memory["interval_held_out_high"])
        assert float(memory["massive_held_out"]) == (~usual).sum()


def test_thresholds_hold_l0_on_new_rows(done):
    """Exactly the target where they are set, close to it on the rest of the held-out rows."""
    rng = np.random.default_rng(0)
    X, new = (
        rng.standard_normal((1500, 16)).astype(np.float32),
        rng.standard_normal((300, 16)).astype(np.float32),
    )
    for activation in ("jumprelu", "batchtopk"):
        sae = atoms.SparseAutoencoder(
            64, activation, target_l0=5, max_steps=60, batch_size=128, verbose=False
        ).fit(X)
        before = sae.threshold.copy()
        shift = hold_l0(sae, new, 4)
        assert sae.transform(new).nnz == 4 * len(new)
        np.testing.assert_allclose(sae.threshold, np.maximum(before + shift, 0), rtol=1e-6)
        z = new @ sae.W_enc + sae.b_enc
        assert abs((z > sae.threshold).sum() - 4 * len(new)) <= 2  # the folded weights agree up to rounding
    config, out = done
    with open(out / "tables" / "main.csv") as file:
        found = [
            float(r["l0_mean"]) for r in csv.DictReader(file) if r["dictionary"] in ("atoms", "batchtopk")
        ]
    np.testing.assert_allclose(found, config.l0, rtol=0.12)


def test_sentences_are_computed(done):
    _, out = done
    text = (out / "report.md").read_text()
    figures = json.loads((out / "figures.json").read_text())
    mean = {r["dictionary"]: r for r in figures["average"]}
    assert f"Atoms explain {100 * mean['atoms']['R2_train']:.1f}% of training activations" in text
    assert f"q* of the atoms is {100 * mean['atoms']['q_star']:.1f}%" in text
    line = sorted(
        (p["q_star"], p["R2_held_out"])
        for p in figures["frontier"]
        if (p["dictionary"], p["varies"]) == ("atoms", "L0")
    )
    tied = next(p for p in figures["frontier"] if p["value"] == "tied")
    moved = tied["R2_held_out"] - np.interp(tied["q_star"], *zip(*line))
    assert f"a tied encoder {100 * moved:+.1f} points (L0 {tied['l0']:.1f})" in text
    assert ("The paper's jump is there" in text) != ("There is no clean jump" in text)


# ------------------------------------------------------------------ runs


def _script(tmp_path, rows, out):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(settings(rows).as_dict()))
    return ["-m", "atoms"], "report", path, "--output", out, "--jobs", 1


@pytest.mark.slow
def test_a_killed_run_goes_on(done, rows, tmp_path):
    """SIGKILL when some jobs are done: these are not done again, and the figures are the same."""
    config, reference = done
    out = tmp_path / "out"
    run = started(*_script(tmp_path, rows, out), strict=False, stderr=subprocess.PIPE)
    while len(list(out.glob("cells/*.npz"))) < 5:
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.05)
    run.kill()
    run.communicate()
    left = {p: p.stat().st_mtime_ns for p in out.glob("cells/*.npz") if not p.name.startswith(".")}
    assert 5 <= len(left) < len(list(reference.glob("cells/*.npz")))
    again = finished(*_script(tmp_path, rows, out), strict=False)
    assert again.stdout.strip().endswith("report.md")
    assert {p: p.stat().st_mtime_ns for p in left} == left
    planned = plan(config, report_data.prepare(config, tmp_path / "data"))
    assert results(out, planned) == results(reference, planned)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the cluster whose worker is killed
def test_a_cluster_that_loses_a_worker(done, rows, tmp_path):
    """Two Dask workers, one of them killed midway: everything is done, with the same figures."""
    distributed = pytest.importorskip("distributed")
    config, reference = done
    out = tmp_path / "out"
    about = report_data.prepare(config, out / "data")
    planned = plan(config, about)
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address="127.0.0.1:0",
            silence_logs=50,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        pids = list(client.run(os.getpid).values())
        assert len(set(pids)) == 2
        killed = []

        def kill():
            while len(list(out.glob("cells/*.npz"))) < 3:
                time.sleep(0.02)
            os.kill(pids[0], signal.SIGKILL)
            killed.append(len(list(out.glob("cells/*.npz"))))

        thread = threading.Thread(target=kill)
        thread.start()
        jobs.run(planned.first, out, out / "data", client=client, verbose=False)
        jobs.run(list(planned.agreement.values()), out, out / "data", client=client, verbose=False)
        thread.join()
    assert killed and killed[0] < len(set(planned.first))
    assert results(out, planned) == results(reference, planned)


@pytest.mark.slow
def test_figures_do_not_depend_on_workers_or_threads(done, rows, tmp_path):
    config, reference = done
    about = report_data.prepare(config, tmp_path / "data")
    planned = plan(config, about)
    some = list(planned.table.values())[:6]
    jobs.run(some, tmp_path, tmp_path / "data", n_jobs=2, threads=2, verbose=True)
    for job in some:
        a, b = jobs.read(tmp_path, job), jobs.read(reference, job)
        assert a.record == b.record and all(
            np.array_equal(a.arrays[k], b.arrays[k], equal_nan=True) for k in b.arrays
        )


def test_broken_results_are_done_again(done, tmp_path):
    config, reference = done
    about = report_data.prepare(config, tmp_path / "data")
    job = next(iter(plan(config, about).shift.values()))
    jobs.run([job, job], tmp_path, tmp_path / "data", verbose=False)
    path = tmp_path / "cells" / f"{job.key}.npz"
    path.write_bytes(path.read_bytes()[:100])
    assert not jobs.finished(tmp_path, job)
    jobs.run([job], tmp_path, tmp_path / "data", verbose=False)
    assert jobs.read(tmp_path, job).record == jobs.read(reference, job).record


def test_a_failing_job_says_why_and_leaves_the_others(tmp_path, monkeypatch):
    def fails(params, *_):
        if params["i"] == 1:
            raise ValueError("no such layer")
        return {"i": params["i"]}, {}

    monkeypatch.setitem(cells.CELLS, "test", fails)
    work = [jobs.Job("test", {"i": i}) for i in range(3)]
    with pytest.raises(ValueError, match="no such layer"):
        jobs.run(work, tmp_path, tmp_path, verbose=False)
    assert [jobs.finished(tmp_path, job) for job in work] == [True, False, False]
    assert not list(tmp_path.rglob("*.part")) and not list(tmp_path.rglob("*.progress"))


# ------------------------------------------------------------------ monosemanticity


def test_auroc():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, 30), rng.integers(0, 5, 20)
    want = np.mean([(x > y) + 0.5 * (x == y) for x in a for y in b])
    assert auroc(a, b) == pytest.approx(want, abs=1e-12)
    assert np.isnan(auroc([], [1]))


def test_the_default_judge_knows_a_word():
    rng = np.random.default_rng(0)
    judge = EmbeddingJudge(rng.standard_normal((50, 20)))
    context = lambda last: Context(("x",) * 4, (*rng.integers(0, 50, 3).tolist(), last), 3)
    examples = [context(7) for _ in range(5)]
    scores = judge(examples, [context(7) for _ in range(10)] + [context(i) for i in range(10, 40)])
    assert auroc(scores[:10], scores[10:]) > 0.95
    assert "<<x>>" in str(context(1))


@pytest.fixture(scope="module")
def of_a_model(tiny, text, tmp_path_factory):
    """A report of the tiny model from the command line's configuration file, texts and all."""
    folder = tmp_path_factory.mktemp("texts")
    words = text.read_text().split()
    (folder / "a.txt").write_text(" ".join(words[:2500]))
    (folder / "b.txt").write_text(" ".join(words[2500:3500]))
    (folder / "p.json").write_text(
        json.dumps([" ".join(words[3500 + 6 * i : 3506 + 6 * i]) for i in range(300)])
    )
    given = {
        "name": "a <tiny> model",
        "model": str(tiny),
        "d_in": 16,
        "parameters": 10_000,
        "n_layers": 3,
        "metric_text": "a.txt",
        "train_text": "p.json",
        "held_out_text": "b.txt",
        "metric_tokens": 2000,
        "train_tokens": 1500,
        "held_out_tokens": 800,
        "context_length": 32,
        "layers": [0, 2],
        "dictionaries": ["atoms", "neurons", "random-model"],
        "width": 2,
        "l0": 3,
        "samples": 4000,
        "batch_size": 128,
        "random_share": 1.0,
        "seeds": [0],
        "eval_rows": 300,
        "grid": {"layer": None},
        "frontier": {"layer": None},
        "monosemanticity": {"layer": 2, "latents": 8, "shown": 3, "examples": 5, "candidates": 10},
    }
    path = folder / "config.json"
    path.write_text(json.dumps(given))
    out = folder / "out"
    assert main(["report", str(path), "--output", str(out), "--texts", str(folder), "--jobs", "1"]) == 0
    return load(path, texts=str(folder)), out


def test_latents_that_fire_too_seldom_or_too_often_are_not_judged():
    fires = np.zeros((400, 6), np.float32)
    for latent, times in enumerate((0, 3, 160, 240, 4, 150)):
        fires[:times, latent] = 1

    class Model:
        def transform(self, rows):
            return sp.csr_array(rows)

    class Data:
        def has(self, part):
            return part == "text"

        def rows(self, part, layer):
            return fires[:: 1 if part == "metric" else 2]

    found = cells._probe(Model(), Data(), 0, {"examples": 4, "candidates": 3, "latents": 2, "seed": 0})
    assert found["probe/able"].tolist() == [2, 6]  # the fifth fires twice only in the second text
    assert found["probe/latents"].tolist() == [2, 5]


def test_a_model_and_its_pages(of_a_model):
    config, out = of_a_model
    text = (out / "report.md").read_text()
    assert (
        "Monosemanticity, layer 2" in text and "R² other text" in text and "atoms of a random model" in text
    )
    page = (out / "pages" / "atoms.html").read_text()
    assert page.count("<h2>") == 3 and "a &lt;tiny&gt; model" in page and "<mark" in page
    assert "http" not in page and "<script" not in page
    with open(out / "tables" / "monosemanticity.csv") as file:
        found = {r["dictionary"]: r for r in csv.DictReader(file)}
    # the model is random: its latents follow the token, which the judge sees
    assert float(found["atoms"]["detection"]) > 0.6
    figures = json.loads((out / "figures.json").read_text())
    assert [r["layer"] for r in figures["shift"]] == [0, 1, 2]  # "all" layers, beyond those of the table


def test_the_paper_s_protocol(of_a_model, tmp_path):
    """As many atoms as activations, the last token of each prompt, thresholds as training left them."""
    config, _ = of_a_model
    assert load("smollm2-paper").layers == tuple(range(30)) and load("smollm2-paper").train_rows == 4096
    mine = load(
        config,
        metric_text="p.json",
        train_text=None,
        held_out_text=None,
        positions="last",
        train_rows=64,
        hold_l0=False,
        width=4,
        l0=1,
        dictionaries=["atoms", "memorizing"],
        monosemanticity={"layer": None},
    )
    about = report_data.prepare(mine, tmp_path / "data", verbose=False)
    rows = about["rows"]
    assert 0 < rows["train"]["2"] + rows["held_out"]["2"] <= 300  # a row for each prompt
    held = report_data.Data(tmp_path / "data", about["key"])
    words = held.words("train", 2)
    last = np.append(np.diff(words["contexts"]) != 0, True)
    assert last[words["rows"]].all()
    out = tmp_path / "out"
    atoms.report(mine, out, jobs=1, verbose=False)
    with open(out / "tables" / "main.csv") as file:
        found = {(r["layer"], r["dictionary"]): r for r in csv.DictReader(file)}
    assert all(float(r["n_train"]) == 64 for r in found.values())
    assert float(found["2", "memorizing"]["R2_train"]) == pytest.approx(1, abs=1e-5)
    text = (out / "report.md").read_text()
    assert "the last token of a prompt" in text and "left as training ended" in text and "q* train" in text


@pytest.mark.filterwarnings("ignore:.* rows have a norm above 5 times")  # as tokens of layers 2 to 8 have
@pytest.mark.slow
def test_the_small_setting_on_a_real_model(tmp_path, loaded_smollm2):
    """`smollm2-small` with fewer tokens, at early layers, for a pass ends at the last one: all its parts in seconds."""
    early = {
        "metric_tokens": 2000,
        "train_tokens": 1500,
        "layers": (2,),
        "shift_layers": (0, 2),
        "dictionaries": ("atoms", "batchtopk", "random", "memorizing"),
        "samples": 12_000,
        "seeds": (0,),
        "eval_rows": 300,
        "grid": {"layer": 2, "data": (1,), "widths": (1, 2), "min_samples": 8000, "epochs": 1},
        "frontier": {
            "layer": 2,
            "l0": (4, 8),
            "dictionaries": ("atoms",),
            "widths": (),
            "data": (),
            "variants": (),
        },
        "monosemanticity": {"layer": 2, "latents": 4, "shown": 2},
    }
    out = atoms.report("smollm2-small", tmp_path / "out", jobs=1, threads=2, verbose=False, **early)
    text = out.read_text()
    for heading in (
        "Representation shift",
        "Capacity, layer 2",
        "The frontier, layer 2",
        "Monosemanticity, layer 2",
    ):
        assert f"## {heading}" in text
    figures = json.loads((out.parent / "figures.json").read_text())
    assert all(
        abs(r["angles_metric_mean"] - 90) < 3 and r["angles_euclidean_mean"] < 85 for r in figures["shift"]
    )
    mean = {r["dictionary"]: r for r in figures["average"]}
    assert (
        mean["memorizing"]["R2_train"] > 0.999
        and mean["memorizing"]["R2_held_out"] < mean["memorizing"]["R2_train"] - 0.3
    )
    assert mean["atoms"]["R2_held_out"] > mean["random"]["R2_held_out"]


def test_a_judge_of_ones_own(of_a_model):
    from atoms._report.monosemanticity import judge_all

    config, out = of_a_model
    planned = plan(config, report_data.prepare(config, out / "data", verbose=False))
    asked = []

    def indifferent(examples, candidates):
        assert all(isinstance(c, Context) and not any(c.activations) for c in [*examples, *candidates])
        asked.append(len(candidates))
        return [0.0] * len(candidates)

    for one in judge_all(config, planned, out, judge=indifferent):
        assert np.nanmax(np.abs(one.detection - 0.5)) == 0 and one.able[0] <= one.able[1]
    assert max(asked) == 2 * config.monosemanticity.candidates
    with pytest.raises(ValueError, match="judge: expected one finite score"):
        judge_all(config, planned, out, judge=lambda examples, candidates: [np.nan] * len(candidates))


# ------------------------------------------------------------------ the command line


def test_command_line(tmp_path, capsys):
    assert main(["report", "smollm2-small", "--estimate"]) == 0
    assert "min in all" in capsys.readouterr().out
    (tmp_path / "file").write_text("x")
    for arguments, message in [
        (["none.toml"], "no file none.toml; name a TOML or JSON file"),
        (["smollm2", "--output", str(tmp_path / "file")], "is a file; name a folder"),
    ]:
        assert main(["report", *arguments]) == 1
        assert message in capsys.readouterr().err
