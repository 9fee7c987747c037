"CLIP Synset Entropy: the formula, the metric, memory at full size, odd inputs."

import json
import math
import re
import subprocess
import sys

import pytest
import torch
from bands import BANDS, band_images, band_texts, plain

from hydramix_nb import cse
from hydramix_nb.clip import Encoder
from hydramix_nb.data import ImageSet, to_float
from hydramix_nb.mixing import NMix


@pytest.fixture
def band():
    return Encoder(band_images, band_texts, name="bands")


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


def test_sampled_images_are_the_same_whatever_the_range_of_the_loop():
    images = torch.arange(4 * 3 * 16 * 16).view(4, 3, 16, 16) * 37 % 256
    train, sampled = ImageSet(images.to(torch.uint8), torch.arange(4) // 2, ["a", "b"]), []
    for loop in ({}, dict(mean=(0.485, 0.456, 0.406), std=0.225)):
        torch.manual_seed(0)
        sampled.append(cse.sample_classes(NMix(train, **loop), train.classes, 3, batch_size=2))
    for a, b in zip(*(found.values() for found in sampled), strict=True):
        assert torch.equal(a, b) and a.shape == (3, 3, 16, 16)
    with pytest.raises(ValueError, match="labels from 2 to 2"):
        cse.sample_classes(NMix(train), ["a", "b", "c"], 1)


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


# size


def test_ten_thousand_images_and_hyponyms_in_bounded_memory():
    "10,000 images and 10,000 hyponyms: all similarities would be 400 MB, their votes as much again"
    code = """
import resource, torch
from hydramix_nb import cse
torch.set_num_threads(1)
image = lambda x: x.flatten(1)[:, :64] + torch.linspace(0, .1, 64)
text = lambda t: torch.randn(len(t), 64, generator=torch.Generator().manual_seed(len(t)))
images = torch.randint(256, (10_000, 3, 8, 8), dtype=torch.uint8)
texts = [str(i) for i in range(10_000)]
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
