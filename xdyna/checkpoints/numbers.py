"""Whether the numbers in a network's or scheduler's configuration can be meant: before anything is built by them."""

from collections.abc import Iterator, Mapping
from typing import Any

# Smallest and largest value that can be meant, by key; lists hold values of the same range. Other keys are free.
_RANGES: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("layers_per_block", "transformer_layers", "motion_blocks", "motion_attentions"), (1, 64)),
    **dict.fromkeys(("num_hidden_layers", "depth"), (1, 256)),
    **dict.fromkeys(("num_attention_heads", "attention_head_dim", "motion_heads", "heads", "dim_head"), (1, 1024)),
    **dict.fromkeys(("block_out_channels", "conditioning_embedding_out_channels", "in_channels", "out_channels",
                     "latent_channels", "norm_num_groups", "cross_attention_dim", "hidden_size", "intermediate_size",
                     "projection_dim", "dim", "embedding_dim", "output_dim", "num_queries"), (1, 100_000)),
    **dict.fromkeys(("sample_size", "image_size", "patch_size"), (1, 16_384)),
    **dict.fromkeys(("motion_max_frames", "num_train_timesteps", "max_position_embeddings"), (1, 100_000)),
    "vocab_size": (1, 10_000_000),
}  # fmt: skip
MOST_LEVELS = 8  # resolutions of a network
_LEVELS = ("block_out_channels", "down_block_types", "up_block_types")


def number_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the numbers of a configuration, a sentence's part each.

    Args:
        config: config.json or scheduler_config.json; null means the library's default.

    Yields:
        For example "layers_per_block is 1000000, expected 1 to 64".
    """
    for key, value in config.items():
        if key in _LEVELS and isinstance(value, list) and len(value) > MOST_LEVELS:
            yield f"{key} has {len(value)} entries, expected at most {MOST_LEVELS}"
        elif key in _RANGES and value is not None:
            low, high = _RANGES[key]
            if not _all_within(value, low, high):
                yield f"{key} is {str(value)[:40]}, expected whole numbers from {low} to {high}"


def _all_within(value: Any, low: int, high: int) -> bool:
    if isinstance(value, list):
        return all(each is None or _all_within(each, low, high) for each in value)
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
