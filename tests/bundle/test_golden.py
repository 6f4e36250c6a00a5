"""Golden vectors: a runtime that answers differently is refused at start."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bundle.arrays import write_arrays
from bundle.calibration import CONDITIONS
from bundle.encoder import GRAPHS, IMAGE_ENCODER, OnnxEncoders
from bundle.errors import CorruptBundle, InferenceError, ParityError
from bundle.golden import OUTPUT, TOLERANCE, Case, check_golden, read_golden, write_golden
from bundle.store import Bundle
from tests.fakes import golden_cases, make_calibration


def changed(graph: str, name: str, array: npt.NDArray[Any] | None) -> dict[str, Case]:
    """Return the golden cases with one array replaced, or left out."""
    cases = golden_cases()
    case = {key: value for key, value in cases[graph].items() if key != name}
    return {**cases, graph: case if array is None else {**case, name: array}}


def test_cases_come_back_as_they_were_written() -> None:
    cases = golden_cases()
    read = read_golden(write_golden(cases))
    assert list(read) == list(cases)
    for graph, case in cases.items():
        assert set(read[graph]) == set(case) == {*GRAPHS[graph], OUTPUT}
        for name, array in case.items():
            np.testing.assert_array_equal(read[graph][name], array)
            assert read[graph][name].dtype == array.dtype


def test_a_sound_bundle_answers_as_when_it_was_packed(pristine_bundle: Bundle) -> None:
    differences = check_golden(pristine_bundle, OnnxEncoders(pristine_bundle, threads=1))
    assert tuple(differences) == tuple(GRAPHS)
    assert max(differences.values()) < 1e-4


def test_vectors_of_a_graph_that_the_bundle_lacks_are_passed_over(
    make_bundle: Callable[..., Bundle],
) -> None:
    bundle = make_bundle(graphs={"context": None})
    assert "context" not in check_golden(bundle, OnnxEncoders(bundle, threads=1))


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_drifted_answer_of_any_graph_is_refused(
    make_bundle: Callable[..., Bundle], graph: str
) -> None:
    expected = golden_cases()[graph][OUTPUT].copy()
    expected.flat[-1] += 0.1 * max(1, np.abs(expected).max())
    bundle = make_bundle(golden=changed(graph, OUTPUT, expected))
    with pytest.raises(
        ParityError, match=f"^{graph} differs from its golden answer by .*more than"
    ):
        check_golden(bundle, OnnxEncoders(bundle, threads=1))


class Recorded(OnnxEncoders):
    """Answers the golden vectors with a fixed difference, in the place of a drifting runtime."""

    def __init__(self, bundle: Bundle, difference: float) -> None:
        super().__init__(bundle, threads=1)
        self.difference = difference

    def run(self, graph: str, inputs: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        answer = np.asarray(golden_cases()[graph][OUTPUT], np.float32).copy()
        answer.flat[0] += np.float32(self.difference)
        return answer


@pytest.mark.parametrize("sign", [1, -1])
def test_a_difference_just_within_the_tolerance_passes_and_just_beyond_does_not(
    make_bundle: Callable[..., Bundle], sign: int
) -> None:
    cases = golden_cases()
    for case in cases.values():
        case[OUTPUT] = np.zeros_like(case[OUTPUT])
    bundle = make_bundle(golden=cases)

    class Drifting(Recorded):
        def run(self, graph: str, inputs: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
            answer = np.zeros_like(cases[graph][OUTPUT])
            answer.flat[0] = self.difference
            return answer

    within = check_golden(bundle, Drifting(bundle, sign * TOLERANCE * 0.99))
    assert list(within.values()) == [pytest.approx(TOLERANCE * 0.99)] * len(GRAPHS)
    with pytest.raises(ParityError, match="image_encoder differs"):
        check_golden(bundle, Drifting(bundle, sign * TOLERANCE * 1.01))


def test_a_difference_is_relative_to_an_answer_of_more_than_1(
    make_bundle: Callable[..., Bundle],
) -> None:
    cases = golden_cases()
    for case in cases.values():
        case[OUTPUT] = np.full_like(case[OUTPUT], -100)
    bundle = make_bundle(golden=cases)

    class Drifting(Recorded):
        def run(self, graph: str, inputs: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
            return np.full_like(cases[graph][OUTPUT], -100 + self.difference)

    within = check_golden(bundle, Drifting(bundle, 0.1))
    assert within["classifier"] == pytest.approx(0.001, rel=1e-3)
    with pytest.raises(ParityError):
        check_golden(bundle, Drifting(bundle, 0.3))


@pytest.mark.parametrize("way", ["nothing", "backwards"])
def test_a_wide_tolerance_lets_no_other_direction_pass(
    pristine_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """As a variant of low precision may have it."""
    encoders = OnnxEncoders(pristine_bundle)
    run = encoders.run

    def answer(graph: str, inputs: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        said = run(graph, inputs)
        return said * np.float32(0 if way == "nothing" else -1) if graph == IMAGE_ENCODER else said

    wide = encoders.variant.model_copy(update={"tolerance": 10.0})
    monkeypatch.setattr(encoders, "variant", wide)
    check_golden(pristine_bundle, encoders)
    monkeypatch.setattr(encoders, "run", answer)
    with pytest.raises(ParityError, match="points elsewhere"):
        check_golden(pristine_bundle, encoders)


def test_an_answer_of_another_shape_is_refused_even_where_it_would_broadcast(
    make_bundle: Callable[..., Bundle],
) -> None:
    one_row = golden_cases()["classifier"][OUTPUT][:1]
    bundle = make_bundle(golden=changed("classifier", OUTPUT, one_row))
    with pytest.raises(ParityError) as caught:
        check_golden(bundle, OnnxEncoders(bundle, threads=1))
    assert str(caught.value) == (
        "classifier: expected an answer of shape (1, 3), got (2, 3): "
        "this runtime must not serve this bundle"
    )


def test_a_width_that_is_not_the_manifests_is_refused(make_bundle: Callable[..., Bundle]) -> None:
    bundle = make_bundle({"embedding_dim": 5})
    with pytest.raises(CorruptBundle, match=r"image_encoder\.onnx: expected 5 numbers a row, as"):
        check_golden(bundle, OnnxEncoders(bundle, threads=1))


def test_a_classifier_of_another_number_of_labels_is_refused(
    make_bundle: Callable[..., Bundle],
) -> None:
    fitted = make_calibration().conditions["given"].model_dump()
    fitted["bias"] = (0.0, 0.0)
    fitted["conformal"] |= {"quantiles": (0.9, 0.9), "scope": ("label", "label")}
    calibration = make_calibration(
        conditions=dict.fromkeys(CONDITIONS, fitted), prevalence={"nv": 0.9, "mel": 0.1}
    )
    labels = {"labels": ["nv", "mel"], "malignant_labels": ["mel"]}
    bundle = make_bundle(labels, calibration=calibration)
    with pytest.raises(CorruptBundle, match=r"^classifier\.onnx: expected 2 numbers a row, as"):
        check_golden(bundle, OnnxEncoders(bundle, threads=1))


def test_every_graph_without_vectors_is_named(make_bundle: Callable[..., Bundle]) -> None:
    bundle = make_bundle(golden={"context": golden_cases()["context"]})
    missing = "classifier, image_encoder, metadata_encoder, patient_encoder"
    with pytest.raises(CorruptBundle, match=rf"^golden\.npz has no vectors for {missing}$"):
        check_golden(bundle, OnnxEncoders(bundle, threads=1))


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_graph_without_vectors_is_refused(make_bundle: Callable[..., Bundle], graph: str) -> None:
    cases = {name: case for name, case in golden_cases().items() if name != graph}
    bundle = make_bundle(golden=cases)
    with pytest.raises(CorruptBundle, match=rf"golden\.npz has no vectors for {graph}$"):
        check_golden(bundle, OnnxEncoders(bundle, threads=1))


def test_inputs_that_a_graph_does_not_take_are_an_inference_error(
    make_bundle: Callable[..., Bundle],
) -> None:
    wrong = np.zeros((2, 3, 5, 5), np.float32)
    bundle = make_bundle(golden=changed("image_encoder", "pixels", wrong))
    with pytest.raises(InferenceError, match="image_encoder: the model cannot run"):
        check_golden(bundle, OnnxEncoders(bundle, threads=1))


@pytest.mark.parametrize(
    ("graph", "name", "array"),
    [
        ("classifier", OUTPUT, None),
        ("classifier", "image", None),
        ("classifier", "extra", np.zeros(1)),
        ("context", "mask", None),
    ],
)
def test_a_case_with_other_arrays_than_the_contracts_is_refused(
    graph: str, name: str, array: npt.NDArray[Any] | None
) -> None:
    with pytest.raises(CorruptBundle, match=f"{graph} has not the contract's inputs and output"):
        read_golden(write_golden(changed(graph, name, array)))


@pytest.mark.parametrize("key", ["decoder/output", "output", "classifier"])
def test_an_unknown_graph_is_refused(key: str) -> None:
    with pytest.raises(CorruptBundle, match="has not the contract's inputs and output"):
        read_golden(write_arrays({key: np.zeros(1, np.float32)}))


@pytest.mark.parametrize(
    "answer",
    [
        np.asarray([[np.nan]], np.float32),
        np.asarray([[np.inf]], np.float32),
        np.zeros((0, 3), np.float32),
        np.zeros((2, 3), np.float64),
        np.asarray([["text"]]),
    ],
    ids=["nan", "inf", "empty", "double", "text"],
)
def test_an_expected_answer_that_would_agree_with_anything_is_refused(
    answer: npt.NDArray[Any],
) -> None:
    with pytest.raises(CorruptBundle, match="classifier has no finite float32 answer"):
        read_golden(write_golden(changed("classifier", OUTPUT, answer)))


@pytest.mark.parametrize("data", [b"", b"garbage"])
def test_what_is_no_archive_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptBundle, match=r"golden\.npz: expected an archive of arrays"):
        read_golden(data)
