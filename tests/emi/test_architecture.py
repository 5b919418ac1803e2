"""The one direction of imports, and what must stay light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("cache", "extract", "train_head", "emi")
MAY_IMPORT = {"cache": set(), "extract": {"cache"}, "train_head": {"cache"}, "emi": {"cache", "extract", "train_head"}}


def imported(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_lies_below_them(package):
    for path in (ROOT / package).rglob("*.py"):
        others = imported(path) & set(PACKAGES) - {package}
        assert others <= MAY_IMPORT[package], f"{path.relative_to(ROOT)} imports {others - MAY_IMPORT[package]}"


def statements(tree: ast.AST, on_import: bool) -> Iterator[ast.AST]:
    """All nodes; or those that run while a module is imported."""
    for node in ast.iter_child_nodes(tree):
        lazy = isinstance(node, ast.FunctionDef) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        )
        if not (on_import and lazy):
            yield node
            yield from statements(node, on_import)


def with_parents(module: str) -> set[str]:
    parts = module.split(".")
    return {".".join(parts[:n]) for n in range(1, len(parts) + 1)}


def modules_imported_by(*, on_import: bool) -> dict[str, set[str]]:
    """For each module of the four packages, those of the four that it imports, anywhere in its text.

    With `on_import`, instead those that run while it is imported, which includes the packages they are in.
    """
    files = {path.relative_to(ROOT).with_suffix(""): path for p in PACKAGES for path in (ROOT / p).rglob("*.py")}
    files = {".".join(name.parts).removesuffix(".__init__"): path for name, path in files.items()}
    graph = {}
    for module, path in files.items():
        found = set()
        for node in statements(ast.parse(path.read_text(encoding="utf-8")), on_import):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= inner & files.keys() or {node.module}
        if on_import:
            found = {name for other in found for name in with_parents(other)} - with_parents(module)
        graph[module] = (found & files.keys()) - {module}
    return graph


@pytest.mark.parametrize("on_import", [False, True])
def test_no_modules_import_each_other_in_a_circle(on_import):
    graph = modules_imported_by(on_import=on_import)
    while leaves := {module for module, imported in graph.items() if not imported & graph.keys()}:
        graph = {module: imported for module, imported in graph.items() if module not in leaves}
    while entries := graph.keys() - {name for imported in graph.values() for name in imported}:  # lead to a circle only
        graph = {module: imported for module, imported in graph.items() if module not in entries}
    assert sorted(graph) == []


def test_the_cache_never_imports_torch():
    assert not any({"torch", "transformers"} & imported(path) for path in (ROOT / "cache").rglob("*.py"))


@pytest.mark.parametrize(
    "code", ["import emi", "import cache", "import sys; sys.argv = ['emi', '--help']; import emi.cli; emi.cli.app()"]
)
def test_the_surface_loads_neither_torch_nor_transformers(code):
    verdict = "'HEAVY' if {'torch', 'transformers'} & set(sys.modules) else 'LIGHT'"
    check = f"import atexit, sys; atexit.register(lambda: print({verdict}))"
    result = subprocess.run([sys.executable, "-c", f"{check}\n{code}"], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "LIGHT"


def test_an_extraction_with_nothing_to_do_needs_no_torch(labelled, labelled_cache):
    arguments = ["emi", "extract", str(labelled / "audio"), "--cache", str(labelled_cache)]
    code = f"import sys; sys.argv = {arguments}; from emi.cli import app; app(standalone_mode=False)"
    code += "; print('HEAVY' if 'torch' in sys.modules else 'LIGHT')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "nothing to do" in result.stdout
    assert result.stdout.splitlines()[-1] == "LIGHT"


def test_importing_the_product_leaves_torchs_threads_alone():
    code = "import emi, torch; n = torch.get_num_threads(); import emi.prediction; assert torch.get_num_threads() == n"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_file_is_longer_than_400_lines():
    long = {
        p.name: n
        for d in (*PACKAGES, "tests")
        for p in (ROOT / d).rglob("*.py")
        if (n := len(p.read_text().splitlines())) > 400
    }
    assert not long
