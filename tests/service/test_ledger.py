"""The ledger's database: where it lies, who may look, and which versions are read."""

import stat
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, inspect, text

from bundle.errors import InvalidSettings
from service.errors import LedgerError
from service.ledger.database import FILE, MIGRATIONS, open_ledger, writing
from service.ledger.tables import Base
from service.settings import Settings


def test_migrating_an_empty_ledger_gives_the_tables_of_the_models(tmp_path: Path) -> None:
    engine = open_ledger(tmp_path / "ledger")
    with engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


def test_migrations_write_the_same_definitions_as_the_models(tmp_path: Path) -> None:
    """Autogenerate does not compare checks, foreign keys' actions and partial indexes."""
    migrated = open_ledger(tmp_path / "ledger")
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
    assert found[0] == found[1] != {}


def test_every_migration_can_be_undone(tmp_path: Path) -> None:
    engine = open_ledger(tmp_path)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with writing(engine).begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        assert inspect(connection).get_table_names() == ["alembic_version"]
    engine.dispose()


def test_only_its_owner_may_look_into_a_ledger(tmp_path: Path) -> None:
    open_ledger(tmp_path / "site" / "ledger").dispose()
    assert stat.S_IMODE((tmp_path / "site" / "ledger").stat().st_mode) == 0o700


def test_what_is_written_outlives_a_power_cut_and_writers_wait(tmp_path: Path) -> None:
    engine = open_ledger(tmp_path)
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


def test_a_ledger_of_a_newer_software_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    engine = open_ledger(tmp_path)
    with writing(engine).begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(LedgerError, match="version 9999: upgrade slimp"):
        open_ledger(tmp_path)
    assert (tmp_path / FILE).read_bytes() == before


def test_a_damaged_file_and_a_folder_that_cannot_be_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database" * 100)
    with pytest.raises(LedgerError, match=r"ledger\.sqlite.*not a database"):
        open_ledger(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="cannot be made"):
        open_ledger(tmp_path / "file" / "ledger")


def test_the_ledger_lies_beside_the_catalogue_unless_it_is_named(tmp_path: Path) -> None:
    beside = Settings(catalogue=tmp_path / "site" / "catalogue")
    assert beside.ledger_folder == tmp_path / "site" / "ledger"
    assert Settings(ledger=tmp_path / "keys").ledger_folder == tmp_path / "keys"
    with pytest.raises(InvalidSettings, match="SLIMP_LEDGER"):
        _ = Settings().ledger_folder
