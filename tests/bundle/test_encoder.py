"""A bundle's graphs behind array functions, on tiny real ONNX graphs."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from bundle import encoder
from bundle.encoder import GRAPHS, Encoders, OnnxEncoders, refuse_two_builds, unit_norm
from bundle.errors import BundleError, CorruptBundle, InferenceError
from bundle.fields import Level, Record
from bundle.manifest import Variant
from bundle.records import EncodedRecords, encode_records
from bundle.store import Bundle, open_bundle
from tests.fakes import DIM, LABELS, SCHEMA, FakeEncoders, make_graphs

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

ROOT = Path(encoder.__file__).parents[1]
# What makes ONNX Runtime report nothing of itself.
REPORT_SWITCHES = {"ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "CI", "GITHUB_ACTIONS"}

RECORDS: list[Record] = [
    {"diameter_mm": 9.0, "age_years": 10.0, "anatom_site": "scalp", "sex": "male", "itch": True},
    {"diameter_mm": 0.0, "age_years": 0.0, "itch": False},
    {},
]


@pytest.fixture(scope="module")
def encoders(pristine_bundle: Bundle) -> OnnxEncoders:
    return OnnxEncoders(pristine_bundle, threads=1)


def normal(*shape: int, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def flags(*values: bool) -> BoolArray:
    return np.asarray(values, np.bool_)


def linear_graph(
    inputs: dict[str, tuple[int, list[Any]]], read: str, weights: FloatArray
) -> onnx.ModelProto:
    """Return a graph with these inputs that answers `read` times the weights."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", [read, "weights"], ["answer"])],
        "linear",
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weights, "weights")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def record_graph(width: int, weights: FloatArray) -> onnx.ModelProto:
    inputs: dict[str, tuple[int, list[Any]]] = {
        "values": (TensorProto.FLOAT, ["N", width]),
        "present": (TensorProto.BOOL, ["N", width]),
    }
    return linear_graph(inputs, "values", weights)


# ------------------------------------------------------------------ answers


def test_the_encoders_say_what_the_manifest_says(encoders: OnnxEncoders) -> None:
    twin: Encoders = encoders
    assert twin.embedding_dim == DIM
    assert twin.has_context
    assert encoders.graphs == tuple(GRAPHS)
    assert encoders.manifest.labels == LABELS


@pytest.mark.parametrize("images", [1, 2, 17])
def test_images_are_embedded_as_the_fake_does(encoders: OnnxEncoders, images: int) -> None:
    pixels = normal(images, 3, 32, 32)
    answer = encoders.embed_images(pixels)
    assert answer.shape == (images, DIM)
    assert answer.dtype == np.float32
    np.testing.assert_allclose(answer, FakeEncoders().embed_images(pixels), atol=1e-5)


@pytest.mark.parametrize("level", ["lesion", "patient"])
def test_records_are_embedded_by_the_encoder_of_their_level(
    encoders: OnnxEncoders, level: Level
) -> None:
    records = encode_records(RECORDS, SCHEMA.at(level))
    answer = encoders.embed_records(records, level)
    assert answer.shape == (3, DIM)
    np.testing.assert_allclose(answer, FakeEncoders().embed_records(records, level), atol=1e-6)
    assert not answer[2].any()


def test_the_classifier_hears_only_what_is_present(encoders: OnnxEncoders) -> None:
    parts = [normal(4, DIM, seed=s) for s in range(3)]
    given: dict[str, Any] = {
        "image_present": flags(True, True, False, False),
        "lesion_present": flags(True, False, True, False),
        "patient_present": flags(False, True, True, False),
    }
    answer = encoders.classify(*parts, **given)
    assert answer.shape == (4, len(LABELS))
    np.testing.assert_allclose(answer, FakeEncoders().classify(*parts, **given), atol=1e-5)
    np.testing.assert_array_equal(answer[3], 0)


@pytest.mark.parametrize("lesions", [1, 2, 5])
def test_the_context_of_a_patients_lesions_comes_back_a_number_a_lesion(
    encoders: OnnxEncoders, lesions: int
) -> None:
    patient: dict[str, Any] = {
        "lesion_present": flags(*([True] * lesions)),
        "malignancy_logit": normal(lesions, seed=2),
        "patient_record": normal(DIM, seed=3),
        "patient_present": True,
    }
    image, record = normal(lesions, DIM), normal(lesions, DIM, seed=1)
    answer = encoders.context(image, record, **patient)
    assert answer.shape == (lesions,)
    expected = FakeEncoders().context(image, record, **patient)
    np.testing.assert_allclose(answer, expected, atol=1e-4)


class Witness(OnnxEncoders):
    """Notes what a graph is given instead of running it."""

    def __init__(self) -> None:
        self.seen: dict[str, npt.NDArray[Any]] = {}
        self._sessions = {"context": None}

    def run(self, graph: str, inputs: dict[str, npt.NDArray[Any]]) -> FloatArray:
        assert set(inputs) == set(GRAPHS[graph])
        self.seen = inputs
        return np.zeros((1, 2), np.float32)


@pytest.mark.parametrize("present", [True, False])
def test_the_context_model_is_given_one_patient_with_every_lesion_counted(present: bool) -> None:
    witness = Witness()
    witness.context(
        normal(2, DIM),
        normal(2, DIM, seed=1),
        lesion_present=flags(True, False),
        malignancy_logit=normal(2, seed=2),
        patient_record=normal(DIM, seed=3),
        patient_present=present,
    )
    seen = witness.seen
    np.testing.assert_array_equal(seen["image"], normal(2, DIM)[None])
    np.testing.assert_array_equal(seen["lesion_record"], normal(2, DIM, seed=1)[None])
    np.testing.assert_array_equal(seen["lesion_present"], [[True, False]])
    np.testing.assert_array_equal(seen["malignancy_logit"], normal(2, seed=2)[None])
    np.testing.assert_array_equal(seen["mask"], [[True, True]])
    np.testing.assert_array_equal(seen["patient_record"], normal(DIM, seed=3)[None])
    np.testing.assert_array_equal(seen["patient_present"], [present])
    assert {name for name, array in seen.items() if array.dtype == np.bool_} == {
        "lesion_present",
        "mask",
        "patient_present",
    }


# ------------------------------------------------------------------ optional graphs


def test_a_bundle_without_a_context_model_says_so(make_bundle: Callable[..., Bundle]) -> None:
    encoders = OnnxEncoders(make_bundle(graphs={"context": None}), threads=1)
    assert not encoders.has_context
    assert encoders.graphs == tuple(name for name in GRAPHS if name != "context")
    with pytest.raises(
        BundleError, match=r"^expected a bundle with context\.onnx: this one has no"
    ):
        encoders.context(
            normal(1, DIM),
            normal(1, DIM),
            lesion_present=flags(True),
            malignancy_logit=normal(1),
            patient_record=normal(DIM),
            patient_present=True,
        )


@pytest.mark.parametrize(
    ("level", "graph"), [("lesion", "metadata_encoder"), ("patient", "patient_encoder")]
)
def test_a_level_without_fields_needs_no_encoder_and_embeds_to_zeros(
    make_bundle: Callable[..., Bundle], level: Level, graph: str
) -> None:
    rest = [field for field in SCHEMA.fields if field.level != level]
    schema = {"fields": [field.model_dump(mode="json") for field in rest]}
    bundle = make_bundle({"record_schema": schema}, graphs={graph: None})
    nothing = EncodedRecords(np.zeros((2, 0), np.float32), np.zeros((2, 0), np.bool_))
    answer = OnnxEncoders(bundle, threads=1).embed_records(nothing, level)
    np.testing.assert_array_equal(answer, np.zeros((2, DIM)))
    assert answer.dtype == np.float32


@pytest.mark.parametrize(
    ("level", "graph"), [("lesion", "metadata_encoder"), ("patient", "patient_encoder")]
)
def test_fields_without_their_encoder_are_refused_not_ignored(
    make_bundle: Callable[..., Bundle], level: str, graph: str
) -> None:
    bundle = make_bundle(graphs={graph: None})
    with pytest.raises(CorruptBundle, match=rf"^{graph}\.onnx: .* {level} fields"):
        OnnxEncoders(bundle, threads=1)


# ------------------------------------------------------------------ refused graphs


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("data", [b"", b"garbage", b"\x08", b"\x00" * 64], ids=range(4))
def test_a_graph_that_is_none_is_refused(
    make_bundle: Callable[..., Bundle], graph: str, data: bytes
) -> None:
    bundle = make_bundle(graphs={graph: data})
    with pytest.raises(
        CorruptBundle, match=rf"^{graph}\.onnx cannot be loaded: .*(protobuf|model|graph)"
    ) as caught:
        OnnxEncoders(bundle, threads=1)
    assert "\n" not in str(caught.value)


def test_a_truncated_graph_is_refused(make_bundle: Callable[..., Bundle]) -> None:
    whole = make_graphs()["classifier"].SerializeToString()
    bundle = make_bundle(graphs={"classifier": whole[: len(whole) // 2]})
    with pytest.raises(CorruptBundle, match=r"^classifier\.onnx cannot be loaded"):
        OnnxEncoders(bundle, threads=1)


def test_a_graph_of_an_unknown_operator_is_refused(make_bundle: Callable[..., Bundle]) -> None:
    graph = record_graph(3, np.zeros((3, DIM), np.float32))
    graph.graph.node[0].op_type = "RunCommand"
    bundle = make_bundle(graphs={"metadata_encoder": graph.SerializeToString()})
    with pytest.raises(CorruptBundle, match=r"^metadata_encoder\.onnx cannot be loaded"):
        OnnxEncoders(bundle, threads=1)


@pytest.mark.parametrize(
    "names", [("values",), ("values", "known"), ("values", "present", "label")]
)
def test_a_graph_with_other_inputs_is_refused(
    make_bundle: Callable[..., Bundle], names: tuple[str, ...]
) -> None:
    inputs: dict[str, tuple[int, list[Any]]] = dict.fromkeys(names, (TensorProto.FLOAT, ["N", 3]))
    graph = linear_graph(inputs, "values", np.zeros((3, DIM), np.float32))
    bundle = make_bundle(graphs={"metadata_encoder": graph.SerializeToString()})
    with pytest.raises(CorruptBundle, match=r"metadata_encoder\.onnx: expected inputs .*'present'"):
        OnnxEncoders(bundle, threads=1)


def test_a_graph_with_two_outputs_is_refused(make_bundle: Callable[..., Bundle]) -> None:
    graph = make_graphs()["metadata_encoder"]
    graph.graph.output.append(helper.make_tensor_value_info("known", TensorProto.FLOAT, None))
    bundle = make_bundle(graphs={"metadata_encoder": graph.SerializeToString()})
    with pytest.raises(CorruptBundle, match="and one output"):
        OnnxEncoders(bundle, threads=1)


@pytest.mark.parametrize("location", ["weights.bin", "deep/../weights.bin", "../weights.bin"])
def test_weights_outside_the_hashed_graph_are_never_read(
    make_bundle: Callable[..., Bundle],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    location: str,
) -> None:
    graph = record_graph(3, np.ones((3, DIM), np.float32))
    tensor = graph.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(12 * DIM))):
        tensor.external_data.add(key=key, value=value)
    bundle = make_bundle(graphs={"metadata_encoder": graph.SerializeToString()})
    here = tmp_path / "here"
    (here / "deep").mkdir(parents=True)
    for place in (here, tmp_path):
        (place / "weights.bin").write_bytes(np.ones((3, DIM), np.float32).tobytes())
    monkeypatch.chdir(here)
    with pytest.raises(CorruptBundle, match=r"^metadata_encoder\.onnx cannot be loaded"):
        OnnxEncoders(bundle, threads=1)


def test_a_graph_changed_after_opening_is_refused(bundle_folder: Path) -> None:
    bundle = open_bundle(bundle_folder)
    path = bundle_folder / "classifier.onnx"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptBundle, match="the file was changed"):
        OnnxEncoders(bundle, threads=1)


# ------------------------------------------------------------------ refused inputs and answers


@pytest.mark.parametrize(
    "pixels",
    [
        normal(1, 4, 32, 32),
        normal(1, 3, 31, 32),
        normal(3, 32, 32),
        normal(1, 3, 32, 32).astype(np.float64),
        np.zeros((1, 3, 32, 32), np.uint8),
    ],
    ids=["channels", "height", "rank", "double", "bytes"],
)
def test_an_input_of_another_shape_or_dtype_is_refused(
    encoders: OnnxEncoders, pixels: npt.NDArray[Any]
) -> None:
    reason = r"^image_encoder: the model cannot run: .*(dimensions|rank|data type)"
    with pytest.raises(InferenceError, match=reason) as caught:
        encoders.embed_images(pixels)
    assert "\n" not in str(caught.value)


def test_records_of_the_other_level_are_refused(encoders: OnnxEncoders) -> None:
    records = encode_records(RECORDS, SCHEMA.at("patient"))
    with pytest.raises(InferenceError, match=r"^metadata_encoder: the model cannot run: "):
        encoders.embed_records(records, "lesion")


def test_a_missing_input_is_refused(encoders: OnnxEncoders) -> None:
    with pytest.raises(InferenceError, match=r"^metadata_encoder: the model cannot run: "):
        encoders.run("metadata_encoder", {"values": normal(1, 3)})


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_an_answer_that_is_not_finite_is_an_inference_error(
    encoders: OnnxEncoders, odd: float
) -> None:
    pixels = normal(2, 3, 32, 32)
    pixels[1, 2, 3, 4] = odd
    with pytest.raises(
        InferenceError, match=r"^image_encoder: the model answered with a number th"
    ):
        encoders.embed_images(pixels)


def test_an_answer_in_another_precision_is_handed_over_as_float32(
    make_bundle: Callable[..., Bundle],
) -> None:
    graph = make_graphs()["metadata_encoder"]
    graph.graph.node[-1].output[0] = "single"
    graph.graph.node.append(helper.make_node("Cast", ["single"], ["output"], to=TensorProto.DOUBLE))
    graph.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    bundle = make_bundle(graphs={"metadata_encoder": graph.SerializeToString()})
    records = encode_records(RECORDS, SCHEMA.at("lesion"))
    answer = OnnxEncoders(bundle, threads=1).embed_records(records, "lesion")
    assert answer.dtype == np.float32


# ------------------------------------------------------------------ sessions


def options_of(bundle: Bundle, **settings: Any) -> list[dict[str, Any]]:
    """Return what every session was asked for."""
    asked: list[dict[str, Any]] = []
    real = ort.InferenceSession

    def spy(data: bytes, options: ort.SessionOptions, providers: list[str]) -> Any:
        asked.append(
            {
                "threads": options.intra_op_num_threads,
                "severity": options.log_severity_level,
                "providers": providers,
            }
        )
        return real(data, options, providers=["CPUExecutionProvider"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ort, "InferenceSession", spy)
        OnnxEncoders(bundle, **settings)
    return asked


def test_threads_reach_the_image_encoder_and_0_takes_what_the_process_may_use(
    pristine_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "available_cpus", lambda: 3)
    assert [o["threads"] for o in options_of(pristine_bundle, threads=2)] == [1, 1, 1, 1, 2]
    assert [o["threads"] for o in options_of(pristine_bundle)] == [1, 1, 1, 1, 3]
    assert {o["severity"] for o in options_of(pristine_bundle)} == {3}


def test_encoders_of_other_threads_answer_alike_and_load_the_image_encoder_alone(
    encoders: OnnxEncoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[int] = []
    real = ort.InferenceSession

    def spy(data: bytes, options: ort.SessionOptions, **_: object) -> ort.InferenceSession:
        loaded.append(options.intra_op_num_threads)
        return real(data, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(ort, "InferenceSession", spy)
    narrow = encoders.with_threads(1)
    assert (loaded, narrow.threads, narrow.device) == ([1], 1, "cpu")
    side = encoders.manifest.image_input.size_px
    pixels = np.random.default_rng(0).standard_normal((2, 3, side, side), np.float32)
    np.testing.assert_allclose(
        narrow.embed_images(pixels), encoders.embed_images(pixels), rtol=1e-5, atol=1e-6
    )


def test_small_graphs_stay_on_the_processor(
    pristine_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: gpu)
    asked = [[name for name, _ in each["providers"]] for each in options_of(pristine_bundle)]
    assert asked[-1] == gpu
    assert all(each == gpu[1:] for each in asked[:-1])


def test_a_device_that_is_named_is_taken_or_refused(pristine_bundle: Bundle) -> None:
    assert OnnxEncoders(pristine_bundle, device="cpu").device == "cpu"
    with pytest.raises(BundleError, match="expected an ONNX Runtime that knows cuda, got"):
        OnnxEncoders(pristine_bundle, device="cuda")


@pytest.mark.parametrize(
    ("runtime", "device", "said"),
    [
        ("cuda", "auto", "the variant odd needs a GPU, and ONNX Runtime found none"),
        ("cuda", "cpu", "the variant odd needs a GPU"),
        ("openvino", "cuda", "the variant odd runs on the processor, cuda was asked for"),
    ],
)
def test_a_variant_and_a_device_that_do_not_go_together_are_refused(
    pristine_bundle: Bundle, runtime: Any, device: Any, said: str
) -> None:
    odd = Variant(name="odd", runtime=runtime, tolerance=1.0)
    manifest = pristine_bundle.manifest.model_copy(update={"variants": (odd,), "variant": "odd"})
    bundle = copy.copy(pristine_bundle)
    object.__setattr__(bundle, "manifest", manifest)
    with pytest.raises(BundleError, match=said) as caught:
        OnnxEncoders(bundle, device=device)
    assert "SLIMP_VARIANT=fp32" in str(caught.value)


# ------------------------------------------------------------------ two builds


def only(*installed: str) -> Callable[[str], object]:
    def distribution(name: str) -> object:
        if name not in installed:
            raise PackageNotFoundError(name)
        return object()

    return distribution


@pytest.mark.parametrize("installed", [(), ("a",), ("b",)])
def test_one_build_or_none_is_accepted(
    monkeypatch: pytest.MonkeyPatch, installed: tuple[str, ...]
) -> None:
    monkeypatch.setattr(encoder, "distribution", only(*installed))
    refuse_two_builds("a", "b")


def test_two_builds_are_refused_by_name_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "distribution", only("faiss-cpu", "faiss-gpu", "other"))
    with pytest.raises(BundleError) as caught:
        refuse_two_builds("faiss-cpu", "missing", "faiss-gpu")
    assert str(caught.value) == (
        "faiss-cpu and faiss-gpu are installed together and overwrite each other: uninstall both, "
        "then install one (pip install 'slimp[cpu]' or 'slimp[gpu]')"
    )


def test_both_builds_of_the_runtime_are_refused_at_start(
    pristine_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "distribution", only("onnxruntime", "onnxruntime-gpu"))
    with pytest.raises(BundleError, match="onnxruntime and onnxruntime-gpu are installed together"):
        OnnxEncoders(pristine_bundle)


# ------------------------------------------------------------------ directions


def test_rows_are_scaled_to_unit_length() -> None:
    rows = normal(11, 7)
    before = rows.copy()
    directions = unit_norm(rows)
    assert directions.dtype == np.float32
    for row, direction in zip(rows, directions, strict=True):
        length = sum(float(v) ** 2 for v in row) ** 0.5
        np.testing.assert_allclose(direction, row / length, rtol=1e-5)
    np.testing.assert_array_equal(rows, before)
    np.testing.assert_allclose(unit_norm(np.asarray([[3, 4]], np.float32)), [[0.6, 0.8]])


def test_no_rows_have_no_directions() -> None:
    assert unit_norm(np.zeros((0, 4), np.float32)).shape == (0, 4)


def test_a_row_of_zeros_has_no_direction() -> None:
    with pytest.raises(InferenceError, match=r"^an embedding has length 0"):
        unit_norm(np.asarray([[2, 0], [0, 0]], np.float32))


def test_a_row_of_unit_length_stays_as_it_is() -> None:
    np.testing.assert_array_equal(unit_norm(np.eye(3, dtype=np.float32)), np.eye(3))


def test_onnx_runtime_reports_its_use_to_nobody(tmp_path: Path) -> None:
    """Otherwise it leaves a device's id and a queue of events in the home folder."""
    environment = {name: value for name, value in os.environ.items() if name not in REPORT_SWITCHES}
    code = "import bundle.encoder, onnxruntime; onnxruntime.SessionOptions()"
    subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert list(tmp_path.rglob("*")) == []
