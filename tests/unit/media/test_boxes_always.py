"""Boxes and the points in them, for any sizes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from xdyna.media import CropResize
from xdyna.media.image import center_crop, top_quarter_crop
from xdyna.perception.types import Person
from xdyna.pipelines.crop import is_whole, person_box, person_crop, size_of_aspect, what_is_cut

SIDES = st.tuples(st.integers(8, 3000), st.integers(8, 3000))
TARGETS = st.tuples(st.integers(1, 120), st.integers(1, 120)).map(lambda s: (8 * s[0], 8 * s[1]))


@given(SIDES, TARGETS, st.sampled_from([center_crop, top_quarter_crop]))
def test_a_crop_is_the_largest_box_of_the_aspect_inside(size, target, policy) -> None:
    left, top, width, height = policy(size, target).box
    assert left >= 0 <= top
    assert left + width <= size[1]
    assert top + height <= size[0]
    assert width == size[1] or height == size[0]
    wanted = target[1] / target[0]
    if width > 1 < height:  # one pixel less or more would be further from the aspect
        assert (width - 1) / height < wanted * (1 + 1e-9) or width == size[1]
        assert width / (height + 1) < wanted * (1 + 1e-9)
        assert (width + 1) / height > wanted * (1 - 1e-9)


@given(SIDES, TARGETS, st.lists(st.tuples(st.floats(-100, 3100), st.floats(-100, 3100)), min_size=1, max_size=5))
def test_points_come_back_through_the_crop(size, target, points) -> None:
    crop, xy = center_crop(size, target), np.array(points)
    left, top, width, height = crop.box
    there = crop.points(xy)
    back = CropResize(box=(0, 0, target[1], target[0]), size=(height, width)).points(there) + (left, top)
    np.testing.assert_allclose(back, xy, atol=1e-6)
    corners = np.array([[left - 0.5, top - 0.5], [left + width - 0.5, top + height - 0.5]])
    np.testing.assert_allclose(crop.points(corners), [[-0.5, -0.5], [target[1] - 0.5, target[0] - 0.5]], atol=1e-9)


@given(st.integers(4, 40), st.integers(4, 40), st.integers(0, 20), st.integers(0, 20))
def test_a_pixel_is_where_its_point_is(height, width, left, top) -> None:
    image = np.zeros((top + height + 3, left + width + 5), np.uint8)
    image[top + height // 2, left + width // 3] = 255
    crop = CropResize(box=(left, top, width, height), size=(3 * height, 3 * width))
    bright = np.argwhere(crop.image(image, interpolation="area") > 200)
    ((x, y),) = crop.points(np.array([[left + width // 3, top + height // 2]]))
    np.testing.assert_allclose(bright.mean(0)[::-1], (x, y), atol=0.51)


@st.composite
def people(draw: st.DrawFn) -> tuple[tuple[int, int], Person]:
    """A size, and somebody in it, perhaps partly outside."""
    size = draw(st.tuples(st.integers(32, 1500), st.integers(32, 1500)))
    corner = np.array([draw(st.floats(-0.1, 0.9)), draw(st.floats(-0.1, 0.9))]) * size[::-1]
    extent = np.array([draw(st.floats(0.02, 1)), draw(st.floats(0.02, 1))]) * size[::-1]
    xy = corner + extent * np.random.default_rng(draw(st.integers(0, 99))).uniform(size=(18, 2))
    seen = np.array(draw(st.lists(st.booleans(), min_size=18, max_size=18)))
    seen[0] = True
    body = np.column_stack([xy, seen]).astype(np.float32) * seen[:, None]
    low, high = body[seen, :2].min(0), body[seen, :2].max(0)
    return size, Person(body, np.zeros((2, 21, 3)), np.zeros((68, 3)), np.concatenate([low, high]), 1.0)


@given(people(), TARGETS)
def test_boxes_of_people_stay_inside_and_what_is_kept_is_not_cut(drawn, target) -> None:
    size, person = drawn
    box = person_box(person, size)
    limit = np.array([size[1], size[0]])
    assert (box[:2] <= box[2:]).all()
    assert (box >= 0).all()
    assert (box.reshape(2, 2) <= limit).all()
    inside = np.clip(person.body[person.body[:, 2] > 0, :2], 0, limit)  # what the image shows of the person
    assert (inside >= box[:2] - 1e-3).all()
    assert (inside <= box[2:] + 1e-3).all()
    crop = person_crop(size, target, box)
    left, top, width, height = crop.box
    assert 0 <= left <= size[1] - width
    assert 0 <= top <= size[0] - height
    kept = np.maximum(np.minimum(box[2:], (left + width, top + height)) - np.maximum(box[:2], (left, top)), 0)
    across, down = box[2:] - box[:2]
    lost = 1 - kept / np.maximum((across, down), 1)
    if max(across, down) >= 1 and (lost * (np.array([across, down]) >= 1) > 0.03).any():
        assert what_is_cut(crop, box)
    if is_whole(crop, size) and min(size) > 100:
        assert (lost * (np.array([across, down]) >= 10) < 0.02 * max(size) / np.maximum((across, down), 1)).all()


@given(SIDES, TARGETS)
def test_a_size_of_an_aspect_has_it_and_about_as_many_pixels(size, model) -> None:
    height, width = size_of_aspect(size, model)
    assert height % 8 == width % 8 == 0
    assert min(height, width) >= 8
    if min(height, width) >= 64:
        assert abs(np.log(height / width) - np.log(size[0] / size[1])) < 0.13
        assert abs(np.log(height * width) - np.log(model[0] * model[1])) < 0.13
