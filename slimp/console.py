"""Progress: a bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# Seconds between two plain lines.
QUIET_SECONDS = 10.0

out = Console()


class Report(Protocol):
    """Called with what is being done, how much of it is done, how much there is, and a remark."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None: ...


@contextmanager
def progress() -> Iterator[Report]:
    """Yield a report function that fits where the output goes."""
    if out.is_terminal:
        columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, TextColumn("{task.fields[note]}"), console=out) as bar:
            yield _bar_report(bar)
    else:
        yield _line_report()


def _bar_report(bar: Progress) -> Report:
    tasks = {}

    def report(stage: str, done: int, total: int, note: str = "") -> None:
        if stage not in tasks:
            tasks[stage] = bar.add_task(stage, total=total, note=note)
        bar.update(tasks[stage], completed=done, total=total, note=note)

    return report


def _line_report() -> Report:
    last_stage, last_time = "", 0.0

    def report(stage: str, done: int, total: int, note: str = "") -> None:
        nonlocal last_stage, last_time
        now = time.monotonic()
        due = stage != last_stage or now - last_time > QUIET_SECONDS
        if due or done == total:
            last_stage, last_time = stage, now
            out.print(f"{stage}: {done} of {total}" + (f"  {note}" if note else ""))

    return report
