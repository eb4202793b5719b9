"""`XDynaPipeline`: reference picture + pose frames (+ face frames) -> video.

encode (reference latents, text tokens, image tokens) -> denoise (windows, guidance, scheduler) -> decode (in chunks).

Shape legend: T generated frames, H W pixels, h w = H / 8, W / 8 latent grid, S tokens.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, DiffusionPipeline, SchedulerMixin
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from einops import rearrange
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from xdyna.diffusion.prior import similarity_prior
from xdyna.diffusion.windows import window_schedule
from xdyna.models.controls import FACE_CHANNELS, POSE_CHANNELS
from xdyna.models.image_tokens import ImageTokenResampler
from xdyna.models.reference_net import ReferenceNet
from xdyna.models.unet import XDynaUNet
from xdyna.pipelines.denoise import Condition, ControlResidualCache, Tokens, guide, predict_noise, read_reference
from xdyna.pipelines.options import Precomputed, SamplingOptions, check_precomputed

__all__ = ["Precomputed", "SamplingOptions", "XDynaPipeline", "XDynaPipelineOutput", "to_uint8"]

StepCallback = Callable[["XDynaPipeline", int, Tensor, dict[str, Tensor]], dict[str, Tensor]]


@dataclass
class XDynaPipelineOutput(BaseOutput):
    """Output of `XDynaPipeline`.

    Attributes:
        frames: uint8 array (T, H, W, 3); or float tensor (T, 3, H, W) in [0, 1]; or a list of PIL images; or latents
            (1, 4, T, h, w), as `output_type` says.
    """

    frames: np.ndarray | Tensor | list[Image.Image]


class XDynaPipeline(DiffusionPipeline):
    """Animate the person in a picture (X-Dyna, CVPR 2025).

    Args:
        vae: Stable Diffusion's autoencoder.
        unet: the video UNet.
        scheduler: any diffusers scheduler; the published one is DDIM.
        pose_controlnet: ControlNet of the skeleton pictures, 3 channels.
        face_controlnet: ControlNet of the face patches, 6 channels; optional.
        text_encoder: CLIP text model; may be None when text tokens are given.
        tokenizer: its tokenizer.
        image_encoder: CLIP vision model; may be None when image tokens are given.
        feature_extractor: CLIP image preprocessing.
        image_projection: the Resampler.
        reference_net: of the ablation `w/RefNet`, for a UNet without the Dynamics-Adapter; else None.
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->image_projection->reference_net->unet->vae"
    _optional_components: ClassVar = [
        "face_controlnet",
        "text_encoder",
        "tokenizer",
        "image_encoder",
        "feature_extractor",
        "image_projection",
        "reference_net",
    ]

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: XDynaUNet,
        scheduler: SchedulerMixin,
        pose_controlnet: ControlNetModel,
        face_controlnet: ControlNetModel | None = None,
        text_encoder: CLIPTextModel | None = None,
        tokenizer: CLIPTokenizer | None = None,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        feature_extractor: Any | None = None,
        image_projection: ImageTokenResampler | None = None,
        reference_net: ReferenceNet | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae,
            unet=unet,
            scheduler=scheduler,
            pose_controlnet=pose_controlnet,
            face_controlnet=face_controlnet,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
            image_projection=image_projection,
            reference_net=reference_net,
        )
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor, resample="bilinear")

    @torch.no_grad()
    def __call__(
        self,
        reference: Image.Image | np.ndarray | None,
        pose_frames: np.ndarray | Tensor,
        face_frames: np.ndarray | Tensor | None = None,
        *,
        prompt: str = "",
        negative_prompt: str = "",
        options: SamplingOptions | None = None,
        generator: torch.Generator | None = None,
        precomputed: Precomputed | None = None,
        callback_on_step_end: StepCallback | None = None,
        output_type: str = "np",
    ) -> XDynaPipelineOutput:
        """Generate one frame per pose frame.

        Args:
            reference: picture of the person, PIL or uint8 (H, W, 3). Image tokens are those of the whole picture; for
                the latents, another size than the pose frames' is centre cropped to their aspect and resized (give
                `Precomputed(reference_latents=...)` for another crop). None only when both are given.
            pose_frames: uint8 (T, H, W, 3) skeleton pictures; their size is the video's size, a multiple of 8.
            face_frames: uint8 (T, H, W, 6): local patches, global patch.
            prompt: text; the published setting is "".
            negative_prompt: text of the unconditional half.
            options: sampling settings.
            generator: source of all randomness; the same seed gives the same video.
            precomputed: values to use instead of computed or drawn ones.
            callback_on_step_end: called as (pipeline, step, timestep, {"latents": ...}); may return replacements.
            output_type: "np" (uint8), "pt" (float [0, 1]), "pil" or "latent".

        Returns:
            XDynaPipelineOutput: the frames.

        Raises:
            ValueError: on inputs that do not fit together.
        """
        options, given = options or SamplingOptions(), precomputed or Precomputed()
        if output_type not in ("np", "pt", "pil", "latent"):
            raise ValueError(f"output_type {output_type!r} is unknown; choose np, pt, pil or latent")
        conditions = self._conditions(pose_frames, face_frames)
        tokens, reference_latents = self._encode(
            reference, prompt, negative_prompt, conditions, options, given, generator
        )
        latents = self._denoise(reference_latents, tokens, conditions, options, given, generator, callback_on_step_end)
        if output_type == "latent":
            frames: Any = latents
        else:
            decoded = list(self.decode_frames(latents, chunk=options.decode_chunk))
            if output_type == "pt":
                frames = torch.cat(decoded)
            else:
                frames = np.concatenate([to_uint8(chunk) for chunk in decoded])
                frames = [Image.fromarray(frame) for frame in frames] if output_type == "pil" else frames
        self.maybe_free_model_hooks()
        return XDynaPipelineOutput(frames=frames)

    # --- encode ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_reference(self, picture: Image.Image, generator: torch.Generator | None = None) -> Tensor:
        """Latents of the reference: a sample of the VAE's posterior, scaled. Returns: (1, 4, h, w) float32."""
        pixels = self.image_processor.preprocess(picture).to(self._execution_device, self.vae.dtype)
        posterior = self.vae.encode(pixels).latent_dist
        return posterior.sample(generator).float() * self.vae.config.scaling_factor

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """CLIP text tokens. Args: texts: one per row. Returns: (rows, S, c)."""
        if self.text_encoder is None or self.tokenizer is None:
            raise ValueError("this pipeline has no text encoder; give Precomputed(text_tokens=...)")
        ids = self.tokenizer(
            list(texts),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return self.text_encoder(ids.to(self._execution_device))[0]

    @torch.no_grad()
    def encode_image(self, picture: Image.Image) -> Tensor:
        """Image tokens. Returns: (2, S', c): of an all-zero input (unconditional), of the picture."""
        if self.image_encoder is None or self.feature_extractor is None or self.image_projection is None:
            raise ValueError("this pipeline has no image encoder; give Precomputed(image_tokens=...)")
        pixels = self.feature_extractor(images=picture, return_tensors="pt").pixel_values
        pixels = torch.cat([torch.zeros_like(pixels), pixels]).to(self._execution_device, self.image_encoder.dtype)
        hidden = self.image_encoder(pixels, output_hidden_states=True).hidden_states[-2]
        return self.image_projection(hidden.to(self.image_projection.dtype))

    def _conditions(self, pose: np.ndarray | Tensor, face: np.ndarray | Tensor | None) -> list[Condition]:
        conditions = [Condition(self.pose_controlnet, _pictures(pose, "pose_frames", POSE_CHANNELS))]
        height, width = conditions[0].pictures.shape[-2:]
        factor = self.vae_scale_factor
        if height % factor or width % factor:
            raise ValueError(f"pose_frames are {height}x{width} (HxW); both must be multiples of {factor}")
        if face is not None:
            if self.face_controlnet is None:
                raise ValueError("face_frames were given, but this checkpoint has no face ControlNet; leave them out")
            conditions.append(Condition(self.face_controlnet, _pictures(face, "face_frames", FACE_CHANNELS)))
            shapes = [tuple(np.array(c.pictures.shape)[[0, 2, 3]]) for c in conditions]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"pose_frames are (T, H, W) = {shapes[0]} but face_frames {shapes[1]}; they must agree"
                )
        return conditions

    def _encode(
        self,
        reference: Image.Image | np.ndarray | None,
        prompt: str,
        negative_prompt: str,
        conditions: list[Condition],
        options: SamplingOptions,
        given: Precomputed,
        generator: torch.Generator | None,
    ) -> tuple[Tokens, Tensor]:
        height, width = conditions[0].pictures.shape[-2:]
        picture = _as_picture(reference) if reference is not None else None
        latents, image = given.reference_latents, given.image_tokens
        if picture is None and (latents is None or (image is None and self.image_projection is not None)):
            raise ValueError("no reference picture given; it is needed unless its latents and image tokens are given")
        text = given.text_tokens if given.text_tokens is not None else self.encode_text([negative_prompt, prompt])
        if image is None and picture is not None and self.image_projection is not None:
            image = self.encode_image(picture)  # of the whole picture: only the latents need the video's shape
        if latents is None and picture is not None:
            latents = self.encode_reference(_center_fit(picture, height, width), generator)
        expected = (1, self.unet.config.in_channels, height // self.vae_scale_factor, width // self.vae_scale_factor)
        assert latents is not None
        if tuple(latents.shape) != expected:
            raise ValueError(f"reference latents have shape {tuple(latents.shape)}, expected {expected}")
        half = slice(None) if options.guidance > 1 else slice(1, 2)
        device, dtype = self._execution_device, self.unet.dtype
        tokens = Tokens(text[half].to(device, dtype), image[half].to(device, dtype) if image is not None else None)
        return tokens, rearrange(latents.to(device), "1 c h w -> 1 c 1 h w")

    # --- denoise --------------------------------------------------------------------------------------------------

    def _denoise(
        self,
        reference: Tensor,
        tokens: Tokens,
        conditions: list[Condition],
        options: SamplingOptions,
        given: Precomputed,
        generator: torch.Generator | None,
        callback: StepCallback | None,
    ) -> Tensor:
        device, frames = self._execution_device, conditions[0].pictures.shape[0]
        self.scheduler.set_timesteps(options.steps, device=device)
        timesteps = self.scheduler.timesteps
        if int(timesteps.max()) >= self.scheduler.config.num_train_timesteps:
            raise ValueError(f"{options.steps} steps are more than this checkpoint's scheduler has; use fewer")
        check_precomputed(given, frames=frames, grid=tuple(reference.shape[-2:]), steps=options.steps)
        latents, offsets = self._initial_latents(reference, frames, options, given, generator)
        schedule = window_schedule(options.context_schedule)
        plan = [
            schedule(frames, context=options.context_frames, overlap=options.context_overlap, offset=int(offset))
            for offset in offsets
        ][given.start_step :]
        extra = {"eta": 0.0} if "eta" in inspect.signature(self.scheduler.step).parameters else {}
        controls = ControlResidualCache(conditions, tokens)
        features = read_reference(self.reference_net, reference, tokens) if self.reference_net is not None else ()
        with self.progress_bar(total=sum(len(windows) for windows in plan)) as bar:
            for step, windows in enumerate(plan, start=given.start_step):
                t = timesteps[step]
                prediction = predict_noise(
                    self.unet,
                    self.scheduler.scale_model_input(latents, t),
                    reference,
                    t,
                    windows=windows,
                    tokens=tokens,
                    controls=controls,
                    reference_features=features,
                    on_window=bar.update,
                )
                noise = guide(prediction, options.guidance)
                latents = self.scheduler.step(noise, t, latents, return_dict=False, **extra)[0]
                if callback is not None:
                    latents = callback(self, step, t, {"latents": latents}).get("latents", latents)
        if not bool(torch.isfinite(latents).all()):
            raise ValueError(
                "sampling gave NaN or infinity; use another dtype (bfloat16 or float32), or check the weights"
            )
        return latents

    def _initial_latents(
        self,
        reference: Tensor,
        frames: int,
        options: SamplingOptions,
        given: Precomputed,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, list[int]]:
        """Draw everything that is random, always in the same order, so that the seed alone decides."""
        device = self._execution_device
        shape = (*reference.shape[:2], frames, *reference.shape[3:])
        draw_on = generator.device if generator is not None else device
        blurred = torch.rand(shape, generator=generator, device=draw_on).to(device) < 0.5
        noise = randn_tensor(shape, generator=generator, device=device)
        drawn = torch.randint(options.context_frames, (options.steps,), generator=generator, device=draw_on)
        offsets = list(given.offsets) if given.offsets is not None else drawn.tolist()
        if len(offsets) != options.steps:
            raise ValueError(f"{len(offsets)} window offsets given for {options.steps} steps")
        if given.latents is not None:
            return given.latents.to(device), offsets
        noise = given.noise.to(device) if given.noise is not None else noise
        if given.prior is not None:
            prior = given.prior.to(device)
        elif options.similarity_prior:
            prior = similarity_prior(reference[:, :, 0], blurred)
        else:
            return noise * self.scheduler.init_noise_sigma, offsets
        return self.scheduler.add_noise(prior, noise, self.scheduler.timesteps[:1]), offsets

    # --- decode ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def decode_frames(self, latents: Tensor, *, chunk: int = 4) -> Iterator[Tensor]:
        """Decode latents a few pictures at a time, so that a long video streams.

        Args:
            latents: (1, 4, T, h, w), scaled.
            chunk: pictures at a time.

        Yields:
            Tensor: (<= chunk, 3, H, W) float32 in [0, 1], on the CPU.
        """
        pictures = rearrange(latents, "1 c t h w -> t c h w") / self.vae.config.scaling_factor
        for part in pictures.to(self._execution_device, self.vae.dtype).split(chunk):
            decoded = self.vae.decode(part, return_dict=False)[0]
            if not bool(torch.isfinite(decoded).all()):
                raise ValueError("decoding gave NaN or infinity; use another dtype (bfloat16 or float32) for the VAE")
            yield (decoded.float() / 2 + 0.5).clamp(0, 1).cpu()


def to_uint8(pictures: Tensor) -> np.ndarray:
    """(N, 3, H, W) in [0, 1] -> uint8 (N, H, W, 3), rounded to nearest."""
    return rearrange((pictures * 255).round().to(torch.uint8), "n c h w -> n h w c").numpy()


def _pictures(frames: np.ndarray | Tensor, name: str, channels: int) -> Tensor:
    pictures = torch.as_tensor(frames)
    if pictures.ndim != 4 or pictures.shape[-1] != channels or not pictures.shape[0] or pictures.dtype != torch.uint8:
        raise ValueError(
            f"{name} has shape {tuple(pictures.shape)} and type {pictures.dtype}, expected uint8 "
            f"(frames, height, width, {channels}) with at least one frame"
        )
    return rearrange(pictures, "t h w c -> t c h w")


def _as_picture(reference: Image.Image | np.ndarray) -> Image.Image:
    if isinstance(reference, np.ndarray) and (reference.dtype != np.uint8 or reference.shape[2:] != (3,)):
        raise ValueError(
            f"the reference has shape {reference.shape} and type {reference.dtype}, expected uint8 (H, W, 3)"
        )
    if not isinstance(reference, Image.Image | np.ndarray):
        raise ValueError(f"the reference is a {type(reference).__name__}, expected a PIL image or uint8 (H, W, 3)")
    picture = Image.fromarray(reference) if isinstance(reference, np.ndarray) else reference
    return picture.convert("RGB")


def _center_fit(picture: Image.Image, height: int, width: int) -> Image.Image:
    """Largest centred box of the target's aspect, resized bilinearly."""
    if picture.size == (width, height):
        return picture
    if picture.width / picture.height < width / height:
        box_w, box_h = picture.width, max(1, int(picture.width / width * height))
    else:
        box_w, box_h = max(1, int(picture.height / height * width)), picture.height
    left, top = (picture.width - box_w) // 2, (picture.height - box_h) // 2
    # Cut first: the filter must not see what lies beyond the box.
    return picture.crop((left, top, left + box_w, top + box_h)).resize((width, height), Image.Resampling.BILINEAR)
