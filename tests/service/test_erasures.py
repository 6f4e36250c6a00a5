"""Whoever was erased stays erased, whatever backup comes back."""

import shutil
from pathlib import Path

import pytest

from bundle.errors import UnknownLesion
from index.catalogue import Catalogue
from service.ledger.database import FILE
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


def held(folder: Path) -> set[str]:
    with reopen(folder) as catalogue:
        return {lesion_id for lesion_id, _, _ in catalogue.names()}


def test_a_backup_that_is_put_back_is_erased_again(folder: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    shutil.copytree(folder, backup)
    erasures = Erasures(tmp_path / "ledger")
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
    erasures.close()


def test_an_erasure_that_was_cut_off_is_finished(folder: Path, tmp_path: Path) -> None:
    class Killed(BaseException):
        """The process ends here."""

    erasures = Erasures(tmp_path / "ledger")
    with reopen(folder) as catalogue:

        def die(name: str) -> None:
            raise Killed

        catalogue.erase_patient = die  # type: ignore[method-assign, assignment]
        with pytest.raises(Killed):
            erasures.erase(catalogue, "patient", "red")
    erasures.close()
    assert held(folder) == {"red-0", "red-1", "green-0", "green-1"}
    again = Erasures(tmp_path / "ledger")
    with reopen(folder) as catalogue:
        assert again.finish(catalogue) == 2
    assert held(folder) == {"green-0", "green-1"}
    again.close()


def test_a_lesion_that_was_added_after_an_erasure_stays(folder: Path, tmp_path: Path) -> None:
    erasures = Erasures(tmp_path / "ledger")
    with reopen(folder) as catalogue:
        erasures.erase(catalogue, "patient", "red")
        catalogue.add([make_lesion("red-9", BLUE, patient_id="red")])
        assert erasures.repeat(catalogue) == 0
    assert held(folder) == {"green-0", "green-1", "red-9"}
    erasures.close()


def test_the_ledger_does_not_know_names(folder: Path, tmp_path: Path) -> None:
    erasures = Erasures(tmp_path / "ledger")
    with reopen(folder) as catalogue:
        catalogue.add([make_lesion("canary", BLUE, patient_id="canary-patient")])
        erasures.erase(catalogue, "patient", "canary-patient")
        with pytest.raises(UnknownLesion):
            erasures.erase(catalogue, "patient", "canary-other")
    erasures.close()
    assert b"canary" not in (tmp_path / "ledger" / FILE).read_bytes()


def test_two_ledgers_do_not_recognise_each_others_hashes(folder: Path, tmp_path: Path) -> None:
    first, second = Erasures(tmp_path / "one"), Erasures(tmp_path / "two")
    assert first._hash("patient", "red") != second._hash("patient", "red")
    assert first._hash("patient", "red") != first._hash("lesion", "red")
    reopened = Erasures(tmp_path / "one")
    assert reopened._hash("patient", "red") == first._hash("patient", "red")
    for ledger in (first, second, reopened):
        ledger.close()
