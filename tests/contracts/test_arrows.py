"""Who may import whom, as a table: data and imports flow one way (DESIGN, section 1).

bundle ← cohort ← index ← training ← export
bundle ← index ← service
slimp → every room, inside its functions; nobody imports slimp or service
"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

MAY_IMPORT: dict[str, set[str]] = {
    "bundle": set(),
    "cohort": {"bundle"},
    "index": {"bundle", "cohort"},
    "training": {"bundle", "cohort", "index"},
    "export": {"bundle", "cohort", "index", "training"},
    "service": {"bundle", "index"},
    "slimp": {"bundle", "cohort", "index", "training", "export", "service"},
}
TORCH_FREE_ROOMS = ("bundle", "cohort", "index", "service")
TORCH_FREE_MODULES = (
    "bundle.encoder",
    "bundle.golden",
    "cohort.readers",
    "index.catalogue",
    "service.app",
    "slimp.cli",
)
TORCH = frozenset({"torch", "transformers", "accelerate", "kornia"})
# The CPU build of torch has no torchvision beside it.
NOWHERE = frozenset({"torchvision", "timm"})

Import = tuple[str, bool]


def imports(source: str) -> Iterator[Import]:
    """Yield each imported package's first name, and whether it is imported when the file is.

    Imports under `if TYPE_CHECKING` are not run and count as late ones.
    """
    yield from _imports_below(ast.parse(source), at_import=True)


def _imports_below(node: ast.AST, *, at_import: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        for name in _names(child):
            yield name.partition(".")[0], at_import
        late = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        late = late or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
        yield from _imports_below(child, at_import=at_import and not late)


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""] if node.level == 0 else []
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = ast.unparse(node.func).rpartition(".")[2]
        if called in ("import_module", "__import__"):
            return [str(node.args[0].value)]
    return []


def found_in(paths: list[Path]) -> set[tuple[str, str, bool]]:
    """Return (file, package, whether at import) of every import in the files."""
    return {
        (path.name, name, at_import)
        for path in paths
        for name, at_import in imports(path.read_text(encoding="utf-8"))
    }


def test_the_reader_of_imports_sees_every_kind() -> None:
    source = """
import os, index.vectors as v
from bundle.fields import Field
from . import sibling
if TYPE_CHECKING:
    import service
try:
    import kornia
except ImportError:
    pass
class C:
    import sklearn
def f():
    from training import run
    return importlib.import_module("export.pack"), __import__("torch")
"""
    assert set(imports(source)) == {
        ("os", True),
        ("index", True),
        ("bundle", True),
        ("service", False),
        ("kornia", True),
        ("sklearn", True),
        ("training", False),
        ("export", False),
        ("torch", False),
    }


def test_the_table_has_no_circle_and_nobody_imports_slimp_or_service_but_slimp() -> None:
    for room, allowed in MAY_IMPORT.items():
        assert room not in allowed
        for other in allowed:
            assert room not in MAY_IMPORT[other]
            assert MAY_IMPORT[other] <= allowed | {"cohort"}
        assert "slimp" not in allowed
        assert "service" not in allowed or room == "slimp"


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_every_room_of_the_map_exists(room: str, room_files: dict[str, list[Path]]) -> None:
    assert room_files[room]


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_the_map_allows(
    room: str, room_files: dict[str, list[Path]]
) -> None:
    seen = found_in(room_files[room])
    wrong = {i for i in seen if i[1] in MAY_IMPORT and i[1] not in MAY_IMPORT[room] | {room}}
    assert not wrong


def test_no_room_imports_tests_or_benchmarks(room_files: dict[str, list[Path]]) -> None:
    for files in room_files.values():
        assert not {i for i in found_in(files) if i[1] in ("tests", "benchmarks")}


def test_slimp_imports_rooms_inside_its_functions_only(room_files: dict[str, list[Path]]) -> None:
    rooms = set(MAY_IMPORT) - {"slimp"}
    assert not {i for i in found_in(room_files["slimp"]) if i[1] in rooms and i[2]}


@pytest.mark.parametrize("room", TORCH_FREE_ROOMS)
def test_a_torch_free_room_names_no_torch_package(
    room: str, room_files: dict[str, list[Path]]
) -> None:
    assert not {i for i in found_in(room_files[room]) if i[1] in TORCH}


def test_no_room_uses_torchvision_or_timm(room_files: dict[str, list[Path]]) -> None:
    for files in room_files.values():
        assert not {i for i in found_in(files) if i[1] in NOWHERE}


PROBE = """
import importlib, json, sys
loaded = {}
for name in sys.argv[2:]:
    importlib.import_module(name)
    loaded[name] = sorted(set(sys.argv[1].split(",")) & set(sys.modules))
print(json.dumps(loaded))
"""


def test_torch_free_modules_start_without_torch(project: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, ",".join(sorted(TORCH)), *TORCH_FREE_MODULES],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == {name: [] for name in TORCH_FREE_MODULES}
