import copy
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

import export.pack
from bundle.encoder import GRAPHS, OnnxEncoders
from bundle.errors import BundleError, ParityError, TrainingError
from bundle.golden import check_golden
from bundle.images import decode_image, prepare_image
from bundle.manifest import RESEARCH_USE
from bundle.records import encode_records
from bundle.store import Bundle
from cohort.cohort import Cohort
from export.card import model_card
from export.graphs import Graph, graphs_of, to_onnx
from export.pack import LIMITS, NO_CONTEXT, export_run
from export.parity import BATCHES
from tests.export.conftest import Exported
from tests.training.squares import LABELS
from training.data import Squares, load_rows
from training.encoders import TorchEncoders
from training.features import embed_rows, record_features
from training.heads import Classifier
from training.image_encoder import ImageEncoder
from training.model import Slimp
from training.run import SEEN, read_info, read_run_config, read_seen

FITTED = ("calibration.json", "novelty.npz", "appearance.npz")


def perturbed(model: bytes, by: float) -> bytes:
    """Return an ONNX model whose largest weight is another by a share."""
    proto = onnx.load_from_string(model)
    tensor = max(
        (t for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT),
        key=lambda t: int(np.prod(t.dims)),
    )
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * (1 + by), tensor.name))
    data: bytes = proto.SerializeToString()
    return data


def test_a_bundle_opens_and_answers_its_golden_vectors(
    exported: Exported, bundle: Bundle, onnx_encoders: OnnxEncoders
) -> None:
    assert bundle.manifest == exported.manifest
    differences = check_golden(bundle, onnx_encoders)
    assert set(differences) == set(GRAPHS)
    assert max(differences.values()) < 1e-5
    info = read_info(exported.run)
    assert bundle.manifest.labels == info.labels == LABELS
    assert bundle.manifest.record_schema == info.record_schema
    assert bundle.manifest.run_config_sha256 == read_run_config(exported.run).sha256()
    assert bundle.manifest.limits == LIMITS
    assert bundle.manifest.intended_use == RESEARCH_USE
    assert read_seen(bundle.read(SEEN)) == info.seen
    expected = {*(f"{name}.onnx" for name in GRAPHS), *FITTED}
    assert set(bundle.manifest.files) == expected | {"golden.npz", "MODEL_CARD.md", SEEN}
    for name in FITTED:
        assert bundle.read(name) == (exported.run / name).read_bytes()


def test_the_parity_report_covers_every_graph_and_rung(exported: Exported) -> None:
    report = exported.manifest.parity
    assert all(case.max_abs_difference <= case.tolerance for case in report)
    cases = {name: [c.case for c in report if c.graph == name] for name in GRAPHS}
    batches = [f"batch {count}" for count in BATCHES]
    nothing = [*batches, "everything missing"]
    assert cases["metadata_encoder"] == cases["patient_encoder"] == cases["classifier"] == nothing
    assert cases["context"] == [*batches, "one lesion", "64 lesions"]
    assert cases["image_encoder"][:5] == [*batches, "black", "extreme pixels"]
    assert cases["image_encoder"][5] == "file bytes to embedding"
    assert cases["image_encoder"][6].startswith("nearest 10 of 40")
    assert exported.stages == [
        *(("export", number, 5) for number in range(1, 6)),
        ("parity", len(report), len(report)),
    ]


def test_torch_and_onnx_agree_from_file_bytes_to_answer(
    exported: Exported, cohort: Cohort, torch_encoders: TorchEncoders, onnx_encoders: OnnxEncoders
) -> None:
    spec = onnx_encoders.manifest.image_input
    rows = load_rows(cohort, ["test"], LABELS)
    first = embed_rows(torch_encoders, Squares(cohort, rows, spec))
    files = cohort.images(rows.position.tolist())
    pixels = np.stack([prepare_image(decode_image(data), spec) for data in files])
    second = onnx_encoders.embed_images(pixels)
    np.testing.assert_allclose(second, first, atol=1e-5)
    schema = read_info(exported.run).record_schema
    ours, theirs = (
        record_features(e, rows.records, schema) for e in (onnx_encoders, torch_encoders)
    )
    np.testing.assert_allclose(ours.lesion, theirs.lesion, atol=1e-5)
    np.testing.assert_allclose(ours.patient, theirs.patient, atol=1e-5)
    seen = np.arange(len(rows)) % 2 == 0
    logits = [
        encoders.classify(
            first,
            theirs.lesion,
            theirs.patient,
            image_present=~seen,
            lesion_present=seen,
            patient_present=seen,
        )
        for encoders in (onnx_encoders, torch_encoders)
    ]
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_the_number_of_lesions_and_of_rows_is_free(
    count: int, torch_encoders: TorchEncoders, onnx_encoders: OnnxEncoders
) -> None:
    rng = np.random.default_rng(count)
    image, record = rng.normal(0, 1, (2, count, 16)).astype(np.float32)
    answers = [
        encoders.context(
            image,
            record,
            lesion_present=np.arange(count) % 2 == 0,
            malignancy_logit=image[:, 0],
            patient_record=record[0],
            patient_present=count % 2 == 0,
        )
        for encoders in (onnx_encoders, torch_encoders)
    ]
    assert answers[0].shape == (count,)
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-5)
    fields = onnx_encoders.manifest.record_schema.at("lesion")
    encoded = encode_records([{}] * count, fields)
    assert onnx_encoders.embed_records(encoded, "lesion").shape == (count, 16)


def test_mirror_images_are_in_the_graph_for_any_number_of_pictures(graphs: list[Graph]) -> None:
    tower = copy.deepcopy(graphs[0].module)
    assert isinstance(tower, ImageEncoder)
    tower.views = 4
    graph = dataclasses.replace(graphs[0], module=tower)
    session = onnxruntime.InferenceSession(to_onnx(graph))
    for count in (1, 2, 5):
        (pixels,) = graph.example(count, torch.Generator().manual_seed(count))
        (answer,) = session.run(None, {"pixels": pixels.numpy()})
        with torch.inference_mode():
            np.testing.assert_allclose(answer, tower(pixels).numpy(), atol=1e-5)
        assert not np.allclose(answer, graphs[0].module(pixels).detach().numpy(), atol=1e-3)


@pytest.mark.parametrize(
    ("name", "by"),
    [("image_encoder", 0.5), ("classifier", 0.5), ("context", 0.5), ("context", 2e-3)],
)
def test_a_graph_of_other_weights_is_refused_and_nothing_is_left(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, by: float
) -> None:
    """The larger error is caught by the golden vectors, the smaller by the ladder."""

    def broken(graph: Graph) -> bytes:
        model = exported.graphs[graph.name]
        return perturbed(model, by) if graph.name == name else model

    monkeypatch.setattr(export.pack, "to_onnx", broken)
    with pytest.raises(ParityError, match=name):
        export_run(exported.run, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_patient_ids_says_that_it_has_no_context(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(exported.run, run)
    (run / "context.safetensors").unlink()
    monkeypatch.setattr(export.pack, "to_onnx", lambda graph: exported.graphs[graph.name])
    manifest = export_run(run, tmp_path / "bundle")
    assert "context.onnx" not in manifest.files
    assert manifest.limits == (*LIMITS, NO_CONTEXT)
    assert NO_CONTEXT in (tmp_path / "bundle" / "MODEL_CARD.md").read_text()


def test_a_run_that_is_not_fitted_or_a_folder_that_is_taken_is_refused(
    exported: Exported, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="run `slimp fit` first"):
        export_run(exported.run.parent / "pretrained", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    with pytest.raises(BundleError, match="exists"):
        export_run(exported.run, exported.path)


def test_a_level_without_fields_has_no_graph(
    exported: Exported, torch_encoders: TorchEncoders
) -> None:
    info, config = read_info(exported.run), read_run_config(exported.run)
    lesion = info.record_schema.model_copy(update={"fields": info.record_schema.at("lesion")})
    towers = Slimp(config, lesion)
    encoders = TorchEncoders(towers, Classifier(16, 3, hidden=8, dropout=0), None)
    names = [graph.name for graph in graphs_of(encoders, lesion, config.image.input)]
    assert names == ["image_encoder", "metadata_encoder", "classifier"]


def test_an_exporter_without_an_answer_is_an_error(
    graphs: list[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*args: Any, **options: Any) -> None:
        return None

    monkeypatch.setattr(torch.onnx, "export", nothing)
    with pytest.raises(RuntimeError, match="no program"):
        to_onnx(graphs[0])


def test_the_card_says_what_the_bundle_is_and_is_not(exported: Exported, bundle: Bundle) -> None:
    card = bundle.read("MODEL_CARD.md").decode()
    assert RESEARCH_USE in card
    assert "Not a medical device" in card
    for limit in LIMITS:
        assert limit in card
    assert "Labels: nv, mel, bcc. Counted as malignant: mel, bcc." in card
    assert "squares: 100 images of 80 lesions, 20 patients; CC0-1.0; drawn by the tests" in card
    for condition in ("given", "extrapolated", "missing"):
        # Ten photographs of eight lesions calibrated it.
        assert f"| {condition} | 8 |" in card
    assert card.count("| sensitivity_95 |") == card.count("| specificity_95 |") == 3
    info = read_info(exported.run)
    lone = info.model_copy(update={"data": (info.data[0].model_copy(update={"patients": None}),)})
    assert "no patient ids" in model_card(lone, bundle.calibration, 0.0, ())
