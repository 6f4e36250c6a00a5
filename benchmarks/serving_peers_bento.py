"""The BentoML service of `benchmarks.serving_peers`: BentoML imports it by name."""

import os
from pathlib import Path
from typing import Any

import bentoml
import numpy as np

from benchmarks.serving_peers import BATCH, Model


@bentoml.service(workers=1, traffic={"timeout": 60})
class Embedding:
    def __init__(self) -> None:
        program, size_px, resize_px = os.environ["BENCH_MODEL"].split()
        self.model = Model(program, int(size_px), int(resize_px))

    @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=60_000, route="/embed")
    def embed(self, image: list[Path]) -> list[Any]:
        pixels = np.stack([self.model.prepare(path.read_bytes()) for path in image])
        return [row.tolist() for row in self.model.embed(pixels)]
