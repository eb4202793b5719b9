"""What `scripts/train.py` does beside the loop: the main process alone, whole networks from gathered weights."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from tests.training.test_loop import config
from xdyna.cli import train
from xdyna.cli.guard import FAILURE
from xdyna.cli.train_parts import build_components, whole
from xdyna.config import compose_config
from xdyna.training.config import TrainConfig


def fail() -> None:
    raise ValueError("the folder is not empty")


def test_the_main_process_does_it_and_says_what_failed() -> None:
    accelerator = Accelerator(cpu=True)
    assert train.on_main(accelerator, lambda: 3) == 3
    with pytest.raises(ValueError, match="the folder is not empty"):
        train.on_main(accelerator, fail)


@pytest.mark.parametrize("failed", [False, True])
def test_the_other_processes_do_not_and_end_with_it(failed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(Accelerator, "is_main_process", False)
    monkeypatch.setattr(train, "broadcast_object_list", lambda values: [failed])
    if not failed:
        assert train.on_main(accelerator, fail) is None
        return
    with pytest.raises(SystemExit) as ended:
        train.on_main(accelerator, fail)
    assert ended.value.code == FAILURE


def test_gathered_weights_become_whole_networks(tmp_path: Path) -> None:
    """As FSDP gives them: of the networks that the stage runs, by component and name."""
    settings = compose_config(TrainConfig, config(tmp_path, "run"), groups=train.CONFIGS)
    components = build_components(settings)
    assert whole(components, None, settings) is components
    weights = {f"unet.{name}": tensor + 1 for name, tensor in components.unet.state_dict().items()}
    built = whole(components, weights, settings)
    assert all(torch.equal(tensor, weights[f"unet.{name}"]) for name, tensor in built.unet.state_dict().items())
    start = components.vae.state_dict()
    assert all(torch.equal(tensor, start[name]) for name, tensor in built.vae.state_dict().items())
