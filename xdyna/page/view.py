"""The page as one sees it (Gradio): the tab that animates, and the named endpoints for programs."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import html
import inspect
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from xdyna.page.jobs import Job, Progress, Unknown
from xdyna.page.live_view import live_tab
from xdyna.page.rooms import Rooms
from xdyna.page.studio import SAMPLE_IMAGE, SAMPLE_VIDEO, SEARCHES, Studio, Wish
from xdyna.page.words import CROP, CROPS, FIT, FORCE

STYLE = Path(__file__).with_name("page.css")
_HISTORY = 12  # animations in the list
_STATES = {"waiting": "waits", "running": "running", "done": "done", "failed": "failed", "cancelled": "cancelled"}
ABOUT = (
    "# X-Dyna\nAnimate one image of a person with the motion and the expression of a video. "
    "Everything is computed where this page comes from; files are removed after {minutes:g} minutes."
)


def as_sent(component: gr.components.Component) -> Any:
    """A component whose value is handed on as it was sent (of a file: where it lies): what it is, is seen elsewhere.

    No subclass: for those Gradio writes a file beside this one.
    """

    def preprocess(payload: Any) -> Any:
        return payload.path if hasattr(payload, "path") else payload

    component.preprocess = preprocess  # type: ignore[method-assign]
    return component


class Speaker:
    """Lets functions of the page end with sentences instead of tracebacks.

    Args:
        explain: turns an exception into a sentence.
    """

    def __init__(self, explain: Callable[[BaseException], str]) -> None:
        self.explain = explain

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, whose exceptions are `gr.Error` with a sentence."""

        @functools.wraps(function)
        def spoken(*args: Any) -> Any:
            try:
                return function(*args)
            except gr.Error:
                raise
            except Exception as error:
                text = html.escape(self.explain(error), quote=False)
                raise gr.Error(text, duration=None, title="This does not work", print_exception=False) from error

        return spoken


def by_fields(function: Callable[[Wish], Any]) -> Callable[..., Any]:
    """Lets a function of a wish be called with its fields, by whose names the API knows them."""

    def called(*values: Any) -> Any:
        return function(Wish(*values))

    called.__name__, called.__doc__ = function.__name__, function.__doc__
    called.__signature__ = inspect.signature(Wish)  # type: ignore[attr-defined]
    return called


def build(studio: Studio, rooms: Rooms) -> gr.Blocks:
    """The page.

    Args:
        studio: animates.
        rooms: live animations.
    """
    speak = Speaker(studio.explain)
    with gr.Blocks(title="X-Dyna", analytics_enabled=False) as page:
        gr.Markdown(ABOUT.format(minutes=studio.limits.keep_minutes))
        with gr.Tabs():
            with gr.Tab("Animate", id="animate"):
                _animate_tab(page, studio, speak)
            with gr.Tab("Live", id="live"):
                live_tab(rooms, speak)
    _take_fewer_inputs(page)
    return page


def _take_fewer_inputs(page: gr.Blocks) -> None:
    """What a program does not name is as the page has it at first, so that new inputs disturb nobody."""
    original = page.preprocess_data

    async def preprocess_data(block_fn: Any, inputs: list[Any], *rest: Any, **more: Any) -> Any:
        missing = [getattr(block, "value", None) for block in block_fn.inputs[len(inputs) :]]
        return await original(block_fn, [*inputs, *missing], *rest, **more)

    page.preprocess_data = preprocess_data  # type: ignore[method-assign]


def _animate_tab(page: gr.Blocks, studio: Studio, speak: Speaker) -> None:
    limits = studio.limits
    current = gr.State(None)
    history = gr.BrowserState([], storage_key="xdyna-page", secret=secrets.token_hex(16))
    timer = gr.Timer(1.0, active=False)
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            with gr.Row():
                place: dict[str, Any] = {"height": 230, "min_width": 140, "buttons": []}
                image = as_sent(
                    gr.Image(
                        label="Image of a person", type="filepath", sources=["upload", "clipboard"], elem_id="image",
                        **place,
                    )
                )  # fmt: skip
                video = as_sent(gr.Video(label="Video of a person", sources=["upload"], elem_id="video", **place))
            gr.Markdown(
                f"At most {limits.max_seconds:g} s of video and {limits.max_upload_mb} MB a file.", elem_id="limits"
            )
            with gr.Row():
                sample = gr.Button("Take the samples", size="sm", min_width=130, elem_id="samples")
                look = gr.Button("Check how they fit", size="sm", min_width=130, elem_id="look")
            choices = [(text, name) for name, text in studio.modes.items()]
            usual = "fast" if "fast" in studio.modes else choices[0][1]
            mode = as_sent(gr.Dropdown(choices, value=usual, label="Mode", elem_id="mode"))
            align = gr.Checkbox(False, label=FIT, elem_id="align")
            with gr.Row():
                start = gr.Button("Animate", variant="primary", min_width=130, elem_id="start")
                cancel = gr.Button("Cancel", variant="stop", min_width=130, elem_id="cancel", interactive=False)
            with gr.Accordion("More", open=False, elem_id="more"):
                with gr.Row():
                    frames = gr.Number(0, label="Frames (0: all)", min_width=90, elem_id="frames")
                    steps = gr.Number(0, label="Steps (0: the mode's)", min_width=90, elem_id="steps")
                    seed = gr.Number(42, label="Seed", min_width=90, elem_id="seed")
                    person = gr.Number(0, label="Person (0: the largest)", min_width=90, elem_id="person")
                with gr.Row():
                    crowd = _choice(SEARCHES, "Search for everybody", "crowd")
                    crop = _choice(CROPS, CROP, "crop")
                force = gr.Checkbox(False, label=FORCE, elem_id="force")
        with gr.Column(scale=1, min_width=300):
            bar = gr.HTML(_bar(None), elem_id="bar")
            fit = gr.Image(
                label="How they fit", show_label=False, interactive=False, visible=False, elem_id="fit",
                buttons=["fullscreen"],
            )  # fmt: skip
            notes = gr.HTML("", elem_id="notes")
            result = gr.Video(
                label="Result", interactive=False, elem_id="result", autoplay=True, loop=True, height=300,
                visible=False, buttons=[],
            )  # fmt: skip
            beside = gr.Video(
                label="Beside what it is made of", interactive=False, elem_id="beside", loop=True, autoplay=True,
                visible=False, height=200, buttons=[],
            )  # fmt: skip
            files = gr.File(
                label="Download", file_count="multiple", interactive=False, visible=False, elem_id="files"
            )  # fmt: skip
            past = gr.Radio([], label="Your animations", visible=False, elem_id="past")

    wish = [image, video, mode, frames, steps, seed, align, person, crowd, crop, force]  # as its fields
    shown = [bar, notes, start, cancel, timer]
    outcome = [result, beside, files]

    def show(name: str | None) -> tuple[Any, ...]:
        """Where the job stands, in `shown` and `outcome`."""
        try:
            found = studio.jobs.progress(name) if name else None
        except Unknown:
            found = None
        active = found is not None and found.state in ("waiting", "running")
        state = (
            _bar(found), _list(found.notes) if found else "", gr.update(interactive=not active),
            gr.update(interactive=active), gr.Timer(active=active),
        )  # fmt: skip
        if name is None or found is None or found.state != "done":
            return (*state, gr.update(), gr.update(), gr.update())
        video_file, side_by_side, downloads = files_of(studio.result(name))
        return (
            *state, gr.update(value=video_file, visible=True), gr.update(value=side_by_side, visible=True),
            gr.update(value=downloads, visible=True),
        )  # fmt: skip

    def listed(kept: list[Any]) -> Any:
        """The list of the visitor's animations, those that are still there."""
        entries = []
        for name in kept if isinstance(kept, list) else []:
            try:
                job = studio.jobs.get(name)
            except Unknown:
                continue
            entries.append((f"{job.label}: {_STATES[job.state]}", job.id))
        return gr.update(choices=entries, visible=bool(entries), value=None)

    @speak
    @by_fields
    def submit(wish: Wish) -> dict[str, Any]:
        """Let an animation wait; returns its id under "job", and its place in the queue."""
        job = studio.submit(wish)
        return {"job": job.id, "place": studio.jobs.progress(job.id).place}

    @speak
    @by_fields
    def check(wish: Wish) -> tuple[Any, Any]:
        """How well the image and the video fit: a preview, and sentences."""
        found = studio.look(wish)
        return found.image, found.notes

    def keep(ticket: dict[str, Any] | None, kept: Any) -> tuple[Any, Any]:
        mine = [name for name in kept if isinstance(name, str)] if isinstance(kept, list) else []
        if ticket:
            mine = [ticket["job"], *mine][:_HISTORY]
        return (ticket or {}).get("job"), mine

    def end(name: str | None) -> None:
        if name:
            with contextlib.suppress(Unknown):
                studio.jobs.cancel(name)

    ticket, sentences = gr.JSON(visible=False), gr.JSON(visible=False)
    same: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    begun = start.click(
        submit, wish, ticket, api_name="submit", concurrency_limit=4, show_progress="hidden"
    )  # fmt: skip
    begun.success(keep, [ticket, history], [current, history], **same).then(
        show, current, [*shown, *outcome], **same
    ).then(listed, history, past, **same)
    timer.tick(show, current, [*shown, *outcome], queue=False, **same)
    cancel.click(end, current, None, queue=False, **same).then(show, current, [*shown, *outcome], queue=False, **same)
    look.click(lambda: _list(["looks at both files"]), None, notes, queue=False, **same)
    looked = look.click(check, wish, [fit, sentences], api_name="look", concurrency_limit=1, show_progress="hidden")
    looked.success(lambda said: (gr.update(visible=True), _list(said)), sentences, [fit, notes], queue=False, **same)
    looked.failure(lambda: "", None, notes, queue=False, **same)
    sample.click(
        lambda: (str(SAMPLE_IMAGE.media), str(SAMPLE_VIDEO.media)), None, [image, video], api_name="samples",
        show_progress="hidden", queue=False,
    )  # fmt: skip
    gr.on([image.change, video.change], lambda: gr.update(visible=False), None, fit, queue=False, **same)
    past.input(lambda name: name, past, current, queue=False, **same).then(
        show, current, [*shown, *outcome], queue=False, **same
    )
    page.load(listed, history, past, queue=False, **same)
    _endpoints(studio, speak)


def _choice(values: dict[str, str], label: str, name: str) -> Any:
    """A list of values, by what they mean; the first one is chosen."""
    choices = [(text, value) for value, text in values.items()]
    return as_sent(gr.Dropdown(choices, value=next(iter(values)), label=label, min_width=200, elem_id=name))


def _endpoints(studio: Studio, speak: Speaker) -> None:
    """What programs call, beside /submit, /look and /samples."""

    def progress(job: str) -> dict:  # type: ignore[type-arg]
        """Where a job stands: state, stage, done, total, place, seconds, eta_seconds, notes, error."""
        return dataclasses.asdict(studio.jobs.progress(job))

    def cancel(job: str) -> dict:  # type: ignore[type-arg]
        """End a job; returns where it stands then."""
        studio.jobs.cancel(job)
        return dataclasses.asdict(studio.jobs.progress(job))

    gr.api(speak(progress), api_name="progress", queue=False)
    gr.api(speak(cancel), api_name="cancel", queue=False)
    with gr.Group(visible=False):
        job, ask = gr.Textbox(label="job"), gr.Button()
        outputs = [gr.Video(label="result"), gr.Video(label="beside"), gr.File(label="files", file_count="multiple")]

    def result(job: Any) -> tuple[str, str, list[str]]:
        """The files of a job that is done: the video, the side-by-side video, all files."""
        return files_of(studio.result(job))

    ask.click(speak(result), job, outputs, api_name="result", queue=False)


def files_of(job: Job) -> tuple[str, str, list[str]]:
    """The video, the side-by-side video, and what can be downloaded. Args: job: that is done."""
    made = job.result.files
    video, grid, sheet = str(made.video), str(made.grid), str(made.sheet)
    return video, grid, [video, grid, sheet]


def _list(sentences: list[str] | None) -> str:
    """Sentences as a list; warnings stand out."""
    items = []
    for text in sentences or []:
        kind = "warning" if text.startswith("warning") else "verdict" if text.startswith("suitability") else "note"
        items.append(f'<li class="{kind}">{html.escape(text)}</li>')
    return f'<ul class="sentences">{"".join(items)}</ul>' if items else ""


def _bar(found: Progress | None) -> str:
    """A progress bar with what it says."""
    if found is None:
        return '<div class="progress"><p role="status">Give an image and a video, then press Animate.</p></div>'
    share = found.done / found.total if found.total else 0.0
    if found.state == "waiting":
        text = f"waits: {found.place - 1} before it" if found.place > 1 else "waits: it is the next"
        text += f", about {_time(found.eta_seconds)} to go" if found.eta_seconds is not None else ""
    elif found.state == "running":
        text = f"{found.stage or 'it begins'}"
        text += f", {found.done} of {found.total}" if found.total > 1 else ""
        text += f", about {_time(found.eta_seconds)} left of this" if found.eta_seconds is not None else ""
        text += f" ({_time(found.seconds)} so far)"
    elif found.state == "done":
        share, text = 1.0, f"done in {_time(found.seconds)}"
    elif found.state == "failed":
        text = f"it failed: {found.error}"
    else:
        text = "cancelled; nothing of it is kept"
    return (
        f'<div class="progress {found.state}"><div class="track" role="progressbar" aria-label="progress" '
        f'aria-valuemin="0" aria-valuemax="100" aria-valuenow="{share * 100:.0f}"><div class="fill" '
        f'style="width:{share:.1%}"></div></div><p role="status"><b>{html.escape(found.label)}</b>: '
        f"{html.escape(text)}</p></div>"
    )


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
