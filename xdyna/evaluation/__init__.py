"""How good generated videos are: measured against the truth, frame by frame, inside regions or as a whole."""

from xdyna.evaluation.metrics.regions import (
    RegionQuality,
    TemporalEnergy,
    psnr,
    squared_error,
    ssim_map,
    temporal_energy,
)

__all__ = ["RegionQuality", "TemporalEnergy", "psnr", "squared_error", "ssim_map", "temporal_energy"]
