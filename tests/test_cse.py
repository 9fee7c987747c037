"CLIP Synset Entropy: the real lexicon, the real loading path of OpenCLIP, memory at full size, odd inputs."

import gzip
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from hydramix_nb import cse
from hydramix_nb.data import ImageSet, to_float

wn = pytest.importorskip("wn", reason='needs pip install "hydramix-nb[cse]"')
OEWN = Path(os.environ.get("HYDRAMIX_DATA", "/nowhere")) / "oewn"
WHOLE, MINI = OEWN / "english-wordnet-2024.xml.gz", OEWN / "oewn-2024-mini.xml.gz"
needs_oewn = pytest.mark.skipif(
    not WHOLE.is_file(), reason="needs oewn/english-wordnet-2024.xml.gz in $HYDRAMIX_DATA"
)

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


@pytest.fixture
def band():
    return cse.Encoder(band_images, band_texts, name="bands")


@pytest.fixture(scope="module")
def atomic_write(tmp_path_factory):
    return cse.Lexicon(WHOLE, directory=tmp_path_factory.mktemp("oewn"))


# the formula


@pytest.mark.parametrize("n,k", [(1, 1), (1, 7), (5, 1), (40, 33)])
def test_distribution_and_entropy_against_the_equations(n, k):
    s = (
        torch.randn(n, k, generator=torch.Generator().manual_seed(n * k), dtype=torch.float64)
        * 0.05
        + 0.25
    )
    p = sum(torch.exp(row / 0.01) / torch.exp(row / 0.01).sum() for row in s) / n
    torch.testing.assert_close(cse.synset_distribution(s), p)
    torch.testing.assert_close(cse.synset_entropy(p), -(p * p.log()).sum())
    torch.testing.assert_close(cse.synset_distribution(s.float()), p.float(), rtol=1e-3, atol=1e-6)


def test_small_votes_survive_many_images():
    s = torch.full((4096, 2), 0.2, dtype=torch.float16)
    s[0, 1] = 0.9
    p = cse.synset_distribution(s)
    assert p.dtype == torch.float32
    assert p[1] - 0.5 == pytest.approx(0.5 / 4096, rel=1e-2)


def test_probabilities_of_zero_have_no_nan():
    assert cse.synset_entropy(torch.tensor([1.0, 0.0, 0.0])) == 0


# the metric


def test_new_kinds_raise_it_and_copies_do_not(band):
    kinds = dict(thing=BANDS)
    one, copies, two, three = (
        cse.cse(dict(thing=x), kinds, band).mean
        for x in (plain("red"), plain("red", n=40), plain("red", "blue"), plain(*BANDS))
    )
    assert one == pytest.approx(0, abs=1e-4)
    assert copies == pytest.approx(one, abs=1e-6)
    assert two == pytest.approx(math.log(2), abs=1e-3)
    assert three == pytest.approx(math.log(3), abs=1e-3)


def test_mean_over_classes_and_company(band):
    r = cse.cse(
        dict(a=plain("red"), b=plain("red", "green")),
        dict(a=BANDS, b=BANDS[:2], unused=BANDS),
        band,
        resamples=50,
    )
    assert r.mean == pytest.approx(sum(r.per_class.values()) / 2)
    assert list(r.per_class) == ["a", "b"]
    b = r.classes["b"]
    assert (b.n_images, b.n_hyponyms, b.bound) == (8, 2, math.log(2))
    assert b.effective == pytest.approx(2, abs=1e-2)
    assert b.single == pytest.approx(0, abs=1e-2)
    assert 0 <= b.interval[0] <= b.interval[1] <= b.bound
    assert json.loads(json.dumps(r.to_dict()))["classes"]["b"]["entropy"] == b.entropy
    assert "mean" in str(r)


def test_image_sets_lists_greyscale_and_other_sizes(band):
    images, kinds = plain(*BANDS), {c: BANDS for c in "ab"}
    data = ImageSet(images, torch.tensor([0] * 6 + [1] * 6), ["a", "b"])
    r = cse.cse(data, kinds, band)
    by_list = cse.cse(
        dict(
            a=[x[:, :4] if i % 2 else x for i, x in enumerate(images[:6])], b=to_float(images[6:])
        ),
        kinds,
        (band_images, band_texts),
    )
    assert by_list.per_class == pytest.approx(r.per_class, abs=1e-6)
    grey = cse.cse(dict(a=torch.zeros(3, 1, 9, 7, dtype=torch.uint8)), kinds, band)
    assert grey.mean == pytest.approx(math.log(3), abs=1e-5)


def test_same_seed_same_interval(band):
    x = dict(a=plain(*BANDS, n=3))
    assert cse.cse(x, dict(a=BANDS), band).interval == cse.cse(x, dict(a=BANDS), band).interval
    assert all(math.isnan(v) for v in cse.cse(x, dict(a=BANDS), band, resamples=0).interval)


@pytest.mark.parametrize(
    "images,kinds,error,message",
    [
        (dict(dog=plain("red")), dict(cat=BANDS), ValueError, "no synsets for class 'dog'"),
        (dict(cat=plain("red")[:0]), dict(cat=BANDS), ValueError, "no images of class 'cat'"),
        (dict(cat=[]), dict(cat=BANDS), ValueError, "no images of class 'cat'"),
        (dict(cat=plain("red")), dict(cat=[]), ValueError, "no hyponyms of class 'cat'"),
        (dict(cat=plain("red")), dict(cat="red"), TypeError, "not to one str"),
        (dict(cat=plain("red")), dict(cat=[3]), TypeError, "Synset or str"),
        ({}, {}, ValueError, "no classes"),
        (dict(cat=torch.zeros(2, 2, 8, 8)), dict(cat=BANDS), ValueError, "[n,3,H,W]"),
        (
            dict(cat=torch.full((2, 3, 8, 8), 255.0)),
            dict(cat=BANDS),
            ValueError,
            "must lie in −1…1",
        ),
        (
            dict(cat=torch.zeros(2, 3, 8, 8, dtype=torch.int64)),
            dict(cat=BANDS),
            TypeError,
            "torch.int64",
        ),
    ],
)
def test_errors_name_the_thing(band, images, kinds, error, message):
    with pytest.raises(error, match=re.escape(message)):
        cse.cse(images, kinds, band)


def test_leaf_skip_needs_a_class_that_is_left(band):
    r = cse.cse(dict(a=plain("red"), leaf=plain("red")), dict(a=BANDS, leaf=[]), band, leaf="skip")
    assert r.skipped == ["leaf"] and list(r.per_class) == ["a"]
    with pytest.raises(ValueError, match="no hyponyms"):
        cse.cse(dict(leaf=plain("red")), dict(leaf=[]), band, leaf="skip")
    with pytest.raises(ValueError, match="'error' or 'skip'"):
        cse.cse(dict(a=plain("red")), dict(a=BANDS), band, leaf="ignore")


def test_failing_encoders_are_named(band):
    kinds = dict(a=BANDS)
    with pytest.raises(ValueError, match="zero, NaN or infinite"):
        cse.cse(dict(a=plain("red")), kinds, (lambda x: band_images(x) / 0, band_texts))
    with pytest.raises(ValueError, match="image function gave"):
        cse.cse(dict(a=plain("red")), kinds, (lambda x: band_images(x)[:1], band_texts))
    with pytest.raises(ValueError, match="does not share a space"):
        cse.cse(dict(a=plain("red")), kinds, (lambda x: band_images(x)[:, :2], band_texts))


# text cache


def test_text_cache_is_per_weights_and_texts(tmp_path):
    calls = []

    def count(texts):
        calls.append(len(texts))
        return band_texts(texts)

    a, b = cse.Encoder(band_images, count, name="a"), cse.Encoder(band_images, count, name="b")
    first = a.encode_texts(BANDS, tmp_path)
    assert a.encode_texts(BANDS, tmp_path).equal(first) and calls == [3]
    b.encode_texts(BANDS, tmp_path)
    a.encode_texts(BANDS[:2], tmp_path)
    assert calls == [3, 3, 2]
    assert len(list(tmp_path.iterdir())) == 3 and not list(tmp_path.glob(".*"))


# lexicon


def test_nothing_is_written_outside_the_named_folder(tmp_path):
    "A fresh home stays empty, wn's own setting stays as it was"
    code = """
import sys, wn
from hydramix_nb import cse
before = wn.config.database_path
lexicon = cse.Lexicon(cse.photo_lexicon(sys.argv[1] + "/photos.xml"), directory=sys.argv[1] + "/db")
assert len(lexicon.hyponyms("photos-cat")) == 4
try: cse.Lexicon("oewn:2024")
except FileNotFoundError as e: assert "12 MB" in str(e)
else: raise AssertionError
assert wn.config.database_path == before
"""
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    env = {k: v for k, v in os.environ.items() if k != "WN_DATA_DIR"} | {"HOME": str(home)}
    subprocess.run([sys.executable, "-c", code, str(work)], env=env, check=True)
    assert not (home / ".wn_data").exists()
    assert [p.name.split("-")[0] for p in (work / "db").iterdir()] == ["photos"]


def test_database_is_made_once_and_follows_the_file(tmp_path, monkeypatch):
    path = cse.photo_lexicon(tmp_path / "x.xml")
    cse.Lexicon(path, tmp_path / "db")
    with monkeypatch.context() as m:
        m.setattr(wn, "add", None)
        assert len(cse.Lexicon(path, tmp_path / "db").hyponyms("photos-cat")) == 4
    cse.write_lexicon(
        path,
        [("photos-cat", None, ["cat"], ""), ("photos-tom", "photos-cat", ["tom"], "a male cat")],
        name="photos",
    )
    assert [s.text for s in cse.Lexicon(path, tmp_path / "db").hyponyms("photos-cat")] == [
        "tom : a male cat"
    ]


def test_damaged_and_foreign_files(tmp_path):
    whole = cse.photo_lexicon(tmp_path / "photos.xml").read_bytes()
    for name, content in {
        "cut.xml": whole[: len(whole) // 2],
        "other.xml": b"<html></html>",
        "empty.xml": b"",
        "cut.xml.gz": gzip.compress(whole)[:500],
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            cse.Lexicon(tmp_path / name, tmp_path / "db")
    assert not [p for p in (tmp_path / "db").iterdir()], "a failed reading leaves nothing behind"


def test_own_lexicon_with_awkward_words(tmp_path):
    synsets = [
        ("own-root", None, ["root"], "the <top> & all"),
        ("own-a", "own-root", ["a & b", 'the "quoted"'], "x < y"),
        ("own-b", "own-a", ["ü"], ""),
    ]
    lexicon = cse.Lexicon(cse.write_lexicon(tmp_path / "own.xml", synsets))
    assert [s.text for s in lexicon.hyponyms("own-root")] == ['a & b, the "quoted" : x < y', "ü"]
    assert lexicon.synset("own-root").definition == "the <top> & all"


def test_download_by_name(tmp_path, monkeypatch):
    "wn's own download, without network: what it would fetch is added instead"
    path = cse.photo_lexicon(tmp_path / "photos.xml")
    monkeypatch.setattr(wn, "download", lambda name: wn.add(path, progress_handler=None))
    with pytest.raises(FileNotFoundError, match="download=True"):
        cse.Lexicon("photos:1", tmp_path / "db")
    with pytest.raises(FileNotFoundError):
        cse.Lexicon("photos:1", download=True)
    assert len(cse.Lexicon("photos:1", tmp_path / "db", download=True).hyponyms("photos-cat")) == 4
    monkeypatch.setattr(wn, "download", None)
    assert len(cse.Lexicon("photos:1", tmp_path / "db").hyponyms("photos-cat")) == 4

    def offline(name):
        raise wn.Error("download failed")

    monkeypatch.setattr(wn, "download", offline)
    with pytest.raises(FileNotFoundError, match="could not be downloaded"):
        cse.Lexicon("oewn:2024", tmp_path / "db", download=True)


@needs_oewn
def test_every_pinned_synset_is_in_the_whole_wordnet(whole):
    for table, ids in cse.CLASS_SYNSETS.items():
        if table == "photos":
            continue
        for c, i in ids.items():
            found = whole.synset(i)
            if table in ("cifar10", "stl10"):
                assert c in found.synonyms
    leaves = [
        c for c, k in cse.hyponyms_by_class(whole, cse.CLASS_SYNSETS["cifar100"]).items() if not k
    ]
    assert leaves == ["castle", "skyscraper", "television"]
    assert sum(not whole.hyponyms(i) for i in cse.CLASS_SYNSETS["imagenet"].values()) == 640


@needs_oewn
def test_hyponyms_of_the_whole_wordnet(whole):
    assert whole.candidates("cat")[0][0] == cse.CLASS_SYNSETS["cifar10"]["cat"]
    kinds = cse.hyponyms_by_class(whole, cse.CLASS_SYNSETS["cifar10"])
    assert {c: len(k) for c, k in kinds.items()} == dict(
        airplane=32,
        automobile=41,
        bird=871,
        cat=38,
        deer=23,
        dog=189,
        frog=53,
        horse=87,
        ship=84,
        truck=25,
    )
    words = {w for s in kinds["dog"] for w in s.synonyms}
    assert {"puppy", "police dog", "Chihuahua"} <= words
    assert {"biplane", "hydroplane"} <= {w for s in kinds["airplane"] for w in s.synonyms}
    ship = cse.CLASS_SYNSETS["cifar10"]["ship"]
    assert (
        len(whole.hyponyms(ship, instances=True))
        > len(kinds["ship"])
        == len(whole.hyponyms(ship, include_self=True)) - 1
    )


@needs_oewn
def test_mini_wordnet_agrees_with_the_whole(whole):
    mini = cse.Lexicon(MINI)
    for table in ("cifar10", "stl10"):
        assert cse.hyponyms_by_class(mini, cse.CLASS_SYNSETS[table]) == cse.hyponyms_by_class(
            whole, cse.CLASS_SYNSETS[table]
        )


# OpenCLIP


@pytest.fixture
def open_clip():
    return pytest.importorskip("open_clip", reason='needs pip install "hydramix-nb[cse]"')


def test_folder_file_and_tag_give_the_same_vectors(open_clip, tmp_path, monkeypatch):
    "The three ways to real weights, tried with random ones"
    folder = cse.random_clip(tmp_path / "clip")
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "ViT-tiny.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "configs")
    x, texts = plain(*BANDS, size=40), ["a red picture", "a blue one"]
    from_folder = cse.clip_encoder(weights=folder)
    from_file = cse.clip_encoder("ViT-tiny", folder / "open_clip_model.safetensors")
    import huggingface_hub

    asked = []
    monkeypatch.setattr(
        open_clip,
        "get_pretrained_cfg",
        lambda model, tag: dict(
            hf_hub="someone/ViT-tiny/",
            mean=(0.48145466, 0.4578275, 0.40821073),
            std=(0.26862954, 0.26130258, 0.27577711),
        ),
    )

    def fetch(repository, file, cache_dir, local_files_only):
        asked.append((repository, file, local_files_only))
        return str(folder / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    from_tag = cse.clip_encoder("ViT-tiny", "some_tag", download=True)
    assert asked == [("someone/ViT-tiny", "open_clip_model.safetensors", False)]
    for encoder in (from_file, from_tag):
        torch.testing.assert_close(
            encoder.encode_images(x), from_folder.encode_images(x), atol=1e-5, rtol=1e-4
        )
        torch.testing.assert_close(
            encoder.encode_texts(texts), from_folder.encode_texts(texts), atol=1e-5, rtol=1e-4
        )
        assert encoder.name.split(":")[-1] == from_folder.name.split(":")[-1], (
            "the name follows the weights"
        )
    assert (
        cse.clip_encoder(weights=cse.random_clip(tmp_path / "other", seed=1)).name.split(":")[-1]
        != from_folder.name.split(":")[-1]
    )


def test_vectors_are_those_of_open_clip(open_clip, tmp_path):
    "Texts exactly; images but for PIL's rounding"
    from PIL import Image

    folder = cse.random_clip(tmp_path / "clip")
    ours = cse.clip_encoder(weights=folder)
    clip, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    clip.eval()
    picture = (
        (torch.rand(3, 9, 9, generator=torch.Generator().manual_seed(0)) * 255)
        .to(torch.uint8)
        .repeat_interleave(5, 1)
        .repeat_interleave(7, 2)
    )
    text = "airplane, aeroplane, plane : an aircraft"
    with torch.no_grad():
        image = F.normalize(
            clip.encode_image(preprocess(Image.fromarray(picture.permute(1, 2, 0).numpy()))[None]),
            dim=1,
        )
        words = F.normalize(
            clip.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")([text])), dim=1
        )
    torch.testing.assert_close(ours.encode_texts([text]), words, atol=1e-6, rtol=1e-5)
    assert F.cosine_similarity(ours.encode_images(picture[None]), image) > 0.9999


def test_weights_are_never_pickles(open_clip, tmp_path, monkeypatch):
    (tmp_path / "w.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="pickle"):
        cse.clip_encoder("ViT-B-16", tmp_path / "w.pt")
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("torch.load was called"))
    cse.clip_encoder(weights=cse.random_clip(tmp_path / "clip"))


def test_missing_weights_say_what_to_fetch(open_clip, tmp_path):
    with pytest.raises(FileNotFoundError) as e:
        cse.clip_encoder(cache_dir=tmp_path)
    for part in (
        "laion/CLIP-ViT-B-16-laion2B-s34B-b88K",
        "open_clip_model.safetensors",
        "600 MB",
        "download=True",
        "pass its path",
    ):
        assert part in str(e.value), part


def test_missing_packages_name_the_extra(monkeypatch, tmp_path):
    for module, call in {
        "wn": lambda: cse.Lexicon("oewn:2024"),
        "open_clip": lambda: cse.clip_encoder(),
    }.items():
        with monkeypatch.context() as m:
            m.setitem(sys.modules, module, None)
            with pytest.raises(ImportError, match=re.escape('pip install "hydramix-nb[cse]"')):
                call()


def test_import_needs_no_extra():
    code = "import sys; sys.modules.update(wn=None, open_clip=None, pacmap=None); import hydramix_nb.cse"
    subprocess.run([sys.executable, "-c", code], check=True)


# size


def test_ten_thousand_images_and_hyponyms_in_bounded_memory():
    "One class of 10,000 images and 10,000 hyponyms: all similarities at once would be 400 MB, and their votes as much again"
    code = """
import resource, torch
from hydramix_nb import cse
torch.set_num_threads(1)
image = lambda x: x.flatten(1)[:, :64] + torch.linspace(0, .1, 64)
text = lambda t: torch.randn(len(t), 64, generator=torch.Generator().manual_seed(len(t)))
images, texts = torch.randint(256, (10_000, 3, 8, 8), dtype=torch.uint8), [str(i) for i in range(10_000)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
r = cse.cse(dict(a=images), dict(a=texts), (image, text), resamples=20)
assert r.classes["a"].n_images == 10_000 and 0 < r.mean < r.classes["a"].bound
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    grown = int(
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout
    )
    assert grown < 450_000, f"{grown // 1000} MB more than before"


# a pair trained here


def test_trained_pair_repeats_and_learns():
    data = ImageSet(
        plain(*BANDS, n=10, size=16).clone(), torch.arange(3).repeat_interleave(10), BANDS
    )
    texts = {c: f"{c} : a {c} picture" for c in BANDS}
    a, b = (cse.fit_pair(data, texts, steps=30) for _ in range(2))
    assert a.name == b.name
    similarity = a.encode_images(data.images) @ a.encode_texts(texts.values()).T
    assert (similarity.argmax(1) == data.labels).float().mean() > 0.9
    with pytest.raises(ValueError, match="no text for class 'blue'"):
        cse.fit_pair(data, dict(red="x", green="y"))
