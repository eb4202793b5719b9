import dataclasses
import random
from collections import Counter

import pytest

from tests.unit.preprocess.made import outcome_of, record_of
from xdyna.config.data import DataError
from xdyna.config.preprocess import FinishOptions, PreprocessOptions
from xdyna.data.records import MANIFEST, VideoOutcome, VideoSource
from xdyna.data.store import read_dataset, read_manifest, read_skips, write_manifest
from xdyna.preprocess.finish import assemble, find_duplicates, finish, split_of
from xdyna.preprocess.run import versions


def hashed(name: str, value: int, **changes: object):
    return record_of(f"{name}-0000", phash=f"{value:016x}", **changes)


@pytest.mark.parametrize("bits", [0, 1, 4, 7])
def test_duplicates_are_those_of_comparing_every_pair(bits) -> None:
    rng = random.Random(bits)
    values = [rng.getrandbits(64) for _ in range(30)]
    for _ in range(120):
        value = rng.choice(values)
        for bit in rng.sample(range(64), rng.randrange(9)):
            value ^= 1 << bit
        values.append(value)
    clips = [hashed(f"v{k:03d}", value) for k, value in enumerate(values)]
    expected, kept = {}, []
    for k, value in enumerate(values):
        near = [other for other in kept if bin(value ^ values[other]).count("1") <= bits]
        if near:
            expected[k] = near[0]
        else:
            kept.append(k)
    assert find_duplicates(clips, bits) == expected
    assert 0 < len(expected) < len(values)


def test_only_the_same_kind_of_other_videos_counts_as_a_duplicate() -> None:
    clips = [record_of("a-0000"), record_of("a-0001", start=9), hashed("b", 0, kind="scene"), hashed("c", 1)]
    assert find_duplicates(clips, 0) == {}
    assert find_duplicates(clips, 1) == {3: 0}
    assert find_duplicates(clips, -1) == {}


def test_duplicates_become_skips_and_the_first_stays() -> None:
    later, first = hashed("b", 0b111, start=4, frames=9), hashed("a", 0)
    outcomes = [VideoOutcome("b", "0", 1.0, (later,)), VideoOutcome("a", "0", 1.0, (first,))]
    clips, skips = assemble(outcomes, FinishOptions(duplicate_bits=3), {"b-0000": "thumbnails/x.jpg"})
    assert [clip.clip_id for clip in clips] == ["a-0000"]
    (skip,) = skips
    assert (skip.reason, skip.stage, skip.start, skip.frames) == ("duplicate", "duplicate", 4, 9)
    assert skip.detail == "3 of 64 bits differ from a-0000"
    assert skip.thumbnail == "thumbnails/x.jpg"
    assert len(assemble(outcomes, FinishOptions(duplicate_bits=2), {})[0]) == 2


def test_splits_have_their_shares_and_groups_stay_together() -> None:
    options = FinishOptions(validation=0.2, test=0.1)
    counts = Counter(split_of(f"group {k}", options) for k in range(5000))
    assert counts["validation"] / 5000 == pytest.approx(0.2, abs=0.02)
    assert counts["test"] / 5000 == pytest.approx(0.1, abs=0.02)
    clips = [
        hashed(f"v{k:03d}", random.Random(k).getrandbits(64), group=f"dancer {k % 40}", split="") for k in range(200)
    ]
    stay, _ = assemble([VideoOutcome(c.source_id, "0", 1.0, (c,)) for c in clips], options, {})
    splits = {}
    for clip in stay:
        splits.setdefault(clip.group, set()).add(clip.split)
    assert all(len(found) == 1 for found in splits.values())
    assert {split for found in splits.values() for split in found} == {"train", "validation", "test"}
    assert Counter(split_of(f"group {k}", FinishOptions()) for k in range(5000))["train"] == pytest.approx(4900, abs=60)
    assert {split_of(f"g{k}", FinishOptions(validation=0, test=0)) for k in range(99)} == {"train"}


def test_another_seed_draws_other_groups_and_more_footage_changes_no_split() -> None:
    half = FinishOptions(validation=0.5, test=0)
    other = dataclasses.replace(half, split_seed=1)
    names = [f"g{k}" for k in range(100)]
    assert [split_of(name, half) for name in names] != [split_of(name, other) for name in names]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"duplicate_bits": 17}, "finish.duplicate_bits: got 17"),
        ({"validation": -0.1}, "finish.validation and finish.test: got -0.1"),
        ({"validation": 0.5, "test": 0.5}, "whose sum is below 1"),
        ({"test": float("nan")}, "got 0.01 and nan"),
    ],
)
def test_options_out_of_range(change, message) -> None:
    with pytest.raises(DataError, match=message):
        FinishOptions(**change)


def finished(folder, outcomes):
    return finish(folder, outcomes, footage=PreprocessOptions(), options=FinishOptions(), versions=versions())


def test_the_folder_follows_from_the_outcomes_in_any_order(tmp_path) -> None:
    sources = [VideoSource(f"v{k}", f"v{k}.mp4") for k in range(4)]
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, order in zip(folders, (sources, sources[::-1]), strict=True):
        finished(folder, [outcome_of(source, f"{source.id:0>64}", folder) for source in order])
    names = {path.relative_to(folders[0]) for path in folders[0].rglob("*") if path.is_file()}
    assert {str(name) for name in names} > {
        "manifest.parquet", "skipped.parquet", "dataset.json", "README.md", "report.html",
    }  # fmt: skip
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    assert len(read_dataset(folders[0]).records) == 8
    assert len(read_skips(folders[0] / "skipped.parquet")) == 4


def test_what_was_made_of_clips_since_stays_with_them(tmp_path) -> None:
    source = VideoSource("v", "v.mp4")
    outcome = outcome_of(source, "1" * 64, tmp_path)
    finished(tmp_path, [outcome])
    records = [
        dataclasses.replace(record, faces=f"faces/{record.clip_id}.npz")
        for record in read_manifest(tmp_path / MANIFEST)
    ]
    (tmp_path / "faces").mkdir()
    (tmp_path / records[0].faces).touch()
    write_manifest(tmp_path / MANIFEST, records)
    finished(tmp_path, [outcome])
    assert [record.faces for record in read_manifest(tmp_path / MANIFEST)] == [records[0].faces, ""]
    finished(tmp_path, [outcome_of(source, "2" * 64, tmp_path)])
    assert [record.faces for record in read_manifest(tmp_path / MANIFEST)] == ["", ""]


def test_nothing_kept_is_an_error_with_the_reasons(tmp_path) -> None:
    outcome = dataclasses.replace(outcome_of(VideoSource("v", "v.mp4"), "1" * 64, tmp_path), clips=())
    with pytest.raises(DataError, match=r"none of 1 videos gave a clip \(static: 1\).*report.html"):
        finished(tmp_path, [outcome])
    assert (tmp_path / "report.html").is_file()
    assert not (tmp_path / MANIFEST).exists()
