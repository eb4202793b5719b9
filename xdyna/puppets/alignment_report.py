"""Table and image of alignment on puppet pairs: `scripts/puppets.py alignment`."""

import argparse
from collections.abc import Sequence

import numpy as np

from xdyna.core.atomic import atomic_output, output_path
from xdyna.media.image import write_png
from xdyna.media.sheet import contact_sheet
from xdyna.perception.draw import draw_pose
from xdyna.perception.retarget import fit_track
from xdyna.puppets.alignment import FRAMES, KINDS, MODES, PAIRS, AlignmentPair, errors, make_pair

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
SHOWN = (0, 1, 4, 6, 7)  # pairs in the image
_FRAME = 15  # of a pair in the image
_CELL = 176  # px


def table(measured: Sequence[tuple[str, dict[str, float]]]) -> str:
    """Mean joint error by kind of pair and mode, as Markdown.

    Args:
        measured: kind and `errors` of each pair.
    """
    lines = [
        f"| pairs | {' | '.join(MODES)} | auto / none | auto worse than global |",
        f"|{' --- |' * (len(MODES) + 3)}",
    ]
    for kind in (*KINDS, "all"):
        rows = [found for name, found in measured if kind in (name, "all")]
        means = {mode: float(np.nanmean([found[mode] for found in rows])) for mode in MODES}
        worse = sum(found["auto"] > found["global"] + 1e-9 for found in rows)
        cells = " | ".join(f"{means[mode]:.4f}" for mode in MODES)
        lines.append(
            f"| {kind} ({len(rows)}) | {cells} | {means['auto'] / means['none']:.2f} | {worse} of {len(rows)} |"
        )
    return "\n".join(lines) + "\n"


def picture(pairs: Sequence[AlignmentPair]) -> np.ndarray:
    """Driving and reference skeleton; then the right place (grey) under what "global" and "auto" make of it.

    Args:
        pairs: a row each.

    Returns:
        uint8 (H, W, 3).
    """
    rows = {}
    for pair in pairs:
        truth = draw_pose(pair.truth.body[_FRAME], size=pair.size, head=True)
        grey = np.repeat((truth.max(axis=-1, keepdims=True) > 0) * np.uint8(140), 3, axis=-1)
        cells = [draw_pose(pair.driving.body[_FRAME], size=pair.driving.size, head=True)]
        cells.append(draw_pose(pair.reference.body, size=pair.size, head=True))
        for mode in ("global", "auto"):
            track = fit_track(pair.driving, pair.reference, size=pair.size, mode=mode).track
            drawn = draw_pose(track.body[_FRAME], size=pair.size, head=True, width=0.6)
            cells.append(np.where(drawn.any(axis=-1, keepdims=True), drawn, grey))
        rows[pair.kind] = [_square(cell) for cell in cells]
    captions = ["driving", "reference", "global", "auto"]
    return contact_sheet(rows, columns=len(captions), cell_height=_CELL, captions=captions)


def _square(image: np.ndarray) -> np.ndarray:
    """An image in the middle of a dark square."""
    side = max(image.shape[:2])
    top, left = (side - image.shape[0]) // 2, (side - image.shape[1]) // 2
    square = np.full((side, side, 3), 40, np.uint8)
    square[top : top + image.shape[0], left : left + image.shape[1]] = image
    return square


def main(argv: Sequence[str]) -> int:
    """Run `scripts/puppets.py alignment`. Args: argv: without the action. Returns: exit code."""
    p = argparse.ArgumentParser(prog="xdyna puppets alignment", description=__doc__)
    p.add_argument("--pairs", type=int, default=PAIRS, help="how many (%(default)s)")
    p.add_argument("--first", type=int, help="seed of the first puppet and motion (default: of the test split)")
    p.add_argument("--doc", type=output_path, metavar="MD", help="put the table between its marks in this file")
    p.add_argument("--image", type=output_path, metavar="PNG", help="write the image; one that is there is replaced")
    args = p.parse_args(argv)
    first = {} if args.first is None else {"first": args.first}
    pairs = [make_pair(number, **first) for number in range(args.pairs)]
    measured = [(pair.kind, errors(pair)) for pair in pairs]
    told = table(measured)
    print(f"mean joint error in heights of the figure, {args.pairs} pairs of {FRAMES} frames\n\n{told}", end="")
    if args.doc is not None:
        before, _, rest = args.doc.read_text().partition(BEGIN)
        _, end, after = rest.partition(END)
        if not end:
            raise ValueError(f"--doc {args.doc}: expected the lines {BEGIN} and {END}, between which the table goes")
        with atomic_output(args.doc, overwrite=True) as temporary:
            temporary.write_text(f"{before}{BEGIN}\n{told}{END}{after}")
        print(f"wrote {args.doc}")
    if args.image is not None:
        write_png(args.image, picture([pairs[number] for number in SHOWN if number < len(pairs)]), overwrite=True)
        print(f"wrote {args.image}")
    return 0
