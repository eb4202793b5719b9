"""Crop policies, against boxes found by trying every position."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xdyna.perception.types import Person
from xdyna.pipelines.crop import is_whole, person_box, person_crop, published_crop, size_of_aspect, what_is_cut
from xdyna.pipelines.plan import _crop_notes, choose_crop

TARGETS = [(896, 512), (512, 896), (128, 128)]


def person(left: float, top: float, right: float, bottom: float) -> Person:
    body = np.zeros((18, 3), np.float32)
    body[[0, 4, 10, 13]] = [(left, top, 1), (right, top, 1), (left, bottom, 1), (right, bottom, 1)]
    box = np.array([left, top, right, bottom], np.float32)
    return Person(body, np.zeros((2, 21, 3), np.float32), np.zeros((68, 3), np.float32), box, 1.0)


def test_program_and_pipeline_cut_alike() -> None:
    """The published rule on 700 x 1600 px (W x H) with faces: a quarter of the slack, once for both."""
    assert published_crop((1600, 700), (896, 512), face=True).box == (0, 93, 700, 1225)
    assert published_crop((1600, 700), (896, 512), face=False).box == (0, 187, 700, 1225)


@given(
    size=st.tuples(st.integers(64, 400), st.integers(64, 400)),
    target=st.sampled_from(TARGETS),
    corner=st.tuples(st.floats(0, 0.9), st.floats(0, 0.9)),
    extent=st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)),
)
def test_a_person_who_fits_is_kept_whole(size, target, corner, extent) -> None:
    height, width = size
    left, top = corner[0] * width, corner[1] * height
    box = np.array([left, top, min(left + extent[0] * width, width), min(top + extent[1] * height, height)])
    crop = person_crop(size, target, box)
    x, y, across, down = crop.box
    assert 0 <= x <= width - across
    assert 0 <= y <= height - down
    assert (across, down) == published_crop(size, target, face=False).box[2:]  # as large as can be
    if box[2] - box[0] <= across - 1:
        assert x <= box[0] + 0.5
        assert box[2] - 0.5 <= x + across
    if box[3] - box[1] <= down - 1:
        assert y <= box[1] + 0.5
        assert box[3] - 0.5 <= y + down
    elif y:  # too tall: the head is kept
        assert abs(y - box[1]) <= 1 or y == height - down


def test_a_person_at_the_edge_of_a_landscape_photo() -> None:
    reference = np.zeros((600, 1000, 3), np.uint8)
    at_the_right = person(850, 150, 980, 580)
    looked = []
    published, found = choose_crop(
        "published", reference, (896, 512), face=False, person=None, look=lambda: looked.append(1) or at_the_right
    )
    assert looked == [1]
    assert found is at_the_right
    # The crop keeps x from 329 to 671; the person, with room of 21.5 px, goes from 828.5 to 1000 px.
    assert published.box == (329, 0, 342, 600)
    assert what_is_cut(published, person_box(found, reference.shape)) == "100% at the right"
    kept, _ = choose_crop("person", reference, (896, 512), face=False, person=at_the_right, look=lambda: None)
    assert what_is_cut(kept, person_box(at_the_right, reference.shape)) == ""
    assert kept.box[0] + kept.box[2] == 1000


@pytest.mark.parametrize(
    ("size", "said"),
    [((600, 1000), "keeps 34% of the reference"), ((900, 512), None), ((768, 512), None), ((512, 512), "keeps 57%")],
)
def test_no_large_part_goes_silently(size, said) -> None:
    """Whether anybody was found or not, and also where nobody is cut."""
    crop = published_crop(size, (896, 512), face=False)
    reference = np.zeros((*size, 3), np.uint8)
    for found in (None, person(crop.box[0] + 90, 100, crop.box[0] + 120, 300)):
        notes = list(_crop_notes(crop, "published", reference, found))
        assert len(notes) == (said is not None)
        assert said is None or said in notes[0]


def test_nobody_looks_where_nothing_is_cut() -> None:
    def look() -> None:
        raise AssertionError("looked at the reference")

    crop, found = choose_crop(
        "person", np.zeros((256, 256, 3), np.uint8), (128, 128), face=True, person=None, look=look
    )
    assert crop.box == (0, 0, 256, 256)
    assert found is None


def test_without_a_crop_nobody_looks_either() -> None:
    """Sizes are multiples of 8, so that a line of pixels may go; nobody is asked for that."""

    def look() -> None:
        raise AssertionError("looked at the reference")

    reference = np.zeros((100, 733, 3), np.uint8)
    size = size_of_aspect(reference.shape, (128, 128))
    choose_crop("none", reference, size, face=False, person=None, look=look)


def test_where_nobody_is_found_the_crop_is_the_published_one() -> None:
    reference = np.zeros((600, 1000, 3), np.uint8)
    crop, found = choose_crop("person", reference, (896, 512), face=True, person=None, look=lambda: None)
    assert crop == published_crop(reference.shape, (896, 512), face=True)
    assert found is None


def test_shares_that_are_cut() -> None:
    crop = published_crop((100, 200), (100, 100), face=False)  # x from 50 to 150
    assert what_is_cut(crop, np.array([30, 10, 70, 90])) == "50% at the left"
    assert what_is_cut(crop, np.array([60, 10, 140, 90])) == ""
    assert what_is_cut(crop, np.array([140, 10, 160, 90])) == "50% at the right"


@pytest.mark.parametrize("size", [(600, 1000), (1000, 600), (512, 512), (1080, 1920), (333, 777)])
def test_the_size_of_an_aspect(size) -> None:
    height, width = size_of_aspect(size, (896, 512))
    assert height % 8 == width % 8 == 0
    assert abs(height * width / (896 * 512) - 1) < 0.03
    assert abs((width / height) / (size[1] / size[0]) - 1) < 0.02
    _, _, across, down = published_crop(size, (height, width), face=False).box
    assert across * down > 0.98 * size[0] * size[1]
    assert is_whole(published_crop((512, 512), (512, 512), face=False), (512, 512))
