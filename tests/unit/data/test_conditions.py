import numpy as np

from xdyna.config.contract import PoseStyle
from xdyna.data.conditions import face_images, pose_images
from xdyna.perception import PoseTrack, draw_pose, draw_track, face_patches


def track(rng: np.random.Generator, size: tuple[int, int] = (128, 96)) -> PoseTrack:
    def points(*shape: int) -> np.ndarray:
        xy = rng.uniform(20, 80, size=(*shape, 2))
        return np.concatenate([xy, rng.uniform(0.31, 1, size=(*shape, 1))], axis=-1).astype(np.float32)

    return PoseTrack(points(3, 18), points(3, 2, 21), points(3, 68), size, np.arange(3.0), np.arange(3))


def test_poses_are_those_of_inference() -> None:
    people = track(np.random.default_rng(0))
    np.testing.assert_array_equal(pose_images(people, PoseStyle()), draw_track(people))


def test_face_patches_are_those_of_inference() -> None:
    rng = np.random.default_rng(0)
    frames, people = rng.integers(0, 256, (3, 128, 96, 3), dtype=np.uint8), track(rng)
    local, whole = face_patches(frames, people.face)
    np.testing.assert_array_equal(face_images(frames, people.face), np.concatenate([local, whole], axis=-1))


def test_landmarks_grow_with_the_image() -> None:
    landmarks = np.zeros((68, 3), np.float32)
    landmarks[0] = 0.5, 0.5, 1
    landmarks[1] = 0.25, 0.25, 0.2  # not seen
    for side, pixels in ((128, 1), (512, 29)):  # a disc of radius 3 has 29 pixels
        image = draw_pose(np.zeros((18, 3)), None, landmarks * [side, side, 1], size=(side, side + 20))
        white = np.argwhere((image == 255).all(axis=-1))
        assert len(white) == pixels
        np.testing.assert_allclose(white.mean(axis=0), side / 2)
        assert not (image[..., 0] > 0)[: side // 2 - 4].any()
