"""`--multirun` and the console command as processes: jobs one after the other, outputs of their own, quick help."""

import subprocess
import sys
from pathlib import Path

import pytest

from xdyna.core.files import file_sha256

QUICK = ("train", "eval", "preprocess", "convert", "puppets")


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


@pytest.mark.parametrize("program", QUICK)
def test_help_loads_nothing_heavy(program: str, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom xdyna.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'hydra', 'cv2', 'transformers') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, program, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert f"usage: xdyna {program}" in done.stdout
