"The notebooks as files: clean, small, in the order of their imports; the README that is made of one."

import ast
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
ALL = sorted(path for path in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
NUMBERED = [path for path in ALL if re.match(r"\d+_", path.name)]


def by_name(path):
    return str(path.relative_to(NBS))


def code_cells(path):
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def python_of(source):
    return "\n".join("" if re.match(r"\s*[%!]", line) else line for line in source.splitlines())


def tool(name):
    return str(Path(sys.executable).with_name(name))


# order


def module_of(path):
    found = re.search(
        r"^#\|\s*default_exp\s+(\w+)", "\n".join(cell.source for cell in code_cells(path)), re.M
    )
    return found and found[1]


APPENDICES = ["92_departures.ipynb"]  # numbered, but no module comes from them
NUMBER = {
    module_of(path): int(path.name.split("_")[0])
    for path in NUMBERED
    if path.name not in APPENDICES
}


def imported(tree):
    "Modules of this package that a piece of code imports"
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            full = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "hydramix_nb":
            full = [
                f"hydramix_nb.{alias.name}"
                for alias in node.names
                if not alias.name.startswith("_")
            ]
        elif isinstance(node, ast.ImportFrom):
            full = [node.module or ""]
        else:
            continue
        yield from (name.split(".")[1] for name in full if name.startswith("hydramix_nb."))


@pytest.mark.parametrize("path", NUMBERED, ids=by_name)
def test_imports_only_from_lower_numbers(path):
    own, module = int(path.name.split("_")[0]), module_of(path)
    for cell in code_cells(path):
        for name in imported(ast.parse(python_of(cell.source))):
            if module == "all" and name == "all":
                continue
            assert name in NUMBER, f"hydramix_nb.{name} comes from no notebook"
            assert NUMBER[name] < own, f"{path.name} imports {name}, which is number {NUMBER[name]}"


def test_numbers_and_modules_are_unique():
    assert len({path.name.split("_")[0] for path in NUMBERED}) == len(NUMBERED)
    assert len(NUMBER) == len(NUMBERED) - len(APPENDICES)
    for path in NUMBERED:
        assert module_of(path) == (
            None if path.name in APPENDICES else path.stem.split("_", 1)[1]
        ), f"{path.name} exports {module_of(path)}"


@pytest.mark.parametrize("path", NUMBERED, ids=by_name)
def test_imports_stand_alone_in_their_cells(path):
    for cell in code_cells(path):
        kinds = {
            isinstance(node, (ast.Import, ast.ImportFrom))
            for node in ast.parse(python_of(cell.source)).body
        }
        assert len(kinds) < 2, f"imports and other code in one cell:\n{cell.source}"


@pytest.mark.parametrize("path", NUMBERED, ids=by_name)
def test_begins_with_name_and_description(path):
    first = nbformat.read(path, 4).cells[0]
    assert first.cell_type == "markdown" and re.match(r"# \S+\n\s*> \S", first.source), first.source


# files


@pytest.mark.parametrize("path", ALL, ids=by_name)
def test_small_and_without_errors(path):
    assert path.stat().st_size < 500_000, (
        f"{path.stat().st_size // 1000} kB: smaller or fewer figures"
    )
    for cell in code_cells(path):
        for output in cell.outputs:
            assert output.output_type != "error", cell.source


def cleaned(path, folder):
    "A copy of a notebook after nbdev_clean with this project's settings"
    copy = folder / path.name
    shutil.copy(path, copy)
    subprocess.run(
        [tool("nbdev_clean"), "--fname", str(copy)], cwd=ROOT, check=True, capture_output=True
    )
    return copy


def test_cleaning_keeps_the_parameters_tag(tmp_path):
    nb = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell(
                "seed: int = 0  # decides everything",
                metadata={"tags": ["parameters"], "collapsed": True},
            )
        ]
    )
    nb.cells[0].execution_count = 7
    nbformat.write(nb, tmp_path / "made.ipynb")
    (tmp_path / "out").mkdir()
    (cell,) = nbformat.read(cleaned(tmp_path / "made.ipynb", tmp_path / "out"), 4).cells
    assert cell.metadata == {"tags": ["parameters"]}
    assert cell.execution_count is None


def test_cells_have_unique_ids():
    for path in ALL:
        ids = [cell.get("id") for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
        assert all(ids) and len(ids) == len(set(ids)), path


# README

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)\n```$", README, re.M | re.S)


def test_readme_is_in_sync():
    text, pictures = runpy.run_path(str(ROOT / ".ci/readme.py"))["render"]()
    assert README == text, "run: python .ci/readme.py"
    for name, data in pictures.items():
        assert (ROOT / name).read_bytes() == data, name


def test_readme_has_two_commands_of_one_line():
    assert len(blocks("sh")) == 2
    for command in blocks("sh"):
        assert "\n" not in command and command.startswith("pip install ")
    assert "papermill" in blocks("sh")[0] and {"nbdev_test", "pytest"} <= set(
        blocks("sh")[1].split()
    )


def test_ci_runs_the_command_of_the_readme():
    text = (ROOT / ".ci/run").read_text(encoding="utf-8")
    awk = re.search(r"^tests=\$\((awk '.*') README\.md\)$", text, re.M)[1]
    found = subprocess.run(
        ["bash", "-c", f"{awk} README.md"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert found.strip() == blocks("sh")[1]


def test_readme_links_lead_somewhere():
    for target in re.findall(r'\]\(([^)#]+)\)|src="([^"]+)"', README):
        target = target[0] or target[1]
        if not re.match(r"[a-z]+:", target):
            assert (ROOT / target).exists(), target


def test_readme_maps_every_notebook():
    linked = set(re.findall(r"\]\(nbs/([^)]+\.ipynb)\)", README))
    missing = [
        by_name(path)
        for path in ALL
        if by_name(path) not in linked
        and path.name != "index.ipynb"
        and path.parent.name != "experiments"
    ]
    assert not missing, f"not in the map of nbs/index.ipynb: {missing}"


def test_readme_lists_every_extra():
    extras = {
        key.removesuffix("_requirements")
        for key in re.findall(
            r"^(\w+_requirements) =", (ROOT / "settings.ini").read_text(encoding="utf-8"), re.M
        )
    }
    assert set(re.findall(r"^\| `(\w+)` \|", README, re.M)) == extras


def test_readme_quickstart_parameters_exist():
    papermill = pytest.importorskip("papermill")
    command = blocks("sh")[0].split("papermill ")[1]
    notebook = command.split()[0]
    if not (ROOT / notebook).exists():
        pytest.skip(f"{notebook} is not there yet")
    known = papermill.inspect_notebook(str(ROOT / notebook))
    for name in re.findall(r" -[pr] (\w+) ", command):
        assert name in known, name


def test_readme_drop_in_runs():
    "The three lines as they stand, with the tiny profile and a batch of one's own"
    torch = pytest.importorskip("torch")
    code = blocks("python")[0]
    assert '"small"' in code
    torch.manual_seed(0)
    space = dict(images=torch.rand(4, 3, 32, 32) * 2 - 1, labels=torch.tensor([0, 3, 5, 9]))
    exec(code.replace('"small"', '"tiny"').replace("p_gen=0.5", "p_gen=1."), space)
    assert len(space["images"]) == 4 and space["images"].shape[1] == 3
    assert space["images"].dtype == torch.float32 and space["images"].abs().max() <= 1
    assert torch.equal(space["targets"], space["labels"])
