"""Videos and images to controls: people as numbers, pose maps, face patches."""

from xdyna.perception.align import AlignmentReport, align_track
from xdyna.perception.base import Face, FaceBackend, MaskBackend, PoseBackend, get_backend, get_face_backend
from xdyna.perception.cache import default_cache_dir
from xdyna.perception.draw import draw_pose, draw_track
from xdyna.perception.errors import PerceptionError, PerceptionWarning
from xdyna.perception.face_patch import face_boxes, face_patches
from xdyna.perception.smooth import OneEuro
from xdyna.perception.track import smooth_track, track_person
from xdyna.perception.types import PerceptionSummary, Person, PoseTrack

__all__ = [
    "AlignmentReport",
    "Face",
    "FaceBackend",
    "MaskBackend",
    "OneEuro",
    "PerceptionError",
    "PerceptionSummary",
    "PerceptionWarning",
    "Person",
    "PoseBackend",
    "PoseTrack",
    "align_track",
    "default_cache_dir",
    "draw_pose",
    "draw_track",
    "face_boxes",
    "face_patches",
    "get_backend",
    "get_face_backend",
    "track_person",
    "smooth_track",
]
