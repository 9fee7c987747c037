"Encoders: the loading path of OpenCLIP, the cache of texts, a pair trained here, odd inputs."

import json
import re
import sys

import pytest
import torch
import torch.nn.functional as F
from bands import BANDS, band_images, band_texts, plain

from hydramix_nb import clip
from hydramix_nb.data import ImageSet

# text cache


def test_text_cache_is_per_weights_and_texts(tmp_path):
    calls = []

    def count(texts):
        calls.append(len(texts))
        return band_texts(texts)

    a, b = clip.Encoder(band_images, count, name="a"), clip.Encoder(band_images, count, name="b")
    first = a.encode_texts(BANDS, tmp_path)
    assert a.encode_texts(BANDS, tmp_path).equal(first) and calls == [3]
    b.encode_texts(BANDS, tmp_path)
    a.encode_texts(BANDS[:2], tmp_path)
    assert calls == [3, 3, 2]
    assert len(list(tmp_path.iterdir())) == 3 and not list(tmp_path.glob(".*"))


# OpenCLIP


@pytest.fixture
def open_clip():
    return pytest.importorskip("open_clip", reason='needs pip install "hydramix-nb[cse]"')


def test_folder_file_and_tag_give_the_same_vectors(open_clip, tmp_path, monkeypatch):
    "The three ways to real weights, tried with random ones"
    folder = clip.random_clip(tmp_path / "clip")
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "ViT-tiny.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "configs")
    x, texts = plain(*BANDS, size=40), ["a red picture", "a blue one"]
    from_folder = clip.clip_encoder(weights=folder)
    from_file = clip.clip_encoder("ViT-tiny", folder / "open_clip_model.safetensors")
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
    from_tag = clip.clip_encoder("ViT-tiny", "some_tag", download=True)
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
        clip.clip_encoder(weights=clip.random_clip(tmp_path / "other", seed=1)).name.split(":")[-1]
        != from_folder.name.split(":")[-1]
    )


def test_vectors_are_those_of_open_clip(open_clip, tmp_path):
    "Texts exactly; images but for PIL's rounding"
    from PIL import Image

    folder = clip.random_clip(tmp_path / "clip")
    ours = clip.clip_encoder(weights=folder)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    picture = (
        (torch.rand(3, 9, 9, generator=torch.Generator().manual_seed(0)) * 255)
        .to(torch.uint8)
        .repeat_interleave(5, 1)
        .repeat_interleave(7, 2)
    )
    text = "airplane, aeroplane, plane : an aircraft"
    with torch.no_grad():
        image = F.normalize(
            model.encode_image(preprocess(Image.fromarray(picture.permute(1, 2, 0).numpy()))[None]),
            dim=1,
        )
        words = F.normalize(
            model.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")([text])), dim=1
        )
    torch.testing.assert_close(ours.encode_texts([text]), words, atol=1e-6, rtol=1e-5)
    assert F.cosine_similarity(ours.encode_images(picture[None]), image) > 0.9999


def test_weights_are_never_pickles(open_clip, tmp_path, monkeypatch):
    (tmp_path / "w.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="pickle"):
        clip.clip_encoder("ViT-B-16", tmp_path / "w.pt")
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("torch.load was called"))
    clip.clip_encoder(weights=clip.random_clip(tmp_path / "clip"))


def test_missing_weights_say_what_to_fetch(open_clip, tmp_path):
    with pytest.raises(FileNotFoundError) as e:
        clip.clip_encoder(cache_dir=tmp_path)
    for part in (
        "laion/CLIP-ViT-B-16-laion2B-s34B-b88K",
        "open_clip_model.safetensors",
        "600 MB",
        "download=True",
        "pass its path",
    ):
        assert part in str(e.value), part


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ImportError, match=re.escape('pip install "hydramix-nb[cse]"')):
        clip.clip_encoder()


# a pair trained here


def test_trained_pair_repeats_and_learns():
    data = ImageSet(
        plain(*BANDS, n=10, size=16).clone(), torch.arange(3).repeat_interleave(10), BANDS
    )
    texts = {c: f"{c} : a {c} picture" for c in BANDS}
    a, b = (clip._fit_pair(data, texts, steps=30) for _ in range(2))
    assert a.name == b.name
    similarity = a.encode_images(data.images) @ a.encode_texts(texts.values()).T
    assert (similarity.argmax(1) == data.labels).float().mean() > 0.9
    with pytest.raises(ValueError, match="no text for class 'blue'"):
        clip._fit_pair(data, dict(red="x", green="y"))
