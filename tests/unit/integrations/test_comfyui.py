"""The nodes for ComfyUI, without ComfyUI: its modules are stand-ins here. With it: tests/process/test_comfyui.py."""

import dataclasses
import importlib.util
import inspect
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import xdyna
from tests.process.small import SMALL, standing_figure
from xdyna.config.infer import InferConfig
from xdyna.core.errors import UsageError
from xdyna.core.progress import Watch
from xdyna.core.resources import resource
from xdyna.media.video import read_frames
from xdyna.media.writer import VideoWriter
from xdyna.perception import base
from xdyna.perception.types import Person, PoseTrack
from xdyna.pipelines.driving import open_driving
from xdyna.pipelines.folder import save_pipeline
from xdyna.pipelines.untrained import build_pipeline

ROOT = Path(__file__).resolve().parents[3]
PACK = ROOT / "integrations" / "comfyui"
# Inputs of ComfyUI's own nodes in the workflows: required names (0.3.64).
CORE = {
    "LoadImage": {"image"},
    "CreateVideo": {"images", "fps"},
    "SaveVideo": {"video", "filename_prefix", "format", "codec"},
    "PreviewImage": {"images"},
    "PreviewAny": {"source"},
}
CORE_OUTPUTS = {"LoadImage": ("IMAGE", "MASK"), "CreateVideo": ("VIDEO",)}
CORE_TYPES = {"images": "IMAGE", "fps": "FLOAT", "video": "VIDEO"}


class InterruptProcessingException(Exception):
    """ComfyUI's."""


class Comfy:
    """Stand-ins for ComfyUI's modules, and what they were told."""

    def __init__(self, root: Path) -> None:
        self.root, self.updates, self.texts, self.freed = root, [], [], 0
        self.interrupt_after: int | None = None
        self.interrupt_at: str | None = None
        self.device = torch.device("cpu")
        self.arguments = SimpleNamespace(preview_method=SimpleNamespace(value="none"))
        for name in ("input", "output", "temp", "models/loras", "models/xdyna"):
            (root / name).mkdir(parents=True)
        self.models = {"loras": [str(root / "models/loras")]}

    def folder(self, kind: str) -> Path:
        return self.root / kind

    def modules(self) -> dict[str, ModuleType]:
        comfy = self

        class ProgressBar:
            def __init__(self, total: int, node_id: str | None = None) -> None:
                self.total = total

            def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
                comfy.updates.append((value, total, preview))

        def stop() -> None:
            if comfy.interrupt_after is not None:
                comfy.interrupt_after -= 1
                if comfy.interrupt_after < 0:
                    raise InterruptProcessingException

        def annotated(name: str, default: str | None = None) -> str:
            for kind in ("output", "input", "temp"):
                if name.endswith(f" [{kind}]"):
                    return os.path.join(comfy.folder(kind), name[: -len(kind) - 3])
            return os.path.join(comfy.folder("input"), name)

        def free() -> None:
            comfy.freed += 1

        def say(text: str, node: str) -> None:
            comfy.texts.append((node, text))
            if text == comfy.interrupt_at:
                comfy.interrupt_after = 0

        names = {
            "comfy": {},
            "comfy.utils": {"ProgressBar": ProgressBar},
            "comfy.cli_args": {"args": self.arguments},
            "comfy.model_management": {
                "InterruptProcessingException": InterruptProcessingException,
                "throw_exception_if_processing_interrupted": stop,
                "get_torch_device": lambda: comfy.device,
                "unload_all_models": free,
                "soft_empty_cache": lambda: None,
            },
            "folder_paths": {
                "models_dir": str(self.root / "models"),
                "add_model_folder_path": lambda kind, path: comfy.models.setdefault(kind, []).append(path),
                "get_folder_paths": lambda kind: comfy.models[kind],
                "get_filename_list": lambda kind: sorted(p.name for p in Path(comfy.models[kind][0]).iterdir()),
                "get_full_path": lambda kind, name: next(
                    (str(p) for p in [Path(comfy.models[kind][0]) / name] if p.is_file()), None
                ),
                "get_input_directory": lambda: str(comfy.folder("input")),
                "get_output_directory": lambda: str(comfy.folder("output")),
                "get_temp_directory": lambda: str(comfy.folder("temp")),
                "get_annotated_filepath": annotated,
            },
            "server": {"PromptServer": SimpleNamespace(instance=SimpleNamespace(send_progress_text=say))},
        }
        made = {}
        for name, values in names.items():
            made[name] = ModuleType(name)
            vars(made[name]).update(values)
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(made[parent], child, made[name])
        return made


@pytest.fixture
def comfy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Comfy:
    there = Comfy(tmp_path / "comfy")
    for name, module in there.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    return there


def load_pack() -> ModuleType:
    """The pack as ComfyUI imports it: by its folder, under a name of its own."""
    spec = importlib.util.spec_from_file_location("a_custom_node", PACK / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["a_custom_node"] = module
    try:
        spec.loader.exec_module(module)
    finally:
        if not hasattr(module, "NODE_CLASS_MAPPINGS"):
            del sys.modules["a_custom_node"]
    return module


@pytest.fixture
def pack(comfy: Comfy) -> Iterator[ModuleType]:
    yield load_pack()
    for name in [name for name in sys.modules if name.startswith("a_custom_node")]:
        del sys.modules[name]


@pytest.fixture
def bridge(pack: ModuleType) -> ModuleType:
    return sys.modules["a_custom_node.bridge"]


@pytest.fixture
def nodes(pack: ModuleType) -> ModuleType:
    return sys.modules["a_custom_node.nodes"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines") / "small"
    save_pipeline(build_pipeline(SMALL, seed=0), folder, untrained=True)
    return folder


@pytest.fixture
def small(comfy: Comfy, checkpoint: Path) -> str:
    """A pipeline folder in ComfyUI's models/xdyna."""
    shutil.copytree(checkpoint, comfy.folder("models/xdyna") / "small")
    return "small"


@pytest.fixture
def picture() -> np.ndarray:
    return (np.indices((96, 64)).sum(0)[..., None] * np.array([1, 1, 0.5])).astype(np.uint8)


def video(path: Path, *, frames: int, fps: float = 10, size: tuple[int, int] = (96, 64)) -> Path:
    with VideoWriter(path, fps=fps, size=size) as writer:
        for number in range(frames):
            writer.write(np.full((*size, 3), 20 * number % 256, np.uint8))
    return path


class Standing:
    """A detector that sees the standing figure in every frame."""

    name, version = "standing", "1"

    def __init__(self, models_dir: Path | None = None) -> None:
        pass

    def detect(self, frame: np.ndarray) -> list[Person]:
        track = standing_figure(frames=1)
        box = np.array([10, 5, 50, 90], np.float32)
        return [Person(track.body[0], track.hands[0], track.face[0], box, 1.0)]


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("a_detector")
    vars(module)["Standing"] = Standing
    monkeypatch.setitem(sys.modules, "a_detector", module)
    monkeypatch.setitem(base._POSE_BACKENDS, "mediapipe", ("a_detector", "Standing"))


def settings_of(node: type, **given: Any) -> dict[str, Any]:
    """Widgets of a node at their defaults, and what is given."""
    found = {}
    for name, (kind, options) in node.INPUT_TYPES()["required"].items():
        if name in given:
            continue
        found[name] = kind[0] if isinstance(kind, list) else options["default"]
    return found | given


def load_model(nodes: ModuleType, name: str, **given: Any) -> Any:
    return nodes.LoadModel().load(**settings_of(nodes.LoadModel, checkpoint=name, **given))[0]


# What ComfyUI reads off the classes


def test_every_node_says_what_comfyui_asks(pack: ModuleType) -> None:
    assert set(pack.NODE_CLASS_MAPPINGS) == set(pack.NODE_DISPLAY_NAME_MAPPINGS)
    for name, node in pack.NODE_CLASS_MAPPINGS.items():
        assert name.startswith("XDyna")  # names are those of all packs together
        assert pack.NODE_DISPLAY_NAME_MAPPINGS[name].startswith("X-Dyna ")
        assert node.CATEGORY == "X-Dyna"
        assert node.DESCRIPTION
        assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
        assert len(getattr(node, "OUTPUT_TOOLTIPS", node.RETURN_TYPES)) == len(node.RETURN_TYPES)
        types = node.INPUT_TYPES()
        assert set(types) <= {"required", "optional", "hidden"}
        asked = list(inspect.signature(getattr(node, node.FUNCTION)).parameters)[1:]
        assert asked == [key for part in ("required", "optional", "hidden") for key in types.get(part, {})]
        for key, entry in (types["required"] | types.get("optional", {})).items():
            assert entry[1]["tooltip"], f"{name}.{key}"
            if not isinstance(entry[0], list) and entry[0] in ("INT", "FLOAT"):
                assert entry[1]["min"] <= entry[1]["default"] <= entry[1]["max"]


def test_without_xdyna_one_sentence_says_where_to_put_it(comfy: Comfy, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "xdyna" else find(name, *a))
    with pytest.raises(ImportError, match=r'pip install -e ".*\[perception\]"$') as caught:
        load_pack()
    assert sys.executable in str(caught.value)


# Images and files


def test_images_keep_their_bytes(bridge: ModuleType) -> None:
    frames = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    image = bridge.to_image(frames)
    assert image.dtype == torch.float32
    assert float(image.min()) == 0
    assert float(image.max()) == 1
    assert (bridge.to_arrays(image) == frames).all()
    assert (bridge.to_arrays(image - 0.4 / 255) == frames).all()  # to the nearest
    assert (bridge.to_arrays(image + 0.4 / 255) == frames).all()
    with_alpha = torch.cat([image, torch.zeros(1, 16, 16, 1)], dim=-1)
    assert (bridge.to_arrays(with_alpha) == frames).all()
    assert (bridge.to_arrays(image * 3 - 1)[0, 0, 0] == 0).all()  # out of range is cut
    with pytest.raises(UsageError, match=r"\(16, 16, 3\)"):
        bridge.to_arrays(image[0])
    with pytest.raises(UsageError, match="batch of 2"):
        bridge.one_image(torch.cat([image, image]))


@pytest.mark.parametrize(
    "name", ["../secret.mp4", "/etc/hostname", "missing.mp4", "sub/../../secret.mp4 [output]", "."]
)
def test_files_are_taken_from_comfyuis_folders_alone(bridge: ModuleType, nodes: Any, comfy: Comfy, name: str) -> None:
    video(comfy.root / "secret.mp4", frames=1)
    with pytest.raises(UsageError, match="input folder"):
        bridge.input_file(name)
    assert "input folder" in nodes.TrackVideo.VALIDATE_INPUTS(name)
    assert "input folder" in nodes.LoadKeypoints.VALIDATE_INPUTS(name, "none")


def test_files_that_are_there_are_right(bridge: ModuleType, nodes: ModuleType, comfy: Comfy) -> None:
    path = video(comfy.folder("input") / "a.mp4", frames=2)
    made = video(comfy.folder("output") / "b.mp4", frames=2)
    standing_figure(frames=2).save(comfy.folder("input") / "a.npz")
    assert bridge.input_file("a.mp4") == path
    assert bridge.input_file("b.mp4 [output]") == made
    assert nodes.TrackVideo.VALIDATE_INPUTS("a.mp4") is True
    assert nodes.LoadKeypoints.VALIDATE_INPUTS("a.npz", "none") is True
    assert nodes.LoadKeypoints.VALIDATE_INPUTS("a.npz", "a.mp4") is True
    assert nodes.LoadKeypoints.VALIDATE_INPUTS("a.npz", "c.mp4") is not True
    assert nodes.TrackVideo.INPUT_TYPES()["required"]["video"][0] == ["a.mp4"]
    assert nodes.LoadKeypoints.INPUT_TYPES()["required"]["keypoints"][0] == ["a.npz"]


def test_a_node_runs_again_when_its_files_change(nodes: ModuleType, comfy: Comfy, small: str) -> None:
    path = video(comfy.folder("input") / "a.mp4", frames=2)
    before = nodes.TrackVideo.IS_CHANGED("a.mp4", fps=0, frames=0)
    assert nodes.TrackVideo.IS_CHANGED("a.mp4", fps=0, frames=0) == before
    stat = path.stat()
    path.unlink()
    video(path, frames=3)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the content counts
    assert nodes.TrackVideo.IS_CHANGED("a.mp4", fps=0, frames=0) != before

    standing_figure(frames=2).save(comfy.folder("input") / "a.npz")
    alone = nodes.LoadKeypoints.IS_CHANGED("a.npz", "none")
    both = nodes.LoadKeypoints.IS_CHANGED("a.npz", "a.mp4")
    assert alone != both
    standing_figure(frames=3).save(comfy.folder("input") / "a.npz", overwrite=True)
    assert nodes.LoadKeypoints.IS_CHANGED("a.npz", "none") != alone

    loaded = nodes.LoadModel.IS_CHANGED("small", "none", mode="exact")
    assert nodes.LoadModel.IS_CHANGED("small", "none", mode="exact") == loaded
    weights = next((comfy.folder("models/xdyna") / "small" / "unet").glob("*.safetensors"))
    os.utime(weights, ns=(0, 0))
    assert nodes.LoadModel.IS_CHANGED("small", "none", mode="exact") != loaded


# Tracks


@pytest.mark.parametrize("source", [8, 12, 23.976, 24, 25, 29.97, 30, 60])
@pytest.mark.parametrize("fps", [None, 5, 8, 12, 15, 24, 30])
def test_every_frame_of_a_track_becomes_one_of_the_result(bridge: Any, source: float, fps: float | None) -> None:
    for count in (1, 2, 3, 7, 30, 61):
        track = standing_figure(frames=count, fps=source)
        track = dataclasses.replace(track, times=track.times + 0.3)
        driving = open_driving(track, fps=fps)
        drive = bridge.Drive.of(driving, track.select(driving.rows), None)
        again = open_driving(drive.driving(), fps=drive.fps, frames=len(drive.track))
        assert again.track is not None
        assert again.track.frame_index[again.rows].tolist() == driving.rows.tolist(), count
        assert again.fps == driving.fps


def test_a_person_is_found_in_a_video(nodes: ModuleType, comfy: Comfy, detector: None) -> None:
    video(comfy.folder("input") / "a.mp4", frames=12, fps=24)
    given = settings_of(nodes.TrackVideo, video="a.mp4", frames=4, detector="mediapipe")
    drive, report = nodes.TrackVideo().track(**given, node="7")
    assert drive.track.frame_index.tolist() == [0, 2, 4, 6]
    assert drive.fps == 12
    assert (drive.track.body == standing_figure(frames=1).body).all()
    assert drive.video == comfy.folder("input") / "a.mp4"
    assert report == "4 frames, 12 per second: person found in 4 of 4 frames"
    assert [update[:2] for update in comfy.updates][-1] == (4, 4)
    assert ("7", "finding the person") in comfy.texts


@pytest.mark.parametrize(("given", "calls"), [({}, 1), ({"crowd": "all"}, 4), ({"crowd": "off"}, 0)])
def test_everybody_is_searched_for_as_asked(
    nodes: ModuleType, comfy: Comfy, detector: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    given: dict[str, str], calls: int,
) -> None:  # fmt: skip
    searched = []

    def detect_everybody(self: Standing, frame: np.ndarray) -> list[Person]:
        searched.append(frame)
        return self.detect(frame)

    monkeypatch.setattr(Standing, "detect_everybody", detect_everybody, raising=False)
    monkeypatch.setenv("XDYNA_CACHE", str(tmp_path))
    video(comfy.folder("input") / "a.mp4", frames=4, fps=12)
    nodes.TrackVideo().track(**settings_of(nodes.TrackVideo, video="a.mp4", detector="mediapipe", **given))
    assert len(searched) == calls


def test_a_person_is_found_in_images(nodes: ModuleType, comfy: Comfy, detector: None) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 96, 64, 3), np.uint8)
    images = torch.from_numpy(frames).float() / 255
    given = settings_of(nodes.TrackImages, images=images, images_fps=12.5, detector="mediapipe")
    drive, _ = nodes.TrackImages().track(**given)
    assert drive.fps == 12.5
    assert drive.track.frame_index.tolist() == [0, 1, 2, 3, 4]
    assert drive.video is not None
    assert (np.stack(list(read_frames(drive.video, range(5)))) == frames).all()  # faces lose nothing
    assert nodes.TrackImages().track(**given)[0].video == drive.video  # known by what it holds
    other, _ = nodes.TrackImages().track(**{**given, "images": images.flip(0)})
    assert other.video != drive.video


def test_an_interrupt_ends_the_search(nodes: ModuleType, comfy: Comfy, detector: None) -> None:
    video(comfy.folder("input") / "b.mp4", frames=9)
    comfy.interrupt_after = 3
    with pytest.raises(InterruptProcessingException):
        nodes.TrackVideo().track(**settings_of(nodes.TrackVideo, video="b.mp4", detector="mediapipe"))


def test_keypoints_of_another_video_are_refused(nodes: ModuleType, comfy: Comfy) -> None:
    standing_figure(frames=7).save(comfy.folder("input") / "a.npz")
    video(comfy.folder("input") / "short.mp4", frames=3)
    with pytest.raises(UsageError, match="has 3 frames"):
        nodes.LoadKeypoints().track("a.npz", "short.mp4", 0.0, 0)
    drive, report = nodes.LoadKeypoints().track("a.npz", "none", 0.0, 5)
    assert len(drive.track) == 5
    assert drive.video is None
    assert report == "5 frames, 10 per second"


def test_the_sample_is_what_xdyna_ships(nodes: ModuleType, bridge: ModuleType) -> None:
    image, track, person = nodes.Sample().sample(6)
    whole = PoseTrack.load(resource("assets", "demo", "driving.npz"))
    assert len(track.track) == 6
    assert (track.track.body == whole.body[track.track.frame_index]).all()
    assert track.video == resource("assets", "demo", "driving.mp4")
    assert image.shape[0] == 1
    assert image.shape[1:3] == person.track.size
    kept = PoseTrack.load(bridge.person_file(person))
    assert (kept.body == PoseTrack.load(resource("assets", "demo", "reference.npz")).body[:1]).all()


# Weights


def test_weights_are_found_where_comfyui_and_xdyna_keep_them(
    nodes: ModuleType, bridge: ModuleType, comfy: Comfy, small: str
) -> None:
    other = comfy.folder("models/xdyna") / "sd"
    other.mkdir()
    (other / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    broken = comfy.folder("models/xdyna") / "broken"
    broken.mkdir()
    (broken / "model_index.json").write_text("{")
    (comfy.folder("models/loras") / "mine.safetensors").write_bytes(b"")
    (comfy.folder("models/loras") / "old.pt").write_bytes(b"")
    names = list(bridge.pipeline_folders())
    assert names[0] == "small"  # ComfyUI's own first
    assert "xdyna-tiny" in names
    assert not {"sd", "broken"} & set(names)
    assert bridge.lora_names() == ["xdyna-tiny-few-step", "mine.safetensors"]
    with pytest.raises(UsageError, match="models/loras"):
        bridge.lora_path("gone.safetensors")
    with pytest.raises(UsageError, match="models/xdyna"):
        load_model(nodes, "gone")


def test_a_model_has_the_settings_of_its_widgets(nodes: ModuleType, comfy: Comfy, small: str) -> None:
    lora = comfy.folder("models/loras") / "mine.safetensors"
    lora.write_bytes(b"")
    given = {"lora": "mine.safetensors", "lora_strength": 0.5, "dtype": "bfloat16", "width": 40, "height": 64}
    model = load_model(nodes, small, mode="fast", **given)
    assert model.settings.lora == [f"{lora}:0.5"]
    assert model.lora == [(lora, 0.5)]
    assert (model.settings.height, model.settings.width) == (64, 40)
    assert model.dtype == torch.bfloat16
    assert model.settings.scheduler == "dpmsolver++"
    assert model.settings.steps == 10
    assert load_model(nodes, small, mode="fast", scheduler="euler").settings.scheduler == "euler"
    assert load_model(nodes, small, mode="few_step").lora[0][0].parent.name == "xdyna-tiny-few-step"
    assert load_model(nodes, small, mode="exact").settings == InferConfig(device="cpu")
    with pytest.raises(ValueError, match="give both"):
        load_model(nodes, small, width=64)


def test_a_gpu_is_freed_first(bridge: ModuleType, comfy: Comfy) -> None:
    bridge.make_room(torch.device("cpu"))
    assert comfy.freed == 0
    bridge.make_room(torch.device("cuda"))
    assert comfy.freed == 1
    comfy.device = torch.device("cuda", 1)
    assert bridge.device() == "cuda:1"


# Align and animate


def keypoints_alone(bridge: ModuleType, frames: int = 5) -> Any:
    return bridge.Drive(standing_figure(frames=frames), 10.0)


def test_align_says_how_well_they_fit(
    nodes: ModuleType, bridge: ModuleType, comfy: Comfy, small: str, picture: np.ndarray
) -> None:
    model, image = load_model(nodes, small), bridge.to_image(picture[None])
    drive = keypoints_alone(bridge)
    person = bridge.Drive(standing_figure(frames=3), 10.0)
    fitted, preview, report = nodes.Align().align(model, image, drive, "global", "person", False, person=person)
    assert (fitted.align, fitted.crop, fitted.face_source) == ("global", "person", None)
    assert fitted.track is drive.track
    assert preview.ndim == 4
    assert len(preview) == 1
    assert float(preview.max()) > 0
    assert "suitability: " in report
    assert "suitability: unknown" not in report
    assert "alignment: " in report
    settings = fitted.settings()
    assert (settings["fps"], settings["frames"], settings["align"]) == (10.0, 5, "global")
    assert [path.name for path in comfy.folder("temp/xdyna").iterdir()] == [fitted.person.name]  # nothing is left
    with pytest.raises(UsageError, match="puppet_face"):
        nodes.Align().align(model, image, drive, "none", "published", True, person=person)


def animated(nodes: ModuleType, model: Any, image: torch.Tensor, drive: Any, **given: Any) -> Any:
    defaults = settings_of(nodes.Animate, model=model, image=image, track=drive, steps=2, force=True)
    return nodes.Animate().animate(**{**defaults, **given}, node="3")


def test_animate_gives_the_frames_of_the_library(
    nodes: ModuleType, bridge: ModuleType, comfy: Comfy, small: str, picture: np.ndarray, tmp_path: Path
) -> None:
    drive = dataclasses.replace(keypoints_alone(bridge), align="global", person=None)
    drive = dataclasses.replace(drive, person=bridge.person_file(drive))
    with torch.inference_mode():  # as ComfyUI does
        model = load_model(nodes, small)
        images, fps, report = animated(nodes, model, bridge.to_image(picture[None]), drive, seed=7, guidance=2.0)
    assert not any(weight.is_inference() for weight in model.pipeline.unet.parameters())
    settings = InferConfig(
        steps=2, guidance=2.0, seed=7, fps=10, frames=5, align="global", save="ffv1", device="cpu", keep_audio=False
    )
    standing_figure(frames=5).save(tmp_path / "drive.npz")
    expected = xdyna.animate(
        picture, tmp_path / "drive.npz", settings=settings, model=comfy.folder("models/xdyna") / small,
        ref_keypoints=drive.person, force=True,
    )  # fmt: skip
    assert (bridge.to_arrays(images) == expected.frames.numpy()).all()
    assert images.shape == (5, 32, 32, 3)
    assert fps == 10
    assert "suitability: " in report
    assert {text for _, text in comfy.texts} >= {"denoising", "hashing weights"}
    assert {path.suffix for path in comfy.folder("temp/xdyna").iterdir()} == {".npz"}  # nothing else is left
    other = animated(nodes, model, bridge.to_image(picture[None]), drive, seed=8, guidance=2.0)[0]
    assert not torch.equal(other, images)


def test_previews_are_shown_where_comfyui_has_them_on(
    nodes: ModuleType, bridge: ModuleType, comfy: Comfy, small: str, picture: np.ndarray
) -> None:
    model, image = load_model(nodes, small), bridge.to_image(picture[None])
    plain = animated(nodes, model, image, keypoints_alone(bridge))[0]
    assert not [preview for _, _, preview in comfy.updates if preview]
    comfy.arguments.preview_method = SimpleNamespace(value="auto")
    comfy.updates.clear()
    shown = animated(nodes, model, image, keypoints_alone(bridge))[0]
    previews = [preview for _, _, preview in comfy.updates if preview]
    assert [(kind, made.size) for kind, made, _ in previews] == [("JPEG", (32, 32))] * 2  # one a step
    assert torch.equal(plain, shown)
    last = np.asarray(previews[-1][1])
    assert (last == bridge.to_arrays(shown)[2]).all()  # after the last step: the frame itself
    assert not (np.asarray(previews[0][1]) == last).all()


def test_an_interrupt_ends_an_animation(
    nodes: Any, bridge: Any, comfy: Comfy, small: str, picture: np.ndarray, monkeypatch: Any, tmp_path: Path
) -> None:  # fmt: skip
    system = tmp_path / "system"
    system.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(system))
    model, image = load_model(nodes, small), bridge.to_image(picture[None])
    comfy.interrupt_at = "denoising"
    with pytest.raises(InterruptProcessingException):
        animated(nodes, model, image, keypoints_alone(bridge), steps=9)
    done, total, _ = comfy.updates[-1]
    assert (done, total) == (0, 9)
    assert not list(system.iterdir())
    comfy.interrupt_at = comfy.interrupt_after = None
    assert len(animated(nodes, model, image, keypoints_alone(bridge))[0]) == 5  # the model is as it was


def test_watch_shows_nothing_unasked() -> None:
    assert Watch().show is None


# Workflows


def workflow(kind: str, name: str) -> Any:
    return json.loads((PACK / kind / f"{name}.json").read_text())


@pytest.mark.parametrize("name", ["sample", "animate"])
def test_workflows_fit_the_nodes(pack: ModuleType, name: str) -> None:
    graph = workflow("api", name)
    ours = 0
    for number, node in graph.items():
        kind, inputs = node["class_type"], node["inputs"]
        if kind in CORE:
            assert set(inputs) == CORE[kind], number
            types = {key: (CORE_TYPES.get(key, "*"), {}) for key in inputs}
        else:
            ours += 1
            asked = pack.NODE_CLASS_MAPPINGS[kind].INPUT_TYPES()
            types = asked["required"] | asked.get("optional", {})
            assert set(asked["required"]) <= set(inputs) <= set(types), number
        for key, value in inputs.items():
            wanted, options = types[key]
            if isinstance(value, list):
                source, output = value
                start = graph[source]["class_type"]
                gives = CORE_OUTPUTS.get(start) or pack.NODE_CLASS_MAPPINGS[start].RETURN_TYPES
                assert wanted in ("*", gives[output]), f"{number}.{key}"
            elif isinstance(wanted, list):
                assert value in wanted or key in ("video", "checkpoint"), f"{number}.{key}"  # files of the user's own
            elif wanted in ("INT", "FLOAT"):
                assert options["min"] <= value <= options["max"]
    assert ours >= 4


@pytest.mark.parametrize("name", ["sample", "animate"])
def test_both_forms_of_a_workflow_say_the_same(pack: ModuleType, name: str) -> None:
    graph, drawn = workflow("api", name), workflow("example_workflows", f"xdyna_{name}")
    links = {link[0]: link for link in drawn["links"]}
    nodes = {str(node["id"]): node for node in drawn["nodes"]}
    assert set(nodes) == set(graph)
    for number, node in nodes.items():
        assert node["type"] == graph[number]["class_type"]
        values = iter(node.get("widgets_values", ()))
        found: dict[str, Any] = {}
        for slot in node["inputs"]:
            value = next(values) if "widget" in slot else None
            if slot["name"] == "seed":
                next(values)  # what happens to it after each run
            if slot.get("link") is not None:
                _, source, output, target, _, _ = links[slot["link"]]
                assert str(target) == number
                found[slot["name"]] = [str(source), output]
            elif "widget" in slot and slot["name"] in graph[number]["inputs"]:
                found[slot["name"]] = value
        assert found == graph[number]["inputs"], number
