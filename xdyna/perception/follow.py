"""One person among the people of every frame.

Followed is who goes on where the last frames' motion leads. Where that is not certain - nobody is there, two meet, or
somebody looks otherwise - a witness is asked, if there is one: who else is in the frame, and who wears what.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from xdyna.perception.crowd import unlike
from xdyna.perception.types import Person

_REACH = 0.6  # farthest a person may move between two frames, in diagonals of the box
_GROWTH = 2.0  # largest change of the box's diagonal between two frames
_MOTION = 4  # boxes that somebody's motion is taken from
_SAME = 0.5  # overlap from which on two boxes are one person found twice
_PATIENCE = 8  # frames without the person after which whoever is N-th largest is followed (the scene was cut)
_AGAIN = 4  # frames after which company is looked at again, so that everybody's motion is known where two meet
_SURE = 0.5  # overlap with where somebody is expected from which on nobody asks whether it is them
_LEARNED = 0.2  # weight of what somebody wears in one frame in the mean of all
_TELLING = 0.35  # difference of the colours of two people from which on these tell them apart
_HIDDEN = 0.1  # overlap that a path has to have more than another for each frame more in which it was not seen
_DECISIVE = 0.2  # difference of differences of colours that outweighs the place of somebody seen too shortly
_OTHERS = 0.75  # difference of colours above which somebody is another person whatever their place
_BACK = 0.4  # below which one who is alone is the one who went: one person differs by 0.19 (median), two by 0.55
_STARTS = 16  # frames searched for so many people where no frame shows them at once


class Witness(Protocol):
    """Looks at frames again while somebody is followed; rows count the frames that are followed through."""

    def everybody(self, row: int) -> Sequence[Person]:
        """All people of a frame, largest first, however long it takes."""
        ...

    def colors(self, row: int, person: Person) -> np.ndarray | None:
        """What somebody in a frame wears, as `torso_colors`."""
        ...


def follow(
    found: Sequence[Sequence[Person]], *, person: int = 0, witness: Witness | None = None
) -> list[Person | None]:
    """Pick the same person in every frame.

    Starts with the N-th largest of the first frame with so many people and goes from there to both ends. In each frame
    the one whose box overlaps most with where the last frames' motion leads is taken, else the nearest within reach;
    nobody if all are too far, of another size, or go on along the way of somebody else.

    With a witness everybody is looked for in the first frame, where the person is lost, where two meet, and in every
    fourth frame while others are there; who wears what then counts beside the place.

    Args:
        found: people of each frame, largest first.
        person: N, 0 for the largest.
        witness: looks again; None: `found` is all there is.

    Returns:
        For each frame the person or None; all None if no frame has so many people.
    """
    result: list[Person | None] = [None] * len(found)
    frames = [list(people) for people in found]
    start = _start(frames, person, witness)
    if start is None:
        return result
    result[start] = frames[start][person]
    for rows in (range(start + 1, len(frames)), range(start - 1, -1, -1)):
        _Follower(frames, person, witness, start).go(rows, result)
    return result


def _start(frames: list[list[Person]], person: int, witness: Witness | None) -> int | None:
    """The first frame with so many people; with a witness everybody in it was looked for."""
    if witness is not None and frames:
        frames[0] = list(witness.everybody(0))
    start = next((row for row, people in enumerate(frames) if len(people) > person), None)
    if witness is None or not frames:
        return start
    if start is None:
        for row in np.unique(np.linspace(0, len(frames) - 1, _STARTS).round().astype(int)).tolist():
            frames[row] = list(witness.everybody(row))
            if len(frames[row]) > person:
                return row
    elif start:
        frames[start] = list(witness.everybody(start))
    return start


@dataclass
class _Path:
    """Where somebody was: the last boxes and their rows, the latest at the end; what they wear, if that is known; and
    the row in which they were first seen."""

    boxes: list[np.ndarray]
    rows: list[int]
    colors: np.ndarray | None = None
    since: int = 0

    def expected(self, row: int) -> np.ndarray:
        """The box in a row, if the motion of the last frames goes on; two who cross are told apart by it."""
        span = self.rows[-1] - self.rows[0]
        if not span:
            return self.boxes[-1]
        motion = (_center(self.boxes[-1]) - _center(self.boxes[0])) / span * (row - self.rows[-1])
        return self.boxes[-1] + np.tile(motion, 2)

    def missed(self, row: int) -> int:
        """Rows before this one in which they were not seen."""
        return abs(row - self.rows[-1]) - 1

    def goes_on(self, person: Person, row: int) -> None:
        self.boxes, self.rows = [*self.boxes[1 - _MOTION :], person.box], [*self.rows[1 - _MOTION :], row]


class _Follower:
    """Follows the person of a start frame in one direction; others are followed as well, so that nobody takes over."""

    def __init__(self, frames: list[list[Person]], person: int, witness: Witness | None, start: int) -> None:
        self._frames, self._person, self._witness = frames, person, witness
        first = frames[start][person]
        self._path = self._begun(first, start)
        self._others = [self._begun(other, start) for other in frames[start] if other is not first]
        self._misses, self._company = 0, len(frames[start]) > 1
        self._looked = start
        self._easy = False  # whether the person was found without a search: then an empty frame is empty

    def _begun(self, person: Person, row: int) -> _Path:
        colors = None if self._witness is None else self._witness.colors(row, person)
        return _Path([person.box], [row], colors, since=row)

    def go(self, rows: range, result: list[Person | None]) -> None:
        """Follow through `rows`, writing to `result`."""
        for row in rows:
            chosen = self._chosen(row)
            if self._witness is not None and self._doubtful(chosen, row):
                self._frames[row] = list(self._witness.everybody(row))
                self._company, self._looked = len(self._frames[row]) > 1, row
                chosen = self._chosen(row)
            self._easy |= chosen is not None and self._looked != row
            if chosen is None and self._misses >= _PATIENCE:
                chosen = self._taken_up(row)
            elif chosen is not None:
                self._goes_on(self._path, chosen, row)
            self._misses = 0 if chosen is not None else self._misses + 1
            result[row] = chosen
            self._follow_others([one for one in self._frames[row] if one is not chosen], row)

    def _doubtful(self, chosen: Person | None, row: int) -> bool:
        """Whether a row has to be looked at again."""
        if chosen is None:
            if self._easy and not self._company and not self._frames[row]:
                return False
            return self._misses < _PATIENCE or self._misses % _PATIENCE == 0
        if not self._company and len(self._frames[row]) < 2:
            return False
        if abs(row - self._looked) >= _AGAIN:
            return True
        expected = self._path.expected(row)
        if _overlap(chosen.box, expected) < _SURE:
            return True
        met = sum(_overlap(other.expected(row), expected) > 0 for other in self._others)
        return bool(met) and sum(_overlap(one.box, expected) > 0 for one in self._frames[row]) < 1 + met

    def _taken_up(self, row: int) -> Person | None:
        """Who is followed when the person was not seen for long: who wears the same, else, after a cut, the N-th
        largest. Those who were there before the person went are no cut."""
        people = self._frames[row]
        apart = [self._unlike(self._path, one, row) for one in people]
        known = [(value, k) for k, value in enumerate(apart) if value is not None]
        if known and min(known)[0] < (_OTHERS if len(known) > 1 else _BACK):
            one = people[min(known)[1]]
            if len(known) > 1 or not self._was_there(one, row):
                self._path = _Path([one.box], [row], self._path.colors, since=row)
                return one
        if len(people) <= self._person or self._was_there(people[self._person], row):
            return None
        self._path = self._begun(people[self._person], row)
        return people[self._person]

    def _was_there(self, one: Person, row: int) -> bool:
        """Whether somebody was seen beside the person before that one was lost; unknown without a witness."""
        return any(
            abs(row - other.since) > self._misses
            and _overlap(one.box, other.expected(row)) > 0
            and (1.0 if (apart := self._unlike(other, one, row)) is None else apart) < _OTHERS
            for other in self._others
        )

    def _chosen(self, row: int) -> Person | None:
        """The one who goes on along the path, or None."""
        expected = self._path.expected(row)
        near = [
            one
            for one in self._frames[row]
            if _within_reach(one, self._path, expected) and not self._is_another(one, row)
        ]
        tell = len(near) > 1 and any(self._colors_tell(other) for other in self._others)

        def rank(one: Person) -> tuple[float, float]:
            unlikeness = (self._unlike(self._path, one, row) or 0.0) if tell else 0.0
            return _overlap(one.box, expected) - unlikeness, -_distance(one.box, expected)

        return max(near, key=rank, default=None)

    def _is_another(self, one: Person, row: int) -> bool:
        """Whether somebody is one of the others: by place and, where the two are dressed differently, by colours."""
        ours = _overlap(one.box, self._path.expected(row))
        for other in self._others:
            theirs = _overlap(one.box, other.expected(row))
            if theirs <= 0 or self._has_a_better(other, one, row):
                continue
            # Who was hidden of late stays hidden, rather than that who was seen a frame ago vanishes in their favour.
            hidden = other.missed(row) - self._path.missed(row)
            lead = self._lead(other, one, row) - _HIDDEN * hidden
            if (theirs - ours + lead > 0) if len(other.rows) == _MOTION else lead > _DECISIVE:
                return True
        return self._company and ours < _SURE and (self._unlike(self._path, one, row) or 0.0) > _OTHERS

    def _has_a_better(self, other: _Path, one: Person, row: int) -> bool:
        """Whether another path goes on with somebody else in this frame (not with the same person, found twice)."""
        if self._witness is None:
            return False
        expected, tell = other.expected(row), self._colors_tell(other)

        def fit(each: Person) -> float:
            return _overlap(each.box, expected) - ((self._unlike(other, each, row) or 0.0) if tell else 0.0)

        rivals = [each for each in self._frames[row] if each is not one and _overlap(each.box, one.box) < _SAME]
        return bool(rivals) and max(fit(each) for each in rivals) > fit(one)

    def _colors_tell(self, other: _Path) -> bool:
        """Whether the person and another are dressed so differently that colours tell them apart."""
        ours = self._path.colors
        return ours is not None and other.colors is not None and unlike(ours, other.colors) >= _TELLING

    def _lead(self, other: _Path, one: Person, row: int) -> float:
        """How much more somebody looks like another than like the person; 0 where colours do not tell these apart."""
        if not self._colors_tell(other):
            return 0.0
        to_other, to_us = self._unlike(other, one, row), self._unlike(self._path, one, row)
        return 0.0 if to_other is None or to_us is None else to_us - to_other

    def _unlike(self, path: _Path, one: Person, row: int) -> float | None:
        """How unlike somebody's colours are to those of a path, in [0, 1]; None where that is not known."""
        if self._witness is None or path.colors is None:
            return None
        colors = self._witness.colors(row, one)
        return None if colors is None else unlike(path.colors, colors)

    def _goes_on(self, path: _Path, one: Person, row: int) -> None:
        """A path goes on with somebody; of one who stands alone in a frame that was looked at, colours are learned."""
        path.goes_on(one, row)
        if self._witness is None or self._looked != row or path.colors is None:
            return
        if all(_overlap(one.box, other.box) <= 0 for other in self._frames[row] if other is not one):
            colors = self._witness.colors(row, one)
            if colors is not None:
                path.colors = (1 - _LEARNED) * path.colors + _LEARNED * colors

    def _follow_others(self, people: Sequence[Person], row: int) -> None:
        """The paths of the others after a row; who was not seen for long is forgotten."""
        self._others = [other for other in self._others if abs(row - other.rows[-1]) <= _PATIENCE]
        for one in people:
            near = max(self._others, key=lambda other: _overlap(one.box, other.expected(row)), default=None)
            if near is not None and near.rows[-1] != row and _overlap(one.box, near.expected(row)) > 0:
                self._goes_on(near, one, row)
            elif _overlap(one.box, self._path.boxes[-1]) < _SAME:  # else the same person, found twice
                self._others.append(self._begun(one, row))


def _within_reach(one: Person, path: _Path, expected: np.ndarray) -> bool:
    """Whether somebody is of the size of where a path ended, and near that place or where its motion leads."""
    last = path.boxes[-1]
    diagonals = sorted([_diagonal(one.box), _diagonal(last)])
    if diagonals[1] > _GROWTH * diagonals[0]:
        return False
    return any(_overlap(one.box, at) > 0 or _distance(one.box, at) < _REACH * diagonals[1] for at in (last, expected))


def _distance(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.linalg.norm(_center(first) - _center(second)))


def _center(box: np.ndarray) -> np.ndarray:
    return (box[:2] + box[2:]) / 2


def _diagonal(box: np.ndarray) -> float:
    return max(float(np.linalg.norm(box[2:] - box[:2])), 1.0)


def _overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two boxes."""
    sides = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    common = float(np.prod(sides.clip(0)))
    union = float(np.prod(first[2:] - first[:2]) + np.prod(second[2:] - second[:2])) - common
    return common / union if union > 0 else 0.0
