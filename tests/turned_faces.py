"""How well MediaPipe finds faces that are turned aside, and very small ones: docs/perception.md.

`python -m tests.turned_faces` needs no files: the face is that of scikit-image's astronaut (public domain). Its mesh is
turned in space and its skin drawn anew onto the image, where the old face was smoothed away: the landmarks are known,
but a turned photograph it is not (no ears, no hair, the depth is MediaPipe's own guess). Errors are shares of the
face's size.
"""

import sys

import cv2
import numpy as np

from xdyna.perception import get_backend
from xdyna.perception.base import PoseBackend
from xdyna.perception.face_mesh import INNER_LIPS, LEFT_EYE, RIGHT_EYE, FaceMesher, ibug68, skin_triangles

YAWS = (0, 15, 30, 45, 60, 75, 90)
SIZES = (80, 40, 24, 20, 16, 14, 12, 10, 8, 6, 4)
GROUND = (110, 120, 100)


def turned(mesh: np.ndarray, yaw: float, pitch: float = 0.0) -> np.ndarray:
    """(N, 3) vertices turned about their middle. Args: mesh: (N, 3) px; yaw, pitch: degrees."""
    a, b = np.radians((yaw, pitch))
    about_y = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    middle = mesh.mean(axis=0)
    middle[2] += 0.6 * np.ptp(mesh[:, 0])  # a head turns about its neck, which lies behind the face
    return (mesh - middle) @ (about_y @ about_x).T + middle


def with_openings(mesh: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mesh with a middle for each eye and the mouth, and all triangles, those that fill them too."""
    triangles, vertices = [skin_triangles()], [mesh]
    for k, rim in enumerate((RIGHT_EYE, LEFT_EYE, INNER_LIPS)):
        vertices.append(mesh[list(rim)].mean(axis=0)[None])
        triangles.append(np.array([(a, b, len(mesh) + k) for a, b in zip(rim, (*rim[1:], rim[0]), strict=True)]))
    return np.concatenate(vertices), np.concatenate(triangles)


def drawn(image: np.ndarray, mesh: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The image with the skin of `mesh` where `after` has it, farther triangles first."""
    hull = cv2.convexHull(mesh[:, :2].astype(np.int32))
    mask = cv2.fillConvexPoly(np.zeros(image.shape[:2], np.uint8), hull, (255,))
    result = cv2.inpaint(image, cv2.dilate(mask, np.ones((9, 9), np.uint8)), 5, cv2.INPAINT_TELEA)
    old, triangles = with_openings(mesh)
    new, _ = with_openings(after)
    depth = new[triangles, 2].mean(axis=1)
    for triangle in triangles[np.argsort(-depth)]:
        matrix = cv2.getAffineTransform(old[triangle, :2].astype(np.float32), new[triangle, :2].astype(np.float32))
        left, top = np.floor(new[triangle, :2].min(axis=0)).astype(int) - 1
        right, bottom = np.ceil(new[triangle, :2].max(axis=0)).astype(int) + 2
        if left < 0 or top < 0 or right > image.shape[1] or bottom > image.shape[0]:
            continue
        matrix[:, 2] -= (left, top)
        patch = cv2.warpAffine(image, matrix, (right - left, bottom - top), borderMode=cv2.BORDER_REPLICATE)
        inside = np.zeros(patch.shape[:2], np.uint8)
        cv2.fillConvexPoly(inside, np.round(new[triangle, :2] - (left, top)).astype(np.int32), (1,))
        result[top:bottom, left:right][inside > 0] = patch[inside > 0]
    return result


def found(backend: PoseBackend, image: np.ndarray, expected: np.ndarray, size: float) -> str:
    """The error of the face's landmarks, or that it is missing. Args: expected: (68, 2) px; size: of the face, px."""
    people = backend.detect(image)
    faces = [one.face for one in people if one.face[0, 2] > 0]
    if not faces:
        return "missing"
    errors = [np.linalg.norm(face[:, :2] - expected, axis=1).mean() / size for face in faces]
    return f"{100 * min(errors):.1f} %"


def main() -> int:
    """Print both tables. Returns: exit code."""
    from skimage.data import astronaut

    backend, image = get_backend("mediapipe"), astronaut()
    person = backend.detect(image)[0]
    mesh = FaceMesher().detect(image, person.face)
    assert mesh is not None
    size = float(np.ptp(ibug68(mesh), axis=0).max())
    # The mesh's mean z is of no fixed origin: the face turns about a place behind it (see `turned`).
    print("| turned aside, degrees | " + " | ".join(map(str, YAWS)) + " |\n" + "| --- " * (len(YAWS) + 1) + "|")
    for name, sign, pitch in (("to one side", 1, 0), ("to the other", -1, 0), ("and down by 20", 1, 20)):
        cells = []
        for yaw in YAWS:
            after = turned(mesh, sign * yaw, pitch)
            after[:, :2] += mesh[:, :2].mean(axis=0) - after[:, :2].mean(axis=0)
            picture = drawn(image, mesh, after)
            if len(sys.argv) > 1:
                cv2.imwrite(f"{sys.argv[1]}/{name.replace(' ', '_')}_{yaw}.png", picture[..., ::-1])
            cells.append(found(backend, picture, ibug68(after), size))
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    print("\n| face, px high | " + " | ".join(map(str, SIZES)) + " |\n" + "| --- " * (len(SIZES) + 1) + "|")
    for name, ground in (("on a plain image", True), ("the photograph made small", False)):
        cells = []
        for px in SIZES:
            share = px / size
            small = cv2.resize(image, None, fx=share, fy=share, interpolation=cv2.INTER_AREA)
            canvas = np.full((512, 512, 3), GROUND, np.uint8) if ground else small
            height, width = min(small.shape[0], 512), min(small.shape[1], 512)
            canvas[:height, :width] = small[:height, :width]
            cells.append(found(backend, canvas, ibug68(mesh) * share, px))
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
