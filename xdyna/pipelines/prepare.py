"""What `XDynaPipeline` gets ready before the first step: embeddings, control images, random numbers, latents, windows.

Videos are encoded one at a time: a batch could round differently, and each video is to be the one made alone.

Shape legend: N videos, S text or image tokens, c their channels, T generated frames, H W pixels, h w latent grid.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, SchedulerMixin
from diffusers.image_processor import VaeImageProcessor
from einops import rearrange
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from xdyna.core.scratch import drop_pages
from xdyna.diffusion.prior import similarity_prior as mix_prior
from xdyna.diffusion.windows import window_schedule
from xdyna.models.controls import FACE_CHANNELS, POSE_CHANNELS
from xdyna.models.denoiser import Denoiser
from xdyna.models.image_tokens import ImageTokenResampler
from xdyna.models.reference_net import ReferenceNet
from xdyna.models.unet import XDynaUNet
from xdyna.pipelines.crop import fit_image, published_crop
from xdyna.pipelines.denoise import VideoSampler
from xdyna.pipelines.inputs import VideoInput, as_videos, count_videos, repeated
from xdyna.pipelines.options import Draws, Precomputed, Savings, Windows
from xdyna.pipelines.residuals import Condition
from xdyna.pipelines.resume import ClipStore, blocks
from xdyna.pipelines.solvers import restore_solver

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
DECODERS = ("vae", "tiny", "auto")


class EncodersMixin:
    """What `XDynaPipeline` encodes with; a part of it."""

    vae: AutoencoderKL
    tiny_vae: AutoencoderTiny | None
    text_encoder: CLIPTextModel | None
    tokenizer: CLIPTokenizer | None
    image_encoder: CLIPVisionModelWithProjection | None
    feature_extractor: Any
    image_projection: ImageTokenResampler | None
    image_processor: VaeImageProcessor
    _execution_device: torch.device

    @torch.no_grad()
    def encode_reference(self, image: Image.Image, generator: torch.Generator | None = None) -> Tensor:
        """Latents of the reference: a sample of the VAE's posterior, scaled.

        Args:
            image: at the video's size.
            generator: of the sample.

        Returns:
            Tensor: (1, 4, h, w) float32.
        """
        pixels = self.image_processor.preprocess(image).to(self._execution_device, self.vae.dtype)
        posterior = self.vae.encode(pixels).latent_dist
        return posterior.sample(generator).float() * self.vae.config.scaling_factor

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str | Sequence[str] | None,
        negative_prompt: str | Sequence[str] | None = None,
        do_classifier_free_guidance: bool = True,
        *,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """CLIP text tokens of prompts.

        Args:
            prompt: one text, or one per video; None is "".
            negative_prompt: of the unconditional branch; None is "".
            do_classifier_free_guidance: whether that branch is wanted.
            prompt_embeds: (N, S, c) to use instead of `prompt`.
            negative_prompt_embeds: (N, S, c) to use instead of `negative_prompt`.

        Returns:
            tuple: (N, S, c) tokens of the prompts, and of the negative prompts (or None).

        Raises:
            ValueError: texts without a text encoder, or another number of negative prompts.
        """
        texts = [prompt or ""] if prompt is None or isinstance(prompt, str) else list(prompt)
        negatives = (
            [negative_prompt or ""]
            if negative_prompt is None or isinstance(negative_prompt, str)
            else list(negative_prompt)
        )
        wants_negative = do_classifier_free_guidance and negative_prompt_embeds is None
        if prompt_embeds is None:
            texts = repeated(texts, max(len(texts), len(negatives)), "prompt")
            rows = zip(repeated(negatives, len(texts), "negative_prompt"), texts, strict=True)
            # Always both: one row alone rounds differently, and the tokens are not to depend on guidance.
            pairs = [self._embed_text([negative, positive]) for negative, positive in rows]
            prompt_embeds = torch.stack([pair[1] for pair in pairs])
            if wants_negative:
                negative_prompt_embeds = torch.stack([pair[0] for pair in pairs])
        elif wants_negative:
            negatives = repeated(negatives, len(prompt_embeds), "negative_prompt")
            negative_prompt_embeds = torch.cat([self._embed_text([text]) for text in negatives])
        return prompt_embeds, negative_prompt_embeds

    def _embed_text(self, texts: Sequence[str]) -> Tensor:
        return Denoiser.of(self).encode_text(texts, device=self._execution_device)

    @torch.no_grad()
    def encode_image(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        """Image tokens of the whole image.

        Args:
            image: of any size.

        Returns:
            tuple: `image_embeds`, (1, S, c) tokens of the image; `negative_image_embeds`, (1, S, c) those of an
            all-zero input, for the unconditional branch.

        Raises:
            ValueError: this pipeline has no image encoder.
        """
        both = torch.tensor([False, True])
        tokens = Denoiser.of(self).encode_image([image], keep=both, device=self._execution_device)
        negative, positive = tokens.chunk(2)
        return positive, negative

    def _image_embeds(
        self,
        images: Sequence[Image.Image] | None,
        embeds: Tensor | None,
        negative_embeds: Tensor | None,
        fitted: tuple[tuple[int, int], bool] | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Tokens of the images, or the ones that were given; None for both in a pipeline without image tokens.

        `fitted`: size of the video and whether faces drive it, where the tokens are those of the animated part alone.
        """
        if embeds is not None or self.image_projection is None:
            return embeds, negative_embeds
        if images is None:
            raise ValueError("no reference image given; it is needed unless its latents and image tokens are given")
        if fitted is not None:
            images = [_fitted(image, *fitted) for image in images]
        encoded = [self.encode_image(image) for image in images]
        positive, negative = (torch.cat(rows) for rows in zip(*encoded, strict=True))
        return positive, negative if negative_embeds is None else negative_embeds


class PreparationMixin(EncodersMixin):
    """What `XDynaPipeline` begins with; a part of it."""

    unet: XDynaUNet
    scheduler: SchedulerMixin
    pose_controlnet: ControlNetModel
    face_controlnet: ControlNetModel | None
    reference_net: ReferenceNet | None
    vae_scale_factor: int
    _num_timesteps: int
    _callback_tensor_inputs: ClassVar[list[str]]

    def check_inputs(
        self,
        prompt: str | Sequence[str] | None,
        negative_prompt: str | Sequence[str] | None,
        *,
        prompt_embeds: Tensor | None,
        negative_prompt_embeds: Tensor | None,
        output_type: str,
        decoder: str,
        callback_on_step_end_tensor_inputs: Sequence[str],
        at_least_one: Mapping[str, int],
    ) -> None:
        """See whether the arguments of a call make sense before anything is computed.

        Args:
            prompt: see the call.
            negative_prompt: see the call.
            prompt_embeds: see the call.
            negative_prompt_embeds: see the call.
            output_type: see the call.
            decoder: see the call.
            callback_on_step_end_tensor_inputs: see the call.
            at_least_one: numbers, by name, that must be 1 or more.

        Raises:
            ValueError: they do not.
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type {output_type!r} is unknown; choose {', '.join(OUTPUT_TYPES)}")
        self.decoder(decoder)
        for name, value in at_least_one.items():
            if value < 1:
                raise ValueError(f"{name} is {value}, expected 1 or more")
        for name, text, embeds in (
            ("prompt", prompt, prompt_embeds),
            ("negative_prompt", negative_prompt, negative_prompt_embeds),
        ):
            if text and embeds is not None:
                raise ValueError(f"{name} and {name}_embeds were both given; give one of the two")
            if text is not None and not isinstance(text, str | list | tuple):
                raise ValueError(f"{name} is a {type(text).__name__}, expected a text or a list of texts")
        unknown = [name for name in callback_on_step_end_tensor_inputs if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs has {unknown}, expected some of {self._callback_tensor_inputs}"
            )

    def decoder(self, name: str) -> AutoencoderKL | AutoencoderTiny:
        """The autoencoder that decodes.

        Args:
            name: "vae"; "tiny" for `tiny_vae`; "auto" for that where there is one.

        Raises:
            ValueError: an unknown name, or "tiny" without one.
        """
        if name not in DECODERS:
            raise ValueError(f"decoder {name!r} is unknown; choose {', '.join(DECODERS)}")
        if name == "tiny" and self.tiny_vae is None:
            raise ValueError(
                "decoder=tiny, but this checkpoint has no tiny_vae; add one (an AutoencoderTiny, such as TAESD), or "
                "choose decoder=vae or auto"
            )
        return self.vae if name == "vae" or self.tiny_vae is None else self.tiny_vae

    def _controls(
        self,
        pose_video: VideoInput,
        face_video: VideoInput | None,
        num_frames: int | None,
        size: tuple[int | None, int | None],
    ) -> list[list[Condition]]:
        """The ControlNets that run, with the control images of each video; at `size`, where one is asked for."""
        videos = [(self.pose_controlnet, "pose_video", as_videos(pose_video, "pose_video", channels=POSE_CHANNELS))]
        if face_video is not None:
            if self.face_controlnet is None:
                raise ValueError("face_video was given, but this checkpoint has no face ControlNet; leave it out")
            face = as_videos(face_video, "face_video", channels=FACE_CHANNELS)
            videos.append((self.face_controlnet, "face_video", face))
        count = count_videos({name: len(entries) for _, name, entries in videos})
        factor, asked = self.vae_scale_factor, size != (None, None)
        if asked:
            _, height, width = _frames_size(videos[0][2][0])
            height, width = size[0] or height, size[1] or width
            if height % factor or width % factor:
                raise ValueError(f"height is {height} and width {width}; both must be multiples of {factor}")
            with_face = face_video is not None
            videos = [
                (net, name, [_fit(v, (height, width), with_face) for v in entries]) for net, name, entries in videos
            ]
        shapes = {(name, _frames_size(entry)) for _, name, entries in videos for entry in entries}
        if len({shape for _, shape in shapes}) > 1:
            told = ", ".join(f"{name} {shape}" for name, shape in sorted(shapes))
            raise ValueError(f"the control videos are (T, H, W) = {told}; they must agree")
        [(frames, height, width)] = {shape for _, shape in shapes}
        if height % factor or width % factor:
            raise ValueError(f"pose_video is {height}x{width} (HxW); both must be multiples of {factor}")
        if num_frames is not None and not 1 <= num_frames <= frames:
            raise ValueError(f"num_frames is {num_frames}, expected 1 to {frames}, the frames of the pose video")
        nets = [(net, repeated(entries, count, name)) for net, name, entries in videos]
        return [[Condition(net, entries[number][:num_frames]) for net, entries in nets] for number in range(count)]

    def _timesteps(self, num_inference_steps: int) -> Tensor:
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        timesteps = self.scheduler.timesteps
        if int(timesteps.max()) >= self.scheduler.config.num_train_timesteps:
            raise ValueError(f"{num_inference_steps} steps are more than this checkpoint's scheduler has; use fewer")
        self._num_timesteps = len(timesteps)
        return timesteps

    def _start(
        self,
        images: Sequence[Image.Image | None],
        controls: Sequence[list[Condition]],
        generators: Sequence[torch.Generator | None],
        *,
        windows: Windows,
        steps: int,
        latents: Tensor | None,
        given: Precomputed,
        similar: bool,
        eta: float,
        savings: Savings,
        store: ClipStore,
    ) -> tuple[list[VideoSampler], Tensor]:
        """What takes the steps of each video, and the latents (N, C, T, h, w) to begin with."""
        if store.on_disk and len(images) > 1:
            raise ValueError(f"a store is for one video, given {len(images)}; make them one after the other")
        frames, height, width = _frames_size(controls[0][0].images)
        grid = height // self.vae_scale_factor, width // self.vae_scale_factor
        given.check(latents, shape=(len(images), self.unet.config.in_channels, frames, *grid), steps=steps)
        schedule = window_schedule(windows.context_schedule)
        samplers, starts = [], []
        for number, (conditions, generator) in enumerate(zip(controls, generators, strict=True)):
            # All that is random is drawn here, video by video, always in the same order: the seed alone decides.
            reference = _row(given.reference_latents, number)
            if reference is None:
                reference = self._fit_and_encode(images[number], (height, width), len(conditions) > 1, generator)
            reference = rearrange(reference.to(self._execution_device), "1 c h w -> 1 c 1 h w")
            draws = self._draw((1, reference.shape[1], frames, *grid), generator, windows.context_frames, steps, store)
            offsets = draws.offsets if given.offsets is None else given.offsets
            offsets = store.offsets = [int(offsets[step - step % windows.hold]) for step in range(steps)]
            state = _row(latents, number)
            if given.start_step == 0:
                prior = _row(given.prior, number)
                state = self.prepare_latents(
                    reference, draws, latents=state, prior=prior, similarity_prior=similar, store=store
                )
            assert state is not None
            starts.append(state if store.on_disk else state.to(self._execution_device))
            samplers.append(
                VideoSampler(
                    denoiser=Denoiser.of(self),
                    scheduler=copy.deepcopy(self.scheduler) if number else self.scheduler,
                    reference=reference,
                    conditions=conditions,
                    windows=[
                        schedule(
                            frames,
                            context=windows.context_frames,
                            overlap=windows.context_overlap,
                            offset=offset,
                        )
                        for offset in offsets
                    ],
                    generator=generator,
                    eta=eta,
                    savings=savings,
                )
            )
            if given.solver is not None:
                restore_solver(samplers[-1].scheduler, given.solver, generator, device=self._execution_device)
        return samplers, torch.cat(starts) if len(starts) > 1 else starts[0]

    def _fit_and_encode(
        self, image: Image.Image | None, size: tuple[int, int], face: bool, generator: torch.Generator | None
    ) -> Tensor:
        if image is None:
            raise ValueError("no reference image given; it is needed unless its latents and image tokens are given")
        return self.encode_reference(_fitted(image, size, face), generator)

    def _draw(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None,
        context_frames: int,
        steps: int,
        store: ClipStore,
    ) -> Draws:
        draw_on = generator.device if generator is not None else self._execution_device
        like = torch.empty(0, device=self._execution_device)
        blurred, noise = (store.empty(name, shape, like=like) for name in ("blurred", "drawn"))
        for draw, values in ((torch.rand, blurred.view(-1)), (torch.randn, noise.view(-1))):
            for part in _drawn_at_once(len(values), draw_on):
                values[part] = draw(part.stop - part.start, generator=generator, device=draw_on)
                drop_pages()
        offsets = torch.randint(context_frames, (steps,), generator=generator, device=draw_on)
        return Draws(blurred, noise, offsets.tolist())

    def prepare_latents(
        self,
        reference: Tensor,
        draws: Draws,
        *,
        latents: Tensor | None = None,
        prior: Tensor | None = None,
        similarity_prior: bool = True,
        store: ClipStore | None = None,
    ) -> Tensor:
        """Noisy latents that the first step begins from; the scheduler's timesteps are set.

        Args:
            reference: (1, 4, 1, h, w) latents of the reference.
            draws: what was drawn for this video.
            latents: (1, 4, T, h, w) noise to use instead of the drawn one.
            prior: (1, 4, T, h, w) what noise is added to, instead of the similarity prior.
            similarity_prior: False, without `prior`: pure noise.
            store: where they stand; None for in memory.

        Returns:
            Tensor: (1, 4, T, h, w).
        """
        drawn = draws.noise if latents is None else latents
        state = (store or ClipStore()).latents(draws.noise)
        for frames in blocks(drawn.shape[2]):
            noise = drawn[:, :, frames].to(reference.device)
            if prior is not None:
                clean = prior[:, :, frames].to(reference.device)
            elif similarity_prior:
                clean = mix_prior(reference[:, :, 0], draws.blurred[:, :, frames].to(reference.device) < 0.5)
            else:
                state[:, :, frames] = noise * self.scheduler.init_noise_sigma
                continue
            state[:, :, frames] = self.scheduler.add_noise(clean, noise, self.scheduler.timesteps[:1])
            drop_pages()
        return state


def _drawn_at_once(count: int, device: torch.device) -> Iterator[slice]:
    """Numbers drawn one part after the other are those drawn at once: on the CPU, by multiples of 16 to a last part of
    16 or more.
    """
    size = 2**20 if device.type == "cpu" else count
    for start in range(0, max(count - 15, 1), size):
        yield slice(start, count if count - start - size < 16 else start + size)


def _fitted(image: Image.Image, size: tuple[int, int], face: bool) -> Image.Image:
    """The part of a reference that is animated, at the video's size."""
    array = np.asarray(image)
    return Image.fromarray(fit_image(array, published_crop(array.shape, size, face=face), face=face))


def _fit(video: Tensor, size: tuple[int, int], face: bool) -> Tensor:
    """Control images (T, C, H, W) at another size, cut and resized as those of a driving file are."""
    if tuple(video.shape[2:]) == size:
        return video
    crop = published_crop(tuple(video.shape[2:]), size, face=face)
    frames = rearrange(video.cpu(), "t c h w -> t h w c").numpy()
    fitted = [crop.image(frame, interpolation="bilinear") for frame in frames]
    return rearrange(torch.from_numpy(np.stack(fitted)), "t h w c -> t c h w")


def _frames_size(video: Tensor) -> tuple[int, int, int]:
    """(T, H, W) of a video (T, C, H, W)."""
    return video.shape[0], video.shape[2], video.shape[3]


def _row(values: Tensor | None, number: int) -> Tensor | None:
    """The row of one video; a single row serves all."""
    if values is None:
        return None
    return values if values.shape[0] == 1 else values[number : number + 1]
