import numpy as np
import pytest

from xdyna.media import MediaError, contact_sheet, grid_frame


def flat(colour, height=60, width=40):
    return np.broadcast_to(np.array(colour, np.uint8), (height, width, 3)).copy()


def area(sheet, colour, tolerance=2):
    return int((np.abs(sheet.astype(int) - colour).max(axis=-1) <= tolerance).sum())


def test_sheet_shows_frames_spread_evenly():
    shades = [flat((k * 10, 0, 255)) for k in range(20)]
    sheet = contact_sheet(
        {"driving": shades, "result": [flat((k * 10, 255, 0)) for k in range(20)]}, columns=4, cell_height=60
    )
    assert sheet.dtype == np.uint8
    for k in range(20):
        shown = 60 * 40 if k in (0, 6, 13, 19) else 0
        assert area(sheet, (k * 10, 0, 255)) == shown
        assert area(sheet, (k * 10, 255, 0)) == shown
    # Columns stand in order, and rows under each other.
    x = [int(np.argwhere((sheet == (k * 10, 0, 255)).all(-1))[:, 1].min()) for k in (0, 6, 13, 19)]
    assert x == sorted(x)
    assert np.argwhere((sheet == (0, 0, 255)).all(-1))[0, 0] < np.argwhere((sheet == (0, 255, 0)).all(-1))[0, 0]


def test_single_image_stands_large_at_the_left():
    sheet = contact_sheet(
        {"reference": [flat((255, 0, 0))], "a": [flat((0, 255, 0))] * 3, "b": [flat((0, 0, 255))] * 3}, cell_height=60
    )
    assert area(sheet, (255, 0, 0)) > 3.5 * 60 * 40
    red, green = (np.argwhere((sheet == colour).all(-1)) for colour in ((255, 0, 0), (0, 255, 0)))
    assert red[:, 1].max() < green[:, 1].min()
    assert red[:, 0].min() == green[:, 0].min()
    alone = contact_sheet({"reference": [flat((255, 0, 0))]}, cell_height=60)
    assert area(alone, (255, 0, 0)) == 60 * 40


def test_labels_captions_and_title_change_the_sheet():
    rows = {"driving": [flat((9, 9, 9))] * 3}
    plain = contact_sheet(rows)
    assert contact_sheet(rows, title="a title").shape[0] > plain.shape[0]
    assert contact_sheet(rows, title="a very long title " * 9).shape[1] > plain.shape[1]
    assert not np.array_equal(contact_sheet(rows, captions=["x", "y", "z"]), plain)
    assert np.array_equal(contact_sheet(rows), plain)
    # Dark text on light paper: something is written left of the first cell.
    left = int(np.argwhere((plain == 9).all(-1))[:, 1].min())
    assert (plain[:, :left].min(axis=-1) < 100).sum() > 30


def test_frames_of_any_shape():
    sheet = contact_sheet(
        {"wide": [flat((1, 2, 3), 30, 90)] * 2, "tall": [flat((4, 5, 6), 90, 31)] * 2}, cell_height=64
    )
    assert area(sheet, (1, 2, 3)) == 2 * 64 * 192
    assert area(sheet, (4, 5, 6)) == 2 * 64 * 22


@pytest.mark.parametrize("height", [64, 97, 448])
def test_grid_is_even_and_keeps_every_cell(height):
    cells = {
        "reference": flat((255, 0, 0), 97, 51),
        "pose": flat((0, 255, 0), 97, 51),
        "result": flat((0, 0, 255), 50, 50),
    }
    grid = grid_frame(cells, height=height)
    assert grid.dtype == np.uint8
    assert grid.shape[0] % 2 == grid.shape[1] % 2 == 0
    for colour, (h, w) in zip(((255, 0, 0), (0, 255, 0), (0, 0, 255)), ((97, 51), (97, 51), (50, 50)), strict=True):
        assert area(grid, colour, 0) == height * round(w * height / h)
    assert grid.shape == grid_frame({label: cell * 0 for label, cell in cells.items()}, height=height).shape


def test_grid_labels_are_written():
    grid = grid_frame({"a": flat((0, 0, 0)), "b": flat((0, 0, 0))}, height=64)
    other = grid_frame({"a": flat((0, 0, 0)), "c": flat((0, 0, 0))}, height=64)
    assert grid.shape == other.shape
    assert not np.array_equal(grid, other)
    assert np.array_equal(grid[-64:], other[-64:])


@pytest.mark.parametrize(
    ("function", "kwargs"),
    [
        (contact_sheet, {"rows": {}}),
        (contact_sheet, {"rows": {"a": []}}),
        (contact_sheet, {"rows": {"a": [flat((1, 2, 3))]}, "columns": 0}),
        (contact_sheet, {"rows": {"a": [flat((1, 2, 3))]}, "cell_height": 8}),
        (contact_sheet, {"rows": {"a": [flat((1, 2, 3)).astype(float)]}}),
        (grid_frame, {"cells": {}}),
        (grid_frame, {"cells": {"a": flat((1, 2, 3))}, "height": 2}),
        (grid_frame, {"cells": {"a": flat((1, 2, 3))[..., 0]}}),
    ],
)
def test_refused(function, kwargs):
    with pytest.raises(MediaError):
        function(kwargs.pop("rows", None) or kwargs.pop("cells", None) or {}, **kwargs)
