import math

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from peft import LoraConfig

from xdyna.models.attention import TokenDownsampling
from xdyna.models.controls import ControlResiduals, add_to_frames, merge_residuals, run_controlnet, to_clip
from xdyna.models.image_tokens import ImageTokenResampler
from xdyna.models.layers import clip_group_norm
from xdyna.models.unet import XDynaUNet, sine_positions

SMALL = {
    "block_out_channels": (8, 16),
    "attention_levels": (True, False),
    "layers_per_block": 1,
    "num_attention_heads": 2,
    "cross_attention_dim": 6,
    "norm_num_groups": 4,
    "motion_heads": 2,
}


def small_unet(**changes) -> XDynaUNet:
    """A UNet whose parts all do something: the layers that start at zero are filled."""
    torch.manual_seed(0)
    unet = XDynaUNet(**{**SMALL, **changes}).eval()
    for name, parameter in unet.named_parameters():
        if "proj_out" in name or "to_out_ff" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return unet


def inputs(frames=4, grid=8):
    torch.manual_seed(1)
    return torch.randn(2, 4, frames, grid, grid), torch.tensor(500), torch.randn(2, 5, 6), torch.randn(2, 3, 6)


def test_full_size_names_and_shapes(official_shapes):
    """Every official tensor, by name and shape, without allocating any."""
    with torch.device("meta"):
        models = {
            "unet": XDynaUNet(),
            "controlnet_pose": ControlNetModel(cross_attention_dim=768, conditioning_channels=3),
            "controlnet_face": ControlNetModel(cross_attention_dim=768, conditioning_channels=6),
        }
    counts = {"unet": (1326, 1321.5e6), "controlnet_pose": (340, 361.3e6), "controlnet_face": (340, 361.3e6)}
    for part, model in models.items():
        assert {name: list(t.shape) for name, t in model.state_dict().items()} == official_shapes[part]
        tensors, elements = counts[part]
        assert len(model.state_dict()) == tensors
        assert sum(t.numel() for t in model.state_dict().values()) == pytest.approx(elements, rel=1e-3)
    with torch.device("meta"):
        resampler = ImageTokenResampler()
    assert sum(t.numel() for t in resampler.state_dict().values()) == pytest.approx(29.9e6, rel=5e-3)


@torch.no_grad()
def test_untrained_parts_leave_stable_diffusion_as_it_is():
    """With adapter, motion and image tokens silent, every frame is diffusers' 2-D UNet of that frame."""
    unet = XDynaUNet(**SMALL, joint_group_norm=False).eval()
    plain = UNet2DConditionModel(
        block_out_channels=SMALL["block_out_channels"],
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=6,
        norm_num_groups=4,
    ).eval()
    plain.load_state_dict({k: v for k, v in unet.state_dict().items() if k in plain.state_dict()})
    sample, t, text, _ = inputs()
    out = unet(sample, t, text).sample
    for f in range(sample.shape[2]):
        expected = plain(sample[:, :, f], t, encoder_hidden_states=text).sample
        torch.testing.assert_close(out[:, :, f], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_reference_reaches_the_generated_frames_and_not_the_other_way():
    unet = small_unet(joint_group_norm=False)
    sample, t, text, image = inputs()
    out = unet(sample, t, text, image).sample
    other_reference, other_frames = sample.clone(), sample.clone()
    other_reference[:, :, 0] += 1
    other_frames[:, :, 1:] += 1
    assert not torch.allclose(unet(other_reference, t, text, image).sample[:, :, 1:], out[:, :, 1:], atol=1e-3)
    torch.testing.assert_close(unet(other_frames, t, text, image).sample[:, :, 0], out[:, :, 0], atol=1e-6, rtol=1e-5)
    without = small_unet(joint_group_norm=False, dynamics_adapter=False)
    before = without(sample, t, text, image).sample[:, :, 1:]
    torch.testing.assert_close(without(other_reference, t, text, image).sample[:, :, 1:], before)


@torch.no_grad()
def test_clip_group_norm_is_five_dimensional():
    norm = torch.nn.GroupNorm(2, 4)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(2 * 3, 4, 5, 6)
    five = norm(x.unflatten(0, (2, 3)).transpose(1, 2)).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(clip_group_norm(x, norm, num_frames=3), five)
    torch.testing.assert_close(clip_group_norm(x, norm, num_frames=1), norm(x))
    assert not torch.allclose(five, norm(x))


@torch.no_grad()
def test_group_norm_switch_changes_the_result():
    sample, t, text, image = inputs()
    joint, single = small_unet(), small_unet(joint_group_norm=False)
    single.load_state_dict(joint.state_dict())
    assert not torch.allclose(joint(sample, t, text, image).sample, single(sample, t, text, image).sample, atol=1e-3)


@pytest.mark.parametrize("grid", [8, 7, 5])
@torch.no_grad()
def test_odd_grids(grid):
    sample, t, text, image = inputs(grid=grid)
    assert small_unet()(sample, t, text, image).sample.shape == sample.shape


@torch.no_grad()
def test_tokens_are_downsampled_over_the_grid_as_it_lies(monkeypatch):
    """6 x 3 places are 3 x 2 cells; those of 3 x 6 would be as many."""
    seen, plain = set(), TokenDownsampling.__call__

    def noting(self, x):
        out = plain(self, x)
        seen.add((self.factor, self.grid, x.shape[1], out.shape[1]))
        return out

    monkeypatch.setattr(TokenDownsampling, "__call__", noting)
    sample, t, text, image = inputs()
    small_unet()(sample[..., :6, :3], t, text, image, token_downsampling=2)
    assert seen == {(2, (6, 3), 18, 6), (2, (6, 3), 6, 6)}  # the lower level, of 3 x 2, stays as it is


def test_gradient_checkpointing_changes_nothing():
    sample, t, text, image = inputs()
    gradients = []
    for checkpointing in (False, True):
        unet = small_unet().train()
        if checkpointing:
            unet.enable_gradient_checkpointing()
            assert unet.is_gradient_checkpointing
        unet(sample, t, text, image).sample[:, :, 1:].square().mean().backward()
        gradients.append({name: p.grad for name, p in unet.named_parameters()})
    unused = {name for name, grad in gradients[0].items() if grad is None}
    assert not unused
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@torch.no_grad()
def test_save_and_load(tmp_path):
    unet, (sample, t, text, image) = small_unet(), inputs()
    unet.save_pretrained(tmp_path)
    again = XDynaUNet.from_pretrained(tmp_path)
    assert torch.equal(again(sample, t, text, image).sample, unet(sample, t, text, image).sample)


@torch.no_grad()
def test_lora(tmp_path):
    unet, (sample, t, text, image) = small_unet(), inputs()
    before = unet(sample, t, text, image).sample
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights="gaussian"))
    lora = [p for name, p in unet.named_parameters() if "lora_B" in name]
    assert lora
    assert torch.equal(unet(sample, t, text, image).sample, before)  # B starts at zero
    for p in lora:
        torch.nn.init.normal_(p)
    with_lora = unet(sample, t, text, image).sample
    assert not torch.allclose(with_lora, before)
    unet.save_lora_adapter(tmp_path)
    fresh = small_unet()
    fresh.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
    torch.testing.assert_close(fresh(sample, t, text, image).sample, with_lora)
    unet.disable_adapters()
    torch.testing.assert_close(unet(sample, t, text, image).sample, before)


def residuals_of(unet: XDynaUNet, frames: int) -> ControlResiduals:
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
        torch.nn.init.normal_(parameter, std=0.3)
    picture = torch.rand(frames, 3, 16, 16)
    return run_controlnet(control, torch.randn(frames, 4, 8, 8), torch.tensor(500), torch.randn(1, 5, 6), picture)


@torch.no_grad()
def test_residuals_of_generated_frames_are_zero_for_the_reference():
    unet, (sample, t, text, image) = small_unet(), inputs()
    clip = to_clip(merge_residuals([residuals_of(unet, 2 * 3)]), 2)

    def padded(x):
        return torch.cat([torch.zeros_like(x[:, :, :1]), x], dim=2)

    ours = unet(sample, t, text, image, down_residuals=clip.down, mid_residual=clip.mid).sample
    full = unet(
        sample, t, text, image, down_residuals=[padded(d) for d in clip.down], mid_residual=padded(clip.mid)
    ).sample
    torch.testing.assert_close(ours, full)
    assert not torch.allclose(ours, unet(sample, t, text, image).sample, atol=1e-3)


def test_residuals_same_with_and_without_gradient():
    unet, (sample, t, text, image) = small_unet(), inputs()
    clip = to_clip(residuals_of(unet, 2 * 3), 2)
    with_grad = unet(sample, t, text, image, down_residuals=clip.down, mid_residual=clip.mid).sample
    with torch.no_grad():
        without = unet(sample, t, text, image, down_residuals=clip.down, mid_residual=clip.mid).sample
    assert torch.equal(with_grad, without)


def test_one_residual_serves_both_halves():
    hidden = torch.randn(2 * 3, 4, 2, 2)
    residual = torch.randn(1, 4, 2, 2, 2)
    both = add_to_frames(hidden.clone(), residual.expand(2, -1, -1, -1, -1), num_frames=3)
    assert torch.equal(add_to_frames(hidden.clone(), residual, num_frames=3), both)


def test_merge_sums():
    a, b = (ControlResiduals((torch.full((2, 3, 4, 4), v),), torch.full((2, 3, 2, 2), v)) for v in (1.0, 2.0))
    merged = merge_residuals([a, b])
    assert (merged.down[0] == 3).all()
    assert (merged.mid == 3).all()
    with pytest.raises(ValueError, match="different shapes"):
        merge_residuals([a, ControlResiduals((torch.zeros(2, 4, 4, 4),), torch.zeros(2, 3, 2, 2))])
    with pytest.raises(ValueError, match="no ControlNet output"):
        merge_residuals([])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample": torch.zeros(2, 3, 4, 8, 8)}, r"sample has shape \(2, 3, 4, 8, 8\), expected \(clips, 4"),
        ({"text_tokens": torch.zeros(2, 5, 7)}, r"text_tokens has shape \(2, 5, 7\), expected \(2 clips, tokens, 6\)"),
        ({"image_tokens": torch.zeros(3, 3, 6)}, r"has shape \(., ., 6\), expected \(2 clips"),
        ({"down_residuals": [torch.zeros(2, 8, 3, 8, 8)]}, r"1 down_residuals given, this UNet has 4"),
    ],
)
def test_shapes_are_checked(change, message):
    sample, t, text, image = inputs()
    arguments = {"sample": sample, "timestep": t, "text_tokens": text, "image_tokens": image, **change}
    with pytest.raises(ValueError, match=message):
        small_unet()(**arguments)


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="2 levels but attention_levels 4"):
        XDynaUNet(block_out_channels=(32, 64))
    with pytest.raises(ValueError, match="divisible by norm_num_groups=32"):
        XDynaUNet(block_out_channels=(48, 64), attention_levels=(True, False))


def test_residual_frame_count_is_checked():
    with pytest.raises(ValueError, match="cover 5 frames, expected 2"):
        add_to_frames(torch.zeros(3, 4, 2, 2), torch.zeros(1, 4, 5, 2, 2), num_frames=3)


def test_positions_reach_the_network():
    """The map is what its formula says; silent it leaves the network as it is, with weights it changes the result."""
    maps = sine_positions(torch.zeros(1, 1, 8, 12), 16)
    assert maps.shape == (1, 16, 8, 12)
    rows, columns = maps[0, :8], maps[0, 8:]
    assert (rows == rows[..., :1]).all()
    assert (columns == columns[:, :1]).all()
    place = (2 + 0.5) / 8
    expected = [math.sin(math.pi * place * 2**k) for k in range(4)] + [
        math.cos(math.pi * place * 2**k) for k in range(4)
    ]
    torch.testing.assert_close(rows[:, 2, 0], torch.tensor(expected), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="position_channels is 6"):
        small_unet(position_channels=6)
    plain, placed = small_unet(), small_unet(position_channels=8)
    rest = placed.load_state_dict(plain.state_dict(), strict=False)
    assert set(rest.missing_keys) == {"position_in.weight", "position_in.bias"}
    assert not rest.unexpected_keys
    sample, t, text, image = inputs()
    with torch.no_grad():
        placed.position_in.weight.zero_()
        placed.position_in.bias.zero_()
        torch.testing.assert_close(placed(sample, t, text, image).sample, plain(sample, t, text, image).sample)
        torch.nn.init.normal_(placed.position_in.weight)
        assert (placed(sample, t, text, image).sample - plain(sample, t, text, image).sample).abs().max() > 0.01
