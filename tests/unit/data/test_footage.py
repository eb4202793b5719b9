"""Real videos as training data: what is read, how it is mixed, and what happens to damaged clips."""

import dataclasses
import itertools
import math
import os
import pickle
import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.data.footage_sets import BORDER, FIRST, build_set, record, write_set
from tests.unit.data.test_loader import assert_equal
from xdyna.config.data import DataConfig, DataError, DataWarning
from xdyna.config.train import TrainConfig
from xdyna.core.files import file_sha256
from xdyna.data import verify
from xdyna.data.clips import ClipDataset, build_dataset
from xdyna.data.face_files import write_faces
from xdyna.data.footage_video import FootageVideo
from xdyna.data.loader import build_loader
from xdyna.data.samples import Batch
from xdyna.data.sources import Faces
from xdyna.data.store import read_arrays, read_dataset, write_arrays
from xdyna.media import CropResize, read_frames
from xdyna.perception import PoseTrack, draw_pose, face_patches
from xdyna.puppets.world import render_clip
from xdyna.training import trainer

Options = Callable[..., DataConfig]


def options(*folders: Path | dict, **changes: object) -> DataConfig:
    manifests = [str(entry) if isinstance(entry, Path) else entry for entry in folders]
    plain: dict = {"height": 64, "width": 64, "frames": 3, "stride": [1, 2], "scene_ratio": 0.25}
    return DataConfig(source="footage", manifests=manifests, **{**plain, **changes})


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    humans = [record(f"human{k}", width=80 if k == 1 else 64) for k in range(3)]
    others = [record("scene0", kind="scene"), record("held", split="validation")]
    return build_set(tmp_path_factory.mktemp("sets") / "one", [*humans, *others])


@pytest.fixture
def copied(master: Path, tmp_path: Path) -> Path:
    """A copy with videos of its own, that may be damaged."""
    folder = Path(shutil.copytree(master, tmp_path / "one"))
    own = [
        dataclasses.replace(entry, path=str(folder / "videos" / f"{entry.clip_id}.mp4"))
        for entry in read_dataset(folder).records
    ]
    return write_set(folder, own)


def images(tensor: torch.Tensor) -> np.ndarray:
    return tensor.permute(0, 2, 3, 1).numpy()


def batches(config: DataConfig, count: int, **settings: int) -> list[Batch]:
    return list(itertools.islice(build_loader(config, seed=11, **{"batch_size": 2, **settings}), count))


def video_of(dataset: ClipDataset, index: int) -> FootageVideo:
    video = dataset.take(index).video
    assert isinstance(video, FootageVideo)
    return video


# What is read


def test_frames_poses_and_faces_are_those_of_inference(master: Path) -> None:
    """The same frames read, cropped and drawn here, by what inference calls; the numbers straight from the file."""
    dataset = build_dataset(options(master, face="self", scene_ratio=0, crop_scale=[0.4, 0.9]), seed=3)
    crops = set()
    for index in range(6):
        sample, take, video = dataset[index], dataset.take(index), video_of(dataset, index)
        left, top, width, height = video.crop.box
        crops.add(video.crop.box)
        crop = CropResize(box=(left, top + BORDER, width, height), size=(64, 64))
        decoded = list(read_frames(video.record.path))
        expected = [crop.image(decoded[FIRST + row]) for row in (take.reference, *take.rows)]
        np.testing.assert_array_equal(images(sample.pixels), np.stack(expected))
        numbers = read_arrays(master / video.record.arrays)
        track = PoseTrack(
            numbers.body, numbers.hands, numbers.face, (64, video.record.width), numbers.times, numbers.frame_index
        )
        moved = track.transform(video.crop).select(take.rows)
        drawn = [draw_pose(body, hands, size=(64, 64)) for body, hands in zip(moved.body, moved.hands, strict=True)]
        np.testing.assert_array_equal(images(sample.pose), np.stack(drawn))
        local, whole = face_patches(np.stack(expected[1:]), moved.face)
        np.testing.assert_array_equal(images(sample.face), np.concatenate([local, whole], axis=-1))
        assert sample.caption == f"text of {video.record.clip_id}"
    assert len(crops) == 6


def test_other_faces_are_cropped_as_the_frames(copied: Path) -> None:
    """Somebody else's face, rendered here, stored, read back: the patches of the frames that were rendered."""
    changed, shown = [], {}
    for number, entry in enumerate(read_dataset(copied).records):
        if entry.kind == "human" and entry.clip_id != "human0":
            size, count = (entry.height, entry.width), FIRST + entry.frames
            other = render_clip(number, number, 77, frames=count, size=size, face_identity=9)
            faces = Faces(other.frames[FIRST:], other.face[FIRST:].astype(np.float32))
            name = f"faces/{entry.clip_id}.npz"
            write_faces(copied / name, faces, recipe={})
            shown[entry.clip_id] = faces
            entry = dataclasses.replace(entry, faces=name)
        changed.append(entry)
    write_set(copied, changed)
    with pytest.warns(DataWarning, match="1 of 3 human clips have no other faces; they are left out"):
        dataset = build_dataset(options(copied, face="cross", scene_ratio=0, crop_scale=[1, 1]), seed=0)
    seen = set()
    for index in range(6):
        sample, take, video = dataset[index], dataset.take(index), video_of(dataset, index)
        faces = shown[video.record.clip_id]
        landmarks = faces.landmarks[take.rows].copy()
        landmarks[..., :2] = video.crop.points(landmarks[..., :2])
        frames = np.stack([video.crop.image(frame) for frame in faces.frames[take.rows]])
        local, whole = face_patches(frames, landmarks)
        np.testing.assert_array_equal(images(sample.face), np.concatenate([local, whole], axis=-1))
        assert sample.face.any()
        seen.add(video.record.clip_id)
    assert seen == {"human1", "human2"}


def test_a_face_that_is_never_seen_gives_black_patches(copied: Path) -> None:
    for name in ("human0", "human1", "human2"):
        numbers = read_arrays(copied / "clips" / f"{name}.npz")
        write_arrays(copied / "clips" / f"{name}.npz", dataclasses.replace(numbers, face=numbers.face * 0))
    sample = build_dataset(options(copied, face="self", scene_ratio=0), seed=0)[0]
    assert sample.pose.any()
    assert sample.face is None


def test_the_crop_keeps_the_person(master: Path) -> None:
    dataset = build_dataset(options(master, scene_ratio=0, crop_scale=[0.5, 1]), seed=0)
    wide = [video_of(dataset, k) for k in range(60) if video_of(dataset, k).record.clip_id == "human1"]
    assert len({video.crop.box[0] for video in wide}) > 4
    for video in wide:
        left, top, width, height = video.crop.box
        assert 0 <= left <= 80 - width
        assert 0 <= top <= 64 - height
        boxes = video.arrays.boxes
        low, high = boxes[:, 0].min(), boxes[:, 2].max()
        if high - low <= width:
            assert left <= low
            assert left + width >= high
        else:
            assert abs(left + width / 2 - (low + high) / 2) <= 1 or left in (0, 80 - width)


def test_the_crop_leaves_room_above_the_head(copied: Path) -> None:
    """Boxes of joints begin at the eyes: the hair above them stays in the image."""
    for name in ("human0", "human1", "human2"):
        numbers = read_arrays(copied / "clips" / f"{name}.npz")
        boxes = np.tile(np.float32([20, 24, 40, 60]), (len(numbers.boxes), 1))
        write_arrays(copied / "clips" / f"{name}.npz", dataclasses.replace(numbers, boxes=boxes))
    dataset = build_dataset(options(copied, scene_ratio=0, crop_scale=[0.3, 0.8]), seed=0)
    tops = [video_of(dataset, index).crop.box[1] for index in range(40)]
    assert max(tops) <= 24 - 3
    assert len(set(tops)) > 5


def test_masks_lie_over_the_person(master: Path) -> None:
    """Coarse, but where the renderer says the figure is."""
    dataset = build_dataset(options(master, scene_ratio=0, split="validation", crop_scale=[1, 1]), seed=0)
    sample, mask = dataset.masked(0)
    take = dataset.take(0)
    truth = render_clip(4, 4, 4, frames=12, size=(64, 64)).mask[FIRST + take.rows]
    assert mask.shape == truth.shape
    assert (mask & truth).sum() / (mask | truth).sum() > 0.8
    assert sample.clip_id.endswith("held")


def test_scenes_have_blank_conditions_and_empty_masks(master: Path) -> None:
    dataset = build_dataset(options(master, scene_ratio=1, face="self"), seed=0)
    sample, mask = dataset.masked(0)
    assert sample.kind == "scene"
    assert sample.pixels.any()
    assert sample.pose is sample.face is None
    assert not mask.any()


def test_style_of_the_poses(master: Path) -> None:
    plain, thick, bare = (
        build_dataset(options(master, scene_ratio=0, **style), seed=0)[1].pose
        for style in ({}, {"pose_width": 4.0}, {"pose_hands": False})
    )
    coloured = [int((pose.amax(dim=1) > 0).sum()) for pose in (plain, thick, bare)]
    assert coloured[1] > 1.3 * coloured[0] > 1.3 * coloured[2] > 0


# Determinism


@pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:no scene clip has the aspect")
def test_workers_change_nothing(master: Path) -> None:
    """Clips, crops and drawings for 0, 1, 2 and 4 workers, with two sizes."""
    changes = {"face": "self", "buckets": [[64, 64], [64, 80]]}
    expected = batches(options(master, **changes), 4)
    assert len({batch.pixels.shape for batch in expected}) == 2
    for workers in (1, 2, 4):
        for one, other in zip(
            expected, batches(options(master, workers=workers, prefetch=1, **changes), 4), strict=True
        ):
            assert_equal(one, other)


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_within_an_epoch_continues_exactly(master: Path, workers: int) -> None:
    config = options(master, workers=workers)
    whole = batches(config, 3)
    for one, other in zip(whole[1:], batches(config, 2, start=2), strict=True):
        assert_equal(one, other)
    with pytest.raises(AssertionError):
        assert_equal(whole[0], whole[1])


def test_a_sample_does_not_depend_on_what_was_read_before(master: Path) -> None:
    ahead, again = (build_dataset(options(master), seed=5) for _ in range(2))
    first = {index: ahead[index] for index in (4, 0)}
    for index in (0, 4):
        assert torch.equal(again[index].pixels, first[index].pixels)
        assert torch.equal(again[index].pose, first[index].pose)


# Mixing


def shares(config: DataConfig, count: int = 2000) -> Counter:
    dataset = build_dataset(config, seed=1)
    return Counter(video_of(dataset, index).clip_id for index in range(count))


def test_data_sets_are_mixed_by_weight(tmp_path: Path) -> None:
    one = write_set(tmp_path / "one", [record(f"a{k}") for k in range(4)])
    two = write_set(
        tmp_path / "two", [*(record(f"b{k}") for k in range(16)), *(record(f"s{k}", kind="scene") for k in range(5))]
    )
    seen = shares(options(one, two))
    assert sum(n for name, n in seen.items() if "/s" in name) == 500
    assert sum(n for name, n in seen.items() if name.startswith("one/")) == pytest.approx(1500 * 4 / 20, abs=2)
    seen = shares(options({"folder": str(one), "weight": 3}, {"folder": str(two), "weight": 1}))
    of_one = [n for name, n in seen.items() if name.startswith("one/")]
    assert sum(of_one) == pytest.approx(1500 * 3 / 4, abs=2)
    assert max(of_one) - min(of_one) <= 1, "whole permutations"
    assert sum(n for name, n in seen.items() if "/s" in name) == 500, "the only set with scenes gives all of them"


def test_num_clips_takes_the_first_of_each_kind(tmp_path: Path) -> None:
    clips = [record(f"a{k}", start=k) for k in range(5)] + [record(f"s{k}", kind="scene") for k in range(5)]
    folder = write_set(tmp_path / "one", clips)
    assert set(shares(options(folder, num_clips=2), 40)) == {"one/a0", "one/a1", "one/s0", "one/s1"}
    with pytest.raises(DataError, match=r"data.num_clips is 6, but there are 5 human clips"):
        build_dataset(options(folder, num_clips=6), seed=0)


# Sizes

TALL, WIDE = [96, 64], [64, 96]


@pytest.fixture
def aspects(tmp_path: Path) -> Path:
    clips = [record(f"tall{k}", width=90, height=160) for k in range(6)]
    clips += [record(f"wide{k}", width=160, height=90) for k in range(2)]
    clips += [record(f"ts{k}", width=100, height=120, kind="scene") for k in range(3)]
    clips += [record(f"ws{k}", width=400, height=100, kind="scene") for k in range(3)]
    return write_set(tmp_path / "aspects", clips)


def test_every_step_has_one_size_and_clips_of_that_aspect(aspects: Path) -> None:
    config = options(aspects, buckets=[TALL, WIDE])
    assert config.size == (96, 64), "the largest size stands for all where one is needed"
    dataset = build_dataset(config, seed=0, step=6)
    sizes = []
    seen: Counter = Counter()
    for step in range(200):
        videos = [video_of(dataset, index) for index in range(6 * step, 6 * step + 6)]
        assert len({video.size for video in videos}) == 1
        sizes.append(videos[0].size)
        for video in videos:
            height, width = video.size
            assert (video.record.height > video.record.width) == (height > width)
            seen[video.record.clip_id] += 1
    assert Counter(sizes) == {(96, 64): 150, (64, 96): 50}, "as frequent as human clips of the aspect"
    people = [n for name, n in seen.items() if name.startswith(("tall", "wide"))]
    assert max(people) - min(people) <= 2, "every human clip equally often"


def test_a_size_follows_from_seed_and_step_for_any_division(aspects: Path) -> None:
    """Batch 6, two ranks of 3, or three micro-steps of 2: the same steps."""

    def sizes(seed: int, step: int) -> list[tuple[int, int]]:
        dataset = build_dataset(options(aspects, buckets=[TALL, WIDE]), seed=seed, step=step)
        return [video_of(dataset, index).size for index in range(120)]

    assert sizes(0, 6) == sizes(0, 6)
    assert len({tuple(sizes(seed, 6)) for seed in range(12)}) > 2


def test_sizes_without_clips(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "one", [record("tall", height=96), record("scene", kind="scene", width=96)])
    with pytest.warns(DataWarning) as told:
        dataset = build_dataset(options(folder, buckets=[TALL, WIDE]), seed=0)
    assert [str(entry.message) for entry in told] == [
        "no human clip has the aspect of 64 x 96 px: that size is left out",
        "no scene clip has the aspect of 96 x 64 px: parts of others are shown at that size",
    ]
    assert {video_of(dataset, k).clip_id for k in range(20)} == {"one/tall", "one/scene"}


# Damaged clips


def damage(folder: Path, name: str, how: str) -> None:
    video = folder / "videos" / f"{name}.mp4"
    whole = video.read_bytes()
    if how == "missing":
        video.unlink()
    elif how == "truncated":
        video.write_bytes(whole[: len(whole) // 3])
    elif how == "other bytes":
        video.write_bytes(bytes([*whole[:-40], whole[-40] ^ 255, *whole[-39:]]))
    elif how == "numbers":
        numbers = folder / "clips" / f"{name}.npz"
        numbers.write_bytes(numbers.read_bytes()[:-200])


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("missing", "does not exist"),
        ("truncated", "other bytes than when the data set was made"),
        ("other bytes", "other bytes than when the data set was made"),
        ("numbers", "cannot be read"),
    ],
)
def test_a_damaged_clip_is_replaced_alike_everywhere_with_one_warning(copied: Path, how: str, reason: str) -> None:
    whole = build_dataset(options(copied, scene_ratio=0), seed=2)
    planned = [video_of(whole, index).clip_id for index in range(8)]
    damage(copied, "human0", how)
    dataset, backwards = (build_dataset(options(copied, scene_ratio=0), seed=2) for _ in range(2))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", DataWarning)
        samples = [dataset[index] for index in range(8)]
    messages = [str(entry.message) for entry in told if entry.category is DataWarning]
    assert len(messages) == 1
    assert "clip 'one/human0' is replaced by others" in messages[0]
    assert reason in messages[0]
    assert list(dataset.broken) == ["one/human0"]
    for sample, name in zip(samples, planned, strict=True):
        assert (sample.clip_id == name) == (name != "one/human0")
        assert sample.clip_id != "one/human0"
    with pytest.warns(DataWarning):
        twins = {index: backwards[index] for index in reversed(range(8))}
    for sample in samples:
        assert twins[sample.index].clip_id == sample.clip_id
        assert torch.equal(twins[sample.index].pixels, sample.pixels)


def test_bytes_are_not_compared_where_that_is_switched_off(copied: Path) -> None:
    video = copied / "videos" / "human0.mp4"
    video.write_bytes(video.read_bytes() + b"\0\0\0\x08free")  # an empty box at the end: the same video
    dataset = build_dataset(options(copied, scene_ratio=0, verify=False), seed=2)
    for index in range(4):
        dataset[index]
    assert not dataset.broken


def test_bytes_are_read_once_before_training(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither workers nor a second start read a whole video to compare it; what changes meanwhile is still seen."""
    hashed: list[str] = []
    monkeypatch.setattr(verify, "file_sha256", lambda path: hashed.append(Path(path).name) or file_sha256(path))
    shown = sorted(f"human{number}.mp4" for number in range(3))
    build_dataset(options(copied, scene_ratio=0), seed=2)
    assert sorted(hashed) == shown
    dataset = build_dataset(options(copied, scene_ratio=0), seed=2)
    worker = pickle.loads(pickle.dumps(dataset))
    for index in range(6):
        worker[index]
    assert sorted(hashed) == shown
    assert not worker.broken
    video = copied / "videos" / "human0.mp4"
    os.utime(video, ns=(1, 1))
    build_dataset(options(copied, scene_ratio=0), seed=2)
    assert hashed[3:] == ["human0.mp4"], "another time: read again"
    memory = verify.memory_file(copied)
    memory.write_text("damaged")
    build_dataset(options(copied, scene_ratio=0), seed=2)
    assert sorted(hashed[4:]) == shown
    with pytest.warns(DataWarning, match="'one/human0' is replaced.*other bytes"):
        [worker[index] for index in range(12)]  # that set was opened before the time changed


def test_training_begins_with_the_bytes_of_all_its_videos(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those of validation, before networks are made and while no process waits in a collective."""
    hashed: list[str] = []
    monkeypatch.setattr(verify, "file_sha256", lambda path: hashed.append(Path(path).name) or file_sha256(path))

    def only_check(work: Callable[[], None]) -> None:
        work()
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "at_leisure", only_check)
    monkeypatch.setattr(trainer.STAGES["dynamics"].__class__, "build", lambda *_: pytest.fail("networks are made"))
    config = TrainConfig(data=options(copied), stage="dynamics", out=str(copied / "run"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)  # those come when the data are opened for use
        with pytest.raises(KeyboardInterrupt):
            trainer.train(config, cpu=True)
    assert sorted(hashed) == ["held.mp4", *(f"human{number}.mp4" for number in range(3)), "scene0.mp4"]


def test_nothing_is_read_twice_where_nothing_can_be_remembered(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    monkeypatch.setattr(verify, "file_sha256", lambda path: hashed.append(Path(path).name) or file_sha256(path))
    (tmp_path / "no_folder").write_text("")
    monkeypatch.setenv("XDYNA_CACHE", str(tmp_path / "no_folder"))
    for _ in range(2):
        build_dataset(options(copied, scene_ratio=0), seed=2)
    assert len(hashed) == 3


def test_nothing_but_damaged_clips_is_an_error(copied: Path) -> None:
    for name in ("human0", "human1", "human2"):
        damage(copied, name, "missing")
    dataset = build_dataset(options(copied, scene_ratio=0), seed=2)
    with (
        pytest.warns(DataWarning),
        pytest.raises(DataError, match="sample 0: none of 100 clips in a row can be read"),
    ):
        dataset[0]


# What cannot be met


def test_clips_that_are_too_short_are_left_out(tmp_path: Path) -> None:
    folder = write_set(
        tmp_path / "one", [record("long", frames=20), record("short", frames=9), record("tiny", frames=5)]
    )
    with pytest.warns(DataWarning, match="2 of 3 human clips are shorter than what data.frames=10 at data.stride"):
        dataset = build_dataset(options(folder, frames=10, stride=[1, 5], scene_ratio=0), seed=0)
    takes = [dataset.take(index) for index in range(50)]
    assert {take.video.clip_id for take in takes} == {"one/long"}
    assert {int(take.rows[1] - take.rows[0]) for take in takes} == {1, 2}, "the strides that fit"
    assert max(take.rows[-1] for take in takes) == 19
    with pytest.raises(DataError, match=r"all 3 human clips are shorter than what data\.frames=30"):
        build_dataset(options(folder, frames=30, scene_ratio=0), seed=0)


def test_validation_without_a_split_of_its_own(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "one", [record("a"), record("b", split="test")])
    with pytest.warns(DataWarning, match="no human clips of split 'validation': those of split 'test' stand in"):
        dataset = build_dataset(options(folder, split="validation", scene_ratio=0), seed=0)
    assert dataset.take(0).video.clip_id == "one/b"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scene_ratio": 0.5}, r"no scene clips of split 'train' \(none of any split\); set data.scene_ratio=0"),
        ({"split": "test"}, r"no human clips of split 'test' \(only of train\)"),
        ({"face": "cross"}, "no clip has another identity's face, which data.face=cross"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, changes: dict, message: str) -> None:
    folder = write_set(tmp_path / "one", [record("a")])
    with pytest.raises(DataError, match=message):
        build_dataset(options(folder, **{"scene_ratio": 0, **changes}), seed=0)


def test_videos_elsewhere_are_refused(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "one", [record("a", path="s3://bucket/a.mp4")])
    with pytest.raises(DataError, match=r"'s3://bucket/a.mp4' lies on another machine.*copy the footage"):
        build_dataset(options(folder, scene_ratio=0), seed=0)


def test_a_relative_path_may_start_at_the_data_set(copied: Path) -> None:
    """A set that is moved with its videos stays one."""
    there = read_dataset(copied).records
    moved = [dataclasses.replace(entry, path=f"videos/{entry.clip_id}.mp4") for entry in there]
    one, other = (build_dataset(options(write_set(copied, entries)), seed=0)[1] for entries in (there, moved))
    assert torch.equal(one.pixels, other.pixels)


def test_a_folder_without_a_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no finished data set"):
        build_dataset(options(tmp_path), seed=0)


def test_size_by_aspect_is_by_its_logarithm(tmp_path: Path) -> None:
    """A square lies as far from 2:1 as from 1:2; a little taller is nearer to tall."""
    folder = write_set(tmp_path / "one", [record("a", height=101, width=100), record("b", height=100, width=101)])
    dataset = build_dataset(options(folder, buckets=[[128, 64], [64, 128]], scene_ratio=0), seed=0)
    found = {video_of(dataset, k).record.clip_id: video_of(dataset, k).size for k in range(20)}
    assert found == {"a": (128, 64), "b": (64, 128)}
    assert math.isclose(sum(bucket.share for bucket in dataset.source.buckets), 1)
