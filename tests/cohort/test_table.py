"""A researcher's own table."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundle.errors import CohortError, LeakColumn
from cohort.cohort import Cohort
from cohort.rows import DroppedRow, LesionImage, Source
from cohort.store import prepare
from cohort.table import table_source

COHORT = """
[cohort]
name = "my_clinic"
image_column = "file"
lesion_column = "lesion"
patient_column = "patient"
label_column = "outcome"
labels = ["melanoma", "nevus"]
malignant_labels = ["melanoma"]
licence = "internal"
image_folder = "images"
"""
FIELDS = """
[[fields]]
name = "age_years"
level = "patient"
kind = "numeric"
unit = "years"
minimum = 0
maximum = 120
aliases = ["age"]

[[fields]]
name = "anatom_site"
column = "site code"
level = "lesion"
kind = "categorical"
categories = ["back", "face"]
category_aliases = { B = "back", F = "face" }

[[fields]]
name = "itch"
level = "lesion"
kind = "boolean"
"""
COLUMNS = ["file", "lesion", "patient", "outcome", "age", "site code", "itch"]


def make_line(number: int, **changes: Any) -> dict[str, Any]:
    content = {
        "file": f"{number}.png",
        "lesion": f"L{number}",
        "patient": f"P{number // 2}",
        "outcome": "Nevus",
        "age": "61",
        "site code": "B",
        "itch": "no",
    }
    return content | changes


Build = Callable[..., Source]


@pytest.fixture
def build(tmp_path: Path, write_csv: Any, make_image: Any) -> Build:
    """Return a function that lays out the table, its images and its description, and opens it."""

    def lay_out(
        lines: list[dict[str, Any]] | None = None,
        *,
        description: str = COHORT + FIELDS,
        columns: list[str] = COLUMNS,
    ) -> Source:
        lines = [make_line(0)] if lines is None else lines
        write_csv(tmp_path / "lesions.csv", columns, lines)
        (tmp_path / "images").mkdir(exist_ok=True)
        for number in range(9):
            (tmp_path / "images" / f"{number}.png").write_bytes(make_image(kind="PNG"))
        (tmp_path / "fields.toml").write_text(description)
        return table_source(tmp_path, schema=tmp_path / "fields.toml")

    return lay_out


def test_a_line_is_read_as_described(build: Build) -> None:
    source = build([make_line(3, outcome="melanoma")])
    (row,) = source.rows()

    assert isinstance(row, LesionImage)
    assert (row.image_id, row.lesion_id, row.patient_id) == ("3.png", "L3", "P1")
    assert (row.label, row.malignant) == ("melanoma", True)
    assert row.record == {"age_years": 61.0, "anatom_site": "back", "itch": False}
    assert (source.name, source.licence) == ("my_clinic", "internal")


def test_a_table_becomes_a_cohort(build: Build, tmp_path: Path) -> None:
    lines = [make_line(n) for n in range(9)] + [make_line(20), make_line(4, age="old")]
    info = prepare(build(lines), tmp_path / "out")

    assert (info.counts.rows_read, info.counts.images, info.counts.patients) == (11, 9, 5)
    assert info.dropped_by_reason == {
        "no image file": 1,
        "its image id stands in an earlier row": 1,
    }
    assert Cohort.open(tmp_path / "out").records([0])[0]["anatom_site"] == "back"


def test_the_csv_itself_may_be_named(build: Build, tmp_path: Path) -> None:
    build()
    (tmp_path / "other.csv").write_text("")
    schema = tmp_path / "fields.toml"

    assert len(list(table_source(tmp_path / "lesions.csv", schema=schema).rows())) == 1
    with pytest.raises(CohortError, match="exactly one CSV file, found 2"):
        table_source(tmp_path, schema=schema)


def test_a_cohort_without_patients_or_labels_is_read(build: Build) -> None:
    cohort = '[cohort]\nname="a"\nimage_column="file"\nlesion_column="lesion"\nlicence="x"\n'
    cohort += 'image_folder="images"\n'
    fields = '[[fields]]\nname="itch"\nlevel="lesion"\nkind="boolean"\n'
    (row,) = build(description=cohort + fields).rows()

    assert isinstance(row, LesionImage)
    assert (row.patient_id, row.label, row.malignant) == (None, None, None)


def test_a_line_without_a_lesion_is_dropped_and_one_without_a_patient_kept(build: Build) -> None:
    first, second = build([make_line(0, lesion=" "), make_line(1, patient="unknown")]).rows()

    assert first == DroppedRow("line 2 (0.png)", "no lesion id")
    assert isinstance(second, LesionImage)
    assert second.group_id == "L1"


def test_a_line_of_the_wrong_length_is_dropped(build: Build, tmp_path: Path) -> None:
    build()
    with (tmp_path / "lesions.csv").open("a") as file:
        file.write("1.png,L1\n")
    source = table_source(tmp_path, schema=tmp_path / "fields.toml")

    assert [row.row for row in source.rows() if isinstance(row, DroppedRow)] == ["line 3"]


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/hostname", "..\\secret.png", "link.png", ""]
)
def test_an_image_outside_the_folder_is_never_read(
    name: str, build: Build, tmp_path: Path, make_image: Any
) -> None:
    (tmp_path / "secret.png").write_bytes(make_image())
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    (row,) = build([make_line(0, file=name)]).rows()

    assert row == DroppedRow(f"line 2 ({name})", "no image file")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("licence =", "license =", "cohort license: unknown key; nearest is 'licence'"),
        (
            "minimum = 0",
            "minimun = 0",
            "fields number 1 minimun: unknown key; nearest is 'minimum'",
        ),
        ("[cohort]", "[study]\na = 1\n[cohort]", "study: unknown key; nearest is"),
        ('licence = "internal"\n', "", "cohort licence: Field required"),
        ('kind = "boolean"', 'kind = "bool"', "fields number 3 kind: Input should be 'numeric'"),
        ('name = "itch"', 'name = "Itch!"', "fields number 3 name: "),
        ('categories = ["back", "face"]\n', "", "fields number 2: .*categories belong"),
        ('aliases = ["age"]', 'aliases = ["itch"]', "fields: .*'itch'"),
        ('labels = ["melanoma", "nevus"]\n', "", "label_column and labels come together"),
        ('["melanoma", "nevus"]', '["melanoma", "Melanoma"]', "a label is listed twice"),
        ('malignant_labels = ["melanoma"]', 'malignant_labels = ["scc"]', "not in labels"),
        ('patient_column = "patient"\n', "", "age_years: a patient's field needs"),
        ('column = "site code"', 'column = "lesion"', "anatom_site: its column is already"),
        ('column = "site code"', 'column = "itch"', "two fields read the column 'itch'"),
        (
            'column = "site code"',
            'column = "site kode"',
            "no column 'site kode'; nearest is 'site c",
        ),
        ('image_column = "file"', 'image_column = "fyle"', "no column 'fyle'; nearest is 'file'"),
        ('image_folder = "images"', 'image_folder = "absent"', "is not a folder"),
        ("[cohort]", "[cohort", "expected TOML"),
    ],
)
def test_a_description_that_is_wrong_is_refused_with_the_place(
    old: str, new: str, message: str, build: Build
) -> None:
    assert old in COHORT + FIELDS
    with pytest.raises(CohortError, match=message):
        build(description=(COHORT + FIELDS).replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('name = "itch"', 'name = "diagnosis_2"'),
        ('column = "site code"', 'column = "dx_type"'),
        ('aliases = ["age"]', 'aliases = ["age", "target"]'),
    ],
)
def test_a_leak_is_refused_as_name_column_or_alias(old: str, new: str, build: Build) -> None:
    with pytest.raises(LeakColumn):
        build(description=(COHORT + FIELDS).replace(old, new, 1))


def test_a_missing_description_is_named(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"absent\.toml"):
        table_source(tmp_path, schema=tmp_path / "absent.toml")


def test_the_example_of_the_documentation_works(
    tmp_path: Path, make_image: Callable[..., bytes]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "cohorts.md").read_text()
    blocks = dict(re.findall(r"`([\w.]+)`:\n\n```\w*\n(.*?)```", page, re.DOTALL))
    (tmp_path / "lesions.csv").write_text(blocks["lesions.csv"])
    (tmp_path / "fields.toml").write_text(blocks["fields.toml"])
    (tmp_path / "photos").mkdir()
    for name in re.findall(r"^([\w-]+\.jpg)", blocks["lesions.csv"], re.MULTILINE):
        (tmp_path / "photos" / name).write_bytes(make_image())

    info = prepare(table_source(tmp_path, schema=tmp_path / "fields.toml"), tmp_path / "out")

    assert (info.counts.images, info.counts.dropped, info.value_errors) == (4, 0, ())
    assert info.counts.labels == {"melanoma": 1, "nevus": 2, "seborrhoeic keratosis": 1}
