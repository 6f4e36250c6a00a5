"""Who was erased: what a restored backup must forget again.

A name is kept as HMAC-SHA-256 under a secret of the ledger: with the ledger one can ask whether a
given name was erased, and nobody can read from it who was.
"""

import datetime
import hashlib
import hmac
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from sqlalchemy import Engine, func, insert, select, update

from bundle.errors import UnknownLesion
from index.catalogue import Catalogue
from index.lesions import Receipt
from service.ledger.database import FILE, open_ledger, reporting_damage, writing
from service.ledger.tables import ErasureRow, LedgerSecret

Kind = Literal["lesion", "patient"]
SECRET_BYTES = 32


class Erasures:
    """Erases from a catalogue so that no backup of it brings anybody back."""

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

        A process that ends in between finishes the erasure at its next start.

        Raises:
            UnknownLesion: the catalogue does not hold it; nothing is remembered.
            LedgerError: it could not be remembered; nothing is erased.
        """
        find: Callable[[str], object] = (
            catalogue.lesion if kind == "lesion" else catalogue.lesions_of_patient
        )
        find(name)
        pk = self._note(kind, name)
        erase = catalogue.remove if kind == "lesion" else catalogue.erase_patient
        receipt = erase(name)
        self._settle([pk], receipt.revision)
        return receipt

    def finish(self, catalogue: Catalogue) -> int:
        """Finish what an earlier process could not; return how many lesions were erased.

        A catalogue of a revision before the last erasure is an older one that was put back: there
        every erasure is done again.
        """
        with reporting_damage(self._path), self._engine.connect() as connection:
            last = connection.scalar(select(func.max(ErasureRow.catalogue_revision))) or 0
            query = select(ErasureRow.pk).where(ErasureRow.catalogue_revision.is_(None))
            pending = set(connection.scalars(query))
        if pending:
            return self._again(catalogue, pending)
        return self.repeat(catalogue) if catalogue.revision < last else 0

    def repeat(self, catalogue: Catalogue) -> int:
        """Erase again whatever was erased before and is back; return how many lesions were."""
        return self._again(catalogue, None)

    def _again(self, catalogue: Catalogue, only: set[int] | None) -> int:
        with reporting_damage(self._path), self._engine.connect() as connection:
            rows = connection.execute(select(ErasureRow.__table__)).all()
        chosen = [row for row in rows if only is None or row.pk in only]
        until: dict[tuple[str, bytes], datetime.datetime] = {}
        for row in chosen:
            known = until.get((row.kind, row.subject_hmac))
            until[row.kind, row.subject_hmac] = max(known or row.erased_at, row.erased_at)
        erased = sum(self._erase_back(catalogue, *name, until) for name in catalogue.names())
        self._settle([row.pk for row in chosen], catalogue.revision)
        return erased

    def _erase_back(
        self,
        catalogue: Catalogue,
        lesion_id: str,
        patient_id: str | None,
        added_at: datetime.datetime,
        until: dict[tuple[str, bytes], datetime.datetime],
    ) -> bool:
        """Erase the lesion if it or its patient was erased after it was added."""
        names: list[tuple[Kind, str]] = [("lesion", lesion_id)]
        names += [] if patient_id is None else [("patient", patient_id)]
        ends = [until.get((kind, self._hash(kind, name))) for kind, name in names]
        if not any(end is not None and added_at <= end for end in ends):
            return False
        try:
            catalogue.remove(lesion_id)
        except UnknownLesion:
            # Another worker of this service was faster.
            return False
        return True

    def _note(self, kind: Kind, name: str) -> int:
        row = insert(ErasureRow).values(
            kind=kind,
            subject_hmac=self._hash(kind, name),
            erased_at=datetime.datetime.now(datetime.UTC),
        )
        with reporting_damage(self._path), writing(self._engine).begin() as connection:
            (pk,) = connection.execute(row).inserted_primary_key or (0,)
        return int(pk)

    def _settle(self, pks: list[int], revision: int) -> None:
        done = update(ErasureRow).where(ErasureRow.pk.in_(pks)).values(catalogue_revision=revision)
        with reporting_damage(self._path), writing(self._engine).begin() as connection:
            connection.execute(done)

    def _hash(self, kind: Kind, name: str) -> bytes:
        return hmac.digest(self._secret, f"{kind}:{name}".encode(), hashlib.sha256)

    def _read_secret(self) -> bytes:
        with reporting_damage(self._path), writing(self._engine).begin() as connection:
            known: bytes | None = connection.scalar(select(LedgerSecret.secret))
            if known is not None:
                return known
            fresh = secrets.token_bytes(SECRET_BYTES)
            connection.execute(insert(LedgerSecret).values(pk=1, secret=fresh))
            return fresh
