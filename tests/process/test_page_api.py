"""The page's HTTP API over a real server: the documents' example, thirty at once, what is hostile, the end."""

import json
import shutil
import signal
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.process.page_server import ROOT, Served, blocks, until
from tests.unit.core.file_server import serving
from xdyna.media.video import probe

gradio_client = pytest.importorskip("gradio_client", reason="needs the demo extra")
pytest.importorskip("gradio", reason="needs the demo extra")

pytestmark = pytest.mark.slow
SAMPLE = ROOT / "assets" / "demo"
WISH = {"mode": "exact", "frames": 4, "steps": 2, "seed": 42, "align": False, "person": 0, "crowd": "auto"}


@pytest.fixture(scope="module")
def page(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    words = ["--checkpoint", checkpoint, f"live_checkpoint={checkpoint}", "queue=3", "max_upload_mb=1"]
    with Served(tmp_path_factory.mktemp("page"), *words) as served:
        yield served
        assert "Traceback" not in served.said
    assert not list((ROOT / "xdyna" / "page").glob("*.pyi"))  # Gradio writes them beside subclasses of its components


@pytest.fixture(scope="module")
def client(page: Served) -> Any:
    return gradio_client.Client(page.url, verbose=False)


def post(page: Served, path: str, data: Any, **headers: str) -> tuple[int, Any]:
    """Status and content of an answer."""
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    request = urllib.request.Request(f"{page.url}{path}", body, {"Content-Type": "application/json", **headers})
    return answer(request)


def answer(request: Any) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(request, timeout=120) as found:
            status, content = found.status, found.read()
    except urllib.error.HTTPError as error:
        status, content = error.code, error.read()
    try:
        return status, json.loads(content)
    except ValueError:
        return status, content.decode(errors="replace")


def upload(page: Served, content: bytes, name: str) -> tuple[int, Any]:
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    body = head + content + b"\r\n--x--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    return answer(urllib.request.Request(f"{page.url}/gradio_api/upload", body, kind))


def sent(page: Served, path: Path) -> dict[str, Any]:
    status, stored = upload(page, path.read_bytes(), path.name)
    assert status == 200
    return {"path": stored[0], "meta": {"_type": "gradio.FileData"}}


def call(page: Served, name: str, data: list[Any]) -> tuple[str, Any]:
    """What an endpoint of the queue says: "complete" or "error", and with what."""
    status, begun = post(page, f"/gradio_api/call/{name}", {"data": data})
    assert status == 200, begun
    request = urllib.request.Request(f"{page.url}/gradio_api/call/{name}/{begun['event_id']}")
    with urllib.request.urlopen(request, timeout=300) as found:
        lines = found.read().decode().splitlines()
    (kind,) = [line[7:] for line in lines if line.startswith(("event: complete", "event: error"))]
    return kind, json.loads([line[6:] for line in lines if line.startswith("data: ")][-1])


def test_the_documents_example(page: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = blocks(ROOT / "docs" / "page.md", "python")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example.replace("http://127.0.0.1:7860", page.url), names)
    assert names["found"]["state"] == "done", names["found"]
    assert probe(tmp_path / "result.mp4").frame_count == 4
    assert len(names["files"]) == 3
    assert "the sample's dance" in names["notes"]


def test_one_runs_three_wait_the_others_are_refused(page: Served, client: Any) -> None:
    """Thirty clicks at once: bounded, nothing lost, a sentence for those refused; and cancelling."""
    files = [sent(page, SAMPLE / "reference.png"), sent(page, SAMPLE / "driving.mp4")]
    slow = [*files, *{**WISH, "frames": 40, "steps": 100}.values()]
    kind, first = call(page, "submit", slow)
    assert kind == "complete", first
    until(lambda: client.predict(first[0]["job"], api_name="/progress")["state"] == "running", "the first job")
    outcome: list[tuple[str, Any]] = []
    together = threading.Barrier(30)

    def click() -> None:
        together.wait()
        outcome.append(call(page, "submit", [*files, *WISH.values()]))

    threads = [threading.Thread(target=click) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    taken = [said[0]["job"] for kind, said in outcome if kind == "complete"]
    refused = [said["error"] for kind, said in outcome if kind == "error"]
    assert (len(taken), len(refused), len(set(taken))) == (3, 27, 3), outcome
    assert all(text.startswith("the queue is full: 3 animations wait already") for text in refused)
    (folder,) = page.folders()
    assert len(list((folder / "jobs").glob("job-*"))) <= 5  # those four, and the result of the test before
    ended = client.predict(first[0]["job"], api_name="/cancel")
    assert ended["state"] in ("running", "cancelled")
    for job in taken:
        until(lambda job=job: client.predict(job, api_name="/progress")["state"] == "done", "a job that was taken")
    assert client.predict(first[0]["job"], api_name="/progress")["state"] == "cancelled"


def test_inputs_that_are_left_out_are_those_of_the_page(page: Served) -> None:
    """Programs that were written before an input was added go on."""
    files = [sent(page, SAMPLE / "reference.png"), sent(page, SAMPLE / "driving.mp4")]
    kind, (_, notes) = call(page, "look", files)
    assert kind == "complete"
    (verdict,) = [note for note in notes if note.startswith("suitability: ")]
    assert "(good; " in verdict
    kind, said = call(page, "submit", [])
    assert kind == "error"
    assert said["error"].startswith("there is no image yet; drop ")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"image": None}, "there is no image yet"),
        ({"video": SAMPLE / "reference.png"}, "no video that can be read here"),
        ({"image": SAMPLE / "driving.mp4"}, "no image that can be read here"),
        ({"video": ROOT / "README.md"}, "no video that can be read here"),
        ({"mode": "<script>"}, "there is no mode of that name"),
        ({"frames": 1e9}, "frames is 1000000000.0; expected a whole number from 0 to 450"),
        ({"steps": "many"}, "steps is many; expected a whole number from 0 to 100"),
    ],
)
def test_errors_are_sentences(change: dict[str, Any], says: str, client: Any) -> None:
    wish: dict[str, Any] = {"image": SAMPLE / "reference.png", "video": SAMPLE / "driving.mp4", **WISH, **change}
    for name in ("image", "video"):
        wish[name] = gradio_client.handle_file(str(wish[name])) if wish[name] else None
    for endpoint in ("/submit", "/look"):
        with pytest.raises(gradio_client.exceptions.AppError) as refused:
            client.predict(**wish, api_name=endpoint)
        assert says in str(refused.value)
        assert "/tmp" not in str(refused.value)


def test_unknown_jobs_and_rooms(client: Any) -> None:
    for endpoint in ("/progress", "/cancel", "/result"):
        with pytest.raises(gradio_client.exceptions.AppError, match="no such animation"):
            client.predict("../../etc", api_name=endpoint)
    with pytest.raises(gradio_client.exceptions.AppError, match="has ended; start it again"):
        client.predict("x", "{}", api_name="/live_exchange")
    with pytest.raises(gradio_client.exceptions.AppError, match="expected one of skeleton, camera"):
        client.predict("x", api_name="/live_start")


def test_no_address_of_a_client_is_fetched(page: Served) -> None:
    ours = sent(page, SAMPLE / "reference.png")  # as the video: what is looked at is refused soon
    with serving({"/a.png": (SAMPLE / "reference.png").read_bytes()}) as other:
        address = f"{other.url}/a.png"
        for named in ({"path": address}, {"path": address, "url": address}):
            for route in ("call/look", "call/submit", "queue/join", "run/look"):
                data = {"data": [{**named, "meta": ours["meta"]}, ours, *WISH.values()]}
                assert post(page, f"/gradio_api/{route}", data)[0] == 400
        for named in ({"url": address, "path": ""}, {"url": address}):
            status, _ = post(page, "/gradio_api/run/look", {"data": [{**ours, **named}, ours, *WISH.values()]})
            assert status >= 400
        for path in ("proxy=", "file=", "file/"):
            assert answer(urllib.request.Request(f"{page.url}/gradio_api/{path}{address}"))[0] >= 400
        assert other.requests == []


def test_hostile_requests(page: Served) -> None:
    secret = page.temporary.parent / "secret.png"
    shutil.copy(SAMPLE / "reference.png", secret)
    video = sent(page, SAMPLE / "driving.mp4")
    for path in (str(secret), "/etc/passwd", "https://example.org/a.png", f"{video['path']}/../../../../secret.png"):
        named = {"path": path, "meta": {"_type": "gradio.FileData"}}
        for route in ("call/submit", "queue/join", "run/look"):
            status, said = post(page, f"/gradio_api/{route}", {"data": [named, video, *WISH.values()]})
            assert status == 400, (path, route, said)
            assert "upload the file" in said["error"]
    for path in (
        f"/gradio_api/file={secret}", "/gradio_api/file=/etc/passwd", f"/gradio_api/file={ROOT}/pyproject.toml",
        "/gradio_api/proxy=http://127.0.0.1:1/", "/gradio_api/file=http://127.0.0.1:1/", "/docs", "/runs",
        f"/gradio_api/file={page.folders()[0]}/running", "/gradio_api/component_server", "/monitoring",
    ):  # fmt: skip
        status, said = answer(urllib.request.Request(page.url + path))
        assert status in (400, 403, 404), (path, said)
    assert upload(page, b"x" * 1_500_000, "large.mp4")[0] == 413
    assert post(page, "/gradio_api/run/live_exchange", b"[" * 3_000_000)[0] == 413
    assert post(page, "/gradio_api/run/progress", b"[" * 500_000)[0] == 400
    assert post(page, "/gradio_api/run/progress", {"data": ["x"]}, Host="evil.example")[0] == 403
    assert post(page, "/gradio_api/run/progress", {"data": ["x"]}, Origin="https://evil.example")[0] == 403
    status, names = upload(page, b"x", "../../../../../../evil.png")
    assert status == 200
    assert Path(names[0]).resolve().is_relative_to(page.folders()[0] / "uploads")


def test_no_header_leaves_the_page_open_for_scripts_of_others(page: Served) -> None:
    with urllib.request.urlopen(page.url) as found:
        text = found.read().decode()
        assert "connect-src 'self'" in found.headers["content-security-policy"]
    assert "fonts.googleapis" not in text
    assert "cdnjs" not in text


def test_ends_with_sigterm_and_leaves_nothing(page: Served, client: Any) -> None:
    files = {name: gradio_client.handle_file(str(SAMPLE / name_)) for name, name_ in
             (("image", "reference.png"), ("video", "driving.mp4"))}  # fmt: skip
    job = client.predict(**files, **{**WISH, "frames": 40, "steps": 100}, api_name="/submit")["job"]
    until(lambda: client.predict(job, api_name="/progress")["state"] == "running", "the job")
    assert page.end(signal.SIGTERM) == 0, page.said
    assert page.folders() == []
    assert "the page is being closed" in page.said
    assert "Traceback" not in page.said
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", int(page.url.rpartition(":")[2])), timeout=1).close()
