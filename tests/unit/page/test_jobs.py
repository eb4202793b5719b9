"""The queue: bounded, nothing lost, cancelled in time, removed in time."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from xdyna.core.progress import Watch
from xdyna.page.jobs import Busy, Job, Jobs, Unknown


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def jobs(tmp_path: Path, clock: Clock) -> Iterator[Jobs]:
    queue = Jobs(tmp_path / "jobs", limit=3, keep=60, explain=lambda error: f"explained: {error}", clock=clock)
    yield queue
    queue.close()


def wait(said: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not said():
        assert time.monotonic() < until, "nothing came of it"
        time.sleep(0.005)


def submit(jobs: Jobs, work: Callable[[Job, Watch], Any]) -> Job:
    def prepare(folder: Path) -> tuple[str, Callable[[Job, Watch], Any]]:
        (folder / "image.png").write_bytes(b"x")
        return "a job", work

    return jobs.submit(prepare)


def stuck(gate: threading.Event) -> Callable[[Job, Watch], str]:
    """Work that waits until it may go on; 4 parts."""

    def work(job: Job, watch: Watch) -> str:
        for part in range(4):
            watch.step("working", part, 4)
            assert gate.wait(20)
        return "made"

    return work


def test_done(jobs: Jobs) -> None:
    def work(job: Job, watch: Watch) -> str:
        watch.say("a note")
        watch.step("working", 2, 2)
        return (job.folder / "image.png").read_text()

    job = submit(jobs, work)
    wait(lambda: not job.active)
    found = jobs.progress(job.id)
    assert (job.result, found.state, found.notes, found.stage, found.done) == ("x", "done", ["a note"], "working", 2)
    assert job.folder.is_dir()


def test_eta_and_place(jobs: Jobs, clock: Clock) -> None:
    gate, at_part = threading.Event(), threading.Event()

    def work(job: Job, watch: Watch) -> None:
        watch.step("first", 0, 10)
        clock.now += 50
        watch.step("second", 0, 4)  # the time of a stage begins with it
        clock.now += 6
        watch.step("second", 2, 4)
        at_part.set()
        assert gate.wait(20)

    job = submit(jobs, work)
    assert at_part.wait(20)
    found = jobs.progress(job.id)
    assert (found.done, found.total, found.seconds, found.eta_seconds) == (2, 4, 56.0, 6.0)
    others = [submit(jobs, lambda job, watch: None) for _ in range(2)]
    assert [jobs.progress(other.id).place for other in others] == [1, 2]
    assert jobs.progress(others[0].id).eta_seconds is None  # no job has ended yet
    gate.set()
    wait(lambda: not others[1].active)
    assert jobs.progress(others[1].id).place == 0


def timed(clock: Clock, seconds: float, error: str = "") -> Callable[[Job, Watch], None]:
    """Work that takes so long."""

    def work(job: Job, watch: Watch) -> None:
        clock.now += seconds
        if error:
            raise ValueError(error)

    return work


def begun(jobs: Jobs, gate: threading.Event) -> Job:
    """A job that runs until it may go on."""
    gate.clear()
    job = submit(jobs, stuck(gate))
    wait(lambda: job.stage == "working")
    return job


def ended(jobs: Jobs, work: Callable[[Job, Watch], Any]) -> Job:
    job = submit(jobs, work)
    wait(lambda: not job.active)
    return job


def test_a_failure_says_nothing_about_how_long_jobs_take(jobs: Jobs, clock: Clock) -> None:
    gate = threading.Event()
    ended(jobs, timed(clock, 900, "broken"))
    begun(jobs, gate)
    assert jobs.progress(submit(jobs, lambda job, watch: None).id).eta_seconds is None
    gate.set()


def test_who_waits_is_told_how_long_by_those_who_were_made_last(jobs: Jobs, clock: Clock) -> None:
    gate = threading.Event()
    for seconds in (*[500] * 9, *[20] * 8):
        ended(jobs, timed(clock, seconds))
    begun(jobs, gate)
    others = [submit(jobs, lambda job, watch: None) for _ in range(3)]
    assert [jobs.progress(other.id).eta_seconds for other in others] == [20, 40, 60]
    with pytest.raises(Busy, match="3 animations wait already, so this one was not taken; try again in about 20 s"):
        submit(jobs, lambda job, watch: None)
    gate.set()


def test_long_jobs_are_told_in_minutes(jobs: Jobs, clock: Clock) -> None:
    gate = threading.Event()
    ended(jobs, timed(clock, 600))
    begun(jobs, gate)
    for _ in range(3):
        submit(jobs, lambda job, watch: None)
    with pytest.raises(Busy, match="try again in about 10 minutes"):
        submit(jobs, lambda job, watch: None)
    gate.set()


def test_a_stage_that_begins_again_has_its_own_time(jobs: Jobs, clock: Clock) -> None:
    gate, at_part = threading.Event(), threading.Event()

    def work(job: Job, watch: Watch) -> None:
        watch.step("denoising", 3, 4)
        clock.now += 50
        watch.step("denoising", 0, 4)  # of the next window
        clock.now += 6
        watch.step("denoising", 2, 4)
        at_part.set()
        assert gate.wait(20)

    job = submit(jobs, work)
    assert at_part.wait(20)
    assert jobs.progress(job.id).eta_seconds == 6
    gate.set()


def test_first_come_first_made(jobs: Jobs) -> None:
    gate, made = threading.Event(), list[str]()
    begun(jobs, gate)
    others = [submit(jobs, lambda job, watch: made.append(job.id)) for _ in range(3)]
    gate.set()
    wait(lambda: not any(other.active for other in others))
    assert made == [other.id for other in others]


def test_what_takes_longer_than_it_is_kept_is_left_alone(jobs: Jobs, clock: Clock) -> None:
    gate = threading.Event()
    running = begun(jobs, gate)
    clock.now += 600
    assert jobs.sweep() == 0
    gate.set()
    wait(lambda: not running.active)
    assert running.folder.is_dir()
    clock.now += 50
    assert jobs.progress(running.id).seconds == 600, "an ended job's time stands still"
    assert jobs.sweep() == 0, "kept from its end on"


def test_whatever_ends_a_job_the_queue_goes_on(jobs: Jobs) -> None:
    def work(job: Job, watch: Watch) -> None:
        raise SystemExit("a library left")

    bad, good = submit(jobs, work), submit(jobs, lambda job, watch: 7)
    wait(lambda: not good.active)
    assert (bad.state, good.result) == ("failed", 7)


def test_a_failure_is_a_sentence_and_the_queue_goes_on(jobs: Jobs) -> None:
    def work(job: Job, watch: Watch) -> None:
        raise RuntimeError("broken")

    bad = submit(jobs, work)
    good = submit(jobs, lambda job, watch: 7)
    wait(lambda: not good.active)
    assert (bad.state, bad.error, good.result) == ("failed", "explained: broken", 7)
    assert not bad.folder.exists()
    assert good.folder.exists()


def test_thirty_at_once(jobs: Jobs) -> None:
    """One runs, three wait, all others get a sentence; what was taken is made."""
    gate = threading.Event()
    first = submit(jobs, stuck(gate))
    wait(lambda: first.state == "running")
    taken: list[Job] = []
    refused: list[str] = []
    together = threading.Barrier(30)

    def click() -> None:
        together.wait()
        try:
            taken.append(submit(jobs, lambda job, watch: "made"))
        except Busy as error:
            refused.append(str(error))

    threads = [threading.Thread(target=click) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert (len(taken), len(refused)) == (3, 27)
    assert all("the queue is full: 3 animations wait" in text and "try again" in text for text in refused)
    assert len(list(jobs.root.iterdir())) == 4  # the refused left nothing
    gate.set()
    wait(lambda: all(not job.active for job in taken))
    assert {job.state for job in taken} == {"done"}


def test_what_cannot_be_prepared_takes_no_room(jobs: Jobs) -> None:
    gate = threading.Event()
    running = submit(jobs, stuck(gate))
    wait(lambda: running.state == "running")

    def wrong(folder: Path) -> Any:
        (folder / "half").write_bytes(b"x")
        raise ValueError("no image")

    for _ in range(5):
        with pytest.raises(ValueError, match="no image"):
            jobs.submit(wrong)
    assert list(jobs.root.iterdir()) == [running.folder]
    for _ in range(3):
        submit(jobs, lambda job, watch: None)
    gate.set()


def test_cancel(jobs: Jobs) -> None:
    gate = threading.Event()
    running, waiting = submit(jobs, stuck(gate)), submit(jobs, lambda job, watch: "made")
    wait(lambda: running.stage == "working")
    jobs.cancel(waiting.id)
    assert waiting.state == "cancelled"
    assert not waiting.folder.exists()
    jobs.cancel(running.id)
    gate.set()
    wait(lambda: not running.active)
    assert running.state == "cancelled"
    assert running.done == 1  # it ended at its next part, not at its end
    assert not running.folder.exists()
    assert jobs.counts() == (0, 0)
    jobs.cancel(running.id)  # once more is no mistake
    assert running.state == "cancelled"


def test_kept_for_a_while(jobs: Jobs, clock: Clock) -> None:
    job = submit(jobs, lambda job, watch: "made")
    wait(lambda: not job.active)
    clock.now += 59
    assert jobs.sweep() == 0
    assert jobs.get(job.id) is job
    clock.now += 2
    assert jobs.sweep() == 1
    assert not job.folder.exists()
    with pytest.raises(Unknown, match="kept for 1 minutes"):
        jobs.progress(job.id)


@pytest.mark.parametrize("name", ["", "../..", None, 7, {"path": "/etc/passwd"}])
def test_ids_are_known_or_not(jobs: Jobs, name: Any) -> None:
    with pytest.raises(Unknown):
        jobs.get(name)


def test_close_cancels_all(tmp_path: Path) -> None:
    jobs, gate = Jobs(tmp_path, limit=3, keep=60, explain=str), threading.Event()
    running, waiting = submit(jobs, stuck(gate)), submit(jobs, lambda job, watch: "made")
    wait(lambda: running.stage == "working")
    threading.Timer(0.2, gate.set).start()
    jobs.close()
    assert (running.state, waiting.state) == ("cancelled", "cancelled")
    with pytest.raises(Busy, match="being closed"):
        submit(jobs, lambda job, watch: None)
