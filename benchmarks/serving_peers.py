"""What a user would run instead: the same weights behind plain FastAPI, LitServe or BentoML.

    python -m benchmarks.serving_peers fastapi|litserve|bentoml PROGRAM SIZE_PX RESIZE_PX PORT

Run by `benchmarks.serving` with an interpreter that has torch and the server in question. PROGRAM
is the image encoder as `torch.export` saves it; pictures are decoded and prepared by the functions
of the service, so that only the server differs. Batches where the server has them: 8, 5 ms.
"""

import sys
from typing import Any

import numpy as np

from bundle.images import ImageInput, decode_image, prepare_image

BATCH, DELAY_S = 8, 0.005


class Model:
    """Bytes of one or more images to features, in torch."""

    def __init__(self, program: str, size_px: int, resize_px: int) -> None:
        import torch

        torch.set_num_threads(2)
        self.torch = torch
        self.spec = ImageInput(size_px=size_px, resize_px=resize_px)
        self.module = torch.export.load(program).module()

    def prepare(self, data: bytes) -> Any:
        return prepare_image(decode_image(data), self.spec)

    def embed(self, pixels: Any) -> Any:
        with self.torch.inference_mode():
            return self.module(self.torch.from_numpy(np.ascontiguousarray(pixels))).numpy()


def run_fastapi(model: Model, port: int) -> None:
    import uvicorn
    from fastapi import FastAPI, UploadFile

    app = FastAPI()

    @app.post("/embed")
    def embed(image: UploadFile) -> dict[str, Any]:
        return {"embedding": model.embed(model.prepare(image.file.read())[None])[0].tolist()}

    uvicorn.run(app, port=port, log_level="warning")


def run_litserve(model: Model, port: int) -> None:
    import litserve

    class Embedding(litserve.LitAPI):  # type: ignore[misc, name-defined]
        def setup(self, device: str) -> None:
            self.model = Model(*sys.argv[2:3], *map(int, sys.argv[3:5]))

        def decode_request(self, request: Any) -> Any:
            return self.model.prepare(request["image"].file.read())

        def batch(self, inputs: list[Any]) -> Any:
            return np.stack(inputs)

        def predict(self, pixels: Any) -> Any:
            return self.model.embed(pixels)

        def unbatch(self, output: Any) -> Any:
            return list(output)

        def encode_response(self, output: Any) -> dict[str, Any]:
            return {"embedding": output.tolist()}

    api = Embedding(max_batch_size=BATCH, batch_timeout=DELAY_S, api_path="/embed")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(port=port, generate_client_file=False, log_level="warning")


def run_bentoml(model: Model, port: int) -> None:
    import os
    import subprocess

    target = "benchmarks.serving_peers_bento:Embedding"
    command = ["-m", "bentoml", "serve", target, "--port", str(port)]
    environ = {**os.environ, "BENCH_MODEL": " ".join(sys.argv[2:5])}
    sys.exit(subprocess.run([sys.executable, *command], env=environ, check=False).returncode)


if __name__ == "__main__":
    name, program, size_px, resize_px, number = sys.argv[1:]
    servers = {"fastapi": run_fastapi, "litserve": run_litserve, "bentoml": run_bentoml}
    servers[name](Model(program, int(size_px), int(resize_px)), int(number))
