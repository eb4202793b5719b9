"""Where MediaPipe's models come from, and the bundles that its tasks expect.

Release 0.10.21 holds them in its package. Later ones hold none: the models are then read from the wheel of 0.10.21,
which is downloaded once like any file of the registry and is never installed; its hash is known.
"""

from __future__ import annotations

import io
import zipfile
from functools import cache
from pathlib import Path

from huggingface_hub.utils import WeakFileLock

from xdyna.core.errors import WeightsError
from xdyna.core.hub import fetch, load_registry
from xdyna.core.install import pip
from xdyna.core.resources import weights_folder
from xdyna.perception.errors import PerceptionError

WHEEL = "mediapipe/mediapipe-0.10.21-cp312-cp312-manylinux_2_28_x86_64.whl"
"""Name of the wheel in the registry; its models are the same for every system."""

_MODULES = "mediapipe/modules"


def find_models() -> None:
    """Make sure that the models are there: downloads 36 MB the first time where the package has none.

    Raises:
        PerceptionError: they cannot be downloaded, or are damaged.
    """
    if not has_solutions():
        _wheel()


def has_solutions() -> bool:
    """Whether the release has the older "solutions", and with them the models, inside its package (0.10.21)."""
    import mediapipe

    return hasattr(mediapipe, "solutions")


def model(name: str) -> bytes:
    """The bytes of a model.

    Args:
        name: below the package's folder of modules ("face_landmark/face_landmark.tflite").

    Raises:
        PerceptionError: there is no such model, or the models cannot be downloaded.
    """
    import mediapipe

    if not has_solutions():
        with zipfile.ZipFile(_wheel()) as archive:
            return archive.read(f"{_MODULES}/{name}")
    path = Path(mediapipe.__file__).parent / "modules" / name
    if not path.is_file():
        raise PerceptionError(
            f"mediapipe {mediapipe.__version__} lacks its model '{name}'; expected 0.10.21: "
            + pip("--force-reinstall --no-deps mediapipe==0.10.21")
        )
    return path.read_bytes()


def bundle(models: dict[str, bytes]) -> bytes:
    """A .task bundle: an uncompressed zip of models.

    Args:
        models: contents by the names that the task looks for.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in models.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@cache
def _wheel() -> Path:
    """The wheel with the models, complete and of the known hash; processes that want it at once take turns."""
    file, folder = load_registry()[WHEEL], weights_folder()
    target = file.target(folder)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(target.with_name(f".{target.name}.lock")):
            return fetch(file, folder)
    except (WeightsError, OSError) as error:
        raise PerceptionError(
            f"mediapipe above 0.10.21 brings no models and they cannot be fetched: {error}"
        ) from error
