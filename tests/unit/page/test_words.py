"""What the programs say names options; what the page says names its labels."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from xdyna.page.words import FIT, FORCE, for_visitors

XDYNA = Path(__file__).resolve().parents[3] / "xdyna"
OPTION = re.compile(r"(^|[\s(])--[a-z]|crop=")
# Where sentences come from that visitors see: (file, function or class; "" for all of it).
SOURCES = (
    ("pipelines/suitability.py", ""),
    ("pipelines/controls.py", ""),
    ("pipelines/plan.py", "_crop_notes"),
    ("pipelines/plan.py", "_contract_notes"),
    ("perception/face_patch.py", ""),
    ("perception/track.py", "_nobody"),
)


def sentences(name: str, part: str) -> Iterator[str]:
    """Texts of a source file that name options, with 7 for what is put into them; no docstrings."""
    tree: ast.AST = ast.parse((XDYNA / name).read_text())
    if part:
        (tree,) = [node for node in ast.walk(tree) if getattr(node, "name", "") == part]
    inside = {id(piece) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for piece in ast.walk(node)}
    documents = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(
                str(getattr(piece, "value", 7)) if isinstance(piece, ast.Constant) else "7" for piece in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside | documents:
            text = node.value
        else:
            continue
        if OPTION.search(text):
            yield text


@pytest.mark.parametrize(("name", "part"), SOURCES)
def test_visitors_are_told_of_no_options(name: str, part: str) -> None:
    found = list(sentences(name, part))
    assert found, "the list of sources is out of date"
    left = [for_visitors(text) for text in found]
    assert not [text for text in left if OPTION.search(text)]
    assert all(text.strip(" ,;") == text.strip() for text in left)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("too small; give --align, which scales the driving person, or choose one of the same size",
         f"too small; give “{FIT}”, which scales the driving person, or choose one of the same size"),
        ("give --align, or a --size of its aspect", f"give “{FIT}”"),
        ("Expected 0.25 or more of every check; --force goes on all the same, --preview FILE.png draws what would be "
         "animated", f"Expected 0.25 or more of every check; “{FORCE}” goes on all the same"),
        ("crop=person keeps as much as fits", "“What is kept of the image: around the person” keeps as much as fits"),
        ("a <b>plain</b> -- sentence", "a <b>plain</b> -- sentence"),
    ],
)  # fmt: skip
def test_words(said: str, shown: str) -> None:
    assert for_visitors(said) == shown
