"The pool of SuperMix, and its teacher."

from dataclasses import replace

import pytest
import torch

from hydramix_nb import classifier, supermix
from hydramix_nb.data import ImageSet
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
