"""Videos without loss: what is read is what was written."""

from pathlib import Path

import numpy as np
import pytest

from xdyna.core.errors import FileError, UsageError
from xdyna.evaluation.inputs import read_video
from xdyna.media.folder import FrameFolderWriter
from xdyna.media.video import probe
from xdyna.media.writer import VideoWriter
from xdyna.pipelines.outputs import OutputFiles, output_names

NOISE = np.random.default_rng(0).integers(0, 256, (5, 47, 65, 3), dtype=np.uint8)  # odd sides, every colour


@pytest.mark.parametrize(("save", "ending"), [("ffv1", ".mkv"), ("frames", "")])
def test_frames_come_back_as_they_were_written(tmp_path: Path, save: str, ending: str) -> None:
    path = tmp_path / f"a.b{ending}"
    if save == "ffv1":
        writer: VideoWriter | FrameFolderWriter = VideoWriter(path, fps=12.5, size=(47, 65), lossless=True)
    else:
        writer = FrameFolderWriter(path, size=(47, 65))
    with writer:
        for frame in NOISE:
            writer.write(frame)
    assert np.array_equal(read_video(path).frames, NOISE)
    if save == "ffv1":
        assert probe(path).fps == pytest.approx(12.5, rel=1e-3)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # nothing temporary stays


def test_a_folder_of_frames_replaces_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    for first in (0, 2):  # the second is shorter: no frame of the first stays
        with FrameFolderWriter(folder, size=(47, 65), overwrite=True) as writer:
            for frame in NOISE[first:]:
                writer.write(frame)
    assert np.array_equal(read_video(folder).frames, NOISE[2:])
    (folder / "notes.txt").write_text("mine")
    for overwrite, message in ((False, "something else"), (True, "something else")):
        with pytest.raises(FileError, match=message), FrameFolderWriter(folder, size=(47, 65), overwrite=overwrite):
            pass
    assert (folder / "notes.txt").read_text() == "mine"
    with pytest.raises(FileError, match="expected uint8"), FrameFolderWriter(tmp_path / "x", size=(47, 65)) as writer:
        [writer.write(frame) for frame in (NOISE[0], NOISE[0, 1:])]
    assert [p.name for p in tmp_path.iterdir()] == ["clip"]


def test_names_follow_the_way_of_saving() -> None:
    names = {"reference": Path("me.png"), "driving": Path("dance.mp4"), "folder": Path("none")}
    for save, first, out in (
        ("mp4", "me_dance.mp4", "x.mp4"),
        ("ffv1", "me_dance.mkv", "x.mkv"),
        ("frames", "me_dance", "x"),
    ):
        assert next(output_names(None, **names, save=save)).video == Path("none") / first
        files = next(output_names(Path("none/x"), **names, save=save))
        assert (files.video.name, files.grid.name) == (out, "x.grid.mp4")
    assert OutputFiles(Path("a.b"), "frames").sheet.name == "a.b.sheet.png"
    with pytest.raises(UsageError, match="save=ffv1"):
        next(output_names(Path("x.mp4"), **names, save="ffv1"))
