"""ReferenceNet against the formula, diffusers' 2-D UNet, and a backbone without it."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from tests.unit.models.test_attention import randomised, softmax_attention
from tests.unit.models.test_unet import SMALL, inputs, small_unet
from xdyna.models.attention import DynamicsAdapterAttention, TokenDownsampling
from xdyna.models.reference_net import ReferenceNet
from xdyna.models.unet import XDynaUNet

B, F, L, C, N = 2, 3, 5, 12, 3
PLACES = 1 + 1 + 2  # down, middle, up


def backbone(**changes) -> XDynaUNet:
    return small_unet(dynamics_adapter=False, **changes)


@torch.no_grad()
def test_attention_with_a_reference_is_the_equation():
    layer = randomised(DynamicsAdapterAttention(C, heads=N, adapter=False))
    x, r = torch.randn(B * F, L, C), torch.randn(B, L, C)
    out = layer(x, num_frames=F, reference_BLC=r)
    for b in range(B):
        for f in range(F):
            frame = x[b * F + f]
            seen = frame if f == 0 else torch.cat([frame, r[b]])
            attended = softmax_attention(layer.to_q(frame), layer.to_k(seen), layer.to_v(seen), N)
            torch.testing.assert_close(out[b * F + f], layer.to_out[0](attended), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_downsampled_keys_are_the_frames_own_not_the_references():
    """A grid of 1 x 5 places in cells of 2: 3 means, beside all of the reference."""
    layer = randomised(DynamicsAdapterAttention(C, heads=N, adapter=False))
    x, r = torch.randn(B * F, L, C), torch.randn(B, L, C)
    out = layer(x, num_frames=F, reference_BLC=r, downsampled=TokenDownsampling(2, (1, 5)))
    for number, frame in enumerate(x):
        means = torch.stack([frame[0:2].mean(0), frame[2:4].mean(0), frame[4]])
        seen = means if number % F == 0 else torch.cat([means, r[number // F]])
        attended = softmax_attention(layer.to_q(frame), layer.to_k(seen), layer.to_v(seen), N)
        torch.testing.assert_close(out[number], layer.to_out[0](attended), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_network_with_a_reference_downsamples_too(monkeypatch):
    unet, (sample, t, text, image) = backbone(), inputs()
    features = ReferenceNet.from_unet(unet)(sample[:, :, 0], text)
    seen, plain = set(), DynamicsAdapterAttention._attend
    monkeypatch.setattr(
        DynamicsAdapterAttention,
        "_attend",
        lambda self, q, k, v: seen.add((q.shape[1], k.shape[1])) or plain(self, q, k, v),
    )
    unet(sample, t, text, image, reference_features=features, token_downsampling=2)
    assert {pair for pair in seen if pair[0] == 64} == {(64, 16), (64, 16 + 64)}


def diffusers_unet(unet: XDynaUNet) -> UNet2DConditionModel:
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
    return plain


@torch.no_grad()
def test_features_are_what_the_self_attentions_of_a_2d_unet_get():
    """diffusers' UNet with the same weights, at timestep 0, its self-attentions listened to: every place, in order."""
    unet, (sample, _, text, _) = backbone(), inputs()
    net, plain = ReferenceNet.from_unet(unet), diffusers_unet(unet)
    heard = []
    for name, module in plain.named_modules():
        if name.endswith("attn1"):
            module.register_forward_pre_hook(lambda _, args, kwargs: heard.append(args[0]), with_kwargs=True)
    plain(sample[:, :, 0], 0, encoder_hidden_states=text)
    features = net(sample[:, :, 0], text)
    assert len(features) == len(heard) == PLACES
    for ours, theirs in zip(features, heard, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_starts_as_a_copy_of_the_backbone():
    unet = backbone()
    net = ReferenceNet.from_unet(unet)
    weights = unet.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
    spatial = {name for name in weights if "motion_modules" not in name}
    behind = spatial - set(net.state_dict())
    last = "up_blocks.1.attentions.1."
    kept = {f"{last}transformer_blocks.0.norm1.weight", f"{last}transformer_blocks.0.norm1.bias"}
    kept |= {name for name in spatial if name.startswith((f"{last}norm", f"{last}proj_in"))}
    assert behind == {n for n in spatial if n.startswith((last, "conv_norm_out", "conv_out"))} - kept
    parameter = next(net.parameters())
    parameter.zero_()
    assert not torch.equal(parameter, unet.get_parameter(next(name for name, _ in net.named_parameters())))


@pytest.mark.parametrize("levels", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("layers", [1, 2])
def test_every_parameter_gets_a_gradient_with_and_without_checkpointing(levels, layers):
    sample, t, text, image = inputs()
    gradients = []
    for checkpointing in (False, True):
        unet = backbone(attention_levels=levels, transformer_layers=layers)
        net = ReferenceNet.from_unet(unet).train()
        for module in (unet, net):
            if checkpointing:
                module.enable_gradient_checkpointing()
        features = net(sample[:, :, 0], text, image)
        unet(sample, t, text, image, reference_features=features).sample[:, :, 1:].square().mean().backward()
        gradients.append({n: p.grad for m in (net, unet) for n, p in m.named_parameters(prefix=type(m).__name__)})
    assert not [name for name, grad in gradients[0].items() if grad is None or not grad.any()]
    for name, gradient in gradients[0].items():
        assert torch.equal(gradients[1][name], gradient), name


@torch.no_grad()
def test_the_reference_reaches_the_generated_frames_alone():
    """Without joint norms nothing but the self-attention connects frames; the motion modules stay silent here."""
    unet = XDynaUNet(**SMALL, joint_group_norm=False, dynamics_adapter=False).eval()
    sample, t, text, image = inputs()
    net = ReferenceNet.from_unet(unet)
    features = net(sample[:, :, 0], text, image)
    out = unet(sample, t, text, image, reference_features=features).sample
    without = unet(sample, t, text, image).sample
    torch.testing.assert_close(out[:, :, 0], without[:, :, 0])
    other = unet(sample, t, text, image, reference_features=net(sample[:, :, 0] + 1, text, image)).sample
    for f in range(1, sample.shape[2]):
        assert not torch.allclose(out[:, :, f], without[:, :, f], atol=1e-3)
        assert not torch.allclose(out[:, :, f], other[:, :, f], atol=1e-3)
    one = unet(sample[1:], t, text[1:], image[1:], reference_features=[x[1:] for x in features]).sample
    torch.testing.assert_close(out[1:], one)  # clips do not mix


@torch.no_grad()
def test_save_and_load(tmp_path):
    net, (sample, _, text, image) = ReferenceNet.from_unet(backbone()), inputs()
    net.save_pretrained(tmp_path)
    again = ReferenceNet.from_pretrained(tmp_path)
    for a, b in zip(again(sample[:, :, 0], text, image), net(sample[:, :, 0], text, image), strict=True):
        assert torch.equal(a, b)


def test_full_size():
    """A copy of SD1.5's UNet (859.5 M) with image tokens, less the layers behind the last self-attention's input."""
    with torch.device("meta"):
        unet = XDynaUNet(dynamics_adapter=False)
        net = ReferenceNet.from_unet(unet)
    spatial = sum(p.numel() for name, p in unet.named_parameters() if "motion_modules" not in name)
    count = sum(p.numel() for p in net.parameters())
    assert spatial == pytest.approx(859.5e6 + 19.2e6, rel=1e-3)
    assert 0 < spatial - count < 0.005 * spatial
    assert net.device.type == "meta"


def test_mistakes_are_told():
    sample, t, text, image = inputs()
    net = ReferenceNet.from_unet(backbone())
    features = net(sample[:, :, 0], text, image)
    with pytest.raises(ValueError, match="UNet with the Dynamics-Adapter, which they replace"):
        small_unet()(sample, t, text, image, reference_features=features)
    with pytest.raises(ValueError, match=r"3 reference_features .* expected one .2 clips.* of this UNet's 4"):
        backbone()(sample, t, text, image, reference_features=features[:3])
    with pytest.raises(ValueError, match="at least one frame beside the reference"):
        backbone()(sample[:, :, :1], t, text, image, reference_features=features)
    with pytest.raises(ValueError, match=r"latents of shape \(2, 4, 4, 8, 8\)"):
        net(sample, text, image)
    with pytest.raises(ValueError, match="at least one level"):
        ReferenceNet(attention_levels=(False,) * 4)
