"""The tables: migrations and models agree, newer versions are refused, settings hold."""

from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, inspect, text

from bundle.errors import UnsupportedVersion
from index.database import MIGRATIONS, open_engine, writing
from index.tables import Base


def test_migrating_an_empty_database_gives_the_tables_of_the_models(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "new.sqlite")
    with engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


def test_migrations_write_the_same_definitions_as_the_models(tmp_path: Path) -> None:
    """Autogenerate does not compare foreign keys' actions, partial indexes and rowids."""
    migrated = open_engine(tmp_path / "migrated.sqlite")
    modelled = create_engine(f"sqlite:///{tmp_path / 'modelled.sqlite'}")
    Base.metadata.create_all(modelled)
    found = []
    for engine in (migrated, modelled):
        with engine.connect() as connection:
            rows = connection.execute(
                text("SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'alembic%'")
            )
            found.append({name: " ".join(sql.split()) for name, sql in rows if sql})
        engine.dispose()
    assert found[0] == found[1]


def test_every_migration_can_be_undone(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "new.sqlite")
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with writing(engine).begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        assert inspect(connection).get_table_names() == ["alembic_version"]
    engine.dispose()


def test_a_database_of_a_newer_software_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "newer.sqlite"
    engine = open_engine(path)
    with writing(engine).begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    before = path.read_bytes()
    with pytest.raises(UnsupportedVersion, match="version 9999: upgrade slimp"):
        open_engine(path)
    assert path.read_bytes() == before


def test_commits_outlive_a_power_cut_and_deletions_cascade(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "new.sqlite")
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


def test_the_connection_that_came_back_last_is_lent_first(tmp_path: Path) -> None:
    """Else each of those that a burst opened would fill a page cache of its own."""
    engine = open_engine(tmp_path / "new.sqlite")
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cut(Exception):
        pass

    def fail(*_: object, **__: object) -> None:
        raise Cut

    path = tmp_path / "new.sqlite"
    with monkeypatch.context() as patch:
        patch.setattr("alembic.runtime.migration.HeadMaintainer.update_to_step", fail)
        with pytest.raises(Cut):
            open_engine(path)
    engine = create_engine(f"sqlite:///{path}")
    assert inspect(engine).get_table_names() == []
    engine.dispose()
    open_engine(path).dispose()
