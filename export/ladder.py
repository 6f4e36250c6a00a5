"""The precision ladder: the image encoder at lower precisions, what each costs and what it saves.

Each rung is compared with torch, with fp32 on held-out images, and with fp32's speed, all on the
machine that exports. A rung is chosen for its speed only where its cost on the cal split, which
taught neither encoders nor heads, is within the limits; the test split's cost stands beside it and
chooses nothing.
"""

import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from bundle.cpus import available_cpus
from bundle.encoder import OnnxEncoders
from bundle.errors import BundleError, InferenceError
from bundle.golden import TOLERANCE
from bundle.manifest import (
    BASE_VARIANT,
    ParityCase,
    Speed,
    Variant,
)
from bundle.store import Bundle
from export.graphs import Graph
from export.held_out import HeldOut, accuracy_costs, agreement
from export.parity import check_cases, graph_cases
from training.features import FloatArray, embed_rows
from training.progress import StageReport

# The bare rungs.
# Dynamic quantisation scales a whole batch alike: its pictures would change each other.
INT8 = Variant(name="int8", file="image_encoder.int8.onnx", is_batched=False, tolerance=1.0)
# OpenVINO makes bfloat16 of the fp32 graph itself.
BF16 = Variant(name="bf16", runtime="openvino", tolerance=1.0)
# A processor turns every number to float32 and back, and is slower for it.
FP16 = Variant(name="fp16", runtime="cuda", file="image_encoder.fp16.onnx", tolerance=1.0)
RUNGS = (INT8, BF16, FP16)
CHOOSING = "cal"
MAX_AUROC_LOSS = 0.003
MAX_RECALL_LOSS = 0.02
# A smaller class's recall moves by more than the limit with two or three pictures.
MIN_IMAGES = 100
# Below this an embedding's neighbours are others.
MIN_COSINE = 0.9
LEAST_GAIN = {1: 1.2, 8: 1.6}
ROUNDS = 7
# Of a turn; a multiple of every batch.
PICTURES = 16
# Another processor's kernels sum in another order, at low precision more visibly.
HEADROOM = 3.0


@dataclass(frozen=True)
class Ladder:
    """What was measured.

    Attributes:
        variants: fp32 first.
        chosen: the name of the one to serve.
        left_out: rung to the reason why it is not in the bundle.
    """

    variants: tuple[Variant, ...]
    chosen: str
    left_out: dict[str, str]


def write_int8(graph: bytes, path: Path) -> None:
    """Write the graph with 8-bit weights and, chosen for each input, 8-bit activations.

    Only matrix products change, and not the last one, which gives features their metric.
    """
    model = onnx.load_from_string(graph)
    last = [node.name for node in model.graph.node if node.op_type in ("MatMul", "Gemm")][-1:]
    quantize_dynamic(
        model,
        path,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=last,
    )


def write_fp16(graph: bytes, path: Path) -> None:
    """Write the graph in float16 but for its input and output."""
    half = OnnxModel(convert_float_to_float16(onnx.load_from_string(graph), keep_io_types=True))
    # The conversion puts what it inserts at the end.
    half.topological_sort()
    path.write_bytes(half.model.SerializeToString())


def climb_precisions(
    draft: Bundle, base: OnnxEncoders, graph: Graph, held: HeldOut, report: StageReport
) -> Ladder:
    """Return what the rungs of a draft that lists them bare are worth here.

    Args:
        draft: a sealed bundle with `RUNGS`.
        base: its fp32 encoders, which passed the parity ladder.
        graph: the image encoder in torch.
        held: images to compare on.
        report: called with stage, done and total.
    """
    encoders, left_out = {BASE_VARIANT: base}, dict[str, str]()
    cases: dict[str, tuple[ParityCase, ...]] = {}
    for rung in RUNGS:
        try:
            made = OnnxEncoders(draft, variant=rung.name)
            found = tuple(graph_cases(graph, made, rung.tolerance))
            check_cases(found)
        except (BundleError, InferenceError) as error:
            left_out[rung.name] = str(error)
        else:
            encoders[rung.name], cases[rung.name] = made, found
    speeds = measure_speeds(encoders, held.squares.spec.size_px)
    answers = {
        name: embed_rows(
            each,
            held.squares,
            report=partial(report, f"held-out {name}"),
        )
        for name, each in encoders.items()
    }
    described = {
        name: draft.manifest.find_variant(name).model_copy(
            update={
                "parity": cases.get(name, ()),
                "tolerance": _tolerance(cases.get(name, ())),
                "agreement": agreement(answers[name], answers[BASE_VARIANT]),
                "costs": accuracy_costs(base, draft.calibration, held, answers, name),
                "speeds": speeds[name],
                "machine": describe_machine(),
            }
        )
        for name in encoders
    }
    return Ladder(tuple(described.values()), choose(described), left_out)


def _tolerance(cases: tuple[ParityCase, ...]) -> float:
    return max(TOLERANCE, HEADROOM * max((c.max_abs_difference for c in cases), default=0.0))


def describe_machine() -> str:
    """Return the processor's name and how many of them were used."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(x.partition(":")[2].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{name}, {available_cpus()} processors"


def measure_speeds(
    encoders: Mapping[str, OnnxEncoders], size_px: int
) -> dict[str, tuple[Speed, ...]]:
    """Return each one's images a second by batch; they take turns, so that a slow moment is all's.

    A turn is as many pictures at every batch, and comes after one that is not timed: threads of the
    one before may still turn for a while, and those of this one wake.

    Args:
        encoders: by name.
        size_px: side of the pictures.
    """
    random = np.random.default_rng(5)
    took: dict[tuple[str, int], list[float]] = {}
    for number in range(ROUNDS + 1):
        for batch in LEAST_GAIN:
            pixels = random.standard_normal((batch, 3, size_px, size_px), np.float32)
            for name, each in encoders.items():
                _turn(each, pixels)
                seconds = _turn(each, pixels)
                # The first round warms up.
                if number:
                    took.setdefault((name, batch), []).append(seconds)
    return {
        name: tuple(
            Speed(batch=batch, images_per_second=PICTURES / float(np.median(took[name, batch])))
            for batch in LEAST_GAIN
        )
        for name in encoders
    }


def _turn(encoders: OnnxEncoders, pixels: FloatArray) -> float:
    """Return the seconds that `PICTURES` pictures take in batches of these."""
    started = time.perf_counter()
    for _ in range(PICTURES // len(pixels)):
        encoders.embed_images(pixels)
    return time.perf_counter() - started


def choose(variants: Mapping[str, Variant]) -> str:
    """Return the fastest variant at the largest batch that is worth its cost, else fp32."""
    base = _rates(variants[BASE_VARIANT])
    fit = [
        name
        for name, variant in variants.items()
        if _is_cheap(variant)
        and all(_rates(variant)[batch] >= gain * base[batch] for batch, gain in LEAST_GAIN.items())
    ]
    largest = max(LEAST_GAIN)
    return max(fit, key=lambda name: _rates(variants[name])[largest], default=BASE_VARIANT)


def _rates(variant: Variant) -> dict[int, float]:
    return {speed.batch: speed.images_per_second for speed in variant.speeds}


def _is_cheap(variant: Variant) -> bool:
    if variant.agreement is None or variant.agreement.cosine_lowest < MIN_COSINE:
        return False
    cost = next(cost for cost in variant.costs if cost.split == CHOOSING)
    return cost.macro_auroc_fp32 - cost.macro_auroc <= MAX_AUROC_LOSS and all(
        cost.recalls_fp32[label] - recall <= MAX_RECALL_LOSS
        for label, recall in cost.recalls.items()
        if cost.images[label] >= MIN_IMAGES
    )


def card_lines(ladder: Ladder) -> list[str]:
    """Return the model card's section about precision."""
    lines = [
        "",
        "## Precisions of the image encoder",
        f"Served unless the site says otherwise: {ladder.chosen}. Judged by the picture alone.",
        "",
        "| variant | images a second, batch 1, 8 | macro AUROC, cal, test | cosine, lowest |",
        "| --- | --- | --- | --- |",
    ]
    for variant in ladder.variants:
        rates = ", ".join(f"{rate:.1f}" for rate in _rates(variant).values())
        aurocs = ", ".join(f"{cost.macro_auroc:.4f}" for cost in variant.costs)
        near = "" if variant.agreement is None else f"{variant.agreement.cosine_lowest:.4f}"
        lines.append(f"| {variant.name} | {rates} | {aurocs} | {near} |")
    lines += [f"{name} is not in the bundle: {why}." for name, why in ladder.left_out.items()]
    return lines
