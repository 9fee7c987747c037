"Tutorials with other parameters; commands and links in what people read; the departures."

import csv
import json
import random
import re
import shlex
from pathlib import Path

import nbformat
import pytest

papermill = pytest.importorskip("papermill")

from hydramix_nb import runs, sweeps, tables  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
READ = [
    NBS / "index.ipynb",
    *sorted(NBS.glob("[0-9]*.ipynb")),
    *sorted((NBS / "tutorials").glob("*.ipynb")),
]


def by_name(path):
    return path.stem


def prose(path):
    return "\n\n".join(
        cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown"
    )


def anchors(path):
    return {
        re.sub(r"\s", "-", heading.strip())
        for heading in re.findall(r"^#+ (.+)$", prose(path), re.M)
    }


# the tutorials


@pytest.mark.parametrize("folder", ["tutorials", "experiments"])
def test_the_extra_that_is_named_suffices(folder):
    "`pip install -e '.[runs]'` brings no tools of developers, which chapters test themselves with"
    for path in sorted((NBS / folder).glob("*.ipynb")):
        code = "\n".join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code")
        assert not re.search(r"^\s*(?:from|import) (?:fastcore|nbdev|pytest)\b", code, re.M), path


def test_your_own_images_with_a_folder(tmp_path, quick_kernels):
    "Another folder: two classes, PNG and JPEG, one grey image, few test images; few steps"
    from PIL import Image

    from hydramix_nb.data import load_images, photos, to_float
    from hydramix_nb.gan import load

    data = photos("train", size=48, n=6)
    for split, wanted in (("train", range(4)), ("test", range(4, 6))):
        for c, name in enumerate(data.classes[:2]):
            (tmp_path / "mine" / split / name).mkdir(parents=True)
            for i in wanted:
                image = Image.fromarray(data.images[6 * c + i].permute(1, 2, 0).numpy())
                (image.convert("L") if i == 1 else image).save(
                    tmp_path / "mine" / split / name / f"{i}.{'png' if i % 2 else 'jpg'}"
                )
    parameters = dict(
        folder=str(tmp_path / "mine"),
        size=32,
        steps=8,
        early=2,
        classifier_steps=3,
        count=7,
        out=str(tmp_path / "out"),
    )
    papermill.execute_notebook(
        str(NBS / "tutorials/your_own_images.ipynb"),
        str(tmp_path / "executed.ipynb"),
        parameters,
        progress_bar=False,
        cwd=str(tmp_path),
    )
    trained = load(tmp_path / "out/generator")
    assert (trained.config.steps, trained.classes) == (8, ["astronaut", "cat"])
    assert to_float(load_images(f"folder:{tmp_path / 'out/generated'}").images).shape == (
        7,
        3,
        32,
        32,
    )
    assert not (NBS / "tutorials/generator").exists()


def test_recipes_with_a_folder_of_grey_photos(tmp_path, quick_kernels):
    from PIL import Image

    for name in ("fog", "snow"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for i in range(4):
            grain = Image.frombytes("L", (60, 60), random.Random(i).randbytes(3600))
            grain.save(tmp_path / "mine" / name / f"{i}.png")
    papermill.execute_notebook(
        str(NBS / "tutorials/recipes.ipynb"),
        None,
        dict(folder="mine", size=30),
        progress_bar=False,
        cwd=str(tmp_path),
    )


@pytest.mark.parametrize(
    "notebook, wrong, says",
    [
        ("tutorials/your_own_images", dict(folder="mine", held_out=3), "held_out=3: a class has 4"),
        ("experiments/quickstart", dict(test_on="tests"), "test_on='tests': test or rest"),
        ("experiments/quickstart", dict(draws=0), "draws=0: 1 or more"),
        ("experiments/quickstart", dict(profile="alive"), "profile 'alive': one of paper, small"),
        (
            "experiments/quickstart",
            dict(data="folder:mine", test_on="rest", samples_per_class=4),
            "nothing is left, give fewer samples_per_class",
        ),
    ],
)
def test_photos_that_do_not_suffice(notebook, wrong, says, tmp_path, quick_kernels):
    from PIL import Image

    for name in ("cat", "dog"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (20, 20), (50 * i, 99, 99)).save(tmp_path / "mine" / name / f"{i}.png")
    with pytest.raises(papermill.PapermillExecutionError, match=says):
        papermill.execute_notebook(
            str(NBS / f"{notebook}.ipynb"), None, wrong, progress_bar=False, cwd=str(tmp_path)
        )


def test_tutorials_have_typed_parameters():
    for path in sorted((NBS / "tutorials").glob("*.ipynb")):
        for name, (kind, _, text) in runs.notebook_parameters(path).items():
            assert kind and text, f"{path.name}: {name}"


# commands in prose

COMMANDS = [
    (path, line.strip())
    for path in READ
    for block in re.findall(r"^```\w*\n(.*?)^```$", prose(path), re.M | re.S)
    for line in block.splitlines()
]
COMMANDS += [
    (path, command)
    for path in READ
    for command in re.findall(r"`(hydramix_sweep [^`]+)`", prose(path))
]


def ids(value):
    return value.stem if isinstance(value, Path) else re.sub(r"\W+", "-", str(value))[:40]


@pytest.mark.parametrize(
    "path,command", [(p, c) for p, c in COMMANDS if "hydramix_sweep " in c], ids=ids
)
def test_sweeps_in_prose_are_possible(path, command):
    options = shlex.split(command[command.index("hydramix_sweep ") + 15 :], comments=True)
    assert options[0] in tables.EXPERIMENTS, command
    parsed = tables._parser(runs.notebook_parameters(sweeps.find_notebook("classify"))).parse_args(
        options
    )
    methods = parsed.methods.split(",") if parsed.methods else None
    assert tables.grid(
        parsed.experiment,
        profile=parsed.profile,
        methods=methods,
        datasets=parsed.datasets.split(",") if parsed.datasets else None,
    )


@pytest.mark.parametrize(
    "path,command",
    [(p, c) for p, c in COMMANDS if re.search(r"papermill (--\S+ )?nbs/", c)],
    ids=ids,
)
def test_papermill_in_prose_has_parameters_that_exist(path, command):
    notebook = ROOT / re.search(r"papermill (?:--\S+ )?(\S+)", command)[1]
    known = runs.notebook_parameters(notebook)
    for name in re.findall(r" -[pr] (\w+) ", command.split("papermill ")[1]):
        assert name in known, f"{notebook.name} has no parameter {name}"


# links


@pytest.mark.parametrize("path", READ, ids=by_name)
def test_links_between_notebooks_lead_somewhere(path):
    text = prose(path) + "".join(
        output.get("data", {}).get("text/markdown", "")
        for cell in nbformat.read(path, 4).cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )
    for target in re.findall(r"\]\(([^)\s]+(?:\([^)]*\))?)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there), (
                f"{path.name}: {target}, but {there.name} has no such heading"
            )


CHAPTERS = sorted(NBS.glob("[0-9]*.ipynb"))


@pytest.mark.parametrize("path,after", list(zip(CHAPTERS, CHAPTERS[1:], strict=False)), ids=ids)
def test_chapters_lead_on(path, after):
    "The last lines of a chapter name the next"
    last = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown"][
        -1
    ]
    assert f"]({after.name})" in last.splitlines()[-1], (
        f"{path.name} should end with a sentence that leads to {after.name}"
    )


# departures


def test_departures_are_those_of_the_chapters(monkeypatch):
    "The appendix shows what its cells make of the chapters as they are; otherwise run it again"
    cells = nbformat.read(NBS / "92_departures.ipynb", 4).cells
    shown = [
        output.data["text/markdown"]
        for cell in cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "text/markdown" in output.get("data", {})
    ]
    monkeypatch.chdir(NBS)
    space = {}
    for cell in cells:
        if cell.cell_type == "code":
            exec(cell.source, space)
    assert ["\n".join(space["lines"])] == shown, (
        "run: jupyter nbconvert --to notebook --execute --inplace nbs/92_departures.ipynb"
    )


def test_every_chapter_with_open_points_is_in_the_departures():
    text = json.dumps(
        [cell.get("outputs", []) for cell in nbformat.read(NBS / "92_departures.ipynb", 4).cells]
    )
    for path in set(READ) - {NBS / "92_departures.ipynb"}:
        for heading in re.findall(r"^## (.*\bopen\b.*)$", prose(path), re.M):
            assert f"{path.name}#{heading.replace(' ', '-')}" in text, (
                f"{path.name} is not in 92_departures: run it again"
            )


# README

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_lists_every_notebook():
    linked = set(re.findall(r"\]\(nbs/([^)#]+\.ipynb)\)", README))
    missing = (
        {
            str(path.relative_to(NBS))
            for path in NBS.rglob("*.ipynb")
            if ".ipynb_checkpoints" not in path.parts
        }
        - linked
        - {"index.ipynb"}
    )
    assert not missing, f"not in nbs/index.ipynb: {sorted(missing)}"


def test_readme_costs_are_those_measured():
    "The seconds in the table of costs are the least and the most of results/results.csv"
    with open(ROOT / "results/results.csv", newline="") as f:
        rows = [
            r
            for r in csv.DictReader(f)
            if (r["profile"], r["dataset"], r["samples_per_class"], r["device"])
            == ("small", "npz:cifar10", "5", "AMD EPYC")
        ]
    line = next(line for line in README.splitlines() if line.startswith("| AMD EPYC"))
    cells = [c.strip() for c in line.split("|")[3:-1]]
    for method, cell in zip(("Baseline", "NMix", "MixUp", "HydraMix"), cells, strict=False):
        seconds = [float(r["seconds"]) for r in rows if r["method"] == method]
        assert cell == f"{min(seconds):.0f}–{max(seconds):.0f} s", method
    seconds = [float(r["generator_seconds"]) for r in rows if r["method"] == "HydraMix"]
    assert cells[4] == f"{min(seconds):.0f}–{max(seconds):.0f} s"


def test_readme_picture_is_small_and_described():
    pictures = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", README)
    assert pictures
    for alt, target in pictures:
        assert len(alt) > 20, target
        assert (ROOT / target).stat().st_size < 150_000, target
