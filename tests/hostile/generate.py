"""All hostile inputs, and a part of them."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tests.hostile import checkpoints, configs, images, keypoints, page, paths, videos
from tests.hostile.case import Case

KINDS = ("keypoints", "video", "path", "page", "config", "image", "checkpoint")


def all_cases() -> list[Case]:
    """All of them, in a fixed order."""
    found = [
        case for module in (keypoints, videos, paths, page, configs, images, checkpoints) for case in module.cases()
    ]
    assert len({case.id for case in found}) == len(found)
    return found


def some_cases(count: int, seed: int) -> list[Case]:
    """So many, of all kinds alike. Args: count: how many; seed: of the choice."""
    rng, chosen = random.Random(seed), []
    by_kind = {kind: [case for case in all_cases() if case.kind == kind] for kind in KINDS}
    for number in range(count):
        left = by_kind[KINDS[number % len(KINDS)]]
        chosen.append(left.pop(rng.randrange(len(left))))
    return chosen


def chosen_cases(kinds: Sequence[str], pattern: str) -> list[Case]:
    """Those of some kinds whose id holds a text."""
    return [case for case in all_cases() if case.kind in kinds and pattern in case.id]
