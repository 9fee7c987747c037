"""Masks and segments: what the notebook does not teach. Odd inputs, damaged files, processes,
devices, random shapes against loops"""

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hydramix_nb import masks
from hydramix_nb.masks import (
    box_mask,
    color_owners,
    downsample,
    grid_mask,
    hydra_mask,
    mask_to_owners,
    noisy_segments,
    outline_segments,
    _owners_to_mask,
    pair_mask,
    segment,
    show_mask,
)


def seed(number, device="cpu"):
    return torch.Generator(device).manual_seed(number)


@pytest.fixture(scope="module")
def images():
    "Twelve patches of a photograph, 48×40."
    from skimage.data import astronaut

    photograph = torch.from_numpy(astronaut()).permute(2, 0, 1)
    return torch.stack(
        [
            photograph[:, y : y + 48, x : x + 40]
            for y in (60, 150, 240, 330)
            for x in (100, 180, 260)
        ]
    )


@pytest.fixture(scope="module")
def maps(images):
    return segment(images)


def random_maps(*shape, labels=9, number=0):
    return torch.randint(labels, shape, generator=seed(number))


# segment


def test_segment_contract(images, maps):
    assert maps.dtype == torch.int64 and maps.shape == (12, 48, 40)
    for m in maps:
        assert m.unique().tolist() == list(range(m.max() + 1))
    assert 3 < (maps.amax((1, 2)) + 1).float().mean() < 30
    maps.gather(2, maps.clamp(max=39))
    torch.bincount(maps.flatten())


def test_segment_is_the_same_every_way(images, maps):
    assert torch.equal(segment(images.numpy()), maps)
    assert torch.equal(segment(images.contiguous(memory_format=torch.channels_last)), maps)
    assert torch.equal(segment(images.flip(0)).flip(0), maps)
    assert torch.equal(torch.cat([segment(i[None]) for i in images]), maps)
    frozen = images.numpy().copy()
    frozen.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(segment(frozen), maps)


@pytest.mark.parametrize("workers", [2, 9])
def test_processes_agree(images, maps, workers):
    assert torch.equal(segment(images[:3], workers=workers), maps[:3])


def test_processes_need_no_main_guard(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\n"
        "from hydramix_nb.masks import segment\n"
        "images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)\n"
        "print(tuple(segment(images, workers=2).shape))\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0 and done.stdout.strip() == "(4, 8, 8)", done.stderr


def test_a_failing_process_is_reported(images, monkeypatch):
    monkeypatch.setattr(masks, "_WORKER", "raise SystemExit('out of luck')")
    with pytest.raises(RuntimeError, match="workers=1"):
        segment(images, workers=2)


def test_processes_are_used_only_where_they_pay():
    assert masks._default_workers(50 * 64 * 64) == 1
    assert 1 <= masks._default_workers(10**9) <= os.cpu_count()


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 1, 1, 9), (1, 2, 5, 3), (2, 7, 16, 16)])
def test_odd_images(shape):
    images = torch.randint(256, shape, generator=seed(0)).to(torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert segment(images, min_size=2).shape == (shape[0], *shape[2:])


def test_parameters_matter(images, maps):
    def count(**how):
        return (segment(images, **how).amax((1, 2)) + 1).sum()

    assert count(scale=10) > count(scale=60) > count(scale=500)
    assert count(min_size=10) > count(min_size=60) > count(min_size=400)
    assert not torch.equal(segment(images, sigma=0), maps)


@pytest.mark.parametrize(
    "bad, error, words",
    [
        (lambda x: dict(images=x.float()), TypeError, "to_uint8"),
        (lambda x: dict(images=x[0]), ValueError, r"images\[None\]"),
        (lambda x: dict(images=x[:0]), ValueError, r"\[n,C,H,W\]"),
        (lambda x: dict(images=x, scale=-1), ValueError, "scale=-1"),
        (lambda x: dict(images=x, scale=float("nan")), ValueError, "scale=nan"),
        (lambda x: dict(images=x, min_size=-1), ValueError, "min_size=-1"),
        (lambda x: dict(images=x, sigma=-1), ValueError, "sigma=-1"),
        (lambda x: dict(images=x, workers=0), ValueError, "workers"),
    ],
)
def test_segment_errors(images, bad, error, words):
    with pytest.raises(error, match=words):
        segment(**bad(images))


# the cache


def test_cache_is_read(images, maps, tmp_path, monkeypatch):
    assert torch.equal(segment(images, cache=tmp_path / "new" / "folder"), maps)
    monkeypatch.setattr(masks, "_felzenszwalb", None)
    again = segment(images, cache=str(tmp_path / "new" / "folder"))
    assert torch.equal(again, maps) and again.dtype == torch.int64


def test_cache_keeps_images_and_parameters_apart(images, tmp_path):
    for how in (dict(), dict(scale=61), dict(min_size=61), dict(sigma=0.9)):
        segment(images, cache=tmp_path, **how)
    changed = images.clone()
    changed[0, 0, 0, 0] ^= 1
    segment(changed, cache=tmp_path)
    segment(images[:11], cache=tmp_path)
    segment(images.transpose(2, 3), cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 7
    segment(images, 60.0, 60, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 7


def flip_a_byte(data):
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 255]) + data[len(data) // 2 + 1 :]


@pytest.mark.parametrize(
    "damage",
    [lambda d: b"", lambda d: d[:60], lambda d: d[:-30], lambda d: b"no archive", flip_a_byte],
    ids=["empty", "head", "tail cut", "text", "byte"],
)
def test_damaged_cache_is_made_again(images, maps, tmp_path, damage):
    segment(images, cache=tmp_path)
    [file] = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    with pytest.warns(UserWarning, match="damaged"):
        assert torch.equal(segment(images, cache=tmp_path), maps)
    assert list(tmp_path.iterdir()) == [file] and file.read_bytes()[-200:] == whole[-200:]


@pytest.mark.parametrize(
    "wrong",
    [
        dict(other=np.zeros(3)),
        dict(segments=np.zeros((2, 2), np.int32)),
        dict(segments=np.zeros((12, 48, 40))),
        dict(segments=np.array([{}, None], dtype=object)),
    ],
    ids=["key", "shape", "type", "pickle"],
)
def test_foreign_cache_is_made_again(images, maps, tmp_path, wrong):
    segment(images, cache=tmp_path)
    [file] = tmp_path.iterdir()
    np.savez(file, **wrong)
    with pytest.warns(UserWarning, match="damaged"):
        assert torch.equal(segment(images, cache=tmp_path), maps)


def test_nothing_partial_is_left_behind(images, tmp_path, monkeypatch):
    def fails(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", fails)
    with pytest.raises(OSError, match="disk full"):
        segment(images, cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_cache_that_is_no_folder_is_refused_before_work(images, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(masks, "_felzenszwalb", None)
    with pytest.raises(OSError):
        segment(images, cache=tmp_path / "file")


# downsample


@pytest.mark.parametrize(
    "H, W, size",
    [
        (64, 64, 16),
        (48, 40, (12, 10)),
        (26, 62, (22, 14)),
        (96, 96, (24, 24)),
        (7, 9, (7, 9)),
        (5, 6, (11, 13)),
    ],
)
def test_downsample_is_interpolate(H, W, size):
    x = random_maps(2, 3, H, W, labels=1000)
    small = downsample(x.to(torch.int16), size)
    assert small.dtype == torch.int16
    assert torch.equal(small.long(), F.interpolate(x.float(), size=size, mode="nearest").long())


# hydra_mask


def slow_owners(segments, coins):
    owners = torch.zeros(segments.shape[0], *segments.shape[2:], dtype=torch.int64)
    for b, sample in enumerate(segments):
        for i, image in enumerate(sample):
            for y, row in enumerate(image.tolist()):
                for x, label in enumerate(row):
                    if coins[b, i, label]:
                        owners[b, y, x] = i
    return owners


def one_hot(mask):
    return (
        mask.dtype == torch.float32
        and bool(((mask == 0) | (mask == 1)).all())
        and bool((mask.sum(1) == 1).all())
    )


@pytest.mark.parametrize(
    "B, N, h, w, labels",
    [(1, 1, 1, 1, 1), (3, 2, 4, 7, 5), (2, 4, 16, 16, 18), (5, 7, 3, 3, 40), (1, 9, 2, 5, 2)],
)
def test_hydra_mask_is_the_loop(B, N, h, w, labels):
    segments = random_maps(B, N, h, w, labels=labels)
    coins = torch.rand(B, N, int(segments.max()) + 1, generator=seed(4)) < 0.5
    mask = hydra_mask(segments, generator=seed(4))
    assert one_hot(mask) and mask.shape == (B, N, h, w)
    assert torch.equal(mask_to_owners(mask), slow_owners(segments, coins))
    assert torch.equal(_owners_to_mask(mask_to_owners(mask), N), mask)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_any_integer_type(dtype):
    segments = random_maps(4, 2, 8, 8)
    for function in (hydra_mask, pair_mask):
        assert torch.equal(function(segments.to(dtype), seed(1)), function(segments, seed(1)))
    noisy = noisy_segments(segments.to(dtype), 0.5, seed(1))
    assert noisy.dtype == dtype and torch.equal(
        noisy.long(), noisy_segments(segments, 0.5, seed(1))
    )


def test_masks_follow_the_seed_and_leave_their_input_alone():
    segments = random_maps(8, 2, 8, 8)
    before = segments.clone()
    for draw in (
        lambda g: hydra_mask(segments, g),
        lambda g: pair_mask(segments, g),
        lambda g: grid_mask(8, 3, 8, 8, generator=g),
        lambda g: noisy_segments(segments, 0.5, g),
    ):
        assert torch.equal(draw(seed(1)), draw(seed(1))) and not torch.equal(
            draw(seed(1)), draw(seed(2))
        )
        g = seed(1)
        assert not torch.equal(draw(g), draw(g))
        torch.manual_seed(3)
        a = draw(None)
        torch.manual_seed(3)
        assert torch.equal(a, draw(None))
    assert torch.equal(segments, before)


def test_segments_are_never_split():
    segments = random_maps(16, 3, 12, 12)
    last = hydra_mask(segments, seed(0))[:, 2]
    for s, m in zip(segments[:, 2], last, strict=True):
        for label in s.unique():
            assert m[s == label].unique().numel() == 1


def test_a_generous_bound_and_gaps_are_fine():
    segments = random_maps(64, 4, 8, 8) * 7
    assert one_hot(hydra_mask(segments, seed(0), n_segments=1000))
    assert one_hot(pair_mask(segments[:, :2], seed(0), n_segments=1000))
    assert torch.equal(
        pair_mask(segments[:, :2], seed(0)), pair_mask(segments[:, :2] // 7, seed(0))
    )
    assert torch.equal(
        pair_mask(segments[:, :2], seed(0)), pair_mask(segments[:, :2], seed(0), n_segments=1000)
    )


@pytest.mark.parametrize("N", [2, 3, 4, 6])
def test_shares(N):
    mask = hydra_mask(random_maps(4000, N, 4, 4), seed(N)).mean((0, 2, 3))
    expected = torch.tensor([2.0 ** -(N - 1)] + [2.0 ** -(N - i + 1) for i in range(2, N + 1)])
    assert (mask - expected).abs().max() < 0.015


bad_maps = [
    (lambda s: s.float(), TypeError, "integer"),
    (lambda s: s > 3, TypeError, "integer"),
    (lambda s: s.tolist(), TypeError, "tensor"),
    (lambda s: s.numpy(), TypeError, "tensor"),
    (lambda s: s - 1, ValueError, "from 0 on"),
    (lambda s: s[0, 0], ValueError, "label maps"),
    (lambda s: s[:0], ValueError, "at least one"),
    (lambda s: s[:, :0], ValueError, "at least one"),
]


@pytest.mark.parametrize("bad, error, words", bad_maps)
@pytest.mark.parametrize(
    "function",
    [hydra_mask, pair_mask, lambda s: noisy_segments(s, 0.5)],
    ids=["hydra", "pair", "noisy"],
)
def test_bad_maps(function, bad, error, words):
    with pytest.raises(error, match=words):
        function(bad(random_maps(2, 2, 4, 4)))


def test_bad_bounds_and_ranks():
    segments = random_maps(2, 2, 4, 4)
    for function in (hydra_mask, pair_mask):
        with pytest.raises(ValueError, match="n_segments=2"):
            function(segments, n_segments=2)
        with pytest.raises(ValueError, match=r"\[B,N,h,w\]"):
            function(segments[0])
    for N in (1, 3):
        with pytest.raises(ValueError, match="two images"):
            pair_mask(random_maps(2, N, 4, 4))


# pair_mask


def test_pair_mask_is_a_run_of_whole_segments():
    segments = torch.cat([random_maps(200, 2, 8, 8, labels=k, number=k) for k in (1, 2, 3, 6, 12)])
    mask = pair_mask(segments, seed(0))
    assert one_hot(mask)
    for s, m in zip(segments[:, 1], mask[:, 0], strict=True):
        present, inside = s.unique().tolist(), s[m == 1].unique().tolist()
        assert set(inside).isdisjoint(s[m == 0].unique().tolist())
        ranks = [present.index(label) for label in inside]
        assert ranks == list(range(ranks[0], ranks[0] + len(ranks)))
        assert len(present) == 1 or len(present) - 1 not in ranks


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_runs_follow_the_rule_of_the_predecessors_code(n):
    "Its words: l from 0…max(1,n−1)−1, u from l+1…max(l+2,n)−1; labels l…u−1 show image a, else b."
    expected = {}
    for l in range(0, max(1, n - 1)):
        ends = range(l + 1, max(l + 2, n))
        for u in ends:
            takes_a = tuple(float(l <= label <= u - 1) for label in range(n))
            expected[takes_a] = 1 / max(1, n - 1) / len(ends)
    b = torch.arange(n).view(1, 1, n)
    segments = torch.stack([torch.zeros_like(b), b], 1).expand(6000, 2, 1, n)
    mask = pair_mask(segments, seed(n))
    runs, counts = mask[:, 0, 0].unique(dim=0, return_counts=True)
    assert {tuple(run) for run in runs.tolist()} == set(expected)
    for run, count in zip(runs.tolist(), counts.tolist(), strict=True):
        assert abs(count / 6000 - expected[tuple(run)]) < 0.03


# grid_mask


@pytest.mark.parametrize(
    "B, N, h, w, cells",
    [(1, 1, 1, 1, 1), (4, 2, 16, 16, 4), (3, 5, 24, 18, 4), (2, 3, 7, 5, 5), (2, 300, 16, 16, 16)],
)
def test_grid_mask(B, N, h, w, cells):
    mask = grid_mask(B, N, h, w, cells, generator=seed(0))
    assert mask.shape == (B, N, h, w) and one_hot(mask)
    changes = (mask_to_owners(mask)[:, 1:] != mask_to_owners(mask)[:, :-1]).any(2).sum(1)
    assert (changes <= cells).all()


def test_grid_owners_are_even_everywhere():
    mask = grid_mask(6000, 3, 8, 8, generator=seed(0)).mean(0)
    assert (mask - 1 / 3).abs().max() < 0.04


def test_grid_shifts_differ_within_a_batch():
    owners = mask_to_owners(grid_mask(200, 4, 16, 16, generator=seed(0)))
    first_border = [(o[:, 1:] != o[:, :-1]).any(0).int().argmax().item() for o in owners]
    assert len(set(first_border)) >= 4


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((0, 2, 8, 8), "batch=0"),
        ((1, 0, 8, 8), "n_images=0"),
        ((1, 2, 3, 8), "cells=4"),
        ((1, 2, 8, 8, 0), "cells=0"),
        ((1, 2, 0, 8), "cells"),
    ],
)
def test_grid_errors(arguments, words):
    with pytest.raises(ValueError, match=words):
        grid_mask(*arguments)


# noisy_segments


@pytest.mark.parametrize("shape", [(6, 8, 8), (3, 2, 8, 8)])
def test_noise(shape):
    segments = random_maps(*shape)
    assert torch.equal(noisy_segments(segments, 0), segments)
    for noise in (0.2, 0.7, 1):
        noisy = noisy_segments(segments, noise, seed(0))
        assert noisy.shape == segments.shape and noisy.min() == 0 and noisy.max() < 2 * 9
        for m in noisy.flatten(0, -3):
            assert m.unique().tolist() == list(range(m.max() + 1))


def test_noise_refines_what_is_replaced_and_keeps_the_rest():
    segments = random_maps(2, 8, 8)
    for s, other, noisy in zip(
        segments, segments.flip(0), noisy_segments(segments, 0.5, seed(1)), strict=True
    ):
        kept = 0
        for label in noisy.unique():
            where = noisy == label
            whole = s[where].unique().numel() == 1 and bool(torch.equal(s == s[where][0], where))
            foreign = other[where].unique().numel() == 1
            assert whole or foreign
            kept += whole
        assert kept


def test_full_noise_is_another_image_and_each_equally_often():
    segments = torch.arange(3)[:, None, None].expand(3, 2, 3).clone()
    segments[:, 0] = torch.tensor([[0, 1, 2], [0, 0, 1], [0, 1, 1]])
    segments[:, 1] = 0
    who = torch.stack(
        [
            (noisy_segments(segments, 1.0, seed(r))[:, None] == segments)
            .all((2, 3))
            .int()
            .argmax(1)
            for r in range(600)
        ]
    )
    for i in range(3):
        counts = torch.bincount(who[:, i], minlength=3)
        assert counts[i] == 0 and counts.sum() == 600 and counts.max() < 360


def test_noise_share():
    segments = torch.arange(16).view(1, 4, 4).repeat(500, 1, 1)
    segments[1::2] = (
        0  # a replaced segment of an even map becomes part of one large one, if its partner is odd
    )
    noisy = noisy_segments(segments, 0.3, seed(0))[::2].flatten(1)
    changed = torch.tensor([16 - len(m.unique()) for m in noisy]).float()
    assert 0 < changed.mean() < 16 * 0.3
    assert noisy_segments(torch.randint(200, (4, 16, 16)).to(torch.uint8), 0.5).dtype == torch.int64


@pytest.mark.parametrize("noise", [-0.1, 1.1, float("nan")])
def test_noise_is_a_probability(noise):
    with pytest.raises(ValueError, match="0…1"):
        noisy_segments(random_maps(2, 4, 4), noise)


def test_noise_needs_another_image():
    with pytest.raises(ValueError, match="only one"):
        noisy_segments(random_maps(1, 4, 4), 0.5)


# box_mask


def test_boxes_lists_and_tensors():
    lists = [[[[0, 0, 2, 2]], [[1, 1, 3, 3], [5, 5, 8, 6]]], [[], [[0, 0, 8, 8]]]]
    padded = torch.zeros(2, 2, 3, 4)
    padded[0, 0, 0], padded[0, 1, :2], padded[1, 1, 2] = (
        torch.tensor([0.0, 0, 2, 2]),
        torch.tensor([[1.0, 1, 3, 3], [5, 5, 8, 6]]),
        torch.tensor([0.0, 0, 8, 8]),
    )
    mask = box_mask(lists, 8, 8)
    assert (
        one_hot(mask)
        and torch.equal(mask, box_mask(padded, 8, 8))
        and torch.equal(mask, box_mask(padded.long(), 8, 8))
    )
    assert mask[0, 1].sum() == 4 + 3 and mask[1, 1].all()
    assert torch.equal(mask, box_mask([[torch.tensor(b) for b in s] for s in lists], 8, 8))
    assert torch.equal(
        box_mask([[[0, 0, 2, 2], [1, 1, 3, 3]]], 8, 8),
        box_mask([[[[0, 0, 2, 2]], [[1, 1, 3, 3]]]], 8, 8),
    )


def test_boxes_rule():
    def owned(box, **how):
        return box_mask([[[], [box]]], 8, 8, **how)[0, 1].nonzero().tolist()

    assert owned([2.2, 3.1, 2.9, 3.2]) == [[3, 2]]  # smaller than a position: it does not vanish
    assert owned([2, 3, 3, 4]) == [[3, 2]]
    assert len(owned([1.5, 1.5, 3.5, 2.5])) == 3 * 2
    assert (
        owned([3, 3, 3, 8])
        == owned([5, 5, 2, 2])
        == owned([9, 9, 20, 20])
        == owned([-4, -4, 0, 0])
        == owned([float("nan")] * 4)
        == []
    )
    assert len(owned([-5, -5, 100, 100])) == 64
    assert owned([16, 24, 24, 32], image_size=(64, 64)) == [[3, 2]]
    assert owned([16, 12, 24, 16], image_size=(32, 64)) == [[3, 2]]


def test_boxes_keep():
    boxes = torch.tensor(
        [[[[0, 0, 0, 0], [0, 0, 0, 0]], [[0, 0, 2, 2], [4, 4, 6, 6]], [[1, 1, 5, 5], [0, 0, 0, 0]]]]
    )
    keep = torch.tensor([[[True, True], [False, True], [False, True]]])
    assert torch.equal(box_mask(boxes, 8, 8, keep=keep), box_mask([[[], [[4, 4, 6, 6]], []]], 8, 8))


@pytest.mark.parametrize(
    "boxes, words",
    [
        (torch.zeros(2, 3, 4), "B,N,K,4"),
        (torch.zeros(1, 2, 3, 5), "B,N,K,4"),
        (torch.zeros(1, 0, 3, 4), "B,N,K,4"),
        ([], "same number"),
        ([[]], "same number"),
        ([[[]], [[], []]], "same number"),
        ([[[[1, 2, 3]]]], "K,4"),
        ([[1, 2, 3, 4]], "K,4"),
    ],
)
def test_boxes_errors(boxes, words):
    with pytest.raises(ValueError, match=words):
        box_mask(boxes, 8, 8)


# figures


def test_figures(images, maps):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    assert len(set(masks.OWNER_COLORS)) == 8
    colors = color_owners(torch.arange(9).view(1, 3, 3))
    assert (
        colors.shape == (1, 3, 3, 3)
        and colors.dtype == torch.uint8
        and colors[0, :, 0, 0].tolist() == [0x00, 0x72, 0xB2]
    )
    assert torch.equal(colors[0, :, 0, 0], colors[0, :, 2, 2])
    outlined = outline_segments(images, maps, zoom=2)
    assert outlined.shape == (12, 3, 96, 80) and outlined.dtype == torch.uint8
    assert outline_segments(images[0, :1], maps[0] * 0).shape == (3, 192, 160)
    for mask in (
        hydra_mask(random_maps(3, 4, 16, 16)),
        grid_mask(1, 2, 8, 8)[0],
        torch.zeros(5, 5, dtype=torch.int64),
        torch.zeros(2, 5, 100, dtype=torch.int64),
    ):
        show_mask(mask)
    show_mask(grid_mask(3, 2, 8, 8), titles=["a", "b", "c"], columns=2)
    with pytest.raises(ValueError, match="show_mask"):
        show_mask(torch.zeros(5, 5))
    plt.close("all")


# devices


@pytest.mark.cuda
def test_cuda_never_waits_and_agrees():
    segments = random_maps(64, 4, 16, 16)
    device = segments.cuda()
    assert torch.equal(
        noisy_segments(device.flatten(0, 1), 0).cpu(), segments.flatten(0, 1)
    ) and torch.equal(downsample(device, 4).cpu(), downsample(segments, 4))
    pairs, boxes = device[:, :2].contiguous(), (torch.rand(2, 3, 4, 4) * 8).cuda()
    g = seed(0, "cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        drawn = [
            hydra_mask(device, g, 9),
            pair_mask(pairs, g, 9),
            grid_mask(8, 3, 16, 16, generator=g),
            noisy_segments(device, 0.5, g, 9),
            downsample(device, 4),
            box_mask(boxes, 8, 8),
        ]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(x.device.type == "cuda" for x in drawn) and all(one_hot(x) for x in drawn[:3])
    assert torch.equal(box_mask(boxes, 8, 8).cpu(), box_mask(boxes.cpu(), 8, 8))
    coins = torch.rand(64, 4, 9, generator=seed(5, "cuda"), device="cuda") < 0.5
    assert torch.equal(
        mask_to_owners(hydra_mask(device, seed(5, "cuda"))).cpu(),
        slow_owners(segments, coins.cpu()),
    )
    assert segment(torch.zeros(1, 3, 8, 8, dtype=torch.uint8, device="cuda")).is_cuda
