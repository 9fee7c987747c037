"Broken files and folders, archives that are not what they should be, and loaders on archives made up for the test."

import hashlib
import io
import os
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from hydramix_nb import data
from hydramix_nb.data import (
    CIFAIR,
    ImageSet,
    crop_flip,
    few_shot_indices,
    fit_square,
    load_images,
    photos,
    read_picture,
    same_class_indices,
    class_tables,
    to_float,
    to_uint8,
)

RNG = np.random.RandomState(0)
md5 = lambda raw: hashlib.md5(raw).hexdigest()


def picture(path, size=(40, 30), **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.randint(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path, **kw)


@pytest.fixture
def pets(tmp_path):
    for c in ("cat", "dog"):
        for i in range(3):
            picture(tmp_path / "pets" / c / f"{i}.png")
    return tmp_path / "pets"


# ------------------------------------------------------------------ what must never change


def test_the_same_seed_draws_the_same_images_for_good():
    labels = torch.arange(3).repeat(20)
    assert few_shot_indices(labels, 2, 0, ["a", "b", "c"]).tolist() == [54, 3, 34, 4, 47, 41]


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


def test_partners_reach_the_last_image_and_no_further():
    "u just below 1 rounds up in float32 when a class is large: the last image, not the next class."
    labels = torch.cat([torch.zeros(3, dtype=torch.int64), torch.ones(2, dtype=torch.int64)])
    one = torch.tensor(1.0)
    tables = class_tables(labels, 2)
    real = torch.rand
    try:
        torch.rand = lambda *s, **kw: (
            torch.full(s, torch.nextafter(one, torch.tensor(0.0)).item()) * 1.0000001
        )
        assert same_class_indices(torch.tensor([0, 1]), 2, tables).tolist() == [[2, 2], [4, 4]]
    finally:
        torch.rand = real


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


# ------------------------------------------------------------------ pictures


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
            read_picture(tmp_path / f"{name}.png"), torch.from_numpy(ramp).expand(3, -1, -1)
        ), name
    Image.fromarray(ramp.astype(">u2") * 257).save(tmp_path / "big_endian.tif")
    assert torch.equal(
        read_picture(tmp_path / "big_endian.tif"), torch.from_numpy(ramp).expand(3, -1, -1)
    )
    grey.convert("CMYK").save(tmp_path / "cmyk.tif")
    assert (
        read_picture(tmp_path / "cmyk.tif").int() - torch.from_numpy(ramp).int()
    ).abs().max() <= 1
    grey.point(lambda v: 255 * (v > 100), "1").save(tmp_path / "bits.png")
    assert set(read_picture(tmp_path / "bits.png").unique().tolist()) == {0, 255}


def test_transparent_is_white(tmp_path):
    clear = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    clear.save(tmp_path / "rgba.png")
    Image.new("LA", (20, 20), (0, 0)).save(tmp_path / "la.png")
    p = Image.new("P", (20, 20), 3)
    p.putpalette([7] * 768)
    p.save(tmp_path / "p.gif", transparency=3)
    for name in ("rgba.png", "la.png", "p.gif"):
        assert (read_picture(tmp_path / name) == 255).all(), name


@pytest.mark.parametrize("tag", range(1, 9))
def test_exif_rotation(tmp_path, tag):
    from PIL import ImageOps

    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :8] = 255
    exif = Image.Exif()
    exif[0x112] = tag
    Image.fromarray(upright).save(tmp_path / "x.png", exif=exif)
    want = np.array(ImageOps.exif_transpose(Image.open(tmp_path / "x.png")))
    got = read_picture(tmp_path / "x.png").permute(1, 2, 0).numpy()
    assert np.array_equal(got, want) and got.shape == ((24, 16, 3) if tag > 4 else (16, 24, 3))


def test_pictures_that_have_no_eight_bits(tmp_path):
    Image.fromarray(np.zeros((20, 20), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match="float.tif as a picture: floating-point"):
        read_picture(tmp_path / "float.tif")
    Image.fromarray(np.full((20, 20), 70000, np.int32)).save(tmp_path / "int.tif")
    with pytest.raises(ValueError, match="int.tif as a picture: more than 16 bits"):
        read_picture(tmp_path / "int.tif")


@pytest.mark.parametrize("shape", [(64, 64), (40, 64), (64, 40), (33, 500), (7, 9)])
@pytest.mark.parametrize("size", [1, 16, 32, 64])
def test_fit_square(shape, size):
    x = torch.full((2, 3, *shape), 77, dtype=torch.uint8)
    assert torch.equal(fit_square(x, size), torch.full((2, 3, size, size), 77, dtype=torch.uint8))


def test_fit_square_keeps_the_middle():
    x = torch.zeros(1, 1, 32, 96, dtype=torch.uint8)
    x[..., 32:64] = 200
    assert (fit_square(x, 32) == 200).all() and fit_square(x, 16)[..., 2:-2].eq(200).all()
    with pytest.raises(ValueError, match="at least 1"):
        fit_square(x, 0)


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
        picture(tmp_path / "ab"[i] / "x.png", size)
    assert load_images(f"folder:{tmp_path}").images.shape[-2:] == (side, side)


def test_splits_agree_in_size_and_classes(tmp_path):
    for split, size in (("train", 80), ("val", 50)):
        for c in "ab":
            picture(tmp_path / split / c / "0.png", (size, size))
    picture(tmp_path / "train/c/0.png", (90, 90))
    train, test = (load_images(f"folder:{tmp_path}", split) for split in ("train", "test"))
    assert train.images.shape[1:] == test.images.shape[1:] == (3, 48, 48)
    assert train.classes == test.classes == ["a", "b", "c"] and test.labels.tolist() == [0, 1]
    assert test.digest() == load_images(f"folder:{tmp_path}", "val").digest()
    for c in "ab":
        picture(tmp_path / "test" / c / "0.png", (60, 60))
    assert load_images(f"folder:{tmp_path}", "test").digest() != test.digest()
    picture(tmp_path / "val/z/0.png")
    with pytest.raises(ValueError, match="class 'z' is in .*val but not in .*train"):
        load_images(f"folder:{tmp_path}", "val")


def test_a_class_may_be_called_train(tmp_path):
    for c in ("train", "car"):
        picture(tmp_path / c / "0.png")
    assert load_images(f"folder:{tmp_path}").classes == ["car", "train"]


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
            "class folder .*cat has no pictures",
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
            "cat/0.png as a picture",
            id="truncated png",
        ),
        pytest.param(
            lambda p: (p / "cat/a.jpg").write_bytes(b""), "cat/a.jpg as a picture", id="empty file"
        ),
        pytest.param(
            lambda p: (p / "dog/a.jpg").write_bytes(b"<html>404</html>"),
            "dog/a.jpg as a picture: cannot identify",
            id="a web page",
        ),
        pytest.param(
            lambda p: picture(p / "dog/more/0.png"),
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
    picture(pets / "dog/big.jpg", (200, 200))
    whole = (pets / "dog/big.jpg").read_bytes()
    for part in (0.1, 0.5, 0.9):
        (pets / "dog/big.jpg").write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(ValueError, match="dog/big.jpg as a picture"):
            load_images(f"folder:{pets}")


def test_folder_names(pets):
    for split in ("test", "val"):
        with pytest.raises(ValueError, match=f"no {split} pictures, only train"):
            load_images(f"folder:{pets}", split)
    with pytest.raises(ValueError, match="split must be train, test or val, not 'dev'"):
        load_images(f"folder:{pets}", "dev")
    with pytest.raises(FileNotFoundError, match="nothing at"):
        load_images("folder:nowhere", root=pets)
    with pytest.raises(ValueError, match="is not a folder"):
        load_images(f"folder:{pets / 'cat/0.png'}")
    with pytest.raises(ValueError, match="needs a path"):
        load_images("folder:")
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
        (dict(classes=np.array(["x", "y"])), "image 2 has label 2, but with 2 classes"),
        (dict(classes=np.array([1, 2, 3])), "classes must be np.array"),
        (dict(classes=np.array(["x", "y", "x"])), "'x' occurs more than once"),
    ],
)
def test_broken_npz(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message) as e:
        load_images(saved(tmp_path / "a.npz", **arrays))
    assert "a.npz" in str(e.value)


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
    with pytest.raises(ValueError, match="train.npz is asked for test images"):
        load_images(f"npz:{tmp_path / 'train.npz'}", "test")
    os.unlink(tmp_path / "train.npz")
    with pytest.raises(FileNotFoundError, match="has no train.npz"):
        load_images(f"npz:{tmp_path}")


# ------------------------------------------------------------------ published sets, on archives made up here


class Malice:
    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was run')",)


def cifar_files(reader, n=10, protocol=2):
    "The files of a CIFAR folder with n images each, and a reader class that takes them for the published ones."
    files, hundred = {}, reader is datasets.CIFAR100

    def entry(names):
        out = []
        for i, name in enumerate(names):
            labels = [(j + i) % 10 for j in range(n)]
            out.append(
                [
                    name,
                    md5(
                        files.setdefault(
                            name,
                            pickle.dumps(
                                {
                                    "data": RNG.randint(0, 256, (n, 3072), dtype=np.uint8),
                                    ("fine_labels" if hundred else "labels"): labels,
                                },
                                protocol,
                            ),
                        )
                    ),
                ]
            )
        return out

    train, test = (
        entry([name for name, _ in reader.train_list]),
        entry([name for name, _ in reader.test_list]),
    )
    files[reader.meta["filename"]] = pickle.dumps(
        {reader.meta["key"]: [f"class {c}" for c in range(10)]}, protocol
    )
    return files, dict(
        train_list=train,
        test_list=test,
        meta=dict(reader.meta, md5=md5(files[reader.meta["filename"]])),
    )


def patched(monkeypatch, reader, **values):
    for name, value in values.items():
        monkeypatch.setattr(reader, name, value)


def write(folder, files):
    folder.mkdir(parents=True)
    for name, raw in files.items():
        (folder / name).write_bytes(raw)


def pixels(files, *names):
    return torch.from_numpy(
        np.concatenate([pickle.loads(files[n])["data"] for n in names]).reshape(-1, 3, 32, 32)
    )


@pytest.fixture(params=[10, 100])
def cifar(request, monkeypatch, tmp_path):
    reader = getattr(datasets, f"CIFAR{request.param}")
    files, values = cifar_files(reader)
    patched(monkeypatch, reader, **values)
    return f"cifar{request.param}", reader, files, tmp_path / "root"


def test_cifar(cifar):
    name, reader, files, root = cifar
    with pytest.raises(
        FileNotFoundError,
        match=rf"{name} is not at .*{reader.base_folder}; load_images\('{name}', download=True\) fetches it there, 16. MB from https",
    ):
        load_images(name, root=root)
    write(root / reader.base_folder, files)
    for split, entries in (("train", reader.train_list), ("test", reader.test_list)):
        s = load_images(name, split, root)
        assert (
            torch.equal(s.images, pixels(files, *[n for n, _ in entries]))
            and s.classes == [f"class {c}" for c in range(10)]
            and len(s.labels) == 10 * len(entries)
        )
    (root / reader.base_folder / reader.test_list[0][0]).write_bytes(pickle.dumps(Malice()))
    with pytest.raises(ValueError, match="checksums"):
        load_images(name, "test", root)
    with pytest.raises(ValueError, match="train and test, not val"):
        load_images(name, "val", root)


def archive(path, folder, files, kind):
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as z:
            for name, raw in files.items():
                z.writestr(f"{folder}/{name}", raw)
    else:
        with tarfile.open(path, "w:gz") as t:
            for name, raw in files.items():
                info = tarfile.TarInfo(f"{folder}/{name}")
                info.size = len(raw)
                t.addfile(info, io.BytesIO(raw))
    return md5(path.read_bytes())


def fetched_from_disk(monkeypatch):
    "Downloads of file:// addresses, without asking any server."
    monkeypatch.setattr(datasets.utils, "_get_redirect_url", lambda url, max_hops=3: url)
    monkeypatch.setattr(
        datasets.utils,
        "_urlretrieve",
        lambda url, path: shutil.copyfile(url.removeprefix("file://"), path),
    )


def test_cifar_download(cifar, monkeypatch, tmp_path):
    name, reader, files, root = cifar
    source = tmp_path / reader.filename
    digest = archive(source, reader.base_folder, files, "tar")
    patched(monkeypatch, reader, url=source.as_uri(), tgz_md5=digest)
    fetched_from_disk(monkeypatch)
    assert len(load_images(name, "test", root, download=True)) == 10 and sorted(
        p.name for p in root.iterdir()
    ) == [reader.base_folder]
    source.unlink()
    assert len(load_images(name, "train", root, download=True)) > 0


def test_broken_download_leaves_nothing(cifar, monkeypatch, tmp_path):
    name, reader, files, root = cifar
    source = tmp_path / reader.filename
    digest = archive(source, reader.base_folder, files, "tar")
    source.write_bytes(source.read_bytes()[:500])
    patched(monkeypatch, reader, url=source.as_uri(), tgz_md5=digest)
    fetched_from_disk(monkeypatch)
    with pytest.raises(ConnectionError, match=f"could not fetch {name} from file://"):
        load_images(name, root=root, download=True)
    source.unlink()
    with pytest.raises(ConnectionError, match=f"could not fetch {name}"):
        load_images(name, root=root, download=True)
    assert not list(root.iterdir())


def test_hint_at_arrays(tmp_path):
    (tmp_path / "cifar10").mkdir()
    saved(tmp_path / "cifar10" / "train.npz")
    with pytest.raises(FileNotFoundError, match="are read by 'npz:cifar10'"):
        load_images("cifar10", root=tmp_path)


def test_stl10(monkeypatch, tmp_path):
    reader, n = datasets.STL10, 4
    raw = {
        f"{s}_X.bin": RNG.randint(0, 256, (n, 3, 96, 96), dtype=np.uint8).tobytes()
        for s in ("train", "test", "unlabeled")
    }
    raw |= {f"{s}_y.bin": np.array([1, 2, 10, 3], np.uint8).tobytes() for s in ("train", "test")}
    patched(
        monkeypatch,
        reader,
        **{
            f"{s}_list": [[n, md5(raw[n])] for n, _ in getattr(reader, f"{s}_list")]
            for s in ("train", "test")
        },
    )
    with pytest.raises(FileNotFoundError, match="2.5 GB"):
        load_images("stl10", root=tmp_path)
    write(
        tmp_path / reader.base_folder,
        raw | {"class_names.txt": b"\n".join(f"class {c}".encode() for c in range(10)) + b"\n"},
    )
    for split in ("train", "test"):
        s = load_images("stl10", split, tmp_path)
        assert s.labels.tolist() == [0, 1, 9, 2] and len(s.classes) == 10
        assert torch.equal(
            s.images,
            torch.from_numpy(
                np.frombuffer(raw[f"{split}_X.bin"], np.uint8).reshape(n, 3, 96, 96).copy()
            ).transpose(2, 3),
        )


@pytest.fixture(params=[10, 100])
def cifair(request, monkeypatch, tmp_path):
    "A made-up ciFAIR archive at its place, and CIFAR's checksums made to fit."
    reader, name = getattr(datasets, f"CIFAR{request.param}"), f"cifair{request.param}"
    files, values = cifar_files(reader)
    patched(monkeypatch, reader, **values)
    info = dict(CIFAIR[name])
    member = info["test"][0]
    assert member == reader.test_list[0][0]
    info["test"] = (member, md5(files[member]))

    def rebuild(**changed):
        info["md5"] = archive(
            tmp_path / f"{info['folder']}.zip", info["folder"], files | changed, "zip"
        )
        monkeypatch.setitem(data.CIFAIR, name, info)

    rebuild()
    return name, reader, files, info, tmp_path, rebuild


def test_cifair(cifair):
    name, reader, files, info, root, _ = cifair
    test, train = load_images(name, "test", root), load_images(name, "train", root)
    assert torch.equal(
        test.images, pixels(files, info["test"][0])
    ) and test.classes == train.classes == [f"class {c}" for c in range(10)]
    assert torch.equal(
        train.images, pixels(files, *[n for n, _ in reader.train_list])
    ) and test.labels.tolist() == list(range(10))


def test_cifair_trains_on_cifar(cifair):
    name, reader, files, info, root, _ = cifair
    write(root / reader.base_folder, files)
    os.unlink(root / f"{info['folder']}.zip")
    assert (
        load_images(name, "train", root).digest()
        == load_images(name.replace("cifair", "cifar"), "train", root).digest()
    )
    with pytest.raises(
        FileNotFoundError,
        match=rf"{name} is not at .*{info['folder']}.zip; load_images\('{name}', download=True\)",
    ):
        load_images(name, "test", root)


def test_cifair_unpacked(cifair):
    name, _, files, info, root, _ = cifair
    packed = load_images(name, "test", root)
    write(root / info["folder"], files)
    os.unlink(root / f"{info['folder']}.zip")
    assert load_images(name, "test", root).digest() == packed.digest()
    (root / info["folder"] / info["test"][0]).write_bytes(pickle.dumps(Malice()))
    with pytest.raises(ValueError, match="does not have the published MD5"):
        load_images(name, "test", root)
    (root / info["folder"] / info["test"][0]).unlink()
    with pytest.raises(FileNotFoundError, match=f"{info['folder']} has no {info['test'][0]}"):
        load_images(name, "test", root)


def test_cifair_is_checked_before_it_is_opened(cifair, monkeypatch):
    name, _, files, info, root, rebuild = cifair
    published = info["md5"]
    opened = []
    monkeypatch.setattr(data.ArrayUnpickler, "load", lambda self: opened.append(1))
    rebuild(**{info["test"][0]: pickle.dumps(Malice())})
    with pytest.raises(
        ValueError, match=f"{info['test'][0]} of {name} .* does not have the published MD5"
    ):
        load_images(name, "test", root)
    info["md5"] = published
    with pytest.raises(ValueError, match=f"zip does not have the published MD5 {published}"):
        load_images(name, "test", root)
    assert not opened


def test_cifair_pickles_hold_arrays_and_nothing_else(cifair):
    name, _, files, info, root, rebuild = cifair
    bad = pickle.dumps({"data": Malice(), "labels": [0]})
    info["test"] = (info["test"][0], md5(bad))
    rebuild(**{info["test"][0]: bad})
    with pytest.raises(
        pickle.UnpicklingError, match="builtins.exec is not what an array is made of"
    ):
        load_images(name, "test", root)


def test_cifair_download(cifair, monkeypatch):
    name, _, files, info, root, _ = cifair
    source = root / f"{info['folder']}.zip"
    monkeypatch.setitem(data.CIFAIR, name, info | dict(url=source.as_uri()))
    fetched_from_disk(monkeypatch)
    assert len(load_images(name, "test", root / "fresh", download=True)) == 10 and [
        p.name for p in (root / "fresh").iterdir()
    ] == [source.name]
    source.write_bytes(source.read_bytes()[:-7])
    with pytest.raises(ConnectionError, match="could not fetch"):
        load_images(name, "test", root / "broken", download=True)
    assert not list((root / "broken").iterdir())


def test_published_checksums():
    assert [(c["md5"], *c["test"]) for c in CIFAIR.values()] == [
        ("ca08fd390f0839693d3fc45c4e49585f", "test_batch", "01290e6b622a1977a000eff13650aca2"),
        ("ddc236ab4b12eeb8b20b952614861a33", "test", "8130dae8d6fc6a436437f0ebdb801df1"),
    ]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "value",
    [
        np.arange(6, dtype=np.uint8).reshape(2, 3),
        np.float64(1.5),
        np.arange(3.0),
        [1, "ä", b"x", None, True, 2.5],
        {1, 2},
        (bytearray(b"a"), frozenset([1]), 1j),
    ],
)
def test_unpickler_opens_what_it_should(protocol, value):
    got = data.ArrayUnpickler(io.BytesIO(pickle.dumps(dict(v=value), protocol))).load()["v"]
    assert (
        type(got) is type(value) and np.array_equal(got, value)
        if isinstance(value, np.ndarray)
        else got == value
    )


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", [Malice(), print, eval, os.system, getattr, Path("x"), type])
def test_unpickler_refuses_the_rest(protocol, value):
    with pytest.raises(pickle.UnpicklingError, match="is not what an array is made of"):
        data.ArrayUnpickler(io.BytesIO(pickle.dumps([value], protocol))).load()


# ------------------------------------------------------------------ real data, where it is


def real(folder):
    root = os.environ.get("HYDRAMIX_DATA")
    if not root or not (Path(root) / folder).exists():
        pytest.skip(f"needs {folder} under $HYDRAMIX_DATA")


def test_real_cifar10_arrays():
    real("cifar10")
    train, test = load_images("npz:cifar10"), load_images("npz:cifar10", "test")
    assert (
        train.images.shape == (5000, 3, 32, 32)
        and len(test) == 9692
        and train.classes == test.classes
        and train.classes[0] == "airplane"
    )
    assert train.few_shot(5, 0).images.shape == (50, 3, 32, 32)


def test_real_picture_folders():
    real("imagenette")
    train, test = (
        load_images("folder:imagenette"),
        load_images("folder:imagenette", "test", size=32),
    )
    assert (
        train.images.shape == (1000, 3, 96, 96)
        and test.images.shape == (1000, 3, 32, 32)
        and train.classes == test.classes
    )
