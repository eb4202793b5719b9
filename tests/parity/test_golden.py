"""Equality with the published implementation, on golden tensors.

Runs on the compact extract in tests/golden always, and on a full folder (XDYNA_PARITY_DIR, default ../shared/parity)
where there is one. Any folder of the same form passes, whatever its sizes. A table of the largest errors is printed at
the end of the run (tests/parity/conftest.py).
"""

import numpy as np
import pytest
import torch

from tests.parity.golden import CONTROL_CHANNELS, TEXT_TOKENS, Golden, resampler_shapes
from xdyna.diffusion.prior import gaussian_blur
from xdyna.diffusion.windows import uniform_windows
from xdyna.media.image import top_quarter_crop
from xdyna.models.controls import merge_residuals, run_controlnet
from xdyna.perception.face_patch import face_boxes, face_patches, region_centers

pytestmark = pytest.mark.usefixtures("two_threads")
MODULE_TOLERANCE, LATENT_TOLERANCE = 1e-4, 2e-3
MAX_ROUNDING = 1e-2  # of the loop in float32; more would be a mistake, not rounding


def _tokens(golden: Golden, case: str) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = golden.tensor(f"{case}/encoder_hidden_states")
    return tokens[:, :TEXT_TOKENS], tokens[:, TEXT_TOKENS:]


@pytest.mark.parametrize("case", ["unet", "unet_odd"])
@torch.no_grad()
def test_unet(golden: Golden, case: str, record_error) -> None:
    golden_case(golden, case)
    out = golden.unet()(
        golden.tensor(f"{case}/sample"), golden.tensor(f"{case}/timestep"), *_tokens(golden, case)
    ).sample
    record_error(case, out, golden.tensor(f"{case}/out"), MODULE_TOLERANCE)


@torch.no_grad()
def test_unet_residuals(golden: Golden, record_error) -> None:
    golden_case(golden, "unet_residuals")
    down, mid = golden.residuals("unet_residuals")
    rows = slice(0, mid.shape[0])  # the compact extract keeps one clip of the inputs
    text, image = _tokens(golden, "unet")
    sample, timestep = golden.tensor("unet/sample")[rows], golden.tensor("unet/timestep")
    out = golden.unet()(sample, timestep, text[rows], image[rows], down_residuals=down, mid_residual=mid).sample
    record_error("unet_residuals", out, golden.tensor("unet_residuals/out"), MODULE_TOLERANCE)


@pytest.mark.parametrize("kind", list(CONTROL_CHANNELS))
@torch.no_grad()
def test_controlnet(golden: Golden, kind: str, record_error) -> None:
    golden_case(golden, f"controlnet_{kind}")
    shared = [golden.tensor(f"controlnet_pose/{name}") for name in ("sample", "timestep", "encoder_hidden_states")]
    condition = golden.tensor(f"controlnet_{kind}/cond_u8").float() / 255
    residuals = merge_residuals([run_controlnet(golden.controlnet(kind), *shared, condition)])
    down, mid = golden.residuals(f"controlnet_{kind}")
    assert len(residuals.down) == len(down)
    for i, (ours, theirs) in enumerate(zip((*residuals.down, residuals.mid), (*down, mid), strict=True)):
        record_error(f"controlnet_{kind}", ours, theirs, MODULE_TOLERANCE, part=i)


@torch.no_grad()
def test_resampler(golden: Golden, record_error) -> None:
    golden_case(golden, "resampler")
    resampler = golden.resampler(resampler_shapes(golden.config["resampler"]))
    record_error(
        "resampler", resampler(golden.tensor("resampler/features")), golden.tensor("resampler/out"), MODULE_TOLERANCE
    )


@pytest.mark.parametrize("case", ["pipeline_pose", "pipeline_pose_face"])
def test_pipeline(golden: Golden, case: str, record_error) -> None:
    golden_case(golden, case)
    arguments, _ = golden.sampling(case)
    face = None
    if f"{case}/face_local" in golden.arrays.files:
        face = np.concatenate([golden.array(f"{case}/face_local"), golden.array(f"{case}/face_global")], axis=-1)
    pipeline = golden.pipeline(face=face is not None)
    pose, target = golden.array(f"{case}/pose"), golden.tensor(f"{case}/final_latents")
    latents = pipeline(None, pose, face, **arguments).frames
    assert [int(t) for t in pipeline.scheduler.timesteps] == golden.array(f"{case}/timesteps").astype(int).tolist()
    if float((latents - target).abs().max()) > LATENT_TOLERANCE:
        # The loop magnifies rounding (latents reach 35), and CPUs differ in it: then the same in float64 must be as
        # near to the golden numbers, which are float32 themselves, as to what this CPU computes in float32.
        exact = pipeline.to(torch.float64)(None, pose, face, **arguments).frames
        rounding = float((latents - exact).abs().max())
        assert rounding < MAX_ROUNDING
        record_error(f"{case} latents (float64)", exact, target, max(LATENT_TOLERANCE, rounding))
        pipeline.to(torch.float32)
    else:
        record_error(f"{case} latents", latents, target, LATENT_TOLERANCE)
    if f"{case}/video" in golden.arrays.files:
        video = torch.cat(list(pipeline.decode_frames(latents, chunk=3)))
        record_error(f"{case} video", video, golden.tensor(f"{case}/video")[0].transpose(0, 1), LATENT_TOLERANCE)


@pytest.mark.parametrize("case", ["pipeline_pose", "pipeline_pose_face"])
def test_windows(golden: Golden, case: str) -> None:
    golden_case(golden, case)
    arguments, meta = golden.sampling(case)
    context, overlap = arguments["context_frames"], arguments["context_overlap"]
    ours = [
        uniform_windows(meta["frames"], context=context, overlap=overlap, offset=offset)
        for offset in arguments["precomputed"].offsets
    ]
    assert ours == meta["windows"]


@pytest.mark.parametrize("case", ["pipeline_pose", "pipeline_pose_face"])
def test_similarity_prior(golden: Golden, case: str, record_error) -> None:
    """Every element of the published prior is the reference's or its blurred value, about half of each."""
    golden_case(golden, case)
    prior, reference = golden.tensor(f"{case}/prior"), golden.tensor(f"{case}/ref_latents")[:, :, 0]
    sharp, soft = reference[:, :, None], gaussian_blur(reference)[:, :, None]
    drawn = prior[:, :, 1:]
    nearer_soft = (drawn - soft).abs() < (drawn - sharp).abs()
    record_error(f"{case} prior", torch.where(nearer_soft, soft, sharp), drawn, 1e-5)
    assert 0.4 < nearer_soft.float().mean() < 0.6


def test_face_patches(golden: Golden) -> None:
    """Geometry is exact. The published patches treat each frame alone, so each is given alone here."""
    golden_case(golden, "face_patch")
    frames, landmarks = golden.array("face_patch/frames"), golden.array("face_patch/landmarks")
    seen = np.concatenate([landmarks, np.ones((*landmarks.shape[:2], 1), landmarks.dtype)], axis=-1)
    for i in range(len(frames)):
        one = slice(i, i + 1)
        local, global_ = face_patches(frames[one], seen[one])
        np.testing.assert_array_equal(
            face_boxes(seen[one], size=frames.shape[1:3])[0], golden.array("face_patch/bbox")[i]
        )
        np.testing.assert_array_equal(region_centers(landmarks[i]), golden.array("face_patch/centers")[i])
        np.testing.assert_array_equal(local[0], golden.array("face_patch/local")[i])
        np.testing.assert_array_equal(global_[0], golden.array("face_patch/global_")[i])


def test_crop(golden: Golden) -> None:
    golden_case(golden, "crop2ratio")
    target = tuple(golden.array("crop2ratio/target").tolist())
    for size, (w, h, left, top, width, height) in zip(
        golden.array("crop2ratio/sizes").tolist(), golden.array("crop2ratio/out").tolist(), strict=True
    ):
        assert (h, w) == tuple(size)
        assert tuple(top_quarter_crop(tuple(size), target).box) == (left, top, width, height)


def golden_case(golden: Golden, case: str) -> None:
    """Skip where the folder does not hold a case."""
    if case not in golden.cases:
        pytest.skip(f"{golden.folder} has no case {case}")
