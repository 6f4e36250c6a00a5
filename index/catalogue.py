"""The catalogue: a folder of reference lesions, and the search among them.

`catalogue.sqlite` is the truth. `vectors.faiss` with `vectors.json` is a cache of its embeddings:
it may be behind or absent, never ahead (`index/live.py`). All that is known of a lesion, its
thumbnail included, lies in the one database.
"""

import datetime
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from sqlalchemy import Connection

from bundle.errors import (
    CatalogueError,
    DimensionMismatch,
    ForeignCatalogue,
    InvalidRecord,
    UnknownLesion,
)
from bundle.fields import FieldSchema, Record
from index import rows
from index.cache import describe_cache
from index.choice import AUTO, RECALL, Measured
from index.database import open_engine, reporting_damage
from index.eligibility import Eligibility
from index.filters import Filter
from index.identity import Identity, read_identity, write_identity
from index.lesions import (
    CatalogueLesion,
    Edit,
    Exclusion,
    FloatArray,
    Hit,
    Receipt,
    RequestKey,
    StoredLesion,
)
from index.live import LiveVectors, directions
from index.sqlite import FOLDER_MODE, writing

__all__ = ["Catalogue", "CatalogueLesion", "Exclusion", "Hit", "StoredLesion"]

DATABASE = "catalogue.sqlite"
NO_EXCLUSION = Exclusion()
# Called with the ids of lesions that are about to be erased; returns ids of the erasures that are
# done with them.
Note = Callable[[Sequence[str]], Collection[str]]
# Called with the ids of the erasures that were done here, and lesion and patient id of each lesion;
# returns ids of the lesions that other erasures name, and of those erasures.
Missed = Callable[
    [Collection[str], Iterator[tuple[str, str | None]]], tuple[Collection[str], Collection[str]]
]
NO_PATIENT = "expected a patient of the catalogue, got an id that none of its lesions carries"


class Catalogue:
    """Reference lesions of one bundle and variant; made by `create` or `open`.

    Any number of threads and processes may search while one changes it: a search sees a change
    whole or not at all, and every change that was committed before it began.
    """

    def __init__(self, path: Path, live: LiveVectors) -> None:
        self.path = path
        self._live, self._eligibility = live, Eligibility()
        # Called under the write lock before a lesion is added or changed; what it raises forbids.
        self.before_change: Callable[[], None] = lambda: None
        self._fields = {field.name: field for field in live.identity.schema.fields}

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
        # Whom lesions belong to is nobody's business but the service's own user.
        path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        path = path.resolve()
        now = datetime.datetime.now(datetime.UTC)
        identity = Identity(bundle_id, variant, embedding_dim, schema, revision=0, created_at=now)
        engine = open_engine(path / DATABASE)
        with writing(engine).begin() as connection:
            write_identity(connection, identity)
        return cls(path, LiveVectors(path, engine, path / DATABASE, identity))

    @classmethod
    def open(cls, path: Path, *, bundle_id: str, variant: str) -> Self:
        """Return the catalogue in this folder.

        Vectors that are behind the database catch up with it, absent ones are made again from it;
        both stay in memory until `save`.

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
        # A link may lead elsewhere tomorrow; this catalogue stays what it was opened as.
        path = path.resolve()
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
            live = LiveVectors(path, engine, path / DATABASE, identity)
        except BaseException:
            engine.dispose()
            raise
        return cls(path, live)

    @property
    def bundle_id(self) -> str:
        return self._live.identity.bundle_id

    @property
    def variant(self) -> str:
        return self._live.identity.variant

    @property
    def embedding_dim(self) -> int:
        return self._live.identity.embedding_dim

    @property
    def schema(self) -> FieldSchema:
        return self._live.identity.schema

    @property
    def created_at(self) -> datetime.datetime:
        return self._live.identity.created_at

    @property
    def revision(self) -> int:
        """The number of changes so far that this object has seen."""
        return self._live.identity.revision

    def __len__(self) -> int:
        return len(self._live)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def on_removal(self, call: Callable[[], None]) -> None:
        """Have `call` called whenever lesions leave this object's vectors, whoever erased them."""
        self._live.listeners.append(call)

    def close(self) -> None:
        """Wait for searches that are under way and release the database."""
        self._live.close()

    def add(self, lesions: Sequence[CatalogueLesion]) -> None:
        """Add lesions, all or none.

        Raises:
            CatalogueError: a lesion id is given twice.
            LesionExists: a lesion id is in the catalogue already.
            DimensionMismatch: an embedding has another length than the catalogue's.
            InvalidRecord: a record holds a field or value that the schema does not accept.
        """
        if not lesions:
            return
        vectors = self._check(lesions)
        with self._live.changing() as change:
            self.before_change()
            rows.refuse_known(change.connection, lesions)
            change.insert(lesions, vectors)

    def add_once(
        self, lesion: CatalogueLesion, request: RequestKey | None
    ) -> tuple[StoredLesion, bool]:
        """Add one lesion of which no image is in the catalogue; a repeated request adds nothing.

        Args:
            lesion: the lesion.
            request: names the request where it may come twice.

        Returns:
            the lesion, and whether it was added now: not where the same request had added it.

        Raises:
            LesionExists, DuplicateImage: the id, or one of the images, is in the catalogue already.
            RequestKeyReused: another request had this key.
            LesionGone: the same request had added it, and it was removed since.
            DimensionMismatch, InvalidRecord: as in `add`.
        """
        vectors = self._check([lesion])
        with self._live.changing() as change:
            self.before_change()
            connection = change.connection
            known = None if request is None else rows.answered_before(connection, request)
            if known is not None:
                return self._stored(connection, [known])[0], False
            rows.refuse_known(connection, [lesion])
            rows.refuse_twins(connection, [lesion])
            (pk,) = change.insert([lesion], vectors)
            if request is not None:
                rows.note_request(connection, request, pk)
            return self._stored(connection, [pk])[0], True

    def update(self, lesion_id: str, edit: Edit | Callable[[StoredLesion], Edit]) -> StoredLesion:
        """Change what is known of a lesion and return it; its pictures stay.

        Args:
            lesion_id: which.
            edit: the change; or what makes it of the lesion as it stands, which nobody else
                changes meanwhile. Its errors leave the lesion as it is.

        Raises:
            UnknownLesion: the catalogue does not hold it.
            InvalidRecord: the record holds a field or value that the schema does not accept.
        """
        with self._live.changing() as change:
            self.before_change()
            pks = rows.ids_of_lesions(change.connection, [lesion_id])
            if not pks:
                raise UnknownLesion(_no_lesion(lesion_id))
            if not isinstance(edit, Edit):
                edit = edit(self._stored(change.connection, pks)[0])
            self._check_record(lesion_id, edit.record)
            change.update(pks[0], edit)
            return self._stored(change.connection, pks)[0]

    def remove(self, lesion_id: str, note: Note = lambda lesion_ids: ()) -> Receipt:
        """Erase one lesion.

        Args:
            lesion_id: which.
            note: called first, with no id where the lesion is not here; what it raises leaves
                everything as it is.

        Raises:
            UnknownLesion: the catalogue does not hold it; what was noted stays.
        """
        receipt = self._erase(lambda inside: rows.ids_of_lesions(inside, [lesion_id]), note)
        if not receipt.lesions:
            raise UnknownLesion(_no_lesion(lesion_id))
        return receipt

    def erase_patient(self, patient_id: str, note: Note = lambda lesion_ids: ()) -> Receipt:
        """Erase all lesions of a patient.

        Args:
            patient_id: whose.
            note: as in `remove`.

        Raises:
            UnknownLesion: there is none; what was noted stays. The message does not repeat the
                patient's id.
        """
        receipt = self._erase(lambda inside: rows.ids_of_patient(inside, patient_id), note)
        if not receipt.lesions:
            raise UnknownLesion(NO_PATIENT)
        return receipt

    def erase_missed(self, missed: Missed) -> int:
        """Erase what erasures name that this catalogue has not done; return how many lesions.

        Args:
            missed: says which; nobody else changes the catalogue meanwhile.
        """
        with self._live.changing() as change:
            inside = change.connection
            lesion_ids, erasure_ids = missed(rows.erasures_done(inside), rows.stream_names(inside))
            change.delete(rows.ids_of_lesions(inside, lesion_ids))
            rows.note_erasures(inside, erasure_ids)
        return len(change.removed)

    def _erase(self, find: Callable[[Connection], list[int]], note: Note) -> Receipt:
        with self._live.changing() as change:
            gone = self._stored(change.connection, find(change.connection))
            lesion_ids = tuple(lesion.lesion_id for lesion in gone)
            rows.note_erasures(change.connection, note(lesion_ids))
            change.delete(rows.ids_of_lesions(change.connection, lesion_ids))
        return Receipt(
            lesions=lesion_ids,
            images=sum(len(lesion.content_hashes) for lesion in gone),
            thumbnails=sum(lesion.has_thumbnail for lesion in gone),
            revision=change.stamp.revision,
            log_is_empty=self._live.log_is_empty,
        )

    def lesions_after(self, cursor: int, count: int) -> tuple[list[StoredLesion], int | None]:
        """Return lesions in the order they were added, and the cursor that the next page follows.

        Args:
            cursor: 0 for the first page, else what the last one returned.
            count: lesions on a page.

        Returns:
            at most `count` lesions; None for a cursor where none is left.
        """
        with self._reading() as connection:
            pks = rows.ids_after(connection, cursor, count + 1)
            page = pks[:count]
            stored = rows.read_stored(connection, page, self.schema.fields, self.embedding_dim)
            return stored, page[-1] if len(pks) > count else None

    def _check(self, lesions: Sequence[CatalogueLesion]) -> FloatArray:
        """Return the embeddings' directions, (N, D) float32, once every lesion is acceptable."""
        for lesion in lesions:
            shape = np.shape(lesion.embedding)
            if shape != (self.embedding_dim,):
                raise DimensionMismatch(
                    f"lesion {lesion.lesion_id!r}: expected an embedding of shape "
                    f"{(self.embedding_dim,)}, got {shape}"
                )
            self._check_record(lesion.lesion_id, lesion.record)
        embeddings = np.stack([np.asarray(lesion.embedding, np.float32) for lesion in lesions])
        return directions(embeddings)

    def _check_record(self, lesion_id: str, record: Record) -> None:
        for name, value in record.items():
            field = self._fields.get(name) or self.schema.resolve(name)
            if field.name != name or field.parse(value) != value:
                raise InvalidRecord(
                    f"lesion {lesion_id!r}: expected a canonical record, as the schema's parse "
                    f"gives it, got {name!r}: {value!r}",
                    field=name,
                )

    def choose_index(self, *, factory: str = AUTO, recall: float = RECALL) -> Measured | None:
        """Build the vector index that suits the catalogue; call `save` afterwards.

        Args:
            factory: `auto` goes by the number of lesions, `flat` compares every vector; else what
                FAISS's `index_factory` takes, HNSW or IVF.
            recall: the least share of the 10 nearest that an approximate index may find, (0, 1].

        Returns:
            how an approximate index was measured, None where every vector is compared.

        Raises:
            CatalogueError: FAISS cannot make the index, or it does not reach the recall.
        """
        self._live.choose(factory, recall)
        return self._live.measured

    @property
    def is_kept(self) -> bool:
        """Whether vectors lie on disk, of this revision or an earlier one."""
        return describe_cache(self.path) is not None

    def save(self) -> None:
        """Write the vectors to disk, so that the next `open` reads instead of rebuilding them."""
        self._live.save()

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
        also where k cuts between them. (Of very many equal ones an approximate index knows some.)
        Filter and exclusion are applied before the search.

        Args:
            queries: (N, D) float32, the image encoder's features, not normalised.
            k: hits wanted for each query, 1 or more.
            where: keeps only lesions that match; None keeps all.
            exclude: lesions that may not be hits.

        Raises:
            DimensionMismatch: D is not the catalogue's.
            InferenceError: a query has no direction.
        """
        if k < 1:
            raise CatalogueError(f"k: expected 1 or more, got {k}")
        if queries.ndim != 2 or queries.shape[1] != self.embedding_dim:
            raise DimensionMismatch(
                f"expected queries of shape (N, {self.embedding_dim}), got {queries.shape}"
            )
        asked = directions(np.asarray(queries, np.float32))
        is_free = (where is None or not where.conditions) and exclude.is_empty
        with self._live.reading() as (connection, vectors):
            eligible = (
                None
                if is_free
                else self._eligibility.lesions(connection, self.revision, where, exclude)
            )
            found = vectors.search(asked, k, eligible)
            return rows.read_hits(connection, found, k, self.schema.fields)

    def records(self) -> list[Record]:
        """Return the record of every lesion, in the order they were added."""
        with self._reading() as connection:
            return rows.read_records(connection, self.schema.fields)

    def lesion_ids(self) -> set[str]:
        """Return the id of every lesion."""
        with self._reading() as connection:
            return {lesion_id for lesion_id, _ in rows.stream_names(connection)}

    def check(self) -> None:
        """Do nothing if the database answers and can be written.

        Raises:
            CatalogueError: it does not.
        """
        self._live.check()

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
            raise UnknownLesion(NO_PATIENT)
        return found

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
        with self._live.reading() as (connection, _):
            yield connection

    def _stored(self, connection: Connection, pks: Collection[int]) -> list[StoredLesion]:
        stored = rows.read_stored(connection, pks, self.schema.fields, self.embedding_dim)
        return sorted(stored, key=lambda lesion: lesion.lesion_id)


def _no_lesion(lesion_id: str) -> str:
    return f"expected a lesion of the catalogue, got {lesion_id!r}"
