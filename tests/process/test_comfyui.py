"""The nodes in a real ComfyUI on the CPU: a workflow goes in over its HTTP API, and the video comes back.

    XDYNA_COMFYUI=/path/to/ComfyUI XDYNA_COMFYUI_PYTHON=/path/to/its/python pytest -m slow tests/process/test_comfyui.py

That Python must have what ComfyUI and xdyna[perception] need. Nothing is written into the checkout.
With XDYNA_COMFYUI_RESULTS=FOLDER the frames that came back are kept there.
"""

import dataclasses
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import xdyna
from tests.process.page_server import ROOT, until
from xdyna.config.infer import InferConfig
from xdyna.config.loader import compose
from xdyna.core.resources import resource
from xdyna.media.video import probe, read_frames
from xdyna.perception.types import PoseTrack

CHECKOUT, PYTHON = os.environ.get("XDYNA_COMFYUI"), os.environ.get("XDYNA_COMFYUI_PYTHON")
RESULTS = os.environ.get("XDYNA_COMFYUI_RESULTS")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHECKOUT and PYTHON), reason="set XDYNA_COMFYUI and XDYNA_COMFYUI_PYTHON"),
    pytest.mark.timeout(3600),
]
PACK = ROOT / "integrations" / "comfyui"
SAMPLE = ROOT / "assets" / "demo"
FRAMES = 4
FLAGS = (
    "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
    "disable-component-update disable-sync disable-dev-shm-usage"
)
# Prints what ComfyUI says on its websocket, a line each, until a prompt has ended; run by ComfyUI's Python.
LISTENER = """
import asyncio, json, struct, sys
import aiohttp
async def listen(url, prompt):
    async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0) as socket:
        print(json.dumps({"type": "listening"}), flush=True)
        async for message in socket:
            if message.type == aiohttp.WSMsgType.BINARY:
                kind = struct.unpack(">I", message.data[:4])[0]
                print(json.dumps({"type": "binary", "kind": kind, "bytes": len(message.data)}), flush=True)
                continue
            said = json.loads(message.data)
            print(json.dumps(said), flush=True)
            if said["type"] in ("execution_success", "execution_error", "execution_interrupted"):
                return
asyncio.run(asyncio.wait_for(listen(*sys.argv[1:]), 1500))
"""


class ComfyUI:
    """ComfyUI with the pack in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.said = folder, ""
        (folder / "custom_nodes").mkdir(parents=True)
        for name in ("input", "output", "temp", "models/loras", "models/xdyna"):
            (folder / name).mkdir(parents=True)
        (folder / "custom_nodes" / "xdyna").symlink_to(PACK)
        with socket.socket() as probed:
            probed.bind(("127.0.0.1", 0))
            port = probed.getsockname()[1]
        self.address, self.client = f"127.0.0.1:{port}", uuid.uuid4().hex
        assert CHECKOUT is not None
        words = [PYTHON, str(Path(CHECKOUT) / "main.py"), "--cpu", "--listen", "127.0.0.1", "--port", str(port)]
        words += ["--base-directory", str(folder), "--database-url", "sqlite:///:memory:", "--preview-method", "auto"]
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "XDYNA_CACHE": str(folder / "kept"),
        }
        self.process = subprocess.Popen(
            words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line

    def start(self) -> "ComfyUI":
        def there() -> bool:
            assert self.process.poll() is None, self.said
            try:
                return bool(self.get("/system_stats"))
            except OSError:
                return False

        until(there, "ComfyUI", 600)
        return self

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def open(self, path: str, data: bytes | None = None, kind: str = "application/json") -> tuple[int, bytes]:
        request = urllib.request.Request(f"http://{self.address}{path}", data, {"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def get(self, path: str) -> Any:
        return json.loads(self.open(path)[1])

    def upload(self, name: str, content: bytes) -> None:
        mark = uuid.uuid4().hex
        parts = [("image", f'; filename="{name}"', content), ("overwrite", "", b"true")]
        body = b"".join(
            f'--{mark}\r\nContent-Disposition: form-data; name="{key}"{more}\r\n\r\n'.encode() + value + b"\r\n"
            for key, more, value in parts
        )
        status, said = self.open(
            "/upload/image", body + f"--{mark}--\r\n".encode(), f"multipart/form-data; boundary={mark}"
        )
        assert status == 200, said
        assert json.loads(said)["name"] == name

    def queue(self, graph: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        status, said = self.open("/prompt", json.dumps({"prompt": graph, "client_id": self.client}).encode())
        return status, json.loads(said)

    def run(self, graph: dict[str, Any]) -> dict[str, Any]:
        """Queue a workflow and wait for its end. Returns: its history."""
        status, said = self.queue(graph)
        assert status == 200, said
        name = said["prompt_id"]
        until(lambda: name in self.get(f"/history/{name}") or self.process.poll() is not None, "the prompt", 1500)
        return self.get(f"/history/{name}")[name]

    def file(self, entry: dict[str, str]) -> bytes:
        status, content = self.open("/view?" + urllib.parse.urlencode(entry))
        assert status == 200, content
        return content

    def images(self, history: dict[str, Any], number: str) -> np.ndarray:
        """Frames that a Save Image node saved, uint8 (T, H, W, 3)."""
        entries = history["outputs"][number]["images"]
        return np.stack([np.asarray(Image.open(io.BytesIO(self.file(entry))).convert("RGB")) for entry in entries])

    def ran(self, history: dict[str, Any], graph: dict[str, Any]) -> set[str]:
        """Classes of the nodes that were not taken from ComfyUI's cache."""
        cached = next(told["nodes"] for kind, told in history["status"]["messages"] if kind == "execution_cached")
        return {node["class_type"] for number, node in graph.items() if number not in cached}


@pytest.fixture(scope="module")
def comfy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUI]:
    there = ComfyUI(tmp_path_factory.mktemp("comfy"))
    try:
        yield there.start()
    finally:
        there.stop()


def workflow(name: str) -> dict[str, Any]:
    return json.loads((PACK / "api" / f"{name}.json").read_text())


def sample() -> dict[str, Any]:
    """The sample's workflow, short, with its frames as PNG files, too (node 9)."""
    graph = workflow("sample")
    graph["1"]["inputs"]["frames"] = FRAMES
    graph["9"] = {"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "frames"}}
    return graph


def kept(name: str, frames: np.ndarray) -> None:
    if RESULTS:
        Path(RESULTS).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.concatenate(list(frames), axis=1)).save(Path(RESULTS) / f"{name}.png")


def test_the_nodes_are_there(comfy: ComfyUI) -> None:
    info = comfy.get("/object_info")
    ours = {name: node for name, node in info.items() if name.startswith("XDyna")}
    assert sorted(node["display_name"] for node in ours.values()) == sorted(
        f"X-Dyna {name}"
        for name in ("Load Model", "Track Person (video)", "Track Person (images)", "Load Keypoints", "Sample", "Align",
                     "Animate")
    )  # fmt: skip
    assert {node["category"] for node in ours.values()} == {"X-Dyna"}
    assert "xdyna-tiny" in ours["XDynaLoadModel"]["input"]["required"]["checkpoint"][0]
    assert "Cannot import" not in "".join(line for line in comfy.said.splitlines() if "xdyna" in line)


def test_the_samples_workflow_gives_the_video(comfy: ComfyUI, tmp_path: Path) -> None:
    graph = sample()
    with subprocess.Popen(
        [str(PYTHON), "-c", LISTENER, f"ws://{comfy.address}/ws?clientId={comfy.client}", ""], text=True,
        stdout=subprocess.PIPE,
    ) as listener:  # fmt: skip
        assert listener.stdout is not None
        assert json.loads(listener.stdout.readline())["type"] == "listening"
        history = comfy.run(graph)
        messages = [json.loads(line) for line in listener.stdout]
    assert history["status"]["status_str"] == "success", history["status"]
    (entry,) = history["outputs"]["6"]["images"]
    video = tmp_path / entry["filename"]
    video.write_bytes(comfy.file(entry))
    info = probe(video)
    assert (info.frame_count, info.height, info.width) == (FRAMES, 128, 128)
    frames = comfy.images(history, "9")
    kept("sample", frames)
    shown = np.stack(list(read_frames(video, range(FRAMES))))
    assert np.abs(shown.astype(int) - frames.astype(int)).mean() < 8  # the video shows these frames
    report = history["outputs"]["8"]["text"][0]
    assert "suitability: " in report
    preview = Image.open(io.BytesIO(comfy.file(history["outputs"]["7"]["images"][0])))
    if RESULTS:
        preview.save(Path(RESULTS) / "align.png")
    assert preview.width > 128

    # The library's own frames: other versions of PyTorch and numbers of threads change last bits.
    settings = compose(InferConfig, "infer", ["preset=few_step"]).config
    settings.frames, settings.save, settings.fps = FRAMES, "ffv1", info.fps
    animation = xdyna.animate(
        SAMPLE / "reference.png", SAMPLE / "driving.npz", face_video=SAMPLE / "driving.mp4", settings=settings,
        model="xdyna-tiny", ref_keypoints=SAMPLE / "reference.npz",
    )  # fmt: skip
    own = animation.frames.numpy()
    assert np.abs(own.astype(int) - frames.astype(int)).mean() < 0.5

    progress = [said["data"] for said in messages if said["type"] == "progress" and said["data"]["node"] == "4"]
    assert progress[-1]["value"] == progress[-1]["max"]
    assert len({(step["value"], step["max"]) for step in progress}) > 4
    kinds = [said["kind"] for said in messages if said["type"] == "binary"]
    assert kinds.count(1) >= 2  # previews, one a step
    assert 3 in kinds  # what is written below the node


def test_files_that_are_uploaded_give_the_same(comfy: ComfyUI) -> None:
    for name in ("reference.png", "driving.npz", "driving.mp4"):
        comfy.upload(name, (SAMPLE / name).read_bytes())
    first = sample()
    expected = comfy.images(comfy.run(first), "9")
    graph = {number: node for number, node in first.items() if number in ("2", "4", "9")}
    graph["1"] = {"class_type": "LoadImage", "inputs": {"image": "reference.png"}}
    keypoints = {"keypoints": "driving.npz", "video": "driving.mp4", "fps": 0.0, "frames": FRAMES}
    graph["3"] = {"class_type": "XDynaLoadKeypoints", "inputs": keypoints}
    history = comfy.run(graph)
    assert history["status"]["status_str"] == "success", history["status"]
    assert (comfy.images(history, "9") == expected).all()

    assert comfy.ran(comfy.run(graph), graph) == set()  # nothing has changed, nothing is done again
    track = PoseTrack.load(SAMPLE / "driving.npz")
    moved = dataclasses.replace(track, body=track.body + np.float32([1, 0, 0]) * (track.body[..., 2:] > 0))
    moved.save(comfy.folder / "input" / "driving.npz", overwrite=True)
    again = comfy.run(graph)
    assert comfy.ran(again, graph) >= {"XDynaLoadKeypoints", "XDynaAnimate"}
    assert "XDynaLoadModel" not in comfy.ran(again, graph)


def test_where_nobody_is_one_sentence_says_so(comfy: ComfyUI) -> None:
    grey = {"width": 96, "height": 96, "batch_size": 2, "color": 0x808080}
    graph: dict[str, Any] = {"1": {"class_type": "EmptyImage", "inputs": grey}}
    widgets = {"images_fps": 10.0, "fps": 0.0, "frames": 0, "detector": "mediapipe", "person": 0, "smooth": False}
    graph["2"] = {"class_type": "XDynaTrackImages", "inputs": {"images": ["1", 0], **widgets}}
    graph["3"] = {"class_type": "PreviewAny", "inputs": {"source": ["2", 1]}}
    history = comfy.run(graph)
    assert history["status"]["status_str"] == "error"
    (told,) = [told for kind, told in history["status"]["messages"] if kind == "execution_error"]
    assert told["node_type"] == "XDynaTrackImages"
    assert told["exception_message"].startswith("no person was found in any of 2 frames")


@pytest.mark.parametrize("name", ["../../../etc/hostname", "gone.mp4"])
def test_a_file_from_elsewhere_is_refused_before_anything_runs(comfy: ComfyUI, name: str) -> None:
    graph = workflow("animate")
    comfy.upload("reference.png", (SAMPLE / "reference.png").read_bytes())
    graph["2"]["inputs"]["video"] = name
    graph["3"]["inputs"]["checkpoint"] = "xdyna-tiny"
    status, said = comfy.queue(graph)
    assert status == 400
    (error,) = said["node_errors"]["2"]["errors"]
    assert f"{name!r} is no file in ComfyUI's input folder" in error["details"]


def test_an_interrupt_ends_it(comfy: ComfyUI) -> None:
    graph = sample()
    graph["2"]["inputs"]["mode"] = "exact"
    graph["4"]["inputs"] |= {"steps": 900, "seed": 1}
    status, said = comfy.queue(graph)
    assert status == 200, said
    name = said["prompt_id"]
    until(lambda: comfy.get("/queue")["queue_running"], "the start", 300)
    time.sleep(5)
    assert name not in comfy.get(f"/history/{name}")
    comfy.open("/interrupt", b"{}")
    until(lambda: name in comfy.get(f"/history/{name}"), "the end", 300)
    history = comfy.get(f"/history/{name}")[name]
    assert [kind for kind, _ in history["status"]["messages"]][-1] == "execution_interrupted"
    graph["4"]["inputs"] |= {"steps": 1}
    assert comfy.run(graph)["status"]["status_str"] == "success"  # the model is as it was


def test_a_person_in_a_video_drives_the_puppet(comfy: ComfyUI, shared_dir: Path) -> None:
    """All nodes: LoadImage, a video of a person, Align with the puppet's faces, Animate."""
    videos = sorted((shared_dir / "data").rglob("*.mp4"))
    if not videos:
        pytest.skip("no video of a person")
    shutil.copy(videos[0], comfy.folder / "input" / "person.mp4")
    comfy.upload("reference.png", (SAMPLE / "reference.png").read_bytes())
    comfy.upload("reference.npz", resource("assets", "demo", "reference.npz").read_bytes())
    graph = workflow("animate")
    graph["2"]["inputs"] |= {"video": "person.mp4", "frames": FRAMES}
    graph["3"]["inputs"] |= {"checkpoint": "xdyna-tiny", "mode": "few_step"}
    keypoints = {"keypoints": "reference.npz", "video": "none", "fps": 0.0, "frames": 0}
    graph["10"] = {"class_type": "XDynaLoadKeypoints", "inputs": keypoints}
    graph["4"]["inputs"] |= {"person": ["10", 0], "puppet_face": True, "align": "global"}
    graph["11"] = {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "person"}}
    history = comfy.run(graph)
    assert history["status"]["status_str"] == "success", history["status"]
    frames = comfy.images(history, "11")
    kept("person", frames)
    assert frames.shape == (FRAMES, 128, 128, 3)
    assert frames.std() > 20
    report = history["outputs"]["9"]["text"][0]
    assert "alignment: " in report
    assert "suitability: " in report


@pytest.mark.parametrize("name", ["sample", "animate"])
def test_the_page_shows_the_workflow(comfy: ComfyUI, name: str) -> None:
    """What the page makes of the drawn workflow is what `/prompt` takes; all nodes are known to it."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("needs Debian's chromium and chromium-driver")
    for file in ("reference.png", "driving.mp4"):
        comfy.upload(file, (SAMPLE / file).read_bytes())
    comfy.open("/settings", b'{"Comfy.TutorialCompleted": true}')  # else its templates lie over everything
    options = webdriver.ChromeOptions()
    for flag in FLAGS.split():
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options=options)
    try:
        driver.set_script_timeout(200)
        driver.set_window_size(1560, 900)
        driver.get(f"http://{comfy.address}/")
        known = "return Boolean(window.app?.graph && LiteGraph.registered_node_types.XDynaAnimate)"
        until(lambda: driver.execute_script(known), "the page", 300)
        drawn = json.loads((PACK / "example_workflows" / f"xdyna_{name}.json").read_text())
        then = "const done = arguments[arguments.length - 1]; "
        driver.execute_async_script(f"{then} app.loadGraphData(arguments[0]).then(() => done(1))", drawn)
        made = driver.execute_async_script(f"{then} app.graphToPrompt().then(found => done(found.output))")
        time.sleep(2)
        if RESULTS:
            driver.save_screenshot(str(Path(RESULTS) / f"page_{name}.png"))
    finally:
        driver.quit()
    graph = workflow(name)
    assert set(made) == set(graph)
    for number, node in made.items():
        found = {
            key: value for key, value in node["inputs"].items() if key not in ("preview", "video-preview")
        }  # its own
        assert (node["class_type"], found) == (graph[number]["class_type"], graph[number]["inputs"])
