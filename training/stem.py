"""A convolutional stem for vision transformers that learn from scratch.

One linear map of a whole patch is slow to learn from few images; a short stack of strided
convolutions in its place learns in a fraction of the steps (Xiao et al., 2021, "Early convolutions
help transformers see better", arXiv 2106.14881).
"""

import torch
from torch import nn

LEAST_CHANNELS = 16


class ConvolutionalStem(nn.Conv2d):
    """Images to a grid of tokens: strided 3 x 3 convolutions, then this 1 x 1 convolution.

    It takes the place of the linear patch projection, whose `weight` the network asks for its
    type.
    """

    def __init__(self, patch_px: int, width: int) -> None:
        """Build one convolution a halving; each doubles the channels, up to the width.

        Args:
            patch_px: side of the square that a token stands for; a power of two, 2 at least.
            width: channels of a token (D).
        """
        super().__init__(width, width, 1)
        halvings = patch_px.bit_length() - 1
        layers: list[nn.Module] = []
        before = 3
        for left in reversed(range(halvings)):
            after = max(LEAST_CHANNELS, width >> left) if left else width
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.GELU(),
            ]
            before = after
        self.halve = nn.Sequential(*layers)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return (N, D, H / patch_px, W / patch_px) of (N, 3, H, W)."""
        return super().forward(self.halve(pixels))
