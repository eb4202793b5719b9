"""Published files -> one pipeline folder: `scripts/convert.py`."""

import argparse
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from xdyna.checkpoints import build, official
from xdyna.checkpoints.io import check_finite, load_state_dict
from xdyna.config.loader import load_config
from xdyna.config.model import ModelConfig
from xdyna.core.errors import UsageError, WeightsError
from xdyna.core.hub import fetch, load_registry, missing, plan
from xdyna.core.quiet import quiet_libraries
from xdyna.core.resources import resource, weights_folder
from xdyna.models.controls import FACE_CHANNELS, POSE_CHANNELS
from xdyna.models.image_tokens import ImageTokenResampler
from xdyna.models.unet import XDynaUNet
from xdyna.pipelines.folder import (
    OFFICIAL,
    SAMPLING,
    find_checkpoint,
    load_component,
    load_pipeline,
    save_pipeline,
)
from xdyna.pipelines.untrained import build_untrained
from xdyna.pipelines.xdyna import XDynaPipeline

DOWNLOADS, INITIAL = weights_folder() / "official", weights_folder() / "xdyna-initial"
SD15_CONFIG = resource("configs", "model", "sd15.yaml")


@dataclass(frozen=True)
class Part:
    """One file or folder of the published release.

    Attributes:
        option: name of the command-line option.
        patterns: where it lies below the folder of --official, tried in order.
        what: for messages.
        use: "published" for the published model, "initial" for the start of a training, "both".
        required: whether a pipeline can be made without it.
    """

    option: str
    patterns: tuple[str, ...]
    what: str
    use: str = "both"
    required: bool = True


PARTS = (
    Part("unet", ("**/unet-checkpoint-*.ckpt",), "X-Dyna UNet", "published"),
    Part("controlnet", ("**/controlnet-checkpoint-*.ckpt",), "X-Dyna pose ControlNet", "published"),
    Part("face_controlnet", ("**/controlnet-face-checkpoint-*.ckpt",), "X-Dyna face ControlNet", "published", False),
    Part(
        "motion",
        ("**/mm_sd_v15.ckpt", "**/v3_sd15_mm.ckpt", "**/mm_sd_v15_v2.ckpt"),
        "AnimateDiff motion modules",
        "initial",
    ),
    Part(
        "openpose",
        tuple(f"**/control_v11p_sd15_openpose/diffusion_pytorch_model.{kind}" for kind in ("safetensors", "bin")),
        "ControlNet openpose",
        "initial",
    ),
    Part("sd15", ("**/stable-diffusion-v1-5/model_index.json", "**/model_index.json"), "Stable Diffusion 1.5 folder"),
    Part(
        "image_encoder",
        ("**/models/image_encoder/config.json", "**/image_encoder/config.json"),
        "CLIP ViT-H/14 image encoder folder of IP-Adapter",
    ),
    Part(
        "ip_adapter",
        ("**/ip-adapter-plus_sd15.safetensors", "**/ip-adapter-plus_sd15.bin"),
        "IP-Adapter plus",
    ),
)


def main(argv: Sequence[str]) -> int:
    """Run `scripts/convert.py`. Args: argv: without the program's name. Returns: exit code."""
    args = _parser().parse_args(argv)
    quiet_libraries()
    use = "initial" if args.initial else "published"
    args.out = args.out or (INITIAL if args.initial else OFFICIAL)
    if args.out.exists():
        raise UsageError(f"--out {args.out} exists already; remove it or choose another folder")
    if args.tiny:
        build_untrained(args.out, seed=args.seed)
        print(f"wrote {args.out} (untrained weights)")
        return 0
    if args.pipeline is not None:
        return repack(args.pipeline, args.out, dtype=getattr(torch, args.dtype))
    if args.download:
        args.official = args.official or DOWNLOADS
        download(args.official, use="train" if args.initial else "animate")
    sources = find_sources(args.official, {part.option: getattr(args, part.option) for part in PARTS}, use=use)
    pipeline = convert(sources, load_config(ModelConfig, args.model), progress=True)
    pipeline.to(getattr(torch, args.dtype))
    save_pipeline(pipeline, args.out)
    print(f"wrote {args.out}")
    return 0


def repack(folder: Path, out: Path, *, dtype: torch.dtype) -> int:
    """Write a pipeline folder, for example the last one of a training, in another floating-point type.

    Args:
        folder: pipeline folder.
        out: must not exist.
        dtype: of the written weights.

    Returns:
        int: exit code.
    """
    if not (folder / "model_index.json").is_file():
        raise UsageError(f"--pipeline {folder} is no pipeline folder: it has no model_index.json")
    checkpoint = find_checkpoint(folder, build_untrained)
    pipeline = load_pipeline(checkpoint, device=torch.device("cpu"), dtype=torch.float32, face=True)
    save_pipeline(pipeline.to(dtype), out, untrained=checkpoint.untrained)
    if (folder / SAMPLING).is_file():
        shutil.copy(folder / SAMPLING, out / SAMPLING)
    print(f"wrote {out}")
    return 0


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
        print(f"[{number}/{len(wanted)}] {file.repo}/{file.path}: {file.purpose} ({file.licence})")
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


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="convert.py", description="Turn the published X-Dyna files into one folder that infer.py loads."
    )
    p.add_argument("--official", type=Path, metavar="DIR", help="folder that holds the published files, searched below")
    p.add_argument(
        "--download",
        action="store_true",
        help="first fetch what is missing there (about 12 GB; with --initial about 9 GB)",
    )
    for part in PARTS:
        optional = "" if part.required else ", optional"
        p.add_argument("--" + part.option.replace("_", "-"), type=Path, metavar="PATH", help=part.what + optional)
    p.add_argument("--out", type=Path, metavar="DIR", help="pipeline folder to write (default: below pretrained/)")
    p.add_argument(
        "--initial",
        action="store_true",
        help="write the initialisation that training starts from (SD1.5, AnimateDiff, IP-Adapter, ControlNet openpose)",
    )
    p.add_argument(
        "--dtype", choices=("float16", "float32", "bfloat16"), default="float16", help="of the written weights"
    )
    p.add_argument(
        "--model", type=Path, default=SD15_CONFIG, metavar="YAML", help="model sizes (configs/model/sd15.yaml)"
    )
    p.add_argument(
        "--pipeline", type=Path, metavar="DIR", help="rewrite this pipeline folder (of a training) as --dtype"
    )
    p.add_argument("--tiny", action="store_true", help="write an untrained tiny pipeline instead (no files needed)")
    p.add_argument("--seed", type=int, default=0, help="of the untrained weights")
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    return p
