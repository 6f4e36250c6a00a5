"""The ledger's SQL tables."""

import datetime
from typing import Any

from sqlalchemy import CheckConstraint, DateTime, Dialect, LargeBinary, MetaData, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING)


class UtcDateTime(TypeDecorator[datetime.datetime]):
    """A moment; stored in UTC, since SQLite forgets the zone."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(
        self, value: datetime.datetime | None, dialect: Dialect
    ) -> datetime.datetime | None:
        return None if value is None else value.astimezone(datetime.UTC).replace(tzinfo=None)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime.datetime | None:
        return None if value is None else value.replace(tzinfo=datetime.UTC)


class ApiKeyRow(Base):
    """One API key: its public id and the hash of its secret, never the secret."""

    __tablename__ = "api_key"
    __table_args__ = (CheckConstraint("scope IN ('read', 'write', 'admin')", name="scope"),)

    key_id: Mapped[str] = mapped_column(String(12), primary_key=True)
    secret_sha256: Mapped[bytes] = mapped_column(LargeBinary(32))
    scope: Mapped[str] = mapped_column(String(16))
    label: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[datetime.datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime.datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime.datetime | None] = mapped_column(UtcDateTime)
    last_used_at: Mapped[datetime.datetime | None] = mapped_column(UtcDateTime)


class LedgerSecret(Base):
    """The one random secret under which erased names are hashed; it never leaves the ledger."""

    __tablename__ = "ledger_secret"
    __table_args__ = (CheckConstraint("pk = 1", name="one_row"),)

    pk: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    secret: Mapped[bytes] = mapped_column(LargeBinary(32))


class ErasureRow(Base):
    """One name of an erasure: a keyed hash of who was asked for, or went with it; never the name.

    `erasure_id` is random and common to the rows of one erasure. Each catalogue keeps the ids of
    those that it has done; the moment is for people, and nothing is compared with it.
    """

    __tablename__ = "erasure"
    __table_args__ = (CheckConstraint("kind IN ('lesion', 'patient')", name="kind"),)

    pk: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    subject_hmac: Mapped[bytes] = mapped_column(LargeBinary(32), index=True)
    erased_at: Mapped[datetime.datetime] = mapped_column(UtcDateTime)
    erasure_id: Mapped[str] = mapped_column(String(32))


class AuditRow(Base):
    """One request that was answered or refused; `row_sha256` chains it to the row before.

    Everything is stored as the hash reads it, so that what is verified is what is shown.
    """

    __tablename__ = "audit"

    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[str] = mapped_column(String(40))
    request_id: Mapped[str] = mapped_column(String(64))
    caller: Mapped[str | None] = mapped_column(String(255))
    action: Mapped[str] = mapped_column(String(255))
    status: Mapped[int]
    bundle_id: Mapped[str | None] = mapped_column(String(64))
    catalogue_revision: Mapped[int | None]
    input_sha256: Mapped[str | None] = mapped_column(String(64))
    output: Mapped[str | None] = mapped_column(Text)
    row_sha256: Mapped[str] = mapped_column(String(64))


class AuditHead(Base):
    """How far the audit has come: a tail that was cut off does not fit it."""

    __tablename__ = "audit_head"
    __table_args__ = (CheckConstraint("pk = 1", name="one_row"),)

    pk: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    sequence: Mapped[int]
    row_sha256: Mapped[str] = mapped_column(String(64))
