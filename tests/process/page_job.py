"""The page's queue without its browser side, for `soak`: `python tests/process/page_job.py INPUTS OUT`.

Makes one visitor's animation in a folder of its own below OUT/tmp, as `xdyna page` does, and copies the result to
OUT/result.mp4. Fails where a folder of an earlier, killed page is still there once this one has begun.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

INPUTS, OUT = Path(sys.argv[1]), Path(sys.argv[2])


def main() -> int:
    """Make it. Returns: exit code."""
    from xdyna.config.page import PageConfig
    from xdyna.core.atomic import write_file
    from xdyna.page.server import folder_of_its_own
    from xdyna.page.studio import SAMPLE_IMAGE, SAMPLE_VIDEO, Studio, Wish

    (OUT / "tmp").mkdir(exist_ok=True)
    os.environ["TMPDIR"], tempfile.tempdir = str(OUT / "tmp"), None
    with folder_of_its_own() as root:
        if others := [path for path in (OUT / "tmp").iterdir() if path != root and any(path.iterdir())]:
            raise ValueError(f"a killed page's folder was not removed: {others}")
        (root / "uploads").mkdir()
        sent = [shutil.copy(path, root / "uploads") for path in (SAMPLE_IMAGE.media, SAMPLE_VIDEO.media)]
        studio = Studio(root, root / "uploads", PageConfig(device="cpu"), checkpoint=INPUTS / "pipeline")
        job = studio.submit(Wish(*sent, mode="exact", frames=6, steps=8, seed=1))
        while job.active:
            time.sleep(0.02)
        result = studio.result(job.id).result
        write_file(OUT / "result.mp4", result.files.video.read_bytes())
        studio.close()
    return 0


if __name__ == "__main__":
    from xdyna.core.program import run

    sys.exit(run(lambda argv: main(), []))
