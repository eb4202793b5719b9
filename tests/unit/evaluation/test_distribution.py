"""Frechet metrics with a small linear network: analytic values and what must not change them."""

from pathlib import Path

import numpy as np
import pytest

from xdyna.config.eval import ClipProtocol
from xdyna.evaluation.masks import Masker
from xdyna.evaluation.metric import LOWER, Case, Column, Record, Video
from xdyna.evaluation.metrics.distribution import FrechetMetric
from xdyna.evaluation.store import ArrayCache, MemoryCache, Store, record_key

D = 5
COLUMN = Column("fid", "FID", LOWER)


class Linear:
    """Colours of five places: a feature per image, or their mean for a clip."""

    name, version, dim, batch = "linear", "1", D, 1

    def __init__(self, *, clips: bool = False) -> None:
        self.clips, self.calls = clips, 0

    def features(self, frames: np.ndarray) -> np.ndarray:
        self.calls += 1
        if frames.ndim == 5:
            assert self.clips
            assert 1 < len(frames) <= self.batch
            return np.concatenate([self.features(clip) for clip in frames])
        x = frames[:, :D, 0, 0].astype(np.float32)
        return x.mean(axis=0, keepdims=True) if self.clips else x


def video(seed: int, *, frames: int = 6, shift: int = 0) -> Video:
    pixels = np.random.default_rng(seed).integers(0, 200, (frames, 8, 8, 3), dtype=np.uint8) + np.uint8(shift)
    return Video(f"v{seed}", pixels, 8.0, f"{seed}-{shift}")


def metric(*, clips: bool = False, cache: ArrayCache | None = None, region: str = "full") -> FrechetMetric:
    protocol = ClipProtocol(4, "windows") if clips else None
    return FrechetMetric(
        "fid", COLUMN, Linear(clips=clips), ddof=1, protocol=protocol, region=region, masker=Masker(None), cache=cache
    )


def cases(*, shift: int = 0, other: int = 0) -> list[Case]:
    return [Case(f"{k:03d}", video(k + other, shift=shift), video(k)) for k in range(12)]


def test_a_shift_of_all_colours() -> None:
    m = metric()
    value = m.reduce([m.measure(c) for c in cases(shift=7)])["fid"]
    assert value == pytest.approx(D * 7**2, rel=1e-6)


def test_identical_folders() -> None:
    m = metric(clips=True)
    assert m.reduce([m.measure(c) for c in cases()])["fid"] == pytest.approx(0, abs=1e-6)


def test_numbers_of_features() -> None:
    m = metric(clips=True)
    notes = m.reduce([m.measure(c) for c in cases()])
    assert notes["fid.features_truth"] == 12  # 6 frames hold one window of 4
    assert m.reduce([m.measure(c) for c in cases()[:1]])["fid"] != m.reduce([])["fid"]  # NaN both: too few
    assert np.isnan(m.reduce([])["fid"])


def test_several_clips_at_once_give_the_features_of_each() -> None:
    case = Case("a", video(1, frames=24), video(2, frames=4))  # six windows, and one
    single, batched = metric(clips=True), metric(clips=True)
    batched._extractor.batch = 4
    expected, record = single.measure(case), batched.measure(case)
    for name, count in (("generated", 6), ("truth", 1)):
        assert record.arrays[name].shape == (count, D)
        np.testing.assert_array_equal(record.arrays[name], expected.arrays[name])
    assert batched._extractor.calls == (1 + 4) + (1 + 2) + 1  # type: ignore[attr-defined] # fours, the rest, one


@pytest.mark.parametrize("shards", [2, 3])
def test_shards_change_nothing(shards: int, tmp_path: Path) -> None:
    """Processes measure every `shards`-th case into one folder; all records are then read in order."""
    whole = metric()
    expected = whole.reduce([whole.measure(c) for c in cases(other=50)])["fid"]
    store = Store(tmp_path)
    for rank in reversed(range(shards)):
        m = metric(cache=store)
        for case in cases(other=50)[rank::shards]:
            store.save(record_key(m, case), m.measure(case))
    loaded = [store.load(record_key(whole, case)) for case in cases(other=50)]
    assert whole.reduce(r for r in loaded if r is not None)["fid"] == pytest.approx(expected, rel=1e-12)


def test_the_truth_is_embedded_once_for_many_methods() -> None:
    m = metric(cache=MemoryCache())
    for method in (0, 100, 200):
        for case in cases(other=method):
            m.measure(case)
    assert m._extractor.calls == 12 + 12 + 12  # type: ignore[attr-defined] # the first method repeats the truth itself


def test_a_mask_of_ones_makes_the_figure_the_whole() -> None:
    ones = np.ones((6, 8, 8), bool)
    full, figure = metric(), metric(region="figure")
    for case in cases(other=9)[:2]:
        masked = Case(case.id, case.generated, case.truth, masks=(ones, ones))
        for name in ("truth", "generated"):
            assert np.array_equal(figure.measure(masked).arrays[name], full.measure(case).arrays[name])
    zeros = Case("z", video(1), video(2), masks=(~ones, ~ones))
    assert not figure.measure(zeros).arrays["truth"].any()


def test_a_damaged_record_is_measured_again(tmp_path: Path) -> None:
    store, record = Store(tmp_path), Record({"a": 1.5}, {"x": np.arange(6.0)})
    store.save("ab12", record)
    loaded = store.load("ab12")
    assert loaded is not None
    assert loaded.values == record.values
    assert np.array_equal(loaded.arrays["x"], record.arrays["x"])
    path = next(tmp_path.rglob("*.npz"))
    path.write_bytes(path.read_bytes()[:60])
    with pytest.warns(UserWarning, match="measured again"):
        assert store.load("ab12") is None
    path.write_bytes(b"")
    with pytest.warns(UserWarning, match="measured again"):
        assert store.load("ab12") is None
    assert store.load("cd34") is None
