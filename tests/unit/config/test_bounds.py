"""YAML that would not fit into memory is refused before it is read."""

from pathlib import Path

import pytest

from xdyna.config.bounds import check_size
from xdyna.config.infer import InferConfig
from xdyna.config.loader import compose, read_yaml
from xdyna.core.errors import ConfigError

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + k)}: &{chr(98 + k)} [{', '.join(['*' + chr(97 + k)] * 9)}]\n" for k in range(8)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAUGHS, "more than 200000 values"),
        ("a: &a [1, *a]\n", r"\*a stands inside of what it stands for"),
        ("a: " + "[" * 200 + "]" * 200, "more than 100 levels"),
        ("a: '" + "x" * 5_000_000 + "'", "at most 4000000"),
    ],
    ids=["aliases", "itself", "levels", "bytes"],
)
def test_what_grows_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "preset").mkdir()
    path = tmp_path / "preset" / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        check_size(path)
    with pytest.raises(ConfigError, match=said):
        read_yaml(path)
    with pytest.raises(ConfigError, match=said):
        compose(InferConfig, "infer", ["preset=mine"], config_dir=tmp_path)


@pytest.mark.parametrize("text", ["a: &a {b: 1}\nc: *a\nd: *a\n", "", "a: [1, 2, [3]]\n", "a: {\n", "- *nowhere\n"])
def test_others_are_for_their_reader(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(text)
    check_size(tmp_path / "x.yaml")
