"""The LitServe service of `benchmarks.serving_peers`: its worker processes import it by name."""

from typing import Any

import litserve
import numpy as np
from fastapi import Request

from benchmarks.serving_peers import BATCH, DELAY_S, Model


class Embedding(litserve.LitAPI):
    """One worker, as there is one model; pictures are decoded in it."""

    def __init__(self, *program: Any) -> None:
        super().__init__(max_batch_size=BATCH, batch_timeout=DELAY_S, api_path="/embed")
        self.program = program

    def setup(self, device: str) -> None:
        self.model = Model(*self.program)

    def decode_request(self, request: Request) -> Any:
        # LitServe hands over the form that the request held.
        form: Any = request
        return self.model.prepare(form["image"].file.read())

    def batch(self, inputs: list[Any]) -> Any:
        return np.stack(inputs)

    def predict(self, pixels: Any) -> Any:
        return self.model.embed(pixels)

    def unbatch(self, output: Any) -> Any:
        return list(output)

    def encode_response(self, output: Any) -> dict[str, Any]:
        return {"embedding": output.tolist()}


def run(program: str, size_px: int, resize_px: int, port: int) -> None:
    """Serve until the process ends."""
    api = Embedding(program, size_px, resize_px)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(port=port, generate_client_file=False, log_level="warning")
