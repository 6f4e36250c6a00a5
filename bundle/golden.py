"""Golden vectors: synthetic inputs and the answers they gave when the bundle was packed.

Checked at every start, so that another runtime, processor or provider that answers differently is
refused before it answers a person. Never a patient's picture.
"""

import io
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.encoder import GRAPHS, OnnxEncoders
from bundle.errors import CorruptBundle, ParityError
from bundle.store import Bundle

OUTPUT = "output"
# float32 kernels of different processors sum in different orders.
TOLERANCE = 2e-3

Case = dict[str, npt.NDArray[Any]]


def write_golden(cases: dict[str, Case]) -> bytes:
    """Return `golden.npz`: for each graph its inputs and, under "output", the expected answer."""
    arrays = {f"{graph}/{name}": a for graph, case in cases.items() for name, a in case.items()}
    buffer = io.BytesIO()
    # The stubs take every keyword for the flag that forbids pickling.
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def read_golden(data: bytes) -> dict[str, Case]:
    """Return what `write_golden` wrote.

    Raises:
        CorruptBundle: the bytes are no such archive.
    """
    cases: dict[str, Case] = {}
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            for key in arrays.files:
                graph, _, name = key.partition("/")
                cases.setdefault(graph, {})[name] = arrays[key]
    except (ValueError, OSError, KeyError, EOFError) as error:
        raise CorruptBundle(f"golden.npz cannot be read: {error}") from None
    for graph, case in cases.items():
        if graph not in GRAPHS or set(case) != {*GRAPHS[graph], OUTPUT}:
            raise CorruptBundle(f"golden.npz: {graph} has not the contract's inputs and output")
    return cases


def check_golden(bundle: Bundle, encoders: OnnxEncoders) -> dict[str, float]:
    """Return the largest difference of each graph from its golden answer.

    Differences are relative to the answer's largest magnitude where that is above 1.

    Raises:
        CorruptBundle: a graph has no golden vectors.
        ParityError: a difference exceeds the tolerance.
    """
    cases = read_golden(bundle.read("golden.npz"))
    if missing := sorted(set(encoders.graphs) - set(cases)):
        raise CorruptBundle(f"golden.npz has no vectors for {', '.join(missing)}")
    differences = {}
    for graph in encoders.graphs:
        case = dict(cases[graph])
        expected = case.pop(OUTPUT)
        answer = encoders.run(graph, case)
        if answer.shape != expected.shape:
            raise ParityError(f"{graph}: expected shape {expected.shape}, got {answer.shape}")
        scale = max(1.0, float(np.abs(expected).max()))
        differences[graph] = float(np.abs(answer - expected).max()) / scale
        if differences[graph] > TOLERANCE:
            raise ParityError(
                f"{graph} differs from its golden answer by {differences[graph]:.2e}, more than "
                f"{TOLERANCE:.0e}: this runtime must not serve this bundle"
            )
    return differences
