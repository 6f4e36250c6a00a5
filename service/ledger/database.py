"""The ledger's SQL connection: SQLite's settings, and the tables brought up to date.

Nothing here knows what the tables hold. A new table is a class in `tables.py` and a migration.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DatabaseError

from service.errors import LedgerError

FILE = "ledger.sqlite"
MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_S = 30
# Who may ask is the site's secret: nobody but the service's own user looks into the folder.
FOLDER_MODE = 0o700

# WAL: readers go on while one writes. FULL: a revoked key stays revoked after a power cut.
PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON")


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
    except OSError as error:
        raise LedgerError(f"{folder}: the ledger's folder cannot be made ({error})") from None
    url = URL.create("sqlite", database=str(path))
    # The last connection returned is the first one lent: each keeps 2 MB of pages.
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S}, pool_use_lifo=True)
    event.listen(engine, "connect", _set_up)
    event.listen(engine, "begin", _begin)
    try:
        with reporting_damage(path):
            _migrate(engine)
    except BaseException:
        engine.dispose()
        raise
    return engine


def writing(engine: Engine) -> Engine:
    """Return the engine for transactions that write: they take SQLite's write lock at the start.

    A transaction that reads first and writes later could not be told to wait: SQLite would have
    to fail it, since what it read may have changed.
    """
    return engine.execution_options(sqlite_begin="BEGIN IMMEDIATE")


@contextmanager
def reporting_damage(path: Path) -> Iterator[None]:
    """Turn what the database driver raises on a damaged or unusable file into our error."""
    try:
        yield
    except DatabaseError as error:
        raise LedgerError(
            f"{path}: the ledger cannot be used ({error.orig}): its folder must be writable, and "
            "the file a sound database; restore it from a backup if it is damaged"
        ) from None


def _set_up(connection: Any, _: object) -> None:
    # The driver's own transactions leave table changes out; `_begin` starts ours.
    connection.isolation_level = None
    for pragma in PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("sqlite_begin", "BEGIN"))


def _migrate(engine: Engine) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    scripts = ScriptDirectory.from_config(config)
    known = {script.revision for script in scripts.walk_revisions()}
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    if current is not None and current not in known:
        raise LedgerError(
            f"this software reads ledger tables up to version {scripts.get_current_head()}, "
            f"the ledger has version {current}: upgrade slimp"
        )
    if current == scripts.get_current_head():
        return
    # Two programs may open a new ledger at once: the second waits here and finds nothing to do.
    with writing(engine).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
