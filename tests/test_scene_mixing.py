"Mixed scenes: which images meet, and which boxes are left of them."

import pytest
import torch

pytest.importorskip("pycocotools")

from small_coco import make

from hydramix_nb import gan, scene_mixing, training
from hydramix_nb.masks import box_mask
from hydramix_nb.scene_mixing import (
    SceneMix,
    Squares,
    _box_area,
    _merge_boxes,
    _partners,
    _unite_windows,
    _visible_boxes,
    mixed_boxes,
    object_mask,
)
from hydramix_nb.scenes import n_shot


def test_crowds_are_kept_but_neither_learned_nor_mixed(tmp_path):
    scenes = make(
        tmp_path,
        [[(2, 5, 5, 30, 30), (5, 10, 10, 12, 12)], [(2, 2, 2, 20, 20)], [(2, 2, 2, 20, 20)]],
        crowds={(0, 0)},
    )
    assert scenes.crowd.sum() == 1 and scenes.target(0)["labels"].tolist() == [2]
    assert scenes.holds()[:, 0].tolist() == [False, True, True]
    squares = Squares(scenes, 32)
    for seed in range(5):
        torch.manual_seed(seed)
        index = torch.tensor([[1, 0, 2]])
        windows = squares.windows(index)
        boxes, area, labels = squares.boxes_in(index, windows)
        assert area[0, 1, 0] == 0 and labels[0, 1, 0] == 0
        assert (
            not mixed_boxes(squares, index, windows, object_mask(boxes, area, 32, 32))[1][
                0, squares.labels.shape[1]
            ]
            == 1
        )


# partners


def test_partners_share_a_class_and_are_others_where_there_are_others():
    torch.manual_seed(0)
    holds = torch.rand(30, 12) < 0.12
    index = _partners(holds, torch.arange(30).repeat(50), 4)
    first, others = index[:, :1], index[:, 1:]
    lonely = ~(holds[:, None] & holds[None]).any(2).fill_diagonal_(False).any(1)
    assert lonely.any() and not lonely.all()
    assert (others == first)[lonely[first[:, 0]]].all()
    assert not (others == first)[~lonely[first[:, 0]]].any()
    common = holds[index].all(1)
    assert (common.any(1) | lonely[first[:, 0]]).all(), (
        "one class is in all images of a composition"
    )


@pytest.mark.parametrize("n", [2, 3, 4, 5, 9])
@pytest.mark.parametrize("n_images", [2, 4, 7])
def test_partners_come_again_only_where_there_are_too_few(n, n_images):
    index = _partners(torch.ones(n, 1).bool(), torch.arange(n).repeat(20), n_images)
    assert index.shape == (20 * n, n_images)
    for first, *others in index.tolist():
        counts = [others.count(i) for i in range(n) if i != first]
        assert first not in others and max(counts) - min(counts) <= 1
    assert set(index[:, 1].tolist()) == set(range(n))


# boxes of mixtures


def test_visible_share_and_box_do_not_need_whole_cells():
    "A box of 10×10 that begins in the middle of a cell, and the image owns the left half"
    mask = torch.zeros(1, 2, 8, 8)
    mask[0, 0, :, :4], mask[0, 1, :, 4:] = 1, 1
    share, tight = _visible_boxes(
        torch.tensor([[[[11.0, 5, 21, 15]], [[11, 5, 21, 15]]]]),
        torch.tensor([[[100.0], [200.0]]]),
        mask,
        32,
    )
    assert torch.allclose(share, torch.tensor([[[0.5], [0.25]]]))
    assert torch.equal(tight, torch.tensor([[[[11.0, 5, 16, 15]], [[16, 5, 21, 15]]]]))


def test_shares_of_all_images_sum_to_the_area_that_is_shown():
    torch.manual_seed(0)
    low = torch.rand(6, 1, 5, 2) * 40
    boxes = torch.cat([low, low + 1 + torch.rand(6, 1, 5, 2) * 20], -1).expand(6, 4, 5, 4)
    mask = box_mask(torch.rand(6, 4, 3, 4) * 64, 16, 16)
    share, tight = _visible_boxes(boxes, _box_area(boxes), mask, 64)
    assert torch.allclose(share.sum(1), torch.ones(6, 5), atol=1e-5)
    assert (_box_area(tight) + 1e-3 >= share * _box_area(boxes)).all() and (
        _box_area(tight) <= _box_area(boxes) + 1e-3
    ).all()


def test_a_box_that_covers_everything_leaves_nothing_of_the_others(tmp_path):
    scenes = make(tmp_path, [[(2, 0, 0, 30, 20)], [(2, 0, 0, 60, 40)]])
    squares = Squares(scenes, 32)
    index = torch.tensor([[0, 1]])
    windows = squares.windows(index, False)
    boxes, area, _ = squares.boxes_in(index, windows)
    found, labels = mixed_boxes(squares, index, windows, box_mask(boxes, 8, 8, image_size=(32, 32)))
    assert found[labels > 0].tolist() == [[0, 0, 32, 32]]


def test_equal_windows_are_one_picture():
    index, windows = torch.tensor([[3, 3, 3]]), torch.tensor([[[1, 2, 0], [1, 2, 1], [1, 2, 0]]])
    mask = torch.eye(3)[None, :, :, None].expand(1, 3, 3, 2)
    owned, first = _unite_windows(index, windows, mask)
    assert first.tolist() == [[True, True, False]]
    assert torch.equal(owned[0, 0], mask[0, 0] + mask[0, 2]) and torch.equal(
        owned.sum(1), mask.sum(1)
    )


def test_merging_is_for_one_class_and_different_images():
    near = torch.tensor([[[[0.0, 0, 20, 20], [1, 0, 21, 20]], [[0, 1, 20, 21], [40, 40, 60, 60]]]])
    boxes, labels = _merge_boxes(near, torch.tensor([[[1, 1], [2, 1]]]))
    assert labels.tolist() == [[1, 1, 2, 1]] and torch.equal(boxes, near.flatten(1, 2)), (
        "boxes of one image stay apart, and so do classes"
    )
    boxes, labels = _merge_boxes(near, torch.tensor([[[1, 0], [1, 1]]]))
    assert labels.tolist() == [[1, 0, 0, 1]] and boxes[0, 0].tolist() == [0, 0, 20, 21]
    assert torch.equal(
        _merge_boxes(near, torch.zeros(1, 2, 2, dtype=torch.long))[0], torch.zeros(1, 4, 4)
    )


@pytest.mark.parametrize("seed", range(3))
def test_mixtures_have_boxes_that_a_detector_takes(cutouts, seed):
    squares = Squares(cutouts[0], 48)
    mixer = SceneMix(squares)
    first = torch.arange(12)
    torch.manual_seed(seed)
    images, boxes, labels = mixer(first)
    torch.manual_seed(seed)
    again = mixer(first)
    assert all(torch.equal(a, b) for a, b in zip((images, boxes, labels), again, strict=True))
    assert images.shape == (12, 3, 48, 48) and images.abs().max() <= 1
    real = labels > 0
    assert (
        (boxes[real][:, 2:] - boxes[real][:, :2] >= 1).all()
        and boxes.min() >= 0
        and boxes.max() <= 48
        and not boxes[~real].any()
    )
    assert not real[11].any(), "a scene without boxes is mixed with itself"
    torch.manual_seed(seed)
    batch, targets = mixer.batch(first)
    assert (
        torch.allclose(batch[0] * 2 - 1, images[0], atol=1e-6)
        and targets[0]["labels"].tolist() == labels[0][real[0]].tolist()
    )


def test_pixels_and_features_are_mixed_under_the_same_masks(cutouts):
    squares = Squares(cutouts[0], 32)
    trained = scene_mixing.fit_generator(
        squares, scene_mixing.generator_profile("tiny", steps=1), progress=False
    )
    assert SceneMix(squares, trained, n_images=2).n_images == 2
    one = SceneMix(squares, trained, n_images=1)
    torch.manual_seed(0)
    images, boxes, labels = one(torch.tensor([4]))
    torch.manual_seed(0)
    windows = squares.windows(torch.tensor([[4]]))
    plain, area, names = squares.boxes_in(torch.tensor([[4]]), windows)
    shown = _box_area(plain) / area.clamp(min=1e-6) >= scene_mixing._MIN_VISIBLE
    assert torch.allclose(boxes[labels > 0], plain[shown & (names > 0)], atol=1e-4)
    with pytest.raises(ValueError, match="min_visible=0"):
        SceneMix(squares, trained, min_visible=0)


# the generator of scenes


def test_a_generator_of_scenes_goes_on_and_is_read_again(cutouts, tmp_path):
    squares, config = (
        Squares(n_shot(cutouts[0], 1, 0), 32),
        scene_mixing.generator_profile("tiny", steps=2),
    )
    whole = scene_mixing.fit_generator(squares, config, progress=False)
    kept = scene_mixing.fit_generator(squares, config, folder=tmp_path, progress=False)
    again = scene_mixing.fit_generator(squares, config, folder=tmp_path, progress=False)
    for a, b, c in zip(
        whole.generator.state_dict().values(),
        kept.generator.state_dict().values(),
        gan.load(tmp_path).generator.state_dict().values(),
        strict=True,
    ):
        assert torch.equal(a, b) and torch.equal(a, c)
    assert again.history == kept.history and list(tmp_path.glob("compositions-*.png"))
    assert (
        scene_mixing._SceneTraining(squares, config).steps
        == training.epoch_steps(squares.centres(), config)[1]
        == 2
    )


def test_pictures_of_progress_show_what_is_left_in_the_end(cutouts):
    "The averaged generator, where there is one, on windows at the centre"
    config = scene_mixing.generator_profile("tiny", steps=2, ema=0.5)
    state = scene_mixing._SceneTraining(Squares(cutouts[0], 32), config)
    windows, asked = state.squares.windows, []

    def noted(index, augment=True):
        asked.append(augment)
        return windows(index, augment)

    state.squares.windows = noted

    def picture():
        with training.seeded(0):
            return state.picture()[1]

    before = picture()
    assert before.shape == (3, 6 * 32 + 5 * 2, 6 * 32 + 5 * 2)
    for network, changes in ((state.generator, False), (state.average, True)):
        for weight in network.parameters():
            weight.data.add_(0.1)
        assert torch.equal(picture(), before) != changes
    assert asked == [False] * 3
