"""The SQL connection: SQLite's settings, and the table version brought up to date.

Nothing outside this file knows which database engine it is.
"""

import sqlite3
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

from bundle.errors import CatalogueError, CorruptCatalogue, UnsupportedVersion

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_S = 30
# Connections kept open; more threads than that wait for one. The last one returned is the first
# one lent: each keeps 2 MB of pages, and those that a burst opened should not all fill theirs.
POOL_SIZE = 16

# WAL: readers go on while one writes. FULL, not NORMAL: a committed revision must outlive a power
# cut, for the vector cache that names it is synced to disk, and a cache ahead of SQL is refused.
# secure_delete: what is erased is overwritten, not merely unlinked from its page.
PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON")


def open_engine(path: Path, *, must_exist: bool = False) -> Engine:
    """Return an engine on a SQLite file whose tables are of this software's version.

    Args:
        path: the database file; tables of an older version are migrated.
        must_exist: refuse to make the file.

    Raises:
        UnsupportedVersion: a newer software wrote it; nothing is changed.
        CorruptCatalogue: the file is missing, no database, or damaged.
        CatalogueError: the database cannot be used, for example in a folder that is read-only.
    """
    if must_exist and not path.is_file():
        raise CorruptCatalogue(
            f"{path.parent}: expected a catalogue folder with {path.name}; make it with slimp index"
        )
    url = URL.create("sqlite", database=str(path))
    engine = create_engine(
        url,
        connect_args={"timeout": BUSY_TIMEOUT_S},
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_use_lifo=True,
    )
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


def checkpoint(engine: Engine, *, wait_s: float = 0) -> bool:
    """Move what is committed into the database file and empty the log beside it.

    Args:
        engine: on the database.
        wait_s: how long those are waited for who still read what the log holds; who wants to write
            waits as well.

    Returns:
        whether the log is empty: not while somebody reads it, or where the disk has no room.
    """
    raw = engine.raw_connection()
    try:
        cursor = raw.cursor()
        cursor.execute(f"PRAGMA busy_timeout={round(wait_s * 1000)}")
        try:
            row = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.OperationalError:
            return False
        finally:
            cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_S * 1000}")
    finally:
        raw.close()
    return row is not None and row[0] == 0


@contextmanager
def reporting_damage(path: Path) -> Iterator[None]:
    """Turn what the database driver raises on a damaged or unusable file into our errors."""
    try:
        yield
    except DatabaseError as error:
        reason = str(error.orig)
        if any(word in reason for word in ("malformed", "not a database", "corrupt")):
            raise CorruptCatalogue(
                f"{path}: expected a sound database, got one that is damaged ({reason}): "
                "index the cohort again, or restore a backup"
            ) from None
        raise CatalogueError(
            f"{path}: the database cannot be used ({reason}): the folder must be writable, and "
            "no other program may hold the file"
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
        raise UnsupportedVersion(
            f"this software reads catalogue tables up to version {scripts.get_current_head()}, "
            f"the catalogue has version {current}: upgrade slimp"
        )
    if current == scripts.get_current_head():
        return
    with writing(engine).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
