"""`conditions.json`: read as written, old folders as before, damaged ones told."""

import json
from pathlib import Path

import pytest

from xdyna.config.contract import ConditionContract, PoseStyle, read_contract
from xdyna.core.errors import WeightsError, XDynaWarning


def test_read_as_written(tmp_path: Path) -> None:
    contract = ConditionContract(
        PoseStyle(landmarks=True, hands=False, head=True, width=1.5),
        "none",
        12,
        (6.0, 15.0),
        (64, 96),
        2.5,
        10,
        "sample",
    )
    contract.write(tmp_path)
    assert read_contract(tmp_path) == contract
    assert json.loads((tmp_path / "conditions.json").read_text())["pose"]["landmarks"] is True


def test_the_published_contract_is_not_assumed_in_silence_for_the_hubs_pipelines(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """diffusers fetches the files that model_index.json names: conditions.json is none of them."""
    snapshot = tmp_path / "models--her--dancer" / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    for folder in (snapshot, Path("her/dancer")):
        with pytest.warns(XDynaWarning, match="published contract is assumed .guidance 7.5, 25 steps") as said:
            assert read_contract(folder) == ConditionContract()
        assert len(said) == 1
        assert "huggingface_hub.snapshot_download" in str(said[0].message)
    ConditionContract(guidance=2.0).write(snapshot)
    assert read_contract(snapshot).guidance == 2.0
    for folder in (tmp_path, tmp_path / "removed", Path()):  # here, once here, never in a folder
        read_contract(folder)
    assert not recwarn.list


def test_folders_without_one(tmp_path: Path) -> None:
    assert read_contract(tmp_path) == ConditionContract(guidance=7.5, steps=25)
    (tmp_path / "sampling.json").write_text('{"guidance": 1.5}')
    assert read_contract(tmp_path) == ConditionContract(guidance=1.5)
    ConditionContract(guidance=3.0).write(tmp_path)
    assert read_contract(tmp_path).guidance == 3.0  # the newer file counts


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"guidance": -1}', "guidance is -1, expected 0 to 100"),
        ('{"steps": 0}', "steps is 0"),
        ('{"pose": {"landmarks": "yes"}}', "pose.landmarks is 'yes', expected true or false"),
        ('{"pose": {"width": 0}}', "pose.width is 0"),
        ('{"pose": {"elbows": true}}', "elbows"),
        ('{"pose_style": {}}', "unknown pose_style; known are face, fps"),
        ('{"face": "mesh"}', "face is 'mesh'"),
        ('{"size": [64]}', "damaged"),
        ('{"size": [0, 64]}', "size is 0"),
        ('{"fps": [15, 6]}', "expected .lowest, highest."),
        ('{"frames": Infinity}', "holds Infinity"),
        ('{"frames": -3}', "frames is -3"),
        ('{"steps": 2.5}', "steps is 2.5, expected a whole number"),
        ('{"guidance": true}', "guidance is True"),
        ('{"pose": []}', "pose is .., expected keys and values"),
        ('{"prediction_type": "flow"}', "prediction_type is 'flow'"),
    ],
)
def test_damaged_ones_are_told(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "conditions.json").write_text(text)
    with pytest.raises(WeightsError, match=reason) as caught:
        read_contract(tmp_path)
    assert str(tmp_path / "conditions.json") in str(caught.value)
