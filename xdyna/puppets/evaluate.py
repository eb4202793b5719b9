"""The metrics that need no download, on puppets: what `make tiny-report` and `make sensitivity` measure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from xdyna.core.files import file_sha256
from xdyna.evaluation.masks import REGIONS, Masker
from xdyna.evaluation.metric import Metric
from xdyna.evaluation.metrics.dynamics import AppearanceDrift, Flicker, TemporalRatio, WarpingError
from xdyna.evaluation.metrics.images import DEFINITIONS, FrameMetric
from xdyna.evaluation.store import ArrayCache
from xdyna.puppets.expression import ExpressionReader
from xdyna.puppets.metrics import Places, PuppetFaceCos, PuppetFaceExp, dtfvd
from xdyna.puppets.networks import PuppetDynamics, PuppetIdentity
from xdyna.puppets.segmenter import PuppetSegmenter

FOLDERS = ("puppet-dynamics", "puppet-identity", "puppet-expression", "puppet-segmenter")


@dataclass(frozen=True)
class PuppetNets:
    """The networks that are shipped for the puppet world.

    Attributes:
        dynamics: puppet-dynamics.
        identity: puppet-identity.
        expression: puppet-expression.
        segmenter: puppet-segmenter.
        hashes: sha256 of the weight files, by "folder/file".
    """

    dynamics: PuppetDynamics
    identity: PuppetIdentity
    expression: ExpressionReader
    segmenter: PuppetSegmenter
    hashes: dict[str, str]

    @classmethod
    def load(cls, folder: Path) -> PuppetNets:
        """Read all of them.

        Args:
            folder: that holds `FOLDERS` (pretrained/).

        Raises:
            ValueError: one is missing or damaged.
        """
        dynamics, identity, expression, segmenter = (folder / name for name in FOLDERS)
        files = sorted(path for name in FOLDERS for path in (folder / name).glob("*.safetensors"))
        return cls(
            PuppetDynamics.load(dynamics),
            PuppetIdentity.load(identity),
            ExpressionReader.load(expression),
            PuppetSegmenter.load(segmenter),
            {str(p.relative_to(folder)): file_sha256(p) for p in files},
        )


def puppet_metrics(nets: PuppetNets, places: Places, masker: Masker, cache: ArrayCache | None = None) -> list[Metric]:
    """All metrics for puppets, in the order of tables.

    Args:
        nets: the networks.
        places: where the truth's faces are.
        masker: of figures.
        cache: keeps features of single videos.
    """
    expression = next(value for name, value in nets.hashes.items() if name.startswith("puppet-expression"))
    return [
        *(FrameMetric(name) for name in DEFINITIONS),
        *dtfvd(nets.dynamics, masker, cache=cache),
        PuppetFaceCos(nets.identity, places),
        PuppetFaceExp(nets.expression, expression[:16], places),
        *(TemporalRatio(region, masker) for region in REGIONS),
        WarpingError(),
        Flicker(),
        AppearanceDrift(masker),
    ]
