"""Images and videos: probe, read, write, sound, crops, contact sheets. Nothing here knows about models."""

from xdyna.core.atomic import unique_path
from xdyna.media.errors import MediaError, MediaWarning
from xdyna.media.image import CropResize, center_crop, read_image, top_quarter_crop, write_png
from xdyna.media.sheet import contact_sheet, grid_frame
from xdyna.media.video import (
    VideoInfo,
    VideoWriter,
    frame_times,
    natural_fps,
    nominal_fps,
    probe,
    read_frames,
    resample_indices,
)

__all__ = [
    "CropResize",
    "MediaError",
    "MediaWarning",
    "VideoInfo",
    "VideoWriter",
    "center_crop",
    "contact_sheet",
    "frame_times",
    "grid_frame",
    "natural_fps",
    "nominal_fps",
    "probe",
    "read_frames",
    "read_image",
    "resample_indices",
    "top_quarter_crop",
    "unique_path",
    "write_png",
]
