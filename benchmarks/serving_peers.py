"""What a user would run instead: the same weights behind plain FastAPI, LitServe or BentoML.

    python -m benchmarks.serving_peers fastapi|litserve|bentoml PROGRAM SIZE_PX RESIZE_PX PORT

Run by `benchmarks.serving` with an interpreter that has torch and the server in question. PROGRAM
is the image encoder as `torch.export` saves it; pictures are decoded and prepared by the functions
of the service, so that only the server differs. Batches where the server has them: 8, 5 ms. With
BENCH_BF16 in the environment torch computes in bfloat16 (autocast).
"""

import os
import sys
from typing import Any

import numpy as np

from bundle.cpus import available_cpus
from bundle.images import ImageInput, decode_image, prepare_image

BATCH, DELAY_S = 8, 0.005


class Model:
    """Bytes of one or more images to features, in torch."""

    def __init__(self, program: str, size_px: int, resize_px: int) -> None:
        import torch

        torch.set_num_threads(available_cpus())
        self.torch = torch
        self.is_bf16 = "BENCH_BF16" in os.environ
        self.spec = ImageInput(size_px=size_px, resize_px=resize_px)
        self.module = torch.export.load(program).module()

    def prepare(self, data: bytes) -> Any:
        return prepare_image(decode_image(data), self.spec)

    def embed(self, pixels: Any) -> Any:
        given = self.torch.from_numpy(np.ascontiguousarray(pixels))
        autocast = self.torch.autocast("cpu", self.torch.bfloat16, enabled=self.is_bf16)
        with self.torch.inference_mode(), autocast:
            return self.module(given).float().numpy()


def run_fastapi(program: str, size_px: int, resize_px: int, port: int) -> None:
    import uvicorn
    from fastapi import FastAPI, UploadFile

    model = Model(program, size_px, resize_px)
    app = FastAPI()

    @app.post("/embed")
    def embed(image: UploadFile) -> dict[str, Any]:
        return {"embedding": model.embed(model.prepare(image.file.read())[None])[0].tolist()}

    uvicorn.run(app, port=port, log_level="warning")


def run_litserve(program: str, size_px: int, resize_px: int, port: int) -> None:
    from benchmarks import serving_peers_litserve

    serving_peers_litserve.run(program, size_px, resize_px, port)


def run_bentoml(program: str, size_px: int, resize_px: int, port: int) -> None:
    target = "benchmarks.serving_peers_bento:Embedding"
    command = ["-m", "bentoml", "serve", target, "--port", str(port)]
    environ = {**os.environ, "BENCH_MODEL": f"{program} {size_px} {resize_px}"}
    # In this process's place: what ends it ends the service.
    os.execve(sys.executable, [sys.executable, *command], environ)


if __name__ == "__main__":
    name, program, size_px, resize_px, number = sys.argv[1:]
    servers = {"fastapi": run_fastapi, "litserve": run_litserve, "bentoml": run_bentoml}
    servers[name](program, int(size_px), int(resize_px), int(number))
