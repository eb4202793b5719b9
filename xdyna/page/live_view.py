"""The tab of live animations: a skeleton that is dragged, or the camera; the puppet follows. live.js does the rest."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from xdyna.page.rooms import FPS, KINDS, Rooms
from xdyna.page.studio import SAMPLE_IMAGE

_HERE = Path(__file__).parent
JOINTS = (
    "nose", "neck", "right shoulder", "right elbow", "right wrist", "left shoulder", "left elbow", "left wrist",
    "right hip", "right knee", "right ankle", "left hip", "left knee", "left ankle", "right eye", "left eye",
    "right ear", "left ear",
)  # fmt: skip
"""Names of OpenPose-18."""

_TEMPLATE = """
<div class="live">
  <p class="hint">The sample's puppet follows your hand, or the person before the camera. Drag the dots; or reach them
  with the Tab key and move them with the arrow keys.</p>
  <div class="buttons">
    <button type="button" class="skeleton">Drag the skeleton</button>
    <button type="button" class="camera">Use the camera</button>
    <button type="button" class="stop" disabled>Stop</button>
    <button type="button" class="again" disabled>Stand again</button>
  </div>
  <p class="state" role="status" aria-live="polite">not running</p>
  <div class="views">
    <figure><div class="stage"><img class="picture" alt="the puppet" src="${props.picture}">
      <video class="eye" muted playsinline hidden></video>
      <svg class="figure" role="group" aria-label="skeleton"></svg></div><figcaption>you</figcaption></figure>
    <figure><canvas class="made" role="img" aria-label="the puppet that follows"></canvas>
      <figcaption>the puppet</figcaption></figure>
  </div>
  <ul class="sentences notes"></ul>
</div>
"""


def live_tab(rooms: Rooms, speak: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """The contents of the tab, and its endpoints.

    Args:
        rooms: of the page.
        speak: lets functions end with sentences.
    """
    picture = "data:image/png;base64," + base64.b64encode(SAMPLE_IMAGE.media.read_bytes()).decode()
    facts = {
        "joints": JOINTS,
        "body": rooms.puppet.body[:, :2].round(1).tolist(),
        "size": list(rooms.puppet.size),
        "fps": FPS,
    }
    script = (_HERE / "live.js").read_text(encoding="utf-8").replace("__FACTS__", json.dumps(facts))
    gr.HTML(
        "", html_template=_TEMPLATE.replace("${props.picture}", picture), js_on_load=script, elem_id="live",
        apply_default_css=False,
    )  # fmt: skip

    def live_start(kind: str) -> dict:  # type: ignore[type-arg]
        """Open a live animation: "skeleton" or "camera"; returns its id under "room"."""
        return rooms.start(kind)

    def live_exchange(room: str, message: str) -> dict:  # type: ignore[type-arg]
        """Bring a pose or a camera image (JSON), and take the frames that were made since."""
        return rooms.exchange(room, message)

    def live_stop(room: str) -> dict:  # type: ignore[type-arg]
        """End a live animation."""
        rooms.stop(room)
        return {"kinds": list(KINDS)}

    for function in (live_start, live_exchange, live_stop):
        gr.api(speak(function), api_name=function.__name__, queue=False)
