"Every experiment notebook: parameters typed and explained, and a run at tiny settings."

import ast
import json
import tokenize
from io import StringIO
from pathlib import Path

import nbformat
import pytest

from hydramix_nb import tables

papermill = pytest.importorskip("papermill")

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = sorted((ROOT / "nbs/experiments").glob("*.ipynb"))
PROFILES = {"paper", "small", "tiny"}
TABLE = dict(
    engine="local",
    datasets=["photos"],
    samples_per_class=[2],
    seeds=[0],
    methods=["Baseline", "HydraMix"],
    n_images=[2, 4],
    p_gen=[0.0, 0.5],
    image_size=[32, 48],
    segment_noise=[0.0, 1.0],
    auto_augment=["none", "TrivialAugment"],
    device="cpu",
    results="",
)
OTHERS = dict(
    table_2=dict(methods=["HydraMix"]),
    table_4=dict(methods=["DINO", "DINO+HydraMix"]),
    table_6=dict(methods=["NMix", "HydraMix"]),
    figure_4=dict(methods=["NMix", "HydraMix"]),
    table_8=dict(
        methods=["Baseline", "Baseline+crops", "Baseline+HydraMix"],
        datasets=["cutouts"],
        samples_per_class=[1],
    ),
)
RUNS = dict(
    classify="table_1", pretrain="table_4", detect="table_8"
)  # notebooks that are one run, and a table that executes them
QUICKSTART = dict(
    data="photos",
    samples_per_class=2,
    n_images=2,
    image_size=32,
    generator_steps=2,
    classifier_steps=4,
    draws=2,
    per_class=4,
)


def by_name(path):
    return path.stem


def parameters(path):
    "The cell that papermill puts its parameters behind"
    cells = [
        cell
        for cell in nbformat.read(path, 4).cells
        if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", [])
    ]
    assert cells, "no cell tagged `parameters`: papermill would ignore what it is given"
    assert len(cells) == 1, "several cells tagged `parameters`: papermill would guess"
    return cells[0].source


def tiny(path, known):
    "Settings with which the notebook takes seconds"
    if "engine" in known:
        return {
            name: value
            for name, value in dict(TABLE, **OTHERS.get(path.stem, {}), profile="tiny").items()
            if name in known
        }
    own = dict(
        recipe=dict(data="photos", seeds="100,101", judged=50),  # as `papermill -p` gives a list
        diffuse=dict(seeds="[0]"),
        benchmark=dict(repetitions=1),
        figure_9=dict(dataset="photos", class_name="cat"),
    )
    settings = own.get(path.stem, {})
    return {name: value for name, value in dict(settings, profile="tiny").items() if name in known}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=by_name)
def test_parameters_are_typed_and_explained(path):
    source = parameters(path)
    comments = {
        token.start[0]
        for token in tokenize.generate_tokens(StringIO(source).readline)
        if token.type == tokenize.COMMENT and token.string.strip("# ")
    }
    for node in ast.parse(source).body:
        assert isinstance(node, ast.AnnAssign) and node.value is not None, (
            f"not `name: type = default  # meaning`: {ast.unparse(node)}"
        )
        ast.literal_eval(node.value)
        assert node.end_lineno in comments, f"`{ast.unparse(node)}` is not explained"
    known = papermill.inspect_notebook(str(path))
    assert set(known) == {node.target.id for node in ast.parse(source).body}, (
        "papermill reads other parameters than the cell states"
    )
    for name, found in known.items():
        assert found["help"] and found["inferred_type_name"], name


@pytest.mark.parametrize("path", EXPERIMENTS, ids=by_name)
def test_has_the_parameters_that_runs_rely_on(path):
    known = papermill.inspect_notebook(str(path))
    if path.stem == "quickstart":
        assert set(known) >= {
            "data",
            "samples_per_class",
            "n_images",
            "image_size",
            "generator_steps",
            "classifier_steps",
            "draws",
            "seed",
            "device",
            "out",
        }
        return
    assert "profile" in known, "no parameter `profile`"
    assert known["profile"]["default"].strip("'\"") in PROFILES


@pytest.fixture(scope="module")
def shared(tmp_path_factory, worker_id):
    "The folder of runs of all tables: what one has done, the next one finds"
    base = tmp_path_factory.getbasetemp()
    return (base if worker_id == "master" else base.parent) / "runs-of-tables"


def half_written(folder):
    "Files under partial names"
    return {p for p in folder.rglob("*") if p.suffix in {".tmp", ".partial"}}


def execute(path, settings, folder):
    "Run a notebook with these parameters, in a folder in which it is kept"
    known = papermill.inspect_notebook(str(path))
    assert set(settings) <= set(known), f"papermill would ignore {set(settings) - set(known)}"
    papermill.execute_notebook(
        str(path),
        str(folder / path.name),
        settings,
        cwd=str(folder),
        kernel_name="python3",
        progress_bar=False,
        start_timeout=120,
        execution_timeout=900,
    )


@pytest.mark.parametrize(
    "path", [path for path in EXPERIMENTS if path.stem not in (*RUNS, "quickstart")], ids=by_name
)
def test_runs_at_tiny_settings(path, tmp_path, shared, quick_kernels, lasting):
    known = papermill.inspect_notebook(str(path))
    settings, out = tiny(path, known), shared if "engine" in known else tmp_path / "out"
    if "out" in known:
        settings["out"] = str(out)
    execute(path, settings, tmp_path)
    if "engine" in known and path.stem.startswith(("table", "figure")):
        made = {p.suffix for p in (out / "tables").glob(f"{path.stem}.*")}
        assert made >= ({".png", ".pdf"} if path.stem.startswith("figure") else {".md", ".tex"}), (
            f"made {made}"
        )
        assert not list(out.glob("*/*/error.json")), "a run has failed"
        notebook = tables._notebook_of(path.stem) if path.stem in tables.EXPERIMENTS else None
        assert not notebook or list(out.glob(f"{notebook}/*/{notebook}.ipynb")), (
            f"{notebook} was not executed"
        )
    assert not lasting(half_written, out), "half-written files are left behind"


def test_quickstart_finds_the_same_with_two_processes(tmp_path, quick_kernels, lasting):
    path, found = ROOT / "nbs/experiments/quickstart.ipynb", []
    for workers in (1, 2):
        out = tmp_path / str(workers)
        settings = dict(QUICKSTART, profile="tiny", test_images=50, workers=workers, out=str(out))
        execute(path, settings, tmp_path)
        found.append(json.loads((out / "result.json").read_text(encoding="utf-8"))["accuracy"])
        assert list(out.glob("*.png")) and list(out.glob("*.pdf")), (
            "figures are written as PNG and PDF"
        )
        assert not lasting(half_written, out), "half-written files are left behind"
    assert found[0] == found[1] and len(found[0]) == 2


def test_one_draw_of_the_quickstart_has_a_gain_and_no_interval(tmp_path, quick_kernels):
    few = dict(profile="tiny", test_images=50, draws=1, workers=1, out=str(tmp_path))
    execute(ROOT / "nbs/experiments/quickstart.ipynb", QUICKSTART | few, tmp_path)
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert set(result["gain"]) == {"mean"} and "One draw" in result["verdict"]
    assert "interval of 1" not in (tmp_path / "quickstart.ipynb").read_text(encoding="utf-8")


def test_every_notebook_that_is_one_run_is_executed_by_a_table():
    assert {tables._notebook_of(table) for table in tables.EXPERIMENTS} == set(RUNS)
    for notebook, table in RUNS.items():
        assert (
            tables._notebook_of(table) == notebook
            and ROOT / f"nbs/experiments/{table}.ipynb" in EXPERIMENTS
        )
