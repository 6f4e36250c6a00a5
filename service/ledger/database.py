"""The ledger's database: where it lies, who may look, and what its damage is called.

Nothing here knows what the tables hold. A new table is a class in `tables.py` and a migration.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.exc import DatabaseError

from bundle.errors import UnsupportedVersion
from index.sqlite import FOLDER_MODE, make_engine, migrate
from service.errors import LedgerError

FILE = "ledger.sqlite"
FILE_MODE = 0o600
MIGRATIONS = Path(__file__).parent / "migrations"


def open_ledger(folder: Path) -> Engine:
    """Return an engine on the folder's ledger, with tables of this software's version.

    Args:
        folder: where `ledger.sqlite` lies; a folder that is not there is made, for its owner only.

    Raises:
        LedgerError: the folder cannot be used, the file is no sound database, or a newer software
            wrote it; nothing is changed then.
    """
    path = folder / FILE
    try:
        folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        # In a folder that was there, and that others may look into.
        path.touch(mode=FILE_MODE)
    except OSError as error:
        raise LedgerError(f"{folder}: the ledger's folder cannot be made ({error})") from None
    engine = make_engine(path)
    try:
        with reporting_damage(path):
            migrate(engine, MIGRATIONS, "ledger")
    except BaseException:
        engine.dispose()
        raise
    return engine


@contextmanager
def reporting_damage(path: Path) -> Iterator[None]:
    """Turn what is raised on a damaged, unusable or newer file into our error."""
    try:
        yield
    except UnsupportedVersion as error:
        raise LedgerError(str(error)) from None
    except (DatabaseError, sqlite3.DatabaseError) as error:
        reason = error.orig if isinstance(error, DatabaseError) else error
        raise LedgerError(
            f"{path}: the ledger cannot be used ({reason}): its folder must be writable, and "
            "the file a sound database; restore it from a backup if it is damaged"
        ) from None
