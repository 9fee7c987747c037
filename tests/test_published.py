"Archives that are not what they should be, and readers on archives made up for the test."

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
from torchvision import datasets

from hydramix_nb import published
from hydramix_nb.data import load_images

RNG = np.random.RandomState(0)
md5 = lambda raw: hashlib.md5(raw).hexdigest()


class Malice:
    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was run')",)


def cifar_files(reader, n=10, protocol=2):
    "Files of a CIFAR folder, n images each, and a reader class that takes them for published ones"
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
        match=(
            rf"{name} is not at .*{reader.base_folder}; "
            rf"load_images\('{name}', download=True\) fetches it there, 16. MB from https"
        ),
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
    np.savez(tmp_path / "cifar10" / "train.npz", labels=np.arange(2))
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
    info = dict(published._CIFAIR[name])
    member = info["test"][0]
    assert member == reader.test_list[0][0]
    info["test"] = (member, md5(files[member]))

    def rebuild(**changed):
        info["md5"] = archive(
            tmp_path / f"{info['folder']}.zip", info["folder"], files | changed, "zip"
        )
        monkeypatch.setitem(published._CIFAIR, name, info)

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
    md5_of_zip = info["md5"]
    opened = []
    monkeypatch.setattr(published._ArrayUnpickler, "load", lambda self: opened.append(1))
    rebuild(**{info["test"][0]: pickle.dumps(Malice())})
    with pytest.raises(
        ValueError, match=f"{info['test'][0]} of .*zip does not have the published MD5"
    ):
        load_images(name, "test", root)
    info["md5"] = md5_of_zip
    with pytest.raises(ValueError, match=f"zip does not have the published MD5 {md5_of_zip}"):
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
    monkeypatch.setitem(published._CIFAIR, name, info | dict(url=source.as_uri()))
    fetched_from_disk(monkeypatch)
    assert len(load_images(name, "test", root / "fresh", download=True)) == 10 and [
        p.name for p in (root / "fresh").iterdir()
    ] == [source.name]
    source.write_bytes(source.read_bytes()[:-7])
    with pytest.raises(ConnectionError, match="could not fetch"):
        load_images(name, "test", root / "broken", download=True)
    assert not list((root / "broken").iterdir())


def test_published_checksums():
    assert [(c["md5"], *c["test"]) for c in published._CIFAIR.values()] == [
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
    got = published._ArrayUnpickler(io.BytesIO(pickle.dumps(dict(v=value), protocol))).load()["v"]
    assert (
        type(got) is type(value) and np.array_equal(got, value)
        if isinstance(value, np.ndarray)
        else got == value
    )


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", [Malice(), print, eval, os.system, getattr, Path("x"), type])
def test_unpickler_refuses_the_rest(protocol, value):
    with pytest.raises(pickle.UnpicklingError, match="is not what an array is made of"):
        published._ArrayUnpickler(io.BytesIO(pickle.dumps([value], protocol))).load()


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
