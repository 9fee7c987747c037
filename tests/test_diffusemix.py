"DiffuseMix: fractals, halves, the folder of edited images, the method."

import importlib.util
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from variants import FAST, PROMPTS, TRAIN, doubles, pictures

from hydramix_nb import baselines, classifier, diffusemix, editing, sweeps
from hydramix_nb.chains import Chance
from hydramix_nb.data import ImageSet, _fit_square, load_images, to_float
from hydramix_nb.diffusemix import (
    DiffuseMix,
    _blend,
    _half_masks,
    _hybrid,
    _image_key,
    _singular_values,
    fractals,
    read_variants,
    variant_path,
)
from hydramix_nb.editing import generate_variants
from hydramix_nb.files import write_png

# fractals


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99, 1.0])
def test_singular_values_keep_their_budget(share):
    maps = torch.randint(2, 8, (500,), generator=torch.Generator().manual_seed(1))
    sigma = _singular_values(maps, 3.0 * maps * share, torch.Generator().manual_seed(2))
    assert (
        sigma.min() > -1e-5
        and sigma.max() < 1 + 1e-5
        and (sigma[..., 0] > sigma[..., 1] - 1e-5).all()
    )
    torch.testing.assert_close(
        (sigma[..., 0] + 2 * sigma[..., 1]).sum(1), 3.0 * maps * share, atol=1e-4, rtol=0
    )
    assert (sigma.sum(-1)[torch.arange(sigma.shape[1]) >= maps[:, None]] == 0).all()


@pytest.mark.parametrize("count, size, channels", [(1, 1, 3), (3, 7, 1), (51, 16, 3), (2, 224, 3)])
def test_fractals_of_any_number_and_size(count, size, channels):
    made = fractals(count, size, seed=4, channels=channels)
    assert made.shape == (count, channels, size, size) and made.dtype == torch.uint8
    assert torch.equal(made, fractals(count, size, seed=4, channels=channels))
    assert made.flatten(1).float().amax(1).min() > 20 or size == 1


def test_no_fractals_are_refused():
    with pytest.raises(ValueError, match="0 fractals of 32 pixels"):
        fractals(0, 32)


def test_the_game_never_leaves_a_system_with_fewer_maps():
    "Systems share tensors; beyond a system's own maps there are zeros, which would be points at b"
    A, b, p = diffusemix._random_systems(200, torch.Generator().manual_seed(0))
    b = torch.where((p > 0)[..., None], b, 1e6)
    assert (
        diffusemix._chaos_game(
            A, b, p, players=200, steps=20, generator=torch.Generator().manual_seed(1)
        )
        .abs()
        .max()
        < 1e4
    )


# halves and blends


@pytest.mark.parametrize("channels, height, width", [(3, 8, 8), (1, 7, 9), (3, 1, 4), (3, 5, 2)])
def test_hybrids_and_blends_are_what_numpy_says(channels, height, width):
    g = torch.Generator().manual_seed(0)
    I, J, P = (torch.rand(40, channels, height, width, generator=g) * 2 - 1 for _ in range(3))
    mask = _half_masks(40, height, width, g)
    out, kinds = _blend(_hybrid(I, J, mask), P, 0.3).numpy(), set()
    for k in range(40):
        M = mask[k, 0].numpy()
        found = [
            kind
            for kind, half in dict(
                left=np.s_[:, : width // 2],
                right=np.s_[:, width // 2 :],
                upper=np.s_[: height // 2],
                lower=np.s_[height // 2 :],
            ).items()
            if M[half].sum() == M.sum() == M[half].size
        ]
        assert found and set(np.unique(M)) <= {0.0, 1.0}
        kinds.update(found)
        H = np.where(M == 1, I[k].numpy(), J[k].numpy())
        np.testing.assert_allclose(out[k], 0.7 * H + 0.3 * P[k].numpy(), atol=1e-6)
    assert kinds == {"left", "right", "upper", "lower"}


# the folder of edited images


def test_names_survive_any_class_and_prompt(tmp_path):
    classes, prompts = ["9/11", "..", "a:b %"], ["50 % snow / rain?", "señal. ", "a b c"]
    train = pictures(classes=classes)
    doubles(train, tmp_path, prompts)
    images, found = read_variants(train, tmp_path)
    assert sorted(found) == sorted(prompts) and torch.equal(
        images[:, found.index("a b c")], train.images // 2 + 3
    )
    assert {unquote(p.name) for p in tmp_path.iterdir()} == set(classes)


def test_larger_and_grey_doubles_are_brought_to_the_form_of_the_originals(tmp_path):
    grey = pictures(channels=1)

    def enlarged(images):
        return images.repeat_interleave(4, -2).repeat_interleave(4, -1)

    for image, label in zip(grey.images, grey.labels, strict=True):
        write_png(variant_path(tmp_path, grey.classes[label], image, "large"), enlarged(image))
        write_png(
            variant_path(tmp_path, grey.classes[label], image, "colour"),
            torch.cat([image, image // 2, image // 4]),
        )
    images, prompts = read_variants(grey, tmp_path)
    assert images.shape == (6, 2, 1, 16, 16) and prompts == ["colour", "large"]
    expected = (grey.images.float() + (grey.images // 2).float() + (grey.images // 4).float()) / 3
    assert (images[:, 0] - expected).abs().max() <= 0.5
    assert torch.equal(images[:, 1], _fit_square(enlarged(grey.images), 16))


def test_unfinished_folders_are_named(tmp_path):
    doubles(TRAIN, tmp_path)
    victim = variant_path(tmp_path, TRAIN.classes[1], TRAIN.images[4], "snowy")
    victim.unlink()
    with pytest.raises(
        ValueError,
        match=f"no 'snowy' for 1 of 6 .*{_image_key(TRAIN.images[4])} snowy.png.*choose from "
        "a sketch with crayon",
    ):
        DiffuseMix(TRAIN, tmp_path)
    assert DiffuseMix(TRAIN, tmp_path, prompts=["a sketch with crayon"]).p_gen == 1 / 2
    victim.write_bytes(b"\x89PNG half")
    with pytest.raises(ValueError, match=f"cannot read .*{_image_key(TRAIN.images[4])} snowy.png"):
        DiffuseMix(TRAIN, tmp_path)


def test_doubles_of_other_images_and_classes_do_not_count(tmp_path):
    doubles(TRAIN, tmp_path)
    shifted = ImageSet(TRAIN.images, (TRAIN.labels + 1) % 3, TRAIN.classes)
    with pytest.raises(ValueError, match="no edited images for 6 of 6"):
        DiffuseMix(shifted, tmp_path)
    with pytest.raises(ValueError, match="no edited images for 6 of 6"):
        DiffuseMix(pictures(seed=1), tmp_path)
    for p in (tmp_path / "a").iterdir():
        p.rename(tmp_path / "a" / f".{p.name}")
    with pytest.raises(
        ValueError,
        match="no edited images for 2 of 6 training images, such as image 0 of class 'a'",
    ):
        DiffuseMix(TRAIN, tmp_path)


# the method


@pytest.mark.parametrize("channels, size", [(3, 16), (1, 13)])
def test_augmented_images_are_halves_of_originals_and_doubles(channels, size, tmp_path):
    train = pictures(channels=channels, size=size)
    made = DiffuseMix(train, doubles(train, tmp_path), strength=0.0, seed=2).augmented
    assert (
        len(made) == 12
        and torch.equal(made.labels, train.labels.repeat_interleave(2))
        and made.classes == train.classes
    )
    edited, prompts = read_variants(train, tmp_path)
    for k, image in enumerate(made.images):
        original, double = train.images[k // 2], edited[k // 2, k % 2]
        kept = (image == original).all(0)
        assert ((image == double).all(0) | kept).all()
        assert size * (size // 2) <= kept.sum() <= size * (size - size // 2) + 8


def test_the_fractals_share_is_what_was_asked_for(tmp_path):
    doubles(TRAIN, tmp_path)
    plain, half, whole = (
        to_float(DiffuseMix(TRAIN, tmp_path, strength=s, seed=1, pool=4).augmented.images)
        for s in (0.0, 0.5, 1.0)
    )
    assert ((plain + whole) / 2 - half).abs().max() < 3 / 255
    patterns = to_float(fractals(4, 16, 1))
    assert all(any(torch.equal(image, pattern) for pattern in patterns) for image in whole)
    a, b = DiffuseMix(TRAIN, tmp_path, seed=1), DiffuseMix(TRAIN, tmp_path, seed=2)
    assert torch.equal(
        a.augmented.images, DiffuseMix(TRAIN, tmp_path, seed=1).augmented.images
    ) and not torch.equal(a.augmented.images, b.augmented.images)


def test_batches_keep_their_labels(tmp_path):
    mixer = DiffuseMix(TRAIN, doubles(TRAIN, tmp_path))
    x, y = to_float(TRAIN.images), TRAIN.labels
    assert mixer.p_gen == 2 / 3 and mixer(y).shape == x.shape
    for p in (0.0, None, 1.0):
        torch.manual_seed(0)
        images, labels = mixer.augment(x, y, p)
        assert labels is y and images.shape == x.shape and images.dtype == x.dtype
        if p == 0:
            assert torch.equal(images, x)
        if p == 1:
            assert (images != x).flatten(1).any(1).all()
    with pytest.raises(TypeError, match="to_float"):
        mixer.augment(TRAIN.images, y)
    with pytest.raises(ValueError, match="labels from 0 to 7"):
        mixer.augment(x, torch.tensor([0, 1, 2, 0, 1, 7]))


def test_coins_are_those_of_images_unless_the_batch_is_asked_for(tmp_path):
    mixer = DiffuseMix(TRAIN, doubles(TRAIN, tmp_path))
    x, y = to_float(TRAIN.images), TRAIN.labels
    torch.manual_seed(1)
    torch.rand(())  # of a batch, which is made for certain
    made = mixer(y)
    expected = torch.where((torch.rand(len(y)) < 0.5)[:, None, None, None], made, x)
    for augment in (lambda: mixer.augment(x, y, 0.5), lambda: Chance(mixer, 0.5).augment(x, y)):
        torch.manual_seed(1)
        assert torch.equal(augment()[0], expected)
    for _ in range(8):
        images, _ = mixer.augment(x, y, 0.5, per_sample=False)
        assert len(set((images != x).flatten(1).any(1).tolist())) == 1
    for per_sample in (True, False):
        with pytest.raises(ValueError, match="p_gen=5.0: a probability"):
            mixer.augment(x, y, 5.0, per_sample=per_sample)


def test_an_augmented_image_is_of_the_label(tmp_path):
    flat = ImageSet(
        torch.tensor([0, 40, 200, 240], dtype=torch.uint8)
        .view(4, 1, 1, 1)
        .expand(4, 3, 16, 16)
        .contiguous(),
        torch.tensor([0, 0, 1, 1]),
        ["dark", "light"],
    )
    for image, label in zip(flat.images, flat.labels, strict=True):
        write_png(variant_path(tmp_path, flat.classes[label], image, "same"), image)
    out = DiffuseMix(flat, tmp_path, strength=0.0)(torch.tensor([0, 1] * 20))
    assert out[::2].max() < 0 < out[1::2].min()
    assert len(out[::2].amax((1, 2, 3)).unique()) == 2


def test_in_the_registry(tmp_path):
    doubles(TRAIN, tmp_path)
    method = baselines.build(
        "DiffuseMix",
        TRAIN,
        generated=tmp_path,
        prompts=["snowy"],
        strength=0.1,
        p_gen=0.25,
        seed=3,
        auto_augment="TrivialAugment",
    )
    assert (
        method.p_gen == 0.25
        and method.mixer.prompts == ["snowy"]
        and method.transform.name == "TrivialAugment"
    )
    assert torch.equal(
        method.mixer.augmented.images,
        DiffuseMix(TRAIN, tmp_path, prompts=["snowy"], strength=0.1, seed=3).augmented.images,
    )
    with pytest.raises(ValueError, match="diffuse.ipynb makes one"):
        baselines.build("DiffuseMix", TRAIN)
    with pytest.raises(
        ValueError, match="has no setting 'edited'; it takes generated, prompts, strength"
    ):
        baselines.build("DiffuseMix", TRAIN, edited=tmp_path)


def test_other_edited_images_are_another_training(tmp_path):
    config = classifier.profile("tiny", 16, steps=2, evaluations=1)

    def method(name, by):
        return baselines.build("DiffuseMix", TRAIN, generated=doubles(TRAIN, tmp_path / name, by))

    one, same, other = method("one", PROMPTS), method("same", PROMPTS), method("other", PROMPTS[:1])
    classifier.fit(TRAIN, TRAIN, one, config, folder=tmp_path / "run", progress=False)
    classifier.fit(TRAIN, TRAIN, same, config, folder=tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="other method"):
        classifier.fit(TRAIN, TRAIN, other, config, folder=tmp_path / "run", progress=False)


def test_a_sweep_finds_the_images_among_the_generators(tmp_path, quick_kernels):
    pytest.importorskip("papermill")
    few = load_images("photos").few_shot(2, seed=0)
    doubles(few, tmp_path / "generators/diffusemix", ["darker"])
    common = dict(dataset="photos", samples_per_class=2, method="DiffuseMix", profile="tiny")
    (outcome,) = sweeps.sweep(
        sweeps.plan("classify", [common], tmp_path, device="cpu"), progress=False
    )
    assert outcome.state == "done" and outcome.result["edited"]["prompts"] == ["darker"], (
        outcome.error
    )


@pytest.mark.cuda
def test_on_a_gpu(tmp_path):
    train = TRAIN.to("cuda")
    if importlib.util.find_spec("diffusers"):
        pipeline = editing.load_pipeline(editing.tiny_pipeline(tmp_path / "tiny"), "cuda")
        assert pipeline.dtype == torch.float16
        generate_variants(pipeline, train, tmp_path / "made", PROMPTS, **FAST)
    else:
        doubles(TRAIN, tmp_path / "made")
    mixer, cpu = (
        DiffuseMix(train, tmp_path / "made", seed=1),
        DiffuseMix(TRAIN, tmp_path / "made", seed=1),
    )
    assert mixer(train.labels).is_cuda and torch.equal(
        mixer.augmented.labels.cpu(), cpu.augmented.labels
    )
    assert (mixer.augmented.images.cpu() != cpu.augmented.images).float().mean() < 0.02
    images, labels = mixer.augment(to_float(train.images), train.labels)
    assert images.is_cuda and labels is train.labels
