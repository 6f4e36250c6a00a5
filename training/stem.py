"""A convolutional stem for vision transformers that learn from scratch.

One linear map of a whole patch is slow to learn from few images; a short stack of strided
convolutions in its place learns in a fraction of the steps (Xiao et al., 2021, "Early convolutions
help transformers see better", arXiv 2106.14881).
"""

from torch import nn


def convolutional_stem(patch_px: int, width: int) -> nn.Sequential:
    """Return (N, 3, H, W) to (N, D, H / patch_px, W / patch_px).

    Each 3 x 3 convolution halves the side and doubles the channels, up to the width.

    Args:
        patch_px: a power of two, 2 at least.
        width: channels after the stem (D).
    """
    halvings = patch_px.bit_length() - 1
    layers: list[nn.Module] = []
    before = 3
    for left in reversed(range(halvings)):
        after = max(16, width >> left)
        layers += [
            nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.GELU(),
        ]
        before = after
    return nn.Sequential(*layers, nn.Conv2d(before, width, 1))
