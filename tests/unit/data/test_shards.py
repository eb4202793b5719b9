"""Tar shards as training data: the samples of the data set that they were exported from."""

import dataclasses
import io
import itertools
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

from tests.tiers import long
from tests.unit.data.footage_sets import FIRST, build_set, record, write_set
from tests.unit.data.test_loader import assert_equal
from tests.unit.preprocess.made import Here
from xdyna.config.data import DataConfig, DataError, DataWarning
from xdyna.data.clips import build_dataset
from xdyna.data.face_files import write_faces
from xdyna.data.loader import build_loader
from xdyna.data.samples import Batch
from xdyna.data.shards import open_shards, read_shards, unpacked
from xdyna.data.sources import Faces
from xdyna.data.store import read_dataset
from xdyna.media import VideoWriter, read_frames
from xdyna.preprocess.shards import write_shards
from xdyna.puppets.world import render_clip


def options(folder: Path | str, source: str = "shards", **changes: object) -> DataConfig:
    plain: dict = {"height": 64, "width": 64, "frames": 3, "stride": [1, 2], "scene_ratio": 0.25, "face": "self"}
    return DataConfig(source=source, manifests=[str(folder)], **{**plain, **changes})


def batches(config: DataConfig, count: int, **settings: int) -> list[Batch]:
    return list(itertools.islice(build_loader(config, seed=11, **{"batch_size": 2, **settings}), count))


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sizes, both kinds, letterboxed, an odd width, other faces, two splits."""
    humans = [record(f"human{k}", width=(64, 80, 65)[k]) for k in range(3)]
    others = [record("scene0", kind="scene"), record("held", split="validation")]
    folder = build_set(tmp_path_factory.mktemp("sets") / "one", [*humans, *others])
    changed = []
    for number, entry in enumerate(read_dataset(folder).records):
        if entry.kind == "human":
            shown = render_clip(
                number, number, 7, frames=FIRST + entry.frames, size=(entry.height, entry.width), face_identity=9
            )
            entry = dataclasses.replace(entry, faces=f"faces/{entry.clip_id}.npz")
            write_faces(folder / entry.faces, Faces(shown.frames[FIRST:], shown.face[FIRST:].astype("f4")), recipe={})
        changed.append(entry)
    return write_set(folder, changed)


@pytest.fixture(scope="module")
def shards(footage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "one"  # the name is in the clips' ids
    assert write_shards(footage, out, Here(), clips_per_shard=2) == 3
    return out


@pytest.fixture
def copied(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "one"))


SAME = [
    {},
    {"face": "cross", "scene_ratio": 0, "crop_scale": [0.4, 0.9]},
    {"buckets": [[64, 64], [64, 80]], "scene_ratio": 0, "reference": "outside"},
    {"split": "validation", "scene_ratio": 0},
]


@pytest.mark.parametrize("changes", SAME, ids=["plain", "cross", "buckets", "validation"])
def test_batches_are_those_of_the_data_set(footage: Path, shards: Path, changes: dict) -> None:
    """All but the pixels is equal; those were encoded once more."""
    pairs = zip(batches(options(footage, "footage", **changes), 6), batches(options(shards, **changes), 6), strict=True)
    worst = 99.0
    for one, other in pairs:
        error = (one.pixels.float() - other.pixels.float()).square().mean()
        worst = min(worst, float(10 * torch.log10(255**2 / error.clamp_min(1e-9))))
        same = {"pixels": one.pixels}
        if changes.get("face") != "cross":  # patches of the frames' own faces are of these pixels
            assert ((one.face.float() - other.face.float()).abs().mean()) < 6
            same["face"] = one.face
        assert_equal(one, dataclasses.replace(other, **same))
    assert 32 < worst < 99  # dB


def test_pixels_are_those_of_the_videos_in_the_shards(footage: Path, shards: Path) -> None:
    """The very rows and crops that the data set's source draws, out of the videos in the shards, decoded here."""
    videos = {}
    for entry in read_shards(shards):
        with unpacked(entry.video) as path:
            videos[f"one/{entry.record.clip_id}"] = np.stack(list(read_frames(path)))[:, :, : entry.record.width]
    assert {len(frames) for frames in videos.values()} == {10}
    dataset = build_dataset(options(footage, "footage"), seed=11)
    for batch in batches(options(shards), 4):
        for pixels, index in zip(batch.pixels, batch.index.tolist(), strict=True):
            take = dataset.take(index)
            crop = take.video.crop  # type: ignore[attr-defined]
            frames = videos[take.video.clip_id][[take.reference, *take.rows]]
            expected = np.stack([crop.image(frame) for frame in frames])
            np.testing.assert_array_equal(pixels.permute(0, 2, 3, 1).numpy(), expected)


@pytest.mark.parametrize("method", ["fork", "forkserver", *long("spawn")])
def test_workers_and_resuming_change_nothing(shards: Path, method: str) -> None:
    whole = batches(options(shards), 5)
    loader = build_loader(options(shards, workers=2), seed=11, batch_size=2, start=4, start_method=method)
    for one, other in zip(whole[2:], itertools.islice(loader, 3), strict=True):
        assert_equal(one, other)


@pytest.fixture
def remote(shards: Path) -> Iterator[str]:
    system = fsspec.filesystem("memory")
    system.put(f"{shards}/", "/bucket/one/", recursive=True)
    yield "memory://bucket/one"
    system.rm("/bucket", recursive=True)


def test_remote_shards_are_read(shards: Path, remote: str) -> None:
    for one, other in zip(batches(options(shards), 3), batches(options(remote), 3), strict=True):
        assert_equal(one, other)


def rewrite(path: Path, change: Callable[[str, bytes], bytes | None]) -> None:
    """Change the files of a shard; None leaves one out."""
    with tarfile.open(path) as tar:
        files = [(entry.name, tar.extractfile(entry).read()) for entry in tar]  # type: ignore[union-attr]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files:
            new = change(name, data)
            if new is not None:
                entry = tarfile.TarInfo(name)
                entry.size = len(new)
                tar.addfile(entry, io.BytesIO(new))


def test_shards_of_earlier_versions_are_read(shards: Path, copied: Path) -> None:
    """Without checksums, and with a column of records that is gone."""

    def older(name: str, data: bytes) -> bytes | None:
        if name.endswith("sums.json"):
            return None
        return json.dumps({**json.loads(data), "latents": ""}).encode() if name.endswith(".json") else data

    for path in copied.glob("*.tar"):
        rewrite(path, older)
    assert open_shards(str(copied)).records == open_shards(str(shards)).records
    for one, other in zip(batches(options(shards), 2), batches(options(copied), 2), strict=True):
        assert_equal(one, other)


def truncate(out: Path) -> None:
    path = out / "train-000000.tar"
    path.write_bytes(path.read_bytes()[:20000])


def one_clip_less(out: Path) -> None:
    rewrite(out / "train-000000.tar", lambda name, data: None if name.startswith("000000001") else data)


def without(suffix: str) -> Callable[[Path], None]:
    return lambda out: rewrite(out / "train-000001.tar", lambda name, data: None if name.endswith(suffix) else data)


def index_of(value: object) -> Callable[[Path], None]:
    return lambda out: (out / "index.json").write_text(json.dumps(value)) and None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda out: (out / "index.json").unlink(), r"holds no shards: index.json is missing.*--shards FOLDER"),
        (index_of([]), "holds no shards"),
        (index_of({"format": "xdyna-shards-1", "shards": {"../x.tar": 1}}), "its name is no file name"),
        (index_of({"format": "xdyna-shards-9", "shards": {}}), "have format 'xdyna-shards-9', this program reads"),
        (lambda out: (out / "train-000001.tar").unlink(), r"train-000001.tar' is missing or damaged"),
        (truncate, r"train-000000.tar' is missing or damaged"),
        (one_clip_less, r"train-000000.tar' holds 1 clips, index.json says 2"),
        (without(".mp4"), r"train-000001.tar' is missing or damaged \(.mp4 of clip 'human2' is missing\)"),
    ],
)
def test_damaged_shards_are_refused(copied: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(copied)
    with pytest.raises(DataError, match=message):
        build_dataset(options(copied), seed=0)


@pytest.mark.parametrize("suffix", [".mp4", ".npz"])
def test_a_clip_with_other_bytes_is_replaced_and_named(copied: Path, suffix: str) -> None:
    def change(name: str, data: bytes) -> bytes:
        return data[:-40] + bytes(40) if name == f"000000000{suffix}" else data

    rewrite(copied / "train-000000.tar", change)
    dataset = build_dataset(options(copied, scene_ratio=0), seed=0)
    with pytest.warns(DataWarning, match=rf"clip 'one/human0' is replaced.*its {suffix} in shard .* other bytes"):
        shown = {dataset[index].clip_id for index in range(6)}
    assert shown == {"one/human1", "one/human2"}


def test_a_shard_that_goes_while_training_is_named(copied: Path) -> None:
    dataset = build_dataset(options(copied, scene_ratio=0), seed=0)
    for path in copied.glob("*.tar"):
        path.unlink()
    with (
        pytest.warns(DataWarning, match="is replaced by others"),
        pytest.raises(DataError, match=r"none of 100 clips in a row can be read \(shard .*cannot be read"),
    ):
        dataset[0]


def test_unpacked_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """Videos are remembered by path, size and time of change, and the paths come again."""
    for level in (40, 200):
        path = tmp_path / f"{level}.mp4"
        with VideoWriter(path, fps=8, size=(64, 64)) as writer:
            writer.write(np.full((64, 64, 3), level, np.uint8))
        with unpacked(path.read_bytes().ljust(4000, b"\0")) as file:
            assert abs(float(next(read_frames(file)).mean()) - level) < 4
        assert not file.exists()
