"""What was measured on this machine and is worth keeping: a JSON object in a file, an entry for each key."""

import datetime
import json
from pathlib import Path
from typing import Any

from xdyna.core.atomic import write_file


def recall(path: Path) -> dict[str, Any]:
    """All entries; none where the file is missing or damaged: then nothing was measured."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def remember(path: Path, entries: dict[str, Any]) -> None:
    """Add entries, or replace those of the same keys.

    Args:
        path: of the file, which appears complete or not at all.
        entries: JSON values by key.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, (json.dumps({**recall(path), **entries}, indent=1) + "\n").encode())


def today() -> str:
    """The day, ISO, UTC."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()
