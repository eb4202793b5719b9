"""Makes the compact extract in this folder from a full folder of golden tensors (numbers only, at most 2 MB).

    python tests/golden/make_extract.py FULL_FOLDER

Kept: the module cases with one clip or image of those whose rows do not influence each other, and one sampling run.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np

DROPPED = ("pipeline_pose_face/", "pipeline_pose/video")
ONE_ROW = ("controlnet_pose/", "controlnet_face/", "unet_residuals/", "face_patch/")


def main(full: Path, here: Path) -> None:
    arrays = np.load(full / "golden.npz")
    kept = {}
    for name in arrays.files:
        if not name.startswith(DROPPED):
            array = arrays[name]
            kept[name] = array[:1] if name.startswith(ONE_ROW) and array.ndim else array
    np.savez_compressed(here / "golden.npz", **kept)
    shapes = json.loads((full / "official_state_dict_shapes.json").read_text())
    (here / "official_state_dict_shapes.json").write_text(json.dumps(shapes, separators=(",", ":")))
    for name in ("config.json", "pipeline_pose.json"):
        shutil.copy(full / name, here / name)
        (here / name).chmod(0o644)
    print(f"{len(kept)} arrays, {(here / 'golden.npz').stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent)
