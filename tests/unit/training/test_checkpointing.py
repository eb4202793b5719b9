"""Checkpointing policies: the same gradients to the bit, and less kept."""

import pytest
import torch
from diffusers import ControlNetModel

from tests.unit.models.test_unet import SMALL, inputs, small_unet
from xdyna.config.train import CHECKPOINTING
from xdyna.core.errors import ConfigError
from xdyna.models.controls import run_controlnet, to_clip
from xdyna.models.reference_net import ReferenceNet
from xdyna.training.checkpointing import set_checkpointing
from xdyna.training.plan import SavedBytes


def networks():
    torch.manual_seed(2)
    control = ControlNetModel(
        block_out_channels=SMALL["block_out_channels"],
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=6,
        norm_num_groups=4,
        conditioning_embedding_out_channels=(4, 4),
    )
    for parameter in control.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    unet = small_unet(dynamics_adapter=False).train()
    return unet, control.train(), ReferenceNet.from_unet(unet).train()


def run(policy: str) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients of all parameters, and bytes that were kept for the backward pass."""
    nets = networks()
    unet, control, reference_net = nets
    set_checkpointing(unet, [control, reference_net], policy)
    sample, t, text, image = inputs()
    picture = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    saved = SavedBytes(p for net in nets for p in net.parameters())
    with saved.counting():
        residuals = run_controlnet(control, sample[:, :, 1:].transpose(1, 2).flatten(0, 1), t, text[:1], picture)
        clip = to_clip(residuals, 2)
        features = reference_net(sample[:, :, 0], text, image)
        out = unet(
            sample, t, text, image, down_residuals=clip.down, mid_residual=clip.mid, reference_features=features
        ).sample
    total = saved.total
    out[:, :, 1:].square().mean().backward()
    return {f"{i}.{name}": p.grad for i, net in enumerate(nets) for name, p in net.named_parameters()}, total


def test_gradients_are_equal_to_the_bit_and_less_is_kept():
    results = {policy: run(policy) for policy in CHECKPOINTING}
    plain, _ = results["none"]
    assert all(grad is not None and grad.any() for grad in plain.values())
    for policy in ("selective", "full"):
        for name, grad in results[policy][0].items():
            assert torch.equal(grad, plain[name]), f"{policy}: {name}"
    none, selective, full = (results[policy][1] for policy in CHECKPOINTING)
    assert full < 0.8 * selective < 0.8 * 0.8 * none


def test_selective_is_the_highest_resolution_and_policies_can_follow_each_other():
    unet, control, reference_net = networks()
    for policy in ("full", "selective"):
        set_checkpointing(unet, [control, reference_net], policy)
    on = {n for n, m in unet.named_modules() if getattr(m, "gradient_checkpointing", False)}
    assert on == {"down_blocks.0", "up_blocks.1"}
    on = {n for n, m in control.named_modules() if getattr(m, "gradient_checkpointing", False)}
    assert on
    assert all(name.startswith("down_blocks.0") for name in on)
    set_checkpointing(unet, [control, reference_net], "none")
    assert not any(net.is_gradient_checkpointing for net in (unet, control, reference_net))


def test_another_policy_is_refused():
    with pytest.raises(ConfigError, match="got 'half', expected one of none, selective, full"):
        set_checkpointing(small_unet(), [], "half")
