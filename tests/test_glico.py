"GLICO at sizes above 64 pixels, and at sizes that do not divide."

import pytest
import torch

from hydramix_nb.data import ImageSet
from hydramix_nb.glico import GLICO, _fit_latents


def pictures(n=9, classes=3, size=16, channels=3, seed=0):
    "Smooth random pictures, so that segments have more than a pixel"
    coarse = torch.rand(n, channels, 4, 4, generator=torch.Generator().manual_seed(seed)) * 255
    images = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear").to(torch.uint8)
    return ImageSet(images, torch.arange(n) % classes, [f"c{i}" for i in range(classes)])


@pytest.mark.parametrize("size", [72, 96])
def test_glicos_larger_generator(size):
    generator, latents = _fit_latents(
        pictures(4, 2, size), steps=1, latent=8, features=4, progress=False
    )
    assert generator(latents).shape == (4, 3, size, size) and not generator.training


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="multiple of 4"):
        GLICO(pictures(size=18), "tiny", progress=False)
