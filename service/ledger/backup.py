"""A ledger as it is at one moment, while services write to it, and put back.

What came after a backup is unknown to the ledger that is made of it: erasures, revoked keys, rows
of the audit.
"""

from pathlib import Path

from index.backup import check_copy, copy_database, put_copy_back
from service.errors import LedgerError
from service.ledger.database import FILE, open_ledger


def is_ledger(folder: Path) -> bool:
    """Say whether a folder is a ledger's, or a backup of one."""
    return (folder / FILE).is_file()


def back_up_ledger(folder: Path, out: Path) -> Path:
    """Copy a ledger, for its owner's eyes only; return the file.

    Args:
        folder: the ledger.
        out: a folder that does not exist yet or is empty.

    Raises:
        LedgerError: there is none.
        CatalogueError: it cannot be copied.
        BundleError: `out` is taken.
    """
    if not is_ledger(folder):
        raise LedgerError(f"{folder}: expected a service's ledger folder, with {FILE}")
    # As it is: a backup before an upgrade is of the older version.
    return copy_database(folder / FILE, out)


def put_ledger_back(backup: Path, folder: Path) -> None:
    """Make a ledger of a backup.

    Args:
        backup: a folder that `back_up_ledger` wrote.
        folder: a folder that does not exist yet or is empty.

    Raises:
        CorruptCatalogue: the backup is not what `back_up_ledger` wrote.
        LedgerError: a newer software wrote it.
        BundleError: `folder` is taken.
    """
    with put_copy_back(check_copy(backup, FILE), folder) as database:
        open_ledger(database.parent).dispose()
