"""The documents: every block says how it is tested, links go somewhere, images are shown, licenses are complete."""

import itertools
import json
import re
from pathlib import Path

import pytest
import yaml

from docs.site.hooks import LINK, prose, rewrite_links, site_link, site_page
from tests.docs.blocks import ROOT, TESTED, UNTESTED, Directive, blocks, pages, parse_directive
from tests.docs.sandbox import NEEDS
from tests.unit.test_architecture import FLOORS

PAGES = pages()
LINKED = sorted({*PAGES, "CHANGELOG.md"})


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it (and mkdocs.yml asks for)."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip().rstrip("#").strip()).replace("`", "").lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    found: dict[str, int] = {}
    names = set()
    for line, is_prose in prose(path.read_text(encoding="utf-8")):
        if is_prose and (match := re.match(r"#{1,6} (.+)", line)):
            name = slug(match[1])
            names.add(f"{name}-{found[name]}" if name in found else name)
            found[name] = found.get(name, 0) + 1
    return names


def link_problems(page: str, text: str) -> list[str]:
    problems = []

    def look(match: re.Match[str]) -> str:
        target, _, anchor = match["target"].partition("#")
        if re.match(r"[a-z]+:", target):
            return ""
        path = (ROOT / page).parent / target if target else ROOT / page
        if not path.exists():
            problems.append(f"{page}: {match['target']} is not there")
        elif anchor and (path.suffix != ".md" or anchor not in anchors(path)):
            problems.append(f"{page}: {match['target']} has no such heading")
        return ""

    rewrite_links(text, look)
    return problems


def block_problems(page: str, text: str | None = None) -> list[str]:
    """What is wrong with the blocks of a page."""
    problems = []
    for block in blocks(page, text):
        where = f"{page}:{block.line}"
        if block.language not in TESTED | UNTESTED:
            problems.append(f"{where}: give the block a language, one of {', '.join(sorted(TESTED | UNTESTED))}")
        elif block.language in TESTED and not block.directives:
            problems.append(f"{where}: no <!-- docs-test: ... --> directly above it")
        elif block.directives:
            try:
                jobs = block.jobs()
            except ValueError as error:
                problems.append(str(error))
                continue
            unknown = {name for _, directive in jobs for name in directive.needs} - NEEDS
            problems += [f"{where}: @{name}: there is no such preparation" for name in sorted(unknown)]
    return problems


def test_there_are_documents() -> None:
    assert {"README.md", "docs/index.md", "docs/finetune.md", "pretrained/xdyna-tiny/README.md"} <= set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_how_it_is_tested(page: str) -> None:
    assert not block_problems(page)


@pytest.mark.parametrize("page", PAGES)
def test_no_code_hides_in_indented_blocks(page: str) -> None:
    lines = [line for line, is_prose in prose((ROOT / page).read_text(encoding="utf-8")) if is_prose]
    hidden = [b for a, b in itertools.pairwise(lines) if not a.strip() and re.match(r" {4,}\S|\t", b)]
    assert not hidden


@pytest.mark.parametrize("page", LINKED)
def test_links_and_anchors_resolve(page: str) -> None:
    assert not link_problems(page, (ROOT / page).read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", LINKED)
def test_lists_begin_after_an_empty_line(page: str) -> None:
    """Python-Markdown, which makes the site, takes them for text otherwise."""
    lines = [line for line, is_prose in prose((ROOT / page).read_text(encoding="utf-8")) if is_prose]
    pairs = itertools.pairwise(lines)
    glued = [b for a, b in pairs if re.match(r"- |1\. ", b) and re.match(r"[A-Za-z*`(]", a)]
    assert page == "CHANGELOG.md" or not glued


def test_the_checks_see_what_is_wrong() -> None:
    bash = "```bash\nxdyna --help\nxdyna --version\n```\n"
    assert block_problems("x.md", bash)
    assert block_problems("x.md", "```\nxdyna --help\n```\n")
    (problem,) = block_problems("x.md", f"<!-- docs-test:\nrun\nrun\nrun\n-->\n{bash}")
    assert problem == "x.md:6: 2 commands, 3 directives"
    assert not block_problems("x.md", f"<!-- docs-test: run -->\n{bash}")
    assert block_problems("x.md", f"<!-- docs-test: run -->\n\n{bash}")  # not directly above
    assert block_problems("x.md", f"<!-- docs-test: run @magic -->\n{bash}")
    for text in ("skip", "walk", "write"):
        with pytest.raises(ValueError, match=text):
            parse_directive(text)
    assert parse_directive("run @easy --steps 1 @clip") == Directive("run", "--steps 1", ("easy", "clip"))
    assert link_problems("README.md", "[a](docs/nowhere.md)")
    assert link_problems("README.md", "[a](docs/faq.md#nowhere)")
    assert not link_problems("README.md", "[a](docs/faq.md#hands) `[b](nowhere.md)` [c](https://example.org)")


def test_commands_are_told_from_comments() -> None:
    text = "<!-- docs-test: run -->\n```bash\n# nothing\na --x 'b # c' \\\n  d  # e\n\n$ f \"#\"\n```\n"
    (block,) = blocks("x.md", text)
    assert [command for command, _ in block.jobs()] == ["a --x 'b # c' d", 'f "#"']


def test_every_image_is_shown() -> None:
    shown = set()
    for page in LINKED:
        for match in LINK.finditer((ROOT / page).read_text(encoding="utf-8")):
            shown.add(((ROOT / page).parent / match["target"]).resolve())
    images = [path for path in (ROOT / "docs" / "images").iterdir() if path.resolve() not in shown]
    assert not images


def test_inline_commands_exist() -> None:
    """Programs and targets that the text names, also outside of blocks."""
    from xdyna.cli.main import COMMANDS

    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    targets.add("eval-tiny")  # a former name, in dated measurements
    wrong = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        wrong += [f"{page}: make {name}" for name in re.findall(r"`make ([a-z-]+)", text) if name not in targets]
        wrong += [f"{page}: xdyna {name}" for name in re.findall(r"`xdyna ([a-z]+)", text) if name not in COMMANDS]
        scripts = re.findall(r"scripts/\w+\.(?:py|sh)", text)
        wrong += [f"{page}: {name}" for name in scripts if not (ROOT / name).is_file()]
    assert not wrong


# ---- the site ----


def linked(text: str, page: str, repo_url: str | None = None) -> str:
    return rewrite_links(text, lambda match: site_link(match, page, repo_url))


@pytest.mark.parametrize(
    ("page", "text", "expected"),
    [
        ("docs/training.md", "[a](data.md#scale)", "[a](data.md#scale)"),
        ("docs/training.md", "[a](../configs/README.md)", "[a](configs/README.md)"),
        ("docs/training.md", "[x/t.py](../xdyna/config/train.py)", "x/t.py (`xdyna/config/train.py`)"),
        ("docs/training.md", "[train.py](../xdyna/config/train.py)", "`xdyna/config/train.py`"),
        ("configs/README.md", "[a](../docs/modes.md)", "[a](../modes.md)"),
        ("pretrained/xdyna-tiny/README.md", "![a](curves.png)", "![a](curves.png)"),
        ("docs/index.md", "[a](https://example.org)", "[a](https://example.org)"),
        ("docs/index.md", "`[a](../xdyna)`", "`[a](../xdyna)`"),
    ],
)
def test_links_of_the_site(page: str, text: str, expected: str) -> None:
    assert linked(text, page) == expected


def test_sources_are_links_where_the_repository_has_an_address() -> None:
    there = linked("[t](../xdyna/config/train.py)", "docs/training.md", "https://example.org/x")
    assert there == "[t](https://example.org/x/blob/main/xdyna/config/train.py)"


def test_the_site_shows_no_notes() -> None:
    page = site_page("<!-- docs-test:\nrun\nskip why\n-->\n```bash\na\nb\n```\n<details>x</details>", "docs/a.md", None)
    assert page == '```bash\na\nb\n```\n<details markdown="1">x</details>'


def test_the_site_has_every_page() -> None:
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)
    config = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)
    text = yaml.safe_dump(config["nav"])
    missing = [page for page in PAGES if page != "README.md" and page.removeprefix("docs/") not in text]
    assert not missing


# ---- the diagram, licenses ----


def test_the_diagram_has_the_floors_in_order() -> None:
    text = (ROOT / "docs" / "images" / "architecture.svg").read_text()
    height = {name: int(y) for y, name in re.findall(r'y="(\d+)" class="name">(\w+)', text)}
    assert set(height) == {"cli", *(package for floor in FLOORS for package in floor)}
    levels = [{height[package] for package in floor} for floor in FLOORS]
    assert all(len(level) == 1 for level in levels)
    assert [min(level) for level in levels] == sorted((min(level) for level in levels), reverse=True)


def test_licenses_are_complete() -> None:
    from xdyna.evaluation.networks.registry import EXTRACTORS

    text = (ROOT / "docs" / "licenses.md").read_text()
    rows = {cells[0].strip("`"): cells for line in text.splitlines() if (cells := line.strip("| ").split(" | "))}
    for group in yaml.safe_load((ROOT / "pretrained" / "registry.yaml").read_text())["repositories"]:
        assert rows[group["repo"]][-1] == group["license"]
    for spec in EXTRACTORS.values():
        for file in spec.files:
            assert rows[file.name][-1] == file.license
    for shipped in re.findall(
        r'^"((?:pretrained|assets)(?:/[a-z-]+)?)" = ', (ROOT / "pyproject.toml").read_text(), re.M
    ):
        for folder in [shipped] if shipped != "assets" else [f"assets/{p.name}" for p in (ROOT / "assets").iterdir()]:
            assert rows[folder][-1] == "Apache-2.0"


def without_license(rows: list[str]) -> list[str]:
    """Media, numbers and weights of the checkout that no row of docs/licenses.md names. Args: rows: first cells."""
    named = [ROOT / path for row in rows for path in re.findall(r"`([\w./-]+)`", row)]
    kinds = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".svg", ".mp4", ".npz", ".npy", ".safetensors", ".onnx", ".pt"}
    files = []
    for folder in ("assets", "docs", "integrations", "pretrained", "tests"):
        for path in (ROOT / folder).rglob("*"):
            fetched = path.relative_to(ROOT).parts[:2] in {("pretrained", n) for n in ("official", "xdyna", "DWPose")}
            if path.suffix in kinds and path.is_file() and not fetched:
                files.append(path)
    assert len(files) > 40
    return [str(path.relative_to(ROOT)) for path in files if not any(path.is_relative_to(name) for name in named)]


def test_everything_in_the_box_has_a_license() -> None:
    text = (ROOT / "docs" / "licenses.md").read_text().split("## Fetched")[0]
    rows = [line.strip("| ").split(" | ")[0] for line in text.splitlines() if line.startswith("| `")]
    assert not without_license(rows)
    assert without_license([row for row in rows if "comfyui`" not in row]) == [
        "integrations/comfyui/example_workflows/xdyna_sample.jpg"
    ]


# ---- what stands around the project ----


def test_the_workflow_takes_the_steps_of_continuous_integration() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    made = {name for step in steps for name in re.findall(r"make ([a-z-]+)", step.get("run", ""))}
    asked = set(re.findall(r"^(?:  )?make ([a-z-]+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE))
    assert asked == {"venv", "test", "test-long", "lint", "test-fast"}
    assert made == asked | {"docs", "docs-test"}
    assert workflow["jobs"]["tests"]["strategy"]["matrix"]["python"] == ["3.11", "3.13"]


def test_templates_hooks_and_images_name_what_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text())
        assert path.name == "config.yml" or {"name", "description", "body"} <= set(form)
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["id"] for hook in hooks] == ["ruff", "ruff-format", "mypy"]
    for path in (ROOT / "docker").glob("*.Dockerfile"):
        text = path.read_text()
        assert "image itself is unbuilt" in text
        assert set(re.findall(r"\bmake ([a-z-]+)", text.replace("make python3", ""))) <= targets


def test_the_notebook_is_small_and_without_magic() -> None:
    path = ROOT / "docs" / "quickstart.ipynb"
    assert path.stat().st_size < 100_000
    notebook = json.loads(path.read_text())
    assert notebook["nbformat"] == 4
    for cell in notebook["cells"]:
        assert not cell.get("outputs")
        code = "".join(cell["source"])
        assert cell["cell_type"] == "markdown" or not re.search(r"^\s*[!%]", code, re.MULTILINE)
