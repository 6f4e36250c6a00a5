"""What a batch of pre-training is, and how its towers are called."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from bundle.fields import Level
from training.losses import alike_rows, identical_rows
from training.processes import gather_rows

Batch = dict[str, torch.Tensor]
Encode = Callable[..., torch.Tensor]


def encode_at_once(tower: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    """Return the tower's features; `GradientCache.encode` is the other way."""
    features: torch.Tensor = tower(*inputs)
    return features


def same_records(batch: Batch, level: Level) -> torch.Tensor:
    """Return (N, N) bool, N rows of all processes: identical before or after augmentation."""

    def identical(prefix: str) -> torch.Tensor:
        values, present = (batch[f"{prefix}{level}_{part}"] for part in ("values", "present"))
        return identical_rows(gather_rows(values), gather_rows(present))

    return identical("raw_") | identical("")


def alike_records(batch: Batch, level: Level, width: float) -> torch.Tensor | None:
    """Return (N, N), 0 to 1, N rows of all processes: how alike records are as the towers see them.

    None where the width is 0: an anchor's target is its own partner alone.
    """
    if not width:
        return None
    values, present = (gather_rows(batch[f"{level}_{part}"]) for part in ("values", "present"))
    return alike_rows(values, present, batch[f"{level}_numeric"], width)


def same_whole_records(batch: Batch, levels: Sequence[Level]) -> torch.Tensor:
    """Return (N, N) bool, N images of all processes: the records of all these levels together."""

    def part(prefix: str, name: str) -> torch.Tensor:
        columns = []
        for level in levels:
            rows = batch[f"{prefix}{level}_{name}"]
            columns.append(rows if level == "lesion" else rows[batch["slot"][:, 0]])
        return gather_rows(torch.cat(columns, dim=1))

    def identical(prefix: str) -> torch.Tensor:
        return identical_rows(part(prefix, "values"), part(prefix, "present"))

    return identical("raw_") | identical("")
