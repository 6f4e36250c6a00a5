"""A SQLite database as it is at one moment, copied while others write, checked, and put back.

Knows no table: `index/upkeep.py` copies a catalogue with it, `service/ledger/backup.py` a ledger.
"""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from bundle.errors import CatalogueError, CorruptCatalogue
from bundle.store import staged_folder
from index.cache import digest, sync
from index.sqlite import FOLDER_MODE

SUMS = "SHA256SUMS"


def copy_database(database: Path, out: Path) -> Path:
    """Copy a database as it is at one moment, with its checksum; return the copy.

    Args:
        database: the file; others may write to it.
        out: a folder that does not exist yet or is empty; it takes its name when all is on the
            disk, and is the owner's alone.

    Raises:
        BundleError: `out` is taken.
        CatalogueError: the database cannot be read.
    """
    with staged_folder(out, mode=FOLDER_MODE) as stage:
        copy = stage / database.name
        with (
            _reporting_failure(database),
            closing(sqlite3.connect(database)) as source,
            closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
            # One file, that can be copied as it is.
            target.execute("PRAGMA journal_mode=DELETE")
        (stage / SUMS).write_text(f"{digest(copy)}  {database.name}\n", "utf-8")
        _sync_folder(stage)
    sync(out.parent)
    return out / database.name


def check_copy(backup: Path, name: str) -> Path:
    """Return the database of a backup that is what `copy_database` wrote.

    Args:
        backup: the folder.
        name: of the file.

    Raises:
        CorruptCatalogue: it is not.
    """
    sums, copy = backup / SUMS, backup / name
    if not (sums.is_file() and copy.is_file()):
        raise CorruptCatalogue(
            f"{backup}: expected a backup, with {name} and {SUMS}, as slimp backup makes it"
        )
    if sums.read_bytes().split()[:1] != [digest(copy).encode()]:
        raise CorruptCatalogue(f"{copy}: its SHA-256 is not the one in {SUMS}: take another")
    return copy


@contextmanager
def put_copy_back(copy: Path, out: Path) -> Iterator[Path]:
    """Yield the database of what becomes `out` if the block succeeds and is on the disk by then.

    Args:
        copy: of a backup, as `check_copy` returns it.
        out: a folder that does not exist yet or is empty; the owner's alone.

    Raises:
        BundleError: `out` is taken.
    """
    with staged_folder(out, mode=FOLDER_MODE) as stage:
        database = stage / copy.name
        shutil.copyfile(copy, database)
        yield database
        for leftover in ("-wal", "-shm"):
            (stage / f"{database.name}{leftover}").unlink(missing_ok=True)
        _sync_folder(stage)
    sync(out.parent)


def _sync_folder(stage: Path) -> None:
    for file in stage.iterdir():
        sync(file)
    sync(stage)


@contextmanager
def _reporting_failure(path: Path) -> Iterator[None]:
    """Turn the driver's errors into ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise CatalogueError(f"{path}: it cannot be copied ({error})") from None
