"""Many image files through the runtime that serves, to a table; what `slimp predict` calls.

Each core decodes and infers a batch of its own, so that none waits for another. Rows go into a
journal as they are made (`service/bulk_table.py`): a run that was interrupted goes on.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import overload

from bundle.cpus import available_cpus
from bundle.errors import InferenceError, InvalidImage, InvalidRecord
from index.catalogue import Catalogue
from index.pipeline import in_order
from service.bulk_records import Records, check_values, find_unused, match_names, read_records
from service.bulk_table import (
    Journal,
    Row,
    Stamp,
    check_format,
    file_stamp,
    journal_path,
    refused_path,
    write_refused,
    write_table,
)
from service.errors import InvalidRequest
from service.models import Models, load_models
from service.runtime import Runtime
from service.schemas import Assessment

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")
REFUSED = "refused"
# Files that a thread answers together: the model sees them in one or two runs.
BATCH_FILES = 16


@dataclass(frozen=True)
class BulkSummary:
    """What became of the files and of the metadata.

    Attributes:
        answered: files with an answer, those that are not assessable included.
        refused: files with an error in the table.
        unused: images that the metadata names and that were not among the files.
        unnamed: files that the metadata does not name, where there is any.
    """

    answered: int
    refused: int
    unused: tuple[str, ...] = ()
    unnamed: tuple[str, ...] = ()


def predict_files(
    bundle: Path,
    images: Sequence[Path],
    out: Path,
    *,
    metadata: Path | None = None,
    catalogue: Path | None = None,
    variant: str | None = None,
    prevalence: float | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> BulkSummary:
    """Write one row an image file: the answer, or the error that refused it.

    Rows of an interrupted run are taken from its journal where their files are unchanged. Files
    that were refused are listed beside the table as well.

    Args:
        bundle: the bundle folder.
        images: files, or folders that are searched for image files.
        out: a CSV or Parquet file by its suffix; it appears under its name when it is complete, in
            place of an older one.
        metadata: a CSV with the column `image` (a file's name) and any fields.
        catalogue: the catalogue folder for extrapolated metadata; None extrapolates nothing.
        variant: precision of the image encoder; None takes the one that the bundle chose.
        prevalence: share of lesions that are malignant at the site; None answers at the training
            prevalence.
        report: called with files done and files in all, after each batch.

    Raises:
        InvalidRequest: there is no image file, the prevalence is no share, `out` is a folder, a
            file that is read or of another kind, or its journal is of another run.
        InvalidRecord: the metadata table cannot be read, has no image column, an unknown field or
            a bad value, or does not fit the files.
        BundleError, CatalogueError: the bundle or the catalogue cannot be used.
    """
    files = image_files(images)
    _check_out(out, files if metadata is None else [*files, metadata])
    records = {} if metadata is None else match_names(read_records(metadata), files)
    unused = find_unused(records, files)
    if prevalence is not None and not 0 < prevalence < 1:
        raise InvalidRequest(
            f"prevalence: expected a share between 0 and 1, got {prevalence:g}", field="prevalence"
        )
    models = load_models(bundle, threads=1, variant=variant)
    check_values(records, models.schema)
    bundle_id = models.manifest.bundle_id
    opened = (
        nullcontext()
        if catalogue is None
        else Catalogue.open(catalogue, bundle_id=bundle_id, variant=models.variant)
    )
    with opened as reference:
        made_with = {
            "bundle": bundle_id,
            "variant": models.variant,
            "metadata": None if metadata is None else _sha256(metadata),
            "catalogue": None if reference is None else _describe(reference),
            "prevalence": prevalence,
        }
        with Journal(journal_path(out), made_with) as journal:
            runtime = Runtime(models, reference, prevalence=prevalence)
            _answer_files(runtime, journal, files, records, report)
            refused = _write(out, models, journal, files)
            journal.remove()
    unnamed = tuple(path.name for path in files if records and path.name not in records)
    return BulkSummary(len(files) - refused, refused, unused, unnamed)


def _describe(catalogue: Catalogue) -> list[str | int]:
    made = catalogue.created_at.isoformat()
    return [str(catalogue.path.resolve()), made, catalogue.revision, len(catalogue)]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def image_files(paths: Sequence[Path]) -> list[Path]:
    """Return the files, and the image files of the folders, each folder sorted; every file once.

    A folder below them that cannot be read, and a link to nothing, are among them.

    Raises:
        InvalidRequest: there is none.
    """
    files: list[Path] = []
    for path in paths:
        files.extend(_search(path) if path.is_dir() else [path])
    if not files:
        searched = ", ".join(map(str, paths)) or "no file or folder"
        raise InvalidRequest(
            f"expected image files ({', '.join(SUFFIXES)}), found none in {searched}",
            field="images",
        )
    return list(dict.fromkeys(files))


def _search(folder: Path) -> list[Path]:
    """Return a folder's image files, and what cannot be read of it, which is then refused by name.

    Folders that are linked are not followed.
    """
    found: list[Path] = []

    def note(error: OSError) -> None:
        found.append(Path(error.filename))

    for place, _, names in os.walk(folder, onerror=note):
        named = [Path(place, name) for name in names]
        found += [p for p in named if p.suffix.casefold() in SUFFIXES and _is_file_or_gone(p)]
    return sorted(found)


def _is_file_or_gone(path: Path) -> bool:
    return path.is_file() or not path.exists()


def _check_out(out: Path, read: Sequence[Path]) -> None:
    if out.is_dir():
        raise InvalidRequest(f"{out} is a folder: name the table to write", field="out")
    taken = {path.resolve() for path in read}
    for written in (out, refused_path(out)):
        if written.resolve() in taken:
            raise InvalidRequest(
                f"{written} is one of the files that are read: name another", field="out"
            )
    check_format(out)


def _answer_files(
    runtime: Runtime,
    journal: Journal,
    files: Sequence[Path],
    records: Records,
    report: Callable[[int, int], None],
) -> None:
    """Bring the rows of all files into the journal."""
    missing = [path for path in files if path not in journal]
    batches = (missing[at : at + BATCH_FILES] for at in range(0, len(missing), BATCH_FILES))
    done = len(files) - len(missing)
    report(done, len(files))
    work = partial(_batch_rows, runtime, records)
    for rows in in_order(work, batches, threads=available_cpus()):
        journal.add(rows)
        done += len(rows)
        report(done, len(files))


def _batch_rows(
    runtime: Runtime, records: Records, paths: Sequence[Path]
) -> list[tuple[Path, Stamp, Row]]:
    """Return each file's stamp and cells; a batch with a file that cannot be answered is halved."""
    # Before the files are read: one that changes meanwhile is read again by the next run.
    stamps = [file_stamp(path) for path in paths]
    asked = [records.get(path.name) for path in paths]
    try:
        answers = runtime.classify_each(
            _Files(paths, runtime.limits.max_bytes),
            asked,
            extrapolate=runtime.catalogue is not None,
        )
    except (InvalidImage, InvalidRecord, InferenceError) as error:
        if len(paths) == 1:
            return [(paths[0], stamps[0], _refusal(str(error)))]
    except OSError as error:
        if len(paths) == 1:
            # Without a stamp, so that a later run tries again: the cause is not the file's content.
            return [(paths[0], None, _refusal(f"cannot be read: {error.strerror}"))]
    else:
        return list(zip(paths, stamps, map(_row, answers), strict=True))
    half = len(paths) // 2
    return [
        *_batch_rows(runtime, records, paths[:half]),
        *_batch_rows(runtime, records, paths[half:]),
    ]


class _Files(Sequence[bytes]):
    """Files' contents, read when they are asked for and not kept.

    Of a file that is longer than may be, one byte too many is read: enough to refuse it.
    """

    def __init__(self, paths: Sequence[Path], max_bytes: int) -> None:
        self._paths, self._max_bytes = paths, max_bytes

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, at: int) -> bytes: ...
    @overload
    def __getitem__(self, at: slice) -> "_Files": ...
    def __getitem__(self, at: int | slice) -> "bytes | _Files":
        if isinstance(at, slice):
            return _Files(self._paths[at], self._max_bytes)
        with self._paths[at].open("rb") as file:
            return file.read(self._max_bytes + 1)


def _refusal(reason: str) -> Row:
    return {"status": REFUSED, "error": reason}


def _row(answer: Assessment) -> Row:
    shares = answer.probabilities or {}
    return {
        "status": answer.status,
        "label": answer.label,
        "malignancy": answer.malignancy,
        **{f"p_{label}": share for label, share in shares.items()},
        "prediction_set": " ".join(answer.prediction_set or ()),
        "given": " ".join(n for n, entry in answer.metadata.items() if entry.source == "given"),
        "warnings": " ".join(warning.code for warning in answer.warnings),
        "reasons": " ".join(answer.quality.reasons),
    }


def _write(out: Path, models: Models, journal: Journal, files: Sequence[Path]) -> int:
    """Write the table and the list of refused files, and return how many there are."""
    columns: Mapping[str, type] = {
        **dict.fromkeys(("file", "status", "label"), str),
        "malignancy": float,
        **{f"p_{label}": float for label in models.labels},
        **dict.fromkeys(("prediction_set", "given", "warnings", "reasons", "error"), str),
    }

    def rows() -> Iterator[Row]:
        return ({"file": str(path), **journal.row(path)} for path in files)

    refused = write_refused(out, (row for row in rows() if row["status"] == REFUSED))
    write_table(out, columns, rows())
    return refused
