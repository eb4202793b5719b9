"""The fast path against the equations (xdyna/models/naive.py)."""

import ast
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel
from torch.utils.flop_counter import FlopCounterMode

from tests.unit.test_architecture import ROOT, imports, module_name, sources
from xdyna.diffusion.guidance import condition_range, scale_condition
from xdyna.models.denoiser import Control, Denoiser, Tokens
from xdyna.models.naive import naive_noise
from xdyna.models.unet import XDynaUNet
from xdyna.pipelines.denoise import predict_noise
from xdyna.pipelines.residuals import Condition, ControlResidualCache

SIZES = {"block_out_channels": (8, 16), "layers_per_block": 1, "cross_attention_dim": 6, "norm_num_groups": 4}
NET = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "attention_head_dim": 2,
    "conditioning_embedding_out_channels": (4, 8),
}
ALLOWED = {"tests/unit/models/test_naive.py", "xdyna/pipelines/bench.py", "xdyna/pipelines/bench_window.py"}


def filled(net: torch.nn.Module) -> Any:
    for parameter in net.parameters():  # layers that start at zero would hide mistakes
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return net.eval()


def small_denoiser(**changes: Any) -> Denoiser:
    torch.manual_seed(0)
    unet = {"attention_levels": (True, False), "num_attention_heads": 2, "motion_heads": 2, **changes}
    nets = [ControlNetModel(**SIZES, **NET, conditioning_channels=channels) for channels in (3, 6)]
    pose, face = (filled(net) for net in nets)
    return Denoiser(unet=filled(XDynaUNet(**SIZES, **unet)), pose_controlnet=pose, face_controlnet=face)


WINDOWS = [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 0, 1]]
CASES: dict[str, tuple[dict[str, Any], bool, int]] = {  # sizes of the UNet, same text, branches
    "published": ({}, True, 2),
    "negative prompt": ({}, False, 2),
    "without guidance": ({}, True, 1),
    "norms of single frames": ({"joint_group_norm": False}, True, 2),
    "w/IP-A": ({"dynamics_adapter": False}, True, 2),
    "without image tokens": ({"image_tokens": False}, True, 2),
    "motion in the middle, positions": ({"motion_mid_block": True, "position_channels": 4}, True, 2),
    "attention below, two layers": ({"attention_levels": (False, True), "transformer_layers": 2}, False, 2),
}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_fast_path_is_the_equations(case: str) -> None:
    changes, same_text, rows = CASES[case]
    denoiser = small_denoiser(**changes)
    assert denoiser.face_controlnet is not None
    torch.manual_seed(1)
    frames = 6
    latents, reference = torch.randn(1, 4, frames, 6, 4), torch.randn(1, 4, 1, 6, 4)
    text = torch.randn(1 if same_text else rows, 5, 6).expand(rows, -1, -1)
    image = torch.randn(rows, 3, 6) if denoiser.unet.config.image_tokens else None
    tokens, timestep = Tokens(text, image), torch.tensor(500)
    shown = [torch.randint(0, 200, (frames, channels, 12, 8), dtype=torch.uint8) for channels in (3, 6)]
    nets = [denoiser.pose_controlnet, denoiser.face_controlnet]
    expected = naive_noise(
        denoiser,
        latents,
        reference,
        timestep,
        windows=WINDOWS,
        tokens=tokens,
        controls=[
            Control(net, scale_condition(x, *(v[0] for v in condition_range(x[None]))))
            for net, x in zip(nets, shown, strict=True)
        ],
    )
    cache = ControlResidualCache([Condition(net, x) for net, x in zip(nets, shown, strict=True)], tokens)

    def step(batch: int) -> torch.Tensor:
        return predict_noise(
            denoiser, latents, reference, timestep, windows=WINDOWS, tokens=tokens, controls=cache, batch=batch
        )

    for batch in (1, 1, 2, 3):  # what the first step leaves behind serves the second; 2 leaves a single window over
        assert float((step(batch) - expected).abs().max()) <= 2e-6 * float(expected.abs().max())
    operations = []
    for batch in (1, 3):  # side by side, windows still share what the branches of guidance have in common
        with FlopCounterMode(display=False) as counter:
            step(batch)
        operations.append(counter.get_total_flops() - _of_time(counter))
    # The timestep has two rows at least, or one for each clip and branch.
    assert operations[1] == pytest.approx(operations[0], rel=1e-4)  # the prefix is more than a hundredth


def _of_time(counter: FlopCounterMode) -> int:
    """Of the timestep's embedding, whose rows are as many as clips, or two for a single one."""
    ends = ("time_embedding", "time_emb_proj")
    return sum(sum(found.values()) for name, found in counter.get_flop_counts().items() if name.endswith(ends))


def test_only_tests_and_the_benchmark_know_the_naive_path() -> None:
    for path in sources("xdyna", "scripts", "tests"):
        here = path.relative_to(ROOT).as_posix()
        names = [n for n, _ in imports(ast.parse(path.read_text()), module_name(path), is_package=False)]
        assert here in ALLOWED or not [n for n in names if n.startswith("xdyna.models.naive")], f"{here} imports it"
