"""The sampling pipeline: encode, denoise, decode."""
