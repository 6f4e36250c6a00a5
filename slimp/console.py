"""What the command says: a progress bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

# Seconds between two plain lines.
QUIET_SECONDS = 10.0

out = Console()


class Report(Protocol):
    """Called with what is being done, how much of it is done, how much there is, and a remark.

    A total of None is not known.
    """

    def __call__(self, stage: str, done: int, total: int | None, note: str = "") -> None: ...


def say(text: str) -> None:
    """Write text as it is: a path's brackets are no markup, and a long line stays one line."""
    out.print(Text(text), soft_wrap=True)


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
    tasks: dict[str, TaskID] = {}

    def report(stage: str, done: int, total: int | None, note: str = "") -> None:
        if stage not in tasks:
            tasks[stage] = bar.add_task(stage, total=total, note=note)
        bar.update(tasks[stage], completed=done, total=total, note=note)

    return report


def _line_report() -> Report:
    last_stage, last_time = "", 0.0

    def report(stage: str, done: int, total: int | None, note: str = "") -> None:
        nonlocal last_stage, last_time
        now = time.monotonic()
        due = stage != last_stage or now - last_time > QUIET_SECONDS
        if due or done == total:
            last_stage, last_time = stage, now
            reached = f"{stage}: {done}" if total is None else f"{stage}: {done} of {total}"
            say(f"{reached}  {note}".rstrip())

    return report
