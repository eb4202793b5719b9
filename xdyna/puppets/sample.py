"""The sample of the demo: a puppet in an image, and another puppet that dances, with exact keypoints."""

from dataclasses import dataclass
from pathlib import Path

from xdyna.media.image import write_png
from xdyna.media.writer import VideoWriter
from xdyna.puppets.world import PuppetClip, render_clip

SIZE = (256, 256)  # (H, W) of the sample in px
FRAMES = 48  # of the driving video: 4 s
# Seeds of identity, motion and scene.
REFERENCE = (2_046_885, 2_000_044, 2_051_532)  # a girl before the evening sea
DRIVING = (2_080_054, 2_086_280, 2_080_054)  # a boy who dances and talks in his room


@dataclass(frozen=True)
class SampleFiles:
    """The four files of the sample.

    Attributes:
        folder: where they are.
    """

    folder: Path

    @property
    def reference(self) -> Path:
        """The image."""
        return self.folder / "reference.png"

    @property
    def reference_points(self) -> Path:
        """Keypoints of the puppet in the image."""
        return self.folder / "reference.npz"

    @property
    def driving(self) -> Path:
        """The driving video."""
        return self.folder / "driving.mp4"

    @property
    def driving_points(self) -> Path:
        """Keypoints of the driving video, frame by frame."""
        return self.folder / "driving.npz"

    def complete(self) -> bool:
        """Whether all four are there."""
        files = (self.reference, self.reference_points, self.driving, self.driving_points)
        return all(path.is_file() for path in files)


def reference_clip() -> PuppetClip:
    """The reference, one frame."""
    return render_clip(*REFERENCE, frames=1, size=SIZE, scene_kind="sea")


def driving_clip() -> PuppetClip:
    """The driving video."""
    return render_clip(*DRIVING, frames=FRAMES, size=SIZE)


def write_sample(folder: Path) -> SampleFiles:
    """Render the sample; files that are there are replaced.

    Args:
        folder: where to; made if missing.

    Returns:
        SampleFiles: the same images and keypoints every time.

    Raises:
        MediaError: a file cannot be written.
    """
    files, still, driving = SampleFiles(folder), reference_clip(), driving_clip()
    write_png(files.reference, still.frames[0], overwrite=True)
    still.track().save(files.reference_points, overwrite=True)
    with VideoWriter(files.driving, fps=driving.fps, size=SIZE, overwrite=True) as writer:
        for frame in driving.frames:
            writer.write(frame)
    driving.track().save(files.driving_points, overwrite=True)
    return files
