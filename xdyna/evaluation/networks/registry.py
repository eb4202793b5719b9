"""Which published weight files metrics need, where they are and how a network is made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from xdyna.core.hub import HubFile
from xdyna.evaluation.networks.adaface import AdaFace
from xdyna.evaluation.networks.i3d import I3DExtractor
from xdyna.evaluation.networks.inception import InceptionExtractor
from xdyna.evaluation.networks.lpips import FILES, LPIPS
from xdyna.evaluation.networks.mtcnn import MTCNN, NETWORKS, SOFTMAX
from xdyna.evaluation.networks.videomae import VideoMAEExtractor

States = Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True)
class WeightFile:
    """A published file.

    Attributes:
        name: as it is published, and as it is looked for.
        source: where to get it.
        license: of the file, or what is known of it.
        size: bytes, or None where unknown.
        sha256: or None where unknown.
        also: other names under which the same weights are published.
    """

    name: str
    source: str
    license: str
    size: int | None = None
    sha256: str | None = None
    also: tuple[str, ...] = ()

    @property
    def published(self) -> HubFile | None:
        """What `xdyna.core.hub.fetch` takes, where there is an address that gives the file itself."""
        if not (self.source.startswith("https://") and self.source.endswith(f"/{self.name}")):
            return None
        base = self.source.removesuffix(f"/{self.name}")
        repo = f"{base.split('/')[2]}/metrics"
        return HubFile(repo, self.name, "network of a metric", (), self.license, self.size, self.sha256, base=base)


@dataclass(frozen=True)
class ExtractorSpec:
    """How a network for metrics is made.

    Attributes:
        name: its key.
        files: whose tensors it needs, in the order in which `build` takes them.
        build: takes the state dicts, the weights' hash and the device.
        kind: "image", "clip" or "face".
        dim: channels of a feature; 0 for a distance.
        ddof: of the covariance in the metric's definition.
    """

    name: str
    files: tuple[WeightFile, ...]
    build: Callable[[States, str, str | None], Any]
    kind: str
    dim: int
    ddof: int


_INCEPTION = WeightFile(
    "pt_inception-2015-12-05-6726825d.pth",
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    "Apache-2.0",
    95_628_359,
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)
_VIDEOMAE = WeightFile(
    "vit_g_hybrid_pt_1200e_ssv2_ft.pth",
    "https://huggingface.co/OpenGVLab/InternVideoMAE_models/resolve/main/mae-g/vit_g_hybrid_pt_1200e_ssv2_ft.pth",
    "CC-BY-NC 4.0 (VideoMAE-v2)",
    None,
    "5a210a92f035dff30c53b46157b612e7a1a5d3c99700e1b2d71da5c399ca7e70",
)
_VGG = WeightFile(
    FILES["vgg"][0],
    f"https://download.pytorch.org/models/{FILES['vgg'][0]}",
    "BSD-3-Clause (torchvision)",
    None,
    "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
)
_VGG_HEAD = WeightFile(
    FILES["vgg"][1],
    "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/vgg.pth",
    "BSD-2-Clause",
    None,
    "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
)
_DTDB = "models/DTI3D of cINN's weights (github.com/CompVis/image2video-synthesis-using-cINNs)"
_KINETICS = WeightFile(
    "i3d_pretrained_400.pt",
    "https://github.com/songweige/TATS/raw/main/tats/fvd/i3d_pretrained_400.pt",
    "MIT (TATS); Apache-2.0 (kinetics-i3d)",
)


def _i3d(frames: int, classes: int, name: str, *, logits: bool = False) -> Callable[[States, str, str | None], Any]:
    return lambda states, weights, device: I3DExtractor(
        states[0], classes=classes, frames=frames, what=name, weights=weights, logits=logits, device=device
    )


# AdaFace's repository has them as .npy; facenet-pytorch (on PyPI) brings the same networks as .pt.
_MTCNN = tuple(
    WeightFile(
        f"{net}.npy",
        "face_alignment/mtcnn_pytorch/src/weights of github.com/mk-minchul/AdaFace, "
        f"or facenet_pytorch/data/{net}.pt of the package facenet-pytorch",
        "MIT",
        also=(f"{net}.pt",),
    )
    for net in NETWORKS
)


def _adaface(kind: str, name: str, drive: str, softmax: str) -> ExtractorSpec:
    """A recognition network behind its detector, whose softmax runs over "classes" or, as published, "width"."""
    file = WeightFile(name, f"https://drive.google.com/file/d/{drive}/view", "MIT (code); trained on research data")

    def build(states: States, weights: str, device: str | None) -> AdaFace:
        detector = MTCNN(*states[1:], softmax=softmax, device=device)
        return AdaFace(states[0], detector, kind=kind, what=name, weights=weights, device=device)

    return ExtractorSpec(f"adaface_{kind}_{softmax}", (file, *_MTCNN), build, "face", 512, 0)


EXTRACTORS: dict[str, ExtractorSpec] = {
    spec.name: spec
    for spec in (
        ExtractorSpec(
            "inception",
            (_INCEPTION,),
            lambda states, weights, device: InceptionExtractor(states[0], weights=weights, device=device),
            "image",
            2048,
            1,
        ),
        ExtractorSpec(
            "i3d_dtdb_16",
            (WeightFile("I3D_16.pth.tar", _DTDB, "MIT (code)"),),
            _i3d(16, 18, "I3D_16.pth.tar"),
            "clip",
            1024,
            1,
        ),
        ExtractorSpec(
            "i3d_dtdb_32",
            (WeightFile("I3D_32.pth.tar", _DTDB, "MIT (code)"),),
            _i3d(32, 18, "I3D_32.pth.tar"),
            "clip",
            1024,
            1,
        ),
        ExtractorSpec(
            "i3d_kinetics",
            (_KINETICS,),
            _i3d(16, 400, _KINETICS.name, logits=True),
            "clip",
            400,
            0,
        ),
        ExtractorSpec(
            "videomae_ssv2",
            (_VIDEOMAE,),
            lambda states, weights, device: VideoMAEExtractor(states[0], weights=weights, device=device),
            "clip",
            1408,
            0,
        ),
        ExtractorSpec(
            "lpips_vgg",
            (_VGG, _VGG_HEAD),
            lambda states, weights, device: LPIPS(states[0], states[1], kind="vgg", weights=weights, device=device),
            "image",
            0,
            0,
        ),
        *(
            _adaface(kind, name, drive, softmax)
            for kind, name, drive in (
                ("ir50", "adaface_ir50_ms1mv2.ckpt", "1eUaSHG4pGlIZK7hBkqjyp2fc2epKoBvI"),
                ("ir101", "adaface_ir101_webface12m.ckpt", "1dswnavflETcnAuplZj1IOKKP0eM8ITgT"),
            )
            for softmax in SOFTMAX
        ),
    )
}


def how_to_get(spec: ExtractorSpec, missing: Sequence[WeightFile]) -> str:
    """One line for the user: what is missing, where it is, where to put it."""
    parts = [f"{file.name} (from {file.source}; license: {file.license})" for file in missing]
    return f"{spec.name} needs {' and '.join(parts)} in --weights-dir"
