"""What MkDocs is told beyond mkdocs.yml, for `make docs`.

- Model cards, configs/README.md, CHANGELOG.md and CONTRIBUTING.md are pages, taken from where they lie.
- A link to a file that is no page becomes a link below `repo_url` where mkdocs.yml names one, else plain code.
- A built page that would load anything from another machine fails the build.
"""

import os
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DOCS = "docs"
ELSEWHERE = ("configs/README.md", "pretrained/README.md", "pretrained/*/README.md", "CHANGELOG.md", "CONTRIBUTING.md")
MEDIA = (".png", ".webp", ".jpg", ".svg", ".gif", ".mp4")
BRANCH = "main"

# [text](target "title") and ![text](target); targets of this project have no spaces and no brackets.
LINK = re.compile(
    r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\[\]]*\])*)\]\((?P<target>[^()\s]+)(?P<title>\s+\"[^\"]*\")?\)"
)
FENCE = re.compile(r"^ {0,3}(```+|~~~+)")
NOTE = re.compile(r"<!-- docs-test:.*?-->\n?", re.DOTALL)
CALLS = re.compile(
    r"<(?:script|img|iframe|source|video)\b[^>]*\ssrc=\"?(?:https?:)?//|"
    r"<link\b(?=[^>]*\srel=\"?(?:stylesheet|preconnect|preload|icon))[^>]*\shref=\"?(?:https?:)?//|"
    r"class=\"?mermaid",
)


def prose(text: str) -> Iterator[tuple[str, bool]]:
    """The lines of a Markdown page, each with whether it is prose and not inside a fence."""
    fence = ""
    for line in text.splitlines(keepends=True):
        mark = FENCE.match(line)
        if fence:
            yield line, False
            if mark and mark[1].startswith(fence) and not line.strip().strip("`~"):
                fence = ""
        elif mark:
            fence = mark[1]
            yield line, False
        else:
            yield line, True


def rewrite_links(text: str, change: Callable[[re.Match[str]], str]) -> str:
    """A page with its links changed; code spans and fences stay.

    Args:
        text: Markdown.
        change: gets a match of `LINK`, returns what takes its place.
    """

    def outside_code(line: str) -> str:
        # Links whose text is code (`x`) count as links: only spans that hold a whole link are left alone.
        spans = [m.span() for m in re.finditer(r"(`+)(?:(?!\1).)*\1", line)]

        def one(match: re.Match[str]) -> str:
            inside = any(start <= match.start() and match.end() <= end for start, end in spans)
            return match[0] if inside else change(match)

        return LINK.sub(one, line)

    return "".join(outside_code(line) if is_prose else line for line, is_prose in prose(text))


def site_path(path: str) -> str | None:
    """Where a file of the repository lies in the site, or None if it is no page.

    Args:
        path: from the root of the repository, with slashes.
    """
    if path.startswith(f"{DOCS}/") and not path.startswith(f"{DOCS}/site/"):
        return path.removeprefix(f"{DOCS}/")
    if any(Path(path).match(pattern) for pattern in ELSEWHERE):
        return path
    inside = any(Path(path).parent == Path(p).parent for p in pages_elsewhere())
    return path if inside and path.endswith(MEDIA) else None


def pages_elsewhere() -> list[str]:
    """Paths of the pages that do not lie in docs/, from the root of the repository."""
    return sorted(p.relative_to(ROOT).as_posix() for pattern in ELSEWHERE for p in ROOT.glob(pattern))


def site_link(match: re.Match[str], page: str, repo_url: str | None) -> str:
    """What a link of a page becomes in the site.

    Args:
        match: of `LINK`.
        page: the page's path from the root of the repository.
        repo_url: public address of the repository; None: it has none.
    """
    target, _, anchor = match["target"].partition("#")
    if not target or re.match(r"[a-z]+:", target):
        return match[0]
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
    there = site_path(path)
    if there is not None and (ROOT / path).is_file():
        here = site_path(page) or page
        new = posixpath.relpath(there, posixpath.dirname(here) or ".")
        return f"{match['image']}[{match['text']}]({new}{'#' + anchor if anchor else ''}{match['title'] or ''})"
    if path == "README.md":
        up = posixpath.relpath("index.md", posixpath.dirname(site_path(page) or page) or ".")
        return f"[{match['text']}]({up})"
    if repo_url:
        return f"[{match['text']}]({repo_url.rstrip('/')}/blob/{BRANCH}/{path})"
    text = match["text"].replace("`", "")
    return f"`{path}`" if text in (path, posixpath.basename(path), target) else f"{match['text']} (`{path}`)"


def site_page(text: str, page: str, repo_url: str | None) -> str:
    """A page as the site shows it: links, and Markdown inside <details>; the notes of docs-test are left out."""
    text = NOTE.sub("", text).replace("<details>", '<details markdown="1">')
    return rewrite_links(text, lambda match: site_link(match, page, repo_url))


# ---- what MkDocs calls ----


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie elsewhere, and the images beside them."""
    from mkdocs.structure.files import File

    for page in pages_elsewhere():
        beside = sorted((ROOT / page).parent.glob("*")) if page.count("/") > 1 else []
        media = [p.relative_to(ROOT).as_posix() for p in beside if p.suffix in MEDIA]
        for path in (page, *media):
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrite the links of a page."""
    path = Path(page.file.abs_src_path).resolve().relative_to(ROOT).as_posix()
    return site_page(markdown, path, config.repo_url or None)


def on_post_build(config: Any) -> None:
    """Refuse a site that calls other machines."""
    from mkdocs.exceptions import PluginError

    for path in sorted(Path(config.site_dir).rglob("*.html")):
        call = CALLS.search(path.read_text(encoding="utf-8"))
        if call:
            raise PluginError(f"{os.path.relpath(path)} would call another machine: {call[0]}")
