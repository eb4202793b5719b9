"""Operations of the published configuration, counted on meta tensors: a lost saving shows here."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from xdyna.checkpoints.build import build_controlnet
from xdyna.diffusion.windows import uniform_windows
from xdyna.models.controls import FACE_CHANNELS, POSE_CHANNELS
from xdyna.models.denoiser import Denoiser, Tokens
from xdyna.models.unet import XDynaUNet
from xdyna.pipelines.denoise import predict_noise
from xdyna.pipelines.residuals import Condition, ControlResidualCache

GRID, WINDOW, OVERLAP, STEPS, LONG = (112, 64), 16, 4, 25, 192


class SameText(Tokens):
    """Whose rows are known to be equal: values on the meta device cannot be looked at."""

    same_text = True  # type: ignore[assignment]


def teraflops(run: Callable[[], Tensor]) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e12


@torch.no_grad()
def test_operations_of_a_window_step() -> None:
    """At most 98.6 TFLOP of the published code's 120.2 for a clip of one window, 94.2 for one of 192 frames."""
    with torch.device("meta"):
        unet = XDynaUNet().eval()
        nets = [build_controlnet({}, channels=channels).eval() for channels in (POSE_CHANNELS, FACE_CHANNELS)]
        tokens = SameText(torch.empty(2, 77, 768), torch.empty(2, 16, 768))
        latents, reference = torch.empty(1, 4, WINDOW, *GRID), torch.empty(1, 4, 1, *GRID)
        timestep = torch.tensor(500)
    denoiser = Denoiser(unet=unet, pose_controlnet=nets[0], face_controlnet=nets[1])
    # One real pixel stands for all: the value range is read.
    pixel = torch.zeros(1, 1, 1, 1, dtype=torch.uint8)
    shown = [pixel.expand(WINDOW, channels, 8 * GRID[0], 8 * GRID[1]) for channels in (POSE_CHANNELS, FACE_CHANNELS)]

    def counts(conditions: list[Condition]) -> tuple[float, float]:
        """Of a first step and of each later one."""
        cache = ControlResidualCache(conditions, tokens)

        def step() -> Tensor:
            windows = [list(range(WINDOW))]
            return predict_noise(denoiser, latents, reference, timestep, windows=windows, tokens=tokens, controls=cache)

        return teraflops(step), teraflops(step)

    first, later = counts([Condition(net, images) for net, images in zip(nets, shown, strict=True)])
    first_alone, later_alone = counts([])
    assert first_alone > later_alone  # keys of tokens
    once, per_step = first - later, later - later_alone  # for 16 frames; the rest of `once` are keys
    assert once > 0.8  # embeddings of conditions
    assert (first + later * (STEPS - 1)) / STEPS <= 98.6
    windows = len(uniform_windows(LONG, context=WINDOW, overlap=OVERLAP, offset=0))
    frames = LONG / WINDOW
    assert later_alone + per_step * frames / windows + once * frames / (windows * STEPS) <= 94.2
    assert later_alone <= 81.4


@torch.no_grad()
def test_what_token_downsampling_saves_by_hand() -> None:
    """A top level of 112 x 64 places: five layers, the first for one branch that stands for both."""
    places, means, channels, frames = 112 * 64, 56 * 32, 320, WINDOW + 1
    with torch.device("meta"):
        unet = XDynaUNet().eval()
        given = (torch.empty(1, 4, frames, *GRID), torch.empty(()), torch.empty(2, 77, 768), torch.empty(2, 16, 768))

    def count(factor: int) -> float:
        return teraflops(lambda: unet(*given, token_downsampling=factor).sample)

    saved = 0.0
    for clips in (1, 2, 2, 2, 2):
        saved += 4 * clips * frames * channels * (places - means) * (places + channels)  # scores, sums; K and V
        saved -= 4 * clips * places * channels**2  # K0 and V0, which were those of frame 0 before
    assert (count(1) - count(2)) * 1e12 == pytest.approx(saved, rel=1e-6)
