"Trainings that are killed, run out of disk, lack TensorBoard, or get images of odd kinds"

import json
import os
import signal
import threading
import time
from dataclasses import asdict, replace

import pytest
import torch

from hydramix_nb import composing, files, gan
from hydramix_nb.data import ImageSet, load_images, to_float

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = gan.profile("tiny", steps=30, batch_size=2)


@pytest.fixture(scope="module")
def train():
    return load_images("photos").few_shot(2, seed=0)


def noise(channels, size=16, classes=2, n=2):
    images = torch.randint(
        256,
        (classes * n, channels, size, size),
        generator=torch.Generator().manual_seed(0),
        dtype=torch.uint8,
    )
    return ImageSet(
        images, torch.arange(classes).repeat_interleave(n), [f"class {c}" for c in range(classes)]
    )


def same_state(a, b):
    assert a.keys() == b.keys()
    for k in a:
        assert torch.equal(a[k], b[k]), k


def checkpoint(folder):
    return files.read_tensors(folder / gan._CHECKPOINT, "checkpoint")


HEAD = """
import sys, torch
torch.set_num_threads(1)
from hydramix_nb import gan
from hydramix_nb.data import load_images
train = load_images('photos').few_shot(2, seed=0)
config = gan.profile('tiny', steps=30, batch_size=2)
folder = gan.Path(sys.argv[1])
"""


# interrupted


def test_killed_and_resumed(train, tmp_path, start_python):
    alone = gan.fit(train, CONFIG, folder=tmp_path / "alone", progress=False)
    run = start_python(
        HEAD + "gan.fit(train, config, folder=folder, checkpoint_minutes=0, progress=False)",
        tmp_path / "killed",
    )
    killed, path = tmp_path / "killed", tmp_path / "killed" / gan._CHECKPOINT
    deadline = time.monotonic() + 900
    while run.poll() is None and time.monotonic() < deadline:
        if path.exists() and int(files._read_header(path, "checkpoint")["done"]) >= 3:
            break
        time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    output, _ = run.communicate()
    done = int(files._read_header(path, "checkpoint")["done"])
    assert run.returncode == -signal.SIGKILL, output
    assert 3 <= done < 30
    resumed = gan.fit(train, CONFIG, folder=killed, progress=False)
    same_state(alone.generator.state_dict(), resumed.generator.state_dict())
    same_state(checkpoint(tmp_path / "alone")[0], checkpoint(killed)[0])
    assert alone.history == resumed.history


@pytest.mark.skipif(os.name == "nt", reason="file size limits are a thing of Unix")
def test_full_disk(train, tmp_path, start_python):
    "A limit on file size stands for the full disk: what was there stays, nothing else is left"
    run = start_python(
        HEAD
        + """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
step = gan.Training.step
def step_on_a_full_disk(self):
    if self.done == 4: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    return step(self)
gan.Training.step = step_on_a_full_disk
try: gan.fit(train, config, folder=folder, checkpoint_minutes=0, picture_every=1000, progress=False)
except OSError as e: print("OSError", e)
""",
        tmp_path,
    )
    output, _ = run.communicate(timeout=900)
    assert "OSError" in output and gan._CHECKPOINT in output, output
    assert checkpoint(tmp_path)[1]["done"] == "4"
    assert not list(tmp_path.glob(".*"))


def test_leftovers_of_a_killed_write_do_no_harm(train, tmp_path):
    (tmp_path / f".{gan._CHECKPOINT}.1.partial").write_bytes(b"half a check")
    gan.fit(train, replace(CONFIG, steps=1), folder=tmp_path, progress=False)
    assert gan.load(tmp_path).history


def test_in_a_thread(train, tmp_path):
    "Only the main thread may handle signals; any may train"
    out = []
    thread = threading.Thread(
        target=lambda: out.append(
            gan.fit(train, replace(CONFIG, steps=2), folder=tmp_path, progress=False)
        )
    )
    thread.start()
    thread.join()
    same_state(out[0].generator.state_dict(), gan.load(tmp_path).generator.state_dict())


def test_ctrl_c_without_a_folder_and_twice_with_one(train, tmp_path, monkeypatch):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:

        def step(self):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(gan.Training, "step", step)
        for folder in (None, tmp_path):
            with pytest.raises(KeyboardInterrupt):
                gan.fit(train, CONFIG, folder=folder, progress=False)
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert not (tmp_path / gan._CHECKPOINT).exists()
    finally:
        signal.signal(signal.SIGINT, before)


# checkpoints that do not fit


def test_checkpoint_of_another_architecture(train, tmp_path):
    "Settings are the same, weights are not: what a changed library would find"
    config = replace(CONFIG, steps=2)
    gan.fit(train, config, folder=tmp_path, progress=False)
    (tmp_path / "generator.safetensors").unlink()
    tensors, header = checkpoint(tmp_path)
    name = next(k for k in tensors if k.startswith("generator.") and tensors[k].ndim == 4)
    for wrong in (
        {**tensors, name: tensors[name][:1]},
        {k: v for k, v in tensors.items() if k != name},
        {k: v for k, v in tensors.items() if k != "order"},
    ):
        files.write_tensors(tmp_path / gan._CHECKPOINT, wrong, header)
        with pytest.raises(ValueError, match="another architecture"):
            gan.fit(train, config, folder=tmp_path, progress=False)


def test_a_generator_is_not_a_checkpoint(train, tmp_path):
    trained = gan.fit(train, replace(CONFIG, steps=1), progress=False)
    trained.save(tmp_path / gan._CHECKPOINT)
    with pytest.raises(ValueError, match="holds a generator, not a checkpoint"):
        gan.fit(train, CONFIG, folder=tmp_path, progress=False)


def test_finished_but_the_generator_is_gone(train, tmp_path):
    config = replace(CONFIG, steps=2)
    first = gan.fit(train, config, folder=tmp_path, progress=False)
    for damage in (
        lambda p: p.unlink(),
        lambda p: p.write_bytes(p.read_bytes()[:50]),
        lambda p: replace(first, config=CONFIG).save(p),
    ):
        damage(tmp_path / "generator.safetensors")
        again = gan.fit(train, config, folder=tmp_path, progress=False)
        same_state(first.generator.state_dict(), again.generator.state_dict())
        assert gan.load(tmp_path).config == config


def test_no_pickle_is_opened(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "generator.safetensors")
    with pytest.raises(ValueError, match="not a whole generator file"):
        gan.load(tmp_path)


# what a folder gets


def test_pictures(train, tmp_path):
    from PIL import Image

    gan.fit(train, replace(CONFIG, steps=4), folder=tmp_path, picture_every=2, progress=False)
    pictures = sorted(p.name for p in tmp_path.glob("*.png"))
    assert pictures == ["compositions-000002.png", "compositions-000004.png"]
    size = CONFIG.image_size
    assert Image.open(tmp_path / pictures[0]).size == (6 * size + 5 * 2, 6 * size + 5 * 2)


def test_tensorboard_where_installed(train, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    gan.fit(train, replace(CONFIG, steps=3), folder=tmp_path, picture_every=3, progress=False)
    log = EventAccumulator(str(tmp_path / "tensorboard"))
    log.Reload()
    assert set(log.Tags()["scalars"]) >= {
        "rec",
        "per",
        "disc",
        "discriminator",
        "lr",
        "D_real",
        "D_fake",
        "pull",
    } and log.Tags()["images"] == ["compositions"]
    assert [e.step for e in log.Scalars("rec")] == [1, 2, 3]


def test_silent_without_tensorboard(tmp_path, start_python):
    run = start_python(
        HEAD
        + """
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "tensorboard": raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
from dataclasses import replace
gan.fit(train, replace(config, steps=2), folder=folder, progress=False)
""",
        tmp_path,
    )
    output, _ = run.communicate(timeout=900)
    assert run.returncode == 0 and "tensorboard" not in output.lower(), output
    assert not (tmp_path / "tensorboard").exists() and (tmp_path / "generator.safetensors").exists()


# the game


def test_a_lost_game_is_said_once(train, tmp_path, monkeypatch):
    verdicts = dict(D_real=0.99, D_fake=0.01, pull=0.001)
    monkeypatch.setattr(gan.Training, "_game", lambda self: verdicts)
    config = replace(CONFIG, steps=14)
    with pytest.warns(UserWarning, match="the discriminator has won: since step 1") as said:
        trained = gan.fit(train, config, folder=tmp_path, progress=False)
    assert len([w for w in said if "has won" in str(w.message)]) == 1
    assert trained.game_over == gan.load(tmp_path).game_over == 1
    assert files._read_header(tmp_path / "generator.safetensors", "generator")["game_over"] == "1"


def test_watching_changes_nothing(train):
    torch.manual_seed(0)
    training = gan.Training(train, replace(CONFIG, spectral_norm=True, ema=0.9))
    training.step()
    before = {k: v.clone() for k, v in training.tensors().items()}
    figures = training.measure()
    assert figures["pull"] > 0 and 0 < figures["D_fake"] < 1
    assert figures == training.measure()
    same_state(before, training.tensors())


def test_average_starts_from_the_given_weights(train):
    first = gan.fit(train, replace(CONFIG, steps=1), progress=False)
    config = replace(CONFIG, steps=1, ema=0.9, lr=1e-9)
    second = gan.fit(train, config, start=first, progress=False).generator.state_dict()
    for name, weight in first.generator.state_dict().items():
        assert torch.allclose(weight, second[name], atol=1e-5)


# images of other kinds


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_channels(channels, tmp_path):
    trained = gan.fit(
        noise(channels), replace(CONFIG, image_size=16, steps=2), folder=tmp_path, progress=False
    )
    assert gan.load(tmp_path).generator.in_channels == channels
    assert len(list(tmp_path.glob("compositions-*.png"))) == 2
    assert all(p.isfinite().all() for p in trained.generator.parameters())


@pytest.mark.parametrize(
    "changes",
    [
        dict(n_images=1),
        dict(n_images=6),
        dict(mixing="grid", n_images=3),
        dict(mixing="segments", n_images=2),
        dict(segment_noise=0.5),
        dict(augment=False),
        dict(encoder_blocks=0, decoder_blocks=0),
        dict(adversarial="logits", discriminator_lr=1e-4),
        dict(adversarial="hinge", diff_augment="color,translation,cutout", ema=0.9),
        dict(adversarial="hinge", spectral_norm=True),
    ],
)
def test_settings(changes):
    trained = gan.fit(noise(3), replace(CONFIG, image_size=16, steps=2, **changes), progress=False)
    assert [h["step"] for h in trained.history] == [1, 2]


def test_unbalanced_classes():
    images = noise(3, classes=2, n=4)
    uneven = images[[0, 1, 2, 3, 4, 5]]
    gan.fit(uneven, replace(CONFIG, image_size=16, steps=2), progress=False)


def test_one_image_per_class_suffices_where_nothing_is_mixed():
    gan.fit(noise(3, n=1), replace(CONFIG, image_size=16, n_images=1, steps=1), progress=False)
    with pytest.raises(ValueError, match="has 1 image: mixing needs 2"):
        gan.fit(noise(3, n=1), replace(CONFIG, image_size=16, n_images=2), progress=False)


def test_what_is_no_generator_and_no_settings_is_refused_before_segmentation(monkeypatch):
    monkeypatch.setattr(composing, "segment", None)
    shipped = gan.pretrained()
    for config, start, message in (
        ("small", None, "config is a str: gan.profile"),
        (dict(steps=1), None, "config is a dict"),
        (CONFIG, "pretrained", "start is a str: gan.load or gan.pretrained"),
        (CONFIG, shipped, f"start has features=16, the settings say features={CONFIG.features}"),
        (gan.profile("small"), replace(shipped, generator=gan.Generator(1)), "was trained on 1"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            gan.fit(noise(3), config, start=start)


def test_another_file_beside_an_unfinished_training(tmp_path):
    (tmp_path / "checkpoint.safetensors").write_bytes(b"")
    for path in (tmp_path, tmp_path / "generator.safetensors"):
        with pytest.raises(FileNotFoundError, match="a training that is not finished"):
            gan.load(path)
    with pytest.raises(FileNotFoundError, match="mine.safetensors: there is no such file"):
        gan.load(tmp_path / "mine.safetensors")


def test_refused_before_segmentation(monkeypatch):
    monkeypatch.setattr(composing, "segment", None)
    for images, message in (
        (noise(3, classes=1), "single class"),
        (noise(3, n=1), "class 'class 0' has 1 image"),
        (
            ImageSet(
                torch.zeros(4, 3, 16, 24, dtype=torch.uint8), torch.tensor([0, 0, 1, 1]), ["a", "b"]
            ),
            "not square",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            gan.fit(images, CONFIG)


@pytest.mark.parametrize(
    "changes",
    [
        dict(mixing="cut"),
        dict(n_images=0),
        dict(mixing="segments", n_images=3),
        dict(image_size=12),
        dict(image_size=66),
        dict(levels=0),
        dict(image_size=16, levels=4),
        dict(batch_size=0),
        dict(lr=-1),
        dict(gamma=-1),
        dict(segment_noise=1.5),
        dict(steps=0),
        dict(decoder_blocks=-1),
        dict(cells=0),
        dict(adversarial="wgan"),
        dict(diff_augment="color,colour"),
        dict(discriminator_lr=0),
        dict(ema=1.0),
        dict(milestones=(60, 120, 160)),
        dict(milestones=(-0.1,)),
        dict(alpha_rec=-1),
        dict(alpha_per=-1.0),
        dict(alpha_disc=-1),
    ],
)
def test_settings_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        gan.Config(**changes)


def test_epochs_are_no_milestones():
    with pytest.raises(ValueError, match=r"\(60, 120\): from 0 to 1; epoch 60 of 200 is 0.3"):
        gan.profile(milestones=[60, 120])
    assert gan.profile(milestones=(0, 0.5, 1), alpha_per=0).milestones == (0, 0.5, 1)


def test_config_survives_json():
    for name in gan.PROFILES:
        assert gan.Config(**json.loads(json.dumps(asdict(gan.profile(name, 96))))) == gan.profile(
            name, 96
        )


def test_same_seed_same_weights_other_seed_others(train):
    a, b, c = (
        gan.fit(train, replace(CONFIG, steps=2, seed=seed), progress=False).generator.state_dict()
        for seed in (0, 0, 1)
    )
    same_state(a, b)
    assert any(not torch.equal(a[k], c[k]) for k in a)


@pytest.mark.cuda
def test_resumes_on_a_gpu(train, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    train, step = train.to("cuda"), gan.Training.step

    def stop(self):
        if self.done == 3:
            raise RuntimeError("pulled the plug")
        return step(self)

    with pytest.MonkeyPatch.context() as m:
        m.setattr(gan.Training, "step", stop)
        with pytest.raises(RuntimeError, match="plug"):
            gan.fit(train, CONFIG, folder=tmp_path, checkpoint_minutes=0, progress=False)
    trained = gan.fit(train, CONFIG, folder=tmp_path, progress=False)
    assert trained.history[-1]["step"] == 30 and all(
        p.is_cuda for p in trained.generator.parameters()
    )
    assert all(v.isfinite().all() for v in gan.load(tmp_path, "cuda").generator.parameters())


# the generator that comes with the package


def test_pretrained_generator():
    shipped, train = gan.pretrained(), load_images("photos").few_shot(5, seed=0)
    assert {p.dtype for p in shipped.generator.parameters()} == {torch.float32}
    assert "CIFAR-100" in shipped.card and len(shipped.classes) == 100 and shipped.history
    images = to_float(composing.resize(train.images, shipped.config.image_size))
    with torch.no_grad():
        error = (shipped.generator.decode(shipped.generator.encode(images)) - images).square()
    assert error.mean() < 0.1


def test_report_says_what_is_wrong(tmp_path):
    "Of the shipped generator, of one that has learned nothing, of one whose masks cannot mix"
    shipped, train = gan.pretrained(), load_images("photos").few_shot(4, seed=0)
    train = train[train.labels < 3]
    good = shipped.report(train, match_colors=True)
    assert good.verdict == "good" and "What helps" not in str(good)
    assert "match_colors" in str(shipped.report(train))
    torch.manual_seed(0)
    fresh = gan._generator(3, shipped.config).eval()
    untrained = replace(shipped, generator=fresh, history=[]).report(train)
    assert untrained.verdict == "bad" and "1. more steps" in str(untrained)
    coarse = replace(shipped.config, segment_scale=5000, min_size=3000)
    single = replace(shipped, config=coarse).report(train, match_colors=True)
    assert single.verdict == "bad" and "1. segments: segment_scale=60, min_size=60" in str(single)


def test_a_report_advises_the_start_that_fits():
    "The shipped generator starts trainings of its own width, on images of three channels"
    train, start = load_images("toys").few_shot(2, seed=0), "start=gan.pretrained()"
    for features, said in ((16, f"or gan.fit(…, {start})"), (8, "features=16 and gan.fit(…, ")):
        config = gan.profile("tiny", 32, features=features, steps=1)
        assert said in str(gan.fit(train, config, progress=False).report(train))
        gan.fit(train, replace(config, features=16), start=gan.pretrained(), progress=False)
    grey = ImageSet(train.images[:, :1], train.labels, train.classes)
    report = str(gan.fit(grey, config, progress=False).report(grey))
    assert "detail: " in report and start not in report


def test_a_training_ends_with_a_report(train, tmp_path, monkeypatch):
    "And not with an error where it cannot be drawn"
    training = gan.Training(train, CONFIG)
    training.finish(tmp_path)
    assert "bad" in (tmp_path / "report.txt").read_text(encoding="utf-8")
    assert (tmp_path / "report.png").stat().st_size > 9999

    def broken(*arguments):
        raise RuntimeError("no fonts")

    monkeypatch.setattr(gan._Report, "save", broken)
    with pytest.warns(UserWarning, match="its report is not: .*no fonts"):
        training.finish(tmp_path)
    assert gan.load(tmp_path).config == CONFIG


def test_own_segments_are_learned_from(train):
    own = torch.zeros_like(train.images[:, 0])
    state = gan.Training(ImageSet(train.images, train.labels, train.classes, own), CONFIG)
    assert state.n_segments == 1


def test_saved_in_half_precision(tmp_path):
    shipped = gan.pretrained()
    half = shipped.save(tmp_path / "half.safetensors", dtype=torch.float16)
    whole = shipped.save(tmp_path / "whole.safetensors")
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    same_state(gan.load(half).generator.state_dict(), gan.load(whole).generator.state_dict())
    assert gan.load(half).card == shipped.card


def test_a_printed_generator_leaves_its_network_and_history_out():
    text = repr(gan.pretrained())
    assert text.startswith("Trained(config=Config(n_images=4") and "Conv" not in text
