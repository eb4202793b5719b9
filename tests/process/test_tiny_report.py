"""The report on held-out clips: variants, kept results, numbers, files."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from tests.process.small import SMALL
from xdyna.config.loader import compose
from xdyna.core.program import FAILURE, run
from xdyna.core.resources import resource
from xdyna.evaluation.masks import Masker
from xdyna.media.image import read_image
from xdyna.models.attention import DynamicsAdapterAttention
from xdyna.pipelines.folder import save_pipeline
from xdyna.pipelines.untrained import build_pipeline
from xdyna.pipelines.xdyna import XDynaPipeline
from xdyna.puppets import report as tiny_report
from xdyna.puppets import summary as tiny_summary
from xdyna.puppets.card import BEGIN, END, check_card
from xdyna.puppets.evaluate import FOLDERS, PuppetNets, puppet_metrics
from xdyna.puppets.expression import ExpressionReader
from xdyna.puppets.heldout import HeldOut, Task, load_held_out, self_driven
from xdyna.puppets.rows import ROWS, TinyReportConfig
from xdyna.puppets.sheets import MAX_BYTES, clip_block, write_sheet
from xdyna.puppets.variants import VARIANTS, Bench, Settings, Variant, adapter_off, reconstruct
from xdyna.puppets.world import EXPRESSIONS

SIZE, FRAMES = (64, 64), 2
MODEL = replace(SMALL, unet={**SMALL.unet, "sample_size": [8, 8]})
METRICS = "metrics=[psnr,ssim,dtfvd_puppet,face_cos_puppet,temporal_ratio]"
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
    summary = tiny_summary.summarise(clips, {0: "fire", 1: "wall", 2: "sea"})
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
    assert {name: row["clips"] for name, row in summary["expression"].items()} == {"full": 3, "copy": 3}
    fewer = {**clips, "no_face": {1: numbers(21)}}
    rows = tiny_summary.summarise(fewer, {0: "fire", 1: "wall", 2: "sea"})["expression"]
    assert {name: row["clips"] for name, row in rows.items()} == {"full": 1, "copy": 1, "no_face": 1}
    text = tiny_summary.tables(summary)
    assert "| (b) reference copied | 3 | 17.00 |" in text
    assert "+4.00 ± 1.00 (2)" in text
    assert "nan" not in text


def test_plan() -> None:
    short, full = (tiny_report.plan(64, full=full, face=True) for full in (False, True))
    assert len(full) == 64 * len(VARIANTS)
    expected = {"full": 64, "vae": 64, "no_pose": 32, "cross_exact": 32, "no_face": 32, "cross_aligned": 16}
    assert {name: sum(n == name for _, n in short) for name in expected} == expected
    assert not any(name == "no_face" for _, name in tiny_report.plan(2, full=True, face=False))
    assert tiny_report.plan(2, full=True, face=True, variants=["vae"]) == [(0, "vae"), (1, "vae")]


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
    """Runs the report of a small checkpoint on two clips with one step."""
    save_pipeline(pipeline, tmp_path / "model")
    reader().save(tmp_path / "reader", facts={})
    monkeypatch.setattr(tiny_report, "READER", tmp_path / "reader")

    def call(*arguments: str, model: str = "model") -> int:
        given = [
            str(tmp_path / model),
            "--clips",
            "2",
            "--steps",
            "1",
            "--device",
            "cpu",
            "--out",
            str(tmp_path / "out"),
        ]
        return run(tiny_report.main, [*given, "--set", METRICS, *arguments])

    return call


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """Lets sampling be replaced by a dimmed truth; collects what was generated, by clip and variant."""
    made: list[tuple[int, str]] = []
    original_make, original = Bench.make, Bench._generate

    def make(self: Bench, number: int, name: str, entry: HeldOut) -> np.ndarray:
        made.append((number, name))
        return original_make(self, number, name, entry)

    def generate(self: Bench, number: int, variant: Variant, task: Task) -> np.ndarray:
        if variant.way != "sample":
            return original(self, number, variant, task)
        return (task.truth.frames * (0.9 - 0.1 * (not variant.pose))).astype(np.uint8)

    monkeypatch.setattr(Bench, "make", make)
    monkeypatch.setattr(Bench, "_generate", generate)
    return made


def cells(text: str, label: str) -> list[str]:
    """The first row of a table that begins with a label."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


@pytest.mark.long
def test_card_and_document_say_the_same(
    report: Callable[..., int], generated: list[tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run fills both; PSNR and SSIM of whole frames are equal, and those of scikit-image; all else stays."""
    card, doc = tmp_path / "card.md", tmp_path / "doc.md"
    card.write_text(f"# A model\n\nabove\n\n{BEGIN}\nold\n{END}\n\nbelow\n")
    assert report("--full", "--card", str(card), "--doc", str(doc)) == 0
    filled, text, out = card.read_text(), doc.read_text(), tmp_path / "out"
    assert filled.startswith(f"# A model\n\nabove\n\n{BEGIN}\n")
    assert filled.endswith(f"{END}\n\nbelow\n")
    assert "old" not in filled
    rows = {"(a) full": 0, "(b) reference copied": 1, "(e) truth through the VAE": 3}
    for label, column in rows.items():
        number, _, _, psnr, ssim = cells(filled, label)[:5]
        assert number == "2"
        assert psnr == cells(text, "PSNR ↑")[column]
        assert ssim == f"{float(cells(text, 'SSIM ↑')[column]):.3f}"
    made = filled.partition("\n\nMade by")[0]
    sentence = next(line for line in text.splitlines() if line.startswith("2 held-out puppet clips"))
    assert sentence.partition(" Measured through")[0] in made

    content = json.loads((out / "report.json").read_text())
    reports = {row: json.loads((out / "reports" / row / "report.json").read_text())["metrics"] for row in ROWS}
    for name in ("full", "copy", "vae"):
        for metric in ("psnr", "ssim"):
            assert content["quality"][name][f"{metric}_frame"] == pytest.approx(
                reports[name][metric]["values"][metric], abs=1e-9
            )
    expected: dict[str, list[tuple[float, float]]] = {"copy": [], "late": []}
    for entry in load_held_out()[:2]:  # by hand: the reference copied, and the truth one frame late
        task = self_driven(entry, frames=16, size=SIZE)
        late = replace(entry, start=entry.start + 1).clip(frames=16, size=SIZE)
        assert np.array_equal(late.frames[:-1], task.truth.frames[1:])
        for name, frames in (("copy", np.repeat(task.reference[None], 16, 0)), ("late", late.frames)):
            for a, b in zip(task.truth.frames, frames, strict=True):
                grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (a, b)]
                expected[name].append((peak_signal_noise_ratio(a, b), structural_similarity(*grey)))
    for name, values in expected.items():
        psnr_mean, ssim_mean = np.mean(values, axis=0)
        assert reports[name]["psnr"]["values"]["psnr"] == pytest.approx(psnr_mean, abs=1e-6)
        assert reports[name]["ssim"]["values"]["ssim"] == pytest.approx(ssim_mean, abs=1e-6)
    assert reports["copy"]["temporal_ratio"]["values"]["temporal_ratio"] == 0
    assert reports["late"]["face_cos_puppet"]["values"]["face_cos_puppet"] > 0.5
    assert "`dtfvd_puppet` (2 clips, 64 channels)" in text

    first = self_driven(load_held_out()[0], frames=16, size=SIZE).truth
    assert np.array_equal(read_image(out / "truth" / "00" / "005.png"), first.frames[5])

    assert content["quality"].keys() == VARIANTS.keys()
    assert content["clips"]["0"]["identity"] == load_held_out()[0].identity
    assert content["clips"]["0"]["truth"]["psnr_frame"] == 100
    assert content["weights"].keys() >= {"unet/diffusion_pytorch_model.safetensors"}
    assert (out / "self_1.png").is_file()
    assert (out / "cross_1.png").is_file()


@pytest.mark.long
def test_report_goes_on(report: Callable[..., int], generated: list[tuple[int, str]], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert report() == 0
    assert len(generated) == 2 * len(VARIANTS)
    before = json.loads((out / "report.json").read_text())
    generated.clear()
    (out / "clips" / "00_no_pose.npz").unlink()
    assert report() == 0
    assert generated == [(0, "no_pose")]
    assert json.loads((out / "report.json").read_text())["quality"] == before["quality"]
    generated.clear()
    assert report("--variants", "copy,vae", "--seed", "7") == 0
    assert {name for _, name in generated} == {"copy", "vae"}
    assert not (tmp_path / "doc.md").exists()


@pytest.mark.long
def test_parts_make_what_the_report_takes(
    report: Callable[..., int], generated: list[tuple[int, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sampled = {name for name, variant in VARIANTS.items() if variant.way == "sample"}
    for number in (1, 2):
        assert report("--part", f"{number}/2") == 0
        assert not (tmp_path / "out" / "report.json").exists()
    assert len(generated) == 2 * len(sampled)
    assert {name for _, name in generated} == sampled
    generated.clear()
    assert report() == 0
    assert {name for _, name in generated} == VARIANTS.keys() - sampled
    for wrong in ("3/2", "0/2", "1", "a/b"):
        with pytest.raises(SystemExit, match="2"):
            report("--part", wrong)
        assert f"got '{wrong}', expected K/N" in capsys.readouterr().err


@pytest.mark.long
def test_untrained_weights_are_not_measured(
    report: Callable[..., int],
    generated: list[tuple[int, str]],
    pipeline: XDynaPipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_pipeline(pipeline, tmp_path / "untrained", untrained=True)
    assert report(model="untrained") == FAILURE
    assert "is not final: the weights are untrained" in capsys.readouterr().err
    monkeypatch.setattr(tiny_report, "TINY", tmp_path / "xdyna-tiny")
    assert report(model="xdyna-tiny") == FAILURE
    assert "make tiny" in capsys.readouterr().err
    assert not (tmp_path / "out" / "clips").exists()
    assert report("--allow-untrained", "--variants", "full,copy,vae", model="untrained") == 0
    for name in ("eval_tiny.md", "report.md"):
        assert "**Not final: the weights are untrained" in (tmp_path / "out" / name).read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clips", "65"], "lists 64"),
        (["--clips", "1"], "expected 2 clips"),
        (["--steps", "0"], "and 1 step"),
        (["--set", "metrics=[psn]"], "got ['psn'], expected some of l1"),
        (["--card", "nowhere.md"], "give a model card that is there"),
        (["--card", "plain.md"], "has no place for tables"),
    ],
)
def test_wrong_arguments_are_refused_first(
    arguments: list[str],
    message: str,
    report: Callable[..., int],
    generated: list[tuple[int, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "plain.md").write_text(f"{END}\n{BEGIN}\n")
    monkeypatch.chdir(tmp_path)
    assert report(*arguments) != 0
    assert message in capsys.readouterr().err
    assert not generated


def test_shipped_card_can_be_filled() -> None:
    check_card(resource("pretrained") / "xdyna-tiny" / "README.md")


def test_shipped_protocol_names_all_metrics() -> None:
    config = compose(TinyReportConfig, tiny_report.ROOT_CONFIG).config
    assert config.clips == len(load_held_out())
    nets = PuppetNets.load(resource("pretrained"))
    assert sorted(nets.hashes) == sorted(
        f"{name}/{path.name}" for name in FOLDERS for path in (resource("pretrained") / name).glob("*.safetensors")
    )
    metrics = puppet_metrics(nets, lambda case: np.zeros((0, 68, 3)), Masker(None))
    assert config.metrics == [metric.name for metric in metrics]
