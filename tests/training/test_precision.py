import platform
from pathlib import Path

import pytest
import torch

from training.config import ImageSettings
from training.image_encoder import build_image_encoder
from training.precision import is_bf16, trained_attention

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("wanted", "device", "attention"),
    [("bf16", CPU, "eager"), ("fp32", CPU, "sdpa"), ("bf16", torch.device("meta"), "sdpa")],
)
def test_a_processor_attends_by_plain_products_in_bfloat16_while_it_trains(
    wanted: str, device: torch.device, attention: str
) -> None:
    settings = ImageSettings(size_px=16, resize_px=16, patch_px=8, width=16, blocks=1, heads=2)
    backbone = build_image_encoder(settings).backbone
    assert backbone.config._attn_implementation == "sdpa"
    with trained_attention(backbone, wanted, device):
        assert backbone.config._attn_implementation == attention
    assert backbone.config._attn_implementation == "sdpa"


def test_both_ways_of_attending_give_the_same_features() -> None:
    settings = ImageSettings(size_px=16, resize_px=16, patch_px=8, width=16, blocks=2, heads=2)
    tower = build_image_encoder(settings).eval()
    pixels = torch.randn(3, 3, 16, 16)
    fused = tower(pixels)
    with trained_attention(tower.backbone, "bf16", CPU):
        plain = tower(pixels)
    torch.testing.assert_close(plain, fused, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("capabilities", "computes"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_bf16": False, "amx_bf16": True}, True),
        ({"neon": True, "bf16": True}, True),
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx2": True}, False),
    ],
)
def test_auto_takes_bfloat16_only_where_the_processor_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], computes: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert is_bf16("auto", CPU) == computes
    assert is_bf16("bf16", CPU)
    assert not is_bf16("fp32", CPU)


def test_what_torch_says_of_this_processor_is_what_the_kernel_says() -> None:
    flags = Path("/proc/cpuinfo")
    if flags.exists() and "x86" in platform.machine():
        kernel = set(flags.read_text().split())
        assert is_bf16("auto", CPU) == bool(kernel & {"avx512_bf16", "amx_bf16"})
    assert is_bf16("auto", CPU) <= torch.ops.mkldnn._is_mkldnn_bf16_supported()
