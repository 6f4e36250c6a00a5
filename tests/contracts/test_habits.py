"""House rules that a linter does not know."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SHAPED_ROOMS = ("bundle", "index", "export", "service")
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
ARRAY = re.compile(r"\b(NDArray|ArrayLike|[A-Z]\w*Array|ndarray)\b")
AXIS = r"(?:[A-Z]\w?|[0-9]+|\.\.\.|size_px)"
SHAPE = re.compile(rf"\({AXIS}(?:, ?{AXIS})*,?\)|any shape")

# A container image has one home, and pip's cache in it is no machine of ours.
# Pieces, so that this file does not hold what it forbids.
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:work|root(?!/\.cache/)|home/\w+)/")
REGISTRY_HOSTS = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("download", "pytorch", "org"),
        ("docker", "io"),
        ("ghcr", "io"),
        ("quay", "io"),
        ("deb", "debian", "org"),
        ("conda", "anaconda", "org"),
    )
)
TEXT_SUFFIXES = frozenset(
    {
        "",
        ".cfg",
        ".conf",
        ".css",
        ".csv",
        ".example",
        ".html",
        ".in",
        ".ini",
        ".js",
        ".json",
        ".mako",
        ".md",
        ".py",
        ".rules",
        ".sh",
        ".svg",
        ".toml",
        ".txt",
        ".yaml",
        ".yml",
    }
)
# The last resort of a server: it logs what nobody foresaw and answers 500 with a constant body.
MAY_CATCH_ALL = {"service/middleware.py": 1}
ATTIC = frozenset({"utils", "util", "helpers", "helper", "common", "misc", "shared", "stuff"})


def public_functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield public functions of a module and public methods of its public classes."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node)
        if isinstance(node, FUNCTION) and not node.name.startswith("_"):
            yield node


def handles_arrays(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    annotations = [a.annotation for a in every] + [function.returns]
    return any(a is not None and ARRAY.search(ast.unparse(a)) for a in annotations)


def unshaped(source: str) -> list[str]:
    """Return the public functions that handle arrays and state no shape."""
    return [
        function.name
        for function in public_functions(ast.parse(source))
        if handles_arrays(function) and not SHAPE.search(ast.get_docstring(function) or "")
    ]


def test_the_reader_of_shapes_tells_a_stated_shape_from_none() -> None:
    def function(doc: str, name: str = "f", annotation: str = "FloatArray") -> str:
        return f'def {name}(x: {annotation}) -> int:\n    """{doc}"""\n'

    for doc in ("(N, D) float32", "(N,)", "(..., H, W, 3)", "(1, L)", "(3, H, W)", "any shape"):
        assert unshaped(function(doc)) == []
    for doc in ("", "An array.", "Rows (see above).", "(N rows)", "f(x)"):
        assert unshaped(function(doc)) == ["f"]
    for annotation in (
        "npt.NDArray[np.float32]",
        "np.ndarray",
        "npt.ArrayLike",
        "BoolArray | None",
    ):
        assert unshaped(function("", annotation=annotation)) == ["f"]
    assert unshaped(function("", annotation="list[int]")) == []
    assert unshaped(function("", name="_f")) == []
    method = "class C:\n    def g(self) -> FloatArray:\n        return 1\n"
    assert unshaped(method) == ["g"]
    assert unshaped(method.replace("class C", "class _C")) == []


@pytest.mark.parametrize("room", SHAPED_ROOMS)
def test_a_public_function_that_handles_arrays_states_their_shape(
    room: str, room_files: dict[str, list[Path]]
) -> None:
    missing = {
        path.name: names
        for path in room_files[room]
        if (names := unshaped(path.read_text(encoding="utf-8")))
    }
    assert missing == {}


def texts(files: list[Path]) -> dict[str, str]:
    """Return the content of every text file; `.gitignore` names the project's own folders."""
    left_out = (".gitignore", ".coverage")
    chosen = [f for f in files if f.suffix in TEXT_SUFFIXES and f.name not in left_out]
    return {str(file): file.read_text(encoding="utf-8") for file in chosen}


def test_the_reader_of_paths_knows_a_machine_path_from_others() -> None:
    for text in ("cd /work" + "/x", "'/root" + "/data'", "=/home" + "/ann/data"):
        assert MACHINE_PATH.search(text)
    for text in (
        "framework/x",
        "./work/x",
        "https://x.y/w",
        "/tmp/x",
        "a/root/b",
        "/data/x",
        "/root/.cache/pip",
    ):
        assert not MACHINE_PATH.search(text)


def test_no_file_names_a_place_on_somebodys_machine(our_files: list[Path]) -> None:
    content = texts(our_files)
    assert len(content) > 50
    assert [name for name, text in content.items() if MACHINE_PATH.search(text)] == []


def test_no_file_names_a_package_registrys_host(our_files: list[Path]) -> None:
    found = {
        name: host
        for name, text in texts(our_files).items()
        for host in REGISTRY_HOSTS
        if host in text
    }
    assert found == {}


def test_there_is_no_attic(our_files: list[Path], project: Path) -> None:
    places = {part for f in our_files for part in f.relative_to(project).with_suffix("").parts}
    assert not {place for place in places if place.casefold() in ATTIC}


def broad_handlers(source: str) -> list[int]:
    """Return the lines that catch every exception and do not raise it again."""
    broad = {"Exception", "BaseException"}
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = (
            {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)} if node.type else broad
        )
        raised = any(isinstance(n, ast.Raise) and n.exc is None for n in ast.walk(node))
        if caught & broad and not raised:
            lines.append(node.lineno)
    return lines


def test_the_reader_of_handlers_knows_a_broad_one() -> None:
    body = "try:\n    f()\nexcept{}:\n    {}\n"
    for caught in ("", " Exception", " (OSError, Exception) as e", " BaseException"):
        assert broad_handlers(body.format(caught, "pass")) == [3]
        assert broad_handlers(body.format(caught, "raise")) == []
    assert broad_handlers(body.format(" OSError", "pass")) == []


def test_no_room_swallows_every_exception(room_files: dict[str, list[Path]]) -> None:
    found = {
        f"{path.parent.name}/{path.name}": len(lines)
        for files in room_files.values()
        for path in files
        if (lines := broad_handlers(path.read_text(encoding="utf-8")))
    }
    assert found == MAY_CATCH_ALL
