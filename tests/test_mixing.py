"Mixers on images of odd kinds, and folders of generated images whose writing was interrupted"

import json
import math
import os
import signal
import time

import numpy as np
import pytest
import torch

from hydramix_nb import composing, files, gan, mixing
from hydramix_nb.augmentations import CutMix
from hydramix_nb.chains import Chain, OneOf, SmoothLabels
from hydramix_nb.data import ImageSet, load_images, to_float
from hydramix_nb.identity import describe
from hydramix_nb.image_folders import generate
from hydramix_nb.mixing import (
    ChimeraMix,
    GridMix,
    HydraMix,
    Mixer,
    MixUp,
    MixUpN,
    NMix,
    PixelMix,
    SegMix,
)
from hydramix_nb.policies import Policy


def noise(channels=3, size=16, classes=("a", "b"), n=3):
    images = torch.randint(
        256,
        (len(classes) * n, channels, size, size),
        generator=torch.Generator().manual_seed(0),
        dtype=torch.uint8,
    )
    return ImageSet(images, torch.arange(len(classes)).repeat_interleave(n), list(classes))


def untrained(channels=3, **changes):
    torch.manual_seed(0)
    config = gan.profile("tiny", **{"image_size": 16, **changes})
    return gan.Trained(gan.Generator(channels, config.features).eval(), config, ["a", "b"])


def every_mixer(train, channels=3):
    return [
        GridMix(train),
        SegMix(train),
        NMix(train),
        MixUp(train),
        MixUpN(train),
        PixelMix(train),
        HydraMix(untrained(channels), train),
        HydraMix(untrained(channels), train, views=2),
        HydraMix(untrained(channels), train, segment_noise=0.5),
        ChimeraMix(untrained(channels, mixing="grid", n_images=2), train),
        ChimeraMix(untrained(channels, mixing="segments", n_images=2), train, views=2),
    ]


def name(mixer):
    return type(mixer).__name__


# the contract


@pytest.mark.parametrize(("channels", "size"), [(1, 16), (3, 20), (5, 48)])
def test_labels_in_images_out(channels, size):
    train = noise(channels, size)
    labels = torch.tensor([1, 0, 1])
    for mixer in every_mixer(train, channels):
        images = mixer(labels)
        assert (
            images.shape == (3, channels, size, size)
            and images.dtype == torch.float32
            and not images.requires_grad
        ), name(mixer)
        assert -1 <= images.min() and images.max() <= 1, name(mixer)
        x, y = mixer.augment(images, labels, p_gen=1)
        assert x.shape == images.shape, name(mixer)
        if isinstance(mixer, MixUp):
            assert y.shape == (3, 2) and torch.allclose(y.sum(1), torch.ones(3))
        else:
            assert y is labels


def test_views_have_a_seed_of_their_own():
    made = []
    for before in (0, 1):
        trained = untrained()
        torch.manual_seed(before)
        made.append(HydraMix(trained, noise(), views=2).features)
    assert torch.equal(*made)
    assert not torch.equal(made[0], HydraMix(untrained(), noise(), views=2, seed=1).features)


def test_torch_seeds_decide():
    train, labels = noise(), torch.tensor([0, 1])
    for mixer in every_mixer(train):
        torch.manual_seed(1)
        a = mixer(labels)
        torch.manual_seed(1)
        assert torch.equal(a, mixer(labels)), name(mixer)
        assert not torch.equal(a, mixer(labels)), name(mixer)


def test_only_images_of_the_class():
    "Each class has pixel values of its own, and no mixer without a generator makes any other"
    train = noise()
    train = ImageSet(
        train.images // 2 + (train.labels * 128)[:, None, None, None].byte(),
        train.labels,
        train.classes,
    )
    for mixer in (GridMix(train), SegMix(train), NMix(train), MixUp(train), MixUpN(train)):
        for _ in range(3):
            images = mixer(torch.tensor([0, 1]))
            assert images[0].max() < 0 < images[1].min() + 0.01, name(mixer)


def test_generator_of_another_data_set():
    "Table 9: images of another size than the generator was trained on"
    train = noise(size=40)
    assert HydraMix(untrained(image_size=32), train)(torch.tensor([1])).shape == (1, 3, 40, 40)


def test_way_back_and_segment_size_are_the_mixers_own():
    train, trained, labels = noise(size=32), untrained(image_size=32), torch.tensor([0, 1, 1])
    made = {}
    for settings in (
        {},
        dict(reduce="area"),
        dict(segment_size=16),
        dict(reduce="area", segment_size=16),
    ):
        mixer = HydraMix(trained, train, **settings)
        assert trained.config.reduce == "bilinear" and trained.config.segment_size is None
        torch.manual_seed(0)
        made[str(settings)] = mixer(labels), str(describe(mixer)), repr(mixer)
    # the generator works at the images' size, so that the way back changes nothing here
    assert torch.equal(made["{}"][0], made["{'reduce': 'area'}"][0])
    assert not torch.equal(made["{}"][0], made["{'segment_size': 16}"][0])
    for k in (1, 2):
        assert len({of[k] for of in made.values()}) == 4
    small = noise(size=16)
    torch.manual_seed(0)
    a = HydraMix(trained, small)(labels)
    torch.manual_seed(0)
    assert not torch.equal(a, HydraMix(trained, small, reduce="area")(labels))


def test_settings_of_the_mixer_survive_its_file(tmp_path):
    train = noise()
    for mixer in (
        HydraMix(untrained(), train, reduce="area", segment_size=8),
        ChimeraMix(untrained(mixing="segments", n_images=2), train, segment_size=8),
        PixelMix(train, composing.Config(reduce="area", segment_size=8, image_size=32)),
    ):
        again = mixing.load(mixer.save(tmp_path / "mixer.safetensors"), train)
        assert repr(again) == repr(mixer) and again.config.segment_size == 8
        torch.manual_seed(0)
        a = mixer(torch.tensor([0, 1]))
        torch.manual_seed(0)
        assert torch.allclose(a, again(torch.tensor([0, 1])), atol=1e-4)  # fast convolutions


@pytest.mark.parametrize("size", [32, 96])
def test_a_policy_keeps_its_size_in_the_file_of_a_mixer(size, tmp_path):
    train = noise(size=96)
    file = GridMix(train, policy=Policy("AutoAugment", size)).save(tmp_path)
    policy = mixing.load(file, train).policy
    assert (policy.size, policy.recipes) == (size, "CIFAR10" if size == 32 else "IMAGENET")
    header = files._read_header(file)
    spec = json.loads(header["mixer"])
    spec["settings"]["policy"] = "AutoAugment"  # as once, when the images said the size
    files.write_tensors(file, {}, header | dict(mixer=json.dumps(spec)))
    assert mixing.load(file, train).policy.size == 96


def test_pixels_go_through_the_generators_size():
    "One image, not cropped, comes back as the round trip of `resize` and not as itself"
    train = noise(size=16)
    config = composing.Config(n_images=1, image_size=32, augment=False)
    one = PixelMix(train[:1], config)(torch.tensor([0]))
    images = train.images[:1]
    there_and_back = composing.resize(to_float(composing.resize(images, 32)), 16)
    assert torch.equal(one, there_and_back) and (one - to_float(images)).abs().max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["NMix", "SegMix", "GridMix", "MixUp", "HydraMix"])
def test_augment_compiles_and_takes_a_second_batch_size(kind):
    train = noise(size=32)
    mixer = HydraMix(untrained(), train) if kind == "HydraMix" else getattr(mixing, kind)(train)
    augment = torch.compile(mixer.augment)
    for batch in (6, 4, 5):
        x, y = torch.rand(batch, 3, 32, 32), torch.arange(batch) % 2
        for p_gen in (1.0, 0.0):
            made, targets = augment(x, y, p_gen)
            assert made.shape == x.shape and len(targets) == batch and made.isfinite().all()
            if p_gen == 0:
                assert torch.equal(made, x)


def test_the_trained_generator_is_left_alone():
    trained = untrained()
    weights = {k: v.clone() for k, v in trained.generator.state_dict().items()}
    HydraMix(trained, noise(), n_images=2, views=2)(torch.tensor([0]))
    assert trained.config.n_images == 4
    for k, v in trained.generator.state_dict().items():
        assert torch.equal(v, weights[k])


def test_unbalanced_and_empty_classes():
    train = noise(classes=("a", "b", "none"))[[0, 1, 2, 3]]
    assert NMix(train)(torch.tensor([1, 1])).shape[0] == 2
    with pytest.raises(ValueError, match="class without images is asked for.*'none'"):
        NMix(train)(torch.tensor([2]))


def test_mixup_mixes_labels_as_images():
    "Classes that are black and white: the share of white in an image is that of its label"
    train = ImageSet(
        torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None]
        .expand(-1, 3, 16, 16)
        .contiguous(),
        torch.tensor([0, 1]),
        ["black", "white"],
    )
    x, y = (
        torch.stack([torch.full((3, 16, 16), v) for v in (-1.0, 1.0)] * 4),
        torch.tensor([0, 1] * 4),
    )
    for mixer in (MixUp(train), MixUpN(train, 3)):
        images, targets = mixer.augment(x, y)
        assert torch.allclose(images.mean((1, 2, 3)), 2 * targets[:, 1] - 1, atol=1e-5)


# memory


def test_views_that_do_not_fit(monkeypatch):
    train = noise()
    monkeypatch.setattr(mixing, "free_memory", lambda device: 100_000)
    monkeypatch.setattr(composing, "segment", None)
    with pytest.raises(
        ValueError, match=r"views=50 of 6 images take .* views=(\d+) would fit"
    ) as error:
        HydraMix(untrained(), train, views=50)
    fits = int(str(error.value).split("views=")[2].split()[0])
    mixing._check_views(fits, 6, untrained().config, train.device)
    with pytest.raises(ValueError):
        mixing._check_views(fits + 1, 6, untrained().config, train.device)


def test_memory_is_unknown_on_some_systems(monkeypatch):
    monkeypatch.setattr(mixing, "free_memory", lambda device: None)
    HydraMix(untrained(), noise(), views=2)


# folders


class Reverse(Mixer):
    "A mixer of someone's own, without anything that ours have"

    n_images = 1

    def mix(self, index):
        return self.train.images[index[:, 0]].flip(-1) / 127.5 - 1


def test_generate_with_a_mixer_of_ones_own(tmp_path):
    generate(Reverse(noise()), 2, tmp_path / "out", progress=False)
    back = load_images(f"folder:{tmp_path / 'out'}")
    assert len(back) == 4 and back.classes == ["a", "b"]


def test_images_in_files_are_the_same_whatever_the_range_of_the_loop(tmp_path):
    for at, loop in (("plain", {}), ("own", dict(mean=(0.485, 0.456, 0.406), std=0.225))):
        generate(NMix(noise(), **loop), 2, tmp_path / at, progress=False)
    plain, own = (load_images(f"folder:{tmp_path / at}").images for at in ("plain", "own"))
    assert torch.equal(plain, own)


def test_names_that_are_unsafe_as_folders(tmp_path):
    classes = ("..", ".", "a/b", "/etc", "a\\b", "", " ", "con:", "new\nline")
    generate(Reverse(noise(classes=classes, n=2)), 1, tmp_path / "in" / "out", progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["in"] and [
        p.name for p in (tmp_path / "in").iterdir()
    ] == ["out"]
    assert len(load_images(f"folder:{tmp_path / 'in' / 'out'}").classes) == len(classes)


@pytest.mark.parametrize("count", [0, -1])
def test_counts_refused(count, tmp_path):
    with pytest.raises(ValueError, match="1 or more"):
        generate(NMix(noise()), count, tmp_path / "out")
    with pytest.raises(ValueError, match="labels from"):
        generate(NMix(noise()), torch.tensor([7]), tmp_path / "out")
    with pytest.raises(ValueError, match="PNG holds 1 or 3"):
        generate(NMix(noise(5)), 1, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_of_one_folder_are_made_alike(tmp_path):
    out = tmp_path / "out"
    options = dict(progress=False, batch_size=3)
    generate(Reverse(noise()), np.int64(2), out, **options)
    generate(Reverse(noise()), torch.tensor(2), out, **options)
    with pytest.raises(ValueError, match="made with other batch_size"):
        generate(Reverse(noise()), 3, out, progress=False)
    with pytest.raises(ValueError, match="batch_size=0: a whole number, 1 or more"):
        generate(Reverse(noise()), 3, out, batch_size=0)
    with pytest.raises(TypeError):
        generate(Reverse(noise()), 2.5, out)

    def drawn():
        yield 1

    mixer = Reverse(noise())
    mixer.source = drawn()
    generate(mixer, 1, tmp_path / "unknown", progress=False)
    with pytest.warns(UserWarning, match="generator of the mixer cannot be compared"):
        generate(mixer, 1, tmp_path / "unknown", progress=False)


HEAD = """
import sys, torch
torch.set_num_threads(1)
from hydramix_nb.data import ImageSet
from hydramix_nb.image_folders import generate
from hydramix_nb.mixing import MixUp
seeded = torch.Generator().manual_seed(0)
images = torch.randint(256, (6, 3, 16, 16), generator=seeded, dtype=torch.uint8)
mixer = MixUp(ImageSet(images, torch.arange(2).repeat_interleave(3), ["a", "b"]))
"""


def test_killed_and_resumed(tmp_path, start_python):
    mixer, out = MixUp(noise()), tmp_path / "out"
    code = "generate(mixer, 3000, sys.argv[1], batch_size=16, progress=False)"
    run = start_python(HEAD + code, out)
    deadline = time.monotonic() + 900
    while (
        run.poll() is None
        and time.monotonic() < deadline
        and not (out / "a" / "00020.png").exists()
    ):
        time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    output, _ = run.communicate()
    assert run.returncode == -signal.SIGKILL, output
    written = {p: p.read_bytes() for p in out.rglob("*.png") if not p.name.startswith(".")}
    for p in out.rglob(".*.partial"):
        p.unlink()
    assert len(load_images(f"folder:{_with_both_classes(out)}")) >= 20
    generate(mixer, 40, out, batch_size=16, progress=False)
    generate(mixer, 40, tmp_path / "alone", batch_size=16, progress=False)
    for p, data in written.items():
        assert p.read_bytes() == data
    made = {
        str(p.relative_to(tmp_path / "alone")): p.read_bytes()
        for p in (tmp_path / "alone").rglob("*.png")
    }
    assert len(made) == 80
    for p in written:
        if p.name < "00032.png":
            assert made[str(p.relative_to(out))] == written[p]


def _with_both_classes(folder):
    "The reader wants two classes; the killed run may have reached only the first"
    (folder / "b").mkdir(exist_ok=True)
    if not any((folder / "b").iterdir()):
        (folder / "b" / "00000.png").write_bytes((folder / "a" / "00000.png").read_bytes())
    return folder


@pytest.mark.skipif(os.name == "nt", reason="file size limits are a thing of Unix")
def test_full_disk(tmp_path, start_python):
    run = start_python(
        HEAD
        + """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
try: generate(mixer, 2, sys.argv[1], progress=False)
except OSError as e: print("OSError")
""",
        tmp_path / "out",
    )
    output, _ = run.communicate(timeout=900)
    assert "OSError" in output, output
    assert not list(tmp_path.rglob("*.png")) and not list(tmp_path.rglob("*.partial"))


@pytest.mark.cuda
def test_on_a_gpu(tmp_path):
    train = noise().to("cuda")
    for mixer in every_mixer(train):
        assert (
            mixer(torch.tensor([0, 1], device="cuda")).is_cuda
            and mixer(torch.tensor([0, 1])).device.type == "cpu"
        ), name(mixer)
    generate(HydraMix(untrained(), train), 2, tmp_path / "out", progress=False)


@pytest.mark.parametrize(
    "change",
    [
        lambda x, y: (x, y.int()),
        lambda x, y: (x, y.float()),
        lambda x, y: (x, y + 7),
        lambda x, y: (x, y - 1),
        lambda x, y: (x, y[:, None]),
    ],
)
def test_wrong_labels_are_an_error_on_every_call_of_every_link(change):
    data = noise()
    x, y = change(to_float(data.images), data.labels)
    never = OneOf(NMix(data), MixUp(data), p=(0.0, 0.0))
    for link in (never, SmoothLabels(data), Chain(never), Chain(SmoothLabels(data))):
        with pytest.raises((TypeError, ValueError), match="labels"):
            link.augment(x, y)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda d: MixUp(d, alpha=math.inf), "alpha=inf"),
        (lambda d: MixUp(d, alpha=math.nan), "alpha=nan"),
        (lambda d: OneOf(MixUp(d), NMix(d), p=(math.nan, 0.5)), "a probability for each"),
        (lambda d: NMix(d, mean=math.nan, std=1.0), "mean=nan"),
        (lambda d: NMix(d, mean=0.0, std=math.inf), "std=inf"),
    ],
)
def test_settings_that_are_not_finite_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(noise())


def test_what_is_no_mixer_no_generator_and_no_policy(tmp_path):
    data, trained = noise(), untrained()
    mixer = HydraMix(trained, data)
    for make, message in (
        (lambda: HydraMix("mine.safetensors", data), "trained is a str: gan.fit, gan.load"),
        (lambda: ChimeraMix(trained.generator, data), "trained is a Generator"),
        (lambda: HydraMix(trained, data, policy="AutoAugment"), "'AutoAugment' is no change of"),
        (lambda: mixing.Pool(trained, 2), "mixer is a Trained"),
        (lambda: mixing.Pool(mixer, "2"), "per_class='2': 1 or more"),
        (lambda: mixing.Pool(mixer, 2.5), "per_class=2.5: 1 or more"),
        (lambda: generate(trained, 1, tmp_path / "out"), "mixer is a Trained"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            make()
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file, and a folder"):
        generate(mixer, 1, tmp_path / "file", progress=False)


def test_a_batch_that_is_no_tensor():
    data = noise()
    with pytest.raises(TypeError, match="images must be a float tensor, got ndarray"):
        NMix(data).augment(to_float(data.images).numpy(), data.labels)


@pytest.mark.parametrize("p_gen", [-0.1, 1.5, float("nan")])
@pytest.mark.parametrize("per_sample", [True, False])
def test_what_is_no_probability_is_refused_for_images_and_batches_alike(p_gen, per_sample):
    data = noise()
    with pytest.raises(ValueError, match=f"p_gen={p_gen}: a probability, 0…1"):
        NMix(data).augment(to_float(data.images), data.labels, p_gen, per_sample)


def test_a_wrong_shape_is_an_error_whatever_the_coin_says():
    data = noise()
    x, y = to_float(data.images), data.labels
    never = OneOf(NMix(data), MixUp(data), p=(0.0, 0.0))
    with pytest.raises(ValueError, match="cannot be replaced"):
        never.augment(x[..., :8], y)
    with pytest.raises(ValueError, match=r"\[B,C,H,W\] is needed"):
        never.augment(x[:, 0], y)
    for mixer in (MixUp(data), MixUpN(data), CutMix(data), NMix(data)):
        for p in (0.0, 1.0):
            with pytest.raises(ValueError, match=r"\[B,C,H,W\] is needed"):
                mixer.augment(x[:, 0], y, p)
    with pytest.raises(ValueError, match=r"targets are \[6, 5\]: \[B,2\] is needed"):
        SmoothLabels(data).augment(x, torch.rand(6, 5))
