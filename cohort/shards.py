"""Lesion images to Parquet shards that stay cheap to read at random."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from bundle.fields import Field, FieldSchema
from cohort.info import FIXED_COLUMNS, Shard
from cohort.rows import LesionImage
from cohort.splits import Split

# One image is read by reading its row group, so a row group is small in bytes; but every column of
# every row group costs the table's reading, so it is not small in rows (docs/scale.md).
ROWS_PER_GROUP = 256
GROUP_BYTES = 4_000_000
SHARD_BYTES = 256_000_000
SHARD_FOLDER = "shards"

ARROW_TYPES = {"numeric": pa.float64(), "categorical": pa.string(), "boolean": pa.bool_()}


def arrow_schema(schema: FieldSchema) -> Any:
    """Return the Arrow schema of a shard: the fixed columns, then one column a field."""
    fixed = {
        "image": pa.binary(),
        "image_id": pa.string(),
        "lesion_id": pa.string(),
        "patient_id": pa.string(),
        "label": pa.string(),
        "malignant": pa.bool_(),
        "split": pa.string(),
    }
    required = {"image", "image_id", "lesion_id", "split"}
    columns = [pa.field(name, fixed[name], name not in required) for name in FIXED_COLUMNS]
    return pa.schema([*columns, *(_column(field) for field in schema.fields)])


def _column(field: Field) -> Any:
    return pa.field(field.name, ARROW_TYPES[field.kind], nullable=True)


class ShardWriter:
    """Writes images in order into `shards/part-00000.parquet` and so on."""

    def __init__(self, folder: Path, schema: FieldSchema) -> None:
        self._folder = folder
        self._fields = schema.names
        self._schema = arrow_schema(schema)
        self._pending: list[dict[str, Any]] = []
        self._pending_bytes = 0
        self._writer: Any = None
        self._rows = 0
        self._bytes = 0
        self.shards: list[Shard] = []
        (folder / SHARD_FOLDER).mkdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._flush()
        self._close_shard()

    def add(self, image: LesionImage, split: Split) -> None:
        """Append one image; the record's fields become columns, an absent one null."""
        row: dict[str, Any] = {
            "image": image.image,
            "image_id": image.image_id,
            "lesion_id": image.lesion_id,
            "patient_id": image.patient_id,
            "label": image.label,
            "malignant": image.malignant,
            "split": split,
        }
        row.update((name, image.record.get(name)) for name in self._fields)
        self._pending.append(row)
        self._pending_bytes += len(image.image)
        if len(self._pending) >= ROWS_PER_GROUP or self._pending_bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        if self._writer is None:
            self._writer = self._open_shard()
        rows = pa.Table.from_pylist(self._pending, schema=self._schema)
        self._writer.write_table(rows, row_group_size=len(self._pending))
        self._rows += len(self._pending)
        self._bytes += self._pending_bytes
        self._pending, self._pending_bytes = [], 0
        if self._bytes >= SHARD_BYTES:
            self._close_shard()

    def _shard_file(self) -> str:
        return f"{SHARD_FOLDER}/part-{len(self.shards):05d}.parquet"

    def _open_shard(self) -> Any:
        others = [name for name in self._schema.names if name != "image"]
        codec = dict.fromkeys(others, "zstd") | {"image": "none"}
        return pq.ParquetWriter(
            self._folder / self._shard_file(),
            self._schema,
            compression=codec,
            use_dictionary=[n for n in others if pa.types.is_string(self._schema.field(n).type)],
            write_statistics=["split", "label"],
            write_page_checksum=True,
        )

    def _close_shard(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        file = self._shard_file()
        size = (self._folder / file).stat().st_size
        self.shards.append(Shard(file=file, rows=self._rows, bytes=size))
        self._writer, self._rows, self._bytes = None, 0, 0
