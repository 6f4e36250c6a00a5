"""What every pre-training objective is: towers and a batch to loss terms."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from training.batch import Batch, Encode

if TYPE_CHECKING:
    from training.model import Slimp


class Term(Protocol):
    """One term of a loss."""

    @property
    def loss(self) -> torch.Tensor: ...

    @property
    def figures(self) -> Mapping[str, float]:
        """What is logged beside the loss."""
        ...


class Objective(nn.Module):
    """A loss over the towers' features, with the layers that only pre-training needs.

    Attributes:
        weights: by term, its weight in the total.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.weights = dict(weights)

    def forward(
        self, towers: "Slimp", images: torch.Tensor, batch: Batch, encode: Encode
    ) -> dict[str, Term]:
        """Return the terms that this batch and the towers' fields allow.

        Args:
            towers: the encoders.
            images: (N, D) features of the batch's pixels.
            batch: as `Slimp.forward` says.
            encode: calls a tower on its inputs.
        """
        raise NotImplementedError


def projection(width: int, out: int) -> nn.Module:
    """Return the layers between a feature and the space that is contrasted."""
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, out))
