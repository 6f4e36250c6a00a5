"""HIBA in both forms of ISIC's export."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundle.errors import CohortError
from cohort.hiba import HIBA, hiba_source
from cohort.leaks import leak_reason
from cohort.rows import DroppedRow, LesionImage
from cohort.store import prepare

OLDER = "isic_id,image_type,lesion_id,patient_id,diagnosis,fitzpatrick_skin_type,copyright_license"
OLDER_LINE = "ISIC_0175370,dermoscopic,IL_3174822,IP_9871245,basal cell carcinoma,II,CC-BY"
NEWER = (
    "isic_id,attribution,copyright_license,age_approx,anatom_site_1,anatom_site_2,"
    "anatom_site_special,concomitant_biopsy,dermoscopic_type,diagnosis_1,diagnosis_2,diagnosis_3,"
    "diagnosis_confirm_type,family_hx_mm,fitzpatrick_skin_type,image_type,lesion_id,patient_id,"
    "personal_hx_mm,sex"
)
CELLS = {
    "isic_id": "ISIC_0175371",
    "attribution": "Hospital Italiano de Buenos Aires",
    "copyright_license": "CC-BY",
    "age_approx": "60",
    "anatom_site_1": "Head and neck",
    "anatom_site_2": "Head",
    "anatom_site_special": "",
    "concomitant_biopsy": "True",
    "dermoscopic_type": "contact polarized",
    "diagnosis_1": "Malignant",
    "diagnosis_2": "Malignant adnexal epithelial proliferations - Follicular",
    "diagnosis_3": "Basal cell carcinoma",
    "diagnosis_confirm_type": "histopathology",
    "family_hx_mm": "False",
    "fitzpatrick_skin_type": "II",
    "image_type": "dermoscopic",
    "lesion_id": "IL_3174822",
    "patient_id": "IP_9871245",
    "personal_hx_mm": "True",
    "sex": "male",
}

Build = Callable[..., Path]


def make_line(**changes: str) -> str:
    assert list(CELLS) == NEWER.split(",")
    return ",".join(f'"{cell}"' for cell in {**CELLS, **changes}.values())


@pytest.fixture
def build(lay_out: Callable[..., Path]) -> Build:
    """Return a function that lays out the folder."""

    def write(*lines: str, header: str = NEWER, copies: dict[str, str] | None = None) -> Path:
        names = [f"images/{line.split(',')[0].strip(chr(34))}.jpg" for line in lines]
        return lay_out({"metadata.csv": "\n".join([header, *lines])}, names, copies)

    return write


def read(root: Path, **options: Any) -> list[LesionImage]:
    return [row for row in hiba_source(root, **options).rows() if isinstance(row, LesionImage)]


def test_a_line_of_the_newer_export_is_read(build: Build) -> None:
    (row,) = read(build(make_line()))

    assert (row.image_id, row.lesion_id, row.patient_id) == (
        "ISIC_0175371",
        "IL_3174822",
        "IP_9871245",
    )
    assert (row.label, row.malignant) == ("basal cell carcinoma", True)
    assert row.record == {
        "age_years": 60.0,
        "sex": "male",
        "fitzpatrick_skin_type": "II",
        "family_hx_mm": False,
        "personal_hx_mm": True,
        "anatom_site": "head/neck",
        "anatom_site_2": "Head",
    }
    assert row.value_errors == ()


def test_a_line_of_the_older_export_is_read(build: Build) -> None:
    root = build(OLDER_LINE, header=OLDER)
    (row,) = read(root)

    assert (row.lesion_id, row.patient_id) == ("IL_3174822", "IP_9871245")
    assert (row.label, row.malignant) == ("basal cell carcinoma", True)
    assert row.record == {"fitzpatrick_skin_type": "II"}
    assert hiba_source(root).schema.names == ("fitzpatrick_skin_type",)


def test_the_older_export_may_have_more_columns(build: Build) -> None:
    root = build(
        OLDER_LINE + ",70,female,posterior torso,malignant",
        header=f"{OLDER},age_approx,sex,anatom_site_general,benign_malignant",
    )
    (row,) = read(root)

    assert row.malignant is True
    assert row.record == {
        "age_years": 70.0,
        "sex": "female",
        "fitzpatrick_skin_type": "II",
        "anatom_site": "posterior torso",
    }


@pytest.mark.parametrize(
    ("diagnosis_1", "diagnosis_2", "diagnosis_3", "label", "malignant"),
    [
        ("Benign", "Benign melanocytic proliferations", "Nevus", "nevus", False),
        ("Malignant", "(Melanoma)", "Melanoma Invasive", "melanoma", True),
        ("Malignant", "(Melanoma)", "Melanoma, NOS", "melanoma", True),
        (
            "Malignant",
            "Malignant epidermal proliferations",
            "Squamous cell carcinoma in situ",
            "squamous cell carcinoma",
            True,
        ),
        ("Indeterminate", "", "Solar or actinic keratosis", "actinic keratosis", None),
        ("Benign", "", "Lichen planus like keratosis", "lichenoid keratosis", False),
        (
            "Benign",
            "Benign soft tissue proliferations - Vascular",
            "Hemangioma",
            "vascular lesion",
            False,
        ),
        ("Benign", "Benign soft tissue proliferations - Vascular", "", "vascular lesion", False),
        ("", "", "Melanoma in situ", "melanoma", True),
        ("", "", "", None, None),
        ("Malignant", "", "", None, True),
    ],
)
def test_the_hierarchy_is_read_as_one_of_the_ten_diagnoses(
    diagnosis_1: str,
    diagnosis_2: str,
    diagnosis_3: str,
    label: str | None,
    malignant: bool | None,
    build: Build,
) -> None:
    line = make_line(diagnosis_1=diagnosis_1, diagnosis_2=diagnosis_2, diagnosis_3=diagnosis_3)
    (row,) = read(build(line))

    assert (row.label, row.malignant, row.value_errors) == (label, malignant, ())


@pytest.mark.parametrize(
    ("diagnosis", "label", "malignant"),
    [(label, label, label in HIBA.malignant_labels) for label in HIBA.labels]
    + [("vascular", "vascular lesion", False)],
)
def test_the_older_text_is_read_as_its_diagnosis(
    diagnosis: str, label: str, malignant: bool, build: Build
) -> None:
    line = OLDER_LINE.replace("basal cell carcinoma", diagnosis)
    (row,) = read(build(line, header=OLDER))

    assert (row.label, row.malignant) == (label, malignant)


def test_an_unknown_diagnosis_or_malignancy_is_listed(build: Build) -> None:
    (row,) = read(build(make_line(diagnosis_1="Maybe", diagnosis_2="Odd", diagnosis_3="Odder")))

    assert (row.label, row.malignant) == (None, None)
    assert [error.field for error in row.value_errors] == ["label", "malignant"]
    assert row.value_errors[1].reason.startswith("expected benign, malignant, indeterminate")


def test_no_column_of_either_export_that_leaks_is_a_field(build: Build) -> None:
    refused = {name for name in (*OLDER.split(","), *NEWER.split(",")) if leak_reason(name)}
    read_columns = {
        name
        for field in hiba_source(build(make_line())).schema.fields
        for name in (field.name, *field.aliases)
    }

    assert {"image_type", "concomitant_biopsy", "diagnosis", "diagnosis_confirm_type"} <= refused
    assert not refused & read_columns
    assert "dermoscopic_type" not in read_columns


def test_the_dermoscopic_type_is_read_when_asked_for(build: Build) -> None:
    (row,) = read(build(make_line()), dermoscopic_type=True)

    assert row.record["dermoscopic_type"] == "contact polarized"


def test_levels_are_those_of_patients_and_lesions() -> None:
    assert {field.name for field in HIBA.schema.at("patient")} == {
        "age_years",
        "sex",
        "fitzpatrick_skin_type",
        "family_hx_mm",
        "personal_hx_mm",
    }
    assert {field.name for field in HIBA.schema.at("lesion")} == {
        "anatom_site",
        "anatom_site_2",
        "anatom_site_special",
    }


def test_blank_ids_make_an_image_its_own_lesion_without_patient(build: Build) -> None:
    (row,) = read(build(make_line(lesion_id="", patient_id="")))

    assert (row.lesion_id, row.patient_id) == ("ISIC_0175371", None)


def test_the_same_picture_under_another_patient_is_dropped(build: Build, tmp_path: Path) -> None:
    lines = [
        make_line(isic_id="a", lesion_id="l1", patient_id="p1"),
        make_line(isic_id="b", lesion_id="l2", patient_id="p2"),
        make_line(isic_id="c", lesion_id="l1", patient_id="p1"),
        make_line(isic_id="d", lesion_id="l2", patient_id="p2"),
        "broken",
    ]
    copies = {"images/b.jpg": "images/a.jpg", "images/c.jpg": "images/a.jpg"}
    source = hiba_source(build(*lines, copies=copies))
    info = prepare(source, tmp_path / "out")

    assert (info.counts.rows_read, info.counts.images) == (5, 3)
    assert {(entry.row, entry.reason) for entry in info.dropped} == {
        ("line 3 (b)", "the same picture stands under another patient"),
        ("line 6", "its cells are not as many as the 20 columns"),
    }
    assert sum(isinstance(row, DroppedRow) for row in source.rows()) == 2


@pytest.mark.parametrize(
    ("header", "name"),
    [(OLDER, "fitzpatrick_skin_type"), (OLDER, "patient_id")]
    + [(NEWER, name) for name in ("isic_id", "diagnosis_3", "sex", "anatom_site_special")],
)
def test_a_table_without_a_column_is_refused(header: str, name: str, build: Build) -> None:
    root = build(OLDER_LINE, header=header.replace(name, "other"))

    with pytest.raises(CohortError, match=rf"metadata\.csv: line 1: no column '{name}'"):
        hiba_source(root)


def test_a_folder_without_table_images_or_either_form_is_refused(build: Build) -> None:
    root = build(make_line())
    (root / "metadata.csv").rename(root / "images" / "metadata.csv")
    assert len(read(root)) == 1
    (root / "images" / "metadata.csv").unlink()
    with pytest.raises(CohortError, match=r"expected metadata\.csv or images/metadata\.csv"):
        hiba_source(root)
    bare = build("a,b,c", header="isic_id,lesion_id,patient_id")
    with pytest.raises(CohortError, match=r"expected a column diagnosis .* got neither: export"):
        hiba_source(bare)
    (bare / "images").rename(bare / "pictures")
    with pytest.raises(CohortError, match="expected a folder images: unpack"):
        hiba_source(bare)
