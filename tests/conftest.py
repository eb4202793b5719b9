"""Shared fixtures: where optional reference data lies, and tiny models."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault(
    "OMP_WAIT_POLICY", "passive"
)  # before torch: waiting threads must not burn a busy machine's cores

import hypothesis
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

torch.set_num_threads(1)  # the models of the tests are too small for more, and busy machines stall on waiting threads

# The same examples each time, without limits of time: a red run is then a defect of the change. `make test-properties`
# looks for others.
hypothesis.settings.register_profile(
    "same", derandomize=True, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile("search", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the library remembers does not reach the user's folder, nor come from there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDYNA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Rounding depends on the number of threads (docs/log.md): comparisons with golden numbers fix it."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder with the real media used by some tests (XDYNA_SHARED_DIR, default ../shared); skips where absent."""
    folder = Path(os.environ.get("XDYNA_SHARED_DIR", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"reference media not found in {folder} (set XDYNA_SHARED_DIR)")
    return folder


@pytest.fixture(scope="session")
def official_shapes() -> dict[str, dict[str, list[int]]]:
    """Name and shape of every published tensor, by part: unet, controlnet_pose, controlnet_face, image_proj."""
    return json.loads((Path(__file__).parent / "golden" / "official_state_dict_shapes.json").read_text())


@pytest.fixture(scope="session")
def parity_dir() -> Path:
    """Folder with golden tensors of the official implementation (XDYNA_PARITY_DIR, default ../shared/parity)."""
    folder = Path(os.environ.get("XDYNA_PARITY_DIR", ROOT.parent / "shared" / "parity"))
    if "XDYNA_PARITY_DIR" in os.environ and not (folder / "golden.npz").is_file():
        pytest.fail(f"XDYNA_PARITY_DIR is {folder}, which holds no golden.npz")
    if not (folder / "golden.npz").is_file():
        pytest.skip(f"golden tensors not found in {folder} (set XDYNA_PARITY_DIR)")
    return folder


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A micro pipeline without zero layers: behind those nothing gets a gradient, and no run could go wrong."""
    from xdyna.config.loader import read_yaml
    from xdyna.config.model import ModelConfig
    from xdyna.pipelines.folder import save_pipeline
    from xdyna.pipelines.untrained import build_pipeline

    pipeline = build_pipeline(ModelConfig(**read_yaml(ROOT / "tests" / "unit" / "training" / "micro.yaml")), seed=3)
    generator = torch.Generator().manual_seed(1)
    for part in (pipeline.unet, pipeline.pose_controlnet, pipeline.face_controlnet):
        for p in part.parameters():
            if not p.any():
                p.data = 0.1 * torch.randn(p.shape, generator=generator)
    folder = tmp_path_factory.mktemp("start") / "pipeline"
    save_pipeline(pipeline, folder)
    return str(folder)


@pytest.fixture(scope="session")
def detector() -> None:
    """Skips where MediaPipe is there but its system libraries or /sys are not (releases above 1.0)."""
    from xdyna.perception.errors import PerceptionError
    from xdyna.perception.mediapipe_models import load_mediapipe

    pytest.importorskip("mediapipe", reason="needs the perception extra")
    try:
        load_mediapipe()
    except PerceptionError as error:
        pytest.skip(str(error))
