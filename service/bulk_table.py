"""The table of `slimp predict`: rows that outlive an interruption, then a CSV or Parquet file.

Rows go into a journal beside the table as they are made, one line of JSON each; what is in it is
not made again. From a journal that holds every row the table is written in the files' order, under
a temporary name, and the journal goes.
"""

import csv
import fcntl
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from os import SEEK_END
from pathlib import Path
from typing import Any, Self

from service.errors import InvalidRequest

Row = dict[str, Any]
Stamp = tuple[int, int] | None
# Rows of a Parquet row group: what is held in memory while it is written.
GROUP_ROWS = 10_000


def journal_path(out: Path) -> Path:
    """Return where the rows of an unfinished table are."""
    return out.with_name(f"{out.name}.partial")


def refused_path(out: Path) -> Path:
    """Return the list of the files that could not be answered."""
    return out.with_name(f"{out.name}.refused.csv")


def file_stamp(path: Path) -> Stamp:
    """Return size and moment, which tell whether a file has changed; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


class Journal:
    """Rows by file; at most one process writes one."""

    def __init__(self, path: Path, run: Mapping[str, Any]) -> None:
        """Open the journal, or begin one.

        Args:
            path: where it is.
            run: what the rows were made with; all must be of one run.

        Raises:
            InvalidRequest: another process writes it, or its rows are of another run.
        """
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        try:
            self._lock()
            self._places: dict[str, tuple[int, Stamp]] = {}
            self._read(json.loads(json.dumps(run)))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __contains__(self, path: Path) -> bool:
        """Return whether the file's row is there, made of the file as it is now."""
        place = self._places.get(str(path))
        return place is not None and place[1] == file_stamp(path)

    def add(self, rows: Sequence[tuple[Path, Stamp, Row]]) -> None:
        """Append rows; they are on their way to the disk when the call returns."""
        self._file.seek(0, SEEK_END)
        for path, stamp, row in rows:
            self._places[str(path)] = self._file.tell(), stamp
            self._append([str(path), stamp, row])
        self._file.flush()

    def row(self, path: Path) -> Row:
        """Return a file's row."""
        self._file.seek(self._places[str(path)][0])
        row: Row = json.loads(self._file.readline())[2]
        return row

    def remove(self) -> None:
        """Forget the rows: the table holds them."""
        self._path.unlink()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidRequest(
                f"{self._path}: another process writes this table: wait for it, or name another",
                field="out",
            ) from None

    def _read(self, run: Any) -> None:
        """Find the rows that are there; what was cut off at the end is dropped."""
        self._file.seek(0)
        end = 0
        for number, line in enumerate(self._file):
            try:
                entry = json.loads(line if line.endswith(b"\n") else b"")
            except ValueError:
                break
            if number == 0:
                self._check_run(entry, run)
            else:
                path, stamp, _ = entry
                self._places[path] = end, None if stamp is None else (stamp[0], stamp[1])
            end += len(line)
        self._file.seek(end)
        self._file.truncate()
        if end == 0:
            self._append(run)

    def _check_run(self, found: Any, run: Any) -> None:
        if found != run:
            raise InvalidRequest(
                f"{self._path} holds rows of an interrupted run with another bundle, metadata or "
                "catalogue: remove it to begin anew, or name another table",
                field="out",
            )

    def _append(self, entry: Any) -> None:
        # JSON in ASCII: a file's name may hold bytes that are no text.
        self._file.write(json.dumps(entry).encode() + b"\n")


def check_format(out: Path) -> None:
    """Refuse a table that could not be written, before any work.

    Raises:
        InvalidRequest: its suffix says neither CSV nor Parquet.
        ModuleNotFoundError: Parquet needs pyarrow.
    """
    if out.suffix not in WRITERS:
        raise InvalidRequest(
            f"{out}: expected a table's name that ends in {' or '.join(WRITERS)}", field="out"
        )
    if out.suffix == ".parquet":
        import pyarrow.parquet  # noqa: F401


def write_table(out: Path, columns: Mapping[str, type], rows: Iterator[Row]) -> None:
    """Write rows under their columns, CSV or Parquet by the suffix; whole or not at all.

    Args:
        out: the file; an older one is replaced.
        columns: name to `str` or `float`, in order; what a row lacks is empty or null.
        rows: are taken one by one.
    """
    with _replacing(out) as partial:
        WRITERS[out.suffix](partial, columns, rows)


def write_refused(out: Path, rows: Iterator[Row]) -> int:
    """List the files that could not be answered and why beside the table; return how many.

    Where there is none there is no list, and that of an older run goes.
    """
    columns = {"file": str, "error": str}
    listed = [{name: row[name] for name in columns} for row in rows]
    path = refused_path(out)
    if not listed:
        path.unlink(missing_ok=True)
        return 0
    with _replacing(path) as partial:
        _write_csv(partial, columns, iter(listed))
    return len(listed)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    partial = path.with_name(f"{path.name}.writing")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write_csv(path: Path, columns: Mapping[str, type], rows: Iterator[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([_cell(row.get(name)) for name in columns] for row in rows)


def _cell(value: str | float | None) -> str:
    return f"{value:.6f}" if isinstance(value, float) else value or ""


def _write_parquet(path: Path, columns: Mapping[str, type], rows: Iterator[Row]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {str: pa.string(), float: pa.float64()}
    schema = pa.schema([(name, kinds[kind]) for name, kind in columns.items()])
    with pq.ParquetWriter(path, schema) as writer:
        while group := [_printable(row) for row in islice(rows, GROUP_ROWS)]:
            writer.write_table(pa.Table.from_pylist(group, schema))


def _printable(row: Row) -> Row:
    """Return the row with its file's name as text, as a CSV shows it."""
    name = row["file"].encode("utf-8", "backslashreplace").decode()
    return {**row, "file": name}


WRITERS: dict[str, Callable[[Path, Mapping[str, type], Iterator[Row]], None]] = {
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}
