"InstructPix2Pix: loading, running with random weights, filling a folder of edited images."

import shutil
import sys

import pytest
import torch
from variants import FAST, PROMPTS, TRAIN, needs_diffusers, pictures

from hydramix_nb import editing
from hydramix_nb.data import load_images
from hydramix_nb.diffusemix import _image_key, read_variants
from hydramix_nb.editing import generate_variants
from hydramix_nb.files import weights_digest, write_png

# the diffusion model


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    return editing.tiny_pipeline(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tiny(tiny_folder):
    return editing.load_pipeline(tiny_folder)


@pytest.fixture
def copied(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "copy")


def without_weights(part):
    for p in part.glob("*.safetensors"):
        p.unlink()


@needs_diffusers
def test_a_pipeline_comes_back_as_it_was_saved(tiny, tiny_folder):
    assert list(tiny_folder.rglob("*.safetensors")) and not list(tiny_folder.rglob("*.bin"))
    assert (
        type(tiny).__name__ == "StableDiffusionInstructPix2PixPipeline"
        and type(tiny.scheduler).__name__ == "EulerAncestralDiscreteScheduler"
    )
    assert tiny.safety_checker is None and tiny.dtype == torch.float32
    again = editing.load_pipeline(str(tiny_folder))
    settings = dict(prompts=PROMPTS, seeds=[1, 2], size=16, steps=2)
    assert torch.equal(
        editing.edit(tiny, TRAIN.images[:2], **settings),
        editing.edit(again, TRAIN.images[:2], **settings),
    )


@needs_diffusers
def test_weights_are_loaded_in_the_type_asked_for(tiny_folder):
    assert editing.load_pipeline(tiny_folder, dtype=torch.bfloat16).unet.dtype == torch.bfloat16


@needs_diffusers
def test_pickles_are_refused(copied):
    without_weights(copied / "text_encoder")
    (copied / "text_encoder/pytorch_model.bin").write_bytes(b"not even a pickle")
    with pytest.raises(
        ValueError,
        match=r"text_encoder holds pytorch_model\.bin, which is a pickle.*safe_serialization=True",
    ):
        editing.load_pipeline(copied)


@needs_diffusers
def test_pickles_beside_safetensors_are_not_opened(copied, tiny):
    (copied / "unet/diffusion_pytorch_model.bin").write_bytes(b"not even a pickle")
    pipeline = editing.load_pipeline(copied)
    assert weights_digest(pipeline.unet) == weights_digest(tiny.unet)


@needs_diffusers
def test_missing_weights_are_named(copied, tmp_path):
    without_weights(copied / "unet")
    with pytest.raises(FileNotFoundError, match="copy is not whole .*hf download"):
        editing.load_pipeline(copied)
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere"):
        editing.load_pipeline(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no model_index\.json"):
        editing.load_pipeline(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"there is no folder weights;.*timbrooks/instruct-pix2pix"
    ):
        editing.load_pipeline("weights")


@needs_diffusers
@pytest.mark.parametrize(
    "download, message", [(False, "is not on this machine"), (True, "could not be fetched")]
)
def test_a_model_that_cannot_be_had_says_what_to_do(download, message, monkeypatch):
    import diffusers

    asked = {}

    def unreachable(name, **settings):
        asked.update(settings)
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(
        diffusers.StableDiffusionInstructPix2PixPipeline, "from_pretrained", unreachable
    )
    with pytest.raises(
        FileNotFoundError,
        match=f"{message} .no route to host.*download=True.*hf download .* give its path as the "
        "model",
    ):
        editing.load_pipeline("timbrooks/instruct-pix2pix", download=download)
    assert asked["use_safetensors"] is True and asked["local_files_only"] is not download


@needs_diffusers
def test_another_kind_of_diffusion_model_is_refused(tiny, tmp_path):
    import diffusers

    unet = diffusers.UNet2DConditionModel.from_config(dict(tiny.unet.config, in_channels=4))
    diffusers.StableDiffusionInstructPix2PixPipeline(
        tiny.vae,
        tiny.text_encoder,
        tiny.tokenizer,
        unet,
        tiny.scheduler,
        None,
        None,
        requires_safety_checker=False,
    ).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="no InstructPix2Pix: its UNet takes 4 channels"):
        editing.load_pipeline(tmp_path / "other")


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"hydramix-nb\[diffusion\]"):
        editing.load_pipeline("nobody/nothing")


@needs_diffusers
@pytest.mark.parametrize("channels, size", [(3, 16), (1, 16), (3, 13)])
def test_edits_have_the_form_of_their_originals(tiny, channels, size):
    images = pictures(3, size, channels).images
    out = editing.edit(tiny, images, ["snowy"] * 3, [0, 1, 2], size=16, steps=2)
    assert out.shape == images.shape and out.dtype == torch.uint8 and not torch.equal(out, images)


@needs_diffusers
def test_guidance_and_steps_reach_the_model(tiny):
    def run(**changes):
        return editing.edit(
            tiny, TRAIN.images[:1], ["snowy"], [0], **{**dict(size=16, steps=2), **changes}
        )

    assert torch.equal(run(), run(guidance=4.0, image_guidance=1.5))
    for changes in (dict(guidance=9.0), dict(image_guidance=3.0), dict(steps=3), dict(size=20)):
        assert not torch.equal(run(), run(**changes))
    with pytest.raises(ValueError, match="size=18: .* multiple of 4"):
        run(size=18)
    with pytest.raises(ValueError, match="steps=0"):
        run(steps=0)


@needs_diffusers
def test_pixels_that_are_not_finite_are_an_error(tiny_folder):
    broken = editing.load_pipeline(tiny_folder)
    with torch.no_grad():
        broken.vae.decoder.conv_out.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"dtype=torch\.float32"):
        editing.edit(broken, TRAIN.images[:1], ["snowy"], [0], size=16, steps=1)


# the folder of edited images


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.png")}


@needs_diffusers
def test_an_interrupted_run_goes_on_to_the_same_images(tiny, tmp_path, monkeypatch):
    generate_variants(tiny, TRAIN, tmp_path / "undisturbed", PROMPTS, **FAST)
    edit, write, calls = editing.edit, write_png, []

    def fail(path, image):
        calls.append(path)
        if len(calls) == 6:
            raise KeyboardInterrupt
        write(path, image)

    monkeypatch.setattr(editing, "write_png", fail)
    with pytest.raises(KeyboardInterrupt):
        generate_variants(tiny, TRAIN, tmp_path / "interrupted", PROMPTS, **FAST)
    monkeypatch.undo()
    assert len(files(tmp_path / "interrupted")) == 5
    batches = []
    monkeypatch.setattr(
        editing,
        "edit",
        lambda pipeline, images, *a, **k: (
            batches.append(len(images)) or edit(pipeline, images, *a, **k)
        ),
    )
    generate_variants(tiny, TRAIN, tmp_path / "interrupted", PROMPTS, **FAST)
    assert batches == [4, 4], "the first batch was whole"
    assert (
        files(tmp_path / "interrupted") == files(tmp_path / "undisturbed")
        and len(files(tmp_path / "undisturbed")) == 12
    )
    assert not [p for p in tmp_path.rglob("*") if "partial" in p.name]


@needs_diffusers
def test_images_depend_on_neither_order_nor_batch_nor_the_other_images(tiny, tmp_path):
    generate_variants(tiny, TRAIN, tmp_path / "one", PROMPTS, **FAST)
    generate_variants(
        tiny, TRAIN[[5, 0, 3]], tmp_path / "other", PROMPTS[::-1], batch_size=5, **FAST
    )
    a, b = (read_variants(TRAIN[[0, 3, 5]], tmp_path / name)[0].int() for name in ("one", "other"))
    assert (a - b).abs().max() <= 1
    assert len({v for v in files(tmp_path / "one").values()}) == 12


@needs_diffusers
def test_a_text_is_one_prompt(tiny, tmp_path):
    generate_variants(tiny, TRAIN[:1], tmp_path / "made", "snowy", **FAST)
    assert read_variants(TRAIN[:1], tmp_path / "made")[1] == ["snowy"]


@needs_diffusers
def test_one_folder_serves_all_draws(tiny, tmp_path, monkeypatch):
    data, made = load_images("photos", size=16), []
    edit = editing.edit
    monkeypatch.setattr(
        editing,
        "edit",
        lambda pipeline, images, *a, **k: (
            made.extend(_image_key(i) for i in images) or edit(pipeline, images, *a, **k)
        ),
    )
    generate_variants(tiny, data.few_shot(1, seed=0), tmp_path / "all", PROMPTS[:1], **FAST)
    generate_variants(
        tiny, data.few_shot(2, seed=0), tmp_path / "all", PROMPTS[:1], batch_size=1, **FAST
    )
    assert len(made) == len(set(made)) == 20
    for n in (1, 2):
        assert read_variants(data.few_shot(n, seed=0), tmp_path / "all")[0].shape == (
            10 * n,
            1,
            3,
            16,
            16,
        )


@needs_diffusers
@pytest.mark.parametrize(
    "changes",
    [
        dict(steps=3),
        dict(guidance=5.0),
        dict(image_guidance=2.0),
        dict(template="turn it into {}"),
        dict(seed=1),
        dict(size=20),
    ],
    ids=str,
)
def test_a_folder_keeps_to_one_way_of_making(tiny, tmp_path, changes):
    generate_variants(tiny, TRAIN[:1], tmp_path / "made", PROMPTS[:1], **FAST)
    before = files(tmp_path / "made")
    with pytest.raises(
        ValueError, match=f"made with other {next(iter(changes))}: name another folder"
    ):
        generate_variants(tiny, TRAIN[:1], tmp_path / "made", PROMPTS[:1], **{**FAST, **changes})
    generate_variants(tiny, TRAIN[:1], tmp_path / "other", PROMPTS[:1], **{**FAST, **changes})
    assert files(tmp_path / "made") == before and files(tmp_path / "other") != before


@needs_diffusers
def test_other_weights_need_another_folder(tiny, tmp_path):
    generate_variants(tiny, TRAIN[:1], tmp_path / "made", PROMPTS[:1], **FAST)
    other = editing.load_pipeline(editing.tiny_pipeline(tmp_path / "pipeline", seed=1))
    with pytest.raises(ValueError, match="made with other weights"):
        generate_variants(other, TRAIN[:1], tmp_path / "made", PROMPTS[:1], **FAST)


@needs_diffusers
@pytest.mark.parametrize(
    "train, settings, message",
    [
        (TRAIN, dict(prompts=[]), "one or more, each once"),
        (TRAIN, dict(prompts=["snowy", "snowy"]), "each once"),
        (TRAIN, dict(prompts=["snowy", " "]), "prompt ' ': a text"),
        (TRAIN, dict(prompts=["s" * 300]), "1 to 200 letters"),
        (TRAIN, dict(template="snowy"), "no {} for the prompt"),
        (pictures(channels=4), {}, "4 channels"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_cannot_be_edited_is_refused_before_anything_is_written(
    tiny, tmp_path, train, settings, message
):
    with pytest.raises(ValueError, match=message):
        generate_variants(
            tiny, train, tmp_path / "made", **{**dict(prompts=PROMPTS), **FAST, **settings}
        )
    assert not (tmp_path / "made").exists()


@needs_diffusers
def test_a_folder_with_other_things_is_left_alone(tiny, tmp_path):
    (tmp_path / "thesis.txt").write_text("…")
    with pytest.raises(ValueError, match="is not empty"):
        generate_variants(tiny, TRAIN, tmp_path, PROMPTS, **FAST)
