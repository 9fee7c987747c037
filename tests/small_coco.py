"Small sets in COCO's format, for the tests of scenes, of their mixtures and of detectors"

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from hydramix_nb.detection import _coco_results
from hydramix_nb.files import write_json, write_png
from hydramix_nb.scenes import read_coco

COCO_TINY = Path(os.environ.get("HYDRAMIX_DATA", "?")) / "coco_tiny"
needs_coco = pytest.mark.skipif(
    not COCO_TINY.is_dir(), reason="coco_tiny is not in the data folder: set HYDRAMIX_DATA"
)


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


def perfect(scenes):
    return [
        r
        for i in range(len(scenes))
        for r in _coco_results(
            scenes, i, **scenes.target(i), scores=torch.ones(len(scenes.target(i)["labels"]))
        )
    ]
