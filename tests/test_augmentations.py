"Augmentations on odd images."

import torch

from hydramix_nb.augmentations import CutMix, Cutout, RandomErasing
from hydramix_nb.data import ImageSet
from hydramix_nb.policies import Policy


def test_random_erasing_leaves_alone_what_never_fits():
    images = torch.full((50, 1, 4, 64), 2.0)
    out = RandomErasing(p=1.0, area=(0.9, 0.9), aspect=1.0)(images)
    assert torch.equal(out, images)


def test_images_that_are_not_square():
    images = torch.rand(5, 3, 12, 20)
    for transform in (Cutout(6), RandomErasing(1.0), Policy("TrivialAugment")):
        assert transform(images).shape == images.shape


def test_cutmix_keeps_classes_apart_when_called_with_labels():
    train = ImageSet(
        torch.stack([torch.full((3, 16, 16), v, dtype=torch.uint8) for v in (0, 10, 200, 210)]),
        torch.tensor([0, 0, 1, 1]),
        ["a", "b"],
    )
    out = CutMix(train)(torch.tensor([0, 1, 0, 1]))
    assert out[0].max() < 0 < out[1].min() and out[2].max() < 0 < out[3].min()
