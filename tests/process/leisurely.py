"""A rank of two whose collectives wait for two seconds: rank 1 works longer than that, dies, or fails meanwhile."""

import os
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from xdyna.training.processes import at_leisure

how, rank = sys.argv[1], int(os.environ["RANK"])
dist.init_process_group("gloo", timeout=timedelta(seconds=2))


def work() -> int:
    if rank == 1:
        if how == "dies":
            os._exit(0)
        if how == "fails":
            raise ValueError("no data here")
        time.sleep(4)
    return rank


result = work() if how == "alone" else at_leisure(work, patience=timedelta(seconds=3), pulse=0.2)
dist.all_reduce(total := torch.tensor(result))
print(int(total))
