"""`--multirun` and the console command as processes: jobs one after the other, outputs of their own, quick help."""

import subprocess
import sys
from pathlib import Path

import pytest

from xdyna.cli.main import COMMANDS
from xdyna.core.files import file_sha256


def xdyna(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "xdyna", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200)


@pytest.fixture(autouse=True)
def from_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes start in folders of their own, and find the package all the same."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))


@pytest.mark.long
def test_each_job_is_the_run_alone(tmp_path: Path) -> None:
    """Two jobs, of which the second cannot write: the worst exit code, and the first as it is by itself."""
    (tmp_path / "all" / "1").mkdir(parents=True)
    done = xdyna("convert", "--tiny", "--out", "all", "-m", "seed=3,4", "dtype=float32", folder=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "[job 0 of 2] seed=3 --out all/0" in done.stdout
    assert "job 0: done: seed=3 --out all/0" in done.stdout
    assert "job 1: exit code 2: seed=4 --out all/1" in done.stdout
    assert "all/1 exists already" in done.stderr
    alone = xdyna("convert", "--tiny", "--out", "alone", "seed=3", folder=tmp_path)
    assert alone.returncode == 0, alone.stderr
    weights = Path("unet") / "diffusion_pytorch_model.safetensors"
    assert file_sha256(tmp_path / "all" / "0" / weights) == file_sha256(tmp_path / "alone" / weights)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all", "alone"], "Hydra makes no folders of its own"


def test_help_and_cfg_load_nothing_heavy(tmp_path: Path) -> None:
    """In one process, from light to heavy: what any of them loads would still be there at the end."""
    script = (
        "import sys\nfrom xdyna.cli.main import COMMANDS, main\n"
        "def heavy():\n"
        "    return [m for m in ('torch', 'diffusers', 'transformers', 'cv2', 'hydra') if m in sys.modules]\n"
        "for command in COMMANDS:\n"
        "    try:\n        main([command, '--help'])\n    except SystemExit:\n        pass\n"
        "    print('help', command, heavy())\n"
        "for command in ('animate', 'train', 'eval', 'preprocess', 'convert', 'bench'):\n"
        "    print('cfg', command, main([command, '--cfg', 'job']), heavy())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("help ")] == [f"help {name} []" for name in COMMANDS], done.stderr
    composed = [line for line in lines if line.startswith("cfg ")]
    assert len(composed) == 6
    assert all(line.endswith(" 0 ['hydra']") for line in composed), composed
    for name in COMMANDS:
        assert f"usage: xdyna {name}" in done.stdout
