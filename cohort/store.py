"""Writing a prepared cohort: `cohort.json` beside Parquet shards, whole or not at all."""

import csv
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from bundle.errors import BundleError, CohortError
from bundle.store import staged_folder
from cohort.images import picture_problem
from cohort.info import (
    COHORT_JSON,
    DROPPED_CSV,
    RESERVED_NAMES,
    VALUE_ERRORS_CSV,
    CohortInfo,
    dropped_entries,
    value_error_entries,
)
from cohort.leaks import refuse_leaks
from cohort.rows import DroppedRow, LesionImage, Source
from cohort.shards import ShardWriter
from cohort.splits import FRACTIONS, Split, assign_splits
from cohort.tally import Tally

# Rows between two calls of `progress`.
PROGRESS_ROWS = 100


def prepare(
    source: Source,
    out: Path,
    *,
    split_seed: int = 0,
    fractions: Mapping[Split, float] = FRACTIONS,
    progress: Callable[[int], None] | None = None,
) -> CohortInfo:
    """Write the source as a cohort folder and return what its `cohort.json` says.

    The folder appears under its name only when it is complete.

    Args:
        source: the opened data set; its rows are read once, in order.
        out: a folder that does not exist yet or is empty.
        split_seed: which of the possible splits by group.
        fractions: share of the groups in each split.
        progress: called with the number of rows read so far, now and then and at the end.

    Raises:
        LeakColumn: a field of the source gives the label away.
        CohortError: `out` is taken, no row can be used, or the source contradicts itself.
    """
    _check_fields(source)
    splits = assign_splits(source.groups(), seed=split_seed, fractions=fractions)
    report = progress or _report_nothing
    try:
        with staged_folder(out) as stage:
            tally = Tally(source.labels)
            with ShardWriter(stage, source.schema) as writer:
                for row in source.rows():
                    _take(row, source, splits, tally, writer)
                    if tally.rows_read % PROGRESS_ROWS == 0:
                        report(tally.rows_read)
            report(tally.rows_read)
            recipe = {"split_seed": split_seed, "split_fractions": dict(fractions)}
            info = _describe(source, splits, recipe, tally, writer)
            _write_lists(stage, tally, info)
            (stage / COHORT_JSON).write_text(info.model_dump_json(indent=1) + "\n", "utf-8")
    except BundleError as error:
        raise CohortError(str(error)) from None
    return info


def _report_nothing(rows_read: int) -> None:
    """Stand in for a progress callback."""


def _check_fields(source: Source) -> None:
    fields = source.schema.fields
    refuse_leaks(name for field in fields for name in (field.name, *field.aliases))
    if taken := sorted(RESERVED_NAMES & set(source.schema.names)):
        raise CohortError(f"a field may not be called {taken[0]!r}: a cohort's own column is")
    if unknown := set(source.malignant_labels) - set(source.labels):
        raise CohortError(f"malignant labels that are no labels: {sorted(unknown)}")


def _take(
    row: LesionImage | DroppedRow,
    source: Source,
    splits: dict[str, Split],
    tally: Tally,
    writer: ShardWriter,
) -> None:
    if isinstance(row, DroppedRow):
        tally.drop(row.row, row.reason)
        return
    problem = tally.duplicate_reason(row) or picture_problem(row.image)
    if problem is not None:
        tally.drop(row.row or row.image_id, problem)
        return
    _check_row(row, source, splits)
    split = splits[row.group_id]
    tally.keep(row, split)
    writer.add(row, split)


def _check_row(row: LesionImage, source: Source, splits: dict[str, Split]) -> None:
    """Refuse a row that the source's own description does not cover."""
    if row.group_id not in splits:
        raise CohortError(f"{row.image_id}: its group {row.group_id!r} is not among the groups")
    if row.label is not None and row.label not in source.labels:
        raise CohortError(f"{row.image_id}: {row.label!r} is not one of the labels")
    if unknown := row.record.keys() - set(source.schema.names):
        raise CohortError(f"{row.image_id}: fields that the schema lacks: {sorted(unknown)}")


def _describe(
    source: Source,
    splits: dict[str, Split],
    recipe: dict[str, object],
    tally: Tally,
    writer: ShardWriter,
) -> CohortInfo:
    dropped = dropped_entries(tally.dropped)
    if tally.images == 0:
        reasons = ", ".join(f"{n} x {why}" for why, n in dropped["dropped_by_reason"].items())
        raise CohortError(
            f"{source.name}: none of {tally.rows_read} rows can be used ({reasons or 'no rows'}): "
            "check that this is the data set's folder and that its images are unpacked"
        )
    content = {
        "name": source.name,
        "fields": source.schema.fields,
        "labels": source.labels,
        "malignant_labels": source.malignant_labels,
        "licence": source.licence,
        "citation": source.citation,
        "notes": source.notes,
        **recipe,
        "counts": tally.counts(splits),
        "shards": writer.shards,
    }
    return CohortInfo.model_validate(
        {**content, **dropped, **value_error_entries(tally.value_errors)}
    )


def _write_lists(stage: Path, tally: Tally, info: CohortInfo) -> None:
    if info.dropped_file is not None:
        rows = ((r.row, r.reason) for r in tally.dropped)
        _write_csv(stage / DROPPED_CSV, ("row", "reason"), rows)
    if info.value_errors_file is not None:
        errors = ((row, e.field, e.kind, e.reason) for row, e in tally.value_errors)
        _write_csv(stage / VALUE_ERRORS_CSV, ("row", "field", "kind", "reason"), errors)


def _write_csv(path: Path, header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
