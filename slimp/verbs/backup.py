"""`slimp backup`: a catalogue or a ledger as it is now."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def backup(
    folder: Annotated[Path, Argument(help="a catalogue's or a ledger's; services may go on")],
    out: Annotated[Path, Option(help="the folder to write")],
) -> None:
    """Copy a catalogue, or a ledger, as it is at one moment.

    Whoever is erased later is still in a catalogue's copy, and not erased in a ledger's.
    """
    from index.upkeep import back_up, cut_off
    from service.ledger.backup import back_up_ledger, is_ledger
    from slimp.console import say

    copied = back_up_ledger(folder, out) if is_ledger(folder) else back_up(folder, out)
    say(f"{copied}: {folder} as it was")
    for left in cut_off(out.absolute().parent):
        say(f"{left}: left by a command that was cut off, or one that goes on; else remove it")
