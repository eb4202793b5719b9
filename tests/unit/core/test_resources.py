"""Files that are no code are found in a checkout and in an installed package alike."""

from pathlib import Path

import pytest

from xdyna.core import resources

ROOT = Path(__file__).resolve().parents[3]


def test_a_checkout_comes_first() -> None:
    assert resources.checkout() == ROOT
    assert resources.resource("configs", "README.md") == ROOT / "configs" / "README.md"
    assert resources.pretrained("xdyna-tiny") == ROOT / "pretrained" / "xdyna-tiny"
    assert resources.weights_folder() == ROOT / "pretrained"


def test_an_installed_package_has_its_own_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    carried = tmp_path / "site-packages" / "xdyna" / "_files"
    monkeypatch.setattr(resources, "_CHECKOUT", tmp_path / "site-packages")
    monkeypatch.setattr(resources, "_CARRIED", carried)
    monkeypatch.setenv("XDYNA_HOME", str(tmp_path / "mine"))
    (carried / "pretrained" / "xdyna-tiny").mkdir(parents=True)
    assert resources.checkout() is None
    assert resources.resource("configs") == carried / "configs"
    assert resources.weights_folder() == tmp_path / "mine" / "pretrained"
    assert resources.pretrained("xdyna-tiny") == carried / "pretrained" / "xdyna-tiny"
    assert resources.pretrained("xdyna") == tmp_path / "mine" / "pretrained" / "xdyna"
    (tmp_path / "mine" / "pretrained" / "xdyna-tiny").mkdir(parents=True)
    assert resources.pretrained("xdyna-tiny") == tmp_path / "mine" / "pretrained" / "xdyna-tiny"


def test_the_users_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDYNA_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert resources.home() == Path.home() / ".local" / "share" / "xdyna"
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert resources.home() == Path("/data/xdyna")
