"WordNet: the tables of ids, the real lexicon, folders, threads, odd files."

import csv
import errno
import gzip
import os
import re
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import hydramix_nb
from hydramix_nb import wordnet
from hydramix_nb.data import load_images

wn = pytest.importorskip("wn", reason='needs pip install "hydramix-nb[cse]"')
OEWN = Path(os.environ.get("HYDRAMIX_DATA", "/nowhere")) / "oewn"
COMPLETE, MINI = OEWN / "english-wordnet-2024.xml.gz", OEWN / "oewn-2024-mini.xml.gz"
needs_oewn = pytest.mark.skipif(
    not COMPLETE.is_file(), reason="needs oewn/english-wordnet-2024.xml.gz in $HYDRAMIX_DATA"
)


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    return wordnet.Lexicon(COMPLETE, directory=tmp_path_factory.mktemp("oewn"))


@pytest.fixture
def photos_xml(tmp_path):
    return wordnet.photo_lexicon(tmp_path / "photos.xml")


def table(name):
    path = Path(hydramix_nb.__file__).with_name(name)
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# the tables of the package


def test_class_synsets_are_well_formed():
    rows = table("class_synsets.csv")
    assert list(rows[0]) == ["dataset", "class", "synset", "words"]
    keys = [(row["dataset"], row["class"]) for row in rows]
    assert len(set(keys)) == len(keys)
    for row in rows:
        assert None not in row and all(v and v == v.strip() for v in row.values()), row
        assert re.fullmatch(r"oewn-\d{8}-n|photos-[a-z_]+", row["synset"]), row
        if row["dataset"] == "imagenet":
            assert re.fullmatch(r"n\d{8}", row["class"]), row
    counts = {name: len(ids) for name, ids in wordnet.CLASS_SYNSETS.items()}
    assert counts == dict(
        photos=10,
        cifar10=10,
        stl10=10,
        cifar100=100,
        imagenet=1000,
        cifair10=10,
        cifair100=100,
        imagenette=1000,
        tiny_imagenet=1000,
    )
    assert list(wordnet.CLASS_SYNSETS["photos"]) == load_images("photos").classes


def test_photo_synsets_are_well_formed():
    rows = table("photo_synsets.csv")
    assert list(rows[0]) == ["synset", "hypernym", "words", "description"]
    seen = set()
    for row in rows:
        assert None not in row and all(v == v.strip() for v in row.values()), row
        assert row["words"] and row["description"], row
        assert row["synset"].startswith("photos-") and row["synset"] not in seen
        assert row["hypernym"] in seen or row["synset"] == "photos-thing"
        seen.add(row["synset"])
    assert seen >= set(wordnet.CLASS_SYNSETS["photos"].values())


@needs_oewn
def test_words_of_the_table_are_those_of_the_complete_wordnet(complete):
    photos = wordnet.load_lexicon("photos")
    for row in table("class_synsets.csv"):
        lexicon = photos if row["dataset"] == "photos" else complete
        synonyms = lexicon.synset(row["synset"]).synonyms
        assert row["words"] == ", ".join(synonyms), row
        if row["dataset"] in ("cifar10", "stl10"):
            assert row["class"] in synonyms


@needs_oewn
def test_leaves_of_the_complete_wordnet(complete):
    kinds = wordnet.hyponyms_by_class(complete, wordnet.CLASS_SYNSETS["cifar100"])
    assert [c for c, k in kinds.items() if not k] == ["castle", "skyscraper", "television"]
    imagenet = wordnet.CLASS_SYNSETS["imagenet"].values()
    assert sum(not complete.hyponyms(id) for id in imagenet) == 640


@needs_oewn
def test_hyponyms_of_the_complete_wordnet(complete):
    ids = wordnet.CLASS_SYNSETS["cifar10"]
    assert complete.candidates("cat")[0][0] == ids["cat"]
    kinds = wordnet.hyponyms_by_class(complete, ids)
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
    words = {c: {w for s in k for w in s.synonyms} for c, k in kinds.items()}
    assert {"puppy", "police dog", "Chihuahua"} <= words["dog"]
    assert {"biplane", "hydroplane"} <= words["airplane"]
    n = len(kinds["ship"])
    assert len(complete.hyponyms(ids["ship"], instances=True)) > n
    assert len(complete.hyponyms(ids["ship"], include_self=True)) == n + 1


@needs_oewn
def test_mini_wordnet_agrees_with_the_complete_one(complete):
    mini = wordnet.Lexicon(MINI)
    for name in ("cifar10", "stl10"):
        ids = wordnet.CLASS_SYNSETS[name]
        expected = wordnet.hyponyms_by_class(complete, ids)
        assert wordnet.hyponyms_by_class(mini, ids) == expected


# folders


def test_nothing_is_written_outside_the_named_folder(tmp_path):
    "A fresh home stays empty, wn's own settings stay as they were"
    code = """
import sys, wn
from hydramix_nb import wordnet
before = wn.config.database_path, wn.config.allow_multithreading, wn._db.pool
path = wordnet.photo_lexicon(sys.argv[1] + "/photos.xml")
lexicon = wordnet.Lexicon(path, directory=sys.argv[1] + "/db")
assert len(lexicon.hyponyms("photos-cat")) == 4
assert len(wordnet.load_lexicon("photos").hyponyms("photos-cat")) == 4
try: wordnet.Lexicon("oewn:2024")
except FileNotFoundError as e: assert "12 MB" in str(e)
else: raise AssertionError
assert (wn.config.database_path, wn.config.allow_multithreading, wn._db.pool) == before
"""
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    env = {k: v for k, v in os.environ.items() if k != "WN_DATA_DIR"} | {"HOME": str(home)}
    subprocess.run([sys.executable, "-c", code, str(work)], env=env, check=True)
    assert not (home / ".wn_data").exists()
    assert [p.name.split("-")[0] for p in (work / "db").iterdir()] == ["photos"]


def test_tests_know_nothing_of_the_home():
    assert Path.home() not in wn.config.database_path.parents


def test_database_is_made_once_and_follows_the_file(tmp_path, monkeypatch, photos_xml):
    wordnet.Lexicon(photos_xml, tmp_path / "db")
    with monkeypatch.context() as m:
        m.setattr(wn, "add", None)
        assert len(wordnet.Lexicon(photos_xml, tmp_path / "db").hyponyms("photos-cat")) == 4
    synsets = [
        ("photos-cat", None, ["cat"], ""),
        ("photos-tom", "photos-cat", ["tom"], "a male cat"),
    ]
    wordnet.write_lexicon(photos_xml, synsets, name="photos")
    kinds = wordnet.Lexicon(photos_xml, tmp_path / "db").hyponyms("photos-cat")
    assert [s.text for s in kinds] == ["tom : a male cat"]


def test_download_by_name(tmp_path, monkeypatch, photos_xml):
    "wn's own download, without network: what it would fetch is added instead"
    monkeypatch.setattr(wn, "download", lambda name: wn.add(photos_xml, progress_handler=None))
    db = tmp_path / "db"
    with pytest.raises(FileNotFoundError, match="download=True"):
        wordnet.Lexicon("photos:1", db)
    with pytest.raises(FileNotFoundError):
        wordnet.Lexicon("photos:1", download=True)
    lexicon = wordnet.Lexicon("photos:1", db, download=True)
    assert len(lexicon.hyponyms("photos-cat")) == 4
    monkeypatch.setattr(wn, "download", None)
    assert len(wordnet.Lexicon("photos:1", db).hyponyms("photos-cat")) == 4

    def offline(name):
        raise wn.Error("download failed")

    monkeypatch.setattr(wn, "download", offline)
    with pytest.raises(FileNotFoundError, match="could not be downloaded"):
        wordnet.Lexicon("oewn:2024", db, download=True)


# threads


def test_lexicons_of_many_threads(tmp_path, photos_xml):
    "Each thread makes lexicons and asks those of the others, in files of their own and in one"
    first = wordnet.Lexicon(photos_xml)

    def work(i):
        lexicons = [
            first,
            wordnet.Lexicon(photos_xml),
            wordnet.Lexicon(photos_xml, tmp_path / "shared"),
            wordnet.Lexicon(photos_xml, tmp_path / f"own-{i}"),
        ]
        return lexicons, [len(lexicon.hyponyms("photos-thing")) for lexicon in lexicons]

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, range(8)))
    for lexicons, counts in results:
        assert counts == [41] * 4
        for lexicon in lexicons:
            assert lexicon.synset("photos-cat").synonyms[0] == "cat"
    assert len(wordnet.Lexicon(photos_xml).candidates("cat")) == 1


def test_the_users_own_connections_are_left_alone(tmp_path, photos_xml):
    "wn used by itself before, meanwhile in another thread's lexicon, and afterwards"
    wn.add(photos_xml, progress_handler=None)
    assert [lexicon.id for lexicon in wn.lexicons()] == ["photos"]
    with ThreadPoolExecutor(1) as pool:
        lexicon = pool.submit(wordnet.Lexicon, photos_xml).result()
        by_name = pool.submit(wordnet.Lexicon, "photos:1").result()
    assert [lexicon.id for lexicon in wn.lexicons()] == ["photos"]
    assert lexicon.hyponyms("photos-cat") == by_name.hyponyms("photos-cat")
    wn.remove("photos:1", progress_handler=None)


# errors say what was wrong


def test_damaged_and_foreign_files(tmp_path, photos_xml):
    content = photos_xml.read_bytes()
    for name, damaged in {
        "cut.xml": content[: len(content) // 2],
        "other.xml": b"<html></html>",
        "empty.xml": b"",
        "cut.xml.gz": gzip.compress(content)[:500],
    }.items():
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=name):
            wordnet.Lexicon(tmp_path / name, tmp_path / "db")
    assert not list((tmp_path / "db").iterdir()), "a failed reading leaves nothing behind"


@pytest.mark.parametrize(
    "error",
    [
        sqlite3.OperationalError("database or disk is full"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_a_full_disk_is_no_damaged_file(tmp_path, monkeypatch, photos_xml, error):
    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr(wn, "add", full)
    with pytest.raises(OSError, match="full|No space"):
        wordnet.Lexicon(photos_xml, tmp_path / "db")
    assert not list((tmp_path / "db").iterdir())


def test_an_error_of_the_database_is_no_missing_synset(monkeypatch, photos_xml):
    lexicon = wordnet.Lexicon(photos_xml)

    def broken(self, id):
        raise sqlite3.DatabaseError("database disk image is malformed")

    monkeypatch.setattr(wn.Wordnet, "synset", broken)
    with pytest.raises(sqlite3.DatabaseError, match="malformed"):
        lexicon.synset("photos-cat")


def test_own_lexicon_with_awkward_words(tmp_path):
    synsets = [
        ("own-root", None, ["root"], "the <top> & all"),
        ("own-a", "own-root", ["a & b", 'the "quoted"'], "x < y"),
        ("own-b", "own-a", ["ü"], ""),
    ]
    lexicon = wordnet.Lexicon(wordnet.write_lexicon(tmp_path / "own.xml", synsets))
    kinds = [s.text for s in lexicon.hyponyms("own-root")]
    assert kinds == ['a & b, the "quoted" : x < y', "ü"]
    assert lexicon.synset("own-root").definition == "the <top> & all"


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "wn", None)
    with pytest.raises(ImportError, match=re.escape('pip install "hydramix-nb[cse]"')):
        wordnet.Lexicon("oewn:2024")
