"""What a stage prepares for the next."""

import pytest
import torch

from xdyna.training.components import Components
from xdyna.training.handover import copy_encoder, latent_scale
from xdyna.training.stages import STAGES


def test_scaled_latents_have_unit_variance(components: Components) -> None:
    images = [2 * torch.rand(2, 3, 64, 64) - 1 for _ in range(3)]
    with torch.no_grad():
        means = torch.cat([components.vae.encode(p).latent_dist.mean for p in images])
    assert float((means * latent_scale(components.vae, images)).std()) == pytest.approx(1.0, rel=1e-3)
    STAGES["vae"].hand_over(components, images, trained=("vae_encoder", "vae_decoder"))
    assert components.vae.config.scaling_factor == latent_scale(components.vae, images)


def test_the_decoder_alone_leaves_the_latents_as_they_were(components: Components) -> None:
    before = components.vae.config.scaling_factor
    assert STAGES["vae"].hand_over(components, [torch.rand(2, 3, 64, 64)], trained=("vae_decoder",)) == {}
    assert components.vae.config.scaling_factor == before


def test_after_base_the_adapter_and_the_controlnets_start_as_the_paper_says(components: Components) -> None:
    with torch.no_grad():
        for p in components.unet.parameters():
            p.normal_()
    STAGES["base"].hand_over(components, [], trained=("unet",))
    unet = components.unet
    assert torch.equal(
        unet.state_dict()["mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"],
        unet.state_dict()["mid_block.attentions.0.transformer_blocks.0.attn1.to_q_ff.weight"],
    )
    assert not any(t.any() for name, t in unet.state_dict().items() if ".to_out_ff." in name)
    for net in (components.pose_controlnet, components.face_controlnet):
        assert net is not None
        sample, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 16)
        down, mid = net(sample, 10, text, torch.rand(2, net.config.conditioning_channels, 64, 64), return_dict=False)
        assert not any(r.any() for r in (*down, mid)), "a ControlNet starts without effect"
        assert torch.equal(net.conv_in.weight, unet.conv_in.weight)


def test_an_encoder_of_other_sizes(components: Components) -> None:
    components.pose_controlnet.conv_in = torch.nn.Conv2d(4, 8, 3, padding=1)
    with pytest.raises(ValueError, match=r"conv_in\.weight"):
        copy_encoder(components.unet, components.pose_controlnet)
