"""The distribution: its name and version, its extras, and what it says about itself."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from cache import version as version_module
from cache.version import DISTRIBUTION, version

ROOT = Path(__file__).parents[2]
PACKAGES = ("cache", "extract", "train_head", "emi")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
SOURCES = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]


def test_the_distribution_has_a_name_of_its_own():
    assert PROJECT["name"] == DISTRIBUTION == "emi-mimicry"
    assert set(PROJECT["scripts"]) == {"emi"}


def test_the_version_is_that_of_the_distribution(monkeypatch):
    monkeypatch.setattr(metadata, "version", {DISTRIBUTION: "7.8.9"}.__getitem__)
    assert version() == "7.8.9"


def test_a_source_tree_without_an_installation_says_so(monkeypatch, tmp_path):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert version() == f"{PROJECT['version']}+source"
    monkeypatch.setattr(version_module, "__file__", str(tmp_path / "cache" / "version.py"))
    assert version() == "unknown"
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "thesis"\nversion = "3"\n')
    assert version() == "unknown"


def test_the_command_prints_it():
    result = subprocess.run([sys.executable, "-m", "emi", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == f"emi {version()}\n"


def test_nothing_tells_a_user_to_install_another_project():
    for path in (*PAGES, *SOURCES):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"pip[^\n]* install [^\n]*(?<![\w.-])emi(?![\w.-])", text), path
        assert not re.search(r"(?<![\w.-])emi\[[a-z]+\]", text), path
        named = {extra for group in re.findall(r"\bemi-mimicry\[([a-z,]+)\]", text) for extra in group.split(",")}
        assert named <= set(PROJECT["optional-dependencies"]), path


def test_type_checkers_may_read_the_packages():
    assert all((ROOT / package / "py.typed").is_file() for package in PACKAGES)


def test_the_citation_names_the_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["authors"] == [{"name": "emi contributors"}]
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    papers = {paper["identifiers"][0]["value"] for paper in citation["references"]}
    assert papers == {"arXiv:2403.11879", "arXiv:2403.12425"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_complete_the_commands(shell, monkeypatch):
    from typer.testing import CliRunner

    from emi.cli import app

    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    shown = CliRunner().invoke(app, ["--show-completion", shell], prog_name="emi").output
    assert "_EMI_COMPLETE=complete_" in shown
    environment = {
        "_EMI_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": "emi train",
        "COMP_CWORD": "1",
        "_TYPER_COMPLETE_ARGS": "emi train",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    assert "train-head" in CliRunner().invoke(app, [], prog_name="emi", env=environment).output
