"""SQLite behind SQLAlchemy: settings, transactions, and tables brought up to date.

Knows no table. The catalogue's database (`index/database.py`) and the service's ledger
(`service/ledger/database.py`) are opened with it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event

from bundle.errors import UnsupportedVersion

BUSY_TIMEOUT_S = 30
# Of folders with databases: whom their rows are about is for the owner alone to read.
FOLDER_MODE = 0o700
# WAL: readers go on while one writes. FULL, not NORMAL: what is committed outlives a power cut.
PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON")


def make_engine(path: Path, pragmas: Sequence[str] = (), **pool: Any) -> Engine:
    """Return an engine on a SQLite file, which is opened, or made, when it is first used.

    Args:
        path: the file.
        pragmas: settings of every connection beside `PRAGMAS`.
        pool: how many connections are kept, as `create_engine` takes it.
    """
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        connect_args={"timeout": BUSY_TIMEOUT_S},
        # The last connection returned is the first one lent: each keeps 2 MB of pages, and those
        # that a burst opened should not all fill theirs.
        pool_use_lifo=True,
        **pool,
    )

    def set_up(connection: Any, _: object) -> None:
        # The driver's own transactions leave table changes out; `_begin` starts ours.
        connection.isolation_level = None
        for pragma in (*PRAGMAS, *pragmas):
            connection.execute(f"PRAGMA {pragma}")

    event.listen(engine, "connect", set_up)
    event.listen(engine, "begin", _begin)
    return engine


def writing(engine: Engine) -> Engine:
    """Return the engine for transactions that write: they take SQLite's write lock at the start.

    A transaction that reads first and writes later could not be told to wait: SQLite would have
    to fail it, since what it read may have changed.
    """
    return engine.execution_options(sqlite_begin="BEGIN IMMEDIATE")


def migrate(engine: Engine, migrations: Path, name: str, *, change: bool = True) -> None:
    """Bring the tables to the version of this software, or leave them as they are.

    Args:
        engine: on the database.
        migrations: Alembic's folder.
        name: what the database is called in the error.
        change: False refuses tables of an older version instead of changing them.

    Raises:
        UnsupportedVersion: a newer software wrote them, or an older one and they may not be
            changed.
        DatabaseError: SQLAlchemy's, where the file cannot be used.
    """
    config = Config()
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    scripts = ScriptDirectory.from_config(config)
    known = {script.revision for script in scripts.walk_revisions()}
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    if current is not None and current not in known:
        raise UnsupportedVersion(
            f"this software reads {name} tables up to version {scripts.get_current_head()}, "
            f"the {name} has version {current}: upgrade slimp"
        )
    if current == scripts.get_current_head():
        return
    if not change:
        raise UnsupportedVersion(
            f"this software reads {name} tables of version {scripts.get_current_head()}, the "
            f"{name} has version {current}, and what only looks changes nothing: back it up, then "
            "let a service of this version open it once"
        )
    # Two programs may open a new database at once: the second waits and finds nothing to do.
    with writing(engine).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("sqlite_begin", "BEGIN"))
