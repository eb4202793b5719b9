"""Published files -> one pipeline folder."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from xdyna.checkpoints import build, official
from xdyna.checkpoints.component import load_component
from xdyna.checkpoints.io import check_finite, load_state_dict
from xdyna.config.convert import PARTS
from xdyna.config.model import ModelConfig
from xdyna.core.errors import UsageError, WeightsError
from xdyna.core.hub import fetch, load_registry, missing, plan
from xdyna.core.resources import weights_folder
from xdyna.models.controls import FACE_CHANNELS, POSE_CHANNELS
from xdyna.models.image_tokens import ImageTokenResampler
from xdyna.models.unet import XDynaUNet
from xdyna.pipelines.folder import find_checkpoint, load_pipeline, save_pipeline
from xdyna.pipelines.untrained import build_untrained
from xdyna.pipelines.xdyna import XDynaPipeline

DOWNLOADS, INITIAL = weights_folder() / "official", weights_folder() / "xdyna-initial"


def repack(folder: Path, out: Path, *, dtype: torch.dtype) -> None:
    """Write a pipeline folder, for example the last one of a training, in another floating-point type.

    Args:
        folder: pipeline folder.
        out: must not exist.
        dtype: of the written weights.

    Raises:
        UsageError: no pipeline folder.
    """
    if not (folder / "model_index.json").is_file():
        raise UsageError(f"--pipeline {folder} is no pipeline folder: it has no model_index.json")
    checkpoint = find_checkpoint(folder, build_untrained)
    pipeline = load_pipeline(checkpoint, device=torch.device("cpu"), dtype=torch.float32, face=True)
    save_pipeline(pipeline.to(dtype), out, untrained=checkpoint.untrained, contract=checkpoint.contract)


def download(folder: Path, *, use: str) -> None:
    """Fetch the published files that are not in a folder yet; an interrupted download goes on where it stopped.

    Args:
        folder: where to.
        use: "animate" or "train".

    Raises:
        DownloadError: offline, no space, wrong bytes, ...; says how to get the file by hand.
    """
    wanted = missing(folder, use=use)
    print(plan(folder, [file for file in load_registry().values() if use in file.uses]).summary())
    for number, file in enumerate(wanted, start=1):
        print(f"[{number}/{len(wanted)}] {file.repo}/{file.path}: {file.purpose} ({file.license})")
        fetch(file, folder)


def find_sources(folder: Path | None, given: dict[str, Path | None], *, use: str = "published") -> dict[str, Path]:
    """Where each part lies: as named, or found below the folder of the published files.

    Args:
        folder: folder with the published files in any arrangement, or None.
        given: paths by option; None for those not named.
        use: "published" or "initial", which parts are needed.

    Returns:
        dict: existing paths by option; optional parts may be absent.

    Raises:
        UsageError: a named path does not exist, or required parts were not found (all are listed).
    """
    found: dict[str, Path] = {}
    absent: list[str] = []
    if folder is not None and not folder.is_dir():
        raise UsageError(f"--official {folder}: no such folder")
    for part in PARTS:
        if part.use not in (use, "both"):
            continue
        flag = "--" + part.option.replace("_", "-")
        path = given.get(part.option)
        if path is not None:
            if not path.exists():
                raise UsageError(f"{flag} {path}: no such file or folder; expected the {part.what}")
            found[part.option] = path
            continue
        hits = _first_match(folder, part.patterns) if folder else []
        if len(hits) > 1:
            raise UsageError(
                f"{folder} holds several files that could be the {part.what}: {', '.join(map(str, hits))}; "
                f"name one with {flag}"
            )
        if hits:
            found[part.option] = hits[0].parent if hits[0].suffix == ".json" else hits[0]
        elif part.required:
            absent.append(f"  {flag:<18} {part.what} ({part.patterns[0].removeprefix('**/')})")
    if absent:
        where = f"not found below {folder}" if folder else "not given"
        raise UsageError(
            f"{len(absent)} of the published files {where}:\n" + "\n".join(absent) + "\n"
            "Fetch them with --download, name each with its option, or put all below one folder and give --official. "
            "pretrained/README.md tells where they are."
        )
    return found


def _first_match(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """What the first pattern that finds anything finds."""
    return next((hits for pattern in patterns if (hits := sorted(folder.glob(pattern)))), [])


def convert(sources: dict[str, Path], config: ModelConfig, *, progress: bool = False) -> XDynaPipeline:
    """Load the published parts strictly into a pipeline.

    Args:
        sources: from `find_sources`; of the published model, or (with "motion" and "openpose") of the initialisation
            that the paper trains from: Stable Diffusion's UNet with a silent Dynamics-Adapter, IP-Adapter's image-token
            weights and AnimateDiff's motion modules; both ControlNets start from ControlNet openpose.
        config: sizes of the UNet, the ControlNets and the Resampler.
        progress: show a bar.

    Returns:
        XDynaPipeline: on the CPU, float32.

    Raises:
        WeightsError: on missing, unexpected, mis-shaped or non-finite weights, or unsafe files.
    """
    base, initial = sources["sd15"], "motion" in sources
    with tqdm(total=7, desc="converting", unit="part", disable=not progress) as bar:

        def part(make: Callable[[], Any]) -> Any:
            module = make()
            bar.update()
            return module

        def video_unet() -> XDynaUNet:
            module = build.build_unet(config.unet)
            if not initial:
                official.load_unet(module, _finite_state(sources["unet"]), what=str(sources["unet"]))
                return module
            spatial, motion = _sd15_unet(base), sources["motion"]
            official.load_sd15_unet(module, _finite_state(spatial), what=str(spatial))
            official.load_motion(module, _finite_state(motion), what=str(motion))
            return module

        def controlnet(option: str, channels: int) -> torch.nn.Module:
            module = build.build_controlnet(config.controlnet, channels=channels)
            source = sources["openpose" if initial else option]
            state = official.widen_condition(_finite_state(source), channels) if initial else _finite_state(source)
            official.load_controlnet(module, state, what=str(source))
            return module

        def resampler(unet: XDynaUNet) -> ImageTokenResampler:
            module, source = build.build_resampler(config.resampler), sources["ip_adapter"]
            parts = official.split_ip_adapter(_finite_state(source))
            # The published UNet brings its image-token weights; the initial one takes them from here.
            official.load_ip_adapter(parts, resampler=module, unet=unet if initial else None, what=str(source))
            return module

        def network(folder: Path, library: str, name: str) -> Any:
            return load_component(folder, library, name, dtype=torch.float32)

        has_face = initial or "face_controlnet" in sources
        face = part(lambda: controlnet("face_controlnet", FACE_CHANNELS)) if has_face else None
        unet = part(video_unet)
        return XDynaPipeline(
            unet=unet,
            pose_controlnet=part(lambda: controlnet("controlnet", POSE_CHANNELS)),
            face_controlnet=face,
            image_projection=part(lambda: resampler(unet)),
            vae=part(lambda: network(base / "vae", "diffusers", "AutoencoderKL")),
            text_encoder=part(lambda: network(base / "text_encoder", "transformers", "CLIPTextModel")),
            tokenizer=_tokenizer(base / "tokenizer"),
            image_encoder=part(
                lambda: network(sources["image_encoder"], "transformers", "CLIPVisionModelWithProjection")
            ),
            feature_extractor=CLIPImageProcessorPil(),  # the published sampler uses CLIP's defaults
            scheduler=build.build_scheduler(config.scheduler),
        )


def _sd15_unet(folder: Path) -> Path:
    names = [f"diffusion_pytorch_model.{kind}" for kind in ("safetensors", "fp16.safetensors", "bin")]
    found = [folder / "unet" / name for name in names if (folder / "unet" / name).is_file()]
    if not found:
        raise WeightsError(f"{folder / 'unet'} holds no UNet weights; expected {names[0]} (Stable Diffusion 1.5)")
    return found[0]


def _finite_state(path: Path) -> dict[str, torch.Tensor]:
    state = load_state_dict(path)
    check_finite(state, what=str(path))
    return state


def _tokenizer(folder: Path) -> CLIPTokenizer:
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise WeightsError(f"{folder} cannot be loaded as a CLIP tokenizer: {reason}") from error
