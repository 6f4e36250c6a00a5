import pytest
import torch

from training.config import ImageSettings
from training.image_encoder import build_image_encoder
from training.stem import ConvolutionalStem


@pytest.mark.parametrize(("patch_px", "convolutions"), [(2, 1), (8, 3), (16, 4)])
def test_a_stem_halves_until_a_token_stands_for_a_patch(patch_px: int, convolutions: int) -> None:
    stem = ConvolutionalStem(patch_px, 24)
    tokens = stem(torch.randn(2, 3, 4 * patch_px, 4 * patch_px))
    assert tokens.shape == (2, 24, 4, 4)
    assert sum(isinstance(layer, torch.nn.Conv2d) for layer in stem.halve) == convolutions


def test_the_tower_with_a_stem_learns_every_layer_and_answers_alike_in_any_batch() -> None:
    torch.manual_seed(0)
    settings = ImageSettings.model_validate(
        {
            "stem": "convolutional",
            "size_px": 32,
            "resize_px": 32,
            "patch_px": 8,
            "width": 16,
            "blocks": 1,
            "heads": 2,
            "readout": "mean",
        }
    )
    tower = build_image_encoder(settings)
    pixels = torch.randn(3, 3, 32, 32)
    # The readout norm makes the plain sum a constant.
    tower(pixels).square().mul(torch.arange(16)).sum().backward()
    stem = [p for name, p in tower.named_parameters() if ".projection." in name and p.ndim > 1]
    assert len(stem) == 4
    assert all(p.grad is not None and p.grad.any() for p in stem)
    tower.eval()
    together = tower(pixels)
    alone = torch.cat([tower(pixels[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_a_patch_that_halving_does_not_reach_is_refused() -> None:
    with pytest.raises(ValueError, match="power of two"):
        ImageSettings(stem="convolutional", patch_px=14)
