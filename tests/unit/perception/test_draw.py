import cv2
import numpy as np
import pytest

from xdyna.perception import PerceptionError, draw_pose, draw_track
from xdyna.perception.topology import BODY_COLORS, BODY_LIMBS, HAND_BONES

SIZE = (896, 512)


def make_body(joints: dict[int, tuple[float, float]], confidence: float = 1.0) -> np.ndarray:
    body = np.zeros((18, 3))
    for joint, place in joints.items():
        body[joint] = [*place, confidence]
    return body


def colors(image: np.ndarray) -> set[tuple[int, ...]]:
    packed = np.unique(image.reshape(-1, 3) @ np.array([1 << 16, 1 << 8, 1]))
    return {(int(c) >> 16, int(c) >> 8 & 255, int(c) & 255) for c in packed} - {(0, 0, 0)}


def test_known_limbs_and_colours():
    """OpenPose facts, written down independently of the tables."""
    assert len(BODY_LIMBS) == 17
    assert len({frozenset(limb) for limb in BODY_LIMBS}) == 17
    names = {
        (1, 2): (255, 0, 0),
        (1, 5): (255, 85, 0),
        (12, 13): (0, 85, 255),
        (1, 0): (0, 0, 255),
        (9, 10): (0, 255, 170),
    }
    for limb, color in names.items():
        assert tuple(BODY_COLORS[BODY_LIMBS.index(limb)].tolist()) == color
    assert len(HAND_BONES) == 20
    assert {bone for bone in HAND_BONES if bone[0] == 0} == {(0, 1), (0, 5), (0, 9), (0, 13), (0, 17)}


def test_joint_is_a_disc_at_full_brightness():
    image = draw_pose(make_body({4: (100.9, 200.2)}), size=SIZE)
    expected = np.zeros((*SIZE, 3), np.uint8)
    cv2.circle(expected, (100, 200), 4, (170, 255, 0), -1)
    np.testing.assert_array_equal(image, expected)


def test_width_is_a_factor_of_all_sizes():
    image = draw_pose(make_body({4: (100, 200)}), size=SIZE, width=2.5)
    expected = np.zeros((*SIZE, 3), np.uint8)
    cv2.circle(expected, (100, 200), 10, (170, 255, 0), -1)
    np.testing.assert_array_equal(image, expected)
    body = make_body({2: (100, 300), 3: (300, 300)})
    np.testing.assert_array_equal(draw_pose(body, size=SIZE, width=1.0), draw_pose(body, size=SIZE))
    with pytest.raises(PerceptionError, match="width of the drawing is 0"):
        draw_pose(body, size=SIZE, width=0)


def test_limb_is_an_ellipse_at_sixty_percent():
    image = draw_pose(make_body({2: (100, 300), 3: (300, 300)}), size=SIZE)
    assert colors(image) == {(255, 170, 0), (255, 255, 0), (153, 102, 0)}
    ys, xs = np.nonzero((image == [153, 102, 0]).all(axis=2))
    half_width = np.array([ys[xs == x].max() - 300 for x in range(110, 291)])
    expected = 4 * np.sqrt(1 - ((np.arange(110, 291) - 200) / 100) ** 2)
    assert np.abs(half_width - expected).max() <= 1
    assert half_width.max() == 4


def test_head_is_left_out_unless_asked():
    body = make_body({0: (250, 100), 1: (250, 200), 14: (240, 90), 15: (260, 90), 16: (225, 95), 17: (275, 95)})
    without, with_head = (draw_pose(body, size=SIZE, head=head) for head in (False, True))
    assert colors(without) == {(255, 0, 0), (255, 85, 0), (0, 0, 153)}
    assert {(170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85)} <= colors(with_head)


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_points_below_the_threshold_are_not_drawn(threshold: float):
    body = make_body({2: (100, 300), 3: (300, 300)})
    hands = np.zeros((2, 21, 3))
    hands[0, :, :2] = np.random.default_rng(0).uniform(100, 400, (21, 2))
    body[3, 2] = hands[0, :, 2] = threshold - 0.01
    assert colors(draw_pose(body, hands, size=SIZE, threshold=threshold)) == {(255, 170, 0)}
    body[3, 2] = hands[0, :, 2] = threshold
    # two joints, a limb, 20 bones of one hand and its dots
    assert len(colors(draw_pose(body, hands, size=SIZE, threshold=threshold))) == 24


def test_hands_are_thin_hued_lines_under_blue_dots():
    hands = np.zeros((2, 21, 3))
    hands[1, 0], hands[1, 1] = [100, 100, 1], [200, 100, 1]
    image = draw_pose(np.zeros((18, 3)), hands, size=SIZE)
    assert colors(image) == {(0, 0, 255), (255, 0, 0)}
    assert 2 <= (image[:, 150] == [255, 0, 0]).all(axis=1).sum() <= 3
    hands[1, 19], hands[1, 20] = [100, 300, 1], [200, 300, 1]
    last = draw_pose(np.zeros((18, 3)), hands, size=SIZE)[300, 150]
    assert tuple(last.tolist()) == (255, 0, 76), "hue 19/20"


@pytest.mark.parametrize(
    ("size", "radius"), [((896, 512), 4), ((448, 256), 2), ((1792, 1024), 8), ((64, 64), 1), ((32, 8), 1)]
)
def test_widths_scale_with_the_shorter_side(size: tuple[int, int], radius: int):
    image = draw_pose(make_body({0: (size[1] // 2, size[0] // 2)}), size=size)
    assert image.shape == (*size, 3)
    assert image.any(axis=(1, 2)).sum() == 2 * radius + 1


def test_drawing_is_clipped_to_the_image():
    body = make_body({2: (-50, 100), 3: (100, 100), 4: (1e6, -1e6)})
    image = draw_pose(body, size=(200, 200))
    assert (image[100, 0] == [153, 102, 0]).all()
    far = make_body({2: (-1e6, -1e6), 3: (-1e6, 1e6)})
    assert not draw_pose(far, size=(200, 200)).any()


def test_track_is_drawn_frame_by_frame(make_track):
    track = make_track(3)
    images = draw_track(track, head=True)
    assert images.shape == (3, 120, 80, 3)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images[1], draw_pose(track.body[1], track.hands[1], size=(120, 80), head=True))


def test_errors():
    body = np.zeros((18, 3))
    for call in (
        lambda: draw_pose(np.zeros((17, 3)), size=SIZE),
        lambda: draw_pose(body * np.nan, size=SIZE),
        lambda: draw_pose(body, np.zeros((21, 3)), size=SIZE),
        lambda: draw_pose(body, size=(0, 5)),
        lambda: draw_pose(body, size=SIZE, threshold=0),
    ):
        with pytest.raises(PerceptionError, match="expected"):
            call()
