"""`xdyna push` against a stand-in of the hub on this machine that speaks its protocol."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.utils
import pytest
import torch
from safetensors.torch import save_file

from tests.docs.hub_server import Hub, serve
from xdyna.cli.push import main
from xdyna.core.program import FAILURE, USAGE, run


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    huggingface_hub.utils.close_session()
    with serve(Hub()) as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What looks like a complete pipeline folder, with small files."""
    folder = tmp_path / "final"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text(
        json.dumps({"_class_name": "XDynaPipeline", "unet": ["xdyna.models.unet", "XDynaUNet"]})
    )
    (folder / "unet" / "config.json").write_text("{}")
    save_file({"weight": torch.arange(2560.0)}, folder / "unet" / "diffusion_pytorch_model.safetensors")
    (folder / "conditions.json").write_text("{}")
    (folder / "README.md").write_text("# mine\n")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "secret").write_text("not for others")
    return folder


def call(*words: object) -> int:
    return run(main, [str(word) for word in words])


def test_a_folder_arrives_as_it_is_and_private(hub: Hub, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(folder, "me/mine") == 0
    out = capsys.readouterr().out
    assert "0.01 MB  in 5 files -> me/mine" in out
    assert "made me/mine (private)" in out
    assert f"wrote {hub.endpoint}/me/mine/commit/" in out
    assert hub.repositories == {"me/mine": True}
    given = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert given.pop(".cache/secret")
    arrived = {name: content for name, content in hub.files["me/mine"].items() if name != ".gitattributes"}
    assert arrived == given


def test_public_is_asked_for(hub: Hub, folder: Path) -> None:
    assert call(folder, "me/mine", "--public") == 0
    assert hub.repositories == {"me/mine": False}


def test_a_dry_run_says_what_would_go(hub: Hub, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(folder, "me/mine", "--dry-run") == 0
    out = capsys.readouterr().out
    assert "unet/diffusion_pytorch_model.safetensors" in out
    assert "secret" not in out
    assert "nothing was uploaded; it would be private" in out
    assert not hub.requests


def test_what_is_there_is_kept(hub: Hub, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.repositories["me/mine"] = True
    assert call(folder, "me/mine") == FAILURE
    assert "is there already; choose another name, or give --overwrite" in capsys.readouterr().err
    assert not hub.files
    assert call(folder, "me/mine", "--overwrite") == 0
    assert "README.md" in hub.files["me/mine"]


def test_a_public_repository_gets_nothing_in_private(hub: Hub, folder: Path, capsys) -> None:
    hub.repositories["me/mine"] = False
    assert call(folder, "me/mine", "--overwrite") == FAILURE
    assert "public; give --public" in capsys.readouterr().err
    assert not hub.files
    assert call(folder, "me/mine", "--overwrite", "--public") == 0


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "README.md").unlink(), "has no card"),
        (lambda folder: (folder / "README.md").write_text(" \n"), "has no card"),
        (lambda folder: (folder / "conditions.json").unlink(), "has no conditions.json"),
        (lambda folder: (folder / "conditions.json").write_text("{"), "conditions.json"),
        (lambda folder: (folder / "model_index.json").unlink(), "model_index.json"),
        (lambda folder: (folder / "unet" / "old.ckpt").write_bytes(b"x"), "can hold code"),
        (lambda folder: (folder / "passwords").symlink_to("/etc/passwd"), "outside of the folder"),
    ],
)
def test_incomplete_folders_are_refused(hub: Hub, folder: Path, damage, message: str, capsys) -> None:
    damage(folder)
    assert call(folder, "me/mine") == FAILURE
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not hub.requests


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere", "me/mine"), "no such folder"),
        ((".", "mine"), "expected OWNER/NAME"),
        ((".", "a/b/c"), "OWNER/NAME"),
    ],
)
def test_wrong_usage(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*words) == USAGE
    assert message in capsys.readouterr().err


def test_no_token_and_no_rights(hub: Hub, folder: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.refuse = 403
    assert call(folder, "others/mine") == FAILURE
    assert "does not let you write to others/mine (HTTP 403); run `hf auth login`" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert call(folder, "me/mine") == FAILURE
    assert "does not let you write to me/mine (HTTP 401)" in capsys.readouterr().err
    monkeypatch.delenv("HF_TOKEN")
    assert call(folder, "me/mine") == FAILURE
    assert "hf auth login" in capsys.readouterr().err
    hub.refuse = 500
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert call(folder, "me/mine") == FAILURE
    assert "HTTP 500" in capsys.readouterr().err


def test_no_network(hub: Hub, folder: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert call(folder, "me/mine") == FAILURE
    err = capsys.readouterr().err
    assert "cannot be reached" in err
    assert len(err.strip().splitlines()) == 1


def test_a_card_that_the_hub_does_not_take(hub: Hub, folder: Path, capsys) -> None:
    (folder / "README.md").write_text("---\nlicense: [\n---\n# mine\n")
    assert call(folder, "me/mine") == FAILURE
    err = capsys.readouterr().err
    assert "the hub did not take the files (Invalid metadata in README.md. - unclosed list); mend that" in err
    assert not hub.files


def test_names_are_taken_literally(hub: Hub, folder: Path) -> None:
    shutil.copy(folder / "README.md", folder / "a[1]*.md")
    assert call(folder, "me/mine") == 0
    assert {"a[1]*.md", "README.md"} <= set(hub.files["me/mine"])
