"""`slimp compare`: several evaluations in one table."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def compare(
    evaluations: Annotated[
        list[str],
        Argument(
            help="folders that slimp evaluate wrote; NAME=FOLDER,FOLDER makes one row of seeds"
        ),
    ],
    out: Annotated[Path | None, Option(help="a Markdown file to write as well")] = None,
) -> None:
    """Print the main figures of several evaluations, and their differences from the first."""
    from slimp.console import say
    from training.comparison import compare_evaluations

    text = compare_evaluations(evaluations)
    if out is not None:
        out.write_text(text, encoding="utf-8")
    say(text)
