"""What every pre-training objective is: towers and a batch to loss terms."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from training.batch import Batch, Encode

if TYPE_CHECKING:
    from training.model import Slimp


# As CLIP does (Radford et al., 2021, arXiv 2103.00020): the inverse temperature stays below 100.
MAX_LOG_SCALE = math.log(100)


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

    @torch.no_grad()
    def limit_scales(self) -> None:
        """Bring learned inverse temperatures back to 100 at most: to be called after every step.

        In the forward pass instead, a clamp would take the gradient away that leads back.
        """
        for name, scale in self.named_parameters():
            if name.endswith("log_scale"):
                scale.clamp_(max=MAX_LOG_SCALE)


def learned_scale(start: float) -> nn.Parameter:
    """Return the () logarithm of an inverse temperature, 100 at most."""
    return nn.Parameter(torch.tensor(min(math.log(start), MAX_LOG_SCALE)))


def projection(width: int, out: int) -> nn.Module:
    """Return the layers between a feature and the space that is contrasted."""
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, out))
