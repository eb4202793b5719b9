"""Retargeting: angles stay, lengths become the reference's, hidden limbs, ground, partial bodies, faces."""

import math
from dataclasses import replace

import numpy as np
import pytest

from tests.unit.perception.test_align import (
    FACE,
    FEET,
    SIZE,
    STANDING,
    dance,
    figure,
    lengths,
    moved,
    person,
    track_of,
)
from xdyna.perception import PerceptionError, PoseTrack
from xdyna.perception.figure import figure_of
from xdyna.perception.retarget import MODES, fit_track, head_turns
from xdyna.perception.topology import BODY_LIMBS

# Bones whose angle is kept: neck to hip follows from torso and hips, each of which keeps its own.
BONES = [(2, 3), (3, 4), (5, 6), (6, 7), (8, 9), (9, 10), (11, 12), (12, 13), (1, 0), (2, 5), (8, 11)]


def built(xy: np.ndarray = STANDING, *, arms=1.0, legs=1.0, torso=1.0, shoulders=1.0, head=1.0) -> np.ndarray:
    """`STANDING` or a clip (..., 18, 2) with other lengths, its neck where it was."""
    new, hips = np.array(xy), (xy[..., [8], :] + xy[..., [11], :]) / 2
    new_hips = xy[..., [1], :] + torso * (hips - xy[..., [1], :])
    for joints, parent, factor in (((2, 5), 1, shoulders), ((3, 6), (2, 5), arms), ((4, 7), (3, 6), arms)):
        for k, joint in enumerate(joints):
            at = parent if isinstance(parent, int) else parent[k]
            new[..., joint, :] = new[..., at, :] + factor * (xy[..., joint, :] - xy[..., at, :])
    for joint in (8, 11):
        new[..., joint, :] = new_hips[..., 0, :] + xy[..., joint, :] - hips[..., 0, :]
    for joint, at in ((9, 8), (10, 9), (12, 11), (13, 12)):
        new[..., joint, :] = new[..., at, :] + legs * (xy[..., joint, :] - xy[..., at, :])
    for joint in (0, 14, 15, 16, 17):
        new[..., joint, :] = xy[..., 1, :] + head * (xy[..., joint, :] - xy[..., 1, :])
    return new


def angles(body: np.ndarray) -> np.ndarray:
    """(T, B) directions of the bones, rad."""
    steps = np.stack([body[:, b, :2].astype(np.float64) - body[:, a, :2] for a, b in BONES], axis=1)
    return np.arctan2(steps[..., 1], steps[..., 0])


def distance(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(np.angle(np.exp(1j * (first - second)))).max())


@pytest.mark.parametrize(("scale", "offset"), [(1.0, (0, 0)), (0.4, (70, 33)), (2.6, (-300, 41.5))])
@pytest.mark.parametrize("mode", ["global", "bones", "auto"])
def test_one_person_seen_by_another_camera_comes_back(mode, scale, offset):
    clip = dance()
    driving = moved(clip, scale=1 / scale, offset=(-offset[0] / scale, -offset[1] / scale), size=(800, 700))
    fit = fit_track(driving, person(figure()), size=SIZE, mode=mode)
    for name in ("body", "hands", "face"):
        np.testing.assert_allclose(getattr(fit.track, name), getattr(clip, name), atol=3)
    assert fit.report.mode == ("global" if mode == "global" else "bones")
    assert fit.report.usable
    assert fit.track.size == SIZE


BUILDS = [{"arms": 1.4}, {"legs": 0.75}, {"torso": 0.8, "head": 1.5}, {"shoulders": 1.3, "arms": 0.7, "legs": 1.2}]


@pytest.mark.parametrize("build", BUILDS, ids=str)
def test_angles_are_kept_and_lengths_are_the_references(build):
    """The truth is the same dance with the other build's bones."""
    clip = dance()
    driving = moved(clip, scale=0.5, offset=(31, 7), size=(400, 300))
    truth = built(clip.body[..., :2].astype(np.float64), **build)
    reference = figure(built(**build))
    fit = fit_track(driving, person(reference, face=False), size=SIZE, mode="bones")
    assert distance(angles(fit.track.body), angles(driving.body)) < 1e-4
    off = np.linalg.norm(fit.track.body[..., :2] - truth, axis=-1).mean()
    plain = fit_track(driving, person(reference, face=False), size=SIZE, mode="global").track
    assert off < 4
    assert off < 0.35 * np.linalg.norm(plain.body[..., :2] - truth, axis=-1).mean()
    starts, ends = np.array(BODY_LIMBS).T
    full = np.linalg.norm(reference[starts, :2] - reference[ends, :2], axis=-1)
    limbs = [k for k, limb in enumerate(BODY_LIMBS) if limb in BONES]
    np.testing.assert_allclose(np.quantile(lengths(fit.track.body), 0.75, axis=0)[limbs], full[limbs], rtol=0.06)


def test_foreshortening_of_the_moment_stays():
    """An arm that points at the camera is as short in the result, in parts of its length."""
    body = np.repeat(figure()[None], 20, axis=0)
    body[7, 3, :2] = body[7, 2, :2] + 0.3 * (body[7, 3, :2] - body[7, 2, :2])
    fit = fit_track(track_of(body), figure(built(arms=1.5)), size=SIZE, mode="bones")
    arm = np.linalg.norm(fit.track.body[:, 3, :2] - fit.track.body[:, 2, :2], axis=1)
    assert arm[7] / arm[8] == pytest.approx(0.3, abs=0.01)


def test_hidden_limbs_take_their_neighbours_or_the_torsos_ratio():
    reference = figure(built(arms=1.4), missing=[4, 7, *range(9, 14), 10])
    ratios = fit_track(dance(), reference, size=SIZE, mode="bones").report.ratios
    assert ratios["forearms"] == pytest.approx(ratios["upper arms"])
    assert ratios["upper arms"] == pytest.approx(1.4, rel=0.05)
    for part in ("thighs", "shins"):
        assert ratios[part] == pytest.approx(ratios["torso"])
    assert ratios["torso"] == pytest.approx(1, rel=0.02)


def test_the_other_side_stands_in():
    """One forearm of the reference points at the camera, the other one tells the length."""
    xy = built(arms=1.3)
    xy[4] = xy[3] + 0.2 * (xy[4] - xy[3])
    ratios = fit_track(dance(), figure(xy), size=SIZE, mode="bones").report.ratios
    assert ratios["forearms"] == pytest.approx(1.3, rel=0.06)


def test_ratios_stay_within_bounds():
    """Both forearms point at the camera: their length is not believed. Heads may be of any size."""
    xy = built(head=2.9)
    for joint, elbow in ((4, 3), (7, 6)):
        xy[joint] = xy[elbow] + 0.1 * (xy[joint] - xy[elbow])
    ratios = fit_track(dance(), figure(xy), size=SIZE, mode="bones").report.ratios
    assert ratios["forearms"] == pytest.approx(ratios["torso"] / 2)
    assert ratios["neck"] == pytest.approx(2.9 * ratios["torso"], rel=0.05)


def test_feet_stand_on_the_references_ground():
    """Knees bend and the person wanders; legs are a third longer in the reference."""
    count = 30
    body = np.repeat(figure()[None], count, axis=0)
    body[..., 0] += 40 * np.sin(np.arange(count) / 5)[:, None]
    bend = 30 * np.abs(np.sin(np.arange(count) / 3))
    body[:, :9, 1] += bend[:, None]
    body[:, 11, 1] += bend
    body[:, 14:, 1] += bend[:, None]
    reference = figure(built(legs=1.3) * 0.9 + [20, 0])
    fit = fit_track(moved(track_of(body), scale=0.6, offset=(9, 4), size=SIZE), reference, size=SIZE, mode="bones")
    ground = reference[FEET, 1].max()
    np.testing.assert_allclose(fit.track.body[:, FEET, 1].max(axis=1), ground, atol=2)
    middle = fit.track.body[:, FEET, 0].mean(axis=1)
    assert np.median(middle) == pytest.approx(reference[FEET, 0].mean(), abs=2)
    assert np.ptp(middle) == pytest.approx(0.6 * fit.report.scale * np.ptp(body[:, 10, 0]), rel=0.02)


def test_a_sitting_reference_does_not_shorten_the_legs():
    sitting = np.array(STANDING)
    sitting[[9, 12], 1], sitting[[10, 13], 1] = sitting[[8, 11], 1] + 8, sitting[[8, 11], 1] + 60
    report = fit_track(dance(), figure(sitting), size=SIZE, mode="bones").report
    assert report.ratios["thighs"] == report.ratios["shins"] == report.ratios["torso"]


def test_partial_bodies():
    """A missing elbow is bridged, a frame without a neck is placed as its neighbours are; nothing appears."""
    clip = dance(20)
    body = clip.body.copy()
    body[5, 6] = 0
    body[9, [1, 2, 5]] = 0
    body[12] = 0
    reference = person(figure(built(legs=1.3, arms=1.2)))
    fit = fit_track(replace(clip, body=body), reference, size=SIZE)
    whole = fit_track(clip, reference, size=SIZE)
    assert (fit.track.body[..., 2] == body[..., 2]).all()
    assert not fit.track.body[body[..., 2] == 0].any()
    assert np.linalg.norm(fit.track.body[5, 7, :2] - whole.track.body[5, 7, :2]) < 12
    seen = body[9, :, 2] > 0
    assert np.abs(fit.track.body[9, seen, :2] - whole.track.body[9, seen, :2]).max() < 90
    assert np.isfinite(fit.track.body).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(12))
def test_anything_goes_in(mode, seed):
    """Random joints missing on both sides, odd sizes: finite, nothing appears, nothing beyond what a track holds."""
    rng = np.random.default_rng([seed, 77])
    clip = dance(12, seed=seed, missing=rng.choice(18, int(rng.integers(0, 9)), replace=False))
    body = clip.body.copy()
    body[rng.uniform(size=body.shape[:2]) < 0.2] = 0
    driving = replace(clip, body=body)
    xy = STANDING * rng.uniform(0.2, 2) + rng.normal(0, 5, (18, 2))
    reference = person(figure(xy, missing=rng.choice(18, int(rng.integers(0, 9)), replace=False)))
    try:
        fit = fit_track(driving, reference, size=SIZE, mode=mode)
    except PerceptionError:  # what cannot be compared is refused: see below and test_align.py
        return
    for name in ("body", "hands", "face"):
        got, before = getattr(fit.track, name), getattr(driving, name)
        assert np.isfinite(got).all()
        np.testing.assert_array_equal(got[..., 2], before[..., 2])
    assert 0 <= fit.report.score <= 1
    assert fit.heads is None or np.isfinite(fit.heads).all()


def test_the_heads_image_lands_on_the_landmarks():
    """The similarity of each frame takes the driving face to where the track has it."""
    driving = moved(dance(10), scale=0.7, offset=(5, 9), size=SIZE)
    fit = fit_track(driving, person(figure(built(head=1.6, torso=0.9))), size=SIZE, mode="bones")
    assert fit.heads is not None
    scale, offset = fit.heads[:, None, :1], fit.heads[:, None, 1:]
    np.testing.assert_allclose(scale * driving.face[..., :2] + offset, fit.track.face[..., :2], atol=1e-3)
    for joint in (0, 16):
        np.testing.assert_allclose(
            fit.heads[:, :1] * driving.body[:, joint, :2] + fit.heads[:, 1:], fit.track.body[:, joint, :2], atol=1e-2
        )


# --- faces


def head(turn: float, *, size: float = 1.0, at=(200.0, 200.0)) -> np.ndarray:
    """68 landmarks on a ball that turns by `turn` rad, px."""
    face = np.zeros((68, 3))
    face[:17, 0], face[:17, 1] = np.linspace(-1, 1, 17), 0.2 + 0.9 * np.cos(np.linspace(-1.4, 1.4, 17))
    face[17:27] = [(x, -0.4, 0.6) for x in np.linspace(-0.6, 0.6, 10)]
    face[27:36] = [(0, -0.1 + 0.1 * k, 1.0) for k in range(4)] + [(0.1 * k - 0.2, 0.35, 0.9) for k in range(5)]
    face[36:48] = [(-0.4 + 0.1 * np.cos(k), -0.2, 0.8) for k in range(6)] + [
        (0.4 + 0.1 * np.cos(k), -0.2, 0.8) for k in range(6)
    ]
    face[48:] = [(0.3 * np.cos(k), 0.6 + 0.1 * np.sin(k), 0.8) for k in range(20)]
    x = face[:, 0] * math.cos(turn) + face[:, 2] * math.sin(turn)
    return np.column_stack([60 * size * np.stack([x, face[:, 1]], axis=1) + at, np.ones(68)])


def close_up(turns, **changes) -> PoseTrack:
    faces = np.stack([head(turn, **changes) for turn in turns])
    body = np.zeros((len(faces), 18, 3))
    body[:, 0], body[:, 14], body[:, 15] = faces[:, 30], faces[:, 36:42].mean(1), faces[:, 42:48].mean(1)
    return PoseTrack(
        body=body, hands=np.zeros((len(faces), 2, 21, 3)), face=faces, size=SIZE, times=np.arange(len(faces)) / 8,
        frame_index=np.arange(len(faces)),
    )  # fmt: skip


def test_the_frame_with_the_references_turn_gives_the_scale():
    """The reference looks to the side; the driving person does so once and is twice as large."""
    driving = close_up([0.0] * 9 + [0.7] + [0.0] * 6, size=2.0, at=(300, 210))
    reference = replace(person(figure()), body=close_up([0.7]).body[0], face=close_up([0.7]).face[0])
    fit = fit_track(driving, reference, size=SIZE, mode="face")
    assert (fit.report.mode, fit.report.frame, fit.report.anchor) == ("face", 9, "face")
    assert fit.report.scale == pytest.approx(0.5, rel=0.01)
    plain = fit_track(driving, reference, size=SIZE, mode="global").report.scale
    assert abs(plain - 0.5) > 0.02, "the whole clip tells less"
    assert fit_track(driving, reference, size=SIZE).report.mode == "face"
    np.testing.assert_allclose(fit.track.face[0, :, :2].mean(0), reference.face[:, :2].mean(0), atol=8)


def test_auto_takes_one_similarity_for_heads_that_are_turned_alike():
    driving, reference = close_up(np.linspace(-0.1, 0.1, 12), size=1.5), close_up([0.02])
    still = replace(person(figure()), body=reference.body[0], face=reference.face[0])
    assert fit_track(driving, still, size=SIZE).report.mode == "global"


def test_head_turns_are_told_by_the_landmarks():
    turns = head_turns(figure_of(close_up([-0.4, 0.0, 0.4]).body, close_up([-0.4, 0.0, 0.4]).face))
    assert turns[0, 0] < -0.2 < abs(turns[1, 0]) + 0.1 < 0.2 < turns[2, 0]
    none = figure_of(np.zeros((2, 18, 3)), np.zeros((2, 68, 3)))
    assert np.isnan(head_turns(none)).all()


def test_no_face_and_unknown_modes_are_refused():
    with pytest.raises(PerceptionError, match="needs a face in the reference and in the driving video"):
        fit_track(replace(dance(), face=np.zeros((40, 68, 3))), person(figure()), size=SIZE, mode="face")
    with pytest.raises(
        PerceptionError, match="alignment 'hands' is unknown; expected one of auto, global, bones, face"
    ):
        fit_track(dance(), figure(), size=SIZE, mode="hands")


def test_the_report_says_what_was_done():
    fit = fit_track(dance(), person(figure(built(arms=1.4))), size=SIZE)
    assert "; bones by 1.00 to 1.4" in str(fit.report) or "; bones by 0.9" in str(fit.report)
    assert set(fit.report.ratios) == {
        "torso", "neck", "shoulders", "upper arms", "forearms", "hips", "thighs", "shins", "head", "hands",
    }  # fmt: skip
    assert FACE.shape == (68, 2)


# --- what stands between the parts


def still(count: int = 20) -> np.ndarray:
    """(T, 18, 3) somebody who stands still."""
    return np.repeat(figure()[None], count, axis=0)


def bones(body: np.ndarray, reference: np.ndarray):
    return fit_track(track_of(body), person(reference, face=False), size=SIZE, mode="bones")


def test_a_bridged_way_has_the_lengths_of_all_its_parts():
    """Upper arms are 1.6 times as long, forearms are not; without an elbow the wrist is where it was."""
    xy = np.array(STANDING)
    for shoulder, elbow, wrist in ((2, 3, 4), (5, 6, 7)):
        step = 0.6 * (xy[elbow] - xy[shoulder])
        xy[elbow], xy[wrist] = xy[elbow] + step, xy[wrist] + step
    body = still()
    body[5, 3] = 0
    got = bones(body, figure(xy)).track.body
    assert np.linalg.norm(got[5, 4, :2] - got[4, 4, :2]) < 5
    assert np.linalg.norm(got[4, 4, :2] - body[4, 4, :2]) > 30


def test_an_eye_without_a_nose_is_bridged_by_neck_and_half_a_neck_of_head():
    xy = np.array(STANDING)
    xy[[0, 14, 15, 16, 17], 1] -= 30  # a longer neck, the same head
    body = still()
    body[5, 0] = 0
    fit = bones(body, figure(xy))
    ratios = fit.report.ratios
    assert ratios["neck"] > 1.3 * ratios["head"]
    along = (0.5 * ratios["head"] + ratios["neck"]) / 1.5
    step = fit.track.body[5, 14, :2] - fit.track.body[5, 1, :2]
    np.testing.assert_allclose(step, along * (body[5, 14, :2] - body[5, 1, :2]), atol=0.1)


def test_hands_go_with_their_wrists():
    """Where a wrist is missing, its hand stays where one similarity puts it."""
    clip = dance(20)
    body = clip.body.copy()
    body[5, 7] = 0
    fit = fit_track(replace(clip, body=body), figure(built(arms=1.4)), size=SIZE, mode="bones")
    for side, wrist in enumerate((7, 4)):
        rows = body[:, wrist, 2] > 0
        np.testing.assert_allclose(fit.track.hands[rows, side, 0, :2], fit.track.body[rows, wrist, :2], atol=1e-2)
    shift = fit.track.body[5, 1, :2] - (fit.report.scale * body[5, 1, :2] + fit.report.offset)
    plain = fit.report.scale * clip.hands[5, 0, :, :2].mean(0) + fit.report.offset + shift
    np.testing.assert_allclose(fit.track.hands[5, 0, :, :2].mean(0), plain, atol=0.1)


def test_other_lengths_lower_no_score():
    reference = figure(built(arms=1.4, legs=0.7))
    one = fit_track(dance(), reference, size=SIZE, mode="global").report
    each = fit_track(dance(), reference, size=SIZE, mode="bones").report
    assert one.agreement < 0.9
    assert each.score == pytest.approx(min(one.score / one.agreement, 1))


def test_a_limited_scale_is_not_usable():
    driving = moved(dance(), scale=0.05, offset=(50, 50), size=SIZE)
    report = fit_track(driving, figure(), size=SIZE, mode="bones").report
    assert report.limited
    assert report.score == 1
    assert not report.usable


def test_one_side_alone_is_believed_less():
    """A short forearm may point at the camera, and there is no other one."""
    xy = np.array(STANDING)
    xy[7] = xy[6] + 0.7 * (xy[7] - xy[6])
    ratios = fit_track(dance(), figure(xy, missing=[4]), size=SIZE, mode="bones").report.ratios
    assert ratios["forearms"] / ratios["torso"] == pytest.approx(0.7**0.8, rel=0.03)


def test_who_sits_is_not_put_on_the_ground():
    sitting = np.array(STANDING)
    sitting[[9, 12], 1], sitting[[10, 13], 1] = sitting[[8, 11], 1] + 8, sitting[[8, 11], 1] + 60
    fit = fit_track(dance(), figure(sitting), size=SIZE, mode="bones")
    assert fit.report.anchor == "neck"
    plain = fit_track(dance(), figure(sitting), size=SIZE, mode="global").track
    np.testing.assert_allclose(fit.track.body[:, 1], plain.body[:, 1], atol=1e-2)


def test_a_frame_without_feet_or_nose_is_placed_as_its_neighbours():
    body = still()
    body[7, 10] = body[9, 0] = 0
    fit = bones(body, figure(built(legs=1.3, head=1.4)))
    np.testing.assert_allclose(fit.track.body[7, 1, :2], fit.track.body[6, 1, :2], atol=0.5)
    assert fit.heads[9, 0] == pytest.approx(fit.report.scale)
    assert fit.heads[8, 0] == pytest.approx(fit.report.ratios["head"])
    assert fit.heads[8, 0] > 1.1 * fit.heads[9, 0]


def test_lengths_of_a_clip_are_taken_as_high():
    """Forearms that point at the camera more or less: what they are at full length counts."""
    body = still(41)
    for elbow, wrist in ((3, 4), (6, 7)):
        step = np.linspace(0.4, 1, 41)[:, None] * (STANDING[wrist] - STANDING[elbow])
        body[:, wrist, :2] = STANDING[elbow] + step
    ratios = bones(body, figure()).report.ratios
    assert ratios["forearms"] / ratios["torso"] == pytest.approx(1 / 0.85, rel=0.03)


@pytest.mark.parametrize(("palm", "ratio"), [(13.5, 1.5), (60, 2)])
def test_palms_tell_the_size_of_hands_within_bounds(palm, ratio):
    """The clip's palms are 9 px long."""
    hands = np.zeros((2, 21, 3))
    hands[0, :, 0], hands[0, :, 1], hands[0, :, 2] = np.arange(21) * palm / 9, 255, 0.9
    ratios = fit_track(dance(), replace(person(figure()), hands=hands), size=SIZE, mode="bones").report.ratios
    assert ratios["hands"] / ratios["torso"] == pytest.approx(ratio, rel=0.02)
