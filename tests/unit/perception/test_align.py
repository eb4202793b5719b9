import math
from dataclasses import replace

import cv2
import numpy as np
import pytest

from xdyna.media import read_image
from xdyna.perception import PerceptionError, Person, PoseTrack, align_track, get_backend, track_person
from xdyna.perception.align import _weighted_quantile
from xdyna.perception.topology import BODY_LIMBS

SIZE = (600, 400)
STANDING = np.array(
    [
        (200, 80), (200, 130),
        (165, 130), (150, 195), (145, 255),
        (235, 130), (250, 195), (255, 255),
        (180, 270), (178, 380), (176, 490),
        (220, 270), (222, 380), (224, 490),
        (192, 72), (208, 72), (182, 76), (218, 76),
    ],
    dtype=np.float64,
)  # fmt: skip
FACE = np.column_stack([np.cos(np.arange(68)) * 16 + 200, np.sin(np.arange(68)) * 20 + 82])
LEFT_FOREARM, KNEES, FEET = [7], [9, 12], [10, 13]
BELOW_SHOULDERS, BELOW_HIPS, NOT_HEAD = [*range(3, 5), *range(6, 14)], [9, 10, 12, 13], range(1, 14)


def figure(xy: np.ndarray = STANDING, *, missing=()) -> np.ndarray:
    body = np.column_stack([xy, np.full(18, 0.9)])
    body[list(missing)] = 0
    return body


def person(body: np.ndarray, *, face: bool = True) -> Person:
    """With the face of `STANDING`."""
    landmarks = np.column_stack([FACE, np.full(68, 0.8)]) * face
    return Person(body=body, hands=np.zeros((2, 21, 3)), face=landmarks, box=np.array([0, 0, 1, 1]), score=1.0)


def track_of(bodies: np.ndarray, *, size=SIZE, face: bool = True) -> PoseTrack:
    """Hands grow from the wrists, the face from the nose."""
    count = len(bodies)
    hands = np.repeat(bodies[:, [7, 4], None], 21, axis=2)
    hands[..., 0] += np.arange(21) * (hands[..., 2] > 0)
    landmarks = np.zeros((count, 68, 3))
    if face:
        landmarks[..., :2] = FACE + (bodies[:, None, 0, :2] - STANDING[0]) * (bodies[:, None, 0, 2:] > 0)
        landmarks[..., 2] = 0.8
    return PoseTrack(
        body=bodies, hands=hands, face=landmarks, size=size, times=np.arange(count) / 8, frame_index=np.arange(count)
    )


def dance(count: int = 40, *, seed: int = 0, missing=()) -> PoseTrack:
    """Stands on one spot; arms swing at full length, and towards the camera (which shortens them) half of the time."""
    rng = np.random.default_rng(seed)
    bodies = np.repeat(figure(missing=missing)[None], count, axis=0)
    for elbow, wrist, shoulder in ((3, 4, 2), (6, 7, 5)):
        for row in range(count):
            angle, depth = rng.uniform(-1, 4), (1.0 if row % 2 else rng.uniform(0.2, 1))
            direction = depth * np.array([math.cos(angle), math.sin(angle)])
            for joint, start, length in ((elbow, shoulder, 66.7), (wrist, elbow, 60.2)):
                if bodies[row, joint, 2]:
                    bodies[row, joint, :2] = bodies[row, start, :2] + length * direction
    return track_of(bodies)


def moved(track: PoseTrack, *, scale: float, offset: tuple[float, float], size: tuple[int, int]) -> PoseTrack:
    def move(points: np.ndarray) -> np.ndarray:
        points = points.astype(np.float64)
        points[..., :2] = np.where(points[..., 2:] > 0, points[..., :2] * scale + offset, 0)
        return points

    return replace(track, body=move(track.body), hands=move(track.hands), face=move(track.face), size=size)


def lengths(body: np.ndarray) -> np.ndarray:
    """(T, limbs) px, 0 where an end is missing."""
    starts, ends = np.array(BODY_LIMBS).T
    distance = np.linalg.norm(body[:, starts, :2].astype(np.float64) - body[:, ends, :2], axis=-1)
    return distance * (body[:, starts, 2] > 0) * (body[:, ends, 2] > 0)


@pytest.mark.parametrize(("scale", "offset"), [(1.0, (0, 0)), (0.4, (70, 33)), (2.6, (-300, 41.5)), (1.3, (-500, -90))])
def test_known_scale_and_offset_are_undone(scale, offset):
    """The driving clip is the reference's own, seen by another camera."""
    clip = dance()
    driving = moved(clip, scale=1 / scale, offset=(-offset[0] / scale, -offset[1] / scale), size=(800, 700))
    aligned, report = align_track(driving, person(figure()), size=SIZE)
    assert report.scale == pytest.approx(scale, rel=0.005)
    for name in ("body", "hands", "face"):
        np.testing.assert_allclose(getattr(aligned, name), getattr(clip, name), atol=2.5)
    assert aligned.size == SIZE
    assert report.score > 0.95
    assert report.usable
    assert report.warnings == ()
    np.testing.assert_array_equal(aligned.times, driving.times)


def test_scale_offset_and_matrix_are_what_was_done():
    driving = moved(dance(), scale=1.7, offset=(20, 10), size=(1200, 900))
    aligned, report = align_track(driving, figure(), size=SIZE)
    for name in ("body", "hands", "face"):
        got, points = getattr(aligned, name), getattr(driving, name).astype(np.float64)
        np.testing.assert_allclose(got[..., :2], report.scale * points[..., :2] + report.offset, atol=1e-3)
        homogeneous = np.concatenate([points[..., :2], np.ones((*points.shape[:-1], 1))], axis=-1)
        np.testing.assert_allclose(got[..., :2], homogeneous @ report.matrix.T, atol=1e-3)
        np.testing.assert_array_equal(got[..., 2], points[..., 2].astype(np.float32))


@pytest.mark.parametrize("zoom", [0.31, 0.77, 1.0, 2.4])
@pytest.mark.parametrize("shape", [(601, 403, 3), (601, 403, 1), (601, 403)])
def test_pictures_move_like_points(zoom: float, shape):
    """A blob drawn at a joint of the frame lies at the aligned joint."""
    driving = moved(dance(), scale=1 / zoom, offset=(0, 0), size=(601, 403))
    driving = replace(driving, size=(601, 403))
    _, report = align_track(driving, figure(), size=SIZE)
    ys, xs = np.mgrid[: shape[0], : shape[1]]
    center = np.array([80.0, 140.0])
    blob = 200 * np.exp(-((xs - center[0]) ** 2 + (ys - center[1]) ** 2) / (2 * (9 / min(zoom, 1)) ** 2))
    blob = np.broadcast_to(blob.reshape(*shape[:2], *[1] * (len(shape) - 2)), shape).astype(np.uint8)
    picture = report.image(blob)
    assert picture.shape == (*SIZE, *shape[2:])
    assert picture.dtype == np.uint8
    weight = picture.reshape(*SIZE, -1)[..., 0].astype(float)
    weight[weight < 20] = 0
    ys, xs = np.mgrid[: SIZE[0], : SIZE[1]]
    found = np.array([(weight * xs).sum(), (weight * ys).sum()]) / weight.sum()
    np.testing.assert_allclose(found, report.scale * center + report.offset, atol=0.15)


def test_pictures_equal_the_affine_warp_where_it_is_good_enough():
    rng = np.random.default_rng(0)
    smooth = cv2.GaussianBlur(rng.uniform(0, 1, (300, 200, 3)).astype(np.float32), (0, 0), 6)
    for zoom in (1.4, 0.8):
        driving = replace(moved(dance(), scale=1 / zoom, offset=(7, 5), size=(300, 200)), size=(300, 200))
        _, report = align_track(driving, figure(), size=SIZE)
        want = cv2.warpAffine(smooth, report.matrix, (SIZE[1], SIZE[0]))
        inner = cv2.erode((want.sum(axis=2) > 0).astype(np.uint8), np.ones((7, 7))).astype(bool)
        assert inner.any()
        np.testing.assert_allclose(report.image(smooth)[inner], want[inner], atol=0.01)


def test_reduced_pictures_are_averaged():
    driving = replace(moved(dance(), scale=5, offset=(0, 0), size=(600, 400)), size=(600, 400))
    _, report = align_track(driving, figure(), size=SIZE)
    checks = (255 * (np.indices((600, 400)).sum(axis=0) % 2)).astype(np.uint8)
    grey = report.image(checks)[20:60, 20:40]
    np.testing.assert_allclose(grey, 127.5, atol=12)


def test_picture_of_another_size_is_refused():
    _, report = align_track(dance(), figure(), size=SIZE)
    with pytest.raises(PerceptionError, match=r"expected \(H, W, C\) with the size \(600, 400\)"):
        report.image(np.zeros((400, 600, 3), np.uint8))


@pytest.mark.parametrize("kind", ["random", "far too large", "collapsed", "another place"])
@pytest.mark.parametrize("seed", range(3))
def test_a_third_of_bad_frames_does_little(kind: str, seed: int):
    """The first frame and 30 % of the others are wrong."""
    rng = np.random.default_rng(seed)
    clip = dance(60, seed=seed)
    body = clip.body.astype(np.float64)
    bad = np.r_[0, rng.choice(np.arange(1, 60), 17, replace=False)]
    body[bad, :, :2] = {
        "random": rng.uniform(0, 600, (18, 18, 2)),
        "far too large": body[bad, :, :2] * 6 - 500,
        "collapsed": body[bad, :, :2] * 0.01 + 50,
        "another place": body[bad, :, :2] + [250, -60],
    }[kind]
    aligned, report = align_track(track_of(body), person(figure()), size=SIZE)
    assert report.scale == pytest.approx(1, rel=0.03)
    good = np.setdiff1d(np.arange(60), bad)
    assert np.abs(aligned.body[good] - body[good]).max() < 15
    assert report.usable


def test_a_bad_first_frame_alone_does_nothing():
    clip = dance()
    body = clip.body.copy()
    body[0, :, :2] = np.random.default_rng(0).uniform(-3000, 3000, (18, 2))
    _, want = align_track(clip, figure(), size=SIZE)
    _, got = align_track(track_of(body), figure(), size=SIZE)
    assert got.scale == pytest.approx(want.scale, rel=0.005)
    np.testing.assert_allclose(got.offset, want.offset, atol=2)


def test_foreshortening_in_the_clip_does_not_make_the_person_large():
    """Shoulders and arms are seen at full length in every third frame only, the legs never shorten."""
    body = np.repeat(figure()[None], 30, axis=0)
    turned = np.arange(30) % 3 != 0
    body[turned, :, 0] = 200 + 0.4 * (body[turned, :, 0] - 200)
    _, report = align_track(track_of(body), figure(), size=SIZE)
    assert report.scale == pytest.approx(1, rel=0.01)


def test_turned_reference():
    """Shoulders and hips of the reference are foreshortened; torso and legs outvote them."""
    xy = STANDING.copy()
    xy[:, 0] = 200 + 0.5 * (xy[:, 0] - 200)
    _, report = align_track(dance(), figure(xy), size=SIZE)
    assert report.scale == pytest.approx(1, rel=0.02)


def test_jitter_does_not_make_the_person_small():
    body = np.repeat(figure()[None], 60, axis=0)
    body[..., :2] += np.random.default_rng(0).normal(0, 4, (60, 18, 2))
    _, report = align_track(track_of(body, face=False), figure(), size=SIZE)
    assert report.scale == pytest.approx(1, abs=0.04)


def test_what_is_seldom_seen_weighs_little():
    """Hips and knees are seen once, far too high: torso and thighs, most of the weight, make the person large."""
    body = dance(30, missing=[3, 4, 6, 7]).body.copy()
    body[1:, [8, 11, *KNEES]] = 0
    body[0, [8, 11], 1], body[0, KNEES, 1] = 150, 190
    _, report = align_track(track_of(body), figure(missing=FEET), size=SIZE)
    assert report.scale == pytest.approx(1, rel=0.02)


def test_segments_of_a_few_px_do_not_count():
    body = dance().body.copy()
    body[:, [14, 15], 0] = [199, 201]
    _, report = align_track(track_of(body), figure(), size=SIZE)
    assert "eyes" not in report.segments
    assert "ears" in report.segments


def test_weighted_quantile():
    assert _weighted_quantile(np.array([1.0, 0.0]), np.array([4.0, 6.0])) == 0.5
    assert _weighted_quantile(np.array([2.0, 0.0, 1.0]), np.array([3.0, 5.0, 2.0])) == 1.0
    values, counts = np.array([3.0, 7.0, 5.0]), np.array([3, 4, 6])
    plain = np.quantile(np.repeat(values, counts), 0.6, method="averaged_inverted_cdf")
    assert _weighted_quantile(values, counts.astype(float)) == plain


def test_one_frame():
    driving = moved(track_of(figure()[None]), scale=0.5, offset=(11, 3), size=(300, 300))
    aligned, report = align_track(driving, figure(), size=SIZE)
    np.testing.assert_allclose(aligned.body[0], figure(), atol=1e-2)
    assert report.score == pytest.approx(1, abs=1e-6)


def test_a_few_wrong_joints_in_the_reference():
    body = figure()
    body[[4, 10], :2] = [[20, 20], [390, 20]]
    _, report = align_track(dance(), body, size=SIZE)
    assert report.scale == pytest.approx(1, rel=0.01)
    assert report.usable


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        ((), BELOW_HIPS, "reference is seen down to the hips, the driving person down to the feet"),
        (BELOW_HIPS, (), "reference is seen down to the feet, the driving person down to the hips"),
        ((), BELOW_SHOULDERS, "reference is seen down to the shoulders, the driving person down to the feet"),
        (BELOW_SHOULDERS, FEET, "reference is seen down to the knees, the driving person down to the shoulders"),
        (BELOW_HIPS, BELOW_HIPS, None),
        (FEET, FEET, None),
        (LEFT_FOREARM, [2, 3, 4], None),
        ([8], (), None),
        ((), [1], None),
    ],
)
def test_part_of_the_body(ours, theirs, words):
    driving = moved(dance(missing=ours), scale=1.6, offset=(30, -20), size=(900, 700))
    aligned, report = align_track(driving, person(figure(missing=theirs)), size=SIZE)
    assert report.scale == pytest.approx(1 / 1.6, rel=0.01)
    np.testing.assert_allclose(aligned.body[:, 0], np.tile(figure()[0], (40, 1)), atol=2)
    assert report.usable
    assert [text for text in report.warnings if "seen down to" in text] == list(report.warnings)
    assert bool(report.warnings) == (words is not None)
    assert words is None or words in report.warnings[0]
    effect = "is driven without an image" if len(ours) < len(theirs) else "is not driven and may vanish"
    assert words is None or effect in report.warnings[0]
    assert not aligned.body[:, list(ours)].any(), "missing joints stay missing"


@pytest.mark.parametrize("body_too", [False, True])
def test_face_alone(body_too: bool):
    """A close-up: only the face's landmarks, or eyes, ears and nose as well."""
    head = figure(missing=NOT_HEAD if body_too else range(18))
    close = moved(track_of(np.repeat(head[None], 5, axis=0)), scale=3, offset=(-100, 0), size=(600, 800))
    aligned, report = align_track(close, person(figure()), size=SIZE)
    assert report.scale == pytest.approx(1 / 3, rel=1e-3)
    np.testing.assert_allclose(aligned.face[0, :, :2], FACE, atol=0.1)
    assert "rough guess" in " ".join(report.warnings)
    assert report.anchor == ("nose" if body_too else "face")


def test_posture_in_legs_that_sit():
    xy = STANDING.copy()
    xy[KNEES] = [[170, 285], [230, 285]]
    xy[FEET] = [[170, 390], [230, 390]]
    _, report = align_track(dance(), figure(xy), size=SIZE)
    assert any("the reference sits or kneels and the driving person stands" in text for text in report.warnings)
    assert report.scale == pytest.approx(1, rel=0.01)
    assert not report.ground
    assert not any(name.endswith(("thigh", "shin")) for name in report.segments)
    assert report.score < 0.65

    sitting = track_of(np.repeat(figure(xy)[None], 8, axis=0))
    _, report = align_track(sitting, figure(), size=SIZE)
    assert any("the reference stands and the driving person sits or kneels" in text for text in report.warnings)
    _, report = align_track(sitting, figure(xy), size=SIZE)
    assert report.warnings == ()
    assert "left thigh" in report.segments


def test_ground_does_not_count_between_postures():
    """On a high stool the feet are where they would be standing."""
    xy = STANDING.copy()
    xy[KNEES, 1] = 290
    _, report = align_track(dance(), figure(xy), size=SIZE)
    assert any("sits or kneels" in text for text in report.warnings)
    assert not report.ground


def test_posture_kneeling():
    xy = STANDING.copy()
    xy[FEET] = [[140, 385], [260, 385]]
    _, report = align_track(dance(), figure(xy), size=SIZE)
    assert any("sits or kneels" in text for text in report.warnings)


def test_a_leg_kicked_up_is_standing():
    xy = STANDING.copy()
    xy[9], xy[10] = (100, 250), (20, 240)
    _, report = align_track(dance(), figure(xy), size=SIZE)
    assert report.warnings == ()


def test_back_view():
    xy = STANDING.copy()
    xy[:, 0] = 400 - xy[:, 0]
    _, report = align_track(dance(), figure(xy), size=SIZE)
    assert any("one of the two shows the back or is mirrored" in text for text in report.warnings)
    assert report.scale == pytest.approx(1, rel=0.01)
    body = dance().body.copy()
    body[:16, :, 0] = 400 - body[:16, :, 0]  # turns round for 40 % of the clip
    assert align_track(track_of(body), figure(), size=SIZE)[1].warnings == ()


def test_profile_is_neither_front_nor_back():
    xy = STANDING.copy()
    xy[:, 0] = 200 - 0.1 * (xy[:, 0] - 200)
    _, report = align_track(dance(), figure(xy), size=SIZE)
    assert not any("back" in text for text in report.warnings)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.8])
def test_leaving_the_picture(share: float):
    body = dance(50).body.copy()
    gone = slice(50 - round(50 * share), 50)
    # Far enough that aligning by the resting place cannot bring both places into the image.
    body[gone, :, 0] += 900
    _, report = align_track(track_of(body, size=(600, 1400)), figure(), size=SIZE)
    expected = min(share, 1 - share)
    assert any("leaves the reference image in" in text for text in report.warnings) == (expected > 0)
    assert expected == 0 or f"{expected:.0%} of the frames" in " ".join(report.warnings)
    assert report.score == pytest.approx(1 - expected, abs=0.05)


@pytest.mark.parametrize("gone", [slice(5, 12), slice(1, 17)])
def test_frames_without_the_person(gone: slice):
    clip = dance(20)
    body, hands, face = clip.body.copy(), clip.hands.copy(), clip.face.copy()
    for points in (body, hands, face):
        points[gone] = 0
    aligned, report = align_track(replace(clip, body=body, hands=hands, face=face), figure(), size=SIZE)
    share = (gone.stop - gone.start) / 20
    assert report.score == pytest.approx(1 - share, abs=0.02)
    assert not aligned.body[gone].any()
    assert not aligned.face[gone].any()


def test_single_joints_outside_the_picture_are_not_leaving():
    body = dance().body.copy()
    body[:, [4, 7], 1] = -60
    _, report = align_track(track_of(body), figure(), size=SIZE)
    assert report.warnings == ()


def test_resting_place():
    """A little more than half of the time near one place, else far away."""
    body = np.repeat(figure()[None], 100, axis=0)
    body[:54, :, 0] += np.linspace(-20, 20, 54)[:, None]
    body[54:, :, 0] += 700
    _, report = align_track(track_of(body, size=(600, 1400)), figure(), size=SIZE)
    assert report.offset[0] == pytest.approx(0, abs=5)


def test_neck_seen_half_of_the_time_is_still_the_anchor():
    body = dance().body.copy()
    body[::2, [1, 2, 5]] = 0
    assert align_track(track_of(body), figure(), size=SIZE)[1].anchor == "neck"
    body[:, [1, 2, 5]] = 0
    assert align_track(track_of(body), figure(), size=SIZE)[1].anchor == "middle of the hips"


def test_shoulders_stand_in_for_the_neck():
    _, report = align_track(dance(missing=[1]), figure(missing=[1]), size=SIZE)
    assert report.anchor == "neck"
    np.testing.assert_allclose(report.offset, 0, atol=2)


@pytest.mark.parametrize(("factor", "limit"), [(0.01, 8.0), (30.0, 1 / 8)])
def test_scale_is_limited(factor: float, limit: float):
    driving = moved(dance(), scale=factor, offset=(50, 50), size=SIZE)
    _, report = align_track(driving, figure(), size=SIZE)
    assert report.scale == pytest.approx(limit)
    assert any("limited to" in text for text in report.warnings)
    assert not report.usable


def test_large_pictures_do_not_count_as_large_scales():
    driving = moved(dance(), scale=12, offset=(0, 0), size=(7200, 4800))
    _, report = align_track(driving, figure(), size=SIZE)
    assert report.scale == pytest.approx(1 / 12, rel=0.01)
    assert report.usable


def test_ground_is_kept_when_it_agrees():
    """The dancer bends the knees most of the time: the neck would lift the feet off the ground."""
    body = np.repeat(figure()[None], 20, axis=0)
    upper = [0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 14, 15, 16, 17]
    body[::2][:, upper, 1] += 12
    body[1::4][:, upper, 1] += 12
    aligned, report = align_track(track_of(body), figure(), size=SIZE)
    assert report.ground
    np.testing.assert_allclose(aligned.body[:, FEET, 1], 490, atol=3)
    np.testing.assert_allclose(aligned.body[:, [1], 0], 200, atol=1)


def test_jumps_do_not_move_the_ground():
    body = np.repeat(figure()[None], 20, axis=0)
    body[:12, :, 1] -= np.linspace(5, 35, 12)[:, None]
    aligned, report = align_track(track_of(body), figure(), size=SIZE)
    assert report.ground
    np.testing.assert_allclose(aligned.body[12:, FEET, 1], 490, atol=1)


def test_short_legs_hang_from_the_neck():
    xy = STANDING.copy()
    xy[KNEES, 1], xy[FEET, 1] = 330, 390
    aligned, report = align_track(dance(), figure(xy), size=SIZE)
    assert not report.ground
    np.testing.assert_allclose(aligned.body[:, 1, :2], [[200, 130]] * 40, atol=1)
    assert report.score == pytest.approx(1 - 9 / 21.5), "legs and height, 9 of the weight 21.5, do not agree"


@pytest.mark.parametrize("scale", [0.2, 0.5, 1.0, 2.2])
@pytest.mark.parametrize("missing", [(), BELOW_HIPS, NOT_HEAD, LEFT_FOREARM])
def test_twice_is_once(scale: float, missing):
    driving = moved(dance(seed=3, missing=missing), scale=scale, offset=(31, 9), size=(500, 500))
    reference = person(figure(STANDING * 1.2 - 20))
    once, first = align_track(driving, reference, size=SIZE)
    twice, second = align_track(once, reference, size=SIZE)
    for name in ("body", "hands", "face"):
        np.testing.assert_allclose(getattr(twice, name), getattr(once, name), atol=0.02)
    assert second.scale == pytest.approx(1, abs=1e-5)
    assert (second.score, second.segments) == (pytest.approx(first.score), first.segments)


@pytest.mark.parametrize("seed", range(100))
def test_random_visibility(seed: int):
    """Whatever is seen of the two, the scale is right, or they are refused because nothing can be compared."""
    rng = np.random.default_rng(seed)
    ours, theirs = (np.flatnonzero(rng.uniform(size=18) < rng.uniform(0, 0.9)) for _ in range(2))
    scale, offset = math.exp(rng.uniform(-1.5, 1.5)), rng.uniform(-200, 200, 2)
    driving = moved(dance(12, seed=seed, missing=ours), scale=scale, offset=tuple(offset), size=(500, 500))
    driving = replace(driving, face=driving.face * rng.integers(0, 2))
    common = np.setdiff1d(np.arange(18), [*ours, *theirs])
    try:
        aligned, report = align_track(driving, person(figure(missing=theirs)), size=SIZE)
    except PerceptionError as error:
        refused = str(error)
    else:
        refused = ""
    if refused:
        assert "choose" in refused
        assert not {(1, 8), (1, 11), (1, 2), (1, 0), (2, 5), (8, 9), (11, 12), (9, 10), (3, 2), (5, 6)} & {
            (start, end) for start in common for end in common
        }
        return
    swinging = all("arm" in name for name in report.segments)  # the high quantile of 12 frames is not the whole arm
    assert report.scale * scale == pytest.approx(1, rel=0.1 if swinging else 0.02)
    still = np.setdiff1d(common, [3, 4, 6, 7])
    if not swinging:
        np.testing.assert_allclose(aligned.body[:, still, :2], np.tile(STANDING[still], (12, 1, 1)), atol=6)


def random_points(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Points over many orders of magnitude, most of them seen."""
    points = rng.normal(0, 10 ** rng.uniform(-3, 5), (*shape, 3)) + rng.uniform(-500, 1500)
    points[..., :2] = points[..., :2].clip(-1e6, 1e6)
    points[..., 2] = rng.uniform(0, 1, shape) * (rng.uniform(0, 1, shape) < rng.uniform(0.05, 1))
    points[..., :2] *= points[..., 2:] > 0
    return points


@pytest.mark.parametrize("seed", range(300))
def test_random_tracks(seed: int):
    """Never NaN, every limb exactly scaled, sane report; what cannot be aligned is refused with advice."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 12))
    driving = PoseTrack(
        body=random_points(rng, count, 18),
        hands=random_points(rng, count, 2, 21),
        face=random_points(rng, count, 68),
        size=tuple(rng.integers(1, 3000, 2).tolist()),
        times=np.arange(count) / 8,
        frame_index=np.arange(count),
    )
    reference = replace(person(random_points(rng, 18)), face=random_points(rng, 68))
    size = tuple(rng.integers(1, 3000, 2).tolist())
    try:
        aligned, report = align_track(driving, reference if seed % 2 else reference.body, size=size)
    except PerceptionError as error:
        refused = str(error)
    else:
        refused = ""
    if refused:
        assert "choose" in refused
        return
    for name in ("body", "hands", "face"):
        assert np.isfinite(getattr(aligned, name)).all()
    assert np.isfinite(report.matrix).all()
    assert report.scale > 0
    assert 0 <= report.score <= 1
    relative = report.scale * driving.size[0] / size[0]
    assert 0.125 * (1 - 1e-9) <= relative <= 8 * (1 + 1e-9)
    before, after = lengths(driving.body), lengths(aligned.body)
    assert (after <= report.scale * before * (1 + 1e-3) + 1).all()
    if np.abs(aligned.body[..., :2]).max() < 2e4 and not any("limited" in text for text in report.warnings):
        again, second = align_track(aligned, reference if seed % 2 else reference.body, size=size)
        assert np.abs(again.body - aligned.body).max() < 1
        assert report.score == pytest.approx(second.score, abs=1e-6)


def test_low_confidence_counts_as_missing():
    body = figure()
    body[:, 2] = 0.29
    with pytest.raises(PerceptionError, match=r"reference image shows no joint .* choose an image"):
        align_track(dance(), body, size=SIZE)
    dim = dance().body.copy()
    dim[..., 2] *= 0.2
    with pytest.raises(PerceptionError, match=r"none of the 40 driving frames shows a joint .* choose a video"):
        align_track(track_of(dim, face=False), figure(), size=SIZE)


def test_nothing_in_common():
    legs = figure(missing=[*range(8), 14, 15, 16, 17])
    with pytest.raises(PerceptionError, match=r"down to the feet, the driving person down to the shoulders; choose"):
        align_track(track_of(np.repeat(figure(missing=range(8, 14))[None], 4, axis=0)), legs, size=SIZE)
    with pytest.raises(PerceptionError, match="no part of the body could be compared"):
        align_track(dance(), figure(missing=range(1, 18)), size=SIZE)
    dot = np.column_stack([np.full((18, 2), 100.0), np.ones(18)])
    with pytest.raises(PerceptionError, match="no part of the body could be compared"):
        align_track(dance(), dot, size=SIZE)
    with pytest.raises(PerceptionError, match="no part of the body could be compared"):
        align_track(dance(), figure(STANDING * 0.002), size=SIZE)


@pytest.mark.parametrize("bad", [np.zeros((17, 3)), np.full((18, 3), np.nan), np.full((18, 3), "a"), figure() * 1e9])
def test_bad_reference(bad: np.ndarray):
    with pytest.raises(PerceptionError, match=r"keypoints of the reference .* expected finite \(18, 3\)"):
        align_track(dance(), bad, size=SIZE)
    with pytest.raises(PerceptionError, match=r"expected finite \(68, 3\)"):
        align_track(dance(), replace(person(figure()), face=np.zeros((5, 3))), size=SIZE)


def test_bad_size():
    with pytest.raises(PerceptionError, match=r"size of the reference image is \(0, 5\)"):
        align_track(dance(), figure(), size=(0, 5))


def test_report_in_words():
    _, report = align_track(dance(), figure(), size=SIZE)
    assert str(report).startswith("driving person scaled by 1.0")
    assert "placed by neck and ground; score 1.00" in str(report)


@pytest.mark.parametrize(("name", "scale"), [("person_1.jpg", 0.955), ("person_2.jpg", 0.94)])
@pytest.mark.long
def test_real_pictures(shared_dir, tmp_path, name: str, scale: float):
    """Neck and feet of the dancer come to those of a photograph and of a painting."""
    pytest.importorskip("mediapipe")
    backend = get_backend("mediapipe")
    picture = read_image(shared_dir / "data" / name)
    reference = backend.detect(picture)[0]
    driving = track_person(
        shared_dir / "data" / "dance_1.mp4",
        frame_indices=np.linspace(0, 560, 30).astype(int),
        backend=backend,
        cache_dir=tmp_path,
    )
    aligned, report = align_track(driving, reference, size=picture.shape[:2])
    assert report.usable
    assert report.score > 0.7
    assert report.warnings == ()
    assert report.scale == pytest.approx(scale, rel=0.05)
    neck, ankles = np.median(aligned.body[:, 1, :2], axis=0), np.median(aligned.body[:, FEET, 1].max(axis=1))
    height = reference.body[FEET, 1].max() - reference.body[1, 1]
    assert abs(neck - reference.body[1, :2]).max() < 0.1 * height
    assert abs(ankles - reference.body[FEET, 1].max()) < 0.05 * height
    again, _ = align_track(aligned, reference, size=picture.shape[:2])
    assert np.abs(again.body - aligned.body).max() < 0.1
