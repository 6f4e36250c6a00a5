"""Who was erased: what every other catalogue, and every older copy of one, must forget as well.

A name is kept as HMAC-SHA-256 under a secret of the ledger: with the ledger one can ask whether a
given name was erased, and nobody can read from it who was.

Each catalogue keeps which erasures it has done, in the transaction that does them. What it has not
done is done when it is opened, whether it is a backup, another catalogue or one that was killed
halfway. No clocks and no revisions are compared: what a catalogue took in after an erasure that it
has done was put there on purpose.
"""

import datetime
import hashlib
import hmac
import logging
import secrets
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from sqlalchemy import Engine, insert, select

from bundle.errors import UnknownLesion
from index.catalogue import Catalogue
from index.lesions import Receipt
from index.sqlite import writing
from service.errors import LedgerError
from service.ledger.database import FILE, open_ledger, reporting_damage
from service.ledger.tables import ErasureRow, LedgerSecret

Kind = Literal["lesion", "patient"]
SECRET_BYTES = 32
ID_BYTES = 16

log = logging.getLogger(__name__)


class Erasures:
    """Erases from a catalogue so that no other copy brings anybody back."""

    def __init__(self, folder: Path) -> None:
        """Open the ledger.

        Raises:
            LedgerError: it cannot be used.
        """
        self._path = folder / FILE
        self._engine: Engine = open_ledger(folder)
        self._secret = self._read_secret()

    def close(self) -> None:
        """Release the database."""
        self._engine.dispose()

    def erase(self, catalogue: Catalogue, kind: Kind, name: str) -> Receipt:
        """Erase a lesion or a patient's lesions, and remember it first.

        Remembered are the name that was asked for and each lesion that goes with it: an older copy
        may hold the lesion without its patient. A process that ends in between finishes the erasure
        when the catalogue is next opened.

        Raises:
            UnknownLesion: the catalogue does not hold it. It is remembered all the same, since
                another catalogue or a backup may.
            LedgerError: it could not be remembered; nothing is erased.
        """
        erase = catalogue.remove if kind == "lesion" else catalogue.erase_patient
        try:
            return erase(name, lambda lesion_ids: [self._note(kind, name, lesion_ids)])
        except UnknownLesion as error:
            raise UnknownLesion(
                f"{error}; the erasure is remembered: a backup or another catalogue that holds it "
                "forgets it when it is opened"
            ) from None

    def finish(self, catalogue: Catalogue) -> int:
        """Do every erasure that this catalogue has not done; return how many lesions went."""
        erased = catalogue.erase_missed(self._missed)
        if erased:
            log.warning("%s: %d lesions that had been erased were there", catalogue.path, erased)
        return erased

    def _missed(
        self, done: Collection[str], names: Iterator[tuple[str, str | None]]
    ) -> tuple[Collection[str], Collection[str]]:
        """Return the lesions that erasures name which are not done, and those erasures."""
        with reporting_damage(self._path), self._engine.connect() as connection:
            query = select(ErasureRow.erasure_id, ErasureRow.subject_hmac)
            missed = [row for row in connection.execute(query) if row.erasure_id not in done]
        if not missed:
            return (), ()
        subjects = {row.subject_hmac for row in missed}
        lesion_ids = [
            lesion_id
            for lesion_id, patient_id in names
            if self._hash("lesion", lesion_id) in subjects
            or (patient_id is not None and self._hash("patient", patient_id) in subjects)
        ]
        return lesion_ids, {row.erasure_id for row in missed}

    def _note(self, kind: Kind, name: str, lesion_ids: Sequence[str]) -> str:
        """Remember an erasure, and return its id."""
        erasure_id, now = secrets.token_hex(ID_BYTES), datetime.datetime.now(datetime.UTC)
        # A lesion that is asked for by its id stands there once.
        names = {(kind, name), *(("lesion", lesion_id) for lesion_id in lesion_ids)}
        rows = [
            {
                "kind": subject,
                "subject_hmac": self._hash(subject, one),
                "erased_at": now,
                "erasure_id": erasure_id,
            }
            for subject, one in sorted(names)
        ]
        with reporting_damage(self._path), writing(self._engine).begin() as connection:
            connection.execute(insert(ErasureRow), rows)
        return erasure_id

    def _hash(self, kind: str, name: str) -> bytes:
        return hmac.digest(self._secret, f"{kind}:{name}".encode(), hashlib.sha256)

    def _read_secret(self) -> bytes:
        with reporting_damage(self._path), writing(self._engine).begin() as connection:
            known: bytes | None = connection.scalar(select(LedgerSecret.secret))
            if known is not None:
                return known
            fresh = secrets.token_bytes(SECRET_BYTES)
            connection.execute(insert(LedgerSecret).values(pk=1, secret=fresh))
            return fresh


@contextmanager
def open_erasures(folder: Path) -> Iterator[Erasures]:
    """Yield the erasures of a ledger that is there.

    Raises:
        LedgerError: it is not, or it cannot be used.
    """
    if not (folder / FILE).is_file():
        raise LedgerError(
            f"{folder}: expected the ledger that knows who was erased, got no {FILE} there: name "
            "its folder (SLIMP_LEDGER), or say that there is none (--without-ledger)"
        )
    erasures = Erasures(folder)
    try:
        yield erasures
    finally:
        erasures.close()
