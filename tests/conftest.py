"""Shared fixtures: where optional reference data lies, and tiny models."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder with the real media used by some tests (XDYNA_SHARED_DIR, default ../shared); skips where absent."""
    folder = Path(os.environ.get("XDYNA_SHARED_DIR", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"reference media not found in {folder} (set XDYNA_SHARED_DIR)")
    return folder


@pytest.fixture(scope="session")
def parity_dir() -> Path:
    """Folder with golden tensors of the official implementation (XDYNA_PARITY_DIR, default ../shared/parity)."""
    folder = Path(os.environ.get("XDYNA_PARITY_DIR", ROOT.parent / "shared" / "parity"))
    if not (folder / "golden.npz").is_file():
        pytest.skip(f"golden tensors not found in {folder} (set XDYNA_PARITY_DIR)")
    return folder
