"""The folder that the documents' commands run in: a copy of the checkout, and the files that they name.

Everything is made here: videos and pictures are rendered puppets, "published" weights small and random.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.docs.blocks import ROOT
from tests.docs.hub_server import Hub, serve

COPIED = ("Makefile", "LICENSE", "README.md", "assets", "configs", "constraints.txt", "docs", "pretrained")
COPIED += ("pyproject.toml", "scripts", "xdyna")
LEFT_OUT = {
    "docs": ("*.png", "*.webp"),
    "pretrained": ("official", "xdyna", "xdyna-initial", "dwpose", "DWPose", "insightface"),
}
NEEDS = {"easy", "clip", "published", "card", "hub"}  # what `@name` may say
SECONDS = float(os.environ.get("XDYNA_DOCS_TEST_SECONDS", "1800"))
# People are found in puppets only half: thresholds that would leave these clips out are lowered.
EASY = (
    "--kind human preprocess.person_share=0.51 preprocess.min_confidence=0 preprocess.max_hidden=1 "
    "preprocess.min_face=0 preprocess.min_motion=0 preprocess.max_camera=100 preprocess.min_person=0 "
    "finish.duplicate_bits=-1"
)


class Sandbox:
    """A folder for the commands of one page.

    Args:
        folder: to be made.
        store: folder of what several pages share: keypoints that were found, media, the stand-in of the Hub.
    """

    def __init__(self, folder: Path, store: Path) -> None:
        self.folder, self.store = folder, store
        folder.mkdir(parents=True)
        for name in COPIED:
            if (ROOT / name).is_dir():
                ignore = shutil.ignore_patterns("__pycache__", *LEFT_OUT.get(name, ()))
                shutil.copytree(ROOT / name, folder / name, ignore=ignore, copy_function=_link)
            else:
                shutil.copy(ROOT / name, folder / name)
        self._environment()

    def _environment(self) -> None:
        """`.venv` with the interpreter that runs this, and no reason for make to make it anew."""
        bin_ = self.folder / ".venv" / "bin"
        bin_.mkdir(parents=True)
        # `accelerate launch` is its script alone: processes and devices are other tests' matter.
        alone = 'while [ $# -gt 0 ]; do case "$1" in *.py) break ;; esac; shift; done'
        for name, before, words in (("python", ":", ""), ("xdyna", ":", "-m xdyna"), ("accelerate", alone, "")):
            (bin_ / name).write_text(f'#!/bin/sh\n{before}\nexec "{sys.executable}" {words} "$@"\n')
            (bin_ / name).chmod(0o755)
        (self.folder / ".venv" / ".installed").touch()

    def variables(self) -> dict[str, str]:
        """Environment variables of the commands."""
        home = self.store / "home"
        home.mkdir(parents=True, exist_ok=True)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("XDYNA_", "HF_", "MAKE", "MFLAGS"))}
        return {
            **kept,
            "PATH": f"{self.folder / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.folder),
            "PYTHONPYCACHEPREFIX": str(self.store / "bytecode"),
            "HOME": str(home),
            "XDYNA_CACHE": str(self.store / "cache"),
            "HF_HUB_OFFLINE": "1",
            "WANDB_MODE": "offline",
            "NO_PROXY": "127.0.0.1,localhost",
            "MPLBACKEND": "agg",
        }

    def run(self, command: str, **more: str) -> tuple[int, str]:
        """Run a command in the folder. Returns: exit code, and what it wrote to both outputs."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command], cwd=self.folder, env={**self.variables(), **more}, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=SECONDS, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout

    # ---- files that the documents name ----

    def provide(self, text: str) -> None:
        """Make the files of `FILES` that a text names and that are not there; what it writes itself is left to it."""
        text = re.sub(r"(--out[ =]|\bout=|--export )\S+", "", text)
        for name, make in FILES.items():
            if re.search(rf"(?<![\w./-]){re.escape(name)}", text) and not (self.folder / name).exists():
                make(self, self.folder / name)

    def media(self) -> Path:
        """Folder of rendered puppets, made once: me.png, a.mp4, b.mp4, c.mp4, small/*.mp4."""
        folder = self.store / "media"
        if not folder.exists():
            part = folder.with_name("media.part")
            shutil.rmtree(part, ignore_errors=True)
            code, out = self.run(f'"{sys.executable}" "{Path(__file__).with_name("media.py")}" "{part}"')
            if code:
                raise RuntimeError(f"the media of the sandbox cannot be rendered: {out}")
            part.rename(folder)
        return folder

    def hub(self) -> Path:
        """Folder of the small "published" files, made once; model.yaml lies beside it."""
        folder = self.store / "hub"
        if not folder.exists():
            from tests.process.release import write_hub

            part = self.store / "hub.part"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            write_hub(part / "hub")
            shutil.move(part / "model.yaml", self.store / "model.yaml")
            (part / "hub").rename(folder)
            shutil.rmtree(part)
        return folder

    # ---- what `@name` prepares ----

    @contextmanager
    def prepared(self, names: tuple[str, ...], command: str) -> Iterator[tuple[str, str, dict[str, str]]]:
        """Prepare for a command. Yields: the command, words to add, environment variables."""
        words, variables = [], {}
        published = self.folder / "pretrained" / "xdyna"
        server = None
        try:
            for name in names:
                if name == "easy":
                    words.append(EASY)
                elif name == "clip":
                    files = sorted((self.folder / "datasets" / "mine" / "clips").glob("*/*.npz"))
                    command = command.replace(" CLIP", f" {files[0].stem}")
                elif name == "published":
                    shutil.copytree(self.store_published(), published)
                elif name == "card":
                    (self.folder / "runs" / "three" / "final" / "README.md").write_text("# three clips\n")
                elif name == "hub":
                    server = serve(Hub(self.hub()))
                    hub = server.__enter__()
                    variables = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": hub.token}
                    variables["HF_HUB_DISABLE_XET"] = "1"
                    if " convert" in command or "convert.py" in command:
                        self.sizes_unknown()
                        words.append("--model model.yaml")
                else:
                    raise ValueError(f"@{name}: there is no such preparation")
            yield command, " ".join(words), variables
        finally:
            if server is not None:
                server.__exit__(None, None, None)
            for made in (published, self.folder / "pretrained" / "xdyna-initial"):
                shutil.rmtree(made, ignore_errors=True)

    def store_published(self) -> Path:
        """A pipeline folder of the published arrangement with small networks and random weights, made once."""
        folder = self.store / "published"
        if not folder.exists():
            from tests.process.small import SMALL
            from xdyna.pipelines.folder import save_pipeline
            from xdyna.pipelines.untrained import build_pipeline

            save_pipeline(build_pipeline(SMALL, seed=0), folder, untrained=True)
        return folder

    def sizes_unknown(self) -> None:
        """The copy's table of published files without sizes and hashes: the stand-ins are smaller."""
        import yaml

        path = self.folder / "pretrained" / "registry.yaml"
        table = yaml.safe_load((ROOT / "pretrained" / "registry.yaml").read_text())
        for group in table["repositories"]:
            for file in () if "base" in group else group["files"]:
                file.update(size=None, sha256=None)
        path.unlink()
        path.write_text(yaml.safe_dump(table))
        shutil.copy(self.store / "model.yaml", self.folder / "model.yaml")


def _link(source: str, target: str) -> str:
    """Copy; weights, which nothing writes to, as another name of the same file where that can be."""
    if source.endswith(".safetensors"):
        try:
            os.link(source, target)
            return target
        except OSError:
            pass
    return shutil.copy2(source, target)


def _picture(sandbox: Sandbox, path: Path) -> None:
    from PIL import Image

    Image.open(sandbox.media() / "me.png").convert("RGB").save(path, quality=95)


def _video(sandbox: Sandbox, path: Path) -> None:
    shutil.copy(sandbox.media() / "a.mp4", path)


def _footage(sandbox: Sandbox, path: Path) -> None:
    path.mkdir()
    for name in ("a.mp4", "b.mp4", "c.mp4")[: 3 if path.name == "clips" else 2]:
        shutil.copy(sandbox.media() / name, path / name)


def _small_videos(sandbox: Sandbox, path: Path) -> None:
    path.mkdir(exist_ok=True)
    for video in sorted((sandbox.media() / "small").glob(f"{'truth' if path.name == 'videos' else 'made'}_*.mp4")):
        shutil.copy(video, path / video.name.partition("_")[2])


def _data_set(sandbox: Sandbox, path: Path) -> None:
    """A data set of the footage, by xdyna itself; the first is kept for later pages."""
    kept = sandbox.store / "footage"
    if not kept.exists():
        _footage(sandbox, kept)
    done = sandbox.store / "data set"
    if not done.exists():
        code, out = sandbox.run(f'xdyna preprocess "{kept}" --out "{done}" --workers 1 {EASY}')
        if code:
            shutil.rmtree(done, ignore_errors=True)
            raise RuntimeError(f"the data set of the sandbox cannot be made: {out}")
    shutil.copytree(done, path)


def _lines(sandbox: Sandbox, path: Path) -> None:
    """Keypoints as JSON lines, of the demo's driving puppet."""
    import numpy as np

    with np.load(ROOT / "assets" / "demo" / "driving.npz") as arrays:
        size, body, times = (arrays[name] for name in ("size", "body", "times"))
    rows = zip(body[:9].round(2).tolist(), times[:9].tolist(), strict=True)
    lines = [json.dumps({"size": size.tolist(), "body": rows_, "time": time}) for rows_, time in rows]
    path.write_text("\n".join(lines) + "\n")


def _official(sandbox: Sandbox, path: Path) -> None:
    shutil.copytree(sandbox.hub(), path)
    shutil.copy(sandbox.store / "model.yaml", sandbox.folder)


FILES: dict[str, Callable[[Sandbox, Path], None]] = {
    "me.jpg": _picture,
    "me.png": _picture,
    "person.jpg": _picture,
    "dance.mp4": _video,
    "person.mp4": _video,  # a puppet, of whom people's detectors see half: blocks that align to it say --force
    "footage": _footage,
    "clips/": _footage,
    "videos": _small_videos,
    "outputs": _small_videos,
    "results": _small_videos,  # where an earlier block of the page made `outputs`
    "datasets/humans": _data_set,
    "datasets/mine": _data_set,
    "datasets/three": _data_set,
    "keypoints.jsonl": _lines,
    "weights": lambda sandbox, path: path.mkdir(),
    "FOLDER": _official,
}
