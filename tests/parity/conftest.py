"""Golden folders, and the table of largest errors printed at the end of the run."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.parity.golden import Golden

COMPACT = Path(__file__).parent.parent / "golden"
ERRORS: dict[tuple[str, str], tuple[float, float]] = {}


@pytest.fixture(params=["compact", "full"], scope="session")
def golden(request: pytest.FixtureRequest) -> Golden:
    if request.param == "compact":
        return Golden(COMPACT)
    return Golden(request.getfixturevalue("parity_dir"))


@pytest.fixture
def record_error(golden: Golden) -> Callable[..., None]:
    """Compares with golden numbers: same shape, largest absolute difference within the tolerance."""

    def check(
        case: str, ours: torch.Tensor, theirs: torch.Tensor, tolerance: float, *, part: int | None = None
    ) -> None:
        assert ours.shape == theirs.shape, f"{case} {part}: {tuple(ours.shape)} != {tuple(theirs.shape)}"
        error = float((ours - theirs).abs().max())
        key = ("tests/golden" if golden.folder == COMPACT else "full", case)
        ERRORS[key] = (max(error, ERRORS.get(key, (0.0, 0.0))[0]), tolerance)
        assert error <= tolerance, (
            f"{case} {'' if part is None else part}: max |difference| {error:.3g} > {tolerance:g}"
        )

    return check


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if ERRORS:
        terminalreporter.section("largest differences to the published implementation")
        for (folder, case), (error, tolerance) in sorted(ERRORS.items()):
            terminalreporter.write_line(f"{folder:<14}{case:<30}{error:10.2e}   (tolerance {tolerance:g})")
