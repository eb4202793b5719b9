"""The numbers that the paper prints (Chang et al., CVPR 2025, arXiv 2501.10021), to stand beside measured ones.

They were measured on the authors' own test videos, with unpublished code: other videos give other numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xdyna.config.eval import ClipProtocol


@dataclass(frozen=True)
class PaperTable:
    """One table.

    Attributes:
        title: what it shows.
        columns: names of our columns, one per number; None where a number has no counterpart here.
        rows: method -> numbers.
    """

    title: str
    columns: tuple[str | None, ...]
    rows: dict[str, tuple[float, ...]]


TABLES: dict[str, PaperTable] = {
    "table1": PaperTable(
        "Table 1: dynamic textures",
        ("dtfvd_fg", "dtfvd_bg", "dtfvd"),
        {
            "MagicAnimate": (1.753, 2.142, 2.601),
            "Animate-Anyone": (1.789, 2.034, 2.310),
            "MagicPose": (1.846, 1.901, 2.412),
            "MimicMotion": (2.639, 3.274, 3.590),
            "X-Dyna": (0.900, 1.101, 1.518),
        },
    ),
    "table2": PaperTable(
        "Table 2: human video (last two: a second test set)",
        ("l1", "psnr", "lpips_disco", "ssim", "face_cos", "face_det", "fid", "cd_fvd", None, None),
        {
            "MagicAnimate": (7.42e-05, 17.143, 0.228, 0.739, 0.297, 92.1, 31.97, 237.59, 38.86, 176.17),
            "Animate-Anyone": (11.8e-05, 13.411, 0.338, 0.605, 0.402, 89.0, 33.75, 233.39, 34.27, 203.59),
            "MagicPose": (13.7e-05, 12.639, 0.345, 0.618, 0.396, 85.5, 18.52, 537.96, 24.43, 480.14),
            "MimicMotion": (9.78e-05, 14.903, 0.278, 0.647, 0.193, 92.0, 45.67, 150.01, 60.32, 194.17),
            "X-Dyna": (7.15e-05, 17.201, 0.249, 0.724, 0.497, 94.8, 22.56, 325.35, 25.59, 281.78),
        },
    ),
    "table4": PaperTable(
        "Table 4: ablations",
        ("dtfvd_fg", "dtfvd_bg", "dtfvd", "face_cos"),
        {
            "w/RefNet": (2.137, 2.694, 2.823, 0.466),
            "w/IP-A": (3.738, 4.702, 4.851, 0.292),
            "w/lmk": (0.914, 1.125, 1.589, 0.406),
            "wo/face": (0.912, 1.098, 1.550, 0.442),
            "wo/fusion": (1.301, 1.467, 1.652, 0.495),
            "X-Dyna": (0.900, 1.101, 1.518, 0.497),
        },
    ),
    "table5": PaperTable(
        "Table 5: cross-driving",
        ("dtfvd", "fid", "face_exp"),
        {
            "MagicAnimate": (6.708, 250.75, 0.134),
            "Animate-Anyone": (6.820, 253.29, 0.123),
            "MagicPose": (7.062, 244.25, 0.121),
            "MimicMotion": (6.823, 258.91, 0.109),
            "X-Dyna": (5.923, 246.16, 0.105),
        },
    ),
}
OURS = "X-Dyna"  # the row that deltas are taken against
CLIP = ClipProtocol(frames=16, choice="first", stride=1, short="loop")
CLIPS_OF = ("dtfvd", "cd_fvd")
_SEGMENTER = "the paper's segmenter is not published"
OTHER_DEFINITION = {
    "l1": "it falls with the square of the size, and the size that the paper compares at is not published",
    "face_cos": "which AdaFace network and which detector the paper took is not published",
    "face_det": "its faces are found by another detector than the paper's",
    "face_exp": "the paper's definition is not published; this one is of 68 landmarks",
    "dtfvd_fg": _SEGMENTER,
    "dtfvd_bg": _SEGMENTER,
}
"""Columns whose definition is not the paper's, or not known to be."""


def not_comparable(name: str, protocol: Mapping[str, Any]) -> str | None:
    """Why a measured number has no difference to the paper's.

    Args:
        name: of the column.
        protocol: settings that it was measured with, as `EvalConfig` has them ("clip" as a dictionary).

    Returns:
        The reason; None where definition and protocol agree, as far as they are published.
    """
    if name in OTHER_DEFINITION:
        return OTHER_DEFINITION[name]
    if protocol.get("max_frames") is not None:
        return f"only the first {protocol['max_frames']} frames of each video were compared"
    wanted, clip = dataclasses.asdict(CLIP), protocol.get("clip", {})
    others = [key for key in wanted if key != "seed" and clip.get(key) != wanted[key]]
    if name in CLIPS_OF and others:
        return f"its clips differ: {', '.join(f'{key} {clip.get(key)}, the table has {wanted[key]}' for key in others)}"
    return None
