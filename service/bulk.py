"""Many image files through the runtime that serves, to a CSV; what `slimp predict` calls."""

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from bundle.errors import InferenceError, InvalidImage, InvalidRecord
from bundle.fields import FieldSchema
from index.catalogue import Catalogue
from service.errors import InvalidRequest
from service.models import load_models
from service.runtime import Runtime

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")
IMAGE_COLUMN = "image"
REFUSED = "refused"
# Files between two calls of `report`.
REPORT_FILES = 10

Records = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class BulkSummary:
    """What became of the files and of the metadata.

    Attributes:
        answered: files with an answer, those that are not assessable included.
        refused: files with an error in the table.
        unused: images that the metadata names and that were not among the files.
    """

    answered: int
    refused: int
    unused: tuple[str, ...] = ()


def predict_files(
    bundle: Path,
    images: Sequence[Path],
    out: Path,
    *,
    metadata: Path | None = None,
    catalogue: Path | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> BulkSummary:
    """Write one row an image file: the answer, or the error that refused it.

    Args:
        bundle: the bundle folder.
        images: files, or folders that are searched for image files.
        out: the CSV file; it appears under its name when it is complete, in place of an older one.
        metadata: a CSV with the column `image` (a file's name) and any fields.
        catalogue: the catalogue folder for extrapolated metadata; None extrapolates nothing.
        report: called with files done and files in all.

    Raises:
        InvalidRequest: there is no image file, or `out` is a folder or a file that is read.
        InvalidRecord: the metadata table cannot be read, has no image column, an unknown field or
            a bad value, or does not fit the files.
        BundleError, CatalogueError: the bundle or the catalogue cannot be used.
    """
    files = image_files(images)
    _check_out(out, files if metadata is None else [*files, metadata])
    records = {} if metadata is None else read_records(metadata)
    unused = _unused(records, files)
    models = load_models(bundle, threads=0)
    _check_values(records, models.schema)
    manifest = models.manifest
    opened = (
        nullcontext()
        if catalogue is None
        else Catalogue.open(catalogue, bundle_id=manifest.bundle_id, variant=manifest.variant)
    )
    with opened as reference, _whole_file(out) as file:
        refused = _write_rows(file, Runtime(models, reference), files, records, report)
    return BulkSummary(len(files) - refused, refused, unused)


def image_files(paths: Sequence[Path]) -> list[Path]:
    """Return the files, and the image files of the folders, each folder sorted; every file once.

    Raises:
        InvalidRequest: there is none.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = (p for p in path.rglob("*") if p.suffix.casefold() in SUFFIXES and p.is_file())
            files.extend(sorted(found))
        else:
            files.append(path)
    if not files:
        searched = ", ".join(map(str, paths)) or "no file or folder"
        raise InvalidRequest(
            f"expected image files ({', '.join(SUFFIXES)}), found none in {searched}",
            field="images",
        )
    return list(dict.fromkeys(files))


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


def _check_values(records: Records, schema: FieldSchema) -> None:
    for name, record in records.items():
        try:
            schema.parse(record)
        except InvalidRecord as error:
            raise type(error)(f"metadata of {name}: {error}", field=error.field) from None


def _unused(records: Records, files: Sequence[Path]) -> tuple[str, ...]:
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


def _check_out(out: Path, read: Sequence[Path]) -> None:
    if out.is_dir():
        raise InvalidRequest(f"{out} is a folder: name the CSV file to write", field="out")
    if out.resolve() in {path.resolve() for path in read}:
        raise InvalidRequest(f"{out} is one of the files that are read: name another", field="out")


@contextmanager
def _whole_file(out: Path) -> Iterator[TextIO]:
    """Yield a file beside `out` that becomes `out` only if the block succeeds."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    try:
        # A file's name may hold bytes that are no text.
        with partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            yield file
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


def _write_rows(
    file: TextIO,
    runtime: Runtime,
    files: Sequence[Path],
    records: Records,
    report: Callable[[int, int], None],
) -> int:
    """Write the header and a row a file, and return how many files were refused."""
    shares = [f"p_{label}" for label in runtime.models.labels]
    writer = csv.DictWriter(
        file, ["file", "status", "label", "malignancy", *shares, "reasons", "error"]
    )
    writer.writeheader()
    refused = 0
    for number, path in enumerate(files, 1):
        row = _answer(runtime, path, records.get(path.name))
        refused += row["status"] == REFUSED
        writer.writerow({"file": path, **row})
        if number % REPORT_FILES == 0 or number == len(files):
            report(number, len(files))
    return refused


def _answer(runtime: Runtime, path: Path, record: Mapping[str, str] | None) -> dict[str, Any]:
    """Return the row's cells; those that are absent or None stay empty."""
    try:
        answer = runtime.classify(
            [path.read_bytes()], record, extrapolate=runtime.catalogue is not None
        )
    except OSError as error:
        return {"status": REFUSED, "error": f"cannot be read: {error.strerror}"}
    except (InvalidImage, InvalidRecord, InferenceError) as error:
        return {"status": REFUSED, "error": str(error)}
    row = {
        "status": answer.status,
        "label": answer.label,
        "reasons": " ".join(answer.quality.reasons),
    }
    if answer.malignancy is not None:
        row["malignancy"] = f"{answer.malignancy:.6f}"
    if answer.probabilities is not None:
        row |= {f"p_{label}": f"{p:.6f}" for label, p in answer.probabilities.items()}
    return row
