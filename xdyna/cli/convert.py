"""Published files -> one pipeline folder: `scripts/convert.py`."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from xdyna.cli.checkpoint import OFFICIAL, PRETRAINED, load_component, save_pipeline
from xdyna.cli.guard import UsageError
from xdyna.cli.quiet import quiet_libraries
from xdyna.cli.tiny import build_untrained
from xdyna.config import ModelConfig, load_config
from xdyna.models.controls import FACE_CHANNELS, POSE_CHANNELS
from xdyna.pipelines.animate import XDynaPipeline
from xdyna.weights import build, official
from xdyna.weights.hub import fetch, load_registry, missing, plan
from xdyna.weights.io import WeightsError, check_finite, load_state_dict

DOWNLOADS = PRETRAINED / "official"
SD15_CONFIG = Path(__file__).resolve().parents[2] / "configs" / "model" / "sd15.yaml"


@dataclass(frozen=True)
class Part:
    """One file or folder of the published release.

    Attributes:
        option: name of the command-line option.
        patterns: where it lies below the folder of --official, tried in order.
        what: for messages.
        required: whether a pipeline can be made without it.
    """

    option: str
    patterns: tuple[str, ...]
    what: str
    required: bool = True


PARTS = (
    Part("unet", ("**/unet-checkpoint-*.ckpt",), "X-Dyna UNet"),
    Part("controlnet", ("**/controlnet-checkpoint-*.ckpt",), "X-Dyna pose ControlNet"),
    Part("face_controlnet", ("**/controlnet-face-checkpoint-*.ckpt",), "X-Dyna face ControlNet", required=False),
    Part("sd15", ("**/stable-diffusion-v1-5/model_index.json", "**/model_index.json"), "Stable Diffusion 1.5 folder"),
    Part(
        "image_encoder",
        ("**/models/image_encoder/config.json", "**/image_encoder/config.json"),
        "CLIP ViT-H/14 image encoder folder of IP-Adapter",
    ),
    Part(
        "ip_adapter",
        ("**/ip-adapter-plus_sd15.safetensors", "**/ip-adapter-plus_sd15.bin"),
        "IP-Adapter plus (its Resampler)",
    ),
)


def main(argv: Sequence[str]) -> int:
    """Run `scripts/convert.py`. Args: argv: without the program's name. Returns: exit code."""
    args = _parser().parse_args(argv)
    quiet_libraries()
    if args.out.exists():
        raise UsageError(f"--out {args.out} exists already; remove it or choose another folder")
    if args.tiny:
        build_untrained(args.out, seed=args.seed)
        print(f"wrote {args.out} (untrained weights)")
        return 0
    if args.download:
        args.official = args.official or DOWNLOADS
        download(args.official)
    sources = find_sources(args.official, {part.option: getattr(args, part.option) for part in PARTS})
    pipeline = convert(sources, load_config(ModelConfig, args.model), progress=True)
    pipeline.to(getattr(torch, args.dtype))
    save_pipeline(pipeline, args.out)
    print(f"wrote {args.out}")
    return 0


def download(folder: Path) -> None:
    """Fetch the published files that are not in a folder yet; an interrupted download goes on where it stopped.

    Raises:
        DownloadError: offline, no space, wrong bytes, ...; says how to get the file by hand.
    """
    wanted = missing(folder)
    print(plan(folder, [file for file in load_registry().values() if "animate" in file.uses]).summary())
    for number, file in enumerate(wanted, start=1):
        print(f"[{number}/{len(wanted)}] {file.repo}/{file.path}: {file.purpose} ({file.licence})")
        fetch(file, folder)


def find_sources(folder: Path | None, given: dict[str, Path | None]) -> dict[str, Path]:
    """Where each part lies: as named, or found below the folder of the published files.

    Args:
        folder: folder with the published files in any arrangement, or None.
        given: paths by option; None for those not named.

    Returns:
        dict: existing paths by option; optional parts may be absent.

    Raises:
        UsageError: a named path does not exist, or required parts were not found (all are listed).
    """
    found: dict[str, Path] = {}
    missing: list[str] = []
    if folder is not None and not folder.is_dir():
        raise UsageError(f"--official {folder}: no such folder")
    for part in PARTS:
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
            missing.append(f"  {flag:<18} {part.what} ({part.patterns[0].removeprefix('**/')})")
    if missing:
        where = f"not found below {folder}" if folder else "not given"
        raise UsageError(
            f"{len(missing)} of the published files {where}:\n" + "\n".join(missing) + "\n"
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
        sources: from `find_sources`.
        config: sizes of the UNet, the ControlNets and the Resampler.
        progress: show a bar.

    Returns:
        XDynaPipeline: on the CPU, float32.

    Raises:
        WeightsError: on missing, unexpected, mis-shaped or non-finite weights, or unsafe files.
    """
    with tqdm(total=7, desc="converting", unit="part", disable=not progress) as bar:

        def part(make: Callable[[], Any]) -> Any:
            module = make()
            bar.update()
            return module

        def unet() -> torch.nn.Module:
            module = build.build_unet(config.unet)
            official.load_unet(module, _finite_state(sources["unet"]), what=str(sources["unet"]))
            return module

        def controlnet(option: str, channels: int) -> torch.nn.Module:
            module = build.build_controlnet(config.controlnet, channels=channels)
            official.load_controlnet(module, _finite_state(sources[option]), what=str(sources[option]))
            return module

        def resampler() -> torch.nn.Module:
            module, source = build.build_resampler(config.resampler), sources["ip_adapter"]
            parts = official.split_ip_adapter(_finite_state(source))
            official.load_ip_adapter(parts, resampler=module, what=str(source))
            return module

        def network(folder: Path, library: str, name: str) -> Any:
            return load_component(folder, library, name, dtype=torch.float32)

        base = sources["sd15"]
        face = part(lambda: controlnet("face_controlnet", FACE_CHANNELS)) if "face_controlnet" in sources else None
        return XDynaPipeline(
            unet=part(unet),
            pose_controlnet=part(lambda: controlnet("controlnet", POSE_CHANNELS)),
            face_controlnet=face,
            image_projection=part(resampler),
            vae=part(lambda: network(base / "vae", "diffusers", "AutoencoderKL")),
            text_encoder=part(lambda: network(base / "text_encoder", "transformers", "CLIPTextModel")),
            tokenizer=_tokenizer(base / "tokenizer"),
            image_encoder=part(
                lambda: network(sources["image_encoder"], "transformers", "CLIPVisionModelWithProjection")
            ),
            feature_extractor=CLIPImageProcessorPil(),  # the published sampler uses CLIP's defaults
            scheduler=build.build_scheduler(config.scheduler),
        )


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
    p.add_argument("--download", action="store_true", help="first fetch what is missing there (about 12 GB)")
    for part in PARTS:
        optional = "" if part.required else ", optional"
        p.add_argument("--" + part.option.replace("_", "-"), type=Path, metavar="PATH", help=part.what + optional)
    p.add_argument("--out", type=Path, default=OFFICIAL, metavar="DIR", help="pipeline folder to write (%(default)s)")
    p.add_argument(
        "--dtype", choices=("float16", "float32", "bfloat16"), default="float16", help="of the written weights"
    )
    p.add_argument(
        "--model", type=Path, default=SD15_CONFIG, metavar="YAML", help="model sizes (configs/model/sd15.yaml)"
    )
    p.add_argument("--tiny", action="store_true", help="write an untrained tiny pipeline instead (no files needed)")
    p.add_argument("--seed", type=int, default=0, help="of the untrained weights")
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    return p
