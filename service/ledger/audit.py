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
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import (
    ClauseElement,
    Connection,
    Engine,
    bindparam,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.dialects import sqlite

from index.sqlite import writing
from service.errors import InvalidRequest, LedgerError
from service.ledger.database import FILE, open_ledger, reporting_damage
from service.ledger.tables import AuditHead, AuditRow, ErasureRow

FIRST_SHA256 = "0" * 64
STREAM_ROWS = 1000


def _text_of(statement: ClauseElement) -> str:
    return str(statement.compile(dialect=sqlite.dialect(paramstyle="named")))


COUNT_ERASURES = select(func.count()).select_from(ErasureRow)
READ_HEAD = select(AuditHead.sequence, AuditHead.row_sha256)
# Texts for the driver: every answered request runs them, and what SQLAlchemy does around one
# takes three times as long as SQLite itself. The table of heads has one row.
ADD_ROW = _text_of(insert(AuditRow))
ADD_HEAD = _text_of(insert(AuditHead))
MOVE_HEAD = _text_of(
    update(AuditHead).values(sequence=bindparam("sequence"), row_sha256=bindparam("row_sha256"))
)
HEAD = _text_of(READ_HEAD)


@dataclass(frozen=True)
class Event:
    """One request and its answer.

    Attributes:
        request_id: names it in the log; a UUID.
        caller: the key or person that asked; None where nobody had to say.
        action: method and route, without ids.
        status: of the answer.
        bundle_id: what answered.
        catalogue_revision: the catalogue that was asked.
        input_sha256: of everything that was sent; None without a picture, since the hash of a few
            words could be guessed.
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
        # One thread writes, and takes along what waits: syncing to disk is the larger part. SQLite
        # would let threads that meet its lock sleep, a tenth of a second when many do.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="audit")
        self._waiting: deque[tuple[Event, Future[Head]]] = deque()

    def close(self) -> None:
        """Release the database once the rows that wait are written, or cannot be; take no more."""
        self._thread.shutdown()
        self._engine.dispose()

    def append(self, event: Event) -> Head:
        """Write one row; it is on the disk when this returns.

        Raises:
            LedgerError: it could not be written.
        """
        return self.submit(event).result()

    def submit(self, event: Event) -> Future[Head]:
        """Have one row written; it is on the disk when the future has its place.

        It is written though nobody waits for the future any more. Where it could not be, the
        future has a LedgerError.

        Raises:
            LedgerError: no row can hold it, or no row is taken any more.
        """
        _check_writable(event)
        written: Future[Head] = Future()
        self._waiting.append((event, written))
        try:
            self._thread.submit(self._write_waiting)
        except RuntimeError as error:
            # After `close`, or where the system gives no thread.
            with suppress(ValueError):
                self._waiting.remove((event, written))
            raise LedgerError(f"a row of the audit was not written: {error}") from None
        return written

    def _write_waiting(self) -> None:
        """Write in one transaction what waits: nothing, where it went along with a row before."""
        rows = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if not rows:
            return
        # From here on nobody can cancel. Whoever did is not told; the row is written all the same.
        told = [written.set_running_or_notify_cancel() for _, written in rows]
        try:
            with reporting_damage(self._path), self._writer.begin() as connection:
                heads = _insert(connection, [event for event, _ in rows])
        except BaseException as error:
            # What nobody foresaw is named by its type: its message might repeat a value.
            known = isinstance(error, LedgerError)
            reason = str(error) if known else type(error).__qualname__
            for (_, written), is_told in zip(rows, told, strict=True):
                if is_told:
                    failure = LedgerError(f"a row of the audit was not written: {reason}")
                    failure.__cause__ = None if known else error
                    written.set_exception(failure)
            raise
        for (_, written), is_told, head in zip(rows, told, heads, strict=True):
            if is_told:
                written.set_result(head)

    def check(self) -> None:
        """Do nothing if the ledger answers and gives its write lock.

        Whether its disk takes what is written is not asked here: SQLite writes at a commit only.

        Raises:
            LedgerError: it does not.
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
        with self._reading() as connection:
            yield from _stream(connection)

    def verify(self, known: Head | None = None) -> Verdict:
        """Compare every row with the one before, and the last with what is known of it.

        Rows, head and erasures are read as they are at one moment, so that a service may go on.

        Args:
            known: a head that was noted earlier; the chain must still pass through it.
        """
        with self._reading() as connection:
            return _verify(connection, known)

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        """Yield a connection that sees the ledger as it is at its first query.

        Texts that are no Unicode any more are read too: their row is to be named.
        """
        with reporting_damage(self._path), self._engine.connect() as connection:
            driver: Any = connection.connection.driver_connection
            driver.text_factory = _decode
            try:
                yield connection
            finally:
                driver.text_factory = str


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


def _verify(connection: Connection, known: Head | None) -> Verdict:
    fits = Head(0, FIRST_SHA256)
    for row in _stream(connection):
        expected = fits.sequence + 1
        if row["sequence"] != expected:
            return _broken(fits, f"row {expected} is missing")
        if _hash_read(row, fits.row_sha256) != row["row_sha256"]:
            return _broken(fits, f"row {expected} is not as it was written, or not in its place")
        fits = Head(expected, row["row_sha256"])
        if known is not None and known.sequence == fits.sequence and known != fits:
            return _broken(fits, f"row {expected} is not the one that was noted")
    head = _read_head(connection)
    last = max(0 if head is None else head.sequence, 0 if known is None else known.sequence)
    if last > fits.sequence:
        return _broken(fits, f"row {fits.sequence + 1} is missing: {last} were written")
    if (head or Head(0, FIRST_SHA256)) != fits:
        return _broken(fits, f"row {fits.sequence} is not the last that was written")
    if fits.sequence == 0 and connection.scalar(COUNT_ERASURES):
        return _broken(
            fits,
            "no row is there, though somebody was erased: rows were removed, or the audit was off",
        )
    return Verdict(fits.sequence, fits, None)


def _stream(connection: Connection) -> Iterator[dict[str, Any]]:
    query = select(AuditRow.__table__).order_by(AuditRow.sequence)
    for row in connection.execution_options(yield_per=STREAM_ROWS).execute(query):
        yield dict(row._mapping)


def _broken(fits: Head, what: str) -> Verdict:
    return Verdict(fits.sequence, fits, what)


def _check_writable(event: Event) -> None:
    """Refuse what no row can hold, before it stands among others that would fail with it.

    Raises:
        LedgerError: a number is not finite, a text is no Unicode, or something is no JSON.
    """
    try:
        json.dumps(vars(event), ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        # Its message would repeat the value.
        raise LedgerError(
            f"expected what a row of the audit can hold, got a {type(error).__qualname__} of it"
        ) from None


def _insert(connection: Connection, events: Sequence[Event]) -> list[Head]:
    """Append rows to the chain, and return where each is."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
    # In the transaction that SQLAlchemy began, and will end.
    driver: Any = connection.connection.driver_connection
    found = driver.execute(HEAD).fetchone()
    last = Head(0, FIRST_SHA256) if found is None else Head(*found)
    heads, rows = [], []
    for event in events:
        columns = vars(event) | {
            "sequence": last.sequence + 1,
            "at": now,
            "output": None if event.output is None else _canonical(event.output),
        }
        last = Head(last.sequence + 1, _hash(columns, last.row_sha256))
        rows.append(columns | {"row_sha256": last.row_sha256})
        heads.append(last)
    driver.executemany(ADD_ROW, rows)
    driver.execute(ADD_HEAD if found is None else MOVE_HEAD, {"pk": 1, **vars(last)})
    return heads


def _read_head(connection: Connection) -> Head | None:
    row = connection.execute(READ_HEAD).one_or_none()
    return None if row is None else Head(row.sequence, row.row_sha256)


def _decode(stored: bytes) -> str:
    return stored.decode("utf-8", errors="surrogateescape")


def _hash_read(row: dict[str, Any], before: str) -> str | None:
    """Return the hash of a row that was read; None where it holds what no row can."""
    try:
        return _hash(row, before)
    except (TypeError, ValueError):
        return None


def _hash(columns: dict[str, Any], before: str) -> str:
    content = {k: v for k, v in columns.items() if k != "row_sha256"}
    return hashlib.sha256(f"{before}\n{_canonical(content)}".encode()).hexdigest()


def _canonical(content: dict[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
