"""What `make lint` asks of the structure: short functions, few parameters, no circles, nobody in another's private parts.

C: no function of more than 60 lines or 8 parameters; files include each other in no circle, and rooms only what stands
below them. Python: no function of more than 60 lines of code (docstrings don't count) or of complexity above 15; modules
import each other in no circle, and no name that begins with an underscore from one another.
"""

import ast
import pathlib
import re
import sys

import lizard

ROOT = pathlib.Path(__file__).resolve().parent.parent
LINES, PARAMETERS, COMPLEXITY = 60, 8, 15
# a room includes its own files and those of rooms before it
FLOORS = (("include",), ("isa",), ("base",), ("metric", "recovery", "sae", "theory"))


def c_files():
    return sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".c", ".h", ".inc"))


def c_functions(path):
    """lizard's findings; a template's names, FN(name) and K(name), are made plain for it."""
    text = re.sub(r"\b(?:FN|K)\((\w+)\)", r"\1", path.read_text())
    text = re.sub(r"^TEST\((\w+)\)", r"void \1(void)", text, flags=re.MULTILINE)
    return lizard.analyze_file.analyze_source_code(path.with_suffix(".c").name, text).function_list


def check_c():
    for path in c_files():
        here = path.relative_to(ROOT)
        for f in c_functions(path):
            if f.length > LINES:
                yield f"{here}:{f.start_line}: {f.name} has {f.length} lines, more than {LINES}"
            if len(f.full_parameters) > PARAMETERS:
                yield f"{here}:{f.start_line}: {f.name} has {len(f.full_parameters)} parameters, more than {PARAMETERS}"


def c_graph():
    """What each file of the core and the binding includes, of these."""
    folders = [ROOT / "csrc" / "include", ROOT / "csrc" / "core"]
    graph = {}
    for path in c_files():
        named = re.findall(r'^\s*#\s*include "([^"]+)"', path.read_text(), re.MULTILINE)
        found = [
            next((c for c in [path.parent / n, *[f / n for f in folders]] if c.exists()), None) for n in named
        ]
        graph[path] = {f.resolve() for f in found if f is not None}
    return graph


def floor(path):
    parts = path.relative_to(ROOT / "csrc").parts
    room = parts[1] if parts[0] == "core" else parts[0]
    return room, next((i for i, rooms in enumerate(FLOORS) if room in rooms), None)


def check_floors(graph):
    for path, included in graph.items():
        room, here = floor(path)
        for other in included:
            there_room, there = floor(other)
            if None not in (here, there) and (there > here or (there == here and there_room != room)):
                yield f"{path.relative_to(ROOT)}: includes {other.relative_to(ROOT)}, which does not stand below it"


# ------------------------------------------------------------------ Python


def modules():
    found = {}
    for path in sorted((ROOT / "atoms").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def without_docstring(node):
    last = node.end_lineno
    first = node.body[0]
    if (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    ):
        return last - node.lineno + 1 - (first.end_lineno - first.lineno + 1)
    return last - node.lineno + 1


def check_python():
    for path in modules().values():
        here = path.relative_to(ROOT)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and without_docstring(node) > LINES:
                lines = without_docstring(node)
                yield f"{here}:{node.lineno}: {node.name} has {lines} lines of code, more than {LINES}"
        for f in lizard.analyze_file(str(path)).function_list:
            if f.cyclomatic_complexity > COMPLEXITY:
                yield f"{here}:{f.start_line}: {f.name} has a complexity of {f.cyclomatic_complexity}, above {COMPLEXITY}"


def imports(name, path, known):
    """Modules of the package that one imports, wherever in it, and the names it takes from them."""
    tree = ast.parse(path.read_text())
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in known:
                    yield alias.name, None
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = parts[: len(parts) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                if inner == "atoms._core":  # the extension: it imports nothing
                    continue
                if inner in known:
                    yield inner, None
                elif base in known:
                    yield base, alias.name


def python_graph():
    known = modules()
    graph, private = {}, []
    for name, path in known.items():
        found = list(imports(name, path, known))
        graph[name] = {m for m, _ in found if m != name}
        private += [
            f"{path.relative_to(ROOT)}: takes {taken} from {m}: a private name"
            for m, taken in found
            if taken and taken.startswith("_") and not taken.startswith("__") and m != name
        ]
    return graph, private


def circles(graph):
    """Strongly connected components of more than one node (Tarjan 1972)."""
    index, low, stack, found = {}, {}, [], []

    def visit(v):
        index[v] = low[v] = len(index)
        stack.append(v)
        for w in sorted(graph.get(v, ())):
            if w not in index:
                visit(w)
                low[v] = min(low[v], low[w])
            elif w in stack:
                low[v] = min(low[v], index[w])
        if low[v] == index[v]:
            at = stack.index(v)
            if len(stack) - at > 1:
                found.append(sorted(map(str, stack[at:])))
            del stack[at:]

    for v in sorted(graph):
        if v not in index:
            visit(v)
    return found


def main():
    sys.setrecursionlimit(10_000)
    includes = c_graph()
    imported, private = python_graph()
    complaints = [*check_c(), *check_floors(includes), *check_python(), *private]
    complaints += [
        f"a circle of imports: {', '.join(c)}" for graph in (includes, imported) for c in circles(graph)
    ]
    print("\n".join(complaints) or "house: in order")
    return bool(complaints)


if __name__ == "__main__":
    sys.exit(main())
