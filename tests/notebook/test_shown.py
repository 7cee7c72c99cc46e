"""What a notebook shows: tables of estimators and results, one kind of progress bar, and pictures."""

import html.parser
import os
import subprocess
import sys

import numpy as np
import pytest

import atoms
from atoms import activations, controls, recovery, theory
from atoms._shown import Table, cell
from atoms.metric import AngleHistogram


class Cells(html.parser.HTMLParser):
    """The rows of the tables in a page, and whether every element is closed."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.open = [], []
        self.feed(page)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def shown(value):
    return {row[0]: row[1:] for row in Cells(value._repr_html_()).rows}


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return (rng.standard_normal((600, 12)) @ rng.standard_normal((12, 12)) + 1).astype(np.float32)


@pytest.fixture(scope="module")
def metric(rows):
    return atoms.AtomicInnerProduct().fit(rows)


@pytest.fixture(scope="module")
def sae(rows, metric):
    model = atoms.SparseAutoencoder(32, metric=metric, target_l0=4, max_steps=40, verbose=False)
    return model.fit(rows, X_val=rows[:100])


def everything(rows, metric, sae):
    """One of each kind that has a table, by its name."""
    codes = sae.transform(rows)
    coherence = theory.coherence(sae, metric)
    acts = activations.Activations(
        {(3, "residual"): rows}, {(3, "residual"): np.linalg.norm(rows, axis=1).astype(float)},
        *np.zeros((3, len(rows)), np.int64), massive_counts={(3, "residual"): 0},
    )  # fmt: skip
    found = [
        metric, sae, atoms.SparseCoder(sae, n_nonzero=3).fit(rows), recovery.Dictionary(sae.W_dec, metric=metric), acts,
        *(kind(**arguments).fit(rows) for kind, arguments in (
            (controls.RandomDictionary, {"d_sae": 24, "l0": 3}), (controls.MemorizingDictionary, {"d_sae": 24}),
            (controls.KMeansDictionary, {"d_sae": 8}), (controls.PCADictionary, {}), (controls.NeuronBasis, {}),
        )),
        metric.angles(rows), recovery.omp(rows, sae, 3, return_info=True)[1], coherence, theory.stability(coherence, codes),
        theory.certificate(coherence), theory.certify(coherence, codes), theory.match_dictionaries(sae, sae),
        theory.consensus([sae, sae]),
        theory.explained_variance(rows, sae.inverse_transform(codes)), theory.stability_interval(coherence, codes, n_boot=9),
        atoms.io.PretrainedSAE(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec),
    ]  # fmt: skip
    return {type(x).__name__: x for x in found}


def test_everything_has_a_table(rows, metric, sae):
    for name, value in everything(rows, metric, sae).items():
        table = Cells(value._repr_html_()).rows
        assert len(table) >= 2, name
        assert len(repr(value)) < 900, name  # no arrays in a terminal either


def test_figures_of_an_autoencoder(sae):
    figures = shown(sae)
    assert figures["trained"] == [f"40 steps, {40 * 512:,} samples, {sae.history_['seconds'][-1]:.1f} s"]
    assert figures["explained variance, held out"] == [f"{sae.history_['explained_variance_val'][-1]:.4f}"]
    assert figures["L0 (its target)"] == [f"{sae.history_['l0'][-1]:.1f} (4)"]
    assert figures["latents"] == ["32 jumprelu, of 12 features"]


def test_what_is_not_fitted_says_so():
    page = atoms.SparseAutoencoder(7, tied=True)._repr_html_()
    assert "SparseAutoencoder, not fitted" in page and "d_sae=7, tied=True" in page
    assert not Cells(page).rows


def test_a_metric_is_not_computed_to_be_shown(rows):
    metric = atoms.AtomicInnerProduct().partial_fit(rows)
    assert shown(metric)["rows seen"] == ["600"]
    assert "spectrum" not in metric._derived
    _ = metric.metric_
    assert shown(metric)["condition number"] == [f"{metric.condition_number_:.4g}"]


def test_text_is_escaped():
    page = Table("<b>", [("<script>", "a & b")], ("", "<i>"), "x < y").html()
    assert "<script>" not in page and "<b>" not in page and "<i>" not in page
    assert Cells(page).rows == [["", "<i>"], ["<script>", "a & b"]]


def test_cells():
    assert [cell(v) for v in (None, np.nan, True, 12345, np.int64(3), 0.123456, np.zeros((2, 3)))] == [
        "–", "–", "yes", "12,345", "3", "0.1235", "2 x 3 float64",
    ]  # fmt: skip


def test_a_pipeline_shows_its_steps(metric):
    sklearn = pytest.importorskip("sklearn.pipeline")
    pipeline = sklearn.make_pipeline(metric, atoms.SparseAutoencoder(9))
    assert "SparseAutoencoder(d_sae=9)" in pipeline._repr_html_()


def test_angles_of_no_pair():
    none = AngleHistogram(np.nan, np.nan, np.zeros(180, int), np.linspace(0, 180, 181), 0, 1, "metric")
    assert shown(none)["pairs"] == ["0"]


NOTEBOOK = """
import sys, types
# what tqdm takes a notebook by, by its version: an IPython whose application is a kernel, or the kernel's module
shell = types.SimpleNamespace(config={"IPKernelApp": {}})
for name in ("IPython", "ipykernel", "ipykernel.zmqshell"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["IPython"].get_ipython = lambda: shell
sys.modules["ipywidgets"] = None
import numpy as np, atoms
X = np.random.default_rng(0).standard_normal((400, 8))
sae = atoms.SparseAutoencoder(16, target_l0=3, max_steps=5, verbose=VERBOSE).fit(X, X_val=X[:32])
atoms.recovery.omp(X, sae, 2, verbose=VERBOSE)
"""


@pytest.mark.parametrize("verbose", [True, False])
@pytest.mark.parametrize("strict", [True, False])
def test_bars_do_not_warn_where_there_are_no_widgets(verbose, strict):
    done = subprocess.run(
        [
            sys.executable,
            *(["-W", "error"] if strict else []),
            "-c",
            NOTEBOOK.replace("VERBOSE", str(verbose)),
        ],
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "TQDM_DISABLE"},  # which a test may have set
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr and "IProgress" not in done.stderr
    assert ("SAE:" in done.stderr and "omp:" in done.stderr) == verbose
    assert verbose or not done.stderr


def test_tqdm_by_itself_would_warn():
    """What the test above is worth: the same notebook with tqdm's own choice of a bar."""
    head = NOTEBOOK.partition("import numpy")[0]
    done = subprocess.run([sys.executable, "-c", head + "import tqdm.auto"], capture_output=True, text=True)
    assert "IProgress" in done.stderr


# ------------------------------------------------------------------ pictures


@pytest.fixture
def pictures(rows, metric, sae):
    pytest.importorskip("matplotlib").use("Agg")
    coherence = theory.coherence(sae, metric)
    return {
        "metric": metric,
        "sae": sae,
        "angles": metric.angles(rows),
        "coherence": coherence,
        "stability": theory.stability(coherence, sae.transform(rows)),
    }


@pytest.mark.parametrize("name", ["metric", "sae", "angles", "coherence", "stability"])
def test_pictures(pictures, name):
    from matplotlib import pyplot
    from matplotlib.colors import to_hex

    axes = pictures[name].plot()
    assert axes.get_title(loc="left") and axes.get_xlabel()
    assert axes.figure.number in pyplot.get_fignums()  # what a notebook shows
    assert to_hex(axes.xaxis.label.get_color()) == "#1d2733" and pyplot.rcParams["axes.labelcolor"] == "black"
    assert pictures[name].plot(axes) is axes
    assert len(pyplot.get_fignums()) == 1
    axes.figure.canvas.draw()


def test_a_picture_has_the_figures(pictures):
    shares = pictures["metric"].plot().lines[0].get_ydata()
    values = pictures["metric"].eigenvalues_
    assert np.allclose(shares, values / values.sum())
    counts = pictures["coherence"].plot().patches[0].get_data().values
    assert counts.sum() == pictures["coherence"].n_pairs
    curve = pictures["stability"].plot().lines
    assert np.array_equal(curve[0].get_ydata(), pictures["stability"].mu)
    held = pictures["sae"].plot().lines[1].get_ydata()
    history = np.array(pictures["sae"].history_["explained_variance_val"])
    assert np.array_equal(held, history[np.isfinite(history)])


def test_a_picture_without_held_out_rows(rows):
    model = atoms.SparseAutoencoder(16, target_l0=3, max_steps=5, verbose=False).fit(rows)
    assert model.plot().get_title(loc="left") == "Explained variance"
    with pytest.raises(ValueError, match="not fitted"):
        atoms.SparseAutoencoder().plot()


def test_a_picture_without_matplotlib(pictures, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for value in pictures.values():
        with pytest.raises(ImportError, match="pip install matplotlib"):
            value.plot()
