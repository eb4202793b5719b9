"""The part of a model card that is measured: between two marks, replaced as a whole."""

from pathlib import Path

from xdyna.core.atomic import atomic_output
from xdyna.core.errors import UsageError

BEGIN, END = "<!-- report: begin -->", "<!-- report: end -->"


def check_card(path: Path) -> None:
    """See that a card has its marks, before hours are spent on what goes between them.

    Args:
        path: of the card.

    Raises:
        UsageError: no such file, or not each mark once and in order.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--card {path} cannot be read ({error.strerror}); give a model card that is there") from error
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UsageError(f"--card {path} has no place for tables; put the lines '{BEGIN}' and '{END}' into it, once")


def fill_card(path: Path, content: str) -> None:
    """Replace what stands between the marks; nothing else changes.

    Args:
        path: of the card.
        content: Markdown.

    Raises:
        UsageError: see `check_card`.
    """
    check_card(path)
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    with atomic_output(path, overwrite=True) as temporary:
        temporary.write_text(f"{before}{BEGIN}\n\n{content.strip()}\n\n{END}{after}", encoding="utf-8")
