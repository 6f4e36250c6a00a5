"""What a run writes down of its steps: `metrics.jsonl` and TensorBoard events."""

import json
import resource
from pathlib import Path
from typing import Self

import torch
from torch.utils.tensorboard import SummaryWriter


class MetricsLog:
    """A run's metrics, a line of JSON a step and for TensorBoard."""

    def __init__(self, out: Path, step: int = 0) -> None:
        """Open the log of a run that starts, or goes on, after `step`."""
        self._lines = (out / "metrics.jsonl").open("a")
        # TensorBoard hides what an interrupted run showed of the steps that are taken again.
        again = step + 1 if step else None
        self._board = SummaryWriter(out / "tensorboard", purge_step=again)

    def __enter__(self) -> Self:
        return self

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self._lines.write(json.dumps({"step": step, **metrics}) + "\n")
        self._lines.flush()
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def __exit__(self, *failure: object) -> None:
        self._lines.close()
        self._board.close()


def forget_steps_after(step: int, out: Path) -> None:
    """Take later steps out of the run's log: after a resume they are taken, and logged, again.

    So is a last line that a killed run left half written.
    """
    log = out / "metrics.jsonl"
    if not log.is_file():
        return
    whole = (line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n"))
    partial = log.with_name(f"{log.name}.partial")
    partial.write_text("".join(line for line in whole if json.loads(line)["step"] <= step))
    partial.replace(log)


def peak_memory_mib(device: torch.device) -> float:
    """Return the most memory taken so far: the device's where it counts, else the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    # Linux counts in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
