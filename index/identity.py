"""What a catalogue is: the one row that names its bundle, its fields and its revision."""

import datetime
from dataclasses import dataclass

from pydantic import ValidationError
from sqlalchemy import Connection, insert, select, update

from bundle.errors import CorruptCatalogue
from bundle.fields import FieldSchema
from index.tables import CatalogueInfo

# Asked by every search, and made once.
REVISION = select(CatalogueInfo.revision)


@dataclass(frozen=True)
class Identity:
    """A catalogue's own description; only the revision changes in its life.

    Attributes:
        bundle_id: the bundle whose image encoder made the embeddings.
        variant: which precision variant of it.
        embedding_dim: D.
        schema: the fields that records may hold.
        revision: rises by one with every change.
        created_at: when the catalogue was made, which tells it from another in the same place.
    """

    bundle_id: str
    variant: str
    embedding_dim: int
    schema: FieldSchema
    revision: int
    created_at: datetime.datetime


def write_identity(connection: Connection, identity: Identity) -> None:
    """Insert the row of a new catalogue."""
    connection.execute(
        insert(CatalogueInfo).values(
            pk=1,
            bundle_id=identity.bundle_id,
            variant=identity.variant,
            embedding_dim=identity.embedding_dim,
            field_schema=identity.schema.model_dump(mode="json"),
            revision=identity.revision,
            last_pk=0,
            created_at=identity.created_at,
        )
    )


def read_identity(connection: Connection) -> Identity:
    """Return what the database says of itself.

    Raises:
        CorruptCatalogue: it says nothing, or what it says cannot be read.
    """
    row = connection.execute(select(*CatalogueInfo.__table__.columns)).one_or_none()
    if row is None:
        raise CorruptCatalogue("expected a catalogue's database, got one without its description")
    try:
        schema = FieldSchema.model_validate(row.field_schema)
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise CorruptCatalogue(f"the catalogue's fields cannot be read: {problem}") from None
    return Identity(
        row.bundle_id, row.variant, row.embedding_dim, schema, row.revision, row.created_at
    )


def read_revision(connection: Connection) -> int:
    """Return the number of changes that the database has seen."""
    return int(connection.scalars(REVISION).one())


def write_revision(connection: Connection, revision: int) -> None:
    """Note that a change was made."""
    connection.execute(update(CatalogueInfo).values(revision=revision))
