"""What others rely on, called as somebody outside the project would: by the names in
`hydramix_nb.all` and in their modules, by position and by keyword."""

import csv
import importlib
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hydramix_nb
from hydramix_nb import tables
from hydramix_nb.all import (
    Discriminator,
    Generator,
    GridMix,
    HydraMix,
    ImageSet,
    METHODS,
    MixUp,
    MixUpN,
    NMix,
    SegMix,
    baselines,
    box_mask,
    classifier,
    cse,
    data,
    gan,
    grid_mask,
    hydra_mask,
    laplacian_loss,
    laplacian_pyramid,
    load_images,
    masks,
    mixing,
    noisy_segments,
    pair_mask,
    segment,
    synset_distribution,
    synset_entropy,
)

ROOT = Path(__file__).resolve().parents[1]
MODULES = dict(
    data="ImageSet load_images",
    masks="segment hydra_mask grid_mask pair_mask noisy_segments box_mask",
    generator="Generator",
    discriminator="Discriminator",
    losses="laplacian_pyramid laplacian_loss",
    gan="fit load",
    mixing="HydraMix ChimeraMix GridMix SegMix NMix MixUp MixUpN",
    classifier="fit",
    cse="synset_distribution synset_entropy cse",
    baselines="METHODS",
)


def seeded():
    return torch.Generator().manual_seed(5)


def one_hot(mask, shape):
    assert list(mask.shape) == list(shape) and mask.dtype == torch.float32
    assert set(mask.unique().tolist()) <= {0.0, 1.0} and torch.equal(
        mask.sum(1), torch.ones_like(mask[:, 0])
    )


@pytest.fixture(scope="module")
def train():
    return load_images("photos").few_shot(3, 0)


@pytest.fixture(scope="module")
def trained(train):
    return gan.fit(train, gan.profile("tiny", 32, steps=2), progress=False)


@pytest.mark.parametrize("module", MODULES)
def test_names_are_where_they_are_said_to_be(module):
    everything, own = (
        importlib.import_module("hydramix_nb.all"),
        importlib.import_module(f"hydramix_nb.{module}"),
    )
    assert getattr(everything, module) is own
    for name in MODULES[module].split():
        assert hasattr(own, name)
        if name not in ("fit", "load", "cse"):
            assert getattr(everything, name) is getattr(own, name)


# data


def test_image_set():
    images, labels = torch.zeros(6, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1, 0, 1])
    made, named = (
        ImageSet(images, labels, ["a", "b"]),
        ImageSet(images=images, labels=labels, classes=["a", "b"]),
    )
    assert (
        len(made) == len(named) == 6
        and torch.equal(made.images, images)
        and torch.equal(made.labels, labels)
        and made.classes == ["a", "b"]
    )
    assert made.to("cpu").images.device.type == "cpu"
    few, again, other = (
        made.few_shot(2, 3),
        made.few_shot(samples_per_class=2, seed=3),
        load_images("photos").few_shot(2, 3),
    )
    assert torch.bincount(few.labels).tolist() == [2, 2] and torch.equal(few.labels, again.labels)
    assert not torch.equal(other.images, load_images("photos").few_shot(2, 4).images)
    with pytest.raises(ValueError, match="'a'"):
        made.few_shot(4, 0)


def test_load_images(tmp_path, monkeypatch):
    monkeypatch.delenv("HYDRAMIX_DATA", raising=False)
    train, test = load_images("photos"), load_images(name="photos", split="test", root=None)
    assert (
        train.images.dtype == torch.uint8
        and train.labels.dtype == torch.int64
        and train.classes == test.classes
    )
    for name in ("cifar10", "cifar100", "cifair10", "cifair100", "stl10"):
        with pytest.raises(FileNotFoundError, match=name):
            load_images(name, "train", tmp_path)
    from hydramix_nb.files import write_png

    for split in ("train", "val"):
        for i in range(6):
            write_png(tmp_path / f"mine/{split}/{'ab'[i % 2]}/{i}.png", train.images[i])
    assert (
        len(load_images(f"folder:{tmp_path / 'mine'}"))
        == len(load_images("folder:mine", split="test", root=tmp_path))
        == 6
    )
    import numpy as np

    np.savez(
        tmp_path / "some.npz",
        images=train.images[:6].permute(0, 2, 3, 1).numpy(),
        labels=np.arange(6) % 2,
    )
    assert load_images("npz:some.npz", root=tmp_path).images.shape == (6, 3, 32, 32)


# masks


def test_masks(train):
    maps = segment(train.images[:4], 60, 60)
    assert torch.equal(
        maps, segment(images=train.images[:4], scale=60, min_size=60)
    ) and maps.shape == (4, 32, 32)
    assert not maps.is_floating_point() and maps.amin((1, 2)).tolist() == [0] * 4
    labels = torch.randint(5, (7, 4, 6, 10), generator=seeded())
    one_hot(hydra_mask(labels), [7, 4, 6, 10])
    assert torch.equal(
        hydra_mask(labels, seeded()), hydra_mask(segments=labels, generator=seeded())
    )
    two = labels[:, :2]
    one_hot(pair_mask(two), [7, 2, 6, 10])
    assert torch.equal(pair_mask(two, seeded()), pair_mask(segments=two, generator=seeded()))
    one_hot(grid_mask(7, 3, 8, 12), [7, 3, 8, 12])
    assert torch.equal(
        grid_mask(7, 3, 8, 12, 4, seeded()),
        grid_mask(batch=7, n_images=3, height=8, width=12, cells=4, generator=seeded()),
    )
    noisy = noisy_segments(labels, 0.5, seeded())
    assert noisy.shape == labels.shape and torch.equal(
        noisy, noisy_segments(segments=labels, noise=0.5, generator=seeded())
    )
    assert torch.equal(
        hydra_mask(noisy_segments(labels, 0.0), seeded()), hydra_mask(labels, seeded())
    )
    boxes = torch.tensor([[[[0.0, 0.0, 4.0, 4.0]], [[2.0, 2.0, 6.0, 6.0]]]])
    mask = box_mask(boxes, 8, 8)
    one_hot(mask, [1, 2, 8, 8])
    assert (
        torch.equal(mask, box_mask(boxes=boxes, height=8, width=8))
        and mask[0, 1].sum() == 16
        and mask[0, 1, 3, 3] == 1
    )


def test_hydra_mask_gives_each_image_its_share():
    labels = torch.arange(256).view(1, 1, 16, 16).expand(400, 4, -1, -1)
    assert torch.allclose(
        hydra_mask(labels, seeded()).mean((0, 2, 3)),
        torch.tensor([1 / 8, 1 / 8, 1 / 4, 1 / 2]),
        atol=0.01,
    )


# networks and losses


def test_generator_and_discriminator():
    net = Generator(3, 8, 2, 2)
    assert [p.shape for p in net.parameters()] == [
        p.shape
        for p in Generator(
            in_channels=3, features=8, encoder_blocks=2, decoder_blocks=2
        ).parameters()
    ]
    images, mask = torch.rand(2, 4, 3, 32, 32) * 2 - 1, grid_mask(2, 4, 8, 8)
    features = net.encode(images)
    assert features.shape == (2, 4, 32, 8, 8) and net.encode(images[0]).shape == (4, 32, 8, 8)
    mixed = net.mix(features, mask)
    assert mixed.shape == (2, 32, 8, 8)
    out = net(images, mask)
    assert out.shape == net.decode(mixed).shape == (2, 3, 32, 32) and out.abs().max() <= 1
    torch.testing.assert_close(out, net.decode(mixed))
    assert Generator().encode(torch.zeros(1, 3, 32, 32)).shape == (1, 256, 8, 8)
    verdicts = Discriminator(3, 8)(images[:, 0])
    assert (
        verdicts.shape[:2] == (2, 1)
        and verdicts.ndim == 4
        and 0 <= verdicts.min() <= verdicts.max() <= 1
    )
    assert Discriminator(in_channels=1, features=8)(torch.zeros(1, 1, 32, 32)).shape[:2] == (1, 1)


def test_losses():
    a, b = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    levels = laplacian_pyramid(a)
    assert len(levels) == len(laplacian_pyramid(x=a, levels=3)) == 3 and [
        level.shape[-1] for level in levels
    ] == [32, 16, 8]
    assert laplacian_loss(a, b).ndim == 0 and laplacian_loss(a=a, b=b, levels=3) == laplacian_loss(
        a, b, 3
    ) > 0 == laplacian_loss(a, a)


# training and mixing


def test_a_generator_is_trained_saved_and_loaded(train, trained, tmp_path):
    assert isinstance(trained, gan.Trained)
    file = trained.save(tmp_path / "generator.safetensors")
    assert Path(file).read_bytes()[8:9] == b"{", "safetensors"
    back, labels = gan.load(tmp_path / "generator.safetensors"), torch.arange(10)
    out = []
    for one in (trained, back):
        torch.manual_seed(0)
        out.append(HydraMix(one, train)(labels))
    assert torch.equal(*out)
    paper = gan.Config()
    assert (paper.n_images, paper.features, paper.lr, paper.batch_size, paper.weight_decay) == (
        4,
        64,
        2e-4,
        64,
        5e-4,
    )


def chimera(trained, train):
    from dataclasses import replace

    return mixing.ChimeraMix(
        replace(trained, config=replace(trained.config, mixing="segments", n_images=2)), train
    )


MIXERS = dict(
    HydraMix=lambda trained, train: HydraMix(trained, train, n_images=4),
    ChimeraMix=chimera,
    GridMix=lambda _, train: GridMix(train),
    SegMix=lambda _, train: SegMix(train),
    NMix=lambda _, train: NMix(train, n_images=3),
    MixUp=lambda _, train: MixUp(train),
    MixUpN=lambda _, train: MixUpN(train, n_images=3),
)


@pytest.mark.parametrize("name", MIXERS)
def test_mixers(name, train, trained):
    mixer, labels = MIXERS[name](trained, train), torch.tensor([0, 3, 3, 9])
    made = mixer(labels)
    assert (
        made.shape == (4, 3, 32, 32) and made.is_floating_point() and made.abs().max() <= 1 + 1e-5
    )
    images = data.to_float(train.images[:4])
    for p in (0.0, 0.5, 1.0):
        out, targets = mixer.augment(images, labels, p_gen=p)
        assert out.shape == images.shape and targets.shape in ((4,), (4, 10))
        if targets.ndim == 2:
            torch.testing.assert_close(targets.sum(1), torch.ones(4))
            assert name.startswith("MixUp") and p > 0
        else:
            assert torch.equal(targets, labels)
        if p == 0:
            assert torch.equal(out, images)
    assert mixer.augment(images, labels)[0].shape == images.shape


def test_a_classifier_is_trained(train):
    for result in (
        classifier.fit(
            train,
            train,
            classifier.Method(mixer=MixUp(train)),
            classifier.profile("tiny"),
            progress=False,
        ),
        classifier.fit(
            train=train,
            test=train,
            method=baselines.build("Cutout", train),
            config=classifier.profile("tiny"),
            progress=False,
        ),
    ):
        assert (
            0 <= result.accuracy <= 100
            and result.history
            and result.model(data.to_float(train.images[:2])).shape == (2, 10)
        )


@pytest.mark.parametrize("module", [gan, classifier], ids=lambda m: m.__name__)
def test_profiles(module):
    for name in ("paper", "small", "tiny"):
        for size in (32, 96):
            module.profile(name, size)
    assert module.profile("paper") == module.profile()
    assert (
        module.profile("paper", seed=3).seed == 3
        and module.profile("paper").lr == module.Config().lr
    )
    with pytest.raises(ValueError, match="paper"):
        module.profile("huge")


# CSE


def test_synset_entropy():
    similarities = torch.rand(20, 6, generator=seeded()) * 0.1
    p = synset_distribution(similarities)
    assert p.shape == (6,) and torch.equal(
        p, synset_distribution(similarities=similarities, tau=0.01)
    )
    torch.testing.assert_close(p, torch.softmax(similarities / 0.01, 1).mean(0))
    torch.testing.assert_close(synset_entropy(torch.full((6,), 1 / 6)), torch.tensor(math.log(6)))
    assert synset_entropy(distribution=torch.tensor([1.0, 0.0])) == 0


def test_cse():
    pair = (
        lambda images: (
            data.to_float(images).mean((2, 3))
            if images.dtype == torch.uint8
            else images.mean((2, 3))
        ),
        lambda texts: torch.eye(3)[[len(t) % 3 for t in texts]],
    )
    images = {
        "a": torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8),
        "b": torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8),
    }
    synsets = {"a": ["x : one", "y : three"], "b": ["z : four", "v : twelve", "w : nine"]}
    result = cse.cse(images, synsets, pair)
    named = cse.cse(images_by_class=images, synsets_by_class=synsets, encoder=pair)
    assert list(result.classes) == ["a", "b"] and result.mean == named.mean == pytest.approx(
        sum(c.entropy for c in result.classes.values()) / 2
    )


# methods, experiments, command line


def reported():
    with open(
        Path(hydramix_nb.__file__).parent / "reported_results.csv", newline="", encoding="utf-8"
    ) as f:
        return list(csv.DictReader(f))


@pytest.mark.parametrize("table", list("12356"))
def test_every_method_of_a_table_is_in_the_registry(table):
    names = {r["method"] for r in reported() if r["table"] == table}
    assert names and names <= set(METHODS), names - set(METHODS)


def test_experiments_are_there():
    wanted = {
        "quickstart",
        *(f"table_{i}" for i in range(1, 10)),
        *(f"figure_{i}" for i in range(3, 10)),
        "benchmark",
    }
    assert not (
        missing := wanted - {path.stem for path in (ROOT / "nbs/experiments").glob("*.ipynb")}
    ), missing


OPTIONS = [
    "table_1",
    "--profile",
    "tiny",
    "--datasets",
    "photos",
    "--samples_per_class",
    "5",
    "--methods",
    "Baseline,HydraMix",
    "--seeds",
    "0,1",
    "--workers",
    "2",
    "--dry_run",
]


def test_sweep_options(tmp_path, capsys):
    pytest.importorskip("papermill")
    assert tables.main([*OPTIONS, "--out", str(tmp_path), "--scheduler", "tcp://127.0.0.1:1"]) == 0
    assert "4 runs: 0 done, 4 left" in capsys.readouterr().out and not list(tmp_path.iterdir())
    short = ["table_1", "--data-root", str(tmp_path), "--sample", "5", "--methods=MixUp", "--dry"]
    assert tables.main([*short, "--generator-dataset", "toys"]) == 0
    assert "15 runs: 0 done, 15 left" in capsys.readouterr().out
    for wrong in (
        ["table_1", "--methods", "HydraMx"],
        ["table_99"],
        ["table_1", "--datasets", "cifar11"],
        ["table_1", "--profile", "huge"],
        ["table_1", "--samples", "5", "--no_such_option", "1"],
    ):
        with pytest.raises(SystemExit) as e:
            tables.main([*wrong, "--out", str(tmp_path), "--dry_run"])
        assert e.value.code == 2


def test_the_command_is_a_command():
    pytest.importorskip("papermill")
    command = Path(sys.executable).with_name("hydramix_sweep")
    if not command.exists():
        pytest.skip("hydramix_sweep is not installed: pip install -e .")
    out = subprocess.run([command, "--help"], capture_output=True, text=True)
    options = "profile datasets samples_per_class methods seeds out workers scheduler dry_run"
    assert out.returncode == 0 and all(f"--{option}" in out.stdout for option in options.split())


def test_masks_know_no_loop_over_the_batch():
    "Twice the batch is one call of the same operations"
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        n = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.n += 1
            return function(*args, **(kwargs or {}))

    for make in (hydra_mask, pair_mask, lambda labels: grid_mask(len(labels), 4, 8, 8)):
        counts = []
        for batch, segments in ((2, 5), (64, 40)):
            labels = torch.randint(segments, (batch, 2 if make is pair_mask else 4, 8, 8))
            with Count() as counted:
                make(labels)
            counts.append(counted.n)
        assert counts[0] == counts[1], (make, counts)
    assert masks.hydra_mask is hydra_mask
