"""Who gets the attention that is made for a CPU."""

import pytest
import torch

from xdyna.models import cpu_attention
from xdyna.models.attention import attend


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
