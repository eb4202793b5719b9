"""How many people of a crowd MediaPipe finds, and whether two who cross stay who they are: docs/perception.md.

`python -m tests.crowds DANCE.mp4 OTHER.mp4` (the driving videos that X-Dyna publishes, one person each) pastes their
frames onto a plain image, so that the number and the places of people are known, and prints tables. Seconds are of the
processor.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from xdyna.media import VideoWriter, read_frames
from xdyna.perception import MaskBackend, Person, get_backend, track_person
from xdyna.perception.base import PoseBackend, everybody

GROUND = (110, 120, 100)
CROWDS = ((1, 600), (2, 600), (4, 500), (6, 360), (8, 270), (12, 180), (16, 130))
NEAR = 0.05  # of the pasted height: mean distance of the joints within which a person counts as found


def shrunk(image: np.ndarray, height: int) -> np.ndarray:
    return cv2.resize(image, (int(height * 512 / 896), height), interpolation=cv2.INTER_AREA)


def crowd(frames: list[np.ndarray], count: int, height: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """People side by side, (720, 1280, 3), and the left top corner of each frame that is pasted."""
    scene = np.full((720, 1280, 3), GROUND, np.uint8)
    corners = []
    for k in range(count):
        one = shrunk(frames[k % len(frames)], height)
        left = int(np.clip((k + 0.5) * 1280 / count - one.shape[1] / 2, 0, 1280 - one.shape[1]))
        scene[700 - height : 700, left : left + one.shape[1]] = one
        corners.append((left, 700 - height))
    return scene, corners


def matched(people: list[Person], expected: list[np.ndarray], height: int) -> tuple[int, int]:
    """How many of the people expected are found, each by one; and how many finds are nobody's or a second time."""
    left = list(people)
    for body in expected:
        seen = body[:14, 2] > 0.8
        apart = [np.linalg.norm(one.body[:14, :2] - body[:14, :2], axis=1)[seen].mean() for one in left]
        if apart and min(apart) < NEAR * height:
            left.pop(int(np.argmin(apart)))
    return len(people) - len(left), len(left)


def timed(call: Callable[[], list[Person]]) -> tuple[list[Person], float]:
    begun = time.process_time()
    return call(), time.process_time() - begun


def crowds(backend: PoseBackend, frames: list[np.ndarray]) -> Iterator[str]:
    """Rows of the table of crowds."""
    bodies = [backend.detect(frame)[0].body for frame in frames]
    yield "| people | height of each, px | found briefly | beside them | s | found by a search | beside them | s |"
    yield "| ---: " * 8 + "|"
    for count, height in CROWDS:
        scene, corners = crowd(frames, count, height)
        expected = []
        for k, corner in enumerate(corners):
            body = bodies[k % len(bodies)].copy()
            body[:, :2] = body[:, :2] * height / 896 + corner
            expected.append(body)
        tall = np.mean([np.ptp(body[body[:, 2] > 0.8, 1]) for body in expected])
        brief, brief_s = timed(lambda scene=scene: backend.detect(scene))
        full, full_s = timed(lambda scene=scene: everybody(backend, scene))
        numbers = [
            *matched(brief, expected, height),
            f"{brief_s:.2f}",
            *matched(full, expected, height),
            f"{full_s:.2f}",
        ]
        yield f"| {count} | {tall:.0f} | " + " | ".join(map(str, numbers)) + " |"


def alone(backend: PoseBackend, frames: list[np.ndarray]) -> str:
    """What a search adds to frames of one person."""
    brief, full, added = 0.0, 0.0, 0
    for frame in frames:
        people, seconds = timed(lambda frame=frame: backend.detect(frame))
        brief += seconds
        more, seconds = timed(lambda frame=frame: everybody(backend, frame))
        full, added = full + seconds, added + len(more) - len(people)
    count = len(frames)
    seconds_each = f"{brief / count:.2f} s briefly, {full / count:.2f} s a search"
    return f"{count} frames of one person: {added} people added by a search; {seconds_each}."


Scene = tuple[np.ndarray, np.ndarray, np.ndarray]
"""A frame, and the joints of the nearer and of the farther person in it."""


def pasted(backend: PoseBackend, one: list[np.ndarray]) -> Iterator[Scene]:
    """Two copies of one dancer, whole frames pasted: the nearer hides the farther where their frames overlap."""
    for k in range(24):
        scene = np.full((480, 960, 3), GROUND, np.uint8)
        near, far = cv2.resize(one[k % len(one)], (230, 400), interpolation=cv2.INTER_AREA), one[(k + 7) % len(one)]
        far = cv2.resize(np.ascontiguousarray(far[:, ::-1]), (195, 340), interpolation=cv2.INTER_AREA)
        lefts = int(20 + 690 * k / 23), int(20 + 690 * (23 - k) / 23)
        yield _placed(backend, scene, [(far, lefts[1], None), (near, lefts[0], None)])


def cut_out(
    backend: PoseBackend, one: list[np.ndarray], other: list[np.ndarray], *, turn_back: bool
) -> Iterator[Scene]:
    """Two dancers cut out by their masks, who cross, or meet and go back to where they came from."""
    assert isinstance(backend, MaskBackend)
    for k in range(32):
        way = k / 31
        if turn_back:
            way = 0.5 - abs(way - 0.5)
        scene = np.full((480, 960, 3), GROUND, np.uint8)
        layers = []
        for image, size, way_ in ((other, (205, 360), 1 - way), (one, (230, 400), way)):
            frame = image[k % len(image)]
            mask = cv2.resize(backend.segment(frame), size)
            layers.append((cv2.resize(frame, size, interpolation=cv2.INTER_AREA), int(20 + 690 * way_), mask))
        yield _placed(backend, scene, layers)


def _placed(backend: PoseBackend, scene: np.ndarray, layers: list[tuple[np.ndarray, int, np.ndarray | None]]) -> Scene:
    bodies = []
    for image, left, mask in layers:
        height, width = image.shape[:2]
        part = scene[470 - height : 470, left : left + width]
        share = np.ones((height, width, 1)) if mask is None else mask[..., None]
        part[:] = (share * image + (1 - share) * part).round().astype(np.uint8)
        body = backend.detect(image)[0].body.copy()
        body[:, :2] += (left, 470 - height)
        bodies.append(body)
    return scene, bodies[1], bodies[0]


def crossing(scenes: list[Scene], backend: PoseBackend, folder: Path, name: str) -> Iterator[str]:
    """Rows of the table of crossings: of each person, frames in which they, the other and nobody is followed."""
    path = folder / f"{name}.mp4"
    with VideoWriter(path, fps=8, size=(480, 960)) as writer:
        for scene, _, _ in scenes:
            writer.write(scene)
    # Who is the larger in the first frame is person 0.
    for crowd_ in ("off", "auto", "all"):
        for person in (0, 1):
            begun = time.process_time()
            cells = _followed(path, scenes, backend, person, crowd_, folder / f"{name}-{crowd_}-{person}")
            yield f"| {name} | {crowd_} | {person} | {cells} | {(time.process_time() - begun) / len(scenes):.2f} |"


def _followed(path: Path, scenes: list[Scene], backend: PoseBackend, person: int, crowd_: str, cache: Path) -> str:
    try:
        track = track_person(path, backend=backend, person=person, crowd=crowd_, cache_dir=cache, max_gap=0)
    except ValueError as error:
        return f"- | - | {len(scenes)} ({error})"
    counts = [0, 0, 0]
    for body, (_, *both) in zip(track.body, scenes, strict=True):
        seen = body[:14, 2] > 0.3
        if not seen.any():
            counts[2] += 1
            continue
        apart = [np.linalg.norm(body[:14, :2] - each[:14, :2], axis=1)[seen].mean() for each in both]
        counts[int(apart[person] > apart[1 - person])] += 1
    return " | ".join(map(str, counts))


def main(argv: list[str]) -> int:
    """Print the tables. Returns: exit code."""
    parser = argparse.ArgumentParser(prog="tests.crowds", description=__doc__.splitlines()[0])
    parser.add_argument("video", type=Path, nargs=2, help="of one person each, 512 x 896")
    args = parser.parse_args(argv)
    backend = get_backend("mediapipe")
    one, other = (list(read_frames(path, range(0, 120, 6))) for path in args.video)
    backend.detect(one[0])  # its models are loaded
    everybody(backend, one[0])
    for line in crowds(backend, one):
        print(line, flush=True)
    print(f"\n{alone(backend, [*one, *other])}\n", flush=True)
    print("| scene | search | person | followed | the other | nobody | s a frame |\n" + "| --- " * 7 + "|")
    kinds = {
        "pasted": list(pasted(backend, one)),
        "cut out": list(cut_out(backend, one, other, turn_back=False)),
        "turn back": list(cut_out(backend, one, other, turn_back=True)),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, scenes in kinds.items():
            for line in crossing(scenes, backend, Path(folder), name):
                print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
