"""`XDynaPipeline`: reference image + pose video (+ face video) -> video.

encode (reference latents, text tokens, image tokens) -> denoise (windows, guidance, scheduler) -> decode (in chunks).

Shape legend: N videos, T generated frames, H W pixels, h = H / 8, w = W / 8 latent grid, S tokens.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, DiffusionPipeline, SchedulerMixin
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput
from einops import rearrange
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from xdyna.config.contract import PUBLISHED_GUIDANCE, ConditionContract, read_contract
from xdyna.config.infer import InferConfig
from xdyna.core.scratch import drop_pages
from xdyna.diffusion.guidance import check_interval
from xdyna.models.denoiser import Tokens
from xdyna.models.image_tokens import ImageTokenResampler
from xdyna.models.reference_net import ReferenceNet
from xdyna.models.unet import XDynaUNet
from xdyna.pipelines.denoise import VideoSampler
from xdyna.pipelines.inputs import ImageInput, VideoInput, as_images, count_videos, repeated
from xdyna.pipelines.lora import LoraLoaderMixin
from xdyna.pipelines.options import Embeddings, Precomputed, Reuse, Savings, Windows
from xdyna.pipelines.prepare import PreparationMixin
from xdyna.pipelines.resume import ClipStore, blocks

__all__ = ["Precomputed", "XDynaPipeline", "XDynaPipelineOutput", "to_uint8"]

CONTROL_CHUNK = 4  # frames that go through a ControlNet at a time in low memory
PUBLISHED = InferConfig()  # the sampling defaults
Generators = torch.Generator | list[torch.Generator] | None
StepCallback = Callable[["XDynaPipeline", int, Tensor, dict[str, Tensor]], dict[str, Tensor]]


@dataclass
class XDynaPipelineOutput(BaseOutput):
    """Output of `XDynaPipeline`, the videos first: `frames[0]` is the first one.

    Attributes:
        frames: as `output_type` says, "pil": a list of PIL images per video; "np": float array (N, T, H, W, 3) in
            [0, 1]; "pt": float tensor (N, T, 3, H, W) in [0, 1]; "latent": latents (N, 4, T, h, w).
    """

    frames: np.ndarray | Tensor | list[list[Image.Image]]


class XDynaPipeline(DiffusionPipeline, PreparationMixin, LoraLoaderMixin):
    """Animate the person in an image (X-Dyna, CVPR 2025).

    Args:
        vae: Stable Diffusion's autoencoder.
        unet: the video UNet.
        scheduler: any diffusers scheduler; the published one is DDIM.
        pose_controlnet: ControlNet of the pose maps, 3 channels.
        text_encoder: CLIP text model; None is possible, prompts are then given as embeddings.
        tokenizer: its tokenizer, or None with it.
        face_controlnet: ControlNet of the face patches, 6 channels; optional.
        image_encoder: CLIP vision model; None when image tokens are given, or not used by the UNet.
        feature_extractor: CLIP image preprocessing.
        image_projection: the Resampler.
        reference_net: of the ablation `w/RefNet`, for a UNet without the Dynamics-Adapter; else None.
        tiny_vae: a small autoencoder with the latents of `vae`, that decodes previews (TAESD); optional.
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->image_projection->reference_net->unet->vae->tiny_vae"
    _optional_components: ClassVar = [
        "face_controlnet",
        "image_encoder",
        "feature_extractor",
        "image_projection",
        "reference_net",
        "tiny_vae",
    ]
    _callback_tensor_inputs: ClassVar = [
        "latents",
        "prompt_embeds",
        "negative_prompt_embeds",
        "image_embeds",
        "negative_image_embeds",
    ]

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: XDynaUNet,
        scheduler: SchedulerMixin,
        pose_controlnet: ControlNetModel,
        text_encoder: CLIPTextModel | None,
        tokenizer: CLIPTokenizer | None,
        face_controlnet: ControlNetModel | None = None,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        feature_extractor: Any | None = None,
        image_projection: ImageTokenResampler | None = None,
        reference_net: ReferenceNet | None = None,
        tiny_vae: AutoencoderTiny | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae,
            unet=unet,
            scheduler=scheduler,
            pose_controlnet=pose_controlnet,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            face_controlnet=face_controlnet,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
            image_projection=image_projection,
            reference_net=reference_net,
            tiny_vae=tiny_vae,
        )
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1) if vae is not None else 8
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor, resample="bilinear")
        self._guidance_scale = PUBLISHED_GUIDANCE
        self._contract: ConditionContract | None = None  # read when it is first asked for
        self._low_memory = False
        self._num_timesteps = 0
        self._interrupt = False

    @property
    def contract(self) -> ConditionContract:
        """What the model is drawn and sampled by: `conditions.json` of its local folder, else the published one.

        Raises:
            WeightsError: that file is damaged.
        """
        if self._contract is None:
            self._contract = read_contract(Path(str(self.config.get("_name_or_path") or "")))
        return self._contract

    @contract.setter
    def contract(self, contract: ConditionContract) -> None:
        self._contract = contract

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As diffusers', with `conditions.json` where the contract is not the published one."""
        if self.contract != ConditionContract():
            self.contract.write(Path(save_directory))
        super().save_pretrained(save_directory, *args, **kwargs)

    @property
    def guidance_scale(self) -> float:
        """Scale of classifier-free guidance of the running or last call; a step's callback may change it."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the unconditional branch runs."""
        return self._guidance_scale > 1

    @property
    def num_timesteps(self) -> int:
        """Steps of the running or last call, those done before it included."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """True when a step's callback asked to stop (`pipe._interrupt = True`): the steps that remain are left out."""
        return self._interrupt

    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput | None,
        pose_video: VideoInput,
        face_video: VideoInput | None = None,
        *,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_videos_per_prompt: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: Sequence[float] = (0.0, 1.0),
        reuse: Reuse | None = None,
        token_downsampling: int = 1,
        context_frames: int = PUBLISHED.context_frames,
        context_overlap: int = PUBLISHED.context_overlap,
        context_schedule: str = PUBLISHED.context_schedule,
        similarity_prior: bool = PUBLISHED.similarity_prior,
        eta: float = 0.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        image_embeds: Tensor | None = None,
        negative_image_embeds: Tensor | None = None,
        precomputed: Precomputed | None = None,
        decode_chunk_size: int = PUBLISHED.vae_chunk,
        decoder: str = "vae",
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        window_batch: int = 1,
        store: ClipStore | None = None,
    ) -> XDynaPipelineOutput:
        """Generate one frame per frame of the pose video.

        Several videos: give lists of images, pose videos, face videos, prompts, generators, or embeddings with several
        rows. One entry serves all videos. Each video is the one that would be made alone. N counts all of them.

        Args:
            image: the person, in any of diffusers' forms (`pipelines/inputs.py`). Image tokens are those of the whole
                image, or of what is cut for the latents where `contract.reference` is "fitted". For the latents,
                another size than the video's is cut as published (`pipelines/crop.py`; give
                `Precomputed(reference_latents=...)` for another crop). None only when both are given.
            pose_video: pose maps, 3 channels; their size is the video's size, a multiple of 8, unless one is given.
            face_video: face patches, 6 channels: local patches, global patch. Switches the face ControlNet on.
            prompt: text; the published setting is "", as None is.
            negative_prompt: text of the unconditional branch; None is "".
            height: H; None for that of the pose video. Control images of another size are cut as the image is, and
                resized.
            width: W, likewise.
            num_frames: T; None for all frames of the pose video.
            num_videos_per_prompt: videos of each entry, one after the other; generators and latents are those of all.
            num_inference_steps: denoising steps; None takes those of `contract` (published: 25).
            guidance_scale: of classifier-free guidance; None takes that of `contract` (published: 7.5); at 1 or below
                only the conditional branch runs.
            guidance_interval: [low, high], shares of the noise schedule (0 is clean, 1 pure noise) between which
                guidance runs; elsewhere only the conditional branch does (Kynkaanniemi et al., arXiv 2404.07724).
            reuse: of deep features between steps, not exact; None for none.
            token_downsampling: n; at the highest resolution, keys and values of a frame's self-attention are computed
                from means over n x n places, see `models/attention.py`. 1 is exact.
            context_frames: generated frames per window.
            context_overlap: frames shared by neighbouring windows.
            context_schedule: "uniform" (closed loop, published) or "uniform_open" (the end is not tied to the
                beginning).
            similarity_prior: start from the noised reference image (published); False starts from pure noise.
            eta: noise that DDIM adds in its steps, 0 to 1.
            generator: source of all randomness; the same seed gives the same video. One for all videos, or one each.
            latents: (N, 4, T, h, w) Gaussian noise to use instead of drawn noise; with `Precomputed(start_step=...)`
                the noisy latents after that many steps.
            prompt_embeds: (N, S, c) text tokens instead of `prompt`.
            negative_prompt_embeds: (N, S, c) instead of `negative_prompt`.
            image_embeds: (N, S', c) image tokens, see `encode_image`.
            negative_image_embeds: (N, S', c) those of the unconditional branch.
            precomputed: other values to use instead of computed or drawn ones.
            decode_chunk_size: frames decoded at a time.
            decoder: "vae", "tiny" (`tiny_vae`) or "auto" (that where there is one).
            output_type: "pil", "np", "pt" or "latent", see `XDynaPipelineOutput`.
            return_dict: False gives the tuple (frames,).
            callback_on_step_end: called after each step as (pipeline, step, timestep, tensors); may return
                replacements for the tensors.
            callback_on_step_end_tensor_inputs: which tensors it is given, of `_callback_tensor_inputs`.
            window_batch: windows per forward pass; the result is the same but for rounding.
            store: where the tensors of one long video stand, and which processes share the work; None: in memory.

        Returns:
            XDynaPipelineOutput: the frames; or the tuple, see `return_dict`.

        Raises:
            ValueError: on inputs that do not fit together.
        """
        num_inference_steps = self.contract.steps if num_inference_steps is None else num_inference_steps
        guidance_scale = self.contract.guidance if guidance_scale is None else guidance_scale
        self.check_inputs(
            prompt,
            negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            output_type=output_type,
            decoder=decoder,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            at_least_one={
                "num_inference_steps": num_inference_steps,
                "context_frames": context_frames,
                "decode_chunk_size": decode_chunk_size,
                "window_batch": window_batch,
                "num_videos_per_prompt": num_videos_per_prompt,
                "height": 1 if height is None else height,
                "width": 1 if width is None else width,
            },
        )
        given, interval = precomputed or Precomputed(), check_interval(guidance_interval)
        reuse, store = reuse or Reuse(), store or ClipStore()
        self._guidance_scale, self._interrupt = guidance_scale, False
        images = as_images(image) if image is not None else None
        controls = self._controls(pose_video, face_video, num_frames, (height, width))
        timesteps = self._timesteps(num_inference_steps)
        count = count_videos(
            {
                "image": _count(images),
                "pose_video": len(controls),
                "prompt": _count(prompt if prompt_embeds is None else prompt_embeds),
                "negative_prompt": _count(
                    negative_prompt if negative_prompt_embeds is None else negative_prompt_embeds
                ),
                "image_embeds": _count(image_embeds),
            },
            {"latents": _count(latents), "generator": len(generator) if isinstance(generator, list) else None},
            each=num_videos_per_prompt,
        )
        entries, each = count // num_videos_per_prompt, num_videos_per_prompt
        shape = controls[0][0].images.shape
        fitted = ((shape[-2], shape[-1]), face_video is not None) if self.contract.reference == "fitted" else None
        embeddings = Embeddings(
            *self.encode_prompt(
                prompt,
                negative_prompt,
                self.do_classifier_free_guidance or self.text_encoder is not None,  # a callback may turn it on
                prompt_embeds=prompt_embeds,
                negative_prompt_embeds=negative_prompt_embeds,
            ),
            *self._image_embeds(images, image_embeds, negative_image_embeds, fitted),
        ).repeated(entries, each=each)
        samplers, latents = self._start(
            repeated(images, entries, "image", each=each) if images is not None else [None] * count,
            repeated(controls, entries, "pose_video", each=each),
            repeated(generator if isinstance(generator, list) else [generator], count, "generator"),
            windows=Windows(context_frames, context_overlap, context_schedule, reuse.interval),
            steps=len(timesteps),
            latents=latents,
            given=given,
            similar=similarity_prior,
            eta=eta,
            savings=Savings(reuse, self._low_memory, CONTROL_CHUNK if self._low_memory else None, token_downsampling),
            store=store,
        )
        latents = self._denoise(
            samplers,
            latents,
            embeddings.to(self._execution_device, self.unet.dtype),
            timesteps,
            start_step=given.start_step,
            interval=interval,
            callback=callback_on_step_end,
            tensor_inputs=callback_on_step_end_tensor_inputs,
            store=store,
            window_batch=window_batch,
        )
        frames = (
            latents
            if output_type == "latent"
            else (self._decode(latents, decode_chunk_size, output_type, self.decoder(decoder)))
        )
        self.maybe_free_model_hooks()
        return XDynaPipelineOutput(frames=frames) if return_dict else (frames,)  # type: ignore[return-value]

    # --- denoise --------------------------------------------------------------------------------------------------

    def _denoise(
        self,
        samplers: Sequence[VideoSampler],
        latents: Tensor,
        embeddings: Embeddings,
        timesteps: Tensor,
        *,
        start_step: int,
        interval: tuple[float, float],
        callback: StepCallback | None,
        tensor_inputs: Sequence[str],
        store: ClipStore,
        window_batch: int,
    ) -> Tensor:
        tokens: list[Tokens] = []
        built_for: tuple[Embeddings, bool] | None = None
        total = sum(len(windows) for sampler in samplers for windows in sampler.windows[start_step:])
        with self.progress_bar(total=total) as bar:
            for step in range(start_step, len(timesteps)):
                if self.interrupt:
                    continue
                t = timesteps[step]
                share = float(t) / self.scheduler.config.num_train_timesteps
                guided = self.do_classifier_free_guidance and interval[0] <= share <= interval[1]
                if built_for is None or built_for[0] is not embeddings or built_for[1] != guided:
                    tokens = [embeddings.tokens(number, guided=guided) for number in range(len(samplers))]
                    built_for = embeddings, guided
                after = [
                    sampler.step(
                        row, step, t, tokens=own, scale=self.guidance_scale, on_window=bar.update, store=store,
                        batch=window_batch,
                    )
                    for sampler, row, own in zip(samplers, latents.split(1), tokens, strict=True)
                ]  # fmt: skip
                latents = torch.cat(after) if len(after) > 1 else after[0]
                if callback is not None:
                    tensors = {"latents": latents, **vars(embeddings)}
                    changed = callback(self, step, t, {name: tensors[name] for name in tensor_inputs})
                    latents = changed.pop("latents", latents)
                    embeddings = embeddings.replaced(changed)
        for frames in blocks(latents.shape[2]):
            if not bool(torch.isfinite(latents[:, :, frames]).all()):
                raise ValueError(
                    "sampling gave NaN or infinity; use another dtype (bfloat16 or float32), or check the weights"
                )
            drop_pages()
        return latents

    # --- decode ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def decode_frames(
        self, latents: Tensor, *, chunk: int = PUBLISHED.vae_chunk, decoder: str = "vae"
    ) -> Iterator[Tensor]:
        """Decode the latents of one video a few frames at a time, so that a long video needs no memory.

        Args:
            latents: (1, 4, T, h, w), scaled: what a call with `output_type="latent"` gives.
            chunk: frames at a time.
            decoder: see the call.

        Yields:
            Tensor: (<= chunk, 3, H, W) float32 in [0, 1], on the CPU.
        """
        yield from self._decoded(latents, chunk, self.decoder(decoder))
        self.maybe_free_model_hooks()

    def _decoded(self, latents: Tensor, chunk: int, vae: AutoencoderKL | AutoencoderTiny) -> Iterator[Tensor]:
        for part in rearrange(latents, "1 c t h w -> t c h w").split(chunk):
            part = (part / vae.config.scaling_factor).to(self._execution_device, vae.dtype)
            decoded = vae.decode(part, return_dict=False)[0]
            if not bool(torch.isfinite(decoded).all()):
                raise ValueError("decoding gave NaN or infinity; use another dtype (bfloat16 or float32) for the VAE")
            yield (decoded.float() / 2 + 0.5).clamp(0, 1).cpu()

    def _decode(self, latents: Tensor, chunk: int, output_type: str, vae: AutoencoderKL | AutoencoderTiny) -> Any:
        videos = [torch.cat(list(self._decoded(video, chunk, vae))) for video in latents.split(1)]
        if output_type == "pil":
            return [[Image.fromarray(frame) for frame in to_uint8(video)] for video in videos]
        frames = torch.stack(videos)
        return frames if output_type == "pt" else rearrange(frames, "n t c h w -> n t h w c").numpy()


def to_uint8(frames: Tensor) -> np.ndarray:
    """(T, 3, H, W) in [0, 1] -> uint8 (T, H, W, 3), rounded to nearest."""
    return rearrange((frames * 255).round().to(torch.uint8), "t c h w -> t h w c").numpy()


def _count(values: Any) -> int | None:
    """Entries of an argument; None where it was left out."""
    return None if values is None else 1 if isinstance(values, str) else len(values)
