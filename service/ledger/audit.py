"""What was asked and answered: rows of which each holds the hash of the one before.

Nothing personal is written: what was sent is there as a hash, what was answered as figures. A row
that is changed, removed or moved no longer fits its neighbours. Who can write the database can
write the whole chain anew: whoever must be sure notes `Head`, which `slimp audit verify` prints,
somewhere else, and gives it to a later verification.
"""

import datetime
import hashlib
import json
import re
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from sqlalchemy import Connection, Engine, bindparam, insert, select, update

from service.errors import InvalidRequest, LedgerError
from service.ledger.database import FILE, open_ledger, reporting_damage, writing
from service.ledger.tables import AuditHead, AuditRow

FIRST_SHA256 = "0" * 64
STREAM_ROWS = 1000
# Made once: making a statement takes as long as running it. The table of heads has one row.
READ_HEAD = select(AuditHead.sequence, AuditHead.row_sha256)
ADD_ROW = insert(AuditRow)
ADD_HEAD = insert(AuditHead)
MOVE_HEAD = update(AuditHead).values(
    sequence=bindparam("sequence"), row_sha256=bindparam("row_sha256")
)


@dataclass(frozen=True)
class Event:
    """One request and its answer.

    Attributes:
        request_id: names it in the log.
        caller: the key or person that asked; None where nobody had to say.
        action: method and route, without ids.
        status: of the answer.
        bundle_id: what answered.
        catalogue_revision: the catalogue that was asked.
        input_sha256: of everything that was sent.
        output: figures of the answer, free of personal data, ready for JSON.
    """

    request_id: str
    caller: str | None
    action: str
    status: int
    bundle_id: str | None = None
    catalogue_revision: int | None = None
    input_sha256: str | None = None
    output: dict[str, Any] | None = None


@dataclass(frozen=True)
class Head:
    """The last row: its number, 0 where there is none, and its hash."""

    sequence: int
    row_sha256: str

    def __str__(self) -> str:
        return f"{self.sequence}:{self.row_sha256}"


@dataclass(frozen=True)
class Verdict:
    """What a verification found.

    Attributes:
        rows: how many rows fit.
        head: the last row that fits.
        broken: what is wrong with the first row that does not; None if all fit.
    """

    rows: int
    head: Head
    broken: str | None


@dataclass
class _Pending:
    """A row that waits for its turn, then where it is, or why it is not written."""

    event: Event
    head: Head | None = None
    error: LedgerError | None = None


class AuditLog:
    """Appends to the chain and verifies it; several processes may append."""

    def __init__(self, folder: Path) -> None:
        """Open the ledger.

        Raises:
            LedgerError: it cannot be used.
        """
        self._path = folder / FILE
        self._engine: Engine = open_ledger(folder)
        self._writer = writing(self._engine)
        # Threads of one process take turns here: SQLite lets those that meet its lock sleep and
        # ask again, a tenth of a second when many do. Who has the turn writes what waits.
        self._appending = threading.Lock()
        self._pending: deque[_Pending] = deque()

    def close(self) -> None:
        """Release the database."""
        self._engine.dispose()

    def append(self, event: Event) -> Head:
        """Write one row; it is on the disk when this returns.

        Raises:
            LedgerError: it could not be written.
        """
        row = _Pending(event)
        self._pending.append(row)
        with self._appending:
            # Whoever had the turn before has taken this row along, or it has failed with theirs.
            if row.head is None and row.error is None:
                self._write([self._pending.popleft() for _ in range(len(self._pending))])
        if row.error is not None:
            raise LedgerError(str(row.error))
        return cast(Head, row.head)

    def _write(self, rows: "Sequence[_Pending]") -> None:
        """Write rows in one transaction: syncing to disk, the larger part, is done once."""
        try:
            with reporting_damage(self._path), self._writer.begin() as connection:
                heads = _insert(connection, [row.event for row in rows])
        except LedgerError as error:
            for row in rows:
                row.error = error
            return
        for row, head in zip(rows, heads, strict=True):
            row.head = head

    def check(self) -> None:
        """Do nothing if the ledger answers and can be written.

        Raises:
            LedgerError: it cannot.
        """
        with (
            reporting_damage(self._path),
            self._writer.connect() as connection,
            connection.begin() as transaction,
        ):
            _read_head(connection)
            transaction.rollback()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield every row as columns, in order."""
        query = select(AuditRow.__table__).order_by(AuditRow.sequence)
        with reporting_damage(self._path), self._engine.connect() as connection:
            found = connection.execution_options(yield_per=STREAM_ROWS).execute(query)
            for row in found:
                yield dict(row._mapping)

    def verify(self, known: Head | None = None) -> Verdict:
        """Compare every row with the one before, and the last with what is known of it.

        Args:
            known: a head that was noted earlier; the chain must still pass through it.
        """
        fits = Head(0, FIRST_SHA256)
        for row in self.rows():
            expected = fits.sequence + 1
            if row["sequence"] != expected:
                return _broken(fits, f"row {expected} is missing")
            if _hash(row, fits.row_sha256) != row["row_sha256"]:
                return _broken(
                    fits, f"row {expected} is not as it was written, or not in its place"
                )
            fits = Head(expected, row["row_sha256"])
            if known is not None and known.sequence == fits.sequence and known != fits:
                return _broken(fits, f"row {expected} is not the one that was noted")
        with reporting_damage(self._path), self._engine.connect() as connection:
            head = _read_head(connection)
        last = max(0 if head is None else head.sequence, 0 if known is None else known.sequence)
        if last > fits.sequence:
            return _broken(fits, f"row {fits.sequence + 1} is missing: {last} were written")
        if (head or Head(0, FIRST_SHA256)) != fits:
            return _broken(fits, f"row {fits.sequence} is not the last that was written")
        return Verdict(fits.sequence, fits, None)


@contextmanager
def open_audit(folder: Path) -> Iterator[AuditLog]:
    """Yield the audit of a ledger that is there.

    Raises:
        LedgerError: it is not, or it cannot be used.
    """
    if not (folder / FILE).is_file():
        raise LedgerError(f"{folder}: expected a service's ledger folder, with {FILE}")
    log = AuditLog(folder)
    try:
        yield log
    finally:
        log.close()


def parse_head(text: str) -> Head:
    """Return a head as `Head` writes itself: NUMBER:HASH.

    Raises:
        InvalidRequest: the text is none.
    """
    match = re.fullmatch(r"(\d{1,18}):([0-9a-f]{64})", text)
    if match is None:
        raise InvalidRequest("head: expected NUMBER:HASH, as slimp audit verify prints it")
    return Head(int(match[1]), match[2])


def _broken(fits: Head, what: str) -> Verdict:
    return Verdict(fits.sequence, fits, what)


def _insert(connection: Connection, events: Sequence[Event]) -> list[Head]:
    """Append rows to the chain, and return where each is."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
    first = _read_head(connection)
    last, heads, rows = first or Head(0, FIRST_SHA256), [], []
    for event in events:
        columns = vars(event) | {
            "sequence": last.sequence + 1,
            "at": now,
            "output": None if event.output is None else _canonical(event.output),
        }
        last = Head(last.sequence + 1, _hash(columns, last.row_sha256))
        rows.append(columns | {"row_sha256": last.row_sha256})
        heads.append(last)
    connection.execute(ADD_ROW, rows)
    connection.execute(ADD_HEAD if first is None else MOVE_HEAD, {"pk": 1, **vars(last)})
    return heads


def _read_head(connection: Connection) -> Head | None:
    row = connection.execute(READ_HEAD).one_or_none()
    return None if row is None else Head(row.sequence, row.row_sha256)


def _hash(columns: dict[str, Any], before: str) -> str:
    content = {k: v for k, v in columns.items() if k != "row_sha256"}
    return hashlib.sha256(f"{before}\n{_canonical(content)}".encode()).hexdigest()


def _canonical(content: dict[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
