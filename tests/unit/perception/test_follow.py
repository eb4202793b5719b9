"""One person among the people of every frame, with and without a witness who looks again."""

from collections.abc import Callable

import numpy as np
import pytest

from xdyna.perception import Person
from xdyna.perception.follow import follow


class Told:
    """A witness who knows everybody; colours are a histogram of one bin for each name."""

    def __init__(self, rows: list[dict[str, Person]], *, colors: bool = True) -> None:
        self.rows, self.told, self.looked = rows, colors, list[int]()

    def everybody(self, row: int) -> list[Person]:
        self.looked.append(row)
        return sorted(self.rows[row].values(), key=lambda one: -one.area)

    def colors(self, row: int, person: Person) -> np.ndarray | None:
        names = [name for name, one in self.rows[row].items() if one is person]
        return np.eye(26, dtype=np.float32)[ord(names[0]) - ord("a")] if names and self.told else None


def names(followed: list[Person | None], rows: list[dict[str, Person]]) -> str:
    """Who was followed, a letter a frame; "-" for nobody."""
    return "".join(
        "-" if one is None else next(name for name, other in row.items() if other is one)
        for one, row in zip(followed, rows, strict=True)
    )


def brief(rows: list[dict[str, Person]], *hidden: str) -> list[list[Person]]:
    """What is found without a search: all but those hidden."""
    found = [[one for name, one in row.items() if name not in hidden] for row in rows]
    return [sorted(people, key=lambda one: -one.area) for people in found]


@pytest.fixture
def walk(make_people) -> Callable[..., list[dict[str, Person]]]:
    """Rows of people by name: places of their left edges in each row; None where they are not."""

    def make(**places: list[float | None]) -> list[dict[str, Person]]:
        count = len(next(iter(places.values())))
        return [
            {
                name: make_people(left[k], 40 + 2 * j, left[k] + 40, 140)
                for j, (name, left) in enumerate(places.items())
                if left[k] is not None
            }
            for k in range(count)
        ]

    return make


@pytest.mark.parametrize("hidden", [0, 8, 16], ids=lambda px: f"hidden below {px} px")
@pytest.mark.parametrize("speed", [2, 4, 8, 12])
@pytest.mark.parametrize("person", [0, 1])
def test_two_who_cross_are_not_exchanged(make_people, person, speed, hidden):
    """They walk through each other; where they meet the smaller one may hide the other for some frames."""
    boxes = []
    for k in range(60):
        first, second = 20 + speed * k, 20 + speed * (59 - k)
        both = [(first, 40, first + 42, 140), (second, 40, second + 38, 140)]
        boxes.append(both[1:] if abs(first - second) < hidden else both)
    found = [[make_people(*box) for box in row] for row in boxes]
    widths = [round(float(one.box[2] - one.box[0])) for one in follow(found, person=person) if one]
    assert len(widths) >= 60 - (0 if person else 2 * hidden // (2 * speed) + 1) * (hidden > 0)
    assert set(widths) == {(42, 38)[person]}


def test_follow_does_not_jump_in_a_gap(make_people):
    dancer, other = make_people(20, 20, 60, 120), make_people(180, 25, 215, 110)
    found = [[dancer, other], [other], [other], [dancer, other], []]
    assert follow(found) == [dancer, None, None, dancer, None]
    assert follow(found, person=1) == [other, other, other, other, None]
    assert follow([[], []]) == [None, None]


def test_follow_goes_to_both_ends_and_over_cuts(make_people):
    dancer, other = make_people(20, 20, 60, 120), make_people(180, 25, 215, 110)
    assert follow([[other], [dancer, other]], person=1) == [other, other]
    cut = [[dancer]] * 2 + [[other]] * 12
    assert follow(cut) == [dancer] * 2 + [None] * 8 + [other] * 4


def there_and_back(count: int, speed: float) -> list[float]:
    return [speed * min(k, count - 1 - k) for k in range(count)]


@pytest.mark.parametrize("person", [0, 1])
def test_two_who_meet_and_go_back_are_told_apart_by_their_colours(walk, person):
    """Place alone exchanges them: where they turn round their motion leads on to the other."""
    way = there_and_back(31, 8)
    rows = walk(a=[20 + x for x in way], b=[262 - x for x in way])
    wanted = "ab"[person] * 31
    assert names(follow(brief(rows), person=person, witness=Told(rows, colors=False)), rows) != wanted
    assert names(follow(brief(rows), person=person, witness=Told(rows)), rows) == wanted


@pytest.mark.parametrize("person", [0, 1])
def test_two_who_meet_and_go_back_where_one_is_hidden(walk, person):
    """Hidden for six frames from where they turn round; colours say who is who."""
    way = there_and_back(31, 10)
    rows = walk(a=[20 + x for x in way], b=[330 - x if k < 15 or k > 20 else None for k, x in enumerate(way)])
    wanted = ("a" * 31, "b" * 15 + "-" * 6 + "b" * 10)[person]
    assert names(follow(brief(rows, *("b" * person)), person=person, witness=Told(rows)), rows) == wanted


def test_who_comes_out_from_behind_somebody_is_taken_up(walk):
    """Where the two overlap, the other one's path has somebody better to go on with."""
    count = 21
    rows = walk(a=[20 + x for x in there_and_back(count, 10)], b=[220 - x for x in there_and_back(count, 10)])
    for row in rows[7:11]:
        del row["b"]
    wanted = "b" * 7 + "-" * 4 + "b" * 10
    assert names(follow(brief(rows, "b"), person=1, witness=Told(rows)), rows) == wanted


def test_who_is_found_by_a_search_alone_is_followed_through_a_crossing(walk):
    """As MediaPipe does: the farther one is not found beside the nearer one, and hidden for four frames."""
    count = 30
    rows = walk(a=[20 + 8.0 * k for k in range(count)], b=[252 - 8.0 * k for k in range(count)])
    for k in range(13, 17):
        del rows[k]["b"]
    expected = "b" * 13 + "----" + "b" * 13
    assert names(follow(brief(rows, "b"), person=1, witness=Told(rows)), rows) == expected
    assert names(follow(brief(rows, "b"), person=0, witness=Told(rows)), rows) == "a" * count
    assert set(names(follow(brief(rows, "b"), person=1), rows)) == {"-"}, "without a witness there is nobody"


def test_one_alone_is_looked_at_once(walk):
    rows = walk(a=[20 + 30.0 * k for k in range(40)])
    witness = Told(rows)
    assert names(follow(brief(rows), witness=witness), rows) == "a" * 40
    assert witness.looked == [0]


def test_who_is_lost_is_searched_for_often_at_first(walk):
    rows = walk(a=[20.0] * 3 + [None] * 47, b=[400.0] * 50)
    for row in rows[:3]:
        row.pop("b")
    witness = Told(rows)
    assert names(follow(brief(rows), person=0, witness=witness), rows) == "aaa" + "-" * 8 + "b" * 39, "a cut"
    assert len(witness.looked) <= 2 + 9 + 1
    gone = walk(a=[20.0] * 3 + [None] * 97)
    witness = Told(gone)
    assert names(follow(brief(gone), witness=witness), gone) == "aaa" + "-" * 97
    assert witness.looked == [0], "frames without anybody are not searched for one who was found without"
    witness = Told(gone)
    assert names(follow(brief(gone, "a"), witness=witness), gone) == "aaa" + "-" * 97, "found by searches alone"
    assert 3 + 8 <= len(witness.looked) <= 3 + 8 + 97 // 8 + 1


def test_who_was_hidden_is_not_taken_for_who_was_there(walk):
    """As at a crossing of two in the same clothes: the one who is hidden would be just where the other is, too."""
    rows = walk(
        a=[20 + 10.0 * k for k in range(24)], b=[250 - 10.0 * k if k < 8 or k > 15 else None for k in range(24)]
    )
    for person, expected in enumerate(("a" * 24, "b" * 8 + "-" * 8 + "b" * 8)):
        assert names(follow(brief(rows), person=person, witness=Told(rows, colors=False)), rows) == expected


def test_the_largest_of_a_crowd_is_the_largest_of_all(walk):
    """The first frame is searched before anybody is chosen."""
    rows = walk(a=[20.0] * 6, b=[100.0] * 6, c=[200.0] * 6)
    assert names(follow(brief(rows, "a"), person=0), rows) == "b" * 6
    assert names(follow(brief(rows, "a"), person=0, witness=Told(rows)), rows) == "a" * 6


def test_after_a_long_absence_colours_say_who_is_back(walk):
    """Behind somebody for two seconds, and out on the other side, where place says nothing any more."""
    rows = walk(a=[20.0] * 10 + [None] * 20 + [300.0] * 10, b=[150.0] * 40, c=[450.0] * 40)
    rows = [{name: row[name] for name in "bca" if name in row} for row in rows]
    followed = names(follow(brief(rows), person=0, witness=Told(rows)), rows)
    assert followed == "a" * 10 + "-" * 20 + "a" * 10
    rows = walk(d=[None] * 30 + [350.0] * 10, a=[20.0] * 10 + [None] * 20 + [250.0] * 10, b=[150.0] * 40)
    followed = names(follow(brief(rows), person=0, witness=Told(rows)), rows)
    assert followed == "a" * 10 + "-" * 20 + "a" * 10, "not the newcomer, who is larger"


def test_company_is_looked_at_again(walk):
    """So that where they were going is known when two meet."""
    rows = walk(a=[20.0] * 17, b=[400.0] * 17)
    witness = Told(rows)
    assert names(follow(brief(rows, "b"), witness=witness), rows) == "a" * 17
    assert witness.looked == [0, 4, 8, 12, 16]


def test_a_search_finds_so_many_people_where_a_look_does_not(walk):
    """Nobody is in the first frame: later ones are searched, too, if no look finds enough people."""
    rows = walk(a=[20.0] * 32, b=[None] * 10 + [200.0] * 22)
    followed = names(follow(brief(rows, "b"), person=1, witness=Told(rows)), rows)
    assert followed[10:] == "b" * 22
    witness = Told(rows)
    assert follow(brief(rows), person=2, witness=witness) == [None] * 32
    assert len(witness.looked) <= 17
    assert follow([], witness=Told([])) == []


def test_the_nearer_of_two_alike_is_kept_where_they_meet(make_people):
    """Boxes that MediaPipe found of a dancer who passes before his mirror image; that one is found now and then."""
    near = [
        (74, 206, 178, 463), (95, 206, 208, 462), (124, 208, 244, 462), (148, 207, 276, 465), (181, 209, 307, 461),
        (212, 207, 332, 462), (243, 209, 368, 461), (263, 207, 394, 468), (305, 207, 425, 463), (340, 207, 452, 461),
        (361, 209, 439, 464), (376, 185, 468, 463), (444, 203, 539, 440), (467, 182, 578, 460), (490, 211, 587, 464),
    ]  # fmt: skip
    far = {0: (765, 248, 873, 464), 3: (714, 249, 778, 465), 4: (684, 228, 760, 465), 8: (530, 247, 617, 466)}
    rows = [{"a": make_people(*box)} for box in near]
    for row, box in far.items():
        rows[row]["b"] = make_people(*box)
    assert names(follow(brief(rows), witness=Told(rows, colors=False)), rows) == "a" * 15


def test_the_first_frame_with_anybody_is_searched_as_well(walk):
    """A look finds the smaller of two in it."""
    rows = walk(a=[None] * 3 + [20.0] * 6, b=[None] * 3 + [200.0] * 6)
    for row in rows[3:]:
        row["a"].box[3] += 40  # the larger one
    witness = Told(rows)
    assert names(follow(brief(rows, "a"), witness=witness), rows) == "---" + "a" * 6
    assert witness.looked[:2] == [0, 3]


def test_a_newcomer_beside_the_person_is_doubted(walk):
    """A look finds only them in one frame: a search finds the person where they were."""
    rows = walk(a=[20.0] * 9, b=[400.0] * 9, c=[None] * 6 + [50.0] * 3)
    found = brief(rows)
    found[6] = [one for one in found[6] if one is not rows[6]["a"]]
    assert names(follow(found, witness=Told(rows, colors=False)), rows) == "a" * 9


def test_a_newcomer_in_other_clothes_is_not_the_person(walk):
    """They step to where the person is expected, who is hidden for three frames."""
    rows = walk(a=[20.0] * 5 + [None] * 3 + [20.0] * 6, b=[400.0] * 14, c=[None] * 5 + [45.0] * 3 + [None] * 6)
    assert names(follow(brief(rows), witness=Told(rows)), rows) == "a" * 5 + "---" + "a" * 6


class Alike(Told):
    """Clothes of some share half of their colours with another's."""

    def __init__(self, rows: list[dict[str, Person]], **alike: str) -> None:
        super().__init__(rows)
        self.alike = alike

    def colors(self, row: int, person: Person) -> np.ndarray | None:
        own = super().colors(row, person)
        name = next(name for name, one in self.rows[row].items() if one is person)
        other = self.alike.get(name)
        return own if own is None or other is None else (own + np.eye(26, dtype=np.float32)[ord(other) - 97]) / 2


def test_one_who_stays_is_not_the_one_who_went(walk):
    """Nor where the two are dressed somewhat alike, and nobody else is there to compare with."""
    rows = walk(a=[20.0] * 6 + [None] * 24, b=[300.0] * 30)
    assert names(follow(brief(rows), witness=Alike(rows, b="a")), rows) == "a" * 6 + "-" * 24


def test_after_a_cut_somebody_dressed_like_another_is_taken_up(walk):
    """Only who stands where that one stood was there before."""
    rows = walk(a=[20.0] * 6 + [None] * 14, b=[300.0] * 6 + [None] * 14, c=[None] * 6 + [600.0] * 14)
    followed = names(follow(brief(rows), witness=Alike(rows, c="b")), rows)
    assert followed == "a" * 6 + "-" * 8 + "c" * 6


def test_after_a_cut_the_second_largest_stays_that(walk):
    """By place alone."""
    rows = walk(
        a=[20.0] * 2 + [None] * 12, b=[200.0] * 2 + [None] * 12,
        c=[None] * 2 + [400.0] * 12, d=[None] * 2 + [600.0] * 12,
    )  # fmt: skip
    assert names(follow(brief(rows), person=1), rows) == "bb" + "-" * 8 + "d" * 4


@pytest.mark.parametrize(("back", "expected"), [("b", "b"), ("c", "-")])
def test_the_second_who_comes_back_alone_is_known_by_their_clothes(walk, back, expected):
    """Fewer people than were asked for is no reason to leave that one; somebody else alone is not the second."""
    places = {"a": [20.0] * 4 + [None] * 26, "b": [200.0] * 4 + [None] * 26, "c": [None] * 30}
    places[back] = places[back][:20] + [500.0] * 10
    rows = walk(**places)
    assert names(follow(brief(rows), person=1, witness=Told(rows)), rows) == "b" * 4 + "-" * 16 + expected * 10


def test_who_was_there_before_a_newcomer_is_not_the_second(walk):
    """Nor where one more person of the frame is new."""
    rows = walk(c=[None] * 6 + [500.0] * 24, b=[300.0] * 30, a=[20.0] * 6 + [None] * 24)
    assert names(follow(brief(rows), person=1, witness=Told(rows)), rows) == "a" * 6 + "-" * 24


@pytest.mark.parametrize("wide", [38, 44])
def test_of_two_within_reach_the_nearer_goes_on(make_people, wide):
    """Somebody moves by more than their width; at their other side stands somebody a little farther away."""
    start, moved = make_people(100, 40, 140, 140), make_people(145, 40, 185, 140)
    other = make_people(47, 40, 47 + wide, 140)
    found = sorted([moved, other], key=lambda one: -one.area)
    assert follow([[start], found]) == [start, moved]


def test_nobody_becomes_twice_as_tall_at_once(make_people):
    person, giant = make_people(100, 40, 140, 140), make_people(60, 0, 190, 300)
    assert follow([[person], [person], [giant], [person]]) == [person, person, None, person]


def test_who_is_found_twice_is_one_person(make_people):
    """A second box around somebody is no companion who later takes their place."""
    tight, wide = make_people(100, 40, 140, 140), make_people(96, 36, 144, 150)
    found = [[tight]] + [[wide, tight]] * 6 + [[wide]] * 4
    followed = follow(found)
    assert all(one is not None for one in followed)


def test_who_is_found_twice_is_no_rival_of_themselves(walk):
    """The person goes behind somebody who is then found twice: neither box is the person's."""
    places = [100.0 + 16 * k for k in range(14)]
    rows = walk(b=[230.0] * 14, a=[*places[:6], *[None] * 5, *places[11:]], d=[None] * 6 + [236.0] * 5 + [None] * 3)
    followed = names(follow(brief(rows), person=1, witness=Told(rows, colors=False)), rows)
    assert followed == "a" * 6 + "-----" + "aaa"


def test_who_left_is_not_met_any_more(walk):
    """The person stands where somebody stood who left: every fourth frame is searched, for company elsewhere."""
    count = 41
    rows = walk(a=[100.0] * 6 + [160.0] * (count - 6), b=[190.0] * 4 + [None] * (count - 4), c=[600.0] * count)
    witness = Told(rows)
    assert names(follow(brief(rows), witness=witness), rows) == "a" * count
    assert witness.looked[-4:] == [28, 32, 36, 40]


def test_where_two_meet_and_one_is_missed_everybody_is_looked_for(walk):
    rows = walk(a=[100.0] * 12, b=[330.0, 310.0, 290.0, 270.0, 250.0, 230.0, 210.0, 190.0, 170.0, 150.0, 130.0, 125.0])
    found = brief(rows)
    found[10] = [rows[10]["a"]]
    found[11] = [rows[11]["a"]]
    witness = Told(rows)
    assert names(follow(found, witness=witness), rows) == "a" * 12
    assert {10, 11} <= set(witness.looked)


def test_the_last_frame_may_be_the_one_with_so_many(walk):
    rows = walk(a=[20.0] * 40, b=[None] * 39 + [200.0])
    assert names(follow(brief(rows, "b"), person=1, witness=Told(rows)), rows) == "-" * 39 + "b"


class Covering(Told):
    """Where the nearer one, a, covers b, a's clothes are seen in b's place as well."""

    def colors(self, row: int, person: Person) -> np.ndarray | None:
        people = self.rows[row]
        if person is people.get("b") and "a" in people and abs(person.box[0] - people["a"].box[0]) < 36:
            person = people["a"]
        return super().colors(row, person)


@pytest.mark.parametrize("hidden", [(), ("b",)])
def test_clothes_are_not_learned_while_somebody_covers_them(walk, hidden):
    """Else the other's would count as the person's own when both go back."""
    way = [20 * min(k, 18 - k) for k in range(19)]
    rows = walk(a=[20.0 + x for x in way], b=[380.0 - x for x in way])
    assert names(follow(brief(rows, *hidden), witness=Covering(rows)), rows) == "a" * 19
