"Image sets: what must never change, what is refused, and how few are drawn from many."

import numpy as np
import pytest
import torch

from hydramix_nb.data import (
    ImageSet,
    _class_tables,
    _same_class_indices,
    crop_flip,
    few_shot_indices,
    load_images,
    photos,
    to_float,
    to_uint8,
)


# ------------------------------------------------------------------ what must never change


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 4, 2**31])
@pytest.mark.parametrize("n", [1, 4, 10])
def test_the_few_are_drawn_by_the_rule_of_the_predecessors_code(seed, n):
    labels = [0, 1, 2] * 10
    rng, kept = np.random.default_rng(seed), []  # one generator
    for label in (0, 1, 2):  # class by class, in the order of the labels
        positions = [i for i in range(30) if labels[i] == label]  # in the data set's order
        rng.shuffle(positions)  # shuffled in place
        kept += positions[:n]  # the first n are kept
    rng.shuffle(kept)  # at last the whole list, once, with the same generator
    assert few_shot_indices(torch.tensor(labels), n, seed, ["a", "b", "c"]).tolist() == kept
    images = torch.arange(30, dtype=torch.uint8)[:, None, None, None]
    few = ImageSet(images, torch.tensor(labels), ["a", "b", "c"]).few_shot(n, seed)
    assert few.images.flatten().tolist() == kept
    assert few.by_class().labels.tolist() == [0] * n + [1] * n + [2] * n


def test_the_same_seed_draws_the_same_images_for_good():
    labels = torch.arange(3).repeat(20)
    assert few_shot_indices(labels, 2, 0, ["a", "b", "c"]).tolist() == [34, 12, 35, 49, 23, 57]


def test_photos_are_the_same_everywhere():
    assert [photos(split).digest()[:12] for split in ("train", "test")] == [
        "3aaa9031030a",
        "f277757a97ae",
    ]


def test_photos_share_no_patch():
    train, test = photos("train"), photos("test")
    rows = lambda s: {bytes(i) for i in s.images.flatten(1).numpy()}
    assert not rows(train) & rows(test) and len(train) == len(test) == 1000
    with pytest.raises(ValueError, match="train and test, not 'dev'"):
        photos("dev")


# ------------------------------------------------------------------ image sets


def made(n=6, classes=3, **kw):
    return ImageSet(
        torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8),
        torch.arange(n) % classes,
        [f"c{c}" for c in range(classes)],
    )


def test_indexing():
    s = made()
    for index in (
        slice(2),
        [0, 1],
        torch.tensor([0, 1]),
        torch.tensor([True, True] + [False] * 4),
        [True, True] + [False] * 4,
    ):
        assert torch.equal(s[index].images, s.images[:2]) and s[index].classes == s.classes
    for index in (4, np.int64(4), torch.tensor(4)):
        assert torch.equal(s[index].images, s.images[4:5])
    with pytest.raises(IndexError):
        s[6]
    with pytest.raises(ValueError, match="needs images"):
        s[[False] * 6]
    assert len(list(iter(s))) == 6


@pytest.mark.parametrize(
    "change, message",
    [
        (
            dict(
                images=torch.zeros(0, 3, 8, 8, dtype=torch.uint8),
                labels=torch.zeros(0, dtype=torch.int64),
            ),
            "needs images",
        ),
        (
            dict(labels=torch.zeros(6, dtype=torch.int32)),
            "labels must be a torch.int64 tensor, got torch.int32",
        ),
        (dict(labels=[0] * 6), "got list"),
        (dict(labels=torch.tensor([0, 0, -1, 0, 0, 0])), "image 2 has label -1"),
        (dict(classes="abc"), "classes must be a list of str"),
        (dict(classes=[0, 1, 2]), "classes must be a list of str"),
        (dict(classes=["a", "b", "a"]), "'a' occurs more than once"),
    ],
)
def test_what_is_no_image_set(change, message):
    s = made()
    with pytest.raises((ValueError, TypeError), match=message):
        ImageSet(**dict(dict(images=s.images, labels=s.labels, classes=s.classes), **change))


def test_few_shot_is_the_same_for_other_pixels_and_refuses_nothing():
    s, t = made(60), made(60)
    assert torch.equal(
        few_shot_indices(s.labels, 4, 7, s.classes), few_shot_indices(t.labels, 4, 7, t.classes)
    )
    for k in (0, -1):
        with pytest.raises(ValueError, match="at least 1"):
            s.few_shot(k, 0)
    for k, seed in ((2.5, 0), ("2", 0), (2, None), (2, -1), (2, 0.5)):  # None draws anew each time
        with pytest.raises(ValueError, match="must be a whole number"):
            s.few_shot(k, seed)
    with pytest.raises(ValueError, match=r"fewer of 'c0' \(20\), 'c1' \(20\), 'c2' \(20\)"):
        s.few_shot(21, 0)


def test_digest_sees_every_part():
    s = made()
    changed = s.images.clone()
    changed[-1, -1, -1, -1] ^= 1
    others = [
        ImageSet(changed, s.labels, s.classes),
        ImageSet(s.images, s.labels.flip(0), s.classes),
        ImageSet(s.images, s.labels, ["c0", "c1", "x"]),
        ImageSet(s.images.reshape(6, 3, 4, 16), s.labels, s.classes),
    ]
    assert len({o.digest() for o in (s, *others)}) == 5
    assert (
        s.digest()
        == ImageSet(
            s.images.to(memory_format=torch.channels_last), s.labels.clone(), tuple(s.classes)
        ).digest()
    )


def test_a_set_shows_itself():
    assert "6 images 3×8×8 on cpu: 3 classes of 2 (c0, c1, c2)" in repr(
        made()
    ) and "1 to 2" in repr(made(5))
    assert made()._repr_jpeg_()[:2] == b"\xff\xd8"
    assert (
        ImageSet(
            torch.zeros(2, 5, 8, 8, dtype=torch.uint8), torch.arange(2), ["a", "b"]
        )._repr_jpeg_()
        is None
    )


def test_the_first_image_is_never_of_the_next_class():
    "u just below 1 rounds up in float32 when a class is large: the last image, not the next class."
    labels = torch.cat([torch.zeros(3, dtype=torch.int64), torch.ones(2, dtype=torch.int64)])
    one = torch.tensor(1.0)
    tables = _class_tables(labels, 2)
    real = torch.rand
    try:
        torch.rand = lambda *s, **kw: (
            torch.full(s, torch.nextafter(one, torch.tensor(0.0)).item()) * 1.0000001
        )
        index = _same_class_indices(torch.tensor([0, 1]), 2, tables)
    finally:
        torch.rand = real
    assert index[:, 0].tolist() == [2, 4] and torch.equal(labels[index[:, 1]], torch.tensor([0, 1]))


@pytest.mark.parametrize("n_images", [1, 2, 4, 7])
def test_partners_are_those_with_the_smallest_numbers(n_images):
    "Word for word: a number for each image of the class, the smallest first, then again."
    labels = torch.tensor([1, 0, 1, 2, 1, 0, 1, 1, 2, 2, 2])
    asked = torch.tensor([0, 1, 2, 1, 0] * 40)
    u = torch.rand(200, 6, generator=torch.Generator().manual_seed(3))
    found = _same_class_indices(
        asked, n_images, _class_tables(labels, 4), torch.Generator().manual_seed(3)
    )
    for label, numbers, row in zip(asked.tolist(), u.tolist(), found.tolist(), strict=True):
        own = (labels == label).nonzero().flatten().tolist()
        by_number = [i for _, i in sorted(zip(numbers[1:], own, strict=False))]
        partners = (by_number * n_images)[: n_images - 1]
        assert row == [own[int(numbers[0] * len(own))], *partners]


def test_grey_levels_survive_half_precision_storage_types():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(levels).double()), levels)
    x = torch.zeros(2, 3, 4, 4, dtype=torch.uint8).to(memory_format=torch.channels_last)
    assert to_float(x).is_contiguous(memory_format=torch.channels_last)


def test_crop_flip_leaves_its_input_alone_and_takes_any_shape():
    x = torch.randint(0, 256, (5, 2, 9, 17), dtype=torch.uint8)
    kept = x.clone()
    y, s = crop_flip(x, x[:, 0].int(), padding=8)
    assert (
        y.shape == x.shape
        and y.dtype == x.dtype
        and s.dtype == torch.int32
        and torch.equal(s.to(torch.uint8), y[:, 0])
        and torch.equal(x, kept)
    )
    with pytest.raises(ValueError, match="padding -1"):
        crop_flip(x, padding=-1)


def test_crop_flip_and_partners_are_seeded():
    s, g = photos(n=5), lambda: torch.Generator().manual_seed(5)
    assert torch.equal(crop_flip(s.images, generator=g()), crop_flip(s.images, generator=g()))
    assert torch.equal(s.same_class(s.labels, 3, g()), s.same_class(s.labels, 3, g()))


@pytest.mark.cuda
def test_on_the_device_nothing_waits_and_cpu_generators_draw_the_same():
    s = photos(n=20)
    d = s.to("cuda")
    g = lambda: torch.Generator().manual_seed(5)
    assert torch.equal(crop_flip(d.images, generator=g()).cpu(), crop_flip(s.images, generator=g()))
    assert torch.equal(d.same_class(d.labels, 3, g()).cpu(), s.same_class(s.labels, 3, g()))
    assert d.digest() == s.digest() and torch.equal(
        d.few_shot(5, 0).images.cpu(), s.few_shot(5, 0).images
    )
    on = torch.Generator("cuda").manual_seed(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        crop_flip(to_float(d.images), d.images[:, 0], generator=on)
        d.same_class(d.labels, 3, on)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_own_segments_are_resized_with_their_images():
    images = torch.randint(256, (2, 3, 24, 36), dtype=torch.uint8)
    segments = (torch.arange(36) // 12).expand(2, 24, 36).contiguous() + 300
    data = ImageSet(images, torch.tensor([0, 1]), ["a", "b"], segments)
    smaller = load_images(data, size=12)
    assert smaller.segments.shape == (2, 12, 12) and smaller.segments.dtype == torch.int64
    assert smaller.segments[0, 0].tolist() == [300] * 3 + [301] * 6 + [302] * 3
