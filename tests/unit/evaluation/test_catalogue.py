"""Every metric by its name: the network it asks for, what that is given, how it is reduced; the registry of weights.

Networks are replaced by functions that are known, so that the wiring is what is tested.
"""

import dataclasses
import inspect
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from skimage.color import rgb2lab

from tests.unit.evaluation.test_people import Scripted as ScriptedPeople
from tests.unit.evaluation.test_people import face, person
from xdyna.config.eval import ClipProtocol
from xdyna.evaluation.catalogue import METRICS, Shared
from xdyna.evaluation.masks import Masker
from xdyna.evaluation.metric import LOWER, Case, Column, Metric, Video
from xdyna.evaluation.metrics.dynamics import AppearanceDrift
from xdyna.evaluation.metrics.people import PeopleReader
from xdyna.evaluation.networks import registry
from xdyna.evaluation.networks.i3d import I3DExtractor
from xdyna.evaluation.networks.inception import InceptionExtractor
from xdyna.evaluation.networks.mtcnn import MTCNN, TEMPLATE, ONet, PNet, RNet
from xdyna.evaluation.networks.registry import EXTRACTORS
from xdyna.evaluation.networks.videomae import VideoMAE, VideoMAEExtractor
from xdyna.evaluation.paper import TABLES
from xdyna.evaluation.store import MemoryCache, record_key

# metric: (network, clips or images, region, ddof of the covariance)
FRECHET = {
    "fid": ("inception", False, "full", 1),
    "dtfvd": ("i3d_dtdb_16", True, "full", 1),
    "dtfvd_fg": ("i3d_dtdb_16", True, "figure", 1),
    "dtfvd_bg": ("i3d_dtdb_16", True, "background", 1),
    "fvd": ("i3d_kinetics", True, "full", 0),
    "cd_fvd": ("videomae_ssv2", True, "full", 0),
}
OTHER_NETWORKS = {
    "lpips": "lpips_vgg",
    "lpips_disco": "lpips_vgg",
    "face_cos": "adaface_ir101_classes",
    "face_cos_ir50": "adaface_ir50_classes",
    "face_cos_insightface": "insightface",
}
WITHOUT_WEIGHTS = {
    *("l1", "mae", "psnr", "psnr_uint8wrap", "ssim", "face_det", "face_exp", "pck", "warping_error", "flicker"),
    *("temporal_ratio", "temporal_ratio_fg", "temporal_ratio_bg", "appearance_drift"),
}
# network: (files, kind, D, beginning of sha256)
NETWORKS = {
    "inception": (["pt_inception-2015-12-05-6726825d.pth"], "image", 2048, "6726825d0af5f729"),
    "i3d_dtdb_16": (["I3D_16.pth.tar"], "clip", 1024, None),
    "i3d_dtdb_32": (["I3D_32.pth.tar"], "clip", 1024, None),
    "i3d_kinetics": (["i3d_pretrained_400.pt"], "clip", 400, None),
    "videomae_ssv2": (["vit_g_hybrid_pt_1200e_ssv2_ft.pth"], "clip", 1408, "5a210a92f035dff3"),
    "lpips_vgg": (["vgg16-397923af.pth", "vgg.pth"], "image", 0, "397923af8e79cdbb"),
    **{
        f"adaface_{kind}_{softmax}": ([file, "pnet.npy", "rnet.npy", "onet.npy"], "face", 512, None)
        for kind, file in (("ir50", "adaface_ir50_ms1mv2.ckpt"), ("ir101", "adaface_ir101_webface12m.ckpt"))
        for softmax in ("classes", "width")
    },
}
PAPER = {
    "table1": """MagicAnimate 1.753/2.142/2.601 Animate-Anyone 1.789/2.034/2.310 MagicPose 1.846/1.901/2.412
        MimicMotion 2.639/3.274/3.590 X-Dyna 0.900/1.101/1.518""",
    "table2": """MagicAnimate 7.42e-05/17.143/0.228/0.739/0.297/92.1/31.97/237.59/38.86/176.17
        Animate-Anyone 11.8e-05/13.411/0.338/0.605/0.402/89.0/33.75/233.39/34.27/203.59
        MagicPose 13.7e-05/12.639/0.345/0.618/0.396/85.5/18.52/537.96/24.43/480.14
        MimicMotion 9.78e-05/14.903/0.278/0.647/0.193/92.0/45.67/150.01/60.32/194.17
        X-Dyna 7.15e-05/17.201/0.249/0.724/0.497/94.8/22.56/325.35/25.59/281.78""",
    "table4": """w/RefNet 2.137/2.694/2.823/0.466 w/IP-A 3.738/4.702/4.851/0.292 w/lmk 0.914/1.125/1.589/0.406
        wo/face 0.912/1.098/1.550/0.442 wo/fusion 1.301/1.467/1.652/0.495 X-Dyna 0.900/1.101/1.518/0.497""",
    "table5": """MagicAnimate 6.708/250.75/0.134 Animate-Anyone 6.820/253.29/0.123 MagicPose 7.062/244.25/0.121
        MimicMotion 6.823/258.91/0.109 X-Dyna 5.923/246.16/0.105""",
}


class Colours:
    """Mean colours: one feature per image, or one per clip."""

    version, dim, batch = "1", 3, 1

    def __init__(self, name: str) -> None:
        self.name, self.calls = name, list[dict[str, Any]]()

    def features(self, frames: np.ndarray) -> np.ndarray:
        means = frames.astype(np.float32).mean(axis=(1, 2))
        return means if self.name == "inception" else means.mean(axis=0, keepdims=True)

    def distance(self, truth: np.ndarray, generated: np.ndarray, *, low: float) -> np.ndarray:
        self.calls.append({"low": low})
        return np.zeros(len(truth))

    def embed(self, frames: np.ndarray) -> np.ndarray:
        return np.ones((len(frames), 1), np.float32)


class Asked:
    def __init__(self) -> None:
        self.networks: dict[str, Colours] = {}

    def extractor(self, name: str) -> Colours:
        return self.networks.setdefault(name, Colours(name))


def shared(**settings: Any) -> Shared:
    given = {"clip": ClipProtocol(), "masks": "given", "pose_backend": "mediapipe", **settings}
    made = Shared(MemoryCache(), Asked(), **given)  # type: ignore[arg-type]
    made.__dict__["people"] = PeopleReader(ScriptedPeople({}))  # what the cached property would make
    return made


def video(name: str, pixels: np.ndarray) -> Video:
    return Video(name, pixels, 8.0, name)


def scene(seed: int) -> Case:
    """16 frames: a figure (left half) and a background of random colours, of truth and generated video."""
    rng = np.random.default_rng(seed)
    videos = []
    for name in ("t", "g"):
        colours = rng.integers(60, 200, (16, 1, 2, 3))
        videos.append(video(f"{name}{seed}", colours.repeat(32, axis=1).repeat(16, axis=2).astype(np.uint8)))
    mask = np.zeros((16, 32, 32), bool)
    mask[:, :, :16] = True
    return Case(str(seed), videos[1], videos[0], None, (mask, mask))


def test_every_metric_has_its_network() -> None:
    assert set(METRICS) == {*FRECHET, *OTHER_NETWORKS, *WITHOUT_WEIGHTS}
    for name, make in METRICS.items():
        settings = shared()
        metric = make(settings)
        assert metric.name == name
        wanted = FRECHET[name][0] if name in FRECHET else OTHER_NETWORKS.get(name)
        assert list(settings.weights.networks) == ([] if wanted is None else [wanted])  # type: ignore[attr-defined]
        assert {c.name for c in metric.columns} >= {"pck_0.1"} if name == "pck" else metric.columns[0].name == name
    for softmax in ("classes", "width"):
        settings = shared(mtcnn_softmax=softmax)
        metric = METRICS["face_cos"](settings)
        assert list(settings.weights.networks) == [f"adaface_ir101_{softmax}"]  # type: ignore[attr-defined]
        assert metric.columns[0].label == f"Face-Cos (AdaFace IR-101, MTCNN over {softmax})"
    for frames, network in ((8, "i3d_dtdb_16"), (16, "i3d_dtdb_16"), (17, "i3d_dtdb_32"), (32, "i3d_dtdb_32")):
        settings = shared(clip=ClipProtocol(frames=frames))
        METRICS["dtfvd_bg"](settings)
        assert list(settings.weights.networks) == [network]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", FRECHET)
def test_distances_of_colours_by_hand(name: str) -> None:
    """From the definition: which pixels, images or clips, which covariance."""
    _, clips, region, ddof = FRECHET[name]
    cases = [scene(seed) for seed in range(7)]
    sets = []
    for which in ("truth", "generated"):
        features = []
        for case in cases:
            pixels = getattr(case, which).frames.astype(np.float64)
            if region != "full":
                pixels[:, :, slice(16, None) if region == "figure" else slice(0, 16)] = 0
            means = pixels.mean(axis=(1, 2))
            features.append(means.mean(axis=0, keepdims=True) if clips else means)
        sets.append(np.concatenate(features))
    first, second = (np.cov(x, rowvar=False, ddof=ddof) for x in sets)
    roots = np.sqrt(np.linalg.eigvals(first @ second).real.clip(min=0)).sum()
    shift = ((sets[0].mean(axis=0) - sets[1].mean(axis=0)) ** 2).sum()
    expected = shift + np.trace(first) + np.trace(second) - 2 * roots
    metric = METRICS[name](shared())
    assert metric.reduce([metric.measure(case) for case in cases])[name] == pytest.approx(expected, rel=1e-4)


def test_the_registry_is_what_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        name: ([f.name for f in spec.files], spec.kind, spec.dim, spec.files[0].sha256 and spec.files[0].sha256[:16])
        for name, spec in EXTRACTORS.items()
    }
    assert found == NETWORKS
    assert {name: EXTRACTORS[network].ddof for name, (network, *_) in FRECHET.items()} == {
        name: ddof for name, (*_, ddof) in FRECHET.items()
    }
    made: list[dict[str, Any]] = []
    for kind in ("AdaFace", "MTCNN", "I3DExtractor", "InceptionExtractor", "VideoMAEExtractor", "LPIPS"):
        monkeypatch.setattr(registry, kind, lambda *a, _name=kind, **k: made.append({"class": _name, **k}))
    built = {}
    for name, spec in EXTRACTORS.items():
        made.clear()
        spec.build([{}] * len(spec.files), "0", "cpu")
        built[name] = [
            {key: value for key, value in call.items() if key not in ("device", "weights", "what")} for call in made
        ]
    for kind in ("ir50", "ir101"):
        for softmax in ("classes", "width"):
            assert built[f"adaface_{kind}_{softmax}"] == [
                {"class": "MTCNN", "softmax": softmax},
                {"class": "AdaFace", "kind": kind},
            ]
    i3d = {"i3d_dtdb_16": (18, 16, False), "i3d_dtdb_32": (18, 32, False), "i3d_kinetics": (400, 16, True)}
    for name, (classes, frames, logits) in i3d.items():
        expected = {"class": "I3DExtractor", "classes": classes, "frames": frames, "logits": logits}
        assert built[name] == [expected]
    assert built["lpips_vgg"] == [{"class": "LPIPS", "kind": "vgg"}]


def test_published_sizes_and_thresholds() -> None:
    sizes = {name: p.default for name, p in inspect.signature(VideoMAE).parameters.items()}
    assert sizes == {
        "width": 1408,
        "depth": 40,
        "heads": 16,
        "hidden": 6144,
        "patch": 14,
        "tubelet": 2,
        "frames": 16,
        "side": 224,
        "classes": 174,
    }
    narrow = [[30.29459953, 51.69630051], [65.53179932, 51.50139999], [48.02519989, 71.73660278]]
    narrow += [
        [33.54930115, 92.3655014],
        [62.72990036, 92.20410156],
    ]  # published for 96 x 112 px; 112 adds 8 on each side
    np.testing.assert_allclose(TEMPLATE, np.array(narrow) + [8, 0], atol=1e-5)
    states = [net().state_dict() for net in (PNet, RNet, ONet)]
    assert MTCNN(*states).version == "mtcnn-classes-0.6-0.7-0.9"
    assert MTCNN(*states)._thresholds == (0.6, 0.7, 0.9)


@pytest.mark.parametrize(("name", "low"), [("lpips", -1.0), ("lpips_disco", 0.0)])
def test_range_of_lpips(name: str, low: float) -> None:
    settings = shared()
    METRICS[name](settings).measure(scene(0))
    assert settings.weights.networks["lpips_vgg"].calls == [{"low": low}]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("name", "ratio"), [("temporal_ratio_fg", 4.0), ("temporal_ratio_bg", 0.25)])
def test_regions_of_the_temporal_ratio(name: str, ratio: float) -> None:
    """The figure moves by 10 (truth) and 20 grey levels, the background by 10 and 5."""
    case, time = scene(0), np.arange(16) % 2
    for which, figure, background in (("truth", 10, 10), ("generated", 20, 5)):
        pixels = np.full((16, 32, 32, 3), 100)
        pixels[:, :, :16] += figure * time[:, None, None, None]
        pixels[:, :, 16:] += background * time[:, None, None, None]
        case = dataclasses.replace(case, **{which: video(which, pixels.astype(np.uint8))})
    metric = METRICS[name](shared())
    assert metric.reduce([metric.measure(case)])[name] == pytest.approx(ratio)


def test_expressions_are_compared_with_the_driving_face() -> None:
    """The truth's face is that of the generated video, the driving one's mouth is open."""
    settings = shared()
    table = {1: person(face()), 2: person(face(open=12))}
    settings.__dict__["people"] = PeopleReader(ScriptedPeople(table))
    generated, driving = (video(str(k), np.full((2, 8, 8, 3), k, np.uint8)) for k in (1, 2))
    metric = METRICS["face_exp"](settings)
    record = metric.measure(Case("a", generated, generated, driving))
    assert metric.reduce([record])["face_exp"] == pytest.approx(12 / 60 / 8, rel=1e-5)  # one of eight coefficients
    assert metric.reduce([metric.measure(Case("a", generated, driving, generated))])["face_exp"] == 0


def bilinear(frames: np.ndarray, size: tuple[int, int], *, corners: bool = False) -> np.ndarray:
    """Bilinear resize of (T, H, W, C) without antialiasing, by the formula; float64."""
    out = frames.astype(np.float64)
    for axis, length in ((1, size[0]), (2, size[1])):
        old, places = out.shape[axis], np.arange(length)
        x = places * (old - 1) / (length - 1) if corners else (places + 0.5) * old / length - 0.5
        x = x.clip(0, old - 1)
        low = np.floor(x).astype(int)
        high, share = (low + 1).clip(max=old - 1), x - low
        share = share.reshape([-1 if k == axis else 1 for k in range(4)])
        out = out.take(low, axis=axis) * (1 - share) + out.take(high, axis=axis) * share
    return out


class Seen:
    """A network that keeps what it is given."""

    def __init__(self) -> None:
        self.input = np.zeros(0)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.input = x.numpy()
        return torch.zeros(len(x), 2)

    classify = __call__


NOISE = np.random.default_rng(0).integers(0, 256, (2, 450, 380, 3), dtype=np.uint8)  # larger than all inputs


@pytest.mark.parametrize(
    ("kind", "logits", "side", "corners", "low"),
    [
        (InceptionExtractor, None, 299, False, -1),
        (I3DExtractor, False, 224, True, -1),
        (I3DExtractor, True, 224, False, -1),
        (VideoMAEExtractor, None, 224, False, 0),
    ],
)
def test_images_are_scaled_down_as_published(
    kind: Any, logits: bool | None, side: int, corners: bool, low: int
) -> None:
    """Noise, where any other filter, grid or range is far away."""
    extractor = kind.__new__(kind)
    extractor._net, extractor._device, extractor._logits = Seen(), torch.device("cpu"), logits
    extractor.features(NOISE)
    wanted = bilinear(NOISE, (side, side), corners=corners) / 255
    wanted = wanted * (1 - low) + low
    axes = (0, 3, 1, 2) if extractor._net.input.ndim == 4 else (3, 0, 1, 2)
    got = extractor._net.input if extractor._net.input.ndim == 4 else extractor._net.input[0]
    np.testing.assert_allclose(got, wanted.transpose(axes), atol=2e-3)


def test_pairs_are_scaled_down_without_antialiasing() -> None:
    case = Case("a", video("g", NOISE), video("t", NOISE[:, :190, :160]))
    np.testing.assert_allclose(case.paired[1], bilinear(NOISE, (190, 160)), atol=1.51)  # OpenCV's fixed point


def test_colours_of_the_drift_are_lab_of_rgb() -> None:
    """Figures of one colour: 0 where both are in one cell of the histogram, 1 where not; cells by scikit-image."""
    rng = np.random.default_rng(3)
    checked = {True: 0, False: 0}
    for first, second in rng.integers(0, 256, (4000, 2, 3)).astype(np.uint8):
        second = np.clip(first.astype(int) + rng.integers(-24, 25, 3), 0, 255).astype(np.uint8)
        cells = []
        for order in (slice(None), slice(None, None, -1)):
            lab = rgb2lab(np.stack([first, second])[:, order] / 255.0) * [2.55, 1, 1] + [0, 128, 128]
            near = np.abs(lab / 32 - np.round(lab / 32)).min() < 0.05  # too near to an edge of a cell
            cells.append(None if near else bool((lab[0] // 32 == lab[1] // 32).all()))
        same, swapped = cells
        if same is None or swapped is None or same == swapped or checked[same] >= 5:
            continue
        checked[same] += 1
        frames = np.stack([np.full((8, 8, 3), first), np.full((8, 8, 3), second)])
        mask = np.ones((2, 8, 8), bool)
        record = AppearanceDrift(Masker(None)).measure(
            Case("a", video("g", frames), video("t", frames), None, (mask, mask))
        )
        assert record.values["appearance_drift.sum"] == pytest.approx(0 if same else 16, abs=0.05)
    assert min(checked.values()) >= 3


def test_a_still_figure_does_not_drift() -> None:
    """Exactly: the same frame and the same mask, many colours."""
    frames = np.repeat(NOISE[:1, :64, :64], 5, axis=0)
    mask = cv2.circle(np.zeros((64, 64), np.uint8), (30, 30), 20, 1, -1) > 0

    class Segmenter:
        name, version = "circle", "1"

        def segment(self, frame: np.ndarray) -> np.ndarray:
            return mask.astype(np.float32)

    metric = AppearanceDrift(Masker(Segmenter()))
    assert metric.reduce([metric.measure(Case("a", video("g", frames)))])["appearance_drift"] == 0


def frechet(**changes: Any) -> Metric:
    settings = shared(**{k: v for k, v in changes.items() if k == "clip"})
    network = settings.weights.extractor("i3d_dtdb_16")
    network.version = changes.get("version", "1")
    return METRICS[changes.get("name", "dtfvd")](settings)


@pytest.mark.parametrize(
    "changes",
    [
        {"clip": ClipProtocol(choice="centre")},
        {"clip": ClipProtocol(frames=8)},
        {"clip": ClipProtocol(stride=2)},
        {"clip": ClipProtocol(short="repeat_last")},
        {"clip": ClipProtocol(choice="seeded", seed=1)},
        {"version": "2"},
        {"name": "dtfvd_fg"},
        {"name": "dtfvd_bg"},
    ],
    ids=str,
)
def test_nothing_measured_otherwise_is_found_in_the_cache(changes: dict[str, Any]) -> None:
    case = scene(0)
    plain, other = frechet(), frechet(**changes)
    assert record_key(plain, case) != record_key(other, case)
    caches: list[MemoryCache] = []
    for metric in (plain, other):
        caches.append(MemoryCache())
        metric._cache = caches[-1]  # type: ignore[attr-defined]
        metric.measure(case)
    assert not caches[0].keys() & caches[1].keys()


def test_records_depend_on_name_version_and_every_video() -> None:
    case = scene(0)
    metric = SimpleNamespace(name="a", version="1", columns=(Column("a", "A", LOWER),))
    others = [
        (SimpleNamespace(name="b", version="1"), case),
        (SimpleNamespace(name="a", version="2"), case),
        (metric, dataclasses.replace(case, generated=scene(1).generated)),
        (metric, dataclasses.replace(case, truth=scene(1).truth)),
        (metric, dataclasses.replace(case, driving=scene(1).truth)),
        (metric, dataclasses.replace(case, masks=(~case.masks[0], case.masks[1]))),  # type: ignore[index]
        (metric, dataclasses.replace(case, masks=(case.masks[0], ~case.masks[1]))),  # type: ignore[index]
    ]
    keys = {record_key(m, c) for m, c in [(metric, case), *others]}  # type: ignore[arg-type]
    assert len(keys) == 1 + len(others)


def test_numbers_of_the_paper() -> None:
    for name, table in TABLES.items():
        words = PAPER[name].split()
        rows = {
            method: tuple(float(x) for x in numbers.split("/"))
            for method, numbers in zip(words[::2], words[1::2], strict=True)
        }
        assert table.rows == rows
        assert all(len(numbers) == len(table.columns) for numbers in rows.values())
    assert TABLES["table1"].columns == ("dtfvd_fg", "dtfvd_bg", "dtfvd")
    second = ("l1", "psnr", "lpips_disco", "ssim", "face_cos", "face_det", "fid", "cd_fvd", None, None)
    assert TABLES["table2"].columns == second
    assert TABLES["table4"].columns == ("dtfvd_fg", "dtfvd_bg", "dtfvd", "face_cos")
    assert TABLES["table5"].columns == ("dtfvd", "fid", "face_exp")
