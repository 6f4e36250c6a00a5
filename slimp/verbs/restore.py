"""`slimp restore`: a backup as a catalogue, or as a ledger."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def restore(
    backup: Annotated[Path, Argument(help="a folder that slimp backup wrote")],
    out: Annotated[Path, Option(help="the folder to make; it must not exist")],
    ledger: Annotated[
        Path | None,
        Option(help="the service's ledger folder; else SLIMP_LEDGER, else `ledger` beside --out"),
    ] = None,
    without_ledger: Annotated[
        bool, Option("--without-ledger", help="erase nobody again: the service has no ledger yet")
    ] = False,
) -> None:
    """Make a catalogue of a backup, and erase again whoever was erased since.

    Of a ledger's backup a ledger is made, which knows nothing of what came since.
    """
    from index.catalogue import Catalogue
    from index.upkeep import check_backup, put_back, verify
    from service.ledger.backup import is_ledger, put_ledger_back
    from service.ledger.erasures import open_erasures
    from service.settings import read_settings
    from slimp.console import say

    if is_ledger(backup):
        put_ledger_back(backup, out)
        say(f"{out}: erasures, revoked keys and rows of the audit since the backup are not in it")
        return
    if without_ledger:
        put_back(backup, out)
        say(f"{out}: {verify(out).lesions} lesions; nobody was erased again")
        return
    check_backup(backup)
    with open_erasures(read_settings({"catalogue": out, "ledger": ledger}).ledger_folder) as known:
        put_back(backup, out)
        identity = verify(out).identity
        with Catalogue.open(out, bundle_id=identity.bundle_id, variant=identity.variant) as opened:
            erased = known.finish(opened)
            opened.save()
            say(f"{out}: {len(opened)} lesions; {erased} that had been erased were erased again")
