"""Settings, for any values: through YAML and back; what is unknown or out of range is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xdyna.config.infer import InferConfig
from xdyna.config.loader import compose
from xdyna.config.preprocess import PreprocessConfig
from xdyna.core.errors import ConfigError

QUICK = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXT = st.text(alphabet=st.characters(blacklist_categories=("Cs", "Cc")), max_size=20).filter(
    lambda text: "${" not in text
)
GIVEN = st.fixed_dictionaries(
    {},
    optional={
        "steps": st.none() | st.integers(1, 1000),
        "guidance": st.none() | st.floats(0, 100),
        "seed": st.integers(0, 2**63 - 1),
        "fps": st.none() | st.floats(0.1, 240),
        "frames": st.none() | st.integers(1, 10**9),
        "prompt": TEXT,
        "negative_prompt": TEXT,
        "smooth": st.booleans(),
        "face": st.none() | st.booleans(),
        "lora": st.lists(TEXT, max_size=3),
        "guidance_interval": st.tuples(st.floats(0, 0.49), st.floats(0.5, 1)).map(list),
        "align": st.sampled_from(["none", "auto", "global", "bones", "face"]),
    },
)  # fmt: skip


def preset(folder: Path, tree: dict[str, Any]) -> InferConfig:
    (folder / "preset").mkdir(exist_ok=True)
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    (folder / "preset" / "mine.yaml").write_text(f"# @package _global_\n{text if tree else ''}", encoding="utf-8")
    return compose(InferConfig, "infer", ["preset=mine"], config_dir=folder).config


@QUICK
@given(GIVEN)
def test_a_file_is_read_as_it_was_written_and_comes_back(tmp_path: Path, tree: dict[str, Any]) -> None:
    config = preset(tmp_path, tree)
    for key, value in dataclasses.asdict(config).items():
        assert value == tree.get(key, value)
    assert {**dataclasses.asdict(InferConfig()), **tree} == dataclasses.asdict(config)
    assert preset(tmp_path, dataclasses.asdict(config)) == config


@QUICK
@given(st.from_regex(r"[a-z_]{1,12}", fullmatch=True), st.sampled_from([InferConfig, PreprocessConfig]))
def test_unknown_keys_are_refused(key: str, schema: type) -> None:
    name = "infer" if schema is InferConfig else "preprocess"
    there = {field.name for field in dataclasses.fields(schema)} | {"preset", "hydra", "schema", "defaults"}
    if key not in there:
        with pytest.raises(ConfigError, match=key):
            compose(schema, name, [f"{key}=1"])


@QUICK
@given(st.integers(-(10**30), 0) | st.integers(1001, 10**30) | st.floats(1.1, 1e9).filter(lambda x: x != int(x)))
def test_steps_out_of_range_are_refused(tmp_path: Path, steps: float) -> None:
    with pytest.raises(ConfigError, match="steps"):
        preset(tmp_path, {"steps": steps})
