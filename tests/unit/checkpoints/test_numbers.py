"""Numbers of configurations that cannot be meant are told before anything is built by them."""

import json
from pathlib import Path

import pytest

from xdyna.checkpoints.files import number_problems
from xdyna.core.resources import resource


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"layers_per_block": 10**6}, ["layers_per_block is 1000000, expected whole numbers from 1 to 64"]),
        ({"hidden_size": [8, 10**9]}, ["hidden_size is [8, 1000000000], expected whole numbers from 1 to 100000"]),
        ({"block_out_channels": [4] * 40}, ["block_out_channels has 40 entries, expected at most 8"]),
        ({"num_attention_heads": 0, "other": 0}, ["num_attention_heads is 0, expected whole numbers from 1 to 1024"]),
        ({"sample_size": True}, ["sample_size is True, expected whole numbers from 1 to 16384"]),
        ({"vocab_size": "many"}, ["vocab_size is many, expected whole numbers from 1 to 10000000"]),
        ({"attention_head_dim": None, "sample_size": [4, 4], "chunk_size_feed_forward": 0}, []),
    ],
)  # fmt: skip
def test_what_cannot_be_meant(config: dict, said: list[str]) -> None:
    assert list(number_problems(config)) == said


def test_shipped_models_are_meant() -> None:
    files = [path for path in Path(resource("pretrained")).rglob("*config.json") if path.stat().st_size < 100_000]
    assert len(files) > 6
    for path in files:
        assert list(number_problems(json.loads(path.read_text()))) == [], path
