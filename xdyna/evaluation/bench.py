"""Benchmark of metrics: frames per second of each on one pair of videos (`scripts/bench.py metrics`).

Networks of published weights run with random ones here: their speed does not depend on the values. VideoMAE-v2 ViT-g
(1 billion weights) is left out.
"""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from xdyna.config.eval import ClipProtocol
from xdyna.evaluation.catalogue import METRICS, Shared, check_names
from xdyna.evaluation.metric import Case, Metric, Video
from xdyna.evaluation.networks.fixture import random_weights
from xdyna.evaluation.networks.i3d import I3D, I3DExtractor
from xdyna.evaluation.networks.inception import FIDInception, InceptionExtractor
from xdyna.evaluation.networks.lpips import LPIPS, Backbone
from xdyna.evaluation.store import Store
from xdyna.evaluation.weights import MissingWeights
from xdyna.media import probe, read_frames


class RandomNetworks:
    """Stands in for a folder of weights: the networks, with random ones."""

    def extractor(self, name: str) -> Any:
        """The extractor of that name.

        Raises:
            MissingWeights: one that is left out.
        """
        makers: dict[str, Callable[[], Any]] = {
            "inception": lambda: InceptionExtractor(random_weights(FIDInception().state_dict()), weights="random"),
            "lpips_vgg": _lpips,
            "i3d_dtdb_16": lambda: _i3d(18, logits=False),
            "i3d_kinetics": lambda: _i3d(400, logits=True),
        }
        if name not in makers:
            raise MissingWeights(f"{name} is left out of the benchmark")
        return makers[name]()


def _i3d(classes: int, *, logits: bool) -> I3DExtractor:
    state = random_weights(I3D(classes=classes).state_dict())
    return I3DExtractor(state, classes=classes, frames=16, what="I3D", weights="random", logits=logits)


def _lpips() -> LPIPS:
    channels = (64, 128, 256, 512, 512)
    head = {f"lin{k}.model.1.weight": torch.full((1, c, 1, 1), 1 / c) for k, c in enumerate(channels)}
    return LPIPS(random_weights(Backbone("vgg").state_dict()), head, kind="vgg", weights="random")


def bench_metrics(names: Sequence[str], *, video: Path | None, frames: int, repeats: int) -> None:
    """Time metrics, and print their speeds.

    Args:
        names: of metrics; empty: all.
        video: what they are measured on; None: a rendered puppet.
        frames: of it, at least 2.
        repeats: timed repetitions.

    Raises:
        UsageError: an unknown metric.
        MediaError: the video cannot be read.
    """
    case = _case(video, frames)
    count, height, width = case.generated.frames.shape[:3]
    print(f"{count} frames of {height} x {width} px, {torch.get_num_threads()} threads, median of {repeats}")
    with tempfile.TemporaryDirectory() as folder:
        for name in check_names(list(names)) if names else METRICS:
            # A store of its own: what another metric has found must not be found again.
            store = Store(Path(folder) / name)
            shared = Shared(store, RandomNetworks(), clip=ClipProtocol(), masks="mediapipe", pose_backend="mediapipe")
            try:
                metric = METRICS[name](shared)
            except MissingWeights as missing:
                print(f"{name:<18} -  ({missing})")
                continue
            print(f"{name:<18} {_rate(metric, case, repeats)}", flush=True)


def _rate(metric: Metric, case: Case, repeats: int) -> str:
    """Frames per second of a metric, as text. Every repetition sees pixels that no store has seen."""
    seconds = []
    for number in range(repeats + 1):  # the first loads models, and does not count
        fresh = _changed(case, number)
        start = time.perf_counter()
        try:
            metric.measure(fresh)
        except ValueError as error:
            return f"-  ({error})"
        seconds.append(time.perf_counter() - start)
    return f"{len(case.generated.frames) / statistics.median(seconds[1:]):10.1f} frames/s"


def _changed(case: Case, number: int) -> Case:
    def other(video: Video) -> Video:
        frames = np.array(video.frames)
        frames[:, 0, 0] = number
        return dataclasses.replace(video, frames=frames, digest=f"{video.digest} {number}")

    assert case.truth is not None
    truth = other(case.truth)
    return dataclasses.replace(case, generated=other(case.generated), truth=truth, driving=truth)


def _moving_texture(count: int, size: int = 128) -> np.ndarray:
    """Blurred noise that drifts by 2 px a frame: uint8 (count, size, size, 3)."""
    noise = np.random.default_rng(0).integers(0, 256, (size, size + 2 * count, 3), dtype=np.uint8)
    wide = cv2.GaussianBlur(noise, (9, 9), 0)
    return np.stack([wide[:, 2 * k : 2 * k + size] for k in range(count)])


def _case(path: Path | None, count: int) -> Case:
    """A video and itself one frame later: of the file, or of a texture that moves."""
    if path is None:
        fps, frames = 12.0, _moving_texture(count + 1)
    else:
        fps = float(probe(path).fps)
        frames = np.stack(list(read_frames(path, range(count + 1))))
    truth = Video("truth", frames[:-1], fps, "truth")
    return Case("pair", Video("generated", frames[1:], fps, "generated"), truth, truth)
