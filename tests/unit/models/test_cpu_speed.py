"""What makes the networks fast on a CPU computes the same as what is plain."""

import pytest
import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import FeedForward

from tests.process.small import SMALL
from xdyna.models import attention, cpu_attention
from xdyna.models.blocks import ResnetBlock
from xdyna.models.layers import HalvesGEGLU, SpatialTransformer, halve_geglu, use_channels_last
from xdyna.models.motion import MotionModule
from xdyna.pipelines.untrained import build_pipeline


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The equation in float64, (B, L, N, D)."""
    q, k, v = (x.double() for x in (q, k, v))
    scores = torch.einsum("blnd,bsnd->bnls", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bnls,bsnd->blnd", scores.softmax(-1), v)


@pytest.mark.parametrize(
    ("sequences", "queries", "keys"),
    [
        (256, 4, 4),  # side by side they are as many as their tokens
        (1024, 8, 8),
        (6, 5, 5),  # 6 at most go together
        (7, 16, 16),  # nothing divides 7
        (5, 1, 1),
        (1, 300, 77),
        (2, 256, 17),
    ],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_short_and_ragged_attention_is_attention(sequences, queries, keys, dtype, tolerance) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(sequences, n, 2, 8, generator=generator).to(dtype) for n in (queries, keys, keys))
    assert cpu_attention.suits(q, k) == (sequences != 7)
    out = cpu_attention.attention(q, k, v, backend=None)
    torch.testing.assert_close(out.double(), reference(q, k, v), rtol=0, atol=tolerance)


@cpu_attention.allow()
def test_where_it_is_used_and_where_not(monkeypatch) -> None:
    calls = []
    made = cpu_attention.attention
    monkeypatch.setattr(cpu_attention, "attention", lambda *a, **k: calls.append(1) or made(*a, **k))
    frames, text = torch.randn(64, 8, 16), torch.randn(1, 77, 16)
    attention.attend(frames, frames, frames, heads=2)
    attention.attend(torch.randn(1, 512, 16), text, text, heads=2)
    assert len(calls) == 2
    attention.attend(frames.requires_grad_(), frames, frames, heads=2).sum().backward()
    long = torch.randn(2, 64, 16)
    attention.attend(long, long, long, heads=2)  # fills its tile
    attention.attend(torch.randn(64, 8, 16), torch.randn(64, 4, 16), torch.randn(64, 4, 16), heads=2)
    assert len(calls) == 2
    meta = torch.empty(64, 8, 2, 8, device="meta")
    assert not cpu_attention.suits(meta, meta)
    half = torch.empty(64, 8, 2, 8, dtype=torch.float16)
    assert not cpu_attention.suits(half, half)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_halves_of_geglu_are_its_bits(dtype, monkeypatch) -> None:
    torch.manual_seed(0)
    layer = FeedForward(16, activation_fn="geglu").to(dtype)
    x, names = torch.randn(3, 40, 16, dtype=dtype), list(layer.state_dict())
    with torch.no_grad():
        expected = layer(x)
        halve_geglu(layer)
        assert type(layer.net[0]) is HalvesGEGLU
        monkeypatch.setattr(GEGLU, "forward", None)  # of bfloat16, the halves are computed apart
        if dtype == torch.bfloat16:
            assert torch.equal(layer(x), expected)
        monkeypatch.undo()
        assert torch.equal(layer(x), expected)
    assert list(layer.state_dict()) == names
    layer(x).sum().backward()
    assert layer.net[0].proj.weight.grad is not None


def test_halves_leave_layers_alone_that_are_more_than_their_weights() -> None:
    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    layer = GEGLU(8, 8).bfloat16()
    layer.proj = Doubled(8, 16).bfloat16()
    x = torch.randn(2, 8).bfloat16()
    with torch.no_grad():
        assert torch.equal(HalvesGEGLU(layer)(x), layer(x))
        plain = GEGLU(8, 8).bfloat16()
        plain.proj.forward = lambda y: torch.zeros(2, 16, dtype=y.dtype)  # as hooks do that move weights
        assert not HalvesGEGLU(plain)(x).any()


@torch.no_grad()
def test_channels_stay_the_last_from_end_to_end() -> None:
    """Else each layer would copy; and the numbers are those of the usual layout."""
    generator = torch.Generator().manual_seed(1)
    unet = build_pipeline(SMALL, seed=0).unet
    for p in unet.parameters():
        if not p.any():
            p.data = 0.1 * torch.randn(p.shape, generator=generator)
    sample = torch.randn(1, 4, 6, 16, 16, generator=generator)
    text = torch.randn(1, 77, unet.config.cross_attention_dim, generator=generator)
    image = torch.randn(1, 4, unet.config.cross_attention_dim, generator=generator)
    expected = unet(sample, 500, text, image).sample
    use_channels_last(unet)
    seen = []

    def look(layer, inputs, output) -> None:
        seen.append((type(layer).__name__, output.is_contiguous(memory_format=torch.channels_last)))

    for layer in unet.modules():
        if isinstance(layer, ResnetBlock | SpatialTransformer | MotionModule):
            layer.register_forward_hook(look)
        if isinstance(layer, torch.nn.GroupNorm):  # the joint ones see all frames as one image
            layer.register_forward_pre_hook(lambda _, inputs: seen.append(("GroupNorm", inputs[0].stride(1) == 1)))
    torch.testing.assert_close(unet(sample, 500, text, image).sample, expected, rtol=1e-4, atol=1e-5)
    assert {name for name, _ in seen} == {"ResnetBlock", "SpatialTransformer", "MotionModule", "GroupNorm"}
    assert all(last for _, last in seen), seen
