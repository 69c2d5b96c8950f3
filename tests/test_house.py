"""The house keeps to its plan: who imports whom, how long things are, what is public. Read from the source, not by running it.

`NOT_YET` lists what still breaks a rule. It may only shrink: a line that is mended must leave it, or its test fails.
"""

import ast
import importlib
from functools import cache
from pathlib import Path

import hf_i2i_unlearn

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hf_i2i_unlearn"
RECIPES = sorted((ROOT / "recipes").glob("*.py"))
LONGEST_FILE, LONGEST_FUNCTION, LONGEST_RECIPE = 400, 60, 40

FAMILIES = {"models.mae", "models.diffusion", "models.mage"}
# What every room may import, at any level; of these, each knows only the others.
SHARED = {"errors", "storage", "demo", "markdown", "tensor_files", "places"}
# What each room may import besides: a room, or one module of it.
ALLOWED = {
    "methods": set(),
    "data": set(),
    "models": {"methods"},
    "training": {"models.base", "models.patches", "methods", "data", "evaluation", "reporting.hub"},
    "evaluation": {"models.base", "methods", "data"},
    "audit": {"models.base", "models.patches", "methods", "data", "evaluation"},  # an attacker may train adapters
    "reporting": set(),
    "originals": {"models", "methods", "data", "evaluation", "training", "reporting"},
    "experiments": {"models", "methods", "data", "evaluation", "training", "originals", "audit", "reporting"},
}
FREE = {"commands", "__main__", "__init__"}  # know everything
OLD_DOORS = {"conversion", "conversion_mage", "loading"}  # names of before, which cards have: each only passes on to a command

NOT_YET: dict[str, set[str]] = {}


def rest(rule: str, found: set[str] | dict[str, str]) -> None:
    """Fails with what breaks a rule, apart from what is known to, and with what is known to and does no more."""
    known, found = NOT_YET.get(rule, set()), dict.fromkeys(found, "") | dict(found if isinstance(found, dict) else {})
    assert not found.keys() - known, "\n".join(f"{name}{found[name]}" for name in sorted(found.keys() - known))
    assert not known - found.keys(), "mended, so take them off NOT_YET:\n" + "\n".join(sorted(known - found.keys()))


@cache
def modules() -> dict[str, tuple[Path, ast.Module]]:
    """{"training.trainer": (file, tree)}; a package stands for its __init__. What `evaluate` loads by path is left out."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        if "evaluate_modules" not in parts:
            found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = (
                file,
                ast.parse(file.read_text()),
            )
    return found


def imports(name: str, tree: ast.AST, nested: bool = True) -> list[tuple[str, str | None, int]]:
    """(module of ours, name taken from it or None, line) for each import; `nested`: also those within functions."""
    file = modules()[name][0]
    package = name.split(".") if file.name == "__init__.py" and name != "__init__" else name.split(".")[:-1]
    found = []
    for node in ast.walk(tree) if nested else at_module_level(tree):
        if isinstance(node, ast.ImportFrom):
            base = (node.module or "").split(".") if node.module else []
            if node.level:
                base = package[: len(package) - node.level + 1] + base
            elif base[:1] == ["hf_i2i_unlearn"]:
                base = base[1:]
            else:
                continue
            for alias in node.names:
                whole = ".".join([*base, alias.name])
                found.append(
                    (whole, None, node.lineno)
                    if whole in modules()
                    else (".".join(base) or "__init__", alias.name, node.lineno)
                )
        elif isinstance(node, ast.Import):
            found += [
                (a.name[15:] or "__init__", None, node.lineno) for a in node.names if a.name.split(".")[0] == "hf_i2i_unlearn"
            ]
    return found


def at_module_level(tree: ast.AST):
    """The nodes that run when a module is imported: not those within functions, nor those for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from at_module_level(node)


def room(name: str) -> str:
    return name.split(".")[0]


def within(name: str, allowed: set[str]) -> bool:
    return any(name == a or name.startswith(a + ".") for a in allowed)


def test_rooms_import_whom_they_may():
    found = set()
    for name, (_, tree) in modules().items():
        if room(name) in FREE | OLD_DOORS:
            continue
        allowed = ALLOWED.get(room(name), set()) | SHARED | {room(name)}
        found |= {f"{name} imports {other}" for other, _, _ in imports(name, tree) if not within(other, allowed)}
    rest("rooms", found)


def test_families_do_not_know_one_another():
    found = set()
    for name, (_, tree) in modules().items():
        mine = next((f for f in FAMILIES if within(name, {f})), None)
        if mine:
            found |= {f"{name} imports {other}" for other, _, _ in imports(name, tree) if within(other, FAMILIES - {mine})}
    rest("families", found)


def test_what_travels_with_the_weights_imports_nothing_of_ours():
    found = set()
    for name, (_, tree) in modules().items():
        if within(name, {"models.mage.hf"}):
            found |= {f"{name} imports {other}" for other, _, _ in imports(name, tree) if not within(other, {"models.mage.hf"})}
    rest("travels", found)


def test_no_circles():
    """Of imports at module level, between modules; importing a module also runs the packages that it is in."""
    edges = {}
    for name, (_, tree) in modules().items():
        edges[name] = {other for other, _, _ in imports(name, tree, nested=False)} - {name, "__init__"}
    done, circles = set(), set()

    def walk(name, path):
        if name in path:
            circles.add(" -> ".join([*path[path.index(name) :], name]))
        elif name not in done:
            for other in sorted(edges.get(name, ())):
                walk(other, [*path, name])
            done.add(name)

    for name in edges:
        walk(name, [])
    rest("circles", circles)


def test_no_circles_between_rooms():
    """At any level: also an import within a function makes two rooms know one another."""
    knows = {}
    for name, (_, tree) in modules().items():
        if room(name) not in FREE | OLD_DOORS:
            knows.setdefault(room(name), set()).update(room(other) for other, _, _ in imports(name, tree))
    rest("room circles", {f"{a} <-> {b}" for a in knows for b in knows[a] if a < b and a in knows.get(b, ())})


def test_private_names_stay_in_their_module():
    found = set()
    for name, (_, tree) in modules().items():
        for other, taken, _ in imports(name, tree):
            if taken and taken.startswith("_") and not taken.startswith("__"):
                found.add(f"{name} imports {taken} of {other}")
    rest("private", found)


def test_files_are_short():
    lines = {name: len(file.read_text().splitlines()) for name, (file, _) in modules().items()}
    rest("long files", {f"{name} has more than {LONGEST_FILE} lines" for name, n in lines.items() if n > LONGEST_FILE})


def functions(tree: ast.AST, prefix: str = "") -> list[tuple[str, ast.AST]]:
    found = []
    for node in ast.iter_child_nodes(tree):
        name = prefix
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            name = f"{prefix}{node.name}"
            found.append((name, node))
            name += "."
        elif isinstance(node, ast.ClassDef):
            name = f"{prefix}{node.name}."
        found += functions(node, name)
    return found


def length(function) -> int:
    """Lines from `def` to the end, without those of the docstring: to explain a function is no fault of it."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is None:
        return lines
    return lines - (function.body[0].end_lineno - function.body[0].lineno + 1)


def test_functions_are_short():
    found = set()
    for name, (_, tree) in modules().items():
        found |= {
            f"{name}.{f} has more than {LONGEST_FUNCTION} lines"
            for f, node in functions(tree)
            if length(node) > LONGEST_FUNCTION
        }
    rest("long functions", found)


def test_no_code_asks_for_a_methods_name():
    """What a method needs is a property of the object; its name is for tables and cards."""
    words = {"ours", "paper", "random_encoder", "max_loss", "noisy_label", "retain_label", "encoder", "output", "noise"}
    words |= set(hf_i2i_unlearn.METHODS)
    found = set()
    for name, (_, tree) in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare):
                sides = [node.left, *node.comparators]
                asked = any(ast.unparse(s).split(".")[-1] in ("method", "name", "variant", "forget_target") for s in sides)
                consts = {c.value for s in sides for c in ast.walk(s) if isinstance(c, ast.Constant)}
                if asked and consts & words:
                    found.add(f"{name} asks {ast.unparse(node)}")
    rest("names", found)


def test_recipes_use_public_names_only():
    """Those of `hf_i2i_unlearn.__all__`, and what a command is."""
    public, found = {*hf_i2i_unlearn.__all__, "__version__", "commands"}, {}
    for file in RECIPES:
        private = []
        for node in ast.walk(ast.parse(file.read_text())):
            module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
            if module == "hf_i2i_unlearn":
                private += [a.name for a in node.names if a.name not in public]
            elif module.startswith("hf_i2i_unlearn.") and not within(module, {"hf_i2i_unlearn.commands"}):
                private += [f"{module}.{a.name}" for a in node.names]
        if private:
            found[f"recipes/{file.name}"] = f" imports what is not public: {', '.join(private)}"
    rest("recipes", found)


def test_recipes_are_short():
    """Lines of code, without docstring and imports (which the formatter breaks), comments and blank lines."""
    found = {}
    for file in RECIPES:
        text = file.read_text()
        body = ast.parse(text).body
        told = [body[0], *(node for node in body if isinstance(node, (ast.Import, ast.ImportFrom)))]
        left_out = {number for node in told for number in range(node.lineno, node.end_lineno + 1)}
        written = [line.strip() for number, line in enumerate(text.splitlines(), 1) if number not in left_out]
        count = sum(bool(line) and not line.startswith("#") for line in written)
        if count > LONGEST_RECIPE:
            found[f"recipes/{file.name}"] = f" has {count} lines of code, more than {LONGEST_RECIPE}"
    rest("long recipes", found)


def test_the_public_names_are_few_and_there():
    names = hf_i2i_unlearn.__all__
    rest("public", {"more than 50 names": f": {len(names)}"} if len(names) > 50 else {})
    assert len(names) >= 30
    for name in names:
        assert getattr(hf_i2i_unlearn, name) is not None
        assert not name.startswith("_")


def test_the_version_has_one_place():
    assert "attr: hf_i2i_unlearn.__version__" in (ROOT / "setup.cfg").read_text()
    assert f"## {hf_i2i_unlearn.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert (PACKAGE / "py.typed").exists()


def test_every_module_can_be_imported():
    for name in modules():
        if name not in ("__init__", "__main__"):
            importlib.import_module(f"hf_i2i_unlearn.{name}")
