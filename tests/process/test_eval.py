"""`scripts/eval.py` from the command line: reports, resume, processes, bad input."""

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unit.evaluation.test_inputs import frames, write
from tests.unit.training.processes import together
from xdyna.cli import infer
from xdyna.cli.arguments import Command
from xdyna.config.eval import EvalConfig
from xdyna.config.infer import InferConfig
from xdyna.config.loader import compose, names
from xdyna.core.program import run
from xdyna.evaluation import engine
from xdyna.evaluation.catalogue import check_names
from xdyna.evaluation.networks.adaface import UNITS, IRBackbone
from xdyna.evaluation.networks.fixture import random_weights
from xdyna.evaluation.networks.mtcnn import ONet, PNet, RNet
from xdyna.evaluation.paper import TABLES
from xdyna.pipelines.plan import Request

ROOT = Path(__file__).parents[2]
FAST = "mae,psnr,ssim,temporal_ratio,warping_error"


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for k in range(5):
        truth = frames(k, count=5)
        write(tmp_path / "t" / f"{k}.mp4", truth)
        write(tmp_path / "g" / f"{k}.mp4", (truth * 0.8).astype(np.uint8))
    return tmp_path


def call(folder: Path, *more: str, out: str = "out") -> int:
    argv = ["--generated", str(folder / "g"), "--truth", str(folder / "t"), "--out", str(folder / out), *more]
    return run("xdyna.cli.eval", argv)


def values(folder: Path, out: str = "out") -> dict[str, float]:
    metrics = json.loads((folder / out / "report.json").read_text())["metrics"]
    return {name: value for metric in metrics.values() for name, value in metric["values"].items()}


def test_a_report(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folders / "g" / "extra.mp4", frames(9))
    assert call(folders, "--metrics", FAST) == 0
    printed = capsys.readouterr().out
    assert "5 of 5" in printed
    assert "1 generated videos without a partner, left out: extra" in printed
    report = json.loads((folders / "out" / "report.json").read_text())
    assert report["videos"] == 5
    assert report["unpaired"] == {"generated": ["extra"]}
    assert report["environment"]["versions"]["torch"]
    with (folders / "out" / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["video"] for row in rows] == list("01234")
    mean = np.mean(
        [float(row["mae"]) for row in rows]
    )  # videos of one length: the mean over frames is that over videos
    assert values(folders)["mae"] == pytest.approx(mean)
    assert cv2.imread(str(folders / "out" / "report.png")).std() > 1


def test_nothing_is_measured_twice_and_nothing_outdated_is_used(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(folders, "--metrics", FAST) == 0
    first = values(folders)
    measured: list[str] = []
    original = engine.record_key
    from xdyna.evaluation.metrics.images import FrameMetric

    measure = FrameMetric.measure
    monkeypatch.setattr(FrameMetric, "measure", lambda self, case: measured.append(case.id) or measure(self, case))
    assert call(folders, "--metrics", FAST, "--overwrite") == 0
    assert measured == []
    assert values(folders) == first
    shutil.copy(folders / "g" / "3.mp4", folders / "g" / "4.mp4")  # another video under an old name
    assert call(folders, "--metrics", FAST, "--overwrite") == 0
    assert set(measured) == {"4"}
    assert values(folders)["mae"] != first["mae"]
    assert engine.record_key is original


@pytest.mark.parametrize("world", [3])
@pytest.mark.long
def test_processes_share_the_work_and_give_the_same_numbers(folders: Path, world: int) -> None:
    (folders / "g" / "2.mp4").write_bytes(b"no video at all" * 50)
    assert call(folders, "--metrics", FAST) == 1
    command = [str(ROOT / "scripts" / "eval.py"), "--generated", str(folders / "g"), "--truth", str(folders / "t")]
    code, out, errors = together([*command, "--metrics", FAST, "--out", str(folders / "many")], processes=world)
    assert code == 1, errors[-2000:]
    assert out.count("# Evaluation of 5 videos") == 1
    assert out.count("1 of 5 videos could not be read: 2") == 1
    assert values(folders, "many") == values(folders)


def test_missing_weights_are_said_and_fail(
    folders: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    measure = engine.measure
    monkeypatch.setattr(engine, "measure", lambda *a, **k: (said.append(capsys.readouterr().err), measure(*a, **k))[1])
    assert call(folders, "--metrics", "mae,fid") == 1
    assert "note: fid will be skipped: inception needs pt_inception" in said[0]  # before anything is measured
    assert "pt_inception-2015-12-05-6726825d.pth" in capsys.readouterr().out
    skipped = json.loads((folders / "out" / "report.json").read_text())["skipped"]
    assert list(skipped) == ["fid"]
    assert values(folders)["mae"] > 0
    assert call(folders, "--metrics", "mae,fid", "--overwrite", "--allow-skipped") == 0


def test_tables_stand_beside_the_paper(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(folders, "--metrics", "table2", "--set", "metrics=[l1,psnr,ssim]") == 0
    printed = capsys.readouterr().out
    assert "| MagicAnimate | 7.42e-05 | 17.14 | 0.7390 |" in printed
    psnr = values(folders)["psnr"]
    assert f"{psnr - 17.201:+.3g}" in printed


def test_one_frame(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What needs neighbours is not measured, with its reason; the rest is."""
    write(tmp_path / "t" / "a.mp4", frames(1, count=1))
    write(tmp_path / "g" / "a.mp4", frames(2, count=1))
    assert call(tmp_path, "--metrics", FAST) == 1
    printed = capsys.readouterr().out
    assert "temporal energy needs two" in printed
    assert values(tmp_path)["psnr"] > 0
    assert values(tmp_path)["temporal_ratio"] is None


@pytest.mark.parametrize(
    ("more", "message", "code"),
    [
        (["--metrics", "psrn"], "did you mean 'psnr'", 2),
        (["--metrics", "table1", "--set", "clip.chioce=first"], "choice", 1),
        (["--metrics", "mae", "--weights-dir", "none"], "does not exist", 2),
        (["--metrics", "mae", "--download"], "--weights-dir", 2),
        (["--metrics", "mae", "--pairs", "x.csv"], "either --generated", 2),
        (["--metrics", "mae", "--quick", "0"], "--quick 0", 2),
        (["--metrics", " ,"], "no metric", 2),
        (["--metrics", "none.yaml"], "none.yaml", 1),
        (["--metrics", "mae", "--device", "cuda:7"], "--device cuda:7 cannot be used here", 2),
        (["--metrics", "mae", "--device", "gpu"], "--device gpu cannot be used here", 2),
    ],
)
def test_wrong_usage(
    folders: Path, more: list[str], message: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(folders, *more) in (code, 1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (folders / "out" / "report.json").exists()


def test_bad_videos(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folders / "empty").mkdir()
    assert run("xdyna.cli.eval", ["--generated", str(folders / "empty"), "--metrics", "mae"]) == 1
    assert "has no videos" in capsys.readouterr().err
    (folders / "g" / "2.mp4").write_bytes(b"no video at all" * 50)
    content = (folders / "g" / "3.mp4").read_bytes()
    start = content.index(b"mdat") + 4
    broken = bytes([*content[:start], *(b"\0" * (len(content) - start))])  # opens well, breaks when it is decoded
    (folders / "g" / "3.mp4").write_bytes(broken)
    assert call(folders, "--metrics", "mae") == 1
    printed = capsys.readouterr()
    assert printed.err.count("note: 2 cannot be measured") == 1
    assert "2 of 5 videos could not be read: 2, 3" in printed.out
    report = json.loads((folders / "out" / "report.json").read_text())
    assert list(report["failed_videos"]) == ["2", "3"]
    assert "2.mp4" in report["failed_videos"]["2"]
    assert report["metrics"]["mae"]["videos"] == 3
    for name in "014":
        (folders / "g" / f"{name}.mp4").write_bytes(b"")
    assert call(folders, "--metrics", "mae", out="none") == 1
    assert "no video can be read, for example" in capsys.readouterr().err
    assert not (folders / "none" / "report.json").exists()
    assert call(folders, "--metrics", "mae") == 2
    assert "holds a report already" in capsys.readouterr().err


def test_a_wrong_weight_file(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = folders / "weights"
    weights.mkdir()
    torch.save({"a": torch.zeros(1)}, weights / "pt_inception-2015-12-05-6726825d.pth")
    assert call(folders, "--metrics", "fid", "--weights-dir", str(weights)) == 1
    assert "is not the published" in capsys.readouterr().err
    torch.save({"a": torch.zeros(1)}, weights / "i3d_pretrained_400.pt")  # no hash is known: the tensors tell
    assert call(folders, "--metrics", "fvd", "--weights-dir", str(weights)) == 1
    assert "the weights are not those of i3d_pretrained_400.pt (344 tensors): 344 missing" in capsys.readouterr().err


@pytest.mark.long
def test_face_cos_with_random_weights(folders: Path) -> None:
    """From files to the report: the recognition network's checkpoint, the detector's three files."""
    weights = folders / "weights"
    weights.mkdir()
    state = random_weights(IRBackbone(UNITS["ir50"]).state_dict())
    torch.save({"state_dict": {f"model.{k}": v for k, v in state.items()}}, weights / "adaface_ir50_ms1mv2.ckpt")
    for name, net in (("pnet", PNet()), ("rnet", RNet()), ("onet", ONet())):
        drawn = random_weights(net.state_dict())
        tensors = {key: tensor.numpy() for key, tensor in drawn.items()}
        np.save(weights / f"{name}.npy", tensors, allow_pickle=True)  # type: ignore[arg-type]
    argv = ["--generated", str(folders / "t"), "--truth", str(folders / "t"), "--out", str(folders / "out")]
    argv += ["--metrics", "face_cos_ir50", "--weights-dir", str(weights), "--quick", "2"]
    assert run("xdyna.cli.eval", argv) == 0
    report = json.loads((folders / "out" / "report.json").read_text())
    assert set(report["weights_sha256"]) == {"adaface_ir50_ms1mv2.ckpt", "pnet.npy", "rnet.npy", "onet.npy"}
    assert values(folders)["face_cos_ir50"] == pytest.approx(
        1, abs=1e-5
    )  # a random detector finds something to compare


def test_generate_reuses_only_what_was_made_so(
    checkpoint: Path, media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By options, inputs, weights and the video's bytes; the frames are measured without loss."""
    monkeypatch.setenv("XDYNA_CACHE", str(tmp_path / "cache"))
    for name in ("ref.png", "driving.npz"):
        shutil.copy(media / name, tmp_path / name)
    shutil.copytree(checkpoint, tmp_path / "weights")
    truth = write(tmp_path / "truth.mp4", frames(1, count=2, size=(32, 32)))
    rows = [{"id": name, "ref": "ref.png", "drive": "driving.npz", "truth": truth.name} for name in ("one", "two")]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    made: list[str] = []

    def make_all(requests: Sequence[Request], command: Command[InferConfig]) -> int:
        made.extend(r.out.name for r in requests)
        return original(requests, command) if working else 1

    working, original = True, infer.make_all
    monkeypatch.setattr(infer, "make_all", make_all)

    def call(options: str = "") -> tuple[int, list[str]]:
        made.clear()
        given = f"--checkpoint {tmp_path / 'weights'} --steps 1 --frames 2 {options}"
        argv = ["--generate", str(tmp_path / "list.json"), "--infer", given, "--out", str(tmp_path / "out")]
        code = run("xdyna.cli.eval", [*argv, "--metrics", "psnr", "--overwrite"])
        return code, sorted(made)

    both = ["one.mkv", "two.mkv"]
    assert call() == (0, both)
    first = values(tmp_path)["psnr"]
    assert call() == (0, [])
    assert call("seed=7") == (0, both)
    assert values(tmp_path)["psnr"] != first
    capsys.readouterr()
    assert call() == (0, both)
    assert "making one anew: seed was 7, is 42" in capsys.readouterr().out
    assert values(tmp_path)["psnr"] == first
    rows[0]["prompt"] = "a dancer"
    (tmp_path / "list.json").write_text(json.dumps(rows))
    assert call() == (0, ["one.mkv"])
    cv2.imwrite(str(tmp_path / "ref.png"), frames(2)[0])
    assert call() == (0, both)
    weight = next((tmp_path / "weights").rglob("unet/*.safetensors"))
    tensors = load_file(weight)
    save_file({k: v + (0.01 if k.endswith("bias") else 0) for k, v in tensors.items()}, weight, {"format": "pt"})
    assert call() == (0, both)
    shutil.copy(tmp_path / "out" / "generated" / "one.mkv", tmp_path / "out" / "generated" / "two.mkv")
    assert call() == (0, ["two.mkv"])
    working = False
    assert call("seed=8") == (1, both)
    assert "2 of 2 videos could not be made (one, two)" in capsys.readouterr().err
    rows[0]["drvie"] = "x"
    (tmp_path / "list.json").write_text(json.dumps(rows))
    assert call() == (2, [])
    assert "unknown key 'drvie'" in capsys.readouterr().err


def test_generate_looks_at_metrics_and_quick_before_it_makes_videos(
    checkpoint: Path, media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Videos take hours: a missing or wrong weight file is said before them, and --quick cuts what is made."""
    rows = [{"id": name, "ref": str(media / "ref.png"), "drive": str(media / "driving.npz")} for name in "abc"]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    (tmp_path / "weights").mkdir()
    asked: list[list[str]] = []
    monkeypatch.setattr(infer, "make_all", lambda requests, command: asked.append([r.out.stem for r in requests]) or 1)

    def call(metrics: str) -> str:
        argv = ["--generate", str(tmp_path / "list.json"), "--infer", f"--checkpoint {checkpoint}", "--quick", "2"]
        argv += ["--weights-dir", str(tmp_path / "weights"), "--metrics", metrics, "--out", str(tmp_path / "out")]
        assert run("xdyna.cli.eval", argv) == 1
        return capsys.readouterr().err

    said = call("psnr,fid")
    first, then = "note: fid will be skipped: inception needs", "2 of 2 videos could not be made (a, b)"
    assert said.index(first) < said.index(then)
    assert asked == [["a", "b"]]
    torch.save({"a": torch.zeros(1)}, tmp_path / "weights" / "pt_inception-2015-12-05-6726825d.pth")
    assert "is not the published" in call("fid")
    assert len(asked) == 1


def test_every_configuration_names_known_metrics() -> None:
    assert set(names("metrics")) == {"offline", *TABLES}
    for name in names("metrics"):
        assert check_names(compose(EvalConfig, "eval", [f"metrics={name}"]).config.metrics)
