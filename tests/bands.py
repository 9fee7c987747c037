"A pair of encoders that knows three colours, and plain images of them"

import torch
import torch.nn.functional as F

BANDS = ["red", "green", "blue"]


def band_images(x):
    return x.mean((2, 3)) + 1.1


def band_texts(texts):
    return F.one_hot(torch.tensor([BANDS.index(t.split(" :")[0]) for t in texts]), 3).float()


def plain(*colours, n=4, size=8):
    "Plain pictures of the bands' colours, uint8 [n·colours,3,size,size]"
    return (
        (F.one_hot(torch.tensor([BANDS.index(c) for c in colours for _ in range(n)]), 3) * 255)
        .to(torch.uint8)[:, :, None, None]
        .expand(-1, -1, size, size)
    )
