"""One batch over several processes, with the gradient of one.

Every process encodes its share of a batch, gathers the others' rows and computes the whole loss.
Rows carry gradients back to the process they come from, so that the mean of the processes'
gradients is the gradient that one process would have computed on the whole batch.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import nn


def this_process() -> PartialState:
    """Return this process among those of its launch (`accelerate launch`, `torchrun`)."""
    # Without the flag, accelerate takes processes on a machine without a device for unrelated ones.
    return PartialState(cpu=not torch.accelerator.is_available())


def best_device() -> torch.device:
    """Return the accelerator where torch finds one, else the processor."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if found is None else found


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """Return the rows of all processes, in the order of their ranks.

    Args:
        rows: (N, ...), N differing between processes; with its gradient where it has one.
    """
    if world_size() == 1:
        return rows
    if not rows.is_floating_point():
        # Exact: ids and flags stay far below what a double can count.
        return gather_rows(rows.double()).to(rows.dtype)
    counts = _row_counts(rows)
    padding = rows.new_zeros(max(counts) - len(rows), *rows.shape[1:])
    shares = _Gather.apply(torch.cat([rows, padding]))
    return torch.cat([share[:count] for share, count in zip(shares, counts, strict=True)])


class _Gather(torch.autograd.Function):
    """(N, ...) to (R, N, ...) over R processes; the gradients of all come back, added."""

    @staticmethod
    def forward(_: Any, rows: torch.Tensor) -> torch.Tensor:
        shares = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(shares, rows)
        return torch.stack(shares)

    @staticmethod
    def backward(_: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        return total[dist.get_rank()]


def _row_counts(rows: torch.Tensor) -> list[int]:
    counts = torch.zeros(world_size(), dtype=torch.int64, device=rows.device)
    counts[dist.get_rank()] = len(rows)
    dist.all_reduce(counts)
    return counts.tolist()


def add_up(values: torch.Tensor) -> list[float]:
    """Return the (N,) values' sums over the processes."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values.tolist()


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes.

    One that some processes lack counts as zero there; one that all lack stays absent, since an
    optimiser would let a parameter decay whose gradient is zero.
    """
    if world_size() == 1:
        return
    trained = [p for p in parameters if p.requires_grad]
    has = torch.tensor([float(p.grad is not None) for p in trained], device=trained[0].device)
    dist.all_reduce(has)
    trained = [p for p, count in zip(trained, has.tolist(), strict=True) if count]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    parts = (flat / world_size()).split([p.numel() for p in trained])
    for parameter, part in zip(trained, parts, strict=True):
        parameter.grad = part.view_as(parameter)
