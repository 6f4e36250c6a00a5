"""Many image files through the runtime that serves, to a CSV; what `slimp predict` calls."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bundle.errors import InvalidRecord, LesionError
from index.catalogue import Catalogue
from service.models import load_models
from service.runtime import Runtime
from service.schemas import Assessment

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"})
IMAGE_COLUMN = "image"
REPORT_FILES = 10


@dataclass(frozen=True)
class BulkSummary:
    """How many files were answered, and how many refused with a reason in the table."""

    answered: int
    refused: int


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
        out: the CSV file; it appears under its name when it is complete.
        metadata: a CSV with the column `image` (a file's name) and any fields.
        catalogue: the catalogue folder for extrapolated metadata; None extrapolates nothing.
        report: called with files done and files in all.

    Raises:
        InvalidRecord: the metadata table has no image column, an unknown field or a bad value.
        BundleError, CatalogueError: the bundle or the catalogue cannot be used.
    """
    models = load_models(bundle, threads=0)
    manifest = models.manifest
    reference = None
    if catalogue is not None:
        reference = Catalogue.open(
            catalogue, bundle_id=manifest.bundle_id, variant=manifest.variant
        )
    runtime = Runtime(models, reference)
    records = {} if metadata is None else read_records(metadata)
    for record in records.values():
        models.schema.parse(record)
    files = image_files(images)
    refused = 0
    partial = out.with_name(out.name + ".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        columns = ["file", "status", "label", "malignancy", *(f"p_{k}" for k in manifest.labels)]
        writer.writerow([*columns, "reasons", "error"])
        for number, path in enumerate(files, 1):
            try:
                answer = runtime.classify(
                    [path.read_bytes()],
                    records.get(path.name),
                    extrapolate=reference is not None,
                )
            except (LesionError, OSError) as error:
                refused += 1
                empty = [""] * (len(columns) - 2)
                writer.writerow([path, "refused", *empty, "", str(error)])
            else:
                writer.writerow([path, *_cells(answer, manifest.labels), ""])
            if number % REPORT_FILES == 0 or number == len(files):
                report(number, len(files))
    partial.replace(out)
    return BulkSummary(len(files) - refused, refused)


def _cells(answer: Assessment, labels: Sequence[str]) -> list[object]:
    probabilities = answer.probabilities or {}
    shares = ["" if k not in probabilities else f"{probabilities[k]:.6f}" for k in labels]
    malignancy = "" if answer.malignancy is None else f"{answer.malignancy:.6f}"
    reasons = " ".join(answer.quality.reasons)
    return [answer.status, answer.label or "", malignancy, *shares, reasons]


def image_files(paths: Sequence[Path]) -> list[Path]:
    """Return the files, and the image files of the folders, each folder sorted by name."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = (p for p in path.rglob("*") if p.suffix.casefold() in SUFFIXES)
            files.extend(sorted(inside))
        else:
            files.append(path)
    return files


def read_records(path: Path) -> dict[str, Mapping[str, str]]:
    """Return raw metadata by image file name.

    Raises:
        InvalidRecord: the table lacks the column `image`, or names a file twice.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if IMAGE_COLUMN not in (reader.fieldnames or ()):
            raise InvalidRecord(
                f"{path}: expected a column {IMAGE_COLUMN!r} with file names, got "
                f"{', '.join(reader.fieldnames or ())}",
                field=IMAGE_COLUMN,
            )
        records: dict[str, Mapping[str, str]] = {}
        for row in reader:
            name = row.pop(IMAGE_COLUMN)
            if name in records:
                raise InvalidRecord(f"{path}: {name} is there twice", field=IMAGE_COLUMN)
            records[name] = row
    return records
