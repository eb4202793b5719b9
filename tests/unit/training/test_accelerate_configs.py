"""configs/accelerate: accelerate's own reader takes them, and what they say is what arrives in a run's environment."""

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from torch.distributed.fsdp import ShardingStrategy

from tests.unit.training.test_plan import config_of
from xdyna.training.plan import sized_components

FOLDER = Path(__file__).resolve().parents[3] / "configs" / "accelerate"
KINDS = {
    "ddp": DistributedType.MULTI_GPU,
    "ddp_multinode": DistributedType.MULTI_GPU,
    "zero2": DistributedType.DEEPSPEED,
    "fsdp": DistributedType.FSDP,
}
EXTRA = {"ddp_multinode": ["--machine_rank", "1", "--main_process_ip", "10.0.0.1"]}


def launch_arguments(name: str):
    """Command-line arguments merged with the file, as `accelerate launch` does it."""
    parser = launch_command_parser()
    args = parser.parse_args(["--config_file", str(FOLDER / f"{name}.yaml"), *EXTRA.get(name, []), "scripts/train.py"])
    return _validate_launch_command(args)[0]


def test_all_files_are_tested():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_reads_it(name):
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert isinstance(config, ClusterConfig)
    assert config.distributed_type == KINDS[name]
    assert config.num_processes % config.num_machines == 0
    assert config.num_processes > 1
    assert config.mixed_precision is None  # the training configuration decides


def test_precision_and_accumulation_stay_with_the_training_configuration():
    for name in ("ddp", "ddp_multinode", "fsdp"):
        environment = prepare_multi_gpu_env(launch_arguments(name))
        assert environment["ACCELERATE_MIXED_PRECISION"] == "no"  # Accelerator(mixed_precision=...) wins over it
        assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" not in environment


def test_multinode_command_line_wins():
    args = launch_arguments("ddp_multinode")
    assert (args.machine_rank, args.num_machines, args.num_processes) == (1, 2, 16)
    assert args.main_process_ip == "10.0.0.1"


def test_zero2_keys_are_deepspeeds():
    args = launch_arguments("zero2")
    args.deepspeed_fields_from_accelerate_config = ""  # `accelerate launch` adds it, for files that hold "auto"
    _, environment = prepare_deepspeed_cmd_env(args)
    assert environment["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "2"
    assert environment["ACCELERATE_GRADIENT_CLIPPING"] == "1.0"
    assert environment["ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"] == "none"
    assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" not in environment
    known = vars(launch_command_parser().parse_args(["x"]))
    keys = yaml.safe_load((FOLDER / "zero2.yaml").read_text())["deepspeed_config"]
    assert set(keys) <= set(known), sorted(set(keys) - set(known))


@pytest.mark.parametrize("stage", ["dynamics", "face"])
@pytest.mark.parametrize("appearance", ["dynamics_adapter", "ip_adapter"])
def test_fsdp_wraps_layers_that_exist(monkeypatch, stage, appearance):
    args = launch_arguments("fsdp")
    environment = prepare_multi_gpu_env(args)
    for name, value in environment.items():
        if name.startswith("FSDP_"):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 1
    assert plugin.sharding_strategy == ShardingStrategy.FULL_SHARD
    assert plugin.use_orig_params
    components = sized_components(config_of("tiny", stage=stage, appearance=appearance))
    classes = {type(module).__name__ for part in components.modules().values() for module in part.modules()}
    wrapped = set(plugin.transformer_cls_names_to_wrap)
    assert wrapped == {"ResnetBlock", "SpatialTransformer", "MotionModule", "ResnetBlock2D", "Transformer2DModel"}
    assert wrapped <= classes
    keys = yaml.safe_load((FOLDER / "fsdp.yaml").read_text())["fsdp_config"]
    known = vars(launch_command_parser().parse_args(["x"]))
    assert set(keys) <= set(known), sorted(set(keys) - set(known))
