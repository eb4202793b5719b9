"""The stages of training, one object each: what trains, what runs, what it starts from, its objective, what validation
shows, and what it prepares for the stage after it.

| stage    | trains                                                                     | paper          |
|----------|----------------------------------------------------------------------------|----------------|
| vae      | autoencoder                                                                | (tiny only)    |
| base     | 2-D UNet with image tokens, image encoder, Resampler                       | (tiny only)    |
| dynamics | Dynamics-Adapter (W'q, W'o), motion modules, pose ControlNet               | stage 1        |
| face     | face ControlNet                                                            | stage 2        |
| distill  | LoRA on the UNet, or any of its groups: a student of few steps             | (none)         |

Ablations change the first group of `dynamics`: `reference_net` trains the ReferenceNet instead of the adapter,
`ip_adapter` neither. What clips a stage needs (`data.face`) stands in its configuration (xdyna/config/train.py); which
stage comes after which, in the experiments' `init` and `out` (`xdyna.config.recipes.stages_of`).
"""

import abc
import dataclasses
from collections.abc import Collection, Iterable, Sequence
from typing import ClassVar

from diffusers import LCMScheduler
from torch import Tensor

from xdyna.config.contract import ConditionContract, read_contract
from xdyna.config.train import LossConfig, TrainConfig
from xdyna.core.errors import ConfigError, UsageError
from xdyna.models.layers import use_channels_last
from xdyna.models.reference_net import ReferenceNet
from xdyna.pipelines.folder import named_folder
from xdyna.training.components import Components, add_lora, load_components, without_adapter
from xdyna.training.contract import run_contract
from xdyna.training.distill import ConsistencyObjective
from xdyna.training.groups import GROUPS
from xdyna.training.handover import copy_encoder, latent_scale
from xdyna.training.objective import DiffusionObjective, Objective, VAEObjective
from xdyna.training.validation import Sampler, reconstructions, sampled_videos


class Stage(abc.ABC):
    """One stage.

    Attributes:
        name: in configurations.
        reached: groups of parameters that its loss reaches: others would be given to the optimizer and never move.
        moves: whether it trains on clips, with motion, reference and ControlNets.
    """

    name: ClassVar[str]
    reached: ClassVar[tuple[str, ...]]
    moves: ClassVar[bool] = False

    @abc.abstractmethod
    def groups(self, appearance: str) -> tuple[str, ...]:
        """Groups of parameters that train. Args: appearance: see `TrainConfig`."""

    @abc.abstractmethod
    def objective(self, components: Components, loss: LossConfig, *, seed: int) -> Objective:
        """Its loss, which knows the networks that run.

        Args:
            components: the networks.
            loss: weights of the terms.
            seed: of the run.
        """

    def chosen_groups(self, appearance: str, chosen: Sequence[str] | None) -> tuple[str, ...]:
        """Groups that a run trains.

        Args:
            appearance: see `TrainConfig`.
            chosen: names from `GROUPS`; None for those of the stage.

        Raises:
            ConfigError: a group that does not exist or that the stage does not run, or no group.
        """
        if chosen is None:
            return self.groups(appearance)
        choices = f"choose from {', '.join(self.reached)}"
        if not chosen:
            raise ConfigError(f"train: no group was given; {choices}, or leave it out")
        for group in chosen:
            if group not in GROUPS:
                raise ConfigError(f"train: unknown group {group!r}; {choices}")
            if group not in self.reached:
                raise ConfigError(f"train: the loss of stage {self.name} does not reach {group}; {choices}")
        return tuple(chosen)

    def build(self, config: TrainConfig) -> Components:
        """The networks that a run starts from, float32 on the CPU, fitted to `appearance` and `face`.

        Args:
            config: of the run.

        Raises:
            UsageError: the folder is missing, or has not the parts that the configuration asks for.
        """
        components = load_components(config)
        components = self.fit(components, config)
        if config.face != "sface":
            components.face_controlnet = None
        self.contract(config, components)  # a contradiction is said before anything is trained
        self.add_what_trains(components, config)
        if config.channels_last:
            use_channels_last(*components.modules().values())
        return components

    def contract(self, config: TrainConfig, components: Components) -> ConditionContract:
        """What the model that a run hands on is drawn and sampled by.

        Raises:
            UsageError: the clips contradict what does not train.
        """
        return run_contract(
            config,
            moves=self.moves,
            trained=self.chosen_groups(config.appearance, config.train),
            prediction_type=components.scheduler.config.get("prediction_type"),
        )

    def fit(self, components: Components, config: TrainConfig) -> Components:
        """The networks of an ablation; in most stages those that were given."""
        return components

    def add_what_trains(self, components: Components, config: TrainConfig) -> None:
        """Put in LoRA layers, where they are among what trains."""
        if "lora" in self.chosen_groups(config.appearance, config.train):
            add_lora(components.unet, config.lora_rank)

    def sampler(self, config: TrainConfig, components: Components) -> Sampler | None:
        """What makes the images or videos of validation, shared among the processes; None for none."""
        return None

    def hand_over(
        self, components: Components, images: Iterable[Tensor], *, trained: Collection[str]
    ) -> dict[str, float]:
        """Prepare the networks for the stage after this one.

        Args:
            components: networks with the weights that are handed on, changed in place.
            images: (N, 3, H, W) float32 in [-1, 1], held out.
            trained: groups that were trained.

        Returns:
            What was measured.
        """
        return {}


class VAEStage(Stage):
    """The autoencoder, on single frames."""

    name = "vae"
    reached = ("vae_encoder", "vae_decoder")

    def groups(self, appearance: str) -> tuple[str, ...]:
        """Encoder and decoder."""
        return ("vae_encoder", "vae_decoder")

    def objective(self, components: Components, loss: LossConfig, *, seed: int) -> Objective:
        """Reconstruction."""
        return VAEObjective(components, loss, seed=seed)

    def sampler(self, config: TrainConfig, components: Components) -> Sampler | None:
        """Held-out frames and their reconstructions."""
        return reconstructions(config, components)

    def hand_over(
        self, components: Components, images: Iterable[Tensor], *, trained: Collection[str]
    ) -> dict[str, float]:
        """Measure the latents' scale, so that they have unit variance. If the decoder trained alone they are what they
        were, and keep their scale: what stands on them stays valid."""
        if "vae_encoder" not in trained:
            return {}
        factor = latent_scale(components.vae, images)
        components.vae.register_to_config(scaling_factor=factor)
        return {"scaling_factor": factor}


class BaseStage(Stage):
    """The 2-D UNet with image tokens, every frame a clip of its own."""

    name = "base"
    reached = ("adapter", "unet", "image_encoder", "resampler")

    def groups(self, appearance: str) -> tuple[str, ...]:
        """UNet without motion modules and adapter, image encoder, Resampler."""
        return ("unet", "image_encoder", "resampler")

    def objective(self, components: Components, loss: LossConfig, *, seed: int) -> Objective:
        """Noise of single frames."""
        return DiffusionObjective(components, loss, seed=seed, single_frames=True)

    def hand_over(
        self, components: Components, images: Iterable[Tensor], *, trained: Collection[str]
    ) -> dict[str, float]:
        """The Dynamics-Adapters and both ControlNets start as copies of the trained UNet (W'o and the ControlNets'
        outputs at zero)."""
        components.unet.init_adapter()
        for net in (components.pose_controlnet, components.face_controlnet):
            if net is not None:
                copy_encoder(components.unet, net)
        return {}


class ClipStage(Stage):
    """What the stages on whole clips have in common."""

    reached: ClassVar[tuple[str, ...]] = (
        "adapter",
        "motion",
        "unet",
        "image_encoder",
        "resampler",
        "pose_controlnet",
        "reference_net",
    )
    moves = True

    def fit(self, components: Components, config: TrainConfig) -> Components:
        """Take the Dynamics-Adapter out, or put a ReferenceNet in, as the ablation says."""
        has_adapter = components.unet.config.dynamics_adapter
        if config.appearance != "dynamics_adapter" and has_adapter:
            components.unet = without_adapter(components.unet)
        if config.appearance == "reference_net" and components.reference_net is None:
            components.reference_net = self.new_reference_net(components, config)
        if config.appearance == "dynamics_adapter" and not has_adapter:
            raise UsageError(f"{config.init} has no Dynamics-Adapter; choose appearance=ip_adapter or another init")
        return components

    @abc.abstractmethod
    def new_reference_net(self, components: Components, config: TrainConfig) -> ReferenceNet:
        """The ReferenceNet of an ablation whose pipeline has none yet."""

    def sampler(self, config: TrainConfig, components: Components) -> Sampler | None:
        """Videos of held-out clips."""
        return (
            sampled_videos(config, components, contract=self.contract(config, components))
            if config.validation.videos
            else None
        )


class DynamicsStage(ClipStage):
    """The paper's stage 1: appearance, motion and pose."""

    name = "dynamics"

    def groups(self, appearance: str) -> tuple[str, ...]:
        """What carries the appearance, motion modules, pose ControlNet."""
        looks = {"dynamics_adapter": ("adapter",), "reference_net": ("reference_net",), "ip_adapter": ()}[appearance]
        return (*looks, "motion", "pose_controlnet")

    def objective(self, components: Components, loss: LossConfig, *, seed: int) -> Objective:
        """Noise of clips."""
        return DiffusionObjective(components, loss, seed=seed)

    def new_reference_net(self, components: Components, config: TrainConfig) -> ReferenceNet:
        """A copy of the UNet."""
        return ReferenceNet.from_unet(components.unet)


class FaceStage(ClipStage):
    """The paper's stage 2: expressions."""

    name = "face"
    reached = (*ClipStage.reached, "face_controlnet")

    def groups(self, appearance: str) -> tuple[str, ...]:
        """The face ControlNet."""
        return ("face_controlnet",)

    def objective(self, components: Components, loss: LossConfig, *, seed: int) -> Objective:
        """Noise of clips, with the face ControlNet."""
        return DiffusionObjective(components, loss, seed=seed, face=True)

    def new_reference_net(self, components: Components, config: TrainConfig) -> ReferenceNet:
        """There must be one already.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{config.init} has no ReferenceNet; start from its own stage=dynamics")


class DistillStage(ClipStage):
    """A student that needs few steps; its teacher is `init`."""

    name = "distill"
    reached = ("lora", *(group for group in FaceStage.reached if group not in ("image_encoder", "resampler")))

    def groups(self, appearance: str) -> tuple[str, ...]:
        """LoRA layers."""
        return ("lora",)

    def objective(self, components: Components, loss: LossConfig, *, seed: int) -> Objective:
        """Consistency with the teacher's path."""
        face = components.face_controlnet is not None
        return ConsistencyObjective(components, loss, seed=seed, face=face)

    def fit(self, components: Components, config: TrainConfig) -> Components:
        """Sampled by LCMScheduler from now on; what the teacher says of guidance is taken over.

        Raises:
            UsageError: no teacher, or one without the face ControlNet that is asked for.
        """
        if config.init is None:
            raise UsageError("stage=distill needs a teacher; give init=FOLDER, a pipeline folder")
        if config.shows_faces and components.face_controlnet is None:
            raise UsageError(f"{config.init} has no face ControlNet; give face=none")
        components = super().fit(components, config)
        if config.loss.distill.guidance is None:
            config.loss.distill.guidance = read_contract(named_folder(config.init)).guidance
        components.scheduler = LCMScheduler.from_config(components.scheduler.config)
        return components

    def contract(self, config: TrainConfig, components: Components) -> ConditionContract:
        """See `Stage.contract`: few steps, without guidance."""
        contract = super().contract(config, components)
        return dataclasses.replace(contract, steps=config.loss.distill.steps, guidance=1.0)

    def new_reference_net(self, components: Components, config: TrainConfig) -> ReferenceNet:
        """There must be one already.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{config.init} has no ReferenceNet; choose the appearance that it was trained with")


STAGES: dict[str, Stage] = {
    stage.name: stage for stage in (VAEStage(), BaseStage(), DynamicsStage(), FaceStage(), DistillStage())
}
