"""Small real bundles, built from the parts of `tests/fakes.py`, that a test may damage."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from bundle.calibration import Calibration
from bundle.golden import Case, write_golden
from bundle.store import Bundle, open_bundle, seal
from tests.fakes import golden_cases, make_calibration, make_graphs, make_novelty, manifest_content

# A slow machine is no finding.
settings.register_profile("without_deadline", deadline=None)
settings.load_profile("without_deadline")


def write_files(
    folder: Path,
    *,
    graphs: Mapping[str, bytes | None] | None = None,
    golden: Mapping[str, Case] | None = None,
    calibration: Calibration | None = None,
) -> None:
    """Write a bundle's files without its manifest; a graph of None is left out."""
    made = {name: graph.SerializeToString() for name, graph in make_graphs().items()}
    folder.mkdir(parents=True)
    for name, data in {**made, **(graphs or {})}.items():
        if data is not None:
            (folder / f"{name}.onnx").write_bytes(data)
    cases = golden_cases() if golden is None else golden
    (folder / "golden.npz").write_bytes(write_golden(dict(cases)))
    (folder / "novelty.npz").write_bytes(make_novelty().to_bytes())
    text = (calibration or make_calibration()).model_dump_json()
    (folder / "calibration.json").write_text(text)
    (folder / "MODEL_CARD.md").write_text("# Three colours\n")


@pytest.fixture
def unsealed(tmp_path: Path) -> Callable[..., Path]:
    """Call it with keywords of `write_files` for a folder without a manifest."""

    def make(**changes: Any) -> Path:
        folder = tmp_path / "unsealed"
        write_files(folder, **changes)
        return folder

    return make


@pytest.fixture
def make_bundle(unsealed: Callable[..., Path]) -> Callable[..., Bundle]:
    """Call it with manifest values and keywords of `write_files` for a sealed, opened bundle."""

    def make(values: Mapping[str, Any] | None = None, **changes: Any) -> Bundle:
        folder = unsealed(**changes)
        seal(folder, manifest_content(**(values or {})))
        return open_bundle(folder)

    return make


@pytest.fixture(scope="session")
def pristine_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed bundle that no test changes."""
    folder = tmp_path_factory.mktemp("pristine") / "bundle"
    write_files(folder)
    seal(folder, manifest_content())
    return folder


@pytest.fixture(scope="session")
def pristine_bundle(pristine_folder: Path) -> Bundle:
    return open_bundle(pristine_folder)


@pytest.fixture
def bundle_folder(pristine_folder: Path, tmp_path: Path) -> Path:
    """A sealed bundle that a test may damage."""
    return Path(shutil.copytree(pristine_folder, tmp_path / "bundle"))
