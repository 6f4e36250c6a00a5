import math
from typing import Literal, get_args

import numpy as np
import pytest
import torch

from training.pooling import Pooling

Kind = Literal["mean", "max", "attention"]
SHAPE = (3, 5, 4)


def patients() -> tuple[torch.Tensor, torch.Tensor]:
    lesions = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0], [0, 0, 0, 1, 0]], dtype=torch.bool)
    return lesions, mask


@torch.no_grad()
def slow_pooling(pooling: Pooling, lesions: torch.Tensor, mask: torch.Tensor) -> list[list[float]]:
    """Return phenotypes patient by patient over the lesions that count."""
    answers = []
    for rows, inside in zip(lesions, mask, strict=True):
        own = rows[inside]
        if pooling.kind == "max":
            answers.append([max(column.tolist()) for column in own.T])
            continue
        weights = [1.0] * len(own)
        if pooling.kind == "attention":
            weights = [
                math.exp(
                    float(
                        pooling.weight(
                            torch.tanh(pooling.value(row)) * torch.sigmoid(pooling.gate(row))
                        )
                    )
                )
                for row in own
            ]
        shares = [w / sum(weights) for w in weights]
        answers.append(
            [sum(s * float(v) for s, v in zip(shares, column, strict=True)) for column in own.T]
        )
    return answers


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_phenotype_is_made_of_the_lesions_that_the_mask_counts(kind: Kind) -> None:
    torch.manual_seed(1)
    pooling = Pooling(kind, SHAPE[2]).eval()
    lesions, mask = patients()
    pooled = pooling(lesions, mask).detach()
    np.testing.assert_allclose(pooled, slow_pooling(pooling, lesions, mask), atol=1e-6)
    padded = lesions.masked_fill(~mask.unsqueeze(-1), 1e6)
    assert torch.equal(pooling(padded, mask), pooling(lesions, mask))


@pytest.mark.parametrize("kind", get_args(Kind))
def test_the_order_of_the_lesions_does_not_matter(kind: Kind) -> None:
    torch.manual_seed(1)
    pooling = Pooling(kind, SHAPE[2]).eval()
    lesions, mask = patients()
    order = torch.tensor([3, 0, 4, 2, 1])
    shuffled = pooling(lesions[:, order], mask[:, order])
    torch.testing.assert_close(shuffled, pooling(lesions, mask))
