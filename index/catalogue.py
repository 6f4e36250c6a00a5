"""The catalogue: a folder of reference lesions, and the search among them.

`catalogue.sqlite` is the truth. `vectors.faiss` with `vectors.json` is a cache of its embeddings:
it may be behind or absent, never ahead. All that is known of a lesion, its thumbnail included,
lies in the one database.
"""

import logging
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from sqlalchemy import Connection, Engine

from bundle.encoder import unit_norm
from bundle.errors import (
    CatalogueError,
    CorruptCatalogue,
    DimensionMismatch,
    ForeignCatalogue,
    InferenceError,
    InvalidRecord,
    StaleCatalogue,
    UnknownLesion,
)
from bundle.fields import FieldSchema, Record
from index import rows
from index.cache import REMEDY, describe_cache, load_cache, write_cache
from index.database import open_engine, reporting_damage, writing
from index.eligibility import eligible_lesions
from index.filters import Filter
from index.identity import Identity, advance, read_identity, write_identity
from index.lesions import CatalogueLesion, Exclusion, FloatArray, Hit, StoredLesion
from index.locking import ReadersWriter
from index.vectors import FlatIndex, VectorIndex

__all__ = ["Catalogue", "CatalogueLesion", "Exclusion", "Hit", "StoredLesion"]

log = logging.getLogger(__name__)

DATABASE = "catalogue.sqlite"
NO_EXCLUSION = Exclusion()


class Catalogue:
    """Reference lesions of one bundle and variant; made by `create` or `open`.

    Any number of threads may search while one adds: a search sees an addition whole or not at all.
    """

    def __init__(
        self, path: Path, engine: Engine, identity: Identity, vectors: VectorIndex
    ) -> None:
        self.path = path
        self._engine = engine
        self._identity = identity
        self._vectors = vectors
        # One addition or save at a time; the second lock is held only while vectors change.
        self._changing = threading.Lock()
        self._access = ReadersWriter()

    @classmethod
    def create(
        cls, path: Path, *, bundle_id: str, variant: str, embedding_dim: int, schema: FieldSchema
    ) -> Self:
        """Return a new, empty catalogue.

        Args:
            path: a folder that does not exist yet or is empty.
            bundle_id: the bundle whose image encoder makes the embeddings.
            variant: which precision variant of it.
            embedding_dim: D.
            schema: the fields that records may hold: the bundle's.

        Raises:
            CatalogueError: the folder is taken.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise CatalogueError(f"{path} exists: name a folder that does not, or remove it first")
        path.mkdir(parents=True, exist_ok=True)
        vectors = FlatIndex(embedding_dim)
        identity = Identity(bundle_id, variant, embedding_dim, schema, revision=0)
        engine = open_engine(path / DATABASE)
        with writing(engine).begin() as connection:
            write_identity(connection, identity)
        return cls(path, engine, identity, vectors)

    @classmethod
    def open(cls, path: Path, *, bundle_id: str, variant: str) -> Self:
        """Return the catalogue in this folder.

        Vectors that are behind the database, or absent, are made again from it and stay in memory
        until `save`.

        Args:
            path: a folder that `create` made.
            bundle_id: the bundle whose embeddings will be searched for.
            variant: which precision variant of it.

        Raises:
            ForeignCatalogue: another bundle or variant made it.
            CorruptCatalogue: a file is missing, changed or truncated.
            StaleCatalogue: the vectors are ahead of the database, which lost lesions.
            UnsupportedVersion: a newer software wrote it.
        """
        engine = open_engine(path / DATABASE, must_exist=True)
        try:
            with reporting_damage(path / DATABASE), engine.connect() as connection:
                identity = read_identity(connection)
                if (identity.bundle_id, identity.variant) != (bundle_id, variant):
                    raise ForeignCatalogue(
                        f"{path}: expected a catalogue of bundle {bundle_id[:12]} ({variant}), got "
                        f"one of bundle {identity.bundle_id[:12]} ({identity.variant}): index the "
                        "cohort again with this bundle"
                    )
                vectors = _open_vectors(path, connection, identity)
        except BaseException:
            engine.dispose()
            raise
        return cls(path, engine, identity, vectors)

    @property
    def bundle_id(self) -> str:
        return self._identity.bundle_id

    @property
    def variant(self) -> str:
        return self._identity.variant

    @property
    def embedding_dim(self) -> int:
        return self._identity.embedding_dim

    @property
    def schema(self) -> FieldSchema:
        return self._identity.schema

    @property
    def revision(self) -> int:
        """The number of changes so far that this object has seen."""
        return self._identity.revision

    def __len__(self) -> int:
        return len(self._vectors)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Wait for searches that are under way and release the database."""
        with self._access.writing():
            self._engine.dispose()

    def add(self, lesions: Sequence[CatalogueLesion]) -> None:
        """Add lesions, all or none.

        Raises:
            CatalogueError: a lesion id is given twice or is in the catalogue already.
            DimensionMismatch: an embedding has another length than the catalogue's.
            InvalidRecord: a record holds a field or value that the schema does not accept.
            StaleCatalogue: another process changed the database since this object was opened.
        """
        if not lesions:
            return
        directions = self._check(lesions)
        with (
            self._changing,
            reporting_damage(self.path / DATABASE),
            writing(self._engine).connect() as connection,
            connection.begin() as transaction,
        ):
            rows.refuse_known(connection, lesions)
            identity, first_pk = advance(connection, self._identity, len(lesions))
            stamp = rows.Stamp(identity.bundle_id, identity.variant, identity.revision)
            rows.insert_lesions(connection, lesions, first_pk, stamp)
            with self._access.writing():
                transaction.commit()
                ids = np.arange(first_pk, first_pk + len(lesions), dtype=np.int64)
                self._vectors.add(ids, directions)
                self._identity = identity

    def _check(self, lesions: Sequence[CatalogueLesion]) -> FloatArray:
        """Return the embeddings' directions, (N, D) float32, once every lesion is acceptable."""
        fields = {field.name: field for field in self.schema.fields}
        for lesion in lesions:
            shape = np.shape(lesion.embedding)
            if shape != (self.embedding_dim,):
                raise DimensionMismatch(
                    f"lesion {lesion.lesion_id!r}: expected an embedding of shape "
                    f"{(self.embedding_dim,)}, got {shape}"
                )
            for name, value in lesion.record.items():
                field = fields.get(name) or self.schema.resolve(name)
                if field.name != name or field.parse(value) != value:
                    raise InvalidRecord(
                        f"lesion {lesion.lesion_id!r}: expected a canonical record, as the "
                        f"schema's parse gives it, got {name!r}: {value!r}",
                        field=name,
                    )
        embeddings = np.stack([np.asarray(lesion.embedding, np.float32) for lesion in lesions])
        return _directions(embeddings)

    def save(self) -> None:
        """Write the vectors to disk, so that the next `open` reads instead of rebuilding them."""
        with self._changing:
            write_cache(
                self.path,
                self._vectors,
                revision=self.revision,
                bundle_id=self.bundle_id,
                variant=self.variant,
            )

    def search(
        self,
        queries: FloatArray,
        *,
        k: int,
        where: Filter | None = None,
        exclude: Exclusion = NO_EXCLUSION,
    ) -> list[list[Hit]]:
        """Return each query's most similar lesions: exactly min(k, eligible), best first.

        Score is the cosine similarity, rounded to float32; equal scores are ordered by lesion id,
        also where k cuts between them. Filter and exclusion are applied before the search.

        Args:
            queries: (N, D) float32, the image encoder's features, not normalised.
            k: hits wanted for each query, 1 or more.
            where: keeps only lesions that match; None keeps all.
            exclude: lesions that may not be hits.

        Raises:
            DimensionMismatch: D is not the catalogue's.
            InferenceError: a query has no direction.
            StaleCatalogue: another process removed a lesion that was found.
        """
        if k < 1:
            raise CatalogueError(f"k: expected 1 or more, got {k}")
        if queries.ndim != 2 or queries.shape[1] != self.embedding_dim:
            raise DimensionMismatch(
                f"expected queries of shape (N, {self.embedding_dim}), got {queries.shape}"
            )
        directions = _directions(np.asarray(queries, np.float32))
        is_free = (where is None or not where.conditions) and exclude.is_empty
        with self._reading() as connection:
            eligible = None if is_free else eligible_lesions(connection, where, exclude)
            found = self._vectors.search(directions, k, eligible)
            return rows.read_hits(connection, found, k, self.schema.fields)

    def records(self) -> list[Record]:
        """Return the record of every lesion, in the order they were added."""
        with self._reading() as connection:
            return rows.read_records(connection, self.schema.fields)

    def lesion(self, lesion_id: str) -> StoredLesion:
        """Return one lesion.

        Raises:
            UnknownLesion: the catalogue does not hold it.
        """
        with self._reading() as connection:
            found = self._stored(connection, rows.ids_of_lesions(connection, [lesion_id]))
        if not found:
            raise UnknownLesion(_no_lesion(lesion_id))
        return found[0]

    def lesions_of_patient(self, patient_id: str) -> list[StoredLesion]:
        """Return a patient's lesions, ordered by lesion id.

        Raises:
            UnknownLesion: there is none. The message does not repeat the patient's id.
        """
        with self._reading() as connection:
            found = self._stored(connection, rows.ids_of_patient(connection, patient_id))
        if not found:
            raise UnknownLesion(
                "expected a patient of the catalogue, got an id that none of its lesions carries"
            )
        return found

    def lesions_with_content(self, content_hashes: Collection[str]) -> list[StoredLesion]:
        """Return the lesions that hold an image with one of these pixel hashes, by lesion id."""
        with self._reading() as connection:
            return self._stored(connection, rows.ids_with_content(connection, content_hashes))

    def thumbnail(self, lesion_id: str) -> bytes:
        """Return the lesion's small picture, JPEG or WebP bytes.

        Raises:
            UnknownLesion: the catalogue does not hold the lesion, or no picture of it.
        """
        with self._reading() as connection:
            known = rows.ids_of_lesions(connection, [lesion_id])
            image = rows.read_thumbnail(connection, known[0]) if known else None
        if image is None:
            raise UnknownLesion(
                f"lesion {lesion_id!r} has no thumbnail" if known else _no_lesion(lesion_id)
            )
        return image

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        """Yield a connection on which everything read is of one moment, vectors included."""
        with (
            self._access.reading(),
            reporting_damage(self.path / DATABASE),
            self._engine.connect() as connection,
        ):
            yield connection

    def _stored(self, connection: Connection, pks: Collection[int]) -> list[StoredLesion]:
        stored = rows.read_stored(connection, pks, self.schema.fields, self.embedding_dim)
        return sorted(stored, key=lambda lesion: lesion.lesion_id)


def _no_lesion(lesion_id: str) -> str:
    return f"expected a lesion of the catalogue, got {lesion_id!r}"


def _directions(embeddings: FloatArray) -> FloatArray:
    """Return (N, D) float32 rows of unit length."""
    if not np.isfinite(embeddings).all():
        raise InferenceError("an embedding holds a number that is not finite")
    return unit_norm(embeddings)


def _open_vectors(path: Path, connection: Connection, identity: Identity) -> FlatIndex:
    """Return the cached vectors where they are those of the database, else rebuild them."""
    cache = describe_cache(path)
    if cache is None:
        log.info("%s: no vector cache; rebuilding it from the database", path)
        return _rebuild(connection, identity)
    if (cache.bundle_id, cache.variant) != (identity.bundle_id, identity.variant):
        raise ForeignCatalogue(f"{path}: the vectors are of another bundle or variant: {REMEDY}")
    if cache.revision > identity.revision:
        raise StaleCatalogue(
            f"{path}: the vectors are of revision {cache.revision}, the database is of revision "
            f"{identity.revision} and has lost lesions: restore a backup; or, to go on without "
            f"those lesions, {REMEDY}"
        )
    if cache.revision < identity.revision:
        log.warning(
            "%s: the vector cache is of revision %d, the database of %d; rebuilding it",
            path,
            cache.revision,
            identity.revision,
        )
        return _rebuild(connection, identity)
    vectors = load_cache(path, cache)
    held = rows.count_lesions(connection)
    if (vectors.dim, len(vectors)) != (identity.embedding_dim, held):
        raise CorruptCatalogue(
            f"{path}: expected {held} vectors of length {identity.embedding_dim}, got "
            f"{len(vectors)} of length {vectors.dim}: {REMEDY}"
        )
    return vectors


def _rebuild(connection: Connection, identity: Identity) -> FlatIndex:
    vectors = FlatIndex(identity.embedding_dim)
    made_by = {(identity.bundle_id, identity.variant)}
    for ids, embeddings, makers in rows.stream_embeddings(connection, identity.embedding_dim):
        if makers != made_by:
            raise ForeignCatalogue(
                "the database holds embeddings of another bundle or variant: index the cohort again"
            )
        vectors.add(ids, _directions(embeddings))
    return vectors
