"""The catalogue's SQL tables.

Everything known of a lesion hangs on its `lesion` row by a foreign key with ON DELETE CASCADE, the
thumbnail included, so that one transaction erases a lesion or a patient without a trace left in a
file beside the database.

Only portable types are used: the same models serve SQLite and PostgreSQL.
"""

import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

# SQLite numbers rows by INTEGER only; elsewhere a vector id has 64 bits.
VectorId = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING)


class CatalogueInfo(Base):
    """The one row that says what this catalogue is.

    `revision` rises by one with every transaction that changes a lesion. `last_pk` is the highest
    vector id ever given, so that an id is never given twice, not even after a deletion.
    """

    __tablename__ = "catalogue_info"
    __table_args__ = (CheckConstraint("pk = 1", name="one_row"),)

    pk: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    bundle_id: Mapped[str] = mapped_column(String(64))
    variant: Mapped[str] = mapped_column(String(32))
    embedding_dim: Mapped[int]
    field_schema: Mapped[dict[str, Any]] = mapped_column(JSON)
    revision: Mapped[int] = mapped_column(VectorId)
    last_pk: Mapped[int] = mapped_column(VectorId)
    created_at: Mapped[datetime.datetime] = mapped_column(DateTime(timezone=True))


class Lesion(Base):
    """A reference lesion; `pk` is also the id of its vector.

    `embedding` is D little-endian float32, the encoder's feature as it came, not normalised.
    `bundle_id` and `variant` say which encoder made it, `revision` which transaction inserted it,
    `confirmed_by` how the label was found out.
    """

    __tablename__ = "lesion"

    pk: Mapped[int] = mapped_column(VectorId, primary_key=True, autoincrement=False)
    lesion_id: Mapped[str] = mapped_column(String(255), unique=True)
    patient_id: Mapped[str | None] = mapped_column(String(255), index=True)
    label: Mapped[str | None] = mapped_column(String(255), index=True)
    malignant: Mapped[bool | None] = mapped_column(index=True)
    source: Mapped[str] = mapped_column(String(255))
    bundle_id: Mapped[str] = mapped_column(String(64))
    variant: Mapped[str] = mapped_column(String(32))
    revision: Mapped[int] = mapped_column(VectorId, index=True)
    created_at: Mapped[datetime.datetime] = mapped_column(DateTime(timezone=True))
    embedding: Mapped[bytes] = mapped_column(LargeBinary)
    confirmed_by: Mapped[str | None] = mapped_column(String(64))


class LesionImage(Base):
    """One image of a lesion, known by the hash of its pixels; the picture itself is not kept."""

    __tablename__ = "lesion_image"
    __table_args__ = ({"sqlite_with_rowid": False},)

    lesion_pk: Mapped[int] = mapped_column(
        VectorId, ForeignKey("lesion.pk", ondelete="CASCADE"), primary_key=True
    )
    position: Mapped[int] = mapped_column(primary_key=True)
    content_hash: Mapped[str] = mapped_column(String(64), index=True)


class FieldValue(Base):
    """One present value of a lesion's record; a missing value has no row.

    Categorical values are `text`, numeric ones `number`, booleans the numbers 0 and 1. Each index
    covers its filter whole: the lesion's own row is not read.
    """

    __tablename__ = "field_value"
    __table_args__ = (
        Index(
            "ix_field_value_name_text_lesion_pk",
            "name",
            "text",
            "lesion_pk",
            sqlite_where=text("text IS NOT NULL"),
            postgresql_where=text("text IS NOT NULL"),
        ),
        Index(
            "ix_field_value_name_number_lesion_pk",
            "name",
            "number",
            "lesion_pk",
            sqlite_where=text("number IS NOT NULL"),
            postgresql_where=text("number IS NOT NULL"),
        ),
        {"sqlite_with_rowid": False},
    )

    lesion_pk: Mapped[int] = mapped_column(
        VectorId, ForeignKey("lesion.pk", ondelete="CASCADE"), primary_key=True
    )
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    number: Mapped[float | None] = mapped_column(Double)
    text: Mapped[str | None] = mapped_column(String(255))


class Thumbnail(Base):
    """A lesion's small picture, made from fresh pixels."""

    __tablename__ = "thumbnail"

    lesion_pk: Mapped[int] = mapped_column(
        VectorId, ForeignKey("lesion.pk", ondelete="CASCADE"), primary_key=True
    )
    image: Mapped[bytes] = mapped_column(LargeBinary)


class Removal(Base):
    """A vector id that is no more, and the revision that removed it.

    A process that holds vectors of an earlier revision must drop it. Nothing else stays of a
    removed lesion.
    """

    __tablename__ = "removal"

    lesion_pk: Mapped[int] = mapped_column(VectorId, primary_key=True, autoincrement=False)
    revision: Mapped[int] = mapped_column(VectorId, index=True)


class ErasureDone(Base):
    """An erasure that this catalogue has done, by the random id that the service's ledger gave it.

    A copy of an earlier moment lacks the row, and so does another catalogue: there the erasure is
    still to be done. What was added or renamed since is here on purpose.
    """

    __tablename__ = "erasure_done"

    erasure_id: Mapped[str] = mapped_column(String(32), primary_key=True)


class WrittenRequest(Base):
    """A request that added a lesion and may be sent again: the hash of its key, and of itself.

    `lesion_pk` is no foreign key: when the lesion is erased the row stays, so that the same
    request, sent once more, does not bring it back.
    """

    __tablename__ = "written_request"

    key_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    request_sha256: Mapped[str] = mapped_column(String(64))
    lesion_pk: Mapped[int] = mapped_column(VectorId)
    created_at: Mapped[datetime.datetime] = mapped_column(DateTime(timezone=True))
