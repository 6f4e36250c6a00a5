import math
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest

from bundle.encoder import OnnxEncoders
from bundle.errors import InferenceError, ParityError
from bundle.images import decode_image
from export.graphs import Graph
from export.parity import TIE, climb, difference, synthetic_pictures, top_k_disagreements
from training.encoders import TorchEncoders

FloatArray = npt.NDArray[np.float32]


def slow_disagreements(ours: FloatArray, theirs: FloatArray, k: int) -> int:
    """Count our k nearest that more than a tie below their k-th."""
    nearest = sorted(range(len(ours)), key=lambda i: (-ours[i], i))[:k]
    kth = sorted(theirs.tolist(), reverse=True)[k - 1]
    return sum(theirs[i] < kth - TIE for i in nearest)


@pytest.mark.parametrize("seed", range(8))
def test_disagreements_are_counted_neighbour_by_neighbour(seed: int) -> None:
    rng = np.random.default_rng(seed)
    theirs = (rng.integers(0, 6, 11) / 10).astype(np.float32)
    ours = (theirs + rng.normal(0, 0.08, 11)).astype(np.float32)
    for k in (1, 3, 11):
        assert top_k_disagreements(ours, theirs, k) == slow_disagreements(ours, theirs, k)


def test_ties_may_stand_on_either_side_of_the_cut() -> None:
    theirs = np.array([0.9, 0.5, 0.5, 0.5 - TIE / 2, 0.4], np.float32)
    for second in (1, 2, 3):
        ours = theirs.copy()
        ours[second] += 3e-6 if second < 3 else 2e-5
        assert top_k_disagreements(ours, theirs, 2) == 0
    ours = theirs.copy()
    ours[4] = 0.6
    assert top_k_disagreements(ours, theirs, 2) == 1


def test_a_difference_is_relative_to_large_answers_only() -> None:
    small = np.array([[0.5, -0.25]], np.float32)
    assert difference(small + np.float32(0.125), small) == 0.125
    large = np.array([[0.0, -100.0]], np.float32)
    assert difference(large + 1, large) == pytest.approx(0.01)
    with pytest.raises(ParityError, match=r"expected shape \(1, 2\), got \(2, 1\)"):
        difference(small.T, small)


def test_synthetic_pictures_are_files_of_various_shapes_and_always_the_same() -> None:
    files = synthetic_pictures(6)
    assert files == synthetic_pictures(6)
    assert {data[:2] for data in files} == {b"\xff\xd8", b"\x89P"}
    assert len({decode_image(data).size for data in files}) > 3


class Mistaken(OnnxEncoders):
    """Answers everything but one graph as the bundle does."""

    def __init__(self, honest: OnnxEncoders, graph: str, answer: float) -> None:
        self.__dict__.update(honest.__dict__)
        self.graph, self.answer = graph, answer

    def run(self, graph: str, inputs: dict[str, npt.NDArray[np.float32]]) -> FloatArray:
        output = super().run(graph, inputs)
        return output + np.float32(self.answer) if graph == self.graph else output


def test_the_rung_that_fails_is_named(
    graphs: list[Graph],
    torch_encoders: TorchEncoders,
    onnx_encoders: OnnxEncoders,
) -> None:
    spec = onnx_encoders.manifest.image_input
    with pytest.raises(ParityError, match=r"patient_encoder, batch 1: ONNX and torch differ"):
        climb(graphs, torch_encoders, Mistaken(onnx_encoders, "patient_encoder", 1e-2), spec)


class Unsound(OnnxEncoders):
    """Answers one graph with NaN, which honest encoders refuse."""

    def __init__(self, honest: OnnxEncoders) -> None:
        self.__dict__.update(honest.__dict__)

    def run(self, graph: str, inputs: dict[str, npt.NDArray[np.float32]]) -> FloatArray:
        if graph == "classifier":
            raise InferenceError("the model answered with a number that is not finite")
        return super().run(graph, inputs)


def test_an_answer_that_is_no_number_is_refused_by_its_rungs_name(
    graphs: list[Graph],
    torch_encoders: TorchEncoders,
    onnx_encoders: OnnxEncoders,
) -> None:
    spec = onnx_encoders.manifest.image_input
    with pytest.raises(ParityError, match=r"^classifier, batch 1: .* not finite: not packed$"):
        climb(graphs, torch_encoders, Unsound(onnx_encoders), spec)
    wrong = Mistaken(onnx_encoders, "patient_encoder", math.nan)
    with pytest.raises(ParityError, match=r"^patient_encoder, batch 1: .* not finite: not packed"):
        climb(graphs, torch_encoders, wrong, spec)


def test_features_that_are_no_numbers_are_refused_by_their_rungs_name(
    graphs: list[Graph],
    torch_encoders: TorchEncoders,
    onnx_encoders: OnnxEncoders,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = onnx_encoders.manifest.image_input
    honest = torch_encoders.embed_images

    def embed(pixels: FloatArray, largest: int) -> FloatArray:
        return honest(pixels) + np.float32(0 if len(pixels) <= largest else math.nan)

    for largest, case in ((1, "file bytes to embedding"), (6, "nearest 10 of 40")):
        monkeypatch.setattr(torch_encoders, "embed_images", partial(embed, largest=largest))
        with pytest.raises(ParityError, match=f"^image_encoder, {case}.* not finite: not packed"):
            climb(graphs, torch_encoders, onnx_encoders, spec)
