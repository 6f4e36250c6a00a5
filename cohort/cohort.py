"""Reading a prepared cohort: its table at once, its images at random."""

import csv
import hashlib
import hmac
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from bundle.errors import CohortError
from bundle.fields import Field, FieldSchema, Record
from bundle.records import FieldColumn
from cohort.info import COHORT_JSON, FORMAT_VERSION, CohortInfo
from cohort.shards import arrow_schema
from cohort.splits import SPLITS, Split

# Row groups whose images a thread keeps: a patient's rows lie together, so a few are enough.
CACHED_ROW_GROUPS = 4
RowNumbers = Sequence[int] | npt.NDArray[np.int64]


class Cohort:
    """A prepared cohort, opened for reading.

    Rows are numbered from 0 in the order of the shards, and that number is stable. The object may
    be shared by threads, and pickled or forked into worker processes: files are opened lazily,
    once a thread.
    """

    def __init__(
        self, path: Path, info: CohortInfo, splits: Mapping[str, Split] | None = None
    ) -> None:
        self.path = path
        self.info = info
        self._splits = splits
        self.schema = FieldSchema(fields=info.fields)
        self._table: Any = None
        self._local = threading.local()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Return the cohort in this folder after checking its description and its shards' sizes.

        Raises:
            CohortError: it is missing, changed, truncated or written by a newer software.
        """
        info = _read_info(path)
        for shard in info.shards:
            file = path / shard.file
            size = file.stat().st_size if file.is_file() else None
            if size != shard.bytes:
                got = "no such file" if size is None else f"{size} bytes"
                raise CohortError(
                    f"{file}: expected {shard.bytes} bytes, got {got}: prepare the cohort again"
                )
        return cls(path, info)

    def __getstate__(self) -> tuple[Path, CohortInfo, Mapping[str, Split] | None]:
        return self.path, self.info, self._splits

    def __setstate__(self, state: tuple[Path, CohortInfo, Mapping[str, Split] | None]) -> None:
        self.__init__(*state)  # type: ignore[misc]  # state is exactly the constructor's arguments

    def __len__(self) -> int:
        return self.info.counts.images

    @property
    def has_patients(self) -> bool:
        return self.info.counts.patients is not None

    def table(self, split: Split | None = None) -> Any:
        """Return everything but the images as a `pyarrow.Table`, one row an image.

        Columns: row (int64, the stable position), image_id, lesion_id, patient_id, label,
        malignant, split, then one a field; what is missing is null.

        Args:
            split: keeps one split; None keeps all.

        Raises:
            CohortError: a shard cannot be read, or there is no such split.
        """
        if split is not None and split not in SPLITS:
            raise CohortError(f"expected a split ({', '.join(SPLITS)}), got {split!r}")
        if self._table is None:
            self._table = self._read_table()
        if split is None:
            return self._table
        return self._table.filter(pc.equal(self._table["split"], split))

    def with_splits(self, splits: Mapping[str, Split]) -> "Cohort":
        """Return the same images under other splits, as cross-validation needs them.

        Args:
            splits: the split of every group, by patient id, else lesion id.

        Raises:
            CohortError: a group has no split, or one that does not exist.
        """
        groups = self.group_ids()
        if unknown := set(splits.values()) - set(SPLITS):
            raise CohortError(f"expected splits among {', '.join(SPLITS)}, got {unknown.pop()!r}")
        if lacking := set(groups) - splits.keys():
            raise CohortError(f"expected a split for every group, {len(lacking)} have none")
        return Cohort(self.path, self.info, dict(splits))

    def records(self, rows: RowNumbers) -> list[Record]:
        """Return the records of these rows, in this order; a missing field is absent."""
        chosen = self.table().take(self._positions(rows)).select(self.schema.names)
        if not self.schema.names:
            return [{} for _ in rows]
        return [
            {name: value for name, value in record.items() if value is not None}
            for record in chosen.to_pylist()
        ]

    def column(self, field: Field, rows: RowNumbers) -> FieldColumn:
        """Return a field of these rows as numbers, in this order, without making records.

        Args:
            field: its categories number the values; a field that the cohort lacks is missing.
            rows: stable positions.

        Raises:
            CohortError: a value is none of the field's categories, or a row is outside the cohort.
        """
        positions = self._positions(rows)
        if field.name not in self.schema.names:
            return FieldColumn(np.zeros(len(positions)), np.zeros(len(positions), np.bool_))
        values = self.table()[field.name].take(positions)
        present = pc.is_valid(values).to_numpy()
        if field.kind == "categorical":
            codes = pc.index_in(values, value_set=pa.array(field.categories, pa.string()))
            if strange := pc.unique(values.filter(pc.and_(pc.is_valid(values), pc.is_null(codes)))):
                raise CohortError(
                    f"{field.name}: expected one of {', '.join(field.categories)}, "
                    f"got {strange[0].as_py()!r}: prepare the cohort with those categories"
                )
            values = codes
        numbers = values.cast(pa.float64()).fill_null(0.0).to_numpy()
        return FieldColumn(numbers, present)

    def group_ids(self, rows: RowNumbers | None = None) -> list[str]:
        """Return each row's patient id, or its lesion id where there is none; None: of all rows."""
        table = self.table()
        groups = pc.coalesce(table["patient_id"], table["lesion_id"])
        chosen = groups if rows is None else groups.take(self._positions(rows))
        return list(chosen.to_pylist())

    def images(self, rows: Sequence[int]) -> list[bytes]:
        """Return the image files' bytes of these rows, in this order.

        Raises:
            CohortError: a shard cannot be read, or a row is outside the cohort.
        """
        positions = self._positions(rows)
        starts, places = self._row_groups()
        groups = np.searchsorted(starts, positions, side="right") - 1
        found: dict[int, bytes] = {}
        for group in np.unique(groups):
            images = self._row_group_images(*places[group])
            for position in positions[groups == group]:
                found[int(position)] = images[int(position - starts[group])].as_py()
        return [found[int(position)] for position in positions]

    def dropped(self) -> list[tuple[str, str]]:
        """Return (row, reason) of every row of the source that is not in the cohort."""
        if self.info.dropped_file is None:
            return [(entry.row, entry.reason) for entry in self.info.dropped]
        return [(row, reason) for row, reason in _read_list(self.path / self.info.dropped_file)]

    def value_errors(self) -> list[tuple[str, str, str, str]]:
        """Return (row, field, kind, reason) of every metadata value that was not accepted."""
        if self.info.value_errors_file is None:
            return [(e.row, e.field, e.kind, e.reason) for e in self.info.value_errors]
        listed = _read_list(self.path / self.info.value_errors_file)
        return [(row, field, kind, reason) for row, field, kind, reason in listed]

    def _positions(self, rows: RowNumbers) -> npt.NDArray[np.int64]:
        positions = np.asarray(rows, np.int64).reshape(-1)
        if positions.size and not 0 <= positions.min() <= positions.max() < len(self):
            raise CohortError(f"expected rows from 0 to {len(self) - 1}, got one outside")
        return positions

    def _read_table(self) -> Any:
        columns = [name for name in arrow_schema(self.schema).names if name != "image"]
        parts = []
        for number, shard in enumerate(self.info.shards):
            opened = self._open_shard(number, pre_buffer=True)
            part = self._reading(shard.file, opened.read, columns=columns)
            if part.num_rows != shard.rows:
                raise CohortError(
                    f"{shard.file}: expected {shard.rows} rows, got {part.num_rows}: "
                    "prepare the cohort again"
                )
            parts.append(part)
        table = pa.concat_tables(parts).combine_chunks()
        if self._splits is not None:
            groups = pc.coalesce(table["patient_id"], table["lesion_id"]).to_pylist()
            column = pa.array([self._splits[group] for group in groups], pa.string())
            place = table.schema.get_field_index("split")
            field = table.schema.field("split")
            table = table.set_column(place, field, column.cast(field.type))
        return table.add_column(0, "row", pa.array(range(table.num_rows), pa.int64()))

    def _opened(self) -> Any:
        """Return this thread's open files and cached images, afresh in a forked process."""
        local = self._local
        if getattr(local, "process_id", None) != os.getpid():
            local.process_id = os.getpid()
            local.files = {}
            local.images = OrderedDict()
            local.row_groups = None
        return local

    def _file(self, number: int) -> Any:
        files = self._opened().files
        if number not in files:
            # Ahead of one row group at a time nothing is worth reading.
            files[number] = self._open_shard(number, pre_buffer=False)
        return files[number]

    def _open_shard(self, number: int, *, pre_buffer: bool) -> Any:
        shard = self.info.shards[number].file
        opened = self._reading(
            shard,
            pq.ParquetFile,
            self.path / shard,
            page_checksum_verification=True,
            pre_buffer=pre_buffer,
        )
        if not opened.schema_arrow.equals(arrow_schema(self.schema)):
            raise CohortError(f"{shard}: its columns are not those of {COHORT_JSON}")
        return opened

    def _row_groups(self) -> tuple[npt.NDArray[np.int64], list[tuple[int, int]]]:
        """Return each row group's first row, and its place as (shard, row group)."""
        local = self._opened()
        if local.row_groups is None:
            sizes, places = [], []
            for number in range(len(self.info.shards)):
                metadata = self._file(number).metadata
                for group in range(metadata.num_row_groups):
                    sizes.append(metadata.row_group(group).num_rows)
                    places.append((number, group))
            starts = np.concatenate(([0], np.cumsum(sizes)[:-1])).astype(np.int64)
            local.row_groups = (starts, places)
        found: tuple[npt.NDArray[np.int64], list[tuple[int, int]]] = local.row_groups
        return found

    def _row_group_images(self, number: int, group: int) -> Any:
        cached = self._opened().images
        if (number, group) not in cached:
            # No Arrow threads: a forked worker has none, and one column needs none.
            table = self._reading(
                self.info.shards[number].file,
                self._file(number).read_row_group,
                group,
                columns=["image"],
                use_threads=False,
            )
            cached[number, group] = table.column("image").combine_chunks()
            while len(cached) > CACHED_ROW_GROUPS:
                cached.popitem(last=False)
        cached.move_to_end((number, group))
        return cached[number, group]

    def _reading(self, name: str, read: Any, *args: Any, **options: Any) -> Any:
        try:
            return read(*args, **options)
        except (OSError, pa.ArrowException) as error:
            raise CohortError(
                f"{self.path / name}: cannot be read ({type(error).__name__}); it was changed or "
                "damaged: prepare the cohort again"
            ) from None


def group_hashes(group_ids: Iterable[str], salt: str) -> list[str]:
    """Return a keyed SHA-256 of each group id: tells "seen before" without telling who.

    Args:
        group_ids: as `Cohort.group_ids` gives them.
        salt: the key; equal ids have equal hashes under equal salts only.

    Raises:
        CohortError: the salt is empty.
    """
    if not salt:
        raise CohortError("expected a salt, got an empty text: bare hashes of ids can be guessed")
    key = salt.encode()
    return [hmac.digest(key, group.encode(), hashlib.sha256).hex() for group in group_ids]


def _read_info(path: Path) -> CohortInfo:
    file = path / COHORT_JSON
    if not file.is_file():
        raise CohortError(
            f"{path}: expected a cohort folder with a {COHORT_JSON}; make it with slimp prepare"
        )
    try:
        content = json.loads(file.read_bytes())
    except ValueError:
        raise CohortError(f"{file}: expected JSON: prepare the cohort again") from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise CohortError(
            f"{file}: format {version} is newer than {FORMAT_VERSION}, which this software reads: "
            "update it"
        )
    try:
        return CohortInfo.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise CohortError(f"{file}: {place}: {problem['msg']}: prepare it again") from None


def _read_list(path: Path) -> list[list[str]]:
    if not path.is_file():
        raise CohortError(f"{path}: expected the list that {COHORT_JSON} names, got no such file")
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))[1:]
