"""MTCNN against AdaFace's own code and facenet-pytorch (golden numbers), loops and closed forms.

tests/golden/evaluation/mtcnn.npz is made by tests/golden/make_mtcnn.py.
"""

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from tests.golden.make_mtcnn import SHARP, SIDE, THRESHOLDS, weights
from xdyna.evaluation.networks import mtcnn
from xdyna.evaluation.networks.fixture import random_images, random_weights
from xdyna.evaluation.networks.mtcnn import MTCNN, TEMPLATE, ONet, PNet, RNet, align, cut, similarity, suppress

GOLDEN = Path(__file__).parents[3] / "golden" / "evaluation"


@pytest.mark.parametrize(
    ("softmax", "seed"), [("classes", 0), ("classes", 4), ("classes", 7), ("width", 4), ("width", 7)]
)
def test_the_pipeline_is_adafaces(softmax: str, seed: int) -> None:
    """As published (softmax over the width), and with the original MTCNN's softmax over the classes."""
    prefix, sharp = ("width_", SHARP) if softmax == "width" else ("", 1.0)
    with np.load(GOLDEN / "mtcnn.npz") as stored:
        boxes, points = stored[f"{prefix}boxes_{seed}"], stored[f"{prefix}points_{seed}"]
    detector = MTCNN(*weights(seed, sharp=sharp), thresholds=THRESHOLDS, softmax=softmax)
    found = detector.detect(random_images(1, side=SIDE, seed=seed)[0])
    assert len(boxes) > 2
    np.testing.assert_allclose(found.boxes, boxes, rtol=0, atol=1e-3)
    np.testing.assert_allclose(found.points, points, rtol=0, atol=1e-2)
    assert (np.diff(found.boxes[:, 4]) <= 0).all()


def test_the_networks_are_facenets() -> None:
    """Under the map of names, with the golden numbers of facenet-pytorch."""
    with np.load(GOLDEN / "parity_video.npz") as stored:
        expected = stored["mtcnn"]
    ours = []
    for k, net in enumerate((PNet(), RNet(), ONet())):
        net.eval().load_state_dict(mtcnn.from_facenet(facenet_weights(k)))
        x = torch.from_numpy(random_images(4, side=(40, 24, 48)[k])).permute(0, 3, 1, 2)
        with torch.no_grad():
            ours += net((x[..., : (56, 24, 48)[k]].float() - 127.5) / 128)
    np.testing.assert_allclose(np.concatenate([part.numpy().ravel() for part in ours]), expected, atol=2e-5)


def facenet_weights(k: int) -> dict[str, torch.Tensor]:
    """Random weights with facenet-pytorch's names and shapes."""
    convolutions = [[(10, 3, 3), (16, 10, 3), (32, 16, 3)], [(28, 3, 3), (48, 28, 3), (64, 48, 2)],
                    [(32, 3, 3), (64, 32, 3), (64, 64, 3), (128, 64, 2)]][k]  # fmt: skip
    like = {}
    for n, (out, channels, side) in enumerate(convolutions, 1):
        like[f"conv{n}.weight"] = torch.zeros(out, channels, side, side)
        like[f"conv{n}.bias"], like[f"prelu{n}.weight"] = torch.zeros(out), torch.zeros(out)
    dense = {0: {}, 1: {"dense4": (128, 576)}, 2: {"dense5": (256, 1152)}}[k]
    heads = {0: {"conv4_1": (2, 32, 1, 1), "conv4_2": (4, 32, 1, 1)},
             1: {"dense5_1": (2, 128), "dense5_2": (4, 128)},
             2: {"dense6_1": (2, 256), "dense6_2": (4, 256), "dense6_3": (10, 256)}}[k]  # fmt: skip
    for name, shape in {**dense, **heads}.items():
        like[f"{name}.weight"], like[f"{name}.bias"] = torch.zeros(shape), torch.zeros(shape[0])
    for name, shape in dense.items():
        like[f"prelu{name[-1]}.weight"] = torch.zeros(shape[0])
    return random_weights(like)


def test_published_names() -> None:
    for net, tensors, parameters in ((PNet(), 13, 6_632), (RNet(), 16, 100_178), (ONet(), 21, 389_040)):
        assert (len(net.state_dict()), sum(p.numel() for p in net.parameters())) == (tensors, parameters)
        names = set(net.state_dict())
        assert {"features.conv1.weight", "features.prelu1.weight", "features.conv3.bias"} <= names
    assert {"features.conv5.weight", "conv6_3.bias"} <= set(ONet().state_dict())
    states = weights(0)
    del states[2]["conv6_3.bias"]
    with pytest.raises(ValueError, match="not those of MTCNN's onet"):
        MTCNN(*states)


def test_suppression_by_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    for by_smaller in (False, True):
        for _ in range(20):
            low = rng.integers(0, 40, (30, 2))
            boxes = np.column_stack([low, low + rng.integers(5, 30, (30, 2)), rng.permutation(30)]).astype(float)
            pixels = [{(x, y) for x in range(int(a), int(c) + 1) for y in range(int(b), int(d) + 1)}
                      for a, b, c, d in boxes[:, :4]]  # fmt: skip
            kept: list[int] = []
            for i in np.argsort(-boxes[:, 4]):
                overlaps = []
                for j in kept:
                    both, either = len(pixels[i] & pixels[j]), len(pixels[i] | pixels[j])
                    overlaps.append(both / (min(len(pixels[i]), len(pixels[j])) if by_smaller else either))
                if all(overlap <= 0.5 for overlap in overlaps):
                    kept.append(int(i))
            assert suppress(boxes, 0.5, by_smaller=by_smaller).tolist() == kept
    assert suppress(np.zeros((0, 5)), 0.5).tolist() == []


def test_cuts_reach_over_the_edge() -> None:
    image = random_images(1, side=40)[0]  # 40 x 56
    boxes = np.array([[-5, -3, 6, 8, 0.9], [50, 30, 61, 41, 0.8], [60, 5, 71, 16, 0.7], [10, 10, 21, 21, 0.6]], float)
    cuts, clipped, kept = cut(image, boxes, 12)
    assert kept.tolist() == [0, 1, 3]  # the third lies outside
    assert clipped[:, :4].tolist() == [[0, 0, 6, 8], [50, 30, 55, 39], [10, 10, 21, 21]]
    expected = np.zeros((12, 12, 3), np.uint8)
    expected[3:, 5:] = image[:9, :7]
    np.testing.assert_array_equal(cuts[0], expected)
    np.testing.assert_array_equal(cuts[2], image[10:22, 10:22])


def test_pyramid_by_hand() -> None:
    """The first level makes a face of 20 px fill 12 px; the last leaves more than 12 px of the shorter side."""
    scales = mtcnn.levels(100, 300)
    assert scales[0] == 0.6
    assert scales[1] / scales[0] == pytest.approx(0.85)
    assert 100 * scales[-1] > 12 >= 100 * scales[-1] * 0.85
    assert mtcnn.levels(20, 300) == []
    detector = MTCNN(*weights(0))
    assert len(detector.detect(np.zeros((16, 16, 3), np.uint8)).boxes) == 0
    with pytest.raises(ValueError, match="expected uint8"):
        detector.detect(np.zeros((16, 16), np.uint8))


def test_shrinking_is_pillows() -> None:
    image = random_images(1, side=40)[0]
    expected = np.asarray(Image.fromarray(image).resize((13, 11), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(mtcnn.shrunk(image, (11, 13)), expected)


def test_similarity_of_turned_points() -> None:
    angle, scale, shift = 0.4, 0.3, np.array([50.0, 80.0])
    turn = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    points = TEMPLATE @ turn.T + shift
    matrix = similarity(points)
    np.testing.assert_allclose(np.column_stack([points, np.ones(5)]) @ matrix.T, TEMPLATE, atol=1e-4)
    np.testing.assert_allclose(matrix[:, :2] @ turn, np.eye(2), atol=1e-6)
    with pytest.raises(ValueError, match="lie in one place"):
        similarity(np.ones((5, 2)))


def test_similarity_minimises_in_the_image() -> None:
    """No nearby similarity maps the template closer to the points (and cv2's fit, the other way, differs)."""
    rng = np.random.default_rng(1)
    points = TEMPLATE * 0.7 + rng.normal(0, 3, (5, 2)) + 20
    back = np.linalg.inv(np.vstack([similarity(points), [0, 0, 1]]))[:2]

    def error(a: float, b: float, u: float, v: float) -> float:
        matrix = np.array([[a, b, u], [-b, a, v]])
        return float(((np.column_stack([TEMPLATE, np.ones(5)]) @ matrix.T - points) ** 2).sum())

    best = error(back[0, 0], back[0, 1], back[0, 2], back[1, 2])
    for step in np.vstack([np.eye(4), -np.eye(4)]) * [1e-3, 1e-3, 0.1, 0.1]:
        assert error(*(np.array([back[0, 0], back[0, 1], back[0, 2], back[1, 2]]) + step)) > best
    assert best > 1


def test_alignment_puts_landmarks_in_place() -> None:
    """An image with five dots: they end where the template has them."""
    points = (TEMPLATE - 56) * 1.7 @ np.array([[0.9, 0.2], [-0.2, 0.9]], np.float32) + np.float32([150, 120])
    image = np.zeros((260, 300, 3), np.uint8)
    for x, y in points:
        cv2.circle(image, (round(float(x)), round(float(y))), 3, (255, 255, 255), -1)
    aligned = align(image, points)
    assert aligned.shape == (112, 112, 3)
    count, _, _, centres = cv2.connectedComponentsWithStats((aligned[..., 0] > 100).astype(np.uint8))
    assert count == 6
    for place in TEMPLATE:
        assert np.linalg.norm(centres[1:] - place, axis=1).min() < 0.7
