"""How near each precision of the image encoder comes to this machine's matrix products.

    python -m benchmarks.matrix_peak BUNDLE [--rounds 5]

The peak is what torch reaches on one large product of matrices at that precision with all threads,
bias and softmax for nothing; the encoder's operations are those of its products and convolutions,
counted in the fp32 graph, whatever a variant's runtime fuses. All take turns, round by round, of
as many pictures at every batch.
"""

import argparse
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import shape_inference

from bundle.cpus import available_cpus
from bundle.encoder import OnnxEncoders
from bundle.errors import BundleError
from bundle.store import Bundle, open_bundle

# Sides of a product that outgrows every cache but takes no second of one core.
SIDE = 3072
BATCHES = (1, 8)
PAUSE_S, REPEATS = 0.2, 3
# What a variant embeds at a time, in batches; a multiple of every one.
PICTURES = 8


def operations(model: onnx.ModelProto) -> float:
    """Return the additions and multiplications of one picture in products and convolutions.

    Raises:
        ValueError: a product's shape cannot be inferred.
    """
    for given in model.graph.input:
        given.type.tensor_type.shape.dim[0].dim_value = 1
    graph = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    known = (*graph.value_info, *graph.input, *graph.output)
    shapes = {each.name: _shape(each.type.tensor_type.shape) for each in known}
    shapes |= {each.name: tuple(each.dims) for each in graph.initializer}
    total = 0.0
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm", "Conv"):
            continue
        out, left, right = (shapes[name] for name in (node.output[0], *node.input[:2]))
        # What each number of the result sums over.
        summed = math.prod(right[1:]) if node.op_type == "Conv" else left[-1]
        if not summed * math.prod(out):
            raise ValueError(f"{node.name}: expected known shapes, got {left}, {right} to {out}")
        total += 2.0 * summed * math.prod(out)
    return total


def _shape(shape: Any) -> tuple[int, ...]:
    # A dimension by name is the batch's: one picture.
    return tuple(1 if each.dim_param else each.dim_value for each in shape.dim)


def products() -> dict[str, Callable[[], object]]:
    """Return one large product by precision."""
    left, right = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    half = left.bfloat16(), right.bfloat16()
    whole = tuple(torch.randint(-127, 127, (SIDE, SIDE), dtype=torch.int8) for _ in range(2))
    return {
        "fp32": lambda: left @ right,
        "bf16": lambda: half[0] @ half[1],
        "int8": lambda: torch._int_mm(*whole),
    }


def embed(encoders: OnnxEncoders, pixels: npt.NDArray[np.float32]) -> None:
    """Embed `PICTURES` pictures in batches of these."""
    for _ in range(PICTURES // len(pixels)):
        encoders.embed_images(pixels)


def measure(bundle: Bundle, rounds: int) -> dict[str, list[float]]:
    """Return seconds of each product and of `PICTURES` pictures of each variant, by round.

    They are named as `peak fp32` and, with the batch, `fp32, 8`.
    """
    torch.set_num_threads(available_cpus())
    manifest = bundle.manifest
    size = manifest.image_input.size_px
    work = {f"peak {name}": multiply for name, multiply in products().items()}
    for variant in manifest.variants:
        try:
            encoders = OnnxEncoders(bundle, variant=variant.name)
        except BundleError as error:
            print(f"{variant.name} is left out: {error}")
            continue
        for batch in BATCHES:
            pixels = np.random.default_rng(0).standard_normal((batch, 3, size, size), np.float32)
            work[f"{variant.name}, {batch}"] = functools.partial(embed, encoders, pixels)
    taken: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for name, once in work.items():
            # Threads of the one before still turn for a while.
            time.sleep(PAUSE_S)
            once()
            started = time.perf_counter()
            for _ in range(REPEATS):
                once()
            if number:
                taken[name].append((time.perf_counter() - started) / REPEATS)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    bundle = open_bundle(options.bundle)
    each = operations(onnx.load_from_string(bundle.read("image_encoder.onnx")))
    median = {name: float(np.median(s)) for name, s in measure(bundle, options.rounds).items()}
    print(f"{each / 1e9:.2f} GFLOP a picture\n")
    print("| | ms a picture | GFLOP/s | peak of this machine | share |")
    print("| --- | --- | --- | --- | --- |")
    for variant in bundle.manifest.variants:
        if f"{variant.name}, 1" not in median:
            continue
        peak = 2 * SIDE**3 / median[f"peak {variant.name}"] / 1e9
        for batch in BATCHES:
            seconds = median[f"{variant.name}, {batch}"] / PICTURES
            rate = each / seconds / 1e9
            name = f"{variant.name}, batch {batch}"
            print(
                f"| {name} | {seconds * 1000:.1f} | {rate:.0f} | {peak:.0f} | {rate / peak:.2f} |"
            )


if __name__ == "__main__":
    main()
