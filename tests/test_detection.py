"Detection: pycocotools as the judge, sets that do not fit, trainings that are broken off."

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("pycocotools")

from small_coco import COCO_TINY, make, needs_coco, perfect
from test_scenes import GOOD

from hydramix_nb import backbones, detection, scene_mixing, speed
from hydramix_nb.detection import _coco_results, average_precision
from hydramix_nb.files import write_tensors
from hydramix_nb.scene_mixing import SceneMix, Squares, mixed_boxes, object_mask
from hydramix_nb.scenes import Scenes, _read_annotations, n_shot, read_coco

TINY = detection.profile("tiny")


def judged_directly(path, found):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO(str(path))
    evaluation = COCOeval(truth, truth.loadRes([dict(f) for f in found]), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return [100 * v for v in evaluation.stats[:3]]


def noisy(scenes, seed, spread=4.0):
    "Finds that are near the truth, some of another class, some missing"
    g, found = torch.Generator().manual_seed(seed), []
    for i in range(len(scenes)):
        target = scenes.target(i)
        n = len(target["labels"])
        boxes, labels = (
            target["boxes"] + spread * torch.randn(n, 4, generator=g),
            target["labels"].clone(),
        )
        other = torch.rand(n, generator=g) < 0.2
        labels[other] = torch.randint(1, len(scenes.classes) + 1, (n,), generator=g)[other]
        kept = (torch.rand(n, generator=g) < 0.8) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        found += _coco_results(
            scenes, i, boxes[kept], labels[kept], torch.rand(n, generator=g)[kept]
        )
    return found


def test_figures_are_those_of_pycocotools(cutouts):
    val = cutouts[1]
    path = val.folder.parent / "annotations/instances_val.json"
    for seed in range(3):
        found = noisy(val, seed)
        ours = average_precision(val, found)
        assert (
            list(ours.values()) == pytest.approx(judged_directly(path, found))
            and 0 < ours["AP"] < 100
        )
    assert average_precision(val, perfect(val)) == dict(AP=100, AP50=100, AP75=100)
    assert average_precision(val, []) == dict(AP=0, AP50=0, AP75=0)


@needs_coco
def test_figures_on_real_coco_are_those_of_pycocotools():
    val = read_coco(COCO_TINY, "val")
    assert average_precision(val, perfect(val)) == dict(AP=100, AP50=100, AP75=100)
    found = noisy(val, 0)
    assert list(average_precision(val, found).values()) == pytest.approx(
        judged_directly(COCO_TINY / "annotations/instances_val2017.json", found)
    )


def test_a_find_within_a_crowd_is_neither_right_nor_wrong(cutouts):
    val = cutouts[1]
    i, k = val.crowd.nonzero()[0].tolist()
    coin = _coco_results(val, i, val.boxes[i, k][None], val.labels[i, k][None], torch.ones(1))
    assert average_precision(val, perfect(val) + coin) == dict(AP=100, AP50=100, AP75=100)
    elsewhere = [{**coin[0], "image_id": val.ids[-1], "score": 2}]
    assert average_precision(val, perfect(val) + elsewhere)["AP"] < 100, (
        "in a picture without objects every find is wrong"
    )


def test_an_annotation_with_id_zero_counts(tmp_path):
    "pycocotools alone takes 0 for 'no match'"
    (tmp_path / "a.json").write_text(
        json.dumps({**GOOD, "annotations": [{**GOOD["annotations"][0], "id": 0}]})
    )
    scenes = Scenes(tmp_path, _read_annotations(tmp_path / "a.json"))
    assert average_precision(scenes, perfect(scenes))["AP"] == pytest.approx(100)
    with pytest.raises(ValueError, match="not a single box"):
        average_precision(Scenes(tmp_path, {**scenes.coco.dataset, "annotations": []}), [])


def test_small_detectors_have_small_anchors():
    model = detection.detector(3, TINY)
    assert model.rpn.anchor_generator.sizes == ((3,), (5,), (10,), (20,), (41,))
    assert model.roi_heads.box_predictor.cls_score.out_features == 4
    with pytest.raises(ValueError, match="network 'vgg16'"):
        detection.detector(3, replace(TINY, network="vgg16"))


def test_backbone_weights_come_from_a_local_file(tmp_path):
    from torchvision.models import resnet18

    weights, path = resnet18(weights=None).state_dict(), tmp_path / "resnet18.safetensors"
    write_tensors(path, weights, {})
    model = detection.detector(3, TINY, path)
    assert torch.equal(model.backbone.body.layer3[0].conv1.weight, weights["layer3.0.conv1.weight"])
    trained = {
        name.split(".")[2]
        for name, p in model.backbone.body.named_parameters(prefix="backbone.body")
        if p.requires_grad
    }
    assert trained == {"layer2", "layer3", "layer4"}, (
        "what torchvision trains of a backbone with weights"
    )
    with pytest.raises(ValueError, match="no weights of a resnet34"):
        detection.detector(3, replace(TINY, network="resnet34"), path)


def test_backbone_files_that_are_not_weights_are_named(tmp_path, monkeypatch):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "pickle.pth")
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("torch.load was called"))
    with pytest.raises(ValueError, match="pickle.pth is no safetensors file"):
        detection.detector(3, TINY, tmp_path / "pickle.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"123")
    with pytest.raises(ValueError, match="cut.safetensors holds no weights"):
        detection.detector(3, TINY, tmp_path / "cut.safetensors")
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        detection.detector(3, TINY, tmp_path / "nowhere.pth")


def test_imagenet_weights_are_fetched_once_and_kept_as_safetensors(tmp_path, monkeypatch):
    from torchvision.models import resnet18

    weights, calls = resnet18(weights=None).state_dict(), []

    def fetch(url, file, prefix, progress):
        calls.append((url.rpartition("/")[2], prefix))
        torch.save(weights, file)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    monkeypatch.setenv("HYDRAMIX_DATA", str(tmp_path))
    for _ in range(2):
        model = detection.detector(3, TINY, "imagenet")
    assert calls == [("resnet18-f37072fd.pth", "f37072fd")]
    assert torch.equal(model.backbone.body.conv1.weight, weights["conv1.weight"])
    kept = [p.name for p in (tmp_path / "backbones").iterdir()]
    assert kept == ["resnet18-f37072fd.safetensors"]
    same = scenes_like(), scenes_like(), TINY, None, None
    other = detection._settings(*same, "imagenet", None)
    assert other != detection._settings(*same, None, None)


def test_imagenet_weights_without_a_network(tmp_path, monkeypatch):
    def fetch(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    with pytest.raises(ConnectionError, match="no route to host; put its weights as safetensors"):
        backbones.backbone_file("imagenet", "resnet18", tmp_path)
    assert not list((tmp_path / "backbones").iterdir())


def scenes_like(digest="0"):
    "What `_settings` asks of scenes"
    return type("Scenes", (), dict(digest=lambda self: digest))()


class Noisy(SceneMix):
    "A mixer of one's own"

    noise = 0.1

    def batch(self, first):
        images, targets = super().batch(first)
        return [image + self.noise for image in images], targets


class Noisier(SceneMix):
    "Another one"

    noise = 0.1

    def batch(self, first):
        images, targets = super().batch(first)
        return [image - self.noise for image in images], targets


def test_a_detector_is_made_of_its_mixer_and_of_what_its_history_was_judged_on(cutouts):
    squares, several = Squares(cutouts[0], 32), replace(TINY, evaluations=2)
    shared = SceneMix(squares)
    shared.p_gen = 0.3
    noisy = Noisy(squares)
    noisy.noise = 0.2
    mixers = [None, SceneMix(squares), SceneMix(squares, n_images=2), shared]
    mixers += [Noisy(squares), noisy, Noisier(squares), SceneMix(Squares(cutouts[0], 48))]
    of = lambda mixer, val="1", config=TINY: detection._settings(
        scenes_like(), scenes_like(val), config, mixer, None, None, None
    )
    assert len({of(mixer) for mixer in mixers}) == len(mixers)
    assert of(SceneMix(squares)) == of(SceneMix(squares))
    assert of(None, "1") == of(None, "2"), "it is judged after the training"
    assert of(None, "1", several) != of(None, "2", several)


def test_a_training_that_was_broken_off_ends_where_it_would_have(cutouts, tmp_path, monkeypatch):
    train, val = cutouts
    few = n_shot(train, 1, 0)
    squares, config = Squares(few, 32), replace(TINY, steps=4)
    mixer = SceneMix(squares)
    whole = detection.fit(few, val, mixer, config, progress=False)
    step = detection._Training.step

    def interrupted(self):
        if self.done == 2:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(detection._Training, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        detection.fit(
            few, val, mixer, config, folder=tmp_path, checkpoint_minutes=0, progress=False
        )
    monkeypatch.setattr(detection._Training, "step", step)
    rest = detection.fit(few, val, mixer, config, folder=tmp_path, progress=False)
    for (name, a), b in zip(
        whole.model.state_dict().items(), rest.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    assert (
        rest.precision == whole.precision
        and [h["step"] for h in rest.history] == [1, 2, 3, 4]
        and "AP" in rest.history[-1]
    )
    with pytest.raises(ValueError, match="belongs to another training .*lr"):
        detection.fit(few, val, mixer, replace(config, lr=1.0), folder=tmp_path, progress=False)
    with pytest.raises(ValueError, match="other mixer"):
        detection.fit(few, val, None, config, folder=tmp_path, progress=False)

    model, classes = detection.load_detector(tmp_path / "detector.safetensors")
    assert classes == train.classes
    with torch.no_grad():
        a, b = model([val.image(0) / 255]), whole.model([val.image(0) / 255])
    assert all(torch.equal(a[0][k], b[0][k]) for k in a[0])


def test_the_rate_warms_up_and_falls():
    config = detection.profile("tiny", steps=260, warmup=10, lr=1.0)
    steps = (0, 5, 10, 100, 159, 160, 219, 220)
    rates = [round(detection._lr(config, done, 260), 4) for done in steps]
    assert rates == [0.001, 0.501, 1, 1, 1, 0.1, 0.1, 0.01]


def test_share_of_mixed_batches(cutouts):
    train, calls = n_shot(cutouts[0], 1, 0), []

    class Counting(SceneMix):
        def batch(self, first):
            calls.append(1)
            return super().batch(first)

    mixer = Counting(Squares(train, 32))
    for p_gen, expected in ((0.0, 0), (1.0, 2)):
        calls.clear()
        state = detection._Training(train, TINY, mixer, p_gen=p_gen)
        state.step(), state.step()
        assert len(calls) == expected
    with pytest.raises(ValueError, match="p_gen=1.5"):
        detection.fit(train, cutouts[1], mixer, TINY, p_gen=1.5)


def test_mirrored_scenes_have_mirrored_boxes(cutouts):
    train = cutouts[0]
    state = detection._Training(train, TINY)
    torch.manual_seed(0)
    images, targets = state.real(torch.tensor([3] * 12))
    plain, target = train[3]
    turned = [torch.equal(image, plain.flip(-1) / 255) for image in images]
    assert 0 < sum(turned) < 12
    for image, t, mirrored in zip(images, targets, turned, strict=True):
        for (x1, y1, x2, y2), (a, b, c, d) in zip(
            t["boxes"].int().tolist(), target["boxes"].int().tolist(), strict=True
        ):
            patch = plain[:, b:d, a:c] / 255
            assert torch.equal(image[:, y1:y2, x1:x2], patch.flip(-1) if mirrored else patch)


def test_scenes_without_boxes_can_be_learned_from(tmp_path):
    train = make(tmp_path, [[], [(2, 1, 1, 30, 30)]])
    state = detection._Training(train, TINY)
    state.order = torch.tensor([0, 0])
    state.next_batch = lambda: torch.tensor([0, 0])
    assert all(v.isfinite() for v in state.step().values())


def test_sets_and_settings_that_do_not_fit_are_named(cutouts, tmp_path):
    train, val = cutouts
    other = make(tmp_path, [[(2, 1, 1, 9, 9)]])
    with pytest.raises(ValueError, match="differ in their categories: cat, coin"):
        detection.fit(train, other, config=TINY)
    with pytest.raises(ValueError, match="the training set has 1 images and not one box"):
        detection.fit(train.subset([11]), val, config=TINY)
    with pytest.raises(ValueError, match="not a single box in 1 images"):
        scene_mixing.fit_generator(
            Squares(train.subset([11]), 32), scene_mixing.generator_profile("tiny")
        )
    with pytest.raises(ValueError, match="scenes are at 48 pixels, config.image_size is 32"):
        scene_mixing.fit_generator(Squares(train, 48), scene_mixing.generator_profile("tiny"))
    with pytest.raises(ValueError, match="other scenes"):
        detection.fit(train, val, SceneMix(Squares(n_shot(train, 1, 0), 32)), TINY)
    with pytest.raises(ValueError, match="the mixer works on cpu, training on cuda"):
        detection.fit(train, val, SceneMix(Squares(train, 32)), TINY, device="cuda")
    wrong = [dict(steps=0), dict(lr=0), dict(momentum=1.0), dict(score=-1)]
    for changes in [*wrong, dict(milestones=[16, 22])]:
        with pytest.raises(ValueError, match=next(iter(changes))):
            detection.profile("tiny", **changes)
    with pytest.raises(ValueError, match="'huge'"):
        detection.profile("huge")
    with pytest.raises(ValueError, match="'huge'"):
        scene_mixing.generator_profile("huge")


def no_steps(monkeypatch):
    "Let the first step fail"

    def step(self):
        raise AssertionError("a step was taken")

    monkeypatch.setattr(detection._Training, "step", step)


@pytest.mark.parametrize("spoil", ["cut", "other size", "gone"])
def test_validation_images_are_opened_before_the_first_step(tmp_path, monkeypatch, spoil):
    train = make(tmp_path, [[(2, 1, 1, 30, 30)]])
    val = make(tmp_path, [[(2, 1, 1, 30, 30)]] * 3, split="val")
    no_steps(monkeypatch)
    if spoil == "cut":
        val.path(2).write_bytes(val.path(2).read_bytes()[:200])
    elif spoil == "other size":
        val.path(2).write_bytes(make(tmp_path / "b", [[]], [(30, 30)]).path(0).read_bytes())
    else:
        val.path(2).unlink()
    with pytest.raises((ValueError, OSError), match="2.png"):
        detection.fit(train, val, None, TINY, progress=False)


def test_a_precision_without_a_value_is_an_error_before_the_first_step(tmp_path, monkeypatch):
    train = make(tmp_path, [[(2, 1, 1, 30, 30)]])
    no_steps(monkeypatch)
    crowds = make(tmp_path, [[(2, 1, 1, 30, 30)]], split="val", crowds={(0, 0)})
    huge = make(tmp_path / "huge", [[(2, 1, 1, 30, 30)]])
    huge.coco.dataset["annotations"][0]["area"] = 1e11
    for val in (crowds, make(tmp_path / "none", [[], []]), huge):
        with pytest.raises(ValueError, match="not a single box to be found"):
            detection.fit(train, val, None, TINY, progress=False)
        with pytest.raises(ValueError, match="not a single box to be found"):
            average_precision(val, [])


def test_the_detector_is_saved_before_it_is_judged(cutouts, tmp_path, monkeypatch):
    few, val = n_shot(cutouts[0], 1, 0), cutouts[1]
    judge = detection.average_precision

    def fail(*args):
        raise RuntimeError("no judge")

    monkeypatch.setattr(detection, "average_precision", fail)
    with pytest.raises(RuntimeError, match="no judge"):
        detection.fit(few, val, None, TINY, folder=tmp_path, progress=False)
    model, _ = detection.load_detector(tmp_path / "detector.safetensors")
    monkeypatch.setattr(detection, "average_precision", judge)
    outcome = detection.fit(few, val, None, TINY, folder=tmp_path, progress=False)
    assert outcome.precision == average_precision(val, detection._predict(model, val))
    assert outcome.history[-1]["AP"] == outcome.precision["AP"]


def test_evaluations_along_the_way(cutouts):
    few, val = n_shot(cutouts[0], 1, 0), cutouts[1].subset([0, 1, 10])
    config = replace(TINY, steps=4, evaluations=2)
    history = detection.fit(few, val, None, config, progress=False).history
    assert [h["step"] for h in history if "AP" in h] == [2, 4]


def test_more_images_than_memory_is_an_error_that_says_so(cutouts, monkeypatch):
    monkeypatch.setattr(speed, "free_memory", lambda device: 1000)
    with pytest.raises(MemoryError, match="keeping 12 scenes takes .* lower the number of shots"):
        detection.fit(*cutouts, config=TINY)


@pytest.mark.cuda
def test_on_a_gpu(cutouts):
    train, val = cutouts
    squares = Squares(n_shot(train, 1, 0), 32, "cuda")
    trained = scene_mixing.fit_generator(
        squares, scene_mixing.generator_profile("tiny"), progress=False
    )
    outcome = detection.fit(
        squares.scenes, val, SceneMix(squares, trained), TINY, device="cuda", progress=False
    )
    assert next(outcome.model.parameters()).is_cuda and all(
        np.isfinite(h["loss"]) for h in outcome.history
    )
    on_cpu, index = Squares(squares.scenes, 32), torch.tensor([[0, 1, 2]])
    windows = on_cpu.windows(index)
    mask = object_mask(*on_cpu.boxes_in(index, windows)[:2], 32, 8)
    for a, b in zip(
        mixed_boxes(on_cpu, index, windows, mask),
        mixed_boxes(squares, index.cuda(), windows.cuda(), mask.cuda()),
        strict=True,
    ):
        assert torch.allclose(a.float(), b.cpu().float(), atol=1e-4)
