"""Which autocast type a device is worth."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

# Products of bfloat16 in hardware, by torch's names: of x86 the first two, of ARM the last.
BF16_CAPABILITIES = ("avx512_bf16", "amx_bf16", "bf16")


def is_bf16(precision: str, device: torch.device) -> bool:
    """Return whether to compute in bfloat16.

    `auto` asks the device: a processor without bfloat16 arithmetic emulates it, many times slower
    than float32. (oneDNN calls that supported, wherever there is AVX-512.)
    """
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = torch.cpu.get_capabilities()
    return any(known.get(name, False) for name in BF16_CAPABILITIES)


@contextmanager
def trained_attention(
    backbone: PreTrainedModel, precision: str, device: torch.device
) -> Iterator[None]:
    """Compute attention in the block as it trains fastest on this device.

    In bfloat16 a processor trains faster through plain products than through torch's fused
    attention (`benchmarks/attention.py`); in float32 there is no difference.
    """
    chosen: str = backbone.config._attn_implementation
    if device.type == "cpu" and is_bf16(precision, device):
        backbone.set_attn_implementation("eager")
    try:
        yield
    finally:
        backbone.set_attn_implementation(chosen)
