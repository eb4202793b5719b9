"""What `scripts/train.py` does beside the loop: the main process alone, whole networks from gathered weights."""

import warnings
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from tests.process.runs import config, read
from xdyna.config.train import TrainConfig
from xdyna.core.program import FAILURE
from xdyna.pipelines.folder import save_pipeline
from xdyna.training import processes
from xdyna.training.components import Components, as_pipeline
from xdyna.training.errors import TrainingWarning
from xdyna.training.export import whole_components
from xdyna.training.stages import STAGES


def build(settings: TrainConfig) -> Components:
    return STAGES[settings.stage].build(settings)


def fail() -> None:
    raise ValueError("the folder is not empty")


def test_the_main_process_does_it_and_says_what_failed() -> None:
    accelerator = Accelerator(cpu=True)
    assert processes.on_main(accelerator, lambda: 3) == 3
    with pytest.raises(ValueError, match="the folder is not empty"):
        processes.on_main(accelerator, fail)


@pytest.mark.parametrize("failed", [False, True])
def test_the_other_processes_do_not_and_end_with_it(failed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(Accelerator, "is_main_process", False)
    monkeypatch.setattr(processes, "broadcast_object_list", lambda values: [failed])
    if not failed:
        assert processes.on_main(accelerator, fail) is None
        return
    with pytest.raises(SystemExit) as ended:
        processes.on_main(accelerator, fail)
    assert ended.value.code == FAILURE


def test_gathered_weights_become_whole_networks(tmp_path: Path) -> None:
    """As FSDP gives them: of the networks that the stage runs, by component and name."""
    settings = read(config(tmp_path, "run"))
    components = STAGES[settings.stage].build(settings)
    assert whole_components(components, None, settings) is components
    weights = {f"unet.{name}": tensor + 1 for name, tensor in components.unet.state_dict().items()}
    built = whole_components(components, weights, settings)
    assert all(torch.equal(tensor, weights[f"unet.{name}"]) for name, tensor in built.unet.state_dict().items())
    start = components.vae.state_dict()
    assert all(torch.equal(tensor, start[name]) for name, tensor in built.vae.state_dict().items())


def test_channels_last_is_a_matter_of_memory_alone(tmp_path: Path) -> None:
    """The same numbers but for rounding, and a folder with the same tensors."""
    plain, last = (build(read(config(tmp_path, f"run{k}"), f"channels_last={str(k == 1).lower()}")) for k in (0, 1))
    weight = last.vae.encoder.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = (c.vae.decode(c.vae.encode(image).latent_dist.mean).sample for c in (last, plain))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    save_pipeline(as_pipeline(last), tmp_path / "out")
    stored = load_file(tmp_path / "out" / "vae" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(tensor, plain.vae.state_dict()[name]) for name, tensor in stored.items())


def test_a_start_of_another_model_is_told(tmp_path: Path) -> None:
    """The folder's networks count, not the model section; nobody should find that out hours later."""
    path = config(tmp_path, "run")
    save_pipeline(as_pipeline(build(read(path))), tmp_path / "s")
    start = f"init={tmp_path / 's'}"
    with warnings.catch_warnings():
        warnings.simplefilter("error", TrainingWarning)
        build(read(path, start))
    changed = read(path, start)
    changed.model.scheduler["prediction_type"] = "v_prediction"
    with pytest.warns(TrainingWarning, match="prediction_type is epsilon there, v_prediction in the model section"):
        STAGES[changed.stage].build(changed)
