"""How many floating-point operations an animation takes, counted on the meta device."""

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, ControlNetModel
from torch.utils.flop_counter import FlopCounterMode

from xdyna.models.unet import XDynaUNet
from xdyna.pipelines.folder import Checkpoint
from xdyna.pipelines.plan import Plan
from xdyna.pipelines.residuals import EMBEDDED_FRAMES


@dataclass(frozen=True)
class Workload:
    """What is to be computed.

    Attributes:
        frames: generated frames T.
        windows: windows per step.
        context: generated frames per window.
        steps: denoising steps, all layers in each.
        branches: 2 with guidance, 1 without.
        size: (H, W) in pixels.
        face: whether the face ControlNet runs.
        token_downsampling: see `XDynaUNet.forward`.
    """

    frames: int
    windows: int
    context: int
    steps: int
    branches: int
    size: tuple[int, int]
    face: bool
    token_downsampling: int = 1

    @staticmethod
    def of(plan: Plan) -> "Workload":
        """That of an animation."""
        settings, frames = plan.settings, len(plan.driving.rows)
        assert settings.guidance is not None
        assert settings.steps is not None
        return Workload(
            frames=frames,
            windows=len(plan.windows()),
            context=min(frames, settings.context_frames),
            steps=settings.steps,
            branches=2 if settings.guidance > 1 else 1,
            size=plan.size,
            face=plan.face,
            token_downsampling=settings.token_downsampling,
        )


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of the parts of an animation.

    Attributes:
        window: of the UNet for a window, all layers.
        frame: of the ControlNets for a frame.
        embedding: of what the ControlNets make of a frame's control images; part of `frame`.
        decode: of a frame.
        channels: of the UNet at full resolution.
    """

    window: float
    frame: float
    embedding: float
    decode: float
    channels: int

    def sampling(self, work: Workload, *, embedded: bool = True) -> float:
        """Of all steps of an animation, all layers in each.

        Args:
            work: the animation.
            embedded: whether embedded control images are kept from step to step.
        """
        flops = work.steps * (work.windows * self.window + work.frames * self.frame)
        kept = min(work.frames, EMBEDDED_FRAMES) if embedded else 0
        return flops - (work.steps - 1) * kept * self.embedding

    def of_calibrated(self, work: Workload, *, embedded: bool = True) -> float:
        """Operations in a step of an animation, over those of as many windows in a later step of a video of one window.

        Args: as of `sampling`.
        """
        alone = self.window + work.context * (self.frame - self.embedding * embedded)
        return self.sampling(work, embedded=embedded) / (work.steps * work.windows * alone)


def count_operations(checkpoint: Checkpoint, work: Workload) -> Operations:
    """Count them for an animation.

    Args:
        checkpoint: the weights; only their configs are read.
        work: the animation.
    """
    h, w = (side // checkpoint.vae_scale for side in work.size)
    with torch.device("meta"):
        unet = XDynaUNet.from_config(XDynaUNet.load_config(checkpoint.folder / "unet"))
        names = ["pose_controlnet", "face_controlnet"] if work.face else ["pose_controlnet"]
        nets = [ControlNetModel.from_config(ControlNetModel.load_config(checkpoint.folder / n)) for n in names]
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(checkpoint.folder / "vae"))
        width = unet.config.cross_attention_dim
        text, image = torch.empty(work.branches, 77, width), torch.empty(work.branches, 16, width)
        sample = torch.empty(
            1, unet.config.in_channels, work.context + 1, h, w
        )  # one row: branches share what they can
        latent, step = torch.empty(1, unet.config.in_channels, h, w), torch.empty((), dtype=torch.long)
        images = [torch.empty(1, net.config.conditioning_channels, *work.size) for net in nets]
        pairs = list(zip(nets, images, strict=True))
        return Operations(
            window=_count(unet, sample, torch.empty(()), text, image, token_downsampling=work.token_downsampling),
            frame=sum(_count(n, latent, step, encoder_hidden_states=text[:1], controlnet_cond=x) for n, x in pairs),
            embedding=sum(_count(net.controlnet_cond_embedding, image) for net, image in pairs),
            decode=_count(vae.decoder, torch.empty(1, vae.config.latent_channels, h, w)),
            channels=unet.config.block_out_channels[0],
        )


def _count(module: torch.nn.Module, *args: object, **kwargs: object) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*args, **kwargs)
    return float(counter.get_total_flops())
