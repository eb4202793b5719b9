"""What a stage prepares for the next one when it ends: the measurements and copies themselves."""

from collections.abc import Iterable

import torch
from diffusers import AutoencoderKL, ControlNetModel
from torch import Tensor

from xdyna.models.unet import XDynaUNet


@torch.no_grad()
def latent_scale(vae: AutoencoderKL, images: Iterable[Tensor]) -> float:
    """1 / standard deviation of the posterior means, as Stable Diffusion's 0.18215 (arXiv 2112.10752, appendix G)."""
    latents = torch.cat([vae.encode(batch).latent_dist.mean.flatten() for batch in images])
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
