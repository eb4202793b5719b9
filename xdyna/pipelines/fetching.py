"""Inputs that are addresses: fetched to temporary files for the time of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path

from xdyna.config.infer import InferConfig
from xdyna.core.download import Expected, Limits, download
from xdyna.core.errors import DownloadError
from xdyna.core.files import is_address
from xdyna.core.progress import Watch
from xdyna.media.errors import MediaError
from xdyna.media.image import image_size
from xdyna.media.kinds import IMAGES, VIDEOS, image_kind, keypoints_kind, video_kind
from xdyna.media.video import probe
from xdyna.pipelines.plan import Request

_IMAGE = Expected(image_kind, IMAGES)
_VIDEO = Expected(video_kind, VIDEOS)
_KEYPOINTS = Expected(keypoints_kind, "keypoints (.npz)")
_DRIVING = Expected(lambda head: video_kind(head) or keypoints_kind(head), f"{VIDEOS}, or keypoints (.npz)")
_EXPECTED = {"reference": _IMAGE, "driving": _DRIVING, "face_video": _VIDEO, "ref_keypoints": _KEYPOINTS}


@contextlib.contextmanager
def fetched(request: Request, settings: InferConfig, watch: Watch) -> Iterator[Request]:
    """A request whose inputs are files of this machine: what it names by address is there while the block runs.

    Only who calls this fetches anything: `make` takes files alone, so that what serves others (`xdyna page`) never
    opens an address of theirs.

    Args:
        request: with paths and addresses.
        settings: limits: `url_max_mb`, `url_seconds`.
        watch: told of the progress.

    Yields:
        Request: the same, with files, and with what they came from in `addresses`.

    Raises:
        DownloadError: see `xdyna.core.download.download`; or what came cannot be read.
    """
    given = {name: getattr(request, name) for name in _EXPECTED}
    addresses = {name: str(entry) for name, entry in given.items() if is_address(entry)}
    if not addresses:
        yield request
        return
    limits = Limits(settings.url_max_mb, settings.url_seconds)
    with tempfile.TemporaryDirectory(prefix="xdyna-") as folder:
        files: dict[str, Path] = {}
        for name, address in addresses.items():
            expected = _VIDEO if name == "driving" and request.kind in ("video", "pose") else _EXPECTED[name]
            files[name] = download(
                address, Path(folder) / name, expected=expected, limits=limits, watch=watch, name=name
            )
            _check(files[name], name, address)
        yield dataclasses.replace(request, **files, addresses=addresses)  # type: ignore[arg-type]


def _check(file: Path, name: str, address: str) -> None:
    """See that a file can be read, while it is known where it came from."""
    try:
        if name == "reference":
            image_size(file)
        elif file.suffix != ".npz":
            probe(file)
    except MediaError as error:
        raise DownloadError(f"what {address.partition('?')[0]} gave cannot be used: {error}") from error
