"""Reading a prepared cohort."""

import hashlib
import hmac
import json
import multiprocessing
import os
import pickle
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bundle.errors import CohortError
from bundle.fields import Field, FieldSchema, Record
from bundle.records import encode_columns, encode_records, fit_columns, fit_fields
from cohort import shards
from cohort.cohort import Cohort, group_hashes
from cohort.rows import LesionImage, Source
from cohort.splits import SPLITS
from cohort.store import prepare

ROWS = 200


@pytest.fixture(scope="module")
def prepared(
    tmp_path_factory: pytest.TempPathFactory,
    make_row: Callable[..., LesionImage],
    make_source: Callable[..., Source],
) -> tuple[Path, list[LesionImage]]:
    records: list[Record] = [
        {"age_years": 0.0, "sex": "female"},
        {"age_years": 41.5, "sex": "male", "itch": False},
        {"sex": "male", "itch": True},
        {},
    ]
    rows = [make_row(number, record=records[number % 4]) for number in range(ROWS)]
    path = tmp_path_factory.mktemp("prepared") / "cohort"
    with pytest.MonkeyPatch.context() as patch:
        # Several row groups of a few rows.
        patch.setattr(shards, "ROWS_PER_GROUP", 64)
        prepare(make_source(rows), path)
    return path, rows


@pytest.fixture
def copied(prepared: tuple[Path, list[LesionImage]], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    path, _ = prepared
    copy = tmp_path / "cohort"
    for file in path.rglob("*.*"):
        (copy / file.relative_to(path)).parent.mkdir(parents=True, exist_ok=True)
        (copy / file.relative_to(path)).write_bytes(file.read_bytes())
    return copy


def test_a_table_holds_everything_but_the_images(prepared: Any) -> None:
    path, rows = prepared
    table = Cohort.open(path).table()

    assert "image" not in table.column_names
    assert table["row"].to_pylist() == list(range(ROWS))
    assert table["image_id"].to_pylist() == [row.image_id for row in rows]
    assert table["malignant"].to_pylist() == [row.malignant for row in rows]


def test_a_split_keeps_the_stable_positions(prepared: Any) -> None:
    cohort = Cohort.open(prepared[0])
    whole = cohort.table()["split"].to_pylist()

    for split in SPLITS:
        part = cohort.table(split)
        assert part["row"].to_pylist() == [i for i, s in enumerate(whole) if s == split]
    with pytest.raises(CohortError, match="expected a split"):
        cohort.table("dev")  # type: ignore[arg-type]


def test_images_and_records_come_in_the_order_asked(prepared: Any) -> None:
    path, rows = prepared
    cohort = Cohort.open(path)
    asked = random.Random(0).choices(range(ROWS), k=37)

    assert cohort.images(asked) == [rows[i].image for i in asked]
    assert cohort.records(asked) == [rows[i].record for i in asked]
    assert cohort.group_ids(asked) == [rows[i].group_id for i in asked]
    assert cohort.group_ids() == [row.group_id for row in rows]
    assert cohort.images([]) == []
    assert len(cohort) == ROWS
    assert cohort.has_patients


def test_columns_hold_the_numbers_that_the_records_hold(prepared: Any) -> None:
    cohort = Cohort.open(prepared[0])
    asked = random.Random(1).choices(range(ROWS), k=37)
    records = cohort.records(asked)
    unfitted = cohort.schema.fields
    fields = fit_fields(unfitted, records)
    columns = [cohort.column(field, asked) for field in fields]
    assert fit_columns(unfitted, columns) == fields
    expected, found = encode_records(records, fields), encode_columns(columns, fields, 37)
    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal(found.present, expected.present)
    assert expected.present.any(axis=0).all()
    for column in columns:
        assert [str(a.dtype) for a in (column.numbers, column.present)] == ["float64", "bool"]
        assert not column.numbers[~column.present].any()


def test_a_field_that_the_cohort_lacks_is_missing_in_every_row(prepared: Any) -> None:
    column = Cohort.open(prepared[0]).column(
        Field(name="size_mm", level="lesion", kind="numeric"), [3, 1]
    )
    assert (column.numbers.tolist(), column.present.tolist()) == ([0, 0], [False, False])


def test_a_word_that_is_none_of_the_fields_categories_is_refused(prepared: Any) -> None:
    cohort = Cohort.open(prepared[0])
    sex = Field(name="sex", level="patient", kind="categorical", categories=("female", "other"))
    with pytest.raises(CohortError, match=r"sex: expected one of female, other, got 'male'"):
        cohort.column(sex, range(ROWS))


@pytest.mark.parametrize("row", [-1, ROWS])
def test_a_row_outside_the_cohort_is_refused(row: int, prepared: Any) -> None:
    with pytest.raises(CohortError, match=f"rows from 0 to {ROWS - 1}"):
        Cohort.open(prepared[0]).images([row])


def test_a_group_is_the_lesion_where_no_patient_is_known(
    tmp_path: Path, make_row: Any, make_source: Any
) -> None:
    rows = [make_row(0), make_row(1, patient_id=None)]
    prepare(make_source(rows), tmp_path / "c")

    assert Cohort.open(tmp_path / "c").group_ids() == ["patient-0", "lesion-1"]


def test_a_cohort_without_fields_has_empty_records(
    tmp_path: Path, make_row: Any, make_source: Any
) -> None:
    source = make_source([make_row(0, record={})], schema=FieldSchema(fields=()))
    prepare(source, tmp_path / "c")

    assert Cohort.open(tmp_path / "c").records([0, 0]) == [{}, {}]


def test_threads_share_a_cohort(prepared: Any) -> None:
    path, rows = prepared
    cohort = Cohort.open(path)
    asked = [random.Random(seed).choices(range(ROWS), k=20) for seed in range(16)]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(cohort.images, asked))
    assert found == [[rows[i].image for i in some] for some in asked]


def test_a_pickled_cohort_reads_on_and_carries_no_data(prepared: Any) -> None:
    path, rows = prepared
    cohort = Cohort.open(path)
    cohort.images([3])
    cohort.table()
    data = pickle.dumps(cohort)

    assert len(data) < 20_000
    assert pickle.loads(data).images([3, 190]) == [rows[3].image, rows[190].image]


def test_a_forked_process_opens_its_own_files(
    prepared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rows = prepared
    cohort = Cohort.open(path)
    cohort.images([0])
    before = cohort._file(0)
    # What a fork changes is the process id; nothing else tells the child.
    monkeypatch.setattr(os, "getpid", lambda: -1)

    assert cohort.images([0, 150]) == [rows[0].image, rows[150].image]
    assert cohort._file(0) is not before


def test_a_spawned_worker_reads_images(prepared: Any) -> None:
    path, rows = prepared
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        assert pool.apply(Cohort.open(path).images, ([1, 2],)) == [rows[1].image, rows[2].image]


def test_other_splits_change_the_split_alone_and_travel_with_the_cohort(prepared: Any) -> None:
    cohort = Cohort.open(prepared[0])
    groups = sorted(set(cohort.group_ids()))
    splits = {group: SPLITS[i % 4] for i, group in enumerate(groups)}
    other = cohort.with_splits(splits)
    for same in (other, pickle.loads(pickle.dumps(other))):
        table = same.table()
        assert table["split"].to_pylist() == [splits[group] for group in cohort.group_ids()]
        assert table.drop(["split"]).equals(cohort.table().drop(["split"]))
        assert table.schema.equals(cohort.table().schema)
    with pytest.raises(CohortError, match="1 have none"):
        cohort.with_splits({group: splits[group] for group in groups[1:]})
    with pytest.raises(CohortError, match="got 'dev'"):
        cohort.with_splits({**splits, groups[0]: "dev"})  # type: ignore[dict-item]  # on purpose


def test_group_hashes_are_keyed() -> None:
    ids = ["a", "b", "a"]
    first = group_hashes(ids, "salt")

    assert first[0] == first[2] != first[1]
    assert first[0] == hmac.new(b"salt", b"a", hashlib.sha256).hexdigest()
    assert set(first).isdisjoint(group_hashes(ids, "other"))
    with pytest.raises(CohortError, match="salt"):
        group_hashes(ids, "")


def edit(path: Path, **changes: Any) -> None:
    file = path / "cohort.json"
    file.write_text(json.dumps(json.loads(file.read_bytes()) | changes))


def test_a_folder_that_is_no_cohort_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="expected a cohort folder"):
        Cohort.open(tmp_path)


def test_a_newer_format_is_refused_even_with_unknown_keys(copied: Path) -> None:
    edit(copied, format_version=2, novelty=True)
    with pytest.raises(CohortError, match="format 2 is newer"):
        Cohort.open(copied)


@pytest.mark.parametrize("content", ["{", "[]", "\xff", "{}"])
def test_a_broken_description_is_refused(content: str, copied: Path) -> None:
    (copied / "cohort.json").write_text(content, "latin-1")
    with pytest.raises(CohortError, match=r"cohort\.json"):
        Cohort.open(copied)


def test_an_unknown_key_is_named(copied: Path) -> None:
    edit(copied, novelty=True)
    with pytest.raises(CohortError, match="novelty"):
        Cohort.open(copied)


def test_a_shard_outside_the_folder_is_refused(copied: Path) -> None:
    edit(copied, shards=[{"file": "../part-00000.parquet", "rows": 1, "bytes": 1}])
    with pytest.raises(CohortError, match=r"shards\.0\.file"):
        Cohort.open(copied)


def test_a_missing_or_truncated_shard_is_refused(copied: Path) -> None:
    file = copied / "shards" / "part-00000.parquet"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CohortError, match=r"expected \d+ bytes, got \d+ bytes"):
        Cohort.open(copied)
    file.unlink()
    with pytest.raises(CohortError, match="no such file"):
        Cohort.open(copied)


def test_a_changed_byte_in_an_image_is_found(copied: Path, prepared: Any) -> None:
    file = copied / "shards" / "part-00000.parquet"
    data = bytearray(file.read_bytes())
    place = data.index(prepared[1][5].image) + 100
    data[place] ^= 1
    file.write_bytes(bytes(data))

    with pytest.raises(CohortError, match=r"part-00000\.parquet: cannot be read"):
        Cohort.open(copied).images([5])


def test_a_shard_that_is_no_parquet_is_refused(copied: Path) -> None:
    file = copied / "shards" / "part-00000.parquet"
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(CohortError, match="cannot be read"):
        Cohort.open(copied).table()


def rewrite(path: Path, table: pa.Table) -> None:
    """Put other rows into the shard and let the description's size agree."""
    file = path / "shards" / "part-00000.parquet"
    pq.write_table(table, file)
    content = json.loads((path / "cohort.json").read_bytes())
    shard = content["shards"][0] | {"bytes": file.stat().st_size}
    edit(path, shards=[shard])


def test_a_shard_with_other_columns_is_refused(copied: Path) -> None:
    table = pq.read_table(copied / "shards" / "part-00000.parquet")
    rewrite(copied, table.drop_columns(["itch"]))
    with pytest.raises(CohortError, match="its columns are not those"):
        Cohort.open(copied).table()


def test_a_shard_with_other_rows_is_refused(copied: Path) -> None:
    table = pq.read_table(copied / "shards" / "part-00000.parquet")
    rewrite(copied, table.slice(1))
    with pytest.raises(CohortError, match=f"expected {ROWS} rows, got {ROWS - 1}"):
        Cohort.open(copied).table()
