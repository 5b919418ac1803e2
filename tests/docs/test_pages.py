"""Links lead to files and headings that exist; docs/map.md shows every folder of code and every make target."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MAP = (ROOT / "docs/map.md").read_text(encoding="utf-8")
PACKAGES = ("cache", "extract", "train_head", "emi")


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def mapped_paths() -> set[str]:
    """Paths of the file list in docs/map.md, whose lines are indented by two spaces per folder."""
    listing = re.search(r"^```\n(cache/.*?)^```", MAP, flags=re.M | re.S)
    assert listing
    paths, folders = set(), [""]
    for indent, name in re.findall(r"^( *)(\S+)", listing[1], flags=re.M):
        depth = len(indent) // 2
        path = folders[depth] + name
        folders[depth + 1 :] = [path]
        paths.add(path)
    return paths


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_to_files_and_headings_that_exist(page):
    for target in re.findall(r'(?:\]\(|src=")(?!https?:)([^)"\s]+)', page.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        linked = page.parent / file if file else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_every_page_is_linked_from_the_readme():
    linked = re.findall(r"\]\(docs/(\w[\w-]*\.md)", PAGES[0].read_text(encoding="utf-8"))
    assert {page.name for page in PAGES[1:]} == set(linked)


def test_the_map_names_only_what_exists():
    named = mapped_paths() | set(re.findall(r"`((?:cache|extract|train_head|emi)/[\w./]*)`", MAP))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_the_map_names_every_folder_of_code():
    folders = {
        f"{file.parent.relative_to(ROOT).as_posix()}/"
        for package in PACKAGES
        for file in (ROOT / package).rglob("*.py")
    }
    assert folders <= mapped_paths()


def test_the_map_names_every_make_target():
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), flags=re.M))
    table = MAP.partition("## Make targets")[2]
    assert targets - {"help"} <= set(re.findall(r"`([a-z-]+)`", table))
