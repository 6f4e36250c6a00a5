"""Whoever was erased stays erased, whatever backup comes back."""

import hmac
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import text

from bundle.encoder import unit_norm
from bundle.errors import UnknownLesion
from index import cache, rows
from index.catalogue import Catalogue
from index.lesions import Edit
from index.sqlite import writing
from index.upkeep import rebuild, verify
from service.errors import LedgerError
from service.ledger.database import FILE, MIGRATIONS, open_ledger
from service.ledger.erasures import Erasures
from tests.fakes import BLUE, GREEN, RED, make_lesion, write_catalogue

BUNDLE_ID = "ab" * 32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lesions = [
        make_lesion(f"{name}-{n}", colour, seed=n, patient_id=name)
        for name, colour in (("red", RED), ("green", GREEN))
        for n in range(2)
    ]
    write_catalogue(tmp_path / "catalogue", lesions).close()
    return tmp_path / "catalogue"


def reopen(folder: Path) -> Catalogue:
    return Catalogue.open(folder, bundle_id=BUNDLE_ID, variant="fp32")


def ids(catalogue: Catalogue) -> set[str]:
    return {lesion.lesion_id for lesion in catalogue.lesions_after(0, 100)[0]}


def held(folder: Path) -> set[str]:
    with reopen(folder) as catalogue:
        return ids(catalogue)


def test_a_backup_that_is_put_back_is_erased_again(
    folder: Path, tmp_path: Path, erasures: Erasures
) -> None:
    backup = tmp_path / "backup"
    shutil.copytree(folder, backup)
    with reopen(folder) as catalogue:
        erasures.erase(catalogue, "patient", "red")
        erasures.erase(catalogue, "lesion", "green-1")
    shutil.rmtree(folder)
    shutil.copytree(backup, folder)
    assert held(folder) == {"red-0", "red-1", "green-0", "green-1"}
    with reopen(folder) as catalogue:
        assert erasures.finish(catalogue) == 3
        assert erasures.finish(catalogue) == 0
    assert held(folder) == {"green-0"}


def cut_off(erasures: Erasures, catalogue: Catalogue, patient_id: str) -> None:
    """Erase a patient in a process that is killed once it has remembered them."""

    class Killed(BaseException):
        """The process ends here."""

    with pytest.MonkeyPatch.context() as patch:

        def die(*_: object) -> None:
            raise Killed

        patch.setattr(rows, "note_erasures", die)
        with pytest.raises(Killed):
            erasures.erase(catalogue, "patient", patient_id)


def test_an_erasure_that_was_cut_off_is_finished(
    folder: Path, tmp_path: Path, erasures: Erasures
) -> None:
    with reopen(folder) as catalogue:
        cut_off(erasures, catalogue, "red")
    assert held(folder) == {"red-0", "red-1", "green-0", "green-1"}
    again = Erasures(tmp_path / "ledger")
    with reopen(folder) as catalogue:
        assert again.finish(catalogue) == 2
    assert held(folder) == {"green-0", "green-1"}
    again.close()


def test_an_erasure_that_was_cut_off_does_not_hide_the_others(
    folder: Path, tmp_path: Path, erasures: Erasures
) -> None:
    backup = tmp_path / "backup"
    shutil.copytree(folder, backup)
    with reopen(folder) as catalogue:
        erasures.erase(catalogue, "patient", "red")
        cut_off(erasures, catalogue, "green")
    with reopen(backup) as catalogue:
        assert erasures.finish(catalogue) == 4


def test_a_catalogue_that_is_swapped_back_forgets_whoever_was_erased_meanwhile(
    folder: Path, tmp_path: Path, erasures: Erasures
) -> None:
    """However many changes each of the two has seen."""
    with reopen(folder) as first:
        for size in range(5):
            first.update("green-0", Edit({"diameter_mm": size + 1.0}, {}))
    lesions = [make_lesion("red-0", RED, patient_id="red"), make_lesion("blue-0", BLUE, seed=7)]
    with write_catalogue(tmp_path / "second", lesions) as second:
        assert erasures.erase(second, "patient", "red").revision < 6
        # Only the other catalogue knows this patient.
        with pytest.raises(UnknownLesion, match="the erasure is remembered"):
            erasures.erase(second, "patient", "green")
    with reopen(folder) as first:
        assert erasures.finish(first) == 4
        assert erasures.finish(first) == 0


@pytest.mark.parametrize("renamed", ["green", None, "nobody"])
def test_a_lesion_that_was_the_patients_is_forgotten_under_every_name(
    folder: Path, tmp_path: Path, erasures: Erasures, renamed: str | None
) -> None:
    """The backup holds the lesion as another's, or as nobody's."""
    with reopen(folder) as catalogue:
        catalogue.update("red-0", Edit({}, {"patient_id": renamed}))
    shutil.copytree(folder, tmp_path / "backup")
    with reopen(folder) as catalogue:
        catalogue.update("red-0", Edit({}, {"patient_id": "red"}))
        erasures.erase(catalogue, "patient", "red")
    with reopen(tmp_path / "backup") as catalogue:
        assert erasures.finish(catalogue) == 2
        assert ids(catalogue) == {"green-0", "green-1"}


def test_what_came_after_an_erasure_stays(folder: Path, tmp_path: Path, erasures: Erasures) -> None:
    """A new lesion, and an old one that was found to be the patient's; also in a later backup."""
    with reopen(folder) as catalogue:
        erasures.erase(catalogue, "patient", "red")
        with pytest.raises(UnknownLesion):
            erasures.erase(catalogue, "patient", "blue")
        catalogue.add([make_lesion("red-9", BLUE, patient_id="red")])
        catalogue.add([make_lesion("blue-0", BLUE, seed=3, patient_id="blue")])
        catalogue.update("green-0", Edit({}, {"patient_id": "red"}))
    # Whatever the clock says: it may be set back.
    with sqlite3.connect(folder / "catalogue.sqlite") as connection:
        connection.execute("UPDATE lesion SET created_at = '2001-01-01 00:00:00'")
    kept = {"green-0", "green-1", "red-9", "blue-0"}
    shutil.copytree(folder, tmp_path / "backup")
    for place in (folder, tmp_path / "backup"):
        with reopen(place) as catalogue:
            assert erasures.finish(catalogue) == 0
            assert ids(catalogue) == kept


def test_two_erasures_at_once_both_answer_and_both_hold(
    folder: Path, tmp_path: Path, erasures: Erasures
) -> None:
    shutil.copytree(folder, tmp_path / "backup")
    with reopen(folder) as one, reopen(folder) as other, ThreadPoolExecutor(2) as threads:
        asked = ((one, "red"), (other, "green"))
        receipts = threads.map(lambda ask: erasures.erase(ask[0], "patient", ask[1]), asked)
        assert [len(receipt.lesions) for receipt in receipts] == [2, 2]
    with reopen(tmp_path / "backup") as catalogue:
        assert erasures.finish(catalogue) == 4


def test_an_erasure_that_cannot_be_remembered_erases_nothing(
    folder: Path, tmp_path: Path, erasures: Erasures
) -> None:
    with sqlite3.connect(tmp_path / "ledger" / FILE) as connection:
        connection.execute(
            "CREATE TRIGGER full BEFORE INSERT ON erasure BEGIN "
            "SELECT RAISE(ABORT, 'database or disk is full'); END"
        )
    with reopen(folder) as catalogue:
        with pytest.raises(LedgerError, match="disk is full"):
            erasures.erase(catalogue, "lesion", "red-0")
        assert "red-0" in ids(catalogue)


def test_erasures_of_an_older_ledger_are_done_once_more(folder: Path, tmp_path: Path) -> None:
    engine = open_ledger(tmp_path / "older")
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with writing(engine).begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0003")
        connection.execute(text("INSERT INTO ledger_secret VALUES (1, x'00')"))
        subject = hmac.digest(b"\0", b"patient:red", "sha256")
        row = "INSERT INTO erasure VALUES (:pk, 'patient', :subject, '2026-01-01 00:00:00', 7)"
        connection.execute(text(row), [{"pk": pk, "subject": subject} for pk in (1, 2)])
    engine.dispose()
    erasures = Erasures(tmp_path / "older")
    with reopen(folder) as catalogue:
        assert erasures.finish(catalogue) == 2
        assert erasures.finish(catalogue) == 0
    erasures.close()


def test_the_ledger_does_not_know_names(folder: Path, tmp_path: Path, erasures: Erasures) -> None:
    with reopen(folder) as catalogue:
        catalogue.add([make_lesion("canary", BLUE, patient_id="canary-patient")])
        erasures.erase(catalogue, "patient", "canary-patient")
        with pytest.raises(UnknownLesion):
            erasures.erase(catalogue, "patient", "canary-other")
    erasures.close()
    assert b"canary" not in (tmp_path / "ledger" / FILE).read_bytes()


@pytest.mark.parametrize("is_approximate", [False, True])
def test_nothing_of_an_erased_patient_lies_in_any_file_after_a_verification_and_a_vacuum(
    folder: Path, erasures: Erasures, monkeypatch: pytest.MonkeyPatch, is_approximate: bool
) -> None:
    """Not even where a process was killed while it wrote the vectors."""

    class Killed(BaseException):
        """The process ends here."""

    def die(*_: object) -> None:
        raise Killed

    with reopen(folder) as catalogue:
        secret = make_lesion("canary", (13, 57, 201), seed=5, patient_id="canary-patient")
        catalogue.add([secret])
        if is_approximate:
            catalogue.add([make_lesion(f"more-{n}", BLUE, seed=n) for n in range(100)])
            assert catalogue.choose_index(factory="HNSW8", recall=0.01)
        with monkeypatch.context() as patch:
            patch.setattr(cache, "_remove", die)
            with pytest.raises(Killed):
                catalogue.save()
        traces = [b"canary", catalogue.thumbnail("canary")]
        traces += [content.encode() for content in secret.content_hashes]
        traces += [secret.embedding.astype("<f4").tobytes()]
        traces += [unit_norm(secret.embedding[None])[0].astype("<f4").tobytes()]
        assert {f"{cache.VECTORS}.part", f"{cache.NEAR}.part"}.intersection(
            file.name for file in folder.iterdir()
        ) == {f"{cache.VECTORS}.part", *([f"{cache.NEAR}.part"] if is_approximate else [])}
        assert all(any(t in f.read_bytes() for f in folder.iterdir()) for t in traces)
        receipt = erasures.erase(catalogue, "patient", "canary-patient")
        assert receipt.log_is_empty
        for file in folder.iterdir():
            assert [t for t in traces if t in file.read_bytes()] == [], file.name
    assert verify(folder).faults == ()
    rebuild(folder)
    with reopen(folder) as catalogue:
        catalogue.save()
    for file in folder.parent.rglob("*"):
        if file.is_file():
            assert [t for t in traces if t in file.read_bytes()] == [], file.name


def test_two_ledgers_do_not_recognise_each_others_hashes(folder: Path, tmp_path: Path) -> None:
    first, second = Erasures(tmp_path / "one"), Erasures(tmp_path / "two")
    assert first._hash("patient", "red") != second._hash("patient", "red")
    assert first._hash("patient", "red") != first._hash("lesion", "red")
    reopened = Erasures(tmp_path / "one")
    assert reopened._hash("patient", "red") == first._hash("patient", "red")
    for ledger in (first, second, reopened):
        ledger.close()
