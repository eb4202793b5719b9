"""What of an image is kept when it has another aspect than the video: the one place that decides it.

Policies: "published" (the cut that the published weights were trained with), "person" (keeps the person who is in the
reference), "none" (nothing is cut: the video takes the reference's aspect).
"""

import math

import numpy as np

from xdyna.media.image import CropResize, center_crop, top_quarter_crop
from xdyna.perception.types import Person

SIZE_MULTIPLE = 8  # px per latent
MARGIN = 0.05  # of the person's box on each side: keypoints end at the joints, not at hair and soles


def published_crop(size_hw: tuple[int, ...], target_hw: tuple[int, int], *, face: bool) -> CropResize:
    """The published crops: with face control everything is cut a quarter of the slack from above, else centred.

    Args:
        size_hw: (H, W, ...) of the image in px.
        target_hw: (H, W) of the video in px.
        face: whether the face ControlNet runs.

    Returns:
        CropResize: of the largest box that has the video's aspect.
    """
    return (top_quarter_crop if face else center_crop)((size_hw[0], size_hw[1]), target_hw)


def person_crop(size_hw: tuple[int, ...], target_hw: tuple[int, int], box: np.ndarray) -> CropResize:
    """The largest box of the video's aspect that keeps a person, who is put into its middle as far as the image goes.

    Args:
        size_hw: (H, W, ...) of the image in px.
        target_hw: (H, W) of the video in px.
        box: (4,) left, top, right, bottom of the person in px.

    Returns:
        CropResize: where the person is larger than that box, its middle (across) or its upper end (down) is kept.
    """
    largest = center_crop((size_hw[0], size_hw[1]), target_hw)
    _, _, width, height = largest.box
    left = round(float(box[0] + box[2]) / 2 - width / 2)
    top = float(box[1] + box[3]) / 2 - height / 2
    top = round(min(top, float(box[1])))
    left, top = min(max(left, 0), size_hw[1] - width), min(max(top, 0), size_hw[0] - height)
    return CropResize(box=(left, top, width, height), size=largest.size)


def size_of_aspect(size_hw: tuple[int, ...], model_hw: tuple[int, int]) -> tuple[int, int]:
    """A size with the aspect of an image and about the number of pixels that a model was trained with.

    Args:
        size_hw: (H, W, ...) of the image in px.
        model_hw: (H, W) of the model in px.

    Returns:
        (H, W) in px, multiples of 8.
    """
    scale = math.sqrt(model_hw[0] * model_hw[1] / (size_hw[0] * size_hw[1]))
    height, width = (max(SIZE_MULTIPLE, round(side * scale / SIZE_MULTIPLE) * SIZE_MULTIPLE) for side in size_hw[:2])
    return height, width


def person_box(person: Person, size_hw: tuple[int, ...]) -> np.ndarray:
    """Where a person is, with room for what keypoints do not show.

    Args:
        person: in the image.
        size_hw: (H, W, ...) of the image in px.

    Returns:
        (4,) left, top, right, bottom in px, inside the image.
    """
    seen = person.body[person.body[:, 2] > 0, :2]
    low, high = np.minimum(person.box[:2], seen.min(0)), np.maximum(person.box[2:], seen.max(0))
    room = MARGIN * (high - low).max()
    limit = np.array([size_hw[1], size_hw[0]])
    return np.concatenate([np.clip(low - room, 0, limit), np.clip(high + room, 0, limit)])


def what_is_cut(crop: CropResize, box: np.ndarray) -> str:
    """How much of a person a crop leaves out, as words ("31 % at the left, 4 % at the bottom"); "" for nothing.

    Args:
        crop: of the image.
        box: (4,) of the person in px, as `person_box` gives it.
    """
    left, top, width, height = crop.box
    across, down = max(float(box[2] - box[0]), 1.0), max(float(box[3] - box[1]), 1.0)
    shares = {
        "left": (left - box[0]) / across,
        "right": (box[2] - left - width) / across,
        "top": (top - box[1]) / down,
        "bottom": (box[3] - top - height) / down,
    }
    return ", ".join(f"{min(share, 1):.0%} at the {side}" for side, share in shares.items() if share > 0.01)


def is_whole(crop: CropResize, size_hw: tuple[int, ...]) -> bool:
    """Whether a crop keeps the whole image, but for what rounding to whole pixels takes."""
    return crop.box[2] >= 0.99 * size_hw[1] and crop.box[3] >= 0.99 * size_hw[0]


def fit_image(image: np.ndarray, crop: CropResize, *, face: bool) -> np.ndarray:
    """The reference image at the video's size, resized as published.

    Args:
        image: uint8 (H, W, 3).
        crop: where it is cut.
        face: whether the face ControlNet runs: then pixels are averaged over areas, else interpolated.

    Returns:
        np.ndarray: uint8, at the crop's size.
    """
    return crop.image(image, interpolation="area" if face else "bilinear")
