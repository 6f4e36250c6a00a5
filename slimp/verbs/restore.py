"""`slimp restore`: a backup as a catalogue."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def restore(
    backup: Annotated[Path, Argument(help="a folder that slimp backup wrote")],
    out: Annotated[Path, Option(help="the catalogue's folder; it must not exist")],
    ledger: Annotated[
        Path | None,
        Option(help="the service's ledger folder; else the folder `ledger` beside the catalogue's"),
    ] = None,
) -> None:
    """Make a catalogue of a backup, and erase again whoever was erased since."""
    from index.catalogue import Catalogue
    from index.upkeep import put_back, verify
    from service.ledger.erasures import Erasures
    from slimp.console import say

    put_back(backup, out)
    identity = verify(out).identity
    erasures = Erasures(ledger or out.absolute().parent / "ledger")
    try:
        with Catalogue.open(out, bundle_id=identity.bundle_id, variant=identity.variant) as opened:
            erased = erasures.repeat(opened)
            opened.save()
            say(f"{out}: {len(opened)} lesions; {erased} that had been erased were erased again")
    finally:
        erasures.close()
