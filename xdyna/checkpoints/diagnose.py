"""Why a state dict does not fit a module: a guess from names and shapes, for the error message."""

import re
from collections import Counter
from collections.abc import Mapping

Shapes = Mapping[str, tuple[int, ...]]

# What the absence of a group of names means (regular expression on the missing names).
ABSENT_PARTS = (
    (r"\.motion_modules\.", "it has no motion modules: an image model, or a checkpoint of another stage"),
    (r"\.attn1\.to_(q_ff|out_ff)\.", "it has no Dynamics-Adapter: not an X-Dyna checkpoint"),
    (r"\.attn2\.to_[kv]_ip\.", "it has no image-token weights: IP-Adapter was not merged into it"),
)
# What names that begin so mean.
FOREIGN_NAMES = (
    ("model.diffusion_model.", "a single-file Stable Diffusion checkpoint; give the diffusers layout instead"),
    ("control_model.", "a ControlNet in its original layout; give the diffusers layout instead"),
    ("lora_", "LoRA weights, not a whole model"),
    ("base_model.model.", "PEFT adapter weights, not a whole model"),
)
TEXT_WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}


def misfit_reason(expected: Shapes, given: Shapes) -> str:
    """The probable reason why names or shapes do not fit.

    Args:
        expected: the module's names and shapes.
        given: the file's.

    Returns:
        One sentence, or "" when nothing typical is recognised.
    """
    missing = [name for name in expected if name not in given]
    unexpected = [name for name in given if name not in expected]
    misshaped = [name for name in given if name in expected and given[name] != expected[name]]
    for found in (_foreign(unexpected), _prefix(expected, given, unexpected), _shapes(expected, given, misshaped)):
        if found:
            return f"Probably: {found}"
    if not any(name in expected for name in given):
        return "Probably: a checkpoint of another model; no name is the same"
    for pattern, reason in ABSENT_PARTS:
        wanted = sum(re.search(pattern, name) is not None for name in expected)
        if wanted and sum(re.search(pattern, name) is not None for name in missing) == wanted:
            return f"Probably: {reason}"
    return ""


def _foreign(unexpected: list[str]) -> str:
    for start, reason in FOREIGN_NAMES:
        if unexpected and sum(name.startswith(start) for name in unexpected) * 2 > len(unexpected):
            return reason
    return ""


def _prefix(expected: Shapes, given: Shapes, unexpected: list[str]) -> str:
    """A prefix that all names have too much or too little."""
    if not unexpected:
        return ""
    first, _, _ = unexpected[0].partition(".")
    stripped = [name.removeprefix(f"{first}.") for name in given]
    if sum(name in expected for name in stripped) * 10 >= len(expected) * 9:
        return f"the names carry the prefix '{first}.' (a part of a larger checkpoint); take it off first"
    for start in Counter(name.partition(".")[0] for name in expected):
        if sum(f"{start}.{name}" in expected for name in given) * 10 >= len(given) * 9:
            return f"the names lack the prefix '{start}.'; this file is only a part of the model"
    return ""


def _shapes(expected: Shapes, given: Shapes, misshaped: list[str]) -> str:
    if not misshaped:
        return ""
    pairs = [(given[name], expected[name]) for name in misshaped]
    if all(_squeezed(have) == _squeezed(want) for have, want in pairs):
        return "linear and 1x1 convolution layers are exchanged (an older layout of the same model)"
    if all("cond_embedding.conv_in" in name for name in misshaped):
        have, want = (shape[1] for shape in pairs[0])
        return f"a ControlNet for conditions of {have} channels, expected {want} (3 pose, 6 face)"
    keys = [name for name in misshaped if re.search(r"attn2\.to_[kv]", name)]
    if len(keys) == len(misshaped):
        have, want = (shape[-1] for shape in pairs[0])
        known = f" ({TEXT_WIDTHS[have]})" if have in TEXT_WIDTHS else ""
        return f"a model for text features of width {have}{known}, expected {want}"
    common = sum(name in expected for name in given)
    ratios = Counter(have[0] / want[0] for have, want in pairs if have and want and len(have) == len(want) and want[0])
    ratio, votes = ratios.most_common(1)[0] if ratios else (1.0, 0)
    if len(misshaped) * 2 > common:
        scale = f": most layers are {ratio:g} times as wide" if votes * 2 > len(misshaped) and ratio != 1 else ""
        return f"the same architecture in another size{scale}; use the model configuration that belongs to the file"
    return f"another variant of the architecture ({len(misshaped)} of {common} common tensors differ in shape)"


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(side for side in shape if side != 1)
