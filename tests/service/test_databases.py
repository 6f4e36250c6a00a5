"""Both databases, the catalogue's and the ledger's, as `index/sqlite.py` opens them.

Migrations and models agree, newer versions are refused, settings hold.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, MetaData, create_engine, inspect, text

import index.database
import index.tables
import service.ledger.database
import service.ledger.tables
from bundle.errors import LesionError, UnsupportedVersion
from index.sqlite import writing
from service.errors import LedgerError


@dataclass(frozen=True)
class Database:
    """How one of the two is opened, and what it says of a newer one."""

    open: Callable[[Path], Engine]
    file: str
    migrations: Path
    tables: MetaData
    refusal: type[LesionError]


CATALOGUE = Database(
    lambda folder: index.database.open_engine(folder / "catalogue.sqlite"),
    "catalogue.sqlite",
    index.database.MIGRATIONS,
    index.tables.Base.metadata,
    UnsupportedVersion,
)
LEDGER = Database(
    service.ledger.database.open_ledger,
    service.ledger.database.FILE,
    service.ledger.database.MIGRATIONS,
    service.ledger.tables.Base.metadata,
    LedgerError,
)


@pytest.fixture(params=[CATALOGUE, LEDGER], ids=["catalogue", "ledger"])
def database(request: pytest.FixtureRequest) -> Database:
    chosen: Database = request.param
    return chosen


def test_migrating_an_empty_database_gives_the_tables_of_the_models(
    database: Database, tmp_path: Path
) -> None:
    engine = database.open(tmp_path)
    with engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, database.tables) == []
    engine.dispose()


def test_migrations_write_the_same_definitions_as_the_models(
    database: Database, tmp_path: Path
) -> None:
    """Autogenerate does not compare checks, foreign keys' actions, partial indexes and rowids."""
    migrated = database.open(tmp_path)
    modelled = create_engine(f"sqlite:///{tmp_path / 'modelled.sqlite'}")
    database.tables.create_all(modelled)
    found = []
    for engine in (migrated, modelled):
        with engine.connect() as connection:
            rows = connection.execute(
                text("SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'alembic%'")
            )
            found.append({name: " ".join(sql.split()) for name, sql in rows if sql})
        engine.dispose()
    assert found[0] == found[1] != {}


def test_every_migration_can_be_undone(database: Database, tmp_path: Path) -> None:
    engine = database.open(tmp_path)
    config = Config()
    config.set_main_option("script_location", str(database.migrations))
    with writing(engine).begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        assert inspect(connection).get_table_names() == ["alembic_version"]
    engine.dispose()


def test_a_database_of_a_newer_software_is_refused_and_left_as_it_is(
    database: Database, tmp_path: Path
) -> None:
    engine = database.open(tmp_path)
    with writing(engine).begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    before = (tmp_path / database.file).read_bytes()
    with pytest.raises(database.refusal, match="version 9999: upgrade slimp"):
        database.open(tmp_path)
    assert (tmp_path / database.file).read_bytes() == before


def test_what_is_written_outlives_a_power_cut_and_writers_wait(
    database: Database, tmp_path: Path
) -> None:
    engine = database.open(tmp_path)
    with engine.connect() as connection:
        pragmas = {
            name: connection.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    engine.dispose()
    assert pragmas == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "busy_timeout": 30_000,
    }


def test_the_connection_that_came_back_last_is_lent_first(
    database: Database, tmp_path: Path
) -> None:
    """Else each of those that a burst opened would fill a page cache of its own."""
    engine = database.open(tmp_path)
    burst = [engine.raw_connection() for _ in range(3)]
    lent = [connection.driver_connection for connection in burst]
    for connection in burst:
        connection.close()
    again = []
    for _ in range(4):
        connection = engine.raw_connection()
        again.append(connection.driver_connection)
        connection.close()
    engine.dispose()
    assert {id(one) for one in again} == {id(lent[-1])}


def test_an_interrupted_migration_leaves_no_half_made_tables(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cut(Exception):
        pass

    def fail(*_: object, **__: object) -> None:
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr("alembic.runtime.migration.HeadMaintainer.update_to_step", fail)
        with pytest.raises(Cut):
            database.open(tmp_path)
    engine = create_engine(f"sqlite:///{tmp_path / database.file}")
    assert inspect(engine).get_table_names() == []
    engine.dispose()
    database.open(tmp_path).dispose()
