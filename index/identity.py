"""What a catalogue is: the one row that names its bundle, its fields and its revision."""

import dataclasses
import datetime
from dataclasses import dataclass

from pydantic import ValidationError
from sqlalchemy import Connection, insert, select, update

from bundle.errors import CorruptCatalogue, StaleCatalogue
from bundle.fields import FieldSchema
from index.tables import CatalogueInfo


@dataclass(frozen=True)
class Identity:
    """A catalogue's own description; only the revision changes in its life.

    Attributes:
        bundle_id: the bundle whose image encoder made the embeddings.
        variant: which precision variant of it.
        embedding_dim: D.
        schema: the fields that records may hold.
        revision: rises by one with every change.
    """

    bundle_id: str
    variant: str
    embedding_dim: int
    schema: FieldSchema
    revision: int


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
            created_at=datetime.datetime.now(datetime.UTC),
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
    return Identity(row.bundle_id, row.variant, row.embedding_dim, schema, row.revision)


def advance(connection: Connection, identity: Identity, lesions: int) -> tuple[Identity, int]:
    """Take the next revision and the vector ids of so many new lesions.

    Returns:
        the identity of the next revision, and the first of the ids.

    Raises:
        StaleCatalogue: the database is of another revision than the identity, so another process
            changed it: vectors that are kept beside it lack what that process added.
    """
    row = connection.execute(select(CatalogueInfo.revision, CatalogueInfo.last_pk)).one()
    if row.revision != identity.revision:
        raise StaleCatalogue(
            f"expected revision {identity.revision}, got {row.revision}: another process changed "
            "the catalogue; open it again"
        )
    changed = update(CatalogueInfo).values(revision=row.revision + 1, last_pk=row.last_pk + lesions)
    connection.execute(changed)
    return dataclasses.replace(identity, revision=row.revision + 1), row.last_pk + 1
