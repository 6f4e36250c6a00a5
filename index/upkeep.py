"""A catalogue's upkeep: verify it, make its vectors anew, back it up, put a backup back.

What is copied is the database alone: the vectors are made from it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sqlalchemy import Connection, Engine

from bundle.errors import CatalogueError, CorruptCatalogue
from index import rows
from index.backup import check_copy, copy_database, put_copy_back
from index.cache import FILES, CacheDescription, drop_cache, read_cache
from index.catalogue import DATABASE
from index.database import checkpoint, compact, open_engine, reporting_damage
from index.identity import Identity, read_identity
from index.live import directions
from index.sqlite import writing
from index.unfinished import PARTIAL, RUN
from index.vectors import FlatIndex

# Cosine between a stored vector and the one that its row gives: float32 rounding only.
LEAST_COSINE = 1 - 1e-5
OWN_FILES = (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", f"{DATABASE}-journal", *FILES)


@dataclass(frozen=True)
class CatalogueState:
    """What a verification found.

    Attributes:
        identity: what the catalogue is.
        lesions: rows.
        vectors: in the cache on disk; None where there is no cache, which is no fault.
        cache_revision: whose lesions they are.
        faults: what is wrong, in words; empty for a sound catalogue.
    """

    identity: Identity
    lesions: int
    vectors: int | None
    cache_revision: int | None
    faults: tuple[str, ...]


def verify(folder: Path) -> CatalogueState:
    """Compare everything that a catalogue holds twice; nothing is changed.

    A link is followed: what was left lies beside the folder that it leads to.

    The database is checked by its own engine, every embedding for its length and a direction, and
    the vectors on disk against their checksum and the embeddings. Files that look like the
    catalogue's and are not are named: no erasure reaches them.

    Raises:
        CorruptCatalogue: the database cannot be read at all.
    """
    folder = folder.resolve()
    engine = open_engine(folder / DATABASE, must_exist=True, change=False)
    faults: list[str] = []
    try:
        # The files before the first row, as whoever opens a catalogue that others write to.
        cached = _cached(folder, faults)
        with reporting_damage(folder / DATABASE), engine.connect() as connection:
            identity = read_identity(connection)
            for pragma in ("integrity_check", "foreign_key_check"):
                found = connection.exec_driver_sql(f"PRAGMA {pragma}").all()
                faults += [f"{pragma}: {row}" for row in found if tuple(row) != ("ok",)]
            held = rows.count_lesions(connection)
            vectors, revision = _compare(cached, identity, connection, faults)
            faults += [
                f"{path} may hold who was erased: remove it" for path in _strays(folder, engine)
            ]
    finally:
        engine.dispose()
    return CatalogueState(identity, held, vectors, revision, tuple(faults))


def _cached(folder: Path, faults: list[str]) -> tuple[CacheDescription, FlatIndex] | None:
    """Return the vectors on disk; None where there are none, or with their fault added."""
    try:
        cached = read_cache(folder)
    except CorruptCatalogue as error:
        faults.append(str(error))
        return None
    return None if cached is None else (cached[0], cached[1].exact)


def _compare(
    cached: tuple[CacheDescription, FlatIndex] | None,
    identity: Identity,
    connection: Connection,
    faults: list[str],
) -> tuple[int | None, int | None]:
    """Add the vectors' faults; return how many there are, and of which revision."""
    embedded = rows.stream_embeddings(connection, identity.embedding_dim)
    if cached is None:
        for _, embeddings, _ in embedded:
            directions(embeddings)
        return None, None
    description, vectors = cached
    if description.revision > identity.revision:
        faults.append(f"vectors of revision {description.revision}, rows of {identity.revision}")
    known, seen = set(vectors.ids().tolist()), 0
    for ids, embeddings, _ in embedded:
        expected = directions(embeddings)
        both = np.array([int(i) in known for i in ids])
        seen += int(both.sum())
        cosine = (vectors.vectors(ids[both]) * expected[both]).sum(1)
        faults += [f"vector {i} is not that of its row" for i in ids[both][cosine < LEAST_COSINE]]
        if description.revision == identity.revision:
            faults += [f"vector {i} is missing" for i in ids[~both]]
    if len(vectors) > seen:
        faults.append(f"{len(vectors) - seen} vectors without a row lie in the cache: rebuild it")
    return len(vectors), description.revision


def _strays(folder: Path, engine: Engine) -> list[Path]:
    """Return what a write that was cut off, or a person, left in the folder and beside it."""
    # Whoever writes vectors under another name first holds the write lock while they lie there.
    with writing(engine).begin():
        found = sorted(path for path in folder.iterdir() if path.name not in OWN_FILES)
    copies = [path for path in found if path.name.startswith((DATABASE, *FILES))]
    begun = (f".{folder.name}.", f"{folder.name}{PARTIAL}")
    return copies + [path for path in cut_off(folder.parent) if path.name.startswith(begun)]


def cut_off(parent: Path) -> list[Path]:
    """Return folders below `parent` in which a backup, a restoration or an indexing was begun.

    Its process goes on, or was killed: then they hold whoever was there. Only an indexing may be
    gone on with.
    """
    staged = {path.parent for path in parent.glob(".*.*/*.sqlite")}
    indexed = {path.parent for path in parent.glob(f"*{PARTIAL}/{RUN}")}
    return sorted(staged | indexed)


def rebuild(folder: Path) -> None:
    """Drop the vectors on disk and write the database compactly: nothing of what was erased stays.

    Vectors are made again from the rows when the catalogue is next opened and saved.

    Raises:
        CatalogueError: another process writes to the database, or reads it, so that its log still
            holds what was erased; or the disk has no room for a second copy.
    """
    engine = open_engine(folder / DATABASE, must_exist=True)
    try:
        with reporting_damage(folder / DATABASE):
            compact(engine)
            drop_cache(folder)
            if not checkpoint(engine):
                raise CatalogueError(
                    f"{folder}: another process reads the database, so that its log cannot be "
                    "emptied: end it and rebuild again"
                )
    finally:
        engine.dispose()


def back_up(folder: Path, out: Path) -> Path:
    """Copy a catalogue's database as it is at one moment, while others may write; return the file.

    Args:
        folder: the catalogue.
        out: a folder that does not exist yet or is empty.

    Raises:
        BundleError: `out` is taken.
        CatalogueError: the database cannot be read.
    """
    database = folder / DATABASE
    if not database.is_file():
        raise CorruptCatalogue(f"{folder}: expected a catalogue folder with {DATABASE}")
    # As it is: a backup before an upgrade is of the older version.
    return copy_database(database, out)


def check_backup(backup: Path) -> None:
    """Do nothing if a backup is what `back_up` wrote.

    Raises:
        CorruptCatalogue: it is not.
    """
    check_copy(backup, DATABASE)


def put_back(backup: Path, folder: Path) -> None:
    """Make a catalogue of a backup.

    Args:
        backup: a folder that `back_up` wrote.
        folder: a folder that does not exist yet or is empty.

    Raises:
        CorruptCatalogue: the backup is not what `back_up` wrote.
        BundleError: `folder` is taken.
    """
    with put_copy_back(check_copy(backup, DATABASE), folder) as database:
        open_engine(database, must_exist=True).dispose()
