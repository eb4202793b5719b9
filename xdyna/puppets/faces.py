"""Cross-identity faces of the rendered world, beside real ones: `scripts/puppets.py faces`."""

from collections.abc import Iterator, Sequence

import numpy as np

from xdyna.data.face_files import patch_boxes
from xdyna.preprocess.faces import sheet
from xdyna.preprocess.faces.sheet import Triple, cut_out
from xdyna.puppets.world import SPLITS, render_clip

SIZE = (256, 256)  # (H, W) px


def puppet_triples(count: int, seed: int) -> Iterator[Triple]:
    """Faces of the rendered world, whose other identities are exact."""
    seeds = SPLITS["test"]
    rng = np.random.default_rng(seed)
    for identity, motion, scene, other, behind in rng.integers(seeds.start, seeds.stop, size=(count, 5)).tolist():
        start = int(rng.integers(48))
        own = render_clip(identity, motion, scene, frames=1, start=start, size=SIZE)
        new = render_clip(identity, motion, behind, frames=1, start=start, size=SIZE, face_identity=other)
        alone = render_clip(other, motion + 1, behind, frames=1, size=SIZE)
        yield tuple(cut_out(c.frames[0], patch_boxes(c.face, size=SIZE)[0]) for c in (own, alone, new))  # type: ignore[misc]


def main(argv: Sequence[str]) -> int:
    """Run `scripts/puppets.py faces`. Args: argv: without the program's name. Returns: exit code."""
    return sheet.main(argv, rendered=puppet_triples)
