"HydraMix+ within a time, again from its steps, and on after an interruption."

import functools
import math
from types import SimpleNamespace
from unittest.mock import MagicMock, Mock

import pytest
import torch

from hydramix_nb import classifier, gan, hydramix_plus, training
from hydramix_nb.data import ImageSet, load_images

TOYS = load_images("toys", few=(4, 0))
FEW = ImageSet(TOYS.images[TOYS.labels < 2], TOYS.labels[TOYS.labels < 2], TOYS.classes[:2])


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    "The profile of a CPU, smaller, and a smaller pool"
    chain = functools.partial(hydramix_plus.chain, per_class=4, views=2)
    monkeypatch.setattr(hydramix_plus, "chain", chain)
    for module in (gan, classifier):
        whole = module.profile

        def profile(name, side, whole=whole, **changes):
            steps = dict() if "steps" in changes else dict(steps=40)
            return whole("tiny" if name == "small" else name, side, **steps, **changes)

        monkeypatch.setattr(module, "profile", profile)


def clock(monkeypatch, slow, quick):
    "Steps that take a stated time"
    found = {gan.Training: slow, classifier.Training: quick}
    monkeypatch.setattr(hydramix_plus, "_seconds_per_step", lambda state: found[type(state)])


@pytest.mark.parametrize(
    "minutes, steps",
    [
        (1, [40, 40]),  # 54 of 60 seconds at 1.35 s for a step of both
        (0.5, [20, 20]),
        (100, [160, 160]),  # at most four times the profile's
        (0.2, [0, 31]),  # a generator would have less than a quarter: all to the classifier
        (0.02, [0, 3]),
    ],
)
def test_the_minutes_are_shared_out(minutes, steps, monkeypatch):
    clock(monkeypatch, 1.0, 0.35)
    assert hydramix_plus._budget(FEW, minutes, 0, None) == steps


def test_a_gpu_is_waited_for_before_the_clock_starts(monkeypatch):
    "Steps are only asked for; a loss that is read waits for all of them"
    now, asked = [0.0], [0]

    class Loss:
        def __float__(self):
            now[0], asked[0] = now[0] + asked[0], 0
            return 0.0

    def step():
        asked[0] += 1
        return dict(loss=Loss())

    graph, lasts = Mock(), MagicMock()
    busy = SimpleNamespace(device=torch.device("cuda"), step=step, around=lambda: lasts)
    busy.graphs, busy.optimizers = dict(real=graph), dict(model=0)
    monkeypatch.setattr(hydramix_plus.time, "perf_counter", lambda: now[0])
    assert hydramix_plus._seconds_per_step(busy) == 1
    graph.drop.assert_called_once()
    lasts.__enter__.assert_called_once()


@pytest.mark.parametrize(
    "minutes, compiling, steps",
    [
        (1, 4, [64, 64]),  # (54 − 2·4) of 28.8 s at 0.36 s a step of both, twice as fast
        (1, 24, [0, 17]),  # six seconds are left: too few for a generator
        (0.2, 4, [0, 31]),  # no quarter of the steps: not compiled
    ],
)
def test_on_a_gpu_the_plan_is_that_of_the_steps_that_are_trained(
    minutes, compiling, steps, monkeypatch
):
    now = [0.0]

    def seconds(state):
        if isinstance(state, classifier.Training):
            return 0.35
        if "compiled" in state.speedups:
            now[0] += compiling
        return 0.37 if "compiled" in state.speedups else 1.0

    monkeypatch.setattr(hydramix_plus, "_seconds_per_step", seconds)
    monkeypatch.setattr(hydramix_plus, "_compiling", lambda device, steps: (True, ""))
    monkeypatch.setattr(hydramix_plus.time, "perf_counter", lambda: now[0])
    assert hydramix_plus._budget(FEW, minutes, 0, None) == steps
    fit = Mock()
    monkeypatch.setattr(gan, "fit", fit)
    learn, _ = hydramix_plus._configs(FEW, 0)
    for n in (1, 9, 10, 40):
        hydramix_plus._generator(FEW, learn, n, None, None, False)
    assert [call.kwargs["fast"] for call in fit.call_args_list] == [None, None, True, True]


def test_it_says_how_to_repeat_it_and_repeats_it(capsys, monkeypatch):
    clock(monkeypatch, 1.0, 0.35)
    first = hydramix_plus.fit(FEW, 0.5, seed=3)
    said = capsys.readouterr().out
    assert "again, the same: hydramix_plus.fit(train, steps=(20, 20), seed=3)" in said
    assert "Chain" in said and "MixUp" in said
    assert "the accuracy in the bar is that of the images it learns from" in said
    assert math.isnan(first.accuracy) and "accuracy" not in first.history[0]
    assert first.confusion.shape == (2, 2) and not first.confusion.any()
    again = hydramix_plus.fit(FEW, steps=(20, 20), seed=3, test=FEW, progress=False)
    assert 0 <= again.accuracy <= 100
    for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_folder_keeps_the_plan_and_goes_on(tmp_path, monkeypatch):
    clock(monkeypatch, 1.0, 0.35)
    run = training.run

    def cut(state, *args, **options):
        if isinstance(state, classifier.Training):
            raise KeyboardInterrupt
        return run(state, *args, **options)

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(training, "run", cut)
        hydramix_plus.fit(FEW, 0.5, folder=tmp_path, progress=False)
    clock(monkeypatch, 10.0, 10.0)  # a slower machine now: the plan holds
    monkeypatch.setattr(gan.Training, "step", None)  # and no generator is trained again
    found = hydramix_plus.fit(FEW, 0.5, folder=tmp_path, progress=False)
    assert found.config.steps == 20
    monkeypatch.undo()
    noted = (tmp_path / "plan.json").read_bytes()
    for other in (dict(minutes=0.6), dict(minutes=0.5, seed=1), dict(steps=(0, 20))):
        with pytest.raises(ValueError, match="give what it was given, or another folder"):
            hydramix_plus.fit(FEW, folder=tmp_path, progress=False, **other)
    assert (tmp_path / "plan.json").read_bytes() == noted


def test_what_was_trained_without_test_images_is_judged_later(tmp_path, monkeypatch):
    first = hydramix_plus.fit(FEW, steps=(None, 2), folder=tmp_path, progress=False)
    monkeypatch.setattr(classifier.Training, "step", None)  # nothing is trained again
    others = TOYS[TOYS.labels < 2][:5]
    others = ImageSet(others.images, others.labels, FEW.classes)
    found = hydramix_plus.fit(FEW, steps=(None, 2), folder=tmp_path, test=others, progress=False)
    assert found.accuracy == classifier.evaluate(first.model, others)[0]
    assert found.history[-1]["accuracy"] == found.accuracy and found.confusion.sum() == 5


def test_without_a_generator_of_its_own_it_says_which(capsys):
    hydramix_plus.fit(FEW, steps=(0, 2))
    said = capsys.readouterr().out
    assert "it has seen 500 images of CIFAR-100" in said and "MixUp without" not in said


@pytest.mark.parametrize("minutes, steps", [(1, 154), (100, 160), (0.001, 1)])
def test_from_fifty_images_a_class_on_it_trains_with_mixup_alone(minutes, steps, monkeypatch):
    clock(monkeypatch, 1.0, 0.35)
    many = FEW[torch.arange(len(FEW)).repeat(13)]  # 52 of each class
    assert hydramix_plus._budget(many, minutes, 0, None) == [None, steps]
    fewer = FEW[torch.arange(len(FEW)).repeat(12)]
    assert None not in hydramix_plus._budget(fewer, minutes, 0, None)


def test_without_compositions_no_generator_is_trained_or_fetched(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(hydramix_plus, "_generator", lambda *a: pytest.fail("a generator"))
    many = FEW[torch.arange(len(FEW)).repeat(13)]
    hydramix_plus.fit(many, 0.001, folder=tmp_path)
    said = capsys.readouterr().out
    assert "MixUp without compositions (with 50 images a class and more they cost" in said
    assert "hydramix_plus.fit(train, steps=(None, " in said and "Pool" not in said
    assert not (tmp_path / "generator").exists()
    kept = hydramix_plus.fit(many, 0.001, folder=tmp_path, progress=False)  # the plan holds
    found = hydramix_plus.fit(many, steps=(None, kept.config.steps), progress=False)
    for a, b in zip(kept.model.parameters(), found.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_few_images_may_be_trained_without_compositions(capsys):
    hydramix_plus.fit(FEW, steps=(None, 1))
    assert "MixUp without compositions, then" in capsys.readouterr().out


def test_two_images_of_a_class_are_asked_for_only_where_they_are_composed():
    lone = FEW[torch.tensor([FEW.labels.tolist().index(label) for label in (0, 1)])]
    assert hydramix_plus.fit(lone, steps=(None, 1), progress=False).config.steps == 1
    for how in (dict(steps=(0, 1)), dict(steps=(1, 1)), dict(minutes=1)):
        with pytest.raises(ValueError, match="mixing needs 2 or more"):
            hydramix_plus.fit(lone, progress=False, **how)
    with pytest.raises(ValueError, match="steps=1: .steps of the generator"):  # before the images
        hydramix_plus.fit(lone, steps=1, progress=False)
    many = torch.tensor([0] + [i for i, label in enumerate(FEW.labels) if label == 1] * 25)
    assert hydramix_plus.fit(FEW[many], 0.001, progress=False).config.steps  # MixUp alone


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("how", [dict(minutes=0.2), dict(minutes=0.5)])
def test_images_are_segmented_once_at_each_size(kept, how, tmp_path, monkeypatch):
    from hydramix_nb import masks

    made, segmented = masks._felzenszwalb, []

    def felzenszwalb(images, **settings):
        segmented.append((images.shape, settings["scale"], settings["min_size"]))
        return made(images, **settings)

    monkeypatch.setattr(masks, "_felzenszwalb", felzenszwalb)
    clock(monkeypatch, 1.0, 0.35)
    hydramix_plus.fit(FEW, **how, folder=tmp_path if kept else None, progress=False)
    assert 0 < len(segmented) == len(set(segmented))


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(minutes="10"), "minutes='10': a number above 0"),
        (dict(minutes=float("inf")), "minutes=inf: a number above 0"),
        (dict(minutes=FEW), "images to judge on are test="),
        (dict(steps=100), "steps=100: .steps of the generator, of the classifier"),
        (dict(steps=(2, None)), "steps=.2, None.: .steps of the generator"),
        (dict(folder="taken"), "taken is a file"),
    ],
    ids=["text", "no end", "test set", "one number", "no classifier", "file"],
)
def test_arguments_of_another_kind_are_said(given, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file")
    with pytest.raises((ValueError, NotADirectoryError), match=message):
        hydramix_plus.fit(FEW, progress=False, **given)


def test_it_takes_what_load_images_takes():
    pairs = list(zip(FEW.images, FEW.labels.tolist(), strict=True))
    found = hydramix_plus.fit(pairs, steps=(0, 1), test=pairs, progress=False)
    assert found.history[-1]["step"] == 1 and not math.isnan(found.accuracy)


def test_a_test_set_that_does_not_fit_is_an_error_before_the_generator_is_trained(monkeypatch):
    monkeypatch.setattr(hydramix_plus, "_generator", lambda *a: pytest.fail("trained"))
    with pytest.raises(ValueError, match="the test set has other classes"):
        hydramix_plus.fit(FEW, steps=(2, 2), test=TOYS)
    with pytest.raises(ValueError, match="test images are"):
        hydramix_plus.fit(
            FEW, steps=(2, 2), test=ImageSet(FEW.images[..., :16], FEW.labels, FEW.classes)
        )
