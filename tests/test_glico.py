"GLICO at sizes above 64 pixels and at sizes that do not divide, in pieces, and diverging."

import pytest
import torch

from hydramix_nb.data import ImageSet
from hydramix_nb.glico import GLICO, _fit_latents, _Training


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


TINY = dict(steps=7, batch_size=4, latent=8, features=4, progress=False)


def test_glico_in_pieces_is_glico_in_one(tmp_path, in_pieces, monkeypatch, one_thread):
    "To the last bit; and what is finished is not trained again"
    generator, latents = _fit_latents(pictures(), **TINY)
    (cut, z), calls = in_pieces(lambda: _fit_latents(pictures(), folder=tmp_path, **TINY))
    monkeypatch.setattr(_Training, "step", None)
    again, y = _fit_latents(pictures(), folder=tmp_path, **TINY)
    assert calls == 7 and torch.equal(z, latents) and torch.equal(y, latents)
    for other in (cut, again):
        for a, b in zip(generator.state_dict().values(), other.state_dict().values(), strict=True):
            assert torch.equal(a, b)


def test_glicos_checkpoint_of_other_settings_or_images_is_refused(tmp_path):
    GLICO(pictures(), "tiny", folder=tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"another training \(seed: 0 → 1\)"):
        GLICO(pictures(), "tiny", seed=1, folder=tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"another training \(other images\)"):
        GLICO(pictures(seed=1), "tiny", folder=tmp_path, progress=False)


def test_glico_that_diverges_says_what_to_lower():
    with pytest.raises(FloatingPointError, match="lower lr .now 1e"):
        _fit_latents(pictures(), **TINY, lr=1e38)
