"Every fast path is held to the plain one: same seeds, same masks, losses to 1e-4"

import copy
import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from unittest.mock import MagicMock, Mock

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.optim import swa_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hydramix_nb import baselines, classifier, composing, crops, gan, policies, speed
from hydramix_nb.augmentations import CutMix, RandomErasing, cosine_loss
from hydramix_nb.chains import Chain, Chance, OneOf
from hydramix_nb.data import ImageSet, crop_flip, load_images
from hydramix_nb.fast_generator import make_fast
from hydramix_nb.generator import Generator, ResidualBlock
from hydramix_nb.mixer import Mixer
from hydramix_nb.mixing import HydraMix, MixUp, NMix, Pool
from hydramix_nb.policies import Policy
from hydramix_nb.training import _resume, _save, run, seeded

pytestmark = pytest.mark.usefixtures("one_thread")
WIDE = gan.Config(
    features=32, discriminator_features=8, image_size=32, batch_size=4, steps=4
)  # wide enough for Winograd's convolutions
TINY = gan.profile("tiny", steps=4)


@pytest.fixture(scope="module")
def train():
    return load_images("photos").few_shot(2, seed=0)


@pytest.fixture(scope="module")
def test():
    return load_images("photos", "test")[::20]


def losses(training, steps=4, seed=0):
    with seeded(seed, training.device):
        found = [{k: v.item() for k, v in training.step().items()} for _ in range(steps)]
        training.drawn_to = training.tensors().get("rng.cuda")  # where the random numbers are now
    return found


def generator_training(train, config, **options):
    torch.manual_seed(0)
    return gan.Training(train, config, **options)


def close(a, b, tolerance):
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for k in x:
            assert x[k] == pytest.approx(y[k], abs=tolerance, rel=tolerance), k


# generator


def test_generator_step_on_cpu(train):
    fast, plain = generator_training(train, WIDE), generator_training(train, WIDE, fast=False)
    assert fast.speedups and not plain.speedups
    assert type(plain.generator.encoder[3]) is ResidualBlock
    assert type(fast.generator.encoder[3]) is not ResidualBlock
    a, b = losses(fast), losses(plain)
    close(a[:2], b[:2], 1e-4)
    # Adam divides by the size of a gradient; where that is all rounding, it follows rounding
    close(a, b, 1e-3)


def test_winograd_is_taken_and_its_gradients_agree():
    torch.manual_seed(0)
    plain = Generator(features=32)
    images, mask = torch.rand(2, 2, 3, 32, 32) * 2 - 1, torch.full((2, 2, 8, 8), 0.5)
    got = []
    for net in (make_fast(copy.deepcopy(plain)), plain):
        out = net(images, mask)
        out.square().mean().backward()
        got.append((out.detach(), [p.grad.clone() for p in net.parameters()]))
    (a, grads_a), (b, grads_b) = got
    assert not torch.equal(a, b)
    assert torch.allclose(a, b, atol=1e-4)
    for x, y in zip(grads_a, grads_b, strict=True):
        assert (x - y).norm() <= 1e-3 * y.norm()


@pytest.mark.parametrize("channels, size", [(1, 16), (4, 48), (3, 20)])
def test_any_channels_and_sizes(channels, size):
    torch.manual_seed(0)
    net, images = Generator(channels, 32), torch.rand(3, channels, size, size) * 2 - 1
    with torch.no_grad():
        b = net.decode(net.encode(images))
        make_fast(net)
        a = net.decode(net.encode(images))
    assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("chunks", [2, 3, 4])
def test_chunks_give_the_gradients_of_the_whole_batch(train, chunks):
    whole, parts = (generator_training(train, TINY, fast=False, chunks=c) for c in (1, chunks))
    close(losses(whole, 1), losses(parts, 1), 1e-5)
    for net in whole.networks:
        for p, q in zip(
            whole.networks[net].parameters(), parts.networks[net].parameters(), strict=True
        ):
            assert (p.grad - q.grad).norm() <= 1e-5 * max(p.grad.norm(), 1e-3)


def test_chunks_from_free_memory(train, monkeypatch):
    each, fixed = gan._step_bytes(TINY, 3, len(train))
    monkeypatch.setattr(speed, "free_memory", lambda device: (fixed + 1.5 * each) / 0.9)
    assert gan.Training(train, TINY).chunks == TINY.batch_size
    monkeypatch.setattr(speed, "free_memory", lambda device: each / 2)
    with pytest.raises(MemoryError, match="lower image_size or features"):
        gan.fit(train, TINY, progress=False)


def test_a_gpu_needs_no_memory_for_convolutions_that_only_a_cpu_has():
    config = gan.Config()
    (each, fixed), (there, besides) = (gan._step_bytes(config, 3, 50, d) for d in ("cpu", "cuda"))
    assert there < 0.95 * each and besides <= fixed


def test_estimate_covers_what_a_step_takes():
    "Peak memory of a process that takes a step, less that of one with a batch of one"
    code = """
import sys, torch
torch.set_num_threads(1)
from hydramix_nb import gan
from hydramix_nb.data import load_images
config = gan.Config(features=16, batch_size=int(sys.argv[1]), discriminator_features=16)
gan.Training(load_images("photos").few_shot(2, 0), config).step()
print(1024 * int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]))
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("needs Linux: peak memory is read from /proc")
    # a block of 64 kB or more is the system's again once it is free: a peak is what is in use then
    settings = os.environ | dict(MALLOC_MMAP_THRESHOLD_="65536")

    def peak(batch_size):
        command = [sys.executable, "-c", code, str(batch_size)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=settings)
        return int(done.stdout)

    each, _ = gan._step_bytes(gan.Config(features=16, discriminator_features=16), 3, 20)
    assert 0.4 * each < (peak(5) - peak(1)) / 4 < 1.1 * each


def test_a_checkpoint_of_one_is_gone_on_from_by_the_other(train, tmp_path, monkeypatch):
    step = gan.Training.step

    def three_steps(self):
        if self.done == 3:
            raise RuntimeError("power cut")
        return step(self)

    plain = gan.fit(train, WIDE, fast=False, progress=False)
    for first, then in ((None, False), (False, None)):
        folder = tmp_path / str(first)
        with monkeypatch.context() as m, pytest.raises(RuntimeError, match="power cut"):
            m.setattr(gan.Training, "step", three_steps)
            gan.fit(train, WIDE, folder=folder, checkpoint_minutes=0, fast=first, progress=False)
        resumed = gan.fit(train, WIDE, folder=folder, fast=then, progress=False)
        assert resumed.history[-1]["rec"] == pytest.approx(plain.history[-1]["rec"], abs=1e-4)


def test_default_resumes_to_the_bit(train, tmp_path, monkeypatch):
    alone, step = gan.fit(train, WIDE, progress=False), gan.Training.step

    def two_steps(self):
        if self.done == 2:
            raise RuntimeError("power cut")
        return step(self)

    with monkeypatch.context() as m, pytest.raises(RuntimeError, match="power cut"):
        m.setattr(gan.Training, "step", two_steps)
        gan.fit(train, WIDE, folder=tmp_path, checkpoint_minutes=0, progress=False)
    resumed = gan.fit(train, WIDE, folder=tmp_path, progress=False)
    for a, b in zip(
        alone.generator.state_dict().values(), resumed.generator.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["generator", "classifier"])
def test_resumed_memory_of_an_optimiser_is_laid_out_as_its_weights(train, test, tmp_path, kind):
    "With weights in channels last, as on a GPU: a fused optimiser goes through memory in order"

    def made():
        t = classifier_training(train, test, None) if kind == "classifier" else None
        t = t or generator_training(train, replace(WIDE, ema=0.9))
        for network in t.networks.values():
            network.to(memory_format=torch.channels_last)
        return t

    alone, first, then = made(), made(), made()
    with seeded(0):
        for _ in range(2):
            first.step()
        _save(first, tmp_path / "checkpoint", "", "kind")
    with seeded(0):
        for _ in range(4):
            alone.step()
    with seeded(1):
        _resume(then, tmp_path / "checkpoint", "kind")
        for optimizer in then.optimizers.values():
            for weight, memory in optimizer.state.items():
                for value in memory.values():
                    assert value.shape != weight.shape or value.stride() == weight.stride()
        for _ in range(2):
            then.step()
    expected, found = alone.tensors(), then.tensors()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_what_is_on_is_said(train, test, capsys):
    gan.fit(train, replace(TINY, steps=1), chunks=2)
    assert (
        "1 steps on cpu; fused optimiser" in (out := capsys.readouterr().out)
        and "in 2 chunks" in out
    )
    classifier.fit(train, test, None, classifier.profile("tiny", steps=1), fast=False)
    assert "classifier: 1 steps on cpu; plain" in capsys.readouterr().out


@pytest.mark.slow
def test_compiled_step(train):
    compiled, plain = (
        generator_training(train, WIDE, fast=True),
        generator_training(train, WIDE, fast=False),
    )
    assert "compiled" in compiled.speedups
    close(losses(compiled, 2), losses(plain, 2), 1e-4)


# classifier


def classifier_training(train, test, mixer, **options):
    torch.manual_seed(0)
    return classifier.Training(
        train,
        classifier.Method(mixer=mixer),
        classifier.profile("tiny", steps=12, network="wrn-10-2", dropout=0.3),
        test,
        **options,
    )


@pytest.mark.parametrize(
    "network", [lambda: classifier.network("wrn-10-1", 3, 2, 0.0), lambda: torch.nn.Linear(3, 2)]
)
def test_an_average_follows_as_torch_has_it_to_the_bit(network):
    torch.manual_seed(0)
    net = network()
    rule = swa_utils.get_ema_multi_avg_fn(0.9)
    ours, torchs = swa_utils.AveragedModel(net), swa_utils.AveragedModel(net, multi_avg_fn=rule)
    with torch.no_grad():
        for _ in range(4):
            for x in (*net.parameters(), *net.buffers()):
                x += torch.rand_like(x) if x.is_floating_point() else 1
            speed._follow(ours, net, 0.9)
            torchs.update_parameters(net)
    assert ours.state_dict().keys() == torchs.state_dict().keys()
    for name, x in torchs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], x), name


@pytest.mark.parametrize("kind", ["baseline", "NMix", "HydraMix"])
def test_classifier_step_on_cpu(train, test, kind):
    mixer = (
        None
        if kind == "baseline"
        else NMix(train)
        if kind == "NMix"
        else HydraMix(gan.fit(train, WIDE, progress=False), train)
    )
    a = losses(classifier_training(train, test, mixer))
    if kind == "HydraMix":
        speed.prepare([mixer.generator], False)
    close(a, losses(classifier_training(train, test, mixer, fast=False)), 1e-4)


def test_what_can_be_recorded(train):
    Method, policy = classifier.Method, Policy("TrivialAugment")

    class Own(NMix):
        def augment(self, images, labels, p_gen=None):
            return images, labels

    hydramix = HydraMix(gan.pretrained(), train[:4], views=1, policy=policy)
    for method in (
        Method(),
        Method(mixer=hydramix, policy=policy),
        Method(mixer=CutMix(train), policy=policy),
        Method(transform=RandomErasing(), loss=cosine_loss),
        Method(mixer=Chain(policy, Chance(NMix(train), 0.5), crop_flip, MixUp(train))),
    ):
        assert classifier._recordable(method, None)
    for method in (
        Method(mixer=Own(train)),
        Method(mixer=Chain(NMix(train))),
        Method(mixer=Chain(Chance(MixUp(train), 0.5))),
        Method(mixer=Chain(OneOf(MixUp(train), CutMix(train)))),
        Method(mixer=NMix(train, policy=policy)),
        Method(mixer=HydraMix(gan.pretrained(), train[:4], policy=policy)),
        Method(mixer=Chain(Chance(NMix(train, policy=policy), 0.5), crop_flip)),
        Method(transform=lambda x: x),
        Method(loss=lambda a, b: a.sum()),
        Method(network=lambda c, n: None),
    ):
        assert not classifier._recordable(method, torch.nn.Linear(1, 1))


class Recording(TorchDispatchMode):
    "Refuses copies from the CPU, which a CUDA graph cannot record"

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        made = {x.device.type for x in tree_leaves(out) if isinstance(x, torch.Tensor)}
        copies = function in (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)
        if "cuda" in made and any(x.device.type == "cpu" and (x.ndim or copies) for x in tensors):
            raise RuntimeError(f"{function} copies from the CPU")
        return out


def pretend(x):
    "The same, in place, with all tensors on a pretended GPU: shapes without contents"
    if isinstance(x, torch.nn.Parameter):
        return torch.nn.Parameter(x.detach().to("cuda"))
    if isinstance(x, torch.Tensor):
        return x.to("cuda")
    if isinstance(x, (tuple, list)):
        return type(x)(map(pretend, x))
    if isinstance(x, dict):
        x.update({k: pretend(v) for k, v in x.items()})
    elif type(x).__module__.startswith(("hydramix_nb.", "torch.nn.")) and hasattr(x, "__dict__"):
        pretend(vars(x))
    return x


VIEWS = dict(views=2)
RECORDED = {
    "Baseline": {},
    "Cutout": {},
    "Random Erasing": {},
    "Cosine": {},
    "MixUp": {},
    "MixUpN": {},
    "CutMix": {},
    "Scattering": {},
    "GLICO": {},
    "SuperMix": {},
    "GridMix": {},
    "SegMix": {},
    "NMix": {},
    "HydraMix": {},
    "HydraMix, views": VIEWS,
    "HydraMix, AutoAugment": VIEWS | dict(auto_augment="AutoAugment"),
    "HydraMix+": VIEWS | dict(per_class=2),
    "AutoAugment": {},
    "TrivialAugment": {},
}


def recorded_method(name, train):
    "A method of the tables, with the shipped generator, in a size for tests"
    options = dict(trained=gan.pretrained(), profile="tiny", progress=False)
    return baselines.build(name.split(",")[0], train, **options, **RECORDED[name])


def certain(mixer, p_gen=None):
    "A coin within a recording, which would freeze it; harmless where there is only one outcome"
    assert (mixer.p_gen if p_gen is None else p_gen) == 1
    return True


@pytest.fixture
def pretending(monkeypatch):
    "What cannot be pretended is replaced; afterwards no table without contents is left"
    monkeypatch.setattr(torch, "_sample_dirichlet", torch.rand_like)
    monkeypatch.setattr(Mixer, "flip_coin", certain)
    yield
    policies._magnitudes.cache_clear()
    policies._recipes.cache_clear()


@pytest.mark.usefixtures("pretending")
@pytest.mark.parametrize("name", RECORDED)
def test_recorded_batches_neither_wait_nor_copy(name, train):
    "On tensors without contents, which cannot be waited for, pretended to be on a GPU"
    method = recorded_method(name, train)
    net, index = torch.nn.Identity(), torch.zeros(6, dtype=torch.long)
    if method.network is not None:
        net = method.network(3, len(train.classes))
    assert classifier._recordable(method, net)
    chains = [method.chain(coin=coin) for coin in (False, True)]
    for chain in chains:
        classifier._batch(train, index, chain)  # fills tables, as the first steps of a training do
    copied = copy.deepcopy([train, net, chains, index])
    with FakeTensorMode(allow_non_fake_inputs=True):
        few, net, chains, index = pretend(copied)
        for chain in chains:
            classifier._batch(few, index, chain)
            with Recording():
                images, targets = classifier._batch(few, index, chain)
                method.loss(torch.rand(6, len(few.classes), device="cuda"), targets)
                net(images)
            assert images.device.type == "cuda" and images.shape == (6, *train.images.shape[1:])


def test_partners_are_drawn_without_waiting_where_a_class_has_no_images(train):
    few, labels = train[train.labels != 3], torch.tensor([0, 5])
    few.same_class(labels, 2)  # makes the tables
    with pytest.raises(ValueError, match="a class without images is asked for"):
        few.same_class(labels - labels + 3, 2)
    copied = copy.deepcopy([few, labels])
    with FakeTensorMode(allow_non_fake_inputs=True):
        few, labels = pretend(copied)
        with Recording():
            drawn = few.same_class(labels, 2)
    assert drawn.shape == (2, 2)


def test_pretended_recording_notices():
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        torch.rand(3, device="cuda").sum().item()
    with FakeTensorMode(), Recording(), pytest.raises(RuntimeError, match="copies from the CPU"):
        torch.rand(3).to("cuda")


class Kernels(TorchDispatchMode):
    "Counts operations that compute something"

    run = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.run += not function.is_view
        return function(*args, **(kwargs or {}))


def test_a_round_of_a_policy_on_a_gpu_is_two_hundred_kernels_at_most():
    images = torch.randint(0, 256, (10, 3, 32, 32), dtype=torch.uint8)
    operations, strengths = torch.arange(10), torch.full((10,), 0.3, dtype=torch.float64)
    with Kernels() as found:
        made = policies._operate_blindly(images, operations, strengths)
    assert found.run <= 200
    assert torch.equal(made, policies._operate(images, operations, strengths))


class FromLists(TorchDispatchMode):
    "Counts tensors that are made of Python's numbers, each of which is a copy to a GPU"

    made = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.made += function is torch.ops.aten.lift_fresh.default
        return function(*args, **(kwargs or {}))


def test_crops_copy_nothing_to_their_device_once_they_were_made():
    images = torch.rand(2, 3, 24, 24)
    config = crops.CropConfig(global_size=16, local_size=8, local_views=2)
    crops.multi_crop(images, config)
    with FromLists() as found:
        crops.multi_crop(images, config)
        assert found.made == 0
        torch.tensor([1.0])
        assert found.made == 1


class Device:
    "What a `Graph` asks of torch.cuda, written down: (call, device, stream)"

    CUDAGraph = type("CUDAGraph", (), dict(replay=lambda self: None))

    def __init__(self):
        self.now, self.on, self.calls, self.made = torch.device("cuda:0"), "usual", [], []

    @contextmanager
    def device(self, device):
        self.now, before = device, self.now
        yield
        self.now = before

    @contextmanager
    def stream(self, stream):
        self.on, before = stream, self.on
        yield
        self.on = before

    def graph(self, graph, stream):
        return self.stream(stream)

    def current_device(self):
        return self.now.index

    def current_stream(self):
        return Mock()

    def Stream(self, device):
        self.made.append(device)
        return Mock(name=f"{device}.{len(self.made)}")

    def step(self, x):
        self.calls.append((self.now, self.on))
        return dict(loss=x)


@pytest.fixture
def pretended_gpus(monkeypatch):
    gpus = Device()
    for name in ("device stream graph CUDAGraph current_device current_stream Stream").split():
        monkeypatch.setattr(torch.cuda, name, getattr(gpus, name))
    speed._stream.cache_clear()
    yield gpus
    speed._stream.cache_clear()


def test_a_graph_belongs_to_the_device_of_its_inputs(pretended_gpus):
    x = MagicMock(device=torch.device("cuda:1"))
    for graph in (speed.Graph(pretended_gpus.step), speed.Graph(pretended_gpus.step)):
        for _ in range(5):
            graph(x)
    assert [device.index for device, _ in pretended_gpus.calls] == [1] * 8
    assert pretended_gpus.now.index == 0 and pretended_gpus.on == "usual"


def test_graphs_of_a_thread_share_a_stream_for_warm_ups_and_one_for_recordings(pretended_gpus):
    def both():
        for _ in range(2):
            graph = speed.Graph(pretended_gpus.step)
            for _ in range(4):
                graph(MagicMock(device=torch.device("cuda:0")))

    both()
    streams = [stream for _, stream in pretended_gpus.calls]
    warm, recorded = streams[0], streams[3]
    assert warm is not recorded and streams == 2 * [warm, warm, warm, recorded]
    with ThreadPoolExecutor(1) as other:
        other.submit(both).result()
    assert not {warm, recorded} & {stream for _, stream in pretended_gpus.calls[8:]}
    assert pretended_gpus.made == [0] * 4


@pytest.mark.parametrize("ends", [True, False])
def test_a_training_gives_the_memory_of_its_recordings_back(train, ends):
    training = generator_training(train, TINY)
    training.graphs["step"] = graph = speed.Graph(training._alternate)
    graph.warm, graph.graph, graph.inputs, graph.outputs = 0, Mock(), [Mock()], [Mock()]
    if not ends:
        training.measure = Mock(side_effect=RuntimeError("power cut"))
    with nullcontext() if ends else pytest.raises(RuntimeError, match="power cut"):
        run(training, progress=False)
    assert (graph.warm, graph.graph, graph.inputs, graph.outputs) == (3, None, None, None)
    nets = training.networks.values()
    assert all(p.grad is None for net in nets for p in net.parameters())


def test_adam_does_not_warn_of_the_steps_before_it_is_recorded(train, monkeypatch):
    adam = generator_training(train, TINY).optimizers["generator"]
    check = getattr(adam, "_accelerator_graph_capture_health_check", None)
    if check is None:
        pytest.skip("an older torch, which asks CUDA itself")
    adam.param_groups[0]["capturable"] = True
    stream = Mock(is_capturing=lambda: False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda: stream)
    with warnings.catch_warnings(action="error"):
        check()
    adam._warned_capturable_if_run_uncaptured = False
    with pytest.warns(UserWarning, match="capturable"):
        check()


def test_classifier_too_large_for_memory(train, test, monkeypatch):
    monkeypatch.setattr(speed, "free_memory", lambda device: 1000)
    with pytest.raises(MemoryError, match="lower batch_size, or take a smaller network"):
        classifier.fit(train, test, None, classifier.profile("tiny"), progress=False)


def test_judged_in_bfloat16_as_in_float32(train):
    "The code that a GPU runs, on the CPU"
    test = load_images("toys", "test")[:1000]
    few = load_images("toys", few=(5, 0))
    config = classifier.profile("tiny", steps=30)
    with seeded(1):
        training = classifier.Training(few, classifier.Method(), config, test)
        for _ in range(30):
            training.step()
    exact = training.measure()["accuracy"]
    training.speedups = [*training.speedups, "bfloat16"]
    assert training.measure()["accuracy"] == pytest.approx(exact, abs=0.1)
    assert training.model.training and next(training.model.parameters()).dtype == torch.float32


def test_pool(train):
    mixer = NMix(train)
    pool, again, other = Pool(mixer, 5), Pool(mixer, 5), Pool(mixer, 5, seed=1)
    assert torch.equal(pool.images, again.images) and not torch.equal(pool.images, other.images)
    assert (
        pool.images.shape == (5 * len(train.classes), *train.images.shape[1:])
        and pool.images.dtype == torch.uint8
    )
    labels = torch.arange(len(train.classes)).repeat(20)
    made = pool(labels)
    for c in range(len(train.classes)):
        of_class = {x.numpy().tobytes() for x in pool.images[5 * c : 5 * c + 5]}
        assert {
            (x.add(1) * 127.5).round().byte().numpy().tobytes() for x in made[labels == c]
        } <= of_class
    assert classifier.describe(classifier.Method(mixer=pool)) != classifier.describe(
        classifier.Method(mixer=other)
    )


# data


def test_label_maps_are_small(train):
    for config in (TINY, replace(TINY, mixing="grid")):
        maps, n = composing.label_maps(composing.resize(train.images, 32), config)
        assert maps.dtype == torch.int16 and int(maps.max()) < n


# on a GPU


@pytest.mark.cuda
def test_recorded_generator_step(train):
    "In 32 bits, recorded against launched"
    recorded, launched = (
        generator_training(train.to("cuda"), WIDE),
        generator_training(train.to("cuda"), WIDE),
    )
    assert "recorded step" in recorded.speedups
    for t in (recorded, launched):
        t.speedups = [x for x in t.speedups if x != "bfloat16"]
    launched._both_steps = launched._alternate
    a, b = losses(recorded, 8), losses(launched, 8)
    close(a[:5], b[:5], 1e-3)
    close(a, b, 1e-2)
    assert torch.equal(recorded.drawn_to, launched.drawn_to)
    assert not torch.equal(recorded.drawn_to, recorded.tensors()["rng.cuda"])


@pytest.mark.cuda
def test_generator_step_in_bfloat16(train):
    fast, plain = (
        generator_training(train.to("cuda"), WIDE),
        generator_training(train.to("cuda"), WIDE, fast=False),
    )
    close(losses(fast, 1), losses(plain, 1), 2e-2)


@pytest.mark.cuda
@pytest.mark.parametrize("name", RECORDED)
def test_recorded_classifier_step(name, train, test):
    train, test = train.to("cuda"), test.to("cuda")
    method, config = recorded_method(name, train), classifier.profile("tiny", steps=12)
    recorded, launched = (
        classifier.Training(train, replace(method), config, test) for _ in range(2)
    )
    for t in (recorded, launched):
        assert "recorded step" in t.speedups
        t.speedups = [x for x in t.speedups if x != "bfloat16"]
    launched.model.load_state_dict(recorded.model.state_dict())
    launched.graphs = {}
    close(losses(recorded, 12), losses(launched, 12), 1e-4)


@pytest.mark.cuda
def test_recorded_training_resumes_on_gpu(train, tmp_path, monkeypatch):
    train, config = train.to("cuda"), replace(WIDE, steps=10)
    alone, step = gan.fit(train, config, progress=False), gan.Training.step

    def six_steps(self):
        if self.done == 6:
            raise RuntimeError("power cut")
        return step(self)

    with monkeypatch.context() as m, pytest.raises(RuntimeError, match="power cut"):
        m.setattr(gan.Training, "step", six_steps)
        gan.fit(train, config, folder=tmp_path, checkpoint_minutes=0, progress=False)
    resumed = gan.fit(train, config, folder=tmp_path, progress=False)
    assert resumed.history[-1]["rec"] == pytest.approx(alone.history[-1]["rec"], rel=5e-2)


@pytest.mark.cuda
def test_recorded_classifier_resumes_on_gpu(train, test, tmp_path, monkeypatch):
    train, config = train.to("cuda"), classifier.profile("tiny", steps=10)
    alone, step = (
        classifier.fit(train, test, None, config, progress=False),
        classifier.Training.step,
    )

    def six_steps(self):
        if self.done == 6:
            raise RuntimeError("power cut")
        return step(self)

    ask = dict(folder=tmp_path, checkpoint_minutes=0, progress=False)
    with monkeypatch.context() as m, pytest.raises(RuntimeError, match="power cut"):
        m.setattr(classifier.Training, "step", six_steps)
        classifier.fit(train, test, None, config, **ask)
    resumed = classifier.fit(train, test, None, config, **ask)
    assert resumed.history[-1]["loss"] == pytest.approx(alone.history[-1]["loss"], rel=5e-2)


@pytest.mark.cuda
def test_judged_in_bfloat16_on_gpu(train):
    "Within a tenth of a point of 32 bits, on so many images that a few near a tie do not decide"
    toys, test = load_images("toys").to("cuda"), load_images("toys", "test").to("cuda")
    config = classifier.profile("small", steps=2000)  # with fewer, many images are near a tie
    with seeded(0, "cuda"):
        cropped = torch.cat([crop_flip(test.images) for _ in range(50)])
        many = ImageSet(cropped, test.labels.repeat(50), test.classes)
        training = classifier.Training(toys, classifier.Method(), config, many)
        for _ in range(2000):
            training.step()
    assert "bfloat16" in training.speedups
    half = training.measure()["accuracy"]
    model = training.result()
    assert half == pytest.approx(classifier.evaluate(model, many)[0], abs=0.1)
    exact = classifier.predict(model, cropped).argmax(1)
    with speed._mixed_precision(training.speedups, "cuda"):
        rounded = classifier.predict(model, cropped).argmax(1)
    assert (exact == rounded).float().mean() > 0.99
