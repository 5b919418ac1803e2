"""Another module named as one of emi's packages is in the way: said in one sentence, with both places."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("place", ["cache.py", "extract/__init__.py", "train_head.py"])
def test_the_command_says_in_one_sentence_what_is_in_the_way(tmp_path, place):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).touch()
    name = place.partition("/")[0].removesuffix(".py")
    result = run(tmp_path, "-m", "emi", "--help")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"emi: emi needs its own module {name!r} ({ROOT / name}), and Python finds another one")
    assert f"({tmp_path / place})" in line


@pytest.mark.parametrize("module", ["emi", "extract", "train_head", "extract.plan"])
def test_an_import_names_both_places(tmp_path, module):
    (tmp_path / "cache.py").touch()
    (tmp_path / "script.py").write_text(f"import {module}\n")
    result = run(tmp_path, "script.py")
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert str(ROOT / "cache") in last
    assert str(tmp_path / "cache.py") in last


def test_a_module_that_is_loaded_already_is_named(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "__init__.py").touch()
    path = f"import sys; sys.path.insert(0, {str(tmp_path)!r})"
    result = run(ROOT, "-c", f"{path}; import cache; sys.path.pop(0); import emi")
    assert str(tmp_path / "cache" / "__init__.py") in result.stderr.splitlines()[-1]
    made = run(ROOT, "-c", "import sys, types; sys.modules['extract'] = types.ModuleType('extract'); import emi")
    assert "(made by a program, without a file)" in made.stderr.splitlines()[-1]


def test_a_folder_of_data_of_such_a_name_is_in_nobodys_way(tmp_path):
    """As beside an editable installation, whose packages are found last."""
    for name in ("cache", "extract"):
        (tmp_path / name).mkdir()
    code = f"""
import importlib.util, sys
class Editable:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in ("cache", "emi", "extract", "train_head"):
            folder = f"{ROOT}/{{name}}"
            place = f"{{folder}}/__init__.py"
            return importlib.util.spec_from_file_location(name, place, submodule_search_locations=[folder])
sys.path.insert(0, {str(tmp_path)!r})
sys.meta_path.append(Editable)
import emi
import cache.errors, extract.errors
print(cache.__file__)
"""
    result = run(tmp_path, "-S", "-I", "-c", code)  # only the standard library
    assert result.stdout == f"{ROOT / 'cache' / '__init__.py'}\n", result.stderr


def test_what_is_found_here_is_emis_own():
    assert importlib.util.find_spec("cache").origin == str(ROOT / "cache" / "__init__.py")
