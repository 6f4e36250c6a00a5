"""The metadata towers: one token a column, a transformer over the tokens.

After the FT-Transformer (Gorishniy et al., 2021, arXiv 2106.11959). Numeric columns: a learned
vector times the standardised value, plus a learned bias; categorical and boolean columns: an
embedding; a missing value: the column's own learned token, which no real value can equal.
"""

from collections.abc import Sequence

import torch
from torch import nn

from bundle.fields import Field
from training.config import RecordSettings


class RecordEncoder(nn.Module):
    """Encoded records of one level to features."""

    is_category: torch.Tensor
    offsets: torch.Tensor
    last_code: torch.Tensor

    def __init__(self, fields: Sequence[Field], settings: RecordSettings, dim: int) -> None:
        """Build the tower.

        Args:
            fields: the F columns of one level, at least one.
            settings: width and depth.
            dim: D, the width of the features.
        """
        super().__init__()
        width = settings.width
        sizes = [categories_of(field) for field in fields]
        # Codes of all columns share one table; a numeric column has none and points at its start.
        is_category = torch.tensor([s > 0 for s in sizes])
        offsets = torch.tensor([0, *sizes[:-1]]).cumsum(0) * is_category
        self.register_buffer("is_category", is_category)
        self.register_buffer("offsets", offsets)
        self.register_buffer("last_code", torch.tensor([max(s - 1, 0) for s in sizes]))
        self.codes = nn.Embedding(max(1, sum(sizes)), width)
        self.slope = nn.Parameter(torch.randn(len(sizes), width) * 0.02)
        self.column = nn.Parameter(torch.randn(len(sizes), width) * 0.02)
        self.missing = nn.Parameter(torch.randn(len(sizes), width) * 0.02)
        self.summary = nn.Parameter(torch.randn(width) * 0.02)
        nn.init.normal_(self.codes.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(
            width,
            settings.heads,
            dim_feedforward=4 * width,
            dropout=settings.dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerEncoder(layer, settings.layers, enable_nested_tensor=False)
        self.readout = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim), nn.LayerNorm(dim))

    def forward(self, values: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Return (N, D) features.

        Args:
            values: (N, F) float32 as `bundle.records.encode_records` gives them.
            present: (N, F) bool.
        """
        tokens = self.tokens(values, present)
        summary = self.summary.expand(values.shape[0], 1, -1)
        encoded = self.layers(torch.cat([summary, tokens], dim=1))
        features: torch.Tensor = self.readout(encoded[:, 0])
        return features

    def tokens(self, values: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Return (N, F, width) column tokens."""
        codes = values.long().clamp(min=0).minimum(self.last_code)
        category = self.codes(codes + self.offsets)
        number = values.unsqueeze(-1) * self.slope
        known = torch.where(self.is_category[:, None], category, number)
        return self.column + torch.where(present.unsqueeze(-1), known, self.missing)


def categories_of(field: Field) -> int:
    """Return how many codes a column has, 0 for a number."""
    return {"numeric": 0, "boolean": 2, "categorical": len(field.categories)}[field.kind]
