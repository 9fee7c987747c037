"Classifiers: interrupted runs, broken checkpoints, odd data, other networks and devices"

import json
import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn
from safetensors.torch import load_file, save_file

from hydramix_nb import classifier, files, gan, hydramix_plus, training
from hydramix_nb.chains import Chain, Chance
from hydramix_nb.classifier import (
    Method,
    Training,
    describe,
    evaluate,
    fit,
    network,
    predict,
    profile,
)
from hydramix_nb.data import ImageSet, load_images
from hydramix_nb.files import weights_digest
from hydramix_nb.mixing import MixUp, NMix


def pictures(n=12, classes=3, size=16, channels=3, seed=0):
    images = torch.randint(
        256,
        (n, channels, size, size),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(seed),
    )
    return ImageSet(images, torch.arange(n) % classes, [f"c{i}" for i in range(classes)])


TRAIN, TEST = pictures(), pictures(9, seed=1)


def tiny(**changes):
    return profile("tiny", 16, **{"steps": 10, "evaluations": 3, **changes})


def state(result):
    return result.model.state_dict()


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(state(a).values(), state(b).values(), strict=True))


class Noise:
    "A mixer of somebody else's: no class of this library, no default for p_gen"

    def augment(self, images, labels, p_gen):
        return (
            (torch.rand_like(images) * 2 - 1, labels)
            if torch.rand(()) < (p_gen or 0.5)
            else (images, labels)
        )


# the same seed, the same result


@pytest.mark.parametrize(
    "method",
    [None, Noise(), MixUp(TRAIN), Method(transform=lambda x: x + 0.1 * torch.randn_like(x))],
    ids=["baseline", "foreign", "MixUp", "transform"],
)
def test_same_seed_same_weights_and_the_callers_random_numbers_untouched(method):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    a = fit(TRAIN, TEST, method, tiny(), progress=False)
    assert torch.equal(torch.rand(3), expected)
    b = fit(TRAIN, TEST, method, tiny(), progress=False)
    assert same(a, b) and a.accuracy == b.accuracy
    assert not same(a, fit(TRAIN, TEST, method, tiny(seed=1), progress=False))


@pytest.mark.parametrize(
    "stop, changes",
    [
        (1, {}),
        (9, {}),
        (4, {"momentum": 0.0}),
        (4, {"samples_per_epoch": 8}),
        (5, {"dropout": 0.3}),
    ],
    ids=str,
)
def test_interrupted_anywhere_and_resumed_is_the_same_to_the_bit(
    tmp_path, monkeypatch, stop, changes
):
    config, call = tiny(**changes), training._Log.__call__
    whole = fit(TRAIN, TEST, Noise(), config, progress=False)

    def stopping(log, terms, bar):
        log.seconds = 0 if log.training.done == stop else 1e9
        call(log, terms, bar)
        if log.training.done == stop:
            raise RuntimeError("power cut")

    monkeypatch.setattr(training._Log, "__call__", stopping)
    with pytest.raises(RuntimeError, match="power cut"):
        fit(TRAIN, TEST, Noise(), config, folder=tmp_path, progress=False)
    monkeypatch.setattr(training._Log, "__call__", call)
    resumed = fit(TRAIN, TEST, Noise(), config, folder=tmp_path, progress=False)
    assert same(whole, resumed)
    assert whole.history == resumed.history
    assert {f.name for f in tmp_path.iterdir()} <= {"checkpoint.safetensors", "tensorboard"}


def test_ctrl_c_saves_and_the_same_call_goes_on(tmp_path):
    config = tiny(steps=30)
    whole = fit(TRAIN, TEST, None, config, progress=False)

    class Interrupting:
        def __init__(self):
            self.calls = 0

        def made_of(self):
            "The calls are counted, and decide nothing"
            return {}

        def augment(self, images, labels, p_gen):
            self.calls += 1
            if self.calls == 7:
                os.kill(os.getpid(), signal.SIGINT)
            return images, labels

    mixer = Interrupting()
    options = dict(
        test=TEST, method=Method(mixer=mixer), config=config, folder=tmp_path, progress=False
    )
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="after step 7"):
        fit(TRAIN, **options)
    assert signal.getsignal(signal.SIGINT) is before
    assert (
        files._read_header(tmp_path / "checkpoint.safetensors", "classifier checkpoint")["done"]
        == "7"
    )
    assert same(whole, fit(TRAIN, **options))
    assert mixer.calls == 30


# checkpoints


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda p: p.write_bytes(p.read_bytes()[:200]), "cut short"),
        (lambda p: p.write_bytes(b"not a checkpoint"), "cut short"),
        (lambda p: save_file({"x": torch.zeros(1)}, p), "another origin"),
        (
            lambda p: save_file({"x": torch.zeros(1)}, p, metadata={"kind": "generator"}),
            "holds a generator",
        ),
    ],
    ids=["short", "text", "foreign", "generator"],
)
def test_damaged_checkpoints_are_refused_by_name(tmp_path, damage, message):
    path = tmp_path / "checkpoint.safetensors"
    fit(TRAIN, TEST, None, tiny(), folder=tmp_path, progress=False)
    damage(path)
    kept = path.read_bytes()
    with pytest.raises(ValueError, match=message) as error:
        fit(TRAIN, TEST, None, tiny(), folder=tmp_path, progress=False)
    assert str(path) in str(error.value)
    assert path.read_bytes() == kept


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(config=tiny(lr=0.1)), "lr: 0.0046 → 0.1"),
        (dict(config=tiny(network="wrn-10-2")), "network: 'wrn-10-1' → 'wrn-10-2'"),
        (dict(method=Method(mixer=Noise())), "other method"),
        (dict(method=Method(p_gen=0.1)), "other method"),
        (dict(train=pictures(seed=7)), "other images"),
    ],
    ids=["lr", "network", "mixer", "p_gen", "images"],
)
def test_checkpoints_of_another_training_are_refused(tmp_path, changes, message):
    call = dict(train=TRAIN, test=TEST, method=Method(), config=tiny())
    fit(**call, folder=tmp_path, progress=False)
    with pytest.raises(ValueError, match=message):
        fit(**{**call, **changes}, folder=tmp_path, progress=False)


def test_a_method_is_described_down_to_its_weights():
    a, b = network("wrn-10-1", 3, 3), network("wrn-10-1", 3, 3)
    assert weights_digest(a) != weights_digest(b)
    b.load_state_dict(a.state_dict())
    assert describe(Method(mixer=MixUp(TRAIN))) == describe(Method(mixer=MixUp(TRAIN)))
    assert describe(Method(mixer=MixUp(TRAIN))) != describe(Method(mixer=MixUp(TRAIN, alpha=2.0)))
    assert weights_digest(a) == weights_digest(b)
    json.dumps(describe(Method(mixer=MixUp(TRAIN), transform=lambda x: x)))


def test_a_loss_with_another_attribute_is_another_method(tmp_path):
    first = fit(TRAIN, TEST, Method(loss=nn.CrossEntropyLoss()), tiny(), folder=tmp_path)
    smooth = Method(loss=nn.CrossEntropyLoss(label_smoothing=0.5))
    with pytest.raises(ValueError, match="other method"):
        fit(TRAIN, TEST, smooth, tiny(), folder=tmp_path, progress=False)
    again = fit(TRAIN, TEST, Method(loss=nn.CrossEntropyLoss()), tiny(), folder=tmp_path)
    assert same(first, again)
    assert not same(first, fit(TRAIN, TEST, smooth, tiny(), folder=tmp_path / "smooth"))


def test_a_checkpoint_is_not_reused_silently_for_what_cannot_be_compared(tmp_path):
    class Locked:
        def __init__(self):
            self.lock = threading.Lock()

        def __call__(self, images):
            return images

    options = dict(config=tiny(), folder=tmp_path, progress=False)
    fit(TRAIN, TEST, Method(transform=Locked()), **options)
    with pytest.warns(UserWarning, match="_thread.lock cannot be compared"):
        fit(TRAIN, TEST, Method(transform=Locked()), **options)


def test_another_test_set_is_another_training(tmp_path):
    fit(TRAIN, TEST, None, tiny(), folder=tmp_path, progress=False)
    with pytest.raises(ValueError, match="other test images"):
        fit(TRAIN, pictures(9, seed=2), None, tiny(), folder=tmp_path, progress=False)


@pytest.mark.parametrize(
    "forward, found",
    [
        (lambda x: x.flatten(1)[:, :2], r"\[2, 2\]"),
        (lambda x: x.flatten(1)[:, :9], r"\[2, 9\]"),
        (lambda x: (x.flatten(1)[:, :3],), "tuple"),
        (lambda x: x[:, :3], r"\[2, 3, 16, 16\]"),
    ],
)
def test_a_network_without_a_score_for_each_class_is_refused_before_it_is_trained(
    forward, found, tmp_path
):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return forward(x * self.weight)

    with pytest.raises(ValueError, match=f"the network gives {found} for 2 images"):
        fit(TRAIN, TEST, Method(network=lambda *_: Own()), tiny(), folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_has_no_room_or_cannot_be_written_is_an_error_before_the_first_step(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(classifier.Training, "step", lambda self: pytest.fail("a step"))
    run = lambda: fit(TRAIN, TEST, None, tiny(), folder=tmp_path / "run", progress=False)
    with monkeypatch.context() as m:
        m.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(total=10**9, free=1000))
        with pytest.raises(OSError, match="No space left in .*run: .* MB are needed, 0.0 MB"):
            run()
    with monkeypatch.context() as m:

        def refuse(dir):
            raise OSError(30, "Read-only file system", dir)

        m.setattr(files.tempfile, "TemporaryFile", refuse)
        with pytest.raises(OSError, match="run cannot be written: Read-only file system"):
            run()
    with pytest.raises(NotADirectoryError, match="is a file, and a folder"):
        (tmp_path / "file").write_text("")
        fit(TRAIN, TEST, None, tiny(), folder=tmp_path / "file", progress=False)


def test_a_finished_training_is_read_from_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    first = fit(TRAIN, TEST, None, tiny(), folder=tmp_path, progress=False)
    monkeypatch.setattr(training, "_check_folder", lambda *a: pytest.fail("not needed"))
    assert same(first, fit(TRAIN, TEST, None, tiny(), folder=tmp_path, progress=False))


def test_divergence_names_the_step_and_leaves_the_last_good_checkpoint(tmp_path):
    with pytest.raises(FloatingPointError, match="not finite at step"):
        fit(TRAIN, TEST, None, tiny(lr=1e25), progress=False)

    class Poison:
        calls = 0

        def augment(self, images, labels, p_gen):
            Poison.calls += 1
            return images * (float("nan") if Poison.calls > 5 else 1), labels

    with pytest.raises(FloatingPointError, match="step 6.*last good checkpoint"):
        fit(
            TRAIN,
            TEST,
            Method(mixer=Poison()),
            tiny(),
            folder=tmp_path,
            checkpoint_minutes=0,
            progress=False,
        )
    assert (
        files._read_header(tmp_path / "checkpoint.safetensors", "classifier checkpoint")["done"]
        == "5"
    )
    assert all(
        v.isfinite().all()
        for v in load_file(tmp_path / "checkpoint.safetensors").values()
        if v.is_floating_point()
    )


# what a method sees


def test_transforms_see_generated_images_and_mixup_mixes_transformed_ones():
    seen = []

    def mark(images):
        seen.append(images.clone())
        return torch.ones_like(images)

    class Zeros:
        def augment(self, images, labels, p_gen):
            return torch.zeros_like(images), labels

    training = Training(TRAIN, Method(mixer=Zeros(), transform=mark), tiny())
    images, _ = training.inputs(torch.arange(4))
    assert (seen[-1] == 0).all() and (images == 1).all()
    images, targets = Training(TRAIN, Method(mixer=MixUp(TRAIN), transform=mark), tiny()).inputs(
        torch.arange(4)
    )
    torch.testing.assert_close(images, torch.ones_like(images))
    assert targets.shape == (4, 3)

    class Labels(Zeros):
        mixes_labels = True

    images, _ = Training(TRAIN, Method(mixer=Labels(), transform=mark), tiny()).inputs(
        torch.arange(4)
    )
    assert (images == 0).all()


def test_p_gen_reaches_the_mixer():
    class Note:
        def augment(self, images, labels, p_gen):
            self.p_gen = p_gen
            return images, labels

    note = Note()
    Training(TRAIN, Method(mixer=note, p_gen=0.3), tiny()).inputs(torch.arange(4))
    assert note.p_gen == 0.3


# data and networks


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", ["wrn-10-1", "resnet18"])
def test_any_number_of_channels(name, channels):
    train, test = (
        pictures(channels=channels, size=32),
        pictures(6, channels=channels, size=32, seed=1),
    )
    assert 0 <= fit(train, test, None, tiny(network=name, steps=2), progress=False).accuracy <= 100


def test_unbalanced_classes_and_a_test_set_without_some():
    train = ImageSet(TRAIN.images, torch.tensor([0] * 10 + [1, 2]), TRAIN.classes)
    test = ImageSet(TEST.images[:4], torch.zeros(4, dtype=torch.long), TEST.classes)
    result = fit(train, test, None, tiny(), progress=False)
    assert result.confusion.sum().item() == 4 and result.top5 == 100
    assert f"accuracy={result.accuracy}, top5=100" in repr(result) and "Conv2d" not in repr(result)


@pytest.mark.parametrize(
    "train, test, message",
    [
        (ImageSet(TRAIN.images, torch.zeros(12, dtype=torch.long), ["c"]), TEST, "one class, 'c'"),
        (TRAIN, ImageSet(TEST.images, TEST.labels, ["c0", "c2", "c1"]), "other classes"),
        (TRAIN, pictures(9, size=24), "same size="),
        (TRAIN, pictures(9, channels=1), "same size="),
    ],
    ids=["one class", "order", "size", "channels"],
)
def test_data_that_cannot_work_is_refused_before_anything_is_written(
    tmp_path, train, test, message
):
    with pytest.raises(ValueError, match=message):
        fit(train, test, None, tiny(), folder=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("inside", [lambda mixer: mixer, lambda mixer: Chain(Chance(mixer, 0.5))])
def test_a_mixer_of_other_classes_is_refused(inside):
    "Its images would have the labels of classes that they do not show"
    renamed = ImageSet(TRAIN.images, TRAIN.labels, ["c0", "c1", "d"])
    for other, said in (
        (pictures(classes=4), "the set of MixUp has other classes.*4 against 3: number 3 is 'c3'"),
        (renamed, "3 against 3: number 2 is 'd' there and 'c2' here; make the mixer of"),
    ):
        with pytest.raises(ValueError, match=said):
            fit(TRAIN, TEST, inside(MixUp(other)), tiny(), progress=False)
    others = pictures(seed=2)  # of the same classes
    assert fit(TRAIN, TEST, inside(MixUp(others)), tiny(steps=1), progress=False).history


@pytest.mark.parametrize("inside", [lambda mixer: mixer, lambda mixer: Chain(Chance(mixer, 0.5))])
def test_a_mixer_of_another_range_is_refused(inside, tmp_path):
    "Its images would be in one range, and the real ones in another"
    mixer = NMix(TRAIN, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    message = "NMix makes images in .*0.485.* works in −1…1: make the mixer without mean= and std="
    with pytest.raises(ValueError, match=message):
        fit(TRAIN, TEST, inside(mixer), tiny(), folder=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    same_range = inside(NMix(TRAIN, mean=0.5, std=0.5))
    assert fit(TRAIN, TEST, same_range, tiny(steps=1), progress=False).history


def test_an_empty_folder_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(TRAIN, TEST, None, tiny(steps=1), folder="", progress=False)
    gan.fit(TRAIN, gan.profile("tiny", 16, steps=1), folder="", progress=False)
    hydramix_plus.fit(TRAIN, steps=(0, 1), folder="", progress=False)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "changes",
    [
        dict(batch_size=0),
        dict(lr=0),
        dict(lr=float("nan")),
        dict(weight_decay=-1),
        dict(dropout=1.0),
        dict(momentum=-0.1),
        dict(steps=0),
        dict(evaluations=0),
        dict(widht=3),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        profile("tiny", **changes)


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(method=MixUp), "MixUp is no mixer"),
        (dict(method=profile("tiny")), "Config is no mixer"),
        (dict(config="tiny"), "config is a str: classifier.profile"),
    ],
)
def test_something_else_in_place_of_a_method_or_settings_is_said(given, message):
    photos = load_images("photos").few_shot(2, seed=0)
    with pytest.raises(TypeError, match=message):
        fit(photos, photos, **given)


def test_predict_says_what_it_cannot_look_at():
    photos = load_images("photos").few_shot(2, seed=0)
    result = fit(photos, photos, config=profile("tiny", steps=1), progress=False)
    with pytest.raises(TypeError, match="Result is no network: a Result has it as .model"):
        predict(result, photos.images)
    with pytest.raises(TypeError, match=r"this is \[3, \d+, \d+\]: one image is image\[None\]"):
        predict(result.model, photos.images[0])
    with pytest.raises(TypeError, match="this is ImageSet.* a set are .images"):
        predict(result.model, photos)
    with pytest.raises(ValueError, match=r"trained on images of .* read_image and load_images"):
        predict(result.model, photos.images[..., :16, :16])


def test_prediction_does_not_depend_on_how_it_is_split_and_leaves_the_mode():
    net = network("wrn-10-1", 3, 3, 0.3).train()
    torch.testing.assert_close(
        predict(net, TEST.images, 2), predict(net, TEST.images), rtol=1e-4, atol=1e-5
    )
    assert net.training
    top1, top5, confusion = evaluate(net, TEST)
    assert top1 == 100 * confusion.diagonal().sum().item() / 9 and top5 == 100
    with pytest.raises(ValueError, match="the network has 2 outputs, the test set 3 classes"):
        evaluate(network("wrn-10-1", 3, 2, 0.3), TEST)


def test_the_test_set_changes_nothing_but_the_figures():
    a = fit(TRAIN, TEST, None, tiny(evaluations=10), progress=False)
    b = fit(TRAIN, pictures(5, seed=9), None, tiny(evaluations=1), progress=False)
    assert same(a, b) and len(a.history) == 10 and len(b.history) == 1


@pytest.mark.slow
def test_it_learns():
    train, test = load_images("photos").few_shot(20, 0), load_images("photos", "test")
    result = fit(
        train,
        test[torch.arange(0, len(test), 4)],
        None,
        profile("small", network="wrn-10-1", steps=400, evaluations=1),
        progress=False,
    )
    assert result.accuracy > 60


@pytest.mark.cuda
def test_on_a_gpu(tmp_path):
    train = TRAIN.to("cuda")
    result = fit(train, TEST, MixUp(train), tiny(), folder=tmp_path, progress=False)
    assert next(result.model.parameters()).is_cuda
    again = fit(train, TEST, MixUp(train), tiny(), folder=tmp_path, progress=False)
    assert same(result, again)


HYDRAMIX = """
import sys

import torch

from hydramix_nb import baselines, classifier, gan
from hydramix_nb.data import load_images
from hydramix_nb.files import weights_digest

torch.set_num_threads(1)
torch.manual_seed(int(sys.argv[1]))
train = load_images("photos", size=16).few_shot(2, 0)
trained = gan.fit(train, gan.profile("tiny", 16, steps=2, seed=3), progress=False)
torch.rand(int(sys.argv[1]))
method = baselines.build("HydraMix", train, trained=trained, views=2, seed=1, progress=False)
config = classifier.profile("tiny", 16, steps=3, seed=2)
result = classifier.fit(train, train, method, config, progress=False)
print(weights_digest(result.model))
"""


def test_hydramix_gives_the_same_classifier_in_two_processes():
    "Whatever the global generator holds, however text hashes: views have a seed of their own"
    digests = set()
    for seed in ("1", "7"):
        command = [sys.executable, "-c", HYDRAMIX, seed]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        digests.add(done.stdout.strip())
    assert len(digests) == 1 and digests != {""}


def test_trainings_take_a_data_set_of_torchvision(tmp_path):
    from torchvision.datasets import ImageFolder

    toys = load_images("toys", few=(2, 0))
    for i, (image, label) in enumerate(zip(toys.images, toys.labels, strict=True)):
        (tmp_path / toys.classes[label]).mkdir(exist_ok=True)
        files.write_png(tmp_path / toys.classes[label] / f"{i}.png", image)
    data, options = ImageFolder(tmp_path), dict(device="cpu", progress=False)
    assert gan.fit(data, gan.profile("tiny", steps=2), **options).classes == data.classes
    config = classifier.profile("tiny", steps=2)
    assert classifier.fit(data, data, None, config, **options).history[-1]["step"] == 2
