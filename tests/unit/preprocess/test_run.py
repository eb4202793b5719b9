import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import fsspec
import pytest

from tests.unit.preprocess.made import Here, quick_process
from xdyna.config.data import DataError
from xdyna.config.preprocess import FinishOptions, PreprocessOptions
from xdyna.data.addresses import local_copy
from xdyna.data.records import VideoSource
from xdyna.data.store import read_dataset, read_skips, validate
from xdyna.media import MediaError
from xdyna.preprocess.engines import LocalEngine, failure
from xdyna.preprocess.run import Job, Plan, Step, VideoWork, check_addresses, finish_all, plan, process_all
from xdyna.preprocess.work import WorkFolder

ROOT = Path(__file__).resolve().parents[3]


class Broken:
    """An engine whose workers cannot write."""

    def run(self, tasks, work):
        yield 0, failure(MediaError("a full disk as workers tell it"))


@pytest.fixture
def calls(tmp_path, monkeypatch) -> Path:
    """Where `quick_process` notes its calls."""
    path = tmp_path / "calls.txt"
    monkeypatch.setenv("XDYNA_TEST_CALLS", str(path))
    path.touch()
    return path


def footage(folder: Path, *contents: bytes) -> list[VideoSource]:
    folder.mkdir(exist_ok=True)
    sources = []
    for number, content in enumerate(contents):
        path = folder / f"v{number}.mp4"
        path.write_bytes(content)
        sources.append(VideoSource(f"v{number}", str(path)))
    return sources


def job_of(sources: list[VideoSource], folder: Path, **changes: object) -> Job:
    return dataclasses.replace(Job(sources, folder, PreprocessOptions(), process=quick_process), **changes)


def made(job: Job, engine: object = None) -> None:
    process_all(job, engine or Here())
    finish_all(job, FinishOptions())


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a data set but what runs remember."""
    files = [path for path in folder.rglob("*") if path.is_file() and ".work" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_rerun_computes_nothing_and_touches_nothing(tmp_path, calls) -> None:
    job = job_of(footage(tmp_path / "in", b"a", b"bb", b""), tmp_path / "out")
    made(job)
    assert sorted(calls.read_text().split()) == ["v0", "v1"]
    before = times(job.folder)
    made(job)
    assert times(job.folder) == before
    assert len(calls.read_text().split()) == 2
    assert validate(job.folder, videos=True) == []
    reasons = Counter(skip.reason for skip in read_skips(job.folder / "skipped.parquet"))
    assert reasons == {"static": 2, "unreadable": 1}


def test_the_largest_video_is_begun_first(tmp_path, calls) -> None:
    job = job_of(footage(tmp_path / "in", b"a", b"ccc", b"bb"), tmp_path / "out")
    events = []
    process_all(job, Here(), events.append)
    assert calls.read_text().split() == ["v1", "v2", "v0"]
    assert isinstance(events[0], Plan)
    assert [event.size for event in events[1:] if isinstance(event, Step)] == [3, 2, 1]


def test_the_engine_and_the_number_of_workers_leave_no_trace(tmp_path) -> None:
    sources = footage(tmp_path / "in", *(b"video %d" % k * k for k in range(1, 6)))
    folders = []
    for number, engine in enumerate((Here(), LocalEngine(2))):
        folders.append(tmp_path / f"out{number}")
        made(job_of(sources, folders[-1]), engine)
    assert contents(folders[0]) == contents(folders[1])
    assert len(read_dataset(folders[0]).records) == 10


@pytest.mark.slow
def test_ray_gives_the_same_bytes(tmp_path) -> None:
    pytest.importorskip("ray")
    from xdyna.preprocess.engine_ray import RayEngine

    sources = footage(tmp_path / "in", *(b"video %d" % k * k for k in range(1, 6)), b"crash")
    made(job_of(sources, tmp_path / "local"), LocalEngine(2))
    made(job_of(sources, tmp_path / "ray"), RayEngine(workers=2))
    assert contents(tmp_path / "local") == contents(tmp_path / "ray")


def test_shards_share_the_work(tmp_path, calls) -> None:
    sources = footage(tmp_path / "in", b"a", b"bb", b"ccc", b"", b"dddd")
    made(job_of(sources, tmp_path / "whole"))
    calls.write_text("")
    process_all(job_of(sources, tmp_path / "parts", shard=(1, 2)), Here())
    assert calls.read_text().split() == ["v1"]
    assert not (tmp_path / "parts" / "manifest.parquet").exists()
    with pytest.raises(DataError, match=r"3 of 5 videos are not processed yet, the first is '.*v0.mp4'"):
        finish_all(job_of(sources, tmp_path / "parts"), FinishOptions())
    process_all(job_of(sources, tmp_path / "parts", shard=(0, 2)), Here())
    finish_all(job_of(sources, tmp_path / "parts"), FinishOptions())
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_only_what_changed_is_processed_again(tmp_path, calls) -> None:
    sources = footage(tmp_path / "in", b"a", b"bb")
    job = job_of(sources, tmp_path / "out")
    made(job)
    Path(sources[0].path).write_bytes(b"other")
    made(job)
    assert calls.read_text().split()[2:] == ["v0"]
    new = dataclasses.replace(sources[1], caption="a dance", license="CC0", group="dancer")
    made(dataclasses.replace(job, sources=[sources[0], new]))
    assert len(calls.read_text().split()) == 3
    record = read_dataset(job.folder).record("v1-0000")
    assert (record.caption, record.license, record.group) == ("a dance", "CC0", "dancer")


def test_a_moved_or_touched_video_is_recognised_by_its_bytes(tmp_path, calls) -> None:
    sources = footage(tmp_path / "in", b"a", b"bb")
    job = job_of(sources, tmp_path / "out")
    made(job)
    before = contents(job.folder)
    os.utime(sources[0].path, (1, 1))
    made(job)
    assert contents(job.folder) == before
    moved = Path(sources[1].path).rename(tmp_path / "moved.mp4")
    made(dataclasses.replace(job, sources=[sources[0], VideoSource("v1", str(moved))]))
    assert len(calls.read_text().split()) == 2
    assert read_dataset(job.folder).record("v1-0000").path == str(moved)


def test_a_missing_file_of_a_clip_is_made_again(tmp_path, calls) -> None:
    job = job_of(footage(tmp_path / "in", b"a", b"bb"), tmp_path / "out")
    made(job)
    before = contents(job.folder)
    (job.folder / read_dataset(job.folder).record("v1-0001").arrays).unlink()
    damaged = next((job.folder / ".work" / "videos").rglob("*.json"))
    damaged.write_text(damaged.read_text()[:100])
    made(job)
    assert contents(job.folder) == before
    assert 3 <= len(calls.read_text().split()) <= 4


def test_other_options_are_refused(tmp_path) -> None:
    job = job_of(footage(tmp_path / "in", b"a"), tmp_path / "out")
    made(job)
    other = dataclasses.replace(job, footage=PreprocessOptions(min_frames=48))
    with pytest.raises(DataError, match="was made with other options \\(min_frames was 24, now 48\\)"):
        process_all(other, Here())
    finish_all(job, FinishOptions(validation=0.9))  # these may change
    assert read_dataset(job.folder).options["finish"]["validation"] == 0.9


def test_a_folder_with_other_things_is_refused(tmp_path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    job = job_of(footage(tmp_path / "in", b"a"), tmp_path / "out")
    with pytest.raises(DataError, match="holds something else than a data set"):
        process_all(job, Here())
    (tmp_path / "out" / ".work").mkdir()
    (tmp_path / "out" / ".work" / "run.json").write_text("{")
    with pytest.raises(DataError, match="is damaged or of another version"):
        process_all(job, Here())


def test_two_runs_do_not_meet(tmp_path) -> None:
    job = job_of(footage(tmp_path / "in", b"a"), tmp_path / "out")
    memory = WorkFolder(job.folder, job.footage)
    memory.open()
    with memory.lock(shared=True):
        process_all(dataclasses.replace(job, shard=(0, 2)), Here())
        with pytest.raises(DataError, match="another run works on"):
            process_all(job, Here())
    process_all(job, Here())


def test_defects_and_deaths_are_skips_and_can_be_tried_again(tmp_path, calls) -> None:
    sources = footage(tmp_path / "in", b"a", b"a defect", b"a crash", b"b")
    job = job_of(sources, tmp_path / "out")
    made(job, LocalEngine(2, retries=1))
    skips = {skip.source_id: skip for skip in read_skips(job.folder / "skipped.parquet") if skip.reason == "error"}
    assert skips["v1"].detail == "IndexError: a defect of the program."
    assert "died 2 times" in skips["v2"].detail
    assert {record.source_id for record in read_dataset(job.folder).records} == {"v0", "v3"}
    (trace,) = (job.folder / ".work" / "errors").iterdir()
    assert "quick_process" in trace.read_text()
    before = times(job.folder)
    made(job, LocalEngine(2, retries=1))
    assert times(job.folder) == before
    calls.write_text("")
    made(dataclasses.replace(job, retry_errors=True), LocalEngine(1, retries=0))
    assert sorted(calls.read_text().split()) == ["v1", "v2"]


def test_a_full_disk_ends_the_run(tmp_path) -> None:
    job = job_of(footage(tmp_path / "in", b"a", b"full"), tmp_path / "out")
    with pytest.raises(MediaError, match="cannot be written: the disk is full"):
        process_all(job, Here())
    with pytest.raises(DataError, match="a full disk as workers tell it"):
        process_all(job, Broken())


def test_remote_videos_are_fetched_and_removed(tmp_path, calls, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "fetched"))
    (tmp_path / "fetched").mkdir()
    memory = fsspec.filesystem("memory")
    memory.pipe("/films/a.mp4", b"far away")
    sources = [VideoSource("a", "memory://films/a.mp4"), VideoSource("b", "memory://films/none.mp4")]
    with local_copy(sources[0].path) as local:
        assert local.parent.parent == tmp_path / "fetched"
        assert local.suffix == ".mp4"
        assert local.read_bytes() == b"far away"
    job = job_of(sources, tmp_path / "out")
    made(job)
    assert list((tmp_path / "fetched").iterdir()) == []
    assert [record.source_id for record in read_dataset(job.folder).records] == ["a", "a"]
    assert plan(job).pending == [(sources[1], 0)]  # what could not be fetched is tried again
    memory.pipe("/films/none.mp4", b"there now")
    made(job)
    assert calls.read_text().split() == ["a", "b"]
    assert len(read_dataset(job.folder).records) == 4
    memory.pipe("/films/a.mp4", b"changed")
    assert [source.id for source, _ in plan(job).pending] == ["a"]


def test_remote_and_local_videos_give_the_same_clips(tmp_path) -> None:
    sources = footage(tmp_path / "in", b"a", b"bb")
    made(job_of(sources, tmp_path / "near"))
    far = [VideoSource(source.id, f"file://{source.path}") for source in sources]
    made(job_of(far, tmp_path / "far"))
    near, far_records = (read_dataset(tmp_path / name).records for name in ("near", "far"))
    assert [dataclasses.replace(record, path="") for record in near] == [
        dataclasses.replace(record, path="") for record in far_records
    ]


def test_addresses_that_nothing_reads_are_named() -> None:
    check_addresses([VideoSource("a", "memory://x.mp4"), VideoSource("b", "local.mp4")])
    with pytest.raises(DataError, match=r"addresses 'teleport://\.\.\.' cannot be read"):
        check_addresses([VideoSource("a", "teleport://x.mp4")])


def test_leftovers_of_killed_runs_are_removed(tmp_path) -> None:
    job = job_of(footage(tmp_path / "in", b"a"), tmp_path / "out")
    process_all(job, Here())
    leftover = next((job.folder / "clips").rglob("*.npz")).with_name(".v0-0000.123-abcdef01.part.npz")
    leftover.touch()
    finish_all(job, FinishOptions())
    assert not leftover.exists()


def test_work_is_not_done_twice_by_two_workers(tmp_path, calls) -> None:
    job = job_of(footage(tmp_path / "in", b"a"), tmp_path / "out")
    process_all(job, Here())
    work = VideoWork(WorkFolder(job.folder, job.footage), process=quick_process)
    assert work(job.sources[0]).clips
    assert calls.read_text().split() == ["v0"]


_RUN = """
import sys
from pathlib import Path
from tests.unit.preprocess.test_run import job_of, made
from xdyna.preprocess.engines import LocalEngine
from xdyna.data.records import VideoSource
if __name__ == "__main__":
    sources = [VideoSource(path.stem, str(path)) for path in sorted(Path(sys.argv[1]).iterdir())]
    made(job_of(sources, Path(sys.argv[2])), LocalEngine(2))
"""


@pytest.mark.slow
def test_killed_at_any_moment_the_same_command_ends_with_the_same_bytes(tmp_path) -> None:
    footage(tmp_path / "in", *(b"slow %d" % k * k for k in range(1, 9)))
    script = tmp_path / "run.py"
    script.write_text(_RUN)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def start(folder: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(script), str(tmp_path / "in"), str(tmp_path / folder)]
        return subprocess.Popen(command, env=environment)

    began = time.monotonic()
    assert start("whole").wait() == 0
    whole = time.monotonic() - began
    rng, finished = random.Random(0), []
    for _ in range(5):
        process = start("killed")
        time.sleep(rng.uniform(0.3, 0.9) * whole)
        process.send_signal(signal.SIGKILL)
        process.wait()
        finished.append(len(list((tmp_path / "killed" / ".work").rglob("videos/*/*.json"))))
    assert finished == sorted(finished)
    assert start("killed").wait() == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
