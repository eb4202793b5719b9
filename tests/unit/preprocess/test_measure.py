"""Measured numbers against images that were moved, written on or changed by known amounts."""

import cv2
import numpy as np
import pytest

from tests.unit.preprocess.figures import backdrop
from xdyna.preprocess.measure import measure_motion, measure_text, perceptual_hash
from xdyna.puppets.world.render import render_clip

SIZE = (120, 160)
COUNT = 10


def panned(step: tuple[float, float], *, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A camera that moves by `step` (x, y) px a frame over a large image."""
    world = backdrop((size[0] + 200, size[1] + 200), 3)
    frames = []
    for k in range(COUNT):
        matrix = np.array([[1.0, 0, 100 + k * step[0]], [0, 1, 100 + k * step[1]]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        frames.append(cv2.warpAffine(world, matrix, (size[1], size[0]), flags=flags))
    return np.stack(frames)


@pytest.mark.parametrize("step", [(0, 0), (1.5, 0), (0, 3), (-4, 3)])
@pytest.mark.parametrize("fps", [8, 30])
def test_camera_speed(step: tuple[float, float], fps: int):
    motion = measure_motion(panned(step), np.arange(COUNT) / fps)
    speed = np.hypot(*step) * fps / SIZE[0]
    assert motion.camera == pytest.approx(speed, rel=0.03, abs=1e-6)
    assert motion.flow == pytest.approx(speed, rel=0.1, abs=1e-6)


def test_units_do_not_depend_on_the_size():
    large = measure_motion(panned((4, 0), size=(240, 320)), np.arange(COUNT) / 10)
    small = measure_motion(panned((2, 0)), np.arange(COUNT) / 10)
    assert large.camera == pytest.approx(small.camera, rel=0.05)


def test_uneven_times():
    times = np.cumsum([0, 0.1, 0.1, 0.1, 0.2, 0.2, 0.2, 0.1, 0.1, 0.1])
    speed = np.mean(3 / 120 / np.diff(times))
    assert measure_motion(panned((3, 0)), times).camera == pytest.approx(speed, rel=0.05)


def half_moving(step: int) -> np.ndarray:
    """The lower half flows, the upper half keeps still."""
    frames = np.stack([backdrop(SIZE)] * COUNT)
    wide = backdrop((60, 400), 5)
    for k, frame in enumerate(frames):
        frame[60:] = wide[:, 10 + step * k : 10 + step * k + SIZE[1]]
    return frames


def test_water_is_no_camera():
    motion = measure_motion(half_moving(4), np.arange(COUNT) / 10)
    assert motion.camera == 0
    assert motion.flow == pytest.approx(0.5 * 4 * 10 / SIZE[0], rel=0.15)


def test_people_are_no_background():
    """A person who fills most of the image moves; where nobody is, nothing does. And the other way round."""
    frames = panned((3, 0))
    still = backdrop(SIZE, 8)
    for frame in frames:
        frame[:, :40] = still[:, :40]
    person = np.array([[0.25, 0, 1, 1]])
    assert measure_motion(frames, np.arange(COUNT) / 10, person).camera == 0
    moving = panned((3, 0))
    moving[:, :, 40:] = still[:, 40:]
    person_still = np.array([[0.25, 0, 1, 1]])
    assert measure_motion(moving, np.arange(COUNT) / 10).camera == 0, "without knowing, what keeps still wins"
    assert measure_motion(moving, np.arange(COUNT) / 10, person_still).camera == pytest.approx(0.25, rel=0.1)


def test_flat_images():
    flat = np.full((COUNT, *SIZE, 3), 90, np.uint8)
    motion = measure_motion(flat, np.arange(COUNT) / 10)
    assert (motion.flow, motion.camera) == (0, 0)


def written(frames: np.ndarray, text: str, row: float, *, scale: float = 0.5, outline: bool = True) -> np.ndarray:
    frames = frames.copy()
    for frame in frames:
        place = (12, round(row * frame.shape[0]))
        for color, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)) if outline else (((255, 255, 255), 1),):
            cv2.putText(frame, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, color, thickness, cv2.LINE_AA)
    return frames


@pytest.mark.parametrize("kind", ["waterfall", "sea", "clouds", "grass", "wall"])
@pytest.mark.parametrize(("text", "row"), [("and then he said", 0.93), ("follow @channel", 0.1)])
def test_text_over_scenes(kind: str, text: str, row: float):
    frames = render_clip(1, 1, 3, frames=8, size=(180, 320), kind="scene", scene_kind=kind).frames
    assert measure_text(frames) <= 0.25
    assert measure_text(written(frames, text, row)) >= 0.75


def test_text_for_half_of_the_time():
    frames = np.stack([backdrop((180, 320))] * 32)
    frames[16:] = written(frames[16:], "and then he said", 0.9)
    assert measure_text(frames) == pytest.approx(0.5, abs=0.15)


def test_text_that_moves_is_no_overlay():
    """A sign that a camera passes by."""
    plain = np.stack([backdrop((180, 320))] * 12)
    signs = np.stack([written(frame[None], "open", 0.9)[0] for frame in plain])
    assert measure_text(signs) == 1
    moving = np.stack([np.roll(frame, 11 * k, axis=1) for k, frame in enumerate(signs)])
    assert measure_text(moving) <= 0.25


def test_text_in_the_middle_belongs_to_the_scene():
    frames = written(np.stack([backdrop((180, 320))] * 8), "EXIT THIS WAY PLEASE", 0.5)
    assert measure_text(frames) == 0


def distance(first: str, second: str) -> int:
    return (int(first, 16) ^ int(second, 16)).bit_count()


def images() -> list[np.ndarray]:
    return [render_clip(k, k, k, frames=1, size=(128, 160)).frames[0] for k in range(4)]


def test_hash_is_that_of_opencv():
    """OpenCV's contributed pHash reduces the image a little differently: few bits near the mean may differ."""
    if not hasattr(cv2, "img_hash"):
        pytest.skip("OpenCV without its contributed modules")
    for image in images():
        theirs = cv2.img_hash.PHash.create().compute(np.ascontiguousarray(image[..., ::-1]))[0]
        ours = perceptual_hash(image)
        assert len(ours) == 16
        # OpenCV fills each byte from its lowest bit.
        bits = np.unpackbits(theirs, bitorder="little")
        assert (bits != np.unpackbits(np.frombuffer(bytes.fromhex(ours), np.uint8))).sum() <= 8


def test_hash_tells_images_apart_and_knows_them_again():
    shown = images()
    for k, image in enumerate(shown):
        _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 50])
        again = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
        for changed in (
            again,
            cv2.resize(image, (90, 64), interpolation=cv2.INTER_AREA),
            (image * 0.8).astype("u1"),
        ):
            assert distance(perceptual_hash(image), perceptual_hash(changed)) <= 6
        for other in shown[k + 1 :]:
            assert distance(perceptual_hash(image), perceptual_hash(other)) >= 10
