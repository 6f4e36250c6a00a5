"""The metadata table of `slimp predict`: raw records by file name, checked before any image."""

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bundle.errors import InvalidRecord
from bundle.fields import FieldSchema

IMAGE_COLUMN = "image"

Records = Mapping[str, Mapping[str, str]]


def read_records(path: Path) -> dict[str, Mapping[str, str]]:
    """Return raw metadata by image file name.

    Raises:
        InvalidRecord: the table cannot be read, lacks the column `image`, has a line that is not
            as long as its header, or a line that names no file or one that was named before.
    """
    records: dict[str, Mapping[str, str]] = {}
    for line, row in _lines(path):
        name = row.pop(IMAGE_COLUMN).strip()
        if not name:
            raise _refusal(f"{path}, line {line}: expected an image's file name, got none")
        if name in records:
            raise _refusal(f"{path}, line {line}: expected one line an image, got {name} twice")
        records[name] = row
    return records


def _refusal(message: str) -> InvalidRecord:
    return InvalidRecord(message, field=IMAGE_COLUMN)


def _lines(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield each line's number in the file and its cells by column."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            _check_header(path, header)
            for cells in filter(None, reader):
                if len(cells) != len(header):
                    raise _refusal(
                        f"{path}, line {reader.line_num}: expected {len(header)} cells as in the "
                        f"first line, got {len(cells)}"
                    )
                yield reader.line_num, dict(zip(header, cells, strict=True))
    except OSError as error:
        raise _refusal(f"{path}: expected a CSV file, cannot read it: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise _refusal(f"{path}: expected a CSV file in UTF-8: {error}") from None


def _check_header(path: Path, header: Sequence[str]) -> None:
    if IMAGE_COLUMN not in header:
        raise _refusal(
            f"{path}: expected a column {IMAGE_COLUMN!r} with the images' file names, and commas "
            f"between columns; got {', '.join(map(repr, header)) or 'an empty file'}"
        )
    if twice := [name for name, times in Counter(header).items() if times > 1]:
        raise _refusal(f"{path}: expected every column once, got {twice[0]!r} twice")


def match_names(records: Records, files: Sequence[Path]) -> Records:
    """Return the records by the files' own names.

    Published tables often name images without a suffix: such a name is that of the one file which
    has it before its suffix.

    Raises:
        InvalidRecord: two lines are about one file.
    """
    names = {path.name for path in files}
    by_stem: dict[str, set[str]] = {}
    for path in files:
        by_stem.setdefault(path.stem, set()).add(path.name)
    matched: dict[str, Mapping[str, str]] = {}
    for name, record in records.items():
        alike = set() if name in names else by_stem.get(name, set())
        file = next(iter(alike)) if len(alike) == 1 else name
        if file in matched:
            raise _refusal(f"expected one line an image, got two about {file}")
        matched[file] = record
    return matched


def check_values(records: Records, schema: FieldSchema) -> None:
    """Refuse values that no answer could be made with.

    Raises:
        InvalidRecord: naming the image and the field.
    """
    for name, record in records.items():
        try:
            schema.parse(record)
        except InvalidRecord as error:
            raise type(error)(f"metadata of {name}: {error}", field=error.field) from None


def find_unused(records: Records, files: Sequence[Path]) -> tuple[str, ...]:
    """Return the names that no file has.

    Raises:
        InvalidRecord: a name is that of two files, or no name is that of any file.
    """
    by_name: dict[str, Path] = {}
    for path in files:
        if path.name in records and path.name in by_name:
            raise _refusal(
                f"metadata of {path.name}: {by_name[path.name]} and {path} have this name: "
                "predict one folder at a time"
            )
        by_name[path.name] = path
    unused = tuple(name for name in records if name not in by_name)
    if records and len(unused) == len(records):
        raise _refusal(
            f"expected the images' file names in the metadata (such as {files[0].name}), got "
            f"{unused[0]} and none that is among the images"
        )
    return unused
