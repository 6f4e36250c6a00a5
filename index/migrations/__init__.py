"""The catalogue's table versions, applied by Alembic when a catalogue is created or opened."""
