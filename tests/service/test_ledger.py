"""The ledger's database: where it lies, who may look, and what is refused."""

import stat
from pathlib import Path

import pytest

from bundle.errors import InvalidSettings
from service.errors import LedgerError
from service.ledger.database import FILE, open_ledger
from service.settings import Settings


def test_only_its_owner_may_look_into_a_ledger(tmp_path: Path) -> None:
    open_ledger(tmp_path / "site" / "ledger").dispose()
    assert stat.S_IMODE((tmp_path / "site" / "ledger").stat().st_mode) == 0o700


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
