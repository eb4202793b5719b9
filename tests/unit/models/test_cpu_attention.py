"""Attention in shapes that PyTorch's kernel is slow in, beside that kernel."""

import pytest
import torch
import torch.nn.functional as F

from xdyna.models import cpu_attention
from xdyna.models.attention import attend


@pytest.mark.parametrize(
    ("shape", "keys"), [((12, 8, 2, 4), 8), ((6, 5, 1, 4), 5), ((2, 256, 2, 4), 77), ((3, 300, 1, 8), 18)]
)
def test_it_is_pytorchs(shape: tuple[int, int, int, int], keys: int) -> None:
    generator = torch.Generator().manual_seed(0)
    count, _, heads, width = shape
    q = torch.randn(shape, generator=generator)
    k, v = torch.randn(2, count, keys, heads, width, generator=generator).unbind()
    assert cpu_attention.suits(q, k)
    expected = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    torch.testing.assert_close(cpu_attention.attention(q, k, v, backend=None), expected, rtol=1e-5, atol=1e-6)


def test_only_who_asks_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere results keep their bits: the kernel is PyTorch's, with and without gradients."""
    seen: list[int] = []
    original = cpu_attention.attention
    monkeypatch.setattr(cpu_attention, "attention", lambda *a, **k: seen.append(1) or original(*a, **k))
    x = torch.randn(12, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = attend(x, x, x, heads=2)
    assert not seen
    with cpu_attention.allow():
        torch.testing.assert_close(attend(x, x, x, heads=2), plain, rtol=1e-5, atol=1e-6)
        assert len(seen) == 1
        attend(x.clone().requires_grad_(), x, x, heads=2)
        assert len(seen) == 1
    attend(x, x, x, heads=2)
    assert len(seen) == 1
