"""Whether an animation that is there already is the one that is asked for: by its run manifest."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from xdyna.config.infer import InferConfig
from xdyna.core.files import path_sha256
from xdyna.models.kernels import is_exact
from xdyna.pipelines.model import Model
from xdyna.pipelines.outputs import OutputFiles, output_names
from xdyna.pipelines.plan import Request, complete_settings


def already_made(request: Request, model: Model, settings: InferConfig) -> Path | None:
    """The finished animation that would be made now, under any name that it may have been given; None: there is none.

    Args:
        request: the animation that is asked for.
        model: the weights it would be made with.
        settings: its settings.

    Raises:
        UsageError: a missing input, or a name of another kind of file.
    """
    for files in output_names(request.out, **request.names(), save=settings.save):
        if difference(files, request, model, settings) is None:
            return files.video
        if not files.taken() or request.out is not None:
            return None
    raise AssertionError("some name is free")


def difference(files: OutputFiles, request: Request, model: Model, settings: InferConfig) -> str | None:
    """How a finished animation differs from what would be made now.

    Args:
        files: its names.
        request: the animation that is asked for.
        model: the weights it would be made with.
        settings: its settings.

    Returns:
        None where options, inputs, weights and the video's own bytes agree; else the first difference, in words.
    """
    if not files.video.exists():
        return "missing"
    made = _manifest(files.manifest)
    if made is None:
        return "its run manifest is missing"
    settings = complete_settings(settings, request, model.checkpoint)
    config = json.loads(json.dumps(dataclasses.asdict(settings), default=str))
    for name, value in config.items():
        before = _entry(made, "config").get(name, "not set")
        same = name in _INDIFFERENT or (name == "attention" and is_exact([before, value]))
        if before != value and not same:
            return f"{name} was {before}, is {value}"
    inputs = {name: entry["sha256"] for name, entry in request.digests().items()}
    former = {name: entry.get("sha256") for name, entry in _entry(made, "inputs").items()}
    for name in {**inputs, **former}:
        if inputs.get(name) != former.get(name):
            return f"another {name.replace('_', ' ')}"
    kind = _entry(made, "inputs")["driving"].get("kind")
    if request.kind not in ("auto", kind):
        return f"the driving file was taken as {kind}"
    if made.get("contract") != json.loads(json.dumps(dataclasses.asdict(model.checkpoint.contract), default=str)):
        return "another condition contract (conditions.json)"
    if made.get("weights") != model.hashes():
        return "other weights"
    if made.get("dtype") != str(model.dtype):
        return f"dtype was {made.get('dtype')}, is {model.dtype}"
    if _entry(made, "outputs").get(files.video.name) != path_sha256(files.video):
        return "the video is not the one of its manifest"
    return None


_INDIFFERENT = ("device", "dtype", "compile", "vae_chunk", "url_max_mb", "url_seconds")
"""Settings that ask for the same video (the dtype that was chosen is compared); exact attention kernels do, too."""


def _manifest(path: Path) -> dict[str, Any] | None:
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return made if isinstance(made, dict) else None


def _entry(made: dict[str, Any], name: str) -> dict[str, Any]:
    found = made.get(name)
    return found if isinstance(found, dict) else {}
