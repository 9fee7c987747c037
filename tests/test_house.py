"""The house has rooms of one subject: the order of chapters is the order of their imports, modules
and cells are short, public names are few, and hydramix_nb.all lists them."""

import ast
import importlib
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
ALL = sorted(path for path in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
NUMBERED = [path for path in ALL if re.match(r"\d+_", path.name)]
APPENDICES = ["92_departures.ipynb"]  # numbered, but no module comes from them
MODULES = sorted(path.stem for path in (ROOT / "hydramix_nb").glob("[!_]*.py"))
MODULE_LINES, CELL_LINES, PUBLIC_NAMES = 485, 45, 200


def by_name(path):
    return str(path.relative_to(NBS))


def code_cells(path):
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def python_of(source):
    return "\n".join("" if re.match(r"\s*[%!]", line) else line for line in source.splitlines())


# order


def module_of(path):
    source = "\n".join(cell.source for cell in code_cells(path))
    found = re.search(r"^#\|\s*default_exp\s+(\w+)", source, re.M)
    return found and found[1]


NUMBER = {
    module_of(path): int(path.name.split("_")[0])
    for path in NUMBERED
    if path.name not in APPENDICES
}


def written(node):
    "What stands in a string, as far as it is known before the code runs"
    if isinstance(node, ast.JoinedStr):
        return "".join(v.value if isinstance(v, ast.Constant) else "?" for v in node.values)
    if isinstance(node, ast.BinOp):
        return written(node.left) + written(node.right)
    return str(node.value) if isinstance(node, ast.Constant) else "?"


def by_string(tree):
    "Modules of this package that a piece of code imports by a string; `?` stands for any"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        called = ast.unparse(node.func).rpartition(".")[2]
        if called in ("import_module", "__import__", "find_spec", "run_module", "resolve_name"):
            text = written(node.args[0])
            if re.match(r"hydramix_nb|\.|\?", text):
                yield text.removeprefix("hydramix_nb").strip(".") or "?"


def imported(tree):
    "Modules of this package that a piece of code imports, in its functions, too"
    for node in ast.walk(tree):
        full = []
        if isinstance(node, ast.Import):
            full = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = "hydramix_nb." * bool(node.level) + (node.module or "")
            package = package.removesuffix(".")
            full = [package]
            if package == "hydramix_nb":
                full = [f"hydramix_nb.{a.name}" for a in node.names if not a.name.startswith("_")]
        yield from (name.split(".")[1] for name in full if name.startswith("hydramix_nb."))


@pytest.mark.parametrize("path", NUMBERED, ids=by_name)
def test_imports_only_from_lower_numbers(path):
    own, module = int(path.name.split("_")[0]), module_of(path)
    for cell in code_cells(path):
        tree = ast.parse(python_of(cell.source))
        strings = list(by_string(tree))
        exported = re.search(r"^#\|\s*export", cell.source, re.M)
        if "def import_extra(" in cell.source:
            strings.remove("?")  # packages of an extra, none of this one
        assert not (exported and strings), f"imports {strings} by a string:\n{cell.source}"
        for name in [*imported(tree), *(name for name in strings if "?" not in name)]:
            if module == "all" and name == "all":
                continue
            assert name in NUMBER, f"hydramix_nb.{name} comes from no notebook"
            assert NUMBER[name] < own, f"{path.name} imports {name}, which is number {NUMBER[name]}"


def test_every_kind_of_import_is_seen():
    code = """
import hydramix_nb.a, torch
from hydramix_nb import b, __version__
from hydramix_nb.c import x
def f():
    from hydramix_nb import d
    from .e import x
    from . import f
"""
    assert list(imported(ast.parse(code))) == list("abcdef")
    code = """
importlib.import_module("hydramix_nb.a")
import_module(f"hydramix_nb.{name}")
__import__("hydramix_nb.b")
import_module("hydramix_nb." + "c")
import_module(name)
import_module("torch")
"""
    assert list(by_string(ast.parse(code))) == ["a", "?", "b", "c", "?"]


def test_every_chapter_has_its_module():
    "Two chapters may share a number: then neither imports the other"
    assert len(NUMBER) == len(NUMBERED) - len(APPENDICES)
    for path in NUMBERED:
        module = None if path.name in APPENDICES else path.stem.split("_", 1)[1]
        assert module_of(path) == module, f"{path.name} exports {module_of(path)}"
    assert set(MODULES) == set(NUMBER)


@pytest.mark.parametrize("path", NUMBERED, ids=by_name)
def test_imports_stand_alone_in_their_cells(path):
    for cell in code_cells(path):
        body = ast.parse(python_of(cell.source)).body
        kinds = {isinstance(node, (ast.Import, ast.ImportFrom)) for node in body}
        assert len(kinds) < 2, f"imports and other code in one cell:\n{cell.source}"


def test_errors_that_a_chapter_shows_are_raised():
    "`expect_fail` is a context manager: called with a function it would check nothing"
    for path in ALL:
        for cell in code_cells(path):
            called = re.search(r"^\s*expect_fail\(", cell.source, re.M)
            assert not called or "with (" in cell.source, f"{path.name}:\n{cell.source}"


def test_importing_everything_leaves_heavy_modules_alone():
    heavy = ["torch._dynamo", "torchvision", "scipy.stats", "diffusers", "transformers", "lightly"]
    program = "import sys, hydramix_nb.all; print([m for m in sys.argv[1:] if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program, *heavy], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


# size


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_read_in_ten_minutes(module):
    lines = len((ROOT / f"hydramix_nb/{module}.py").read_text(encoding="utf-8").splitlines())
    assert lines <= MODULE_LINES, f"{lines} lines: it has more than one subject"


@pytest.mark.parametrize("path", ALL, ids=by_name)
def test_cells_are_short(path):
    for cell in code_cells(path):
        lines = [line for line in cell.source.splitlines() if not line.startswith("#|")]
        assert len(lines) <= CELL_LINES, f"{len(lines)} lines:\n{cell.source}"


# names


def public():
    "The names that each module states, by module"
    found = {}
    for module in MODULES:
        tree = ast.parse((ROOT / f"hydramix_nb/{module}.py").read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                found[module] = ast.literal_eval(node.value)
                break
    return found


def test_public_names_are_few():
    names = {module: names for module, names in public().items() if module != "all"}
    counts = {module: len(own) for module, own in names.items()}
    assert sum(counts.values()) <= PUBLIC_NAMES, counts


def test_all_lists_every_name():
    everything, names = importlib.import_module("hydramix_nb.all"), public()
    owners = Counter(name for module, own in names.items() for name in own)
    through_module = everything._through_module
    for module, own in names.items():
        if module == "all":
            continue
        assert module in everything.__all__, f"90_all does not import {module}"
        for name in own:
            alone = owners[name] == 1 and name not in (*MODULES, *through_module)
            assert (name in everything.__all__) == (alone or name in MODULES), (
                f"90_all: {module}.{name} has {owners[name]} owners"
            )
            if alone:
                home = importlib.import_module(f"hydramix_nb.{module}")
                assert getattr(everything, name) is getattr(home, name)
    assert set(through_module) <= set(owners), "90_all leaves out names that no module has"
    unknown = set(everything.__all__) - set(owners) - set(MODULES)
    assert not unknown, f"90_all lists what is no public name: {sorted(unknown)}"


def moved():
    "The names in the right column of the table of moved names in CONTRIBUTING, as module.name"
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("## Moved names")[2].partition("\n## ")[0]
    for row in re.findall(r"^\| `.*", table, re.M):
        module = None
        for name in re.findall(r"`([\w.]+)`", row.split("|")[2]):
            owner, _, name = name.rpartition(".")
            module = owner or module
            yield f"{module}.{name}"


def test_moved_names_are_where_contributing_says():
    names = list(moved())
    assert len(names) > 50 and {"composing.resize", "tables.main"} <= set(names)
    everything, missing = importlib.import_module("hydramix_nb.all"), []
    for place in names:
        owner, name = place.split(".")
        if not hasattr(getattr(everything, owner, None), name):
            missing.append(place)
    assert not missing, f"CONTRIBUTING names what is not there: {missing}"


def test_departures_miss_no_section():
    "The committed page links every section on what is open, and has every row of its tables"
    page = nbformat.read(NBS / "92_departures.ipynb", 4)
    (shown,) = (
        output.data["text/markdown"]
        for cell in page.cells
        for output in cell.get("outputs", ())
        if "text/markdown" in output.get("data", ())
    )
    for path in NUMBERED:
        if path.name in APPENDICES:
            continue
        cells = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown"]
        prose = "\n\n".join(cells)
        for heading in re.findall(r"^#+ (.*\bopen\b.*)$", prose, re.M):
            assert f"({path.name}#{heading.replace(' ', '-')})" in shown, (path.name, heading)
        for table in re.findall(r"(?:^\|.*\n?)+", prose, re.M):
            head, *rows = table.strip().splitlines()
            if not head.rstrip(" |").endswith("here"):
                continue
            for row in rows[1:]:
                point = row.split("|")[1].strip()
                assert f"| {point} |" in shown, f"{path.name}: {point}"
