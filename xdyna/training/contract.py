"""What a run writes into `conditions.json` of the model that it hands on (xdyna/config/contract.py)."""

import dataclasses
import warnings

from xdyna.config.contract import PUBLISHED_GUIDANCE, ConditionContract, read_contract
from xdyna.config.train import TrainConfig
from xdyna.core.errors import UsageError
from xdyna.pipelines.folder import named_folder
from xdyna.training.errors import TrainingWarning


def run_contract(
    config: TrainConfig, *, moves: bool, trained: tuple[str, ...], prediction_type: str | None = None
) -> ConditionContract:
    """The contract of a run: that of the folder it starts from, with what this run changes.

    Args:
        config: of the run.
        moves: whether its stage trains on clips with pose maps.
        trained: groups of parameters that train.
        prediction_type: of the run's scheduler.

    Raises:
        UsageError: pose maps of another style than the pose ControlNet was trained with, which does not train here.
        WeightsError: the contract of `init` is damaged.
    """
    start = read_contract(named_folder(config.init)) if config.init is not None else None
    contract = start or ConditionContract(guidance=_first_guidance(config))
    if config.guidance is not None:
        contract = dataclasses.replace(contract, guidance=config.guidance)
    contract = dataclasses.replace(contract, prediction_type=prediction_type)
    if not moves:
        return contract
    style, data = config.data.pose_style(), config.data
    if start is not None and style != start.pose and "pose_controlnet" not in trained:
        raise UsageError(
            f"the clips are drawn as {style}, but {config.init} was trained with {start.pose} and its pose ControlNet "
            "does not train here; set data.pose_hands, data.pose_head, data.pose_width and face as there, or train "
            "pose_controlnet too"
        )
    frames = data.frames if "motion" in trained or contract.frames is None else max(data.frames, contract.frames)
    fps = (float(data.fps[0]), float(data.fps[1])) if data.fps is not None else None
    if fps is None and "motion" not in trained:  # rates that this run does not change
        fps = contract.fps
    face = "patches" if config.face == "sface" else "none"
    return dataclasses.replace(
        contract,
        pose=style,
        face=face,
        reference="fitted",
        frames=frames,
        fps=fps,
        size=(data.height, data.width),
    )


def warn_of_untrained_branch(config: TrainConfig) -> None:
    """Say so where guidance leads away from a state that the run never shows.

    Warns:
        TrainingWarning: image and text (where clips have captions) are never dropped together, though one is.
    """
    data = config.data
    captions = data.source != "puppet"
    seen = data.unconditional if captions else max(data.drop_image, data.drop_both)
    dropped = data.drop_image or data.drop_both or (captions and data.drop_text)
    if config.stage == "vae" or seen or not dropped:
        return
    warnings.warn(
        f"data.drop_image={data.drop_image:g}, data.drop_text={data.drop_text:g} and data.drop_both={data.drop_both:g} "
        "never drop image and text together, and that is the unconditional branch of guidance, which stays untrained; "
        "set both of the first above 0, or drop_both",
        TrainingWarning,
        stacklevel=2,
    )


def _first_guidance(config: TrainConfig) -> float:
    """Of a model from nothing: without a branch that conditions were dropped in there is nothing to guide away from."""
    dropped = config.data.drop_image + config.data.drop_text + config.data.drop_both
    return PUBLISHED_GUIDANCE if dropped else 1.0
