"""The vectors in memory, kept at the revision of the database that they are a cache of.

Other processes may change the same database. Whoever reads here reads SQL and vectors of one
moment: a revision that is not the vectors' own is caught up with first. SQL comes first in every
change: what is committed is found again after any end of the process, what is not never was.
"""

import dataclasses
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from sqlalchemy import Connection, Engine, String, Transaction, cast, func, select

from bundle.encoder import unit_norm
from bundle.errors import (
    CatalogueError,
    CorruptCatalogue,
    ForeignCatalogue,
    InferenceError,
    StaleCatalogue,
)
from index import rows
from index.approximate import ApproximateIndex
from index.cache import (
    REMEDY,
    CacheDescription,
    describe_cache,
    drop_cache,
    load_cache,
    read_cache,
    write_cache,
)
from index.choice import LEAST_APPROXIMATE, Measured, choose
from index.database import checkpoint, reporting_damage
from index.identity import Identity, read_revision, write_revision
from index.lesions import CatalogueLesion, Edit, FloatArray
from index.locking import ReadersWriter
from index.rows import IdArray
from index.sqlite import writing
from index.tables import CatalogueInfo, Lesion
from index.vectors import FlatIndex, VectorIndex

log = logging.getLogger(__name__)

# An approximate index that holds so many times the vectors among which its recall was measured is
# warned of: recall falls as it grows.
MOST_GROWN = 1.5
# How long an erasure waits for those who read, in any process, before it answers that they do.
LOG_WAIT_S = 1.0


@dataclass
class Change:
    """One transaction that changes lesions; vectors follow when it is committed.

    Attributes:
        connection: holds the database's write lock.
        stamp: what rows of this transaction carry.
        dim: length of an embedding.
        added: vector ids and (N, D) float32 directions that the transaction added.
        removed: vector ids that it removed.
        is_empty: whether nothing was changed, so that no revision is taken.
    """

    connection: Connection
    stamp: rows.Stamp
    dim: int
    added: list[tuple[IdArray, FloatArray]] = field(default_factory=list)
    removed: list[int] = field(default_factory=list)
    is_empty: bool = True

    def insert(self, lesions: Sequence[CatalogueLesion], vectors: FloatArray) -> list[int]:
        """Insert checked lesions and return their vector ids.

        Args:
            lesions: N.
            vectors: their (N, D) float32 directions.
        """
        ids = rows.take_ids(self.connection, len(lesions))
        rows.insert_lesions(self.connection, lesions, int(ids[0]), self.stamp)
        self.added.append((ids, vectors))
        self.is_empty = False
        return [int(i) for i in ids]

    def delete(self, pks: Sequence[int]) -> None:
        """Delete lesions with all that hangs on them, and leave word for other processes."""
        rows.delete_lesions(self.connection, pks, self.stamp.revision)
        self.removed.extend(pks)
        self.is_empty = not pks and self.is_empty

    def update(self, pk: int, edit: Edit) -> None:
        """Change what is known of a lesion; its vector stays."""
        rows.update_lesion(self.connection, pk, edit)
        self.is_empty = False


class LiveVectors:
    """A catalogue's vectors and the database that they follow."""

    def __init__(self, path: Path, engine: Engine, database: Path, identity: Identity) -> None:
        """Read or rebuild the vectors.

        Args:
            path: the catalogue's folder.
            engine: on its database.
            database: the file, for error messages.
            identity: what the database says of itself.
        """
        self.path, self._engine, self._database = path, engine, database
        self.identity = identity
        # One change or save at a time; the second lock is held only while vectors change.
        self._changing = threading.Lock()
        self._access = ReadersWriter()
        self.listeners: list[Callable[[], None]] = []
        self.measured: Measured | None = None
        # Whether it was said that the approximate index has outgrown its measurement.
        self._is_grown = False
        # Whether nothing of an erased lesion lies in the database's log. At the start nobody
        # knows: a process that was killed may have left it there.
        self.log_is_empty = False
        with reporting_damage(database), engine.connect() as connection:
            # The files before the first row: whoever writes them has committed what they hold, so
            # that rows read later are of the same revision or a later one.
            self._vectors: VectorIndex = self._open(read_cache(path), connection)

    def __len__(self) -> int:
        return len(self._vectors)

    @property
    def revision(self) -> int:
        return self.identity.revision

    def close(self) -> None:
        """Wait for whoever is inside and release the database."""
        with self._access.writing():
            self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[tuple[Connection, VectorIndex]]:
        """Yield a connection and the vectors, both of one moment."""
        while True:
            with (
                self._access.reading(),
                reporting_damage(self._database),
                self._engine.connect() as connection,
            ):
                if read_revision(connection) == self.revision:
                    yield connection, self._vectors
                    return
            self.catch_up()

    @contextmanager
    def changing(self) -> Iterator[Change]:
        """Yield a transaction; at its end SQL is committed, then the vectors follow."""
        with self._changing:
            with (
                reporting_damage(self._database),
                writing(self._engine).connect() as connection,
                connection.begin() as transaction,
            ):
                self._follow(connection)
                made_by = self.identity
                stamp = rows.Stamp(made_by.bundle_id, made_by.variant, made_by.revision + 1)
                change = Change(connection, stamp, made_by.embedding_dim)
                yield change
                if not change.is_empty:
                    self._commit(change, transaction)
            self._empty_log(wait_s=LOG_WAIT_S if change.removed else 0)

    def catch_up(self) -> None:
        """Take over what other processes changed."""
        with (
            self._changing,
            reporting_damage(self._database),
            self._engine.connect() as connection,
        ):
            self._follow(connection)

    def check(self) -> None:
        """Take the database's write lock, and nothing else, once the vectors are up to date.

        Raises:
            CatalogueError: the file is gone, cannot be written, or is locked for too long.
        """
        if not self._database.is_file():
            # Connections that are open would go on reading what nobody else sees.
            raise CatalogueError(f"{self._database} is gone: put it back, or restore a backup")
        with (
            self._changing,
            reporting_damage(self._database),
            writing(self._engine).connect() as connection,
            connection.begin() as transaction,
        ):
            self._follow(connection)
            transaction.rollback()
        with self._changing:
            self._empty_log()

    def choose(self, factory: str, recall: float) -> None:
        """Build the index that suits the vectors; as `index.choice.choose`, whose errors it has.

        Searches go on meanwhile, changes wait.
        """
        with self._changing:
            index, measured = choose(self._vectors.exact, factory=factory, recall=recall)
            self._drop_cache()
            with self._access.writing():
                self._vectors, self.measured = index, measured
                self._is_grown = False

    def save(self) -> None:
        """Write the vectors to disk, so that the next start reads instead of rebuilding them.

        The database's write lock is held meanwhile: a lesion that another process erases cannot
        come to lie in the new file.
        """
        with (
            self._changing,
            reporting_damage(self._database),
            writing(self._engine).connect() as connection,
            connection.begin(),
        ):
            self._follow(connection)
            kept = describe_cache(self.path)
            if kept is not None and kept.revision == self.revision:
                # A process that has lost its approximate index may have saved first.
                if kept.near is not None or self.measured is None:
                    return
            elif kept is not None and kept.near is not None and self.measured is None:
                self._take_over(kept, connection)
            write_cache(
                self.path,
                self._vectors,
                self.measured,
                revision=self.revision,
                bundle_id=self.identity.bundle_id,
                variant=self.identity.variant,
            )

    def _take_over(self, kept: CacheDescription, connection: Connection) -> None:
        """Go on with the approximate index that another process saved since this one began."""
        vectors = load_cache(self.path, kept)
        self._bound_ids(vectors, connection)
        self._bring_up(vectors, connection, kept.revision)
        with self._access.writing():
            self._vectors, self.measured = vectors, kept.measured
        self._heed_changes()

    def _commit(self, change: Change, transaction: Transaction) -> None:
        write_revision(change.connection, change.stamp.revision)
        if change.removed:
            # Before the commit, while nobody else can write a cache: none outlives its lesions.
            drop_cache(self.path)
        with self._access.writing():
            transaction.commit()
            self._apply(change.removed, change.added, change.stamp.revision)

    def _follow(self, connection: Connection) -> None:
        """Bring the vectors to the database's revision; `_changing` is held."""
        revision = read_revision(connection)
        if revision == self.revision:
            return
        if revision < self.revision:
            raise StaleCatalogue(
                f"{self.path}: the database went back from revision {self.revision} to {revision}: "
                "another was put in its place; restart the service"
            )
        removed, added = self._changes(connection)
        with self._access.writing():
            self._apply(removed, added, revision)

    def _changes(
        self, connection: Connection
    ) -> tuple[list[int], list[tuple[IdArray, FloatArray]]]:
        since = self.revision
        added = [
            (ids, directions(embeddings)) for ids, embeddings in self._embeddings(connection, since)
        ]
        return rows.removed_since(connection, since), added

    def _embeddings(
        self, connection: Connection, since: int
    ) -> Iterator[tuple[IdArray, FloatArray]]:
        identity = self.identity
        blocks = rows.stream_embeddings(connection, identity.embedding_dim, since=since)
        for ids, embeddings, makers in blocks:
            if makers != {(identity.bundle_id, identity.variant)}:
                raise ForeignCatalogue(
                    "the database holds embeddings of another bundle or variant: index the cohort "
                    "again"
                )
            yield ids, embeddings

    def _apply(
        self, removed: Sequence[int], added: Sequence[tuple[IdArray, FloatArray]], revision: int
    ) -> None:
        if removed:
            self.log_is_empty = False
            self._vectors.remove(np.asarray(removed, np.int64))
            for listener in self.listeners:
                listener()
        for ids, vectors in added:
            # A change that failed half way is followed once more: an id twice would be found twice.
            new = ~self._vectors.exact.holds(ids)
            self._vectors.add(ids[new], vectors[new])
        self._heed_changes()
        self.identity = dataclasses.replace(self.identity, revision=revision)

    def _heed_changes(self) -> None:
        """Give up an approximate index of which too much was removed; warn of one that grew."""
        index = self._vectors
        if not isinstance(index, ApproximateIndex) or self.measured is None:
            return
        if len(index) > MOST_GROWN * self.measured.vectors and not self._is_grown:
            self._is_grown = True
            log.warning(
                "%s: the recall of the approximate index was measured among %d vectors, and there "
                "are %d now: run slimp catalogue rebuild",
                self.path,
                self.measured.vectors,
                len(index),
            )
        if index.is_worn:
            log.warning(
                "%s: so many lesions were removed that every vector is compared from now on: run "
                "slimp catalogue rebuild",
                self.path,
            )
            self._vectors, self.measured = index.exact, None

    def _empty_log(self, *, wait_s: float = 0) -> None:
        """Leave nothing of erased lesions in the log; `_changing` is held.

        Whoever still reads them, such as a backup, keeps it: the next write or probe tries again.
        """
        if not self.log_is_empty:
            self.log_is_empty = checkpoint(self._engine, wait_s=wait_s)
            if wait_s and not self.log_is_empty:
                log.warning(
                    "%s: another process reads the database, whose log holds erased lesions until "
                    "a later write or probe empties it",
                    self.path,
                )

    def _drop_cache(self) -> None:
        """Remove the cache while nobody else can write one."""
        with reporting_damage(self._database), writing(self._engine).begin():
            drop_cache(self.path)

    def _open(
        self, cached: tuple[CacheDescription, VectorIndex] | None, connection: Connection
    ) -> VectorIndex:
        """Return the cached vectors brought to the database's revision, else rebuild them."""
        path = self.path
        identity = dataclasses.replace(self.identity, revision=read_revision(connection))
        self.identity = identity
        if cached is None:
            log.info("%s: no vector cache; rebuilding it from the database", path)
            return self._rebuild(connection)
        cache, vectors = cached
        if (cache.bundle_id, cache.variant) != (identity.bundle_id, identity.variant):
            raise ForeignCatalogue(
                f"{path}: the vectors are of another bundle or variant: {REMEDY}"
            )
        if cache.revision > identity.revision:
            raise StaleCatalogue(
                f"{path}: the vectors are of revision {cache.revision}, the database is of "
                f"revision {identity.revision} and has lost lesions: restore a backup; or, to go "
                f"on without those lesions, {REMEDY}"
            )
        self.measured = cache.measured
        self._bound_ids(vectors, connection)
        if cache.revision < identity.revision and self._bring_up(
            vectors, connection, cache.revision
        ):
            self._drop_cache()
        self._compare(vectors.exact, connection)
        if isinstance(vectors, ApproximateIndex):
            self._compare_proposed(vectors)
        return vectors

    def _bound_ids(self, vectors: VectorIndex, connection: Connection) -> None:
        """Refuse ids that were never given: what is made for vectors is as large as the top id."""
        last = connection.scalars(select(CatalogueInfo.last_pk)).one()
        proposed = [vectors.ids()] if isinstance(vectors, ApproximateIndex) else []
        for ids in (vectors.exact.ids(), *proposed):
            if len(ids) and not 1 <= ids.min() <= ids.max() <= last:
                raise CorruptCatalogue(
                    f"{self.path}: expected vector ids from 1 to {last}, got {ids.min()} to "
                    f"{ids.max()}: {REMEDY}"
                )
        vectors.exact.make_room(last)

    def _compare_proposed(self, vectors: ApproximateIndex) -> None:
        """Refuse an approximate index that proposes an id twice, or cannot propose a lesion."""
        proposed = np.sort(vectors.ids())
        is_twice = (proposed[1:] == proposed[:-1]).any()
        if is_twice or not np.isin(vectors.exact.ids(), proposed).all():
            raise CorruptCatalogue(
                f"{self.path}: expected an approximate index of every lesion, each once: {REMEDY}"
            )

    def _compare(self, vectors: FlatIndex, connection: Connection) -> None:
        """Refuse vectors that are not, each once, those of the database's lesions."""
        # One text: a row each would take longer than all else. Not in order: SQLite then reads
        # an index, not every row with its embedding.
        joined = select(func.aggregate_strings(cast(Lesion.pk, String), ","))
        held = np.sort(np.fromstring(connection.scalar(joined) or "", np.int64, sep=","))
        dim = self.identity.embedding_dim
        if (vectors.dim, len(vectors)) != (dim, len(held)):
            raise CorruptCatalogue(
                f"{self.path}: expected {len(held)} vectors of length {dim}, got {len(vectors)} "
                f"of length {vectors.dim}: {REMEDY}"
            )
        if not np.array_equal(np.sort(vectors.ids()), held):
            raise CorruptCatalogue(
                f"{self.path}: expected a vector for each lesion, got some twice or of others: "
                f"{REMEDY}"
            )

    def _bring_up(self, vectors: VectorIndex, connection: Connection, since: int) -> bool:
        """Add and remove what came since a revision; return whether anything was removed."""
        log.warning(
            "%s: the vector cache is of revision %d, the database of %d; catching up",
            self.path,
            since,
            self.identity.revision,
        )
        if removed := rows.removed_since(connection, since):
            vectors.remove(np.asarray(removed, np.int64))
        for ids, embeddings in self._embeddings(connection, since):
            vectors.add(ids, directions(embeddings))
        return bool(removed)

    def _rebuild(self, connection: Connection) -> VectorIndex:
        vectors = FlatIndex(self.identity.embedding_dim)
        for ids, embeddings in self._embeddings(connection, since=0):
            vectors.add(ids, directions(embeddings))
        if len(vectors) >= LEAST_APPROXIMATE:
            log.warning(
                "%s: each of %d vectors is compared with each query, until slimp catalogue rebuild "
                "makes an approximate index",
                self.path,
                len(vectors),
            )
        return vectors


def directions(embeddings: FloatArray) -> FloatArray:
    """Return (N, D) float32 rows of unit length.

    Raises:
        InferenceError: a number is not finite, or a row has no direction.
    """
    if not np.isfinite(embeddings).all():
        raise InferenceError("an embedding holds a number that is not finite")
    return unit_norm(embeddings)
