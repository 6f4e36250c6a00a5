"""The image encoder at other precisions: chosen by name, refused where it cannot run."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import openvino
import pytest
from onnx import numpy_helper

from bundle import openvino_session
from bundle.encoder import OnnxEncoders
from bundle.errors import BundleError, CorruptBundle, InferenceError, InvalidSettings, ParityError
from bundle.golden import check_golden
from bundle.manifest import Variant, check_manifest
from bundle.openvino_session import OpenVinoSession
from bundle.store import Bundle
from tests.fakes import make_graphs, make_manifest

BF16 = Variant(name="bf16", runtime="openvino", tolerance=0.05)
INT8 = Variant(name="int8", file="image_encoder.int8.onnx", tolerance=0.05)


@pytest.fixture(autouse=True)
def whatever_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no bfloat16, the same path runs in float32."""
    known = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if "BF16" not in known:
        monkeypatch.setattr(openvino_session, "PRECISION", "f32")
        monkeypatch.setattr(openvino_session, "CAPABILITY", "FP32")


@pytest.fixture
def laddered(make_bundle: Callable[..., Bundle]) -> Bundle:
    """A bundle whose choice is the "int8" graph, which is fp32's under another name."""
    graphs = {"image_encoder.int8": make_graphs()["image_encoder"].SerializeToString()}
    return make_bundle(values={"variant": "int8", "variants": (INT8, BF16)}, graphs=graphs)


def pixels(count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(count).normal(size=(count, 3, 32, 32)).astype(np.float32)


def test_the_manifests_choice_runs_unless_another_is_named(laddered: Bundle) -> None:
    assert OnnxEncoders(laddered).variant == INT8
    assert OnnxEncoders(laddered, variant="fp32").variant.file == "image_encoder.onnx"
    for name in ("fp32", "int8"):
        check_golden(laddered, OnnxEncoders(laddered, variant=name))


def test_a_variant_that_the_bundle_lacks_is_refused_with_those_it_has(laddered: Bundle) -> None:
    with pytest.raises(InvalidSettings, match=r"one of fp32, int8, bf16, .* got 'fp16'"):
        OnnxEncoders(laddered, variant="fp16")
    content = make_manifest().model_dump(mode="json")
    with pytest.raises(CorruptBundle, match="'int4' is not among the variants"):
        check_manifest({**content, "variant": "int4"})


def test_openvino_answers_at_every_batch_within_bfloat16s_rounding(laddered: Bundle) -> None:
    exact, rounded = (OnnxEncoders(laddered, variant=name) for name in ("fp32", "bf16"))
    for count in (1, 2, 5, 1):
        given = pixels(count)
        answer = rounded.embed_images(given)
        assert answer.dtype == np.float32
        np.testing.assert_allclose(answer, exact.embed_images(given), atol=0.02)
    first = rounded.embed_images(pixels(2))
    kept = first.copy()
    rounded.embed_images(pixels(3))
    np.testing.assert_array_equal(first, kept)
    check_golden(laddered, rounded)
    with pytest.raises(InferenceError, match=r"^image_encoder: the model cannot run"):
        rounded.embed_images(np.zeros((1, 4, 32, 32), np.float32))


@pytest.mark.parametrize(("tolerance", "fits"), [(0.05, True), (1e-4, False)])
def test_a_variant_has_its_own_tolerance_against_the_golden_answer(
    make_bundle: Callable[..., Bundle], tolerance: float, fits: bool
) -> None:
    other = make_graphs()["image_encoder"]
    for weights in other.graph.initializer:
        values = numpy_helper.to_array(weights)
        if values.dtype == np.float32:
            weights.CopyFrom(numpy_helper.from_array(values * np.float32(1.005), weights.name))
    variant = INT8.model_copy(update={"tolerance": tolerance})
    graphs = {"image_encoder.int8": other.SerializeToString()}
    bundle = make_bundle(values={"variants": (variant,)}, graphs=graphs)
    encoders = OnnxEncoders(bundle, variant="int8")
    if fits:
        assert check_golden(bundle, encoders)["image_encoder"] > 1e-3
    else:
        with pytest.raises(ParityError, match=r"image_encoder differs .* more than 1e-04"):
            check_golden(bundle, encoders)


def test_where_openvino_is_not_installed_the_error_says_what_to_do(
    laddered: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BundleError, match=r"pip install openvino, or .*SLIMP_VARIANT=fp32"):
        OnnxEncoders(laddered, variant="bf16")


def test_a_processor_without_bfloat16_is_named(
    laddered: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        openvino.CompiledModel, "get_property", lambda self, name: openvino.Type.f64
    )
    with pytest.raises(BundleError, match="computes in bfloat16, OpenVINO chose f64 here"):
        OnnxEncoders(laddered, variant="bf16")


def test_a_processor_that_would_emulate_bfloat16_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(openvino_session, "CAPABILITY", "BF8")
    with pytest.raises(BundleError, match=r"bfloat16.*SLIMP_VARIANT=fp32"):
        OpenVinoSession("image_encoder", b"", threads=1)


def test_a_graph_that_openvino_cannot_read_is_corrupt() -> None:
    with pytest.raises(CorruptBundle, match=r"^image_encoder\.onnx cannot be loaded by OpenVINO"):
        OpenVinoSession("image_encoder", b"no graph", threads=1)
