"""Preparing a cohort: every row accounted for, whole or not at all."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bundle.errors import CohortError, LeakColumn
from bundle.fields import Field, FieldSchema
from cohort import info as cohort_info
from cohort import shards
from cohort.cohort import Cohort
from cohort.rows import DroppedRow, LesionImage, Source, UnreadableValue, without_labels
from cohort.splits import SPLITS
from cohort.store import prepare

MakeRow = Callable[..., LesionImage]
MakeSource = Callable[..., Source]


def test_a_cohort_is_plain_parquet_beside_a_description(
    tmp_path: Path, make_row: MakeRow, make_source: MakeSource
) -> None:
    rows = [make_row(number) for number in range(30)]
    info = prepare(make_source(rows), tmp_path / "out", split_seed=3)

    table = pq.read_table(tmp_path / "out" / "shards")
    assert table.num_rows == 30
    assert table["image"].to_pylist() == [row.image for row in rows]
    assert table["age_years"].to_pylist() == [float(number) for number in range(30)]
    assert table["itch"].to_pylist() == [None] * 30
    assert set(table["split"].to_pylist()) <= set(SPLITS)
    content = json.loads((tmp_path / "out" / "cohort.json").read_bytes())
    assert content["format_version"] == 1
    assert content["split_seed"] == 3
    assert [field["name"] for field in content["fields"]] == ["age_years", "sex", "itch"]
    assert info.counts.patients == 10
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_the_description_says_how_the_groups_were_split(
    tmp_path: Path, make_row: MakeRow, make_source: MakeSource
) -> None:
    shares = {"train": 0.4, "val": 0.1, "cal": 0.2, "test": 0.3}
    source = make_source([make_row(number) for number in range(90)])
    prepare(source, tmp_path / "out", split_seed=3, fractions=shares)  # type: ignore[arg-type]
    content = json.loads((tmp_path / "out" / "cohort.json").read_bytes())
    assert (content["split_seed"], content["split_fractions"]) == (3, shares)


def test_images_are_stored_as_they_are_and_other_columns_compressed(
    tmp_path: Path, make_row: MakeRow, make_source: MakeSource
) -> None:
    prepare(make_source([make_row(n) for n in range(600)]), tmp_path / "out")

    metadata = pq.ParquetFile(tmp_path / "out" / "shards" / "part-00000.parquet").metadata
    group = metadata.row_group(0)
    codecs = {
        group.column(i).path_in_schema: group.column(i).compression
        for i in range(group.num_columns)
    }
    assert codecs.pop("image") == "UNCOMPRESSED"
    assert set(codecs.values()) == {"ZSTD"}
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert sizes == [256, 256, 88]


def test_shards_and_row_groups_stay_under_their_sizes(
    tmp_path: Path, make_row: MakeRow, make_source: MakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = min(len(make_row(number).image) for number in range(10))
    monkeypatch.setattr(shards, "GROUP_BYTES", 2 * size)
    monkeypatch.setattr(shards, "SHARD_BYTES", 4 * size)
    rows = [make_row(number) for number in range(10)]
    info = prepare(make_source(rows), tmp_path / "out")

    assert [shard.rows for shard in info.shards] == [4, 4, 2]
    assert Cohort.open(tmp_path / "out").images(range(10)) == [row.image for row in rows]


def test_every_row_of_the_source_is_kept_or_listed(
    tmp_path: Path, make_row: MakeRow, make_source: MakeSource
) -> None:
    rows = [
        DroppedRow("line 2", "no image file"),
        make_row(0),
        make_row(0, row="line 4"),
        make_row(1, image=b"", row="line 5"),
        make_row(2, image=b"noise"),
        DroppedRow("line 7", "no image file"),
    ]
    info = prepare(make_source(rows), tmp_path / "out")

    assert info.counts.rows_read == info.counts.images + info.counts.dropped == 6
    assert [(d.row, d.reason) for d in info.dropped] == [
        ("line 2", "no image file"),
        ("line 4", "its image id stands in an earlier row"),
        ("line 5", "the image file is empty"),
        (
            "image-2",
            "expected an image in one of JPEG, PNG, WEBP, TIFF, BMP; the content is none of them",
        ),
        ("line 7", "no image file"),
    ]
    assert info.dropped_by_reason["no image file"] == 2


@settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(st.lists(st.sampled_from(["good", "dropped", "broken", "twice"]), min_size=1, max_size=20))
def test_rows_read_are_always_images_plus_dropped(
    tmp_path_factory: Any, make_row: MakeRow, make_source: MakeSource, kinds: list[str]
) -> None:
    made: dict[str, Callable[[int], Any]] = {
        "good": lambda n: make_row(n),
        "dropped": lambda n: DroppedRow(f"line {n}", "no image file"),
        "broken": lambda n: make_row(n, image=b"x"),
        "twice": lambda n: make_row(n, image_id="same"),
    }
    rows = [make_row(1000), *(made[kind](number) for number, kind in enumerate(kinds))]
    rows[1:] = sorted(rows[1:], key=lambda r: getattr(r, "patient_id", ""))
    out = tmp_path_factory.mktemp("cohorts") / "out"
    counts = prepare(make_source(rows), out).counts

    assert counts.rows_read == len(rows) == counts.images + counts.dropped
    assert counts.images == 1 + kinds.count("good") + min(1, kinds.count("twice"))
    assert sum(split.images for split in counts.splits.values()) == counts.images
    assert len(Cohort.open(out).table()) == counts.images


def test_counts_tell_images_lesions_patients_labels_and_splits(
    tmp_path: Path, make_row: MakeRow, make_source: MakeSource
) -> None:
    rows = [make_row(n, lesion_id=f"lesion-{n // 3}") for n in range(60)]
    rows[5] = make_row(5, lesion_id="lesion-1", label=None, malignant=None)
    counts = prepare(make_source(rows), tmp_path / "out").counts

    assert (counts.images, counts.lesions, counts.patients, counts.unlabelled) == (60, 20, 20, 1)
    assert counts.labels == {"mel": 15, "nv": 44}
    table = Cohort.open(tmp_path / "out").table().to_pylist()
    for split, found in counts.splits.items():
        own = [row for row in table if row["split"] == split]
        assert found.images == len(own)
        assert found.lesions == len({row["lesion_id"] for row in own})
        assert found.groups == len({row["patient_id"] for row in own})
        assert found.labels["mel"] == sum(row["label"] == "mel" for row in own)


def test_rows_of_a_label_that_is_taken_away_stay_unlabelled(
    tmp_path: Path, make_row: MakeRow, make_source: MakeSource
) -> None:
    source = make_source([make_row(number) for number in range(30)])
    info = prepare(without_labels(source, ["mel"]), tmp_path / "out")
    assert (info.labels, info.malignant_labels) == (("nv",), ())
    assert (info.counts.images, info.counts.unlabelled) == (30, 8)
    table = pq.read_table(tmp_path / "out" / "shards")
    assert sum(table["malignant"].to_pylist()) == 8
    assert "the label mel was taken away" in info.notes
    with pytest.raises(CohortError, match="expected one of its labels, mel, nv, got 'bcc'"):
        without_labels(source, ["bcc"])


def test_no_patient_stands_on_two_sides(
    tmp_path: Path, make_row: MakeRow, make_source: MakeSource
) -> None:
    prepare(make_source([make_row(n) for n in range(120)]), tmp_path / "out")

    sides: dict[str, set[str]] = {}
    for row in Cohort.open(tmp_path / "out").table().to_pylist():
        sides.setdefault(row["patient_id"], set()).add(row["split"])
    assert {len(side) for side in sides.values()} == {1}


def test_a_cohort_without_patients_says_so(
    tmp_path: Path, make_row: MakeRow, make_source: MakeSource
) -> None:
    info = prepare(make_source([make_row(0, patient_id=None)]), tmp_path / "out")

    assert info.counts.patients is None
    assert not Cohort.open(tmp_path / "out").has_patients


def test_values_that_were_not_accepted_are_listed_with_their_row(
    tmp_path: Path, make_row: MakeRow, make_source: MakeSource
) -> None:
    error = UnreadableValue("age_years", "text of 3 characters", "expected a number")
    rows = [make_row(0, row="line 2", value_errors=(error,)), make_row(1)]
    info = prepare(make_source(rows), tmp_path / "out")

    assert info.value_errors_by_field == {"age_years": 1}
    assert Cohort.open(tmp_path / "out").value_errors() == [
        ("line 2", "age_years", "text of 3 characters", "expected a number")
    ]


def test_long_lists_go_to_files_of_their_own(
    tmp_path: Path, make_row: MakeRow, make_source: MakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cohort_info, "MAX_LISTED", 2)
    error = UnreadableValue("age_years", "number", "expected, say, 1")
    rows = [
        *(DroppedRow(f"line {n}", "no image, no use") for n in range(3)),
        *(make_row(n, value_errors=(error,)) for n in range(3)),
    ]
    info = prepare(make_source(rows), tmp_path / "out")
    cohort = Cohort.open(tmp_path / "out")

    assert (info.dropped, info.dropped_file) == ((), "dropped.csv")
    assert info.dropped_by_reason == {"no image, no use": 3}
    assert cohort.dropped() == [(f"line {n}", "no image, no use") for n in range(3)]
    assert cohort.value_errors()[0] == ("image-0", "age_years", "number", "expected, say, 1")
    (tmp_path / "out" / "dropped.csv").unlink()
    with pytest.raises(CohortError, match=r"dropped\.csv"):
        cohort.dropped()


def test_progress_tells_the_rows_read(
    tmp_path: Path, make_row: MakeRow, make_source: MakeSource
) -> None:
    calls: list[int] = []
    prepare(make_source([make_row(n) for n in range(230)]), tmp_path / "out", progress=calls.append)

    assert calls == [100, 200, 230]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_target_that_is_taken_is_refused_and_left_alone(
    kind: str, tmp_path: Path, make_row: MakeRow, make_source: MakeSource
) -> None:
    out = tmp_path / "out"
    kept = out if kind == "file" else out / "kept"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("mine")

    with pytest.raises(CohortError, match="exists"):
        prepare(make_source([make_row()]), out)
    assert kept.read_text() == "mine"


def test_an_empty_target_is_used(
    tmp_path: Path, make_row: MakeRow, make_source: MakeSource
) -> None:
    (tmp_path / "out").mkdir()

    assert prepare(make_source([make_row()]), tmp_path / "out").counts.images == 1


def test_a_failure_leaves_nothing_behind(
    tmp_path: Path, make_row: MakeRow, make_source: MakeSource
) -> None:
    def rows() -> Any:
        yield make_row(0)
        raise RuntimeError("the disk went away")

    source = replace(make_source([make_row(0)]), rows=rows)
    with pytest.raises(RuntimeError, match="disk"):
        prepare(source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_source_without_a_usable_row_is_refused_with_the_reasons(
    tmp_path: Path, make_source: MakeSource
) -> None:
    with pytest.raises(CohortError, match=r"none of 2 rows can be used \(2 x no image file\)"):
        prepare(make_source([DroppedRow("a", "no image file")] * 2), tmp_path / "out")
    with pytest.raises(CohortError, match="no rows"):
        prepare(make_source([]), tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "bcc"}, "'bcc' is not one of the labels"),
        ({"record": {"age": 3.0}}, "fields that the schema lacks"),
        ({"patient_id": "stranger"}, "not among the groups"),
    ],
)
def test_a_row_that_its_source_does_not_describe_is_refused(
    changes: dict[str, Any],
    message: str,
    tmp_path: Path,
    make_row: MakeRow,
    make_source: MakeSource,
) -> None:
    rows = [make_row(0, **changes)]
    source = replace(make_source([make_row(0)]), rows=lambda: iter(rows))
    with pytest.raises(CohortError, match=message):
        prepare(source, tmp_path / "out")


def test_a_patient_whose_rows_lie_apart_is_refused(
    tmp_path: Path, make_row: MakeRow, make_source: MakeSource
) -> None:
    with pytest.raises(CohortError, match="'patient-0' together"):
        prepare(make_source([make_row(0), make_row(3), make_row(1)]), tmp_path / "out")


def test_a_lesion_of_two_patients_is_refused(
    tmp_path: Path, make_row: MakeRow, make_source: MakeSource
) -> None:
    rows = [make_row(0, lesion_id="x"), make_row(3, lesion_id="x")]
    with pytest.raises(CohortError, match="belongs to 'patient-0' and to 'patient-1'"):
        prepare(make_source(rows), tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"name": "dx"}, LeakColumn, "'dx'"),
        ({"name": "x", "aliases": ("iddx_1",)}, LeakColumn, "'iddx_1'"),
        ({"name": "split"}, CohortError, "may not be called 'split'"),
    ],
)
def test_a_schema_with_a_leak_or_a_taken_name_is_refused(
    changes: dict[str, Any],
    error: type[CohortError],
    message: str,
    tmp_path: Path,
    make_row: MakeRow,
    make_source: MakeSource,
) -> None:
    schema = FieldSchema(fields=(Field(level="lesion", kind="numeric", **changes),))
    with pytest.raises(error, match=message):
        prepare(make_source([make_row()], schema=schema), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_malignant_labels_must_be_labels(
    tmp_path: Path, make_row: MakeRow, make_source: MakeSource
) -> None:
    with pytest.raises(CohortError, match="are no labels"):
        prepare(make_source([make_row()], malignant_labels=("scc",)), tmp_path / "out")
