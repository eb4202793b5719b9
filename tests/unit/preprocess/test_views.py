"""What people see of a data set: report, card, drawn clips; and its export as shards."""

import dataclasses
import hashlib
import io
import json
import re
import tarfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from tests.unit.preprocess.made import Here, arrays_of, record_of, write_image
from xdyna.config.data import DataError
from xdyna.core.files import file_sha256
from xdyna.data.records import DATASET_FILE, FORMAT, MANIFEST, ClipRecord, Skip
from xdyna.data.shards import read_shards
from xdyna.data.store import write_arrays, write_manifest
from xdyna.media import VideoWriter, probe, read_frames, read_image
from xdyna.preprocess.engines import failure
from xdyna.preprocess.inspect import inspect_clip
from xdyna.preprocess.report import Summary, duration, histogram, write_card, write_report
from xdyna.preprocess.shards import write_shards


def summary_of(folder: Path, *, skips: int = 3) -> Summary:
    records = [
        record_of(f"film{k}-0000", kind="scene" if k % 3 == 0 else "human", fps=25.0 if k else 60.0, license="CC0" * k)
        for k in range(4)
    ]
    thumbnails = {}
    for record in records:
        thumbnails[record.clip_id] = f"thumbnails/{record.clip_id}.jpg"
        write_image(folder / thumbnails[record.clip_id], seed=1)
    found = [Skip("bad<script>", "bad.mp4", "quality", "static", f"Flow {k} | none.", k, 2) for k in range(skips)]
    found.append(dataclasses.replace(found[0], reason="no_person", thumbnail=thumbnails["film1-0000"]))
    return Summary(9, 3700.0, records, found, thumbnails, {"finish": {"test": 0.5}}, {"numpy": "1"})


class Tags(HTMLParser):
    """Collects images and text, and sees that tags are closed in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[str] = []
        self.text = ""
        self.rows = 0
        self._open: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        if tag == "img":
            self.images.append(dict(attrs)["src"])
        self.rows += tag == "tr"
        if tag not in ("img", "meta"):
            self._open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data) -> None:
        self.text += data


def test_the_report_is_one_page_with_everything_in_it(tmp_path) -> None:
    write_report(tmp_path, summary_of(tmp_path))
    page = (tmp_path / "report.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert tags._open == []
    assert len(tags.images) == 5
    assert all(source.startswith("data:image/jpeg;base64,") for source in tags.images)
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    for text in ("9", "1.0 h", "nothing moves", "nobody was found", "bad<script>", "Flow 2 | none.", "film3-0000"):
        assert text in tags.text
    assert tags.rows == 5


def test_a_long_report_stays_small(tmp_path) -> None:
    write_report(tmp_path, summary_of(tmp_path, skips=5000))
    page = (tmp_path / "report.html").read_text()
    assert "3001 more are in skipped.parquet" in page
    assert len(page) < 1_000_000


def test_the_card_counts(tmp_path) -> None:
    write_card(tmp_path, summary_of(tmp_path))
    card = (tmp_path / "README.md").read_text()
    for line in (
        "# Data set of 4 clips",
        "| train | 2 | 2 | 4 | 4 | 0.7 s |",
        "| static | nothing moves | 3 |",
        "| not given | 1 |",
        "| 24.5 to 27 | 3 |",
        "| below 256 | 4 |",
        "| person, share of the image's height | 0.5 | 0.5 | 0.5 |",
        "| motion, image heights per second | 0.1 | 0.1 | 0.1 |",
        "| finish.test | `0.5` |",
        "| numpy | 1 |",
    ):
        assert line in card.splitlines(), line


def test_durations_and_histograms() -> None:
    assert [duration(s) for s in (3.21, 90, 7200)] == ["3.2 s", "1.5 min", "2.0 h"]
    assert histogram([5, 10, 19, 25], [10, 20, 30, 40]) == [("below 10", 1), ("10 to 20", 2), ("20 to 30", 1)]
    assert histogram([50], [10, 20]) == [("20 and more", 1)]


SIZE = (96, 128)


def shown(number: int) -> np.ndarray:
    """A frame in which the clip's crop has one colour, that says the number, and the border another."""
    frame = np.full((*SIZE, 3), 255, np.uint8)
    frame[16:80, 32:112] = number * 20
    return frame


@pytest.fixture
def dataset(tmp_path) -> Path:
    """Three clips of one video of 12 frames: a person in two splits, and a scene."""
    video, folder = tmp_path / "film.mp4", tmp_path / "set"
    with VideoWriter(video, fps=25, size=SIZE) as writer:
        for number in range(12):
            writer.write(shown(number))
    clips = []
    for number, (kind, split) in enumerate((("human", "train"), ("scene", "train"), ("human", "test"))):
        clip = record_of(
            f"film-{number:04d}", kind=kind, split=split, start=number, path=str(video), sha256=file_sha256(video),
            crop_left=32, crop_top=16, width=80, height=64,
        )  # fmt: skip
        arrays = arrays_of(start=number, seed=number, mask=(51, 64))
        face = np.full((5, 68, 3), 1, np.float32)
        face[..., :2] = np.random.default_rng(0).uniform(20, 40, (5, 68, 2))
        mask = np.zeros_like(arrays.mask)
        mask[:, :, :32] = True
        write_arrays(folder / clip.arrays, dataclasses.replace(arrays, face=face, mask=mask))
        clips.append(clip)
    faces = "faces/aa/film-0000.npz"
    (folder / faces).parent.mkdir(parents=True)
    (folder / faces).write_bytes(b"faces")
    clips[0] = dataclasses.replace(clips[0], faces=faces)
    write_manifest(folder / MANIFEST, clips)
    (folder / DATASET_FILE).write_text(json.dumps({"format": FORMAT, "options": {}}))
    return folder


def test_a_drawn_clip_shows_its_frames(dataset, tmp_path) -> None:
    video = inspect_clip(dataset, "film-0002", tmp_path / "x.mp4")
    info = probe(video)
    assert info.frame_count == 5
    frames = list(read_frames(video))
    width = frames[0].shape[1] // 4
    for number, frame in enumerate(frames):
        first, mask = frame[-60:-20, 20:40], frame[-100:-20]
        assert first.mean() == pytest.approx((number + 2) * 20, abs=4)
        inside, outside = mask[:, -width + 20 : -width // 2 - 20], mask[:, -width // 2 + 20 : -20]
        assert inside[..., 1].mean() == pytest.approx((number + 2) * 12 + 164 * 0.4, abs=6)
        assert outside.mean() == pytest.approx((number + 2) * 20 // 3, abs=4)


def test_sheets_and_scenes(dataset, tmp_path) -> None:
    sheet = read_image(inspect_clip(dataset, "film-0000", tmp_path / "x.png"))
    assert sheet.shape[0] > 4 * 192
    assert probe(inspect_clip(dataset, "film-0001", tmp_path / "scene.mp4")).width < 500
    with pytest.raises(DataError, match=r"expected a name that ends in \.mp4 or \.png"):
        inspect_clip(dataset, "film-0000", tmp_path / "x.gif")
    with pytest.raises(ValueError, match="exists already"):
        inspect_clip(dataset, "film-0000", tmp_path / "x.png")


def test_another_video_under_the_same_name_is_told(dataset, tmp_path) -> None:
    with VideoWriter(tmp_path / "film.mp4", fps=25, size=(64, 64), overwrite=True) as writer:
        for _ in range(12):
            writer.write(np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(DataError, match="frames of 64 x 64 px, clip 'film-0000' needs 112 x 80"):
        inspect_clip(dataset, "film-0000", tmp_path / "x.mp4")


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_shards_hold_the_data_set(dataset, tmp_path) -> None:
    out = tmp_path / "shards"
    counts: list[int] = []
    assert write_shards(dataset, out, Here(), clips_per_shard=1, progress=counts.append) == 3
    assert counts == [1, 1, 1]
    assert sorted(digests(out)) == ["index.json", "test-000000.tar", "train-000000.tar", "train-000001.tar"]
    samples = list(read_shards(out))
    assert [sample.record.clip_id for sample in samples] == ["film-0000", "film-0001", "film-0002"]
    assert [sample.faces for sample in samples] == [b"faces", None, None]
    assert [sample.record.clip_id for sample in read_shards(out, "test")] == ["film-0002"]
    for number, sample in enumerate(samples):
        assert isinstance(sample.record, ClipRecord)
        assert np.array_equal(sample.arrays.body, arrays_of(start=number, seed=number).body)
        (tmp_path / "clip.mp4").write_bytes(sample.video)
        frames = list(read_frames(tmp_path / "clip.mp4"))
        assert [frame.shape for frame in frames] == [(64, 80, 3)] * 5
        assert [round(frame.mean() / 20) for frame in frames] == list(range(number, number + 5))


def test_shards_are_tar_files_of_fixed_bytes(dataset, tmp_path) -> None:
    write_shards(dataset, tmp_path / "a", Here(), clips_per_shard=2)
    write_shards(dataset, tmp_path / "b", Here(), clips_per_shard=2)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    with tarfile.open(tmp_path / "a" / "train-000000.tar") as tar:
        entries = tar.getmembers()
    assert [entry.name for entry in entries] == [
        "000000000.json", "000000000.npz", "000000000.mp4", "000000000.faces.npz", "000000000.sums.json",
        "000000001.json", "000000001.npz", "000000001.mp4", "000000001.sums.json",
    ]  # fmt: skip
    assert {(entry.mtime, entry.uid, entry.gid, entry.uname, entry.mode) for entry in entries} == {(0, 0, 0, "", 0o644)}


def test_an_interrupted_export_goes_on(dataset, tmp_path) -> None:
    write_shards(dataset, tmp_path / "a", Here(), clips_per_shard=1)
    whole = digests(tmp_path / "a")
    (tmp_path / "a" / "train-000001.tar").unlink()
    kept = (tmp_path / "a" / "train-000000.tar").stat().st_mtime_ns
    write_shards(dataset, tmp_path / "a", Here(), clips_per_shard=1)
    assert digests(tmp_path / "a") == whole
    assert (tmp_path / "a" / "train-000000.tar").stat().st_mtime_ns == kept
    with pytest.raises(DataError, match="holds shards of another data set or of another size"):
        write_shards(dataset, tmp_path / "a", Here(), clips_per_shard=2)


def test_exports_that_cannot_be(dataset, tmp_path) -> None:
    with pytest.raises(DataError, match="clips per shard: got 0"):
        write_shards(dataset, tmp_path / "a", Here(), clips_per_shard=0)
    with pytest.raises(DataError, match="is no finished data set"):
        write_shards(tmp_path / "nowhere", tmp_path / "a", Here())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(DataError, match="holds other files"):
        write_shards(dataset, tmp_path / "full", Here())

    class Broken:
        def run(self, tasks, work):
            yield 1, failure(ValueError("no video"))

    with pytest.raises(DataError, match=r"shard 'test-000000.tar' cannot be written: no video"):
        write_shards(dataset, tmp_path / "b", Broken())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda out: (out / "index.json").unlink(), "holds no shards"),
        (lambda out: (out / "index.json").write_text('{"format": "x", "shards": {}}'), "have format 'x'"),
        (lambda out: (out / "train-000000.tar").unlink(), "train-000000.tar' is missing or damaged"),
        (lambda out: (out / "train-000000.tar").write_bytes(b"x" * 2000), "train-000000.tar' is missing or damaged"),
        (lambda out: (out / "train-000000.tar").write_bytes(_without_json()), "is missing or damaged"),
    ],
)
def test_damaged_shards_are_named(dataset, tmp_path, damage, message) -> None:
    write_shards(dataset, tmp_path / "a", Here())
    damage(tmp_path / "a")
    with pytest.raises(DataError, match=message):
        list(read_shards(tmp_path / "a"))


def _without_json() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("000000000.npz"), io.BytesIO())
    return buffer.getvalue()
