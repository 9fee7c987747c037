"A few images, and folders of their edited doubles as another program could have made them"

import importlib.util

import pytest
import torch

from hydramix_nb.data import ImageSet
from hydramix_nb.diffusemix import variant_path
from hydramix_nb.files import write_png

needs_diffusers = pytest.mark.skipif(
    not importlib.util.find_spec("diffusers"),
    reason="runs a diffusion pipeline: pip install 'hydramix-nb[diffusion]'",
)
PROMPTS = ["snowy", "a sketch with crayon"]
FAST = dict(size=16, steps=2, progress=False)


def pictures(n=6, size=16, channels=3, classes=("a", "b", "c"), seed=0):
    images = torch.randint(
        256,
        (n, channels, size, size),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(seed),
    )
    return ImageSet(images, torch.arange(n) % len(classes), list(classes))


def doubles(train, folder, prompts=PROMPTS):
    "A folder as another program could have made it: doubles are darker by the prompt's number"
    for i, prompt in enumerate(prompts, 1):
        for image, label in zip(train.images, train.labels, strict=True):
            write_png(variant_path(folder, train.classes[label], image, prompt), image // 2 + i)
    return folder


TRAIN = pictures()
