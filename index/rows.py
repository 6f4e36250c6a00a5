"""Lesions to SQL rows and back."""

import datetime
import functools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, Select, bindparam, delete, func, insert, select, update
from sqlalchemy.orm import InstrumentedAttribute

from bundle.errors import (
    CatalogueError,
    CorruptCatalogue,
    DuplicateImage,
    LesionExists,
    LesionGone,
    RequestKeyReused,
    StaleCatalogue,
)
from bundle.fields import Field, Record
from index.lesions import CatalogueLesion, Edit, Hit, RequestKey, StoredLesion
from index.tables import (
    CatalogueInfo,
    ErasureDone,
    FieldValue,
    Lesion,
    LesionImage,
    Removal,
    Thumbnail,
    WrittenRequest,
)
from index.vectors import Neighbours

FloatArray = npt.NDArray[np.float32]
IdArray = npt.NDArray[np.int64]
Item = TypeVar("Item")

# Values in one IN list: SQLite takes 32,766 parameters a statement, PostgreSQL 65,535.
IN_CHUNK = 10_000
# Rows held at once while all embeddings are read.
STREAM_ROWS = 4096
EMBEDDING_TYPE = np.dtype("<f4")
# What every search asks, of some vector ids: a lesion's own row, and its record. Made once.
LESIONS = (
    select(
        Lesion.pk,
        Lesion.lesion_id,
        Lesion.patient_id,
        Lesion.label,
        Lesion.malignant,
        Lesion.source,
        Lesion.confirmed_by,
        Thumbnail.lesion_pk.is_not(None).label("has_thumbnail"),
    )
    .outerjoin(Thumbnail, Thumbnail.lesion_pk == Lesion.pk)
    .where(Lesion.pk.in_(bindparam("pks", expanding=True)))
)
VALUES = select(FieldValue.lesion_pk, FieldValue.name, FieldValue.number, FieldValue.text).where(
    FieldValue.lesion_pk.in_(bindparam("pks", expanding=True))
)


@dataclass(frozen=True)
class Stamp:
    """What every row of one transaction carries: which encoder made it, and the revision."""

    bundle_id: str
    variant: str
    revision: int


@dataclass(frozen=True)
class _LesionRow:
    """A lesion's own row, without its record and embedding."""

    pk: int
    lesion_id: str
    patient_id: str | None
    label: str | None
    malignant: bool | None
    source: str
    confirmed_by: str | None
    has_thumbnail: bool


def refuse_known(connection: Connection, lesions: Sequence[CatalogueLesion]) -> None:
    """Do nothing if every lesion id is new.

    Raises:
        CatalogueError: one is given twice.
        LesionExists: the catalogue holds one.
    """
    ids = [lesion.lesion_id for lesion in lesions]
    twice = sorted(lesion_id for lesion_id, count in Counter(ids).items() if count > 1)
    if twice:
        raise CatalogueError(f"expected each lesion once, got {twice[0]!r} twice: nothing is added")
    known = sorted(ids_where(connection, Lesion.lesion_id, Lesion.lesion_id, ids))
    if known:
        raise LesionExists(
            f"expected new lesions, got {len(known)} that the catalogue holds, such as "
            f"{known[0]!r}: nothing is added"
        )


def refuse_twins(connection: Connection, lesions: Sequence[CatalogueLesion]) -> None:
    """Do nothing if no lesion of the catalogue holds one of the lesions' images.

    Raises:
        DuplicateImage: one does; the message names it.
    """
    contents = {content for lesion in lesions for content in lesion.content_hashes}
    known = ids_with_content(connection, contents)
    if known:
        name = connection.scalar(select(Lesion.lesion_id).where(Lesion.pk == known[0]))
        raise DuplicateImage(
            f"expected images that are new, but lesion {name!r} holds one of them: nothing is added"
        )


def take_ids(connection: Connection, count: int) -> IdArray:
    """Return (N,) int64, N `count` vector ids that were never given before."""
    last = connection.scalars(select(CatalogueInfo.last_pk)).one()
    connection.execute(update(CatalogueInfo).values(last_pk=last + count))
    return np.arange(last + 1, last + count + 1, dtype=np.int64)


def answered_before(connection: Connection, request: RequestKey) -> int | None:
    """Return the vector id of the lesion that this request added, None if it never came before.

    Raises:
        RequestKeyReused: its key named another request.
        LesionGone: the lesion that it added was removed since.
    """
    query = select(WrittenRequest.request_sha256, WrittenRequest.lesion_pk)
    row = connection.execute(query.where(WrittenRequest.key_sha256 == request.key)).one_or_none()
    if row is None:
        return None
    if row.request_sha256 != request.content:
        raise RequestKeyReused(
            "expected a new Idempotency-Key for a new request, got one that named another request: "
            "nothing is added"
        )
    if connection.scalar(select(Lesion.pk).where(Lesion.pk == row.lesion_pk)) is None:
        raise LesionGone("the lesion that this request added was removed since: nothing is added")
    return int(row.lesion_pk)


def note_request(connection: Connection, request: RequestKey, lesion_pk: int) -> None:
    """Remember that a request was written."""
    row = insert(WrittenRequest).values(
        key_sha256=request.key,
        request_sha256=request.content,
        lesion_pk=lesion_pk,
        created_at=datetime.datetime.now(datetime.UTC),
    )
    connection.execute(row)


def delete_lesions(connection: Connection, pks: Sequence[int], revision: int) -> None:
    """Delete lesions; their images, values and thumbnails go with them by foreign key."""
    for chunk in _chunks(sorted(pks)):
        connection.execute(delete(Lesion).where(Lesion.pk.in_(chunk)))
        noted = [{"lesion_pk": pk, "revision": revision} for pk in chunk]
        connection.execute(insert(Removal), noted)


def erasures_done(connection: Connection) -> set[str]:
    """Return the ids of the erasures that the catalogue has done."""
    return set(connection.scalars(select(ErasureDone.erasure_id)))


def note_erasures(connection: Connection, erasure_ids: Collection[str]) -> None:
    """Remember that the catalogue has done these erasures, which it had not."""
    if erasure_ids:
        connection.execute(insert(ErasureDone), [{"erasure_id": one} for one in erasure_ids])


def removed_since(connection: Connection, revision: int) -> list[int]:
    """Return the vector ids that were removed after a revision."""
    return list(connection.scalars(select(Removal.lesion_pk).where(Removal.revision > revision)))


def update_lesion(connection: Connection, pk: int, edit: Edit) -> None:
    """Change a lesion's columns and values; what the edit does not name stays."""
    if edit.columns:
        connection.execute(update(Lesion).where(Lesion.pk == pk).values(edit.columns))
    for name, value in edit.record.items():
        own = (FieldValue.lesion_pk == pk) & (FieldValue.name == name)
        connection.execute(delete(FieldValue).where(own))
        if value is not None:
            connection.execute(insert(FieldValue), [_value_row(pk, name, value)])


def ids_after(connection: Connection, pk: int, count: int) -> list[int]:
    """Return the next vector ids above one, at most so many, rising."""
    query = select(Lesion.pk).where(Lesion.pk > pk).order_by(Lesion.pk).limit(count)
    return list(connection.scalars(query))


def insert_lesions(
    connection: Connection, lesions: Sequence[CatalogueLesion], first_pk: int, stamp: Stamp
) -> None:
    """Insert checked lesions under rising vector ids."""
    now = datetime.datetime.now(datetime.UTC)
    numbered = list(enumerate(lesions, start=first_pk))
    rows: dict[type, list[dict[str, Any]]] = {
        Lesion: [_lesion_row(pk, lesion, stamp, now) for pk, lesion in numbered],
        LesionImage: [
            {"lesion_pk": pk, "position": position, "content_hash": content_hash}
            for pk, lesion in numbered
            for position, content_hash in enumerate(lesion.content_hashes)
        ],
        FieldValue: [
            _value_row(pk, name, value)
            for pk, lesion in numbered
            for name, value in lesion.record.items()
            if value is not None
        ],
        Thumbnail: [
            {"lesion_pk": pk, "image": lesion.thumbnail}
            for pk, lesion in numbered
            if lesion.thumbnail is not None
        ],
    }
    for table, values in rows.items():
        if values:
            connection.execute(insert(table), values)


def _lesion_row(
    pk: int, lesion: CatalogueLesion, stamp: Stamp, now: datetime.datetime
) -> dict[str, Any]:
    return {
        "pk": pk,
        "lesion_id": lesion.lesion_id,
        "patient_id": lesion.patient_id,
        "label": lesion.label,
        "malignant": lesion.malignant,
        "confirmed_by": lesion.confirmed_by,
        "source": lesion.source,
        "bundle_id": stamp.bundle_id,
        "variant": stamp.variant,
        "revision": stamp.revision,
        "created_at": now,
        "embedding": np.asarray(lesion.embedding, EMBEDDING_TYPE).tobytes(),
    }


def _value_row(pk: int, name: str, value: float | str | bool) -> dict[str, Any]:
    if isinstance(value, str):
        return {"lesion_pk": pk, "name": name, "number": None, "text": value}
    return {"lesion_pk": pk, "name": name, "number": float(value), "text": None}


def ids_where(
    connection: Connection,
    wanted: InstrumentedAttribute[Item],
    column: InstrumentedAttribute[Any],
    values: Collection[str] | Collection[int],
) -> Iterator[Item]:
    """Yield the wanted column of the rows whose other column has one of the values."""
    for chunk in _chunks(sorted(values)):
        yield from connection.scalars(_select_where(wanted, column), {"values": chunk})


@functools.cache
def _select_where(
    wanted: InstrumentedAttribute[Item], column: InstrumentedAttribute[Any]
) -> Select[Item]:
    # Kept, as those above are: making a statement takes longer than running it.
    return select(wanted).where(column.in_(bindparam("values", expanding=True)))


def ids_of_lesions(connection: Connection, lesion_ids: Collection[str]) -> list[int]:
    """Return the vector ids of those lesions that exist."""
    return list(ids_where(connection, Lesion.pk, Lesion.lesion_id, lesion_ids))


def ids_of_patient(connection: Connection, patient_id: str) -> list[int]:
    """Return the vector ids of a patient's lesions."""
    return list(ids_where(connection, Lesion.pk, Lesion.patient_id, [patient_id]))


def ids_with_content(connection: Connection, content_hashes: Collection[str]) -> list[int]:
    """Return the vector ids of the lesions that hold an image with one of these hashes."""
    column = LesionImage.content_hash
    return sorted(set(ids_where(connection, LesionImage.lesion_pk, column, content_hashes)))


def count_lesions(connection: Connection) -> int:
    return connection.scalar(select(func.count()).select_from(Lesion)) or 0


def read_records(connection: Connection, fields: Sequence[Field]) -> list[Record]:
    """Return every lesion's record, in the order the lesions were added."""
    pks = connection.scalars(select(Lesion.pk).order_by(Lesion.pk)).all()
    records = _read_records(connection, pks, fields)
    return [records[pk] for pk in pks]


def stream_names(connection: Connection) -> Iterator[tuple[str, str | None]]:
    """Yield lesion id and patient id of every lesion."""
    yield from connection.execute(select(Lesion.lesion_id, Lesion.patient_id))


def read_thumbnail(connection: Connection, pk: int) -> bytes | None:
    return connection.scalar(select(Thumbnail.image).where(Thumbnail.lesion_pk == pk))


def read_stored(
    connection: Connection, pks: Collection[int], fields: Sequence[Field], dim: int
) -> list[StoredLesion]:
    """Return everything but the thumbnail of these lesions, in no particular order."""
    lesions = _read_lesions(connection, pks)
    records = _read_records(connection, pks, fields)
    embeddings = _read_embeddings(connection, pks, dim)
    contents = _read_contents(connection, pks)
    return [
        StoredLesion(
            lesion_id=lesion.lesion_id,
            patient_id=lesion.patient_id,
            record=records[pk],
            label=lesion.label,
            malignant=lesion.malignant,
            source=lesion.source,
            embedding=embeddings[pk],
            content_hashes=contents[pk],
            has_thumbnail=lesion.has_thumbnail,
            confirmed_by=lesion.confirmed_by,
        )
        for pk, lesion in lesions.items()
    ]


def read_hits(
    connection: Connection, found: Sequence[Neighbours], k: int, fields: Sequence[Field]
) -> list[list[Hit]]:
    """Return the first k neighbours of each query as hits, equal scores ordered by lesion id.

    Raises:
        StaleCatalogue: a lesion that was found has no row.
    """
    pks = {int(pk) for neighbours in found for pk in neighbours.ids}
    lesions = _read_lesions(connection, pks)
    if len(lesions) < len(pks):
        raise StaleCatalogue(
            "expected a row for every vector, but lesions were removed by another process: "
            "open the catalogue again"
        )
    ranked = [_ranked(neighbours, lesions)[:k] for neighbours in found]
    chosen = {lesion.pk for hits in ranked for _, lesion in hits}
    records = _read_records(connection, chosen, fields)
    return [
        [
            Hit(
                lesion_id=lesion.lesion_id,
                score=score,
                label=lesion.label,
                malignant=lesion.malignant,
                record=dict(records[lesion.pk]),
                source=lesion.source,
                patient_id=lesion.patient_id,
                has_thumbnail=lesion.has_thumbnail,
            )
            for score, lesion in hits
        ]
        for hits in ranked
    ]


def _ranked(
    neighbours: Neighbours, lesions: Mapping[int, _LesionRow]
) -> list[tuple[float, _LesionRow]]:
    scored = [
        (float(score), lesions[int(pk)])
        for pk, score in zip(neighbours.ids, neighbours.scores, strict=True)
    ]
    return sorted(scored, key=lambda hit: (-hit[0], hit[1].lesion_id))


def _read_lesions(connection: Connection, pks: Collection[int]) -> dict[int, _LesionRow]:
    """Return the rows of these vector ids; an id without a row is absent."""
    rows: dict[int, _LesionRow] = {}
    for chunk in _chunks(sorted(pks)):
        for row in connection.execute(LESIONS, {"pks": chunk}):
            rows[row.pk] = _LesionRow(*row)
    return rows


def _read_records(
    connection: Connection, pks: Collection[int], fields: Sequence[Field]
) -> dict[int, Record]:
    """Return each lesion's record, its keys in the order of the fields."""
    values: dict[int, Record] = {pk: {} for pk in pks}
    kinds = {field.name: field.kind for field in fields}
    for chunk in _chunks(sorted(pks)):
        for pk, name, number, text in connection.execute(VALUES, {"pks": chunk}):
            if number is None:
                values[pk][name] = text
            else:
                values[pk][name] = bool(number) if kinds[name] == "boolean" else number
    return {
        pk: {name: record[name] for name in kinds if name in record}
        for pk, record in values.items()
    }


def _read_embeddings(
    connection: Connection, pks: Collection[int], dim: int
) -> dict[int, FloatArray]:
    """Return each lesion's embedding, (D,) float32, as it was added."""
    query = select(Lesion.pk, Lesion.embedding)
    found = {}
    for chunk in _chunks(sorted(pks)):
        for pk, stored in connection.execute(query.where(Lesion.pk.in_(chunk))):
            found[pk] = _embedding(stored, dim)
    return found


def _read_contents(connection: Connection, pks: Collection[int]) -> dict[int, tuple[str, ...]]:
    """Return each lesion's content hashes, in the order in which they were added."""
    query = select(LesionImage.lesion_pk, LesionImage.content_hash)
    ordered = query.order_by(LesionImage.lesion_pk, LesionImage.position)
    found: dict[int, tuple[str, ...]] = dict.fromkeys(pks, ())
    for chunk in _chunks(sorted(pks)):
        for pk, content_hash in connection.execute(ordered.where(LesionImage.lesion_pk.in_(chunk))):
            found[pk] = (*found[pk], content_hash)
    return found


def stream_embeddings(
    connection: Connection, dim: int, *, since: int = 0
) -> Iterator[tuple[IdArray, FloatArray, set[tuple[str, str]]]]:
    """Yield vector ids and (N, D) float32 embeddings in blocks, with who made them.

    Those that were inserted after the revision `since`; 0 yields all. The third value holds the
    (bundle id, variant) pairs of the block.
    """
    query = select(Lesion.pk, Lesion.embedding, Lesion.bundle_id, Lesion.variant)
    if since:
        query = query.where(Lesion.revision > since)
    rows = connection.execution_options(yield_per=STREAM_ROWS).execute(query.order_by(Lesion.pk))
    for block in rows.partitions():
        ids = np.asarray([row.pk for row in block], np.int64)
        vectors = np.stack([_embedding(row.embedding, dim) for row in block])
        yield ids, vectors, {(row.bundle_id, row.variant) for row in block}


def _embedding(stored: bytes, dim: int) -> FloatArray:
    if len(stored) != dim * EMBEDDING_TYPE.itemsize:
        raise CorruptCatalogue(
            f"expected embeddings of {dim * EMBEDDING_TYPE.itemsize} bytes, got {len(stored)}: "
            "index the cohort again, or restore a backup"
        )
    return np.frombuffer(stored, EMBEDDING_TYPE).astype(np.float32)


def _chunks(items: Sequence[Item]) -> Iterable[Sequence[Item]]:
    return (items[start : start + IN_CHUNK] for start in range(0, len(items), IN_CHUNK))
