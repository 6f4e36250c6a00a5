"""One fitted run and its bundle for all tests of the room; exporting takes seconds a graph."""

from dataclasses import dataclass
from pathlib import Path

import pytest

import export.pack
from bundle.encoder import OnnxEncoders
from bundle.manifest import Manifest
from bundle.store import Bundle, open_bundle
from cohort.cohort import Cohort
from export.graphs import Graph, graphs_of, to_onnx
from tests.one_thread import one_thread as one_thread
from tests.training.squares import write_cohort, write_fitted_run
from training.encoders import TorchEncoders, load_encoders
from training.run import read_info, read_run_config


@dataclass(frozen=True)
class Exported:
    """A run, the manifest that exporting it gave, and its graphs as they left torch."""

    run: Path
    path: Path
    manifest: Manifest
    graphs: dict[str, bytes]
    stages: list[tuple[str, int, int]]


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_cohort(tmp_path_factory.mktemp("squares") / "cohort")


@pytest.fixture(scope="session")
def exported(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("export")
    run = write_fitted_run(folder, cohort)
    graphs: dict[str, bytes] = {}
    stages: list[tuple[str, int, int]] = []

    def kept(graph: Graph) -> bytes:
        graphs[graph.name] = to_onnx(graph)
        return graphs[graph.name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export.pack, "to_onnx", kept)
        manifest = export.pack.export_run(
            run, folder / "bundle", report=lambda *at: stages.append(at)
        )
    return Exported(run, folder / "bundle", manifest, graphs, stages)


@pytest.fixture(scope="session")
def bundle(exported: Exported) -> Bundle:
    return open_bundle(exported.path)


@pytest.fixture(scope="session")
def onnx_encoders(bundle: Bundle) -> OnnxEncoders:
    return OnnxEncoders(bundle, threads=1, device="cpu")


@pytest.fixture(scope="session")
def torch_encoders(exported: Exported) -> TorchEncoders:
    return load_encoders(exported.run)


@pytest.fixture(scope="session")
def graphs(exported: Exported, torch_encoders: TorchEncoders) -> list[Graph]:
    info, config = read_info(exported.run), read_run_config(exported.run)
    return graphs_of(torch_encoders, info.record_schema, config.image.input)
