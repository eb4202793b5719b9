"""The report on held-out clips: variants, kept results, numbers, files."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.process.small import SMALL
from xdyna.core.program import run
from xdyna.models.attention import DynamicsAdapterAttention
from xdyna.pipelines.folder import save_pipeline
from xdyna.pipelines.untrained import build_pipeline
from xdyna.pipelines.xdyna import XDynaPipeline
from xdyna.puppets import report as tiny_report
from xdyna.puppets import summary as tiny_summary
from xdyna.puppets import variants as tiny_variants
from xdyna.puppets.expression import ExpressionReader
from xdyna.puppets.heldout import HeldOut, load_held_out, self_driven
from xdyna.puppets.sheets import MAX_BYTES, clip_block, write_sheet
from xdyna.puppets.variants import VARIANTS, Bench, Settings, adapter_off, reconstruct
from xdyna.puppets.world import EXPRESSIONS

SIZE, FRAMES = (64, 64), 2
MODEL = replace(SMALL, unet={**SMALL.unet, "sample_size": [8, 8]})
ENTRY = HeldOut(identity=2_000_001, motion=2_000_002, scene=2_000_001, other=2_000_004, start=2)


@pytest.fixture(scope="module")
def pipeline() -> XDynaPipeline:
    """A pipeline whose adapter and ControlNets do something."""
    pipe = build_pipeline(MODEL, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for net in (pipe.unet, pipe.pose_controlnet, pipe.face_controlnet):
            for parameter in net.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.3, generator=generator)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def bench(pipeline: XDynaPipeline, tmp_path: Path) -> Bench:
    settings = Settings(steps=1, guidance=1.0, seed=0, frames=FRAMES, size=SIZE, weights="w", dtype="float32")
    return Bench(pipeline, settings, tmp_path / "clips")


def reader() -> ExpressionReader:
    torch.manual_seed(0)
    return ExpressionReader(channels=(4, 4, 4), hidden=4).eval()


def test_adapter_off_is_exact_and_undone(pipeline: XDynaPipeline) -> None:
    adapters = [m for m in pipeline.unet.modules() if isinstance(m, DynamicsAdapterAttention)]
    before = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    x = torch.randn(4, 5, adapters[0].to_q.in_features)
    attention = adapters[0]
    plain = attention.to_out[0](attention._attend(*(p(x) for p in (attention.to_q, attention.to_k, attention.to_v))))

    def fail_inside() -> None:
        with adapter_off(pipeline.unet):
            assert torch.equal(attention(x, num_frames=4), plain)
            changed = {n for n, value in pipeline.unet.state_dict().items() if not torch.equal(value, before[n])}
            assert changed == {n for n in before if ".to_out_ff." in n}
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert all(torch.equal(value, before[name]) for name, value in pipeline.unet.state_dict().items())
    assert not torch.equal(attention(x, num_frames=4), plain)


def test_variants_switch_off_what_they_say(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampled with the same noise, each differs from the full one; what reaches the pipeline is what is said."""
    seen: list[tuple[object, ...]] = []
    original = XDynaPipeline.__call__

    def spy(self: XDynaPipeline, *args: object, **kwargs: object) -> object:
        adapters = [m for m in self.unet.modules() if isinstance(m, DynamicsAdapterAttention)]
        seen.append((*args[1:], bool(adapters[0].to_out_ff.weight.any())))
        return original(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(XDynaPipeline, "__call__", spy)
    made = {name: bench.make(3, name, ENTRY) for name in ("full", "no_pose", "no_face", "no_adapter")}
    task = bench.task(ENTRY, "self")
    for name, (pose, face, adapter) in zip(made, seen, strict=True):
        assert np.any(pose) == (name != "no_pose")
        assert (face is None) == (name == "no_face")
        assert adapter == (name != "no_adapter")
        if name != "full":
            assert (made[name] != made["full"]).any()
    assert (seen[0][0] == task.pose).all()
    assert (seen[0][1] == task.face).all()
    assert (bench.make(3, "copy", ENTRY) == task.reference).all()
    assert (bench.make(3, "full", ENTRY) == made["full"]).all()
    assert (bench.make(4, "full", ENTRY) != made["full"]).any(), "another clip has another noise"


def test_reconstruction_equals_the_autoencoder(pipeline: XDynaPipeline) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, *SIZE, 3), dtype=np.uint8)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        decoded = pipeline.vae(pixels).sample
    expected = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy()
    made = reconstruct(pipeline, frames)
    assert made.dtype == np.uint8
    assert np.abs(made.astype(float) - expected).max() <= 1
    assert (made == expected).mean() > 0.99


def test_kept_results_are_used_only_where_nothing_changed(bench: Bench) -> None:
    assert bench.kept(0, "full", ENTRY) is None
    made = bench.make(0, "full", ENTRY)
    assert (bench.kept(0, "full", ENTRY) == made).all()
    for name, value in (("steps", 2), ("guidance", 2.0), ("seed", 1), ("weights", "v"), ("dtype", "bfloat16")):
        other = Bench(bench.pipeline, replace(bench.settings, **{name: value}), bench.folder)
        assert other.kept(0, "full", ENTRY) is None, name
    assert bench.kept(0, "full", replace(ENTRY, start=3)) is None
    assert bench.kept(0, "no_pose", ENTRY) is None
    path = bench.path(0, "full")
    path.write_bytes(path.read_bytes()[:-500])
    assert bench.kept(0, "full", ENTRY) is None


def test_measure_of_truth_copy_and_noise() -> None:
    task = self_driven(ENTRY, frames=FRAMES, size=SIZE)
    truth = task.truth
    assert truth.dynamic.any(), "the entry was chosen for its dynamic scene"
    perfect = tiny_summary.measure(task, truth.frames, reader())
    assert (perfect["psnr_figure"], perfect["ssim_frame"], perfect["energy_ratio"]) == (100, 1, 1)
    copy = tiny_summary.measure(task, np.repeat(task.reference[None], FRAMES, axis=0), reader())
    assert copy["energy_ratio"] == 0
    assert copy["psnr_figure"] < 30
    spoiled = np.where(truth.mask[..., None], truth.frames, 0)
    outside = tiny_summary.measure(task, spoiled, reader())
    assert outside["psnr_figure"] == 100
    assert outside["psnr_frame"] < 30
    read, true = reader().read(truth.frames, truth.face), truth.expression
    mouth = np.abs(read[:, 2] - true[:, EXPRESSIONS.index("mouth_open")]).mean()
    eyes = np.abs(read[:, :2] - true[:, [EXPRESSIONS.index(f"eye_open_{side}") for side in ("left", "right")]]).mean()
    assert (perfect["mouth_error"], perfect["eye_error"]) == pytest.approx((mouth, eyes), abs=1e-6)


def numbers(psnr: float, *, ratio: float = math.nan, truth: float = 0.0) -> dict[str, float]:
    row = dict.fromkeys(("ssim_figure", "psnr_frame", "ssim_frame", "mouth_error", "eye_error", "joint_distance"), 0.5)
    return {**row, "psnr_figure": psnr, "energy": ratio * truth, "energy_truth": truth, "energy_ratio": ratio}


def test_summary_by_hand() -> None:
    """Gains pair the clips that both variants have; NaN is left out; energies are pooled over dynamic clips."""
    clips = {
        "full": {0: numbers(20, ratio=0.4, truth=3), 1: numbers(22), 2: numbers(30, ratio=1, truth=1)},
        "copy": {0: numbers(15), 1: numbers(19), 2: numbers(math.nan)},
        "no_pose": {2: numbers(29)},
    }
    summary = tiny_summary.summarise(clips, {0: "fire", 1: "wall", 2: "sea"}, expression_clips=2)
    assert summary["gains"]["full - copy"] == {
        "clips": 2,
        "psnr_figure": 4,
        "standard_error": pytest.approx(math.sqrt(2) / math.sqrt(2)),
    }
    assert summary["gains"]["full - no_pose"]["psnr_figure"] == 1
    assert math.isnan(summary["gains"]["full - no_pose"]["standard_error"])
    assert summary["quality"]["full"]["psnr_figure"] == 24
    assert summary["quality"]["copy"]["psnr_figure"] == 17
    assert summary["energy"]["full"] == {"clips": 2, "pooled": pytest.approx(2.2 / 4), "median": 0.7, "within": 0.5}
    assert summary["energy_by_scene"].keys() == {"fire", "sea"}
    assert summary["expression"]["full"]["clips"] == 2
    text = tiny_summary.tables(summary)
    assert "| (b) reference copied | 3 | 17.00 |" in text
    assert "+4.00 ± 1.00 (2)" in text
    assert "nan" not in text


def test_plan() -> None:
    short, full = (tiny_report.plan(64, full=full, face=True) for full in (False, True))
    assert len(full) == 64 * len(VARIANTS)
    expected = {"full": 64, "vae": 64, "no_pose": 64, "cross_exact": 64, "no_face": 32, "cross_aligned": 16}
    assert {name: sum(n == name for _, n in short) for name in expected} == expected
    assert not any(name == "no_face" for _, name in tiny_report.plan(2, full=True, face=False))


def test_large_sheets_get_a_palette(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 450, 3), dtype=np.uint8)
    write_sheet(tmp_path / "large.png", [noise, noise[::-1], noise[:, ::-1]])
    write_sheet(tmp_path / "small.png", [noise[:20, :30]] * 3)
    with Image.open(tmp_path / "large.png") as large, Image.open(tmp_path / "small.png") as small:
        assert (large.mode, large.size) == ("P", (900, 800))
        assert (small.mode, small.size) == ("RGB", (60, 40))
        assert (np.asarray(small)[:20, 30:] == noise[:20, :30]).all()
    assert (tmp_path / "small.png").stat().st_size < MAX_BYTES
    task = self_driven(ENTRY, frames=FRAMES, size=SIZE)
    assert clip_block(task, task.truth.frames, title="a clip").shape[0] > 3 * SIZE[0]
    with pytest.raises(ValueError, match="at least one"):
        write_sheet(tmp_path / "none.png", [])


@pytest.fixture
def report(pipeline: XDynaPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs tiny_report.py on a small checkpoint with two frames and one step."""
    save_pipeline(pipeline, tmp_path / "model")
    reader().save(tmp_path / "reader", facts={})
    monkeypatch.setattr(tiny_report, "READER", tmp_path / "reader")
    monkeypatch.setattr(tiny_report, "FRAMES", FRAMES)

    def call(*arguments: str) -> int:
        given = [str(tmp_path / "model"), "--steps", "1", "--device", "cpu", "--out", str(tmp_path / "out")]
        return run(tiny_report.main, [*given, *arguments])

    return call


def test_report_is_complete_and_goes_on(
    report: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report("--clips", "1", "--full") == 0
    assert "Self-driven" in capsys.readouterr().out
    out = tmp_path / "out"
    content = json.loads((out / "report.json").read_text())
    assert content["quality"].keys() == VARIANTS.keys()
    assert content["clips"]["0"]["identity"] == load_held_out()[0].identity
    assert content["quality"]["full"]["psnr_figure"] == content["clips"]["0"]["full"]["psnr_figure"]
    assert content["weights"].keys() >= {"unet/diffusion_pytorch_model.safetensors"}
    assert content["settings"]["steps"] == 1
    assert content["clips"]["0"]["truth"]["psnr_frame"] == 100
    assert {path.name for path in out.iterdir()} == {"clips", "report.json", "report.md", "self_1.png", "cross_1.png"}
    assert "| (a) full | 1 |" in (out / "report.md").read_text()

    made: list[tuple[int, str]] = []
    original = tiny_variants.Bench.make

    def spy(self: Bench, number: int, name: str, entry: HeldOut) -> np.ndarray:
        made.append((number, name))
        return original(self, number, name, entry)

    monkeypatch.setattr(tiny_variants.Bench, "make", spy)
    (out / "clips" / "00_no_pose.npz").unlink()
    assert report("--clips", "1", "--full") == 0
    assert made == [(0, "no_pose")]
    again = json.loads((out / "report.json").read_text())
    assert again["quality"] == content["quality"]
    made.clear()
    assert report("--clips", "1", "--seed", "7") == 0
    assert len(made) == len(VARIANTS)


def test_parts_make_what_the_report_takes(
    report: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sampled = {name for name, variant in VARIANTS.items() if variant.way == "sample"}
    for number in (1, 2):
        assert report("--clips", "1", "--part", f"{number}/2") == 0
        assert not (tmp_path / "out" / "report.json").exists()
    made = {path.stem.removeprefix("00_") for path in (tmp_path / "out" / "clips").iterdir()}
    assert made == sampled
    monkeypatch.setattr(Bench, "_generate", lambda self, number, variant, task: task.truth.frames)
    assert report("--clips", "1") == 0
    content = json.loads((tmp_path / "out" / "report.json").read_text())["clips"]["0"]
    assert all((content[name]["psnr_frame"] == 100) == (name not in sampled) for name in ("full", "no_pose", "copy"))
    for wrong in ("3/2", "0/2", "1", "a/b"):
        with pytest.raises(SystemExit, match="2"):
            report("--part", wrong)
        assert f"got '{wrong}', expected K/N" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--clips", "65"], ["--clips", "0"], ["--steps", "0"]])
def test_wrong_numbers_are_refused(
    arguments: list[str], report: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(*arguments) == 2
    assert "expected 1 to 64 clips" in capsys.readouterr().err
