"""`cohort.json`: what a prepared cohort says of itself, each row of its source accounted for."""

from collections import Counter
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from pydantic import Field as Setting

from bundle.fields import Field
from cohort.rows import DroppedRow, UnreadableValue
from cohort.splits import Split

FORMAT_VERSION = 1
COHORT_JSON = "cohort.json"
DROPPED_CSV = "dropped.csv"
VALUE_ERRORS_CSV = "value_errors.csv"
# A longer list goes to its CSV file instead of cohort.json.
MAX_LISTED = 2_000

# Parquet columns beside the fields; `row` is added when a table is read.
FIXED_COLUMNS = ("image", "image_id", "lesion_id", "patient_id", "label", "malignant", "split")
RESERVED_NAMES = frozenset({*FIXED_COLUMNS, "row"})


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ValueErrorEntry(Frozen):
    """A metadata value that was not accepted; its row was kept with that field missing."""

    row: str
    field: str
    kind: str
    reason: str


class DroppedEntry(Frozen):
    """A row of the source that is not in the cohort."""

    row: str
    reason: str


class SplitCounts(Frozen):
    """What one split holds; `labels` counts images."""

    images: int
    lesions: int
    groups: int
    labels: dict[str, int]


class Counts(Frozen):
    """Rows read = images + dropped. `labels` counts images; `patients` is None without ids."""

    rows_read: int
    images: int
    dropped: int
    lesions: int
    patients: int | None
    unlabelled: int
    labels: dict[str, int]
    splits: dict[Split, SplitCounts]


class Shard(Frozen):
    """One Parquet file, by its path inside the cohort."""

    file: str = Setting(pattern=r"^shards/part-\d{5,}\.parquet$")
    rows: int = Setting(gt=0)
    bytes: int = Setting(gt=0)


class CohortInfo(Frozen):
    """The content of `cohort.json`.

    `dropped` and `value_errors` are complete, or empty where `dropped_file` or
    `value_errors_file` names the CSV that holds the list because it is long.
    """

    format_version: int = FORMAT_VERSION
    name: str
    fields: tuple[Field, ...]
    labels: tuple[str, ...]
    malignant_labels: tuple[str, ...]
    licence: str
    citation: str
    notes: tuple[str, ...]
    split_seed: int
    split_fractions: dict[Split, float]
    counts: Counts
    dropped_by_reason: dict[str, int]
    dropped: tuple[DroppedEntry, ...]
    dropped_file: Literal["dropped.csv"] | None
    value_errors_by_field: dict[str, int]
    value_errors: tuple[ValueErrorEntry, ...]
    value_errors_file: Literal["value_errors.csv"] | None
    shards: tuple[Shard, ...]


def dropped_entries(rows: list[DroppedRow]) -> dict[str, Any]:
    """Return the part of `cohort.json` that tells of dropped rows."""
    fits = len(rows) <= MAX_LISTED
    return {
        "dropped_by_reason": dict(Counter(row.reason for row in rows).most_common()),
        "dropped": [{"row": r.row, "reason": r.reason} for r in rows] if fits else [],
        "dropped_file": None if fits else DROPPED_CSV,
    }


def value_error_entries(errors: list[tuple[str, UnreadableValue]]) -> dict[str, Any]:
    """Return the part of `cohort.json` that tells of values not accepted, each with its row."""
    fits = len(errors) <= MAX_LISTED
    listed = [
        {"row": row, "field": e.field, "kind": e.kind, "reason": e.reason} for row, e in errors
    ]
    return {
        "value_errors_by_field": dict(Counter(e.field for _, e in errors).most_common()),
        "value_errors": listed if fits else [],
        "value_errors_file": None if fits else VALUE_ERRORS_CSV,
    }
