"""How attention is computed and what a training image costs: plain products beside the fused one.

    python -m benchmarks.attention

A ViT-S/14 of 8 blocks from scratch, forward and backward on one thread, both ways in turn, three
times; the median of processor milliseconds an image.
"""

import argparse
import time

import numpy as np
import torch

from training.config import ImageSettings
from training.image_encoder import ImageEncoder, build_image_encoder

SIDES = (112, 140, 224)
IMAGES, ROUNDS = 16, 3


def training_ms(tower: ImageEncoder, pixels: torch.Tensor, *, bf16: bool) -> float:
    """Return processor milliseconds an image of one forward and backward pass."""
    start = time.process_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        features = tower(pixels)
    features.float().square().mean().backward()
    return 1000 * (time.process_time() - start) / len(pixels)


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    ).parse_args()
    torch.set_num_threads(1)
    print("| precision | side px | plain, ms | fused, ms | fused / plain |\n|" + " --- |" * 5)
    for bf16 in (True, False):
        for side in SIDES:
            settings = ImageSettings(size_px=side, resize_px=side, patch_px=14, blocks=8)
            tower, pixels = build_image_encoder(settings), torch.randn(IMAGES, 3, side, side)
            spent: dict[str, list[float]] = {"eager": [], "sdpa": []}
            for number in range(ROUNDS + 1):
                for way, times in spent.items():
                    tower.backbone.set_attn_implementation(way)
                    cost = training_ms(tower, pixels, bf16=bf16)
                    # The first pass of each is warm-up.
                    times.extend([cost] if number else [])
            plain, fused = (float(np.median(times)) for times in spent.values())
            name = "bf16" if bf16 else "fp32"
            print(f"| {name} | {side} | {plain:.1f} | {fused:.1f} | {fused / plain:.2f} |")


if __name__ == "__main__":
    main()
