"The pool of SuperMix, and its teacher."

from dataclasses import replace

import pytest
import torch

from hydramix_nb import classifier, supermix
from hydramix_nb.chains import Chain, Chance, OneOf, SmoothLabels
from hydramix_nb.data import ImageSet, crop_flip, to_float
from hydramix_nb.mixing import MixUp
from hydramix_nb.supermix import SuperMix


def pictures(n=9, classes=3, size=16, channels=3, seed=0):
    "Smooth random pictures, so that segments have more than a pixel"
    coarse = torch.rand(n, channels, 4, 4, generator=torch.Generator().manual_seed(seed)) * 255
    images = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear").to(torch.uint8)
    return ImageSet(images, torch.arange(n) % classes, [f"c{i}" for i in range(classes)])


TRAIN, TEST = pictures(), pictures(6, seed=1)
CONFIG = classifier.profile("tiny", 16, steps=2, evaluations=1)


def test_supermix_pool_is_whole():
    mixer = SuperMix(TRAIN, "tiny", progress=False)
    assert set(mixer.pool.labels.tolist()) == {0, 1, 2} and not mixer.teacher.training
    torch.testing.assert_close(mixer.targets.sum(1), torch.ones(len(mixer.targets)))
    assert (
        torch.equal(mixer.targets.argmax(1), mixer.pool.labels)
        and ((mixer.targets > 0).sum(1) == 2).all()
    )
    labels = torch.tensor([0, 2, 1, 1])
    images, targets = mixer.augment(torch.zeros(4, 3, 16, 16), labels, 1.0)
    assert torch.equal(targets.argmax(1), labels) and images.shape == (4, 3, 16, 16)
    assert mixer.augment(images, labels, 0.0)[1] is labels


def test_supermix_takes_a_teacher_that_is_there():
    teacher = classifier.fit(TRAIN, TEST, None, CONFIG, progress=False).model
    a, b = (SuperMix(TRAIN, "tiny", teacher=teacher, seed=1, progress=False) for _ in range(2))
    assert a.teacher is teacher and torch.equal(a.pool.images, b.pool.images)
    c = SuperMix(TRAIN, "tiny", teacher=teacher, seed=2, progress=False)
    assert a.pool.images.shape != c.pool.images.shape or not torch.equal(
        a.pool.images, c.pool.images
    )


def test_supermix_pool_is_the_same_with_and_without_a_bar():
    teacher = classifier.fit(TRAIN, TEST, None, CONFIG, progress=False).model
    made = [SuperMix(TRAIN, "tiny", teacher=teacher, progress=bar).pool.images for bar in (0, 1)]
    assert torch.equal(*made)


def small(**changes):
    "SuperMix whose pool takes several steps"
    settings = dict(pool=101, iterations=1, config=CONFIG, progress=False) | changes
    return SuperMix(TRAIN, "tiny", **settings)


def same(a, b):
    "Whether two pools are the same to the last bit, and their teachers"
    states = (m.teacher.state_dict().values() for m in (a, b))
    return (
        torch.equal(a.pool.images, b.pool.images)
        and torch.equal(a.targets, b.targets)
        and a.accepted == b.accepted
        and all(torch.equal(x, y) for x, y in zip(*states, strict=True))
    )


def test_supermix_in_pieces_is_supermix_in_one(tmp_path, in_pieces, monkeypatch, one_thread):
    "To the last bit; and what is finished is read and not made again"
    alone = small()
    cut, calls = in_pieces(lambda: small(folder=tmp_path))
    assert calls > 3 and same(cut, alone)
    monkeypatch.setattr(supermix, "_candidates", None)
    monkeypatch.setattr(classifier.Training, "step", None)
    assert same(small(folder=tmp_path), alone)


def test_supermix_of_other_settings_or_another_teacher_is_refused(tmp_path):
    teacher = small(pool=5, folder=tmp_path).teacher
    with pytest.raises(ValueError, match=r"pool.*another training \(alpha: 3.0 → 1.0\)"):
        small(pool=5, alpha=1.0, folder=tmp_path)
    with pytest.raises(ValueError, match=r"teacher.*another training \(dropout"):
        small(pool=5, config=replace(CONFIG, dropout=0.5), folder=tmp_path)
    teacher[-1].bias.data += 1
    with pytest.raises(ValueError, match=r"pool.*another training \(other teacher\)"):
        small(pool=5, teacher=teacher, folder=tmp_path)


def test_a_mixture_without_a_loss_spoils_no_pool(monkeypatch):
    made = supermix._candidates

    def without(*arguments):
        mixed, targets, loss, accepted = made(*arguments)
        return (
            mixed,
            targets,
            torch.where(torch.arange(len(loss)) % 5 == 0, torch.nan, loss),
            accepted,
        )

    monkeypatch.setattr(supermix, "_candidates", without)
    assert set(small(pool=9).pool.labels.tolist()) == {0, 1, 2}


def test_after_soft_targets_no_link_that_needs_labels():
    "Refused when the chain is made, not at the first batch of which the coin says yes"
    made, mixup = small(pool=5), MixUp(TRAIN)
    whole = Chance(made, 0.5, per_sample=False)
    for first in (made, whole, OneOf(made, crop_flip), Chain(whole), SmoothLabels(TRAIN)):
        for then in (mixup, Chance(mixup, 0.5), OneOf(mixup, crop_flip), Chain(crop_flip, mixup)):
            with pytest.raises(ValueError, match="(?s)needs labels, but .* has made soft targets"):
                Chain(first, crop_flip, then)
    changes = OneOf(crop_flip, torch.zeros_like), Chain(crop_flip), Chance(Chain(crop_flip), 0.5)
    images, labels = to_float(TRAIN.images[:2]), TRAIN.labels[:2]
    for chain in (Chain(Chance(made, 0.5), mixup), Chain(made, *changes, SmoothLabels(TRAIN))):
        assert chain(images, labels)[1].shape == (2, 3)
    assert Chain(*changes)(images).shape == images.shape
    with pytest.raises(TypeError, match="needs labels: chain"):
        Chain(Chain(mixup))(images)
    with pytest.raises(TypeError, match="labels must be"):
        Chain(Chain(SmoothLabels(TRAIN)))(images)


def test_a_transform_that_is_a_chain_follows_supermix():
    method = classifier.Method(small(pool=5), transform=Chain(crop_flip, torch.zeros_like))
    images, targets = method.chain()(to_float(TRAIN.images[:2]), TRAIN.labels[:2])
    assert not images.any() and len(targets) == 2
