"""The page in a real browser, headless: `make test-browser` (needs Debian's chromium and chromium-driver).

With XDYNA_PAGE_IMAGES=FOLDER it is served with xdyna-tiny, and the pictures of docs/page.md are written there.
"""

import io
import json
import os
import re
import shutil
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.process.page_server import PATIENCE, ROOT, Served, until
from xdyna.media.image import write_png
from xdyna.media.video import probe

pytest.importorskip("gradio", reason="needs the demo extra")
selenium = pytest.importorskip("selenium", reason="needs selenium")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Debian's chromium and chromium-driver"),
    pytest.mark.timeout(3600),
]
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

SAMPLE = ROOT / "assets" / "demo"
IMAGES = os.environ.get("XDYNA_PAGE_IMAGES")
FLAGS = (
    "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update "
    "disable-sync disable-dev-shm-usage use-fake-device-for-media-stream use-fake-ui-for-media-stream"
)


class Page:
    """A browser that shows the page."""

    def __init__(self, url: str) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in FLAGS.split():
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        self.driver.set_page_load_timeout(200)
        self.driver.set_script_timeout(200)
        self.url = url

    def open(self, width: int = 1280, height: int = 900) -> "Page":
        self.driver.set_window_size(width, height)
        self.driver.get(self.url)
        until(lambda: self.driver.find_elements(By.ID, "start"), "the page")
        until(lambda: self.find("#start").is_displayed(), "the button")
        return self

    def find(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def click(self, selector: str) -> None:
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", self.find(selector))
        until(lambda: self.find(selector).is_enabled(), f"{selector} to be enabled")
        self.find(selector).click()

    def text(self, selector: str) -> str:
        return str(self.driver.execute_script("return document.querySelector(arguments[0])?.innerText || ''", selector))

    def tab(self, name: str) -> None:
        (one,) = [tab for tab in self.all("button[role=tab]") if tab.text == name]
        one.click()

    def send(self, image: Path, video: Path) -> None:
        self.find("#image input[type=file]").send_keys(str(image))
        until(lambda: self.all("#image img"), "the image")
        self.find("#video input[type=file]").send_keys(str(video))
        until(lambda: self.all("#video video"), "the video")

    def number(self, name: str, value: int) -> None:
        if not self.all(f"#{name} input"):
            self.click("#more button")
            until(lambda: self.all(f"#{name} input") and self.find(f"#{name} input").is_displayed(), name)
        self.find(f"#{name} input").send_keys(Keys.CONTROL, "a")
        self.find(f"#{name} input").send_keys(str(value))

    def state(self) -> str:
        return self.text("#bar [role=status]")

    def done(self) -> None:
        until(lambda: "done in" in self.state() or "failed" in self.state(), "the animation", PATIENCE)
        assert "done in" in self.state()
        until(lambda: self.ready("#result video"), "the video to be shown")

    def ready(self, selector: str) -> bool:
        asked = "const v = document.querySelector(arguments[0]); return !!v && v.readyState >= 2 && v.videoWidth > 0"
        return bool(self.driver.execute_script(asked, selector))

    def toast(self, says: str, picture: str = "") -> None:
        until(lambda: says in self.text("[data-testid=toast-body]"), f"the sentence '{says}'")
        if picture:
            self.picture(picture)
        for close in self.all("[data-testid=toast-close]"):
            close.click()

    def frames(self) -> int:
        return int(self.find("#live canvas").get_attribute("data-frames") or 0)

    def picture(self, name: str, top: int = 0) -> None:
        """For the documents, where they are wanted."""
        if IMAGES:
            self.driver.execute_script("window.scrollTo(0, arguments[0])", top)
            time.sleep(2)
            Path(IMAGES).mkdir(parents=True, exist_ok=True)
            shot = Image.open(io.BytesIO(self.driver.get_screenshot_as_png())).convert("RGB")
            shot.quantize(128, dither=Image.Dither.NONE).save(Path(IMAGES) / f"page_{name}.png", optimize=True)

    def wide(self) -> tuple[int, int]:
        return tuple(self.driver.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]"))


@pytest.fixture(scope="module")
def served(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    words: list[str | Path] = ["max_upload_mb=1"]
    if not IMAGES:
        words += ["--checkpoint", checkpoint, f"live_checkpoint={checkpoint}"]
    with Served(tmp_path_factory.mktemp("page"), *words) as served:
        yield served
        assert "Traceback" not in served.said


@pytest.fixture(scope="module")
def browser(served: Served) -> Iterator[Page]:
    page = Page(served.url)
    yield page
    page.driver.quit()


@pytest.fixture
def page(browser: Page) -> Iterator[Page]:
    """The page anew; nothing that it does may come from elsewhere or complain."""
    yield browser.open()
    events = [json.loads(entry["message"])["message"] for entry in browser.driver.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert asked
    elsewhere = [url for url in asked if not url.startswith((browser.url, "data:", "blob:"))]
    assert not elsewhere
    errors = [entry["message"] for entry in browser.driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert not [text for text in errors if "gradio_api/run/" not in text]  # those that are refused with a sentence


def test_animate(page: Page, tmp_path: Path) -> None:
    """Upload, look, generate, play, download; the list stays when the page is loaded again."""
    page.send(SAMPLE / "reference.png", SAMPLE / "driving.mp4")
    page.click("#look")
    until(lambda: page.all("#fit img"), "the preview")
    assert "the sample's dance" in page.text("#notes")
    assert re.search(r"suitability: 0\.\d+ \(good; weakest: ", page.text("#notes"))
    page.picture("look")
    page.number("frames", 6 if IMAGES else 4)
    page.number("steps", 4 if IMAGES else 2)
    page.click("#start")
    seen = set()
    until(lambda: seen.add(page.state()) or "done in" in page.state(), "the end", PATIENCE)
    assert any("so far" in text for text in seen), seen
    page.done()
    assert page.find("#bar [role=progressbar]").get_attribute("aria-valuenow") == "100"
    at = "return document.querySelector('#result video').currentTime"
    page.driver.execute_script("const v = document.querySelector('#result video'); v.muted = true; v.play()")
    until(lambda: page.driver.execute_script(at) > 0, "the video to play")
    until(lambda: page.ready("#beside video"), "the side-by-side video")
    page.picture("animate")
    links = [link.get_attribute("href") for link in page.all("#files a[href]")]
    assert len(links) == 3
    target = tmp_path / "downloaded.mp4"
    with urllib.request.urlopen(next(link for link in links if link.endswith("result.mp4"))) as found:
        target.write_bytes(found.read())
    assert probe(target).frame_count == (6 if IMAGES else 4)
    assert "fast, " in page.text("#past")
    page.open()
    until(lambda: ": done" in page.text("#past"), "the list after loading again")
    page.find("#past input").click()
    page.done()


def test_cancel(page: Page, served: Served) -> None:
    page.click("#samples")
    until(lambda: page.all("#video video"), "the samples")
    page.number("steps", 100)
    page.click("#start")
    until(lambda: "so far" in page.state(), "the beginning")
    assert not page.find("#start").is_enabled()
    page.click("#cancel")
    until(lambda: "cancelled; nothing of it is kept" in page.state(), "the end")
    until(lambda: page.find("#start").is_enabled(), "the button")


def test_what_is_wrong_is_said(page: Page, tmp_path: Path) -> None:
    page.click("#start")
    page.toast("there is no image yet")
    page.find("#image input[type=file]").send_keys(str(SAMPLE / "reference.png"))
    until(lambda: page.all("#image img"), "the image")
    text = tmp_path / "text.mp4"
    text.write_text("I am a text, whatever I am called\n" * 30)
    page.find("#video input[type=file]").send_keys(str(text))
    until(lambda: page.all("#video video"), "the text")
    page.click("#look")
    page.toast("this file is no video that can be read here", picture="error")
    grey = write_png(tmp_path / "grey.png", np.full((300, 300, 3), 128, np.uint8))
    page.open().send(grey, SAMPLE / "driving.mp4")
    page.click("#align input")
    page.click("#look")
    page.toast("no person was found in the reference")
    large = tmp_path / "large.png"
    write_png(large, np.random.default_rng(0).integers(0, 255, (800, 800, 3), np.uint8))
    page.open()
    page.find("#image input[type=file]").send_keys(str(large))
    page.toast("size")


def test_live_by_mouse_and_keys(page: Page) -> None:
    page.tab("Live")
    until(lambda: page.find("#live circle").is_displayed(), "the skeleton")
    wrist = page.find('#live circle[aria-label="left wrist"]')
    elbow = page.find('#live circle[aria-label="left elbow"]')

    def place(dot: Any) -> tuple[float, float]:
        return float(dot.get_attribute("cx")), float(dot.get_attribute("cy"))

    def arm() -> float:
        return float(np.hypot(*np.subtract(place(wrist), place(elbow))))

    before, length = place(wrist), arm()
    ActionChains(page.driver).drag_and_drop_by_offset(wrist, 20, -60).perform()
    assert place(wrist)[1] < before[1] - 15
    assert abs(arm() - length) < 0.1  # bones keep their lengths
    before = place(wrist)
    wrist.send_keys(Keys.ARROW_UP, Keys.ARROW_UP)
    assert place(wrist)[1] < before[1] - 4
    page.click("#live button.skeleton")
    until(lambda: page.frames() > 8, "frames", PATIENCE)
    assert "running" in page.text("#live .state")
    page.picture("live")
    page.click("#live button.stop")
    until(lambda: page.text("#live .state") == "stopped", "the end")
    page.click("#live button.again")
    assert place(wrist)[1] > before[1]


def test_live_by_camera(page: Page) -> None:
    """The browser's made-up camera shows nobody; the puppet's image is made all the same."""
    page.tab("Live")
    until(lambda: page.find("#live circle").is_displayed(), "the tab")
    until(lambda: page.find("#live button.camera").is_enabled(), "the button")

    def begin() -> bool:
        """The room of the test before may still be ending."""
        page.click("#live button.camera")
        until(lambda: "begins" in page.text("#live .state") or "free" in page.text("#live .state"), "an answer")
        time.sleep(1)
        return "free" not in page.text("#live .state")

    until(begin, "a free room")
    until(lambda: page.frames() > 0, "frames", PATIENCE)
    assert page.find("#live video.eye").is_displayed()
    until(lambda: "nobody is seen" in page.text("#live .notes"), "a note")
    page.click("#live button.stop")
    until(lambda: not page.find("#live video.eye").is_displayed(), "the camera to go")


def test_phone(page: Page) -> None:
    page.open(390, 844)
    wide, there = page.wide()
    assert wide <= there + 1, f"{wide} px of {there}"
    page.click("#samples")
    until(lambda: page.all("#image img") and page.all("#video video"), "the samples")
    for name in ("#start", "#cancel", "#look", "#mode"):
        box = page.find(name).rect
        assert box["x"] >= 0, name
        assert box["x"] + box["width"] <= there, name
        assert box["height"] >= 24, name
    page.picture("phone")
    page.tab("Live")
    until(lambda: page.find("#live circle").is_displayed(), "the skeleton")
    wide, there = page.wide()
    assert wide <= there + 1
    page.picture("phone_live")


def test_by_keyboard_alone(page: Page) -> None:
    def go(name: str) -> None:
        """Press the Tab key until something has the focus."""
        for _ in range(80):
            if page.driver.execute_script("return document.activeElement.closest('#' + arguments[0]) !== null", name):
                return
            ActionChains(page.driver).send_keys(Keys.TAB).perform()
        raise AssertionError(f"{name} cannot be reached")

    def press(key: str) -> None:
        ActionChains(page.driver).send_keys(key).perform()

    go("samples")
    press(Keys.ENTER)
    until(lambda: page.all("#image img") and page.all("#video video"), "the samples")
    go("align")
    press(Keys.SPACE)
    assert page.find("#align input").is_selected()
    go("start")
    press(Keys.ENTER)
    until(lambda: "so far" in page.state() or "waits" in page.state(), "the beginning")
    go("cancel")
    press(Keys.ENTER)
    until(lambda: "cancelled" in page.state(), "the end")
