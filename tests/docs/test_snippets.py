"""Every command and every Python block of the README and of docs/ runs as it is printed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.stem != "read-without-emi"),  # has tests of its own
]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)


@pytest.fixture
def workplace(labelled: Path, tmp_path: Path) -> Path:
    """What the pages assume: a folder `clips` and two label files."""
    shutil.copytree(labelled / "audio", tmp_path / "clips")
    for split in ("train", "valid"):
        shutil.copy(labelled / f"{split}.csv", tmp_path / f"{split}_split.csv")
    return tmp_path


def run(command: list[str], folder: Path) -> None:
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        command, cwd=folder, env=os.environ | {"PATH": tools}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_shell_commands_of_a_page_run(page, workplace):
    for block in blocks(page, "bash"):
        run(["bash", "-euc", block], workplace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_blocks_of_a_page_run(page, workplace):
    for block in blocks(page, "python"):
        run([sys.executable, "-W", "error", "-c", block], workplace)


def test_the_readme_names_every_target_of_the_makefile_that_it_uses():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    used = set(re.findall(r"^\$ make ([a-z-]+)", (ROOT / "README.md").read_text(), flags=re.M))
    assert used
    assert used <= targets
