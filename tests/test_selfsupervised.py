"DINO: collapses of both kinds, what a step does to whom, broken input, and a run of Table 4."

import csv
import json
import math
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hydramix_nb import classifier, selfsupervised
from hydramix_nb.chains import Chance
from hydramix_nb.data import ImageSet, load_images, to_float
from hydramix_nb.files import weights_digest
from hydramix_nb.crops import _draw_views, _render, multi_crop
from hydramix_nb.mixing import NMix
from hydramix_nb.selfsupervised import (
    DINO_METHODS,
    Config,
    _Training,
    fit,
    linear_probe,
    profile,
    _schedule,
)
from hydramix_nb.training import seeded

ROOT = Path(__file__).resolve().parents[1]


def pictures(n=4, classes=3, channels=3, size=16, seed=0):
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(
        0, 256, (n * classes, channels, size, size), generator=g, dtype=torch.uint8
    )
    return ImageSet(
        images, torch.arange(classes).repeat_interleave(n), list("abcdefghij")[:classes]
    )


TRAIN = pictures()


def tiny(**changes):
    return profile("tiny", 16, **changes)


@pytest.fixture(autouse=True)
def needs_lightly(request):
    if "no_lightly" not in request.fixturenames:
        pytest.importorskip("lightly", reason='needs pip install "hydramix-nb[selfsupervised]"')


@pytest.fixture
def no_lightly(monkeypatch):
    for name in [m for m in sys.modules if m.split(".")[0] == "lightly"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lightly", None)
    selfsupervised._lightly.cache_clear()


# crops


@pytest.mark.parametrize("channels", [1, 3])
def test_crops_are_made_anew_from_a_seed_and_stay_in_range(channels):
    images = to_float(pictures(channels=channels).images)
    made = []
    for _ in range(2):
        torch.manual_seed(3)
        made.append(multi_crop(images, tiny(local_views=3)))
    for a, b in zip(*made, strict=True):
        assert torch.equal(a, b)
    assert [list(c.shape) for c in made[0]] == [[24, channels, 16, 16], [36, channels, 8, 8]]
    assert all(c.isfinite().all() and c.min() >= -1 and c.max() <= 1 for c in made[0])


def test_every_crop_has_its_own_random_numbers():
    image = to_float(TRAIN.images[:1]).expand(16, -1, -1, -1)
    for crops in multi_crop(image, tiny()):
        assert len({c.numpy().tobytes() for c in crops}) == len(crops)


def test_plain_images_stay_plain():
    plain = torch.full((4, 3, 16, 16), 0.25)
    for crops in multi_crop(plain, tiny()):
        assert (crops.amax((2, 3)) - crops.amin((2, 3))).max() < 1e-5


def test_without_local_crops_there_are_global_ones_only():
    config = tiny(local_views=0)
    assert [len(c) for c in multi_crop(to_float(TRAIN.images), config)] == [24]
    assert math.isfinite(fit(TRAIN, None, config, progress=False).history[-1]["loss"])


def test_crops_need_no_lightly(no_lightly):
    multi_crop(to_float(TRAIN.images), tiny())
    with pytest.raises(ImportError, match=r"hydramix-nb\[selfsupervised\]"):
        fit(TRAIN, None, tiny(), progress=False)


# what a step does to whom


def state_after(taken, **changes):
    torch.manual_seed(0)
    state = _Training(TRAIN, tiny(**changes))
    before = {k: v.clone() for k, v in state.tensors().items()}
    for _ in range(taken):
        state.step()
    return state, before


def test_the_teacher_is_an_average_and_learns_nothing():
    state, before = state_after(1, steps=10, warmup=0.0, momentum=0.9)
    student, teacher = (dict(net.named_parameters()) for net in (state.student, state.teacher))
    assert any(not torch.equal(p, before[f"student.{k}"]) for k, p in student.items())
    for k, p in teacher.items():
        torch.testing.assert_close(p, 0.9 * before[f"teacher.{k}"] + 0.1 * student[k])
    assert not any(p.requires_grad for p in teacher.values())


def test_a_warning_that_each_step_repeats_appears_once():
    state, _ = state_after(1)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        for _ in range(3):
            warnings.warn("as torch says it", stacklevel=1)
            state.step()
    assert [str(warning.message) for warning in said].count("as torch says it") == 1


def test_last_layer_stands_still_at_first():
    changed = lambda steps: (
        lambda s, b: (
            not torch.equal(
                s.student.head.last_layer.weight_v, b["student.head.last_layer.weight_v"]
            )
        )
    )(*state_after(steps, steps=10, freeze=0.2, warmup=0.0))
    assert [changed(n) for n in (1, 2, 3)] == [False, False, True]


def test_decay_is_for_matrices_and_follows_its_cosine():
    state, _ = state_after(1, steps=2, optimizer="adamw", weight_decay=0.04, weight_decay_end=0.4)
    decayed, other = state.optimizers["student"].param_groups
    assert all(p.ndim > 1 for p in decayed["params"]) and all(p.ndim < 2 for p in other["params"])
    assert (decayed["weight_decay"], other["weight_decay"]) == (pytest.approx(0.04), 0.0)
    state.step()
    assert (decayed["weight_decay"], other["weight_decay"]) == (pytest.approx(0.4), 0.0)


def test_gradients_are_clipped_one_by_one():
    state, _ = state_after(1, steps=4, clip=1e-3, freeze=0.0)
    norms = [p.grad.norm().item() for p in state.student.parameters() if p.grad is not None]
    assert max(norms) < 1.01e-3 and sum(n > 0.9e-3 for n in norms) > 3


@pytest.mark.parametrize("steps", [1, 2, 3, 50])
def test_schedules_end_where_they_should(steps):
    last = _schedule(tiny(steps=steps, teacher_temp=0.07), steps - 1, steps)
    assert (
        last["momentum"] == 1
        and last["lr"] <= 1.01e-6
        and (steps < 3 or last["teacher_temp"] == pytest.approx(0.07))
    )


# collapse

HASTE = dict(
    dimensions=64,
    hidden=128,
    bottleneck=64,
    batch_size=8,
    steps=80,
    optimizer="adamw",
    lr=0.016,
    momentum=0.9,
    warmup_temp=0.04,
    teacher_temp=0.04,
    global_scale=(0.3, 1.0),
    local_scale=(0.05, 0.3),
)


@pytest.fixture(scope="module")
def photos():
    return load_images("photos").few_shot(5, seed=0)


@pytest.mark.parametrize(
    "changes, kind, cure",
    [
        (dict(center_momentum=1.0), "one dimension", "center_momentum"),
        (dict(warmup_temp=1.0, teacher_temp=1.0), "uniform", "teacher_temp"),
    ],
    ids=["no centring", "no sharpening"],
)
def test_both_kinds_of_collapse_are_noticed(photos, changes, kind, cure):
    with pytest.warns(
        RuntimeWarning, match=rf"DINO has collapsed to {kind}.*since step \d+.*{cure}"
    ) as said:
        result = fit(photos, None, tiny(**{**HASTE, **changes}), progress=False)
    assert sum("collapsed" in str(w.message) for w in said) == 1, "said once"
    assert (
        result.collapsed[0] == kind and HASTE["steps"] * 0.1 < result.collapsed[1] < HASTE["steps"]
    )


def test_a_healthy_training_says_nothing(photos):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert fit(photos, None, tiny(**HASTE), progress=False).collapsed is None


# settings and input


@pytest.mark.parametrize(
    "changes",
    [
        dict(dimensions=0),
        dict(batch_size=1),
        dict(lr=float("nan")),
        dict(momentum=1.1),
        dict(global_scale=(0.0, 1.0)),
        dict(local_scale=(0.5, 0.2)),
        dict(local_size=4),
        dict(optimizer="lars"),
        dict(steps=0),
        dict(p_gen=2.0),
        dict(student_temp=0.0),
        dict(center_momentun=0.9),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        tiny(**changes)


def test_paper_profile_is_the_original_command_for_a_resnet():
    c = profile("paper", 96)
    assert c == Config()
    assert (
        c.network,
        c.optimizer,
        c.lr,
        c.weight_decay,
        c.weight_decay_end,
        c.global_scale,
        c.local_scale,
        c.clip,
    ) == ("resnet50", "sgd", 0.03, 1e-4, 1e-4, (0.14, 1.0), (0.05, 0.14), 3.0)
    assert profile("paper", 32).network == "wrn-16-8" and profile("paper", 32).global_size == 32


@pytest.mark.parametrize(
    "name, count", [("resnet18", 1), ("wrn-10-1", 3), ("densenet121", 3), ("mobilenet_v3_small", 3)]
)
def test_any_network_becomes_a_backbone(name, count):
    net, features = selfsupervised.backbone(name, count)
    assert net.eval()(torch.zeros(2, count, 32, 32)).shape == (2, features)


def test_data_that_cannot_work_is_refused_before_anything_is_written(tmp_path):
    for train, message in (
        (ImageSet(TRAIN.images[..., :12], TRAIN.labels, TRAIN.classes), "not square"),
        (pictures(channels=2), "2 channels"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(train, None, tiny(), folder=tmp_path / "run", progress=False)
    other_range = NMix(TRAIN, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    for mixer, error, message in (
        (object(), TypeError, "no mixer"),
        (NMix(pictures(classes=4)), ValueError, "the set of NMix has other classes"),
        (other_range, ValueError, "DINO works in −1…1: make the mixer without mean= and std="),
        (Chance(other_range, 0.5), ValueError, "DINO works in −1…1"),
    ):
        with pytest.raises(error, match=message):
            fit(TRAIN, mixer, tiny(), folder=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_cut_short_or_of_other_images_is_refused(tmp_path):
    fit(TRAIN, None, tiny(), folder=tmp_path, progress=False)
    with pytest.raises(ValueError, match="other images"):
        fit(pictures(seed=1), None, tiny(), folder=tmp_path, progress=False)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="cut short"):
        fit(TRAIN, None, tiny(), folder=tmp_path, progress=False)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_resumed_trainings_end_with_the_same_weights(tmp_path, monkeypatch, optimizer):
    config = tiny(steps=6, optimizer=optimizer, freeze=0.5)
    whole = fit(TRAIN, None, config, progress=False)
    step = _Training.step

    def failing(self):
        if self.done == 4:
            raise OSError("no power")
        return step(self)

    monkeypatch.setattr(_Training, "step", failing)
    with pytest.raises(OSError, match="no power"):
        fit(TRAIN, None, config, folder=tmp_path, checkpoint_minutes=0, progress=False)
    monkeypatch.setattr(_Training, "step", step)
    resumed = fit(TRAIN, None, config, folder=tmp_path, progress=False)
    for a, b in zip(
        whole.backbone.state_dict().values(), resumed.backbone.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)
    assert whole.history == resumed.history


def test_training_leaves_the_random_state_as_it_was():
    torch.manual_seed(9)
    expected = torch.rand(4)
    torch.manual_seed(9)
    fit(TRAIN, None, tiny(), progress=False)
    assert torch.equal(torch.rand(4), expected)


# the probe


def test_the_probe_separates_what_can_be_separated_and_leaves_the_backbone_alone():
    train = ImageSet(
        (
            torch.arange(3).mul(80).byte().repeat_interleave(5)[:, None, None, None]
            + torch.randint(0, 20, (15, 3, 16, 16), dtype=torch.uint8)
        ),
        torch.arange(3).repeat_interleave(5),
        list("abc"),
    )
    with seeded(0):
        net, _ = selfsupervised.backbone("wrn-10-1", 3)
    before, training = weights_digest(net), net.train().training
    probe = linear_probe(net, train, 16)
    assert training and weights_digest(net) == before
    assert classifier.evaluate(probe, train)[0] == 100
    again = linear_probe(net, train, 16)
    assert torch.equal(probe.linear.weight, again.linear.weight)
    assert not any(p.requires_grad for p in probe.parameters())


def test_a_larger_penalty_means_smaller_weights():
    with seeded(0):
        net, _ = selfsupervised.backbone("wrn-10-1", 3)
    sizes = [
        linear_probe(net, TRAIN, 16, penalty).linear.weight.norm().item()
        for penalty in (0.1, 1.0, 10.0)
    ]
    assert sizes == sorted(sizes, reverse=True)


# Table 4


def test_methods_are_spelled_as_in_the_paper():
    with open(ROOT / "hydramix_nb/reported_results.csv", newline="") as f:
        rows = [r["method"] for r in csv.DictReader(f) if r["table"] == "4"]
    assert list(DINO_METHODS) == rows


def test_a_run_writes_what_table_4_needs(tmp_path, quick_kernels):
    papermill = pytest.importorskip("papermill")
    from hydramix_nb import runs

    notebook = ROOT / "nbs/experiments/pretrain.ipynb"
    settings = dict(
        method="DINO+ChimeraMix", profile="tiny", out=str(tmp_path / "out"), device="cpu", seed=3
    )
    papermill.execute_notebook(
        str(notebook),
        str(tmp_path / "run.ipynb"),
        settings,
        cwd=str(tmp_path),
        kernel_name="python3",
        progress_bar=False,
        start_timeout=120,
        execution_timeout=600,
    )
    found = json.loads((tmp_path / "out/result.json").read_text())
    assert set(found["parameters"]) == set(runs.notebook_parameters(notebook)) - set(runs.PLACES)
    assert found["parameters"]["method"] == "DINO+ChimeraMix" and found["parameters"]["seed"] == 3
    assert (
        found["collapsed"] == "no"
        and 0 <= found["entropy"] <= math.log(found["dimensions"])
        and 0 <= found["accuracy"] <= found["top5"] <= 100
    )
    assert found["generator_size"] == 32 and found["test_images"] == 100 and found["classes"] == 10
    assert (tmp_path / "out/backbone.safetensors").is_file() and not (
        tmp_path / "out/checkpoint.safetensors"
    ).exists()
    with pytest.raises(Exception, match="did you mean 'DINO"):
        papermill.execute_notebook(
            str(notebook),
            str(tmp_path / "no.ipynb"),
            dict(settings, method="DINO+Chimera", out=str(tmp_path / "no")),
            cwd=str(tmp_path),
            kernel_name="python3",
            progress_bar=False,
            start_timeout=120,
        )
    assert not (tmp_path / "no").exists()


@pytest.mark.cuda
def test_on_a_gpu(tmp_path):
    train = TRAIN.to("cuda")
    result = fit(train, None, tiny(), folder=tmp_path, progress=False)
    assert next(result.backbone.parameters()).is_cuda
    assert classifier.evaluate(linear_probe(result.backbone, train, 16), train)[0] >= 0
    again = fit(train, None, tiny(), folder=tmp_path, progress=False)
    for a, b in zip(
        result.backbone.state_dict().values(), again.backbone.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.cuda
def test_crops_on_a_gpu_are_those_of_the_cpu():
    images = to_float(TRAIN.images)
    views = _draw_views(16, 16, (0.2, 1.0), torch.full((12,), 0.5), torch.zeros(12), (0.1, 1.0))
    on_gpu = replace(
        views, **{k: v.cuda() for k, v in vars(views).items() if isinstance(v, torch.Tensor)}
    )
    torch.testing.assert_close(
        _render(images.cuda(), on_gpu).cpu(), _render(images, views), rtol=0, atol=2e-3
    )
