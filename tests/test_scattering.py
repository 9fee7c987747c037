"The scattering network beside Kymatio, saved, and at odd sizes."

import importlib.util

import pytest
import torch

from hydramix_nb.scattering import Scattering


@pytest.mark.skipif(
    not importlib.util.find_spec("kymatio"),
    reason="compares with kymatio: pip install 'hydramix-nb[scattering]'",
)
@pytest.mark.parametrize("size", [16, 32])
def test_scattering_is_kymatios_before_it_learns(size):
    from kymatio.scattering2d.frontend.torch_frontend import ScatteringTorch2D

    x = torch.rand(3, 3, size, size) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(
            Scattering(size, 3, 2).scatter(x),
            ScatteringTorch2D(J=2, shape=(size, size))(x),
            atol=2e-3 if size < 32 else 2e-4,
            rtol=0,
        )


def test_scattering_survives_saving():
    a, b = Scattering(16, 3, 3), Scattering(16, 3, 3)
    with torch.no_grad():
        a.wavelets["theta"].add_(0.1)
    b.load_state_dict(a.state_dict())
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(a.eval()(x), b.eval()(x))


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="multiple of 4"):
        Scattering(18, 3, 3)
