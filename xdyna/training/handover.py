"""What a stage prepares for the next one when it ends."""

from collections.abc import Collection, Iterable

import torch
from diffusers import AutoencoderKL, ControlNetModel
from torch import Tensor

from xdyna.models.unet import XDynaUNet
from xdyna.training.stages import Components


def hand_over(
    stage: str, components: Components, pictures: Iterable[Tensor], *, trained: Collection[str]
) -> dict[str, float]:
    """Prepare the networks for the stage after `stage`.

    `vae`: the latents' scale is measured, so that they have unit variance. If the decoder trained alone they are what
    they were, and keep their scale: what stands on them stays valid. `base`: the Dynamics-Adapters and both
    ControlNets start as copies of the trained UNet (W'o and the ControlNets' outputs at zero).

    Args:
        stage: that ended.
        components: networks with the weights that are handed on.
        pictures: (N, 3, H, W) float32 in [-1, 1], for the latents' scale.
        trained: groups that the stage trained.

    Returns:
        What was measured.
    """
    if stage == "vae" and "vae_encoder" in trained:
        factor = latent_scale(components.vae, pictures)
        components.vae.register_to_config(scaling_factor=factor)
        return {"scaling_factor": factor}
    if stage == "base":
        components.unet.init_adapter()
        for net in (components.pose_controlnet, components.face_controlnet):
            if net is not None:
                copy_encoder(components.unet, net)
    return {}


@torch.no_grad()
def latent_scale(vae: AutoencoderKL, pictures: Iterable[Tensor]) -> float:
    """1 / standard deviation of the posterior means, as Stable Diffusion's 0.18215 (arXiv 2112.10752, appendix G)."""
    latents = torch.cat([vae.encode(batch).latent_dist.mean.flatten() for batch in pictures])
    return round(float(1 / latents.std()), 5)


def copy_encoder(unet: XDynaUNet, controlnet: ControlNetModel) -> list[str]:
    """Start a ControlNet as the UNet's encoder (arXiv 2302.05543, section 3.1).

    Args:
        unet: gives its input convolution, time embedding, down blocks and middle block.
        controlnet: gets them; its condition embedding and zero convolutions stay as they are.

    Returns:
        Names that were copied.
    """
    source, target = unet.state_dict(), controlnet.state_dict()
    own = ("controlnet_cond_embedding.", "controlnet_down_blocks.", "controlnet_mid_block.")
    names = [name for name in target if not name.startswith(own)]
    wrong = [name for name in names if name not in source or source[name].shape != target[name].shape]
    if wrong:
        raise ValueError(f"the ControlNet does not have the UNet's encoder: {', '.join(wrong[:3])} differ")
    controlnet.load_state_dict({name: source[name] for name in names}, strict=False)
    return names
