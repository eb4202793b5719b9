import math

import pytest
import torch

from xdyna.models.motion import MotionModule, sinusoidal_positions


def trained(dim=16, **options):
    torch.manual_seed(0)
    module = MotionModule(dim, heads=2, groups=4, **options)
    torch.nn.init.normal_(module.temporal_transformer.proj_out.weight, std=0.2)  # zero at the start
    return module


def test_positions_are_the_formula():
    table = sinusoidal_positions(24, 10)
    for position in (0, 1, 23):
        for channel in range(10):
            angle = position / 10000 ** ((channel // 2 * 2) / 10)
            expected = math.sin(angle) if channel % 2 == 0 else math.cos(angle)
            assert table[0, position, channel] == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_reference_frame_is_untouched_and_takes_no_part():
    module, x = trained(), torch.randn(2 * 4, 16, 3, 5)
    out = module(x, 4)
    clips, outs = x.unflatten(0, (2, 4)), out.unflatten(0, (2, 4))
    assert torch.equal(outs[:, 0], clips[:, 0])
    assert not torch.allclose(outs[:, 1:], clips[:, 1:])
    changed = clips.clone()
    changed[:, 0] += 1
    assert torch.equal(module(changed.flatten(0, 1), 4).unflatten(0, (2, 4))[:, 1:], outs[:, 1:])


@torch.no_grad()
def test_places_do_not_mix_but_frames_do():
    module, x = trained(), torch.randn(4, 16, 3, 5)
    out = module(x, 4)
    # Per-frame GroupNorm mixes places; with the norm taken out each place is on its own.
    module.temporal_transformer.norm = torch.nn.Identity()
    out = module(x, 4)
    changed = x.clone()
    changed[2, :, 1, 1] += 1
    difference = (module(changed, 4) - out).abs().sum(1) > 1e-6
    assert difference[1:, 1, 1].all()
    difference[:, 1, 1] = False
    assert not difference.any()


def test_starts_as_identity():
    x = torch.randn(3, 16, 2, 2)
    assert torch.equal(MotionModule(16, heads=2, groups=4)(x, 3), x)


def test_lone_reference_passes():
    x = torch.randn(2, 16, 2, 2)
    assert torch.equal(trained()(x, 1), x)


def test_too_many_frames():
    module = trained(max_frames=4)
    assert module(torch.randn(5, 16, 2, 2), 5).shape == (5, 16, 2, 2)
    with pytest.raises(ValueError, match=r"5 generated frames in one window, but the motion modules know 4"):
        module(torch.randn(6, 16, 2, 2), 6)
