"""`slimp backup`: a catalogue as it is now."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def backup(
    catalogue: Annotated[Path, Argument(help="a catalogue's folder; services may go on")],
    out: Annotated[Path, Option(help="the folder to write")],
) -> None:
    """Copy a catalogue as it is at one moment; whoever is erased later is still in the copy."""
    from index.upkeep import back_up, cut_off
    from slimp.console import say

    say(f"{back_up(catalogue, out)}: {catalogue} as it was")
    for folder in cut_off(out.absolute().parent):
        say(f"{folder}: left by a command that was cut off, or one that goes on; else remove it")
