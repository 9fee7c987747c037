"Detection: annotation files with faults, pictures as cameras leave them, sets that do not fit, trainings that are broken off, and pycocotools as the judge."

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("pycocotools")

from hydramix_nb import detection, gan, training
from hydramix_nb.detection import (
    Scenes,
    SceneMix,
    Squares,
    average_precision,
    box_area,
    clip_boxes,
    coco_results,
    merge_boxes,
    mixed_boxes,
    n_shot,
    object_mask,
    partners,
    read_annotations,
    read_coco,
    read_scene,
    unite_windows,
    visible_boxes,
)
from hydramix_nb.files import write_json, write_png, write_tensors
from hydramix_nb.masks import box_mask

COCO_TINY = Path(os.environ.get("HYDRAMIX_DATA", "?")) / "coco_tiny"
needs_coco = pytest.mark.skipif(
    not COCO_TINY.is_dir(), reason="coco_tiny is not in the data folder: set HYDRAMIX_DATA"
)
TINY = detection.profile("tiny")


def make(folder, boxes, sizes=None, split="train", categories=(2, 5, 9), crowds=()):
    "A set from lists of (category id, x, y, width, height), one list for each image"
    sizes = sizes or [(40, 60)] * len(boxes)
    rng = np.random.RandomState(0)
    for i, (h, w) in enumerate(sizes):
        write_png(
            folder / split / f"{i}.png", torch.from_numpy(rng.randint(0, 256, (3, h, w), np.uint8))
        )
    annotations = [
        dict(image_id=10 * i, category_id=c, bbox=list(box), iscrowd=int((i, k) in crowds))
        for i, of in enumerate(boxes)
        for k, (c, *box) in enumerate(of)
    ]
    write_json(
        folder / "annotations" / f"instances_{split}.json",
        dict(
            images=[
                dict(id=10 * i, file_name=f"{i}.png", height=h, width=w)
                for i, (h, w) in enumerate(sizes)
            ],
            annotations=annotations,
            categories=[dict(id=c, name=f"thing {c}") for c in categories],
        ),
    )
    return read_coco(folder, split)


@pytest.fixture(scope="module")
def cutouts(tmp_path_factory):
    folder = detection.write_cutouts(tmp_path_factory.mktemp("cutouts"))
    return read_coco(folder), read_coco(folder, "val")


# annotation files

GOOD = dict(
    images=[dict(id=1, file_name="a.png", height=40, width=60)],
    categories=[dict(id=2, name="thing")],
    annotations=[dict(id=7, image_id=1, category_id=2, bbox=[1, 2, 3, 4])],
)
FAULTS = {
    "no list 'images'": {"images": None},
    "no list 'annotations'": {"annotations": {}},
    "has no categories": {"categories": []},
    "has no images": {"images": [], "annotations": []},
    "number 0 of images has no 'width'": {"images": [dict(id=1, file_name="a.png", height=40)]},
    "number 0 of annotations has no 'bbox'": {"annotations": [dict(image_id=1, category_id=2)]},
    "two images have the id 1": {"images": GOOD["images"] * 2},
    "two categories have the id 2": {"categories": GOOD["categories"] * 2},
    "annotation 7 has category 3, which is not in the list": {
        "annotations": [{**GOOD["annotations"][0], "category_id": 3}]
    },
    "annotation 7 is of image 5, which is not in the list": {
        "annotations": [{**GOOD["annotations"][0], "image_id": 5}]
    },
    r"annotation 7 has the box \[1, 2, 3\]": {
        "annotations": [{**GOOD["annotations"][0], "bbox": [1, 2, 3]}]
    },
    "annotation 7 has the box .*nan": {
        "annotations": [{**GOOD["annotations"][0], "bbox": [1, 2, 3, float("nan")]}]
    },
}


@pytest.mark.parametrize("message", FAULTS)
def test_faults_in_annotations_are_named(tmp_path, message):
    (tmp_path / "a.json").write_text(json.dumps({**GOOD, **FAULTS[message]}))
    with pytest.raises(ValueError, match=message) as e:
        read_annotations(tmp_path / "a.json")
    assert str(tmp_path / "a.json") in str(e.value)


@pytest.mark.parametrize("text", ['{"images": [', "", "[1, 2]", "\xff\xfe"])
def test_broken_json_is_named(tmp_path, text):
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="a.json"):
        read_annotations(tmp_path / "a.json")


def test_annotations_are_numbered_from_one_and_completed(tmp_path):
    (tmp_path / "a.json").write_text(
        json.dumps(
            {
                **GOOD,
                "annotations": [
                    {**GOOD["annotations"][0], "id": 0},
                    {
                        "image_id": 1,
                        "category_id": 2,
                        "bbox": [0, 0, 5, 6],
                        "area": 9,
                        "iscrowd": 1,
                    },
                ],
            }
        )
    )
    first, second = read_annotations(tmp_path / "a.json")["annotations"]
    assert (first["id"], first["area"], first["iscrowd"]) == (1, 12, 0)
    assert (second["id"], second["area"], second["iscrowd"]) == (2, 9, 1)


def test_missing_pictures_are_one_error_before_anything_is_read(tmp_path):
    make(tmp_path, [[(2, 1, 1, 9, 9)]] * 5)
    for i in (0, 2, 3, 4):
        (tmp_path / "train" / f"{i}.png").unlink()
    with pytest.raises(
        FileNotFoundError, match="4 of 5 pictures are missing: .*0.png.*2.png.*3.png, …$"
    ):
        read_coco(tmp_path)


def test_files_of_a_split_are_found_or_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        read_coco(tmp_path / "nowhere")
    make(tmp_path, [[(2, 1, 1, 9, 9)]])
    with pytest.raises(FileNotFoundError, match="one file instances_val.*there is none"):
        read_coco(tmp_path, "val")
    (tmp_path / "annotations/instances_train2017.json").write_text("{}")
    with pytest.raises(
        FileNotFoundError, match="there is instances_train.json, instances_train2017.json"
    ):
        read_coco(tmp_path)


# boxes


def test_boxes_are_clipped_and_what_is_not_there_is_left_out(tmp_path):
    scenes = make(
        tmp_path,
        [
            [
                (2, -10, -10, 30, 30),
                (5, 50, 30, 100, 100),
                (9, 70, 10, 5, 5),
                (9, 5, 5, 0, 8),
                (9, 5, 5, -4, 8),
                (9, 59.5, 5, 20, 8),
            ],
            [],
        ],
    )
    assert torch.equal(
        scenes.target(0)["boxes"], torch.tensor([[0.0, 0, 20, 20], [50, 30, 60, 40]])
    )
    assert scenes.target(0)["labels"].tolist() == [1, 2]
    assert scenes.left_out == 4 and "4 boxes left out" in repr(scenes)
    assert scenes.target(1)["boxes"].shape == (0, 4) and "1 images without objects" in repr(scenes)
    assert len(scenes.coco.dataset["annotations"]) == 6, "evaluation goes by the file as it stands"


def test_category_ids_with_gaps_go_to_labels_and_back(tmp_path):
    scenes = make(tmp_path, [[(9, 1, 1, 9, 9), (2, 5, 5, 9, 9)]])
    assert scenes.categories == [2, 5, 9] and scenes.classes == ["thing 2", "thing 5", "thing 9"]
    assert scenes.target(0)["labels"].tolist() == [3, 1]
    found = coco_results(scenes, 0, **scenes.target(0), scores=torch.ones(2))
    assert [r["category_id"] for r in found] == [9, 2]
    assert found[0]["bbox"] == [1, 1, 9, 9] and found[0]["image_id"] == 0


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


def test_clip_boxes_takes_tensors_of_sizes():
    clipped, fine = clip_boxes(
        torch.tensor([[[-1.0, -1, 9, 9]], [[3, 3, 50, 50]]]),
        torch.tensor([[5], [20]]),
        torch.tensor([[6], [30]]),
    )
    assert clipped.tolist() == [[[0, 0, 6, 5]], [[3, 3, 30, 20]]] and fine.all()


# pictures


def picture(path, size, mode="RGB", orientation=None):
    from PIL import Image

    image = Image.fromarray(
        np.random.RandomState(0).randint(0, 256, (*size[::-1], 3), np.uint8)
    ).convert(mode)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    image.save(path, exif=exif)
    return np.array(Image.open(path).convert("RGB"))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_turned_pictures_are_as_their_boxes_are_measured(tmp_path, orientation):
    stored = torch.from_numpy(
        picture(tmp_path / "a.jpg", (40, 30), orientation=orientation)
    ).permute(2, 0, 1)
    assert torch.equal(read_scene(tmp_path / "a.jpg", 30, 40), stored)
    if orientation < 5:
        return
    turned = read_scene(tmp_path / "a.jpg", 40, 30)
    assert torch.equal(turned, torch.rot90(stored, -1 if orientation == 6 else 1, (1, 2)))


def test_grey_pictures_become_colour_and_other_sizes_are_an_error(tmp_path):
    picture(tmp_path / "a.png", (40, 30), "L")
    grey = read_scene(tmp_path / "a.png", 30, 40)
    assert grey.shape == (3, 30, 40) and torch.equal(grey[0], grey[2])
    with pytest.raises(ValueError, match="40×30 pixels, its annotations say 41×30"):
        read_scene(tmp_path / "a.png", 30, 41)
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="b.png"):
        read_scene(tmp_path / "b.png", 30, 40)


# N-shot


def test_n_shot_holds_every_class_often_enough_and_depends_on_the_seed(cutouts):
    train, _ = cutouts
    drawn = [n_shot(train, 2, seed) for seed in range(4)]
    for few in drawn:
        assert (few.holds().sum(0) >= 2).all() and len(few) <= 8 and set(few.ids) <= set(train.ids)
        assert torch.equal(
            few.target(0)["boxes"], train.target(train.ids.index(few.ids[0]))["boxes"]
        )
    assert (
        n_shot(train, 2, 1).ids == drawn[1].ids
        and n_shot(train, 2, 1).digest() == drawn[1].digest()
    )
    assert len({tuple(few.ids) for few in drawn}) > 1


def test_n_shot_counts_no_crowd_and_names_what_is_short(tmp_path):
    scenes = make(
        tmp_path,
        [[(2, 1, 1, 9, 9), (5, 1, 1, 9, 9)], [(2, 1, 1, 9, 9), (5, 1, 1, 9, 9)]],
        crowds={(1, 1)},
    )
    with pytest.raises(
        ValueError,
        match=r"1 images for each class are asked for, but there are fewer of 'thing 9' \(0\)",
    ):
        n_shot(scenes, 1, 0)
    with pytest.raises(ValueError, match=r"fewer of 'thing 5' \(1\), 'thing 9' \(0\)"):
        n_shot(scenes, 2, 0)
    with pytest.raises(ValueError, match="shots=0"):
        n_shot(scenes, 0, 0)


@needs_coco
def test_one_shot_of_real_coco():
    train = read_coco(COCO_TINY)
    assert len(train) == 80 and len(train.classes) == 80 and train.categories[-1] == 90
    few = n_shot(train, 1, 0)
    assert few.holds().any(0).all() and len(few) < 80
    assert few.image(0).shape[1:] == tuple(few.sizes[0].tolist())
    with pytest.raises(ValueError, match="fewer of"):
        n_shot(train, 2, 0)


# partners


def test_partners_share_a_class_and_are_others_where_there_are_others():
    torch.manual_seed(0)
    holds = torch.rand(30, 12) < 0.12
    index = partners(holds, torch.arange(30).repeat(50), 4)
    first, others = index[:, :1], index[:, 1:]
    lonely = ~(holds[:, None] & holds[None]).any(2).fill_diagonal_(False).any(1)
    assert lonely.any() and not lonely.all()
    assert (others == first)[lonely[first[:, 0]]].all()
    assert not (others == first)[~lonely[first[:, 0]]].any()
    common = holds[index].all(1)
    assert (common.any(1) | lonely[first[:, 0]]).all(), (
        "one class is in all images of a composition"
    )


# boxes of mixtures


def test_visible_share_and_box_do_not_need_whole_cells():
    "A box of 10×10 that begins in the middle of a cell, and the image owns the left half"
    mask = torch.zeros(1, 2, 8, 8)
    mask[0, 0, :, :4], mask[0, 1, :, 4:] = 1, 1
    share, tight = visible_boxes(
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
    share, tight = visible_boxes(boxes, box_area(boxes), mask, 64)
    assert torch.allclose(share.sum(1), torch.ones(6, 5), atol=1e-5)
    assert (box_area(tight) + 1e-3 >= share * box_area(boxes)).all() and (
        box_area(tight) <= box_area(boxes) + 1e-3
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
    owned, first = unite_windows(index, windows, mask)
    assert first.tolist() == [[True, True, False]]
    assert torch.equal(owned[0, 0], mask[0, 0] + mask[0, 2]) and torch.equal(
        owned.sum(1), mask.sum(1)
    )


def test_merging_is_for_one_class_and_different_images():
    near = torch.tensor([[[[0.0, 0, 20, 20], [1, 0, 21, 20]], [[0, 1, 20, 21], [40, 40, 60, 60]]]])
    boxes, labels = merge_boxes(near, torch.tensor([[[1, 1], [2, 1]]]))
    assert labels.tolist() == [[1, 1, 2, 1]] and torch.equal(boxes, near.flatten(1, 2)), (
        "boxes of one image stay apart, and so do classes"
    )
    boxes, labels = merge_boxes(near, torch.tensor([[[1, 0], [1, 1]]]))
    assert labels.tolist() == [[1, 0, 0, 1]] and boxes[0, 0].tolist() == [0, 0, 20, 21]
    assert torch.equal(
        merge_boxes(near, torch.zeros(1, 2, 2, dtype=torch.long))[0], torch.zeros(1, 4, 4)
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
    trained = detection.fit_generator(
        squares, detection.generator_profile("tiny", steps=1), progress=False
    )
    assert SceneMix(squares, trained, n_images=2).n_images == 2
    one = SceneMix(squares, trained, n_images=1)
    torch.manual_seed(0)
    images, boxes, labels = one(torch.tensor([4]))
    torch.manual_seed(0)
    windows = squares.windows(torch.tensor([[4]]))
    plain, area, names = squares.boxes_in(torch.tensor([[4]]), windows)
    shown = box_area(plain) / area.clamp(min=1e-6) >= detection.MIN_VISIBLE
    assert torch.allclose(boxes[labels > 0], plain[shown & (names > 0)], atol=1e-4)
    with pytest.raises(ValueError, match="min_visible=0"):
        SceneMix(squares, trained, min_visible=0)


# average precision


def judged_directly(path, found):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO(str(path))
    evaluation = COCOeval(truth, truth.loadRes([dict(f) for f in found]), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return [100 * v for v in evaluation.stats[:3]]


def noisy(scenes, seed, spread=4.0):
    "Finds that are near the truth, some of another class, some missing"
    g, found = torch.Generator().manual_seed(seed), []
    for i in range(len(scenes)):
        target = scenes.target(i)
        n = len(target["labels"])
        boxes, labels = (
            target["boxes"] + spread * torch.randn(n, 4, generator=g),
            target["labels"].clone(),
        )
        other = torch.rand(n, generator=g) < 0.2
        labels[other] = torch.randint(1, len(scenes.classes) + 1, (n,), generator=g)[other]
        kept = (torch.rand(n, generator=g) < 0.8) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        found += coco_results(
            scenes, i, boxes[kept], labels[kept], torch.rand(n, generator=g)[kept]
        )
    return found


def perfect(scenes):
    return [
        r
        for i in range(len(scenes))
        for r in coco_results(
            scenes, i, **scenes.target(i), scores=torch.ones(len(scenes.target(i)["labels"]))
        )
    ]


def test_figures_are_those_of_pycocotools(cutouts):
    val = cutouts[1]
    path = val.folder.parent / "annotations/instances_val.json"
    for seed in range(3):
        found = noisy(val, seed)
        ours = average_precision(val, found)
        assert (
            list(ours.values()) == pytest.approx(judged_directly(path, found))
            and 0 < ours["AP"] < 100
        )
    assert average_precision(val, perfect(val)) == dict(AP=100, AP50=100, AP75=100)
    assert average_precision(val, []) == dict(AP=0, AP50=0, AP75=0)


@needs_coco
def test_figures_on_real_coco_are_those_of_pycocotools():
    val = read_coco(COCO_TINY, "val")
    assert average_precision(val, perfect(val)) == dict(AP=100, AP50=100, AP75=100)
    found = noisy(val, 0)
    assert list(average_precision(val, found).values()) == pytest.approx(
        judged_directly(COCO_TINY / "annotations/instances_val2017.json", found)
    )


def test_a_find_within_a_crowd_is_neither_right_nor_wrong(cutouts):
    val = cutouts[1]
    i, k = val.crowd.nonzero()[0].tolist()
    coin = coco_results(val, i, val.boxes[i, k][None], val.labels[i, k][None], torch.ones(1))
    assert average_precision(val, perfect(val) + coin) == dict(AP=100, AP50=100, AP75=100)
    elsewhere = [{**coin[0], "image_id": val.ids[-1], "score": 2}]
    assert average_precision(val, perfect(val) + elsewhere)["AP"] < 100, (
        "in a picture without objects every find is wrong"
    )


def test_an_annotation_with_id_zero_counts(tmp_path):
    "pycocotools alone takes 0 for 'no match'"
    (tmp_path / "a.json").write_text(
        json.dumps({**GOOD, "annotations": [{**GOOD["annotations"][0], "id": 0}]})
    )
    scenes = Scenes(tmp_path, read_annotations(tmp_path / "a.json"))
    assert average_precision(scenes, perfect(scenes))["AP"] == pytest.approx(100)
    with pytest.raises(ValueError, match="not a single box"):
        average_precision(Scenes(tmp_path, {**scenes.coco.dataset, "annotations": []}), [])


def test_without_pycocotools_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(ImportError, match=r"hydramix-nb\[detection\]"):
        make(tmp_path, [[(2, 1, 1, 9, 9)]])


# the detector


def test_small_detectors_have_small_anchors():
    model = detection.detector(3, TINY)
    assert model.rpn.anchor_generator.sizes == ((3,), (5,), (10,), (20,), (41,))
    assert model.roi_heads.box_predictor.cls_score.out_features == 4
    with pytest.raises(ValueError, match="network 'vgg16'"):
        detection.detector(3, replace(TINY, network="vgg16"))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_backbone_weights_come_from_a_local_file(tmp_path, suffix):
    from torchvision.models import resnet18

    weights, path = resnet18(weights=None).state_dict(), tmp_path / f"resnet18{suffix}"
    if suffix == ".pth":
        torch.save(weights, path)
    else:
        write_tensors(path, weights, {})
    model = detection.detector(3, TINY, path)
    assert torch.equal(model.backbone.body.layer3[0].conv1.weight, weights["layer3.0.conv1.weight"])
    trained = {
        name.split(".")[2]
        for name, p in model.backbone.body.named_parameters(prefix="backbone.body")
        if p.requires_grad
    }
    assert trained == {"layer2", "layer3", "layer4"}, (
        "what torchvision trains of a backbone with weights"
    )
    with pytest.raises(ValueError, match="no weights of a resnet34"):
        detection.detector(3, replace(TINY, network="resnet34"), path)


class Trap:
    def __reduce__(self):
        return (os.system, ("echo opened",))


def test_backbone_files_that_are_not_weights_are_named(tmp_path, capfd):
    torch.save({"conv1.weight": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(ValueError, match="trap.pth holds no weights that can be read safely"):
        detection.detector(3, TINY, tmp_path / "trap.pth")
    assert "opened" not in capfd.readouterr().out
    (tmp_path / "cut.safetensors").write_bytes(b"123")
    with pytest.raises(ValueError, match="cut.safetensors holds no weights"):
        detection.detector(3, TINY, tmp_path / "cut.safetensors")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="list.pth is no state dict"):
        detection.detector(3, TINY, tmp_path / "list.pth")
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        detection.detector(3, TINY, tmp_path / "nowhere.pth")


# training


def test_a_training_that_was_broken_off_ends_where_it_would_have(cutouts, tmp_path, monkeypatch):
    train, val = cutouts
    few = n_shot(train, 1, 0)
    squares, config = Squares(few, 32), replace(TINY, steps=4)
    mixer = SceneMix(squares)
    whole = detection.fit(few, val, mixer, config, progress=False)
    step = detection.Training.step

    def interrupted(self):
        if self.done == 2:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(detection.Training, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        detection.fit(
            few, val, mixer, config, folder=tmp_path, checkpoint_minutes=0, progress=False
        )
    monkeypatch.setattr(detection.Training, "step", step)
    rest = detection.fit(few, val, mixer, config, folder=tmp_path, progress=False)
    for (name, a), b in zip(
        whole.model.state_dict().items(), rest.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    assert (
        rest.precision == whole.precision
        and [h["step"] for h in rest.history] == [1, 2, 3, 4]
        and "AP" in rest.history[-1]
    )
    with pytest.raises(ValueError, match="belongs to another training .*lr"):
        detection.fit(few, val, mixer, replace(config, lr=1.0), folder=tmp_path, progress=False)
    with pytest.raises(ValueError, match="other mixer"):
        detection.fit(few, val, None, config, folder=tmp_path, progress=False)

    model, classes = detection.load_detector(tmp_path / "detector.safetensors")
    assert classes == train.classes
    with torch.no_grad():
        a, b = model([val.image(0) / 255]), whole.model([val.image(0) / 255])
    assert all(torch.equal(a[0][k], b[0][k]) for k in a[0])


def test_the_rate_warms_up_and_falls(cutouts):
    state = detection.Training(
        n_shot(cutouts[0], 1, 0), detection.profile("tiny", steps=260, warmup=10, lr=1.0)
    )
    rates = []
    for done in (0, 5, 10, 100, 159, 160, 219, 220):
        state.done = done
        rates.append(round(state.lr(), 4))
    assert rates == [0.001, 0.501, 1, 1, 1, 0.1, 0.1, 0.01]


def test_share_of_mixed_batches(cutouts):
    train, calls = n_shot(cutouts[0], 1, 0), []

    class Counting(SceneMix):
        def batch(self, first):
            calls.append(1)
            return super().batch(first)

    mixer = Counting(Squares(train, 32))
    for p_gen, expected in ((0.0, 0), (1.0, 2)):
        calls.clear()
        state = detection.Training(train, TINY, mixer, p_gen=p_gen)
        state.step(), state.step()
        assert len(calls) == expected
    with pytest.raises(ValueError, match="p_gen=1.5"):
        detection.fit(train, cutouts[1], mixer, TINY, p_gen=1.5)


def test_mirrored_scenes_have_mirrored_boxes(cutouts):
    train = cutouts[0]
    state = detection.Training(train, TINY)
    torch.manual_seed(0)
    images, targets = state.real(torch.tensor([3] * 12))
    plain, target = train[3]
    turned = [torch.equal(image, plain.flip(-1) / 255) for image in images]
    assert 0 < sum(turned) < 12
    for image, t, mirrored in zip(images, targets, turned, strict=True):
        for (x1, y1, x2, y2), (a, b, c, d) in zip(
            t["boxes"].int().tolist(), target["boxes"].int().tolist(), strict=True
        ):
            patch = plain[:, b:d, a:c] / 255
            assert torch.equal(image[:, y1:y2, x1:x2], patch.flip(-1) if mirrored else patch)


def test_scenes_without_boxes_can_be_learned_from(tmp_path):
    train = make(tmp_path, [[], [(2, 1, 1, 30, 30)]])
    state = detection.Training(train, TINY)
    state.order = torch.tensor([0, 0])
    state.next = lambda: torch.tensor([0, 0])
    assert all(v.isfinite() for v in state.step().values())


def test_sets_and_settings_that_do_not_fit_are_named(cutouts, tmp_path):
    train, val = cutouts
    other = make(tmp_path, [[(2, 1, 1, 9, 9)]])
    with pytest.raises(ValueError, match="differ in their categories: cat, coin"):
        detection.fit(train, other, config=TINY)
    with pytest.raises(ValueError, match="the training set has 1 images and not one box"):
        detection.fit(train.subset([11]), val, config=TINY)
    with pytest.raises(ValueError, match="not a single box in 1 images"):
        detection.fit_generator(
            Squares(train.subset([11]), 32), detection.generator_profile("tiny")
        )
    with pytest.raises(ValueError, match="scenes are at 48 pixels, config.image_size is 32"):
        detection.fit_generator(Squares(train, 48), detection.generator_profile("tiny"))
    with pytest.raises(ValueError, match="other scenes"):
        detection.fit(train, val, SceneMix(Squares(n_shot(train, 1, 0), 32)), TINY)
    with pytest.raises(ValueError, match="the mixer works on cpu, training on cuda"):
        detection.fit(train, val, SceneMix(Squares(train, 32)), TINY, device="cuda")
    for changes in (dict(steps=0), dict(lr=0), dict(momentum=1.0), dict(score=-1)):
        with pytest.raises(ValueError, match=next(iter(changes))):
            detection.profile("tiny", **changes)
    with pytest.raises(ValueError, match="'huge'"):
        detection.profile("huge")
    with pytest.raises(ValueError, match="'huge'"):
        detection.generator_profile("huge")
    with pytest.raises(ValueError, match="6 or more"):
        detection.write_cutouts(tmp_path / "few", n_val=3)


def test_more_images_than_memory_is_an_error_that_says_so(cutouts, monkeypatch):
    monkeypatch.setattr(detection, "free_memory", lambda device: 1000)
    with pytest.raises(ValueError, match="draw them with n_shot"):
        detection.fit(*cutouts, config=TINY)


def test_sets_by_name(tmp_path):
    make(tmp_path / "mine", [[(2, 1, 1, 9, 9)]])
    assert detection.scenes_folder("coco:mine", tmp_path / "drawn", tmp_path) == tmp_path / "mine"
    assert len(read_coco(detection.scenes_folder("cutouts", tmp_path / "drawn"))) == 12
    with pytest.raises(FileNotFoundError, match="nothing at .*nowhere"):
        detection.scenes_folder("coco:nowhere", tmp_path, tmp_path)
    for name in ("photos", "coco:", "coco:PATH"):
        with pytest.raises(ValueError, match="unknown set of scenes"):
            detection.scenes_folder(name, tmp_path)


def test_a_generator_of_scenes_goes_on_and_is_read_again(cutouts, tmp_path):
    squares, config = (
        Squares(n_shot(cutouts[0], 1, 0), 32),
        detection.generator_profile("tiny", steps=2),
    )
    whole = detection.fit_generator(squares, config, progress=False)
    kept = detection.fit_generator(squares, config, folder=tmp_path, progress=False)
    again = detection.fit_generator(squares, config, folder=tmp_path, progress=False)
    for a, b, c in zip(
        whole.generator.state_dict().values(),
        kept.generator.state_dict().values(),
        gan.load(tmp_path).generator.state_dict().values(),
        strict=True,
    ):
        assert torch.equal(a, b) and torch.equal(a, c)
    assert again.history == kept.history and list(tmp_path.glob("compositions-*.png"))
    assert (
        detection.SceneTraining(squares, config).steps
        == training.epoch_steps(squares.centres(), config)[1]
        == 2
    )


@pytest.mark.cuda
def test_on_a_gpu(cutouts):
    train, val = cutouts
    squares = Squares(n_shot(train, 1, 0), 32, "cuda")
    trained = detection.fit_generator(squares, detection.generator_profile("tiny"), progress=False)
    outcome = detection.fit(
        squares.scenes, val, SceneMix(squares, trained), TINY, device="cuda", progress=False
    )
    assert next(outcome.model.parameters()).is_cuda and all(
        np.isfinite(h["loss"]) for h in outcome.history
    )
    on_cpu, index = Squares(squares.scenes, 32), torch.tensor([[0, 1, 2]])
    windows = on_cpu.windows(index)
    mask = object_mask(*on_cpu.boxes_in(index, windows)[:2], 32, 8)
    for a, b in zip(
        mixed_boxes(on_cpu, index, windows, mask),
        mixed_boxes(squares, index.cuda(), windows.cuda(), mask.cuda()),
        strict=True,
    ):
        assert torch.allclose(a.float(), b.cpu().float(), atol=1e-4)
