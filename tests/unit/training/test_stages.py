"""What trains, and what must not."""

import warnings
from collections.abc import Callable

import pytest
import torch

from xdyna.config.data import DataConfig
from xdyna.config.train import APPEARANCES, LossConfig, TrainConfig
from xdyna.core.errors import ConfigError
from xdyna.data.samples import Batch
from xdyna.training.components import Components, add_lora
from xdyna.training.contract import warn_of_untrained_branch
from xdyna.training.groups import GROUPS, count, select_trainable
from xdyna.training.stages import STAGES


@pytest.mark.parametrize(
    ("stage", "appearance", "expected"),
    [
        ("vae", "dynamics_adapter", {"vae_encoder", "vae_decoder"}),
        ("base", "dynamics_adapter", {"unet", "image_encoder", "resampler"}),
        ("dynamics", "dynamics_adapter", {"adapter", "motion", "pose_controlnet"}),
        ("dynamics", "reference_net", {"reference_net", "motion", "pose_controlnet"}),
        ("dynamics", "ip_adapter", {"motion", "pose_controlnet"}),
        ("face", "dynamics_adapter", {"face_controlnet"}),
        ("face", "ip_adapter", {"face_controlnet"}),
        ("distill", "dynamics_adapter", {"lora"}),
    ],
)
def test_groups_of_stages_are_the_papers(stage: str, appearance: str, expected: set[str]) -> None:
    assert set(STAGES[stage].groups(appearance)) == expected


def test_every_parameter_but_the_text_encoders_has_exactly_one_group(components: Components) -> None:
    add_lora(components.unet, 2)
    groups = select_trainable(components, [g for g in GROUPS if g != "reference_net"])
    names = [name for parameters in groups.values() for name in parameters]
    assert len(names) == len(set(names))
    everything = {f"{c}.{n}" for c, m in components.modules().items() for n, _ in m.named_parameters()}
    left = everything - set(names)
    assert left
    assert all(name.startswith(("text_encoder.", "image_encoder.")) for name in left)


def test_adapter_and_motion_are_what_their_names_say(components: Components) -> None:
    groups = select_trainable(components, ["adapter", "motion"])
    assert all(name.split(".")[-2] in ("to_q_ff", "to_out_ff") for name in groups["adapter"])
    attentions = sum(name.endswith(".to_q_ff") for name, _ in components.unet.named_modules())
    assert len(groups["adapter"]) == 3 * attentions > 0
    modules = [m for name, m in components.unet.named_modules() if name.split(".")[-2:-1] == ["motion_modules"]]
    assert count(groups)["motion"] == sum(p.numel() for m in modules for p in m.parameters()) > 0
    assert not any(p.requires_grad for name, p in components.unet.named_parameters() if ".resnets." in name)


@pytest.mark.parametrize("stage", list(STAGES))
@pytest.mark.parametrize("appearance", [a for a in APPEARANCES if a != "reference_net"])
def test_a_step_reaches_all_that_trains_and_leaves_the_rest_bit_identical(
    stage: str, appearance: str, components: Components, make_batch: Callable[..., Batch]
) -> None:
    torch.manual_seed(0)
    if stage == "distill":
        add_lora(components.unet, 2)
    groups = select_trainable(components, STAGES[stage].groups(appearance))
    trainable = {name: p for parameters in groups.values() for name, p in parameters.items()}
    for p in trainable.values():  # zero layers would hide parameters behind them from the gradient
        if not p.any():
            p.data.normal_(std=0.1)
    before = {f"{c}.{n}": t.clone() for c, m in components.modules().items() for n, t in m.state_dict().items()}
    objective = STAGES[stage].objective(components, LossConfig(), seed=0)
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-2)
    objective(make_batch([0, 1])).mean().backward()
    without = [name for name, p in trainable.items() if p.grad is None or not p.grad.any()]
    # The key bias of a softmax attention has no effect on it: its gradient is zero up to rounding.
    assert [name for name in without if not name.endswith("k_proj.bias")] == []
    optimizer.step()
    after = {f"{c}.{n}": t for c, m in components.modules().items() for n, t in m.state_dict().items()}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(trainable)


@pytest.mark.parametrize(
    ("stage", "group"),
    [
        ("vae", "unet"),
        ("base", "motion"),
        ("base", "pose_controlnet"),
        ("dynamics", "vae_decoder"),
        ("dynamics", "face_controlnet"),
    ],
)
def test_a_group_that_the_loss_does_not_reach(stage: str, group: str) -> None:
    with pytest.raises(ConfigError, match=f"the loss of stage {stage} does not reach {group}; choose from"):
        STAGES[stage].chosen_groups("dynamics_adapter", [*STAGES[stage].reached[:1], group])


@pytest.mark.parametrize("stage", list(STAGES))
def test_the_loss_reaches_what_may_train(stage: str, components: Components, make_batch: Callable[..., Batch]) -> None:
    wanted = STAGES[stage].chosen_groups("dynamics_adapter", [g for g in STAGES[stage].reached if g != "reference_net"])
    if stage == "distill":
        add_lora(components.unet, 2)
    groups = select_trainable(components, wanted)
    for parameters in groups.values():
        for p in parameters.values():
            if not p.any():
                p.data.normal_(std=0.1)
    STAGES[stage].objective(components, LossConfig(), seed=0)(make_batch([0, 1])).mean().backward()
    moved = {group for group, parameters in groups.items() if any(p.grad is not None for p in parameters.values())}
    assert moved == set(wanted)


def test_the_groups_of_a_run() -> None:
    assert STAGES["face"].chosen_groups("ip_adapter", None) == STAGES["face"].groups("ip_adapter")
    with pytest.raises(ConfigError, match="no group was given"):
        STAGES["face"].chosen_groups("ip_adapter", [])
    with pytest.raises(ConfigError, match=r"unknown group .adaptor.; choose from adapter"):
        STAGES["dynamics"].chosen_groups("ip_adapter", ["adaptor"])


def test_the_decoder_trains_alone(components: Components, make_batch: Callable[..., Batch]) -> None:
    """Latents are to the bit what they were."""
    groups = select_trainable(components, STAGES["vae"].chosen_groups("dynamics_adapter", ["vae_decoder"]))
    names = {name.split(".")[1] for name in groups["vae_decoder"]}
    assert names == {"decoder", "post_quant_conv"}
    pixels, vae = torch.rand(2, 3, 64, 64), components.vae
    with torch.no_grad():
        posterior, decoded = vae.encode(pixels).latent_dist, vae.decode(torch.ones(1, 4, 8, 8)).sample
    optimizer = torch.optim.AdamW(groups["vae_decoder"].values(), lr=1e-2)
    STAGES["vae"].objective(components, LossConfig(), seed=0)(make_batch([0, 1])).mean().backward()
    optimizer.step()
    with torch.no_grad():
        again = vae.encode(pixels).latent_dist
        assert torch.equal(again.mean, posterior.mean)
        assert torch.equal(again.std, posterior.std)
        assert not torch.equal(vae.decode(torch.ones(1, 4, 8, 8)).sample, decoded)


def test_what_trains_is_in_training_mode(components: Components) -> None:
    select_trainable(components, ["motion", "pose_controlnet"])
    modes = {name: {module.training for module in part.modules()} for name, part in components.modules().items()}
    trained = ("unet", "pose_controlnet")
    assert modes == {name: {name in trained} for name in modes}


def test_unknown_group(components: Components) -> None:
    with pytest.raises(ConfigError, match=r"unknown group .adaptor.; choose from lora, adapter"):
        select_trainable(components, ["adaptor"])


def test_no_group(components: Components) -> None:
    with pytest.raises(ConfigError, match="no group"):
        select_trainable(components, [])


def test_a_group_that_the_model_lacks(components: Components) -> None:
    components.face_controlnet = None
    with pytest.raises(ConfigError, match="no parameters in face_controlnet"):
        select_trainable(components, ["face_controlnet"])


@pytest.mark.parametrize(
    ("drops", "source", "warned"),
    [
        ({}, "footage", False),  # independent drops: one clip in a hundred is without both
        ({"drop_text": 0.0}, "footage", True),
        ({"drop_image": 0.0}, "footage", True),
        ({"drop_text": 0.0, "drop_both": 0.1}, "footage", False),
        ({"drop_text": 0.0}, "puppet", False),  # no captions: without the image is without anything
        ({"drop_image": 0.0, "drop_text": 0.0}, "footage", False),  # not to be guided at all
    ],
)
def test_an_unconditional_branch_that_is_never_trained_is_said(
    drops: dict[str, float], source: str, warned: bool
) -> None:
    data = DataConfig(source=source, manifests=["a"] if source == "footage" else [], **drops)  # type: ignore[arg-type]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_untrained_branch(TrainConfig(data=data))
    assert ["stays untrained" in str(w.message) for w in caught] == [True] * warned
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_untrained_branch(TrainConfig(stage="vae", data=data))
    assert not caught
