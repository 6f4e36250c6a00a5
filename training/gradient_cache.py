"""A contrastive batch larger than memory: every tower encodes it twice, chunk by chunk.

After Gao et al. (2021), "Scaling deep contrastive learning batch size under memory limited setup",
arXiv 2101.06983. The first pass keeps features and no activations. The loss of all features gives
the gradient of each; the second pass encodes each chunk again, under the random numbers of the
first, and carries that gradient into the tower. The result is the whole batch's gradient, dropout
included, for the memory of one chunk and one more forward pass.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn

Inputs = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class RandomState:
    """The random numbers that follow, on the processor and on one device."""

    processor: torch.Tensor
    device: torch.Tensor | None

    @classmethod
    def now(cls, device: torch.device) -> "RandomState":
        on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), on_device)

    def restore(self, device: torch.device) -> None:
        torch.set_rng_state(self.processor)
        if self.device is not None:
            torch.cuda.set_rng_state(self.device, device)


@dataclass(frozen=True)
class Chunk:
    """What encoding some rows again takes."""

    tower: nn.Module
    inputs: Inputs
    random: RandomState


class GradientCache:
    """One batch's features, encoded without activations.

    Use it once: `encode` in the place of calling the towers, the loss's `backward`, then this
    object's `backward`.
    """

    def __init__(self, rows: int, autocast: Callable[[], AbstractContextManager[object]]) -> None:
        """Prepare an empty cache.

        Args:
            rows: how many rows a tower encodes at a time.
            autocast: gives the context that both passes compute under.
        """
        self.rows, self.autocast = rows, autocast
        self._encoded: list[tuple[list[Chunk], torch.Tensor]] = []

    def encode(self, tower: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
        """Return the tower's (N, D) features of (N, ...) inputs: a leaf that takes gradients."""
        chunks, parts = [], []
        for split in zip(*(i.split(self.rows) for i in inputs), strict=True):
            chunks.append(Chunk(tower, split, RandomState.now(split[0].device)))
            with torch.no_grad(), self.autocast():
                parts.append(tower(*split))
        features = torch.cat(parts).requires_grad_()
        self._encoded.append((chunks, features))
        return features

    def backward(self) -> None:
        """Carry the gradients that the features received into the towers."""
        for chunks, features in self._encoded:
            if features.grad is None:
                continue
            gradients = features.grad.split(self.rows)
            for chunk, gradient in zip(chunks, gradients, strict=True):
                self._encode_again(chunk, gradient)
        self._encoded.clear()

    def _encode_again(self, chunk: Chunk, gradient: torch.Tensor) -> None:
        device = gradient.device
        after = RandomState.now(device)
        chunk.random.restore(device)
        with self.autocast():
            features = chunk.tower(*chunk.inputs)
        after.restore(device)
        # A tower that is frozen as a whole has nothing to learn from it.
        if features.requires_grad:
            features.backward(gradient)
