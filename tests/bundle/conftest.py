"""A tiny real bundle: ONNX graphs that a person can predict, D = 3, C = 3, two fields a level.

image_encoder: mean of each channel. Record encoders: the present values times a fixed matrix.
classifier: the sum of the present embeddings. context: the lesion's own log odds, plus the sum of
its embeddings and the patient's.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bundle.calibration import CONDITIONS, Calibration, ConditionCalibration, Conformal
from bundle.fields import Field, FieldSchema
from bundle.golden import write_golden
from bundle.images import ImageInput
from bundle.manifest import Manifest
from bundle.quality import QualityThresholds
from bundle.store import Bundle, open_bundle, seal

FloatArray = npt.NDArray[np.float32]

LABELS = ("nevus", "melanoma", "keratosis")
WEIGHTS = np.asarray([[1, 2, 3], [10, 20, 30]], np.float32)

SCHEMA = FieldSchema(
    fields=(
        Field(
            name="diameter_mm",
            level="lesion",
            kind="numeric",
            unit="mm",
            minimum=0,
            maximum=100,
            mean=5,
            std=2,
            aliases=("size",),
        ),
        Field(name="bleeding", level="lesion", kind="boolean"),
        Field(
            name="age_years",
            level="patient",
            kind="numeric",
            unit="years",
            minimum=0,
            maximum=120,
            mean=50,
            std=20,
        ),
        Field(
            name="sex",
            level="patient",
            kind="categorical",
            categories=("female", "male"),
            category_aliases={"f": "female", "m": "male"},
        ),
    )
)

FLOAT, BOOL = TensorProto.FLOAT, TensorProto.BOOL
Input = tuple[str, int, list[Any]]


def graph_bytes(
    inputs: list[Input],
    nodes: list[onnx.NodeProto],
    output_shape: list[Any],
    constants: dict[str, npt.NDArray[Any]],
) -> bytes:
    """Return an ONNX model whose one output is called "answer"."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info("answer", FLOAT, output_shape)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def image_encoder() -> bytes:
    mean = helper.make_node("ReduceMean", ["pixels"], ["answer"], axes=[2, 3], keepdims=0)
    return graph_bytes([("pixels", FLOAT, ["N", 3, "H", "W"])], [mean], ["N", 3], {})


def record_encoder() -> bytes:
    nodes = [
        helper.make_node("Where", ["present", "values", "zero"], ["known"]),
        helper.make_node("MatMul", ["known", "weights"], ["answer"]),
    ]
    inputs: list[Input] = [("values", FLOAT, ["N", 2]), ("present", BOOL, ["N", 2])]
    constants: dict[str, npt.NDArray[Any]] = {"zero": np.zeros(1, np.float32), "weights": WEIGHTS}
    return graph_bytes(inputs, nodes, ["N", 3], constants)


def classifier() -> bytes:
    towers = ("image", "lesion_record", "patient_record")
    flags = ("image_present", "lesion_present", "patient_present")
    nodes = []
    for tower, flag in zip(towers, flags, strict=True):
        nodes.append(helper.make_node("Unsqueeze", [flag, "last"], [f"{flag}_row"]))
        nodes.append(helper.make_node("Where", [f"{flag}_row", tower, "zero"], [f"{tower}_known"]))
    nodes.append(helper.make_node("Sum", [f"{tower}_known" for tower in towers], ["answer"]))
    constants: dict[str, npt.NDArray[Any]] = {
        "zero": np.zeros(1, np.float32),
        "last": np.asarray([1], np.int64),
    }
    inputs: list[Input] = [
        *((tower, FLOAT, ["N", 3]) for tower in towers),
        *((flag, BOOL, ["N"]) for flag in flags),
    ]
    return graph_bytes(inputs, nodes, ["N", 3], constants)


def context() -> bytes:
    nodes = [
        helper.make_node("ReduceSum", ["image", "last"], ["image_sum"], keepdims=0),
        helper.make_node("ReduceSum", ["lesion_record", "last"], ["record_sum"], keepdims=0),
        helper.make_node("Where", ["lesion_present", "record_sum", "zero"], ["record_known"]),
        helper.make_node("ReduceSum", ["patient_record", "last"], ["patient_sum"], keepdims=0),
        helper.make_node("Where", ["patient_present", "patient_sum", "zero"], ["patient_known"]),
        helper.make_node("Unsqueeze", ["patient_known", "last"], ["patient_row"]),
        helper.make_node(
            "Sum", ["malignancy_logit", "image_sum", "record_known", "patient_row"], ["total"]
        ),
        helper.make_node("Where", ["mask", "total", "zero"], ["answer"]),
    ]
    constants: dict[str, npt.NDArray[Any]] = {
        "zero": np.zeros(1, np.float32),
        "last": np.asarray([-1], np.int64),
    }
    inputs: list[Input] = [
        ("image", FLOAT, [1, "L", 3]),
        ("lesion_record", FLOAT, [1, "L", 3]),
        ("lesion_present", BOOL, [1, "L"]),
        ("malignancy_logit", FLOAT, [1, "L"]),
        ("mask", BOOL, [1, "L"]),
        ("patient_record", FLOAT, [1, 3]),
        ("patient_present", BOOL, [1]),
    ]
    return graph_bytes(inputs, nodes, [1, "L"], constants)


GRAPH_BYTES: dict[str, Callable[[], bytes]] = {
    "image_encoder": image_encoder,
    "metadata_encoder": record_encoder,
    "patient_encoder": record_encoder,
    "classifier": classifier,
    "context": context,
}


def make_golden() -> dict[str, dict[str, npt.NDArray[Any]]]:
    """Return inputs and, worked out by hand in NumPy, the answers of every graph."""
    rng = np.random.default_rng(5)

    def normal(*shape: int) -> FloatArray:
        return rng.normal(size=shape).astype(np.float32)

    pixels, values, towers = normal(2, 3, 4, 5), normal(2, 2), normal(3, 2, 3)
    present = np.asarray([[True, False], [True, True]])
    flags = np.asarray([[True, False], [False, True], [True, True]])
    images, records, own, patient = normal(1, 2, 3), normal(1, 2, 3), normal(1, 2), normal(1, 3)
    record_case = {
        "values": values,
        "present": present,
        "output": np.where(present, values, np.float32(0)) @ WEIGHTS,
    }
    return {
        "image_encoder": {"pixels": pixels, "output": pixels.mean(axis=(2, 3))},
        "metadata_encoder": record_case,
        "patient_encoder": record_case,
        "classifier": {
            "image": towers[0],
            "lesion_record": towers[1],
            "patient_record": towers[2],
            "image_present": flags[0],
            "lesion_present": flags[1],
            "patient_present": flags[2],
            "output": (towers * flags[:, :, None]).sum(axis=0),
        },
        "context": {
            "image": images,
            "lesion_record": records,
            "lesion_present": np.asarray([[True, False]]),
            "malignancy_logit": own,
            "mask": np.asarray([[True, True]]),
            "patient_record": patient,
            "patient_present": np.asarray([True]),
            "output": own
            + images.sum(axis=2)
            + records.sum(axis=2) * np.asarray([[1, 0]], np.float32)
            + patient.sum(),
        },
    }


def make_calibration(**changes: Any) -> Calibration:
    fitted = ConditionCalibration(
        temperature=2,
        bias=(0, 0.5, -0.5),
        conformal=Conformal(
            alpha=0.1, quantiles=(0.9, 0.8, 0.7), scope=("label", "label", "marginal"), lesions=40
        ),
        expected_calibration_error=0.02,
        lesions=120,
    )
    content: dict[str, Any] = {
        "conditions": dict.fromkeys(CONDITIONS, fitted),
        "prevalence": {"nevus": 0.7, "melanoma": 0.2, "keratosis": 0.1},
        "quality": QualityThresholds(
            min_side_px=32,
            sharpness_min=0.01,
            brightness_min=0.1,
            brightness_max=0.95,
            contrast_min=0.02,
        ),
        "novelty_threshold": 3.0,
        **changes,
    }
    return Calibration(**content)


def make_content(**changes: Any) -> dict[str, Any]:
    """Return a manifest's values but for identity and files."""
    content: dict[str, Any] = {
        "software_version": "0.1.0",
        "run_config_sha256": "a" * 64,
        "objective": "lesion",
        "image_input": ImageInput(size_px=8, resize_px=9).model_dump(mode="json"),
        "record_schema": SCHEMA.model_dump(mode="json"),
        "embedding_dim": 3,
        "labels": list(LABELS),
        "malignant_labels": ["melanoma"],
        "parity": [],
        "metrics": {"malignant_auroc": 0.5},
        "split_recipe": "by patient, seed 0",
        "data": [],
        "limits": ["synthetic lesions only"],
    }
    return {**content, **changes}


def write_files(
    folder: Path,
    *,
    graphs: dict[str, bytes | None] | None = None,
    golden: bytes | None = None,
    calibration: Calibration | None = None,
) -> None:
    """Write a bundle's files without its manifest; a graph of None is left out."""
    chosen = {name: make() for name, make in GRAPH_BYTES.items()} | (graphs or {})
    folder.mkdir(parents=True)
    for name, data in chosen.items():
        if data is not None:
            (folder / f"{name}.onnx").write_bytes(data)
    (folder / "golden.npz").write_bytes(write_golden(make_golden()) if golden is None else golden)
    text = (calibration or make_calibration()).model_dump_json()
    (folder / "calibration.json").write_text(text)
    (folder / "MODEL_CARD.md").write_text("# Tiny\n")


@pytest.fixture
def unsealed(tmp_path: Path) -> Callable[..., Path]:
    """Call it for a folder of bundle files without a manifest."""

    def make(**changes: Any) -> Path:
        folder = tmp_path / "unsealed"
        write_files(folder, **changes)
        return folder

    return make


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Bundle]:
    """Call it for a sealed and opened bundle; keywords of `write_files`, or a manifest's values."""

    def make(content: dict[str, Any] | None = None, **changes: Any) -> Bundle:
        folder = tmp_path / "made"
        write_files(folder, **changes)
        seal(folder, content or make_content())
        return open_bundle(folder)

    return make


@pytest.fixture(scope="session")
def pristine_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pristine") / "bundle"
    write_files(folder)
    seal(folder, make_content())
    return folder


@pytest.fixture
def bundle_folder(pristine_folder: Path, tmp_path: Path) -> Path:
    """A sealed bundle that a test may damage."""
    return Path(shutil.copytree(pristine_folder, tmp_path / "bundle"))


@pytest.fixture
def content() -> dict[str, Any]:
    return make_content()


@pytest.fixture
def calibration() -> Calibration:
    return make_calibration()


@pytest.fixture
def golden_cases() -> dict[str, dict[str, npt.NDArray[Any]]]:
    return make_golden()


@pytest.fixture
def schema() -> FieldSchema:
    return SCHEMA


@pytest.fixture
def manifest(pristine_folder: Path) -> Manifest:
    return open_bundle(pristine_folder).manifest


@pytest.fixture(scope="session")
def pristine_bundle(pristine_folder: Path) -> Bundle:
    return open_bundle(pristine_folder)
