"""The ledger's table versions, applied by Alembic when a ledger is created or opened."""
