"""Settings of `xdyna page` (`configs/page.yaml`)."""

from dataclasses import dataclass

from xdyna.config.infer import DTYPES
from xdyna.config.settings import check_settings, setting


@dataclass
class PageConfig:
    """Settings of the page: where it is served, and what its visitors may ask for.

    Attributes:
        host: address that is listened at; 127.0.0.1 is this computer alone, 0.0.0.0 every network it is in.
        port: that is listened at; 0 takes a free one.
        queue: animations that may wait; further ones are refused with a sentence.
        max_upload_mb: largest file that may be given, MB.
        max_seconds: longest driving video, s.
        max_megapixels: largest image, and largest frame of a video, millions of px.
        max_frames: most frames of an animation.
        disk_mb: what all files of all visitors may take together, MB; uploads beyond it are refused.
        keep_minutes: after so long the files of a visitor are removed.
        live: live animations that may run at once.
        live_minutes: longest live animation.
        live_checkpoint: pipeline folder of live animations, or its name.
        live_steps: denoising steps of live animations.
        live_scheduler: what takes these steps; None takes "lcm" with the LoRA of xdyna-tiny, else that of the model.
        live_lora: LoRA weights of live animations, each "FILE" or "FILE:SCALE"; None takes xdyna-tiny's own of few
            steps where `live_checkpoint` is "xdyna-tiny", else none.
        live_token_downsampling: of live animations, see `LiveConfig`; None takes 2 with that LoRA, else 1.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        dtype: "auto", "float32", "float16" or "bfloat16".

    Raises:
        ConfigError: a value out of range.
    """

    host: str = "127.0.0.1"
    port: int = setting(7860, low=0, high=65535)
    queue: int = setting(8, low=1, high=1000)
    max_upload_mb: int = setting(200, low=1, high=100_000)
    max_seconds: float = setting(30.0, above=0)
    max_megapixels: float = setting(50.0, above=0)
    max_frames: int = setting(450, low=1)
    disk_mb: int = setting(4000, low=1)
    keep_minutes: float = setting(60.0, above=0)
    live: int = setting(1, low=0, high=100)
    live_minutes: float = setting(10.0, above=0)
    live_checkpoint: str = "xdyna-tiny"
    live_steps: int = setting(2, low=1, high=100)
    live_scheduler: str | None = None
    live_lora: list[str] | None = None
    live_token_downsampling: int | None = setting(None, low=1, high=8)
    device: str = "auto"
    dtype: str = setting("auto", choices=DTYPES)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.live_lora is None:
            distilled = self.live_checkpoint == "xdyna-tiny"
            self.live_lora = ["xdyna-tiny-few-step:1.15"] if distilled else []
            if distilled:  # as preset=few_step
                self.live_scheduler = self.live_scheduler or "lcm"
                self.live_token_downsampling = self.live_token_downsampling or 2
