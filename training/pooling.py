"""From a patient's lesions to one phenotype."""

from typing import Literal

import torch
from torch import nn


class Pooling(nn.Module):
    """Aggregates (P, L, E) lesion features under a mask into (P, E).

    `mean` is the paper's choice; `max` and gated `attention` (Ilse et al., 2018, arXiv 1802.04712)
    ask whether the mean drowns the one malignant lesion.
    """

    def __init__(self, kind: Literal["mean", "max", "attention"], width: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "attention":
            self.value = nn.Linear(width, 128)
            self.gate = nn.Linear(width, 128)
            self.weight = nn.Linear(128, 1)

    def forward(self, lesions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return (P, E) phenotypes.

        Args:
            lesions: (P, L, E) features, anything where the mask is False.
            mask: (P, L) bool, True for a lesion; at least one a patient.
        """
        inside = mask.unsqueeze(-1)
        if self.kind == "max":
            return lesions.masked_fill(~inside, -torch.inf).amax(dim=1)
        if self.kind == "mean":
            return torch.where(inside, lesions, 0).sum(dim=1) / inside.sum(dim=1)
        gated = torch.tanh(self.value(lesions)) * torch.sigmoid(self.gate(lesions))
        weights = self.weight(gated).masked_fill(~inside, -torch.inf).softmax(dim=1)
        return (weights * torch.where(inside, lesions, 0)).sum(dim=1)
