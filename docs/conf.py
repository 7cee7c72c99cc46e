"""The documentation site: `make docs` builds it into build/docs, with warnings as errors.

API pages are written here for every public module there is, and the notebooks are taken as they lie in
notebooks/: a new module or notebook needs no line anywhere. Both go into docs/_generated, which git ignores.
"""

import inspect
import pydoc
import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]

import latex2mathml.converter  # noqa: E402
import public  # noqa: E402
from docutils import nodes  # noqa: E402
from sphinx.domains.python import PyObject, PyXRefRole  # noqa: E402
from sphinx.util.math import get_node_equation_number  # noqa: E402

import atoms  # noqa: E402

# ------------------------------------------------------------------ pages that are generated

GENERATED = HERE / "_generated"
REPORT = """atoms.report
============

.. py:currentmodule:: atoms

.. autofunction:: report

What a configuration holds
--------------------------

A mapping, or a TOML or JSON file, with any of these; ``grid``, ``frontier`` and ``monosemanticity`` are mappings
of what stands under their names.

.. autoclass:: atoms._report.Config
.. autoclass:: atoms._report.Grid
.. autoclass:: atoms._report.Frontier
.. autoclass:: atoms._report.Monosemanticity
"""


def write(path, text):
    """Leave what is unchanged alone, so that only what changed is built again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
    return path


def api_pages():
    pages, lines = [], []
    for module in public.ROOMS:
        heading, name = module.__name__, module.__name__.removeprefix("atoms.")
        first = ", ".join([*public.at_hand(module), *module.__all__])
        page = f"{heading}\n{'=' * len(heading)}\n\n.. automodule:: {heading}\n   :members: {first}\n"
        results = [cls for cls in public.returned() if public.room_of(cls) is module]
        if results:
            page += "\nWhat comes back\n---------------\n\n"
            page += "\n".join(f".. autoclass:: {heading}.{cls.__name__}\n   :members:\n" for cls in results)
        pages.append(write(GENERATED / "api" / f"{name}.rst", page))
        said = (module.__doc__ or "").strip().split("\n")[0]
        lines.append(f"   * - :py:mod:`atoms.{name}`\n     - {said}\n")
    top = "\n".join(
        f"   * - :py:obj:`atoms.{name}`\n"
        f"     - {(getattr(atoms, name).__doc__ or '').strip().splitlines()[0]}"
        for name in atoms.__all__
        if not name.startswith("_") and hasattr(getattr(atoms, name), "__module__")
    )
    settings = "".join(
        f".. autofunction:: atoms.{n}\n\n" for n in atoms.__all__ if n.endswith(("threads", "config"))
    )
    pages.append(write(GENERATED / "api" / "report.rst", REPORT))
    rooms = "".join(f"   {page.stem}\n" for page in pages)
    write(
        GENERATED / "api" / "index.rst",
        f"API reference\n=============\n\nOne page for each room of the package; ``import atoms`` has the names "
        f"below at hand.\n\n.. list-table::\n   :widths: 30 70\n\n{top}\n\nModules\n-------\n\n.. list-table::\n"
        f"   :widths: 30 70\n\n{''.join(lines)}\n.. toctree::\n   :hidden:\n\n{rooms}\nSettings\n--------\n\n"
        f".. module:: atoms\n\n{settings}",
    )
    keep = {"index.rst", *(page.name for page in pages)}
    for old in (GENERATED / "api").glob("*.rst"):
        if old.name not in keep:
            old.unlink()


def notebooks():
    target = GENERATED / "notebooks"
    target.mkdir(parents=True, exist_ok=True)
    there = {path.name for path in (ROOT / "notebooks").glob("*.ipynb")}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        if not (target / path.name).exists() or (target / path.name).read_bytes() != path.read_bytes():
            shutil.copy(path, target)
    for old in target.glob("*.ipynb"):
        if old.name not in there:
            old.unlink()


api_pages()
notebooks()

# ------------------------------------------------------------------ Sphinx

project = "atoms"
author = "the atoms authors"
copyright = author
version = release = atoms.__version__
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_nb",
]
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = []
templates_path = []
nitpicky = True
# what types are spelled like in docstrings and annotations, of packages whose pages are not looked up here
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(numpy|np|npt|scipy|sp|torch|transformers|huggingface_hub|distributed|dask|enum|wandb|tensorboard|collections|os|pathlib|typing|argparse)\..*",
    ),
    (
        r"py:.*",
        r"(ndarray|csr_array|array.*|mapping.*|callable|path|iterable.*|sequence.*|tensor.*|optional)",
    ),
    (r"py:(class|obj)", r"[^.]*"),
    (r"py:(class|obj)", r".*[ ,{}()=<>].*"),
]
suppress_warnings = ["ref.python"]  # attributes of several classes, such as W_enc: the first is as good
default_role = "name"
autodoc_default_options = {"member-order": "bysource"}
autodoc_typehints = "none"  # the docstrings say types, with shapes
autodoc_preserve_defaults = True
autosummary_generate = False
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 88
add_module_names = False

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # they are shown as `make notebooks` ran them


def plain_bars(app, what, name, obj, options, lines):
    """Docstrings write |x| for magnitudes; reStructuredText would take it for a substitution."""
    for i, line in enumerate(lines):
        if "|" in line and not line.lstrip().startswith((">>>", "...")):
            parts = re.split(r"(``.*?``|`.*?`)", line)
            lines[i] = "".join(p if p.startswith("`") else re.sub(r"(?<!\\)\|", r"\|", p) for p in parts)


summaries = {}


def keep_properties(app, what, name, obj, options, lines):
    if what == "property":
        summaries[name] = list(lines)


def restore_properties(app, what, name, obj, options, lines):
    """napoleon takes "Mean: the sum over n." for a type and what is of it; here it is a sentence."""
    original = summaries.pop(name, None)
    if original is not None and not any(line.startswith("---") for line in original):
        lines[:] = original


def fitted_attributes(app, what, name, obj, options, lines):
    """napoleon writes ``:ivar mean_:``, where mean_ would be a reference and lose its underscore."""
    for i, line in enumerate(lines):
        if line.startswith((":ivar ", ":vartype ", ":param ", ":type ")):
            lines[i] = re.sub(r"(?<=\w)_(?=[,:])", r"\\_", line, count=line.split(": ")[0].count("_") or 1)


def without_rooms(app, what, name, obj, options, lines):
    """Which files a module is made of is for its developers."""
    first = next(
        (i for i, line in enumerate(lines) if "each of which imports only from" in line),
        None,
    )
    if what == "module" and first is not None:
        del lines[first:]


def aliases():
    """Other ways to say a documented name: atoms.SparseAutoencoder, atoms._report.run.report, io.load."""
    found = {"atoms._report.run.report": "atoms.report", "atoms.report": "atoms.report"}
    for thing in (*public.named(), *public.returned()):
        module, name = public.room_of(thing), thing.__name__
        room = module.__name__.removeprefix("atoms.")
        if module is not atoms:  # `report` and the settings have entries of their own
            found[f"{thing.__module__}.{name}"] = found[f"{room}.{name}"] = f"atoms.{room}.{name}"
            if name in atoms.__all__:
                found[f"atoms.{name}"] = f"atoms.{room}.{name}"
    return found


def elsewhere(app, env, node, contnode):
    """A reference by another name goes to the page there is; to a private object it is plain code."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py":
        return None
    head, _, rest = target.rpartition(".")
    known = app.config.atoms_aliases
    for name in (target, head):
        if name in known:
            full = known[name] + (f".{rest}" if name == head else "")
            return env.get_domain("py").resolve_xref(
                env, node["refdoc"], app.builder, node["reftype"], full, node, contnode
            )
    if target.startswith("atoms.") and pydoc.locate(target) is not None:
        return contnode
    owner = pydoc.locate(head) if head.startswith("atoms.") else None
    if inspect.isclass(owner) and rest in (owner.__doc__ or ""):
        return contnode  # an attribute of instances, described with its class
    return None  # there is no such thing: warned of


def name_role(role, rawtext, text, lineno, inliner, options=None, content=()):
    """`name` in docstrings: a link where the package documents that name, else code (a parameter, say)."""
    module = inliner.document.settings.env.ref_context.get("py:module", "atoms").removeprefix("atoms.")
    known = inliner.document.settings.env.app.config.atoms_aliases
    plain = text.removesuffix("()").removeprefix("atoms.")
    owner = plain.partition(".")[0]
    for name in (".".join(plain.split(".")[:2]), f"{module}.{owner}", f"atoms.{owner}"):
        if name in known:
            rest = plain.removeprefix(name.removeprefix("atoms.").removeprefix(f"{module}."))
            if rest and not inspect.isclass(pydoc.locate(known[name])):
                continue  # a function has no parts
            full = known[name] + rest
            return PyXRefRole()("py:obj", rawtext, f"{text} <{full}>", lineno, inliner)
    return [nodes.literal(rawtext, text)], []


# Formulas become MathML when the site is built: no script, no other server, the same offline.


def mathml(formula, display):
    """Bars are magnitudes here, never relations: no space beside them."""
    found = latex2mathml.converter.convert(formula, display=display)
    return re.sub(
        r"<mo>(\||&#x0007C;|&#x02016;|‖)</mo>", r'<mo stretchy="false" lspace="0" rspace="0">\1</mo>', found
    )


def inline_math(self, node):
    self.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def display_math(self, node):
    self.body.append(self.starttag(node, "div", CLASS="equation"))
    self.body.append(mathml(node.astext(), "block"))
    if node["number"]:
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append("</div>")
    raise nodes.SkipNode


def generated_notebooks(app, docname, source):
    """Links to notebooks, written for whoever reads the repository, lead to the site's pages of them."""
    source[0] = source[0].replace("](../notebooks/", "](_generated/notebooks/")


def setup(app):
    app.connect("source-read", generated_notebooks)
    app.add_html_math_renderer("mathml", (inline_math, None), (display_math, None))
    app.add_role("name", name_role)
    app.add_config_value("atoms_aliases", aliases(), "env")
    app.connect("autodoc-process-docstring", plain_bars, priority=400)
    app.connect("autodoc-process-docstring", keep_properties, priority=450)
    app.connect("autodoc-process-docstring", restore_properties, priority=600)
    app.connect("autodoc-process-docstring", fitted_attributes, priority=700)
    app.connect("autodoc-process-docstring", without_rooms)
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
    app.connect("missing-reference", elsewhere)


html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"atoms {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
