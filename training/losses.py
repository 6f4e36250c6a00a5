"""The nested contrastive loss, L = lambda L_lesions + (1 - lambda) L_patient (arXiv 2505.23709).

Both terms are symmetric InfoNCE (van den Oord et al., 2018, arXiv 1807.03748). Pairs that are not
negatives are masked: images of one lesion, lesions or patients with identical records.
"""

from dataclasses import dataclass, field

import torch
from torch.nn.functional import cross_entropy, logsigmoid


@dataclass(frozen=True)
class Contrast:
    """One contrastive term.

    Attributes:
        loss: () mean over the anchors that take part; 0 where none does.
        negatives: mean number of negatives an anchor had.
        accuracy: share of anchors whose own partner is the most similar.
    """

    loss: torch.Tensor
    negatives: float
    accuracy: float

    @property
    def figures(self) -> dict[str, float]:
        return {"accuracy": self.accuracy, "negatives": self.negatives}


@dataclass(frozen=True)
class Mean:
    """A term that contrasts nothing: the () mean over its rows, and what is logged beside it."""

    loss: torch.Tensor
    figures: dict[str, float] = field(default_factory=dict)


def info_nce(
    first: torch.Tensor,
    second: torch.Tensor,
    scale: torch.Tensor,
    *,
    excluded: torch.Tensor,
    valid: torch.Tensor,
) -> Contrast:
    """Return the symmetric InfoNCE of N pairs.

    Args:
        first: (N, E) unit rows.
        second: (N, E) unit rows; row i is the partner of row i of `first`.
        scale: () inverse temperature.
        excluded: (N, N) bool, pairs that are neither positive nor negative; its diagonal is
            ignored.
        valid: (N,) bool, pairs that take part, as anchors and as negatives.
    """
    first, second = first[valid], second[valid]
    own = torch.eye(len(first), dtype=torch.bool, device=first.device)
    hidden = excluded[valid][:, valid] & ~own
    if len(first) < 2:
        return Contrast((first.sum() + second.sum()) * 0, 0.0, 0.0)
    logits = scale * first @ second.T
    # In no less than float32, whatever the towers computed in.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    target = torch.arange(len(first), device=first.device)
    rows = logits.masked_fill(hidden, -torch.inf)
    columns = logits.T.masked_fill(hidden.T, -torch.inf)
    loss = (cross_entropy(rows, target) + cross_entropy(columns, target)) / 2
    negatives = (~hidden).sum().item() / len(first) - 1
    accuracy = (rows.argmax(1) == target).float().mean().item()
    return Contrast(loss, negatives, accuracy)


def nt_xent(
    first: torch.Tensor, second: torch.Tensor, scale: float, *, excluded: torch.Tensor
) -> Contrast:
    """Return NT-Xent of N pairs: every other row of both sides is a negative.

    As Chen et al. (2020), arXiv 2002.05709, equation 1.

    Args:
        first: (N, E) unit rows.
        second: (N, E) unit rows; row i is the partner of row i of `first`.
        scale: inverse temperature.
        excluded: (N, N) bool, pairs that are neither positive nor negative; its diagonal is
            ignored.
    """
    count = len(first)
    if count < 2:
        return Contrast((first.sum() + second.sum()) * 0, 0.0, 0.0)
    rows = torch.cat([first, second])
    logits = scale * rows @ rows.T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    target = torch.arange(2 * count, device=first.device).roll(count)
    hidden = excluded.tile(2, 2)
    hidden[torch.arange(2 * count), target] = False
    hidden.fill_diagonal_(True)
    logits = logits.masked_fill(hidden, -torch.inf)
    accuracy = (logits.argmax(1) == target).float().mean().item()
    negatives = (~hidden).sum().item() / (2 * count) - 1
    return Contrast(cross_entropy(logits, target), negatives, accuracy)


def pairwise_sigmoid(
    first: torch.Tensor, second: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor
) -> Contrast:
    """Return the sigmoid loss of N pairs: every pair of rows is judged by itself.

    As Zhai et al. (2023), arXiv 2303.15343, equation 1: the sum over all pairs, over N.

    Args:
        first: (N, E) unit rows.
        second: (N, E) unit rows; row i is the partner of row i of `first`.
        scale: () inverse temperature.
        bias: () what is added to every logit.
    """
    count = len(first)
    if count < 2:
        return Contrast((first.sum() + second.sum() + scale + bias) * 0, 0.0, 0.0)
    logits = scale * first @ second.T + bias
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    sign = 2 * torch.eye(count, device=first.device, dtype=logits.dtype) - 1
    own = torch.arange(count, device=first.device)
    accuracy = (logits.argmax(1) == own).float().mean().item()
    return Contrast(-logsigmoid(sign * logits).sum() / count, count - 1.0, accuracy)


def identical_rows(values: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Return (N, N) bool: rows whose present columns and values are all the same.

    Args:
        values: (N, F); what a missing column holds does not matter.
        present: (N, F) bool.
    """
    known = torch.where(present, values, 0)
    same_value = (known[:, None] == known[None]).all(-1)
    same_pattern = (present[:, None] == present[None]).all(-1)
    return same_value & same_pattern
