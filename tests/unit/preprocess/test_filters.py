"""Filters at their thresholds: what is just enough passes, what is just too little is told with both numbers."""

from dataclasses import replace

import numpy as np
import pytest

from xdyna.config.preprocess import PreprocessOptions
from xdyna.data.records import REASONS
from xdyna.preprocess import filters
from xdyna.preprocess.measure import Motion
from xdyna.preprocess.people import Look, PersonNumbers

OPTIONS = PreprocessOptions(
    min_frames=20, min_side=300, person_share=0.8, min_person=0.25, min_confidence=0.5, max_hidden=0.6, min_face=0.3,
    min_motion=0.01, max_camera=0.2, max_text=0.5,
)  # fmt: skip
GOOD = PersonNumbers(share=0.8, height=0.25, confidence=0.5, hidden=0.6, face=0.3)
STEADY = Motion(flow=0.01, camera=0.2)


def test_just_enough_passes():
    for person_filter in filters.PERSON_FILTERS:
        assert person_filter(GOOD, OPTIONS) is None
    for motion_filter in filters.MOTION_FILTERS:
        assert motion_filter(STEADY, OPTIONS) is None
    assert filters.too_small((300, 400), OPTIONS) is None
    assert filters.too_short(20, 20, OPTIONS) is None
    assert filters.text_overlay(0.5, OPTIONS) is None
    assert filters.unwanted_kind("scene", OPTIONS) is None


@pytest.mark.parametrize(
    ("refusal", "reason", "numbers"),
    [
        (filters.partly_seen(replace(GOOD, share=0.75), OPTIONS), "partly_people", ("75%", "80%")),
        (filters.others_beside(replace(GOOD, others=0.4), OPTIONS), "several_people", ("40%", "25%")),
        (filters.small_person(replace(GOOD, height=0.2), OPTIONS), "small_person", ("20%", "25%")),
        (filters.low_confidence(replace(GOOD, confidence=0.42), OPTIONS), "low_confidence", ("0.42", "0.5")),
        (filters.occluded(replace(GOOD, hidden=0.7), OPTIONS), "occluded", ("70%", "60%")),
        (filters.no_face(replace(GOOD, face=0.1), OPTIONS), "no_face", ("10%", "30%")),
        (filters.static(replace(STEADY, flow=0.002), OPTIONS), "static", ("0.0020", "0.01")),
        (filters.camera_shake(replace(STEADY, camera=0.5), OPTIONS), "camera_shake", ("0.50", "0.2")),
        (filters.text_overlay(0.75, OPTIONS), "text_overlay", ("75%", "50%")),
        (filters.too_small((299, 400), OPTIONS), "too_small", ("400 x 299", "300")),
        (filters.too_short(19, 19, OPTIONS), "too_short", ("The shot has 19", "20")),
        (filters.too_short(7, 247, OPTIONS), "too_short", ("7 frames are left over of a shot of 247", "20")),
    ],
)
def test_too_little_is_told(refusal: filters.Refusal | None, reason: str, numbers: tuple[str, ...]):
    assert refusal is not None
    assert refusal.reason == reason
    assert reason in REASONS
    assert all(number in refusal.detail for number in numbers), refusal.detail


def looks(*counts: int) -> list[Look]:
    return [Look(count, np.zeros((count, 4))) for count in counts]


@pytest.mark.parametrize(
    ("counts", "listed", "decision"),
    [
        ((1, 1, 1, 1, 1), None, "human"),
        ((1, 1, 1, 1, 0), None, "human"),
        ((1, 1, 1, 0, 0), None, "partly_people"),
        ((0, 0, 0, 0, 1), None, "partly_people"),
        ((0, 0, 0, 0, 0), None, "scene"),
        ((0, 0, 0, 0, 0), "human", "no_person"),
        ((1, 0, 0, 0, 0), "human", "partly_people"),
        ((2, 2, 1, 1, 1), None, "several_people"),
        ((2, 3, 1, 1, 1), "human", "several_people"),
        ((2, 1, 1, 1, 1), None, "human"),
        ((2, 2, 2, 2, 2), "scene", "scene"),
        ((), "scene", "scene"),
    ],
)
def test_kinds(counts: tuple[int, ...], listed: str | None, decision: str):
    found = filters.decide_kind(looks(*counts), listed, OPTIONS)
    assert (found.reason if isinstance(found, filters.Refusal) else found) == decision
