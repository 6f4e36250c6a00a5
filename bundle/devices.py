"""On what the image encoder runs, in ONNX Runtime's terms (execution providers)."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import onnxruntime as ort

from bundle.errors import BundleError

Device = Literal["cpu", "cuda", "tensorrt"]
# What may be asked for; auto is CUDA where ONNX Runtime has it and it starts, else the processor.
Wanted = Literal["auto", Device]
PROVIDERS: Mapping[Device, str] = MappingProxyType(
    {
        "cpu": "CPUExecutionProvider",
        "cuda": "CUDAExecutionProvider",
        "tensorrt": "TensorrtExecutionProvider",
    }
)
# Pictures of one run that a TensorRT engine is made for: fastest with so many, and at most.
# A larger run has it made anew.
USUAL, MOST = 8, 32

Providers = list[tuple[str, dict[str, str]]]
ON_CPU: Providers = [(PROVIDERS["cpu"], {})]


def device_providers(
    wanted: Wanted, *, size_px: int, is_half: bool = False, engines: Path | None = None
) -> Providers:
    """Return execution providers with their options, best first; the processor is the last.

    Args:
        wanted: the device.
        size_px: side of the pictures.
        is_half: whether the graph computes in float16.
        engines: folder where TensorRT keeps the engines that it made; None makes them at each
            start, in minutes.

    Raises:
        BundleError: the installed ONNX Runtime does not know the device.
    """
    available = ort.get_available_providers()
    if wanted == "auto":
        chosen: Device = "cuda" if PROVIDERS["cuda"] in available else "cpu"
    else:
        chosen = wanted
    if PROVIDERS[chosen] not in available:
        raise BundleError(
            f"expected an ONNX Runtime that knows {chosen}, got {', '.join(available)}: "
            "pip install 'slimp[gpu]' in the place of 'slimp[cpu]', or set SLIMP_DEVICE=cpu"
        )
    if chosen == "cpu":
        return ON_CPU
    on_cuda: Providers = [(PROVIDERS["cuda"], {}), *ON_CPU]
    if chosen == "cuda":
        return on_cuda
    # TensorRT leaves what it cannot do to CUDA.
    return [(PROVIDERS["tensorrt"], _tensorrt_options(size_px, is_half, engines)), *on_cuda]


def started_device(wanted: Wanted, session: ort.InferenceSession) -> Device:
    """Return what the session runs on.

    ONNX Runtime goes on with the next provider where a library of the first is missing.

    Raises:
        BundleError: that is not what was asked for.
    """
    first = session.get_providers()[0]
    started = next(name for name, provider in PROVIDERS.items() if provider == first)
    if wanted not in ("auto", started):
        raise BundleError(
            f"expected ONNX Runtime to start {wanted}, it runs on {started}: a driver or a "
            "library is missing (its own message says which); install it, or set SLIMP_DEVICE=auto"
        )
    return started


def _tensorrt_options(size_px: int, is_half: bool, engines: Path | None) -> dict[str, str]:
    def pictures(count: int) -> str:
        return f"pixels:{count}x3x{size_px}x{size_px}"

    options = {
        "trt_fp16_enable": str(is_half),
        "trt_profile_min_shapes": pictures(1),
        "trt_profile_opt_shapes": pictures(USUAL),
        "trt_profile_max_shapes": pictures(MOST),
    }
    if engines is not None:
        options |= {"trt_engine_cache_enable": "True", "trt_engine_cache_path": str(engines)}
    return options
