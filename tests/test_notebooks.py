"The notebooks as files, clean and small, and the README that is made of one of them."

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch

from hydramix_nb import files

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
ALL = sorted(path for path in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
NUMBERED = [path for path in ALL if re.match(r"\d+_", path.name)]


def by_name(path):
    return str(path.relative_to(NBS))


def code_cells(path):
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def tool(name):
    return str(Path(sys.executable).with_name(name))


# files


@pytest.mark.parametrize("path", NUMBERED, ids=by_name)
def test_begins_with_name_and_description(path):
    first = nbformat.read(path, 4).cells[0]
    assert first.cell_type == "markdown" and re.match(r"# \S+\n\s*> \S", first.source), first.source


@pytest.mark.parametrize("path", ALL, ids=by_name)
def test_small_and_without_errors(path):
    assert path.stat().st_size < 1_000_000, (
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
    assert "papermill" in blocks("sh")[0] and "pytest" in blocks("sh")[1].split()


def test_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    for name in "ab":
        for i in range(4):
            pixels = torch.randint(256, (3, 64, 64), dtype=torch.uint8)
            (tmp_path / f"my/photos/{name}").mkdir(parents=True, exist_ok=True)
            files.write_png(tmp_path / f"my/photos/{name}/{i}.png", pixels)
    files.write_png(tmp_path / "new.jpg", pixels)  # PIL goes by what is in a file
    there = dict(images=torch.rand(6, 3, 32, 32) * 2 - 1, labels=torch.arange(6))
    drop_in, *others = blocks("python")
    exec(drop_in.replace("p_gen=0.5", "p_gen=1.0"), there)
    assert there["images"].shape == (6, 3, 32, 32) and there["images"].abs().max() <= 1
    assert torch.equal(there["targets"], there["labels"])
    for block in others:
        exec(block.replace('"small"', '"tiny"').replace("minutes=10", "steps=(0, 2)"), there)
    assert there["mixer"](torch.tensor([0, 1])).shape == (2, 3, 64, 64)
    assert there["network"](torch.zeros(2, 3, 64, 64)).shape == (2, 2)
    assert capsys.readouterr().out.splitlines()[-1] in ("a", "b") and (tmp_path / "mine").is_dir()


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
