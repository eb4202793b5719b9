import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from xdyna.training import run as module
from xdyna.training.errors import RunError

CONFIG: dict[str, Any] = {
    "stage": "dynamics",
    "optim": {"lr": 1e-5, "betas": (0.9, 0.999), "groups": {}},
    "data": {"root": Path("clips"), "workers": 2, "text": None},
    "max_steps": 100,
}


def prepare_run_dir(path: Path, config: dict[str, Any], **options: Any) -> Path:
    """Check, and write this start down."""
    module.prepare_run_dir(path, config, **options)()
    return path


def changed(**values: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {**CONFIG, "optim": dict(CONFIG["optim"]), "data": dict(CONFIG["data"])}
    for key, value in values.items():
        section, _, name = key.partition("__")
        if name:
            tree[section][name] = value
        else:
            tree[section] = value
    return tree


def test_new_run(tmp_path: Path) -> None:
    run = prepare_run_dir(tmp_path / "a" / "run", CONFIG, resume=False, manifest={"git": "1234"})
    plain = {"root": "clips", "workers": 2, "text": None}
    expected = {**CONFIG, "optim": {"lr": 1e-5, "betas": [0.9, 0.999], "groups": {}}, "data": plain}
    assert yaml.safe_load((run / "config.yaml").read_text()) == expected
    assert json.loads((run / "run.json").read_text()) == {"format": 3, "starts": [{"git": "1234"}]}


def test_hidden_files_do_not_count(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("*")
    prepare_run_dir(tmp_path, CONFIG, resume=False)


def test_folder_in_use(tmp_path: Path) -> None:
    prepare_run_dir(tmp_path, CONFIG, resume=False)
    with pytest.raises(RunError, match=r"not empty; go on with the run in it \(resume\), or choose another"):
        prepare_run_dir(tmp_path, CONFIG, resume=False)


def test_resume_the_same(tmp_path: Path) -> None:
    """One command for the first slice and all others."""
    for number in range(3):
        prepare_run_dir(tmp_path / "run", CONFIG, resume=True, manifest={"number": number})
    starts = json.loads((tmp_path / "run" / "run.json").read_text())["starts"]
    assert starts == [{"number": 0}, {"number": 1}, {"number": 2}]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optim__lr": 2e-5}, r"\(optim.lr: 1e-05 there, 2e-05 now\)"),
        ({"optim__betas": (0.9, 0.99)}, r"optim.betas: \[0.9, 0.999\] there, \[0.9, 0.99\] now"),
        ({"optim__groups": {"motion": 1e-4}}, r"optim.groups.motion: \(absent\) there, 0.0001 now"),
        ({"stage": "face", "data__text": "x"}, "stage: dynamics there, face now; data.text: None there, x now"),
        ({"extra": None}, r"\(extra: \(absent\) there, None now\)"),
        ({"data__workers": True}, r"data.workers: 2 there, True now"),
    ],
)
def test_another_configuration(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    prepare_run_dir(tmp_path, CONFIG, resume=False)
    before = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(RunError, match=message):
        prepare_run_dir(tmp_path, changed(**values), resume=True, may_differ=("max_steps",))
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_what_may_differ(tmp_path: Path) -> None:
    prepare_run_dir(tmp_path, CONFIG, resume=False)
    new = changed(max_steps=200, data__workers=0, data__root=Path("elsewhere"))
    prepare_run_dir(tmp_path, new, resume=True, may_differ=("max_steps", "data"))
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["max_steps"] == 200
    starts = json.loads((tmp_path / "run.json").read_text())["starts"]
    expected = {"max_steps": [100, 200], "data.workers": [2, 0], "data.root": ["clips", "elsewhere"]}
    assert starts == [{}, {"changed": expected}]
    with pytest.raises(RunError, match=r"data\.root"):  # "dat" is not the section of "data.root"
        prepare_run_dir(tmp_path, CONFIG, resume=True, may_differ=("max_steps", "dat", "data.workers"))


def test_number_types_that_mean_the_same(tmp_path: Path) -> None:
    prepare_run_dir(tmp_path, {"a": 1, "b": float("nan")}, resume=False)
    prepare_run_dir(tmp_path, {"a": 1.0, "b": float("nan")}, resume=True)
    with pytest.raises(RunError, match=r"a: 1\.0 there, True now"):
        prepare_run_dir(tmp_path, {"a": True, "b": float("nan")}, resume=True)


def test_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_text("")
    with pytest.raises(RunError, match=r"no run folder: it holds files, but no config\.yaml"):
        prepare_run_dir(tmp_path, CONFIG, resume=True)


@pytest.mark.parametrize("content", [b"a: [", b"- 1", b"\xff\xfe"])
def test_damaged_configuration(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(RunError, match=r"is damaged|holds a list"):
        prepare_run_dir(tmp_path, CONFIG, resume=True)


def test_damaged_record(tmp_path: Path) -> None:
    prepare_run_dir(tmp_path, CONFIG, resume=False)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunError, match=r"run\.json is damaged"):
        prepare_run_dir(tmp_path, CONFIG, resume=True)


def test_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(RunError, match="is a file; give a folder"):
        prepare_run_dir(tmp_path / "run", CONFIG, resume=False)
    with pytest.raises(RunError, match="cannot be written"):
        prepare_run_dir(tmp_path / "run" / "inner", CONFIG, resume=False)


def test_value_that_is_not_plain(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"config\.optim\.lr is a object; expected None, bool"):
        prepare_run_dir(tmp_path, changed(optim__lr=object()), resume=False)


@pytest.mark.parametrize("record", ['{"starts": []}', '{"format": 2, "starts": []}'])
def test_a_run_of_another_format_is_not_continued(record: str, tmp_path: Path) -> None:
    run = prepare_run_dir(tmp_path / "run", {"lr": 1.0}, resume=False)
    prepare_run_dir(run, {"lr": 1.0}, resume=True)
    (run / "run.json").write_text(record)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(RunError, match=r"holds a run of format [12], begun by another version of xdyna.* format 3"):
        prepare_run_dir(run, {"lr": 1.0}, resume=True)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_start_that_is_refused_later_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    prepare_run_dir(tmp_path, CONFIG, resume=False)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    write = module.prepare_run_dir(tmp_path, changed(max_steps=200), resume=True, may_differ=("max_steps",))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    write()
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["max_steps"] == 200


def test_the_advice_is_in_hydras_grammar(tmp_path: Path) -> None:
    prepare_run_dir(tmp_path, CONFIG, resume=False)
    cases = ({"max_steps": None}, "--change max_steps=null"), ({"data__text": [1, 2]}, "'data.text=[1,2]'")
    for change, words in cases:
        with pytest.raises(RunError) as caught:
            prepare_run_dir(tmp_path, changed(**change), resume=True)
        assert words in str(caught.value)
    with pytest.raises(RunError) as caught:
        prepare_run_dir(tmp_path, changed(stage="face"), resume=True)
    assert "--change" not in str(caught.value)
