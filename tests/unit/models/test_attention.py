import importlib.util

import pytest
import torch
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from einops import rearrange

from xdyna.models import attention
from xdyna.models.attention import (
    AttentionBase,
    DynamicsAdapterAttention,
    TextImageCrossAttention,
    TokenDownsampling,
    attend,
)
from xdyna.models.unet import XDynaUNet

B, F, L, C, N = 2, 3, 5, 12, 3


def softmax_attention(q, k, v, heads):
    """The formula, head by head, without any fused kernel: inputs (L, C), (S, C), (S, C)."""
    width = q.shape[-1] // heads
    outputs = []
    for i in range(heads):
        part = slice(i * width, (i + 1) * width)
        weights = torch.softmax(q[:, part] @ k[:, part].T / width**0.5, dim=-1)
        outputs.append(weights @ v[:, part])
    return torch.cat(outputs, dim=-1)


def randomised(module):
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    return module


@torch.no_grad()
def test_dynamics_adapter_is_the_equation():
    layer = randomised(DynamicsAdapterAttention(C, heads=N))
    x = torch.randn(B * F, L, C)
    out = layer(x, num_frames=F)
    for b in range(B):
        reference = x[b * F]
        k0, v0 = layer.to_k(reference), layer.to_v(reference)
        for f in range(F):
            frame = x[b * F + f]
            own = softmax_attention(layer.to_q(frame), layer.to_k(frame), layer.to_v(frame), N)
            from_reference = softmax_attention(layer.to_q_ff(frame), k0, v0, N)
            expected = layer.to_out[0](own) + layer.to_out_ff(from_reference)
            torch.testing.assert_close(out[b * F + f], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_downsampled_keys_are_those_of_means_and_the_adapter_sees_all():
    """A grid of 3 x 5 places in cells of 2 x 2, those at its ends cut off: 2 x 3 means."""
    layer = randomised(DynamicsAdapterAttention(C, heads=N))
    x = torch.randn(B * F, 15, C)
    out = layer(x, num_frames=F, downsampled=TokenDownsampling(2, (3, 5)))
    cells = [
        [r * 5 + c for r in rows for c in columns] for rows in ((0, 1), (2,)) for columns in ((0, 1), (2, 3), (4,))
    ]
    for number, frame in enumerate(x):
        reference = x[number // F * F]
        means = torch.stack([frame[cell].mean(dim=0) for cell in cells])
        own = softmax_attention(layer.to_q(frame), layer.to_k(means), layer.to_v(means), N)
        seen = softmax_attention(layer.to_q_ff(frame), layer.to_k(reference), layer.to_v(reference), N)
        expected = layer.to_out[0](own) + layer.to_out_ff(seen)
        torch.testing.assert_close(out[number], expected, atol=1e-5, rtol=1e-5)
    other_level = TokenDownsampling(2, (6, 10))
    assert torch.equal(layer(x, num_frames=F, downsampled=other_level), layer(x, num_frames=F))


@torch.no_grad()
def test_adapter_starts_as_plain_self_attention():
    layer = randomised(DynamicsAdapterAttention(C, heads=N))
    plain = DynamicsAdapterAttention(C, heads=N, adapter=False)
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if "_ff" not in k})
    x = torch.randn(B * F, L, C)
    assert not torch.allclose(layer(x, num_frames=F), plain(x, num_frames=F))
    layer.init_adapter()
    assert torch.equal(layer.to_q_ff.weight, layer.to_q.weight)
    assert torch.equal(layer(x, num_frames=F), plain(x, num_frames=F))


@torch.no_grad()
def test_cross_attention_sums_text_and_image():
    layer = randomised(TextImageCrossAttention(C, heads=N, context_dim=7))
    x, text, image = torch.randn(B * F, L, C), torch.randn(B, 4, 7), torch.randn(B, 2, 7)
    out, text_only = (layer(x, layer.keys(text, tokens), num_frames=F) for tokens in (image, None))
    for z in range(B * F):
        q, b = layer.to_q(x[z]), z // F
        from_text = softmax_attention(q, layer.to_k(text[b]), layer.to_v(text[b]), N)
        from_image = softmax_attention(q, layer.to_k_ip(image[b]), layer.to_v_ip(image[b]), N)
        torch.testing.assert_close(out[z], layer.to_out[0](from_text + from_image), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(text_only[z], layer.to_out[0](from_text), atol=1e-5, rtol=1e-5)


def test_large_batches_are_cut(monkeypatch):
    q, k, v = torch.randn(3, 10, 4, 8).unbind(0)
    whole = attend(q, k, v, heads=2)
    monkeypatch.setattr(attention, "MAX_ATTENTION_BATCH", 3)
    torch.testing.assert_close(attend(q, k, v, heads=2), whole)
    expected = torch.stack([softmax_attention(q[i], k[i], v[i], 2) for i in range(10)])
    torch.testing.assert_close(whole, expected, atol=1e-6, rtol=1e-5)


def test_no_kernel_is_given_more_sequences_than_its_grid_has_places(noting_backend):
    """Temporal attention at 896 x 512 px has 14,336 sequences per clip; a batch of windows passes 65,535."""
    q, k, v = torch.randn(3, 65_536 + 5, 2, 2).unbind(0)
    out = attend(q, k, v, heads=1, backend=AttentionBackendName.XFORMERS)
    assert max(shape[0] for shape, _ in noting_backend) < 65_536
    assert sum(shape[0] for shape, _ in noting_backend) == len(q)
    weights = torch.softmax(q @ k.transpose(-1, -2) / 2**0.5, dim=-1)
    torch.testing.assert_close(out, weights @ v)


@pytest.mark.parametrize("length", [4, attention.SHORT_SEQUENCE, attention.SHORT_SEQUENCE + 1])
def test_bfloat16_training_on_the_cpu_gives_the_values_and_gradients_of_float32(length):
    inputs = [torch.randn(2, length, 16).bfloat16() for _ in range(3)]
    results: list[list[torch.Tensor]] = []
    for dtype in (torch.bfloat16, torch.float32):
        q, k, v = (x.to(dtype, copy=True).requires_grad_() for x in inputs)
        out = attend(q, k, v, heads=2)
        assert out.dtype == dtype
        out.float().square().sum().backward()
        results.append([out.detach(), *(x.grad for x in (q, k, v))])
    for half, full in zip(*results, strict=True):
        assert float((half.float() - full).norm() / full.norm()) < 0.03


def test_heads_must_divide_channels():
    with pytest.raises(ValueError, match="12 channels cannot be split into 5 heads"):
        DynamicsAdapterAttention(12, heads=5)


@pytest.mark.skipif(importlib.util.find_spec("xformers") is not None, reason="xformers is installed")
def test_missing_xformers_is_told():
    layer = DynamicsAdapterAttention(C, heads=N)
    with pytest.raises(ValueError, match=r"xformers is not installed.*\[xformers\]"):
        layer.set_use_memory_efficient_attention_xformers(True)
    layer.set_use_memory_efficient_attention_xformers(False)
    assert layer(torch.randn(F, L, C), num_frames=F).shape == (F, L, C)


@pytest.fixture
def noting_backend(monkeypatch):
    """Stands in for a backend of diffusers' dispatcher; notes the shapes that reach it, (B, L, N, D) as documented."""
    shapes = []

    def run(query, key, value):
        shapes.append((tuple(query.shape), tuple(key.shape)))
        q, k, v = (rearrange(x, "b l n d -> b n l d") for x in (query, key, value))
        weights = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1)
        return rearrange(weights @ v, "b n l d -> b l n d")

    name = AttentionBackendName.XFORMERS
    monkeypatch.setitem(_AttentionBackendRegistry._backends, name, run)
    monkeypatch.setitem(_AttentionBackendRegistry._supported_arg_names, name, {"query", "key", "value"})
    monkeypatch.setattr(attention, "require_kernel", lambda name: None)
    monkeypatch.setattr(attention_dispatch, "_check_attention_backend_requirements", lambda backend: None)
    monkeypatch.setattr(_AttentionBackendRegistry, "_active_backend", AttentionBackendName.NATIVE)
    return shapes


def test_a_backend_gets_the_heads(noting_backend):
    q, k, v = torch.randn(2, L, C), torch.randn(2, 4, C), torch.randn(2, 4, C)
    out = attend(q, k, v, heads=N, backend=AttentionBackendName.XFORMERS)
    torch.testing.assert_close(out, attend(q, k, v, heads=N))
    assert noting_backend == [((2, L, N, C // N), (2, 4, N, C // N))]


@pytest.mark.parametrize("way", ["set_attention_backend", "context", "xformers"])
def test_every_attention_takes_the_chosen_backend(noting_backend, way):
    """However it is chosen: all heads of all layers go through it, and none any more when it is given back."""
    torch.manual_seed(0)
    unet = XDynaUNet(
        block_out_channels=(8, 16), attention_levels=(True, False), layers_per_block=1, num_attention_heads=2,
        motion_heads=2, cross_attention_dim=8, norm_num_groups=4,
    )  # fmt: skip
    layers = [module for module in unet.modules() if isinstance(module, AttentionBase)]
    kinds = {type(module).__name__ for module in layers}
    assert kinds == {"DynamicsAdapterAttention", "TextImageCrossAttention", "TemporalSelfAttention"}
    inputs = torch.randn(1, 4, 3, 8, 8), 1, torch.randn(1, 5, 8), torch.randn(1, 4, 8)

    def run():
        noting_backend.clear()
        return unet(*inputs).sample, len(noting_backend)

    plain, none = run()
    if way == "context":
        with attention_dispatch.attention_backend("xformers"):
            chosen, calls = run()
    elif way == "xformers":
        unet.enable_xformers_memory_efficient_attention()
        chosen, calls = run()
        unet.disable_xformers_memory_efficient_attention()
    else:
        unet.set_attention_backend("xformers")
        chosen, calls = run()
        unet.reset_attention_backend()
        _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)
    twice = sum(type(m).__name__ != "TemporalSelfAttention" for m in layers)  # adapter and image tokens: a second one
    assert (none, calls) == (0, len(layers) + twice)
    torch.testing.assert_close(chosen, plain, atol=1e-5, rtol=1e-4)
    again, none = run()
    assert none == 0
    assert torch.equal(again, plain)


def test_the_default_is_pytorchs_kernel_bit_for_bit():
    q, k, v = torch.randn(3, 2, 9, C).unbind(0)
    parts = (rearrange(x, "b l (n d) -> b n l d", n=N) for x in (q, k, v))
    expected = rearrange(torch.nn.functional.scaled_dot_product_attention(*parts), "b n l d -> b l (n d)")
    assert torch.equal(attend(q, k, v, heads=N), expected)


@pytest.mark.parametrize(("length", "others"), [(4, 4), (1, 8), (8, 3)])
def test_attention_over_a_few_tokens_by_sums(length: int, others: int) -> None:
    q, k, v = (torch.randn(5, 2, n, 6, dtype=torch.float64, requires_grad=True) for n in (length, others, others))
    ours, expected = attention._sums(q, k, v), torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(ours, expected)
    weight = torch.randn_like(expected)
    for a, b in zip(*(torch.autograd.grad((x * weight).sum(), (q, k, v)) for x in (ours, expected)), strict=True):
        torch.testing.assert_close(a, b)
