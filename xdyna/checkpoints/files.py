"""What a weight file or a pipeline folder is, without loading it: kind by first bytes, completeness by headers."""

import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from xdyna.core.errors import WeightsError
from xdyna.core.files import parse_json

SAFETENSORS, TORCH_ZIP, TORCH_LEGACY = "safetensors", "torch zip", "torch pickle"
MAX_HEADER = 100 * 2**20  # bytes; the limit of the safetensors format

PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth")
TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
PROCESSOR_FILES = (("preprocessor_config.json",), ("processor_config.json",))

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


def file_kind(path: Path) -> str:
    """Kind of a weight file by its first bytes: `SAFETENSORS`, `TORCH_ZIP` or `TORCH_LEGACY`.

    Raises:
        WeightsError: missing, a folder, unreadable, empty, or something else (a web page, a git-lfs pointer, ...).
    """
    if path.is_dir():
        raise WeightsError(f"{path} is a folder, expected a weight file (.safetensors, .ckpt, .bin, .pth)")
    if not path.exists():
        raise WeightsError(f"{path} does not exist; pretrained/README.md says where to get the official files")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    if not head:
        raise WeightsError(f"{path} is empty (0 bytes); download or copy it again")
    if head.startswith(b"PK\x03\x04"):
        return TORCH_ZIP
    # First: the length that safetensors begins with may have the first byte of a pickle, 0x80.
    if len(head) > 8 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= MAX_HEADER:
        return SAFETENSORS
    if head[0] == 0x80:
        return TORCH_LEGACY
    raise WeightsError(f"{path} is not a checkpoint: {_what_instead(head)}")


def _what_instead(head: bytes) -> str:
    start = head.lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer, not the file itself; run `git lfs pull`, or download it from the website"
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "it is a web page (a download link's page, or a login); download the file itself"
    if start.startswith((b"{", b"[")):
        return "it is a JSON file; give the file that holds the weights"
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError:
        text = ""
    if text and all(letter.isprintable() or letter.isspace() for letter in text):
        return f"it is a text file ({text.strip().splitlines()[0][:60]!r}); perhaps a server's error message"
    return "expected safetensors or a file written by torch.save; it may be another format, or damaged"


def safetensors_problem(path: Path) -> str | None:
    """What is wrong with a safetensors file by its header and length; None when it is complete.

    Source: the format: 8 bytes header length (little-endian), JSON header, data; the data ends with the last tensor.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))[0]
        if size < 8 or 8 + length > size:
            return f"is cut off: it has {size} bytes, its header alone needs {8 + length}"
        try:
            header = parse_json(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            needed = 8 + length + max(ends, default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError):
            return "has a damaged header"
    if size < needed:
        return f"is cut off: it has {size} bytes of {needed}"
    return f"is damaged: it has {size} bytes, its header says {needed}" if size > needed else None


def check_folder(folder: str | os.PathLike[str]) -> list[Path]:
    """Check that a diffusers-style pipeline folder is complete, without loading anything.

    `model_index.json` must be there and valid, and of every component its sub-folder, its configuration and its
    weights (all shards of them) as complete safetensors files.

    Args:
        folder: the pipeline folder.

    Returns:
        The weight files, in the order of model_index.json.

    Raises:
        WeightsError: one message that lists everything that is missing or wrong, and how to get it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else "does not exist"
        raise WeightsError(f"{folder} {kind}; expected a pipeline folder (made by scripts/convert.py)")
    index = _read_json(folder / "model_index.json")
    if isinstance(index, str):
        raise WeightsError(f"{folder} is not a pipeline folder: {index}; make one with scripts/convert.py")
    problems: list[str] = []
    weights: list[Path] = []
    for name, entry in index.items():
        if name.startswith("_") or not isinstance(entry, list):
            continue
        if Path(name).name != name:
            problems.append(f"model_index.json: {name!r} is no name of a folder inside")
        elif len(entry) != 2 or not all(part is None or isinstance(part, str) for part in entry):
            problems.append(f"model_index.json: {name} is {entry!r}, expected [library, class]")
        elif entry[1] is not None:
            problems += _component_problems(folder / name, name, entry[1], weights)
    if problems:
        raise WeightsError(
            f"{folder} is incomplete ({len(problems)}): {'; '.join(problems)}. "
            "Make the folder again with scripts/convert.py, or copy the missing files from where it came from"
        )
    return weights


def _component_problems(folder: Path, name: str, class_name: str, weights: list[Path]) -> list[str]:
    if not folder.is_dir():
        return [f"{name}/ missing"]
    if "Tokenizer" in class_name:
        return _one_of(folder, name, TOKENIZER_FILES)
    if "Processor" in class_name or "FeatureExtractor" in class_name:
        return _one_of(folder, name, PROCESSOR_FILES)
    if class_name.endswith("Scheduler"):
        return _json_problem(folder / "scheduler_config.json", name)
    problems = _json_problem(folder / "config.json", name)
    for stem in ("diffusion_pytorch_model", "model"):
        if (folder / f"{stem}.safetensors.index.json").exists():
            return problems + _shard_problems(folder, name, f"{stem}.safetensors.index.json", weights)
        if (folder / f"{stem}.safetensors").exists():
            return problems + _weight_problem(folder / f"{stem}.safetensors", name, weights)
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        return [*problems, f"{name}/ has only a pickle ({pickles[0]}), expected safetensors: convert it first"]
    return [*problems, f"{name}/ has no weights (diffusion_pytorch_model.safetensors or model.safetensors)"]


def _shard_problems(folder: Path, name: str, index_name: str, weights: list[Path]) -> list[str]:
    index = _read_json(folder / index_name)
    if isinstance(index, str):
        return [f"{name}/{index}"]
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not shards:
        return [f"{name}/{index_name} has no weight_map"]
    problems = []
    for shard in sorted({str(value) for value in shards.values()}):
        if Path(shard).name != shard:
            problems.append(f"{name}/{index_name} names {shard!r}, expected files of its own folder")
        else:
            problems += _weight_problem(folder / shard, name, weights)
    return problems


def _weight_problem(path: Path, name: str, weights: list[Path]) -> list[str]:
    if not path.is_file():
        return [f"{name}/{path.name} missing"]
    try:
        kind = file_kind(path)
    except WeightsError as error:
        return [f"{name}/{path.name}: {str(error).removeprefix(f'{path} ')}"]
    problem = safetensors_problem(path) if kind == SAFETENSORS else "is a pickle, expected safetensors"
    if problem is not None:
        return [f"{name}/{path.name} {problem}"]
    weights.append(path)
    return []


def _one_of(folder: Path, name: str, choices: tuple[tuple[str, ...], ...]) -> list[str]:
    if any(all((folder / file).is_file() for file in files) for files in choices):
        return []
    return [f"{name}/ lacks {' or '.join(' + '.join(files) for files in choices)}"]


def _json_problem(path: Path, name: str) -> list[str]:
    content = _read_json(path)
    if isinstance(content, str):
        return [f"{name}/{content}"]
    return [f"{name}/{path.name}: {problem}" for problem in number_problems(content)]


def _read_json(path: Path) -> dict[str, Any] | str:
    """The object in a JSON file, or a text that says what is wrong."""
    if not path.is_file():
        return f"{path.name} missing"
    try:
        content = parse_json(path.read_bytes())
    except (ValueError, OSError) as error:
        return f"{path.name} is not valid JSON ({error})"
    return content if isinstance(content, dict) else f"{path.name} holds a {type(content).__name__}, expected an object"


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
