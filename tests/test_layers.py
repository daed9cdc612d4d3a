"""Imports point up the list of architecture: a module knows those before it, never those after."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.layers import LAYERS, PACKAGE


def layer_of(module: str) -> int:
    return LAYERS.index(module.split(".")[1])


def imported(file: Path) -> set[str]:
    """Modules of spanwise that a file imports, with the names taken from the package itself."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "spanwise":
                found |= {f"spanwise.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
    return {name for name in found if name.startswith("spanwise.")}


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def module_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(("spanwise", *(part for part in parts if part != "__init__")))


@pytest.mark.parametrize("file", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_up(file: Path) -> None:
    own = module_of(file)
    down = {name for name in imported(file) if layer_of(name) > layer_of(own)}
    assert not down, f"{own} imports what comes after it: {sorted(down)}"


def test_no_two_files_import_each_other() -> None:
    """Not through others either, nor where only a type checker looks."""
    graph = {module_of(file): imported(file) for file in FILES}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, naming the circle


def test_runtime_knows_no_reinforcement_learning() -> None:
    words = r"rollout|reward|policy|critic|advantage|trajector|sampl|environment|engine"
    for file in (PACKAGE / "runtime").glob("*.py"):
        assert not re.findall(words, file.read_text(encoding="utf-8")), file.name


def test_only_the_command_line_knows_tyro() -> None:
    users = [p for p in FILES if "tyro" in p.read_text(encoding="utf-8").split()]
    assert {p.parent.name for p in users} == {"cli"}


@pytest.mark.processes
@pytest.mark.parametrize("module", ["spans", "advantages", "losses"])
def test_the_core_loads_torch_alone(module: str) -> None:
    """Of what is installed, importing the core loads nothing that torch does not load."""
    script = (
        "import sys, torch\n"
        "before = {m.split('.')[0] for m in sys.modules}\n"
        f"import spanwise.{module}\n"
        "after = {m.split('.')[0] for m in sys.modules}\n"
        "print(sorted(after - before - set(sys.stdlib_module_names) - {'spanwise'}))\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.processes
def test_tree_and_run_folder_need_the_standard_library_alone() -> None:
    script = (
        "import sys, spanwise.tree, spanwise.run.folder\n"
        "third = {m.split('.')[0] for m in sys.modules} - set(sys.stdlib_module_names)\n"
        "print('torch' in third, 'numpy' in third, 'rich' in third)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False", "False"]


def test_what_users_run_needs_none_of_the_tests() -> None:
    root = PACKAGE.parent
    files = [root / "README.md", *root.glob("bench/**/*.py"), *root.glob("docs/**/*.*")]
    imports = re.compile(r"^(>>> |\.\.\. )?\s*(from|import) tests\b", re.MULTILINE)
    texts = {f: f.read_text(encoding="utf-8") for f in files if f.suffix in (".py", ".md")}
    assert len(texts) > 30
    assert [str(f) for f, text in texts.items() if imports.search(text)] == []


def test_no_test_imports_another_test() -> None:
    """What several tests need stands in a module without tests, and not in a conftest."""
    tests = Path(__file__).parent
    files = sorted(tests.rglob("*.py"))
    names = (module for file in files for module in _tests_imported(file))
    assert len(files) > 100
    assert [n for n in names if n.rpartition(".")[2].startswith(("test_", "conftest"))] == []


def _tests_imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from (name for name in names if name.startswith(("tests", ".")))
