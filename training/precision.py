"""Which autocast type a device is worth."""

import torch


def is_bf16(precision: str, device: torch.device) -> bool:
    """Return whether to compute in bfloat16.

    `auto` asks the device: a processor without bfloat16 arithmetic emulates it, many times slower
    than float32.
    """
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()
