"""The puppet world: short clips of dancing cartoon figures with full ground truth, rendered from seeds alone."""

from xdyna.puppets.world.motion import EXPRESSIONS, MOTION_KINDS
from xdyna.puppets.world.render import DYNAMIC_SCENES, FPS, SPLITS, PuppetClip, puppet_track, render_clip
from xdyna.puppets.world.scenes_static import STATIC_SCENES

__all__ = [
    "DYNAMIC_SCENES",
    "EXPRESSIONS",
    "FPS",
    "MOTION_KINDS",
    "SPLITS",
    "STATIC_SCENES",
    "PuppetClip",
    "puppet_track",
    "render_clip",
]
