"""The parity ladder: a bundle whose ONNX graphs do not answer as torch does is not packed.

Rungs: each graph at batches 1, 2 and 17 (none of them the traced size), with every field missing,
with extreme pixels; then from file bytes to embedding; then the order of nearest neighbours.
"""

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from bundle.encoder import GRAPHS, Encoders, OnnxEncoders, unit_norm
from bundle.errors import InferenceError, ParityError
from bundle.images import ImageInput, decode_image, prepare_image
from bundle.manifest import ParityCase
from export.graphs import Graph

FloatArray = npt.NDArray[np.float32]

BATCHES = (1, 2, 17)
# Largest difference relative to the answer's largest magnitude (at least 1): float32 rounding
# through a dozen blocks stays far below it, a wrong constant or axis does not.
TOLERANCE = 1e-4
NEIGHBOURS = 10
# Similarities closer than this count as tied: their order is not an answer.
TIE = 1e-5


def climb(
    graphs: list[Graph], torch_encoders: Encoders, onnx_encoders: OnnxEncoders, spec: ImageInput
) -> tuple[ParityCase, ...]:
    """Return every rung's difference.

    Raises:
        ParityError: a rung exceeds its tolerance or a model's answer on it is not finite; the
            message names it.
    """
    cases = [
        *(case for graph in graphs for case in graph_cases(graph, onnx_encoders)),
        _bytes_case(torch_encoders, onnx_encoders, spec),
        _neighbours_case(torch_encoders, onnx_encoders, spec),
    ]
    check_cases(cases)
    return tuple(cases)


def check_cases(cases: Iterable[ParityCase]) -> None:
    """Do nothing where every difference is within its tolerance.

    Raises:
        ParityError: one is not; the message names it.
    """
    for case in cases:
        if not case.max_abs_difference <= case.tolerance:
            raise ParityError(
                f"{case.graph}, {case.case}: ONNX and torch differ by "
                f"{case.max_abs_difference:.2e}, more than {case.tolerance:.0e}: not packed"
            )


def graph_cases(
    graph: Graph, onnx_encoders: OnnxEncoders, tolerance: float = TOLERANCE
) -> Iterator[ParityCase]:
    """Yield the graph's difference from torch on every rung, whatever it is.

    Raises:
        ParityError: the answers cannot be compared at all.
    """
    for name, inputs in _rungs(graph):
        named = {k: v.numpy() for k, v in zip(GRAPHS[graph.name], inputs, strict=True)}
        with _naming(graph.name, name):
            gap = difference(onnx_encoders.run(graph.name, named), _run_torch(graph, inputs))
        yield ParityCase(case=name, graph=graph.name, max_abs_difference=gap, tolerance=tolerance)


@contextmanager
def _naming(graph: str, case: str) -> Iterator[None]:
    """Name the rung on which an answer cannot be compared at all."""
    try:
        yield
    except (InferenceError, ParityError) as error:
        raise ParityError(f"{graph}, {case}: {error}: not packed") from None


def _rungs(graph: Graph) -> Iterator[tuple[str, tuple[torch.Tensor, ...]]]:
    random = torch.Generator().manual_seed(7)
    for count in BATCHES:
        yield f"batch {count}", graph.example(count, random)
    nothing = tuple(torch.zeros_like(part) for part in graph.example(2, random))
    if graph.name == "image_encoder":
        (pixels,) = graph.example(2, random)
        yield "black", nothing
        yield "extreme pixels", (torch.where(pixels > 0, 2.7, -2.2),)
    elif graph.name != "context":
        yield "everything missing", nothing
    else:
        yield "one lesion", graph.example(1, random)
        yield "64 lesions", graph.example(64, random)


@torch.inference_mode()
def _run_torch(graph: Graph, inputs: tuple[torch.Tensor, ...]) -> FloatArray:
    answer: FloatArray = graph.module(*inputs).numpy()
    return answer


def difference(answer: FloatArray, expected: FloatArray) -> float:
    """Return the largest difference of two arrays, relative where they exceed 1; any shape.

    Raises:
        ParityError: the shapes differ, or a number is not finite.
    """
    if answer.shape != expected.shape:
        raise ParityError(f"expected shape {expected.shape}, got {answer.shape}")
    _refuse_not_finite(answer)
    _refuse_not_finite(expected)
    return float(np.abs(answer - expected).max()) / max(1.0, float(np.abs(expected).max()))


def _refuse_not_finite(answer: FloatArray) -> None:
    if not np.isfinite(answer).all():
        raise ParityError("a model answered with a number that is not finite")


def synthetic_pictures(count: int, seed: int = 11) -> list[bytes]:
    """Return files of smooth random colour fields of various shapes, as PNG and JPEG."""
    rng = np.random.default_rng(seed)
    files = []
    for number in range(count):
        coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        side = int(rng.integers(90, 260))
        picture = Image.fromarray(coarse).resize((side, side * 3 // 4), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG" if number % 2 else "JPEG")
        files.append(buffer.getvalue())
    return files


def _embed(encoders: Encoders, spec: ImageInput, count: int) -> FloatArray:
    pictures = [decode_image(data) for data in synthetic_pictures(count)]
    embeddings = encoders.embed_images(np.stack([prepare_image(p, spec) for p in pictures]))
    _refuse_not_finite(embeddings)
    return embeddings


def _bytes_case(
    torch_encoders: Encoders, onnx_encoders: OnnxEncoders, spec: ImageInput
) -> ParityCase:
    name = "file bytes to embedding"
    # One at a time, as a service would, against torch's batch.
    pictures = [decode_image(data) for data in synthetic_pictures(6)]
    with _naming("image_encoder", name):
        expected = _embed(torch_encoders, spec, 6)
        answers = [onnx_encoders.embed_images(prepare_image(p, spec)[None]) for p in pictures]
        gap = difference(np.concatenate(answers), expected)
    return ParityCase(case=name, graph="image_encoder", max_abs_difference=gap, tolerance=TOLERANCE)


def _neighbours_case(
    torch_encoders: Encoders, onnx_encoders: OnnxEncoders, spec: ImageInput
) -> ParityCase:
    """Count disagreements among the nearest neighbours, ties apart."""
    count = 40
    name = f"nearest {NEIGHBOURS} of {count}, ties apart: share that differs"
    with _naming("image_encoder", name):
        ours = unit_norm(_embed(onnx_encoders, spec, count))
        theirs = unit_norm(_embed(torch_encoders, spec, count))
    wrong = sum(
        top_k_disagreements(ours @ ours[row], theirs @ theirs[row], NEIGHBOURS)
        for row in range(count)
    )
    return ParityCase(
        case=name,
        graph="image_encoder",
        max_abs_difference=wrong / (count * NEIGHBOURS),
        tolerance=0.0,
    )


def top_k_disagreements(ours: FloatArray, theirs: FloatArray, k: int) -> int:
    """Return how many of our k nearest are not theirs, though clearly inside or outside.

    Args:
        ours: (N,) float32 similarities.
        theirs: (N,) float32 similarities.
        k: neighbours; those within `TIE` of the k-th similarity may stand on either side.
    """
    nearest = np.argsort(-ours, kind="stable")[:k]
    cut = np.sort(theirs)[-k]
    return int(np.sum(theirs[nearest] < cut - TIE))
