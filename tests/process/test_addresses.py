"""Inputs of animate.py that are no plain files: folders of frames, and addresses."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.unit.core.file_server import Files, serving
from xdyna.core.errors import UsageError
from xdyna.core.files import file_sha256, path_sha256
from xdyna.media.folder import FrameFolderWriter
from xdyna.media.video import read_frames
from xdyna.pipelines.animate import animate, make
from xdyna.pipelines.driving import open_driving
from xdyna.pipelines.fetching import fetched
from xdyna.pipelines.plan import Request


def manifest(folder: Path, name: str = "a") -> dict[str, Any]:
    return json.loads((folder / f"{name}.run.json").read_text())


@pytest.fixture
def frames(media: Path, tmp_path: Path) -> Path:
    """The frames of poses.mp4, as images with unpadded numbers."""
    with FrameFolderWriter(tmp_path / "written", size=(96, 64)) as writer:
        for frame in read_frames(media / "poses.mp4"):
            writer.write(frame)
    folder = tmp_path / "poses"
    folder.mkdir()
    for number, file in enumerate(sorted((tmp_path / "written").iterdir())):
        file.rename(folder / f"frame{number + 7}.png")  # 7 to 13: as text, 10 would come first
    return folder


def test_a_folder_of_frames_drives_as_its_video_does(infer, media, frames, tmp_path, capsys):
    assert infer("--drive", frames, "--drive-kind", "pose", "--fps", 10, "--save", "frames", "--out", "a") == 0
    said = capsys.readouterr().out
    assert f"note: {frames} is a folder of frames, which says no rate: 10 frames per second are taken (--fps)" in said
    entry = manifest(tmp_path)["inputs"]["driving"]
    assert entry == {"path": str(frames), "sha256": path_sha256(frames), "kind": "pose"}
    with FrameFolderWriter(tmp_path / "again", size=(96, 64)) as writer:
        for frame in read_frames(media / "poses.mp4"):
            writer.write(frame)
    assert (
        infer("--drive", tmp_path / "again", "--drive-kind", "pose", "--fps", 10, "--save", "frames", "--out", "b") == 0
    )
    first, second = (np.stack(list(read_frames(tmp_path / name))) for name in "ab")
    assert np.array_equal(first, second), "the order is that of the numbers, whatever their padding"


def test_the_rate_of_a_folder(frames):
    driving = open_driving(frames, kind="pose")
    assert (driving.source_fps, driving.fps, len(driving.rows)) == (15, 15, 7), "15 where nothing is said"
    driving = open_driving(frames, kind="pose", fps=24)
    assert (driving.source_fps, driving.fps, driving.rows.tolist()) == (24, 24, list(range(7)))
    assert driving.duration == pytest.approx(7 / 24)
    driving = open_driving(frames, kind="pose", stride=2)
    assert (driving.fps, driving.rows.tolist()) == (7.5, [0, 2, 4, 6])
    assert open_driving(frames, kind="pose", face_video=frames).face_video == frames


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("sizes", "differ in size: 'frame7.png' is 64 x 96 px, 'frame9.png' 32 x 40; a video's frames have one size"),
        ("no image", "frame9.png' is not an image"),
        ("cut off", "frame9.png' is damaged or truncated"),
        ("empty", "holds no frames: it is empty; expected images"),
        ("others", "holds no frames: what it holds is 'frame10.png.txt' and the like"),
    ],
)
def test_folders_that_are_no_video(infer, frames, capsys, change, words):
    if change == "sizes":
        Image.new("RGB", (32, 40)).save(frames / "frame9.png")
    elif change == "no image":
        (frames / "frame9.png").write_text("hello")
    elif change == "cut off":
        (frames / "frame9.png").write_bytes((frames / "frame9.png").read_bytes()[:150])
    else:
        for file in list(frames.iterdir()):
            file.unlink() if change == "empty" else file.rename(f"{file}.txt")
    assert infer("--drive", frames, "--drive-kind", "pose", "--out", "a.mp4") == 1
    said = capsys.readouterr()
    assert words in said.err
    assert len(said.err.strip().splitlines()) == 1, said.err
    assert not Path("a.mp4").exists()


def test_a_reference_is_one_image(infer, frames, capsys):
    assert infer("--ref", frames, "--out", "a.mp4") == 1
    assert "is a folder; give one image file" in capsys.readouterr().err


@pytest.fixture
def server(media: Path) -> Iterator[Files]:
    with serving({f"/{file.name}": file.read_bytes() for file in media.iterdir()}) as files:
        yield files


def test_addresses_give_what_files_give(infer, media, server, tmp_path):
    given = ("--ref", f"{server.url}/ref.png?key=1", "--drive", f"{server.url}/driving.npz")
    assert infer(*given, "--save", "ffv1", "--out", "a.mkv") == 0
    assert infer("--save", "ffv1", "--out", "b.mkv") == 0
    assert file_sha256(tmp_path / "a.mkv") == file_sha256(tmp_path / "b.mkv")
    inputs = manifest(tmp_path)["inputs"]
    assert inputs["reference"] == {"url": f"{server.url}/ref.png?key=1", "sha256": file_sha256(media / "ref.png")}
    assert inputs["driving"] == {
        "url": f"{server.url}/driving.npz", "sha256": file_sha256(media / "driving.npz"), "kind": "keypoints",
    }  # fmt: skip
    assert infer(*given) == 0
    assert (tmp_path / "outputs" / "ref_driving.mp4").exists(), "named by the addresses"


def test_a_batch_of_addresses_is_made_once(infer, server, tmp_path, capsys):
    pairs = [{"ref": f"{server.url}/ref.png", "drive": f"{server.url}/driving.npz", "out": f"{k}.mp4"} for k in "ab"]
    pairs.append({"ref": f"{server.url}/nothing.png", "drive": f"{server.url}/driving.npz"})
    Path("pairs.json").write_text(json.dumps(pairs))
    assert infer("--batch", "pairs.json") == 1
    said = capsys.readouterr()
    assert "2 of 3 animations made" in said.out
    assert "/nothing.png: the server answers 404" in said.err
    assert infer("--batch", "pairs.json") == 1
    assert capsys.readouterr().out.count("is there already, made of the same files") == 2


@pytest.mark.parametrize(
    ("option", "path", "words"),
    [
        ("--drive", "ref.png", "expected an MP4, MOV, MKV, WebM, AVI or GIF video, or keypoints (.npz)"),
        ("--ref", "poses.mp4", "expected a PNG, JPEG"),
        ("--ref", "half.png", "gave cannot be used"),
        ("--drive", "short/poses.mp4", "was cut off after"),
        ("--drive", "bottomless/poses.mp4", "at most 0.5 MB are taken (url_max_mb)"),
    ],
)
def test_what_an_address_must_not_give(infer, server, tmp_path, monkeypatch, capsys, option, path, words):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "temporary").mkdir()
    server.files["/half.png"] = b"\x89PNG\r\n\x1a\n" + b"x" * 5000
    assert infer(option, f"{server.url}/{path}", "--url-max-mb", 0.5, "--out", "a.mp4") == 1
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert list((tmp_path / "temporary").iterdir()) == []
    assert not list(tmp_path.glob("a.*"))


def test_from_python(checkpoint, media, server, tmp_path):
    from xdyna.config.infer import InferConfig

    made = animate(
        f"{server.url}/ref.png", f"{server.url}/poses.mp4", out=tmp_path / "a.mp4", kind="pose", model=checkpoint,
        settings=InferConfig(steps=1, frames=2),
    )  # fmt: skip
    assert made.manifest["inputs"]["driving"]["url"] == f"{server.url}/poses.mp4"


def test_make_fetches_nothing(checkpoint, media, server, tmp_path):
    """What serves others calls `make`: an address that gets there is refused, and nobody is asked."""
    from xdyna.config.infer import InferConfig
    from xdyna.pipelines.model import load

    settings = InferConfig(steps=1, frames=2)
    model = load(checkpoint, settings)
    for reference, driving in (
        (f"{server.url}/ref.png", media / "driving.npz"),
        (media / "ref.png", f"{server.url}/driving.npz"),
    ):
        with pytest.raises(UsageError, match="addresses are for `xdyna animate` alone"):
            make(Request(reference, driving, out=tmp_path / "a.mp4"), model, settings=settings)
    assert server.requests == []


def test_dry_run_names_the_address(infer, server, capsys):
    assert infer("--drive", f"{server.url}/poses.mp4", "--drive-kind", "pose", "--dry-run") == 0
    assert f"driving    {server.url}/poses.mp4 (pose)" in capsys.readouterr().out


def test_files_are_gone_after_the_block(server):
    from xdyna.config.infer import InferConfig
    from xdyna.core.progress import Watch

    request = Request(f"{server.url}/ref.png", f"{server.url}/driving.npz")
    with fetched(request, InferConfig(), Watch()) as local:
        paths = list(local.named().values())
        assert all(path.is_file() for path in paths)
    assert not any(path.exists() or path.parent.exists() for path in paths)
