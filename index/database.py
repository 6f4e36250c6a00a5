"""The catalogue's database: its file, its tables' version, and what its damage is called."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.exc import DatabaseError

from bundle.errors import CatalogueError, CorruptCatalogue
from index.sqlite import BUSY_TIMEOUT_S, make_engine, migrate

MIGRATIONS = Path(__file__).parent / "migrations"
# Connections kept open; more threads than that wait for one.
POOL_SIZE = 16
# What is erased is overwritten, not merely unlinked from its page.
PRAGMAS = ("secure_delete=ON",)


def open_engine(path: Path, *, must_exist: bool = False, change: bool = True) -> Engine:
    """Return an engine on a SQLite file whose tables are of this software's version.

    Args:
        path: the database file; tables of an older version are migrated.
        must_exist: refuse to make the file.
        change: False refuses tables of an older version instead.

    Raises:
        UnsupportedVersion: a newer software wrote it; nothing is changed.
        CorruptCatalogue: the file is missing, no database, or damaged.
        CatalogueError: the database cannot be used, for example in a folder that is read-only.
    """
    if must_exist and not path.is_file():
        raise CorruptCatalogue(
            f"{path.parent}: expected a catalogue folder with {path.name}; make it with slimp index"
        )
    engine = make_engine(path, PRAGMAS, pool_size=POOL_SIZE, max_overflow=0)
    try:
        with reporting_damage(path):
            migrate(engine, MIGRATIONS, "catalogue", change=change)
    except BaseException:
        engine.dispose()
        raise
    return engine


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
        except sqlite3.DatabaseError as error:
            raise CorruptCatalogue(f"the database is damaged ({error})") from None
        finally:
            cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_S * 1000}")
    finally:
        raw.close()
    return row is not None and row[0] == 0


def compact(engine: Engine) -> None:
    """Write the database anew, without the pages that are of no use any more.

    Raises:
        CatalogueError: another process holds it, or the disk has no room for a second copy.
    """
    raw = engine.raw_connection()
    try:
        # Through the driver: SQLAlchemy would begin a transaction, within which SQLite refuses.
        raw.cursor().execute("VACUUM")
    except sqlite3.Error as error:
        raise CatalogueError(
            f"{engine.url.database}: it cannot be compacted ({error}): end what writes to it, and "
            "leave the disk room for a second copy"
        ) from None
    finally:
        raw.close()


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
