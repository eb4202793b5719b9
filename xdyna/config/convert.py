"""Settings of `scripts/convert.py` (`configs/convert.yaml`), and the parts of the published release."""

from dataclasses import dataclass, field

from xdyna.config.model import ModelConfig
from xdyna.config.settings import check_settings, setting

WRITTEN_DTYPES = ("float16", "float32", "bfloat16")


@dataclass(frozen=True)
class Part:
    """One file or folder of the published release.

    Attributes:
        option: name of the command-line option.
        patterns: where it lies below the folder of --official, tried in order.
        what: for messages.
        use: "published" for the published model, "initial" for the start of a training, "both".
        required: whether a pipeline can be made without it.
    """

    option: str
    patterns: tuple[str, ...]
    what: str
    use: str = "both"
    required: bool = True


PARTS = (
    Part("unet", ("**/unet-checkpoint-*.ckpt",), "X-Dyna UNet", "published"),
    Part("controlnet", ("**/controlnet-checkpoint-*.ckpt",), "X-Dyna pose ControlNet", "published"),
    Part("face_controlnet", ("**/controlnet-face-checkpoint-*.ckpt",), "X-Dyna face ControlNet", "published", False),
    Part(
        "motion",
        ("**/mm_sd_v15.ckpt", "**/v3_sd15_mm.ckpt", "**/mm_sd_v15_v2.ckpt"),
        "AnimateDiff motion modules",
        "initial",
    ),
    Part(
        "openpose",
        tuple(f"**/control_v11p_sd15_openpose/diffusion_pytorch_model.{kind}" for kind in ("safetensors", "bin")),
        "ControlNet openpose",
        "initial",
    ),
    Part("sd15", ("**/stable-diffusion-v1-5/model_index.json", "**/model_index.json"), "Stable Diffusion 1.5 folder"),
    Part(
        "image_encoder",
        ("**/models/image_encoder/config.json", "**/image_encoder/config.json"),
        "CLIP ViT-H/14 image encoder folder of IP-Adapter",
    ),
    Part(
        "ip_adapter",
        ("**/ip-adapter-plus_sd15.safetensors", "**/ip-adapter-plus_sd15.bin"),
        "IP-Adapter plus",
    ),
)


@dataclass
class ConvertConfig:
    """What is written.

    Attributes:
        dtype: of the written weights.
        seed: of untrained weights (`--tiny`).
        model: sizes of the networks.

    Raises:
        ConfigError: a value out of range.
    """

    dtype: str = setting("float16", choices=WRITTEN_DTYPES)
    seed: int = setting(0, low=0)
    model: ModelConfig = field(default_factory=ModelConfig)

    def __post_init__(self) -> None:
        check_settings(self)
