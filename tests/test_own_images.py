"Broken files and folders: what people have, and what is wrong with it."

import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from hydramix_nb.data import load_images
from hydramix_nb.own_images import _fit_square, read_image

RNG = np.random.RandomState(0)
BRIGHT = torch.full((3, 16, 16), 255, dtype=torch.uint8)


def drawn(path, size=(40, 30), **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.randint(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path, **kw)


@pytest.fixture
def pets(tmp_path):
    for c in ("cat", "dog"):
        for i in range(3):
            drawn(tmp_path / "pets" / c / f"{i}.png")
    return tmp_path / "pets"


# ------------------------------------------------------------------ image files


def test_modes(tmp_path):
    "A grey ramp comes out the same from every mode that can hold it."
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
    grey = Image.fromarray(ramp)
    ways = dict(
        L=grey,
        RGB=grey.convert("RGB"),
        RGBA=grey.convert("RGBA"),
        LA=grey.convert("LA"),
        P=grey.convert("P"),
        sixteen=Image.fromarray(ramp.astype(np.uint16) * 257),
    )
    for name, im in ways.items():
        im.save(tmp_path / f"{name}.png")
        assert torch.equal(
            read_image(tmp_path / f"{name}.png"), torch.from_numpy(ramp).expand(3, -1, -1)
        ), name
    Image.fromarray(ramp.astype(">u2") * 257).save(tmp_path / "big_endian.tif")
    assert torch.equal(
        read_image(tmp_path / "big_endian.tif"), torch.from_numpy(ramp).expand(3, -1, -1)
    )
    grey.convert("CMYK").save(tmp_path / "cmyk.tif")
    assert (read_image(tmp_path / "cmyk.tif").int() - torch.from_numpy(ramp).int()).abs().max() <= 1
    grey.point(lambda v: 255 * (v > 100), "1").save(tmp_path / "bits.png")
    assert set(read_image(tmp_path / "bits.png").unique().tolist()) == {0, 255}


def test_transparent_is_white(tmp_path):
    clear = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    clear.save(tmp_path / "rgba.png")
    Image.new("LA", (20, 20), (0, 0)).save(tmp_path / "la.png")
    p = Image.new("P", (20, 20), 3)
    p.putpalette([7] * 768)
    p.save(tmp_path / "p.gif", transparency=3)
    for name in ("rgba.png", "la.png", "p.gif"):
        assert (read_image(tmp_path / name) == 255).all(), name


@pytest.mark.parametrize("tag", range(1, 9))
def test_exif_rotation(tmp_path, tag):
    from PIL import ImageOps

    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :8] = 255
    exif = Image.Exif()
    exif[0x112] = tag
    Image.fromarray(upright).save(tmp_path / "x.png", exif=exif)
    want = np.array(ImageOps.exif_transpose(Image.open(tmp_path / "x.png")))
    got = read_image(tmp_path / "x.png").permute(1, 2, 0).numpy()
    assert np.array_equal(got, want) and got.shape == ((24, 16, 3) if tag > 4 else (16, 24, 3))


def test_images_that_have_no_eight_bits(tmp_path):
    Image.fromarray(np.zeros((20, 20), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match="float.tif as an image: floating-point"):
        read_image(tmp_path / "float.tif")
    Image.fromarray(np.full((20, 20), 70000, np.int32)).save(tmp_path / "int.tif")
    with pytest.raises(ValueError, match="int.tif as an image: more than 16 bits"):
        read_image(tmp_path / "int.tif")


@pytest.mark.parametrize("shape", [(64, 64), (40, 64), (64, 40), (33, 500), (7, 9)])
@pytest.mark.parametrize("size", [1, 16, 32, 64])
def test_fit_square(shape, size):
    x = torch.full((2, 3, *shape), 77, dtype=torch.uint8)
    assert torch.equal(_fit_square(x, size), torch.full((2, 3, size, size), 77, dtype=torch.uint8))


def test_fit_square_keeps_the_middle():
    x = torch.zeros(1, 1, 32, 96, dtype=torch.uint8)
    x[..., 32:64] = 200
    assert (_fit_square(x, 32) == 200).all() and _fit_square(x, 16)[..., 2:-2].eq(200).all()
    with pytest.raises(ValueError, match="at least 1"):
        _fit_square(x, 0)


# ------------------------------------------------------------------ folders


def test_folder(pets):
    s = load_images(f"folder:{pets}")
    assert (
        s.images.shape == (6, 3, 24, 24)
        and s.classes == ["cat", "dog"]
        and s.labels.tolist() == [0, 0, 0, 1, 1, 1]
    )
    assert s.digest() == load_images(f"folder:{pets}").digest()


def test_folder_path_from_here_and_from_root(pets, monkeypatch, tmp_path):
    assert len(load_images("folder:pets", root=pets.parent)) == 6
    monkeypatch.setenv("HYDRAMIX_DATA", str(pets.parent))
    assert len(load_images("folder:pets")) == 6
    monkeypatch.delenv("HYDRAMIX_DATA")
    monkeypatch.chdir(pets.parent)
    assert len(load_images("folder:pets", root=tmp_path / "other")) == 6
    assert len(load_images("folder:../pets", root=pets)) == 6


@pytest.mark.parametrize(
    "sizes, side",
    [
        ([(40, 30), (300, 200)], 24),
        ([(300, 200), (500, 97)], 96),
        ([(9, 9), (50, 50)], 16),
        ([(64, 64), (64, 70)], 64),
    ],
)
def test_common_size(tmp_path, sizes, side):
    for i, size in enumerate(sizes):
        drawn(tmp_path / "ab"[i] / "x.png", size)
    assert load_images(f"folder:{tmp_path}").images.shape[-2:] == (side, side)


def test_splits_agree_in_size_and_classes(tmp_path):
    for split, size in (("train", 80), ("val", 50)):
        for c in "ab":
            drawn(tmp_path / split / c / "0.png", (size, size))
    drawn(tmp_path / "train/c/0.png", (90, 90))
    train, test = (load_images(f"folder:{tmp_path}", split) for split in ("train", "test"))
    assert train.images.shape[1:] == test.images.shape[1:] == (3, 48, 48)
    assert train.classes == test.classes == ["a", "b", "c"] and test.labels.tolist() == [0, 1]
    assert test.digest() == load_images(f"folder:{tmp_path}", "val").digest()
    for c in "ab":
        drawn(tmp_path / "test" / c / "0.png", (60, 60))
    assert load_images(f"folder:{tmp_path}", "test").digest() != test.digest()
    drawn(tmp_path / "val/z/0.png")
    with pytest.raises(ValueError, match="class 'z' is in .*val but not in .*train"):
        load_images(f"folder:{tmp_path}", "val")


def test_a_class_may_be_called_train(tmp_path):
    for c in ("train", "car"):
        drawn(tmp_path / c / "0.png")
    assert load_images(f"folder:{tmp_path}").classes == ["car", "train"]


def test_folders_of_one_class_add_up(pets):
    for i in range(2):
        drawn(pets / "siamese" / f"{i}.png")
    listed = '[["siamese", "cat"], ["dog", "dog"], ["cat", "cat"], ["cat", "cat"]]'
    (pets / "classes.json").write_text(listed)
    both = load_images(f"folder:{pets}")
    assert both.classes == ["cat", "dog"]
    assert both.labels.tolist() == [0] * 5 + [1] * 3
    for i, file in enumerate(["siamese/0", "siamese/1", "cat/0", "cat/1", "cat/2"]):
        assert torch.equal(both.images[i], read_image(pets / f"{file}.png", both.images.shape[-1]))


def test_litter_does_not_count(pets):
    (pets / ".git" / "objects").mkdir(parents=True)
    (pets / "cat" / ".ipynb_checkpoints").mkdir()
    (pets / "README.txt").write_text("pets")
    for name in (".DS_Store", "._0.png", "Thumbs.db", "desktop.ini"):
        (pets / "cat" / name).write_bytes(b"x")
    assert len(load_images(f"folder:{pets}")) == 6


@pytest.mark.parametrize(
    "breaking, message",
    [
        pytest.param(
            lambda p: [f.unlink() for f in (p / "cat").iterdir()],
            "class folder .*cat has no images",
            id="empty class",
        ),
        pytest.param(
            lambda p: [shutil.rmtree(p / c) for c in ("cat", "dog")],
            "pets has no class folders",
            id="empty folder",
        ),
        pytest.param(
            lambda p: shutil.rmtree(p / "dog"), r"single class \(cat\)", id="single class"
        ),
        pytest.param(
            lambda p: (p / "cat/0.png").write_bytes((p / "cat/0.png").read_bytes()[:-900]),
            "cat/0.png as an image",
            id="truncated png",
        ),
        pytest.param(
            lambda p: (p / "cat/a.jpg").write_bytes(b""), "cat/a.jpg as an image", id="empty file"
        ),
        pytest.param(
            lambda p: (p / "dog/a.jpg").write_bytes(b"<html>404</html>"),
            "dog/a.jpg as an image: cannot identify.*; convert it to JPEG or PNG, or move it",
            id="a web page",
        ),
        pytest.param(
            lambda p: drawn(p / "dog/more/0.png"),
            "dog/more is a folder inside a class folder",
            id="deeper",
        ),
    ],
)
def test_broken_folders(pets, breaking, message):
    breaking(pets)
    for size in (None, 32):
        with pytest.raises(ValueError, match=message):
            load_images(f"folder:{pets}", size=size)


def test_truncated_jpeg(pets):
    drawn(pets / "dog/big.jpg", (200, 200))
    whole = (pets / "dog/big.jpg").read_bytes()
    for part in (0.1, 0.5, 0.9):
        (pets / "dog/big.jpg").write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(ValueError, match="dog/big.jpg as an image"):
            load_images(f"folder:{pets}")


def test_folder_names(pets):
    for split in ("test", "val"):
        with pytest.raises(ValueError, match=f"no {split} images, only train"):
            load_images(f"folder:{pets}", split)
    with pytest.raises(ValueError, match="split must be train, test or val, not 'dev'"):
        load_images(f"folder:{pets}", "dev")
    with pytest.raises(FileNotFoundError, match="nothing at"):
        load_images("folder:nowhere", root=pets)
    with pytest.raises(ValueError, match="is not a folder"):
        load_images(f"folder:{pets / 'cat/0.png'}")
    for name in ("folder:", "folder:PATH", "npz:PATH"):
        with pytest.raises(ValueError, match="needs a path"):
            load_images(name)
    for name in ("pets", "cifar", "photos:x", "", "imagenet:x"):
        with pytest.raises(ValueError, match="unknown data set"):
            load_images(name)
    with pytest.raises(ValueError, match="train and test, not val"):
        load_images("photos", "val")


# ------------------------------------------------------------------ npz

IMAGES, LABELS = RNG.randint(0, 256, (6, 8, 10, 3), dtype=np.uint8), np.arange(6) % 3


def saved(path, **arrays):
    np.savez(path, **dict(dict(images=IMAGES, labels=LABELS), **arrays))
    return f"npz:{path}"


@pytest.mark.parametrize(
    "images", [IMAGES, IMAGES.transpose(0, 3, 1, 2)], ids=["channels last", "channels first"]
)
def test_npz(tmp_path, images):
    s = load_images(saved(tmp_path / "a.npz", images=images, classes=np.array(["x", "y", "z"])))
    assert (
        torch.equal(s.images, torch.from_numpy(IMAGES).permute(0, 3, 1, 2))
        and s.labels.tolist() == LABELS.tolist()
        and s.classes == ["x", "y", "z"]
    )
    assert load_images(f"npz:{tmp_path / 'a.npz'}", size=5).images.shape == (6, 3, 5, 5)


def test_npz_keep(tmp_path):
    keep = np.array([True, False, True, True, False, True])
    assert torch.equal(
        load_images(saved(tmp_path / "a.npz", cifair_keep=keep)).images,
        torch.from_numpy(IMAGES[keep]).permute(0, 3, 1, 2),
    )
    for wrong, message in (
        (keep.astype(int), "must be bool"),
        (keep[:5], r"shape \[6\]"),
        (keep & False, "keeps no image"),
    ):
        with pytest.raises(ValueError, match=message):
            load_images(saved(tmp_path / "a.npz", keep=wrong))
    with pytest.raises(ValueError, match="more than one keep-mask: keep, my_keep"):
        load_images(saved(tmp_path / "a.npz", keep=keep, my_keep=keep))


@pytest.mark.parametrize(
    "arrays, message",
    [
        (dict(images=IMAGES.astype(np.float32)), "images are float32; store them as uint8"),
        (dict(images=np.where(IMAGES > 250, np.inf, IMAGES)), "NaN or infinite"),
        (dict(images=IMAGES.astype(np.int64)), "images are int64"),
        (dict(images=IMAGES.astype(object)), "holds an object array"),
        (dict(labels=LABELS.astype(object)), "holds an object array"),
        (dict(images=IMAGES[0, 0]), "expected .n,H,W,3."),
        (dict(images=np.zeros((6, 40, 40, 40), np.uint8)), "can be the channels"),
        (dict(images=IMAGES[:0], labels=LABELS[:0], classes=np.array(["a", "b"])), "needs images"),
        (dict(images=IMAGES[:5]), r"5 images need labels of shape \[5\]"),
        (dict(labels=LABELS.astype(float)), "labels are float64"),
        (dict(labels=LABELS[:, None]), "need labels of shape"),
        (dict(labels=LABELS * 0), "single class"),
        (dict(labels=LABELS + 10**9), "label 1000000002 without class names"),
        (dict(labels=LABELS.astype(np.uint64) + np.uint64(2**63)), "without class names"),
        (dict(labels=LABELS - 1), "label -1 without class names"),
        (dict(images=IMAGES // 200), "no pixel is brighter than 1 of 255"),
        (dict(images=IMAGES // 20), "no pixel is brighter than 12 of 255"),
        (dict(classes=np.array(["x", "y"])), "image 2 has label 2, but with 2 classes"),
        (dict(classes=np.array([1, 2, 3])), "classes must be np.array"),
        (dict(classes=np.array(["x", "y", "x"])), "'x' occurs more than once"),
    ],
)
def test_broken_npz(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message) as e:
        load_images(saved(tmp_path / "a.npz", **arrays))
    assert "a.npz" in str(e.value)


@pytest.mark.parametrize(
    "items, error, message",
    [
        ([], ValueError, "no images"),
        (None, TypeError, "NoneType is no data set: a name, a path, an ImageSet"),
        (torch.stack([BRIGHT] * 3), TypeError, "item 0 is a Tensor: a pair of image and label"),
        ([(0, 0)], TypeError, "item 0: an image is one of PIL's or a tensor"),
        ([(BRIGHT, 0), (BRIGHT, 0.5)], TypeError, "item 1: the label 0.5 is no whole number"),
        ([(BRIGHT, "cat")], TypeError, "item 0: the label 'cat' is no whole number"),
        ([(BRIGHT, torch.tensor(1.0))], TypeError, "item 0: the label"),
        ([(BRIGHT, 0), (BRIGHT, 10**12)], ValueError, "label 1000000000000 without class names"),
        ([(BRIGHT, -1)], ValueError, "label -1 without class names"),
        ([(BRIGHT / 255 * torch.nan, 0)], ValueError, "item 0: floats go from 0 to 1"),
        ([(BRIGHT // 20, 0)], ValueError, "the data set: no pixel is brighter than 12"),
        ([(BRIGHT, 0), (BRIGHT[:1], 1)], ValueError, "item 1 is .*: give a size"),
    ],
)
def test_data_sets_of_items_that_do_not_fit(items, error, message):
    with pytest.raises(error, match=message):
        load_images(items)


@pytest.mark.parametrize(
    "asked, error, message",
    [
        (dict(size="32"), TypeError, "size='32': the side of a square in pixels"),
        (dict(size=32.0), TypeError, "size=32.0"),
        (dict(size=(32, 32)), TypeError, "size=.32, 32."),
        (dict(size=0), ValueError, "size must be at least 1, got 0"),
        (dict(few=5), TypeError, "few=5: images of each class and a seed"),
    ],
)
def test_what_cannot_be_asked_for(pets, asked, error, message):
    for name in (f"folder:{pets}", "toys"):
        with pytest.raises(error, match=message):
            load_images(name, **asked)


def test_a_path_from_home_without_its_kind(pets, monkeypatch):
    monkeypatch.setenv("HOME", str(pets.parent))
    with pytest.raises(ValueError, match=f"what lies at ~/{pets.name} is 'folder:~/{pets.name}'"):
        load_images(f"~/{pets.name}")


def test_labels_of_every_kind_of_whole_number():
    labels = [0, np.int64(1), torch.tensor(2), np.uint8(3), True]
    items = [(BRIGHT, label) for label in labels]
    assert load_images(items).labels.tolist() == [0, 1, 2, 3, 1]


def test_npz_missing_keys(tmp_path):
    np.savez(tmp_path / "a.npz", x=IMAGES)
    with pytest.raises(ValueError, match="has no images and no labels; its keys are x"):
        load_images(f"npz:{tmp_path / 'a.npz'}")
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", images=IMAGES)
    for split in ("train", "test"):
        with pytest.raises(ValueError, match="has no labels"):
            load_images(f"npz:{tmp_path}", split)


def test_files_that_are_no_npz(tmp_path):
    saved(tmp_path / "a.npz")
    whole = (tmp_path / "a.npz").read_bytes()
    damaged = bytearray(whole)
    damaged[400] ^= 255
    np.save(tmp_path / "b.npy", IMAGES)
    for content in (
        whole[: len(whole) // 2],
        whole[:-3],
        b"",
        b"text",
        bytes(damaged),
        (tmp_path / "b.npy").read_bytes(),
        pickle.dumps([1]),
    ):
        (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(ValueError, match="a.npz is not an npz file, or not a whole one"):
            load_images(f"npz:{tmp_path / 'a.npz'}")


def test_npz_folder(tmp_path):
    names = np.array(["x", "y", "z"])
    saved(tmp_path / "train.npz", classes=names)
    saved(tmp_path / "val.npz", images=IMAGES[:2], labels=LABELS[:2])
    test = load_images("npz:" + tmp_path.name, "test", root=tmp_path.parent)
    assert test.classes == ["x", "y", "z"] and len(test) == 2
    saved(tmp_path / "test.npz", images=IMAGES[:4], labels=LABELS[:4], classes=names)
    assert (
        len(load_images(f"npz:{tmp_path}", "test")) == 4
        and len(load_images(f"npz:{tmp_path}", "val")) == 2
    )
    saved(tmp_path / "test.npz", classes=names[::-1])
    with pytest.raises(ValueError, match="test.npz has other classes than its train.npz"):
        load_images(f"npz:{tmp_path}", "test")
    saved(tmp_path / "all.npz")
    for name in ("train", "all"):
        with pytest.raises(ValueError, match=f"{name}.npz is asked for test images"):
            load_images(f"npz:{tmp_path / name}.npz", "test")
    assert len(load_images(f"npz:{tmp_path / 'test.npz'}", "test")) == 6
    os.unlink(tmp_path / "train.npz")
    with pytest.raises(FileNotFoundError, match="has no train.npz"):
        load_images(f"npz:{tmp_path}")
