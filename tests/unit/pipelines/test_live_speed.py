"""What live windows do not compute twice, what runs beside what, and that none of it changes a frame."""

import dataclasses
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.process.small import standing_figure
from tests.unit.pipelines.test_live import REFERENCE, SETTINGS, Scripted, figures, go, model  # noqa: F401  (fixture)
from xdyna.core.progress import Watch
from xdyna.models import cpu_attention
from xdyna.models.attention import TextImageCrossAttention
from xdyna.pipelines.attention import in_use
from xdyna.pipelines.folder import save_pipeline
from xdyna.pipelines.live import loop
from xdyna.pipelines.live.bench import bench_live
from xdyna.pipelines.live.rehearsal import Worker, rehearse, torch_threads
from xdyna.pipelines.live.session import LiveSession, live
from xdyna.pipelines.live.sinks import CallbackSink
from xdyna.pipelines.live.window import EmbeddedImages
from xdyna.pipelines.model import Model, load

CPU = torch.device("cpu")


# --- not twice ------------------------------------------------------------------------------------------------------


def test_images_are_embedded_once_and_keys_of_tokens_once_a_session(model, monkeypatch) -> None:  # noqa: F811
    session, items = LiveSession(REFERENCE, model, SETTINGS), figures(11)
    embedded, keys = [], []
    first = model.pipeline.pose_controlnet.controlnet_cond_embedding.conv_in
    handle = first.register_forward_hook(lambda _, inputs, __: embedded.append(len(inputs[0])))
    made = TextImageCrossAttention.keys
    monkeypatch.setattr(TextImageCrossAttention, "keys", lambda *a: keys.append(1) or made(*a))
    frames = [session.window(items[:5])]
    layers = len(keys)
    frames += [session.window(items[5:8]), session.window(items[8:])]
    handle.remove()
    assert embedded == [5, 3, 3]  # neither in each of the two steps, nor held frames anew
    places = sum(isinstance(layer, TextImageCrossAttention) for layer in model.pipeline.unet.modules())
    assert len(keys) == layers == places
    plain = LiveSession(REFERENCE, model, SETTINGS)  # nothing kept from window to window
    for part, shown in zip((items[:5], items[5:8], items[8:]), frames, strict=True):
        again = plain.window(part)
        for name in plain.denoiser.embedded:
            plain.denoiser.embedded[name]._known.clear()
        plain.denoiser.keys._keys.clear()
        assert np.abs(again.astype(int) - shown).max() <= 1


def test_windows_with_downsampled_tokens(model) -> None:  # noqa: F811
    """What the pipeline is told by the settings, the window's networks do."""
    items = figures(5)
    exact = LiveSession(REFERENCE, model, SETTINGS).window(items)
    fewer = LiveSession(REFERENCE, model, dataclasses.replace(SETTINGS, token_downsampling=2)).window(items)
    assert not np.array_equal(exact, fewer)
    assert np.array_equal(exact, LiveSession(REFERENCE, model, SETTINGS).window(items))


def test_a_new_range_embeds_held_frames_anew(model) -> None:  # noqa: F811
    net = model.pipeline.pose_controlnet
    rng = np.random.default_rng(0)
    dark = rng.integers(0, 100, (3, 32, 32, 3), np.uint8)
    bright = np.concatenate([dark[1:], rng.integers(0, 256, (2, 32, 32, 3), np.uint8)])
    images = EmbeddedImages(net)
    with torch.no_grad():
        images.of(dark)
        after = images.of(bright).images
        pixels = torch.from_numpy(bright).permute(0, 3, 1, 2).float()
        low, high = float(min(dark.min(), bright.min())), float(bright.max())
        expected = net.controlnet_cond_embedding((pixels - low) / (high - low))
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_lora_weights_are_merged_once(model, tmp_path: Path, scale: float) -> None:  # noqa: F811
    """W + scale B A stands in the weights, and no layer of the LoRA is left to run."""
    folder = tmp_path / "pipeline"
    save_pipeline(model.pipeline, folder, untrained=True)
    name = next(n for n, _ in model.pipeline.unet.named_modules() if re.search(r"temporal.*to_q$", n))
    weight = model.pipeline.unet.get_submodule(name).weight.detach().clone()
    down, up = torch.randn(2, weight.shape[1]), torch.randn(weight.shape[0], 2)
    path = tmp_path / "a.safetensors"
    save_file({f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}, path)
    settings = dataclasses.replace(SETTINGS, lora=[f"{path}:{scale}"], scheduler="lcm")
    loaded = load(folder, settings.animation())
    first = LiveSession(REFERENCE, loaded, settings).window(figures(5))
    second = LiveSession(REFERENCE, loaded, settings).window(figures(5))  # merged by the first
    np.testing.assert_array_equal(first, second)
    torch.testing.assert_close(loaded.pipeline.unet.get_submodule(name).weight, weight + scale * up @ down)
    assert not [n for n, _ in loaded.pipeline.unet.named_modules() if "lora" in n]
    assert type(loaded.pipeline.scheduler).__name__ == "LCMScheduler"
    unmerged = load(folder, settings.animation())
    unmerged.merge_lora = lambda: None
    assert np.abs(LiveSession(REFERENCE, unmerged, settings).window(figures(5)).astype(int) - first).max() <= 1
    without = dataclasses.replace(settings, lora=[])
    other = LiveSession(REFERENCE, load(folder, without.animation()), without).window(figures(5))
    assert not np.array_equal(other, first)


# --- side by side ---------------------------------------------------------------------------------------------------


def test_a_window_is_denoised_while_the_last_one_is_decoded(model, monkeypatch) -> None:  # noqa: F811
    """Decoding waits for the next window's denoising here: one after the other, it would wait in vain."""
    begun = [threading.Event() for _ in range(5)]
    latents, decode = LiveSession.latents, LiveSession.decode
    numbers, waited = iter(range(5)), []

    def denoising(self, inputs):
        begun[next(numbers)].set()
        return latents(self, inputs)

    def decoding(self, given):
        if self._start:  # not in the rehearsal
            waited.append(begun[min(len(waited) + 1, 3)].wait(30))
        return decode(self, given)

    plain = go(model, Scripted(figures(12)))[1]
    monkeypatch.setattr(LiveSession, "latents", denoising)
    monkeypatch.setattr(LiveSession, "decode", decoding)
    (report, error), frames = go(model, Scripted(figures(12)))
    assert waited == [True] * 4
    assert (report.windows, error) == (4, None)
    np.testing.assert_array_equal(frames, plain)  # the same frames in the same order


def test_what_denoising_fails_with_comes_after_what_was_made(model, monkeypatch) -> None:  # noqa: F811
    latents = LiveSession.latents

    def failing(self, inputs):
        if self._start:
            raise ValueError("a window came out as NaN")
        return latents(self, inputs)

    monkeypatch.setattr(LiveSession, "latents", failing)
    shown: list[np.ndarray] = []
    with pytest.raises(ValueError, match="came out as NaN"):
        go(model, Scripted(figures(12), forever=True), sink=CallbackSink(lambda frame, at: shown.append(frame)))
    assert len(shown) == 5
    assert not [t for t in threading.enumerate() if t.name.startswith("live")]


def test_a_stop_shows_what_was_begun(model, monkeypatch) -> None:  # noqa: F811
    """The window that is denoised when the wish comes is decoded and written; no further one is begun."""
    seen, latents, wish = [], LiveSession.latents, threading.Event()

    def slow(self, inputs):
        seen.append(len(inputs))
        if len(seen) == 2:
            wish.set()
            time.sleep(0.3)  # meanwhile it is asked to stop
        return latents(self, inputs)

    monkeypatch.setattr(LiveSession, "latents", slow)
    (report, _), _ = go(model, Scripted(figures(30), forever=True), cancel=wish.is_set)
    assert report.ended == "stopped"
    assert seen == [5, 3]
    assert report.frames == 8


# --- threads --------------------------------------------------------------------------------------------------------


class Timed:
    """A session whose windows take as long as is said for a number of threads."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds, self.settings, self.face = seconds, SETTINGS, False
        self.controls = type("Controls", (), {"size": (8, 8)})
        self.denoiser, self.device, self.used = self, CPU, []

    def denoise(self, images, *, start, held):
        self.used.append(torch.get_num_threads())
        time.sleep(self.seconds[self.used[-1]])
        return torch.zeros(1, 4, 5, 1, 1)

    def decode(self, latents):
        self.used.append(torch.get_num_threads())

    def forget(self):
        self.used.append("forgotten")


def test_threads_are_chosen_by_measurement() -> None:
    said: list[str] = []
    before = torch.get_num_threads()
    with torch_threads(4):
        session = Timed({1: 0.09, 2: 0.03, 4: 0.15})
        best = rehearse(session, threads=None, say=said.append)
        assert torch.get_num_threads() == 4
    assert (best.threads, session.used[-1]) == (2, "forgotten")
    assert set(session.used[:-1]) == {1, 2, 4}
    assert 0.03 <= best.period <= best.delay < 0.09
    assert re.fullmatch(r"threads: .* denoising with 2 \(threads=N sets it\)", said[0])
    assert rehearse(Timed({3: 0.0}), threads=3, say=said.append).threads == 3
    assert len(said) == 1  # there was no choice
    assert torch.get_num_threads() == before


def test_a_run_denoises_with_the_threads_that_are_set_and_leaves_torch_as_it_was(model, monkeypatch) -> None:  # noqa: F811
    before, used, latents = torch.get_num_threads(), [], LiveSession.latents
    monkeypatch.setattr(LiveSession, "latents", lambda *a: used.append(torch.get_num_threads()) or latents(*a))
    settings = dataclasses.replace(SETTINGS, threads=before + 1)
    session = LiveSession(REFERENCE, model, settings)
    sink, watch = CallbackSink(lambda *_: used.append(torch.get_num_threads())), Watch()
    report, _ = loop.run(session, Scripted(figures(5)), sink, settings=settings, watch=watch, device=CPU)
    assert set(used) == {before + 1}
    assert report.numbers()["threads"] == before + 1
    assert torch.get_num_threads() == before


def test_a_worker_raises_what_it_failed_with() -> None:
    assert Worker(lambda: 3).result() == 3
    with pytest.raises(ZeroDivisionError):
        Worker(lambda: 1 / 0).result()


def test_bench_tells_stages_that_add_up(model: Model, capsys) -> None:  # noqa: F811
    settings = dataclasses.replace(SETTINGS, guidance=1.0)
    (row,) = bench_live(model.pipeline, settings, size=(32, 32), face=False, windows=[(3, 2)], steps=[2], repeats=1)
    assert list(row["stages"]) == ["conditions", "ControlNets", "UNet", "decoding"]
    assert all(value > 0 for value in row["stages"].values())
    assert row["processor_seconds"] == pytest.approx(sum(row["stages"].values()))
    assert "ControlNets + UNet" in capsys.readouterr().out
    assert not model.pipeline.unet._forward_hooks


@pytest.mark.parametrize("attention", ["auto", "native"])
def test_windows_get_the_attention_that_suits_a_cpu(model, tmp_path, monkeypatch, attention) -> None:  # noqa: F811
    """Also after the kernels of the run were chosen; other kernels by name are what they are."""
    save_pipeline(model.pipeline, tmp_path / "pipeline", untrained=True)
    used: list[int] = []
    made = cpu_attention.attention
    monkeypatch.setattr(cpu_attention, "attention", lambda *a, **k: used.append(1) or made(*a, **k))
    settings = dataclasses.replace(SETTINGS, attention=attention)
    loaded = load(tmp_path / "pipeline", settings.animation())
    shown: list[float] = []
    live(REFERENCE, standing_figure(frames=5), on_frame=lambda _, at: shown.append(at), settings=settings, model=loaded)
    assert (len(shown), bool(used)) == (5, True)
    assert set(in_use(loaded.pipeline).values()) == {"native"}
