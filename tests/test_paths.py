"A path that begins with ~ leads to the user's home, wherever it enters; no folder is named ~"

from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from hydramix_nb import diffusemix, figures, files, gan, image_folders, mixing, runs, sweeps, tables
from hydramix_nb.data import load_images


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    "A home and a working folder, both empty; at the end no folder in the latter is named ~"
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    yield tmp_path / "home"
    assert not list((tmp_path / "work").iterdir())


def test_files(home):
    assert files.write_text("~/a.txt", "text") == home / "a.txt"
    files.write_json("~/a.json", [1])
    files.write_png("~/a.png", torch.zeros(3, 8, 8, dtype=torch.uint8))
    written = files.write_tensors("~/a.safetensors", {"x": torch.ones(2)}, dict(kind="thing"))
    assert written == home / "a.safetensors"
    assert files.read_json("~/a.json") == [1]
    assert files.read_tensors("~/a.safetensors", "thing")[0]["x"].tolist() == [1, 1]
    figures.save_figure(Figure(figsize=(1, 1)), "~/figure")
    with runs.Lock("~/lock"):
        pass
    names = {"a.txt", "a.json", "a.png", "a.safetensors", "figure.png", "figure.pdf", "lock"}
    assert names <= {p.name for p in home.iterdir()}
    modes = {(home / name).stat().st_mode for name in names - {"lock"}}
    (home / "plain").touch()
    assert modes == {(home / "plain").stat().st_mode}, "others may read some files and not others"


def test_trainings_and_mixers(home):
    train = load_images("toys", few=(2, 0))[:4]
    train = type(train)(train.images, torch.tensor([0, 0, 1, 1]), ["a", "b"])
    config = gan.profile("tiny", steps=1)
    options = dict(cache="~/maps", progress=False)
    trained = gan.fit(train, config, folder="~/generator", **options)
    assert gan.load("~/generator").config == trained.config and any((home / "maps").iterdir())
    mixer = mixing.HydraMix(trained, train, cache="~/maps")
    mixer.save("~/mixer.safetensors")
    mixing.load("~/mixer.safetensors", train)
    image_folders.generate(mixer, torch.tensor([0, 1]), "~/made", progress=False)
    assert len(load_images("folder:~/made", size=32)) == 2
    trained.report(train).save("~")
    assert (home / "report.txt").is_file()


def test_lookups(home):
    assert sweeps.find_notebook("~/a.ipynb") == home / "a.ipynb"
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    assert home in diffusemix.variant_path("~/edited", "cat", image, "snow").parents


def test_experiments_expand_the_folder_that_they_write_to():
    root = Path(tables.__file__).parents[1] / "nbs"
    for path in [*root.glob("experiments/*.ipynb"), *root.glob("tutorials/*.ipynb")]:
        text = path.read_text(encoding="utf-8")
        if '"out: str' in text:
            assert "expanduser()" in text, path.name
