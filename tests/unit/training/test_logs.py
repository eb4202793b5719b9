import io
import math
import random
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from xdyna.core import atomic
from xdyna.training import curves, trackers
from xdyna.training.errors import TrainingError
from xdyna.training.logs import RunLog, plot_curves, read_metrics


def run_log(run: Path, *, tracker: str = "none", step: int = 0) -> RunLog:
    return RunLog(run, tracker, name="test", config={"optim": {"lr": 1e-4}}, resume_step=step)


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (12, 20, 3), np.uint8)


def test_rows_are_on_file_at_once_in_full_precision(tmp_path: Path) -> None:
    log = run_log(tmp_path)
    values = {"train/loss": 0.1 + 0.2, "lr": 1e-7, "odd, name": 3}
    log.scalars(1, values)
    assert (tmp_path / "metrics.csv").read_text() == (
        'step,name,value\n1,train/loss,0.30000000000000004\n1,lr,1e-07\n1,"odd, name",3.0\n'
    )
    assert read_metrics(tmp_path / "metrics.csv") == {name: [(1, value)] for name, value in values.items()}


def write_rows(log: RunLog, steps: range) -> None:
    for step in steps:
        log.scalars(step, {"loss": random.Random(step).random()})
        if step % 3 == 0:
            log.scalars(step, {"val/loss": math.nan if step == 3 else step / 7})


@pytest.mark.parametrize("stopped_at", range(4, 9))
def test_interrupted_equals_uninterrupted(tmp_path: Path, stopped_at: int) -> None:
    """Byte for byte: the checkpoint is of step 4; later rows, a half one too, are written again."""
    whole = run_log(tmp_path / "whole")
    write_rows(whole, range(1, 11))
    whole.close()
    first = run_log(tmp_path / "parts")
    write_rows(first, range(1, stopped_at + 1))
    first.close()
    path = tmp_path / "parts" / "metrics.csv"
    path.write_text(path.read_text() + f"{stopped_at + 1},lo")
    second = run_log(tmp_path / "parts", step=4)
    write_rows(second, range(5, 11))
    second.close()
    assert path.read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()


def test_killed_before_the_first_checkpoint(tmp_path: Path) -> None:
    log = run_log(tmp_path)
    write_rows(log, range(1, 4))
    log.close()
    run_log(tmp_path).close()
    assert (tmp_path / "metrics.csv").read_text() == "step,name,value\n"


def test_rows_stay_when_they_cannot_be_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = run_log(tmp_path)
    write_rows(log, range(1, 4))
    log.close()
    before = (tmp_path / "metrics.csv").read_bytes()

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "flush", full)
    with pytest.raises(TrainingError, match="make room on the disk"):
        run_log(tmp_path, step=2)
    assert (tmp_path / "metrics.csv").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize("text", ["", "a,b\n", "step,name,value\n1,loss\n", "step,name,value\nx,loss,1\n", "\x80"])
def test_not_a_log(tmp_path: Path, text: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(TrainingError, match=r"expected (a metrics\.csv of a run|step,name,value)"):
        run_log(tmp_path, step=1)
    assert path.read_bytes() == text.encode("latin-1")


# Images


def test_pictures_are_kept(tmp_path: Path) -> None:
    log = run_log(tmp_path)
    path = log.images(1000, "val/clip-3", picture())
    assert path == tmp_path / "samples" / "step-00001000" / "val" / "clip-3.png"
    assert np.array_equal(np.asarray(Image.open(path)), picture()), "another library reads the same colours"
    log.video(1000, "val/clip-3", np.stack([picture(), picture(1)]), 12)
    assert [entry.name for entry in path.parent.iterdir()] == ["clip-3.png"]


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "", "a b", "a/", "."])
def test_names_stay_inside(tmp_path: Path, name: str) -> None:
    with pytest.raises(TrainingError, match="cannot name a sample"):
        run_log(tmp_path).images(1, name, picture())


@pytest.mark.parametrize("wrong", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)])
def test_wrong_pictures(tmp_path: Path, wrong: np.ndarray) -> None:
    with pytest.raises(TrainingError, match=r"expected uint8 \(H, W, 3\)"):
        run_log(tmp_path).images(1, "a", wrong)
    with pytest.raises(TrainingError, match=r"expected uint8 \(T, H, W, 3\)"):
        run_log(tmp_path).video(1, "a", wrong, 12)


def test_gif() -> None:
    frames = np.stack([np.full((8, 10, 3), value, np.uint8) for value in (0, 120, 240)])
    with Image.open(io.BytesIO(trackers.gif(frames, 12.5))) as image:
        assert (image.size, image.n_frames, image.info["duration"]) == ((10, 8), 3, 80)
        for index, value in enumerate((0, 120, 240)):
            image.seek(index)
            assert abs(int(np.asarray(image.convert("RGB"))[4, 4, 0]) - value) < 8


# Trackers


def test_unknown_tracker(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="'mlflow', expected one of none, wandb, tensorboard"):
        run_log(tmp_path, tracker="mlflow")


@pytest.mark.parametrize("tracker", ["wandb", "tensorboard"])
def test_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: str) -> None:
    monkeypatch.setitem(sys.modules, tracker, None)
    with pytest.raises(TrainingError, match=rf"needs the package {tracker}.*\[train\]"):
        run_log(tmp_path, tracker=tracker)
    assert not (tmp_path / "metrics.csv").exists()


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = run_log(tmp_path, tracker="tensorboard")
    for step in (1, 2, 3):
        log.scalars(step, {"loss": step / 2})
    log.images(2, "val/a", picture())
    log.video(2, "val/v", np.stack([picture(), picture(1)]), 12)
    log.close()
    log = run_log(tmp_path, tracker="tensorboard", step=2)
    log.scalars(3, {"loss": 9.0})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.5), (2, 1.0), (3, 9.0)]
    image = cv2.imdecode(np.frombuffer(events.Images("val/a")[0].encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(image[..., ::-1], picture())
    assert events.Images("val/v")[0].encoded_image_string.startswith(b"GIF8")


@pytest.mark.long
def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    for step in (0, 2):
        log = run_log(tmp_path, tracker="wandb", step=step)
        log.scalars(step + 1, {"loss": 0.5})
        log.images(step + 1, "val/a", picture())
        log.video(step + 1, "val/v", np.stack([picture(), picture(1)]), 12)
        log.close()
        time.sleep(1.1)  # wandb names its folders by the second
    identity = (tmp_path / "wandb_id.txt").read_text().strip()
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert runs
    assert {run.name.rsplit("-", 1)[1] for run in runs} == {identity}
    media = [path.suffix for run in runs for path in run.rglob("media/**/*") if path.is_file()]
    assert sorted(media) == [".gif", ".gif", ".png", ".png"]


# Curves


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 1000, [0, 200, 400, 600, 800, 1000]),
        (-0.31, 0.42, [-0.2, 0, 0.2, 0.4]),
        (3.0, 3.1, [3.0, 3.02, 3.04, 3.06, 3.08, 3.1]),
    ],
)
def test_ticks(low: float, high: float, expected: list[float]) -> None:
    assert curves.ticks(low, high, count=5) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (12000, "12k"), (2.5e6, "2.5M"), (1e-5, "1e-05"), (-20000, "-20k"), (999, "999")],
)
def test_labels(value: float, text: str) -> None:
    assert curves.label(value) == text


def test_running_mean() -> None:
    values = np.random.default_rng(0).normal(size=50)
    halves = [min(3, i, 49 - i) for i in range(50)]
    expected = [values[i - half : i + half + 1].mean() for i, half in enumerate(halves)]
    np.testing.assert_allclose(curves.running_mean(values, window=7), expected, rtol=0, atol=1e-12)


def line_places(image: np.ndarray) -> dict[int, float]:
    """Mean height (px) of the pixels in the line's colour, by column."""
    mask = (np.abs(image.astype(int) - np.array(curves.LINE)).sum(axis=-1) < 30)[curves.TOP : -curves.BOTTOM]
    return {x: float(np.flatnonzero(mask[:, x]).mean()) for x in range(image.shape[1]) if mask[:, x].any()}


def test_curve_is_where_it_should_be() -> None:
    """A straight line falls straight from the left edge to the right one, with the axes' padding of 6 %."""
    image = curves.draw_panel("loss", [(step, 1 - step / 20) for step in range(21)])
    places = line_places(image)
    inner = curves.PANEL_W - curves.LEFT - curves.RIGHT
    height = curves.PANEL_H - curves.TOP - curves.BOTTOM
    columns = np.array([x for x in places if curves.LEFT + 3 < x < curves.PANEL_W - curves.RIGHT - 3])
    expected = height * (0.06 + (columns - curves.LEFT) / inner) / 1.12
    assert len(columns) > 0.9 * inner
    np.testing.assert_allclose([places[x] for x in columns], expected, atol=2)


def test_large_range_is_logarithmic() -> None:
    """On a logarithmic axis an exponential decay is straight: the middle of the way is the middle of the height."""
    places = line_places(curves.draw_panel("loss", [(step, math.exp(-step / 4)) for step in range(41)]))
    height = curves.PANEL_H - curves.TOP - curves.BOTTOM
    assert places[(curves.LEFT + curves.PANEL_W - curves.RIGHT) // 2] == pytest.approx(height / 2, abs=2)


@pytest.mark.parametrize("points", [[(0, 0.0)], [(5, 3.0), (9, 3.0)], [(1, -2.0), (2, 5.0)], [(1, 1e-12), (2, 1e12)]])
def test_extreme_curves(points: list[tuple[int, float]]) -> None:
    assert line_places(curves.draw_panel("x", points))


def test_plot(tmp_path: Path) -> None:
    log = run_log(tmp_path)
    for step in range(200):
        log.scalars(step, {"train/loss": 1 / (1 + step), "lr": 1e-4, "val/loss": math.nan if step == 3 else 2.0})
    log.close()
    png = plot_curves(tmp_path / "metrics.csv", tmp_path / "docs" / "curves.png")
    assert cv2.imread(str(png)).shape == (curves.PANEL_H, 2 * curves.PANEL_W, 3)
    plot_curves(tmp_path / "metrics.csv", png, names=["lr"])
    assert cv2.imread(str(png)).shape == (curves.PANEL_H, curves.PANEL_W, 3)
    with pytest.raises(TrainingError, match="has no fid; it has train/loss, lr, val/loss"):
        plot_curves(tmp_path / "metrics.csv", png, names=["fid"])


def test_nothing_to_plot(tmp_path: Path) -> None:
    log = run_log(tmp_path)
    log.scalars(1, {"loss": math.inf})
    with pytest.raises(TrainingError, match="no finite values"):
        plot_curves(tmp_path / "metrics.csv", tmp_path / "a.png")
    with pytest.raises(TrainingError, match="cannot be read"):
        plot_curves(tmp_path / "none.csv", tmp_path / "a.png")


def test_config_is_shown_by_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_log(tmp_path, tracker="tensorboard").close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    text = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "optim" in text
    assert "0.0001" in text
