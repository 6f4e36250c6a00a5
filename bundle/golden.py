"""Golden vectors: synthetic inputs and the answers they gave when the bundle was packed.

Checked at every start, so that another runtime, processor or provider that answers differently is
refused before it answers a person. Never a patient's picture.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.arrays import read_arrays, write_arrays
from bundle.encoder import GRAPHS, IMAGE_ENCODER, RECORD_GRAPHS, OnnxEncoders
from bundle.errors import CorruptBundle, ParityError
from bundle.manifest import BASE_TOLERANCE, Manifest
from bundle.store import Bundle

OUTPUT = "output"
# Of the image encoder's answers and the golden ones. What a variant of low precision may differ by
# is as large as the answers themselves may be small: it is their direction that is searched for.
LEAST_COSINE = 0.8
TOLERANCE = BASE_TOLERANCE

FloatArray = npt.NDArray[np.float32]
Case = dict[str, npt.NDArray[Any]]


def write_golden(cases: dict[str, Case]) -> bytes:
    """Return `golden.npz`: for each graph its inputs and, under "output", the expected answer."""
    return write_arrays(
        {f"{graph}/{name}": a for graph, case in cases.items() for name, a in case.items()}
    )


def read_golden(data: bytes) -> dict[str, Case]:
    """Return what `write_golden` wrote.

    Raises:
        CorruptBundle: the bytes are no such archive, or an expected answer is not finite.
    """
    cases: dict[str, Case] = {}
    for key, array in read_arrays(data, "golden.npz").items():
        graph, _, name = key.partition("/")
        cases.setdefault(graph, {})[name] = array
    for graph, case in cases.items():
        if graph not in GRAPHS or set(case) != {*GRAPHS[graph], OUTPUT}:
            raise CorruptBundle(f"golden.npz: {graph} has not the contract's inputs and output")
        expected = case[OUTPUT]
        if expected.dtype != np.float32 or not expected.size or not np.isfinite(expected).all():
            raise CorruptBundle(f"golden.npz: {graph} has no finite float32 answer")
    return cases


def check_golden(bundle: Bundle, encoders: OnnxEncoders) -> dict[str, float]:
    """Return the largest difference of each graph from its golden answer.

    Differences are relative to the answer's largest magnitude where that is above 1.

    Raises:
        CorruptBundle: a graph has no golden vectors, or a width that is not the manifest's.
        InferenceError: a graph does not take its golden inputs, or its answer is not finite.
        ParityError: an answer has another shape, or differs by more than the tolerance.
    """
    cases = read_golden(bundle.read("golden.npz"))
    if missing := sorted(set(encoders.graphs) - set(cases)):
        raise CorruptBundle(f"golden.npz has no vectors for {', '.join(missing)}")
    widths = _widths(bundle.manifest)
    differences = {}
    for graph in encoders.graphs:
        case = dict(cases[graph])
        expected = case.pop(OUTPUT)
        answer = encoders.run(graph, case)
        if answer.shape != expected.shape:
            raise ParityError(
                f"{graph}: expected an answer of shape {expected.shape}, got {answer.shape}: "
                "this runtime must not serve this bundle"
            )
        if graph in widths and answer.shape[1:] != (widths[graph],):
            raise CorruptBundle(
                f"{graph}.onnx: expected {widths[graph]} numbers a row, as the manifest says, got "
                f"an answer of shape {answer.shape}"
            )
        scale = max(1.0, float(np.abs(expected).max()))
        differences[graph] = float(np.abs(answer - expected).max()) / scale
        tolerance = encoders.variant.tolerance if graph == IMAGE_ENCODER else TOLERANCE
        if differences[graph] > tolerance:
            raise ParityError(
                f"{graph} differs from its golden answer by {differences[graph]:.2e}, more than "
                f"{tolerance:.0e}: this runtime must not serve this bundle"
            )
        if graph == IMAGE_ENCODER and (least := _least_cosine(answer, expected)) < LEAST_COSINE:
            raise ParityError(
                f"{graph} points elsewhere than its golden answer (cosine {least:.2f}, less than "
                f"{LEAST_COSINE:g}): this runtime must not serve this bundle"
            )
    return differences


def _least_cosine(answer: FloatArray, expected: FloatArray) -> float:
    """Return the least cosine of two rows; 0 where only the answer has no direction."""
    own, golden = np.linalg.norm(answer, axis=1), np.linalg.norm(expected, axis=1)
    cosines = np.where(golden > 0, 0.0, 1.0)
    np.divide((answer * expected).sum(1), own * golden, cosines, where=own * golden > 0)
    return float(cosines.min())


def _widths(manifest: Manifest) -> dict[str, int]:
    encoders = ("image_encoder", *RECORD_GRAPHS.values())
    return {**dict.fromkeys(encoders, manifest.embedding_dim), "classifier": len(manifest.labels)}
