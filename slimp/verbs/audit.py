"""`slimp audit`: what a service was asked and answered."""

import json
from pathlib import Path
from typing import Annotated

from typer import Argument, Exit, Option, Typer

app = Typer(no_args_is_help=True, help="Verify the audit of a service, or show its rows.")
Folder = Annotated[Path, Argument(help="a service's ledger folder (SLIMP_LEDGER)")]


@app.command()
def verify(
    ledger: Folder,
    head: Annotated[
        str | None, Option(help="NUMBER:HASH of an earlier verification, noted elsewhere")
    ] = None,
) -> None:
    """Check that every row is as it was written. Exit code 1 names the first that is not."""
    from service.ledger.audit import open_audit, parse_head
    from slimp.console import say

    known = None if head is None else parse_head(head)
    with open_audit(ledger) as log:
        found = log.verify(known)
    if found.broken is not None:
        say(f"{ledger}: {found.broken}; {found.rows} rows before it fit")
        raise Exit(1)
    say(f"{ledger}: {found.rows} rows fit; head {found.head}")


@app.command()
def show(ledger: Folder) -> None:
    """Write every row as a line of JSON."""
    from service.ledger.audit import open_audit
    from slimp.console import say

    with open_audit(ledger) as log:
        for row in log.rows():
            # Of a row that was tampered with, what JSON has no word for is shown as Python would.
            say(json.dumps(row, sort_keys=True, default=repr))
