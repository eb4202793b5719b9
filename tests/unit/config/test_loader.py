"""xdyna.config.loader: what is accepted, and what each mistake is told."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import pytest

from xdyna.config.loader import InferConfig, ModelConfig, load_config, parse_size, validate_size
from xdyna.core.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]


@dataclass
class Inner:
    rate: float = 0.5
    steps: int = 1


@dataclass
class Outer:
    inner: Inner = field(default_factory=Inner)
    names: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)


def message(*overrides: str, schema: type = InferConfig, path: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(schema, path, overrides)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_defaults_are_the_published_settings() -> None:
    config = load_config(InferConfig)
    assert config == InferConfig()
    assert (config.steps, config.guidance, config.seed) == (25, None, 42)
    assert (config.context_frames, config.context_overlap, config.context_schedule) == (16, 4, "uniform")
    assert config.similarity_prior


def test_every_field_is_described() -> None:
    documented = (InferConfig.__doc__ or "") + (ModelConfig.__doc__ or "")
    for entry in (*fields(InferConfig), *fields(ModelConfig)):
        assert f"        {entry.name}: " in documented


def test_default_yaml_equals_the_defaults_at_the_published_size() -> None:
    config = load_config(InferConfig, ROOT / "configs" / "infer" / "default.yaml")
    assert asdict(config) == {**asdict(InferConfig()), "height": 896, "width": 512, "guidance": 7.5}


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "infer").glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_infer_configs_load(path: Path) -> None:
    load_config(InferConfig, path)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "model").glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_model_configs_load(path: Path) -> None:
    assert load_config(ModelConfig, path).scheduler


def test_overrides_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("steps: 3\nseed: 7\nfps: 12\n")
    config = load_config(InferConfig, path, ["seed=8", "fps=null", "prompt=a red scarf"])
    assert (config.steps, config.seed, config.fps, config.prompt) == (3, 8, None, "a red scarf")


def test_mapping_overrides_take_values_as_they_are() -> None:
    assert load_config(InferConfig, overrides={"prompt": "yes: no", "face": False}).prompt == "yes: no"
    assert load_config(InferConfig, overrides={"face": False}).face is False


def test_nested_sections_lists_and_dicts() -> None:
    config = load_config(Outer, overrides=["inner.rate=1e-5", "names=[a, b]", "sizes.x=3"])
    assert config == Outer(Inner(rate=1e-5), ["a", "b"], {"x": 3})
    assert isinstance(config.inner, Inner)


def test_exponents_are_numbers_in_untyped_sections(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text("unet: {norm_eps: 1e-6, name: 1e, size: 3}\n")
    assert load_config(ModelConfig, path).unet == {"norm_eps": 1e-6, "name": "1e", "size": 3}


def test_unknown_key_names_key_file_and_nearest(tmp_path: Path) -> None:
    path = tmp_path / "typo.yaml"
    path.write_text("step: 3\n")
    text = message(path=path)
    assert "'step'" in text
    assert str(path) in text
    assert "did you mean 'steps'" in text


def test_unknown_key_with_nothing_near_lists_the_valid_ones() -> None:
    assert "valid keys: steps, guidance" in message("zzzz=3")


def test_nested_unknown_key_has_its_full_name() -> None:
    assert "'inner.rat'" in message("inner.rat=3", schema=Outer)
    assert "did you mean 'inner.rate'" in message("inner.rat=3", schema=Outer)


def test_dashes_find_the_underscored_name() -> None:
    assert "did you mean 'context_overlap'" in message("context-overlap=3")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("steps=many", "steps: got 'many' in the overrides, expected a whole number"),
        ("steps=2.5", "expected a whole number"),
        ("steps=true", "expected a whole number"),
        ("steps=null", "expected a whole number"),
        ("guidance=strong", "guidance: got 'strong' in the overrides, expected a number or null"),
        ("face=perhaps", "expected true or false or null"),
        ("prompt={a: 1}", "expected text"),
        ("height=[1]", "expected a whole number or null"),
        ("steps.x=1", "steps: got {'x': 1} in the overrides, expected a whole number"),
    ],
)
def test_wrong_type(override: str, expected: str) -> None:
    assert expected in message(override)


def test_wrong_type_in_a_section() -> None:
    assert "inner.steps: got 'x' in the overrides, expected a whole number" in message("inner.steps=x", schema=Outer)
    assert "inner: got 3" in message("inner=3", schema=Outer)
    assert "a section with keys" in message("inner=3", schema=Outer)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["steps=0"], "steps: got 0, expected 1 to 1000"),
        (["guidance=-1"], "guidance: got -1.0"),
        (["guidance=.nan"], "guidance: got nan"),
        (["guidance=.inf"], "guidance: got inf"),
        (["seed=-1"], "seed: got -1"),
        (["seed=9223372036854775808"], "seed: got 9223372036854775808"),
        (["fps=0"], "fps: got 0.0"),
        (["frames=0"], "frames: got 0, expected 1 or more"),
        (["stride=0"], "stride: got 0"),
        (["vae_chunk=0"], "vae_chunk: got 0"),
        (["context_frames=0", "context_overlap=0"], "context_frames: got 0"),
        (["context_overlap=16"], "expected 0 to context_frames - 1 = 15"),
        (["max_gap=-1"], "max_gap: got -1"),
        (["person=-1"], "person: got -1"),
        (["context_schedule=uniformopen"], "did you mean 'uniform_open'"),
        (["pose_backend=openpose"], "expected one of mediapipe, dwpose"),
        (["dtype=fp16"], "expected one of auto, float32, float16, bfloat16"),
        (["attention=xformer"], "did you mean 'xformers'"),
        (["device=gpu"], "device: got 'gpu'"),
        (["device=cuda:x"], "device: got 'cuda:x'"),
        (["height=896"], "give both, or neither"),
        (["height=900", "width=512"], "nearest valid: 896x512 or 904x512"),
        (["fps=8", "stride=2"], "contradict"),
    ],
)
def test_out_of_range(overrides: list[str], expected: str) -> None:
    assert expected in message(*overrides)


def test_ranges_are_checked_without_a_file_too() -> None:
    with pytest.raises(ConfigError):
        InferConfig(steps=0)


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1", "mps", "auto"])
def test_devices(device: str) -> None:
    assert InferConfig(device=device).device == device


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("steps: [1\n", "not valid YAML"),
        ("a: 1\n b: 2\n", "line 2"),
        ("- 1\n", "holds a list"),
        ("steps: 1\nseed: 2\nsteps: 3\n", "key 'steps' is given twice"),
        ("prompt: ${nothing}\n", "nothing"),
        ("!!python/object/apply:os.getcwd []\n", "not valid YAML"),
    ],
)
def test_bad_files(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    text = message(path=path)
    assert expected in text
    assert str(path) in text


def test_empty_file_is_all_defaults(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing\n")
    assert load_config(InferConfig, path) == InferConfig()


def test_missing_folder_and_binary_files(tmp_path: Path) -> None:
    (tmp_path / "default.yaml").write_text("steps: 1\n")
    assert f"did you mean {tmp_path / 'default.yaml'}" in message(path=tmp_path / "defualt.yaml")
    assert "is a folder" in message(path=tmp_path)
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00\x81")
    assert "not UTF-8" in message(path=tmp_path / "x.yaml")


def test_malformed_overrides() -> None:
    assert "expected key=value" in message("steps")
    assert "expected key=value" in message("=3")
    assert "put text into quotes" in message("prompt={a")
    assert "was given a value before" in message("inner=3", "inner.rate=1", schema=Outer)


def valid_neighbours(side: int) -> set[int]:
    """By brute force: the nearest positive multiples of 8 below and above."""
    valid = range(8, side + 17, 8) if side > 0 else range(8, 9)
    below, above = [v for v in valid if v <= side], [v for v in valid if v >= side]
    return {max(below)} | {min(above)} if below else {8}


@pytest.mark.parametrize("height", [*range(-8, 40), 895, 896, 897])
def test_nearest_sizes_against_brute_force(height: int) -> None:
    if height > 0 and height % 8 == 0:
        validate_size(height, 64)
        return
    with pytest.raises(ConfigError, match="nearest valid") as caught:
        validate_size(height, 64)
    named = str(caught.value).split("nearest valid: ")[1].split(" or ")
    assert {int(size.split("x")[0]) for size in named} == valid_neighbours(height)
    assert {size.split("x")[1] for size in named} == {"64"}
    for size in named:
        parse_size(size)


def test_parse_size() -> None:
    assert parse_size("896x512") == (896, 512)
    assert parse_size(" 64 X 32 ") == (64, 32)
    for text in ("896", "896x", "axb", "896x512x3", "-8x8", "1.5x8"):
        with pytest.raises(ConfigError, match="expected HEIGHTxWIDTH"):
            parse_size(text)
    with pytest.raises(ConfigError, match="nearest valid"):
        parse_size("900x512")
