"Generator, discriminator and losses: contracts, numerics, training, other devices"

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hydramix_nb.discriminator import Discriminator
from hydramix_nb.generator import Generator, InstanceNorm
from hydramix_nb.losses import (
    adversarial_loss,
    laplacian_loss,
    laplacian_pyramid,
    reconstruction_loss,
)

CUDA = pytest.mark.cuda


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(*shape, seed=0):
    return torch.rand(shape, generator=seeded(seed)) * 2 - 1


def small(cls=Generator, seed=0, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return cls(**{"features": 4, **settings})


def one_hot(owners, n):
    return F.one_hot(owners, n).movedim(-1, 1).float()


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


# generator


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(16, 16), (20, 16), (64, 32), (96, 96)])
@pytest.mark.parametrize("blocks", [(2, 2), (2, 0), (0, 0), (3, 1)])
def test_a_mask_of_one_image_is_the_identity_between_encoder_and_decoder(channels, size, blocks):
    net = small(in_channels=channels, encoder_blocks=blocks[0], decoder_blocks=blocks[1])
    with torch.no_grad():
        for n in (1, 2, 5):
            x = images(2, n, channels, *size)
            for i in range(n):
                mask = one_hot(torch.full((2, size[0] // 4, size[1] // 4), i), n)
                y = net(x, mask)
                assert y.shape == (2, channels, *size) and y.abs().max() <= 1
                close(y, net.decode(net.encode(x[:, i])))


def test_mixing_takes_each_position_from_its_owner():
    features, owners = (
        torch.randn(3, 4, 5, 6, 7, generator=seeded()),
        torch.randint(4, (3, 6, 7), generator=seeded(1)),
    )
    mixed = Generator.mix(features, one_hot(owners, 4))
    for b in range(3):
        for y in range(6):
            for x in range(7):
                assert torch.equal(mixed[b, :, y, x], features[b, owners[b, y, x], :, y, x])


def test_mixing_is_a_weighted_sum_for_soft_masks():
    features, mask = (
        torch.randn(2, 3, 4, 5, 5, generator=seeded()),
        torch.rand(2, 3, 5, 5, generator=seeded(1)).softmax(1),
    )
    close(Generator.mix(features, mask), torch.einsum("bnfhw,bnhw->bfhw", features, mask))


def test_images_do_not_know_of_each_other():
    net, x = small(), images(3, 2, 3, 32, 32)
    with torch.no_grad():
        whole = net.encode(x)
        for b in range(3):
            for n in range(2):
                close(whole[b, n], net.encode(x[b, n]))


def test_training_and_evaluation_mode_compute_the_same():
    net, x, mask = (
        small(),
        images(2, 2, 3, 32, 32),
        one_hot(torch.zeros(2, 8, 8, dtype=torch.long), 2),
    )
    with torch.no_grad():
        assert torch.equal(net.train()(x, mask), net.eval()(x, mask))


@pytest.mark.parametrize("blocks", [0, 2])
def test_every_weight_of_the_generator_learns(blocks):
    net = small(decoder_blocks=blocks)
    owners = torch.randint(3, (2, 8, 8), generator=seeded())
    F.mse_loss(
        net(images(2, 3, 3, 32, 32), one_hot(owners, 3)), images(2, 3, 32, 32, seed=1)
    ).backward()
    for name, p in net.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 1e-8, name


def test_decoder_blocks_add_their_parameters_and_nothing_else():
    counts = [sum(p.numel() for p in Generator(decoder_blocks=n).parameters()) for n in (0, 1, 2)]
    assert counts[1] - counts[0] == counts[2] - counts[1] == 2 * 256 * 256 * 9
    assert counts[2] == 5_269_891


def test_weights_travel_between_equal_architectures_only():
    a, b = small(seed=1), small(seed=2)
    b.load_state_dict(a.state_dict())
    x = images(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(a.encode(x), b.encode(x))
    with pytest.raises(RuntimeError):
        small(decoder_blocks=0).load_state_dict(a.state_dict())


def test_memory_order_and_strides_do_not_change_the_picture():
    net, x = small(), images(4, 2, 3, 32, 32)
    mask = one_hot(torch.randint(2, (4, 8, 8), generator=seeded()), 2)
    with torch.no_grad():
        plain = net(x, mask)
        last = net.to(memory_format=torch.channels_last)
        close(
            last(x.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (4, 2)), mask),
            plain,
        )
        close(last(x.transpose(0, 1).contiguous().transpose(0, 1), mask), plain)


def test_double_precision():
    net = small().double()
    assert (
        net(
            images(1, 2, 3, 16, 16).double(), one_hot(torch.zeros(1, 4, 4, dtype=torch.long), 2)
        ).dtype
        == torch.float64
    )


def test_autocast_stays_near_full_precision():
    net, judge, x = small(), small(Discriminator), images(2, 3, 32, 32)
    with torch.no_grad():
        full, verdicts = net.decode(net.encode(x)), judge(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half, rough = net.decode(net.encode(x)), judge(x)
    assert (half.float() - full).abs().mean() < 0.05 and (
        rough.float() - verdicts
    ).abs().mean() < 0.05


@pytest.mark.parametrize(
    ("shape", "error", "message"),
    [
        ((1, 3, 18, 18), ValueError, "multiples of 4"),
        ((1, 3, 16, 18), ValueError, "multiples of 4"),
        ((1, 3, 12, 12), ValueError, "from 16 up"),
        ((1, 3, 64, 8), ValueError, "from 16 up"),
        ((1, 1, 32, 32), ValueError, "in_channels=1"),
        ((2, 4, 32, 32), ValueError, "in_channels=4"),
    ],
)
def test_images_that_do_not_fit_are_named(shape, error, message):
    with pytest.raises(error, match=message):
        small().encode(torch.zeros(shape))


def test_bytes_are_not_images():
    for net in (small().encode, small(Discriminator)):
        with pytest.raises(TypeError, match="to_float"):
            net(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


@pytest.mark.parametrize(
    "shape", [(2, 3, 32, 32), (2, 2, 8, 8), (1, 3, 8, 8), (2, 8, 8), (2, 3, 1, 8, 8)]
)
def test_masks_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match="does not fit features"):
        small()(images(2, 3, 3, 32, 32), torch.zeros(shape))


@pytest.mark.parametrize(
    "settings",
    [dict(in_channels=0), dict(features=0), dict(encoder_blocks=-1), dict(decoder_blocks=-1)],
)
def test_impossible_generators(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Generator(**settings)


# instance norm


def test_instance_norm_is_torch_s_own():
    x = (torch.randn(3, 5, 9, 7, generator=seeded()) * 4 + 2).requires_grad_()
    ours, theirs = InstanceNorm()(x), torch.nn.InstanceNorm2d(5)(x)
    close(ours, theirs)
    weights = torch.randn(ours.shape, generator=seeded(1))
    close(
        torch.autograd.grad((ours * weights).sum(), x)[0],
        torch.autograd.grad((theirs * weights).sum(), x)[0],
    )
    assert not list(InstanceNorm().parameters()) and not InstanceNorm().state_dict()


# discriminator


@pytest.mark.parametrize("strides", [(1, 2, 2, 2), (2, 2, 2, 2), (1, 1, 2, 2), (2, 1, 1, 1)])
@pytest.mark.parametrize(("channels", "size"), [(1, (32, 32)), (3, (64, 64)), (4, (37, 50))])
def test_verdicts_are_probabilities_on_a_grid(strides, channels, size):
    judge, step = small(Discriminator, in_channels=channels, strides=strides), int(np.prod(strides))
    verdicts = judge(images(2, channels, *size))
    assert verdicts.shape == (2, 1, size[0] // step, size[1] // step)
    assert 0 <= verdicts.min() and verdicts.max() <= 1


@pytest.mark.parametrize(("strides", "side"), [((1, 2, 2, 2), 16), ((2, 2, 2, 2), 32)])
def test_the_smallest_image_still_makes_a_difference(strides, side):
    judge, (a, b) = small(Discriminator, strides=strides), images(2, 1, 3, side, side)
    assert (judge(a) - judge(b)).abs().max() > 1e-4
    with pytest.raises(ValueError, match=f"{side} pixels or more"):
        judge(images(1, 3, side - 1, side))


def test_every_weight_of_the_discriminator_learns():
    judge = small(Discriminator)
    adversarial_loss(judge(images(2, 3, 32, 32)), True).backward()
    for name, p in judge.named_parameters():
        assert p.grad.isfinite().all() and p.grad.abs().max() > 0, name


def test_padding_is_that_of_torch_without_its_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        judge = small(Discriminator)
        judge(images(1, 3, 16, 16))
    conv = judge.verdict[1]
    x = torch.randn(1, conv.in_channels, 5, 6, generator=seeded())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        close(judge.verdict[:-1](x), F.conv2d(x, conv.weight, conv.bias, padding="same"))


@pytest.mark.parametrize("strides", [(1, 2, 2), (1, 2, 2, 3), (0, 2, 2, 2), (1, 2, 2, 2, 2)])
def test_impossible_strides(strides):
    with pytest.raises(ValueError, match="four numbers"):
        Discriminator(strides=strides)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 1, 32, 32), (1, 2, 3, 32, 32)])
def test_images_that_do_not_fit_the_discriminator(shape):
    with pytest.raises(ValueError, match="do not fit the discriminator"):
        small(Discriminator)(torch.zeros(shape))


# losses


def by_convolution(x, levels):
    "Eq. 4 with 5×5 convolutions on reflected borders"
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=x.dtype) / 16
    kernel = torch.outer(taps, taps).expand(x.shape[1], 1, 5, 5)

    def blur(x):
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, groups=x.shape[1])

    pyramid = []
    for _ in range(levels):
        smaller = blur(x)[..., ::2, ::2]
        spread = torch.zeros_like(x)
        spread[..., ::2, ::2] = smaller
        pyramid.append(x - 4 * blur(spread))
        x = smaller
    return [*pyramid, x]


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(16, 16), (9, 9), (17, 40), (64, 64), (96, 95)])
def test_the_pyramid_is_made_of_convolutions(channels, size):
    x = images(2, channels, *size)
    for ours, slow in zip(
        laplacian_pyramid(x, 3, residual=True), by_convolution(x, 3), strict=True
    ):
        close(ours, slow)
    a, b = x, images(2, channels, *size, seed=1)
    slow = sum(
        (p - q).abs().mean()
        for p, q in zip(by_convolution(a, 3)[:3], by_convolution(b, 3)[:3], strict=True)
    )
    close(laplacian_loss(a, b), slow)


def test_levels_come_finest_first_and_the_residual_is_optional():
    x = images(1, 3, 64, 32)
    assert [level.shape[-2:] for level in laplacian_pyramid(x, levels=3)] == [
        (64, 32),
        (32, 16),
        (16, 8),
    ]
    assert [level.shape[-2:] for level in laplacian_pyramid(x, 2, residual=True)] == [
        (64, 32),
        (32, 16),
        (16, 8),
    ]


def test_the_loss_is_a_distance():
    a, b, c = images(3, 1, 3, 24, 24)
    assert laplacian_loss(a, a) == 0 and laplacian_loss(a, b) == laplacian_loss(b, a)
    assert laplacian_loss(a, c) <= laplacian_loss(a, b) + laplacian_loss(b, c) + 1e-6


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_the_smallest_image_of_each_number_of_levels(levels):
    side = 2**levels + 1
    assert laplacian_loss(
        images(1, 1, side, side), images(1, 1, side, side, seed=1), levels
    ).isfinite()
    with pytest.raises(ValueError, match=f"{levels} levels need images of {side} pixels"):
        laplacian_pyramid(images(1, 1, side, side - 1), levels)


def test_shapes_and_types_that_cannot_be_compared():
    x = images(2, 3, 16, 16)
    for loss in (laplacian_loss, reconstruction_loss):
        for other in (x[:1], x[:, :1], x[..., :15], x[None]):
            with pytest.raises(ValueError, match="cannot be compared"):
                loss(x, other)
        with pytest.raises(TypeError, match="to_float"):
            loss(x, x.byte())
    with pytest.raises(TypeError, match="to_float"):
        laplacian_pyramid(x.byte())
    with pytest.raises(ValueError, match="levels=0"):
        laplacian_pyramid(x, 0)


def test_half_precision_is_lifted():
    a, b = images(1, 3, 32, 32), images(1, 3, 32, 32, seed=1)
    assert all(level.dtype == torch.float32 for level in laplacian_pyramid(a.bfloat16()))
    full = laplacian_loss(a, b)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert laplacian_loss(a, b) == full
    assert laplacian_loss(a.double(), b.double()).dtype == torch.float64


def test_compiling_the_loss_warns_of_nothing_and_changes_nothing():
    a, b = images(2, 3, 40, 40), images(2, 3, 40, 40, seed=1)
    compiled = torch.compile(laplacian_loss, backend="aot_eager")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        close(compiled(a, b), laplacian_loss(a, b))
    assert not [w for w in caught if "lru_cache" in str(w.message)]


def test_reconstruction_and_adversarial_losses_by_hand():
    a, b = images(2, 4, 3, 8, 8), images(2, 4, 3, 8, 8, seed=1)
    np.testing.assert_allclose(
        reconstruction_loss(a, b).item(), np.mean((a.numpy() - b.numpy()) ** 2), atol=1e-5
    )
    verdicts = torch.rand(5, 1, 3, 3, generator=seeded())
    np.testing.assert_allclose(
        adversarial_loss(verdicts, True).item(), np.mean((verdicts.numpy() - 1) ** 2), atol=1e-6
    )
    np.testing.assert_allclose(
        adversarial_loss(verdicts, False).item(), np.mean(verdicts.numpy() ** 2), atol=1e-6
    )


# on a GPU


@CUDA
def test_networks_and_losses_agree_with_the_cpu():
    net, judge, x = small(), small(Discriminator), images(2, 3, 3, 64, 64)
    mask = one_hot(torch.randint(3, (2, 16, 16), generator=seeded()), 3)
    with torch.no_grad():
        y = net(x, mask)
        on_cpu = y, judge(y), laplacian_loss(y, x[:, 0]), laplacian_pyramid(y)[0]
        net, judge, x, mask = (t.cuda() for t in (net, judge, x, mask))
        y = net(x, mask)
        on_gpu = y, judge(y), laplacian_loss(y, x[:, 0]), laplacian_pyramid(y)[0]
    for a, b in zip(on_cpu, on_gpu, strict=True):
        close(a, b.cpu(), atol=5e-3)


@CUDA
def test_the_losses_can_be_captured_in_a_graph():
    a, b = images(4, 3, 64, 64).cuda(), images(4, 3, 64, 64, seed=1).cuda()
    expected = laplacian_loss(a, b)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = laplacian_loss(a, b) + reconstruction_loss(a, b)
    graph.replay()
    close(loss, expected + reconstruction_loss(a, b))
