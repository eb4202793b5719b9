"""xdyna: animate an image of a person with the motion and the expression of a driving video.

    import xdyna

    animation = xdyna.animate("person.jpg", "dance.mp4")
    animation.save("out.mp4")

Importing the package loads nothing heavy: each name below is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xdyna.config.eval import EvalConfig
    from xdyna.config.infer import InferConfig
    from xdyna.config.live import LiveConfig
    from xdyna.config.train import TrainConfig
    from xdyna.evaluation.evaluate import evaluate
    from xdyna.perception.track import track_person
    from xdyna.pipelines.animate import Animation, animate
    from xdyna.pipelines.controls import perceive, prepare
    from xdyna.pipelines.live.session import live
    from xdyna.pipelines.model import load
    from xdyna.pipelines.plan import plan_animation
    from xdyna.pipelines.xdyna import XDynaPipeline
    from xdyna.training.trainer import train

__version__ = "0.1.0"

__all__ = [
    "Animation",
    "EvalConfig",
    "InferConfig",
    "LiveConfig",
    "TrainConfig",
    "XDynaPipeline",
    "animate",
    "evaluate",
    "live",
    "load",
    "perceive",
    "plan_animation",
    "prepare",
    "track_person",
    "train",
]

_PLACES = {
    "Animation": "xdyna.pipelines.animate",
    "EvalConfig": "xdyna.config.eval",
    "InferConfig": "xdyna.config.infer",
    "LiveConfig": "xdyna.config.live",
    "TrainConfig": "xdyna.config.train",
    "XDynaPipeline": "xdyna.pipelines.xdyna",
    "animate": "xdyna.pipelines.animate",
    "evaluate": "xdyna.evaluation.evaluate",
    "live": "xdyna.pipelines.live.session",
    "load": "xdyna.pipelines.model",
    "perceive": "xdyna.pipelines.controls",
    "plan_animation": "xdyna.pipelines.plan",
    "prepare": "xdyna.pipelines.controls",
    "track_person": "xdyna.perception.track",
    "train": "xdyna.training.trainer",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'xdyna' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
