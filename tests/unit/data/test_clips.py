import dataclasses
from collections import Counter
from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch

from tests.unit.data.test_loader import assert_equal
from xdyna.config.data import DataConfig, DataError
from xdyna.data.clips import ClipDataset, build_dataset
from xdyna.data.samples import collate
from xdyna.perception import draw_pose, face_patches
from xdyna.puppets import source
from xdyna.puppets.source import PuppetVideo
from xdyna.puppets.world import SPLITS, PuppetClip, render_clip

Small = Callable[..., DataConfig]


def images(tensor: torch.Tensor) -> np.ndarray:
    return tensor.permute(0, 2, 3, 1).numpy()


def known(dataset: ClipDataset, index: int) -> PuppetClip:
    """The frames of a sample with everything that is known of them."""
    take = dataset.take(index)
    assert isinstance(take.video, PuppetVideo)
    return take.video.truth(take.rows)


def test_a_sample_is_a_function_of_seed_and_index(small: Small) -> None:
    dataset, again, other = (build_dataset(small(face="cross"), seed=seed) for seed in (3, 3, 4))
    ahead = [again[i] for i in (5, 2)]  # in another order
    for index, twin in zip((5, 2), ahead, strict=True):
        sample = dataset[index]
        assert_equal(collate([sample]), collate([twin]))
        assert sample.clip_id == twin.clip_id != other[index].clip_id


def test_shapes_and_types(small: Small) -> None:
    sample = build_dataset(small(height=72, width=64, scene_ratio=0, face="self"), seed=0)[7]
    assert (sample.index, sample.kind, sample.caption) == (7, "human", "")
    assert (sample.latents_mean, sample.latents_std) == (None, None)
    for tensor, shape in (
        (sample.pixels, (4, 3, 72, 64)),
        (sample.pose, (3, 3, 72, 64)),
        (sample.face, (3, 6, 72, 64)),
    ):
        assert (tensor.dtype, tuple(tensor.shape)) == (torch.uint8, shape)
        assert tensor.is_contiguous()


def test_without_a_crop_a_sample_is_the_rendering(small: Small) -> None:
    """Against the renderer and perception called directly."""
    dataset = build_dataset(small(crop_scale=[1, 1], scene_ratio=0, face="self"), seed=0)
    for index in range(4):
        take, sample = dataset.take(index), dataset[index]
        video = take.video
        assert isinstance(video, PuppetVideo)
        whole = render_clip(video.identity, video.motion, video.scene, frames=8, size=(64, 64))
        expected = whole.frames[[take.reference, *take.rows]]
        np.testing.assert_array_equal(images(sample.pixels), expected)
        poses = [draw_pose(whole.body[row], whole.hands[row], size=(64, 64)) for row in take.rows]
        np.testing.assert_array_equal(images(sample.pose), np.stack(poses))
        local, whole_face = face_patches(whole.frames[take.rows], whole.face[take.rows])
        np.testing.assert_array_equal(images(sample.face[:, :3]), local)
        np.testing.assert_array_equal(images(sample.face[:, 3:]), whole_face)
        assert sample.face.any()


def test_cross_identity_faces(small: Small) -> None:
    dataset = build_dataset(small(crop_scale=[1, 1], scene_ratio=0, face="cross"), seed=0)
    plain = build_dataset(small(crop_scale=[1, 1], scene_ratio=0), seed=0)
    for index in range(3):
        take, sample = dataset.take(index), dataset[index]
        video = take.video
        assert isinstance(video, PuppetVideo)
        assert video.face_identity != video.identity
        assert video.face_identity in SPLITS["train"]
        assert video.face_scene != video.scene
        assert video.face_scene in SPLITS["train"]
        other = render_clip(
            video.identity, video.motion, video.face_scene, frames=8, size=(64, 64), face_identity=video.face_identity
        )
        local, whole = face_patches(other.frames[take.rows], other.face[take.rows])
        np.testing.assert_array_equal(images(sample.face), np.concatenate([local, whole], axis=-1))
        own = render_clip(video.identity, video.motion, video.scene, frames=8, size=(64, 64))
        np.testing.assert_array_equal(images(sample.pixels)[1:], own.frames[take.rows])
        assert not np.array_equal(own.frames, other.frames)
    assert plain[0].face is None


def test_the_crop_moves_pixels_keypoints_and_truth_alike(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dot is drawn at one joint of every frame; it must be found where the pose map has that joint."""

    def dotted(*args: int, **options: object) -> object:
        clip = render_clip(*args, **options)
        height, width = clip.mask.shape[1:]
        for k, (frame, mask, body) in enumerate(zip(clip.frames, clip.mask, clip.body, strict=True)):
            frame[:], mask[:], body[:, 2] = 0, False, 0
            x, y = width // 2 + 3 * k, height // 2 - 5 * k
            body[1] = x, y, 1
            clip.hands[k] = 0
            cv2.circle(frame, (x, y), 2, (255, 255, 255), -1)
            mask[y, x] = True
        return clip

    monkeypatch.setattr(source, "render_clip", dotted)
    dataset = build_dataset(small(crop_scale=[0.5, 0.9], scene_ratio=0), seed=2)
    boxes = set()
    for index in range(6):
        sample, truth = dataset[index], known(dataset, index)
        video = dataset.take(index).video
        assert isinstance(video, PuppetVideo)
        boxes.add(video.crop.box)
        np.testing.assert_array_equal(images(sample.pixels)[1:], truth.frames)
        for k in range(3):
            x, y = truth.body[k, 1, :2].astype(int)
            white = np.argwhere(images(sample.pixels)[1 + k].all(axis=-1))
            np.testing.assert_allclose(white.mean(axis=0), (y, x))
            drawn = np.argwhere(images(sample.pose)[k].any(axis=-1))
            np.testing.assert_allclose(drawn.mean(axis=0), (y, x))
            np.testing.assert_array_equal(np.argwhere(truth.mask[k]), [[y, x]])
    assert len(boxes) > 3


def test_the_same_crop_for_the_reference(small: Small) -> None:
    dataset = build_dataset(small(crop_scale=[0.5, 0.6], scene_ratio=0, reference="first"), seed=0)
    for index in range(4):
        pixels = dataset[index].pixels
        assert torch.equal(pixels[0], pixels[1])


def test_scenes_have_blank_conditions(small: Small) -> None:
    dataset = build_dataset(small(scene_ratio=1, face="cross"), seed=0)
    for index in range(3):
        sample, truth = dataset[index], known(dataset, index)
        assert sample.kind == truth.kind == "scene"
        assert sample.pose is None
        assert sample.face is None
        assert not truth.mask.any()
        assert sample.pixels.any()
    humans = build_dataset(small(scene_ratio=0, face="cross"), seed=0)
    assert humans[0].pose.any()
    assert humans[0].face.any()


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5])
def test_exact_share_of_scenes(small: Small, ratio: float) -> None:
    dataset = build_dataset(small(scene_ratio=ratio), seed=0)
    kinds = Counter(dataset.take(index).kind for index in range(16, 64))
    assert kinds["scene"] == round(48 * ratio)


def test_rates_of_dropping(small: Small) -> None:
    dataset = build_dataset(small(drop_image=0.1, drop_text=0.2, drop_both=0.3), seed=0)
    takes = [dataset.take(index) for index in range(6000)]
    counts = Counter((take.drop_image, take.drop_text) for take in takes)
    for case, rate in (
        ((True, False), 0.7 * 0.1 * 0.8),
        ((False, True), 0.7 * 0.9 * 0.2),
        ((True, True), 0.3 + 0.7 * 0.1 * 0.2),
        ((False, False), 0.7 * 0.9 * 0.8),
    ):
        assert counts[case] / 6000 == pytest.approx(rate, abs=0.02)
    never = build_dataset(small(drop_image=0, drop_text=0, drop_both=0), seed=0)
    assert not any(take.drop_image or take.drop_text or take.drop_face for take in map(never.take, range(500)))


def test_image_and_text_are_dropped_independently(small: Small) -> None:
    """By default both are, too: the unconditional branch is in that state. One of them alone changes the other not."""
    config = small(drop_image=0.4, drop_text=0.3)
    takes = [build_dataset(config, seed=0).take(index) for index in range(4000)]
    both = np.mean([take.drop_image and take.drop_text for take in takes])
    assert both == pytest.approx(0.12, abs=0.015)
    assert config.unconditional == pytest.approx(0.12)
    assert small().unconditional == pytest.approx(0.01)
    assert small(drop_image=0.0, drop_both=0.05).unconditional == pytest.approx(0.05)
    alone = build_dataset(small(drop_image=0.4, drop_text=0.0), seed=0)
    assert [alone.take(index).drop_image for index in range(200)] == [take.drop_image for take in takes[:200]]


def test_steps_follow_from_the_rate_of_a_video(small: Small) -> None:
    dataset = build_dataset(small(fps=[3, 6], stride=None, video_frames=20), seed=0)  # puppets have 12 frames/s
    takes = [dataset.take(index) for index in range(100)]
    assert {int(take.rows[1] - take.rows[0]) for take in takes} == {2, 3, 4}


def test_the_face_is_dropped_whatever_else_is(small: Small) -> None:
    dataset = build_dataset(small(drop_image=0.5, drop_text=0.0, drop_face=0.2), seed=0)
    takes = [dataset.take(index) for index in range(4000)]
    for dropped in (True, False):
        rates = [take.drop_face for take in takes if take.drop_image == dropped]
        assert np.mean(rates) == pytest.approx(0.2, abs=0.03)
    first = next(index for index, take in enumerate(takes) if take.drop_face)
    assert collate([dataset[first], dataset[first + 1]]).drop_face.tolist() == [True, takes[first + 1].drop_face]


def test_start_stride_and_reference_cover_the_video(small: Small) -> None:
    takes = [build_dataset(small(stride=[1, 3]), seed=0).take(index) for index in range(600)]
    assert {int(take.rows[1] - take.rows[0]) for take in takes} == {1, 2, 3}
    assert {int(take.rows[0]) for take in takes} == set(range(6))
    assert {int(take.rows[-1]) for take in takes} == {2, 3, 4, 5, 6, 7}
    assert {take.reference for take in takes} == set(range(8))
    first = build_dataset(small(reference="first"), seed=0)
    outside = build_dataset(small(reference="outside"), seed=0)
    drawn = [(first.take(index), outside.take(index)) for index in range(300)]
    assert all(take.reference == take.rows[0] for take, _ in drawn)
    assert not any(take.reference in take.rows for _, take in drawn)
    assert {take.reference for _, take in drawn} == set(range(8))


def test_options_of_one_kind_change_nothing_else(small: Small) -> None:
    """Ablations compare runs on the same clips."""
    plain = build_dataset(small(), seed=0)
    for changes in ({"reference": "outside"}, {"drop_text": 0.7}, {"drop_face": 0.7}):
        other = build_dataset(small(**changes), seed=0)
        for index in range(20):
            one, two = plain.take(index), other.take(index)
            assert one.video == two.video
            assert one.rows.tolist() == two.rows.tolist()


def test_a_finite_set_is_the_same_in_every_run(small: Small) -> None:
    sets = [build_dataset(small(num_clips=4, scene_ratio=0), seed=seed) for seed in (0, 1)]
    names = [[dataset.take(index).video.clip_id for index in range(12)] for dataset in sets]
    assert names[0] != names[1]
    for order in names:
        assert set(order[:4]) == set(order[4:8]) == set(order[8:]) == set(names[0][:4])
        assert len(set(order)) == 4


def test_endless_videos_stay_in_their_split(small: Small) -> None:
    for split in ("train", "validation", "test"):
        dataset = build_dataset(small(split=split, face="cross"), seed=0)
        videos = [dataset.take(index).video for index in range(200)]
        for name in ("identity", "motion", "scene", "face_identity", "face_scene"):
            seeds = [getattr(video, name) for video in videos]
            assert set(seeds) <= set(SPLITS[split])
            assert len(set(seeds)) > 190 or len(SPLITS[split]) < 10_000


def test_landmarks_are_drawn_into_the_pose(small: Small) -> None:
    plain, marked = (build_dataset(small(scene_ratio=0, face=face), seed=0)[1] for face in ("none", "landmarks"))
    truth = known(build_dataset(small(scene_ratio=0), seed=0), 1)
    changed = (plain.pose != marked.pose).any(dim=1).numpy()
    assert marked.face is None
    for k in range(3):
        x, y = truth.face[k, :, :2].astype(int).T
        assert images(marked.pose)[k][y, x].min() == 255
        inside = np.zeros((64, 64), bool)
        inside[y, x] = True
        assert not (changed[k] & ~inside).any()


def test_truth_is_of_the_very_frames(small: Small) -> None:
    dataset = build_dataset(small(crop_scale=[0.6, 0.8]), seed=5)
    for index in range(6):
        truth, sample = known(dataset, index), dataset[index]
        np.testing.assert_array_equal(truth.frames, images(sample.pixels)[1:])
        again, mask = dataset.masked(index)
        assert torch.equal(again.pixels, sample.pixels)
        np.testing.assert_array_equal(mask, truth.mask)
        for mask in (truth.mask, truth.dynamic, truth.secondary):
            assert (mask.dtype, mask.shape) == (np.bool_, (3, 64, 64))
        assert len(truth.expression) == len(truth.body) == 3


def test_what_does_not_exist_is_refused(small: Small) -> None:
    with pytest.raises(DataError, match="seed: got -1"):
        build_dataset(small(), seed=-1)
    with pytest.raises(DataError, match="sample -1 does not exist"):
        build_dataset(small(), seed=0)[-1]
    too_many = len(SPLITS["test"]) + 1
    with pytest.raises(DataError, match=f"data.num_clips is {too_many}, but the test split has {too_many - 1}"):
        build_dataset(small(split="test", num_clips=too_many), seed=0)


def test_options_are_not_changed_by_a_set(small: Small) -> None:
    config = small(face="cross")
    before = dataclasses.asdict(config)
    build_dataset(config, seed=0)[0]
    assert dataclasses.asdict(config) == before
