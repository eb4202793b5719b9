"""Programs that are killed at random moments, again and again, end with the bytes of an undisturbed run (`make soak`).

Every program is run once undisturbed. Then it is started, killed after a random time (kill -9 and SIGTERM in turn) and
started again with the same command, until it was killed as often as asked for; whenever it comes to its end, its files
are compared with the undisturbed ones, and it begins anew. A table says what happened, and what the kills cost; exit
code 1: something differed, a program failed by itself, or left processes behind.

    python -m tests.process.soak --kills 10 --seed 0 [--only train infer] [--signals SIGKILL]
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import psutil
import yaml

from tests.process.small import standing_figure
from xdyna.config.model import ModelConfig
from xdyna.core.files import file_sha256
from xdyna.media import VideoWriter
from xdyna.pipelines.folder import save_pipeline
from xdyna.pipelines.untrained import build_pipeline
from xdyna.puppets.world.render import render_clip

ROOT = Path(__file__).resolve().parents[2]
MICRO = ROOT / "tests" / "unit" / "training" / "micro.yaml"
CODES = (0, 130, -signal.SIGTERM, -signal.SIGKILL)  # of a run that was killed: a flag may have let it end well, too
SIGNALS = ("SIGKILL", "SIGTERM")
SECONDS = 300  # of one run, at most
LONG_FRAMES = 300
GRACE = 20  # s for processes that a program started to end after it


@dataclass(frozen=True)
class Program:
    """What is killed.

    Attributes:
        command: arguments after the interpreter; {inputs} and {out} are folders. The same command goes on.
        results: patterns below {out} of the files that must come out equal.
        finished: a pattern below {out}: the run has come to its end.
        begun: what it says when its start-up is over, and kills begin; "": they come at any time.
        kept: the file below {out} that is written whenever work is kept; "" where nobody asks what a kill costs.
        seconds: of one run, at most.
    """

    command: str
    results: tuple[str, ...]
    finished: str
    begun: str = ""
    kept: str = ""
    seconds: float = SECONDS


PROGRAMS = {
    "train": Program(
        "scripts/train.py --config-dir {inputs} experiment=soak out={out}/run --cpu --resume",
        ("run/final/**/*.safetensors", "run/checkpoints/step-000012/weights.safetensors"),
        "run/final/model_index.json",
    ),
    "infer": Program(
        "scripts/infer.py --ref {inputs}/ref.png --drive {inputs}/driving.npz --checkpoint {inputs}/pipeline "
        "--steps 20 --out {out}/video.mp4",
        ("video.mp4",),
        "video.mp4",
    ),
    "long": Program(
        "scripts/infer.py --ref {inputs}/ref.png --drive {inputs}/long.npz --checkpoint {inputs}/pipeline "
        "--steps 2 guidance=1 --out {out}/video.mp4",
        ("video.mp4", "video.grid.mp4", "video.sheet.png"),
        "video.mp4",
        begun="denoising",
        kept="video.partial/state.json",
        seconds=3600,
    ),
    "preprocess": Program(
        "scripts/preprocess.py {inputs}/footage --out {out}/set --workers 2 preprocess.min_frames=8 "
        "preprocess.min_side=64 preprocess.min_motion=0 preprocess.max_text=1 preprocess.max_camera=9",
        ("set/manifest.parquet", "set/skipped.parquet", "set/dataset.json", "set/README.md", "set/clips/**/*.npz"),
        "set/dataset.json",
    ),
    "eval": Program(
        "scripts/eval.py --generated {inputs}/generated --truth {inputs}/footage --out {out} "
        "--metrics psnr,ssim,temporal_ratio,flicker,warping_error",
        ("report.csv",),
        "report.md",
    ),
    "convert": Program(
        "scripts/convert.py --pipeline {inputs}/pipeline --out {out}/made --dtype float16",
        ("made/**/*.safetensors", "made/**/*.json"),
        "made/model_index.json",
    ),
    "puppets": Program("scripts/puppets.py alignment --pairs 3 --image {out}/table.png", ("table.png",), "table.png"),
    "page": Program("tests/process/page_job.py {inputs} {out}", ("result.mp4",), "result.mp4"),
}


@dataclass
class Tally:
    """What became of a program.

    Attributes:
        seconds: of the undisturbed run.
        work: the same without its start-up.
        kills: by signal.
        ended: runs that came to their end, and were compared.
        lost: seconds of work that each SIGKILL cost: since what is kept was written, or the start-up was over.
        problems: sentences.
    """

    seconds: float = 0.0
    work: float = 0.0
    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SIGNALS, 0))
    ended: int = 0
    lost: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def make_inputs(folder: Path) -> None:
    """A pipeline, a configuration, an image, keypoints, footage and videos to judge."""
    save_pipeline(build_pipeline(ModelConfig(**yaml.safe_load(MICRO.read_text())), seed=0), folder / "pipeline")
    settings = {
        "defaults": ["_self_", {"override /data": "puppet"}],
        "stage": "dynamics",
        "init": str(folder / "pipeline"),
        "model": yaml.safe_load(MICRO.read_text()),
        "data": {"height": 64, "width": 64, "frames": 2, "video_frames": 8, "scene_ratio": 0.5, "workers": 2},
        "batch": 2,
        "max_steps": 12,
        "save_every": 1,
        "log_every": 1,
        "validation": {"every": 4, "clips": 2, "bands": 2, "videos": 1, "steps": 2},
    }
    (folder / "experiment").mkdir()
    text = yaml.safe_dump(settings, sort_keys=False)
    (folder / "experiment" / "soak.yaml").write_text(f"# @package _global_\n{text}")
    image = np.indices((96, 64)).sum(0)[..., None] * np.array([1, 1, 0.5])
    cv2.imwrite(str(folder / "ref.png"), image.astype(np.uint8))
    standing_figure(frames=40).save(folder / "driving.npz")
    standing_figure(frames=LONG_FRAMES).save(folder / "long.npz")
    for number in range(3):
        frames = render_clip(number, number, number, frames=24, size=(128, 128)).frames
        for kind, shown in (("footage", frames), ("generated", frames // 2)):
            (folder / kind).mkdir(exist_ok=True)
            with VideoWriter(folder / kind / f"{number}.mp4", fps=12, size=(128, 128)) as writer:
                for frame in shown:
                    writer.write(frame)


class Soak:
    """One program, killed again and again.

    Args:
        name: of `PROGRAMS`.
        inputs: see `make_inputs`.
        scratch: an empty folder.
        seed: of the moments.
        signals: names of those that kill, in turn.
    """

    def __init__(self, name: str, inputs: Path, scratch: Path, seed: int, *, signals: Sequence[str] = SIGNALS) -> None:
        self.program, self.inputs, self.out, self.signals = PROGRAMS[name], inputs, scratch / "out", signals
        self.random = random.Random(f"{name} {seed}")
        self.tally = Tally()
        self.working_since = 0.0
        self.log = scratch / "log.txt"
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "XDYNA_CACHE": str(scratch / "cache"),
            "OMP_NUM_THREADS": "1",
        }

    def run(self, kills: int, tell: Callable[[str], None]) -> Tally:
        """Kill it so many times, and let it come to its end."""
        tally = self.tally
        start = time.monotonic()
        code = self._once(None, None)
        tally.seconds = time.monotonic() - start
        tally.work = time.time() - self.working_since if self.program.begun else tally.seconds
        if code != 0 or not self._is_finished():
            tally.problems.append(f"undisturbed it ended with {code}: {self._last_words()}")
            return tally
        wanted = self._digests()
        self._clear()
        while sum(tally.kills.values()) < kills and len(tally.problems) < 3:
            number = self.signals[sum(tally.kills.values()) % len(self.signals)]
            least = 0.0 if self.program.begun else 0.1
            code = self._once(self.random.uniform(least, 1.0) * tally.work, signal.Signals[number])
            if code is None:
                tally.kills[number] += 1
                tell(f"killed {sum(tally.kills.values())} times, ended {tally.ended} times")
            if self._is_finished():
                self._finish(wanted)
        while not self._is_finished() and len(tally.problems) < 3:
            self._once(None, None)
            if not self._is_finished():
                tally.problems.append(f"it does not come to its end: {self._last_words()}")
        if self._is_finished():
            self._finish(wanted)
        return tally

    def _once(self, seconds: float | None, number: signal.Signals | None) -> int | None:
        """Run the command; None: it was killed after `seconds` of work. Otherwise its exit code."""
        command = self.program.command.format(inputs=self.inputs, out=self.out).split()
        self.out.mkdir(exist_ok=True)
        with self.log.open("w") as log:
            process = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, env=self.environment, stdout=log, stderr=log, text=True
            )
            try:
                self._wait_for_work(process)
                code = process.wait(self.program.seconds if seconds is None else seconds)
                if code != 0:
                    self.tally.problems.append(f"it failed by itself with {code}: {self._last_words()}")
                return code
            except subprocess.TimeoutExpired:
                family = psutil.Process(process.pid).children(recursive=True)
                if number is None:
                    process.kill()
                    self.tally.problems.append(f"it did not end within {self.program.seconds} s: {self._last_words()}")
                    return 1
                process.send_signal(number)
                if self.program.kept and number is signal.SIGKILL:  # the other one keeps everything
                    self.tally.lost.append(time.time() - max(self.working_since, self._kept()))
                try:
                    code = process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    self.tally.problems.append(f"{number.name} did not end it within 60 s: {self._last_words()}")
                    return None
            finally:
                process.wait()
        if code not in CODES:
            self.tally.problems.append(f"{number.name} ended it with {code}: {self._last_words()}")
        _, left = psutil.wait_procs(family, timeout=GRACE)
        for child in left:
            self.tally.problems.append(f"process {' '.join(child.cmdline()[:4])} outlived it")
            child.kill()
        return None

    def _wait_for_work(self, process: subprocess.Popen[str]) -> None:
        end = time.monotonic() + self.program.seconds
        while self.program.begun not in self.log.read_text(errors="replace") and time.monotonic() < end:
            if process.poll() is not None:
                break
            time.sleep(0.02)
        self.working_since = time.time()

    def _kept(self) -> float:
        """When what is kept was written, as `time.time` has it; 0 where nothing is."""
        try:
            return (self.out / self.program.kept).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def _finish(self, wanted: dict[str, str]) -> None:
        found = self._digests()
        differing = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        if differing:
            self.tally.problems.append(f"other bytes than undisturbed: {', '.join(differing[:4])}")
        self.tally.ended += 1
        self._clear()

    def _is_finished(self) -> bool:
        return (self.out / self.program.finished).is_file()

    def _digests(self) -> dict[str, str]:
        files = [path for pattern in self.program.results for path in sorted(self.out.glob(pattern))]
        assert files, self.program.results
        return {str(path.relative_to(self.out)): file_sha256(path) for path in files}

    def _clear(self) -> None:
        shutil.rmtree(self.out)
        shutil.rmtree(Path(self.environment["XDYNA_CACHE"]), ignore_errors=True)

    def _last_words(self) -> str:
        return " | ".join(self.log.read_text(errors="replace").strip().splitlines()[-3:])[-500:]


def main() -> int:
    """Run the soak. Returns: exit code."""
    parser = argparse.ArgumentParser(description="Kill programs at random moments and compare what they end with.")
    parser.add_argument("--kills", type=int, default=10, help="of each program (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (%(default)s)")
    parser.add_argument("--signals", nargs="+", choices=SIGNALS, default=SIGNALS, help="in turn (both)")
    parser.add_argument("--only", nargs="+", choices=PROGRAMS, default=list(PROGRAMS), help="which programs (all)")
    args = parser.parse_args()
    tallies = {}
    with tempfile.TemporaryDirectory(prefix="xdyna-soak-") as folder:
        inputs = Path(folder, "inputs")
        inputs.mkdir()
        make_inputs(inputs)
        for name in args.only:
            scratch = Path(folder, name)
            scratch.mkdir()
            soak = Soak(name, inputs, scratch, args.seed, signals=args.signals)
            tallies[name] = soak.run(args.kills, lambda text, name=name: print(f"{name}: {text}", flush=True))
    heads = ("program", "undisturbed", "of it work", *SIGNALS, "ended and compared", "work lost a SIGKILL", "problems")
    print("\n| " + " | ".join(heads) + " |\n|" + " --- |" * len(heads))
    for name, tally in tallies.items():
        cells = [
            name,
            f"{tally.seconds:.1f} s",
            f"{tally.work:.1f} s",
            *(str(tally.kills[number]) for number in SIGNALS),
            str(tally.ended),
        ]
        mean = sum(tally.lost) / max(len(tally.lost), 1)
        cells += [f"{mean:.2f} s ({mean / tally.work:.1%})" if tally.lost else "-"]
        print("| " + " | ".join([*cells, str(len(tally.problems) or "none")]) + " |")
    for name, tally in tallies.items():
        for problem in tally.problems:
            print(f"{name}: {problem}")
    return int(any(tally.problems for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
