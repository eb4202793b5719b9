"""Long videos: memory that does not grow with the length, and runs that are cut off in the middle of a step."""

import dataclasses
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.process.small import standing_figure
from xdyna.config.infer import InferConfig
from xdyna.core import scratch
from xdyna.pipelines import animate as animate_module
from xdyna.pipelines import controls, denoise, resume, sampling
from xdyna.pipelines.animate import Animation, animate
from xdyna.pipelines.memory import LiveBytes
from xdyna.pipelines.model import Model, load

QUICK = InferConfig(steps=2, guidance=1.0, context_frames=8, context_overlap=2, save="ffv1")
SIDE = 128
FRAME = SIDE * SIDE * 3  # bytes of a frame and of its pose map; its latents are 4 kB


class InMemory(LiveBytes):
    """Bytes of tensors that do not stand in files."""

    def _watch(self, storage: torch.UntypedStorage) -> None:
        for pages in list(scratch._MAPPED):
            begin = np.frombuffer(pages, np.uint8).ctypes.data
            if begin <= storage.data_ptr() < begin + len(pages):
                return
        super()._watch(storage)


def peaks(make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Peak bytes of tensors in memory, of those alone that sampling makes, and of all that Python and NumPy hold."""
    original, sampled = animate_module.sample, InMemory()

    def metered(*args: Any, **kwargs: Any) -> torch.Tensor:
        with sampled:
            return original(*args, **kwargs)

    tracemalloc.start()
    try:
        with monkeypatch.context() as patch, InMemory() as whole:
            patch.setattr(animate_module, "sample", metered)
            make()
        return np.array([whole.peak, sampled.peak, tracemalloc.get_traced_memory()[1]])
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Model:
    return load(checkpoint, QUICK)


@pytest.fixture
def make(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Animation]:
    """Animates a figure in so many frames, in windows of 8."""
    monkeypatch.setenv("XDYNA_CACHE", str(tmp_path / "cache"))
    image = np.indices((96, 96)).sum(0)[..., None] * np.array([1, 1, 0.5])

    def call(frames: int, name: str, **changes: Any) -> Animation:
        track = standing_figure(frames=frames, size=(96, 96))
        settings = dataclasses.replace(QUICK, **changes)
        return animate(image.astype(np.uint8), track, out=tmp_path / name, settings=settings, model=model)

    return call


@pytest.mark.long
def test_memory_does_not_grow_with_the_video(make, monkeypatch) -> None:
    """Where images, latents, predictions and frames are large beside keypoints (2 kB a frame and copy)."""
    monkeypatch.setattr(controls, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(denoise, "EMBEDDED_FRAMES", 8)
    # Windows do not overlap: then all take the same, and what is kept between them shows.
    sizes = {"height": SIDE, "width": SIDE, "steps": 1, "context_overlap": 0}
    make(9, "warm.mkv", **sizes)
    short, long = 36, 84  # both more than what is worked on at a time
    before, after = (peaks(lambda n=n: make(n, f"{n}.mkv", **sizes), monkeypatch) for n in (short, long))
    whole, sampled, objects = (after - before) / (long - short)
    assert whole < 1024, (before, after)
    assert sampled < 1024, (before, after)
    assert objects < FRAME / 3, (before, after)


# Moments at which a run was killed, and how many windows and parts of the decoding were then left. Windows are moments
# 0 - 3 and 5 - 8, the ends of the two steps 4 and 9, parts of the decoding 10 - 14.
ALWAYS_KEPT = {0: (8, 5), 2: (6, 5), 4: (4, 5), 6: (3, 5), 8: (1, 5), 9: (0, 5), 13: (0, 2)}
HARDLY_KEPT = {2: (7, 5), 4: (7, 5), 6: (4, 5), 9: (4, 5), 13: (4, 5)}


@pytest.mark.long
@pytest.mark.parametrize(("seconds", "left"), [(0.0, ALWAYS_KEPT), (3600.0, HARDLY_KEPT)], ids=["always", "hardly"])
def test_a_run_that_was_killed_at_any_moment_ends_with_the_same_bytes(
    make, tmp_path, monkeypatch, seconds, left
) -> None:
    """What kill -9 leaves is what stands in the folder: copies of it, made at many moments, are gone on from."""
    monkeypatch.setattr(resume, "SECONDS_BETWEEN_WRITES", seconds)
    monkeypatch.setattr(resume, "SHARE_OF_TIME", 1e-9)  # no write after the first, but where it must be
    calls = {"windows": 0, "decoded": 0}
    copies: list[Path] = []
    predict, finished, done = denoise._predict_windows, sampling.to_uint8, resume.PartialRun.step_done

    def copy() -> None:
        copies.append(tmp_path / f"copy-{len(copies)}")
        shutil.copytree(tmp_path / "cut.partial", copies[-1])

    def counted(*args: Any, **kwargs: Any) -> Any:
        copy()
        calls["windows"] += 1
        return predict(*args, **kwargs)

    def told(*args: Any) -> Any:
        calls["decoded"] += 1
        made = finished(*args)
        copy()
        return made

    def ended(*args: Any, **kwargs: Any) -> Any:
        copy()
        return done(*args, **kwargs)

    monkeypatch.setattr(denoise, "_predict_windows", counted)
    monkeypatch.setattr(sampling, "to_uint8", told)
    monkeypatch.setattr(resume.PartialRun, "step_done", ended)
    whole = make(20, "cut.mkv").path.read_bytes()
    assert calls == {"windows": 8, "decoded": 5}
    kept = copies.copy()
    assert len(kept) == 15
    for number, wanted in left.items():
        for path in tmp_path.glob("cut*"):
            path.unlink()
        shutil.copytree(kept[number], tmp_path / "cut.partial")
        calls.update(windows=0, decoded=0)
        assert make(20, "cut.mkv").path.read_bytes() == whole, number
        assert (calls["windows"], calls["decoded"]) == wanted, number
