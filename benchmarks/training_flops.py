"""How much of the device's matrix-product peak pre-training reaches.

    python -m benchmarks.training_flops COHORT --out FOLDER [--batch 1024 2048] [--size 224]
        [--steps 20] [--precision bf16] [--chunk N] [--workers 8]

A ViT-S/16 from scratch is pre-trained as `slimp train` does, on whatever device torch has, `steps`
steps for each batch size. The first quarter of the steps, at least one, is warm-up. Model FLOP
utilisation is the floating-point operations of one forward and backward pass of image and record
towers (counted by torch), times images per second, over the best rate of a large matrix product at
the same precision in the same run. Gradient caching (--chunk) computes the forward pass twice; the
second one does not count as work of the model.
"""

import argparse
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from cohort.cohort import Cohort
from training.config import BatchSettings, Config, ImageSettings, OptimiserSettings
from training.data import fit_schema, load_rows
from training.model import Slimp
from training.precision import is_bf16
from training.trainer import pretrain

PRODUCTS, ROUNDS = 10, 5
SIDE = {"cuda": 8192, "cpu": 1536}


def config_of(options: argparse.Namespace, batch: int) -> Config:
    side = options.size
    return Config(
        precision=options.precision,
        log_steps=1,
        image=ImageSettings(size_px=side, resize_px=side * 8 // 7),
        batch=BatchSettings(
            patients=batch, lesions=1, chunk=options.chunk, workers=options.workers
        ),
        optimiser=OptimiserSettings(steps=options.steps, epochs=options.steps),
    )


def product_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the most floating-point operations a second of a square matrix product."""
    side = SIDE[device.type]
    first, second = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    rates = []
    for _ in range(ROUNDS + 1):
        _wait(device)
        start = time.perf_counter()
        for _ in range(PRODUCTS):
            first @ second
        _wait(device)
        rates.append(2 * side**3 * PRODUCTS / (time.perf_counter() - start))
    return max(rates[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def image_flops(config: Config, cohort: Cohort) -> float:
    """Return the operations of a forward and backward pass of all towers, for one image."""
    schema = fit_schema(cohort.schema, load_rows(cohort, ["train"], cohort.info.labels))
    towers, side = Slimp(config, schema), config.image.size_px
    # The fused kernels of some devices are not among those that torch can count.
    towers.image.backbone.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        towers.image(torch.randn(1, 3, side, side)).sum().backward()
        for level in ("lesion", "patient"):
            tower, fields = towers.records(level), len(schema.at(level))
            if tower is not None:
                known = torch.ones(1, fields, dtype=torch.bool)
                tower(torch.zeros(1, fields), known).sum().backward()
    return float(counter.get_total_flops())


def rates_of(cohort: Cohort, config: Config, out: Path) -> tuple[float, float, float]:
    """Return images a second, the share of the time spent waiting for them, and the peak MiB."""
    seen: list[dict[str, float]] = []
    shutil.rmtree(out, ignore_errors=True)
    pretrain(cohort, config, out, report=lambda step, total, metrics: seen.append(metrics))
    warm = seen[max(1, len(seen) // 4) :]
    seconds = [1 / metrics["images_per_second"] for metrics in warm]
    waits = [metrics["data_wait_share"] for metrics in warm]
    return (
        1 / float(np.mean(seconds)),
        float(np.average(waits, weights=seconds)),
        max(metrics["memory_mib"] for metrics in warm),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--precision", choices=["fp32", "bf16", "auto"], default="bf16")
    parser.add_argument("--chunk", type=int)
    parser.add_argument("--workers", type=int, default=8)
    options = parser.parse_args()
    cohort = Cohort.open(options.cohort)
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    dtype = torch.bfloat16 if is_bf16(options.precision, device) else torch.float32
    peak = product_peak(device, dtype)
    print(f"{device.type}, {dtype}, matrix product {peak / 1e12:.2f} TFLOP/s")
    print("| batch | images/s | of the peak | waiting | MiB |\n|" + " ---: |" * 5)
    for batch in options.batch:
        config = config_of(options, batch)
        rate, waited, memory = rates_of(cohort, config, options.out / str(batch))
        share = image_flops(config, cohort) * rate / peak
        print(f"| {batch} | {rate:.1f} | {share:.2f} | {waited:.3f} | {memory:.0f} |", flush=True)


if __name__ == "__main__":
    main()
