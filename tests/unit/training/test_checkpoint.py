"""Checkpoints: what is written comes back, whatever fails on the way, and damage is seen."""

import errno
import hashlib
import os
import random
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.tiers import long
from xdyna.checkpoints import io
from xdyna.core.files import file_sha256
from xdyna.training import checkpoint, state
from xdyna.training.checkpoint import CheckpointError, Progress
from xdyna.training.errors import TrainingWarning

FILES = ["weights.safetensors", "ema.safetensors", "optimizer.pt", "state.json", "SHA256SUMS"]


def weights(step: int) -> dict[str, Tensor]:
    return {"a.weight": torch.full((3, 2), float(step)), "b": torch.arange(4).to(torch.bfloat16) + step}


def save(run: Path, step: int, *, best: bool = False, keep: int = 3, **changes: Any) -> Path:
    parts: dict[str, Any] = {
        "progress": Progress(step=step, best_metric=0.1 if best else None, samples=8 * step, seconds=step / 3),
        "weights": weights(step),
        "ema": {name: tensor.float() / 2 for name, tensor in weights(step).items()},
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"betas": (0.9, 0.999)}]},
        "scheduler": {"last_epoch": step},
        "rng": checkpoint.rng_state(),
        "extra": {"data": {"position": step, "seed": b"\x00\xff"}},
        "keep_last": keep,
        "is_best": best,
    }
    return checkpoint.save(run, **(parts | changes))


def there(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def names(*steps: int) -> list[str]:
    return [f"step-{step:08d}" for step in steps]


@pytest.fixture
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.usefixtures("quiet")
def test_everything_comes_back(tmp_path: Path) -> None:
    path = save(tmp_path, 1000, best=True)
    assert path == tmp_path / "checkpoints" / "step-00001000"
    assert sorted(entry.name for entry in path.iterdir()) == sorted(FILES)
    loaded = checkpoint.load(tmp_path)
    assert loaded is not None
    assert loaded.path == path
    assert loaded.progress == Progress(step=1000, best_metric=0.1, samples=8000, seconds=1000 / 3)
    for name, tensor in weights(1000).items():
        torch.testing.assert_close(loaded.weights[name], tensor, rtol=0, atol=0)
        assert loaded.ema is not None
        torch.testing.assert_close(loaded.ema[name], tensor.float() / 2, rtol=0, atol=0)
    assert loaded.optimizer["param_groups"] == [{"betas": (0.9, 0.999)}]
    assert loaded.scheduler == {"last_epoch": 1000}
    assert loaded.extra == {"data": {"position": 1000, "seed": b"\x00\xff"}}


def test_without_average(tmp_path: Path) -> None:
    path = save(tmp_path, 1, ema=None)
    assert not (path / "ema.safetensors").exists()
    assert checkpoint.verify(path) == []
    loaded = checkpoint.load(tmp_path)
    assert loaded is not None
    assert loaded.ema is None


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path) is None
    assert checkpoint.find(tmp_path) is None
    with pytest.raises(CheckpointError, match="there is none; steps: none"):
        checkpoint.load(tmp_path, "best")
    with pytest.raises(CheckpointError, match="give latest, best or the number"):
        checkpoint.find(tmp_path, "newest")


def test_a_real_optimizer_goes_on_bitwise(tmp_path: Path) -> None:
    """Four steps at once equal two, a checkpoint, and two more; dropout needs the random state."""

    def build() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        return model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)

    def train(parts: tuple[nn.Module, torch.optim.Optimizer, Any], steps: int) -> list[float]:
        model, optimizer, scheduler = parts
        losses = []
        for _ in range(steps):
            noise = torch.tensor([random.random() + float(np.random.rand())])  # noqa: NPY002 - the global one is meant
            loss = (model(torch.randn(5, 4) + noise) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            losses.append(loss.item())
        return losses

    torch.manual_seed(0)
    whole = build()
    start = {name: tensor.clone() for name, tensor in whole[0].state_dict().items()}
    rng = checkpoint.rng_state()
    expected = train(whole, 4)

    checkpoint.set_rng_state(rng)
    first = build()
    first[0].load_state_dict(start)
    checkpoint.set_rng_state(rng)
    losses = train(first, 2)
    parameters = dict(first[0].named_parameters())
    optimizer, scheduler = first[1].state_dict(), first[2].state_dict()
    save(tmp_path, 2, weights=parameters, optimizer=optimizer, scheduler=scheduler, rng=checkpoint.rng_state())

    torch.manual_seed(99)
    second = build()
    loaded = checkpoint.load(tmp_path)
    assert loaded is not None
    second[0].load_state_dict(loaded.weights)
    second[1].load_state_dict(loaded.optimizer)
    second[2].load_state_dict(loaded.scheduler)
    checkpoint.set_rng_state(loaded.rng)
    assert losses + train(second, 2) == expected


def test_sums_are_those_of_sha256sum(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    for line in (path / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((path / name).read_bytes()).hexdigest() == digest
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=path, check=True)


# Damage


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [flip, Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])])
@pytest.mark.parametrize("name", FILES)
def test_damage_is_seen_and_the_one_before_taken(tmp_path: Path, name: str, damage: Callable[[Path], Any]) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    damage(path / name)
    problems = checkpoint.verify(path)
    assert len(problems) == 1
    with pytest.warns(TrainingWarning, match=r"step-00000002 is damaged: .*; going on from step 1"):
        loaded = checkpoint.load(tmp_path)
    assert loaded is not None
    assert loaded.progress.step == 1
    assert loaded.weights["b"].tolist() == [1, 2, 3, 4]


def test_damaged_sums_name_the_file(tmp_path: Path) -> None:
    path = save(tmp_path, 2)
    flip(path / "ema.safetensors")
    (path / "optimizer.pt").unlink()
    assert checkpoint.verify(path) == [
        "ema.safetensors is damaged (its SHA-256 is not the one in SHA256SUMS)",
        "optimizer.pt is missing",
    ]


def test_all_damaged(tmp_path: Path) -> None:
    for step in (1, 2):
        flip(save(tmp_path, step) / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"all checkpoints of .* are damaged.*step-00000002.*step-00000001"):
        checkpoint.load(tmp_path)


def test_what_was_asked_for_is_not_replaced(tmp_path: Path) -> None:
    save(tmp_path, 1)
    flip(save(tmp_path, 2, best=True) / "weights.safetensors")
    for which in (2, "best"):
        with pytest.raises(CheckpointError, match="Choose another one, or latest"):
            checkpoint.load(tmp_path, which)
    with pytest.raises(CheckpointError, match="there is none; steps: 1, 2"):
        checkpoint.load(tmp_path, 3)


def test_code_in_the_optimizer_is_not_run(tmp_path: Path) -> None:
    """Also when the list of hashes was made to fit."""

    class Hostile:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    path = save(tmp_path, 1)
    old = hashlib.sha256((path / "optimizer.pt").read_bytes()).hexdigest()
    torch.save({"optimizer": Hostile(), "scheduler": {}, "rng": {}, "extra": {}}, path / "optimizer.pt")
    new = hashlib.sha256((path / "optimizer.pt").read_bytes()).hexdigest()
    sums = path / "SHA256SUMS"
    sums.write_text(sums.read_text().replace(old, new))
    assert checkpoint.verify(path) == []
    with pytest.raises(CheckpointError, match=r"contains code \(a call of \w+\.system\), nothing of it was run"):
        checkpoint.load(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [[1, 2], {"optimizer": {}}])
def test_another_file_in_its_place(tmp_path: Path, content: Any) -> None:
    path = save(tmp_path, 1)
    torch.save(content, path / "optimizer.pt")
    sums = "".join(f"{file_sha256(path / name)}  {name}\n" for name in FILES if name != "SHA256SUMS")
    (path / "SHA256SUMS").write_text(sums)
    with pytest.raises(CheckpointError, match=r"optimizer\.pt has no extra|holds a list"):
        checkpoint.load(tmp_path)


# Which are kept


def test_last_ones_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in range(1, 8):
        save(tmp_path, step, best=step in (1, 3), keep=2)
        expected = {1: [1], 2: [1, 2], 3: [2, 3], 4: [3, 4], 5: [3, 4, 5], 6: [3, 5, 6], 7: [3, 6, 7]}[step]
        assert there(tmp_path) == names(*expected)
    best = checkpoint.find(tmp_path, "best")
    assert best is not None
    assert best.name == "step-00000003"
    assert checkpoint.find(tmp_path, 6) == tmp_path / "checkpoints" / "step-00000006"
    assert checkpoint.find(tmp_path, 5) is None
    latest = checkpoint.find(tmp_path)
    assert latest is not None
    assert latest.name == "step-00000007"


def test_same_step_again(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 1, weights={"new": torch.ones(1)})
    loaded = checkpoint.load(tmp_path)
    assert loaded is not None
    assert list(loaded.weights) == ["new"]
    assert there(tmp_path) == names(1)


def test_later_ones_of_a_continuation_that_was_left(tmp_path: Path) -> None:
    """A run that resumes at step 2 and stops at 3 must go on at 3, not at the 5 of before."""
    for step in (1, 2, 4, 5):
        save(tmp_path, step, best=step == 4, keep=9)
    save(tmp_path, 3, keep=9)
    assert there(tmp_path) == [*names(1, 2, 3), "superseded-step-00000004"]
    assert checkpoint.verify(tmp_path / "checkpoints" / "superseded-step-00000004") == []
    loaded = checkpoint.load(tmp_path)
    assert loaded is not None
    assert loaded.progress.step == 3


def test_at_least_one_is_kept(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="keep_last is 0, expected 1 or more"):
        save(tmp_path, 1, keep=0)


def test_what_cannot_be_read_back_is_not_written(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"extra\['data'\]\[1\] is a pathlib\.\S*Path, which cannot be read back"):
        save(tmp_path, 2, extra={"data": [1, tmp_path]})
    assert there(tmp_path) == names(1)
    save(tmp_path, 2, scheduler={"lr": np.float64(0.1), "n": np.int64(3)})
    loaded = checkpoint.load(tmp_path)
    assert loaded is not None
    assert loaded.scheduler == {"lr": 0.1, "n": 3}
    assert type(loaded.scheduler["lr"]) is float


# Failures on the way


class Fault:
    """Counts everything that touches the disk; the `at`-th of them fails, half done where that is possible."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, fail: Callable[[], None]) -> None:
        self.count, self.at, self.fail = 0, at, fail
        for owner, name in ((os, "fsync"), (os, "rename"), (os, "replace"), (Path, "mkdir")):
            monkeypatch.setattr(owner, name, self._wrap(getattr(owner, name)))
        for owner, name, place in ((io, "save_file", 1), (state.torch, "save", 1), (Path, "write_bytes", 0)):
            monkeypatch.setattr(owner, name, self._wrap(getattr(owner, name), place))

    def _wrap(self, call: Callable[..., Any], place: int | None = None) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count == self.at:
                if place is not None:
                    call(*args, **kwargs)
                    os.truncate(args[place], os.path.getsize(args[place]) // 2)
                self.fail()
            return call(*args, **kwargs)

        return wrapped


def full_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def operations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> int:
    """How many steps a save has that can fail."""
    with monkeypatch.context() as patch:
        save(tmp_path / "count", 1)
        fault = Fault(patch, at=-1, fail=full_disk)
        save(tmp_path / "count", step)
    assert fault.count > 15
    return fault.count


@pytest.mark.parametrize("step", [1, 2], ids=["same step", "next step"])
def test_full_disk_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    outcomes = set()
    for at in range(1, operations(tmp_path, monkeypatch, step) + 1):
        run = tmp_path / f"run-{at}"
        save(run, 1)
        message = ""
        with monkeypatch.context() as patch:
            Fault(patch, at=at, fail=full_disk)
            try:
                save(run, step, extra={"new": True})
            except CheckpointError as error:
                message = str(error)
        if message:  # not so when only the removal of old ones failed
            assert re.search("No space left.* former checkpoints are as they were", message)
            assert not any(name.endswith(".part") for name in there(run))
            assert names(1)[0] in there(run), "in its place at once, before anything looks for it"
        outcomes.add(check_run(run, step))
    assert outcomes == {"old", "new"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("step", [1, *long(2)], ids=["same step", "next step"])
def test_killed_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    outcomes = set()
    for at in range(1, operations(tmp_path, monkeypatch, step) + 1):
        run = tmp_path / f"run-{at}"
        save(run, 1)
        child = os.fork()
        if child == 0:
            Fault(monkeypatch, at=at, fail=lambda: os._exit(9))
            save(run, step, extra={"new": True})
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        outcomes.add(check_run(run, step))
    assert outcomes == {"old", "new"}


def check_run(run: Path, step: int) -> str:
    """The run has its old or its new checkpoint, whole; and goes on as if nothing had been."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = checkpoint.load(run)
    assert loaded is not None
    new = loaded.extra == {"new": True}
    assert loaded.progress.step == (step if new else 1)
    assert new or loaded.extra["data"]["position"] == 1
    save(run, 3)
    assert there(run) == names(*sorted({1, loaded.progress.step, 3}))
    return "new" if new else "old"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(CheckpointError, match="choose a folder that you may write to"):
        save(tmp_path, 1)


def test_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save(tmp_path, 1)


# Random states


def test_random_state_comes_back(tmp_path: Path) -> None:
    random.seed(3)
    random.gauss(0, 1)  # leaves a second number waiting
    np.random.seed(3)  # noqa: NPY002
    np.random.standard_normal()  # noqa: NPY002
    torch.manual_seed(3)

    def draw() -> list[float]:
        numbers = [random.gauss(0, 1), random.random(), float(np.random.standard_normal()), float(np.random.rand())]  # noqa: NPY002
        return [*numbers, *torch.randn(3).tolist()]

    save(tmp_path, 1)
    expected = draw()
    draw()
    loaded = checkpoint.load(tmp_path)
    assert loaded is not None
    checkpoint.set_rng_state(loaded.rng)
    assert draw() == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_state_of_a_gpu_on_the_cpu() -> None:
    with pytest.warns(TrainingWarning, match="made on a GPU"):
        checkpoint.set_rng_state(checkpoint.rng_state() | {"cuda": torch.zeros(16, dtype=torch.uint8)})


@pytest.mark.gpu
def test_random_state_of_a_gpu(tmp_path: Path) -> None:
    torch.cuda.manual_seed(1)
    save(tmp_path, 1)
    expected = torch.randn(4, device="cuda").tolist()
    loaded = checkpoint.load(tmp_path, map_location="cuda")
    assert loaded is not None
    checkpoint.set_rng_state(loaded.rng)
    assert torch.randn(4, device="cuda").tolist() == expected


def test_kill_of_a_whole_process(tmp_path: Path) -> None:
    """SIGKILL from outside, while it saves one checkpoint after another."""
    code = (
        "import sys, torch; from pathlib import Path; from xdyna.training import checkpoint as c\n"
        "w = {'w': torch.zeros(300_000)}; step = 0\n"
        "while True:\n"
        "    step += 1; w['w'] += 1\n"
        "    c.save(Path(sys.argv[1]), progress=c.Progress(step=step), weights=w, ema=None, optimizer={},\n"
        "           scheduler={}, rng={}, extra={}, keep_last=2, is_best=False); print(step, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    done = [int(process.stdout.readline()) for _ in range(5)]
    process.kill()
    done += [int(line) for line in process.stdout.read().split()]
    process.wait()
    loaded = checkpoint.load(tmp_path)
    assert loaded is not None
    assert loaded.progress.step in (done[-1], done[-1] + 1)
    assert bool((loaded.weights["w"] == loaded.progress.step).all())
