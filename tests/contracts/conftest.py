"""The project as text and syntax trees, which contract tests read."""

import os
from pathlib import Path

import pytest

ROOMS = ("bundle", "cohort", "index", "training", "export", "service", "slimp")
# Folders that are made, not written.
NOT_OURS = frozenset(
    {
        "__pycache__",
        ".git",
        ".hypothesis",
        ".mypy_cache",
        ".pytest_cache",
        ".ruff_cache",
        ".venv",
        "build",
        "data",
        "dist",
        "htmlcov",
        "mutants",
        "node_modules",
        "work",
    }
)


@pytest.fixture(scope="session")
def project() -> Path:
    """The project's root folder."""
    return Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def room_files(project: Path) -> dict[str, list[Path]]:
    """Every Python file of each room."""
    return {room: sorted((project / room).rglob("*.py")) for room in ROOMS}


@pytest.fixture(scope="session")
def our_files(project: Path) -> list[Path]:
    """Every file of the project that a person wrote, hidden ones too."""
    found = []
    for folder, folders, files in os.walk(project):
        folders[:] = [f for f in folders if f not in NOT_OURS and not f.endswith(".egg-info")]
        # In a worktree .git is a file.
        found += [Path(folder) / file for file in files if file not in NOT_OURS]
    return sorted(found)
