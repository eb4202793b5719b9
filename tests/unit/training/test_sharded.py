"""Checkpoints of several processes: on the CPU with gloo, where accelerate writes the same folders as on GPUs."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiers import long

WORKER = """
import sys, warnings
from pathlib import Path
import torch
from accelerate import Accelerator
from xdyna.training import checkpoint as c

run, what = Path(sys.argv[1]), sys.argv[2]
accelerator = Accelerator(cpu=True)
rank = accelerator.process_index
torch.manual_seed(0)
model = torch.nn.Linear(4, 1)
model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.1))
ema = {"w": torch.full((2,), float(rank))}
torch.manual_seed(rank)


def train(steps):
    losses = []
    for _ in range(steps):
        loss = (model(torch.randn(3, 4)) ** 2).mean()
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    return losses


def save(step):
    return c.save_sharded(accelerator, run, progress=c.Progress(step=step), ema=ema, extra={"rank": rank},
                          keep_last=1, is_best=step == 1)



if what == "good":
    train(1)
    save(1)
    train(1)
    path = save(2)
    expected = train(2)
    train(1)
    load_state = accelerator.load_state
    # accelerate passes over random states that it cannot load: ours must be set after it.
    accelerator.load_state = lambda path: (load_state(path), torch.manual_seed(99))
    loaded = c.load_sharded(accelerator, run)
    assert train(2) == expected
    assert (loaded.progress.step, loaded.extra, loaded.path) == (2, {"rank": rank}, path)
    assert loaded.ema["w"].tolist() == [rank, rank]
    save(3)
    assert sorted(p.name for p in path.parent.iterdir()) == ["step-00000001", "step-00000003"], "the best and the last"
    accelerator.wait_for_everyone()
    if rank == 0:
        next((run / "checkpoints" / "step-00000003" / "accelerate").glob("*.safetensors")).write_bytes(b"damaged")
    accelerator.wait_for_everyone()
    warnings.simplefilter("ignore")
    assert c.load_sharded(accelerator, run).progress.step == 1
    for refused in (lambda: c.load(run), lambda: c.load_sharded(accelerator, run, 3)):
        try:
            refused()
            raise SystemExit("not refused")
        except c.CheckpointError as error:
            assert "sharded run" in str(error) or "damaged" in str(error), error
elif what == "last process fails":
    save(1)
    if rank == accelerator.num_processes - 1:
        import xdyna.training.sharded as s
        def fail(tree, path):
            raise OSError("No space left on device")
        s.save_tree = fail
    try:
        save(2)
        raise SystemExit("not refused")
    except c.CheckpointError as error:
        assert f"process {accelerator.num_processes - 1}: No space left" in str(error), error
    assert c.load_sharded(accelerator, run).progress.step == 1
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-00000001"]
elif what == "none":
    assert c.load_sharded(accelerator, run) is None
elif what == "save":
    save(1)
elif what == "refused":
    try:
        c.load_sharded(accelerator, run)
        raise SystemExit("not refused")
    except c.CheckpointError as error:
        print(error)
print("done", rank, flush=True)
"""


def start(run: Path, what: str, *, processes: int) -> list[str]:
    """Run the worker in so many processes. Returns: what each printed."""
    script = run / "worker.py"
    script.write_text(WORKER)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
        env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        env |= {name: str(value) for name, value in ranks.items()} if processes > 1 else {}
        command = [sys.executable, str(script), str(run), what]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        env["PYTHONPATH"] = str(Path(__file__).resolve().parents[3])
        started.append(subprocess.Popen(command, env=env, **pipes))  # type: ignore[call-overload]
    outs = [process.communicate(timeout=120)[0] for process in started]
    for rank, (process, out) in enumerate(zip(started, outs, strict=True)):
        assert process.returncode == 0, out
        assert out.splitlines()[-1] == f"done {rank}"
    return outs


@pytest.mark.parametrize("what", ["good", *long("none")])
def test_one_process(tmp_path: Path, what: str) -> None:
    start(tmp_path, what, processes=1)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["good", "last process fails"])
def test_two_processes(tmp_path: Path, what: str) -> None:
    start(tmp_path, what, processes=2)


@pytest.mark.slow
def test_other_number_of_processes(tmp_path: Path) -> None:
    start(tmp_path, "save", processes=1)
    for out in start(tmp_path, "refused", processes=2):
        assert "was written by 1 processes, this run has 2; start it with as many" in out
