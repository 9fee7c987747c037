"Reports: names, joins and renderings that a lesson has no room for."

import csv
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from hydramix_nb import figures, files, report, results, runs, sweeps, tables

pd = pytest.importorskip("pandas")
pytest.importorskip("papermill")

ROOT = Path(__file__).resolve().parents[1]
DEFAULTS = dict(
    auto_augment="none",
    n_images=4,
    p_gen=0.5,
    image_size=0,
    segment_noise=0.0,
    generator_dataset="",
    size=0,
    profile="small",
    generator_settings={},
    classifier_settings={},
)


def finished(folder, accuracy, data="CIFAR-100", **parameters):
    p = dict(
        dict(dataset="npz:cifar100", samples_per_class=5, method="HydraMix", seed=0, **DEFAULTS),
        **parameters,
    )
    found = dict(
        parameters=p,
        accuracy=accuracy,
        top5=50.0,
        data=data,
        generator_data=p["generator_dataset"] or data,
        seconds=1.0,
        side=32,
        generator_size=p["image_size"] or 64,
    )
    files.write_json(folder / "classify" / runs.run_id(p) / "result.json", found)


# the paper's figures


def test_every_reported_number_is_read():
    with open(results._REPORTED, newline="") as f:
        rows = list(csv.DictReader(f))
    frame = results.reported()
    assert len(frame) == len(rows) and frame.paper_mean.notna().all()
    assert frame.paper_mean.sum() == pytest.approx(sum(float(r["mean"]) for r in rows))


def test_methods_are_spelled_as_in_the_registry():
    from hydramix_nb.baselines import METHODS

    ours = set(results.reported()[results.reported().table.isin(list("126"))].method)
    assert ours <= set(METHODS), ours - set(METHODS)
    for name, axes in tables.EXPERIMENTS.items():
        if tables._notebook_of(name) == "classify":
            assert set(axes["method"]) <= set(METHODS), name


@pytest.mark.parametrize("table", ["1", "2", "3", "6", "7", "9"])
def test_every_cell_of_the_paper_has_a_place(table, tmp_path):
    "A run for each reported cell: the comparison finds the paper's figure for every one"
    paper = results.reported(table)
    paper = paper[paper.metric == "top1"]
    names = {
        "ciFAIR-10": "cifair10",
        "ciFAIR-100": "cifair100",
        "STL-10": "stl10",
        "ImageNet": "folder:imagenet",
    }
    for r in paper.itertuples():
        other = (
            r.generator_data
            if isinstance(r.generator_data, str) and r.generator_data != r.data
            else ""
        )
        p = dict(
            DEFAULTS,
            dataset=names[r.data],
            samples_per_class=int(r.samples_per_class),
            method="ChimeraMix+Seg" if r.method == "ChimeraMix" else r.method,
            auto_augment=r.auto_augment,
            n_images=r.n_images,
            generator_dataset=names.get(other, ""),
            seed=0,
        )
        found = dict(
            parameters=p,
            accuracy=r.paper_mean,
            top5=0.0,
            data=r.data,
            generator_data=other or r.data,
            side=32,
            generator_size=64,
        )
        files.write_json(tmp_path / "classify" / runs.run_id(p) / "result.json", found)
    cells = results.compare(f"table_{table}", results.measured(tmp_path, ""))
    assert len(cells) == len(paper)
    assert cells.difference.abs().max() == pytest.approx(0)


# names


def test_near_duplicates_taken_out_are_not_cifair(tmp_path):
    arrays = dict(
        images=np.zeros((2, 8, 8, 3), np.uint8),
        labels=np.array([0, 1]),
        classes=np.array(["a", "b"]),
    )
    (tmp_path / "cifar10").mkdir()
    np.savez(tmp_path / "cifar10/train.npz", **arrays)
    np.savez(tmp_path / "cifar10/test.npz", **arrays)
    assert results.dataset_label("npz:cifar10", tmp_path) == "CIFAR-10"
    np.savez(tmp_path / "cifar10/test.npz", **arrays, cifair_keep=np.array([True, False]))
    assert (
        results.dataset_label("npz:cifar10", tmp_path)
        == results.dataset_label(f"npz:{tmp_path / 'cifar10'}")
        == "CIFAR-10 without near-duplicates"
    )
    assert results._COUNTERPARTS["CIFAR-10 without near-duplicates"] == "ciFAIR-10"


def test_the_real_test_set_is_called_by_its_name():
    root = os.environ.get("HYDRAMIX_DATA")
    if not root or not (Path(root) / "cifar10/test.npz").exists():
        pytest.skip("HYDRAMIX_DATA has no cifar10")
    assert results.dataset_label("npz:cifar10", root) == "CIFAR-10 without near-duplicates"
    assert results.dataset_label("npz:cifar100", root) == "CIFAR-100"
    assert results.dataset_label("folder:imagenette", root) == "Imagenette"


# our figures


def test_a_copied_folder_counts_once(tmp_path):
    finished(tmp_path, 20.0)
    finished(tmp_path, 30.0, seed=1)
    for folder in list((tmp_path / "classify").iterdir()):
        shutil.copytree(folder, folder.with_name(f"a copy of {folder.name}"))
        shutil.copytree(folder, folder.with_name(f"{folder.name} (copy)"))
    cells = results.compare("table_1", results.measured(tmp_path, ""), methods=["HydraMix"])
    assert list(cells.n) == [2] and list(cells["mean"]) == [25.0]
    assert results.collect(tmp_path, tmp_path / "results.csv") == 2


def test_a_comma_in_a_path_survives_the_command_for_missing_runs(tmp_path):
    wanted = dict(datasets=["folder:my, photos"], methods=["Baseline"], seeds=[0])
    said = report.missing(
        tables.grid("table_1", **wanted), results.measured(tmp_path, ""), "table_1", **wanted
    )
    options = shlex.split(said[said.index("hydramix_sweep") :])
    text = options[options.index("--datasets") + 1]
    assert (
        tables._read_option("datasets", text, "str") == report.as_list(text) == wanted["datasets"]
    )


def test_a_run_that_only_a_csv_knows_is_done_once_more(tmp_path, capsys):
    for seed in (0, 1):
        finished(tmp_path / "there", 20.0, seed=seed)
    results.collect(tmp_path / "there", tmp_path / "results.csv")
    finished(tmp_path / "here", 20.0, seed=1)
    ask = dict(datasets=["npz:cifar100"], samples_per_class=[5], methods=["HydraMix"])
    ask |= dict(out=tmp_path / "here", results=tmp_path / "results.csv")
    for seeds, said in (
        ([0, 1, 2], "1 of 3 runs have not finished. This does them, and once more the 1 that"),
        ([1, 2], "1 of 2 runs have not finished. This does them:"),
        ([0, 1], "All 2 runs of these data sets, methods and seeds have finished."),
    ):
        report.experiment("table_1", seeds=seeds, **ask)
        assert said in capsys.readouterr().out


def test_only_the_asked_profile_and_defaults_count(tmp_path):
    finished(tmp_path, 20.0)
    finished(tmp_path, 90.0, profile="paper")
    finished(tmp_path, 91.0, p_gen=0.9)
    finished(tmp_path, 92.0, classifier_settings=dict(steps=1))
    cells = results.compare(
        "table_1", results.measured(tmp_path, ""), "small", methods=["HydraMix"]
    )
    assert list(cells["mean"]) == [20.0] and list(cells.paper_mean) == [24.86]


def test_a_single_seed_has_no_rank_beside_several(tmp_path):
    finished(tmp_path, 40.0, method="Cutout")
    for method, accuracy in (("Baseline", 20.0), ("MixUp", 30.0)):
        for seed in range(2):
            finished(tmp_path, accuracy, method=method, seed=seed)
    shown = report.table(
        results.compare("table_1", results.measured(tmp_path, ""), "small"), "table_1"
    )
    ranked = {shown.body[i][1]: rank for (i, j), rank in shown.ranks.items() if j == 2}
    assert ranked == {"MixUp": 1, "Baseline": 2}


def test_single_points_are_left_to_the_table_where_there_are_curves():
    from matplotlib import pyplot as plt

    cells = pd.DataFrame(
        [
            dict(data="CIFAR-100", method=m, samples_per_class=k, mean=30.0)
            for m, k in (("Baseline", 5), ("Baseline", 10), ("MixUp", 5))
        ]
    ).assign(std=1.0)

    def names(cells):
        figure = figures.curves(cells, "samples_per_class", "images per class", paper=None)
        plt.close(figure)
        return {
            line.get_label()
            for line in figure.axes[0].lines
            if not line.get_label().startswith("_")
        }

    assert names(cells) == {"Baseline"}
    assert names(cells[cells.samples_per_class == 5]) == {"Baseline", "MixUp"}


def test_curves_of_every_figure(tmp_path):
    for seed in (0, 1):
        finished(tmp_path, 20.0 + seed, seed=seed)
        finished(tmp_path, 18.0 + seed, seed=seed, method="Baseline")
        finished(tmp_path, 21.0 + seed, seed=seed, p_gen=0.9)
        finished(tmp_path, 19.0 + seed, seed=seed, image_size=32)
        finished(tmp_path, 17.0 + seed, seed=seed, segment_noise=1.0)
    found = results.measured(tmp_path, "")
    assert list(results.compare("figure_5", found).p_gen) == [0.0, 0.5, 0.9]
    assert list(results.compare("figure_6", found).generator_size) == [32, 64]
    assert list(results.compare("figure_8", found).segment_noise) == [0.0, 1.0]


def test_the_table_of_results_and_the_folder_are_one(tmp_path):
    finished(tmp_path, 20.0)
    results.collect(tmp_path, tmp_path / "results.csv")
    finished(tmp_path, 21.0, seed=1)
    both = results.measured(tmp_path, tmp_path / "results.csv")
    assert len(both) == 2
    columns = ["data", "samples_per_class", "method", "mean", "std", "n"]
    pd.testing.assert_frame_equal(
        results.compare("table_1", both)[columns].dropna(),
        pd.DataFrame([["CIFAR-100", 5, "HydraMix", 20.5, 0.5**0.5, 2.0]], columns=columns),
        check_dtype=False,
    )
    assert not list(tmp_path.glob(".*partial"))


def test_names_are_escaped_in_latex_and_html(tmp_path):
    finished(tmp_path, 20.0, data="folder:my_<b>data</b>")
    shown = report.table(results.compare("table_1", results.measured(tmp_path, "")), "table_1")
    assert r"my\_" in shown.latex() and "&lt;b&gt;data" in shown._repr_html_()
    assert shown.body[0][3:] == ["–", "–"]


def test_the_committed_results_are_a_table_of_results():
    rows = runs._read_results(ROOT / "results/results.csv")
    for r in rows.values():
        assert 0 <= r["accuracy"] <= 100 and r["profile"] in ("paper", "small"), r["id"]
        assert not re.search(r"(^|[:\s])/", " ".join(map(str, r.values()))), "a path of one machine"
        assert r["notebook"] in results._NOTEBOOKS, r["id"]
        if r["notebook"] != "classify":
            continue  # the table does not hold all parameters of the others
        p = {k: json.loads(r[k]) if k.endswith("_settings") else r[k] for k in runs._PARAMETERS}
        assert runs.run_id(p) == r["id"], "the id is not that of the parameters"


def test_the_table_is_the_same_once_another_program_has_written_it(tmp_path):
    rows = runs._read_results(ROOT / "results/results.csv")
    frame = pd.read_csv(ROOT / "results/results.csv")
    frame = frame.astype({name: float for name in ("seed", "samples_per_class", "n_images")})
    frame.to_csv(tmp_path / "again.csv", encoding="utf-8-sig")  # with an index, and Excel's mark
    again = runs._read_results(tmp_path / "again.csv")
    for id, row in rows.items():
        for name in runs._COLUMNS:
            same = again[id][name] == row[name] and type(again[id][name]) is type(row[name])
            assert same, (id, name, again[id][name], row[name])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.replace(",7,", ",7.5,"), "row 3, column 'seed': '7.5' is no whole number"),
        (lambda t: t.replace(",7,", ",1e400,"), "row 3, column 'seed': '1e400' is no whole"),
        (lambda t: t.replace(",21", ",nan"), "row 3, column 'accuracy': 'nan' is no number"),
        (lambda t: t.replace(",21", ",21,5"), "row 3: it has more or fewer cells"),
        (lambda t: t.replace(",21", ""), "row 3: it has more or fewer cells"),
        (lambda t: t.replace("b,", "a,"), "row 3: run a was another one further up"),
        (lambda t: t.replace("seed", "seeds"), "column 'seed' is missing"),
        (lambda t: t.replace(",", ";"), "column 'id' is missing"),
    ],
)
def test_a_wrong_cell_is_named_to_the_report_and_to_the_forecast(
    tmp_path, monkeypatch, change, message
):
    path = tmp_path / "results/results.csv"
    path.parent.mkdir()
    head = "id,dataset,method,seed,profile,accuracy"
    text = f"{head}\na,photos,MixUp,0,small,20\nb,photos,MixUp,7,small,21\n"
    path.write_text(change(text))
    with pytest.raises(ValueError, match=message):
        results.measured(tmp_path / "runs", path)
    monkeypatch.chdir(tmp_path)
    runs_of = tables.grid("table_1", datasets=["photos"], samples_per_class=[5], seeds=[0])
    said = sweeps.summary(sweeps.plan("classify", runs_of, "runs"))
    assert re.search("cost: not known; .*" + message, said)


def test_an_old_folder_of_runs_does_not_replace_newer_rows(tmp_path):
    finished(tmp_path / "old", 20.0)
    finished(tmp_path / "new", 25.0)
    for name, time in (("old", "2026-01-01T00:00:00Z"), ("new", "2026-02-01T00:00:00Z")):
        (file,) = (tmp_path / name / "classify").glob("*/result.json")
        files.write_json(file, files.read_json(file) | dict(finished=time))
    for order in (("old", "new"), ("new", "old")):
        table = tmp_path / f"{order[0]}.csv"
        assert [results.collect(tmp_path / name, table) for name in order] == [1, 1]
        (row,) = runs._read_results(table).values()
        assert row["accuracy"] == 25.0
    assert results.measured(tmp_path / "old", table).accuracy.tolist() == [25.0]


# what is asked for is shown, and nothing else


@pytest.fixture
def several(tmp_path):
    "A finished run for each value that a table or figure varies"
    for p in (0.5, 0.9):
        finished(tmp_path, 20.0, p_gen=p)
    for n in (2, 3):
        finished(tmp_path, 20.0, n_images=n)
    finished(tmp_path, 20.0, image_size=32)
    finished(tmp_path, 20.0, segment_noise=1.0)
    finished(tmp_path, 20.0, auto_augment="TrivialAugment")
    finished(tmp_path, 20.0, generator_dataset="npz:cifar10")
    for method in ("Baseline", "TrivialAugment", "AutoAugment"):
        finished(tmp_path, 20.0, method=method)
    return tmp_path


@pytest.mark.parametrize(
    "name, asked, there",
    [
        ("table_7", dict(n_images=[2, 4]), "HydraMix, N = 2|HydraMix, N = 4"),
        ("figure_5", dict(p_gen=[0.0, 0.9]), "HydraMix, p_gen = 0|HydraMix, p_gen = 0.9"),
        ("figure_6", dict(image_size=[64]), "HydraMix, generator at 64×64"),
        ("figure_6", dict(image_size=[0]), "HydraMix, generator at 64×64"),
        ("figure_8", dict(segment_noise=1.0), "HydraMix, noise 1"),
        ("table_9", dict(generator_dataset=["npz:cifar100"]), "HydraMix, generator of CIFAR-100"),
        (
            "table_2",
            dict(auto_augment=["none"], methods=["HydraMix", "Baseline"]),
            "Baseline|HydraMix",
        ),
        ("table_2", dict(auto_augment=["TrivialAugment"], methods=["Baseline"]), "TrivialAugment"),
        (
            "table_2",
            dict(auto_augment=["none"], methods=["HydraMix", "TrivialAugment"]),
            "HydraMix|TrivialAugment",
        ),
        (
            "table_2",
            dict(auto_augment=["AutoAugment"], methods=["HydraMix"]),
            "HydraMix + AutoAugment",
        ),
    ],
)
def test_values_that_are_asked_for_are_shown_alone(several, name, asked, there):
    "Also of the paper's cells, whether they stand beside ours or alone"
    for place in (several, several / "nothing"):
        cells = report.experiment(name, out=place, results="", **asked)
        methods = {row[1] for row in report.table(cells, name).body}
        if place == several:
            assert methods == set(there.split("|"))
        else:  # the paper has Tables 2, 7 and 9 alone, and its own names of data
            assert methods <= set(there.replace("CIFAR", "ciFAIR").split("|"))
            assert methods or name.startswith("figure")
    everything = report.experiment(name, out=several, results="")
    assert len(everything) > len(there.split("|"))


def test_of_a_table_without_runs_the_paper_s_cells_that_are_asked_for_are_shown(tmp_path):
    asked = dict(datasets=["npz:cifar10", "photos"], samples_per_class=[5, 10])
    cells = report.experiment("table_1", out=tmp_path, results="", **asked)
    assert set(cells.data) == {"ciFAIR-10"} and set(cells.samples_per_class) == {5, 10}
    assert report.experiment("table_1", out=tmp_path, results="", datasets=["photos"]).empty


def test_a_pair_without_results_has_no_place_among_the_bars():
    from matplotlib import pyplot as plt

    methods = ["ChimeraMix+Seg", "NMix", "HydraMix"]
    cells = dict(data="made up", samples_per_class=5, mean=30.0, std=1.0, paper_mean=35.0)
    figure = figures.bars(pd.DataFrame([dict(cells, method=method) for method in methods]))
    axes = figure.axes[0]
    plt.close(figure)
    assert len(axes.patches) == 3 and axes.patches[0].get_x() < 0.5 and axes.get_xlim()[1] < 2
