"""Alembic's entry point: runs migrations on the connection that `index.sqlite` hands over."""

from alembic import context

from service.ledger.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    # SQLite cannot alter a column in place: later migrations copy the table.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
