"Scenes: annotation files with faults, images as cameras leave them, N images of each class."

import json
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("pycocotools")

from small_coco import COCO_TINY, make, needs_coco

from hydramix_nb.detection import _coco_results
from hydramix_nb.scenes import (
    _clip_boxes,
    _read_annotations,
    _read_scene,
    n_shot,
    read_coco,
    scenes_folder,
)

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
    "2 images have the id 1": {"images": GOOD["images"] * 2},
    "2 categories have the id 2": {"categories": GOOD["categories"] * 2},
    "annotation 7 has category 3, which is not in the list": {
        "annotations": [{**GOOD["annotations"][0], "category_id": 3}]
    },
    "annotation 7 is of image 5, which is not in the list": {
        "annotations": [{**GOOD["annotations"][0], "image_id": 5}]
    },
    r"annotation 7: bbox is \[1, 2, 3\], not x, y, width and height": {
        "annotations": [{**GOOD["annotations"][0], "bbox": [1, 2, 3]}]
    },
    "annotation 7: bbox is .*nan": {
        "annotations": [{**GOOD["annotations"][0], "bbox": [1, 2, 3, float("nan")]}]
    },
}
WRONG_FIELDS = [
    ("annotations", "area", None, "annotation 7: area is None, not a number"),
    ("annotations", "area", "12", "annotation 7: area is '12', not a number"),
    ("annotations", "area", float("inf"), "annotation 7: area is inf"),
    ("annotations", "iscrowd", None, "annotation 7: iscrowd is None, not 0 or 1"),
    ("annotations", "iscrowd", 2, "annotation 7: iscrowd is 2"),
    ("annotations", "bbox", None, "annotation 7: bbox is None"),
    ("annotations", "bbox", [1, 2, "3", 4], "annotation 7: bbox is"),
    ("annotations", "bbox", [1, 2, True, 4], "annotation 7: bbox is"),
    ("annotations", "bbox", [1, 2, 10**400, 4], "annotation 7: bbox is"),
    ("annotations", "image_id", "1", "annotation 7: image_id is '1', not a whole number"),
    ("annotations", "image_id", [1], r"annotation 7: image_id is \[1\]"),
    ("annotations", "category_id", None, "annotation 7: category_id is None"),
    ("images", "id", "1", "image 1: id is '1', not a whole number"),
    ("images", "file_name", None, "image 1: file_name is None, not a text"),
    ("images", "file_name", "", "image 1: file_name is '', not a text"),
    ("images", "height", 40.5, "image 1: height is 40.5, not a whole number above 0"),
    ("images", "width", 0, "image 1: width is 0, not a whole number above 0"),
    ("categories", "id", True, "category True: id is True"),
    ("categories", "name", 5, "category 2: name is 5, not a text"),
]


@pytest.mark.parametrize("message", FAULTS)
def test_faults_in_annotations_are_named(tmp_path, message):
    (tmp_path / "a.json").write_text(json.dumps({**GOOD, **FAULTS[message]}))
    with pytest.raises(ValueError, match=message) as e:
        _read_annotations(tmp_path / "a.json")
    assert str(tmp_path / "a.json") in str(e.value)


@pytest.mark.parametrize("part, field, value, message", WRONG_FIELDS)
def test_fields_of_a_wrong_type_are_named(tmp_path, part, field, value, message):
    "Whatever training or evaluation needs is checked when the file is read"
    data = {**GOOD, part: [{**GOOD[part][0], field: value}]}
    (tmp_path / "a.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message) as e:
        _read_annotations(tmp_path / "a.json")
    assert str(tmp_path / "a.json") in str(e.value)


@pytest.mark.parametrize("entry", [None, 5, "text", []])
@pytest.mark.parametrize("part", ["images", "categories", "annotations"])
def test_entries_that_are_no_objects_are_named(tmp_path, part, entry):
    (tmp_path / "a.json").write_text(json.dumps({**GOOD, part: [entry]}))
    with pytest.raises(ValueError, match=f"number 0 of {part} is .*, not an object"):
        _read_annotations(tmp_path / "a.json")


@pytest.mark.parametrize("text", ['{"images": [', "", "[1, 2]", "\xff\xfe"])
def test_broken_json_is_named(tmp_path, text):
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="a.json"):
        _read_annotations(tmp_path / "a.json")


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
    first, second = _read_annotations(tmp_path / "a.json")["annotations"]
    assert (first["id"], first["area"], first["iscrowd"]) == (1, 12, 0)
    assert (second["id"], second["area"], second["iscrowd"]) == (2, 9, 1)


def test_missing_images_are_one_error_before_anything_is_read(tmp_path):
    make(tmp_path, [[(2, 1, 1, 9, 9)]] * 5)
    for i in (0, 2, 3, 4):
        (tmp_path / "train" / f"{i}.png").unlink()
    with pytest.raises(
        FileNotFoundError, match="4 of 5 images are missing: .*0.png.*2.png.*3.png, …$"
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
    found = _coco_results(scenes, 0, **scenes.target(0), scores=torch.ones(2))
    assert [r["category_id"] for r in found] == [9, 2]
    assert found[0]["bbox"] == [1, 1, 9, 9] and found[0]["image_id"] == 0


def test_clip_boxes_takes_tensors_of_sizes():
    clipped, fine = _clip_boxes(
        torch.tensor([[[-1.0, -1, 9, 9]], [[3, 3, 50, 50]]]),
        torch.tensor([[5], [20]]),
        torch.tensor([[6], [30]]),
    )
    assert clipped.tolist() == [[[0, 0, 6, 5]], [[3, 3, 30, 20]]] and fine.all()


# images


def save_image(path, size, mode="RGB", orientation=None):
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
def test_turned_images_are_as_their_boxes_are_measured(tmp_path, orientation):
    stored = torch.from_numpy(
        save_image(tmp_path / "a.jpg", (40, 30), orientation=orientation)
    ).permute(2, 0, 1)
    assert torch.equal(_read_scene(tmp_path / "a.jpg", 30, 40), stored)
    if orientation < 5:
        return
    turned = _read_scene(tmp_path / "a.jpg", 40, 30)
    assert torch.equal(turned, torch.rot90(stored, -1 if orientation == 6 else 1, (1, 2)))


def test_grey_images_become_colour_and_other_sizes_are_an_error(tmp_path):
    save_image(tmp_path / "a.png", (40, 30), "L")
    grey = _read_scene(tmp_path / "a.png", 30, 40)
    assert grey.shape == (3, 30, 40) and torch.equal(grey[0], grey[2])
    with pytest.raises(ValueError, match="40×30 pixels, its annotations say 41×30"):
        _read_scene(tmp_path / "a.png", 30, 41)
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="b.png"):
        _read_scene(tmp_path / "b.png", 30, 40)


def test_every_image_is_opened_before_a_training(tmp_path):
    scenes = make(tmp_path, [[(2, 1, 1, 9, 9)]] * 3)
    scenes.check_images()
    whole = (tmp_path / "train/2.png").read_bytes()
    (tmp_path / "train/2.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="2.png"):
        scenes.check_images()
    save_image(tmp_path / "train/2.png", (61, 40))
    with pytest.raises(ValueError, match="2.png has 61×40 pixels, its annotations say 60×40"):
        scenes.check_images()


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


# sets by name


def test_sets_by_name(tmp_path):
    make(tmp_path / "mine", [[(2, 1, 1, 9, 9)]])
    assert scenes_folder("coco:mine", tmp_path / "drawn", tmp_path) == tmp_path / "mine"
    assert len(read_coco(scenes_folder("cutouts", tmp_path / "drawn"))) == 12
    with pytest.raises(FileNotFoundError, match="nothing at .*nowhere"):
        scenes_folder("coco:nowhere", tmp_path, tmp_path)
    for name in ("photos", "coco:", "coco:PATH"):
        with pytest.raises(ValueError, match="unknown set of scenes"):
            scenes_folder(name, tmp_path)


def test_without_pycocotools_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(ImportError, match=r"hydramix-nb\[detection\]"):
        make(tmp_path, [[(2, 1, 1, 9, 9)]])
