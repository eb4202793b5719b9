"""Run by test_train_ranks.py in each rank: gradients of the first step, as training computes them."""

import os
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from xdyna.config.loader import compose
from xdyna.config.train import TrainConfig
from xdyna.data.loader import build_loader
from xdyna.training.groups import select_trainable
from xdyna.training.stages import STAGES


def main(config_path: str, out: str, batch_size: int) -> None:
    path = Path(config_path)
    chosen = [f"experiment={path.stem}", f"batch={batch_size}"]
    config = compose(TrainConfig, "train", chosen, config_dir=path.parents[1]).config
    world_size = int(os.environ["WORLD_SIZE"])
    # Ranks that meet in a file need no port, and no name server, which a TCP store asks for 127.0.0.1.
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{out}.store", rank=int(os.environ["RANK"]), world_size=world_size
    )
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == world_size
    components = STAGES[config.stage].build(config)
    select_trainable(components, STAGES[config.stage].groups(config.appearance))
    for p in components.unet.parameters():  # zero layers would hide most gradients
        if not p.any():
            generator = torch.Generator().manual_seed(p.numel())
            p.data = 0.1 * torch.randn(p.shape, generator=generator)
    objective = STAGES[config.stage].objective(components, config.loss, seed=config.seed)
    model = accelerator.prepare(objective)
    batches = build_loader(
        config.data,
        seed=config.seed,
        batch_size=batch_size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    accelerator.backward(model(next(iter(batches))).mean())
    if accelerator.is_main_process:
        save_file({name: p.grad for name, p in objective.trainable().items() if p.grad is not None}, out)
    accelerator.end_training()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
