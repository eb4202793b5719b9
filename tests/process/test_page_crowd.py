"""Thirty users of the page at once, each with an image and a seed of their own: everybody gets their own result."""

import re
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.process.page_server import PATIENCE, ROOT, Served
from xdyna.core.files import file_sha256
from xdyna.media.image import read_image, write_png
from xdyna.media.video import probe

gradio_client = pytest.importorskip("gradio_client", reason="needs the demo extra")
pytest.importorskip("gradio", reason="needs the demo extra")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
SAMPLE = ROOT / "assets" / "demo"
USERS, PLACES = 30, 8
MORE_MEMORY = 400 * 2**20  # bytes that thirty users may add to what one takes


class User:
    """One user: sends their own image, asks again while the queue is full, and takes what came of it."""

    def __init__(self, number: int, url: str, folder: Path, image: np.ndarray) -> None:
        self.number, self.url, self.folder = number, url, folder / f"user-{number}"
        self.folder.mkdir()
        self.image = write_png(self.folder / "me.png", np.clip(image.astype(int) + number, 0, 255).astype(np.uint8))
        self.refusals: list[str] = []
        self.result: tuple[Any, ...] = ()
        self.error: BaseException | None = None
        self.seconds = 0.0

    def visit(self, together: threading.Barrier) -> None:
        """From opening the page to the downloaded files."""
        try:
            client = gradio_client.Client(self.url, verbose=False, download_files=str(self.folder))
            files = {"image": gradio_client.handle_file(str(self.image)),
                     "video": gradio_client.handle_file(str(SAMPLE / "driving.mp4"))}  # fmt: skip
            together.wait(PATIENCE)
            start = time.monotonic()
            job = self._submit(client, files)
            while client.predict(job, api_name="/progress")["state"] in ("waiting", "running"):
                time.sleep(0.5)
            self.result = client.predict(job, api_name="/result")
            self.seconds = time.monotonic() - start
        except BaseException as error:
            self.error = error

    def video(self) -> Path:
        """The downloaded result."""
        found = self.result[0]
        return Path(found if isinstance(found, str) else found["video"])

    def _submit(self, client: Any, files: dict[str, Any]) -> str:
        while True:
            try:
                asked = {"mode": "exact", "frames": 2 + self.number % 3, "steps": 2, "seed": self.number}
                return str(client.predict(**files, **asked, api_name="/submit")["job"])
            except gradio_client.exceptions.AppError as refused:
                if "the queue is full" not in str(refused):
                    raise
                self.refusals.append(str(refused))
                time.sleep(1)


def most_memory(served: Served) -> int:
    """Most bytes that the server has had in use."""
    text = Path(f"/proc/{served.process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", text)[1]) * 1024  # type: ignore[index]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_thirty_users_at_once_get_their_own(checkpoint: Path, tmp_path: Path) -> None:
    image = read_image(SAMPLE / "reference.png")
    words = ["--checkpoint", checkpoint, f"live_checkpoint={checkpoint}", f"queue={PLACES}"]
    (tmp_path / "again").mkdir()
    with Served(tmp_path / "page", *words) as served:
        alone = User(99, served.url, tmp_path, image)
        alone.visit(threading.Barrier(1))
        assert alone.error is None
        before = most_memory(served)
        users, together = [User(k, served.url, tmp_path, image) for k in range(USERS)], threading.Barrier(USERS)
        threads = [threading.Thread(target=user.visit, args=(together,)) for user in users]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        after = most_memory(served)
        twins = [User(k, served.url, tmp_path / "again", image) for k in range(0, USERS, 7)]
        for twin in twins:  # what these users get who are alone on the page
            twin.visit(threading.Barrier(1))
        assert served.end() == 0
        assert served.folders() == []
        assert "Traceback" not in served.said
    assert {user.number: user.error for user in users if user.error} == {}
    for user in users:
        assert probe(user.video()).frame_count == 2 + user.number % 3
    made = {user.number: file_sha256(user.video()) for user in users}
    assert len(set(made.values())) == USERS  # images and seeds differ
    assert {user.number: file_sha256(user.video()) for user in twins} == {k: made[k] for k in range(0, USERS, 7)}
    refused = [text for user in users for text in user.refusals]
    assert all(text.startswith(f"the queue is full: {PLACES} animations wait already") for text in refused)
    assert refused  # more came than may wait
    waited = sorted(user.seconds for user in users)
    print(f"memory of the server: {before >> 20} MiB after one user, {after >> 20} MiB after {USERS}; results after "
          f"{waited[0]:.1f} - {waited[-1]:.1f} s, {len(refused)} refusals")  # fmt: skip
    assert after - before < MORE_MEMORY
