"""HAM10000 in its published layouts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundle.errors import CohortError
from cohort.cohort import Cohort
from cohort.ham10000 import HAM10000, ham10000_source
from cohort.rows import DroppedRow, LesionImage
from cohort.store import prepare

COLUMNS = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"]


def make_line(number: int, **changes: Any) -> dict[str, Any]:
    content = {
        "lesion_id": f"HAM_{number:07d}",
        "image_id": f"ISIC_{number:07d}",
        "dx": "nv",
        "dx_type": "histo",
        "age": "45.0",
        "sex": "male",
        "localization": "back",
    }
    return content | changes


Build = Callable[..., Path]


@pytest.fixture
def build(
    tmp_path: Path, write_csv: Callable[..., Path], make_image: Callable[..., bytes]
) -> Build:
    """Return a function that lays out the folder and returns it."""

    def lay_out(
        lines: list[dict[str, Any]],
        *,
        table: str = "HAM10000_metadata.csv",
        columns: list[str] = COLUMNS,
        folder: str = "HAM10000_images_part_1",
        **options: Any,
    ) -> Path:
        root = tmp_path / "ham"
        write_csv(root / table, columns, lines, **options)
        (root / folder).mkdir()
        for line in lines:
            (root / folder / f"{line['image_id']}.jpg").write_bytes(make_image())
        return root

    return lay_out


def only_image(root: Path) -> LesionImage:
    (row,) = ham10000_source(root).rows()
    assert isinstance(row, LesionImage)
    return row


def test_a_line_becomes_a_lesion_image(build: Build) -> None:
    row = only_image(build([make_line(7, dx="mel")]))

    assert row.patient_id is None
    assert (row.image_id, row.lesion_id, row.group_id) == ("ISIC_0000007", *["HAM_0000007"] * 2)
    assert (row.label, row.malignant) == ("mel", True)
    assert row.record == {"age_years": 45.0, "sex": "male", "anatom_site": "back"}


def test_age_and_sex_are_fields_of_the_lesion() -> None:
    assert {field.level for field in HAM10000.schema.fields} == {"lesion"}
    assert [HAM10000.schema.resolve(n).name for n in ("age", "sex", "localization")] == [
        "age_years",
        "sex",
        "anatom_site",
    ]


def test_blank_and_unknown_are_missing_and_an_age_of_0_is_an_age(build: Build) -> None:
    lines = [
        make_line(1, age="", sex="unknown", localization="unknown"),
        make_line(2, age="0.0"),
    ]
    rows = [row for row in ham10000_source(build(lines)).rows() if isinstance(row, LesionImage)]

    assert rows[0].record == {}
    assert rows[1].record["age_years"] == 0.0
    assert rows[0].value_errors == ()


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("delimiter", [",", "\t"])
@pytest.mark.parametrize("table", ["HAM10000_metadata", "HAM10000_metadata.tab"])
def test_the_table_of_dataverse_with_8_columns_is_read(
    table: str, delimiter: str, newline: str, build: Build
) -> None:
    columns = [*COLUMNS, "dataset"]
    lines = [make_line(1, dataset="vidir_modern")]
    root = build(lines, table=table, columns=columns, delimiter=delimiter, newline=newline)

    assert only_image(root).record["age_years"] == 45.0


@pytest.mark.parametrize("folder", ["HAM10000_images_part_1", "HAM10000_images_part_2", "images"])
def test_images_are_found_in_each_folder(folder: str, build: Build) -> None:
    assert only_image(build([make_line(1)], folder=folder)).image


def test_images_of_one_lesion_stand_together_in_one_split(build: Build, tmp_path: Path) -> None:
    lines = [make_line(n, lesion_id=f"HAM_{n % 5}") for n in range(30)]
    info = prepare(ham10000_source(build(lines)), tmp_path / "out")
    table = Cohort.open(tmp_path / "out").table()

    assert info.counts.lesions == 5
    pairs = {(r["lesion_id"], r["split"]) for r in table.to_pylist()}
    assert len(pairs) == 5


def test_a_line_without_an_image_or_with_odd_values_is_listed(build: Build) -> None:
    root = build([make_line(1, localization="moon", dx="xyz"), make_line(2)])
    (root / "HAM10000_images_part_1" / "ISIC_0000002.jpg").unlink()
    first, second = ham10000_source(root).rows()

    assert isinstance(first, LesionImage)
    assert [error.field for error in first.value_errors] == ["anatom_site", "label"]
    assert second == DroppedRow("line 3 (ISIC_0000002)", "no image file")


def test_a_folder_without_table_or_images_is_refused(tmp_path: Path, build: Build) -> None:
    with pytest.raises(CohortError, match=r"HAM10000_metadata\.csv"):
        ham10000_source(tmp_path)
    root = build([], columns=COLUMNS)
    (root / "HAM10000_images_part_1").rmdir()
    with pytest.raises(CohortError, match="unpack the images"):
        ham10000_source(root)


def test_a_table_without_a_needed_column_is_refused(build: Build) -> None:
    lines = [{k: v for k, v in make_line(1).items() if k != "localization"}]
    with pytest.raises(CohortError, match="no column 'localization'"):
        ham10000_source(build(lines, columns=COLUMNS[:-1]))
