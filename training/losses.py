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
    alike: torch.Tensor | None = None,
) -> Contrast:
    """Return the symmetric InfoNCE of N pairs.

    Args:
        first: (N, E) unit rows.
        second: (N, E) unit rows; row i is the partner of row i of `first`.
        scale: () inverse temperature.
        excluded: (N, N) bool, pairs that are neither positive nor negative; its diagonal is
            ignored.
        valid: (N,) bool, pairs that take part, as anchors and as negatives.
        alike: (N, N) symmetric, 0 to 1, how nearly a pair is a positive too: an anchor's target is
            shared in this proportion, its own partner counting 1. None: the partner alone.
    """
    first, second = first[valid], second[valid]
    own = torch.eye(len(first), dtype=torch.bool, device=first.device)
    hidden = excluded[valid][:, valid] & ~own
    if len(first) < 2:
        return Contrast((first.sum() + second.sum()) * 0, 0.0, 0.0)
    logits = scale * first @ second.T
    # The product is of the towers' precision, all that follows of no less than float32.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    target = torch.arange(len(first), device=first.device)
    rows = logits.masked_fill(hidden, -torch.inf)
    columns = logits.T.masked_fill(hidden.T, -torch.inf)
    if alike is None:
        loss = (cross_entropy(rows, target) + cross_entropy(columns, target)) / 2
    else:
        shares = alike[valid][:, valid].to(logits.dtype).masked_fill(own, 1)
        loss = (_shared(rows, shares, hidden) + _shared(columns, shares, hidden.T)) / 2
    negatives = (~hidden).sum().item() / len(first) - 1
    accuracy = (rows.argmax(1) == target).float().mean().item()
    return Contrast(loss, negatives, accuracy)


def _shared(logits: torch.Tensor, shares: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy against targets in proportion to (N, N) shares."""
    target = shares.masked_fill(hidden, 0)
    target = target / target.sum(1, keepdim=True)
    # Hidden pairs have no share, and their logarithm is minus infinity.
    log_share = logits.log_softmax(1).masked_fill(hidden, 0)
    return -(target * log_share).sum(1).mean()


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


def alike_rows(
    values: torch.Tensor, present: torch.Tensor, numeric: torch.Tensor, width: float
) -> torch.Tensor:
    """Return (N, N), 1 for equal rows down to 0: how alike records are in every column at once.

    A category, and whether a column is there at all, must be equal; numbers count by a Gaussian of
    their difference. Lesions of one site, sex and nearly one age are no true negatives of each
    other.

    Args:
        values: (N, F), numbers standardised; what a missing column holds does not matter.
        present: (N, F) bool.
        numeric: (F,) bool, which columns are numbers.
        width: the Gaussian's deviation, in standard deviations of a column.
    """
    known = torch.where(present, values, 0)
    same = identical_rows(known[:, ~numeric], present[:, ~numeric])
    same &= (present[:, None] == present[None]).all(-1)
    numbers = known[:, numeric]
    squares = (numbers[:, None] - numbers[None]).square().sum(-1)
    return torch.exp(-squares / (2 * width**2)) * same
