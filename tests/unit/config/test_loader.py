"""xdyna.config.loader: Hydra's grammar, and what each mistake is told."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xdyna.cli.arguments import quoted
from xdyna.config.infer import InferConfig
from xdyna.config.loader import CONFIGS, compose, load_model, names, read_yaml, sweep
from xdyna.config.model import ModelConfig
from xdyna.config.settings import check_settings, descriptions, setting
from xdyna.core.errors import ConfigError


@dataclass
class Inner:
    rate: float = 0.5
    steps: int = setting(1, low=1)

    def __post_init__(self) -> None:
        check_settings(self, section="inner")


@dataclass
class Outer:
    inner: Inner = field(default_factory=Inner)
    names: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    folder: str = setting("here", needed=True)


@pytest.fixture
def outer(tmp_path: Path) -> Path:
    """A folder with a root config for `Outer`."""
    (tmp_path / "outer.yaml").write_text("defaults: [schema/outer, _self_]\nfolder: there\n")
    return tmp_path


def message(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose(InferConfig, "infer", overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def of_file(text: str | bytes, tmp_path: Path) -> str:
    """What is said of a preset with this text."""
    path = tmp_path / "preset" / "mine.yaml"
    path.parent.mkdir()
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError) as caught:
        compose(InferConfig, "infer", ["preset=mine"], config_dir=tmp_path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_are_the_published_settings() -> None:
    config, tree = compose(InferConfig, "infer")
    assert config == InferConfig()
    assert tree == asdict(config)
    assert (config.steps, config.guidance, config.seed) == (None, None, 42)
    assert (config.context_frames, config.context_overlap, config.context_schedule) == (16, 4, "uniform")
    assert config.similarity_prior


def test_preview_is_a_quarter_of_the_pixels() -> None:
    changed = {"steps": 6, "guidance": 3.5, "height": 448, "width": 256, "fps": 8.0, "frames": 32}
    changed |= {"scheduler": "dpmsolver++", "guidance_interval": [0.2, 0.9], "decoder": "auto"}
    assert asdict(compose(InferConfig, "infer", ["preset=preview"]).config) == {**asdict(InferConfig()), **changed}


def test_modes_by_name() -> None:
    assert compose(InferConfig, "infer", ["preset=exact"]).config == InferConfig()
    low = {**asdict(InferConfig()), "low_memory": True, "vae_chunk": 1}
    assert asdict(compose(InferConfig, "infer", ["preset=lowmem"]).config) == low
    fast = compose(InferConfig, "infer", ["preset=fast", "reuse_interval=1", "reuse_depth=1"]).config
    assert (fast.scheduler, fast.guidance, fast.reuse_interval) == ("dpmsolver++", None, 1)
    for words, message in (
        (["guidance_interval=[0.5,0.5]"], "expected .low, high. with low below high"),
        (["guidance_interval=[0.5]"], "expected .low, high. with low below high"),
        (["guidance_interval=[-1,1]"], "guidance_interval: got -1.0, expected 0 to 1"),
        (["reuse_depth=2"], "reuse_depth=2 and reuse_interval=1 contradict each other"),
        (["decoder=tinny"], "did you mean 'tiny'"),
    ):
        with pytest.raises(ConfigError, match=message):
            compose(InferConfig, "infer", words)


@pytest.mark.parametrize("schema", [InferConfig, ModelConfig])
def test_every_field_is_described(schema: type) -> None:
    assert set(descriptions(schema)) == {entry.name for entry in fields(schema)}


@pytest.mark.parametrize("name", names("model"))
def test_shipped_models_load(name: str) -> None:
    assert load_model(name).scheduler


def test_overrides_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    (tmp_path / "preset").mkdir()
    (tmp_path / "preset" / "a.yaml").write_text("# @package _global_\nsteps: 3\nseed: 7\nfps: 12\n")
    words = ["seed=8", "preset=a", "fps=null", "prompt=a red scarf"]
    config = compose(InferConfig, "infer", words, config_dir=tmp_path).config
    assert (config.steps, config.seed, config.fps, config.prompt) == (3, 8, None, "a red scarf")


def test_the_users_own_folder_is_searched_first(tmp_path: Path) -> None:
    (tmp_path / "preset").mkdir()
    (tmp_path / "preset" / "preview.yaml").write_text("# @package _global_\nsteps: 7\n")
    assert compose(InferConfig, "infer", ["preset=preview"], config_dir=tmp_path).config == InferConfig(steps=7)
    assert compose(InferConfig, "infer", ["preset=preview"]).config.steps == 6
    with pytest.raises(ConfigError, match="nowhere: no such folder"):
        compose(InferConfig, "infer", config_dir="nowhere")


def test_nested_sections_lists_dictionaries_and_interpolations(outer: Path) -> None:
    words = ["inner.rate=1e-5", "names=[a,'b,c']", "+sizes.x=3", "inner.steps=4", "folder=at_${inner.steps}"]
    config = compose(Outer, "outer", words, config_dir=outer).config
    assert config == Outer(Inner(rate=1e-5, steps=4), ["a", "b,c"], {"x": 3}, "at_4")


def test_values_that_must_be_given(outer: Path) -> None:
    (outer / "outer.yaml").write_text("defaults: [schema/outer, _self_]\n")
    with pytest.raises(ConfigError, match="folder must be given: add folder=VALUE"):
        compose(Outer, "outer", config_dir=outer)
    assert compose(Outer, "outer", config_dir=outer, placeholders={"folder": "x"}).config.folder == "x"
    assert compose(Outer, "outer", ["folder=y"], config_dir=outer).config.folder == "y"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["+x=1"], "+x=1: + adds to free dictionaries only (sizes); unknown key 'x'"),
        (["++inner.rat=1"], "+ adds to free dictionaries only (sizes); unknown key 'inner.rat'; did you mean"),
        (["+folder=1"], "+folder: it has a value already; leave the + out"),
        (["sizes.x=1"], "sizes has no entry 'x'; give +sizes.x=VALUE to add one"),
        (["+sizes.x=many"], "sizes.x: got 'many'"),
        (["~folder"], "~folder: only entries of free dictionaries can be taken away"),
        (["~sizes.y"], "'sizes.y' does not exist"),
        (["inner.rat=3"], "unknown key 'inner.rat'; did you mean 'inner.rate'?"),
        (["inner.steps=x"], "inner.steps: got 'x', expected a whole number"),
        (["inner={steps: x}"], "inner.steps: got 'x', expected a whole number"),
        (["inner.steps=0"], "inner.steps: got 0, expected 1 or more"),
        (["inner=3"], "inner: got 3, expected a section with keys"),
        (["model=tiny"], "model: the group is not one of outer's"),
    ],
)
def test_sections_and_free_dictionaries(outer: Path, overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(Outer, "outer", overrides, config_dir=outer)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_entries_of_free_dictionaries_can_be_taken_away(outer: Path) -> None:
    words = ["+sizes={x: 1, y: 2}", "~sizes.x"]
    assert compose(Outer, "outer", words, config_dir=outer).config.sizes == {"y": 2}


def test_exponents_are_numbers_in_untyped_sections(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "m.yaml").write_text("unet: {norm_eps: 1e-6, name: 1e, size: 3}\n")
    assert load_model("m", tmp_path).unet == {"norm_eps": 1e-6, "name": "1e", "size": 3}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("step=3", "unknown key 'step'; did you mean 'steps'?"),
        ("zzzz=3", "valid keys: steps, guidance"),
        ("context-overlap=3", "did you mean 'context_overlap'"),
        ("steps=many", "steps: got 'many', expected a whole number"),
        ("steps=2.5", "expected a whole number"),
        ("steps=true", "expected a whole number"),
        ("seed=null", "expected a whole number"),
        ("guidance=strong", "guidance: got 'strong', expected a number or null"),
        ("face=perhaps", "expected true or false or null"),
        ("prompt={a: 1}", "expected text"),
        ("height=[1]", "expected a whole number or null"),
        ("steps=1,2", "steps: got '1,2', which are several values; expected one, a list steps=[1,2], or --multirun"),
        ("steps=choice(1,2)", "or --multirun"),
        ("preset=preveiw", "preset=preveiw: there is no config preset/preveiw; did you mean preview?"),
        ("prompt=${nothing}", "prompt: Interpolation key 'nothing' not found"),
        ("prompt=${x", "is not in Hydra's grammar"),
        ("\n=1", "is not in Hydra's grammar (it ends too early, or holds a letter that needs quotes)"),
        ("prompt={a", "put text into quotes"),
        ("steps", "override 'steps': expected key=value"),
        ("=3", "expected key=value"),
    ],
)
def test_wrong_overrides(override: str, expected: str) -> None:
    assert expected in message(override)


def test_two_presets() -> None:
    """Both hold where they are given as a list; one after the other, Hydra would drop the first without a word."""
    both = compose(InferConfig, "infer", ["preset=[few_step,puppet_face]"]).config
    assert (both.scheduler, both.face_source) == ("lcm", "xdyna.puppets.actor.PuppetFaces")
    with pytest.raises(ConfigError, match=r"the last alone would hold; for both give preset=\[few_step,puppet_face\]"):
        compose(InferConfig, "infer", ["preset=few_step", "preset=puppet_face"])
    assert compose(InferConfig, "infer", ["preset=fast", "preset=fast"]).config.scheduler == "dpmsolver++"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["steps=0"], "steps: got 0, expected 1 to 1000"),
        (["guidance=-1"], "guidance: got -1.0"),
        (["guidance=nan"], "guidance: got nan"),
        (["guidance=inf"], "guidance: got inf"),
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
        (["align=globally"], "got 'globally', expected one of none, auto, global, bones, face; did you mean 'global'?"),
        (["crop=face"], "crop: got 'face', expected one of published, person, none"),
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


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("steps: [1\n", "not valid YAML"),
        ("steps: 1\n seed: 2\n", "line 3"),
        ("- 1\n", "expected lines like 'steps: 25'"),
        ("steps: 1\nseed: 2\nsteps: 3\n", "found duplicate key steps"),
        ("prompt: ${nothing}\n", "prompt: Interpolation key 'nothing' not found"),
        ("!!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("stepz: 3\n", "unknown key 'stepz' in {path}; did you mean 'steps'?"),
        ("steps: many\n", "steps: got 'many' in {path}, expected a whole number"),
        ("defaults: 3\n", "defaults must be a list"),
        ("defaults: [/model: hugo]\n", "model=hugo: there is no config model/hugo (in preset/mine)"),
        ("defaults: [nothing_here]\n", "nothing_here"),
        (b"\xff\xfe\x00\x81", "not UTF-8"),
        (b"steps: 3\n", "files of the group preset begin with '# @package _global_'"),
    ],
)
def test_bad_files(tmp_path: Path, content: str | bytes, expected: str) -> None:
    text = f"# @package _global_\n{content}" if isinstance(content, str) else content
    assert expected.format(path=tmp_path / "preset" / "mine.yaml") in of_file(text, tmp_path)


def test_plain_files(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("rate: 1e-5\nname: x\n")
    assert read_yaml(tmp_path / "a.yaml") == {"rate": 1e-5, "name": "x"}
    (tmp_path / "twice.yaml").write_text("a: 1\na: 2\n")
    (tmp_path / "list.yaml").write_text("- 1\n")
    for name, expected in (("twice", "duplicate key a"), ("list", "holds a list"), ("no", "does not exist")):
        with pytest.raises(ConfigError, match=expected):
            read_yaml(tmp_path / f"{name}.yaml")


def test_sweeps_are_hydras() -> None:
    jobs = sweep(InferConfig, "infer", ["seed=1,2", "steps=range(3,5)", "prompt='a, b'", "fps=choice(8)"])
    assert [[word for word in job if word[:5] in ("seed=", "steps")] for job in jobs] == [
        ["seed=1", "steps=3"],
        ["seed=1", "steps=4"],
        ["seed=2", "steps=3"],
        ["seed=2", "steps=4"],
    ]
    assert {compose(InferConfig, "infer", job).config.prompt for job in jobs} == {"a, b"}
    models = sweep(InferConfig, "infer", ["preset=glob(pre*)"])
    assert models == [["preset=preview"]]
    with pytest.raises(ConfigError, match="INTERVAL_SWEEP"):
        sweep(InferConfig, "infer", ["guidance=interval(1,2)"])


@settings(max_examples=15, deadline=None)
@given(
    st.text(alphabet=st.characters(blacklist_categories=("Cs", "Cc")) | st.sampled_from("'\"\\${}[],=#"), max_size=12)
)
@example("it's \\${x}, \\'")
@example("\\")
def test_quoted_text_is_that_text(text: str) -> None:
    assert compose(InferConfig, "infer", [f"prompt={quoted(text)}"]).config.prompt == text


def test_another_hydra_is_left_alone() -> None:
    from hydra.core.global_hydra import GlobalHydra

    marker = object()
    GlobalHydra.instance().hydra = marker  # type: ignore[assignment]
    try:
        compose(InferConfig, "infer")
        assert GlobalHydra.instance().hydra is marker
    finally:
        GlobalHydra.instance().clear()


def test_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    compose(InferConfig, "infer", ["seed=1"])
    assert list(tmp_path.iterdir()) == []


def test_the_readme_names_every_config() -> None:
    text = (CONFIGS / "README.md").read_text()
    missing = [
        str(path.relative_to(CONFIGS))
        for path in CONFIGS.rglob("*.yaml")
        if f"`{path.relative_to(CONFIGS).with_suffix('')}`" not in text
    ]
    assert missing == []
