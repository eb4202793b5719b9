"""Weight files of metrics come through the package's one downloader (`xdyna.core.hub`)."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.core.test_hub import Hub, serve
from xdyna.core.errors import WeightsError
from xdyna.core.files import file_sha256
from xdyna.core.hub import _partial_file
from xdyna.evaluation.networks.fixture import random_images, random_weights
from xdyna.evaluation.networks.inception import FIDInception
from xdyna.evaluation.networks.registry import EXTRACTORS, WeightFile
from xdyna.evaluation.weights import WeightsFolder


def test_batches_change_rounding_alone_and_half_precision_is_another_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = random_weights(FIDInception().state_dict())
    torch.save(state, tmp_path / "net.pth")
    spec = dataclasses.replace(EXTRACTORS["inception"], files=(WeightFile("net.pth", "", ""),))
    monkeypatch.setitem(EXTRACTORS, "inception", spec)
    frames = random_images(5, side=64)
    plain, two, half = (
        WeightsFolder(tmp_path, batch=batch, dtype=dtype).extractor("inception")
        for batch, dtype in ((None, "float32"), (2, "float32"), (None, "bfloat16"))
    )
    assert (plain.batch, two.batch) == (16, 2)
    assert plain.version == two.version != half.version
    features = plain.features(frames)
    np.testing.assert_allclose(two.features(frames), features, rtol=1e-4, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        halved = half.features(frames)
    error = np.linalg.norm(halved - features) / np.linalg.norm(features)
    assert 1e-4 < error < 0.05


def test_a_download_resumes_and_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    torch.save({"a": torch.arange(30_000)}, tmp_path / "net.pth")
    content, digest = (tmp_path / "net.pth").read_bytes(), file_sha256(tmp_path / "net.pth")
    hub = Hub(files={"net.pth": content})
    server = serve(hub)
    file = WeightFile("net.pth", "https://somewhere.example/a/net.pth", "MIT", len(content), digest)
    assert file.published is not None
    assert file.published.url() == file.source
    here = dataclasses.replace(file.published, base=f"{hub.endpoint}/owner/repo/resolve/main")
    monkeypatch.setattr(WeightFile, "published", here)
    spec = dataclasses.replace(EXTRACTORS["inception"], files=(file,), build=lambda states, weights, device: states[0])
    monkeypatch.setitem(EXTRACTORS, "inception", spec)
    folder = WeightsFolder(tmp_path / "weights", download=True)
    begun = _partial_file(tmp_path / "weights" / "metrics" / "net.pth", digest)  # of a try that was interrupted
    begun.write_bytes(content[:70_000])
    assert torch.equal(folder.extractor("inception")["a"], torch.arange(30_000))
    assert hub.gets() == ["bytes=70000-"]
    assert folder.used == {"net.pth": digest}
    hub.files["net.pth"] = content[:-1] + b"?"
    with pytest.raises(WeightsError, match="other bytes than expected"):
        WeightsFolder(tmp_path / "other", download=True).extractor("inception")
    assert not list((tmp_path / "other").rglob("*.pth"))
    server.shutdown()
