"""backup, restore, catalogue and audit: what an operator does at night."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bundle.errors import UnknownLesion
from index import backup, cache, sqlite, upkeep
from index.catalogue import Catalogue
from index.lesions import Edit
from service.ledger.audit import AuditLog, Event
from service.ledger.database import FILE
from service.ledger.erasures import Erasures
from tests.fakes import GREEN, RED, make_lesion, write_catalogue

Slimp = Callable[..., Any]
BUNDLE_ID = "ab" * 32


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site's folder, with a catalogue of two patients."""
    lesions = [
        make_lesion(f"{name}-{n}", colour, seed=n, patient_id=f"patient {name}")
        for name, colour in (("red", RED), ("green", GREEN))
        for n in range(3)
    ]
    write_catalogue(tmp_path / "catalogue", lesions).close()
    return tmp_path


def reopen(site: Path) -> Catalogue:
    return Catalogue.open(site / "catalogue", bundle_id=BUNDLE_ID, variant="fp32")


def test_a_sound_catalogue_is_called_sound(site: Path, slimp: Slimp) -> None:
    ended = slimp("catalogue", "verify", str(site / "catalogue"))
    assert ended.code == 0, ended
    assert "revision 1, 6 lesions, 6 vectors on disk (revision 1), 0 faults" in ended.out


def break_embedding(folder: Path) -> None:
    with sqlite3.connect(folder / "catalogue.sqlite") as connection:
        (other,) = connection.execute("SELECT embedding FROM lesion WHERE pk = 6").fetchone()
        connection.execute("UPDATE lesion SET embedding = ? WHERE pk = 2", (other,))


def break_vectors(folder: Path) -> None:
    (folder / cache.VECTORS).write_bytes(b"nothing")


def leave_a_vector(folder: Path) -> None:
    with sqlite3.connect(folder / "catalogue.sqlite") as connection:
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("DELETE FROM lesion WHERE pk = 2")


def orphan_a_value(folder: Path) -> None:
    with sqlite3.connect(folder / "catalogue.sqlite") as connection:
        connection.execute("PRAGMA foreign_keys=OFF")
        connection.execute("INSERT INTO thumbnail (lesion_pk, image) VALUES (99, x'00')")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (break_embedding, "vector 2 is not that of its row"),
        (break_vectors, "vectors.faiss: expected"),
        (leave_a_vector, "1 vectors without a row"),
        (orphan_a_value, "foreign_key_check"),
    ],
)
def test_every_damage_is_named(
    site: Path, slimp: Slimp, damage: Callable[[Path], None], said: str
) -> None:
    damage(site / "catalogue")
    ended = slimp("catalogue", "verify", str(site / "catalogue"))
    assert ended.code == 1
    assert said in ended.out
    if damage in (break_vectors, leave_a_vector, break_embedding):
        assert slimp("catalogue", "rebuild", str(site / "catalogue")).code == 0
        assert slimp("catalogue", "verify", str(site / "catalogue")).code == 0


def test_a_restored_backup_forgets_whoever_was_erased_since(site: Path, slimp: Slimp) -> None:
    catalogue, backup = site / "catalogue", site / "backup"
    assert slimp("backup", str(catalogue), "--out", str(backup)).code == 0
    erasures = Erasures(site / "ledger")
    with reopen(site) as opened:
        erasures.erase(opened, "patient", "patient red")
        opened.add([make_lesion("later", GREEN, seed=9)])
    erasures.close()
    shutil.rmtree(catalogue)
    ended = slimp("restore", str(backup), "--out", str(catalogue))
    assert ended.code == 0, ended
    assert "3 lesions; 3 that had been erased were erased again" in ended.out
    with reopen(site) as opened:
        held = {lesion.lesion_id for lesion in opened.lesions_after(0, 100)[0]}
        assert held == {"green-0", "green-1", "green-2"}
    for file in catalogue.iterdir():
        assert b"patient red" not in file.read_bytes(), file.name
    assert slimp("catalogue", "verify", str(catalogue)).code == 0
    assert slimp("restore", str(backup), "--out", str(catalogue)).code == 1


def test_a_restoration_asks_the_ledger_that_the_service_asks(
    site: Path, slimp: Slimp, monkeypatch: pytest.MonkeyPatch
) -> None:
    slimp("backup", str(site / "catalogue"), "--out", str(site / "backup"))
    erasures = Erasures(site / "elsewhere")
    with reopen(site) as opened:
        erasures.erase(opened, "patient", "patient red")
    erasures.close()
    out = site / "new" / "catalogue"
    ended = slimp("restore", str(site / "backup"), "--out", str(out))
    assert ended.code == 1
    assert "expected the ledger that knows who was erased" in ended.err
    assert not (site / "new").exists()
    monkeypatch.setenv("SLIMP_LEDGER", str(site / "elsewhere"))
    ended = slimp("restore", str(site / "backup"), "--out", str(out))
    assert "3 lesions; 3 that had been erased were erased again" in ended.out
    ended = slimp("restore", str(site / "backup"), "--out", str(site / "all"), "--without-ledger")
    assert "6 lesions; nobody was erased again" in ended.out
    assert not (site / "ledger").exists()


def test_a_restoration_keeps_what_was_written_after_an_erasure(site: Path, slimp: Slimp) -> None:
    """A lesion that was there before, and was found to be the patient's since."""
    erasures = Erasures(site / "ledger")
    with reopen(site) as opened:
        erasures.erase(opened, "patient", "patient red")
        opened.update("green-0", Edit({}, {"patient_id": "patient red"}))
    erasures.close()
    slimp("backup", site / "catalogue", "--out", site / "backup")
    ended = slimp("restore", site / "backup", "--out", site / "again")
    assert "3 lesions; 0 that had been erased were erased again" in ended.out


def test_what_lies_beside_a_catalogue_is_named_through_a_link_too(site: Path, slimp: Slimp) -> None:
    left = site / ".catalogue.x1y2"
    left.mkdir()
    shutil.copy(site / "catalogue" / "catalogue.sqlite", left)
    (site / "links").mkdir()
    (site / "links" / "now").symlink_to(site / "catalogue")
    ended = slimp("catalogue", "verify", site / "links" / "now")
    assert (ended.code, f"{left} may hold who was erased" in ended.out) == (1, True)


def test_a_copy_of_a_ledger_that_was_cut_off_is_named(site: Path, slimp: Slimp) -> None:
    AuditLog(site / "ledger").close()
    left = site / "backups" / ".monday.x1y2"
    left.mkdir(parents=True)
    shutil.copy(site / "ledger" / FILE, left)
    ended = slimp("backup", site / "ledger", "--out", site / "backups" / "tuesday")
    assert f"{left}: left by a command that was cut off" in ended.out


@pytest.mark.parametrize(
    "stray", ["vectors.faiss.part", "near.faiss.part", "catalogue.sqlite.old", "../.catalogue.x1y2"]
)
def test_what_no_erasure_reaches_is_named(site: Path, slimp: Slimp, stray: str) -> None:
    """As a process leaves it that was killed while it wrote, or a person who made a copy."""
    path = site / "catalogue" / stray
    if path.name.startswith("."):
        path.mkdir()
        shutil.copy(site / "catalogue" / "catalogue.sqlite", path)
    else:
        path.write_bytes(b"whoever was erased")
    (site / "catalogue" / "notes.txt").write_text("the site's own")
    ended = slimp("catalogue", "verify", str(site / "catalogue"))
    assert ended.code == 1
    assert f"{Path(stray).name} may hold who was erased: remove it" in ended.out
    assert "1 faults" in ended.out


def test_a_backup_names_those_that_were_cut_off(site: Path, slimp: Slimp) -> None:
    (site / "backups" / ".monday.x1y2").mkdir(parents=True)
    left = site / "backups" / ".monday.x1y2" / "catalogue.sqlite"
    assert "cut off" not in slimp("backup", site / "catalogue", "--out", site / "backups" / "1").out
    shutil.copy(site / "catalogue" / "catalogue.sqlite", left)
    ended = slimp("backup", site / "catalogue", "--out", site / "backups" / "tuesday")
    assert ended.code == 0
    assert f"{left.parent}: left by a command that was cut off" in ended.out


def test_a_backup_and_what_is_put_back_are_on_the_disk_before_they_have_their_name(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bool]] = []
    for name in ("backup", "again"):
        synced.clear()
        out = site / "new" / name

        def note(path: Path, out: Path = out) -> None:
            synced.append((path.name, out.exists()))

        monkeypatch.setattr(backup, "sync", note)
        if name == "backup":
            upkeep.back_up(site / "catalogue", out)
        else:
            upkeep.put_back(site / "new" / "backup", out)
        *files, (stage, _), parent = synced
        assert {file for file, named in files if not named} == {f.name for f in out.iterdir()}
        assert stage.startswith(f".{name}.")
        assert parent == ("new", True)


def test_a_catalogue_that_is_read_elsewhere_is_not_called_rebuilt(site: Path, slimp: Slimp) -> None:
    database = site / "catalogue" / "catalogue.sqlite"
    with closing(sqlite3.connect(database, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM lesion").fetchone()
        ended = slimp("catalogue", "rebuild", site / "catalogue")
    assert ended.code == 1
    assert "another process reads the database" in ended.err
    assert slimp("catalogue", "rebuild", site / "catalogue").code == 0


def test_a_catalogue_that_is_written_to_is_not_rebuilt_and_keeps_its_vectors(
    site: Path, slimp: Slimp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_S", 0.1)
    database = site / "catalogue" / "catalogue.sqlite"
    with closing(sqlite3.connect(database, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        ended = slimp("catalogue", "rebuild", site / "catalogue")
    assert ended.code == 1
    assert "cannot be compacted" in ended.err
    assert (site / "catalogue" / cache.VECTORS).exists()


def test_a_backup_that_was_changed_is_refused(site: Path, slimp: Slimp) -> None:
    slimp("backup", str(site / "catalogue"), "--out", str(site / "backup"))
    copy = site / "backup" / "catalogue.sqlite"
    copy.write_bytes(copy.read_bytes()[:-1] + b"x")
    ended = slimp("restore", str(site / "backup"), "--out", str(site / "again"))
    assert ended.code == 1
    assert "SHA-256" in ended.err
    assert not (site / "again").exists()


def test_a_ledger_is_copied_while_a_service_writes_and_put_back(site: Path, slimp: Slimp) -> None:
    ledger, copy, again = (site / name for name in ("ledger", "copy", "again"))
    assert "expected" in slimp("backup", ledger, "--out", copy).err
    with closing(AuditLog(ledger)) as log, closing(Erasures(ledger)) as erasures:
        log.append(Event("r0", None, "POST /classify", 200))
        with closing(write_catalogue(site / "other", [])) as other, pytest.raises(UnknownLesion):
            erasures.erase(other, "patient", "patient red")
        assert slimp("backup", ledger, "--out", copy).code == 0
        log.append(Event("r1", None, "POST /classify", 200))
    assert {path.name for path in copy.iterdir()} == {FILE, backup.SUMS}
    ended = slimp("restore", copy, "--out", again)
    assert (ended.code, "since the backup" in ended.out) == (0, True)
    assert [path.stat().st_mode & 0o777 for path in (copy, again)] == [0o700, 0o700]
    assert "1 rows fit" in slimp("audit", "verify", again).out
    with closing(Erasures(again)) as known, closing(reopen(site)) as catalogue:
        assert known.finish(catalogue) == 3
    (copy / FILE).write_bytes(b"nothing")
    assert "SHA-256" in slimp("restore", copy, "--out", site / "third").err
    assert not (site / "third").exists()


def test_the_audit_is_verified_from_outside(tmp_path: Path, slimp: Slimp) -> None:
    folder = tmp_path / "ledger"
    assert "expected a service's ledger" in slimp("audit", "verify", str(folder)).err
    log = AuditLog(folder)
    for number in range(3):
        log.append(Event(f"r{number}", None, "POST /classify", 200))
    log.close()
    ended = slimp("audit", "verify", str(folder))
    assert (ended.code, "3 rows fit" in ended.out) == (0, True)
    head = ended.out.split("head ")[1].strip()
    assert slimp("audit", "verify", str(folder), "--head", head).code == 0
    assert slimp("audit", "verify", str(folder), "--head", "x").code == 1
    assert slimp("audit", "show", str(folder)).out.count("POST /classify") == 3
    with sqlite3.connect(folder / FILE) as connection:
        connection.execute("UPDATE audit SET status = 500 WHERE sequence = 2")
    ended = slimp("audit", "verify", str(folder))
    assert ended.code == 1
    assert "row 2 is not as it was written" in ended.out


@pytest.mark.parametrize("value", ["CAST(action AS BLOB)", "CAST(x'47ff' AS TEXT)"])
def test_rows_that_were_tampered_with_are_named_and_shown(
    tmp_path: Path, value: str, slimp: Slimp
) -> None:
    with closing(AuditLog(tmp_path)) as log:
        for number in range(3):
            log.append(Event(f"r{number}", None, "POST /classify", 200))
    with closing(sqlite3.connect(tmp_path / FILE)) as connection, connection:
        connection.execute(f"UPDATE audit SET action = {value} WHERE sequence = 2")
    ended = slimp("audit", "verify", tmp_path)
    assert (ended.code, "row 2 is not as it was written" in ended.out) == (1, True)
    ended = slimp("audit", "show", tmp_path)
    assert (ended.code, len(ended.out.splitlines())) == (0, 3)
