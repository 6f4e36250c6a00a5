"""The error tree: as its docstring draws it, each class with its own code."""

import inspect
import re

import pytest

from bundle import errors
from bundle.errors import InvalidRecord, LesionError, UnknownField

DRAWN = re.compile(r"^[ │├└─]*([A-Z]\w+)(?: {2,}.*)?$")


def classes() -> list[type[LesionError]]:
    found = [c for _, c in inspect.getmembers(errors, inspect.isclass)]
    return [c for c in found if issubclass(c, LesionError)]


def drawn_parents() -> dict[str, str | None]:
    """Read the tree of the module docstring: class name to its parent's."""
    parents: dict[str, str | None] = {}
    branch: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines()[1:]:
        match = DRAWN.match(line)
        if match is None or not line.startswith("    "):
            continue
        depth = match.start(1)
        branch = [(d, name) for d, name in branch if d < depth]
        parents[match[1]] = branch[-1][1] if branch else None
        branch.append((depth, match[1]))
    return parents


def test_the_docstring_draws_the_tree_that_exists() -> None:
    expected = {c.__name__: c.__bases__[0].__name__ for c in classes() if c is not LesionError}
    assert drawn_parents() == {"LesionError": None, **expected}


def test_every_error_has_its_own_code_in_snake_case() -> None:
    codes = [c.code for c in classes()]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in codes)


def test_the_code_is_the_class_name_in_snake_case() -> None:
    for c in classes():
        assert c.code == re.sub(r"(?<!^)(?=[A-Z])", "_", c.__name__).lower()


def test_no_error_shadows_a_builtin() -> None:
    import builtins

    assert not [c.__name__ for c in classes() if hasattr(builtins, c.__name__)]


@pytest.mark.parametrize("kind", [InvalidRecord, UnknownField])
def test_a_record_error_names_its_field(kind: type[InvalidRecord]) -> None:
    assert kind("no").field is None
    error = kind("no", field="age")
    assert (str(error), error.field) == ("no", "age")
