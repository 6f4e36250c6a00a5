"""An ONNX graph run by OpenVINO, which computes in bfloat16 where the processor can."""

from queue import LifoQueue
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.cpus import available_cpus
from bundle.errors import BundleError, CorruptBundle

# The names of bfloat16 in OpenVINO's answers: of what a model computes in, and a processor can.
PRECISION, CAPABILITY = "bf16", "BF16"
CAPABILITIES = "OPTIMIZATION_CAPABILITIES"
PROPERTY = "INFERENCE_PRECISION_HINT"


class OpenVinoSession:
    """Answers as an ONNX Runtime session does.

    As many inferences run at once as there are processors for their threads; others wait.
    """

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
        # Asked of the processor: a model may say bfloat16 where it is emulated, many times slower
        # than float32.
        if CAPABILITY not in core.get_property("CPU", CAPABILITIES):
            raise BundleError(
                f"the variant {PRECISION} needs a processor that computes in bfloat16, this one "
                "does not, says OpenVINO: choose another variant (SLIMP_VARIANT=fp32)"
            )
        at_once = max(1, available_cpus() // threads)
        options = {
            PROPERTY: PRECISION,
            "INFERENCE_NUM_THREADS": threads * at_once,
            "NUM_STREAMS": at_once,
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
        # The one that worked last is taken first: its memory is warm.
        self._requests: LifoQueue[Any] = LifoQueue()
        for _ in range(at_once):
            self._requests.put(compiled.create_infer_request())

    def run(
        self, names: None, inputs: dict[str, npt.NDArray[Any]]
    ) -> list[npt.NDArray[np.float32]]:
        """Return the outputs, any shape; `names` is there because ONNX Runtime has it."""
        request = self._requests.get()
        try:
            request.infer(inputs, share_inputs=True)
            # OpenVINO's own memory: the next inference writes over it.
            return [np.array(request.get_output_tensor(i).data) for i in range(self.outputs)]
        finally:
            self._requests.put(request)
