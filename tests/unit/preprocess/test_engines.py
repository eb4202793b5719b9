import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.preprocess import jobs
from xdyna.config.data import DataError
from xdyna.core.install import install_xdyna
from xdyna.preprocess.engine_ray import RayEngine, _call
from xdyna.preprocess.engines import Engine, Failure, LocalEngine

ROOT = Path(__file__).resolve().parents[3]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def wait_for(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def check_results(engine: Engine) -> None:
    assert dict(engine.run(range(5), jobs.square)) == {0: 0, 1: 1, 2: 4, 3: 9, 4: 16}
    assert list(engine.run([], jobs.square)) == []


def check_failure(engine: Engine) -> None:
    found = dict(engine.run([2, 3, 4], jobs.fail_on_three))
    assert found[0] == 2
    assert found[2] == 4
    assert isinstance(found[1], Failure)
    assert (found[1].kind, found[1].reason) == ("ValueError", "three is too many")
    assert "fail_on_three" in found[1].trace


def check_death(engine: Engine, folder: Path) -> None:
    found = dict(engine.run([(str(folder), number) for number in range(5)], jobs.die_once))
    assert found == {number: number * 10 for number in range(5)}
    found = dict(engine.run([(str(folder), number) for number in range(3)], jobs.die_always))
    assert found[0] == 0
    assert found[2] == 2
    assert isinstance(found[1], Failure)
    assert "died 2 times" in found[1].reason
    assert (folder / "tries-1").read_text() == "xx"


def test_local_results_failures_and_deaths(tmp_path) -> None:
    engine = LocalEngine(2, retries=1)
    check_results(engine)
    check_failure(engine)
    check_death(engine, tmp_path)


def test_a_death_costs_nobody_elses_work(tmp_path) -> None:
    """With two workers, one of which dies again and again, the other's tasks are begun once."""
    engine = LocalEngine(2, retries=2)
    found = dict(engine.run([(str(tmp_path), number) for number in range(4)], jobs.die_always))
    assert [(tmp_path / f"tries-{number}").read_text() for number in range(4)] == ["x", "xxx", "x", "x"]
    assert isinstance(found[1], Failure)


def test_workers_end_when_the_run_is_left(tmp_path) -> None:
    run = LocalEngine(2).run([(str(tmp_path), 0.0), (str(tmp_path), 60.0), (str(tmp_path), 61.0)], jobs.sleep_and_mark)
    next(run)
    began = time.monotonic()
    run.close()
    assert time.monotonic() - began < 20
    for marker in tmp_path.glob("pid-*"):
        assert not alive(int(marker.name.removeprefix("pid-")))
    assert not (tmp_path / "done-60.0").exists()


def test_workers_end_when_their_parent_is_killed(tmp_path) -> None:
    code = (
        "from tests.unit.preprocess import jobs\n"
        "from xdyna.preprocess.engines import LocalEngine\n"
        f"list(LocalEngine(1).run([({str(tmp_path)!r}, 60.0)], jobs.sleep_and_mark))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    wait_for(lambda: list(tmp_path.glob("pid-*")))
    worker = int(next(tmp_path.glob("pid-*")).name.removeprefix("pid-"))
    assert alive(worker)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not alive(worker), seconds=10)


@pytest.mark.parametrize("make", [lambda: LocalEngine(0), lambda: LocalEngine(1, retries=-1)])
def test_bad_numbers(make) -> None:
    with pytest.raises(DataError, match="expected 1 and 0 or more"):
        make()


def test_without_ray_the_message_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DataError, match=re.escape(f"run: {install_xdyna('ray')}")):
        RayEngine()


def test_a_worker_of_a_cluster_takes_relative_paths_as_here(tmp_path, monkeypatch) -> None:
    """Ray starts workers in a folder of its own."""
    (tmp_path / "film.mp4").write_bytes(b"12345")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert _call((jobs.size_of, str(tmp_path)), "film.mp4") == 5
    with pytest.raises(DataError, match=r"does not see the working folder '.*gone' .*folder that all machines share"):
        _call((jobs.size_of, str(tmp_path / "gone")), "film.mp4")


@pytest.mark.slow
def test_ray_results_failures_and_deaths(tmp_path) -> None:
    pytest.importorskip("ray")
    engine = RayEngine(workers=2, retries=1)
    check_results(engine)
    check_failure(engine)
    check_death(engine, tmp_path)


def test_no_cluster_at_an_address() -> None:
    pytest.importorskip("ray")
    with pytest.raises(DataError, match=r"no Ray cluster at '127\.0\.0\.1:1'"):
        list(RayEngine("127.0.0.1:1").run([1], jobs.square))
