"""An ONNX graph run by OpenVINO, which computes in bfloat16 where the processor can."""

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.errors import BundleError, CorruptBundle

# The names of bfloat16 in OpenVINO's answers.
PRECISION = "bf16"
PROPERTY = "INFERENCE_PRECISION_HINT"


class OpenVinoSession:
    """Answers as an ONNX Runtime session does; one inference at a time, on all its threads."""

    def __init__(self, name: str, data: bytes, *, threads: int) -> None:
        """Compile the graph.

        Args:
            name: the graph's, for errors.
            data: the ONNX model, weights inside.
            threads: threads within one inference.

        Raises:
            BundleError: OpenVINO is not installed, or this processor has no bfloat16.
            CorruptBundle: OpenVINO cannot read the graph.
        """
        try:
            # Half a second that only this variant needs.
            import openvino
        except ImportError:
            raise BundleError(
                f"the variant {PRECISION} needs OpenVINO: pip install openvino, or choose another "
                "variant (SLIMP_VARIANT=fp32)"
            ) from None
        core = openvino.Core()
        options = {
            PROPERTY: PRECISION,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
        }
        try:
            compiled = core.compile_model(core.read_model(data), "CPU", options)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise CorruptBundle(f"{name}.onnx cannot be loaded by OpenVINO: {reason}") from None
        if (got := compiled.get_property(PROPERTY).to_string()) != PRECISION:
            raise BundleError(
                f"the variant {PRECISION} needs a processor that computes in bfloat16, OpenVINO "
                f"chose {got} here: choose another variant (SLIMP_VARIANT=fp32)"
            )
        self.inputs = tuple(port.get_any_name() for port in compiled.inputs)
        self.outputs = len(compiled.outputs)
        self._request = compiled.create_infer_request()
        self._lock = threading.Lock()

    def run(
        self, names: None, inputs: dict[str, npt.NDArray[Any]]
    ) -> list[npt.NDArray[np.float32]]:
        """Return the outputs, any shape; `names` is there because ONNX Runtime has it."""
        with self._lock:
            self._request.infer(inputs, share_inputs=True)
            return [np.array(self._request.get_output_tensor(i).data) for i in range(self.outputs)]
