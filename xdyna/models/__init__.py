"""Networks with plain keyword arguments: the video UNet and its parts, ControlNet helpers, the Resampler."""
