"""Masked autoencoding of the images (MAE; He et al., 2022, arXiv 2111.06377), without records.

The image tower encodes the patches that it is shown; transformers' ViTMAE decoder draws the others.
Unlike the original, the tower keeps its own position table, so that any of its checkpoints will do.
"""

from typing import TYPE_CHECKING

import torch
from transformers import ViTMAEConfig
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEDecoder

from training.batch import Batch, Encode
from training.config import Config
from training.losses import Mean
from training.objectives.objective import Objective, Term
from training.processes import gather_rows

if TYPE_CHECKING:
    from training.model import Slimp

# The original decoder is 8 blocks of 512; ours grows with a tower that is smaller than a ViT-B.
DECODER_BLOCKS = 4
DECODER_HEADS = 4


class MaskedImages(Objective):
    """Mean squared error of the hidden patches, each standardised by itself."""

    def __init__(self, config: Config, dim: int, patch_px: int) -> None:
        super().__init__({"mae": 1.0})
        self.patch_px, self.masked_share = patch_px, config.objective.masked_share
        width = max(DECODER_HEADS * 8, dim // 2 // (4 * DECODER_HEADS) * 4 * DECODER_HEADS)
        settings = ViTMAEConfig(
            hidden_size=dim,
            decoder_hidden_size=width,
            decoder_num_hidden_layers=DECODER_BLOCKS,
            decoder_num_attention_heads=DECODER_HEADS,
            decoder_intermediate_size=4 * width,
            patch_size=patch_px,
            image_size=config.image.size_px,
        )
        settings._attn_implementation = "sdpa"
        self.decoder = ViTMAEDecoder(settings, (config.image.size_px // patch_px) ** 2)

    def forward(
        self, towers: "Slimp", images: torch.Tensor, batch: Batch, encode: Encode
    ) -> dict[str, Term]:
        """Return the term `mae`; the features of the whole images are not used."""
        pixels = batch["pixels"]
        tokens = towers.image.embed_patches(pixels)
        count = tokens.shape[1] - 1
        order = torch.rand(len(pixels), count, device=pixels.device).argsort(1)
        shown = order[:, : max(1, round(count * (1 - self.masked_share)))]
        seen = tokens[:, 1:].gather(1, shown.unsqueeze(-1).expand(-1, -1, tokens.shape[2]))
        encoded = towers.image.encode_tokens(torch.cat([tokens[:, :1], seen], dim=1))
        drawn = self.decoder(encoded, order.argsort(1)).logits
        patches = self.patches(pixels)
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        target = (patches - mean) / (variance + 1e-6).sqrt()
        error = (drawn - target).square().mean(-1)
        hidden = torch.ones_like(error).scatter(1, shown, 0.0)
        return {"mae": Mean(gather_rows((error * hidden).sum(1) / hidden.sum(1)).mean())}

    def patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return (N, P, 3 patch_px^2) of (N, 3, H, W), patches row by row."""
        side = self.patch_px
        cut = pixels.unfold(2, side, side).unfold(3, side, side)
        return cut.permute(0, 2, 3, 4, 5, 1).flatten(1, 2).flatten(2)
