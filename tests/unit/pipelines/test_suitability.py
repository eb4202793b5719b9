"""Each check sees what it is for, and says what to do; the pair is as good as its weakest check."""

from dataclasses import replace

import numpy as np
import pytest

from tests.unit.perception.test_align import SIZE, STANDING, dance, figure, moved, person, track_of
from xdyna.media import CropResize
from xdyna.perception import Person, PoseTrack
from xdyna.pipelines.suitability import REFUSE, WARN, Check, Suitability, SuitabilityError, assess

WHOLE = CropResize(box=(0, 0, 400, 600), size=SIZE)


def standing(**changes) -> Person:
    """With a box that fits."""
    return replace(person(figure(**changes)), box=np.array([140, 60, 260, 500], np.float32))


def look(track: PoseTrack, reference: Person | None, **options) -> Suitability:
    given = {"placed": track, "shape": (600, 400, 3), "crop": WHOLE} | options
    return assess(track, reference, **given)


def check(found: Suitability, name: str) -> Check:
    return next(entry for entry in found.checks if entry.name == name)


def test_two_who_fit():
    found = look(dance(), standing())
    assert found.verdict == "good"
    assert found.score == min(entry.score for entry in found.checks) > 0.9
    assert [entry.name for entry in found.checks] == [
        "presence", "visibility", "scale", "place", "facing", "posture", "limbs", "crop",
    ]  # fmt: skip
    assert list(found.lines()) == [f"suitability: {found.score:.2f} (good; weakest: {_weakest(found)})"]
    found.require()


def _weakest(found: Suitability) -> str:
    return min(found.checks, key=lambda entry: entry.score).name


@pytest.mark.parametrize(("gone", "level"), [(2, "pass"), (20, "warn"), (36, "fail")])
def test_presence(gone, level):
    """Share and times; each frame counts as often as it is shown."""
    clip = dance()
    for points in (clip.body, clip.hands, clip.face):
        points[:gone] = 0
    found = check(look(clip, standing()), "presence")
    assert found.level == level
    assert found.score == pytest.approx(1 - gone / 40)
    assert f"({gone} of 40: at 0.00 - {(gone - 1) / 8:.2f} s)" in found.sentence
    assert "throughout" in found.advice
    counts = np.ones(40, int)
    counts[0] = 61
    assert check(look(clip, standing(), counts=counts), "presence").score == pytest.approx(1 - (60 + gone) / 100)


@pytest.mark.parametrize(
    ("scale", "level", "word"),
    [(1.0, "pass", "as large as"), (0.5, "warn", "0.50 times"), (0.25, "fail", "0.25 times")],
)
def test_scale_without_alignment(scale, level, word):
    middle = (STANDING[1] * (1 - scale)).tolist()
    found = check(look(moved(dance(), scale=scale, offset=middle, size=SIZE), standing()), "scale")
    assert found.level == level
    assert word in found.sentence
    assert "--align" in found.advice


@pytest.mark.parametrize(("factor", "level"), [(1.9, "pass"), (0.22, "warn"), (11.0, "fail")])
def test_scale_with_alignment(factor, level):
    found = look(dance(), standing(), aligned=factor)
    assert check(found, "scale").level == level
    assert not [entry for entry in found.checks if entry.name == "place"]


@pytest.mark.parametrize(("off", "level"), [(20, "pass"), (240, "warn"), (390, "fail")])
def test_place(off, level):
    found = check(look(moved(dance(), scale=1, offset=(off, 0), size=SIZE), standing()), "place")
    assert found.level == level
    assert f"{off / 140:.1f} torso lengths" in found.sentence


def test_visibility():
    """Small people and uncertain joints."""
    small = moved(dance(), scale=0.05, offset=(100, 100), size=SIZE)
    assert check(look(small, standing()), "visibility").level == "warn"
    assert "21 px large" in check(look(small, standing()), "visibility").sentence
    close = dance(missing=range(1, 14))
    assert "40 px large" in check(look(close, standing()), "visibility").sentence, "the face counts"
    dim = dance()
    dim.body[..., 2] *= 0.36
    assert check(look(dim, standing()), "visibility").score == pytest.approx(0.54, abs=0.01)


def test_facing_and_posture_warn_and_never_refuse():
    back = np.array(STANDING)
    back[[2, 5, 3, 6, 4, 7, 8, 11, 9, 12, 10, 13]] = STANDING[[5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10]]
    found = check(look(dance(), standing(xy=back)), "facing")
    assert found.score == pytest.approx(0.4)
    assert found.level == "warn"
    sitting = np.array(STANDING)
    sitting[[9, 12], 1], sitting[[10, 13], 1] = sitting[[8, 11], 1] + 8, sitting[[8, 11], 1] + 60
    found = check(look(dance(), standing(xy=sitting)), "posture")
    assert found.level == "warn"
    assert "the other sits" in found.sentence


def test_limbs_are_named():
    found = check(look(dance(missing=[6, 7]), standing(missing=[9, 10])), "limbs")
    assert "the left arm: shown by the reference, but not driven" in found.sentence
    assert "the right leg: driven, but hidden in the reference" in found.sentence
    assert found.score == pytest.approx(1 - 0.6 * 4 / 14)
    portrait = check(look(dance(), standing(missing=range(2, 14))), "limbs")
    assert portrait.level == "warn"


def test_crop():
    """The reference's person is cut; the driving one leaves the video."""
    crop = CropResize(box=(0, 0, 400, 300), size=(300, 400))
    placed = dance().transform(crop)
    found = check(look(dance(), standing(), crop=crop, placed=placed), "crop")
    assert found.level == "warn"
    assert "cuts the person in the reference" in found.sentence
    assert "crop=person" in found.advice
    away = moved(dance(), scale=1, offset=(900, 0), size=SIZE)
    found = look(dance(), standing(), placed=away)
    assert check(found, "crop").level == "fail"
    assert "in 100% of the frames" in check(found, "crop").sentence


def test_nobody_in_the_reference_is_unknown_and_never_refused():
    clip = dance()
    for points in (clip.body, clip.hands, clip.face):
        points[:39] = 0
    nobody = look(clip, None)
    assert nobody.verdict == "unknown"
    assert nobody.score is None
    nobody.require()
    lines = list(nobody.lines())
    assert lines[0] == "suitability: unknown (nobody is known in the reference image)"
    assert lines[1].startswith("warning: presence 0.03: nobody is seen in 98%")
    dim = standing()
    dim = replace(dim, body=dim.body * [1, 1, 0.1], face=dim.face * [1, 1, 0.1])
    assert look(dance(), dim).verdict == "unknown"
    assert look(dance(), standing()).entries()["verdict"] == "good"
    pose = assess(None, standing(), placed=None, shape=(600, 400, 3), crop=WHOLE)
    assert pose.verdict == "unknown"
    assert "pose video" in pose.unknown


def test_a_refusal_is_a_sentence_that_mends():
    far = look(moved(dance(), scale=0.2, offset=(0, 0), size=SIZE), standing())
    assert far.verdict == "refuse"
    with pytest.raises(SuitabilityError, match=r"do not suit each other: .*--align.*--force goes on all the same"):
        far.require()
    assert WARN > REFUSE > 0


def test_entries_are_json():
    found = look(dance(missing=[4]), standing()).entries()
    assert set(found) == {"verdict", "score", "unknown", "checks"}
    assert {"name", "score", "level", "sentence", "advice"} == set(found["checks"][0])
    assert isinstance(found["score"], float)


def test_partial_people_are_compared_by_what_they_share():
    """Heads alone, legs alone, a body without neck: a verdict, no error."""
    for theirs in (range(1, 14), range(8), [1, 2, 5], []):
        for ours in (range(1, 14), range(8), [1, 2, 5], []):
            found = look(dance(missing=ours), standing(missing=theirs))
            assert all(0 <= entry.score <= 1 for entry in found.checks), (ours, theirs)
    empty = track_of(np.repeat(figure()[None] * [1, 1, 0.1], 4, axis=0), face=False)
    assert look(empty, standing()).unknown == "no driving frame shows a joint clearly"


@pytest.mark.parametrize(
    ("score", "level"), [(0.0, "fail"), (0.24, "fail"), (0.26, "warn"), (0.59, "warn"), (0.61, "pass")]
)
def test_levels(score, level):
    assert Check("any", score, "").level == level
    verdict = {"fail": "refuse", "warn": "warn", "pass": "good"}[level]
    assert Suitability((Check("any", score, ""), Check("other", 1.0, ""))).verdict == verdict


def test_without_hips_a_torso_is_one_and_a_half_shoulders():
    """240 px of 1.5 x 70 px."""
    reference = standing(missing=range(8, 14))
    found = check(look(moved(dance(), scale=1, offset=(240, 0), size=SIZE), reference), "place")
    assert "2.3 torso lengths" in found.sentence


def test_a_joint_that_is_seldom_seen_is_not_driven():
    clip = dance()
    clip.body[:28, 7] = 0
    found = check(look(clip, standing()), "limbs")
    assert found.sentence == "the left arm: shown by the reference, but not driven"
